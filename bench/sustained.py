"""`python -m bench.sustained`: the three ways of a message, each for a while, with what each process holds meanwhile.

* singles: SendSms, accepted over gRPC to the delivered receipt booked; a bounded number is on its way at once, so the
  rate is that of the slowest step;
* batches: SendBatchSms, accepted to sent, without receipts;
* receipts: of messages that were sent before, each pushed by the carrier in a request of its own, until booked.

A row for each interval: done in it, memory of each process, what waits. Flat is what does not grow from row to row.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop
from rich.table import Table

from bench.figures import Figure
from bench.harness import console, differences, fill, stack, write
from bench.load import Target
from bench.watch import SIMULATOR, Process, Watch, until, used, watching
from infra.grpc_server import bearer
from protos.costcenter.v1 import types_pb2
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from protos.smsgateway.v1.sms_gateway_pb2_grpc import SmsGatewayStub

BRANDS = 100
SCENARIOS = ("singles", "batches", "receipts")
_GOALS = {
    "singles": ("single messages, accepted to receipt booked", 800),
    "batches": ("batch messages, accepted to sent", 8_000),
    "receipts": ("receipts booked, one request each", 2_000),
}
# Fewer do not tell how something grows.
_ROWS_MIN = 6
_CALLERS = 256
# Accepted and not done, at most: enough to keep every step busy, few enough that a backlog cannot hide in it.
_SINGLES_IN_HAND = 2_000
_BATCH_MESSAGES = 20_000
_BATCHES_IN_HAND = 3
# Each look makes every worker write out all its metrics, which costs milliseconds.
_POLL_SECONDS = 0.5
_END_SECONDS = 120.0
_RECIPIENTS_PER_PART = 5_000
# Receipts are held back for as long as sending takes at this rate; and for each second asked for so many are sent.
_SENT_PER_SECOND_MIN = 5_000
_RECEIPTS_PER_SECOND = 2_000
_RECEIPTS_SECONDS_MAX = 1_800.0


class Samples:
    """Rows of an interval each, taken while a scenario runs."""

    def __init__(self, watch: Watch, done: Callable[[], Awaitable[int]], seconds: float) -> None:
        self.rows: list[dict[str, Any]] = []
        self._watch = watch
        self._done = done
        self._seconds = seconds

    async def take(self) -> None:
        """Take a row at each interval until cancelled."""
        before = await self._watch.processes()
        done, at = await self._done(), time.perf_counter()
        while True:
            await asyncio.sleep(self._seconds)
            after, waiting = await self._watch.processes(), await self._watch.waiting()
            now_done, now = await self._done(), time.perf_counter()
            self._add(before, after, waiting, await self._watch.connections(), (now_done - done) / (now - at), now - at)
            before, done, at = after, now_done, now

    def _add(
        self,
        before: dict[str, Process],
        after: dict[str, Process],
        waiting: dict[str, int],
        connections: int,
        rate: float,
        seconds: float,
    ) -> None:
        megabytes = {name: round(process.megabytes, 1) for name, process in after.items()}
        percent = {name: round(value, 1) for name, value in used(before, after, seconds).items()}
        handles = {name: process.handles for name, process in after.items()}
        row = {
            "per_second": round(rate, 1), "megabytes": megabytes, "percent": percent, "waiting": waiting,
            "handles": handles, "connections": connections,
        }  # fmt: skip
        self.rows.append(row)
        memory = " ".join(f"{name} {value:.0f}" for name, value in megabytes.items())
        cpu = " ".join(f"{value:.0f}" for value in percent.values())
        waits = " ".join(f"{name} {count}" for name, count in waiting.items())
        console.print(f"{rate:8,.0f}/s | MB {memory} | % {cpu} | {waits}", highlight=False)


async def parts(brand_id: int, request_id: str, messages: int) -> AsyncIterator[pb.SendBatchSmsRequest]:
    """A batch of so many numbers, as it is streamed."""
    yield pb.SendBatchSmsRequest(
        header=pb.BatchHeader(
            brand_id=brand_id, request_id=request_id, sms_type=types_pb2.SMS_TYPE_MARKETING,
            text="【示例】周末全场八折，回复TD退订。",
        )
    )  # fmt: skip
    for start in range(0, messages, _RECIPIENTS_PER_PART):
        numbers = range(start, min(start + _RECIPIENTS_PER_PART, messages))
        mobiles = [f"+86138{number:07d}5" for number in numbers]
        yield pb.SendBatchSmsRequest(recipients=pb.BatchRecipients(mobiles=mobiles))


class Load:
    """Sends, and knows how much of what it sent is done."""

    def __init__(self, watch: Watch, target: Target, result: str) -> None:
        self.watch = watch
        self.target = target
        self.accepted = 0
        self._result = result
        self._base = 0
        self.run = secrets.token_hex(4)

    async def begin(self) -> None:
        """What was done before does not count."""
        self._base = (await self.watch.counters())[self._result]

    async def done(self) -> int:
        """Messages of this load that have come to their end."""
        return (await self.watch.counters())[self._result] - self._base

    async def ended(self, seconds_max: float) -> None:
        """Wait until all that was accepted is done."""
        await until(self._is_done, seconds_max=seconds_max)

    async def has_begun(self) -> bool:
        """Whether the first is done."""
        return await self.done() > 0

    async def _is_done(self) -> bool:
        return await self.done() >= self.accepted


async def singles(load: Load, seconds: float) -> None:
    """Single messages, as many as get through."""
    room = asyncio.Event()
    end = time.perf_counter() + seconds
    turn = asked = 0
    async with load.target.channel() as channel:
        stub = SmsGatewayStub(channel)

        async def watch_room() -> None:
            while True:
                done = await load.done()
                if asked - done < _SINGLES_IN_HAND:
                    room.set()
                else:
                    room.clear()
                await asyncio.sleep(_POLL_SECONDS)

        async def caller() -> None:
            nonlocal turn, asked
            while time.perf_counter() < end:
                await room.wait()
                turn, asked = turn + 1, asked + 1
                number = turn
                await stub.SendSms(
                    pb.SendSmsRequest(
                        brand_id=1 + number % BRANDS, request_id=f"{load.run}-{number}",
                        sms_type=types_pb2.SMS_TYPE_VERIFICATION, mobile=f"+86139{number % 10**7:07d}5",
                        text="【示例】验证码 482913，5 分钟内有效。",
                    ),
                    metadata=bearer(load.target.token),
                )  # fmt: skip
                load.accepted += 1

        watcher = asyncio.create_task(watch_room())
        try:
            await asyncio.gather(*(caller() for _ in range(_CALLERS)))
        finally:
            watcher.cancel()


async def batches(load: Load, seconds: float) -> None:
    """Batches, each followed by the next before it is sent."""
    end = time.perf_counter() + seconds
    number = 0
    async with load.target.channel() as channel:
        stub = SmsGatewayStub(channel)
        while time.perf_counter() < end:
            if load.accepted - await load.done() > _BATCHES_IN_HAND * _BATCH_MESSAGES:
                await asyncio.sleep(_POLL_SECONDS)
                continue
            number += 1
            await stub.SendBatchSms(
                parts(1 + number % BRANDS, f"{load.run}-{number}", _BATCH_MESSAGES),
                metadata=bearer(load.target.token),
            )
            load.accepted += _BATCH_MESSAGES


async def _held_back(load: Load, messages: int) -> None:
    """Send messages whose receipts come when all are sent."""
    base = (await load.watch.counters())["sent"]
    # Slower than any machine that this is worth being measured on.
    delay_ms = 1_000 * (messages / _SENT_PER_SECOND_MIN + _BATCH_MESSAGES / _SENT_PER_SECOND_MIN)
    await load.watch.simulator(receipt_delay_ms_max=delay_ms + 1, receipt_delay_ms_min=delay_ms)
    sent = 0
    async with load.target.channel() as channel:
        stub = SmsGatewayStub(channel)
        for number, start in enumerate(range(0, messages, _BATCH_MESSAGES)):
            size = min(_BATCH_MESSAGES, messages - start)
            await stub.SendBatchSms(
                parts(1 + number % BRANDS, f"{load.run}-{number}", size), metadata=bearer(load.target.token)
            )
            load.accepted += size
            while load.accepted - sent > _BATCHES_IN_HAND * _BATCH_MESSAGES:
                await asyncio.sleep(_POLL_SECONDS)
                sent = (await load.watch.counters())["sent"] - base

    async def is_sent() -> bool:
        return (await load.watch.counters())["sent"] - base >= messages

    await until(is_sent, seconds_max=_END_SECONDS)


async def receipts(load: Load) -> None:
    """Wait until the receipts of all messages are booked."""
    await load.ended(_RECEIPTS_SECONDS_MAX)


async def sampled(
    watch: Watch, load: Load, interval: float, work: Callable[[], Awaitable[None]]
) -> list[dict[str, Any]]:
    """Do work, and the rows of its intervals."""
    samples = Samples(watch, load.done, interval)
    taking = asyncio.create_task(samples.take())
    try:
        await work()
    finally:
        taking.cancel()
        with suppress(asyncio.CancelledError):
            await taking
    return samples.rows


async def scenario(name: str, watch: Watch, target: Target, seconds: float, interval: float) -> dict[str, Any]:
    """One scenario: its rows, and the rate from its first call to its last message."""
    console.print(f"{name}, {seconds:g} s")
    load = Load(watch, target, "sent" if name == "batches" else "delivered")
    await load.begin()
    if name == "receipts":
        await _held_back(load, int(seconds * _RECEIPTS_PER_SECOND))
        await until(load.has_begun, seconds_max=_END_SECONDS)
    else:
        await watch.simulator(receipt_loss=float(name == "batches"))
    started, before = time.perf_counter(), await load.done()
    work = {"singles": lambda: singles(load, seconds), "batches": lambda: batches(load, seconds)}
    rows = await sampled(watch, load, interval, work.get(name, lambda: receipts(load)))
    await load.ended(_END_SECONDS)
    rate = (load.accepted - before) / (time.perf_counter() - started)
    await watch.simulator(receipt_loss=0.0, receipt_delay_ms_min=200.0, receipt_delay_ms_max=1_000.0)
    return {"messages": load.accepted, "per_second": rate, "rows": rows}


async def measure(names: Sequence[str], seconds: float, interval: float, workers: int | None) -> dict[str, Any]:
    """The scenarios one after another on one stack."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder), workers=workers) as running, watching(running) as watch:
            target = Target(running.file.gateway_target, running.file.token)
            await fill(running, range(1, BRANDS + 1))
            for name in names:
                results[name] = await scenario(name, watch, target, seconds, interval)
            found = await differences(running)
    return {"seconds": seconds, "interval": interval, "scenarios": results, "differences": found}


def figures(result: dict[str, Any]) -> list[Figure]:
    """What it says of goal 3."""
    found = []
    for name, run in result["scenarios"].items():
        title, aim = _GOALS[name]
        found.append(Figure(3, f"{title}, {result['seconds']:g} s", "/s", _rates(run) or [run["per_second"]], aim=aim))
        if len(rows := run["rows"]) >= _ROWS_MIN:
            found.append(Figure(3, f"… growth of memory, {name}", "MB/min", [growth(rows, result["interval"])]))
            found.append(Figure(3, f"… waits, {name}", "", [sum(row["waiting"].values()) for row in rows]))
    return found


def _rates(run: dict[str, Any]) -> list[float]:
    # The last row may be cut short by the end.
    return [row["per_second"] for row in run["rows"][:-1] or run["rows"]]


def growth(rows: Sequence[dict[str, Any]], interval: float) -> float:
    """Megabytes a minute of all processes but the simulator, whose record grows, over the second half of a run: in the
    first, what is filled once still grows.
    """
    half = rows[len(rows) // 2 :]
    memory = [sum(size for name, size in row["megabytes"].items() if name != SIMULATOR) for row in half]
    return statistics.linear_regression(range(len(memory)), memory).slope * 60 / interval


def show(result: dict[str, Any]) -> None:
    """The figures as a table."""
    table = Table("scenario", "messages", "whole, /s", "median, /s", "least", "greatest", "growth, MB", "waits most")
    for name, run in result["scenarios"].items():
        if not (rates := _rates(run)):
            console.print(f"{name}: shorter than an interval")
            continue
        # The first row still has what is filled once: pools, caches, plans.
        rows = run["rows"][1:] or run["rows"]
        growth = {
            process: rows[-1]["megabytes"][process] - rows[0]["megabytes"][process] for process in rows[0]["megabytes"]
        }
        most = max(sum(row["waiting"].values()) for row in rows)
        table.add_row(
            name, f"{run['messages']:,}", f"{run['per_second']:,.0f}", f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f}", f"{max(rates):,.0f}",
            f"{sum(growth.values()):+.1f}", f"{most:,}",
        )  # fmt: skip
    console.print(table)
    console.print("differences in reconcile:", len(result["differences"]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.sustained", description=__doc__)
    parser.add_argument("--only", choices=SCENARIOS, help="one of the three")
    parser.add_argument("--seconds", type=float, default=30, help="of each; the goal speaks of 300")
    parser.add_argument("--interval", type=float, default=5, help="seconds of a row")
    parser.add_argument("--workers", type=int, help="worker processes; not given: as `smsbill up`")
    arguments = parser.parse_args()
    names = (arguments.only,) if arguments.only else SCENARIOS
    result = uvloop.run(measure(names, arguments.seconds, arguments.interval, arguments.workers))
    show(result)
    write("sustained", result)
    return 1 if result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
