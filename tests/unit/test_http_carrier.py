"""Aim: a carrier that a file sets up gets exactly the request that the file describes, once, and what became of it is
never misjudged, whatever the other side answers.

Method: real HTTP on the loopback address against a server that plays recorded exchanges and each way in which they
fail. It counts requests: none may ever be repeated.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import ssl
import subprocess
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import pytest
from aiohttp import web
from carrier_server import Handler, answering, serving

from infra.errors import StartError
from smsgateway.carriers.base import BatchCall, CallOutcome, Carrier, CarrierError, SingleCall, Verdict
from smsgateway.carriers.http_carrier import HttpCarrier, HttpCarrierKind, HttpCarrierSetup
from smsgateway.carriers.http_file import HttpCarrierFile, load_file
from smsgateway.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "http-carrier.toml"
DOCS = ROOT / "docs" / "carriers.md"
TEXT = '【测试】a&b=c+d%20{text}{{}} "quoted" \\ 100%\n#?;'
CALL = SingleCall("call-1", "+8613800138000", TEXT)
BATCH = BatchCall("call-2", ("+8613800138000", "+8613900139000"), TEXT)
VALUES = {
    "account": "N0000001",
    "secret.password": 'se"cret&{text}/?#',
    "secret.receiver": "r",
    "secret.push": "p",
}
JSON_ANSWER = {"code": "code", "message_id": "id", "codes": {"0": "accepted", "5": "refused"}}
STATUS_ANSWER = {"message_id": "data.0.sid", "statuses": {"201": "accepted", "400": "refused", "503": "retry"}}
TEXT_ANSWER = {
    "format": "text",
    "charset": "gbk",
    "code": r"<state>(-?\d+)</state>",
    "message_id": r"<id>(\w+)</id>",
    "explanation": r"<words>([^<]*)</words>",
    "codes": {"0": "accepted", "-3": {"verdict": "retry", "after_seconds": 7, "meaning": "full"}},
}


def example(**changes: Any) -> HttpCarrierFile:
    """The example's file with some parts exchanged."""
    return HttpCarrierFile.model_validate({**tomllib.loads(EXAMPLE.read_text()), **changes})


def set_up(url: str, file: HttpCarrierFile | None = None) -> HttpCarrierSetup:
    return HttpCarrierSetup(file or example(), url, "main", VALUES)


def sending(answer: dict[str, Any] = JSON_ANSWER, **request: Any) -> dict[str, Any]:
    """A part `send` of a file."""
    if not request:
        request = {"form": {"to": "{mobile}", "text": "{text}"}}
    return {"path": "/send", **request, "answer": answer}


@asynccontextmanager
async def opened(url: str, file: HttpCarrierFile | None = None, **options: Any) -> AsyncIterator[HttpCarrier]:
    carrier = HttpCarrier(set_up(url, file), **options)
    try:
        yield carrier
    finally:
        await carrier.aclose()


async def outcome_of(handler: Handler, file: HttpCarrierFile | None = None) -> CallOutcome:
    """One call against a server that must get exactly one request."""
    requests = 0

    async def counting(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        return await handler(request)

    async with serving(counting) as url, opened(url, file) as carrier:
        outcome = await carrier.send_single(CALL)
    assert requests == 1
    return outcome


class Recorder:
    """Keeps requests and accepts them."""

    def __init__(self, answer: object = None) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self._answer = {"code": "0", "id": "m-1", "msgId": "m-1"} if answer is None else answer

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.method, request.raw_path, headers, await request.read()))
        return web.json_response(self._answer)


# What is sent.


async def test_the_example_sends_what_the_simulator_understands() -> None:
    """JSON with every placeholder, texts that look like placeholders left alone, a batch in one call."""
    recorder = Recorder()
    async with serving(recorder) as url, opened(url + "/base/") as carrier:
        assert isinstance(carrier, HttpCarrier)
        of_protocol: Carrier = carrier
        assert await of_protocol.send_single(CALL) == CallOutcome(Verdict.ACCEPTED, carrier_message_id="m-1", code="0")
        assert (await carrier.send_batch(BATCH)).verdict is Verdict.ACCEPTED
    (method, path, headers, body), (_, _, _, batch_body) = recorder.requests
    assert (method, path, headers["content-type"]) == (
        "POST",
        "/base/msg/send/json",
        "application/json; charset=utf-8",
    )
    assert json.loads(body) == {
        "account": "N0000001",
        "password": VALUES["secret.password"],
        "msg": TEXT,
        "phone": "13800138000",
        "report": "true",
        "uid": "call-1",
    }
    assert json.loads(batch_body)["phone"] == "13800138000,13900139000"


@pytest.mark.parametrize("charset", ["utf-8", "gbk"])
@pytest.mark.parametrize("place", ["form", "query"])
async def test_fields_are_escaped(place: str, charset: str) -> None:
    """Whatever a text holds, it cannot end its field or begin another; Chinese goes out in the set that is wanted."""
    fields = {
        "u": "{account}",
        "p": "{secret.password}",
        "to": "{mobile}",
        "m": "{text}",
        "x": "a{{b}}c",
        "i": "{call_id}",
    }
    request: dict[str, Any] = {"method": "GET" if place == "query" else "POST", place: fields, "charset": charset}
    recorder = Recorder()
    file = example(send=sending(**request), limits={"numbers": "digits"})
    async with serving(recorder) as url, opened(url, file) as carrier:
        assert (await carrier.send_single(CALL)).verdict is Verdict.ACCEPTED
    ((method, path, headers, body),) = recorder.requests
    sent = path.partition("?")[2] if place == "query" else body.decode()
    assert dict(parse_qsl(sent, encoding=charset, strict_parsing=True)) == {
        "u": "N0000001",
        "p": VALUES["secret.password"],
        "to": "8613800138000",
        "m": TEXT,
        "x": "a{b}c",
        "i": "call-1",
    }
    assert (method, path.partition("?")[0]) == (request["method"], "/send")
    if place == "form":
        assert headers["content-type"] == f"application/x-www-form-urlencoded; charset={charset}"


async def test_lists_headers_and_paths() -> None:
    """A JSON list for each number, headers, basic access, and a path in which nothing filled in is more than a part."""
    file = example(
        limits={"batch": 10, "numbers": "e164"},
        send=sending(
            path="/v1/{account}/{secret.password}/send",
            json={"to": [{"phone": "{mobile}", "n": 1}], "deep": {"text": ["{text}", None, True]}},
            headers={"X-Call": "{call_id}", "X-Key": "k {account}"},
            basic_auth=["{account}", "{secret.password}"],
        ),
    )
    recorder = Recorder()
    async with serving(recorder) as url, opened(url, file) as carrier:
        await carrier.send_batch(BATCH)
    ((_, path, headers, body),) = recorder.requests
    assert [unquote(part) for part in path.split("/")] == ["", "v1", "N0000001", VALUES["secret.password"], "send"]
    assert json.loads(body) == {
        "to": [{"phone": "+8613800138000", "n": 1}, {"phone": "+8613900139000", "n": 1}],
        "deep": {"text": [TEXT, None, True]},
    }
    assert (headers["x-call"], headers["x-key"]) == ("call-2", "k N0000001")
    assert base64.b64decode(headers["authorization"].split()[1]).decode() == f"N0000001:{VALUES['secret.password']}"


@pytest.mark.parametrize(
    ("mobile", "text", "send", "verdict"),
    [
        ("+8613800138000", "", None, Verdict.REFUSED),
        ("+8613800138000", "x" * 537, None, Verdict.REFUSED),
        ("+8613800138000", "\ud83d", None, Verdict.REFUSED),
        ("+8613800138000", "\ud83d", sending(), Verdict.REFUSED),
        ("+8613800138000", "😀", sending(charset="gbk", form={"a": "{mobile}{text}"}), Verdict.REFUSED),
        ("+13805551234", "hello", None, Verdict.BAD_NUMBER),
    ],
)
async def test_what_cannot_be_sent_is_not(mobile: str, text: str, send: Any, verdict: Verdict) -> None:
    """Refused without a call: wrong length, no Unicode, not in the character set, a foreign number spelled national."""
    recorder = Recorder()
    file = example(limits={"batch": 1}, **({"send": send} if send else {}))
    async with serving(recorder) as url, opened(url, file) as carrier:
        outcome = await carrier.send_single(SingleCall("c", mobile, text))
    assert (outcome.verdict, recorder.requests) == (verdict, [])
    assert outcome.detail.startswith("not sent: ")


async def test_connections_are_reused() -> None:
    """One connection for calls that follow each other, whatever their method."""
    peers: set[object] = set()

    async def handler(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.json_response({"code": "0", "id": "1"})

    file = example(send=sending(method="GET", query={"to": "{mobile}", "m": "{text}"}), limits={"batch": 1})
    async with serving(handler) as url, opened(url, file) as carrier:
        for _ in range(5):
            assert (await carrier.send_single(CALL)).verdict is Verdict.ACCEPTED
    assert len(peers) == 1


# What is answered.


@pytest.mark.parametrize(
    ("body", "status", "verdict", "code"),
    [
        ({"code": "0", "msgId": "7"}, 200, Verdict.ACCEPTED, "0"),
        ({"code": 0, "msgId": 7}, 201, Verdict.ACCEPTED, "0"),
        ({"code": " 0 "}, 200, Verdict.ACCEPTED, "0"),
        ({"code": "103"}, 200, Verdict.RETRY, "103"),
        ({"code": "103"}, 400, Verdict.RETRY, "103"),
        ({"code": "105"}, 200, Verdict.REFUSED, "105"),
        ({"code": 107}, 200, Verdict.BAD_NUMBER, "107"),
        ({"code": "109"}, 403, Verdict.STOP_ACCOUNT, "109"),
        # Contradictions, words unknown and garbage: nobody knows.
        ({"code": "0", "msgId": "7"}, 400, Verdict.UNKNOWN, "0"),
        ({"code": "0", "msgId": "7"}, 403, Verdict.UNKNOWN, "0"),
        ({"code": "0", "msgId": "7"}, 302, Verdict.UNKNOWN, "0"),
        ({"code": "0", "msgId": "7"}, 500, Verdict.UNKNOWN, "0"),
        ({"code": "103"}, 500, Verdict.UNKNOWN, "103"),
        ({"code": "131"}, 200, Verdict.UNKNOWN, "131"),
        ({"code": "00"}, 200, Verdict.UNKNOWN, "00"),
        ({"code": False}, 200, Verdict.UNKNOWN, "false"),
        ({"code": 0.0}, 200, Verdict.UNKNOWN, ""),
        ({"code": None}, 200, Verdict.UNKNOWN, ""),
        ({"code": ["0"]}, 200, Verdict.UNKNOWN, ""),
        ({"code": {"0": "0"}}, 200, Verdict.UNKNOWN, ""),
        ({"error": {"code": "0"}}, 200, Verdict.UNKNOWN, ""),
        ([{"code": "0"}], 200, Verdict.UNKNOWN, ""),
        ("0", 200, Verdict.UNKNOWN, ""),
        (b"", 200, Verdict.UNKNOWN, ""),
        (b'{"code":"0","ms', 200, Verdict.UNKNOWN, ""),
        (b"<html>busy code 0</html>", 200, Verdict.UNKNOWN, ""),
        ('{"code":"0","errorMsg":"短信"}'.encode("gbk"), 200, Verdict.UNKNOWN, ""),
        ('{"code":"0"}'.encode("utf-16"), 200, Verdict.UNKNOWN, ""),
        (b"<html>busy</html>", 502, Verdict.UNKNOWN, ""),
        (b"", 400, Verdict.UNKNOWN, ""),
        (b"", 302, Verdict.UNKNOWN, ""),
        (b"", 303, Verdict.UNKNOWN, ""),
        (b'{"code":"0"}' + b" " * 70_000, 200, Verdict.UNKNOWN, ""),
        # The server says that it did not take the request.
        (b"", 301, Verdict.STOP_ACCOUNT, ""),
        (b"", 307, Verdict.STOP_ACCOUNT, ""),
        (b"", 401, Verdict.STOP_ACCOUNT, ""),
        (b"<html>not here</html>", 404, Verdict.STOP_ACCOUNT, ""),
        (b"", 429, Verdict.RETRY, ""),
    ],
)
async def test_answers_with_a_code(body: object, status: int, verdict: Verdict, code: str) -> None:
    """The table of the file for the code that it names; everything else says nothing sure. No redirect is followed."""
    headers = {"Location": "/elsewhere"} if 300 <= status < 400 else None
    outcome = await outcome_of(answering(body, status, headers))
    assert (outcome.verdict, outcome.code) == (verdict, code)


async def test_an_unclear_answer_is_told() -> None:
    """The carrier's words for what nobody knows reach the log, without numbers."""
    outcome = await outcome_of(answering({"code": "131", "errorMsg": "不明 13800138000"}))
    assert outcome == CallOutcome(Verdict.UNKNOWN, code="131", detail="HTTP status 200 不明 138****8000")


@pytest.mark.parametrize(
    ("body", "status", "verdict", "message_id"),
    [
        ({"data": [{"sid": "SM1"}]}, 201, Verdict.ACCEPTED, "SM1"),
        # A success with an error inside, or of another kind than agreed.
        ({"data": [], "error": "no credit"}, 201, Verdict.UNKNOWN, None),
        ({"data": [{"sid": ""}]}, 201, Verdict.UNKNOWN, None),
        ({"data": [{"sid": "two words"}]}, 201, Verdict.UNKNOWN, None),
        ({"data": [{"sid": "SM1"}]}, 200, Verdict.UNKNOWN, None),
        (b"<html>SM1</html>", 201, Verdict.UNKNOWN, None),
        (b'{"data": [{"sid": "S', 201, Verdict.UNKNOWN, None),
        ({"message": "13800138000 is not one"}, 400, Verdict.REFUSED, None),
        (b"", 503, Verdict.RETRY, None),
        (b"", 500, Verdict.UNKNOWN, None),
        (b"", 403, Verdict.STOP_ACCOUNT, None),
        (b"", 429, Verdict.RETRY, None),
    ],
)
async def test_answers_without_a_code(body: object, status: int, verdict: Verdict, message_id: str | None) -> None:
    """The status decides as the file says, and an acceptance has an id."""
    file = example(limits={"batch": 1}, send=sending(STATUS_ANSWER))
    outcome = await outcome_of(answering(body, status), file)
    assert (outcome.verdict, outcome.carrier_message_id) == (verdict, message_id)


@pytest.mark.parametrize(
    ("body", "verdict", "code", "detail"),
    [
        ("<state>0</state><id>m7</id><words>好</words>", Verdict.ACCEPTED, "0", "好"),
        ("<state>-3</state><words>满 13800138000</words>", Verdict.RETRY, "-3", "full: 满 138****8000"),
        ("<state>4</state>", Verdict.UNKNOWN, "4", "HTTP status 200"),
        ("<state>0<", Verdict.UNKNOWN, "", "HTTP status 200"),
        (b"<state>0</state>\x81", Verdict.UNKNOWN, "", "HTTP status 200, no text as agreed"),
    ],
)
async def test_answers_in_text(body: str | bytes, verdict: Verdict, code: str, detail: str) -> None:
    """Patterns find code, id and words in the character set of the carrier; numbers in its words are masked."""
    content = body if isinstance(body, bytes) else body.encode("gbk")
    file = example(limits={"batch": 1}, send=sending(TEXT_ANSWER))
    outcome = await outcome_of(answering(content), file)
    assert (outcome.verdict, outcome.code, outcome.detail) == (verdict, code, detail)
    assert outcome.retry_after_s == (7 if verdict is Verdict.RETRY else None)
    assert outcome.carrier_message_id == ("m7" if verdict is Verdict.ACCEPTED else None)


@pytest.mark.parametrize(
    ("answer", "message_id", "failed"),
    [
        ({"msgId": 17041010383624511}, "17041010383624511", 0),
        ({"msgId": "x" * 65, "failNum": "7"}, None, 1),
        ({"msgId": 1.7e31, "failNum": "-1"}, None, 0),
        ({"failNum": "9" * 30}, None, 0),
    ],
)
async def test_accepted_whatever_the_rest(answer: dict[str, object], message_id: str | None, failed: int) -> None:
    """An id or a count that makes no sense does not undo an acceptance."""
    outcome = await outcome_of(answering({"code": 0, **answer}))
    assert outcome == CallOutcome(Verdict.ACCEPTED, carrier_message_id=message_id, code="0", failed_count=failed)


async def test_the_carrier_says_when_to_come_back() -> None:
    """Retry-After holds where the file has no time of its own; it is bounded."""
    assert (await outcome_of(answering({"code": "103"}, 200, {"Retry-After": "9"}))).retry_after_s == 1
    assert (await outcome_of(answering(b"", 429, {"Retry-After": "999999"}))).retry_after_s == 3_600


# What is not answered.


QUICK = {"timeouts": {"connect_seconds": 0.1, "call_seconds": 0.2}}


async def test_silence_is_unknown() -> None:
    """Nothing in time, or half an answer in time: the call is over and nobody knows."""

    async def silent(_request: web.BaseRequest) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    async def half(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"code":"0",')
        await asyncio.sleep(5)
        return response

    for handler in (silent, half):
        outcome = await outcome_of(handler, example(**QUICK))
        assert outcome == CallOutcome(Verdict.UNKNOWN, detail="no answer in time")


@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
async def test_a_lost_connection_is_unknown_and_nothing_is_repeated(method: str) -> None:
    """Lost at the first call or on a connection used before: one request each, also of methods that may be repeated."""
    requests = 0

    async def handler(request: web.BaseRequest) -> web.Response:
        nonlocal requests
        requests += 1
        assert request.transport is not None
        if requests != 2:
            request.transport.abort()
        return web.json_response({"code": "0", "id": "1"})

    send = sending(method=method, query={"to": "{mobile}", "m": "{text}"})
    async with serving(handler) as url, opened(url, example(send=send, limits={"batch": 1})) as carrier:
        verdicts = [(await carrier.send_single(CALL)).verdict for _ in range(3)]
    assert verdicts == [Verdict.UNKNOWN, Verdict.ACCEPTED, Verdict.UNKNOWN]
    assert requests == 3


async def test_what_has_not_left_is_sent_again() -> None:
    """Refused, no such host, no TLS there, closed: surely not accepted."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        async with opened(f"http://127.0.0.1:{taken.getsockname()[1]}") as carrier:
            outcome = await carrier.send_single(CALL)
            assert (outcome.verdict, outcome.unreachable) == (Verdict.RETRY, True)
            await carrier.aclose()
            outcome = await carrier.send_single(CALL)
            assert (outcome.verdict, outcome.unreachable) == (Verdict.RETRY, False)
    async with opened("http://nowhere.invalid") as carrier:
        assert (await carrier.send_single(CALL)).verdict is Verdict.RETRY
    async with serving(Recorder()) as url, opened(url.replace("http:", "https:")) as carrier:
        assert (await carrier.send_single(CALL)).verdict is Verdict.RETRY


async def test_a_wrong_certificate_is_no_connection(tmp_path: Path) -> None:
    """A certificate that nobody vouches for: nothing is sent, and the call may be made again."""
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(  # noqa: ASYNC221 - before anything runs
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", "/CN=elsewhere.example"),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    recorder = Recorder()
    async with serving(recorder, tls) as url, opened(url) as carrier:
        outcome = await carrier.send_single(CALL)
    assert (outcome.verdict, outcome.unreachable, recorder.requests) == (Verdict.RETRY, True, [])


async def test_no_free_connection_is_sent_again() -> None:
    """A call that waits in vain for one of the connections has not left."""
    release = asyncio.Event()

    async def handler(_request: web.BaseRequest) -> web.Response:
        await release.wait()
        return web.json_response({"code": "0", "msgId": "1"})

    file = example(timeouts={"connect_seconds": 0.1, "call_seconds": 5})
    async with serving(handler) as url, opened(url, file, connections_max=1) as carrier:
        calls = [asyncio.create_task(carrier.send_single(CALL)) for _ in range(2)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=5)
        assert [task.result().verdict for task in done] == [Verdict.RETRY]
        release.set()
        assert sorted(outcome.verdict.value for outcome in await asyncio.gather(*calls)) == ["accepted", "retry"]


# The balance.


@pytest.mark.parametrize(
    ("body", "price", "segments"),
    [
        ({"code": 0, "balance": "953"}, None, 953),
        ({"code": "0", "balance": 953}, None, 953),
        ({"code": "0", "balance": 45.99}, "0.045", 1022),
        ({"code": "0", "balance": "-3"}, None, 0),
    ],
)
async def test_balance(body: object, price: str | None, segments: int) -> None:
    """Segments, or as many as the money pays."""
    balance: dict[str, Any] = tomllib.loads(EXAMPLE.read_text())["balance"]
    balance["answer"] |= {"price": price} if price else {}
    recorder = Recorder(body)
    async with serving(recorder) as url, opened(url, example(balance=balance)) as carrier:
        assert await carrier.balance() == segments
    assert json.loads(recorder.requests[0][3]) == {"account": "N0000001", "password": VALUES["secret.password"]}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"code": "0", "balance": "many"}, 200),
        ({"code": "0", "balance": "NaN"}, 200),
        ({"code": "0", "balance": "Infinity"}, 200),
        ({"code": "0", "balance": "1e999999999"}, 200),
        ({"code": "0"}, 200),
        ({"code": "102", "balance": "7"}, 200),
        ({"balance": "7"}, 200),
        ({"code": "0", "balance": "7"}, 500),
        (b"<html>", 200),
    ],
)
async def test_no_balance(body: object, status: int) -> None:
    """What is no balance is an error, never a number."""
    async with serving(answering(body, status)) as url, opened(url) as carrier:
        with pytest.raises(CarrierError):
            await carrier.balance()
    async with opened("http://127.0.0.1:1", example(balance=None)) as carrier:
        with pytest.raises(CarrierError, match="names no call"):
            await carrier.balance()


# The file.


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('base_url = "http://127.0.0.1:8090"', 'base_url = "ftp://x"', "base_url must be http"),
        ('base_url = "http://127.0.0.1:8090"', 'base_url = "http://u:p@x"', "must not hold credentials"),
        ('name = "the simulator"', "", "name: Field required"),
        ("connect_seconds = 3", "connect_seconds = 30", "timeouts: connect_seconds must be at most call_seconds"),
        ("connect_seconds = 3", "conect_seconds = 3", "timeouts.conect_seconds: Extra inputs are not permitted"),
        ("batch = 1000", "batch = 0", "limits.batch: "),
        ('numbers = "national"', 'numbers = "local"', "limits.numbers: "),
        ('path = "/msg/send/json"', 'path = "msg"', "send.path: "),
        ('path = "/msg/send/json"', 'path = "/{text}"', "send.path: has {text}; known here are: "),
        ('msg = "{text}"', 'msg = "{txt}"', "send.json: has {txt}; known here are: "),
        ('msg = "{text}"', 'msg = "{text"', "send.json: has a single {"),
        ('msg = "{text}"', 'msg = "text"', "send: has no {text}"),
        ('phone = "{mobiles}"', 'phone = "{mobile}"', "send: has {mobile} outside a list"),
        ('phone = "{mobiles}"', 'phone = ""', "send: has no {mobile} and no {mobiles}"),
        ('"{secret.password}"', '"{secret.pasword}"', "has {secret.pasword}; known here are: "),
        ('format = "json"', 'format = "text"', "send.answer.code: must have one group"),
        ('format = "json"', 'format = "xml"', "send.answer.format: "),
        ('0 = "accepted"', '0 = "refused"', "send.answer: codes must hold one that is accepted"),
        ('0 = "accepted"', '0 = "acepted"', "send.answer.codes.0.verdict: "),
        ("after_seconds = 1,", "after_seconds = -1,", "send.answer.codes.103.after_seconds: "),
        ('good_codes = ["0"]', "", "balance.answer: code and good_codes belong together"),
        ('format = "fields"', 'format = "json"', "receipts: methods: JSON comes with POST"),
        ('mobile = "mobile"', 'mobile = "a.b"', "receipts: fields.mobile: must be one name"),
        ('DELIVRD = "delivered"', "", "receipts: states must hold one that is delivered"),
        ('zone = "+08:00"', 'zone = "Asia/Shangri-La"', "receipts.times.zone: must be an offset"),
        ('"%y%m%d%H%M"', '"%H%M"', "receipts.times.formats.0: must tell year"),
        ('pswd = "{secret.push}"', 'pswd = ""', "receipts.auth.fields.pswd: is empty"),
        ('pswd = "{secret.push}"', 'pswd = "{secret.no}"', "receipts.auth.fields.pswd: has {secret.no}"),
        ("status = 503", "status = 99", "receipts.answers.again.status: "),
        ("[limits]", "[limits", "http.toml: "),
    ],
)
def test_errors_in_the_file_name_the_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, told: str
) -> None:
    """A process does not start with a file that it does not understand whole; one line says where."""
    path = tmp_path / "http.toml"
    content = EXAMPLE.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    monkeypatch.setenv("SMSBILL_HTTP_CARRIER_FILE", str(path))
    monkeypatch.setenv("SMSBILL_HTTP_SECRETS", json.dumps({"password": "x", "receiver": "r", "push": "p"}))
    with pytest.raises(StartError) as refused:
        HttpCarrierKind().describe(Settings(_env_file=None, carrier="http"))
    assert told in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("CARRIER_FILE", "", "set SMSBILL_HTTP_CARRIER_FILE"),
        ("CARRIER_FILE", "/nowhere.toml", "setting SMSBILL_HTTP_CARRIER_FILE: /nowhere.toml: No such file"),
        ("URL", "x", "base_url must be http"),
        ("SECRETS", "hush", 'SMSBILL_HTTP_*: error parsing value for field "secrets"'),
        ("SECRETS", '{"password": ""}', "secret.password: a secret must not be empty"),
        ("SECRETS", '{"pass word": "x"}', "setting SMSBILL_HTTP_SECRETS_"),
    ],
)
def test_errors_in_the_environment(monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str) -> None:
    """The setting is named, its value is not told."""
    monkeypatch.setenv("SMSBILL_HTTP_CARRIER_FILE", str(EXAMPLE))
    monkeypatch.setenv("SMSBILL_HTTP_SECRETS", json.dumps({"password": "x", "receiver": "r", "push": "p"}))
    monkeypatch.setenv(f"SMSBILL_HTTP_{name}", value)
    with pytest.raises(StartError) as refused:
        HttpCarrierKind().open(Settings(_env_file=None, carrier="http"), connections_max=1)
    assert told in str(refused.value)
    assert "hush" not in str(refused.value)


def test_the_kind_tells_what_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the doctor: the file's name, the address in use and the account, no secret; the setup shows none either."""
    monkeypatch.setenv("SMSBILL_HTTP_CARRIER_FILE", str(EXAMPLE))
    monkeypatch.setenv("SMSBILL_HTTP_URL", "https://sms.example.net/api")
    monkeypatch.setenv("SMSBILL_HTTP_SECRETS", json.dumps({"password": "hush", "receiver": "r", "push": "p"}))
    settings = Settings(_env_file=None, carrier="http")
    described = HttpCarrierKind().describe(settings)
    assert described == "the simulator over HTTP at https://sms.example.net/api, as http"
    assert "hush" not in repr(HttpCarrierSetup.load("x"))


def test_json_and_toml_say_the_same(tmp_path: Path) -> None:
    """The file may be JSON."""
    path = tmp_path / "carrier.json"
    path.write_text(json.dumps(tomllib.loads(EXAMPLE.read_text())))
    assert load_file(path, variable="X") == example()


def test_the_file_in_the_documentation_is_one(tmp_path: Path) -> None:
    """The parts that docs/carriers.md explains make a whole file together."""
    section = DOCS.read_text().partition("## A carrier without code")[2].partition("\n## ")[0]
    path = tmp_path / "documented.toml"
    path.write_text("\n".join(re.findall(r"```toml\n(.*?)```", section, re.DOTALL)))
    file = load_file(path, variable="X")
    assert file.receipts is not None
    assert file.balance is not None
    values = {"account": "N1", "secret.key": "k", "secret.push": "p"}
    setup = HttpCarrierSetup(file, file.base_url, "main", values)
    assert HttpCarrier(setup).limits.max_batch == 100
