"""Reads of the ledger. They book nothing and answer as if what is due had been booked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from costcenter import statement as statements
from costcenter import store, store_balances, store_statement
from costcenter.book import Book, Terms
from costcenter.model import Brand, Freeze, Package, PackageOffer, Payment, Refund
from costcenter.statement import PERIOD_MAX, TICK, Place, Record, Statement, StatementLine
from costcenter.store_balances import BrandBalance
from infra import paging
from infra.database import Connection, Database
from infra.errors import Refusal, invalid, invalid_fields, not_found
from infra.identifiers import IdentifierSource

SMS_TYPES = (1, 2, 3)
# Over how long a listing of balances tells what brands paid: a week has every weekday once.
PAID_WINDOW = timedelta(days=7)
# Brands that one filtered page looks at; a filter that nobody passes would else read all brands in one call.
SCAN_MAX = 10_000
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
        async with self._at(brand_id, as_of) as (connection, book, brand):
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
        async with self._at(brand_id, end) as (connection, book, brand):
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

    async def statement(
        self, brand_id: int, *, month: str, start: datetime | None, end: datetime | None, limit: int
    ) -> tuple[Statement, list[StatementLine], Place | None]:
        """A brand's statement of a month of its time zone, or of [start, end) (no end: until now).

        Returns the sums, the first page of lines (none for `limit` 0) and the place of the next page; None: there is
        none. What is due in the period counts at its own moment, booked or not. Raises NOT_FOUND (BRAND_NOT_FOUND),
        INVALID_ARGUMENT (BAD_REQUEST) for a month that is none, a period that lies in the future, and one that is too
        long when it ends now.
        """
        async with self._settled(brand_id) as (connection, book, brand):
            # What happened at this very moment may not be complete yet; what happened before it is.
            now = book.time_of(brand)
            if start is None:
                asked = statements.month(month, brand.time_zone)
            else:
                asked = statements.Period(start, now if end is None else end)
            if asked.start >= now:
                raise invalid_fields({"from" if start is not None else "month": "must not begin in the future"})
            if asked.end - asked.start > PERIOD_MAX:
                raise invalid(to=f"must be given when from lies more than {PERIOD_MAX.days} days back")
            period = statements.Period(asked.start, min(asked.end, now))
            opening = await self._balance_before(connection, book, brand, period.start)
            closing = await self._balance_before(connection, book, brand, period.end)
            sums = await store_statement.sums(connection, brand_id, period)
            for record in _due_records(book, period):
                sums.add(record.kind, 1, record.segments)
            statement = Statement(brand_id, brand.time_zone, period, asked.end <= now, opening, closing, sums)
            place = Place(period.end, period.start, 0, opening)
            return (statement, *(await self._lines(connection, book, brand_id, place, limit)))

    async def statement_lines(
        self, brand_id: int, place: Place, limit: int
    ) -> tuple[list[StatementLine], Place | None]:
        """The page of a statement's lines at a place, and the place of the next; None: there is none.

        Raises NOT_FOUND (BRAND_NOT_FOUND), INVALID_ARGUMENT (BAD_REQUEST) for a place that no statement has.
        """
        async with self._database.snapshot() as connection:
            book, brand = await self._book(connection, brand_id)
            if place.end > book.time_of(brand):
                raise paging.not_ours()
            await self._balance_before(connection, book, brand, place.end)
            return await self._lines(connection, book, brand_id, place, limit)

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
            _end_freezes([found], book.time_of(brand))
            return found

    async def freezes(self, brand_id: int, *, before: str, limit: int) -> tuple[list[Freeze], str]:
        """A page of a brand's freezes, newest first, and the key of the next page; empty: there is none."""
        async with self._database.snapshot() as connection:
            book, brand = await self._book(connection, brand_id)
            freezes = await store.freezes_page(connection, brand_id, before, limit + 1)
        _end_freezes(freezes, book.time_of(brand))
        more = len(freezes) > limit
        freezes = freezes[:limit]
        return freezes, freezes[-1].order_no if more else ""

    async def open_freezes(
        self, brand_id: int, *, after: tuple[datetime, str] | None, limit: int
    ) -> tuple[list[Freeze], tuple[datetime, str] | None]:
        """A page of a brand's freezes that hold something, soonest end first, and the place (end, number) of the last;
        None: there are no more.
        """
        async with self._database.snapshot() as connection:
            book, brand = await self._book(connection, brand_id)
            # What has ended holds nothing, booked or not.
            first = (book.time_of(brand) + TICK, "")
            start = first if after is None else max(after, first)
            freezes = await store.open_freezes_page(connection, brand_id, start, limit + 1)
        more = len(freezes) > limit
        freezes = freezes[:limit]
        return freezes, (freezes[-1].expires_at, freezes[-1].order_no) if more else None

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

    async def balances(
        self, allowed: Sequence[int] | None, *, status: int, below: int | None, prefix: str, after: int, limit: int
    ) -> tuple[list[BrandBalance], str, datetime]:
        """A page of the balances of brands that may be seen (None: all), the key of the next page, and the moment.

        `status` 0: any; `below`: only brands with less available than so many segments; `prefix`: only brands whose
        names begin so. With a filter a page may hold fewer than `limit`, even none, although there is a next one; an
        empty key: there is none.
        """
        filtered = bool(status) or below is not None or bool(prefix)
        async with self._database.snapshot() as connection:
            now = await store.clock(connection, self._offset)
            found = await store_balances.balances(
                connection,
                allowed=allowed,
                after=after,
                status=status,
                below=below,
                prefix=prefix,
                scan=SCAN_MAX if filtered else limit + 1,
                limit=limit + 1,
                now=now,
                window=PAID_WINDOW,
            )
            page = found.balances[:limit]
            await self._settle_all(connection, [each for each in page if _has_due(each)])
        following = ""
        if len(found.balances) > limit:
            following = str(page[-1].brand.brand_id)
        elif filtered and found.scanned == SCAN_MAX:
            following = str(found.last)
        return [each for each in page if below is None or each.available < below], following, now

    async def _settle_all(self, connection: Connection, balances: Sequence[BrandBalance]) -> None:
        """Compute, without writing, what is due for brands by their moments."""
        if not balances:
            return
        books = {each.brand.brand_id: Book(each.as_of, self._terms, IdentifierSource()) for each in balances}
        for each in balances:
            books[each.brand.brand_id].add_brand(each.brand)
        for package in await store_balances.live_packages(connection, list(books)):
            books[package.brand_id].add_packages([package])
        freezes, next_ends = await store.due(connection, [(each.brand.brand_id, each.as_of) for each in balances])
        for freeze in freezes:
            books[freeze.brand_id].add_freezes([freeze])
        for each in balances:
            brand_id = each.brand.brand_id
            book = books[brand_id]
            book.sort_queues()
            book.book_due(brand_id, each.as_of, next_ends.get(brand_id))
            each.available = book.available(brand_id)
            ends = [(p.expires_at, p.available) for p in book.queue(brand_id) if p.expires_at and p.available]
            each.expires_at = min((at for at, _ in ends), default=None)
            each.expiring = sum(available for at, available in ends if at == each.expires_at)

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

    @asynccontextmanager
    async def _at(self, brand_id: int, moment: datetime | None) -> AsyncIterator[tuple[Connection, Book, Brand]]:
        """A snapshot with the brand's live state; one that holds all that happened by a moment which is given."""
        async with self._database.snapshot() as connection:
            book, brand = await self._book(connection, brand_id)
            if moment is None or (brand.last_at is not None and moment < brand.last_at):
                # Records follow time: nothing comes before the last one.
                yield connection, book, brand
                return
        async with self._settled(brand_id) as settled:
            yield settled

    @asynccontextmanager
    async def _settled(self, brand_id: int) -> AsyncIterator[tuple[Connection, Book, Brand]]:
        """A snapshot with the brand's live state, at a moment before which nothing more can happen to the brand."""
        async with self._database.connection() as connection:
            now = await store_statement.settled_clock(connection, brand_id, self._offset)
        async with self._database.snapshot() as connection:
            book, brand = await self._book(connection, brand_id)
            # The snapshot is younger, and what began between the two may not have ended.
            book.now = now
            yield connection, book, brand

    async def _balance_before(
        self, connection: Connection, book: Book, brand: Brand, moment: datetime
    ) -> statements.Balance:
        """The balance just before a moment. Computes what is due by then: earlier moments are asked first."""
        if moment <= _EPOCH:
            # Nobody had a ledger then, and before the first year there is no moment.
            return statements.Balance(0, 0)
        last = moment - TICK
        if brand.last_at is not None and last < brand.last_at:
            ((total, frozen),) = await store.balance_points(connection, brand.brand_id, [last])
            return statements.Balance(total, frozen)
        book.now = last
        await self._settle_due(connection, book, brand)
        return statements.Balance(brand.total, brand.frozen)

    @staticmethod
    async def _lines(
        connection: Connection, book: Book, brand_id: int, place: Place, limit: int
    ) -> tuple[list[StatementLine], Place | None]:
        """Lines behind a place, those stored and then those that the book has found due."""
        if not limit:
            return [], None
        records = await store_statement.records(connection, brand_id, place, limit + 1)
        records += _due_records(book, statements.Period(place.at, place.end), after=place.record_no)
        lines = list(statements.running(records[:limit], place.after))
        if len(records) <= limit:
            return lines, None
        last = lines[-1]
        return lines, Place(place.end, last.record.at, last.record.record_no, last.after)

    async def _settle_due(self, connection: Connection, book: Book, brand: Brand) -> None:
        """Compute, without writing, what is due by the book's moment."""
        moment = book.time_of(brand)
        if brand.next_due_at is None or brand.next_due_at > moment:
            return
        # A reader cannot book part and come back for the rest, so it reads all that ended; the sweep keeps them few.
        freezes, next_ends = await store.due(connection, [(brand.brand_id, moment)])
        book.add_freezes(freezes)
        book.book_due(brand.brand_id, moment, next_ends.get(brand.brand_id))

    @staticmethod
    async def _require_brand(connection: Connection, brand_id: int) -> Brand:
        brand = await store.brand(connection, brand_id)
        if brand is None:
            raise _no_brand(brand_id)
        return brand


def _due_records(book: Book, period: statements.Period, after: int = 0) -> list[Record]:
    """What a book has found due in a period, as the records that will be booked: their numbers are the next ones."""
    return [
        Record(
            record_no=entry.record_no,
            at=entry.at,
            # Time grants nothing, so the package's source does not matter.
            kind=statements.kind_of_entry(entry.kind, 0),
            number=entry.reference,
            request_id="",
            message_id="",
            sms_type=0,
            segments=entry.segments,
            moved=0,
            lines=[(entry.package_id, entry.segments)],
        )
        for entry in book.changes.entries
        if period.start <= entry.at < period.end and entry.record_no > after
    ]


def _end_freezes(freezes: Sequence[Freeze], now: datetime) -> None:
    """Have freezes look as if what has ended was booked: the end of one by itself changes no other."""
    for freeze in freezes:
        if freeze.open and freeze.expires_at <= now:
            freeze.timed_out += freeze.open


def _place(package: Package) -> tuple[int, ...]:
    """The burn-down key in numbers: microseconds since 1970 of the package's end, and its number."""
    end, package_id = package.burn_down_key
    return ((end - _EPOCH) // timedelta(microseconds=1), package_id)


def _has_due(balance: BrandBalance) -> bool:
    due_at = balance.brand.next_due_at
    return due_at is not None and due_at <= balance.as_of


def _no_brand(brand_id: int) -> Refusal:
    return not_found("BRAND_NOT_FOUND", f"there is no brand {brand_id}")
