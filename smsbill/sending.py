"""What `smsbill send` does: one message, or one text to the recipients of a file."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill.client import Client
from smsbill.failure import CommandError
from smsbill.recipients import BadRow, RecipientFile
from smsbill.tables import word

PART_RECIPIENTS = 1_000
# A batch takes longer than a single message: a hundred thousand records are written before its reply.
BATCH_SECONDS_FACTOR = 10
BAD_ROWS_KEPT = 1_000
WAIT_POLL_SECONDS = 0.3

FINAL_STATES = frozenset(
    {
        pb.MESSAGE_STATE_DELIVERED,
        pb.MESSAGE_STATE_UNDELIVERED,
        pb.MESSAGE_STATE_EXPIRED,
        pb.MESSAGE_STATE_FAILED,
        pb.MESSAGE_STATE_CANCELLED,
    }
)
_STATE = pb.MessageState.DESCRIPTOR


@dataclass(slots=True)
class FileSent:
    """What became of a file. `bad_rows` are the first `BAD_ROWS_KEPT`; `bad_count` counts them all."""

    reply: pb.SendBatchSmsResponse
    bad_rows: list[BadRow] = field(default_factory=list)
    bad_count: int = 0


async def send_file(
    client: Client,
    header: pb.BatchHeader,
    file: RecipientFile,
    *,
    progress: Callable[[int, int], None] = lambda _bytes, _rows: None,
) -> FileSent:
    """Stream a file's recipients as one batch: accepted whole or not at all.

    Bad rows are left out and reported. `progress` is called with bytes and rows read. Raises `CommandError`,
    `grpc.aio.AioRpcError`; then nothing was sent.
    """
    sending = _FileSending(progress)
    call = client.gateway.SendBatchSms(metadata=client.metadata, timeout=client.call_seconds * BATCH_SECONDS_FACTOR)
    try:
        await sending.write(call, header, file)
        reply: pb.SendBatchSmsResponse = await call
    except asyncio.InvalidStateError:
        # The service has answered before the stream's end: its refusal is what counts.
        reply = await call
    except BaseException:
        # A broken stream sends nothing.
        call.cancel()
        raise
    return sending.result(reply)


class _FileSending:
    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self._progress = progress
        self._bad: list[BadRow] = []
        self._bad_count = 0
        # Lines of the recipients sent: the service names the bad ones by their place in the stream.
        self._lines = array("l")

    async def write(self, call: Any, header: pb.BatchHeader, file: RecipientFile) -> None:
        """Write the whole file into the call."""
        await call.write(pb.SendBatchSmsRequest(header=header))
        part: list[str] = []
        for row in file.rows():
            if isinstance(row, BadRow):
                self._note(row)
                continue
            part.append(row.mobile)
            self._lines.append(row.line)
            if len(part) == PART_RECIPIENTS:
                await self._write_part(call, part, file)
                part = []
        if part:
            await self._write_part(call, part, file)
        if not self._lines:
            raise CommandError(f"no row of the file has a number that can be sent to{self._first_bad()}")
        self._progress(file.size, len(self._lines))
        await call.done_writing()

    def result(self, reply: pb.SendBatchSmsResponse) -> FileSent:
        """The reply with the rows that the service left out named by their lines."""
        count = self._bad_count + reply.bad_recipient_count
        for bad in reply.bad_recipients:
            self._bad.append(BadRow(self._lines[bad.index], bad.mobile, bad.reason))
        return FileSent(reply, sorted(self._bad, key=lambda row: row.line)[:BAD_ROWS_KEPT], count)

    async def _write_part(self, call: Any, part: list[str], file: RecipientFile) -> None:
        await call.write(pb.SendBatchSmsRequest(recipients=pb.BatchRecipients(mobiles=part)))
        self._progress(file.position, len(self._lines))

    def _note(self, row: BadRow) -> None:
        self._bad_count += 1
        if len(self._bad) < BAD_ROWS_KEPT:
            self._bad.append(row)

    def _first_bad(self) -> str:
        if not self._bad:
            return ""
        first = self._bad[0]
        return f"; line {first.line}: {first.mobile or 'no number'}: {first.reason}"


async def wait_for_message(client: Client, message_id: str, seconds: float) -> pb.Message:
    """The message when it is final, or as it is after so long."""
    request = pb.GetMessageRequest(message_id=message_id)
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        message: pb.Message = (await client.call(client.gateway.GetMessage, request)).message
        if message.state in FINAL_STATES or asyncio.get_running_loop().time() >= deadline:
            return message
        await asyncio.sleep(WAIT_POLL_SECONDS)


async def wait_for_batch(client: Client, batch_id: str, seconds: float) -> dict[str, int]:
    """Messages by state when all are final, or as they are after so long."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        batch = (await client.call(client.gateway.GetBatch, pb.GetBatchRequest(batch_id=batch_id))).batch
        done = all(count.state in FINAL_STATES for count in batch.states)
        if done or asyncio.get_running_loop().time() >= deadline:
            return {word(_STATE, count.state): count.messages for count in batch.states}
        await asyncio.sleep(WAIT_POLL_SECONDS)
