"""Play random sequences on the ledger for some minutes, then on deliberately broken ledgers, each of which must fail.

Run as `make prove`. Environment: `SEED` for the first sequence (default: a random one, printed), `PROVE_SECONDS` for
the ledger itself (default 180), `MUTATION_SECONDS` at most for each broken one (default 90), `JOBS` processes (default:
as many as processors, at most 8), `ONLY` a part of the names of the mutations to make (`none`: none), `SEQUENCE` a file
with one sequence to play instead of all that. Exits 1 when the ledger disagrees with the oracle, a mutation survives,
or one cannot be made.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from scripts.mutations import MUTATIONS, Mutation, problems

ROOT = Path(__file__).resolve().parent.parent
SEQUENCES = "tests/property/test_ledger_stateful.py"
UNIT_TESTS = tuple(f"tests/unit/test_book_{part}.py" for part in ("due", "freezing", "packages", "refunds"))
# Seeds of two jobs do not meet: each plays from its own on, one after another.
SEEDS_APART = 1_000_000
# What a run takes beside the sequences: starting PostgreSQL, making a failing sequence shorter, stopping.
OVERHEAD_SECONDS = 240
R = TypeVar("R")
_DISAGREES = re.compile(r"SEED=(\d+) \(after (\d+) sequences, (\d+) calls\) disagrees")
_AGREES = re.compile(r"SEED=\d+: (\d+) sequences, (\d+) calls agree")


@dataclass(frozen=True)
class Run:
    """What a run of the sequences came to. `seed`: of the sequence that failed; None: none did."""

    agreed: bool
    seed: int | None
    sequences: int
    calls: int
    seconds: float
    output: str


@dataclass(frozen=True)
class Verdict:
    """What became of a mutation. `unit`: whether the unit tests of the rules fail too."""

    mutation: Mutation
    run: Run
    unit: bool

    @property
    def caught(self) -> bool:
        """Whether the sequences found it."""
        return self.run.seed is not None


def main() -> int:
    """Prove; the exit code."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**9))
    jobs = int(os.environ.get("JOBS") or min(8, os.cpu_count() or 1))
    if sequence := os.environ.get("SEQUENCE"):
        run = play(ROOT, seed, 1, sequence=str(Path(sequence).resolve()))
        print(run.output if not run.agreed else f"{sequence}: the ledger agrees with the oracle")
        return 0 if run.agreed else 1
    if found := problems(ROOT):
        print("These mutations have to be made anew in the code as it is now:", *found, sep="\n  ")
        return 1
    proven = prove_ledger(seed, jobs, float(os.environ.get("PROVE_SECONDS") or 180))
    chosen = [mutation for mutation in MUTATIONS if os.environ.get("ONLY", "") in mutation.name]
    caught = prove_mutations(chosen, seed, jobs, float(os.environ.get("MUTATION_SECONDS") or 90))
    return 0 if proven and caught else 1


def prove_ledger(seed: int, jobs: int, seconds: float) -> bool:
    """Play the sequences on the ledger as it is."""
    say(f"The ledger for {seconds:.0f} s in {jobs} processes, SEED={seed}")
    work = [partial(play, ROOT, seed + job * SEEDS_APART, seconds) for job in range(jobs)]
    runs: list[Run] = []
    at_once(work, jobs, runs.append)
    for run in runs:
        if not run.agreed:
            print(run.output)
    sequences, calls = sum(run.sequences for run in runs), sum(run.calls for run in runs)
    agreed = all(run.agreed for run in runs)
    say(f"{sequences} sequences, {calls} calls: {'all agree' if agreed else 'NOT all agree'} with the oracle")
    return agreed


def prove_mutations(mutations: list[Mutation], seed: int, jobs: int, seconds: float) -> bool:
    """Play the sequences on each broken ledger and print what caught it."""
    say(f"{len(mutations)} broken ledgers, {jobs} at a time, at most {seconds:.0f} s each, SEED={seed}")
    verdicts: list[Verdict] = []

    def note(verdict: Verdict) -> None:
        verdicts.append(verdict)
        say(f"{len(verdicts):>3}/{len(mutations)} {verdict.mutation.name}: {_outcome(verdict)}")

    with tempfile.TemporaryDirectory(prefix="smsbill-prove-") as folder:
        # Copied once, so that whoever goes on editing meanwhile does not end up in some of them.
        whole = Path(folder) / "whole"
        shutil.copytree(ROOT, whole, ignore=shutil.ignore_patterns(".*", "*.egg-info", "docs", "bench"))
        at_once([partial(judge, mutation, whole, seed, seconds) for mutation in mutations], jobs, note)
    print(table(sorted(verdicts, key=lambda verdict: mutations.index(verdict.mutation))))
    survivors = [verdict for verdict in verdicts if not verdict.caught]
    for verdict in survivors:
        print(f"SURVIVED: {verdict.mutation.name}. {verdict.mutation.breaks}")
        if not verdict.run.agreed:
            print(verdict.run.output)
    return not survivors


def judge(mutation: Mutation, whole: Path, seed: int, seconds: float) -> Verdict:
    """Break a copy of the tree and play on it."""
    tree = whole.with_name(mutation.name.replace(" ", "-"))
    shutil.copytree(whole, tree)
    mutation.apply(tree)
    run = play(tree, seed, seconds)
    unit = pytest(tree, *UNIT_TESTS, timeout=OVERHEAD_SECONDS)
    shutil.rmtree(tree)
    return Verdict(mutation, run, unit.returncode == 1)


def play(tree: Path, seed: int, seconds: float, *, sequence: str = "") -> Run:
    """Play sequences in a tree for some seconds. A broken ledger's failing sequence is not made shorter."""
    started = time.monotonic()
    environment = {"SEED": str(seed), "STATEFUL_SECONDS": str(seconds), "SEQUENCE": sequence}
    if tree != ROOT:
        environment["STATEFUL_SHRINK_SECONDS"] = "0"
    done = pytest(tree, SEQUENCES, timeout=seconds + OVERHEAD_SECONDS, **environment)
    found, agreed = _DISAGREES.search(done.stdout), _AGREES.search(done.stdout)
    counts = (found.group(2), found.group(3)) if found else agreed.groups() if agreed else (0, 0)
    return Run(
        agreed=done.returncode == 0,
        seed=int(found.group(1)) if found else None,
        sequences=int(counts[0]),
        calls=int(counts[1]),
        seconds=time.monotonic() - started,
        output=done.stdout,
    )


def pytest(tree: Path, *arguments: str, timeout: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run tests of a tree on that tree's code: the working folder is searched before what is installed."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def at_once(work: Sequence[Callable[[], R]], jobs: int, done: Callable[[R], None]) -> None:
    """Do the work a few pieces at a time; `done` gets each result as it comes."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting: set[Future[R]] = {pool.submit(piece) for piece in work}
        while waiting:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                done(future.result())


def table(verdicts: list[Verdict]) -> str:
    """Mutation, what caught it, seconds, seed."""
    width = max((len(verdict.mutation.name) for verdict in verdicts), default=8)
    lines = [f"{'mutation':<{width}}  {'caught by':<44}  seconds  seed"]
    for verdict in verdicts:
        run = verdict.run
        lines.append(
            f"{verdict.mutation.name:<{width}}  {_outcome(verdict):<44}  {run.seconds:>7.1f}  {run.seed or '-'}"
        )
    return "\n".join(lines)


def _outcome(verdict: Verdict) -> str:
    unit = ", unit tests" if verdict.unit else ""
    run = verdict.run
    if verdict.caught:
        return f"sequence {run.sequences}, call {run.calls}{unit}"
    return f"NOTHING in {run.sequences} sequences{unit}" if run.agreed else f"AN ERROR{unit}"


def say(text: str) -> None:
    """Progress, with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
