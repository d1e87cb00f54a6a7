"""Aim: what the command sends of a file, and how it names what the service left out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill.client import Client
from smsbill.failure import CommandError
from smsbill.sending import PART_RECIPIENTS, FileOrder, send_file


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


ORDER = FileOrder(1, 3, "你好", campaign_id="c")


async def test_bad_rows_of_both_sides_are_named_by_line(path: Path) -> None:
    """Aim: rows that we leave out and rows that the service leaves out come as one list, in order of their lines."""
    size = write(path, "mobile\n19900090001\nbad\n19900090002\n\n19900090001\n19900090003\n")
    call = Call(
        pb.SendBatchSmsResponse(
            batch_id="b",
            accepted=2,
            bad_by_reason=[pb.BadRecipients(reason="OPTED_OUT", indexes=[1])],
            bad_recipient_count=1,
        )
    )
    seen: list[tuple[int, int]] = []
    sent = await send_file(client_of(call), ORDER, path, progress=lambda *at: seen.append(at))
    assert [(row.line, row.reason) for row in sent.bad_rows][1:] == [(4, "OPTED_OUT"), (6, "DUPLICATE_NUMBER")]
    assert [row.line for row in sent.bad_rows] == [3, 4, 6]
    assert (sent.bad_count, sent.accepted) == (3, 2)
    header = call.parts[0].header
    assert (header.request_id, header.campaign_id, header.recipient_count) == ("c/000000", "c", 3)
    assert list(call.parts[1].recipients.mobiles) == ["+8619900090001", "+8619900090002", "+8619900090003"]
    assert call.ended
    assert not call.cancelled
    assert seen == [(size, 5)]


async def test_a_file_that_breaks_midway_sends_nothing(path: Path) -> None:
    """Aim: a malformed row after thousands of good ones is found before anything is sent."""
    write(path, "mobile\n" + "19900090001\n" * (PART_RECIPIENTS * 2) + '"\n')
    call = Call(pb.SendBatchSmsResponse())
    with pytest.raises(CommandError, match=f"line {PART_RECIPIENTS * 2 + 2}: is not CSV"):
        await send_file(client_of(call), ORDER, path)
    assert call.parts == []


async def test_a_service_that_answers_early_is_heard(path: Path) -> None:
    """Aim: when the service ends the stream before we do, its answer counts and not our broken write."""
    write(path, "mobile\n" + "".join(f"1990{number:07d}\n" for number in range(PART_RECIPIENTS * 2)))
    call = Call(pb.SendBatchSmsResponse(batch_id="b"), refuse_after=2)
    sent = await send_file(client_of(call), ORDER, path)
    assert sent.batch_ids == ["b"]
