"""Aim: what people send back is stored once, for the right brand, opts them out when they ask for it, and is told.
Method: the real simulator, whose replies are pulled; pushes over HTTP; an SMSC that gives them on its own session.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc.aio
import pytest
from gateway_harness import eventually, metric
from smpp_harness import scripted_smsc
from webhook_receiver import receiver
from worker_harness import ADMIN, BRAND, OTHER_BRAND, Stack, running_stack

from infra.embedded import EmbeddedServers
from infra.grpc_server import bearer
from infra.grpc_status import from_error
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.smsgateway.v1 import sms_gateway_pb2, webhooks_pb2, webhooks_pb2_grpc
from smsgateway.carriers.smpp.carrier import SmppCarrier, SmppConfig
from smsgateway.carriers.smpp.pdus import Address, Command, ShortMessage, encode_short_message
from smsgateway.carriers.smpp.texts import Alphabet, parts_of
from smsgateway.schema import MessageState

MOBILE = "13800138001"
OTHER_MOBILE = "13800138002"
QUICK: dict[str, Any] = {"reply_pull_seconds": 0.1, "webhook_poll_seconds": 0.05}
OPEN: dict[str, Any] = {"webhook_http": True, "webhook_private_addresses": True}


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url, reply_extensions={"777": OTHER_BRAND}, **OPEN) as running:
        yield running


async def replies(stack: Stack, brand_id: int, token: str = ADMIN, **fields: Any) -> list[webhooks_pb2.Reply]:
    """ListReplies, all pages of one row each."""
    found: list[webhooks_pb2.Reply] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.gateway.grpc_port}") as channel:
        stub = webhooks_pb2_grpc.WebhooksStub(channel)
        request = webhooks_pb2.ListRepliesRequest(brand_id=brand_id, page_size=1, **fields)
        while True:
            page = await stub.ListReplies(request, metadata=bearer(token), timeout=20)
            found += page.replies
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


async def stored(stack: Stack, count: int) -> None:
    """Wait until so many replies are stored."""

    async def there() -> bool:
        return (await stack.rows("select count(*) from reply")) == [(count,)]

    await eventually(there)


async def suppressed(stack: Stack) -> list[tuple[Any, ...]]:
    return await stack.rows("select brand_id, mobile, kind, source from suppression order by 1, 2")


async def test_pulled_replies_find_their_brand_opt_out_and_are_told(stack: Stack) -> None:
    """By extension code, by the message that went last to the number, or none; R opts out when it stands alone."""
    async with receiver() as theirs, grpc.aio.insecure_channel(f"127.0.0.1:{stack.gateway.grpc_port}") as channel:
        put = webhooks_pb2.PutWebhookRequest(
            brand_id=BRAND,
            url=theirs.url,
            replies=True,
            states=[sms_gateway_pb2.MESSAGE_STATE_FAILED],
            reply_text=True,
        )
        stub = webhooks_pb2_grpc.WebhooksStub(channel)
        secret = (await stub.PutWebhook(put, metadata=bearer(ADMIN), timeout=20)).secret
        await stack.worker(**QUICK)
        early = await stack.send(MOBILE, brand_id=OTHER_BRAND)
        await stack.wait_for_state(early, MessageState.DELIVERED)
        late = await stack.send(MOBILE)
        await stack.wait_for_state(late, MessageState.DELIVERED)
        for mobile, text, destination in (
            (MOBILE, "　ｒ。", "1069012345"),
            (MOBILE, "R is my answer", "1069012345"),
            (MOBILE, "退订", "1069012345777"),
            (OTHER_MOBILE, "TD", "1069012345"),
        ):
            stack.simulator.reply(mobile, text, destination)
        await stored(stack, 4)
        mine = await replies(stack, BRAND)
        assert sorted((each.text, each.opt_out, each.message_id) for each in mine) == [
            ("R is my answer", False, late),
            ("ｒ。", True, late),
        ]
        assert (mine[0].mobile, mine[0].destination, mine[0].carrier_account) == (
            f"+86{MOBILE}", "1069012345", "chuanglan",
        )  # fmt: skip
        (by_code,) = await replies(stack, OTHER_BRAND)
        assert (by_code.text, by_code.opt_out, by_code.message_id) == ("退订", True, "")
        (nobodys,) = await replies(stack, 0, mobile=OTHER_MOBILE)
        assert (nobodys.text, nobodys.opt_out, nobodys.brand_id) == ("TD", True, 0)
        assert await suppressed(stack) == [
            (0, f"+86{OTHER_MOBILE}", 1, "reply"),
            (BRAND, f"+86{MOBILE}", 1, "reply"),
            (OTHER_BRAND, f"+86{MOBILE}", 1, "reply"),
        ]
        await eventually(lambda: _is(len(theirs.taken) == 2))
        theirs.requests[0].verify(secret)
        told = {each["text"]: each for each in theirs.taken}
        assert told["ｒ。"]["opt_out"] is True
        assert (told["ｒ。"]["type"], told["ｒ。"]["mobile"]) == ("reply.received", "+86138****8001")


async def test_the_same_reply_pushed_twice_is_stored_once(stack: Stack) -> None:
    """Its second push is acknowledged and counts as repeated; rubbish and strangers are told apart; who may see it."""
    url = f"http://127.0.0.1:{stack.gateway.http_port}/callbacks/chuanglan/reply"
    good = {"receiver": "r", "pswd": "p", "moTime": "2601021530", "mobile": MOBILE, "destcode": "1069777"}
    good["msg"] = "好的"
    part = {**good, "isems": "1", "emshead": "234,4,2", "msg": "R"}
    repeated = metric("smsbill_replies_total", result="repeated")
    async with aiohttp.ClientSession() as session:
        for params, status in (
            (good, 200),
            (good, 200),
            (part, 200),
            ({**good, "pswd": "x"}, 403),
            ({**good, "mobile": "rubbish"}, 400),
            ({name: value for name, value in good.items() if name != "msg"}, 400),
            ({**good, "moTime": "9999999999", "msg": "impossible date"}, 200),
        ):
            async with session.get(url, params=params) as response:
                assert response.status == status, await response.text()
                assert ("000000" in await response.text()) == (status == 200)
        async with session.put(url) as response:
            assert response.status == 405
    found = await replies(stack, OTHER_BRAND)
    assert sorted((each.text, each.part, each.opt_out) for each in found) == [
        ("R", "2/4", False),
        ("impossible date", "", False),
        ("好的", "", False),
    ]
    assert metric("smsbill_replies_total", result="repeated") == repeated + 1
    assert await suppressed(stack) == []
    token = await stack.admin.CreateToken(
        admin_pb.CreateTokenRequest(name="v", roles=[admin_pb.ROLE_VIEWER], brand_ids=[OTHER_BRAND]),
        metadata=bearer(ADMIN),
        timeout=20,
    )
    assert len(await replies(stack, OTHER_BRAND, token.secret)) == 3
    for brand_id in (0, BRAND):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await replies(stack, brand_id, token.secret)
        assert from_error(caught.value).reason == "BRAND_NOT_ALLOWED"


async def test_what_could_not_be_stored_is_kept_and_stored_later(stack: Stack) -> None:
    """The carrier has forgotten what it gave: while the table takes nothing, the page stays in the worker's hands."""
    await stack.rows("alter table reply add constraint closed check (false) not valid")
    for number in range(30):
        stack.simulator.reply(MOBILE, f"text {number}")
    failures = metric("smsbill_loop_failures_total", loop="reply-pull")
    await stack.worker(**QUICK, receipt_pull_count=20)
    await eventually(lambda: _is(metric("smsbill_loop_failures_total", loop="reply-pull") >= failures + 2))
    await stack.rows("alter table reply drop constraint closed")
    await stored(stack, 30)


def deliver(text: bytes, *, coding: int = 0, esm_class: int = 0, source: str = f"86{MOBILE}") -> bytes:
    """The body of a deliver_sm from a phone."""
    message = ShortMessage(
        Address(1, 1, source), Address(0, 0, "1069777"), short_message=text, data_coding=coding, esm_class=esm_class
    )
    return encode_short_message(message)


async def test_replies_over_smpp_are_stored_before_they_are_acknowledged(
    database_url: str, redis_url: str, servers: EmbeddedServers
) -> None:
    """GSM, UCS-2, bytes of no coding, parts: 0 once stored; given again while the database is away; stored once."""
    async with (
        scripted_smsc() as smsc,
        running_stack(
            database_url,
            redis_url,
            reply_extensions={"777": BRAND},
        ) as stack,
    ):
        config = SmppConfig("smpp", smsc.host, smsc.port, "s", "p", rest_s=0.05)
        await stack.worker(carrier=SmppCarrier(config))
        peer = await smsc.peer()

        async def given(body: bytes) -> int:
            peer.request(Command.DELIVER_SM, body)
            return (await peer.next(Command.DELIVER_SM_RESP)).status

        statuses = {0x64}
        async with asyncio.timeout(20):
            # Until somebody receives.
            while 0x64 in statuses:
                statuses = {await given(deliver(b"R"))}
        assert statuses == {0}
        alphabet: Alphabet = "ucs2"
        parts = parts_of("长" * 100, reference=7, alphabet=alphabet)
        bodies = [
            deliver("好的".encode("utf-16-be"), coding=8),
            deliver(b"\xd8\x00\xff", coding=8),
            deliver(b"\xff\xfe\x80", coding=3),
            *(deliver(part.short_message, coding=8, esm_class=part.esm_class) for part in parts),
            deliver(b"\xff" * 20, esm_class=0x40),
        ]
        assert [await given(body) for body in bodies] == [0] * 6
        assert [await given(body) for body in (bodies[0], deliver(b"R"))] == [0, 0]
        assert await given(deliver(b"R", source="not a number")) == 0x65
        assert await given(deliver(b"x", esm_class=0x08)) == 0x65
        found = await replies(stack, BRAND)
        assert len(found) == 7
        texts = {each.part: each.text for each in found if each.part}
        assert texts["1/2"] + texts["2/2"] == "长" * 100
        assert {"R", "好的", "ÿþ"} <= {each.text for each in found} | {each.text.strip("\x80 ") for each in found}
        assert await suppressed(stack) == [(BRAND, f"+86{MOBILE}", 1, "reply")]
        await servers.stop_postgres("immediate")
        try:
            assert await given(deliver(b"later")) == 0x64
        finally:
            await servers.start_postgres()
        async with asyncio.timeout(30):
            while await given(deliver(b"later")) != 0:  # noqa: ASYNC110 - the carrier asks, as here
                await asyncio.sleep(0.1)
        await eventually(lambda: _has(stack, "later"))


async def _has(stack: Stack, text: str) -> bool:
    return (await stack.rows("select count(*) from reply where text = %s", text)) == [(1,)]


async def _is(value: bool) -> bool:
    return value
