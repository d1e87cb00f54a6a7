"""What all tests share: real servers for the session, a fresh database and an empty Redis for each test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from fake_cost_center import FakeCostCenter
from gateway_harness import Gateway, running_gateway, started_cost_center
from ledger_harness import Ledger, running_ledger

from costcenter import migrations as ledger_migrations
from infra.embedded import EmbeddedServers
from scripts import databases
from smsgateway import migrations as gateway_migrations

_TEMPLATE = "smsbill_template"
_REDIS_DB = 1
# A disk in memory, and what it must have left: some servers at a time, some 200 MB each.
_MEMORY_DISK = Path("/dev/shm")
_MEMORY_DISK_BYTES = 4 * 2**30


def _keep_files_in_memory() -> None:
    """Put temporary files on a disk in memory where there is one with room, unless TMPDIR says where they belong.

    A database of a test costs a tenth there of what it costs on a disk, and nothing of a test outlives the machine.
    """
    if "TMPDIR" in os.environ or not os.access(_MEMORY_DISK, os.W_OK | os.X_OK):
        return
    facts = os.statvfs(_MEMORY_DISK)
    if facts.f_bavail * facts.f_frsize >= _MEMORY_DISK_BYTES and not facts.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = str(_MEMORY_DISK)
        tempfile.tempdir = None


_keep_files_in_memory()


@pytest.fixture(scope="session")
def servers() -> Iterator[EmbeddedServers]:
    """A real PostgreSQL and a real Redis. Not in `tmp_path`: every pytest that starts closes that for other users."""
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="smsbill-test-")))
    try:
        with EmbeddedServers(folder / "data", stop_timeout_seconds=30) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def database_template(servers: EmbeddedServers) -> str:
    """Name of a database with all migrations; copying it costs less than migrating."""
    url = databases.create(servers.database_url, _TEMPLATE)
    gateway_migrations.migrate(url)
    ledger_migrations.migrate(url)
    return _TEMPLATE


@pytest.fixture
def database_url(servers: EmbeddedServers, database_template: str) -> Iterator[str]:
    """A fresh, migrated database of this test."""
    with databases.fresh(servers.database_url, database_template) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_database_url(servers: EmbeddedServers, database_template: str) -> Iterator[str]:
    """A migrated database that stays empty, for tests that only ask."""
    with databases.fresh(servers.database_url, database_template) as url:
        yield url


@pytest.fixture(scope="session")
def known_empty_database_url(servers: EmbeddedServers, database_template: str) -> Iterator[str]:
    """A migrated database whose tables PostgreSQL knows to be empty: the worst that it can plan by."""
    with databases.fresh(servers.database_url, database_template) as url:
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            connection.execute("vacuum analyze")
        yield url


@pytest.fixture
def empty_database_url(servers: EmbeddedServers) -> Iterator[str]:
    """A fresh database without any of our schemas."""
    with databases.fresh(servers.database_url) as url:
        yield url


@pytest.fixture
def redis_url(servers: EmbeddedServers) -> str:
    """An empty Redis database. Channels are shared by all databases, so a test may hear notices of another's past."""
    url = servers.redis_url.replace("db=0", f"db={_REDIS_DB}")
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
async def fake_costcenter() -> AsyncIterator[FakeCostCenter]:
    """A cost centre that misbehaves as told."""
    fake = await started_cost_center()
    yield fake
    await fake.stop()


@pytest.fixture
async def gateway(fake_costcenter: FakeCostCenter, database_url: str, redis_url: str) -> AsyncIterator[Gateway]:
    """A gateway beside a fake cost centre."""
    async with running_gateway(fake_costcenter, database_url, redis_url) as running:
        yield running


@pytest.fixture
async def costcenter(database_url: str) -> AsyncIterator[Ledger]:
    """The real cost centre, in the same database."""
    async with running_ledger(database_url) as running:
        yield running
