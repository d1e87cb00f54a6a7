"""`make bench`: the whole stack on this machine against a server that does nothing, in turn, several rounds.

Figures of one run compare; figures of two runs on a noisy machine do not. What is printed is the median of the rounds
with the least and the greatest, and the ratio to the yardstick measured in the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from bench.load import Target, batch_messages, batch_pairs, single_messages, unary_pairs
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from smsbill import reconcile
from smsbill.settings import StackSettings
from smsbill.stack import Stack

CALLERS = 256
BRANDS = 1_000
SEGMENTS = 100_000_000
RESULTS = Path(__file__).parent / "results"

console = Console()


@asynccontextmanager
async def stack(folder: Path, *, workers: int | None = None) -> AsyncIterator[Stack]:
    """The whole stack on free ports with an empty database; `workers` as set when not given."""
    settings = StackSettings(
        data_dir=folder / "data",
        costcenter_address="127.0.0.1:0",
        gateway_address="127.0.0.1:0",
        http_address="127.0.0.1:0",
        log_level="WARNING",
    )
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers})
    running = Stack(settings, simulator=True, notify=lambda line: console.print(f"[yellow]{line}"))
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


@asynccontextmanager
async def noop_server(token: str) -> AsyncIterator[Target]:
    """The yardstick as a process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.noop", "127.0.0.1:0", token, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), 30))
        yield Target(f"127.0.0.1:{port}", token)
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def fill(running: Stack, brands: Sequence[int]) -> None:
    """Brands with more segments than any run pays."""
    client = running.client()
    try:
        for brand_id in brands:
            await client.call(client.admin.PutBrand, admin_pb.PutBrandRequest(brand_id=brand_id, name=f"b{brand_id}"))
            grant = admin_pb.GrantAdjustment(segments=SEGMENTS)
            await client.call(
                client.admin.AdjustPackage,
                admin_pb.AdjustPackageRequest(
                    brand_id=brand_id, request_id="fill", author="bench", reason="bench", grant=grant
                ),
            )
    finally:
        await client.close()


def memory_megabytes(running: Stack) -> dict[str, float]:
    """Resident memory of each process."""
    return {
        process.name: round(psutil.Process(process.pid).memory_info().rss / 1e6, 1) for process in running.file.children
    }


async def measure(rounds: int, seconds: float, batches: int, messages: int, batch_size: int) -> dict[str, object]:
    """Every figure, round by round."""
    brands = range(1, BRANDS + 1)
    series: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        series.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder)) as running:
            token = running.service_token
            ledger, gateway = Target(running.file.costcenter_target, token), running.file.gateway_target
            async with noop_server(token) as noop:
                console.print(f"filling {BRANDS} brands")
                await fill(running, brands)
                for number in range(1, rounds + 1):
                    console.print(f"round {number} of {rounds}")
                    yardstick = await unary_pairs(noop, seconds=seconds, callers=CALLERS, brands=brands[:1])
                    one = await unary_pairs(ledger, seconds=seconds, callers=CALLERS, brands=brands[:1])
                    many = await unary_pairs(ledger, seconds=seconds, callers=CALLERS, brands=brands)
                    note("no-op server, unary calls/s", yardstick.per_second)
                    note("no-op server, p99 ms", yardstick.p99_ms)
                    note("unary freeze and pay, one brand, calls/s", one.per_second)
                    note("unary freeze and pay, one brand, p99 ms", one.p99_ms)
                    note("unary, one brand / no-op", one.per_second / yardstick.per_second)
                    note("unary freeze and pay, 1,000 brands, calls/s", many.per_second)
                    note("unary freeze and pay, 1,000 brands, p99 ms", many.p99_ms)
                    note("unary, 1,000 brands / no-op", many.per_second / yardstick.per_second)
                    for name, some in (("one brand", brands[:1]), ("1,000 brands", brands)):
                        pairs = await batch_pairs(ledger, batches=batches, size=1_000, callers=4, brands=some)
                        note(f"batches of 1,000, {name}, pairs/s", pairs)
                    accepted, final = await single_messages(
                        Target(gateway, running.file.token),
                        running.file.database_url,
                        messages=messages,
                        callers=CALLERS,
                        brands=brands[:100],
                        seconds_max=300,
                    )
                    note("single messages accepted/s", accepted)
                    note("single messages, accepted to receipt booked, /s", final)
                    sent, booked = await batch_messages(
                        Target(gateway, running.file.token),
                        running.file.database_url,
                        messages=batch_size,
                        brand_id=number,
                        seconds_max=300,
                    )
                    note("batch messages, accepted to sent, /s", sent)
                    note("receipts of a batch booked, one request each, /s", booked)
            memory = memory_megabytes(running)
            found = await differences(running)
    return {
        "rounds": rounds,
        "series": series,
        "memory_megabytes": memory,
        "differences": found,
    }


async def differences(running: Stack) -> list[dict[str, object]]:
    """What `smsbill reconcile` says of a stack."""
    console.print("reconcile")
    found = await reconcile.run(running.reconcile_settings(), progress=lambda _what, _done, _total: None)
    return [difference.as_dict() for difference in found]


def write(name: str, result: Mapping[str, object]) -> None:
    """Write a bench's result, and when it was, beside the others; the whole stack's has no name."""
    RESULTS.mkdir(exist_ok=True)
    at = datetime.now(UTC)
    path = RESULTS / f"{name}{'-' if name else ''}{at:%Y%m%dT%H%M%S}.json"
    path.write_text(json.dumps({"at": at.isoformat(timespec="seconds"), **result}, indent=2))
    console.print(f"written to {path}")


def show(result: dict[str, object]) -> None:
    """The figures as a table."""
    table = Table("figure", "median", "least", "greatest")
    series = result["series"]
    assert isinstance(series, dict)
    for name, values in series.items():
        digits = 2 if "/ no-op" in name else 0
        table.add_row(
            name, *(f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
        )
    console.print(table)
    console.print("memory, MB:", result["memory_megabytes"])
    console.print("differences in reconcile:", len(result["differences"]))  # type: ignore[arg-type]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short rounds, under two minutes")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    sizes = (2, 2.0, 8, 2_000, 10_000) if arguments.quick else (arguments.rounds, 5.0, 20, 6_000, 100_000)
    result = uvloop.run(measure(*sizes))
    show(result)
    write("", result)
    return 1 if result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
