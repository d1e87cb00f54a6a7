"""`python -m bench.soak`: a steady, moderate load for long, and what grows meanwhile.

Single messages at a fixed rate and a batch every minute, receipts pushed. After the first quarter, in which pools and
caches fill, memory, file handles and connections must stay as they are.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop
from rich.table import Table

from bench.harness import console, differences, fill, stack, write
from bench.load import Target
from bench.sustained import BRANDS, Load, growth, parts, sampled
from bench.watch import SIMULATOR, watching
from infra.grpc_server import bearer
from protos.costcenter.v1 import types_pb2
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from protos.smsgateway.v1.sms_gateway_pb2_grpc import SmsGatewayStub

_BATCH_SECONDS = 60.0
_BATCH_MESSAGES = 1_000
_CALL_SECONDS = 60.0
_END_SECONDS = 120.0
_TYPES = (types_pb2.SMS_TYPE_VERIFICATION, types_pb2.SMS_TYPE_NOTIFICATION, types_pb2.SMS_TYPE_MARKETING)


async def steady(load: Load, rate: float, seconds: float) -> None:
    """Messages at a rate, whatever becomes of earlier ones."""
    async with load.target.channel() as channel:
        stub = SmsGatewayStub(channel)

        async def single(number: int) -> None:
            await stub.SendSms(
                pb.SendSmsRequest(
                    brand_id=1 + number % BRANDS, request_id=f"{load.run}-{number}",
                    sms_type=_TYPES[number % len(_TYPES)], mobile=f"+86139{number % 10**7:07d}5",
                    text="【示例】验证码 482913，5 分钟内有效。",
                ),
                metadata=bearer(load.target.token), timeout=_CALL_SECONDS,
            )  # fmt: skip
            load.accepted += 1

        async def batch(number: int) -> None:
            await stub.SendBatchSms(
                parts(1 + number % BRANDS, f"{load.run}-batch-{number}", _BATCH_MESSAGES),
                metadata=bearer(load.target.token), timeout=_CALL_SECONDS,
            )  # fmt: skip
            load.accepted += _BATCH_MESSAGES

        started, batches = time.perf_counter(), 0
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(started + number / rate - time.perf_counter())
                group.create_task(single(number))
                if number / rate >= batches * _BATCH_SECONDS:
                    group.create_task(batch(batches))
                    batches += 1


async def measure(rate: float, seconds: float, interval: float) -> dict[str, Any]:
    """The rows of all intervals."""
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder)) as running, watching(running) as watch:
            await fill(running, range(1, BRANDS + 1))
            load = Load(watch, Target(running.file.gateway_target, running.file.token), "delivered")
            await load.begin()
            rows = await sampled(watch, load, interval, lambda: steady(load, rate, seconds))
            await load.ended(_END_SECONDS)
            found = await differences(running)
    return {
        "rate": rate,
        "seconds": seconds,
        "interval": interval,
        "messages": load.accepted,
        "rows": rows,
        "differences": found,
    }


def show(result: dict[str, Any]) -> None:
    """What each process has after a quarter and at the end."""
    rows: Sequence[dict[str, Any]] = result["rows"][len(result["rows"]) // 4 :]
    tenth = max(1, len(rows) // 10)
    table = Table("process", "MB", "MB at the end", "handles", "handles at the end", "% cpu")
    for name in rows[0]["megabytes"]:
        sizes = (statistics.median(row["megabytes"][name] for row in some) for some in (rows[:tenth], rows[-tenth:]))
        handles = (statistics.median(row["handles"][name] for row in some) for some in (rows[:tenth], rows[-tenth:]))
        percent = statistics.median(row["percent"].get(name, 0.0) for row in rows)
        table.add_row(
            name, *(f"{size:,.1f}" for size in sizes), *(f"{count:,.0f}" for count in handles), f"{percent:.1f}"
        )
    console.print(table)
    connections = [row["connections"] for row in rows]
    most = max(sum(row["waiting"].values()) for row in rows)
    console.print(
        f"{result['messages']:,} messages; memory grows by {growth(rows, result['interval']):+.2f} MB/min without "
        f"{SIMULATOR}; connections {min(connections)} to {max(connections)}; waits at most {most:,}; "
        f"differences in reconcile: {len(result['differences'])}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__)
    parser.add_argument("--rate", type=float, default=50, help="single messages a second")
    parser.add_argument("--seconds", type=float, default=3_600)
    parser.add_argument("--interval", type=float, default=30, help="seconds of a row")
    arguments = parser.parse_args()
    result = uvloop.run(measure(arguments.rate, arguments.seconds, arguments.interval))
    show(result)
    write("soak", result)
    return 1 if result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
