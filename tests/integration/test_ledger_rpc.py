"""Every RPC of the cost centre over a real channel against a real PostgreSQL: replies, refusals, pages, keys.

All tests share one cost centre; each takes brands of its own, which nothing of another's touches.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from ledger_service import (
    ADMIN,
    LATER,
    MARKETING,
    NOTIFICATION,
    SECONDS,
    VERIFICATION,
    CostCenter,
    locked_lanes,
    moment,
    number,
    outcomes_of,
    request_id,
    request_of,
    running_cost_center,
    timestamp,
    until,
    waiting_for_a_lane,
)

from infra.embedded import EmbeddedServers
from infra.errors import Refusal
from infra.identifiers import IdentifierSource, brand_of
from infra.paging import encode_token
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import cost_center_pb2 as pb
from protos.costcenter.v1 import types_pb2
from scripts import databases

pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION, EXISTS = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ALREADY_EXISTS
DENIED = grpc.StatusCode.PERMISSION_DENIED
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def center(servers: EmbeddedServers, database_template: str) -> AsyncIterator[CostCenter]:
    with databases.fresh(servers.database_url, database_template) as url:
        async with running_cost_center(url, ledger_batch_max=50) as running:
            yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def later(center: CostCenter) -> AsyncIterator[CostCenter]:
    """A second cost centre on the same database that lives two days later."""
    async with running_cost_center(center.settings.database_url, clock_offset_seconds=LATER.total_seconds()) as running:
        yield running


def _now() -> datetime:
    return datetime.now(UTC)


def _refusal(outcome: Any) -> tuple[grpc.StatusCode, str]:
    assert isinstance(outcome, Refusal), outcome
    return outcome.code, outcome.reason


# Brands.


async def test_a_brand_is_created_and_changed(center: CostCenter) -> None:
    """PutBrand with defaults, then field by field; GetBrand says the same."""
    brand_id = number()
    brand = (await center.call("PutBrand", brand_id=brand_id, name=" Brand ")).brand
    assert (brand.brand_id, brand.name, brand.status) == (brand_id, "Brand", admin_pb.BRAND_STATUS_ACTIVE)
    assert (brand.time_zone, brand.refund_undelivered) == ("Asia/Shanghai", False)
    assert abs(moment(brand.created_at) - _now()) < timedelta(minutes=5)
    changed = (await center.call("PutBrand", brand_id=brand_id, refund_undelivered=True, time_zone="UTC")).brand
    assert (changed.name, changed.time_zone, changed.refund_undelivered) == ("Brand", "UTC", True)
    assert changed.created_at == brand.created_at
    changed = (await center.call("PutBrand", brand_id=brand_id, refund_undelivered=False, status=2)).brand
    assert (changed.status, changed.refund_undelivered) == (admin_pb.BRAND_STATUS_SUSPENDED, False)
    assert (await center.call("GetBrand", brand_id=brand_id)).brand == changed


async def test_brands_are_listed_by_number(center: CostCenter) -> None:
    """Pages in order, as the token allows: one of two brands sees two."""
    mine = [await center.brand(), await center.brand(), await center.brand()]
    token = await center.token([1], mine)
    first = await center.call("ListBrands", page_size=2, token=token)
    assert [brand.brand_id for brand in first.brands] == mine[:2]
    second = await center.call("ListBrands", page_size=2, page_token=first.next_page_token, token=token)
    assert ([brand.brand_id for brand in second.brands], second.next_page_token) == (mine[2:], "")
    everything = await center.call("ListBrands")
    assert {brand.brand_id for brand in everything.brands} >= set(mine)


# Offers and orders.


async def test_an_offer_is_put_and_listed(center: CostCenter) -> None:
    """What is put comes back whole, inactive ones only on request."""
    offer_id = await center.offer(validity_months=6, sms_types=[2, 1, 2], price="4500.5")
    sold_out = await center.offer(active=False, validity_days=3)
    offers = {offer.offer_id: offer for offer in (await center.call("ListPackageOffers", page_size=1_000)).offers}
    offer = offers[offer_id]
    assert (offer.price, offer.currency, offer.segments, offer.active) == ("4500.50", "CNY", 1_000, True)
    assert (offer.WhichOneof("validity"), offer.validity_months, list(offer.sms_types)) == (
        "validity_months",
        6,
        [1, 2],
    )
    assert sold_out not in offers
    inactive = {o.offer_id: o for o in (await center.call("ListPackageOffers", include_inactive=True)).offers}
    assert (inactive[sold_out].validity_days, inactive[sold_out].active) == (3, False)


async def test_offers_are_paged_by_id(center: CostCenter) -> None:
    """Every offer once, in order, however small the pages."""
    made = {await center.offer() for _ in range(3)}
    seen: list[str] = []
    token = ""
    while True:
        page = await center.call("ListPackageOffers", page_size=2, page_token=token)
        seen += [offer.offer_id for offer in page.offers]
        token = page.next_page_token
        if not token:
            break
    assert seen == sorted(set(seen))
    assert made <= set(seen)


async def test_an_order_is_paid_and_credited_once(center: CostCenter) -> None:
    """Order, callback, callback again: one package with the offer's segments, types and validity."""
    brand_id = await center.brand()
    offer_id = await center.offer(validity_days=30, sms_types=[VERIFICATION])
    order = await center.call("CreatePackageOrder", brand_id=brand_id, request_id="r", offer_id=offer_id)
    assert (order.segments, order.price, order.currency) == (1_000, "45.00", "CNY")
    assert timedelta(minutes=14) < moment(order.pay_before) - _now() < timedelta(minutes=16)
    assert brand_of(order.package_order_no) == brand_id
    paid: dict[str, Any] = {
        "brand_id": brand_id,
        "package_order_no": order.package_order_no,
        "payment_reference": "bank-1",
        "amount": "45",
        "currency": "CNY",
    }
    first = await center.call("PackagePaidCallBack", **paid)
    assert await center.call("PackagePaidCallBack", **paid) == first
    assert timedelta(days=29) < moment(first.expires_at) - _now() < timedelta(days=31)
    (package,) = (await center.call("ListPackages", brand_id=brand_id)).packages
    assert (package.package_id, package.source, package.source_no) == (
        first.package_id,
        pb.PACKAGE_SOURCE_ORDER,
        order.package_order_no,
    )
    assert (package.granted, package.remaining, list(package.sms_types)) == (1_000, 1_000, [VERIFICATION])
    assert package.expires_at == first.expires_at
    conflict = await center.refused("PackagePaidCallBack", **{**paid, "payment_reference": "bank-2"})
    assert _refusal(conflict) == (EXISTS, "IDEMPOTENCY_CONFLICT")
    mismatch = await center.refused("PackagePaidCallBack", **{**paid, "amount": "45.01"})
    assert _refusal(mismatch) == (PRECONDITION, "AMOUNT_MISMATCH")
    assert await center.figures(brand_id) == (1_000, 0, 1_000)


async def test_an_unpaid_order_is_cancelled_and_credited_when_paid_after_all(
    center: CostCenter, later: CostCenter
) -> None:
    """CleanUp cancels what nobody paid in time; money that comes later counts all the same."""
    brand_id = await center.brand()
    offer_id = await center.offer()
    order = await center.call("CreatePackageOrder", brand_id=brand_id, request_id="r", offer_id=offer_id)
    order_no = order.package_order_no
    status = "select status from package_order where package_order_no = %s"
    await center.call("CleanUp")
    assert await center.rows(status, order_no) == [(1,)]
    assert (await later.call("CleanUp")).orders_cancelled >= 1
    assert await center.rows(status, order_no) == [(2,)]
    await center.call(
        "PackagePaidCallBack",
        brand_id=brand_id,
        package_order_no=order_no,
        payment_reference="bank",
        amount="45.00",
        currency="CNY",
    )
    assert await center.rows(status, order_no) == [(3,)]
    await later.call("CleanUp")
    assert await center.rows(status, order_no) == [(3,)]
    assert await center.figures(brand_id) == (1_000, 0, 1_000)


# A message's way through the ledger.


async def test_freeze_pay_release_and_what_the_numbers_tell(center: CostCenter) -> None:
    """The seed's flow, with GetFreeze, GetPayment and GetBalance after each step."""
    brand_id = await center.brand()
    soon = await center.grant(brand_id, 60, _now() + DAY)
    never = await center.grant(brand_id, 100)
    freeze = await center.freeze(brand_id, 100, request_id="freeze", time_to_live=Duration(seconds=3_600))
    assert (freeze.segments, brand_of(freeze.order_no)) == (100, brand_id)
    assert timedelta(minutes=59) < moment(freeze.expires_at) - _now() < timedelta(minutes=61)
    assert await center.figures(brand_id) == (160, 100, 60)
    payment = await center.pay(brand_id, freeze.order_no, 70, request_id="chunk")
    assert (payment.segments, payment.open, brand_of(payment.payment_no)) == (70, 30, brand_id)
    assert await center.figures(brand_id) == (90, 30, 60)
    release = await center.call(
        "SmsReleaseFreezeNum", brand_id=brand_id, request_id="release", order_no=freeze.order_no, segments=10
    )
    assert brand_of(release.release_no) == brand_id
    assert await center.figures(brand_id) == (90, 30, 60)
    applied = await center.call("ApplyReleases")
    assert (applied.applied, applied.put_back, applied.segments) == (1, 0, 10)
    assert await center.figures(brand_id) == (90, 20, 70)
    stored = (await center.call("GetFreeze", order_no=freeze.order_no)).freeze
    assert (stored.brand_id, stored.sms_type, stored.request_id) == (brand_id, MARKETING, "freeze")
    assert (stored.segments, stored.paid, stored.released, stored.timed_out, stored.open) == (100, 70, 10, 0, 20)
    assert [(n.package_id, n.segments, n.paid, n.open, n.released, n.timed_out) for n in stored.lines] == [
        (soon, 60, 60, 0, 0, 0),
        (never, 40, 10, 20, 10, 0),
    ]
    assert stored.expires_at == freeze.expires_at
    charged = (await center.call("GetPayment", payment_no=payment.payment_no)).payment
    assert [(line.package_id, line.segments) for line in charged.lines] == [(soon, 60), (never, 10)]
    assert (charged.order_no, charged.request_id, charged.status) == (freeze.order_no, "chunk", pb.PAYMENT_STATUS_PAID)
    assert (charged.segments, charged.refunded, charged.sms_type) == (70, 0, MARKETING)


async def test_a_failed_message_is_refunded_and_told(center: CostCenter) -> None:
    """SmsSendStatusCallBack, late and cumulative; GetPayment names each refund."""
    brand_id = await center.brand()
    first, second = await center.grant(brand_id, 3, _now() + DAY), await center.grant(brand_id, 10)
    payment_no = await center.charge(brand_id, 6)
    status: dict[str, Any] = {"brand_id": brand_id, "payment_no": payment_no}
    failed = [pb.FailedMessage(message_id="m1", segments=2)]
    reply = await center.call("SmsSendStatusCallBack", request_id="s1", failed=failed, **status)
    assert reply.refunded == 2
    failed.append(pb.FailedMessage(message_id="m2", segments=2))
    assert (await center.call("SmsSendStatusCallBack", request_id="s2", failed=failed, **status)).refunded == 2
    assert await center.figures(brand_id) == (11, 0, 11)
    payment = await center.call("GetPayment", payment_no=payment_no)
    assert (payment.payment.refunded, payment.payment.status) == (4, pb.PAYMENT_STATUS_PARTLY_REFUNDED)
    assert [
        (r.message_id, r.segments, r.cause, [(n.package_id, n.segments) for n in r.lines]) for r in payment.refunds
    ] == [
        ("m1", 2, pb.REFUND_CAUSE_SEND_FAILED, [(second, 2)]),
        ("m2", 2, pb.REFUND_CAUSE_SEND_FAILED, [(second, 1), (first, 1)]),
    ]
    too_much = [pb.FailedMessage(message_id="m3", segments=3)]
    refused = await center.refused("SmsSendStatusCallBack", request_id="s3", failed=too_much, **status)
    assert _refusal(refused) == (PRECONDITION, "REFUND_EXCEEDS_PAYMENT")
    assert refused.metadata == {"requested": "3", "refundable": "2"}


async def test_a_receipt_refunds_by_the_brands_setting(center: CostCenter) -> None:
    """Off: recorded only. On: a final failure gives the segments back; a delivery after that is the house's loss."""
    brand_id = await center.brand(10)
    payment_no = await center.charge(brand_id, 6)

    async def receipt(message_id: str, state: int, **fields: Any) -> int:
        values = {"request_id": request_id(), "segments": 2, "carrier_code": "CODE", **fields}
        reply = await center.call(
            "SmsReceiptStatusCallBack",
            brand_id=brand_id,
            payment_no=payment_no,
            message_id=message_id,
            state=state,
            **values,
        )
        refunded: int = reply.refunded
        return refunded

    assert await receipt("m1", pb.RECEIPT_STATE_UNDELIVERED) == 0
    await center.call("PutBrand", brand_id=brand_id, refund_undelivered=True)
    reported = datetime(2024, 5, 6, 7, 8, 9, 123_456, tzinfo=UTC)
    assert await receipt("m2", pb.RECEIPT_STATE_PENDING) == 0
    assert await receipt("m2", pb.RECEIPT_STATE_EXPIRED, reported_at=timestamp(reported)) == 2
    assert await receipt("m2", pb.RECEIPT_STATE_DELIVERED, carrier_code="DELIVRD") == 0
    assert await center.figures(brand_id) == (6, 0, 6)
    (refund,) = (await center.call("GetPayment", payment_no=payment_no)).refunds
    assert (refund.message_id, refund.cause) == ("m2", pb.REFUND_CAUSE_UNDELIVERED)
    stored = await center.rows(
        "select message_id, state, carrier_code, house_loss from receipt where brand_id = %s order by 1", brand_id
    )
    assert stored == [("m1", 2, "CODE", 0), ("m2", 1, "DELIVRD", 2)]


async def test_a_refund_to_an_expired_package_is_told(center: CostCenter, later: CostCenter) -> None:
    """Refund packages show in ListPackages and in the refund's lines; after the grace they show as expired."""
    brand_id = await center.brand()
    package_id = await center.grant(brand_id, 10, _now() + HOUR, [MARKETING])
    payment_no = await center.charge(brand_id, 10)
    failed = [pb.FailedMessage(message_id="m1", segments=4)]
    call: dict[str, Any] = {"brand_id": brand_id, "payment_no": payment_no, "request_id": "s"}
    assert (await later.call("SmsSendStatusCallBack", failed=failed, **call)).refunded == 4
    (refunds,) = (await later.call("ListPackages", brand_id=brand_id)).packages
    assert (refunds.source, refunds.source_no, refunds.remaining) == (pb.PACKAGE_SOURCE_REFUND, payment_no, 4)
    (refund,) = (await later.call("GetPayment", payment_no=payment_no)).refunds
    assert ([(n.package_id, n.segments) for n in refund.lines], refund.expired) == ([(refunds.package_id, 4)], 0)
    spent = (await later.call("ListPackages", brand_id=brand_id, include_spent=True)).packages
    assert [(p.package_id, p.remaining) for p in spent] == [(package_id, 0), (refunds.package_id, 4)]


async def test_an_extension_over_the_wire(center: CostCenter) -> None:
    """ExtendFreeze moves the end; GetFreeze shows it."""
    brand_id = await center.brand(10)
    freeze = await center.freeze(brand_id, 5, time_to_live=Duration(seconds=600))
    reply = await center.call(
        "ExtendFreeze",
        brand_id=brand_id,
        request_id="e",
        order_no=freeze.order_no,
        time_to_live=Duration(seconds=7_200),
    )
    assert timedelta(minutes=119) < moment(reply.expires_at) - _now() < timedelta(minutes=121)
    assert (await center.call("GetFreeze", order_no=freeze.order_no)).freeze.expires_at == reply.expires_at


async def test_adjustments_over_the_wire(center: CostCenter) -> None:
    """Grant, claw back and return, each with the package as it is then."""
    brand_id = await center.brand()
    call: dict[str, Any] = {"brand_id": brand_id, "author": "auditor", "reason": "a test"}
    end = _now().replace(microsecond=123_456) + DAY
    grant = admin_pb.GrantAdjustment(segments=10, expires_at=timestamp(end), sms_types=[types_pb2.SMS_TYPE_MARKETING])
    granted = await center.call("AdjustPackage", request_id="a", grant=grant, **call)
    package = granted.package
    assert (package.source, package.source_no) == (pb.PACKAGE_SOURCE_GRANT, granted.adjustment_no)
    assert (package.remaining, list(package.sms_types), moment(package.expires_at)) == (10, [MARKETING], end)
    claw_back = admin_pb.ClawBackAdjustment(package_id=package.package_id, segments=4)
    reply = await center.call("AdjustPackage", request_id="b", claw_back=claw_back, **call)
    assert (reply.package.granted, reply.package.remaining) == (6, 6)
    back = admin_pb.ReturnAdjustment(package_id=package.package_id)
    reply = await center.call("AdjustPackage", request_id="c", return_package=back, **call)
    assert (reply.package.granted, reply.package.remaining) == (0, 0)
    assert await center.figures(brand_id) == (0, 0, 0)
    stored = await center.rows(
        "select kind, segments, author, reason from adjustment where brand_id = %s order by created_at", brand_id
    )
    assert stored == [(1, 10, "auditor", "a test"), (2, 4, "auditor", "a test"), (2, 6, "auditor", "a test")]


async def test_a_package_that_ends_with_the_last_year_harms_nobody(center: CostCenter) -> None:
    """The latest moment that the wire allows is stored and read back, whatever the server's time zone."""
    brand_id = await center.brand()
    end = datetime.max.replace(tzinfo=UTC)
    await center.grant(brand_id, 10, end)
    await center.freeze(brand_id, 4)
    (package,) = (await center.call("ListPackages", brand_id=brand_id)).packages
    assert moment(package.expires_at) == end


# Refusals.

_TOO_LONG = "x" * 65
_NAMELESS = [("request_id", ""), ("request_id", _TOO_LONG), ("request_id", "a\nb"), ("request_id", "a\0b")]
_FREEZE: dict[str, Any] = {"request_id": "r", "sms_type": MARKETING, "segments": 1}
_PAY: dict[str, Any] = {"request_id": "r", "order_no": "nowhere", "segments": 1}
_RELEASE: dict[str, Any] = {"request_id": "r", "order_no": "nowhere"}
_EXTEND: dict[str, Any] = {"request_id": "r", "order_no": "nowhere", "time_to_live": Duration(seconds=60)}
_STATUS: dict[str, Any] = {"request_id": "r", "payment_no": "nowhere"}
_RECEIPT: dict[str, Any] = {"request_id": "r", "payment_no": "nowhere", "message_id": "m", "segments": 1, "state": 1}
_ORDER: dict[str, Any] = {"request_id": "r", "offer_id": "nothing"}
_PAID: dict[str, Any] = {
    "package_order_no": "nowhere",
    "payment_reference": "bank",
    "amount": "45.00",
    "currency": "CNY",
}
_ADJUST: dict[str, Any] = {
    "request_id": "r",
    "author": "a",
    "reason": "b",
    "grant": admin_pb.GrantAdjustment(segments=1),
}
_CALLS: dict[str, dict[str, Any]] = {
    "SmsSendPrePay": _FREEZE,
    "SmsSendPay": _PAY,
    "SmsReleaseFreezeNum": _RELEASE,
    "ExtendFreeze": _EXTEND,
    "SmsSendStatusCallBack": _STATUS,
    "SmsReceiptStatusCallBack": _RECEIPT,
    "CreatePackageOrder": _ORDER,
    "PackagePaidCallBack": _PAID,
    "AdjustPackage": _ADJUST,
}
_BAD: list[tuple[str, str, Any]] = [
    *[(method, "brand_id", value) for method in (*_CALLS, "PutBrand", "GetBrand") for value in (0, -1)],
    *[(method, "brand_id", 0) for method in ("GetBalance", "GetBalanceHistory", "ListPackages", "GetStatement")],
    ("ListPayments", "brand_id", 0),
    *[(method, *bad) for method, fields in _CALLS.items() if "request_id" in fields for bad in _NAMELESS],
    *[("SmsSendPrePay", "segments", value) for value in (0, -1, 1_000_000_001, 2**63 - 1)],
    *[("SmsSendPay", "segments", value) for value in (0, -1, 1_000_000_001)],
    *[("SmsReleaseFreezeNum", "segments", value) for value in (-1, 1_000_000_001)],
    *[("SmsReceiptStatusCallBack", "segments", value) for value in (0, -1)],
    *[("SmsSendPrePay", "sms_type", value) for value in (0, 4, -1)],
    *[("SmsSendPrePay", "time_to_live", value) for value in (Duration(), Duration(seconds=-1), Duration(nanos=999))],
    *[("SmsSendPrePay", "time_to_live", Duration(seconds=1, nanos=value)) for value in (-1, 10**9)],
    ("SmsSendPrePay", "time_to_live", Duration(seconds=10**9 + 1)),
    ("ExtendFreeze", "time_to_live", None),
    ("ExtendFreeze", "time_to_live", Duration(seconds=-60)),
    *[(m, "order_no", v) for m in ("SmsSendPay", "SmsReleaseFreezeNum", "ExtendFreeze") for v in ("", _TOO_LONG)],
    *[(m, "payment_no", "") for m in ("SmsSendStatusCallBack", "SmsReceiptStatusCallBack")],
    *[("SmsReceiptStatusCallBack", "message_id", value) for value in ("", _TOO_LONG)],
    *[("SmsReceiptStatusCallBack", "state", value) for value in (0, 5)],
    *[("SmsReceiptStatusCallBack", "carrier_code", value) for value in (_TOO_LONG, "\0")],
    ("SmsReceiptStatusCallBack", "reported_at", Timestamp(seconds=10**12)),
    *[("SmsReceiptStatusCallBack", "reported_at", Timestamp(nanos=value)) for value in (-1, 10**9)],
    ("CreatePackageOrder", "offer_id", ""),
    *[("CreatePackageOrder", "price", value) for value in ("-1", "1.23456", "1e3", "NaN", "1,5", "4" * 13, "٤٥")],
    *[("CreatePackageOrder", "currency", value) for value in ("cny", "CN", "YUAN")],
    *[("PackagePaidCallBack", "amount", value) for value in ("", "abc", "-45.00")],
    ("PackagePaidCallBack", "currency", ""),
    ("PackagePaidCallBack", "package_order_no", ""),
    ("PackagePaidCallBack", "payment_reference", ""),
    *[("AdjustPackage", field, value) for field in ("author", "reason") for value in ("", "  ", "x" * 501, "\0")],
    ("AdjustPackage", "author", "x" * 101),
    *[("PutBrand", "name", value) for value in ("", "x" * 101)],
    *[("PutBrand", "time_zone", value) for value in ("", "Mars/Olympus", "../etc/passwd")],
    *[("PutBrand", "status", value) for value in (4, -1)],
    ("PutBrand", "name", None),
    *[
        (m, "page_size", v)
        for m in ("ListPackages", "ListFreezes", "ListPayments", "ListBrands", "ListBalances", "ListTokens")
        for v in (-1, 1_001)
    ],
    *[
        (m, "page_token", v)
        for m in (
            *("ListPackages", "ListFreezes", "ListPayments", "ListBrands", "ListBalances", "ListTokens"),
            "ListPackageOffers",
        )
        for v in ("?", "eA", encode_token("a\0b"))
    ],
    *[
        (m, "page_token", encode_token(v))
        for m in ("ListPackages", "ListBrands", "ListBalances")
        for v in ("x", "-1", "9" * 30)
    ],
    *[("ListBalances", "available_below", value) for value in (0, -1)],
    *[("ListBalances", "status", value) for value in (4, -1)],
    *[("ListBalances", "name_prefix", value) for value in ("x" * 101, "\0")],
    ("GetBalance", "as_of", Timestamp(seconds=10**12)),
    ("GetBalanceHistory", "from", None),
    ("GetBalanceHistory", "step", None),
    ("GetBalanceHistory", "step", Duration(nanos=500_000_000)),
    ("ApplyReleases", "limit", -1),
    ("ApplyReleases", "limit", 5_001),
    ("ApplyReleases", "wait", Duration(seconds=31)),
    ("BookDue", "brand_limit", 10_001),
    ("CleanUp", "limit", 100_001),
    ("CheckToken", "secret_sha256", b"short"),
    ("RevokeToken", "token_id", ""),
    ("CreateToken", "name", ""),
    ("CreateToken", "roles", []),
    ("CreateToken", "roles", [0]),
    ("CreateToken", "roles", [9]),
    ("CreateToken", "brand_ids", [1]),  # with all_brands
    ("CreateToken", "expires_at", Timestamp(seconds=1)),
]
_READS: dict[str, dict[str, Any]] = {
    "GetBalanceHistory": {"from": Timestamp(seconds=1_700_000_000), "step": Duration(seconds=3_600)},
    "GetStatement": {"month": "2024-03"},
    "CreateToken": {"name": "t", "roles": [1], "all_brands": True},
    "PutBrand": {"name": "Brand"},
}
_WITHOUT_BRAND = {"ListBrands", "ListTokens", "ListPackageOffers", "ApplyReleases", "BookDue", "CleanUp", "CheckToken"}
_WITHOUT_BRAND |= {"RevokeToken", "CreateToken", "ListBalances"}


@pytest.mark.parametrize(("method", "field", "value"), _BAD)
async def test_a_bad_field_is_named(center: CostCenter, method: str, field: str, value: Any) -> None:
    """INVALID_ARGUMENT with BAD_REQUEST and the field's path, for every field of every call."""
    fields: dict[str, Any] = {**_CALLS.get(method, {}), **_READS.get(method, {})}
    if method not in _WITHOUT_BRAND:
        fields["brand_id"] = 2**62
    fields[field] = value
    if value is None:
        del fields[field]
    refusal = await center.refused(method, **fields)
    assert _refusal(refusal) == (INVALID, "BAD_REQUEST")
    assert list(refusal.fields) == [field]
    assert refusal.message.startswith(f"{field}: ")


_UNKNOWN_TYPE: Any = 7
_OFFER: dict[str, Any] = {"offer_id": "o", "name": "Offer", "segments": 1, "price": "1.00", "currency": "CNY"}


@pytest.mark.parametrize(
    ("method", "changes", "field"),
    [
        *[
            ("PutPackageOffer", {"offer": admin_pb.PackageOffer(**{**_OFFER, name: value})}, f"offer.{name}")
            for name, value in [
                ("offer_id", ""),
                ("name", ""),
                ("segments", 0),
                ("segments", 1_000_000_001),
                ("price", ""),
                ("price", "-1"),
                ("currency", "cny"),
                ("validity_days", 0),
                ("validity_days", 36_501),
                ("validity_months", 1_201),
                ("sms_types", [0]),
                ("sms_types", [4]),
            ]
        ],
        ("PutPackageOffer", {}, "offer.offer_id"),
        ("AdjustPackage", {**_ADJUST, "grant": None}, "adjustment"),
        ("AdjustPackage", {**_ADJUST, "grant": admin_pb.GrantAdjustment()}, "grant.segments"),
        (
            "AdjustPackage",
            {**_ADJUST, "grant": admin_pb.GrantAdjustment(segments=1, sms_types=[_UNKNOWN_TYPE])},
            "grant.sms_types",
        ),
        (
            "AdjustPackage",
            {**_ADJUST, "grant": None, "claw_back": admin_pb.ClawBackAdjustment(package_id=1)},
            "claw_back.segments",
        ),
        (
            "AdjustPackage",
            {**_ADJUST, "grant": None, "claw_back": admin_pb.ClawBackAdjustment(segments=1)},
            "claw_back.package_id",
        ),
        (
            "AdjustPackage",
            {**_ADJUST, "grant": None, "return_package": admin_pb.ReturnAdjustment()},
            "return_package.package_id",
        ),
        (
            "SmsSendStatusCallBack",
            {**_STATUS, "failed": [pb.FailedMessage(message_id="a", segments=1), pb.FailedMessage(segments=1)]},
            "failed[1].message_id",
        ),
        (
            "SmsSendStatusCallBack",
            {**_STATUS, "failed": [pb.FailedMessage(message_id="a")]},
            "failed[0].segments",
        ),
        (
            "SmsSendStatusCallBack",
            {**_STATUS, "failed": [pb.FailedMessage(message_id="a", segments=1)] * 2},
            "failed",
        ),
    ],
)
async def test_a_bad_field_within_a_message_is_named_with_its_path(
    center: CostCenter, method: str, changes: dict[str, Any], field: str
) -> None:
    """Paths such as `failed[1].message_id` and `offer.price`."""
    fields = {name: value for name, value in changes.items() if value is not None}
    if method != "PutPackageOffer":
        fields["brand_id"] = 2**62
    refusal = await center.refused(method, **fields)
    assert (_refusal(refusal), list(refusal.fields)) == ((INVALID, "BAD_REQUEST"), [field])


async def test_a_grant_that_is_over_names_its_field(center: CostCenter) -> None:
    """What only the ledger's clock can tell is told like any other bad field."""
    brand_id = await center.brand()
    grant = admin_pb.GrantAdjustment(segments=1, expires_at=timestamp(_now() - DAY))
    refusal = await center.refused("AdjustPackage", brand_id=brand_id, **{**_ADJUST, "grant": grant})
    assert (_refusal(refusal), list(refusal.fields)) == ((INVALID, "BAD_REQUEST"), ["grant.expires_at"])


async def test_a_time_to_live_that_is_too_long_has_its_own_reason(center: CostCenter) -> None:
    """SmsSendPrePay and ExtendFreeze alike."""
    brand_id = await center.brand(10)
    order_no = (await center.freeze(brand_id, 1)).order_no
    longest = Duration(seconds=7 * 86_400 + 1)
    for method, fields in (("SmsSendPrePay", _FREEZE), ("ExtendFreeze", {**_EXTEND, "order_no": order_no})):
        refusal = await center.refused(method, brand_id=brand_id, **{**fields, "time_to_live": longest})
        assert _refusal(refusal) == (INVALID, "TIME_TO_LIVE_TOO_LONG")
        assert (list(refusal.fields), refusal.metadata) == (["time_to_live"], {"seconds_max": "604800"})


@pytest.mark.parametrize(
    "method", [*_CALLS, "GetBrand", "GetBalance", "GetBalanceHistory", "ListPackages", "ListPayments"]
)
async def test_an_unknown_brand_is_not_found(center: CostCenter, method: str) -> None:
    """NOT_FOUND with BRAND_NOT_FOUND, for all that name a brand."""
    refusal = await center.refused(method, brand_id=2**62, **{**_CALLS.get(method, {}), **_READS.get(method, {})})
    assert _refusal(refusal) == (NOT_FOUND, "BRAND_NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("SmsSendPay", "FREEZE_NOT_FOUND"),
        ("SmsReleaseFreezeNum", "FREEZE_NOT_FOUND"),
        ("ExtendFreeze", "FREEZE_NOT_FOUND"),
        ("SmsSendStatusCallBack", "PAYMENT_NOT_FOUND"),
        ("SmsReceiptStatusCallBack", "PAYMENT_NOT_FOUND"),
        ("CreatePackageOrder", "OFFER_NOT_FOUND"),
        ("PackagePaidCallBack", "PACKAGE_ORDER_NOT_FOUND"),
    ],
)
async def test_what_is_missing_is_named(center: CostCenter, method: str, reason: str) -> None:
    """NOT_FOUND with a reason for each kind; another brand's number is as unknown as one that never was."""
    brand_id, other = await center.brand(10), await center.brand(10)
    assert _refusal(await center.refused(method, brand_id=brand_id, **_CALLS[method])) == (NOT_FOUND, reason)
    order_no = (await center.freeze(other, 2)).order_no
    payment_no = (await center.pay(other, order_no, 1)).payment_no
    offer_id = await center.offer()
    package_order = await center.call("CreatePackageOrder", brand_id=other, request_id="o", offer_id=offer_id)
    others: dict[str, Any] = {
        "order_no": order_no,
        "payment_no": payment_no,
        "package_order_no": package_order.package_order_no,
    }
    fields = {name: others.get(name, value) for name, value in _CALLS[method].items()}
    assert _refusal(await center.refused(method, brand_id=brand_id, **fields)) == (NOT_FOUND, reason)
    assert await center.figures(other) == (9, 1, 8)


@pytest.mark.parametrize(
    ("method", "field", "reason"),
    [("GetFreeze", "order_no", "FREEZE_NOT_FOUND"), ("GetPayment", "payment_no", "PAYMENT_NOT_FOUND")],
)
async def test_a_number_that_is_none_of_ours_is_not_found(
    center: CostCenter, method: str, field: str, reason: str
) -> None:
    """Rubbish, an empty one, one of an existing brand that was never given out, one of no brand."""
    identifiers = IdentifierSource()
    brand_id = await center.brand()
    for value in ("", "rubbish", "x" * 5_000, identifiers.new(brand_id, 1), identifiers.new(2**62, 1), "Z" * 32):
        assert _refusal(await center.refused(method, **{field: value})) == (NOT_FOUND, reason)


async def test_the_ledgers_refusals_have_reason_and_figures(center: CostCenter, later: CostCenter) -> None:
    """Each refusal of the rules over the wire; none changes the balance."""
    brand_id = await center.brand(10)
    order_no = (await center.freeze(brand_id, 4, time_to_live=Duration(seconds=600))).order_no
    settled = (await center.freeze(brand_id, 1)).order_no
    await center.pay(brand_id, settled, 1)
    inactive = await center.offer(active=False)
    (package,) = (await center.call("ListPackages", brand_id=brand_id)).packages
    in_use = admin_pb.ReturnAdjustment(package_id=package.package_id)
    too_much = admin_pb.ClawBackAdjustment(package_id=package.package_id, segments=6)
    unknown = admin_pb.ClawBackAdjustment(package_id=99, segments=1)
    common: dict[str, Any] = {"brand_id": brand_id, "request_id": "r"}
    adjust: dict[str, Any] = {**common, "author": "a", "reason": "b"}
    before = await center.figures(brand_id)
    refusals = [
        await center.refused("SmsSendPrePay", **{**_FREEZE, **common, "segments": 6}),
        await center.refused("SmsSendPay", order_no=order_no, segments=5, **common),
        await center.refused("ExtendFreeze", order_no=settled, time_to_live=Duration(seconds=1), **common),
        await center.refused("CreatePackageOrder", offer_id=inactive, **common),
        await center.refused("AdjustPackage", claw_back=too_much, **adjust),
        await center.refused("AdjustPackage", return_package=in_use, **adjust),
    ]
    assert {refusal.code for refusal in refusals} == {PRECONDITION}
    assert [(refusal.reason, refusal.metadata) for refusal in refusals] == [
        ("INSUFFICIENT_BALANCE", {"requested": "6", "available": "5"}),
        ("FREEZE_INSUFFICIENT", {"requested": "5", "open": "4"}),
        ("FREEZE_SETTLED", {}),
        ("OFFER_INACTIVE", {}),
        ("INSUFFICIENT_BALANCE", {"requested": "6", "available": "5"}),
        ("PACKAGE_IN_USE", {}),
    ]
    missing = await center.refused("AdjustPackage", claw_back=unknown, **adjust)
    assert _refusal(missing) == (NOT_FOUND, "PACKAGE_NOT_FOUND")
    assert await center.figures(brand_id) == before
    for method, fields in (("SmsSendPay", {"segments": 1}), ("ExtendFreeze", {"time_to_live": Duration(seconds=9)})):
        expired = await later.refused(method, order_no=order_no, **fields, **common)
        assert _refusal(expired) == (PRECONDITION, "FREEZE_EXPIRED")
        assert set(expired.metadata) == {"expires_at"}


@pytest.mark.parametrize(("status", "reason"), [(2, "BRAND_SUSPENDED"), (3, "BRAND_CLOSED")])
async def test_a_brand_that_may_not_send(center: CostCenter, status: int, reason: str) -> None:
    """No new freezes, open ones settle; a closed brand takes no order, grant or change any more."""
    brand_id = await center.brand(10)
    order_no = (await center.freeze(brand_id, 4)).order_no
    offer_id = await center.offer()
    await center.call("PutBrand", brand_id=brand_id, status=status)
    assert _refusal(await center.refused("SmsSendPrePay", brand_id=brand_id, **_FREEZE)) == (PRECONDITION, reason)
    await center.pay(brand_id, order_no, 4)
    if status == 3:
        for method, fields in (
            ("CreatePackageOrder", {**_ORDER, "offer_id": offer_id}),
            ("AdjustPackage", _ADJUST),
            ("PutBrand", {"name": "Other"}),
            ("PutBrand", {"status": 1}),
        ):
            assert _refusal(await center.refused(method, brand_id=brand_id, **fields)) == (PRECONDITION, reason)
    assert await center.figures(brand_id) == (6, 0, 6)


async def test_a_revoked_or_unknown_token_is_told_apart_from_a_live_one(center: CostCenter) -> None:
    """CheckToken and RevokeToken on tokens that are not there."""
    assert _refusal(await center.refused("RevokeToken", token_id="nobody")) == (NOT_FOUND, "TOKEN_NOT_FOUND")
    missing = await center.refused("CheckToken", secret_sha256=b"\0" * 32)
    assert _refusal(missing) == (NOT_FOUND, "TOKEN_NOT_FOUND")


# Batches.


def _items(method: str, *items: dict[str, Any]) -> list[Any]:
    return [request_of(method, **item) for item in items]


async def test_a_batch_equals_its_items_one_after_another(center: CostCenter) -> None:
    """Freezes of 60, 60 and 30 on 100: yes, no, yes, each in its place."""
    brand_id = await center.brand(100)
    items = _items(
        "SmsSendPrePay",
        *({**_FREEZE, "brand_id": brand_id, "request_id": f"b{i}", "segments": n} for i, n in enumerate((60, 60, 30))),
    )
    results = (await center.call("BatchSmsSendPrePay", items=items)).results
    assert [result.WhichOneof("outcome") for result in results] == ["ok", "refusal", "ok"]
    assert (results[0].ok.segments, results[2].ok.segments) == (60, 30)
    refusal = results[1].refusal
    assert (refusal.code, refusal.reason) == (PRECONDITION.value[0], "INSUFFICIENT_BALANCE")
    assert dict(refusal.metadata) == {"requested": "60", "available": "40"}
    assert await center.figures(brand_id) == (100, 90, 10)


async def test_bad_items_change_nothing_for_the_others(center: CostCenter) -> None:
    """Bad fields, unknown and foreign brands among good items: each has its own status, in the order of the items."""
    mine, also_mine, foreign = await center.brand(10), await center.brand(10), await center.brand(10)
    token = await center.token([3], [mine, also_mine, 2**61])
    good: dict[str, Any] = {**_FREEZE, "brand_id": mine}
    items = _items(
        "SmsSendPrePay",
        {**good, "request_id": "a"},
        {**good, "request_id": "b", "segments": 0},
        {**good, "request_id": "c", "brand_id": foreign},
        {**good, "request_id": "d", "brand_id": also_mine},
        {**good, "request_id": "e", "brand_id": 2**61},
        {**good, "request_id": ""},
        {**good, "request_id": "g", "sms_type": 0},
        {**good, "request_id": "a"},
        {**good, "request_id": "a", "segments": 2},
        {**good, "request_id": "h", "segments": 9},
    )
    results = (await center.call("BatchSmsSendPrePay", items=items, token=token)).results
    assert [(r.refusal.code, r.refusal.reason) if r.HasField("refusal") else "ok" for r in results] == [
        "ok",
        (INVALID.value[0], "BAD_REQUEST"),
        (DENIED.value[0], "BRAND_NOT_ALLOWED"),
        "ok",
        (NOT_FOUND.value[0], "BRAND_NOT_FOUND"),
        (INVALID.value[0], "BAD_REQUEST"),
        (INVALID.value[0], "BAD_REQUEST"),
        "ok",
        (EXISTS.value[0], "IDEMPOTENCY_CONFLICT"),
        "ok",
    ]
    assert results[7].ok == results[0].ok
    assert "segments" in results[1].refusal.message
    assert [await center.figures(b) for b in (mine, also_mine, foreign)] == [(10, 10, 0), (10, 1, 9), (10, 0, 10)]


async def test_each_batch_call_does_what_its_single_call_does(center: CostCenter) -> None:
    """Pay, status and receipt in batches, with the same keys as the single calls."""
    brand_id = await center.brand(20, refund_undelivered=True)
    order_no = (await center.freeze(brand_id, 10)).order_no
    pays = _items(
        "SmsSendPay",
        *({"brand_id": brand_id, "order_no": order_no, "request_id": f"p{i}", "segments": 4} for i in range(3)),
    )
    paid = (await center.call("BatchSmsSendPay", items=pays)).results
    assert [result.WhichOneof("outcome") for result in paid] == ["ok", "ok", "refusal"]
    assert [result.ok.open for result in paid[:2]] == [6, 2]
    assert await center.send("SmsSendPay", pays[0]) == paid[0].ok
    first, second = (result.ok.payment_no for result in paid[:2])
    statuses = _items(
        "SmsSendStatusCallBack",
        {"brand_id": brand_id, "request_id": "s1", "payment_no": first},
        {
            "brand_id": brand_id,
            "request_id": "s2",
            "payment_no": second,
            "failed": [pb.FailedMessage(message_id="m", segments=1)],
        },
        {"brand_id": brand_id, "request_id": "s3", "payment_no": "nowhere"},
    )
    results = (await center.call("BatchSmsSendStatusCallBack", items=statuses)).results
    assert [r.refusal.reason or r.ok.refunded for r in results] == [0, 1, "PAYMENT_NOT_FOUND"]
    receipt: dict[str, Any] = {"brand_id": brand_id, "payment_no": first, "segments": 1}
    receipts = _items(
        "SmsReceiptStatusCallBack",
        {**receipt, "request_id": "r1", "message_id": "a", "state": 1},
        {**receipt, "request_id": "r2", "message_id": "b", "state": 2},
        {**receipt, "request_id": "r3", "message_id": "b", "state": 3},
        {**receipt, "request_id": "r4", "message_id": "c", "state": 9},
    )
    results = (await center.call("BatchSmsReceiptStatusCallBack", items=receipts)).results
    assert [r.refusal.reason or r.ok.refunded for r in results] == [0, 1, 0, "BAD_REQUEST"]
    assert await center.figures(brand_id) == (14, 2, 12)


@pytest.mark.parametrize(
    "method",
    ["BatchSmsSendPrePay", "BatchSmsSendPay", "BatchSmsSendStatusCallBack", "BatchSmsReceiptStatusCallBack"],
)
async def test_the_size_of_a_batch_is_bounded(center: CostCenter, method: str) -> None:
    """One item too many refuses the call; none at all is answered with none."""
    item = request_of(method.removeprefix("Batch"))
    refusal = await center.refused(method, items=[item] * 51)
    assert (_refusal(refusal), list(refusal.fields)) == ((INVALID, "BAD_REQUEST"), ["items"])
    assert len((await center.call(method, items=[item] * 50)).results) == 50
    assert list((await center.call(method)).results) == []


# Idempotency.


async def test_the_same_call_has_the_same_reply(center: CostCenter) -> None:
    """Every call with a request_id, repeated after everything has changed: byte for byte the first reply, no effect."""
    brand_id = await center.brand(100, refund_undelivered=True)
    common: dict[str, Any] = {"brand_id": brand_id, "request_id": "same"}
    offer_id = await center.offer()
    calls: list[tuple[str, Any]] = []

    async def first(method: str, **fields: Any) -> Any:
        request = request_of(method, **common, **fields)
        reply = await center.send(method, request)
        calls.append((method, (request, reply)))
        return reply

    await first("CreatePackageOrder", offer_id=offer_id)
    freeze = await first("SmsSendPrePay", sms_type=MARKETING, segments=50)
    payment = await first("SmsSendPay", order_no=freeze.order_no, segments=20)
    await first("SmsReleaseFreezeNum", order_no=freeze.order_no, segments=5)
    await first("ExtendFreeze", order_no=freeze.order_no, time_to_live=Duration(seconds=100_000))
    failed = [pb.FailedMessage(message_id="m1", segments=3)]
    await first("SmsSendStatusCallBack", payment_no=payment.payment_no, failed=failed)
    await first(
        "SmsReceiptStatusCallBack",
        payment_no=payment.payment_no,
        message_id="m2",
        segments=2,
        state=2,
        carrier_code="X",
    )
    grant = admin_pb.GrantAdjustment(segments=7)
    await first("AdjustPackage", author="a", reason="b", grant=grant)
    # The balance is used up, the freeze settled, the offer gone, the brand suspended.
    await center.call("ApplyReleases")
    _, frozen, available = await center.figures(brand_id)
    await center.charge(brand_id, available)
    await center.pay(brand_id, freeze.order_no, frozen)
    await center.call("PutPackageOffer", offer=admin_pb.PackageOffer(**{**_OFFER, "offer_id": offer_id}))
    await center.call("PutBrand", brand_id=brand_id, status=2)
    assert await center.figures(brand_id) == (0, 0, 0)
    records = await center.rows("select next_record_no from balance where brand_id = %s", brand_id)
    for method, (request, reply) in calls:
        assert await center.send(method, request) == reply, method
    assert await center.rows("select next_record_no from balance where brand_id = %s", brand_id) == records


async def test_the_same_key_with_other_content_conflicts(center: CostCenter) -> None:
    """ALREADY_EXISTS with IDEMPOTENCY_CONFLICT, nothing written, whatever field differs."""
    brand_id = await center.brand(100)
    freeze = await center.freeze(brand_id, 10, request_id="same")
    await center.pay(brand_id, freeze.order_no, 2, request_id="same")
    for changes in ({"segments": 11}, {"sms_type": NOTIFICATION}, {"time_to_live": Duration(seconds=60)}):
        fields: dict[str, Any] = {
            "brand_id": brand_id,
            "request_id": "same",
            "sms_type": MARKETING,
            "segments": 10,
            **changes,
        }
        refusal = await center.refused("SmsSendPrePay", **fields)
        assert _refusal(refusal) == (EXISTS, "IDEMPOTENCY_CONFLICT")
        assert refusal.metadata == {"request_id": "same"}
    other = (await center.freeze(brand_id, 10)).order_no
    for pay in ({"order_no": freeze.order_no, "segments": 3}, {"order_no": other, "segments": 2}):
        refusal = await center.refused("SmsSendPay", brand_id=brand_id, request_id="same", **pay)
        assert _refusal(refusal) == (EXISTS, "IDEMPOTENCY_CONFLICT")
    assert await center.figures(brand_id) == (98, 18, 80)


async def test_keys_are_per_brand_and_operation(center: CostCenter) -> None:
    """The same request_id of another brand or another call is another key."""
    one, two = await center.brand(10), await center.brand(10)
    freezes = [await center.freeze(brand_id, 5, request_id="same") for brand_id in (one, two)]
    assert freezes[0].order_no != freezes[1].order_no
    await center.pay(one, freezes[0].order_no, 5, request_id="same")
    await center.pay(two, freezes[1].order_no, 5, request_id="same")
    assert [await center.figures(brand_id) for brand_id in (one, two)] == [(5, 0, 5), (5, 0, 5)]


async def test_a_refusal_is_judged_anew(center: CostCenter) -> None:
    """What was refused may be asked again with the same request_id, also with other content."""
    brand_id = await center.brand(10)
    call: dict[str, Any] = {**_FREEZE, "brand_id": brand_id, "segments": 11}
    refusal = await center.refused("SmsSendPrePay", **call)
    assert refusal.reason == "INSUFFICIENT_BALANCE"
    await center.grant(brand_id, 1)
    assert (await center.call("SmsSendPrePay", **call)).segments == 11
    refusal = await center.refused("SmsSendPay", brand_id=brand_id, **_PAY)
    assert refusal.reason == "FREEZE_NOT_FOUND"
    order_no = (await center.call("SmsSendPrePay", **call)).order_no
    await center.pay(brand_id, order_no, 1, request_id=_PAY["request_id"])


async def test_concurrent_duplicates_have_one_effect(center: CostCenter, later: CostCenter) -> None:
    """Twenty times the same freeze at once, over two processes: one freeze, twenty equal replies."""
    brand_id = await center.brand(100)
    # It must outlast both clocks.
    fields: dict[str, Any] = {
        **_FREEZE,
        "brand_id": brand_id,
        "segments": 10,
        "time_to_live": Duration(seconds=3 * 86_400),
    }
    request = request_of("SmsSendPrePay", **fields)
    replies = await outcomes_of([(center, later)[i % 2].send("SmsSendPrePay", request) for i in range(20)])
    assert len({reply.SerializeToString() for reply in replies}) == 1
    assert await center.figures(brand_id) == (100, 10, 90)


async def test_old_keys_are_deleted_but_a_chunk_is_charged_once_for_ever(center: CostCenter) -> None:
    """After 30 days a freeze's key is gone; a payment's never, nor what makes a message refunded once."""
    brand_id = await center.brand(100)
    order_no = (await center.freeze(brand_id, 10, request_id="old")).order_no
    payment = await center.pay(brand_id, order_no, 4, request_id="old")
    failed = [pb.FailedMessage(message_id="m", segments=1)]
    status: dict[str, Any] = {"brand_id": brand_id, "payment_no": payment.payment_no, "failed": failed}
    await center.call("SmsSendStatusCallBack", request_id="old", **status)
    await center.rows(
        "update idempotency_key set created_at = created_at - interval '31 days' where brand_id = %s", brand_id
    )
    assert (await center.call("CleanUp")).keys_deleted >= 2
    assert await center.rows("select 1 from idempotency_key where brand_id = %s", brand_id) == []
    assert await center.pay(brand_id, order_no, 4, request_id="old") == payment
    assert (await center.call("SmsSendStatusCallBack", request_id="old", **status)).refunded == 0
    assert (await center.freeze(brand_id, 10, request_id="old")).order_no != order_no
    assert await center.figures(brand_id) == (97, 16, 81)


# Lists.


async def test_packages_are_listed_in_burn_down_order(center: CostCenter) -> None:
    """As they will be spent; spent ones only on request, then by number."""
    brand_id = await center.brand()
    never = await center.grant(brand_id, 1)
    late = await center.grant(brand_id, 1, _now() + 2 * DAY)
    soon = await center.grant(brand_id, 1, _now() + DAY)
    spent = await center.grant(brand_id, 1, _now() + HOUR)
    await center.charge(brand_id, 1)
    listed = (await center.call("ListPackages", brand_id=brand_id)).packages
    assert [package.package_id for package in listed] == [soon, late, never]
    listed = (await center.call("ListPackages", brand_id=brand_id, include_spent=True)).packages
    assert [package.package_id for package in listed] == [never, late, soon, spent]
    assert (listed[3].remaining, listed[3].paid) == (0, 1)


@pytest.mark.parametrize("include_spent", [False, True])
async def test_pages_of_packages_lose_none(center: CostCenter, include_spent: bool) -> None:
    """Though the last package of a page is spent before the next page is asked for."""
    brand_id = await center.brand()
    made = [await center.grant(brand_id, 1, _now() + DAY + i * HOUR) for i in range(5)]
    seen: list[int] = []
    token = ""
    while True:
        page = await center.call(
            "ListPackages", brand_id=brand_id, page_size=2, page_token=token, include_spent=include_spent
        )
        seen += [package.package_id for package in page.packages]
        token = page.next_page_token
        if not token:
            break
        await center.charge(brand_id, len(page.packages))
    assert seen == made


async def test_freezes_are_listed(center: CostCenter) -> None:
    """All newest first, or those that hold something, soonest end first; in pages, each once. A page behind another is
    asked for with the token of the same list.
    """
    brand_id = await center.brand(100)

    async def pages(**fields: Any) -> list[Any]:
        seen: list[Any] = []
        token = ""
        while True:
            page = await center.call("ListFreezes", brand_id=brand_id, page_size=2, page_token=token, **fields)
            seen += page.freezes
            token = page.next_page_token
            if not token:
                return seen

    assert await pages() == await pages(open_only=True) == []
    lives = [500, 300, 400, 300, 200]
    made = [(await center.freeze(brand_id, 10, time_to_live=Duration(seconds=life))).order_no for life in lives]
    await center.pay(brand_id, made[2], 10)
    listed = await pages()
    # Within one millisecond numbers are in no order of time.
    assert [freeze.order_no for freeze in listed] == sorted(made, reverse=True)
    assert listed[0] == (await center.call("GetFreeze", order_no=listed[0].order_no)).freeze
    ends = {freeze.order_no: (moment(freeze.expires_at), freeze.order_no) for freeze in listed}
    held = [freeze.order_no for freeze in await pages(open_only=True)]
    assert held == sorted((number for number in made if number != made[2]), key=ends.__getitem__)
    token = (await center.call("ListFreezes", brand_id=brand_id, page_size=2)).next_page_token
    refusal = await center.refused("ListFreezes", brand_id=brand_id, open_only=True, page_token=token)
    assert refusal.fields == {"page_token": "must be a next_page_token of this call"}


async def test_payments_are_listed_newest_first(center: CostCenter) -> None:
    """All of a brand or of one freeze, in pages."""
    brand_id = await center.brand(100)
    orders = [(await center.freeze(brand_id, 10)).order_no for _ in range(2)]
    made = [(await center.pay(brand_id, orders[i % 2], 1)).payment_no for i in range(5)]
    # Within one millisecond numbers are in no order of time.
    expected = sorted(made, reverse=True)
    seen: list[str] = []
    token = ""
    while True:
        page = await center.call("ListPayments", brand_id=brand_id, page_size=2, page_token=token)
        seen += [payment.payment_no for payment in page.payments]
        token = page.next_page_token
        if not token:
            break
    assert seen == expected
    of_one = await center.call("ListPayments", brand_id=brand_id, order_no=orders[1])
    assert {payment.payment_no for payment in of_one.payments} == {made[1], made[3]}
    assert list((await center.call("ListPayments", brand_id=brand_id, order_no="nowhere")).payments) == []
    assert list((await center.call("ListPayments", brand_id=await center.brand(), order_no=orders[0])).payments) == []


async def test_tokens_are_listed_without_secrets(center: CostCenter) -> None:
    """Newest first, in pages; a revoked one shows when."""
    secrets = [await center.token([1, 4], [5, 6]) for _ in range(3)]
    first = await center.call("ListTokens", page_size=2)
    assert len(first.tokens) == 2
    second = await center.call("ListTokens", page_size=1_000, page_token=first.next_page_token)
    tokens = [*first.tokens, *second.tokens]
    assert len({token.token_id for token in tokens}) == len(tokens) >= 4
    assert not any(secret in str(tokens) for secret in secrets)
    newest = next(token for token in tokens if token.name == "a test's")
    assert (list(newest.roles), list(newest.brand_ids), newest.all_brands) == ([1, 4], [5, 6], False)
    revoked = (await center.call("RevokeToken", token_id=newest.token_id)).token
    assert moment(revoked.revoked_at) <= _now() + timedelta(minutes=1)
    again = (await center.call("RevokeToken", token_id=newest.token_id)).token
    assert again.revoked_at == revoked.revoked_at


# Balances of the past.


async def test_the_balance_of_any_past_moment(center: CostCenter) -> None:
    """As of the moment after each change, in the order of things, and before the first."""
    brand_id = await center.brand()
    steps: list[tuple[datetime, tuple[int, int, int]]] = []

    async def note() -> None:
        reply = await center.call("GetBalance", brand_id=brand_id)
        steps.append((moment(reply.as_of), (reply.total, reply.frozen, reply.available)))

    before = _now() - HOUR
    await note()
    await center.grant(brand_id, 50, _now() + DAY)
    await note()
    order_no = (await center.freeze(brand_id, 20)).order_no
    await note()
    await center.pay(brand_id, order_no, 15)
    await note()
    await center.grant(brand_id, 5)
    await note()
    assert [figures for _, figures in steps] == [(0, 0, 0), (50, 0, 50), (50, 20, 30), (35, 5, 30), (40, 5, 35)]
    for at, figures in steps:
        reply = await center.call("GetBalance", brand_id=brand_id, as_of=timestamp(at))
        assert ((reply.total, reply.frozen, reply.available), moment(reply.as_of)) == (figures, at)
    assert await center.figures(brand_id, as_of=timestamp(before)) == (0, 0, 0)


async def test_a_future_moment_is_answered_as_of_now(center: CostCenter) -> None:
    """Nobody knows what will be bought; the reply says which moment its figures hold for."""
    brand_id = await center.brand()
    await center.grant(brand_id, 10, _now() + HOUR)
    reply = await center.call("GetBalance", brand_id=brand_id, as_of=timestamp(_now() + DAY))
    assert reply.total == 10
    assert moment(reply.as_of) < _now() + timedelta(minutes=1)


async def test_balances_by_type(center: CostCenter) -> None:
    """What each type could freeze, packages of other types left out."""
    brand_id = await center.brand(10)
    await center.grant(brand_id, 5, sms_types=[VERIFICATION])
    await center.grant(brand_id, 3, sms_types=[VERIFICATION, MARKETING])
    await center.freeze(brand_id, 4)
    reply = await center.call("GetBalance", brand_id=brand_id)
    assert {line.sms_type: line.available for line in reply.available_by_type} == {1: 14, 2: 6, 3: 9}
    assert (reply.total, reply.frozen, reply.available) == (18, 4, 14)


async def test_what_is_due_is_told_before_and_after_it_is_booked(center: CostCenter, later: CostCenter) -> None:
    """Ends that nobody swept: balances, history, freezes and packages read as if they had been; the sweep agrees."""
    brand_id = await center.brand()
    start = _now()
    package_id = await center.grant(brand_id, 100, start + 3 * HOUR)
    freeze = await center.freeze(brand_id, 40, time_to_live=Duration(seconds=3_600))
    held = await center.freeze(brand_id, 30, time_to_live=Duration(seconds=6 * 3_600))
    await center.pay(brand_id, freeze.order_no, 15)
    grid = [start + i * HOUR + timedelta(minutes=30) for i in range(8)]
    expected = [(85, 55), (85, 30), (85, 30), (30, 30), (30, 30), (30, 30), (0, 0), (0, 0)]

    async def told() -> list[Any]:
        figures = [(await later.figures(brand_id, as_of=timestamp(at)))[:2] for at in grid]
        span: dict[str, Any] = {"from": timestamp(grid[0]), "to": timestamp(grid[-1] + HOUR)}
        history = await later.call("GetBalanceHistory", brand_id=brand_id, step=Duration(seconds=3_600), **span)
        assert [moment(point.at) for point in history.points] == grid
        assert [(point.total, point.frozen) for point in history.points] == expected
        packages = (await later.call("ListPackages", brand_id=brand_id, include_spent=True)).packages
        freezes = [(await later.call("GetFreeze", order_no=f.order_no)).freeze for f in (freeze, held)]
        listed = (await later.call("ListFreezes", brand_id=brand_id)).freezes
        assert sorted(f.order_no for f in listed if f in freezes) == sorted(f.order_no for f in freezes)
        assert list((await later.call("ListFreezes", brand_id=brand_id, open_only=True)).freezes) == []
        return [figures, packages, freezes, await later.figures(brand_id)]

    before = await told()
    assert before[0] == expected
    (package,) = before[1]
    assert (package.package_id, package.remaining, package.held, package.expired) == (package_id, 0, 0, 85)
    assert [(f.paid, f.timed_out, f.open) for f in before[2]] == [(15, 25, 0), (0, 30, 0)]
    assert list((await later.call("ListPackages", brand_id=brand_id)).packages) == []
    assert await center.rows("select 1 from entry where brand_id = %s and kind <> 1", brand_id) == []
    swept = await later.call("BookDue")
    assert swept.brands >= 1
    assert len(await center.rows("select 1 from entry where brand_id = %s and kind <> 1", brand_id)) == 4
    assert await told() == before


async def test_the_sweep_counts_what_it_books(center: CostCenter, later: CostCenter) -> None:
    """Brands, packages and freezes; nothing is due a second time."""
    await later.call("BookDue")
    brands = [await center.brand() for _ in range(2)]
    for brand_id in brands:
        await center.grant(brand_id, 10, _now() + HOUR)
        await center.freeze(brand_id, 3)
        await center.freeze(brand_id, 2)
    reply = await later.call("BookDue")
    assert (reply.brands, reply.packages_expired, reply.freezes_ended, reply.more) == (2, 2, 4, False)
    reply = await later.call("BookDue")
    assert (reply.brands, reply.packages_expired, reply.freezes_ended) == (0, 0, 0)
    assert [await later.figures(brand_id) for brand_id in brands] == [(0, 0, 0)] * 2


async def test_the_sweep_is_bounded_and_says_when_more_waits(center: CostCenter, later: CostCenter) -> None:
    """One brand a call: as many calls as brands, and no brand twice."""
    await later.call("BookDue")
    for _ in range(3):
        brand_id = await center.brand()
        await center.grant(brand_id, 1, _now() + HOUR)
    replies = [await later.call("BookDue", brand_limit=1) for _ in range(4)]
    assert [(reply.brands, reply.more) for reply in replies] == [(1, True)] * 3 + [(0, False)]


@pytest.mark.parametrize("given_end", [True, False])
async def test_a_history_has_at_most_ten_thousand_points(center: CostCenter, given_end: bool) -> None:
    """The step is what to change; also where the end is now."""
    brand_id = await center.brand()
    start = _now() - timedelta(seconds=10_100)
    end = {"to": timestamp(start + timedelta(seconds=10_001))} if given_end else {}
    fields: dict[str, Any] = {"brand_id": brand_id, "step": Duration(seconds=1), "from": timestamp(start), **end}
    refusal = await center.refused("GetBalanceHistory", **fields)
    assert (_refusal(refusal), list(refusal.fields)) == ((INVALID, "BAD_REQUEST"), ["step"])
    fields["to"] = timestamp(start + timedelta(seconds=10_000))
    assert len((await center.call("GetBalanceHistory", **fields)).points) == 10_000


async def test_a_history_has_an_end_and_a_bound(center: CostCenter) -> None:
    """Until now when no end is given; nothing for a span in the future or an empty one."""
    brand_id = await center.brand(10)
    call: dict[str, Any] = {"brand_id": brand_id, "step": Duration(seconds=1)}
    start = _now() - timedelta(seconds=5)
    since: dict[str, Any] = {"from": timestamp(start)}
    points = (await center.call("GetBalanceHistory", **call, **since)).points
    assert [point.total for point in points[:6]] == [0, 0, 0, 0, 0, 10]
    assert moment(points[-1].at) < _now()
    future: dict[str, Any] = {"from": timestamp(_now() + DAY)}
    assert list((await center.call("GetBalanceHistory", **call, **future)).points) == []
    empty: dict[str, Any] = {"from": timestamp(start), "to": timestamp(start)}
    assert list((await center.call("GetBalanceHistory", **call, **empty)).points) == []


# Releases.


async def test_releases_wait_for_a_request(center: CostCenter) -> None:
    """ApplyReleases holds the call until a request comes, at most as long as asked."""
    await center.call("ApplyReleases")
    brand_id = await center.brand(10)
    order_no = (await center.freeze(brand_id, 4)).order_no
    waiting = center.call("ApplyReleases", wait=Duration(seconds=20))
    await center.call("SmsReleaseFreezeNum", brand_id=brand_id, request_id="r", order_no=order_no)
    assert (await waiting).segments == 4
    nothing = await center.call("ApplyReleases", wait=Duration(nanos=1_000_000))
    assert (nothing.applied, nothing.put_back) == (0, 0)


async def test_releases_are_applied_in_bounded_parts_and_once(center: CostCenter) -> None:
    """The oldest first, `limit` at a time; two consumers at once release nothing twice."""
    await center.call("ApplyReleases")
    brand_id = await center.brand(10)
    order_no = (await center.freeze(brand_id, 9)).order_no
    release: dict[str, Any] = {"brand_id": brand_id, "order_no": order_no, "segments": 1}
    for _ in range(5):
        await center.call("SmsReleaseFreezeNum", request_id=request_id(), **release)
    assert (await center.call("ApplyReleases", limit=2)).segments == 2
    replies = await outcomes_of([center.call("ApplyReleases") for _ in range(4)])
    assert sum(reply.segments for reply in replies) == 3
    assert await center.figures(brand_id) == (10, 4, 6)


async def test_releases_of_a_later_clock_are_due_by_it(later: CostCenter, center: CostCenter) -> None:
    """A request is due when it was recorded, by the same clock that applies it."""
    brand_id = await center.brand(10)
    order_no = (await later.freeze(brand_id, 4)).order_no
    await later.call("SmsReleaseFreezeNum", brand_id=brand_id, request_id="r", order_no=order_no)
    await later.call("ApplyReleases")
    assert await later.figures(brand_id) == (10, 0, 10)


# Deadlines, health, reflection.


async def test_a_deadline_that_passes_is_settled_by_a_repeat(center: CostCenter) -> None:
    """DEADLINE_EXCEEDED while a transaction waits: no reply, one effect or none, and the same call tells which."""
    brand_id = await center.brand(10)
    url = center.settings.database_url
    request = request_of("SmsSendPrePay", **{**_FREEZE, "brand_id": brand_id, "segments": 6})
    async with locked_lanes(url):
        [late] = await outcomes_of([center.send("SmsSendPrePay", request, timeout=0.3)])
        assert _refusal(late)[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    reply = await center.send("SmsSendPrePay", request)
    assert await center.send("SmsSendPrePay", request) == reply
    assert await center.figures(brand_id) == (10, 6, 4)


async def test_a_caller_who_left_before_the_transaction_began_has_no_effect(center: CostCenter) -> None:
    """What still waits when its caller goes away is dropped; what is under way is finished."""
    brand_id = await center.brand(10)
    url = center.settings.database_url
    async with locked_lanes(url):
        under_way = center.call("SmsSendPrePay", brand_id=brand_id, **_FREEZE)
        await until(lambda: waiting_for_a_lane(url))
        fields: dict[str, Any] = {**_FREEZE, "brand_id": brand_id, "request_id": "left", "segments": 5}
        [late] = await outcomes_of([center.call("SmsSendPrePay", timeout=0.3, **fields)])
        assert _refusal(late)[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await under_way).segments == 1
    await center.freeze(brand_id, 1)
    assert await center.figures(brand_id) == (10, 2, 8)


async def test_health_needs_no_token(center: CostCenter) -> None:
    """Load balancers ask without one: the whole server and each service."""
    stub: Any = health_pb2_grpc.HealthStub(center.channel)
    for service in ("", "costcenter.v1.CostCenter", "costcenter.v1.CostCenterAdmin", "costcenter.v1.CostCenterJobs"):
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_names_every_service(center: CostCenter) -> None:
    """A generic client finds services and messages without a token."""
    channel: Any = center.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    messages: Any = reflection_pb2
    request = messages.ServerReflectionRequest
    asked: Any = iter([request(list_services=""), request(file_containing_symbol="costcenter.v1.CostCenter")])
    listed, found = [reply async for reply in stub.ServerReflectionInfo(asked, timeout=SECONDS)]
    names = {service.name for service in listed.list_services_response.service}
    assert names >= {
        "costcenter.v1.CostCenter",
        "costcenter.v1.CostCenterAdmin",
        "costcenter.v1.CostCenterJobs",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert found.file_descriptor_response.file_descriptor_proto


async def test_an_unknown_method_is_unimplemented(center: CostCenter) -> None:
    """With or without a token."""
    call: Any = center.channel.unary_unary("/costcenter.v1.CostCenter/Nothing")
    for metadata in ((), (("authorization", f"Bearer {ADMIN}"),)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", metadata=metadata, timeout=SECONDS)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_rubbish_on_the_wire_is_refused(center: CostCenter) -> None:
    """Bytes that are no message of ours end that call, not the server."""
    call: Any = center.channel.unary_unary("/costcenter.v1.CostCenter/GetBalance")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff", metadata=(("authorization", f"Bearer {ADMIN}"),), timeout=SECONDS)
    # The library answers before our code sees the call.
    assert caught.value.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
    await center.call("ListBrands")
