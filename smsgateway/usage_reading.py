"""Answers questions about usage: of one brand or many, a page at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import grpc

from infra import time_zones
from infra.authorization import Principal
from infra.database import Connection, Database
from infra.errors import Refusal, invalid_fields
from smsgateway.metrics import TYPE_NAMES
from smsgateway.settings import Settings
from smsgateway.store import usage as store
from smsgateway.usage import Key, Query, Unit, Usage, units_between

# Brands read in one statement. A page of brands is told from as many statements as it needs.
_BRANDS_PER_STATEMENT = 200
_FILTERS_MAX = 100
_ACCOUNT_CHARACTERS_MAX = 64
_DEFAULT_SPANS = {Unit.HOUR: timedelta(days=1), Unit.DAY: timedelta(days=31), Unit.MONTH: timedelta(days=365)}
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: `brand_id` 0 is all brands of the token; `start` and `end` None: the usual time until now; `zone`
    empty: the installation's.
    """

    brand_id: int = 0
    start: datetime | None = None
    end: datetime | None = None
    unit: Unit = Unit.DAY
    zone: str = ""
    sms_types: Sequence[int] = ()
    accounts: Sequence[str] = ()
    by_type: bool = False
    by_account: bool = False
    sum_brands: bool = False


class UsageReader:
    """Reads usage for a caller."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    def check(self, question: Question, principal: Principal) -> Query:
        """The query of a question. Raises INVALID_ARGUMENT with the fields that break a rule, and PERMISSION_DENIED
        (BRAND_NOT_ALLOWED) for a brand that is not the caller's.
        """
        settings = self._settings
        violations: dict[str, str] = {}
        if not 0 <= question.brand_id < 1 << 63:
            violations["brand_id"] = "must be a brand, or 0 for all of the token"
        zone = question.zone or settings.usage_time_zone
        if zone not in time_zones.known():
            violations["time_zone"] = time_zones.RULE
        if not set(question.sms_types) <= set(TYPE_NAMES):
            violations["sms_types"] = "must be verification (1), notification (2) or marketing (3)"
        if len(question.accounts) > _FILTERS_MAX or not all(map(_is_account, question.accounts)):
            violations["carrier_accounts"] = (
                f"must be at most {_FILTERS_MAX} names of at most {_ACCOUNT_CHARACTERS_MAX} printable characters"
            )
        end = question.end or datetime.now(UTC)
        start = question.start
        if start is None:
            start = max(_FIRST, end - _DEFAULT_SPANS[question.unit])
        if not _FIRST <= start <= _LAST:
            violations["from"] = "must be a moment from 1970 to 9999"
        if not _FIRST <= end <= _LAST:
            violations["to"] = "must be a moment from 1970 to 9999"
        if not violations and start >= end:
            violations["from"] = "must be before to"
        elif not violations and units_between(start, end, question.unit) > settings.usage_units_max:
            unit = question.unit.word
            violations["from"] = f"must be at most {settings.usage_units_max} {unit}s before to; ask for longer units"
        if violations:
            raise invalid_fields(violations)
        if question.brand_id:
            principal.require_brand(question.brand_id)
            brand_ids: Sequence[int] = [question.brand_id]
        else:
            brand_ids = sorted(principal.brand_ids or ())
        return Query(
            brand_ids,
            start.replace(minute=0, second=0, microsecond=0),
            end,
            question.unit,
            zone,
            question.sms_types,
            question.accounts,
            by_brand=not question.sum_brands,
            by_type=question.by_type,
            by_account=question.by_account,
        )

    async def read(self, query: Query, principal: Principal, *, after: Key | None, limit: int) -> list[Usage]:
        """A page of figures in the order of their keys, of one moment. `query` without brands: all brands of a token
        that holds for all. Raises DEADLINE_EXCEEDED (LISTING_TOO_LONG).
        """
        if not query.brand_ids and principal.brand_ids is not None:
            return []
        try:
            async with asyncio.timeout(self._settings.listing_seconds), self._database.snapshot() as connection:
                found = await self._figures(connection, query, after, limit)
                return await self._with_recipients(connection, query, found)
        except TimeoutError:
            raise Refusal(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "LISTING_TOO_LONG",
                "too much to sum up; ask for one brand or a shorter time",
            ) from None

    async def _figures(self, connection: Connection, query: Query, after: Key | None, limit: int) -> list[Usage]:
        if query.brand_ids:
            return await store.read(connection, query, after=after, limit=limit)
        if not query.by_brand:
            brands = await store.brands(connection, after=0, limit=self._settings.usage_brands_max)
            return await store.read(connection, replace(query, brand_ids=brands), after=after, limit=limit)
        found: list[Usage] = []
        # The brand of the last row may have more.
        last = after[0] - 1 if after is not None else 0
        while len(found) < limit:
            brands = await store.brands(connection, after=last, limit=_BRANDS_PER_STATEMENT)
            if not brands:
                break
            found += await store.read(
                connection, replace(query, brand_ids=brands), after=after, limit=limit - len(found)
            )
            last = brands[-1]
        return found

    async def _with_recipients(self, connection: Connection, query: Query, found: list[Usage]) -> list[Usage]:
        # Numbers are counted by brand, type and day of the installation's time zone; sums of such counts would count
        # some numbers twice.
        counted = (
            query.unit is Unit.DAY
            and query.by_brand
            and not query.by_account
            and not query.accounts
            and (query.by_type or not query.sms_types or len(query.sms_types) == 1)
            and query.zone == self._settings.usage_time_zone
        )
        if not counted or not found:
            return found
        only = query.sms_types[0] if len(query.sms_types) == 1 else 0
        days = [(usage.brand_id, usage.start, usage.sms_type or only) for usage in found]
        told = await store.recipients(connection, days)
        return [
            usage if day not in told else replace(usage, recipients=told[day][0], counted_at=told[day][1])
            for usage, day in zip(found, days, strict=True)
        ]


def _is_account(name: str) -> bool:
    return 0 < len(name) <= _ACCOUNT_CHARACTERS_MAX and name.isprintable()
