"""Load: bounded loops of calls, and what they measured."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import psycopg

from infra.grpc_server import bearer, open_channel
from infra.settings import BaseSettings
from protos.costcenter.v1 import cost_center_pb2 as pb
from protos.costcenter.v1 import types_pb2
from protos.costcenter.v1.cost_center_pb2_grpc import CostCenterStub
from protos.smsgateway.v1 import sms_gateway_pb2 as gateway_pb
from protos.smsgateway.v1.sms_gateway_pb2_grpc import SmsGatewayStub

# States from which a message does not move any more.
FINAL_STATES = (7, 8, 9, 10, 11)
_RECIPIENTS_PER_PART = 5_000


@dataclass(frozen=True, slots=True)
class Rate:
    """Things done a second, and the latency that 99 of 100 calls kept, in milliseconds."""

    per_second: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Target:
    """A server and the token to call it with."""

    address: str
    token: str

    def channel(self) -> grpc.aio.Channel:
        """A channel to it."""
        return open_channel(BaseSettings.load(), self.address)


async def unary_pairs(target: Target, *, seconds: float, callers: int, brands: Sequence[int]) -> Rate:
    """Callers that freeze and pay one segment again and again, each waiting for its reply."""
    metadata = bearer(target.token)
    run = secrets.token_hex(4)
    latencies: list[float] = []
    async with target.channel() as channel:
        stub = CostCenterStub(channel)
        end = time.perf_counter() + seconds

        async def caller(number: int) -> None:
            turn = 0
            while (started := time.perf_counter()) < end:
                brand_id = brands[(number * 7_919 + turn) % len(brands)]
                request_id = f"{run}-{number}-{turn}"
                turn += 1
                freeze = await stub.SmsSendPrePay(
                    pb.SmsSendPrePayRequest(
                        brand_id=brand_id,
                        request_id=request_id,
                        sms_type=types_pb2.SMS_TYPE_VERIFICATION,
                        segments=1,
                    ),
                    metadata=metadata,
                )
                between = time.perf_counter()
                latencies.append(between - started)
                await stub.SmsSendPay(
                    pb.SmsSendPayRequest(
                        brand_id=brand_id, request_id=request_id, order_no=freeze.order_no, segments=1
                    ),
                    metadata=metadata,
                )
                latencies.append(time.perf_counter() - between)

        started = time.perf_counter()
        await asyncio.gather(*(caller(number) for number in range(callers)))
        elapsed = time.perf_counter() - started
    latencies.sort()
    return Rate(len(latencies) / elapsed, latencies[int(len(latencies) * 0.99)] * 1_000)


async def batch_pairs(target: Target, *, batches: int, size: int, callers: int, brands: Sequence[int]) -> float:
    """Freeze-and-pay pairs a second through batch calls."""
    metadata = bearer(target.token)
    run = secrets.token_hex(4)
    async with target.channel() as channel:
        stub = CostCenterStub(channel)

        async def pair(batch: int) -> None:
            freezes = await stub.BatchSmsSendPrePay(
                pb.BatchSmsSendPrePayRequest(
                    items=[
                        pb.SmsSendPrePayRequest(
                            brand_id=brands[number % len(brands)],
                            request_id=f"{run}-{batch}-{number}",
                            sms_type=types_pb2.SMS_TYPE_VERIFICATION,
                            segments=1,
                        )
                        for number in range(size)
                    ]
                ),
                metadata=metadata,
            )
            payments = await stub.BatchSmsSendPay(
                pb.BatchSmsSendPayRequest(
                    items=[
                        pb.SmsSendPayRequest(
                            brand_id=brands[number % len(brands)],
                            request_id=f"{run}-{batch}-{number}",
                            order_no=result.ok.order_no,
                            segments=1,
                        )
                        for number, result in enumerate(freezes.results)
                    ]
                ),
                metadata=metadata,
            )
            assert all(result.HasField("ok") for result in payments.results)

        async def caller(number: int) -> None:
            for batch in range(number, batches, callers):
                await pair(batch)

        started = time.perf_counter()
        await asyncio.gather(*(caller(number) for number in range(callers)))
        return batches * size / (time.perf_counter() - started)


async def single_messages(
    target: Target, database_url: str, *, messages: int, callers: int, brands: Sequence[int], seconds_max: float
) -> tuple[float, float]:
    """(accepted a second, final a second): from the first call to the last reply, and to the last receipt booked."""
    metadata = bearer(target.token)
    run = secrets.token_hex(4)
    async with target.channel() as channel:
        stub = SmsGatewayStub(channel)

        async def caller(number: int) -> None:
            for message in range(number, messages, callers):
                await stub.SendSms(
                    gateway_pb.SendSmsRequest(
                        brand_id=brands[message % len(brands)],
                        request_id=f"{run}-{message}",
                        sms_type=types_pb2.SMS_TYPE_VERIFICATION,
                        # Not a number that the simulator treats specially.
                        mobile=f"+861390{message % 900_000 + 100_000:06d}5",
                        text="【示例】验证码 482913，5 分钟内有效。",
                    ),
                    metadata=metadata,
                )

        started = time.perf_counter()
        await asyncio.gather(*(caller(number) for number in range(callers)))
        accepted = time.perf_counter() - started
        await _all_final(database_url, f"{run}-", messages, seconds_max)
        return messages / accepted, messages / (time.perf_counter() - started)


async def _all_final(database_url: str, prefix: str, messages: int, seconds_max: float) -> None:
    async with (
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection,
        asyncio.timeout(seconds_max),
    ):
        while True:
            row = await (
                await connection.execute(
                    "select count(*) from smsgateway.message where starts_with(request_id, %s) and state = any(%s)",
                    (prefix, list(FINAL_STATES)),
                )
            ).fetchone()
            assert row is not None
            if row[0] >= messages:
                return
            await asyncio.sleep(0.1)
