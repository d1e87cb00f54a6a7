"""Calls of a process to its own gRPC services: the same rights, refusals and metrics, without the network."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, cast

import grpc
import grpc.aio

from infra.authorization import Authenticator
from infra.errors import Refusal
from infra.grpc_server import CallInterceptor, Permissions

Register = Callable[[Any], None]


class LocalChannel:
    """What a generated stub takes for a channel. Its calls with one request and one reply end in this process.

    The stub's calls take `metadata` and `timeout` as those of a real channel do, and raise `Refusal` where a real one
    would have `grpc.aio.AioRpcError` raised. Calls with streams are not there: a stub that offers them raises
    `NotImplementedError` when one is made.

    Parameters: `register` adds the services, as to a `grpc.aio.Server`; the rest as the server has it.
    """

    def __init__(self, authenticator: Authenticator, permissions: Permissions, register: Register) -> None:
        services = _Services()
        register(services)
        interceptor = CallInterceptor(authenticator, permissions, "")
        self._calls = {
            method: interceptor.local(method, handler.unary_unary)
            for method, handler in services.handlers.items()
            if handler.unary_unary is not None
        }

    def unary_unary(self, method: str, **_: Any) -> Callable[..., Awaitable[Any]]:
        """The call of a method, for the generated stub."""
        serve = self._calls[method]

        async def call(request: Any, *, metadata: Any = (), timeout: float | None = None) -> Any:
            try:
                async with asyncio.timeout(timeout):
                    return await serve(request, cast(Any, _Context(metadata)))
            except TimeoutError:
                code = grpc.StatusCode.DEADLINE_EXCEEDED
                raise Refusal(code, code.name, f"no answer within {timeout:g} s") from None

        return call

    def _no_stream(self, method: str, **_: Any) -> Callable[..., NoReturn]:
        def call(*_arguments: Any, **_options: Any) -> NoReturn:
            raise NotImplementedError(f"{method} has a stream")

        return call

    unary_stream = stream_unary = stream_stream = _no_stream


class _Services:
    """Takes what is registered, as a server does."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, _handlers: Any) -> None:
        pass

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


class _Context:
    """What of a servicer's context is asked for here."""

    def __init__(self, metadata: Any) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Any:
        return self._metadata
