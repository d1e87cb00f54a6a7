"""`smsbill up`: the stack until Ctrl-C, with or without the demo."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from smsbill import interruption, showcase
from smsbill.screen import Screen
from smsbill.settings import StackSettings
from smsbill.showcase import Run, Showcase
from smsbill.stack import Stack
from smsbill.tables import print_json
from smsgateway.carriers.registry import carrier_kind

# What is of no use outside, or may hold the password of a server.
_UNTOLD = ("children", "supervisor", "ready", "database_url", "ledger_database_url", "redis_url")


def run(settings: StackSettings, *, demo_messages: int, as_json: bool) -> int:
    """Run the stack; 0 when it was told to end and has ended. Raises `StartError`, `EmbeddedError`."""
    return asyncio.run(_run(settings, demo_messages, as_json))


async def _run(settings: StackSettings, demo_messages: int, as_json: bool) -> int:
    screen = Screen(stderr=as_json)
    # Texts of the demo must never reach a real carrier, whatever account is configured.
    simulator = bool(demo_messages) or carrier_kind(settings.carrier).describe(settings) is None
    stack = Stack(settings, simulator=simulator, notify=screen.notify)
    try:
        return await interruption.run(_body(stack, screen, demo_messages, as_json), hurry=stack.hurry.set)
    except interruption.Interrupted:
        screen.say("Stopped")
        return 0


async def _body(stack: Stack, screen: Screen, demo_messages: int, as_json: bool) -> int:
    try:
        examples = showcase.load(stack.settings.examples_dir) if demo_messages else None
        screen.say(f"Starting in {stack.data_dir}")
        await stack.start(screen.step)
        if examples is not None:
            folder, demo = examples
            orders = showcase.plan(folder, demo, demo_messages)
            await perform(stack, screen, demo, orders)
        screen.addresses(stack.file, data_dir=str(stack.data_dir))
        if as_json:
            print_json({name: value for name, value in asdict(stack.file).items() if name not in _UNTOLD})
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        screen.say("Stopping; a second Ctrl-C does not wait")
        raise
    finally:
        await stack.stop()
    return 0


async def perform(
    stack: Stack, screen: Screen, demo: showcase.Demo, orders: list[showcase.Order]
) -> tuple[Run, showcase.States, bool]:
    """Set up the demo, send, follow it with bars, show tables; whether every message became final in time."""
    client = stack.client()
    try:
        shown = Showcase(client, demo)
        await shown.set_up(orders)
        screen.step(f"{len(shown.brands)} brands with packages")
        done = Run()
        last: list[showcase.States] = []

        with screen.sending(shown.brands, orders) as progress:

            def show(states: showcase.States) -> None:
                last[:] = [states]
                progress.show(states)

            sending = asyncio.create_task(shown.send(orders, done))
            try:
                final = await shown.follow(done, sending, stack.settings.demo_seconds, show)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        screen.step(f"{done.accepted.total():,} messages, {done.segments:,} segments, sent")
        await screen.results(client, shown.brands, last[0])
        return done, last[0], final
    finally:
        await client.close()
