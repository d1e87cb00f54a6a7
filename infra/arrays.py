"""PostgreSQL array literals from Python lists.

Set-based statements take one text parameter per column, `unnest(%s::bigint[])`. Writing the literal with `join` costs a
tenth of what a driver's generic list adapter does. Syntax: https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import cast


def integers(values: Iterable[int | None]) -> str:
    """Literal of an array of numbers; None becomes NULL."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def nested(values: Iterable[Sequence[int | None] | str]) -> str:
    """Literal of an array of texts, each the literal of an array of numbers, or made to one here."""
    # Braces and commas need quotes around them, and nothing in a number needs more.
    return "{" + ",".join([f'"{value if isinstance(value, str) else integers(value)}"' for value in values]) + "}"


def texts(values: Iterable[str | None]) -> str:
    """Literal of an array of texts, each quoted; None becomes NULL."""
    listed = [*values]
    if None not in listed:
        joined = '","'.join(cast(list[str], listed))
        # Nothing needs an escape when the only quotes are those that were put between.
        if "\\" not in joined and joined.count('"') == 2 * max(len(listed) - 1, 0):
            return f'{{"{joined}"}}' if listed else "{}"
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in listed]) + "}"


def moments(values: Iterable[datetime | None]) -> str:
    """Literal of an array of timestamptz; None becomes NULL."""
    cache: dict[datetime, str] = {}
    parts = []
    for value in values:
        if value is None:
            parts.append("NULL")
            continue
        text = cache.get(value)
        if text is None:
            cache[value] = text = f'"{value.astimezone(UTC).isoformat()}"'
        parts.append(text)
    return "{" + ",".join(parts) + "}"


def booleans(values: Iterable[bool | None]) -> str:
    """Literal of an array of booleans; None becomes NULL."""
    return "{" + ",".join(["NULL" if value is None else "t" if value else "f" for value in values]) + "}"


def binaries(values: Iterable[bytes | None]) -> str:
    """Literal of an array of bytea; None becomes NULL."""
    return "{" + ",".join(["NULL" if value is None else f'"\\\\x{value.hex()}"' for value in values]) + "}"


def _quoted(value: str) -> str:
    if "\\" in value or '"' in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'
