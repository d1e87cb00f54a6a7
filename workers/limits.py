"""Limits that all workers share: messages a second, and calls at once, of an account or a brand.

A worker does not ask Redis for each message. Of a rate it leases a handful of tokens at a time, as many as wait or a
tenth of a second's worth; of calls at once it leases a share that it renews each second. So what many workers do
together stays within the limit, and none of them makes a round trip for a message.

Redis knows nothing that must not be lost: a bucket that is gone starts full, a lease that is gone is asked for anew. So
after a loss a burst goes through, and nothing waits for ever.

Verification codes go before notifications, and these before marketing, but what is lower is not shut out: within a
worker by turns (`_TURNS`), among workers by a part of the bucket that is kept for what is higher (`_RESERVES`), and by
a twentieth of the rate that is always there for whoever is shut out by that.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

# Whose turn it is among those that wait in a worker; who is not there gives way to the next.
_TURNS = (1, 1, 2, 1, 1, 2, 1, 3)
# Share of a bucket that is left to higher types.
_RESERVES = {1: 0.0, 2: 0.2, 3: 0.4}
# Between two questions of one worker about one limit, and the longest wait for an answer of yes.
_ASK_SECONDS_MIN = 0.01
_ASK_SECONDS_MAX = 0.5
_RETRY_SECONDS = 0.5
# A bucket that nobody asked for so long is full anyway.
_KEEP_SECONDS = 3_600
# For how long a share of calls at once is taken for granted; a dead worker's goes to others after that.
_SHARE_SECONDS = 10.0
_RENEW_SECONDS = 1.0
_RENEW_SECONDS_MIN = 0.05

# KEYS bucket. ARGV rate a second, burst, reserve (tokens left to others), tokens to lease, tokens that the next call
# lacks, seconds to keep, tokens that calls wait for. Gives {tokens, milliseconds until they are there}.
# A call takes its tokens as soon as one is there beyond the reserve and leaves a debt of at most a burst: else single
# messages would starve large calls.
_TAKE = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local rate, burst, reserve = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local wanted, least = tonumber(ARGV[4]), tonumber(ARGV[5])
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'spare', 'at')
local tokens, spare = tonumber(kept[1]) or burst, tonumber(kept[2]) or 0
local passed = math.max(0, now - (tonumber(kept[3]) or now))
tokens = math.min(burst, tokens + passed * rate)
-- What is always there for whoever the reserve shuts out.
local room = math.max(1, burst * 0.05)
spare = math.min(room, spare + passed * rate * 0.05)
local free = tokens - reserve
local given = 0
if free >= 1 then
  given = math.max(least, math.min(wanted, math.floor(free)))
elseif reserve > 0 and spare >= 1 and tokens > -burst then
  given = math.max(least, math.min(wanted, math.floor(spare)))
  spare = spare - given
end
tokens = tokens - given
local wait, open = 0, tonumber(ARGV[7]) - given
if open > 0 then
  wait = math.max(0, math.min(open, math.max(1, burst - reserve)) - (tokens - reserve)) / rate
  if given == 0 and reserve > 0 then wait = math.min(wait, math.max(0, 1 - spare) / (rate * 0.05)) end
end
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'spare', tostring(spare), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], ARGV[6])
return {given, math.ceil(wait * 1000)}
"""

# KEYS shares: worker -> "given wanted until (ms)". ARGV limit, worker, wanted, in use, milliseconds to live.
# Gives the worker's share: a fair one, and more as far as nobody else needs it. What a worker has under way beyond it
# is not given to others before it has ended, so the sum is within the limit, unless workers come back with calls that a
# lost Redis forgot.
_SHARE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit, me = tonumber(ARGV[1]), ARGV[2]
local wanted, used = tonumber(ARGV[3]), tonumber(ARGV[4])
local all = redis.call('HGETALL', KEYS[1])
local names, others, held = {me}, {}, 0
for at = 1, #all, 2 do
  local given, want, till = string.match(all[at + 1], '^(%d+) (%d+) (%d+)$')
  if not till or tonumber(till) <= now then
    redis.call('HDEL', KEYS[1], all[at])
  elseif all[at] ~= me then
    held = held + tonumber(given)
    others[all[at]] = tonumber(want)
    if tonumber(want) > 0 then names[#names + 1] = all[at] end
  end
end
table.sort(names)
-- Fair shares; the rest of the division goes round, so that a limit below the number of workers reaches all of them.
local base, rest = math.floor(limit / #names), limit % #names
local turn = math.floor(now / 1000) % #names
local function fair(name)
  for place, each in ipairs(names) do
    if each == name then return base + (((place - 1 + turn) % #names < rest) and 1 or 0) end
  end
  return 0
end
local needed = 0
for name, want in pairs(others) do needed = needed + math.min(want, fair(name)) end
local target = math.max(fair(me), limit - needed)
local mine = math.min(wanted, target, math.max(0, limit - held))
-- What is still under way is held all the same, until the worker says that it is not.
local given = math.max(used, mine)
if given == 0 and wanted == 0 then
  redis.call('HDEL', KEYS[1], me)
else
  redis.call('HSET', KEYS[1], me, string.format('%d %d %d', given, wanted, now + tonumber(ARGV[5])))
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
end
return mine
"""


class LimitClosed(Exception):  # noqa: N818 - says what happened
    """The limit is not there any more, or is another: who waited looks anew."""


class _Waiting:
    """Who waits, by type, and whose turn it is."""

    def __init__(self) -> None:
        self._by_type: dict[int, deque[tuple[asyncio.Future[None], int]]] = {
            sms_type: deque() for sms_type in _RESERVES
        }
        self._turn = 0

    def __bool__(self) -> bool:
        return any(self._trimmed(sms_type) for sms_type in self._by_type)

    def add(self, sms_type: int, amount: int) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._by_type[sms_type].append((future, amount))
        return future

    def order(self) -> list[int]:
        """The types that wait: first whose turn it is, then the highest."""
        wished = _TURNS[self._turn % len(_TURNS)]
        return [each for each in dict.fromkeys((wished, *self._by_type)) if self._trimmed(each)]

    def amount(self, sms_type: int) -> int:
        """What all of a type wait for."""
        return sum(amount for future, amount in self._by_type[sms_type] if not future.done())

    @property
    def count(self) -> int:
        """How many wait."""
        return sum(not future.done() for queue in self._by_type.values() for future, _ in queue)

    def first(self, sms_type: int) -> int:
        """What the first of a type waits for."""
        queue = self._trimmed(sms_type)
        return queue[0][1] if queue else 0

    def take(self, sms_type: int) -> None:
        """Let the first of a type go on."""
        future, _ = self._by_type[sms_type].popleft()
        self._turn += 1
        future.set_result(None)

    def close(self) -> None:
        for queue in self._by_type.values():
            for future, _ in queue:
                if not future.done():
                    future.set_exception(LimitClosed())
            queue.clear()

    def _trimmed(self, sms_type: int) -> deque[tuple[asyncio.Future[None], int]]:
        queue = self._by_type[sms_type]
        while queue and queue[0][0].done():
            queue.popleft()
        return queue


class RateLimit:
    """Messages a second, shared by all workers.

    Parameters: `name` of the limit, in Redis; `rate` messages a second; `burst` messages at once at most, also in one
    call, 0: half a second's worth; `lease_seconds` what a worker leases ahead, as time at that rate.
    """

    def __init__(
        self, redis: Redis | RedisCluster, name: str, *, rate: float, burst: int, lease_seconds: float
    ) -> None:
        assert rate > 0
        self._take = redis.register_script(_TAKE)
        # Another rate is another bucket: its debts and savings are not those of this one.
        self._key = f"limit:{{{name}}}:rate"
        self.rate = rate
        self.burst = burst or max(1, int(rate / 2))
        self._lease = max(1, min(self.burst, int(rate * lease_seconds)))
        self._waiting = _Waiting()
        self._tokens = 0
        self._asking: asyncio.Task[None] | None = None
        self._closed = False

    async def acquire(self, amount: int, sms_type: int) -> None:
        """Wait for leave to send so many messages, at most `burst`. Raises `LimitClosed` when the limit is closed."""
        assert 0 < amount <= self.burst
        if self._closed:
            raise LimitClosed
        if self.try_acquire(amount):
            return
        future = self._waiting.add(sms_type, amount)
        self._serve()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.give_back(amount)
            raise

    def try_acquire(self, amount: int) -> bool:
        """Take leave to send so many messages if it is there without waiting."""
        if self._closed or self._waiting or self._tokens < amount:
            return False
        self._tokens -= amount
        return True

    def give_back(self, amount: int) -> None:
        """Messages that were not sent after all."""
        self._tokens += amount
        self._serve()

    def halt(self) -> None:
        """Give nothing any more; those that wait look anew. What asks ends by itself."""
        self._closed = True
        self._waiting.close()

    async def close(self) -> None:
        """Halt, and ask nothing any more."""
        self.halt()
        if self._asking is not None:
            self._asking.cancel()
            with suppress(asyncio.CancelledError):
                await self._asking

    def _serve(self) -> None:
        while (sms_type := self._servable()) is not None:
            self._tokens -= self._waiting.first(sms_type)
            self._waiting.take(sms_type)
        if self._waiting and self._asking is None and not self._closed:
            self._asking = asyncio.create_task(self._ask(), name="limit-tokens")

    def _servable(self) -> int | None:
        """Of the types that wait one whose first call has its tokens here."""
        return next((each for each in self._waiting.order() if self._waiting.first(each) <= self._tokens), None)

    async def _ask(self) -> None:
        """Lease tokens for as long as somebody waits."""
        try:
            while self._waiting and not self._closed:
                try:
                    wait = await self._lease_some()
                except (RedisError, OSError, TimeoutError) as error:
                    log.warning("limit not asked", limit=self._key, error=type(error).__name__)
                    wait = _RETRY_SECONDS
                self._serve()
                if self._waiting:
                    await asyncio.sleep(wait)
        finally:
            self._asking = None

    async def _lease_some(self) -> float:
        """Ask for the type whose turn it is, and if it gets nothing for the others; seconds to wait then."""
        shortest = _ASK_SECONDS_MAX
        for sms_type in self._waiting.order():
            lacking = max(1, self._waiting.first(sms_type) - self._tokens)
            waited_for = max(lacking, min(self._lease, self._waiting.amount(sms_type)))
            reply: Sequence[Any] = await self._take(
                keys=[self._key],
                args=[
                    self.rate,
                    self.burst,
                    math.floor(self.burst * _RESERVES[sms_type]),
                    max(self._lease, lacking),
                    lacking,
                    _KEEP_SECONDS,
                    waited_for,
                ],
            )
            given, milliseconds = int(reply[0]), int(reply[1])
            if given:
                self._tokens += given
                return min(milliseconds / 1_000, _ASK_SECONDS_MAX)
            shortest = min(shortest, max(_ASK_SECONDS_MIN, milliseconds / 1_000))
        return shortest


class CallLimit:
    """Calls at once, shared by all workers.

    Parameters: `name` of the limit, in Redis; `worker` the name of this process; `limit` calls at once at most.
    """

    def __init__(self, redis: Redis | RedisCluster, name: str, *, worker: str, limit: int) -> None:
        assert limit > 0
        self._script = redis.register_script(_SHARE)
        self._key = f"limit:{{{name}}}:calls"
        self._worker = worker
        self._limit = limit
        self._waiting = _Waiting()
        self._share = 0
        self._share_until = 0.0
        self._in_use = 0
        # The most that was needed since the last question.
        self._peak = 0
        self._closed = False
        self._asking: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    async def acquire(self, sms_type: int) -> None:
        """Wait for leave to make one call, answered by one `release`. Raises `LimitClosed`."""
        if self._closed:
            raise LimitClosed
        if self.try_acquire():
            return
        future = self._waiting.add(sms_type, 1)
        self._keep_asking()
        self._wake.set()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release()
            raise

    def try_acquire(self) -> bool:
        """Take leave to make one call if it is there without waiting."""
        self._peak = max(self._peak, self._in_use + 1)
        if self._closed or self._waiting or not self._free:
            return False
        self._in_use += 1
        self._keep_asking()
        return True

    def release(self) -> None:
        """A call has ended."""
        self._in_use -= 1
        assert self._in_use >= 0
        self._serve()

    def halt(self) -> None:
        """Give nothing any more; those that wait look anew."""
        self._closed = True
        self._waiting.close()

    async def close(self) -> None:
        """Halt, and leave the share to others once no call is under way."""
        self.halt()
        if self._asking is not None:
            self._asking.cancel()
            with suppress(asyncio.CancelledError):
                await self._asking
        if not self._in_use:
            with suppress(RedisError, OSError, TimeoutError):
                await self._asked(0)

    @property
    def _free(self) -> bool:
        # Whoever cannot renew its share makes no call with it: others may have it by now.
        return self._in_use < self._share and time.monotonic() < self._share_until

    def _serve(self) -> None:
        while self._free and self._waiting:
            self._in_use += 1
            self._waiting.take(self._waiting.order()[0])

    def _keep_asking(self) -> None:
        if self._asking is None and not self._closed:
            self._asking = asyncio.create_task(self._ask(), name="limit-calls")

    async def _ask(self) -> None:
        """Renew the share for as long as it is used."""
        try:
            while not self._closed:
                self._wake.clear()
                wanted = max(self._peak, self._in_use + self._waiting.count)
                self._peak = self._in_use
                try:
                    await self._asked(wanted)
                except (RedisError, OSError, TimeoutError) as error:
                    log.warning("limit not asked", limit=self._key, error=type(error).__name__)
                self._serve()
                if not wanted:
                    return
                await asyncio.sleep(_RENEW_SECONDS_MIN)
                if not self._waiting and self._in_use <= self._share:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_RENEW_SECONDS):
                            await self._wake.wait()
        finally:
            self._asking = None

    async def _asked(self, wanted: int) -> None:
        asked_at = time.monotonic()
        self._share = int(
            await self._script(
                keys=[self._key],
                args=[self._limit, self._worker, wanted, self._in_use, int(_SHARE_SECONDS * 1_000)],
            )
        )
        # A bit less than Redis believes, counted from before the question.
        self._share_until = asked_at + 0.9 * _SHARE_SECONDS
