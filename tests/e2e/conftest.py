"""One running stack for the tests that only use it, and folders for those that start their own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack_harness import Stack


def _folder() -> Path:
    # Not in `tmp_path`: the account that PostgreSQL runs under must get through to it.
    return Path(os.path.realpath(tempfile.mkdtemp(prefix="smsbill-e2e-")))


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder."""
    made = _folder()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A running stack with brand 1, which has bought 1,000 segments."""
    made = _folder()
    running = Stack(made / "data", SMSBILL_WORKERS="1", SMSBILL_LOG_CHECK_SECONDS="0.2")
    try:
        running.start()
        running.ok("brand", "put", "--brand", "1", "--name", "First")
        running.ok("buy", "--brand", "1", "--segments", "1000")
        yield running
    finally:
        running.end()
        shutil.rmtree(made, ignore_errors=True)
