"""Databases of one server for tests and proofs: made from a template, and dropped whoever looks at them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy
from psycopg import sql

_numbers = itertools.count(1)


def url_of(server_url: str, name: str) -> str:
    """The same server's database of this name."""
    return sqlalchemy.make_url(server_url).set(database=name).render_as_string(hide_password=False)


def create(server_url: str, name: str, template: str = "") -> str:
    """Create a database, empty or as the template is, and return its URL."""
    statement = sql.SQL("create database {}").format(sql.Identifier(name))
    if template:
        statement += sql.SQL(" template {}").format(sql.Identifier(template))
    with _connect(server_url) as connection:
        connection.execute(statement)
    return url_of(server_url, name)


def drop(server_url: str, name: str) -> None:
    """Drop a database and end our connections to it.

    Not `with (force)`: that would want to end an autovacuum worker too, which belongs to a superuser, and fail. Without
    it PostgreSQL makes such a worker give way.
    """
    with _connect(server_url) as connection:
        connection.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = %s and usename = current_user",
            [name],
        )
        connection.execute(sql.SQL("drop database if exists {}").format(sql.Identifier(name)))


@contextmanager
def fresh(server_url: str, template: str = "") -> Iterator[str]:
    """A new database for as long as the block takes; its URL."""
    name = f"fresh_{next(_numbers)}"
    url = create(server_url, name, template)
    try:
        yield url
    finally:
        drop(server_url, name)


def _connect(server_url: str) -> psycopg.Connection:
    return psycopg.connect(server_url, autocommit=True, connect_timeout=10)
