"""Aim: a worker says in time whether it works, and says in one line why it cannot start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from gateway_harness import eventually
from worker_harness import ScriptedCarrier, Stack, running_stack

from infra.errors import StartError
from workers.process import WorkerProcess


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url) as running:
        yield running


async def get(worker: WorkerProcess, path: str) -> tuple[int, Any]:
    """What the worker's HTTP port answers."""
    url = f"http://127.0.0.1:{worker.http_port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        is_json = response.content_type == "application/json"
        return response.status, await response.json() if is_json else await response.text()


async def test_a_worker_tells_what_it_reaches(stack: Stack) -> None:
    """Ready with everything there; without the cost centre not ready but alive, and ready again when it is back."""
    worker = await stack.worker(carrier=ScriptedCarrier())
    everything = {"database": True, "redis": True, "costcenter": True, "loops": True}
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
    """The watchdog sees a loop that has not turned in time."""
    worker = await stack.worker(carrier=ScriptedCarrier(), watchdog_seconds=1)
    worker.loops.add("hanging", _hang, interval_seconds=0.1)

    async def not_ready() -> bool:
        status, checks = await get(worker, "/readyz")
        return status == 503 and checks["loops"] is False and checks["database"] is True

    await eventually(not_ready)


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
