"""Aim: a campaign whose command is killed reaches everybody exactly once, with the own text, and the bill is right.

Method: the real command in a process of its own sends a file of 6,000 rows and dies by SIGKILL, once in the middle of
a part and once between two; the third goes to the end. The simulated carrier's record is compared with the file.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from campaign_harness import TEXT, write_file
from crash_harness import impatient
from gateway_harness import eventually
from worker_harness import ADMIN, BRAND, GRANTED, Stack, numbers, running_stack

from smsbill.campaign_file import Journal, journal_path
from smsbill.carrier_simulator import text_hash
from smsbill.reconcile import Reconciliation

ROWS, BATCH_ROWS, SECONDS = 6_000, 1_000, 240.0

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]


async def command(stack: Stack, path: Path) -> asyncio.subprocess.Process:
    """`smsbill send --file` as a process."""
    variables = {
        **os.environ,
        "SMSBILL_COSTCENTER_TARGET": stack.values["costcenter_target"],
        "SMSBILL_GATEWAY_TARGET": f"127.0.0.1:{stack.gateway.grpc_port}",
        "SMSBILL_TOKEN": ADMIN,
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "smsbill", "send", "--brand", str(BRAND), "--type", "marketing", "--text", TEXT,
        "--file", str(path), "--campaign", "c", "--batch-rows", str(BATCH_ROWS), "--json",
        stdout=asyncio.subprocess.DEVNULL, env=variables,
    )  # fmt: skip


def accepted_parts(path: Path) -> int:
    """Parts that the journal has."""
    journal = journal_path(path, "c")
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


async def test_a_killed_campaign_reaches_everybody_once(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice and given again: nobody is missing, nobody has it twice, and every segment is accounted for."""
    impatient(monkeypatch)
    rows = [(mobile, f"客{place}") for place, mobile in enumerate(numbers(ROWS))]
    path = write_file(tmp_path / "people.csv", rows)
    async with running_stack(database_url, redis_url, simulator={"receipt_loss": 1}) as stack:
        await stack.worker()
        for parts, batches in ((0, 2), (3, 3)):
            process = await command(stack, path)

            # Once a batch more is accepted than the journal knows, or right after it was noted.
            async def far_enough(parts: int = parts, batches: int = batches) -> bool:
                ((count,),) = await stack.rows("select count(*) from batch where accepted_at is not null")
                return count >= batches and accepted_parts(path) >= parts

            await eventually(far_enough, SECONDS)
            process.kill()
            await process.wait()
            assert accepted_parts(path) < ROWS / BATCH_ROWS
        assert await asyncio.wait_for((await command(stack, path)).wait(), SECONDS) == 0
        assert len(Journal.read(journal_path(path, "c")).parts) == ROWS / BATCH_ROWS
        await eventually(stack.quiet, SECONDS)
        wanted = Counter((mobile, text_hash(TEXT.replace("{$name}", name))) for mobile, name in rows)
        seen: Counter[tuple[str, str]] = Counter()
        while entries := stack.simulator.entries(after=seen.total(), limit=10_000):
            seen.update((entry["mobile"], entry["text_hash"]) for entry in entries)
        assert seen == wanted
        assert await stack.balance() == (GRANTED - ROWS, 0)
        whole = Reconciliation(database_url, database_url, redis_url, progress=lambda *_: None)
        assert await asyncio.wait_for(whole.run(), SECONDS) == []
