"""The gateway's HTTP app: carriers' callbacks beside metrics and health."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from infra import tracing
from infra.database import TRANSIENT
from infra.errors import Refusal
from infra.heartbeat import Watchdog
from infra.http_server import Check, observability_routes
from smsgateway.carriers.base import CarrierReceipt, CarrierReply, MalformedReceipt, ReceiptNotAuthentic
from smsgateway.carriers.registry import Answer, Callback, PushedRequest
from smsgateway.metrics import RECEIPTS_RECEIVED, REPLIES_RECEIVED
from smsgateway.receipts_intake import ReceiptIntake
from smsgateway.replies_intake import ReplyIntake
from smsgateway.settings import Settings

if TYPE_CHECKING:
    from infra.spans import Spans

log = structlog.get_logger(__name__)


def gateway_app(
    settings: Settings,
    carrier: str,
    callback: Callback | None,
    intake: ReceiptIntake,
    checks: Mapping[str, Check],
    watchdog: Watchdog,
    replies: tuple[Callback, ReplyIntake] | None = None,
    find: Callable[[str], ReceiptCallback | None] = lambda _: None,
    console: ASGIApp | None = None,
    grafana: ASGIApp | None = None,
) -> ASGIApp:
    """The gateway's HTTP app. Without a `callback` of the `carrier` chosen there is no path for its receipts, without
    `replies` none for them.

    Parameters: `find` the callback of another path, such as ``/callbacks/<kind>/<account>/report``; `console` what is
    at every path that nothing else has; `grafana` what is below ``/grafana``.
    """
    routes: list[BaseRoute] = [*observability_routes("SMS gateway", checks, watchdog)]
    if grafana is not None:
        routes += [Route("/grafana", _to_grafana), Mount("/grafana", app=grafana)]
    if console is not None:
        routes = [route for route in routes if getattr(route, "path", "") != "/"]
        routes.append(Mount("/", app=console))
    rest = Starlette(routes=routes)
    pushed: dict[str, ReceiptCallback] = {}
    if callback is not None:
        pushed[f"/callbacks/{carrier}/report"] = ReceiptCallback(settings, carrier, callback, intake)
    if replies is not None:
        pushed[f"/callbacks/{carrier}/reply"] = ReplyCallback(settings, carrier, *replies)

    spans = tracing.active()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # A carrier makes a request for each receipt: routes, middlewares and request objects would take half its time.
        found = None
        if scope["type"] == "http":
            found = pushed.get(scope["path"]) or find(scope["path"])
        if found is None:
            await rest(scope, receive, send)
        elif scope["method"] in found.methods:
            report = found.report(scope["method"], scope["query_string"], scope["headers"], receive)
            answer = await (report if spans is None else _traced(spans, scope["method"], report))
            headers = [
                (b"content-type", answer.content_type.encode("latin-1")),
                (b"content-length", str(len(answer.body)).encode()),
            ]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": answer.body})
        else:
            allowed = {"allow": ", ".join(sorted(found.methods))}
            await PlainTextResponse("Method Not Allowed", 405, allowed)(scope, receive, send)

    return app


async def _to_grafana(_request: Request) -> Response:
    return RedirectResponse("/grafana/", 308)


async def _traced(spans: Spans, method: str, report: Coroutine[Any, Any, Answer]) -> Answer:
    # What a carrier sends along is not ours to go on with, and paths of accounts are many.
    attributes = {"http.request.method": method, "http.route": "/callbacks"}
    with spans.span(f"{method} /callbacks", kind=spans.SERVER, attributes=attributes, parent="") as span:
        answer = await report
        span.set_attribute("http.response.status_code", answer.status)
    return answer


class ReceiptCallback:
    """Receipts that the carrier pushes.

    Its own words for: stored, and not stored but to be sent again. Unless it has one for what is refused as well, that
    is 400 with `field` and `rule`: malformed; 403: not authentic; 413: too large.
    """

    _what = "receipt"
    _received = RECEIPTS_RECEIVED

    def __init__(
        self, settings: Settings, carrier: str, callback: Callback, intake: ReceiptIntake | ReplyIntake
    ) -> None:
        self._bytes_max = settings.callback_bytes_max
        self._carrier = carrier
        self._callback = callback
        # Each has what its callback reads.
        self._take: Callable[[Any], Awaitable[str]] = intake.take
        self._counters = {
            result: self._received.labels(carrier, result)
            for result in ("stored", "malformed", "forbidden", "unavailable")
        }

    @property
    def methods(self) -> frozenset[str]:
        """The methods that it takes."""
        return self._callback.methods

    async def report(
        self, method: str, query: bytes, headers: Sequence[tuple[bytes, bytes]], receive: Receive
    ) -> Answer:
        """Take the receipts of one request and answer it."""
        try:
            body = await self._body(method, len(query), receive)
            if body is None:
                self._counters["malformed"].inc()
                return self._refused(413, {"error": f"more than {self._bytes_max} bytes"})
            receipts = self._readable(self._callback.read(PushedRequest(method, query, headers, body)))
        except ReceiptNotAuthentic as error:
            self._counters["forbidden"].inc()
            log.warning(f"{self._what} with wrong credentials", carrier=self._carrier)
            return self._refused(403, {"error": str(error)})
        except MalformedReceipt as error:
            self._count_malformed(error)
            return self._refused(400, {"error": str(error), "field": error.field, "rule": error.rule})
        if len(receipts) == 1:
            # The rule with most carriers, and without a task of its own.
            stored = await self._store(receipts[0])
        else:
            stored = all(await asyncio.gather(*(self._store(receipt) for receipt in receipts)))
        # Those that are stored come again with the rest; the second of each counts as repeated.
        return self._callback.stored if stored else self._callback.again

    def _readable(
        self, found: Sequence[CarrierReceipt | CarrierReply | MalformedReceipt]
    ) -> list[CarrierReceipt | CarrierReply]:
        """Those that could be read; one that is garbled costs no other. Raises the last error when none could."""
        receipts = [each for each in found if not isinstance(each, MalformedReceipt)]
        malformed = [each for each in found if isinstance(each, MalformedReceipt)]
        refused = malformed.pop() if malformed and not receipts else None
        for error in malformed:
            self._count_malformed(error)
        if refused is not None:
            raise refused
        return receipts

    def _count_malformed(self, error: MalformedReceipt) -> None:
        self._counters["malformed"].inc()
        log.warning(f"malformed {self._what}", carrier=self._carrier, field=error.field, rule=error.rule)

    async def _store(self, receipt: CarrierReceipt | CarrierReply) -> bool:
        try:
            await self._take(receipt)
        except (*TRANSIENT, Refusal) as error:
            self._counters["unavailable"].inc()
            log.warning(f"{self._what} not stored", carrier=self._carrier, error=type(error).__name__)
            return False
        self._counters["stored"].inc()
        return True

    def _refused(self, status: int, told: Mapping[str, str]) -> Answer:
        return self._callback.refused or Answer(status, orjson.dumps(told))

    async def _body(self, method: str, size: int, receive: Receive) -> bytes | None:
        """The body, or None when there is too much of it and the query of `size` bytes."""
        body = bytearray()
        if size > self._bytes_max:
            return None
        more = method == "POST"
        while more:
            message = await receive()
            if message["type"] != "http.request":
                # Half a form can look like a whole one.
                raise MalformedReceipt("body", "must be whole")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._bytes_max:
                return None
            body += chunk
            more = message.get("more_body", False)
        return bytes(body)


class ReplyCallback(ReceiptCallback):
    """Replies that the carrier pushes, answered as receipts are."""

    _what = "reply"
    _received = REPLIES_RECEIVED
