"""SQL of webhooks: what admins set up, whose turn it is to deliver, and the events that wait.

One worker at a time delivers to a webhook, the oldest events first, so that the events of a message arrive in order. A
worker that dies, or is slower than its turn, lets another tell the same events again: at least once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from infra import arrays
from infra.database import Connection
from smsgateway.schema import REPLY_EVENT
from smsgateway.webhooks import ALERT_KINDS, Event, message_details

_COLUMNS = (
    "brand_id, webhook_id, url, kinds, full_number, reply_text, enabled, secret, old_secret, old_secret_until,"
    " created_at, updated_at"
)

_FIND = f"select {_COLUMNS} from smsgateway.webhook where brand_id = %s and webhook_id = %s for update"
_COUNT = "select count(*) from smsgateway.webhook where brand_id = %s"

_PUT = f"""
insert into smsgateway.webhook as w ({_COLUMNS})
values (%(brand)s, %(id)s, %(url)s, %(kinds)s, %(full_number)s, %(reply_text)s, true, %(secret)s, %(old_secret)s,
        now() + make_interval(secs => %(overlap)s), now(), now())
on conflict (brand_id, webhook_id) do update
set url = excluded.url, kinds = excluded.kinds, full_number = excluded.full_number, reply_text = excluded.reply_text,
    enabled = true, secret = excluded.secret, old_secret = coalesce(excluded.old_secret, w.old_secret),
    old_secret_until = case when excluded.old_secret is null then w.old_secret_until else excluded.old_secret_until end,
    updated_at = now()
"""

# A webhook that was put is tried at once.
_HURRY = """
update smsgateway.webhook_turn
set next_at = now(), failures = 0
from unnest(%s::bigint[], %s::text[]) as asked (brand_id, webhook_id)
where webhook_turn.brand_id = asked.brand_id and webhook_turn.webhook_id = asked.webhook_id
"""

_LIST = """
select w.brand_id, w.webhook_id, w.url, w.kinds, w.full_number, w.reply_text, w.enabled,
       w.old_secret is not null and w.old_secret_until > now(), w.created_at, w.updated_at,
       coalesce(t.failures, 0), coalesce(t.last_error, ''), case when t.failures > 0 then t.next_at end, t.succeeded_at,
       (select count(*) from (
          select 1 from smsgateway.webhook_event as e
          where e.brand_id = w.brand_id and e.webhook_id = w.webhook_id and e.parked_at is null limit 10000
        ) as waiting)
from smsgateway.webhook as w
left join smsgateway.webhook_turn as t on t.brand_id = w.brand_id and t.webhook_id = w.webhook_id
where w.brand_id = %s and (%s = '' or w.webhook_id = %s)
order by w.webhook_id
"""

_REMOVE = "delete from smsgateway.webhook where brand_id = %s and webhook_id = %s"
_REMOVE_TURN = "delete from smsgateway.webhook_turn where brand_id = %s and webhook_id = %s"
_REMOVE_EVENTS = """
delete from smsgateway.webhook_event
where brand_id = %(brand)s and event_id in (
  select event_id from smsgateway.webhook_event
  where brand_id = %(brand)s and webhook_id = %(id)s
  limit %(limit)s
)
"""

# Webhooks are few, so each is looked at: whether it rests, and whether anything waits for it.
_DUE = """
select w.brand_id, w.webhook_id
from smsgateway.webhook as w
left join smsgateway.webhook_turn as t on t.brand_id = w.brand_id and t.webhook_id = w.webhook_id
where w.enabled
  and (t.brand_id is null or (t.next_at <= clock_timestamp() and t.until <= clock_timestamp()))
  and exists (
    select 1 from smsgateway.webhook_event as e
    where e.brand_id = w.brand_id and e.webhook_id = w.webhook_id and e.parked_at is null
  )
order by t.next_at nulls first
limit %s
"""

_TAKE_TURN = """
insert into smsgateway.webhook_turn as t (brand_id, webhook_id, worker, until, events_max, next_at)
values (%(brand)s, %(id)s, %(worker)s, clock_timestamp() + make_interval(secs => %(seconds)s), %(events_max)s, now())
on conflict (brand_id, webhook_id) do update
set worker = excluded.worker, until = excluded.until
where t.worker = excluded.worker or (t.next_at <= clock_timestamp() and t.until <= clock_timestamp())
returning t.failures, least(t.events_max, %(events_max)s)
"""

_LOAD = f"select {_COLUMNS} from smsgateway.webhook where brand_id = %s and webhook_id = %s and enabled"

_EVENTS = f"""
select e.event_id, e.kind, e.subject_id, e.result_code, e.happened_at, e.attempts, e.details,
       m.mobile, m.batch_id, m.request_id, m.sms_type, m.segments, m.created_at, m.submitted_at, m.sent_at,
       r.mobile, r.destination, r.text, r.part, r.opt_out, r.message_id, r.received_at
from smsgateway.webhook_event as e
left join smsgateway.message as m
  on m.brand_id = e.brand_id and m.message_id = e.subject_id and e.kind < {REPLY_EVENT:d}
left join smsgateway.reply as r
  on r.brand_id = e.brand_id and r.reply_id = e.subject_id and e.kind = {REPLY_EVENT:d}
where e.brand_id = %s and e.webhook_id = %s and e.parked_at is null
order by e.created_at, e.event_id
limit %s
"""

_DELIVERED = """
with gone as (
  delete from smsgateway.webhook_event as e
  using unnest(%(events)s::text[]) as told (event_id)
  where e.brand_id = %(brand)s and e.event_id = told.event_id and e.parked_at is null
)
update smsgateway.webhook_turn as t
set failures = 0, last_error = null, succeeded_at = now(), next_at = now(),
    events_max = least(t.events_max * 2, %(events_max)s),
    until = clock_timestamp() + make_interval(secs => %(seconds)s)
where t.brand_id = %(brand)s and t.webhook_id = %(id)s and t.worker = %(worker)s
"""

_COUNT_ATTEMPT = """
update smsgateway.webhook_event as e
set attempts = e.attempts + 1, last_error = %(error)s, parked_at = case when e.event_id = %(park)s then now() end
from unnest(%(events)s::text[]) as told (event_id)
where e.brand_id = %(brand)s and e.event_id = told.event_id and e.parked_at is null
"""

_PARK_OLD = """
update smsgateway.webhook_event as e
set parked_at = now(), last_error = %(error)s
from (
  select event_id from smsgateway.webhook_event
  where brand_id = %(brand)s and webhook_id = %(id)s and parked_at is null
    and created_at < now() - make_interval(secs => %(age)s)
  order by created_at
  limit %(limit)s
) as old
where e.brand_id = %(brand)s and e.event_id = old.event_id
"""

_REST = """
update smsgateway.webhook_turn as t
set failures = t.failures + 1, last_error = %(error)s, events_max = %(events_max)s,
    next_at = clock_timestamp() + make_interval(secs => %(delay)s), until = clock_timestamp()
where t.brand_id = %(brand)s and t.webhook_id = %(id)s and t.worker = %(worker)s
"""

_DISABLE = """
update smsgateway.webhook
set enabled = false, updated_at = now()
where brand_id = %s and webhook_id = %s and url = %s
"""

_END_TURN = """
update smsgateway.webhook_turn
set until = clock_timestamp()
where brand_id = %s and webhook_id = %s and worker = %s
"""

_TELL_REPLIES = f"""
insert into smsgateway.webhook_event
  (brand_id, event_id, webhook_id, subject_id, kind, happened_at, created_at)
select asked.brand_id, asked.reply_id || '-{REPLY_EVENT:d}-' || webhook.webhook_id, webhook.webhook_id, asked.reply_id,
       {REPLY_EVENT:d}, asked.received_at, now()
from unnest(%s::bigint[], %s::text[], %s::timestamptz[]) as asked (brand_id, reply_id, received_at)
join smsgateway.webhook on webhook.brand_id = asked.brand_id and webhook.enabled
  and (webhook.kinds >> {REPLY_EVENT:d}) & 1 = 1
on conflict (brand_id, event_id) do nothing
"""

_TELL_ALERTS = """
insert into smsgateway.webhook_event
  (brand_id, event_id, webhook_id, subject_id, kind, happened_at, created_at, details)
select w.brand_id, told.alert_id || '-' || told.kind || '-' || w.webhook_id, w.webhook_id, told.alert_id, told.kind,
       told.happened_at, now(), told.details::jsonb
from unnest(%s::bigint[], %s::text[], %s::smallint[], %s::timestamptz[], %s::text[])
  as told (brand_id, alert_id, kind, happened_at, details)
join smsgateway.webhook as w on w.brand_id = told.brand_id and w.enabled and (w.kinds >> told.kind) & 1 = 1
on conflict (brand_id, event_id) do nothing
"""

Key = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook as it is set up. `kinds` are those of the events that it wants; `old_secret` signs as well until
    `old_secret_until`.
    """

    brand_id: int
    webhook_id: str
    url: str
    kinds: int
    full_number: bool
    reply_text: bool
    enabled: bool
    secret: str
    old_secret: str | None
    old_secret_until: datetime | None
    created_at: datetime
    updated_at: datetime

    def secrets_at(self, at: datetime) -> list[str]:
        """The secrets that hold at a moment, the newest first."""
        old, until = self.old_secret, self.old_secret_until
        return [self.secret, *([old] if old is not None and until is not None and until > at else [])]


@dataclass(frozen=True, slots=True)
class ListedWebhook:
    """A webhook as it is shown, without its secrets. `waiting` is counted up to 10,000."""

    brand_id: int
    webhook_id: str
    url: str
    kinds: int
    full_number: bool
    reply_text: bool
    enabled: bool
    rotating: bool
    created_at: datetime
    updated_at: datetime
    failures: int
    last_error: str
    next_at: datetime | None
    succeeded_at: datetime | None
    waiting: int


@dataclass(frozen=True, slots=True)
class Turn:
    """Leave to deliver to a webhook: requests that failed in a row, and how many events the next one may hold."""

    failures: int
    events_max: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event that waits, with the requests that held it and failed."""

    event: Event
    attempts: int


# Setting up.


async def find_for_update(connection: Connection, brand_id: int, webhook_id: str) -> Webhook | None:
    """A webhook, locked until the transaction ends; None without one."""
    row = await (await connection.execute(_FIND, (brand_id, webhook_id))).fetchone()
    return None if row is None else Webhook(*row)


async def count(connection: Connection, brand_id: int) -> int:
    """Webhooks of a brand."""
    row = await (await connection.execute(_COUNT, (brand_id,))).fetchone()
    assert row is not None
    return int(row[0])


async def put(
    connection: Connection,
    key: Key,
    *,
    url: str,
    kinds: int,
    full_number: bool,
    reply_text: bool,
    secret: str,
    old_secret: str | None,
    overlap_seconds: float,
) -> None:
    """Create or replace a webhook and have it tried at once. `old_secret` signs for `overlap_seconds` more; None: what
    was the old one stays so.
    """
    await connection.execute(
        _PUT,
        {
            "brand": key[0],
            "id": key[1],
            "url": url,
            "kinds": kinds,
            "full_number": full_number,
            "reply_text": reply_text,
            "secret": secret,
            "old_secret": old_secret,
            "overlap": overlap_seconds,
        },
    )
    await hurry(connection, [key])


async def hurry(connection: Connection, keys: Sequence[Key]) -> None:
    """Have webhooks tried at once, their failures forgotten."""
    await connection.execute(
        _HURRY, (arrays.integers([key[0] for key in keys]), arrays.texts([key[1] for key in keys]))
    )


async def listed(connection: Connection, brand_id: int, webhook_id: str = "") -> list[ListedWebhook]:
    """A brand's webhooks, or one of them."""
    cursor = await connection.execute(_LIST, (brand_id, webhook_id, webhook_id))
    return [ListedWebhook(*row) for row in await cursor.fetchall()]


async def remove_events(connection: Connection, key: Key, *, limit: int) -> int:
    """Forget at most so many events of a webhook, parked ones too; how many."""
    cursor = await connection.execute(_REMOVE_EVENTS, {"brand": key[0], "id": key[1], "limit": limit})
    return cursor.rowcount


async def remove(connection: Connection, key: Key) -> bool:
    """Forget a webhook; whether there was one."""
    removed = (await connection.execute(_REMOVE, key)).rowcount > 0
    await connection.execute(_REMOVE_TURN, key)
    return removed


# Delivering.


async def due(connection: Connection, *, limit: int) -> list[Key]:
    """Webhooks for which something waits, that do not rest and are nobody's turn; the longest due first."""
    cursor = await connection.execute(_DUE, (limit,))
    return [(row[0], row[1]) for row in await cursor.fetchall()]


async def take_turn(connection: Connection, key: Key, worker: str, *, seconds: float, events_max: int) -> Turn | None:
    """Leave to deliver for so many seconds; None when it is another's turn or the webhook rests."""
    cursor = await connection.execute(
        _TAKE_TURN,
        {"brand": key[0], "id": key[1], "worker": worker, "seconds": seconds, "events_max": events_max},
    )
    row = await cursor.fetchone()
    return None if row is None else Turn(*row)


async def load(connection: Connection, key: Key) -> Webhook | None:
    """A webhook that is enabled."""
    row = await (await connection.execute(_LOAD, key)).fetchone()
    return None if row is None else Webhook(*row)


async def waiting(connection: Connection, webhook: Webhook, *, limit: int) -> list[Waiting]:
    """The oldest events that wait for a webhook, with what is told of their subjects."""
    cursor = await connection.execute(_EVENTS, (webhook.brand_id, webhook.webhook_id, limit))
    return [_waiting(row, with_text=webhook.reply_text) for row in await cursor.fetchall()]


async def delivered(
    connection: Connection, key: Key, worker: str, events: Sequence[str], *, events_max: int, seconds: float
) -> None:
    """Forget events that the receiver has, and prolong the turn."""
    await connection.execute(
        _DELIVERED,
        {
            "brand": key[0],
            "id": key[1],
            "worker": worker,
            "events": arrays.texts(events),
            "events_max": events_max,
            "seconds": seconds,
        },
    )


async def rest(
    connection: Connection,
    key: Key,
    worker: str,
    events: Sequence[str],
    *,
    error: str,
    delay_seconds: float,
    events_max: int,
    park: str = "",
) -> None:
    """Record a request that failed: the webhook rests, the turn is over; `park` an event that is not tried again."""
    await connection.execute(
        _COUNT_ATTEMPT, {"brand": key[0], "events": arrays.texts(events), "error": error, "park": park}
    )
    await connection.execute(
        _REST,
        {
            "brand": key[0],
            "id": key[1],
            "worker": worker,
            "error": error,
            "delay": delay_seconds,
            "events_max": events_max,
        },
    )


async def park_old(connection: Connection, key: Key, *, age_seconds: float, error: str, limit: int) -> int:
    """Park events that have waited for so long; how many."""
    cursor = await connection.execute(
        _PARK_OLD, {"brand": key[0], "id": key[1], "age": age_seconds, "error": error, "limit": limit}
    )
    return cursor.rowcount


async def disable(connection: Connection, key: Key, url: str) -> None:
    """Tell a webhook no more, unless it has another address by now."""
    await connection.execute(_DISABLE, (*key, url))


async def end_turn(connection: Connection, key: Key, worker: str) -> None:
    """Leave the turn to others."""
    await connection.execute(_END_TURN, (*key, worker))


async def tell_alerts(
    connection: Connection, alerts: Sequence[tuple[int, str, int, datetime, Mapping[str, Any]]]
) -> None:
    """Write the events of alerts (brand whose webhooks hear of it, alert's id, kind of the event, moment, what is told)
    for the webhooks that want to hear of them.
    """
    brand_ids, alert_ids, kinds, moments, details = zip(*alerts, strict=True)
    await connection.execute(
        _TELL_ALERTS,
        (
            arrays.integers(brand_ids),
            arrays.texts(alert_ids),
            arrays.integers(kinds),
            arrays.moments(moments),
            arrays.texts([json.dumps(each, ensure_ascii=False) for each in details]),
        ),
    )


async def tell_replies(connection: Connection, replies: Sequence[tuple[int, str, datetime]]) -> None:
    """Write the events of replies (brand, id, moment) for the webhooks that want to hear of them."""
    await connection.execute(
        _TELL_REPLIES,
        (
            arrays.integers([reply[0] for reply in replies]),
            arrays.texts([reply[1] for reply in replies]),
            arrays.moments([reply[2] for reply in replies]),
        ),
    )


def _waiting(row: tuple[Any, ...], *, with_text: bool) -> Waiting:
    event_id, kind, subject_id, result_code, happened_at, attempts, told = row[:7]
    mobile: str | None
    details: dict[str, Any]
    moments: dict[str, datetime | None]
    if kind in ALERT_KINDS:
        mobile, details, moments = None, told, {}
    elif kind == REPLY_EVENT:
        mobile, destination, text, part, opt_out, message_id, received_at = row[15:]
        details = {"destination": destination, "part": part, "opt_out": opt_out, "message_id": message_id}
        if with_text:
            details["text"] = text
        moments = {"received_at": received_at}
    else:
        mobile, batch_id, request_id, sms_type, segments, created_at, submitted_at, sent_at = row[7:15]
        details = message_details(batch_id, request_id, sms_type, segments)
        moments = {"created_at": created_at, "submitted_at": submitted_at, "sent_at": sent_at}
    return Waiting(
        Event(event_id, kind, subject_id, result_code, happened_at, mobile, details, moments),
        attempts,
    )
