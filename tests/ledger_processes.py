"""Cost centres as real processes on one database, to be stopped and killed, and a caller's view of them."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from ledger_service import ADMIN, METHODS, SECONDS, request_of
from stack_harness import environment

from infra.grpc_server import bearer

START_SECONDS = 60.0


@dataclass
class CostCenterProcess:
    """`smsbill costcenter` and a channel to it."""

    process: asyncio.subprocess.Process
    channel: grpc.aio.Channel

    def call(self, method: str, *, timeout: float = SECONDS, **fields: Any) -> Any:
        """Call a method with the fields of its request; the awaitable call."""
        return self.send(method, request_of(method, **fields), timeout=timeout)

    def send(self, method: str, request: Message, *, token: str | None = ADMIN, timeout: float = SECONDS) -> Any:
        """Call a method with a request; the awaitable call."""
        service, descriptor = METHODS[method]
        multicallable: Any = self.channel.unary_unary(
            f"/costcenter.v1.{service}/{method}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=request_type(descriptor.output_type.name).FromString,
        )
        return multicallable(request, metadata=() if token is None else bearer(token), timeout=timeout)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)


def request_type(name: str) -> Any:
    """A message type of the cost centre by its name."""
    for _, descriptor in METHODS.values():
        for message in (descriptor.input_type, descriptor.output_type):
            if message.name == name:
                return message._concrete_class
    raise LookupError(name)


@asynccontextmanager
async def running_process(database_url: str, folder: Path, **settings: Any) -> AsyncIterator[CostCenterProcess]:
    """A cost centre in a process of its own on a free port; killed at the end if it lives still."""
    values = {
        "database_url": database_url,
        "costcenter_address": "127.0.0.1:0",
        "bootstrap_token": ADMIN,
        "drain_seconds": 5,
        "log_level": "ERROR",
        **settings,
    }
    variables = {f"SMSBILL_{name.upper()}": str(value) for name, value in values.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "smsbill", "costcenter"),
        env=environment(variables),
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        assert line, "it did not start; standard error tells why"
        target = f"127.0.0.1:{json.loads(line)['grpc_port']}"
        # What died comes back on no other port, so waiting for it is in vain.
        async with grpc.aio.insecure_channel(target) as channel:
            yield CostCenterProcess(process, channel)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
