"""What operators ask of parked work, translated and validated. Every violated field of a call is named at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from infra import paging
from infra.errors import invalid_fields
from infra.identifiers import LENGTH, brand_of
from protos.smsgateway.v1 import sms_gateway_pb2
from smsgateway.parked import ParkedKind
from smsgateway.store.parked import Key, Page, ParkedRow

_IDS_MAX = 1_000
_AUTHOR_CHARACTERS_MAX = 100
_REASON_CHARACTERS_MAX = 500
_AGE_SECONDS_MAX = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KIND_RULE = "must be DISPATCH, OUTBOX, RECEIPT or WEBHOOK"


def page(request: sms_gateway_pb2.ListParkedRequest) -> tuple[ParkedKind, Page]:
    """The page of a call, one row longer than asked for. Raises INVALID_ARGUMENT with every field that breaks its
    rule.
    """
    violations: dict[str, str] = {}
    kind = _kind(request.kind, violations)
    if request.brand_id < 0 or (request.brand_id and kind is ParkedKind.RECEIPT):
        violations["brand_id"] = "must be 0 or a brand; receipts have none"
    age = request.older_than.seconds + request.older_than.nanos / 1e9
    if not 0 <= age <= _AGE_SECONDS_MAX:
        violations["older_than"] = f"must be 0 to {_AGE_SECONDS_MAX} s"
    if violations or kind is None:
        raise invalid_fields(violations)
    after_at, after_id = _place(request.page_token)
    return kind, Page(request.brand_id, age, after_at, after_id, paging.page_size(request.page_size) + 1)


def token_after(row: ParkedRow) -> str:
    """The token of the page after a row."""
    return paging.encode_token(f"{(row.created_at - _EPOCH) // timedelta(microseconds=1)}.{row.parked_id}")


def chosen(
    request: sms_gateway_pb2.RetryParkedRequest | sms_gateway_pb2.DropParkedRequest,
) -> tuple[ParkedKind, list[Key]]:
    """Kind and (brand, id) of what a call names, without ids that are none of ours. Raises INVALID_ARGUMENT with every
    field that breaks its rule.
    """
    violations: dict[str, str] = {}
    kind = _kind(request.kind, violations)
    if not 1 <= len(request.parked_ids) <= _IDS_MAX:
        violations["parked_ids"] = f"must be 1 to {_IDS_MAX} ids"
    for field, text, longest in (
        ("author", request.author, _AUTHOR_CHARACTERS_MAX),
        ("reason", request.reason, _REASON_CHARACTERS_MAX),
    ):
        if not 1 <= len(text) <= longest or not text.isprintable() or not text.strip():
            violations[field] = f"must be 1 to {longest} printable characters"
    if violations or kind is None:
        raise invalid_fields(violations)
    # The id of a webhook's event begins with that of its subject.
    length = LENGTH if kind is ParkedKind.WEBHOOK else None
    brands = {parked_id: brand_of(parked_id[:length]) for parked_id in request.parked_ids}
    return kind, [(brand_id, parked_id) for parked_id, brand_id in brands.items() if brand_id is not None]


def _kind(number: int, violations: dict[str, str]) -> ParkedKind | None:
    try:
        return ParkedKind(number)
    except ValueError:
        violations["kind"] = _KIND_RULE
        return None


def _place(token: str) -> tuple[datetime, str]:
    """The moment and the id that a page begins after."""
    if not token:
        return _EPOCH, ""
    moment, _, parked_id = paging.decode_token(token).partition(".")
    if not (moment.isascii() and moment.isdecimal() and len(moment) <= 16):
        raise paging.not_ours()
    return _EPOCH + timedelta(microseconds=int(moment)), parked_id
