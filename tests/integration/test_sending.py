"""Aim: what is accepted is sent once, charged right, and ends. Method: the real cost centre and gateway, workers in this
process, the simulated carrier over HTTP, or a carrier that the test scripts where it must decide each answer."""

from __future__ import annotations

import pytest
from worker_harness import (
    BRAND,
    GRANTED,
    Stack,
    numbers,
    running_stack,
)
from smsgateway.schema import MessageState


@pytest.fixture
async def stack(database_url: str, redis_url: str):
    async with running_stack(database_url, redis_url) as running:
        yield running


async def test_a_single_and_a_batch_get_their_receipts(stack: Stack) -> None:
    """A single message and 2,300 in chunks go all the way: sent once each, charged, delivered, nothing left over."""
    await stack.worker()
    single = await stack.send("13800138002")
    await stack.send_batch(numbers(2_300))
    states = await stack.wait_until_final(2_301)
    assert states == {MessageState.DELIVERED: 2_301}
    message = await stack.message(single)
    assert message.state == MessageState.DELIVERED
    assert message.payment_no
    assert message.carrier_message_id
    totals = stack.simulator.totals()
    assert totals["messages"] == totals["distinct_numbers"] == 2_301
    assert await stack.balance() == (GRANTED - 2_301, 0)
    assert sum(payment.segments for payment in await stack.payments()) == 2_301
