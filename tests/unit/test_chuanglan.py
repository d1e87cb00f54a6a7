"""Aim: what became of a call to Chuanglan is never misjudged, and a pushed receipt is read exactly or refused.

Method: the adapter against a local aiohttp server that plays recorded exchanges, every documented code, and each way in
which HTTP can fail; receipts as tables. The server counts requests: none may ever be repeated.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from carrier_server import Handler, answering, serving

from smsgateway.carriers.base import (
    BatchCall,
    CallOutcome,
    Carrier,
    CarrierError,
    MalformedReceipt,
    PersonalisedCall,
    ReceiptNotAuthentic,
    ReceiptState,
    SingleCall,
    Verdict,
    loggable,
)
from smsgateway.carriers.chuanglan import SUBMIT_CODES, ChuanglanCarrier, ChuanglanConfig, receipt_state
from smsgateway.variables import parse

TEXT = "【测试】您的验证码是123456"
CALL = SingleCall("call-1", "+8613800138000", TEXT)


@asynccontextmanager
async def carrier(base_url: str, **settings: Any) -> AsyncIterator[ChuanglanCarrier]:
    config = ChuanglanConfig("main", base_url, "N0000001", "secret", **settings)
    opened = ChuanglanCarrier(config)
    try:
        yield opened
    finally:
        await opened.aclose()


async def outcome_of(handler: Handler, **settings: Any) -> CallOutcome:
    """One call against a server that must get exactly one request."""
    requests = 0

    async def counting(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        return await handler(request)

    async with serving(counting) as url, carrier(url, **settings) as opened:
        outcome = await opened.send_single(CALL)
    assert requests == 1
    return outcome


async def test_recorded_exchange_single() -> None:
    seen: list[tuple[str, str, object]] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append((request.method, request.path, json.loads(await request.read())))
        return web.json_response({"code": "0", "msgId": "17041010383624511", "time": "20170410103836", "errorMsg": ""})

    async with serving(handler) as url, carrier(url) as opened:
        outcome = await opened.send_single(CALL)
    assert outcome == CallOutcome(Verdict.ACCEPTED, carrier_message_id="17041010383624511", code="0")
    expected = {
        "account": "N0000001",
        "password": "secret",
        "msg": TEXT,
        "phone": "13800138000",
        "report": "true",
        "uid": "call-1",
    }
    assert seen == [("POST", "/msg/send/json", expected)]


async def test_recorded_exchange_batch_on_the_newer_path() -> None:
    seen: list[tuple[str, Any]] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append((request.path, json.loads(await request.read())))
        return web.json_response({"code": 0, "msgId": "1" * 32, "failNum": "1", "successNum": "2", "errorMsg": ""})

    call = BatchCall("call-2", ("+8613800138000", "+8613900139000", "+8619912345678"), TEXT)
    async with serving(handler) as url, carrier(url + "/", path="/msg/v1/send/json") as opened:
        outcome = await opened.send_batch(call)
    assert outcome == CallOutcome(Verdict.ACCEPTED, carrier_message_id="1" * 32, code="0", failed_count=1)
    assert seen[0][0] == "/msg/v1/send/json"
    assert seen[0][1]["phone"] == "13800138000,13900139000,19912345678"


PERSONALISED = PersonalisedCall(
    "call-3",
    parse("【测试】{$name}，{$code}，{$name}", ("code", "name")),
    ("+8613800138000", "+8613900139000", "+8619912345678"),
    (("1", "张三"), ("2", "李四"), ("3", "王五")),
)


async def test_recorded_exchange_with_variables() -> None:
    """Values go in the order of their places; what is counted as neither sent nor failed was dropped, so it failed."""
    seen: list[tuple[str, Any]] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append((request.path, json.loads(await request.read())))
        return web.json_response({"code": "0", "msgId": "1" * 17, "failNum": "0", "successNum": "2", "errorMsg": ""})

    async with serving(handler) as url, carrier(url) as opened:
        outcome = await opened.send_personalised(PERSONALISED)
    assert outcome == CallOutcome(Verdict.ACCEPTED, carrier_message_id="1" * 17, code="0", failed_count=1)
    ((path, asked),) = seen
    assert path == "/msg/variable/json"
    assert (asked["msg"], asked["uid"]) == ("【测试】{$var}，{$var}，{$var}", "call-3")
    assert asked["params"] == "13800138000,张三,1,张三;13900139000,李四,2,李四;19912345678,王五,3,王五"


@pytest.mark.parametrize(
    ("code", "verdict"),
    [("105", Verdict.BAD_NUMBER), ("114", Verdict.BAD_NUMBER), ("125", Verdict.REFUSED), ("103", Verdict.RETRY)],
)
async def test_refusals_that_one_recipient_may_cause_halve_the_call(code: str, verdict: Verdict) -> None:
    """A sensitive word in one value must not fail the others; a rejected template is everybody's."""
    async with serving(answering({"code": code})) as url, carrier(url) as opened:
        assert (await opened.send_personalised(PERSONALISED)).verdict is verdict


async def test_foreign_numbers_and_long_texts_do_not_go_with_variables() -> None:
    """They are found before a call."""
    async with carrier("http://127.0.0.1:9") as opened:
        foreign = replace(PERSONALISED, mobiles=("+8613800138000", "+14155550100", "+8619912345678"))
        assert (await opened.send_personalised(foreign)).verdict is Verdict.BAD_NUMBER
        long = replace(PERSONALISED, values=(("1", "字" * 300), ("2", "x"), ("3", "y")))
        assert (await opened.send_personalised(long)).verdict is Verdict.BAD_NUMBER


async def test_connections_are_reused() -> None:
    peers: set[object] = set()

    async def handler(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.json_response({"code": "0", "msgId": "1"})

    async with serving(handler) as url, carrier(url) as opened:
        for _ in range(5):
            await opened.send_single(CALL)
    assert len(peers) == 1


def test_every_documented_code_is_in_the_table() -> None:
    documented = {0, *range(101, 111), 113, 114, *range(116, 121), 123, 124, 125, *range(127, 131)}
    assert set(SUBMIT_CODES) == {str(code) for code in documented}
    stops = {code for code, (verdict, _) in SUBMIT_CODES.items() if verdict is Verdict.STOP_ACCOUNT}
    assert stops == {"101", "102", "109", "117", "118", "119", "120"}


@pytest.mark.parametrize("spelled", ["string", "number"])
async def test_codes(spelled: str) -> None:
    answers: dict[str, Any] = {}

    async def handler(request: web.BaseRequest) -> web.Response:
        uid = json.loads(await request.read())["uid"]
        code = uid if spelled == "string" else int(uid)
        return web.json_response({"code": code, "msgId": "", "errorMsg": "因为 13800138000 如此"})

    async with serving(handler) as url, carrier(url) as opened:
        for code in SUBMIT_CODES:
            answers[code] = await opened.send_single(SingleCall(code, CALL.mobile, TEXT))
    for code, (verdict, _) in SUBMIT_CODES.items():
        assert (answers[code].verdict, answers[code].code) == (verdict, code)
        assert answers[code].carrier_message_id is None
        assert "13800138000" not in answers[code].detail
        assert ("138****8000" in answers[code].detail) is True
    assert answers["103"].retry_after_s == 1.0
    assert answers["104"].retry_after_s == 5.0
    assert answers["110"].retry_after_s == 900.0
    assert answers["107"].retry_after_s is None


@pytest.mark.parametrize(
    ("body", "status", "verdict", "code"),
    [
        ({"code": "0", "msgId": "7"}, 200, Verdict.ACCEPTED, "0"),
        ({"code": " 00 ", "msgId": "7"}, 201, Verdict.ACCEPTED, "0"),
        ({"code": "103"}, 400, Verdict.RETRY, "103"),
        ({"code": "117"}, 403, Verdict.STOP_ACCOUNT, "117"),
        # Contradictions, words unknown and garbage: nobody knows.
        ({"code": "0", "msgId": "7"}, 400, Verdict.UNKNOWN, "0"),
        ({"code": "0", "msgId": "7"}, 403, Verdict.UNKNOWN, "0"),
        ({"code": "0", "msgId": "7"}, 500, Verdict.UNKNOWN, "0"),
        ({"code": "103"}, 500, Verdict.UNKNOWN, "103"),
        ({"code": "131"}, 200, Verdict.UNKNOWN, "131"),
        ({"code": "-1"}, 200, Verdict.UNKNOWN, ""),
        ({"code": True}, 200, Verdict.UNKNOWN, ""),
        ({"code": 0.0}, 200, Verdict.UNKNOWN, ""),
        ({"code": None}, 200, Verdict.UNKNOWN, ""),
        ({"code": "accepted"}, 200, Verdict.UNKNOWN, ""),
        ({}, 200, Verdict.UNKNOWN, ""),
        ([], 200, Verdict.UNKNOWN, ""),
        (b"", 200, Verdict.UNKNOWN, ""),
        (b'{"code":"0","ms', 200, Verdict.UNKNOWN, ""),
        (b"<html>busy</html>", 200, Verdict.UNKNOWN, ""),
        (b"\xff\xfe", 200, Verdict.UNKNOWN, ""),
        (b"<html>busy</html>", 502, Verdict.UNKNOWN, ""),
        (b"", 400, Verdict.UNKNOWN, ""),
        (b"", 408, Verdict.UNKNOWN, ""),
        (b"", 302, Verdict.UNKNOWN, ""),
        (b'{"code":"0"}' + b" " * 70_000, 200, Verdict.UNKNOWN, ""),
        # The server says that it did not take the request.
        (b"", 301, Verdict.STOP_ACCOUNT, ""),
        (b"", 308, Verdict.STOP_ACCOUNT, ""),
        (b"", 401, Verdict.STOP_ACCOUNT, ""),
        ({"code": 404, "message": "Not Found"}, 404, Verdict.STOP_ACCOUNT, ""),
        (b"", 405, Verdict.STOP_ACCOUNT, ""),
        (b"", 429, Verdict.RETRY, ""),
    ],
)
async def test_answers(body: object, status: int, verdict: Verdict, code: str) -> None:
    outcome = await outcome_of(answering(body, status, {"Location": "/elsewhere"} if 300 <= status < 400 else None))
    assert (outcome.verdict, outcome.code) == (verdict, code)


@pytest.mark.parametrize(
    ("answer", "message_id", "failed"),
    [
        ({"msgId": 17041010383624511}, "17041010383624511", 0),
        ({"msgId": "x" * 65}, None, 0),
        ({"msgId": 1.7e31}, None, 0),
        ({"msgId": None, "failNum": "7"}, None, 1),
        ({"failNum": "many"}, None, 0),
    ],
)
async def test_accepted_whatever_the_rest(answer: dict[str, object], message_id: str | None, failed: int) -> None:
    outcome = await outcome_of(answering({"code": 0, **answer}))
    assert outcome == CallOutcome(Verdict.ACCEPTED, carrier_message_id=message_id, code="0", failed_count=failed)


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("999999", 3600.0), ("soon", None), ("-1", None)])
async def test_retry_after(header: str, seconds: float | None) -> None:
    outcome = await outcome_of(answering(b"", 429, {"Retry-After": header}))
    assert outcome.retry_after_s == seconds
    assert not outcome.unreachable


async def test_no_answer_in_time_is_unknown() -> None:
    async def handler(_request: web.BaseRequest) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    outcome = await outcome_of(handler, connect_timeout_s=0.1, total_timeout_s=0.2)
    assert outcome == CallOutcome(Verdict.UNKNOWN, detail="no answer in time")


async def test_half_an_answer_in_time_is_unknown() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"code":"0",')
        await asyncio.sleep(5)
        return response

    outcome = await outcome_of(handler, connect_timeout_s=0.1, total_timeout_s=0.2)
    assert outcome.verdict is Verdict.UNKNOWN


async def test_connection_lost_is_unknown_and_not_repeated() -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    assert (await outcome_of(handler)).verdict is Verdict.UNKNOWN


async def test_reused_connection_lost_is_unknown_and_not_repeated() -> None:
    requests = 0

    async def handler(request: web.BaseRequest) -> web.Response:
        nonlocal requests
        requests += 1
        if requests > 1:
            assert request.transport is not None
            request.transport.close()
        return web.json_response({"code": "0", "msgId": "1"})

    async with serving(handler) as url, carrier(url) as opened:
        assert (await opened.send_single(CALL)).verdict is Verdict.ACCEPTED
        assert (await opened.send_single(CALL)).verdict is Verdict.UNKNOWN
    assert requests == 2


async def test_not_http_is_unknown() -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp.example.org ESMTP\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server, carrier(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as opened:
        assert (await opened.send_single(CALL)).verdict is Verdict.UNKNOWN


async def test_refused_connection_is_retry() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        async with carrier(f"http://127.0.0.1:{taken.getsockname()[1]}") as opened:
            outcome = await opened.send_single(CALL)
    assert outcome.verdict is Verdict.RETRY
    assert outcome.unreachable
    assert outcome.detail == "not sent: no connection: ConnectionRefusedError"


async def test_no_such_host_is_retry() -> None:
    async with carrier("http://nowhere.invalid") as opened:
        assert (await opened.send_single(CALL)).verdict is Verdict.RETRY


async def test_no_tls_is_retry() -> None:
    async with serving(answering({"code": "0"})) as url, carrier(url.replace("http:", "https:")) as opened:
        assert (await opened.send_single(CALL)).verdict is Verdict.RETRY


async def test_no_free_connection_in_time_is_retry() -> None:
    release = asyncio.Event()

    async def handler(_request: web.BaseRequest) -> web.Response:
        await release.wait()
        return web.json_response({"code": "0", "msgId": "1"})

    async with (
        serving(handler) as url,
        carrier(url, connections_max=1, connect_timeout_s=0.1, total_timeout_s=5.0) as opened,
    ):
        first = asyncio.create_task(opened.send_single(CALL))
        await asyncio.sleep(0.05)
        assert (await opened.send_single(CALL)).verdict is Verdict.RETRY
        release.set()
        assert (await first).verdict is Verdict.ACCEPTED


async def test_closed_is_retry() -> None:
    async with carrier("http://127.0.0.1:9") as opened:
        await opened.aclose()
        outcome = await opened.send_single(CALL)
    assert (outcome.verdict, outcome.unreachable) == (Verdict.RETRY, False)


@pytest.mark.parametrize(
    ("mobile", "text", "verdict"),
    [
        ("+8613800138000", "", Verdict.REFUSED),
        ("+8613800138000", "字" * 537, Verdict.REFUSED),
        ("+8613800138000", "\ud83d", Verdict.REFUSED),
        ("+13805551234", TEXT, Verdict.BAD_NUMBER),
        ("13800138000", TEXT, Verdict.BAD_NUMBER),
    ],
)
async def test_refused_without_a_call(mobile: str, text: str, verdict: Verdict) -> None:
    async with carrier("http://127.0.0.1:9") as opened:
        outcome = await opened.send_single(SingleCall("call-1", mobile, text))
    assert outcome.verdict is verdict
    assert outcome.detail.startswith("not sent: ")


async def test_limits() -> None:
    async with carrier("http://127.0.0.1:9", batch_numbers_max=2) as opened:
        protocol: Carrier = opened
        assert protocol.account_id == "main"
        assert (protocol.limits.max_text_characters, protocol.limits.max_batch) == (536, 2)
        assert protocol.limits.call_timeout_s == 10.0
        with pytest.raises(AssertionError):
            await protocol.send_batch(BatchCall("c", tuple(f"+861380013800{i}" for i in range(3)), TEXT))


@pytest.mark.parametrize(
    ("mobiles", "call_id"),
    [((), "c"), (("+8613800138000",) * 2, "c"), (("+8613800138000",), ""), (("+8613800138000",), "with space")],
)
def test_calls_that_must_not_be_made(mobiles: tuple[str, ...], call_id: str) -> None:
    with pytest.raises(AssertionError):
        BatchCall(call_id, mobiles, TEXT)


async def test_balance() -> None:
    seen: list[tuple[str, object]] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append((request.path, json.loads(await request.read())))
        return web.json_response({"code": 0, "balance": "953", "time": "20170410103836", "errorMsg": ""})

    async with serving(handler) as url, carrier(url) as opened:
        assert await opened.balance() == 953
    assert seen == [("/msg/balance/json", {"account": "N0000001", "password": "secret"})]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"code": "102", "errorMsg": "密码错误"}, 200, "102"),
        ({"code": 0, "balance": "many"}, 200, "0"),
        ({"code": 0}, 200, "0"),
        (b"rubbish", 200, ""),
        ({"code": 0, "balance": "1"}, 500, ""),
    ],
)
async def test_balance_untold(body: object, status: int, code: str) -> None:
    async with serving(answering(body, status)) as url, carrier(url) as opened:
        with pytest.raises(CarrierError) as error:
            await opened.balance()
    assert error.value.code == code


async def test_balance_without_connection() -> None:
    async with carrier("http://127.0.0.1:9") as opened:
        with pytest.raises(CarrierError, match="no connection"):
            await opened.balance()


ROW = {
    "uid": "call-1",
    "reportTime": "1704101038",
    "notifyTime": "170410103859",
    "status": "DELIVRD",
    "msgId": "17041010383624511",
    "statusDesc": "短信发送成功",
    "mobile": "13800138000",
}


async def test_recorded_exchange_pull() -> None:
    """Pulled receipts are what the same ones pushed would be, but for the segments, which are not told."""
    seen: list[tuple[str, object]] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append((request.path, json.loads(await request.read())))
        rows = [ROW, {**ROW, "mobile": 13900139000, "status": "MK:0001", "notifyTime": None, "uid": ""}]
        return web.json_response({"ret": 0, "result": rows})

    async with serving(handler) as url, carrier(url) as opened:
        pulled = await opened.pull_receipts(100)
    assert seen == [("/msg/pull/report", {"account": "N0000001", "password": "secret", "count": "100"})]
    assert (pulled.malformed, pulled.more) == ((), False)
    first, second = pulled.receipts
    pushed = {**PUSHED, "length": ""}
    assert first == parser(receiver="", push_password="").parse_pushed_receipt({**pushed, "receiver": "", "pswd": ""})
    assert (second.mobile, second.state, second.code) == ("+8613900139000", ReceiptState.FAILED, "MK:0001")
    assert (second.call_id, second.notified_at, second.segments) == ("", None, None)


@pytest.mark.parametrize(
    ("count", "rows", "more"), [(100, 100, True), (100, 20, True), (100, 19, False), (5, 5, True), (5, 4, False)]
)
async def test_a_page_that_is_not_full_ends_the_pulls(count: int, rows: int, more: bool) -> None:
    """Full is what was asked for, or what the vendor gives by default: it may know no greater page."""
    async with serving(answering({"ret": "0", "result": [ROW] * rows})) as url, carrier(url) as opened:
        pulled = await opened.pull_receipts(count)
    assert (len(pulled.receipts), pulled.more) == (rows, more)


async def test_a_garbled_row_costs_no_other() -> None:
    """Rows are gone once read, so each good one counts, whatever stands beside it."""
    rows: list[Any] = [
        ROW,
        None,
        [],
        {**ROW, "mobile": "007"},
        {**ROW, "status": {}},
        {**ROW, "reportTime": True},
        {},
        ROW,
    ]
    async with serving(answering({"ret": 0, "result": rows}, status=500)) as url, carrier(url) as opened:
        pulled = await opened.pull_receipts(100)
    assert [receipt.call_id for receipt in pulled.receipts] == ["call-1"] * 3
    told = [(error.field, error.rule) for error in pulled.malformed]
    assert [field for field, _ in told] == ["result", "result", "mobile", "status", "msgid"]


async def test_a_page_of_long_descriptions_is_read_whole() -> None:
    """A hundred receipts whose descriptions take 2 kB each."""
    rows = [{**ROW, "statusDesc": "因" * 330}] * 100
    async with serving(answering({"ret": 0, "result": rows})) as url, carrier(url) as opened:
        assert len((await opened.pull_receipts(100)).receipts) == 100


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"ret": 1, "error": "account of 13800138000 is closed"}, 200, "1"),
        ({"ret": "1"}, 200, "1"),
        ({"ret": 0, "result": "many"}, 200, "0"),
        ({"result": [ROW]}, 200, ""),
        ([ROW], 200, ""),
        (b'{"ret":0,"result":[{"uid":"call-1"', 200, ""),
        (b"<html>busy</html>", 502, ""),
    ],
)
async def test_receipts_not_given(body: object, status: int, code: str) -> None:
    """A refusal has its code, an answer that cannot be read none; no number in what is told."""
    async with serving(answering(body, status)) as url, carrier(url) as opened:
        with pytest.raises(CarrierError) as error:
            await opened.pull_receipts(100)
    assert error.value.code == code
    assert "13800138000" not in str(error.value)


async def test_pull_without_connection() -> None:
    async with carrier("http://127.0.0.1:9") as opened:
        with pytest.raises(CarrierError, match="no connection"):
            await opened.pull_receipts(1)


PUSHED = {
    "receiver": "admin",
    "pswd": "密码12",
    "msgid": "17041010383624511",
    "reportTime": "1704101038",
    "mobile": "13800138000",
    "status": "DELIVRD",
    "notifyTime": "170410103859",
    "statusDesc": "短信发送成功",
    "uid": "call-1",
    "length": "2",
}


def parser(**settings: Any) -> ChuanglanCarrier:
    agreed = {"receiver": "admin", "push_password": "密码12", **settings}
    return ChuanglanCarrier(ChuanglanConfig("main", "https://smssh1.253.com", "N0000001", "secret", **agreed))


def test_receipt() -> None:
    receipt = parser().parse_pushed_receipt(PUSHED)
    assert receipt.account_id == "main"
    assert receipt.carrier_message_id == "17041010383624511"
    assert receipt.call_id == "call-1"
    assert receipt.mobile == "+8613800138000"
    assert receipt.state is ReceiptState.DELIVERED
    assert receipt.code == "DELIVRD"
    assert receipt.description == "短信发送成功"
    assert receipt.reported_at == datetime(2017, 4, 10, 2, 38, tzinfo=UTC)
    assert receipt.reported_at.tzinfo is UTC
    assert receipt.notified_at == datetime(2017, 4, 10, 2, 38, 59, tzinfo=UTC)
    assert receipt.segments == 2


def test_receipt_with_the_least() -> None:
    least = {name: PUSHED[name] for name in ("msgid", "reportTime", "mobile", "status")}
    receipt = parser(receiver="", push_password="").parse_pushed_receipt(least)
    assert (receipt.call_id, receipt.description, receipt.notified_at, receipt.segments) == ("", "", None, None)
    empty = {**dict.fromkeys(PUSHED, ""), **least}
    assert parser(receiver="", push_password="").parse_pushed_receipt(empty) == receipt


@pytest.mark.parametrize(
    ("status", "state"),
    [("DELIVRD", ReceiptState.DELIVERED), ("delivrd", ReceiptState.DELIVERED)]
    + [(status, ReceiptState.PENDING) for status in ("UNKNOWN", "ACCEPTD", "ENROUTE")]
    + [
        (status, ReceiptState.FAILED)
        for status in (
            *("REJECTD", "MBBLACK", "REJECT", "EXPIRED", "UNDELIV", "NOROUTE", "KEYWORD", "SIGFAIL", "DISTURB"),
            *("DB:0141", "MK:0001", "DELIVRD2"),
        )
    ],
)
def test_receipt_states(status: str, state: ReceiptState) -> None:
    assert receipt_state(status) is state
    receipt = parser().parse_pushed_receipt({**PUSHED, "status": status})
    assert (receipt.state, receipt.code) == (state, status)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("msgid", None, "is missing"),
        ("msgid", " ", "is missing"),
        ("msgid", "x" * 65, "1 to 64"),
        ("msgid", "a b", "1 to 64"),
        ("status", None, "is missing"),
        ("status", "DELIVRD\x00", "1 to 32"),
        ("status", "成功", "1 to 32"),
        ("mobile", None, "empty"),
        ("mobile", "1380013800", "must be a mobile number"),
        ("mobile", "+85291234567", "mainland China"),
        ("mobile", "13800138000,13900139000", "must be a mobile number"),
        ("length", "two", "segments"),
        ("length", "-1", "segments"),
        ("uid", "a\nb", "64 printable"),
    ],
)
def test_malformed_receipts_name_field_and_rule(field: str, value: str | None, rule: str) -> None:
    params = {name: text for name, text in {**PUSHED, field: value}.items() if text is not None}
    with pytest.raises(MalformedReceipt, match=rule) as refusal:
        parser().parse_pushed_receipt(params)
    assert refusal.value.field == field
    assert rule in refusal.value.rule
    assert value is None or not value.strip() or value not in str(refusal.value)


@pytest.mark.parametrize(
    "told", [None, "2017-04-10", "1713101038", "1702291038", "1704102438", "１７０４１０１０３８", "9912312359"]
)
def test_a_date_that_cannot_be_is_that_of_the_arrival(told: str | None) -> None:
    params = {**PUSHED, "reportTime": told or "", "notifyTime": "17041010385"}
    receipt = parser().parse_pushed_receipt(params)
    assert abs(datetime.now(UTC) - receipt.reported_at) < timedelta(minutes=1)
    assert receipt.notified_at is None


@pytest.mark.parametrize("wrong", [{"receiver": "Admin"}, {"receiver": ""}, {"pswd": "密码1"}, {"pswd": "\ud83d"}])
def test_receipts_of_others(wrong: dict[str, str]) -> None:
    # Judged first: who is not known learns nothing about the rest.
    with pytest.raises(ReceiptNotAuthentic):
        parser().parse_pushed_receipt({**PUSHED, "status": "", **wrong})


def test_description_is_storable() -> None:
    receipt = parser().parse_pushed_receipt({**PUSHED, "statusDesc": "a\x00b\n\ud83d" + "长" * 500})
    assert receipt.description.startswith("a b ?长")
    assert len(receipt.description) == 200


def test_loggable_masks_before_it_cuts() -> None:
    assert loggable("x" * 195 + "13800138000") == "x" * 195 + "138**"
    assert loggable("号码+8613800138000错误") == "号码+86138****8000错误"


def test_config_hides_passwords() -> None:
    shown = repr(ChuanglanConfig("main", "https://h", "N1", "secret", push_password="hush"))
    assert "secret" not in shown
    assert "hush" not in shown


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"base_url": "smssh1.253.com"}, "base_url"),
        ({"base_url": "ftp://smssh1.253.com"}, "base_url"),
        ({"base_url": "https://a:b@smssh1.253.com"}, "credentials"),
        ({"base_url": "https://smssh1.253.com?x=1"}, "base_url"),
        ({"account_id": ""}, "account_id"),
        ({"path": "msg/send/json"}, "path"),
        ({"connect_timeout_s": 0}, "timeouts"),
        ({"connect_timeout_s": 11.0}, "timeouts"),
        ({"connections_max": 0}, "connections_max"),
        ({"closed_hours_delay_s": -1.0}, "closed_hours_delay_s"),
    ],
)
def test_config_rules(settings: dict[str, Any], rule: str) -> None:
    valid = {"account_id": "main", "base_url": "https://h", "account": "N1", "password": "secret"}
    with pytest.raises(ValueError, match=rule):
        ChuanglanConfig(**{**valid, **settings})
