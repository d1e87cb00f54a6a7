"""Aim: the demo as a newcomer runs it, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stack_harness import environment

DEMO_SECONDS = 240


@pytest.mark.timeout(DEMO_SECONDS + 20)
def test_the_demo_checks_every_figure_and_leaves_nothing(folder: Path) -> None:
    """Aim: all messages final, no difference anywhere, a JSON summary as the last line, status 0, no folder left."""
    temporary = folder / "tmp"
    temporary.mkdir()
    variables = environment({"SMSBILL_WORKERS": "1", "TMPDIR": str(temporary)})
    done = subprocess.run(
        [sys.executable, "-m", "smsbill", "demo", "--messages", "60"],
        env=variables,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["ok"], summary["all_final"], summary["difference_count"]) == (True, True, 0)
    assert summary["messages"] == sum(summary["states"].values())
    assert summary["states"]["failed"] == 1
    assert summary["carrier_messages"] == summary["messages"] - 1
    spent = sum(balance["total"] for balance in summary["balances"])
    assert spent < 3 * 5_000 + 3_000 + 2_000
    assert not list(temporary.iterdir())
