"""The gateway's HTTP app: carriers' callbacks beside metrics and health."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

import orjson
import structlog
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.database import TRANSIENT
from infra.errors import Refusal
from infra.heartbeat import Watchdog
from infra.http_server import Check, observability_routes
from smsgateway.carriers.base import CarrierReceipt, MalformedReceipt, ReceiptNotAuthentic
from smsgateway.carriers.chuanglan import RECEIPT_ACKNOWLEDGED, RECEIPT_AGAIN
from smsgateway.metrics import RECEIPTS_RECEIVED
from smsgateway.receipts_intake import ReceiptIntake
from smsgateway.settings import Settings

log = structlog.get_logger(__name__)

ReceiptParser = Callable[[Mapping[str, str]], CarrierReceipt]

_CHUANGLAN = "chuanglan"
_CHUANGLAN_PATH = "/callbacks/chuanglan/report"
_CHUANGLAN_METHODS = frozenset({"GET", "POST"})


def gateway_app(
    settings: Settings,
    parse_chuanglan: ReceiptParser | None,
    intake: ReceiptIntake,
    checks: Mapping[str, Check],
    watchdog: Watchdog,
) -> ASGIApp:
    """The gateway's HTTP app. Without a `parse_chuanglan` its callbacks are not found."""
    rest = Starlette(routes=observability_routes("SMS gateway", checks, watchdog))
    if parse_chuanglan is None:
        return rest
    callback = ChuanglanCallback(settings, parse_chuanglan, intake)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # A carrier makes a request for each receipt: routes, middlewares and request objects would take half its time.
        if scope["type"] == "http" and scope["path"] == _CHUANGLAN_PATH and scope["method"] in _CHUANGLAN_METHODS:
            status, body = await callback.report(scope["method"], scope["query_string"], receive)
            length = str(len(body)).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", length)]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        elif scope["type"] == "http" and scope["path"] == _CHUANGLAN_PATH:
            await PlainTextResponse("Method Not Allowed", 405, {"allow": "GET, POST"})(scope, receive, send)
        else:
            await rest(scope, receive, send)

    return app


class ChuanglanCallback:
    """Receipts that Chuanglan pushes: GET with a query, or POST with a form.

    200 `{"clcode":"000000"}`: stored. 400 with `field` and `rule`: malformed. 403: wrong receiver or password. 413: too
    large. 503 `{"clcode":"111111"}`: not stored, to be sent again.
    """

    def __init__(self, settings: Settings, parse: ReceiptParser, intake: ReceiptIntake) -> None:
        self._bytes_max = settings.callback_bytes_max
        self._fields_max = settings.callback_fields_max
        self._parse = parse
        self._intake = intake

    async def report(self, method: str, query: bytes, receive: Receive) -> tuple[int, bytes]:
        """Take one receipt; status and JSON of the answer."""
        try:
            params = await self._params(method, query, receive)
            if params is None:
                _count("malformed")
                return 413, orjson.dumps({"error": f"more than {self._bytes_max} bytes"})
            receipt = self._parse(params)
        except ReceiptNotAuthentic as error:
            _count("forbidden")
            log.warning("receipt with wrong credentials", carrier=_CHUANGLAN)
            return 403, orjson.dumps({"error": str(error)})
        except MalformedReceipt as error:
            _count("malformed")
            log.warning("malformed receipt", carrier=_CHUANGLAN, field=error.field, rule=error.rule)
            return 400, orjson.dumps({"error": str(error), "field": error.field, "rule": error.rule})
        try:
            await self._intake.take(receipt)
        except (*TRANSIENT, Refusal) as error:
            _count("unavailable")
            log.warning("receipt not stored", carrier=_CHUANGLAN, error=type(error).__name__)
            return 503, RECEIPT_AGAIN
        _count("stored")
        return 200, RECEIPT_ACKNOWLEDGED

    async def _params(self, method: str, query: bytes, receive: Receive) -> dict[str, str] | None:
        """The fields of the query and of the form, or None when there is too much."""
        size, body = len(query), bytearray()
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
        params: dict[str, str] = {}
        for part in (query, body):
            if not part:
                continue
            try:
                fields = parse_qsl(
                    part.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=self._fields_max
                )
            except ValueError:
                raise MalformedReceipt("query", f"must have at most {self._fields_max} fields") from None
            params.update(fields)
        return params


_COUNTERS = {
    result: RECEIPTS_RECEIVED.labels(_CHUANGLAN, result)
    for result in ("stored", "malformed", "forbidden", "unavailable")
}


def _count(result: str) -> None:
    _COUNTERS[result].inc()
