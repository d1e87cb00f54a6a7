"""Aim: a carrier that fails is left alone, what waits for it has its limit, and it is used again when it works.
Method: the real simulator over HTTP that does not answer or is not there, and real workers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from gateway_harness import eventually, metric
from worker_harness import GRANTED, PASSWORD, Stack, numbers, running_stack

from smsbill.carrier_simulator import CarrierSimulator, SimulatorConfig
from smsgateway.schema import MessageState
from workers.process import WorkerProcess

# Few calls at once and quick to rest, so that what was called while it failed can be counted.
CAREFUL: dict[str, Any] = {
    "slots_verification": 2,
    "circuit_failures": 3,
    "circuit_rest_seconds": 0.4,
    "circuit_rest_seconds_max": 0.4,
    "circuit_trial_calls": 1,
}
ACCOUNT = "chuanglan"


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url) as running:
        yield running


async def test_a_carrier_that_does_not_answer_rests_and_nothing_is_sent_twice(stack: Stack) -> None:
    """Calls are taken on and time out: after three the rest waits; when it answers again all is sent, each once."""
    stack.simulator.change_settings({"timeout_rate": 1.0, "push_loss": 1.0})
    opened = metric("smsbill_carrier_circuit_opened_total", account=ACCOUNT)
    worker = await stack.worker(**CAREFUL, chuanglan_connect_seconds=0.2, chuanglan_call_seconds=0.2)
    await asyncio.gather(*(stack.send(number) for number in numbers(30)))
    # Two pairs until the third has failed, then a trial after each rest.
    await eventually(lambda: _opened(opened, 2))
    withheld = stack.simulator.totals()["calls"]["withheld"]
    times = metric("smsbill_carrier_circuit_opened_total", account=ACCOUNT) - opened
    assert 4 <= withheld <= 4 + times
    assert (await _readiness(worker))["carrier"] in ("rests", "is tried")
    assert (await stack.states()).get(MessageState.FAILED, 0) == 0
    stack.simulator.change_settings({"timeout_rate": 0.0, "push_loss": 0.0})
    await eventually(lambda: _works(worker))
    # Those that were taken on without an answer wait for the receipts that nobody has pulled yet.
    await stack.stop(worker)
    await stack.worker(**CAREFUL, receipt_pull_seconds=0.1)
    assert await stack.wait_until_final(30) == {MessageState.DELIVERED: 30}
    assert set(Counter(entry["mobile"] for entry in stack.simulator.entries()).values()) == {1}
    assert await stack.balance() == (GRANTED - 30, 0)


async def test_a_carrier_that_is_not_there_is_asked_seldom_and_loses_nothing(stack: Stack) -> None:
    """Refused connections are no unknown outcomes: everything waits, few calls are tried, and all is sent later."""
    port = int(stack.simulator.url.rpartition(":")[2])
    settings = stack.simulator.settings
    await stack.simulator.stop()
    opened = metric("smsbill_carrier_circuit_opened_total", account=ACCOUNT)
    calls = metric("smsbill_carrier_calls_total", account=ACCOUNT, mode="single", verdict="retry")
    worker = await stack.worker(**CAREFUL)
    for number in numbers(30):
        await stack.send(number)
    await eventually(lambda: _opened(opened, 2))
    times = metric("smsbill_carrier_circuit_opened_total", account=ACCOUNT) - opened
    tried = metric("smsbill_carrier_calls_total", account=ACCOUNT, mode="single", verdict="retry") - calls
    assert 4 <= tried <= 4 + times
    assert metric("smsbill_carrier_circuit", account=ACCOUNT) > 0
    async with CarrierSimulator(SimulatorConfig(port=port, password=PASSWORD, settings=settings)) as back:
        assert await stack.wait_until_final(30) == {MessageState.DELIVERED: 30}
        assert (back.totals()["messages"], back.totals()["distinct_numbers"]) == (30, 30)
        assert (await _readiness(worker))["carrier"] == "works"
        assert metric("smsbill_carrier_circuit", account=ACCOUNT) == 0
        await stack.stop(worker)


async def test_what_waits_for_a_dead_carrier_fails_after_its_limit(stack: Stack) -> None:
    """The account rests for longer than anything is tried again: what waits fails uncalled, and is refunded."""
    await stack.simulator.stop()
    calls = metric("smsbill_carrier_calls_total", account=ACCOUNT, mode="single", verdict="retry")
    rests = {**CAREFUL, "circuit_rest_seconds": 600, "circuit_rest_seconds_max": 600}
    await stack.worker(**rests, carrier_retry_seconds=0.5)
    ids = [await stack.send(number) for number in numbers(10)]
    assert await stack.wait_until_final(10) == {MessageState.FAILED: 10}
    assert {(await stack.message(message_id)).result_code for message_id in ids} == {"NOT_ACCEPTED"}
    assert metric("smsbill_carrier_calls_total", account=ACCOUNT, mode="single", verdict="retry") <= calls + 4
    assert await stack.balance() == (GRANTED, 0)


async def _opened(before: float, times: int) -> bool:
    return metric("smsbill_carrier_circuit_opened_total", account=ACCOUNT) >= before + times


async def _works(worker: WorkerProcess) -> bool:
    return bool((await _readiness(worker))["carrier"] == "works")


async def _readiness(worker: WorkerProcess) -> dict[str, Any]:
    url = f"http://127.0.0.1:{worker.http_port}/readyz"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        told: dict[str, Any] = await response.json()
        return told
