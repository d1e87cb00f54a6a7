"""What became of a campaign, recipient by recipient, as CSV.

With the file that was sent: a row for each of its rows, in their order, those left out with the reason. Without it: a
row for each message. One part, or one batch, is written at a time, so memory does not grow with the campaign.

The rows go to `<output>.part` first, and `<output>.progress` says how far they are whole, so that a command that was
interrupted goes on there. What was written before is not asked for again: its states are those of that moment.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import BinaryIO

import orjson

from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill.campaign_file import Begun, Journal, Part, SentPart, journal_path, parts
from smsbill.client import Client
from smsbill.failure import CommandError
from smsbill.recipients import RecipientFile
from smsbill.tables import word

COLUMNS = (
    "line", "mobile", "message_id", "state", "code", "segments", "accepted_at", "submitted_at", "sent_at",
    "finished_at", "reason",
)  # fmt: skip
LEFT_OUT = "left_out"
NOT_SENT = "not_sent"
_PAGE = 1_000
_STATE = pb.MessageState.DESCRIPTOR


@dataclass(slots=True)
class Written:
    """How many rows the result has, and how many of them are messages."""

    rows: int = 0
    messages: int = 0


Rows = Sequence[Sequence[object]]


async def write_results(
    client: Client,
    brand_id: int,
    campaign_id: str,
    output: Path,
    *,
    file: Path | None = None,
    progress: Callable[[int], None] = lambda _rows: None,
) -> Written:
    """Write the results of a campaign to `output`; `progress` is called with the rows written.

    Raises `CommandError`, `grpc.aio.AioRpcError`; then the same call again goes on.
    """
    if file is None:
        steps = _messages_of_batches(client, brand_id, await _batches(client, brand_id, campaign_id))
        key = {"brand": brand_id, "campaign": campaign_id, "file": ""}
    else:
        journal = Journal.read(journal_path(file, campaign_id))
        begun = journal.begun
        assert begun is not None
        if begun.brand_id != brand_id:
            raise CommandError(f"campaign {campaign_id} of {file} is one of brand {begun.brand_id}")
        source = RecipientFile(file, column=begun.column, encoding=begun.encoding)
        if source.fingerprint() != begun.file_sha256:
            raise CommandError(
                f"{file} has changed since it was sent; bring back the file as it was, or leave out --file"
            )
        steps = _rows_of_parts(client, begun, journal, source)
        key = {"brand": brand_id, "campaign": campaign_id, "file": begun.file_sha256}
    with _Output(output, key) as out:
        skip = out.steps
        async for step, rows in _numbered(steps, skip):
            out.write(step, rows)
            progress(out.written.rows)
        out.finish()
        return out.written


async def _numbered(
    steps: AsyncIterator[Callable[[], AsyncIterator[Rows]] | None], skip: int
) -> AsyncIterator[tuple[int, Rows]]:
    """The rows of each step that is not written yet."""
    number = 0
    async for step in steps:
        if number >= skip and step is not None:
            collected: list[Sequence[object]] = []
            async for rows in step():
                collected += rows
            yield number, collected
        number += 1


async def _batches(client: Client, brand_id: int, campaign_id: str) -> list[str]:
    request = pb.ListBatchesRequest(brand_id=brand_id, campaign_id=campaign_id, page_size=_PAGE)
    found = [
        batch.batch_id async for reply in client.pages(client.gateway.ListBatches, request) for batch in reply.batches
    ]
    if not found:
        raise CommandError(
            f"brand {brand_id} has no batches of campaign {campaign_id}; `smsbill campaign list` lists its campaigns"
        )
    return sorted(found)


async def _messages_of_batches(
    client: Client, brand_id: int, batch_ids: Sequence[str]
) -> AsyncIterator[Callable[[], AsyncIterator[Rows]]]:
    for batch_id in batch_ids:

        async def rows(batch_id: str = batch_id) -> AsyncIterator[Rows]:
            async for page in _pages(client, brand_id, batch_id):
                yield [["", message.mobile, *_told(message), ""] for message in page]

        yield rows


async def _rows_of_parts(
    client: Client, begun: Begun, journal: Journal, source: RecipientFile
) -> AsyncIterator[Callable[[], AsyncIterator[Rows]]]:
    for part in parts(source, begun.batch_rows):

        async def rows(part: Part = part) -> AsyncIterator[Rows]:
            sent = journal.parts.get(part.number)
            messages: dict[str, tuple[object, ...]] = {}
            if sent is not None and sent.batch_id:
                async for page in _pages(client, begun.brand_id, sent.batch_id):
                    messages |= {message.mobile: _told(message) for message in page}
            yield _merged(part, sent, messages)

        yield rows


def _merged(part: Part, sent: SentPart | None, messages: dict[str, tuple[object, ...]]) -> Rows:
    """The rows of a part in the order of the file."""
    nothing = ("", "", 0, "", "", "", "")
    rows: list[Sequence[object]] = [(bad.line, bad.raw, "", LEFT_OUT, *nothing[1:], bad.reason) for bad in part.bad]
    refused = {} if sent is None else {place: reason for reason, places in sent.bad.items() for place in places}
    for place, row in enumerate(part.recipients):
        told = None if place in refused else messages.get(row.mobile)
        if told is not None:
            rows.append((row.line, row.raw, *told, ""))
        elif sent is None:
            rows.append((row.line, row.raw, "", NOT_SENT, *nothing[1:], "the campaign was not sent to its end"))
        else:
            rows.append((row.line, row.raw, "", LEFT_OUT, *nothing[1:], refused.get(place, "")))
    rows.sort(key=lambda each: int(str(each[0])))
    return rows


async def _pages(client: Client, brand_id: int, batch_id: str) -> AsyncIterator[Sequence[pb.Message]]:
    request = pb.ListMessagesRequest(brand_id=brand_id, batch_id=batch_id, page_size=_PAGE)
    async for reply in client.pages(client.gateway.ListMessages, request):
        yield reply.messages


def _told(message: pb.Message) -> tuple[object, ...]:
    return (
        message.message_id,
        word(_STATE, message.state),
        message.result_code,
        message.segments,
        *(_moment(message, name) for name in ("created_at", "submitted_at", "sent_at", "finished_at")),
    )


def _moment(message: pb.Message, name: str) -> str:
    """A moment as ISO 8601 in UTC; empty when it is not set."""
    if not message.HasField(name):  # type: ignore[arg-type] # one of its moments
        return ""
    return str(getattr(message, name).ToDatetime(tzinfo=UTC).isoformat(timespec="milliseconds"))


class _Output:
    """The file that grows step by step, and what says how far it is whole."""

    def __init__(self, path: Path, key: dict[str, object]) -> None:
        self._path = path
        self._growing = path.with_name(f"{path.name}.part")
        self._progress = path.with_name(f"{path.name}.progress")
        self._key = key
        self._file: BinaryIO | None = None
        self.steps = 0
        self.written = Written()

    def __enter__(self) -> _Output:
        try:
            known = orjson.loads(self._progress.read_bytes()) if self._progress.exists() else None
            if known is not None and known["key"] == self._key and self._growing.exists():
                self.steps = known["steps"]
                self.written = Written(known["rows"], known["messages"])
                self._file = self._growing.open("r+b")
                self._file.truncate(known["bytes"])
                self._file.seek(0, os.SEEK_END)
            else:
                self._file = self._growing.open("wb")
                # Spreadsheets know UTF-8 by its mark.
                self._file.write("\ufeff".encode() + _csv([COLUMNS]))
        except OSError as error:
            raise CommandError(f"cannot write {self._growing}: {error.strerror}; choose another --output") from None
        except (ValueError, KeyError):
            raise CommandError(f"{self._progress} is none of this command's; move it away") from None
        return self

    def write(self, step: int, rows: Rows) -> None:
        """Write the rows of a step; once this returns an interruption does not lose them."""
        assert self._file is not None
        self._file.write(_csv(rows))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.steps = step + 1
        self.written.rows += len(rows)
        self.written.messages += sum(1 for row in rows if row[2])
        fields = {
            "key": self._key,
            "steps": self.steps,
            "rows": self.written.rows,
            "messages": self.written.messages,
            "bytes": self._file.tell(),
        }
        new = self._progress.with_name(f"{self._progress.name}.new")
        new.write_bytes(orjson.dumps(fields))
        new.replace(self._progress)

    def finish(self) -> None:
        """The file is whole."""
        assert self._file is not None
        self._file.close()
        self._growing.replace(self._path)
        self._progress.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _csv(rows: Rows) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()
