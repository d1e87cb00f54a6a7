"""A short seed of the chaos harness: the real stack under kills, stops and a bad network, judged as `make chaos` does.

The harness's own process does everything, so what is tested is what people run; see docs/chaos.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
MESSAGES = 400
# Its first faults, within seconds, are of five kinds.
SEED = 11
KINDS = {"kill", "stand still", "reset", "black hole", "lost answers"}
# A run takes half a minute; each of its waits has a bound of its own, and a busy machine may need all of them.
SECONDS = 300
VARIABLES = {
    "SEED": str(SEED),
    "MESSAGES": str(MESSAGES),
    "CHAOS_SECONDS": "8",
    "SETTLE_SECONDS": "120",
    "ONLY": ",".join(sorted(KINDS)),
    # Fewer processes start faster, and what a dead one does is left to fewer.
    "SMSBILL_COSTCENTERS": "1",
    "SMSBILL_GATEWAYS": "1",
    "SMSBILL_WORKERS": "2",
    # Receipts come within a second, and are tried again each second.
    "SMSBILL_OUTCOME_HOURS": str(15 / 3_600),
}


@pytest.mark.timeout(SECONDS + 30)
def test_a_short_seed_is_judged_all_zero(tmp_path: Path) -> None:
    """No message is lost, sent twice, charged wrongly or left open; the line that tells it is machine-readable."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SMSBILL_") and name not in {"SEEDS", *VARIABLES}
    }
    done = subprocess.run(
        [sys.executable, "-m", "chaos"],
        env={**kept, **VARIABLES, "PYTHONPATH": str(REPOSITORY)},
        # Not in the checkout, whose .env is somebody's own.
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result["ok"], line
    assert result["accepted"] >= MESSAGES
    assert result["verdict"], line
    assert not any(result["verdict"].values()), line
    assert set(result["faults"]) == KINDS
