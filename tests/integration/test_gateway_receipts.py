"""Receipts over real HTTP: stored before they are acknowledged, queued, and refused with a reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
import redis.asyncio
from fake_cost_center import FakeCostCenter
from gateway_harness import Gateway, eventually, metric, running_gateway

from infra.embedded import EmbeddedServers
from smsgateway.queues import Queues, ReceiptItem

pytestmark = pytest.mark.timeout(60)
PATH = "/callbacks/chuanglan/report"
ROW = (
    "select account, reference, call_id, mobile, state, carrier_code, detail, billed_segments, reported_at, attempts,"
    " next_at > now() from receipt_inbox"
)


def receipt(**changes: str) -> dict[str, str]:
    """The fields of a pushed receipt."""
    return {
        "receiver": "receiver",
        "pswd": "push",
        "msgid": "17041010383624511",
        "reportTime": "1704101038",
        "notifyTime": "170410103836",
        "mobile": "13800138000",
        "status": "DELIVRD",
        "statusDesc": "短信发送成功",
        "uid": "call-1",
        "length": "2",
        **changes,
    }


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[aiohttp.ClientSession]:
    """A carrier's client."""
    base = f"http://127.0.0.1:{gateway.process.http_port}"
    async with aiohttp.ClientSession(base, timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


async def queued(redis_url: str, count: int) -> list[ReceiptItem]:
    """What all receipt streams hold, so many or more: receipts are queued soon after the carrier has its answer."""
    found: list[ReceiptItem] = []
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as client:
        queues = Queues(client)
        await queues.prepare_receipts()

        async def all_there() -> bool:
            for number in range(4):
                entries = await queues.read_receipts(number, "test", count=1_000, wait_ms=1)
                found.extend(item for entry in entries for item in entry.items)
            return len(found) >= count

        await eventually(all_there)
    return found


async def pushed(http: aiohttp.ClientSession, **changes: str) -> tuple[int, Any]:
    """Push a receipt; status and body."""
    async with http.get(PATH, params=receipt(**changes)) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize("method", ["query", "form", "both"])
async def test_receipt_is_stored_and_queued(
    gateway: Gateway, http: aiohttp.ClientSession, redis_url: str, method: str
) -> None:
    """A receipt as query, as form or divided between both ends in one inbox row and one stream entry."""
    fields = receipt()
    credentials = {name: fields[name] for name in ("receiver", "pswd")}
    rest = {name: value for name, value in fields.items() if name not in credentials}
    query, form = {"query": (fields, None), "form": ({}, fields), "both": (credentials, rest)}[method]
    request = http.get(PATH, params=query) if form is None else http.post(PATH, params=query, data=form)
    async with request as answer:
        assert (answer.status, await answer.text()) == (200, '{"clcode":"000000"}')
    assert await gateway.rows(ROW) == [
        (
            "chuanglan",
            "17041010383624511",
            "call-1",
            "+8613800138000",
            1,
            "DELIVRD",
            "短信发送成功",
            2,
            datetime(2017, 4, 10, 2, 38, tzinfo=UTC),
            0,
            True,
        )
    ]
    ((inbox_id,),) = await gateway.rows("select inbox_id from receipt_inbox")
    assert await queued(redis_url, 1) == [ReceiptItem("chuanglan", "17041010383624511", inbox_id, "call-1")]


@pytest.mark.parametrize(
    ("status", "state"),
    [("DELIVRD", 1), ("UNDELIV", 2), ("MK:0001", 2), ("EXPIRED", 3), ("UNKNOWN", 4), ("ENROUTE", 4)],
)
async def test_states(gateway: Gateway, http: aiohttp.ClientSession, status: str, state: int) -> None:
    """The carrier's words become the ledger's states; the raw word is kept."""
    assert await pushed(http, status=status, uid="", length="", statusDesc="") == (200, {"clcode": "000000"})
    rows = await gateway.rows("select state, carrier_code, call_id, detail, billed_segments from receipt_inbox")
    assert rows == [(state, status, None, None, None)]


async def test_doubles_are_kept_apart(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    """The same receipt twice makes two rows: what is settled already is for the worker to find out."""
    for _ in range(2):
        assert (await pushed(http))[0] == 200
    assert await gateway.rows("select count(*), count(distinct inbox_id) from receipt_inbox") == [(2, 2)]


async def test_concurrent_receipts_share_transactions(
    gateway: Gateway, http: aiohttp.ClientSession, redis_url: str
) -> None:
    """Two hundred at once are all stored and queued."""
    before = metric("smsbill_receipts_received_total", carrier="chuanglan", result="stored")
    answers = await asyncio.gather(*(pushed(http, msgid=f"m{n}") for n in range(200)))
    assert {status for status, _ in answers} == {200}
    assert await gateway.rows("select count(distinct reference) from receipt_inbox") == [(200,)]
    assert {item.reference for item in await queued(redis_url, 200)} == {f"m{n}" for n in range(200)}
    assert metric("smsbill_receipts_received_total", carrier="chuanglan", result="stored") == before + 200


async def test_a_gateway_that_stops_queues_what_it_stored(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """Receipts that wait for the next push to their streams are there when the gateway has stopped."""
    async with running_gateway(fake_costcenter, database_url, redis_url, receipt_gather_seconds=5) as gateway:
        base = f"http://127.0.0.1:{gateway.process.http_port}"
        async with aiohttp.ClientSession(base, timeout=aiohttp.ClientTimeout(total=20)) as http:
            for turn in range(2):
                answers = await asyncio.gather(*(pushed(http, msgid=f"m{turn}-{n}") for n in range(20)))
                assert {status for status, _ in answers} == {200}
    expected = {f"m{turn}-{n}" for turn in range(2) for n in range(20)}
    assert {item.reference for item in await queued(redis_url, 40)} == expected


@pytest.mark.parametrize("changes", [{"pswd": "wrong"}, {"receiver": ""}, {"pswd": "wrong", "msgid": ""}])
async def test_wrong_credentials(gateway: Gateway, http: aiohttp.ClientSession, changes: dict[str, str]) -> None:
    """403 before anything else is looked at, and nothing is stored."""
    assert (await pushed(http, **changes))[0] == 403
    assert await gateway.rows("select count(*) from receipt_inbox") == [(0,)]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"msgid": ""}, "msgid"),
        ({"msgid": "a\0b"}, "msgid"),
        ({"status": ""}, "status"),
        ({"mobile": "12"}, "mobile"),
        ({"uid": "x" * 65}, "uid"),
        ({"length": "-1"}, "length"),
    ],
)
async def test_malformed_receipts(
    gateway: Gateway, http: aiohttp.ClientSession, changes: dict[str, str], field: str
) -> None:
    """400 with the field and its rule, never its value, and nothing is stored."""
    status, body = await pushed(http, **changes)
    assert (status, body["field"]) == (400, field)
    assert body["rule"]
    assert await gateway.rows("select count(*) from receipt_inbox") == [(0,)]


async def test_rubbish(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    """No fields, too many fields, too many bytes, no text and other methods get a clear 4xx."""
    fields = {f"f{n}": "x" for n in range(50)}
    cases = [
        (http.get(PATH), 403),
        (http.post(PATH), 403),
        (http.get(PATH, params={**receipt(), **fields}), 400),
        (http.post(PATH, data=urlencode(receipt(statusDesc="x" * 20_000))), 413),
        (http.get(PATH, params=receipt(statusDesc="x" * 20_000)), 413),
        (http.post(PATH, data=b"\xff\xfe\x00" * 100), 403),
        (http.put(PATH), 405),
        (http.get("/callbacks/other/report"), 404),
    ]
    for request, status in cases:
        async with request as answer:
            assert answer.status == status
    assert await gateway.rows("select count(*) from receipt_inbox") == [(0,)]


async def test_odd_descriptions_are_stored(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    """Broken percent-encoding, NUL, quotes and backslashes in the description do no harm."""
    query = urlencode(receipt(statusDesc="")) + "&statusDesc=%ff%00a%22%5c{}%27%c3%28"
    async with http.get(f"{PATH}?{query}") as answer:
        assert answer.status == 200
    ((detail,),) = await gateway.rows("select detail from receipt_inbox")
    assert "a\"\\{}'" in detail


async def test_redis_down(gateway: Gateway, http: aiohttp.ClientSession, servers: EmbeddedServers) -> None:
    """Without Redis a receipt is stored and acknowledged all the same; it is due to be queued by the sweeper."""
    await servers.stop_redis()
    try:
        assert await pushed(http) == (200, {"clcode": "000000"})
        assert await gateway.rows("select next_at <= now() + interval '60 s' from receipt_inbox") == [(True,)]
    finally:
        await servers.start_redis()


async def test_database_down(gateway: Gateway, http: aiohttp.ClientSession, servers: EmbeddedServers) -> None:
    """Without PostgreSQL the carrier is asked to send it again, and then it is stored."""
    await servers.stop_postgres("immediate")
    try:
        assert await pushed(http) == (503, {"clcode": "111111"})
        async with http.get("/readyz") as answer:
            assert answer.status == 503
            assert (await answer.json())["database"] is False
    finally:
        await servers.start_postgres()
    async with asyncio.timeout(20):
        while (await pushed(http))[0] != 200:
            pass
    assert await gateway.rows("select count(*) from receipt_inbox") == [(1,)]


async def test_no_account(fake_costcenter: FakeCostCenter, database_url: str, redis_url: str) -> None:
    """Without an account of the carrier there is no callback: nobody could prove who pushes."""
    async with (
        running_gateway(fake_costcenter, database_url, redis_url, chuanglan_account="") as gateway,
        aiohttp.ClientSession(f"http://127.0.0.1:{gateway.process.http_port}") as http,
        http.get(PATH, params=receipt()) as answer,
    ):
        assert answer.status == 404


async def test_observability(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    """The page, liveness, readiness with each part named, and metrics that count what was done."""
    await gateway.send()
    await pushed(http)
    expected = {"/": "smsbill", "/healthz": '"ok"', "/readyz": '"database":true', "/metrics": "smsbill_messages"}
    for path, text in expected.items():
        async with http.get(path) as answer:
            assert answer.status == (200 if path != "/readyz" else answer.status)
            assert text in await answer.text()
    async with http.get("/metrics") as answer:
        body = await answer.text()
    for name in (
        'smsbill_messages_total{mode="single",result="accepted",type="verification"}',
        'smsbill_gateway_group_calls_count{group="accept"}',
        'smsbill_gateway_group_wait_seconds_count{group="receipts"}',
        'smsbill_receipts_received_total{carrier="chuanglan",result="stored"}',
        'smsbill_grpc_calls_total{method="SendSms",status="OK"}',
    ):
        assert name in body
    assert "13800138000" not in body
