"""HTTP: carriers' callbacks, metrics, health; and the server that the gateway and the workers run it with."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import parse_qsl

import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from infra.database import TRANSIENT
from infra.errors import Refusal, StartError
from infra.telemetry import REGISTRY
from smsgateway.carriers.base import CarrierReceipt, MalformedReceipt, ReceiptNotAuthentic
from smsgateway.carriers.chuanglan import RECEIPT_ACKNOWLEDGED, RECEIPT_AGAIN
from smsgateway.metrics import RECEIPTS_RECEIVED
from smsgateway.receipts_intake import ReceiptIntake
from smsgateway.settings import Settings

log = structlog.get_logger(__name__)

Check = Callable[[], Awaitable[bool]]
ReceiptParser = Callable[[Mapping[str, str]], CarrierReceipt]

_JSON = "application/json"
_CHUANGLAN = "chuanglan"
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<h1>{title}</h1>
<p>It runs. <a href="/readyz">What it reaches</a>, <a href="/metrics">metrics</a>.</p></html>
"""


def observability_routes(title: str, checks: Mapping[str, Check]) -> list[Route]:
    """`/`, `/healthz` (the process is alive), `/readyz` (each check by name; 503 when one fails) and `/metrics`."""

    async def page(_request: Request) -> Response:
        return HTMLResponse(_PAGE.format(title=title))

    async def healthy(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_request: Request) -> Response:
        results = await asyncio.gather(*(check() for check in checks.values()))
        return JSONResponse(dict(zip(checks, results, strict=True)), status_code=200 if all(results) else 503)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return [
        Route("/", page),
        Route("/healthz", healthy),
        Route("/readyz", ready),
        Route("/metrics", metrics),
    ]


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
        body = bytearray()
        if request.method == "POST":
            async for chunk in request.stream():
                body += chunk
                if len(body) > self._bytes_max:
                    return None
        if len(query) + len(body) > self._bytes_max:
            return None
        params: dict[str, str] = {}
        for part in (query, body.decode("utf-8", "replace")):
            try:
                params.update(parse_qsl(part, keep_blank_values=True, max_num_fields=self._fields_max))
            except ValueError:
                raise MalformedReceipt("query", f"must have at most {self._fields_max} fields") from None
        return params


def _count(result: str) -> None:
    RECEIPTS_RECEIVED.labels(_CHUANGLAN, result).inc()


class HttpServer:
    """uvicorn in the running event loop, on an address such as `0.0.0.0:8080` (port 0: a free one, see `port`).

    Parameters: `requests_max` requests served at once, beyond it 503; `drain_seconds` how long a stop waits for
    those under way.
    """

    def __init__(self, app: Starlette, address: str, *, requests_max: int, drain_seconds: float) -> None:
        self._address = address
        self._drain_seconds = drain_seconds
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="none",
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=requests_max,
                timeout_graceful_shutdown=max(1, int(drain_seconds)),
            )
        )
        self._serving: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises `StartError` when the address is taken or none."""
        listener = _listen(self._address)
        self.port = listener.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
                raise StartError(f"cannot serve HTTP on {self._address}")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Take no new requests, finish those under way within the drain time."""
        if self._serving is None:
            return
        self._server.should_exit = True
        done, _ = await asyncio.wait({self._serving}, timeout=self._drain_seconds + 2)
        if not done:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        self._serving = None


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(target)
        except OSError:
            listener.close()
            raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StartError(f"cannot listen on {address}: {reason}; free it or set another") from None
    return listener
