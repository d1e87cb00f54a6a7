"""Aim: every RPC refuses what it cannot do with one precise reason of the list, and does right what it can, whatever
comes. Method: calls made from the descriptors of all requests, half of them with something wrong or at a bound, of many
callers at a real process; each reply and each refusal is the oracle's (ledger_fuzz). In the end the records add up.

SMSBILL_FUZZ_CALLS sets how many calls there are (items of batches count), SMSBILL_TEST_SEED repeats a run's choices.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from pathlib import Path

import psycopg
import pytest
from ledger_fuzz import Fuzz, documented_reasons, open_foreign, rounds
from ledger_oracle import Reply
from ledger_processes import CostCenterProcess, running_process
from ledger_service import METHODS, request_of
from ledger_wire import outcome_of

from costcenter import reconciliation
from infra.errors import Refusal

CALLS = int(os.environ.get("SMSBILL_FUZZ_CALLS", "10000"))
CALLERS = 8
# Callers have new brands in each round, so that the oracles stay small.
ROUND_CALLS = 4_000
# Reasons that only a fault gives, or the end of a package.
NEVER = {"INTERNAL", "UNAVAILABLE", "OVERLOADED", "PACKAGE_EXPIRED"}
# A call takes some 2 ms with two cores for both sides; others may have them.
SECONDS_MAX = 60 + CALLS / 100


@pytest.mark.timeout(SECONDS_MAX + 60)
async def test_every_call_is_answered_as_the_rules_say(database_url: str, tmp_path: Path) -> None:
    """No INTERNAL, no UNKNOWN, no reason that is not listed, no reply but the oracle's, no difference in the end."""
    seed = os.environ.get("SMSBILL_TEST_SEED") or str(random.randrange(10**6))
    print(f"SMSBILL_TEST_SEED={seed}")  # noqa: T201 - pytest shows it with a failure
    choices = random.Random(seed)
    counts: Counter[str] = Counter()
    methods: Counter[str] = Counter()
    reasons = documented_reasons()
    known = set.union(reasons[""], *(reasons.get(name, set()) for name in METHODS))
    async with running_process(database_url, tmp_path) as process, asyncio.timeout(SECONDS_MAX):
        tokens = await open_foreign(process)
        for calls in rounds(CALLS, ROUND_CALLS):
            callers = [Fuzz(process, random.Random(choices.random()), tokens, counts) for _ in range(CALLERS)]
            await _together(*(_round(caller, calls // CALLERS) for caller in callers))
            await _jobs(process, callers)
            await _together(*(caller.compare_all() for caller in callers))
            await _together(*(caller.compare_statements() for caller in callers))
            for caller in callers:
                methods.update(caller.methods)
    print(dict(counts), dict(methods))  # noqa: T201 - pytest shows it with a failure
    assert set(methods) == set(METHODS), "every RPC was called"
    assert min(counts["valid"], counts["wrong"]) > 0.4 * (counts["valid"] + counts["wrong"]), "half of them valid"
    assert counts["OK"] > CALLS / 4
    if CALLS >= ROUND_CALLS * 5:
        # Chance may spare one or the other.
        assert len(known - set(counts) - NEVER) <= 3, f"hardly a reason was given: {known - set(counts)}"
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        brands = [brand_id async for page in reconciliation.brand_pages(connection, 1_000) for brand_id in page]
        assert [each async for each in reconciliation.differences(connection, brands)] == []


async def _together(*calls: object) -> None:
    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(call)  # type: ignore[arg-type]


async def _round(caller: Fuzz, calls: int) -> None:
    await caller.open()
    await caller.run(calls)
    await caller.compare_statements()


async def _jobs(process: CostCenterProcess, callers: list[Fuzz]) -> None:
    """The jobs of the workers, for all brands at once, against all oracles."""
    expected: Counter[str] = Counter()
    actual: Counter[str] = Counter()
    for caller in callers:
        caller.pass_time()
        for method in ("ApplyReleases", "BookDue", "CleanUp"):
            reply: Reply = caller.oracle.call(method, **({"limit": 5_000} if method == "ApplyReleases" else {}))
            expected.update({name: value for name, value in reply.items() if name not in {"more", "brands"}})
    for method in ("ApplyReleases", "BookDue", "CleanUp"):
        more = True
        while more:
            outcome = await outcome_of(process.send(method, request_of(method)))
            assert not isinstance(outcome, Refusal), outcome
            actual.update({name: value for name, value in outcome.items() if name not in {"more", "brands"}})
            more = bool(outcome.get("more") or outcome.get("applied"))
    assert actual == expected
