"""Reads of the ledger. They book nothing and answer as if what is due had been booked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from costcenter import store
from costcenter.book import Book, Terms
from costcenter.model import Brand, Freeze, Package, PackageOffer, Payment, Refund
from infra.database import Connection, Database
from infra.errors import Refusal, invalid, not_found
from infra.identifiers import IdentifierSource

SMS_TYPES = (1, 2, 3)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Balance:
    """A brand's balance at a moment. `available_by_type` is None for moments before the last record."""

    total: int
    frozen: int
    available: int
    available_by_type: dict[int, int] | None
    as_of: datetime


class Queries:
    """Answers from one snapshot each."""

    def __init__(self, database: Database, *, terms: Terms, clock_offset_seconds: float) -> None:
        self._database = database
        self._terms = terms
        self._offset = clock_offset_seconds

    async def balance(self, brand_id: int, as_of: datetime | None) -> Balance:
        """A brand's balance now or at a past moment. Raises NOT_FOUND (BRAND_NOT_FOUND)."""
        async with self._database.snapshot() as connection:
            book, brand = await self._book(connection, brand_id)
            now = book.time_of(brand)
            # What will be bought nobody knows: a moment to come is answered as of now.
            as_of = now if as_of is None else min(as_of, now)
            if brand.last_at is None or as_of >= brand.last_at:
                book.now = as_of
                await self._settle_due(connection, book, brand)
                return Balance(
                    total=brand.total,
                    frozen=brand.frozen,
                    available=book.available(brand_id),
                    available_by_type={sms_type: book.available(brand_id, sms_type) for sms_type in SMS_TYPES},
                    as_of=as_of,
                )
            points = await store.balance_points(connection, brand_id, [as_of])
            total, frozen = points[0]
            return Balance(total, frozen, total - frozen, None, as_of)

    async def balance_history(
        self, brand_id: int, start: datetime, end: datetime | None, step: timedelta, points_max: int
    ) -> list[tuple[datetime, int, int]]:
        """(moment, total, frozen) from `start` on, every `step`, before `end`. Raises NOT_FOUND (BRAND_NOT_FOUND)."""
        async with self._database.snapshot() as connection:
            book, brand = await self._book(connection, brand_id)
            now = book.time_of(brand)
            end = now if end is None else min(end, now)
            count = max(0, -((start - end) // step))
            if count > points_max:
                raise invalid(step=f"must make at most {points_max} points")
            moments = [start + step * index for index in range(count)]
            recorded = [moment for moment in moments if brand.last_at is not None and moment < brand.last_at]
            points = await store.balance_points(connection, brand_id, recorded)
            series = [(moment, *point) for moment, point in zip(recorded, points, strict=True)]
            for moment in moments[len(recorded) :]:
                # After the last record only what becomes due changes the balance, and it can be computed.
                book.now = moment
                await self._settle_due(connection, book, brand)
                series.append((moment, brand.total, brand.frozen))
            return series

    async def packages(self, brand_id: int, *, after: tuple[int, ...], limit: int) -> tuple[list[Package], str]:
        """A page of a brand's packages with something left, in burn-down order, and the key of the next page.

        The key is a place in the queue, so the next page starts there whatever was spent meanwhile; empty: no more.
        """
        async with self._database.snapshot() as connection:
            book, brand = await self._book(connection, brand_id)
            await self._settle_due(connection, book, brand)
        packages = [package for package in book.queue(brand_id) if package.remaining and _place(package) > after]
        more = len(packages) > limit
        packages = packages[:limit]
        return packages, ".".join(map(str, _place(packages[-1]))) if more else ""

    async def all_packages(self, brand_id: int, *, after: int, limit: int) -> tuple[list[Package], str]:
        """A page of all of a brand's packages, by number, and the key of the next page; empty: there is none."""
        async with self._database.snapshot() as connection:
            book, brand = await self._book(connection, brand_id)
            await self._settle_due(connection, book, brand)
            page = await store.packages_page(connection, brand_id, after, limit + 1)
        settled = {package.package_id: package for package in book.queue(brand_id)}
        packages = [settled.get(package.package_id, package) for package in page]
        more = len(packages) > limit
        packages = packages[:limit]
        return packages, str(packages[-1].package_id) if more else ""

    async def freeze(self, brand_id: int, order_no: str) -> Freeze:
        """A freeze. Raises NOT_FOUND (FREEZE_NOT_FOUND)."""
        missing = not_found("FREEZE_NOT_FOUND", f"there is no freeze {order_no}")
        async with self._database.snapshot() as connection:
            found = await store.freeze(connection, brand_id, order_no)
            if found is None:
                raise missing
            book, brand = await self._book(connection, brand_id)
            book.add_freezes([found])
            if found.open and found.expires_at <= book.time_of(brand):
                # Its end by itself changes no other freeze.
                found.timed_out += found.open
            return found

    async def payment(self, brand_id: int, payment_no: str) -> tuple[Payment, list[Refund]]:
        """A payment with its refunds. Raises NOT_FOUND (PAYMENT_NOT_FOUND)."""
        async with self._database.snapshot() as connection:
            found = await store.payment(connection, brand_id, payment_no)
            if found is None:
                raise not_found("PAYMENT_NOT_FOUND", f"there is no payment {payment_no}")
            return found, await store.refunds_of_payment(connection, brand_id, payment_no)

    async def payments(self, brand_id: int, *, order_no: str, before: str, limit: int) -> tuple[list[Payment], str]:
        """A page of a brand's payments, newest first, and the key of the next page; empty: there is none."""
        async with self._database.snapshot() as connection:
            await self._require_brand(connection, brand_id)
            payments = await store.payments_page(connection, brand_id, order_no, before, limit + 1)
        more = len(payments) > limit
        payments = payments[:limit]
        return payments, payments[-1].payment_no if more else ""

    async def brand(self, brand_id: int) -> tuple[Brand, datetime]:
        """A brand and when it was created. Raises NOT_FOUND (BRAND_NOT_FOUND)."""
        async with self._database.snapshot() as connection:
            brands = await store.brands_page(connection, [brand_id], brand_id - 1, 1)
        if not brands:
            raise _no_brand(brand_id)
        return brands[0]

    async def brands(
        self, allowed: Sequence[int] | None, *, after: int, limit: int
    ) -> tuple[list[tuple[Brand, datetime]], str]:
        """A page of the brands that may be seen (None: all), and the key of the next page; empty: there is none."""
        async with self._database.snapshot() as connection:
            brands = await store.brands_page(connection, allowed, after, limit + 1)
        more = len(brands) > limit
        brands = brands[:limit]
        return brands, str(brands[-1][0].brand_id) if more else ""

    async def offers(self, *, include_inactive: bool, after: str, limit: int) -> tuple[list[PackageOffer], str]:
        """A page of the offers and the key of the next page; empty: there is none."""
        async with self._database.snapshot() as connection:
            offers = await store.offers_page(connection, include_inactive, after, limit + 1)
        more = len(offers) > limit
        offers = offers[:limit]
        return offers, offers[-1].offer_id if more else ""

    async def _book(self, connection: Connection, brand_id: int) -> tuple[Book, Brand]:
        """The brand's live state, with nothing booked that is due."""
        now = await store.clock(connection, self._offset)
        book = Book(now, self._terms, IdentifierSource())
        brand = await self._require_brand(connection, brand_id)
        book.add_brand(brand)
        book.add_packages(await store.live_packages(connection, brand_id))
        book.sort_queues()
        return book, brand

    async def _settle_due(self, connection: Connection, book: Book, brand: Brand) -> None:
        """Compute, without writing, what is due by the book's moment."""
        moment = book.time_of(brand)
        if brand.next_due_at is None or brand.next_due_at > moment:
            return
        # A reader cannot book part and come back for the rest, so it reads all that ended; the sweep keeps them few.
        freezes, next_end = await store.due(connection, brand.brand_id, moment)
        book.add_freezes(freezes)
        book.book_due(brand.brand_id, moment, next_end)

    @staticmethod
    async def _require_brand(connection: Connection, brand_id: int) -> Brand:
        brand = await store.brand(connection, brand_id)
        if brand is None:
            raise _no_brand(brand_id)
        return brand


def _place(package: Package) -> tuple[int, ...]:
    """The burn-down key in numbers: microseconds since 1970 of the package's end, and its number."""
    end, package_id = package.burn_down_key
    return ((end - _EPOCH) // timedelta(microseconds=1), package_id)


def _no_brand(brand_id: int) -> Refusal:
    return not_found("BRAND_NOT_FOUND", f"there is no brand {brand_id}")
