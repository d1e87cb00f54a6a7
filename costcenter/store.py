"""SQL of the ledger: the one place that reads and writes its tables.

Every statement is set-based: it takes the keys or rows of a whole group as arrays. Reads look each key up behind an
`offset 0`, which the planner does not look through: a plan that was made while a table was small would else walk the
whole table for every group once it has grown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from psycopg import Cursor as ThreadCursor

from costcenter.keys import GroupKeys
from costcenter.lines import Line
from costcenter.model import (
    Brand,
    Changes,
    Freeze,
    Package,
    PackageOffer,
    PackageOrder,
    Payment,
    PaymentStatus,
    Receipt,
    Refund,
    ReleaseRequest,
    Token,
)
from costcenter.operations import Needs
from infra import arrays
from infra.bulk import Bulk
from infra.database import Connection, ThreadConnection

if TYPE_CHECKING:
    from costcenter.book import Book
    from costcenter.kept import Kept

Cursor = ThreadCursor[tuple[Any, ...]]

# Whoever changes anything of a lane's brands holds this row first, so no two transactions decide on the same state; and
# whoever finds its version where its own transaction left it knows that nobody else has. The one clock is read once the
# row is ours. The offset is for tests.
LOCK_LANE = """
update costcenter.lane set version = version + 1 where lane_id = %s
returning version, clock_timestamp() + make_interval(secs => %s)
"""

# Ends the transactions of cost centres that hold a lane, or a share of one as readers do, and whose process has not
# said a word for so many seconds. The server's own limit (`Session`) does not count while a pipeline is open: the
# server has done what was sent and waits for more, which it calls active, without end.
END_STILL = """
select pg_terminate_backend(a.pid)
from pg_stat_activity a
where a.datname = current_database() and a.application_name like 'smsbill-%%' and a.wait_event_type = 'Client'
  and a.state_change < clock_timestamp() - make_interval(secs => %s)
  and exists (
    select from pg_locks l
    where l.pid = a.pid and l.database = a.datid and l.relation = 'costcenter.lane'::regclass and l.granted
      and l.mode in ('RowExclusiveLock', 'RowShareLock')
  )
"""

CLOCK = "select clock_timestamp() + make_interval(secs => %s)"

LANES = "select count(*) from costcenter.lane"

BRAND_COLUMNS = (
    "b.brand_id, b.name, b.status, b.time_zone, b.refund_undelivered, "
    "l.total, l.frozen, l.last_at, l.next_due_at, l.next_package_id, l.next_record_no"
)
PACKAGE_COLUMNS = (
    "p.brand_id, p.package_id, p.source, p.source_no, p.granted, p.remaining, p.held, p.paid, p.refunded, p.expired, "
    "p.sms_types, p.expires_at, p.created_at, p.origin_package_id"
)
FREEZE_COLUMNS = (
    "f.brand_id, f.order_no, f.request_id, f.sms_type, f.segments, f.line_packages::text, f.line_segments::text, "
    "f.created_at, f.expires_at, f.record_no, f.paid, f.released, f.timed_out"
)
PAYMENT_COLUMNS = (
    "y.brand_id, y.payment_no, y.order_no, y.request_id, y.sms_type, y.segments, "
    "y.line_packages::text, y.line_segments::text, "
    "y.status, y.created_at, y.record_no, y.refunded"
)
REFUND_COLUMNS = (
    "r.brand_id, r.payment_no, r.message_id, r.segments, r.line_packages, r.line_segments, r.line_targets, r.cause, "
    "r.created_at, r.record_no"
)
ORDER_COLUMNS = (
    "o.brand_id, o.package_order_no, o.offer_id, o.segments, o.price, o.currency, o.validity_days, o.validity_months, "
    "o.sms_types, o.status, o.created_at, o.pay_before, o.paid_at, o.payment_reference, o.package_id"
)
OFFER_COLUMNS = "offer_id, name, segments, price, currency, validity_days, validity_months, sms_types, active"

# The brands of a group with their balances.
LOAD_BRANDS = f"""
select {BRAND_COLUMNS}
from unnest(%s::bigint[]) as k(brand_id)
cross join lateral (select * from costcenter.brand b where b.brand_id = k.brand_id offset 0) b
cross join lateral (select * from costcenter.balance l where l.brand_id = k.brand_id offset 0) l
"""

# Packages with something remaining: all that can be spent, and all that is held.
LOAD_LIVE_PACKAGES = f"""
select {PACKAGE_COLUMNS}
from unnest(%s::bigint[]) as k(brand_id)
cross join lateral (select * from costcenter.package_queue p where p.brand_id = k.brand_id and p.is_live offset 0) p
"""

# Packages by their numbers, spent or not.
LOAD_PACKAGES = f"""
select {PACKAGE_COLUMNS}
from unnest(%s::bigint[], %s::bigint[]) as k(brand_id, package_id)
cross join lateral (
    select * from costcenter.package_queue p where p.brand_id = k.brand_id and p.package_id = k.package_id offset 0
) p
"""

# The packages that payments came from, and the packages of their refunds.
LOAD_PACKAGES_OF_PAYMENTS = f"""
with origin as materialized (
    select distinct y.brand_id, u.package_id
    from unnest(%s::bigint[], %s::text[]) as k(brand_id, payment_no)
    cross join lateral (
        select * from costcenter.payment y where y.brand_id = k.brand_id and y.payment_no = k.payment_no offset 0
    ) y
    cross join lateral unnest(y.line_packages) as u(package_id)
)
select {PACKAGE_COLUMNS} from origin k
cross join lateral (
    select * from costcenter.package_queue p where p.brand_id = k.brand_id and p.package_id = k.package_id offset 0
) p
union all
select {PACKAGE_COLUMNS} from origin k
cross join lateral (
    select * from costcenter.package_queue p
    where p.brand_id = k.brand_id and p.origin_package_id = k.package_id offset 0
) p
"""

LOAD_FREEZES = f"""
select {FREEZE_COLUMNS}
from unnest(%s::bigint[], %s::text[]) as k(brand_id, order_no)
cross join lateral (
    select * from costcenter.freeze f where f.brand_id = k.brand_id and f.order_no = k.order_no offset 0
) f
"""

LOAD_PAYMENTS = f"""
select {PAYMENT_COLUMNS}
from unnest(%s::bigint[], %s::text[]) as k(brand_id, payment_no)
cross join lateral (
    select * from costcenter.payment y where y.brand_id = k.brand_id and y.payment_no = k.payment_no offset 0
) y
"""

LOAD_REFUNDS = f"""
select {REFUND_COLUMNS}
from unnest(%s::bigint[], %s::text[], %s::text[]) as k(brand_id, payment_no, message_id)
cross join lateral (
    select * from costcenter.refund r
    where r.brand_id = k.brand_id and r.payment_no = k.payment_no and r.message_id = k.message_id offset 0
) r
"""

LOAD_RECEIPTS = """
select c.brand_id, c.payment_no, c.message_id, c.segments, c.state, c.carrier_code, c.reported_at, c.recorded_at,
  c.house_loss
from unnest(%s::bigint[], %s::text[], %s::text[]) as k(brand_id, payment_no, message_id)
cross join lateral (
    select * from costcenter.receipt c
    where c.brand_id = k.brand_id and c.payment_no = k.payment_no and c.message_id = k.message_id offset 0
) c
"""

LOAD_ORDERS = f"""
select {ORDER_COLUMNS}
from unnest(%s::bigint[], %s::text[]) as k(brand_id, package_order_no)
cross join lateral (
    select * from costcenter.package_order o
    where o.brand_id = k.brand_id and o.package_order_no = k.package_order_no offset 0
) o
"""

LOAD_PACKAGES_OF_ORDERS = f"""
select {PACKAGE_COLUMNS}
from unnest(%s::bigint[], %s::text[]) as k(brand_id, package_order_no)
cross join lateral (
    select * from costcenter.package_order o
    where o.brand_id = k.brand_id and o.package_order_no = k.package_order_no offset 0
) o
cross join lateral (
    select * from costcenter.package_queue p where p.brand_id = o.brand_id and p.package_id = o.package_id offset 0
) p
"""

LOAD_OFFERS = f"select {OFFER_COLUMNS} from costcenter.package_offer where offer_id = any(%s::text[])"

LOAD_RELEASES = """
select r.brand_id, r.release_no, r.order_no, r.segments, r.created_at, r.applied_at, r.released
from unnest(%s::bigint[], %s::text[]) as k(brand_id, release_no)
cross join lateral (
    select * from costcenter.release_request r
    where r.brand_id = k.brand_id and r.release_no = k.release_no offset 0
) r
"""

LOAD_FREEZES_OF_RELEASES = f"""
select {FREEZE_COLUMNS}
from unnest(%s::bigint[], %s::text[]) as k(brand_id, release_no)
cross join lateral (
    select * from costcenter.release_request r
    where r.brand_id = k.brand_id and r.release_no = k.release_no offset 0
) r
cross join lateral (
    select * from costcenter.freeze f where f.brand_id = r.brand_id and f.order_no = r.order_no offset 0
) f
"""

LOAD_KEYS = """
select i.brand_id, i.operation, i.request_id, i.fingerprint, i.reply
from unnest(%s::bigint[], %s::smallint[], %s::text[]) as k(brand_id, operation, request_id)
cross join lateral (
    select * from costcenter.idempotency_key i
    where i.brand_id = k.brand_id and i.operation = k.operation and i.request_id = k.request_id offset 0
) i
"""

LOAD_PAYMENT_KEYS = """
select i.brand_id, i.request_id, i.fingerprint, i.reply
from unnest(%s::bigint[], %s::text[]) as k(brand_id, request_id)
cross join lateral (
    select * from costcenter.payment_key i where i.brand_id = k.brand_id and i.request_id = k.request_id offset 0
) i
"""

# Open freezes that have ended, soonest first, a bounded number of them for each brand.
LOAD_ENDED_FREEZES = f"""
select {FREEZE_COLUMNS}
from unnest(%s::bigint[], %s::timestamptz[]) as k(brand_id, until)
cross join lateral (
    select * from costcenter.freeze f
    where f.brand_id = k.brand_id and f.is_open and f.expires_at <= k.until
    order by f.expires_at, f.record_no limit %s
) f
"""

# The soonest end of an open freeze that has not come yet, for each brand.
LOAD_NEXT_FREEZE_ENDS = """
select k.brand_id, f.expires_at
from unnest(%s::bigint[], %s::timestamptz[]) as k(brand_id, until)
cross join lateral (
    select f.expires_at from costcenter.freeze f
    where f.brand_id = k.brand_id and f.is_open and f.expires_at > k.until
    order by f.expires_at limit 1
) f
"""

BRANDS = Bulk(
    "costcenter.brand",
    {
        "brand_id": "bigint",
        "name": "text",
        "status": "smallint",
        "time_zone": "text",
        "refund_undelivered": "boolean",
        "created_at": "timestamptz",
    },
    keys=1,
)
# A brand's creation is not changed by what changes the brand.
PUT_BRANDS = Bulk(
    "costcenter.brand",
    {
        "brand_id": "bigint",
        "name": "text",
        "status": "smallint",
        "time_zone": "text",
        "refund_undelivered": "boolean",
    },
    keys=1,
)
BALANCES = Bulk(
    "costcenter.balance",
    {
        "brand_id": "bigint",
        "total": "bigint",
        "frozen": "bigint",
        "last_at": "timestamptz",
        "next_due_at": "timestamptz",
        "next_package_id": "bigint",
        "next_record_no": "bigint",
    },
    keys=1,
)
POINTS = Bulk(
    "costcenter.balance_history",
    {"brand_id": "bigint", "at": "timestamptz", "total": "bigint", "frozen": "bigint"},
    keys=2,
)
NEW_PACKAGES = Bulk(
    "costcenter.package_queue",
    {
        "brand_id": "bigint",
        "package_id": "bigint",
        "source": "smallint",
        "source_no": "text",
        "granted": "bigint",
        "remaining": "bigint",
        "held": "bigint",
        "paid": "bigint",
        "refunded": "bigint",
        "expired": "bigint",
        "sms_types": "smallint[]",
        "expires_at": "timestamptz",
        "created_at": "timestamptz",
        "origin_package_id": "bigint",
    },
    keys=2,
)
PACKAGES = Bulk(
    "costcenter.package_queue",
    {
        "brand_id": "bigint",
        "package_id": "bigint",
        "granted": "bigint",
        "remaining": "bigint",
        "held": "bigint",
        "paid": "bigint",
        "refunded": "bigint",
        "expired": "bigint",
    },
    keys=2,
)
NEW_FREEZES = Bulk(
    "costcenter.freeze",
    {
        "brand_id": "bigint",
        "order_no": "text",
        "request_id": "text",
        "sms_type": "smallint",
        "segments": "bigint",
        "line_packages": "bigint[]",
        "line_segments": "bigint[]",
        "created_at": "timestamptz",
        "expires_at": "timestamptz",
        "record_no": "bigint",
    },
    keys=2,
    # Its number is not known before its transaction is over, so nothing has become of it yet.
    fixed={"paid": "0", "released": "0", "timed_out": "0"},
)
FREEZES = Bulk(
    "costcenter.freeze",
    {
        "brand_id": "bigint",
        "order_no": "text",
        "paid": "bigint",
        "released": "bigint",
        "timed_out": "bigint",
        "expires_at": "timestamptz",
    },
    keys=2,
)
NEW_PAYMENTS = Bulk(
    "costcenter.payment",
    {
        "brand_id": "bigint",
        "payment_no": "text",
        "order_no": "text",
        "request_id": "text",
        "sms_type": "smallint",
        "segments": "bigint",
        "line_packages": "bigint[]",
        "line_segments": "bigint[]",
        "created_at": "timestamptz",
        "record_no": "bigint",
    },
    keys=2,
    fixed={"refunded": "0", "status": str(int(PaymentStatus.PAID))},
)
PAYMENTS = Bulk(
    "costcenter.payment",
    {"brand_id": "bigint", "payment_no": "text", "refunded": "bigint", "status": "smallint"},
    keys=2,
)
REFUNDS = Bulk(
    "costcenter.refund",
    {
        "brand_id": "bigint",
        "payment_no": "text",
        "message_id": "text",
        "segments": "bigint",
        "line_packages": "bigint[]",
        "line_segments": "bigint[]",
        "line_targets": "bigint[]",
        "cause": "smallint",
        "created_at": "timestamptz",
        "record_no": "bigint",
    },
    keys=3,
)
RECEIPTS = Bulk(
    "costcenter.receipt",
    {
        "brand_id": "bigint",
        "payment_no": "text",
        "message_id": "text",
        "segments": "bigint",
        "state": "smallint",
        "carrier_code": "text",
        "reported_at": "timestamptz",
        "recorded_at": "timestamptz",
        "house_loss": "bigint",
    },
    keys=3,
)
ENTRIES = Bulk(
    "costcenter.entry",
    {
        "brand_id": "bigint",
        "record_no": "bigint",
        "at": "timestamptz",
        "booked_at": "timestamptz",
        "kind": "smallint",
        "package_id": "bigint",
        "segments": "bigint",
        "reference": "text",
    },
    keys=2,
)
ORDERS = Bulk(
    "costcenter.package_order",
    {
        "brand_id": "bigint",
        "package_order_no": "text",
        "offer_id": "text",
        "segments": "bigint",
        "price": "numeric",
        "currency": "text",
        "validity_days": "integer",
        "validity_months": "integer",
        "sms_types": "smallint[]",
        "status": "smallint",
        "created_at": "timestamptz",
        "pay_before": "timestamptz",
        "paid_at": "timestamptz",
        "payment_reference": "text",
        "package_id": "bigint",
    },
    keys=2,
)
RELEASES = Bulk(
    "costcenter.release_request",
    {
        "brand_id": "bigint",
        "release_no": "text",
        "order_no": "text",
        "segments": "bigint",
        "created_at": "timestamptz",
        "applied_at": "timestamptz",
        "released": "bigint",
        "next_at": "timestamptz",
    },
    keys=2,
)
ADJUSTMENTS = Bulk(
    "costcenter.adjustment",
    {
        "brand_id": "bigint",
        "adjustment_no": "text",
        "kind": "smallint",
        "package_id": "bigint",
        "segments": "bigint",
        "author": "text",
        "reason": "text",
        "created_at": "timestamptz",
    },
    keys=2,
)
KEYS = Bulk(
    "costcenter.idempotency_key",
    {
        "brand_id": "bigint",
        "operation": "smallint",
        "request_id": "text",
        "fingerprint": "bytea",
        "reply": "bytea",
        "created_at": "timestamptz",
    },
    keys=3,
)
PAYMENT_KEYS = Bulk(
    "costcenter.payment_key",
    {"brand_id": "bigint", "request_id": "text", "fingerprint": "bytea", "reply": "bytea"},
    keys=2,
)


def brand_from_row(row: Sequence[Any]) -> Brand:
    """A brand from `BRAND_COLUMNS`."""
    return Brand(*row)


def package_from_row(row: Sequence[Any]) -> Package:
    """A package from `PACKAGE_COLUMNS`."""
    package = Package(*row)
    package.sms_types = tuple(package.sms_types)
    return package


def _lines(packages: str, segments: str) -> list[Line]:
    """Lines from the literals of two arrays. Reading them here costs a tenth of what the driver's array loader does."""
    return list(zip(map(int, packages[1:-1].split(",")), map(int, segments[1:-1].split(",")), strict=True))


def freeze_from_row(row: Sequence[Any]) -> Freeze:
    """A freeze from `FREEZE_COLUMNS`."""
    brand_id, order_no, request_id, sms_type, segments, packages, counts, created_at, expires_at, record_no, *rest = row
    lines = _lines(packages, counts)
    return Freeze(brand_id, order_no, request_id, sms_type, segments, lines, created_at, expires_at, record_no, *rest)


def payment_from_row(row: Sequence[Any]) -> Payment:
    """A payment from `PAYMENT_COLUMNS`."""
    brand_id, payment_no, order_no, request_id, sms_type, segments, packages, counts, *rest = row
    lines = _lines(packages, counts)
    return Payment(brand_id, payment_no, order_no, request_id, sms_type, segments, lines, *rest)


def refund_from_row(row: Sequence[Any]) -> Refund:
    """A refund from `REFUND_COLUMNS`."""
    brand_id, payment_no, message_id, segments, packages, counts, targets, cause, created_at, record_no = row
    lines = list(zip(packages, counts, strict=True))
    return Refund(brand_id, payment_no, message_id, segments, lines, list(targets), cause, created_at, record_no)


def order_from_row(row: Sequence[Any]) -> PackageOrder:
    """A package order from `ORDER_COLUMNS`."""
    order = PackageOrder(*row)
    order.sms_types = tuple(order.sms_types)
    return order


def offer_from_row(row: Sequence[Any]) -> PackageOffer:
    """An offer from `OFFER_COLUMNS`."""
    offer = PackageOffer(*row)
    offer.sms_types = tuple(offer.sms_types)
    return offer


def _pairs(pairs: Iterable[tuple[int, Any]]) -> tuple[str, str]:
    """Parameters for (brand_id, number) pairs, at least one."""
    brand_ids, numbers = zip(*pairs, strict=True)
    literal = arrays.texts if isinstance(numbers[0], str) else arrays.integers
    return arrays.integers(brand_ids), literal(numbers)


class GroupReads:
    """What a group of operations needs and its lane does not know, in one round trip behind the lane's lock.

    Used within a pipeline: `lock` first, then what is sent, then the rest, which waits for what it returns.
    """

    def __init__(self, connection: ThreadConnection) -> None:
        self._connection = connection

    def lock(self, lane_id: int, clock_offset_seconds: float) -> None:
        """Send the lock and the clock."""
        self._lane = self._connection.execute(LOCK_LANE, (lane_id, clock_offset_seconds))

    def send_keys(self, keys: GroupKeys) -> None:
        """Send the reads of the idempotency keys."""
        self._keys = None
        if keys.asked:
            brand_ids, operations, request_ids = zip(*keys.asked, strict=True)
            self._keys = self._connection.execute(
                LOAD_KEYS, (arrays.integers(brand_ids), arrays.integers(operations), arrays.texts(request_ids))
            )
        self._payment_keys = self._send(LOAD_PAYMENT_KEYS, keys.payments_asked)

    def send(self, needs: Needs, kept: Kept) -> None:
        """Send the reads of all that is needed and not kept."""
        send = self._send
        brand_ids = kept.missing_brands(needs.brands)
        self._brands, live = None, None
        if brand_ids:
            literal = (arrays.integers(brand_ids),)
            self._brands = self._connection.execute(LOAD_BRANDS, literal)
            live = self._connection.execute(LOAD_LIVE_PACKAGES, literal)
        self._packages = [
            live,
            send(LOAD_PACKAGES, needs.packages),
            send(LOAD_PACKAGES_OF_PAYMENTS, needs.payments),
            send(LOAD_PACKAGES_OF_ORDERS, needs.orders),
        ]
        self._freezes = [
            send(LOAD_FREEZES, kept.missing_freezes(needs.freezes)),
            send(LOAD_FREEZES_OF_RELEASES, needs.releases),
        ]
        self._payments = send(LOAD_PAYMENTS, needs.payments)
        self._refunds, self._receipts = None, None
        if needs.messages:
            owners, payment_nos, message_ids = zip(*needs.messages, strict=True)
            messages = (arrays.integers(owners), arrays.texts(payment_nos), arrays.texts(message_ids))
            self._refunds = self._connection.execute(LOAD_REFUNDS, messages)
            self._receipts = self._connection.execute(LOAD_RECEIPTS, messages)
        self._orders = send(LOAD_ORDERS, needs.orders)
        self._offers = None
        if needs.offers:
            self._offers = self._connection.execute(LOAD_OFFERS, (arrays.texts(needs.offers),))
        self._releases = send(LOAD_RELEASES, needs.releases)

    def version_and_now(self) -> tuple[int, datetime]:
        """The lane's version with this transaction, and the transaction's moment."""
        row = self._lane.fetchone()
        assert row is not None
        return row[0], row[1]

    def fill_keys(self, keys: GroupKeys) -> None:
        """Note the idempotency keys that exist."""
        keys.known.update({(row[0], row[1], row[2]): (row[3], row[4]) for row in _rows(self._keys)})
        keys.payments_known.update({(row[0], row[1]): (row[2], row[3]) for row in _rows(self._payment_keys)})

    def fill(self, book: Book) -> None:
        """Put what was read into a book."""
        for row in _rows(self._brands):
            book.add_brand(brand_from_row(row))
        for cursor in self._packages:
            book.add_packages(package_from_row(row) for row in _rows(cursor))
        book.sort_queues()
        for cursor in self._freezes:
            book.add_freezes(freeze_from_row(row) for row in _rows(cursor))
        book.add_payments(payment_from_row(row) for row in _rows(self._payments))
        book.add_refunds(refund_from_row(row) for row in _rows(self._refunds))
        book.add_receipts(Receipt(*row) for row in _rows(self._receipts))
        book.add_orders(order_from_row(row) for row in _rows(self._orders))
        book.add_offers(offer_from_row(row) for row in _rows(self._offers))
        book.add_releases(ReleaseRequest(*row) for row in _rows(self._releases))

    def _send(self, statement: str, pairs: Collection[tuple[int, Any]]) -> Cursor | None:
        """Send a statement for (brand_id, number) pairs, unless there are none."""
        return self._connection.execute(statement, _pairs(pairs)) if pairs else None


def _rows(cursor: Cursor | None) -> list[tuple[Any, ...]]:
    """The rows of a statement that was sent; none for one that was not."""
    return [] if cursor is None else cursor.fetchall()


def end_still(connection: ThreadConnection, seconds: float) -> int:
    """End the transactions that hold a lane and have stood still for some seconds; how many there were."""
    return sum(ended for (ended,) in connection.execute(END_STILL, (seconds,)))


def _due_parameters(brands: Sequence[tuple[int, datetime]]) -> tuple[str, str]:
    brand_ids, untils = zip(*brands, strict=True)
    return arrays.integers(brand_ids), arrays.moments(untils)


def load_due(
    connection: ThreadConnection, brands: Sequence[tuple[int, datetime]], freezes_max: int
) -> tuple[list[Freeze], dict[int, datetime]]:
    """Open freezes that ended by a moment, at most `freezes_max` a brand, and each brand's next end."""
    parameters = _due_parameters(brands)
    with connection.pipeline():
        ended = connection.execute(LOAD_ENDED_FREEZES, (*parameters, freezes_max))
        ends = connection.execute(LOAD_NEXT_FREEZE_ENDS, parameters)
        return [freeze_from_row(row) for row in ended], dict(cast(list[tuple[int, datetime]], ends.fetchall()))


async def due(
    connection: Connection, brands: Sequence[tuple[int, datetime]]
) -> tuple[list[Freeze], dict[int, datetime]]:
    """All open freezes of brands that ended by a moment, at least one brand, and each brand's next end."""
    parameters = _due_parameters(brands)
    ended = await connection.execute(LOAD_ENDED_FREEZES, (*parameters, None))
    freezes = [freeze_from_row(row) for row in await ended.fetchall()]
    ends = await connection.execute(LOAD_NEXT_FREEZE_ENDS, parameters)
    return freezes, dict(cast(list[tuple[int, datetime]], await ends.fetchall()))


class GroupWrites:
    """What a group of operations writes. Used within a pipeline; the caller commits."""

    def __init__(self, connection: ThreadConnection, changes: Changes, keys: GroupKeys) -> None:
        self._connection = connection
        self._changes = changes
        self._keys = keys
        # How much was sent already.
        self._freezes = self._payments = self._made = self._payments_made = 0

    def send_new(self) -> None:
        """Send the records and keys made since the last call: PostgreSQL writes while more is decided."""
        send, changes = _Sending(), self._changes
        self._add_new(send)
        # A freeze that changes again is sent again.
        _add_freezes(send, changes)
        changes.freezes_sent.update(changes.freezes)
        changes.freezes.clear()
        send.execute(self._connection)

    def send_rest(self, now: datetime) -> None:
        """Send everything that was not sent yet."""
        send = _Sending()
        _add_brands(send, self._changes, now)
        _add_packages(send, self._changes)
        self._add_new(send)
        _add_freezes(send, self._changes)
        _add_payments(send, self._changes)
        _add_purchases(send, self._changes)
        send.execute(self._connection)

    def _add_new(self, send: _Sending) -> None:
        changes, keys = self._changes, self._keys
        send(NEW_FREEZES.insert, NEW_FREEZES, [_freeze_row(freeze) for freeze in changes.new_freezes[self._freezes :]])
        send(NEW_PAYMENTS.insert, NEW_PAYMENTS, [_payment_row(y) for y in changes.new_payments[self._payments :]])
        send(KEYS.insert, KEYS, keys.made[self._made :])
        send(PAYMENT_KEYS.insert, PAYMENT_KEYS, keys.payments_made[self._payments_made :])
        self._freezes, self._payments = len(changes.new_freezes), len(changes.new_payments)
        self._made, self._payments_made = len(keys.made), len(keys.payments_made)


class _Sending:
    """Statements that go as one: the tables are different ones, and one statement costs less than several."""

    def __init__(self) -> None:
        self._statements: list[str] = []
        self._parameters: list[str] = []

    def __call__(self, statement: str, bulk: Bulk, rows: Sequence[Sequence[Any]]) -> None:
        """Add a statement for some rows, unless there are none."""
        if rows:
            self._statements.append(statement)
            self._parameters.extend(bulk.parameters(rows))

    def execute(self, connection: ThreadConnection) -> None:
        """Send what was added."""
        if self._statements:
            *others, last = self._statements
            named = ", ".join(f"w{number} as ({statement})" for number, statement in enumerate(others))
            connection.execute(f"with {named} {last}" if named else last, self._parameters)


def _freeze_row(freeze: Freeze) -> tuple[Any, ...]:
    return (
        freeze.brand_id,
        freeze.order_no,
        freeze.request_id,
        freeze.sms_type,
        freeze.segments,
        *_line_columns(freeze.lines),
        freeze.created_at,
        freeze.expires_at,
        freeze.record_no,
    )


def _payment_row(payment: Payment) -> tuple[Any, ...]:
    return (
        payment.brand_id,
        payment.payment_no,
        payment.order_no,
        payment.request_id,
        payment.sms_type,
        payment.segments,
        *_line_columns(payment.lines),
        payment.created_at,
        payment.record_no,
    )


def _line_columns(lines: Sequence[Line]) -> tuple[str, str]:
    """The packages and the segments of lines, each as the literal of an array."""
    if len(lines) == 1:
        package_id, segments = lines[0]
        return f"{{{package_id}}}", f"{{{segments}}}"
    package_ids, counts = zip(*lines, strict=True)
    return arrays.integers(package_ids), arrays.integers(counts)


def _add_brands(send: _Sending, changes: Changes, now: datetime) -> None:
    brands = changes.brands
    put = changes.put_brands
    send(
        BRANDS.insert,
        BRANDS,
        [
            (b.brand_id, b.name, b.status, b.time_zone, b.refund_undelivered, now)
            for b in (brands[brand_id] for brand_id in put if brand_id in changes.new_brands)
        ],
    )
    send(
        PUT_BRANDS.update,
        PUT_BRANDS,
        [
            (b.brand_id, b.name, b.status, b.time_zone, b.refund_undelivered)
            for b in (brands[brand_id] for brand_id in put if brand_id not in changes.new_brands)
        ],
    )
    for statement, is_new in ((BALANCES.insert, True), (BALANCES.update, False)):
        send(
            statement,
            BALANCES,
            [
                (b.brand_id, b.total, b.frozen, b.last_at, b.next_due_at, b.next_package_id, b.next_record_no)
                for b in brands.values()
                if (b.brand_id in changes.new_brands) is is_new
            ],
        )
    send(
        POINTS.upsert,
        POINTS,
        [(brand_id, at, total, frozen) for (brand_id, at), (total, frozen) in changes.points.items()],
    )


def _add_purchases(send: _Sending, changes: Changes) -> None:
    send(
        ENTRIES.insert,
        ENTRIES,
        [
            (e.brand_id, e.record_no, e.at, e.booked_at, e.kind, e.package_id, e.segments, e.reference)
            for e in changes.entries
        ],
    )
    send(
        ORDERS.upsert,
        ORDERS,
        [
            (
                o.brand_id,
                o.package_order_no,
                o.offer_id,
                o.segments,
                o.price,
                o.currency,
                o.validity_days,
                o.validity_months,
                o.sms_types,
                o.status,
                o.created_at,
                o.pay_before,
                o.paid_at,
                o.payment_reference,
                o.package_id,
            )
            for o in changes.orders.values()
        ],
    )
    send(
        RELEASES.upsert,
        RELEASES,
        [
            (
                r.brand_id,
                r.release_no,
                r.order_no,
                r.segments,
                r.created_at,
                r.applied_at,
                r.released,
                r.created_at if r.applied_at is None else None,
            )
            for r in changes.releases.values()
        ],
    )
    send(
        ADJUSTMENTS.insert,
        ADJUSTMENTS,
        [
            (a.brand_id, a.adjustment_no, a.kind, a.package_id, a.segments, a.author, a.reason, a.created_at)
            for a in changes.adjustments
        ],
    )


def _add_packages(send: _Sending, changes: Changes) -> None:
    send(
        NEW_PACKAGES.insert,
        NEW_PACKAGES,
        [
            (
                p.brand_id,
                p.package_id,
                p.source,
                p.source_no,
                p.granted,
                p.remaining,
                p.held,
                p.paid,
                p.refunded,
                p.expired,
                p.sms_types,
                p.expires_at,
                p.created_at,
                p.origin_package_id,
            )
            for p in (changes.packages[key] for key in changes.new_packages)
        ],
    )
    send(
        PACKAGES.update,
        PACKAGES,
        [
            (p.brand_id, p.package_id, p.granted, p.remaining, p.held, p.paid, p.refunded, p.expired)
            for key, p in changes.packages.items()
            if key not in changes.new_packages
        ],
    )


def _add_freezes(send: _Sending, changes: Changes) -> None:
    send(
        FREEZES.update,
        FREEZES,
        [(f.brand_id, f.order_no, f.paid, f.released, f.timed_out, f.expires_at) for f in changes.freezes.values()],
    )


def _add_payments(send: _Sending, changes: Changes) -> None:
    send(
        PAYMENTS.update,
        PAYMENTS,
        [(y.brand_id, y.payment_no, y.refunded, y.status) for y in changes.payments.values()],
    )
    send(
        REFUNDS.insert,
        REFUNDS,
        [
            (
                r.brand_id,
                r.payment_no,
                r.message_id,
                r.segments,
                [line[0] for line in r.lines],
                [line[1] for line in r.lines],
                r.targets,
                r.cause,
                r.created_at,
                r.record_no,
            )
            for r in changes.refunds
        ],
    )
    send(
        RECEIPTS.upsert,
        RECEIPTS,
        [
            (
                c.brand_id,
                c.payment_no,
                c.message_id,
                c.segments,
                c.state,
                c.carrier_code,
                c.reported_at,
                c.recorded_at,
                c.house_loss,
            )
            for c in changes.receipts.values()
        ],
    )


# Reads of one thing or a page, for queries.

BALANCE_POINTS = """
select coalesce(h.total, 0), coalesce(h.frozen, 0)
from unnest(%s::timestamptz[]) with ordinality as m(at, place)
left join lateral (
    select total, frozen from costcenter.balance_history h
    where h.brand_id = %s and h.at <= m.at order by h.at desc limit 1
) h on true
order by m.place
"""

PACKAGES_PAGE = f"""
select {PACKAGE_COLUMNS} from costcenter.package_queue p
where p.brand_id = %s and p.package_id > %s order by p.package_id limit %s
"""

REFUNDS_OF_PAYMENT = f"""
select {REFUND_COLUMNS} from costcenter.refund r where r.brand_id = %s and r.payment_no = %s order by r.record_no
"""

FREEZES_PAGE = f"""
select {FREEZE_COLUMNS} from costcenter.freeze f
where f.brand_id = %s and (%s = '' or f.order_no < %s) order by f.order_no desc limit %s
"""

# The end stands twice: alone it bounds the scan of the index, with the number it tells where the page begins.
OPEN_FREEZES_PAGE = f"""
select {FREEZE_COLUMNS} from costcenter.freeze f
where f.brand_id = %s and f.is_open and f.expires_at >= %s and (f.expires_at, f.order_no) > (%s, %s)
order by f.expires_at, f.order_no limit %s
"""

PAYMENTS_PAGE = f"""
select {PAYMENT_COLUMNS} from costcenter.payment y
where y.brand_id = %s and (%s = '' or y.payment_no < %s) order by y.payment_no desc limit %s
"""

PAYMENTS_OF_FREEZE_PAGE = f"""
select {PAYMENT_COLUMNS} from costcenter.payment y
where y.brand_id = %s and y.order_no = %s and (%s = '' or y.payment_no < %s) order by y.payment_no desc limit %s
"""

BRANDS_PAGE = f"""
select {BRAND_COLUMNS}, b.created_at
from costcenter.brand b join costcenter.balance l on l.brand_id = b.brand_id
where b.brand_id > %s and (%s::bigint[] is null or b.brand_id = any(%s::bigint[])) order by b.brand_id limit %s
"""

OFFERS_PAGE = f"""
select {OFFER_COLUMNS} from costcenter.package_offer
where offer_id > %s and (active or %s) order by offer_id limit %s
"""

PUT_OFFER = f"""
insert into costcenter.package_offer ({OFFER_COLUMNS}) values (%s, %s, %s, %s, %s, %s, %s, %s, %s)
on conflict (offer_id) do update set name = excluded.name, segments = excluded.segments, price = excluded.price,
  currency = excluded.currency, validity_days = excluded.validity_days, validity_months = excluded.validity_months,
  sms_types = excluded.sms_types, active = excluded.active
"""


async def clock(connection: Connection, offset_seconds: float) -> datetime:
    """The database's clock."""
    row = await (await connection.execute(CLOCK, (offset_seconds,))).fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


async def brand(connection: Connection, brand_id: int) -> Brand | None:
    """A brand with its balance."""
    row = await (await connection.execute(LOAD_BRANDS, ([brand_id],))).fetchone()
    return None if row is None else brand_from_row(row)


async def live_packages(connection: Connection, brand_id: int) -> list[Package]:
    """A brand's packages with something remaining."""
    cursor = await connection.execute(LOAD_LIVE_PACKAGES, ([brand_id],))
    return [package_from_row(row) for row in await cursor.fetchall()]


async def balance_points(connection: Connection, brand_id: int, moments: Sequence[datetime]) -> list[tuple[int, int]]:
    """(total, frozen) as recorded at each moment; zeros before the first record."""
    if not moments:
        return []
    cursor = await connection.execute(BALANCE_POINTS, (arrays.moments(moments), brand_id))
    return cast(list[tuple[int, int]], await cursor.fetchall())


async def packages_page(connection: Connection, brand_id: int, after: int, limit: int) -> list[Package]:
    """Packages of a brand, spent ones included, by number."""
    cursor = await connection.execute(PACKAGES_PAGE, (brand_id, after, limit))
    return [package_from_row(row) for row in await cursor.fetchall()]


async def freeze(connection: Connection, brand_id: int, order_no: str) -> Freeze | None:
    """One freeze."""
    row = await (await connection.execute(LOAD_FREEZES, ([brand_id], [order_no]))).fetchone()
    return None if row is None else freeze_from_row(row)


async def freezes_page(connection: Connection, brand_id: int, before: str, limit: int) -> list[Freeze]:
    """Freezes of a brand, newest first."""
    cursor = await connection.execute(FREEZES_PAGE, (brand_id, before, before, limit))
    return [freeze_from_row(row) for row in await cursor.fetchall()]


async def open_freezes_page(
    connection: Connection, brand_id: int, after: tuple[datetime, str], limit: int
) -> list[Freeze]:
    """Freezes of a brand that hold something, behind an end and a number, soonest end first."""
    cursor = await connection.execute(OPEN_FREEZES_PAGE, (brand_id, after[0], *after, limit))
    return [freeze_from_row(row) for row in await cursor.fetchall()]


async def payment(connection: Connection, brand_id: int, payment_no: str) -> Payment | None:
    """One payment."""
    row = await (await connection.execute(LOAD_PAYMENTS, ([brand_id], [payment_no]))).fetchone()
    return None if row is None else payment_from_row(row)


async def refunds_of_payment(connection: Connection, brand_id: int, payment_no: str) -> list[Refund]:
    """A payment's refunds, oldest first."""
    cursor = await connection.execute(REFUNDS_OF_PAYMENT, (brand_id, payment_no))
    return [refund_from_row(row) for row in await cursor.fetchall()]


async def payments_page(connection: Connection, brand_id: int, order_no: str, before: str, limit: int) -> list[Payment]:
    """Payments of a brand or of one freeze, newest first."""
    if order_no:
        cursor = await connection.execute(PAYMENTS_OF_FREEZE_PAGE, (brand_id, order_no, before, before, limit))
    else:
        cursor = await connection.execute(PAYMENTS_PAGE, (brand_id, before, before, limit))
    return [payment_from_row(row) for row in await cursor.fetchall()]


async def brands_page(
    connection: Connection, allowed: Sequence[int] | None, after: int, limit: int
) -> list[tuple[Brand, datetime]]:
    """Brands by number, with the moments of their creation; only those allowed, or all for None."""
    listed = None if allowed is None else list(allowed)
    cursor = await connection.execute(BRANDS_PAGE, (after, listed, listed, limit))
    return [(brand_from_row(row[:-1]), row[-1]) for row in await cursor.fetchall()]


async def offers_page(connection: Connection, include_inactive: bool, after: str, limit: int) -> list[PackageOffer]:
    """Offers by id."""
    cursor = await connection.execute(OFFERS_PAGE, (after, include_inactive, limit))
    return [offer_from_row(row) for row in await cursor.fetchall()]


async def put_offer(connection: Connection, offer: PackageOffer) -> None:
    """Create or change an offer."""
    await connection.execute(
        PUT_OFFER,
        (
            offer.offer_id,
            offer.name,
            offer.segments,
            offer.price,
            offer.currency,
            offer.validity_days,
            offer.validity_months,
            list(offer.sms_types),
            offer.active,
        ),
    )


# What the jobs ask.

RELEASES_DUE = """
select brand_id, release_no, attempts from costcenter.release_request
where next_at <= clock_timestamp() + make_interval(secs => %s) order by next_at limit %s
"""

PUT_BACK_RELEASES = """
update costcenter.release_request r set next_at = v.next_at, attempts = r.attempts + 1, last_error = v.error
from unnest(%s::bigint[], %s::text[], %s::timestamptz[], %s::text[]) as v(brand_id, release_no, next_at, error)
where r.brand_id = v.brand_id and r.release_no = v.release_no and r.next_at is not null
"""

# With the number of packages whose ends are to be booked.
BRANDS_DUE = """
select b.brand_id, (
    select count(*) from costcenter.package_queue p
    where p.brand_id = b.brand_id and p.is_live and p.expires_at <= b.now and p.held < p.remaining
)
from (
    select brand_id, now from costcenter.balance
    cross join (select clock_timestamp() + make_interval(secs => %s) as now) c
    where next_due_at <= now order by next_due_at limit %s
) b
"""

CANCEL_UNPAID_ORDERS = """
update costcenter.package_order o set status = 2
from (
    select brand_id, package_order_no from costcenter.package_order
    where status = 1 and pay_before <= clock_timestamp() + make_interval(secs => %s) limit %s
    for update skip locked
) v
where o.brand_id = v.brand_id and o.package_order_no = v.package_order_no and o.status = 1
"""

DELETE_OLD_KEYS = """
delete from costcenter.idempotency_key i
using (
    select brand_id, operation, request_id from costcenter.idempotency_key
    where created_at <= clock_timestamp() + make_interval(secs => %s) - make_interval(days => %s) limit %s
    for update skip locked
) v
where i.brand_id = v.brand_id and i.operation = v.operation and i.request_id = v.request_id
"""


async def releases_due(connection: Connection, clock_offset_seconds: float, limit: int) -> list[tuple[int, str, int]]:
    """(brand_id, release_no, attempts) of release requests whose time has come, soonest first."""
    cursor = await connection.execute(RELEASES_DUE, (clock_offset_seconds, limit))
    return cast(list[tuple[int, str, int]], await cursor.fetchall())


async def put_back_releases(connection: Connection, failed: Sequence[tuple[int, str, datetime, str]]) -> None:
    """Give (brand_id, release_no, next_at, error) of failed requests their next moment."""
    await connection.execute(
        PUT_BACK_RELEASES,
        (
            arrays.integers([row[0] for row in failed]),
            arrays.texts([row[1] for row in failed]),
            arrays.moments([row[2] for row in failed]),
            arrays.texts([row[3] for row in failed]),
        ),
    )


async def brands_due(connection: Connection, clock_offset_seconds: float, limit: int) -> list[tuple[int, int]]:
    """Brands for which something may have become due, soonest first, with the numbers of their ended packages."""
    cursor = await connection.execute(BRANDS_DUE, (clock_offset_seconds, limit))
    return cast(list[tuple[int, int]], await cursor.fetchall())


async def cancel_unpaid_orders(connection: Connection, clock_offset_seconds: float, limit: int) -> int:
    """Cancel orders whose time to be paid is over; how many."""
    return (await connection.execute(CANCEL_UNPAID_ORDERS, (clock_offset_seconds, limit))).rowcount


async def delete_old_keys(connection: Connection, clock_offset_seconds: float, days: int, limit: int) -> int:
    """Delete idempotency keys past their time; how many."""
    return (await connection.execute(DELETE_OLD_KEYS, (clock_offset_seconds, days, limit))).rowcount


# Tokens.

TOKEN_COLUMNS = "token_id, name, roles, all_brands, brand_ids, created_at, expires_at, revoked_at"  # noqa: S105

CREATE_TOKEN = f"""
insert into costcenter.token (token_id, secret_sha256, name, roles, all_brands, brand_ids, created_at, expires_at)
values (%s, %s, %s, %s, %s, %s, clock_timestamp(), %s)
returning {TOKEN_COLUMNS}
"""

# A token of the settings, made once; an operator who revoked it meant it.
ENSURE_TOKEN = """
insert into costcenter.token (token_id, secret_sha256, name, roles, all_brands, brand_ids, created_at)
values (%s, %s, %s, %s, true, '{}', clock_timestamp())
on conflict (secret_sha256) do nothing
"""  # noqa: S105

FIND_TOKEN = f"""
select {TOKEN_COLUMNS} from costcenter.token
where secret_sha256 = %s and revoked_at is null and (expires_at is null or expires_at > clock_timestamp())
"""

TOKENS_PAGE = f"""
select {TOKEN_COLUMNS} from costcenter.token where (%s = '' or token_id < %s) order by token_id desc limit %s
"""

REVOKE_TOKEN = f"""
update costcenter.token set revoked_at = coalesce(revoked_at, clock_timestamp()) where token_id = %s
returning {TOKEN_COLUMNS}
"""


async def create_token(
    connection: Connection,
    *,
    token_id: str,
    secret_sha256: bytes,
    name: str,
    roles: Sequence[int],
    brand_ids: Sequence[int],
    expires_at: datetime | None,
) -> Token:
    """Store a token; no brands: all brands."""
    parameters = (token_id, secret_sha256, name, list(roles), not brand_ids, list(brand_ids), expires_at)
    row = await (await connection.execute(CREATE_TOKEN, parameters)).fetchone()
    assert row is not None
    return Token(*row)


async def ensure_token(
    connection: Connection, *, token_id: str, secret_sha256: bytes, name: str, roles: Sequence[int]
) -> None:
    """Store a token of all brands unless its secret is known."""
    await connection.execute(ENSURE_TOKEN, (token_id, secret_sha256, name, list(roles)))


async def find_token(connection: Connection, secret_sha256: bytes) -> Token | None:
    """The token of a secret, unless it was revoked or has ended."""
    row = await (await connection.execute(FIND_TOKEN, (secret_sha256,))).fetchone()
    return None if row is None else Token(*row)


async def tokens_page(connection: Connection, before: str, limit: int) -> list[Token]:
    """Tokens, newest first."""
    cursor = await connection.execute(TOKENS_PAGE, (before, before, limit))
    return [Token(*row) for row in await cursor.fetchall()]


async def revoke_token(connection: Connection, token_id: str) -> Token | None:
    """End a token; None when there is none."""
    row = await (await connection.execute(REVOKE_TOKEN, (token_id,))).fetchone()
    return None if row is None else Token(*row)
