"""What the wire brings as plain values, as the oracle speaks them, and how the two are compared."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from ledger_oracle import Refused, Reply

from infra.errors import Refusal
from infra.grpc_status import from_error, from_item

_MONEY = {"price"}


async def outcome_of(call: Any) -> Reply | Refusal:
    """The reply of a call as plain values, or its refusal. A status without details has its name for a reason."""
    try:
        return plain(await call)
    except grpc.aio.AioRpcError as error:
        return from_error(error)


def plain(message: Message) -> Reply:
    """A message as plain values; messages and optional fields that are not set are None."""
    return {field.name: _plain_field(message, field) for field in message.DESCRIPTOR.fields}


def _plain_field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        if field.has_presence and not message.HasField(field.name):
            return None
        return list(value) if field.is_repeated else value
    if field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.is_repeated:
        return [plain_value(part) for part in value]
    return plain_value(value) if message.HasField(field.name) else None


def plain_value(value: Message) -> Any:
    """A message as plain values, a moment as datetime. Raises ValueError for a moment that datetime cannot hold."""
    if value.DESCRIPTOR.full_name == "google.protobuf.Timestamp":
        moment: datetime = value.ToDatetime(tzinfo=UTC)  # type: ignore[attr-defined]
        return moment
    return plain(value)


def difference(expected: Any, actual: Any, path: str = "") -> str:
    """Where an outcome is not the oracle's, in words; empty: nowhere. What the oracle leaves out must not be set."""
    if isinstance(expected, Refused) or isinstance(actual, Refusal):
        return refusal_difference(expected, actual, path)
    if isinstance(expected, dict) and isinstance(actual, dict):
        if isinstance(actual.get("refusal"), dict):
            refusal = actual["refusal"]
            found = from_item(refusal["code"], refusal["reason"], refusal["message"], refusal["metadata"])
            return refusal_difference(expected.get("refusal"), found, path)
        names = [*expected, *(name for name in actual if name not in expected)]
        parts = (difference(expected.get(name), actual.get(name), f"{path}.{name}") for name in names)
        return next(filter(None, parts), "")
    if isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return f"{path}: {len(expected)} expected, {len(actual)} there"
        pairs = enumerate(zip(expected, actual, strict=True))
        return next(filter(None, (difference(one, other, f"{path}[{index}]") for index, (one, other) in pairs)), "")
    if path.rpartition(".")[2] in _MONEY:
        actual = Decimal(actual or 0)
    if expected == actual or (not expected and not actual):
        return ""
    return f"{path}: expected {expected!r}, got {actual!r}"


def refusal_difference(expected: Any, actual: Any, path: str = "") -> str:
    """Where a refusal is not the oracle's: in its reason, its status or one of its figures."""
    if not isinstance(expected, Refused) or not isinstance(actual, Refusal):
        return f"{path}: expected {expected!r}, got {actual!r}"
    said, found = (expected.status, expected.reason), (actual.code.name, actual.reason)
    if said != found:
        return f"{path}: expected {said}, got {found}: {actual.message}"
    for name, figure in expected.figures.items():
        there = actual.metadata.get(name, "")
        if (Decimal(there or "NaN") != Decimal(figure)) if name in _MONEY else there != figure:
            return f"{path} {expected.reason}: {name} expected {figure}, got {there}"
    return ""


def is_unknown(outcome: Reply | Refusal) -> bool:
    """Whether an outcome leaves open what became of the call; the same call tells."""
    unknown = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
    return isinstance(outcome, Refusal) and outcome.code in unknown
