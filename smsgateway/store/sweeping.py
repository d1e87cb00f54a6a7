"""SQL of the sweepers: what made no progress. Every statement is conditional, so any number of sweepers may run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from infra import arrays
from infra.database import Connection
from smsgateway.schema import DispatchState, MessageState
from smsgateway.store.sending import FailedMessage
from smsgateway.store.telling import telling

_OVERDUE = f"""
update smsgateway.dispatch as d
set state = {DispatchState.UNKNOWN:d}, changed_at = now()
from (
  select brand_id, dispatch_id, call_id
  from smsgateway.dispatch
  where state = {DispatchState.SUBMITTING:d} and changed_at < now() - make_interval(secs => %s)
  order by changed_at
  limit %s
  for update skip locked
) as overdue
where d.brand_id = overdue.brand_id and d.dispatch_id = overdue.dispatch_id
returning d.brand_id, d.dispatch_id, d.request_id, d.sms_type, d.messages
"""

_STALLED = """
select brand_id, dispatch_id, sms_type, mode, epoch, stream_entry, changed_at
from smsgateway.dispatch
where state = %s and changed_at < now() - make_interval(secs => %s) and not_before is null
  and changed_at >= %s::timestamptz and (changed_at, brand_id, dispatch_id) > (%s::timestamptz, %s::bigint, %s::text)
order by changed_at, brand_id, dispatch_id
limit %s
"""

# What a sweep changes it locks first, and passes over what somebody else has locked: a sweep and a worker's group, each
# with some of the other's rows, would end in a deadlock, and the group would wait for a second. Whoever has it takes
# care of it, or the next pass does.
_FREE_TO_SWEEP = """
join smsgateway.dispatch as free on free.brand_id = asked.brand_id and free.dispatch_id = asked.dispatch_id
"""

# Their worker may have paid, so the epoch stays: it keeps them from being cancelled (see `smsgateway.store.sending`).
_FREE = f"""
update smsgateway.dispatch as d
set state = {DispatchState.QUEUED:d}
from (
  select free.brand_id, free.dispatch_id
  from unnest(%s::bigint[], %s::text[], %s::bigint[]) as asked (brand_id, dispatch_id, epoch) {_FREE_TO_SWEEP}
  where free.state = {DispatchState.CLAIMED:d} and free.epoch = asked.epoch
  for update of free skip locked
) as asked
where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
returning d.brand_id, d.dispatch_id
"""

# Without its entry a dispatch is queued once more, which its second claim finds out.
_SET_ENTRIES = f"""
update smsgateway.dispatch as d
set stream_entry = asked.entry, changed_at = now(), not_before = null
from (
  select free.brand_id, free.dispatch_id, asked.entry
  from unnest(%s::bigint[], %s::text[], %s::text[]) as asked (brand_id, dispatch_id, entry) {_FREE_TO_SWEEP}
  where free.state = {DispatchState.QUEUED:d}
    -- Not what a worker has put off or parked since it was pushed.
    and (free.not_before is null or free.not_before <= now())
  for update of free skip locked
) as asked
where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
"""

# Whoever changes the moment queues the dispatch; another sweeper that saw it at the same time finds another moment.
_TAKE_STALLED = f"""
update smsgateway.dispatch as d
set changed_at = clock_timestamp()
from (
  select free.brand_id, free.dispatch_id
  from unnest(%s::bigint[], %s::text[], %s::timestamptz[]) as asked (brand_id, dispatch_id, changed_at) {_FREE_TO_SWEEP}
  where free.state = {DispatchState.QUEUED:d} and free.changed_at = asked.changed_at
  for update of free skip locked
) as asked
where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
returning d.brand_id, d.dispatch_id
"""

_DELAYED = f"""
select brand_id, dispatch_id, sms_type, mode, epoch, stream_entry, changed_at
from smsgateway.dispatch
where not_before <= now() and state = {DispatchState.QUEUED:d}
order by not_before
limit %s
"""

# An account that is pulled (it has been, or it is one of those named) has its last word first: a pull that began after
# the time was over and left nothing there, or a longer time without one.
_TAKE_UNDECIDED = f"""
delete from smsgateway.dispatch as d
using (
  select open.brand_id, open.dispatch_id
  from smsgateway.dispatch as open
  left join smsgateway.receipt_pull as p on p.account = open.account
  where open.state = %(state)s and open.changed_at < now() - make_interval(secs => %(age)s)
    and (
      open.changed_at < now() - make_interval(secs => %(age)s) - make_interval(secs => %(wait)s)
      or p.emptied_at > open.changed_at + make_interval(secs => %(age)s)
      or (p.account is null and not coalesce(open.account = any(%(pulled)s::text[]), false))
    )
  order by open.changed_at
  limit %(limit)s
  for update of open skip locked
) as undecided
where d.brand_id = undecided.brand_id and d.dispatch_id = undecided.dispatch_id
  and d.state in ({DispatchState.UNKNOWN:d}, {DispatchState.PARTIAL:d})
returning d.brand_id, d.dispatch_id, d.batch_id is not null, d.order_no, d.payment_no, d.account, d.call_id,
          d.failed_count, d.sms_type, d.submitting_at
"""

_FAIL_MESSAGES = f"""
update smsgateway.message as m
set state = {MessageState.FAILED:d}, order_no = asked.order_no, payment_no = asked.payment_no, account = asked.account,
    call_id = asked.call_id, result_code = %s, result_detail = %s, submitted_at = asked.submitted_at,
    finished_at = now()
from unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::timestamptz[])
     as asked (brand_id, dispatch_id, order_no, payment_no, account, call_id, submitted_at)
where m.brand_id = asked.brand_id and m.state = {MessageState.QUEUED:d} and
"""
_OF_SINGLE = "m.message_id = asked.dispatch_id"
_OF_BATCH = "m.dispatch_id = asked.dispatch_id and m.batch_id is not null"

_FAIL_SOME = f"""
update smsgateway.message as m
set state = {MessageState.FAILED:d}, result_code = %s, result_detail = %s, finished_at = now()
from (
  select sent.brand_id, asked.dispatch_id, sent.message_id
  from unnest(%s::bigint[], %s::text[], %s::int[]) as asked (brand_id, dispatch_id, failed_count)
  cross join lateral (
    select message.brand_id, message.message_id
    from smsgateway.message
    where message.brand_id = asked.brand_id and message.dispatch_id = asked.dispatch_id
      and message.batch_id is not null and message.state = {MessageState.SENT:d}
    union all
    select message.brand_id, message.message_id
    from smsgateway.message
    where message.brand_id = asked.brand_id and message.message_id = asked.dispatch_id
      and message.batch_id is null and message.state = {MessageState.SENT:d}
    order by message_id
    limit asked.failed_count
  ) as sent
) as chosen
where m.brand_id = chosen.brand_id and m.message_id = chosen.message_id and m.state = {MessageState.SENT:d}
"""

_EXPIRE = f"""
update smsgateway.message as m
set state = {MessageState.EXPIRED:d}, result_code = %s, result_detail = %s, finished_at = now()
from (
  select message.brand_id, message.message_id
  from smsgateway.message
  where message.state = {MessageState.SENT:d} and message.sent_at < now() - make_interval(secs => %s)
    and not exists (
      select 1 from smsgateway.dispatch as d
      where d.brand_id = message.brand_id and d.dispatch_id = message.dispatch_id
    )
  order by message.sent_at
  limit %s
  for update skip locked
) as old
where m.brand_id = old.brand_id and m.message_id = old.message_id and m.state = {MessageState.SENT:d}
"""

_DELETE_KEYS = """
delete from smsgateway.request_key as key
using (
  select brand_id, operation, request_id from smsgateway.request_key
  where created_at < now() - make_interval(days => %s) and reply is not null
  order by created_at
  limit %s
  for update skip locked
) as old
where key.brand_id = old.brand_id and key.operation = old.operation and key.request_id = old.request_id
"""

_DELETE_ROUTES = """
delete from smsgateway.route
using (
  select account, reference from smsgateway.route
  where created_at < now() - make_interval(days => %s)
  order by created_at
  limit %s
  for update skip locked
) as old
where route.account = old.account and route.reference = old.reference
"""


@dataclass(frozen=True, slots=True)
class Overdue:
    """A dispatch whose call has had more time than any call takes."""

    brand_id: int
    dispatch_id: str
    request_id: str
    sms_type: int
    messages: int


@dataclass(frozen=True, slots=True)
class Stalled:
    """A dispatch that should be in its queue or in somebody's hands."""

    brand_id: int
    dispatch_id: str
    sms_type: int
    mode: int
    epoch: int
    stream_entry: str | None
    changed_at: datetime

    @property
    def cursor(self) -> tuple[datetime, int, str]:
        """Where the page after it starts."""
        return self.changed_at, self.brand_id, self.dispatch_id


@dataclass(frozen=True, slots=True)
class Undecided:
    """A dispatch whose outcome nobody will tell any more."""

    brand_id: int
    dispatch_id: str
    of_batch: bool
    order_no: str
    payment_no: str
    account: str
    call_id: str
    failed_count: int
    sms_type: int
    submitting_at: datetime


@dataclass(frozen=True, slots=True)
class ExpiredMessage:
    """A message whose receipt did not come in time."""

    brand_id: int
    message_id: str
    segments: int
    payment_no: str
    sms_type: int


Cursor = tuple[datetime, int, str]


async def set_overdue_unknown(connection: Connection, *, older_than_seconds: float, limit: int) -> list[Overdue]:
    """SUBMITTING for longer than a call can take → UNKNOWN."""
    cursor = await connection.execute(_OVERDUE, (older_than_seconds, limit))
    return [Overdue(*row) for row in await cursor.fetchall()]


async def stalled(
    connection: Connection, state: DispatchState, *, older_than_seconds: float, after: Cursor | None, limit: int
) -> list[Stalled]:
    """A page of what has been in a state for so long, oldest first; `after` is the cursor of the page before."""
    changed_at, brand_id, dispatch_id = ("-infinity", 0, "") if after is None else after
    cursor = await connection.execute(
        _STALLED, (int(state), older_than_seconds, changed_at, changed_at, brand_id, dispatch_id, limit)
    )
    return [Stalled(*row) for row in await cursor.fetchall()]


async def delayed(connection: Connection, *, limit: int) -> list[Stalled]:
    """What was put back with a delay that is over."""
    cursor = await connection.execute(_DELAYED, (limit,))
    return [Stalled(*row) for row in await cursor.fetchall()]


async def free(connection: Connection, items: Sequence[Stalled]) -> set[tuple[int, str]]:
    """CLAIMED under an epoch that is over → QUEUED; those that were."""
    cursor = await connection.execute(
        _FREE,
        (
            arrays.integers([item.brand_id for item in items]),
            arrays.texts([item.dispatch_id for item in items]),
            arrays.integers([item.epoch for item in items]),
        ),
    )
    return {(row[0], row[1]) for row in await cursor.fetchall()}


async def take_stalled(connection: Connection, items: Sequence[Stalled]) -> set[tuple[int, str]]:
    """Of what is QUEUED since the moment seen, (brand, dispatch) of those that nobody else has taken since."""
    cursor = await connection.execute(
        _TAKE_STALLED,
        (
            arrays.integers([item.brand_id for item in items]),
            arrays.texts([item.dispatch_id for item in items]),
            arrays.moments([item.changed_at for item in items]),
        ),
    )
    return {(row[0], row[1]) for row in await cursor.fetchall()}


async def set_entries(connection: Connection, entries: Sequence[tuple[int, str, str]]) -> None:
    """Record where dispatches (brand, id, entry) are queued now."""
    await connection.execute(
        _SET_ENTRIES,
        (
            arrays.integers([entry[0] for entry in entries]),
            arrays.texts([entry[1] for entry in entries]),
            arrays.texts([entry[2] for entry in entries]),
        ),
    )


async def take_undecided(
    connection: Connection,
    state: DispatchState,
    *,
    older_than_seconds: float,
    pull_wait_seconds: float,
    pulled: Collection[str],
    limit: int,
) -> list[Undecided]:
    """UNKNOWN or PARTIAL for so long: their dispatches go, what becomes of the messages is next.

    Parameters: `pull_wait_seconds` how much longer they wait for a pull that leaves nothing at the carrier, 0: they do
    not; `pulled` accounts that are pulled, though they may not have been yet.
    """
    cursor = await connection.execute(
        _TAKE_UNDECIDED,
        {
            "state": int(state),
            "age": older_than_seconds,
            "wait": pull_wait_seconds,
            "pulled": arrays.texts(pulled),
            "limit": limit,
        },
    )
    return [Undecided(*row) for row in await cursor.fetchall()]


async def fail_undecided(
    connection: Connection, items: Sequence[Undecided], *, code: str, detail: str
) -> list[FailedMessage]:
    """Messages of dispatches that ended as UNKNOWN → FAILED."""
    failed: list[FailedMessage] = []
    for of_batch in (False, True):
        some = [item for item in items if item.of_batch is of_batch]
        if not some:
            continue
        cursor = await connection.execute(
            telling(
                f"{_FAIL_MESSAGES} {_OF_BATCH if of_batch else _OF_SINGLE}",
                more="asked.dispatch_id, m.segments",
                returning="brand_id, dispatch_id, message_id, segments",
            ),
            (
                code,
                detail,
                arrays.integers([item.brand_id for item in some]),
                arrays.texts([item.dispatch_id for item in some]),
                arrays.texts([item.order_no for item in some]),
                arrays.texts([item.payment_no for item in some]),
                arrays.texts([item.account for item in some]),
                arrays.texts([item.call_id for item in some]),
                arrays.moments([item.submitting_at for item in some]),
            ),
        )
        failed += [FailedMessage(*row) for row in await cursor.fetchall()]
    return failed


async def fail_without_receipt(
    connection: Connection, items: Sequence[Undecided], *, code: str, detail: str
) -> list[FailedMessage]:
    """Of each PARTIAL dispatch at most `failed_count` messages without a final receipt → FAILED."""
    cursor = await connection.execute(
        telling(
            _FAIL_SOME,
            more="chosen.dispatch_id, m.segments",
            returning="brand_id, dispatch_id, message_id, segments",
        ),
        (
            code,
            detail,
            arrays.integers([item.brand_id for item in items]),
            arrays.texts([item.dispatch_id for item in items]),
            arrays.integers([item.failed_count for item in items]),
        ),
    )
    return [FailedMessage(*row) for row in await cursor.fetchall()]


async def expire_messages(
    connection: Connection, *, older_than_seconds: float, limit: int, code: str, detail: str
) -> list[ExpiredMessage]:
    """SENT for so long without a final receipt → EXPIRED; not those of a PARTIAL dispatch, which is decided first."""
    statement = telling(
        _EXPIRE,
        more="m.segments, m.payment_no, m.sms_type",
        returning="brand_id, message_id, segments, payment_no, sms_type",
    )
    cursor = await connection.execute(statement, (code, detail, older_than_seconds, limit))
    return [ExpiredMessage(*row) for row in await cursor.fetchall()]


async def delete_keys(connection: Connection, *, days: int, limit: int) -> int:
    """Forget idempotency keys of calls that were answered so long ago."""
    return (await connection.execute(_DELETE_KEYS, (days, limit))).rowcount


async def delete_routes(connection: Connection, *, days: int, limit: int) -> int:
    """Forget where receipts of calls so old belong."""
    return (await connection.execute(_DELETE_ROUTES, (days, limit))).rowcount
