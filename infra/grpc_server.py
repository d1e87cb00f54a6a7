"""gRPC server plumbing: tokens and roles, refusals, metrics, health, reflection, TLS, drain."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from prometheus_client import Counter, Histogram

from infra import tracing
from infra.authorization import Authenticator, Principal, Role, set_principal
from infra.database import TRANSIENT
from infra.errors import Refusal, StartError, unavailable
from infra.grpc_status import to_trailers
from infra.settings import BaseSettings
from infra.telemetry import REGISTRY

log = structlog.get_logger(__name__)

# One role or more per full method name; the caller needs any one of them. An empty set admits every token.
Permissions = Mapping[str, frozenset[Role]]

# Pings of a caller at least so far apart are no abuse; the least that `grpc_keepalive_seconds` allows.
_PING_MILLISECONDS = 500

# Health and reflection tell nothing about brands and are asked by load balancers, which hold no token.
_OPEN_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")

CALLS = Counter("smsbill_grpc_calls", "gRPC calls served", ["method", "status"], registry=REGISTRY)
CALL_SECONDS = Histogram(
    "smsbill_grpc_call_seconds",
    "Time from a call's arrival to its reply",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
    registry=REGISTRY,
)

Handler = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]
Stream = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], AsyncGenerator[Any, None]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Checks the caller, turns refusals into statuses, and counts."""

    def __init__(self, authenticator: Authenticator, permissions: Permissions, domain: str) -> None:
        self._authenticator = authenticator
        self._permissions = permissions
        self._domain = domain
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(details)
        if handler is None or method.startswith(_OPEN_SERVICES):
            return handler
        # The annotations know the synchronous behaviours only; on this server they are coroutine functions.
        streaming = cast("Stream | None", handler.unary_stream)
        make: Callable[..., grpc.RpcMethodHandler[Any, Any]]
        if streaming is not None:
            wrapped = grpc.unary_stream_rpc_method_handler(
                cast(Any, self._serve_stream(method, streaming)),
                handler.request_deserializer,
                handler.response_serializer,
            )
        else:
            behaviour = cast(Handler, handler.stream_unary or handler.unary_unary)
            serve = self._serve(method, behaviour)
            spans = tracing.active()
            if spans is not None:
                serve = spans.served(method, serve)
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
            wrapped = make(serve, handler.request_deserializer, handler.response_serializer)
        self._wrapped[method] = wrapped
        return wrapped

    def local(self, method: str, behaviour: Handler) -> Handler:
        """The behaviour for calls from within the process; a refusal is raised, not sent."""
        name = method.rpartition("/")[2]

        async def serve(request: Any, context: Any) -> Any:
            started = time.perf_counter()
            status = "OK"
            try:
                await self._admit(method, context)
                return await behaviour(request, context)
            except Exception as error:
                refusal = _refusal(name, error)
                status = refusal.code.name
                raise refusal from None
            finally:
                CALLS.labels(name, status).inc()
                CALL_SECONDS.labels(name).observe(time.perf_counter() - started)

        return serve

    def _serve(self, method: str, behaviour: Handler) -> Handler:
        name = method.rpartition("/")[2]
        seconds = CALL_SECONDS.labels(name)
        ok = CALLS.labels(name, "OK")

        async def serve(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            started = time.perf_counter()
            try:
                await self._admit(method, context)
                reply = await behaviour(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                refusal = _refusal(name, error)
            else:
                ok.inc()
                seconds.observe(time.perf_counter() - started)
                return reply
            seconds.observe(time.perf_counter() - started)
            await self._refuse(name, refusal, context)

        return serve

    def _serve_stream(self, method: str, behaviour: Stream) -> Stream:
        name = method.rpartition("/")[2]

        # Not in the histogram of times: a stream lasts as long as what it tells of.
        async def serve(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncGenerator[Any, None]:
            try:
                await self._admit(method, context)
                async with aclosing(behaviour(request, context)) as replies:
                    async for reply in replies:
                        yield reply
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                refusal = _refusal(name, error)
            else:
                CALLS.labels(name, "OK").inc()
                return
            await self._refuse(name, refusal, context)

        return serve

    async def _admit(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Know the caller and its role. Raises `Refusal`."""
        header = None
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                header = value if isinstance(value, str) else value.decode("ascii", "replace")
                break
        principal = await self._authenticator.authenticate(header)
        _require_role(principal, self._permissions.get(method))
        set_principal(principal)

    async def _refuse(self, name: str, refusal: Refusal, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        CALLS.labels(name, refusal.code.name).inc()
        await context.abort(refusal.code, refusal.message, to_trailers(refusal, self._domain))


def _refusal(name: str, error: Exception) -> Refusal:
    """What a caller hears of an error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, TRANSIENT):
        log.warning("dependency unreachable", method=name, error=type(error).__name__)
        return unavailable("a part that this call needs cannot be reached; call again with the same request_id")
    # The caller gets no traceback; whoever runs the service finds it here.
    log.error("call failed", method=name, exc_info=error)
    return Refusal(grpc.StatusCode.INTERNAL, "INTERNAL", "an error of the service; its log has the details")


def _require_role(principal: Principal, roles: frozenset[Role] | None) -> None:
    # A method that nobody listed admits admins only: forgetting one must not open it.
    needed = frozenset({Role.ADMIN}) if roles is None else roles
    if needed and not needed & principal.roles:
        names = " or ".join(sorted(role.name.lower() for role in needed))
        raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED", f"this call needs the role {names}")


class GrpcServer:
    """A grpc.aio server on one address, with health and reflection.

    Parameters: `address` such as `0.0.0.0:50051` (port 0: a free one, see `port`); `services` full names that are
    reflected and reported healthy.
    """

    def __init__(
        self,
        settings: BaseSettings,
        address: str,
        *,
        authenticator: Authenticator,
        permissions: Permissions,
        domain: str,
        services: Sequence[str],
        register: Callable[[grpc.aio.Server], None],
    ) -> None:
        self._settings = settings
        self._address = address
        self._services = services
        self._health = HealthServicer()
        self.port = 0
        self._server = grpc.aio.server(
            interceptors=[CallInterceptor(authenticator, permissions, domain)],
            maximum_concurrent_rpcs=settings.grpc_calls_max,
            options=[
                ("grpc.max_receive_message_length", settings.grpc_message_bytes_max),
                ("grpc.max_send_message_length", settings.grpc_message_bytes_max),
                # A connection's caller may try it more often than the library's five minutes.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", _PING_MILLISECONDS),
                # Two stacks on one port would share its calls in silence; a taken port must be an error.
                ("grpc.so_reuseport", 0),
                # What this process has no time to take, the library refuses before any Python sees it, more and more
                # from the first figure on, all from the second on. A refusal in Python costs as much as a call.
                ("grpc.server.max_pending_requests", settings.grpc_pending_max),
                ("grpc.server.max_pending_requests_hard_limit", 2 * settings.grpc_pending_max),
            ],
        )
        register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (
            *services,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> None:
        """Listen. Raises `StartError` when the port is taken or a certificate cannot be read."""
        try:
            credentials = server_credentials(self._settings)
            if credentials is None:
                self.port = self._server.add_insecure_port(self._address)
            else:
                self.port = self._server.add_secure_port(self._address, credentials)
        except RuntimeError:
            raise StartError(
                f"cannot listen on {self._address}: the port is taken or not allowed; free it or set another"
            ) from None
        await self._server.start()
        for name in ("", *self._services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Refuse new calls, give those under way the drain time, then stop."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._settings.drain_seconds)


def server_credentials(settings: BaseSettings) -> grpc.ServerCredentials | None:
    """TLS credentials of the settings, or None without them. Raises `StartError` for half a pair or bad files."""
    certificate, key = settings.grpc_tls_certificate, settings.grpc_tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise StartError("set both SMSBILL_GRPC_TLS_CERTIFICATE and SMSBILL_GRPC_TLS_KEY, or neither")
    pair = (_read(key), _read(certificate))
    try:
        # gRPC says no more of a bad pair than that it cannot listen. Without a password an encrypted key is no key.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise StartError(
            f"{certificate} and {key} are no PEM certificate with its key ({error.reason});"
            " correct SMSBILL_GRPC_TLS_CERTIFICATE and SMSBILL_GRPC_TLS_KEY"
        ) from None
    return grpc.ssl_server_credentials([pair])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror}") from None


def open_channel(settings: BaseSettings, target: str) -> grpc.aio.Channel:
    """A channel to one of our services, with TLS when the settings have it.

    A `target` is `host:port`, or several as gRPC writes them (`ipv4:10.0.0.1:50051,10.0.0.2:50051`, or a name with
    several addresses behind `dns:///`): calls go to all that answer, by turns.
    """
    keepalive = round(settings.grpc_keepalive_seconds * 1_000)
    options = [
        ("grpc.max_receive_message_length", settings.grpc_message_bytes_max),
        ("grpc.max_send_message_length", settings.grpc_message_bytes_max),
        # A restarted service is found again within seconds, not minutes.
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.lb_policy_name", "round_robin"),
        ("grpc.keepalive_time_ms", keepalive),
        ("grpc.keepalive_timeout_ms", keepalive),
        # Of the library's own pings, which stand for ours while they are out.
        ("grpc.http2.ping_timeout_ms", keepalive),
    ]
    authorities = settings.grpc_tls_ca or settings.grpc_tls_certificate
    spans = tracing.active()
    interceptors = None if spans is None else spans.client_interceptors()
    if authorities is None:
        return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
    return grpc.aio.secure_channel(
        target, grpc.ssl_channel_credentials(_read(authorities)), options=options, interceptors=interceptors
    )


def bearer(secret: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with a token."""
    return (("authorization", f"Bearer {secret}"),)
