"""Aim: traces of groups and batches, of callers who want none, and of an endpoint that cannot be used. The way of one
message through real processes is in tests/e2e/test_watching.py.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from gateway_harness import SECONDS, eventually
from otlp_receiver import Receiver, receiver
from worker_harness import ADMIN, BRAND, ScriptedCarrier, running_stack

from infra import tracing
from infra.errors import StartError
from infra.grpc_server import bearer
from infra.settings import BaseSettings
from protos.costcenter.v1 import types_pb2
from protos.smsgateway.v1 import sms_gateway_pb2
from smsgateway.carriers.base import CallOutcome, Verdict

TEXT = "【示例】验证码 482615"


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """This process traces to a receiver, from here to the end of the test."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with receiver() as running:
        tracing.start("test", BaseSettings(_env_file=None, otlp_endpoint=running.url))
        try:
            yield running
        finally:
            tracing.stop(2)


def parent(number: int, flags: str = "01") -> tuple[str, str]:
    """The metadata of a caller's trace."""
    return "traceparent", f"00-{number:032x}-{number:016x}-{flags}"


async def test_groups_and_batches(traces: Receiver, database_url: str, redis_url: str) -> None:
    """Messages that share transactions have a trace each, and the shared work is linked; a batch's chunk goes on with
    its call's trace; a refused call says so; who wants no trace has none; and nothing private is told.
    """
    carrier = ScriptedCarrier()
    carrier.outcomes = [CallOutcome(Verdict.ACCEPTED, carrier_message_id=f"m{n}") for n in range(3)]
    async with running_stack(database_url, redis_url, accept_gather_seconds=0.2) as stack:

        def send(number: int, flags: str = "01") -> Any:
            request = sms_gateway_pb2.SendSmsRequest(
                brand_id=BRAND,
                request_id=f"r{number}",
                sms_type=types_pb2.SMS_TYPE_MARKETING,
                mobile=f"1380013800{number}",
                text=TEXT,
            )
            return stack.sms.SendSms(request, metadata=(*bearer(ADMIN), parent(number, flags)), timeout=SECONDS)

        await asyncio.gather(*(send(number) for number in (1, 2, 3)))
        await send(4, "00")
        await stack.send_batch(["13800138005", "13800138006"])
        await stack.worker(carrier=carrier)

        async def dispatched() -> bool:
            found = [span for span in traces.spans if span.name == "carrier call"]
            return len(found) == 4 and len([span for span in traces.spans if span.name == "dispatch"]) == 4

        await eventually(dispatched)
        await eventually(stack.quiet_dispatches)
    tracing.stop(2)
    for number in (1, 2, 3):
        names = {span.name for span in traces.trace(f"{number:032x}")}
        assert {"smsgateway.v1.SmsGateway/SendSms", "dispatch", "carrier call"} <= names
    groups = [span for span in traces.spans if span.name == "queue of messages to accept"]
    members = [{span.trace_id, *span.links} for span in groups]
    assert set().union(*members) == {f"{number:032x}" for number in (1, 2, 3)}
    assert sum(span.attributes["smsbill.group.size"] for span in groups) == 3
    assert traces.trace(f"{4:032x}") == []
    (batch,) = [span for span in traces.spans if span.name == "smsgateway.v1.SmsGateway/SendBatchSms"]
    calls = [span for span in traces.trace(batch.trace_id) if span.name == "carrier call"]
    assert [span.attributes["smsbill.messages"] for span in calls] == [2]
    for span in traces.spans:
        assert "1380013800" not in span.raw
        assert "482615" not in span.raw


def test_without_an_endpoint_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off costs nothing: no package of OpenTelemetry is loaded by any service, not even by a library that would."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    tracing.start("test", BaseSettings(_env_file=None))
    assert tracing.active() is None
    script = (
        "import sys; from smsbill.command import _prepare; _prepare({}, None);"
        " import costcenter.process, smsgateway.process, workers.process, smsbill.process;"
        " print([name for name, made in sys.modules.items() if name.startswith('opentelemetry') and made])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_an_endpoint_that_is_none() -> None:
    """The setting and the rule are named."""
    with pytest.raises(StartError, match="SMSBILL_OTLP_ENDPOINT: must begin with http"):
        tracing.start("test", BaseSettings(_env_file=None, otlp_endpoint="localhost:4318"))
    assert tracing.active() is None
