"""Wrong sign-ins, counted in Redis for all gateways together."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import structlog
from redis.exceptions import RedisError

from smsgateway.settings import Settings

log = structlog.get_logger(__name__)

_ALL = "all"
# Counted here while Redis is away.
_GROUPS_MAX = 10_000


class SignInAttempts:
    """Counts wrong sign-ins by address and in all. Each count ends by itself, so Redis holds few of them."""

    def __init__(self, redis: Any, settings: Settings) -> None:
        self._redis = redis
        self._seconds = settings.console_sign_in_seconds
        self._limits = {
            "address": settings.console_sign_in_attempts,
            _ALL: settings.console_sign_in_attempts_all,
        }
        self._own: dict[str, tuple[float, int]] = {}

    async def begin(self, group: str) -> float:
        """Count an attempt before it is judged, so that many at once are no way around the limit.

        Returns the seconds to wait before another, 0 when this one may go on.
        """
        keys = _keys(group)
        counted = await self._add(list(keys.values()), 1)
        over = [
            left for (what, _), (count, left) in zip(keys.items(), counted, strict=True) if count > self._limits[what]
        ]
        return max(over, default=0.0)

    async def take_back(self, group: str) -> None:
        """Take an attempt back that was no wrong one."""
        await self._add(list(_keys(group).values()), -1)

    async def _add(self, keys: list[str], change: int) -> list[tuple[int, float]]:
        """The counts after a change of each, and the seconds until they end."""
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for key in keys:
                    # The count of a window begins with its first attempt and ends with the window.
                    pipeline.set(key, 0, px=round(self._seconds * 1_000), nx=True)
                    pipeline.incrby(key, change)
                    pipeline.pttl(key)
                found = await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("sign-ins are counted by this process alone", error=type(error).__name__)
            return [self._add_here(key, change) for key in keys]
        return [(int(found[3 * i + 1]), max(found[3 * i + 2], 1_000) / 1_000) for i in range(len(keys))]

    def _add_here(self, key: str, change: int) -> tuple[int, float]:
        now = time.monotonic()
        until, count = self._own.pop(key, (0.0, 0))
        if until <= now:
            until, count = now + self._seconds, 0
        while len(self._own) >= _GROUPS_MAX:
            self._own.pop(next(iter(self._own)))
        self._own[key] = (until, count + change)
        return count + change, max(until - now, 1.0)


def _keys(group: str) -> dict[str, str]:
    digest = hashlib.sha256(group.encode()).hexdigest()[:32]
    return {"address": f"sms:console:sign-in:{digest}", _ALL: f"sms:console:sign-in:{_ALL}"}
