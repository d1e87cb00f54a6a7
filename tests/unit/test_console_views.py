"""What the console's pages show, made of plain records: time lines, bars, progress, samples, searches, kept answers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from infra.authorization import INCLUDES, Principal, Role
from infra.errors import Refusal
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import cost_center_pb2 as pb
from smsgateway.carrier_states import CarrierStates
from smsgateway.console import formats, sight
from smsgateway.console.asked import asked, brand_number
from smsgateway.console.balances import bars, chart_step, clipped, progress, series
from smsgateway.console.kept import Kept
from smsgateway.console.overview import carriers_of, types_of
from smsgateway.console.timeline import Life, timeline
from smsgateway.console.traffic import per_second, quality
from smsgateway.queues import Depth, Queue
from smsgateway.schema import DispatchState, MessageState, Mode
from smsgateway.store.overview import Recent, Sampled

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)


# Time lines.


def life(state: MessageState, **known: Any) -> Life:
    """A message accepted now."""
    return Life(**{"message_id": "m", "state": state, "accepted_at": NOW, "dispatch_id": "m", **known})


def steps_of(found: Life) -> dict[str, str]:
    """Names and states of its steps, in order."""
    return {step.name: step.state.value for step in timeline(found)}


SENT = {"order_no": "o", "payment_no": "p", "submitted_at": NOW + SECOND, "sent_at": NOW + 2 * SECOND}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (life(MessageState.ACCEPTING), "d n - - - - -"),
        (life(MessageState.QUEUED, order_no="o"), "d d n - - - -"),
        (life(MessageState.CLAIMED, order_no="o"), "d d d n - - -"),
        (life(MessageState.SUBMITTING, order_no="o", payment_no="p"), "d d d d n - -"),
        (life(MessageState.UNKNOWN, order_no="o", payment_no="p"), "d d d d d n -"),
        (life(MessageState.SENT, **SENT), "d d d d d d n"),
        (life(MessageState.DELIVERED, **SENT, finished_at=NOW + 3 * SECOND), "d d d d d d d"),
        (life(MessageState.UNDELIVERED, **SENT, finished_at=NOW + 3 * SECOND), "d d d d d d b"),
        (life(MessageState.EXPIRED, **SENT, finished_at=NOW + DAY), "d d d d d d b"),
        (life(MessageState.FAILED, order_no="o", finished_at=NOW), "d d d s s s s b"),
        (life(MessageState.FAILED, order_no="o", payment_no="p", finished_at=NOW), "d d d d s s s b"),
        (life(MessageState.FAILED, **SENT, finished_at=NOW, refunded=1, refunded_at=NOW), "d d d d d d s b d"),
        (life(MessageState.CANCELLED, order_no="o", finished_at=NOW), "d d d s s s s b"),
    ],
)
def test_a_message_s_steps(found: Life, expected: str) -> None:
    """Done up to where it is, the next one now; of one that was not sent the rest is skipped and its end told."""
    words = {"d": "done", "n": "now", "-": "next", "s": "skipped", "b": "bad"}
    assert list(steps_of(found).values()) == [words[letter] for letter in expected.split()]


def test_steps_carry_moments_and_ids() -> None:
    """Moments where they were recorded, seconds since acceptance, every id once, none that is not known."""
    steps = {
        step.name: step
        for step in timeline(
            life(
                MessageState.DELIVERED,
                **SENT,
                batch_id="b",
                dispatch_id="chunk",
                frozen_at=NOW + SECOND / 2,
                carrier_message_id="c1 c2",
                finished_at=NOW + 3 * SECOND,
                result_code="DELIVRD",
            )
        )
    }
    assert (steps["frozen"].at, steps["frozen"].seconds) == (NOW + SECOND / 2, 0.5)
    assert (steps["queued"].at, steps["queued"].identifiers) == (None, (("dispatch_id", "chunk", ""),))
    assert ("batch_id", "b", "/batches/b") in steps["accepted"].identifiers
    assert [value for _, value, _ in steps["sent"].identifiers] == ["c1", "c2"]
    assert (steps["receipt"].seconds, steps["receipt"].detail) == (3.0, "DELIVRD")
    entered = NOW + timedelta(milliseconds=123)
    entry = f"{round(entered.timestamp() * 1_000)}-7"
    queued = {step.name: step for step in timeline(life(MessageState.QUEUED, stream_entry=entry))}
    assert queued["queued"].at == entered
    for entry in ("", "x-1", "12", "9" * 16 + "-1", "١-1"):
        assert {step.name: step for step in timeline(life(MessageState.QUEUED, stream_entry=entry))}[
            "queued"
        ].at is None
    for known, detail in (({"parked": True}, "parked"), ({"paused": True}, "paused"), ({"due_at": NOW}, "scheduled")):
        waiting = {step.name: step for step in timeline(life(MessageState.QUEUED, order_no="o", **known))}
        assert waiting["queued"].detail == detail


# Packages and batches.


def stamp(moment: datetime) -> Timestamp:
    """On the wire."""
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def test_packages_are_bars_of_what_was_granted() -> None:
    """The parts make up the whole; the first that can be spent pays next."""
    packages = [
        pb.Package(
            package_id=1, granted=100, remaining=0, paid=90, refunded=10, expired=20, expires_at=stamp(NOW - DAY)
        ),
        pb.Package(package_id=2, granted=200, remaining=50, held=50, paid=150, expires_at=stamp(NOW + DAY)),
        pb.Package(package_id=3, granted=10, remaining=10),
        pb.Package(package_id=4, granted=0),
    ]
    found = bars(packages, NOW)
    assert [dict(bar.parts) for bar in found] == [
        {"paid": 80, "expired": 20},
        {"paid": 75, "held": 25},
        {"available": 100},
        {},
    ]
    assert [bar.is_next for bar in found] == [False, False, True, False]
    assert [bar.days_left for bar in found] == [-1, 1, None, None]


def test_progress_counts_what_has_no_dispatch_any_more() -> None:
    """Partly taken chunks are with the carrier; more in dispatches than accepted, as while it is divided, is not less
    than nothing.
    """
    states = DispatchState
    found = progress(100, {states.QUEUED: 10, states.PAUSED: 20, states.SUBMITTING: 5, states.PARTIAL: 7})
    assert (found.waiting, found.paused, found.in_flight, found.done, found.percent) == (10, 20, 5, 65, 65.0)
    assert progress(10, {states.UNKNOWN: 11}).done == 0
    assert (progress(0, {}).percent, progress(0, {}).is_done) == (100.0, True)


def test_the_chart_s_series() -> None:
    """About 180 points whatever the span; moments once and ascending, the forecast behind what is known."""
    assert all(150 <= DAY * days / chart_step(days) <= 200 for days in (7, 30, 90, 365))
    moments, available, frozen, coming = series(
        [(NOW - DAY, 10, 0), (NOW, 9, 4)], [(NOW, 5), (NOW + DAY, 3), (NOW + DAY, 0)]
    )
    assert moments == sorted(set(moments))  # type: ignore[type-var]
    assert (available, frozen, coming) == ([10, 5, None, None, None], [0, 4, None, None, None], [None, None, 5, 3, 0])
    assert series([]) == [[], [], [], []]
    assert clipped([(NOW, 10), (NOW + 2 * DAY, 0)], NOW + DAY) == [(NOW, 10), (NOW + DAY, 5)]
    assert clipped([(NOW, 10)], NOW + DAY) == [(NOW, 10)]
    assert orjson.dumps([moments, available])


# The overview.


def test_quality_of_a_sample() -> None:
    """Each message counts for as many as it stands for; cancelled ones say nothing; what has not ended waits."""
    states = MessageState
    found = quality(
        [
            Sampled(states.DELIVERED, 1.0, 1.0),
            Sampled(states.DELIVERED, 3.0, 7.0),
            Sampled(states.UNDELIVERED, 2.0, 1.0),
            Sampled(states.FAILED, 0.1, 1.0),
            Sampled(states.CANCELLED, 0.1, 5.0),
            Sampled(states.SENT, None, 5.0),
        ]
    )
    assert (found.success, found.waiting, found.sampled) == (0.8, 0.25, 6)
    assert (found.seconds_p50, found.seconds_p95) == (3.0, 3.0)
    nothing = quality([])
    assert (nothing.success, nothing.seconds_p50, nothing.waiting) == (None, None, 0.0)


def test_messages_a_second() -> None:
    """Over the whole span, or as far back as the requests that were read reach."""
    assert per_second(Recent(30, 60, 59.0), seconds=60, limit=100) == 1.0
    assert per_second(Recent(100, 1_000, 0.5), seconds=60, limit=100) == 2_000.0
    assert per_second(Recent(0, 0, None), seconds=60, limit=100) == 0.0


def test_queues_by_type_and_carriers_by_name() -> None:
    """Every type is there; the oldest is that of all its queues; the worst that a worker says is the verdict."""
    depths = [
        Depth(Queue(1, 3, Mode.BATCH), 4, 9.0),
        Depth(Queue(2, 3, Mode.SINGLE), 2, 20.0),
        Depth(Queue(2, 1, Mode.SINGLE), 0, 0.0),
    ]
    found = {each.sms_type: each for each in types_of(depths)}
    assert sorted(found) == [1, 2, 3]
    assert (found[3].queues, found[3].singles, found[3].chunks, found[3].oldest_seconds) == (2, 2, 4, 20.0)
    assert (found[1].queues, found[1].oldest_seconds) == (0, 0.0)
    said = {"a": {"works": 2, "rests": 1}, "b": {"works": 1}, "c": {}}
    from smsgateway.carrier_states import AccountStates

    verdicts = {
        each.account_id: each.verdict for each in carriers_of([], [AccountStates(*each) for each in said.items()])
    }
    assert verdicts == {"a": "rests", "b": "works", "c": "silent"}


class _Hash:
    """As much of Redis as the words of workers need."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}

    async def hset(self, _key: str, field: str, value: str) -> None:
        self.fields[field] = value

    async def hgetall(self, _key: str) -> dict[str, str]:
        return dict(self.fields)

    async def hdel(self, _key: str, *fields: str) -> None:
        for field in fields:
            self.fields.pop(field, None)


async def test_workers_words_are_believed_for_a_while() -> None:
    """Counted by account; old words and rubbish are neither believed nor kept."""
    stored: Any = _Hash()
    states = CarrierStates(stored)
    await states.write("w1", {"a": "works"}, now_ms=1_000)
    await states.write("w2", {"a": "rests", "b": "works"}, now_ms=2_000)
    assert [(each.account_id, dict(each.states)) for each in await states.read(now_ms=3_000)] == [
        ("a", {"works": 1, "rests": 1}),
        ("b", {"works": 1}),
    ]
    stored.fields |= {"x": "rubbish", "y": "[]", "z": '{"at": 3000, "accounts": 7}', "u": '{"at": "1"}'}
    assert len(await states.read(now_ms=3_000)) == 2
    assert await states.read(now_ms=60_000) == []
    await states.write("w3", {}, now_ms=60_000)
    assert list(stored.fields) == ["w3"]
    await states.forget("w3")
    assert stored.fields == {}


# Search, sight, formats.


def test_what_a_search_can_mean() -> None:
    """Ids of ours carry their brand, whatever their case; calls lead to their dispatch; a number may be a brand's, a
    telephone's and a carrier's at once.
    """
    identifier = IdentifierSource().new(7, 1_795_262_400_000)
    assert asked(f" {identifier.lower()} ").identifier == (7, identifier)
    assert asked(f"{identifier}-3").dispatch == (7, identifier)
    number = asked("138 0013 8000")
    assert (number.mobile, number.brand_id, number.identifier) == ("+8613800138000", None, None)
    assert asked("13800138000").brand_id == 13_800_138_000
    assert asked("26112120304050607").reference == "26112120304050607"
    assert asked("  ") == asked("")
    for text in ("x" * 129, "a\0b", "a\nb"):
        with pytest.raises(Refusal) as refused:
            asked(text)
        assert list(refused.value.fields) == ["q"]
    assert [brand_number(text) for text in ("7", " 7 ", "0", "-1", "٣", "9" * 19, "9" * 30, "", "7.0")] == [
        7, 7, None, None, None, None, None, None, None,
    ]  # fmt: skip
    assert brand_number(str(2**63 - 1)) == 2**63 - 1


def test_who_sees_numbers_and_codes() -> None:
    """Operators and admins; for everybody else a number is masked and a text has no digits."""
    for role in Role:
        principal = Principal("t", INCLUDES[role], None)
        whole = role in {Role.OPERATOR, Role.ADMIN}
        assert (sight.mobile(principal, "+8613800138000") == "+8613800138000") is whole, role
        assert ("1234" in sight.text(principal, "code 1234")) is whole, role
    viewer = Principal("t", INCLUDES[Role.VIEWER], None)
    assert sight.text(viewer, "code 12-34") == "code ••-••"


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (formats.duration(None), "–"),
        (formats.duration(0.0421), "0.04 s"),
        (formats.duration(-1), "0.00 s"),
        (formats.duration(9.96), "10.0 s"),
        (formats.duration(59.4), "59 s"),
        (formats.duration(185), "3 min 5 s"),
        (formats.duration(7_800), "2 h 10 min"),
        (formats.duration(356_400), "4 d 3 h"),
        (formats.days(None), "–"),
        (formats.days(3.46), "3.5"),
        (formats.days(400.2), "400"),
        (formats.percent(None), "–"),
        (formats.percent(1), "100 %"),
        (formats.percent(0.99999), "99.9 %"),
        (formats.percent(0.5), "50 %"),
        (formats.rate(None), "–"),
        (formats.rate(0), "0"),
        (formats.rate(0.25), "0.25"),
        (formats.rate(45.678), "45.7"),
        (formats.rate(12_345.6), "12,346"),
    ],
)
def test_figures_as_people_read_them(told: str, text: str) -> None:
    """Short, and never better than it is."""
    assert told == text


# Kept answers.


async def test_what_ten_ask_for_is_made_once() -> None:
    """At once and within the time; anew after it; an error reaches those who wait and is kept for nobody; what took
    long is kept ten times as long.
    """
    now = 0.0
    made = 0
    gate = asyncio.Event()
    kept = Kept(keys_max=2, clock=lambda: now)

    async def make() -> int:
        nonlocal made, now
        made += 1
        await gate.wait()
        return made

    asking = [asyncio.ensure_future(kept.get("k", 3, make)) for _ in range(10)]
    await asyncio.sleep(0)
    asking[0].cancel()
    gate.set()
    assert set(await asyncio.gather(*asking[1:])) == {1}
    now = 2.9
    assert await kept.get("k", 3, make) == 1
    now = 3.1
    assert await kept.get("k", 3, make) == 2

    async def slow() -> str:
        nonlocal now
        now += 2
        return "slow"

    assert await kept.get("slow", 3, slow) == "slow"
    before = now
    now = before + 19
    assert (await kept.get("slow", 3, slow), now) == ("slow", before + 19)

    async def fail() -> int:
        nonlocal made
        made += 1
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await kept.get("bad", 3, fail)
    assert made == 4
    await kept.close()
