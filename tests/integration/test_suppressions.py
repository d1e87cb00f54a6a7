"""Numbers that must not be sent to, as the table keeps them."""

from __future__ import annotations

import psycopg

from smsgateway.schema import SuppressionKind
from smsgateway.store import suppressions
from smsgateway.store.suppressions import Suppression

_OPT_OUT, _BLACK = SuppressionKind.OPT_OUT, SuppressionKind.BLACK_LIST


async def test_suppressions_are_added_once_listed_by_page_and_removed(database_url: str) -> None:
    """A second opt-out of a number changes nothing, kinds and brands stand apart, and pages go on by key."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        rows = [Suppression(7, f"+861380013800{n}", _OPT_OUT, "reply", "answered R") for n in (2, 0, 1)]
        assert len(await suppressions.add(connection, rows)) == 3
        again = [Suppression(7, "+8613800138000", _OPT_OUT, "admin", "again")] * 2
        assert await suppressions.add(connection, again) == set()
        others = [
            Suppression(7, "+8613800138000", _BLACK, "admin", "asked by phone"),
            Suppression(0, "+8613800138000", _BLACK, "admin", "of all brands"),
        ]
        assert await suppressions.add(connection, others) == {
            (7, "+8613800138000", 2),
            (0, "+8613800138000", 2),
        }
        assert await suppressions.add(connection, []) == set()
        first = await suppressions.page(connection, 7, limit=3)
        assert [(row.mobile[-1], row.kind, row.reason) for row in first] == [
            ("0", _OPT_OUT, "answered R"),
            ("0", _BLACK, "asked by phone"),
            ("1", _OPT_OUT, "answered R"),
        ]
        last = first[-1]
        rest = await suppressions.page(connection, 7, after=(last.mobile, last.kind), limit=3)
        assert [row.mobile for row in rest] == ["+8613800138002"]
        assert len(await suppressions.page(connection, 7, mobile="+8613800138000", limit=9)) == 2
        key = (7, "+8613800138000", int(_OPT_OUT))
        assert await suppressions.remove(connection, [key, (8, *key[1:])]) == {key}
        assert await suppressions.remove(connection, [key]) == set()
        assert len(await suppressions.page(connection, 7, limit=9)) == 3
        assert [row.brand_id for row in await suppressions.page(connection, 0, limit=9)] == [0]
