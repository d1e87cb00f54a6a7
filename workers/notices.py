"""What tells a worker that queues have work: notices at once, walks of the ready sets for those that were lost."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from smsgateway.queues import FREED, READY_CHANNEL, Queues, queue_of
from workers.lane import Lane

log = structlog.get_logger(__name__)

_MESSAGES_PER_TURN = 1_000


class Notices:
    """Hands notices and the results of walks to the lanes, by type and mode.

    Parameters: `redis` a client that waits longer for an answer than `wait_seconds`.
    """

    def __init__(
        self, redis: Redis, queues: Queues, lanes: Mapping[tuple[int, int], Lane], *, wait_seconds: float,
        walk_limit: int,
    ) -> None:  # fmt: skip
        self._redis = redis
        self._queues = queues
        self._lanes = lanes
        self._wait_seconds = wait_seconds
        self._walk_limit = walk_limit
        self._offsets: dict[int, int] = {}
        self._pubsub: PubSub | None = None
        self.walk_wake = asyncio.Event()

    async def listen(self) -> bool:
        """One turn of listening: everything that has come, or a wait for the first."""
        try:
            if self._pubsub is None:
                self._pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
                await self._pubsub.subscribe(READY_CHANNEL)
                # What was said before we listened is found by walking.
                self.walk_wake.set()
            wait = self._wait_seconds
            for _ in range(_MESSAGES_PER_TURN):
                message = await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=wait)
                if message is None:
                    # Also given for the confirmation of the subscription.
                    break
                self._hand_out(message["data"])
                wait = 0
        except BaseException:
            await self.close()
            raise
        return True

    async def walk(self) -> None:
        """Look at all ready sets."""
        for queue in await self._queues.walk(limit=self._walk_limit, offsets=self._offsets):
            self._lanes[queue.sms_type, queue.mode].notice(queue)

    async def close(self) -> None:
        """Listen no more."""
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            await pubsub.aclose()  # type: ignore[no-untyped-call] # the library's annotations lack it

    def _hand_out(self, data: str | bytes) -> None:
        text = data.decode() if isinstance(data, bytes) else data
        for word in text.split(" "):
            queue = queue_of(word.removeprefix(FREED))
            if queue is not None:
                self._lanes[queue.sms_type, queue.mode].notice(queue, freed=word.startswith(FREED))
