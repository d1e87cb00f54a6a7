"""The log of changes, page by page, and each of them."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.authorization import Role
from infra.errors import invalid_fields
from infra.identifiers import brand_of
from smsgateway.console.audit import Outcome
from smsgateway.console.console import Console, NavigationItem, brand_number
from smsgateway.store import console as store

NAVIGATION = (NavigationItem("/audit", "Changes", 90),)
_BADGES = {Outcome.BEGUN: "warn", Outcome.DONE: "good", Outcome.REFUSED: "bad", Outcome.UNKNOWN: "warn"}


def routes(console: Console) -> list[Route]:
    """The routes."""

    async def listing(request: Request) -> Response:
        given = request.query_params
        text = given.get("brand", "").strip()
        before = given.get("before", "")
        if before and brand_of(before) is None:
            raise invalid_fields({"before": "must be of the page before"})
        brand_id = brand_number(text, least=0) if text else None
        if brand_id is None:
            principal = console.principal(request)
            if principal.brand_ids is not None:
                # Of several brands it is shown brand by brand.
                brand_id = min(principal.brand_ids)
        _require(console, request, brand_id)
        rows = console.settings.console_rows
        async with console.database.connection() as connection:
            found = await store.list_changes(connection, brand_id, before=before, limit=rows + 1)
        return console.page(
            request,
            "audit.html",
            changes=found[:rows],
            brand_id=brand_id,
            following=found[rows - 1].audit_id if len(found) > rows else "",
            first=not before,
            outcomes={outcome.value: outcome.name.lower() for outcome in Outcome},
            badges=_BADGES,
        )

    async def one(request: Request) -> Response:
        brand_id = brand_number(request.path_params["brand_id"], least=0)
        _require(console, request, brand_id)
        async with console.database.connection() as connection:
            change = await store.find_change(connection, brand_id, request.path_params["audit_id"])
        if change is None:
            raise HTTPException(404)
        return console.page(
            request,
            "change.html",
            change=change,
            outcome=Outcome(change.outcome),
            badge=_BADGES[Outcome(change.outcome)],
        )

    return [Route("/audit", listing), Route("/audit/{brand_id}/{audit_id}", one)]


def _require(console: Console, request: Request, brand_id: int | None) -> None:
    """Raise PERMISSION_DENIED unless the user may see the changes of a brand, of none (0), or all (None)."""
    console.require(request, Role.VIEWER, brand_id=brand_id, all_brands=not brand_id)
