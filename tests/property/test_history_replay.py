"""Balances of past moments, histories and statements against a plain replay of the records, on busy random lives.

What was due and had not been booked when a question was asked has been booked when the records are replayed: so the
answers are right only when what was due counted at its own moment.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ledger_history import TICK, Clock, Life, Replay, ledger, replay
from ledger_service import number

from costcenter.operations import BookDue
from costcenter.queries import Balance, Queries
from costcenter.statement import Statement, StatementKind, StatementLine

START = datetime(2024, 3, 1, 4, 0, tzinfo=UTC)
STEPS = 220
# The lives differ by their seed alone; a failure names it.
SEEDS = (1, 2, 3)
_TABLES = {StatementKind.FREEZE: "freeze", StatementKind.PAYMENT: "payment", StatementKind.REFUND: "refund"}


async def statement(
    queries: Queries, brand_id: int, start: datetime, end: datetime, page: int
) -> tuple[Statement, list[StatementLine]]:
    """A whole statement, read page by page."""
    told, lines, place = await queries.statement(brand_id, month="", start=start, end=end, limit=page)
    while place is not None:
        more, place = await queries.statement_lines(brand_id, place, page)
        assert 0 < len(more) <= page
        lines += more
    return told, lines


def moments_of(life: Life, draw: random.Random) -> list[datetime]:
    """Every end, the moments beside it, and any others."""
    span = life.clock.now - START
    moments = [end + shift for end in life.ends for shift in (-TICK, timedelta(), TICK)]
    moments += [START + span * draw.random() * 1.1 for _ in range(60)]
    return [START - TICK, START, life.clock.now, life.clock.now + TICK, *draw.sample(moments, min(len(moments), 120))]


def pair_of(draw: random.Random, moments: list[datetime]) -> tuple[datetime, datetime]:
    """Two moments, the earlier first."""
    first, second = draw.sample(sorted(set(moments)), 2)
    return min(first, second), max(first, second)


def check_balance(answer: Balance, moment: datetime, records: Replay) -> None:
    """An answer against the records."""
    assert answer.as_of == moment
    assert (answer.total, answer.frozen) == records.balance(moment), moment
    assert answer.available == records.available(moment), moment
    if answer.available_by_type is not None:
        expected = {sms_type: records.available(moment, sms_type) for sms_type in (1, 2, 3)}
        assert answer.available_by_type == expected, moment


def check_statement(told: Statement, lines: list[StatementLine], records: Replay) -> None:
    """A statement against the records."""
    period = told.period
    expected = [step for step in records.steps if period.start <= step.at < period.end]
    assert [(line.record.record_no, line.record.at, line.record.number) for line in lines] == [
        (step.record_no, step.at, step.number) for step in expected
    ]
    assert [line.record.segments for line in lines] == [step.segments for step in expected]
    assert [(line.after.total, line.after.frozen) for line in lines] == [step.balance for step in expected]
    assert [_TABLES.get(line.record.kind, "entry") for line in lines] == [step.table for step in expected]
    assert (told.opening.total, told.opening.frozen) == records.balance(period.start - TICK)
    assert (told.closing.total, told.closing.frozen) == records.balance(period.end - TICK)
    for kind in StatementKind:
        of_kind = [line.record.segments for line in lines if line.record.kind == kind]
        assert (told.sums.counts.get(kind, 0), told.sums.of(kind)) == (len(of_kind), sum(of_kind)), kind


@pytest.mark.parametrize("seed", SEEDS)
async def test_answers_about_the_past_are_what_the_records_say(database_url: str, seed: int) -> None:
    """As-of balances, histories and statements, asked while the brand lives, before and after all is booked."""
    draw, clock, brand_id = random.Random(seed), Clock(START), number()
    asked: list[tuple[datetime, Balance]] = []
    async with ledger(database_url, clock, ended_freezes_max=2) as (engine, queries):
        life = Life(engine, clock, brand_id, draw)
        await life.begin()
        for _ in range(STEPS):
            await life.step()
            if draw.random() < 0.1:
                # More may happen at the very moment of the clock; what was before it is over.
                past = (START + (clock.now - START - TICK) * draw.random(), clock.now - TICK)
                asked += [(at, await queries.balance(brand_id, at)) for at in past]
        moments = moments_of(life, draw)
        asked += [(moment, await queries.balance(brand_id, moment)) for moment in moments]
        step = timedelta(seconds=draw.randint(3_000, 30_000))
        end = clock.now + timedelta(days=9)
        history = await queries.balance_history(brand_id, START - step, end, step, 10_000)
        # Exactly at records and beside them, those of what is due among them.
        near = [at + shift for at in (*life.moments, *life.ends) for shift in (-TICK, timedelta(), TICK)]
        borders = [pair_of(draw, near) for _ in range(20)] + [(START, end)]
        statements = [await statement(queries, brand_id, *pair, draw.choice([1, 7, 1_000])) for pair in borders]
        clock.now = end + timedelta(days=30)
        await life.apply(BookDue(brand_id, "", b""))
        records = await replay(database_url, brand_id)
        for moment, answer in asked:
            check_balance(answer, moment, records)
        for moment in moments:
            check_balance(await queries.balance(brand_id, moment), moment, records)
        assert history == [(at, *records.balance(at)) for at, _, _ in history]
        assert [at for at, _, _ in history] == [START + step * place for place in range(-1, len(history) - 1)]
        for pair, (told, lines) in zip(borders, statements, strict=True):
            check_statement(told, lines, records)
            # The booking has changed nothing.
            assert await statement(queries, brand_id, *pair, 100) == (told, lines)
    kinds = {line.record.kind for _, lines in statements for line in lines}
    assert len(kinds) >= 8, (kinds, life.counts)


async def test_a_statement_reads_on_where_its_page_ended_whatever_happens_meanwhile(database_url: str) -> None:
    """Pages of one record, with operations and a sweep between them: the same lines as read at once before."""
    draw, clock, brand_id = random.Random(4), Clock(START), number()
    async with ledger(database_url, clock) as (engine, queries):
        life = Life(engine, clock, brand_id, draw)
        await life.begin()
        for _ in range(150):
            await life.step()
        end = clock.now + timedelta(hours=6)
        whole: Any = await queries.statement(brand_id, month="", start=START, end=end, limit=1_000)
        _, lines, place = await queries.statement(brand_id, month="", start=START, end=end, limit=1)
        clock.now = end
        while place is not None:
            await life.step()
            more, place = await queries.statement_lines(brand_id, place, 1)
            lines += more
        assert lines == whole[1]
        assert len(lines) > 30
