"""What the embedded servers have in common: start, recognise, take over, watch and stop a server process."""

import abc
import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import psutil

from infra.data_folder import DataFolder, EmbeddedError, folder_errors
from infra.embedded_account import Account, run_as

_POLL_SECONDS = 0.02
# How long a server that was found running may go without a socket file before it is taken for unreachable.
_SOCKET_GRACE_SECONDS = 2.0
# What is left for a server to die in after SIGQUIT or SIGKILL.
_DEATH_SECONDS = 5.0
_LOG_TAIL_BYTES = 4096
_LOG_TAIL_LINES = 20
_LOG_LIMIT_BYTES = 8 * 1024 * 1024
_TELLING = re.compile(r"FATAL|PANIC|ERROR|error:|can't|No space|# (?!WARNING Memory)")


class Deadline:
    """The end of a wait; an event from another thread ends it early."""

    def __init__(self, seconds: float, abort: threading.Event | None = None) -> None:
        self._end = time.monotonic() + seconds
        self._abort = abort or threading.Event()

    @property
    def remaining(self) -> float:
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.remaining == 0.0

    def pause(self) -> None:
        """Wait a moment, not past the end."""
        if self._abort.wait(min(_POLL_SECONDS, self.remaining)):
            raise EmbeddedError("the start was interrupted; start again")


class EmbeddedServer(abc.ABC):
    """One server whose data lie in one folder; it outlives us, and a later start takes it over."""

    title: ClassVar[str]
    process_name: ClassVar[str]
    # Signals that stop the server, mildest first; SIGKILL follows in any case.
    stop_signals: ClassVar[tuple[signal.Signals, ...]]

    def __init__(self, folder: DataFolder, data: str) -> None:
        self.folder = folder
        self.data = folder.path / data
        self.log = folder.logs / f"{data}.log"
        self.account: Account | None = None
        self._process: psutil.Process | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    # What differs from server to server.

    @property
    @abc.abstractmethod
    def socket(self) -> Path: ...

    @abc.abstractmethod
    def _pid_from_file(self) -> int | None: ...

    @abc.abstractmethod
    def _remove_remains(self) -> None:
        """Remove pid files and sockets of a server that no longer runs."""

    @abc.abstractmethod
    def _prepare(self, deadline: Deadline) -> None:
        """Make all that the server's start needs."""

    @abc.abstractmethod
    def _command(self) -> list[str]: ...

    @abc.abstractmethod
    def _answers(self) -> bool:
        """Whether our server, and no other, accepts commands on our socket."""

    # What is the same.

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self.is_running() else None

    def is_running(self) -> bool:
        if self._process is None:
            return False
        if self._child is not None:
            return self._child.poll() is None
        return _is_alive(self._process)

    def launch(self, deadline: Deadline) -> None:
        """Take over the server that runs on our data, or start one."""
        if self.is_running():
            raise EmbeddedError(f"{self.title} runs already; stop it first")
        found = self._find()
        if found is not None:
            self._process, self._child = found, None
        else:
            self._spawn(deadline)

    def wait_until_ready(self, deadline: Deadline) -> None:
        """Wait until the launched server answers; replace one that was taken over and does not."""
        grace = Deadline(_SOCKET_GRACE_SECONDS)
        patience = Deadline(deadline.remaining / 2)
        while True:
            if not self.is_running():
                if self._child is not None:
                    raise self._failure(f"ended at once with status {self._child.returncode}")
                self._spawn(deadline)  # the one that was taken over was on its way out
            elif self._answers():
                return
            elif self._child is None and (patience.passed or (grace.passed and not self.socket.exists())):
                self.stop(Deadline(deadline.remaining / 2))
                self._spawn(deadline)
            elif deadline.passed:
                raise self._failure("did not answer in time")
            deadline.pause()

    def stop(self, deadline: Deadline, first_signal: signal.Signals | None = None) -> None:
        """Stop the server, mildly first; SIGKILL only when the time is over."""
        if first_signal is None:
            first_signal = self.stop_signals[0]
        self._send(first_signal)
        if not self._wait_for_end(deadline.remaining):
            for stronger in (*self.stop_signals[1:], signal.SIGKILL):
                self._send(stronger)
                if self._wait_for_end(_DEATH_SECONDS):
                    break
            else:
                raise EmbeddedError(
                    f"{self.title} (process {self.pid}) cannot be stopped, not even with SIGKILL: "
                    "its disk may hang; look at dmesg"
                )
            self._kill_strays()
        self._process = self._child = None

    def kill(self) -> None:
        """SIGKILL, for tests of failures."""
        self._send(signal.SIGKILL)
        if not self._wait_for_end(_DEATH_SECONDS):
            raise EmbeddedError(f"{self.title} (process {self.pid}) does not die of SIGKILL; look at dmesg")
        self._process = self._child = None

    def _find(self) -> psutil.Process | None:
        pid = self._pid_from_file()
        if pid is None:
            return None
        # A number in a file proves nothing: after a crash another program may have it.
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if self._is_ours(process):
                return process
        return None

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return (
                _is_alive(process)
                and process.name() == self.process_name
                and os.path.realpath(process.cwd()) == os.path.realpath(self.data)
            )
        except psutil.Error:
            return False

    def _strays(self) -> Iterator[psutil.Process]:
        """Processes that work in our data folder without the server that started them."""
        for process in psutil.process_iter():
            if self._is_ours(process):
                yield process

    def _kill_strays(self) -> None:
        """End them: a new server must not start beside them."""
        strays = list(self._strays())
        for sent in (signal.SIGQUIT, signal.SIGKILL):
            for process in strays:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(sent)
            deadline = Deadline(_DEATH_SECONDS)
            while (strays := [process for process in strays if _is_alive(process)]) and not deadline.passed:
                deadline.pause()
        if strays:
            stray = strays[0].pid
            raise EmbeddedError(f"process {stray} in {self.data} does not die of SIGKILL; look at dmesg")

    def _spawn(self, deadline: Deadline) -> None:
        self._kill_strays()
        with folder_errors(self.folder.path):
            self._remove_remains()
            self._prepare(deadline)
            if self.log.exists() and self.log.stat().st_size > _LOG_LIMIT_BYTES:
                self.log.replace(self.log.with_suffix(".log.old"))
        self._child = self._run(self._command())
        self._process = psutil.Process(self._child.pid)

    def _run(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Run a program of the server's in a session of its own: a Ctrl-C in the terminal is not for it."""
        # Variables that would change what the programs do, or the language of what they say.
        environment = {name: text for name, text in os.environ.items() if not name.startswith(("PG", "LC_"))}
        environment |= {"LC_ALL": "C", "TZ": "UTC"}
        if self.account is not None:
            command = run_as(self.account, command)
        with folder_errors(self.folder.path), open(self.log, "ab", opener=_private) as log:
            self._log_start = log.seek(0, os.SEEK_END)
            try:
                return subprocess.Popen(  # noqa: S603 (our own command, no shell)
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env=environment,
                    start_new_session=True,
                    umask=0o077,
                    # As Python has it, SIGXFSZ stays ignored: a file that may not grow is an error that the server
                    # tells (PostgreSQL sees to that itself), and not its death.
                    restore_signals=False,
                )
            except OSError as error:
                raise EmbeddedError(
                    f"{command[0]} cannot be run as this user: {error.strerror}; "
                    "make it executable for all, or install the package again"
                ) from error

    def _failure(self, what: str) -> EmbeddedError:
        """The error for a server that did not start, with the end of what it has logged."""
        tail = self._log_tail()
        telling = [line for line in tail if _TELLING.search(line)] or tail
        said = f": {telling[-1].strip()}" if telling else ""
        return EmbeddedError(
            f"{self.title} in the data folder {self.folder.path} {what}{said}; "
            f"remove the cause and start again, its log is {self.log}",
            log_tail="\n".join(tail),
        )

    def _log_tail(self) -> list[str]:
        with contextlib.suppress(OSError), open(self.log, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, end - _LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
            return [line for line in lines if line.strip()][-_LOG_TAIL_LINES:]
        return []

    def _send(self, sent: signal.Signals) -> None:
        if self.is_running():
            assert self._process is not None
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                # Of a child the Popen object knows best: it has the process until its end was waited for.
                (self._child or self._process).send_signal(sent)

    def _wait_for_end(self, seconds: float) -> bool:
        deadline = Deadline(seconds)
        while self.is_running():
            if deadline.passed:
                return False
            deadline.pause()
        return True


def _is_alive(process: psutil.Process) -> bool:
    """A zombie is dead: in a container nobody may ever wait for it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
