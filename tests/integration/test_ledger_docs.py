"""Aim: the examples of docs/ledger.md are true. Method: every table of calls is read from the page and called on a real
cost centre whose clock stands where the table says; answers, records and balances must be those of the table.

How a cell is read: a moment is one of 2026 in UTC, a time alone is of the day of the line before; a call names what
matters, the rest is filled in; `x = …` keeps the number that the reply gives; records are those that are new.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ledger_clock
import pytest
import pytest_asyncio
from google.protobuf.descriptor import FieldDescriptor
from ledger_player import Stage, running_stage
from ledger_service import METHODS, request_of
from ledger_wire import outcome_of

from infra.embedded import EmbeddedServers
from infra.errors import Refusal
from protos.costcenter.v1 import cost_center_pb2 as pb
from scripts import databases

PAGE = (Path(__file__).parents[2] / "docs/ledger.md").read_text()
HEAD = "| When | Call | Answer | Records | Total | Frozen |"
START = datetime(2026, 1, 1, tzinfo=UTC)
# What a call's own number is called, the first that its reply has.
NUMBERS = ("package_order_no", "order_no", "payment_no", "release_no", "adjustment_no", "package_id")
UNITS = {"min": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_DEFAULTS: dict[str, Any] = {
    "brand_id": 1,
    "sms_type": 1,
    "author": "ann",
    "reason": "a reason",
    "payment_reference": "bank-1",
    "amount": "45.00",
    "currency": "CNY",
}


@dataclass
class Row:
    """One line of an example."""

    when: str
    call: str
    answer: str
    records: str
    total: str
    frozen: str


def examples() -> Iterator[Any]:
    """The examples, each under the heading that it stands below."""
    heading, lines = "", iter(PAGE.splitlines())
    for line in lines:
        if line.startswith("#"):
            heading = line.strip("# ")
        elif line == HEAD:
            table = list(itertools.takewhile(lambda each: each.startswith("|"), lines))[1:]
            rows = [Row(*(cell.strip() for cell in each.strip("|").split("|"))) for each in table]
            yield pytest.param(rows, id=re.sub(r"\W+", "-", heading).strip("-"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(servers: EmbeddedServers, database_template: str) -> AsyncIterator[Stage]:
    with databases.fresh(servers.database_url, database_template) as url:
        ledger_clock.install(url, START)
        async with running_stage(url) as running:
            yield running


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("rows", [*examples()])
async def test_example(stage: Stage, rows: list[Row]) -> None:
    """Each line's call is answered so, makes these records and leaves this balance."""
    await stage.clear()
    example = Example(stage)
    await example.begin()
    for row in rows:
        await example.step(row)


# What the worked example tells in words, line by line.
_WORKED = (
    'AdjustPackage(grant=dict(segments=100, expires_at="1 Feb"))',
    'AdjustPackage(grant=dict(segments=200, expires_at="1 Apr"))',
    'f = SmsSendPrePay(segments=150, time_to_live="24 h")',
    "p1 = SmsSendPay(order_no=f, segments=60)",
    "p2 = SmsSendPay(order_no=f, segments=70)",
    "SmsReleaseFreezeNum(order_no=f, segments=15)",
    "SmsSendStatusCallBack(payment_no=p2, failed=["
    'dict(message_id="m1", segments=2), dict(message_id="m2", segments=1)])',
    "",
    'SmsSendStatusCallBack(payment_no=p1, failed=[dict(message_id="m9", segments=4)])',
    "",
    'SmsSendStatusCallBack(payment_no=p1, failed=[dict(message_id="m8", segments=3)])',
)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_worked_example(stage: Stage) -> None:
    """Each line's packages and balance; then the figures that its statement of January is said to have."""
    await stage.clear()
    example = Example(stage)
    await example.begin()
    await example.call(_WORKED[0])
    chapter = PAGE.partition("\n## A worked example\n")[2].partition("\n## ")[0]
    lines = [line for line in chapter.splitlines() if line.startswith("|")][2:]
    for line, call in zip(lines, _WORKED[1:], strict=True):
        when, _, _, *figures = (cell.strip() for cell in line.strip("|").split("|"))
        await example.go(when)
        if call:
            assert not isinstance(await example.call(call), Refusal), call
            await example.call("ApplyReleases()")
        assert await example.packages(2) + await example.balance() == figures, line
    statement = (await example.outcome("GetStatement", {"month": "2026-01"}))["statement"]
    told = re.findall(
        r"(\w+) (\d+)[,;]", PAGE.partition("Example: the statement of the worked example's brand")[2][:300]
    )
    assert len(told) == 6
    assert {name: str(statement[name]) for name, _ in told} == dict(told)
    assert (statement["closing"]["total"], statement["closing"]["frozen"]) == (173, 5)


def test_every_operation_has_an_example() -> None:
    """Each call that changes something is made in some example."""
    calls = " ".join(row.call for example in examples() for row in example.values[0])
    reads = {name for name in METHODS if name.startswith(("Get", "List", "Check"))}
    tokens = {"CreateToken", "RevokeToken"}
    assert {name for name in METHODS if f"{name}(" not in calls} <= reads | tokens


@dataclass
class Example:
    """An example under way."""

    stage: Stage
    now: datetime = START
    records: int = 0
    numbers: dict[str, Any] = field(default_factory=dict)
    ids: Any = field(default_factory=lambda: itertools.count(1))

    async def begin(self) -> None:
        """A brand in UTC."""
        await self.stage.clock.set(START)
        await self.outcome("PutBrand", {"name": "Brand", "time_zone": "UTC"})

    async def step(self, row: Row) -> None:
        """Go to the line's moment, make its call, compare. Raises AssertionError."""
        await self.go(row.when)
        if row.call:
            assert answer_of(await self.call(row.call.strip("`")), row.answer) == row.answer.strip("`"), row
        # What happened at this moment is told by a statement of a later one.
        await self.stage.clock.set(self.now + timedelta(microseconds=1))
        assert await self._new_records() == row.records, row
        assert await self.balance() == [row.total, row.frozen], row

    async def go(self, when: str) -> None:
        """Set the clock to a line's moment."""
        self.now = moment(when, self.now)
        await self.stage.clock.set(self.now)

    async def balance(self) -> list[str]:
        """Total and frozen."""
        balance = await self.outcome("GetBalance", {})
        return [str(balance["total"]), str(balance["frozen"])]

    async def packages(self, count: int) -> list[str]:
        """Remaining and held of the first packages."""
        found = (await self.outcome("ListPackages", {"include_spent": True}))["packages"]
        return [f"{package['remaining']}/{package['held']}" for package in found[:count]]

    async def call(self, text: str) -> Any:
        """Make a call as it is written; its outcome."""
        name, _, call = text.rpartition(" = ")
        tree = ast.parse(call, mode="eval").body
        assert isinstance(tree, ast.Call)
        assert isinstance(tree.func, ast.Name)
        fields = {each.arg: self._value(each.value) for each in tree.keywords if each.arg}
        outcome = await self.outcome(tree.func.id, fields)
        if name:
            self.numbers[name] = next(outcome[number] for number in NUMBERS if number in outcome)
        return outcome

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self.numbers[node.id]
        if isinstance(node, ast.List):
            return [self._value(each) for each in node.elts]
        if isinstance(node, ast.Call):
            return {each.arg: self._value(each.value) for each in node.keywords}
        return ast.literal_eval(node)

    async def outcome(self, method: str, fields: dict[str, Any]) -> Any:
        """The reply of a call, or its refusal."""
        request = request_of(method)
        self._fill(request, fields)
        return await outcome_of(next(iter(self.stage.services.values())).send(method, request))

    def _fill(self, request: Any, fields: dict[str, Any]) -> None:
        known = {each.name: each for each in request.DESCRIPTOR.fields}
        assert set(fields) <= set(known), f"{set(fields)} of {request.DESCRIPTOR.name}"
        given = {name: value for name, value in _DEFAULTS.items() if name in known} | fields
        if "request_id" in known:
            given.setdefault("request_id", f"request-{next(self.ids)}")
        for name, value in given.items():
            self._set(request, known[name], value)

    def _set(self, request: Any, each: FieldDescriptor, value: Any) -> None:
        kind = each.message_type.name if each.message_type else ""
        if each.is_repeated:
            for part in value:
                if kind:
                    self._fill(getattr(request, each.name).add(), part)
                else:
                    getattr(request, each.name).append(part)
        elif kind == "Timestamp":
            getattr(request, each.name).FromDatetime(moment(value, self.now))
        elif kind == "Duration":
            getattr(request, each.name).FromTimedelta(duration(value))
        elif kind:
            self._fill(getattr(request, each.name), value)
        elif each.enum_type and isinstance(value, str):
            (number,) = (one.number for one in each.enum_type.values if one.name.endswith(f"_{value}"))
            setattr(request, each.name, number)
        else:
            setattr(request, each.name, value)

    async def _new_records(self) -> str:
        reply = await self.outcome("GetStatement", {"from": "1 Jan", "page_size": 1_000})
        lines = reply["lines"][self.records :]
        self.records += len(lines)
        return "; ".join(map(record, lines))


def record(line: Any) -> str:
    """A record as the tables write it."""
    kind = pb.StatementKind.Name(line["kind"]).removeprefix("STATEMENT_KIND_")
    parts = ", ".join(f"({part['package_id']}, {part['segments']})" for part in line["lines"])
    return f"{kind} {parts}"


def answer_of(outcome: Any, wanted: str) -> str:
    """An outcome in the words of a cell: a refusal's reason with its figures, of a reply the fields that are named."""
    names = re.findall(r"(\w+)=", wanted)
    if isinstance(outcome, Refusal):
        return f"{outcome.reason} {', '.join(f'{name}={outcome.metadata[name]}' for name in names)}".strip()
    if "results" in outcome:
        parts = wanted.strip("`").split(", ")
        assert len(parts) == len(outcome["results"]), outcome
        return ", ".join(result["refusal"]["reason"] if result["refusal"] else "OK" for result in outcome["results"])
    return ", ".join(f"{name}={said(outcome, name)}" for name in names) or "OK"


def said(outcome: Any, name: str) -> str:
    """A field of a reply, or of the one message in it."""
    while name not in outcome:
        (outcome,) = (value for value in outcome.values() if isinstance(value, dict))
    value = outcome[name]
    return f"{value.day} {value:%b %H:%M}" if isinstance(value, datetime) else str(value)


def moment(text: str, before: datetime) -> datetime:
    """A moment such as 31 Jan 20:00, 31 Jan or 20:00; nothing: the one before."""
    if not text:
        return before
    day, _, time = text.rpartition(" ") if ":" in text else (text, "", "0:00")
    date = datetime.strptime(f"{day} {START.year}", "%d %b %Y").replace(tzinfo=UTC) if day else before
    hours, minutes = map(int, time.split(":"))
    return date.replace(hour=hours, minute=minutes)


def duration(text: str) -> timedelta:
    """A duration such as 24 h."""
    count, unit = text.split()
    return int(count) * UNITS[unit]
