"""Aim: what the carrier could not push is pulled, once and never lost on our side, and decides unknown outcomes before
time does. Method: the real simulator over HTTP, whose pushes are lost on request, and real workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from gateway_harness import eventually, metric
from worker_harness import GRANTED, ScriptedCarrier, Stack, numbers, running_stack

from smsgateway.carriers.base import (
    CallOutcome,
    CarrierLimits,
    CarrierReceipt,
    PulledReceipts,
    ReceiptState,
    Verdict,
)
from smsgateway.schema import MessageState

MOBILE = "13800138001"
SOON_HOURS = 0.3 / 3_600
QUICK_PULL: dict[str, Any] = {"receipt_pull_seconds": 0.1, "reply_pull": False}


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url, simulator={"push_loss": 1.0}) as running:
        yield running


async def test_a_pulled_receipt_settles_an_unknown_outcome(stack: Stack) -> None:
    """The carrier answers rubbish and no push arrives: pulled receipts match by our call id; nothing is sent again."""
    stack.simulator.change_settings({"garbage_rate": 1.0})
    await stack.worker(**QUICK_PULL)
    await stack.send()
    await stack.send_batch(numbers(5))
    assert await stack.wait_until_final(6) == {MessageState.DELIVERED: 6}
    assert stack.simulator.totals()["messages"] == 6
    assert stack.simulator.totals()["receipts"]["pulled"] == 6
    assert await stack.balance() == (GRANTED - 6, 0)


async def test_many_are_pulled_in_pages_by_one_worker_at_a_time(stack: Stack) -> None:
    """Two workers, pages of twenty, one receipt pushed as well: each message is settled once, no page waits long."""
    repeated = metric("smsbill_receipts_settled_total", account="chuanglan", result="repeated")
    for _ in range(2):
        await stack.worker(**QUICK_PULL, receipt_pull_count=20)
    await stack.send_batch(numbers(150))
    assert await stack.wait_until_final(150) == {MessageState.DELIVERED: 150}
    (call_id,) = {entry["uid"] for entry in stack.simulator.entries()}
    await stack.push_receipt(call_id=call_id, mobile=numbers(1)[0])
    await eventually(stack.quiet)
    assert metric("smsbill_receipts_settled_total", account="chuanglan", result="repeated") == repeated + 1
    assert stack.simulator.totals()["receipts"]["pulled"] == 150
    ((rows,),) = await stack.rows("select count(*) from receipt_pull where until > started_at")
    assert rows == 1


async def test_an_unknown_outcome_waits_for_a_pull_and_no_longer_than_its_limit(stack: Stack) -> None:
    """Its time is over while the carrier refuses pulls: it stays until one succeeds; without one the limit ends it."""
    stack.simulator.change_settings({"garbage_rate": 1.0, "pull_error_rate": 1.0})
    worker = await stack.worker(**QUICK_PULL, outcome_hours=SOON_HOURS)
    message_id = await stack.send()
    await eventually(lambda: _is_due(stack))
    before = metric("smsbill_sweeps_total", sweeper="undecided", result="nothing")
    await eventually(lambda: _more_sweeps(before, 2))
    assert await stack.state(message_id) == MessageState.UNKNOWN
    stack.simulator.change_settings({"pull_error_rate": 0.0})
    await stack.wait_for_state(message_id, MessageState.DELIVERED)
    await stack.stop(worker)

    stack.simulator.change_settings({"pull_error_rate": 1.0})
    await stack.worker(**QUICK_PULL, outcome_hours=SOON_HOURS, receipt_pull_wait_hours=SOON_HOURS)
    other = await stack.send("13800138002")
    message = await stack.wait_for_state(other, MessageState.FAILED)
    assert message.result_code == "OUTCOME_UNKNOWN"


async def test_an_empty_pull_lets_time_decide(stack: Stack) -> None:
    """No receipt anywhere: the first pull after the time that leaves nothing settles it, long before the limit."""
    stack.simulator.change_settings({"garbage_rate": 1.0, "receipt_loss": 1.0})
    await stack.worker(**QUICK_PULL, outcome_hours=SOON_HOURS)
    message_id = await stack.send()
    await stack.wait_for_state(message_id, MessageState.FAILED)
    ((pulled,),) = await stack.rows(
        "select emptied_at >= finished_at - interval '5 s' and emptied_at > submitted_at + interval '0.3 s'"
        " from receipt_pull, message"
    )
    assert pulled


async def test_what_cannot_be_stored_is_kept_and_nothing_more_is_asked_for(stack: Stack) -> None:
    """While the inbox takes nothing one page stays in hand; afterwards it is stored and the rest is pulled."""
    await stack.rows("alter table receipt_inbox add constraint closed check (false) not valid")
    failures = metric("smsbill_loop_failures_total", loop="receipt-pull")
    await stack.worker(**QUICK_PULL, receipt_pull_count=20)
    await stack.send_batch(numbers(50))
    await eventually(lambda: _more_failures(failures, 3))
    assert stack.simulator.totals()["receipts"]["pulled"] <= 20
    await stack.rows("alter table receipt_inbox drop constraint closed")
    assert await stack.wait_until_final(50) == {MessageState.DELIVERED: 50}


class _SlowToGive(ScriptedCarrier):
    """A carrier whose calls end unknown and whose only pull is answered when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self._limits = CarrierLimits(max_text_characters=536, max_batch=1_000, call_timeout_s=1.0, max_pull=100)
        self.outcomes = [CallOutcome(Verdict.UNKNOWN)]
        self.asked = asyncio.Event()
        self.given = asyncio.Event()

    async def pull_receipts(self, count: int) -> PulledReceipts:
        if self.asked.is_set() or not self.calls:
            return PulledReceipts((), (), more=False)
        self.asked.set()
        await self.given.wait()
        now, call_id = datetime.now(UTC), self.calls[0].call_id
        receipt = CarrierReceipt(
            self.account_id, "m1", call_id, f"+86{MOBILE}", ReceiptState.DELIVERED, "DELIVRD", "", now, None, None
        )
        return PulledReceipts((receipt,), (), more=False)


async def test_a_stop_waits_for_the_answer_of_a_pull(stack: Stack) -> None:
    """The loop is cancelled while the carrier answers: what it gives is stored all the same, and counts later."""
    carrier = _SlowToGive()
    worker = await stack.worker(carrier=carrier, **QUICK_PULL, drain_seconds=2)
    message_id = await stack.send()
    await asyncio.wait_for(carrier.asked.wait(), 10)
    stopping = asyncio.create_task(stack.stop(worker))
    pull = next(task for task in asyncio.all_tasks() if task.get_name() == "receipt-pull")
    await asyncio.wait({pull}, timeout=10)
    assert pull.cancelled()
    carrier.given.set()
    await stopping
    assert len(await stack.rows("select 1 from receipt_inbox")) == 1
    await stack.worker(carrier=carrier)
    await stack.wait_for_state(message_id, MessageState.DELIVERED)


async def _is_due(stack: Stack) -> bool:
    return bool(await stack.rows("select 1 from dispatch where state = 5 and changed_at < now() - interval '0.3 s'"))


async def _more_sweeps(before: float, more: int) -> bool:
    return metric("smsbill_sweeps_total", sweeper="undecided", result="nothing") >= before + more


async def _more_failures(before: float, more: int) -> bool:
    return metric("smsbill_loop_failures_total", loop="receipt-pull") >= before + more
