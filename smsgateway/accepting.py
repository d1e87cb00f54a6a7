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

import structlog

from infra.crash_points import reach
from infra.database import Database
from infra.errors import Refusal, idempotency_conflict, unavailable
from infra.grouping import Grouper
from infra.heartbeat import Watchdog
from infra.identifiers import IdentifierSource
from protos.smsgateway.v1 import sms_gateway_pb2
from smsgateway.metrics import GROUP_SIZE, GROUP_WAIT_SECONDS, GROUP_WAITING
from smsgateway.schema import Mode
from smsgateway.settings import Settings
from smsgateway.settling import MessageSettler, now_ms
from smsgateway.store import accepting as store
from smsgateway.store.accepting import Abandoned, Key, NewMessage

log = structlog.get_logger(__name__)

_GROUP = "accept"


@dataclass(slots=True)
class Single:
    """A single message that a caller asks for, validated: the number in E.164, the text counted."""

    brand_id: int
    request_id: str
    sms_type: int
    mobile: str
    text: str
    segments: int
    asked_at: float = field(default_factory=time.monotonic)

    def fingerprint(self) -> bytes:
        """What tells this content from another under the same request_id."""
        content = f"{self.sms_type}\0{self.mobile}\0{self.text}"
        return hashlib.sha256(content.encode()).digest()


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
        Raises the cost centre's refusal as it came; ALREADY_EXISTS (IDEMPOTENCY_CONFLICT); RESOURCE_EXHAUSTED
        (OVERLOADED) when `accept_queue_max` messages wait; UNAVAILABLE when the same call with the same request_id
        settles it; the database's errors, which mean the same.
        """
        name = (single.brand_id, single.request_id)
        fingerprint = single.fingerprint()
        while (call := self._calls.get(name)) is not None and call.key.fingerprint != fingerprint:
            # Whether the request_id is taken is known when the first call has ended: a refusal does not take it.
            assert call.future is not None
            await asyncio.wait({call.future})
        if call is None:
            message_id = self._identifiers.new(single.brand_id, now_ms())
            call = _Call(single, Key(single.brand_id, Mode.SINGLE, single.request_id, message_id, fingerprint))
            call.future = self._grouper.submit_nowait(call)
            self._calls[name] = call
            call.future.add_done_callback(lambda _: self._calls.pop(name, None))
        return await self._reply(call)

    async def close(self) -> None:
        """Accept what waits, and nothing new."""
        await self._grouper.close()

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
        async with self._database.statement() as connection:
            new = await store.record_messages(connection, [(call.key, _new_message(call)) for call in calls])
            old = [call for call in calls if call.key.target_id not in new]
            known = await store.find_keys(connection, [call.key for call in old]) if old else {}
        open_calls, items = [], []
        for call in calls:
            target_id = call.key.target_id
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
            open_calls.append(call)
            single = call.single
            items.append(Abandoned(single.brand_id, target_id, single.request_id, single.sms_type, single.segments))
        return open_calls, items


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
    )
