"""Aim: a pushed receipt is read exactly as the file says or refused with a reason, and no request whatever is answered
with a status of 5xx or stored half-read.

Method: recorded pushes as tables, and thousands of requests made by hypothesis through the gateway's HTTP app itself,
over a store that checks what a database would.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.errors import overloaded
from infra.heartbeat import Watchdog
from smsgateway.carriers.base import CarrierReceipt, CarrierReply, MalformedReceipt, ReceiptNotAuthentic, ReceiptState
from smsgateway.carriers.chuanglan import ChuanglanKind
from smsgateway.carriers.http_carrier import HttpCarrierSetup, http_callback
from smsgateway.carriers.http_file import HttpCarrierFile
from smsgateway.carriers.registry import Callback, PushedRequest
from smsgateway.http_app import gateway_app
from smsgateway.receipts_intake import ReceiptIntake
from smsgateway.settings import Settings

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "http-carrier.toml"
VALUES = {"account": "N1", "secret.password": "x", "secret.receiver": "r", "secret.push": "päss"}
PUSHED = {
    "receiver": "r",
    "pswd": "päss",
    "msgid": "17041010383624511",
    "reportTime": "1704101038",
    "notifyTime": "170410103836",
    "mobile": "13800138000",
    "status": "DELIVRD",
    "statusDesc": "短信发送成功",
    "uid": "call-1",
    "length": "2",
}
JSON_RECEIPTS: dict[str, Any] = {
    "methods": ["POST"],
    "format": "json",
    "list": "data.reports",
    "auth": {"hmac": {"header": "X-Signature", "secret": "push", "prefix": "sha256="}},
    "fields": {"message_id": "id", "mobile": "to.0", "state": "state", "code": "error", "reported_at": "at"},
    "states": {"ok": "delivered", "no": "failed"},
    "times": {"formats": ["unix", "iso", "%Y-%m-%d %H:%M:%S"], "zone": "+08:00"},
    "numbers": "e164",
    "answers": {"refused": {"status": 422, "body": "no"}},
}
FIELDS_MAX = 32


def reading(**receipts: Any) -> Callback:
    """The callback of the example's file with other receipts, or of the example itself."""
    document = tomllib.loads(EXAMPLE.read_text())
    if receipts:
        document["receipts"] = receipts
    file = HttpCarrierFile.model_validate(document)
    assert file.receipts is not None
    return http_callback(HttpCarrierSetup(file, file.base_url, "main", VALUES), file.receipts, FIELDS_MAX)


def get(**changes: str) -> PushedRequest:
    return PushedRequest("GET", urlencode({**PUSHED, **changes}).encode(), [], b"")


def post(document: object, *, key: str = "päss", **headers: str) -> PushedRequest:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    signature = "sha256=" + hmac.new(key.encode(), body, "sha256").hexdigest().upper()
    given = {"x-signature": signature, **headers}
    return PushedRequest("POST", b"", [(name.encode(), value.encode()) for name, value in given.items()], body)


def report(**changes: Any) -> dict[str, Any]:
    return {"id": "m1", "to": ["+8613800138000"], "state": "ok", "at": 1_700_000_000, **changes}


def one(found: Sequence[CarrierReceipt | CarrierReply | MalformedReceipt]) -> CarrierReceipt:
    (receipt,) = found
    assert isinstance(receipt, CarrierReceipt), receipt
    return receipt


def test_the_examples_receipt() -> None:
    """Every field of a push of the simulator, as query and as form."""
    expected = CarrierReceipt(
        "main",
        "17041010383624511",
        "call-1",
        "+8613800138000",
        ReceiptState.DELIVERED,
        "DELIVRD",
        "短信发送成功",
        datetime(2017, 4, 10, 2, 38, tzinfo=UTC),
        datetime(2017, 4, 10, 2, 38, 36, tzinfo=UTC),
        2,
    )
    callback = reading()
    assert one(callback.read(get())) == expected
    assert one(callback.read(PushedRequest("POST", b"", [], urlencode(PUSHED).encode()))) == expected
    least = one(callback.read(get(uid="", length="", statusDesc="", notifyTime="", status="XYZ")))
    assert (least.call_id, least.segments, least.notified_at, least.state) == ("", None, None, ReceiptState.FAILED)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"msgid": "", "uid": ""}, "message_id"),
        ({"msgid": "a\0b"}, "message_id"),
        ({"msgid": "x" * 65}, "message_id"),
        ({"uid": "two words"}, "call_id"),
        ({"status": ""}, "state"),
        ({"status": "成功"}, "state"),
        ({"mobile": ""}, "mobile"),
        ({"mobile": "12"}, "mobile"),
        ({"length": "-1"}, "segments"),
        ({"length": "²"}, "segments"),
    ],
)
def test_malformed(changes: dict[str, str], field: str) -> None:
    """The field and its rule are named, never the value."""
    (error,) = reading().read(get(**changes))
    assert isinstance(error, MalformedReceipt)
    assert error.field == field
    assert next(iter(changes.values())) not in str(error).replace("''", "") or not next(iter(changes.values()))


@pytest.mark.parametrize(
    ("told", "moment"),
    [
        (1_700_000_000, "2023-11-14T22:13:20"),
        ("yesterday", None),
        ("1" * 1_000, None),
        ("2099-01-01T00:00:00Z", None),
        (None, None),
        ("1700000000", "2023-11-14T22:13:20"),
        ("2026-01-02 03:04:05", "2026-01-01T19:04:05"),
        ("2026-01-02T03:04:05", "2026-01-01T19:04:05"),
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05"),
        ("2026-01-02T03:04:05-05:00", "2026-01-02T08:04:05"),
        ("2026-02-30 00:00:00", None),
        ("0001-01-01T00:00:00+08:00", None),
        ("9999-12-31T23:59:59", None),
        (10**14 - 1, None),
        (10**30, None),
        (-1, None),
        (1.5, None),
        (True, None),
        ([], None),
    ],
)
def test_times(told: object, moment: str | None) -> None:
    """Other zones, other spellings; one that cannot be, or is none, costs no receipt: it stands for now."""
    (found,) = reading(**JSON_RECEIPTS).read(post({"data": {"reports": [report(at=told)]}}))
    if moment is None:
        assert abs(datetime.now(UTC) - one([found]).reported_at) < timedelta(minutes=1)
    else:
        assert one([found]).reported_at == datetime.fromisoformat(moment).replace(tzinfo=UTC)


def test_many_in_one_push() -> None:
    """Each is read alone: one that is garbled costs no other; a code of its own, a state that is not in the table."""
    reports = [report(), report(state="no", error="E7"), report(state="queued", at=None), "rubbish", report(to=[])]
    found = reading(**JSON_RECEIPTS).read(post({"data": {"reports": reports}}))
    read = [each for each in found if isinstance(each, CarrierReceipt)]
    assert [(each.state.value, each.code) for each in read] == [
        ("delivered", "ok"),
        ("failed", "E7"),
        ("pending", "queued"),
    ]
    assert abs((read[2].reported_at - datetime.now(UTC)).total_seconds()) < 60
    assert [each.field for each in found if isinstance(each, MalformedReceipt)] == ["message_id", "mobile"]
    assert reading(**JSON_RECEIPTS).read(post({"data": {"reports": []}})) == []


@pytest.mark.parametrize("document", [b"", b"{", b"null", b"[]", b'"x"', b"7", b"\xff", {"data": {"reports": {}}}])
def test_no_list_of_receipts(document: object) -> None:
    """Signed rubbish is malformed as a whole."""
    with pytest.raises(MalformedReceipt):
        reading(**JSON_RECEIPTS).read(post(document))


def test_a_query_is_no_document() -> None:
    """Signed is the body alone, so a receipt in the query beside it is none."""
    fields = {**JSON_RECEIPTS["fields"], "mobile": "to"}
    receipts = {name: value for name, value in JSON_RECEIPTS.items() if name != "list"} | {"fields": fields}
    query = urlencode(report(to="+8613800138000")).encode()
    signed = post(b"null")
    (found,) = reading(**receipts).read(PushedRequest("POST", query, signed.headers, signed.body))
    assert isinstance(found, MalformedReceipt)


SIGNED = post({"data": {"reports": [report()]}})
BASE64 = base64.b64encode(hmac.new("päss".encode(), SIGNED.body, hashlib.sha512).digest()).decode()


@pytest.mark.parametrize(
    ("request_", "auth"),
    [
        (post({"data": {"reports": [report()]}}, key="other"), JSON_RECEIPTS["auth"]),
        (PushedRequest("POST", b"", [], SIGNED.body), JSON_RECEIPTS["auth"]),
        (PushedRequest("POST", b"", SIGNED.headers, SIGNED.body + b" "), JSON_RECEIPTS["auth"]),
        (PushedRequest("POST", b"", [(b"x-signature", b"sha256=")], b"{"), JSON_RECEIPTS["auth"]),
        (post({}, **{"x-key": "wrong"}), {"headers": {"X-Key": "k {account}"}}),
        (post({}), {"headers": {"X-Key": "k {account}"}}),
        (post({"key": "wrong"}), {"fields": {"key": "{secret.push}"}}),
        (post({"key": ["päss"]}), {"fields": {"key": "{secret.push}"}}),
        (post({"key": "päss"}), {"fields": {"key": "{secret.push}"}, "headers": {"X-Key": "k"}}),
    ],
)
def test_not_authentic(request_: PushedRequest, auth: dict[str, Any]) -> None:
    """Wrong, missing or partly right credentials, and a body that was changed: judged before anything else."""
    with pytest.raises(ReceiptNotAuthentic):
        reading(**{**JSON_RECEIPTS, "auth": auth}).read(request_)


@pytest.mark.parametrize(
    ("request_", "auth"),
    [
        (SIGNED, JSON_RECEIPTS["auth"]),
        (
            PushedRequest("POST", b"", [(b"x-sign", BASE64.encode())], SIGNED.body),
            {"hmac": {"header": "X-Sign", "secret": "push", "algorithm": "sha512", "encoding": "base64"}},
        ),
        (post({"data": {"reports": [report()]}}, **{"x-key": "k N1"}), {"headers": {"X-Key": "k {account}"}}),
        (
            post({"key": "päss", "data": {"reports": [report()]}}),
            {"fields": {"key": "{secret.push}"}},
        ),
        (
            PushedRequest("POST", urlencode({"key": "päss"}).encode(), [], SIGNED.body),
            {"fields": {"key": "{secret.push}"}},
        ),
        (PushedRequest("POST", b"", [], SIGNED.body), {"none": True}),
    ],
)
def test_authentic(request_: PushedRequest, auth: dict[str, Any]) -> None:
    """Each way to prove where a push comes from."""
    assert one(reading(**{**JSON_RECEIPTS, "auth": auth}).read(request_)).carrier_message_id == "m1"


# Fuzz.


class Store:
    """Takes receipts as the intake does, and what PostgreSQL would not take fails the test."""

    def __init__(self) -> None:
        self.taken = 0
        self.away: set[str] = set()

    async def take(self, receipt: CarrierReceipt) -> str:
        if receipt.carrier_message_id in self.away:
            raise overloaded("queue of receipts", 1)
        self.taken += 1
        assert receipt.carrier_message_id or receipt.call_id
        assert re.fullmatch(r"\+[1-9][0-9]{7,14}", receipt.mobile)
        assert receipt.code
        for text in (receipt.carrier_message_id, receipt.call_id, receipt.code, receipt.description):
            assert "\0" not in text
            assert len(text.encode()) <= 800
        for moment in (receipt.reported_at, receipt.notified_at):
            assert moment is None or (moment.tzinfo is not None and 2000 <= moment.year <= 2100)
        assert receipt.segments is None or 0 <= receipt.segments < 1_000
        return "id"


class Pushed:
    """The gateway's HTTP app without sockets."""

    def __init__(self, callback: Callback) -> None:
        self.store = Store()
        found = Settings(_env_file=None, callback_bytes_max=2_048)
        self._app = gateway_app(found, "fuzz", callback, cast(ReceiptIntake, self.store), {}, Watchdog(60))

    async def push(
        self, method: str, query: bytes, headers: list[tuple[bytes, bytes]], chunks: list[bytes], *, whole: bool
    ) -> int:
        messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": chunk, "more_body": number < len(chunks) or not whole}
            for number, chunk in enumerate(chunks, 1)
        ] or [{"type": "http.request"}]
        messages.append({"type": "http.disconnect"})
        coming = iter(messages)
        statuses: list[int] = []

        async def receive() -> Any:
            return next(coming)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": "/callbacks/fuzz/report",
            "query_string": query,
            "headers": headers,
        }
        await self._app(scope, receive, send)
        (status,) = statuses
        return status


@pytest.mark.parametrize(
    ("reports", "away", "status", "taken"),
    [
        ([report(), report(id="m2")], set(), 200, 2),
        ([report(), "rubbish"], set(), 200, 1),
        (["rubbish", report(to=["1"])], set(), 422, 0),
        ([], set(), 200, 0),
        ([report()], {"m1"}, 503, 0),
        ([report(), report(id="m2"), report(id="m3")], {"m2"}, 503, 2),
    ],
)
async def test_what_the_carrier_hears(reports: list[Any], away: set[str], status: int, taken: int) -> None:
    """Refused when nothing can be read, asked for again when one could not be stored, else acknowledged."""
    pushed = Pushed(reading(**JSON_RECEIPTS))
    pushed.store.away = away
    request = post({"data": {"reports": reports}})
    assert await pushed.push("POST", b"", list(request.headers), [request.body], whole=True) == status
    assert pushed.store.taken == taken


NAMES = st.sampled_from([*PUSHED, "key", "data", "%", "é", "status\0"])
VALUE_TEXTS = st.one_of(
    st.sampled_from(
        [
            *PUSHED.values(),
            "",
            "0",
            "-1",
            "\0",
            "%00",
            "9" * 40,
            "99999999999999",
            "+8613800138000",
            "9999-12-31T23:59:59",
            "null",
        ]
    ),
    st.text(max_size=70),
)
QUERIES = st.one_of(
    st.binary(max_size=200),
    st.lists(st.tuples(NAMES, VALUE_TEXTS), max_size=40).map(
        lambda fields: urlencode(fields, errors="replace").encode()
    ),
    st.dictionaries(NAMES, VALUE_TEXTS, max_size=4).map(
        lambda changes: urlencode({**PUSHED, **changes}, errors="replace").encode()
    ),
    st.dictionaries(NAMES, st.binary(max_size=30), max_size=2).map(
        lambda changes: b"&".join(
            [urlencode(PUSHED).encode(), *(quote(name).encode() + b"=" + value for name, value in changes.items())]
        )
    ),
)
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), VALUE_TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(NAMES | st.sampled_from(list(report())), inner, max_size=3)
    ),
    max_leaves=8,
)
REPORTS = st.dictionaries(st.sampled_from([*report(), "error"]), JSON_VALUES, max_size=3).map(
    lambda changes: report(**changes)
)
BODIES = st.one_of(
    st.binary(max_size=100),
    st.just(b"[" * 1_500),
    st.just(b"x" * 3_000),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    st.lists(st.one_of(REPORTS, JSON_VALUES), max_size=4).map(
        lambda each: json.dumps({"data": {"reports": each}}).encode()
    ),
)
HEADERS = st.lists(
    st.tuples(st.sampled_from([b"x-signature", b"content-type", b"x"]), st.binary(max_size=20)), max_size=3
)


# Where a request is damaged, as a part of its length: each that is drawn is pushed as it is, and so.
DAMAGE = (0.3, 0.6, 0.95)


def damaged(content: bytes, part: float) -> bytes:
    """Cut off there, or with another byte in the place."""
    at = int(len(content) * part)
    return content[:at] if part < 0.5 else content[:at] + bytes([(len(content) * 7) % 256]) + content[at + 1 :]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        yield runner.get_loop()


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("carrier", ["chuanglan", "fields", "unsigned fields"])
def test_fuzz_of_fields(loop: asyncio.AbstractEventLoop, carrier: str) -> None:
    """Queries and forms with fields too many, too long, twice, garbled or cut off: 200 or 4xx, and what is stored is
    storable. Some are taken, some refused: the fuzz reaches behind the credentials.
    """
    if carrier == "chuanglan":
        found = Settings(_env_file=None, chuanglan_account="N1", chuanglan_receiver="r", chuanglan_push_password="päss")
        callback = ChuanglanKind().callback(found)
        assert callback is not None
    else:
        receipts = tomllib.loads(EXAMPLE.read_text())["receipts"]
        if carrier.startswith("unsigned"):
            receipts["auth"] = {"none": True}
        callback = reading(**receipts)
    pushed, seen = Pushed(callback), set[int]()

    @FUZZ
    @given(
        st.sampled_from(["GET", "POST", "PUT"]), QUERIES, HEADERS, st.lists(QUERIES | BODIES, max_size=2), st.booleans()
    )
    def fuzz(method: str, query: bytes, headers: list[tuple[bytes, bytes]], chunks: list[bytes], whole: bool) -> None:
        for query_, chunks_ in (
            (query, chunks),
            *((damaged(query, at), [damaged(c, at) for c in chunks]) for at in DAMAGE),
        ):
            status = loop.run_until_complete(pushed.push(method, query_, headers, chunks_, whole=whole))
            assert status in (200, 400, 403, 405, 413)
            seen.add(status)

    fuzz()
    assert {200, 400, 405} <= seen
    assert pushed.store.taken


@pytest.mark.parametrize("signed", [True, False])
def test_fuzz_of_json(loop: asyncio.AbstractEventLoop, signed: bool) -> None:
    """The same for JSON, with right signatures and with wrong ones."""
    pushed, seen = Pushed(reading(**JSON_RECEIPTS)), set[int]()

    @FUZZ
    @given(QUERIES, HEADERS, BODIES, st.booleans())
    def fuzz(query: bytes, headers: list[tuple[bytes, bytes]], body: bytes, whole: bool) -> None:
        for body_ in (body, *(damaged(body, at) for at in DAMAGE)):
            given_headers = [*post(body_).headers, *headers] if signed else headers
            status = loop.run_until_complete(pushed.push("POST", query, given_headers, [body_], whole=whole))
            assert status in (200, 422)
            seen.add(status)

    fuzz()
    assert bool(pushed.store.taken) == signed
    assert seen == ({200, 422} if signed else {422})
