"""Aim: who follows a batch hears of every end, once while its call lasts, in any order of events, and until the end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from worker_harness import ADMIN, BRAND, Stack, numbers, running_stack

from infra.grpc_server import bearer
from infra.grpc_status import from_error
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.smsgateway.v1 import sms_gateway_pb2 as pb

_MESSAGES = 1_200
# Ends of numbers that the simulator treats as told below.
UNDELIVERED = pb.MESSAGE_STATE_UNDELIVERED
DELIVERED = pb.MESSAGE_STATE_DELIVERED


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url, follow_seconds=0.05, followers_max=1) as running:
        yield running


def follow(stack: Stack, batch_id: str, *, token: str = ADMIN, timeout: float = 60, **fields: Any) -> Any:
    request = pb.FollowBatchRequest(batch_id=batch_id, **fields)
    return stack.sms.FollowBatch(request, metadata=bearer(token), timeout=timeout)


async def test_a_follower_hears_of_every_end_once(stack: Stack) -> None:
    """More than a page of messages, some undelivered; counts add up; a call that broke goes on by its token."""
    mobiles = numbers(_MESSAGES - 5) + [f"137000{number}0000" for number in range(5)]
    batch_id = await stack.send_batch(mobiles)
    call = follow(stack, batch_id, with_messages=True)
    replies = aiter(call)
    first = await anext(replies)
    assert (first.accepted, first.done, first.resume_token) == (_MESSAGES, False, "")
    assert [(each.state, each.messages) for each in first.states] == [(pb.MESSAGE_STATE_QUEUED, _MESSAGES)]
    await stack.worker()
    ends: list[Any] = []
    token, last = "", first
    async for reply in replies:
        ends += reply.ends
        token, last = reply.resume_token, reply
    assert (last.done, sum(each.messages for each in last.states)) == (True, _MESSAGES)
    assert Counter(end.state for end in ends) == {DELIVERED: _MESSAGES - 5, UNDELIVERED: 5}
    assert len({end.message_id for end in ends}) == _MESSAGES
    assert {end.mobile for end in ends} == {f"+86{mobile}" for mobile in mobiles}
    assert all(end.finished_at.seconds and end.segments == 1 for end in ends)

    again = [reply async for reply in follow(stack, batch_id, with_messages=True, resume_token=token)]
    assert ([len(reply.ends) for reply in again], again[-1].done) == ([0], True)
    counts = [reply async for reply in follow(stack, batch_id)]
    assert [len(reply.ends) for reply in counts] == [0]
    half = [reply async for reply in follow(stack, batch_id, with_messages=True) if not reply.done]
    resumed = [reply async for reply in follow(stack, batch_id, with_messages=True, resume_token=half[0].resume_token)]
    told = {end.message_id for reply in (half[0], *resumed) for end in reply.ends}
    assert len(told) == _MESSAGES


async def test_followers_are_few_and_end_with_their_caller_and_with_the_service(stack: Stack) -> None:
    """Beyond the limit RESOURCE_EXHAUSTED; a deadline or a cancelled call frees a place; a stop ends all; refusals."""
    batch_id = await stack.send_batch(numbers(3))
    token = await stack.admin.CreateToken(
        admin_pb.CreateTokenRequest(name="v", roles=[admin_pb.ROLE_VIEWER], brand_ids=[BRAND + 1]),
        metadata=bearer(ADMIN),
        timeout=20,
    )
    for call, reason in (
        (follow(stack, "nothing"), "BATCH_NOT_FOUND"),
        (follow(stack, await stack.send("13800138009")), "BATCH_NOT_FOUND"),
        (follow(stack, batch_id, resume_token="rubbish"), "BAD_REQUEST"),
        (follow(stack, batch_id, token=token.secret), "BRAND_NOT_ALLOWED"),
        (follow(stack, batch_id, token="x"), "UNAUTHENTICATED"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert from_error(caught.value).reason == reason
    call = follow(stack, batch_id)
    await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await follow(stack, batch_id).read()
    assert from_error(caught.value).reason == "OVERLOADED"
    call.cancel()
    late = await _admitted(stack, batch_id, timeout=3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await late.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    last = await _admitted(stack, batch_id)
    stopping = asyncio.create_task(stack.gateway.stop())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(last.read(), 4)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await asyncio.wait_for(stopping, 20)


async def _admitted(stack: Stack, batch_id: str, timeout: float = 60) -> Any:
    """A call that has a place and its first reply: a place is free a moment after its caller is gone."""
    async with asyncio.timeout(20):
        while True:
            call = follow(stack, batch_id, timeout=timeout)
            try:
                await call.read()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                await asyncio.sleep(0.02)
            else:
                return call
