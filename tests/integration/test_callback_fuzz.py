"""Aim: whatever reaches the port of the callbacks, the gateway answers with no 5xx, stores nothing that is no receipt,
and takes the next good receipt as if nothing had been. Method: requests made at random, among them real receipts with
something wrong, over real HTTP on connections that are kept open, several at once, against the real app with its
database. `CALLBACK_FUZZ_REQUESTS` says how many (10,000 take a minute or two), `CALLBACK_FUZZ_SEED` which.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import string
from collections import Counter
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlencode

import pytest
import structlog
from fake_cost_center import FakeCostCenter
from gateway_harness import SECONDS, running_gateway

from smsgateway.metrics import RECEIPTS_RECEIVED

log = structlog.get_logger(__name__)

REQUESTS: Final = int(os.environ.get("CALLBACK_FUZZ_REQUESTS", "500"))
SEED: Final = int(os.environ.get("CALLBACK_FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
CONNECTIONS: Final = 8
PATH: Final = b"/callbacks/chuanglan/report"
GOOD: Final = {
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
}
VALUES: Final = [
    "", " ", "0", "-1", "\0", "'", '"', "\\", "%00", "null", "x" * 64, "x" * 65, "x" * 5_000, "9" * 40,
    "１３８００１３８０００",
    "+8613800138000", "008613800138000", "13800138000,13900139000", "12025550123", "1704101038", "9999999999",
    "0000000000",
    "1702301038", "170410103860", "DELIVRD", "delivrd", "MK:0001", "\ud7ff\ue000", "😀", "e\u0301", "<script>",
    "../../etc",
    "${jndi:ldap://x}", "1e9", "0x10", "٢", "2\r\nX: y", "call-1\n", "True", "[]", "{}",
]  # fmt: skip
METHODS: Final = [b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT", b"get",
                  b"PROPFIND", b"BREW", b"G\xc3\xa9T", b"", b"GET GET", b"M-SEARCH", b"PRI"]  # fmt: skip
PATHS: Final = [
    b"/", b"", b"*", b"//", b"/callbacks", b"/callbacks/", PATH + b"/", PATH.upper(), b"/callbacks/http/report",
    b"/callbacks/../metrics", b"/callbacks/%2e%2e/report", b"/callbacks/chuanglan%2freport", b"/%00", b"/\xff\xfe",
    b"http://elsewhere.example/callbacks/chuanglan/report", b"/" + b"a" * 70_000, b"/readyz/..",
    b"/healthz?x=1#y", b"/?%",
    b"/callbacks/\xe5\x88\x9b\xe8\x93\x9d/report", PATH + b";x=1", b"elsewhere:443",
]  # fmt: skip
TYPES: Final = [
    b"application/x-www-form-urlencoded", b"application/json", b"text/html; charset=gbk", b"multipart/form-data",
    b"multipart/form-data; boundary=x", b"application/x-www-form-urlencoded; charset=utf-16", b"", b"x/y; charset=\xff",
]  # fmt: skip


@dataclass
class Sent:
    """A request as bytes. `framed`: its end can be told, so the connection may be used again."""

    data: bytes
    kind: str
    head: bool = False
    framed: bool = True
    fields: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Heard:
    """A response."""

    status: int
    body: bytes
    closes: bool


class Maker:
    """Makes requests, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._count = 0

    def next(self) -> Sent:
        """The next request."""
        kind = self._chance.choices(
            [self._good, self._receipt, self._method, self._path, self._query, self._body, self._headers, self._broken],
            [5, 40, 8, 8, 8, 12, 9, 10],
        )[0]
        return kind()

    def good(self, **changes: str) -> dict[str, str]:
        """The fields of a receipt that nothing is wrong with."""
        self._count += 1
        return {**GOOD, "msgid": f"{self._count:017}", "uid": f"fuzz-{self._count}", **changes}

    def _good(self) -> Sent:
        return self._of_fields([*self.good().items()], "good")

    def _receipt(self) -> Sent:
        chance = self._chance
        fields = [*self.good().items()]
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(fields)) if fields else 0
            change = chance.randrange(7)
            if not fields or change == 0:
                fields.append((self._name(), self._value()))
            elif change == 1:
                del fields[at]
            elif change == 2:
                fields.insert(at, (fields[at][0], self._value()))
            elif change == 3:
                fields[at] = (self._name(), fields[at][1])
            elif change == 4:
                fields += [(self._name(), "") for _ in range(chance.choice([1, 30, 300]))]
            else:
                fields[at] = (fields[at][0], self._value())
        chance.shuffle(fields)
        return self._of_fields(fields, "receipt")

    def _of_fields(self, fields: list[tuple[str, str]], kind: str) -> Sent:
        chance = self._chance
        content = urlencode(fields, errors="replace").encode()
        if kind != "good" and chance.random() < 0.3:
            content = self._damaged(content)
        told = parse_qsl(content.decode("latin-1"), keep_blank_values=True, encoding="utf-8", errors="replace")
        if chance.random() < 0.5:
            # What a query cannot hold would end the line of the request; that is for `_query`.
            query = bytes(byte for byte in content if 0x20 < byte < 0x7F)
            return Sent(_request(b"GET", PATH + b"?" + query), kind, fields=told)
        return Sent(_request(b"POST", PATH, body=content, type_=TYPES[0]), kind, fields=told)

    def _method(self) -> Sent:
        method = self._chance.choice(METHODS)
        query = urlencode(self.good(pswd="wrong")).encode()
        return Sent(
            _request(method, PATH + b"?" + query), "method", head=method == b"HEAD", framed=method != b"CONNECT"
        )

    def _path(self) -> Sent:
        path = self._chance.choice(PATHS)
        if self._chance.random() < 0.3:
            path = self._damaged(path)
        return Sent(_request(self._chance.choice([b"GET", b"POST"]), path), "path")

    def _query(self) -> Sent:
        chance = self._chance
        query = chance.randbytes(chance.randrange(200))
        if chance.random() < 0.5:
            query = b"&".join(b"%" + query[at : at + 2].hex().encode() for at in range(0, len(query), 2))
        elif chance.random() < 0.5:
            query = urlencode(self.good()).encode() + b"&x=" + b"y" * chance.choice([9_000, 70_000])
        return Sent(_request(b"GET", PATH + b"?" + query), "query", fields=[("any", "")])

    def _body(self) -> Sent:
        chance = self._chance
        form = urlencode(self.good(pswd=chance.choice(["push", "wrong"]))).encode()
        body = chance.choice([
            chance.randbytes(chance.randrange(300)), b"", gzip.compress(form), form.decode().encode("utf-16"),
            b"\0" * 100,
            form + b"&" + b"x" * 20_000, b'{"a":' * 500, form[: chance.randrange(len(form))], b"--x\r\n" + form,
            b"=" * 999,
        ])  # fmt: skip
        extra = [(b"Content-Encoding", b"gzip")] if chance.random() < 0.3 else []
        method = chance.choice([b"POST", b"POST", b"GET"])
        chunked = chance.random() < 0.3
        told = parse_qsl(body.decode("latin-1"), keep_blank_values=True, encoding="utf-8", errors="replace")
        data = _request(method, PATH, extra, body=body, type_=chance.choice(TYPES), chunked=chunked)
        return Sent(data, "body", fields=told)

    def _headers(self) -> Sent:
        chance = self._chance
        extra = [
            chance.choice([
                (b"X" * chance.choice([1, 100, 70_000]), b"y"), (b"Cookie", chance.randbytes(50).hex().encode() * 50),
                (b"Host", b"elsewhere"), (b"Expect", b"100-continue"), (b"Connection", b"close"), (b"Upgrade", b"h2c"),
                (b"X-Forwarded-For", b"1.2.3.4, \xff"), (b"Authorization", b"Basic \xff"), (b"Range", b"bytes=0-"),
                (b"Transfer-Encoding", b"gzip"), (b"Content-Length", b"5"), (b"Accept-Encoding", b"*" * 500),
                (b"A:B", b""),
                (b"Connection", b"Upgrade"), (b"\xe9", b"\xe9"), (b"Content-Length", b"0"),
            ])
            for _ in range(chance.choice([1, 2, 5, 200]))
        ]  # fmt: skip
        query = urlencode(self.good(pswd="wrong")).encode()
        return Sent(_request(b"GET", PATH + b"?" + query, extra), "headers", framed=False)

    def _broken(self) -> Sent:
        """What has no end, or none where it says."""
        chance = self._chance
        form = urlencode(self.good()).encode()
        start = b"POST " + PATH + b" HTTP/1.1\r\nHost: x\r\n"
        length, chunks = b"Content-Length: ", b"Transfer-Encoding: chunked\r\n\r\n"
        data = chance.choice([
            start + length + b"%d\r\n\r\n" % (len(form) + 50) + form, start + length + b"-5\r\n\r\n" + form,
            start + length + b"99999999999999999999999\r\n\r\n" + form, start + length + b"ten\r\n\r\n" + form,
            start + chunks + b"zz\r\n" + form, start + chunks + b"ffffffffffffffffff\r\n" + form, start + chunks + form,
            start + b"Content-Length: 5\r\n" + chunks + b"0\r\n\r\n", chance.randbytes(chance.randrange(1, 400)),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET " + PATH + b"\r\n\r\n", b"GET " + PATH + b" HTTP/9.9\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(60), b"\r\n\r\n\r\n",
            start[: chance.randrange(40)],
            b"GET " + PATH + b" HTTP/1.0\r\n\r\n", start.replace(b"\r\n", b"\n") + b"\n", start + b" folded\r\n\r\n",
        ])  # fmt: skip
        return Sent(data, "broken", framed=False)

    def _name(self) -> str:
        chance = self._chance
        odd = "".join(chance.choices(string.printable + "é短\0", k=chance.randrange(12)))
        return chance.choice([*GOOD, odd])

    def _value(self) -> str:
        chance = self._chance
        return chance.choice([*VALUES, "".join(chr(chance.randrange(1, 0xD7FF)) for _ in range(chance.randrange(70)))])

    def _damaged(self, data: bytes) -> bytes:
        chance = self._chance
        at = chance.randrange(len(data) + 1)
        return chance.choice([data[:at], data[:at] + chance.randbytes(3) + data[at:], data[:at] + data[at + 1 :]])


def _request(
    method: bytes,
    target: bytes,
    extra: list[tuple[bytes, bytes]] | None = None,
    *,
    body: bytes | None = None,
    type_: bytes = b"",
    chunked: bool = False,
) -> bytes:
    """A request whose end can be told, if nothing in `target` or `extra` says otherwise."""
    headers = [(b"Host", b"127.0.0.1"), *(extra or [])]
    if body is not None:
        headers.append((b"Content-Type", type_))
        headers.append((b"Transfer-Encoding", b"chunked") if chunked else (b"Content-Length", b"%d" % len(body)))
        if chunked:
            cut = [body[at : at + 100] for at in range(0, len(body), 100)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in cut) + b"0\r\n\r\n"
    lines = [method + b" " + target + b" HTTP/1.1", *(name + b": " + value for name, value in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


class Caller:
    """One connection at a time, used again as long as it can be."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.reused = 0

    async def call(self, sent: Sent) -> Heard | None:
        """Send and hear; None for the answer that a request without an end may lack."""
        async with asyncio.timeout(SECONDS):
            for fresh in (self._streams is None, True):
                heard = await self._once(sent)
                if heard is not None or (fresh and not sent.framed):
                    return heard
        raise AssertionError(f"no answer to {sent.kind}: {sent.data[:200]!r}")

    async def _once(self, sent: Sent) -> Heard | None:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        else:
            self.reused += 1
        reader, writer = self._streams
        try:
            writer.write(sent.data)
            if not sent.framed:
                writer.write_eof()
            heard = await _response(reader, head=sent.head)
        except (ConnectionError, asyncio.IncompleteReadError):
            heard = None
        if heard is None or heard.closes or not sent.framed:
            await self.close()
        return heard

    async def close(self) -> None:
        """End the connection."""
        if self._streams is not None:
            self._streams[1].transport.abort()
        self._streams = None


async def _response(reader: asyncio.StreamReader, *, head: bool) -> Heard:
    while True:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        if status >= 200:
            break
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    body = b""
    if not head and status not in (204, 304):
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            while (size := int(await reader.readuntil(b"\r\n"), 16)) > 0:
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
    return Heard(status, body, headers.get("connection", "").lower() == "close")


def counted(result: str) -> float:
    """What the gateway has counted so far."""
    return float(RECEIPTS_RECEIVED.labels("chuanglan", result)._value.get())


@pytest.mark.timeout(600)
async def test_malformed_requests(fake_costcenter: FakeCostCenter, database_url: str, redis_url: str) -> None:
    """Never a 5xx; what is acknowledged had the right credentials and is stored, once, in the form that all receipts
    have; nothing else is stored; each refusal is counted; a good receipt is taken afterwards.
    """
    log.info("requests at random", seed=SEED, requests=REQUESTS)
    maker = Maker(SEED)
    seen: Counter[tuple[str, int]] = Counter()
    acknowledged: list[str] = []
    before = {result: counted(result) for result in ("stored", "malformed", "forbidden")}
    async with running_gateway(fake_costcenter, database_url, redis_url) as gateway:
        left = iter(range(REQUESTS))
        callers = [Caller(gateway.process.http_port) for _ in range(CONNECTIONS)]

        async def call_on(caller: Caller) -> None:
            for _ in left:
                sent = maker.next()
                heard = await caller.call(sent)
                seen[sent.kind, heard.status if heard is not None else 0] += 1
                if heard is None:
                    continue
                assert 200 <= heard.status < 500, (SEED, heard, sent.data[:500])
                if heard.body.startswith(b'{"clcode"'):
                    assert (heard.status, heard.body) == (200, b'{"clcode":"000000"}')
                    names = dict(sent.fields)
                    assert "any" in names or {"receiver", "pswd"} <= names.keys(), (SEED, sent.data[:500])
                    acknowledged.append(sent.kind)
                assert sent.kind != "good" or heard.status == 200, (SEED, heard, sent.data[:500])

        await asyncio.gather(*map(call_on, callers))
        assert sum(caller.reused for caller in callers) > REQUESTS / 2
        rows = await gateway.rows("select count(*), count(distinct (reference, call_id)) from receipt_inbox")
        odd = await gateway.rows(
            r"select * from receipt_inbox where account <> 'chuanglan' or reference !~ '^[!-~]{1,64}$'"
            r" or call_id !~ '^[!-~]{1,64}$' or mobile !~ '^\+861[0-9]{10}$' or state not between 1 and 4"
            r" or carrier_code !~ '^[!-~]([ -~]{0,30}[!-~])?$' or length(detail) > 200 or detail ~ '[[:cntrl:]]'"
            " or billed_segments not between 0 and 999 or reported_at not between '2000-01-01' and '2100-01-01'"
        )
        log.info(
            "answers by kind and status", seen={f"{kind} {status}": n for (kind, status), n in sorted(seen.items())}
        )
        assert odd == []
        assert rows[0][0] == len(acknowledged) == counted("stored") - before["stored"]
        assert set(acknowledged) <= {"good", "receipt", "query", "body"}
        refused = sum(
            count for (kind, status), count in seen.items() if kind == "receipt" and status in (400, 403, 413)
        )
        told = sum(counted(result) - before[result] for result in ("malformed", "forbidden"))
        assert told >= refused > 0
        query = urlencode(maker.good()).encode()
        heard = await callers[0].call(Sent(_request(b"GET", PATH + b"?" + query), "good"))
        assert heard == Heard(200, b'{"clcode":"000000"}', closes=False)
        for caller in callers:
            await caller.close()
