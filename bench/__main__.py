"""`make bench`: every goal of docs/performance.md measured one after another on this machine, beside its yardsticks.

Figures of one run compare; figures of two runs on a noisy machine do not. What is printed is the median of the rounds
with the least and the greatest; the ledger is reconciled after each part, and a difference ends the run with 1.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from bench import codes, expiry, flat, idle, overload, sustained, throughput
from bench.figures import Figure, chart, table
from bench.harness import console, write
from bench.ledger_data import Shape


@dataclass(frozen=True, slots=True)
class Part:
    """A bench: how it is run, in short (None: it takes too long for that) and whole, and what it says of the goals."""

    name: str
    goals: str
    quick: Callable[[], Awaitable[dict[str, Any]]] | None
    whole: Callable[[argparse.Namespace], Awaitable[dict[str, Any]]]
    figures: Callable[[dict[str, Any]], list[Figure]]


PARTS = (
    Part(
        "throughput", "1, 2",
        lambda: throughput.measure(1, 1.0),
        lambda options: throughput.measure(options.rounds, 5.0),
        throughput.figures,
    ),
    Part(
        "sustained", "3",
        lambda: sustained.measure(sustained.SCENARIOS, 3.0, 1.0, None),
        lambda options: sustained.measure(sustained.SCENARIOS, options.seconds, 5.0, None),
        sustained.figures,
    ),
    Part(
        "codes", "4",
        lambda: codes.measure(20_000, 50, 2.0, latency_ms=100),
        lambda options: codes.measure(options.backlog, 50, 30.0, latency_ms=100),
        codes.figures,
    ),
    Part(
        "flat", "5",
        None,
        lambda options: flat.measure(
            Shape(brands=flat.BRANDS, payments=options.payments), options.folder, options.rounds, 4.0
        ),
        flat.figures,
    ),
    Part(
        "idle", "6",
        None,
        lambda _: idle.measure(10_000, 20.0, 100),
        idle.figures,
    ),
    Part(
        "expiry", "7",
        lambda: expiry.measure(expiry.Shape(brands=200, packages=20_000), 1, 1.0, 4.0, alone=False),
        lambda _: expiry.measure(expiry.Shape(brands=10_000, packages=1_000_000), 1, 5.0, 60.0, alone=True),
        expiry.figures,
    ),
    Part(
        "overload", "8",
        lambda: overload.measure(1, 1.5, 3.0),
        lambda options: overload.measure(options.rounds, 5.0, 3.0),
        overload.figures,
    ),
)  # fmt: skip


async def _whole(part: Part, options: argparse.Namespace) -> dict[str, Any]:
    return await (part.quick() if options.quick and part.quick else part.whole(options))


def run(parts: list[Part], options: argparse.Namespace) -> dict[str, Any]:
    """The parts one after another; one that fails does not stop the others."""
    results: dict[str, Any] = {}
    failed: list[str] = []
    figures: list[Figure] = []
    for number, part in enumerate(parts, 1):
        console.rule(f"{part.name} ({number} of {len(parts)}), goals {part.goals}")
        started = time.perf_counter()
        try:
            result = uvloop.run(_whole(part, options))
        except Exception:
            traceback.print_exc()
            failed.append(part.name)
            continue
        results[part.name] = {**result, "took": round(time.perf_counter() - started, 1)}
        figures += part.figures(result)
        console.print(table(part.figures(result)))
    return {
        "quick": options.quick,
        "processors": psutil.cpu_count(),
        "figures": figures,
        "failed": failed,
        "differences": sum(len(result.get("differences", ())) for result in results.values()),
        "parts": results,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="in small, under two minutes, without flat and idle")
    parser.add_argument("--only", metavar="PARTS", help=f"of {', '.join(part.name for part in PARTS)}; by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=300, help="of each sustained load")
    parser.add_argument("--backlog", type=int, default=1_000_000, help="marketing messages beside which codes are sent")
    parser.add_argument("--payments", type=int, default=1_000_000, help="on disk, against an empty ledger")
    parser.add_argument("--folder", type=Path, help="data folder with these payments, kept; not given: a temporary one")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [part.name for part in PARTS]
    if unknown := set(names) - {part.name for part in PARTS}:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    result = run([part for part in PARTS if part.name in names and (part.quick or not options.quick)], options)
    figures: list[Figure] = result["figures"]
    console.rule()
    console.print(table(figures))
    console.print(f"differences in reconcile: {result['differences']}; failed: {', '.join(result['failed']) or 'none'}")
    path = write("bench", result | {"figures": [figure.as_dict() for figure in figures]})
    try:
        chart(figures, path.with_suffix(".svg"))
    except ImportError:
        console.print("not drawn: matplotlib is missing, `make bench` installs it")
    else:
        console.print(f"drawn in {path.with_suffix('.svg')}")
    return 1 if result["differences"] or result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
