"""What the wire brings, checked and turned into operations. Each refusal names the field and the rule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from hashlib import blake2b

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from costcenter.operations import (
    ClawBack,
    CreateOrder,
    Extend,
    FreezeSegments,
    Grant,
    Operation,
    OrderPaid,
    Pay,
    PutBrand,
    RecordReceipt,
    RequestRelease,
    SendStatus,
)
from costcenter.statement import PERIOD_MAX
from infra import time_zones
from infra.errors import invalid, invalid_fields
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import cost_center_pb2 as pb

SEGMENTS_MAX = 1_000_000_000
IDENTIFIER_LENGTH_MAX = 64
NAME_LENGTH_MAX = 100
FAILED_MESSAGES_MAX = 10_000
# Thirty years: longer than anything lasts here, and short enough for any moment of today to be counted on from.
DURATION_SECONDS_MAX = 1_000_000_000
_NANOS = 1_000_000_000
_CURRENCY = re.compile(r"[A-Z]{3}")
# Digits of other scripts are digits to `\d`.
_PRICE = re.compile(r"[0-9]{1,12}(\.[0-9]{1,4})?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def fingerprint(request: Message) -> bytes:
    """A hash of a call's content: the same for the same content, whoever sends it."""
    return blake2b(request.SerializeToString(deterministic=True), digest_size=16).digest()


def brand_id(value: int) -> int:
    """A brand's number."""
    if value < 1:
        raise invalid(brand_id="must be at least 1")
    return value


def identifier(field: str, value: str) -> str:
    """An identifier that a caller chose."""
    # What cannot be printed cannot be searched for, and PostgreSQL takes no NUL.
    if not 1 <= len(value) <= IDENTIFIER_LENGTH_MAX or not value.isprintable():
        raise invalid_fields({field: f"must be 1 to {IDENTIFIER_LENGTH_MAX} printable characters"})
    return value


def segments(value: int, *, field: str = "segments") -> int:
    """A number of segments."""
    if not 1 <= value <= SEGMENTS_MAX:
        raise invalid_fields({field: f"must be 1 to {SEGMENTS_MAX}"})
    return value


def sms_type(value: int) -> int:
    """A known type."""
    if value not in {1, 2, 3}:
        raise invalid(sms_type="must be SMS_TYPE_VERIFICATION, SMS_TYPE_NOTIFICATION or SMS_TYPE_MARKETING")
    return value


def sms_types(field: str, values: Sequence[int]) -> tuple[int, ...]:
    """Known types, each once; none: all."""
    if not set(values) <= {1, 2, 3}:
        raise invalid_fields({field: "must hold known types only"})
    return tuple(sorted(set(values)))


def text(field: str, value: str, length_max: int) -> str:
    """A text for people."""
    if not 1 <= len(value.strip()) <= length_max or "\0" in value:
        raise invalid_fields({field: f"must be 1 to {length_max} characters"})
    return value.strip()


def duration(field: str, value: Duration) -> timedelta:
    """A duration of at least a microsecond."""
    in_range = 0 <= value.seconds <= DURATION_SECONDS_MAX and 0 <= value.nanos < _NANOS
    if not in_range or (value.seconds, value.nanos) < (0, 1_000):
        raise invalid_fields({field: f"must be 1 microsecond to {DURATION_SECONDS_MAX} seconds"})
    return timedelta(seconds=value.seconds, microseconds=value.nanos // 1_000)


def moment(field: str, value: Timestamp) -> datetime:
    """A moment, to the microsecond."""
    try:
        if not 0 <= value.nanos < _NANOS:
            raise OverflowError
        return _EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1_000)
    except OverflowError:
        raise invalid_fields({field: "must be a moment of the years 1 to 9999, nanos 0 to 999999999"}) from None


def period(request: pb.GetStatementRequest) -> tuple[str, datetime | None, datetime | None]:
    """The period of a statement: a month, or a start and perhaps an end. Whether the month is one, its reader sees."""
    has_start, has_end = request.HasField("from"), request.HasField("to")
    if request.month:
        if has_start or has_end:
            raise invalid(month="must not be given together with from and to")
        return request.month, None, None
    if not has_start:
        raise invalid_fields({"from" if has_end else "month": "is required, or from and to in its place"})
    # `from` is a word of Python's.
    start = moment("from", getattr(request, "from"))
    end = moment("to", request.to) if has_end else None
    if end is not None and end <= start:
        raise invalid(to="must be after from")
    if end is not None and end - start > PERIOD_MAX:
        raise invalid(to=f"must be at most {PERIOD_MAX.days} days after from")
    return "", start, end


def decimal(field: str, value: str) -> Decimal:
    """An amount of money, not negative, at most four places."""
    if not _PRICE.fullmatch(value):
        raise invalid_fields({field: "must be a decimal such as 4500.00 with at most 12 digits and 4 places"})
    try:
        return Decimal(value)
    except InvalidOperation:  # pragma: no cover - the pattern admits decimals only
        raise invalid_fields({field: "must be a decimal"}) from None


def currency(value: str, *, field: str = "currency") -> str:
    """A currency's code."""
    if not _CURRENCY.fullmatch(value):
        raise invalid_fields({field: "must be an ISO 4217 code such as CNY"})
    return value


def freeze(request: pb.SmsSendPrePayRequest) -> FreezeSegments:
    """SmsSendPrePay as an operation."""
    return FreezeSegments(
        brand_id(request.brand_id),
        identifier("request_id", request.request_id),
        fingerprint(request),
        sms_type(request.sms_type),
        segments(request.segments),
        duration("time_to_live", request.time_to_live) if request.HasField("time_to_live") else None,
    )


def pay(request: pb.SmsSendPayRequest) -> Pay:
    """SmsSendPay as an operation."""
    return Pay(
        brand_id(request.brand_id),
        identifier("request_id", request.request_id),
        fingerprint(request),
        identifier("order_no", request.order_no),
        segments(request.segments),
    )


def release(request: pb.SmsReleaseFreezeNumRequest) -> RequestRelease:
    """SmsReleaseFreezeNum as an operation."""
    if not 0 <= request.segments <= SEGMENTS_MAX:
        raise invalid(segments=f"must be 0 (all that is open) to {SEGMENTS_MAX}")
    return RequestRelease(
        brand_id(request.brand_id),
        identifier("request_id", request.request_id),
        fingerprint(request),
        identifier("order_no", request.order_no),
        request.segments,
    )


def extend(request: pb.ExtendFreezeRequest) -> Extend:
    """ExtendFreeze as an operation."""
    return Extend(
        brand_id(request.brand_id),
        identifier("request_id", request.request_id),
        fingerprint(request),
        identifier("order_no", request.order_no),
        duration("time_to_live", request.time_to_live),
    )


def send_status(request: pb.SmsSendStatusCallBackRequest) -> SendStatus:
    """SmsSendStatusCallBack as an operation."""
    if len(request.failed) > FAILED_MESSAGES_MAX:
        raise invalid(failed=f"must name at most {FAILED_MESSAGES_MAX} messages")
    failed = [
        (
            identifier(f"failed[{index}].message_id", message.message_id),
            segments(message.segments, field=f"failed[{index}].segments"),
        )
        for index, message in enumerate(request.failed)
    ]
    if len({message_id for message_id, _ in failed}) != len(failed):
        raise invalid(failed="must name each message once")
    return SendStatus(
        brand_id(request.brand_id),
        identifier("request_id", request.request_id),
        fingerprint(request),
        identifier("payment_no", request.payment_no),
        failed,
    )


def receipt(request: pb.SmsReceiptStatusCallBackRequest) -> RecordReceipt:
    """SmsReceiptStatusCallBack as an operation."""
    if request.state not in {1, 2, 3, 4}:
        raise invalid(state="must be a known state")
    if len(request.carrier_code) > IDENTIFIER_LENGTH_MAX or "\0" in request.carrier_code:
        raise invalid(carrier_code=f"must be at most {IDENTIFIER_LENGTH_MAX} characters")
    return RecordReceipt(
        brand_id(request.brand_id),
        identifier("request_id", request.request_id),
        fingerprint(request),
        identifier("payment_no", request.payment_no),
        identifier("message_id", request.message_id),
        segments(request.segments),
        request.state,
        request.carrier_code,
        moment("reported_at", request.reported_at) if request.HasField("reported_at") else None,
    )


def create_order(request: pb.CreatePackageOrderRequest) -> CreateOrder:
    """CreatePackageOrder as an operation."""
    return CreateOrder(
        brand_id(request.brand_id),
        identifier("request_id", request.request_id),
        fingerprint(request),
        identifier("offer_id", request.offer_id),
        decimal("price", request.price) if request.price else None,
        currency(request.currency) if request.currency else "",
    )


def order_paid(request: pb.PackagePaidCallBackRequest) -> OrderPaid:
    """PackagePaidCallBack as an operation."""
    return OrderPaid(
        brand_id(request.brand_id),
        "",
        b"",
        identifier("package_order_no", request.package_order_no),
        identifier("payment_reference", request.payment_reference),
        decimal("amount", request.amount),
        currency(request.currency),
    )


def adjust(request: admin_pb.AdjustPackageRequest) -> Operation:
    """AdjustPackage as an operation."""
    common = (
        brand_id(request.brand_id),
        identifier("request_id", request.request_id),
        fingerprint(request),
        text("author", request.author, 100),
        text("reason", request.reason, 500),
    )
    match request.WhichOneof("adjustment"):
        case "grant":
            grant = request.grant
            return Grant(
                *common,
                segments(grant.segments, field="grant.segments"),
                moment("grant.expires_at", grant.expires_at) if grant.HasField("expires_at") else None,
                sms_types("grant.sms_types", grant.sms_types),
            )
        case "claw_back":
            claw_back = request.claw_back
            return ClawBack(
                *common,
                _package_id("claw_back.package_id", claw_back.package_id),
                segments(claw_back.segments, field="claw_back.segments"),
            )
        case "return_package":
            return ClawBack(*common, _package_id("return_package.package_id", request.return_package.package_id), None)
    raise invalid(adjustment="must be grant, claw_back or return_package")


def put_brand(request: admin_pb.PutBrandRequest) -> PutBrand:
    """PutBrand as an operation."""
    if request.status not in {0, 1, 2, 3}:
        raise invalid(status="must be a known status")
    if request.HasField("time_zone") and request.time_zone not in time_zones.known():
        raise invalid(time_zone=time_zones.RULE)
    return PutBrand(
        brand_id(request.brand_id),
        "",
        b"",
        text("name", request.name, NAME_LENGTH_MAX) if request.HasField("name") else None,
        request.status or None,
        request.time_zone if request.HasField("time_zone") else None,
        request.refund_undelivered if request.HasField("refund_undelivered") else None,
    )


def balance_filter(request: admin_pb.ListBalancesRequest) -> tuple[int, int | None, str]:
    """The filters of ListBalances: a status (0: any), fewer segments than what (None: any), how names begin."""
    if request.status not in {0, 1, 2, 3}:
        raise invalid(status="must be a known status")
    prefix = request.name_prefix
    if len(prefix) > NAME_LENGTH_MAX or not prefix.isprintable():
        raise invalid(name_prefix=f"must be at most {NAME_LENGTH_MAX} printable characters")
    if not request.HasField("available_below"):
        return request.status, None, prefix
    if request.available_below < 1:
        raise invalid(available_below="must be at least 1")
    return request.status, request.available_below, prefix


def _package_id(field: str, value: int) -> int:
    if value < 1:
        raise invalid_fields({field: "must be at least 1"})
    return value
