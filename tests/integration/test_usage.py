"""Aim: usage figures are what the message records say, at every moment, whatever becomes of messages and whoever is
killed; and a rebuild says the same. Method: a real stack whose carrier refuses, fails and forgets, workers whose
connections are cut in the middle of it, and a comparison in one snapshot again and again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from gateway_harness import SECONDS, eventually
from google.protobuf.timestamp_pb2 import Timestamp
from worker_harness import ADMIN, BRAND, OTHER_BRAND, Stack, numbers, running_stack

from infra.grpc_server import bearer
from infra.grpc_status import from_error
from protos.smsgateway.v1 import statistics_pb2, statistics_pb2_grpc
from smsbill import usage_figures
from smsgateway.store import usage as store

ZONE = "Asia/Shanghai"
QUICK: dict[str, Any] = {
    "usage_fold_seconds": 0.1,
    "usage_count_seconds": 0.2,
    "usage_count_share": 1,
    # A day whose count was cut off is due again after it.
    "usage_count_hold_seconds": 1,
    "usage_fold_page": 7,
}
CUT = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'smsbill-worker'"


async def differences(url: str) -> list[Any]:
    """What differs between the figures and the records now."""
    return await asyncio.wait_for(usage_figures.check(url, zone=ZONE, progress=lambda *_: None), SECONDS)


async def rebuild(url: str) -> int:
    """Make the figures anew."""
    work = usage_figures.rebuild(url, zone=ZONE, from_brand=1, progress=lambda *_: None)
    return await asyncio.wait_for(work, SECONDS)


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    behaviour = {
        "error_rates": {"107": 0.1},
        "receipt_states": {"UNDELIV": 0.2},
        "receipt_loss": 0.1,
        "receipt_double": 0.2,
        "garbage_rate": 0.05,
        "seed": 7,
    }
    async with running_stack(database_url, redis_url, simulator=behaviour) as running:
        yield running


async def test_figures_are_the_records_whatever_happens(stack: Stack) -> None:
    """Random sends of all kinds with cut connections: nothing differs, before, meanwhile, at the end, and rebuilt."""
    await stack.grant(BRAND, refund_undelivered=True)
    draw = random.Random(11)
    # A time for receipts that some of them miss.
    hours = 1.5 / 3_600
    for _ in range(2):
        await stack.worker(**QUICK, outcome_hours=hours, receipt_hours=hours)
    assert await differences(stack.database_url) == []
    sent = 0
    for number in range(6):
        mobiles = numbers(20, first=draw.randrange(60))
        await asyncio.gather(
            *(
                stack.send(
                    mobile,
                    request_id=f"single-{number}-{mobile}",
                    brand_id=draw.choice((BRAND, OTHER_BRAND)),
                    sms_type=draw.choice((1, 2)),
                )
                for mobile in mobiles
            )
        )
        await stack.send_batch(mobiles, request_id=f"batch-{number}", brand_id=draw.choice((BRAND, OTHER_BRAND)))
        sent += 2 * len(mobiles)
        if number % 2:
            await stack.rows(CUT)
        assert await differences(stack.database_url) == []

    await stack.wait_until_final(sent, 2 * SECONDS)
    assert await differences(stack.database_url) == []
    states = await stack.states()
    assert len(states) >= 4, f"the test is to show several outcomes: {states}"

    async def folded() -> bool:
        rows = await stack.rows(
            "select (select count(*) from usage_change),"
            " (select count(*) from usage_day where changes <> counted_changes)"
        )
        return rows == [(0, 0)]

    # Loops whose connections were cut again and again wait a while before they try once more.
    await eventually(folded, 3 * SECONDS)
    assert await differences(stack.database_url) == []
    figures = "select brand_id, hour, sms_type, account, {} from usage_hour order by 1, 2, 3, 4".format(
        ", ".join(store._COUNTERS)
    )
    days = "select brand_id, day, sms_type, recipients from usage_day order by 1, 2, 3"
    kept = await stack.rows(figures), await stack.rows(days)
    assert sum(row[4] for row in kept[0]) == sent
    (refunded,) = await stack.rows("select sum(refunded_segments), sum(failed_segments) from usage_hour")
    assert refunded[0] > refunded[1] > 0, "what was not delivered came back as well"
    assert await rebuild(stack.database_url) == 2
    assert (await stack.rows(figures), await stack.rows(days)) == kept

    await _is_told(stack, sent)

    # A figure that is wrong is found, and a rebuild mends it.
    await stack.rows("update usage_hour set delivered = delivered + 1 where brand_id = %s", BRAND)
    await stack.rows("update usage_day set recipients = 0 where brand_id = %s and sms_type = 0", OTHER_BRAND)
    found = await differences(stack.database_url)
    assert {(each.brand_id, each.figure) for each in found} == {(BRAND, "delivered"), (OTHER_BRAND, "recipients")}
    await rebuild(stack.database_url)
    assert await differences(stack.database_url) == []


async def _is_told(stack: Stack, sent: int) -> None:
    """The RPC tells the same figures, in pages of any size, to those who may."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.gateway.grpc_port}") as channel:
        stub = statistics_pb2_grpc.StatisticsStub(channel)

        async def pages(size: int, **fields: Any) -> list[statistics_pb2.Usage]:
            request = statistics_pb2.GetUsageRequest(page_size=size, **fields)
            found: list[statistics_pb2.Usage] = []
            while True:
                page = await stub.GetUsage(request, metadata=bearer(ADMIN), timeout=SECONDS)
                assert len(page.usage) <= size
                found += page.usage
                if not page.next_page_token:
                    return found
                request.page_token = page.next_page_token

        hours = await pages(2, unit=1, by_type=True, by_carrier=True)
        assert hours == await pages(1_000, unit=1, by_type=True, by_carrier=True)
        assert len(hours) >= 5
        assert [each.brand_id for each in hours] == sorted(each.brand_id for each in hours)
        days = await pages(100)
        assert {each.brand_id for each in days} == {BRAND, OTHER_BRAND}
        (month,) = await pages(100, unit=3, sum_brands=True)
        assert month.brand_id == 0
        assert not month.HasField("recipients")
        for told in (hours, days, [month]):
            assert sum(each.messages for each in told) == sent
            for each in told:
                states = (each.waiting, each.unknown, each.sent, each.delivered, each.undelivered, each.expired)
                assert each.messages == sum(states) + each.failed + each.cancelled
        (numbers_of,) = await stack.rows("select count(distinct mobile) from message where brand_id = %s", BRAND)
        assert sum(each.recipients for each in days if each.brand_id == BRAND) == numbers_of[0]

        bad: list[tuple[dict[str, Any], str]] = [
            ({"brand_id": -1}, "brand_id"),
            ({"unit": 9}, "unit"),
            ({"time_zone": "Mars/Base"}, "time_zone"),
            ({"sms_types": [4]}, "sms_types"),
            ({"carrier_accounts": ["a\0"]}, "carrier_accounts"),
            ({"unit": 1, "from": Timestamp(seconds=1), "to": Timestamp(seconds=10**9)}, "from"),
            ({"from": Timestamp(seconds=10**9), "to": Timestamp(seconds=10**9)}, "from"),
            ({"to": Timestamp(seconds=10**18)}, "to"),
            ({"page_token": "none"}, "page_token"),
            ({"page_size": 1_001}, "page_size"),
        ]
        for fields, field in bad:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await pages(fields.pop("page_size", 10), **fields)
            assert list(from_error(caught.value).fields) == [field]
