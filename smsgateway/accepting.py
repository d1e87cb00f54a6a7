"""Accepting single messages, in groups.

A group's calls share two transactions and one call to the cost centre: recorded as being accepted, frozen, recorded as
queued. Whatever arrives meanwhile forms the next group; several groups may be under way.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from infra import tracing
from infra.crash_points import reach
from infra.database import Connection, Database
from infra.errors import Refusal, idempotency_conflict, unavailable
from infra.grouping import Grouper
from infra.heartbeat import Watchdog
from infra.identifiers import IdentifierSource
from protos.smsgateway.v1 import sms_gateway_pb2
from smsgateway.metrics import GROUP_SIZE, GROUP_WAIT_SECONDS, GROUP_WAITING
from smsgateway.rules import NO_LIMITS, Limits, black_listed, frequency_limited, opted_out
from smsgateway.schema import Mode, SuppressionKind
from smsgateway.settings import Settings
from smsgateway.settling import MessageSettler, now_ms
from smsgateway.store import accepting as store
from smsgateway.store import rule_checks
from smsgateway.store.accepting import Abandoned, Key, NewMessage
from smsgateway.store.rule_checks import Ask, Blocked
from smsgateway.terms import Night

log = structlog.get_logger(__name__)

_GROUP = "accept"


@dataclass(slots=True)
class Single:
    """A single message that a caller asks for, validated: the number in E.164, the final text counted.

    `content` what tells it from another under the same request_id: what was asked for, not what the rules made of it;
    `due_at`, `valid_from`, `valid_ms` and `night` as of `NewMessage`; `subject` and `limits` by which its number is
    counted, none set: it is not; `suppressed`: suppressions are to be looked up; `refusal` by a rule: only a call that
    was answered before gets another reply; `trace` a W3C traceparent, or empty.
    """

    brand_id: int
    request_id: str
    sms_type: int
    mobile: str
    text: str
    segments: int
    content: str = ""
    due_at: datetime | None = None
    valid_from: datetime | None = None
    valid_ms: int | None = None
    subject: str = ""
    limits: Limits = NO_LIMITS
    suppressed: bool = False
    refusal: Refusal | None = None
    night: Night | None = None
    trace: str = ""
    asked_at: float = field(default_factory=time.monotonic)

    def fingerprint(self) -> bytes:
        """What tells this content from another under the same request_id."""
        content = f"{self.sms_type}\0{self.mobile}\0{self.content}"
        return hashlib.sha256(content.encode()).digest()

    @property
    def is_judged_by_records(self) -> bool:
        """Whether it needs more than its own text to be judged."""
        return self.suppressed or bool(self.limits)


@dataclass(slots=True)
class _Call:
    """A message under way with everybody who waits for it: one caller, more when it repeats itself."""

    single: Single
    key: Key
    future: asyncio.Future[sms_gateway_pb2.SendSmsResponse] | None = None
    callers: int = 0
    repeated: bool = False


class SingleAcceptor:
    """Accepts single messages."""

    def __init__(
        self,
        database: Database,
        settler: MessageSettler,
        identifiers: IdentifierSource,
        settings: Settings,
        watchdog: Watchdog,
    ) -> None:
        self._database = database
        self._settler = settler
        self._identifiers = identifiers
        self._spans = tracing.active()
        self._calls: dict[tuple[int, str], _Call] = {}
        self._grouper: Grouper[_Call, sms_gateway_pb2.SendSmsResponse] = Grouper(
            self._accept,
            group_max=settings.accept_group_max,
            queue_max=settings.accept_queue_max,
            in_flight_max=settings.accept_groups_in_flight,
            gather_seconds=settings.accept_gather_seconds,
            name="queue of messages to accept",
            heartbeat=watchdog.heartbeat("accept-groups"),
        )
        GROUP_WAITING.labels(_GROUP).set_function(lambda: self._grouper.waiting)
        self._group_size = GROUP_SIZE.labels(_GROUP)
        self._group_wait = GROUP_WAIT_SECONDS.labels(_GROUP)

    async def send(self, single: Single) -> tuple[sms_gateway_pb2.SendSmsResponse, bool]:
        """Accept a message; return the reply and whether it was given before.

        A caller who is gone (cancelled) before its group starts leaves nothing behind; later its message is accepted.
        Raises the refusal of a rule; the cost centre's refusal as it came; ALREADY_EXISTS (IDEMPOTENCY_CONFLICT);
        RESOURCE_EXHAUSTED (OVERLOADED) when `accept_queue_max` messages wait; UNAVAILABLE when the same call with the
        same request_id settles it; the database's errors, which mean the same.
        """
        name = (single.brand_id, single.request_id)
        fingerprint = single.fingerprint()
        if single.refusal is not None:
            return await self._replied(single, single.refusal, fingerprint), True
        while (call := self._calls.get(name)) is not None and call.key.fingerprint != fingerprint:
            # Whether the request_id is taken is known when the first call has ended: a refusal does not take it.
            assert call.future is not None
            await asyncio.wait({call.future})
        if call is None:
            message_id = self._identifiers.new(single.brand_id, now_ms())
            if self._spans is not None:
                single.trace = self._spans.parent
                self._spans.note(message_id=message_id)
            call = _Call(single, Key(single.brand_id, Mode.SINGLE, single.request_id, message_id, fingerprint))
            call.future = self._grouper.submit_nowait(call)
            self._calls[name] = call
            call.future.add_done_callback(lambda _: self._calls.pop(name, None))
        return await self._reply(call)

    async def close(self) -> None:
        """Accept what waits, and nothing new."""
        await self._grouper.close()

    async def _replied(self, single: Single, refusal: Refusal, fingerprint: bytes) -> sms_gateway_pb2.SendSmsResponse:
        """The reply that the same call got before its text broke a rule; else the refusal is raised."""
        key = Key(single.brand_id, Mode.SINGLE, single.request_id, "", fingerprint)
        async with self._database.connection() as connection:
            found = (await store.find_keys(connection, [key])).get((key.brand_id, key.request_id))
        if found is None or found.fingerprint != fingerprint or found.reply is None:
            raise refusal
        return sms_gateway_pb2.SendSmsResponse.FromString(found.reply)

    async def _reply(self, call: _Call) -> tuple[sms_gateway_pb2.SendSmsResponse, bool]:
        assert call.future is not None
        call.callers += 1
        repeated = call.callers > 1
        try:
            reply = await asyncio.shield(call.future)
        except asyncio.CancelledError:
            call.callers -= 1
            if call.callers == 0:
                call.future.cancel()
            raise
        return reply, repeated or call.repeated

    async def _accept(self, calls: list[_Call]) -> Sequence[sms_gateway_pb2.SendSmsResponse | Exception]:
        self._group_size.observe(len(calls))
        self._group_wait.observe(time.monotonic() - calls[0].single.asked_at)
        outcomes: dict[int, sms_gateway_pb2.SendSmsResponse | Refusal] = {}
        reach("gateway.single.recording")
        open_calls, items = await self._record(calls, outcomes)
        reach("gateway.single.recorded")
        if items:
            settled = await self._settler.settle(items)
            outcomes.update((id(call), outcome) for call, outcome in zip(open_calls, settled, strict=True))
        return [outcomes[id(call)] for call in calls]

    async def _record(
        self, calls: list[_Call], outcomes: dict[int, sms_gateway_pb2.SendSmsResponse | Refusal]
    ) -> tuple[list[_Call], list[Abandoned]]:
        """Record what is new; tell what is known into `outcomes`; return the calls that are to be frozen."""
        calls = sorted(calls, key=lambda call: (call.key.brand_id, call.key.request_id))
        judged = any(call.single.is_judged_by_records for call in calls)
        # What is judged is recorded, counted, and forgotten again where it is refused, in one transaction.
        async with self._database.connection() if judged else self._database.statement() as connection:
            new = await store.record_messages(connection, [(call.key, _new_message(call)) for call in calls])
            if judged:
                await self._judge(connection, [call for call in calls if call.key.target_id in new], outcomes)
                reach("gateway.single.judged")
            old = [call for call in calls if call.key.target_id not in new]
            known = await store.find_keys(connection, [call.key for call in old]) if old else {}
            under_way = [
                Key(call.key.brand_id, call.key.operation, call.key.request_id, found.target_id, found.fingerprint)
                for call in old
                if (found := known.get((call.key.brand_id, call.key.request_id))) is not None and found.reply is None
            ]
            recorded = await store.accepting_messages(connection, under_way) if under_way else {}
        open_calls, items = [], []
        for call in calls:
            if id(call) in outcomes:
                continue
            single, target_id = call.single, call.key.target_id
            segments, held = single.segments, single.due_at is not None
            if target_id not in new:
                call.repeated = True
                found = known.get((call.key.brand_id, call.key.request_id))
                if found is None:
                    outcomes[id(call)] = unavailable("the first call of this request_id has just ended; call again")
                    continue
                if found.fingerprint != call.key.fingerprint:
                    outcomes[id(call)] = idempotency_conflict(call.key.request_id)
                    continue
                if found.reply is not None:
                    outcomes[id(call)] = sms_gateway_pb2.SendSmsResponse.FromString(found.reply)
                    continue
                target_id = found.target_id
                segments, held = recorded.get(target_id, (segments, held))
            open_calls.append(call)
            items.append(
                Abandoned(single.brand_id, target_id, single.request_id, single.sms_type, segments, held, single.trace)
            )
        return open_calls, items

    async def _judge(
        self,
        connection: Connection,
        calls: list[_Call],
        outcomes: dict[int, sms_gateway_pb2.SendSmsResponse | Refusal],
    ) -> None:
        """Forget those of these new calls that suppressions or frequencies refuse; tell it into `outcomes`."""
        asks = [
            Ask(
                call.single.brand_id,
                call.single.sms_type,
                call.single.subject,
                call.single.mobile,
                call.key.target_id,
                call.single.suppressed,
                call.single.limits,
            )
            for call in calls
        ]
        blocked = await rule_checks.check(connection, asks)
        if not blocked:
            return
        for place, why in blocked.items():
            outcomes[id(calls[place])] = blocked_refusal(why, calls[place].single.limits)
        await store.delete_accepting_messages(connection, [calls[place].key for place in sorted(blocked)])


def _new_message(call: _Call) -> NewMessage:
    single = call.single
    return NewMessage(
        single.brand_id,
        call.key.target_id,
        single.request_id,
        single.sms_type,
        single.mobile,
        single.text,
        single.segments,
        single.due_at,
        single.valid_from,
        single.valid_ms,
        single.subject if single.limits else None,
        single.night,
    )


def blocked_refusal(blocked: Blocked, limits: Limits) -> Refusal:
    """The refusal of a message that suppressions or frequencies stop."""
    if blocked.kind is SuppressionKind.BLACK_LIST:
        return black_listed()
    if blocked.kind is SuppressionKind.OPT_OUT:
        return opted_out()
    return frequency_limited(limits, blocked.sent_at, blocked.now)
