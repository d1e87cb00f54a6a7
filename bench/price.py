"""`python -m bench.price`: what the submitting mark, the outbox and metrics cost of the rate of single messages.

In turn, the tree as it is and copies without the statement that marks, without the rows of the outbox, without both,
without the look for webhooks, and without metrics (all but the one that this bench reads), each on a stack of its own:
single messages from SendSms to sent, without receipts, as many as get through. The price is one less the rate of the
whole tree over that of the copy, round by round; and, of the processor time that a message takes in all processes but
the carrier's, one less the copy's over the whole tree's, which a machine that does other things meanwhile disturbs
less. Nothing of a copy is for use: what dies in it is lost or sent twice. The inbox of receipts cannot be left out so,
for it is the only place where they are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
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
from bench.sustained import BRANDS, Load, singles
from bench.watch import SIMULATOR, Watch, watching
from scripts.mutations import Edit, Mutation

ROOT = Path(__file__).resolve().parent.parent
WHOLE = "whole"
END_SECONDS = 120.0
# Starting and stopping a stack, and what is sent before and after the measuring.
SPARE_SECONDS = 240.0
WARM_SECONDS = 3.0
_SENDING, _OUTBOX = "smsgateway/store/sending.py", "smsgateway/store/outbox.py"

_NO_MARK = (
    Edit(
        "workers/sender.py",
        "        async with self._database.statement() as connection:\n"
        "            marked = await sending.mark(connection, marks)\n"
        "        return _first_only(marked, [(item.brand_id, item.dispatch_id) for item in marks])\n",
        "        return [True] * len(marks)\n",
    ),
    # What is accepted is found although nobody has marked it.
    Edit(
        _SENDING,
        "d.state + 0 in ({DispatchState.SUBMITTING:d}, {DispatchState.UNKNOWN:d}) and d.call_id = asked.call_id\n",
        "d.state + 0 = {DispatchState.CLAIMED:d}\n",
    ),
)
_NO_OUTBOX = (
    Edit(_SENDING, "         now()\n  from gone\n), {", "         now()\n  from gone where false\n), {"),
    Edit(
        _OUTBOX,
        '    """Forget calls that the cost centre has answered."""\n',
        '    """Forget calls that the cost centre has answered."""\n    return\n',
    ),
)
# Of an accepted message; no brand has a webhook here, so this is the price for who has none.
_NO_WEBHOOKS = (Edit(_SENDING, "), {TOLD_OF_SENT}\n", ")\n"),)
_NO_METRICS = (
    Edit(
        "infra/telemetry.py",
        "REGISTRY = CollectorRegistry(auto_describe=True)\n",
        "REGISTRY = CollectorRegistry(auto_describe=True)\n"
        "from prometheus_client import Gauge, Histogram\n"
        "def _unless_read(kind, name):\n"
        "    real, nothing = getattr(kind, name), (lambda self: self) if name == 'labels' else (lambda self: None)\n"
        "    def call(self, *given, **named):\n"
        "        if self._name == 'smsbill_messages_settled': return real(self, *given, **named)\n"
        "        return nothing(self)\n"
        "    setattr(kind, name, call)\n"
        "for _kind, _names in ((Counter, ('labels', 'inc')), (Histogram, ('labels', 'observe')),\n"
        "                      (Gauge, ('labels', 'inc', 'dec', 'set', 'set_function'))):\n"
        "    for _each in _names: _unless_read(_kind, _each)\n",
    ),
)
VARIANTS: Mapping[str, tuple[Edit, ...]] = {
    WHOLE: (),
    "without mark": _NO_MARK,
    "without outbox": _NO_OUTBOX,
    "without both": _NO_MARK + _NO_OUTBOX,
    "without webhooks": _NO_WEBHOOKS,
    "without metrics": _NO_METRICS,
}

Figures = dict[str, list[float]]
Saved = list[float]


async def once(seconds: float) -> tuple[float, float]:
    """Messages a second from SendSms to sent with what this tree does for each, and processor milliseconds of one."""
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder)) as running, watching(running) as watch:
            await fill(running, range(1, BRANDS + 1))
            await watch.simulator(receipt_loss=1.0)
            for span in (WARM_SECONDS, seconds):
                load = Load(watch, Target(running.file.gateway_target, running.file.token), "sent")
                await load.begin()
                busy, started = await busy_seconds(watch), time.perf_counter()
                await singles(load, span)
                await load.ended(END_SECONDS)
            took = time.perf_counter() - started
            return load.accepted / took, 1_000 * (await busy_seconds(watch) - busy) / load.accepted


async def busy_seconds(watch: Watch) -> float:
    """Processor seconds of all processes but the carrier's."""
    return sum(each.seconds for name, each in (await watch.processes()).items() if name != SIMULATOR)


def measure(rounds: int, seconds: float, only: Sequence[str]) -> tuple[Figures, Figures]:
    """Of each variant in each round, in turn: messages a second, and processor milliseconds of one.

    Parameters: `only` these beside the whole tree; none named: all.
    """
    chosen = {name: edits for name, edits in VARIANTS.items() if name == WHOLE or not only or name in only}
    rates: Figures = {name: [] for name in chosen}
    costs: Figures = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory(prefix="smsbill-price-") as folder:
        trees = {name: tree_with(Path(folder) / name.replace(" ", "-"), edits) for name, edits in chosen.items()}
        for number in range(rounds):
            # Whoever is first in one round is last in the next: a machine that slows down is slow for all.
            names = list(chosen) if number % 2 == 0 else list(chosen)[::-1]
            for name in names:
                rate, cost = _once(trees[name], seconds)
                rates[name].append(rate)
                costs[name].append(cost)
                console.print(f"{name}: {rate:,.0f}/s, {cost:.2f} ms", highlight=False)
    return rates, costs


def tree_with(tree: Path, edits: Sequence[Edit]) -> Path:
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "*.egg-info", "docs", "tests", "results"))
    Mutation(tree.name, "", tuple(edits)).apply(tree)
    return tree


def _once(tree: Path, seconds: float) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.price", "--once", "--seconds", str(seconds)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=seconds + END_SECONDS + SPARE_SECONDS,
        check=True,
    )
    rate, cost = json.loads(done.stdout.splitlines()[-1])
    return float(rate), float(cost)


def saved(rates: Mapping[str, Sequence[float]], costs: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Saved]]:
    """What each variant saves, round by round: as a share of its own rate, and of the whole tree's processor time."""
    return {
        name: {
            "rate": [1 - whole / rate for whole, rate in zip(rates[WHOLE], rates[name], strict=True)],
            "time": [1 - cost / whole for whole, cost in zip(costs[WHOLE], costs[name], strict=True)],
        }
        for name in rates
        if name != WHOLE
    }


def show(rates: Mapping[str, Sequence[float]], costs: Mapping[str, Sequence[float]]) -> None:
    """The figures as a table: medians with the least and the greatest."""
    table = Table("variant", "messages/s", "price of rate", "processor ms each", "price of time")
    found = saved(rates, costs)
    for name in rates:
        price = found.get(name)
        table.add_row(
            name,
            told(rates[name], ",.0f"),
            told(price["rate"], ".2f") if price else "",
            told(costs[name], ".2f"),
            told(price["time"], ".2f") if price else "",
        )
    console.print(table)


def told(some: Sequence[float], form: str) -> str:
    return f"{statistics.median(some):{form}} ({min(some):{form}} to {max(some):{form}})"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.price", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of each run")
    parser.add_argument("--only", action="append", choices=[name for name in VARIANTS if name != WHOLE], default=[])
    parser.add_argument("--once", action="store_true", help="this tree alone, its rate on standard output")
    options = parser.parse_args()
    if options.once:
        sys.stdout.write(f"\n{json.dumps(uvloop.run(once(options.seconds)))}\n")
        return 0
    rates, costs = measure(options.rounds, options.seconds, options.only)
    show(rates, costs)
    write("price", {"seconds": options.seconds, "rates": rates, "milliseconds": costs, "prices": saved(rates, costs)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
