"""Benchmarks: ours against yardsticks, in turn, in one run."""
