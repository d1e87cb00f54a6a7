"""Carrier accounts, rules and limits as one process knows them: read again whenever their version has changed."""

from __future__ import annotations

import structlog

from infra.database import Database
from smsgateway.store import routing as store
from smsgateway.store.routing import Tables

log = structlog.get_logger(__name__)

NOTHING = Tables(0, (), (), ())


class TablesReader:
    """Reads the tables when they have changed. A look that finds them as they were costs one row."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read: Tables | None = None

    async def changed(self) -> Tables | None:
        """The tables, when they are others than at the last call; else None. Raises the database's errors."""
        if self._read is not None:
            async with self._database.connection() as connection:
                version = await store.find_version(connection)
            # Not greater: a restored database may be at an earlier one.
            if version == self._read.version:
                return None
        async with self._database.snapshot() as connection:
            self._read = await store.load(connection)
        log.info(
            "carrier accounts read",
            version=self._read.version,
            accounts=len(self._read.accounts),
            rules=len(self._read.rules),
        )
        return self._read
