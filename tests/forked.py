"""`smsbill` commands as processes that start fast: forked off a server that has imported everything once.

A process has its own environment, standard output and log, runs the command as from a shell, and may be killed.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from smsbill import command

# What takes most of a start.
_PRELOADED = (
    "pytest", "uvloop", "alembic.command", "smsbill.command", "smsbill.process", "costcenter.process",
    "smsgateway.process", "workers.process", "forked", "forked_frozen",
)  # fmt: skip
# Generous: the machine may have two cores and much else to do.
_SECONDS = 120.0


class Command:
    """`smsbill <arguments>` in a process of its own with these `SMSBILL_*` variables; `log` is its standard error."""

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        self.log = log
        reader, writer = _context().Pipe(duplex=False)
        self._output = os.fdopen(os.dup(reader.fileno()))
        reader.close()
        self._process: BaseProcess = _context().Process(
            target=_run, args=(list(arguments), dict(variables), writer, str(log)), daemon=True
        )
        self._process.start()
        writer.close()

    async def ready(self) -> dict[str, Any]:
        """Wait until it is ready; what it reported."""
        async with asyncio.timeout(_SECONDS):
            line = await asyncio.to_thread(self._output.readline)
        assert line, f"it did not start: {self.log.read_text()}"
        report: dict[str, Any] = json.loads(line)
        return report

    async def died(self) -> int:
        """Wait for its death by itself; the signal, or minus its status."""
        await asyncio.to_thread(self._process.join, _SECONDS)
        assert self._process.exitcode is not None, "it lives"
        return -self._process.exitcode

    async def kill(self) -> None:
        """Kill it if it lives still."""
        self._process.kill()
        assert await self.died() in (signal.SIGKILL, 0)
        self._output.close()


def warm_up() -> None:
    """Start the server, which takes seconds, before anything that must not stand still so long."""
    process = _context().Process(target=_do_nothing)
    # Of what it imports beforehand the server knows only where Python itself looks.
    path, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH"), os.pathsep.join(sys.path)
    try:
        process.start()
    finally:
        del os.environ["PYTHONPATH"]
        if path is not None:
            os.environ["PYTHONPATH"] = path
    process.join(_SECONDS)


def _do_nothing() -> None:
    """What a first process does."""


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def _run(arguments: list[str], variables: dict[str, str], output: Connection, log: str) -> None:
    os.dup2(output.fileno(), 1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    output.close()
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    for name in [name for name in os.environ if name.startswith("SMSBILL_")]:
        del os.environ[name]
    os.environ.update(variables)
    # Settings come from the variables alone, not from a file that somebody left.
    os.chdir(Path(log).parent)
    sys.argv = ["smsbill", *arguments]
    command.main()
