"""A child process under supervision: started, watched, started again when it dies, stopped in time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from infra.errors import StartError
from smsbill.log_file import LogFile
from smsbill.parent import SUPERVISOR
from smsbill.process import LOG_FILE

Report = Mapping[str, object]
Notify = Callable[[str], None]

_STDOUT_LIMIT = 64 * 1024
_DEATH_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds: a start's and a stop's time, the waits before another start, and the time after which they begin anew."""

    start_seconds: float
    stop_seconds: float
    restart_seconds: float
    restart_seconds_max: float
    stable_seconds: float


class Child:
    """`smsbill <arguments>` as a process.

    Parameters: `environment` is awaited before each start and gives what the child's environment has beyond ours;
    `on_ready` is called at each start with what the child reported. The first start must succeed: `wait_ready` raises
    `StartError` when it does not. Afterwards a child that dies is started again, with growing waits, for ever.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Callable[[], Awaitable[Mapping[str, str]]],
        on_ready: Callable[[Report], None],
        log: LogFile,
        limits: Limits,
        notify: Notify,
    ) -> None:
        self.name = name
        self.log = log
        self.restarts = 0
        self._arguments = arguments
        self._environment = environment
        self._on_ready = on_ready
        self._limits = limits
        self._notify = notify
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._is_ready = False
        self._first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # A stack that stops early asks nobody for it.
        self._first_ready.add_done_callback(lambda future: future.cancelled() or future.exception())

    @property
    def pid(self) -> int | None:
        """The process id, while one runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start in the background."""
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def wait_ready(self) -> None:
        """Wait until the first start has succeeded. Raises `StartError`."""
        await asyncio.shield(self._first_ready)

    async def stop(self, hurry: asyncio.Event) -> None:
        """SIGTERM, and SIGKILL when the time is over or somebody is in a hurry."""
        self._stopping.set()
        self._first_ready.cancel()
        process = self._process
        if process is not None:
            self._send(signal.SIGTERM)
            if not await self._ended(process, self._limits.stop_seconds, hurry):
                if not hurry.is_set():
                    self._notify(f"{self.name} did not stop within {self._limits.stop_seconds:g} s and is killed")
                self._send(signal.SIGKILL)
                await self._ended(process, _DEATH_SECONDS, asyncio.Event())
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def rotate_log(self) -> None:
        """Put a log file aside that has grown too large."""
        # A child that is not ready yet would die of the signal.
        if self._is_ready and self.log.rotate():
            self._send(signal.SIGHUP)

    async def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                code = await self._live_once()
            except Exception as error:
                # Such as no process or no memory left; later there may be.
                code, problem = None, f"cannot be started ({error})"
            else:
                problem = self._problem(code)
            if self._stopping.is_set():
                return
            if not self._first_ready.done():
                self._first_ready.set_exception(StartError(f"{self.name}: {problem}"))
                return
            failures = 0 if time.monotonic() - started >= self._limits.stable_seconds else failures + 1
            wait = min(
                self._limits.restart_seconds * 2 ** min(max(failures - 1, 0), 30), self._limits.restart_seconds_max
            )
            self._notify(f"{self.name}: {problem}; starts again in {wait:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)
            self.restarts += 1

    async def _live_once(self) -> int | None:
        """Start the child and wait for its end; its status, or None when it was not ready in time."""
        ours = {SUPERVISOR: str(os.getpid()), LOG_FILE: str(self.log.path)}
        environment = {**os.environ, **await self._environment(), **ours}
        descriptor = self.log.open()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "smsbill",
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=descriptor,
                env=environment,
                limit=_STDOUT_LIMIT,
                # A Ctrl-C in the terminal is for us; we tell them in order.
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        self._process = process
        try:
            if not await self._wait_ready_once(process):
                return None
            self._is_ready = True
            assert process.stdout is not None
            while await process.stdout.read(_STDOUT_LIMIT):
                pass
            return await process.wait()
        finally:
            self._is_ready = False
            if process.returncode is None:
                self._send(signal.SIGKILL)
                await asyncio.shield(process.wait())
            self._process = None

    async def _wait_ready_once(self, process: asyncio.subprocess.Process) -> bool:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(self._limits.start_seconds):
                line = await process.stdout.readline()
                if not line:
                    await process.wait()
                    return True
        except TimeoutError:
            return False
        self._on_ready(json.loads(line))
        if not self._first_ready.done():
            self._first_ready.set_result(None)
        return True

    def _problem(self, code: int | None) -> str:
        last = self.log.last_line()
        if code is None:
            return f"not ready within {self._limits.start_seconds:g} s; its log is {self.log.path}"
        if code == 1 and last and not last.startswith("{"):
            # What the command itself says on its way out: one line with what to do.
            return last.removeprefix("smsbill: ")
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{how}; its log is {self.log.path}"

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    @staticmethod
    async def _ended(process: asyncio.subprocess.Process, seconds: float, hurry: asyncio.Event) -> bool:
        ending = asyncio.create_task(process.wait())
        hurrying = asyncio.create_task(hurry.wait())
        try:
            await asyncio.wait({ending, hurrying}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return ending.done()
        finally:
            for task in (ending, hurrying):
                task.cancel()
            await asyncio.gather(ending, hurrying, return_exceptions=True)
