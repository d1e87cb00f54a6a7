"""Each figure of the ledger corrupted by hand: reconcile names it and what follows from it, and nothing else."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from ledger_history import APRIL, DAY, HOUR, MARCH, Clock, Life, Script, busy_march, differences, ledger
from ledger_service import rows
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from costcenter import reconciliation
from costcenter.operations import BookDue, FreezeSegments, Grant, Pay, RecordReceipt, SendStatus
from infra.embedded import EmbeddedServers
from scripts import databases

pytestmark = pytest.mark.asyncio(loop_scope="module")

BRAND, OTHER = 71, 72


@dataclass(frozen=True)
class Fault:
    """A change of one row by hand: of which table, of which row, what is set (empty: the row goes).

    `told`: what reconcile says, as "check | subject | figure". Braces hold columns of the row as it was; `moment` is
    its moment as PostgreSQL writes it.
    """

    table: str
    row: str
    change: str
    told: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.table}: {self.change or 'gone'} ({self.row})"


ONE, SEVERAL = "cardinality(line_packages) = 1", "cardinality(line_packages) > 1"
SOLD = "source = 1 and paid > 0"
REFUNDS = "package_id = (select min(package_id) from package_queue where brand_id = 71 and source = 3)"
# A package of which something expired at its end.
ENDED = "package_id = (select package_id from entry where brand_id = 71 and kind = 3 order by record_no limit 1)"
PAID = f"paid > 0 and released + timed_out = 0 and {ONE}"
PAID_BY_SEVERAL = f"paid > 1 and released + timed_out = 0 and {SEVERAL}"
REFUNDED = f"refunded between 1 and segments - 2 and {ONE}"
NOT_REFUNDED = (
    f"refunded = 0 and status = 1 and segments > 1 and {ONE}"
    f" and order_no in (select order_no from costcenter.freeze where {ONE})"
)
BACK = f"line_targets[1] = line_packages[1] and {ONE}"
PARTS = f"{SEVERAL} and line_targets[1] = line_packages[1]"
MOVED = "line_targets[1] <> line_packages[1]"
LOST = "line_targets[1] is null"

FAULTS = (
    # Packages.
    *[
        Fault("package_queue", SOLD, f"{figure} = {figure} + 1", (f"package | package {{package_id}} | {figure}",))
        for figure in ("granted", "paid", "refunded", "expired")
    ],
    Fault(
        "package_queue",
        "expires_at is null",
        "remaining = remaining + 1",
        ("package | package {package_id} | remaining", "balance | balance | total"),
    ),
    Fault(
        "package_queue",
        SOLD,
        "held = held + 1",
        ("package | package {package_id} | held", "balance | balance | frozen"),
    ),
    Fault(
        "package_queue",
        SOLD,
        "source_no = 'x'",
        (
            "package | package {package_id} | source_no",
            "package without order | package {package_id} | order",
            "order | {source_no} | package",
        ),
    ),
    Fault(
        "package_queue",
        SOLD,
        "created_at = created_at + interval '1 microsecond'",
        ("package | package {package_id} | created_at", "order | {source_no} | paid_at"),
    ),
    Fault(
        "package_queue",
        SOLD,
        "source = 2",
        ("entry without adjustment | {source_no} | adjustment",),
    ),
    Fault(
        "package_queue",
        "package_id = (select max(line_packages[1]) from costcenter.freeze where brand_id = 71)",
        "sms_types = '{{2}}'",
        ("freeze | * | package {package_id}",),
    ),
    Fault(
        "package_queue",
        ENDED,
        "expires_at = expires_at + interval '1 microsecond'",
        ("entry | * | moment",),
    ),
    Fault(
        "package_queue",
        REFUNDS,
        "origin_package_id = 1",
        ("package | package {package_id} | origin", "refund | * | target of package {origin_package_id}"),
    ),
    # Balances.
    *[
        Fault(
            "balance",
            "true",
            f"{figure} = {figure} + 1",
            (f"balance | balance | {figure}", f"balance | balance | {figure} in the history"),
        )
        for figure in ("total", "frozen")
    ],
    Fault("balance", "true", "last_at = last_at - interval '1 microsecond'", ("balance | balance | last_at",)),
    Fault("balance", "true", "next_due_at = null", ("balance | balance | next_due_at",)),
    Fault("balance", "true", "next_due_at = next_due_at + interval '1 us'", ("balance | balance | next_due_at",)),
    Fault("balance", "true", "next_record_no = next_record_no + 1", ("balance | balance | next_record_no",)),
    Fault("balance", "true", "next_package_id = next_package_id + 1", ("balance | balance | next_package_id",)),
    Fault("balance", "true", "", ("brand without balance | brand | balance",)),
    Fault("brand", "true", "", ("balance without brand | brand | brand",)),
    # The history.
    Fault("balance_history", "at > '2024-03-10'", "total = total + 1", ("history | {moment} | total",)),
    Fault("balance_history", "at > '2024-03-10'", "frozen = frozen - 1", ("history | {moment} | frozen",)),
    Fault("balance_history", "at > '2024-03-10'", "", ("history | {moment} | point",)),
    Fault(
        "balance_history",
        "at > '2024-03-10'",
        "at = '2024-03-09 23:59:59.5+00'",
        (
            "history | {moment} | point",
            "history | 2024-03-09 23:59:59.5+00 | records",
            "history | 2024-03-09 23:59:59.5+00 | *",
        ),
    ),
    Fault(
        "balance_history",
        "at = (select max(at) from balance_history where brand_id = 71)",
        "",
        ("history | {moment} | point",),
    ),
    # Freezes.
    Fault("freeze", PAID, "paid = paid + 1", ("freeze | {order_no} | paid",)),
    Fault(
        "freeze",
        PAID,
        "paid = paid - 1",
        ("freeze | {order_no} | paid", "package | * | held", "balance | balance | next_due_at"),
    ),
    Fault(
        "freeze",
        PAID,
        "released = released + 1",
        ("freeze | {order_no} | released", "freeze | {order_no} | released on request"),
    ),
    Fault("freeze", PAID, "timed_out = timed_out + 1", ("freeze | {order_no} | timed_out",)),
    Fault(
        "freeze",
        "timed_out > 0 and cardinality(line_packages) = 1",
        "expires_at = expires_at + interval '1 microsecond'",
        ("freeze | {order_no} | end",),
    ),
    Fault("freeze", PAID, "sms_type = 2", ("freeze | {order_no} | type of its payments",)),
    Fault("freeze", PAID, "expires_at = created_at", ("freeze | {order_no} | payments and releases",)),
    Fault("freeze", PAID, "line_segments[1] = line_segments[1] + 1", ("freeze | {order_no} | lines",)),
    Fault(
        "freeze",
        PAID,
        "line_packages[1] = 3 - line_packages[1]",
        ("freeze | {order_no} | package of its records", "freeze | {order_no} | *"),
    ),
    Fault(
        "freeze",
        PAID_BY_SEVERAL,
        "line_segments[1] = line_segments[1] + 1",
        ("freeze | {order_no} | lines", "payment | * | packages"),
    ),
    Fault(
        "freeze",
        PAID,
        "segments = segments + 1",
        (
            "freeze | {order_no} | lines",
            "history | {moment} | frozen",
            "package | * | held",
            "balance | balance | next_due_at",
        ),
    ),
    Fault("freeze", PAID, "record_no = 100000", ("record | * | number", "balance | balance | next_record_no")),
    Fault("freeze", PAID, "request_id = 'x'", ("key | {request_id} | freeze",)),
    Fault(
        "freeze",
        PAID,
        "",
        (
            "payment without freeze | {order_no} | freeze",
            "key | {request_id} | freeze",
            "history | {moment} | *",
            "record | * | number",
        ),
    ),
    # Payments and their keys.
    Fault("payment", REFUNDED, "refunded = refunded + 1", ("payment | {payment_no} | refunded",)),
    Fault("payment", REFUNDED, "status = 2", ("payment | {payment_no} | status",)),
    Fault("payment", NOT_REFUNDED, "status = 3", ("payment | {payment_no} | status",)),
    Fault(
        "payment",
        NOT_REFUNDED,
        "segments = segments + 1",
        (
            "payment | {payment_no} | lines",
            "freeze | {order_no} | paid",
            "history | {moment} | total",
            "history | {moment} | frozen",
        ),
    ),
    Fault(
        "payment",
        NOT_REFUNDED,
        "line_segments[1] = line_segments[1] + 1",
        ("payment | {payment_no} | lines", "package | * | paid", "package | * | remaining"),
    ),
    Fault(
        "payment",
        SEVERAL,
        "line_segments[1] = line_segments[1] + 1",
        (
            "payment | {payment_no} | lines",
            "payment | {payment_no} | packages",
            "package | * | paid",
            "package | * | remaining",
        ),
    ),
    Fault(
        "payment",
        NOT_REFUNDED,
        "order_no = 'x'",
        ("freeze | {order_no} | paid", "payment without freeze | x | freeze"),
    ),
    Fault("payment", NOT_REFUNDED, "sms_type = 4", ("freeze | {order_no} | type of its payments",)),
    Fault(
        "payment",
        NOT_REFUNDED,
        "request_id = 'x'",
        ("payment without key | {payment_no} | payment_key", "key without payment | {payment_no} | payment"),
    ),
    Fault(
        "payment",
        NOT_REFUNDED,
        "",
        (
            "key without payment | {payment_no} | payment",
            "freeze | {order_no} | paid",
            "package | * | paid",
            "package | * | remaining",
            "history | {moment} | *",
            "record | * | number",
        ),
    ),
    Fault("payment_key", "true", "", ("payment without key | * | payment_key",)),
    Fault(
        "payment_key",
        "true",
        "reply = overlay(reply placing 'x'::bytea from 5)",
        ("payment key | * | payment_no of its reply",),
    ),
    # Refunds: back to the package, in parts, into a package of their own, lost.
    Fault(
        "refund",
        BACK,
        "segments = segments + 1",
        ("refund | {payment_no} {message_id} | lines", "payment | {payment_no} | *"),
    ),
    Fault(
        "refund",
        BACK,
        "line_segments[1] = line_segments[1] + 1",
        (
            "refund | {payment_no} {message_id} | lines",
            "package | * | refunded",
            "package | * | remaining",
            "history | {moment} | total",
        ),
    ),
    Fault(
        "refund",
        PARTS,
        "line_segments = array[line_segments[1] + 1, line_segments[2] - 1]",
        (
            "refund | {payment_no} {message_id} | packages",
            "package | * | refunded",
            "package | * | remaining",
        ),
    ),
    Fault(
        "refund",
        BACK,
        "line_targets[1] = null",
        (
            "refund | {payment_no} {message_id} | target of package *",
            "expired on return | * | expired for {payment_no}",
        ),
    ),
    Fault(
        "refund",
        BACK,
        "",
        (
            "payment | {payment_no} | refunded",
            "payment | {payment_no} | status",
            "package | * | refunded",
            "package | * | remaining",
            "history | {moment} | *",
            "record | * | number",
        ),
    ),
    Fault(
        "refund",
        MOVED,
        "line_targets[1] = null",
        (
            "refund package | * | granted for {payment_no}",
            "expired on return | * | expired for {payment_no}",
            "package | * | refunded",
            "package | * | remaining",
            "history | {moment} | total",
        ),
    ),
    Fault(
        "refund",
        LOST,
        "line_targets[1] = line_packages[1]",
        (
            "refund | {payment_no} {message_id} | target of package *",
            "expired on return | * | expired for {payment_no}",
        ),
    ),
    Fault(
        "refund",
        BACK,
        "payment_no = 'x'",
        (
            "refund without payment | x {message_id} | payment",
            "payment | {payment_no} | refunded",
            "payment | {payment_no} | status",
        ),
    ),
    Fault("refund", BACK, "record_no = record_no + 1", ("record | * | number",)),
    # The journal, kind by kind.
    Fault(
        "entry",
        "kind = 1",
        "segments = segments + 1",
        (
            "package | package {package_id} | granted",
            "package | package {package_id} | remaining",
            "adjustment | {reference} | segments",
            "history | {moment} | total",
        ),
    ),
    Fault(
        "entry",
        "kind = 2",
        "",
        (
            "package | package {package_id} | granted",
            "package | package {package_id} | remaining",
            "adjustment without entry | {reference} | entry",
            "history | {moment} | *",
            "record | * | number",
        ),
    ),
    Fault(
        "entry",
        "kind = 3",
        "segments = segments + 1",
        (
            "package | package {package_id} | expired",
            "package | package {package_id} | remaining",
            "history | {moment} | total",
        ),
    ),
    Fault("entry", "kind = 3", "reference = 'x'", ("entry | record {record_no} | reference",)),
    Fault(
        "entry",
        "kind = 4",
        "segments = segments + 1",
        (
            "freeze | {reference} | released",
            "freeze | {reference} | released of package {package_id}",
            "history | {moment} | frozen",
        ),
    ),
    Fault(
        "entry",
        "kind = 4",
        "reference = 'x'",
        (
            "entry without freeze | x | freeze",
            "freeze | {reference} | released",
            "freeze | {reference} | released of package {package_id}",
        ),
    ),
    Fault(
        "entry",
        "kind = 5 and reference in (select order_no from costcenter.freeze where cardinality(line_packages) = 1)",
        "segments = segments + 1",
        ("freeze | {reference} | timed_out", "history | {moment} | frozen"),
    ),
    Fault(
        "entry",
        "kind = 6",
        "segments = segments + 1",
        (
            "package | package {package_id} | expired",
            "package | package {package_id} | remaining",
            "expired on return | package {package_id} | expired for {reference}",
            "history | {moment} | total",
        ),
    ),
    Fault(
        "entry",
        "kind = 1",
        "at = at - interval '1 microsecond'",
        (
            "package | package {package_id} | created_at",
            "adjustment | {reference} | created_at",
            "history | * | point",
            "history | {moment} | records",
        ),
    ),
    # What is no record: receipts, orders, adjustments, release requests, keys.
    Fault("receipt", "house_loss > 0", "house_loss = 0", ("receipt | {payment_no} {message_id} | house_loss",)),
    Fault("receipt", "house_loss > 0", "state = 2", ("receipt | {payment_no} {message_id} | house_loss",)),
    Fault(
        "receipt",
        "house_loss = 0 and state <> 1",
        "payment_no = 'x'",
        ("receipt without payment | x {message_id} | payment",),
    ),
    Fault("package_order", "status = 3", "segments = segments + 1", ("order | {package_order_no} | credited",)),
    Fault(
        "package_order",
        "status = 3",
        "status = 2",
        ("package without order | package {package_id} | order",),
    ),
    Fault(
        "package_order",
        "status = 3",
        "package_id = 1",
        (
            "order | {package_order_no} | credited",
            "order | {package_order_no} | package",
            "order | {package_order_no} | paid_at",
            "package without order | package {package_id} | order",
        ),
    ),
    *[
        Fault("adjustment", "kind = 2", change, (f"adjustment | {{adjustment_no}} | {figure}",))
        for figure, change in (
            ("segments", "segments = segments + 1"),
            ("package", "package_id = 99"),
            ("kind", "kind = 1"),
            ("created_at", "created_at = created_at + interval '1 microsecond'"),
        )
    ],
    Fault(
        "adjustment",
        "kind = 1",
        "",
        ("entry without adjustment | {adjustment_no} | adjustment", "key | * | adjustment"),
    ),
    Fault("release_request", "released > 0", "released = released + 1", ("freeze | {order_no} | released on request",)),
    Fault(
        "release_request",
        "released > 0",
        "order_no = 'x'",
        ("freeze | {order_no} | released on request", "release request without freeze | x | freeze"),
    ),
    *[
        Fault(
            "idempotency_key",
            f"operation = {operation}",
            "reply = overlay(reply placing 'x'::bytea from 5)",
            (f"key | {{request_id}} | {what}",),
        )
        for operation, what in ((1, "order"), (2, "freeze"), (4, "release request"), (8, "adjustment"))
    ],
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(servers: EmbeddedServers, database_template: str) -> AsyncIterator[str]:
    """Two brands with a busy month each, what was due booked, something open, and something refunded too late."""
    with databases.fresh(servers.database_url, database_template) as made:
        for brand_id in (BRAND, OTHER):
            clock = Clock(MARCH)
            async with ledger(made, clock) as (engine, _):
                life = Life(engine, clock, brand_id, random.Random(brand_id), pace=2_500)
                await life.offer()
                await busy_march(life)
                await _after(Script(life), made, brand_id)
        yield made


async def _after(script: Script, url: str, brand_id: int) -> None:
    at = APRIL + 60 * DAY
    await script.do(at, BookDue)
    await script.do(at, Grant, "author", "reason", 10, at + DAY, (3,))
    await script.do(at, Grant, "author", "reason", 100, None, (1, 3))
    # Out of two packages, delivered and yet refunded, and still open in part.
    frozen = await script.do(at + HOUR, FreezeSegments, 3, 30, 5 * DAY)
    paid = await script.do(at + HOUR, Pay, frozen.order_no, 15)
    await script.do(at + HOUR, Pay, frozen.order_no, 2)
    await script.do(at + HOUR, RecordReceipt, paid.payment_no, "delivered", 2, 1, "DELIVRD", None)
    await script.do(at + 2 * HOUR, SendStatus, paid.payment_no, [("delivered", 2), ("another", 8)])
    # What nothing was refunded of, from one package; and what comes back long after its package's end.
    single = await script.do(at + 2 * HOUR, FreezeSegments, 3, 4, 5 * DAY)
    await script.do(at + 2 * HOUR, Pay, single.order_no, 4)
    late = await rows(
        url,
        "select y.payment_no from payment y join package_queue p using (brand_id)"
        " where y.brand_id = %s and p.package_id = y.line_packages[1] and p.expires_at < '2024-04-20'"
        " and y.refunded < y.segments and cardinality(y.line_packages) = 1 order by y.record_no limit 1",
        brand_id,
    )
    await script.do(at + 3 * HOUR, SendStatus, late[0][0], [("too-late", 1)])


async def test_what_is_sound_is_told_so(url: str) -> None:
    """No difference before anything was corrupted, nor behind the tests of this module."""
    assert await differences(url) == []


@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_a_fault_is_named_and_nothing_else(url: str, fault: Fault) -> None:
    """One row changed behind the service's back: the differences are the row's own and what follows from it."""
    moments = {
        "balance_history": "at",
        "entry": "at",
        "receipt": "recorded_at",
        "balance": "null",
        "payment_key": "null",
    }
    moment = moments.get(fault.table, "created_at")
    async with await AsyncConnection.connect(url) as connection:
        await connection.execute("set search_path to costcenter")
        await _drop_constraints(connection)
        row = await _row(connection, fault, moment)
        place = row.pop("place")
        statement = f"update costcenter.{fault.table} set {fault.change.replace('{{', '{').replace('}}', '}')}"
        if not fault.change:
            statement = f"delete from costcenter.{fault.table}"
        changed = await connection.execute(f"{statement} where ctid = %s".encode(), (place,))
        assert changed.rowcount == 1
        found = [difference async for difference in reconciliation.check(connection, 0, 2**63 - 1)]
        await connection.rollback()
    assert {difference.brand_id for difference in found} == {BRAND}
    assert len(found) == len(set(found))
    told = {f"{difference.check} | {difference.subject} | {difference.figure}" for difference in found}
    expected = [line.format(**row) for line in fault.told]
    unforeseen = {line for line in told if not any(_matches(line, pattern) for pattern in expected)}
    assert not unforeseen
    missing = [pattern for pattern in expected if not any(_matches(line, pattern) for line in told)]
    assert not missing, told


async def _drop_constraints(connection: AsyncConnection[tuple[object, ...]]) -> None:
    """Let happen what the database itself would not; the transaction takes it back."""
    cursor = await connection.execute(
        "select conrelid::regclass::text, conname from pg_constraint"
        " where contype = 'c' and connamespace = 'costcenter'::regnamespace"
    )
    for relation, name in await cursor.fetchall():
        await connection.execute(f'alter table {relation} drop constraint "{name}"'.encode())


async def _row(connection: AsyncConnection[tuple[object, ...]], fault: Fault, moment: str) -> dict[str, object]:
    """The row that the fault is about to hit, as it is."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            f"select *, {moment}::text as moment, ctid::text as place from costcenter.{fault.table}"
            f" where brand_id = {BRAND} and {fault.row} order by 2 limit 1".encode()
        )
        row = await cursor.fetchone()
    assert row is not None, "there is such a row"
    return row


def _matches(line: str, pattern: str) -> bool:
    """Whether a line is what a pattern says; a star stands for anything within its part."""
    parts, wanted = line.split(" | "), pattern.split(" | ")
    return len(parts) == len(wanted) and all(
        part == want or (want.endswith("*") and part.startswith(want[:-1]))
        for part, want in zip(parts, wanted, strict=True)
    )
