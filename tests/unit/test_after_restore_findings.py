"""Aim: what becomes of a dispatch after a restore, and how a carrier's record is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from smsbill import carrier_record
from smsbill.after_restore import Evidence, Observation, Taken, judge, note
from smsbill.carrier_record import Row
from smsbill.failure import CommandError
from smsgateway.schema import DispatchState, Mode
from smsgateway.store.restoring import Key, Unsettled

MOMENT = "2026-11-21T12:00:00+00:00"
HELD = f"held after the restore to {MOMENT}"
RELEASED = f"not sent before the restore to {MOMENT}"
NUMBER, OTHER = "+8613800000001", "+8613800000002"


def dispatch(
    mode: Mode = Mode.SINGLE, state: DispatchState = DispatchState.QUEUED, *, parked: bool = True, why: str = HELD
) -> Unsettled:
    """Dispatch d of brand 7."""
    return Unsettled(7, "d", mode, 1, state, 2, 2, "order", None, None, 0, parked, why)


def judged(subject: Unsettled, evidence: Evidence | None = None, *, has_record: bool = True) -> str:
    """Where it ends up; its messages go to NUMBER."""
    chunks: dict[Key, set[str]] = {subject.key: {NUMBER}}
    found = judge([subject], evidence or Evidence(), chunks, moment=MOMENT, has_record=has_record)
    places = {"taken": found.taken, "unsure": found.unsure, "free": found.free}
    return next((name for name, items in places.items() if items), "left alone")


def test_without_the_whole_record_nobody_knows() -> None:
    """Aim: only the carrier's whole record can say that it does not have a message."""
    assert judged(dispatch(), has_record=False) == "unsure"
    assert judged(dispatch(), has_record=True) == "free"


@pytest.mark.parametrize("state", [state for state in DispatchState if state is not DispatchState.PARTIAL])
def test_what_the_carrier_took_is_taken_in_any_state(state: DispatchState) -> None:
    """Aim: parked by an error, submitting, of unknown outcome or held: the carrier's word counts."""
    evidence = Evidence(taken={(7, "d"): Taken("d")})
    assert judged(dispatch(state=state, why="an error of ours"), evidence) == "taken"


@pytest.mark.parametrize(
    ("state", "parked", "why", "found"),
    [
        (DispatchState.QUEUED, False, "", "free"),  # another tool's restore holds nothing
        (DispatchState.CLAIMED, False, "", "free"),
        (DispatchState.QUEUED, False, RELEASED, "left alone"),
        (DispatchState.QUEUED, True, "an error of ours", "left alone"),
        (DispatchState.SUBMITTING, False, "", "left alone"),
        (DispatchState.UNKNOWN, False, "", "left alone"),
        (DispatchState.PARTIAL, False, "", "left alone"),
        (DispatchState.QUEUED, True, "held after the restore to 2026-01-01T00:00:00+00:00", "free"),
    ],
)
def test_only_what_was_not_submitted_and_not_judged_before(
    state: DispatchState, parked: bool, why: str, found: str
) -> None:
    """Aim: what has an outcome to come, waits for an operator or was released is left to its ways."""
    assert judged(dispatch(state=state, parked=parked, why=why)) == found


def test_a_chunk_that_may_have_been_halved_is_not_sent() -> None:
    """Aim: numbers that the carrier took under a call that no record knows keep their chunk back; not a single message,
    which has one id for ever, and not another brand's.
    """
    lost = Evidence(lost={(7, "half"): Taken("half", recorded={NUMBER: 1})})
    assert judged(dispatch(Mode.BATCH), lost) == "unsure"
    assert judged(dispatch(Mode.SINGLE), lost) == "free"
    assert judged(dispatch(Mode.BATCH), Evidence(lost={(8, "half"): Taken("half", recorded={NUMBER: 1})})) == "free"
    assert judged(dispatch(Mode.BATCH), Evidence(lost={(7, "half"): Taken("half", recorded={OTHER: 1})})) == "free"


@pytest.mark.parametrize("mode", list(Mode))
def test_a_number_taken_without_a_call_id_keeps_its_messages_back(mode: Mode) -> None:
    """Aim: a record that does not say which call it was is compared by number."""
    assert judged(dispatch(mode), Evidence(nameless={NUMBER})) == "unsure"
    assert judged(dispatch(mode), Evidence(nameless={OTHER})) == "free"


def test_observations_of_a_call_add_up() -> None:
    """Aim: the last call of a dispatch counts, its record's segments go before a receipt's, its carrier id stays."""
    calls: dict[Key, Taken] = {}
    note(calls, Observation((7, "d"), "d-10", "m1", NUMBER, 2, recorded=True))
    note(calls, Observation((7, "d"), "d-9"))
    note(calls, Observation((7, "d"), "d-10", "", NUMBER, 9))
    note(calls, Observation((7, "d"), "d-10", "", OTHER, 3))
    (taken,) = calls.values()
    assert (taken.call_id, taken.carrier_id, taken.numbers) == ("d-10", "m1", {NUMBER: 2, OTHER: 3})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.csv", "\ufeffuid,msgid,mobile,segments\nc1,m1,13800000001,2\n,,+8613800000002,\n"),
        ("r.csv", "phone,uid,msg_id,length,more\n8613800000001,c1,m1,2,x\n13800000002,,,,\n"),
        ("r.json", '[{"uid":"c1","msgid":"m1","mobile":"13800000001","segments":2},{"uid":null,"mobile":13800000002}]'),
        ("r.json", '{"entries":[{"uid":"c1","msgid":"m1","phone":"13800000001","length":"2"},'
         '{"uid":"","phone":"13800000002"}]}'),
    ],
)  # fmt: skip
def test_records_are_read_in_the_forms_that_carriers_export(tmp_path: Path, name: str, content: str) -> None:
    """Aim: CSV and JSON, the names of the columns, missing figures and spellings of numbers."""
    (tmp_path / name).write_text(content, "utf-8")
    assert list(carrier_record.read(tmp_path / name)) == [Row("c1", "m1", NUMBER, 2), Row("", "", OTHER, 1)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.csv", "uid,to\nc1,13800000001\n", "row 2: has no mobile"),
        ("r.csv", "mobile\n13800000001\n", "row 2: has no uid"),
        ("r.csv", "uid,mobile\nc1,1380000000\n", "row 2: invalid mobile number"),
        ("r.csv", "uid,mobile,segments\nc1,13800000001,none\n", "row 2: segments"),
        ("r.csv", "uid,mobile\nc1,\"13800000001\n", "cannot read"),
        ("r.json", "{", "cannot read"),
        ("r.json", "{}", "cannot read"),
        ("r.json", "[1]", "cannot read"),
        ("none.csv", None, "cannot read"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    """Aim: one line names the file and the row; a number never appears whole."""
    if content is not None:
        (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(CommandError, match=said) as raised:
        list(carrier_record.read(tmp_path / name))
    assert "1380000000" not in str(raised.value)
