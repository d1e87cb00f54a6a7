"""The page at `/`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from smsgateway.console.console import Console


def routes(console: Console) -> list[Route]:
    """The routes."""

    async def home(request: Request) -> Response:
        return console.page(request, "home.html")

    return [Route("/", home)]
