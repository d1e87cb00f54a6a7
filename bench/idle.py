"""`python -m bench.idle`: what brands whose queues are idle cost.

Two stacks, one after the other, take the same number of single messages: one of a single brand, one of many brands, a
message each. When all receipts are booked and the queues' leases are given back, memory and processor time of each
process are compared; then a sample of brands sends again, one after another.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from rich.table import Table

from bench.figures import Figure
from bench.harness import console, fill, stack, write
from bench.load import Target, single_messages
from bench.watch import REDIS, Watch, quantile, until, used, watching
from infra.grpc_server import bearer
from protos.costcenter.v1 import types_pb2
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from protos.smsgateway.v1.sms_gateway_pb2_grpc import SmsGatewayStub

_CALLERS = 64
_SECONDS_MAX = 300.0
# Leases, notes of stream entries, settled groups: all is given back and forgotten by then.
_SETTLE_SECONDS = 8.0
_CALL_SECONDS = 10.0


async def woken(watch: Watch, target: Target, brands: Sequence[int]) -> list[float]:
    """Milliseconds from the reply of SendSms to the arrival of the carrier call, brand by brand."""
    waits = []
    run = secrets.token_hex(4)
    async with target.channel() as channel:
        stub = SmsGatewayStub(channel)
        for brand_id in brands:
            _, totals = await watch.taken_on(limit=1)
            after = int(totals["messages"])
            await stub.SendSms(
                pb.SendSmsRequest(
                    brand_id=brand_id, request_id=run, sms_type=types_pb2.SMS_TYPE_VERIFICATION,
                    mobile=f"+861370{brand_id:06d}5", text="【示例】验证码 482913，5 分钟内有效。",
                ),
                metadata=bearer(target.token), timeout=_CALL_SECONDS,
            )  # fmt: skip
            accepted = time.time()
            await until(partial(watch.has_taken_on, after), seconds_max=_CALL_SECONDS, poll_seconds=0.01)
            entries, _ = await watch.taken_on(after, 1)
            waits.append(1_000 * (datetime.fromisoformat(entries[0]["time"]).timestamp() - accepted))
    return sorted(waits)


async def run(brands: int, messages: int, seconds: float, sample: int) -> dict[str, Any]:
    """Memory in megabytes and processor time in percent of a processor, by process."""
    console.print(f"{brands:,} brands")
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder)) as running, watching(running) as watch:
            target = Target(running.file.gateway_target, running.file.token)
            await fill(running, range(1, brands + 1))
            await single_messages(
                target, running.file.database_url, messages=messages, callers=_CALLERS,
                brands=range(1, brands + 1), seconds_max=_SECONDS_MAX,
            )  # fmt: skip
            await asyncio.sleep(_SETTLE_SECONDS)
            waiting = await watch.waiting()
            before, started = await watch.processes(), time.perf_counter()
            redis = await watch.redis_megabytes()
            console.print(f"idle for {seconds:g} s")
            await asyncio.sleep(seconds)
            after = await watch.processes()
            percent = used(before, after, time.perf_counter() - started)
            chosen = random.Random(1).sample(range(1, brands + 1), min(sample, brands))
            waits = await woken(watch, target, chosen) if chosen else []
    return {
        "brands": brands,
        "waiting": waiting,
        "megabytes": {name: process.megabytes for name, process in after.items()} | {"redis, its data": redis},
        "percent": percent,
        "wake_ms": [round(wait, 1) for wait in waits],
    }


async def measure(brands: int, seconds: float, sample: int) -> dict[str, Any]:
    """Both stacks."""
    one = await run(1, brands, seconds, 0)
    many = await run(brands, brands, seconds, sample)
    return {"one": one, "many": many}


def queues(result: dict[str, Any]) -> tuple[float, float]:
    """What gateway, workers and Redis take more with many idle brands than with one: megabytes, % of a processor."""
    one, many = result["one"], result["many"]
    names = [name for name in many["percent"] if name in ("gateway", REDIS) or name.startswith("worker")]
    return (
        sum(many["megabytes"][name] - one["megabytes"][name] for name in names),
        sum(many["percent"][name] - one["percent"][name] for name in names),
    )


def figures(result: dict[str, Any]) -> list[Figure]:
    """What it says of goal 6."""
    megabytes, percent = queues(result)
    brands = f"{result['many']['brands']:,}"
    return [
        Figure(6, f"{brands} idle brands, memory", "MB", [megabytes], aim=50, at_most=True),
        # A percent is less than what two looks at one idle stack differ by.
        Figure(6, f"{brands} idle brands, processor", "%", [percent], aim=1, at_most=True),
        Figure(
            6, "first message of an idle brand to carrier call, p99", "ms", [quantile(result["many"]["wake_ms"], 0.99)],
            aim=100, at_most=True,
        ),
    ]  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """The figures as a table."""
    one, many = result["one"], result["many"]
    table = Table("process", "one brand, MB", f"{many['brands']:,} brands, MB", "more", "one, % cpu", "many, % cpu")
    for name in many["megabytes"]:
        sizes = (one["megabytes"][name], many["megabytes"][name])
        percent = (one["percent"].get(name, 0.0), many["percent"].get(name, 0.0))
        more = f"{sizes[1] - sizes[0]:+,.1f}"
        table.add_row(name, *(f"{value:,.1f}" for value in sizes), more, *(f"{value:.2f}" for value in percent))
    console.print(table)
    memory, processor = queues(result)
    console.print(f"gateway, workers, Redis: {memory:+.1f} MB, {processor:+.2f} % of a processor")
    waits = many["wake_ms"]
    console.print(
        f"first message of {len(waits)} idle brands, accepted to carrier call: p50 {quantile(waits, 0.5):.0f} ms, "
        f"p99 {quantile(waits, 0.99):.0f} ms, greatest {waits[-1]:.0f} ms"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.idle", description=__doc__)
    parser.add_argument("--brands", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20, help="how long the idle stack is watched")
    parser.add_argument("--sample", type=int, default=100, help="brands that send once more")
    arguments = parser.parse_args()
    result = uvloop.run(measure(arguments.brands, arguments.seconds, arguments.sample))
    show(result)
    write("idle", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
