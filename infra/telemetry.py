"""Logs and metrics.

A log line is one event with its fields; a `request_id` bound to a context follows a message through gateway and
workers. Phone numbers and texts never appear whole: a processor masks what looks like a number, whatever logs it.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import orjson
import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

# Eight to fifteen digits in a row are what E.164 allows; identifiers of ours mix letters in and are left alone.
_NUMBER = re.compile(r"(?<![0-9A-Za-z])(\+?\d{3})\d{4,10}(\d{2})(?![0-9A-Za-z])")
_TEXT_FIELDS = frozenset({"text", "msg", "secret", "password", "authorization"})

# The moment at which each counter began would be a third of all series, and nobody reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)
PROCESS = Info(
    "smsbill_process", "What this process is: costcenter, gateway, worker, carrier-simulator", registry=REGISTRY
)
LOST_LINES = Counter(
    "smsbill_log_lines_lost", "Log lines that could not be written, as when the disk is full", registry=REGISTRY
)


class _Lines:
    """Where log lines go, which may be a file on a full disk: a line that cannot be written must not end what it is
    about. Has of a file what structlog asks for.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except OSError:
            LOST_LINES.inc()

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            LOST_LINES.inc()


def configure_logging(process: str, *, level: str, log_format: str) -> None:
    """Send structured logs to standard error, as JSON or, for a person, as text."""
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = structlog.dev.ConsoleRenderer() if as_text else _as_json
    lines: Any = _Lines(sys.stderr)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.WriteLoggerFactory(file=lines),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    PROCESS.info({"process": process})
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak up when something is wrong; their small talk would drown ours.
    root.setLevel(max(logging.WARNING, logging.getLevelName(level)))


def _as_json(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    # A line is written for each message; the standard library's encoder would take most of its time.
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


def mask(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide texts and secrets, and the middle of everything that looks like a phone number."""
    for name, value in event.items():
        if name in _TEXT_FIELDS:
            event[name] = "…"
        elif isinstance(value, str) and name not in {"timestamp", "level"}:
            event[name] = _NUMBER.sub(r"\1****\2", value)
    return event
