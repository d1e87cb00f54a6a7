"""SQL of figures for metrics: what waits in the gateway's tables, by index look-ups that stop at a bound."""

from __future__ import annotations

from dataclasses import dataclass

from infra.database import Connection
from smsgateway.schema import DispatchState

# Beyond it a figure says enough, and to count on would cost more the worse things are.
COUNTED_MAX = 10_000

# Those that are due first are those that have waited longest, but for a few that were put off.
_BACKLOG = f"""
select 'outbox', count(*), coalesce(extract(epoch from now() - min(o.created_at)), 0)::float8 from (
    select created_at from smsgateway.outbox where next_at is not null order by next_at limit {COUNTED_MAX}
) as o
union all
select 'receipts', count(*), coalesce(extract(epoch from now() - min(r.received_at)), 0)::float8 from (
    select received_at from smsgateway.receipt_inbox where next_at is not null order by next_at limit {COUNTED_MAX}
) as r
union all
select 'unknown', count(*), coalesce(extract(epoch from now() - min(d.changed_at)), 0)::float8 from (
    select changed_at from smsgateway.dispatch where state = {DispatchState.UNKNOWN:d} order by changed_at
    limit {COUNTED_MAX}
) as d
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits of a kind: items, counted up to `COUNTED_MAX`, and the age of the oldest in seconds."""

    what: str
    items: int
    oldest_seconds: float


async def backlogs(connection: Connection) -> list[Backlog]:
    """What waits: `outbox` calls that are owed to the cost centre, `receipts` that are not settled, `unknown`
    dispatches of which nobody knows whether the carrier took them.
    """
    rows = await (await connection.execute(_BACKLOG)).fetchall()
    return [Backlog(what, items, max(0.0, oldest)) for what, items, oldest in rows]
