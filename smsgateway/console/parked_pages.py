"""Parked work: listed, tried again, dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.authorization import Role
from infra.errors import Refusal, invalid_fields
from infra.identifiers import LENGTH, brand_of
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsgateway.console.audit import Action
from smsgateway.console.console import Console, NavigationItem, brand_number
from smsgateway.console.forms import Form
from smsgateway.console.sale_pages import author
from smsgateway.parked import ParkedKind

NAVIGATION = (NavigationItem("/parked", "Parked work", 70, Role.OPERATOR),)

KINDS = {kind.name.lower(): kind.value for kind in ParkedKind}
_IDS_MAX = 500
_TOLD_IDS = 10


def routes(console: Console) -> list[Route]:
    """The routes."""
    parked = _Parked(console)
    return [
        Route("/parked", parked.show),
        Route("/parked", parked.change, methods=["POST"]),
    ]


class _Parked:
    def __init__(self, console: Console) -> None:
        self._console = console

    async def show(self, request: Request) -> Response:
        self._console.require(request, Role.OPERATOR)
        return await self._page(request, {})

    async def change(self, request: Request) -> Response:
        console, form = self._console, self._console.form(request)
        console.require(request, Role.OPERATOR)
        who = console.principal(request)
        try:
            kind = form.choice("kind", KINDS)
            what = form.choice("what", {"retry": Action.PARKED_RETRY, "drop": Action.PARKED_DROP})
            ids = sorted(set(form.all("parked_id")))
            brand_id = _brand_of_all(form, kind, ids)
            wish: dict[str, Any] = {
                "kind": kind,
                "parked_ids": ids,
                "author": author(who.name, who.token_id),
                "reason": form.reason(),
            }
            form.check()

            async def call() -> Mapping[str, str]:
                calls = console.gateway(request)
                if what is Action.PARKED_RETRY:
                    reply = await calls.RetryParked(pb.RetryParkedRequest(**wish))
                    return _told(reply.retried, "tried again", reply)
                dropped = await calls.DropParked(pb.DropParkedRequest(**wish))
                kept = "; ".join(f"{item.parked_id}: {item.why}" for item in dropped.kept[:_TOLD_IDS])
                return _told(dropped.dropped, "dropped", dropped) | {"kept": kept}

            asked = {"kind": form.get("kind"), "count": str(len(ids)), "ids": " ".join(ids)}
            made = await console.audit.change(form, who, what, brand_id, asked, call)
        except Refusal as refusal:
            return await self._page(request, form.values, refusal)
        return console.redirect(made.path)

    async def _page(self, request: Request, values: Mapping[str, str], refusal: Refusal | None = None) -> Response:
        console, given = self._console, request.query_params
        kind = values.get("kind") or given.get("kind", "dispatch")
        if kind not in KINDS:
            if refusal is None:
                raise invalid_fields({"kind": f"must be one of {', '.join(KINDS)}"})
            kind = "dispatch"
        principal = console.principal(request)
        text = given.get("brand", "").strip()
        brand_id = brand_number(text) if text else 0
        if not brand_id and principal.brand_ids is not None and kind != "receipt":
            brand_id = min(principal.brand_ids)
        reply = await console.gateway(request).ListParked(
            pb.ListParkedRequest(
                kind=KINDS[kind],  # type: ignore[arg-type] # the numbers are the enum's
                brand_id=brand_id,
                page_size=console.settings.console_rows,
                page_token=given.get("after", ""),
            )
        )
        return console.form_page(
            request,
            "parked.html",
            values,
            refusal,
            items=list(reply.items),
            kind=kind,
            kinds=list(KINDS),
            brand_id=brand_id,
            following=reply.next_page_token,
            first="after" not in given,
        )


def _brand_of_all(form: Form, kind: int, ids: list[str]) -> int:
    """The brand of all that was chosen, 0 when there are several or none."""
    if not 1 <= len(ids) <= _IDS_MAX:
        form.violate("parked_id", f"must be 1 to {_IDS_MAX}; choose at least one")
    length = LENGTH if kind == ParkedKind.WEBHOOK else None
    brands = {brand_of(each[:length]) or 0 for each in ids}
    return brands.pop() if len(brands) == 1 else 0


def _told(done: Any, word: str, reply: Any) -> dict[str, str]:
    return {word: str(len(done)), "not parked any more": str(len(reply.not_parked))}
