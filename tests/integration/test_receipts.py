"""Aim: a receipt reaches its message and the bill whenever it comes, once; none is dropped. Method: receipts pushed to
the real gateway over HTTP as the carrier does, settled by a real worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from gateway_harness import eventually, metric
from redis.asyncio import Redis
from worker_harness import GRANTED, ScriptedCarrier, Stack, numbers, running_stack

from smsgateway.carriers.base import CallOutcome, Verdict
from smsgateway.queues import open_redis
from smsgateway.schema import MessageState

MOBILE = "13800138001"


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url) as running:
        yield running


async def sent(stack: Stack, mobile: str = MOBILE, **changes: Any) -> str:
    """A message that the carrier took."""
    message_id = await stack.send(mobile, **changes)
    await stack.wait_for_state(message_id, MessageState.SENT)
    return message_id


async def test_receipts_that_come_twice_count_once(stack: Stack) -> None:
    """Every receipt doubled: each message is delivered once, no inbox row is left, the bill stands."""
    stack.simulator.change_settings({"receipt_double": 1.0})
    await stack.worker()
    await stack.send()
    await stack.send_batch(numbers(200))
    states = await stack.wait_until_final(201)
    assert states == {MessageState.DELIVERED: 201}
    await eventually(lambda: _acknowledged(stack, 402))
    await eventually(stack.quiet)
    assert await stack.balance() == (GRANTED - 201, 0)


async def test_the_first_final_receipt_stays(stack: Stack) -> None:
    """A failure after a delivery changes nothing, nor does a delivery after a failure; both are reported."""
    repeated = metric("smsbill_receipts_settled_total", account="chuanglan", result="repeated")
    await stack.worker(carrier=ScriptedCarrier())
    first, second = await sent(stack, "13800138001"), await sent(stack, "13800138002")
    await stack.push_receipt(call_id=first, mobile="13800138001", status="DELIVRD")
    await stack.push_receipt(call_id=second, mobile="13800138002", status="UNDELIV")
    await stack.wait_for_state(first, MessageState.DELIVERED)
    await stack.wait_for_state(second, MessageState.UNDELIVERED)
    await stack.push_receipt(call_id=first, mobile="13800138001", status="MK:0001")
    await stack.push_receipt(call_id=second, mobile="13800138002", status="DELIVRD")
    await eventually(stack.quiet)
    assert await stack.state(first) == MessageState.DELIVERED
    assert await stack.state(second) == MessageState.UNDELIVERED
    assert (await stack.message(second)).result_code == "UNDELIV"
    assert metric("smsbill_receipts_settled_total", account="chuanglan", result="repeated") == repeated + 2


async def test_other_segments_than_ours_are_told_once_per_message(stack: Stack) -> None:
    """The carrier bills more for one message, fewer for another, the same or nothing told for two: two are told, once
    each although their receipts come twice, without the number.
    """
    more = metric("smsbill_billed_otherwise_total", account="chuanglan", billed="more")
    fewer = metric("smsbill_billed_otherwise_total", account="chuanglan", billed="fewer")
    await stack.worker(carrier=ScriptedCarrier())
    mobiles = numbers(4)
    ids = [await sent(stack, mobile) for mobile in mobiles[:3]]
    ids.append(await sent(stack, mobiles[3], text="【示例】" + "长" * 70))
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            for call_id, mobile, length in zip(ids, mobiles, ("2", "1", "", "1"), strict=True):
                await stack.push_receipt(call_id=call_id, mobile=mobile, length=length)
            await eventually(stack.quiet)
    assert metric("smsbill_billed_otherwise_total", account="chuanglan", billed="more") == more + 1
    assert metric("smsbill_billed_otherwise_total", account="chuanglan", billed="fewer") == fewer + 1
    told = [entry for entry in logs if entry["event"] == "carrier bills other segments"]
    assert {(entry["message_id"], entry["ours"], entry["theirs"]) for entry in told} == {(ids[0], 1, 2), (ids[3], 2, 1)}
    assert len(told) == 2
    assert not any(mobile in str(told) for mobile in mobiles)


async def test_an_undelivered_message_is_refunded_where_the_brand_says_so(stack: Stack) -> None:
    """With refund_undelivered on a final failure gives the segments back; one not final gives nothing."""
    await stack.grant(44, 100, refund_undelivered=True)
    await stack.worker(carrier=ScriptedCarrier())
    message_id = await sent(stack, brand_id=44)
    await stack.push_receipt(call_id=message_id, mobile=MOBILE, status="UNKNOWN")
    await eventually(stack.quiet)
    assert await stack.state(message_id) == MessageState.SENT
    assert await stack.balance(44) == (99, 0)
    await stack.push_receipt(call_id=message_id, mobile=MOBILE, status="REJECTD")
    await stack.wait_for_state(message_id, MessageState.UNDELIVERED)
    await eventually(stack.quiet)
    assert await stack.balance(44) == (100, 0)


async def test_a_receipt_is_matched_by_the_carriers_id_when_it_lacks_ours(stack: Stack) -> None:
    """Without our call id the carrier's id and the number find the message."""
    await stack.worker(carrier=ScriptedCarrier())
    message_id = await sent(stack)
    await stack.push_receipt(call_id="", mobile=MOBILE, carrier_id=f"m-{message_id}")
    await stack.wait_for_state(message_id, MessageState.DELIVERED)


async def test_a_receipt_that_overtakes_the_answer_decides_a_single_message(stack: Stack) -> None:
    """The receipt comes while the call is under way: sent and delivered; the answer afterwards changes nothing."""
    carrier = ScriptedCarrier()
    carrier.gate.clear()
    worker = await stack.worker(carrier=carrier)
    message_id = await stack.send()
    await eventually(lambda: _called(carrier))
    await stack.push_receipt(call_id=message_id, mobile=MOBILE, carrier_id="m-early")
    message = await stack.wait_for_state(message_id, MessageState.DELIVERED)
    assert message.carrier_message_id == "m-early"
    carrier.outcomes = [CallOutcome(Verdict.REFUSED, code="105")]
    carrier.gate.set()
    await stack.stop(worker)
    assert await stack.state(message_id) == MessageState.DELIVERED
    await stack.worker(carrier=carrier)
    await eventually(stack.quiet)
    assert await stack.balance() == (GRANTED - 1, 0)


async def test_a_receipt_that_overtakes_a_batchs_answer_waits_for_it(stack: Stack) -> None:
    """The answer to a batch may say how many failed, so a receipt that comes first is put off, not lost."""
    carrier = ScriptedCarrier()
    carrier.gate.clear()
    carrier.outcomes = [CallOutcome(Verdict.ACCEPTED, carrier_message_id="m1", code="0", failed_count=1)]
    await stack.worker(carrier=carrier)
    mobiles = numbers(3)
    await stack.send_batch(mobiles)
    await eventually(lambda: _called(carrier))
    await stack.push_receipt(call_id=carrier.calls[0].call_id, mobile=mobiles[0])
    await eventually(lambda: _put_off(stack))
    assert await stack.states() == {MessageState.QUEUED: 3}
    carrier.gate.set()
    await eventually(lambda: _delivered(stack, 1))
    assert await stack.rows("select state, failed_count from dispatch") == [(6, 1)]


async def test_an_early_receipt_is_matched_later(stack: Stack) -> None:
    """A receipt that nothing is known for yet is put off and settled when its call has become known."""
    await stack.worker(carrier=ScriptedCarrier())
    await stack.push_receipt(call_id="", mobile=MOBILE, carrier_id="m-later")
    await eventually(lambda: _put_off(stack))
    message_id = await sent(stack)
    await stack.rows(
        "insert into route select account, 'm-later', brand_id, dispatch_id, now() from route where reference = %s",
        f"m-{message_id}",
    )
    await stack.wait_for_state(message_id, MessageState.DELIVERED)
    await eventually(stack.quiet)


async def test_a_receipt_that_nobody_knows_is_parked_not_dropped(stack: Stack) -> None:
    """After its time an unmatched receipt waits for an operator, with the reason, and is counted."""
    await stack.worker(carrier=ScriptedCarrier(), receipt_hours=1, depth_seconds=0.1)
    await stack.push_receipt(call_id="nobody", mobile=MOBILE, carrier_id="m-unknown")
    await eventually(lambda: _put_off(stack))
    await stack.rows("update receipt_inbox set received_at = now() - interval '2 hours', next_at = now()")
    await eventually(lambda: _parked(stack))
    ((attempts, error),) = await stack.rows("select attempts, last_error from receipt_inbox")
    assert attempts >= 2
    assert error == "no call is known by its ids"

    async def counted() -> bool:
        return metric("smsbill_parked", what="receipts") == 1

    await eventually(counted)


async def test_receipts_outlast_an_outage_of_the_cost_centre(stack: Stack) -> None:
    """Receipts that cannot be reported stay and are settled when the cost centre is back."""
    await stack.worker(carrier=ScriptedCarrier(), ledger_call_seconds=0.2, ledger_attempts=1)
    message_id = await sent(stack)
    await stack.stop_costcenter()
    await stack.push_receipt(call_id=message_id, mobile=MOBILE)
    await eventually(lambda: _put_off(stack))
    await stack.restart_costcenter()
    await stack.wait_for_state(message_id, MessageState.DELIVERED)
    await eventually(stack.quiet)


async def test_receipts_that_redis_lost_are_queued_again(stack: Stack, redis_url: str) -> None:
    """A receipt that is stored but not queued is found by its record."""
    carrier = ScriptedCarrier()
    worker = await stack.worker(carrier=carrier)
    message_id = await sent(stack)
    await stack.stop(worker)
    await stack.push_receipt(call_id=message_id, mobile=MOBILE)
    await stack.rows("update receipt_inbox set next_at = now()")
    async with _redis(redis_url) as redis:
        await redis.flushdb()
    await stack.worker(carrier=carrier)
    await stack.wait_for_state(message_id, MessageState.DELIVERED)


async def test_receipts_of_a_dead_worker_are_taken_over(stack: Stack, redis_url: str) -> None:
    """What a worker had read and not settled another takes over, long before its record is due again."""
    carrier = ScriptedCarrier()
    worker = await stack.worker(carrier=carrier)
    message_id = await sent(stack)
    await stack.stop(worker)
    await stack.push_receipt(call_id=message_id, mobile=MOBILE)
    async with _redis(redis_url) as redis:
        await asyncio.gather(
            *(redis.xreadgroup("receipts", "dead", {f"receipts:{{{number}}}": ">"}) for number in range(4))
        )
    await stack.worker(carrier=carrier, receipt_takeover_seconds=0.3)
    await stack.wait_for_state(message_id, MessageState.DELIVERED)


async def test_a_receipt_that_breaks_a_rule_harms_no_other(stack: Stack) -> None:
    """One receipt whose record the database refuses to settle is put off alone."""
    await stack.worker(carrier=ScriptedCarrier())
    ids = [await sent(stack, number) for number in numbers(2)]
    await stack.rows(
        "alter table message add constraint no_bad check (result_code is distinct from 'MK:0666') not valid"
    )
    await asyncio.gather(
        stack.push_receipt(call_id=ids[0], mobile=numbers(2)[0], status="MK:0666"),
        stack.push_receipt(call_id=ids[1], mobile=numbers(2)[1], status="DELIVRD"),
    )
    await stack.wait_for_state(ids[1], MessageState.DELIVERED)
    await eventually(lambda: _put_off(stack))
    assert await stack.state(ids[0]) == MessageState.SENT


def _redis(url: str) -> Redis:
    return open_redis(url, connections_max=4, timeout_seconds=5)


async def _called(carrier: ScriptedCarrier) -> bool:
    return bool(carrier.calls)


async def _put_off(stack: Stack) -> bool:
    return bool(await stack.rows("select 1 from receipt_inbox where attempts > 0"))


async def _parked(stack: Stack) -> bool:
    return bool(await stack.rows("select 1 from receipt_inbox where next_at is null"))


async def _delivered(stack: Stack, count: int) -> bool:
    return (await stack.states()).get(MessageState.DELIVERED, 0) == count


async def _acknowledged(stack: Stack, count: int) -> bool:
    return int(stack.simulator.totals()["receipts"]["acknowledged"]) == count
