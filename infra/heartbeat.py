"""Whether what should go on goes on: loops and threads give signs of life, `/readyz` and a metric tell who does not."""

from __future__ import annotations

import time

from prometheus_client import Gauge

from infra.telemetry import REGISTRY

STALLED = Gauge(
    "smsbill_loop_stalled_seconds",
    "For how long a loop or thread has given no sign of life, once that is too long (SMSBILL_WATCHDOG_SECONDS); else 0",
    ["loop"],
    registry=REGISTRY,
)


class Heartbeat:
    """The signs of life of one loop or thread.

    Each method writes one attribute once, so the readiness check may read while another thread writes.
    Parameters: `silent_seconds_max` from a sign of life to the next.
    """

    def __init__(self, silent_seconds_max: float) -> None:
        self._silent_seconds_max = silent_seconds_max
        self._touched_at: float | None = None

    def touch(self) -> None:
        """It goes on; the next sign is due in time."""
        self._touched_at = time.monotonic()

    def busy_since(self, moment: float) -> None:
        """It has worked at the same thing since a moment of the monotonic clock; `rest` when it is done."""
        self._touched_at = moment

    def rest(self) -> None:
        """It has nothing to do: no sign is due until the next `touch`."""
        self._touched_at = None

    @property
    def stalled_seconds(self) -> float:
        """Seconds since its last sign of life, once they are too many; else 0."""
        touched_at = self._touched_at
        silent = 0.0 if touched_at is None else time.monotonic() - touched_at
        return silent if silent > self._silent_seconds_max else 0.0


class Watchdog:
    """The heartbeats of one process.

    Parameters: `limit_seconds` how long a loop may be silent beyond its own interval (`SMSBILL_WATCHDOG_SECONDS`).
    """

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._heartbeats: dict[str, Heartbeat] = {}

    def heartbeat(self, name: str, *, interval_seconds: float = 0.0) -> Heartbeat:
        """The heartbeat of a loop that rests until its first `touch`; `interval_seconds` its own wait between turns."""
        made = self._heartbeats[name] = Heartbeat(self._limit_seconds + interval_seconds)
        STALLED.labels(name).set_function(lambda: made.stalled_seconds)
        return made

    def stalled(self) -> dict[str, float]:
        """The names of those that have been silent for too long, with the seconds of their silence."""
        found = {name: heartbeat.stalled_seconds for name, heartbeat in self._heartbeats.items()}
        return {name: seconds for name, seconds in found.items() if seconds}
