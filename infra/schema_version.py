"""Which version a service's schema has, and whether it is this release's: what every process asks as it starts.

Read without Alembic, whose import and reading of all scripts would take a quarter of a start.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from infra.database import start_error
from infra.errors import StartError

_REVISION = re.compile(r'^(revision|down_revision) = "(\w+)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Why a schema is not this release's, and what to do."""

    reason: str
    advice: str


_NEWER = Mismatch("is of a newer release", "start that release, or restore a backup")
_OLDER = Mismatch("lacks migrations of this release", "run `smsbill migrate`")


def require_known(url: str, schema: str, scripts: Path) -> None:
    """Raise `StartError` when the schema is of a newer release, or the server cannot be reached."""
    found = mismatch(url, schema, scripts)
    if found is _NEWER:
        raise _error(schema, found)


def require_current(url: str, schema: str, scripts: Path) -> None:
    """Raise `StartError` when the schema is of another release, or the server cannot be reached."""
    found = mismatch(url, schema, scripts)
    if found is not None:
        raise _error(schema, found)


def mismatch(url: str, schema: str, scripts: Path) -> Mismatch | None:
    """Why a schema is not this release's; None: it is. Raises `StartError`: the server cannot be reached."""
    version = current(url, schema)
    if version is not None and version not in known(scripts):
        return _NEWER
    return None if version == newest(scripts) else _OLDER


def current(url: str, schema: str) -> str | None:
    """The version of a schema, None before the first migration. Raises `StartError`: the server cannot be reached."""
    try:
        with psycopg.connect(url) as connection:
            if connection.execute("select to_regclass(%s)", (f"{schema}.alembic_version",)).fetchone() == (None,):
                return None
            query = sql.SQL("select version_num from {}.alembic_version").format(sql.Identifier(schema))
            row = connection.execute(query).fetchone()
    except psycopg.OperationalError as error:
        raise start_error(error) from None
    return None if row is None else str(row[0])


def newest(scripts: Path) -> str:
    """The version of this release: the one that no other script follows."""
    (head,) = known(scripts) - _stated(scripts, "down_revision")
    return head


def known(scripts: Path) -> set[str]:
    """All versions that this release knows."""
    return _stated(scripts, "revision")


def _error(schema: str, found: Mismatch) -> StartError:
    return StartError(f"schema {schema} {found.reason}; {found.advice}")


def _stated(scripts: Path, name: str) -> set[str]:
    texts = [path.read_text(encoding="utf-8") for path in (scripts / "versions").glob("*.py")]
    return {value for text in texts for found, value in _REVISION.findall(text) if found == name}
