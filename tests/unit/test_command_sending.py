"""Aim: what the command sends of a file, and how it names what the service left out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill.client import Client
from smsbill.failure import CommandError
from smsbill.recipients import RecipientFile
from smsbill.sending import PART_RECIPIENTS, send_file


class Call:
    """A stream call: what was written, whether it was ended or cancelled."""

    def __init__(self, reply: pb.SendBatchSmsResponse, *, refuse_after: int = 1_000) -> None:
        self.parts: list[pb.SendBatchSmsRequest] = []
        self.ended = self.cancelled = False
        self._reply = reply
        self._refuse_after = refuse_after

    async def write(self, part: pb.SendBatchSmsRequest) -> None:
        if len(self.parts) >= self._refuse_after:
            raise asyncio.InvalidStateError("RPC already finished")
        self.parts.append(part)

    async def done_writing(self) -> None:
        self.ended = True

    def cancel(self) -> None:
        self.cancelled = True

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return self._reply


def client_of(call: Call) -> Client:
    class Gateway:
        def SendBatchSms(self, **_: object) -> Call:
            return call

    class Fake:
        gateway, metadata, call_seconds = Gateway(), (), 1.0

    return cast(Client, Fake())


def write(path: Path, text: str) -> int:
    return path.write_text(text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "people.csv"


async def test_bad_rows_of_both_sides_are_named_by_line(path: Path) -> None:
    """Aim: rows that we leave out and rows that the service leaves out come as one list, in order of their lines."""
    size = write(path, "mobile\n19900090001\nbad\n19900090002\n\n19900090001\n")
    call = Call(
        pb.SendBatchSmsResponse(
            accepted=2,
            bad_recipients=[pb.BadRecipient(index=2, mobile="+86199****0001", reason="DUPLICATE_NUMBER")],
            bad_recipient_count=1,
        )
    )
    seen: list[tuple[int, int]] = []
    header = pb.BatchHeader(brand_id=1)
    sent = await send_file(client_of(call), header, RecipientFile(path), progress=lambda *at: seen.append(at))
    assert [(row.line, row.reason) for row in sent.bad_rows][1] == (6, "DUPLICATE_NUMBER")
    assert [row.line for row in sent.bad_rows] == [3, 6]
    assert sent.bad_count == 2
    assert call.parts[0].header == header
    assert list(call.parts[1].recipients.mobiles) == ["+8619900090001", "+8619900090002", "+8619900090001"]
    assert call.ended
    assert not call.cancelled
    assert seen[-1] == (size, 3)


async def test_a_file_that_breaks_midway_sends_nothing(path: Path) -> None:
    """Aim: after thousands of good rows a malformed one cancels the stream before its end: all or nothing."""
    write(path, "mobile\n" + "19900090001\n" * (PART_RECIPIENTS * 2) + '"\n')
    call = Call(pb.SendBatchSmsResponse())
    with pytest.raises(CommandError, match=f"line {PART_RECIPIENTS * 2 + 2}: is not CSV"):
        await send_file(client_of(call), pb.BatchHeader(), RecipientFile(path))
    assert len(call.parts) == 3
    assert call.cancelled
    assert not call.ended


async def test_without_a_good_row_nothing_is_sent(path: Path) -> None:
    """Aim: a file of bad rows alone ends with the first of them."""
    write(path, "mobile\nbad\n")
    call = Call(pb.SendBatchSmsResponse())
    with pytest.raises(CommandError, match=r"no row of the file .*; line 2: \*\*\*: "):
        await send_file(client_of(call), pb.BatchHeader(), RecipientFile(path))
    assert call.cancelled


async def test_a_service_that_answers_early_is_heard(path: Path) -> None:
    """Aim: when the service ends the stream before we do, its answer counts and not our broken write."""
    write(path, "mobile\n" + "19900090001\n" * (PART_RECIPIENTS * 2))
    call = Call(pb.SendBatchSmsResponse(batch_id="b"), refuse_after=2)
    sent = await send_file(client_of(call), pb.BatchHeader(), RecipientFile(path))
    assert sent.reply.batch_id == "b"
