"""Aim: a disk without space, ENOSPC itself, is an outage that ends when there is space again, and costs nothing.

Method: the whole stack as a user runs it, its data folder on a small disk of its own that is filled to the last byte.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import grpc.aio
import psycopg
import pytest
from gateway_harness import eventually
from stack_harness import Stack

from protos.costcenter.v1 import types_pb2
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill import stack_file
from smsbill.client import Access, Client, ClientSettings

pytestmark = [pytest.mark.timeout(400), pytest.mark.long]

DISK_MEGABYTES = 400
MESSAGES = 20
SECONDS = 240.0
# What a caller repeats with the same request_id.
UNANSWERED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
# Rows that cannot be compressed away, until there is no room for them.
FILL = "insert into filler select repeat(md5(random()::text), 30) from generate_series(1, 1000)"


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small disk. Only root may have one, and not everywhere."""
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="smsbill-disk-")))
    options = f"size={DISK_MEGABYTES}m,mode=0755"
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        )
        code = done.returncode
    except FileNotFoundError:
        code = -1
    if code:
        folder.rmdir()
        pytest.skip("NOT TESTED: no disk can be mounted here, which takes root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


@pytest.fixture
def stack(disk: Path) -> Iterator[Stack]:
    running = Stack(disk / "data", SMSBILL_WORKERS="1", SMSBILL_RESTART_SECONDS_MAX="1")
    try:
        running.start()
        running.ok("brand", "put", "--brand", "1", "--name", "First")
        running.ok("buy", "--brand", "1", "--segments", "1000")
        yield running
    finally:
        running.end()


class Caller:
    """Sends as real callers do: again with the same request_id until it is answered."""

    def __init__(self, client: Client) -> None:
        self.refused: set[grpc.StatusCode] = set()
        self.troubled = asyncio.Event()
        self._client = client

    async def send(self, number: int) -> None:
        request = pb.SendSmsRequest(
            brand_id=1,
            request_id=f"r-{number}",
            sms_type=types_pb2.SMS_TYPE_NOTIFICATION,
            mobile=f"1990009{number:04d}",
            text="【测试】磁盘",
        )
        while True:
            try:
                await self._client.gateway.SendSms(request, metadata=self._client.metadata, timeout=5)
            except grpc.aio.AioRpcError as error:
                self.refused.add(error.code())
                self.troubled.set()
                await asyncio.sleep(0.2)
            else:
                return

    async def all_delivered(self) -> bool:
        request = pb.ListMessagesRequest(brand_id=1, page_size=1_000)
        try:
            messages = (await self._client.call(self._client.gateway.ListMessages, request)).messages
        except grpc.aio.AioRpcError as error:
            self.refused.add(error.code())
            return False
        return [message.state for message in messages] == [pb.MESSAGE_STATE_DELIVERED] * MESSAGES


def fill(disk: Path, database_url: str) -> Path:
    """Leave no byte, not even in the files that PostgreSQL has already; the file that takes them."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1_000_000))
    with suppress(psycopg.Error), psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("create table filler (value text)")
        while True:
            connection.execute(FILL)
    assert shutil.disk_usage(disk).free < 1_000_000
    return path


async def test_a_disk_without_space_is_an_outage_that_ends(disk: Path, stack: Stack) -> None:
    """Callers are told to call again, nothing else; with space again each of their messages is sent and billed once."""
    file = stack_file.running(stack.data_dir)
    assert file is not None
    client = Client(ClientSettings(), Access(file.costcenter_target, file.gateway_target, file.token), call_seconds=20)
    try:
        caller = Caller(client)
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*(caller.send(number) for number in range(1, MESSAGES // 2)))
            filler = await asyncio.to_thread(fill, disk, file.database_url)
            sending = [asyncio.create_task(caller.send(number)) for number in range(MESSAGES // 2, MESSAGES + 1)]
            try:
                await caller.troubled.wait()
            finally:
                filler.unlink()
            await asyncio.gather(*sending)
            await eventually(caller.all_delivered, SECONDS)
    finally:
        await client.close()
    assert caller.refused <= UNANSWERED
    balance = stack.ok("balance", "--brand", "1")
    assert (balance["available"], balance["frozen"]) == (1_000 - MESSAGES, 0)
    assert stack.ok("reconcile") == {"differences": []}
