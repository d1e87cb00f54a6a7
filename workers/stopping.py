"""The end of a worker, seen from the tasks in hand: what has not reached the carrier is given back."""

from __future__ import annotations

import asyncio


class Stopping(Exception):  # noqa: N818 - says what happens
    """The worker stops; whoever waits for something gives back what it has in hand."""


class StopSignal:
    """Set once, when a worker stops."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def is_set(self) -> bool:
        """Whether the worker stops."""
        return self._event.is_set()

    def set(self) -> None:
        """Begin to stop."""
        self._event.set()

    def check(self) -> None:
        """Raise `Stopping` when the worker stops."""
        if self._event.is_set():
            raise Stopping

    async def sleep(self, seconds: float) -> None:
        """Wait. Raises `Stopping` as soon as the worker stops."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return
        raise Stopping
