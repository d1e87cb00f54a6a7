"""The HTTP side of every process: metrics, liveness, readiness, and a server for the running event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from infra.errors import StartError
from infra.heartbeat import Watchdog
from infra.telemetry import REGISTRY

log = structlog.get_logger(__name__)

Check = Callable[[], Awaitable[bool]]

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<h1>{title}</h1>
<p>It runs. <a href="/readyz">What it reaches</a>, <a href="/metrics">metrics</a>.</p></html>
"""


def observability_routes(
    title: str, checks: Mapping[str, Check], watchdog: Watchdog, *, notes: Mapping[str, Callable[[], str]] | None = None
) -> list[Route]:
    """`/`, `/healthz` (the process is alive), `/readyz` and `/metrics`.

    `/readyz` tells each check by name, and as `loops` whether all of the watchdog's go on; 503 when one does not. Then
    `stalled` names the loops with the seconds of their silence. `notes` are told as well and decide nothing: what they
    speak of no restart cures.
    """

    async def page(_request: Request) -> Response:
        return HTMLResponse(_PAGE.format(title=title))

    async def healthy(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_request: Request) -> Response:
        results = await asyncio.gather(*(check() for check in checks.values()))
        stalled = watchdog.stalled()
        told: dict[str, object] = {**dict(zip(checks, results, strict=True)), "loops": not stalled}
        told |= {name: note() for name, note in (notes or {}).items()}
        if stalled:
            told["stalled"] = {name: round(seconds, 1) for name, seconds in stalled.items()}
            log.error("loops stalled", loops=told["stalled"])
        return JSONResponse(told, status_code=200 if all(results) and not stalled else 503)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return [
        Route("/", page),
        Route("/healthz", healthy),
        Route("/readyz", ready),
        Route("/metrics", metrics),
    ]


class HttpServer:
    """uvicorn in the running event loop, on an address such as `0.0.0.0:8080` (port 0: a free one, see `port`).

    Parameters: `requests_max` requests served at once, beyond it 503; `drain_seconds` how long a stop waits for
    those under way.
    """

    def __init__(self, app: ASGIApp, address: str, *, requests_max: int, drain_seconds: float) -> None:
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
                # Nothing here asks for the client's address, which is all that they tell.
                proxy_headers=False,
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
