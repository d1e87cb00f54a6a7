"""Points in the code at which a test has the process killed exactly, as by SIGKILL from outside.

`reach("gateway.single.frozen")` marks one. It does nothing but compare, unless that very point is armed, which a
process does for itself when it starts (`smsbill.crash_points` has the closed list of names and reads the setting).
"""

from __future__ import annotations

import os
import signal
import threading

import structlog

log = structlog.get_logger(__name__)

# What the log says before the process is gone: that it was killed there, and not by somebody else.
REACHED = "crash point reached"

_armed = ""
_arrivals_left = 0
# Lanes of the ledger arrive in threads of their own.
_lock = threading.Lock()


def reach(name: str) -> None:
    """The code is at a point: when it is armed and this is the arrival meant, the process is killed here."""
    if name == _armed:
        _arrive(name)


def arm(name: str, arrival: int = 1) -> None:
    """Have this process killed when it arrives at a point for the `arrival`-th time; an empty name disarms."""
    global _armed, _arrivals_left
    assert arrival > 0
    with _lock:
        _armed, _arrivals_left = name, arrival


def _arrive(name: str) -> None:
    global _arrivals_left  # noqa: PLW0603 - one process, one point
    with _lock:
        _arrivals_left -= 1
        if _arrivals_left > 0:
            return
        log.warning(REACHED, point=name)
        # Nothing is flushed, closed or given back: the kernel does not ask.
        os.kill(os.getpid(), signal.SIGKILL)
