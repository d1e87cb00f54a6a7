"""`smsbill top`: what the processes do right now, from their metrics; they do no more for it than for a scrape."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group, RenderableType
from rich.text import Text

from smsbill.failure import CommandError
from smsbill.tables import table

Labels = Mapping[str, str]

# A scrape is some 100 kB of text.
_ANSWER_BYTES_MAX = 16 * 1024 * 1024
_ASK_SECONDS = 5.0
_ERRORS = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"})
_CIRCUIT = {0: "works", 1: "is tried", 2: "rests"}


@dataclass(slots=True)
class Reading:
    """The metrics of all processes at a moment. `samples` by name: (process, labels, value); `down`: why not."""

    at: float
    samples: dict[str, list[tuple[str, Labels, float]]] = field(default_factory=lambda: defaultdict(list))
    down: dict[str, str] = field(default_factory=dict)

    def add(self, process: str, text: str) -> None:
        """Add what a process tells. Raises `ValueError` for what is not Prometheus's text format."""
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples[sample.name].append((process, sample.labels, sample.value))

    def total(self, name: str, by: Iterable[str], **where: str) -> dict[tuple[str, ...], float]:
        """Sums of a metric by labels (`process` is one), of those samples whose labels are as given."""
        return self._gathered(name, by, where, lambda so_far, value: so_far + value)

    def highest(self, name: str, by: Iterable[str], **where: str) -> dict[tuple[str, ...], float]:
        """The highest values of a metric, likewise."""
        return self._gathered(name, by, where, max)

    def _gathered(
        self, name: str, by: Iterable[str], where: Labels, join: Callable[[float, float], float]
    ) -> dict[tuple[str, ...], float]:
        result: dict[tuple[str, ...], float] = {}
        names = tuple(by)
        for process, labels, value in self.samples.get(name, ()):
            if any(labels.get(label) != wanted for label, wanted in where.items()):
                continue
            key = tuple(process if label == "process" else labels.get(label, "") for label in names)
            result[key] = join(result[key], value) if key in result else value
        return result


async def read(session: aiohttp.ClientSession, urls: Mapping[str, str]) -> Reading:
    """Ask every process. Raises `CommandError` when none answers."""
    reading = Reading(time.monotonic())

    async def ask(name: str, url: str) -> None:
        try:
            async with session.get(url) as answer:
                text = (await answer.content.read(_ANSWER_BYTES_MAX)).decode("utf-8", "replace")
                if answer.status != 200:
                    raise ValueError(f"answers {answer.status}")
                reading.add(name, text)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            reading.down[name] = str(error).splitlines()[0][:200] if str(error) else type(error).__name__

    await asyncio.gather(*(ask(name, url) for name, url in urls.items()))
    if len(reading.down) == len(urls):
        name, why = next(iter(reading.down.items()))
        raise CommandError(f"no process tells its metrics; {urls[name]}: {why} – see what runs with `smsbill doctor`")
    return reading


class Rates:
    """What grew between two readings, per second. A counter that went back began anew: it grew by what it is."""

    def __init__(self, before: Reading, now: Reading) -> None:
        self._before, self._now = before, now
        self.seconds = max(now.at - before.at, 1e-3)

    def of(self, name: str, by: Iterable[str], **where: str) -> dict[tuple[str, ...], float]:
        """Rates of a counter by labels."""
        names = tuple(by)
        own = (*names, "process")
        before = self._before.total(name, own, **where)
        grown: dict[tuple[str, ...], float] = {}
        for key, value in self._now.total(name, own, **where).items():
            earlier = before.get(key, 0.0)
            rate = (value - earlier if value >= earlier else value) / self.seconds
            grown[key[:-1]] = grown.get(key[:-1], 0.0) + rate
        return grown

    def one(self, name: str, **where: str) -> float:
        """The rate of a counter over all its labels."""
        return self.of(name, (), **where).get((), 0.0)

    def mean(self, name: str, by: Iterable[str]) -> dict[tuple[str, ...], tuple[float, float]]:
        """Of a histogram: observations per second, and their mean."""
        counts, sums = self.of(f"{name}_count", by), self.of(f"{name}_sum", by)
        return {key: (count, sums.get(key, 0.0) / count if count else 0.0) for key, count in counts.items()}


def figures(before: Reading, now: Reading, urls: Mapping[str, str]) -> dict[str, Any]:
    """What `smsbill top` tells, as JSON values; rates are per second."""
    rates = Rates(before, now)
    by_result = {key[0]: rate for key, rate in rates.of("smsbill_messages_settled_total", ["result"]).items()}
    ended = by_result.get("sent", 0.0) + by_result.get("failed", 0.0)
    calls = rates.of("smsbill_grpc_calls_total", ["status"])
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "seconds": round(rates.seconds, 3),
        "messages": {
            "accepted": round(rates.one("smsbill_messages_total", result="accepted"), 1),
            "refused": round(rates.one("smsbill_messages_total", result="refused"), 1),
            **{name: round(by_result.get(name, 0.0), 1) for name in ("sent", "delivered", "undelivered", "failed")},
            "success": round(by_result.get("sent", 0.0) / ended, 4) if ended else None,
        },
        "calls": {
            "total": round(sum(calls.values()), 1),
            "failed": round(sum(rate for key, rate in calls.items() if key[0] in _ERRORS), 1),
        },
        "ledger": {
            **{key[0]: int(value) for key, value in now.highest("smsbill_ledger_balance_segments", ["state"]).items()},
            "brands": {key[0]: int(value) for key, value in now.highest("smsbill_ledger_brands", ["status"]).items()},
        },
        "queues": [
            {"type": key[0], "mode": key[1], "entries": int(value), "oldest_seconds": round(oldest.get(key, 0.0), 1)}
            for oldest in [now.highest("smsbill_queue_oldest_seconds", ["type", "mode"])]
            for key, value in sorted(now.highest("smsbill_queue_depth", ["type", "mode"]).items())
        ],
        "groups": _groups(rates),
        "carriers": _carriers(rates, now),
        "brands": _brands(now),
        "waiting": {key[0]: int(value) for key, value in now.highest("smsbill_backlog_items", ["what"]).items()},
        "parked": {key[0]: int(value) for key, value in now.highest("smsbill_parked", ["what"]).items()},
        "processes": _processes(rates, now, urls),
    }


def _groups(rates: Rates) -> list[dict[str, Any]]:
    """Groups of the ledger and the gateway, and of each stage of the workers: how many, how large, how long waited."""
    ledger = rates.mean("smsbill_ledger_group_operations", []).get((), (0.0, 0.0))
    wait = rates.mean("smsbill_ledger_group_wait_seconds", []).get((), (0.0, 0.0))
    found = [("ledger", *ledger, wait[1])]
    waits = rates.mean("smsbill_gateway_group_wait_seconds", ["group"])
    for key, (count, size) in sorted(rates.mean("smsbill_gateway_group_calls", ["group"]).items()):
        found.append((f"gateway {key[0]}", count, size, waits.get(key, (0.0, 0.0))[1]))
    times = rates.mean("smsbill_worker_stage_seconds", ["stage"])
    for key, (count, size) in sorted(rates.mean("smsbill_worker_stage_items", ["stage"]).items()):
        found.append((f"worker {key[0]}", count, size, times.get(key, (0.0, 0.0))[1]))
    return [
        {"group": name, "groups": round(count, 1), "size": round(size, 1), "seconds": round(seconds, 4)}
        for name, count, size, seconds in found
    ]


def _carriers(rates: Rates, now: Reading) -> list[dict[str, Any]]:
    circuits = now.highest("smsbill_carrier_circuit", ["account"])
    stopped = now.highest("smsbill_carrier_account_paused", ["account"])
    balances = now.highest("smsbill_carrier_balance_segments", ["account"])
    times = rates.mean("smsbill_carrier_call_seconds", ["account"])
    verdicts = rates.of("smsbill_carrier_messages_total", ["account", "verdict"])
    receipts = rates.of("smsbill_receipts_settled_total", ["account"])
    names = sorted({key[0] for found in (circuits, times, verdicts, receipts) for key in found})
    told = []
    for name in names:
        messages = sum(rate for key, rate in verdicts.items() if key[0] == name)
        accepted = verdicts.get((name, "accepted"), 0.0)
        told.append(
            {
                "account": name,
                "state": "is stopped" if stopped.get((name,)) else _CIRCUIT[int(circuits.get((name,), 0))],
                "messages": round(messages, 1),
                "accepted": round(accepted / messages, 4) if messages else None,
                "seconds": round(times.get((name,), (0.0, 0.0))[1], 4),
                "receipts": round(receipts.get((name,), 0.0), 1),
                "balance": int(balances[name,]) if (name,) in balances else None,
            }
        )
    return told


def _brands(now: Reading) -> list[dict[str, int]]:
    found = now.highest("smsbill_brand_balance_segments", ["brand_id", "state"])
    ids = sorted({int(key[0]) for key in found})
    brands = [
        {"brand_id": each, **{state: int(found.get((str(each), state), 0)) for state in ("available", "frozen")}}
        for each in ids
    ]
    # Who has least is looked at first.
    return sorted(brands, key=lambda brand: brand["available"])


def _processes(rates: Rates, now: Reading, urls: Mapping[str, str]) -> list[dict[str, Any]]:
    memory = now.total("process_resident_memory_bytes", ["process"])
    cpu = rates.of("process_cpu_seconds_total", ["process"])
    return [
        {
            "process": name,
            "up": name not in now.down,
            "cpu": round(cpu.get((name,), 0.0), 3),
            "memory_bytes": int(memory.get((name,), 0)),
            **({"error": now.down[name]} if name in now.down else {}),
        }
        for name in urls
    ]


def screen(told: Mapping[str, Any]) -> RenderableType:
    """The figures for a person."""
    messages, calls, ledger = told["messages"], told["calls"], told["ledger"]
    success = "–" if messages["success"] is None else f"{messages['success']:.1%}"
    lines = [
        f"{told['at']}   messages/s: {messages['accepted']:,.0f} accepted, {messages['sent']:,.0f} sent,"
        f" {messages['delivered']:,.0f} delivered, {messages['failed']:,.0f} failed   success {success}",
        f"calls/s: {calls['total']:,.0f}, {calls['failed']:,.0f} failed   segments: {ledger.get('available', 0):,}"
        f" available, {ledger.get('frozen', 0):,} frozen   brands: {_counted(ledger['brands'])}",
        f"waiting: {_counted(told['waiting'])}   parked: {_counted(told['parked'])}",
    ]
    return Group(
        *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines),
        table(
            "Queues",
            ("type", "mode", "#entries", "#oldest s"),
            [
                (each["type"], each["mode"], each["entries"], f"{each['oldest_seconds']:,.1f}")
                for each in told["queues"]
            ],
        ),
        table(
            "Carriers",
            ("account", "state", "#messages/s", "#accepted", "#ms", "#receipts/s", "#balance"),
            [
                (
                    each["account"],
                    each["state"],
                    f"{each['messages']:,.0f}",
                    "–" if each["accepted"] is None else f"{each['accepted']:.1%}",
                    f"{each['seconds'] * 1_000:,.1f}",
                    f"{each['receipts']:,.0f}",
                    each["balance"],
                )
                for each in told["carriers"]
            ],
        ),
        table(
            "Groups",
            ("group", "#groups/s", "#size", "#ms"),
            [
                (each["group"], f"{each['groups']:,.1f}", f"{each['size']:,.1f}", f"{each['seconds'] * 1_000:,.2f}")
                for each in told["groups"]
                if each["groups"]
            ],
        ),
        table(
            "Busiest brands (segments)",
            ("#brand", "#available", "#frozen"),
            [(each["brand_id"], each["available"], each["frozen"]) for each in told["brands"]],
        ),
        table(
            "Processes",
            ("process", "state", "#cpu", "#MB"),
            [
                (
                    each["process"],
                    "up" if each["up"] else each["error"],
                    f"{each['cpu']:.0%}",
                    each["memory_bytes"] // 1_000_000,
                )
                for each in told["processes"]
            ],
        ),
    )


def _counted(values: Mapping[str, int]) -> str:
    return ", ".join(f"{value:,} {name}" for name, value in values.items()) or "–"


async def watch(urls: Mapping[str, str], interval: float) -> AsyncIterator[dict[str, Any]]:
    """Figures every so many seconds, the first after one interval. Raises `CommandError` when no process answers."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ASK_SECONDS)) as session:
        before = await read(session, urls)
        while True:
            await asyncio.sleep(interval)
            now = await read(session, urls)
            yield figures(before, now, urls)
            before = now
