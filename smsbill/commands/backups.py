"""`smsbill backup` and `smsbill restore`."""

# ruff: noqa: PLC0415

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smsbill.commands.options import AsJson

if TYPE_CHECKING:
    from smsbill.backup import Progress

DataDir = Annotated[Path | None, typer.Option(help="Data folder (SMSBILL_DATA_DIR).", show_default=False)]


# Time between two lines of progress where a line cannot change.
_LINE_SECONDS = 5.0


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    app.command(rich_help_panel="Care")(backup)
    app.command(rich_help_panel="Care")(restore)


def backup(
    to: Annotated[Path, typer.Option(help="A new folder, or an empty one.", show_default=False)],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Write all records to a folder, as one moment knows them; the services may run meanwhile."""
    _choose(data_dir)
    from smsbill import care
    from smsbill.backup import Backup, back_up
    from smsbill.settings import StackSettings
    from smsbill.tables import pairs

    made: list[Backup] = []

    async def body() -> int:
        settings = StackSettings.load()
        async with care.servers(settings, redis=False) as found:
            with _progress(as_json, bytes_done=True) as show:
                made.append(await back_up(found, to, progress=show))
        return 0

    care.interruptible(body)
    result = made[0]
    told: dict[str, object] = {"backup": str(to), "moment": result.moment, "bytes": result.bytes}
    told["secrets"] = "secrets.json is in it: keep it private" if result.secrets else "none: yours are in your settings"
    pairs(as_json, told)


def restore(
    source: Annotated[Path, typer.Option("--from", help="The backup's folder.", show_default=False)],
    aside: Annotated[
        bool, typer.Option("--aside", help="Rename a database that is not empty, and keep it; else it is refused.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Bring all records back to a backup's moment and hold what may have been sent since; every service is stopped."""
    _choose(data_dir)
    from smsbill import backup as backups
    from smsbill import care
    from smsbill.settings import StackSettings
    from smsbill.tables import pairs

    done: list[backups.Restored] = []

    async def body() -> int:
        settings = StackSettings.load()
        backups.read(source)
        backups.require_stopped(settings.data_dir)
        async with care.servers(settings, redis=False) as found:
            with _progress(as_json, bytes_done=False) as show:
                done.append(await backups.restore(source, found, aside=aside, progress=show))
        return 0

    care.interruptible(body)
    result = done[0]
    pairs(
        as_json,
        {
            "restored_to": result.moment,
            "held": result.held,
            "kept_aside": result.aside,
            "secrets": result.secrets,
            "next": "`smsbill doctor --after-restore`, before a worker starts",
        },
    )


def _choose(data_dir: Path | None) -> None:
    if data_dir is not None:
        os.environ["SMSBILL_DATA_DIR"] = str(data_dir)


@contextmanager
def _progress(as_json: bool, *, bytes_done: bool) -> Iterator[Progress]:
    """Show what is being done, on one line that changes; where nobody sees that, a line now and then."""
    from smsbill.tables import console

    screen = console(stderr=True)
    told_at = time.monotonic()
    with screen.status("reading") as status:

        def show(what: str, done: int, total: int) -> None:
            nonlocal told_at
            figure = f": {done / 1e6:,.1f} MB" if bytes_done and done else f": {done:,} of {total:,}" if total else ""
            status.update(f"{what}{figure}")
            if not screen.is_terminal and not as_json and time.monotonic() > told_at + _LINE_SECONDS:
                screen.print(f"{what}{figure}")
                told_at = time.monotonic()

        yield show
