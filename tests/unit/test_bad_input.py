"""Aim: whatever a carrier answers or sends, nothing crashes or is lost, no message is called sent, refused or free to
go again on the strength of rubbish, and each case is counted. Method: one table of bad input, played to each kind of
carrier that has the case, over real connections; what is special to one kind is in that kind's own tests.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from aiohttp import web
from carrier_server import Handler, serving
from smpp_harness import SECONDS, Peer, ScriptedSmsc, receipt_body, scripted_smsc

from smsgateway.carriers.base import Carrier, CarrierReceipt, SingleCall, Verdict
from smsgateway.carriers.chuanglan import ChuanglanCarrier, ChuanglanConfig, ChuanglanKind
from smsgateway.carriers.http_carrier import HttpCarrier, HttpCarrierSetup, http_callback
from smsgateway.carriers.http_file import HttpCarrierFile
from smsgateway.carriers.registry import Callback, PushedRequest
from smsgateway.carriers.smpp.carrier import SmppCarrier, SmppConfig
from smsgateway.carriers.smpp.pdus import Address, Command, Pdu, ShortMessage, encode_name, encode_short_message, frame
from smsgateway.metrics import HTTP_ODD, RECEIPT_DATES_ODD, SMPP_ODD
from smsgateway.settings import Settings

EXAMPLE = tomllib.loads((Path(__file__).resolve().parents[2] / "examples" / "http-carrier.toml").read_text())
VALUES = {"account": "N1", "secret.password": "x", "secret.receiver": "r", "secret.push": "p"}
CALL = SingleCall("call-1", "+8613800138000", "【测试】验证码 1")
ACCOUNT = "bad"
KINDS = ["chuanglan", "http"]


@asynccontextmanager
async def opened(kind: str, url: str, *, seconds: float = 5.0) -> AsyncIterator[Carrier]:
    """A carrier of a kind whose answers come from `url`."""
    carrier: Carrier
    if kind == "chuanglan":
        config = ChuanglanConfig(ACCOUNT, url, "N1", "x", connect_timeout_s=min(1.0, seconds), total_timeout_s=seconds)
        carrier = ChuanglanCarrier(config)
    else:
        timeouts = {"connect_seconds": min(1.0, seconds), "call_seconds": seconds}
        file = HttpCarrierFile.model_validate({**EXAMPLE, "timeouts": timeouts})
        carrier = HttpCarrier(HttpCarrierSetup(file, url, ACCOUNT, VALUES))
    try:
        yield carrier
    finally:
        await carrier.aclose()


def counts(what: str) -> float:
    return float(HTTP_ODD.labels(ACCOUNT, what)._value.get())


@dataclass(frozen=True)
class Case:
    """What is answered, and what must be made of it."""

    name: str
    answer: bytes
    status: int = 200
    type: str = "application/json"
    verdict: Verdict = Verdict.UNKNOWN
    what: str = "unreadable"
    headers: tuple[tuple[str, str], ...] = ()


GOOD = '{"code":"0","msgId":"17","errorMsg":"成功"}'
CASES = [
    Case("a page", b"<!doctype html><html><h1>0 accepted</h1></html>", type="text/html"),
    Case("a page that says JSON", b'<html>{"code":"0","msgId":"1"}</html>'),
    Case("a page of a proxy", b"<html>502</html>", 502, "text/html"),
    Case("half a document", GOOD.encode()[:20]),
    Case("two documents", GOOD.encode() * 2),
    Case("another character set", GOOD.encode("gbk"), type="application/json; charset=utf-8"),
    Case("another character set, told", GOOD.encode("utf-16"), type="application/json; charset=utf-16"),
    Case("a mark before it", b"\xef\xbb\xbf" + GOOD.encode()),
    Case("compressed, as it says", b"\x1f\x8b\x08\x00rubbish", headers=(("Content-Encoding", "gzip"),)),
    Case("nothing", b""),
    Case("zeros", b"\0" * 500),
    Case("too much", GOOD.encode() + b" " * 70_000),
    Case("deep", b"[" * 30_000),
    Case("a redirect", b"", 302, what="redirect", headers=(("Location", "/elsewhere"),)),
    Case("a redirect for good", b"", 301, verdict=Verdict.STOP_ACCOUNT, what="redirect", headers=(("Location", "/x"),)),
    Case("a redirect that accepts", GOOD.encode(), 307, what="redirect", headers=(("Location", "/elsewhere"),)),
    Case("an error inside a success", b'{"error":{"code":"500","message":"down"}}', what="unclear"),
    Case("no code", b'{"msgId":"17"}', what="unclear"),
    Case("an unknown code", b'{"code":"777","msgId":"17"}', what="unclear"),
    Case("a code that is none", b'{"code":{"0":0},"msgId":"17"}', what="unclear"),
    Case("a success that failed", GOOD.encode(), 500, what="unclear"),
]


@pytest.mark.parametrize("kind", KINDS)
async def test_answers(kind: str) -> None:
    """Each is made what it must, with one request, and counted once under its name; then a good answer is good."""
    requests = 0
    case = CASES[0]

    async def handler(_request: web.BaseRequest) -> web.Response:
        nonlocal requests
        requests += 1
        headers = {"Content-Type": case.type, **dict(case.headers)}
        return web.Response(status=case.status, body=case.answer, headers=headers)

    async with serving(handler) as url, opened(kind, url) as carrier:
        for number, case in enumerate(CASES, 1):
            before = {each: counts(each) for each in ("unreadable", "unclear", "redirect", "lost")}
            outcome = await carrier.send_single(CALL)
            assert outcome.verdict is case.verdict, (case.name, outcome)
            assert requests == number, case.name
            told = {each: counts(each) - value for each, value in before.items()}
            assert told == {**dict.fromkeys(told, 0), case.what: 1}, case.name
            assert outcome.carrier_message_id is None
        case = Case("good", GOOD.encode())
        assert (await carrier.send_single(CALL)).verdict is Verdict.ACCEPTED


async def silent(_request: web.BaseRequest) -> web.StreamResponse:
    await asyncio.sleep(SECONDS)
    return web.Response()


async def slow(request: web.BaseRequest) -> web.StreamResponse:
    """A byte now and then, for ever."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(100):
        await response.write(b" ")
        await asyncio.sleep(0.05)
    return response


async def gone(request: web.BaseRequest) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("handler", "what"), [(silent, "late"), (slow, "late"), (gone, "lost")])
async def test_no_answer(kind: str, handler: Handler, what: str) -> None:
    """Nothing for a minute (a short one), drops for a minute, and an end: nobody knows, and it is counted."""
    before = counts(what)
    async with serving(handler) as url, opened(kind, url, seconds=0.3) as carrier, asyncio.timeout(SECONDS):
        assert (await carrier.send_single(CALL)).verdict is Verdict.UNKNOWN
    assert counts(what) == before + 1


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    """A server's side of TLS for another host than it is, and the file of the certificate, which may be trusted."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=elsewhere.example", "-addext", "subjectAltName=DNS:elsewhere.example"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context, str(certificate)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_certificate_that_does_not_match(kind: str, elsewhere: tuple[ssl.SSLContext, str]) -> None:
    """No byte of the request leaves, it may be made again, and operators see why."""
    requests: list[web.BaseRequest] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        requests.append(request)
        return web.Response(body=GOOD.encode())

    before = counts("certificate")
    async with serving(handler, elsewhere[0]) as url, opened(kind, url) as carrier:
        outcome = await carrier.send_single(CALL)
    assert (outcome.verdict, outcome.unreachable, requests) == (Verdict.RETRY, True, [])
    assert counts("certificate") == before + 1


# SMPP.


@asynccontextmanager
async def bound(smsc: ScriptedSmsc, **changes: Any) -> AsyncIterator[tuple[SmppCarrier, asyncio.Queue[CarrierReceipt]]]:
    """A carrier that takes receipts, and those that it took."""
    values = {"connect_s": 0.5, "response_s": 0.5, "call_s": 2.0, "rest_s": 0.02, "rest_s_max": 0.05, "unbind_s": 0.3}
    config = SmppConfig(ACCOUNT, smsc.host, smsc.port, "us", "secret", **{**values, **changes})
    carrier = SmppCarrier(config)
    taken: asyncio.Queue[CarrierReceipt] = asyncio.Queue()

    async def take(receipt: CarrierReceipt) -> str:
        taken.put_nowait(receipt)
        return ""

    task = asyncio.create_task(carrier.receive(take))
    try:
        yield carrier, taken
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(SECONDS):
            await carrier.aclose()


async def test_an_smsc_whose_certificate_does_not_match(elsewhere: tuple[ssl.SSLContext, str]) -> None:
    """Trusted, but another host's: no bind, so no password, is sent."""
    async with (
        scripted_smsc(elsewhere[0]) as smsc,
        bound(smsc, tls=True, tls_ca_file=elsewhere[1]) as (carrier, _),
        asyncio.timeout(SECONDS),
    ):
        outcome = await carrier.send_single(CALL)
        assert (outcome.verdict, outcome.unreachable, smsc.binds) == (Verdict.RETRY, True, [])


def odd(what: str) -> float:
    return float(SMPP_ODD.labels(ACCOUNT, what)._value.get())


def unbind_first(peer: Peer, pdu: Pdu) -> None:
    """Unbind in the middle, and never answer what is owed."""
    peer.request(Command.UNBIND)


def answer_twice(peer: Peer, pdu: Pdu) -> None:
    peer.answer(pdu, "one")
    peer.answer(pdu, "two")


def answer_with_rubbish(peer: Peer, pdu: Pdu) -> None:
    peer.write(frame(Command.SUBMIT_SM_RESP, pdu.sequence, b"\xff" * 70))


def answer_with_tlvs(peer: Peer, pdu: Pdu) -> None:
    """Optional parameters that nobody knows, one of them longer than the PDU."""
    tlvs = b"\x14\x00\x00\x02ab" + b"\x00\x1d\x00\x00" + b"\x30\x00\xff\xffcut"
    peer.write(frame(Command.SUBMIT_SM_RESP, pdu.sequence, encode_name("one") + tlvs))


def answer_in_pages(peer: Peer, pdu: Pdu) -> None:
    """Speak HTTP, as a port that is another service's does."""
    peer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n<html>")


def unknown_commands(peer: Peer, pdu: Pdu) -> None:
    """data_sm, alert_notification, outbind and a vendor's own before the response."""
    for command in (0x103, 0x102, 0x0B, 0x0001_0203):
        peer.request(command, b"\0" * 20)
    peer.answer(pdu, "one")


def foreign_numbers(peer: Peer, pdu: Pdu) -> None:
    """Responses under numbers of others, and of none, before the one that is meant."""
    for sequence in (0, pdu.sequence + 1, pdu.sequence + 1_000, 0xFFFF_FFFF):
        peer.write(frame(Command.SUBMIT_SM_RESP, sequence, encode_name("foreign")))
    peer.answer(pdu, "one")


@pytest.mark.parametrize(
    ("play", "verdict", "message_id", "counted"),
    [
        (unbind_first, Verdict.UNKNOWN, None, ""),
        (answer_twice, Verdict.ACCEPTED, "one", "unasked"),
        (answer_with_rubbish, Verdict.ACCEPTED, None, ""),
        (answer_with_tlvs, Verdict.ACCEPTED, "one", ""),
        (answer_in_pages, Verdict.UNKNOWN, None, "length"),
        (unknown_commands, Verdict.ACCEPTED, "one", "command"),
        (foreign_numbers, Verdict.ACCEPTED, "one", "unasked"),
    ],
)
async def test_an_smsc_that_breaks_the_protocol(
    play: Callable[[Peer, Pdu], None], verdict: Verdict, message_id: str | None, counted: str
) -> None:
    """The message is judged by what is sure, what is odd is counted, and the next one goes as ever, once."""
    before = odd(counted) if counted else 0.0
    async with scripted_smsc() as smsc, bound(smsc) as (carrier, _), asyncio.timeout(SECONDS):
        smsc.on_submit = play
        outcome = await carrier.send_single(CALL)
        assert (outcome.verdict, outcome.carrier_message_id) == (verdict, message_id)
        smsc.on_submit = smsc.accept
        assert (await carrier.send_single(CALL)).verdict is Verdict.ACCEPTED
        assert len(smsc.submits) == 2
    assert not counted or odd(counted) > before


async def test_receipts_with_tlvs_that_nobody_knows() -> None:
    """Lawful ones of other versions and vendors, doubled and cut off: the receipt is read."""
    tlvs = {0x0423: b"\x03\0\0", 0x1400: b"x" * 300, 0x001D: b"", 0x060B: b"\xff"}
    text = b"id:77 stat:DELIVRD done date:2601021530"
    body = encode_short_message(ShortMessage(Address(1, 1, "8613800138000"), Address(), text, esm_class=4, tlvs=tlvs))
    async with scripted_smsc() as smsc, bound(smsc) as (_, taken), asyncio.timeout(SECONDS):
        peer = await smsc.peer()
        peer.request(Command.DELIVER_SM, body + b"\x04\x27\x00\x01\x02\x00\x1e\x00\x09cut")
        assert (await peer.next(Command.DELIVER_SM_RESP)).status == 0
        assert (await taken.get()).carrier_message_id == "77"


# Receipts' dates.


def dates_odd() -> float:
    return float(RECEIPT_DATES_ODD.labels(ACCOUNT)._value.get())


Pushed = Callable[[str], Awaitable[CarrierReceipt]]


def pushed_by_http(callback: Callback) -> Pushed:
    async def push(date: str) -> CarrierReceipt:
        fields = {
            "receiver": "r", "pswd": "p", "msgid": "1", "reportTime": date, "notifyTime": "999999999999",
            "mobile": "13800138000", "status": "DELIVRD", "uid": "call-1",
        }  # fmt: skip
        (receipt,) = callback.read(PushedRequest("GET", urlencode(fields).encode(), [], b""))
        assert isinstance(receipt, CarrierReceipt), receipt
        return receipt

    return push


@asynccontextmanager
async def receiving(kind: str) -> AsyncIterator[Pushed]:
    """How a receipt with a date comes to a carrier of this kind."""
    if kind == "smpp":
        async with scripted_smsc() as smsc, bound(smsc) as (_, taken):
            peer = await smsc.peer()

            async def deliver(date: str) -> CarrierReceipt:
                peer.request(Command.DELIVER_SM, receipt_body("1", done=date))
                assert (await peer.next(Command.DELIVER_SM_RESP)).status == 0
                return await taken.get()

            yield deliver
    elif kind == "chuanglan":
        settings = Settings(
            _env_file=None, carrier_account=ACCOUNT, chuanglan_account="N1", chuanglan_receiver="r",
            chuanglan_push_password="p",
        )  # fmt: skip
        callback = ChuanglanKind().callback(settings)
        assert callback is not None
        yield pushed_by_http(callback)
    else:
        file = HttpCarrierFile.model_validate(EXAMPLE)
        assert file.receipts is not None
        yield pushed_by_http(http_callback(HttpCarrierSetup(file, file.base_url, ACCOUNT, VALUES), file.receipts, 32))


TOMORROW = (datetime.now(UTC) + timedelta(days=1)).strftime("%y%m%d%H%M")


@pytest.mark.parametrize("kind", ["chuanglan", "http", "smpp"])
async def test_dates(kind: str) -> None:
    """A date of China is that moment in UTC; one that cannot be, or of the future as with another zone than agreed,
    costs the receipt its date alone: it comes as it is, at the time of its arrival, and is counted.
    """
    async with receiving(kind) as push, asyncio.timeout(SECONDS):
        before = dates_odd()
        assert (await push("2601020730")).reported_at == datetime(2026, 1, 1, 23, 30, tzinfo=UTC)
        assert dates_odd() == before
        bad = ["2602301530", "2613011530", "2601022560", "0000000000", "26-01-02 15:30", "260102", "x" * 40, TOMORROW]
        for date in bad:
            receipt = await push(date)
            age = datetime.now(UTC) - receipt.reported_at
            assert timedelta(0) <= age < timedelta(seconds=SECONDS), date
            assert (receipt.mobile, receipt.code) == ("+8613800138000", "DELIVRD")
        assert dates_odd() == before + len(bad)


async def test_a_pulled_row_with_an_impossible_date_is_kept() -> None:
    """The carrier deletes what it gives: what is refused for its date would be gone."""
    row = {"msgId": "1", "mobile": "13800138000", "status": "DELIVRD", "reportTime": "0000000000", "uid": "call-1"}

    async def handler(_request: web.BaseRequest) -> web.Response:
        return web.Response(body=json.dumps({"ret": 0, "result": [row]}).encode())

    async with serving(handler) as url, opened("chuanglan", url) as carrier:
        pulled = await carrier.pull_receipts(20)
    assert (len(pulled.receipts), pulled.malformed) == (1, ())
