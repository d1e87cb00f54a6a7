"""ListBalances over a real channel and PostgreSQL, on a clock that stands still: figures, filters, pages.

All tests share one cost centre; each takes brands of its own and asks with a token that sees those only.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import ledger_clock
import psycopg
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from ledger_service import CostCenter, moment, outcomes_of, request_id, running_cost_center

from costcenter import queries
from infra.embedded import EmbeddedServers
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import cost_center_pb2 as pb
from scripts import databases

pytestmark = pytest.mark.asyncio(loop_scope="module")

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
WEEK = 7 * DAY


@dataclass
class Stage:
    """A cost centre whose clock a test moves."""

    center: CostCenter
    clock: ledger_clock.StillClock
    now: datetime = START

    async def pass_time(self, duration: timedelta) -> None:
        """Let time pass."""
        self.now += duration
        await self.clock.set(self.now)

    async def balances(self, brand_ids: list[int], **fields: Any) -> dict[int, Any]:
        """The balances of some brands."""
        token = await self.center.token([1], brand_ids)
        reply = await self.center.call("ListBalances", token=token, **fields)
        assert moment(reply.as_of) == self.now
        return {balance.brand_id: balance for balance in reply.balances}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(servers: EmbeddedServers, database_template: str) -> AsyncIterator[Stage]:
    with databases.fresh(servers.database_url, database_template) as url:
        ledger_clock.install(url, START)
        async with (
            await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=10) as connection,
            running_cost_center(url) as center,
        ):
            yield Stage(center, ledger_clock.StillClock(connection))


async def test_a_brand_is_told_whole(stage: Stage) -> None:
    """Name, status, figures, what was paid less what came back, and the next end with what is available of it."""
    center = stage.center
    brand_id, empty = await center.brand(100), await center.brand(name="Empty", status=2)
    await center.grant(brand_id, 50, stage.now + 30 * DAY)
    await center.grant(brand_id, 20, stage.now + 30 * DAY)
    order_no = (await center.freeze(brand_id, 60)).order_no
    payment_no = (await center.pay(brand_id, order_no, 40)).payment_no
    failed = [pb.FailedMessage(message_id="m", segments=3)]
    await center.call(
        "SmsSendStatusCallBack", brand_id=brand_id, request_id=request_id(), payment_no=payment_no, failed=failed
    )
    told = await stage.balances([brand_id, empty])
    balance = told[brand_id]
    assert (balance.total, balance.frozen, balance.available, balance.paid_last_7_days) == (133, 20, 113, 37)
    assert (balance.name, balance.status, moment(balance.created_at)) == (f"Brand {brand_id}", 1, stage.now)
    # 50 and 20 end; 20 are held and 37 gone of them.
    assert (moment(balance.next_expiry_at), balance.next_expiry_segments) == (stage.now + 30 * DAY, 13)
    nothing = told[empty]
    assert (nothing.name, nothing.status, nothing.available) == ("Empty", admin_pb.BRAND_STATUS_SUSPENDED, 0)
    assert not nothing.HasField("next_expiry_at")


async def test_what_is_due_counts_before_it_is_booked(stage: Stage) -> None:
    """An ended package is not available and an ended freeze holds nothing, with nothing written by the question."""
    center = stage.center
    brand_id = await center.brand(10)
    await center.grant(brand_id, 50, stage.now + DAY)
    await center.grant(brand_id, 7, stage.now + 2 * DAY)
    await center.freeze(brand_id, 55, time_to_live=Duration(seconds=36 * 3_600))
    before = await center.rows("select * from balance where brand_id = %s", brand_id)
    await stage.pass_time(DAY)
    balance = (await stage.balances([brand_id]))[brand_id]
    assert (balance.total, balance.frozen, balance.available) == (67, 55, 12)
    assert (moment(balance.next_expiry_at), balance.next_expiry_segments) == (stage.now + DAY, 2)
    await stage.pass_time(12 * HOUR)
    # The freeze has ended: what it held of the ended package is gone, the rest is back.
    balance = (await stage.balances([brand_id]))[brand_id]
    assert (balance.total, balance.frozen, balance.available) == (17, 0, 17)
    assert (balance.next_expiry_segments, balance.paid_last_7_days) == (7, 0)
    assert await center.rows("select * from balance where brand_id = %s", brand_id) == before
    # By what is recorded 12 would be available.
    assert await stage.balances([brand_id], available_below=17) == {}
    assert set(await stage.balances([brand_id], available_below=18)) == {brand_id}


async def test_payments_count_for_seven_days(stage: Stage) -> None:
    """A payment of exactly seven days ago counts no more; packages that end or are bought meanwhile change nothing."""
    center = stage.center
    brand_id = await center.brand(100)
    await center.charge(brand_id, 30)
    await stage.pass_time(HOUR)
    await center.charge(brand_id, 8)
    await center.grant(brand_id, 1_000, stage.now + 2 * DAY)
    await stage.pass_time(3 * DAY)
    assert (await stage.balances([brand_id]))[brand_id].paid_last_7_days == 38
    await center.call("BookDue")
    assert (await stage.balances([brand_id]))[brand_id].paid_last_7_days == 38
    await stage.pass_time(4 * DAY - HOUR - timedelta(microseconds=1))
    assert (await stage.balances([brand_id]))[brand_id].paid_last_7_days == 38
    await stage.pass_time(timedelta(microseconds=1))
    assert (await stage.balances([brand_id]))[brand_id].paid_last_7_days == 8
    await stage.pass_time(HOUR)
    assert (await stage.balances([brand_id]))[brand_id].paid_last_7_days == 0


@pytest.mark.parametrize("seed", range(3))
async def test_figures_of_a_random_life_equal_the_records(stage: Stage, seed: int) -> None:
    """After each step: figures as GetBalance tells them, next end by the packages, paid by payments and refunds.

    Steps buy, freeze, pay, release, refund (also into ended packages), claw back and let up to two days pass.
    """
    center, choices = stage.center, random.Random(seed)
    brand_id = await center.brand(200)
    orders: list[str] = []
    payments: list[tuple[str, int]] = []
    for step in range(40):
        if choices.random() < 0.4:
            await stage.pass_time(timedelta(seconds=choices.randint(1, 2 * 86_400)))
        await outcomes_of([_random_call(stage, choices, brand_id, orders, payments, step)])
        await _compare(stage, brand_id)


async def _random_call(
    stage: Stage, choices: random.Random, brand_id: int, orders: list[str], payments: list[tuple[str, int]], step: int
) -> None:
    center = stage.center
    match choices.choice(("grant", "freeze", "freeze", "pay", "pay", "release", "refund", "refund", "claw back")):
        case "grant":
            await center.grant(brand_id, choices.randint(1, 60), stage.now + choices.randint(1, 5) * DAY)
        case "freeze":
            order = await center.freeze(
                brand_id, choices.randint(1, 40), time_to_live=Duration(seconds=choices.randint(1, 5) * 86_400)
            )
            orders.append(order.order_no)
        case "pay" if orders:
            segments = choices.randint(1, 20)
            payment = await center.pay(brand_id, choices.choice(orders[-3:]), segments)
            payments.append((payment.payment_no, segments))
        case "release" if orders:
            order_no = choices.choice(orders[-3:])
            await center.call("SmsReleaseFreezeNum", brand_id=brand_id, request_id=request_id(), order_no=order_no)
            await center.call("ApplyReleases")
        case "refund" if payments:
            payment_no, segments = choices.choice(payments)
            failed = [pb.FailedMessage(message_id=f"m{step}", segments=choices.randint(1, segments))]
            await center.call(
                "SmsSendStatusCallBack",
                brand_id=brand_id,
                request_id=request_id(),
                payment_no=payment_no,
                failed=failed,
            )
        case "claw back":
            await center.call(
                "AdjustPackage",
                brand_id=brand_id,
                request_id=request_id(),
                author="auditor",
                reason="a test",
                claw_back=admin_pb.ClawBackAdjustment(package_id=1, segments=choices.randint(1, 9)),
            )


async def _compare(stage: Stage, brand_id: int) -> None:
    center = stage.center
    balance = (await stage.balances([brand_id]))[brand_id]
    assert (balance.total, balance.frozen, balance.available) == await center.figures(brand_id)
    packages = (await center.call("ListPackages", brand_id=brand_id)).packages
    ends = [(moment(p.expires_at), p.remaining - p.held) for p in packages if p.HasField("expires_at")]
    first = min((at for at, available in ends if available), default=None)
    assert (moment(balance.next_expiry_at) if balance.HasField("next_expiry_at") else None) == first
    assert balance.next_expiry_segments == sum(available for at, available in ends if at == first)
    ((paid, refunded),) = await center.rows(
        "select (select coalesce(sum(segments), 0) from payment where brand_id = %s and created_at > %s),"
        " (select coalesce(sum(segments), 0) from refund where brand_id = %s and created_at > %s)",
        *(brand_id, stage.now - WEEK) * 2,
    )
    assert balance.paid_last_7_days == paid - refunded


async def test_pages_and_filters(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every brand once, in order, however small the pages; a filtered page looks at a bounded number of brands."""
    center = stage.center
    mine = [await center.brand(segments) for segments in (5, 50, 5, 50, 5, 50)]
    await center.call("PutBrand", brand_id=mine[2], status=2)
    token = await center.token([1], mine)
    reader = _Reader(center, token)
    assert await reader.pages(page_size=2) == [mine[:2], mine[2:4], mine[4:]]
    assert await reader.pages(page_size=6) == [mine]
    assert await reader.pages(available_below=50) == [mine[::2]]
    assert await reader.pages(available_below=51, status=1) == [[*mine[:2], *mine[3:]]]
    assert await reader.pages(status=2) == [[mine[2]]]
    assert await reader.pages(status=3) == [[]]
    for brand_id, name in zip(mine, ("Nord", "nordwest", "Süd", "NORDOST", "100%", "no_d"), strict=True):
        await center.call("PutBrand", brand_id=brand_id, name=name)
    for prefix, found in {"nOrD": [0, 1, 3], "100%": [4], "%": [], "no_": [5], "ord": []}.items():
        assert await reader.pages(name_prefix=prefix) == [[mine[place] for place in found]], prefix
    assert await reader.pages(name_prefix="nord", page_size=2, available_below=51) == [mine[:2], [mine[3]]]
    monkeypatch.setattr(queries, "SCAN_MAX", 3)
    assert await reader.pages(available_below=50) == [mine[:3:2], [mine[4]], []]
    assert await reader.pages(page_size=1, available_below=50) == [[mine[0]], [mine[2]], [mine[4]]]
    assert await reader.pages(status=3) == [[], [], []]


@dataclass
class _Reader:
    center: CostCenter
    token: str

    async def pages(self, **fields: Any) -> list[list[int]]:
        found: list[list[int]] = []
        token = ""
        while not found or token:
            reply = await self.center.call("ListBalances", token=self.token, page_token=token, **fields)
            found.append([balance.brand_id for balance in reply.balances])
            token = reply.next_page_token
        return found


async def test_a_token_sees_its_brands(stage: Stage) -> None:
    """Others are not even named."""
    center = stage.center
    mine, other = await center.brand(1), await center.brand(1)
    assert set(await stage.balances([mine])) == {mine}
    everything = await center.call("ListBalances", page_size=1_000)
    assert {balance.brand_id for balance in everything.balances} >= {mine, other}
