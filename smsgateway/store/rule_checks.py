"""SQL of what is judged by records: suppressions, and how often a number was sent to. One statement for a group.

A number's row in `frequency` is locked by whoever counts, and decides with what the one before has written, so limits
are exact however many gateways take calls at once. Counting is part of the transaction that records a message or a
batch: what is not recorded does not count, and what is forgotten (refused by the ledger) is taken off again. Redis has
no part in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from infra import arrays
from infra.database import Connection
from smsgateway.rules import DAY_SECONDS, HOUR_SECONDS, MINUTE_SECONDS, Limits
from smsgateway.schema import SuppressionKind
from smsgateway.store.suppressions import ALL_BRANDS

_MARKETING = 3

# `is not true` keeps the planner from making a join of the look-up, as in `smsgateway.store.accepting`. A target that
# was counted before is granted again and not counted twice. Keys come sorted, and everybody locks in that order.
_CHECK = f"""
with blocked as materialized (
  select asked.for_brand, asked.sms_type, asked.mobile, s.kind
  from unnest(%(for_brands)s::bigint[], %(brands)s::bigint[], %(types)s::smallint[], %(mobiles)s::text[])
       as asked (for_brand, brand_id, sms_type, mobile)
  join smsgateway.suppression as s on s.brand_id = asked.brand_id and s.mobile = asked.mobile
  where s.kind = {SuppressionKind.BLACK_LIST:d} or asked.sms_type = {_MARKETING}
), counted as (
  insert into smsgateway.frequency as f
    (brand_id, sms_type, subject, mobile, sent_at, targets, granted, per_minute, per_hour, per_day, kept_seconds,
     expires_at)
  select asked.brand_id, asked.sms_type, asked.subject, asked.mobile, array_fill(now(), array[free.messages]),
         targets.ids[1:free.messages], free.messages, asked.per_minute, asked.per_hour, asked.per_day,
         asked.kept_seconds, date_trunc('hour', now()) + make_interval(secs => asked.kept_seconds + {HOUR_SECONDS})
  from unnest(%(counted_brands)s::bigint[], %(counted_types)s::smallint[], %(subjects)s::text[],
              %(counted_mobiles)s::text[], %(targets)s::text[], %(per_minute)s::int[], %(per_hour)s::int[],
              %(per_day)s::int[], %(kept_seconds)s::int[])
       as asked (brand_id, sms_type, subject, mobile, targets, per_minute, per_hour, per_day, kept_seconds)
  cross join lateral (select string_to_array(asked.targets, ',')) as targets (ids)
  cross join lateral (
    select least(cardinality(targets.ids), asked.per_minute, asked.per_hour, asked.per_day)
  ) as free (messages)
  where ((asked.brand_id, asked.sms_type, asked.mobile)
         in (select blocked.for_brand, blocked.sms_type, blocked.mobile from blocked)) is not true
  on conflict (brand_id, sms_type, subject, mobile) do update
  set (sent_at, targets, granted) = (
        select case when known.again then kept.sent_at else kept.sent_at || array_fill(now(), array[free.messages]) end,
               case when known.again then kept.targets else kept.targets || excluded.targets[1:free.messages] end,
               case when known.again then cardinality(excluded.targets) else free.messages end
        from (
          select coalesce(array_agg(sent.at order by sent.at), '{{}}') as sent_at,
                 coalesce(array_agg(sent.target order by sent.at), '{{}}') as targets,
                 count(*) filter (where sent.at > now() - interval '{MINUTE_SECONDS} s') as minute,
                 count(*) filter (where sent.at > now() - interval '{HOUR_SECONDS} s') as hour,
                 count(*) as day
          from unnest(f.sent_at, f.targets) as sent (at, target)
          where sent.at > now() - make_interval(secs => excluded.kept_seconds)
        ) as kept
        cross join lateral (
          select cardinality(excluded.targets) > 0 and kept.targets @> excluded.targets as again
        ) as known
        cross join lateral (
          select greatest(0, least(cardinality(excluded.targets), excluded.per_minute - kept.minute,
                                   excluded.per_hour - kept.hour, excluded.per_day - kept.day))::int as messages
        ) as free
      ),
      per_minute = excluded.per_minute, per_hour = excluded.per_hour, per_day = excluded.per_day,
      kept_seconds = excluded.kept_seconds, expires_at = excluded.expires_at
  returning f.brand_id, f.sms_type, f.subject, f.mobile, f.granted, f.sent_at
)
select blocked.for_brand, blocked.sms_type, null, blocked.mobile, blocked.kind::int, null::timestamptz[], now()
from blocked
union all
select counted.brand_id, counted.sms_type, counted.subject, counted.mobile, counted.granted, counted.sent_at, now()
from counted
"""

_TAKE_OFF = """
update smsgateway.frequency as f
set (sent_at, targets) = (
  select coalesce(array_agg(sent.at order by sent.at), '{}'), coalesce(array_agg(sent.target order by sent.at), '{}')
  from unnest(f.sent_at, f.targets) as sent (at, target)
  where sent.target <> asked.target
)
from unnest(%s::bigint[], %s::smallint[], %s::text[], %s::text[], %s::text[])
     as asked (brand_id, sms_type, subject, mobile, target)
where f.brand_id = asked.brand_id and f.sms_type = asked.sms_type and f.subject = asked.subject
  and f.mobile = asked.mobile
"""

# The recipients of a batch that was not accepted are written nowhere else.
_TAKE_BATCH_OFF = """
update smsgateway.frequency as f
set (sent_at, targets) = (
  select coalesce(array_agg(sent.at order by sent.at), '{}'), coalesce(array_agg(sent.target order by sent.at), '{}')
  from unnest(f.sent_at, f.targets) as sent (at, target)
  where sent.target <> %(target)s
)
where f.brand_id = %(brand)s and f.sms_type = %(type)s and f.subject = %(subject)s and %(target)s = any(f.targets)
"""

_DELETE_EXPIRED = """
delete from smsgateway.frequency as f
using (
  select brand_id, sms_type, subject, mobile from smsgateway.frequency
  where expires_at < now()
  order by expires_at
  limit %s
  for update skip locked
) as old
where f.brand_id = old.brand_id and f.sms_type = old.sms_type and f.subject = old.subject and f.mobile = old.mobile
"""


@dataclass(frozen=True, slots=True)
class Ask:
    """A message that is about to be recorded. `target` its id, or its batch's; `suppressed`: suppressions are to be
    looked up; `limits` none set: it is not counted.
    """

    brand_id: int
    sms_type: int
    subject: str
    mobile: str
    target: str
    suppressed: bool
    limits: Limits


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why a message must not go: a suppression's kind, or with None its number has got enough, lately at `sent_at`."""

    kind: SuppressionKind | None
    sent_at: Sequence[datetime]
    now: datetime


@dataclass(frozen=True, slots=True)
class Counted:
    """A message that was counted and is not to be: `target` as in `Ask`."""

    brand_id: int
    sms_type: int
    subject: str
    mobile: str
    target: str


CountKey = tuple[int, int, str, str]


async def check(connection: Connection, asks: Sequence[Ask]) -> dict[int, Blocked]:
    """Look suppressions up and count messages; return what must not go by its place in `asks`. Of messages to the same
    number the first are let through. What is returned was not counted. The caller commits.
    """
    lookups = sorted({(ask.brand_id, ask.sms_type, ask.mobile) for ask in asks if ask.suppressed})
    places: dict[CountKey, list[int]] = {}
    for place, ask in enumerate(asks):
        if ask.limits:
            places.setdefault((ask.brand_id, ask.sms_type, ask.subject, ask.mobile), []).append(place)
    if not lookups and not places:
        return {}
    keys = sorted(places)
    limits = [asks[places[key][0]].limits for key in keys]
    cursor = await connection.execute(
        _CHECK,
        {
            "for_brands": arrays.integers([lookup[0] for lookup in lookups for _ in range(2)]),
            "brands": arrays.integers([brand for lookup in lookups for brand in (lookup[0], ALL_BRANDS)]),
            "types": arrays.integers([lookup[1] for lookup in lookups for _ in range(2)]),
            "mobiles": arrays.texts([lookup[2] for lookup in lookups for _ in range(2)]),
            "counted_brands": arrays.integers([key[0] for key in keys]),
            "counted_types": arrays.integers([key[1] for key in keys]),
            "subjects": arrays.texts([key[2] for key in keys]),
            "counted_mobiles": arrays.texts([key[3] for key in keys]),
            "targets": arrays.texts([",".join([asks[place].target for place in places[key]]) for key in keys]),
            "per_minute": arrays.integers([each.per_minute or None for each in limits]),
            "per_hour": arrays.integers([each.per_hour or None for each in limits]),
            "per_day": arrays.integers([each.per_day or None for each in limits]),
            "kept_seconds": arrays.integers([_kept_seconds(each) for each in limits]),
        },
    )
    stopped: dict[tuple[int, int, str], Blocked] = {}
    found: dict[int, Blocked] = {}
    for brand_id, sms_type, subject, mobile, number, sent_at, now in await cursor.fetchall():
        if subject is None:
            known = stopped.get((brand_id, sms_type, mobile))
            kind = SuppressionKind(number if known is None or known.kind is None else max(number, known.kind))
            stopped[brand_id, sms_type, mobile] = Blocked(kind, (), now)
        else:
            for place in places[brand_id, sms_type, subject, mobile][number:]:
                found[place] = Blocked(None, sent_at, now)
    if stopped:
        for place, ask in enumerate(asks):
            blocked = stopped.get((ask.brand_id, ask.sms_type, ask.mobile))
            if blocked is not None:
                found[place] = blocked
    return found


async def take_off(connection: Connection, counted: Iterable[Counted]) -> None:
    """Count messages no more that were forgotten before they were accepted. The caller commits."""
    rows = sorted((row.brand_id, row.sms_type, row.subject, row.mobile, row.target) for row in counted)
    # One at a time for a number: a statement changes a row once.
    while rows:
        keys: set[CountKey] = set()
        now: list[tuple[int, int, str, str, str]] = []
        later: list[tuple[int, int, str, str, str]] = []
        for row in rows:
            (later if row[:4] in keys else now).append(row)
            keys.add(row[:4])
        await connection.execute(
            _TAKE_OFF,
            (
                arrays.integers([row[0] for row in now]),
                arrays.integers([row[1] for row in now]),
                arrays.texts([row[2] for row in now]),
                arrays.texts([row[3] for row in now]),
                arrays.texts([row[4] for row in now]),
            ),
        )
        rows = later


async def take_batch_off(connection: Connection, brand_id: int, sms_type: int, subject: str, batch_id: str) -> None:
    """Count the messages of a batch no more that was forgotten before it was accepted. The caller commits."""
    await connection.execute(
        _TAKE_BATCH_OFF, {"brand": brand_id, "type": sms_type, "subject": subject, "target": batch_id}
    )


async def delete_expired(connection: Connection, *, limit: int) -> int:
    """Forget numbers whose last message has left every window."""
    return (await connection.execute(_DELETE_EXPIRED, (limit,))).rowcount


def _kept_seconds(limits: Limits) -> int:
    return max((seconds for _, seconds in limits.windows()), default=DAY_SECONDS)
