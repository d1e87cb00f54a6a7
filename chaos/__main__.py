"""`make chaos`: send through the real stack while everything breaks, let it settle, and judge.

Environment: `SEED` (default: a random one, printed), `CHAOS_SECONDS` of sending and breaking (default 60), `RATE` of
messages a second (default 60), `SETTLE_SECONDS` that everything has to become final at most (default 240). The same
seed draws the same faults in the same order; when each one meets whom, the machine decides. Exits 1 when the verdict
names a fault; the data folder is kept then.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

from chaos.faults import Faults
from chaos.load import AGAIN, Callers, Sent, sell
from chaos.verdict import Verdict, judge
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill import interruption, reconcile, record_check
from smsbill.client import Client
from smsbill.screen import Screen
from smsbill.sending import FINAL_STATES
from smsbill.settings import StackSettings
from smsbill.stack import Stack
from smsbill.tables import word

BRANDS = range(1, 21)
POLL_SECONDS = 3.0
IDS_TOLD = 20
_STATE = pb.MessageState.DESCRIPTOR

# Waits as short as the faults, so that a run takes minutes: what is tried is the order of things, not their length.
SETTINGS = {
    "SMSBILL_COSTCENTERS": "2",
    "SMSBILL_GATEWAYS": "2",
    "SMSBILL_WORKERS": "3",
    "SMSBILL_CHUANGLAN_CALL_SECONDS": "3",
    "SMSBILL_SUBMIT_START_SECONDS": "3",
    "SMSBILL_SUBMIT_MARGIN_SECONDS": "2",
    "SMSBILL_LEASE_SECONDS": "4",
    "SMSBILL_STALLED_SECONDS": "8",
    "SMSBILL_STALLED_AFTER_LOSS_SECONDS": "2",
    "SMSBILL_SWEEP_SECONDS": "1",
    "SMSBILL_ACCEPTING_SECONDS": "15",
    "SMSBILL_OUTCOME_HOURS": str(60 / 3_600),
    "SMSBILL_ACCOUNT_PAUSE_SECONDS": "2",
    "SMSBILL_RETRY_MAX_SECONDS": "4",
    "SMSBILL_RECEIPT_TAKEOVER_SECONDS": "5",
    "SMSBILL_RECEIPT_REQUEUE_SECONDS": "5",
    "SMSBILL_OUTBOX_HOLD_SECONDS": "4",
    "SMSBILL_BOOK_DUE_SECONDS": "10",
    "SMSBILL_LEDGER_HOLD_SECONDS": "2",
    "SMSBILL_RESTART_SECONDS_MAX": "2",
    "SMSBILL_DISPATCH_REST_SECONDS": "5",
    "SMSBILL_LOG_LEVEL": "WARNING",
}
FREE_PORTS = ("costcenter_address", "gateway_address", "http_address", "simulator_address")


async def settle(client: Client, seconds: float, screen: Screen) -> list[Any]:
    """Wait until every message is final, at most so long; the records as they are then."""
    end = time.monotonic() + seconds
    messages: list[Any] = []
    while True:
        try:
            messages = await record_check.messages_of(client, BRANDS, since=0)
        except grpc.aio.AioRpcError as error:
            # The last fault is not over yet.
            if error.code() not in AGAIN or time.monotonic() > end:
                raise
            await asyncio.sleep(POLL_SECONDS)
            continue
        waiting = Counter(word(_STATE, each.state) for each in messages if each.state not in FINAL_STATES)
        if not waiting or time.monotonic() > end:
            return messages
        screen.say(f"    {waiting.total():,} of {len(messages):,} not final: {dict(waiting)}")
        await asyncio.sleep(POLL_SECONDS)


async def run(stack: Stack, screen: Screen, seed: int, seconds: float, rate: float, settle_seconds: float) -> bool:
    """Send and break, settle, judge; whether all is well."""
    await stack.start(screen.step)
    client = stack.client()
    try:
        await sell(client, BRANDS)
        faults = Faults(stack, random.Random(seed), lambda line: screen.say(f"    {line}"))
        callers = Callers(client, BRANDS, random.Random(seed), rate)
        try:
            await faults.calm()
            async with asyncio.TaskGroup() as group:
                group.create_task(callers.run(seconds))
                group.create_task(faults.run(seconds))
        finally:
            await faults.close()
        screen.step(f"{len(callers.sent.accepted):,} messages accepted in {callers.sent.calls:,} calls")
        messages = await settle(client, settle_seconds, screen)
        screen.step("settled")
        entries = await record_check.carrier_record(stack.file.simulator_url)
        verdict = judge(callers.sent.accepted, messages, entries)
        differences = await reconcile.run(stack.reconcile_settings(), progress=lambda _what, _done, _total: None)
        withheld = sum(entry["answer"] != "answered" for entry in entries)
        return told(
            screen, seed, faults, callers.sent, messages, verdict, withheld, [str(each) for each in differences]
        )
    finally:
        await client.close()


def told(
    screen: Screen,
    seed: int,
    faults: Faults,
    sent: Sent,
    messages: Sequence[Any],
    verdict: Verdict,
    withheld: int,
    differences: Sequence[str],
) -> bool:
    """Print the verdict; whether all is well."""
    states = Counter(word(_STATE, message.state) for message in messages)
    screen.say(f"SEED={seed}  faults: {dict(faults.counts)}")
    screen.say(f"messages: {dict(states)}; answers of the carrier withheld or garbled: {withheld}")
    screen.say(f"outcomes that nobody told, refunded after their time: {len(verdict.settled_by_time)}")
    bad = {
        **verdict.faults,
        "calls without an answer": sent.unanswered,
        "refused": sent.refused,
        "differences in reconcile": list(differences),
        "forged receipts taken": ["yes"] * faults.counts["forged receipts taken"],
    }
    for what, ids in bad.items():
        screen.say(f"  {'✓' if not ids else '✗'} {what}: {len(ids)}{'  ' + ', '.join(ids[:IDS_TOLD]) if ids else ''}")
    return not any(bad.values())


def main() -> int:
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
    seconds = float(os.environ.get("CHAOS_SECONDS") or 60)
    rate = float(os.environ.get("RATE") or 60)
    settle_seconds = float(os.environ.get("SETTLE_SECONDS") or 240)
    screen = Screen(stderr=False)
    screen.say(f"SEED={seed}: {seconds:g} s of faults, {rate:g} messages/s")
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="smsbill-chaos-")))
    settings = StackSettings.load().model_copy(update={"data_dir": folder, **dict.fromkeys(FREE_PORTS, "127.0.0.1:0")})
    keep = True
    try:
        code = uvloop.run(_whole(settings, screen, seed, seconds, rate, settle_seconds))
        keep = code == 1
        return code
    finally:
        if keep:
            screen.say(f"The data folder is left for you to look at: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


async def _whole(
    settings: StackSettings, screen: Screen, seed: int, seconds: float, rate: float, settle_seconds: float
) -> int:
    stack = Stack(settings, simulator=True, notify=lambda line: screen.say(f"    ! {line}"))

    async def body() -> int:
        try:
            return 0 if await run(stack, screen, seed, seconds, rate, settle_seconds) else 1
        finally:
            await stack.stop()

    try:
        return await interruption.run(body(), hurry=stack.hurry.set)
    except interruption.Interrupted as interrupted:
        return 128 + interrupted.number


if __name__ == "__main__":
    sys.exit(main())
