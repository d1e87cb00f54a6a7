"""What the SMPP carrier costs beside its codec: submits a second of both, against the same SMSC in the same run.

`python -m bench.smpp`. The SMSC is smpp34's, which others wrote, in a process of its own; it accepts everything and
sends no receipts. *Bare* is the codec alone: PDUs encoded, written and read over one connection, a full window at all
times, nobody told of any result. *Carrier* is `SmppCarrier.send_single` as workers call it, from as many tasks as the
window holds and as many again that wait. Rounds of both take turns, and each pair is compared with itself alone, for
the machine is noisy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from typing import cast

import uvloop

from smsgateway.carriers.base import SingleCall, Verdict
from smsgateway.carriers.smpp.carrier import SmppCarrier, SmppConfig
from smsgateway.carriers.smpp.pdus import (
    Address,
    Bind,
    Command,
    FrameReader,
    ShortMessage,
    decode_name,
    encode_bind,
    encode_short_message,
    frame,
)
from smsgateway.carriers.smpp.texts import parts_of

AIM = 0.7
HOST = "127.0.0.1"
TEXT = "【示例】您的验证码是 123456,五分钟内有效。"
SECONDS_MAX = 30.0
"""Longest that anything but the measuring itself may take."""

# Prints its port, so that none is fixed: it takes the next when one is in use. Ends with its input.
SMSC = """
import asyncio, socket, sys, threading, smpp34
async def main():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = smpp34.Server("127.0.0.1", port, inbound_capacity=4096)
    await server.start()
    print(port, flush=True)
    count = 0
    while True:
        event = await server.next()
        if isinstance(event, smpp34.SubmitSmEvent):
            count += 1
            event.accept(f"{count:x}")
threading.Thread(target=lambda: (sys.stdin.read(), __import__("os")._exit(0)), daemon=True).start()
asyncio.run(main())
"""


class Bare(asyncio.Protocol):
    """The codec with nothing around it but a connection and a window."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._reader = FrameReader()
        self._sequence = 1
        self._transport: asyncio.Transport | None = None
        self._until = 0.0
        self._under_way = 0
        self.accepted = 0
        self.bound = asyncio.Event()
        self.done = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(frame(Command.BIND_TRANSCEIVER, 1, encode_bind(Bind("bare", "secret"))))

    def start(self, seconds: float) -> None:
        """Submit for so long, then set `done` when the last response is here."""
        self._until = time.perf_counter() + seconds
        self._fill()

    def data_received(self, data: bytes) -> None:
        for pdu in self._reader.feed(data):
            if pdu.command == Command.SUBMIT_SM_RESP:
                assert pdu.status == 0
                assert decode_name(pdu.body)
                self.accepted += 1
                self._under_way -= 1
            elif pdu.command == Command.BIND_TRANSCEIVER_RESP:
                self.bound.set()
        if self._until:
            self._fill()

    def _fill(self) -> None:
        assert self._transport is not None
        if time.perf_counter() >= self._until:
            if not self._under_way:
                self.done.set()
            return
        out = []
        while self._under_way < self._window:
            self._sequence += 1
            self._under_way += 1
            (part,) = parts_of(TEXT, reference=self._sequence)
            message = ShortMessage(
                source=Address(5, 0, "ACME"),
                destination=Address(1, 1, f"86138{self._sequence % 100_000_000:08}"),
                short_message=part.short_message,
                data_coding=part.data_coding,
                registered_delivery=1,
            )
            out.append(frame(Command.SUBMIT_SM, self._sequence, encode_short_message(message)))
        self._transport.write(b"".join(out))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def bare(port: int, window: int, seconds: float) -> float:
    """Submits a second of the codec alone."""
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(lambda: Bare(window), HOST, port)
    async with asyncio.timeout(seconds + SECONDS_MAX):
        await protocol.bound.wait()
        began = time.perf_counter()
        protocol.start(seconds)
        await protocol.done.wait()
    rate = protocol.accepted / (time.perf_counter() - began)
    protocol.close()
    return rate


async def carrier(port: int, window: int, seconds: float) -> float:
    """Submits a second of the carrier."""
    config = SmppConfig("bench", HOST, port, "carrier", "secret", source=Address(5, 0, "ACME"), window=window)
    adapter = SmppCarrier(config)
    accepted = 0

    async def call(until: float, task: int) -> None:
        nonlocal accepted
        number = task * 1_000_000
        while time.perf_counter() < until:
            number += 1
            outcome = await adapter.send_single(SingleCall(f"call-{number}", f"+86138{number:08}", TEXT))
            assert outcome.verdict is Verdict.ACCEPTED, outcome
            accepted += 1

    try:
        async with asyncio.timeout(seconds + SECONDS_MAX):
            await adapter.send_single(SingleCall("first", "+8613800000000", TEXT))
            began = time.perf_counter()
            await asyncio.gather(*(call(began + seconds, task) for task in range(2 * window)))
        return accepted / (time.perf_counter() - began)
    finally:
        await adapter.aclose()


def _start_smsc() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SMSC], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def measure(rounds: int, seconds: float, window: int) -> dict[str, object]:
    """Rates of each round, and what share of the codec's the carrier reached."""
    smsc = await asyncio.to_thread(_start_smsc)
    try:
        assert smsc.stdout is not None
        port = int(await asyncio.to_thread(smsc.stdout.readline))
        bares: list[float] = []
        carriers: list[float] = []
        for number in range(rounds):
            # Whoever is second may find the machine in another mood, so they take turns in that, too.
            for which in (bare, carrier) if number % 2 == 0 else (carrier, bare):
                (bares if which is bare else carriers).append(await which(port, window, seconds))
        shares = [ours / alone for ours, alone in zip(carriers, bares, strict=True)]
        return {
            "window": window,
            "seconds": seconds,
            "bare_per_second": bares,
            "carrier_per_second": carriers,
            "share": shares,
            "median_share": statistics.median(shares),
            "aim": AIM,
        }
    finally:
        smsc.kill()
        smsc.wait()
        for pipe in (smsc.stdin, smsc.stdout):
            if pipe is not None:
                pipe.close()


def main() -> None:
    """Print the figures as JSON; 1 when the aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--window", type=int, default=10, help="submits without a response at a time")
    options = parser.parse_args()
    figures = uvloop.run(measure(options.rounds, options.seconds, options.window))
    print(json.dumps(figures, indent=2))
    sys.exit(0 if statistics.median(cast("list[float]", figures["share"])) >= AIM else 1)


if __name__ == "__main__":
    main()
