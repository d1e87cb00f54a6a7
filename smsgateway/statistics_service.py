"""The gRPC service `smsgateway.v1.Statistics`: it translates, others decide."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from infra import paging
from infra.authorization import Role, current_principal
from infra.errors import invalid_fields
from infra.grpc_server import Permissions
from protos.smsgateway.v1 import statistics_pb2, statistics_pb2_grpc
from smsgateway.usage import FIGURES, Key, Unit, Usage
from smsgateway.usage_reading import Question, UsageReader

SERVICE = statistics_pb2.DESCRIPTOR.services_by_name["Statistics"].full_name

PERMISSIONS: Permissions = {f"/{SERVICE}/GetUsage": frozenset({Role.VIEWER})}

Context = grpc.aio.ServicerContext[Any, Any]


class StatisticsService(statistics_pb2_grpc.StatisticsServicer):
    """The RPCs; their errors are documented in the proto."""

    def __init__(self, reader: UsageReader) -> None:
        self._reader = reader

    async def GetUsage(
        self, request: statistics_pb2.GetUsageRequest, context: Context
    ) -> statistics_pb2.GetUsageResponse:
        """A page of usage."""
        principal = current_principal()
        size = paging.page_size(request.page_size)
        query = self._reader.check(_question(request), principal)
        after = _key(request.page_token)
        found = await self._reader.read(query, principal, after=after, limit=size + 1)
        return statistics_pb2.GetUsageResponse(
            usage=[_usage(each) for each in found[:size]],
            next_page_token=_token(found[size - 1].key) if len(found) > size else "",
            time_zone=query.zone,
        )


def _question(request: statistics_pb2.GetUsageRequest) -> Question:
    unit = request.unit or Unit.DAY
    if unit not in set(Unit):
        raise invalid_fields({"unit": "must be hour (1), day (2) or month (3)"})
    return Question(
        brand_id=request.brand_id,
        start=_moment(request, "from"),
        end=_moment(request, "to"),
        unit=Unit(unit),
        zone=request.time_zone,
        sms_types=list(request.sms_types),
        accounts=list(request.carrier_accounts),
        by_type=request.by_type,
        by_account=request.by_carrier,
        sum_brands=request.sum_brands,
    )


def _moment(request: statistics_pb2.GetUsageRequest, field: str) -> datetime | None:
    if not request.HasField(field):  # type: ignore[arg-type] # `from` and `to`
        return None
    try:
        moment: datetime = getattr(request, field).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise invalid_fields({field: "must be a moment from 1970 to 9999"}) from None
    return moment


def _token(key: Key) -> str:
    brand_id, start, sms_type, account = key
    return paging.encode_token(f"{brand_id}.{int(start.timestamp())}.{sms_type}.{account}")


def _key(token: str) -> Key | None:
    if not token:
        return None
    parts = paging.decode_token(token).split(".", 3)
    if len(parts) != 4 or not all(part.isdecimal() and len(part) <= 19 for part in parts[:3]):
        raise paging.not_ours()
    brand_id, seconds, sms_type = (int(part) for part in parts[:3])
    if brand_id >= 1 << 63 or seconds > 253_402_300_799 or sms_type > 3:
        raise paging.not_ours()
    return brand_id, datetime.fromtimestamp(seconds, UTC), sms_type, parts[3]


def _usage(usage: Usage) -> statistics_pb2.Usage:
    return statistics_pb2.Usage(
        brand_id=usage.brand_id,
        start=_timestamp(usage.start),
        sms_type=usage.sms_type,  # type: ignore[arg-type] # the record holds the enum's number
        carrier_account=usage.account,
        sent=usage.figures.sent,
        recipients=usage.recipients,
        recipients_at=_timestamp(usage.counted_at),
        **{name: getattr(usage.figures, name) for name in FIGURES},
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
