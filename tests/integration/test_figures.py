"""Aim: what metrics tell of the whole is right: sums of the ledger, brands, backlogs; told by one worker at a time."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from gateway_harness import SECONDS, eventually, metric
from worker_harness import BRAND, GRANTED, OTHER_BRAND, SERVICE, running_stack

from infra.grpc_server import bearer
from infra.telemetry import REGISTRY
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import ledger_figures_pb2, ledger_figures_pb2_grpc
from smsgateway.queues import Queues, open_redis
from workers.figures import Figures

# A worker without a carrier's account sweeps and sends nothing.
WORKER: dict[str, Any] = {"chuanglan_account": "", "figures_seconds": 0.1, "outbox_poll_seconds": 60}
DRAINED = 8


def told(name: str, **labels: str) -> float | None:
    """A metric of this process, or None when it is not told."""
    return REGISTRY.get_sample_value(name, labels)


async def test_figures_of_the_whole(database_url: str, redis_url: str) -> None:
    """Sums, the busiest brand alone by name, a drained brand counted until a grant, an old outbox; then another worker
    has the duty, and this one tells nothing any more. More brands than the bound are refused.
    """
    async with running_stack(database_url, redis_url) as stack:
        package = await stack.grant(DRAINED, 5)
        await stack.adjust(DRAINED, claw_back=admin_pb.ClawBackAdjustment(package_id=package, segments=5))
        for number in range(3):
            await stack.send(f"1380013800{number}")
        await stack.rows(
            "insert into outbox (brand_id, outbox_id, kind, payload, next_at, created_at)"
            " values (7, 'x', 1, '', now() + interval '1 hour', now() - interval '100 s')"
        )
        worker = await stack.worker(**WORKER, metrics_brands=1)
        await eventually(lambda: _is("smsbill_ledger_brands", 1, status="drained"))
        assert told("smsbill_ledger_brands", status="active") == 3
        assert told("smsbill_ledger_balance_segments", state="frozen") == 3
        assert told("smsbill_ledger_balance_segments", state="available") == 2 * GRANTED - 3
        assert told("smsbill_brand_balance_segments", brand_id=str(BRAND), state="available") == GRANTED - 3
        assert told("smsbill_brand_balance_segments", brand_id=str(OTHER_BRAND), state="available") is None
        assert told("smsbill_backlog_items", what="outbox") == 1
        assert 100 <= (told("smsbill_backlog_oldest_seconds", what="outbox") or 0) < 100 + SECONDS
        assert told("smsbill_backlog_oldest_seconds", what="due") == 0
        await stack.adjust(DRAINED, request_id="again", grant=admin_pb.GrantAdjustment(segments=1))
        await eventually(lambda: _is("smsbill_ledger_brands", 0, status="drained"))
        await stack.stop(worker)
        async with grpc.aio.insecure_channel(stack.values["costcenter_target"]) as channel:
            stub: Any = ledger_figures_pb2_grpc.LedgerFiguresStub(channel)
            for brands_max in (-1, 1_001):
                request = ledger_figures_pb2.GetLedgerFiguresRequest(brands_max=brands_max)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.GetLedgerFigures(request, metadata=bearer(SERVICE), timeout=SECONDS)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        # Nobody asks any more; another has the duty from now on.
        async with open_redis(redis_url, connections_max=2, timeout_seconds=5) as redis:
            await redis.set("duty:figures", "another", px=60_000)
            settings = stack.settings()
            unused: Any = None
            await Figures(unused, Queues(redis), unused, "this", settings).step()
        for name in ("smsbill_ledger_brands", "smsbill_brand_balance_segments", "smsbill_backlog_items"):
            assert not [sample for family in REGISTRY.collect() for sample in family.samples if sample.name == name]


async def _is(name: str, value: float, **labels: str) -> bool:
    return told(name, **labels) == value


async def test_what_happens_to_segments_is_counted(database_url: str, redis_url: str) -> None:
    """Frozen, paid, refunded and clawed back by flow; messages, receipts and refunds by account."""
    flows = ("granted", "clawed_back", "frozen", "paid", "refunded")

    def counts() -> list[float]:
        return [metric("smsbill_ledger_segments_total", flow=flow) for flow in flows]

    async with running_stack(database_url, redis_url) as stack:
        before = counts()
        refused = metric("smsbill_carrier_messages_total", account="chuanglan", verdict="bad_number")
        back = metric("smsbill_carrier_refunded_segments_total", account="chuanglan", cause="refused")
        delivered = metric("smsbill_receipts_settled_total", account="chuanglan", result="delivered")
        package = await stack.grant(DRAINED, 5)
        await stack.adjust(DRAINED, claw_back=admin_pb.ClawBackAdjustment(package_id=package, segments=2))
        await stack.worker()
        await stack.send("13800138001")
        # The simulator refuses what ends in 1111.
        await stack.send("13800131111")
        await stack.wait_until_final(2)
        assert [after - earlier for after, earlier in zip(counts(), before, strict=True)] == [5, 2, 2, 2, 1]
        assert metric("smsbill_carrier_messages_total", account="chuanglan", verdict="bad_number") == refused + 1
        assert metric("smsbill_carrier_refunded_segments_total", account="chuanglan", cause="refused") == back + 1
        assert metric("smsbill_receipts_settled_total", account="chuanglan", result="delivered") == delivered + 1
