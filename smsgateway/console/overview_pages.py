"""The first page: what goes on everywhere."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.authorization import Role
from smsgateway.console.desk import Desk
from smsgateway.console.overview import PARKED_MAX, SAMPLE_SECONDS


def routes(desk: Desk) -> list[Route]:
    """The routes."""
    console = desk.console

    async def values(request: Request) -> dict[str, Any]:
        # What goes on everywhere is for those who may see all of it.
        everywhere = console.principal(request).brand_ids is None
        return {
            "overview": await desk.shared("overview", desk.overlook.look) if everywhere else None,
            "low": await desk.low(request),
            "low_segments": desk.settings.console_low_segments,
            "sample_minutes": round(SAMPLE_SECONDS / 60),
            "parked_max": PARKED_MAX,
        }

    async def overview(request: Request) -> Response:
        console.require(request, Role.VIEWER)
        return desk.page(request, "overview.html", **await values(request))

    async def live(request: Request) -> Response:
        console.require(request, Role.VIEWER)
        return desk.page(request, "overview_live.html", **await values(request))

    return [Route("/", overview), Route("/overview", live)]
