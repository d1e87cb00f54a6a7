"""What usage figures are and how they are grouped. No I/O.

A message belongs to the hour (UTC) in which it was accepted, whatever becomes of it later, so a month's figures are
those of the month's messages. Days and months are those of a time zone; in a zone that is not whole hours from UTC they
begin with the hour in which midnight falls.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo


class Unit(enum.IntEnum):
    """How long the times are that figures are told for; the numbers of `smsgateway.v1.UsageUnit`."""

    HOUR = 1
    DAY = 2
    MONTH = 3

    @property
    def word(self) -> str:
        """Its name in PostgreSQL and on command lines."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Figures:
    """Messages by what became of them, and their segments.

    `waiting`: in a queue or at the carrier; `unknown`: nobody knows yet whether the carrier took them; `sent`: no final
    receipt yet. Those and the final ones make `messages`. `refunded`: what they were charged was given back.
    """

    messages: int = 0
    segments: int = 0
    waiting: int = 0
    unknown: int = 0
    delivered: int = 0
    delivered_segments: int = 0
    undelivered: int = 0
    undelivered_segments: int = 0
    expired: int = 0
    expired_segments: int = 0
    failed: int = 0
    failed_segments: int = 0
    cancelled: int = 0
    cancelled_segments: int = 0
    refunded: int = 0
    refunded_segments: int = 0

    @property
    def sent(self) -> int:
        """Messages that the carrier took and whose receipt is not here yet."""
        settled = self.delivered + self.undelivered + self.expired + self.failed + self.cancelled
        return self.messages - self.waiting - self.unknown - settled


FIGURES: Sequence[str] = tuple(field.name for field in fields(Figures))


@dataclass(frozen=True, slots=True)
class Query:
    """Which figures are asked for. The hours are those that begin in [`start`, `end`); `sms_types` and `accounts` none:
    all. Without `by_brand` figures are of all `brand_ids` together, and so with the other two.
    """

    brand_ids: Sequence[int]
    start: datetime
    end: datetime
    unit: Unit
    zone: str
    sms_types: Sequence[int] = ()
    accounts: Sequence[str] = ()
    by_brand: bool = True
    by_type: bool = False
    by_account: bool = False


Key = tuple[int, datetime, int, str]
"""Brand (0: all), first moment, type (0: all), carrier account (empty: all, or none was asked)."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Figures of a brand (0: all asked for), time, type (0) and carrier account ("")."""

    brand_id: int
    start: datetime
    sms_type: int
    account: str
    figures: Figures
    recipients: int | None = None
    counted_at: datetime | None = None

    @property
    def key(self) -> Key:
        """Where the page after it starts."""
        return self.brand_id, self.start, self.sms_type, self.account


def day_of(moment: datetime, zone: str) -> tuple[datetime, datetime]:
    """The day of a moment in a time zone: its first moment, and that of the next day."""
    local = moment.astimezone(ZoneInfo(zone))
    first = datetime(local.year, local.month, local.day, tzinfo=local.tzinfo)
    # The next day's noon is in the next day, however long this one is.
    after = (datetime(local.year, local.month, local.day) + timedelta(days=1)).date()
    last = datetime(after.year, after.month, after.day, tzinfo=local.tzinfo)
    return first.astimezone(UTC), last.astimezone(UTC)


def units_between(start: datetime, end: datetime, unit: Unit) -> int:
    """How many units a time has at most."""
    hours = (end - start) / timedelta(hours=1)
    match unit:
        case Unit.HOUR:
            return int(hours) + 1
        case Unit.DAY:
            return int(hours / 24) + 1
        case Unit.MONTH:
            return int(hours / (28 * 24)) + 1
