"""Plays sequences of calls on a running cost centre and on the oracle, and compares what both say after each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import grpc
import psycopg
import structlog
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from ledger_clock import StillClock
from ledger_oracle import BATCHES, Oracle, Refused, Reply, Request
from ledger_sequences import VARIANTS, Call, Numbers, Sequence, openings
from ledger_service import CostCenter, request_of, running_cost_center

from costcenter import reconciliation
from infra.errors import Refusal
from infra.grpc_status import from_error, from_item

_NUMBERS = {"order_no", "payment_no", "release_no", "package_order_no", "adjustment_no", "source_no"}
_MONEY = {"price"}
_PAGE_SIZE = 2
# Everything that calls write; offers stay, they are the same for all sequences.
_TABLES = (
    "adjustment",
    "balance",
    "balance_history",
    "brand",
    "entry",
    "freeze",
    "idempotency_key",
    "package_order",
    "package_queue",
    "payment",
    "payment_key",
    "receipt",
    "refund",
    "release_request",
)


class DisagreementError(AssertionError):
    """The service and the oracle do not say the same."""


@dataclass
class Stage:
    """Running cost centres, one for each variant of the settings, on a database whose clock stands still."""

    services: dict[str, CostCenter]
    connection: psycopg.AsyncConnection[tuple[Any, ...]]
    clock: StillClock
    steps: int = 0

    async def clear(self) -> None:
        """Forget all brands; the lanes' versions tell the services that somebody else was here."""
        statements = [f"delete from costcenter.{table}" for table in _TABLES]
        statements.append("update costcenter.lane set version = version + 1")
        await self.connection.execute(";".join(statements).encode())


@asynccontextmanager
async def running_stage(database_url: str) -> AsyncIterator[Stage]:
    """Cost centres on a database with a still clock (`ledger_clock.install`)."""
    async with AsyncExitStack() as stack:
        stack.enter_context(_warnings_only())
        # Plain statements: an autocommitted one of several parts is one transaction.
        connection = await psycopg.AsyncConnection.connect(database_url, autocommit=True, connect_timeout=10)
        await stack.enter_async_context(connection)
        services = {}
        for variant in VARIANTS.values():
            changes = {"token_cache_seconds": 300, **variant.changes}
            services[variant.name] = await stack.enter_async_context(running_cost_center(database_url, **changes))
        for opening in openings():
            await next(iter(services.values())).call("PutPackageOffer", **opening)
        yield Stage(services, connection, StillClock(connection))


@contextmanager
def _warnings_only() -> Iterator[None]:
    """What the service tells of each adjustment would bury what a failure says."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        yield
    finally:
        structlog.configure(**before)


async def play(stage: Stage, sequence: Sequence) -> None:
    """Play a sequence. Raises `DisagreementError` with what was called and what differs."""
    await stage.clear()
    await stage.clock.set(sequence.start)
    player = _Player(stage, sequence)
    call: Call | None = None
    try:
        for call in sequence.calls:
            await player.step(call)
        call = None
        await player.compare_all()
    except AssertionError as error:
        place = "at the end" if call is None else f"at call {call.number}"
        raise DisagreementError(f"{place}: {error}\n{sequence}") from error


@dataclass
class _Player:
    stage: Stage
    sequence: Sequence
    numbers: Numbers = field(default_factory=Numbers)
    # What the service calls the oracle's numbers.
    real: dict[str, str] = field(default_factory=dict)
    # What was read last, by (method, key).
    seen: dict[tuple[str, str], Reply] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.service = self.stage.services[self.sequence.variant]
        self.oracle = Oracle(self.sequence.start, VARIANTS[self.sequence.variant].terms, self.numbers)
        for opening in openings():
            self.oracle.call("PutPackageOffer", **opening)

    async def step(self, call: Call) -> None:
        """Make one call and compare the reply and what has changed by the oracle's account."""
        self.stage.steps += 1
        if call.at > self.oracle.now:
            await self.stage.clock.set(call.at)
            self.oracle.pass_to(call.at)
        self.numbers.begin(call)
        expected = self.oracle.outcome(call.method, **call.request)
        await self._compare(call.method, call.request, expected)
        self.oracle.check()
        await self._compare_changed(call)

    async def compare_all(self) -> None:
        """Compare all that can be read, the records that no call shows, and the records with the figures."""
        self.seen.clear()
        await self._compare_changed(None)
        for brand_id in self.oracle.brands:
            for method, request in (
                ("ListPackages", {"brand_id": brand_id}),
                ("ListPackages", {"brand_id": brand_id, "include_spent": True}),
                ("ListPayments", {"brand_id": brand_id}),
            ):
                await self._compare_pages(method, request, self.oracle.call(method, **request))
        await self._compare_hidden()
        brands = list(self.oracle.brands)
        if not brands:
            return
        differences = [difference async for difference in reconciliation.differences(self.stage.connection, brands)]
        assert not differences, differences

    async def _compare_changed(self, call: Call | None) -> None:
        """Read what the oracle says has changed since it was read last, and the balance of the brand called."""
        reads: list[tuple[str, Request, Reply]] = []
        for brand_id, brand in self.oracle.brands.items():
            wanted: list[tuple[str, Request]] = [
                ("GetBalance", {"brand_id": brand_id}),
                ("ListPackages", {"brand_id": brand_id, "include_spent": True}),
                ("GetBrand", {"brand_id": brand_id}),
            ]
            wanted += [("GetFreeze", {"order_no": number}) for number in brand.freezes]
            wanted += [("GetPayment", {"payment_no": number}) for number in brand.payments]
            for method, request in wanted:
                reply, key = self.oracle.call(method, **request), (method, str(request))
                if self.seen.get(key) != reply or (
                    method in {"GetBalance", "ListPackages"} and self._names(call, brand_id)
                ):
                    self.seen[key] = reply
                    reads.append((method, request, reply))
        await asyncio.gather(*(self._compare(*read) for read in reads))

    async def _compare_pages(self, method: str, request: Request, expected: Reply) -> None:
        """Read a listing page by page: together they are what the oracle lists at once."""
        (name,) = expected
        listed: list[Any] = []
        token = ""
        while True:
            page = await self._ask(method, {**request, "page_size": _PAGE_SIZE, "page_token": token})
            assert not isinstance(page, Refusal), f"{method}: {page}"
            listed += page[name]
            token = page["next_page_token"]
            assert len(page[name]) == _PAGE_SIZE or not token, f"{method}: a page of {len(page[name])} before the last"
            if not token:
                break
        try:
            self._match(method, request, expected, {name: listed})
        except AssertionError as error:
            raise AssertionError(f"{method}({request}) in pages: {error}\n  {_text(expected)}\n  {listed}") from None

    @staticmethod
    def _names(call: Call | None, brand_id: int) -> bool:
        return call is not None and call.request.get("brand_id") in {None, brand_id}

    async def _compare(self, method: str, request: Request, expected: Reply | Refused) -> None:
        actual = await self._ask(method, request)
        try:
            self._match(method, request, expected, actual)
        except AssertionError as error:
            where = f"{method}({request})"
            raise AssertionError(
                f"{where}\n  expected {_text(expected)}\n  got      {_text(actual)}\n  {error}"
            ) from None

    async def _ask(self, method: str, request: Request) -> Any:
        try:
            return _plain(await self.service.send(method, request_of(method, **self._to_real(request))))
        except grpc.aio.AioRpcError as error:
            return from_error(error)

    def _to_real(self, value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: self._to_real(part, key) for key, part in value.items()}
        if isinstance(value, list):
            return [self._to_real(part) for part in value]
        return self.real.get(value, value) if name in _NUMBERS else value

    def _match(self, method: str, request: Request, expected: Reply | Refused, actual: Any) -> None:
        if isinstance(expected, Refused) or isinstance(actual, Refusal):
            _match_refusal(expected, actual)
            return
        if method in BATCHES:
            assert len(expected["results"]) == len(actual["results"]), "number of results"
            for place, (result, outcome) in enumerate(zip(expected["results"], actual["results"], strict=True)):
                self._match_result(result, outcome, f"results[{place}]")
            return
        if method == "GetBalance" and not actual["available_by_type"] and expected["as_of"] < self.oracle.now:
            # The history knows no types, and says so by leaving them out.
            expected = {**expected, "available_by_type": []}
        if method == "ListPayments":
            # Numbers of one millisecond have no order among them.
            expected, actual = _in_order(expected), _in_order(actual)
        self._match_value(expected, actual, "")

    def _match_result(self, expected: Reply, actual: Reply, path: str) -> None:
        refusal = actual["refusal"]
        if refusal is not None:
            found = from_item(refusal["code"], refusal["reason"], refusal["message"], refusal["metadata"])
            _match_refusal(expected.get("refusal"), found, path)
        else:
            assert "refusal" not in expected, f"{path} not refused"
            self._match_value(expected["ok"], actual["ok"], path)

    def _match_value(self, expected: Any, actual: Any, path: str) -> None:
        name = path.rpartition(".")[2]
        if isinstance(expected, dict):
            assert isinstance(actual, dict), path
            for key, part in expected.items():
                self._match_value(part, actual[key], f"{path}.{key}" if path else key)
            for key in set(actual) - set(expected):
                assert not actual[key], f"{path}.{key} is {actual[key]!r}"
        elif isinstance(expected, list):
            assert len(expected) == len(actual), f"{path}: {len(expected)} expected, {len(actual)} there"
            for index, (part, other) in enumerate(zip(expected, actual, strict=True)):
                self._match_value(part, other, f"{path}[{index}]")
        elif name in _NUMBERS:
            if expected not in self.real:
                assert actual, f"{path} is empty"
                assert actual not in self.real.values(), f"{path}: {actual} is another's number"
                self.real[expected] = actual
            assert self.real[expected] == actual, f"{path}: {expected} is {self.real[expected]}, got {actual}"
        elif name in _MONEY:
            assert Decimal(actual) == expected, f"{path}: expected {expected}, got {actual}"
        else:
            assert expected == actual, f"{path}: expected {expected!r}, got {actual!r}"

    async def _compare_hidden(self) -> None:
        """Receipts and releases are read by no call."""
        receipts = {
            (brand_id, self.real[payment_no], message_id): (receipt.state, receipt.segments, receipt.house_loss)
            for brand_id, brand in self.oracle.brands.items()
            for (payment_no, message_id), receipt in brand.receipts.items()
        }
        rows = await self._rows("brand_id, payment_no, message_id, state, segments, house_loss from costcenter.receipt")
        assert {row[:3]: row[3:] for row in rows} == receipts, "receipts"
        # Which of two requests of one moment is applied first nobody can tell; what they release together counts.
        released: dict[tuple[int, str], int] = {}
        waiting = set()
        for brand_id, brand in self.oracle.brands.items():
            for release in brand.releases.values():
                freeze = (brand_id, self.real[release.order_no])
                released[freeze] = released.get(freeze, 0) + (release.released or 0)
                if release.released is None:
                    waiting.add((brand_id, self.real[release.release_no]))
        rows = await self._rows("brand_id, order_no, sum(released) from costcenter.release_request group by 1, 2")
        assert {row[:2]: row[2] for row in rows} == released, "releases"
        rows = await self._rows("brand_id, release_no from costcenter.release_request where applied_at is null")
        assert set(rows) == waiting, "releases that wait"

    async def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return await (await self.stage.connection.execute(f"select {query}".encode())).fetchall()


def _match_refusal(expected: Any, actual: Any, path: str = "") -> None:
    assert isinstance(expected, Refused), f"{path} refused: {actual!r}"
    assert isinstance(actual, Refusal), f"{path} not refused"
    assert expected.reason == actual.reason, f"{path} refused for {actual.reason}: {actual.message}"
    assert expected.status == actual.code.name, f"{path} refused as {actual.code.name}"
    for name, figure in expected.figures.items():
        found = actual.metadata.get(name, "")
        same = Decimal(found or "NaN") == Decimal(figure) if name in _MONEY else found == figure
        assert same, f"{path} {name}: expected {figure}, got {found}"


def _in_order(reply: Reply) -> Reply:
    payments = sorted(reply["payments"], key=lambda payment: str(payment["request_id"]))
    payments.sort(key=lambda payment: int(payment["created_at"].timestamp() * 1000), reverse=True)
    return {**reply, "payments": payments}


def _plain(message: Message) -> Reply:
    """A message as plain values; messages that are not set are None."""
    return {field.name: _plain_field(message, field) for field in message.DESCRIPTOR.fields}


def _plain_field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        if field.has_presence and not message.HasField(field.name):
            return None
        return list(value) if field.is_repeated else value
    assert field.message_type is not None
    if field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.is_repeated:
        return [_plain_value(part) for part in value]
    return _plain_value(value) if message.HasField(field.name) else None


def _plain_value(value: Message) -> Any:
    if value.DESCRIPTOR.full_name == "google.protobuf.Timestamp":
        moment: datetime = value.ToDatetime(tzinfo=UTC)  # type: ignore[attr-defined]
        return moment
    return _plain(value)


def _text(outcome: Any) -> str:
    if isinstance(outcome, Refused):
        return f"{outcome.status} {outcome.reason} {outcome.figures}"
    if isinstance(outcome, Refusal):
        return f"{outcome!r} {outcome.metadata}"
    return str(outcome)
