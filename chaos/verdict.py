"""What became of every number: the callers' account, the message records and the carrier's own record, compared.

Everything in a verdict but `settled_by_time` must be empty. The ledger's part is `smsbill reconcile`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from typing import Any

from infra.differences import Difference
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill.record_check import TAKEN_STATES
from smsbill.sending import FINAL_STATES
from smsgateway.mobile import national_mobile
from workers.sweepers import NO_OUTCOME, NO_RECEIPT

# A receipt that is taken is settled so soon; held up by an outage in the last seconds that its message has, it may come
# too late without being lost.
IN_HAND_SECONDS = 30.0
# What the rules of `smsbill reconcile` come to for a customer; the other rules are told as what they are.
_OTHER_RULES = "differences in reconcile"
_RULES = {
    "refund": "refunds missing or doubled",
    "freeze left open": "freezes left open",
    "charge": "charged twice or for nothing",
    "payment without messages": "charged twice or for nothing",
}


@dataclass(slots=True)
class Verdict:
    """Messages by what went wrong with them, told by their ids or numbers.

    `settled_by_time`: messages whose call's answer was lost and that were refunded after their time although the
    carrier had taken them. Nobody could know, so they are told apart.
    `settled_without_cause`: those of them of which the carrier had told us in good time by a receipt.
    `receipts_lost`: messages that were sent and whose receipt we say never came, although we took it in good time.
    """

    lost: list[str] = field(default_factory=list)
    not_final: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    charged_not_sent: list[str] = field(default_factory=list)
    sent_not_charged: list[str] = field(default_factory=list)
    unknown_to_us: list[str] = field(default_factory=list)
    recorded_twice: list[str] = field(default_factory=list)
    settled_by_time: list[str] = field(default_factory=list)
    settled_without_cause: list[str] = field(default_factory=list)
    receipts_lost: list[str] = field(default_factory=list)

    @property
    def faults(self) -> dict[str, list[str]]:
        """What must not be, by its name."""
        return {
            "accepted and lost": self.lost,
            "never final": self.not_final,
            "sent twice": self.doubled,
            "charged, not sent": self.charged_not_sent,
            "sent, not charged": self.sent_not_charged,
            "sent, not recorded": self.unknown_to_us,
            "recorded twice": self.recorded_twice,
            "settled by time without cause": self.settled_without_cause,
            "receipts lost": self.receipts_lost,
        }


def by_rule(differences: Iterable[Difference]) -> dict[str, list[str]]:
    """Differences that `smsbill reconcile` tells, by what they come to; every name is there."""
    found: dict[str, list[str]] = {name: [] for name in (*_RULES.values(), _OTHER_RULES)}
    for difference in differences:
        found[_RULES.get(difference.check, _OTHER_RULES)].append(str(difference))
    return found


def judge(accepted: Iterable[str], messages: Iterable[Any], carrier: Iterable[Mapping[str, Any]]) -> Verdict:
    """Compare the three accounts.

    Parameters: `accepted` national numbers that callers were told are accepted, each used once; `messages` all message
    records; `carrier` the entries of the simulator's record. Each message was asked for once, so a number is a message.
    """
    verdict = Verdict()
    taken = Counter[str]()
    told: dict[str, float] = {}
    for entry in carrier:
        taken[entry["mobile"]] += 1
        if entry["receipt_taken"]:
            told[entry["mobile"]] = datetime.fromisoformat(entry["receipt_taken"]).timestamp()
    recorded: set[str] = set()
    for message in messages:
        number = national_mobile(message.mobile) or message.mobile
        if number in recorded:
            verdict.recorded_twice.append(message.message_id)
        recorded.add(number)
        charged = message.state in TAKEN_STATES
        in_time = told.get(number, inf) < message.finished_at.ToMilliseconds() / 1_000 - IN_HAND_SECONDS
        if message.state not in FINAL_STATES:
            verdict.not_final.append(message.message_id)
        elif charged and not taken[number]:
            verdict.charged_not_sent.append(message.message_id)
        elif not charged and taken[number]:
            unknown = message.state == pb.MESSAGE_STATE_FAILED and message.result_code == NO_OUTCOME
            (verdict.settled_by_time if unknown else verdict.sent_not_charged).append(message.message_id)
            if unknown and in_time:
                verdict.settled_without_cause.append(message.message_id)
        if message.state == pb.MESSAGE_STATE_EXPIRED and message.result_code == NO_RECEIPT and in_time:
            verdict.receipts_lost.append(message.message_id)
        if taken[number] > 1:
            verdict.doubled.append(message.message_id)
    verdict.lost += sorted(set(accepted) - recorded)
    verdict.unknown_to_us += sorted(taken.keys() - recorded)
    return verdict
