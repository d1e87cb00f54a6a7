"""A brand's busy life under a clock that the test moves, and a plain replay of its records to compare answers with."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from ledger_service import SECONDS, request_id, rows

from costcenter import reconciliation
from costcenter.book import Terms
from costcenter.engine import Engine, EngineLimits
from costcenter.operations import (
    ApplyRelease,
    BookDue,
    ClawBack,
    CreateOrder,
    Extend,
    FreezeSegments,
    Grant,
    Operation,
    OrderPaid,
    Pay,
    PutBrand,
    RecordReceipt,
    RequestRelease,
    SendStatus,
)
from costcenter.queries import Queries
from infra.database import LOOKUP_OPTIONS, Database
from infra.differences import Difference
from infra.errors import Refusal
from infra.heartbeat import Watchdog

TICK = timedelta(microseconds=1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
OFFER = "offer"
# Months of the zone that brands have.
MARCH, APRIL = (datetime(2024, month, 1, tzinfo=ZoneInfo("Asia/Shanghai")).astimezone(UTC) for month in (3, 4))


class Clock:
    """The engine's clock."""

    def __init__(self, start: datetime) -> None:
        self.now = start

    def __call__(self) -> datetime:
        return self.now


@asynccontextmanager
async def ledger(database_url: str, clock: Clock, **limits: Any) -> AsyncIterator[tuple[Engine, Queries]]:
    """An engine under a clock, and queries under the database's own, which is later."""
    async with _database(database_url, 4, LOOKUP_OPTIONS) as writes, _database(database_url, 2, "") as reads:
        engine = Engine(writes, terms=Terms(), limits=EngineLimits(**limits), watchdog=Watchdog(60), clock=clock)
        await engine.start()
        try:
            yield engine, Queries(reads, terms=Terms(), clock_offset_seconds=0)
        finally:
            await engine.stop()


@asynccontextmanager
async def _database(url: str, size: int, options: str) -> AsyncIterator[Database]:
    database = Database(url, size=size, wait_seconds=SECONDS, options=options)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@dataclass
class Life:
    """Random operations on one brand; `moments`: when; `ends`: when something of it ends."""

    engine: Engine
    clock: Clock
    brand_id: int
    random: random.Random
    ends: list[datetime] = field(default_factory=list)
    freezes: list[str] = field(default_factory=list)
    payments: list[tuple[str, int]] = field(default_factory=list)
    packages: list[int] = field(default_factory=list)
    releases: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    moments: list[datetime] = field(default_factory=list)
    # Seconds between two steps at most, but for jumps to an end.
    pace: int = 20_000

    async def offer(self) -> None:
        """The offer that brands buy: 40 segments for five days."""
        await rows(
            self.engine._database.url,
            "insert into package_offer values (%s, 'Offer', 40, 1, 'CNY', 5, null, '{}', true) on conflict do nothing",
            OFFER,
        )

    async def begin(self) -> None:
        """Create the brand, its first package and the offer that it buys."""
        await self.offer()
        await self.apply(PutBrand(self.brand_id, "", b"", "Brand", None, None, True))
        await self.grant()

    async def step(self) -> None:
        """Move the clock, often to the very moment of an end or just before it, and do something."""
        self._move()
        self.moments.append(self.clock.now)
        actions = [self.freeze] * 6 + [self.pay] * 6 + [self.status] * 4 + [self.release] * 2 + [self.grant, self.buy]
        actions += [self.receipt, self.claw_back, self.extend, self.apply_release, self.apply_release, self.sweep]
        await self.random.choice(actions)()

    async def apply(self, operation: Operation) -> Any:
        """Apply an operation; None when it is refused."""
        outcome = await self.engine.apply(operation)
        name = type(operation).__name__
        self.counts[outcome.reason if isinstance(outcome, Refusal) else name] += 1
        return None if isinstance(outcome, Refusal) else outcome

    def _move(self) -> None:
        coming = [end for end in self.ends if end > self.clock.now]
        chance = self.random.random()
        if chance < 0.2:
            return  # the same moment
        if chance < 0.4 and coming:
            end = min(coming)
            self.clock.now = max(self.clock.now, self.random.choice([end - TICK, end, end + TICK]))
        else:
            self.clock.now += timedelta(seconds=self.random.uniform(0, self.pace))

    async def grant(self) -> None:
        end = None
        if self.random.random() < 0.8:
            end = self.clock.now + timedelta(seconds=self.random.randint(1, 300_000))
            self.ends.append(end)
        types = self.random.choice([(), (), (3,), (1, 2)])
        operation = Grant(self.brand_id, request_id(), b"g", "author", "reason", self.random.randint(1, 60), end, types)
        reply = await self.apply(operation)
        # Another brand's life on the same clock may have passed the end meanwhile.
        if reply is not None:
            self.packages.append(reply.package.package_id)

    async def buy(self) -> None:
        order = await self.apply(CreateOrder(self.brand_id, request_id(), b"o", OFFER, None, ""))
        paid = OrderPaid(self.brand_id, "", b"", order.package_order_no, request_id(), Decimal(1), "CNY")
        reply = await self.apply(paid)
        self.packages.append(reply.package_id)
        self.ends.append(reply.expires_at)

    async def freeze(self) -> None:
        seconds = self.random.choice([600, 50_000, 200_000, 400_000])
        operation = FreezeSegments(
            self.brand_id, request_id(), b"f", self.random.randint(1, 3), self.random.randint(1, 20),
            timedelta(seconds=seconds),
        )  # fmt: skip
        reply = await self.apply(operation)
        if reply is not None:
            self.freezes.append(reply.order_no)
            self.ends.append(self.clock.now + timedelta(seconds=seconds))

    async def pay(self) -> None:
        if self.freezes:
            order_no = self.random.choice(self.freezes[-4:])
            segments = self.random.randint(1, 10)
            reply = await self.apply(Pay(self.brand_id, request_id(), b"p", order_no, segments))
            if reply is not None:
                self.payments.append((reply.payment_no, segments))

    async def release(self) -> None:
        if self.freezes:
            order_no, segments = self.random.choice(self.freezes[-4:]), self.random.randint(0, 8)
            reply = await self.apply(RequestRelease(self.brand_id, request_id(), b"r", order_no, segments))
            self.releases.append(reply.release_no)

    async def apply_release(self) -> None:
        if self.releases:
            await self.apply(ApplyRelease(self.brand_id, "", b"", self.random.choice(self.releases)))

    async def extend(self) -> None:
        if self.freezes:
            span = timedelta(seconds=self.random.randint(1, 100_000))
            reply = await self.apply(Extend(self.brand_id, request_id(), b"e", self.freezes[-1], span))
            if reply is not None:
                self.ends.append(self.clock.now + span)

    async def status(self) -> None:
        if self.payments:
            payment_no, segments = self.random.choice(self.payments)
            message = f"m{self.random.randint(1, 3)}"
            failed = [(message, self.random.randint(1, segments))]
            await self.apply(SendStatus(self.brand_id, request_id(), b"s", payment_no, failed))

    async def receipt(self) -> None:
        if self.payments:
            payment_no, segments = self.random.choice(self.payments)
            operation = RecordReceipt(
                self.brand_id, request_id(), b"c", payment_no, f"m{self.random.randint(1, 3)}",
                self.random.randint(1, segments), self.random.randint(1, 4), "CODE", None,
            )  # fmt: skip
            await self.apply(operation)

    async def claw_back(self) -> None:
        segments = self.random.choice([None, 1, 5])
        package_id = self.random.choice(self.packages)
        await self.apply(ClawBack(self.brand_id, request_id(), b"b", "author", "reason", package_id, segments))

    async def sweep(self) -> None:
        await self.apply(BookDue(self.brand_id, "", b""))


class Script:
    """A brand's life, played moment by moment."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.clock = life.clock

    async def do(self, at: datetime, kind: Any, *arguments: Any) -> Any:
        """Apply an operation at a moment; it must not be refused."""
        self.clock.now = at
        reply = await self.life.apply(kind(self.life.brand_id, request_id(), b"x", *arguments))
        assert reply is not None, (kind, self.life.counts)
        return reply

    async def buy(self, at: datetime) -> int:
        """A package of 40 for five days."""
        order = await self.do(at, CreateOrder, OFFER, None, "")
        paid = await self.do(at, OrderPaid, order.package_order_no, request_id(), Decimal(1), "CNY")
        package_id: int = paid.package_id
        return package_id

    async def charge(self, at: datetime, segments: int) -> str:
        """A freeze paid whole."""
        frozen = await self.do(at, FreezeSegments, 3, segments, HOUR)
        paid = await self.do(at, Pay, frozen.order_no, segments)
        payment_no: str = paid.payment_no
        return payment_no


async def busy_march(life: Life) -> None:
    """Every kind of record in March, some exactly at its borders, and what belongs to February and April."""
    script = Script(life)
    await script.do(MARCH - DAY, PutBrand, "Busy", None, None, True)
    await script.do(MARCH - DAY, Grant, "author", "reason", 1_000, None, ())
    first = await script.charge(MARCH - TICK, 10)
    # At the border itself: March's.
    await script.do(MARCH, Grant, "author", "reason", 7, APRIL, ())
    await script.buy(MARCH + HOUR)
    await script.do(MARCH + 2 * HOUR, SendStatus, first, [("failed-late", 4)])
    of_package = await script.charge(MARCH + DAY, 30)
    held = await script.do(MARCH + 2 * DAY, FreezeSegments, 3, 12, 7 * DAY)
    # The bought package ends after five days; what it paid comes back later.
    await script.do(MARCH + 7 * DAY, SendStatus, of_package, [("after-its-end", 5)])
    release = await script.do(MARCH + 8 * DAY, RequestRelease, held.order_no, 4)
    await script.do(MARCH + 8 * DAY, ApplyRelease, release.release_no)
    life.random.seed(7)
    for _ in range(250):
        await life.step()
        assert life.clock.now < APRIL - 5 * DAY
    await script.do(APRIL - 4 * DAY, Grant, "author", "reason", 50, None, ())
    ((generous,),) = await rows(
        life.engine._database.url,
        f"select max(package_id) from package_queue where brand_id = {life.brand_id}",
    )
    await script.do(APRIL - 3 * DAY, ClawBack, "author", "reason", generous, 20)
    lasting = await script.do(APRIL - HOUR, FreezeSegments, 3, 5, HOUR - TICK)
    await script.do(APRIL - 2 * TICK, Pay, lasting.order_no, 2)
    of_april = await script.charge(APRIL, 3)
    await script.do(APRIL, SendStatus, of_april, [("failed-in-april", 1)])
    await script.do(APRIL + DAY, Grant, "author", "reason", 9, None, ())


async def differences(database_url: str) -> list[Difference]:
    """What reconcile finds in the ledger's own figures."""
    async with _database(database_url, 2, "") as database, database.snapshot() as connection:
        return [found async for found in reconciliation.check(connection, 0, 2**63 - 1)]


@dataclass(frozen=True)
class Step:
    """A record as a step of the replay, with every package's figures after it: package: (remaining, held)."""

    record_no: int
    at: datetime
    table: str
    number: str
    segments: int
    packages: dict[int, tuple[int, int]]

    @property
    def balance(self) -> tuple[int, int]:
        """(total, frozen)."""
        return sum(each[0] for each in self.packages.values()), sum(each[1] for each in self.packages.values())


class Replay:
    """A brand's records, played from the first on, segment by segment and package by package."""

    def __init__(self, steps: list[Step], ends: dict[int, datetime | None], types: dict[int, list[int]]) -> None:
        self.steps = steps
        self._moments = [step.at for step in steps]
        self._ends = ends
        self._types = types

    def upto(self, moment: datetime) -> Step | None:
        """The last record up to and with a moment."""
        place = bisect_right(self._moments, moment)
        return self.steps[place - 1] if place else None

    def balance(self, moment: datetime) -> tuple[int, int]:
        """(total, frozen) at a moment."""
        step = self.upto(moment)
        return step.balance if step else (0, 0)

    def available(self, moment: datetime, sms_type: int | None = None) -> int:
        """What may be frozen at a moment, for a type or for any."""
        step = self.upto(moment)
        available = 0
        for package_id, (remaining, held) in (step.packages if step else {}).items():
            end, types = self._ends[package_id], self._types[package_id]
            if end is not None and end <= moment:
                assert remaining == held, "what is not held of a package has gone at its end"
            elif sms_type is None or not types or sms_type in types:
                available += remaining - held
        return available


# Every record: number, moment, table, kind, the number that names it, packages, segments, targets, the freeze's number.
_RECORDS = """
select record_no, created_at, 'freeze', 0, order_no, line_packages, line_segments, '{}'::bigint[], order_no
from costcenter.freeze where brand_id = %(brand)s
union all
select record_no, created_at, 'payment', 0, payment_no, line_packages, line_segments, '{}', order_no
from payment where brand_id = %(brand)s
union all
select record_no, created_at, 'refund', 0, payment_no, line_packages, line_segments, line_targets, ''
from refund where brand_id = %(brand)s
union all
select record_no, at, 'entry', kind, reference, array[package_id], array[segments], '{}', ''
from entry where brand_id = %(brand)s
order by 1
"""

# By how much a segment of an entry changes (remaining, held) of its package.
_ENTRIES = {1: (1, 0), 2: (-1, 0), 3: (-1, 0), 4: (0, -1), 5: (0, -1), 6: (-1, 0)}
_OTHERS = {"freeze": (0, 1), "payment": (-1, -1), "refund": (1, 0)}


async def replay(database_url: str, brand_id: int) -> Replay:
    """Play a brand's records."""
    found = await rows(database_url, _RECORDS.replace("%(brand)s", str(brand_id)))
    packages: dict[int, tuple[int, int]] = {}
    steps = []
    for record_no, at, name, kind, number, ids, counts, targets, _ in found:
        effect = _ENTRIES[kind] if name == "entry" else _OTHERS[name]
        for place, (package_id, count) in enumerate(zip(ids, counts, strict=True)):
            if name == "refund" and targets[place] not in {None, package_id}:
                continue  # it went to a package of its own, which has a record of its own
            remaining, held = packages.get(package_id, (0, 0))
            packages[package_id] = (remaining + effect[0] * count, held + effect[1] * count)
        steps.append(Step(record_no, at, name, number, sum(counts), dict(packages)))
    described = await rows(
        database_url, f"select package_id, expires_at, sms_types from package_queue where brand_id = {brand_id}"
    )
    return Replay(steps, {row[0]: row[1] for row in described}, {row[0]: row[2] for row in described})
