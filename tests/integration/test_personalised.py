"""Aim: each recipient of a text with variables gets the text with its own values, counted, charged and sent once.
Method: the real cost centre, gateway and workers; the simulated carrier's record, or a carrier that the test scripts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from gateway_harness import SECONDS, eventually
from worker_harness import ADMIN, BRAND, GRANTED, MARKETING, ScriptedCarrier, Stack, numbers, running_stack

from infra.grpc_server import bearer
from infra.grpc_status import from_error
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill.carrier_simulator import text_hash
from smsgateway.carriers.base import BatchCall, CallOutcome, PersonalisedCall, SingleCall, Verdict
from smsgateway.schema import MessageState

TEXT = "【示例】{$name}，验证码{$code}"
Rows = Sequence[tuple[str, ...]]


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url) as running:
        yield running


async def send(stack: Stack, rows: Rows, *, request_id: str = "p-1", **changes: Any) -> pb.SendBatchSmsResponse:
    """SendBatchSms of a text with variables; rows are number and values."""
    fields = {"brand_id": BRAND, "sms_type": MARKETING, "text": TEXT, "variables": ["name", "code"], **changes}
    recipients = [pb.PersonalisedRecipient(mobile=mobile, values=values) for mobile, *values in rows]
    parts = [pb.SendBatchSmsRequest(header=pb.BatchHeader(request_id=request_id, **fields))]
    for start in range(0, len(recipients), 700):
        part = pb.BatchRecipients(personalised=recipients[start : start + 700])
        parts.append(pb.SendBatchSmsRequest(recipients=part))
    reply: pb.SendBatchSmsResponse = await stack.sms.SendBatchSms(iter(parts), metadata=bearer(ADMIN), timeout=SECONDS)
    return reply


def filled(name: str, code: str) -> str:
    """The final text."""
    return f"【示例】{name}，验证码{code}"


async def test_each_gets_its_own_text(stack: Stack) -> None:
    """300 recipients go in one call with variables, and alone where a value cannot; the record has the final texts."""
    await stack.worker()
    rows = [(mobile, f"客{place}", str(place)) for place, mobile in enumerate(numbers(300))]
    rows[7] = (rows[7][0], "李;雷", "7")
    rows[200] = (rows[200][0], "a\tb\\c", "{$code}")
    reply = await send(stack, rows)
    assert (reply.accepted, reply.segments, reply.bad_recipient_count) == (300, 300, 0)
    assert await stack.wait_until_final(300) == {MessageState.DELIVERED: 300}
    wanted = Counter((mobile, text_hash(filled(*values))) for mobile, *values in rows)
    assert Counter((entry["mobile"], entry["text_hash"]) for entry in stack.simulator.entries()) == wanted
    assert stack.simulator.totals()["calls"]["accepted"] == 3
    assert await stack.balance() == (GRANTED - 300, 0)
    request = pb.ListMessagesRequest(brand_id=BRAND, mobile=rows[200][0])
    (message,) = (await stack.sms.ListMessages(request, metadata=bearer(ADMIN), timeout=SECONDS)).messages
    assert message.text == filled("a\tb\\c", "{$code}")
    batch = await stack.sms.GetBatch(
        pb.GetBatchRequest(batch_id=reply.batch_id), metadata=bearer(ADMIN), timeout=SECONDS
    )
    assert (batch.batch.text, list(batch.batch.variables)) == (TEXT, ["name", "code"])


async def test_segments_are_those_of_each_final_text(stack: Stack) -> None:
    """Seventy characters cost one segment, one more costs two; abroad by the other rule. The freeze is their sum."""
    head = len(filled("", ""))
    rows = [
        ("13800138001", "x" * (69 - head), "1"),
        ("13800138003", "x" * (70 - head), "1"),
        ("+14155550100", "x" * (70 - head), "1"),
    ]
    assert (await send(stack, rows)).segments == 1 + 2 + 2
    assert await stack.rows("select mobile, segments from message order by 1") == [
        ("+14155550100", 2),
        ("+8613800138001", 1),
        ("+8613800138003", 2),
    ]
    latin = await send(stack, [("+14155550100", "y" * 100, "1")], request_id="p-2", text="{$name}{$code}")
    assert latin.segments == 1


async def test_bad_recipients_are_named_and_not_charged(stack: Stack) -> None:
    """Each reason, in the list and by reason; the others are accepted and the same call again says the same."""
    rows: Rows = [
        ("13800138001", "a", "1"),
        ("13800138003", "a"),
        ("13800138005", "a", ""),
        ("13800138007", "a", "1", "2"),
        ("13800138009", "a", "b\x1fc"),
        ("1380013800", "a", "1"),
        ("13800138001", "b", "2"),
        ("13800138011", "字" * 536, "1"),
    ]
    reasons = {
        "MISSING_VALUES": [1, 2],
        "TOO_MANY_VALUES": [3],
        "BAD_VALUE": [4],
        "INVALID_NUMBER": [5],
        "DUPLICATE_NUMBER": [6],
        "TEXT_TOO_LONG": [7],
    }
    reply = await send(stack, rows, tell_all_bad=True)
    assert (reply.accepted, reply.segments, reply.bad_recipient_count) == (1, 1, 7)
    assert {bad.reason: list(bad.indexes) for bad in reply.bad_by_reason} == reasons
    assert [(bad.index, bad.reason) for bad in reply.bad_recipients] == sorted(
        (place, reason) for reason, places in reasons.items() for place in places
    )
    assert await send(stack, rows, tell_all_bad=True) == reply
    assert (await stack.balance())[1] == 1
    with pytest.raises(grpc.aio.AioRpcError) as conflict:
        await send(stack, [("13800138001", "a", "2"), *rows[1:]], tell_all_bad=True)
    assert from_error(conflict.value).reason == "IDEMPOTENCY_CONFLICT"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"variables": ["name"]}, "header.variables"),
        ({"variables": []}, "recipients.personalised"),
        ({"campaign_id": "x" * 49}, "header.campaign_id"),
    ],
)
async def test_bad_headers_name_their_field(stack: Stack, changes: dict[str, Any], field: str) -> None:
    """Variables that do not fit the text, recipients of the other kind, a campaign's name that is too long."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await send(stack, [("13800138001", "a", "1")], **changes)
    assert set(from_error(refused.value).fields) == {field}


async def test_a_carrier_without_such_calls_gets_single_ones(stack: Stack) -> None:
    """Each message goes alone with its final text, all of one payment, none twice."""
    carrier = ScriptedCarrier(max_personalised=0)
    await stack.worker(carrier=carrier)
    rows = [(mobile, f"客{place}", "1") for place, mobile in enumerate(numbers(150))]
    await send(stack, rows)
    await eventually(stack.quiet_dispatches)
    assert all(isinstance(call, SingleCall) for call in carrier.calls)
    assert len({call.call_id for call in carrier.calls}) == 150
    assert {(call.mobile, call.text) for call in carrier.calls} == {
        (f"+86{mobile}", filled(*values)) for mobile, *values in rows
    }
    (payment,) = await stack.payments()
    assert (payment.segments, payment.refunded) == (150, 0)


async def test_chunks_fit_the_carriers_call(stack: Stack) -> None:
    """A carrier that takes fifty gets calls of fifty, and alone who has a value that it cannot take."""
    carrier = ScriptedCarrier(max_personalised=50)
    await stack.worker(carrier=carrier)
    rows = [(mobile, "a;b" if place % 60 == 0 else "c", "1") for place, mobile in enumerate(numbers(120))]
    await send(stack, rows)
    await eventually(stack.quiet_dispatches)
    sizes = Counter(len(call.mobiles) if isinstance(call, PersonalisedCall) else 1 for call in carrier.calls)
    assert sizes == {50: 2, 18: 1, 1: 2}
    assert sorted(carrier.sent) == sorted(f"+86{mobile}" for mobile, *_ in rows)
    assert not any(isinstance(call, BatchCall) for call in carrier.calls)


async def test_what_one_recipients_values_spoil_fails_alone(stack: Stack) -> None:
    """A refused call is divided until the bad one stands alone; there its refusal is final."""
    bad = numbers(9)[4]

    class Picky(ScriptedCarrier):
        async def _answer(self, call: Any) -> CallOutcome:
            outcome = await super()._answer(call)
            if isinstance(call, PersonalisedCall) and f"+86{bad}" in call.mobiles:
                return CallOutcome(Verdict.BAD_NUMBER, code="105")
            if isinstance(call, SingleCall) and call.mobile == f"+86{bad}":
                return CallOutcome(Verdict.REFUSED, code="105")
            return outcome

    await stack.worker(carrier=Picky())
    await send(stack, [(mobile, "a", "1") for mobile in numbers(9)])
    await eventually(stack.quiet_dispatches)
    rows = await stack.rows("select mobile, state, result_code from message where state <> 5")
    assert rows == [(f"+86{bad}", MessageState.FAILED, "105")]
