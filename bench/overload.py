"""`python -m bench.overload`: freezing and paying offered at three times what the cost centre can take.

First the peak: callers that wait for each reply. Then calls start at a fixed pace, whatever comes back. A freeze that
is refused is lost; one that is accepted is paid. Both are measured with the same client, a cheap one, as it shares the
processors; how much of them it and the server take is shown beside.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
import uvloop
from rich.table import Table

from bench.figures import Figure
from bench.harness import BRANDS, CALLERS, console, differences, fill, stack, write
from bench.load import Target
from bench.wire import Wire, connect
from protos.costcenter.v1 import cost_center_pb2 as pb
from protos.costcenter.v1 import types_pb2

FREEZE = "/costcenter.v1.CostCenter/SmsSendPrePay"
PAY = "/costcenter.v1.CostCenter/SmsSendPay"
CONNECTIONS = 8
# Calls under way at most: more than any bound of the server's, so that the server's bounds are what is seen.
UNDER_WAY_MAX = 50_000
# How often calls are started that are due.
TICK_SECONDS = 0.002
# How long is waited for the last replies.
DRAIN_SECONDS_MAX = 60
# What a caller that times out after five seconds still gets.
ACCEPTED_P99_MS = 4_000
OK = grpc.StatusCode.OK.value[0]
# The library's own refusal is CANCELLED (SMSBILL_GRPC_PENDING_MAX).
REFUSED = {code.value[0]: code.name for code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)}


@dataclass(slots=True)
class Tally:
    """What came of the calls that started while it was counted."""

    started: int = 0
    under_way: int = 0
    accepted_within: int = 0
    statuses: Counter[int | None] = field(default_factory=Counter)
    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)


class Offer:
    """Freezes and payments over some connections, each by its turn."""

    def __init__(self, wires: list[Wire], brands: int) -> None:
        self._wires = wires
        self._brands = brands
        self._run = secrets.token_hex(4)
        self._turn = 0
        self._payable: deque[tuple[int, str, str]] = deque()
        self._counting = True
        self.tally = Tally()

    async def closed(self, callers: int, seconds: float) -> float:
        """Callers that each wait for a reply; calls/s."""
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            self._start(callers - self.tally.under_way)
            await asyncio.sleep(TICK_SECONDS)
        rate = self.tally.accepted_within / elapsed
        await self._drain()
        return rate

    async def open(self, per_second: float, seconds: float) -> tuple[float, float]:
        """Calls at a pace; (accepted/s, started/s)."""
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            due = round(per_second * elapsed) - self.tally.started
            self._start(min(due, UNDER_WAY_MAX - self.tally.under_way))
            await asyncio.sleep(TICK_SECONDS)
        rate, offered = self.tally.accepted_within / elapsed, self.tally.started / elapsed
        await self._drain()
        return rate, offered

    async def _drain(self) -> None:
        self._counting = False
        end = time.perf_counter() + DRAIN_SECONDS_MAX
        while time.perf_counter() < end and self.tally.under_way:  # noqa: ASYNC110 - replies come by callbacks
            await asyncio.sleep(0.01)

    def _start(self, calls: int) -> None:
        for _ in range(max(0, calls)):
            wire = self._wires[self._turn % len(self._wires)]
            self._turn += 1
            if not wire.ready:
                continue
            self.tally.started += 1
            self.tally.under_way += 1
            if self._payable:
                self._pay(wire, *self._payable.popleft())
            else:
                self._freeze(wire)
        for wire in self._wires:
            wire.flush()

    def _freeze(self, wire: Wire) -> None:
        brand_id = self._turn * 7_919 % self._brands + 1
        request_id = f"{self._run}-{self._turn}"
        request = pb.SmsSendPrePayRequest(
            brand_id=brand_id, request_id=request_id, sms_type=types_pb2.SMS_TYPE_VERIFICATION, segments=1
        )

        def done(status: int | None, reply: bytes, seconds: float) -> None:
            self._end(status, seconds)
            if status == OK:
                self._payable.append((brand_id, request_id, pb.SmsSendPrePayResponse.FromString(reply).order_no))

        wire.send(FREEZE, request.SerializeToString(), done)

    def _pay(self, wire: Wire, brand_id: int, request_id: str, order_no: str) -> None:
        request = pb.SmsSendPayRequest(brand_id=brand_id, request_id=request_id, order_no=order_no, segments=1)
        wire.send(PAY, request.SerializeToString(), lambda status, _reply, seconds: self._end(status, seconds))

    def _end(self, status: int | None, seconds: float) -> None:
        tally = self.tally
        tally.under_way -= 1
        tally.statuses[status] += 1
        if status == OK:
            tally.accepted.append(seconds)
            tally.accepted_within += self._counting
        elif status in REFUSED:
            tally.refused.append(seconds)


def _quantile(values: list[float], share: float) -> float:
    """In milliseconds; 0 of none."""
    return sorted(values)[int(len(values) * share)] * 1_000 if values else 0.0


def _processor_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


async def one_round(target: Target, server_pid: int, seconds: float, factor: float) -> dict[str, float]:
    """Peak, then overload."""
    wires = [await connect(target.address, target.token) for _ in range(CONNECTIONS)]
    try:
        peak_offer = Offer(wires, BRANDS)
        own = time.process_time()
        peak = await peak_offer.closed(CALLERS, seconds)
        peak_client = (time.process_time() - own) / seconds
        offer = Offer(wires, BRANDS)
        own, server = time.process_time(), _processor_seconds(server_pid)
        accepted, offered = await offer.open(peak * factor, seconds)
        client, taken = time.process_time() - own, _processor_seconds(server_pid) - server
    finally:
        for wire in wires:
            wire.close()
    tally = offer.tally
    ended = sum(tally.statuses.values())
    return {
        "peak, calls/s": round(peak),
        "peak, p99 ms": round(_quantile(peak_offer.tally.accepted, 0.99), 1),
        "peak, processors of the client": round(peak_client, 2),
        "offered, calls/s": round(offered),
        "accepted, calls/s": round(accepted),
        "accepted / peak": round(accepted / peak, 2),
        "accepted, median ms": round(_quantile(tally.accepted, 0.5), 1),
        "accepted, p99 ms": round(_quantile(tally.accepted, 0.99), 1),
        **{f"{name}, of the calls": round(tally.statuses[code] / max(ended, 1), 3) for code, name in REFUSED.items()},
        "refused, median ms": round(_quantile(tally.refused, 0.5), 1),
        "refused, p99 ms": round(_quantile(tally.refused, 0.99), 1),
        "other outcomes": ended - len(tally.accepted) - len(tally.refused) + tally.under_way,
        "overload, processors of the client": round(client / seconds, 2),
        "overload, processors of the cost centre": round(taken / seconds, 2),
    }


async def measure(rounds: int, seconds: float, factor: float) -> dict[str, Any]:
    """All figures."""
    runs = []
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder)) as running:
            target = Target(running.file.costcenter_target, running.service_token)
            pid = next(child.pid for child in running.file.children if child.name == "costcenter")
            console.print(f"filling {BRANDS} brands")
            await fill(running, range(1, BRANDS + 1))
            for number in range(1, rounds + 1):
                console.print(f"round {number} of {rounds}")
                runs.append(await one_round(target, pid, seconds, factor))
                console.print(runs[-1])
            found = await differences(running)
    return {
        "factor": factor,
        "rounds": runs,
        "differences": found,
    }


def figures(result: dict[str, Any]) -> list[Figure]:
    """What it says of goal 8."""
    runs = result["rounds"]

    def of(name: str) -> list[float]:
        return [run[name] for run in runs]

    return [
        Figure(8, f"{result['factor']:g} times the peak offered, accepted / peak", "", of("accepted / peak"), aim=0.9),
        Figure(8, "… accepted, p99", "ms", of("accepted, p99 ms"), aim=ACCEPTED_P99_MS, at_most=True),
        Figure(8, "… refused, p99", "ms", of("refused, p99 ms")),
        *(
            Figure(8, f"… refused as {name}, of the calls", "", of(f"{name}, of the calls"))
            for name in REFUSED.values()
        ),
    ]


def show(result: dict[str, Any]) -> None:
    """The figures as a table."""
    table = Table("figure", "median", "least", "greatest")
    for name in result["rounds"][0]:
        values = [run[name] for run in result["rounds"]]
        table.add_row(name, *(f"{value:,}" for value in (statistics.median(values), min(values), max(values))))
    console.print(table)
    console.print("differences in reconcile:", len(result["differences"]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.overload", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of the peak, and of the overload, each round")
    parser.add_argument("--factor", type=float, default=3.0, help="calls offered, in times of the peak")
    arguments = parser.parse_args()
    result = uvloop.run(measure(arguments.rounds, arguments.seconds, arguments.factor))
    show(result)
    write("overload", result)
    return 1 if result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
