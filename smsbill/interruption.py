"""Ctrl-C and SIGTERM for commands that hold something to be put away."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):  # noqa: N818 - somebody's wish, not a fault
    """The command was told to end by a signal, and has put everything away."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


async def run(body: Coroutine[Any, Any, int], *, hurry: Callable[[], None]) -> int:
    """Run a command's body; the first signal cancels it, later ones call `hurry`. Raises `Interrupted`."""
    task = asyncio.ensure_future(body)
    came: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        came.append(number)
        if len(came) == 1:
            task.cancel()
        else:
            hurry()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not came:
            raise
        raise Interrupted(came[0]) from None
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
