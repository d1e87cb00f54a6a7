"""Aim: a text with variables obeys the sender's rules, and its schedule and validity outlive a pause.
Method: the real cost centre, gateway and workers; a carrier that the test scripts; rules set by an admin's RPCs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from gateway_harness import SECONDS, eventually, metric
from worker_harness import ADMIN, BRAND, GRANTED, MARKETING, ScriptedCarrier, Stack, numbers, running_stack

from infra.grpc_server import bearer
from infra.grpc_status import from_error
from protos.smsgateway.v1 import sender_rules_pb2, sender_rules_pb2_grpc
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsgateway.carriers.base import CallOutcome, PersonalisedCall, SingleCall, Verdict
from smsgateway.schema import DispatchState, MessageState

TEXT, SUFFIX = "{$name}，验证码{$code}", "拒收请回复R"
ON, OFF = sender_rules_pb2.SWITCH_ON, sender_rules_pb2.SWITCH_OFF
Rows = Sequence[tuple[str, ...]]


@pytest.fixture
async def stack(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack whose brand has a signature, a template, a number that opted out, and one message a day for a number."""
    words = tmp_path / "words"
    words.write_text("赌博\n码44\nname\n", encoding="utf-8")
    rules: dict[str, Any] = {"sender_rules": "on", "sensitive_words_file": words, "rules_refresh_seconds": 0.001}
    async with (
        running_stack(database_url, redis_url, **rules) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.gateway.grpc_port}") as channel,
    ):
        admin: Any = sender_rules_pb2_grpc.SenderRulesStub(channel)

        async def put(method: str, request: Any) -> None:
            await getattr(admin, method)(request, metadata=bearer(ADMIN), timeout=SECONDS)

        limits = sender_rules_pb2.FrequencyLimits(per_day=1)
        own = sender_rules_pb2.BrandRules(brand_id=BRAND, quiet_hours=OFF, frequency=ON, marketing=limits)
        await put("PutBrandRules", sender_rules_pb2.PutBrandRulesRequest(rules=own))
        approved: Any = 2
        signature = sender_rules_pb2.PutSignatureRequest(brand_id=BRAND, signature="示例", approval=approved)
        await put("PutSignature", signature)
        template: Any = {"template_id": "t", "text": "{who}，验证码{what}", "sms_type": MARKETING, "approval": approved}
        await put("PutTemplate", sender_rules_pb2.PutTemplateRequest(brand_id=BRAND, **template))
        opted: Any = {"brand_id": BRAND, "kind": 1, "mobiles": ["13800999999"], "reason": "asked for it"}
        await put("AddSuppressions", sender_rules_pb2.AddSuppressionsRequest(**opted))
        yield running


async def send(stack: Stack, rows: Rows, request_id: str, **changes: Any) -> pb.SendBatchSmsResponse:
    """SendBatchSms of a text with variables, valid for an hour; rows are number and values."""
    fields = {
        "brand_id": BRAND,
        "sms_type": MARKETING,
        "text": TEXT,
        "variables": ["name", "code"],
        "signature": "示例",
        "valid_for": {"seconds": 3_600},
        "tell_all_bad": True,
        **changes,
    }
    recipients = [pb.PersonalisedRecipient(mobile=mobile, values=values) for mobile, *values in rows]
    parts = [
        pb.SendBatchSmsRequest(header=pb.BatchHeader(request_id=request_id, **fields)),
        pb.SendBatchSmsRequest(recipients=pb.BatchRecipients(personalised=recipients)),
    ]
    reply: pb.SendBatchSmsResponse = await stack.sms.SendBatchSms(iter(parts), metadata=bearer(ADMIN), timeout=SECONDS)
    return reply


async def refusal(stack: Stack, rows: Rows, request_id: str, **changes: Any) -> tuple[str, set[str]]:
    """Reason and fields of what such a call is refused for."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await send(stack, rows, request_id, **changes)
    refused = from_error(caught.value)
    return refused.reason, set(refused.fields)


async def pause(stack: Stack, batch_id: str) -> pb.PauseBatchResponse:
    """PauseBatch."""
    request = pb.PauseBatchRequest(batch_id=batch_id)
    reply: pb.PauseBatchResponse = await stack.sms.PauseBatch(request, metadata=bearer(ADMIN), timeout=SECONDS)
    return reply


async def resume(stack: Stack, batch_id: str) -> int:
    """ResumeBatch; messages that go on."""
    request = pb.ResumeBatchRequest(batch_id=batch_id)
    return int((await stack.sms.ResumeBatch(request, metadata=bearer(ADMIN), timeout=SECONDS)).resumed)


def filled(name: str, code: str) -> str:
    """The final text."""
    return f"【示例】{name}，验证码{code}{SUFFIX}"


async def test_rules_are_judged_on_what_each_recipient_gets(stack: Stack) -> None:
    """Words, template, opt-outs and frequency leave recipients out; others wait for a resume and get the suffix."""
    good = numbers(4)
    rows: Rows = [
        (good[0], "张", "1"),
        ("13800999999", "王", "1"),
        (good[1], "李;雷", "2"),
        ("13800888801", "赌博", "3"),
        ("13800888802", "a", "4444"),
        ("1380013800", "b", "5"),
        (good[2], "钱", "6"),
        ("13800888803", "x" * 101, "7"),
        ("13800888804", "y" * 530, "8"),
        (good[3], "孙", "字" * 70),
    ]
    reasons = {
        "OPTED_OUT": [1],
        "SENSITIVE_WORD": [3, 4],
        "INVALID_NUMBER": [5],
        "TEMPLATE_MISMATCH": [7],
        "TEXT_TOO_LONG": [8],
    }
    words = metric("smsbill_rule_refusals_total", type="marketing", reason="SENSITIVE_WORD")
    reply = await send(stack, rows, "r-1", campaign_id="c")
    assert {bad.reason: list(bad.indexes) for bad in reply.bad_by_reason} == reasons
    assert [bad.index for bad in reply.bad_recipients] == sorted(
        place for places in reasons.values() for place in places
    )
    assert (reply.accepted, reply.segments, reply.bad_recipient_count) == (4, 5, 6)
    assert metric("smsbill_rule_refusals_total", type="marketing", reason="SENSITIVE_WORD") == words + 2
    assert await send(stack, rows, "r-1", campaign_id="c") == reply
    assert await refusal(stack, rows, "r-2") == ("NO_VALID_RECIPIENT", set())
    assert await refusal(stack, rows, "r-1", campaign_id="d") == ("IDEMPOTENCY_CONFLICT", set())

    assert await pause(stack, reply.batch_id) == pb.PauseBatchResponse(paused=4)
    carrier = ScriptedCarrier()
    carrier.gate.clear()
    await stack.worker(carrier=carrier)
    validity = await stack.rows("select distinct valid_until, accepted_at + interval '1 h' from dispatch, batch")
    assert [until for until, _ in validity] == [wanted for _, wanted in validity]
    assert await resume(stack, reply.batch_id) == 4

    async def both_called() -> bool:
        return len(carrier.calls) == 2

    await eventually(both_called)
    # Divided, as a value with a semicolon goes alone; the parts are as long valid as the chunk.
    assert await stack.rows("select count(*), count(distinct valid_until), min(valid_until) from dispatch") == [
        (2, 1, validity[0][0])
    ]
    carrier.gate.set()
    await eventually(stack.quiet_dispatches)
    got: dict[str, str] = {}
    for call in carrier.calls:
        if isinstance(call, SingleCall):
            got[call.mobile] = call.text
        else:
            assert isinstance(call, PersonalisedCall)
            got |= {mobile: call.text.render(values) for mobile, values in zip(call.mobiles, call.values, strict=True)}
    assert got == {f"+86{row[0]}": filled(row[1], row[2]) for row in rows if row[0] in good}
    assert await stack.balance() == (GRANTED - 5, 0)


async def test_schedule_and_validity_outlive_a_pause(stack: Stack) -> None:
    """What is held stays so; halves of a paused chunk keep their validity; what is over when resumed fails unpaid."""
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
    later = await send(stack, [(numbers(1)[0], "a", "1")], "r-1", send_at={"seconds": int(at.timestamp())})
    columns = "select state, paused, not_before, due_at, valid_until from dispatch"
    held = (at, at, at + timedelta(hours=1))
    assert await pause(stack, later.batch_id) == pb.PauseBatchResponse(paused=1)
    assert await stack.rows(columns) == [(DispatchState.PAUSED, True, *held)]
    assert await resume(stack, later.batch_id) == 1
    assert await stack.rows(columns) == [(DispatchState.QUEUED, False, *held)]
    await stack.sms.CancelBatch(pb.CancelBatchRequest(batch_id=later.batch_id), metadata=bearer(ADMIN), timeout=SECONDS)

    carrier = ScriptedCarrier()
    carrier.outcomes = [CallOutcome(Verdict.BAD_NUMBER, code="x")]
    carrier.gate.clear()
    worker = await stack.worker(carrier=carrier)
    halved = await send(stack, [(mobile, "a", "1") for mobile in numbers(4, 100)], "r-2")
    await asyncio.wait_for(carrier.called.wait(), SECONDS)
    ((until,),) = await stack.rows("select valid_until from dispatch")
    assert await pause(stack, halved.batch_id) == pb.PauseBatchResponse(in_flight=4)
    carrier.gate.set()

    async def both_paused() -> bool:
        rows = await stack.rows("select state, paused, messages, valid_until from dispatch")
        return rows == [(DispatchState.PAUSED, True, 2, until)] * 2

    await eventually(both_paused)
    assert len(carrier.calls) == 1
    assert await resume(stack, halved.batch_id) == 4
    await eventually(stack.quiet_dispatches)
    assert sorted(carrier.sent[4:]) == sorted(f"+86{mobile}" for mobile in numbers(4, 100))
    await stack.stop(worker)

    over = await send(stack, [(mobile, "a", "1") for mobile in numbers(3, 200)], "r-3", valid_for={"seconds": 1})
    assert await pause(stack, over.batch_id) == pb.PauseBatchResponse(paused=3)

    async def past() -> bool:
        return (await stack.rows("select valid_until < now() from dispatch")) == [(True,)]

    await eventually(past)
    calls = len(carrier.calls)
    await stack.worker(carrier=carrier)
    assert await resume(stack, over.batch_id) == 3
    await eventually(stack.quiet)
    assert await stack.states() == {MessageState.SENT: 4, MessageState.CANCELLED: 1, MessageState.FAILED: 3}
    assert await stack.rows("select distinct result_code from message where state = %s", MessageState.FAILED) == [
        ("VALIDITY_EXPIRED",)
    ]
    assert len(carrier.calls) == calls

    async def released() -> bool:
        return (await stack.balance())[1] == 0

    # The cost centre has answered a release when it is recorded, and does it soon after.
    await eventually(released)
    assert await stack.balance() == (GRANTED - 4, 0)


async def test_a_header_that_breaks_a_rule_refuses_the_batch(stack: Stack) -> None:
    """By its reason, nothing recorded; but the name of a variable is no sensitive word."""
    rows = [(numbers(1)[0], "a", "1")]
    assert await refusal(stack, rows, "r-1", template_id="t", text="") == ("BAD_REQUEST", {"header.template_id"})
    assert await refusal(stack, rows, "r-1", signature="{$name}") == ("BAD_REQUEST", {"header.signature"})
    assert await refusal(stack, rows, "r-1", signature="") == ("SIGNATURE_REQUIRED", set())
    own = await refusal(stack, rows, "r-1", signature="", text=f"【{{$name}}】{TEXT}")
    assert own == ("SIGNATURE_NOT_ALLOWED", set())
    assert await refusal(stack, rows, "r-1", text="{$name}{$code}") == ("TEMPLATE_MISMATCH", set())
    assert await refusal(stack, rows, "r-1", text=f"赌博{TEXT}") == ("SENSITIVE_WORD", set())
    assert await stack.rows("select count(*) from request_key") == [(0,)]
    assert (await stack.balance())[1] == 0
