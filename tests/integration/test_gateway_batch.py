"""Batches over a real channel, with real servers: accepted whole or not at all, cancelled as far as they are queued."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import psycopg
import pytest
import redis.asyncio
from fake_cost_center import FakeCostCenter
from gateway_harness import (
    BRAND,
    OTHER_BRAND,
    OTHER_SENDER,
    SECONDS,
    SENDER,
    VIEWER,
    Gateway,
    abandoned_calls,
    batch_parts,
    numbers,
    running_gateway,
)

from infra.errors import Refusal
from infra.grpc_server import bearer
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import cost_center_pb2
from protos.smsgateway.v1 import sms_gateway_pb2
from smsgateway.queues import stream_key

pytestmark = pytest.mark.timeout(60)
State = sms_gateway_pb2.MessageState
NOTHING = (0, 0, 0, 0, 0)


async def queued(redis_url: str) -> list[str]:
    """Ids in the brand's queue of marketing chunks."""
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as client:
        found: Any = await client.xrange(stream_key(BRAND, 3, 2))
    return [fields["i"] for _, fields in found]


async def test_batch_is_recorded_in_chunks_and_queued(gateway: Gateway, redis_url: str) -> None:
    """2,500 numbers of both rules: one freeze for their sum, three chunks, all messages, and the reply."""
    foreign = [f"+1415555{n:04d}" for n in range(500)]
    text = "字" * 71
    reply = await gateway.send_batch([*numbers(2_000), *foreign], text=text + "a", request_id="b\\1")
    assert (reply.accepted, reply.segments, reply.bad_recipient_count) == (2_500, 5_000, 0)
    freeze = gateway.costcenter.freezes[BRAND, reply.batch_id]
    assert (freeze.segments, freeze.order_no) == (5_000, reply.order_no)
    chunks = await gateway.rows(
        "select dispatch_id, mode, sms_type, messages, segments, state, batch_id, order_no, request_id from dispatch"
    )
    assert sorted((row[3], row[4]) for row in chunks) == [(500, 1_000), (1_000, 2_000), (1_000, 2_000)]
    assert {row[1:3] + row[5:] for row in chunks} == {(2, 3, 2, reply.batch_id, reply.order_no, "b\\1")}
    assert sorted(await queued(redis_url)) == sorted(row[0] for row in chunks)
    per_chunk = await gateway.rows("select dispatch_id, count(*), sum(segments) from message group by 1")
    assert sorted(per_chunk) == sorted((row[0], row[3], row[4]) for row in chunks)
    batch = await gateway.batch(reply.batch_id)
    assert (batch.accepted, batch.segments, batch.order_no, batch.cancelled) == (2_500, 5_000, reply.order_no, False)
    assert (batch.text, batch.sms_type, batch.brand_id) == (text + "a", 3, BRAND)
    assert [(count.state, count.messages) for count in batch.states] == [(State.MESSAGE_STATE_QUEUED, 2_500)]
    page = await gateway.messages(batch_id=reply.batch_id, page_size=2)
    for message in page.messages:
        assert (message.text, message.batch_id, message.request_id) == (text + "a", reply.batch_id, "b\\1")
        assert (message.order_no, message.segments) == (reply.order_no, 2)
    one = await gateway.message(page.messages[0].message_id)
    assert one == page.messages[0]


async def test_segments_differ_by_rule(gateway: Gateway) -> None:
    """A text of 160 letters costs three segments to a domestic number and one abroad; the freeze is their sum."""
    reply = await gateway.send_batch(["13800138000", "+14155550100"], text="a" * 160)
    assert reply.segments == 4
    rows = await gateway.rows("select mobile, segments from message order by 1")
    assert rows == [("+14155550100", 1), ("+8613800138000", 3)]
    assert await gateway.rows("select messages, segments from dispatch") == [(2, 4)]


async def test_bad_and_double_numbers_are_listed(gateway: Gateway) -> None:
    """The good are accepted, the bad listed by place with their rule and masked, and the list is bounded."""
    mobiles = ["13800138000", "123", "+86 138 0013 8000", "13800138001", "x" * 5_000]
    reply = await gateway.send_batch(mobiles, part=2)
    assert (reply.accepted, reply.bad_recipient_count) == (2, 3)
    bad = [(item.index, item.reason) for item in reply.bad_recipients]
    assert bad == [(1, "INVALID_NUMBER"), (2, "DUPLICATE_NUMBER"), (4, "INVALID_NUMBER")]
    assert "0013" not in reply.bad_recipients[1].mobile
    assert len(reply.bad_recipients[2].mobile) < 50
    many = await gateway.send_batch([*numbers(1), *["bad"] * 1_500], request_id="many")
    assert (len(many.bad_recipients), many.bad_recipient_count) == (1_000, 1_500)


async def test_nothing_valid(gateway: Gateway) -> None:
    """A batch of bad numbers only, or of none, is refused and leaves nothing."""
    for mobiles in ([], ["x", "y"]):
        refusal = await gateway.refusal(gateway.send_batch(mobiles))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "NO_VALID_RECIPIENT")
    assert refusal.metadata == {"bad_recipients": "2"}
    assert await gateway.counts() == NOTHING


async def test_too_many_and_miscounted(fake_costcenter: FakeCostCenter, database_url: str, redis_url: str) -> None:
    """More than the bound, and another number than announced, are refused whole."""
    async with running_gateway(fake_costcenter, database_url, redis_url, batch_recipients_max=10) as gateway:
        refusal = await gateway.refusal(gateway.send_batch(numbers(11), part=4))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_RECIPIENTS")
        assert refusal.metadata == {"limit": "10"}
        for count in (4, 6):
            refusal = await gateway.refusal(gateway.send_batch(numbers(5), recipient_count=count))
            assert set(refusal.fields) == {"header.recipient_count"}
        refusal = await gateway.refusal(gateway.send_batch(numbers(5), recipient_count=11))
        assert set(refusal.fields) == {"header.recipient_count"}
        assert await gateway.counts() == NOTHING
        assert (await gateway.send_batch(numbers(10), recipient_count=10)).accepted == 10


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"brand_id": 0}, {"header.brand_id"}),
        ({"request_id": ""}, {"header.request_id"}),
        ({"sms_type": 4}, {"header.sms_type"}),
        ({"text": "字" * 537}, {"header.text"}),
        ({"recipient_count": -1}, {"header.recipient_count"}),
        ({"text": "", "sms_type": 0}, {"header.text", "header.sms_type"}),
    ],
)
async def test_violated_fields_are_named(gateway: Gateway, changes: dict[str, Any], fields: set[str]) -> None:
    """A bad header is refused with each field, without waiting for the recipients."""
    refusal = await gateway.refusal(gateway.send_batch(numbers(2), **changes))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refusal.fields) == fields
    assert await gateway.counts() == NOTHING


async def test_parts_out_of_order(gateway: Gateway) -> None:
    """No header, two headers, and a part of neither kind are refused."""
    header, recipients = batch_parts(numbers(1))
    empty = sms_gateway_pb2.SendBatchSmsRequest()
    for parts in ([], [recipients], [recipients, header], [header, header], [header, recipients, empty]):
        refusal = await gateway.refusal(gateway.send_parts(parts))
        assert set(refusal.fields) == {"part"}
    assert await gateway.counts() == NOTHING


async def test_tokens(gateway: Gateway) -> None:
    """Role and brand are checked before the stream is read to its end."""
    for token in (VIEWER, OTHER_SENDER):
        refusal = await gateway.refusal(gateway.send_batch(numbers(2), token=token))
        assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
    reply = await gateway.send_batch(numbers(2))
    assert (await gateway.batch(reply.batch_id, token=VIEWER)).accepted == 2
    assert (await gateway.refusal(gateway.cancel(reply.batch_id, token=VIEWER))).code is (
        grpc.StatusCode.PERMISSION_DENIED
    )
    for call in (gateway.batch, gateway.cancel):
        refusal = await gateway.refusal(call(reply.batch_id, token=OTHER_SENDER))
        assert refusal.reason == "BRAND_NOT_ALLOWED"


async def test_broken_stream_does_nothing(gateway: Gateway) -> None:
    """A caller who breaks off, or whose deadline passes in mid-stream, leaves nothing at all."""
    for broken in ("cancel", "deadline"):
        call = gateway.stub.SendBatchSms(metadata=bearer(SENDER), timeout=0.3 if broken == "deadline" else SECONDS)
        for part in batch_parts(numbers(2_000)):
            await call.write(part)
        if broken == "cancel":
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        else:
            with pytest.raises(grpc.aio.AioRpcError):
                await call
    # A batch that follows is handled after what the broken ones left behind.
    await gateway.send_batch(numbers(1), request_id="after")
    assert await gateway.counts() == (1, 1, 1, 1, 0)
    assert gateway.costcenter.frozen == 1


async def test_slow_stream_ends(fake_costcenter: FakeCostCenter, database_url: str, redis_url: str) -> None:
    """A stream that does not end in time is refused and gives its place back."""
    async with running_gateway(
        fake_costcenter, database_url, redis_url, batch_stream_seconds=0.2, batches_max=1
    ) as gateway:
        for _ in range(2):
            call = gateway.stub.SendBatchSms(metadata=bearer(SENDER), timeout=SECONDS)
            await call.write(batch_parts([])[0])
            refusal = await gateway.refusal(call)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "STREAM_TOO_SLOW")
        assert (await gateway.send_batch(numbers(2))).accepted == 2


async def test_places_for_batches_are_bounded(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """Beyond batches_max a batch gets RESOURCE_EXHAUSTED at once; the place is free again afterwards."""
    async with running_gateway(fake_costcenter, database_url, redis_url, batches_max=1) as gateway:
        fake_costcenter.gate.clear()
        first = asyncio.create_task(gateway.send_batch(numbers(2)))
        await asyncio.wait_for(fake_costcenter.arrived.wait(), SECONDS)
        refusal = await gateway.refusal(gateway.send_batch(numbers(2), request_id="b2"))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        fake_costcenter.gate.set()
        await first
        assert (await gateway.send_batch(numbers(2), request_id="b2")).accepted == 2


async def test_recipients_in_hand_are_bounded(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """All batches together hold so many recipients; one that would hold more gets RESOURCE_EXHAUSTED."""
    async with running_gateway(
        fake_costcenter, database_url, redis_url, batch_recipients_max=10, batch_recipients_in_hand_max=10
    ) as gateway:
        fake_costcenter.gate.clear()
        first = asyncio.create_task(gateway.send_batch(numbers(6)))
        await asyncio.wait_for(fake_costcenter.arrived.wait(), SECONDS)
        refusal = await gateway.refusal(gateway.send_batch(numbers(5), request_id="b2"))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        fake_costcenter.gate.set()
        await first
        assert (await gateway.send_batch(numbers(5), request_id="b2")).accepted == 5


async def test_half_a_balance_sends_nothing(gateway: Gateway, redis_url: str) -> None:
    """A balance for all but one message refuses the batch whole."""
    gateway.costcenter.balances[BRAND] = 1_999
    refusal = await gateway.refusal(gateway.send_batch(numbers(2_000)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_BALANCE")
    assert refusal.metadata == {"available": "1999", "requested": "2000"}
    assert await gateway.counts() == NOTHING
    assert await queued(redis_url) == []


async def test_same_request_same_reply(gateway: Gateway, redis_url: str) -> None:
    """A repeated batch, later or at the same time and cut otherwise, gets the first reply and has no effect."""
    mobiles = [*numbers(1_500), "bad"]
    first, second = await asyncio.gather(gateway.send_batch(mobiles), gateway.send_batch(mobiles, part=77))
    third = await gateway.send_batch(mobiles)
    assert first == second == third
    assert await gateway.counts() == (1, 1_500, 1, 2, 0)
    assert gateway.costcenter.frozen == 1_500
    assert len(await queued(redis_url)) == 2
    for other in (mobiles[1:], [*mobiles, "13900000000"]):
        assert (await gateway.refusal(gateway.send_batch(other))).reason == "IDEMPOTENCY_CONFLICT"
    assert (await gateway.refusal(gateway.send_batch(mobiles, text="other"))).reason == "IDEMPOTENCY_CONFLICT"
    # SendSms has keys of its own.
    assert (await gateway.send(request_id="batch-1")).segments == 1


@pytest.mark.parametrize("fault", ["down", "losing_replies"])
async def test_cost_centre_without_an_answer(gateway: Gateway, fault: str) -> None:
    """UNAVAILABLE; the batch is not seen yet; the same call afterwards resumes it, frozen once."""
    setattr(gateway.costcenter, fault, True)
    assert (await gateway.refusal(gateway.send_batch(numbers(3)))).code is grpc.StatusCode.UNAVAILABLE
    ((batch_id,),) = await gateway.rows("select batch_id from batch where accepted_at is null")
    for call in (gateway.batch, gateway.cancel):
        assert (await gateway.refusal(call(batch_id))).reason == "BATCH_NOT_FOUND"
    setattr(gateway.costcenter, fault, False)
    assert (await gateway.send_batch(numbers(3))).batch_id == batch_id
    assert len(gateway.costcenter.freezes) == 1
    assert await gateway.counts() == (1, 3, 1, 1, 0)


async def test_abandoned_batch_is_undone(gateway: Gateway) -> None:
    """What stayed unsettled is undone by the sweeper: forgotten, and its freeze owed back; a new call starts anew."""
    gateway.costcenter.losing_replies = True
    await gateway.refusal(gateway.send_batch(numbers(3)))
    ((first_id,),) = await gateway.rows("select batch_id from batch")
    async with abandoned_calls(gateway, accepting_seconds=0.001) as calls:
        assert await calls.undo_batches(100) == 0
    gateway.costcenter.losing_replies = False
    async with abandoned_calls(gateway, accepting_seconds=3_600) as calls:
        assert await calls.undo_batches(100) == 0
    async with abandoned_calls(gateway, accepting_seconds=0.001) as calls:
        assert await calls.undo_batches(100) == 1
        assert await calls.undo_batches(100) == 0
    assert await gateway.counts() == (0, 0, 0, 0, 1)
    ((kind, payload),) = await gateway.rows("select kind, payload from outbox")
    release = cost_center_pb2.SmsReleaseFreezeNumRequest.FromString(payload)
    assert (kind, release.brand_id, release.segments) == (3, BRAND, 0)
    assert release.order_no == gateway.costcenter.freezes[BRAND, first_id].order_no
    assert (await gateway.send_batch(numbers(3))).batch_id != first_id


async def test_batch_undone_meanwhile(gateway: Gateway) -> None:
    """A call whose batch was taken for abandoned while it froze writes nothing, and its freeze is owed back."""

    def forget(_: cost_center_pb2.SmsSendPrePayRequest) -> Refusal | None:
        with psycopg.connect(gateway.settings.database_url) as connection:
            for table in ("batch", "request_key"):
                connection.execute(f"delete from smsgateway.{table}".encode())
        return None

    gateway.costcenter.before_freeze = forget
    assert (await gateway.refusal(gateway.send_batch(numbers(3)))).code is grpc.StatusCode.UNAVAILABLE
    assert await gateway.counts() == (0, 0, 0, 0, 1)
    ((payload,),) = await gateway.rows("select payload from outbox")
    (freeze,) = gateway.costcenter.freezes.values()
    assert cost_center_pb2.SmsReleaseFreezeNumRequest.FromString(payload).order_no == freeze.order_no


async def test_cancelling_gives_back_what_is_queued(gateway: Gateway) -> None:
    """Of four chunks one is with a worker, one was paid and put back: two are released, one refunded, one goes on."""
    mobiles = numbers(3_500)
    reply = await gateway.send_batch(mobiles)
    chunks = [row[0] for row in await gateway.rows("select dispatch_id from dispatch order by messages desc, 1")]
    claimed, paid, _, small = chunks
    await gateway.rows("update dispatch set state = 3, epoch = 5 where dispatch_id = %s", claimed)
    await gateway.rows("update dispatch set epoch = 5, payment_no = 'p1' where dispatch_id = %s", paid)
    result = await gateway.cancel(reply.batch_id)
    assert (result.cancelled, result.not_cancelled) == (2_500, 1_000)
    assert await gateway.rows("select dispatch_id from dispatch") == [(claimed,)]
    states = {(count.state, count.messages) for count in (await gateway.batch(reply.batch_id)).states}
    assert states == {(State.MESSAGE_STATE_CLAIMED, 1_000), (State.MESSAGE_STATE_CANCELLED, 2_500)}
    assert (await gateway.batch(reply.batch_id)).cancelled
    owed = dict(await gateway.rows("select kind, payload from outbox"))
    assert set(owed) == {1, 3}
    release = cost_center_pb2.SmsReleaseFreezeNumRequest.FromString(owed[3])
    assert (release.order_no, release.segments, release.brand_id) == (reply.order_no, 1_500, BRAND)
    status = cost_center_pb2.SmsSendStatusCallBackRequest.FromString(owed[1])
    assert (status.payment_no, len(status.failed)) == ("p1", 1_000)
    assert {failed.segments for failed in status.failed} == {1}
    ((outbox_ids, keys),) = await gateway.rows(
        "select array_agg(outbox_id order by kind), count(distinct outbox_id) from outbox"
    )
    assert (outbox_ids, keys) == ([status.request_id, release.request_id], 2)
    cancelled = await gateway.rows(
        "select count(*), count(finished_at), count(payment_no), count(distinct order_no) from message where state = 11"
    )
    assert cancelled == [(2_500, 2_500, 1_000, 1)]
    again = await gateway.cancel(reply.batch_id)
    assert (again.cancelled, again.not_cancelled) == (0, 1_000)
    assert len(await gateway.rows("select outbox_id from outbox")) == 2
    assert small not in {row[0] for row in await gateway.rows("select dispatch_id from dispatch")}


async def test_cancelling_leaves_what_may_be_paid(gateway: Gateway) -> None:
    """A chunk that a worker once had and whose payment is not known is not cancelled: it may be paid."""
    reply = await gateway.send_batch(numbers(2))
    await gateway.rows("update dispatch set epoch = 5")
    result = await gateway.cancel(reply.batch_id)
    assert (result.cancelled, result.not_cancelled) == (0, 2)
    assert await gateway.counts() == (1, 2, 1, 1, 0)


async def test_cancelling_passes_over_what_is_being_claimed(gateway: Gateway) -> None:
    """A chunk whose row a worker has locked is left to it, without waiting."""
    reply = await gateway.send_batch(numbers(1_500))
    async with await psycopg.AsyncConnection.connect(gateway.settings.database_url) as worker:
        await worker.execute("update smsgateway.dispatch set state = 3, epoch = 9 where messages = 1000")
        result = await asyncio.wait_for(gateway.cancel(reply.batch_id), SECONDS)
        assert (result.cancelled, result.not_cancelled) == (500, 1_000)


async def test_unknown_batches(gateway: Gateway) -> None:
    """What is no identifier, and an identifier of nothing, is NOT_FOUND."""
    for batch_id in ("", "x", IdentifierSource().new(BRAND, 1)):
        for call in (gateway.batch, gateway.cancel):
            refusal = await gateway.refusal(call(batch_id))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "BATCH_NOT_FOUND")
    foreign = IdentifierSource().new(OTHER_BRAND, 1)
    assert (await gateway.refusal(gateway.batch(foreign))).code is grpc.StatusCode.PERMISSION_DENIED
