"""The verdict over callers, message records and the carrier's record names each kind of fault, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from chaos.verdict import IN_HAND_SECONDS, by_rule, judge
from infra.differences import Difference
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from workers.sweepers import NO_OUTCOME, NO_RECEIPT

NUMBER = "13800000001"


FINISHED_AT = 1_800_000_000
IN_TIME, TOO_LATE = FINISHED_AT - IN_HAND_SECONDS - 1, FINISHED_AT - IN_HAND_SECONDS + 1


def message(state: pb.MessageState.ValueType, *, message_id: str = "m", code: str = "") -> pb.Message:
    made = pb.Message(message_id=message_id, mobile=f"+86{NUMBER}", state=state, result_code=code)
    made.finished_at.FromSeconds(FINISHED_AT)
    return made


def calls(count: int, *, receipt_taken: float | None = None) -> list[dict[str, Any]]:
    moment = None if receipt_taken is None else datetime.fromtimestamp(receipt_taken, UTC).isoformat()
    return [{"mobile": NUMBER, "receipt_taken": moment} for _ in range(count)]


@pytest.mark.parametrize("state", ["DELIVERED", "UNDELIVERED", "EXPIRED"])
def test_what_was_sent_once_and_charged_is_well(state: str) -> None:
    """A final charged message that the carrier took once is no fault."""
    verdict = judge([NUMBER], [message(pb.MessageState.Value(f"MESSAGE_STATE_{state}"))], calls(1))
    assert not any(verdict.faults.values())


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_what_was_neither_sent_nor_charged_is_well(state: str) -> None:
    """A final refunded message that the carrier never took is no fault."""
    verdict = judge([NUMBER], [message(pb.MessageState.Value(f"MESSAGE_STATE_{state}"))], [])
    assert not any(verdict.faults.values())


@pytest.mark.parametrize(
    ("messages", "taken", "fault"),
    [
        ([], 0, "accepted and lost"),
        ([message(pb.MESSAGE_STATE_SENT)], 1, "never final"),
        ([message(pb.MESSAGE_STATE_QUEUED)], 0, "never final"),
        ([message(pb.MESSAGE_STATE_DELIVERED)], 2, "sent twice"),
        ([message(pb.MESSAGE_STATE_EXPIRED)], 0, "charged, not sent"),
        ([message(pb.MESSAGE_STATE_FAILED)], 1, "sent, not charged"),
        ([message(pb.MESSAGE_STATE_CANCELLED, code=NO_OUTCOME)], 1, "sent, not charged"),
        ([message(pb.MESSAGE_STATE_DELIVERED), message(pb.MESSAGE_STATE_DELIVERED)], 1, "recorded twice"),
    ],
)
def test_each_fault_is_named(messages: list[pb.Message], taken: int, fault: str) -> None:
    """Each thing that must not be shows under its name, and under no other."""
    verdict = judge([NUMBER], messages, calls(taken))
    assert [name for name, ids in verdict.faults.items() if ids] == [fault]


def test_a_message_that_only_the_carrier_knows_is_named() -> None:
    """What was sent without a record is a fault, whoever asked for it."""
    assert judge([], [], calls(1)).faults["sent, not recorded"] == [NUMBER]


def test_an_outcome_that_nobody_told_is_told_apart() -> None:
    """A refund because nobody told the outcome is counted, and is no fault."""
    verdict = judge([NUMBER], [message(pb.MESSAGE_STATE_FAILED, code=NO_OUTCOME)], calls(1))
    assert verdict.settled_by_time == ["m"]
    assert not any(verdict.faults.values())


@pytest.mark.parametrize(
    ("state", "code", "fault"),
    [
        (pb.MESSAGE_STATE_EXPIRED, NO_RECEIPT, "receipts lost"),
        (pb.MESSAGE_STATE_FAILED, NO_OUTCOME, "settled by time without cause"),
    ],
)
@pytest.mark.parametrize("receipt_taken", [None, TOO_LATE, IN_TIME])
def test_what_time_decided_although_we_had_been_told_is_named(
    state: pb.MessageState.ValueType, code: str, fault: str, receipt_taken: float | None
) -> None:
    """Time may decide what the carrier never told, or told when the time was all but over, and nothing else."""
    verdict = judge([NUMBER], [message(state, code=code)], calls(1, receipt_taken=receipt_taken))
    assert [name for name, ids in verdict.faults.items() if ids] == ([fault] if receipt_taken == IN_TIME else [])


def test_what_the_carrier_itself_calls_expired_is_no_lost_receipt() -> None:
    """A receipt that says so makes a message expired at once."""
    verdict = judge([NUMBER], [message(pb.MESSAGE_STATE_EXPIRED, code="EXPIRED")], calls(1, receipt_taken=IN_TIME))
    assert not any(verdict.faults.values())


def test_differences_are_told_by_what_they_come_to() -> None:
    """A rule of reconciling that has no name of its own here is told all the same."""
    checks = ("refund", "freeze left open", "payment without messages", "something new")
    found = by_rule(Difference(check, 1, "subject", "figure", "1", "2") for check in checks)
    assert {name for name, ids in found.items() if len(ids) == 1} == {
        "refunds missing or doubled",
        "freezes left open",
        "charged twice or for nothing",
        "differences in reconcile",
    }
