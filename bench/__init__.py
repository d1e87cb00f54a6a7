"""Benchmarks: ours against yardsticks, in turn, in one run."""

import smsbill  # noqa: F401 (sets gRPC up before it is imported)
