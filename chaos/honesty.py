"""Switch off one safeguard at a time and see that chaos names exactly the damage that this one keeps away.

Run as `make chaos-honest`. Each safeguard of `chaos.safeguards` is switched off in a copy of the tree, and
`python -m chaos` runs there with the faults that it is against. Before that the tree as it is runs under the same
conditions and must have a verdict of all zero. Environment: `SEED` of the first try (default 1), `TRIES` for each
safeguard (default 2; a second one takes the next seed, for what a fault meets is up to the machine), `ONLY` a part of
the names of the safeguards, `CONTROLS=0` leaves out the runs of the whole tree. Exits 1 when a safeguard is missed by
nobody, when more is named than it keeps away, or when the whole tree has a damage.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.safeguards import FEW, SAFEGUARDS, Conditions, Safeguard, problems
from scripts.mutations import Edit, Mutation
from smsbill.tables import console, table

ROOT = Path(__file__).resolve().parent.parent
TRIES = 2
# Starting, stopping and judging on a busy machine, beside sending and settling.
SPARE_SECONDS = 300.0
# A run that is told to end stops its servers in order.
STOP_SECONDS = 30.0
# What a run is told of its end; the whole of it is in the log of a broken copy.
TAIL_LINES = 80
COLUMNS = ("safeguard", "promise", "must be named", "was named", "#seed", "#seconds", "verdict")


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of chaos said: damages with how many of each; None: it gave no verdict."""

    seed: int
    seconds: float
    damages: dict[str, int] | None
    output: str

    @property
    def told(self) -> str:
        """The damages in one line."""
        if self.damages is None:
            return "NO VERDICT"
        return ", ".join(f"{name}: {count}" for name, count in self.damages.items()) or "nothing"


@dataclass(frozen=True, slots=True)
class Row:
    """A run and what it should have named; without a safeguard it is the whole tree's."""

    safeguard: Safeguard | None
    conditions: Conditions
    run: Run

    @property
    def expected(self) -> frozenset[str]:
        """The damages that must be named."""
        return self.safeguard.damage if self.safeguard else frozenset()

    @property
    def ok(self) -> bool:
        """Whether all of these and nothing else was named."""
        return self.run.damages is not None and frozenset(self.run.damages) == self.expected


def main() -> int:
    wanted = os.environ.get("ONLY", "")
    safeguards = [each for each in SAFEGUARDS if wanted in each.mutation.name]
    if found := problems(ROOT, safeguards):
        sys.stderr.write("\n  ".join(["These have to be made anew in the code as it is now:", *found]) + "\n")
        return 1
    seed, tries = int(os.environ.get("SEED") or 1), int(os.environ.get("TRIES") or TRIES)
    with tempfile.TemporaryDirectory(prefix="honest-") as folder:
        rows = _rows(Path(os.path.realpath(folder)), safeguards, seed, tries)
    console(stderr=True).print(table("Safeguards switched off one at a time", COLUMNS, [_cells(row) for row in rows]))
    for row in rows:
        if not row.ok:
            tail = "\n".join(row.run.output.splitlines()[-TAIL_LINES:])
            sys.stderr.write(f"\n{_name(row)}: {row.run.told}\n{tail}\n")
    return 0 if rows and all(row.ok for row in rows) else 1


def _rows(folder: Path, safeguards: Sequence[Safeguard], seed: int, tries: int) -> list[Row]:
    """The whole tree under every condition, then each safeguard off."""
    # Copied once, so that whoever goes on editing meanwhile does not end up in some of them.
    whole = folder / "whole"
    shutil.copytree(ROOT, whole, ignore=shutil.ignore_patterns(".*", "*.egg-info", "docs", "bench", "tests"))
    rows: list[Row] = []

    def note(row: Row) -> None:
        rows.append(row)
        _say(f"{'ok ' if row.ok else 'BAD'} {_name(row)}: {row.run.told} ({row.run.seconds:.0f} s)")
        line = {"safeguard": _name(row), "ok": row.ok, "seed": row.run.seed, "seconds": round(row.run.seconds, 1)}
        sys.stdout.write(json.dumps({**line, "named": row.run.damages}, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    if os.environ.get("CONTROLS") != "0":
        for control in {each.conditions.name: each.conditions for each in safeguards}.values():
            note(Row(None, control, _run(whole, folder, control, (), seed)))
    for safeguard in safeguards:
        conditions = safeguard.conditions
        for attempt in range(tries):
            row = Row(safeguard, conditions, _run(whole, folder, conditions, safeguard.mutation.edits, seed + attempt))
            if row.ok:
                break
        note(row)
    return rows


def _run(whole: Path, folder: Path, conditions: Conditions, edits: Sequence[Edit], seed: int) -> Run:
    """Run chaos on a copy of the tree with some of its text changed."""
    tree, own = folder / "tree", folder / "t"
    shutil.copytree(whole, tree)
    own.mkdir()
    Mutation("conditions", "", (*conditions.edits, *edits)).apply(tree)
    environment = {
        **os.environ,
        # The tree's own code, before what is installed; and its data folders, which are of no use afterwards.
        "PYTHONPATH": str(tree),
        "TMPDIR": str(own),
        **FEW,
        **conditions.environment,
        "SEED": str(seed),
        "SEEDS": "",
        "MESSAGES": str(conditions.messages),
        "CHAOS_SECONDS": str(conditions.seconds),
        "SETTLE_SECONDS": str(conditions.settle_seconds),
        "ONLY": ",".join(conditions.faults),
    }
    started = time.monotonic()
    try:
        out, errors = _bounded(tree, environment, 2 * conditions.seconds + conditions.settle_seconds + SPARE_SECONDS)
    finally:
        shutil.rmtree(tree)
        shutil.rmtree(own, ignore_errors=True)
    return Run(seed, time.monotonic() - started, damages(out), errors)


def _bounded(tree: Path, environment: dict[str, str], seconds: float) -> tuple[str, str]:
    """Run chaos in a tree; what it wrote. One that takes too long is told to stop, and killed if it does not."""
    process = subprocess.Popen(
        [sys.executable, "-m", "chaos"],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        return process.communicate(timeout=seconds)
    except BaseException:
        process.send_signal(signal.SIGTERM)
        try:
            out, errors = process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
        if isinstance(sys.exception(), subprocess.TimeoutExpired):
            return out, f"{errors}\nnot done in {seconds:g} s"
        raise


def damages(output: str) -> dict[str, int] | None:
    """What is not zero in the line that chaos writes; None when there is none."""
    for line in output.splitlines():
        told = json.loads(line)
        if told["verdict"]:
            return {name: count for name, count in told["verdict"].items() if count}
    return None


def _name(row: Row) -> str:
    return f"without {row.safeguard.mutation.name}" if row.safeguard else f"everything on, {row.conditions.name}"


def _cells(row: Row) -> tuple[object, ...]:
    return (
        _name(row),
        row.safeguard.promise if row.safeguard else "all of them",
        ", ".join(sorted(row.expected)) or "nothing",
        row.run.told,
        row.run.seed,
        round(row.run.seconds),
        "ok" if row.ok else "MISSED",
    )


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
