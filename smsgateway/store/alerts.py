"""SQL of alerts: rules, what is open, letters that wait.

Several processes may look at the same things: whoever changes an alert does so on the condition that it is as it was
seen, and only who changed it writes, in the same transaction, what people are to be told of it. So a notice is written
once, and neither a process that dies nor two that look at once repeat or lose one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from infra import arrays
from infra.database import Connection
from smsgateway.alerts import Alert, AlertKind, Rule

_RULE_COLUMNS = (
    "brand_id, kind, sms_type, enabled, segments, days, percent, count, minutes, hold_seconds, recipients, webhooks"
)
_PUT_RULE = f"""
insert into smsgateway.alert_rule ({_RULE_COLUMNS}, updated_at)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, now())
on conflict (brand_id, kind, sms_type) do update
set enabled = excluded.enabled, segments = excluded.segments, days = excluded.days, percent = excluded.percent,
    count = excluded.count, minutes = excluded.minutes, hold_seconds = excluded.hold_seconds,
    recipients = excluded.recipients, webhooks = excluded.webhooks, updated_at = excluded.updated_at
returning updated_at
"""
_REMOVE_RULE = "delete from smsgateway.alert_rule where brand_id = %s and kind = %s and sms_type = %s"
_LIST_RULES = f"""
select {_RULE_COLUMNS}, updated_at from smsgateway.alert_rule
where (brand_id, kind, sms_type) > (%s, %s, %s) and (%s::bigint is null or brand_id = %s::bigint)
order by brand_id, kind, sms_type limit %s
"""
_ALL_RULES = f"select {_RULE_COLUMNS} from smsgateway.alert_rule"
_WATCHES_FAILURES = (
    f"select exists (select 1 from smsgateway.alert_rule where kind = {AlertKind.FAILURES:d} and enabled)"
)
_CLOCK = "select clock_timestamp()"

# With what is not told yet.
_CURRENT = """
select brand_id, alert_id, kind, subject, since, opened_at, good_since, recipients, webhooks
from smsgateway.alert
where recovered_at is null and kind = any(%s::smallint[]) and brand_id > %s and brand_id <= %s
order by brand_id, kind, subject
"""
_BEGIN = """
insert into smsgateway.alert (brand_id, alert_id, kind, subject, since, opened_at, figures, recipients, webhooks)
select a.brand_id, a.alert_id, a.kind, a.subject, %(now)s, case when a.opened then %(now)s::timestamptz end,
       a.figures::jsonb, a.recipients::text[], a.webhooks
from unnest(%(brands)s::bigint[], %(ids)s::text[], %(figures)s::text[], %(recipients)s::text[], %(webhooks)s::boolean[],
            %(kinds)s::smallint[], %(subjects)s::text[], %(opened)s::boolean[])
  as a (brand_id, alert_id, figures, recipients, webhooks, kind, subject, opened)
on conflict (brand_id, kind, subject) where recovered_at is null do nothing
returning alert_id
"""
_CHANGED = """
from unnest(%(brands)s::bigint[], %(ids)s::text[], %(figures)s::text[], %(recipients)s::text[], %(webhooks)s::boolean[])
  as a (brand_id, alert_id, figures, recipients, webhooks)
"""
_SAME = "t.brand_id = a.brand_id and t.alert_id = a.alert_id and t.recovered_at is null"
_OPEN = f"""
update smsgateway.alert t
set opened_at = %(now)s, figures = a.figures::jsonb, recipients = a.recipients::text[], webhooks = a.webhooks
{_CHANGED}
where {_SAME} and t.opened_at is null
returning t.alert_id
"""
_DROP = f"""
delete from smsgateway.alert t
using unnest(%(brands)s::bigint[], %(ids)s::text[]) as a (brand_id, alert_id)
where {_SAME} and t.opened_at is null
"""
_EASE = f"""
update smsgateway.alert t set good_since = %(now)s {_CHANGED}
where {_SAME} and t.opened_at is not null and t.good_since is null
"""
_WORSEN = f"update smsgateway.alert t set good_since = null {_CHANGED} where {_SAME} and t.good_since is not null"
_RECOVER = f"""
update smsgateway.alert t
set recovered_at = %(now)s, withdrawn = %(withdrawn)s,
    figures = case when a.figures = '{{}}' then t.figures else a.figures::jsonb end
{_CHANGED}
where {_SAME} and t.opened_at is not null
returning t.alert_id
"""
_DELETE_OLD = """
delete from smsgateway.alert t
using (
  select brand_id, alert_id from smsgateway.alert
  where recovered_at < now() - make_interval(days => %s)
  order by recovered_at limit %s
) as old
where t.brand_id = old.brand_id and t.alert_id = old.alert_id and t.recovered_at is not null
"""
_COUNT_OPEN = """
select kind, count(*) from smsgateway.alert where recovered_at is null and opened_at is not null group by kind
"""
_DELETE_OLD_MAIL = """
delete from smsgateway.alert_mail where next_at is null and created_at < now() - make_interval(days => %s)
"""
_LIST = """
select brand_id, alert_id, kind, subject, since, opened_at, recovered_at, withdrawn, figures
from smsgateway.alert
where (brand_id, alert_id) > (%(brand_after)s, %(after)s) and opened_at is not null
  and (%(brand)s::bigint is null or brand_id = %(brand)s::bigint)
  and (%(allowed)s::bigint[] is null or brand_id = any(%(allowed)s::bigint[]))
  and (%(recovered)s or recovered_at is null) and (%(kind)s = 0 or kind = %(kind)s)
order by brand_id, alert_id limit %(limit)s
"""

_ADD_MAIL = """
insert into smsgateway.alert_mail (brand_id, mail_id, recipient, title, body, next_at, created_at)
select brand_id, mail_id, recipient, title, body, now(), now()
from unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[])
  as m (brand_id, mail_id, recipient, title, body)
on conflict (brand_id, mail_id) do nothing
"""
# All that waits for whoever has waited longest, in the order of the alerts. What is taken is nobody else's for a while.
# What was tried together before is tried together again and nothing with it, so that it is the same letter: all of it
# has the same moment for that.
_TAKE_MAIL = """
with first as (
  select recipient, attempts, next_at from smsgateway.alert_mail
  where next_at <= clock_timestamp() order by next_at limit 1
),
theirs as (
  select m.brand_id, m.mail_id from smsgateway.alert_mail m join first on first.recipient = m.recipient
  where m.next_at <= clock_timestamp()
    and case when first.attempts = 0 then m.attempts = 0 else m.attempts > 0 and m.next_at = first.next_at end
  order by m.created_at, m.mail_id limit %(limit)s
  for update of m skip locked
)
update smsgateway.alert_mail m
set next_at = now() + make_interval(secs => %(hold)s), attempts = m.attempts + 1
from theirs where m.brand_id = theirs.brand_id and m.mail_id = theirs.mail_id
returning m.brand_id, m.mail_id, m.recipient, m.title, m.body, m.attempts, m.created_at
"""
_SENT = """
delete from smsgateway.alert_mail m
using unnest(%s::bigint[], %s::text[]) as sent (brand_id, mail_id)
where m.brand_id = sent.brand_id and m.mail_id = sent.mail_id
"""
_PUT_OFF_MAIL = """
update smsgateway.alert_mail m
set last_error = %(error)s, next_at = case
    when %(refused)s or m.created_at < now() - make_interval(secs => %(age)s) then null
    else now() + make_interval(secs => %(delay)s)
  end
from unnest(%(brands)s::bigint[], %(ids)s::text[]) as failed (brand_id, mail_id)
where m.brand_id = failed.brand_id and m.mail_id = failed.mail_id
returning m.next_at is null
"""


@dataclass(frozen=True, slots=True)
class Change:
    """One alert's change. `alert_id` is a new one's where it begins; `figures` as they are told, to `recipients` and
    (`webhooks`) to webhooks: who heard that it opened hears that it is over.
    """

    brand_id: int
    alert_id: str
    kind: AlertKind
    subject: str
    figures: Mapping[str, Any]
    recipients: tuple[str, ...]
    webhooks: bool


@dataclass(frozen=True, slots=True)
class ListedAlert:
    """An alert as it is shown."""

    brand_id: int
    alert_id: str
    kind: int
    subject: str
    since: datetime
    opened_at: datetime
    recovered_at: datetime | None
    withdrawn: bool
    figures: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Mail:
    """A letter that waits."""

    brand_id: int
    mail_id: str
    recipient: str
    title: str
    body: str
    attempts: int
    created_at: datetime


# Rules.


async def put_rule(connection: Connection, rule: Rule) -> datetime:
    """Create or replace a rule; the moment of it."""
    values = (
        *(rule.brand_id, int(rule.kind), rule.sms_type, rule.enabled, rule.segments, rule.days, rule.percent),
        *(rule.count, rule.minutes, rule.hold_seconds, list(rule.recipients), rule.webhooks),
    )
    row = await (await connection.execute(_PUT_RULE, values)).fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


async def remove_rule(connection: Connection, brand_id: int, kind: int, sms_type: int) -> bool:
    """Forget a rule; whether there was one."""
    return (await connection.execute(_REMOVE_RULE, (brand_id, kind, sms_type))).rowcount > 0


async def list_rules(
    connection: Connection, *, brand_id: int | None, after: tuple[int, int, int], limit: int
) -> list[tuple[Rule, datetime]]:
    """Rules behind a key, in order, of one brand or (None) of all, with the moments of their last changes."""
    cursor = await connection.execute(_LIST_RULES, (*after, brand_id, brand_id, limit))
    return [(_rule(row[:-1]), row[-1]) for row in await cursor.fetchall()]


async def all_rules(connection: Connection) -> list[Rule]:
    """Every rule: one for each kind and type of the brands that have their own."""
    return [_rule(row) for row in await (await connection.execute(_ALL_RULES)).fetchall()]


async def watches_failures(connection: Connection) -> bool:
    """Whether anybody wants to hear of failures."""
    row = await (await connection.execute(_WATCHES_FAILURES)).fetchone()
    return row is not None and bool(row[0])


def _rule(row: Sequence[Any]) -> Rule:
    brand_id, kind, sms_type, enabled, segments, days, percent, count, minutes, hold_seconds, recipients, webhooks = row
    return Rule(
        brand_id,
        AlertKind(kind),
        sms_type,
        enabled,
        segments,
        days,
        percent,
        count,
        minutes,
        hold_seconds,
        tuple(recipients),
        webhooks,
    )


# What is open.


async def clock(connection: Connection) -> datetime:
    """The database's clock: every process that looks counts by it."""
    row = await (await connection.execute(_CLOCK)).fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


async def current(connection: Connection, kinds: Collection[AlertKind], *, after: int, last: int) -> list[Alert]:
    """Alerts of some kinds that are not over, of the brands behind `after` up to and with `last`."""
    cursor = await connection.execute(_CURRENT, (arrays.integers(sorted(kinds)), after, last))
    return [
        Alert(brand_id, alert_id, AlertKind(kind), subject, since, opened_at, good_since, tuple(recipients), webhooks)
        for brand_id, alert_id, kind, subject, since, opened_at, good_since, recipients, webhooks in (
            await cursor.fetchall()
        )
    ]


async def begin(connection: Connection, changes: Sequence[tuple[Change, bool]], now: datetime) -> set[str]:
    """New alerts, each with whether it is open at once; the ids of those that nobody else has begun."""
    rows = [change for change, _ in changes]
    cursor = await connection.execute(
        _BEGIN,
        {
            **_columns(rows, now),
            "kinds": arrays.integers([row.kind for row in rows]),
            "subjects": arrays.texts([row.subject for row in rows]),
            "opened": arrays.booleans([opened for _, opened in changes]),
        },
    )
    return {row[0] for row in await cursor.fetchall()}


async def open_begun(connection: Connection, changes: Sequence[Change], now: datetime) -> set[str]:
    """Open alerts that have begun; the ids of those that this call opened."""
    return {row[0] for row in await (await connection.execute(_OPEN, _columns(changes, now))).fetchall()}


async def drop(connection: Connection, changes: Sequence[Change]) -> None:
    """Forget alerts that have begun and were told nobody."""
    await connection.execute(_DROP, _columns(changes, None))


async def ease(connection: Connection, changes: Sequence[Change], now: datetime) -> None:
    """Note since when open alerts may be over."""
    await connection.execute(_EASE, _columns(changes, now))


async def worsen(connection: Connection, changes: Sequence[Change]) -> None:
    """Open alerts were not over."""
    await connection.execute(_WORSEN, _columns(changes, None))


async def recover(connection: Connection, changes: Sequence[Change], now: datetime, *, withdrawn: bool) -> set[str]:
    """End open alerts; the ids of those that this call ended. `withdrawn`: they are not watched any more."""
    cursor = await connection.execute(_RECOVER, {**_columns(changes, now), "withdrawn": withdrawn})
    return {row[0] for row in await cursor.fetchall()}


async def count_open(connection: Connection) -> dict[AlertKind, int]:
    """Open alerts by kind."""
    cursor = await connection.execute(_COUNT_OPEN)
    return {AlertKind(kind): count for kind, count in await cursor.fetchall()}


async def delete_old(connection: Connection, *, days: int, limit: int) -> int:
    """Forget alerts that were over so long ago, and letters that were given up; how many alerts."""
    await connection.execute(_DELETE_OLD_MAIL, (days,))
    return (await connection.execute(_DELETE_OLD, (days, limit))).rowcount


async def listed(
    connection: Connection,
    *,
    brand_id: int | None,
    allowed: Collection[int] | None,
    kind: int,
    recovered: bool,
    after: tuple[int, str],
    limit: int,
) -> list[ListedAlert]:
    """Alerts that were told, behind a key, in the order of brand and time.

    `allowed` None: of all brands; `kind` 0: any; `recovered`: also those that are over.
    """
    cursor = await connection.execute(
        _LIST,
        {
            "brand_after": after[0],
            "after": after[1],
            "brand": brand_id,
            "allowed": None if allowed is None else sorted(allowed),
            "recovered": recovered,
            "kind": kind,
            "limit": limit,
        },
    )
    return [ListedAlert(*row) for row in await cursor.fetchall()]


def _columns(changes: Sequence[Change], now: datetime | None) -> dict[str, Any]:
    return {
        "brands": arrays.integers([change.brand_id for change in changes]),
        "ids": arrays.texts([change.alert_id for change in changes]),
        "figures": arrays.texts([json.dumps(dict(change.figures)) for change in changes]),
        # Arrays of arrays have one length each, so each is a text.
        "recipients": arrays.texts([arrays.texts(change.recipients) for change in changes]),
        "webhooks": arrays.booleans([change.webhooks for change in changes]),
        "now": now,
    }


# Letters.


async def add_mail(connection: Connection, letters: Sequence[tuple[int, str, str, str, str]]) -> None:
    """Have letters sent: (brand, id, recipient, title, body). One that is there is left alone."""
    brand_ids, ids, recipients, titles, bodies = zip(*letters, strict=True)
    await connection.execute(
        _ADD_MAIL,
        (
            arrays.integers(brand_ids),
            arrays.texts(ids),
            arrays.texts(recipients),
            arrays.texts(titles),
            arrays.texts(bodies),
        ),
    )


async def take_mail(connection: Connection, *, hold_seconds: float, limit: int) -> list[Mail]:
    """At most so many letters to one recipient, which nobody else takes for `hold_seconds`; oldest first."""
    cursor = await connection.execute(_TAKE_MAIL, {"hold": hold_seconds, "limit": limit})
    return sorted((Mail(*row) for row in await cursor.fetchall()), key=lambda mail: (mail.created_at, mail.mail_id))


async def mail_sent(connection: Connection, letters: Sequence[Mail]) -> None:
    """Forget letters that the mail server has."""
    await connection.execute(_SENT, _keys(letters))


async def put_off_mail(
    connection: Connection,
    letters: Sequence[Mail],
    *,
    error: str,
    refused: bool,
    delay_seconds: float,
    age_seconds: float,
) -> int:
    """Try letters again after a while, unless they were refused for good or are as old as `age_seconds`; how many are
    given up.
    """
    brands, ids = _keys(letters)
    cursor = await connection.execute(
        _PUT_OFF_MAIL,
        {
            "brands": brands,
            "ids": ids,
            "error": error,
            "refused": refused,
            "delay": delay_seconds,
            "age": age_seconds,
        },
    )
    return sum(row[0] for row in await cursor.fetchall())


def _keys(letters: Sequence[Mail]) -> tuple[str, str]:
    return arrays.integers([mail.brand_id for mail in letters]), arrays.texts([mail.mail_id for mail in letters])
