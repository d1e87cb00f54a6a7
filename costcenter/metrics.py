"""What the ledger counts."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from infra.telemetry import REGISTRY

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

OPERATIONS = Counter(
    "smsbill_ledger_operations", "Ledger operations by kind and result", ["operation", "result"], registry=REGISTRY
)
GROUP_OPERATIONS = Histogram(
    "smsbill_ledger_group_operations",
    "Operations that one transaction applied",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000),
    registry=REGISTRY,
)
GROUP_WAIT_SECONDS = Histogram(
    "smsbill_ledger_group_wait_seconds",
    "Time that a call waited for its transaction to begin",
    buckets=_SECONDS,
    registry=REGISTRY,
)
GROUP_SECONDS = Histogram(
    "smsbill_ledger_group_seconds", "Time that a group's transaction took", buckets=_SECONDS, registry=REGISTRY
)
GROUP_RETRIES = Counter(
    "smsbill_ledger_group_retries", "Groups tried again after a fault of the database", registry=REGISTRY
)
SEGMENTS = Counter(
    "smsbill_ledger_segments",
    "Segments by what happened to them: granted, clawed_back, frozen, paid, released, timed_out, refunded, expired;"
    " added up by the process that booked it",
    ["flow"],
    registry=REGISTRY,
)
RELEASES = Counter("smsbill_ledger_releases", "Release requests by result", ["result"], registry=REGISTRY)
DUE = Counter("smsbill_ledger_due", "What the sweep booked", ["kind"], registry=REGISTRY)
