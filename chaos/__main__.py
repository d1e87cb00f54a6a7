"""`make chaos`: send through the real stack while everything breaks, let it settle, and judge.

Environment:

- `SEED` (default: a random one, printed). The same seed draws the same faults in the same order; when each one meets
  whom, the machine decides.
- `SEEDS`: several, one after another: `SEEDS="1 2 3"`, or `SEEDS=20` for so many drawn from `SEED`.
- `MESSAGES` that are sent for each seed at least (default 10,000), over about `CHAOS_SECONDS` (default 60).
- `SETTLE_SECONDS` that everything has to become final at most (default 240).
- `ONLY`: kinds of faults, with commas between; not set: all.

Prints a line of JSON for each seed on standard output, everything else on standard error. Exits 1 when a verdict names
a fault; that seed's data folder is kept then. A seed that takes longer than all its bounds together counts as failed.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import uvloop

from chaos.load import ANSWER_SECONDS
from chaos.run import COLUMNS, Plan, Result, run, table_rows, tell
from smsbill import interruption
from smsbill.screen import Screen
from smsbill.settings import StackSettings
from smsbill.tables import console, table

# Waits as short as the faults, so that a run takes minutes: what is tried is the order of things, not their length.
SETTINGS = {
    "SMSBILL_COSTCENTERS": "2",
    "SMSBILL_GATEWAYS": "2",
    "SMSBILL_WORKERS": "3",
    "SMSBILL_CHUANGLAN_CALL_SECONDS": "3",
    "SMSBILL_SUBMIT_START_SECONDS": "3",
    "SMSBILL_SUBMIT_MARGIN_SECONDS": "2",
    "SMSBILL_LEASE_SECONDS": "4",
    "SMSBILL_STALLED_SECONDS": "8",
    "SMSBILL_STALLED_AFTER_LOSS_SECONDS": "2",
    "SMSBILL_SWEEP_SECONDS": "1",
    "SMSBILL_ACCEPTING_SECONDS": "15",
    # More than all outages of a run together hold receipts up: in earnest it is days.
    "SMSBILL_OUTCOME_HOURS": str(90 / 3_600),
    "SMSBILL_ACCOUNT_PAUSE_SECONDS": "2",
    "SMSBILL_RETRY_MAX_SECONDS": "4",
    "SMSBILL_RECEIPT_TAKEOVER_SECONDS": "5",
    "SMSBILL_RECEIPT_REQUEUE_SECONDS": "5",
    "SMSBILL_OUTBOX_HOLD_SECONDS": "4",
    "SMSBILL_BOOK_DUE_SECONDS": "10",
    "SMSBILL_LEDGER_HOLD_SECONDS": "2",
    "SMSBILL_GRPC_KEEPALIVE_SECONDS": "2",
    "SMSBILL_RESTART_SECONDS_MAX": "2",
    "SMSBILL_DISPATCH_REST_SECONDS": "5",
    "SMSBILL_LOG_LEVEL": "WARNING",
}
FREE_PORTS = ("costcenter_address", "gateway_address", "http_address", "simulator_address")
# Start, stop, and the judge's own work, on a busy machine.
SPARE_SECONDS = 180.0
SEED_BITS = 32
# Minutes each: more are a mistake.
SEEDS_MAX = 1_000


def main() -> int:
    screen = Screen(stderr=True)
    plans = _plans(int(os.environ.get("SEED") or random.SystemRandom().randrange(2**SEED_BITS)))
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    results: list[Result] = []
    for number, plan in enumerate(plans, 1):
        screen.say(f"SEED={plan.seed} ({number} of {len(plans)}): {plan.messages:,} messages in {plan.seconds:g} s")
        code, result = _one(plan, screen)
        if code > 1:
            return code
        results.append(result)
    if len(results) > 1:
        console(stderr=True).print(table("Chaos", COLUMNS, table_rows(results)))
        faults = sum((each.faults for each in results), Counter[str]())
        screen.say(f"faults by kind: {dict(sorted(faults.items()))}")
    return 0 if all(each.ok for each in results) else 1


def _plans(seed: int) -> Sequence[Plan]:
    """What the environment asks for."""
    given = (os.environ.get("SEEDS") or "").replace(",", " ").split()
    seeds = [seed]
    if len(given) == 1:
        count = int(given[0])
        if not 1 <= count <= SEEDS_MAX:
            sys.exit(f"SEEDS is how many, from 1 to {SEEDS_MAX:,}, or several of them; a single one is SEED")
        draws = random.Random(seed)
        seeds = [draws.randrange(2**SEED_BITS) for _ in range(count)]
    elif given:
        seeds = [int(each) for each in given]
    return [
        Plan(
            seed=each,
            messages=int(os.environ.get("MESSAGES") or 10_000),
            seconds=float(os.environ.get("CHAOS_SECONDS") or 60),
            settle_seconds=float(os.environ.get("SETTLE_SECONDS") or 240),
            only=tuple(kind.strip() for kind in (os.environ.get("ONLY") or "").split(",") if kind.strip()),
        )
        for each in seeds
    ]


def _one(plan: Plan, screen: Screen) -> tuple[int, Result]:
    """Run a seed: the status that it alone would end with, and its result."""
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="smsbill-chaos-")))
    settings = StackSettings.load().model_copy(update={"data_dir": folder, **dict.fromkeys(FREE_PORTS, "127.0.0.1:0")})
    result = Result(plan.seed)
    keep = True
    try:
        code = uvloop.run(_whole(settings, plan, screen, result))
        keep = code == 1
    finally:
        if keep:
            screen.say(f"The data folder is left for you to look at: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(f"{result.line()}\n")
    sys.stdout.flush()
    return code, result


async def _whole(settings: StackSettings, plan: Plan, screen: Screen, result: Result) -> int:
    """Run a seed within its time, and tell; fills `result`."""
    hurry = asyncio.Event()
    # Sending falls behind on a busy machine.
    bound = 3 * plan.seconds + ANSWER_SECONDS + plan.settle_seconds + SPARE_SECONDS

    async def body() -> int:
        try:
            async with asyncio.timeout(bound):
                await run(settings, plan, screen, hurry, result)
        except TimeoutError:
            result.bad["not done in time"] = [f"{bound:g} s"]
        tell(screen, result)
        return 0 if result.ok else 1

    try:
        return await interruption.run(body(), hurry=hurry.set)
    except interruption.Interrupted as interrupted:
        return 128 + interrupted.number


if __name__ == "__main__":
    sys.exit(main())
