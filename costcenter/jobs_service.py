"""The gRPC service CostCenterJobs: bounded pieces of work that the workers drive."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import timedelta
from typing import Any

import grpc
import structlog

from costcenter import store, validation
from costcenter.engine import Engine
from costcenter.lane import Outcome
from costcenter.metrics import DUE, RELEASES
from costcenter.operations import AppliedReply, ApplyRelease, BookDue, DueReply
from costcenter.settings import Settings
from infra.authorization import Role, current_principal
from infra.crash_points import reach
from infra.database import Database
from infra.errors import Refusal, invalid
from protos.costcenter.v1 import cost_center_jobs_pb2 as pb
from protos.costcenter.v1 import cost_center_jobs_pb2_grpc as rpc

log = structlog.get_logger(__name__)

SERVICE = "costcenter.v1.CostCenterJobs"
PERMISSIONS = {f"/{SERVICE}/{method}": frozenset({Role.BILLER}) for method in ("ApplyReleases", "BookDue", "CleanUp")}
WAIT_SECONDS_MAX = 30
# Requests are asked for by time, so one that another process recorded is seen within this time.
POLL_SECONDS = 0.25
# The lanes' portions of a sweep run side by side and count each other: only more than that is somebody else's work.
SWEPT_BESIDE = 3

Context = grpc.aio.ServicerContext[Any, Any]


class CostCenterJobsService(rpc.CostCenterJobsServicer):
    """Handlers. Any number of workers may call at once: what one has done is nothing to do for the next."""

    def __init__(self, engine: Engine, database: Database, settings: Settings) -> None:
        self._engine = engine
        self._database = database
        self._settings = settings
        self._sweeping = asyncio.Lock()

    async def ApplyReleases(self, request: pb.ApplyReleasesRequest, context: Context) -> pb.ApplyReleasesResponse:
        current_principal().require_all_brands()
        limit = _limit("limit", request.limit, 1_000, 5_000)
        wait = validation.duration("wait", request.wait).total_seconds() if request.HasField("wait") else 0
        if wait > WAIT_SECONDS_MAX:
            raise invalid(wait=f"must be at most {WAIT_SECONDS_MAX} s")
        deadline = time.monotonic() + wait
        while True:
            async with self._database.connection() as connection:
                due = await store.releases_due(connection, self._settings.clock_offset_seconds, limit)
            if due or time.monotonic() >= deadline or self._engine.stopping:
                return await self._apply_releases(due)
            await asyncio.sleep(POLL_SECONDS)

    async def _apply_releases(self, due: list[tuple[int, str, int]]) -> pb.ApplyReleasesResponse:
        operations = [ApplyRelease(brand_id, "", b"", release_no) for brand_id, release_no, _ in due]
        if not operations:
            return pb.ApplyReleasesResponse()
        reach("costcenter.release.found")
        outcomes = await self._engine.apply_all(operations)
        reach("costcenter.release.applied")
        segments, failed = 0, []
        for row, outcome in zip(due, outcomes, strict=True):
            if isinstance(outcome, AppliedReply):
                segments += outcome.segments
            else:
                failed.append((row, outcome.reason if isinstance(outcome, Refusal) else "INTERNAL"))
        if failed:
            await self._put_back(failed)
        applied = len(due) - len(failed)
        RELEASES.labels("applied").inc(applied)
        RELEASES.labels("put_back").inc(len(failed))
        return pb.ApplyReleasesResponse(applied=applied, put_back=len(failed), segments=segments)

    async def _put_back(self, failed: list[tuple[tuple[int, str, int], str]]) -> None:
        async with self._database.connection() as connection:
            now = await store.clock(connection, self._settings.clock_offset_seconds)
            rows = [
                (brand_id, release_no, now + self._delay(attempts), reason)
                for (brand_id, release_no, attempts), reason in failed
            ]
            await store.put_back_releases(connection, rows)
        log.warning("releases put back", releases=len(failed), reason=failed[0][1])

    def _delay(self, attempts: int) -> timedelta:
        first, longest = self._settings.release_retry_seconds, self._settings.release_retry_seconds_max
        # Jitter keeps what failed together from coming back together.
        return timedelta(seconds=min(first * 2 ** min(attempts, 30), longest) * random.uniform(0.8, 1.2))  # noqa: S311

    async def BookDue(self, request: pb.BookDueRequest, context: Context) -> pb.BookDueResponse:
        current_principal().require_all_brands()
        limit = _limit("brand_limit", request.brand_limit, 1_000, 10_000)
        deadline = time.monotonic() + self._settings.ledger_sweep_seconds
        # Two sweeps at once would find the same.
        async with self._sweeping:
            async with self._database.connection() as connection:
                brands = await store.brands_due(connection, self._settings.clock_offset_seconds, limit)
            outcomes = await self._sweep(brands, deadline)
        replies = [outcome for outcome in outcomes if isinstance(outcome, DueReply)]
        refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
        if refusals:
            log.warning("due not booked", brands=len(refusals), reason=refusals[0].reason)
            if not replies:
                raise refusals[0]
        packages = sum(reply.packages_expired for reply in replies)
        freezes = sum(reply.freezes_ended for reply in replies)
        DUE.labels("package").inc(packages)
        DUE.labels("freeze").inc(freezes)
        return pb.BookDueResponse(
            brands=sum(bool(reply.packages_expired or reply.freezes_ended) for reply in replies),
            packages_expired=packages,
            freezes_ended=freezes,
            more=len(brands) == limit or len(outcomes) < len(brands),
        )

    async def _sweep(self, brands: list[tuple[int, int]], deadline: float) -> list[Outcome]:
        """Book what is due for brands, each lane's in portions one after another, until a moment of the process."""
        parts: list[list[tuple[int, int]]] = [[] for _ in range(self._engine.lanes)]
        for brand in brands:
            parts[self._engine.lane_of(brand[0])].append(brand)
        swept = await asyncio.gather(*(self._sweep_lane(part, deadline) for part in parts))
        return [outcome for outcomes in swept for outcome in outcomes]

    async def _sweep_lane(self, brands: list[tuple[int, int]], deadline: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for portion in _portions(brands, self._settings.ledger_sweep_packages):
            started, taken = time.monotonic(), self._engine.taken
            outcomes += await self._engine.apply_all([BookDue(brand_id, "", b"") for brand_id in portion])
            ended = time.monotonic()
            # The first is always done, so every call gets on.
            if ended >= deadline:
                break
            if self._engine.taken - taken > SWEPT_BESIDE * len(portion):
                # Other operations came meanwhile.
                await asyncio.sleep((ended - started) * self._settings.ledger_sweep_rest)
        return outcomes

    async def CleanUp(self, request: pb.CleanUpRequest, context: Context) -> pb.CleanUpResponse:
        current_principal().require_all_brands()
        limit = _limit("limit", request.limit, 10_000, 100_000)
        offset = self._settings.clock_offset_seconds
        async with self._database.connection() as connection:
            cancelled = await store.cancel_unpaid_orders(connection, offset, limit)
        reach("costcenter.cleanup.cancelled")
        async with self._database.connection() as connection:
            deleted = await store.delete_old_keys(connection, offset, self._settings.idempotency_key_days, limit)
        reach("costcenter.cleanup.deleted")
        return pb.CleanUpResponse(orders_cancelled=cancelled, keys_deleted=deleted)


def _portions(brands: list[tuple[int, int]], packages_max: int) -> list[list[int]]:
    """Brands in portions with at most so many ended packages together, or of one brand."""
    portions: list[list[int]] = []
    weight = 0
    for brand_id, packages in brands:
        # A brand costs something even when only its freezes have ended.
        weight += max(packages, 1)
        if not portions or weight > packages_max:
            portions.append([])
            weight = max(packages, 1)
        portions[-1].append(brand_id)
    return portions


def _limit(field: str, value: int, default: int, longest: int) -> int:
    if not 0 <= value <= longest:
        raise invalid(**{field: f"must be 0 (for {default}) to {longest}"})
    return value or default
