"""Brands: made and changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra import time_zones
from infra.authorization import Role
from infra.errors import Refusal
from protos.costcenter.v1 import cost_center_admin_pb2 as pb
from smsgateway.console.audit import Action
from smsgateway.console.console import Console, brand_of_path
from smsgateway.console.forms import Form

STATUSES = {
    "active": pb.BrandStatus.BRAND_STATUS_ACTIVE,
    "suspended": pb.BrandStatus.BRAND_STATUS_SUSPENDED,
    "closed": pb.BrandStatus.BRAND_STATUS_CLOSED,
}
_NAMES = {number: name for name, number in STATUSES.items()}
_SWITCH = {"yes": True, "no": False}
_NAME_CHARACTERS_MAX = 100
_ZONE_CHARACTERS_MAX = 64


def routes(console: Console) -> list[Route]:
    """The routes."""
    forms = _BrandForms(console)
    return [
        Route("/brands/new", forms.show_new),
        Route("/brands/new", forms.create, methods=["POST"]),
        Route("/brands/{brand_id}/settings", forms.show),
        Route("/brands/{brand_id}/settings", forms.change, methods=["POST"]),
    ]


class _BrandForms:
    def __init__(self, console: Console) -> None:
        self._console = console

    async def show_new(self, request: Request) -> Response:
        self._console.require(request, Role.ADMIN)
        return self._page(request, {"status": "active", "time_zone": "Asia/Shanghai", "refund_undelivered": "no"}, None)

    async def show(self, request: Request) -> Response:
        brand_id = brand_of_path(request)
        self._console.require(request, Role.ADMIN, brand_id=brand_id)
        brand = await self._find(request, brand_id)
        values = {
            "name": brand.name,
            "status": _NAMES.get(brand.status, ""),
            "time_zone": brand.time_zone,
            "refund_undelivered": "yes" if brand.refund_undelivered else "no",
        }
        return self._page(request, values, brand)

    async def create(self, request: Request) -> Response:
        console, form = self._console, self._console.form(request)
        brand_id = form.number("brand_id", 1)
        wanted, asked = _read(form, brand_id)

        async def call() -> Mapping[str, str]:
            # Making one and changing one are the same call: a number that is taken must not change a brand.
            if not await self._same_if_there(request, wanted):
                form.violate("brand_id", "is the number of another brand")
                form.check()
            return _told((await console.admin(request).PutBrand(wanted)).brand)

        try:
            console.require(request, Role.ADMIN)
            form.check()
            console.require(request, Role.ADMIN, brand_id=brand_id)
            made = await console.audit.change(
                form, console.principal(request), Action.BRAND_CREATE, brand_id, asked, call
            )
        except Refusal as refusal:
            return self._page(request, form.values, None, refusal)
        return console.redirect(made.path)

    async def change(self, request: Request) -> Response:
        console, form, brand_id = self._console, self._console.form(request), brand_of_path(request)
        console.require(request, Role.ADMIN, brand_id=brand_id)
        brand = await self._find(request, brand_id)
        wanted, asked = _read(form, brand_id)

        async def call() -> Mapping[str, str]:
            return _told((await console.admin(request).PutBrand(wanted)).brand)

        try:
            made = await console.audit.change(
                form, console.principal(request), Action.BRAND_CHANGE, brand_id, asked, call
            )
        except Refusal as refusal:
            return self._page(request, form.values, brand, refusal)
        return console.redirect(made.path)

    async def _find(self, request: Request, brand_id: int) -> Any:
        return (await self._console.admin(request).GetBrand(pb.GetBrandRequest(brand_id=brand_id))).brand

    async def _same_if_there(self, request: Request, wanted: pb.PutBrandRequest) -> bool:
        """Whether there is no such brand yet, or it is as wanted: then an earlier send of the form has made it."""
        try:
            brand = await self._find(request, wanted.brand_id)
        except Refusal as refusal:
            if refusal.reason != "BRAND_NOT_FOUND":
                raise
            return True
        return (brand.name, brand.status, brand.time_zone, brand.refund_undelivered) == (
            wanted.name,
            wanted.status,
            wanted.time_zone,
            wanted.refund_undelivered,
        )

    def _page(
        self, request: Request, values: Mapping[str, str], brand: Any, refusal: Refusal | None = None
    ) -> Response:
        return self._console.form_page(
            request,
            "brand_form.html",
            values,
            refusal,
            brand=brand,
            statuses=list(STATUSES),
            zones=sorted(time_zones.known()),
        )


def _read(form: Form, brand_id: int) -> tuple[pb.PutBrandRequest, dict[str, str]]:
    name = form.text("name", _NAME_CHARACTERS_MAX)
    status = form.choice("status", STATUSES)
    time_zone = form.text("time_zone", _ZONE_CHARACTERS_MAX)
    refund = form.choice("refund_undelivered", _SWITCH)
    wanted = pb.PutBrandRequest(
        brand_id=brand_id, name=name, status=status, time_zone=time_zone, refund_undelivered=refund
    )
    asked = {"name": name, "status": form.get("status"), "time zone": time_zone}
    return wanted, {**asked, "refund undelivered": form.get("refund_undelivered")}


def _told(brand: Any) -> dict[str, str]:
    return {"name": brand.name, "status": _NAMES.get(brand.status, "")}
