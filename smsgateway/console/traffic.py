"""How it goes, from a sample of messages: how many arrive, and how fast. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from smsgateway.schema import MessageState
from smsgateway.store.overview import Recent, Sampled

_ARRIVED: Final = frozenset({MessageState.DELIVERED})
_NOT_ARRIVED: Final = frozenset({MessageState.UNDELIVERED, MessageState.EXPIRED, MessageState.FAILED})
# A receipt came, so the time to it is known.
_ANSWERED: Final = frozenset({MessageState.DELIVERED, MessageState.UNDELIVERED})


@dataclass(frozen=True, slots=True)
class Quality:
    """What became of the messages of a sample.

    Attributes:
        sampled: messages looked at.
        success: share of those delivered among those that ended, cancelled ones left out; None: none has ended.
        seconds_p50: half of the receipts came within so long after the message's acceptance; None: none came.
        seconds_p95: the same of 19 in 20.
        waiting: share of the messages that have not ended.
    """

    sampled: int
    success: float | None
    seconds_p50: float | None
    seconds_p95: float | None
    waiting: float


def quality(sampled: Sequence[Sampled]) -> Quality:
    """The shares and times of a sample, each message counted for as many as it stands for."""
    arrived = sum(each.weight for each in sampled if each.state in _ARRIVED)
    ended = arrived + sum(each.weight for each in sampled if each.state in _NOT_ARRIVED)
    cancelled = sum(each.weight for each in sampled if each.state == MessageState.CANCELLED)
    whole = sum(each.weight for each in sampled)
    times = sorted(
        (each.seconds, each.weight) for each in sampled if each.state in _ANSWERED and each.seconds is not None
    )
    return Quality(
        sampled=len(sampled),
        success=arrived / ended if ended else None,
        seconds_p50=_quantile(times, 0.5),
        seconds_p95=_quantile(times, 0.95),
        waiting=max(0.0, whole - ended - cancelled) / whole if whole else 0.0,
    )


def per_second(recent: Recent, *, seconds: float, limit: int) -> float:
    """Messages accepted a second: over the whole span, or as far back as the last `limit` requests reach."""
    if recent.requests >= limit and recent.seconds:
        return recent.messages / recent.seconds
    return recent.messages / seconds


def _quantile(times: Sequence[tuple[float, float]], share: float) -> float | None:
    """The least time within which that share of the weight lies; `times` (seconds, weight), ascending."""
    left = share * sum(weight for _, weight in times)
    for seconds, weight in times:
        left -= weight
        if left <= 0:
            return seconds
    return times[-1][0] if times else None
