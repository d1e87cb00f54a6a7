"""Group commit against a real PostgreSQL: groups, faults of members, faults of the database, bounds, ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import psycopg
import pytest
from ledger_service import (
    MARKETING,
    SECONDS,
    CostCenter,
    locked_lanes,
    outcomes_of,
    request_id,
    request_of,
    rows,
    running_cost_center,
    until,
    waiting_for_a_lane,
)

from costcenter import reconciliation
from costcenter.book import Book, Terms
from costcenter.engine import Engine, EngineLimits
from costcenter.lane import Lane
from costcenter.operations import BookDue, DueReply, FreezeSegments, Grant, Operation, Pay, PutBrand
from infra.database import TRANSIENT, Database, Session
from infra.errors import Refusal
from infra.heartbeat import Watchdog
from infra.telemetry import REGISTRY
from protos.costcenter.v1 import cost_center_pb2 as pb

START = datetime(2024, 3, 1, 4, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
EXHAUSTED, UNAVAILABLE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE


class Clock:
    """The engine's clock, moved by the test."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@asynccontextmanager
async def running_engine(
    database_url: str, clock: Callable[[], datetime] | None = None, **limits: Any
) -> AsyncIterator[Engine]:
    """An engine on connections of its own."""
    database = Database(database_url, size=1, wait_seconds=2)
    await database.open()
    engine = Engine(database, terms=Terms(), limits=EngineLimits(**limits), watchdog=Watchdog(60), clock=clock)
    await engine.start()
    try:
        yield engine
    finally:
        await asyncio.wait_for(engine.stop(), SECONDS)
        await database.close()


async def brand(engine: Engine, brand_id: int, segments: int) -> int:
    """A brand with a package that never ends."""
    await done(engine.apply(PutBrand(brand_id, "", b"", f"Brand {brand_id}", None, None, None)))
    if segments:
        await done(engine.apply(Grant(brand_id, request_id(), b"g", "author", "reason", segments, None, ())))
    return brand_id


def freeze(brand_id: int, segments: int = 1, request: str = "", ttl: timedelta | None = None) -> FreezeSegments:
    """A freeze for marketing."""
    return FreezeSegments(brand_id, request or request_id(), b"f", MARKETING, segments, ttl)


async def done(call: Any) -> Any:
    """The reply of what must not be refused."""
    outcome = await call
    assert not isinstance(outcome, Refusal), outcome
    return outcome


def together(engine: Engine, operations: Sequence[Operation]) -> list[asyncio.Task[Any]]:
    """Callers that come at once, each with one operation."""
    return [asyncio.ensure_future(engine.apply(operation)) for operation in operations]


def count_of(name: str) -> float:
    """A counter of the metrics."""
    return REGISTRY.get_sample_value(name) or 0


async def assert_sound(database_url: str) -> None:
    """The records give every figure, for all brands."""
    database = Database(database_url, size=1, wait_seconds=5)
    await database.open()
    try:
        async with database.snapshot() as connection:
            async for brands in reconciliation.brand_pages(connection, 100):
                assert [found async for found in reconciliation.differences(connection, brands)] == []
    finally:
        await database.close()


async def figures(database_url: str, brand_id: int) -> tuple[int, int]:
    """(total, frozen) as written."""
    ((total, frozen),) = await rows(database_url, "select total, frozen from balance where brand_id = %s", brand_id)
    return total, frozen


# Groups.


@pytest.mark.parametrize("brands", [1, 20])
async def test_callers_who_come_while_a_transaction_runs_share_the_next(database_url: str, brands: int) -> None:
    """Three hundred callers on one brand or on many: a group or two a lane, and everybody has a reply of their own."""
    async with running_engine(database_url) as engine:
        ids = [await brand(engine, number, 1_000) for number in range(1, brands + 1)]
        ((lanes,),) = await rows(database_url, "select count(*) from lane")
        before = count_of("smsbill_ledger_group_operations_count")
        async with locked_lanes(database_url):
            calls = together(engine, [freeze(number) for number in ids])
            await until(lambda: waiting_for_a_lane(database_url))
            calls += together(engine, [freeze(ids[index % brands]) for index in range(300)])
            await asyncio.sleep(0)
        replies = await asyncio.gather(*(done(call) for call in calls))
        assert count_of("smsbill_ledger_group_operations_count") - before <= 2 * lanes
        assert len({reply.order_no for reply in replies}) == len(calls)
        assert sum([(await figures(database_url, number))[1] for number in ids]) == len(calls)
    await assert_sound(database_url)


async def test_a_group_serves_callers_in_the_order_they_came(database_url: str) -> None:
    """60, 60 and 30 on 100 by three callers at once: yes, no, yes."""
    async with running_engine(database_url) as engine:
        number = await brand(engine, 1, 100)
        outcomes = await asyncio.gather(*together(engine, [freeze(number, n) for n in (60, 60, 30)]))
        assert [isinstance(outcome, Refusal) for outcome in outcomes] == [False, True, False]
        assert await figures(database_url, number) == (100, 90)


async def test_groups_are_bounded(database_url: str) -> None:
    """Fifty callers in groups of ten at most; a batch larger than that goes whole."""
    async with running_engine(database_url, group_max=10) as engine:
        number = await brand(engine, 1, 100)
        before = count_of("smsbill_ledger_group_operations_count")
        await asyncio.gather(*(done(call) for call in together(engine, [freeze(number) for _ in range(50)])))
        assert count_of("smsbill_ledger_group_operations_count") - before >= 5
        before = count_of("smsbill_ledger_group_operations_count")
        outcomes = await engine.apply_all([freeze(number) for _ in range(50)])
        assert not any(isinstance(outcome, Refusal) for outcome in outcomes)
        assert count_of("smsbill_ledger_group_operations_count") - before == 1


async def test_a_batch_over_many_lanes_keeps_its_order(database_url: str) -> None:
    """Operations of brands of all lanes, mixed: each result in its item's place."""
    async with running_engine(database_url) as engine:
        ids = [await brand(engine, number, number) for number in range(1, 9)]
        outcomes = await engine.apply_all([freeze(number, n) for n in range(1, 10) for number in ids])
        expected = []
        left = {number: number for number in ids}
        for n in range(1, 10):
            for number in ids:
                expected.append(n <= left[number])
                left[number] -= n if n <= left[number] else 0
        assert [not isinstance(outcome, Refusal) for outcome in outcomes] == expected
        assert await engine.apply_all([]) == []


async def test_a_key_made_in_a_group_holds_in_the_group(database_url: str) -> None:
    """The same request twice in one transaction: one effect, one reply; with other content: a conflict."""
    async with running_engine(database_url) as engine:
        number = await brand(engine, 1, 100)
        first = freeze(number, 10, "same")
        other = FreezeSegments(number, "same", b"other", MARKETING, 11, None)
        one, two, three = await engine.apply_all([first, first, other])
        assert one == two
        assert isinstance(three, Refusal)
        assert three.reason == "IDEMPOTENCY_CONFLICT"
        order_no = one.order_no  # type: ignore[union-attr]
        paid = [Pay(number, "chunk", b"p", order_no, 4), Pay(number, "chunk", b"p", order_no, 4)]
        one, two = await engine.apply_all([*paid])
        assert one == two
        assert await figures(database_url, number) == (96, 6)


async def test_two_processes_on_one_database_never_oversell(database_url: str) -> None:
    """Freezes of one brand over both at once: exactly as many succeed as there are segments."""
    async with running_cost_center(database_url) as one, running_cost_center(database_url) as two:
        number = await one.brand(100)
        outcomes = await outcomes_of(
            [
                (one, two)[index % 2].call(
                    "SmsSendPrePay", brand_id=number, request_id=f"r{index}", sms_type=MARKETING, segments=1
                )
                for index in range(240)
            ]
        )
        refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
        assert {refusal.reason for refusal in refusals} == {"INSUFFICIENT_BALANCE"}
        assert len(outcomes) - len(refusals) == 100
        assert await two.figures(number) == (100, 100, 0)
    await assert_sound(database_url)


async def test_pay_release_and_time_out_race_over_two_processes(database_url: str) -> None:
    """Each segment has exactly one outcome: payments, releases and the freeze's end share them out."""
    offset = timedelta(days=2).total_seconds()
    async with (
        running_cost_center(database_url) as one,
        running_cost_center(database_url) as two,
        running_cost_center(database_url, clock_offset_seconds=offset) as later,
    ):
        number = await one.brand(1_000)
        order_no = (await one.freeze(number, 100)).order_no
        calls = []
        for index in range(60):
            center = (one, two)[index % 2]
            pay = {"order_no": order_no, "segments": 2, "request_id": f"p{index}"}
            calls.append(center.call("SmsSendPay", brand_id=number, **pay))
            if index % 6 == 0:
                release = {"order_no": order_no, "segments": 5, "request_id": f"x{index}"}
                calls.append(center.call("SmsReleaseFreezeNum", brand_id=number, **release))
            if index % 10 == 0:
                calls.append(center.call("ApplyReleases"))
            if index == 50:
                calls.append(later.call("BookDue"))
        outcomes = await outcomes_of(calls)
        reasons = {outcome.reason for outcome in outcomes if isinstance(outcome, Refusal)}
        assert reasons <= {"FREEZE_INSUFFICIENT", "FREEZE_EXPIRED"}
        await later.call("ApplyReleases")
        await later.call("BookDue")
        stored = (await later.call("GetFreeze", order_no=order_no)).freeze
        paid = sum(outcome.segments for outcome in outcomes if isinstance(outcome, pb.SmsSendPayResponse))
        assert (stored.paid, stored.open) == (paid, 0)
        assert stored.paid + stored.released + stored.timed_out == 100
        assert await later.figures(number) == (1_000 - paid, 0, 1_000 - paid)
    await assert_sound(database_url)


# What a lane keeps from group to group.


async def test_what_another_process_changed_is_seen(database_url: str) -> None:
    """Two engines take turns on one brand: each decides on what the other left, of every kind that is kept."""
    async with running_engine(database_url) as one, running_engine(database_url) as two:
        number = await brand(one, 1, 100)
        first = await done(one.apply(freeze(number, 60)))
        refused = await two.apply(freeze(number, 60))
        assert isinstance(refused, Refusal)
        await done(two.apply(Pay(number, "a", b"p", first.order_no, 50)))
        refused = await one.apply(Pay(number, "b", b"p", first.order_no, 11))
        assert isinstance(refused, Refusal)
        assert refused.metadata == {"requested": "11", "open": "10"}
        await done(two.apply(Grant(number, request_id(), b"g", "author", "reason", 7, None, ())))
        await done(one.apply(freeze(number, 47)))
        await done(two.apply(PutBrand(number, "", b"", None, 2, None, None)))
        refused = await one.apply(freeze(number))
        assert isinstance(refused, Refusal)
        assert refused.reason == "BRAND_SUSPENDED"
        assert await figures(database_url, number) == (57, 57)
    await assert_sound(database_url)


@pytest.mark.parametrize("kept", [0, 1, 3])
async def test_what_is_not_kept_is_read(database_url: str, kept: int) -> None:
    """With little or nothing kept every answer is the same."""
    async with running_engine(database_url, packages_kept_max=kept, freezes_kept_max=kept) as engine:
        ids = [await brand(engine, number, 10) for number in range(1, 6)]
        for _ in range(2):
            frozen = [await done(engine.apply(freeze(number, 4))) for number in ids]
            orders = [reply.order_no for reply in frozen]
            for number, order_no in zip(ids, orders, strict=True):
                await done(engine.apply(Pay(number, request_id(), b"p", order_no, 3)))
        outcomes = await asyncio.gather(*together(engine, [freeze(number, 3) for number in ids]))
        assert {outcome.reason for outcome in outcomes} == {"INSUFFICIENT_BALANCE"}
        assert {await figures(database_url, number) for number in ids} == {(4, 2)}
    await assert_sound(database_url)


async def test_a_large_group_is_written_while_it_is_decided(database_url: str) -> None:
    """A freeze that is paid all over a group, and new freezes between: as one after another."""
    async with running_engine(database_url) as engine:
        number = await brand(engine, 1, 2_000)
        order_no = (await done(engine.apply(freeze(number, 700)))).order_no
        operations = [
            operation
            for index in range(400)
            for operation in (Pay(number, f"p{index}", b"p", order_no, 2), freeze(number, 1, f"f{index}"))
        ]
        outcomes = await engine.apply_all(operations)
        # The last 50 payments find nothing open.
        assert [isinstance(outcome, Refusal) for outcome in outcomes[::2]] == [False] * 350 + [True] * 50
        assert not any(isinstance(outcome, Refusal) for outcome in outcomes[1::2])
        assert await figures(database_url, number) == (1_300, 400)
        assert await engine.apply_all(operations[:698]) == outcomes[:698]
    await assert_sound(database_url)


async def test_a_process_that_stands_still_holds_a_lane_for_seconds_only(database_url: str) -> None:
    """It is stopped with the lane's lock in hand: the server takes it away, and nothing of it is written."""
    session = Session(database_url, hold_seconds=0.3)
    async with running_engine(database_url) as engine:
        number = await brand(engine, 1, 10)

        async def stand_still() -> None:
            with session.transaction() as connection:
                connection.execute("update costcenter.lane set version = version + 1")
                connection.execute("update costcenter.balance set total = 1_000")
                await asyncio.wait_for(done(engine.apply(freeze(number, 4))), SECONDS)
                connection.commit()

        with pytest.raises(TRANSIENT):
            await stand_still()
        assert await figures(database_url, number) == (10, 4)
        with session.transaction() as connection:
            assert connection.execute("select 1").fetchone() == (1,)
    session.close()


@pytest.mark.parametrize("reader", [False, True])
async def test_a_process_that_stands_still_in_a_pipeline_loses_its_lane(database_url: str, reader: bool) -> None:
    """The server thinks that it is at work, so who waits for the lane ends it, and is answered late but at once."""
    limits: dict[str, Any] = {"hold_seconds": 0.4, "retry_seconds": 0.1}
    session = Session(database_url, hold_seconds=0.4, name="queries" if reader else "ledger")
    async with running_engine(database_url, **limits) as engine:
        number = await brand(engine, 1, 10)

        async def stand_still() -> None:
            with session.transaction() as connection, connection.pipeline():
                if reader:
                    connection.execute("select from costcenter.lane for share").fetchall()
                else:
                    connection.execute("update costcenter.lane set version = version + 1 returning 1").fetchall()
                    # Sent, as a large group's first records are while more of it is decided.
                    connection.execute("update costcenter.balance set total = 1_000")
                outcome = await asyncio.wait_for(engine.apply(freeze(number, 4)), SECONDS)
                assert not isinstance(outcome, Refusal), outcome
                connection.commit()

        with pytest.raises(TRANSIENT):
            await stand_still()
        assert await figures(database_url, number) == (10, 4)
    session.close()


async def test_who_holds_a_lane_by_hand_is_left_alone(database_url: str) -> None:
    """An operator's session is not ended: who waits gets UNAVAILABLE, and goes on when it is over."""
    async with running_engine(database_url, hold_seconds=0.1, retry_seconds=0.1) as engine:
        number = await brand(engine, 1, 10)
        async with locked_lanes(database_url):
            outcome = await asyncio.wait_for(engine.apply(freeze(number, 4)), SECONDS)
        assert isinstance(outcome, Refusal)
        assert outcome.code == UNAVAILABLE
        await done(engine.apply(freeze(number, 4)))


async def test_who_works_with_a_lane_is_left_alone(database_url: str) -> None:
    """However long another cost centre's statement takes, who waits gets UNAVAILABLE and ends nothing."""
    session = Session(database_url, hold_seconds=SECONDS, name="ledger")

    def work() -> None:
        with session.transaction() as connection:
            connection.execute("select pg_sleep(0.5) from costcenter.lane for update")
            connection.commit()

    async with running_engine(database_url, hold_seconds=0.1, retry_seconds=0.1) as engine:
        number = await brand(engine, 1, 10)
        working = asyncio.ensure_future(asyncio.to_thread(work))
        refused = False
        while not working.done():
            refused |= isinstance(await asyncio.wait_for(engine.apply(freeze(number, 1)), SECONDS), Refusal)
        await working
        assert refused
    session.close()


# A bad member of a group.


async def _with_a_bad_member(database_url: str, engine: Engine, bad: Operation) -> tuple[Any, list[Any]]:
    """The bad operation's outcome and the others', all of one group on one lane."""
    number = bad.brand_id
    async with locked_lanes(database_url):
        first = together(engine, [freeze(number)])
        await until(lambda: waiting_for_a_lane(database_url))
        calls = together(engine, [freeze(number) for _ in range(4)])
        calls.append(asyncio.ensure_future(engine.apply(bad)))
        calls += together(engine, [freeze(number) for _ in range(4)])
        await asyncio.sleep(0)
    await asyncio.gather(*first)
    outcomes = await asyncio.gather(*calls)
    return outcomes[4], [*outcomes[:4], *outcomes[5:]]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(FreezeSegments(1, "a\0b", b"f", MARKETING, 1, None), id="not storable"),
        pytest.param(FreezeSegments(1, "bad", b"f", MARKETING, 1, timedelta(seconds=-1)), id="violates a constraint"),
        pytest.param(FreezeSegments(1, "bad", b"f", 99_999, 1, None), id="out of the column's range"),
        pytest.param(Pay(1, "\0", b"p", "order", 1), id="key not storable"),
        pytest.param(FreezeSegments(1, "bad", b"f", MARKETING, "many", None), id="breaks the rules' code"),  # type: ignore[arg-type]
    ],
)
async def test_a_bad_member_stands_alone(database_url: str, bad: Operation) -> None:
    """What the database or the code cannot take is INTERNAL for its caller; the rest of the group is served."""
    async with running_engine(database_url) as engine:
        await brand(engine, 1, 100)
        outcome, others = await _with_a_bad_member(database_url, engine, bad)
        assert isinstance(outcome, Refusal)
        assert (outcome.code, outcome.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert not any(isinstance(other, Refusal) for other in others)
        assert await figures(database_url, 1) == (100, 9)
        await done(engine.apply(freeze(1)))
    await assert_sound(database_url)


async def test_a_bad_member_shows_nothing_of_itself(database_url: str) -> None:
    """The caller learns that it is our fault, not what the database said."""
    async with running_engine(database_url) as engine:
        await brand(engine, 1, 100)
        outcome = await engine.apply(FreezeSegments(1, "secret\0word", b"f", MARKETING, 1, None))
        assert isinstance(outcome, Refusal)
        assert "secret" not in outcome.message
        assert outcome.metadata == {}


# Faults of the database.


async def test_connections_that_die_under_load_leave_no_half_effects(database_url: str) -> None:
    """Success or UNAVAILABLE for every caller; afterwards the same calls succeed, each with exactly one effect."""
    kill = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity"
        " where datname = current_database() and application_name = 'smsbill-ledger'"
    )
    async with running_cost_center(database_url, ledger_retry_seconds=2) as center:
        number = await center.brand(10_000)
        order_no = (await center.freeze(number, 5_000, request_id="all")).order_no

        def requests(index: int) -> list[tuple[str, Any]]:
            common: dict[str, Any] = {"brand_id": number, "request_id": f"r{index}"}
            pay = request_of("SmsSendPay", order_no=order_no, segments=2, **common)
            return [
                ("SmsSendPrePay", request_of("SmsSendPrePay", sms_type=3, segments=3, **common)),
                ("SmsSendPay", pay),
            ]

        calls = [call for index in range(100) for call in requests(index)]
        killed = 0
        outcomes: list[Any] = []
        for start in range(0, len(calls), 40):
            running = asyncio.ensure_future(
                outcomes_of([center.send(method, request) for method, request in calls[start : start + 40]])
            )
            ((count,),) = await rows(database_url, kill)
            killed += count
            outcomes += await running
        assert killed > 0
        bad = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
        assert {outcome.code for outcome in bad} <= {UNAVAILABLE}
        again = await outcomes_of([center.send(method, request) for method, request in calls])
        for before, after in zip(outcomes, again, strict=True):
            assert not isinstance(after, Refusal), after
            assert isinstance(before, Refusal) or before == after
        assert await center.figures(number) == (10_000 - 200, 5_000 + 300 - 200, 10_000 - 5_300)
    await assert_sound(database_url)


async def test_a_connection_that_dies_while_it_waits_is_replaced(database_url: str) -> None:
    """The group is tried again on a new connection; its callers notice nothing."""
    async with running_engine(database_url) as engine:
        number = await brand(engine, 1, 10)
        async with locked_lanes(database_url):
            (call,) = together(engine, [freeze(number)])
            await until(lambda: waiting_for_a_lane(database_url))
            await rows(
                database_url,
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and wait_event_type = 'Lock'",
            )
        await done(call)
        assert await figures(database_url, number) == (10, 1)


@pytest.mark.parametrize("committed", [True, False])
async def test_a_lost_commit_is_settled_by_the_keys(
    database_url: str, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """The connection breaks at the commit, after or before it took effect: the retry finds out which."""
    commit = psycopg.Connection.commit
    faults = 0
    seen: list[int] = []

    def lost(connection: Any) -> None:
        nonlocal faults
        if faults:
            commit(connection)
            return
        faults += 1
        if committed:
            commit(connection)
            with connection.pipeline():
                pass  # its end waits for what was sent
        with psycopg.connect(database_url) as other:
            row = other.execute("select count(*) from costcenter.idempotency_key where operation = 2").fetchone()
        assert row is not None
        seen.append(row[0])
        raise psycopg.OperationalError("the connection is lost")

    async with running_engine(database_url) as engine:
        number = await brand(engine, 1, 10)
        operation = freeze(number, 4, "lost")
        monkeypatch.setattr(psycopg.Connection, "commit", lost)
        first = await done(engine.apply(operation))
        monkeypatch.undo()
        assert (faults, seen) == (1, [int(committed)])
        assert await done(engine.apply(operation)) == first
        assert await figures(database_url, number) == (10, 4)
        pay = Pay(number, "chunk", b"p", first.order_no, 3)
        faults = 0
        monkeypatch.setattr(psycopg.Connection, "commit", lost)
        paid = await done(engine.apply(pay))
        monkeypatch.undo()
        assert await done(engine.apply(pay)) == paid
        assert await figures(database_url, number) == (7, 1)
    await assert_sound(database_url)


async def test_a_database_that_stays_away_is_unavailable(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time of the setting callers are told to come again, with nothing changed; then all is as before."""

    def gone(*_: object) -> None:
        raise psycopg.OperationalError("gone")

    async with running_engine(database_url, retry_seconds=0.05) as engine:
        number = await brand(engine, 1, 10)
        monkeypatch.setattr(Lane, "_transact", gone)
        operation = freeze(number, 1, "again")
        outcomes = await engine.apply_all([operation, freeze(number)])
        assert [outcome.code for outcome in outcomes if isinstance(outcome, Refusal)] == [UNAVAILABLE] * 2
        monkeypatch.undo()
        await done(engine.apply(operation))
        assert await figures(database_url, number) == (10, 1)


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/Los_Angeles"])
async def test_the_servers_defaults_change_nothing(database_url: str, zone: str) -> None:
    """A server with another time zone and a stricter isolation: same moments, no stale reads, no overselling."""
    name = database_url.partition("?")[0].rpartition("/")[2]
    await rows(database_url, f"alter database \"{name}\" set timezone = '{zone}'")
    await rows(database_url, f"alter database \"{name}\" set default_transaction_isolation = 'repeatable read'")
    async with running_cost_center(database_url) as one, running_cost_center(database_url) as two:
        number = await one.brand(30)
        end = datetime.max.replace(tzinfo=UTC)
        package = await one.grant(number, 10, end)
        retries = count_of("smsbill_ledger_group_retries_total")
        outcomes = await outcomes_of(
            [
                (one, two)[i % 2].call("SmsSendPrePay", brand_id=number, request_id=f"r{i}", sms_type=3, segments=1)
                for i in range(60)
            ]
        )
        assert sum(not isinstance(outcome, Refusal) for outcome in outcomes) == 40
        assert count_of("smsbill_ledger_group_retries_total") == retries
        packages = (await two.call("ListPackages", brand_id=number)).packages
        assert [(p.package_id, p.expires_at.ToDatetime(tzinfo=UTC)) for p in packages if p.package_id == package] == [
            (package, end)
        ]


# Bounds and ends.


async def test_a_full_queue_refuses_at_once(database_url: str) -> None:
    """RESOURCE_EXHAUSTED while the queue is full, with nothing changed; what was queued is served."""
    async with running_engine(database_url, queue_max=5, group_max=2) as engine:
        number = await brand(engine, 1, 100)
        async with locked_lanes(database_url):
            calls = together(engine, [freeze(number)])
            await until(lambda: waiting_for_a_lane(database_url))
            calls += together(engine, [freeze(number) for _ in range(5)])
            await asyncio.sleep(0)
            for refused in (engine.apply(freeze(number)), engine.apply_all([freeze(number)])):
                with pytest.raises(Refusal) as caught:
                    await asyncio.wait_for(refused, 1)
                assert (caught.value.code, caught.value.reason) == (EXHAUSTED, "OVERLOADED")
                assert caught.value.metadata == {"limit": "5"}
        await asyncio.gather(*(done(call) for call in calls))
        assert await figures(database_url, number) == (100, 6)
        await done(engine.apply(freeze(number)))


async def test_a_batch_is_not_taken_in_part(database_url: str) -> None:
    """One full lane refuses a batch of many lanes whole."""
    async with running_engine(database_url, queue_max=2) as engine:
        ids = [await brand(engine, number, 10) for number in (1, 2, 3, 4)]
        async with locked_lanes(database_url):
            calls = together(engine, [freeze(1)])
            await until(lambda: waiting_for_a_lane(database_url))
            calls += together(engine, [freeze(1), freeze(1)])
            await asyncio.sleep(0)
            with pytest.raises(Refusal):
                await engine.apply_all([freeze(number) for number in (4, 3, 2, 1)])
        await asyncio.gather(*(done(call) for call in calls))
        assert [(await figures(database_url, number))[1] for number in ids] == [3, 0, 0, 0]


async def test_overload_is_told_over_the_wire(database_url: str) -> None:
    """The status and its reason reach the caller of a unary call and of a batch."""
    async with running_cost_center(database_url, ledger_queue_max=3) as center:
        number = await center.brand(100)
        item: dict[str, Any] = {"brand_id": number, "sms_type": MARKETING, "segments": 1}
        async with locked_lanes(database_url):
            calls = [asyncio.ensure_future(outcomes_of([center.call("SmsSendPrePay", request_id="r", **item)]))]
            await until(lambda: waiting_for_a_lane(database_url))
            flood = asyncio.ensure_future(
                outcomes_of([center.call("SmsSendPrePay", request_id=f"r{i}", **item) for i in range(20)])
            )
            refused = await until(lambda: _overloaded(center, item))
            assert (refused.code, refused.reason) == (EXHAUSTED, "OVERLOADED")
        await asyncio.gather(*calls)
        outcomes = await flood
        reasons = [outcome.reason for outcome in outcomes if isinstance(outcome, Refusal)]
        assert set(reasons) == {"OVERLOADED"}
        assert len(reasons) >= 17
        assert await center.figures(number) == (100, 21 - len(reasons), 79 + len(reasons))


async def _overloaded(center: CostCenter, item: dict[str, Any]) -> Refusal | None:
    items = [request_of("SmsSendPrePay", request_id=request_id(), **item)]
    (outcome,) = await outcomes_of([center.call("BatchSmsSendPrePay", items=items, timeout=0.2)])
    assert isinstance(outcome, Refusal)
    return outcome if outcome.code == EXHAUSTED else None


async def test_a_stopping_engine_finishes_what_it_took(database_url: str) -> None:
    """Everything queued is applied and answered; what comes after is told to come again."""
    async with running_engine(database_url, group_max=3) as engine:
        number = await brand(engine, 1, 100)
        async with locked_lanes(database_url):
            calls = together(engine, [freeze(number) for _ in range(10)])
            await until(lambda: waiting_for_a_lane(database_url))
            stopping = asyncio.ensure_future(engine.stop())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for late in (engine.apply(freeze(number)), engine.apply_all([freeze(number)])):
                with pytest.raises(Refusal) as caught:
                    await late
                assert caught.value.code == UNAVAILABLE
            assert not stopping.done()
        await asyncio.wait_for(stopping, SECONDS)
        assert not any(isinstance(call.result(), Refusal) for call in calls)
        assert await figures(database_url, number) == (100, 10)


async def test_a_stopping_process_answers_its_callers(database_url: str) -> None:
    """Calls under way when the process is told to stop get their replies; those it has not taken have no effect."""
    async with running_cost_center(database_url) as center:
        number = await center.brand(100)
        item: dict[str, Any] = {"brand_id": number, "sms_type": MARKETING, "segments": 1}
        async with locked_lanes(database_url):
            calls = asyncio.ensure_future(
                outcomes_of([center.call("SmsSendPrePay", request_id=f"r{i}", **item) for i in range(10)])
            )
            await until(lambda: waiting_for_a_lane(database_url))
            stopping = asyncio.ensure_future(center.process.stop())
            # The library cancels a call that arrives while it tells its callers to go away.
            refused = await until(lambda: _unavailable(center))
            assert refused.code in {UNAVAILABLE, grpc.StatusCode.CANCELLED}
        await asyncio.wait_for(stopping, SECONDS)
        outcomes = await calls
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    # The one that waited for its lane was under way for certain.
    assert len(refusals) < len(outcomes)
    assert {refusal.code for refusal in refusals} <= {UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert await figures(database_url, number) == (100, len(outcomes) - len(refusals))


async def _unavailable(center: CostCenter) -> Refusal | None:
    (outcome,) = await outcomes_of([center.call("ListBrands", timeout=1)])
    return outcome if isinstance(outcome, Refusal) else None


# Time.


@pytest.mark.parametrize("freezes", [6, 7])
async def test_more_ends_than_one_transaction_books(database_url: str, freezes: int) -> None:
    """With three a transaction, the next operation still sees all of them ended, and the package that ended between."""
    clock = Clock()
    async with running_engine(database_url, clock, ended_freezes_max=3) as engine:
        number = await brand(engine, 1, 0)
        for ends, segments in ((3.5, 50), (100, 20)):
            grant = Grant(number, request_id(), b"g", "a", "b", segments, START + ends * HOUR, ())
            await done(engine.apply(grant))
        for index in range(freezes):
            # Two at a time end together.
            await done(engine.apply(freeze(number, 1, ttl=(index // 2 + 1) * HOUR)))
        clock.now += 10 * HOUR
        refused = await engine.apply(freeze(number, 21))
        assert isinstance(refused, Refusal)
        assert refused.metadata == {"requested": "21", "available": "20"}
        assert await figures(database_url, number) == (20, 0)
        await done(engine.apply(freeze(number, 20)))
        entries = await rows(database_url, "select at, kind, segments from entry where kind <> 1 order by record_no")
        assert [at for at, _, _ in entries] == sorted(at for at, _, _ in entries)
        assert sum(segments for _, kind, segments in entries if kind == 5) == freezes
        # The six that ended before the package did gave back what it then lost.
        lost = [(at - START, segments) for at, kind, segments in entries if kind == 3]
        assert lost == [(3.5 * HOUR, 50 - (freezes - 6))]
    await assert_sound(database_url)


async def test_a_sweep_in_parts_counts_all(database_url: str) -> None:
    """What several transactions booked for one sweep is its reply's sum."""
    clock = Clock()
    async with running_engine(database_url, clock, ended_freezes_max=3) as engine:
        number = await brand(engine, 1, 10)
        await done(engine.apply(Grant(number, request_id(), b"g", "a", "b", 9, START + HOUR, ())))
        for index in range(7):
            await done(engine.apply(freeze(number, 1, ttl=(index + 1) * HOUR)))
        clock.now += 10 * HOUR
        sweep = BookDue(number, "", b"")
        assert await engine.apply(sweep) == DueReply(packages_expired=1, freezes_ended=7)
        assert await engine.apply(sweep) == DueReply(0, 0)
    await assert_sound(database_url)


async def test_ends_booked_as_a_set_are_the_rules_own(database_url: str) -> None:
    """One by one, by the sweep's statement and by it before a call: the same rows, whatever is held, spent or alike."""
    clock = Clock()
    ways = {1: 1_000, 2: 1_000, 3: 0}
    async with running_engine(database_url, clock) as engine:
        for number in ways:
            await brand(engine, number, 5)
            for segments, hours in ((3, 3), (4, 1), (2, 1), (1, 2), (6, 9), (7, 1)):
                end = START + hours * HOUR
                await done(engine.apply(Grant(number, request_id(), b"g", "a", "b", segments, end, ())))
            # All of one, part of the next: these stay payable after their ends.
            held = await done(engine.apply(freeze(number, 5, ttl=8 * HOUR)))
            clock.now += timedelta(minutes=1)
            await done(engine.apply(Pay(number, request_id(), b"p", held.order_no, 1)))
            clock.now -= timedelta(minutes=1)
    clock.now += 4 * HOUR
    for number, limit in ways.items():
        async with running_engine(database_url, clock, ended_packages_max=limit) as engine:
            sweep, call = BookDue(number, "", b""), freeze(number, 100)
            outcome = await engine.apply(sweep if number == 2 else call)
            assert outcome == DueReply(packages_expired=4) if number == 2 else isinstance(outcome, Refusal)
            assert await engine.apply(sweep) == DueReply()
            # Nothing of what was remembered is used.
            await done(engine.apply(freeze(number, 6 + 5)))
    booked = {
        number: [
            await rows(database_url, f"select {columns} from {table} where brand_id = %s order by {order}", number)
            for table, columns, order in (
                ("entry", "record_no, at, booked_at, kind, package_id, segments", "record_no"),
                ("balance_history", "at, total, frozen", "at"),
                ("package_queue", "package_id, remaining, held, paid, expired", "package_id"),
                ("balance", "total, frozen, last_at, next_due_at, next_package_id, next_record_no", "brand_id"),
            )
        ]
        for number in ways
    }
    assert booked[1] == booked[2] == booked[3]
    assert len(booked[1][0]) == 7 + 4
    assert [row[0] for row in booked[1][1]][-4:] == [START + hours * HOUR for hours in (1, 2, 3, 4)]
    await assert_sound(database_url)


async def test_a_clock_that_is_set_back_stops_nothing(database_url: str) -> None:
    """A server with a clock behind the last record: operations go on, in order, and every record is storable."""
    clock = Clock()
    async with running_engine(database_url, clock) as engine:
        number = await brand(engine, 1, 10)
        first = await done(engine.apply(freeze(number, 4, ttl=2 * HOUR)))
        clock.now -= 3 * HOUR
        await done(engine.apply(Grant(number, request_id(), b"g", "a", "b", 5, None, ())))
        second = await done(engine.apply(freeze(number, 3)))
        await done(engine.apply(Pay(number, request_id(), b"p", first.order_no, 2)))
        clock.now += 5 * HOUR + timedelta(seconds=1)
        reply = await engine.apply(BookDue(number, "", b""))
        assert reply == DueReply(0, 1)
        assert second.order_no[:10] >= first.order_no[:10]
        assert await figures(database_url, number) == (13, 3)
    await assert_sound(database_url)


async def test_the_clock_is_read_after_the_lock(database_url: str) -> None:
    """A transaction that waited for its turn is dated when its turn came, so records follow their order."""
    async with running_engine(database_url) as engine:
        number = await brand(engine, 1, 10)
        async with locked_lanes(database_url):
            (call,) = together(engine, [freeze(number)])
            await until(lambda: waiting_for_a_lane(database_url))
            ((before,),) = await rows(database_url, "select clock_timestamp()")
        await done(call)
        ((created,),) = await rows(database_url, "select created_at from costcenter.freeze")
        assert created > before


async def test_the_records_are_those_of_the_rules(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read back for the next operation is what the rules left behind, for every kind of row."""
    seen: list[Book] = []
    check = Book.check

    def noted(book: Book) -> None:
        seen.append(book)
        check(book)

    monkeypatch.setattr(Book, "check", noted)
    async with running_cost_center(database_url) as center:
        number = await center.brand(5, refund_undelivered=True)
        await center.grant(number, 20, datetime.now(UTC) + HOUR, [MARKETING])
        order_no = (await center.freeze(number, 23)).order_no
        payment_no = (await center.pay(number, order_no, 22)).payment_no
        failed = [pb.FailedMessage(message_id="m1", segments=3)]
        status: dict[str, Any] = {"brand_id": number, "payment_no": payment_no}
        await center.call("SmsSendStatusCallBack", request_id="s", failed=failed, **status)
        receipt: dict[str, Any] = {**status, "message_id": "m1", "segments": 3, "state": 1, "carrier_code": 'D"E\\L,{}'}
        await center.call("SmsReceiptStatusCallBack", request_id="r1", **receipt)
        left = seen[-1].changes
        seen.clear()
        await center.call("SmsReceiptStatusCallBack", request_id="r2", **{**receipt, "segments": 1})
        (book,) = seen
        key = (payment_no, "m1")
        assert book._receipts[key] == left.receipts[key]
        assert book._receipts[key].house_loss == 3
        assert book._refunds[key].lines == [(1, 2), (2, 1)]
        assert book._refunds[key].targets == [1, 2]
        assert book._payments[payment_no].lines == [(2, 20), (1, 2)]
        assert [(p.package_id, p.remaining, p.held, p.sms_types) for p in book.queue(number)] == [
            (2, 1, 0, (MARKETING,)),
            (1, 5, 1, ()),
        ]


async def test_one_lane_does_not_wait_for_another(database_url: str) -> None:
    """While one lane's transaction hangs, brands of the others are served."""
    async with running_engine(database_url) as engine:
        ids = [await brand(engine, number, 10) for number in (1, 2)]
        ((lanes,),) = await rows(database_url, "select count(*) from lane")
        assert lanes >= 2
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await connection.execute("select 1 from costcenter.lane where lane_id = %s for update", (1 % lanes,))
            (hangs,) = together(engine, [freeze(ids[0])])
            await until(lambda: waiting_for_a_lane(database_url))
            await asyncio.wait_for(done(engine.apply(freeze(ids[1]))), SECONDS)
            assert not hangs.done()
            await connection.rollback()
        await done(hangs)
