"""`smsbill top`: a live screen of what the processes do."""

# ruff: noqa: PLC0415

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import typer

from smsbill.commands.options import AsJson


def register(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command(rich_help_panel="The whole stack")(top)


def top(
    url: Annotated[
        list[str] | None,
        typer.Option(
            "--url", help="Where a process tells its metrics, any number; else the stack on the data folder.",
            show_default=False,
        ),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.2, max=3_600, help="Seconds between two looks.")] = 2,
    once: Annotated[bool, typer.Option("--once", help="Look for one interval, print, end.")] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Watch messages a second, success, queues, groups, carriers, brands; --json prints a document each interval."""
    import asyncio

    from smsbill import top as watching
    from smsbill.failure import CommandError
    from smsbill.tables import console, print_json

    urls = _given(url) if url else _of_stack()
    screen = console()
    if not (once or as_json or screen.is_terminal):
        raise CommandError("a live screen needs a terminal; use `smsbill top --once`, or --json for programs")

    async def work() -> None:
        from rich.live import Live

        live = None
        if not (once or as_json):
            live = Live(console=screen, screen=True, auto_refresh=False)
            live.start()
        try:
            async for told in watching.watch(urls, interval):
                if as_json:
                    print_json(told)
                elif live is not None:
                    live.update(watching.screen(told), refresh=True)
                else:
                    screen.print(watching.screen(told))
                if once:
                    return
        finally:
            if live is not None:
                live.stop()

    try:
        asyncio.run(work())
    except KeyboardInterrupt:
        # How a person ends it.
        raise typer.Exit(0) from None


def _given(urls: list[str]) -> dict[str, str]:
    """Processes by what their addresses say."""
    found: dict[str, str] = {}
    for url in urls:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise typer.BadParameter(f"{url!r} is no address such as http://127.0.0.1:8080/metrics", param_hint="--url")
        path = parts.path if parts.path not in ("", "/") else "/metrics"
        found[parts.netloc] = parts._replace(path=path).geturl()
    return found


def _of_stack() -> dict[str, str]:
    """The processes of the stack on the data folder. Raises `CommandError`."""
    from infra.settings import BaseSettings
    from smsbill import stack_file
    from smsbill.failure import CommandError

    settings = BaseSettings.load()
    stack = stack_file.running(settings.data_dir)
    if stack is None:
        raise CommandError(
            f"no stack runs on {settings.data_dir}; start one with `smsbill up`, "
            "or give the processes' addresses with --url http://HOST:PORT/metrics"
        )
    return stack.scrape_urls
