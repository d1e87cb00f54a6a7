"""`stack.json` in the data folder: how commands find the stack that runs there, and what is left of one that died.

Beside it `prometheus-targets.json` tells a Prometheus what to scrape (file_sd_configs).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from infra.data_folder import write_durably

NAME = "stack.json"
TARGETS_NAME = "prometheus-targets.json"
_NUMBER = re.compile(r"-\d+$")


@dataclass(slots=True)
class Process:
    """A process; its time of creation tells it from a later one with the same number."""

    name: str
    pid: int
    created: float

    @classmethod
    def of(cls, name: str, pid: int) -> Process | None:
        """The process with this number now, or None when it has ended."""
        try:
            return cls(name, pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None

    def find(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            alive = process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if alive else None


@dataclass(slots=True)
class StackFile:
    """What a running stack tells of itself. `token` is the user's; the file is readable for its owner only."""

    supervisor: Process
    ready: bool = False
    costcenter_target: str = ""
    gateway_target: str = ""
    gateway_url: str = ""
    simulator_url: str = ""
    metrics_urls: dict[str, str] = field(default_factory=dict)
    database_url: str = ""
    ledger_database_url: str = ""
    redis_url: str = ""
    log_folder: str = ""
    token: str = ""
    children: list[Process] = field(default_factory=list)

    @property
    def scrape_urls(self) -> dict[str, str]:
        """Where each process tells its metrics, by its name."""
        urls = dict(self.metrics_urls)
        if self.gateway_url:
            urls["gateway"] = f"{self.gateway_url}/metrics"
        if self.simulator_url:
            urls["carrier-simulator"] = f"{self.simulator_url}/metrics"
        return dict(sorted(urls.items()))

    @property
    def targets(self) -> list[dict[str, object]]:
        """What a Prometheus scrapes, in the form of its file_sd_configs; `job` is the service as elsewhere.

        See https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config.
        """
        return [
            {
                "targets": [urlsplit(url).netloc],
                # worker-1 is one of the workers; the carrier simulator is no number two.
                "labels": {"job": _NUMBER.sub("", name), "process": name},
            }
            for name, url in self.scrape_urls.items()
        ]

    def write(self, data_dir: Path) -> None:
        """Replace the files whole."""
        write_durably(data_dir / NAME, json.dumps(asdict(self), indent=2) + "\n")
        write_durably(data_dir / TARGETS_NAME, json.dumps(self.targets, indent=2) + "\n")


def read(data_dir: Path) -> StackFile | None:
    """The file of this data folder, whether its stack runs or not; None without one, or with one that is broken."""
    try:
        values = json.loads((data_dir.expanduser() / NAME).read_text("utf-8"))
        return StackFile(
            supervisor=Process(**values.pop("supervisor")),
            children=[Process(**child) for child in values.pop("children")],
            **values,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def running(data_dir: Path) -> StackFile | None:
    """The file of the stack that runs on this data folder and is ready, or None."""
    found = read(data_dir)
    return found if found is not None and found.ready and found.supervisor.find() is not None else None


def remove(data_dir: Path) -> None:
    """Remove the files."""
    (data_dir / NAME).unlink(missing_ok=True)
    (data_dir / TARGETS_NAME).unlink(missing_ok=True)
