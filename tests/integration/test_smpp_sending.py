"""Aim: messages go over SMPP as over any carrier: sent once, charged right, ended by their receipts. Method: the real
cost centre, gateway and a worker that chose its carrier by the settings, against an SMSC that others wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest
from smpp34_harness import Smsc34, smpp34_smsc
from worker_harness import BRAND, GRANTED, Stack, numbers, running_stack

from smsgateway.schema import MessageState


@pytest.fixture
async def smsc() -> AsyncIterator[Smsc34]:
    async with smpp34_smsc() as running:
        running.state_of = lambda event: "DELIVRD"
        yield running


@pytest.fixture
async def stack(
    database_url: str, redis_url: str, smsc: Smsc34, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stack]:
    for name, value in {
        "HOST": smsc.host,
        "PORT": str(smsc.port),
        "SYSTEM_ID": "us",
        "PASSWORD": "secret",
        "REST_SECONDS": "0.1",
        "RECEIPT_ID": "same",
    }.items():
        monkeypatch.setenv(f"SMSBILL_SMPP_{name}", value)
    async with running_stack(database_url, redis_url, carrier="smpp") as running:
        yield running


async def test_singles_and_a_batch_are_sent_once_and_delivered(stack: Stack, smsc: Smsc34) -> None:
    """A long single, a batch of 40, one of them undelivered and one a bad number: each reaches its end, is sent once
    and charged as that end says; nothing is left over.
    """
    dead, bad = "13800009998", "13800009999"
    smsc.state_of = lambda event: "UNDELIV" if event.destination_addr.endswith(dead) else "DELIVRD"
    smsc.decide = lambda event: 0x0B if event.destination_addr.endswith(bad) else 0
    await stack.worker()
    single = await stack.send("13800138002", text="【示例】" + "长" * 100)
    await stack.send_batch([*numbers(38), dead, bad])
    assert await stack.wait_until_final(41) == {
        MessageState.DELIVERED: 39,
        MessageState.UNDELIVERED: 1,
        MessageState.FAILED: 1,
    }
    message = await stack.message(single)
    assert message.carrier_message_id
    sent = Counter(event.destination_addr for event in smsc.submits)
    assert sent.pop("8613800138002") == 2
    assert set(sent.values()) == {1}
    assert len(sent) == 40
    # Two segments of the single; the bad number's is back, the undelivered one's is not, as the brand has it.
    assert await stack.balance(BRAND) == (GRANTED - 41, 0)
    assert set(smsc.receipt_statuses) == {0}


async def test_a_receipt_before_the_response_finds_its_message(stack: Stack, smsc: Smsc34) -> None:
    """The receipt comes, is stored and acknowledged before the response that tells its id: it is matched later."""
    smsc.receipt_first = True
    await stack.worker()
    single = await stack.send()
    assert await stack.wait_until_final(1) == {MessageState.DELIVERED: 1}
    assert await stack.state(single) is MessageState.DELIVERED
    assert len(smsc.submits) == 1
    assert smsc.receipt_statuses == [0]
