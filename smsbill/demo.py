"""`smsbill demo`: the stack, the demo's messages, every figure checked, and a JSON summary as the last line."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill import balances, interruption, reconcile, record_check, showcase
from smsbill.client import Client
from smsbill.screen import Screen
from smsbill.settings import StackSettings
from smsbill.showcase import Run, States
from smsbill.stack import Stack
from smsbill.tables import plain, print_json, word
from smsbill.up import perform

_ADDRESSES = ("costcenter_address", "gateway_address", "http_address", "simulator_address", "worker_http_address")
_DIFFERENCES_TOLD = 100
_STATE = pb.MessageState.DESCRIPTOR


def run(*, messages: int, data_dir: Path | None) -> int:
    """Run the demo; 0 when all messages became final and nothing differs. Raises `StartError`, `EmbeddedError`."""
    folder = data_dir or Path(os.path.realpath(tempfile.mkdtemp(prefix="smsbill-demo-")))
    settings = StackSettings.load()
    # A stack of the user's may run on the usual ports.
    free = {name: "127.0.0.1:0" for name in _ADDRESSES if name not in settings.model_fields_set}
    settings = settings.model_copy(update={"data_dir": folder, **free})
    screen = Screen(stderr=True)
    keep = True
    try:
        code = asyncio.run(_run(settings, screen, messages))
        keep = code == 1
        return code
    finally:
        if data_dir is None and not keep:
            shutil.rmtree(folder, ignore_errors=True)
        elif data_dir is None:
            screen.say(f"The data folder is left for you to look at: {folder}")


async def _run(settings: StackSettings, screen: Screen, messages: int) -> int:
    started = time.monotonic()
    stack = Stack(settings, simulator=True, notify=screen.notify)
    summary: dict[str, Any] = {}
    try:
        await interruption.run(_body(stack, screen, messages, summary), hurry=stack.hurry.set)
    except interruption.Interrupted as interrupted:
        return 128 + interrupted.number
    summary["seconds"] = round(time.monotonic() - started, 1)
    print_json(summary)
    return 0 if summary["ok"] else 1


async def _body(stack: Stack, screen: Screen, messages: int, summary: dict[str, Any]) -> int:
    try:
        folder, demo = showcase.load(stack.settings.examples_dir)
        orders = showcase.plan(folder, demo, messages)
        screen.say(f"Starting in {stack.data_dir}")
        await stack.start(screen.step)
        done, states, final = await perform(stack, screen, demo, orders)
        if not final:
            screen.notify(f"not every message became final within {stack.settings.demo_seconds:g} s")
        client = stack.client()
        try:
            brands = {brand.brand_id: brand.name for brand in demo.brand}
            summary |= await _checked(stack, screen, client, brands, done, states, final)
        finally:
            await client.close()
    finally:
        await stack.stop()
    return 0


async def _checked(
    stack: Stack,
    screen: Screen,
    client: Client,
    brands: Mapping[int, str],
    done: Run,
    states: States,
    final: bool,
) -> dict[str, Any]:
    """Every figure against every other; the summary."""
    differences = await reconcile.run(stack.reconcile_settings(), progress=lambda _what, _done, _total: None)
    screen.step(f"reconciled: {len(differences)} differences")
    entries = await record_check.carrier_record(stack.file.simulator_url)
    ours = await record_check.messages_of(client, brands, stack.started_at)
    wrong = record_check.mismatches(ours, entries)
    screen.step(f"{len(entries):,} messages in the carrier's record compared: {len(wrong)} differences")
    for each in [*differences, *wrong][:_DIFFERENCES_TOLD]:
        screen.notify(str(each))
    by_state: Counter[int] = sum(states.values(), Counter())
    figures = [plain(each) for each in await balances.read(client, list(brands))]
    return {
        "ok": final and not differences and not wrong,
        "messages": done.accepted.total(),
        "segments": done.segments,
        "all_final": final,
        "states": {word(_STATE, state): count for state, count in sorted(by_state.items())},
        "carrier_messages": len(entries),
        "carrier_segments": sum(entry["segments"] for entry in entries),
        "reconcile_differences": [asdict(each) for each in differences[:_DIFFERENCES_TOLD]],
        "carrier_differences": [asdict(each) for each in wrong[:_DIFFERENCES_TOLD]],
        "difference_count": len(differences) + len(wrong),
        "balances": figures,
    }
