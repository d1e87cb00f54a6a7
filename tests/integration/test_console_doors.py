"""The console's doors: who gets in, for how long, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from console_harness import Browser, browser, signed_in
from gateway_harness import VIEWER, Gateway


@pytest.fixture
async def visitor(gateway: Gateway) -> AsyncIterator[Browser]:
    """Somebody who is not signed in."""
    async with browser(gateway.process.http_port) as made:
        yield made


async def test_the_way_in_and_out(gateway: Gateway, visitor: Browser) -> None:
    """Every page asks to sign in; then it is shown; after the sign-out the same cookie opens nothing."""
    asked = await visitor.get("/?page=2", follow=False)
    assert (asked.status, asked.headers["location"]) == (303, "/sign-in?next=%2F%3Fpage%3D2")
    page = await visitor.sign_in(VIEWER)
    assert (page.status, page.path) == (200, "/")
    assert 'data-testid="user"' in page.text
    cookie = {each.key: each for each in visitor.session.cookie_jar}["smsbill_session"]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "strict", "/")
    async with signed_in(gateway.process.http_port, VIEWER) as other:
        out = await visitor.post("/sign-out", page.hidden, follow=False)
        assert (out.status, out.headers["location"]) == (303, "/sign-in")
        back = await visitor.get("/", follow=False, headers={"cookie": f"smsbill_session={cookie.value}"})
        assert back.status == 303
        assert (await other.get("/")).status == 200
    rows = await gateway.rows("select session_hash, sealed_token from console_session")
    assert len(rows) == 1
    assert VIEWER.encode() not in rows[0][1]
