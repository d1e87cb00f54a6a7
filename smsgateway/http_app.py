"""The gateway's HTTP app: carriers' callbacks beside metrics and health."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.database import TRANSIENT
from infra.errors import Refusal
from infra.http_server import Check, observability_routes
from smsgateway.carriers.base import CarrierReceipt, MalformedReceipt, ReceiptNotAuthentic
from smsgateway.carriers.chuanglan import RECEIPT_ACKNOWLEDGED, RECEIPT_AGAIN
from smsgateway.metrics import RECEIPTS_RECEIVED
from smsgateway.receipts_intake import ReceiptIntake
from smsgateway.settings import Settings

log = structlog.get_logger(__name__)

ReceiptParser = Callable[[Mapping[str, str]], CarrierReceipt]

_JSON = "application/json"
_CHUANGLAN = "chuanglan"


def gateway_app(
    settings: Settings, parse_chuanglan: ReceiptParser | None, intake: ReceiptIntake, checks: Mapping[str, Check]
) -> Starlette:
    """The gateway's HTTP app. Without a `parse_chuanglan` its callbacks are not found."""
    routes = observability_routes("SMS gateway", checks)
    if parse_chuanglan is not None:
        callback = ChuanglanCallback(settings, parse_chuanglan, intake)
        routes.append(Route("/callbacks/chuanglan/report", callback.report, methods=["GET", "POST"]))
    return Starlette(routes=routes)


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

    async def report(self, request: Request) -> Response:
        """Take one receipt."""
        try:
            params = await self._params(request)
            if params is None:
                _count("malformed")
                return JSONResponse({"error": f"more than {self._bytes_max} bytes"}, status_code=413)
            receipt = self._parse(params)
        except ReceiptNotAuthentic as error:
            _count("forbidden")
            log.warning("receipt with wrong credentials", carrier=_CHUANGLAN)
            return JSONResponse({"error": str(error)}, status_code=403)
        except MalformedReceipt as error:
            _count("malformed")
            log.warning("malformed receipt", carrier=_CHUANGLAN, field=error.field, rule=error.rule)
            return JSONResponse({"error": str(error), "field": error.field, "rule": error.rule}, status_code=400)
        try:
            await self._intake.take(receipt)
        except (*TRANSIENT, Refusal) as error:
            _count("unavailable")
            log.warning("receipt not stored", carrier=_CHUANGLAN, error=type(error).__name__)
            return Response(RECEIPT_AGAIN, status_code=503, media_type=_JSON)
        _count("stored")
        return Response(RECEIPT_ACKNOWLEDGED, media_type=_JSON)

    async def _params(self, request: Request) -> dict[str, str] | None:
        """The fields of the query and of the form, or None when there is too much."""
        query = request.url.query
        size, body = len(query), bytearray()
        if size > self._bytes_max:
            return None
        if request.method == "POST":
            async for chunk in request.stream():
                size += len(chunk)
                if size > self._bytes_max:
                    return None
                body += chunk
        params: dict[str, str] = {}
        for part in (query, body.decode("utf-8", "replace")):
            try:
                params.update(parse_qsl(part, keep_blank_values=True, max_num_fields=self._fields_max))
            except ValueError:
                raise MalformedReceipt("query", f"must have at most {self._fields_max} fields") from None
        return params


def _count(result: str) -> None:
    RECEIPTS_RECEIVED.labels(_CHUANGLAN, result).inc()
