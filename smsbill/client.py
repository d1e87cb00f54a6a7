"""The stack seen by a command: where it is, with which token, and one way to call it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import Field, SecretStr

from infra.grpc_server import bearer, open_channel
from infra.settings import BaseSettings
from protos.costcenter.v1.cost_center_admin_pb2_grpc import CostCenterAdminStub
from protos.costcenter.v1.cost_center_jobs_pb2_grpc import CostCenterJobsStub
from protos.costcenter.v1.cost_center_pb2_grpc import CostCenterStub
from protos.smsgateway.v1.alerts_pb2_grpc import AlertsStub
from protos.smsgateway.v1.campaigns_pb2_grpc import CampaignsStub
from protos.smsgateway.v1.routing_pb2_grpc import RoutingStub
from protos.smsgateway.v1.sender_rules_pb2_grpc import SenderRulesStub
from protos.smsgateway.v1.sms_gateway_pb2_grpc import SmsGatewayStub
from protos.smsgateway.v1.statistics_pb2_grpc import StatisticsStub
from protos.smsgateway.v1.webhooks_pb2_grpc import WebhooksStub
from smsbill import stack_file
from smsbill.failure import CommandError

T = TypeVar("T")


class ClientSettings(BaseSettings):
    """What commands that call the services read. What is not set comes from the stack that runs on the data folder."""

    costcenter_target: str = Field("", description="Where clients find the cost centre")
    gateway_target: str = Field("", description="Where clients find the gateway")
    token: SecretStr = Field(SecretStr(""), description="Token that commands call with")
    client_call_seconds: float = Field(
        30, gt=0, le=3_600, description="How long a call of a command may take; a batch gets ten times that"
    )


@dataclass(frozen=True, slots=True)
class Access:
    """Where the services are and the token to call them with."""

    costcenter_target: str
    gateway_target: str
    token: str


def find_access(settings: ClientSettings) -> Access:
    """Targets and token of the settings, and where they are silent of the running stack. Raises `CommandError`."""
    token = settings.token.get_secret_value()
    costcenter, gateway = settings.costcenter_target, settings.gateway_target
    if not (costcenter and gateway and token):
        stack = stack_file.running(settings.data_dir)
        if stack is not None:
            costcenter, gateway = costcenter or stack.costcenter_target, gateway or stack.gateway_target
            # A token of this stack says nothing to another.
            if costcenter == stack.costcenter_target:
                token = token or stack.token
        elif not costcenter and not gateway and not token:
            raise CommandError(
                f"no stack runs on {settings.data_dir}; start one with `smsbill up`, "
                "or set SMSBILL_COSTCENTER_TARGET, SMSBILL_GATEWAY_TARGET and SMSBILL_TOKEN"
            )
    if not token:
        raise CommandError("set SMSBILL_TOKEN to a token (`smsbill token create` makes one)")
    return Access(costcenter or "127.0.0.1:50051", gateway or "127.0.0.1:50052", token)


class Client:
    """Stubs of all services with one token. Calls go through `call`, so that each has a deadline."""

    def __init__(self, settings: BaseSettings, access: Access, *, call_seconds: float) -> None:
        self.call_seconds = call_seconds
        self.metadata = bearer(access.token)
        self._channels = [
            open_channel(settings, target) for target in (access.costcenter_target, access.gateway_target)
        ]
        self.ledger = CostCenterStub(self._channels[0])
        self.admin = CostCenterAdminStub(self._channels[0])
        self.jobs = CostCenterJobsStub(self._channels[0])
        self.gateway = SmsGatewayStub(self._channels[1])
        self.routing = RoutingStub(self._channels[1])
        self.rules = SenderRulesStub(self._channels[1])
        self.webhooks = WebhooksStub(self._channels[1])
        self.campaigns = CampaignsStub(self._channels[1])
        self.alerts = AlertsStub(self._channels[1])
        self.statistics = StatisticsStub(self._channels[1])

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()

    async def call(self, method: Callable[..., Awaitable[T]], request: Any) -> T:
        """Call an RPC. Raises `grpc.aio.AioRpcError`, for which `smsbill.failure` has a line."""
        return await method(request, metadata=self.metadata, timeout=self.call_seconds)

    async def pages(self, method: Callable[..., Awaitable[Any]], request: Any) -> AsyncIterator[Any]:
        """Call a listing RPC page by page; `request` carries the filters."""
        while True:
            reply = await self.call(method, request)
            yield reply
            if not reply.next_page_token:
                return
            request.page_token = reply.next_page_token


@asynccontextmanager
async def opened() -> AsyncIterator[Client]:
    """A client by the environment. Raises `StartError`, `CommandError`."""
    settings = ClientSettings.load()
    client = Client(settings, find_access(settings), call_seconds=settings.client_call_seconds)
    try:
        yield client
    finally:
        await client.close()


def run(work: Callable[[Client], Awaitable[T]]) -> T:
    """Run what a command does with a client."""

    async def body() -> T:
        async with opened() as client:
            return await work(client)

    return asyncio.run(body())
