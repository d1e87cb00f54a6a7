"""`smsbill migrate` and `smsbill reconcile`: what needs the servers themselves, whether the stack runs or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from infra.differences import Difference
from infra.embedded import EmbeddedServers
from smsbill import interruption, stack_file
from smsbill.settings import StackSettings
from smsbill.tables import console, pairs, print_json, table

_COLUMNS = ("check", "#brand", "subject", "figure", "expected", "found")


def migrate(as_json: bool) -> None:
    """Bring both schemas to this release. Raises `StartError`, `EmbeddedError`."""
    from smsbill.stack import migrate as migrate_schemas  # noqa: PLC0415 - heavy

    async def body() -> int:
        async with servers(StackSettings.load()) as settings:
            await asyncio.to_thread(migrate_schemas, settings.ledger_database_url, settings.database_url)
        return 0

    interruptible(body)
    pairs(as_json, {"migrated": ["costcenter", "smsgateway"]})


def reconcile(as_json: bool) -> int:
    """Compare everything with everything; 0 when nothing differs. Raises `StartError`, `EmbeddedError`."""
    from smsbill import reconcile as reconciliation  # noqa: PLC0415 - heavy

    found: list[Difference] = []

    async def work(settings: StackSettings, progress: Callable[[str, int, int], None]) -> None:
        found.extend(await reconciliation.run(settings, progress=progress))

    _with_progress(as_json, work, redis=True)
    return _tell(as_json, found, "No difference: every package, freeze, payment and message fits its records")


def rebuild_usage(as_json: bool, from_brand: int) -> int:
    """Make usage figures anew from the message records; 0. Raises `StartError`, `EmbeddedError`."""
    from smsbill import usage_figures  # noqa: PLC0415 - heavy

    rebuilt = 0

    async def work(settings: StackSettings, progress: Callable[[str, int, int], None]) -> None:
        nonlocal rebuilt
        rebuilt = await usage_figures.rebuild(
            settings.database_url, zone=settings.usage_time_zone, from_brand=from_brand, progress=progress
        )

    _with_progress(as_json, work)
    pairs(as_json, {"brands": rebuilt}, "Usage rebuilt")
    return 0


def check_usage(as_json: bool) -> int:
    """Compare usage figures with the message records; 0 when nothing differs. Raises `StartError`, `EmbeddedError`."""
    from smsbill import usage_figures  # noqa: PLC0415 - heavy

    found: list[Difference] = []

    async def work(settings: StackSettings, progress: Callable[[str, int, int], None]) -> None:
        found.extend(await usage_figures.check(settings.database_url, zone=settings.usage_time_zone, progress=progress))

    _with_progress(as_json, work)
    return _tell(as_json, found, "No difference: usage is what the message records say")


def _with_progress(
    as_json: bool,
    work: Callable[[StackSettings, Callable[[str, int, int], None]], Coroutine[Any, Any, None]],
    *,
    redis: bool = False,
) -> None:
    """Run what needs the database, and show how far it is."""
    screen = console(stderr=True)

    async def body() -> int:
        async with servers(StackSettings.load(), redis=redis) as settings:
            with screen.status("reading") as status:

                def show(what: str, done: int, total: int) -> None:
                    line = f"{what}: {done:,} of {total:,} ({done / total:.0%})" if total else f"{what}: {done:,}"
                    status.update(line)
                    # Where nobody sees a line change, each is one of its own; programs want none.
                    if not screen.is_terminal and not as_json:
                        screen.print(line)

                await work(settings, show)
        return 0

    interruptible(body)


def _tell(as_json: bool, found: Sequence[Difference], nothing: str) -> int:
    if as_json:
        print_json({"differences": [asdict(each) for each in found]})
    elif not found:
        console().print(nothing)
    else:
        rows = [tuple(asdict(each).values()) for each in found]
        console().print(table(f"{len(found):,} differences", _COLUMNS, rows))
    return 1 if found else 0


def interruptible(body: Callable[[], Coroutine[Any, Any, int]]) -> None:
    """Run a command's body to its end or to the first signal. Raises `Interrupted`."""
    asyncio.run(interruption.run(body(), hurry=lambda: None))


@asynccontextmanager
async def servers(settings: StackSettings, *, redis: bool = True) -> AsyncIterator[StackSettings]:
    """The settings with the servers to use: the user's, those of the running stack, or embedded ones for now.

    Parameters: `redis` whether that one is needed too. Raises `EmbeddedError`.
    """
    stack = stack_file.running(settings.data_dir)
    missing_redis = redis and not settings.redis_url
    missing = not settings.database_url or missing_redis
    if missing and stack is not None:
        urls = (stack.database_url, stack.ledger_database_url, stack.redis_url)
        yield _with_urls(settings, *urls)
    elif missing:
        embedded = EmbeddedServers(settings.data_dir, postgres=not settings.database_url, redis=missing_redis)
        async with embedded as started:
            database = settings.database_url or started.database_url
            yield _with_urls(settings, database, "", started.redis_url if missing_redis else settings.redis_url)
    else:
        yield settings


def _with_urls(settings: StackSettings, database: str, ledger: str, redis: str) -> StackSettings:
    return settings.model_copy(
        update={
            "database_url": settings.database_url or database,
            "costcenter_database_url": settings.costcenter_database_url or ledger or database,
            "redis_url": settings.redis_url or redis,
        }
    )
