"""SQL of accepting: idempotency keys, messages, batches with their chunks, and cancelling."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncCopy, AsyncCursor

from infra import arrays
from infra.database import Connection
from smsgateway.schema import DispatchState, MessageState, Mode
from smsgateway.store.rule_checks import Counted, take_batch_off, take_off
from smsgateway.store.telling import telling

# A state is written `state + 0` beside a key: while the table is empty, its index by state looks as good to the planner
# as the key, and the plan is kept when a hundred thousand rows are in that state. So it is with what is not accepted.
_NOT_ACCEPTED = "coalesce(batch.accepted_at, 'infinity') = 'infinity'"

# Keys are taken in one order by everybody, so that two groups with the same keys wait for each other and never in a
# circle; callers sort.
_INSERT_KEYS = """
insert into smsgateway.request_key (brand_id, operation, request_id, fingerprint, target_id, created_at)
select asked.brand_id, asked.operation, asked.request_id, asked.fingerprint, asked.target_id, now()
from unnest(%s::bigint[], %s::smallint[], %s::text[], %s::bytea[], %s::text[])
     as asked (brand_id, operation, request_id, fingerprint, target_id)
on conflict (brand_id, operation, request_id) do nothing
returning target_id
"""

_FIND_KEYS = """
select key.brand_id, key.request_id, key.fingerprint, key.target_id, key.reply
from unnest(%s::bigint[], %s::smallint[], %s::text[]) as asked (brand_id, operation, request_id)
join smsgateway.request_key as key
  on key.brand_id = asked.brand_id and key.operation = asked.operation and key.request_id = asked.request_id
"""

# Keys, messages and dispatches in one statement. `is true` keeps the planner from making a join of the look-up: it is a
# hash table of the new keys then, not a walk through all of them for each message.
_RECORD_MESSAGES = f"""
with asked as materialized (
  select *
  from unnest(%s::bigint[], %s::text[], %s::bytea[], %s::text[], %s::smallint[], %s::text[], %s::text[], %s::int[],
              %s::timestamptz[], %s::timestamptz[], %s::bigint[], %s::text[], %s::timestamptz[], %s::timestamptz[])
       as asked (brand_id, request_id, fingerprint, message_id, sms_type, mobile, text, segments, due_at, valid_from,
                 valid_ms, subject, night_from, night_until)
), new as (
  insert into smsgateway.request_key (brand_id, operation, request_id, fingerprint, target_id, created_at)
  select asked.brand_id, {Mode.SINGLE:d}, asked.request_id, asked.fingerprint, asked.message_id, now()
  from asked
  on conflict (brand_id, operation, request_id) do nothing
  returning target_id
), recorded as (
  insert into smsgateway.message
    (brand_id, message_id, dispatch_id, request_id, sms_type, mobile, text, segments, state, created_at)
  select asked.brand_id, asked.message_id, asked.message_id, asked.request_id, asked.sms_type, asked.mobile, asked.text,
         asked.segments, {MessageState.QUEUED:d}, now()
  from asked
  where (asked.message_id in (select target_id from new)) is true
), dispatched as (
  insert into smsgateway.dispatch
    (brand_id, dispatch_id, mode, sms_type, messages, segments, request_id, state, created_at, changed_at, not_before,
     due_at, valid_until, subject, night_from, night_until)
  select asked.brand_id, asked.message_id, {Mode.SINGLE:d}, asked.sms_type, 1, asked.segments, asked.request_id,
         {DispatchState.ACCEPTING:d}, now(), now(), asked.due_at, asked.due_at,
         coalesce(asked.valid_from, now()) + asked.valid_ms * interval '1 ms', asked.subject,
         asked.night_from, asked.night_until
  from asked
  where (asked.message_id in (select target_id from new)) is true
)
select target_id from new
"""

_QUEUE_MESSAGES = f"""
with asked as materialized (
  select *
  from unnest(%s::bigint[], %s::smallint[], %s::text[], %s::text[], %s::text[], %s::bytea[])
       as asked (brand_id, operation, request_id, target_id, order_no, reply)
), replied as (
  update smsgateway.request_key
  set reply = asked.reply
  from asked
  where request_key.brand_id = asked.brand_id and request_key.operation = asked.operation
    and request_key.request_id = asked.request_id and request_key.target_id = asked.target_id
    and request_key.reply is null
)
update smsgateway.dispatch
set state = {DispatchState.QUEUED:d}, order_no = asked.order_no, changed_at = now()
from asked
where dispatch.brand_id = asked.brand_id and dispatch.dispatch_id = asked.target_id
  and dispatch.state + 0 = {DispatchState.ACCEPTING:d}
returning dispatch.dispatch_id
"""

_SET_REPLIES = """
update smsgateway.request_key
set reply = asked.reply
from unnest(%s::bigint[], %s::smallint[], %s::text[], %s::text[], %s::bytea[])
     as asked (brand_id, operation, request_id, target_id, reply)
where request_key.brand_id = asked.brand_id and request_key.operation = asked.operation
  and request_key.request_id = asked.request_id and request_key.target_id = asked.target_id
  and request_key.reply is null
"""

_DELETE_ACCEPTING_DISPATCHES = f"""
delete from smsgateway.dispatch
using unnest(%s::bigint[], %s::text[]) as asked (brand_id, dispatch_id)
where dispatch.brand_id = asked.brand_id and dispatch.dispatch_id = asked.dispatch_id
  and dispatch.state + 0 = {DispatchState.ACCEPTING:d}
returning dispatch.dispatch_id, dispatch.subject
"""

_DELETE_MESSAGES = """
delete from smsgateway.message
using unnest(%s::bigint[], %s::text[]) as asked (brand_id, message_id)
where message.brand_id = asked.brand_id and message.message_id = asked.message_id
returning message.brand_id, message.message_id, message.sms_type, message.mobile
"""

# What a call that comes again finds under way: it is settled as it was recorded, whatever the rules are by now.
_ACCEPTING_MESSAGES = f"""
select dispatch.dispatch_id, dispatch.segments, dispatch.due_at is not null
from unnest(%s::bigint[], %s::text[]) as asked (brand_id, dispatch_id)
join smsgateway.dispatch
  on dispatch.brand_id = asked.brand_id and dispatch.dispatch_id = asked.dispatch_id
  and dispatch.state + 0 = {DispatchState.ACCEPTING:d}
"""

_ACCEPTING_BATCH = f"""
select text, accepted, segments, held
from smsgateway.batch
where brand_id = %s and batch_id = %s and {_NOT_ACCEPTED}
for update
"""

_DELETE_KEYS = """
delete from smsgateway.request_key
using unnest(%s::bigint[], %s::smallint[], %s::text[], %s::text[]) as asked (brand_id, operation, request_id, target_id)
where request_key.brand_id = asked.brand_id and request_key.operation = asked.operation
  and request_key.request_id = asked.request_id and request_key.target_id = asked.target_id
"""

_ABANDONED_MESSAGES = f"""
select message.brand_id, message.message_id, message.request_id, message.sms_type, message.segments,
       dispatch.due_at is not null
from smsgateway.dispatch
join smsgateway.message
  on message.brand_id = dispatch.brand_id and message.message_id = dispatch.dispatch_id
where dispatch.state = {DispatchState.ACCEPTING:d} and dispatch.changed_at < now() - make_interval(secs => %s)
order by dispatch.changed_at
limit %s
"""

# Those that cannot be settled make room for those behind them.
_POSTPONE_MESSAGES = f"""
update smsgateway.dispatch
set changed_at = now()
from unnest(%s::bigint[], %s::text[]) as asked (brand_id, dispatch_id)
where dispatch.brand_id = asked.brand_id and dispatch.dispatch_id = asked.dispatch_id
  and dispatch.state + 0 = {DispatchState.ACCEPTING:d}
"""

_POSTPONE_BATCHES = f"""
update smsgateway.batch
set created_at = now()
from unnest(%s::bigint[], %s::text[]) as asked (brand_id, batch_id)
where batch.brand_id = asked.brand_id and batch.batch_id = asked.batch_id and {_NOT_ACCEPTED}
"""

_NOTE_ENTRIES = f"""
update smsgateway.dispatch
set stream_entry = asked.entry
from unnest(%s::bigint[], %s::text[], %s::text[]) as asked (brand_id, dispatch_id, entry)
where dispatch.brand_id = asked.brand_id and dispatch.dispatch_id = asked.dispatch_id
  and dispatch.state + 0 = {DispatchState.QUEUED:d} and dispatch.stream_entry is null
"""

_INSERT_BATCH = """
insert into smsgateway.batch
  (brand_id, batch_id, request_id, sms_type, text, accepted, segments, held, subject, variables, campaign_id,
   created_at)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, now())
"""

_ACCEPT_BATCH = f"""
update smsgateway.batch
set order_no = %s, accepted_at = now()
where brand_id = %s and batch_id = %s and {_NOT_ACCEPTED}
returning accepted_at
"""

_COPY_MESSAGES = """
copy smsgateway.message
  (brand_id, message_id, batch_id, dispatch_id, request_id, sms_type, mobile, segments, state, order_no, created_at)
from stdin
"""
_COPY_PERSONALISED_MESSAGES = _COPY_MESSAGES.replace("created_at)", "created_at, variables)")

_INSERT_CHUNKS = f"""
insert into smsgateway.dispatch
  (brand_id, dispatch_id, mode, sms_type, batch_id, messages, segments, request_id, state, order_no, created_at,
   changed_at, not_before, due_at, valid_until, night_from, night_until, paused)
select %s, chunk.dispatch_id, {Mode.BATCH:d}, %s, %s, chunk.messages, chunk.segments, %s, %s, %s,
       now(), now(), chunk.due_at, chunk.due_at, coalesce(%s::timestamptz, now()) + %s::bigint * interval '1 ms',
       chunk.night_from, chunk.night_until, %s
from unnest(%s::text[], %s::int[], %s::int[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[])
     as chunk (dispatch_id, messages, segments, due_at, night_from, night_until)
"""

_DELETE_BATCHES = f"""
delete from smsgateway.batch
using unnest(%s::bigint[], %s::text[]) as asked (brand_id, batch_id)
where batch.brand_id = asked.brand_id and batch.batch_id = asked.batch_id and {_NOT_ACCEPTED}
returning batch.brand_id, batch.batch_id, batch.sms_type, batch.subject
"""

_ABANDONED_BATCHES = """
select brand_id, batch_id, request_id, sms_type, segments, held
from smsgateway.batch
where accepted_at is null and created_at < now() - make_interval(secs => %s)
order by created_at
limit %s
"""


# Only what no worker ever paid for, or what is known to be paid: a chunk that was claimed and came back without a
# payment number may have been paid all the same, and its worker's successor finds that out. What a worker claims at
# this moment is locked and passed over.
def _cancelling_dispatches(chosen: str) -> str:
    return f"""
delete from smsgateway.dispatch
where brand_id = %(brand)s and dispatch_id in (
  select dispatch_id from smsgateway.dispatch
  where brand_id = %(brand)s and {chosen}
    and state in ({DispatchState.QUEUED:d}, {DispatchState.PAUSED:d}) and (epoch = 0 or payment_no is not null)
  for update skip locked
)
returning dispatch_id, segments, order_no, payment_no
"""


def _cancelling_messages(chosen: str) -> str:
    return telling(
        f"""
  update smsgateway.message as m
  set state = {MessageState.CANCELLED:d}, order_no = gone.order_no, payment_no = gone.payment_no, finished_at = now()
  from unnest(%s::text[], %s::text[], %s::text[]) as gone (dispatch_id, order_no, payment_no)
  where m.brand_id = %s and {chosen} and m.state = {MessageState.QUEUED:d}
""",
        more="gone.dispatch_id, m.segments",
        returning="dispatch_id, message_id, segments",
    )


_CANCEL_DISPATCHES = _cancelling_dispatches("batch_id = %(batch)s and batch_id is not null")
_CANCEL_MESSAGES = _cancelling_messages("m.dispatch_id = gone.dispatch_id and m.batch_id is not null")
_CANCEL_DISPATCH = _cancelling_dispatches("dispatch_id = %(message)s and batch_id is null")
_CANCEL_MESSAGE = _cancelling_messages("m.message_id = gone.dispatch_id and m.batch_id is null")

_MARK_BATCH_CANCELLED = """
update smsgateway.batch
set cancelled_at = coalesce(cancelled_at, now())
where brand_id = %s and batch_id = %s and accepted_at is not null
returning accepted
"""

_COUNT_CANCELLED = f"""
select count(*) from smsgateway.message
where brand_id = %s and batch_id = %s and batch_id is not null and state = {MessageState.CANCELLED:d}
"""


_COPY_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


@dataclass(frozen=True, slots=True)
class Key:
    """An idempotency key: of which call, and what the call is about to make."""

    brand_id: int
    operation: int
    request_id: str
    target_id: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key that was there before. `reply` is None while its call is being accepted."""

    fingerprint: bytes
    target_id: str
    reply: bytes | None


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A single message to be recorded; its dispatch has the same id. `due_at`: not to be sent before; `valid_ms`: not
    to be sent so long after `valid_from`, or after now without it; `subject`: under which it is counted; `night`: not
    to be sent from its first moment until its second, nor in the same hours of the days after.
    """

    brand_id: int
    message_id: str
    request_id: str
    sms_type: int
    mobile: str
    text: str
    segments: int
    due_at: datetime | None = None
    valid_from: datetime | None = None
    valid_ms: int | None = None
    subject: str | None = None
    night: tuple[datetime, datetime] | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """A call whose segments are frozen: what to record and to reply."""

    brand_id: int
    operation: int
    request_id: str
    target_id: str
    order_no: str
    reply: bytes


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A message or batch that nobody finished accepting; `target_id` is the message's or the batch's; `held`: all or
    some of it is not due when it is accepted; `trace` a W3C traceparent, or empty.
    """

    brand_id: int
    target_id: str
    request_id: str
    sms_type: int
    segments: int
    held: bool = False
    trace: str = ""


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch to be recorded."""

    brand_id: int
    batch_id: str
    request_id: str
    sms_type: int
    text: str
    accepted: int
    segments: int
    held: bool = False
    subject: str | None = None
    variables: str | None = None  # see `smsgateway.variables.pack_names`
    campaign_id: str | None = None


BatchMessage = tuple[str, str, int, str]
"""A message of a batch: id, number, segments, and the values that fill the text, see `variables.pack_values`."""


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A chunk of a batch; `due_at`: not to be sent before; `night` as of `NewMessage`."""

    dispatch_id: str
    messages: int
    segments: int
    due_at: datetime | None = None
    night: tuple[datetime, datetime] | None = None


@dataclass(frozen=True, slots=True)
class CancelledDispatch:
    """A dispatch that was taken out of its queue; `payment_no` when a worker had paid for it already."""

    dispatch_id: str
    segments: int
    order_no: str
    payment_no: str | None


@dataclass(frozen=True, slots=True)
class CancelledMessage:
    """A message of such a dispatch."""

    dispatch_id: str
    message_id: str
    segments: int


# Single messages.


async def insert_keys(connection: Connection, keys: Sequence[Key]) -> set[str]:
    """Record keys, sorted by brand and request_id; return the targets of those that are new."""
    cursor = await connection.execute(
        _INSERT_KEYS,
        (
            arrays.integers([key.brand_id for key in keys]),
            arrays.integers([key.operation for key in keys]),
            arrays.texts([key.request_id for key in keys]),
            arrays.binaries([key.fingerprint for key in keys]),
            arrays.texts([key.target_id for key in keys]),
        ),
    )
    return await _first_column(cursor)


async def find_keys(connection: Connection, keys: Sequence[Key]) -> dict[tuple[int, str], KnownKey]:
    """The recorded keys of these calls, by brand and request_id; all of one operation."""
    cursor = await connection.execute(
        _FIND_KEYS,
        (
            arrays.integers([key.brand_id for key in keys]),
            arrays.integers([key.operation for key in keys]),
            arrays.texts([key.request_id for key in keys]),
        ),
    )
    return {
        (brand_id, request_id): KnownKey(bytes(fingerprint), target_id, None if reply is None else bytes(reply))
        for brand_id, request_id, fingerprint, target_id, reply in await cursor.fetchall()
    }


async def record_messages(connection: Connection, messages: Sequence[tuple[Key, NewMessage]]) -> set[str]:
    """Record single messages, sorted by brand and request_id, as being accepted, with their keys and dispatches; return
    those whose key is new. Of the others nothing is recorded. One statement.
    """
    cursor = await connection.execute(
        _RECORD_MESSAGES,
        (
            arrays.integers([message.brand_id for _, message in messages]),
            arrays.texts([message.request_id for _, message in messages]),
            arrays.binaries([key.fingerprint for key, _ in messages]),
            arrays.texts([message.message_id for _, message in messages]),
            arrays.integers([message.sms_type for _, message in messages]),
            arrays.texts([message.mobile for _, message in messages]),
            arrays.texts([message.text for _, message in messages]),
            arrays.integers([message.segments for _, message in messages]),
            arrays.moments([message.due_at for _, message in messages]),
            arrays.moments([message.valid_from for _, message in messages]),
            arrays.integers([message.valid_ms for _, message in messages]),
            arrays.texts([message.subject for _, message in messages]),
            arrays.moments([message.night and message.night[0] for _, message in messages]),
            arrays.moments([message.night and message.night[1] for _, message in messages]),
        ),
    )
    return await _first_column(cursor)


async def queue_messages(connection: Connection, accepted: Sequence[Accepted]) -> set[str]:
    """Record single messages as frozen and queued, with their replies; return those that were being accepted. One
    statement.
    """
    cursor = await connection.execute(
        _QUEUE_MESSAGES,
        (
            arrays.integers([call.brand_id for call in accepted]),
            arrays.integers([call.operation for call in accepted]),
            arrays.texts([call.request_id for call in accepted]),
            arrays.texts([call.target_id for call in accepted]),
            arrays.texts([call.order_no for call in accepted]),
            arrays.binaries([call.reply for call in accepted]),
        ),
    )
    return await _first_column(cursor)


async def delete_accepting_messages(connection: Connection, refused: Sequence[Key]) -> set[str]:
    """Forget single messages that were refused, and that they were counted; return those that were still being accepted
    and so are gone.
    """
    cursor = await connection.execute(
        _DELETE_ACCEPTING_DISPATCHES,
        (
            arrays.integers([key.brand_id for key in refused]),
            arrays.texts([key.target_id for key in refused]),
        ),
    )
    gone = {row[0]: row[1] for row in await cursor.fetchall()}
    keys = [key for key in refused if key.target_id in gone]
    if keys:
        async with connection.pipeline():
            deleted = await connection.execute(
                _DELETE_MESSAGES,
                (arrays.integers([key.brand_id for key in keys]), arrays.texts([key.target_id for key in keys])),
            )
            await delete_keys(connection, keys)
            rows = await deleted.fetchall()
        await take_off(
            connection,
            [
                Counted(brand_id, sms_type, subject, mobile, message_id)
                for brand_id, message_id, sms_type, mobile in rows
                if (subject := gone[message_id]) is not None
            ],
        )
    return set(gone)


async def accepting_messages(connection: Connection, keys: Sequence[Key]) -> dict[str, tuple[int, bool]]:
    """Segments of messages that are being accepted, and whether they are held, by their ids."""
    cursor = await connection.execute(
        _ACCEPTING_MESSAGES,
        (arrays.integers([key.brand_id for key in keys]), arrays.texts([key.target_id for key in keys])),
    )
    return {row[0]: (row[1], row[2]) for row in await cursor.fetchall()}


async def delete_keys(connection: Connection, keys: Sequence[Key]) -> None:
    """Forget keys, unless they stand for another target by now."""
    await connection.execute(
        _DELETE_KEYS,
        (
            arrays.integers([key.brand_id for key in keys]),
            arrays.integers([key.operation for key in keys]),
            arrays.texts([key.request_id for key in keys]),
            arrays.texts([key.target_id for key in keys]),
        ),
    )


async def abandoned_messages(connection: Connection, *, older_than_seconds: float, limit: int) -> list[Abandoned]:
    """Single messages that have been accepting for so long, oldest first."""
    cursor = await connection.execute(_ABANDONED_MESSAGES, (older_than_seconds, limit))
    return [Abandoned(*row) for row in await cursor.fetchall()]


async def postpone_messages(connection: Connection, items: Sequence[Abandoned]) -> None:
    """Let abandoned messages be the newest of them."""
    await connection.execute(_POSTPONE_MESSAGES, _names(items))


async def note_stream_entries(connection: Connection, entries: Iterable[tuple[int, str, str]]) -> None:
    """Record where dispatches are queued (brand, dispatch, entry), as far as they are queued still."""
    rows = list(entries)
    await connection.execute(
        _NOTE_ENTRIES,
        (
            arrays.integers([row[0] for row in rows]),
            arrays.texts([row[1] for row in rows]),
            arrays.texts([row[2] for row in rows]),
        ),
    )


# Batches.


async def insert_batch(connection: Connection, batch: NewBatch) -> None:
    """Record a batch as being accepted."""
    await connection.execute(
        _INSERT_BATCH,
        (
            batch.brand_id,
            batch.batch_id,
            batch.request_id,
            batch.sms_type,
            batch.text,
            batch.accepted,
            batch.segments,
            batch.held,
            batch.subject,
            batch.variables,
            batch.campaign_id,
        ),
    )


async def lock_accepting_batch(
    connection: Connection, brand_id: int, batch_id: str
) -> tuple[str, int, int, bool] | None:
    """Text, messages, segments and whether it is held of a batch that is being accepted, locked; None: it is not."""
    row = await (await connection.execute(_ACCEPTING_BATCH, (brand_id, batch_id))).fetchone()
    return None if row is None else (row[0], row[1], row[2], row[3])


async def accept_batch(connection: Connection, accepted: Accepted) -> datetime | None:
    """Record a batch as accepted, with its reply, and lock it; return the moment, or None when it is not accepting."""
    cursor = await connection.execute(_ACCEPT_BATCH, (accepted.order_no, accepted.brand_id, accepted.target_id))
    row = await cursor.fetchone()
    if row is None:
        return None
    await _set_replies(connection, [accepted])
    moment: datetime = row[0]
    return moment


@asynccontextmanager
async def copying_messages(connection: Connection, *, personalised: bool) -> AsyncIterator[AsyncCopy]:
    """Write rows made by `BatchRows` to the messages."""
    statement = _COPY_PERSONALISED_MESSAGES if personalised else _COPY_MESSAGES
    async with connection.cursor() as cursor, cursor.copy(statement) as copy:
        yield copy


class BatchRows:
    """Writes the rows of a batch's messages in COPY's text format (https://www.postgresql.org/docs/current/sql-copy.html).

    All but the request_id and values are of characters that need no escapes.
    """

    def __init__(self, batch: NewBatch, order_no: str, created_at: datetime) -> None:
        request_id = batch.request_id.replace("\\", "\\\\")
        self._head = f"{batch.brand_id}\t"
        self._batch = f"\t{batch.batch_id}\t"
        self._request = f"\t{request_id}\t{batch.sms_type}\t"
        self._tail = f"\t{MessageState.QUEUED:d}\t{order_no}\t{created_at.isoformat()}"
        self._personalised = batch.variables is not None

    def text(self, dispatch_id: str, messages: Iterable[BatchMessage]) -> str:
        """The rows of a chunk's messages."""
        head, tail = self._head, self._tail
        middle = self._batch + dispatch_id + self._request
        if self._personalised:
            rows = [
                f"{head}{message_id}{middle}{mobile}\t{segments}{tail}\t{values.translate(_COPY_ESCAPES)}\n"
                for message_id, mobile, segments, values in messages
            ]
        else:
            rows = [
                f"{head}{message_id}{middle}{mobile}\t{segments}{tail}\n"
                for message_id, mobile, segments, _ in messages
            ]
        return "".join(rows)


async def insert_chunks(
    connection: Connection,
    batch: NewBatch,
    order_no: str,
    chunks: Sequence[NewChunk],
    *,
    paused: bool = False,
    valid_from: datetime | None = None,
    valid_ms: int | None = None,
) -> None:
    """Record the chunks of a batch as queued, or paused; validity as of `NewMessage`."""
    await connection.execute(
        _INSERT_CHUNKS,
        (
            batch.brand_id,
            batch.sms_type,
            batch.batch_id,
            batch.request_id,
            int(DispatchState.PAUSED if paused else DispatchState.QUEUED),
            order_no,
            valid_from,
            valid_ms,
            paused,
            arrays.texts([chunk.dispatch_id for chunk in chunks]),
            arrays.integers([chunk.messages for chunk in chunks]),
            arrays.integers([chunk.segments for chunk in chunks]),
            arrays.moments([chunk.due_at for chunk in chunks]),
            arrays.moments([chunk.night and chunk.night[0] for chunk in chunks]),
            arrays.moments([chunk.night and chunk.night[1] for chunk in chunks]),
        ),
    )


async def delete_accepting_batches(connection: Connection, keys: Sequence[Key]) -> set[str]:
    """Forget batches with their keys, and that they were counted; return those that were still being accepted and so
    are gone.
    """
    cursor = await connection.execute(
        _DELETE_BATCHES,
        (arrays.integers([key.brand_id for key in keys]), arrays.texts([key.target_id for key in keys])),
    )
    rows = await cursor.fetchall()
    gone = {str(row[1]) for row in rows}
    gone_keys = [key for key in keys if key.target_id in gone]
    if gone_keys:
        await delete_keys(connection, gone_keys)
    for brand_id, batch_id, sms_type, subject in rows:
        if subject is not None:
            await take_batch_off(connection, brand_id, sms_type, subject, batch_id)
    return gone


async def abandoned_batches(connection: Connection, *, older_than_seconds: float, limit: int) -> list[Abandoned]:
    """Batches that have been accepting for so long, oldest first."""
    cursor = await connection.execute(_ABANDONED_BATCHES, (older_than_seconds, limit))
    return [Abandoned(*row) for row in await cursor.fetchall()]


async def postpone_batches(connection: Connection, items: Sequence[Abandoned]) -> None:
    """Let abandoned batches be the newest of them."""
    await connection.execute(_POSTPONE_BATCHES, _names(items))


# Cancelling.


async def mark_batch_cancelled(connection: Connection, brand_id: int, batch_id: str) -> int | None:
    """Record that a batch is cancelled; return how many messages it has, or None for a batch that is not known."""
    cursor = await connection.execute(_MARK_BATCH_CANCELLED, (brand_id, batch_id))
    row = await cursor.fetchone()
    return None if row is None else int(row[0])


async def cancel_dispatches(connection: Connection, brand_id: int, batch_id: str) -> list[CancelledDispatch]:
    """Take a batch's dispatches out of their queue as far as no worker has them."""
    cursor = await connection.execute(_CANCEL_DISPATCHES, {"brand": brand_id, "batch": batch_id})
    return [CancelledDispatch(*row) for row in await cursor.fetchall()]


async def cancel_messages(
    connection: Connection, brand_id: int, dispatches: Sequence[CancelledDispatch]
) -> list[CancelledMessage]:
    """Record the messages of such dispatches as cancelled."""
    return await _cancel_messages(connection, _CANCEL_MESSAGES, brand_id, dispatches)


async def cancel_single(
    connection: Connection, brand_id: int, message_id: str
) -> tuple[list[CancelledDispatch], list[CancelledMessage]]:
    """Cancel a single message unless a worker has it; what was cancelled, nothing or one."""
    cursor = await connection.execute(_CANCEL_DISPATCH, {"brand": brand_id, "message": message_id})
    dispatches = [CancelledDispatch(*row) for row in await cursor.fetchall()]
    if not dispatches:
        return [], []
    return dispatches, await _cancel_messages(connection, _CANCEL_MESSAGE, brand_id, dispatches)


async def _cancel_messages(
    connection: Connection, statement: str, brand_id: int, dispatches: Sequence[CancelledDispatch]
) -> list[CancelledMessage]:
    cursor = await connection.execute(
        statement,
        (
            arrays.texts([dispatch.dispatch_id for dispatch in dispatches]),
            arrays.texts([dispatch.order_no for dispatch in dispatches]),
            arrays.texts([dispatch.payment_no for dispatch in dispatches]),
            brand_id,
        ),
    )
    return [CancelledMessage(*row) for row in await cursor.fetchall()]


async def count_cancelled(connection: Connection, brand_id: int, batch_id: str) -> int:
    """Messages of a batch that are cancelled."""
    cursor = await connection.execute(_COUNT_CANCELLED, (brand_id, batch_id))
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


def _names(items: Sequence[Abandoned]) -> tuple[str, str]:
    return arrays.integers([item.brand_id for item in items]), arrays.texts([item.target_id for item in items])


async def _set_replies(connection: Connection, accepted: Sequence[Accepted]) -> None:
    await connection.execute(
        _SET_REPLIES,
        (
            arrays.integers([call.brand_id for call in accepted]),
            arrays.integers([call.operation for call in accepted]),
            arrays.texts([call.request_id for call in accepted]),
            arrays.texts([call.target_id for call in accepted]),
            arrays.binaries([call.reply for call in accepted]),
        ),
    )


async def _first_column(cursor: AsyncCursor[tuple[object, ...]]) -> set[str]:
    return {str(row[0]) for row in await cursor.fetchall()}
