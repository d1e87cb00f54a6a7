"""Single messages over a real channel, with real servers: accepted once, resumed, refused whole."""

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
    OTHER_SENDER,
    SECONDS,
    VIEWER,
    Gateway,
    abandoned_calls,
    eventually,
    metric,
    running_gateway,
)

from infra.embedded import EmbeddedServers
from infra.errors import Refusal
from infra.identifiers import IdentifierSource, brand_of
from protos.costcenter.v1 import cost_center_pb2
from protos.smsgateway.v1 import sms_gateway_pb2
from smsgateway.queues import stream_key

pytestmark = pytest.mark.timeout(60)
State = sms_gateway_pb2.MessageState


async def entries(redis_url: str, sms_type: int = 1) -> list[tuple[str, str]]:
    """Entries of the brand's queue of single messages of a type, with the message's id."""
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as client:
        found: Any = await client.xrange(stream_key(BRAND, sms_type, 1))
    return [(entry, fields["i"]) for entry, fields in found]


async def queued(redis_url: str) -> list[str]:
    """Ids in the brand's queue of single verification messages."""
    return [message_id for _, message_id in await entries(redis_url)]


async def test_accepted_message_is_recorded_frozen_and_queued(gateway: Gateway, redis_url: str) -> None:
    """The whole effect of one SendSms: reply, record, dispatch, key, freeze under the message's id, queue entry."""
    reply = await gateway.send(text="字" * 71)
    assert brand_of(reply.message_id) == BRAND
    assert reply.segments == 2
    assert gateway.costcenter.freezes[BRAND, reply.message_id].order_no == reply.order_no
    message = await gateway.message(reply.message_id)
    assert (message.state, message.mobile, message.text) == (State.MESSAGE_STATE_QUEUED, "+8613800138000", "字" * 71)
    assert (message.order_no, message.segments, message.request_id) == (reply.order_no, 2, "request-1")
    assert (message.brand_id, message.sms_type, message.batch_id, message.payment_no) == (BRAND, 1, "", "")
    assert message.HasField("created_at")
    assert not message.HasField("finished_at")
    assert await gateway.rows(
        "select dispatch_id, mode, messages, segments, state, order_no, request_id from dispatch"
    ) == [(reply.message_id, 1, 1, 2, 2, reply.order_no, "request-1")]
    assert await gateway.rows("select operation, request_id, target_id, reply from request_key") == [
        (1, "request-1", reply.message_id, reply.SerializeToString())
    ]
    assert await queued(redis_url) == [reply.message_id]


async def test_stream_entry_is_noted(gateway: Gateway, redis_url: str) -> None:
    """The record learns where its message is queued, soon after the reply."""
    await gateway.send()

    async def noted() -> bool:
        return await gateway.rows("select stream_entry from dispatch") != [(None,)]

    await eventually(noted)
    ((entry, _),) = await entries(redis_url)
    assert await gateway.rows("select stream_entry from dispatch") == [(entry,)]


async def test_concurrent_calls_share_groups(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """Three hundred calls that arrive while one group is under way form the next, and each gets its own reply."""
    async with running_gateway(fake_costcenter, database_url, redis_url, accept_groups_in_flight=1) as gateway:
        fake_costcenter.gate.clear()
        first = asyncio.create_task(gateway.send(request_id="first"))
        await asyncio.wait_for(fake_costcenter.arrived.wait(), SECONDS)
        calls = [asyncio.create_task(gateway.send(request_id=f"r{n}", text=f"t{n}")) for n in range(300)]

        async def all_wait() -> bool:
            return metric("smsbill_gateway_group_waiting", group="accept") == 300

        await eventually(all_wait)
        fake_costcenter.gate.set()
        replies = await asyncio.gather(*calls)
        await first
        assert fake_costcenter.group_sizes == [1, 300]
        texts = await gateway.rows("select message_id, text from message where request_id <> 'first'")
        assert dict(texts) == {reply.message_id: f"t{n}" for n, reply in enumerate(replies)}


async def test_same_request_same_reply(gateway: Gateway, redis_url: str) -> None:
    """A repeated call, later or at the same time, gets the first reply and has no effect."""
    first, second = await asyncio.gather(gateway.send(), gateway.send())
    third = await gateway.send(mobile="+86 138 0013 8000")
    assert first == second == third
    assert len(gateway.costcenter.freezes) == 1
    assert await gateway.counts() == (1, 1, 0, 1, 0)
    assert await queued(redis_url) == [first.message_id]


async def test_other_content_is_a_conflict(gateway: Gateway) -> None:
    """A request_id used again for another text, number or type is refused, also at the same moment."""
    first = await gateway.send()
    for changes in ({"text": "another"}, {"mobile": "13800138001"}, {"sms_type": 2}):
        refusal = await gateway.refusal(gateway.send(**changes))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_CONFLICT")
    results = await asyncio.gather(
        gateway.send(request_id="r2", text="a"), gateway.send(request_id="r2", text="b"), return_exceptions=True
    )
    assert sorted(isinstance(result, Exception) for result in results) == [False, True]
    assert await gateway.counts() == (2, 2, 0, 2, 0)
    assert first == await gateway.send()


async def test_refused_message_leaves_nothing(gateway: Gateway, redis_url: str) -> None:
    """INSUFFICIENT_BALANCE comes through with its figures and leaves no rows; with balance the same call succeeds."""
    gateway.costcenter.balances[BRAND] = 1
    refusal = await gateway.refusal(gateway.send(text="字" * 71))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_BALANCE")
    assert refusal.metadata == {"available": "1", "requested": "2"}
    assert await gateway.counts() == (0, 0, 0, 0, 0)
    assert await queued(redis_url) == []
    gateway.costcenter.balances[BRAND] = 2
    assert (await gateway.send(text="字" * 71)).segments == 2


async def test_refusals_of_a_group_touch_nobody_else(gateway: Gateway) -> None:
    """Of ten messages against a balance of four, four are accepted and six refused."""
    gateway.costcenter.balances[BRAND] = 4
    results = await asyncio.gather(*(gateway.send(request_id=f"r{n}") for n in range(10)), return_exceptions=True)
    accepted = [result for result in results if not isinstance(result, BaseException)]
    assert len(accepted) == 4
    assert gateway.costcenter.frozen == 4
    assert await gateway.counts() == (4, 4, 0, 4, 0)


@pytest.mark.parametrize("fault", ["down", "losing_replies"])
async def test_cost_centre_without_an_answer(gateway: Gateway, redis_url: str, fault: str) -> None:
    """UNAVAILABLE while it does not answer; the same call afterwards resumes the same message, frozen once."""
    setattr(gateway.costcenter, fault, True)
    refusal = await gateway.refusal(gateway.send())
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    ((message_id, state),) = await gateway.rows("select dispatch_id, state from dispatch")
    assert state == 1
    assert (await gateway.message(message_id)).state == State.MESSAGE_STATE_ACCEPTING
    setattr(gateway.costcenter, fault, False)
    reply = await gateway.send()
    assert reply.message_id == message_id
    assert len(gateway.costcenter.freezes) == 1
    assert await queued(redis_url) == [message_id]
    assert await gateway.counts() == (1, 1, 0, 1, 0)


async def test_abandoned_message_is_finished(gateway: Gateway, redis_url: str) -> None:
    """What stayed unsettled is frozen and queued by the sweeper, once old enough; what is refused then is forgotten."""
    gateway.costcenter.down = True
    await gateway.refusal(gateway.send(request_id="r1"))
    await gateway.refusal(gateway.send(request_id="r2", text="字" * 71))
    gateway.costcenter.down = False
    gateway.costcenter.balances[BRAND] = 1
    async with abandoned_calls(gateway, accepting_seconds=3_600) as calls:
        assert await calls.finish_messages(100) == 0
    async with abandoned_calls(gateway, accepting_seconds=0.001) as calls:
        assert await calls.finish_messages(100) == 2
        assert await calls.finish_messages(100) == 0
    ((message_id,),) = await gateway.rows("select message_id from message")
    assert await queued(redis_url) == [message_id]
    assert (await gateway.send(request_id="r1")).message_id == message_id
    assert await gateway.counts() == (1, 1, 0, 1, 0)


async def test_message_that_cannot_be_settled_makes_room(gateway: Gateway) -> None:
    """One that the cost centre fails on is put behind the others, so that it does not hold them up for ever."""
    gateway.costcenter.down = True
    for request_id in ("bad", "good"):
        await gateway.refusal(gateway.send(request_id=request_id))
    gateway.costcenter.down = False
    ((bad, _), (good, _)) = await gateway.rows("select target_id, request_id from request_key order by request_id")

    def fail(request: cost_center_pb2.SmsSendPrePayRequest) -> Refusal | None:
        return Refusal(grpc.StatusCode.INTERNAL, "INTERNAL", "bug") if request.request_id == bad else None

    gateway.costcenter.before_freeze = fail
    await gateway.rows("update dispatch set changed_at = now() - interval '2 hours' where dispatch_id = %s", bad)
    await gateway.rows("update dispatch set changed_at = now() - interval '1 hour' where dispatch_id = %s", good)
    async with abandoned_calls(gateway, accepting_seconds=60) as calls:
        assert [await calls.finish_messages(1) for _ in range(3)] == [0, 1, 0]
    assert await gateway.rows("select dispatch_id, state from dispatch order by state") == [(bad, 1), (good, 2)]


async def test_freeze_of_a_message_that_was_refused_elsewhere_goes_back(gateway: Gateway) -> None:
    """While we freeze, another call of the same request_id is refused and forgets the message: ours goes back."""

    def forget(_: cost_center_pb2.SmsSendPrePayRequest) -> Refusal | None:
        with psycopg.connect(gateway.settings.database_url) as connection:
            for table in ("dispatch", "message", "request_key"):
                connection.execute(f"delete from smsgateway.{table}".encode())
        return None

    gateway.costcenter.before_freeze = forget
    refusal = await gateway.refusal(gateway.send())
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    ((kind, payload),) = await gateway.rows("select kind, payload from outbox")
    release = cost_center_pb2.SmsReleaseFreezeNumRequest.FromString(payload)
    (freeze,) = gateway.costcenter.freezes.values()
    assert (kind, release.order_no, release.segments) == (3, freeze.order_no, 0)


async def test_caller_who_left_before_its_group_is_dropped(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """With the one group under way held up, a call that times out meanwhile is never recorded."""
    async with running_gateway(fake_costcenter, database_url, redis_url, accept_groups_in_flight=1) as gateway:
        fake_costcenter.gate.clear()
        first = asyncio.create_task(gateway.send(request_id="first"))
        await asyncio.wait_for(fake_costcenter.arrived.wait(), SECONDS)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway.send(request_id="second", timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        fake_costcenter.gate.set()
        await first
        await gateway.send(request_id="third")
        assert await gateway.rows("select request_id from request_key order by 1") == [("first",), ("third",)]


async def test_full_queue_refuses_at_once(fake_costcenter: FakeCostCenter, database_url: str, redis_url: str) -> None:
    """Beyond accept_queue_max a call gets RESOURCE_EXHAUSTED without waiting, and those before it are served."""
    async with running_gateway(
        fake_costcenter, database_url, redis_url, accept_groups_in_flight=1, accept_queue_max=1
    ) as gateway:
        fake_costcenter.gate.clear()
        first = asyncio.create_task(gateway.send(request_id="first"))
        await asyncio.wait_for(fake_costcenter.arrived.wait(), SECONDS)
        second = asyncio.create_task(gateway.send(request_id="second"))
        third = asyncio.create_task(gateway.refusal(gateway.send(request_id="third")))
        fourth = asyncio.create_task(gateway.refusal(gateway.send(request_id="fourth")))
        done, _ = await asyncio.wait({second, third, fourth}, return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS)
        assert done
        fake_costcenter.gate.set()
        results = await asyncio.gather(first, second, third, fourth, return_exceptions=True)
        refusals = [result for result in results if isinstance(result, Refusal)]
        assert {(refusal.code, refusal.reason) for refusal in refusals} == {
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        }


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"brand_id": 0}, {"brand_id"}),
        ({"brand_id": -1}, {"brand_id"}),
        ({"request_id": ""}, {"request_id"}),
        ({"request_id": "x" * 65}, {"request_id"}),
        ({"request_id": "a\x00b"}, {"request_id"}),
        ({"request_id": "a\nb"}, {"request_id"}),
        ({"sms_type": 0}, {"sms_type"}),
        ({"sms_type": 9}, {"sms_type"}),
        ({"mobile": ""}, {"mobile"}),
        ({"mobile": "12345"}, {"mobile"}),
        ({"mobile": "+8610010"}, {"mobile"}),
        ({"text": ""}, {"text"}),
        ({"text": "字" * 537}, {"text"}),
        ({"text": "a\x00b"}, {"text"}),
        ({"text": "", "mobile": "x", "sms_type": 0, "request_id": ""}, {"text", "mobile", "sms_type", "request_id"}),
    ],
)
async def test_violated_fields_are_named(gateway: Gateway, changes: dict[str, Any], fields: set[str]) -> None:
    """Bad input gets INVALID_ARGUMENT with each field and its rule, and changes nothing."""
    refusal = await gateway.refusal(gateway.send(**changes))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_REQUEST")
    assert set(refusal.fields) == fields
    assert all(refusal.fields.values())
    assert gateway.costcenter.freezes == {}
    assert await gateway.counts() == (0, 0, 0, 0, 0)


async def test_longest_texts_and_ids_are_accepted(gateway: Gateway) -> None:
    """The bounds themselves are allowed; characters that SQL and COPY escape come back as they were."""
    request_id = "\\{\"},'" + "字" * 58
    text = "\\N\t\n\"{}'," + "😀" * 527
    reply = await gateway.send(request_id=request_id, text=text)
    assert reply.segments == 8
    message = await gateway.message(reply.message_id)
    assert (message.text, message.request_id) == (text, request_id)
    assert reply == await gateway.send(request_id=request_id, text=text)


async def test_tokens(gateway: Gateway) -> None:
    """No token, an unknown one, a role or a brand too little: each its status, and nothing happens."""
    expected = {
        None: grpc.StatusCode.UNAUTHENTICATED,
        "unknown": grpc.StatusCode.UNAUTHENTICATED,
        VIEWER: grpc.StatusCode.PERMISSION_DENIED,
        OTHER_SENDER: grpc.StatusCode.PERMISSION_DENIED,
    }
    for token, code in expected.items():
        assert (await gateway.refusal(gateway.send(token=token))).code is code
    assert await gateway.counts() == (0, 0, 0, 0, 0)
    reply = await gateway.send()
    assert (await gateway.message(reply.message_id, token=VIEWER)).message_id == reply.message_id
    foreign = await gateway.refusal(gateway.message(reply.message_id, token=OTHER_SENDER))
    assert (foreign.code, foreign.reason) == (grpc.StatusCode.PERMISSION_DENIED, "BRAND_NOT_ALLOWED")
    assert (await gateway.refusal(gateway.messages(token=OTHER_SENDER))).code is grpc.StatusCode.PERMISSION_DENIED
    assert (await gateway.refusal(gateway.count("x", token=None))).code is grpc.StatusCode.UNAUTHENTICATED
    assert (await gateway.count("x", token=VIEWER)).segments == 1


async def test_unknown_messages(gateway: Gateway) -> None:
    """What is no identifier, and an identifier of nothing, is NOT_FOUND."""
    unknown = IdentifierSource().new(BRAND, 1)
    for message_id in ("", "x", "a\x00b", unknown):
        refusal = await gateway.refusal(gateway.message(message_id))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "MESSAGE_NOT_FOUND")


async def test_listing_pages_and_filters(gateway: Gateway) -> None:
    """ListMessages goes newest first through pages, by number and by the state as seen."""
    replies = [await gateway.send(request_id=f"r{n}", mobile=f"1380013800{n % 2}") for n in range(5)]
    ids = [reply.message_id for reply in replies][::-1]
    first = await gateway.messages(page_size=3)
    assert [message.message_id for message in first.messages] == ids[:3]
    second = await gateway.messages(page_size=3, page_token=first.next_page_token)
    assert [message.message_id for message in second.messages] == ids[3:]
    assert second.next_page_token == ""
    by_number = await gateway.messages(mobile="138-0013-8001")
    assert [message.message_id for message in by_number.messages] == [ids[1], ids[3]]
    await gateway.rows("update message set state = 7 where message_id = %s", ids[0])
    await gateway.rows("delete from dispatch where dispatch_id = %s", ids[0])
    await gateway.rows("update dispatch set state = 3 where dispatch_id = %s", ids[1])
    for state, expected in ((7, ids[:1]), (3, ids[1:2]), (2, ids[2:]), (5, [])):
        listed = await gateway.messages(state=state)
        assert [message.message_id for message in listed.messages] == expected
        assert {message.state for message in listed.messages} <= {state}
    for fields, name in (
        ({"page_size": -1}, "page_size"),
        ({"page_size": 1_001}, "page_size"),
        ({"page_token": "x"}, "page_token"),
        ({"state": 99}, "state"),
        ({"batch_id": "x"}, "batch_id"),
        ({"mobile": "x"}, "mobile"),
        ({"brand_id": 0}, "brand_id"),
    ):
        refusal = await gateway.refusal(gateway.messages(**fields))
        assert set(refusal.fields) == {name}


@pytest.mark.parametrize(
    ("stored", "dispatch", "seen"),
    [(2, 1, 1), (2, 2, 2), (2, 3, 3), (2, 4, 4), (2, 5, 6), (5, 6, 5), (5, None, 5), (8, 6, 8), (11, None, 11)],
)
async def test_state_as_seen(gateway: Gateway, stored: int, dispatch: int | None, seen: int) -> None:
    """A message that is stored as queued is seen in its dispatch's state; any other as stored."""
    reply = await gateway.send()
    await gateway.rows("update message set state = %s", stored)
    if dispatch is None:
        await gateway.rows("delete from dispatch")
    else:
        await gateway.rows(
            "update dispatch set state = %s, payment_no = 'p', call_id = 'c', submitting_at = now()", dispatch
        )
    assert (await gateway.message(reply.message_id)).state == seen


@pytest.mark.parametrize(
    ("text", "mobile", "segments", "encoding", "units"),
    [
        ("字" * 70, "", 1, "domestic", 70),
        ("a" * 71, "13800138000", 2, "domestic", 71),
        ("a" * 160, "+14155550100", 1, "gsm7", 160),
        ("字" * 71, "+14155550100", 2, "ucs2", 71),
    ],
)
async def test_counting_segments(
    gateway: Gateway, text: str, mobile: str, segments: int, encoding: str, units: int
) -> None:
    """CountSegments tells what SendSms would freeze, and why."""
    count = await gateway.count(text, mobile)
    assert (count.segments, count.encoding, count.units) == (segments, encoding, units)
    reply = await gateway.send(text=text, mobile=mobile or "13800138000")
    assert reply.segments == segments


async def test_counting_refuses_what_cannot_be_sent(gateway: Gateway) -> None:
    """Empty and overlong texts and bad numbers are named."""
    assert set((await gateway.refusal(gateway.count(""))).fields) == {"text"}
    assert set((await gateway.refusal(gateway.count("a" * 537, "x"))).fields) == {"text", "mobile"}


async def test_unknown_brand(gateway: Gateway) -> None:
    """A brand that the cost centre does not know is refused with its reason."""
    gateway.costcenter.balances.clear()
    refusal = await gateway.refusal(gateway.send())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "BRAND_NOT_FOUND")
    assert await gateway.counts() == (0, 0, 0, 0, 0)


async def test_redis_down(gateway: Gateway, servers: EmbeddedServers) -> None:
    """Without Redis a message is accepted all the same: the record says that it has no entry."""
    await servers.stop_redis()
    try:
        reply = await gateway.send()
        assert await gateway.rows("select dispatch_id, state, stream_entry from dispatch") == [
            (reply.message_id, 2, None)
        ]
    finally:
        await servers.start_redis()
    await gateway.send(request_id="r2")


async def test_database_down(gateway: Gateway, servers: EmbeddedServers) -> None:
    """Without PostgreSQL calls get UNAVAILABLE; when it is back they succeed, without a restart of ours."""
    before = await gateway.send()
    await servers.stop_postgres("immediate")
    try:
        for call in (gateway.send(request_id="r2"), gateway.message(before.message_id)):
            assert (await gateway.refusal(call)).code is grpc.StatusCode.UNAVAILABLE
    finally:
        await servers.start_postgres()

    async def back() -> bool:
        try:
            await gateway.message(before.message_id)
        except grpc.aio.AioRpcError:
            return False
        return True

    await eventually(back)
    after = await gateway.send(request_id="r2")
    assert (await gateway.message(before.message_id)).order_no == before.order_no
    assert (await gateway.message(after.message_id)).order_no == after.order_no
