"""Aim: what nobody works on any more comes to its end by itself, once, and what is on its way is left alone. Method:
real records brought into the state that a dead process leaves; settings that make days pass in moments."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from gateway_harness import eventually, metric
from worker_harness import BRAND, GRANTED, ScriptedCarrier, Stack, numbers, running_stack

from protos.costcenter.v1 import cost_center_pb2
from smsgateway.carriers.base import CallOutcome, Verdict
from smsgateway.queues import open_redis
from smsgateway.schema import MessageState

# A worker without a carrier's account sweeps and sends nothing.
SWEEPS_ONLY: dict[str, Any] = {"chuanglan_account": ""}
SOON_HOURS = 0.3 / 3_600


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url) as running:
        yield running


async def entries(redis_url: str) -> Counter[str]:
    """What is in the queues, by id."""
    found: Counter[str] = Counter()
    async with open_redis(redis_url, connections_max=2, timeout_seconds=5) as redis:
        for key in await redis.keys("sms:{*"):
            entries: Any = await redis.xrange(key)
            found.update(str(fields["i"]) for _, fields in entries)
    return found


async def test_a_lost_redis_is_refilled_once(stack: Stack, redis_url: str) -> None:
    """All that is queued by the records is queued again after a loss, once each, by two sweepers together."""
    workers = [await stack.worker(**SWEEPS_ONLY, stalled_after_loss_seconds=0.1) for _ in range(2)]
    ids = [await stack.send(number) for number in numbers(20)]
    await stack.send_batch(numbers(30, first=500))
    chunks = [row[0] for row in await stack.rows("select dispatch_id from dispatch where mode = 2")]
    await asyncio.sleep(0.2)
    async with open_redis(redis_url, connections_max=2, timeout_seconds=5) as redis:
        await redis.flushdb()

    async def refilled() -> bool:
        return set(await entries(redis_url)) == {*ids, *chunks}

    await eventually(refilled)
    requeues = metric("smsbill_sweeps_total", sweeper="requeue", result="nothing")
    await eventually(lambda: _more_sweeps(requeues, 3))
    assert set((await entries(redis_url)).values()) == {1}
    for worker in workers:
        await stack.stop(worker)


async def test_a_long_backlog_is_not_queued_twice(stack: Stack, redis_url: str) -> None:
    """However old, what Redis still has is left alone."""
    ids = [await stack.send(number) for number in numbers(20)]
    await stack.rows("update dispatch set changed_at = now() - interval '1 hour'")
    before = metric("smsbill_sweeps_total", sweeper="requeue", result="nothing")
    await stack.worker(**SWEEPS_ONLY, stalled_seconds=0.1)
    await eventually(lambda: _more_sweeps(before, 5))
    assert await entries(redis_url) == Counter(ids)


async def test_a_dead_workers_claims_are_freed(stack: Stack, redis_url: str) -> None:
    """Claimed under an epoch that is over and in no queue: queued again and sent, paid once."""
    message_id = await stack.send()
    await stack.rows(
        "update dispatch set state = 3, epoch = 5, stream_entry = null, changed_at = now() - interval '1 hour'"
    )
    async with open_redis(redis_url, connections_max=2, timeout_seconds=5) as redis:
        await redis.flushdb()
    carrier = ScriptedCarrier()
    await stack.worker(carrier=carrier)
    await stack.wait_for_state(message_id, MessageState.SENT)
    assert len(carrier.calls) == 1


async def test_claims_in_live_hands_are_left_alone(stack: Stack) -> None:
    """A claim as old as the hills under a lease that is held is its holder's business."""
    carrier = ScriptedCarrier()
    carrier.outcomes = [CallOutcome(Verdict.STOP_ACCOUNT, code="109")]
    await stack.worker(carrier=carrier, account_pause_seconds=1.5, stalled_seconds=0.1, lease_seconds=0.5)
    message_id = await stack.send()
    await eventually(lambda: _in_state(stack, 3))
    await stack.rows("update dispatch set changed_at = now() - interval '1 hour'")
    ((epoch,),) = await stack.rows("select epoch from dispatch")
    before = metric("smsbill_sweeps_total", sweeper="requeue", result="nothing")
    await eventually(lambda: _more_sweeps(before, 2))
    assert await stack.rows("select state, epoch from dispatch") == [(3, epoch)]
    await stack.wait_for_state(message_id, MessageState.SENT)
    assert len(carrier.calls) == 2


async def test_a_call_without_an_answer_becomes_unknown_then_failed_and_refunded(stack: Stack) -> None:
    """A worker died in its call: unknown after the longest time of a call, failed and refunded after the last term."""
    carrier = ScriptedCarrier(timeout_s=0.2)
    carrier.gate.clear()
    dead = await stack.worker(carrier=carrier, drain_seconds=0.1)
    single = await stack.send()
    await stack.send_batch(numbers(3))
    await eventually(lambda: _in_state(stack, 4, 2))
    await stack.stop(dead)
    sweeper = await stack.worker(**SWEEPS_ONLY, submit_start_seconds=0.1, submit_margin_seconds=0, outcome_hours=1)
    # Without an account its sweeper cannot know how long a call takes, and waits longer.
    assert await stack.rows("select distinct state from dispatch") == [(4,)]
    await stack.stop(sweeper)
    other = ScriptedCarrier(timeout_s=0.2)
    await stack.worker(carrier=other, submit_start_seconds=0.1, submit_margin_seconds=0, outcome_hours=SOON_HOURS)
    assert await stack.wait_until_final(4) == {MessageState.FAILED: 4}
    assert (await stack.message(single)).result_code == "OUTCOME_UNKNOWN"
    assert await stack.balance() == (GRANTED, 0)
    assert other.calls == []


async def test_of_a_call_that_failed_in_part_as_many_are_refunded(stack: Stack) -> None:
    """The carrier said that two of five failed: of the three without a receipt two are refunded, no more."""
    carrier = ScriptedCarrier()
    carrier.outcomes = [CallOutcome(Verdict.ACCEPTED, carrier_message_id="m1", code="0", failed_count=2)]
    worker = await stack.worker(carrier=carrier)
    mobiles = numbers(5)
    await stack.send_batch(mobiles)
    await eventually(lambda: _in_state(stack, 6))
    for mobile in mobiles[:2]:
        await stack.push_receipt(call_id=carrier.calls[0].call_id, mobile=mobile)
    await eventually(lambda: _states_are(stack, {MessageState.DELIVERED: 2, MessageState.SENT: 3}))
    await stack.stop(worker)
    await stack.worker(**SWEEPS_ONLY, outcome_hours=SOON_HOURS)
    assert await stack.wait_until_final(5) == {
        MessageState.DELIVERED: 2,
        MessageState.FAILED: 2,
        MessageState.EXPIRED: 1,
    }
    assert await stack.balance() == (GRANTED - 3, 0)
    (payment,) = await stack.payments()
    assert (payment.segments, payment.refunded) == (5, 2)


async def test_a_message_without_a_receipt_expires(stack: Stack) -> None:
    """Sent and never heard of: expired; refunded only where the brand's setting says so."""
    await stack.grant(44, 100, refund_undelivered=True)
    await stack.worker(carrier=ScriptedCarrier(), outcome_hours=SOON_HOURS)
    kept = await stack.send()
    refunded = await stack.send(brand_id=44)
    assert await stack.wait_until_final(2) == {MessageState.EXPIRED: 2}
    assert (await stack.message(kept)).result_code == "NO_RECEIPT"
    assert await stack.state(refunded) == MessageState.EXPIRED
    assert await stack.balance() == (GRANTED - 1, 0)
    assert await stack.balance(44) == (100, 0)


async def test_what_the_cost_centre_refuses_for_good_is_parked(stack: Stack) -> None:
    """Refused again and again: parked with the reason and counted; what is good passes it by."""
    await stack.worker(carrier=ScriptedCarrier(), outbox_tries_max=1, depth_seconds=0.1)
    request = cost_center_pb2.SmsSendStatusCallBackRequest(
        brand_id=BRAND, request_id="poison", payment_no="01M7Y44C8E0000000000007YZXJMGSY7"
    )
    await stack.rows(
        "insert into outbox (brand_id, outbox_id, kind, payload, next_at, created_at)"
        " values (%s, 'poison', 1, %s, now(), now()), (%s, 'rubbish', 1, %s, now(), now())",
        BRAND,
        request.SerializeToString(),
        BRAND,
        b"\xff\xff",
    )
    message_id = await stack.send()
    await stack.wait_for_state(message_id, MessageState.SENT)

    async def parked() -> bool:
        rows = await stack.rows("select outbox_id, attempts, next_at is null from outbox order by outbox_id")
        return rows == [("poison", 1, True), ("rubbish", 1, True)]

    await eventually(parked)
    ((error,),) = await stack.rows("select last_error from outbox where outbox_id = 'poison'")
    assert "PAYMENT_NOT_FOUND" in error

    async def counted() -> bool:
        return metric("smsbill_parked", what="outbox") == 2

    await eventually(counted)


async def test_what_a_gateway_left_half_accepted_is_finished(stack: Stack) -> None:
    """Recorded while the cost centre was away and never asked for again: frozen, queued, sent."""
    # The gateway knows the token from here on.
    await stack.send("13800138009")
    await stack.stop_costcenter()
    with pytest.raises(grpc.aio.AioRpcError):
        await stack.send()
    ((message_id,),) = await stack.rows("select dispatch_id from dispatch where state = 1")
    await stack.restart_costcenter()
    await stack.worker(carrier=ScriptedCarrier(), accepting_seconds=0.1)
    await stack.wait_for_state(message_id, MessageState.SENT)


async def test_a_cancelled_batch_gives_its_segments_back(stack: Stack) -> None:
    """A release that the gateway owes reaches the cost centre and is applied."""
    from infra.grpc_server import bearer
    from protos.smsgateway.v1 import sms_gateway_pb2

    batch_id = await stack.send_batch(numbers(30))
    assert await stack.balance() == (GRANTED, 30)
    reply = await stack.sms.CancelBatch(
        sms_gateway_pb2.CancelBatchRequest(batch_id=batch_id), metadata=bearer("an admin's secret"), timeout=10
    )
    assert reply.cancelled == 30
    await stack.worker(**SWEEPS_ONLY)

    async def released() -> bool:
        return await stack.balance() == (GRANTED, 0)

    await eventually(released)


async def test_old_keys_and_routes_go(stack: Stack) -> None:
    """What is past its time is deleted, the rest stays."""
    await stack.worker(carrier=ScriptedCarrier(), cleanup_seconds=0.2)
    ids = [await stack.send(number) for number in numbers(2)]
    for message_id in ids:
        await stack.wait_for_state(message_id, MessageState.SENT)
    await stack.rows("update request_key set created_at = now() - interval '31 days' where target_id = %s", ids[0])
    await stack.rows("update route set created_at = now() - interval '31 days' where dispatch_id = %s", ids[0])

    async def gone() -> bool:
        keys = await stack.rows("select target_id from request_key")
        routes = await stack.rows("select distinct dispatch_id from route")
        return keys == routes == [(ids[1],)]

    await eventually(gone)


async def test_queues_are_measured(stack: Stack) -> None:
    """Depth and age by type and mode are told from Redis."""
    for number in numbers(3):
        await stack.send(number)
    await stack.send_batch(numbers(4))
    await stack.worker(**SWEEPS_ONLY, depth_seconds=0.1)

    async def measured() -> bool:
        return (
            metric("smsbill_queue_depth", type="verification", mode="single") == 3
            and metric("smsbill_queue_depth", type="marketing", mode="batch") == 1
            and metric("smsbill_queue_oldest_seconds", type="verification", mode="single") > 0
        )

    await eventually(measured)


async def _more_sweeps(before: float, count: int) -> bool:
    return metric("smsbill_sweeps_total", sweeper="requeue", result="nothing") >= before + count


async def _in_state(stack: Stack, state: int, count: int = 1) -> bool:
    return bool((await stack.rows("select count(*) from dispatch where state = %s", state))[0][0] == count)


async def _states_are(stack: Stack, states: dict[MessageState, int]) -> bool:
    return await stack.states() == states
