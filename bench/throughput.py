"""`python -m bench.throughput`: freezing and paying against servers that do nothing, or a transaction for each call.

All are measured in turn in each round, with the same client.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench.figures import Figure, table
from bench.harness import BRANDS, CALLERS, console, differences, fill, memory_megabytes, stack, write, yardstick
from bench.load import Rate, Target, batch_pairs, unary_pairs

BATCH_SIZE, BATCH_CALLERS = 1_000, 4
BATCHES_A_SECOND = 4
LEDGERS = ("no-op server", "transaction per call", "one brand", "1,000 brands")


async def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Every figure, round by round; `seconds` of each."""
    brands = range(1, BRANDS + 1)
    runs = []
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder)) as running:
            token, url = running.service_token, running.file.ledger_database_url
            ledger = Target(running.file.costcenter_target, token)
            async with (
                yardstick("noop", token) as noop,
                yardstick("transaction", token, url) as transaction,
            ):
                console.print(f"filling {BRANDS:,} brands")
                await fill(running, brands)
                for number in range(1, rounds + 1):
                    console.print(f"freezing and paying, round {number} of {rounds}")
                    runs.append(
                        await one_round(ledger, Target(noop, token), Target(transaction, token), brands, seconds)
                    )
            memory = memory_megabytes(running)
            found = await differences(running)
    return {"rounds": runs, "memory_megabytes": memory, "differences": found}


async def one_round(
    ledger: Target, noop: Target, transaction: Target, brands: Sequence[int], seconds: float
) -> dict[str, float]:
    """All figures once."""

    async def unary(target: Target, some: Sequence[int], callers: int = CALLERS) -> Rate:
        return await unary_pairs(target, seconds=seconds, callers=callers, brands=some)

    rates = {
        "no-op server": await unary(noop, brands[:1]),
        "transaction per call": await unary(transaction, brands),
        "one brand": await unary(ledger, brands[:1]),
        "1,000 brands": await unary(ledger, brands),
    }
    alone = {
        "transaction per call": await unary(transaction, brands[:1], callers=1),
        "one brand": await unary(ledger, brands[:1], callers=1),
    }
    figures = {f"{name}, calls/s": rate.per_second for name, rate in rates.items()}
    figures |= {f"{name}, p99 ms": rate.p99_ms for name, rate in rates.items()}
    figures |= {f"{name}, one caller, calls/s": rate.per_second for name, rate in alone.items()}
    batches = max(BATCH_CALLERS, round(seconds * BATCHES_A_SECOND))
    for name, some in (("one brand", brands[:1]), ("1,000 brands", brands)):
        figures[f"{name}, pairs/s"] = await batch_pairs(
            ledger, batches=batches, size=BATCH_SIZE, callers=BATCH_CALLERS, brands=some
        )
    return figures


def figures(result: dict[str, Any]) -> list[Figure]:
    """What it says of goals 1 and 2."""
    runs = result["rounds"]

    def of(name: str) -> list[float]:
        return [run[name] for run in runs]

    def ratio(name: str, yardstick: str) -> list[float]:
        return [run[name] / run[yardstick] for run in runs]

    return [
        *(Figure(1, name, "calls/s", of(f"{name}, calls/s")) for name in LEDGERS),
        *(
            Figure(1, f"{name} / no-op server", "", ratio(f"{name}, calls/s", "no-op server, calls/s"), aim=0.75)
            for name in LEDGERS[2:]
        ),
        *(
            Figure(1, f"p99, {name} / no-op server", "", ratio(f"{name}, p99 ms", "no-op server, p99 ms"), 3, True)
            for name in LEDGERS[2:]
        ),
        Figure(
            1, "one caller / transaction per call", "",
            ratio("one brand, one caller, calls/s", "transaction per call, one caller, calls/s"), aim=1,
        ),
        *(
            Figure(2, f"batches of 1,000, {name}", "pairs/s", of(f"{name}, pairs/s"), aim=40_000)
            for name in LEDGERS[2:]
        ),
        *(
            Figure(2, f"… {name} / no-op calls", "", ratio(f"{name}, pairs/s", "no-op server, calls/s"))
            for name in LEDGERS[2:]
        ),
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.throughput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each figure in a round")
    arguments = parser.parse_args()
    result = uvloop.run(measure(arguments.rounds, arguments.seconds))
    console.print(table(figures(result)))
    console.print("memory, MB:", result["memory_megabytes"])
    console.print("differences in reconcile:", len(result["differences"]))
    write("throughput", result)
    return 1 if result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
