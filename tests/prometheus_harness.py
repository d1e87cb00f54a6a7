"""A real Prometheus and promtool: Debian's package, unpacked where it is not installed."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
RULES = ROOT / "deploy" / "prometheus" / "rules"
SECONDS = 60.0
# What Grafana puts in, and our variables.
_VARIABLES = {"$__rate_interval": "1m", "$account": ".*", "$brand": "1"}
_LISTENING = re.compile(r'"?Listening on"?.*address=\S*?:(\d+)')


def tool(name: str) -> str:
    """The path of `prometheus` or `promtool`; the test is skipped, loudly, where it cannot be had."""
    found = shutil.which(name) or _unpacked(name)
    if found is None:
        pytest.skip(f"NOT TESTED: there is no {name} here and Debian's package cannot be had (apt-get download)")
    return found


def _unpacked(name: str) -> str | None:
    """The program out of Debian's package, which is not installed: that would start a server."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    folder = Path(tempfile.gettempdir()) / f"smsbill-prometheus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Several test processes may want it at once.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        program = folder / "usr" / "bin" / name
        if not program.exists():
            try:
                if not _run(folder, "apt-get", "download", "prometheus") and os.getuid() == 0:
                    _run(folder, "apt-get", "update")
                    _run(folder, "apt-get", "download", "prometheus")
                for package in folder.glob("prometheus_*.deb"):
                    _run(folder, "dpkg-deb", "-x", str(package), str(folder))
            except subprocess.TimeoutExpired:
                return None
        return str(program) if program.exists() else None


def _run(folder: Path, *command: str) -> bool:
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=False).returncode == 0


def expressions(path: Path) -> list[str]:
    """The PromQL expressions of a dashboard, its variables filled in."""
    found = []
    for panel in json.loads(path.read_text("utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            if target.get("datasource", {}).get("type") != "prometheus":
                continue
            expression: str = target["expr"]
            for name, value in _VARIABLES.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, expression
            found.append(expression)
    return found


def metrics_of(expression: str) -> set[str]:
    """The metrics of ours that an expression names, histograms by their base."""
    names = set(re.findall(r"\bsmsbill_[a-z_]+", expression))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        """What its API answers."""
        url = f"{self._url}/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def firing(self, alert: str) -> list[dict[str, str]]:
        """The labels of an alert that fires."""
        alerts = self.get("alerts")["alerts"]
        return [each["labels"] for each in alerts if each["labels"]["alertname"] == alert and each["state"] == "firing"]


@contextmanager
def prometheus(folder: Path, targets: Path) -> Iterator[Prometheus]:
    """A Prometheus on a free port that scrapes these targets with the rules of deploy/, several times a second.

    How long an alert must hold before it fires is left out here: promtool's tests of the rules are about that.
    """
    program = tool("prometheus")
    rules = folder / "rules.yml"
    rules.write_text(re.sub(r"\bfor: \w+", "for: 0s", (RULES / "smsbill.yml").read_text("utf-8")), "utf-8")
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 300ms, scrape_timeout: 300ms, evaluation_interval: 300ms}\n"
        f"rule_files: [{json.dumps(str(rules))}]\n"
        "scrape_configs:\n"
        f"  - {{job_name: smsbill, file_sd_configs: [{{files: [{json.dumps(str(targets))}]}}]}}\n",
        "utf-8",
    )
    with (folder / "prometheus.log").open("w+") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                "--web.listen-address=127.0.0.1:0",
                "--log.level=info",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield Prometheus(_port(process, Path(log.name)))
        finally:
            process.kill()
            process.wait(SECONDS)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    from stack_harness import eventually

    def found() -> int | None:
        text = log.read_text("utf-8")
        assert process.poll() is None, text
        match = _LISTENING.search(text)
        return int(match.group(1)) if match and "ready to receive web requests" in text else None

    return eventually(found)
