"""A receiver of webhooks as a customer would write it, with a verification of its own; a test decides its answers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

Answer = Callable[["Told"], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Told:
    """A request as it came."""

    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def events(self) -> list[dict[str, Any]]:
        return list(self.document["data"]["events"])

    @property
    def signatures(self) -> list[str]:
        return self.headers["webhook-signature"].split(" ")

    def verify(self, secret: str) -> None:
        """As the specification has it; the code is the test's own, not the product's."""
        key = base64.b64decode(secret.split("_", 1)[1])
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        expected = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        assert any(hmac.compare_digest(expected, each) for each in self.signatures), "no signature matches"
        assert abs(time.time() - int(self.headers["webhook-timestamp"])) < 300


async def taken(_: Told) -> web.StreamResponse:
    """What a receiver answers that has it."""
    return web.Response(status=204)


class Receiver:
    """Listens on a free port. `answers` are used up one by one; then `answer` decides."""

    def __init__(self) -> None:
        self.requests: list[Told] = []
        self.taken: list[dict[str, Any]] = []
        self.answers: list[Answer] = []
        self.answer: Answer = taken
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        told = Told({name.lower(): value for name, value in request.headers.items()}, await request.read())
        self.requests.append(told)
        answer = self.answers.pop(0) if self.answers else self.answer
        response = await answer(told)
        if 200 <= response.status < 300:
            self.taken += told.events
        return response

    def of(self, subject_id: str) -> list[str]:
        """The types of the events that were taken of a message or reply, in order, each once."""
        return list(
            dict.fromkeys(
                event["type"] for event in self.taken if subject_id in (event.get("message_id"), event.get("reply_id"))
            )
        )


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """One that listens until the test ends."""
    made = Receiver()
    runner = web.ServerRunner(web.Server(made.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/sms"
    try:
        yield made
    finally:
        await runner.cleanup()


def status(code: int, **headers: str) -> Answer:
    """An answer of nothing but a status."""

    async def answer(_: Told) -> web.StreamResponse:
        return web.Response(status=code, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return answer


def hanging(seconds: float = 30.0) -> Answer:
    """No answer for so long."""

    async def answer(_: Told) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return web.Response(status=204)

    return answer
