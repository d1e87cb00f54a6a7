"""Ways of messages through the engine on which one process after another is killed at a crash point.

Each way runs in a `World`: a database and a Redis of its own, with a cost centre, a gateway and a simulated carrier
that stay, in this process. What is killed is a process of its own beside them (`forked`), started by the real command.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import orjson
import redis.asyncio
from forked import Command
from gateway_harness import eventually
from pydantic import SecretStr
from worker_harness import ADMIN, GRANTED, SERVICE, Stack, running_stack

from infra.crash_points import REACHED
from protos.costcenter.v1 import cost_center_admin_pb2
from protos.smsgateway.v1 import sms_gateway_pb2_grpc
from scripts import databases
from smsbill import reconcile, usage_figures
from smsbill.reconcile import Reconciliation
from smsgateway.process import GatewayProcess
from smsgateway.schema import MessageState

T = TypeVar("T")

# Generous: the machine may have two cores and much else to do.
SECONDS = 120.0
# Numbers with this ending are refused by the carrier.
REFUSED = "99"
REFUSED_CODE = "107"
# What may be repeated with the same request_id: nobody answered, or somebody died before the answer.
_UNANSWERED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNKNOWN,
}
# Dead workers are noticed soon, and what they left is taken up soon.
QUICK: dict[str, Any] = {
    "log_level": "WARNING",
    "database_wait_seconds": 10,
    "walk_seconds": 2,
    "stalled_seconds": 0.5,
    "stalled_after_loss_seconds": 0.3,
    "receipt_takeover_seconds": 0.5,
    "receipt_requeue_seconds": 1,
    "outbox_hold_seconds": 0.5,
    "accepting_seconds": 0.5,
    "book_due_seconds": 0.2,
    "ledger_attempts": 2,
}
# A call without an answer is given up soon: not for those whose own calls must be answered, however slow the machine.
HASTY: dict[str, Any] = {
    "chuanglan_connect_seconds": 1,
    "chuanglan_call_seconds": 1,
    "submit_start_seconds": 0.5,
    "submit_margin_seconds": 0.1,
}
BEHAVIOUR: dict[str, Any] = {
    "receipt_delay_ms_min": 20,
    "receipt_delay_ms_max": 40,
    # Also while a gateway starts on a machine with much else to do.
    "receipt_tries": 1_200,
    "receipt_retry_interval_ms": 100,
    "refused_numbers": [REFUSED],
    "throttle_rate": 0,
    "timeout_rate": 0,
    "lost_rate": 0,
    "receipt_loss": 0,
}
_brands = itertools.count(1_000)
_numbers = itertools.count()


@dataclass(frozen=True)
class Outcome:
    """How a message must have ended: its state and code, and whether the carrier took it."""

    state: MessageState
    code: str = ""
    sent: bool = False


@dataclass
class World:
    """The parts that stay, one brand, and what its messages must come to."""

    stack: Stack
    redis: redis.asyncio.Redis
    folder: Path
    brand_id: int = 0
    granted: int = GRANTED
    package_id: int = 0
    expected: dict[str, Outcome] = field(default_factory=dict)
    processes: list[Command] = field(default_factory=list)
    # Numbers of messages that another carrier than the simulated one took.
    elsewhere: list[str] = field(default_factory=list)

    async def begin(self) -> None:
        """A new brand, and a carrier that behaves."""
        self.brand_id, self.granted, self.expected = next(_brands), GRANTED, {}
        self.behave()
        self.package_id = await self.stack.grant(self.brand_id)

    async def impoverish(self) -> None:
        """Take back what the brand owns."""
        self.granted = 0
        claw_back = cost_center_admin_pb2.ClawBackAdjustment(package_id=self.package_id, segments=GRANTED)
        await self.stack.adjust(self.brand_id, claw_back=claw_back)

    def behave(self, **changes: Any) -> None:
        """Have the carrier behave but for `changes`."""
        self.stack.simulator.change_settings({**BEHAVIOUR, "receipt_url": self.stack.receipt_url, **changes})

    def numbers(self, count: int, outcome: Outcome, ending: str = "72") -> list[str]:
        """New numbers whose messages must come to this."""
        mobiles = [f"139{next(_numbers):06d}{ending}" for _ in range(count)]
        self.expected |= dict.fromkeys(mobiles, outcome)
        return mobiles

    def start(self, name: str, point: str = "", **settings: Any) -> Command:
        """A process of this command, armed with a point."""
        values = self.stack.settings(**{**QUICK, **settings}).model_dump(exclude_unset=True)
        values |= {name: value for name, value in settings.items() if name not in values}
        values |= {"crash_point": point}
        variables = {
            f"SMSBILL_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in values.items()
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{len(self.processes)}-{name}-{point or 'lives'}.log"
        process = Command([name], variables, log)
        self.processes.append(process)
        return process

    async def dies(self, name: str, point: str, **settings: Any) -> None:
        """A process of this command does what there is to do until it dies at a point."""
        await died(self.start(name, point, **settings), point)
        await self.end_leases()

    async def end_leases(self) -> None:
        """As if the time of a dead worker's leases were over. A short time would end those of the living, too."""
        if keys := [key async for key in self.redis.scan_iter(match="lease:*")]:
            await self.redis.delete(*keys)

    async def settled(self, **settings: Any) -> None:
        """Have a worker that is not killed do what is left to do, and judge."""
        worker = self.start("worker", **settings)
        try:
            await self.judge()
        finally:
            await worker.kill()

    async def judge(self) -> None:
        """Every message came to what it must, is charged accordingly, and nothing is left anywhere."""
        await eventually(self._ended, SECONDS)
        assert await self._outcomes() == {mobile: (each.state, each.code) for mobile, each in self.expected.items()}
        sent = [mobile for mobile, outcome in self.expected.items() if outcome.sent]
        assert self._seen() == dict.fromkeys(sent, 1)
        assert await self.stack.balance(self.brand_id) == (self.granted - len(sent), 0)
        url = self.stack.database_url
        whole = Reconciliation(url, url, self.stack.redis_url, progress=lambda *_: None)
        assert await asyncio.wait_for(whole.run(), SECONDS) == []
        usage = usage_figures.check(url, zone="Asia/Shanghai", progress=lambda *_: None)
        assert await asyncio.wait_for(usage, SECONDS) == []

    async def _ended(self) -> bool:
        rows = await self._outcomes()
        return (
            all(rows.get(mobile) == (each.state, each.code) for mobile, each in self.expected.items())
            and await self.stack.quiet()
            and (await self.stack.balance(self.brand_id))[1] == 0
            and await self._entries() == 0
        )

    async def _outcomes(self) -> dict[str, tuple[int, str]]:
        rows = await self.stack.rows(
            "select mobile, state, result_code from message where brand_id = %s", self.brand_id
        )
        return {
            mobile.removeprefix("+86"): (state, code if state == MessageState.FAILED else "")
            for mobile, state, code in rows
        }

    def _seen(self) -> dict[str, int]:
        entries = self.stack.simulator.entries(limit=10_000)
        seen = [*(entry["mobile"] for entry in entries), *self.elsewhere]
        return dict(Counter(mobile for mobile in seen if mobile in self.expected))

    async def _entries(self) -> int:
        """Entries of all queues and streams of receipts."""
        keys = [key async for key in self.redis.scan_iter(match="*", _type="stream")]
        return sum([await self.redis.xlen(key) for key in keys])


async def died(process: Command, point: str) -> None:
    """A process was killed, and it was at this point."""
    number = await process.died()
    lines = [orjson.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
    assert number == signal.SIGKILL, f"{point}: ended with {-number}, not killed: {process.log.read_text()[-2_000:]}"
    assert (lines[-1]["event"], lines[-1]["point"]) == (REACHED, point.partition(":")[0])


async def asked(world: World, target: str, call: Callable[[Stack], Awaitable[T]]) -> T | None:
    """Call the gateway that listens there once; None when it gave no answer. Raises its refusals."""
    # A new channel each time: one that has lost its server waits a second and more before it looks again.
    async with grpc.aio.insecure_channel(target) as channel:
        try:
            return await call(replace(world.stack, sms=sms_gateway_pb2_grpc.SmsGatewayStub(channel)))
        except grpc.aio.AioRpcError as error:
            if error.code() not in _UNANSWERED:
                raise
    return None


async def answered(world: World, target: str, call: Callable[[Stack], Awaitable[T]]) -> T:
    """Call a gateway as a real caller does: with the same request again until it is answered."""
    async with asyncio.timeout(SECONDS):
        while (reply := await asked(world, target, call)) is None:  # noqa: ASYNC110 - another process, it may be dead
            await asyncio.sleep(0.02)
    return reply


@dataclass
class Service:
    """A process that listens: killed at one point after another, started again on the same ports."""

    world: World
    name: str
    settings: dict[str, Any]
    process: Command
    grpc_port: int
    http_port: int

    @property
    def target(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.grpc_port}"

    async def dies(self, point: str, then: str = "") -> None:
        """It dies at a point and is started again, armed with `then`."""
        await died(self.process, point)
        self.process = self.world.start(self.name, then, **self.settings)
        await self.process.ready()

    async def dies_at(self, *points: str) -> None:
        """It dies at one point after another; the first was armed when it was started."""
        for point, then in itertools.zip_longest(points, points[1:], fillvalue=""):
            await self.dies(point, then)


@asynccontextmanager
async def service(world: World, name: str, point: str, **settings: Any) -> AsyncIterator[Service]:
    """A gateway or a cost centre in a process of its own, armed with a point."""
    ports = ("costcenter_address", "costcenter_http_address") if name == "costcenter" else (
        ("gateway_address", "http_address")
    )  # fmt: skip
    if name == "costcenter":
        settings |= {"bootstrap_token": ADMIN, "service_token": SERVICE}
    process = world.start(name, point, **settings, **dict.fromkeys(ports, "127.0.0.1:0"))
    report = await process.ready()
    addresses = {key: f"127.0.0.1:{report[port]}" for key, port in zip(ports, ("grpc_port", "http_port"), strict=True)}
    running = Service(world, name, {**settings, **addresses}, process, report["grpc_port"], report["http_port"])
    try:
        yield running
    finally:
        await running.process.kill()


@asynccontextmanager
async def gateway_beside(world: World, costcenter: Service) -> AsyncIterator[str]:
    """A gateway in this process that asks another cost centre; where it listens."""
    process = GatewayProcess(world.stack.settings(**{**QUICK, "costcenter_target": costcenter.target}))
    await process.start()
    try:
        yield f"127.0.0.1:{process.grpc_port}"
    finally:
        await asyncio.wait_for(process.stop(), SECONDS)


@asynccontextmanager
async def running_world(server_url: str, template: str, redis_url: str, folder: Path) -> AsyncIterator[World]:
    """A world on a fresh database and an emptied Redis."""
    with databases.fresh(server_url, template) as url:
        async with (
            redis.asyncio.Redis.from_url(redis_url) as client,
            running_stack(url, redis_url, simulator=BEHAVIOUR) as stack,
        ):
            await client.flushdb()
            world = World(stack, client, folder)
            try:
                yield world
            finally:
                for process in world.processes:
                    await process.kill()


Way = Callable[[World], Awaitable[None]]


async def walk_all(
    ways: Mapping[str, Way], server_url: str, template: str, redis_urls: Sequence[str], folder: Path
) -> dict[str, BaseException | None]:
    """Walk all ways, some at once, each in a world that no other uses at that time; what each failed with."""
    waiting = deque(ways.items())
    failures: dict[str, BaseException | None] = {}

    async def go(place: int) -> None:
        for attempt in itertools.count():
            if not waiting:
                return
            # A way that fails leaves things behind: whoever is next gets a new world.
            async with running_world(server_url, template, redis_urls[place], folder / f"{place}-{attempt}") as world:
                while waiting:
                    name, way = waiting.popleft()
                    failures[name] = await _walked(world, way)
                    if failures[name] is not None:
                        break

    await asyncio.gather(*(go(place) for place in range(len(redis_urls))))
    return failures


async def _walked(world: World, way: Way) -> BaseException | None:
    try:
        await world.begin()
        async with asyncio.timeout(2 * SECONDS):
            await way(world)
    except Exception as error:
        return error
    return None


def impatient(patch: Any) -> None:
    """Have `reconcile` look at what is a moment old, and wait for nothing."""
    patch.setattr(reconcile, "SETTLED_SECONDS", 0.0)
    patch.setattr(reconcile, "PAUSE_SECONDS", 0.0)
