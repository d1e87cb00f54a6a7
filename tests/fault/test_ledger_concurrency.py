"""Aim: many callers of several cost centres get what one caller after another could have got, whatever happens to a
process meanwhile. Method: real processes on one database, callers with mixed operations on few brands, short times to
live, repeats with the same and with other content at the other process; the history of calls and replies is checked
against the oracle (ledger_calls). SMSBILL_TEST_SEED repeats a run's choices, SMSBILL_TEST_CALLS makes it longer.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from ledger_calls import SETTLE_SECONDS, Call, Check, History
from ledger_oracle import ACTIVE, SUSPENDED, Reply
from ledger_processes import CostCenterProcess, running_process
from ledger_service import rows
from ledger_wire import is_unknown, outcome_of

from costcenter import reconciliation
from infra.errors import Refusal

CALLERS = 16
CALLS = int(os.environ.get("SMSBILL_TEST_CALLS", "700"))
BRANDS = (1, 2, 3, 9)  # Three lanes, and a brand that shares one.
HOLD_SECONDS = 1.0
# A crowd that is ended when it is enough makes some hundred calls a second.
CALLS_MAX = 20_000
# Under load a process is in a transaction most of the time.
STOPS_MAX = 100
MESSAGES = ("m1", "m2", "m3", "m4", "m5")


def seeded(name: str) -> random.Random:
    """Choices that the environment can repeat; what the machine does in between it cannot."""
    seed = os.environ.get("SMSBILL_TEST_SEED") or str(random.randrange(10**6))
    print(f"{name}: SMSBILL_TEST_SEED={seed}")  # noqa: T201 - pytest shows it with a failure
    return random.Random(seed)


@dataclass
class Brand:
    """What the callers know of a brand."""

    brand_id: int
    freezes: list[tuple[str, int]] = field(default_factory=list)
    payments: list[tuple[str, int]] = field(default_factory=list)
    packages: int = 0
    # Whoever changes the brand does so alone, so that its changes have an order.
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    # Requests to release a freeze have an order too: one after another.
    releasing: set[str] = field(default_factory=set)


@dataclass
class Crowd:
    """Callers on some processes and brands."""

    history: History
    choices: random.Random
    brands: list[Brand]
    suspends: bool = True
    made: int = 0
    # Ends `run` before its number of calls is made.
    enough: bool = False
    progress: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def open(self, segments: int = 250) -> None:
        """Brands with a package each."""
        for brand in self.brands:
            brand_id = brand.brand_id
            await self.call("PutBrand", brand_id=brand_id, name="Brand", refund_undelivered=brand_id % 2 == 1)
            await self._adjust(brand, grant={"segments": segments})

    async def run(self, calls: int) -> None:
        """So many calls by all callers together, or until it is enough."""
        end = self.made + calls

        async def caller() -> None:
            while self.made < end and not self.enough:
                await self._one()
                async with self.progress:
                    self.made += 1
                    self.progress.notify_all()

        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(caller())

    async def reach(self, made: int) -> None:
        """Wait until so many calls were made."""
        async with self.progress, asyncio.timeout(60):
            await self.progress.wait_for(lambda: self.made >= made)

    async def call(self, method: str, **request: Any) -> Reply | Refusal:
        """Make a call, some of them twice, some with too short a deadline, some in a fight with another content."""
        choices, processes = self.choices, self.history.processes
        process, other = choices.sample(processes, 2) if len(processes) > 1 else processes * 2
        call = self.history.new(method, **request)
        timeout = 0.003 if choices.random() < 0.05 and method != "PutBrand" else 20
        if "request_id" not in request or choices.random() < 0.7:
            return await self.history.settle(call, process, timeout)
        if choices.random() < 0.3:
            changed = self.history.new(method, **_changed(request))
            outcome, _ = await asyncio.gather(
                self.history.settle(call, process, timeout), self.history.settle(changed, other)
            )
            return outcome
        outcome, _ = await asyncio.gather(self.history.settle(call, process, timeout), self.history.settle(call, other))
        return outcome

    async def _one(self) -> None:
        brand = self.choices.choice(self.brands)
        actions: dict[Callable[[Brand], Awaitable[None]], int] = {
            self._freeze: 30,
            self._pay: 25,
            self._release: 10,
            self._apply: 5,
            self._extend: 5,
            self._status: 12,
            self._receipt: 10,
            self._grant: 3,
            self._claw_back: 3,
            self._read: 5,
            self._sweep: 2,
            self._suspend: 1 if self.suspends else 0,
        }
        action = self.choices.choices([*actions], [*actions.values()])[0]
        await action(brand)

    def new_id(self) -> str:
        """A request_id that no other call has."""
        return f"r{len(self.history.calls)}"

    async def _freeze(self, brand: Brand) -> None:
        segments = self.choices.randint(1, 40)
        request: dict[str, Any] = {"sms_type": self.choices.randint(1, 3), "segments": segments}
        if self.choices.random() < 0.8:
            request["time_to_live"] = timedelta(milliseconds=self.choices.choice((30, 100, 300, 900)))
        reply = await self.call("SmsSendPrePay", brand_id=brand.brand_id, request_id=self.new_id(), **request)
        if isinstance(reply, dict):
            brand.freezes.append((reply["order_no"], segments))

    def _some_freeze(self, brand: Brand) -> tuple[str, int] | None:
        # Mostly a late one: it may be open.
        return self.choices.choice(brand.freezes[-8:]) if brand.freezes else None

    async def _pay(self, brand: Brand) -> None:
        freeze = self._some_freeze(brand)
        if freeze is None:
            return
        segments = self.choices.choice((freeze[1], self.choices.randint(1, freeze[1])))
        reply = await self.call(
            "SmsSendPay", brand_id=brand.brand_id, request_id=self.new_id(), order_no=freeze[0], segments=segments
        )
        if isinstance(reply, dict):
            brand.payments.append((reply["payment_no"], segments))

    async def _release(self, brand: Brand) -> None:
        freeze = self._some_freeze(brand)
        if freeze is None or freeze[0] in brand.releasing:
            return
        brand.releasing.add(freeze[0])
        segments = self.choices.choice((0, self.choices.randint(1, freeze[1])))
        await self.call(
            "SmsReleaseFreezeNum",
            brand_id=brand.brand_id,
            request_id=self.new_id(),
            order_no=freeze[0],
            segments=segments,
        )
        brand.releasing.discard(freeze[0])
        if self.choices.random() < 0.5:
            await self._apply(brand)

    async def _apply(self, _: Brand) -> None:
        await self.call("ApplyReleases")

    async def _extend(self, brand: Brand) -> None:
        freeze = self._some_freeze(brand)
        if freeze is not None:
            await self.call(
                "ExtendFreeze",
                brand_id=brand.brand_id,
                request_id=self.new_id(),
                order_no=freeze[0],
                time_to_live=timedelta(milliseconds=self.choices.randint(1, 900)),
            )

    async def _status(self, brand: Brand) -> None:
        if brand.payments:
            payment_no, segments = self.choices.choice(brand.payments[-12:])
            failed = self.choices.sample(MESSAGES, self.choices.randint(0, 3))
            named = [
                {"message_id": each, "segments": self.choices.randint(1, max(1, segments // 2))} for each in failed
            ]
            await self.call(
                "SmsSendStatusCallBack",
                brand_id=brand.brand_id,
                request_id=self.new_id(),
                payment_no=payment_no,
                failed=named,
            )

    async def _receipt(self, brand: Brand) -> None:
        if brand.payments:
            payment_no, segments = self.choices.choice(brand.payments[-12:])
            await self.call(
                "SmsReceiptStatusCallBack",
                brand_id=brand.brand_id,
                request_id=self.new_id(),
                payment_no=payment_no,
                message_id=self.choices.choice(MESSAGES),
                segments=self.choices.randint(1, max(1, segments // 2)),
                state=self.choices.randint(1, 4),
            )

    async def _grant(self, brand: Brand) -> None:
        grant: dict[str, Any] = {"segments": self.choices.randint(50, 300)}
        if self.choices.random() < 0.8:
            grant["expires_at"] = datetime.now(UTC) + timedelta(milliseconds=self.choices.randint(1, 1_500))
        if self.choices.random() < 0.3:
            grant["sms_types"] = [self.choices.randint(1, 3)]
        await self._adjust(brand, grant=grant)

    async def _claw_back(self, brand: Brand) -> None:
        package_id = self.choices.randint(1, brand.packages + 1)
        if self.choices.random() < 0.2:
            await self._adjust(brand, return_package={"package_id": package_id})
        else:
            segments = self.choices.randint(1, 60)
            await self._adjust(brand, claw_back={"package_id": package_id, "segments": segments})

    async def _adjust(self, brand: Brand, **adjustment: Any) -> None:
        reply = await self.call(
            "AdjustPackage", brand_id=brand.brand_id, request_id=self.new_id(), author="a", reason="r", **adjustment
        )
        if isinstance(reply, dict):
            brand.packages = max(brand.packages, reply["package"]["package_id"])

    async def _read(self, brand: Brand) -> None:
        await self.call("GetBalance", brand_id=brand.brand_id)

    async def _sweep(self, _: Brand) -> None:
        await self.call("BookDue")

    async def _suspend(self, brand: Brand) -> None:
        async with brand.changing:
            await self.call("PutBrand", brand_id=brand.brand_id, status=SUSPENDED)
            await self._freeze(brand)
            await self.call("PutBrand", brand_id=brand.brand_id, status=ACTIVE)


def _changed(request: dict[str, Any]) -> dict[str, Any]:
    """The same key with other content."""
    if "segments" in request:
        return {**request, "segments": request["segments"] + 1}
    if "time_to_live" in request:
        return {**request, "time_to_live": request["time_to_live"] + timedelta(milliseconds=1)}
    if "failed" in request:
        return {**request, "failed": [*request["failed"], {"message_id": "m9", "segments": 1}]}
    return {**request, "reason": "another"}


@asynccontextmanager
async def processes(database_url: str, folder: Path, count: int = 2) -> AsyncIterator[list[CostCenterProcess]]:
    """Cost centres on one database."""
    async with AsyncExitStack() as stack:
        running = [running_process(database_url, folder, ledger_hold_seconds=HOLD_SECONDS) for _ in range(count)]
        yield [*await asyncio.gather(*(stack.enter_async_context(each) for each in running))]


async def check(crowd: Crowd, database_url: str) -> Counter[str]:
    """Bring the history to its end and check it; what the outcomes were."""
    history = crowd.history
    await history.settle_all()
    while True:
        applied = await outcome_of(history.processes[0].call("ApplyReleases"))
        assert isinstance(applied, dict), applied
        assert applied["put_back"] == 0
        if not applied["applied"]:
            break
    await outcome_of(history.processes[0].call("BookDue"))
    outcomes = await Check(history, database_url).run()
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        differences = [each async for each in reconciliation.differences(connection, BRANDS)]
    assert not differences, differences
    print(dict(outcomes))  # noqa: T201 - pytest shows it with a failure
    return outcomes


async def test_many_callers_of_two_processes(database_url: str, tmp_path: Path) -> None:
    """Mixed calls on few brands at both processes: one order of all calls explains every reply."""
    async with processes(database_url, tmp_path) as running:
        crowd = Crowd(History(running), seeded("crowd"), [Brand(each) for each in BRANDS])
        await crowd.open()
        await crowd.run(CALLS)
        outcomes = await check(crowd, database_url)
    expected = {
        "OK",
        "unknown",
        "INSUFFICIENT_BALANCE",
        "FREEZE_EXPIRED",
        "FREEZE_INSUFFICIENT",
        "IDEMPOTENCY_CONFLICT",
    }
    assert expected <= set(outcomes), "the calls did not get into each other's way"


async def test_a_killed_process(database_url: str, tmp_path: Path) -> None:
    """SIGKILL in the middle: what it had in hand is done once or not at all, and asking the other settles which."""
    async with processes(database_url, tmp_path) as running:
        crowd = Crowd(History(running), seeded("killed"), [Brand(each) for each in BRANDS[:2]], suspends=False)
        await crowd.open()
        calls = asyncio.create_task(crowd.run(CALLS // 2))
        await crowd.reach(CALLS // 6)
        running[1].signal(signal.SIGKILL)
        await running[1].process.wait()
        await calls
        outcomes = await check(crowd, database_url)
    assert outcomes["unknown"]


async def test_a_process_that_stands_still_with_a_lane(database_url: str, tmp_path: Path) -> None:
    """SIGSTOP in a transaction: it loses the lane, the other goes on, and what it does once awake counts once."""
    async with processes(database_url, tmp_path) as running:
        crowd = Crowd(History(running), seeded("still"), [Brand(each) for each in BRANDS[:2]], suspends=False)
        await crowd.open()
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd.run(CALLS_MAX))
            await crowd.reach(CALLS // 10)
            await _stand_still(crowd, database_url)
            # Awake again, it makes its part of these.
            await crowd.reach(crowd.made + CALLS // 10)
            crowd.enough = True
        await check(crowd, database_url)


async def _stand_still(crowd: Crowd, database_url: str) -> None:
    """Stop the second process until that has cost it a lane and the first has answered on each."""
    standing = crowd.history.processes[1]
    for _ in range(STOPS_MAX):
        standing.signal(signal.SIGSTOP)
        try:
            sessions = await _sessions(database_url)
            before = {pid for pid, in_transaction in sessions.items() if in_transaction}
            # Each lane is waited for, and the first process has ended what it was about.
            await asyncio.gather(*(_answer(crowd, brand) for brand in crowd.brands))
            # A process that stands still cannot end its sessions.
            if before - (await _sessions(database_url)).keys():
                return
        finally:
            standing.signal(signal.SIGCONT)
        # It held no lane. At another moment, with calls in hand, it does.
        await crowd.reach(crowd.made + crowd.choices.randint(1, 5))
    raise AssertionError(f"stopped {STOPS_MAX} times, and never in a transaction")


async def _sessions(database_url: str) -> dict[int, bool]:
    """The ledger's sessions of all processes, and whether they are in a transaction."""
    query = (
        "select pid, xact_start is not null from pg_stat_activity"
        " where datname = current_database() and application_name = 'smsbill-ledger'"
    )
    return dict(await rows(database_url, query))


async def _answer(crowd: Crowd, brand: Brand) -> None:
    """Have a call of a brand answered by the first process, which may have to wait for the lane before."""
    request = {"brand_id": brand.brand_id, "request_id": crowd.new_id(), "sms_type": 1, "segments": 1}
    call = crowd.history.new("SmsSendPrePay", **request)
    async with asyncio.timeout(SETTLE_SECONDS):
        outcome = await crowd.history.attempt(call, crowd.history.processes[0])
        while is_unknown(outcome):
            # A lane that was waited for in vain is asked for again.
            outcome = await crowd.history.attempt(call, crowd.history.processes[0])


async def test_pay_release_and_time_out_race(database_url: str, tmp_path: Path) -> None:
    """At a freeze's end payments, releases and sweeps meet: each segment has one outcome; one order explains all."""
    async with processes(database_url, tmp_path) as running:
        history = History(running)
        crowd = Crowd(history, seeded("race"), [Brand(1)], suspends=False)
        await crowd.open(12 * 40)
        outcomes: list[Reply] = await asyncio.gather(*(_race(history, crowd.choices, index) for index in range(12)))
        counted = await check(crowd, database_url)
        for freeze in outcomes:
            assert freeze["segments"] == freeze["paid"] + freeze["released"] + freeze["timed_out"] + freeze["open"]
            assert freeze["open"] == 0
        for figure in ("paid", "released", "timed_out"):
            assert sum(freeze[figure] for freeze in outcomes), f"nothing was {figure}: no race"
    assert counted["FREEZE_EXPIRED"]


async def _race(history: History, choices: random.Random, index: int) -> Reply:
    one, two = history.processes
    lives = timedelta(milliseconds=choices.randint(300, 500))
    freeze = history.new(
        "SmsSendPrePay", brand_id=1, request_id=f"f{index}", sms_type=1, segments=40, time_to_live=lives
    )
    reply = await history.settle(freeze, one)
    assert isinstance(reply, dict), reply
    order_no = reply["order_no"]
    end: datetime = reply["expires_at"]

    async def at(moment: datetime, *calls: Call) -> None:
        # The moment itself is what is waited for; no event tells of it.
        await asyncio.sleep((moment - datetime.now(UTC)).total_seconds())
        for call in calls:
            await history.settle(call, choices.choice(history.processes))

    def near() -> datetime:
        return end + timedelta(milliseconds=choices.randint(-120, 25))

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            request = {"brand_id": 1, "request_id": f"p{index}-{number}", "order_no": order_no}
            group.create_task(at(near(), history.new("SmsSendPay", segments=3, **request)))
        request = {"brand_id": 1, "request_id": f"x{index}", "order_no": order_no}
        release = history.new("SmsReleaseFreezeNum", segments=choices.choice((0, 5)), **request)
        group.create_task(at(end - timedelta(milliseconds=choices.randint(40, 200)), release))
        for _ in range(3):
            group.create_task(at(near(), history.new("ApplyReleases")))
        group.create_task(at(near(), history.new("BookDue")))
    await at(end + timedelta(milliseconds=1), history.new("BookDue"))
    settled = await outcome_of(two.call("GetFreeze", order_no=order_no))
    assert isinstance(settled, dict), settled
    found: Reply = settled["freeze"]
    return found
