"""The service against the oracle, on random sequences of every operation, on a clock that the test moves.

Each sequence has a seed of its own, which a failure prints together with the shortest sequence that fails likewise.
Environment: STATEFUL_SECONDS for how long, SEED for the first sequence's seed, SEQUENCE for a file that holds one
sequence as a failure printed it, STATEFUL_DATABASE_URL for a migrated database of its own.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import ledger_clock
import pytest
import uvloop
from ledger_oracle import Request, Terms
from ledger_player import DisagreementError, Stage, play, running_stage
from ledger_sequences import MICROSECOND, Call, Sequence, Shrinker, write

import costcenter.book
from infra.embedded import EmbeddedServers
from scripts import databases

SECONDS = float(os.environ.get("STATEFUL_SECONDS", "15"))
SHRINK_SECONDS = float(os.environ.get("STATEFUL_SHRINK_SECONDS", "60"))


@pytest.fixture(scope="module")
def still_database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A migrated database whose clock stands still: a new one, or that of STATEFUL_DATABASE_URL."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    if url := os.environ.get("STATEFUL_DATABASE_URL"):
        ledger_clock.install(url, moment)
        yield url
        return
    servers: EmbeddedServers = request.getfixturevalue("servers")
    with databases.fresh(servers.database_url, request.getfixturevalue("database_template")) as url:
        ledger_clock.install(url, moment)
        yield url


@pytest.mark.timeout(SECONDS + SHRINK_SECONDS + 60)
def test_service_agrees_with_the_oracle(still_database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is called in whatever order at whatever time: every reply and every figure is the oracle's."""
    # A copy of the tree tests its own copy of the ledger.
    assert Path(costcenter.book.__file__).parents[1] == Path(__file__).parents[2]
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**9))
    path = os.environ.get("SEQUENCE")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if path:
            runner.run(_play_one(still_database_url, Sequence.from_text(Path(path).read_text())))
            report = f"{path} agrees with the oracle"
        else:
            report = runner.run(_search(still_database_url, seed))
    with capsys.disabled():
        print(f"\n{report}")  # noqa: T201 - the seed is for whoever reads the output


def test_keys_are_cleaned_at_the_end_of_their_days(still_database_url: str) -> None:
    """To the microsecond; then the call is a new one, but for a payment, whose key is for ever."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    end = start + Terms().keys_kept
    freeze = {"brand_id": 1, "request_id": "freeze", "sms_type": 1, "segments": 3}
    pay = {"brand_id": 1, "request_id": "pay", "order_no": "order-3", "segments": 2}
    grant = {"segments": 9}
    calls: list[tuple[datetime, str, Request]] = [
        (start, "PutBrand", {"brand_id": 1, "name": "Brand"}),
        (start, "AdjustPackage", {"brand_id": 1, "request_id": "g", "author": "a", "reason": "r", "grant": grant}),
        (start, "SmsSendPrePay", freeze),
        (start, "SmsSendPay", pay),
        (end - MICROSECOND, "CleanUp", {}),
        (end - MICROSECOND, "SmsSendPrePay", freeze),
        (end, "CleanUp", {}),
        (end, "SmsSendPrePay", freeze),
        (end, "SmsSendPay", pay),
        (end, "SmsSendPay", {**pay, "segments": 1}),
    ]
    numbered = tuple(Call(number, *call) for number, call in enumerate(calls, 1))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_play_one(still_database_url, Sequence("usual", start, numbered)))


async def _play_one(database_url: str, sequence: Sequence) -> None:
    async with running_stage(database_url) as stage:
        await play(stage, sequence)


async def _search(database_url: str, seed: int) -> str:
    """Play sequences until the time is up. Raises `DisagreementError` with the shortest sequence that fails."""
    async with running_stage(database_url) as stage:
        deadline = time.monotonic() + SECONDS
        count = 0
        while time.monotonic() < deadline:
            written = write(seed + count)
            count += 1
            try:
                await play(stage, written)
            except DisagreementError as error:
                found = f"after {count} sequences, {stage.steps} calls"
                raise AssertionError(await _explain(stage, written, seed + count - 1, found)) from error
    return f"SEED={seed}: {count} sequences, {stage.steps} calls agree with the oracle"


async def _explain(stage: Stage, sequence: Sequence, seed: int, found: str) -> str:
    async def fails(shorter: Sequence) -> bool:
        try:
            await play(stage, shorter)
        except DisagreementError:
            return True
        return False

    shrinker = Shrinker(fails, SHRINK_SECONDS)
    shortest = await shrinker.shrink(sequence)
    try:
        await play(stage, shortest)
        said = "it does not fail again"
    except DisagreementError as error:
        said = str(error)
    return (
        f"SEED={seed} ({found}) disagrees with the oracle; of {len(sequence.calls)} calls these"
        f" {len(shortest.calls)} are left after {shrinker.tries} tries:\n{said}\n"
        f"To run it again put these lines into a file and name it in SEQUENCE:\n{shortest.to_text()}"
    )
