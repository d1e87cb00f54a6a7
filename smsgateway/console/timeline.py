"""A message's life as steps, each with its moment where one was recorded. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from smsgateway.following import FINAL_STATES
from smsgateway.schema import MessageState


class StepState(enum.StrEnum):
    """How a step stands."""

    DONE = "done"
    NOW = "now"
    NEXT = "next"
    SKIPPED = "skipped"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `name` is a word of the templates; `identifiers` are (word, id, address of its page or empty)."""

    name: str
    state: StepState
    at: datetime | None = None
    seconds: float | None = None  # since the first step
    detail: str = ""
    identifiers: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Life:
    """What is known of a message in all places; what is not known is None or empty.

    `stream_entry` is the id of its entry in Redis, which is a moment in milliseconds; it goes with the dispatch, so the
    moment of queueing is known until the carrier has answered and not after.
    """

    message_id: str
    state: int
    accepted_at: datetime
    batch_id: str = ""
    request_id: str = ""
    dispatch_id: str = ""
    order_no: str = ""
    frozen_at: datetime | None = None
    frozen_segments: int = 0
    stream_entry: str = ""
    due_at: datetime | None = None
    paused: bool = False
    parked: bool = False
    payment_no: str = ""
    paid_at: datetime | None = None
    account: str = ""
    call_id: str = ""
    submitted_at: datetime | None = None
    sent_at: datetime | None = None
    carrier_message_id: str = ""
    result_code: str = ""
    result_detail: str = ""
    finished_at: datetime | None = None
    refunded: int = 0
    refunded_at: datetime | None = None

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it but a refund that is on its way."""
        return self.state in FINAL_STATES


_Known = tuple[datetime | None, str, Sequence[tuple[str, str, str]]]
_State = MessageState
# The step that a message is at, by its state, for those that are not final.
_AT: Final = {
    _State.ACCEPTING: "frozen",
    _State.QUEUED: "queued",
    _State.CLAIMED: "paid",
    _State.SUBMITTING: "submitted",
    _State.UNKNOWN: "sent",
    _State.SENT: "receipt",
}
_ORDER: Final = ("accepted", "frozen", "queued", "paid", "submitted", "sent", "receipt")
_GOOD: Final = frozenset({_State.DELIVERED})
_NOT_SENT: Final = frozenset({_State.FAILED, _State.CANCELLED})


def timeline(life: Life) -> list[Step]:
    """The steps of a message's life, in order.

    What happened is done, whether its moment was recorded or not; of one that was not sent the rest is skipped, and its
    end is a step of its own.
    """
    reached = _reached(life)
    steps = [_step(life, name, known, place, reached) for place, (name, known) in enumerate(_known(life).items())]
    if life.state in _NOT_SENT:
        steps.append(_end(life))
    if life.refunded:
        steps.append(
            Step("refunded", StepState.DONE, life.refunded_at, _seconds(life, life.refunded_at), str(life.refunded))
        )
    return steps


def queued_at(stream_entry: str) -> datetime | None:
    """The moment of an entry of a stream in Redis: its id begins with milliseconds since 1970."""
    milliseconds, dash, _ = stream_entry.partition("-")
    if not dash or not milliseconds.isascii() or not milliseconds.isdigit() or len(milliseconds) > 15:
        return None
    return datetime.fromtimestamp(int(milliseconds) / 1_000, UTC)


def _reached(life: Life) -> int:
    """How many steps are done."""
    if not life.is_final:
        return _ORDER.index(_AT[MessageState(life.state)])
    # Whatever is final was queued; beyond that it did what its record shows.
    done = (True, True, True, life.payment_no, life.submitted_at, life.sent_at, life.state not in _NOT_SENT)
    return max(place + 1 for place, known in enumerate(done) if known)


def _step(life: Life, name: str, known: _Known, place: int, reached: int) -> Step:
    if place < reached:
        state = StepState.DONE
        if name == "receipt" and life.is_final and life.state not in _GOOD:
            state = StepState.BAD
    elif life.is_final:
        state = StepState.SKIPPED
    elif place == reached:
        state = StepState.NOW
    else:
        state = StepState.NEXT
    if state in (StepState.SKIPPED, StepState.NEXT):
        return Step(name, state)
    at, detail, identifiers = known
    found = tuple((word, value, path) for word, value, path in identifiers if value)
    return Step(name, state, at, _seconds(life, at), detail, found)


def _known(life: Life) -> dict[str, _Known]:
    """Of each step its moment, a detail and the ids that it made, as far as they are known."""
    waits = "scheduled" if life.due_at is not None and not life.stream_entry else ""
    # A single message's dispatch has the message's id.
    dispatch = life.dispatch_id if life.dispatch_id != life.message_id else ""
    carried = [("carrier_message_id", part, "") for part in life.carrier_message_id.split()]
    answered = life.is_final and life.state not in _NOT_SENT
    return {
        "accepted": (
            life.accepted_at,
            "",
            [
                ("message_id", life.message_id, ""),
                ("request_id", life.request_id, ""),
                ("batch_id", life.batch_id, f"/batches/{life.batch_id}"),
            ],
        ),
        "frozen": (life.frozen_at, "", [("order_no", life.order_no, f"/freezes/{life.order_no}")]),
        "queued": (
            queued_at(life.stream_entry),
            "parked" if life.parked else "paused" if life.paused else waits,
            [("dispatch_id", dispatch, ""), ("stream_entry", life.stream_entry, "")],
        ),
        "paid": (life.paid_at, "", [("payment_no", life.payment_no, f"/payments/{life.payment_no}")]),
        "submitted": (life.submitted_at, life.account, [("call_id", life.call_id, "")]),
        "sent": (life.sent_at, "", carried),
        "receipt": (life.finished_at, _result(life), []) if answered else (None, "", []),
    }


def _end(life: Life) -> Step:
    """How a message ended that was not sent."""
    name = MessageState(life.state).name.lower()
    return Step(name, StepState.BAD, life.finished_at, _seconds(life, life.finished_at), _result(life))


def _result(life: Life) -> str:
    return " ".join(filter(None, (life.result_code, life.result_detail)))


def _seconds(life: Life, at: datetime | None) -> float | None:
    return None if at is None else (at - life.accepted_at).total_seconds()
