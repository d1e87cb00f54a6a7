"""A disk that is full for a moment is an outage of the server, which ends by itself; nothing dies of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import psycopg
import pytest
from gateway_harness import eventually
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from chaos import disk
from infra.database import TRANSIENT, Connection, Database, Session
from infra.embedded import EmbeddedServers
from smsgateway.queues import open_redis

pytestmark = pytest.mark.skipif(not disk.POSSIBLE, reason="files of another process can be limited on Linux only")

# More than a file may have then; rows of that size are not compressed.
FILL = (
    f"create temporary table filler as select repeat('x', 1000) from generate_series(1, {disk.FULL_FOR_TABLES // 800})"
)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A pool of one connection for work in transactions, and one for single statements."""
    database = Database(database_url, size=1, wait_seconds=5, statements=1)
    await database.open()
    yield database
    await database.close()


async def backend(connection: Connection) -> int:
    """The server's process behind a connection."""
    row = await (await connection.execute("select pg_backend_pid()")).fetchone()
    assert row is not None
    return int(row[0])


async def filled(lent: Callable[[], AbstractAsyncContextManager[Connection]]) -> int:
    """Write more than a full disk has room for; the server's process that did it."""
    async with lent() as connection:
        await connection.execute(FILL.encode())
        return await backend(connection)


@pytest.mark.parametrize("kind", ["connection", "statement"])
async def test_a_table_without_room_is_an_outage(database: Database, kind: str) -> None:
    """What cannot be written now is told as something to try again, and it works once there is room."""
    lent = getattr(database, kind)
    async with lent() as connection:
        pid = await backend(connection)
    await disk.limit_files(pid, disk.FULL_FOR_TABLES)
    with pytest.raises(TRANSIENT):
        await filled(lent)
    await disk.limit_files(pid, disk.ROOMY)
    assert await filled(lent) == pid


async def test_the_ledgers_sessions_tell_it_likewise(database_url: str) -> None:
    """The thread that applies groups tries them again."""
    session = Session(database_url, hold_seconds=5)
    try:
        with session.transaction() as connection:
            pid = connection.info.backend_pid
        await disk.limit_files(pid, disk.FULL_FOR_TABLES)
        with pytest.raises(TRANSIENT), session.transaction() as connection:
            connection.execute(FILL.encode())
    finally:
        session.close()


async def test_other_internal_errors_stay_what_they_are(database: Database) -> None:
    """A fault of a statement that PostgreSQL calls internal is tried once only."""
    with pytest.raises(psycopg.errors.InternalError_):
        async with database.connection() as connection:
            await connection.execute("do $$ begin raise exception using errcode = 'XX000'; end $$")


async def _takes(client: Redis) -> bool:
    try:
        return bool(await client.set("filler", "y"))
    except ResponseError:
        return False


async def _refuses(client: Redis) -> bool:
    try:
        await client.set("filler", "x")
    except ResponseError as error:
        return "MISCONF" in str(error)
    return False


async def test_redis_without_room_refuses_and_lives(servers: EmbeddedServers, redis_url: str) -> None:
    """Writes are refused while nothing can be written, the server stays, and takes them again by itself."""
    pid = servers.redis_pid
    assert pid is not None
    client = open_redis(redis_url, connections_max=2, timeout_seconds=5)
    try:
        await disk.limit_files(pid, disk.FULL)
        try:
            # The first is taken before Redis finds out.
            await eventually(lambda: _refuses(client))
        finally:
            await disk.limit_files(pid, disk.ROOMY)
        assert servers.redis_pid == pid
        await eventually(lambda: _takes(client))
    finally:
        await client.aclose()
