"""Answers what Grafana asks, with the rights of the caller's token: usage from the records, balances from the cost
centre.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from infra.authorization import Principal
from infra.errors import invalid_fields, unavailable
from infra.grpc_server import open_channel
from infra.grpc_status import from_error
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import cost_center_pb2 as pb
from protos.costcenter.v1.cost_center_admin_pb2_grpc import CostCenterAdminStub
from protos.costcenter.v1.cost_center_pb2_grpc import CostCenterStub
from smsgateway.grafana.questions import ALL_BRANDS, BALANCE_FIGURES, USAGE_FIGURES, Span, Target
from smsgateway.settings import Settings
from smsgateway.usage import Unit, Usage
from smsgateway.usage_reading import Question, UsageReader

_PAGE = 1_000
_SOURCES = {1: "order", 2: "grant", 3: "refund"}
_TYPES = {1: "verification", 2: "notification", 3: "marketing"}

Point = tuple[float, int]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: what the token may, and its header for the cost centre."""

    principal: Principal
    authorization: str


@dataclass(frozen=True, slots=True)
class Series:
    """Points of a figure: value and milliseconds since 1970, in order of time."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with named columns: (name, type), the type one of time, number, string."""

    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a moment, or will."""

    at: datetime
    title: str
    text: str
    tags: Sequence[str]


class GrafanaReader:
    """Reads for data sources. Every answer is bounded: points by the question, rows by `grafana_rows_max`."""

    def __init__(self, usage: UsageReader, settings: Settings) -> None:
        self._usage = usage
        self._settings = settings
        self._channel = open_channel(settings, settings.costcenter_target)
        self._ledger, self._admin = CostCenterStub(self._channel), CostCenterAdminStub(self._channel)

    async def close(self) -> None:
        """Close the way to the cost centre."""
        await self._channel.close()

    async def answer(self, target: Target, span: Span, caller: Caller) -> list[Series] | Table:
        """The series of a target, or its table. Raises `Refusal`."""
        match target.what:
            case "balance":
                found: list[Series] = await self._balance(target, span, caller)
            case "usage":
                found = await self._usage_series(target, span, caller)
            case "balances":
                return await self._balances(target, caller)
            case "packages":
                return await self._packages(target, caller)
            case _:
                return _event_table(await self.events(target, span, caller))
        return _as_table(found) if target.is_table else found

    async def events(self, target: Target, span: Span, caller: Caller) -> list[Event]:
        """Sales of packages, or their ends, within a time. Raises `Refusal`."""
        found = []
        async for package in self._listed_packages(target.brand_id, caller):
            moment = package.created_at if target.what == "sales" else package.expires_at
            if target.what == "sales" and package.source != pb.PACKAGE_SOURCE_ORDER:
                continue
            if target.what == "expiries" and not package.HasField("expires_at"):
                continue
            at = moment.ToDatetime(tzinfo=UTC)
            if span.start <= at < span.end:
                found.append(_event(target.what, package, at))
        return sorted(found, key=lambda event: event.at)

    async def brands(self, caller: Caller) -> list[tuple[int, str]]:
        """Number and name of the token's brands, at most `grafana_rows_max`."""
        request = admin_pb.ListBrandsRequest(page_size=_PAGE)
        listed = self._pages(self._admin.ListBrands, request, caller, "brands")
        return [(brand.brand_id, brand.name) async for brand in listed]

    async def _balance(self, target: Target, span: Span, caller: Caller) -> list[Series]:
        step, start, end = Duration(), Timestamp(), Timestamp()
        # What is to come nobody knows.
        last = min(span.end, datetime.now(UTC))
        if last <= span.start:
            return []
        step.FromTimedelta(timedelta(seconds=span.step_seconds))
        start.FromDatetime(span.start)
        end.FromDatetime(last)
        request = pb.GetBalanceHistoryRequest(brand_id=target.brand_id, to=end, step=step)
        # `from` is a word of Python's.
        getattr(request, "from").CopyFrom(start)
        reply = await self._call(self._ledger.GetBalanceHistory, request, caller)
        figures: dict[str, Callable[[Any], int]] = {
            "total": lambda point: int(point.total),
            "frozen": lambda point: int(point.frozen),
            "available": lambda point: int(point.total - point.frozen),
        }
        return [
            Series(
                _named(target, name),
                [(figures[name](point), point.at.ToMilliseconds()) for point in reply.points],
            )
            for name in ([target.figure] if target.figure else BALANCE_FIGURES)
        ]

    async def _usage_series(self, target: Target, span: Span, caller: Caller) -> list[Series]:
        unit = span.unit(self._settings.usage_units_max)
        if unit is None:
            raise invalid_fields({"range": "has more months than there may be points; ask for a shorter one"})
        found = await self._usage_of(target, span, unit, caller)
        names = [target.figure] if target.figure else USAGE_FIGURES
        return [
            Series(
                _named(target, name),
                [(_figure(usage, name), round(usage.start.timestamp() * 1_000)) for usage in found],
            )
            for name in names
        ]

    async def _usage_of(self, target: Target, span: Span, unit: Unit, caller: Caller) -> list[Usage]:
        query = self._usage.check(
            Question(
                brand_id=target.brand_id,
                start=span.start,
                end=span.end,
                unit=unit,
                sms_types=[target.sms_type] if target.sms_type else [],
                sum_brands=True,
            ),
            caller.principal,
        )
        return await self._usage.read(query, caller.principal, after=None, limit=self._settings.usage_units_max + 1)

    async def _balances(self, target: Target, caller: Caller) -> Table:
        if target.brand_id:
            request = pb.GetBalanceRequest(brand_id=target.brand_id)
            found = [await self._call(self._ledger.GetBalance, request, caller)]
        else:
            listed = self._pages(
                self._admin.ListBalances, admin_pb.ListBalancesRequest(page_size=_PAGE), caller, "balances"
            )
            found = [each async for each in listed]
        names = ("brand_id", *BALANCE_FIGURES)
        return Table([(name, "number") for name in names], [[getattr(each, name) for name in names] for each in found])

    async def _packages(self, target: Target, caller: Caller) -> Table:
        numbers = ("granted", "remaining", "held", "paid", "refunded", "expired")
        columns = [
            ("package_id", "number"),
            ("source", "string"),
            *((name, "number") for name in numbers),
            ("sms_types", "string"),
            ("created_at", "time"),
            ("expires_at", "time"),
        ]
        rows = [
            [
                package.package_id,
                _SOURCES.get(package.source, ""),
                *(getattr(package, name) for name in numbers),
                ", ".join(_TYPES.get(each, "") for each in package.sms_types) or ALL_BRANDS,
                package.created_at.ToMilliseconds(),
                package.expires_at.ToMilliseconds() if package.HasField("expires_at") else None,
            ]
            async for package in self._listed_packages(target.brand_id, caller)
        ]
        return Table(columns, rows)

    def _listed_packages(self, brand_id: int, caller: Caller) -> AsyncIterator[Any]:
        request = pb.ListPackagesRequest(brand_id=brand_id, include_spent=True, page_size=_PAGE)
        return self._pages(self._ledger.ListPackages, request, caller, "packages")

    async def _pages(self, method: Any, request: Any, caller: Caller, field: str) -> AsyncIterator[Any]:
        """What pages of a listing hold, at most `grafana_rows_max`."""
        left = self._settings.grafana_rows_max
        while True:
            reply = await self._call(method, request, caller)
            for each in getattr(reply, field)[:left]:
                yield each
            left -= len(getattr(reply, field))
            if not reply.next_page_token or left <= 0:
                return
            request.page_token = reply.next_page_token

    async def _call(self, method: Any, request: Any, caller: Caller) -> Any:
        try:
            return await method(
                request,
                metadata=[("authorization", caller.authorization)],
                timeout=self._settings.ledger_call_seconds,
            )
        except grpc.aio.AioRpcError as error:
            raise from_error(error) from None
        except grpc.aio.UsageError:
            raise unavailable("this process stops") from None


def _figure(usage: Usage, name: str) -> int:
    return int(getattr(usage.figures, name))


def _named(target: Target, figure: str) -> str:
    """What a series is called: as it was asked for, or by its figure where all of them were."""
    return target.name if target.figure else f"{target.name} {figure}"


def _as_table(series: Sequence[Series]) -> Table:
    """A row for each moment, a column for each series."""
    moments = sorted({at for each in series for _, at in each.points})
    values = [{at: value for value, at in each.points} for each in series]
    columns = [("time", "time"), *((each.name, "number") for each in series)]
    return Table(columns, [[at, *(found.get(at) for found in values)] for at in moments])


def _event(what: str, package: Any, at: datetime) -> Event:
    if what == "sales":
        return Event(at, "Package sold", f"{package.granted:,} segments, order {package.source_no}", ["sale"])
    left = f"{package.remaining:,} left" if package.remaining else f"{package.expired:,} lost"
    return Event(at, "Package ends", f"package {package.package_id}: {package.granted:,} segments, {left}", ["expiry"])


def _event_table(events: Sequence[Event]) -> Table:
    columns = [("time", "time"), ("title", "string"), ("text", "string"), ("tags", "string")]
    rows = [[round(event.at.timestamp() * 1_000), event.title, event.text, ",".join(event.tags)] for event in events]
    return Table(columns, rows)
