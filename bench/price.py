"""`python -m bench.price`: what the submitting mark and the outbox cost of the rate of single messages.

In turn, the tree as it is and copies without the statement that marks, without the rows of the outbox, and without
both, each on a stack of its own: single messages from SendSms to sent, without receipts, as many as get through. The
price is one less the rate of the whole tree over that of the copy, round by round. Nothing of a copy is for use: what
dies in it is lost or sent twice. The inbox of receipts cannot be left out so, for it is the only place where they are.
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
from bench.watch import watching
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
    Edit(_SENDING, "         now()\n  from gone\n)\nselect", "         now()\n  from gone where false\n)\nselect"),
    Edit(
        _OUTBOX,
        '    """Forget calls that the cost centre has answered."""\n',
        '    """Forget calls that the cost centre has answered."""\n    return\n',
    ),
)
VARIANTS: Mapping[str, tuple[Edit, ...]] = {
    WHOLE: (),
    "without mark": _NO_MARK,
    "without outbox": _NO_OUTBOX,
    "without both": _NO_MARK + _NO_OUTBOX,
}


async def once(seconds: float) -> float:
    """Messages a second from SendSms to sent, with what this tree does for each."""
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder)) as running, watching(running) as watch:
            await fill(running, range(1, BRANDS + 1))
            await watch.simulator(receipt_loss=1.0)
            for span in (WARM_SECONDS, seconds):
                load = Load(watch, Target(running.file.gateway_target, running.file.token), "sent")
                await load.begin()
                started = time.perf_counter()
                await singles(load, span)
                await load.ended(END_SECONDS)
            return load.accepted / (time.perf_counter() - started)


def measure(rounds: int, seconds: float) -> dict[str, list[float]]:
    """The rate of each variant in each round, in turn."""
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="smsbill-price-") as folder:
        trees = {name: _tree(Path(folder) / name.replace(" ", "-"), edits) for name, edits in VARIANTS.items()}
        for number in range(rounds):
            # Whoever is first in one round is last in the next: a machine that slows down is slow for all.
            names = list(VARIANTS) if number % 2 == 0 else list(VARIANTS)[::-1]
            for name in names:
                rates[name].append(_rate(trees[name], seconds))
                console.print(f"{name}: {rates[name][-1]:,.0f}/s", highlight=False)
    return rates


def _tree(tree: Path, edits: Sequence[Edit]) -> Path:
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "*.egg-info", "docs", "tests", "results"))
    Mutation(tree.name, "", tuple(edits)).apply(tree)
    return tree


def _rate(tree: Path, seconds: float) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "bench.price", "--once", "--seconds", str(seconds)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=seconds + END_SECONDS + SPARE_SECONDS,
        check=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def prices(rates: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """What each variant saves, as a share of its own rate, round by round."""
    return {
        name: [1 - whole / rate for whole, rate in zip(rates[WHOLE], some, strict=True)]
        for name, some in rates.items()
        if name != WHOLE
    }


def show(rates: Mapping[str, Sequence[float]]) -> None:
    """The figures as a table."""
    table = Table("variant", "median, /s", "least", "greatest", "price, median", "least", "greatest")
    found = prices(rates)
    for name, some in rates.items():
        price = found.get(name)
        told = [f"{each(price):.2f}" for each in (statistics.median, min, max)] if price else ["", "", ""]
        table.add_row(name, *(f"{each(some):,.0f}" for each in (statistics.median, min, max)), *told)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.price", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of each run")
    parser.add_argument("--once", action="store_true", help="this tree alone, its rate on standard output")
    options = parser.parse_args()
    if options.once:
        rate = uvloop.run(once(options.seconds))
        sys.stdout.write(f"\n{json.dumps(rate)}\n")
        return 0
    rates = measure(options.rounds, options.seconds)
    show(rates)
    write("price", {"seconds": options.seconds, "rates": rates, "prices": prices(rates)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
