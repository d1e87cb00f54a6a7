"""One seed: start the stack, send and break, let it settle, judge."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc.aio

from chaos.faults import Faults
from chaos.load import AGAIN, Callers, sell
from chaos.network import CLIENT, COSTCENTER, GATEWAY, Network
from chaos.verdict import by_rule, judge
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill import reconcile, record_check, usage_figures
from smsbill.client import Access, Client
from smsbill.screen import Screen
from smsbill.sending import FINAL_STATES
from smsbill.settings import StackSettings
from smsbill.stack import Stack
from smsbill.tables import word

BRANDS = range(1, 21)
POLL_SECONDS = 2.0
# A process that died last starts again within its longest wait and a start.
READY_SECONDS = 30.0
IDS_TOLD = 20
_HTTP_SECONDS = 5.0
_STATE = pb.MessageState.DESCRIPTOR


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to do.

    Parameters: `seed` draws the faults and what is sent; `messages` at least, over about `seconds`; `settle_seconds`
    that everything has to become final at most; `only` the kinds of faults that are wanted, all where it is empty.
    """

    seed: int
    messages: int
    seconds: float
    settle_seconds: float
    only: Collection[str] = ()


@dataclass(slots=True)
class Result:
    """What became of a run: faults injected by kind, messages by state, and what must not be, by its name."""

    seed: int
    seconds: float = 0.0
    accepted: int = 0
    calls: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    settled_by_time: int = 0
    bad: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is that must not be, and there is a verdict at all."""
        return bool(self.bad) and not any(self.bad.values())

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(
            {
                "seed": self.seed,
                "ok": self.ok,
                "seconds": round(self.seconds, 1),
                "accepted": self.accepted,
                "calls": self.calls,
                "states": dict(sorted(self.states.items())),
                "faults": dict(sorted(self.faults.items())),
                "settled_by_time": self.settled_by_time,
                "verdict": {what: len(ids) for what, ids in self.bad.items()},
            },
            ensure_ascii=False,
        )


async def run(settings: StackSettings, plan: Plan, screen: Screen, hurry: asyncio.Event, result: Result) -> None:
    """Run a seed on a stack of its own. Raises what keeps the stack from starting.

    Parameters: `settings` with the stack's data folder; `hurry`, once set, makes the stack's stop kill; `result` is
    filled in.
    """
    network = Network()
    stack = Stack(settings, simulator=True, notify=lambda line: screen.say(f"    ! {line}"), adjust=network.adjust)
    hurrying = asyncio.create_task(_pass_on(hurry, stack.hurry))
    try:
        await stack.start(screen.step)
        await _run(stack, network, plan, screen, result)
    finally:
        hurrying.cancel()
        await stack.stop()
        await network.close()


async def _pass_on(event: asyncio.Event, to: asyncio.Event) -> None:
    await event.wait()
    to.set()


async def _run(stack: Stack, network: Network, plan: Plan, screen: Screen, result: Result) -> None:
    started = time.monotonic()
    file = stack.file
    names = {child.name for child in file.children}
    # One client behind the proxies, for those who send; one that sees things as they are, for the judge.
    through = Access(
        await network.targets(CLIENT, COSTCENTER, file.costcenter_target),
        await network.targets(CLIENT, GATEWAY, file.gateway_target),
        file.token,
    )
    client, judging = Client(stack.settings, through, call_seconds=READY_SECONDS), stack.client()
    try:
        await sell(judging, BRANDS)
        faults = Faults(
            stack, network, random.Random(plan.seed), lambda line: screen.say(f"    {line}"), only=plan.only
        )
        callers = Callers(client, BRANDS, random.Random(plan.seed))
        result.faults = faults.counts
        over = asyncio.Event()
        try:
            await faults.calm()
            async with asyncio.TaskGroup() as group:
                group.create_task(callers.run(plan.messages, plan.seconds, over))
                group.create_task(faults.run(over))
        finally:
            await faults.close()
        sent = callers.sent
        result.accepted, result.calls = len(sent.accepted), sent.calls
        screen.step(f"{len(sent.accepted):,} messages accepted in {sent.calls:,} calls")
        messages = await settle(judging, plan.settle_seconds, screen)
        screen.step("settled")
        entries = await record_check.carrier_record(file.simulator_url)
        verdict = judge(sent.accepted, messages, entries)
        settings = stack.reconcile_settings()
        differences = await reconcile.run(settings, progress=lambda _what, _done, _total: None)
        usage = await usage_figures.check(
            settings.database_url, zone=settings.usage_time_zone, progress=lambda _what, _done, _total: None
        )
        result.states = Counter(word(_STATE, message.state) for message in messages)
        result.settled_by_time = len(verdict.settled_by_time)
        result.bad |= {
            **verdict.faults,
            "calls without an answer": sent.unanswered,
            "refused": sent.refused,
            **by_rule(differences),
            "usage unlike its records": [str(difference) for difference in usage],
            "forged receipts taken": ["yes"] * faults.forged,
            "processes that needed a human": await unready(stack, names),
        }
        result.seconds = time.monotonic() - started
    finally:
        await client.close()
        await judging.close()


async def settle(client: Client, seconds: float, screen: Screen) -> list[Any]:
    """Wait until every message is final, at most so long; the records as they are then."""
    end = time.monotonic() + seconds
    while True:
        try:
            messages = await record_check.messages_of(client, BRANDS, since=0)
        except grpc.aio.AioRpcError as error:
            # The last fault is not over yet.
            if error.code() not in AGAIN or time.monotonic() > end:
                raise
            await asyncio.sleep(POLL_SECONDS)
            continue
        waiting = Counter(word(_STATE, each.state) for each in messages if each.state not in FINAL_STATES)
        if not waiting or time.monotonic() > end:
            return messages
        screen.say(f"    {waiting.total():,} of {len(messages):,} not final: {dict(waiting)}")
        await asyncio.sleep(POLL_SECONDS)


async def unready(stack: Stack, names: Collection[str]) -> list[str]:
    """Processes that do not run, or that say of themselves that they are not ready, though they had their time."""
    end = time.monotonic() + READY_SECONDS
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_HTTP_SECONDS)) as session:
        while True:
            bad = sorted(set(names) - {child.name for child in stack.file.children})
            # Each round anew: who has just started again listens somewhere else.
            urls = {name: url.removesuffix("/metrics") for name, url in stack.file.metrics_urls.items()}
            urls["gateway"] = stack.file.gateway_url
            for name, url in urls.items():
                try:
                    async with session.get(f"{url}/readyz") as answer:
                        if answer.status != 200:
                            bad.append(f"{name}: {await answer.text()}")
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    bad.append(f"{name}: {type(error).__name__}")
            if not bad or time.monotonic() > end:
                return bad
            await asyncio.sleep(POLL_SECONDS)


def tell(screen: Screen, result: Result) -> None:
    """Print a verdict."""
    screen.say(f"SEED={result.seed}  faults: {dict(result.faults)}")
    screen.say(f"messages: {dict(result.states)}")
    screen.say(f"outcomes that nobody told, refunded after their time: {result.settled_by_time}")
    for what, ids in result.bad.items():
        screen.say(f"  {'✓' if not ids else '✗'} {what}: {len(ids)}{'  ' + ', '.join(ids[:IDS_TOLD]) if ids else ''}")


def table_rows(results: Sequence[Result]) -> list[tuple[object, ...]]:
    """A row per seed: its messages, its faults, what was settled by time, what must not be."""
    return [
        (
            str(each.seed),
            each.accepted,
            each.faults.total(),
            each.settled_by_time,
            sum(len(ids) for ids in each.bad.values()),
            round(each.seconds),
            "ok" if each.ok else ", ".join(what for what, ids in each.bad.items() if ids) or "no verdict",
        )
        for each in results
    ]


COLUMNS = ("seed", "#messages", "#faults", "#settled by time", "#wrong", "#seconds", "verdict")
