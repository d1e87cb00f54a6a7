"""The SMPP carrier against a second SMSC that others wrote, in another language: the package `smpp` of Node.js. What
both ends of one library could misunderstand alike, this one reads by itself, down to the text in each part.

`make test` installs it where there is npm; elsewhere these tests are left out.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from smsgateway.carriers.base import CallOutcome, CarrierReceipt, ReceiptState, SingleCall, Verdict
from smsgateway.carriers.smpp.carrier import SmppCarrier, SmppConfig
from smsgateway.carriers.smpp.pdus import Address
from smsgateway.carriers.smpp.texts import Concatenation

FOLDER = Path(__file__).resolve().parents[1] / "smsc_node"
NODE = shutil.which("node")
SECONDS = 20.0

pytestmark = pytest.mark.skipif(
    NODE is None or not (FOLDER / "node_modules" / "smpp").is_dir(),
    reason="needs Node.js and `npm ci --prefix tests/smsc_node`",
)


class NodeSmsc:
    """The process and what it tells."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.port = 0

    async def event(self, name: str) -> dict[str, Any]:
        """The next event of this name; others before it are passed over."""
        assert self._process.stdout is not None
        async with asyncio.timeout(SECONDS):
            while line := await self._process.stdout.readline():
                told: dict[str, Any] = json.loads(line)
                if told["event"] == name:
                    return told
        raise AssertionError(f"it ended before {name}")

    def order(self, **command: Any) -> None:
        """Have it do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")

    async def behave(self, **changes: Any) -> None:
        """Change what every submit_sm meets."""
        self.order(behave=changes)
        await self.event("behaves")


@pytest.fixture
async def smsc() -> AsyncIterator[NodeSmsc]:
    assert NODE is not None
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(NODE, str(FOLDER / "smsc.js"), stdin=pipe, stdout=pipe)
    running = NodeSmsc(process)
    try:
        running.port = (await running.event("listening"))["port"]
        yield running
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(SECONDS):
            await process.wait()


@asynccontextmanager
async def carrier_of(
    smsc: NodeSmsc, **changes: Any
) -> AsyncIterator[tuple[SmppCarrier, asyncio.Queue[CarrierReceipt]]]:
    """A carrier that takes receipts, and those that it took."""
    values = {
        "password": "secret",
        "source": Address(5, 0, "ACME"),
        "receipt_id": "hex-to-dec",
        "rest_s": 0.05,
        **changes,
    }
    carrier = SmppCarrier(SmppConfig("smpp", "127.0.0.1", smsc.port, "us", **values))
    taken: asyncio.Queue[CarrierReceipt] = asyncio.Queue()

    async def take(receipt: CarrierReceipt) -> str:
        taken.put_nowait(receipt)
        return ""

    receiving = asyncio.create_task(carrier.receive(take))
    try:
        yield carrier, taken
    finally:
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        async with asyncio.timeout(SECONDS):
            await carrier.aclose()


async def send(carrier: SmppCarrier, text: str = "text") -> CallOutcome:
    async with asyncio.timeout(SECONDS):
        return await carrier.send_single(SingleCall("call", "+8613800138000", text))


@pytest.mark.parametrize("way", Concatenation)
async def test_texts_arrive_whole(smsc: NodeSmsc, way: Concatenation) -> None:
    """Aim: both alphabets, one part and several, are read there as written here, and told to belong together."""
    async with carrier_of(smsc, concatenation=way) as (carrier, _):
        for text, count in (
            ("plain €[]{}~|^\\ äöü", 1),
            ("【示例】验证码 123456", 1),
            ("a{" * 200, 4),
            ("长😀" * 60, 3),
        ):
            outcome = await send(carrier, text)
            assert (outcome.verdict, len(outcome.part_ids)) == (Verdict.ACCEPTED, count if count > 1 else 0)
            parts = [await smsc.event("submit") for _ in range(count)]
            assert "".join(part["text"] for part in parts) == text
            assert {(part["to"], part["to_ton"], part["from"], part["source_ton"]) for part in parts} == {
                ("8613800138000", 1, "ACME", 5)
            }
            assert {part["wanted"] for part in parts} == {1}
            if count > 1 and way is Concatenation.UDH:
                headers = [bytes.fromhex(part["udh"][0]) for part in parts]
                assert [(header[:2], header[3], header[4]) for header in headers] == [
                    (b"\0\x03", count, number) for number in range(1, count + 1)
                ]
            elif count > 1:
                assert [part["sar"][1:] for part in parts] == [[count, number] for number in range(1, count + 1)]


@pytest.mark.parametrize("kind", ["text", "tlv"])
async def test_receipts_of_every_part(smsc: NodeSmsc, kind: str) -> None:
    """Aim: a receipt for each part, by text or by TLVs, under the ids of the responses, written in another base."""
    await smsc.behave(receipts=kind, state="UNDELIV")
    async with carrier_of(smsc) as (carrier, taken):
        outcome = await send(carrier, "长" * 150)
        assert outcome.part_ids == ("2737", "2738", "2739")
        assert outcome.detail == "AB3"
        async with asyncio.timeout(SECONDS):
            receipts = [await taken.get() for _ in range(3)]
        for message_id in outcome.part_ids:
            assert await smsc.event("receipt") == {"event": "receipt", "id": message_id, "status": 0}
    assert tuple(receipt.carrier_message_id for receipt in receipts) == outcome.part_ids
    assert {(each.mobile, each.state, each.code) for each in receipts} == {
        ("+8613800138000", ReceiptState.FAILED, "UNDELIV")
    }


async def test_many_at_once(smsc: NodeSmsc) -> None:
    """Aim: 200 messages through the window, each with an id and a receipt of its own."""
    await smsc.behave(receipts="text")
    async with carrier_of(smsc) as (carrier, taken):
        outcomes = await asyncio.gather(*(send(carrier, f"text {number}") for number in range(200)))
        async with asyncio.timeout(SECONDS):
            receipts = [await taken.get() for _ in range(200)]
    ids = {outcome.carrier_message_id for outcome in outcomes}
    assert len(ids) == 200
    assert {receipt.carrier_message_id for receipt in receipts} == ids


@pytest.mark.parametrize(
    ("status", "verdict"), [(0x58, Verdict.RETRY), (0x14, Verdict.RETRY), (0x0B, Verdict.BAD_NUMBER)]
)
async def test_refusals(smsc: NodeSmsc, status: int, verdict: Verdict) -> None:
    """Aim: throttling, a full queue and a bad number are read as what they are; the session goes on."""
    await smsc.behave(status=status)
    async with carrier_of(smsc) as (carrier, _):
        outcome = await send(carrier)
        assert (outcome.verdict, outcome.code) == (verdict, str(status))
        await smsc.behave(status=0)
        assert (await send(carrier)).verdict is Verdict.ACCEPTED


async def test_a_wrong_password(smsc: NodeSmsc) -> None:
    """Aim: the account is stopped, and works when the password is right again."""
    await smsc.behave(password="other")
    async with carrier_of(smsc) as (carrier, _):
        assert (await send(carrier)).verdict is Verdict.STOP_ACCOUNT
        await smsc.behave(password="secret")
        while (await smsc.event("bind"))["status"] != 0:
            pass
        assert (await send(carrier)).verdict is Verdict.ACCEPTED


async def test_unbinding_both_ways(smsc: NodeSmsc) -> None:
    """Aim: it binds, asks, unbinds in the middle and is bound again; at the end it hears our unbind."""
    async with carrier_of(smsc, rest_s=0.05) as (carrier, _):
        bind = await smsc.event("bind")
        assert (bind["system_id"], bind["version"], bind["status"]) == ("us", 0x34, 0)
        smsc.order(enquire=True)
        assert (await smsc.event("enquired"))["status"] == 0
        assert (await send(carrier)).verdict is Verdict.ACCEPTED
        smsc.order(unbind=True)
        assert (await smsc.event("unbound"))["status"] == 0
        assert (await send(carrier)).verdict is Verdict.ACCEPTED
        await smsc.event("bind")
        await carrier.aclose()
        await smsc.event("unbind")
