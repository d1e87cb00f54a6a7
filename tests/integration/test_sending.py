"""Aim: what is accepted is sent once, charged right, and ends. Method: the real cost centre and gateway, workers in
this process, the simulated carrier over HTTP, or a carrier that the test scripts where it must decide each answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import psycopg
import pytest
from gateway_harness import eventually, metric
from worker_harness import (
    BRAND,
    GRANTED,
    MARKETING,
    NOTIFICATION,
    OTHER_BRAND,
    ScriptedCarrier,
    Stack,
    numbers,
    running_stack,
)

from infra.embedded import EmbeddedServers
from protos.costcenter.v1 import cost_center_admin_pb2
from smsgateway.carriers.base import CallOutcome, SingleCall, Verdict
from smsgateway.queues import Queue, open_redis
from smsgateway.schema import MessageState, Mode


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url) as running:
        yield running


async def test_a_single_and_a_batch_get_their_receipts(stack: Stack) -> None:
    """A single message and 2,300 in chunks go all the way: sent once each, charged, delivered, nothing left over."""
    await stack.worker()
    single = await stack.send("13800138002")
    await stack.send_batch(numbers(2_300))
    assert await stack.wait_until_final(2_301) == {MessageState.DELIVERED: 2_301}
    message = await stack.message(single)
    assert message.payment_no
    assert message.carrier_message_id
    totals = stack.simulator.totals()
    assert totals["messages"] == totals["distinct_numbers"] == 2_301
    assert await stack.balance() == (GRANTED - 2_301, 0)
    assert sum(payment.segments for payment in await stack.payments()) == 2_301


async def test_a_bad_number_fails_alone(stack: Stack) -> None:
    """The carrier refuses a whole call for one bad number: halving finds it, it alone fails and is refunded."""
    await stack.worker()
    good = numbers(40)
    await stack.send_batch([*good[:13], "13800001111", *good[13:]])
    assert await stack.wait_until_final(41) == {MessageState.DELIVERED: 40, MessageState.FAILED: 1}
    ((mobile, code),) = await stack.rows("select mobile, result_code from message where state = 10")
    assert (mobile, code) == ("+8613800001111", "107")
    assert Counter(entry["mobile"] for entry in stack.simulator.entries()) == Counter(good)
    assert await stack.balance() == (GRANTED - 40, 0)
    (payment,) = await stack.payments()
    assert (payment.segments, payment.refunded) == (41, 1)


async def test_a_chunk_beyond_the_carriers_limit_is_halved_before_it_is_called(stack: Stack) -> None:
    """A carrier that takes ten numbers gets no call with more; everything is paid once."""
    carrier = ScriptedCarrier(max_batch=10)
    await stack.worker(carrier=carrier)
    await stack.send_batch(numbers(37))
    await eventually(lambda: _all_sent(stack, 37))
    assert sorted(carrier.sent) == sorted(f"+86{number}" for number in numbers(37))
    assert sum(payment.segments for payment in await stack.payments()) == 37


async def test_what_was_surely_not_accepted_is_sent_again_under_the_same_payment(stack: Stack) -> None:
    """Two refusals for now, then accepted: three calls of different ids, one payment, one message sent."""
    carrier = ScriptedCarrier()
    carrier.outcomes = [CallOutcome(Verdict.RETRY, code="103"), CallOutcome(Verdict.RETRY, code="104")]
    await stack.worker(carrier=carrier)
    message_id = await stack.send()
    await stack.wait_for_state(message_id, MessageState.SENT)
    assert [call.call_id for call in carrier.calls] == [message_id, f"{message_id}-1", f"{message_id}-2"]
    (payment,) = await stack.payments()
    assert (payment.segments, payment.refunded) == (1, 0)


async def test_a_long_wait_is_spent_in_the_queue(stack: Stack) -> None:
    """Told to come again later, a worker has its hands free meanwhile, and the message is sent after all."""
    carrier = ScriptedCarrier()
    carrier.outcomes = [CallOutcome(Verdict.RETRY, code="110", retry_after_s=0.4)]
    await stack.worker(carrier=carrier, hold_seconds=0.1)
    message_id = await stack.send()
    await eventually(lambda: _put_off(stack))
    await stack.wait_for_state(message_id, MessageState.SENT)
    assert len(carrier.calls) == 2
    (payment,) = await stack.payments()
    assert payment.segments == 1


async def test_what_is_never_accepted_fails_and_is_refunded(stack: Stack) -> None:
    """Refused for now for too long: failed with the carrier's code, nothing charged."""
    carrier = ScriptedCarrier()
    carrier.outcomes = [CallOutcome(Verdict.RETRY, code="103")] * 1_000
    await stack.worker(carrier=carrier, carrier_retry_seconds=0.3)
    message_id = await stack.send()
    message = await stack.wait_for_state(message_id, MessageState.FAILED)
    assert message.result_code == "103"
    await eventually(lambda: _balance_is(stack, GRANTED, 0))


async def test_a_stopped_account_rests_and_goes_on(stack: Stack) -> None:
    """No call while the account rests; afterwards everything is sent once, and nothing failed."""
    carrier = ScriptedCarrier()
    carrier.outcomes = [CallOutcome(Verdict.STOP_ACCOUNT, code="109")]
    await stack.worker(carrier=carrier, account_pause_seconds=0.5, carrier_retry_seconds=0)
    first = await stack.send("13800138001")
    await eventually(lambda: _called(carrier, 1))
    second = await stack.send("13800138002")
    for message_id in (first, second):
        await stack.wait_for_state(message_id, MessageState.SENT)
    assert Counter(carrier.sent) == {"+8613800138001": 2, "+8613800138002": 1}


async def test_an_unknown_outcome_is_never_sent_again_and_a_receipt_settles_it(stack: Stack) -> None:
    """The carrier takes the call and answers rubbish: one call, and its receipt decides that it was sent."""
    stack.simulator.change_settings({"garbage_rate": 1.0, "receipt_delay_ms_min": 500, "receipt_delay_ms_max": 500})
    await stack.worker(stalled_seconds=0.1)
    message_id = await stack.send()
    await stack.send_batch(numbers(5))
    await stack.wait_for_state(message_id, MessageState.UNKNOWN)
    assert await stack.wait_until_final(6) == {MessageState.DELIVERED: 6}
    assert stack.simulator.totals()["messages"] == 6
    assert await stack.balance() == (GRANTED - 6, 0)


async def test_a_refused_message_is_refunded(stack: Stack) -> None:
    """Refused for its text: failed with the carrier's code and words, refunded."""
    carrier = ScriptedCarrier()
    carrier.outcomes = [CallOutcome(Verdict.REFUSED, code="105", detail="sensitive word in the text")] * 2
    await stack.worker(carrier=carrier)
    message_id = await stack.send()
    await stack.send_batch(numbers(3))
    assert await stack.wait_until_final(4) == {MessageState.FAILED: 4}
    message = await stack.message(message_id)
    assert (message.result_code, message.result_detail) == ("105", "sensitive word in the text")
    assert await stack.balance() == (GRANTED, 0)


async def test_a_worker_that_was_stopped_cannot_send_after_another_took_over(stack: Stack, redis_url: str) -> None:
    """A stopped worker's lease ends, another takes its message over; awake again the first one calls nothing."""
    stopped, successor = ScriptedCarrier(), ScriptedCarrier()
    for carrier in (stopped, successor):
        carrier.gate.clear()
    # It does not notice that its lease is gone: it renews it every 200 s and does not look around. No sweeper helps.
    first_worker = await stack.worker(
        carrier=stopped, slots_verification=1, lease_seconds=600, walk_seconds=600, sweep_seconds=600
    )
    first = await stack.send("13800138001")
    await eventually(lambda: _called(stopped, 1))
    second = await stack.send("13800138002")
    await eventually(lambda: _claimed(stack, second))
    async with open_redis(redis_url, connections_max=1, timeout_seconds=5) as redis:
        await redis.delete(Queue(BRAND, 1, Mode.SINGLE).lease_key)
    await stack.worker(carrier=successor, sweep_seconds=600)
    await eventually(lambda: _called(successor, 1))
    stopped.gate.set()
    await stack.wait_for_state(first, MessageState.SENT)
    # Its end finds nothing in hand: what it wanted to send was not its own any more.
    await stack.stop(first_worker)
    successor.gate.set()
    await stack.wait_for_state(second, MessageState.SENT)
    assert stopped.sent == ["+8613800138001"]
    assert successor.sent == ["+8613800138002"]
    assert sorted(payment.segments for payment in await stack.payments()) == [1, 1]


async def test_a_call_that_would_start_late_does_not_start(stack: Stack) -> None:
    """A mark that took too long is taken back: the call is made after a new mark, under a new id, once."""
    carrier = ScriptedCarrier()
    carrier.gate.clear()
    await stack.worker(carrier=carrier, slots_verification=1, submit_start_seconds=0.3)
    await stack.send("13800138001")
    await eventually(lambda: _called(carrier, 1))
    second = await stack.send("13800138002")
    await eventually(lambda: _claimed(stack, second))
    async with await psycopg.AsyncConnection.connect(stack.database_url) as connection:
        await connection.execute("select from smsgateway.dispatch where dispatch_id = %s for update", (second,))
        carrier.gate.set()
        await eventually(lambda: _waits_for_lock(stack))
        await asyncio.sleep(0.4)
        await connection.rollback()
    await stack.wait_for_state(second, MessageState.SENT)
    assert [call.call_id for call in carrier.calls[1:]] == [f"{second}-1"]


async def test_a_stopping_worker_finishes_or_gives_back(stack: Stack) -> None:
    """What is in a call is finished, what is not goes back at once, for another worker to send."""
    carrier, successor = ScriptedCarrier(), ScriptedCarrier()
    carrier.gate.clear()
    worker = await stack.worker(carrier=carrier, slots_verification=1)
    ids = [await stack.send(number) for number in numbers(5)]
    await eventually(lambda: _called(carrier, 1))
    await eventually(lambda: _claimed(stack, *ids))
    stopping = asyncio.create_task(stack.stop(worker))
    await eventually(lambda: _queued(stack, 4))
    carrier.gate.set()
    await stopping
    assert len(carrier.calls) == 1
    await stack.worker(carrier=successor, walk_seconds=60, sweep_seconds=60)
    for message_id in ids:
        await stack.wait_for_state(message_id, MessageState.SENT)
    assert sorted(carrier.sent + successor.sent) == sorted(f"+86{number}" for number in numbers(5))


async def test_a_drain_has_an_end(stack: Stack) -> None:
    """A carrier that never answers does not keep a worker from stopping; the outcome of its call is unknown then."""
    carrier = ScriptedCarrier()
    carrier.gate.clear()
    worker = await stack.worker(carrier=carrier, drain_seconds=0.5)
    message_id = await stack.send()
    await eventually(lambda: _called(carrier, 1))
    async with asyncio.timeout(5):
        await stack.stop(worker)
    await stack.worker(carrier=ScriptedCarrier(timeout_s=0.1), submit_start_seconds=0.1, submit_margin_seconds=0)
    await stack.wait_for_state(message_id, MessageState.UNKNOWN)


async def test_two_workers_share_the_queues(stack: Stack) -> None:
    """Two workers send the messages of many queues; each number is called once."""
    carriers = [ScriptedCarrier(), ScriptedCarrier()]
    for carrier in carriers:
        carrier.latency_s = 0.01
        await stack.worker(carrier=carrier, leases_max=2)
    expected = []
    for sms_type in (1, 2, 3):
        for brand_id in (BRAND, OTHER_BRAND):
            some = numbers(30, first=1_000 * sms_type + brand_id)
            expected += some
            await asyncio.gather(*(stack.send(number, brand_id=brand_id, sms_type=sms_type) for number in some))
    await eventually(lambda: _all_sent(stack, len(expected)))
    sent = [mobile for carrier in carriers for mobile in carrier.sent]
    assert sorted(sent) == sorted(f"+86{number}" for number in expected)


async def test_a_backlog_delays_neither_other_types_nor_other_brands(stack: Stack) -> None:
    """Behind 300 marketing messages of one brand a code and another brand's marketing are sent within a few calls."""
    carrier = ScriptedCarrier()
    carrier.latency_s = 0.02
    backlog = numbers(300)
    await asyncio.gather(*(stack.send(number, sms_type=MARKETING) for number in backlog))
    await stack.worker(carrier=carrier, slots_marketing=2, slots_verification=2, single_window=64)
    await eventually(lambda: _called(carrier, 20))
    before = len(carrier.calls)
    await stack.send("13900000001", sms_type=MARKETING, brand_id=OTHER_BRAND)
    await stack.send("13900000002", sms_type=1)
    await stack.send("13900000003", sms_type=NOTIFICATION, brand_id=OTHER_BRAND)
    await eventually(lambda: _has_sent(carrier, "+8613900000001", "+8613900000002", "+8613900000003"))
    assert len(carrier.calls) - before < 100
    assert before < 200


async def test_many_queues_take_turns_for_few_leases(stack: Stack) -> None:
    """With one lease per worker and backlogs in three queues, none waits until another is empty."""
    carrier = ScriptedCarrier()
    carrier.latency_s = 0.01
    brands = (BRAND, OTHER_BRAND, OTHER_BRAND + 256)
    await stack.grant(brands[2])
    for brand_id in brands:
        await asyncio.gather(
            *(stack.send(number, brand_id=brand_id) for number in numbers(150, first=brand_id * 1_000))
        )
    await stack.worker(carrier=carrier, leases_max=1, slots_verification=1, single_window=8, single_quantum=4)
    await eventually(lambda: _has_calls_of(carrier, brands))
    assert len(carrier.calls) < 140


async def test_an_expired_freeze_is_frozen_once_more(database_url: str, redis_url: str) -> None:
    """A backlog older than its freeze is paid from a new one; without balance it fails, uncharged."""
    async with running_stack(database_url, redis_url, costcenter={"freeze_time_to_live_seconds": 1}) as stack:
        poor = 44
        package_id = await stack.grant(poor, 1)
        rich = await stack.send("13800138001")
        failing = await stack.send("13800138002", brand_id=poor)
        await asyncio.sleep(1.1)
        await stack.adjust(poor, claw_back=cost_center_admin_pb2.ClawBackAdjustment(package_id=package_id, segments=1))
        carrier = ScriptedCarrier()
        await stack.worker(carrier=carrier)
        await stack.wait_for_state(rich, MessageState.SENT)
        message = await stack.wait_for_state(failing, MessageState.FAILED)
        assert (message.result_code, message.payment_no) == ("INSUFFICIENT_BALANCE", "")
        assert carrier.sent == ["+8613800138001"]
        (payment,) = await stack.payments()
        assert payment.segments == 1
        assert (await stack.message(rich)).order_no == payment.order_no
        assert await stack.balance() == (GRANTED - 1, 0)
        assert await stack.payments(poor) == []


async def test_an_outage_of_the_cost_centre_delays_and_loses_nothing(stack: Stack) -> None:
    """Accepted before, sent after an outage: the payment is tried again, and what is owed stays in the outbox."""
    carrier = ScriptedCarrier()
    carrier.gate.clear()
    ids = [
        await stack.send(number, sms_type=sms_type) for number, sms_type in zip(numbers(4), (1, 1, 2, 3), strict=True)
    ]
    await stack.worker(carrier=carrier, ledger_call_seconds=0.3, ledger_attempts=2)
    await eventually(lambda: _called(carrier, 4))
    # Called and paid: what is owed now is the send status.
    await stack.costcenter.stop()
    carrier.gate.set()
    await eventually(lambda: _all_sent(stack, 4))
    await asyncio.sleep(1.5)
    assert await stack.rows("select count(*), max(attempts) from outbox") == [(4, 0)], "an outage is not a failure"
    await stack.restart_costcenter()
    await eventually(stack.quiet)
    assert [payment.status for payment in await stack.payments()] == [2] * 4
    late = await stack.send("13900000001")
    await stack.wait_for_state(late, MessageState.SENT)
    assert len(ids) + 1 == len(carrier.calls)


async def test_a_restart_of_postgresql_loses_and_doubles_nothing(stack: Stack, servers: EmbeddedServers) -> None:
    """PostgreSQL restarts under 300 messages on their way: each is called once and ends as sent."""
    carrier = ScriptedCarrier()
    carrier.latency_s = 0.02
    await asyncio.gather(*(stack.send(number) for number in numbers(300)))
    await stack.worker(carrier=carrier, slots_verification=4)
    await eventually(lambda: _called(carrier, 30))
    await servers.restart_postgres("immediate")
    await eventually(lambda: _all_sent(stack, 300), 40)
    assert Counter(carrier.sent) == Counter(f"+86{number}" for number in numbers(300))


async def test_a_lost_redis_loses_and_doubles_nothing(stack: Stack, redis_url: str) -> None:
    """Redis loses everything while messages are waiting, in hand and in calls: each is called once all the same."""
    carrier = ScriptedCarrier()
    carrier.latency_s = 0.02
    await asyncio.gather(*(stack.send(number) for number in numbers(200)))
    await stack.send_batch(numbers(50, first=1_000))
    await stack.worker(carrier=carrier, slots_verification=2, stalled_after_loss_seconds=0.1, lease_seconds=1)
    await eventually(lambda: _called(carrier, 20))
    async with open_redis(redis_url, connections_max=1, timeout_seconds=5) as redis:
        await redis.flushdb()
    await eventually(lambda: _all_sent(stack, 250), 60)
    assert Counter(carrier.sent) == Counter(f"+86{number}" for number in numbers(200) + numbers(50, first=1_000))
    assert sum(payment.segments for payment in await stack.payments()) == 250


async def test_an_error_of_ours_delays_a_message_and_harms_no_other(stack: Stack) -> None:
    """A dispatch that breaks a rule of its own is parked after some tries; others in its group are sent."""
    ids = [await stack.send(number) for number in numbers(3)]
    await stack.rows("update message set mobile = '' where message_id = %s", ids[1])
    # How often the carrier has put a message off says nothing about us.
    await stack.rows("update dispatch set attempts = 9 where dispatch_id = %s", ids[1])
    carrier = ScriptedCarrier()
    await stack.worker(carrier=carrier, dispatch_tries_max=2, hold_seconds=0, depth_seconds=0.1)
    for message_id in (ids[0], ids[2]):
        await stack.wait_for_state(message_id, MessageState.SENT)

    async def parked() -> bool:
        rows = await stack.rows("select failures, not_before = 'infinity', last_error from dispatch")
        return rows == [(2, True, "AssertionError")] and metric("smsbill_parked", what="dispatches") == 1

    await eventually(parked)
    assert len(carrier.calls) == 2


async def test_a_message_is_picked_up_at_once_without_walks(stack: Stack) -> None:
    """An idle worker learns of a message by its notice, not by looking around."""
    carrier = ScriptedCarrier()
    await stack.worker(carrier=carrier, walk_seconds=600, sweep_seconds=600)
    await stack.wait_for_state(await stack.send("13800138001"), MessageState.SENT)
    await stack.wait_for_state(await stack.send("13800138002"), MessageState.SENT, seconds=5)


async def _all_sent(stack: Stack, count: int) -> bool:
    try:
        return (await stack.states()).get(MessageState.SENT, 0) == count
    except psycopg.OperationalError:
        # PostgreSQL restarts.
        return False


async def _called(carrier: ScriptedCarrier, count: int) -> bool:
    return len(carrier.calls) >= count


async def _has_sent(carrier: ScriptedCarrier, *mobiles: str) -> bool:
    return set(mobiles) <= set(carrier.sent)


async def _has_calls_of(carrier: ScriptedCarrier, brands: tuple[int, ...]) -> bool:
    # `numbers(first=brand * 1000)` puts the brand into the number.
    texts = {call.mobile[6:9] for call in carrier.calls if isinstance(call, SingleCall)}
    return {f"{brand:03d}" for brand in brands} <= texts


async def _claimed(stack: Stack, *ids: str) -> bool:
    rows = await stack.rows("select dispatch_id from dispatch where state in (3, 4) and dispatch_id = any(%s)", [*ids])
    return len(rows) == len(ids)


async def _queued(stack: Stack, count: int) -> bool:
    return bool((await stack.rows("select count(*) from dispatch where state = 2"))[0][0] == count)


async def _put_off(stack: Stack) -> bool:
    return bool(await stack.rows("select 1 from dispatch where state = 2 and not_before > now() and payment_no <> ''"))


async def _waits_for_lock(stack: Stack) -> bool:
    return bool(await stack.rows("select 1 from pg_stat_activity where wait_event_type = 'Lock'"))


async def _balance_is(stack: Stack, total: int, frozen: int) -> bool:
    return await stack.balance() == (total, frozen)
