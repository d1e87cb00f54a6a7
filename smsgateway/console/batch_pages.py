"""Batches and campaigns, and how far they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra import paging
from infra.authorization import Role
from infra.errors import not_found
from infra.identifiers import brand_of
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.smsgateway.v1 import campaigns_pb2 as campaigns_pb
from protos.smsgateway.v1 import sms_gateway_pb2 as gateway_pb
from smsgateway.asking import required_campaign
from smsgateway.campaigns import campaign_not_found
from smsgateway.console.balances import Progress, progress
from smsgateway.console.brand_pages import with_progress
from smsgateway.console.console import brand_of_path
from smsgateway.console.desk import Desk, both, page_token, place
from smsgateway.console.overview import Moving
from smsgateway.following import FINAL_STATES
from smsgateway.schema import MessageState
from smsgateway.store import overview as store
from smsgateway.store import pausing
from smsgateway.store.pausing import SeenCampaign

_MESSAGES_SHOWN: Final = 20
# A larger batch is counted after its page has come, which is not to wait for that.
_COUNTED_WITH_PAGE_MAX: Final = 10_000
# Of a token that holds for some brands, so many of them are looked through for batches that are not done.
_BRANDS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class BatchNow:
    """A batch with its messages by state, if they are counted."""

    batch: gateway_pb.Batch
    progress: Progress
    counted: bool

    @property
    def is_final(self) -> bool:
        """Whether all of its messages are known to be."""
        return self.counted and all(MessageState(count.state) in FINAL_STATES for count in self.batch.states)


@dataclass(frozen=True, slots=True)
class CampaignNow:
    """A campaign and how far it is."""

    campaign: SeenCampaign
    progress: Progress


def routes(desk: Desk) -> list[Route]:
    """The routes."""
    batches, campaigns = _BatchPages(desk), _CampaignPages(desk)
    return [
        Route("/batches", batches.running),
        Route("/batches/{batch_id}", batches.batch),
        Route("/batches/{batch_id}/live", batches.batch_live),
        Route("/brands/{brand_id}/batches", batches.of_brand),
        Route("/brands/{brand_id}/campaigns", campaigns.of_brand),
        Route("/brands/{brand_id}/campaigns/{campaign_id:path}", campaigns.campaign),
    ]


class _BatchPages:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._console = desk.console

    async def running(self, request: Request) -> Response:
        """Batches of all brands that are not done."""
        self._console.require(request, Role.VIEWER)
        after = _moving_place(page_token(request))
        size = self._desk.settings.console_rows
        moving = await self._moving(request, after, size + 1)
        token = _moving_token(moving[size - 1]) if len(moving) > size else ""
        return self._desk.page(
            request,
            "batches_part.html" if "live" in request.query_params else "batches.html",
            moving=moving[:size],
            next_url=self._desk.next_url(request, token),
            first_url=self._desk.first_url(request),
        )

    async def of_brand(self, request: Request) -> Response:
        """All batches of a brand."""
        brand_id, brand = await _brand(self._desk, request)
        reply = await self._console.gateway(request).ListBatches(
            gateway_pb.ListBatchesRequest(
                brand_id=brand_id,
                page_size=self._desk.settings.console_rows,
                page_token=place(request, brand_id, brand.time_zone),
            )
        )
        return self._desk.page(
            request,
            "brand_batches_part.html" if "live" in request.query_params else "brand_batches.html",
            brand=brand,
            brand_id=brand_id,
            day=request.query_params.get("day", ""),
            batches=await with_progress(self._desk, reply.batches),
            next_url=self._desk.next_url(request, reply.next_page_token),
            first_url=self._desk.first_url(request),
        )

    async def batch(self, request: Request) -> Response:
        """One batch with its messages."""
        now = await self._batch(request, counted_max=_COUNTED_WITH_PAGE_MAX)
        reply = await self._console.gateway(request).ListMessages(
            gateway_pb.ListMessagesRequest(
                brand_id=now.batch.brand_id,
                batch_id=now.batch.batch_id,
                page_size=_MESSAGES_SHOWN,
                page_token=page_token(request),
            )
        )
        return self._desk.page(
            request,
            "batch.html",
            now=now,
            batch=now.batch,
            messages=reply.messages,
            next_url=self._desk.next_url(request, reply.next_page_token),
            first_url=self._desk.first_url(request),
        )

    async def batch_live(self, request: Request) -> Response:
        """The part of it that moves."""
        now = await self._batch(request)
        return self._desk.page(request, "batch_live.html", now=now, batch=now.batch)

    async def _batch(self, request: Request, *, counted_max: int | None = None) -> BatchNow:
        batch_id = request.path_params["batch_id"]
        brand_id = brand_of(batch_id)
        if not brand_id:
            raise not_found("BATCH_NOT_FOUND", "there is no such batch")
        self._desk.view(request, brand_id)

        gateway = self._console.gateway(request)

        async def look() -> BatchNow:
            asked = gateway_pb.GetBatchRequest(batch_id=batch_id, without_states=counted_max is not None)
            reply = await gateway.GetBatch(asked)
            counted = counted_max is None or reply.batch.accepted <= counted_max
            if counted and asked.without_states:
                reply = await gateway.GetBatch(gateway_pb.GetBatchRequest(batch_id=batch_id))
            ((batch, how_far),) = await with_progress(self._desk, [reply.batch])
            return BatchNow(batch, how_far, counted)

        return await self._desk.shared(("batch", batch_id, counted_max), look)

    async def _moving(self, request: Request, after: tuple[int, str], limit: int) -> list[Moving]:
        allowed = self._console.principal(request).brand_ids
        if allowed is None:
            key = ("moving", after)
            return await self._desk.shared(key, lambda: self._desk.overlook.moving(after=after, limit=limit))
        found: list[Moving] = []
        for brand_id in sorted(allowed)[:_BRANDS_MAX]:
            if brand_id >= after[0] and len(found) < limit:
                found += await self._desk.overlook.moving(brand_id=brand_id, after=after, limit=limit - len(found))
        return found


class _CampaignPages:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._console = desk.console

    async def of_brand(self, request: Request) -> Response:
        """A brand's campaigns."""
        brand_id, brand = await _brand(self._desk, request)
        reply = await self._console.campaigns(request).ListCampaigns(
            campaigns_pb.ListCampaignsRequest(
                brand_id=brand_id, page_size=self._desk.settings.console_rows, page_token=page_token(request)
            )
        )
        return self._desk.page(
            request,
            "campaigns.html",
            brand=brand,
            brand_id=brand_id,
            campaigns=reply.campaigns,
            next_url=self._desk.next_url(request, reply.next_page_token),
            first_url=self._desk.first_url(request),
        )

    async def campaign(self, request: Request) -> Response:
        """One campaign with its batches."""
        brand_id = brand_of_path(request)
        self._desk.view(request, brand_id)
        campaign_id = required_campaign(request.path_params["campaign_id"])
        now, listed = await both(
            self._campaign(brand_id, campaign_id),
            self._console.gateway(request).ListBatches(
                gateway_pb.ListBatchesRequest(
                    brand_id=brand_id,
                    campaign_id=campaign_id,
                    page_size=self._desk.settings.console_rows,
                    page_token=page_token(request),
                )
            ),
        )
        return self._desk.page(
            request,
            "campaign_live.html" if "live" in request.query_params else "campaign.html",
            brand_id=brand_id,
            now=now,
            campaign=now.campaign,
            batches=await with_progress(self._desk, listed.batches),
            next_url=self._desk.next_url(request, listed.next_page_token),
            first_url=self._desk.first_url(request),
        )

    async def _campaign(self, brand_id: int, campaign_id: str) -> CampaignNow:
        """By its dispatches: to count a million messages each time would cost what the campaign needs itself."""

        async def look() -> CampaignNow:
            async with self._desk.reads.connection() as connection:
                found = await pausing.find_campaign(connection, brand_id, campaign_id)
                if found is None:
                    raise campaign_not_found()
                dispatched = await store.dispatched_of_campaign(connection, brand_id, campaign_id)
            return CampaignNow(found, progress(found.accepted, dispatched))

        return await self._desk.shared(("campaign", brand_id, campaign_id), look)


async def _brand(desk: Desk, request: Request) -> tuple[int, admin_pb.Brand]:
    brand_id = brand_of_path(request)
    desk.view(request, brand_id)
    reply = await desk.console.admin(request).GetBrand(admin_pb.GetBrandRequest(brand_id=brand_id))
    return brand_id, reply.brand


def _moving_token(moving: Moving) -> str:
    return paging.encode_token(f"{moving.batch.brand_id} {moving.batch.batch_id}")


def _moving_place(token: str) -> tuple[int, str]:
    """Brand and batch of a token. Raises INVALID_ARGUMENT for none of ours."""
    if not token:
        return 0, ""
    brand_id, _, batch_id = paging.decode_token(token).partition(" ")
    if not brand_id.isascii() or not brand_id.isdigit() or len(brand_id) > 18 or not brand_of(batch_id):
        raise paging.not_ours()
    return int(brand_id), batch_id
