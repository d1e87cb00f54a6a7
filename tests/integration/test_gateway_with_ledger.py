"""The gateway beside the real cost centre: what is accepted is what is frozen, by the same ids."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from gateway_harness import BRAND, OTHER_BRAND, Gateway, abandoned_calls, numbers, running_gateway
from ledger_harness import Ledger

from infra.authorization import Role
from protos.costcenter.v1 import cost_center_admin_pb2

pytestmark = pytest.mark.timeout(60)


async def test_messages_and_batches_freeze_what_they_cost(
    costcenter: Ledger, database_url: str, redis_url: str
) -> None:
    """Singles and a batch are frozen under their own ids, to the segment; the reply names the freeze."""
    await costcenter.create_brand(BRAND, 1_000)
    sender = await costcenter.create_token([Role.SENDER], [BRAND])
    async with running_gateway(costcenter, database_url, redis_url) as gateway:
        singles = await asyncio.gather(
            *(gateway.send(token=sender, request_id=f"r{n}", text="字" * 71) for n in range(50))
        )
        batch = await gateway.send_batch(numbers(300), token=sender)
        assert await costcenter.balance(BRAND) == (1_000, 400)
        for reply in singles[:3]:
            freeze = await costcenter.freeze(reply.order_no)
            assert (freeze.request_id, freeze.segments, freeze.sms_type) == (reply.message_id, 2, 1)
        freeze = await costcenter.freeze(batch.order_no)
        assert (freeze.request_id, freeze.segments, freeze.sms_type) == (batch.batch_id, 300, 3)
        assert await gateway.send(token=sender, request_id="r0", text="字" * 71) == singles[0]
        assert await gateway.send_batch(numbers(300), token=sender) == batch
        assert await costcenter.balance(BRAND) == (1_000, 400)


async def test_refusals_come_through(costcenter: Ledger, database_url: str, redis_url: str) -> None:
    """No balance, a suspended brand and an unknown one: the cost centre's reasons, and no rows."""
    await costcenter.create_brand(BRAND, 1)
    await costcenter.create_brand(OTHER_BRAND, 5, status=cost_center_admin_pb2.BRAND_STATUS_SUSPENDED)
    sender = await costcenter.create_token([Role.SENDER])
    async with running_gateway(costcenter, database_url, redis_url) as gateway:
        expected = [(BRAND, "INSUFFICIENT_BALANCE"), (OTHER_BRAND, "BRAND_SUSPENDED"), (9, "BRAND_NOT_FOUND")]
        for brand_id, reason in expected:
            for call in (
                gateway.send(token=sender, brand_id=brand_id, text="字" * 71),
                gateway.send_batch(numbers(2), token=sender, brand_id=brand_id),
            ):
                refusal = await gateway.refusal(call)
                assert refusal.reason == reason
                assert refusal.code in {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND}
        assert await gateway.counts() == (0, 0, 0, 0, 0)
        assert await costcenter.balance(BRAND) == (1, 0)


async def test_group_larger_than_the_balance(costcenter: Ledger, database_url: str, redis_url: str) -> None:
    """A hundred at once against a balance of forty: forty accepted, sixty refused, nothing left over."""
    await costcenter.create_brand(BRAND, 40)
    sender = await costcenter.create_token([Role.SENDER], [BRAND])
    async with running_gateway(costcenter, database_url, redis_url) as gateway:
        results = await asyncio.gather(
            *(gateway.send(token=sender, request_id=f"r{n}") for n in range(100)), return_exceptions=True
        )
        accepted = [result for result in results if not isinstance(result, BaseException)]
        assert len(accepted) == 40
        assert await costcenter.balance(BRAND) == (40, 40)
        assert await gateway.counts() == (40, 40, 0, 40, 0)


async def test_gateway_that_died_after_the_freeze(costcenter: Ledger, database_url: str, redis_url: str) -> None:
    """A message frozen but not recorded so is finished by the sweeper with the same freeze; a batch is released."""
    await costcenter.create_brand(BRAND, 100)
    sender = await costcenter.create_token([Role.SENDER], [BRAND])
    async with running_gateway(costcenter, database_url, redis_url) as gateway:
        single = await gateway.send(token=sender)
        batch = await gateway.send_batch(numbers(10), token=sender)
        await _forget_what_came_after_the_freeze(gateway)
        async with abandoned_calls(gateway, accepting_seconds=0.001) as calls:
            assert await calls.finish_messages(10) == 1
            assert await calls.undo_batches(10) == 1
        assert (await gateway.message(single.message_id, token=sender)).order_no == single.order_no
        assert await costcenter.balance(BRAND) == (100, 11)
        ((payload,),) = await gateway.rows("select payload from outbox")
        assert batch.order_no.encode() in payload


async def _forget_what_came_after_the_freeze(gateway: Gateway) -> None:
    await gateway.rows("update dispatch set state = 1, order_no = null where batch_id is null")
    await gateway.rows("update message set order_no = null where batch_id is null")
    await gateway.rows("delete from message where batch_id is not null")
    await gateway.rows("delete from dispatch where batch_id is not null")
    await gateway.rows("update batch set accepted_at = null, order_no = null")
    await gateway.rows("update request_key set reply = null")
