"""Package sales and adjustments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.authorization import Role
from infra.errors import Refusal
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import cost_center_pb2 as pb
from smsgateway.console.audit import Action
from smsgateway.console.console import Console, brand_of_path, moment_text
from smsgateway.console.forms import Form, end_of

SEGMENTS_MAX = 1_000_000_000
DAYS_MAX = 36_500
AUTHOR_CHARACTERS_MAX = 100
TYPES = {"verification": 1, "notification": 2, "marketing": 3}
_OFFERS_MAX = 1_000
_PACKAGES_MAX = 200
_PLAIN = "plain"


def routes(console: Console) -> list[Route]:
    """The routes."""
    sales = _Sales(console)
    adjustments = _Adjustments(console)
    return [
        Route("/brands/{brand_id}/sale", sales.show),
        Route("/brands/{brand_id}/sale", sales.sell, methods=["POST"]),
        Route("/brands/{brand_id}/adjust", adjustments.show),
        Route("/brands/{brand_id}/adjust", adjustments.adjust, methods=["POST"]),
    ]


class _Sales:
    """Sell a package: an offer, or, for those who may make offers, plain segments."""

    def __init__(self, console: Console) -> None:
        self._console = console

    async def show(self, request: Request) -> Response:
        brand_id = brand_of_path(request)
        self._console.require(request, Role.FINANCE, brand_id=brand_id)
        return await self._page(request, brand_id, {"currency": "CNY", "days": "365"})

    async def sell(self, request: Request) -> Response:
        console, form, brand_id = self._console, self._console.form(request), brand_of_path(request)
        console.require(request, Role.FINANCE, brand_id=brand_id)
        price, currency = form.price("price"), form.currency("currency")
        payment_reference = form.identifier("payment_reference")
        offer = form.get("offer")
        asked = {"offer": offer, "price": f"{price} {currency}", "payment reference": payment_reference}
        plain = None
        if offer == _PLAIN:
            plain = admin_pb.PackageOffer(
                segments=form.number("segments", 1, SEGMENTS_MAX),
                validity_days=form.number("days", 1, DAYS_MAX),
                price=price,
                currency=currency,
                active=True,
            )
            # As `smsbill buy` names them.
            plain.offer_id = f"plain-{plain.segments}-{plain.validity_days}d-{price}"
            plain.name = f"{plain.segments} segments for {plain.validity_days} days"
            asked |= {"segments": str(plain.segments), "days": str(plain.validity_days)}
        else:
            offer = form.identifier("offer")

        async def call() -> Mapping[str, str]:
            if plain is not None:
                await console.admin(request).PutPackageOffer(admin_pb.PutPackageOfferRequest(offer=plain))
            order = await console.costcenter(request).CreatePackageOrder(
                pb.CreatePackageOrderRequest(
                    brand_id=brand_id,
                    request_id=form.get("request_id"),
                    offer_id=offer if plain is None else plain.offer_id,
                    price=price,
                    currency=currency,
                )
            )
            paid = await console.costcenter(request).PackagePaidCallBack(
                pb.PackagePaidCallBackRequest(
                    brand_id=brand_id,
                    package_order_no=order.package_order_no,
                    payment_reference=payment_reference,
                    amount=price,
                    currency=currency,
                )
            )
            return {
                "package": str(paid.package_id),
                "segments": str(paid.segments),
                "expires": moment_text(paid.expires_at) if paid.HasField("expires_at") else "never",
                "order": order.package_order_no,
            }

        try:
            made = await console.audit.change(form, console.principal(request), Action.SALE, brand_id, asked, call)
        except Refusal as refusal:
            return await self._page(request, brand_id, form.values, refusal)
        return console.redirect(made.path)

    async def _page(
        self, request: Request, brand_id: int, values: Mapping[str, str], refusal: Refusal | None = None
    ) -> Response:
        console = self._console
        brand = await _brand(console, request, brand_id)
        offers = await console.admin(request).ListPackageOffers(
            admin_pb.ListPackageOffersRequest(page_size=_OFFERS_MAX)
        )
        who = console.principal(request)
        return console.form_page(
            request,
            "sale.html",
            values,
            refusal,
            brand=brand,
            offers=list(offers.offers),
            plain_too=who.may(Role.ADMIN) and who.brand_ids is None,
        )


class _Adjustments:
    """Grant segments, claw some back, take a package back."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._readers = {"grant": self._grant, "claw_back": self._claw_back, "return": self._return}

    async def show(self, request: Request) -> Response:
        brand_id = brand_of_path(request)
        self._console.require(request, Role.FINANCE, brand_id=brand_id)
        return await self._page(request, brand_id, {"package_id": request.query_params.get("package", "")})

    async def adjust(self, request: Request) -> Response:
        console, form, brand_id = self._console, self._console.form(request), brand_of_path(request)
        who = console.principal(request)
        console.require(request, Role.FINANCE, brand_id=brand_id)
        try:
            brand = await _brand(console, request, brand_id)
            read = form.choice("kind", self._readers)
            form.check()
            wanted = admin_pb.AdjustPackageRequest(
                brand_id=brand_id,
                request_id=form.get("request_id"),
                author=author(who.name, who.token_id),
                reason=form.reason(),
            )
            action, asked = read(form, wanted, brand.time_zone)

            async def call() -> Mapping[str, str]:
                reply = await console.admin(request).AdjustPackage(wanted)
                return {
                    "package": str(reply.package.package_id),
                    "segments left": str(reply.package.remaining),
                    "adjustment": reply.adjustment_no,
                }

            made = await console.audit.change(form, who, action, brand_id, asked, call)
        except Refusal as refusal:
            return await self._page(request, brand_id, form.values, refusal)
        return console.redirect(made.path)

    @staticmethod
    def _grant(form: Form, wanted: admin_pb.AdjustPackageRequest, zone: str) -> tuple[Action, dict[str, str]]:
        wanted.grant.segments = form.number("segments", 1, SEGMENTS_MAX)
        types = form.choices("sms_type", TYPES)
        wanted.grant.sms_types.extend(types)  # type: ignore[arg-type] # numbers of the proto's enum
        day = form.day("last_day", zone)
        if day is not None:
            wanted.grant.expires_at.CopyFrom(end_of(day, zone))
        return Action.GRANT, {
            "segments": str(wanted.grant.segments),
            "last day": day.isoformat() if day else "",
            "types": ", ".join(name for name, number in TYPES.items() if number in types),
        }

    @staticmethod
    def _claw_back(form: Form, wanted: admin_pb.AdjustPackageRequest, zone: str) -> tuple[Action, dict[str, str]]:
        wanted.claw_back.package_id = form.number("package_id", 1)
        wanted.claw_back.segments = form.number("segments", 1, SEGMENTS_MAX)
        return Action.CLAW_BACK, {
            "package": str(wanted.claw_back.package_id),
            "segments": str(wanted.claw_back.segments),
        }

    @staticmethod
    def _return(form: Form, wanted: admin_pb.AdjustPackageRequest, zone: str) -> tuple[Action, dict[str, str]]:
        wanted.return_package.package_id = form.number("package_id", 1)
        return Action.RETURN, {"package": str(wanted.return_package.package_id)}

    async def _page(
        self, request: Request, brand_id: int, values: Mapping[str, str], refusal: Refusal | None = None
    ) -> Response:
        console = self._console
        brand = await _brand(console, request, brand_id)
        packages = await console.costcenter(request).ListPackages(
            pb.ListPackagesRequest(brand_id=brand_id, page_size=_PACKAGES_MAX)
        )
        return console.form_page(
            request, "adjust.html", values, refusal, brand=brand, packages=list(packages.packages), types=list(TYPES)
        )


async def _brand(console: Console, request: Request, brand_id: int) -> Any:
    """The brand. Raises NOT_FOUND."""
    return (await console.admin(request).GetBrand(admin_pb.GetBrandRequest(brand_id=brand_id))).brand


def author(name: str, token_id: str) -> str:
    """Who decided a change, as the services' own records name them."""
    return f"{name[: AUTHOR_CHARACTERS_MAX - len(token_id) - 3]} ({token_id})"
