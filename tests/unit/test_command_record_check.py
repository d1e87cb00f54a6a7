"""Aim: the comparison of the carrier's record with the message records finds each kind of difference."""

from __future__ import annotations

from typing import Any

from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill.carrier_simulator import text_hash
from smsbill.record_check import mismatches

DELIVERED, FAILED = pb.MESSAGE_STATE_DELIVERED, pb.MESSAGE_STATE_FAILED


def message(number: int = 1, *, state: int = DELIVERED, text: str = "x", segments: int = 1, carrier: str = "m1") -> Any:
    return pb.Message(
        mobile=f"+861990009000{number}",
        state=state,  # type: ignore[arg-type]
        text=text,
        segments=segments,
        carrier_message_id=carrier,
    )


def entry(number: int = 1, *, text: str = "x", segments: int = 1, carrier: str = "m1") -> dict[str, Any]:
    return {"mobile": f"1990009000{number}", "text_hash": text_hash(text), "segments": segments, "msgid": carrier}


def test_equal_records_do_not_differ() -> None:
    """Aim: order does not matter, and what failed is not expected at the carrier."""
    ours = [message(1), message(2, carrier="m2"), message(3, state=FAILED, carrier="")]
    assert mismatches(ours, [entry(2, carrier="m2"), entry(1)]) == []


def test_each_kind_of_difference() -> None:
    """Aim: sent twice, sent though failed, not sent though charged, another text, another price: each is found."""
    assert [each.in_carrier_record for each in mismatches([message()], [entry(), entry()])] == [2]
    assert [each.in_carrier_record for each in mismatches([message(state=FAILED)], [entry()])] == [1]
    assert [each.in_carrier_record for each in mismatches([message()], [])] == [0]
    assert len(mismatches([message(text="a")], [entry(text="b")])) == 2
    assert len(mismatches([message(carrier="m1")], [entry(carrier="m2")])) == 2
    assert len(mismatches([message(segments=2)], [entry(), entry()])) == 1, "as many segments, but sent twice"
    wrong = mismatches([message(segments=2)], [entry(segments=1)])
    assert [(each.segments_in_message_records, each.segments_in_carrier_record) for each in wrong] == [(2, 1)]
    assert wrong[0].mobile == "199****0001"
