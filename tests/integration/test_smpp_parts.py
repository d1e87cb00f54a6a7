"""Aim: a text in several parts is delivered when all are and undelivered when one finally is not, is charged as a whole
or not at all, and no part goes twice. Method: the real cost centre, gateway and worker against an SMSC that others
wrote, whose receipts each test sends itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import smpp34
from gateway_harness import eventually
from smpp34_harness import Smsc34, smpp34_smsc
from worker_harness import GRANTED, Stack, running_stack

from smsgateway.schema import MessageState
from workers.metrics import RECEIPTS
from workers.sweepers import NO_OUTCOME

THREE_PARTS = "长" * 150


@pytest.fixture
async def smsc() -> AsyncIterator[Smsc34]:
    async with smpp34_smsc() as running:
        yield running


@pytest.fixture
async def stack(
    database_url: str, redis_url: str, smsc: Smsc34, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stack]:
    settings = {"HOST": smsc.host, "PORT": str(smsc.port), "SYSTEM_ID": "us", "PASSWORD": "secret"}
    settings |= {"REST_SECONDS": "0.1", "CONNECT_SECONDS": "1", "RESPONSE_SECONDS": "1", "CALL_SECONDS": "3"}
    for name, value in settings.items():
        monkeypatch.setenv(f"SMSBILL_SMPP_{name}", value)
    async with running_stack(database_url, redis_url, carrier="smpp") as running:
        yield running


def part_of(event: smpp34.SubmitSmEvent) -> int:
    """Which part it is, as its header says."""
    return int(event.short_message[5])


def parts_told() -> float:
    """Receipts that by themselves decided nothing."""
    samples = (sample for family in RECEIPTS.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.labels["result"] == "part")


async def sent_in_parts(stack: Stack, smsc: Smsc34, **changes: Any) -> str:
    """A message whose three parts were taken."""
    message_id = await stack.send(text=THREE_PARTS, **changes)
    message = await stack.wait_for_state(message_id, MessageState.SENT)
    assert message.carrier_message_id == "1 2 3"
    assert [part_of(event) for event in smsc.submits] == [1, 2, 3]
    return message_id


async def tell(stack: Stack, smsc: Smsc34, *receipts: tuple[int, str]) -> None:
    """Send receipts (part, state), one after another, each looked at before the next comes."""

    async def looked_at() -> bool:
        return await stack.rows("select 1 from receipt_inbox") == []

    for part, state in receipts:
        await smsc.receipt(smsc.submits[part - 1], f"{part:08X}", state)
        await eventually(looked_at)


async def test_delivered_when_all_parts_are(stack: Stack, smsc: Smsc34) -> None:
    """A receipt of part 1 that comes three times is none of the others; the last part's makes it delivered, whichever
    it is; what comes after changes nothing.
    """
    await stack.worker()
    message_id = await sent_in_parts(stack, smsc)
    before = parts_told()
    # Of one part the first final receipt stays.
    await tell(stack, smsc, (1, "DELIVRD"), (1, "DELIVRD"), (3, "DELIVRD"), (2, "ENROUTE"), (1, "UNDELIV"))
    assert await stack.state(message_id) is MessageState.SENT
    assert parts_told() - before == 5
    await tell(stack, smsc, (2, "DELIVRD"))
    assert await stack.state(message_id) is MessageState.DELIVERED
    await tell(stack, smsc, (1, "UNDELIV"), (2, "DELIVRD"))
    assert await stack.state(message_id) is MessageState.DELIVERED
    assert await stack.balance() == (GRANTED - 3, 0)
    assert set(smsc.receipt_statuses) == {0}


@pytest.mark.parametrize(
    ("refunds", "word", "state"),
    [(False, "UNDELIV", MessageState.UNDELIVERED), (True, "EXPIRED", MessageState.EXPIRED)],
)
async def test_undelivered_when_one_part_is(
    stack: Stack, smsc: Smsc34, refunds: bool, word: str, state: MessageState
) -> None:
    """The first part that finally failed decides, whatever comes of the others; the whole goes back where the brand
    says so, once.
    """
    await stack.grant(44, 3, refund_undelivered=refunds)
    await stack.worker()
    message_id = await sent_in_parts(stack, smsc, brand_id=44)
    await tell(stack, smsc, (1, "DELIVRD"), (2, word))
    assert await stack.state(message_id) is state
    await tell(stack, smsc, (2, word), (3, "UNDELIV"), (3, "DELIVRD"))
    assert await stack.wait_until_final(1) == {state: 1}
    assert await stack.balance(44) == (3 if refunds else 0, 0)


async def test_receipts_of_parts_that_come_together(stack: Stack, smsc: Smsc34) -> None:
    """All at once, to two workers with sessions of their own, for ten messages: none is missed between two of them."""
    smsc.state_of = lambda event: "DELIVRD"
    await stack.worker()
    await stack.worker()
    for number in range(10):
        await stack.send(f"138001380{number:02}", text=THREE_PARTS)
    assert await stack.wait_until_final(10) == {MessageState.DELIVERED: 10}
    assert len(smsc.submits) == 30


async def test_a_message_of_which_a_part_is_refused_has_failed(stack: Stack, smsc: Smsc34) -> None:
    """Surely not sent as a whole: refunded at once, nothing is sent again, and receipts of the part that was taken
    neither wait for ever nor change that.
    """
    smsc.decide = lambda event: 0x0B if part_of(event) == 2 else 0
    await stack.worker()
    message_id = await stack.send(text=THREE_PARTS)
    message = await stack.wait_for_state(message_id, MessageState.FAILED)
    assert message.result_code == "11"
    await tell(stack, smsc, (1, "DELIVRD"), (1, "UNDELIV"))
    assert await stack.wait_until_final(1) == {MessageState.FAILED: 1}
    assert await stack.balance() == (GRANTED, 0)
    assert [part_of(event) for event in smsc.submits] == [1, 2]


async def test_a_last_part_without_an_answer_leaves_it_unknown(stack: Stack, smsc: Smsc34) -> None:
    """Receipts of the others decide nothing and are kept in mind; time does, and then it is refunded."""
    smsc.decide = lambda event: None if part_of(event) == 3 else 0
    worker = await stack.worker()
    message_id = await stack.send(text=THREE_PARTS)
    await stack.wait_for_state(message_id, MessageState.UNKNOWN)
    await tell(stack, smsc, (1, "DELIVRD"), (2, "UNDELIV"))
    assert await stack.state(message_id) is MessageState.UNKNOWN
    await stack.stop(worker)
    await stack.worker(outcome_hours=1 / 3_600)
    message = await stack.wait_for_state(message_id, MessageState.FAILED)
    assert message.result_code == NO_OUTCOME
    await stack.wait_until_final(1)
    assert await stack.balance() == (GRANTED, 0)
    assert [part_of(event) for event in smsc.submits] == [1, 2, 3]
