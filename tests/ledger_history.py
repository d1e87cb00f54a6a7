"""A brand's busy life under a clock that the test moves, and a plain replay of its records to compare answers with."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from ledger_service import SECONDS, request_id, rows

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
from infra.errors import Refusal

TICK = timedelta(microseconds=1)
OFFER = "offer"


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
        engine = Engine(writes, terms=Terms(), limits=EngineLimits(**limits), clock=clock)
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
