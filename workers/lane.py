"""Reading the queues of one type and mode: leases, turns, and a task for each entry in hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from infra import tracing
from infra.crash_points import reach
from infra.errors import Refusal
from infra.grouping import Grouper
from smsgateway.queues import Entry, Lease, Queue, Queues
from smsgateway.schema import Mode
from workers.lease import FROM_THE_START, NEW, Leases
from workers.loops import OUTAGES
from workers.metrics import IN_HAND, LEASES, MODE_NAMES, TYPE_NAMES
from workers.sender import Sender
from workers.settings import Settings
from workers.stopping import StopSignal
from workers.turns import Turns

if TYPE_CHECKING:
    from infra.spans import Spans

log = structlog.get_logger(__name__)

# Queues asked for in one round trip.
_LEASES_AT_ONCE = 64
_READS_AT_ONCE = 64
# How often idle queues are looked for; many steps are taken in between.
_TIDY_SECONDS = 0.2


class Lane:
    """The queues of one type and mode.

    `step` is a turn: ask for queues that have work, read those whose turn it is, give back those that are idle.
    `wake` says that there is something to do.
    """

    def __init__(
        self, *, sms_type: int, mode: Mode, worker: str, queues: Queues, sender: Sender, stop: StopSignal,
        settings: Settings,
    ) -> None:  # fmt: skip
        self.sms_type = sms_type
        self.mode = mode
        self.wake = asyncio.Event()
        self._queues = queues
        self._sender = sender
        self._stop = stop
        self._settings = settings
        self._leases = Leases(queues, worker, ttl_seconds=settings.lease_seconds, leases_max=settings.leases_max)
        single = mode is Mode.SINGLE
        quantum = settings.single_quantum if single else settings.batch_quantum
        self._turns: Turns[Queue] = Turns(
            quantum=quantum,
            window=settings.single_window if single else settings.batch_window,
            in_hand_max=settings.single_in_hand_max if single else settings.batch_in_hand_max,
            reserve=8 * quantum,
        )
        sender.hand = self
        self._spans = tracing.active()
        self._ids_in_hand: set[tuple[int, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle_since: dict[Queue, float] = {}
        self._yielding: set[Queue] = set()
        self._tidied_at = 0.0
        self._acknowledgements: Grouper[tuple[Queue, str], None] = Grouper(
            self._acknowledge_all, group_max=1_000, queue_max=settings.stage_queue_max,
            gather_seconds=settings.stage_gather_seconds, name="queue of acknowledgements",
        )  # fmt: skip
        labels = (TYPE_NAMES[sms_type], MODE_NAMES[mode])
        self._leases_gauge = LEASES.labels(*labels)
        self._in_hand_gauge = IN_HAND.labels(*labels)

    @property
    def in_hand(self) -> int:
        """Entries in hand."""
        return len(self._tasks)

    def notice(self, queue: Queue, *, freed: bool = False) -> None:
        """A queue has entries; `freed`: another worker gave it back."""
        if self._stop.is_set:
            return
        if queue in self._yielding:
            return
        if self._leases.lease_of(queue) is not None:
            self._idle_since.pop(queue, None)
            self._turns.offer(queue)
        elif not self._leases.want(queue, freed=freed):
            return
        self.wake.set()

    def put_aside(self, queue: Queue, *, others_may_pass: bool) -> bool:
        """See `workers.sender.Hand`."""
        aside = self._turns.put_aside(queue, others_may_pass=others_may_pass)
        if aside and self._turns.waiting:
            self.wake.set()
        return aside

    def take_up(self, queue: Queue) -> None:
        """See `workers.sender.Hand`."""
        self._turns.take_up(queue)
        if self._turns.waiting:
            self.wake.set()

    async def step(self) -> bool:
        """One turn; True when there is more to do at once."""
        if self._stop.is_set:
            return False
        for lease in await self._leases.acquire(group_max=_LEASES_AT_ONCE):
            self._turns.offer(lease.queue)
        progress = await self._read()
        if time.monotonic() - self._tidied_at >= _TIDY_SECONDS:
            self._tidied_at = time.monotonic()
            await self._release_idle()
            await self._give_way()
            self._leases_gauge.set(len(self._leases))
            self._in_hand_gauge.set(len(self._tasks))
        return progress

    async def renew(self) -> None:
        """Prolong the leases. What is in hand of a lost one goes on: each of its steps is conditional."""
        for lease in await self._leases.renew():
            self._forget(lease)
            self._leases.want(lease.queue)
            self.wake.set()

    async def drain(self, seconds: float) -> None:
        """Finish or give back what is in hand, at most so long; then what has not ended is left as it is."""
        self._sender.close_slots()
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=max(0.0, seconds))
            for task in pending:
                task.cancel()
            if pending:
                log.warning("stopped with calls under way, their outcomes are unknown", dispatches=len(pending))
                await asyncio.gather(*pending, return_exceptions=True)

    async def give_back(self) -> None:
        """Give every lease back, so that others need not wait for its end."""
        await self._acknowledgements.close()
        try:
            await self._leases.release(self._leases.held, even_with_entries=True)
        except OUTAGES as error:
            log.warning("leases not given back, they end by themselves", error=type(error).__name__)

    # Reading.

    async def _read(self) -> bool:
        requests: list[tuple[Lease, int, str]] = []
        while len(requests) < _READS_AT_ONCE and (turn := self._turns.take()) is not None:
            queue, count = turn
            lease = self._leases.lease_of(queue)
            if lease is None:
                self._turns.done(queue, count)
                self._turns.drop(queue)
                self._forget_if_done(queue)
                continue
            requests.append((lease, count, self._leases.cursor(queue)))
        if not requests:
            return False
        try:
            replies = await self._queues.read(requests)
        except BaseException:
            for lease, count, _ in requests:
                self._turns.done(lease.queue, count)
                self._turns.offer(lease.queue)
            raise
        for (lease, count, cursor), entries in zip(requests, replies, strict=True):
            self._take_in(lease, count, cursor, entries)
        return True

    def _take_in(self, lease: Lease, count: int, cursor: str, entries: list[Entry] | None) -> None:
        queue = lease.queue
        if entries is None:
            self._turns.done(queue, count)
            self._leases.lose(lease)
            self._forget(lease)
            # It may be lost because Redis is, or because we were too slow: ask again.
            self._leases.want(queue)
            return
        if self._stop.is_set:
            entries = []
        self._turns.read(queue, allowed=count, got=len(entries))
        if cursor != NEW:
            # First what an earlier reader left; only then what is new.
            self._leases.set_cursor(queue, entries[-1].entry_id if len(entries) == count else NEW)
            if len(entries) < count:
                self._turns.offer(queue)
        for entry in entries:
            self._start(lease, entry)

    def _start(self, lease: Lease, entry: Entry) -> None:
        key = (lease.queue.brand_id, entry.id)
        # Queued twice, in our hands already, or deleted: one of them is enough.
        idle = not entry.id or key in self._ids_in_hand
        task = asyncio.create_task(self._skip(lease, entry) if idle else self._handle(lease, entry, key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _skip(self, lease: Lease, entry: Entry) -> None:
        try:
            await self._acknowledge(lease.queue, entry)
        finally:
            self._done(lease.queue)

    async def _handle(self, lease: Lease, entry: Entry, key: tuple[int, str]) -> None:
        reach("worker.dispatch.read")
        self._ids_in_hand.add(key)
        try:
            if self._spans is None:
                done = await self._sender.send(lease.queue, lease.epoch, entry.id)
            else:
                done = await self._send_traced(self._spans, lease, entry)
            if done:
                await self._acknowledge(lease.queue, entry)
        finally:
            self._ids_in_hand.discard(key)
            self._done(lease.queue)

    async def _send_traced(self, spans: Spans, lease: Lease, entry: Entry) -> bool:
        attributes: dict[str, str | int] = {
            "messaging.system": "redis",
            "smsbill.brand_id": lease.queue.brand_id,
            "smsbill.dispatch_id": entry.id,
            "smsbill.type": TYPE_NAMES[self.sms_type],
            "smsbill.mode": MODE_NAMES[self.mode],
        }
        with spans.continued("dispatch", [entry.trace], attributes=attributes):
            return await self._sender.send(lease.queue, lease.epoch, entry.id)

    def _done(self, queue: Queue) -> None:
        self._turns.done(queue)
        if self._leases.lease_of(queue) is None:
            self._forget_if_done(queue)
        elif self._turns.is_idle(queue):
            self._idle_since[queue] = time.monotonic()
        if self._turns.waiting:
            self.wake.set()

    async def _acknowledge(self, queue: Queue, entry: Entry) -> None:
        try:
            await self._acknowledgements.submit((queue, entry.entry_id))
        except OUTAGES as error:
            # The next reader finds that nothing is left to do for it.
            log.warning("entry not acknowledged", queue=queue.name, error=type(error).__name__)

    async def _acknowledge_all(self, entries: list[tuple[Queue, str]]) -> Sequence[Refusal | None]:
        await self._queues.acknowledge(entries)
        reach("worker.dispatch.acknowledged")
        return [None] * len(entries)

    # Giving back.

    async def _release_idle(self) -> None:
        now = time.monotonic()
        for queue in self._leases.held:
            if self._turns.is_idle(queue):
                self._idle_since.setdefault(queue, now)
        # Others wait for a lease: who has nothing to do gives way at once.
        patience = 0.0 if self._leases.wanted else self._settings.idle_release_seconds
        idle = [
            queue
            for queue, since in self._idle_since.items()
            if now - since >= patience and self._turns.is_idle(queue) and self._leases.lease_of(queue) is not None
        ]
        for queue in [queue for queue in self._idle_since if not self._turns.is_idle(queue)]:
            del self._idle_since[queue]
        if not idle:
            return
        for queue, left in await self._leases.release(idle[:_LEASES_AT_ONCE], even_with_entries=False):
            self._idle_since.pop(queue, None)
            if left == 0 and self._turns.is_idle(queue):
                self._turns.forget(queue)
                continue
            # Entries came meanwhile, or some that were read were left: look through all of them again.
            self._leases.set_cursor(queue, FROM_THE_START)
            if self._leases.lease_of(queue) is None:
                self._leases.want(queue)
            self._turns.offer(queue)
            self.wake.set()

    async def _give_way(self) -> None:
        """Give queues back that still have entries when others wait for a lease and every one is taken."""
        if self._leases.wanted and self._leases.is_full:
            # Those held longest; each has had at least a turn since it was leased.
            for queue in self._leases.held[: min(self._leases.wanted, _LEASES_AT_ONCE)]:
                if queue not in self._yielding and self._leases.cursor(queue) == NEW:
                    self._yielding.add(queue)
                    self._turns.drop(queue)
        done = [queue for queue in self._yielding if self._turns.in_hand_of(queue) == 0]
        if not done:
            return
        await self._leases.release(done, even_with_entries=True)
        for queue in done:
            self._yielding.discard(queue)
            self._idle_since.pop(queue, None)
            self._turns.drop(queue)
            self._forget_if_done(queue)
        self.wake.set()

    def _forget(self, lease: Lease) -> None:
        self._idle_since.pop(lease.queue, None)
        self._yielding.discard(lease.queue)
        self._turns.drop(lease.queue)
        self._forget_if_done(lease.queue)

    def _forget_if_done(self, queue: Queue) -> None:
        if self._turns.in_hand_of(queue) == 0:
            self._turns.forget(queue)
