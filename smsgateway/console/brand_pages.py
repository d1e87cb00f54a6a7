"""Brands, and what one has, spent and sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.authorization import Role
from infra.errors import Refusal, invalid_fields
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import cost_center_pb2 as pb
from protos.smsgateway.v1 import sms_gateway_pb2 as gateway_pb
from smsgateway.console.asked import brand_number
from smsgateway.console.balances import (
    CHART_DAYS,
    CHART_DAYS_DEFAULT,
    Bar,
    Progress,
    bars,
    chart_step,
    clipped,
    progress,
    series,
    stocks,
)
from smsgateway.console.console import brand_of_path
from smsgateway.console.desk import Desk, both, chosen, page_token, place
from smsgateway.console.forecast import RATE_DAYS, Forecast, Stock, forecast
from smsgateway.store import overview as store

NAME_CHARACTERS_MAX: Final = 100
# On the page of a brand; the rest is on pages of its own.
_PACKAGES_SHOWN: Final = 20
_MESSAGES_SHOWN: Final = 10
_BATCHES_SHOWN: Final = 5
# Packages that the forecast looks at; those beyond end last.
_PACKAGES_FORECAST: Final = 1_000


@dataclass(frozen=True, slots=True)
class Account:
    """What a brand has."""

    brand: admin_pb.Brand
    balance: pb.GetBalanceResponse
    bars: Sequence[Bar]
    more_packages: bool
    forecast: Forecast
    spent: int


@dataclass(frozen=True, slots=True)
class Latest:
    """What a brand sends."""

    messages: Sequence[gateway_pb.Message]
    batches: Sequence[tuple[gateway_pb.Batch, Progress]]


def routes(desk: Desk) -> list[Route]:
    """The routes."""
    pages = _BrandPages(desk)
    lists = _Lists(desk)
    return [
        Route("/brands", pages.brands),
        Route("/brands/{brand_id}", pages.brand),
        Route("/brands/{brand_id}/live", pages.live),
        Route("/brands/{brand_id}/balance.json", pages.series),
        Route("/brands/{brand_id}/packages", lists.packages),
        Route("/brands/{brand_id}/freezes", lists.freezes),
        Route("/brands/{brand_id}/payments", lists.payments),
        Route("/brands/{brand_id}/messages", lists.messages),
    ]


class _BrandPages:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._console = desk.console

    async def brands(self, request: Request) -> Response:
        """The list of brands."""
        self._console.require(request, Role.VIEWER)
        asked = request.query_params.get("q", "").strip()
        if len(asked) > NAME_CHARACTERS_MAX or not asked.isprintable():
            raise invalid_fields({"q": f"must be at most {NAME_CHARACTERS_MAX} printable characters"})
        number = brand_number(asked)
        if number is not None and await self._is_brand(request, number):
            return self._console.redirect(f"/brands/{number}")
        rows, token = await self._desk.balances(request, after=page_token(request), prefix=asked)
        return self._desk.page(
            request,
            "brands.html",
            rows=rows,
            asked=asked,
            next_url=self._desk.next_url(request, token),
            first_url=self._desk.first_url(request),
        )

    async def brand(self, request: Request) -> Response:
        """One brand."""
        values = await self._values(request)
        days = chosen(request, "days", CHART_DAYS, CHART_DAYS_DEFAULT)
        return self._desk.page(request, "brand.html", span=days, chart_days=CHART_DAYS, **values)

    async def live(self, request: Request) -> Response:
        """The parts of it that move."""
        return self._desk.page(request, "brand_live.html", **await self._values(request))

    async def series(self, request: Request) -> Response:
        """The chart's figures."""
        brand_id = self._brand(request)
        days = chosen(request, "days", CHART_DAYS, CHART_DAYS_DEFAULT)

        async def look() -> bytes:
            return orjson.dumps(await self._series(request, brand_id, days))

        body = await self._desk.shared(("series", brand_id, days), look)
        return Response(body, media_type="application/json")

    async def _values(self, request: Request) -> dict[str, Any]:
        brand_id = self._brand(request)

        async def look() -> tuple[Account, Latest]:
            account, latest = await both(self._account(request, brand_id), self._latest(request, brand_id))
            return account, latest

        account, latest = await self._desk.shared(("brand", brand_id), look)
        return {
            "brand_id": brand_id,
            "account": account,
            "brand": account.brand,
            "latest": latest,
            "rate_days": RATE_DAYS,
            "now": datetime.now(UTC),
        }

    async def _account(self, request: Request, brand_id: int) -> Account:
        costcenter, admin = self._console.costcenter(request), self._console.admin(request)
        found, balance, listed, row = await both(
            admin.GetBrand(admin_pb.GetBrandRequest(brand_id=brand_id)),
            costcenter.GetBalance(pb.GetBalanceRequest(brand_id=brand_id)),
            costcenter.ListPackages(pb.ListPackagesRequest(brand_id=brand_id, page_size=_PACKAGES_FORECAST)),
            self._desk.balance(request, brand_id),
        )
        now = balance.as_of.ToDatetime(UTC)
        spent = 0 if row is None else row.paid_last_7_days
        return Account(
            brand=found.brand,
            balance=balance,
            bars=bars(listed.packages[:_PACKAGES_SHOWN], now),
            more_packages=len(listed.packages) > _PACKAGES_SHOWN,
            forecast=_forecast(now, balance.available, listed, spent),
            spent=spent,
        )

    async def _latest(self, request: Request, brand_id: int) -> Latest:
        gateway = self._console.gateway(request)
        messages, batches = await both(
            gateway.ListMessages(gateway_pb.ListMessagesRequest(brand_id=brand_id, page_size=_MESSAGES_SHOWN)),
            gateway.ListBatches(gateway_pb.ListBatchesRequest(brand_id=brand_id, page_size=_BATCHES_SHOWN)),
        )
        return Latest(messages.messages, await with_progress(self._desk, batches.batches))

    async def _series(self, request: Request, brand_id: int, days: int) -> dict[str, Any]:
        now = datetime.now(UTC)
        step = chart_step(days)
        # Whole steps, so that points stay where they are while time goes on.
        start = _rounded(now - timedelta(days=days), step)
        asked = pb.GetBalanceHistoryRequest(brand_id=brand_id, step=Duration(seconds=int(step.total_seconds())))
        getattr(asked, "from").CopyFrom(_timestamp(start))
        history, account = await both(
            self._console.costcenter(request).GetBalanceHistory(asked),
            self._desk.shared(("account", brand_id), lambda: self._account(request, brand_id)),
        )
        balance = account.balance
        points = [(point.at.ToDatetime(UTC), point.total, point.frozen) for point in history.points]
        last = balance.as_of.ToDatetime(UTC)
        points = [point for point in points if point[0] < last] + [(last, balance.total, balance.frozen)]
        future = clipped(account.forecast.points, last + timedelta(days=days) / 3)
        return {"data": series(points, future), "available": balance.available, "as_of": last.timestamp()}

    async def _is_brand(self, request: Request, brand_id: int) -> bool:
        try:
            await self._console.admin(request).GetBrand(admin_pb.GetBrandRequest(brand_id=brand_id))
        except Refusal as refusal:
            if refusal.reason in {"BRAND_NOT_FOUND", "BRAND_NOT_ALLOWED"}:
                return False
            raise
        return True

    def _brand(self, request: Request) -> int:
        brand_id = brand_of_path(request)
        self._desk.view(request, brand_id)
        return brand_id


class _Lists:
    """What a brand has of a kind, page by page."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._console = desk.console

    async def packages(self, request: Request) -> Response:
        """All packages, spent ones included, in the order in which they came."""
        brand_id, brand = await self._brand(request)
        reply = await self._console.costcenter(request).ListPackages(
            pb.ListPackagesRequest(
                brand_id=brand_id,
                include_spent=True,
                page_size=self._desk.settings.console_rows,
                page_token=page_token(request),
            )
        )
        return self._page(
            request, "packages.html", brand, reply.next_page_token, bars=bars(reply.packages, datetime.now(UTC))
        )

    async def freezes(self, request: Request) -> Response:
        """Freezes: all, or those that hold something."""
        brand_id, brand = await self._brand(request)
        open_only = chosen(request, "open", (0, 1), 0) == 1
        reply = await self._console.costcenter(request).ListFreezes(
            pb.ListFreezesRequest(
                brand_id=brand_id,
                open_only=open_only,
                page_size=self._desk.settings.console_rows,
                page_token=page_token(request) if open_only else place(request, brand_id, brand.time_zone),
            )
        )
        return self._page(
            request, "freezes.html", brand, reply.next_page_token, freezes=reply.freezes, open_only=open_only
        )

    async def payments(self, request: Request) -> Response:
        """Payments."""
        brand_id, brand = await self._brand(request)
        reply = await self._console.costcenter(request).ListPayments(
            pb.ListPaymentsRequest(
                brand_id=brand_id,
                page_size=self._desk.settings.console_rows,
                page_token=place(request, brand_id, brand.time_zone),
            )
        )
        return self._page(request, "payments.html", brand, reply.next_page_token, payments=reply.payments)

    async def messages(self, request: Request) -> Response:
        """Messages, to one number if it is named."""
        brand_id, brand = await self._brand(request)
        mobile = request.query_params.get("mobile", "").strip()
        reply = await self._console.gateway(request).ListMessages(
            gateway_pb.ListMessagesRequest(
                brand_id=brand_id,
                mobile=mobile,
                page_size=self._desk.settings.console_rows,
                page_token=place(request, brand_id, brand.time_zone),
            )
        )
        return self._page(request, "messages.html", brand, reply.next_page_token, messages=reply.messages, asked=mobile)

    async def _brand(self, request: Request) -> tuple[int, admin_pb.Brand]:
        brand_id = brand_of_path(request)
        self._desk.view(request, brand_id)
        reply = await self._console.admin(request).GetBrand(admin_pb.GetBrandRequest(brand_id=brand_id))
        return brand_id, reply.brand

    def _page(self, request: Request, template: str, brand: admin_pb.Brand, token: str, **values: Any) -> Response:
        return self._desk.page(
            request,
            template,
            brand=brand,
            brand_id=brand.brand_id,
            day=request.query_params.get("day", ""),
            next_url=self._desk.next_url(request, token),
            first_url=self._desk.first_url(request),
            **values,
        )


async def with_progress(desk: Desk, batches: Sequence[gateway_pb.Batch]) -> list[tuple[gateway_pb.Batch, Progress]]:
    """Batches with how far they are."""
    async with desk.reads.connection() as connection:
        dispatched = await store.dispatched(connection, [(batch.brand_id, batch.batch_id) for batch in batches])
    return [(batch, progress(batch.accepted, dispatched[batch.batch_id])) for batch in batches]


def _forecast(now: datetime, available: int, listed: pb.ListPackagesResponse, spent: int) -> Forecast:
    found = stocks(listed.packages)
    # Beyond the page are those that end last.
    rest = available - sum(stock.segments for stock in found)
    return forecast(now, [*found, Stock(max(0, rest), None)], spent)


def _rounded(moment: datetime, step: timedelta) -> datetime:
    seconds = step.total_seconds()
    return datetime.fromtimestamp(moment.timestamp() // seconds * seconds, UTC)


def _timestamp(moment: datetime) -> Timestamp:
    result = Timestamp()
    result.FromDatetime(moment)
    return result
