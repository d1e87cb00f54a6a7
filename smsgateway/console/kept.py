"""What several browsers ask for at once, asked once: an answer is kept for a moment and shared."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar, cast

T = TypeVar("T")


class Kept:
    """Answers by key, each made once at a time.

    Who asks while an answer is being made waits for the same; it goes on to be made when one of them goes away. An
    error is told to those who wait and kept for nobody.

    Parameters: `keys_max` answers kept, the least lately used goes first; `clock` seconds that never go back.
    """

    # What took long is kept ten times as long, so that nobody's looking takes more than a tenth of a connection's time.
    _REST_PART = 10.0

    def __init__(self, *, keys_max: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys_max = keys_max
        self._clock = clock
        self._answers: OrderedDict[Hashable, tuple[asyncio.Future[Any], float]] = OrderedDict()

    async def get(self, key: Hashable, seconds: float, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer of a key, at most `seconds` old, or ten times as long as it took. Raises what `make` raises."""
        kept = self._answers.get(key)
        if kept is None or self._is_old(*kept):
            started = self._clock()
            future: asyncio.Future[T] = asyncio.ensure_future(make())
            future.add_done_callback(lambda done: self._done(key, done, started, seconds))
            kept = self._answers[key] = (future, float("inf"))
            self._trim()
        self._answers.move_to_end(key)
        return cast(T, await asyncio.shield(kept[0]))

    async def close(self) -> None:
        """End what is being made."""
        futures = [future for future, _ in self._answers.values()]
        self._answers.clear()
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)

    def _is_old(self, future: asyncio.Future[Any], until: float) -> bool:
        return future.done() and (until <= self._clock() or future.cancelled() or future.exception() is not None)

    def _done(self, key: Hashable, future: asyncio.Future[Any], started: float, seconds: float) -> None:
        failed = future.cancelled() or future.exception() is not None
        kept = self._answers.get(key)
        if kept is not None and kept[0] is future:
            if failed:
                del self._answers[key]
            else:
                now = self._clock()
                self._answers[key] = (future, now + max(seconds, self._REST_PART * (now - started)))

    def _trim(self) -> None:
        # What is being made is waited for; it goes when it is done.
        while len(self._answers) > self._keys_max:
            oldest = next((key for key, (future, _) in self._answers.items() if future.done()), None)
            if oldest is None:
                break
            del self._answers[oldest]
