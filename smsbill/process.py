"""One service as a process: start, say that it is ready, run until SIGTERM or SIGINT, drain."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog
import uvloop

from infra import tracing
from infra.settings import BaseSettings
from infra.telemetry import configure_logging
from smsbill import crash_points
from smsbill.parent import STOP_MARGIN_SECONDS, end_by_force_after

log = structlog.get_logger(__name__)

# Set by the supervisor for its children: the file that standard error goes to, opened anew at SIGHUP.
LOG_FILE = "SMSBILL_LOG_FILE"

# A thread that comes back from the database waits so long for the interpreter; the default of 5 ms is as long as the
# database's whole answer takes.
SWITCH_SECONDS = 0.0005


# How long a stopping process tries to hand over its last traces.
_TRACES_SECONDS = 2.0

# Objects allocated more than freed before a young collection; young before a middle one; middle before an old one.
_COLLECTOR_THRESHOLDS = (10_000, 20, 50)


class Service(Protocol):
    """What a service process offers."""

    async def start(self) -> None:
        """Serve. Raises `StartError`; then nothing is left running."""

    async def stop(self) -> None:
        """Drain and end."""


def run(
    name: str,
    settings: BaseSettings,
    service: Service,
    report: Callable[[], Mapping[str, object]],
    *,
    threads: bool = False,
) -> None:
    """Run a service until it is told to stop.

    When it is ready, one JSON line on standard output says so: `ready` its name, `pid`, and what `report` returns
    (ports, addresses). `threads`: it works in more threads than the event loop's. Raises `StartError`.
    """
    if threads:
        sys.setswitchinterval(SWITCH_SECONDS)
    configure_logging(name, level=settings.log_level, log_format=settings.log_format)
    tracing.start(name, settings)
    crash_points.arm(settings.crash_point)
    uvloop.run(_serve(name, settings, service, report))


async def _serve(
    name: str, settings: BaseSettings, service: Service, report: Callable[[], Mapping[str, object]]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, number, stop)
    loop.add_signal_handler(signal.SIGHUP, _reopen_log)
    stopping = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(service.start())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    try:
        await starting
    except BaseException:
        stopping.cancel()
        raise
    _spare_the_collector()
    told = {"ready": name, "pid": os.getpid(), **report()}
    log.info("ready", **{key: value for key, value in told.items() if key != "ready"})
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    await stopping
    end_by_force_after(settings.drain_seconds + STOP_MARGIN_SECONDS)
    await service.stop()
    await asyncio.to_thread(tracing.stop, _TRACES_SECONDS)
    log.info("stopped")


def _spare_the_collector() -> None:
    """Leave what a start has made, which stays, out of garbage collections, and look through young objects less often.

    Whole collections walk every object of the process, some hundred megabytes; nearly all garbage here is freed by
    counting references.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)


def _on_signal(number: signal.Signals, stop: asyncio.Event) -> None:
    if stop.is_set():
        # Asked a second time: whoever asks does not want to wait for the drain.
        os._exit(128 + number)
    stop.set()


def _reopen_log() -> None:
    path = os.environ.get(LOG_FILE)
    if path:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(descriptor, 2)
        os.close(descriptor)
