"""Aim: a brand hears of every end of its messages, signed, in order, at least once, whatever its receiver does; and who
has no webhook hears, and pays, nothing. Method: a real stack and real receivers on the loopback address; signatures are
verified by code of the test's own.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from aiohttp import web
from gateway_harness import eventually
from webhook_receiver import Receiver, Told, hanging, receiver, status
from worker_harness import ADMIN, BRAND, OTHER_BRAND, ScriptedCarrier, Stack, numbers, running_stack

from infra.grpc_server import bearer
from infra.grpc_status import from_error
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.smsgateway.v1 import sms_gateway_pb2, webhooks_pb2, webhooks_pb2_grpc
from smsgateway.carriers.base import CallOutcome, Verdict
from smsgateway.schema import MessageState

MOBILE = "13800138001"
OPEN: dict[str, Any] = {"webhook_http": True, "webhook_private_addresses": True}
QUICK: dict[str, Any] = {
    "webhook_poll_seconds": 0.05,
    "webhook_retry_base_seconds": 0.05,
    "webhook_retry_seconds_max": 0.2,
    "webhook_call_seconds": 5,
}
ALL = tuple(
    sms_gateway_pb2.MessageState.Value(f"MESSAGE_STATE_{name}")
    for name in ("SENT", "DELIVERED", "UNDELIVERED", "EXPIRED", "FAILED", "CANCELLED")
)
SOON_HOURS = 0.3 / 3_600


class Webhooks:
    """The service, as an admin or another caller sees it."""

    def __init__(self, stack: Stack, channel: grpc.aio.Channel) -> None:
        self._stack = stack
        self.stub = webhooks_pb2_grpc.WebhooksStub(channel)

    async def put(self, url: str, *, token: str = ADMIN, **fields: Any) -> webhooks_pb2.PutWebhookResponse:
        request = webhooks_pb2.PutWebhookRequest(**{"brand_id": BRAND, "url": url, "states": ALL, **fields})
        return await self.stub.PutWebhook(request, metadata=bearer(token), timeout=20)

    async def get(self, brand_id: int = BRAND, name: str = "") -> webhooks_pb2.Webhook:
        request = webhooks_pb2.GetWebhookRequest(brand_id=brand_id, webhook_id=name)
        return (await self.stub.GetWebhook(request, metadata=bearer(ADMIN), timeout=20)).webhook


@asynccontextmanager
async def webhooks_of(stack: Stack) -> AsyncIterator[Webhooks]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.gateway.grpc_port}") as channel:
        yield Webhooks(stack, channel)


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url, **OPEN) as running:
        yield running


@pytest.fixture
async def webhooks(stack: Stack) -> AsyncIterator[Webhooks]:
    async with webhooks_of(stack) as opened:
        yield opened


@pytest.fixture
async def theirs() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


async def heard(at: Receiver, subject_id: str, *types: str) -> None:
    """Wait until a receiver has been told just this of a message, in this order."""

    async def told() -> bool:
        return at.of(subject_id) == [f"message.{each}" for each in types]

    await eventually(told)


async def settled(stack: Stack) -> None:
    """Wait until no event waits."""

    async def none() -> bool:
        return (await stack.rows("select count(*) from webhook_event where parked_at is null")) == [(0,)]

    await eventually(none)


async def test_every_end_that_a_carrier_brings_is_told_in_order(
    stack: Stack, webhooks: Webhooks, theirs: Receiver
) -> None:
    """Delivered, undelivered, expired, refused, cancelled, of singles and of a batch: signed, masked, without texts."""
    secret = (await webhooks.put(theirs.url)).secret
    stack.simulator.change_settings({"refused_numbers": ["99"]})
    cancelled = await stack.send_batch(numbers(2, first=500), request_id="cancelled")
    await stack.sms.CancelBatch(
        sms_gateway_pb2.CancelBatchRequest(batch_id=cancelled), metadata=bearer(ADMIN), timeout=20
    )
    await stack.worker(**QUICK)
    delivered, undelivered = await stack.send(MOBILE), await stack.send("13800130000")
    failed = await stack.send("13800138099")
    foreign = await stack.send("13800138002", brand_id=OTHER_BRAND)
    batch = await stack.send_batch(numbers(30))
    await heard(theirs, delivered, "sent", "delivered")
    await heard(theirs, undelivered, "sent", "undelivered")
    await heard(theirs, failed, "failed")
    await eventually(lambda: _is(len(theirs.taken) == 67))
    stack.simulator.change_settings({"receipt_states": {"EXPIRED": 1.0}})
    expired = await stack.send("13800138003")
    await heard(theirs, expired, "sent", "expired")
    await settled(stack)
    of_batches = [(each["batch_id"], each["type"]) for each in theirs.taken if each["batch_id"]]
    assert sorted(of_batches) == sorted(
        [(batch, "message.sent"), (batch, "message.delivered")] * 30 + [(cancelled, "message.cancelled")] * 2
    )
    assert len({each["id"] for each in theirs.taken}) == len(theirs.taken) == 2 * 33 + 1 + 2
    for request in theirs.requests:
        request.verify(secret)
        assert request.document["data"]["brand_id"] == BRAND
        assert "验证码" not in request.body.decode()
        assert f"+86{MOBILE}" not in request.body.decode()
    (event,) = [each for each in theirs.taken if each["message_id"] == undelivered and each["state"] == "undelivered"]
    assert event | {"created_at": "", "submitted_at": "", "sent_at": "", "timestamp": ""} == {
        "id": f"{undelivered}-8-main",
        "type": "message.undelivered",
        "timestamp": "",
        "message_id": undelivered,
        "state": "undelivered",
        "result_code": "UNDELIV",
        "mobile": "+86138****0000",
        "batch_id": None,
        "request_id": f"s-{BRAND}-13800130000",
        "sms_type": "verification",
        "segments": 1,
        "created_at": "",
        "submitted_at": "",
        "sent_at": "",
    }
    # Nothing was written for the brand that has no webhook.
    await stack.wait_for_state(foreign, MessageState.DELIVERED)
    assert await stack.rows("select 1 from webhook_event where brand_id <> %s", BRAND) == []


async def test_every_end_that_time_or_an_operator_brings_is_told(
    stack: Stack, webhooks: Webhooks, theirs: Receiver
) -> None:
    """No outcome, a part that failed, no receipt, an empty balance, dropped by an operator: each end is told."""
    await webhooks.put(theirs.url)
    carrier = ScriptedCarrier()
    carrier.outcomes = [
        CallOutcome(Verdict.UNKNOWN),
        CallOutcome(Verdict.ACCEPTED, "part", "0", failed_count=1),
        CallOutcome(Verdict.ACCEPTED, "silent", "0"),
    ]
    worker = await stack.worker(carrier=carrier, outcome_hours=SOON_HOURS, receipt_pull=False, **QUICK)
    unknown = await stack.send(MOBILE)
    await heard(theirs, unknown, "failed")
    partial = await stack.send("13800138002")
    await heard(theirs, partial, "sent", "failed")
    silent = await stack.send("13800138003")
    await heard(theirs, silent, "sent", "expired")
    await stack.stop(worker)

    dropped = await stack.send("13800138004")
    await stack.rows("update dispatch set not_before = 'infinity', last_error = 'x' where dispatch_id = %s", dropped)
    request = sms_gateway_pb2.DropParkedRequest(kind=1, parked_ids=[dropped], author="t", reason="t")  # type: ignore[arg-type]
    reply = await stack.sms.DropParked(request, metadata=bearer(ADMIN), timeout=20)
    assert list(reply.dropped) == [dropped]
    poor = await stack.send("13800138005")
    await stack.rows(
        "update dispatch set order_no = replace(order_no, left(order_no, 10), '0000000000') where dispatch_id = %s",
        poor,
    )
    await stack.worker(carrier=carrier, **QUICK)
    await heard(theirs, dropped, "failed")
    await heard(theirs, poor, "failed")
    codes = {each["message_id"]: each["result_code"] for each in theirs.taken if each["state"] in ("failed", "expired")}
    assert {unknown: "OUTCOME_UNKNOWN", partial: "PART_FAILED", silent: "NO_RECEIPT", dropped: "DROPPED"}.items() <= (
        codes.items()
    )
    await settled(stack)


async def rubbish(_: Told) -> web.StreamResponse:
    return web.Response(status=503, text="<html>" + "x" * 200_000, content_type="text/html")


async def cut(_: Told) -> web.StreamResponse:
    raise ConnectionResetError


async def test_a_receiver_that_fails_hears_it_all_in_the_end_and_delays_no_other(
    stack: Stack, webhooks: Webhooks, theirs: Receiver
) -> None:
    """500, a page of HTML, a redirect, silence, a cut connection: told again under one id; others are told soon."""
    await webhooks.put(theirs.url)
    async with receiver() as trap, receiver() as quick:
        await webhooks.put(quick.url, brand_id=OTHER_BRAND)
        theirs.answers = [status(500), rubbish, status(302, Location=trap.url), hanging(), cut, status(429)]
        started = time.monotonic()
        await stack.worker(**{**QUICK, "webhook_call_seconds": 1})
        mine = await stack.send(MOBILE)
        other = await stack.send(MOBILE, brand_id=OTHER_BRAND)
        await heard(quick, other, "sent", "delivered")
        assert theirs.taken == [] or time.monotonic() - started > 1
        await heard(theirs, mine, "sent", "delivered")
        assert trap.requests == []
        assert len(theirs.requests) >= 7
        ids = [request.headers["webhook-id"] for request in theirs.requests if len(request.events) == 2]
        assert len(set(ids)) == 1
        assert (await webhooks.get()).failures == 0


async def test_what_is_refused_for_its_content_is_parked_alone(
    stack: Stack, webhooks: Webhooks, theirs: Receiver
) -> None:
    """One event that the receiver cannot read stops no other; an operator sees it, has it told again, or drops it."""
    await webhooks.put(theirs.url, states=ALL[1:])
    poison = ""

    async def picky(told: Told) -> web.StreamResponse:
        return web.Response(status=422 if poison and poison in told.body.decode() else 200)

    theirs.answer = picky
    batch = await stack.send_batch(numbers(9))
    of_batch = await stack.rows("select message_id from message where batch_id = %s order by 1", batch)
    poison = of_batch[4][0]
    await stack.worker(**QUICK, webhook_tries_max=2)
    await eventually(lambda: _is(len(theirs.taken) >= 8))
    await settled(stack)
    listing = sms_gateway_pb2.ListParkedRequest(kind=4, brand_id=BRAND)  # type: ignore[arg-type]

    async def parked() -> list[sms_gateway_pb2.ParkedItem]:
        return list((await stack.sms.ListParked(listing, metadata=bearer(ADMIN), timeout=20)).items)

    # It is told alone once more after the others.
    await eventually(lambda: _any(parked()))
    (item,) = await parked()
    assert (item.parked_id, item.subject, item.request_id) == (f"{poison}-7-main", "main", poison)
    assert (item.error, item.brand_id) == ("HTTP status 422", BRAND)
    wish: dict[str, Any] = {"kind": 4, "parked_ids": [item.parked_id, "unknown"], "author": "t", "reason": "t"}
    parked_id, poison = item.parked_id, ""
    retried = await stack.sms.RetryParked(
        sms_gateway_pb2.RetryParkedRequest(**wish), metadata=bearer(ADMIN), timeout=20
    )
    assert (list(retried.retried), list(retried.not_parked)) == ([parked_id], ["unknown"])
    await eventually(lambda: _is(len(theirs.taken) == 9))
    dropped = await stack.sms.DropParked(sms_gateway_pb2.DropParkedRequest(**wish), metadata=bearer(ADMIN), timeout=20)
    assert list(dropped.dropped) == []


async def test_what_waits_too_long_is_parked_and_a_receiver_that_is_gone_is_told_no_more(
    stack: Stack, webhooks: Webhooks, theirs: Receiver
) -> None:
    """Events past their time are parked at the next failure; 410 disables the webhook until it is put again."""
    await webhooks.put(theirs.url, states=ALL[1:])
    theirs.answer = status(500)
    worker = await stack.worker(**QUICK, webhook_hours=SOON_HOURS)
    first = await stack.send(MOBILE)

    async def parked() -> bool:
        return bool(await stack.rows("select 1 from webhook_event where parked_at is not null"))

    await eventually(parked)
    await stack.stop(worker)
    theirs.answer = status(410)
    worker = await stack.worker(**QUICK)
    second = await stack.send("13800138002")

    async def disabled() -> bool:
        return not (await webhooks.get()).enabled

    await eventually(disabled)
    third = await stack.send("13800138003")
    await stack.wait_for_state(third, MessageState.DELIVERED)
    await stack.stop(worker)
    theirs.answer = status(200)
    assert (await webhooks.put(theirs.url, states=ALL[1:])).webhook.enabled
    await stack.worker(**QUICK)
    await heard(theirs, second, "delivered")
    assert theirs.of(third) == theirs.of(first) == []


async def test_addresses_inside_the_network_are_not_called(database_url: str, redis_url: str, theirs: Receiver) -> None:
    """As long as settings do not allow it: neither put, nor called where a name or an old row leads there."""
    async with running_stack(database_url, redis_url) as stack, webhooks_of(stack) as webhooks:
        for url in (
            theirs.url,
            "https://127.0.0.1/x",
            "https://[::ffff:10.0.0.1]/",
            "https://2130706433/",
            "ftp://a.b/",
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await webhooks.put(url)
            refusal = from_error(caught.value)
            assert (refusal.reason, list(refusal.fields)) == ("BAD_REQUEST", ["url"])
        port = theirs.url.split(":")[2]
        for name, url in (("literal", theirs.url), ("named", f"http://localhost.localdomain:{port}")):
            await webhooks.put("https://example.com/", webhook_id=name)
            await stack.rows("update webhook set url = %s where webhook_id = %s", url, name)
        await stack.worker(**QUICK)
        await stack.send(MOBILE)

        async def refused() -> bool:
            errors = [(await webhooks.get(name=name)).last_error for name in ("literal", "named")]
            return all(errors) and errors[0].startswith("address refused")

        await eventually(refused)
        assert theirs.requests == []


async def test_secrets_are_write_only_and_two_hold_while_one_is_replaced(
    stack: Stack, webhooks: Webhooks, theirs: Receiver
) -> None:
    """A secret is told once; after a rotation both sign; only admins change, and only within their brands."""
    first = await webhooks.put(theirs.url)
    assert first.secret.startswith("whsec_")
    assert (await webhooks.put(theirs.url)).secret == ""
    second = await webhooks.put(theirs.url, rotate_secret=True)
    assert second.secret not in ("", first.secret)
    assert second.webhook.rotating
    shown = str(await webhooks.get()) + str(second.webhook)
    assert first.secret not in shown and second.secret not in shown  # noqa: PT018
    await stack.worker(**QUICK)
    message_id = await stack.send(MOBILE)
    await heard(theirs, message_id, "sent", "delivered")
    for secret in (first.secret, second.secret):
        theirs.requests[0].verify(secret)
    assert len(theirs.requests[0].signatures) == 2
    with pytest.raises(AssertionError, match="no signature"):
        theirs.requests[0].verify("whsec_" + "A" * 32)
    await stack.rows("update webhook set old_secret_until = now()")
    theirs.requests.clear()
    await heard(theirs, await stack.send("13800138002"), "sent", "delivered")
    assert len(theirs.requests[0].signatures) == 1

    viewer = await stack.admin.CreateToken(
        admin_pb.CreateTokenRequest(name="v", roles=[admin_pb.ROLE_VIEWER], brand_ids=[BRAND]),
        metadata=bearer(ADMIN),
        timeout=20,
    )
    for brand_id, reason in ((BRAND, "ROLE_NOT_ALLOWED"), (OTHER_BRAND, "ROLE_NOT_ALLOWED")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await webhooks.put(theirs.url, token=viewer.secret, brand_id=brand_id)
        assert from_error(caught.value).reason == reason
    listing = webhooks_pb2.ListWebhooksRequest(brand_id=BRAND)
    found = await webhooks.stub.ListWebhooks(listing, metadata=bearer(viewer.secret), timeout=20)
    assert [each.webhook_id for each in found.webhooks] == ["main"]
    other = webhooks_pb2.ListWebhooksRequest(brand_id=OTHER_BRAND)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await webhooks.stub.ListWebhooks(other, metadata=bearer(viewer.secret), timeout=20)
    assert from_error(caught.value).reason == "BRAND_NOT_ALLOWED"

    bad = {"secret": "whsec_short", "states": [2], "url": "nowhere"}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await webhooks.put(**bad)  # type: ignore[arg-type]
    assert sorted(from_error(caught.value).fields) == ["secret", "states", "url"]
    for number in range(4):
        await webhooks.put(theirs.url, webhook_id=f"more_{number}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await webhooks.put(theirs.url, webhook_id="too_many")
    assert from_error(caught.value).reason == "TOO_MANY_WEBHOOKS"
    removal = webhooks_pb2.RemoveWebhookRequest(brand_id=BRAND, webhook_id="more_0")
    await webhooks.stub.RemoveWebhook(removal, metadata=bearer(ADMIN), timeout=20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await webhooks.stub.RemoveWebhook(removal, metadata=bearer(ADMIN), timeout=20)
    assert from_error(caught.value).reason == "WEBHOOK_NOT_FOUND"


async def test_a_stop_finishes_the_request_under_way_and_another_worker_goes_on(
    stack: Stack, webhooks: Webhooks, theirs: Receiver
) -> None:
    """A worker that stops waits for an answer; what it did not get is told by the next, at once."""
    await webhooks.put(theirs.url, states=ALL[1:], full_number=True)
    asked = asyncio.Event()

    async def slow(_: Told) -> web.StreamResponse:
        asked.set()
        await asyncio.sleep(0.3)
        return web.Response(status=200)

    theirs.answers = [slow]
    worker = await stack.worker(**QUICK)
    message_id = await stack.send(MOBILE)
    await asyncio.wait_for(asked.wait(), 20)
    await stack.stop(worker)
    assert theirs.of(message_id) == ["message.delivered"]
    assert theirs.taken[0]["mobile"] == f"+86{MOBILE}"
    assert json.loads(theirs.requests[0].body)["type"] == "sms.events"

    theirs.answers = [hanging()]
    worker = await stack.worker(**QUICK)
    other = await stack.send("13800138002")
    await eventually(lambda: _is(len(theirs.requests) == 2))
    await stack.stop(worker)
    await stack.rows("update webhook_turn set until = now()")
    await stack.worker(**QUICK)
    await heard(theirs, other, "delivered")


async def _any(found: Awaitable[Sequence[object]]) -> bool:
    return bool(await found)


async def _is(value: bool) -> bool:
    return value
