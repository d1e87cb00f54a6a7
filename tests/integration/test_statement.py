"""Statements over a real channel and by the real command: borders, every kind of record, refusals, what closes a month.

The brands' lives are played under a clock of the past, so that records lie exactly at borders; the cost centre that
answers runs by the database's clock.
"""

from __future__ import annotations

import asyncio
import csv
import io
import itertools
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import grpc
import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from ledger_history import APRIL, MARCH, TICK, Clock, Life, busy_march, differences, ledger, replay
from ledger_service import (
    ADMIN,
    SECONDS,
    CostCenter,
    moment,
    number,
    running_cost_center,
    timestamp,
)
from psycopg import AsyncConnection

from infra.embedded import EmbeddedServers
from infra.errors import Refusal
from infra.paging import encode_token
from protos.costcenter.v1 import cost_center_pb2 as pb
from scripts import databases

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHANGHAI = ZoneInfo("Asia/Shanghai")
MAY = datetime(2024, 5, 1, tzinfo=SHANGHAI).astimezone(UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
KINDS = {value.number for value in pb.StatementKind.DESCRIPTOR.values if value.number}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def center(servers: EmbeddedServers, database_template: str) -> AsyncIterator[CostCenter]:
    with databases.fresh(servers.database_url, database_template) as url:
        async with running_cost_center(url) as running:
            yield running


async def pages(center: CostCenter, **fields: Any) -> tuple[pb.Statement, list[pb.StatementLine]]:
    """A statement and all of its lines."""
    reply = await center.call("GetStatement", **fields)
    statement, lines = reply.statement, list(reply.lines)
    while reply.next_page_token:
        reply = await center.call("GetStatement", page_token=reply.next_page_token, **fields)
        assert not reply.HasField("statement")
        lines += reply.lines
    return statement, lines


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def busy(center: CostCenter) -> int:
    """A brand with a busy March 2024 of which part is due and not booked."""
    url, clock, brand_id = center.settings.database_url, Clock(MARCH), number()
    async with ledger(url, clock) as (engine, _):
        life = Life(engine, clock, brand_id, random.Random(11), pace=2_500)
        await life.offer()
        await busy_march(life)
    return brand_id


async def test_a_busy_month_adds_up_and_agrees_with_its_records(center: CostCenter, busy: int) -> None:
    """Every kind of record, to the segment; opening and closing are those of the borders; reconcile finds nothing."""
    statement, lines = await pages(center, brand_id=busy, month="2024-03", page_size=37)
    assert (moment(getattr(statement, "from")), moment(statement.to)) == (MARCH, APRIL)
    assert (statement.closed, statement.time_zone, statement.brand_id) == (True, "Asia/Shanghai", busy)
    assert {line.kind for line in lines} == KINDS
    assert len(lines) == statement.records > 150
    records = await replay(center.settings.database_url, busy)
    of_march = [step for step in records.steps if MARCH <= step.at < APRIL]
    assert [(line.record_no, moment(line.at)) for line in lines] == [(step.record_no, step.at) for step in of_march]
    assert [(line.total, line.frozen) for line in lines] == [step.balance for step in of_march]
    for balance, border in ((statement.opening, MARCH), (statement.closing, APRIL)):
        assert (balance.total, balance.frozen) == records.balance(border - TICK)
        assert balance.available == balance.total - balance.frozen
    gained = statement.purchases + statement.grants + statement.refunds
    lost = statement.payments + statement.expiries + statement.claw_backs
    assert statement.opening.total + gained - lost == statement.closing.total
    back = statement.payments + statement.releases + statement.time_outs
    assert statement.opening.frozen + statement.freezes - back == statement.closing.frozen
    await center.call("BookDue")
    assert await differences(center.settings.database_url) == []
    assert await pages(center, brand_id=busy, month="2024-03") == (statement, lines)


async def test_months_follow_on_one_another(center: CostCenter, busy: int) -> None:
    """The closing balance of a month is the opening one of the next, and every record is in one of them."""
    months = ["2024-02", "2024-03", "2024-04", "2024-05"]
    told = [await pages(center, brand_id=busy, month=month) for month in months]
    for (before, _), (after, _) in itertools.pairwise(told):
        assert (before.closing, moment(before.to)) == (after.opening, moment(getattr(after, "from")))
    numbers = [line.record_no for _, lines in told for line in lines]
    assert numbers == list(range(1, len(numbers) + 1))
    span: dict[str, Any] = {"from": timestamp(MARCH - 29 * DAY), "to": timestamp(MAY)}
    assert [line.record_no for line in (await pages(center, brand_id=busy, **span))[1]] == numbers[: len(numbers)]


async def test_a_month_follows_the_time_zone_of_the_brand(center: CostCenter) -> None:
    """The same records fall into other months elsewhere, also where a day has not 24 hours."""
    for zone, month in (("America/New_York", "2024-03"), ("Pacific/Apia", "2011-12"), ("Asia/Beirut", "2022-03")):
        brand_id = await center.brand(5, time_zone=zone)
        year, number_ = map(int, month.split("-"))
        following = datetime(year + number_ // 12, number_ % 12 + 1, 1, tzinfo=ZoneInfo(zone))
        statement, _ = await pages(center, brand_id=brand_id, month=month)
        assert statement.time_zone == zone
        assert moment(getattr(statement, "from")) == datetime(year, number_, 1, tzinfo=ZoneInfo(zone))
        assert moment(statement.to) == following.astimezone(UTC)


async def test_the_month_that_is_not_over_is_told_up_to_now(center: CostCenter) -> None:
    """It is not closed, ends at the moment of the question, and knows what happened just before."""
    brand_id = await center.brand(50)
    await center.charge(brand_id, 8)
    before = datetime.now(UTC)
    statement, lines = await pages(center, brand_id=brand_id, **{"from": timestamp(before - DAY)})
    assert not statement.closed or moment(statement.to) <= datetime.now(UTC)
    assert [line.total for line in lines] == [50, 50, 42]
    month = f"{before.astimezone(SHANGHAI):%Y-%m}"
    statement, _ = await pages(center, brand_id=brand_id, month=month)
    assert not statement.closed
    assert moment(statement.to) <= datetime.now(UTC) + HOUR
    assert statement.closing.total == 42


async def test_an_empty_month_and_a_summary_without_lines(center: CostCenter, busy: int) -> None:
    """Months before the first record, and sums alone."""
    statement, lines = await pages(center, brand_id=busy, month="2023-01")
    assert (statement.records, lines, statement.opening, statement.closing.total) == (0, [], statement.closing, 0)
    whole, lines = await pages(center, brand_id=busy, month="2024-03")
    reply = await center.call("GetStatement", brand_id=busy, month="2024-03", summary_only=True)
    assert (reply.statement, list(reply.lines), reply.next_page_token) == (whole, [], "")
    assert lines


_FROM, _TO = timestamp(MARCH), timestamp(APRIL)
_SOON = timestamp(datetime.now(UTC) + 300 * DAY)
_NEXT_YEAR = f"{datetime.now(UTC).year + 1}-07"


@pytest.mark.parametrize(
    ("fields", "field", "rule"),
    [
        ({}, "month", "is required"),
        *[({"month": text}, "month", "must be a month such as 2026-10") for text in ("2024-13", "2024-00", "0001-01")],
        *[({"month": text}, "month", "must be a month") for text in ("March", "2024-3", "2024-03-01", "٢٠٢٤-٠٣", "\0")],
        ({"month": _NEXT_YEAR}, "month", "must not begin in the future"),
        ({"from": _SOON}, "from", "must not begin in the future"),
        ({"month": "2024-03", "from": _FROM}, "month", "must not be given together"),
        ({"month": "2024-03", "to": _TO}, "month", "must not be given together"),
        ({"to": _TO}, "from", "is required"),
        ({"from": _TO, "to": _FROM}, "to", "must be after from"),
        ({"from": _FROM, "to": _FROM}, "to", "must be after from"),
        ({"from": _FROM, "to": timestamp(MARCH + 366 * DAY + TICK)}, "to", "must be at most 366 days after from"),
        ({"from": _FROM}, "to", "must be given when from lies more than 366 days back"),
        ({"from": Timestamp(seconds=10**12)}, "from", "must be a moment"),
        ({"month": "2024-03", "page_size": 1_001}, "page_size", "must be 0"),
        ({"month": "2024-03", "page_size": -1}, "page_size", "must be 0"),
        *[
            ({"month": "2024-03", "page_token": encode_token(key)}, "page_token", "must be a next_page_token")
            for key in ("x", "1", "1.2.3.4", "1.2.3.4.-5", f"{10**18 - 1}.1.1.1.1", f"{10**17}.1.1.1.1")
        ],
        ({"month": "2024-03", "page_token": "?"}, "page_token", "must be a next_page_token"),
    ],
)
async def test_a_period_that_cannot_be_told_is_refused(
    center: CostCenter, busy: int, fields: dict[str, Any], field: str, rule: str
) -> None:
    """INVALID_ARGUMENT that names the field and its rule."""
    refusal = await center.refused("GetStatement", brand_id=busy, **fields)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_REQUEST")
    assert list(refusal.fields) == [field]
    assert refusal.fields[field].startswith(rule)


async def test_the_statement_of_no_brand_is_refused(center: CostCenter) -> None:
    """NOT_FOUND with BRAND_NOT_FOUND; a period before anything happened is fine."""
    refusal = await center.refused("GetStatement", brand_id=2**62, month="2024-03")
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "BRAND_NOT_FOUND")
    ancient: dict[str, Any] = {"from": Timestamp(seconds=-62_135_596_800), "to": Timestamp(seconds=-62_130_000_000)}
    statement, lines = await pages(center, brand_id=await center.brand(1), **ancient)
    assert (statement.closing.total, lines) == (0, [])


@pytest.mark.parametrize("method", ["GetBalance", "GetBalanceHistory", "GetStatement"])
async def test_a_question_about_the_past_waits_for_what_is_being_written(center: CostCenter, method: str) -> None:
    """A transaction that read its clock before the moment asked, and has not ended, belongs to the answer."""
    brand_id = await center.brand(100)
    url = center.settings.database_url
    async with await AsyncConnection.connect(url) as connection:
        await connection.execute("set search_path to costcenter")
        # What a group does: the lane's lock, the clock, and much later its writes.
        await connection.execute("select lane_id from lane order by lane_id for update")
        cursor = await connection.execute("select clock_timestamp()")
        row = await cursor.fetchone()
        assert row is not None
        at = row[0]
        asked = at + timedelta(milliseconds=1)
        # The moment asked is past by the same clock.
        await connection.execute("select pg_sleep(0.05)")
        questions: dict[str, dict[str, Any]] = {
            "GetBalance": {"as_of": timestamp(asked)},
            "GetBalanceHistory": {"from": timestamp(asked - HOUR), "to": timestamp(asked + TICK), "step": HOUR},
            "GetStatement": {"from": timestamp(asked - HOUR), "to": timestamp(asked)},
        }
        fields = questions[method]
        call = asyncio.ensure_future(center.call(method, brand_id=brand_id, **fields))
        done, _ = await asyncio.wait([call], timeout=0.3)
        assert not done, "answered before it could know"
        # A question about now waits for nobody.
        assert (await center.figures(brand_id))[0] == 100
        await connection.execute(
            "update balance set total = 90, last_at = %s, next_record_no = next_record_no + 1 where brand_id = %s",
            (at, brand_id),
        )
        await connection.execute("insert into balance_history values (%s, %s, 90, 0)", (brand_id, at))
        await connection.commit()
    reply = await asyncio.wait_for(call, SECONDS)
    told = {
        "GetBalance": lambda: reply.total,
        "GetBalanceHistory": lambda: reply.points[-1].total,
        "GetStatement": lambda: reply.statement.closing.total,
    }
    assert told[method]() == 90


# The command.


class Answer:
    """What a run of the command left."""

    def __init__(self, code: int, out: bytes, error: bytes) -> None:
        self.code, self.out, self.line = code, out.decode(), error.decode().strip()


async def command(center: CostCenter, *arguments: str) -> Answer:
    """Run `smsbill statement` against the cost centre."""
    environment = {
        **os.environ,
        "SMSBILL_COSTCENTER_TARGET": f"127.0.0.1:{center.process.port}",
        "SMSBILL_TOKEN": ADMIN,
        "TZ": "Europe/London",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "smsbill", "statement", *arguments,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, error = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return Answer(process.returncode, out, error)


async def test_the_command_writes_every_format(center: CostCenter, busy: int, tmp_path: Path) -> None:
    """JSON, CSV and a table tell the same statement; a file holds what standard output would."""
    statement, lines = await pages(center, brand_id=busy, month="2024-03")
    arguments = ("--brand", str(busy), "--month", "2024-03")
    told = json.loads((await command(center, *arguments, "--json")).out)
    assert told["statement"]["closing"] == {
        "total": statement.closing.total,
        "frozen": statement.closing.frozen,
        "available": statement.closing.available,
    }
    assert (told["statement"]["from"], told["statement"]["closed"]) == ("2024-02-29T16:00:00Z", True)
    assert [line["record_no"] for line in told["lines"]] == [line.record_no for line in lines]
    path = tmp_path / "march.csv"
    answer = await command(center, *arguments, "--format", "csv", "--output", str(path))
    assert (answer.code, answer.out, answer.line) == (0, "", "")
    found = list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline="")))
    assert found == list(csv.DictReader(io.StringIO((await command(center, *arguments, "--format", "csv")).out)))
    records = [row for row in found if row["row"] == "record"]
    assert [int(row["record_no"]) for row in records] == [line.record_no for line in lines]
    assert sum(int(row["total_change"]) for row in records) == statement.closing.total - statement.opening.total
    assert [row["kind"] for row in found if row["row"] == "summary"] == [
        "opening", "purchases", "grants", "refunds", "payments", "expiries", "claw_backs", "freezes", "releases",
        "time_outs", "closing",
    ]  # fmt: skip
    assert records[0]["at"] == "2024-03-01T00:00:00.000000+08:00"
    table = await command(center, *arguments)
    assert table.code == 0
    assert "closing balance" in table.out
    assert f"{statement.payments:,}" in table.out
    assert os.listdir(tmp_path) == ["march.csv"]


async def test_the_command_takes_moments_of_the_brands_zone(center: CostCenter, busy: int) -> None:
    """A day without an offset is the brand's, wherever the command runs; with one it is what it says."""
    month = json.loads((await command(center, "--brand", str(busy), "--month", "2024-03", "--json")).out)
    for start, end in (("2024-03-01", "2024-04-01T00:00"), ("2024-02-29T16:00:00+00:00", "2024-03-31T16:00:00Z")):
        answer = await command(center, "--brand", str(busy), "--from", start, "--to", end, "--json")
        assert json.loads(answer.out) == month


async def test_what_the_command_cannot_tell_is_one_line(center: CostCenter, busy: int, tmp_path: Path) -> None:
    """Status 1 with the reason, status 2 for options that do not go together; nothing is printed or written."""
    brand = ("--brand", str(busy))
    path = tmp_path / "never.csv"
    for arguments, said in (
        ((*brand, "--month", "2024-13"), "smsbill: BAD_REQUEST: month: must be a month such as 2026-10"),
        ((*brand, "--month", _NEXT_YEAR), "smsbill: BAD_REQUEST: month: must not begin in the future"),
        (("--brand", str(2**62), "--month", "2024-03"), "smsbill: BRAND_NOT_FOUND: "),
        ((*brand, "--from", "2024-04-01", "--to", "2024-03-01"), "smsbill: BAD_REQUEST: to: must be after from"),
        ((*brand, "--from", "yesterday"), "smsbill: --from: 'yesterday' is not a moment"),
    ):
        answer = await command(center, *arguments, "--format", "csv", "--output", str(path))
        assert (answer.code, answer.out) == (1, "")
        assert answer.line.startswith(said)
    lost = await command(center, *brand, "--month", "2024-03", "--output", str(tmp_path / "no" / "x.csv"))
    assert (lost.code, "cannot be written: No such file or directory" in lost.line) == (1, True)
    for odd in (
        brand,
        (*brand, "--month", "2024-03", "--from", "2024-03-01"),
        (*brand, "--month", "2024-03", "--to", "x"),
    ):
        assert (await command(center, *odd)).code == 2
    assert os.listdir(tmp_path) == []


async def test_finance_may_read_statements_of_its_brands(center: CostCenter, busy: int) -> None:
    """Finance and admin may; a viewer may not, nor anybody another brand's."""
    for roles, allowed in (([4], True), ([1], False), ([2], False), ([3], False)):
        token = await center.token(roles, [busy])
        if allowed:
            await center.call("GetStatement", brand_id=busy, month="2024-03", token=token)
            refusal = await center.refused("GetStatement", brand_id=busy + 1, month="2024-03", token=token)
            assert refusal.reason == "BRAND_NOT_ALLOWED"
        else:
            refusal = await center.refused("GetStatement", brand_id=busy, month="2024-03", token=token)
            assert refusal.reason == "ROLE_NOT_ALLOWED"
    assert isinstance(refusal, Refusal)
