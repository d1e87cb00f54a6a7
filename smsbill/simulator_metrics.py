"""Metrics of the carrier simulator, made from its totals when somebody asks: a call to it counts nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.telemetry import REGISTRY

_ANSWERS = ("answered", "withheld", "garbled", "lost", "refused")
_RECEIPTS = ("scheduled", "pushed", "acknowledged", "abandoned", "pulled", "lost", "doubled")


class SimulatorMetrics(Collector):
    """`smsbill_simulator_*`. Parameters: `totals` tells what `GET /simulator/record` does."""

    def __init__(self, totals: Callable[[], Mapping[str, Any]]) -> None:
        self._totals = totals
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """These and the process's own in Prometheus's text format."""
        return generate_latest(REGISTRY) + generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        totals = self._totals()
        calls = CounterMetricFamily(
            "smsbill_simulator_calls", "Calls to the carrier simulator by how they were answered", labels=["result"]
        )
        for answer in _ANSWERS:
            calls.add_metric([answer], totals["calls"][answer])
        receipts = CounterMetricFamily(
            "smsbill_simulator_receipts", "Receipts of the carrier simulator by what became of them", labels=["result"]
        )
        for result in _RECEIPTS:
            receipts.add_metric([result], totals["receipts"][result])
        yield from (calls, receipts)
        yield CounterMetricFamily(
            "smsbill_simulator_messages", "Messages that the carrier simulator took on", value=totals["messages"]
        )
        yield GaugeMetricFamily(
            "smsbill_simulator_receipts_waiting",
            "Receipts that wait to be pushed or pulled",
            value=totals["receipts"]["waiting"],
        )
