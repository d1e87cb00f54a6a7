"""Aim: with several accounts each message takes the one that the rules mean, goes to the next only when it was surely
not accepted, is sent once and charged once, and follows changes without a restart. Method: real PostgreSQL and Redis,
real workers, and two simulated carriers over HTTP whose records tell who took what."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from gateway_harness import SECONDS, eventually, metric
from worker_harness import (
    ADMIN,
    BRAND,
    GRANTED,
    MARKETING,
    OTHER_BRAND,
    PASSWORD,
    VERIFICATION,
    ScriptedCarrier,
    Stack,
    numbers,
    running_stack,
)

from infra.grpc_server import bearer
from protos.smsgateway.v1 import routing_pb2 as pb
from protos.smsgateway.v1 import routing_pb2_grpc
from smsbill import reconcile
from smsbill.carrier_simulator import CarrierSimulator, SimulatorConfig, SimulatorSettings
from smsbill.settings import StackSettings
from smsgateway.carriers.base import CallOutcome, Verdict
from smsgateway.schema import MessageState

# Accounts are looked for often, and a busy one is left soon.
SOON: dict[str, Any] = {"routing_poll_seconds": 0.05, "failover_wait_seconds": 0.2}


@dataclass
class Two:
    """A stack whose own simulator is the environment's account, and another carrier with its account in the table."""

    stack: Stack
    second: CarrierSimulator
    stub: routing_pb2_grpc.RoutingAsyncStub

    async def call(self, name: str, request: Any) -> Any:
        return await getattr(self.stub, name)(request, metadata=bearer(ADMIN), timeout=SECONDS)

    async def put(self, account_id: str = "second", *, url: str = "", **changes: Any) -> None:
        """An account at the second carrier, or another address."""
        settings = {
            "url": url or self.second.url,
            "account": "N0000001",
            "password": PASSWORD,
            "receiver": "r",
            "push_password": "p",
        }
        await self.call(
            "PutCarrierAccount",
            pb.PutCarrierAccountRequest(account_id=account_id, kind="chuanglan", settings=settings, **changes),
        )

    async def change(self, account_id: str = "second", **changes: Any) -> None:
        await self.call("PutCarrierAccount", pb.PutCarrierAccountRequest(account_id=account_id, **changes))

    async def limit(self, rate: float) -> None:
        limit = pb.SendingLimit(brand_id=BRAND, rate=rate, burst=1)
        await self.call("PutSendingLimit", pb.PutSendingLimitRequest(limit=limit))

    async def route(self, account_id: str = "second", *, priority: int = 0, **fields: Any) -> None:
        rule = pb.RoutingRule(account_id=account_id, priority=priority, weight=1, enabled=True, **fields)
        await self.call("PutRoutingRule", pb.PutRoutingRuleRequest(rule=rule))

    @property
    def first(self) -> CarrierSimulator:
        return self.stack.simulator

    async def accounts(self) -> dict[str, int]:
        """Messages by the account that they were submitted to last."""
        rows = await self.stack.rows("select account, count(*) from message group by account")
        return dict(rows)


@asynccontextmanager
async def _two(database_url: str, redis_url: str) -> AsyncIterator[Two]:
    behaviour: dict[str, Any] = {"receipt_delay_ms_min": 20, "receipt_delay_ms_max": 40, "receiver": "r", "pswd": "p"}
    second = CarrierSimulator(SimulatorConfig(password=PASSWORD, settings=SimulatorSettings(**behaviour)))
    async with running_stack(database_url, redis_url, **SOON) as stack, second:
        base = stack.receipt_url.removesuffix("/report")
        second.change_settings({"receipt_url": f"{base}/second/report"})
        async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.gateway.grpc_port}") as channel:
            yield Two(stack, second, routing_pb2_grpc.RoutingStub(channel))


@pytest.fixture
async def two(database_url: str, redis_url: str) -> AsyncIterator[Two]:
    async with _two(database_url, redis_url) as running:
        yield running


def taken(*simulators: CarrierSimulator) -> Counter[str]:
    """How often each number was taken, by all of them."""
    return Counter(entry["mobile"] for simulator in simulators for entry in simulator.entries())


async def test_rules_decide_by_brand_type_and_number(two: Two) -> None:
    """A batch with numbers of both ways is parted and paid once; receipts come by both accounts' own paths."""
    await two.put()
    await two.route(brand_id=BRAND, prefix="+86138000")
    await two.stack.worker()
    mobiles = numbers(30, 0)[:12] + [f"1380010{number:04d}" for number in range(2, 20)]
    low = [mobile for mobile in mobiles if mobile.startswith("138000")]
    assert 0 < len(low) < len(mobiles)
    await two.stack.send_batch(mobiles)
    await two.stack.send("13800000002", brand_id=OTHER_BRAND)
    assert await two.stack.wait_until_final(31) == {MessageState.DELIVERED: 31}
    assert taken(two.second) == Counter(low)
    assert await two.accounts() == {"second": len(low), "chuanglan": 31 - len(low)}
    assert await two.stack.balance() == (GRANTED - 30, 0)
    assert sum(payment.segments for payment in await two.stack.payments()) == 30


async def test_a_batch_fails_over_in_its_middle_and_everybody_gets_it_once(two: Two, tmp_path: Path) -> None:
    """The first account stops while a batch is under way: what it took stays, the rest goes to the other, and the
    books agree."""
    await two.put()
    await two.route("chuanglan", priority=0)
    await two.route("second", priority=1)
    two.first.change_settings({"latency_ms": 50})
    await two.stack.worker(slots_marketing=1, account_pause_seconds=60)
    mobiles = numbers(60)
    for part in range(6):
        await two.stack.send_batch(mobiles[10 * part : 10 * part + 10], request_id=f"batch-{part}")

    async def some_sent() -> bool:
        return bool(taken(two.first))

    await eventually(some_sent)
    two.first.change_settings({"error_rates": {"109": 1.0}})
    assert await two.stack.wait_until_final(60) == {MessageState.DELIVERED: 60}
    assert taken(two.first, two.second) == Counter(mobiles)
    assert taken(two.first)
    assert taken(two.second)
    assert await two.stack.balance() == (GRANTED - 60, 0)
    assert sum(payment.segments - payment.refunded for payment in await two.stack.payments()) == 60
    books = StackSettings(
        _env_file=None,
        database_url=two.stack.database_url,
        redis_url=two.stack.redis_url,
        data_dir=tmp_path / "data",
    )
    assert await reconcile.run(books, progress=lambda _what, _done, _total: None) == []


@pytest.mark.parametrize("unreachable", [False, True])
async def test_what_one_account_does_not_accept_goes_to_the_next(two: Two, unreachable: bool) -> None:
    """Refused for now, or not reached: each message is taken by the other at once, under the same payment."""
    await two.put(url="http://127.0.0.1:9" if unreachable else "")
    await two.route("second", priority=0)
    await two.route("chuanglan", priority=1)
    two.second.change_settings({"throttle_rate": 1.0})
    await two.stack.worker(retry_base_seconds=600, retry_max_seconds=600, hold_seconds=600)
    ids = [await two.stack.send(mobile) for mobile in numbers(5)]
    assert await two.stack.wait_until_final(5) == {MessageState.DELIVERED: 5}
    assert taken(two.first) == Counter(numbers(5))
    assert await two.accounts() == {"chuanglan": 5}
    assert len(await two.stack.payments()) == 5
    # Each call had a mark and an id of its own.
    for call_id, message_id in await two.stack.rows("select call_id, message_id from message"):
        assert call_id in (message_id, f"{message_id}-1")
        assert message_id in ids


@pytest.mark.parametrize(
    ("fate", "state"), [({"error_rates": {"105": 1.0}}, MessageState.FAILED), ({"garbage_rate": 1.0}, None)]
)
async def test_what_was_refused_or_may_have_been_taken_never_fails_over(
    two: Two, fate: dict[str, Any], state: MessageState | None
) -> None:
    """Refused for good: failed and refunded. Unknown: the first account's receipt decides. The other hears nothing."""
    await two.put()
    await two.route("chuanglan", priority=0)
    await two.route("second", priority=1)
    two.first.change_settings(fate)
    await two.stack.worker()
    for mobile in numbers(3):
        await two.stack.send(mobile)
    assert await two.stack.wait_until_final(3) == {state or MessageState.DELIVERED: 3}
    assert not taken(two.second)
    assert await two.stack.balance() == (GRANTED - (0 if state else 3), 0)


async def test_accounts_and_rules_take_effect_without_a_restart(two: Two) -> None:
    """Added, re-routed, paused, resumed and removed while a worker runs; a message waits for a paused account."""
    stack = two.stack
    await stack.worker()
    first = await stack.send("13800000102")
    assert (await stack.wait_for_state(first, MessageState.DELIVERED)).carrier_account == "chuanglan"
    await two.put()
    await two.route()

    mobiles = iter(numbers(1_000, 1_000))

    async def goes_to_second() -> bool:
        message_id = await stack.send(next(mobiles))
        message = await stack.wait_for_state(message_id, MessageState.DELIVERED)
        return bool(message.carrier_account == "second")

    await eventually(goes_to_second)
    await two.change(paused=True)
    await eventually(lambda: _is_noted(stack, "second is paused"))
    waiting = await stack.send("13800000302")
    await eventually(lambda: _is_claimed(stack, waiting))
    await two.change(paused=False)
    assert (await stack.wait_for_state(waiting, MessageState.DELIVERED)).carrier_account == "second"
    await two.call("RemoveRoutingRule", pb.RemoveRoutingRuleRequest(account_id="second"))
    await two.call("RemoveCarrierAccount", pb.RemoveCarrierAccountRequest(account_id="second"))
    await eventually(lambda: _is_noted(stack, "works", alone=True))
    last = await stack.send("13800000402")
    assert (await stack.wait_for_state(last, MessageState.DELIVERED)).carrier_account == "chuanglan"


async def test_a_worker_without_an_account_begins_with_the_first(two: Two) -> None:
    """Nothing is set up in the environment: messages stay queued until an account is put."""
    await two.stack.worker(chuanglan_account="", carrier_account="second")
    message_id = await two.stack.send()
    await two.put()
    await two.stack.wait_for_state(message_id, MessageState.DELIVERED)
    assert len(taken(two.second)) == 1


async def test_a_limit_is_shared_and_delays_nobody_else(two: Two) -> None:
    """Marketing over an account that lets next to nothing through waits, whichever of two workers has it; codes of the
    same brand over another account, and marketing of another brand, go on. Once there is room it keeps its rate."""
    stack = two.stack
    await two.put(rate=0.001, burst=2)
    await two.route(sms_type=MARKETING, brand_id=BRAND)
    for _ in range(2):
        await stack.worker(failover_wait_seconds=60)
    await stack.send_batch(numbers(42))
    code = await stack.send("13800009972", sms_type=VERIFICATION)
    await stack.send_batch(numbers(10, 500), brand_id=OTHER_BRAND)
    await stack.wait_for_state(code, MessageState.DELIVERED)
    await eventually(lambda: _all_taken(two.first, 11))
    assert len(taken(two.second)) <= 4
    started = time.monotonic()
    await two.change(rate=40)
    assert await stack.wait_until_final(53) == {MessageState.DELIVERED: 53}
    # A burst may go at once, and one call more may be owed.
    assert time.monotonic() - started > (42 - 4 - 4) / 40
    assert taken(two.second) == Counter(numbers(42))
    assert max(Counter(entry["uid"] for entry in two.second.entries()).values()) <= 2


async def test_a_brand_limit_holds_its_brand_alone(two: Two) -> None:
    """A brand under a limit waits; another's messages over the same account do not."""
    stack = two.stack
    await two.limit(rate=0.001)
    await stack.worker()
    await eventually(lambda: _is_shared(stack))
    await asyncio.gather(*(stack.send(mobile) for mobile in numbers(12)))
    other = await stack.send("13800009972", brand_id=OTHER_BRAND)
    await stack.wait_for_state(other, MessageState.DELIVERED)
    assert len(stack.simulator.entries()) <= 2
    await two.limit(rate=1_000)
    assert await stack.wait_until_final(13) == {MessageState.DELIVERED: 13}


async def test_a_busy_account_gives_way(two: Two) -> None:
    """One that is at its limit for longer than a message waits for it: the next account takes the rest."""
    await two.put(rate=0.01, burst=1)
    await two.route("second", priority=0)
    await two.route("chuanglan", priority=1)
    busy = metric("smsbill_retries_total", what="busy")
    await two.stack.worker(failover_wait_seconds=0.1)
    for mobile in numbers(4):
        await two.stack.send(mobile)
    assert await two.stack.wait_until_final(4) == {MessageState.DELIVERED: 4}
    assert taken(two.first, two.second) == Counter(numbers(4))
    assert len(taken(two.second)) <= 1
    assert metric("smsbill_retries_total", what="busy") > busy


async def test_a_low_balance_is_told_once(two: Two, capsys: pytest.CaptureFixture[str]) -> None:
    """Stored and told when it falls below the alert, and once when it is enough again."""
    await two.put(balance_alert=10**12)
    await two.stack.worker(balance_seconds=1)
    lows = "select balance is not null, balance_low from carrier_account"
    await eventually(lambda: _rows_are(two.stack, lows, [(True, True)]))
    assert metric("smsbill_carrier_balance_low", account="second") == 1
    await two.change(balance_alert=1)
    await eventually(lambda: _rows_are(two.stack, lows, [(True, False)]))
    told = capsys.readouterr().out
    assert told.count("CARRIER BALANCE LOW") == 1
    assert told.count("carrier balance is enough again") == 1


async def test_the_environments_account_is_alone_as_ever(database_url: str, redis_url: str) -> None:
    """Without tables a worker takes the carrier that it was given, and asks Redis for no limits."""
    async with running_stack(database_url, redis_url, **SOON) as stack:
        carrier = ScriptedCarrier()
        carrier.outcomes = [CallOutcome(Verdict.RETRY, code="103")]
        await stack.worker(carrier=carrier)
        message_id = await stack.send()
        await stack.wait_for_state(message_id, MessageState.SENT)
        assert [call.call_id for call in carrier.calls] == [message_id, f"{message_id}-1"]


async def _all_taken(simulator: CarrierSimulator, count: int) -> bool:
    return len(taken(simulator)) == count


async def _is_shared(stack: Stack) -> bool:
    accounts = stack.workers[0]._accounts
    return accounts is not None and not accounts.is_alone


async def _is_noted(stack: Stack, words: str, *, alone: bool = False) -> bool:
    accounts = stack.workers[0]._accounts
    assert accounts is not None
    return accounts.state == words if alone else words in accounts.state


async def _is_claimed(stack: Stack, message_id: str) -> bool:
    return await _rows_are(stack, f"select state from dispatch where dispatch_id = '{message_id}'", [(3,)])


async def _rows_are(stack: Stack, query: str, expected: list[tuple[Any, ...]]) -> bool:
    return await stack.rows(query) == expected
