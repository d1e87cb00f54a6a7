"""A brand's statement: what changed its balance in a period, in sums and record by record. No I/O.

Records are lines as they are stored: a freeze, a payment, a refund or an entry of the journal. Every one changes the
total or what is frozen, by an amount that follows from its kind, so the closing balance follows from the opening one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from costcenter.lines import Line
from costcenter.model import EntryKind, PackageSource
from infra.errors import invalid

# A year and a day: longer ones are asked in parts, so that no call reads without bound.
PERIOD_MAX = timedelta(days=366)
# The database tells no moments apart that are closer.
TICK = timedelta(microseconds=1)

_MONTH = re.compile(r"([0-9]{4})-([0-9]{2})")


class StatementKind(enum.IntEnum):
    """The numbers of `costcenter.v1.StatementKind`."""

    PURCHASE = 1
    GRANT = 2
    REFUND_PACKAGE = 3
    CLAW_BACK = 4
    FREEZE = 5
    PAYMENT = 6
    REFUND = 7
    RELEASE = 8
    TIME_OUT = 9
    EXPIRE = 10
    EXPIRE_BACK = 11


# By how much one segment of a record changes the total and what is frozen.
_EFFECTS = {
    StatementKind.PURCHASE: (1, 0),
    StatementKind.GRANT: (1, 0),
    StatementKind.REFUND_PACKAGE: (1, 0),
    StatementKind.CLAW_BACK: (-1, 0),
    StatementKind.FREEZE: (0, 1),
    StatementKind.PAYMENT: (-1, -1),
    StatementKind.REFUND: (1, 0),
    StatementKind.RELEASE: (0, -1),
    StatementKind.TIME_OUT: (0, -1),
    StatementKind.EXPIRE: (-1, 0),
    StatementKind.EXPIRE_BACK: (-1, 0),
}

_GRANTS = {
    PackageSource.ORDER: StatementKind.PURCHASE,
    PackageSource.GRANT: StatementKind.GRANT,
    PackageSource.REFUND: StatementKind.REFUND_PACKAGE,
}
_ENTRIES = {
    EntryKind.CLAW_BACK: StatementKind.CLAW_BACK,
    EntryKind.EXPIRE: StatementKind.EXPIRE,
    EntryKind.RELEASE: StatementKind.RELEASE,
    EntryKind.TIME_OUT: StatementKind.TIME_OUT,
    EntryKind.EXPIRE_BACK: StatementKind.EXPIRE_BACK,
}


def kind_of_entry(kind: int, source: int) -> StatementKind:
    """The kind of a journal's entry, by its own kind and its package's source."""
    return _GRANTS[PackageSource(source)] if kind == EntryKind.GRANT else _ENTRIES[EntryKind(kind)]


@dataclass(frozen=True, slots=True)
class Balance:
    """A balance at a border of a period."""

    total: int
    frozen: int


@dataclass(frozen=True, slots=True)
class Period:
    """[start, end)."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Record:
    """One record. `moved`: segments of a refund that went to a package of their own, which has a record of its own."""

    record_no: int
    at: datetime
    kind: StatementKind
    number: str
    request_id: str
    message_id: str
    sms_type: int
    segments: int
    moved: int
    lines: list[Line]

    @property
    def change(self) -> tuple[int, int]:
        """By how much it changes the total and what is frozen."""
        total, frozen = _EFFECTS[self.kind]
        return total * (self.segments - self.moved), frozen * self.segments


@dataclass(frozen=True, slots=True)
class StatementLine:
    """A record with the balance after it."""

    record: Record
    after: Balance


@dataclass(slots=True)
class Sums:
    """Number and segments of the records of each kind."""

    counts: dict[StatementKind, int] = field(default_factory=dict)
    segments: dict[StatementKind, int] = field(default_factory=dict)

    def add(self, kind: StatementKind, count: int, segments: int) -> None:
        """Note records of a kind."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.segments[kind] = self.segments.get(kind, 0) + segments

    def of(self, *kinds: StatementKind) -> int:
        """Segments of some kinds."""
        return sum(self.segments.get(kind, 0) for kind in kinds)

    @property
    def records(self) -> int:
        """Number of all records."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Statement:
    """A period in sums. `closed`: it is over, so nothing of it can change any more."""

    brand_id: int
    time_zone: str
    period: Period
    closed: bool
    opening: Balance
    closing: Balance
    sums: Sums


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of lines starts: behind a record, with the balance after that; and where the statement ends."""

    end: datetime
    at: datetime
    record_no: int
    after: Balance


def month(text: str, time_zone: str) -> Period:
    """A month such as 2026-10 in a time zone. Raises INVALID_ARGUMENT (BAD_REQUEST) for what is none."""
    match = _MONTH.fullmatch(text)
    year, number = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    # The first and last years are left out: there a zone's offset would leave the calendar.
    if not 1 <= number <= 12 or not 1 < year < 9_999:
        raise invalid(month="must be a month such as 2026-10")
    zone = ZoneInfo(time_zone)
    following = (year + 1, 1) if number == 12 else (year, number + 1)
    # Where midnight is left out or comes twice, the month begins with the first moment of its first day.
    start, end = (datetime(*first, 1, tzinfo=zone).astimezone(UTC) for first in ((year, number), following))
    return Period(start, end)


def running(records: Iterable[Record], balance: Balance) -> Iterator[StatementLine]:
    """Records in their order with the balance after each, from the balance before the first."""
    for record in records:
        total, frozen = record.change
        balance = Balance(balance.total + total, balance.frozen + frozen)
        yield StatementLine(record, balance)
