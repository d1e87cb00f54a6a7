"""Aim: an operator finds what is parked, has it tried again, or drops it, and the bill stays right in every case.

Method: real parts; work is parked by errors of ours (a message without a number, a payment that is not there).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from gateway_harness import eventually
from worker_harness import (
    ADMIN,
    BRAND,
    GRANTED,
    OTHER_BRAND,
    ScriptedCarrier,
    Stack,
    numbers,
    running_stack,
    tools,
)

from infra.grpc_server import bearer
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import cost_center_admin_pb2, cost_center_pb2
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsgateway.schema import MessageState
from smsgateway.store import sweeping

DISPATCH, OUTBOX, RECEIPT = pb.PARKED_KIND_DISPATCH, pb.PARKED_KIND_OUTBOX, pb.PARKED_KIND_RECEIPT
WISH = {"author": "Li", "reason": "a bad number"}
# An error of ours parks at the first try.
ONCE: dict[str, Any] = {"dispatch_tries_max": 1, "outbox_tries_max": 1, "hold_seconds": 0}


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url) as running:
        yield running


async def listed(stack: Stack, kind: int, **fields: Any) -> list[pb.ParkedItem]:
    request = pb.ListParkedRequest(kind=kind, **fields)  # type: ignore[arg-type] # numbers of the enum
    return list((await stack.sms.ListParked(request, metadata=bearer(ADMIN), timeout=10)).items)


async def retried(stack: Stack, kind: int, *ids: str) -> tuple[list[str], list[str]]:
    request = pb.RetryParkedRequest(kind=kind, parked_ids=ids, **WISH)  # type: ignore[arg-type]
    reply = await stack.sms.RetryParked(request, metadata=bearer(ADMIN), timeout=10)
    return list(reply.retried), list(reply.not_parked)


async def dropped(stack: Stack, kind: int, *ids: str) -> tuple[list[str], list[str], dict[str, str]]:
    request = pb.DropParkedRequest(kind=kind, parked_ids=ids, **WISH)  # type: ignore[arg-type]
    reply = await stack.sms.DropParked(request, metadata=bearer(ADMIN), timeout=30)
    return list(reply.dropped), list(reply.not_parked), {item.parked_id: item.why for item in reply.kept}


async def is_parked(stack: Stack, count: int = 1) -> bool:
    return len(await listed(stack, DISPATCH)) == count


async def balance_is(stack: Stack, total: int, frozen: int = 0, brand_id: int = BRAND) -> bool:
    return await stack.balance(brand_id) == (total, frozen)


async def park_message(stack: Stack, **fields: Any) -> str:
    """A single message without a number, which fails before it is paid for; no worker runs yet."""
    message_id = await stack.send(**fields)
    await stack.rows("update message set mobile = '' where message_id = %s", message_id)
    return message_id


async def owe(stack: Stack, **fields: Any) -> str:
    """A parked send status."""
    outbox_id = IdentifierSource().new(BRAND, 1_700_000_000_000)
    request = cost_center_pb2.SmsSendStatusCallBackRequest(brand_id=BRAND, request_id=outbox_id, **fields)
    await stack.rows(
        "insert into outbox (brand_id, outbox_id, kind, payload, attempts, created_at)"
        " values (%s, %s, 1, %s, 20, now())",
        BRAND,
        outbox_id,
        request.SerializeToString(),
    )
    return outbox_id


async def test_what_is_parked_is_listed_by_brand_and_age_in_pages(stack: Stack) -> None:
    """Ids, what it is, tries and error; filters hold; pages tell each once, oldest first."""
    first = await park_message(stack, mobile="13800138001")
    second = await park_message(stack, mobile="13800138002", brand_id=OTHER_BRAND)
    third = await park_message(stack, mobile="13800138003")
    await stack.worker(carrier=ScriptedCarrier(), **ONCE)
    await eventually(lambda: is_parked(stack, 3))
    await stack.rows("update dispatch set created_at = created_at - interval '3 hours' where dispatch_id = %s", third)
    items = await listed(stack, DISPATCH)
    assert [item.parked_id for item in items] == [third, first, second]
    item = items[1]
    assert (item.brand_id, item.subject, item.messages, item.segments) == (BRAND, "single", 1, 1)
    assert (item.tries, item.error, item.request_id) == (1, "AssertionError", f"s-{BRAND}-13800138001")
    assert [item.parked_id for item in await listed(stack, DISPATCH, brand_id=OTHER_BRAND)] == [second]
    request = pb.ListParkedRequest(kind=DISPATCH)
    request.older_than.FromSeconds(7_200)
    reply = await stack.sms.ListParked(request, metadata=bearer(ADMIN), timeout=10)
    assert [item.parked_id for item in reply.items] == [third]
    request, found = pb.ListParkedRequest(kind=DISPATCH, page_size=1), []
    for _ in range(3):
        reply = await stack.sms.ListParked(request, metadata=bearer(ADMIN), timeout=10)
        found += [item.parked_id for item in reply.items]
        request.page_token = reply.next_page_token
    assert (found, request.page_token) == ([third, first, second], "")


async def test_a_message_that_is_retried_is_sent_once_its_cause_is_gone(stack: Stack) -> None:
    """Its tries start anew, its call ids do not; what is not parked any more is told and left alone."""
    message_id = await park_message(stack)
    carrier = ScriptedCarrier()
    await stack.worker(carrier=carrier, **ONCE)
    await eventually(lambda: is_parked(stack))
    await stack.rows("update message set mobile = '+8613800138001' where message_id = %s", message_id)
    assert await retried(stack, DISPATCH, message_id, "nobody's") == ([message_id], ["nobody's"])
    await stack.wait_for_state(message_id, MessageState.SENT)
    assert await retried(stack, DISPATCH, message_id) == ([], [message_id])
    assert await dropped(stack, DISPATCH, message_id) == ([], [message_id], {})
    (call,) = carrier.calls
    assert call.call_id == f"{message_id}-1"
    assert [payment.segments for payment in await stack.payments()] == [1]


async def test_a_late_note_of_its_entry_does_not_wake_what_is_parked(stack: Stack) -> None:
    """A sweeper that queued it before it was parked notes the entry afterwards."""
    message_id = await stack.send()
    await stack.rows("update dispatch set not_before = 'infinity'")
    async with tools(stack) as parts, parts.database.connection() as connection:
        await sweeping.set_entries(connection, [(BRAND, message_id, "1-1")])
    assert await is_parked(stack)


async def test_an_unpaid_message_that_is_dropped_gives_its_freeze_back(stack: Stack) -> None:
    """Failed before anybody tried to pay: it ends as failed, its freeze is released, nothing was ever paid."""
    message_id = await park_message(stack)
    worker = await stack.worker(carrier=ScriptedCarrier(), **ONCE)
    await eventually(lambda: is_parked(stack))
    assert await stack.balance() == (GRANTED, 1)
    with structlog.testing.capture_logs() as logs:
        assert await dropped(stack, DISPATCH, message_id) == ([message_id], [], {})
    (line,) = [line for line in logs if line["event"] == "parked work dropped"]
    assert (line["parked_id"], line["author"], line["reason"]) == (message_id, *WISH.values())
    message = await stack.message(message_id)
    assert (MessageState(message.state), message.result_code) == (MessageState.FAILED, "DROPPED")
    assert message.result_detail == "dropped by Li: a bad number"
    await eventually(lambda: balance_is(stack, GRANTED))
    assert await stack.payments() == []
    assert await dropped(stack, DISPATCH, message_id) == ([], [message_id], {})
    await stack.stop(worker)


@pytest.mark.parametrize("known", [True, False])
async def test_a_paid_chunk_that_is_dropped_is_refunded(stack: Stack, known: bool) -> None:
    """Also when nobody noted its payment: the same payment asked for again tells it. Once, however often dropped."""
    await stack.send_batch(numbers(5))
    ((chunk, order_no),) = await stack.rows("select dispatch_id, order_no from dispatch")
    pay = cost_center_pb2.SmsSendPayRequest(brand_id=BRAND, request_id=chunk, order_no=order_no, segments=5)
    payment_no = (await stack.ledger.SmsSendPay(pay, metadata=bearer(ADMIN), timeout=10)).payment_no
    assert await stack.balance() == (GRANTED - 5, 0)
    await stack.rows(
        "update dispatch set not_before = 'infinity', epoch = 3, attempts = 1, payment_no = %s",
        payment_no if known else None,
    )
    replies = await asyncio.gather(*(dropped(stack, DISPATCH, chunk) for _ in range(3)))
    assert sorted(reply[0] for reply in replies) == [[], [], [chunk]]
    await stack.worker(carrier=ScriptedCarrier())
    assert await stack.wait_until_final(5) == {MessageState.FAILED: 5}
    await eventually(lambda: balance_is(stack, GRANTED))
    (payment,) = await stack.payments()
    assert (payment.payment_no, payment.segments, payment.refunded) == (payment_no, 5, 5)


async def test_nothing_is_dropped_while_nobody_tells_whether_it_was_paid(stack: Stack) -> None:
    """With the cost centre away it stays parked with the reason; what needs no answer is dropped all the same."""
    doubtful, certain = await stack.send("13800138001"), await stack.send("13800138002")
    await stack.rows("update dispatch set not_before = 'infinity'")
    await stack.rows("update dispatch set epoch = 3 where dispatch_id = %s", doubtful)
    await stack.stop_costcenter()
    ids, _, kept = await dropped(stack, DISPATCH, doubtful, certain)
    assert (ids, list(kept)) == ([certain], [doubtful])
    assert "UNAVAILABLE" in kept[doubtful]
    await stack.restart_costcenter()

    async def goes() -> bool:
        # The gateway finds the cost centre again within seconds.
        return await dropped(stack, DISPATCH, doubtful) == ([doubtful], [], {})

    await eventually(goes)
    await stack.worker(carrier=ScriptedCarrier())
    await eventually(lambda: balance_is(stack, GRANTED))


async def test_a_call_that_is_owed_goes_only_when_no_refund_hangs_on_it(stack: Stack) -> None:
    """Of a payment that is not there: dropped. One that refunds too much: kept. One that now succeeds: settled."""
    carrier = ScriptedCarrier()
    await stack.worker(carrier=carrier, **ONCE)
    message_id = await stack.send()
    await stack.wait_for_state(message_id, MessageState.SENT)
    await eventually(stack.quiet)
    (payment,) = await stack.payments()
    failed = [cost_center_pb2.FailedMessage(message_id=message_id, segments=1)]
    stranger = await owe(stack, payment_no="01M7Y44C8E0000000000007YZXJMGSY7", failed=failed)
    too_much = await owe(
        stack, payment_no=payment.payment_no, failed=[cost_center_pb2.FailedMessage(message_id="m", segments=9)]
    )
    good = await owe(stack, payment_no=payment.payment_no, failed=failed)
    assert {item.parked_id for item in await listed(stack, OUTBOX)} == {stranger, too_much, good}
    ids, _, kept = await dropped(stack, OUTBOX, stranger, too_much, good)
    assert (ids, list(kept)) == (sorted([stranger, good]), [too_much])
    assert "REFUND_EXCEEDS_PAYMENT" in kept[too_much]
    assert await stack.balance() == (GRANTED, 0)
    assert await retried(stack, OUTBOX, too_much, good) == ([too_much], [good])

    async def parked_again() -> bool:
        return [(item.parked_id, item.tries) for item in await listed(stack, OUTBOX)] == [(too_much, 1)]

    await eventually(parked_again)


async def test_a_receipt_is_retried_and_dropped(stack: Stack) -> None:
    """A retry makes it due with its tries counted anew; one that is dropped is gone."""
    await stack.push_receipt(call_id="", mobile="13800138001", carrier_id="stranger-1")
    await stack.push_receipt(call_id="", mobile="13800138002", carrier_id="stranger-2")
    await stack.rows("update receipt_inbox set next_at = null, attempts = 9")
    first, second = await listed(stack, RECEIPT)
    assert (first.reference, first.carrier_account, first.tries) == ("stranger-1", "chuanglan", 9)
    assert await dropped(stack, RECEIPT, second.parked_id) == ([second.parked_id], [], {})
    assert await retried(stack, RECEIPT, first.parked_id, second.parked_id) == ([first.parked_id], [second.parked_id])
    assert await stack.rows("select attempts, next_at <= now() from receipt_inbox") == [(0, True)]


async def test_only_admins_of_the_brands_may_touch_parked_work(stack: Stack) -> None:
    """Another role, another brand, all brands with a token of one: refused; so are calls without kind, ids, reason."""

    async def refused(method: Any, request: Any, token: str) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(request, metadata=bearer(token), timeout=10)
        return caught.value.code(), str(caught.value.details())

    async def token(*roles: str, **brands: Any) -> str:
        numbers = [cost_center_admin_pb2.Role.Value(f"ROLE_{role}") for role in roles]
        request = cost_center_admin_pb2.CreateTokenRequest(name="made", roles=numbers, **brands)
        return str((await stack.admin.CreateToken(request, metadata=bearer(ADMIN), timeout=10)).secret)

    sms, one, denied = stack.sms, await token("ADMIN", brand_ids=[BRAND]), grpc.StatusCode.PERMISSION_DENIED
    others = await token("VIEWER", "SENDER", "BILLER", "FINANCE", all_brands=True)
    of_other = IdentifierSource().new(OTHER_BRAND, 1_700_000_000_000)
    drop = pb.DropParkedRequest(kind=DISPATCH, parked_ids=[of_other], **WISH)
    retry = pb.RetryParkedRequest(kind=DISPATCH, parked_ids=[of_other], **WISH)
    everything = pb.ListParkedRequest(kind=DISPATCH)
    for method, request in ((sms.ListParked, everything), (sms.RetryParked, retry), (sms.DropParked, drop)):
        assert (await refused(method, request, others))[0] == denied
    assert (await refused(sms.DropParked, drop, one))[0] == denied
    assert (await refused(sms.ListParked, pb.ListParkedRequest(kind=DISPATCH), one))[0] == denied
    receipts = pb.RetryParkedRequest(kind=RECEIPT, parked_ids=["x"], **WISH)
    assert (await refused(sms.RetryParked, receipts, one))[0] == denied
    await sms.ListParked(pb.ListParkedRequest(kind=DISPATCH, brand_id=BRAND), metadata=bearer(one), timeout=10)
    code, text = await refused(sms.RetryParked, pb.RetryParkedRequest(), ADMIN)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert all(field in text for field in ("kind", "parked_ids", "author", "reason"))
    bad = pb.ListParkedRequest(kind=RECEIPT, brand_id=BRAND)
    assert (await refused(sms.ListParked, bad, ADMIN))[0] == grpc.StatusCode.INVALID_ARGUMENT


async def test_the_command_lists_retries_and_drops(stack: Stack) -> None:
    """`smsbill parked` as an operator uses it: JSON and a table; 1 when something had to stay; a reason is needed."""
    environment = {
        "SMSBILL_COSTCENTER_TARGET": stack.values["costcenter_target"],
        "SMSBILL_GATEWAY_TARGET": f"127.0.0.1:{stack.gateway.grpc_port}",
        "SMSBILL_TOKEN": ADMIN,
        "PATH": "",
        "USER": "wang",
    }

    async def smsbill(*arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "smsbill",
            "parked",
            *arguments,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode is not None
        return process.returncode, output.decode()

    message_id = await stack.send()
    await stack.rows("update dispatch set not_before = 'infinity'")
    stays = await owe(stack, payment_no="")
    await stack.rows("update outbox set payload = %s", b"\xff\xff")
    code, output = await smsbill("list", "--json")
    assert code == 0, output
    assert [(item["parked_id"], item["kind"]) for item in json.loads(output)] == [
        (message_id, "dispatch"),
        (stays, "outbox"),
    ]
    code, output = await smsbill("list", "--kind", "dispatch", "--brand", str(BRAND))
    assert code == 0
    assert message_id in output
    code, output = await smsbill("drop", "dispatch", message_id)
    assert code == 2
    assert "--reason" in output
    code, output = await smsbill("drop", "outbox", stays, "--reason", "rubbish", "--json")
    assert code == 1
    assert json.loads(output)["kept"][0]["parked_id"] == stays
    code, output = await smsbill("retry", "dispatch", "--all", "--reason", "fixed", "--json")
    assert (code, json.loads(output)) == (0, {"retried": [message_id], "not_parked": []})
