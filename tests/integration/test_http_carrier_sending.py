"""Aim: a carrier that a file alone describes sends, is receipted and is billed like one with code of its own.

Method: examples/http-carrier.toml, a real gateway and worker, and the carrier simulator over HTTP.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from gateway_harness import metric
from worker_harness import GRANTED, PASSWORD, Stack, numbers, running_stack

from smsgateway.carriers.http_carrier import HttpCarrierKind
from smsgateway.schema import MessageState

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "http-carrier.toml"


@pytest.fixture
async def stack(database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    """All parts, chosen and set up by the environment; no account of Chuanglan's anywhere."""
    monkeypatch.setenv("SMSBILL_CARRIER", "http")
    monkeypatch.setenv("SMSBILL_HTTP_CARRIER_FILE", str(EXAMPLE))
    monkeypatch.setenv("SMSBILL_HTTP_ACCOUNT", "N0000001")
    monkeypatch.setenv("SMSBILL_HTTP_SECRETS", json.dumps({"password": PASSWORD, "receiver": "r", "push": "p"}))
    async with running_stack(database_url, redis_url, chuanglan_account="", receipt_pull=False) as running:
        # The simulator's port is known only now; the gateway does not call it.
        monkeypatch.setenv("SMSBILL_HTTP_URL", running.simulator.url)
        url = f"http://127.0.0.1:{running.gateway.http_port}/callbacks/http/report"
        running.simulator.change_settings({"receipt_url": url})
        yield running


async def test_send_and_receipts_by_configuration_alone(stack: Stack) -> None:
    """A single message and a batch with a refused number: each final, receipted, and billed once."""
    before = metric("smsbill_receipts_received_total", carrier="http", result="stored")
    await stack.worker()
    single = await stack.send("13800138001")
    good = numbers(9)
    await stack.send_batch([*good, "13800001111"])
    assert await stack.wait_until_final(11) == {MessageState.DELIVERED: 10, MessageState.FAILED: 1}
    message = await stack.message(single)
    assert (message.carrier_account, bool(message.carrier_message_id)) == ("http", True)
    ((code,),) = await stack.rows("select result_code from message where state = %s", MessageState.FAILED)
    assert code == "107"
    assert sorted(entry["mobile"] for entry in stack.simulator.entries()) == sorted([*good, "13800138001"])
    assert await stack.balance() == (GRANTED - 10, 0)
    assert metric("smsbill_receipts_received_total", carrier="http", result="stored") == before + 10


async def test_an_unknown_outcome_is_decided_by_a_receipt(stack: Stack) -> None:
    """The simulator takes a call and answers half a document: nothing is sent again, and the receipt settles it."""
    stack.simulator.change_settings({"garbage_rate": 1.0})
    await stack.worker()
    await stack.send()
    assert await stack.wait_until_final(1) == {MessageState.DELIVERED: 1}
    assert stack.simulator.totals()["messages"] == 1


async def test_balance_and_strangers(stack: Stack) -> None:
    """The file tells how to ask for the balance; a push with wrong credentials is refused, Chuanglan's path is gone."""
    carrier = HttpCarrierKind().open(stack.settings(), connections_max=1)
    try:
        assert await carrier.balance() > 0
    finally:
        await carrier.aclose()
    base = f"http://127.0.0.1:{stack.gateway.http_port}/callbacks"
    async with aiohttp.ClientSession() as http:
        for path, status in (("http/report?receiver=r&pswd=x", 403), ("chuanglan/report?receiver=r&pswd=p", 404)):
            async with http.get(f"{base}/{path}") as answer:
                assert answer.status == status
