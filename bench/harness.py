"""What all benches share: a stack of their own, a yardstick beside it, and where results go."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.console import Console

from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from smsbill import reconcile
from smsbill.settings import StackSettings
from smsbill.stack import Stack

CALLERS = 256
BRANDS = 1_000
SEGMENTS = 100_000_000
# Messages that the simulator remembers: more than the longest run sends, as it refuses them when its record is full.
_RECORD_MAX = 20_000_000
# Calls that prepare a bench, under way at once.
_FILLERS = 32
RESULTS = Path(__file__).parent / "results"

# Where there is no terminal to ask, tables are as wide as they need.
console = Console(width=None if sys.stdout.isatty() else 132)


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

    async def adjust(_name: str, variables: Mapping[str, str]) -> Mapping[str, str]:
        return {**variables, "SMSBILL_SIMULATOR_RECORD_MAX": str(_RECORD_MAX)}

    running = Stack(settings, simulator=True, notify=lambda line: console.print(f"[yellow]{line}"), adjust=adjust)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


@asynccontextmanager
async def yardstick(kind: str, *arguments: str) -> AsyncIterator[str]:
    """A server of `bench.yardsticks` as a process; its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.yardsticks", kind, "127.0.0.1:0", *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        port = await asyncio.wait_for(process.stdout.readline(), 30)
        if not port:
            raise RuntimeError(f"the {kind} yardstick ended at its start, see above")
        yield f"127.0.0.1:{int(port)}"
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def fill(running: Stack, brands: Sequence[int]) -> None:
    """Brands with more segments than any run pays, several at a time; shows how far it is."""
    client = running.client()
    left = list(reversed(brands))

    async def one_by_one() -> None:
        while left:
            brand_id = left.pop()
            await client.call(client.admin.PutBrand, admin_pb.PutBrandRequest(brand_id=brand_id, name=f"b{brand_id}"))
            await client.call(
                client.admin.AdjustPackage,
                admin_pb.AdjustPackageRequest(
                    brand_id=brand_id, request_id="fill", author="bench", reason="bench",
                    grant=admin_pb.GrantAdjustment(segments=SEGMENTS),
                ),
            )  # fmt: skip
            if left and len(left) % 1_000 == 0:
                console.print(f"filling brands, {len(left):,} left")

    try:
        await asyncio.gather(*(one_by_one() for _ in range(_FILLERS)))
    finally:
        await client.close()


def memory_megabytes(running: Stack) -> dict[str, float]:
    """Resident memory of each process."""
    return {
        process.name: round(psutil.Process(process.pid).memory_info().rss / 1e6, 1) for process in running.file.children
    }


async def differences(running: Stack) -> list[dict[str, object]]:
    """What `smsbill reconcile` says of a stack."""
    console.print("reconcile")
    found = await reconcile.run(running.reconcile_settings(), progress=lambda _what, _done, _total: None)
    return [difference.as_dict() for difference in found]


def write(name: str, result: Mapping[str, object]) -> Path:
    """Write a bench's result, and when it was, beside the others."""
    RESULTS.mkdir(exist_ok=True)
    at = datetime.now(UTC)
    path = RESULTS / f"{name}-{at:%Y%m%dT%H%M%S}.json"
    path.write_text(json.dumps({"at": at.isoformat(timespec="seconds"), **result}, indent=2))
    console.print(f"written to {path}")
    return path
