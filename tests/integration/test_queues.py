"""Aim: the queues keep their promises in a real Redis: order, leases with growing epochs, nothing read without a lease,
nothing left behind by idle queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import uvloop
from gateway_harness import eventually
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from smsgateway.queues import (
    FREED,
    READY_CHANNEL,
    HeldByOther,
    Lease,
    Queue,
    QueueItem,
    Queues,
    ReceiptItem,
    open_redis,
    queue_of,
)
from smsgateway.schema import Mode

SINGLE = Queue(7, 1, Mode.SINGLE)
BATCH = Queue(7, 3, Mode.BATCH)
FAR = Queue(300, 2, Mode.SINGLE)
TTL_MS = 10_000


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = open_redis(redis_url, connections_max=8, timeout_seconds=5)
    yield client
    await client.aclose()


@pytest.fixture
async def queues(redis: Redis) -> Queues:
    return Queues(redis, receipt_streams=2, group_max=3)


def item(queue: Queue, name: str) -> QueueItem:
    return QueueItem(queue.brand_id, queue.sms_type, queue.mode, name)


async def leased(queues: Queues, queue: Queue, worker: str = "w1", ttl_ms: int = TTL_MS) -> Lease:
    (answer,) = await queues.lease([queue], worker, ttl_ms=ttl_ms)
    assert isinstance(answer, Lease)
    return answer


async def read(queues: Queues, lease: Lease, start: str = ">", count: int = 10) -> list[str] | None:
    (entries,) = await queues.read([(lease, count, start)])
    return None if entries is None else [entry.id for entry in entries]


def test_a_connection_lost_under_uvloop_is_an_outage(redis_url: str) -> None:
    """What is written to a connection that has just been lost fails as an outage does, not as an error of ours."""

    async def body() -> None:
        client = open_redis(redis_url, connections_max=2, timeout_seconds=5)
        try:
            connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
            connection._writer.transport.abort()
            await asyncio.sleep(0)
            with pytest.raises(RedisConnectionError):
                await connection.send_command("PING")
            assert await client.ping()
        finally:
            await client.aclose()

    uvloop.run(body())


def test_names_follow_the_documented_form() -> None:
    """Keys share the partition's hash tag, and a stream's key leads back to its queue."""
    assert FAR.key == "sms:{p44}:300:notification:single"
    assert FAR.ready_key == "ready:{p44}"
    assert FAR.lease_key == "lease:{p44}:300:notification:single"
    assert queue_of(FAR.key) == FAR
    for wrong in ("sms:{p1}:300:notification:single", "sms:{p44}:300:sms:single", "x", "sms:{p44}:x:marketing:batch"):
        assert queue_of(wrong) is None


async def test_entries_come_back_in_order_with_their_ids(queues: Queues, redis: Redis) -> None:
    """Pushing over several partitions and script calls gives an entry id per item, in order, and announces them."""
    pubsub = redis.pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe(READY_CHANNEL)
    await pubsub.get_message(timeout=1)
    items = [item(queue, f"{queue.sms_type}-{number}") for number in range(4) for queue in (SINGLE, FAR, BATCH)]
    entries = await queues.push(items)
    lease = await leased(queues, SINGLE)
    assert await read(queues, lease) == ["1-0", "1-1", "1-2", "1-3"]
    assert await queues.present(list(zip(items, entries, strict=True))) == [True] * 12
    announced: set[str] = set()

    async def all_announced() -> bool:
        message = await pubsub.get_message(timeout=0.1)
        announced.update(message["data"].split() if message else [])
        return announced >= {SINGLE.key, FAR.key, BATCH.key}

    await eventually(all_announced, 5)
    await pubsub.aclose()  # type: ignore[no-untyped-call] # the library's annotations lack it


async def test_a_lease_excludes_others_until_it_ends(queues: Queues) -> None:
    """One worker at a time; the next gets a greater epoch, and the first can neither read nor renew any more."""
    await queues.push([item(SINGLE, "m1"), item(SINGLE, "m2")])
    first = await leased(queues, SINGLE, "w1", ttl_ms=200)
    (held,) = await queues.lease([SINGLE], "w2", ttl_ms=TTL_MS)
    assert isinstance(held, HeldByOther)
    assert 0 <= held.milliseconds <= 200
    assert await queues.epochs([SINGLE, FAR]) == [first.epoch, None]
    assert await read(queues, first, count=1) == ["m1"]

    async def taken_over() -> bool:
        (answer,) = await queues.lease([SINGLE], "w2", ttl_ms=TTL_MS)
        return isinstance(answer, Lease)

    await eventually(taken_over, 5)
    second = await leased(queues, SINGLE, "w2")
    assert second.epoch > first.epoch
    assert await read(queues, first) is None
    assert await queues.renew([first, second], ttl_ms=TTL_MS) == [False, True]
    assert await queues.release([first], even_with_entries=True) == [-1]
    assert await read(queues, second, start="0-0") == ["m1"], "what the first had read is read first"
    assert await read(queues, second) == ["m2"]


async def test_epochs_grow_though_redis_lost_its_data(queues: Queues, redis: Redis) -> None:
    """An epoch after a loss is greater than any before."""
    before = await leased(queues, SINGLE)
    await redis.flushdb()
    after = await leased(queues, SINGLE)
    assert after.epoch > before.epoch
    await redis.set(SINGLE.epoch_key, after.epoch + 10**12)
    assert (await leased(queues, SINGLE)).epoch == after.epoch + 10**12 + 1, "nor does a clock set back matter"


async def test_an_idle_queue_leaves_nothing_behind(queues: Queues, redis: Redis) -> None:
    """An acknowledged queue goes with its stream, ready mark and lease; one with entries is kept and stays ready."""
    (entry,) = await queues.push([item(SINGLE, "m1")])
    assert await queues.walk(limit=10) == [SINGLE]
    lease = await leased(queues, SINGLE)
    await read(queues, lease)
    assert await queues.release([lease], even_with_entries=False) == [1]
    await queues.acknowledge([(SINGLE, entry), (FAR, "1-1")])
    assert await queues.release([lease], even_with_entries=False) == [0]
    assert await redis.keys("*7:verification*") == []
    assert await queues.walk(limit=10) == []


async def test_a_queue_given_back_is_announced(queues: Queues, redis: Redis) -> None:
    """A lease given back with entries left is said to be free, and another may take it at once."""
    await queues.push([item(SINGLE, "m1")])
    lease = await leased(queues, SINGLE)
    pubsub = redis.pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe(READY_CHANNEL)
    await pubsub.get_message(timeout=1)
    assert await queues.release([lease], even_with_entries=True) == [1]
    heard: list[str] = []

    async def announced() -> bool:
        message = await pubsub.get_message(timeout=0.1)
        heard.extend(message["data"].split() if message else [])
        return FREED + SINGLE.key in heard

    await eventually(announced, 5)
    await pubsub.aclose()  # type: ignore[no-untyped-call] # the library's annotations lack it
    assert (await leased(queues, SINGLE, "w2")).epoch > lease.epoch


async def test_presence_compares_the_id_too(queues: Queues, redis: Redis) -> None:
    """An entry number that another dispatch got after a loss does not count as ours."""
    (entry,) = await queues.push([item(SINGLE, "m1")])
    await redis.delete(SINGLE.key)
    await redis.xadd(SINGLE.key, {"i": "other"}, id=entry)
    asked = [(item(SINGLE, "m1"), entry), (item(SINGLE, "other"), entry), (item(SINGLE, "m1"), None)]
    assert await queues.present(asked) == [False, True, False]


async def test_reading_mends_a_missing_group(queues: Queues, redis: Redis) -> None:
    """A stream that was deleted under a lease is read again as soon as it is back."""
    lease = await leased(queues, SINGLE)
    await redis.delete(SINGLE.key)
    assert await read(queues, lease) == []
    await queues.push([item(SINGLE, "m1")])
    assert await read(queues, lease) == ["m1"]


async def test_scripts_survive_their_loss(queues: Queues, redis: Redis) -> None:
    """A restarted Redis knows no scripts; many calls in one round trip load them again."""
    await redis.script_flush()
    queues_of_many = [Queue(brand, 1, Mode.SINGLE) for brand in range(1, 6)]
    assert len(await queues.push([item(queue, "m") for queue in queues_of_many])) == 5
    await redis.script_flush()
    answers = await queues.lease(queues_of_many, "w1", ttl_ms=TTL_MS)
    assert all(isinstance(answer, Lease) for answer in answers)


async def test_walks_go_on_where_a_full_partition_was_cut(queues: Queues) -> None:
    """A partition with more ready queues than a walk looks at is seen whole by several walks."""
    brands = [7 + 256 * number for number in range(5)]
    await queues.push([QueueItem(brand, 1, Mode.SINGLE, "m") for brand in brands])
    offsets: dict[int, int] = {}
    seen: set[int] = set()
    for _ in range(3):
        seen |= {queue.brand_id for queue in await queues.walk(limit=2, offsets=offsets)}
    assert seen == set(brands)
    assert offsets == {}


async def test_depths_tell_number_and_age(queues: Queues, redis: Redis) -> None:
    """Depth counts entries; age is that of the oldest."""
    await redis.xadd(SINGLE.key, {"i": "old"}, id="1000-0")
    await queues.push([item(SINGLE, "m1")])
    (depth,) = await queues.depths([SINGLE], now_ms=61_000)
    assert (depth.entries, depth.oldest_seconds) == (2, 60)


async def test_receipts_go_to_one_reader_and_are_taken_over(queues: Queues) -> None:
    """Each receipt is read once; what its reader does not acknowledge another takes over after a while."""
    items = [ReceiptItem("chuanglan", f"ref-{number}", f"inbox-{number}", f"call-{number}") for number in range(3)]
    await queues.push_receipts(items)
    got: dict[int, list[str]] = {}
    for number in range(2):
        entries = await queues.read_receipts(number, "w1", count=10, wait_ms=10)
        if entries:
            assert [receipt for entry in entries for receipt in entry.items] == items
            got[number] = [entry.entry_id for entry in entries]
            assert await queues.read_receipts(number, "w2", count=10, wait_ms=10) == []
    ((number, ids),) = got.items()
    assert await queues.take_over_receipts(number, "w2", idle_ms=60_000, count=10) == []

    async def taken_over() -> bool:
        entries = await queues.take_over_receipts(number, "w2", idle_ms=20, count=10)
        return [receipt for entry in entries for receipt in entry.items] == items

    await eventually(taken_over, 5)
    await queues.acknowledge_receipts(number, ids)
    await asyncio.sleep(0.03)
    assert await queues.take_over_receipts(number, "w1", idle_ms=1, count=10) == []


async def test_a_duty_is_one_workers_at_a_time(queues: Queues) -> None:
    """A duty is taken by the first until its time is over."""
    assert await queues.take_duty("sweep", "w1", ttl_ms=100)
    assert not await queues.take_duty("sweep", "w2", ttl_ms=100)
    await eventually(lambda: queues.take_duty("sweep", "w2", ttl_ms=100), 5)


async def test_a_loss_is_noticed_once(queues: Queues, redis: Redis) -> None:
    """The mark tells a new or emptied Redis from one that still has everything."""
    assert not await queues.mark_alive()
    assert await queues.mark_alive()
    await redis.flushdb()
    assert not await queues.mark_alive()
