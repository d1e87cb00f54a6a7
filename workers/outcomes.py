"""How messages of this process end, counted by brand and type for who watches failures.

Counted like a metric, for the process: an outcome that is already being recorded costs one addition, and nothing while
no rule watches. What is counted goes to Redis now and then (`workers.alert_watch`); a process that dies takes some
seconds of counts with it, which a share of failures does not miss.
"""

from __future__ import annotations


class OutcomeCounts:
    """Counts by (brand, type): messages that became final, and those among them that failed."""

    def __init__(self) -> None:
        self.wanted = False
        self._counts: dict[tuple[int, int], tuple[int, int]] = {}

    def note(self, brand_id: int, sms_type: int, *, final: int, failed: int) -> None:
        """Messages have become final: delivered, or (`failed`) failed, undelivered or expired."""
        if self.wanted:
            key = brand_id, sms_type
            before = self._counts.get(key, (0, 0))
            self._counts[key] = before[0] + final, before[1] + failed

    def take(self) -> dict[tuple[int, int], tuple[int, int]]:
        """What was counted since the last call."""
        counts, self._counts = self._counts, {}
        return counts


OUTCOMES = OutcomeCounts()
"""The counts of this process."""
