"""Aim: a child process is started again when it dies, stopped in time, and never outlives its supervisor.

The child is the carrier simulator: a real service process that needs no server.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.errors import StartError
from smsbill.log_file import LogFile
from smsbill.supervisor import Child, Limits

SECONDS = 40
LIMITS = Limits(start_seconds=30, stop_seconds=20, restart_seconds=0.05, restart_seconds_max=0.2, stable_seconds=3_600)


class Watch:
    """A child and what it told."""

    def __init__(self, folder: Path, variables: Mapping[str, str], limits: Limits, *arguments: str) -> None:
        self.said: list[str] = []
        self.reports: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self.hurry = asyncio.Event()
        self.log = LogFile(folder / "child.log", 65_536)
        self._variables = variables
        self.child = Child(
            "child",
            arguments or ("carrier-simulator",),
            environment=self._environment,
            on_ready=self.reports.put_nowait,
            log=self.log,
            limits=limits,
            notify=self.said.append,
        )

    async def _environment(self) -> Mapping[str, str]:
        return {"SMSBILL_SIMULATOR_ADDRESS": "127.0.0.1:0", "SMSBILL_LOG_FORMAT": "json", **self._variables}

    async def report(self) -> Mapping[str, Any]:
        async with asyncio.timeout(SECONDS):
            return await self.reports.get()


@asynccontextmanager
async def watched(folder: Path, *arguments: str, limits: Limits = LIMITS, **variables: str) -> AsyncIterator[Watch]:
    watch = Watch(folder, variables, limits, *arguments)
    watch.child.start()
    try:
        yield watch
    finally:
        await watch.child.stop(watch.hurry)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        # Other processes set no events of ours.
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_it_reports_dies_comes_back_and_stops(tmp_path: Path) -> None:
    """Aim: a killed child is replaced and reports anew; a stop ends it with its drain, and nothing comes back."""
    async with watched(tmp_path) as watch:
        await asyncio.wait_for(watch.child.wait_ready(), SECONDS)
        first = await watch.report()
        assert first["ready"] == "carrier-simulator"
        os.kill(first["pid"], signal.SIGKILL)
        second = await watch.report()
        assert second["pid"] != first["pid"]
        assert watch.said == [f"child: killed by SIGKILL; its log is {watch.log.path}; starts again in 0.05 s"]
        await watch.child.stop(watch.hurry)
        assert not psutil.pid_exists(second["pid"])
        assert watch.child.pid is None
        assert len(watch.said) == 1
    assert '"event":"stopped"' in watch.log.path.read_text()


async def test_a_first_start_that_fails_says_why(tmp_path: Path) -> None:
    """Aim: what the child says on its way out is the reason, and it is not tried again."""
    async with watched(tmp_path, SMSBILL_SIMULATOR_SETTINGS='{"latency_ms": -1}') as watch:
        with pytest.raises(StartError, match=r"^child: settings SMSBILL_SIMULATOR_\*: latency_ms must be"):
            await asyncio.wait_for(watch.child.wait_ready(), SECONDS)
        assert watch.said == []


async def test_a_child_that_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    """Aim: a start has a bound; beyond it the child is killed and the reason names its log."""
    short = Limits(0.05, 20, 0.05, 0.2, 3_600)
    async with watched(tmp_path, limits=short) as watch:
        with pytest.raises(StartError, match=r"not ready within 0\.05 s; its log is"):
            await asyncio.wait_for(watch.child.wait_ready(), SECONDS)


async def test_waits_between_starts_grow_up_to_a_bound(tmp_path: Path) -> None:
    """Aim: a child that dies again and again does not keep the machine busy."""
    async with watched(tmp_path) as watch:
        for _ in range(4):
            os.kill((await watch.report())["pid"], signal.SIGKILL)
        await until(lambda: len(watch.said) == 4)
    assert [line.rpartition(" in ")[2] for line in watch.said] == ["0.05 s", "0.1 s", "0.2 s", "0.2 s"]


async def test_a_child_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    """Aim: a stop has a bound, and no bound at all for somebody in a hurry."""
    impatient = Limits(30, 0.2, 0.05, 0.2, 3_600)
    async with watched(tmp_path, limits=impatient) as watch:
        pid = (await watch.report())["pid"]
        os.kill(pid, signal.SIGSTOP)
        await watch.child.stop(watch.hurry)
        assert not psutil.pid_exists(pid)
        assert watch.said == ["child did not stop within 0.2 s and is killed"]
    async with watched(tmp_path) as watch:
        pid = (await watch.report())["pid"]
        os.kill(pid, signal.SIGSTOP)
        watch.hurry.set()
        await asyncio.wait_for(watch.child.stop(watch.hurry), SECONDS / 4)
        assert not psutil.pid_exists(pid)


async def test_a_log_that_grew_too_large_is_put_aside_without_a_loss(tmp_path: Path) -> None:
    """Aim: the child goes on in a new file, the older one is kept, and errors of both are seen."""
    async with watched(tmp_path) as watch:
        pid = (await watch.report())["pid"]
        await until(lambda: '"event":"ready"' in watch.log.path.read_text())
        with watch.log.path.open("a") as file:
            file.write("x" * 70_000 + "\n")
        watch.child.rotate_log()
        await until(watch.log.path.exists)
        assert psutil.pid_exists(pid)
        await watch.child.stop(watch.hurry)
        assert '"event":"stopped"' in watch.log.path.read_text()
        assert '"event":"ready"' in (tmp_path / "child.log.1").read_text()


def test_errors_in_a_log_are_found_once(tmp_path: Path) -> None:
    """Aim: each error is told once, also when a line comes in two parts; other lines are not."""
    log = LogFile(tmp_path / "a.log", 65_536)
    os.close(log.open())
    with log.path.open("a") as file:
        file.write('{"event": "fine", "level": "info"}\n{"event": "call failed", "level": "error"}\n{"event": "late"')
        file.flush()
        assert list(log.new_errors()) == ["call failed"]
        file.write(', "level": "critical"}\nTraceback "level": "error"\n')
        file.flush()
        assert list(log.new_errors()) == ["late", "error"]
        assert list(log.new_errors()) == []
    assert log.last_line() == 'Traceback "level": "error"'
    os.close(log.open())
    assert log.last_line() == ""


# A supervisor that starts a child, tells its ready line, and sleeps. Of the two ties the one not under test is cut: by
# a standard input whose other end the test holds, or by a platform without the kernel's signal.
SUPERVISOR = """
import os, subprocess, sys, time
tie, stdin = sys.argv[1], int(sys.argv[2])
program = "import sys, types, smsbill.parent, smsbill.command\\n"
if tie == "pipe":
    stdin = subprocess.PIPE
    program += "smsbill.parent.sys = types.SimpleNamespace(platform='darwin')\\n"
program += "sys.argv[1:] = ['carrier-simulator']; smsbill.command.main()"
variables = {"SMSBILL_SUPERVISOR_PID": str(os.getpid()), "SMSBILL_SIMULATOR_ADDRESS": "127.0.0.1:0"}
child = subprocess.Popen(
    [sys.executable, "-c", program], stdin=stdin, stdout=subprocess.PIPE, env={**os.environ, **variables}, text=True
)
print(child.stdout.readline().strip(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("tie", ["kernel", "pipe"])
def test_a_child_ends_when_its_supervisor_is_killed(tmp_path: Path, tie: str) -> None:
    """Aim: each of the two ties alone ends the child: the kernel's signal, and the end of its standard input."""
    if tie == "kernel" and sys.platform != "linux":
        pytest.skip("the kernel's signal is Linux's")
    reading, writing = os.pipe()
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, tie, str(reading)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(reading,),
        cwd=Path(__file__).parents[2],
        text=True,
    )
    assert supervisor.stdout is not None
    try:
        line = supervisor.stdout.readline()
        child = psutil.Process(int(line.split('"pid": ')[1].split(",")[0]))
        supervisor.kill()
        supervisor.wait(SECONDS)
        _, alive = psutil.wait_procs([child], timeout=SECONDS)
        assert not alive
    finally:
        os.close(reading)
        os.close(writing)
        supervisor.kill()
        supervisor.wait(SECONDS)
        supervisor.stdout.close()
