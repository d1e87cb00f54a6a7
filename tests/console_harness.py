"""The console over HTTP as a browser uses it, without one."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

_FIELD = re.compile(r'<input[^>]*\bname="([^"]+)"[^>]*\bvalue="([^"]*)"')
_CSRF = re.compile(r'name="csrf" value="([0-9a-f]*)"')


@dataclass(frozen=True)
class Page:
    """An answer."""

    status: int
    path: str
    text: str
    headers: Mapping[str, str]

    @property
    def hidden(self) -> dict[str, str]:
        """The fields that the page's last form comes with."""
        form = self.text.rpartition("<form")[2]
        return {name: html.unescape(value) for name, value in _FIELD.findall(form)}

    @property
    def reason(self) -> str:
        """Why it was refused, or empty."""
        match = re.search(r'data-reason="([A-Z_]+)"', self.text)
        return match[1] if match else ""


class Browser:
    """One person's cookies."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def get(self, path: str, *, follow: bool = True, headers: Mapping[str, str] | None = None) -> Page:
        """A page."""
        async with self.session.get(self.url + path, allow_redirects=follow, headers=headers) as answer:
            return await _page(answer)

    async def post(
        self,
        path: str,
        fields: Mapping[str, str] | Sequence[tuple[str, str]],
        *,
        follow: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> Page:
        """Send a form."""
        pairs = list(fields.items()) if isinstance(fields, Mapping) else list(fields)
        async with self.session.post(
            self.url + path, data=pairs or b"", allow_redirects=follow, headers=headers
        ) as answer:
            return await _page(answer)

    async def send(self, path: str, **fields: str) -> Page:
        """Open the page of a form, fill it in, send it."""
        page = await self.get(path)
        return await self.post(path, {**page.hidden, **fields})

    async def csrf(self) -> str:
        """What forms of this session carry."""
        match = _CSRF.search((await self.get("/audit")).text)
        assert match is not None
        return match[1]

    async def sign_in(self, token: str) -> Page:
        """Sign in."""
        return await self.send("/sign-in", token=token)


async def _page(answer: aiohttp.ClientResponse) -> Page:
    return Page(answer.status, answer.url.path_qs, await answer.text(), answer.headers)


@asynccontextmanager
async def browser(port: int, **options: Any) -> AsyncIterator[Browser]:
    """A browser without cookies."""
    timeout = aiohttp.ClientTimeout(total=30)
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=jar, **options) as session:
        yield Browser(session, f"http://127.0.0.1:{port}")


@asynccontextmanager
async def signed_in(port: int, token: str) -> AsyncIterator[Browser]:
    """A browser that is signed in."""
    async with browser(port) as made:
        page = await made.sign_in(token)
        assert page.status == 200, page.text
        yield made
