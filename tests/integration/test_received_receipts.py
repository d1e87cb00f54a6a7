"""Aim: receipts that come on a carrier's own connection are stored before they are acknowledged, and a carrier of
another package has its own callback with its own words. Method: real gateway, worker, PostgreSQL and Redis."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from fake_cost_center import FakeCostCenter
from gateway_harness import eventually, metric, running_gateway
from worker_harness import ScriptedCarrier, Stack, running_stack

from infra.embedded import EmbeddedServers
from smsgateway.carriers.base import CarrierReceipt, CarrierReply, ReceiptState, ReceivingCarrier
from smsgateway.schema import MessageState

MOBILE = "+8613800138001"
PIGEON = """
from datetime import UTC, datetime
from smsgateway.carriers.base import CarrierReceipt, MalformedReceipt, ReceiptNotAuthentic, ReceiptState
from smsgateway.carriers.registry import Answer, Callback, CarrierKind

def read(request):
    if request.header("x-key") != "k":
        raise ReceiptNotAuthentic("wrong key")
    if not request.body:
        raise MalformedReceipt("body", "is missing")
    return [
        CarrierReceipt("pigeon", line, "", "+8613800138001", ReceiptState.DELIVERED, "OK", "",
                       datetime(2026, 1, 2, tzinfo=UTC), None, None)
        for line in request.body.decode().split()
    ]

class PigeonKind(CarrierKind):
    def describe(self, settings):
        return "pigeons"

    def open(self, settings, *, connections_max):
        return None

    def callback(self, settings):
        return Callback(read, Answer(202, b"coo", "text/plain"), Answer(500, b"again", "text/plain"),
                        frozenset({"POST"}), Answer(200, b"no", "text/plain"))
"""


class Connected(ScriptedCarrier):
    """A carrier with a connection of its own: the test says what comes on it and sees what is acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.coming: asyncio.Queue[CarrierReceipt | Exception] = asyncio.Queue()
        self.acknowledged: list[str] = []
        self.unacknowledged: list[str] = []
        self.starts = 0

    async def receive(
        self, take: Callable[[CarrierReceipt], Awaitable[str]], take_reply: Callable[[CarrierReply], Awaitable[str]]
    ) -> None:
        self.starts += 1
        while True:
            receipt = await self.coming.get()
            if isinstance(receipt, Exception):
                raise receipt
            try:
                await take(receipt)
            except Exception as error:
                self.unacknowledged.append(type(error).__name__)
            else:
                self.acknowledged.append(receipt.carrier_message_id)


def receipt(call_id: str, name: str = "m1") -> CarrierReceipt:
    now = datetime.now(UTC)
    return CarrierReceipt("chuanglan", name, call_id, MOBILE, ReceiptState.DELIVERED, "DELIVRD", "", now, None, 1)


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url) as running:
        yield running


async def test_a_receipt_on_the_connection_is_booked(stack: Stack) -> None:
    """It reaches the message as a pushed one does, and a receiver that fails is started again."""
    carrier = Connected()
    assert isinstance(carrier, ReceivingCarrier)
    assert not isinstance(ScriptedCarrier(), ReceivingCarrier)
    before = metric("smsbill_receipts_received_total", carrier="chuanglan", result="stored")
    await stack.worker(carrier=carrier)
    carrier.coming.put_nowait(ConnectionError("the carrier went away"))
    message_id = await stack.send(MOBILE)
    await stack.wait_for_state(message_id, MessageState.SENT)
    carrier.coming.put_nowait(receipt(carrier.calls[0].call_id))
    await stack.wait_for_state(message_id, MessageState.DELIVERED)
    assert (carrier.acknowledged, carrier.starts) == (["m1"], 2)
    assert metric("smsbill_receipts_received_total", carrier="chuanglan", result="stored") == before + 1


async def test_what_is_not_stored_is_not_acknowledged(stack: Stack, servers: EmbeddedServers) -> None:
    """While PostgreSQL is away the carrier hears that a receipt was not taken; afterwards it is."""
    carrier = Connected()
    await stack.worker(carrier=carrier)
    await servers.stop_postgres("immediate")
    try:
        carrier.coming.put_nowait(receipt("call-1"))
        await eventually(lambda: _true(carrier.unacknowledged))
        assert carrier.acknowledged == []
    finally:
        await servers.start_postgres()

    async def taken() -> bool:
        carrier.coming.put_nowait(receipt("call-1"))
        return bool(carrier.acknowledged)

    await eventually(taken)
    assert await stack.rows("select count(*) > 0 from receipt_inbox") == [(True,)]


async def _true(found: list[str]) -> bool:
    return bool(found)


async def test_a_callback_of_another_package(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own path, methods and words; several receipts in one push; Chuanglan's path is gone."""
    (tmp_path / "pigeon_callback.py").write_text(PIGEON)
    metadata = tmp_path / "pigeons-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pigeons\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[smsbill.carriers]\npigeon = pigeon_callback:PigeonKind\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pigeon_callback", raising=False)
    async with (
        running_gateway(fake_costcenter, database_url, redis_url, carrier="pigeon") as gateway,
        aiohttp.ClientSession(f"http://127.0.0.1:{gateway.process.http_port}") as http,
    ):

        async def answer(method: str, path: str, key: str, body: bytes) -> tuple[int, str]:
            async with http.request(method, path, headers={"X-Key": key}, data=body) as response:
                return response.status, await response.text()

        path = "/callbacks/pigeon/report"
        assert await answer("POST", path, "k", b"a b c") == (202, "coo")
        assert await answer("POST", path, "wrong", b"a b c") == (200, "no")
        assert await answer("POST", path, "k", b"") == (200, "no")
        assert await answer("POST", path, "k", b"x" * 20_000) == (200, "no")
        assert (await answer("GET", path, "k", b""))[0] == 405
        assert (await answer("POST", "/callbacks/chuanglan/report", "k", b""))[0] == 404
        assert await gateway.rows("select account, reference from receipt_inbox order by reference") == [
            ("pigeon", "a"),
            ("pigeon", "b"),
            ("pigeon", "c"),
        ]
