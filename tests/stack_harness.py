"""The real `smsbill` command as real processes, for end-to-end tests."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from smsbill import stack_file

T = TypeVar("T")

# Generous: the machine may have two cores and much else to do.
START_SECONDS = 90.0
STOP_SECONDS = 60.0
COMMAND_SECONDS = 60.0
POLL_SECONDS = 0.1

FREE_PORTS = {
    "SMSBILL_COSTCENTER_ADDRESS": "127.0.0.1:0",
    "SMSBILL_GATEWAY_ADDRESS": "127.0.0.1:0",
    "SMSBILL_HTTP_ADDRESS": "127.0.0.1:0",
    "SMSBILL_SIMULATOR_ADDRESS": "127.0.0.1:0",
}


@dataclass
class Answer:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output."""
        return json.loads(self.out.strip().splitlines()[-1])

    @property
    def succeeded(self) -> Answer | None:
        """Itself when it ended well."""
        return None if self.code else self

    @property
    def failed(self) -> Answer | None:
        """Itself when it did not end well."""
        return self if self.code else None

    @property
    def line(self) -> str:
        """Standard error, which must be one line."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


class Stack:
    """`smsbill up` on a folder. `started` is what it printed when it was ready."""

    def __init__(self, data_dir: Path, *options: str, **variables: str) -> None:
        self.data_dir = data_dir
        self.variables = {**FREE_PORTS, "SMSBILL_DATA_DIR": str(data_dir), **variables}
        self._options = options
        self.process: subprocess.Popen[str] | None = None
        self.started: dict[str, Any] = {}

    def launch(self) -> subprocess.Popen[str]:
        """Start it without waiting."""
        errors = (self.data_dir.parent / "up.err").open("a")
        with errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "smsbill", "up", "--json", *self._options],
                env=environment(self.variables),
                cwd=self.data_dir.parent,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        return self.process

    def start(self) -> None:
        """Start it and wait until it is ready."""
        process = self.launch()
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
        line = process.stdout.readline() if ready else ""
        if not line:
            self.end()
            raise AssertionError(f"not ready: {(self.data_dir.parent / 'up.err').read_text()}")
        self.started = json.loads(line)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for its end; its status."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(STOP_SECONDS)
        self.end()
        return code

    def end(self) -> None:
        """Leave nothing running, whatever the test did."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def children(self) -> dict[str, psutil.Process]:
        """The services' processes, by name."""
        file = stack_file.read(self.data_dir)
        found = [(child.name, child.find()) for child in file.children] if file else []
        return {name: process for name, process in found if process is not None}

    def run(self, *arguments: str, **variables: str) -> Answer:
        """Run a command against this stack."""
        return command(*arguments, **{**self.variables, **variables})

    def ok(self, *arguments: str, **variables: str) -> Any:
        """Run a command that must succeed; what it printed as JSON."""
        answer = self.run(*arguments, "--json", **variables)
        assert answer.code == 0, answer
        return answer.json


def command(*arguments: str, **variables: str) -> Answer:
    """Run `smsbill` to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "smsbill", *arguments],
        env=environment(variables),
        cwd=variables.get("SMSBILL_DATA_DIR", "/").rpartition("/")[0] or "/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def environment(variables: dict[str, str]) -> dict[str, str]:
    """This process's environment without settings of ours but the given ones."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SMSBILL_")}
    return {**kept, **variables}


def eventually(what: Callable[[], T | None], seconds: float = COMMAND_SECONDS) -> T:
    """Ask again and again until the answer is not None or false; other processes send no events."""
    deadline = time.monotonic() + seconds
    while True:
        answer = what()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(POLL_SECONDS)
