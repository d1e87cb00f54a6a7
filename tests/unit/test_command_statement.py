"""Aim: a statement that does not add up is never shown, whatever is wrong with it, and a good one is shown whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from protos.costcenter.v1 import cost_center_pb2 as pb
from smsbill import statement as statements
from smsbill.client import Client

START, END = Timestamp(seconds=1_700_000_000), Timestamp(seconds=1_700_100_000)
# kind, segments, change of the total, change of frozen.
_LINES = (
    (pb.STATEMENT_KIND_PURCHASE, 100, 100, 0),
    (pb.STATEMENT_KIND_GRANT, 20, 20, 0),
    (pb.STATEMENT_KIND_FREEZE, 40, 0, 40),
    (pb.STATEMENT_KIND_PAYMENT, 30, -30, -30),
    (pb.STATEMENT_KIND_REFUND, 6, 2, 0),
    (pb.STATEMENT_KIND_REFUND_PACKAGE, 4, 4, 0),
    (pb.STATEMENT_KIND_REFUND, 3, 3, 0),
    (pb.STATEMENT_KIND_EXPIRE_BACK, 3, -3, 0),
    (pb.STATEMENT_KIND_RELEASE, 5, 0, -5),
    (pb.STATEMENT_KIND_TIME_OUT, 5, 0, -5),
    (pb.STATEMENT_KIND_EXPIRE, 10, -10, 0),
    (pb.STATEMENT_KIND_CLAW_BACK, 7, -7, 0),
)
_SUMS = {
    "purchases": 100, "grants": 20, "refunds": 9, "payments": 30, "expiries": 13, "claw_backs": 7, "freezes": 40,
    "releases": 5, "time_outs": 5,
}  # fmt: skip


def good() -> tuple[pb.Statement, list[pb.StatementLine]]:
    """A statement with a line of every kind that adds up."""
    total, frozen, lines = 50, 8, []
    for place, (kind, segments, total_change, frozen_change) in enumerate(_LINES):
        total, frozen = total + total_change, frozen + frozen_change
        lines.append(
            pb.StatementLine(
                record_no=place + 5,
                at=Timestamp(seconds=START.seconds + place * 10),
                kind=kind,
                segments=segments,
                total_change=total_change,
                frozen_change=frozen_change,
                total=total,
                frozen=frozen,
            )
        )
    statement = pb.Statement(
        brand_id=7,
        time_zone="Asia/Shanghai",
        to=END,
        closed=True,
        opening=pb.StatementBalance(total=50, frozen=8, available=42),
        closing=pb.StatementBalance(total=total, frozen=frozen, available=total - frozen),
        records=len(lines),
        **_SUMS,
    )
    getattr(statement, "from").CopyFrom(START)
    return statement, lines


def client_of(statement: pb.Statement, lines: list[pb.StatementLine], page: int = 5) -> Client:
    """A client that gets this statement in pages."""

    class Fake:
        class ledger:  # noqa: N801
            GetStatement = None

        async def pages(self, _method: Any, request: pb.GetStatementRequest) -> AsyncIterator[pb.GetStatementResponse]:
            yield pb.GetStatementResponse(statement=statement, lines=[] if request.summary_only else lines[:page])
            for place in range(page, len(lines), page):
                yield pb.GetStatementResponse(lines=lines[place : place + page])

    return cast(Client, Fake())


def written(client: Client, form: str, output: Path | None = None) -> None:
    """Have the command write a statement."""
    asyncio.run(statements.write(client, pb.GetStatementRequest(brand_id=7, month="2023-11"), form, output))


def test_a_statement_that_adds_up_is_written_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Aim: every line of every page, on standard output or in a file that takes the place of what was there."""
    statement, lines = good()
    written(client_of(statement, lines), "json")
    told = json.loads(capsys.readouterr().out)
    assert [line["kind"] for line in told["lines"][:4]] == ["purchase", "grant", "freeze", "payment"]
    assert len(told["lines"]) == len(lines)
    assert told["statement"]["refunds"] == 9
    path = tmp_path / "statement.csv"
    path.write_text("old")
    written(client_of(statement, lines), "csv", path)
    rows = path.read_text("utf-8").splitlines()
    assert len(rows) == 1 + 2 + len(_SUMS) + len(lines)
    assert rows[1].startswith("summary,,2023-11-15T06:13:20.000000+08:00,opening,")
    assert capsys.readouterr().out == ""
    written(client_of(statement, lines), "table")
    out = capsys.readouterr().out
    assert "the period is not over" not in out
    assert "12 records" in out


def _sum(name: str) -> Callable[[Any, Any], None]:
    def change(statement: pb.Statement, _lines: list[pb.StatementLine]) -> None:
        setattr(statement, name, getattr(statement, name) + 1)

    return change


def _line(place: int, name: str, by: int = 1) -> Callable[[Any, Any], None]:
    def change(_statement: pb.Statement, lines: list[pb.StatementLine]) -> None:
        setattr(lines[place], name, getattr(lines[place], name) + by)

    return change


def _border(border: str, name: str) -> Callable[[Any, Any], None]:
    def change(statement: pb.Statement, _lines: list[pb.StatementLine]) -> None:
        balance = getattr(statement, border)
        setattr(balance, name, getattr(balance, name) + 1)

    return change


def _lost(place: int) -> Callable[[Any, Any], None]:
    def change(_statement: pb.Statement, lines: list[pb.StatementLine]) -> None:
        del lines[place]

    return change


def _at(place: int, seconds: int) -> Callable[[Any, Any], None]:
    def change(_statement: pb.Statement, lines: list[pb.StatementLine]) -> None:
        lines[place].at.seconds = seconds

    return change


def _kind(place: int, kind: int) -> Callable[[Any, Any], None]:
    def change(_statement: pb.Statement, lines: list[pb.StatementLine]) -> None:
        lines[place].kind = kind  # type: ignore[assignment]

    return change


def _twice(_statement: pb.Statement, lines: list[pb.StatementLine]) -> None:
    lines.insert(3, lines[2])


_WRONG: dict[str, tuple[Callable[[Any, Any], None], str]] = {
    **{f"sum of {name}": (_sum(name), "closing balance") for name in _SUMS},
    **{
        f"{border} {name}": (_border(border, name), "balance")
        for border in ("opening", "closing")
        for name in ("total", "frozen", "available")
    },
    "number of records": (_sum("records"), "number of records"),
    "segments of a line": (_line(3, "segments"), "record 8, change of the total"),
    "total after a line": (_line(3, "total"), "record 8, total"),
    "frozen after a line": (_line(3, "frozen"), "record 8, frozen"),
    "change of a line": (_line(3, "frozen_change"), "record 8, change of frozen"),
    "what a refund moved": (_line(4, "total_change"), "record 9, total"),
    "a line lost": (_lost(3), "record 9, total"),
    "the first line lost": (_lost(0), "record 6, total"),
    "the last line lost": (_lost(11), "number of records"),
    "a line twice": (_twice, "record 7, frozen"),
    "a number skipped": (_line(11, "record_no"), "number of the next record: expected 16, found 17"),
    "a line before the period": (_at(0, START.seconds - 1), "record 5 is not of the period"),
    "a line at the period's end": (_at(11, END.seconds), "record 16 is not of the period"),
    "a line back in time": (_at(5, START.seconds), "record 10 goes back in time"),
    "a purchase told as a grant": (_kind(0, pb.STATEMENT_KIND_GRANT), "purchases: expected 100, found 0"),
    "a refund package told as a grant": (_kind(5, pb.STATEMENT_KIND_GRANT), "grants: expected 20, found 24"),
}


@pytest.mark.parametrize("name", _WRONG)
@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_statement_that_does_not_add_up_is_not_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, form: str
) -> None:
    """Aim: one line that names the figure; no output, and a file that was there stays."""
    change, said = _WRONG[name]
    statement, lines = good()
    change(statement, lines)
    path = tmp_path / "statement"
    path.write_text("old")
    for output in (None, path):
        with pytest.raises(statements.StatementError) as caught:
            written(client_of(statement, lines), form, output)
        assert said in str(caught.value)
        assert "smsbill reconcile" in str(caught.value)
    assert capsys.readouterr().out == ""
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("name", [*_SUMS])
def test_a_summary_alone_is_checked_too(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Aim: the table has no lines to check, but its sums must lead from the one balance to the other."""
    statement, lines = good()
    _sum(name)(statement, lines)
    with pytest.raises(statements.StatementError, match="closing balance"):
        written(client_of(statement, lines), "table")
    assert capsys.readouterr().out == ""


def test_a_period_that_is_not_over_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Aim: nobody takes figures that can still grow for final ones."""
    statement, lines = good()
    statement.closed = False
    written(client_of(statement, lines), "table")
    assert "the period is not over" in capsys.readouterr().out
