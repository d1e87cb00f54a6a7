"""SQL of pausing and resuming batches, and of campaigns.

A pause marks the batch, then each of its dispatches: what is queued or claimed becomes PAUSED, what is being submitted
is only marked, so that it is paused should the carrier not take it. So neither claims nor marks look for a pause, and
whoever marked a dispatch before the pause saw it is not disturbed.

Rows that somebody is just changing are passed over and looked at again in a transaction of its own, so nobody waits in
a circle. It is done once a look at all of them finds none without the mark: from then on new ones, which come from
dividing those, have it as well. Every such look holds the batch's row, so that pause and resume take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from infra import arrays
from infra.database import Connection
from smsgateway.queues import QueueItem
from smsgateway.schema import DispatchState, Mode

_OF_BATCH = "brand_id = %(brand)s and batch_id = %(batch)s"

_MARK_BATCH = f"""
update smsgateway.batch
set paused_at = case when %(paused)s then coalesce(paused_at, now()) end
where {_OF_BATCH} and accepted_at is not null
returning sms_type
"""

_LOCK_BATCH = f"""
select paused_at is not null from smsgateway.batch where {_OF_BATCH} and accepted_at is not null for update
"""

_UNMARKED = f"""
select dispatch_id from smsgateway.dispatch
where {_OF_BATCH} and batch_id is not null and paused <> %(paused)s
for update skip locked
"""

# What is parked stays so: it is paused when an operator has it tried again.
_PAUSE_DISPATCHES = f"""
update smsgateway.dispatch
set paused = true,
    changed_at = case when state in ({DispatchState.QUEUED:d}, {DispatchState.CLAIMED:d}) then now()
                      else changed_at end,
    state = case when state = {DispatchState.CLAIMED:d}
                   or (state = {DispatchState.QUEUED:d} and not_before is distinct from 'infinity')
                 then {DispatchState.PAUSED:d} else state end
where brand_id = %(brand)s and dispatch_id in ({_UNMARKED})
"""

# The entry that it had was read and acknowledged meanwhile, or is still there: then it is queued twice and sent once.
_RESUME_DISPATCHES = f"""
with unmarked as materialized (
  select dispatch_id, state from smsgateway.dispatch
  where {_OF_BATCH} and batch_id is not null and paused
  for update skip locked
)
update smsgateway.dispatch as d
set paused = false,
    changed_at = case when unmarked.state = {DispatchState.PAUSED:d} then now() else d.changed_at end,
    stream_entry = case when unmarked.state = {DispatchState.PAUSED:d} then null else d.stream_entry end,
    state = case when unmarked.state = {DispatchState.PAUSED:d} then {DispatchState.QUEUED:d} else unmarked.state end
from unmarked
where d.brand_id = %(brand)s and d.dispatch_id = unmarked.dispatch_id
returning d.dispatch_id, d.messages, unmarked.state = {DispatchState.PAUSED:d}, d.not_before is null
"""

_PROGRESS = f"""
select coalesce(sum(messages) filter (where state = {DispatchState.PAUSED:d}), 0),
       coalesce(sum(messages) filter (where state in ({DispatchState.SUBMITTING:d}, {DispatchState.UNKNOWN:d})), 0),
       count(*) filter (where paused <> %(paused)s)
from smsgateway.dispatch
where {_OF_BATCH} and batch_id is not null
"""

# Claimed before the pause, so that somebody may have paid.
_DOUBTFUL = f"""
select dispatch_id, segments, order_no from smsgateway.dispatch
where {_OF_BATCH} and batch_id is not null and state = {DispatchState.PAUSED:d} and epoch <> 0 and payment_no is null
order by dispatch_id
limit %(limit)s
"""

_SETTLE_DOUBT = f"""
update smsgateway.dispatch as d
set payment_no = asked.payment_no, epoch = case when asked.payment_no is null then 0 else d.epoch end
from unnest(%s::text[], %s::text[], %s::text[]) as asked (dispatch_id, order_no, payment_no)
where d.brand_id = %s and d.dispatch_id = asked.dispatch_id and d.order_no = asked.order_no
  and d.state = {DispatchState.PAUSED:d} and d.payment_no is null
"""

_OPEN_CAMPAIGN = """
insert into smsgateway.campaign (brand_id, campaign_id, created_at)
values (%(brand)s, %(campaign)s, now())
on conflict (brand_id, campaign_id) do nothing
"""

_CAMPAIGN_STATE = """
select paused_at is not null, cancelled_at is not null
from smsgateway.campaign
where brand_id = %(brand)s and campaign_id = %(campaign)s
for share
"""

_PAUSE_CAMPAIGN = """
update smsgateway.campaign
set paused_at = case when %(paused)s then coalesce(paused_at, now()) end
where brand_id = %(brand)s and campaign_id = %(campaign)s
returning cancelled_at is not null
"""

_CANCEL_CAMPAIGN = """
update smsgateway.campaign
set cancelled_at = coalesce(cancelled_at, now())
where brand_id = %(brand)s and campaign_id = %(campaign)s
returning campaign_id
"""

_CAMPAIGN_BATCHES = """
select batch_id from smsgateway.batch
where brand_id = %(brand)s and campaign_id = %(campaign)s and campaign_id is not null and accepted_at is not null
  and batch_id > %(after)s
order by batch_id
limit %(limit)s
"""

_CAMPAIGNS = """
select campaign.campaign_id, campaign.created_at, campaign.paused_at is not null, campaign.cancelled_at is not null,
       sums.batches, sums.accepted, sums.segments
from smsgateway.campaign
cross join lateral (
  select count(*) as batches, coalesce(sum(accepted), 0)::bigint as accepted,
         coalesce(sum(segments), 0)::bigint as segments
  from smsgateway.batch
  where batch.brand_id = campaign.brand_id and batch.campaign_id = campaign.campaign_id
    and batch.campaign_id is not null and batch.accepted_at is not null
) as sums
where campaign.brand_id = %(brand)s
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pause is: messages that wait, messages with the carrier, and dispatches that have not the mark yet."""

    paused: int
    in_flight: int
    left: int


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A paused chunk for which a worker may have paid without its being recorded."""

    dispatch_id: str
    segments: int
    order_no: str


@dataclass(frozen=True, slots=True)
class CampaignState:
    """What holds for batches of a campaign."""

    paused: bool
    cancelled: bool


@dataclass(frozen=True, slots=True)
class SeenCampaign:
    """A campaign as callers see it."""

    campaign_id: str
    created_at: datetime
    paused: bool
    cancelled: bool
    batches: int
    accepted: int
    segments: int


async def mark_batch(connection: Connection, brand_id: int, batch_id: str, *, paused: bool) -> int | None:
    """Record that a batch is paused or not; its type, or None for a batch that is not known."""
    cursor = await connection.execute(_MARK_BATCH, {"brand": brand_id, "batch": batch_id, "paused": paused})
    row = await cursor.fetchone()
    return None if row is None else int(row[0])


async def is_batch_paused(connection: Connection, brand_id: int, batch_id: str) -> bool:
    """Whether a batch is paused; nobody changes that before this transaction ends."""
    cursor = await connection.execute(_LOCK_BATCH, {"brand": brand_id, "batch": batch_id})
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def pause_dispatches(connection: Connection, brand_id: int, batch_id: str) -> None:
    """Pause a batch's dispatches, but for those that somebody is just changing."""
    await connection.execute(_PAUSE_DISPATCHES, {"brand": brand_id, "batch": batch_id, "paused": True})


async def resume_dispatches(
    connection: Connection, brand_id: int, batch_id: str, sms_type: int
) -> tuple[int, list[QueueItem]]:
    """Undo that, likewise; how many messages go on, and what is to be pushed: a sweeper pushes what is put off."""
    cursor = await connection.execute(_RESUME_DISPATCHES, {"brand": brand_id, "batch": batch_id})
    rows = [row for row in await cursor.fetchall() if row[2]]
    items = [QueueItem(brand_id, sms_type, Mode.BATCH, dispatch_id) for dispatch_id, _, _, due in rows if due]
    return sum(row[1] for row in rows), items


async def progress(connection: Connection, brand_id: int, batch_id: str, *, paused: bool) -> Progress:
    """How far a batch is on its way to being paused, or not."""
    cursor = await connection.execute(_PROGRESS, {"brand": brand_id, "batch": batch_id, "paused": paused})
    row = await cursor.fetchone()
    assert row is not None
    return Progress(int(row[0]), int(row[1]), int(row[2]))


async def doubtful(connection: Connection, brand_id: int, batch_id: str, *, limit: int) -> list[Doubtful]:
    """Paused chunks of a batch that may have been paid for."""
    cursor = await connection.execute(_DOUBTFUL, {"brand": brand_id, "batch": batch_id, "limit": limit})
    return [Doubtful(*row) for row in await cursor.fetchall()]


async def settle_doubt(connection: Connection, brand_id: int, settled: Sequence[tuple[Doubtful, str | None]]) -> None:
    """Record the payments of paused chunks; None: nothing was and will be charged."""
    await connection.execute(
        _SETTLE_DOUBT,
        (
            arrays.texts([item.dispatch_id for item, _ in settled]),
            arrays.texts([item.order_no for item, _ in settled]),
            arrays.texts([payment_no for _, payment_no in settled]),
            brand_id,
        ),
    )


# Campaigns.


async def open_campaign(connection: Connection, brand_id: int, campaign_id: str) -> None:
    """Record a campaign, unless it is."""
    await connection.execute(_OPEN_CAMPAIGN, {"brand": brand_id, "campaign": campaign_id})


async def campaign_state(connection: Connection, brand_id: int, campaign_id: str) -> CampaignState | None:
    """What holds for a campaign's batches until this transaction ends."""
    cursor = await connection.execute(_CAMPAIGN_STATE, {"brand": brand_id, "campaign": campaign_id})
    row = await cursor.fetchone()
    return None if row is None else CampaignState(*row)


async def pause_campaign(connection: Connection, brand_id: int, campaign_id: str, *, paused: bool) -> bool | None:
    """Record that a campaign is paused or not; whether it is cancelled, or None for one that is not known."""
    cursor = await connection.execute(_PAUSE_CAMPAIGN, {"brand": brand_id, "campaign": campaign_id, "paused": paused})
    row = await cursor.fetchone()
    return None if row is None else bool(row[0])


async def cancel_campaign(connection: Connection, brand_id: int, campaign_id: str) -> bool:
    """Record that a campaign is cancelled; False for one that is not known."""
    cursor = await connection.execute(_CANCEL_CAMPAIGN, {"brand": brand_id, "campaign": campaign_id})
    return await cursor.fetchone() is not None


async def campaign_batches(
    connection: Connection, brand_id: int, campaign_id: str, *, after: str, limit: int
) -> list[str]:
    """A page of the accepted batches of a campaign, oldest first; `after` is the last of the page before."""
    cursor = await connection.execute(
        _CAMPAIGN_BATCHES, {"brand": brand_id, "campaign": campaign_id, "after": after, "limit": limit}
    )
    return [row[0] for row in await cursor.fetchall()]


async def find_campaign(connection: Connection, brand_id: int, campaign_id: str) -> SeenCampaign | None:
    """One campaign, or None."""
    cursor = await connection.execute(
        _CAMPAIGNS + "and campaign.campaign_id = %(campaign)s", {"brand": brand_id, "campaign": campaign_id}
    )
    row = await cursor.fetchone()
    return None if row is None else SeenCampaign(*row)


async def list_campaigns(
    connection: Connection, brand_id: int, *, before: tuple[datetime, str] | None, limit: int
) -> list[SeenCampaign]:
    """A brand's campaigns, newest first; `before` is moment and id of the last of the page before."""
    condition = "and (campaign.created_at, campaign.campaign_id) < (%(at)s, %(campaign)s)" if before else ""
    at, campaign_id = before or (None, "")
    cursor = await connection.execute(
        f"{_CAMPAIGNS} {condition} order by campaign.created_at desc, campaign.campaign_id desc limit %(limit)s",
        {"brand": brand_id, "at": at, "campaign": campaign_id, "limit": limit},
    )
    return [SeenCampaign(*row) for row in await cursor.fetchall()]
