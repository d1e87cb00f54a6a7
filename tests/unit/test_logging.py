"""Logs: what cannot be written does not hold up what it is about."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FULL = Path("/dev/full")
_PROGRAM = """
import logging
import structlog
from infra.telemetry import REGISTRY, configure_logging
configure_logging("test", level="INFO", log_format="json")
structlog.get_logger("ours").info("sent", message_id="x" * 20_000)
logging.getLogger("theirs").warning("gone")
print(REGISTRY.get_sample_value("smsbill_log_lines_lost_total") > 0)
"""


@pytest.mark.skipif(not FULL.exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_under_the_log_ends_nothing() -> None:
    """Aim: writing a line fails with ENOSPC; the code that logs goes on, and the loss is counted."""
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, stderr=full, timeout=60, check=False
        )
    assert done.stdout == b"True\n"
