"""SQL of pulling receipts: whose turn it is, and when nothing was left at the carrier."""

from __future__ import annotations

from datetime import datetime

from infra.database import Connection

# The clock of the statement and not of its transaction: these are single statements, but the order of pulls counts.
_TAKE_TURN = """
insert into smsgateway.receipt_pull as p (account, worker, until, started_at)
values (%s, %s, clock_timestamp() + make_interval(secs => %s), clock_timestamp())
on conflict (account) do update
set worker = excluded.worker, until = excluded.until, started_at = excluded.started_at
where p.until <= clock_timestamp() or p.worker = excluded.worker
returning started_at
"""

_SET_EMPTIED = """
update smsgateway.receipt_pull as p
set emptied_at = p.started_at, stored_at = clock_timestamp()
where p.account = %s and p.worker = %s and p.started_at = %s
"""

_END_TURN = """
update smsgateway.receipt_pull as p
set until = clock_timestamp()
where p.account = %s and p.worker = %s
"""

# Walks the receipts that wait, in order of time, to the first that fits.
_UNREAD = """
select 1
from smsgateway.receipt_inbox as r
where r.next_at is not null and r.attempts = 0
  and r.received_at <= (select max(p.stored_at) from smsgateway.receipt_pull as p)
limit 1
"""


async def take_turn(connection: Connection, account: str, worker: str, *, seconds: float) -> datetime | None:
    """When this worker's turn began by the database's clock, for so many seconds; None when it is another's turn."""
    cursor = await connection.execute(_TAKE_TURN, (account, worker, seconds))
    row = await cursor.fetchone()
    return None if row is None else row[0]


async def set_emptied(connection: Connection, account: str, worker: str, started_at: datetime) -> bool:
    """Record that a pull that started then left nothing, and that what it brought is stored; False when another worker
    has pulled since.
    """
    return (await connection.execute(_SET_EMPTIED, (account, worker, started_at))).rowcount > 0


async def end_turn(connection: Connection, account: str, worker: str) -> None:
    """Leave the turn to another worker."""
    await connection.execute(_END_TURN, (account, worker))


async def has_unread(connection: Connection) -> bool:
    """Whether receipts that were stored by the end of the last of those pulls have not been looked at yet."""
    return await (await connection.execute(_UNREAD)).fetchone() is not None
