"""OpenTelemetry spans. Imported only when an endpoint is set (`infra.tracing`).

What a span says: ids, names of accounts and methods, counts, statuses. Never a number, a text or what an error of
others says, which may hold either.

Groups serve many messages with one call. The work of a group belongs to the trace of its first member, and its span is
linked to the spans of the others, as the specification has it for batches
(https://opentelemetry.io/docs/specs/otel/overview/#links-between-spans).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import Context
from typing import Any

import grpc
import grpc.aio
from opentelemetry import trace
from opentelemetry.context import Context as OtelContext
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT = "traceparent"
_PROPAGATOR = TraceContextTextMapPropagator()
# What a call of ours says outside of a trace, such as a loop's: there is none, and it shall not begin one.
_UNTRACED = f"00-{1:032x}-{1:016x}-00"
# The specification's default for links of one span; the rest is told by the group's size.
_LINKS_MAX = 128
# A context without a span.
_NOTHING = OtelContext()

Attributes = Mapping[str, str | int]
Handler = Callable[[Any, Any], Awaitable[Any]]


class Spans:
    """Makes and exports the spans of one process.

    Parameters: `endpoint` of the OTLP receiver, such as ``http://localhost:4318``; empty: as OpenTelemetry's own
    variables have it. `ratio` of the traces that begin here, 0 to 1; one that a caller began is as the caller has it.
    """

    # For those who must not import OpenTelemetry.
    CLIENT, CONSUMER, PRODUCER, SERVER = SpanKind.CLIENT, SpanKind.CONSUMER, SpanKind.PRODUCER, SpanKind.SERVER

    def __init__(self, process: str, *, endpoint: str, ratio: float) -> None:
        resource = Resource.create(
            {"service.name": os.environ.get("OTEL_SERVICE_NAME") or f"smsbill-{process}",
             "service.instance.id": f"{socket.gethostname()}:{os.getpid()}"}
        )  # fmt: skip
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces") if endpoint else OTLPSpanExporter()
        # Its queue is bounded (OTEL_BSP_MAX_QUEUE_SIZE); what does not fit is dropped, and no message waits for it.
        self._processor = BatchSpanProcessor(exporter)
        provider = TracerProvider(resource=resource, sampler=ParentBasedTraceIdRatio(ratio), shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("smsbill")

    def close(self, seconds: float) -> None:
        """Export what is left, at most so long; blocks."""
        self._processor.force_flush(timeout_millis=int(seconds * 1_000))
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    @property
    def parent(self) -> str:
        """The current span as a W3C `traceparent`, for whoever goes on elsewhere; empty when there is none to keep."""
        context = _sampled()
        if context is None:
            return ""
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    @contextmanager
    def span(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
        links: Sequence[Link] = (),
        parent: str | None = None,
    ) -> Iterator[Span]:
        """A span around the block, within the current one.

        Parameters: `parent` within this `traceparent` instead; empty: of a trace of its own. An exception that leaves
        the block is told by its class alone.
        """
        context = None if parent is None else _PROPAGATOR.extract({TRACEPARENT: parent} if parent else {}, _NOTHING)
        with self._tracer.start_as_current_span(
            name,
            context=context,
            kind=kind,
            attributes=attributes,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    @contextmanager
    def within(self, name: str, *, kind: SpanKind, attributes: Attributes) -> Iterator[Span]:
        """A span within the current one; outside of a trace there is none, and what is told of it goes nowhere."""
        if _sampled() is None:
            yield trace.INVALID_SPAN
            return
        with self.span(name, kind=kind, attributes=attributes) as span:
            yield span

    def continued(
        self,
        name: str,
        parents: Sequence[str],
        *,
        kind: SpanKind = SpanKind.CONSUMER,
        attributes: Attributes | None = None,
    ) -> AbstractContextManager[Span]:
        """The span of work that goes on with what others began, in the trace of the first, linked to the others.

        Parameters: `parents` their `traceparent`; empty ones belong to no trace. Without any that is one, nothing is
        traced: what no trace led to begins none.
        """
        known = [parent for parent in parents if parent]
        links = [Link(_context_of(parent)) for parent in known[1 : _LINKS_MAX + 1]]
        return self.span(name, kind=kind, attributes=attributes, links=links, parent=known[0] if known else _UNTRACED)

    @staticmethod
    def note(**attributes: str | int) -> None:
        """Tell more of the current span: names without the prefix `smsbill.`."""
        trace.get_current_span().set_attributes({f"smsbill.{name}": value for name, value in attributes.items()})

    # Groups.

    @staticmethod
    def leader(contexts: Iterable[Context | None]) -> Context | None:
        """The first of these contexts that is traced."""
        for context in contexts:
            if context is not None and context.run(_sampled) is not None:
                return context
        return None

    @contextmanager
    def group(self, name: str, contexts: Sequence[Context | None]) -> Iterator[None]:
        """The span of a group, to be used in the context of its leader; linked to the others.

        Parameters: `contexts` of all its members.
        """
        own = _sampled()
        found = (context.run(_sampled) for context in contexts if context is not None)
        links = [Link(each) for each in found if each is not None and each is not own]
        attributes = {"smsbill.group.size": len(contexts)}
        with self.span(name, attributes=attributes, links=links[:_LINKS_MAX]):
            yield

    # gRPC.

    def served(self, method: str, handler: Handler) -> Handler:
        """A gRPC handler with a span for each call, in the trace that the caller's `traceparent` names.

        Parameters: `method` its full name.
        """
        attributes = _rpc_attributes(method)
        name = method.lstrip("/")

        async def serve(request: Any, context: Any) -> Any:
            parent = ""
            for key, value in context.invocation_metadata() or ():
                if key == TRACEPARENT:
                    parent = value if isinstance(value, str) else value.decode("ascii", "replace")
                    break
            with self.span(name, kind=SpanKind.SERVER, attributes=attributes, parent=parent) as span:
                try:
                    reply = await handler(request, context)
                except grpc.aio.AbortError:
                    # A refusal; whether it is an error is the caller's to say, unless it is ours.
                    code = context.code()
                    span.set_attribute("rpc.response.status_code", getattr(code, "name", str(code)))
                    if code in _SERVER_ERRORS:
                        span.set_status(Status(StatusCode.ERROR, code.name))
                    raise
                span.set_attribute("rpc.response.status_code", "OK")
                return reply

        return serve

    def client_interceptors(self) -> list[grpc.aio.ClientInterceptor]:
        """What has calls of ours go on with the trace."""
        return [_ClientSpans(self)]


_SERVER_ERRORS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def _sampled() -> SpanContext | None:
    context = trace.get_current_span().get_span_context()
    return context if context.is_valid and context.trace_flags.sampled else None


def _context_of(parent: str) -> SpanContext:
    return trace.get_current_span(_PROPAGATOR.extract({TRACEPARENT: parent}, _NOTHING)).get_span_context()


class _ClientSpans(grpc.aio.UnaryUnaryClientInterceptor):
    """A span for each unary call within a trace; outside of one a call says that it shall not begin one."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        if not self._spans.parent:
            return await continuation(_with(client_call_details, _UNTRACED), request)
        method = client_call_details.method
        method = method.decode() if isinstance(method, bytes) else method
        attributes = _rpc_attributes(method)
        with self._spans.span(method.lstrip("/"), kind=SpanKind.CLIENT, attributes=attributes) as span:
            call = await continuation(_with(client_call_details, self._spans.parent), request)
            try:
                code = await call.code()
            except asyncio.CancelledError:
                call.cancel()
                raise
            span.set_attribute("rpc.response.status_code", code.name)
            if code is not grpc.StatusCode.OK:
                span.set_status(Status(StatusCode.ERROR, code.name))
        return call


def _with(details: Any, parent: str) -> grpc.aio.ClientCallDetails:
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    metadata.add(TRACEPARENT, parent)
    return grpc.aio.ClientCallDetails(
        details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
    )


def _rpc_attributes(method: str) -> Attributes:
    return {"rpc.system.name": "grpc", "rpc.method": method.lstrip("/")}
