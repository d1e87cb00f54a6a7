"""Aim: a paused batch starts no carrier call, loses nothing and goes on; a campaign does so with all its batches.
Method: the real cost centre, gateway and a worker; a carrier that the test holds and answers for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from gateway_harness import SECONDS, eventually, metric
from worker_harness import ADMIN, BRAND, GRANTED, ScriptedCarrier, Stack, numbers, running_stack

from infra.grpc_server import bearer
from infra.grpc_status import from_error
from protos.costcenter.v1 import cost_center_admin_pb2
from protos.smsgateway.v1 import campaigns_pb2, campaigns_pb2_grpc
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsgateway.carriers.base import CallOutcome, Verdict
from smsgateway.schema import DispatchState, MessageState

CHUNK = 10


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url, batch_chunk_messages=CHUNK) as running:
        yield running


async def pause(stack: Stack, batch_id: str) -> pb.PauseBatchResponse:
    """PauseBatch."""
    request = pb.PauseBatchRequest(batch_id=batch_id)
    reply: pb.PauseBatchResponse = await stack.sms.PauseBatch(request, metadata=bearer(ADMIN), timeout=SECONDS)
    return reply


async def resume(stack: Stack, batch_id: str) -> int:
    """ResumeBatch; messages that go on."""
    request = pb.ResumeBatchRequest(batch_id=batch_id)
    return (await stack.sms.ResumeBatch(request, metadata=bearer(ADMIN), timeout=SECONDS)).resumed


async def cancel(stack: Stack, batch_id: str) -> tuple[int, int]:
    """CancelBatch."""
    request = pb.CancelBatchRequest(batch_id=batch_id)
    reply = await stack.sms.CancelBatch(request, metadata=bearer(ADMIN), timeout=SECONDS)
    return reply.cancelled, reply.not_cancelled


async def dispatches(stack: Stack) -> dict[DispatchState, int]:
    """Dispatches by state."""
    rows = await stack.rows("select state, count(*) from dispatch group by 1")
    return {DispatchState(state): count for state, count in rows}


async def one_call_and_others_claimed(stack: Stack, carrier: ScriptedCarrier, count: int) -> str:
    """A batch of which one chunk is with the carrier, which does not answer, and all others are claimed and paid."""
    carrier.gate.clear()
    await stack.worker(carrier=carrier, slots_marketing=1)
    batch_id = await stack.send_batch(numbers(CHUNK * count))

    async def there() -> bool:
        states = await dispatches(stack)
        return states == {DispatchState.SUBMITTING: 1, DispatchState.CLAIMED: count - 1} and (
            sum(payment.segments for payment in await stack.payments()) == CHUNK * count
        )

    await eventually(there)
    return batch_id


async def test_a_paused_batch_waits_and_goes_on(stack: Stack) -> None:
    """Paused before any worker reads it: entries are read and nothing is called, requeued or stalled; then all goes."""
    batch_id = await stack.send_batch(numbers(30))
    assert await pause(stack, batch_id) == pb.PauseBatchResponse(paused=30)
    assert await pause(stack, batch_id) == pb.PauseBatchResponse(paused=30)
    carrier = ScriptedCarrier()
    await stack.worker(carrier=carrier, stalled_seconds=0.1, sweep_seconds=0.1)
    swept = metric("smsbill_sweep_rows_total", sweeper="requeue")
    other = await stack.send_batch(numbers(10, 100), request_id="other")
    looks = metric("smsbill_sweeps_total", sweeper="requeue", result="nothing")
    await eventually(lambda: _looked(looks + 6))
    assert metric("smsbill_sweep_rows_total", sweeper="requeue") == swept
    assert sorted(carrier.sent) == sorted(f"+86{number}" for number in numbers(10, 100))
    batch = (
        await stack.sms.GetBatch(pb.GetBatchRequest(batch_id=batch_id), metadata=bearer(ADMIN), timeout=SECONDS)
    ).batch
    assert batch.paused
    assert [(int(count.state), count.messages) for count in batch.states] == [(MessageState.QUEUED, 30)]
    assert await resume(stack, batch_id) == 30
    assert await resume(stack, batch_id) == 0
    await eventually(stack.quiet_dispatches)
    assert sorted(carrier.sent) == sorted(f"+86{number}" for number in [*numbers(30), *numbers(10, 100)])
    assert other


async def test_what_a_worker_had_claimed_is_not_called(stack: Stack) -> None:
    """Chunks claimed and paid before the pause start no call after it; resumed, each is called once, paid once."""
    carrier = ScriptedCarrier()
    batch_id = await one_call_and_others_claimed(stack, carrier, 4)
    assert await pause(stack, batch_id) == pb.PauseBatchResponse(paused=30, in_flight=10)
    carrier.gate.set()
    await eventually(lambda: _states_are(stack, {DispatchState.PAUSED: 3}))
    # Whatever the worker still had in hand has come to its mark by now.
    await eventually(lambda: _in_hand_is(stack, 0))
    assert len(carrier.calls) == 1
    assert await resume(stack, batch_id) == 30
    await eventually(stack.quiet_dispatches)
    assert sorted(carrier.sent) == sorted(f"+86{number}" for number in numbers(40))
    assert [payment.segments for payment in await stack.payments()] == [10] * 4


async def test_cancelling_a_paused_batch_gives_all_back(stack: Stack) -> None:
    """Chunks that a worker had paid for without recording it are cancelled as well, and refunded."""
    carrier = ScriptedCarrier()
    batch_id = await one_call_and_others_claimed(stack, carrier, 3)
    await pause(stack, batch_id)
    assert await cancel(stack, batch_id) == (20, 10)
    carrier.gate.set()
    await eventually(stack.quiet)
    assert await stack.states() == {MessageState.SENT: 10, MessageState.CANCELLED: 20}
    await eventually(lambda: _balance_is(stack, GRANTED - 10))
    assert len(carrier.calls) == 1


async def test_what_the_carrier_did_not_take_is_paused(stack: Stack) -> None:
    """A call under way at the pause that the carrier refuses for now, or halves, is not called again until resumed."""
    for place, verdict in enumerate((Verdict.RETRY, Verdict.BAD_NUMBER)):
        carrier = ScriptedCarrier()
        carrier.outcomes = [CallOutcome(verdict, code="x")]
        carrier.gate.clear()
        worker = await stack.worker(carrier=carrier)
        recipients = numbers(4, 10 * place)
        batch_id = await stack.send_batch(recipients, request_id=f"b-{place}")
        await asyncio.wait_for(carrier.called.wait(), SECONDS)
        assert await pause(stack, batch_id) == pb.PauseBatchResponse(in_flight=4)
        carrier.gate.set()
        await eventually(lambda: _only_paused(stack))
        await eventually(lambda: _in_hand_is(stack, 0))
        assert len(carrier.calls) == 1
        assert await resume(stack, batch_id) == 4
        await eventually(stack.quiet_dispatches)
        assert sorted(carrier.sent[4:]) == sorted(f"+86{number}" for number in recipients)
        await stack.stop(worker)
    assert sum(payment.segments for payment in await stack.payments()) == 8


@pytest.mark.parametrize("affords", [True, False])
async def test_a_pause_longer_than_the_freeze(database_url: str, redis_url: str, affords: bool) -> None:
    """What was frozen went back when its time was over. Resumed it is frozen anew, or fails uncharged."""
    seconds = {"freeze_time_to_live_seconds": 3}
    async with running_stack(database_url, redis_url, costcenter=seconds, batch_chunk_messages=CHUNK) as stack:
        batch_id = await stack.send_batch(numbers(20))
        await pause(stack, batch_id)
        await eventually(lambda: _frozen_is(stack, 0))
        if not affords:
            ((package_id,),) = await stack.rows(
                "select package_id from costcenter.package_queue where brand_id = %s", BRAND
            )
            taken = cost_center_admin_pb2.ClawBackAdjustment(package_id=package_id, segments=GRANTED - 10)
            await stack.adjust(BRAND, claw_back=taken)
        carrier = ScriptedCarrier()
        await stack.worker(carrier=carrier)
        assert await resume(stack, batch_id) == 20
        await eventually(stack.quiet)
        sent = 20 if affords else 10
        states = await stack.states()
        assert (states.get(MessageState.SENT, 0), states.get(MessageState.FAILED, 0)) == (sent, 20 - sent)
        assert len(carrier.sent) == sent
        assert sum(payment.segments for payment in await stack.payments()) == sent
        if not affords:
            codes = await stack.rows("select distinct result_code from message where state = 10")
            assert codes == [("INSUFFICIENT_BALANCE",)]


async def test_a_campaign_is_paused_resumed_and_cancelled_as_one(stack: Stack) -> None:
    """Batches before and after the pause wait, others do not; a cancelled campaign takes no more."""
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{stack.gateway.grpc_port}")
    async with channel:
        campaigns = campaigns_pb2_grpc.CampaignsStub(channel)

        async def call(method: str, **fields: Any) -> Any:
            name = {"brand_id": BRAND, **fields}
            request = getattr(campaigns_pb2, f"{method}Request")(**name)
            return await getattr(campaigns, method)(request, metadata=bearer(ADMIN), timeout=SECONDS)

        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await call("PauseCampaign", campaign_id="c")
        assert from_error(unknown.value).reason == "CAMPAIGN_NOT_FOUND"
        first = await stack.send_batch(numbers(20), campaign_id="c", request_id="c-1")
        await stack.send_batch(numbers(20, 100), request_id="other")
        assert (await call("PauseCampaign", campaign_id="c")).paused == 20
        second = await stack.send_batch(numbers(20, 200), campaign_id="c", request_id="c-2")
        carrier = ScriptedCarrier()
        await stack.worker(carrier=carrier)
        await eventually(lambda: _only_paused(stack))
        assert sorted(carrier.sent) == sorted(f"+86{number}" for number in numbers(20, 100))
        page = await stack.sms.ListBatches(
            pb.ListBatchesRequest(brand_id=BRAND, campaign_id="c", page_size=1), metadata=bearer(ADMIN), timeout=SECONDS
        )
        assert [(batch.batch_id, batch.paused, batch.campaign_id) for batch in page.batches] == [(second, True, "c")]
        page = await stack.sms.ListBatches(
            pb.ListBatchesRequest(brand_id=BRAND, campaign_id="c", page_token=page.next_page_token),
            metadata=bearer(ADMIN),
            timeout=SECONDS,
        )
        assert [batch.batch_id for batch in page.batches] == [first]
        seen = (await call("GetCampaign", campaign_id="c")).campaign
        assert (seen.paused, seen.batches, seen.accepted, seen.segments) == (True, 2, 40, 40)
        assert [(count.state, count.messages) for count in seen.states] == [(MessageState.QUEUED, 40)]
        assert [each.campaign_id for each in (await call("ListCampaigns")).campaigns] == ["c"]
        assert await resume(stack, first) == 20
        await eventually(lambda: _sent_are(carrier, 40))
        cancelled = await call("CancelCampaign", campaign_id="c")
        assert (cancelled.cancelled, cancelled.not_cancelled) == (20, 20)
        for method in ("ResumeCampaign", "PauseCampaign"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(method, campaign_id="c")
            assert from_error(refused.value).reason == "CAMPAIGN_CANCELLED"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stack.send_batch(numbers(1, 300), campaign_id="c", request_id="c-3")
        assert from_error(refused.value).reason == "CAMPAIGN_CANCELLED"
        await eventually(stack.quiet)
        # The cost centre has answered a release when it is recorded, and does it soon after.
        await eventually(lambda: _frozen_is(stack, 0))
        assert await stack.balance() == (GRANTED - 40, 0)


async def _frozen_is(stack: Stack, segments: int) -> bool:
    return (await stack.balance())[1] == segments


async def _only_paused(stack: Stack) -> bool:
    return (await dispatches(stack)).keys() == {DispatchState.PAUSED}


async def _states_are(stack: Stack, states: dict[DispatchState, int]) -> bool:
    return await dispatches(stack) == states


async def _in_hand_is(stack: Stack, count: int) -> bool:
    return metric("smsbill_worker_in_hand", type="marketing", mode="batch") == count


async def _sent_are(carrier: ScriptedCarrier, count: int) -> bool:
    return len(carrier.sent) == count


async def _looked(times: float) -> bool:
    return metric("smsbill_sweeps_total", sweeper="requeue", result="nothing") >= times


async def _balance_is(stack: Stack, total: int) -> bool:
    """Whether the brand owns so much and nothing of it is frozen."""
    return await stack.balance() == (total, 0)
