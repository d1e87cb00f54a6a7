"""The ledger against the message records, on a real database; reconciling beside live operations; the command."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ledger_history import Clock, Life, ledger
from ledger_service import SECONDS, rows

from costcenter import reconciliation as ledger_reconciliation
from costcenter.engine import Engine
from costcenter.operations import FreezeSegments, Grant, Operation, Pay, PutBrand, RecordReceipt, SendStatus
from infra.database import Database
from infra.differences import Difference
from infra.identifiers import IdentifierSource
from smsbill import reconcile
from smsbill.reconcile import Reconciliation
from smsgateway.schema import MessageState

BRANDS = (5, 6)
_numbers = IdentifierSource()


@dataclass
class Sender:
    """Brands that send: each message has its record, its payment and whatever became of it."""

    url: str
    engine: Engine
    clock: Clock
    messages: dict[int, list[str]] = field(default_factory=dict)
    payments: dict[str, str] = field(default_factory=dict)

    async def do(self, operation: Operation) -> Any:
        """Apply what must not be refused."""
        return await asyncio.wait_for(self.engine.answer(operation), SECONDS)

    async def begin(self, brand_id: int) -> None:
        """A brand with segments that gives undelivered messages back."""
        await self.do(PutBrand(brand_id, "", b"", "Brand", None, None, True))
        await self.do(Grant(brand_id, "grant", b"g", "author", "reason", 100_000, None, ()))
        self.messages[brand_id] = []

    async def send(self, brand_id: int, state: MessageState, segments: int = 2) -> str:
        """A single message in its final state, charged and refunded as that says; its id."""
        message_id = _numbers.new(brand_id, int(self.clock.now.timestamp() * 1000))
        frozen = await self.do(FreezeSegments(brand_id, message_id, b"f", 3, segments, None))
        paid = await self.do(Pay(brand_id, message_id, b"p", frozen.order_no, segments))
        if state == MessageState.FAILED:
            failed = [(message_id, segments)]
            await self.do(SendStatus(brand_id, f"s{message_id}"[:64], b"s", paid.payment_no, failed))
        if state == MessageState.UNDELIVERED:
            await self.do(
                RecordReceipt(
                    brand_id, f"r{message_id}"[:64], b"r", paid.payment_no, message_id, segments, 2, "UNDELIV", None
                )
            )
        await rows(
            self.url,
            "insert into smsgateway.message (brand_id, message_id, dispatch_id, request_id, sms_type, mobile, segments,"
            " state, order_no, payment_no, created_at)"
            " values (%s, %s, %s, 'r', 3, '+8613900000000', %s, %s, %s, %s, now())",
            brand_id,
            message_id,
            message_id,
            segments,
            int(state),
            frozen.order_no,
            paid.payment_no,
        )
        self.messages[brand_id].append(message_id)
        self.payments[message_id] = paid.payment_no
        return message_id


@pytest.fixture
async def sender(database_url: str) -> AsyncIterator[Sender]:
    """Two brands with messages of every final state over a day, so in several spans of payments."""
    clock = Clock(datetime.now(UTC) - timedelta(days=2))
    async with ledger(database_url, clock) as (engine, _):
        made = Sender(database_url, engine, clock)
        for brand_id in BRANDS:
            await made.begin(brand_id)
        for _ in range(2):
            for brand_id in BRANDS:
                for state in (MessageState.DELIVERED, MessageState.FAILED, MessageState.UNDELIVERED):
                    await made.send(brand_id, state)
            clock.now += timedelta(hours=20)
        yield made


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "PAUSE_SECONDS", 0.0)


async def found(url: str, steps: list[str] | None = None) -> list[Difference]:
    """What the whole reconciliation finds; `steps` gets what it was looking at."""
    seen: list[str] = [] if steps is None else steps
    whole = Reconciliation(url, url, "", progress=lambda what, _done, _total: seen.append(what))
    return await asyncio.wait_for(whole.run(), SECONDS)


def told(differences: list[Difference]) -> set[tuple[str, str, str]]:
    """(check, subject, figure)."""
    return {(difference.check, difference.subject, difference.figure) for difference in differences}


async def test_what_fits_is_compared_in_sums_alone(sender: Sender) -> None:
    """No difference, and no payment had to be looked at by itself; nor are payments of services that send elsewhere."""
    brand_id = BRANDS[0]
    frozen = await sender.do(FreezeSegments(brand_id, "elsewhere", b"f", 3, 9, None))
    paid = await sender.do(Pay(brand_id, "elsewhere-1", b"p", frozen.order_no, 9))
    steps: list[str] = []
    assert await found(sender.url, steps) == []
    assert set(steps) == {"records", "spans of payments"}
    # What they got back is theirs as well: only then the payments of that span are looked at.
    receipt = RecordReceipt(brand_id, "elsewhere-2", b"r", paid.payment_no, "their-own", 3, 2, "UNDELIV", None)
    await sender.do(receipt)
    await sender.do(SendStatus(brand_id, "elsewhere-3", b"s", paid.payment_no, [("another-of-theirs", 2)]))
    assert await found(sender.url) == []


@pytest.mark.parametrize(
    ("statement", "state", "expected"),
    [
        ("update {m} set segments = 3", MessageState.DELIVERED, {("charge", "{payment}", "segments")}),
        ("delete from {m}", MessageState.DELIVERED, {("payment without messages", "{payment}", "messages")}),
        ("update {m} set state = 10", MessageState.DELIVERED, {("refund", "{message}", "refunded, failed")}),
        ("update {m} set state = 5", MessageState.FAILED, {("refund", "{message}", "refunded, sent")}),
        ("update {m} set segments = 1", MessageState.FAILED, {
            ("charge", "{payment}", "segments"),
            ("refund", "{message}", "refunded, failed"),
        }),
        ("update {m} set payment_no = 'x'", MessageState.DELIVERED, {
            ("message without payment", "{message}", "payment"),
            ("payment without messages", "{payment}", "messages"),
        }),
        ("update {m} set payment_no = null", MessageState.DELIVERED, {
            ("message without payment", "{message}", "payment"),
            ("payment without messages", "{payment}", "messages"),
        }),
        ("update {m} set message_id = 'x'", MessageState.UNDELIVERED, {("refund", "{message}", "message")}),
        ("update {m} set message_id = 'x'", MessageState.FAILED, {
            ("refund", "{message}", "message"),
            ("refund", "x", "refunded, failed"),
        }),
    ],
)  # fmt: skip
async def test_a_message_that_does_not_fit_its_payment_is_named(
    sender: Sender, statement: str, state: MessageState, expected: set[tuple[str, str, str]]
) -> None:
    """Whatever is wrong with a message: it or its payment is named, with what was expected and found; no other is."""
    message_id = await sender.send(BRANDS[1], state)
    await sender.send(BRANDS[1], MessageState.DELIVERED)
    where = f"where brand_id = {BRANDS[1]} and message_id = '{message_id}'"
    await rows(sender.url, f"{statement.format(m='smsgateway.message')} {where}")
    differences = await found(sender.url)
    names = {"message": message_id, "payment": sender.payments[message_id]}
    assert told(differences) == {(check, subject.format(**names), figure) for check, subject, figure in expected}
    assert {difference.brand_id for difference in differences} == {BRANDS[1]}


async def test_a_freeze_that_nobody_settles_is_named(sender: Sender) -> None:
    """What a message's freeze holds, though no message waits to be paid."""
    message_id = _numbers.new(BRANDS[0], int(datetime.now(UTC).timestamp() * 1000))
    frozen = await sender.do(FreezeSegments(BRANDS[0], message_id, b"f", 3, 7, timedelta(days=6)))
    assert told(await found(sender.url)) == {("freeze left open", frozen.order_no, "open")}


async def test_what_is_on_its_way_is_no_difference(sender: Sender) -> None:
    """A message that was paid and whose outcome is not known yet, and one that fits when it is looked at again."""
    waiting = await sender.send(BRANDS[0], MessageState.DELIVERED)
    await rows(
        sender.url,
        "insert into smsgateway.dispatch (brand_id, dispatch_id, mode, sms_type, messages, segments, request_id, state,"
        " order_no, payment_no, call_id, submitting_at, created_at, changed_at)"
        " select brand_id, message_id, 1, 3, 1, segments, 'r', 4, order_no, payment_no, 'c', now(), now(), now()"
        " from smsgateway.message where message_id = %s",
        waiting,
    )
    place = "where message_id = %s"
    await rows(sender.url, f"update smsgateway.message set state = 2, payment_no = null {place}", waiting)
    assert await found(sender.url) == []


async def test_only_what_still_differs_counts(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference that is gone at the second look was on its way; one that stays is told, and nothing else is read."""
    passing, staying = [await sender.send(brand_id, MessageState.DELIVERED) for brand_id in BRANDS]
    for message_id in (passing, staying):
        await rows(sender.url, "update smsgateway.message set segments = 9 where message_id = %s", message_id)
    looks: list[int] = []
    original = Reconciliation._crosswise

    async def crosswise(self: Reconciliation, ours: Database, theirs: Database, suspects: Any) -> Any:
        if looks:
            await rows(sender.url, "update smsgateway.message set segments = 2 where message_id = %s", passing)
            # A new one that came meanwhile is on its way, too.
            late = "update smsgateway.message set segments = 9 where message_id = %s"
            await rows(sender.url, late, sender.messages[BRANDS[1]][0])
        result = await original(self, ours, theirs, suspects)
        looks.append(len(result.suspects.buckets))
        return result

    monkeypatch.setattr(Reconciliation, "_crosswise", crosswise)
    differences = await found(sender.url)
    assert told(differences) == {("charge", sender.payments[staying], "segments")}
    assert looks == [2, 1, 1]


async def test_reconciling_beside_live_operations_finds_nothing(database_url: str) -> None:
    """Every part sees one moment: brands live on meanwhile, sweeps and all."""
    clock = Clock(datetime(2024, 3, 1, tzinfo=UTC))
    async with ledger(database_url, clock) as (engine, _):
        lives = [Life(engine, clock, brand_id, random.Random(brand_id), pace=300) for brand_id in (1, 2, 3, 4)]
        for life in lives:
            await life.begin()
        stopped = asyncio.Event()

        async def live(life: Life) -> None:
            while not stopped.is_set():
                await life.step()

        tasks = [asyncio.create_task(live(life)) for life in lives]
        try:
            runs = 0
            async with asyncio.timeout(SECONDS):
                while runs < 4 or sum(life.counts["Pay"] for life in lives) < 20:
                    before = sum(life.counts.total() for life in lives)
                    assert await found(database_url) == []
                    assert sum(life.counts.total() for life in lives) > before
                    runs += 1
        finally:
            stopped.set()
            await asyncio.wait_for(asyncio.gather(*tasks), SECONDS)


async def test_parts_hold_every_brand_once(database_url: str) -> None:
    """However many brands and records there are, the parts follow on one another and cover every number."""
    database = Database(database_url, size=1, wait_seconds=5)
    await database.open()
    try:
        async with database.connection() as connection:
            for brands in (0, 1, 2, 3, 50):
                await connection.execute("truncate costcenter.brand, costcenter.balance")
                await connection.execute(
                    "insert into costcenter.brand select i * 3, 'b', 1, 'UTC', false, now()"
                    " from generate_series(1, %s) i",
                    (brands,),
                )
                await connection.execute(
                    "insert into costcenter.balance (brand_id, next_record_no) select i * 3, 1 + i * 10"
                    " from generate_series(1, %s) i where i %% 7 <> 0",
                    (brands,),
                )
                for count, most in ((1, 10**9), (2, 10**9), (2, 1_000)):
                    parts = await ledger_reconciliation.parts(connection, count, most, 7)
                    assert (parts[0].first, parts[-1].last) == (0, 2**63 - 1)
                    assert all(a.last + 1 == b.first for a, b in itertools.pairwise(parts))
                    assert sum(part.brands for part in parts) == brands
                    assert len(parts) % count == 0 or brands < len(parts) + count
                    if brands == 50:
                        total = sum(part.records for part in parts)
                        assert max(part.records for part in parts) < max(total / len(parts), most) + 1_000
            await connection.rollback()
    finally:
        await database.close()


async def _command(sender_url: str, redis_url: str, folder: Path, *options: str) -> tuple[int, str, str]:
    environment = {
        **os.environ,
        "SMSBILL_DATABASE_URL": sender_url,
        "SMSBILL_REDIS_URL": redis_url,
        "SMSBILL_DATA_DIR": str(folder),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "smsbill", "reconcile", *options,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, error = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


async def test_the_command_tells_how_far_it_is_and_ends_by_what_it_found(
    sender: Sender, redis_url: str, tmp_path: Path
) -> None:
    """Status 0 and a sentence, or 1 and every difference with its ids; how far it is goes to standard error."""
    code, out, error = await _command(sender.url, redis_url, tmp_path)
    assert (code, out) == (0, "No difference: every package, freeze, payment and message fits its records\n")
    assert "(100%)" in error
    assert "records: " in error
    with psycopg.connect(sender.url, connect_timeout=5) as connection:
        connection.execute("update costcenter.balance set frozen = 1 where brand_id = %s", (BRANDS[0],))
    code, out, error = await _command(sender.url, redis_url, tmp_path, "--json")
    assert (code, error) == (1, "")
    named = [(row["check"], row["brand_id"], row["figure"], row["found"]) for row in json.loads(out)["differences"]]
    assert named == [
        ("balance", BRANDS[0], "frozen", "1"),
        ("balance", BRANDS[0], "frozen in the history", "1"),
    ]
    code, out, _ = await _command(sender.url, redis_url, tmp_path)
    assert code == 1
    assert "2 differences" in out
