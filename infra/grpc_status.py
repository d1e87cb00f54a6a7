"""Refusals as gRPC statuses with google.rpc details, and back (https://google.aip.dev/193)."""

from __future__ import annotations

import math

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from infra.errors import Refusal

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_DETAILS_KEY = "grpc-status-details-bin"


def to_status(refusal: Refusal, domain: str) -> status_pb2.Status:
    """The refusal with ErrorInfo and, for violated fields, BadRequest, for a known wait RetryInfo."""
    status = status_pb2.Status(code=refusal.code.value[0], message=refusal.message)
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=domain, metadata=refusal.metadata)
    detail = any_pb2.Any()
    detail.Pack(info)
    status.details.append(detail)
    if refusal.fields:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=name, description=rule)
            for name, rule in refusal.fields.items()
        ]
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.BadRequest(field_violations=violations))
        status.details.append(detail)
    if refusal.retry_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(math.ceil(refusal.retry_seconds * 1_000))
        detail = any_pb2.Any()
        detail.Pack(retry)
        status.details.append(detail)
    return status


def to_trailers(refusal: Refusal, domain: str) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries the details."""
    return ((_DETAILS_KEY, to_status(refusal, domain).SerializeToString()),)


def from_error(error: grpc.aio.AioRpcError) -> Refusal:
    """The refusal that a server sent, or one made of the bare status."""
    reason, metadata, fields = error.code().name, {}, {}
    retry_seconds = None
    try:
        # The library's annotations know the synchronous call only; the asyncio error has what it reads.
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
    except ValueError:
        status = None
    for detail in status.details if status is not None else ():
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            fields = {violation.field: violation.description for violation in bad.field_violations}
        elif detail.Unpack(retry):
            retry_seconds = retry.retry_delay.ToMilliseconds() / 1_000
    return Refusal(
        error.code(),
        reason,
        error.details() or error.code().name,
        metadata=metadata,
        fields=fields,
        retry_seconds=retry_seconds,
    )


def from_item(code: int, reason: str, message: str, metadata: dict[str, str]) -> Refusal:
    """The refusal of one item of a batch."""
    return Refusal(_CODES.get(code, grpc.StatusCode.UNKNOWN), reason, message, metadata=metadata)
