"""Aim: one stack, three carriers: both versions of Chuanglan's calls and SMPP, with failover in the middle of batches,
receipts pushed, pulled and on the carrier's own connection; everybody gets the text once and the books agree.

Method: `smsbill up` as real processes, its accounts and rules given by the command; the carriers are two simulators
over HTTP and an SMSC that others wrote.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from smpp34_harness import smpp34_smsc
from stack_harness import Stack, eventually

from smsbill.carrier_simulator import CarrierSimulator, SimulatorConfig, SimulatorSettings

pytestmark = [pytest.mark.timeout(400), pytest.mark.long]

PASSWORD = "secret"
TEXT = "【测试】今天全场九折，拒收请回复R"
CHUNK, PARTS, SECONDS = 20, 6, 120.0
NO_CREDIT = "109"


@pytest.fixture
def stack(folder: Path) -> Iterator[Stack]:
    running = Stack(
        folder / "data",
        SMSBILL_WORKERS="2",
        SMSBILL_BATCH_CHUNK_MESSAGES=str(CHUNK),
        SMSBILL_SLOTS_MARKETING="1",
        SMSBILL_ROUTING_POLL_SECONDS="0.1",
        SMSBILL_RECEIPT_PULL_SECONDS="0.3",
        SMSBILL_ACCOUNT_PAUSE_SECONDS="120",
    )
    try:
        running.start()
        for brand in ("1", "2"):
            running.ok("brand", "put", "--brand", brand, "--name", brand)
            running.ok("buy", "--brand", brand, "--segments", "1000")
        yield running
    finally:
        running.end()


def simulator() -> CarrierSimulator:
    settings = SimulatorSettings(receiver="r", pswd="p", receipt_delay_ms_min=20, receipt_delay_ms_max=40)
    return CarrierSimulator(SimulatorConfig(password=PASSWORD, settings=settings))


def put(stack: Stack, name: str, carrier: CarrierSimulator, path: str) -> None:
    given = {
        "url": carrier.url, "path": path, "account": "N0000001", "password": PASSWORD, "receiver": "r",
        "push_password": "p",
    }  # fmt: skip
    settings = [option for key, value in given.items() for option in ("--set", f"{key}={value}")]
    stack.ok("carrier", "put", name, "--kind", "chuanglan", *settings)


def send(stack: Stack, brand: int, mobiles: list[str], folder: Path) -> None:
    file = folder / f"brand-{brand}.txt"
    file.write_text("\n".join(["mobile", *mobiles, ""]))
    stack.ok("send", "--brand", str(brand), "--type", "marketing", "--text", TEXT, "--file", str(file))


def delivered(stack: Stack, brand: int) -> int:
    listed = stack.ok("messages", "--brand", str(brand), "--limit", "1000")
    return sum(message["state"] == "delivered" for message in listed)


async def test_three_carriers_and_a_failover_in_the_middle(stack: Stack, folder: Path) -> None:
    """The first account is out of credit while it sends a campaign: what it took stays there, the rest goes to the
    newer version's; another brand goes by SMPP.
    """
    old, new = simulator(), simulator()
    mobiles = [f"1380013{number:04d}" for number in range(1, CHUNK * PARTS + 1)]
    others = [f"1390013{number:04d}" for number in range(1, 13)]
    async with old, new, smpp34_smsc() as smsc:
        smsc.state_of = lambda event: "DELIVRD"
        url = f"{stack.started['gateway_url']}/callbacks/chuanglan/old/report"
        old.change_settings({"latency_ms": 100, "receipt_url": url})
        new.change_settings({"push_loss": 1.0})
        await asyncio.to_thread(put, stack, "old", old, "/msg/send/json")
        await asyncio.to_thread(put, stack, "new", new, "/msg/v1/send/json")
        address = ("--set", f"host={smsc.host}", "--set", f"port={smsc.port}", "--set", "system_id=us")
        await asyncio.to_thread(stack.ok, "carrier", "put", "smsc", "--kind", "smpp", *address)
        for account, brand_id, priority in (("old", "1", "0"), ("new", "1", "1"), ("smsc", "2", "0")):
            rule = ("route", "put", account, "--brand", brand_id, "--priority", priority)
            await asyncio.to_thread(stack.ok, *rule)
        sending = asyncio.create_task(asyncio.to_thread(send, stack, 1, mobiles, folder))
        async with asyncio.timeout(SECONDS):
            await asyncio.to_thread(eventually, lambda: old.totals()["messages"] >= CHUNK, SECONDS)
        old.change_settings({"error_rates": {NO_CREDIT: 1.0}})
        await sending
        await asyncio.to_thread(send, stack, 2, others, folder)
        await asyncio.to_thread(eventually, lambda: delivered(stack, 1) == len(mobiles), SECONDS)
        await asyncio.to_thread(eventually, lambda: delivered(stack, 2) == len(others), SECONDS)
        taken = [Counter(entry["mobile"] for entry in carrier.entries(limit=1_000)) for carrier in (old, new)]
        submitted = Counter(event.destination_addr for event in smsc.submits)
    assert taken[0] + taken[1] == Counter(mobiles)
    assert all(taken), "both took a part"
    assert sum(submitted.values()) == len(submitted) == len(others)
    assert new.totals()["receipts"]["pulled"] == sum(taken[1].values())
    assert old.totals()["receipts"]["acknowledged"] == sum(taken[0].values())
    for brand, count in ((1, len(mobiles)), (2, len(others))):
        balance = stack.ok("balance", "--brand", f"{brand}")
        assert (balance["available"], balance["frozen"]) == (1_000 - count, 0)
    assert stack.ok("reconcile") == {"differences": []}
