"""`python -m bench.counting`: what statistics cost of the end-to-end rate.

In turn, the tree as it is and a copy in which nothing is counted and nothing folded, each on a stack of its own: single
messages from SendSms to the booked receipt, over a hundred brands, so that hardly two of a group are counted in one
row; and batches from SendBatchSms to sent. The price is one less the rate of the whole tree over that of the copy,
round by round; and, of the processor time that a message takes in all processes but the carrier's, one less the copy's
over the whole tree's, which a machine that does other things meanwhile disturbs less. After each run of the whole tree
its figures are compared with its records.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import uvloop
from rich.table import Table

from bench.harness import console, fill, stack, write
from bench.load import Target
from bench.price import busy_seconds, told, tree_with
from bench.sustained import BRANDS, Load, batches, singles
from bench.watch import Watch, watching
from scripts.mutations import Edit
from smsbill import usage_figures

WHOLE, WITHOUT = "whole", "without statistics"
SCENARIOS = ("singles", "batches")
END_SECONDS = 120.0
SPARE_SECONDS = 300.0
WARM_SECONDS = 3.0

VARIANTS: Mapping[str, tuple[Edit, ...]] = {
    WHOLE: (),
    WITHOUT: (
        Edit(
            "smsgateway/store/counting.py",
            '    return f"""\ninsert into smsgateway.usage_change\n',
            '    return "select 1"\n    return f"""\ninsert into smsgateway.usage_change\n',
        ),
        Edit(
            "workers/process.py",
            "        self._add_usage(UsageKeeper(database, queues, self.worker_id, settings))\n",
            "",
        ),
    ),
}

# Of each scenario: messages a second, and processor milliseconds of one.
Run = dict[str, tuple[float, float]]


async def once(seconds: float, *, compare: bool) -> Run:
    """What this tree does."""
    found: Run = {}
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder)) as running, watching(running) as watch:
            await fill(running, range(1, BRANDS + 1))
            target = Target(running.file.gateway_target, running.file.token)
            for name in SCENARIOS:
                for span in (WARM_SECONDS, seconds):
                    found[name] = await _scenario(name, watch, target, span)
            if compare:
                different = await usage_figures.check(
                    running.file.database_url, zone="Asia/Shanghai", progress=lambda *_: None
                )
                assert not different, different[:3]
    return found


async def _scenario(name: str, watch: Watch, target: Target, seconds: float) -> tuple[float, float]:
    await watch.simulator(receipt_loss=float(name == "batches"))
    load = Load(watch, target, "sent" if name == "batches" else "delivered")
    await load.begin()
    busy, started = await busy_seconds(watch), time.perf_counter()
    await (batches if name == "batches" else singles)(load, seconds)
    await load.ended(END_SECONDS)
    took = time.perf_counter() - started
    return load.accepted / took, 1_000 * (await busy_seconds(watch) - busy) / load.accepted


def measure(rounds: int, seconds: float) -> dict[str, list[Run]]:
    """Each variant's runs, in turn."""
    runs: dict[str, list[Run]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="smsbill-counting-") as folder:
        trees = {name: tree_with(Path(folder) / name.replace(" ", "-"), edits) for name, edits in VARIANTS.items()}
        for number in range(rounds):
            # Whoever is first in one round is last in the next: a machine that slows down is slow for all.
            for name in list(VARIANTS) if number % 2 == 0 else list(VARIANTS)[::-1]:
                runs[name].append(_once(trees[name], seconds, compare=name == WHOLE))
                found = [f"{what} {rate:,.0f}/s {cost:.2f} ms" for what, (rate, cost) in runs[name][-1].items()]
                console.print(f"{name}: {', '.join(found)}", highlight=False)
    return runs


def _once(tree: Path, seconds: float, *, compare: bool) -> Run:
    done = subprocess.run(
        [sys.executable, "-m", "bench.counting", "--once", "--seconds", str(seconds), *(["--compare"] * compare)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=2 * (seconds + END_SECONDS) + SPARE_SECONDS,
        check=True,
    )
    return {name: (float(rate), float(cost)) for name, (rate, cost) in json.loads(done.stdout.splitlines()[-1]).items()}


def prices(runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, list[float]]]:
    """Of each scenario what statistics cost, round by round: as a share of the rate without, and of the time with."""
    rounds = list(zip(runs[WHOLE], runs[WITHOUT], strict=True))
    return {
        name: {
            "rate": [1 - whole[name][0] / without[name][0] for whole, without in rounds],
            "time": [1 - without[name][1] / whole[name][1] for whole, without in rounds],
        }
        for name in SCENARIOS
    }


def show(runs: Mapping[str, Sequence[Run]]) -> None:
    """The figures as a table: medians with the least and the greatest."""
    table = Table("scenario", *(f"{name}, /s" for name in VARIANTS), "price of rate", "price of time")
    for name, price in prices(runs).items():
        rates = [told([run[name][0] for run in runs[variant]], ",.0f") for variant in VARIANTS]
        table.add_row(name, *rates, told(price["rate"], ".3f"), told(price["time"], ".3f"))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.counting", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of each scenario of a run")
    parser.add_argument("--once", action="store_true", help="this tree alone, its figures on standard output")
    parser.add_argument("--compare", action="store_true", help="with --once: compare the figures with the records")
    options = parser.parse_args()
    if options.once:
        sys.stdout.write(f"\n{json.dumps(uvloop.run(once(options.seconds, compare=options.compare)))}\n")
        return 0
    runs = measure(options.rounds, options.seconds)
    show(runs)
    write("counting", {"seconds": options.seconds, "runs": runs, "prices": prices(runs)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
