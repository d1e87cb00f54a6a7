"""Aim: alert rules and dashboards name metrics that there are, hold to Prometheus's form, and do what they are for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_harness import DASHBOARDS, ROOT, RULES, expressions, metrics_of, tool

# All metrics of all processes are in the registry once their modules are imported; in a process of its own, so that
# other tests' names stay out.
_NAMES = """
import costcenter.metrics, smsgateway.metrics, workers.metrics, infra.heartbeat, infra.grpc_server
from infra.telemetry import REGISTRY
for family in REGISTRY.collect():
    print(family.name + {"counter": "_total", "info": "_info"}.get(family.type, ""))
"""


@pytest.fixture(scope="module")
def known() -> set[str]:
    """The names of all metrics."""
    done = subprocess.run([sys.executable, "-c", _NAMES], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def alerts() -> list[str]:
    """The names of all alerts."""
    return re.findall(r"- alert: (\w+)", (RULES / "smsbill.yml").read_text("utf-8"))


def test_rules_and_dashboards_name_metrics_that_there_are(known: set[str]) -> None:
    """Aim: a metric that is renamed takes its alerts and panels with it."""
    used = {"rules": metrics_of((RULES / "smsbill.yml").read_text("utf-8"))}
    used |= {path.name: metrics_of(" ".join(expressions(path))) for path in DASHBOARDS.glob("*.json")}
    assert {name: sorted(metrics - known) for name, metrics in used.items() if metrics - known} == {}
    assert len(used["rules"]) > 15


def test_dashboards_are_of_one_form() -> None:
    """Aim: what Grafana needs of a dashboard: an id of its own, numbered panels that do not overlap, known sources."""
    uids = set()
    for path in sorted(DASHBOARDS.glob("*.json")):
        board = json.loads(path.read_text("utf-8"))
        uids.add(board["uid"])
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids), path.name
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, (path.name, panel["title"])
            assert max(x for x, _ in cells) < 24
            taken |= cells
    assert len(uids) == len(list(DASHBOARDS.glob("*.json")))


def test_alerts_are_documented_and_tested() -> None:
    """Aim: each alert has a test, and a line for whoever it wakes."""
    tests = (RULES.parent / "tests" / "smsbill.yml").read_text("utf-8")
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert [name for name in alerts() if f"alertname: {name}" not in tests] == []
    assert [name for name in alerts() if f"`{name}`" not in page] == []


def test_promtool_accepts_the_files(tmp_path: Path) -> None:
    """Aim: rules, their tests, configurations and every expression of the dashboards."""
    folder = RULES.parent
    rules = [
        {"record": f"panel:number{number}", "expr": expression}
        for number, expression in enumerate(e for path in DASHBOARDS.glob("*.json") for e in expressions(path))
    ]
    assert len(rules) > 50
    panels = tmp_path / "panels.yml"
    # JSON is YAML.
    panels.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}), "utf-8")
    for arguments in (
        ["check", "rules", "--lint=all", "--lint-fatal", str(RULES / "smsbill.yml"), str(panels)],
        ["test", "rules", str(folder / "tests" / "smsbill.yml")],
        ["check", "config", str(folder / "prometheus.yml")],
        ["check", "config", str(folder / "one-machine.yml")],
    ):
        done = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
