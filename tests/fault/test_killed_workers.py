"""Aim: whatever happens to a worker process, each message is called at most once, ends, and is charged iff it was sent.
Method: a worker in a process of its own is killed or stopped while the simulated carrier has calls of it in flight and
others are claimed; another takes over. The carrier's own record is the witness."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import eventually
from pydantic import SecretStr
from worker_harness import BRAND, GRANTED, OTHER_BRAND, Stack, numbers, running_stack

from smsgateway.carriers.chuanglan import ChuanglanCarrier
from smsgateway.schema import MessageState
from workers.sweepers import NO_OUTCOME

_PROGRAM = """
import asyncio
from workers.process import WorkerProcess
from workers.settings import Settings

async def main():
    await WorkerProcess(Settings.load()).start()
    await asyncio.Event().wait()

asyncio.run(main())
"""
# Leases end soon, calls count as overdue soon after the carrier's longest time, and so do receipts in dead hands: those
# read from a stream, and those that came before their call's answer and were taken to be looked at again.
QUICK: dict[str, Any] = {
    "lease_seconds": 1,
    "submit_start_seconds": 1,
    "submit_margin_seconds": 0.5,
    "receipt_takeover_seconds": 1,
    "receipt_requeue_seconds": 2,
    # A worker that dies between its mark and its call leaves an outcome that no receipt will ever tell.
    "outcome_hours": 20 / 3_600,
    "stalled_seconds": 2,
}


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url, simulator={"latency_ms": 300}) as running:
        yield running


@asynccontextmanager
async def worker_process(stack: Stack, **changes: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker in a process of its own, killed at the end if it lives still."""
    values = {**stack.settings(**changes).model_dump(exclude_unset=True)}
    variables = {
        f"SMSBILL_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in values.items()
    }
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, env={**os.environ, **variables}, cwd=root, stderr=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def accepted(stack: Stack) -> list[str]:
    """Singles of two brands and a batch of three chunks; their numbers."""
    singles, others, batch = numbers(60), numbers(20, first=5_000), numbers(2_500, first=10_000)
    await asyncio.gather(*(stack.send(number) for number in singles))
    await asyncio.gather(*(stack.send(number, brand_id=OTHER_BRAND) for number in others))
    await stack.send_batch(batch)
    return singles + others + batch


async def check(stack: Stack, expected: Sequence[str]) -> None:
    """Everything is final; the carrier saw each number at most once; what it saw is charged and nothing else. What it
    did not see can only be a call that was marked and never made.
    """
    await stack.wait_until_final(len(expected), 60)
    seen = Counter(entry["mobile"] for entry in stack.simulator.entries(limit=10_000))
    assert max(seen.values()) == 1
    rows = await stack.rows("select mobile, state, result_code from message")
    delivered = {mobile.removeprefix("+86") for mobile, state, _ in rows if state == MessageState.DELIVERED}
    assert delivered == set(seen), "every call that reached the carrier gets its receipts"
    others = {(state, code) for _, state, code in rows if state != MessageState.DELIVERED}
    assert others <= {(MessageState.FAILED, NO_OUTCOME)}
    (total, frozen), (other_total, other_frozen) = await stack.balance(), await stack.balance(OTHER_BRAND)
    assert 2 * GRANTED - total - other_total == len(delivered)
    assert frozen == other_frozen == 0


async def test_a_killed_worker_loses_and_doubles_nothing(stack: Stack) -> None:
    """SIGKILL with calls in flight and a chunk claimed: the rest is sent by another, what was in flight is settled."""
    expected = await accepted(stack)
    async with worker_process(stack, **QUICK, slots_verification=4, slots_marketing=1) as process:
        await eventually(lambda: _calls(stack, 8))
        process.send_signal(signal.SIGKILL)
        await process.wait()
        before = stack.simulator.totals()["calls"]["accepted"]
        assert before < 83, "the worker was killed in the middle"
        await stack.worker(carrier=_impatient(stack), **QUICK)
        await check(stack, expected)


async def test_a_stopped_worker_that_goes_on_later_doubles_nothing(stack: Stack) -> None:
    """SIGSTOP for longer than leases hold, then SIGCONT: what was taken over meanwhile is not called again."""
    expected = await accepted(stack)
    async with worker_process(stack, **QUICK, slots_verification=4, slots_marketing=1) as process:
        await eventually(lambda: _calls(stack, 8))
        process.send_signal(signal.SIGSTOP)
        await stack.worker(carrier=_impatient(stack), **QUICK)
        await eventually(lambda: _calls(stack, 60))
        process.send_signal(signal.SIGCONT)
        await check(stack, expected)


async def test_a_terminated_worker_gives_back_at_once(stack: Stack) -> None:
    """Stopped in order, what it had in hand is sent by another without waiting for leases or sweepers."""
    expected = await accepted(stack)
    worker = await stack.worker(slots_verification=4, slots_marketing=1)
    await eventually(lambda: _calls(stack, 8))
    await stack.stop(worker)
    assert await stack.rows("select count(*) from dispatch where state in (3, 4, 5)") == [(0,)]
    await stack.worker(walk_seconds=60, stalled_seconds=600)
    await check(stack, expected)
    assert (await stack.balance(BRAND))[0] < GRANTED


def _impatient(stack: Stack) -> ChuanglanCarrier:
    """The carrier's account with a short longest time of a call, so that a dead worker's calls are overdue soon."""
    config = stack.settings().chuanglan()
    assert config is not None
    return ChuanglanCarrier(replace(config, total_timeout_s=2, connect_timeout_s=1))


async def _calls(stack: Stack, count: int) -> bool:
    return int(stack.simulator.totals()["calls"]["accepted"]) >= count
