"""A database whose clock stands still until a test moves it, to the microsecond, for every process that asks it."""

from __future__ import annotations

from datetime import datetime

import psycopg
from psycopg import sql

_SCHEMA = "still_clock"
# The ledger asks no other clock than the database's. Names without a schema are looked up along the search path, and
# the server's own functions come first only where the path does not say otherwise.
_FUNCTIONS = ("clock_timestamp", "statement_timestamp", "transaction_timestamp", "now")


def install(database_url: str, moment: datetime) -> None:
    """Stop the clock of a database at a moment, for connections made from now on."""
    with psycopg.connect(database_url, autocommit=True, connect_timeout=10) as connection:
        schema = sql.Identifier(_SCHEMA)
        connection.execute(sql.SQL("create schema {}").format(schema))
        connection.execute(sql.SQL("create table {}.moment (at timestamptz not null)").format(schema))
        connection.execute(sql.SQL("insert into {}.moment values (%s)").format(schema), (moment,))
        for name in _FUNCTIONS:
            connection.execute(
                sql.SQL(
                    "create function {0}.{1}() returns timestamptz language sql volatile"
                    " as 'select at from still_clock.moment'"
                ).format(schema, sql.Identifier(name))
            )
        database = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("alter database {} set search_path to {}, pg_catalog").format(database, schema))


class StillClock:
    """Moves the clock of a database that has one."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        self._connection = connection

    async def set(self, moment: datetime) -> None:
        """The clock stands at `moment` from now on."""
        await self._connection.execute(
            sql.SQL("update {}.moment set at = %s").format(sql.Identifier(_SCHEMA)), (moment,)
        )
