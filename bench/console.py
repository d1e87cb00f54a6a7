"""`python -m bench.console`: how long every page of the console takes on a large installation.

The stack runs on what `bench.console_data` has made: ten thousand brands and ten million messages. Each page is asked
for over HTTP, one request at a time, by a signed-in operator: first about things that nobody has asked about since
PostgreSQL was started (cold: its buffers are empty; the system's may not be), then about the same things again after
the answers that are shared for a moment have ended (warm). Then single messages are sent, with nobody looking and with
ten browsers that refresh the overview, a brand and a batch, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import uvloop
from rich.table import Table

from bench.console_data import LARGE, Shape, fill
from bench.harness import console, stack, write
from bench.harness import fill as fill_brands
from bench.load import Target, single_messages
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from smsbill.stack import Stack

AIM_MS = 300
REFRESH_SECONDS = 1
SAME_REQUESTS = 5
BROWSERS = 10
_CSRF = re.compile(r'name="csrf" value="([^"]*)"')
# Brands that the load sends for; beyond those of the filling.
_LOAD_BRANDS = range(1_000_001, 1_000_011)

_SAMPLES = {
    "message": "select message_id from smsgateway.message tablesample system ({percent}) limit 1000",
    "mobile": "select brand_id, mobile from smsgateway.message tablesample system ({percent}) limit 1000",
    "batch": "select batch_id from smsgateway.batch where brand_id > 1 order by random() limit 1000",
    "large batch": "select batch_id from smsgateway.batch where brand_id = 1 limit 1000",
    "campaign": "select brand_id, campaign_id from smsgateway.campaign\n"
    "where brand_id > 1 order by random() limit 1000",
    "freeze": "select order_no from costcenter.freeze tablesample system ({percent}) limit 1000",
    "payment": "select payment_no from costcenter.payment tablesample system ({percent}) limit 1000",
}

Things = dict[str, list[Any]]
Page = Callable[[random.Random, Things], str]


def _brand(chance: random.Random, things: Things) -> int:
    return int(chance.choice(things["brand"]))


PAGES: dict[str, Page] = {
    "overview": lambda _c, _t: "/",
    "overview, its moving part": lambda _c, _t: "/overview?live=1",
    "brands": lambda _c, _t: "/brands",
    "brands, by the name's beginning": lambda c, _t: (
        f"/brands?q={c.choice(('Nord', 'Ost', 'West'))}+{c.randint(1, 99)}"
    ),
    "a brand": lambda c, t: f"/brands/{_brand(c, t)}",
    "a brand's chart, 30 days": lambda c, t: f"/brands/{_brand(c, t)}/balance.json?days=30",
    "a brand's messages": lambda c, t: f"/brands/{_brand(c, t)}/messages",
    "a brand's freezes": lambda c, t: f"/brands/{_brand(c, t)}/freezes",
    "a brand's open freezes": lambda c, t: f"/brands/{_brand(c, t)}/freezes?open=1",
    "a brand's payments": lambda c, t: f"/brands/{_brand(c, t)}/payments",
    "a brand's packages": lambda c, t: f"/brands/{_brand(c, t)}/packages",
    "a brand's batches": lambda c, t: f"/brands/{_brand(c, t)}/batches",
    "a brand's campaigns": lambda c, t: f"/brands/{_brand(c, t)}/campaigns",
    "the largest brand": lambda _c, _t: f"/brands/{LARGE}",
    "the largest brand's messages": lambda _c, _t: f"/brands/{LARGE}/messages",
    "the largest brand's batches": lambda _c, _t: f"/brands/{LARGE}/batches",
    "a message": lambda c, t: f"/messages/{c.choice(t['message'])}",
    "a batch of 100": lambda c, t: f"/batches/{c.choice(t['batch'])}",
    "a batch of 100,000": lambda c, t: f"/batches/{c.choice(t['large batch'])}",
    "a campaign": lambda c, t: "/brands/{}/campaigns/{}".format(*c.choice(t["campaign"])),
    "batches under way": lambda _c, _t: "/batches",
    "a freeze": lambda c, t: f"/freezes/{c.choice(t['freeze'])}",
    "a payment": lambda c, t: f"/payments/{c.choice(t['payment'])}",
    "search by message": lambda c, t: f"/search?q={c.choice(t['message'])}",
    "search by order": lambda c, t: f"/search?q={c.choice(t['freeze'])}",
    "search by payment": lambda c, t: f"/search?q={c.choice(t['payment'])}",
    "search by number": lambda c, t: "/search?brand={}&q=%2B{}".format(*c.choice(t["mobile"])).replace("%2B+", "%2B"),
    "search in vain": lambda c, _t: f"/search?q=nothing{c.randint(1, 10**9)}",
}


async def things(url: str, shape: Shape) -> Things:
    """What there is to ask about, by chance."""
    found: Things = {"brand": random.Random(1).sample(range(2, shape.brands + 1), min(1_000, shape.brands - 1))}
    async with await psycopg.AsyncConnection.connect(url) as connection:
        for name, query in _SAMPLES.items():
            # A few blocks, or all of a small table.
            text = query.format(percent=max(0.05, min(100.0, 1e7 / shape.messages)))
            rows = await (await connection.execute(text.encode())).fetchall()
            found[name] = [row[0] if len(row) == 1 else row for row in rows]
    return found


@asynccontextmanager
async def signed_in(running: Stack) -> AsyncIterator[aiohttp.ClientSession]:
    """A browser of an operator's."""
    client = running.client()
    try:
        request = admin_pb.CreateTokenRequest(name="bench", roles=[admin_pb.ROLE_OPERATOR], all_brands=True)
        token = (await client.call(client.admin.CreateToken, request)).secret
    finally:
        await client.close()
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(
        running.file.gateway_url, timeout=timeout, cookie_jar=aiohttp.CookieJar(unsafe=True)
    ) as session:
        async with session.get("/sign-in") as answer:
            match = _CSRF.search(await answer.text())
        assert match is not None
        async with session.post("/sign-in", data={"csrf": match[1], "token": token, "next": "/"}) as answer:
            assert answer.status == 200, await answer.text()
        yield session


async def timed(session: aiohttp.ClientSession, path: str) -> float:
    """Milliseconds until the page is there whole. It must be one of ours, and not an error."""
    started = time.perf_counter()
    async with session.get(path) as answer:
        body = await answer.text()
    taken = (time.perf_counter() - started) * 1_000
    assert answer.status == 200, (path, answer.status, body[:2_000])
    return taken


async def pages(session: aiohttp.ClientSession, known: Things, requests: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of every page, cold and warm."""
    chance = random.Random(2)
    paths = {name: [page(chance, known) for _ in range(requests)] for name, page in PAGES.items()}
    for name, asked in paths.items():
        if len(set(asked)) == 1:
            # There is but one such page, and each answer is shared for a moment.
            paths[name] = asked[:SAME_REQUESTS]
    found: dict[str, dict[str, list[float]]] = {}
    for kind in ("cold", "warm"):
        for name, asked in paths.items():
            console.print(f"{kind}: {name}")
            taken: list[float] = []
            for place, path in enumerate(asked):
                if place and path == asked[place - 1]:
                    # The same answer is shared for a moment, and ten times as long as it took.
                    await asyncio.sleep(REFRESH_SECONDS + min(5, taken[-1] / 100))
                taken.append(await timed(session, path))
            found.setdefault(name, {})[kind] = taken
    return found


async def looking(session: aiohttp.ClientSession, paths: list[str]) -> None:
    """A browser that refreshes its pages until it is cancelled."""
    while True:
        for path in paths:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(path) as answer:
                    await answer.read()
        await asyncio.sleep(3)


async def cost(running: Stack, session: aiohttp.ClientSession, known: Things, rounds: int, messages: int) -> Any:
    """Messages a second, accepted and final, with nobody looking and with ten browsers, in turn."""
    await fill_brands(running, _LOAD_BRANDS)
    target = Target(running.file.gateway_target, running.file.token)
    paths = [
        ["/overview?live=1", f"/brands/{brand}/live?live=1", f"/brands/{brand}/balance.json?days=30&live=1",
         f"/batches/{known['batch'][place]}/live?live=1"]
        for place, brand in enumerate(known["brand"][:BROWSERS])
    ]  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = {"nobody": [], "ten browsers": []}
    for _ in range(rounds):
        for name, rates in found.items():
            watching = [] if name == "nobody" else [asyncio.create_task(looking(session, each)) for each in paths]
            try:
                rates.append(
                    await single_messages(
                        target, running.file.database_url, messages=messages, callers=64, brands=_LOAD_BRANDS,
                        seconds_max=300,
                    )
                )  # fmt: skip
            finally:
                for task in watching:
                    task.cancel()
                await asyncio.gather(*watching, return_exceptions=True)
            console.print(f"{name}: {rates[-1][0]:,.0f} accepted/s, {rates[-1][1]:,.0f} final/s")
    return found


async def measure(shape: Shape, folder: Path, requests: int, rounds: int, messages: int) -> dict[str, Any]:
    """All figures."""
    os.environ["SMSBILL_CONSOLE_REFRESH_SECONDS"] = str(REFRESH_SECONDS)
    async with stack(folder) as running:
        url = running.file.database_url
        async with await psycopg.AsyncConnection.connect(url) as connection:
            row = await (await connection.execute("select exists (select from smsgateway.message)")).fetchone()
        seconds = 0.0
        if row is not None and not row[0]:
            started = time.perf_counter()
            # The owner of all tables, as the filling drops and makes indexes.
            await fill(url, shape, round(time.time() * 1e6), console.print)
            seconds = time.perf_counter() - started
            console.print(f"filled in {seconds:,.0f} s")
    # Twice: PostgreSQL's buffers are empty then.
    async with stack(folder) as running, signed_in(running) as session:
        known = await things(running.file.database_url, shape)
        found = await pages(session, known, requests)
        rates = await cost(running, session, known, rounds, messages) if rounds else {}
    return {
        "brands": shape.brands,
        "messages": shape.messages,
        "filled_seconds": round(seconds),
        "milliseconds": found,
        "messages_per_second": rates,
    }


def show(result: dict[str, Any]) -> bool:
    """The figures as tables; whether every page is as fast as it should be."""
    table = Table("page", "cold median, ms", "cold p95, ms", "warm median, ms", "warm p95, ms")
    good = True
    for name, kinds in result["milliseconds"].items():
        figures = [value for kind in ("cold", "warm") for value in (statistics.median(kinds[kind]), p95(kinds[kind]))]
        good = good and figures[3] <= AIM_MS
        table.add_row(name, *(f"{value:,.0f}" for value in figures))
    console.print(table)
    for name, rates in result["messages_per_second"].items():
        accepted, final = ([each[place] for each in rates] for place in (0, 1))
        console.print(
            f"{name}: accepted {statistics.median(accepted):,.0f}/s ({min(accepted):,.0f} to {max(accepted):,.0f}), "
            f"final {statistics.median(final):,.0f}/s ({min(final):,.0f} to {max(final):,.0f})"
        )
    return good


def p95(taken: list[float]) -> float:
    """The 95th percentile; of few, the greatest."""
    return statistics.quantiles(taken, n=20)[-1] if len(taken) >= 20 else max(taken)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.console", description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000_000)
    parser.add_argument("--brands", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=20, help="of each page, cold and warm")
    parser.add_argument("--rounds", type=int, default=3, help="of the load, with and without browsers; 0: none")
    parser.add_argument("--load", type=int, default=5_000, help="messages of a round")
    parser.add_argument("--folder", type=Path, help="data folder to fill once and keep; not given: a temporary one")
    arguments = parser.parse_args()
    shape = Shape(brands=arguments.brands, messages=arguments.messages)
    with contextlib.ExitStack() as kept:
        folder = arguments.folder
        if folder is None:
            folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="smsbill-bench-")))
        folder.mkdir(parents=True, exist_ok=True)
        result = uvloop.run(measure(shape, folder, arguments.requests, arguments.rounds, arguments.load))
    good = show(result)
    write("console", result)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
