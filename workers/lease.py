"""The queues of one type and mode that this worker may read: asking for them, keeping them, giving them back."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence

import structlog

from smsgateway.queues import HeldByOther, Lease, Queue, Queues

log = structlog.get_logger(__name__)

# Another worker's lease is asked for again after this at the latest: it may have been given back with its queue empty,
# which nobody announces.
_OTHER_SECONDS_MAX = 1.0

# Where a reader goes on in a queue: first through what somebody read and did not acknowledge, then to what is new.
FROM_THE_START = "0-0"
NEW = ">"


class Leases:
    """Leases of one worker for the queues of one type and mode.

    Parameters: `worker` the worker's id; `ttl_seconds` how long a lease holds unless renewed; `leases_max` how many
    are held at most: beyond them queues are left to others.
    """

    def __init__(self, queues: Queues, worker: str, *, ttl_seconds: float, leases_max: int) -> None:
        self._queues = queues
        self._worker = worker
        self._ttl_seconds = ttl_seconds
        self._leases_max = leases_max
        self._held: dict[Queue, Lease] = {}
        self._cursors: dict[Queue, str] = {}
        self._wanted: OrderedDict[Queue, None] = OrderedDict()
        # Until when another worker's lease is taken for granted, and whether a notice came meanwhile.
        self._others: OrderedDict[Queue, tuple[float, bool]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def wanted(self) -> int:
        """Queues that have work and nobody of us holds."""
        return len(self._wanted)

    @property
    def is_full(self) -> bool:
        """Whether no queue can be taken on."""
        return len(self._held) >= self._leases_max

    @property
    def held(self) -> list[Queue]:
        """The queues that are ours, those held longest first."""
        return list(self._held)

    def lease_of(self, queue: Queue) -> Lease | None:
        """Our lease of a queue."""
        return self._held.get(queue)

    def cursor(self, queue: Queue) -> str:
        """Where to read on in a queue that is ours."""
        return self._cursors[queue]

    def set_cursor(self, queue: Queue, cursor: str) -> None:
        """Remember where to read on in a queue that is ours."""
        if queue in self._held:
            self._cursors[queue] = cursor

    def want(self, queue: Queue, *, freed: bool = False) -> bool:
        """A queue has work; False when it is another worker's for now and asked for later. `freed`: it is not."""
        if freed:
            self._others.pop(queue, None)
        elif queue in self._others:
            self._others[queue] = (self._others[queue][0], True)
            return False
        self._wanted.setdefault(queue)
        return True

    async def acquire(self, *, group_max: int) -> list[Lease]:
        """Ask for queues that are wanted, as many as there is room for; return the new leases."""
        self._revisit_others()
        room = min(group_max, self._leases_max - len(self._held))
        asked = [self._wanted.popitem(last=False)[0] for _ in range(min(room, len(self._wanted)))]
        if not asked:
            return []
        try:
            answers = await self._queues.lease(asked, self._worker, ttl_ms=self._ttl_ms)
        except Exception:
            for queue in asked:
                self._wanted.setdefault(queue)
            raise
        leases = []
        for answer in answers:
            if isinstance(answer, HeldByOther):
                self._remember_other(answer)
                continue
            self._held[answer.queue] = answer
            self._cursors[answer.queue] = FROM_THE_START
            leases.append(answer)
        return leases

    async def renew(self) -> list[Lease]:
        """Prolong every lease; return those that are lost."""
        leases = list(self._held.values())
        if not leases:
            return []
        kept = await self._queues.renew(leases, ttl_ms=self._ttl_ms)
        lost = [lease for lease, ok in zip(leases, kept, strict=True) if not ok]
        for lease in lost:
            self.lose(lease)
        return lost

    def lose(self, lease: Lease) -> None:
        """A lease is not ours any more."""
        if self._held.get(lease.queue) is lease:
            log.warning("lease lost", queue=lease.queue.name, epoch=lease.epoch)
            del self._held[lease.queue]
            del self._cursors[lease.queue]

    async def release(self, queues: Sequence[Queue], *, even_with_entries: bool) -> list[tuple[Queue, int]]:
        """Give leases back; per queue the entries it has left (then it is kept unless `even_with_entries`)."""
        leases = [self._held[queue] for queue in queues if queue in self._held]
        if not leases:
            return []
        left = await self._queues.release(leases, even_with_entries=even_with_entries)
        result = []
        for lease, entries in zip(leases, left, strict=True):
            if (entries <= 0 or even_with_entries) and self._held.get(lease.queue) is lease:
                del self._held[lease.queue]
                del self._cursors[lease.queue]
            result.append((lease.queue, max(0, entries)))
        return result

    @property
    def _ttl_ms(self) -> int:
        return int(self._ttl_seconds * 1_000)

    def _remember_other(self, answer: HeldByOther) -> None:
        seconds = min(answer.milliseconds / 1_000, _OTHER_SECONDS_MAX)
        self._others[answer.queue] = (time.monotonic() + seconds, False)
        self._others.move_to_end(answer.queue)
        while len(self._others) > 100 * self._leases_max:
            self._others.popitem(last=False)

    def _revisit_others(self) -> None:
        now = time.monotonic()
        while self._others:
            queue, (until, noticed) = next(iter(self._others.items()))
            if until > now:
                return
            del self._others[queue]
            if noticed:
                self._wanted.setdefault(queue)
