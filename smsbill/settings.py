"""Settings of the whole stack: those of every service, and the supervisor's own."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from costcenter.settings import Settings as CostCenterSettings
from workers.settings import Settings as WorkerSettings


class StackSettings(WorkerSettings, CostCenterSettings):
    """What `smsbill up` and `smsbill demo` read."""

    workers: int = Field(2, ge=1, le=64, description="Worker processes of `smsbill up`; two, so that one may die")
    costcenters: int = Field(
        1, ge=1, le=16, description="Cost centres of `smsbill up`; those after the first take free ports"
    )
    gateways: int = Field(1, ge=1, le=16, description="Gateways of `smsbill up`; those after the first take free ports")
    simulator_address: str = Field(
        "127.0.0.1:0", description="Where the carrier simulator listens; it has no access control, so keep it local"
    )
    stack_start_seconds: float = Field(
        60, gt=0, le=3_600, description="How long a process may take until it is ready; a loaded machine needs seconds"
    )
    restart_seconds: float = Field(
        0.5, gt=0, le=60, description="Wait before a process that died is started again; it doubles"
    )
    restart_seconds_max: float = Field(30, gt=0, le=3_600, description="Longest wait before another start")
    restart_stable_seconds: float = Field(
        60, gt=0, le=86_400, description="A process that ran so long has recovered: its next wait is the first again"
    )
    log_file_bytes: int = Field(
        8 * 1024 * 1024, ge=65_536, description="Size at which a log file is put aside; one older file is kept"
    )
    log_check_seconds: float = Field(
        1, gt=0, le=60, description="Time between two looks into the log files: for their size and for errors"
    )
    receipt_settle_seconds: float = Field(
        2, ge=0, le=60, description="How long a stopping stack waits for receipts that the simulator still owes"
    )
    examples_dir: Path | None = Field(
        None, description="Folder of the demo's texts and recipients; not set: the checkout's or the package's own"
    )
    demo_seconds: float = Field(
        180, gt=0, le=86_400, description="How long the demo waits until every message is final"
    )
