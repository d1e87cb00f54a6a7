"""What `smsbill send` does: one message, or a campaign to the recipients of a file."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import grpc.aio

from infra.grpc_status import from_error
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill.campaign_file import (
    BATCH_ROWS,
    NO_TERMS,
    Begun,
    Journal,
    Part,
    SentPart,
    Terms,
    campaign_name,
    journal_path,
    parts,
    request_id_of,
)
from smsbill.client import Client
from smsbill.failure import CommandError, described
from smsbill.recipients import BadRow, Recipient, RecipientFile
from smsbill.tables import word
from smsgateway.mobile import mask_mobile
from smsgateway.variables import names_in

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


# What may be repeated under the same request_id: nobody has answered, or there was no room.
_REPEATED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
    }
)
# For as long a part is repeated. Who waits longer calls the command again.
REPEAT_SECONDS = 120.0
_REPEAT_WAIT_SECONDS = 0.5
_REPEAT_WAIT_SECONDS_MAX = 5.0


@dataclass(frozen=True, slots=True)
class FileOrder:
    """What to send to the recipients of a file. Without a `campaign_id` it is named after file and text;
    `batch_rows` 0: as the campaign was begun with, else `BATCH_ROWS`.
    """

    brand_id: int
    sms_type: int
    text: str
    column: str = ""
    encoding: str = "auto"
    campaign_id: str = ""
    batch_rows: int = 0
    terms: Terms = NO_TERMS


@dataclass(slots=True)
class FileSent:
    """What became of a file. `bad_rows` are the first `BAD_ROWS_KEPT` of this run; `bad_count` counts them all."""

    campaign_id: str
    journal: Path
    parts: list[SentPart] = field(default_factory=list)
    bad_rows: list[BadRow] = field(default_factory=list)
    repeated: int = 0

    @property
    def accepted(self) -> int:
        """Messages accepted."""
        return sum(part.accepted for part in self.parts)

    @property
    def segments(self) -> int:
        """Segments that they cost."""
        return sum(part.segments for part in self.parts)

    @property
    def bad_count(self) -> int:
        """Rows left out, by us or by the service."""
        return sum(part.bad_rows for part in self.parts)

    @property
    def batch_ids(self) -> list[str]:
        """The batches."""
        return [part.batch_id for part in self.parts if part.batch_id]


async def send_file(
    client: Client,
    order: FileOrder,
    path: Path,
    *,
    progress: Callable[[int, int], None] = lambda _bytes, _rows: None,
) -> FileSent:
    """Send a file as a campaign of one batch for each part; what a journal says is accepted is not sent again.

    Bad rows are left out and reported. `progress` is called with bytes and rows done. Raises `CommandError`; then what
    was accepted stays so, and the same call again goes on after it.
    """
    file = RecipientFile(path, column=order.column, encoding=order.encoding)
    # All of the file is looked at before anything is sent: an error in its last line should not find half of it gone.
    await asyncio.to_thread(file.check)
    begun = _begun(order, file, path, await asyncio.to_thread(file.fingerprint))
    with Journal(journal_path(path, begun.campaign_id)) as journal:
        if journal.begun is not None and not order.batch_rows:
            begun = replace(begun, batch_rows=journal.begun.batch_rows)
        journal.begin(begun)
        return await _CampaignSending(client, begun, file, journal, progress).send()


def _begun(order: FileOrder, file: RecipientFile, path: Path, fingerprint: str) -> Begun:
    columns = {name.casefold() for name in file.columns}
    variables = tuple(names_in(order.text))
    missing = [name for name in variables if name.casefold() not in columns]
    if missing:
        shown = ", ".join(f"{{${name}}}" for name in missing)
        raise CommandError(f"the text has {shown}, and {path} has no such column, only: {', '.join(file.columns)}")
    begun = Begun(
        order.campaign_id,
        order.brand_id,
        order.sms_type,
        order.text,
        variables,
        order.column,
        order.encoding,
        order.batch_rows or BATCH_ROWS,
        fingerprint,
        order.terms,
    )
    if begun.campaign_id:
        return begun
    # The size of the parts is no reason to send the same once more.
    named = {name: value for name, value in begun.line().items() if name not in ("campaign_id", "batch_rows")}
    return replace(begun, campaign_id=campaign_name(path, named))


class _CampaignSending:
    def __init__(
        self,
        client: Client,
        begun: Begun,
        file: RecipientFile,
        journal: Journal,
        progress: Callable[[int, int], None],
    ) -> None:
        self._client = client
        self._begun = begun
        self._file = file
        self._journal = journal
        self._progress = progress
        folded = [name.casefold() for name in file.columns]
        self._places = [folded.index(name.casefold()) for name in begun.variables]
        self._sent = FileSent(begun.campaign_id, journal.path)
        self._first_bad: BadRow | None = None

    async def send(self) -> FileSent:
        """Send the parts that are not accepted yet, in their order."""
        rows = 0
        following = parts(self._file, self._begun.batch_rows)
        part = await asyncio.to_thread(next, following, None)
        while part is not None:
            # The next one is read while the service works on this one.
            reading = asyncio.create_task(asyncio.to_thread(next, following, None))
            try:
                await self._send_part(part)
            except BaseException:
                # A file cannot be closed while another thread reads it.
                await asyncio.wait({reading})
                raise
            rows += part.rows
            self._progress(part.position, rows)
            part = await reading
        if not self._sent.batch_ids:
            raise CommandError(f"no row of the file has a number that can be sent to{self._shown_first_bad()}")
        return self._sent

    async def _send_part(self, part: Part) -> None:
        known = self._journal.parts.get(part.number)
        self._note_bad(part.bad)
        if known is not None:
            self._sent.parts.append(known)
            self._sent.repeated += 1
            return
        sent = SentPart(part.number, part.rows, "", 0, 0, len(part.bad))
        if part.recipients:
            await self._send_recipients(part, sent)
        self._journal.note(sent)
        self._sent.parts.append(sent)

    async def _send_recipients(self, part: Part, sent: SentPart) -> None:
        try:
            reply = await self._insist(part)
        except grpc.aio.AioRpcError as error:
            refusal = from_error(error)
            if refusal.reason != "NO_VALID_RECIPIENT":
                raise self._stopped(error) from None
            sent.bad = {refusal.reason: list(range(len(part.recipients)))}
            sent.bad_rows += len(part.recipients)
        else:
            sent.batch_id, sent.accepted, sent.segments = reply.batch_id, reply.accepted, reply.segments
            sent.bad = {bad.reason: list(bad.indexes) for bad in reply.bad_by_reason}
            sent.bad_rows += reply.bad_recipient_count
        self._note_bad(
            [
                BadRow(part.recipients[place].line, mask_mobile(part.recipients[place].mobile), reason)
                for reason, places in sent.bad.items()
                for place in places[:BAD_ROWS_KEPT]
            ]
        )

    async def _insist(self, part: Part) -> pb.SendBatchSmsResponse:
        """Have a part accepted; asked again under the same request_id while nobody answers."""
        begun = self._begun
        header = pb.BatchHeader(
            brand_id=begun.brand_id,
            request_id=request_id_of(begun.campaign_id, part.number),
            sms_type=begun.sms_type,  # type: ignore[arg-type] # numbers of the proto's enum
            text=begun.text,
            recipient_count=len(part.recipients),
            variables=begun.variables,
            campaign_id=begun.campaign_id,
            tell_all_bad=True,
            **begun.terms.fields(),
        )
        requests = [pb.SendBatchSmsRequest(header=header)]
        for start in range(0, len(part.recipients), PART_RECIPIENTS):
            recipients = self._recipients(part.recipients[start : start + PART_RECIPIENTS])
            requests.append(pb.SendBatchSmsRequest(recipients=recipients))
        clock = asyncio.get_running_loop().time
        deadline, wait = clock() + REPEAT_SECONDS, _REPEAT_WAIT_SECONDS
        while True:
            try:
                return await self._stream(requests)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _REPEATED or clock() + wait > deadline:
                    raise
            await asyncio.sleep(wait)
            wait = min(2 * wait, _REPEAT_WAIT_SECONDS_MAX)

    def _recipients(self, rows: Sequence[Recipient]) -> pb.BatchRecipients:
        places = self._places
        if not places:
            return pb.BatchRecipients(mobiles=[row.mobile for row in rows])
        return pb.BatchRecipients(
            personalised=[
                pb.PersonalisedRecipient(mobile=row.mobile, values=[row.cells[place] for place in places])
                for row in rows
            ]
        )

    async def _stream(self, requests: Sequence[pb.SendBatchSmsRequest]) -> pb.SendBatchSmsResponse:
        client = self._client
        call = client.gateway.SendBatchSms(metadata=client.metadata, timeout=client.call_seconds * BATCH_SECONDS_FACTOR)
        try:
            for request in requests:
                await call.write(request)
            await call.done_writing()
            reply: pb.SendBatchSmsResponse = await call
        except asyncio.InvalidStateError:
            # The service has answered before the stream's end: its refusal is what counts.
            reply = await call
        except BaseException:
            # A broken stream sends nothing.
            call.cancel()
            raise
        return reply

    def _stopped(self, error: grpc.aio.AioRpcError) -> CommandError:
        """Why it goes no further, how far it came, and how it goes on."""
        sent, campaign = self._sent, self._begun.campaign_id
        line = described(error) or str(error)
        if not sent.batch_ids:
            return CommandError(line)
        return CommandError(
            f"stopped after {sent.accepted:,} messages of campaign {campaign} were accepted ({sent.segments:,} "
            f"segments): {line}; then the same command goes on where it stopped"
        )

    def _note_bad(self, rows: Sequence[BadRow]) -> None:
        kept = self._sent.bad_rows
        if rows and self._first_bad is None:
            self._first_bad = rows[0]
        if len(kept) < BAD_ROWS_KEPT:
            kept += rows[: BAD_ROWS_KEPT - len(kept)]
            kept.sort(key=lambda row: row.line)

    def _shown_first_bad(self) -> str:
        first = self._first_bad
        return "" if first is None else f"; line {first.line}: {first.mobile or 'no number'}: {first.reason}"


async def wait_for_message(client: Client, message_id: str, seconds: float) -> pb.Message:
    """The message when it is final, or as it is after so long."""
    request = pb.GetMessageRequest(message_id=message_id)
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        message: pb.Message = (await client.call(client.gateway.GetMessage, request)).message
        if message.state in FINAL_STATES or asyncio.get_running_loop().time() >= deadline:
            return message
        await asyncio.sleep(WAIT_POLL_SECONDS)


async def wait_for_batches(client: Client, batch_ids: Sequence[str], seconds: float) -> dict[str, int]:
    """Messages of all batches by state when all are final, or as they are after so long."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    counts: Counter[int] = Counter()
    for batch_id in batch_ids:
        while True:
            batch = (await client.call(client.gateway.GetBatch, pb.GetBatchRequest(batch_id=batch_id))).batch
            if all(count.state in FINAL_STATES for count in batch.states) or clock() >= deadline:
                break
            await asyncio.sleep(WAIT_POLL_SECONDS)
        counts.update({int(count.state): count.messages for count in batch.states})
    return {word(_STATE, state): messages for state, messages in sorted(counts.items())}
