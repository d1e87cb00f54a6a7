"""The gRPC service `smsgateway.v1.Campaigns`: it translates, others decide."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from infra import paging
from infra.authorization import Role, current_principal
from infra.database import Database
from infra.grpc_server import Permissions
from protos.smsgateway.v1 import campaigns_pb2, campaigns_pb2_grpc, sms_gateway_pb2
from smsgateway import asking
from smsgateway.campaigns import CampaignKeeper, campaign_not_found
from smsgateway.store import listing
from smsgateway.store import pausing as store
from smsgateway.store.pausing import SeenCampaign

log = structlog.get_logger(__name__)

SERVICE = campaigns_pb2.DESCRIPTOR.services_by_name["Campaigns"].full_name

_VIEWER, _CONTROL = frozenset({Role.VIEWER}), frozenset({Role.SENDER, Role.OPERATOR})
PERMISSIONS: Permissions = {
    f"/{SERVICE}/ListCampaigns": _VIEWER,
    f"/{SERVICE}/GetCampaign": _VIEWER,
    f"/{SERVICE}/PauseCampaign": _CONTROL,
    f"/{SERVICE}/ResumeCampaign": _CONTROL,
    f"/{SERVICE}/CancelCampaign": _CONTROL,
}

Context = grpc.aio.ServicerContext[Any, Any]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class CampaignService(campaigns_pb2_grpc.CampaignsServicer):
    """The RPCs; their errors are documented in the proto."""

    def __init__(self, database: Database, keeper: CampaignKeeper) -> None:
        self._database = database
        self._keeper = keeper

    async def ListCampaigns(
        self, request: campaigns_pb2.ListCampaignsRequest, context: Context
    ) -> campaigns_pb2.ListCampaignsResponse:
        """A page of a brand's campaigns."""
        brand_id = _brand(request.brand_id)
        size = paging.page_size(request.page_size)
        before = _page_start(request.page_token)
        async with self._database.connection() as connection:
            found = await store.list_campaigns(connection, brand_id, before=before, limit=size + 1)
        return campaigns_pb2.ListCampaignsResponse(
            campaigns=[_campaign(brand_id, each) for each in found[:size]],
            next_page_token=_token_after(found[size - 1]) if len(found) > size else "",
        )

    async def GetCampaign(
        self, request: campaigns_pb2.GetCampaignRequest, context: Context
    ) -> campaigns_pb2.GetCampaignResponse:
        """One campaign with its counts."""
        brand_id, campaign_id = _brand(request.brand_id), asking.required_campaign(request.campaign_id)
        async with self._database.snapshot() as connection:
            found = await store.find_campaign(connection, brand_id, campaign_id)
            states = await listing.count_campaign(connection, brand_id, campaign_id)
        if found is None:
            raise campaign_not_found()
        campaign = _campaign(brand_id, found)
        campaign.states.extend(
            sms_gateway_pb2.StateCount(state=state, messages=messages)  # type: ignore[arg-type] # the enum's number
            for state, messages in states
        )
        return campaigns_pb2.GetCampaignResponse(campaign=campaign)

    async def PauseCampaign(
        self, request: campaigns_pb2.PauseCampaignRequest, context: Context
    ) -> campaigns_pb2.PauseCampaignResponse:
        """Pause a campaign."""
        brand_id, campaign_id = _brand(request.brand_id), asking.required_campaign(request.campaign_id)
        paused = await self._keeper.pause(brand_id, campaign_id)
        log.info("campaign paused", campaign_id=campaign_id, brand_id=brand_id, messages=paused.waiting)
        return campaigns_pb2.PauseCampaignResponse(paused=paused.waiting, in_flight=paused.in_flight)

    async def ResumeCampaign(
        self, request: campaigns_pb2.ResumeCampaignRequest, context: Context
    ) -> campaigns_pb2.ResumeCampaignResponse:
        """Go on with a campaign."""
        brand_id, campaign_id = _brand(request.brand_id), asking.required_campaign(request.campaign_id)
        resumed = await self._keeper.resume(brand_id, campaign_id)
        log.info("campaign resumed", campaign_id=campaign_id, brand_id=brand_id, messages=resumed)
        return campaigns_pb2.ResumeCampaignResponse(resumed=resumed)

    async def CancelCampaign(
        self, request: campaigns_pb2.CancelCampaignRequest, context: Context
    ) -> campaigns_pb2.CancelCampaignResponse:
        """Cancel a campaign."""
        brand_id, campaign_id = _brand(request.brand_id), asking.required_campaign(request.campaign_id)
        cancelled, not_cancelled = await self._keeper.cancel(brand_id, campaign_id)
        log.info("campaign cancelled", campaign_id=campaign_id, brand_id=brand_id, messages=cancelled)
        return campaigns_pb2.CancelCampaignResponse(cancelled=cancelled, not_cancelled=not_cancelled)


def _brand(brand_id: int) -> int:
    required = asking.required_brand(brand_id)
    current_principal().require_brand(required)
    return required


def _campaign(brand_id: int, found: SeenCampaign) -> campaigns_pb2.Campaign:
    created_at = Timestamp()
    created_at.FromDatetime(found.created_at)
    return campaigns_pb2.Campaign(
        brand_id=brand_id,
        campaign_id=found.campaign_id,
        created_at=created_at,
        paused=found.paused,
        cancelled=found.cancelled,
        batches=found.batches,
        accepted=found.accepted,
        segments=found.segments,
    )


def _token_after(campaign: SeenCampaign) -> str:
    microseconds = (campaign.created_at - _EPOCH) // timedelta(microseconds=1)
    return paging.encode_token(f"{microseconds} {campaign.campaign_id}")


def _page_start(token: str) -> tuple[datetime, str] | None:
    if not token:
        return None
    microseconds, _, campaign_id = paging.decode_token(token).partition(" ")
    if not microseconds.isdecimal() or len(microseconds) > 17 or not campaign_id:
        raise paging.not_ours()
    return _EPOCH + timedelta(microseconds=int(microseconds)), campaign_id
