"""A gateway in this process for tests, with a client and a look into its records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import psycopg
from fake_cost_center import SERVICE_SECRET, FakeCostCenter

from infra.authorization import Role
from infra.database import FRESH_PLAN_OPTIONS, Database
from infra.errors import Refusal
from infra.grpc_server import bearer
from infra.grpc_status import from_error
from infra.heartbeat import Heartbeat
from infra.identifiers import IdentifierSource
from infra.telemetry import REGISTRY
from protos.smsgateway.v1 import sms_gateway_pb2, sms_gateway_pb2_grpc
from smsgateway.abandoned import AbandonedCalls
from smsgateway.dispatch_queue import DispatchQueue
from smsgateway.ledger_client import LedgerClient
from smsgateway.process import GatewayProcess
from smsgateway.queues import Queues, open_redis
from smsgateway.settings import Settings
from smsgateway.settling import MessageSettler

BRAND, OTHER_BRAND = 7, 8
SENDER, VIEWER, OTHER_SENDER = "sender", "viewer", "other sender"
SECONDS = 20


@dataclass
class Gateway:
    """A running gateway and a caller's view of it."""

    process: GatewayProcess
    settings: Settings
    costcenter: Any  # FakeCostCenter, or ledger_harness.Ledger
    stub: sms_gateway_pb2_grpc.SmsGatewayAsyncStub

    async def send(self, *, token: str | None = SENDER, timeout: float = SECONDS, **changes: Any) -> Any:
        """SendSms with a valid request but for `changes`."""
        return await self.stub.SendSms(single(**changes), metadata=_metadata(token), timeout=timeout)

    async def send_batch(
        self, mobiles: Sequence[str], *, token: str | None = SENDER, part: int = 1_000, **changes: Any
    ) -> Any:
        """SendBatchSms with a valid header but for `changes`, the numbers in parts."""
        return await self.send_parts(batch_parts(mobiles, part=part, **changes), token=token)

    async def send_parts(
        self, parts: Iterable[sms_gateway_pb2.SendBatchSmsRequest], *, token: str | None = SENDER
    ) -> Any:
        """SendBatchSms with these parts."""
        return await self.stub.SendBatchSms(iter(list(parts)), metadata=_metadata(token), timeout=60)

    async def message(self, message_id: str, *, token: str | None = SENDER) -> sms_gateway_pb2.Message:
        """GetMessage."""
        request = sms_gateway_pb2.GetMessageRequest(message_id=message_id)
        return (await self.stub.GetMessage(request, metadata=_metadata(token), timeout=SECONDS)).message

    async def messages(self, *, token: str | None = SENDER, **fields: Any) -> sms_gateway_pb2.ListMessagesResponse:
        """ListMessages of the brand."""
        request = sms_gateway_pb2.ListMessagesRequest(**{"brand_id": BRAND, **fields})
        return await self.stub.ListMessages(request, metadata=_metadata(token), timeout=SECONDS)

    async def batch(self, batch_id: str, *, token: str | None = SENDER) -> sms_gateway_pb2.Batch:
        """GetBatch."""
        request = sms_gateway_pb2.GetBatchRequest(batch_id=batch_id)
        return (await self.stub.GetBatch(request, metadata=_metadata(token), timeout=SECONDS)).batch

    async def cancel(self, batch_id: str, *, token: str | None = SENDER) -> sms_gateway_pb2.CancelBatchResponse:
        """CancelBatch."""
        request = sms_gateway_pb2.CancelBatchRequest(batch_id=batch_id)
        return await self.stub.CancelBatch(request, metadata=_metadata(token), timeout=SECONDS)

    async def count(self, text: str, mobile: str = "", *, token: str | None = SENDER) -> Any:
        """CountSegments."""
        request = sms_gateway_pb2.CountSegmentsRequest(text=text, mobile=mobile)
        return await self.stub.CountSegments(request, metadata=_metadata(token), timeout=SECONDS)

    async def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Rows of the gateway's schema; changes are committed."""
        url = self.settings.database_url
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute("set search_path to smsgateway")
            cursor = await connection.execute(query.encode(), parameters)
            return await cursor.fetchall() if cursor.description else []

    async def counts(self) -> tuple[int, ...]:
        """Rows of request_key, message, batch, dispatch, outbox."""
        (row,) = await self.rows(
            "select (select count(*) from request_key), (select count(*) from message), (select count(*) from batch),"
            " (select count(*) from dispatch), (select count(*) from outbox)"
        )
        return row

    async def refusal(self, call: Any) -> Refusal:
        """The refusal that a call ends with."""
        try:
            reply = await call
        except grpc.aio.AioRpcError as error:
            return from_error(error)
        raise AssertionError(f"not refused: {reply}")


@asynccontextmanager
async def running_gateway(costcenter: Any, database_url: str, redis_url: str, **changes: Any) -> AsyncIterator[Gateway]:
    """A gateway on free ports, beside a `FakeCostCenter` or a `Ledger`."""
    settings = gateway_settings(costcenter.target, database_url, redis_url, **changes)
    process = GatewayProcess(settings)
    await process.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
            yield Gateway(process, settings, costcenter, sms_gateway_pb2_grpc.SmsGatewayStub(channel))
    finally:
        await asyncio.wait_for(process.stop(), SECONDS)


@asynccontextmanager
async def abandoned_calls(gateway: Gateway, **changes: Any) -> AsyncIterator[AbandonedCalls]:
    """The sweeper's part, on connections of its own."""
    settings = gateway.settings.model_copy(update=changes)
    database = Database(settings.database_url, size=4, statements=4, wait_seconds=5, options=FRESH_PLAN_OPTIONS)
    await database.open()
    redis = open_redis(settings.redis_url, connections_max=4, timeout_seconds=5)
    ledger = LedgerClient(settings)
    queue = DispatchQueue(database, Queues(redis), settings, Heartbeat(60))
    identifiers = IdentifierSource()
    settler = MessageSettler(database, ledger, queue, identifiers)
    try:
        yield AbandonedCalls(database, ledger, settler, identifiers, settings)
    finally:
        await queue.close()
        await ledger.close()
        await redis.aclose()
        await database.close()


def gateway_settings(target: str, database_server: str, redis_server: str, **changes: Any) -> Settings:
    """Settings on free ports, with short waits."""
    values: dict[str, Any] = {
        "_env_file": None,
        "database_url": database_server,
        "redis_url": redis_server,
        "gateway_address": "127.0.0.1:0",
        "http_address": "127.0.0.1:0",
        "costcenter_target": target,
        "service_token": SERVICE_SECRET,
        "chuanglan_account": "N1234567",
        "chuanglan_password": "secret",
        "chuanglan_receiver": "receiver",
        "chuanglan_push_password": "push",
        "ledger_attempts": 2,
        "database_wait_seconds": 2,
        "drain_seconds": 5,
        "stream_entry_seconds": 0,
        **changes,
    }
    return Settings(**values)


async def started_cost_center() -> FakeCostCenter:
    """A fake cost centre with two brands and the tests' tokens."""
    fake = FakeCostCenter({BRAND: 1_000_000, OTHER_BRAND: 1_000_000})
    fake.add_token(SENDER, [Role.SENDER], [BRAND])
    fake.add_token(VIEWER, [Role.VIEWER], [BRAND])
    fake.add_token(OTHER_SENDER, [Role.SENDER], [OTHER_BRAND])
    await fake.start()
    return fake


def single(**changes: Any) -> sms_gateway_pb2.SendSmsRequest:
    """A valid request but for `changes`."""
    fields = {
        "brand_id": BRAND,
        "request_id": "request-1",
        "sms_type": 1,
        "mobile": "13800138000",
        "text": "【示例】验证码 123456",
        **changes,
    }
    return sms_gateway_pb2.SendSmsRequest(**fields)


def batch_parts(
    mobiles: Sequence[str], *, part: int = 1_000, **changes: Any
) -> list[sms_gateway_pb2.SendBatchSmsRequest]:
    """A valid header but for `changes`, then the numbers."""
    fields = {"brand_id": BRAND, "request_id": "batch-1", "sms_type": 3, "text": "【示例】大促 拒收请回复R", **changes}
    parts = [sms_gateway_pb2.SendBatchSmsRequest(header=sms_gateway_pb2.BatchHeader(**fields))]
    for start in range(0, len(mobiles), part):
        recipients = sms_gateway_pb2.BatchRecipients(mobiles=mobiles[start : start + part])
        parts.append(sms_gateway_pb2.SendBatchSmsRequest(recipients=recipients))
    return parts


def numbers(count: int, first: int = 0) -> list[str]:
    """Different Chinese numbers."""
    return [f"138{number:08d}" for number in range(first, first + count)]


async def eventually(check: Callable[[], Awaitable[bool]], seconds: float = SECONDS) -> None:
    """Wait until a condition holds that nothing announces."""
    async with asyncio.timeout(seconds):
        while not await check():  # noqa: ASYNC110 - it is in a database, or in another process
            await asyncio.sleep(0.02)


def metric(name: str, **labels: str) -> float:
    """A metric of this process; 0 before its first use."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


def _metadata(token: str | None) -> Any:
    return None if token is None else bearer(token)
