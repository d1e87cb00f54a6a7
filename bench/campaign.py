"""`python -m bench.campaign`: a file of many rows, each with values of its own, into the queue.

The command `smsbill send --file` runs as a process against a stack of its own. Told are rows a second from the start of
the command to its end, checking the file included, and the most memory that the command, the gateway and the cost
centre took. With `--kill N` the command is killed (SIGKILL) N times on its way and started again; with `--deliver`
workers send all of it to the simulated carrier, without receipts, and its record is compared with the file: everybody
exactly once, with the own text. `reconcile` closes each run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import uvloop
from rich.table import Table

from bench.harness import console, differences, fill, stack, write
from bench.watch import Watch, until, watching
from protos.costcenter.v1 import types_pb2
from protos.smsgateway.v1 import campaigns_pb2
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill.carrier_simulator import text_hash
from smsbill.stack import Stack

_BRAND = 1
_CAMPAIGN = "bench"
_TEXT = "【示例】{$name}，您的订单{$order}已发出，拒收请回复R"
_SAMPLE_SECONDS = 0.1
_SETTLE_SECONDS_MAX = 1_800.0
_PAGE = 10_000
_NAMES = ("张伟", "王芳", "李娜", "刘洋", "陈静", "杨帆", "赵磊", "黄敏")


def _rows(count: int) -> Iterator[tuple[str, str, str]]:
    """Number, name and order of each recipient; none twice."""
    for row in range(count):
        # Endings 0000 and 1111 mean something to the simulator.
        yield f"13{row // 500_000:01d}{row % 500_000:06d}22", _NAMES[row % len(_NAMES)], f"{row:08d}"


def write_file(path: Path, count: int) -> None:
    """A CSV file of so many recipients."""
    with path.open("w", encoding="utf-8") as file:
        file.write("mobile,name,order\n")
        for start in _rows(count):
            file.write(",".join(start) + "\n")


class Peaks:
    """The most memory that processes took, looked at ten times a second."""

    def __init__(self, running: Stack) -> None:
        self._processes = {child.name: psutil.Process(child.pid) for child in running.file.children}
        self.megabytes: dict[str, float] = {}

    def look(self, command: psutil.Process) -> None:
        """Note what everybody takes now."""
        for name, process in (*self._processes.items(), ("command", command)):
            with suppress(psutil.NoSuchProcess):
                taken = process.memory_info().rss / 1e6
                self.megabytes[name] = round(max(self.megabytes.get(name, 0.0), taken), 1)


async def command(running: Stack, path: Path, peaks: Peaks, kill_after: float | None) -> tuple[float, dict[str, Any]]:
    """Run the command, or kill it after so many seconds; its time and what it told."""
    variables = {
        **os.environ,
        "SMSBILL_COSTCENTER_TARGET": running.file.costcenter_target,
        "SMSBILL_GATEWAY_TARGET": running.file.gateway_target,
        "SMSBILL_TOKEN": running.file.token,
    }
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "smsbill", "send", "--brand", str(_BRAND), "--type", "marketing", "--text", _TEXT,
        "--file", str(path), "--campaign", _CAMPAIGN, "--json",
        stdout=asyncio.subprocess.PIPE, env=variables,
    )  # fmt: skip
    assert process.stdout is not None
    reading = asyncio.create_task(process.stdout.read())
    watched = psutil.Process(process.pid)
    while process.returncode is None:
        peaks.look(watched)
        if kill_after is not None and time.perf_counter() - started > kill_after:
            process.kill()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.wait()), _SAMPLE_SECONDS)
    seconds, told = time.perf_counter() - started, await reading
    if process.returncode != 0 and kill_after is None:
        raise RuntimeError(f"the command ended with {process.returncode}, see above")
    return seconds, json.loads(told) if process.returncode == 0 else {}


async def everybody_once(watch: Watch, rows: int) -> list[str]:
    """What the carrier's record has otherwise than the file; the first of it."""
    wanted = {
        number: text_hash(_TEXT.replace("{$name}", name).replace("{$order}", order))
        for number, name, order in _rows(rows)
    }
    wrong: list[str] = []
    after = 0
    while True:
        entries, _ = await watch.taken_on(after, _PAGE)
        if not entries:
            break
        wrong += [
            f"{entry['mobile']} twice, or with another text"
            for entry in entries
            if wanted.pop(entry["mobile"], None) != entry["text_hash"]
        ]
        after += len(entries)
    wrong += [f"{number} never" for number in list(wanted)[:10]]
    return wrong[:20]


async def run(rows: int, kills: int, deliver: bool) -> dict[str, Any]:
    """One campaign; what was measured."""
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as name:
        folder = Path(name)
        path = folder / "people.csv"
        write_file(path, rows)
        async with stack(folder, workers=2 if deliver else 1) as running, watching(running) as watch:
            await watch.simulator(receipt_loss=1)
            await fill(running, [_BRAND])
            if not deliver:
                await _hold(running)
            peaks, seconds, killed = Peaks(running), 0.0, 0
            for _ in range(kills):
                # Early enough that the next one is still on its way.
                took, told = await command(running, path, peaks, random.uniform(3, 3 + rows / 20_000 / kills))
                seconds += took
                killed += not told
            took, told = await command(running, path, peaks, None)
            seconds += took
            result: dict[str, Any] = {
                "rows": rows, "accepted": told["accepted"], "kills": killed, "seconds": round(seconds, 1),
                "rows_per_second": round(rows / seconds), "peak_megabytes": peaks.megabytes,
                "file_megabytes": round(path.stat().st_size / 1e6, 1),
            }  # fmt: skip
            console.print(result)
            if deliver:
                started = time.perf_counter()

                async def all_taken() -> bool:
                    _, totals = await watch.taken_on(limit=1)
                    return int(totals["messages"]) >= rows

                await until(all_taken, seconds_max=_SETTLE_SECONDS_MAX, poll_seconds=1)
                result["seconds_until_sent"] = round(time.perf_counter() - started, 1)
                result["not_exactly_once"] = await everybody_once(watch, rows)
            result["differences"] = await differences(running)
    return result


async def _hold(running: Stack) -> None:
    """Have what comes wait, so that nothing but the way into the queue is measured: a batch and a pause."""
    client = running.client()
    header = pb.BatchHeader(
        brand_id=_BRAND, request_id="first", sms_type=types_pb2.SMS_TYPE_MARKETING, text="x", campaign_id=_CAMPAIGN,
    )  # fmt: skip
    parts = [
        pb.SendBatchSmsRequest(header=header),
        pb.SendBatchSmsRequest(recipients=pb.BatchRecipients(mobiles=["19900090009"])),
    ]
    try:
        await client.gateway.SendBatchSms(iter(parts), metadata=client.metadata, timeout=30)
        request = campaigns_pb2.PauseCampaignRequest(brand_id=_BRAND, campaign_id=_CAMPAIGN)
        await client.call(client.campaigns.PauseCampaign, request)
    finally:
        await client.close()


def main() -> int:
    """Measure, print and write the result; 1 when somebody was not sent to exactly once or a figure differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000, help="rows of the file (50000)")
    parser.add_argument("--kill", type=int, default=0, help="times that the command is killed on its way (0)")
    parser.add_argument("--deliver", action="store_true", help="have workers send all of it, and compare the record")
    options = parser.parse_args()
    result = uvloop.run(run(options.rows, options.kill, options.deliver))
    peaks = result["peak_megabytes"]
    table = Table("rows", "rows/s", *(f"{name} MB" for name in peaks))
    table.add_row(f"{result['rows']:,}", f"{result['rows_per_second']:,}", *(f"{peak:.0f}" for peak in peaks.values()))
    console.print(table)
    write("campaign", result)
    return int(bool(result["differences"] or result.get("not_exactly_once")))


if __name__ == "__main__":
    sys.exit(main())
