"""Between the wire and the ledger: replies as messages, moments as timestamps, the numbers of idempotency keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
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
from costcenter.statement import Balance, Place, Statement, StatementLine
from costcenter.statement import StatementKind as Kind
from infra import paging
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
_MICROSECOND = timedelta(microseconds=1)


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


def freeze_key(place: tuple[datetime, str] | None) -> str:
    """The key of a page of freezes behind an end and a number; empty for none."""
    return "" if place is None else f"{_microseconds(place[0])} {place[1]}"


def freeze_place(token: str) -> tuple[datetime, str] | None:
    """The end and the number that a page token of ListFreezes holds; None for an empty one. Raises INVALID_ARGUMENT
    (BAD_REQUEST) for none of ours.
    """
    if not token:
        return None
    end, _, order_no = paging.decode_token(token).partition(" ")
    if not end.isdecimal() or len(end) > 18:
        raise paging.not_ours()
    try:
        return _moment(int(end)), order_no
    except OverflowError:
        raise paging.not_ours() from None


def statement_page(
    statement: Statement | None, lines: Sequence[StatementLine], following: Place | None
) -> pb.GetStatementResponse:
    """Reply to GetStatement: the sums in the first page, lines, and where the next page starts."""
    key = ""
    if following is not None:
        moments = (_microseconds(following.end), _microseconds(following.at))
        numbers = (*moments, following.record_no, following.after.total, following.after.frozen)
        key = ".".join(map(str, numbers))
    return pb.GetStatementResponse(
        statement=None if statement is None else _statement_message(statement),
        lines=[_line_message(line) for line in lines],
        next_page_token=paging.next_token(key),
    )


def statement_place(numbers: Sequence[int]) -> Place:
    """The place that a page token of GetStatement holds. Raises INVALID_ARGUMENT (BAD_REQUEST) for none of ours."""
    end, at, record_no, total, frozen = numbers
    try:
        return Place(_moment(end), _moment(at), record_no, Balance(total, frozen))
    except OverflowError:
        raise paging.not_ours() from None


def _statement_message(statement: Statement) -> pb.Statement:
    sums = statement.sums
    message = pb.Statement(
        brand_id=statement.brand_id,
        time_zone=statement.time_zone,
        to=timestamp(statement.period.end),
        closed=statement.closed,
        opening=_balance_message(statement.opening),
        closing=_balance_message(statement.closing),
        purchases=sums.of(Kind.PURCHASE),
        grants=sums.of(Kind.GRANT),
        refunds=sums.of(Kind.REFUND),
        payments=sums.of(Kind.PAYMENT),
        expiries=sums.of(Kind.EXPIRE, Kind.EXPIRE_BACK),
        claw_backs=sums.of(Kind.CLAW_BACK),
        freezes=sums.of(Kind.FREEZE),
        releases=sums.of(Kind.RELEASE),
        time_outs=sums.of(Kind.TIME_OUT),
        records=sums.records,
    )
    # `from` is a word of Python's.
    getattr(message, "from").CopyFrom(timestamp(statement.period.start))
    return message


def _balance_message(balance: Balance) -> pb.StatementBalance:
    return pb.StatementBalance(total=balance.total, frozen=balance.frozen, available=balance.total - balance.frozen)


def _line_message(line: StatementLine) -> pb.StatementLine:
    record = line.record
    total_change, frozen_change = record.change
    return pb.StatementLine(
        record_no=record.record_no,
        at=timestamp(record.at),
        kind=record.kind,  # type: ignore[arg-type]
        number=record.number,
        request_id=record.request_id,
        message_id=record.message_id,
        sms_type=record.sms_type,  # type: ignore[arg-type]
        segments=record.segments,
        lines=[pb.Line(package_id=package_id, segments=segments) for package_id, segments in record.lines],
        total_change=total_change,
        frozen_change=frozen_change,
        total=line.after.total,
        frozen=line.after.frozen,
    )


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)
