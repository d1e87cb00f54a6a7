"""Aim: a worker says in time whether it works, and says in one line why it cannot start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import psycopg
import pytest
from gateway_harness import eventually
from worker_harness import BRAND, ScriptedCarrier, Stack, running_stack

from costcenter.process import CostCenterProcess
from infra.errors import StartError
from smsgateway.process import GatewayProcess
from smsgateway.schema import MessageState
from workers.process import WorkerProcess


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url) as running:
        yield running


async def get(process: WorkerProcess | CostCenterProcess | GatewayProcess, path: str) -> tuple[int, Any]:
    """What the process' HTTP port answers."""
    url = f"http://127.0.0.1:{process.http_port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        is_json = response.content_type == "application/json"
        return response.status, await response.json() if is_json else await response.text()


async def test_a_worker_tells_what_it_reaches(stack: Stack) -> None:
    """Ready with everything there; without the cost centre not ready but alive, and ready again when it is back."""
    worker = await stack.worker(carrier=ScriptedCarrier())
    everything = {"database": True, "redis": True, "costcenter": True, "loops": True, "carrier": "works"}
    assert await get(worker, "/readyz") == (200, everything)
    assert (await get(worker, "/healthz"))[0] == 200
    status, text = await get(worker, "/metrics")
    assert status == 200
    assert "smsbill_queue_depth" in text
    await stack.stop_costcenter()

    async def answers(expected: int) -> bool:
        return (await get(worker, "/readyz"))[0] == expected

    await eventually(lambda: answers(503))
    assert (await get(worker, "/healthz"))[0] == 200
    await stack.restart_costcenter()
    await eventually(lambda: answers(200))


async def test_a_loop_that_hangs_makes_a_worker_not_ready(stack: Stack) -> None:
    """The watchdog sees a loop that has not turned in time: readiness and the metric name it and say for how long."""
    worker = await stack.worker(carrier=ScriptedCarrier(), watchdog_seconds=1)
    worker.loops.add("hanging", _hang, interval_seconds=0.1)

    async def not_ready() -> bool:
        # On a slow machine others may be late for a moment, too.
        status, checks = await get(worker, "/readyz")
        silent = checks.get("stalled", {}).get("hanging", 0)
        return status == 503 and checks["loops"] is False and checks["database"] is True and silent > 1

    await eventually(not_ready)
    _, text = await get(worker, "/metrics")
    (line,) = [line for line in text.splitlines() if line.startswith('smsbill_loop_stalled_seconds{loop="hanging"}')]
    assert float(line.split()[-1]) > 1


async def test_groups_that_hang_make_a_worker_not_ready(stack: Stack, database_url: str) -> None:
    """A group of dispatches whose claim waits for a lock is named while it waits, and sent afterwards."""
    message_id = await stack.send()
    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        await holder.execute("lock table smsgateway.dispatch in share mode")
        worker = await stack.worker(carrier=ScriptedCarrier(), watchdog_seconds=0.5)

        async def named() -> bool:
            status, checks = await get(worker, "/readyz")
            return status == 503 and "claim-verification-single" in checks.get("stalled", ())

        await eventually(named)
        await holder.rollback()
    await stack.wait_for_state(message_id, MessageState.SENT)


async def test_a_lane_that_hangs_makes_a_cost_centre_not_ready(database_url: str, redis_url: str) -> None:
    """A lane's thread whose transaction waits for a lock is named while it waits; afterwards all is well again."""
    async with running_stack(database_url, redis_url, costcenter={"watchdog_seconds": 0.3}) as stack:
        lane = f"ledger-lane-{BRAND % 2}"
        async with await psycopg.AsyncConnection.connect(database_url) as holder:
            await holder.execute("select from costcenter.lane for update")
            asking = asyncio.create_task(stack.send())

            async def named() -> bool:
                status, checks = await get(stack.costcenter, "/readyz")
                return status == 503 and lane in checks.get("stalled", ()) and checks["database"] is True

            await eventually(named)
            await holder.rollback()
        await asyncio.wait_for(asking, 10)

        async def ready() -> bool:
            return await get(stack.costcenter, "/readyz") == (200, {"database": True, "loops": True})

        await eventually(ready)


async def test_groups_that_hang_make_a_gateway_not_ready(database_url: str, redis_url: str) -> None:
    """Groups of messages and of receipts whose statements wait for a lock are named, and served afterwards."""
    async with running_stack(database_url, redis_url, watchdog_seconds=0.3) as stack:
        async with await psycopg.AsyncConnection.connect(database_url) as holder:
            await holder.execute("lock table smsgateway.request_key, smsgateway.receipt_inbox")
            asking = asyncio.create_task(stack.send())
            reporting = asyncio.create_task(stack.push_receipt(call_id="c", mobile="13800138001"))

            async def named() -> bool:
                status, checks = await get(stack.gateway, "/readyz")
                groups = {"accept-groups", "receipt-groups"}
                return status == 503 and groups <= checks.get("stalled", {}).keys() and checks["database"] is True

            await eventually(named)
            await holder.rollback()
        await asyncio.wait_for(asyncio.gather(asking, reporting), 10)

        async def ready() -> bool:
            return (await get(stack.gateway, "/readyz"))[0] == 200

        await eventually(ready)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"database_url": ""}, "SMSBILL_DATABASE_URL"),
        ({"database_url": "postgresql://127.0.0.1:1/none"}, "PostgreSQL cannot be reached"),
        ({"redis_url": "redis://127.0.0.1:1/0"}, "Redis cannot be reached"),
        ({"service_token": ""}, "SMSBILL_SERVICE_TOKEN"),
        ({"worker_http_address": "nowhere"}, "nowhere"),
    ],
)
async def test_what_keeps_a_worker_from_starting_is_said(stack: Stack, changes: dict[str, str], sentence: str) -> None:
    """Each in one line that names what to do; nothing is left running."""
    worker = WorkerProcess(stack.settings(**changes), carrier=ScriptedCarrier())
    with pytest.raises(StartError, match=sentence) as caught:
        await worker.start()
    assert "\n" not in str(caught.value)


async def _hang() -> None:
    await asyncio.Event().wait()
