"""A brand's statement as a command shows it: read page by page, checked to the segment, then written.

Lines are written to a temporary file while they are checked, so memory stays flat however long the period is, and
nothing is shown of a statement that does not add up.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol
from zoneinfo import ZoneInfo

from google.protobuf.timestamp_pb2 import Timestamp

from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import cost_center_pb2 as pb
from smsbill.client import Client
from smsbill.failure import CommandError
from smsbill.tables import plain, table, word, write_table

PAGE_SIZE = 1_000

_KINDS = pb.StatementKind.DESCRIPTOR
_TYPES = pb.StatementLine.DESCRIPTOR.fields_by_name["sms_type"].enum_type
# By how much one segment of a record changes the total and what is frozen.
_EFFECTS = {
    pb.STATEMENT_KIND_PURCHASE: (1, 0),
    pb.STATEMENT_KIND_GRANT: (1, 0),
    pb.STATEMENT_KIND_REFUND_PACKAGE: (1, 0),
    pb.STATEMENT_KIND_CLAW_BACK: (-1, 0),
    pb.STATEMENT_KIND_FREEZE: (0, 1),
    pb.STATEMENT_KIND_PAYMENT: (-1, -1),
    pb.STATEMENT_KIND_REFUND: (1, 0),
    pb.STATEMENT_KIND_RELEASE: (0, -1),
    pb.STATEMENT_KIND_TIME_OUT: (0, -1),
    pb.STATEMENT_KIND_EXPIRE: (-1, 0),
    pb.STATEMENT_KIND_EXPIRE_BACK: (-1, 0),
}
# The sums in the order in which they are told: field, effect on the total, effect on what is frozen, kinds of records.
_SUMS = (
    ("purchases", 1, 0, (pb.STATEMENT_KIND_PURCHASE,)),
    ("grants", 1, 0, (pb.STATEMENT_KIND_GRANT,)),
    ("refunds", 1, 0, (pb.STATEMENT_KIND_REFUND,)),
    ("payments", -1, -1, (pb.STATEMENT_KIND_PAYMENT,)),
    ("expiries", -1, 0, (pb.STATEMENT_KIND_EXPIRE, pb.STATEMENT_KIND_EXPIRE_BACK)),
    ("claw_backs", -1, 0, (pb.STATEMENT_KIND_CLAW_BACK,)),
    ("freezes", 0, 1, (pb.STATEMENT_KIND_FREEZE,)),
    ("releases", 0, -1, (pb.STATEMENT_KIND_RELEASE,)),
    ("time_outs", 0, -1, (pb.STATEMENT_KIND_TIME_OUT,)),
)
_CSV_COLUMNS = (
    "row", "record_no", "at", "kind", "number", "request_id", "message_id", "sms_type", "packages", "segments",
    "total_change", "frozen_change", "total", "frozen",
)  # fmt: skip


class StatementError(CommandError):
    """A statement that does not add up."""


class Audit:
    """Checks a statement and its lines. Raises `StatementError` with the first figure that does not fit."""

    def __init__(self, statement: pb.Statement) -> None:
        self._statement = statement
        self._balance = (statement.opening.total, statement.opening.frozen)
        self._segments: Counter[int] = Counter()
        self._moved = 0
        self._records = 0
        self._last: pb.StatementLine | None = None
        for name in ("opening", "closing"):
            balance = getattr(statement, name)
            self._require(f"{name} balance, available", balance.total - balance.frozen, balance.available)
        for place, figure in enumerate(("total", "frozen")):
            sums = sum(getattr(statement, row[0]) * row[1 + place] for row in _SUMS)
            opening, closing = (getattr(balance, figure) for balance in (statement.opening, statement.closing))
            self._require(f"closing balance, {figure}", opening + sums, closing)

    def take(self, line: pb.StatementLine) -> None:
        """Check the next line against those before it."""
        record = f"record {line.record_no}"
        total, frozen = (effect * line.segments for effect in _EFFECTS[line.kind])
        if line.kind == pb.STATEMENT_KIND_REFUND:
            # What went to a package of its own is the record of that package.
            self._moved += total - line.total_change
            total = line.total_change
        if line.kind == pb.STATEMENT_KIND_REFUND_PACKAGE:
            self._moved -= line.segments
        self._require(f"{record}, change of the total", total, line.total_change)
        self._require(f"{record}, change of frozen", frozen, line.frozen_change)
        self._balance = (self._balance[0] + total, self._balance[1] + frozen)
        self._require(f"{record}, total", self._balance[0], line.total)
        self._require(f"{record}, frozen", self._balance[1], line.frozen)
        self._require_order(line)
        self._segments[line.kind] += line.segments
        self._records += 1
        self._last = line

    def finish(self) -> None:
        """Check that the lines were all, and that they come to the sums."""
        statement = self._statement
        self._require("number of records", statement.records, self._records)
        for name, _, _, kinds in _SUMS:
            self._require(name, getattr(statement, name), sum(self._segments[kind] for kind in kinds))
        self._require("refunds that went to a package of their own", self._moved, 0)
        self._require("closing balance, total", self._balance[0], statement.closing.total)
        self._require("closing balance, frozen", self._balance[1], statement.closing.frozen)

    def _require_order(self, line: pb.StatementLine) -> None:
        at = _nanoseconds(line.at)
        start, end = _nanoseconds(getattr(self._statement, "from")), _nanoseconds(self._statement.to)
        if not start <= at < end:
            raise StatementError(f"record {line.record_no} is not of the period; run `smsbill reconcile`")
        if self._last is not None:
            self._require("number of the next record", self._last.record_no + 1, line.record_no)
            if at < _nanoseconds(self._last.at):
                raise StatementError(f"record {line.record_no} goes back in time; run `smsbill reconcile`")

    @staticmethod
    def _require(figure: str, expected: int, found: int) -> None:
        if expected != found:
            raise StatementError(
                f"the statement does not add up: {figure}: expected {expected}, found {found}; run `smsbill reconcile`"
            )


async def period(client: Client, brand_id: int, start: str, end: str) -> tuple[Timestamp, Timestamp | None]:
    """A period's borders from texts such as 2026-10-01 or 2026-10-01T12:00, in the brand's time zone.

    Raises `CommandError` for a text that is none, `grpc.aio.AioRpcError`.
    """
    brand = (await client.call(client.admin.GetBrand, admin_pb.GetBrandRequest(brand_id=brand_id))).brand
    zone = ZoneInfo(brand.time_zone)
    return _border("--from", start, zone), _border("--to", end, zone) if end else None


async def write(client: Client, request: pb.GetStatementRequest, form: str, output: Path | None) -> None:
    """Read a statement, check it and write it as `form` (csv, json, table) to a file or to standard output.

    Raises `StatementError` when it does not add up, `grpc.aio.AioRpcError`; then nothing was written.
    """
    request.summary_only = form == "table"
    request.page_size = PAGE_SIZE
    with _draft(output) as draft:
        pages = client.pages(client.ledger.GetStatement, request)
        first = await anext(pages)
        audit = Audit(first.statement)
        writer = _WRITERS[form](draft, first.statement)
        if form != "table":
            async for line in _lines(first, pages):
                audit.take(line)
                writer.line(line)
            audit.finish()
        writer.finish()


async def _lines(first: Any, following: AsyncIterator[Any]) -> AsyncIterator[pb.StatementLine]:
    for line in first.lines:
        yield line
    async for page in following:
        for line in page.lines:
            yield line


@contextlib.contextmanager
def _draft(output: Path | None) -> Iterator[IO[str]]:
    """A file to write to that becomes the output when all went well: the file of that name, or standard output."""
    if output is None:
        with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as draft:
            yield draft
            draft.seek(0)
            shutil.copyfileobj(draft, sys.stdout)
            sys.stdout.flush()
        return
    try:
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - it is renamed while it is open
            "w", encoding="utf-8", newline="", dir=output.parent, prefix=f".{output.name}.", delete=False
        )
    except OSError as error:
        raise _unwritable(output, error) from None
    try:
        with file:
            yield file
        # What a temporary file may not be read by, others may read of a file that somebody asked for.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(file.name, 0o666 & ~mask)
        os.replace(file.name, output)
    except BaseException as error:
        os.unlink(file.name)
        if isinstance(error, OSError):
            raise _unwritable(output, error) from None
        raise


def _unwritable(output: Path, error: OSError) -> CommandError:
    return CommandError(f"{output} cannot be written: {error.strerror}; choose another --output")


class _Writer(Protocol):
    def __init__(self, draft: IO[str], statement: pb.Statement) -> None: ...
    def line(self, line: pb.StatementLine) -> None: ...
    def finish(self) -> None: ...


class _Json:
    """One document: the sums, then the lines."""

    def __init__(self, draft: IO[str], statement: pb.Statement) -> None:
        self._draft = draft
        self._separator = ""
        draft.write(f'{{"statement": {_json(plain(statement))}, "lines": [')

    def line(self, line: pb.StatementLine) -> None:
        self._draft.write(f"{self._separator}{_json(plain(line))}")
        self._separator = ", "

    def finish(self) -> None:
        self._draft.write("]}\n")


class _Csv:
    """Rows of the summary, then rows of records, in the same columns; moments in the brand's time zone."""

    def __init__(self, draft: IO[str], statement: pb.Statement) -> None:
        self._zone = ZoneInfo(statement.time_zone)
        self._rows = csv.DictWriter(draft, _CSV_COLUMNS, restval="")
        self._rows.writeheader()
        self._border("opening", getattr(statement, "from"), statement.opening)
        for name, total, frozen, _ in _SUMS:
            segments = getattr(statement, name)
            changes = {"total_change": total * segments, "frozen_change": frozen * segments}
            self._rows.writerow({"row": "summary", "kind": name, "segments": segments, **changes})
        self._border("closing", statement.to, statement.closing)

    def _border(self, name: str, at: Timestamp, balance: pb.StatementBalance) -> None:
        figures = {"total": balance.total, "frozen": balance.frozen}
        self._rows.writerow({"row": "summary", "kind": name, "at": _local(at, self._zone), **figures})

    def line(self, line: pb.StatementLine) -> None:
        self._rows.writerow(
            {
                "row": "record",
                "record_no": line.record_no,
                "at": _local(line.at, self._zone),
                "kind": word(_KINDS, line.kind),
                "number": line.number,
                "request_id": line.request_id,
                "message_id": line.message_id,
                "sms_type": word(_TYPES, line.sms_type) if line.sms_type else "",
                "packages": ";".join(f"{part.package_id}:{part.segments}" for part in line.lines),
                "segments": line.segments,
                "total_change": line.total_change,
                "frozen_change": line.frozen_change,
                "total": line.total,
                "frozen": line.frozen,
            }
        )

    def finish(self) -> None:
        pass


class _Table:
    """The summary for people."""

    def __init__(self, draft: IO[str], statement: pb.Statement) -> None:
        zone = ZoneInfo(statement.time_zone)
        start, end = (_local(at, zone, "seconds") for at in (getattr(statement, "from"), statement.to))
        rows: list[tuple[object, ...]] = [("opening balance", "", *_figures(statement.opening))]
        for name, total, frozen, _ in _SUMS:
            segments = getattr(statement, name)
            change = (total * segments, frozen * segments, (total - frozen) * segments)
            rows.append((name.replace("_", " "), segments, *(each or "" for each in change)))
        rows.append(("closing balance", "", *_figures(statement.closing)))
        title = f"Statement of brand {statement.brand_id}, {start} to {end} ({statement.time_zone}), segments"
        if not statement.closed:
            title += "; the period is not over"
        made = table(title, ("what", "#segments", "#total", "#frozen", "#available"), rows)
        made.caption = f"{statement.records:,} records; --format csv or json tells each"
        made.caption_justify = "left"
        write_table(made, draft)

    def line(self, line: pb.StatementLine) -> None:
        raise AssertionError("a table tells the summary only")

    def finish(self) -> None:
        pass


_WRITERS: dict[str, type[_Writer]] = {"csv": _Csv, "json": _Json, "table": _Table}
FORMATS = tuple(_WRITERS)


def _figures(balance: pb.StatementBalance) -> tuple[int, int, int]:
    return balance.total, balance.frozen, balance.available


def _border(option: str, text: str, zone: ZoneInfo) -> Timestamp:
    try:
        at = datetime.fromisoformat(text)
        stamp = Timestamp()
        stamp.FromDatetime((at if at.tzinfo else at.replace(tzinfo=zone)).astimezone(UTC))
    except (ValueError, OverflowError):
        raise CommandError(
            f"{option}: {text!r} is not a moment; give one such as 2026-10-01 or 2026-10-01T12:00"
        ) from None
    return stamp


def _local(at: Timestamp, zone: ZoneInfo, spec: str = "microseconds") -> str:
    moment: datetime = at.ToDatetime(tzinfo=UTC)
    return moment.astimezone(zone).isoformat(timespec=spec)


def _nanoseconds(at: Timestamp) -> int:
    return at.seconds * 1_000_000_000 + at.nanos


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
