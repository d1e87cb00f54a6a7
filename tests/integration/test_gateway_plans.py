"""The gateway's statements stay look-ups as tables grow, although they are planned while the tables are empty."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import psycopg
import pytest

from infra.database import LOOKUP_OPTIONS
from smsgateway.store import accepting, listing

pytestmark = pytest.mark.timeout(60)

# What sweeps by age instead of looking up: it walks an index in order, up to a limit.
_SWEEPS = {"_ABANDONED_MESSAGES", "_ABANDONED_BATCHES"}


def _statements() -> dict[str, str]:
    found = {
        name: text
        for module in (accepting, listing)
        for name, text in vars(module).items()
        if isinstance(text, str) and re.match(r"\s*(select|insert|update|delete|with)\b", text) and name not in _SWEEPS
    }
    found["message"] = found.pop("_SELECT") + "and message.message_id = %(message)s"
    for name, condition in {"batch": "batch_id", "mobile": "mobile"}.items():
        found[f"list by {name}"] = (
            f"{found['message']}\nand message.{condition} = %(x)s order by message.message_id desc limit 100"
        ).replace("message.message_id = ", "message.message_id < ")
    return found


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


@pytest.mark.parametrize("name", sorted(_statements()))
def test_statement_is_a_look_up(database_url: str, name: str) -> None:
    """Every scan of a table goes through an index with a condition on it."""
    statement = _numbered(_statements()[name])
    with psycopg.connect(database_url, options=LOOKUP_OPTIONS) as connection:
        row = connection.execute(f"explain (generic_plan, format json) {statement}".encode()).fetchone()
    assert row is not None
    plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
    scans = [node for node in _nodes(plan[0]["Plan"]) if "Relation Name" in node and "Scan" in node["Node Type"]]
    for scan in scans:
        # A bitmap's condition stands with the index scan below it.
        if scan["Node Type"] != "Bitmap Heap Scan":
            assert "Index Cond" in scan, f"{scan['Node Type']} of {scan['Relation Name']}"
            assert "brand_id" in scan["Index Cond"]
