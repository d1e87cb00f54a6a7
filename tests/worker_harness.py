"""Everything but the command in this process: cost centre, gateway, simulated carrier, and workers as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc.aio
import psycopg
from gateway_harness import SECONDS, eventually

from costcenter.process import CostCenterProcess
from costcenter.settings import Settings as CostCenterSettings
from infra.database import FRESH_PLAN_OPTIONS, Database
from infra.grpc_server import bearer
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import (
    cost_center_admin_pb2,
    cost_center_admin_pb2_grpc,
    cost_center_pb2,
    cost_center_pb2_grpc,
)
from protos.smsgateway.v1 import sms_gateway_pb2, sms_gateway_pb2_grpc
from smsbill.carrier_simulator import CarrierSimulator, SimulatorConfig, SimulatorSettings
from smsgateway.carriers.base import (
    BatchCall,
    CallOutcome,
    Carrier,
    CarrierLimits,
    PersonalisedCall,
    PulledReceipts,
    PulledReplies,
    SingleCall,
    Verdict,
)
from smsgateway.ledger_client import LedgerClient
from smsgateway.process import GatewayProcess
from smsgateway.queues import Queues, open_redis
from smsgateway.schema import MessageState
from workers.outbox_relay import OutboxRelay
from workers.process import WorkerProcess
from workers.settings import Settings
from workers.settlement import Settlement

BRAND, OTHER_BRAND = 7, 300
ADMIN, SERVICE = "an admin's secret", "the service's secret"
GRANTED = 1_000_000
VERIFICATION, NOTIFICATION, MARKETING = 1, 2, 3
PASSWORD = "secret"
FINAL = {
    MessageState.DELIVERED,
    MessageState.UNDELIVERED,
    MessageState.EXPIRED,
    MessageState.FAILED,
    MessageState.CANCELLED,
}

# Quick where the product is patient, so that a test sees what a day would show.
QUICK: dict[str, Any] = {
    "walk_seconds": 0.5,
    "sweep_seconds": 0.2,
    "outbox_poll_seconds": 0.1,
    "outbox_hold_seconds": 1,
    "retry_base_seconds": 0.02,
    "retry_max_seconds": 0.2,
    "loop_retry_seconds_max": 0.3,
    "release_wait_seconds": 0.2,
    "receipt_wait_seconds": 0.2,
    "database_wait_seconds": 2,
    "redis_call_seconds": 2,
    "drain_seconds": 5,
    "stream_entry_seconds": 0,
}


Call = SingleCall | BatchCall | PersonalisedCall


class ScriptedCarrier:
    """A carrier whose answers a test decides, call by call; what it cannot do is lie about having been called."""

    def __init__(
        self, *, max_batch: int = 1_000, max_personalised: int = 1_000, without: str = ",;", timeout_s: float = 1.0
    ) -> None:
        self.calls: list[Any] = []
        self.outcomes: list[CallOutcome] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.called = asyncio.Event()
        self.latency_s = 0.0
        self._limits = CarrierLimits(
            max_text_characters=536,
            max_batch=max_batch,
            call_timeout_s=timeout_s,
            max_personalised=max_personalised,
            personalised_without=without,
        )

    @property
    def account_id(self) -> str:
        return "chuanglan"

    @property
    def limits(self) -> CarrierLimits:
        return self._limits

    @property
    def sent(self) -> list[str]:
        """Every number of every call, in order."""
        return [mobile for call in self.calls for mobile in _mobiles(call)]

    async def send_single(self, call: SingleCall) -> CallOutcome:
        return await self._answer(call)

    async def send_batch(self, call: BatchCall) -> CallOutcome:
        return await self._answer(call)

    async def send_personalised(self, call: PersonalisedCall) -> CallOutcome:
        return await self._answer(call)

    async def balance(self) -> int:
        return 1

    def parse_pushed_receipt(self, params: Any) -> Any:
        raise NotImplementedError

    async def pull_receipts(self, count: int) -> PulledReceipts:
        raise NotImplementedError

    async def pull_replies(self, count: int) -> PulledReplies:
        raise NotImplementedError

    async def aclose(self) -> None:
        pass

    async def _answer(self, call: Call) -> CallOutcome:
        self.calls.append(call)
        self.called.set()
        await self.gate.wait()
        await asyncio.sleep(self.latency_s)
        if self.outcomes:
            return self.outcomes.pop(0)
        return CallOutcome(Verdict.ACCEPTED, carrier_message_id=f"m-{call.call_id}", code="0")


def _mobiles(call: Call) -> tuple[str, ...]:
    return (call.mobile,) if isinstance(call, SingleCall) else call.mobiles


@dataclass
class Stack:
    """The running parts."""

    database_url: str
    redis_url: str
    costcenter: CostCenterProcess
    costcenter_settings: CostCenterSettings
    gateway: GatewayProcess
    simulator: CarrierSimulator
    ledger: cost_center_pb2_grpc.CostCenterAsyncStub
    admin: cost_center_admin_pb2_grpc.CostCenterAdminAsyncStub
    sms: sms_gateway_pb2_grpc.SmsGatewayAsyncStub
    values: dict[str, Any]
    receipt_url: str
    workers: list[WorkerProcess] = field(default_factory=list)

    def settings(self, **changes: Any) -> Settings:
        """Settings of a worker."""
        return Settings(**{**self.values, **changes})

    async def worker(self, *, carrier: Carrier | None = None, **changes: Any) -> WorkerProcess:
        """A started worker, stopped at the end of the test unless the test does."""
        worker = WorkerProcess(self.settings(**changes), carrier=carrier)
        await worker.start()
        self.workers.append(worker)
        return worker

    async def stop_costcenter(self) -> None:
        """Stop the cost centre that runs now."""
        await self.costcenter.stop()

    async def restart_costcenter(self) -> None:
        """Start the cost centre again on its port."""
        settings = self.costcenter_settings.model_copy(update={"costcenter_address": self.values["costcenter_target"]})
        self.costcenter = CostCenterProcess(settings)
        await self.costcenter.start()

    async def grant(self, brand_id: int, segments: int = GRANTED, *, refund_undelivered: bool = False) -> int:
        """A brand that owns segments; the number of their package."""
        await self.admin.PutBrand(
            cost_center_admin_pb2.PutBrandRequest(
                brand_id=brand_id, name=f"Brand {brand_id}", refund_undelivered=refund_undelivered
            ),
            metadata=bearer(ADMIN),
            timeout=SECONDS,
        )
        return await self.adjust(brand_id, grant=cost_center_admin_pb2.GrantAdjustment(segments=segments))

    async def adjust(self, brand_id: int, *, request_id: str = "", **adjustment: Any) -> int:
        """AdjustPackage; the package's number."""
        request = cost_center_admin_pb2.AdjustPackageRequest(
            brand_id=brand_id,
            request_id=request_id or f"adjust-{brand_id}-{next(iter(adjustment))}",
            author="test",
            reason="test",
            **adjustment,
        )
        reply = await self.admin.AdjustPackage(request, metadata=bearer(ADMIN), timeout=SECONDS)
        return int(reply.package.package_id)

    async def push_receipt(
        self, *, call_id: str, mobile: str, status: str = "DELIVRD", carrier_id: str = "m1", length: str = ""
    ) -> None:
        """What the carrier pushes for one message."""
        params = {
            "receiver": "r",
            "pswd": "p",
            "msgid": carrier_id,
            "reportTime": "2601021530",
            "mobile": mobile,
            "status": status,
            "uid": call_id,
            "length": length,
        }
        async with aiohttp.ClientSession() as session, session.get(self.receipt_url, params=params) as response:
            assert response.status == 200, await response.text()

    async def stop(self, worker: WorkerProcess) -> None:
        """Stop a worker."""
        self.workers.remove(worker)
        await asyncio.wait_for(worker.stop(), SECONDS)

    async def send(self, mobile: str = "13800138001", *, request_id: str | None = None, **changes: Any) -> str:
        """SendSms; the message's id."""
        fields = {"brand_id": BRAND, "sms_type": VERIFICATION, "text": "【示例】验证码 123456", **changes}
        request = sms_gateway_pb2.SendSmsRequest(
            mobile=mobile, request_id=request_id or f"s-{fields['brand_id']}-{mobile}", **fields
        )
        return str((await self.sms.SendSms(request, metadata=bearer(ADMIN), timeout=SECONDS)).message_id)

    async def send_batch(self, mobiles: Sequence[str], *, request_id: str = "batch-1", **changes: Any) -> str:
        """SendBatchSms; the batch's id."""
        fields = {"brand_id": BRAND, "sms_type": MARKETING, "text": "【示例】大促 拒收请回复R", **changes}
        parts = [
            sms_gateway_pb2.SendBatchSmsRequest(header=sms_gateway_pb2.BatchHeader(request_id=request_id, **fields))
        ]
        for start in range(0, len(mobiles), 1_000):
            recipients = sms_gateway_pb2.BatchRecipients(mobiles=mobiles[start : start + 1_000])
            parts.append(sms_gateway_pb2.SendBatchSmsRequest(recipients=recipients))
        reply = await self.sms.SendBatchSms(iter(parts), metadata=bearer(ADMIN), timeout=60)
        assert reply.accepted == len(mobiles)
        return str(reply.batch_id)

    async def message(self, message_id: str) -> sms_gateway_pb2.Message:
        """GetMessage."""
        request = sms_gateway_pb2.GetMessageRequest(message_id=message_id)
        return (await self.sms.GetMessage(request, metadata=bearer(ADMIN), timeout=SECONDS)).message

    async def state(self, message_id: str) -> MessageState:
        """The state that a caller sees."""
        return MessageState((await self.message(message_id)).state)

    async def balance(self, brand_id: int = BRAND) -> tuple[int, int]:
        """Segments that the brand owns and that are frozen."""
        request = cost_center_pb2.GetBalanceRequest(brand_id=brand_id)
        reply = await self.ledger.GetBalance(request, metadata=bearer(ADMIN), timeout=SECONDS)
        return reply.total, reply.frozen

    async def payments(self, brand_id: int = BRAND) -> list[cost_center_pb2.Payment]:
        """The brand's payments, newest first."""
        request = cost_center_pb2.ListPaymentsRequest(brand_id=brand_id, page_size=1_000)
        reply = await self.ledger.ListPayments(request, metadata=bearer(ADMIN), timeout=SECONDS)
        return list(reply.payments)

    async def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Rows of the gateway's schema; changes are committed."""
        async with await psycopg.AsyncConnection.connect(self.database_url, autocommit=True) as connection:
            await connection.execute("set search_path to smsgateway")
            cursor = await connection.execute(query.encode(), parameters)
            return await cursor.fetchall() if cursor.description else []

    async def states(self) -> dict[MessageState, int]:
        """Messages by stored state."""
        rows = await self.rows("select state, count(*) from message group by state")
        return {MessageState(state): count for state, count in rows}

    async def quiet(self) -> bool:
        """Whether nothing is under way or owed: no dispatch, nothing in the outbox or the inbox."""
        (row,) = await self.rows(
            "select (select count(*) from dispatch), (select count(*) from outbox),"
            " (select count(*) from receipt_inbox)"
        )
        return row == (0, 0, 0)

    async def quiet_dispatches(self) -> bool:
        """Whether no dispatch is under way."""
        return (await self.rows("select count(*) from dispatch")) == [(0,)]

    async def wait_until_final(self, count: int, seconds: float = SECONDS) -> dict[MessageState, int]:
        """Wait until so many messages are final and nothing is under way or owed; their states."""

        async def done() -> bool:
            states = await self.states()
            return sum(states.get(state, 0) for state in FINAL) == count and await self.quiet()

        await eventually(done, seconds)
        return await self.states()

    async def wait_for_state(self, message_id: str, *states: MessageState, seconds: float = SECONDS) -> Any:
        """Wait until a message is seen in one of these states."""

        async def there() -> bool:
            return await self.state(message_id) in states

        await eventually(there, seconds)
        return await self.message(message_id)


@asynccontextmanager
async def running_stack(
    database_url: str,
    redis_url: str,
    *,
    simulator: dict[str, Any] | None = None,
    costcenter: dict[str, Any] | None = None,
    **changes: Any,
) -> AsyncIterator[Stack]:
    """All parts but workers, with two brands that own a million segments each. Receipts come after 20 ms."""
    async with AsyncExitStack() as exit_stack:
        costcenter_settings = CostCenterSettings(
            _env_file=None,
            database_url=database_url,
            costcenter_address="127.0.0.1:0",
            bootstrap_token=ADMIN,
            service_token=SERVICE,
            drain_seconds=1,
            **(costcenter or {}),
        )
        process = CostCenterProcess(costcenter_settings)
        await process.start()
        behaviour = {"receipt_delay_ms_min": 20, "receipt_delay_ms_max": 40, "receiver": "r", "pswd": "p"}
        carrier = CarrierSimulator(
            SimulatorConfig(password=PASSWORD, settings=SimulatorSettings(**{**behaviour, **(simulator or {})}))
        )
        await exit_stack.enter_async_context(carrier)
        values: dict[str, Any] = {
            "_env_file": None,
            "database_url": database_url,
            "redis_url": redis_url,
            "gateway_address": "127.0.0.1:0",
            "http_address": "127.0.0.1:0",
            "worker_http_address": "127.0.0.1:0",
            "costcenter_target": f"127.0.0.1:{process.port}",
            "service_token": SERVICE,
            "chuanglan_url": carrier.url,
            "chuanglan_account": "N0000001",
            "chuanglan_password": PASSWORD,
            "chuanglan_receiver": "r",
            "chuanglan_push_password": "p",
            **QUICK,
            **changes,
        }
        gateway = GatewayProcess(Settings(**values))
        await gateway.start()
        exit_stack.push_async_callback(gateway.stop)
        receipt_url = f"http://127.0.0.1:{gateway.http_port}/callbacks/chuanglan/report"
        carrier.change_settings({"receipt_url": receipt_url})
        ledger_channel = await exit_stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{process.port}"))
        sms_channel = await exit_stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}"))
        stack = Stack(
            database_url,
            redis_url,
            process,
            costcenter_settings,
            gateway,
            carrier,
            cost_center_pb2_grpc.CostCenterStub(ledger_channel),
            cost_center_admin_pb2_grpc.CostCenterAdminStub(ledger_channel),
            sms_gateway_pb2_grpc.SmsGatewayStub(sms_channel),
            values,
            receipt_url,
        )
        exit_stack.push_async_callback(stack.stop_costcenter)
        for brand_id in (BRAND, OTHER_BRAND):
            await stack.grant(brand_id)
        try:
            yield stack
        finally:
            for worker in list(stack.workers):
                await stack.stop(worker)


@dataclass
class Tools:
    """The workers' parts for tests that drive them step by step."""

    database: Database
    queues: Queues
    ledger: LedgerClient
    relay: OutboxRelay
    settlement: Settlement
    identifiers: IdentifierSource


@asynccontextmanager
async def tools(stack: Stack, **changes: Any) -> AsyncIterator[Tools]:
    """Parts on connections of their own."""
    settings = stack.settings(**changes)
    database = Database(settings.database_url, size=4, statements=4, wait_seconds=5, options=FRESH_PLAN_OPTIONS)
    await database.open()
    redis = open_redis(settings.redis_url, connections_max=4, timeout_seconds=5)
    ledger = LedgerClient(settings)
    relay = OutboxRelay(database, ledger, settings)
    identifiers = IdentifierSource()
    try:
        yield Tools(
            database,
            Queues(redis),
            ledger,
            relay,
            Settlement(database, relay, identifiers, hold_seconds=0),
            identifiers,
        )
    finally:
        await ledger.close()
        await redis.aclose()
        await database.close()


def numbers(count: int, first: int = 0) -> list[str]:
    """Different Chinese numbers, none with an ending that the simulator treats specially."""
    return [f"138{first + number:06d}{7 + number % 2}2" for number in range(count)]
