"""What is held, scheduled or valid for a time, through real parts: sent when due, refunded when it is too late."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc.aio
import pytest
import redis.asyncio
from gateway_harness import eventually
from worker_harness import ADMIN, BRAND, GRANTED, MARKETING, ScriptedCarrier, Stack, numbers, running_stack, tools

from infra.grpc_server import bearer
from infra.grpc_status import from_error
from protos.costcenter.v1 import cost_center_pb2
from protos.smsgateway.v1 import sender_rules_pb2 as pb
from protos.smsgateway.v1 import sender_rules_pb2_grpc, sms_gateway_pb2
from smsgateway.schema import MessageState, Mode
from smsgateway.store import sending
from smsgateway.store.sending import ClaimRequest

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url, rules_refresh_seconds=0.001) as running:
        yield running


async def freeze(stack: Stack, message_id: str) -> cost_center_pb2.Freeze:
    """The freeze of a message."""
    request = cost_center_pb2.GetFreezeRequest(order_no=(await stack.message(message_id)).order_no)
    return (await stack.ledger.GetFreeze(request, metadata=bearer(ADMIN), timeout=20)).freeze


async def test_held_work_is_sent_when_it_is_due_and_not_before(stack: Stack, redis_url: str) -> None:
    """A scheduled message and a scheduled batch stay out of Redis, under freezes of seven days; one goes at
    its time, what is left goes once its time has come (both moved by hand), and a lost Redis loses none of it.
    """
    carrier = ScriptedCarrier()
    await stack.worker(carrier=carrier)
    at = datetime.now(UTC) + timedelta(hours=1)
    moment = {"seconds": int(at.timestamp()), "nanos": at.microsecond * 1_000}
    scheduled = await stack.send(numbers(1)[0], send_at=moment)
    later = {"seconds": int(at.timestamp()) + 5 * 86_400}
    batch_id = await stack.send_batch(numbers(3, 10), send_at=later)
    plain = await stack.send(numbers(1, 50)[0])
    ends = [(await freeze(stack, each)).expires_at.seconds - at.timestamp() for each in (scheduled, plain)]
    assert [round(seconds / 86_400) for seconds in ends] == [7, 1]
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.flushdb()
    ((due,),) = await stack.rows(
        "update dispatch set not_before = now() + interval '1 s' where dispatch_id = %s returning not_before", scheduled
    )
    sent = await stack.wait_for_state(scheduled, MessageState.SENT)
    assert sent.submitted_at.ToDatetime(tzinfo=UTC) >= due
    await stack.wait_for_state(plain, MessageState.SENT)
    assert await stack.rows("select state, not_before > now() from dispatch where batch_id = %s", batch_id) == [
        (2, True)
    ]
    assert len(carrier.sent) == 2
    await stack.rows("update dispatch set not_before = now() where batch_id = %s", batch_id)

    async def gone() -> bool:
        return len(carrier.sent) == 5

    await eventually(gone)
    assert await stack.balance() == (GRANTED - 5, 0)


async def test_a_scheduled_message_is_cancelled_once_and_a_sent_one_is_not(stack: Stack) -> None:
    """Its segments come back once, however often it is asked for; what is done, unknown or of a batch is told."""

    async def cancel(message_id: str) -> bool:
        request = sms_gateway_pb2.CancelMessageRequest(message_id=message_id)
        return (await stack.sms.CancelMessage(request, metadata=bearer(ADMIN), timeout=20)).cancelled

    in_an_hour = {"seconds": int(datetime.now(UTC).timestamp()) + 3_600}
    scheduled, sent = await stack.send(numbers(1)[0], send_at=in_an_hour), await stack.send(numbers(1, 50)[0])
    batch_id = await stack.send_batch(numbers(1, 10), send_at=in_an_hour)
    assert [await cancel(scheduled) for _ in range(2)] == [True, True]
    carrier = ScriptedCarrier()
    await stack.worker(carrier=carrier)
    await stack.wait_for_state(sent, MessageState.SENT)
    assert not await cancel(sent)
    ((of_batch,),) = await stack.rows("select message_id from message where batch_id = %s", batch_id)
    for message_id, reason in ((of_batch, "MESSAGE_OF_BATCH"), (scheduled[:-1] + "x", "MESSAGE_NOT_FOUND")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cancel(message_id)
        assert from_error(caught.value).reason == reason

    async def given_back() -> bool:
        return await stack.balance() == (GRANTED - 1, 1)

    await eventually(given_back)
    assert int((await stack.message(scheduled)).state) == MessageState.CANCELLED
    assert len(carrier.sent) == 1


async def test_a_backlog_waits_for_the_morning(stack: Stack) -> None:
    """Of three whose night came while they were queued, yesterday's comes again; when it is day they are sent."""
    carrier = ScriptedCarrier()
    mobiles = numbers(4)
    sleeping = [await stack.send(mobile, sms_type=MARKETING) for mobile in mobiles]
    for message_id, hours in zip(sleeping, (1, 25, 24 * 7 + 1, 3), strict=True):
        await stack.rows(
            "update dispatch set night_from = now() - make_interval(hours => %s),"
            " night_until = now() - make_interval(hours => %s) + interval '2 hours' where dispatch_id = %s",
            hours,
            hours,
            message_id,
        )
    await stack.worker(carrier=carrier)
    await stack.wait_for_state(sleeping[3], MessageState.SENT)

    async def held() -> bool:
        rows = await stack.rows(
            "select count(*) from dispatch"
            " where not_before between now() + interval '50 min' and now() + interval '1 h'"
        )
        return rows == [(3,)]

    await eventually(held)
    assert len(carrier.sent) == 1
    await stack.rows("update dispatch set night_from = null, not_before = now()")
    for message_id in sleeping:
        await stack.wait_for_state(message_id, MessageState.SENT)


async def test_what_is_over_fails_and_its_segments_come_back(stack: Stack) -> None:
    """Never paid for: released. Maybe paid for by a worker that died: paid, and refunded. Held for too long, and a
    chunk whose account rests: likewise. The carrier hears of none.
    """
    carrier = ScriptedCarrier()
    valid: dict[str, Any] = {"valid_for": {"seconds": 3_600}}
    fresh = await stack.send(numbers(1)[0], **valid)
    tried = await stack.send(numbers(1, 1)[0], **valid)
    later = {"seconds": int(datetime.now(UTC).timestamp()) + 86_400}
    held = await stack.send(numbers(1, 2)[0], send_at=later, **valid)
    batch_id = await stack.send_batch(numbers(3, 10), **valid)
    good = await stack.send(numbers(1, 20)[0], **valid)
    await stack.rows("update dispatch set valid_until = now(), not_before = null where dispatch_id <> %s", good)
    await stack.rows("update dispatch set epoch = 1 where dispatch_id = %s", tried)
    await stack.worker(carrier=carrier)
    for message_id, paid in ((fresh, False), (tried, True), (held, False)):
        message = await stack.wait_for_state(message_id, MessageState.FAILED)
        assert (message.result_code, bool(message.payment_no)) == ("VALIDITY_EXPIRED", paid)
    await stack.wait_for_state(good, MessageState.SENT)

    async def settled() -> bool:
        return await stack.quiet_dispatches() and await stack.balance() == (GRANTED - 1, 0)

    await eventually(settled)
    assert carrier.sent == [f"+86{numbers(1, 20)[0]}"]
    states = await stack.rows("select distinct state, result_code from message where batch_id = %s", batch_id)
    assert states == [(MessageState.FAILED, "VALIDITY_EXPIRED")]


async def test_what_was_put_off_ends_at_its_validity(stack: Stack) -> None:
    """A carrier that is too busy for longer than a code is valid: the worker tries, waits, and gives the money back."""
    stack.simulator.change_settings({"throttle_rate": 1})
    message_id = await stack.send(valid_for={"seconds": 1})
    await stack.worker()
    message = await stack.wait_for_state(message_id, MessageState.FAILED)
    assert message.result_code == "VALIDITY_EXPIRED"

    async def back() -> bool:
        return await stack.balance() == (GRANTED, 0)

    await eventually(back)


async def test_a_claim_tells_whether_somebody_may_have_paid(stack: Stack) -> None:
    """A dispatch that was freed from a dead worker keeps its epoch; whoever claims it next is told, so that it is given
    back as what may be paid for and is not cancelled as if nobody had.
    """
    fresh, freed = [await stack.send(mobile) for mobile in numbers(2)]
    await stack.rows("update dispatch set epoch = 1 where dispatch_id = %s", freed)
    async with tools(stack) as parts, parts.database.connection() as connection:
        requests = [ClaimRequest(BRAND, each, 2) for each in (fresh, freed)]
        claimed = await sending.claim(connection, requests, Mode.SINGLE)
        assert {key[1]: each.tried for key, each in claimed.items()} == {fresh: False, freed: True}
        assert {each.valid_seconds for each in claimed.values()} == {None}


async def test_the_command_sets_rules(stack: Stack, tmp_path: Any) -> None:
    """`smsbill rules`, `signature`, `template`, `suppress`, with JSON and with one line for a mistake."""
    environment = {
        "SMSBILL_COSTCENTER_TARGET": stack.values["costcenter_target"],
        "SMSBILL_GATEWAY_TARGET": f"127.0.0.1:{stack.gateway.grpc_port}",
        "SMSBILL_TOKEN": ADMIN,
        "PATH": "",
    }

    async def command(*arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "smsbill",
            *arguments,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    brand = ("--brand", str(BRAND))
    file = tmp_path / "numbers"
    file.write_text("13800000001\n\n13800000002\n", encoding="utf-8")
    results = await asyncio.gather(
        command("rules", "put", *brand, "--suffix", "appended", "--verification", "2,0,20", "--json"),
        command("signature", "put", "示例", *brand, "--json"),
        command("template", "put", "code", *brand, "--type", "verification", "--text", "码 {code}"),
        command("suppress", "add", *brand, "--file", str(file), "--reason", "asked", "--json"),
        command("suppress", "add", *brand),
        command("rules", "put", *brand, "--marketing", "many"),
    )
    assert [code for code, _, _ in results] == [0, 0, 0, 0, 2, 2]
    told = json.loads(results[0][1])
    assert told["rules"]["verification"] == {"per_minute": 2, "per_hour": 0, "per_day": 20}
    assert told["effective"]["suffix"] == "appended"
    assert json.loads(results[1][1])["approval"] == "approved"
    assert "码 {code}" in results[2][1]
    assert json.loads(results[3][1]) == {"added": 2, "numbers": 2}
    assert "--file" in results[4][2]
    assert "1,5,10" in results[5][2]
    listed, shown = await asyncio.gather(command("suppress", "list", *brand), command("rules", "get", *brand))
    assert "+86138****0001" in listed[1]
    assert "13800000001" not in listed[1]
    assert "appended" in shown[1]
    channel_request = pb.ListSuppressionsRequest(brand_id=BRAND)
    async with grpc.aio.insecure_channel(environment["SMSBILL_GATEWAY_TARGET"]) as channel:
        stub: Any = sender_rules_pb2_grpc.SenderRulesStub(channel)
        reply = await stub.ListSuppressions(channel_request, metadata=bearer(ADMIN), timeout=20)
    assert len(reply.suppressions) == 2
    with pytest.raises(grpc.aio.AioRpcError):
        await stack.send("13800000001", sms_type=MARKETING)
