"""Plans of statements as PostgreSQL makes them once and for all while the tables are still empty."""

from __future__ import annotations

import itertools
import json
import re
from types import ModuleType
from typing import Any

import psycopg

from infra.database import LOOKUP_OPTIONS

# A receipt comes without a brand.
_BY_REFERENCE = {"route", "receipt_inbox"}


def statements_of(*modules: ModuleType) -> dict[str, str]:
    """The whole statements among the constants of modules, by name."""
    return {
        name: text
        for module in modules
        for name, text in vars(module).items()
        if isinstance(text, str) and re.match(r"\s*(select|insert|update|delete|with)\b", text)
    }


def require_look_ups(url: str, statement: str) -> None:
    """Assert that every scan of a table goes through an index with the brand in its condition, or by place."""
    with psycopg.connect(url, options=LOOKUP_OPTIONS) as connection:
        row = connection.execute(f"explain (generic_plan, format json) {_numbered(statement)}".encode()).fetchone()
    assert row is not None
    plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
    for scan in _nodes(plan[0]["Plan"]):
        # A bitmap's condition stands with the index scan below it; a TID is a place, looked up just before.
        if "Relation Name" not in scan or scan["Node Type"] in {"Bitmap Heap Scan", "Tid Scan", "ModifyTable"}:
            continue
        assert "Index Cond" in scan, f"{scan['Node Type']} of {scan['Relation Name']}"
        condition = scan["Index Cond"]
        if scan["Relation Name"] in _BY_REFERENCE:
            assert "account" in condition and "reference" in condition, condition  # noqa: PT018 - one key
        else:
            assert "brand_id" in condition, condition


def _numbered(statement: str) -> str:
    """The statement with PostgreSQL's own placeholders."""
    numbers: dict[str, int] = {}
    fresh = itertools.count(1)

    def number(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return f"${next(fresh)}"
        if name not in numbers:
            numbers[name] = next(fresh)
        return f"${numbers[name]}"

    return re.sub(r"%(?:\((\w+)\))?s", number, statement)


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]
