"""SQL of what the console shows of everything: traffic, running batches. Each statement reads a bounded number of rows,
however much there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from infra import arrays
from infra.database import Connection
from smsgateway.schema import Mode

# The last requests. A single one is a message, a batch as many as were accepted.
_RECENT = f"""
select count(*), coalesce(sum(case when recent.operation = {Mode.SINGLE:d} then 1 else batch.accepted end), 0)::bigint,
       extract(epoch from now() - min(recent.created_at))::double precision
from (
  select operation, brand_id, target_id, created_at
  from smsgateway.request_key
  where created_at > now() - make_interval(secs => %(seconds)s) and created_at <= now()
  order by created_at desc
  limit %(limit)s
) as recent
left join lateral (
  select accepted from smsgateway.batch
  where recent.operation <> {Mode.SINGLE:d} and batch.brand_id = recent.brand_id
    and batch.batch_id = recent.target_id and batch.accepted_at is not null
) as batch on true
"""

# Some requests of each part of a span, and of each batch some messages: as many rows however many messages there are,
# spread over the whole span however fast they come.
_SAMPLE = f"""
select found.state, extract(epoch from found.finished_at - found.created_at)::double precision, found.weight
from generate_series(0, %(parts)s - 1) as part
cross join lateral (
  select operation, brand_id, target_id
  from smsgateway.request_key
  where created_at <= now() - part * make_interval(secs => %(seconds)s)
    and created_at > now() - (part + 1) * make_interval(secs => %(seconds)s)
  order by created_at desc
  limit %(limit)s
) as key
cross join lateral (
  select state, created_at, finished_at, 1.0::double precision as weight
  from smsgateway.message
  where key.operation = {Mode.SINGLE:d} and message.brand_id = key.brand_id and message.message_id = key.target_id
  union all
  select looked.state, looked.created_at, looked.finished_at,
         batch.accepted::double precision / least(batch.accepted, %(of_batch)s)
  from smsgateway.batch
  cross join lateral (
    select state, created_at, finished_at
    from smsgateway.message
    where message.brand_id = batch.brand_id and message.batch_id = batch.batch_id and message.batch_id is not null
    order by message_id
    limit %(of_batch)s
  ) as looked
  where key.operation <> {Mode.SINGLE:d} and batch.brand_id = key.brand_id and batch.batch_id = key.target_id
    and batch.accepted > 0
) as found
"""

# From one batch to the next by the index, so that a batch with a hundred chunks is one step.
_RUNNING = """
with recursive running as (
  (
    select brand_id, batch_id from smsgateway.dispatch
    where batch_id is not null and (%(brand)s::bigint is null or brand_id = %(brand)s)
      and (brand_id, batch_id) > (%(after_brand)s, %(after_batch)s)
    order by brand_id, batch_id
    limit 1
  )
  union all
  select following.brand_id, following.batch_id
  from running
  cross join lateral (
    select brand_id, batch_id from smsgateway.dispatch
    where batch_id is not null and (%(brand)s::bigint is null or brand_id = %(brand)s)
      and (brand_id, batch_id) > (running.brand_id, running.batch_id)
    order by brand_id, batch_id
    limit 1
  ) as following
)
select running.brand_id, running.batch_id, batch.sms_type, batch.accepted, batch.segments, batch.accepted_at,
       batch.cancelled_at is not null, batch.paused_at is not null, coalesce(batch.campaign_id, ''), batch.text
from (select * from running limit %(limit)s) as running
cross join lateral (
  select * from smsgateway.batch
  where batch.brand_id = running.brand_id and batch.batch_id = running.batch_id and batch.accepted_at is not null
) as batch
order by running.brand_id, running.batch_id
"""

_DISPATCHED = """
select asked.batch_id, dispatch.state, sum(dispatch.messages)::bigint
from unnest(%(brands)s::bigint[], %(batches)s::text[]) as asked (brand_id, batch_id)
join smsgateway.dispatch
  on dispatch.brand_id = asked.brand_id and dispatch.batch_id = asked.batch_id and dispatch.batch_id is not null
group by asked.batch_id, dispatch.state
"""

_DISPATCHED_OF_CAMPAIGN = """
select dispatch.state, sum(dispatch.messages)::bigint
from smsgateway.batch
join smsgateway.dispatch
  on dispatch.brand_id = batch.brand_id and dispatch.batch_id = batch.batch_id and dispatch.batch_id is not null
where batch.brand_id = %(brand)s and batch.campaign_id = %(campaign)s and batch.campaign_id is not null
group by dispatch.state
"""


@dataclass(frozen=True, slots=True)
class Recent:
    """The last requests: how many, their messages, and how many seconds ago the first of them came."""

    requests: int
    messages: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Sampled:
    """A message of the sample: its state as stored, seconds from acceptance to its end, and how many it stands for."""

    state: int
    seconds: float | None
    weight: float


@dataclass(frozen=True, slots=True)
class RunningBatch:
    """A batch of which something is not done yet."""

    brand_id: int
    batch_id: str
    sms_type: int
    accepted: int
    segments: int
    accepted_at: datetime
    cancelled: bool
    paused: bool
    campaign_id: str
    text: str


async def recent(connection: Connection, *, seconds: float, limit: int) -> Recent:
    """What was accepted within the last seconds, at most the last `limit` requests of it."""
    row = await (await connection.execute(_RECENT, {"seconds": seconds, "limit": limit})).fetchone()
    assert row is not None
    return Recent(int(row[0]), int(row[1]), row[2])


async def sample(connection: Connection, *, seconds: float, parts: int, limit: int, of_batch: int) -> list[Sampled]:
    """Messages accepted within the last seconds: of each of so many parts at most `limit` requests, and `of_batch`
    messages of each batch.
    """
    cursor = await connection.execute(
        _SAMPLE, {"seconds": seconds / parts, "parts": parts, "limit": limit, "of_batch": of_batch}
    )
    return [Sampled(*row) for row in await cursor.fetchall()]


async def running_batches(
    connection: Connection, *, brand_id: int | None = None, after: tuple[int, str] = (0, ""), limit: int
) -> list[RunningBatch]:
    """Batches that have dispatches, by brand and id, behind a place."""
    cursor = await connection.execute(
        _RUNNING, {"brand": brand_id, "after_brand": after[0], "after_batch": after[1], "limit": limit}
    )
    return [RunningBatch(*row) for row in await cursor.fetchall()]


async def dispatched(connection: Connection, batches: Sequence[tuple[int, str]]) -> dict[str, dict[int, int]]:
    """Messages of the dispatches of batches (brand, id), by batch and dispatch state."""
    brands, ids = [brand_id for brand_id, _ in batches], [batch_id for _, batch_id in batches]
    cursor = await connection.execute(_DISPATCHED, {"brands": arrays.integers(brands), "batches": arrays.texts(ids)})
    found: dict[str, dict[int, int]] = {batch_id: {} for batch_id in ids}
    for batch_id, state, messages in await cursor.fetchall():
        found[batch_id][state] = messages
    return found


async def dispatched_of_campaign(connection: Connection, brand_id: int, campaign_id: str) -> dict[int, int]:
    """Messages of the dispatches of a campaign's batches, by dispatch state."""
    cursor = await connection.execute(_DISPATCHED_OF_CAMPAIGN, {"brand": brand_id, "campaign": campaign_id})
    return {state: messages for state, messages in await cursor.fetchall()}  # noqa: C416 - rows are tuples of any length
