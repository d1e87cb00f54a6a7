"""`python -m bench.codes`: verification codes while a backlog of marketing waits at a slow carrier.

The backlog is made by SendBatchSms while the workers stand still (SIGSTOP), so that it is whole when they go on. Then
codes of other brands' customers come at a steady rate. Measured is the time from the reply of SendSms to the arrival of
the carrier call, by the simulator's own record; both are processes of one machine and read one clock.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import uvloop
from rich.table import Table

from bench.figures import Figure
from bench.harness import console, differences, fill, stack, write
from bench.load import Target
from bench.watch import Watch, quantile, watching
from infra.grpc_server import bearer
from protos.costcenter.v1 import types_pb2
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from protos.smsgateway.v1.sms_gateway_pb2_grpc import SmsGatewayStub
from smsbill.stack import Stack

BRANDS = 100
# Batches taken at once while the backlog is made: each is held by the gateway until it is accepted.
_BATCHES_AT_ONCE = 4
_RECIPIENTS_PER_PART = 5_000
# How long a code may take until the carrier has it, before it counts as lost.
_LOST_SECONDS = 30.0
_SPREAD_SECONDS = 2.0
_MARKETING = "【示例】周末全场八折，回复TD退订。"
_CODE = "【示例】验证码 482913，5 分钟内有效。"


async def backlog(target: Target, messages: int) -> float:
    """Marketing messages of all brands; seconds that it took to accept them."""
    started = time.perf_counter()
    each = messages // BRANDS
    left = list(range(1, BRANDS + 1))
    async with target.channel() as channel:
        stub = SmsGatewayStub(channel)

        async def parts(brand_id: int) -> AsyncIterator[pb.SendBatchSmsRequest]:
            yield pb.SendBatchSmsRequest(
                header=pb.BatchHeader(
                    brand_id=brand_id, request_id="backlog", sms_type=types_pb2.SMS_TYPE_MARKETING, text=_MARKETING
                )
            )
            # Not numbers that the simulator treats specially, and none that a code goes to.
            for start in range(0, each, _RECIPIENTS_PER_PART):
                numbers = range(start, min(start + _RECIPIENTS_PER_PART, each))
                mobiles = [f"+86138{number:07d}5" for number in numbers]
                yield pb.SendBatchSmsRequest(recipients=pb.BatchRecipients(mobiles=mobiles))

        async def caller() -> None:
            while left:
                await stub.SendBatchSms(parts(left.pop()), metadata=bearer(target.token))
                if left and len(left) % 10 == 0:
                    console.print(f"backlog: {len(left)} of {BRANDS} brands left")

        await asyncio.gather(*(caller() for _ in range(_BATCHES_AT_ONCE)))
    return time.perf_counter() - started


async def codes(target: Target, *, per_second: float, seconds: float) -> dict[str, tuple[float, float]]:
    """Codes at a steady rate, whatever becomes of earlier ones; by number the moments asked and accepted."""
    moments: dict[str, tuple[float, float]] = {}
    run = secrets.token_hex(4)
    async with target.channel() as channel:
        stub = SmsGatewayStub(channel)

        async def one(number: int) -> None:
            # No number ends as those that the simulator treats specially.
            mobile = f"1390{number:06d}5"
            asked = time.time()
            await stub.SendSms(
                pb.SendSmsRequest(
                    brand_id=1 + number % BRANDS, request_id=f"{run}-{number}",
                    sms_type=types_pb2.SMS_TYPE_VERIFICATION, mobile=f"+86{mobile}", text=_CODE,
                ),
                metadata=bearer(target.token), timeout=_LOST_SECONDS,
            )  # fmt: skip
            moments[mobile] = (asked, time.time())

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(per_second * seconds)):
                await asyncio.sleep(started + number / per_second - time.perf_counter())
                group.create_task(one(number))
    return moments


async def calls(watch: Watch, after: int, numbers: Sequence[str]) -> dict[str, float]:
    """When the carrier was called for each of these numbers."""
    wanted, found = set(numbers), dict[str, float]()
    deadline = time.monotonic() + _LOST_SECONDS
    while wanted and time.monotonic() < deadline:
        entries, _ = await watch.taken_on(after)
        for entry in entries:
            if entry["mobile"] in wanted:
                wanted.discard(entry["mobile"])
                found[entry["mobile"]] = datetime.fromisoformat(entry["time"]).timestamp()
        if entries:
            after = entries[-1]["n"]
        else:
            await asyncio.sleep(0.5)
    return found


async def _left(watch: Watch, messages: int) -> int:
    _, totals = await watch.taken_on(limit=1)
    return max(0, messages - int(totals["messages"]))


def _workers(running: Stack) -> list[psutil.Process]:
    return [psutil.Process(child.pid) for child in running.file.children if child.name.startswith("worker")]


async def measure(messages: int, per_second: float, seconds: float, *, latency_ms: float) -> dict[str, Any]:
    """Every figure."""
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder)) as running, watching(running) as watch:
            target = Target(running.file.gateway_target, running.file.token)
            await watch.simulator(latency_ms=latency_ms)
            await fill(running, range(1, BRANDS + 1))
            console.print("codes without a backlog")
            quiet = await _codes(watch, target, per_second=per_second, seconds=min(10.0, seconds))
            _, before = await watch.taken_on(limit=1)
            workers = _workers(running)
            for worker in workers:
                worker.suspend()
            try:
                took = await backlog(target, messages)
            finally:
                for worker in workers:
                    worker.resume()
            console.print(f"backlog of {messages:,} accepted in {took:.0f} s; codes beside it")
            # All calls that the carrier gets at once, each of a thousand numbers, keep the simulator's one process
            # busy for the better part of a second; from then on they are spread.
            await asyncio.sleep(_SPREAD_SECONDS)
            beside = await _codes(watch, target, per_second=per_second, seconds=seconds)
            _, after = await watch.taken_on(limit=1)
            left = messages - (after["messages"] - before["messages"] - beside["codes"])
            found = [] if left > 0 else await differences(running)
    return {
        "backlog": messages, "accepted_per_second": messages / took, "latency_ms": latency_ms, "quiet": quiet,
        "beside": beside, "left": max(0, left), "differences": found,
    }  # fmt: skip


async def _codes(watch: Watch, target: Target, *, per_second: float, seconds: float) -> dict[str, Any]:
    _, totals = await watch.taken_on(limit=1)
    after, started = int(totals["messages"]), time.perf_counter()
    moments = await codes(target, per_second=per_second, seconds=seconds)
    elapsed = time.perf_counter() - started
    _, totals = await watch.taken_on(limit=1)
    called = await calls(watch, after, list(moments))
    waits = sorted(1_000 * (called[mobile] - moments[mobile][1]) for mobile in called)
    replies = sorted(1_000 * (accepted - asked) for asked, accepted in moments.values())
    whole = sorted(1_000 * (called[mobile] - moments[mobile][0]) for mobile in called)
    return {
        "codes": len(moments),
        "lost": len(moments) - len(called),
        "accepted_to_call_ms": _spread(waits),
        "asked_to_accepted_ms": _spread(replies),
        "asked_to_call_ms": _spread(whole),
        "marketing_per_second": (totals["messages"] - after - len(called)) / elapsed,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "p50": round(quantile(values, 0.5), 1),
        "p99": round(quantile(values, 0.99), 1),
        "greatest": round(values[-1], 1),
    }


def figures(result: dict[str, Any]) -> list[Figure]:
    """What it says of goal 4."""
    quiet, beside = (result[name]["accepted_to_call_ms"] for name in ("quiet", "beside"))
    return [
        Figure(4, "code to carrier call, nothing else, p99", "ms", [quiet["p99"]]),
        Figure(4, f"… beside a backlog of {result['backlog']:,}, p50", "ms", [beside["p50"]]),
        Figure(4, f"… beside a backlog of {result['backlog']:,}, p99", "ms", [beside["p99"]], aim=250, at_most=True),
        Figure(4, "marketing meanwhile", "messages/s", [result["beside"]["marketing_per_second"]], aim=1),
    ]


def show(result: dict[str, Any]) -> None:
    """The figures as a table."""
    table = Table("codes", "", "p50, ms", "p99, ms", "greatest, ms", "marketing/s", "lost")
    for name in ("quiet", "beside"):
        run = result[name]
        for what in ("accepted_to_call_ms", "asked_to_accepted_ms", "asked_to_call_ms"):
            figures = (f"{run[what][key]:,.0f}" for key in ("p50", "p99", "greatest"))
            title = {"quiet": "alone", "beside": f"beside {result['backlog']:,}"}[name]
            row = (f"{run['marketing_per_second']:,.0f}", str(run["lost"])) if what.startswith("accepted") else ("", "")
            table.add_row(title, what.removesuffix("_ms").replace("_", " "), *figures, *row)
    console.print(table)
    console.print(
        f"backlog accepted at {result['accepted_per_second']:,.0f}/s; left at the end: {result['left']:,}; "
        f"differences in reconcile: {len(result['differences']) if not result['left'] else 'not asked'}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.codes", description=__doc__)
    parser.add_argument("--backlog", type=int, default=200_000, help="marketing messages; the goal speaks of 1,000,000")
    parser.add_argument("--rate", type=float, default=50, help="codes a second")
    parser.add_argument("--seconds", type=float, default=20, help="how long codes come beside the backlog")
    parser.add_argument("--latency", type=float, default=100, help="milliseconds that the carrier takes for a call")
    arguments = parser.parse_args()
    result = uvloop.run(measure(arguments.backlog, arguments.rate, arguments.seconds, latency_ms=arguments.latency))
    show(result)
    write("codes", result)
    return 1 if result["differences"] or result["beside"]["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
