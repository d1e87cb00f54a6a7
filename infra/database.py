"""Connections to PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import psycopg
import structlog
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from infra.errors import StartError

log = structlog.get_logger(__name__)

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
ThreadConnection = psycopg.Connection[tuple[Any, ...]]

# What a fault of the server or of the way to it looks like; what was under way may be tried again.
# OperationalError covers lost connections and shutdowns (classes 08, 57, 53) and, as its subclasses, serialization
# failures and deadlocks (class 40). InterfaceError is raised for a connection that is already closed.
# A process that was stopped in a transaction finds it ended; after a failover the old primary may only be read.
TRANSIENT = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,
    PoolTimeout,
    OSError,
)

# Where PostgreSQL's source reports files that cannot be written. For a full disk it has a code of its own (53100, an
# OperationalError); a quota that is used up and a file that may not grow are internal errors to it (XX000), as are
# faults of its program.
_STORAGE_SOURCES = frozenset({"buffile.c", "fd.c", "md.c", "slru.c", "xlog.c"})

# A server that went away without a word is noticed within half a minute instead of hours.
KEEP_ALIVE: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
CONNECT_SECONDS = 10

# What a server's or a user's defaults must not change. In a zone ahead of UTC the last moments of the year 9999, which
# a package may end with, are past what Python can hold; and whoever waits for a lock must see what was written
# meanwhile.
_SESSION_OPTIONS = "-c TimeZone=UTC -c default_transaction_isolation=read\\ committed"

# Only index look-ups stay flat as tables grow, so they are all that is left to choose. Statements that leave the
# planner no other order (see `infra.bulk`) are planned once and for all.
_LOOK_UPS = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off -c enable_material=off -c jit=off"
LOOKUP_OPTIONS = f"{_LOOK_UPS} -c plan_cache_mode=force_generic_plan"
# Statements that join freely are planned each time, by the table's size and the length of the arrays: a plan made while
# a queue's table was empty would walk all of it for each group once a backlog has come.
FRESH_PLAN_OPTIONS = f"{_LOOK_UPS} -c plan_cache_mode=force_custom_plan"


class StorageError(psycopg.OperationalError):
    """PostgreSQL cannot write one of its files; it may as soon as there is room."""


def _told(error: psycopg.errors.InternalError_) -> psycopg.Error:
    """The error itself, or a `StorageError` where it tells of files."""
    return StorageError(str(error)) if error.diag.source_file in _STORAGE_SOURCES else error


def start_error(error: BaseException) -> StartError:
    """What keeps a process from starting where the server fails it (`TRANSIENT`), with what to do."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return StartError(
            f"PostgreSQL takes no writes: {reason}; set SMSBILL_DATABASE_URL to the primary server, and see that its "
            "default_transaction_read_only is off"
        )
    return StartError(f"PostgreSQL cannot be reached: {reason}; check SMSBILL_DATABASE_URL and that the server runs")


class Database:
    """A pool of connections that heals: a broken one is replaced, and a caller waits a bounded time for one.

    Parameters: `url` a libpq URL; `size` connections at most; `wait_seconds` how long a caller waits for one before
    it gets `PoolTimeout`; `options` libpq's `options`, for instance `LOOKUP_OPTIONS`; `statements` connections more for
    `statement`, at most.
    """

    def __init__(
        self,
        url: str,
        *,
        size: int,
        wait_seconds: float,
        options: str = "",
        name: str = "database",
        statements: int = 0,
    ) -> None:
        self.url = url

        def pool(size: int, options: str, *, autocommit: bool) -> AsyncConnectionPool[Connection]:
            return AsyncConnectionPool(
                url,
                min_size=0,
                max_size=size,
                timeout=wait_seconds,
                name=name,
                open=False,
                kwargs={
                    "autocommit": autocommit,
                    "prepare_threshold": 0,
                    "application_name": f"smsbill-{name}",
                    "options": f"{_SESSION_OPTIONS} {options}",
                    **KEEP_ALIVE,
                },
                reconnect_timeout=wait_seconds,
            )

        self._pool = pool(size, options, autocommit=False)
        self._statements = pool(statements, LOOKUP_OPTIONS, autocommit=True) if statements else None

    async def open(self) -> None:
        """Open the pool. Raises `StartError` when the server cannot be reached."""
        try:
            async with await psycopg.AsyncConnection.connect(self.url, connect_timeout=CONNECT_SECONDS) as connection:
                await connection.execute("select 1")
        except psycopg.OperationalError as error:
            raise start_error(error) from None
        await self._pool.open()
        if self._statements is not None:
            await self._statements.open()

    async def close(self) -> None:
        """Close every connection; those in use get a few seconds to come back."""
        await self._pool.close(timeout=5)
        if self._statements is not None:
            await self._statements.close(timeout=5)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection. Leaving the block commits, an exception rolls back."""
        try:
            async with self._pool.connection() as connection:
                yield connection
        except psycopg.errors.InternalError_ as error:
            raise _told(error) from None

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[Connection]:
        """Lend a connection on which each statement is a transaction of its own, with a plan made once and for all.

        For work that one statement does: it takes one round trip, where BEGIN and COMMIT around it make three. The
        statement must leave the planner nothing but look-ups (see `LOOKUP_OPTIONS`).
        """
        assert self._statements is not None, "a database with connections for statements"
        connection = await self._statements.getconn()
        try:
            yield connection
        except psycopg.errors.InternalError_ as error:
            raise _told(error) from None
        finally:
            await self._statements.putconn(connection)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """Lend a connection in one read-only snapshot: every statement sees the same moment."""
        async with self._pool.connection() as connection:
            await connection.execute("set transaction isolation level repeatable read, read only")
            yield connection

    @asynccontextmanager
    async def snapshots(self, count: int) -> AsyncIterator[list[Connection]]:
        """Lend several connections in one read-only snapshot: all of them see the same moment.

        Parameters: `count` connections, at most the pool's size.
        """
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(self.snapshot())
            row = await (await first.execute("select pg_export_snapshot()")).fetchone()
            assert row is not None
            connections = [first]
            for _ in range(count - 1):
                connection = await stack.enter_async_context(self.snapshot())
                await connection.execute(sql.SQL("set transaction snapshot {}").format(sql.Literal(row[0])))
                connections.append(connection)
            yield connections

    async def reachable(self, timeout_seconds: float = 2) -> bool:
        """Tell whether a statement comes back in time."""
        try:
            async with asyncio.timeout(timeout_seconds), self.connection() as connection:
                await connection.execute("select 1")
        except (*TRANSIENT, TimeoutError):
            return False
        return True


class Session:
    """A thread's own connection that heals: made when it is first needed, and again after it broke.

    Parameters: `url` a libpq URL; `hold_seconds` how long a lock is waited for, and how long this process may sit on a
    transaction without a word (stopped, or cut off) before the server ends it for the others' sake; `options` libpq's
    `options`, for instance `LOOKUP_OPTIONS`.
    """

    def __init__(self, url: str, *, hold_seconds: float, options: str = "", name: str = "database") -> None:
        milliseconds = round(hold_seconds * 1_000)
        self._url = url
        self._name = name
        self._options = (
            f"{_SESSION_OPTIONS} -c lock_timeout={milliseconds}"
            f" -c idle_in_transaction_session_timeout={milliseconds} {options}"
        )
        self._connection: ThreadConnection | None = None

    @contextmanager
    def transaction(self) -> Iterator[ThreadConnection]:
        """Lend the connection; who borrows it commits. Leaving the block otherwise rolls back.

        Raises one of `TRANSIENT` when the server cannot be reached.
        """
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                self._url,
                prepare_threshold=0,
                connect_timeout=CONNECT_SECONDS,
                application_name=f"smsbill-{self._name}",
                options=self._options,
                **KEEP_ALIVE,
            )
        connection = self._connection
        try:
            yield connection
        except psycopg.errors.InternalError_ as error:
            raise _told(error) from None
        finally:
            if connection.info.transaction_status != TransactionStatus.IDLE:
                try:
                    connection.rollback()
                except psycopg.Error:
                    connection.close()

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            self._connection.close()


# What reads large parts of tables is planned for what it is. Two such readers run side by side on two processors,
# so none gets helpers of its own. Joins and sums overflow into temporary files rather than take the server's memory. A
# nested loop over what has no index would be the end, whatever is estimated.
_SCANNING = {
    # Of each sort and each hash table, of which a statement over all records has a few dozen.
    "work_mem": "'12MB'",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "enable_nestloop": "off",
    "plan_cache_mode": "force_custom_plan",
}


@asynccontextmanager
async def scanning(connection: Connection, **settings: str) -> AsyncIterator[None]:
    """Have a transaction's statements planned for reading large parts of tables, within the block.

    Parameters: `settings` of PostgreSQL's beside the usual ones.
    """
    chosen = {**_SCANNING, **settings}
    for name, value in chosen.items():
        await connection.execute(f"set local {name} = {value}".encode())
    yield
    # After an error the transaction is over, and they with it.
    for name in chosen:
        await connection.execute(f"set local {name} to default".encode())


async def pages(
    connection: Connection, query: str, parameters: Sequence[object] | Mapping[str, object], page_size: int
) -> AsyncIterator[list[tuple[Any, ...]]]:
    """The rows of a query, a page at a time and no more of them in memory; the connection is in a transaction."""
    async with connection.cursor(name="pages") as cursor:
        await cursor.execute(query.encode(), parameters)
        while rows := await cursor.fetchmany(page_size):
            yield rows


def sqlalchemy_url(url: str) -> str:
    """The same server for SQLAlchemy and Alembic, with psycopg 3 as the driver."""
    scheme, _, rest = url.partition("://")
    if scheme not in {"postgres", "postgresql", "postgresql+psycopg"}:
        raise StartError("SMSBILL_DATABASE_URL must start with postgresql://")
    return f"postgresql+psycopg://{rest}"
