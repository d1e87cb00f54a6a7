"""Metrics of the workers (https://prometheus.io/docs/practices/naming/). Labels come from closed lists only."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from infra.telemetry import REGISTRY
from smsgateway.metrics import MODE_NAMES, TYPE_NAMES

__all__ = ["MODE_NAMES", "TYPE_NAMES"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

RESULTS = Counter(
    "smsbill_messages_settled",
    "Messages by what became of them: sent, failed, unknown, delivered, undelivered, expired",
    ["type", "result"],
    registry=REGISTRY,
)
CARRIER_MESSAGES = Counter(
    "smsbill_carrier_messages",
    "Messages of calls to the carrier by the call's verdict; of a call that is made again they count again",
    ["account", "verdict"],
    registry=REGISTRY,
)
CARRIER_REFUNDED = Counter(
    "smsbill_carrier_refunded_segments",
    "Segments that went back because of a carrier: refused (it did not take the message), undelivered (by its receipt),"
    " undecided (nobody told in time)",
    ["account", "cause"],
    registry=REGISTRY,
)
CARRIER_CALLS = Counter(
    "smsbill_carrier_calls", "Calls to the carrier by verdict", ["account", "mode", "verdict"], registry=REGISTRY
)
CARRIER_SECONDS = Histogram(
    "smsbill_carrier_call_seconds", "Time of a call to the carrier", ["account", "mode"], buckets=_SECONDS,
    registry=REGISTRY,
)  # fmt: skip
CARRIER_PAUSED = Gauge(
    "smsbill_carrier_account_paused", "1 while an account rests because the carrier has stopped it", ["account"],
    registry=REGISTRY,
)  # fmt: skip
CARRIER_CIRCUIT = Gauge(
    "smsbill_carrier_circuit",
    "Whether this worker calls an account: 0 it does, 1 a few calls are tried, 2 it rests because calls fail or the "
    "carrier has stopped it",
    ["account"],
    registry=REGISTRY,
)
CARRIER_CIRCUIT_OPENED = Counter(
    "smsbill_carrier_circuit_opened", "Times that an account was laid to rest because calls failed", ["account"],
    registry=REGISTRY,
)  # fmt: skip
CARRIER_BALANCE = Gauge(
    "smsbill_carrier_balance_segments",
    "Segments left at the carrier when one worker last asked",
    ["account"],
    registry=REGISTRY,
)
CARRIER_BALANCE_LOW = Gauge(
    "smsbill_carrier_balance_low", "1 while that is below the account's alert", ["account"], registry=REGISTRY
)
STAGE_SECONDS = Histogram(
    "smsbill_worker_stage_seconds",
    "Time of a group in a stage: claim, pay, mark, settle, acknowledge, receipts, outbox",
    ["stage"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
STAGE_SIZE = Histogram(
    "smsbill_worker_stage_items",
    "Items of a group in a stage",
    ["stage"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000),
    registry=REGISTRY,
)
QUEUE_SECONDS = Histogram(
    "smsbill_queue_wait_seconds",
    "Time from a message's acceptance to its claim by a worker",
    ["type", "mode"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3_600),
    registry=REGISTRY,
)
QUEUE_DEPTH = Gauge(
    "smsbill_queue_depth",
    "Entries of the queues of a type; told by one worker at a time",
    ["type", "mode"],
    registry=REGISTRY,
)
QUEUE_OLDEST_SECONDS = Gauge(
    "smsbill_queue_oldest_seconds",
    "Age of the oldest entry of a type; told by one worker at a time",
    ["type", "mode"],
    registry=REGISTRY,
)
BACKLOG = Gauge(
    "smsbill_backlog_items",
    "What waits, counted up to 10,000: outbox (calls owed to the cost centre), receipts (not settled), releases (not"
    " applied), unknown (dispatches of which nobody knows whether the carrier took them); told by one worker at a time",
    ["what"],
    registry=REGISTRY,
)
BACKLOG_OLDEST_SECONDS = Gauge(
    "smsbill_backlog_oldest_seconds",
    "Age of the oldest of them; due: for how long the end of a package or freeze is not booked; told by one worker at a"
    " time",
    ["what"],
    registry=REGISTRY,
)
LEDGER_BALANCE = Gauge(
    "smsbill_ledger_balance_segments",
    "Segments of all brands: available, frozen; as booked, told by one worker at a time",
    ["state"],
    registry=REGISTRY,
)
LEDGER_BRANDS = Gauge(
    "smsbill_ledger_brands",
    "Brands by status: active, suspended, closed; drained are those active ones that had packages and have nothing"
    " available; told by one worker at a time",
    ["status"],
    registry=REGISTRY,
)
BRAND_SEGMENTS = Gauge(
    "smsbill_brand_balance_segments",
    "Segments of the active brands with the most records (SMSBILL_METRICS_BRANDS of them): available, frozen; told by"
    " one worker at a time",
    ["brand_id", "state"],
    registry=REGISTRY,
)
LEASES = Gauge("smsbill_worker_leases", "Queues that this worker holds", ["type", "mode"], registry=REGISTRY)
IN_HAND = Gauge("smsbill_worker_in_hand", "Messages or chunks in hand", ["type", "mode"], registry=REGISTRY)
RETRIES = Counter(
    "smsbill_retries",
    "Things tried again: carrier, stopped (account), failover (at once, by another account), busy (an account at its "
    "limit, another is taken), crowded (too many wait for an account), late (call not started), pay, database, error, "
    "outbox, receipt",
    ["what"],
    registry=REGISTRY,
)
RECEIPTS = Counter(
    "smsbill_receipts_settled",
    "Receipts by what they did: delivered, undelivered, expired, pending, repeated (the message was final before),"
    " part (one of a message in several parts: by itself it decides nothing)",
    ["account", "result"],
    registry=REGISTRY,
)
PULLS = Counter(
    "smsbill_receipt_pulls",
    "Pulls of receipts: found, empty, refused (nothing was taken), unanswered (what was taken is gone)",
    ["account", "result"],
    registry=REGISTRY,
)
REPLY_PULLS = Counter(
    "smsbill_reply_pulls",
    "Pulls of replies: found, empty, refused (nothing was taken), unanswered (what was taken is gone)",
    ["account", "result"],
    registry=REGISTRY,
)
REPLIES_PULLED = Counter(
    "smsbill_replies_pulled",
    "Replies pulled from the carrier: stored, malformed (told by the log only, and gone)",
    ["account", "result"],
    registry=REGISTRY,
)
PULLED = Counter(
    "smsbill_receipts_pulled",
    "Receipts pulled from the carrier: stored, malformed (told by the log only, and gone)",
    ["account", "result"],
    registry=REGISTRY,
)
BILLED_OTHERWISE = Counter(
    "smsbill_billed_otherwise",
    "Messages for which the carrier bills more or fewer segments than we do, by the receipt that made them final",
    ["account", "billed"],
    registry=REGISTRY,
)
REFUNDED = Counter(
    "smsbill_refunded_segments", "Segments that calls of this worker gave back, by kind", ["kind"], registry=REGISTRY
)
WEBHOOK_REQUESTS = Counter(
    "smsbill_webhook_requests",
    "Requests to receivers of webhooks: taken, refused (by status), gone (410), unanswered",
    ["result"],
    registry=REGISTRY,
)
WEBHOOK_EVENTS = Counter(
    "smsbill_webhook_events", "Events of webhooks: taken by their receiver, parked", ["result"], registry=REGISTRY
)
WEBHOOK_SECONDS = Histogram(
    "smsbill_webhook_request_seconds",
    "Time of a request to a receiver of a webhook",
    buckets=_SECONDS,
    registry=REGISTRY,
)
PARKED = Gauge(
    "smsbill_parked",
    "What waits for an operator: dispatches, outbox, receipts, webhooks (counted up to 10,000); told by one worker at a"
    " time",
    ["what"],
    registry=REGISTRY,
)
ALERTS_OPEN = Gauge(
    "smsbill_alerts_open", "Alerts that were told and are not over; set by one worker at a time", ["kind"],
    registry=REGISTRY,
)  # fmt: skip
ALERT_NOTICES = Counter(
    "smsbill_alert_notices", "Notices of alerts by what they tell: opened, recovered, withdrawn", ["kind", "what"],
    registry=REGISTRY,
)  # fmt: skip
ALERT_MAILS = Counter(
    "smsbill_alert_mails",
    "Notices by mail: sent, failed (tried again), given up",
    ["result"],
    registry=REGISTRY,
)
SWEEPS = Counter("smsbill_sweeps", "Passes of a sweeper", ["sweeper", "result"], registry=REGISTRY)
SWEPT = Counter("smsbill_sweep_rows", "Rows that a sweeper changed", ["sweeper"], registry=REGISTRY)
LOOP_FAILURES = Counter("smsbill_loop_failures", "Turns of a loop that failed", ["loop"], registry=REGISTRY)
