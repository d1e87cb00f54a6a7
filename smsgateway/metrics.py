"""Metrics of the gateway (https://prometheus.io/docs/practices/naming/). Labels come from closed lists only."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from infra.telemetry import REGISTRY
from smsgateway.schema import Mode

TYPE_NAMES = {1: "verification", 2: "notification", 3: "marketing"}
MODE_NAMES = {Mode.SINGLE: "single", Mode.BATCH: "batch"}

MESSAGES = Counter(
    "smsbill_messages",
    "Messages asked to be sent: accepted, repeated (answered before), refused or unavailable (not settled)",
    ["type", "mode", "result"],
    registry=REGISTRY,
)
RULE_REFUSALS = Counter(
    "smsbill_rule_refusals",
    "Messages that the sender's rules refused, by the reason; a batch whose text is refused before its recipients came"
    " counts as one",
    ["type", "reason"],
    registry=REGISTRY,
)
CONSOLE_SIGN_INS = Counter(
    "smsbill_console_sign_ins",
    "Sign-ins to the console: right, wrong (no such token), refused (too many wrong ones) or unavailable (nobody could "
    "tell)",
    ["result"],
    registry=REGISTRY,
)
GROUP_SIZE = Histogram(
    "smsbill_gateway_group_calls",
    "Calls in one transaction",
    ["group"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000),
    registry=REGISTRY,
)
GROUP_WAITING = Gauge(
    "smsbill_gateway_group_waiting",
    "Calls that no transaction has taken yet",
    ["group"],
    registry=REGISTRY,
)
GROUP_WAIT_SECONDS = Histogram(
    "smsbill_gateway_group_wait_seconds",
    "Time that the first call of a group waited for its start",
    ["group"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
    registry=REGISTRY,
)
RECEIPTS_RECEIVED = Counter(
    "smsbill_receipts_received",
    "Receipts that carriers pushed or gave on their own connection: stored, malformed, forbidden or unavailable (asked"
    " for again)",
    ["carrier", "result"],
    registry=REGISTRY,
)
RECEIPT_DATES_ODD = Counter(
    "smsbill_receipt_dates_odd",
    "Receipts whose date is impossible, missing or in the future; the time of arrival stands in for it",
    ["account"],
    registry=REGISTRY,
)
HTTP_ODD = Counter(
    "smsbill_http_odd",
    "What a carrier over HTTP did against what was agreed: unconnected, certificate (wrong), late (no answer in time),"
    " lost (the connection, or no HTTP), redirect, unreadable (HTML, half a document, another character set, too much),"
    " unclear (an answer that says nothing sure)",
    ["account", "what"],
    registry=REGISTRY,
)
REPLIES = Counter(
    "smsbill_replies",
    "What people sent back: assigned to a brand, unassigned, repeated (stored before)",
    ["result"],
    registry=REGISTRY,
)
REPLIES_RECEIVED = Counter(
    "smsbill_replies_received",
    "Replies that carriers pushed or gave on their own connection: stored, malformed, forbidden or unavailable (asked"
    " for again)",
    ["carrier", "result"],
    registry=REGISTRY,
)
SMPP_BOUND = Gauge(
    "smsbill_smpp_bound", "1 while this process has a session with an SMPP carrier", ["account"], registry=REGISTRY
)
SMPP_ODD = Counter(
    "smsbill_smpp_odd",
    "What an SMPP carrier sent against the protocol or for nobody: unasked (a response), command (unknown), length"
    " (impossible), refused (more receipts at once than are taken), malformed (a receipt or reply that cannot be"
    " read), other (a message that is neither)",
    ["account", "what"],
    registry=REGISTRY,
)
SMPP_PARTS_IN_VAIN = Counter(
    "smsbill_smpp_parts_in_vain",
    "Parts that an SMPP carrier took, and bills, of messages that did not go as a whole and are refunded",
    ["account"],
    registry=REGISTRY,
)
QUEUE_FAILURES = Counter(
    "smsbill_queue_failures",
    "Pushes that Redis did not take; a sweeper queues what they held",
    ["queue"],
    registry=REGISTRY,
)
LEDGER_RETRIES = Counter(
    "smsbill_ledger_retries",
    "Attempts of calls to the cost centre after the first",
    ["method"],
    registry=REGISTRY,
)
