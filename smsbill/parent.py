"""The tie between a child and the supervisor that started it: a child must not outlive its supervisor.

Two ways, for one may be missing or late: on Linux the kernel sends SIGTERM when the supervisor dies, and everywhere the
child's standard input is a pipe whose other end only the supervisor holds. SIGTERM drains; a child that hangs in
its drain ends by force.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

# Set by the supervisor for its children: its process id.
SUPERVISOR = "SMSBILL_SUPERVISOR_PID"
# How much longer than its drain time a stopping process may take: closing connections, flushing logs.
STOP_MARGIN_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


def tie(drain_seconds: float) -> None:
    """Have this process end when its supervisor does; without a supervisor nothing happens."""
    supervisor = os.environ.get(SUPERVISOR, "")
    if not supervisor:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    threading.Thread(target=_watch, args=(drain_seconds,), name="supervisor-watch", daemon=True).start()
    if os.getppid() != int(supervisor):
        # It died before the kernel was told.
        os.kill(os.getpid(), signal.SIGTERM)


def end_by_force_after(seconds: float) -> None:
    """End this process, whatever it does then, after so long."""

    def end() -> None:
        time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=end, name="end-by-force", daemon=True).start()


def _watch(drain_seconds: float) -> None:
    while os.read(0, 4096):
        pass
    end_by_force_after(drain_seconds + STOP_MARGIN_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
