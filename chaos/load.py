"""Callers as real ones are: each message or batch is sent again, with the same request_id, until there is an answer."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import grpc.aio

from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import types_pb2
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill.client import Client

T = TypeVar("T")

SEGMENTS = 1_000_000
TYPES = (types_pb2.SMS_TYPE_VERIFICATION, types_pb2.SMS_TYPE_NOTIFICATION, types_pb2.SMS_TYPE_MARKETING)
# Numbers of a batch, and the share of all messages that come in batches. In short runs they are smaller.
BATCH_SIZES = (50, 500)
BATCHES_LEAST = 8
BATCH_SHARE = 0.6
# The shortest and the longest text: one segment, and three.
TEXTS = ("【Chaos】code 4711", "【混沌】" + "每一条都要对得上" * 20)

CALL_SECONDS = 5.0
# Longer than any fault lasts: who has no answer by then found a stack that did not recover.
ANSWER_SECONDS = 120.0
PAUSE_SECONDS = 0.2
PAUSE_SECONDS_MAX = 2.0

# Statuses after which a caller cannot know whether its call took effect, or is asked to come again.
AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        # A connection that is cut in the middle of a reply.
        grpc.StatusCode.UNKNOWN,
    }
)


@dataclass(slots=True)
class Sent:
    """What callers were told: numbers accepted, calls that never had an answer, refusals, and how often they called."""

    accepted: set[str] = field(default_factory=set)
    unanswered: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    calls: int = 0


async def sell(client: Client, brands: Sequence[int]) -> None:
    """Brands with more segments than any run pays."""
    for brand_id in brands:
        await client.call(client.admin.PutBrand, admin_pb.PutBrandRequest(brand_id=brand_id, name=f"chaos {brand_id}"))
        await client.call(
            client.admin.AdjustPackage,
            admin_pb.AdjustPackageRequest(
                brand_id=brand_id, request_id="chaos", author="chaos", reason="chaos",
                grant=admin_pb.GrantAdjustment(segments=SEGMENTS),
            ),
        )  # fmt: skip


class Callers:
    """Callers that send as much as they are told. Every number is used once, so each can be told apart.

    Parameters: `client` of the stack; `brands` that send.
    """

    def __init__(self, client: Client, brands: Sequence[int], randomness: random.Random) -> None:
        self.sent = Sent()
        self._client = client
        self._brands = brands
        self._random = randomness
        # Its own: how often a call is repeated must not change what is sent next.
        self._jitter = random.Random()
        self._numbers = 0
        self._run = secrets.token_hex(4)
        self._waiting: set[asyncio.Task[None]] = set()

    async def run(self, messages: int, seconds: float, over: asyncio.Event) -> None:
        """Send so many messages at least, singles and batches mixed, over about so long; then wait for every answer.

        Parameters: `over` is set when everything has been asked once, before the last answers.
        """
        least, most = (min(size, max(1, messages // BATCHES_LEAST)) for size in BATCH_SIZES)
        batches = max(1, round(messages * BATCH_SHARE / ((least + most) / 2)))
        singles = max(1, round(messages * (1 - BATCH_SHARE)))
        rate, every = (singles + batches) / seconds, singles // batches + 1
        turn = asked = 0
        while asked < messages:
            turn += 1
            brand_id = self._random.choice(self._brands)
            sms_type, text = self._random.choice(TYPES), self._random.choice(TEXTS)
            if turn % every == 0:
                numbers = self._take(self._random.randint(least, most))
                work = self._batch(brand_id, f"{self._run}-{turn}", sms_type, text, numbers)
            else:
                numbers = self._take(1)
                work = self._single(brand_id, f"{self._run}-{turn}", sms_type, text, numbers[0])
            asked += len(numbers)
            task = asyncio.create_task(work)
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
            await asyncio.sleep(self._random.expovariate(rate))
        over.set()
        await asyncio.gather(*self._waiting)

    def _take(self, count: int) -> list[str]:
        """Numbers that nobody had, without the endings that the simulator treats apart."""
        found: list[str] = []
        while len(found) < count:
            self._numbers += 1
            number = f"138{self._numbers:08d}"
            if not number.endswith(("0000", "1111")):
                found.append(number)
        return found

    async def _single(
        self, brand_id: int, request_id: str, sms_type: types_pb2.SmsType.ValueType, text: str, mobile: str
    ) -> None:
        request = pb.SendSmsRequest(
            brand_id=brand_id, request_id=request_id, sms_type=sms_type, mobile=mobile, text=text
        )
        client = self._client
        await self._answered(
            request_id,
            [mobile],
            lambda: client.gateway.SendSms(request, metadata=client.metadata, timeout=CALL_SECONDS),
        )

    async def _batch(
        self, brand_id: int, request_id: str, sms_type: types_pb2.SmsType.ValueType, text: str, mobiles: list[str]
    ) -> None:
        header = pb.BatchHeader(brand_id=brand_id, request_id=request_id, sms_type=sms_type, text=text)
        parts = [
            pb.SendBatchSmsRequest(header=header),
            pb.SendBatchSmsRequest(recipients=pb.BatchRecipients(mobiles=mobiles)),
        ]
        client = self._client
        await self._answered(
            request_id,
            mobiles,
            lambda: client.gateway.SendBatchSms(iter(parts), metadata=client.metadata, timeout=CALL_SECONDS * 2),
        )

    async def _answered(self, request_id: str, mobiles: list[str], call: Callable[[], Awaitable[T]]) -> None:
        """Call until there is an answer, and note it."""
        loop = asyncio.get_running_loop()
        end, pause = loop.time() + ANSWER_SECONDS, PAUSE_SECONDS
        while True:
            self.sent.calls += 1
            try:
                await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in AGAIN:
                    self.sent.refused.append(f"{request_id}: {error.code().name} {error.details()}")
                    return
            else:
                self.sent.accepted.update(mobiles)
                return
            if loop.time() > end:
                self.sent.unanswered.append(request_id)
                return
            await asyncio.sleep(pause * self._jitter.uniform(0.5, 1))
            pause = min(pause * 2, PAUSE_SECONDS_MAX)
