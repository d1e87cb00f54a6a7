"""The way to the cost centre: what is retried, what is passed on, and what is told apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from fake_cost_center import SERVICE_SECRET, FakeCostCenter
from gateway_harness import BRAND, OTHER_BRAND, SECONDS, SENDER, gateway_settings, metric

from infra.authorization import Role, secret_hash
from infra.errors import Refusal
from protos.costcenter.v1 import cost_center_pb2, types_pb2
from smsgateway.ledger_client import LedgerClient, Unsettled

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def ledger(fake_costcenter: FakeCostCenter) -> AsyncIterator[LedgerClient]:
    """A client with short waits."""
    client = make(fake_costcenter)
    yield client
    await client.close()


def make(fake: FakeCostCenter, **changes: Any) -> LedgerClient:
    """A client of this cost centre."""
    return LedgerClient(gateway_settings(fake.target, "x", "x", **changes))


def freeze(request_id: str = "r1", segments: int = 1, brand_id: int = BRAND) -> cost_center_pb2.SmsSendPrePayRequest:
    """A freeze."""
    return cost_center_pb2.SmsSendPrePayRequest(
        brand_id=brand_id,
        request_id=request_id,
        sms_type=types_pb2.SMS_TYPE_VERIFICATION,
        segments=segments,
    )


async def test_batch_outcomes_are_in_order(ledger: LedgerClient, fake_costcenter: FakeCostCenter) -> None:
    """Replies and refusals stand where their items stood, with reason and figures."""
    fake_costcenter.balances[BRAND] = 3
    outcomes = await ledger.batch_freeze([freeze("a", 2), freeze("b", 2), freeze("c", 1), freeze("d", 1, 999)])
    assert [getattr(outcome, "reason", "ok") for outcome in outcomes] == [
        "ok",
        "INSUFFICIENT_BALANCE",
        "ok",
        "BRAND_NOT_FOUND",
    ]
    refusal = outcomes[1]
    assert isinstance(refusal, Refusal)
    assert not isinstance(refusal, Unsettled)
    assert (refusal.code, refusal.metadata["available"]) == (grpc.StatusCode.FAILED_PRECONDITION, "1")
    assert await ledger.batch_freeze([]) == []


async def test_large_batches_are_cut(fake_costcenter: FakeCostCenter) -> None:
    """No call holds more than ledger_items_max items, and the outcomes keep their order."""
    ledger = make(fake_costcenter, ledger_items_max=10)
    outcomes = await ledger.batch_freeze([freeze(f"r{n}") for n in range(25)])
    assert sorted(fake_costcenter.group_sizes) == [5, 10, 10]
    assert [getattr(outcome, "order_no", "") for outcome in outcomes] == [f"order-r{n}" for n in range(25)]
    await ledger.close()


async def test_refusal_of_a_unary_call(ledger: LedgerClient, fake_costcenter: FakeCostCenter) -> None:
    """A unary refusal comes through with code, reason and metadata, without another attempt."""
    fake_costcenter.balances[BRAND] = 0
    with pytest.raises(Refusal) as caught:
        await ledger.freeze(freeze())
    assert (caught.value.reason, caught.value.metadata["requested"]) == ("INSUFFICIENT_BALANCE", "1")
    assert not isinstance(caught.value, Unsettled)
    assert fake_costcenter.calls == 1


async def test_outage_is_ridden_out(fake_costcenter: FakeCostCenter) -> None:
    """A lost reply is asked for again with the same request_id, so that there is one freeze."""
    fake_costcenter.losing_replies = True
    ledger = make(fake_costcenter, ledger_attempts=100, ledger_backoff_seconds_max=0.1)
    retries = metric("smsbill_ledger_retries_total", method="SmsSendPrePay")
    call = asyncio.create_task(ledger.freeze(freeze()))
    async with asyncio.timeout(SECONDS):
        while fake_costcenter.calls < 3:  # noqa: ASYNC110 - the other side counts
            await asyncio.sleep(0.01)
    fake_costcenter.losing_replies = False
    assert (await asyncio.wait_for(call, SECONDS)).order_no == "order-r1"
    assert len(fake_costcenter.freezes) == 1
    assert metric("smsbill_ledger_retries_total", method="SmsSendPrePay") >= retries + 2
    await ledger.close()


async def test_attempts_are_bounded(fake_costcenter: FakeCostCenter) -> None:
    """After the attempts of the setting a call ends as unsettled; so do all items of a batch."""
    fake_costcenter.down = True
    ledger = make(fake_costcenter, ledger_attempts=3)
    with pytest.raises(Unsettled) as caught:
        await ledger.freeze(freeze())
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert fake_costcenter.calls == 3
    outcomes = await ledger.batch_freeze([freeze("a"), freeze("b")])
    assert [type(outcome) for outcome in outcomes] == [Unsettled, Unsettled]
    await ledger.close()


async def test_time_is_bounded(fake_costcenter: FakeCostCenter) -> None:
    """A cost centre that never answers is given up at ledger_call_seconds."""
    fake_costcenter.gate.clear()
    ledger = make(fake_costcenter, ledger_attempts=100, ledger_attempt_seconds=0.1, ledger_call_seconds=0.5)
    with pytest.raises(Unsettled):
        await asyncio.wait_for(ledger.freeze(freeze()), SECONDS)
    assert fake_costcenter.calls > 1
    fake_costcenter.gate.set()
    await ledger.close()


@pytest.mark.parametrize(
    ("code", "unsettled", "calls"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, False, 1),
        (grpc.StatusCode.INTERNAL, True, 1),
        (grpc.StatusCode.PERMISSION_DENIED, True, 1),
        (grpc.StatusCode.UNAUTHENTICATED, True, 1),
        (grpc.StatusCode.UNAVAILABLE, True, 2),
        (grpc.StatusCode.ALREADY_EXISTS, False, 1),
    ],
)
async def test_statuses(
    ledger: LedgerClient, fake_costcenter: FakeCostCenter, code: grpc.StatusCode, unsettled: bool, calls: int
) -> None:
    """Only a judgement of the cost centre counts as one; our own token's trouble is not the caller's."""
    fake_costcenter.before_freeze = lambda _: Refusal(code, "REASON", "so")
    with pytest.raises(Refusal) as caught:
        await ledger.freeze(freeze())
    assert isinstance(caught.value, Unsettled) is unsettled
    assert caught.value.code is (grpc.StatusCode.UNAVAILABLE if unsettled else code)
    assert fake_costcenter.calls == calls


async def test_turned_away_after_a_lost_reply(fake_costcenter: FakeCostCenter) -> None:
    """RESOURCE_EXHAUSTED says nothing about an attempt before it whose reply was lost: unsettled."""
    codes = iter([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
    fake_costcenter.before_freeze = lambda _: Refusal(next(codes), "REASON", "so")
    ledger = make(fake_costcenter, ledger_attempts=5)
    with pytest.raises(Unsettled):
        await ledger.freeze(freeze())
    await ledger.close()


async def test_items_that_failed_are_unsettled(ledger: LedgerClient, fake_costcenter: FakeCostCenter) -> None:
    """An item with INTERNAL or UNAVAILABLE was not judged; its neighbour's reply stands."""

    def fail(request: cost_center_pb2.SmsSendPrePayRequest) -> Refusal | None:
        return Refusal(grpc.StatusCode.INTERNAL, "INTERNAL", "bug") if request.request_id == "bad" else None

    fake_costcenter.before_freeze = fail
    bad, good = await ledger.batch_freeze([freeze("bad"), freeze("good")])
    assert isinstance(bad, Unsettled)
    assert not isinstance(good, Refusal)


async def test_tokens(ledger: LedgerClient, fake_costcenter: FakeCostCenter) -> None:
    """A token becomes a principal with everything that its roles include; an unknown one is None."""
    sender = await ledger.check_token(secret_hash(SENDER))
    assert sender is not None
    assert (sender.roles, sender.brand_ids) == (frozenset({Role.SENDER, Role.VIEWER}), frozenset({BRAND}))
    service = await ledger.check_token(secret_hash(SERVICE_SECRET))
    assert service is not None
    assert service.brand_ids is None
    assert await ledger.check_token(secret_hash("unknown")) is None
    fake_costcenter.add_token("many", [Role.VIEWER, Role.FINANCE], [BRAND, OTHER_BRAND])
    many = await ledger.check_token(secret_hash("many"))
    assert many is not None
    assert (many.roles, many.brand_ids) == (frozenset({Role.FINANCE, Role.VIEWER}), frozenset({BRAND, OTHER_BRAND}))


async def test_after_close(fake_costcenter: FakeCostCenter) -> None:
    """A call after the channel was closed is unsettled, not an error of the program."""
    ledger = make(fake_costcenter)
    await ledger.close()
    with pytest.raises(Unsettled):
        await ledger.freeze(freeze())
