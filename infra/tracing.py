"""Traces: whether there are any, and the way to them. Nothing of OpenTelemetry is imported unless an endpoint is set.

Those who have something to trace ask `active` when they are made, not for each message; without traces they then do
what they did before there were any.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from infra.errors import StartError
from infra.settings import BaseSettings

if TYPE_CHECKING:
    from infra.spans import Spans

# Of OpenTelemetry's own variables; see https://opentelemetry.io/docs/specs/otel/protocol/exporter/.
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_active: Spans | None = None


def active() -> Spans | None:
    """The traces of this process, or None while there are none."""
    return _active


def keep_out() -> None:
    """Have libraries do without OpenTelemetry, until `start` finds an endpoint.

    To be called before they are imported. redis-py imports the SDK where it is installed, for metrics that nobody asks
    for here: a tenth of a second of each start.
    """
    modules: dict[str, Any] = sys.modules
    # None: not to be found.
    modules.setdefault("opentelemetry", None)


def start(process: str, settings: BaseSettings) -> None:
    """Begin to trace when an endpoint is set: SMSBILL_OTLP_ENDPOINT, else OTEL_EXPORTER_OTLP_ENDPOINT.

    To be called before what shall be traced is made. Raises `StartError` when the packages are not installed.
    """
    global _active  # noqa: PLW0603 - one process has one
    wanted = settings.otlp_endpoint or any(os.environ.get(name) for name in _ENDPOINTS)
    if not wanted or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    if settings.otlp_endpoint and not settings.otlp_endpoint.startswith(("http://", "https://")):
        raise StartError("setting SMSBILL_OTLP_ENDPOINT: must begin with http:// or https://; correct it")
    if sys.modules.get("opentelemetry", sys) is None:
        del sys.modules["opentelemetry"]
    try:
        from infra.spans import Spans  # noqa: PLC0415 - its packages are optional, and slow to import
    except ImportError:
        raise StartError(
            "an OTLP endpoint is set and OpenTelemetry is not installed: pip install 'sms-costcenter[tracing]', "
            "or set neither SMSBILL_OTLP_ENDPOINT nor OTEL_EXPORTER_OTLP_ENDPOINT"
        ) from None
    _active = Spans(process, endpoint=settings.otlp_endpoint, ratio=settings.trace_ratio)


def stop(seconds: float) -> None:
    """Export what is left within about so many seconds; blocks. Without traces nothing happens."""
    global _active
    spans, _active = _active, None
    if spans is not None:
        spans.close(seconds)
