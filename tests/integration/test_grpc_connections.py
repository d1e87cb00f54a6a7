"""gRPC connections that the network has forgotten are replaced in seconds, and those that are silent are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from gateway_harness import eventually
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chaos.proxy import HOST, Proxy
from infra.authorization import Authenticator
from infra.grpc_server import GrpcServer, open_channel
from infra.settings import BaseSettings

# The least that the setting allows.
SETTINGS = BaseSettings(grpc_keepalive_seconds=1, _env_file=None)
SERVICE = "test.Service"
# Much longer than it takes to notice, much shorter than the system would wait.
CALL_SECONDS = 40.0
# More pings than the library's own rule would bear.
SILENCE_SECONDS = 4.5


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy before a server of ours that tells its health, which needs no token."""
    server = GrpcServer(
        SETTINGS, f"{HOST}:0", authenticator=cast(Authenticator, None), permissions={}, domain="test",
        services=(SERVICE,), register=lambda _: None,
    )  # fmt: skip
    await server.start()
    proxy = Proxy("server", (HOST, server.port))
    await proxy.start()
    yield proxy
    await proxy.close()
    await server.stop()


@pytest.fixture
async def stub(proxy: Proxy) -> AsyncIterator[Any]:
    """A client of that server, through the proxy."""
    channel = open_channel(SETTINGS, f"{HOST}:{proxy.port}")
    yield health_pb2_grpc.HealthStub(channel)
    await channel.close()


async def test_a_forgotten_connection_is_replaced(proxy: Proxy, stub: Any) -> None:
    """The call on it fails as lost before its time is over, and the next one gets a new connection."""
    request = health_pb2.HealthCheckRequest(service=SERVICE)
    await stub.Check(request, timeout=CALL_SECONDS)
    assert proxy.forget() == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(request, timeout=CALL_SECONDS)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    # One that was begun while the old connection was being given up fails likewise; callers repeat both.
    await eventually(lambda: answers(stub), CALL_SECONDS)


async def answers(stub: Any) -> bool:
    """Whether the server answers now."""
    try:
        await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True


async def test_a_silent_call_is_kept(stub: Any) -> None:
    """Trying a connection again and again while nothing is said is no abuse to our servers."""
    watching = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watching.read(), SILENCE_SECONDS)
    watching.cancel()
