"""How the console's pages read the gateway's tables: few at a time, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from infra.database import Connection, Database


class Reads:
    """Connections for pages: those who send must not wait for those who look.

    Parameters: `at_once` reads under way; `seconds` one may take, its wait included, before it ends with
    `TimeoutError`.
    """

    def __init__(self, database: Database, *, at_once: int, seconds: float) -> None:
        self._database = database
        self._places = asyncio.Semaphore(at_once)
        self._seconds = seconds

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection whose statements see one moment."""
        async with asyncio.timeout(self._seconds), self._places, self._database.snapshot() as connection:
            yield connection
