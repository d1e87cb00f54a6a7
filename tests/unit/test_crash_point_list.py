"""Crash points: the list is closed, each name is reached once in the code, and an unknown one is refused."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import StartError
from smsbill import crash_points

ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = """
import sys
from infra.crash_points import reach
from infra.telemetry import configure_logging
from smsbill import crash_points
configure_logging("test", level="INFO", log_format="json")
crash_points.arm(sys.argv[1])
for arrival in (1, 2, 3):
    reach("gateway.single.frozen")
    reach("gateway.single.queued")
    print(arrival, flush=True)
"""


def reached() -> Iterator[str]:
    """Every name that the code reaches."""
    for package in ("infra", "costcenter", "smsgateway", "workers", "smsbill"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "reach":
                    (name,) = node.args
                    assert isinstance(name, ast.Constant), f"{path}: a name must be written out"
                    yield str(name.value)


def test_the_code_reaches_each_name_of_the_list_once_and_no_other() -> None:
    """A name that moved or is gone would make its test wait for a death that never comes."""
    assert Counter(reached()) == Counter(list(crash_points.POINTS))


@pytest.mark.parametrize("setting", ["gateway.single.froze", "gateway.single.frozen:0", "gateway.single.frozen:", ":1"])
def test_an_unknown_name_is_refused(setting: str) -> None:
    """In one line that names the setting."""
    with pytest.raises(StartError, match=f"SMSBILL_CRASH_POINT: there is no crash point '{setting}'"):
        crash_points.arm(setting)


def test_a_process_with_an_unknown_name_does_not_start(tmp_path: Path) -> None:
    """It says so before it connects to anything."""
    variables = {
        **os.environ,
        "SMSBILL_CRASH_POINT": "nowhere",
        "SMSBILL_DATABASE_URL": "postgresql://127.0.0.1:1/none",
    }
    done = subprocess.run(
        [sys.executable, "-m", "smsbill", "costcenter"],
        env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("smsbill: setting SMSBILL_CRASH_POINT: there is no crash point 'nowhere'")


@pytest.mark.parametrize(
    ("setting", "arrivals"),
    [("", 3), ("gateway.single.frozen", 0), ("gateway.single.frozen:3", 2), ("gateway.single.queued:4", 3)],
)
def test_a_process_is_killed_at_the_arrival_that_is_armed(setting: str, arrivals: int) -> None:
    """By SIGKILL, at that point alone, with a last line that says so."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, setting], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == [str(arrival) for arrival in range(1, arrivals + 1)]
    assert done.returncode == (0 if setting == "" or setting.endswith(":4") else -signal.SIGKILL)
    assert ("crash point reached" in done.stderr) == (done.returncode != 0)
