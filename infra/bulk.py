"""Set-based statements for many rows of one table: a parameter per column, whatever the number of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from infra import arrays

_LITERALS: dict[str, Callable[[Iterable[Any]], str]] = {
    "bigint": arrays.integers,
    "integer": arrays.integers,
    "smallint": arrays.integers,
    "numeric": arrays.integers,
    "text": arrays.texts,
    "timestamptz": arrays.moments,
    "boolean": arrays.booleans,
    "bytea": arrays.binaries,
    "bigint[]": arrays.nested,
    "smallint[]": arrays.nested,
}


class Bulk:
    """Statements that insert or update rows of a table, given as tuples in the order of `columns`.

    `update` looks each row up by its key and changes it where it lies, in an order that leaves the planner no other
    choice: joined freely, a plan made for a small table would walk a large one. Whoever updates holds a lock that keeps
    others from moving the rows meanwhile.

    Parameters: `table` with its schema; `columns` names and PostgreSQL types; `keys` how many of the first columns are
    the key that `update` finds its rows by; `fixed` columns that have one value, given in SQL, in every row inserted.
    """

    def __init__(self, table: str, columns: dict[str, str], *, keys: int, fixed: dict[str, str] | None = None) -> None:
        names = list(columns)
        types = list(columns.values())
        self._literals = [_LITERALS[type_] for type_ in types]
        # An array of arrays would be taken apart to its last element, so a column of arrays travels as text.
        arrays_ = ", ".join(f"%s::{'text' if type_.endswith('[]') else type_}[]" for type_ in types)
        values = [f"v.{name}::{type_}" if type_.endswith("[]") else f"v.{name}" for name, type_ in columns.items()]
        source = f"unnest({arrays_}) as v({', '.join(names)})"
        into, selected = [*names, *(fixed or {})], [*values, *(fixed or {}).values()]
        self.insert = f"insert into {table} ({', '.join(into)}) select {', '.join(selected)} from {source}"  # noqa: S608
        key = " and ".join(f"r.{name} = v.{name}" for name in names[:keys])
        assignments = ", ".join(f"{name} = v.{name}" for name in names[keys:])
        given = ", ".join(f"{value} as {name}" for name, value in zip(names, values, strict=True))
        found = f"cross join lateral (select ctid from {table} r where {key} offset 0) r"  # noqa: S608
        self.update = (
            f"update {table} as t set {assignments} from "  # noqa: S608
            f"(select r.ctid as place, {given} from {source} {found} offset 0) v where t.ctid = v.place"
        )
        excluded = ", ".join(f"{name} = excluded.{name}" for name in names[keys:])
        self.upsert = f"{self.insert} on conflict ({', '.join(names[:keys])}) do update set {excluded}"

    def parameters(self, rows: Sequence[Sequence[Any]]) -> list[str]:
        """The statement's parameters for some rows, at least one."""
        return [literal(column) for literal, column in zip(self._literals, zip(*rows, strict=True), strict=True)]
