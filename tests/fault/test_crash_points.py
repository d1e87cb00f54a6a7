"""Aim: a process killed at any line loses, doubles and charges wrongly nothing, shown at each named point of the code.

Method: messages go their way through real processes that die by SIGKILL exactly there, one after another, and are
started again; then the records, the carrier's own record, the balances, the queues and `reconcile` are judged. Points
of one way share its message, and ways run side by side in worlds of their own, for the sake of time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import forked
import grpc.aio
import pytest
from crash_harness import (
    HASTY,
    REFUSED,
    REFUSED_CODE,
    SECONDS,
    Outcome,
    Way,
    World,
    answered,
    asked,
    died,
    gateway_beside,
    impatient,
    service,
    walk_all,
)
from gateway_harness import eventually
from google.protobuf.timestamp_pb2 import Timestamp
from smpp34_harness import Smsc34, smpp34_smsc
from webhook_receiver import receiver
from worker_harness import ADMIN, Stack

from infra.embedded import EmbeddedServers
from infra.grpc_server import bearer
from infra.grpc_status import from_error
from protos.costcenter.v1 import cost_center_admin_pb2
from protos.smsgateway.v1 import campaigns_pb2, campaigns_pb2_grpc, sms_gateway_pb2
from smsbill.crash_points import POINTS
from smsgateway.parked import DROPPED_CODE
from smsgateway.schema import MessageState
from smsgateway.webhooks import new_secret
from workers.sweepers import NO_OUTCOME

pytestmark = pytest.mark.timeout(900)

DELIVERED = Outcome(MessageState.DELIVERED, sent=True)
UNKNOWN = Outcome(MessageState.FAILED, NO_OUTCOME)
REFUSED_BY_CARRIER = Outcome(MessageState.FAILED, REFUSED_CODE)
CANCELLED = Outcome(MessageState.CANCELLED)
EXPIRED = Outcome(MessageState.EXPIRED, sent=True)
OVER = Outcome(MessageState.FAILED, "VALIDITY_EXPIRED")
# What nobody tells is not waited for; a second is longer than calls and receipts take, where there are any.
SOON: dict[str, Any] = {"outcome_hours": 1 / 3_600}

WAYS: dict[str, tuple[tuple[str, ...], Way]] = {}


def way(*points: str) -> Callable[[Way], Way]:
    """A way on which these points are reached in turn, named by its function."""

    def put(walk: Way) -> Way:
        WAYS[walk.__name__.replace("_", " ")] = (points, walk)
        return walk

    return put


def request_of(world: World) -> str:
    """The request_id of a way's call."""
    return f"r-{world.brand_id}"


async def send(world: World, stack: Stack, mobiles: Sequence[str]) -> str:
    """One number as a single message, more as a batch; its id."""
    if len(mobiles) == 1:
        return await stack.send(mobiles[0], brand_id=world.brand_id, request_id=request_of(world))
    return await stack.send_batch(mobiles, brand_id=world.brand_id, request_id=request_of(world))


async def cancel(stack: Stack, batch_id: str) -> sms_gateway_pb2.CancelBatchResponse:
    """CancelBatch."""
    request = sms_gateway_pb2.CancelBatchRequest(batch_id=batch_id)
    return await stack.sms.CancelBatch(request, metadata=bearer(ADMIN), timeout=20)


# Workers on their way to the carrier.


def worker_way(
    name: str,
    *points: str,
    messages: int = 1,
    outcome: Outcome = DELIVERED,
    ending: str = "72",
    carrier: Mapping[str, Any] = MappingProxyType({}),
    then: Mapping[str, Any] = MappingProxyType({}),
    **settings: Any,
) -> None:
    """Messages that are queued, workers that die at each of the points in turn, and one that lives.

    `then`: settings beside the others of those that clear up.
    """

    async def walk(world: World) -> None:
        world.behave(**carrier)
        await send(world, world.stack, world.numbers(messages, outcome, ending))
        for point in points:
            more = then if point.startswith("worker.sweep.") else {}
            await world.dies("worker", point, **settings, **more)
        world.behave()
        await world.settled(**settings, **then)

    WAYS[name] = (points, walk)


for kind, count in (("single", 1), ("chunk", 3)):
    worker_way(
        f"a {kind} before its mark and after its call",
        "worker.dispatch.read",
        "worker.dispatch.claimed",
        "worker.dispatch.paid",
        "worker.dispatch.answered",
        messages=count,
        then=HASTY,
    )
    worker_way(f"a {kind} after its outcome", "worker.dispatch.settled", "worker.dispatch.acknowledged", messages=count)
    worker_way(
        f"a {kind} between mark and call",
        "worker.dispatch.marked",
        "worker.sweep.overdue",
        "worker.sweep.undecided",
        messages=count,
        outcome=UNKNOWN,
        then={**HASTY, **SOON},
    )
worker_way("a refusal unheard", "worker.dispatch.answered", outcome=UNKNOWN, ending=REFUSED, then={**HASTY, **SOON})
worker_way("a refusal", "worker.dispatch.failed", outcome=REFUSED_BY_CARRIER, ending=REFUSED)
worker_way(
    "a refusal for now",
    "worker.dispatch.taken_back",
    "worker.dispatch.put_back",
    carrier={"throttle_rate": 1},
    hold_seconds=0,
)
worker_way(
    "no answer",
    "worker.dispatch.unknown",
    # So that no receipt comes before the call is given up.
    carrier={"timeout_rate": 1, "receipt_delay_ms_min": 3_000, "receipt_delay_ms_max": 3_000},
    chuanglan_connect_seconds=1,
    chuanglan_call_seconds=1,
)
worker_way("a receipt instead of an answer", "worker.receipt.decided", carrier={"timeout_rate": 1})
worker_way("the outbox", "worker.outbox.calling", "worker.outbox.called", "worker.outbox.removed")
worker_way(
    "a receipt",
    "worker.receipt.read",
    "worker.receipt.reported",
    "worker.receipt.settled",
    "worker.receipt.acknowledged",
)
worker_way("no receipt", "worker.sweep.expired", outcome=EXPIRED, carrier={"receipt_loss": 1}, then=SOON)


@way("worker.dispatch.halved")
async def a_chunk_in_halves(world: World) -> None:
    """A number that fails a whole call."""
    mobiles = world.numbers(2, DELIVERED) + world.numbers(1, REFUSED_BY_CARRIER, REFUSED)
    await send(world, world.stack, mobiles)
    await world.dies("worker", "worker.dispatch.halved")
    await world.settled()


@way("worker.dispatch.split")
async def a_chunk_in_parts(world: World) -> None:
    """More numbers than the account takes in one call."""
    await send(world, world.stack, world.numbers(3, DELIVERED))
    await world.dies("worker", "worker.dispatch.split", chuanglan_batch_max=2)
    await world.settled()


@way("worker.dispatch.refrozen", "worker.dispatch.reordered")
async def an_ended_freeze(world: World) -> None:
    """A backlog older than its freeze."""
    mobiles = world.numbers(1, DELIVERED)
    async with (
        service(world, "costcenter", "", freeze_time_to_live_seconds=1) as costcenter,
        gateway_beside(world, costcenter) as target,
    ):
        await answered(world, target, lambda stack: send(world, stack, mobiles))
    # So long it lives.
    await asyncio.sleep(1.1)
    await world.dies("worker", "worker.dispatch.refrozen")
    await world.dies("worker", "worker.dispatch.reordered")
    await world.settled()


@way("worker.dispatch.answered", "worker.receipt.put_off")
async def a_receipt_before_its_outcome(world: World) -> None:
    """The receipts of a chunk whose call nobody has recorded yet."""
    await send(world, world.stack, world.numbers(3, DELIVERED))
    await world.dies("worker", "worker.dispatch.answered")
    await world.dies("worker", "worker.receipt.put_off")
    await world.settled(**HASTY)


@way("worker.dispatch.claimed", "worker.sweep.freed")
async def a_claim_that_redis_forgot(world: World) -> None:
    """A dead worker's claim, and no entry of it in Redis."""
    await send(world, world.stack, world.numbers(1, DELIVERED))
    await world.dies("worker", "worker.dispatch.claimed")
    await world.redis.flushdb()
    await world.dies("worker", "worker.sweep.freed")
    await world.settled()


@way("worker.sweep.taken", "worker.sweep.pushed")
async def a_queue_that_redis_forgot(world: World) -> None:
    """Queued by the record alone."""
    await send(world, world.stack, world.numbers(1, DELIVERED))
    await world.redis.flushdb()
    await world.dies("worker", "worker.sweep.taken")
    await world.dies("worker", "worker.sweep.pushed")
    await world.settled()


PULLING: dict[str, Any] = {"receipt_pull_seconds": 0.1}


async def end_turns(world: World) -> None:
    """As if the time of a dead worker's turn to pull were over."""
    await world.stack.rows("update receipt_pull set until = started_at")


@way("worker.pull.turned", "worker.pull.stored", "worker.pull.emptied")
async def receipts_pulled(world: World) -> None:
    """Receipts that the carrier could not push."""
    world.behave(push_loss=1)
    await send(world, world.stack, world.numbers(1, DELIVERED))
    for point in ("worker.pull.turned", "worker.pull.stored", "worker.pull.emptied"):
        await world.dies("worker", point, **PULLING)
        await end_turns(world)
    await world.settled(**PULLING)


@way("worker.pull.answered")
async def receipts_pulled_and_gone(world: World) -> None:
    """Forgotten by the carrier and not in the inbox: nobody has them, so the messages expire and stay charged."""
    world.behave(push_loss=1)
    message_id = await send(world, world.stack, world.numbers(1, EXPIRED))
    # One that pulls before there is anything to pull, and not again.
    worker = world.start("worker")

    async def sent() -> bool:
        return await world.stack.state(message_id) == MessageState.SENT

    await eventually(sent, SECONDS)
    await worker.kill()
    await world.end_leases()
    await end_turns(world)
    await world.dies("worker", "worker.pull.answered", **PULLING)
    await end_turns(world)
    await world.settled(**PULLING, **SOON)


# One segment for us and two parts for the carrier: pairs of code units are one character each.
IN_PARTS = "😀" * 40


async def send_in_parts(world: World, smsc: Smsc34, outcome: Outcome) -> dict[str, Any]:
    """Send a text in two parts; the settings of workers that are bound to this SMSC."""
    (mobile,) = world.numbers(1, outcome)
    await world.stack.send(mobile, text=IN_PARTS, brand_id=world.brand_id, request_id=request_of(world))
    return {
        "carrier": "smpp", "smpp_host": smsc.host, "smpp_port": smsc.port, "smpp_system_id": "us",
        "smpp_rest_seconds": 0.1, "smpp_connect_seconds": 1, "smpp_response_seconds": 1, "smpp_call_seconds": 3,
    }  # fmt: skip


@way("worker.receipt.parts")
async def a_message_in_parts(world: World) -> None:
    """Its parts' receipts, of which one is recorded when the worker dies."""
    async with smpp34_smsc() as smsc:
        smsc.state_of = lambda event: "DELIVRD"
        settings = await send_in_parts(world, smsc, DELIVERED)
        await world.dies("worker", "worker.receipt.parts", **settings)
        assert [event.short_message[5] for event in smsc.submits] == [1, 2]
        world.elsewhere.append(smsc.submits[0].destination_addr.removeprefix("86"))
        await world.settled(**settings)


@way("worker.dispatch.parts")
async def a_message_of_which_a_part_is_refused(world: World) -> None:
    """What the carrier took is recorded, that the whole has failed is not: nobody knows, and nothing goes again."""
    async with smpp34_smsc() as smsc:
        smsc.decide = lambda event: 0x0B if event.short_message[5] == 2 else 0
        settings = await send_in_parts(world, smsc, UNKNOWN)
        await world.dies("worker", "worker.dispatch.parts", **settings)
        await world.settled(**settings, **HASTY, **SOON)
        assert [event.short_message[5] for event in smsc.submits] == [1, 2]


@way("worker.release.applied")
async def a_release(world: World) -> None:
    """What a cancelled batch gives back."""
    await cancel(world.stack, await send(world, world.stack, world.numbers(3, CANCELLED)))
    await world.dies("worker", "worker.release.applied")
    await world.settled()


@way()
async def a_call_that_is_swallowed(world: World) -> None:
    """Marked, called, taken on by nobody, and the worker is killed meanwhile."""
    world.behave(lost_rate=1)
    before = world.stack.simulator.totals()["calls"]["lost"]

    async def called() -> bool:
        return bool(world.stack.simulator.totals()["calls"]["lost"] > before)

    await send(world, world.stack, world.numbers(1, UNKNOWN))
    # Its call must not end by itself.
    worker = world.start("worker", chuanglan_call_seconds=60)
    await eventually(called, SECONDS)
    await worker.kill()
    await world.end_leases()
    world.behave()
    await world.settled(**HASTY, **SOON)


# Gateways that callers call.


def gateway_way(name: str, *points: str, messages: int = 1) -> None:
    """A caller who calls until it is answered, while the gateway dies at each of the points in turn."""

    async def walk(world: World) -> None:
        mobiles = world.numbers(messages, DELIVERED)
        async with service(world, "gateway", points[0]) as gateway:
            calling = asyncio.create_task(answered(world, gateway.target, lambda stack: send(world, stack, mobiles)))
            await gateway.dies_at(*points)
            target_id = await calling
        kept = await send(world, world.stack, mobiles)
        assert kept == target_id
        await world.settled()

    WAYS[name] = (points, walk)


gateway_way(
    "a single accepted",
    "gateway.single.recording",
    "gateway.single.recorded",
    "gateway.single.frozen",
    "gateway.single.queued",
)
gateway_way("a single pushed", "gateway.single.pushed")
gateway_way("a single noted", "gateway.entry.noting")
gateway_way(
    "a batch accepted",
    "gateway.batch.recording",
    "gateway.batch.recorded",
    "gateway.batch.frozen",
    "gateway.batch.storing",
    "gateway.batch.queued",
    messages=3,
)
gateway_way("a batch pushed", "gateway.batch.pushed", messages=3)


async def refused(world: World, point: str, messages: int) -> None:
    """A brand without a balance: its caller is refused in the end, and nothing is left of the call."""
    await world.impoverish()
    mobiles = world.numbers(messages, DELIVERED)
    world.expected.clear()
    async with service(world, "gateway", point) as gateway:
        calling = asyncio.create_task(answered(world, gateway.target, lambda stack: send(world, stack, mobiles)))
        await gateway.dies_at(point)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calling
    assert from_error(caught.value).reason == "INSUFFICIENT_BALANCE"
    await world.settled()


@way("gateway.single.forgotten")
async def a_single_refused(world: World) -> None:
    """Too poor for a message."""
    await refused(world, "gateway.single.forgotten", 1)


@way("gateway.batch.forgetting")
async def a_batch_refused(world: World) -> None:
    """Too poor for a batch."""
    await refused(world, "gateway.batch.forgetting", 3)


@way("gateway.batch.cancelling", "gateway.batch.cancelled")
async def a_batch_cancelled(world: World) -> None:
    """What is frozen goes back once."""
    batch_id = await send(world, world.stack, world.numbers(3, CANCELLED))
    async with service(world, "gateway", "gateway.batch.cancelling") as gateway:
        calling = asyncio.create_task(answered(world, gateway.target, lambda stack: cancel(stack, batch_id)))
        await gateway.dies_at("gateway.batch.cancelling", "gateway.batch.cancelled")
        assert (await calling).not_cancelled == 0
    await world.settled()


@way("gateway.single.cancelling")
async def a_single_cancelled(world: World) -> None:
    """What is frozen goes back once."""
    message_id = await send(world, world.stack, world.numbers(1, CANCELLED))
    request = sms_gateway_pb2.CancelMessageRequest(message_id=message_id)

    async def call(stack: Stack) -> bool:
        return (await stack.sms.CancelMessage(request, metadata=bearer(ADMIN), timeout=20)).cancelled

    async with service(world, "gateway", "gateway.single.cancelling") as gateway:
        calling = asyncio.create_task(answered(world, gateway.target, call))
        await gateway.dies_at("gateway.single.cancelling")
        assert await calling
    await world.settled()


async def pause(stack: Stack, batch_id: str) -> int:
    """PauseBatch; messages that wait."""
    request = sms_gateway_pb2.PauseBatchRequest(batch_id=batch_id)
    return int((await stack.sms.PauseBatch(request, metadata=bearer(ADMIN), timeout=20)).paused)


async def resume(stack: Stack, batch_id: str) -> None:
    """ResumeBatch."""
    request = sms_gateway_pb2.ResumeBatchRequest(batch_id=batch_id)
    await stack.sms.ResumeBatch(request, metadata=bearer(ADMIN), timeout=20)


@way("gateway.batch.pausing", "gateway.batch.paused", "gateway.batch.resuming", "gateway.batch.resumed")
async def a_batch_paused_and_resumed(world: World) -> None:
    """Whoever pauses or resumes asks again; the workers find what was resumed and not pushed."""
    batch_id = await send(world, world.stack, world.numbers(3, DELIVERED))
    async with service(world, "gateway", "gateway.batch.pausing") as gateway:
        pausing = asyncio.create_task(answered(world, gateway.target, lambda stack: pause(stack, batch_id)))
        await gateway.dies("gateway.batch.pausing", "gateway.batch.paused")
        await gateway.dies("gateway.batch.paused", "gateway.batch.resuming")
        assert await pausing == 3
        resuming = asyncio.create_task(answered(world, gateway.target, lambda stack: _resumed(stack, batch_id)))
        await gateway.dies("gateway.batch.resuming", "gateway.batch.resumed")
        await gateway.dies("gateway.batch.resumed")
        await resuming
    await world.settled()


async def _resumed(stack: Stack, batch_id: str) -> bool:
    await resume(stack, batch_id)
    return True


@way("worker.dispatch.paid", "gateway.batch.doubt_settled")
async def a_paused_batch_cancelled(world: World) -> None:
    """A worker has paid for a chunk and died; paused and cancelled, its payment is found and refunded."""
    batch_id = await send(world, world.stack, world.numbers(3, CANCELLED))
    await world.dies("worker", "worker.dispatch.paid")
    assert await pause(world.stack, batch_id) == 3
    async with service(world, "gateway", "gateway.batch.doubt_settled") as gateway:
        calling = asyncio.create_task(answered(world, gateway.target, lambda stack: cancel(stack, batch_id)))
        await gateway.dies_at("gateway.batch.doubt_settled")
        assert (await calling).not_cancelled == 0
    await world.settled()


@way("gateway.campaign.marked")
async def a_campaign_paused(world: World) -> None:
    """Marked and nothing more: who asks again has all of it paused; then it goes on."""
    mobiles = world.numbers(3, DELIVERED)
    await world.stack.send_batch(
        mobiles, brand_id=world.brand_id, request_id=request_of(world), campaign_id=request_of(world)
    )

    async def ask(target: str, method: str, request: Any) -> Any:
        async with grpc.aio.insecure_channel(target) as channel:
            stub = campaigns_pb2_grpc.CampaignsStub(channel)
            return await getattr(stub, method)(request, metadata=bearer(ADMIN), timeout=20)

    name: dict[str, Any] = {"brand_id": world.brand_id, "campaign_id": request_of(world)}
    async with service(world, "gateway", "gateway.campaign.marked") as gateway:
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(gateway.target, "PauseCampaign", campaigns_pb2.PauseCampaignRequest(**name))
        await gateway.dies("gateway.campaign.marked")
        reply = await ask(gateway.target, "PauseCampaign", campaigns_pb2.PauseCampaignRequest(**name))
        assert reply.paused == 3
        await ask(gateway.target, "ResumeCampaign", campaigns_pb2.ResumeCampaignRequest(**name))
    await world.settled()


@way("gateway.single.recorded", "gateway.single.frozen", "gateway.single.queued")
async def a_single_left_to_sweepers(world: World) -> None:
    """Its caller comes back when it is long accepted; workers die as the gateway did."""
    mobiles = world.numbers(1, DELIVERED)
    async with service(world, "gateway", "gateway.single.recorded") as gateway:
        assert await asked(world, gateway.target, lambda stack: send(world, stack, mobiles)) is None
        await died(gateway.process, "gateway.single.recorded")
    await world.dies("worker", "gateway.single.frozen")
    await world.dies("worker", "gateway.single.queued")
    await send(world, world.stack, mobiles)
    await world.settled()


@way("gateway.batch.frozen", "worker.sweep.batches", "worker.sweep.undone")
async def a_batch_left_to_sweepers(world: World) -> None:
    """It is undone; its caller comes back and gets it accepted anew."""
    mobiles = world.numbers(3, DELIVERED)
    async with service(world, "gateway", "gateway.batch.frozen") as gateway:
        assert await asked(world, gateway.target, lambda stack: send(world, stack, mobiles)) is None
        await died(gateway.process, "gateway.batch.frozen")
    await world.dies("worker", "worker.sweep.batches")
    await world.dies("worker", "worker.sweep.undone")
    await send(world, world.stack, mobiles)
    await world.settled()


# What the sender's rules bring with them.


async def counted_once(world: World, messages: int, *points: str) -> None:
    """A number may get one message a minute: what a dead gateway counted must not stand in its caller's way."""
    await world.stack.rows(
        "insert into sender_rules (brand_id, frequency, marketing_limits, changed_at)"
        " values (%s, true, '{1,1,1}', now())",
        world.brand_id,
    )
    mobiles = world.numbers(messages, DELIVERED)
    async with service(world, "gateway", points[0]) as gateway:
        calling = asyncio.create_task(answered(world, gateway.target, lambda stack: send(world, stack, mobiles)))
        await gateway.dies_at(*points)
        target_id = await calling
    assert await send(world, world.stack, mobiles) == target_id
    counted = await world.stack.rows("select targets from frequency where brand_id = %s", world.brand_id)
    assert counted == [([target_id],)] * messages
    await world.settled()


@way("gateway.single.judged")
async def a_single_judged(world: World) -> None:
    """Counted in the transaction that records it."""
    await counted_once(world, 1, "gateway.single.judged")


@way("gateway.batch.judged", "gateway.batch.frozen")
async def a_batch_judged(world: World) -> None:
    """Counted before it is frozen, and not once more when its caller takes it up again."""
    await counted_once(world, 3, "gateway.batch.judged", "gateway.batch.frozen")


@way("worker.dispatch.over")
async def a_message_past_its_validity(world: World) -> None:
    """Its first worker dies before it is recorded as failed; the next cannot know that nobody has paid."""
    (mobile,) = world.numbers(1, OVER)
    message_id = await world.stack.send(
        mobile, brand_id=world.brand_id, request_id=request_of(world), valid_for={"seconds": 3_600}
    )
    await world.stack.rows("update dispatch set valid_until = now() where dispatch_id = %s", message_id)
    await world.dies("worker", "worker.dispatch.over")
    await world.settled()


@way("worker.sweep.taken", "worker.sweep.pushed")
async def a_held_message(world: World) -> None:
    """Workers die as they push what has become due."""
    (mobile,) = world.numbers(1, DELIVERED)
    due = Timestamp(seconds=int(time.time()) + 3_600)
    message_id = await world.stack.send(mobile, brand_id=world.brand_id, request_id=request_of(world), send_at=due)
    # As if the hour were over.
    await world.stack.rows("update dispatch set not_before = now() where dispatch_id = %s", message_id)
    await world.dies("worker", "worker.sweep.taken")
    await world.dies("worker", "worker.sweep.pushed")
    await world.settled()


# Receipts and what operators want.


@way("gateway.receipt.storing", "gateway.receipt.stored", "gateway.receipt.pushed")
async def a_receipt_pushed(world: World) -> None:
    """A carrier that pushes until it is answered."""
    points = ("gateway.receipt.storing", "gateway.receipt.stored", "gateway.receipt.pushed")
    async with service(world, "gateway", points[0]) as gateway:
        world.behave(receipt_url=f"http://127.0.0.1:{gateway.http_port}/callbacks/chuanglan/report")
        await send(world, world.stack, world.numbers(1, DELIVERED))
        worker = world.start("worker")
        await gateway.dies_at(*points)
        await world.judge()
        await worker.kill()


@way("worker.dispatch.acknowledged", "gateway.receipt.stored", "worker.sweep.receipts")
async def a_receipt_stored_alone(world: World) -> None:
    """In the inbox and in no stream, and the carrier has heard nothing of the gateway since."""
    async with service(world, "gateway", "gateway.receipt.stored") as gateway:
        report_url = f"http://127.0.0.1:{gateway.http_port}/callbacks/chuanglan/report"
        # It comes when nobody is left who could sweep.
        world.behave(receipt_url=report_url, receipt_delay_ms_min=500, receipt_delay_ms_max=500)
        await send(world, world.stack, world.numbers(1, DELIVERED))
        await world.dies("worker", "worker.dispatch.acknowledged")
        await died(gateway.process, "gateway.receipt.stored")
    await world.dies("worker", "worker.sweep.receipts")
    await world.settled()


async def park(world: World, outcome: Outcome) -> str:
    """A message that an error of ours has parked, and that is well again; its id."""
    (mobile,) = world.numbers(1, outcome)
    message_id = await send(world, world.stack, [mobile])
    await world.stack.rows("update message set mobile = '' where message_id = %s", message_id)
    request = sms_gateway_pb2.ListParkedRequest(kind=sms_gateway_pb2.PARKED_KIND_DISPATCH, brand_id=world.brand_id)

    async def parked() -> bool:
        return bool((await world.stack.sms.ListParked(request, metadata=bearer(ADMIN), timeout=20)).items)

    worker = world.start("worker", dispatch_tries_max=1)
    await eventually(parked, SECONDS)
    await worker.kill()
    await world.end_leases()
    await world.stack.rows("update message set mobile = %s where message_id = %s", f"+86{mobile}", message_id)
    return message_id


@way("gateway.parked.retrying", "gateway.parked.retried")
async def parked_work_retried(world: World) -> None:
    """Tried again once, however often the operator asks."""
    message_id = await park(world, DELIVERED)
    request = sms_gateway_pb2.RetryParkedRequest(
        kind=sms_gateway_pb2.PARKED_KIND_DISPATCH, parked_ids=[message_id], author="Li", reason="well again"
    )
    async with service(world, "gateway", "gateway.parked.retrying") as gateway:
        calling = asyncio.create_task(
            answered(
                world,
                gateway.target,
                lambda stack: stack.sms.RetryParked(request, metadata=bearer(ADMIN), timeout=20),
            )
        )
        await gateway.dies_at("gateway.parked.retrying", "gateway.parked.retried")
        assert list((await calling).not_parked) == [message_id], "the call before had done it"
    await world.settled()


@way("gateway.parked.dropping", "gateway.parked.dropped")
async def parked_work_dropped(world: World) -> None:
    """Given back once, however often the operator asks."""
    message_id = await park(world, Outcome(MessageState.FAILED, DROPPED_CODE))
    request = sms_gateway_pb2.DropParkedRequest(
        kind=sms_gateway_pb2.PARKED_KIND_DISPATCH, parked_ids=[message_id], author="Li", reason="a bad number"
    )
    async with service(world, "gateway", "gateway.parked.dropping") as gateway:
        calling = asyncio.create_task(
            answered(
                world,
                gateway.target,
                lambda stack: stack.sms.DropParked(request, metadata=bearer(ADMIN), timeout=20),
            )
        )
        await gateway.dies_at("gateway.parked.dropping", "gateway.parked.dropped")
        assert list((await calling).not_parked) == [message_id], "the call before had done it"
    await world.settled()


# What people sent back, and what brands are told.


@way("gateway.reply.storing", "gateway.reply.committing", "gateway.reply.stored")
async def a_reply_pushed(world: World) -> None:
    """A carrier that pushes until it is answered: one reply, one opt-out, however often the gateway dies."""
    points = ("gateway.reply.storing", "gateway.reply.committing", "gateway.reply.stored")
    (mobile,) = world.numbers(1, DELIVERED)
    reply = {"receiver": "r", "pswd": "p", "moTime": "2601021530", "mobile": mobile, "msg": "TD", "destcode": "1069"}
    await send(world, world.stack, [mobile])
    async with service(world, "gateway", points[0]) as gateway:
        url = f"http://127.0.0.1:{gateway.http_port}/callbacks/chuanglan/reply"
        pushing = asyncio.create_task(push_until_taken(url, reply))
        await gateway.dies_at(*points)
        await pushing
    number = f"+86{mobile}"
    assert await world.stack.rows("select opt_out from reply where mobile = %s", number) == [(True,)]
    assert await world.stack.rows("select kind from suppression where mobile = %s", number) == [(1,)]
    await world.settled()


async def push_until_taken(url: str, params: Mapping[str, str]) -> None:
    """Push again and again, as carriers do."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(SECONDS):
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(url, params=params) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.02)


@way("worker.webhook.calling", "worker.webhook.called", "worker.webhook.removed")
async def a_brand_told(world: World) -> None:
    """Told at least once of each end, by whichever worker lives."""
    points = ("worker.webhook.calling", "worker.webhook.called", "worker.webhook.removed")
    settings: dict[str, Any] = {"webhook_http": True, "webhook_private_addresses": True, "webhook_poll_seconds": 0.05}
    async with receiver() as theirs:
        await world.stack.rows(
            "insert into webhook (brand_id, webhook_id, url, kinds, full_number, reply_text, enabled, secret,"
            " created_at, updated_at) values (%s, 'main', %s, %s, true, false, true, %s, now(), now())",
            world.brand_id,
            theirs.url,
            1 << MessageState.SENT | 1 << MessageState.DELIVERED,
            new_secret(),
        )
        mobiles = world.numbers(3, DELIVERED)
        for mobile in mobiles[:2]:
            await world.stack.send(mobile, brand_id=world.brand_id)
        for point in points:
            await world.dies("worker", point, **settings)
            # As if the time of a dead worker's turn were over.
            await world.stack.rows("update webhook_turn set until = now()")
        await world.stack.send(mobiles[2], brand_id=world.brand_id)

        async def all_told() -> bool:
            return (await world.stack.rows("select count(*) from webhook_event")) == [(0,)]

        worker = world.start("worker", **settings)
        await world.judge()
        await eventually(all_told, SECONDS)
        await worker.kill()
        ends = {(event["mobile"], event["state"]) for event in theirs.taken}
        assert ends == {(f"+86{mobile}", state) for mobile in mobiles for state in ("sent", "delivered")}


# Cost centres.


@way("costcenter.group.committing", "costcenter.group.committed")
async def a_freeze(world: World) -> None:
    """The gateway hears nothing, its caller neither; both ask again."""
    mobiles = world.numbers(1, DELIVERED)
    async with (
        service(world, "costcenter", "costcenter.group.committing") as costcenter,
        gateway_beside(world, costcenter) as target,
    ):
        calling = asyncio.create_task(answered(world, target, lambda stack: send(world, stack, mobiles)))
        await costcenter.dies_at("costcenter.group.committing", "costcenter.group.committed")
        await calling
    await world.settled()


@way("costcenter.group.committing", "costcenter.group.committed", "costcenter.group.committed:2")
async def a_payment_and_a_status(world: World) -> None:
    """The worker hears nothing of its payment, twice, then of what follows it."""
    points = ("costcenter.group.committing", "costcenter.group.committed", "costcenter.group.committed:2")
    await send(world, world.stack, world.numbers(1, DELIVERED))
    async with service(world, "costcenter", points[0]) as costcenter:
        worker = world.start("worker", costcenter_target=costcenter.target)
        await costcenter.dies_at(*points)
        await world.judge()
        await worker.kill()


@way("costcenter.release.found", "costcenter.release.applied")
async def releases_due(world: World) -> None:
    """The worker that asked for them asks again."""
    await cancel(world.stack, await send(world, world.stack, world.numbers(3, CANCELLED)))
    async with service(world, "costcenter", "costcenter.release.found") as costcenter:
        worker = world.start("worker", costcenter_target=costcenter.target)
        await costcenter.dies_at("costcenter.release.found", "costcenter.release.applied")
        await world.judge()
        await worker.kill()


@way("costcenter.due.committing", "costcenter.due.committed")
async def packages_due(world: World) -> None:
    """A package that has ended is booked once; what the brand owns beside it can be spent."""
    expires_at = Timestamp()
    expires_at.FromMilliseconds((time.time_ns() // 1_000_000) + 500)
    await world.stack.admin.AdjustPackage(
        cost_center_admin_pb2.AdjustPackageRequest(
            brand_id=world.brand_id,
            request_id="ends-soon",
            author="test",
            reason="test",
            grant=cost_center_admin_pb2.GrantAdjustment(segments=5, expires_at=expires_at),
        ),
        metadata=bearer(ADMIN),
        timeout=20,
    )
    async with service(world, "costcenter", "costcenter.due.committing") as costcenter:
        worker = world.start("worker", costcenter_target=costcenter.target)
        await costcenter.dies_at("costcenter.due.committing", "costcenter.due.committed")
        await worker.kill()
    await send(world, world.stack, world.numbers(1, DELIVERED))
    await world.settled()


@way("costcenter.cleanup.cancelled", "costcenter.cleanup.deleted")
async def a_clean_up(world: World) -> None:
    """The worker that asked for it asks again; no message is touched."""
    await send(world, world.stack, world.numbers(1, DELIVERED))
    async with service(world, "costcenter", "costcenter.cleanup.cancelled") as costcenter:
        worker = world.start("worker", costcenter_target=costcenter.target, cleanup_seconds=0.2)
        await costcenter.dies_at("costcenter.cleanup.cancelled", "costcenter.cleanup.deleted")
        await world.judge()
        await worker.kill()


# `make test` walks those on which a message goes when all is well and those of the ledger; `make test-long` the others.
OFTEN = frozenset(
    {
        "a single before its mark and after its call",
        "a single after its outcome",
        "a single between mark and call",
        "a chunk before its mark and after its call",
        "the outbox",
        "a receipt",
        "a release",
        "a single accepted",
        "a batch accepted",
        "a batch cancelled",
        "a receipt pushed",
        "a brand told",
        "a freeze",
        "a payment and a status",
    }
)
CASES = [
    pytest.param(name, point, id=f"{point}-{name}", marks=[] if name in OFTEN else [pytest.mark.long])
    for name, (points, _) in WAYS.items()
    for point in points or ("in a call",)
]


@pytest.fixture(scope="module")
def failures(
    servers: EmbeddedServers, database_template: str, tmp_path_factory: pytest.TempPathFactory, request: Any
) -> Iterator[dict[str, BaseException | None]]:
    """What the ways that are asked for failed with."""
    chosen = {
        item.callspec.params["name"]
        for item in request.session.items
        if item.module is request.module and hasattr(item, "callspec")
    }
    ways = {name: walk for name, (_, walk) in WAYS.items() if name in chosen}
    redis_urls = [servers.redis_url.replace("db=0", f"db={number}") for number in (2, 3, 4, 5)]
    folder: Path = tmp_path_factory.mktemp("crash")
    with pytest.MonkeyPatch.context() as patch:
        impatient(patch)
        forked.warm_up()
        yield asyncio.run(walk_all(ways, servers.database_url, database_template, redis_urls, folder))


@pytest.mark.parametrize(("name", "point"), CASES)
def test_a_process_killed_at_a_point_loses_and_doubles_nothing(
    name: str, point: str, failures: dict[str, BaseException | None]
) -> None:
    """It died there, and in the end all is as if it had not."""
    failure = failures[name]
    if failure is not None:
        raise failure


def test_every_point_has_its_test() -> None:
    """One that is added to the list is added to a way, and what is walked often is one."""
    assert set(WAYS) >= OFTEN
    assert {point.partition(":")[0] for points, _ in WAYS.values() for point in points} == set(POINTS)
