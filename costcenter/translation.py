"""Between the wire and the ledger: replies as messages, moments as timestamps, the numbers of idempotency keys."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from costcenter.lines import overlap
from costcenter.model import Freeze, Package, Payment, Refund
from costcenter.operations import (
    AdjustReply,
    ExtendReply,
    FreezeReply,
    OrderReply,
    PaidReply,
    PayReply,
    RefundReply,
    ReleaseReply,
)
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import cost_center_pb2 as pb


def timestamp(moment: datetime | None) -> Timestamp | None:
    """A moment as a Timestamp, exact to the microsecond; None stays None, which leaves a field unset."""
    if moment is None:
        return None
    # The library's own conversion goes through floating-point and calendars; this is called for every reply.
    delta = moment - _EPOCH
    return Timestamp(seconds=delta.days * 86_400 + delta.seconds, nanos=delta.microseconds * 1_000)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def order_reply(reply: OrderReply) -> pb.CreatePackageOrderResponse:
    """Reply to CreatePackageOrder."""
    return pb.CreatePackageOrderResponse(
        package_order_no=reply.package_order_no,
        segments=reply.segments,
        price=decimal_text(reply.price),
        currency=reply.currency,
        pay_before=timestamp(reply.pay_before),
    )


def paid_reply(reply: PaidReply) -> pb.PackagePaidCallBackResponse:
    """Reply to PackagePaidCallBack."""
    return pb.PackagePaidCallBackResponse(
        package_id=reply.package_id, segments=reply.segments, expires_at=timestamp(reply.expires_at)
    )


def freeze_reply(reply: FreezeReply) -> pb.SmsSendPrePayResponse:
    """Reply to SmsSendPrePay."""
    return pb.SmsSendPrePayResponse(
        order_no=reply.order_no, segments=reply.segments, expires_at=timestamp(reply.expires_at)
    )


def pay_reply(reply: PayReply) -> pb.SmsSendPayResponse:
    """Reply to SmsSendPay."""
    return pb.SmsSendPayResponse(payment_no=reply.payment_no, segments=reply.segments, open=reply.open)


def release_reply(reply: ReleaseReply) -> pb.SmsReleaseFreezeNumResponse:
    """Reply to SmsReleaseFreezeNum."""
    return pb.SmsReleaseFreezeNumResponse(release_no=reply.release_no)


def extend_reply(reply: ExtendReply) -> pb.ExtendFreezeResponse:
    """Reply to ExtendFreeze."""
    return pb.ExtendFreezeResponse(expires_at=timestamp(reply.expires_at))


def status_reply(reply: RefundReply) -> pb.SmsSendStatusCallBackResponse:
    """Reply to SmsSendStatusCallBack."""
    return pb.SmsSendStatusCallBackResponse(refunded=reply.refunded)


def receipt_reply(reply: RefundReply) -> pb.SmsReceiptStatusCallBackResponse:
    """Reply to SmsReceiptStatusCallBack."""
    return pb.SmsReceiptStatusCallBackResponse(refunded=reply.refunded)


def adjust_reply(reply: AdjustReply) -> admin_pb.AdjustPackageResponse:
    """Reply to AdjustPackage."""
    return admin_pb.AdjustPackageResponse(
        adjustment_no=reply.adjustment_no,
        package=pb.Package(
            package_id=reply.package_id,
            source=reply.source,  # type: ignore[arg-type]
            source_no=reply.source_no,
            granted=reply.granted,
            remaining=reply.remaining,
            held=reply.held,
            paid=reply.paid,
            refunded=reply.refunded,
            expired=reply.expired,
            sms_types=reply.sms_types,  # type: ignore[arg-type]
            expires_at=timestamp(reply.expires_at),
            created_at=timestamp(reply.created_at),
        ),
    )


# For each kind of operation that has idempotency keys: its reply on the wire, which is what is kept with the key.
REPLIES: dict[int, tuple[Callable[[Any], Message], type[Message]]] = {
    1: (order_reply, pb.CreatePackageOrderResponse),
    2: (freeze_reply, pb.SmsSendPrePayResponse),
    3: (pay_reply, pb.SmsSendPayResponse),
    4: (release_reply, pb.SmsReleaseFreezeNumResponse),
    5: (extend_reply, pb.ExtendFreezeResponse),
    6: (status_reply, pb.SmsSendStatusCallBackResponse),
    7: (receipt_reply, pb.SmsReceiptStatusCallBackResponse),
    8: (adjust_reply, admin_pb.AdjustPackageResponse),
}


def decimal_text(value: object) -> str:
    """A decimal without the zeros that a column of four places adds beyond two."""
    text = f"{value:f}" if not isinstance(value, str) else value
    whole, point, fraction = text.partition(".")
    fraction = fraction.rstrip("0").ljust(2, "0")
    return f"{whole}.{fraction}" if point else f"{whole}.00"


def package_message(package: Package) -> pb.Package:
    """A package on the wire."""
    return pb.Package(
        package_id=package.package_id,
        source=package.source,  # type: ignore[arg-type]
        source_no=package.source_no,
        granted=package.granted,
        remaining=package.remaining,
        held=package.held,
        paid=package.paid,
        refunded=package.refunded,
        expired=package.expired,
        sms_types=package.sms_types,  # type: ignore[arg-type]
        expires_at=timestamp(package.expires_at),
        created_at=timestamp(package.created_at),
    )


def freeze_message(freeze: Freeze) -> pb.Freeze:
    """A freeze on the wire, with what became of each line."""
    end = freeze.open_end
    released_from = freeze.segments - freeze.released
    columns = zip(
        freeze.lines,
        overlap(freeze.lines, 0, freeze.paid),
        overlap(freeze.lines, freeze.paid, end),
        overlap(freeze.lines, end, released_from),
        overlap(freeze.lines, released_from, freeze.segments),
        strict=True,
    )
    return pb.Freeze(
        order_no=freeze.order_no,
        brand_id=freeze.brand_id,
        sms_type=freeze.sms_type,  # type: ignore[arg-type]
        segments=freeze.segments,
        paid=freeze.paid,
        released=freeze.released,
        timed_out=freeze.timed_out,
        open=freeze.open,
        lines=[
            pb.FreezeLine(
                package_id=line[0], segments=line[1], paid=paid, open=open_, timed_out=timed_out, released=released
            )
            for line, paid, open_, timed_out, released in columns
        ],
        created_at=timestamp(freeze.created_at),
        expires_at=timestamp(freeze.expires_at),
        request_id=freeze.request_id,
    )


def payment_message(payment: Payment) -> pb.Payment:
    """A payment on the wire."""
    return pb.Payment(
        payment_no=payment.payment_no,
        brand_id=payment.brand_id,
        order_no=payment.order_no,
        sms_type=payment.sms_type,  # type: ignore[arg-type]
        segments=payment.segments,
        refunded=payment.refunded,
        lines=[pb.Line(package_id=package_id, segments=segments) for package_id, segments in payment.lines],
        status=payment.status,  # type: ignore[arg-type]
        created_at=timestamp(payment.created_at),
        request_id=payment.request_id,
    )


def refund_message(refund: Refund) -> pb.Refund:
    """A refund on the wire."""
    lines, expired = [], 0
    for (_, segments), target in zip(refund.lines, refund.targets, strict=True):
        if target is None:
            expired += segments
        else:
            lines.append(pb.Line(package_id=target, segments=segments))
    return pb.Refund(
        message_id=refund.message_id,
        segments=refund.segments,
        lines=lines,
        expired=expired,
        cause=refund.cause,  # type: ignore[arg-type]
        created_at=timestamp(refund.created_at),
    )
