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
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from costcenter import migrations
from infra.embedded import EmbeddedServers
from scripts import databases
from scripts.mutations import MUTATIONS, Mutation, problems

ROOT = Path(__file__).resolve().parent.parent
SEQUENCES = "tests/property/test_ledger_stateful.py"
UNIT_TESTS = tuple(f"tests/unit/test_book_{part}.py" for part in ("due", "freezing", "packages", "refunds"))
# Seeds of two jobs do not meet: each plays from its own on, one after another.
SEEDS_APART = 1_000_000
TEMPLATE = "prove_template"
# A job has two cost centres with a pool for each of its lanes and for reading.
CONNECTIONS = 300
# What a run takes beside the sequences: starting PostgreSQL, making a failing sequence shorter, stopping.
OVERHEAD_SECONDS = 240
R = TypeVar("R")
# Makes a migrated database for one run.
Fresh = Callable[[], AbstractContextManager[str]]
_DISAGREES = re.compile(r"SEED=(\d+) \(after (\d+) sequences, (\d+) calls\) disagrees")
_AGREES = re.compile(r"SEED=\d+: (\d+) sequences, (\d+) calls agree")


@dataclass(frozen=True)
class Run:
    """What a run came to.

    `passed`: no test failed; `seed`: of the sequence that disagreed, None: none did; `ended`: the time was used up;
    `unit`: a unit test failed.
    """

    passed: bool
    ended: bool
    seed: int | None
    sequences: int
    calls: int
    seconds: float
    unit: bool
    output: str


@dataclass(frozen=True)
class Verdict:
    """What became of a mutation."""

    mutation: Mutation
    run: Run

    @property
    def caught(self) -> bool:
        """Whether the sequences found it."""
        return self.run.seed is not None


def main() -> int:
    """Prove; the exit code."""
    # One server for all runs: starting one takes longer than finding most of the mistakes.
    with (
        tempfile.TemporaryDirectory(prefix="smsbill-prove-") as folder,
        EmbeddedServers(Path(folder) / "data", max_connections=CONNECTIONS, stop_timeout_seconds=30) as servers,
    ):
        return prove(_databases(servers.database_url), Path(folder) / "trees")


def _databases(server_url: str) -> Fresh:
    migrations.migrate(databases.create(server_url, TEMPLATE))
    return partial(databases.fresh, server_url, TEMPLATE)


def prove(fresh: Fresh, trees: Path) -> int:
    """Prove on databases of a server, with copies of the tree in a folder; the exit code."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**9))
    jobs = int(os.environ.get("JOBS") or min(8, os.cpu_count() or 1))
    if sequence := os.environ.get("SEQUENCE"):
        run = play(fresh, ROOT, seed, 1, sequence=str(Path(sequence).resolve()))
        print(run.output if not run.passed else f"{sequence}: the ledger agrees with the oracle")
        return 0 if run.passed else 1
    if found := problems(ROOT):
        print("These mutations have to be made anew in the code as it is now:", *found, sep="\n  ")
        return 1
    proven = prove_ledger(fresh, seed, jobs, float(os.environ.get("PROVE_SECONDS") or 180))
    chosen = [mutation for mutation in MUTATIONS if os.environ.get("ONLY", "") in mutation.name]
    caught = prove_mutations(fresh, trees, chosen, seed, jobs, float(os.environ.get("MUTATION_SECONDS") or 90))
    return 0 if proven and caught else 1


def prove_ledger(fresh: Fresh, seed: int, jobs: int, seconds: float) -> bool:
    """Play the sequences on the ledger as it is."""
    say(f"The ledger for {seconds:.0f} s in {jobs} processes, SEED={seed}")
    work = [partial(play, fresh, ROOT, seed + job * SEEDS_APART, seconds) for job in range(jobs)]
    runs: list[Run] = []
    at_once(work, jobs, runs.append)
    for run in runs:
        if not run.passed:
            print(run.output)
    sequences, calls = sum(run.sequences for run in runs), sum(run.calls for run in runs)
    agreed = all(run.passed for run in runs)
    say(f"{sequences} sequences, {calls} calls: {'all agree' if agreed else 'NOT all agree'} with the oracle")
    return agreed


def prove_mutations(fresh: Fresh, trees: Path, mutations: list[Mutation], seed: int, jobs: int, seconds: float) -> bool:
    """Play the sequences on each broken ledger and print what caught it."""
    if not mutations:
        return True
    say(f"{len(mutations)} broken ledgers, {jobs} at a time, at most {seconds:.0f} s each, SEED={seed}")
    verdicts: list[Verdict] = []

    def note(verdict: Verdict) -> None:
        verdicts.append(verdict)
        say(f"{len(verdicts):>3}/{len(mutations)} {verdict.mutation.name}: {_outcome(verdict)}")

    # Copied once, so that whoever goes on editing meanwhile does not end up in some of them.
    whole = trees / "whole"
    shutil.copytree(ROOT, whole, ignore=shutil.ignore_patterns(".*", "*.egg-info", "docs", "bench"))
    at_once([partial(judge, fresh, mutation, whole, seed, seconds) for mutation in mutations], jobs, note)
    print(table(sorted(verdicts, key=lambda verdict: mutations.index(verdict.mutation))))
    survivors = [verdict for verdict in verdicts if not verdict.caught]
    for verdict in survivors:
        print(f"SURVIVED: {verdict.mutation.name}. {verdict.mutation.breaks}")
        if not verdict.run.ended:
            print(verdict.run.output)
    return not survivors


def judge(fresh: Fresh, mutation: Mutation, whole: Path, seed: int, seconds: float) -> Verdict:
    """Break a copy of the tree and play on it."""
    tree = whole.with_name(mutation.name.replace(" ", "-"))
    shutil.copytree(whole, tree)
    mutation.apply(tree)
    run = play(fresh, tree, seed, seconds, *UNIT_TESTS)
    shutil.rmtree(tree)
    return Verdict(mutation, run)


def play(fresh: Fresh, tree: Path, seed: int, seconds: float, *tests: str, sequence: str = "") -> Run:
    """Play sequences on a tree's ledger for some seconds, and run some tests before."""
    started = time.monotonic()
    with fresh() as url:
        code, output = run_bounded(
            # Without conftest: what its fixtures need takes longer to import than most mistakes to be found.
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "--numprocesses=0",
                "-p",
                "no:cacheprovider",
                "--noconftest",
                *tests,
                SEQUENCES,
            ],
            tree,
            {
                **os.environ,
                # The tree's own code, before what is installed.
                "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'tests'}",
                "STATEFUL_DATABASE_URL": url,
                "STATEFUL_SECONDS": str(seconds),
                # Of a broken ledger it is enough to know that it is.
                **({} if tree == ROOT else {"STATEFUL_SHRINK_SECONDS": "0"}),
                "SEED": str(seed),
                "SEQUENCE": sequence,
            },
            seconds + OVERHEAD_SECONDS,
        )
    found, agreed = _DISAGREES.search(output), _AGREES.search(output)
    counts = (found.group(2), found.group(3)) if found else agreed.groups() if agreed else (0, 0)
    return Run(
        passed=code == 0,
        ended=agreed is not None,
        seed=int(found.group(1)) if found else None,
        sequences=int(counts[0]),
        calls=int(counts[1]),
        seconds=time.monotonic() - started,
        unit="FAILED tests/unit/" in output,
        output=output,
    )


def run_bounded(command: list[str], folder: Path, environment: dict[str, str], seconds: float) -> tuple[int, str]:
    """Run a command; its exit code and what it printed. One that takes too long is ended, with exit code -1."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return -1, f"{error}\n{error.output or ''}"
    return done.returncode, done.stdout


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
    unit = ", unit tests" if verdict.run.unit else ""
    run = verdict.run
    if verdict.caught:
        return f"sequence {run.sequences}, call {run.calls}{unit}"
    return f"NOTHING in {run.sequences} sequences{unit}" if run.ended else f"AN ERROR{unit}"


def say(text: str) -> None:
    """Progress, with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
