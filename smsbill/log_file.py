"""The log files of the children: bounded, and looked through for errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import orjson

_LOOK_BYTES = 256 * 1024
_TAIL_BYTES = 8 * 1024
# How `infra.telemetry` writes an error as JSON; cheaper than parsing every line.
_MARKS = (b'"level": "error"', b'"level":"error"', b'"level": "critical"', b'"level":"critical"')


class LogFile:
    """A file that a child's standard error goes to. Parameters: `bytes_max` size at which it is put aside."""

    def __init__(self, path: Path, bytes_max: int) -> None:
        self.path = path
        self._bytes_max = bytes_max
        self._seen = 0
        self._run_start = 0

    def open(self) -> int:
        """Open it for a child that starts; the caller closes the descriptor."""
        self.rotate()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._run_start = self._seen = os.fstat(descriptor).st_size
        return descriptor

    def rotate(self) -> bool:
        """Put the file aside when it is too large; then whoever writes to it must open it anew."""
        if self._size() <= self._bytes_max:
            return False
        self.path.replace(self.path.with_suffix(".log.1"))
        self._seen = self._run_start = 0
        return True

    def new_errors(self) -> Iterator[str]:
        """The errors logged since the last call, each as its event."""
        size = self._size()
        # What could not be looked through in time is left out: the file has it all the same.
        start = max(self._seen, size - _LOOK_BYTES)
        chunk = self._read(start, size - start)
        whole = chunk.rfind(b"\n") + 1
        self._seen = start + whole
        for line in chunk[:whole].splitlines():
            if any(mark in line for mark in _MARKS):
                yield _event(line)

    def last_line(self) -> str:
        """The last line that the child of the last `open` wrote; empty when it wrote none."""
        size = self._size()
        start = max(self._run_start, size - _TAIL_BYTES)
        lines = self._read(start, size - start).decode("utf-8", "replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def _read(self, start: int, length: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read(max(0, length))
        except FileNotFoundError:
            return b""


def _event(line: bytes) -> str:
    try:
        fields = orjson.loads(line)
        return str(fields.get("event", "error"))
    except (orjson.JSONDecodeError, AttributeError):
        return "error"
