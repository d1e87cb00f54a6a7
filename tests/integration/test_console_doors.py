"""Aim: nobody gets into the console who should not, stays longer than allowed, or is made to send what he did not mean.

Method: a real gateway over HTTP, beside a cost centre that knows a few tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psycopg
import pytest
from console_harness import Browser, browser, signed_in
from fake_cost_center import FakeCostCenter
from gateway_harness import BRAND, SENDER, VIEWER, Gateway, eventually, running_gateway

from infra.authorization import Role, secret_hash
from smsgateway.console.attempts import SignInAttempts

COOKIE = "smsbill_session"


@pytest.fixture
async def gateway(fake_costcenter: FakeCostCenter, database_url: str, redis_url: str) -> AsyncIterator[Gateway]:
    """A gateway that keeps no checked token and takes three wrong sign-ins."""
    changes: dict[str, Any] = {"console_token_seconds": 0, "console_sign_in_attempts": 3, "console_sessions_max": 3}
    async with running_gateway(fake_costcenter, database_url, redis_url, **changes) as running:
        yield running


@pytest.fixture
async def visitor(gateway: Gateway) -> AsyncIterator[Browser]:
    """Somebody who is not signed in."""
    async with browser(gateway.process.http_port) as made:
        yield made


def cookie(visitor: Browser, name: str = COOKIE) -> Any:
    """A cookie of a browser."""
    return {each.key: each for each in visitor.session.cookie_jar}[name]


async def test_the_way_in_and_out(gateway: Gateway, visitor: Browser) -> None:
    """Every page asks to sign in, then is shown; after the sign-out the cookie opens nothing. Others stay signed in.

    The table holds neither the token nor what the cookie holds.
    """
    asked = await visitor.get("/audit?page=2", follow=False)
    assert (asked.status, asked.headers["location"]) == (303, "/sign-in?next=%2Faudit%3Fpage%3D2")
    page = await visitor.send("/sign-in?next=%2Faudit%3Fbrand%3D7", token=VIEWER)
    assert (page.status, page.path) == (200, "/audit?brand=7")
    assert 'data-testid="user"' in page.text
    kept = cookie(visitor)
    assert (kept["httponly"], kept["samesite"], kept["path"], kept["secure"]) == (True, "strict", "/", "")
    rows = await gateway.rows("select session_hash, sealed_token from console_session")
    assert len(rows) == 1
    assert VIEWER.encode() not in rows[0][1]
    assert kept.value.encode() not in rows[0][0] + rows[0][1]
    async with signed_in(gateway.process.http_port, VIEWER) as other:
        out = await visitor.post("/sign-out", {"csrf": await visitor.csrf()}, follow=False)
        assert (out.status, out.headers["location"]) == (303, "/sign-in")
        back = await visitor.get("/", follow=False, headers={"cookie": f"{COOKIE}={kept.value}"})
        assert back.status == 303
        assert (await other.get("/")).path == "/"


async def test_a_session_ends(gateway: Gateway, visitor: Browser, fake_costcenter: FakeCostCenter) -> None:
    """When nobody is there (a page that refreshes itself is nobody), when its time is over, and with its token."""
    await visitor.sign_in(VIEWER)
    for column in ("seen_at = now() - interval '31 minutes'", "expires_at = now()"):
        await gateway.rows(f"update console_session set {column}")
        assert (await visitor.get("/", follow=False)).status == 303
        await visitor.sign_in(VIEWER)
    older = "update console_session set seen_at = seen_at - interval '20 minutes'"
    await gateway.rows(older)
    assert (await visitor.get("/?live=1")).path == "/?live=1"
    assert (await gateway.rows("select count(*) from console_session where seen_at > now() - interval '9 minutes'"))[
        0
    ] == (0,)
    assert (await visitor.get("/")).path == "/"
    await gateway.rows(older)
    assert (await visitor.get("/")).path == "/"
    del fake_costcenter.tokens[secret_hash(VIEWER)]
    lost = await visitor.get(
        "/?live=1", follow=False, headers={"hx-request": "true", "hx-current-url": "http://x/a?b=1"}
    )
    assert (lost.status, lost.headers["hx-redirect"], lost.text) == (401, "/sign-in?next=%2Fa%3Fb%3D1", "")
    assert (await visitor.get("/", follow=False)).status == 303
    assert (await gateway.rows("select count(*) from console_session where token_id = %s", VIEWER)) == [(0,)]


class _Revoked(FakeCostCenter):
    """A cost centre that has heard of a revocation which the gateway has not."""

    async def GetBrand(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "revoked")


async def test_a_service_that_knows_better(database_url: str, redis_url: str) -> None:
    """Refuses the token while the gateway still keeps it: the session ends, and the sign-in page is no circle."""
    costcenter = _Revoked({})
    costcenter.add_token("finance", [Role.FINANCE], [BRAND])
    await costcenter.start()
    try:
        async with running_gateway(costcenter, database_url, redis_url, console_token_seconds=60) as gateway:
            async with signed_in(gateway.process.http_port, "finance") as visitor:
                page = await visitor.get(f"/brands/{BRAND}/sale")
                assert (page.status, page.path) == (200, f"/sign-in?next=/brands/{BRAND}/sale")
            assert await gateway.rows("select count(*) from console_session") == [(0,)]
    finally:
        await costcenter.stop()


async def test_pages_made_at_once_are_bounded(gateway: Gateway, visitor: Browser) -> None:
    """The next one waits for a place, and says that it took too long when there is none in time."""
    settings = {"console_pages_max": 1, "console_call_seconds": 0.3}
    database = gateway.settings.database_url
    async with (
        running_gateway(gateway.costcenter, database, gateway.settings.redis_url, **settings) as small,
        signed_in(small.process.http_port, VIEWER) as someone,
    ):
        async with await psycopg.AsyncConnection.connect(database) as connection:
            await connection.execute("lock table smsgateway.console_audit in access exclusive mode")
            waiting = asyncio.create_task(someone.get(f"/audit?brand={BRAND}"))
            await eventually(lambda: _is_waiting(gateway))
            assert (await someone.get("/")).status == 503
        assert (await waiting).status == 200
        assert (await someone.get("/")).status == 200


async def _is_waiting(gateway: Gateway) -> bool:
    return bool(await gateway.rows("select 1 from pg_locks where not granted"))


async def test_sessions_of_a_token_are_bounded(gateway: Gateway) -> None:
    """The oldest one ends when there are too many; what has ended is cleared away."""
    async with browser(gateway.process.http_port) as first:
        await first.sign_in(VIEWER)
        await gateway.rows("update console_session set created_at = created_at - interval '1 hour'")
        for _ in range(3):
            assert (await first.get("/", follow=False)).status == 200
            async with signed_in(gateway.process.http_port, VIEWER):
                pass
        assert (await first.get("/", follow=False)).status == 303
        await gateway.rows("update console_session set expires_at = now()")
        async with signed_in(gateway.process.http_port, SENDER):
            assert await gateway.rows("select token_id from console_session") == [(SENDER,)]


async def test_cookies_that_are_not_ours(gateway: Gateway, visitor: Browser) -> None:
    """Made up, endless, another session's row swapped in: as no cookie at all, and no error."""
    async with browser(gateway.process.http_port) as other:
        await other.sign_in(SENDER)
        await visitor.sign_in(VIEWER)
        mine = cookie(visitor).value
        await gateway.rows(
            "update console_session set sealed_token = (select sealed_token from console_session where token_id = %s)"
            " where token_id = %s",
            SENDER,
            VIEWER,
        )
    for value in (
        mine,
        "",
        "x",
        "a" * 43,
        "%00",
        "é" * 20,
        "a" * 6_000,
        '"; drop table',
        f"x; {COOKIE}={mine}; ; =; a",
    ):
        async with browser(gateway.process.http_port) as stranger:
            page = await stranger.get("/", follow=False, headers={"cookie": f"{COOKIE}={value}"})
            assert page.status == 303, value


async def test_wrong_sign_ins_are_counted(
    gateway: Gateway, visitor: Browser, fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """Right ones do not count, nor those that nobody could judge; after three wrong ones the right one is refused too,
    by another gateway as well.
    """
    for _ in range(4):
        assert (await visitor.sign_in(VIEWER)).status == 200
        await visitor.post("/sign-out", {"csrf": await visitor.csrf()})
    for token in ("wrong", "", "é" * 10):
        page = await visitor.sign_in(token)
        assert (page.status, page.reason) == (401, "UNAUTHENTICATED")
        assert token == "" or token not in page.text
    page = await visitor.sign_in(VIEWER)
    assert (page.status, page.reason) == (429, "TOO_MANY_SIGN_INS")
    assert 1 <= int(page.headers["retry-after"]) <= 300
    async with (
        running_gateway(fake_costcenter, database_url, redis_url, console_sign_in_attempts=3) as second,
        browser(second.process.http_port) as elsewhere,
    ):
        assert (await elsewhere.sign_in(VIEWER)).status == 429


class _NoRedis:
    """A Redis that is away."""

    def pipeline(self, *, transaction: bool) -> Any:
        raise OSError("away")


async def test_without_redis_they_are_counted_all_the_same(gateway: Gateway) -> None:
    """By each gateway for itself, by address and in all."""
    settings = gateway.settings.model_copy(update={"console_sign_in_attempts_all": 5})
    attempts = SignInAttempts(_NoRedis(), settings)
    assert [await attempts.begin("a") > 0 for _ in range(4)] == [False, False, False, True]
    await attempts.take_back("a")
    assert [await attempts.begin("b") > 0 for _ in range(3)] == [False, False, True]


async def test_forms_that_others_made(gateway: Gateway, visitor: Browser) -> None:
    """Without the session's token, with another's, from another site, or of another kind: refused, and nobody is
    signed in or out by it.
    """
    opened = await visitor.get("/sign-in")
    good = {**opened.hidden, "token": VIEWER}
    evil = {"origin": "http://evil.example"}
    page = await visitor.post("/sign-in", good, headers=evil)
    assert (page.status, page.reason) == (403, "FORM_NOT_TRUSTED")
    for csrf in ("", "0" * 64, "é"):
        page = await visitor.post("/sign-in", {**good, "csrf": csrf})
        assert (page.status, page.reason) == (403, "FORM_NOT_TRUSTED")
    async with browser(gateway.process.http_port) as stranger:
        assert (await stranger.post("/sign-in", good)).status == 403
    assert await gateway.rows("select count(*) from console_session") == [(0,)]
    await visitor.sign_in(VIEWER)
    for fields, headers in (({"csrf": ""}, {}), ({"csrf": "0" * 64}, {}), ({"csrf": await visitor.csrf()}, evil)):
        assert (await visitor.post("/tokens", fields, headers=headers)).reason == "FORM_NOT_TRUSTED"
        await visitor.post("/sign-out", fields, headers=headers)
        assert (await visitor.get("/", follow=False)).status == 200


async def test_what_a_browser_is_told(gateway: Gateway, visitor: Browser) -> None:
    """A strict policy and no copies with every page, errors included; static files for ever, by their content."""
    for path in ("/sign-in", "/nothing", "/", "/static/nothing.js"):
        page = await visitor.get(path, follow=False)
        if path.startswith("/static"):
            assert page.status == 404
            continue
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "same-origin"
    page = await visitor.get("/sign-in")
    assert "style=" not in page.text
    assert "<script>" not in page.text
    for name in ("console", "htmx.min"):
        path = page.text.partition(f"/static/{name}.")[2].partition('"')[0]
        static = await visitor.get(f"/static/{name}.{path}")
        assert (static.status, static.headers["content-encoding"]) == (200, "gzip")
        assert static.headers["cache-control"] == "public, max-age=31536000, immutable"


async def test_languages(gateway: Gateway, visitor: Browser) -> None:
    """As the browser asks, and as was chosen before that."""
    chinese = {"accept-language": "zh-CN,zh;q=0.9"}
    assert "Sign in" in (await visitor.get("/sign-in")).text
    page = await visitor.get("/sign-in", headers=chinese)
    assert "登录" in page.text
    assert 'lang="zh-CN"' in page.text
    page = await visitor.get("/language/en?next=/sign-in", headers=chinese)
    assert "Sign in" in page.text
    assert (await visitor.get("/language/xx")).status == 404
    away = await visitor.get("/language/zh?next=//evil.example", follow=False)
    assert away.headers["location"] == "/"


async def test_over_tls(fake_costcenter: FakeCostCenter, database_url: str, redis_url: str) -> None:
    """A trusted proxy says that it is TLS: cookies are for TLS and this host alone."""
    changes: dict[str, Any] = {"console_proxies": ["127.0.0.0/8"]}
    async with running_gateway(fake_costcenter, database_url, redis_url, **changes) as gateway:
        headers = {"x-forwarded-proto": "https", "x-forwarded-for": "198.51.100.7"}
        async with browser(gateway.process.http_port, headers=headers) as visitor:
            opened = await visitor.get("/sign-in", follow=False)
            (door,) = opened.headers.getall("set-cookie")  # type: ignore[attr-defined] # a multidict
            assert door.startswith("__Host-smsbill_door=")
            assert "Secure" in door
            jar = {"cookie": door.partition(";")[0]}
            done = await visitor.post("/sign-in", {**opened.hidden, "token": VIEWER}, follow=False, headers=jar)
            assert done.status == 303
            assert any(
                each.startswith("__Host-smsbill=") and "Secure" in each and "HttpOnly" in each
                for each in done.headers.getall("set-cookie")  # type: ignore[attr-defined]
            )


async def test_without_the_console(fake_costcenter: FakeCostCenter, database_url: str, redis_url: str) -> None:
    """Switched off there is the plain page, and nothing to sign in to."""
    async with (
        running_gateway(fake_costcenter, database_url, redis_url, console=False) as gateway,
        browser(gateway.process.http_port) as visitor,
    ):
        assert "SMS gateway" in (await visitor.get("/")).text
        assert (await visitor.get("/sign-in")).status == 404
