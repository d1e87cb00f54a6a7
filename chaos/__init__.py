"""Chaos: the real stack broken in every way that a seed chooses, and a verdict over all records afterwards."""

import smsbill  # noqa: F401 (sets gRPC up before it is imported)
