"""What workers say of the carrier accounts: whether they call them, for those who look.

A worker's word is a field of one hash in Redis, written now and then and believed for a while. It guards nothing:
whoever misses it knows less, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

_KEY = "carriers:{0}"
BELIEVED_SECONDS = 20
"""A worker that has said nothing for so long is gone, or says nothing worth hearing."""
WRITE_SECONDS = 5.0
"""Time between two words of a worker: three may be missed."""
# Workers whose words are read; beyond it those of some are enough.
_WORKERS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class AccountStates:
    """What workers say of an account: how many of them say what, by their words (`AccountGate.state`)."""

    account_id: str
    states: Mapping[str, int]


class CarrierStates:
    """Writes and reads the words. Raises `redis.RedisError` (or its kin `OSError`) when Redis is down."""

    def __init__(self, redis: Redis | RedisCluster) -> None:
        # The annotations of the client leave open whether it waits.
        self._redis = cast(Any, redis)

    async def write(self, worker: str, states: Mapping[str, str], *, now_ms: int) -> None:
        """Say how a worker's accounts are, by name; the words of workers that are gone are removed."""
        said = orjson.dumps({"at": now_ms, "accounts": dict(states)}).decode()
        await self._redis.hset(_KEY, worker, said)
        gone = [other for other, word in (await self._all()).items() if _read(word, now_ms) is None]
        if gone:
            await self._redis.hdel(_KEY, *gone)

    async def forget(self, worker: str) -> None:
        """A worker stops."""
        await self._redis.hdel(_KEY, worker)

    async def read(self, *, now_ms: int) -> list[AccountStates]:
        """What is said now, by account."""
        found: dict[str, Counter[str]] = {}
        for word in (await self._all()).values():
            for account_id, state in (_read(word, now_ms) or {}).items():
                found.setdefault(account_id, Counter())[state] += 1
        return [AccountStates(account_id, dict(states)) for account_id, states in sorted(found.items())]

    async def _all(self) -> dict[str, str]:
        words = await self._redis.hgetall(_KEY)
        return dict(list(words.items())[:_WORKERS_MAX])


def _read(word: str, now_ms: int) -> dict[str, str] | None:
    """States by account; None for a word that is too old, or none of ours."""
    try:
        said = orjson.loads(word)
        if abs(now_ms - int(said["at"])) > BELIEVED_SECONDS * 1_000:
            return None
        return {str(account_id): str(state) for account_id, state in said["accounts"].items()}
    except (orjson.JSONDecodeError, TypeError, ValueError, KeyError, AttributeError):
        return None
