"""Aim: what is changed through the console is changed once, by whom it may, with a line in the log; else not at all.

Method: a real gateway and a real cost centre over HTTP.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from console_harness import Browser, browser, signed_in
from gateway_harness import BRAND, OTHER_BRAND, Gateway, eventually, numbers, running_gateway
from ledger_harness import BOOTSTRAP_SECRET, Ledger

from infra.authorization import Role
from infra.embedded import EmbeddedServers
from infra.grpc_server import bearer
from protos.costcenter.v1 import cost_center_admin_pb2, cost_center_pb2

SCRIPT = "<script>alert('x')</script>"
SALE = f"/brands/{BRAND}/sale"
ADJUST = f"/brands/{BRAND}/adjust"
PLAIN = {
    "offer": "plain", "segments": "1,000", "days": "30", "price": "45.00", "currency": "cny",
    "payment_reference": "bank-1", "reason": "paid by bank",
}  # fmt: skip


@dataclass
class House:
    """A gateway and a cost centre with people who are signed in."""

    gateway: Gateway
    ledger: Ledger
    admin: Browser
    finance: Browser
    operator: Browser
    viewer: Browser

    async def log(self) -> list[tuple[Any, ...]]:
        """Action, outcome and attempts of each line, oldest first."""
        return await self.gateway.rows("select action, outcome, attempts from console_audit order by audit_id")


@pytest.fixture
async def house(costcenter: Ledger, database_url: str, redis_url: str) -> AsyncIterator[House]:
    """Two brands; finance, operator and viewer hold for the first."""
    await costcenter.create_brand(BRAND, 100)
    await costcenter.create_brand(OTHER_BRAND, 100)
    tokens = [BOOTSTRAP_SECRET] + [
        await costcenter.create_token([role], [BRAND]) for role in (Role.FINANCE, Role.OPERATOR, Role.VIEWER)
    ]
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(
            running_gateway(costcenter, database_url, redis_url, console_rows=5, console_token_seconds=0)
        )
        people = [await stack.enter_async_context(signed_in(gateway.process.http_port, token)) for token in tokens]
        yield House(gateway, costcenter, *people)


async def test_a_sale_counts_once(house: House) -> None:
    """Sent twice at once and once more it is one package; with other content it is refused; prices are checked."""
    opened = await house.admin.get(SALE)
    fields = {**opened.hidden, **PLAIN}
    first, second = await asyncio.gather(*(house.admin.post(SALE, fields) for _ in range(2)))
    assert (first.status, second.status) == (200, 200)
    assert first.path == second.path == (await house.admin.post(SALE, fields)).path
    assert 'data-testid="told-segments">1000<' in first.text
    assert await house.ledger.balance(BRAND) == (1_100, 0)
    assert await house.log() == [("package sale", 2, 3)]
    other = await house.admin.post(SALE, {**fields, "segments": "2000"})
    assert (other.status, other.reason) == (409, "FORM_SENT")
    for field, value in (
        ("price", "1.23456"), ("price", "-1"), ("currency", "RMB Yuan"), ("segments", "0"), ("segments", "1e3"),
        ("days", "99999"), ("reason", " "), ("payment_reference", "a b"),
    ):  # fmt: skip
        page = await house.admin.send(SALE, **{**PLAIN, field: value})
        assert (page.status, page.reason) == (400, "BAD_REQUEST"), field
        assert f"<code>{field}</code>" in page.text
    # An offer at the price agreed, by somebody who may make none.
    offer = cost_center_admin_pb2.PackageOffer(
        offer_id="small", name=f"Small {SCRIPT}", segments=50, price="3", currency="CNY", validity_days=9, active=True
    )
    request = cost_center_admin_pb2.PutPackageOfferRequest(offer=offer)
    await house.ledger.admin.PutPackageOffer(request, metadata=bearer(BOOTSTRAP_SECRET), timeout=10)
    opened = await house.finance.get(SALE)
    assert 'value="plain"' not in opened.text
    assert SCRIPT not in opened.text
    sold = await house.finance.send(SALE, **{**PLAIN, "offer": "small", "price": "2.5"})
    assert (sold.status, sold.path[:8]) == (200, f"/audit/{BRAND}")
    refused = await house.finance.send(SALE, **{**PLAIN, "payment_reference": "bank-2"})
    assert (refused.status, refused.reason) == (403, "ROLE_NOT_ALLOWED")
    assert await house.ledger.balance(BRAND) == (1_150, 0)
    assert (await house.log())[1:] == [("package sale", 2, 1), ("package sale", 3, 1)]


async def test_adjustments(house: House) -> None:
    """Granted, clawed back, taken back whole; more than there is, is refused and the form is there again, filled in."""
    page = await house.finance.send(
        ADJUST, kind="grant", segments="40", last_day="2199-12-31", sms_type="marketing", reason=f"gift {SCRIPT}"
    )
    package = page.text.partition('told-package">')[2].partition("<")[0]
    assert SCRIPT not in page.text
    assert "gift &lt;script&gt;" in page.text
    packages = await house.ledger.ledger.ListPackages(
        cost_center_pb2.ListPackagesRequest(brand_id=BRAND), metadata=bearer(BOOTSTRAP_SECRET), timeout=10
    )
    (granted,) = [each for each in packages.packages if each.package_id == int(package)]
    # Midnight in Shanghai.
    assert granted.expires_at.ToJsonString() == "2199-12-31T16:00:00Z"
    assert list(granted.sms_types) == [3]
    page = await house.finance.send(ADJUST, kind="claw_back", package_id=package, segments="41", reason="too much")
    assert (page.status, page.reason) == (409, "INSUFFICIENT_BALANCE")
    page = await house.finance.send(ADJUST, kind="claw_back", package_id=package, segments="15", reason="too much")
    assert 'told-segments-left">25<' in page.text
    page = await house.finance.send(ADJUST, kind="return", package_id=package, reason="by contract")
    assert page.status == 200
    assert await house.ledger.balance(BRAND) == (100, 0)
    assert [line[:2] for line in await house.log()] == [
        ("grant", 2), ("claw back", 3), ("claw back", 2), ("package return", 2)
    ]  # fmt: skip


async def test_brands(house: House) -> None:
    """Made once, changed, suspended and closed; a number that is taken changes no brand."""
    good = {"name": f"Third {SCRIPT}", "status": "active", "time_zone": "Europe/Berlin", "refund_undelivered": "yes",
            "reason": "a new client"}  # fmt: skip
    page = await house.admin.send("/brands/new", brand_id=str(BRAND), **good)
    assert (page.status, page.reason) == (400, "BAD_REQUEST")
    page = await house.admin.send("/brands/new", brand_id="9", **{**good, "time_zone": "Mars/Olympus"})
    assert page.status == 400
    page = await house.admin.send("/brands/new", brand_id="9", **good)
    assert page.status == 200
    assert SCRIPT not in page.text
    for status in ("suspended", "closed"):
        page = await house.admin.send("/brands/9/settings", **{**good, "status": status})
        assert page.status == 200
    page = await house.admin.send("/brands/9/settings", **good)
    assert (page.status, page.reason) == (409, "BRAND_CLOSED")
    brand = await house.ledger.admin.GetBrand(
        cost_center_admin_pb2.GetBrandRequest(brand_id=BRAND), metadata=bearer(BOOTSTRAP_SECRET), timeout=10
    )
    assert brand.brand.name == f"brand {BRAND}"


async def test_tokens(house: House) -> None:
    """The secret is shown once, works, and with its revocation its sessions end at once."""
    opened = await house.admin.get("/tokens")
    fields = {
        **opened.hidden, "name": "night watch", "brands": f"{BRAND}", "days": "1", "role": "viewer", "reason": "new"
    }  # fmt: skip
    del fields["token_id"]
    made = await house.admin.post("/tokens", fields)
    (secret,) = re.findall(r'data-testid="secret">(sb_[\w-]+)<', made.text)
    again = await house.admin.post("/tokens", fields)
    assert again.path.startswith("/audit/0/")
    assert secret not in again.text
    assert secret not in str(await house.gateway.rows("select * from console_audit"))
    (token_id,) = re.findall(r'told-token">(\w+)<', again.text)
    async with signed_in(house.gateway.process.http_port, secret) as watch:
        assert (await watch.get("/tokens")).status == 403
        hidden = (await house.admin.get("/tokens")).hidden
        page = await house.admin.post("/tokens/revoke", {**hidden, "token_id": token_id, "reason": "lost"})
        assert page.status == 200
        assert (await watch.get("/", follow=False)).status == 303
    for change in ({"role": "king"}, {"brands": "1;2"}, {"brands": ""}, {"days": "0"}, {"name": ""}):
        page = await house.admin.send("/tokens", **{**fields, "request_id": "r1", **change})
        assert page.status == 400, change


async def test_parked_work(house: House) -> None:
    """An operator of the brand sees it, its error harmless to look at, and has it tried again or drops it."""
    sender = await house.ledger.create_token([Role.SENDER], [BRAND])
    ids = [(await house.gateway.send(token=sender, request_id=name)).message_id for name in ("a", "b")]
    parking = "update dispatch set not_before = 'infinity', failures = 9, last_error = %s"
    await house.gateway.rows(parking, SCRIPT)
    page = await house.operator.get("/parked")
    assert all(each in page.text for each in ids)
    assert SCRIPT not in page.text
    wish = {"csrf": page.hidden["csrf"], "kind": "dispatch", "reason": "carrier is back"}
    none = await house.operator.post("/parked", {**wish, "request_id": "r0", "what": "retry"})
    assert (none.status, none.reason) == (400, "BAD_REQUEST")
    done = await house.operator.post("/parked", {**wish, "request_id": "r1", "what": "retry", "parked_id": ids[0]})
    assert 'told-tried-again">1<' in done.text
    done = await house.operator.post("/parked", {**wish, "request_id": "r2", "what": "drop", "parked_id": ids[1]})
    assert 'told-dropped">1<' in done.text
    assert await house.gateway.rows("select count(*) from dispatch where not_before = 'infinity'") == [(0,)]
    assert (await house.gateway.message(ids[1], token=sender)).result_code == "DROPPED"
    assert (await house.operator.get("/parked?kind=receipt")).status == 403
    for kind in ("outbox", "webhook"):
        assert (await house.operator.get(f"/parked?kind={kind}")).status == 200


async def test_batches_and_campaigns(house: House) -> None:
    """Paused, resumed and cancelled by an operator of the brand, and by nobody else's."""
    sender = await house.ledger.create_token([Role.SENDER])
    mine = await house.gateway.send_batch(numbers(3), token=sender, campaign_id="autumn")
    other = await house.gateway.send_batch(numbers(3), token=sender, brand_id=OTHER_BRAND)
    path = f"/control?batch={mine.batch_id}"
    for what, messages in (("pause", "3"), ("resume", "3")):
        page = await house.operator.send(path, what=what, reason="a wrong link")
        assert f'told-messages">{messages}<' in page.text
    for what in ("pause", "resume", "cancel"):
        page = await house.operator.send(f"/control?brand={BRAND}&campaign=autumn", what=what, reason="a wrong link")
        assert 'told-messages">3<' in page.text
    assert [line[:2] for line in await house.log()] == [
        ("batch pause", 2), ("batch resume", 2), ("campaign pause", 2), ("campaign resume", 2), ("campaign cancel", 2)
    ]  # fmt: skip
    csrf = await house.operator.csrf()
    fields = {"csrf": csrf, "request_id": "r1", "what": "cancel", "reason": "not mine", "batch": other.batch_id}
    assert (await house.operator.post("/control", fields)).status == 403
    assert (await house.operator.get(f"/control?batch={other.batch_id}")).status == 403
    for unknown in ("batch=x", f"brand={BRAND}", "campaign=x", ""):
        assert (await house.operator.get(f"/control?{unknown}")).status == 404, unknown
    fields = {**fields, "batch": "", "brand": str(BRAND), "campaign": "nothing"}
    page = await house.operator.post("/control", fields)
    assert (page.status, page.reason) == (404, "CAMPAIGN_NOT_FOUND")
    assert (await house.gateway.batch(other.batch_id, token=sender)).cancelled is False


async def test_a_viewer_changes_nothing(house: House) -> None:
    """Every page that changes something is refused with 403, opened or sent, and nothing is written."""
    csrf = await house.viewer.csrf()
    for path in (SALE, ADJUST, "/brands/new", f"/brands/{BRAND}/settings", "/tokens", "/parked"):
        assert (await house.viewer.get(path)).status == 403, path
        fields = {**PLAIN, "csrf": csrf, "request_id": "r1", "kind": "grant", "brand_id": "9", "name": "x",
                  "status": "active", "time_zone": "UTC", "refund_undelivered": "no", "brands": "all", "role": "admin",
                  "what": "drop", "parked_id": "x", "token_id": "x"}  # fmt: skip
        page = await house.viewer.post(path, fields)
        assert (page.status, page.reason) == (403, "ROLE_NOT_ALLOWED"), path
    assert (await house.viewer.post("/tokens/revoke", fields)).status == 403
    assert await house.log() == []
    assert await house.ledger.balance(BRAND) == (100, 0)
    assert "/tokens" not in (await house.viewer.get("/")).text


async def test_the_log(house: House) -> None:
    """Page by page by key, each line once; of brands that the token holds for, and no others."""
    for number in range(7):
        brand = BRAND if number % 2 else OTHER_BRAND
        await house.admin.send(f"/brands/{brand}/adjust", kind="grant", segments="1", reason=f"round {number}")
    seen: list[str] = []
    path = "/audit"
    while path:
        page = await house.admin.get(path)
        seen += re.findall(r"round (\d)", page.text)
        following = re.search(r'href="(/audit\?[^"]*)" rel="next"', page.text)
        path = following[1].replace("&amp;", "&") if following else ""
    assert seen == ["6", "5", "4", "3", "2", "1", "0"]
    assert re.findall(r"round (\d)", (await house.viewer.get("/audit")).text) == ["5", "3", "1"]
    assert re.findall(r"round (\d)", (await house.admin.get(f"/audit?brand={OTHER_BRAND}")).text) == [
        "6",
        "4",
        "2",
        "0",
    ]
    assert (await house.viewer.get(f"/audit?brand={OTHER_BRAND}")).status == 403
    (foreign,) = (await house.gateway.rows("select max(audit_id) from console_audit where brand_id = %s", OTHER_BRAND))[
        0
    ]
    assert (await house.viewer.get(f"/audit/{OTHER_BRAND}/{foreign}")).status == 403
    assert (await house.viewer.get(f"/audit/{BRAND}/{foreign}")).status == 404
    assert (await house.admin.get("/audit?brand=0")).status == 200


BIG = "9" * 30
BAD: list[tuple[str, str, dict[str, str] | None, int]] = [
    ("GET", "/nothing", None, 404),
    ("GET", "/brands/0/sale", None, 404),
    ("GET", f"/brands/{BIG}/sale", None, 404),
    ("GET", "/brands/-1/sale", None, 404),
    ("GET", "/brands/１/sale", None, 404),
    ("GET", "/brands/4711/sale", None, 404),
    ("GET", "/brands/4711/adjust?package=%3Cscript%3E", None, 404),
    ("GET", "/audit?brand=x", None, 404),
    ("GET", f"/audit?brand={BIG}", None, 404),
    ("GET", "/audit?before=x", None, 400),
    ("GET", "/audit?before=%00", None, 400),
    ("GET", f"/audit?before={BIG}", None, 400),
    ("GET", "/audit/7/x", None, 404),
    ("GET", "/audit/7/%00", None, 400),
    ("GET", "/parked?kind=x", None, 400),
    ("GET", "/parked?after=x", None, 400),
    ("GET", "/parked?brand=%27%3B--", None, 404),
    ("GET", "/tokens?after=%FF%FE", None, 400),
    ("GET", f"/tokens?after={BIG}", None, 400),
    ("POST", "/audit", {}, 405),
    ("POST", "/nothing", {}, 404),
    ("DELETE", "/tokens", None, 405),
    ("POST", ADJUST, {"kind": "grant", "segments": "1", "last_day": "2026-02-30"}, 400),
    ("POST", ADJUST, {"kind": "grant", "segments": "1", "last_day": "1999-01-01"}, 400),
    ("POST", ADJUST, {"kind": "grant", "segments": "1", "last_day": "10000-01-01"}, 400),
    ("POST", ADJUST, {"kind": "grant", "segments": BIG}, 400),
    ("POST", ADJUST, {"kind": "grant", "segments": "1", "sms_type": "voice"}, 400),
    ("POST", ADJUST, {"kind": "steal", "segments": "1"}, 400),
    ("POST", ADJUST, {"kind": "grant", "segments": "1", "request_id": "a b"}, 400),
    ("POST", ADJUST, {"kind": "grant", "segments": "1", "request_id": ""}, 400),
    ("POST", ADJUST, {"kind": "grant", "segments": "1", "reason": "a\nb"}, 400),
    ("POST", ADJUST, {"kind": "grant", "segments": "1", "reason": "x" * 501}, 400),
    ("POST", ADJUST, {"kind": "grant", "segments": "1", "reason": "a\x00b"}, 400),
    ("POST", ADJUST, {"kind": "claw_back", "package_id": "4711", "segments": "1"}, 404),
    ("POST", ADJUST, {"kind": "grant", "segments": "1", "reason": "x" * 70_000}, 413),
    ("POST", "/parked", {"kind": "dispatch", "what": "retry", "parked_id": "x" * 40}, 200),
    ("POST", "/parked", {"kind": "x", "what": "retry", "parked_id": "x"}, 400),
    ("POST", "/tokens/revoke", {"token_id": "nobody"}, 404),
    ("POST", "/tokens/revoke", {"token_id": SCRIPT}, 400),
]  # fmt: skip


async def test_bad_input(house: House) -> None:
    """A clear page with the right status, in both languages, no traceback, nothing changed, no error in the log."""
    csrf = await house.admin.csrf()
    for number, (method, path, fields, status) in enumerate(BAD):
        if method == "POST":
            given = {"csrf": csrf, "request_id": f"bad-{number}", "reason": "why", **(fields or {})}
            page = await house.admin.post(path, given)
        elif method == "GET":
            page = await house.admin.get(path)
        else:
            async with house.admin.session.request(method, house.admin.url + path) as answer:
                assert answer.status == status, (method, path)
            continue
        assert page.status == status, (method, path, fields, page.text[-1_000:])
        assert "Traceback" not in page.text
        assert "<script>" not in page.text
        assert status < 400 or 'data-testid="error"' in page.text or page.reason, (path, page.text)
    chinese = {"accept-language": "zh", "hx-request": "true"}
    part = await house.admin.get("/brands/4711/sale", headers=chinese)
    assert (part.status, part.text.count("<html")) == (404, 0)
    assert "没有这个品牌" in part.text
    async with house.admin.session.post(house.admin.url + ADJUST, json={"csrf": csrf}) as answer:
        assert answer.status == 415
    async with house.admin.session.post(
        house.admin.url + ADJUST, data=b"\xff=%ff", headers={"content-type": "application/x-www-form-urlencoded"}
    ) as answer:
        assert answer.status == 400
    assert await house.ledger.balance(BRAND) == (100, 0)
    assert await house.gateway.rows(
        "select count(*) from console_audit where outcome = 2 and action <> 'parked retry'"
    ) == [(0,)]


async def test_lost_services(house: House, servers: EmbeddedServers) -> None:
    """Without the database or the cost centre a page says so with 503 and nothing is done; when they are back, the same
    form does it once.
    """
    opened = await house.admin.get(ADJUST)
    fields = {**opened.hidden, "kind": "grant", "segments": "5", "reason": "gift"}
    name = house.gateway.settings.database_url.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(servers.database_url, autocommit=True) as server:
        server.execute(f"alter database {name} allow_connections false".encode())
        server.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,))
        page, sent = await house.admin.get("/audit"), await house.admin.post(ADJUST, fields)
        assert (page.status, sent.status) == (503, 503)
        assert "Traceback" not in page.text + sent.text
        server.execute(f"alter database {name} allow_connections true".encode())
    await eventually(lambda: _is_shown(house.admin, "/audit"))
    assert (await house.ledger.balance(BRAND), await house.log()) == ((100, 0), [])
    assert (await house.admin.post(ADJUST, fields)).status == 200
    assert await house.ledger.balance(BRAND) == (105, 0)
    opened = await house.admin.get(ADJUST)
    fields["request_id"] = opened.hidden["request_id"]
    await asyncio.wait_for(house.ledger.process.stop(), 20)
    for page in (await house.admin.get(SALE), await house.admin.post(ADJUST, fields)):
        assert (page.status, page.reason) == (503, "UNAVAILABLE")
    async with browser(house.gateway.process.http_port) as stranger:
        page = await stranger.sign_in("sb_nobody")
        assert (page.status, page.reason) == (503, "UNAVAILABLE")
    assert await house.gateway.rows("select count(*) from console_session") == [(4,)]


async def _is_shown(visitor: Browser, path: str) -> bool:
    return (await visitor.get(path)).status == 200
