"""What all tests share: real servers for the session, a fresh database and an empty Redis for each test."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
import sqlalchemy
from psycopg import sql

import costcenter.migrations
from infra import migration
from infra.embedded import EmbeddedServers
from smsgateway import migrations as gateway_migrations

_TEMPLATE = "smsbill_template"
_REDIS_DB = 1
_numbers = itertools.count(1)


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
    _administer(servers, sql.SQL("create database {}").format(sql.Identifier(_TEMPLATE)))
    url = database_named(servers.database_url, _TEMPLATE)
    gateway_migrations.migrate(url)
    migration.upgrade(url, "costcenter", costcenter.migrations.SCRIPTS)
    return _TEMPLATE


@pytest.fixture
def database_url(servers: EmbeddedServers, database_template: str) -> Iterator[str]:
    """A fresh, migrated database of this test."""
    yield from _fresh_database(servers, sql.SQL("create database {} template {}"), sql.Identifier(database_template))


@pytest.fixture
def empty_database_url(servers: EmbeddedServers) -> Iterator[str]:
    """A fresh database without any of our schemas."""
    yield from _fresh_database(servers, sql.SQL("create database {}"))


@pytest.fixture
def redis_url(servers: EmbeddedServers) -> str:
    """An empty Redis database. Channels are shared by all databases, so a test may hear notices of another's past."""
    url = servers.redis_url.replace("db=0", f"db={_REDIS_DB}")
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


def database_named(url: str, name: str) -> str:
    """The same server's database of this name."""
    return sqlalchemy.make_url(url).set(database=name).render_as_string(hide_password=False)


def _fresh_database(servers: EmbeddedServers, statement: sql.SQL, *arguments: sql.Composable) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    identifier = sql.Identifier(name)
    _administer(servers, statement.format(identifier, *arguments))
    yield database_named(servers.database_url, name)
    _administer(servers, sql.SQL("drop database if exists {} with (force)").format(identifier))


def _administer(servers: EmbeddedServers, statement: sql.Composable) -> None:
    with psycopg.connect(servers.database_url, autocommit=True, connect_timeout=10) as connection:
        connection.execute(statement)
