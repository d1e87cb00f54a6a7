"""Start and stop of the gateway: one clear line when it cannot start, nothing lost when it stops."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import grpc.aio
import pytest
from fake_cost_center import FakeCostCenter
from gateway_harness import SECONDS, Gateway, eventually, gateway_settings, running_gateway
from grpc_health.v1 import health_pb2, health_pb2_grpc

from infra.errors import StartError
from smsgateway.process import GatewayProcess

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"database_url": ""}, "SMSBILL_DATABASE_URL"),
        ({"redis_url": ""}, "SMSBILL_REDIS_URL"),
        ({"service_token": ""}, "SMSBILL_SERVICE_TOKEN"),
        ({"database_url": "postgresql://127.0.0.1:1/none?connect_timeout=2"}, "PostgreSQL cannot be reached"),
        ({"redis_url": "redis://127.0.0.1:1/0"}, "Redis cannot be reached"),
        ({"chuanglan_url": "ftp://x"}, "SMSBILL_CHUANGLAN"),
        ({"http_address": "127.0.0.1:{taken}"}, "cannot listen"),
        ({"gateway_address": "127.0.0.1:{taken}"}, "cannot listen"),
        ({"http_address": "nonsense"}, "cannot listen"),
    ],
)
async def test_start_errors(database_url: str, redis_url: str, changes: dict[str, Any], words: str) -> None:
    """Each thing that is missing or wrong gives one line that names it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        changes = {name: value.format(taken=taken.getsockname()[1]) for name, value in changes.items()}
        settings = gateway_settings("127.0.0.1:1", database_url, redis_url, **changes)
        with pytest.raises(StartError, match=words) as caught:
            await GatewayProcess(settings).start()
    assert "\n" not in str(caught.value)


async def test_schema_must_be_migrated(empty_database_url: str, redis_url: str) -> None:
    """A database without our tables is refused with the command to run."""
    settings = gateway_settings("127.0.0.1:1", empty_database_url, redis_url)
    with pytest.raises(StartError, match="smsbill migrate"):
        await GatewayProcess(settings).start()


async def test_cost_centre_may_come_later(database_url: str, redis_url: str, fake_costcenter: FakeCostCenter) -> None:
    """Without a cost centre the gateway starts, and says UNAVAILABLE to those who need it."""
    async with running_gateway(fake_costcenter, database_url, redis_url, costcenter_target="127.0.0.1:1") as gateway:
        refusal = await gateway.refusal(gateway.send())
        assert refusal.code is grpc.StatusCode.UNAVAILABLE


async def test_stop_finishes_what_is_in_hand(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """A call under way when the process is told to stop gets its reply; health says that no new ones are taken."""
    async with running_gateway(fake_costcenter, database_url, redis_url) as gateway:
        fake_costcenter.gate.clear()
        call = asyncio.create_task(gateway.send())
        await asyncio.wait_for(fake_costcenter.arrived.wait(), SECONDS)
        stopping = asyncio.create_task(gateway.process.stop())
        await asyncio.sleep(0)
        fake_costcenter.gate.set()
        reply = await asyncio.wait_for(call, SECONDS)
        await asyncio.wait_for(stopping, SECONDS)
        assert await gateway.rows("select dispatch_id, state from dispatch") == [(reply.message_id, 2)]


async def test_stop_finishes_what_its_caller_has_left(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """A message whose group has started is taken to its end, although its caller is gone and the process stops."""
    async with running_gateway(fake_costcenter, database_url, redis_url) as gateway:
        fake_costcenter.gate.clear()
        call = asyncio.create_task(gateway.send())
        await asyncio.wait_for(fake_costcenter.arrived.wait(), SECONDS)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        stopping = asyncio.create_task(gateway.process.stop())

        async def http_is_gone() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", gateway.process.http_port)
            except ConnectionError:
                return True
            writer.close()
            return False

        # The ports go first; what follows waits for the group.
        await eventually(http_is_gone)
        fake_costcenter.gate.set()
        await asyncio.wait_for(stopping, SECONDS)
        assert await gateway.rows("select request_id, state from dispatch") == [("request-1", 2)]


async def test_health_and_reflection(gateway: Gateway) -> None:
    """Health is served without a token."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.process.grpc_port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="smsgateway.v1.SmsGateway")
        reply = await health.Check(request, timeout=SECONDS)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
