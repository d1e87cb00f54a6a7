"""The verdict over callers, message records and the carrier's record names each kind of fault, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.verdict import by_rule, judge
from infra.differences import Difference
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from workers.sweepers import NO_OUTCOME, NO_RECEIPT

NUMBER = "13800000001"


def message(state: pb.MessageState.ValueType, *, message_id: str = "m", code: str = "") -> pb.Message:
    return pb.Message(message_id=message_id, mobile=f"+86{NUMBER}", state=state, result_code=code)


def calls(count: int) -> list[dict[str, Any]]:
    return [{"mobile": NUMBER} for _ in range(count)]


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


def test_receipts_that_we_lost_are_told_from_those_that_the_carrier_lost() -> None:
    """A message expires for want of a receipt no oftener than the carrier lost one."""
    expired = [message(pb.MESSAGE_STATE_EXPIRED, message_id=each, code=NO_RECEIPT) for each in "ab"]
    verdict = judge([NUMBER], expired, calls(1))
    assert verdict.without_cause(2) == {"settled by time without cause": [], "receipts lost": []}
    assert verdict.without_cause(1) == {"settled by time without cause": [], "receipts lost": ["b"]}


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
