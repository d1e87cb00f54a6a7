"""What the reading pages share: bounded reads, answers kept for a moment, and words for numbers of enums."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

from starlette.requests import Request
from starlette.responses import Response

from infra import paging
from infra.authorization import Role
from infra.errors import Refusal, invalid_fields
from infra.identifiers import encode, time_prefix
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from smsgateway.carrier_states import CarrierStates
from smsgateway.console import formats, sight
from smsgateway.console.console import Console
from smsgateway.console.forecast import Forecast, listed_forecast
from smsgateway.console.kept import Kept
from smsgateway.console.overview import Overlook
from smsgateway.console.reads import Reads
from smsgateway.queues import Queues
from smsgateway.schema import MessageState

T = TypeVar("T")

_KEPT_MAX: Final = 1_000
_TOKEN_CHARACTERS_MAX: Final = 400
# Pages of a filtered listing that are asked for until enough is found.
_LOW_PAGES_MAX: Final = 10
# Numbers of page tokens have 18 digits at most; no brand has a longer one.
_PAGED_MAX: Final = 10**18
LOW_SHOWN: Final = 10
# The last characters of an identifier are random; the first of them all.
_LEAST_TAIL: Final = "0" * 9
_FIRST_DAY: Final = date(2000, 1, 1)
_LAST_DAY: Final = date(2999, 12, 31)

# (word, class of its badge)
STATES: Final[Mapping[int, tuple[str, str]]] = {
    MessageState.ACCEPTING: ("accepting", ""),
    MessageState.QUEUED: ("queued", ""),
    MessageState.CLAIMED: ("claimed", ""),
    MessageState.SUBMITTING: ("submitting", ""),
    MessageState.SENT: ("sent", "warn"),
    MessageState.UNKNOWN: ("unknown", "warn"),
    MessageState.DELIVERED: ("delivered", "good"),
    MessageState.UNDELIVERED: ("undelivered", "bad"),
    MessageState.EXPIRED: ("expired", "bad"),
    MessageState.FAILED: ("failed", "bad"),
    MessageState.CANCELLED: ("cancelled", ""),
}
TYPES: Final[Mapping[int, str]] = {1: "verification", 2: "notification", 3: "marketing"}
BRAND_STATUSES: Final[Mapping[int, tuple[str, str]]] = {
    1: ("active", "good"),
    2: ("suspended", "warn"),
    3: ("closed", "bad"),
}
PAYMENT_STATUSES: Final[Mapping[int, tuple[str, str]]] = {
    1: ("paid", ""),
    2: ("sent", "good"),
    3: ("partly refunded", "warn"),
    4: ("refunded", "bad"),
}
SOURCES: Final[Mapping[int, str]] = {1: "order", 2: "grant", 3: "refund"}
CAUSES: Final[Mapping[int, str]] = {1: "not sent", 2: "not delivered"}
CARRIERS: Final[Mapping[str, tuple[str, str]]] = {
    "works": ("works", "good"),
    "tried": ("is tried", "warn"),
    "paused": ("is paused", "warn"),
    "stopped": ("stopped by the carrier", "bad"),
    "rests": ("rests after failures", "bad"),
    "silent": ("no worker says", "warn"),
}
STEPS: Final[Mapping[str, str]] = {
    "accepted": "Taken",
    "frozen": "Held",
    "queued": "Queued",
    "paid": "Charged",
    "submitted": "Submitted",
    "sent": "Handed over",
    "receipt": "Receipt",
    "failed": "Failed",
    "cancelled": "Cancelled",
    "refunded": "Given back to the brand",
}
_WORDS: Final[Mapping[str, Any]] = {
    "CARRIERS": CARRIERS,
    "STEPS": STEPS,
    "STATES": STATES,
    "TYPES": TYPES,
    "BRAND_STATUSES": BRAND_STATUSES,
    "PAYMENT_STATUSES": PAYMENT_STATUSES,
    "SOURCES": SOURCES,
    "CAUSES": CAUSES,
}


@dataclass(frozen=True, slots=True)
class BrandRow:
    """A brand of a list with how long its balance lasts."""

    balance: admin_pb.BrandBalance
    forecast: Forecast


class Desk:
    """What the reading pages are made with; one for a console."""

    def __init__(self, console: Console) -> None:
        settings = console.settings
        self.console = console
        self.settings = settings
        self.kept = Kept(keys_max=_KEPT_MAX)
        self.reads = Reads(console.database, at_once=settings.console_reads_max, seconds=settings.console_call_seconds)
        self.overlook = Overlook(self.reads, Queues(console.redis), CarrierStates(console.redis))
        console.on_close(self.kept.close)

    def page(self, request: Request, template: str, **values: Any) -> Response:
        """`Console.page` with the words for numbers, and how its user sees telephone numbers and texts."""
        principal = self.console.principal(request)
        return self.console.page(
            request,
            template,
            live_url=self._live_url(request),
            duration=formats.duration,
            days=formats.days,
            percent=formats.percent,
            rate=formats.rate,
            mobile=lambda number: sight.mobile(principal, number),
            content=lambda text: sight.text(principal, text),
            **_WORDS,
            **values,
        )

    async def shared(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """An answer for all who look within the time between two looks."""
        # A bit less, so that each look of one browser finds a new one.
        return await self.kept.get(key, 0.9 * self.settings.console_refresh_seconds, make)

    def view(self, request: Request, brand_id: int) -> None:
        """Raise PERMISSION_DENIED unless the user may see a brand."""
        self.console.require(request, Role.VIEWER, brand_id=brand_id)

    async def balances(
        self, request: Request, *, after: str = "", size: int = 0, prefix: str = ""
    ) -> tuple[list[BrandRow], str]:
        """A page of brands with their balances, and the token of the next."""
        reply = await self.console.admin(request).ListBalances(
            admin_pb.ListBalancesRequest(
                page_size=size or self.settings.console_rows, page_token=after, name_prefix=prefix
            )
        )
        return [_row(balance, reply.as_of.ToDatetime(UTC)) for balance in reply.balances], reply.next_page_token

    async def balance(self, request: Request, brand_id: int) -> admin_pb.BrandBalance | None:
        """One brand of that list."""
        if brand_id > _PAGED_MAX:
            return None
        token = paging.encode_token(str(brand_id - 1)) if brand_id > 1 else ""
        rows, _ = await self.balances(request, after=token, size=1)
        return rows[0].balance if rows and rows[0].balance.brand_id == brand_id else None

    async def low(self, request: Request) -> tuple[list[BrandRow], bool] | None:
        """Active brands with little left, by number, and whether there are more; None: nobody can tell."""

        async def look() -> tuple[list[BrandRow], bool]:
            found: list[BrandRow] = []
            token = ""
            for _ in range(_LOW_PAGES_MAX):
                reply = await self.console.admin(request).ListBalances(
                    admin_pb.ListBalancesRequest(
                        page_size=LOW_SHOWN + 1,
                        page_token=token,
                        available_below=self.settings.console_low_segments,
                        status=admin_pb.BRAND_STATUS_ACTIVE,
                    )
                )
                now = reply.as_of.ToDatetime(UTC)
                found += [_row(balance, now) for balance in reply.balances]
                token = reply.next_page_token
                if not token or len(found) > LOW_SHOWN:
                    break
            return found[:LOW_SHOWN], len(found) > LOW_SHOWN or bool(token)

        try:
            allowed = self.console.principal(request).brand_ids
            return await self.kept.get(("low", allowed), self.settings.console_low_seconds, look)
        except Refusal:
            return None

    @staticmethod
    def _live_url(request: Request) -> str:
        """The address of the moving part of a list that is shown."""
        return f"{request.url.path}?{request.url.include_query_params(live=1).query}"

    def next_url(self, request: Request, token: str) -> str:
        """The address of the next page of a list; empty: there is none."""
        if not token:
            return ""
        return f"{request.url.path}?{request.url.include_query_params(after=token).remove_query_params('day').query}"

    def first_url(self, request: Request) -> str:
        """The address of the first page of a list; empty on it."""
        if "after" not in request.query_params and "day" not in request.query_params:
            return ""
        query = request.url.remove_query_params(["after", "day"]).query
        return f"{request.url.path}?{query}" if query else request.url.path


def _row(balance: admin_pb.BrandBalance, now: datetime) -> BrandRow:
    ending = None
    if balance.HasField("next_expiry_at"):
        ending = (balance.next_expiry_at.ToDatetime(UTC), balance.next_expiry_segments)
    return BrandRow(balance, listed_forecast(now, balance.available, balance.paid_last_7_days, next_expiry=ending))


def page_token(request: Request) -> str:
    """The token of the page that is asked for. Raises INVALID_ARGUMENT for one that is longer than ours."""
    token = request.query_params.get("after", "")
    if len(token) > _TOKEN_CHARACTERS_MAX or not token.isprintable():
        raise paging.not_ours()
    return token


def place(request: Request, brand_id: int, zone: str = "UTC") -> str:
    """The page that is asked for of a list that is sorted by identifier, newest first: by its token, or by the `day` of
    a time zone with which it begins. Raises INVALID_ARGUMENT for a day that is none.
    """
    token, day = page_token(request), request.query_params.get("day", "")
    if token or not day:
        return token
    return paging.encode_token(before_end_of(the_day(day), brand_id, zone))


def the_day(text: str) -> date:
    """A day such as 2026-11-21. Raises INVALID_ARGUMENT for what is none."""
    try:
        day = date.fromisoformat(text) if len(text) == len("2026-11-21") else None
    except ValueError:
        day = None
    if day is None or not _FIRST_DAY <= day <= _LAST_DAY:
        raise invalid_fields({"day": "must be a day such as 2026-11-21"})
    return day


def before_end_of(day: date, brand_id: int, zone: str) -> str:
    """An identifier of a brand behind all that were made by the end of a day of a time zone."""
    following = datetime.combine(day + timedelta(days=1), time(), ZoneInfo(zone))
    return time_prefix(round(following.timestamp() * 1_000)) + encode(brand_id, 13) + _LEAST_TAIL


def chosen(request: Request, name: str, known: Sequence[int], default: int) -> int:
    """One of some numbers that a page offers. Raises INVALID_ARGUMENT for another."""
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) not in known:
        raise invalid_fields({name: f"must be one of {', '.join(map(str, known))}"})
    return int(text)


async def both(*calls: Awaitable[Any]) -> list[Any]:
    """Several answers at once, in the order of the calls. The first refusal ends all of it."""
    futures = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*futures))
    finally:
        for future in futures:
            future.cancel()
