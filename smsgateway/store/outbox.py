"""SQL of the outbox: what the gateway owes the cost centre.

A row is written in the transaction that makes it due and deleted when the cost centre has answered, so nothing is
owed and forgotten. Its id is the request_id of the call, so calling twice does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra import arrays
from infra.database import Connection
from smsgateway.schema import OutboxKind

_INSERT = """
insert into smsgateway.outbox (brand_id, outbox_id, kind, payload, next_at, created_at)
select asked.brand_id, asked.outbox_id, asked.kind, asked.payload, now() + make_interval(secs => %s), now()
from unnest(%s::bigint[], %s::text[], %s::smallint[], %s::bytea[]) as asked (brand_id, outbox_id, kind, payload)
"""

# Whoever takes rows has them for a while; when it dies they are due again.
_TAKE_DUE = """
update smsgateway.outbox as o
set next_at = now() + make_interval(secs => %s)
from (
  select brand_id, outbox_id
  from smsgateway.outbox
  where next_at <= now()
  order by next_at
  limit %s
  for update skip locked
) as due
where o.brand_id = due.brand_id and o.outbox_id = due.outbox_id
returning o.brand_id, o.outbox_id, o.kind, o.payload, o.attempts
"""

_DELETE = """
delete from smsgateway.outbox as o
using unnest(%s::bigint[], %s::text[]) as asked (brand_id, outbox_id)
where o.brand_id = asked.brand_id and o.outbox_id = asked.outbox_id
"""

_PUT_OFF = """
update smsgateway.outbox as o
set attempts = o.attempts + asked.failures, last_error = asked.error,
    next_at = now() + asked.delay_ms * interval '1 ms'
from unnest(%s::bigint[], %s::text[], %s::int[], %s::bigint[], %s::text[])
     as asked (brand_id, outbox_id, failures, delay_ms, error)
where o.brand_id = asked.brand_id and o.outbox_id = asked.outbox_id
"""

_COUNT_PARKED = "select count(*) from (select 1 from smsgateway.outbox where next_at is null limit 10000) as parked"


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A call that is owed. `payload` is the serialized request of its kind."""

    brand_id: int
    outbox_id: str
    kind: OutboxKind
    payload: bytes
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class PutOff:
    """A call that did not succeed. `delay_seconds` None: parked until an operator looks at it; `failures` to add."""

    brand_id: int
    outbox_id: str
    failures: int
    delay_seconds: float | None
    error: str


async def insert(connection: Connection, rows: Sequence[OutboxRow], *, hold_seconds: float) -> None:
    """Record calls that are owed. They are due after `hold_seconds`: until then whoever inserted them makes them."""
    if not rows:
        return
    await connection.execute(
        _INSERT,
        (
            hold_seconds,
            arrays.integers([row.brand_id for row in rows]),
            arrays.texts([row.outbox_id for row in rows]),
            arrays.integers([int(row.kind) for row in rows]),
            arrays.binaries([row.payload for row in rows]),
        ),
    )


async def take_due(connection: Connection, *, hold_seconds: float, limit: int) -> list[OutboxRow]:
    """Take calls that are due, for `hold_seconds`; two processes take different ones."""
    cursor = await connection.execute(_TAKE_DUE, (hold_seconds, limit))
    return [
        OutboxRow(brand_id, outbox_id, OutboxKind(kind), bytes(payload), attempts)
        for brand_id, outbox_id, kind, payload, attempts in await cursor.fetchall()
    ]


async def delete(connection: Connection, keys: Sequence[tuple[int, str]]) -> None:
    """Forget calls that the cost centre has answered."""
    await connection.execute(
        _DELETE, (arrays.integers([key[0] for key in keys]), arrays.texts([key[1] for key in keys]))
    )


async def put_off(connection: Connection, items: Sequence[PutOff]) -> None:
    """Record that calls did not succeed, and when to try again."""
    await connection.execute(
        _PUT_OFF,
        (
            arrays.integers([item.brand_id for item in items]),
            arrays.texts([item.outbox_id for item in items]),
            arrays.integers([item.failures for item in items]),
            arrays.integers([_milliseconds(item.delay_seconds) for item in items]),
            arrays.texts([item.error[:500] for item in items]),
        ),
    )


async def count_parked(connection: Connection) -> int:
    """Calls that wait for an operator, counted up to 10,000."""
    row = await (await connection.execute(_COUNT_PARKED)).fetchone()
    assert row is not None
    return int(row[0])


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1_000)
