"""The demo's content and its doing: brands, packages and texts of `examples/demo.toml`, through the real RPCs."""

from __future__ import annotations

import asyncio
import itertools
import random
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import StartError
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import cost_center_pb2 as ledger_pb
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill.client import Client
from smsbill.commands.options import SmsType, new_request_id
from smsbill.purchase import buy
from smsbill.recipients import Recipient, RecipientFile
from smsbill.sending import FINAL_STATES, PART_RECIPIENTS
from smsgateway.segmentation import count_segments

SINGLES_IN_FLIGHT = 16
TOP_UPS_MAX = 1_000
POLL_SECONDS = 0.5
_PAGE = 1_000
_CODE_DIGITS = 6


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DemoBrand(_Strict):
    """A brand of the demo: its offers, each bought once, and the one that is bought again when too little is left."""

    brand_id: int = Field(ge=1)
    name: str
    refund_undelivered: bool
    buys: list[str]
    tops_up: str


class DemoOffer(_Strict):
    """An offer of the demo."""

    offer_id: str
    name: str
    segments: int = Field(ge=1)
    price: str
    currency: str
    validity_days: int | None = None
    validity_months: int | None = None
    sms_types: list[SmsType] = []


class DemoSending(_Strict):
    """What a brand sends. `share` is its part of all messages, against the other sendings' shares."""

    brand_id: int
    mode: str = Field(pattern="^(single|batch)$")
    type: SmsType
    share: int = Field(ge=1)
    recipients: str
    texts: list[str] = Field(min_length=1)


class Demo(_Strict):
    """The file `demo.toml`."""

    brand: list[DemoBrand]
    offer: list[DemoOffer]
    sending: list[DemoSending]


@dataclass(frozen=True, slots=True)
class Text:
    """One message to send."""

    mobile: str
    text: str


@dataclass(slots=True)
class Order:
    """What is sent in one go: single messages, or one batch (its texts are all the same)."""

    brand_id: int
    sms_type: SmsType
    is_batch: bool
    texts: list[Text]

    @property
    def segments(self) -> int:
        """Segments that it costs."""
        return sum(count_segments(each.text, each.mobile).segments for each in self.texts)


@dataclass(slots=True)
class Run:
    """What one run has sent: ids of single messages and batches by brand, and what of it is final by now."""

    request_prefix: str = field(default_factory=lambda: new_request_id("demo"))
    message_ids: dict[int, set[str]] = field(default_factory=dict)
    batch_ids: dict[int, list[str]] = field(default_factory=dict)
    accepted: Counter[int] = field(default_factory=Counter)
    segments: int = 0


# Messages of a brand by state.
States = dict[int, Counter[int]]


def load(folder: Path | None) -> tuple[Path, Demo]:
    """The examples' folder and its demo. Raises `StartError` when there is none, or it breaks a rule."""
    here = Path(__file__).resolve().parent
    for candidate in (folder,) if folder else (here.parent / "examples", here / "examples"):
        path = candidate / "demo.toml"
        if path.is_file():
            try:
                return candidate, Demo(**tomllib.loads(path.read_text("utf-8")))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise StartError(f"{path} is not TOML: {error}; correct it") from None
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(part) for part in first["loc"])
                raise StartError(f"{path}: {place}: {first['msg']}; correct it") from None
    raise StartError("the demo's examples are missing; set SMSBILL_EXAMPLES_DIR to a folder with a demo.toml")


def plan(folder: Path, demo: Demo, messages: int) -> list[Order]:
    """What to send so that it is about so many messages."""
    shares = sum(sending.share for sending in demo.sending)
    orders = []
    for sending in demo.sending:
        count = max(1, round(messages * sending.share / shares))
        file = RecipientFile(folder / sending.recipients)
        rows = [row for row in file.rows() if isinstance(row, Recipient)]
        is_batch = sending.mode == "batch"
        # A batch holds no number twice; single messages go round.
        chosen = rows[:count] if is_batch else list(itertools.islice(itertools.cycle(rows), count))
        texts = itertools.cycle(sending.texts)
        filled = [Text(row.mobile, _filled(next(texts), row, file.columns)) for row in chosen]
        orders.append(Order(sending.brand_id, sending.type, is_batch, filled))
    return orders


def _filled(text: str, row: Recipient, columns: Sequence[str]) -> str:
    # S311: codes that open nothing.
    code = "".join(random.choices("0123456789", k=_CODE_DIGITS))  # noqa: S311
    cells = dict(zip(columns, row.cells, strict=True))
    name = cells.get("name") or cells.get("姓名") or ""
    return text.replace("{code}", code).replace("{name}", name)


class Showcase:
    """The demo against a running stack."""

    def __init__(self, client: Client, demo: Demo) -> None:
        self._client = client
        self._demo = demo
        self.brands: Mapping[int, str] = {brand.brand_id: brand.name for brand in demo.brand}

    async def set_up(self, orders: Sequence[Order]) -> None:
        """Create brands and offers; buy what each brand starts with once, and more when too little is left."""
        call, admin = self._client.call, self._client.admin
        for offer in self._demo.offer:
            await call(admin.PutPackageOffer, admin_pb.PutPackageOfferRequest(offer=_offer_message(offer)))
        for brand in self._demo.brand:
            request = admin_pb.PutBrandRequest(
                brand_id=brand.brand_id, name=brand.name, refund_undelivered=brand.refund_undelivered
            )
            await call(admin.PutBrand, request)
            await self._buy_first(brand)
            await self._top_up(brand, [order for order in orders if order.brand_id == brand.brand_id])

    async def send(self, orders: Sequence[Order], run: Run) -> None:
        """Send everything: singles beside each other, batches as streams; `run` notes what was accepted."""
        slots = asyncio.Semaphore(SINGLES_IN_FLIGHT)
        numbers = itertools.count(1)
        async with asyncio.TaskGroup() as group:
            for order in orders:
                key = f"{run.request_prefix}-{next(numbers)}"
                if order.is_batch:
                    group.create_task(self._send_batch(order, key, run))
                else:
                    for number, text in enumerate(order.texts):
                        await slots.acquire()
                        task = group.create_task(self._send_single(order, text, f"{key}-{number}", run))
                        task.add_done_callback(lambda _: slots.release())

    async def states(self, run: Run) -> States:
        """How many of the run's messages are in which state, by brand."""
        return {brand_id: await self._states_of(brand_id, run) for brand_id in self.brands}

    async def follow(
        self, run: Run, sending: asyncio.Task[None], seconds: float, progress: Callable[[States], None]
    ) -> bool:
        """Poll until all is sent and every message is final, for so long at most; whether all are."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            done = sending.done()
            if done:
                # What went wrong with it, if anything did.
                sending.result()
            states = await self.states(run)
            progress(states)
            if done and is_final(states, run):
                return True
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(POLL_SECONDS)

    async def _buy_first(self, brand: DemoBrand) -> None:
        request = ledger_pb.ListPackagesRequest(brand_id=brand.brand_id, include_spent=True, page_size=_PAGE)
        owned = len((await self._client.call(self._client.ledger.ListPackages, request)).packages)
        if owned >= len(brand.buys):
            return
        for number, offer_id in enumerate(brand.buys):
            # Ids of their own, so that a start that was interrupted between two of them buys none twice.
            await buy(self._client, brand.brand_id, offer_id, f"demo-first-{brand.brand_id}-{number}-{offer_id}")

    async def _top_up(self, brand: DemoBrand, orders: Sequence[Order]) -> None:
        needed: Counter[int] = Counter()
        for order in orders:
            needed[order.sms_type.number] += order.segments
        for _ in range(TOP_UPS_MAX):
            request = ledger_pb.GetBalanceRequest(brand_id=brand.brand_id)
            balance = await self._client.call(self._client.ledger.GetBalance, request)
            available = {each.sms_type: each.available for each in balance.available_by_type}
            enough = balance.available >= needed.total() and all(
                available.get(sms_type, 0) >= segments  # type: ignore[call-overload] # numbers of the proto's enum
                for sms_type, segments in needed.items()
            )
            if enough:
                return
            await buy(self._client, brand.brand_id, brand.tops_up, new_request_id("demo-top-up"))
        raise StartError(
            f"brand {brand.brand_id} has too little even after {TOP_UPS_MAX} top-ups; send fewer --messages"
        )

    async def _send_single(self, order: Order, text: Text, key: str, run: Run) -> None:
        request = pb.SendSmsRequest(
            brand_id=order.brand_id,
            request_id=key,
            sms_type=order.sms_type.number,  # type: ignore[arg-type] # numbers of the proto's enum
            mobile=text.mobile,
            text=text.text,
        )
        reply = await self._client.call(self._client.gateway.SendSms, request)
        run.message_ids.setdefault(order.brand_id, set()).add(reply.message_id)
        run.segments += reply.segments
        run.accepted[order.brand_id] += 1

    async def _send_batch(self, order: Order, key: str, run: Run) -> None:
        header = pb.BatchHeader(
            brand_id=order.brand_id,
            request_id=key,
            sms_type=order.sms_type.number,  # type: ignore[arg-type] # numbers of the proto's enum
            text=order.texts[0].text,
            recipient_count=len(order.texts),
        )
        mobiles = [text.mobile for text in order.texts]
        call = self._client.gateway.SendBatchSms(
            _parts(header, mobiles), metadata=self._client.metadata, timeout=self._client.call_seconds
        )
        reply: pb.SendBatchSmsResponse = await call
        run.batch_ids.setdefault(order.brand_id, []).append(reply.batch_id)
        run.segments += reply.segments
        run.accepted[order.brand_id] += reply.accepted

    async def _states_of(self, brand_id: int, run: Run) -> Counter[int]:
        counts: Counter[int] = Counter()
        gateway = self._client.gateway
        for batch_id in run.batch_ids.get(brand_id, ()):
            batch = (await self._client.call(gateway.GetBatch, pb.GetBatchRequest(batch_id=batch_id))).batch
            for count in batch.states:
                counts[count.state] += count.messages
        missing = set(run.message_ids.get(brand_id, ()))
        if missing:
            oldest = min(missing)
            request = pb.ListMessagesRequest(brand_id=brand_id, page_size=_PAGE)
            async for page in self._client.pages(gateway.ListMessages, request):
                for message in page.messages:
                    if message.message_id in missing:
                        missing.discard(message.message_id)
                        counts[message.state] += 1
                # Newest first, and ids sort by time: beyond the run's first message there is none of it.
                if not missing or not page.messages or page.messages[-1].message_id < oldest:
                    break
        return counts


def is_final(states: States, run: Run) -> bool:
    """Whether every message of the run is there and final."""
    return all(
        counts.total() == run.accepted[brand_id] and FINAL_STATES.issuperset(counts)
        for brand_id, counts in states.items()
    )


def _parts(header: pb.BatchHeader, mobiles: Sequence[str]) -> Iterator[pb.SendBatchSmsRequest]:
    yield pb.SendBatchSmsRequest(header=header)
    for start in range(0, len(mobiles), PART_RECIPIENTS):
        part = mobiles[start : start + PART_RECIPIENTS]
        yield pb.SendBatchSmsRequest(recipients=pb.BatchRecipients(mobiles=part))


def _offer_message(offer: DemoOffer) -> admin_pb.PackageOffer:
    values: dict[str, Any] = offer.model_dump(exclude_none=True)
    values["sms_types"] = [sms_type.number for sms_type in offer.sms_types]
    return admin_pb.PackageOffer(**values, active=True)
