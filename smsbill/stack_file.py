"""`stack.json` in the data folder: how commands find the stack that runs there, and what is left of one that died."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from infra.data_folder import write_durably

NAME = "stack.json"


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

    def write(self, data_dir: Path) -> None:
        """Replace the file whole."""
        write_durably(data_dir / NAME, json.dumps(asdict(self), indent=2) + "\n")


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
    """Remove the file."""
    (data_dir / NAME).unlink(missing_ok=True)
