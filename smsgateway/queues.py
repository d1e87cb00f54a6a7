"""The queues in Redis: a stream per brand, type and mode, and a few streams of receipts.

PostgreSQL holds the truth; a queue only says what to look at next, so an entry that is lost or doubled costs time and
nothing else. Per partition p (brand modulo 256), whose braces keep its keys on one node of a cluster:

* `sms:{p7}:<brand>:<type>:<mode>` stream of message ids (single) or chunk ids (batch), consumer group `senders`;
* `ready:{p7}` sorted set of the streams that have entries, by the time since when (ms);
* `lease:{p7}:<brand>:<type>:<mode>` the worker that may read a stream and its epoch, until it expires;
* `epoch:{p7}` the last epoch given. Epochs only grow, also when Redis lost its data: they are at least the time in µs.

One worker reads a stream at a time, so its consumer group has one consumer, whoever it is: what a dead worker had read
and not acknowledged is what the next one reads first. Every read is conditional on the lease.

The channel `sms:ready` names streams that got entries or, with a `!` in front, were given back with entries, so that
nobody polls. A notice may be lost; walking the ready sets finds what it announced.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import orjson
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from smsgateway.schema import Mode

PARTITIONS = 256
GROUP = "senders"
RECEIPT_GROUP = "receipts"
READY_CHANNEL = "sms:ready"
# Queues that one script call reads or acknowledges, so that none holds Redis up for long.
_QUEUES_PER_CALL = 64
# Names of queues that are made or parsed once while they are busy. Some 300 bytes each, so that brands whose queues are
# idle cost nothing here; to make one anew takes microseconds.
_NAMES_KEPT = 4_096
# Between an id and the trace that goes on with it, where there is one.
_TRACE = " "
# In front of a key in a notice: its lease was given back.
FREED = "!"
# What a queue's entry and an entry of receipts call their value; short, because each entry stores it.
_ID_FIELD = "i"
_RECEIPTS_FIELD = "r"
# Receipts of one entry: those stored together are read together, in one go. A bound for what a reader gets at once.
RECEIPTS_PER_ENTRY = 100

_TYPE_NAMES = {1: "verification", 2: "notification", 3: "marketing"}
_TYPE_NUMBERS = {name: number for number, name in _TYPE_NAMES.items()}
_MODE_NAMES = {Mode.SINGLE: "single", Mode.BATCH: "batch"}
_MODE_NUMBERS = {name: mode for mode, name in _MODE_NAMES.items()}

# KEYS ready sets and streams. ARGV per entry: number of its ready set in KEYS, number of its stream, id. Says so, too.
_PUSH = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local entries, marked, names = {}, {}, {}
for at = 1, #ARGV, 3 do
  local stream = KEYS[tonumber(ARGV[at + 1])]
  entries[#entries + 1] = redis.call('XADD', stream, '*', 'i', ARGV[at + 2])
  if not marked[stream] then
    marked[stream] = true
    names[#names + 1] = stream
    redis.call('ZADD', KEYS[tonumber(ARGV[at])], 'NX', now, stream)
  end
end
redis.call('PUBLISH', 'sms:ready', table.concat(names, ' '))
return entries
"""

# KEYS lease, stream, epoch. ARGV worker, ttl in ms. Gives {1, epoch} or {0, ms until the lease of another ends}.
# A worker that comes back takes its own old lease over like anybody else's: by a new epoch.
_LEASE = """
local held = redis.call('GET', KEYS[1])
if held and string.sub(held, 1, #ARGV[1] + 1) ~= ARGV[1] .. ':' then
  return {0, redis.call('PTTL', KEYS[1])}
end
local time = redis.call('TIME')
local now = string.format('%d%06d', time[1], time[2])
local last = redis.call('GET', KEYS[3]) or '0'
-- Lua's numbers hold 53 bits, the time in microseconds needs 51: exact until the year 2255.
local epoch = string.format('%.0f', math.max(tonumber(last) + 1, tonumber(now)))
redis.call('SET', KEYS[3], epoch)
redis.call('SET', KEYS[1], ARGV[1] .. ':' .. epoch, 'PX', ARGV[2])
redis.pcall('XGROUP', 'CREATE', KEYS[2], 'senders', '0', 'MKSTREAM')
return {1, tonumber(epoch)}
"""

# KEYS per queue: lease, stream. ARGV per queue: lease's value, count, where to start: an entry id (what was read before
# and not acknowledged, after it) or '>' (what nobody read). Gives per queue false when the lease is not ours.
_READ = """
local function read(lease, stream, value, count, start)
  if redis.call('GET', lease) ~= value then return false end
  local function ask()
    return redis.pcall('XREADGROUP', 'GROUP', 'senders', 'lessee', 'COUNT', count, 'STREAMS', stream, start)
  end
  local reply = ask()
  if type(reply) == 'table' and reply.err then
    redis.call('XGROUP', 'CREATE', stream, 'senders', '0', 'MKSTREAM')
    reply = ask()
    if type(reply) == 'table' and reply.err then return redis.error_reply(reply.err) end
  end
  local flat = {}
  if reply then
    for _, entry in ipairs(reply[1][2]) do
      flat[#flat + 1] = entry[1]
      -- An entry that was deleted while it was pending has no fields any more.
      flat[#flat + 1] = entry[2] and entry[2][2] or ''
    end
  end
  return flat
end
local replies = {}
for queue = 0, #KEYS / 2 - 1 do
  local k, a = 2 * queue, 3 * queue
  replies[queue + 1] = read(KEYS[k + 1], KEYS[k + 2], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3])
end
return replies
"""

# KEYS streams. ARGV per stream: how many entries, and their ids.
_ACKNOWLEDGE = """
local at = 1
for _, stream in ipairs(KEYS) do
  local count = tonumber(ARGV[at])
  for place = at + 1, at + count do
    -- A queue that Redis lost with its group has nothing to acknowledge.
    redis.pcall('XACK', stream, 'senders', ARGV[place])
    redis.call('XDEL', stream, ARGV[place])
  end
  at = at + count + 1
end
return 0
"""

# KEYS lease. ARGV lease's value, ttl in ms.
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""

# KEYS lease, stream, ready. ARGV lease's value, 1 to give it back although the stream has entries.
# Gives -1: not ours; 0: given back, the stream is empty and gone; n: entries left.
_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local left = redis.call('XLEN', KEYS[2])
if left == 0 then
  redis.call('DEL', KEYS[2], KEYS[1])
  redis.call('ZREM', KEYS[3], KEYS[2])
  return 0
end
if ARGV[2] == '1' then
  redis.call('DEL', KEYS[1])
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[3], time[1] * 1000 + math.floor(time[2] / 1000), KEYS[2])
end
return left
"""


@dataclass(frozen=True, slots=True)
class Queue:
    """One queue. Its key is the stream's."""

    brand_id: int
    sms_type: int
    mode: int

    @property
    def partition(self) -> int:
        """The partition that it shares with its ready set and lease."""
        return self.brand_id % PARTITIONS

    @property
    def key(self) -> str:
        """The stream's key."""
        return stream_key(self.brand_id, self.sms_type, self.mode)

    @property
    def name(self) -> str:
        """`<brand>:<type>:<mode>`."""
        return f"{self.brand_id}:{_TYPE_NAMES[self.sms_type]}:{_MODE_NAMES[Mode(self.mode)]}"

    @property
    def ready_key(self) -> str:
        """The partition's ready set."""
        return ready_key(self.partition)

    @property
    def lease_key(self) -> str:
        """Whoever reads it."""
        return f"lease:{{p{self.partition}}}:{self.name}"

    @property
    def epoch_key(self) -> str:
        """The partition's last epoch."""
        return f"epoch:{{p{self.partition}}}"


@dataclass(frozen=True, slots=True)
class QueueItem:
    """A dispatch to be queued: a message's id (single) or a chunk's (batch). `trace`: a W3C traceparent, or empty."""

    brand_id: int
    sms_type: int
    mode: int
    id: str
    trace: str = ""


@dataclass(frozen=True, slots=True)
class ReceiptItem:
    """A receipt to be looked at: the key of its inbox row, and the id of our call that it carries, empty for none.

    `trace`: a W3C traceparent, or empty; it makes no other receipt of it.
    """

    account: str
    reference: str
    inbox_id: str
    call_id: str
    trace: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a queue. `id` is empty when the entry was deleted meanwhile; `trace`: as of `QueueItem`."""

    entry_id: str
    id: str
    trace: str = ""


@dataclass(frozen=True, slots=True)
class ReceiptEntry:
    """An entry of a receipt stream; without items when it was deleted meanwhile or is none of ours."""

    entry_id: str
    items: tuple[ReceiptItem, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to read a queue until its time is over, under an epoch greater than all before."""

    queue: Queue
    worker: str
    epoch: int

    @property
    def value(self) -> str:
        """What the lease's key holds while it is ours."""
        return f"{self.worker}:{self.epoch}"


@dataclass(frozen=True, slots=True)
class HeldByOther:
    """Another worker has the lease, for `milliseconds` more if it does not renew it."""

    queue: Queue
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Depth:
    """What waits in one queue: entries, and the age of the oldest in seconds."""

    queue: Queue
    entries: int
    oldest_seconds: float


@lru_cache(maxsize=_NAMES_KEPT)
def stream_key(brand_id: int, sms_type: int, mode: int) -> str:
    """Key of a queue's stream."""
    return f"sms:{{p{brand_id % PARTITIONS}}}:{brand_id}:{_TYPE_NAMES[sms_type]}:{_MODE_NAMES[Mode(mode)]}"


def ready_key(partition: int) -> str:
    """Key of a partition's ready set."""
    return f"ready:{{p{partition}}}"


@lru_cache(maxsize=_NAMES_KEPT)
def queue_of(key: str) -> Queue | None:
    """The queue of a stream's key, or None when it is none of ours."""
    parts = key.split(":")
    if len(parts) != 5 or parts[0] != "sms" or not parts[2].isascii() or not parts[2].isdigit():
        return None
    sms_type, mode = _TYPE_NUMBERS.get(parts[3]), _MODE_NUMBERS.get(parts[4])
    if sms_type is None or mode is None:
        return None
    queue = Queue(int(parts[2]), sms_type, mode)
    return queue if queue.key == key else None


def receipts_key(number: int) -> str:
    """Key of a receipt stream. Each is a slot of its own on a cluster."""
    return f"receipts:{{{number}}}"


class _Healing:
    """Has a connection that was lost before it could be written to fail as every lost connection does.

    uvloop raises a RuntimeError then, which the client library hands on as it is: for those who call, that would be an
    error of the program and no outage.
    """

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Send bytes. Raises `redis.ConnectionError`."""
        try:
            await super().send_packed_command(command, check_health)  # type: ignore[misc]
        except RuntimeError as error:
            raise RedisConnectionError(f"connection lost: {error}") from error


class _TcpConnection(_Healing, Connection):
    pass


class _TlsConnection(_Healing, SSLConnection):
    pass


class _SocketConnection(_Healing, UnixDomainSocketConnection):
    pass


_HEALING: Mapping[type, type] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _SocketConnection,
}


def open_redis(url: str, *, connections_max: int, timeout_seconds: float, name: str = "smsbill") -> Redis:
    """A client that answers in text. An outage is an error at once: those who call back off by themselves."""
    redis = Redis.from_url(
        url,
        decode_responses=True,
        max_connections=connections_max,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        client_name=name,
        # A command repeated by the client itself after a lost reply would queue twice.
        retry=Retry(NoBackoff(), 0),
    )
    pool = redis.connection_pool
    pool.connection_class = _HEALING[pool.connection_class]
    return redis


class Queues:
    """Everything that is said to Redis about queues. Raises `redis.RedisError` (or its kin `OSError`) when it is down.

    Parameters: `receipt_streams` how many receipt streams there are; `group_max` entries of one script call, so that
    none holds Redis up for long.
    """

    def __init__(self, redis: Redis | RedisCluster, *, receipt_streams: int = 4, group_max: int = 500) -> None:
        assert receipt_streams > 0
        self._redis = redis
        self._receipt_streams = receipt_streams
        self._group_max = group_max
        self._push = redis.register_script(_PUSH)
        self._lease = redis.register_script(_LEASE)
        self._read = redis.register_script(_READ)
        self._acknowledge = redis.register_script(_ACKNOWLEDGE)
        self._renew = redis.register_script(_RENEW)
        self._release = redis.register_script(_RELEASE)

    @property
    def receipt_streams(self) -> int:
        """How many receipt streams there are."""
        return self._receipt_streams

    async def push(self, items: Sequence[QueueItem]) -> list[str]:
        """Queue dispatches and say so. Returns the ids of their entries, in order.

        When it fails some may be queued all the same; the caller's record says that none is, and the sweeper queues
        them again. A dispatch queued twice is sent once.
        """
        if not items:
            return []
        entries = [""] * len(items)
        calls: list[tuple[list[str], list[str]]] = []
        places: list[list[int]] = []
        for group in self._groups_of_a_script(items):
            for start in range(0, len(group), self._group_max):
                part = group[start : start + self._group_max]
                calls.append(_push_call([items[place] for place in part]))
                places.append(part)
        replies = await self._run(self._push, calls)
        for part, reply in zip(places, replies, strict=True):
            for place, entry in zip(part, reply, strict=True):
                entries[place] = _text(entry)
        return entries

    def _groups_of_a_script(self, items: Sequence[QueueItem]) -> list[list[int]]:
        """Places of items whose keys one script may touch: all of them, or on a cluster those of a partition."""
        if not isinstance(self._redis, RedisCluster):
            return [list(range(len(items)))]
        by_partition: dict[int, list[int]] = {}
        for place, item in enumerate(items):
            by_partition.setdefault(item.brand_id % PARTITIONS, []).append(place)
        return list(by_partition.values())

    async def push_receipts(self, items: Sequence[ReceiptItem]) -> None:
        """Queue receipts, on a stream picked at random."""
        if not items:
            return
        key = receipts_key(random.randrange(self._receipt_streams))  # noqa: S311 - spreads load, keeps no secret
        entries = [
            orjson.dumps([_receipt_row(item) for item in part])
            for part in (items[at : at + RECEIPTS_PER_ENTRY] for at in range(0, len(items), RECEIPTS_PER_ENTRY))
        ]
        async with self._redis.pipeline(transaction=False) as pipe:
            for entry in entries:
                pipe.xadd(key, {_RECEIPTS_FIELD: entry})
            await pipe.execute()

    # Leases.

    async def lease(self, queues: Sequence[Queue], worker: str, *, ttl_ms: int) -> list[Lease | HeldByOther]:
        """Ask for the right to read queues; a worker's own old lease is replaced by one of a new epoch."""
        assert ":" not in worker, "a worker's id has no colon"
        calls = [([queue.lease_key, queue.key, queue.epoch_key], [worker, str(ttl_ms)]) for queue in queues]
        results: list[Lease | HeldByOther] = []
        for queue, (ours, number) in zip(queues, await self._run(self._lease, calls), strict=True):
            results.append(Lease(queue, worker, int(number)) if ours else HeldByOther(queue, max(0, int(number))))
        return results

    async def renew(self, leases: Sequence[Lease], *, ttl_ms: int) -> list[bool]:
        """Prolong leases; False for each that is not ours any more."""
        calls = [([lease.queue.lease_key], [lease.value, str(ttl_ms)]) for lease in leases]
        return [bool(reply) for reply in await self._run(self._renew, calls)]

    async def release(self, leases: Sequence[Lease], *, even_with_entries: bool) -> list[int]:
        """Give leases back. Per lease: -1 it was not ours; 0 the queue is empty, and gone with its lease; else the
        entries that it has, with the lease kept unless `even_with_entries`.
        """
        flag = "1" if even_with_entries else "0"
        calls = [
            ([lease.queue.lease_key, lease.queue.key, lease.queue.ready_key], [lease.value, flag]) for lease in leases
        ]
        left = [int(reply) for reply in await self._run(self._release, calls)]
        if even_with_entries:
            await self._announce({FREED + lease.queue.key for lease, n in zip(leases, left, strict=True) if n > 0})
        return left

    async def epochs(self, queues: Sequence[Queue]) -> list[int | None]:
        """The epoch of each queue's lease, None where nobody holds one."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.get(queue.lease_key)
            held = await pipe.execute()
        return [None if value is None else int(_text(value).rpartition(":")[2]) for value in held]

    # Entries.

    async def read(self, requests: Sequence[tuple[Lease, int, str]]) -> list[list[Entry] | None]:
        """Read from leased queues: per request the lease, how many entries, and where to start, `>` for what nobody
        read yet or an entry's id for what was read and not acknowledged after it. None: the lease is lost.
        """
        calls = [
            ([lease.queue.lease_key, lease.queue.key], [lease.value, str(count), start])
            for lease, count, start in requests
        ]
        results: list[list[Entry] | None] = []
        for reply in itertools.chain.from_iterable(await self._run(self._read, self._together(calls))):
            if isinstance(reply, Exception):
                raise reply
            if reply is None:
                results.append(None)
                continue
            flat = [_text(value) for value in reply]
            results.append([_entry(flat[at], flat[at + 1]) for at in range(0, len(flat), 2)])
        return results

    async def acknowledge(self, entries: Iterable[tuple[Queue, str]]) -> None:
        """Remove entries that are done with, whoever holds the lease by now."""
        by_key: dict[str, list[str]] = {}
        for queue, entry in entries:
            by_key.setdefault(queue.key, []).append(entry)
        if not by_key:
            return
        calls = [([key], [str(len(ids)), *ids]) for key, ids in by_key.items()]
        await self._run(self._acknowledge, self._together(calls))

    def _together(self, calls: Sequence[tuple[list[str], list[str]]]) -> Sequence[tuple[list[str], list[str]]]:
        """One call of a script that works on several queues; on a cluster one for each queue."""
        if isinstance(self._redis, RedisCluster):
            return calls
        return [
            ([key for keys, _ in part for key in keys], [argument for _, arguments in part for argument in arguments])
            for part in (calls[start : start + _QUEUES_PER_CALL] for start in range(0, len(calls), _QUEUES_PER_CALL))
        ]

    async def present(self, items: Sequence[tuple[QueueItem, str | None]]) -> list[bool]:
        """Whether Redis still has the entry that a dispatch was queued with."""
        asked = [place for place, (_, entry) in enumerate(items) if entry]
        found = [False] * len(items)
        async with self._redis.pipeline(transaction=False) as pipe:
            for place in asked:
                item, entry = items[place]
                assert entry is not None
                pipe.xrange(stream_key(item.brand_id, item.sms_type, item.mode), min=entry, max=entry, count=1)
            replies = await pipe.execute()
        for place, reply in zip(asked, replies, strict=True):
            # The id is compared too: a stream that was emptied and filled again may give the same number to another.
            found[place] = any(id_of(_text_fields(fields)) == items[place][0].id for _, fields in reply)
        return found

    # What is ready.

    async def walk(self, *, limit: int, offsets: dict[int, int] | None = None) -> list[Queue]:
        """The queues that have entries, at most `limit` per partition, longest ready first.

        `offsets` (kept by the caller between walks) lets the next walk go on where a full partition was cut.
        """
        offsets = {} if offsets is None else offsets
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition in range(PARTITIONS):
                start = offsets.get(partition, 0)
                pipe.zrange(ready_key(partition), start, start + limit - 1)
            replies = await pipe.execute()
        queues = []
        for partition, keys in enumerate(replies):
            if len(keys) == limit:
                offsets[partition] = offsets.get(partition, 0) + limit
            else:
                offsets.pop(partition, None)
            queues += [queue for key in keys if (queue := queue_of(_text(key))) is not None]
        return queues

    async def depths(self, queues: Sequence[Queue], *, now_ms: int) -> list[Depth]:
        """Entries of queues and the age of the oldest."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.xlen(queue.key)
                pipe.xrange(queue.key, count=1)
            replies = await pipe.execute()
        result = []
        for place, queue in enumerate(queues):
            entries, first = replies[2 * place], replies[2 * place + 1]
            since_ms = int(_text(first[0][0]).partition("-")[0]) if first else now_ms
            result.append(Depth(queue, int(entries), max(0, now_ms - since_ms) / 1000))
        return result

    # Receipts.

    async def prepare_receipts(self) -> None:
        """Make the consumer groups of the receipt streams."""
        for number in range(self._receipt_streams):
            try:
                await self._redis.xgroup_create(receipts_key(number), RECEIPT_GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def read_receipts(self, number: int, worker: str, *, count: int, wait_ms: int) -> list[ReceiptEntry]:
        """Read receipts of one stream, waiting for some; the group is made again when Redis has lost it."""
        for last_try in (False, True):
            try:
                reply = await self._redis.xreadgroup(
                    RECEIPT_GROUP, worker, {receipts_key(number): ">"}, count=count, block=wait_ms
                )
            except ResponseError as error:
                if "NOGROUP" not in str(error) or last_try:
                    raise
                await self.prepare_receipts()
                continue
            return _receipt_entries(_entries_of_one_stream(reply))
        raise AssertionError("the second try returns or raises")

    async def take_over_receipts(self, number: int, worker: str, *, idle_ms: int, count: int) -> list[ReceiptEntry]:
        """Receipts that a worker has read and not acknowledged for so long that it must be gone."""
        try:
            reply = await self._redis.xautoclaim(
                receipts_key(number), RECEIPT_GROUP, worker, min_idle_time=idle_ms, start_id="0-0", count=count
            )
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return []
        return _receipt_entries(cast(Any, reply)[1])

    async def look_at_receipts(self, number: int, *, after: str, count: int) -> list[ReceiptEntry]:
        """Entries of one stream behind an entry (`-`: from the first), whoever reads them."""
        start = after if after == "-" else f"({after}"
        return _receipt_entries(await self._redis.xrange(receipts_key(number), min=start, max="+", count=count))

    async def acknowledge_receipts(self, number: int, entries: Sequence[str]) -> None:
        """Remove receipts that are done with or have been put off."""
        if not entries:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xack(receipts_key(number), RECEIPT_GROUP, *entries)
            pipe.xdel(receipts_key(number), *entries)
            _raise_other_than(await pipe.execute(raise_on_error=False), "NOGROUP")

    # Work that only one process need do at a time.

    async def take_duty(self, name: str, worker: str, *, ttl_ms: int) -> bool:
        """Whether a duty is ours for a while; it saves work and guards nothing."""
        return bool(await self._redis.set(f"duty:{name}", worker, nx=True, px=ttl_ms))

    async def mark_alive(self) -> bool:
        """Leave a mark; False when there was none: Redis is new or has lost its data."""
        return not await self._redis.set("sms:mark", "1", nx=True)

    async def _announce(self, keys: set[str]) -> None:
        names = sorted(keys)
        async with self._redis.pipeline(transaction=False) as pipe:
            for start in range(0, len(names), self._group_max):
                pipe.publish(READY_CHANNEL, " ".join(names[start : start + self._group_max]))
            if names:
                await pipe.execute()

    async def _run(self, script: Any, calls: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Any]:
        """Run a script for each call; many in one round trip. What Redis does not know is loaded and run again."""
        if len(calls) == 1 or isinstance(self._redis, RedisCluster):
            return [await script(keys=keys, args=arguments) for keys, arguments in calls]
        replies: list[Any] = [None] * len(calls)
        missing = list(range(len(calls)))
        for last_try in (False, True):
            if not missing:
                break
            async with self._redis.pipeline(transaction=False) as pipe:
                for place in missing:
                    keys, arguments = calls[place]
                    pipe.evalsha(script.sha, len(keys), *keys, *arguments)
                answers = await pipe.execute(raise_on_error=False)
            unknown = []
            for place, answer in zip(missing, answers, strict=True):
                if isinstance(answer, NoScriptError) and not last_try:
                    unknown.append(place)
                elif isinstance(answer, Exception):
                    raise answer
                else:
                    replies[place] = answer
            missing = unknown
            if missing:
                await cast(Awaitable[Any], self._redis.script_load(script.script))
        return replies


def _push_call(items: Sequence[QueueItem]) -> tuple[list[str], list[str]]:
    numbers: dict[str, str] = {}
    arguments: list[str] = []

    def number(key: str) -> str:
        return numbers.setdefault(key, str(len(numbers) + 1))

    for item in items:
        ready = number(ready_key(item.brand_id % PARTITIONS))
        arguments += (ready, number(stream_key(item.brand_id, item.sms_type, item.mode)))
        arguments.append(f"{item.id}{_TRACE}{item.trace}" if item.trace else item.id)
    return list(numbers), arguments


def id_of(fields: Mapping[str, str]) -> str:
    """The id that the fields of a queue's entry hold; empty without one."""
    return fields.get(_ID_FIELD, "").partition(_TRACE)[0]


def _entry(entry_id: str, value: str) -> Entry:
    if _TRACE in value:
        dispatch_id, _, trace = value.partition(_TRACE)
        return Entry(entry_id, dispatch_id, trace)
    return Entry(entry_id, value)


def _receipt_row(item: ReceiptItem) -> list[str]:
    row = [item.account, item.reference, item.inbox_id, item.call_id]
    return [*row, item.trace] if item.trace else row


def _raise_other_than(replies: Sequence[object], word: str) -> None:
    for reply in replies:
        if isinstance(reply, RedisError) and word not in str(reply):
            raise reply


def _entries_of_one_stream(reply: Any) -> Any:
    """The entries of a reply to XREADGROUP for one stream: a list of pairs (RESP2) or a dictionary (RESP3)."""
    if not reply:
        return []
    if isinstance(reply, dict):
        (entries,) = reply.values()
        # RESP3 wraps them in one list more.
        return entries[0] if entries and isinstance(entries[0], list) else entries
    return reply[0][1]


def _receipt_entries(entries: Any) -> list[ReceiptEntry]:
    result = []
    for entry_id, fields in entries:
        try:
            rows = orjson.loads(_text_fields(fields).get(_RECEIPTS_FIELD, "[]"))
            items = tuple(ReceiptItem(*row) for row in rows)
        except (orjson.JSONDecodeError, TypeError):
            items = ()
        result.append(ReceiptEntry(_text(entry_id), items))
    return result


def _text_fields(fields: Any) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in fields.items()} if fields else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else value.decode()
