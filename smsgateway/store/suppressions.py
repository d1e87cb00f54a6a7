"""SQL of suppressions: numbers that a brand, or with brand 0 every brand, must not send to.

An opt-out keeps marketing from a number, a black list everything. A row is found by its key alone, so that whoever
checks asks for the brand and for brand 0 side by side and joins nothing across brands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from infra import arrays
from infra.database import Connection
from smsgateway.schema import SuppressionKind

ALL_BRANDS = 0

# In one order for everybody (callers sort), so that two that add the same numbers never wait in a circle.
_ADD = """
insert into smsgateway.suppression (brand_id, mobile, kind, source, reason, created_at)
select asked.brand_id, asked.mobile, asked.kind, asked.source, asked.reason, now()
from unnest(%s::bigint[], %s::text[], %s::smallint[], %s::text[], %s::text[])
     as asked (brand_id, mobile, kind, source, reason)
on conflict (brand_id, mobile, kind) do nothing
returning brand_id, mobile, kind
"""

# Gateways ask for the numbers of a brand that has none only after this has told them, within seconds. It stays.
_TELL = """
insert into smsgateway.sender_rules (brand_id, suppressed, changed_at)
select asked.brand_id, true, clock_timestamp()
from unnest(%s::bigint[]) as asked (brand_id)
on conflict (brand_id) do update set suppressed = true, changed_at = excluded.changed_at
where not sender_rules.suppressed
"""

_REMOVE = """
delete from smsgateway.suppression
using unnest(%s::bigint[], %s::text[], %s::smallint[]) as asked (brand_id, mobile, kind)
where suppression.brand_id = asked.brand_id and suppression.mobile = asked.mobile and suppression.kind = asked.kind
returning suppression.brand_id, suppression.mobile, suppression.kind
"""

_LIST = """
select brand_id, mobile, kind, source, reason, created_at
from smsgateway.suppression
where brand_id = %(brand)s and (mobile, kind) > (%(after_mobile)s, %(after_kind)s)
  and (%(mobile)s = '' or mobile = %(mobile)s)
order by mobile, kind
limit %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Suppression:
    """A number that is not sent to. `brand_id` 0: by no brand; `mobile` in E.164; `source` a short word such as reply
    or admin; `reason` a sentence for people, without texts of customers.
    """

    brand_id: int
    mobile: str
    kind: SuppressionKind
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class ListedSuppression:
    """A suppression as it stands in the table."""

    brand_id: int
    mobile: str
    kind: SuppressionKind
    source: str
    reason: str
    created_at: datetime


Key = tuple[int, str, int]


async def add(connection: Connection, rows: Iterable[Suppression]) -> set[Key]:
    """Record suppressions; return (brand, mobile, kind) of those that were not there before. What was there keeps its
    source, reason and time. The caller commits.
    """
    distinct = {(row.brand_id, row.mobile, int(row.kind)): row for row in rows}
    if not distinct:
        return set()
    ordered = [distinct[key] for key in sorted(distinct)]
    await connection.execute(_TELL, (arrays.integers(sorted({row.brand_id for row in ordered})),))
    cursor = await connection.execute(
        _ADD,
        (
            arrays.integers([row.brand_id for row in ordered]),
            arrays.texts([row.mobile for row in ordered]),
            arrays.integers([int(row.kind) for row in ordered]),
            arrays.texts([row.source for row in ordered]),
            arrays.texts([row.reason for row in ordered]),
        ),
    )
    return {(row[0], row[1], row[2]) for row in await cursor.fetchall()}


async def remove(connection: Connection, keys: Sequence[Key]) -> set[Key]:
    """Forget suppressions (brand, mobile, kind); return those that were there. The caller commits."""
    ordered = sorted(set(keys))
    cursor = await connection.execute(
        _REMOVE,
        (
            arrays.integers([key[0] for key in ordered]),
            arrays.texts([key[1] for key in ordered]),
            arrays.integers([key[2] for key in ordered]),
        ),
    )
    return {(row[0], row[1], row[2]) for row in await cursor.fetchall()}


async def page(
    connection: Connection, brand_id: int, *, mobile: str = "", after: tuple[str, int] = ("", 0), limit: int
) -> list[ListedSuppression]:
    """A page of a brand's suppressions by number; `mobile` only those of this one; `after` (mobile, kind) of the last
    row of the page before.
    """
    cursor = await connection.execute(
        _LIST,
        {"brand": brand_id, "mobile": mobile, "after_mobile": after[0], "after_kind": after[1], "limit": limit},
    )
    return [
        ListedSuppression(row[0], row[1], SuppressionKind(row[2]), row[3], row[4], row[5])
        for row in await cursor.fetchall()
    ]
