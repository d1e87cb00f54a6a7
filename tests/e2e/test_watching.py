"""Aim: a whole stack is watched: its metrics are as Prometheus wants them, a real Prometheus scrapes it and alerts when
a brand is drained, every expression of the dashboards finds what it names, `smsbill top` shows it, and one trace leads
from a caller to the carrier.
"""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from otlp_receiver import Receiver, SeenSpan, receiver
from prometheus_harness import DASHBOARDS, expressions, metrics_of, prometheus, tool
from stack_harness import Stack, eventually

from protos.smsgateway.v1 import sms_gateway_pb2, sms_gateway_pb2_grpc
from smsbill import stack_file

NUMBER, TEXT = "19900090001", "【测试】您的验证码是482615"
DRAINED = 2
CALLER_TRACE, CALLER_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def traces() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, traces: Receiver) -> Iterator[Stack]:
    """A stack that traces and tells its figures often."""
    import shutil
    import tempfile

    # Not in pytest's folder: the account that PostgreSQL runs under must get through to it.
    folder = Path(tempfile.mkdtemp(prefix="smsbill-e2e-")).resolve()
    running = Stack(
        folder / "data",
        SMSBILL_WORKERS="1",
        SMSBILL_FIGURES_SECONDS="0.3",
        SMSBILL_DEPTH_SECONDS="0.5",
        SMSBILL_OTLP_ENDPOINT=traces.url,
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    try:
        running.start()
        running.ok("brand", "put", "--brand", str(DRAINED), "--name", "Second")
        running.ok("buy", "--brand", str(DRAINED), "--segments", "1")
        yield running
    finally:
        running.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def urls(stack: Stack) -> dict[str, str]:
    """Where each process tells its metrics."""
    file = stack_file.running(stack.data_dir)
    assert file is not None
    assert sorted(file.scrape_urls) == ["carrier-simulator", "costcenter", "gateway", "worker-1"]
    return file.scrape_urls


def test_one_trace_from_the_caller_to_the_carrier(stack: Stack, traces: Receiver) -> None:
    """Aim: the caller's traceparent goes on through gateway, ledger, Redis and worker to the carrier's HTTP; the
    receipt has a trace from the callback to the ledger; and no span holds the number or the text.
    """
    request = sms_gateway_pb2.SendSmsRequest(
        brand_id=DRAINED,
        request_id="traced",
        sms_type=1,  # type: ignore[arg-type] # the enum's number
        mobile=NUMBER,
        text=TEXT,
    )
    with grpc.insecure_channel(stack.started["gateway_target"]) as channel:
        metadata = (
            ("authorization", f"Bearer {stack.started['token']}"),
            ("traceparent", f"00-{CALLER_TRACE}-{CALLER_SPAN}-01"),
        )
        stub: Any = sms_gateway_pb2_grpc.SmsGatewayStub(channel)
        message_id = stub.SendSms(request, metadata=metadata, timeout=30).message_id
    path = ["POST", "carrier call", "dispatch", "smsgateway.v1.SmsGateway/SendSms"]

    def whole() -> list[SeenSpan] | None:
        found = traces.trace(CALLER_TRACE)
        ids = {span.span_id for span in found} | {CALLER_SPAN}
        wanted = {*path, "queue dispatches", "costcenter.v1.CostCenter/BatchSmsSendPay"}
        return found if wanted <= {span.name for span in found} and {span.parent_id for span in found} <= ids else None

    found = eventually(whole)
    by_id = {span.span_id: span for span in found}
    (span,) = [each for each in found if each.name == path[0]]
    walked = []
    while True:
        walked.append(span.name)
        if span.parent_id == CALLER_SPAN:
            break
        span = by_id[span.parent_id]
    assert walked == path
    assert span.attributes["smsbill.message_id"] == message_id
    assert {each.service for each in found} == {"smsbill-gateway", "smsbill-costcenter", "smsbill-worker"}
    paid = [each.service for each in found if each.name == "costcenter.v1.CostCenter/BatchSmsSendPay"]
    assert sorted(paid) == ["smsbill-costcenter", "smsbill-worker"]

    def receipts() -> bool:
        wanted = {"settle receipts", "costcenter.v1.CostCenter/BatchSmsReceiptStatusCallBack"}
        pushed = [each.trace_id for each in traces.spans if each.name == "GET /callbacks"]
        return any(wanted <= {each.name for each in traces.trace(trace_id)} for trace_id in pushed)

    eventually(receipts)
    for each in traces.spans:
        assert NUMBER not in each.raw
        assert "482615" not in each.raw
    # What no call caused, such as what loops ask, begins no trace.
    begun = {(each.service, each.name.partition("/")[0]) for each in traces.spans if not each.parent_id}
    assert begun <= {
        ("smsbill-gateway", "GET "),
        ("smsbill-costcenter", "costcenter.v1.CostCenter"),
        ("smsbill-costcenter", "costcenter.v1.CostCenterAdmin"),
    }


def test_metrics_are_as_prometheus_wants_them(urls: dict[str, str]) -> None:
    """Aim: promtool finds nothing to say of what each process tells: names, units, help."""
    for name, url in urls.items():
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read()
        assert b"smsbill_process_info" in text, name
        assert NUMBER[3:].encode() not in text
        done = subprocess.run([tool("promtool"), "check", "metrics"], input=text, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), name


def test_a_drained_brand_is_alerted_and_a_grant_ends_it(stack: Stack, urls: dict[str, str], tmp_path: Path) -> None:
    """Aim: a Prometheus finds the processes by the stack's own file, loads our rules, fires on the brand that has sent
    its only segment, is quiet after a purchase, and accepts every expression of our dashboards.
    """
    with prometheus(tmp_path, stack.data_dir / stack_file.TARGETS_NAME) as server:
        (labels,) = eventually(lambda: server.firing("SmsbillBrandDrained"))
        assert (labels["brand_id"], labels["severity"]) == (str(DRAINED), "page")
        eventually(lambda: len(server.get("query", query="up == 1")["result"]) == len(urls))
        jobs = {each["metric"]["job"] for each in server.get("query", query="up")["result"]}
        assert jobs == {"costcenter", "gateway", "worker", "carrier-simulator"}
        stack.ok("buy", "--brand", str(DRAINED), "--segments", "5")
        eventually(lambda: not server.firing("SmsbillBrandDrained"))
        eventually(lambda: not server.firing("SmsbillServiceAbsent"))
        assert not server.firing("SmsbillProcessDown")
        known = set(server.get("metadata"))
        for path in sorted(DASHBOARDS.glob("*.json")):
            for expression in expressions(path):
                server.get("query", query=expression)
                assert metrics_of(expression) <= known, expression


def test_top_tells_what_runs(stack: Stack, urls: dict[str, str]) -> None:
    """Aim: figures of all processes as JSON and as tables; a process that is gone is told; none at all is an error."""

    def figures() -> Any:
        told = stack.run("top", "--once", "--json", "--interval", "0.5").json
        return told if DRAINED in {each["brand_id"] for each in told["brands"]} else None

    told = eventually(figures)
    assert {each["process"]: each["up"] for each in told["processes"]} == dict.fromkeys(urls, True)
    assert {"type": "verification", "mode": "single", "entries": 0, "oldest_seconds": 0.0} in told["queues"]
    assert [each["state"] for each in told["carriers"]] == ["works"]
    gone = "http://127.0.0.1:1/metrics"
    told = stack.run("top", "--once", "--interval", "0.2", "--url", urls["gateway"], "--url", gone)
    assert told.code == 0
    assert "Processes" in told.out
    assert "Cannot connect" in told.out
