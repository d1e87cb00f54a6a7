"""Fair turns: whose queue is read next, and whose message is submitted next. Pure logic, no I/O.

Each type and mode has turns of its own, so that types cannot delay each other. Within one, queues take turns:

* a queue gives at most a quantum of entries per turn and then goes to the back while others wait;
* it has at most a window of entries in hand, and a share of what all may have in hand when many queues have work;
* a queue that has nothing in hand is read even when the rest has everything that is allowed (a reserve is for these);
* calls in flight are given to the queues in turn, not to the entries in order;
* entries that wait for a carrier account that may not be called now are put aside: they count no more as in hand, so
  that nobody else waits for them, and a queue with many of them is not read.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Standing:
    """What is known of a queue: entries in hand, and whether it may have more."""

    in_hand: int = 0
    has_more: bool = False
    aside: int = 0
    # There was no room to put more aside; and whether those behind may pass what is.
    shut: bool = False
    passed: bool = False


class Turns(Generic[K]):
    """Decides which queue is read next and how many entries it may give.

    Parameters: `quantum` entries per turn; `window` entries of a queue in hand; `in_hand_max` entries of all queues in
    hand; `reserve` entries beyond that for queues with nothing in hand; `aside_max` entries of a queue that are put
    aside before it is read no more, and `aside_total_max` of all queues.
    """

    def __init__(
        self, *, quantum: int, window: int, in_hand_max: int, reserve: int, aside_max: int = 0, aside_total_max: int = 0
    ) -> None:
        assert quantum > 0
        assert window > 0
        assert in_hand_max > 0
        assert reserve >= 0
        self._quantum = quantum
        self._window = window
        self._in_hand_max = in_hand_max
        self._reserve = reserve
        self._aside_max = aside_max or window
        self._aside_total_max = aside_total_max or 4 * in_hand_max
        self._aside = 0
        self._standings: dict[K, _Standing] = {}
        self._ring: OrderedDict[K, None] = OrderedDict()
        self._in_hand = 0

    @property
    def in_hand(self) -> int:
        """Entries of all queues in hand."""
        return self._in_hand

    @property
    def waiting(self) -> int:
        """Queues that may have entries that nobody has read."""
        return len(self._ring)

    def offer(self, queue: K) -> None:
        """A queue may have entries."""
        standing = self._standings.setdefault(queue, _Standing())
        standing.has_more = True
        self._ring.setdefault(queue)

    def take(self) -> tuple[K, int] | None:
        """The queue whose turn it is and the entries that it may give, which count as in hand from now on.

        None when no queue may be read. Every take is answered by one `read`.
        """
        for _ in range(len(self._ring)):
            queue, _ = self._ring.popitem(last=False)
            count = self._allowed(self._standings[queue])
            if count:
                # Not in the ring until its read is answered: two reads of one queue at once would change its order.
                self._standings[queue].in_hand += count
                self._in_hand += count
                return queue, count
            self._ring[queue] = None
        return None

    def read(self, queue: K, *, allowed: int, got: int) -> None:
        """A read of `allowed` entries gave `got`; fewer means that the queue is empty."""
        assert 0 <= got <= allowed
        standing = self._standings.get(queue)
        if standing is None:
            return
        # What was offered while the read was under way may have come too late for it.
        standing.has_more = got == allowed or queue in self._ring
        self.done(queue, allowed - got)
        if standing.has_more:
            self._ring.setdefault(queue)

    def done(self, queue: K, count: int = 1) -> None:
        """Entries of a queue are not in hand any more."""
        standing = self._standings.get(queue)
        if standing is not None:
            standing.in_hand -= count
            self._in_hand -= count
            assert standing.in_hand >= 0

    def drop(self, queue: K) -> None:
        """Read a queue no more; what is in hand of it stays in hand until it is done."""
        standing = self._standings.get(queue)
        if standing is not None:
            standing.has_more = False
        self._ring.pop(queue, None)

    def forget(self, queue: K) -> None:
        """Know nothing of a queue any more. It must have nothing in hand."""
        assert self.in_hand_of(queue) == 0
        self._standings.pop(queue, None)
        self._ring.pop(queue, None)

    def put_aside(self, queue: K, *, others_may_pass: bool) -> bool:
        """An entry in hand waits for its account; False when too many do.

        `others_may_pass`: entries behind it may have another account, so that the queue is read on; then it is what
        waits that has to make room.
        """
        standing = self._standings.get(queue)
        if standing is not None:
            standing.passed = others_may_pass
        if standing is None or (others_may_pass and standing.aside >= self._aside_max):
            return False
        if self._aside >= self._aside_total_max:
            standing.shut = not others_may_pass
            return False
        standing.aside += 1
        standing.in_hand -= 1
        self._aside += 1
        self._in_hand -= 1
        return True

    def take_up(self, queue: K) -> None:
        """An entry that was put aside goes on: in hand again, whatever the bounds."""
        standing = self._standings[queue]
        assert standing.aside > 0
        standing.aside -= 1
        self._aside -= 1
        standing.in_hand += 1
        self._in_hand += 1

    def in_hand_of(self, queue: K) -> int:
        """Entries of a queue in hand or put aside."""
        standing = self._standings.get(queue)
        return 0 if standing is None else standing.in_hand + standing.aside

    def is_idle(self, queue: K) -> bool:
        """Whether a queue has nothing in hand and nothing to read."""
        standing = self._standings.get(queue)
        return standing is None or (standing.in_hand == 0 and standing.aside == 0 and not standing.has_more)

    def _allowed(self, standing: _Standing) -> int:
        if standing.shut and self._aside <= self._aside_total_max // 2:
            standing.shut = False
        if standing.shut or (standing.aside >= self._aside_max and not standing.passed):
            return 0
        room = self._in_hand_max - self._in_hand
        if standing.in_hand == 0:
            room += self._reserve
        # Those in the ring besides this one, and this one.
        share = max(1, self._in_hand_max // (len(self._ring) + 1))
        window = min(self._window, max(share, self._quantum)) - standing.in_hand
        # A queue with a full window waits until it can give a part worth reading, not for each entry that gets done.
        worth = min(self._quantum, max(1, self._window // 4))
        if min(window, room) < worth and standing.in_hand:
            return 0
        return max(0, min(self._quantum, window, room))


class SlotsClosed(Exception):  # noqa: N818 - says what happened
    """No slot is given any more: the worker stops."""


class Slots(Generic[K]):
    """A bounded number of calls in flight; a free slot goes to the queue that has waited longest since its last one."""

    def __init__(self, count: int) -> None:
        assert count > 0
        self._free = count
        self._waiting: OrderedDict[K, deque[asyncio.Future[None]]] = OrderedDict()
        self._closed = False

    def try_acquire(self) -> bool:
        """Take a slot if one is free. Raises `SlotsClosed` after `close`."""
        if self._closed:
            raise SlotsClosed
        if self._free > 0:
            # Nobody waits while a slot is free.
            self._free -= 1
            return True
        return False

    async def acquire(self, queue: K) -> None:
        """Wait for a slot. Raises `SlotsClosed` after `close`."""
        if self.try_acquire():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(queue, deque()).append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release()
            raise

    def release(self) -> None:
        """Give a slot back."""
        while self._waiting:
            queue, futures = self._waiting.popitem(last=False)
            given = False
            while futures and not given:
                future = futures.popleft()
                if not future.done():
                    future.set_result(None)
                    given = True
            if futures:
                # Its next one waits behind one of every other queue.
                self._waiting[queue] = futures
            if given:
                return
        self._free += 1

    def close(self) -> None:
        """Give no slot any more, also not to those that wait; slots in use come back as ever."""
        self._closed = True
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(SlotsClosed())
        self._waiting.clear()
