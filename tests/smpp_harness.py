"""An SMSC whose every answer a test decides, and which can do what no SMSC should."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from smsgateway.carriers.smpp.pdus import (
    Address,
    Bind,
    Command,
    FrameReader,
    Pdu,
    ShortMessage,
    decode_bind,
    decode_short_message,
    encode_name,
    encode_short_message,
    frame,
)

SECONDS = 5.0
"""Longest wait for anything in these tests."""

OnPdu = Callable[["Peer", Pdu], None]


class Peer:
    """One connection as the SMSC has it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._sequence = 0
        self.received: asyncio.Queue[Pdu] = asyncio.Queue()
        self.ended = asyncio.Event()

    def write(self, data: bytes) -> None:
        """Send bytes, whatever they are."""
        if not self._writer.is_closing():
            self._writer.write(data)

    def answer(self, pdu: Pdu, name: str = "", status: int = 0) -> None:
        """Send the response to a request."""
        self.write(frame(pdu.command | 0x8000_0000, pdu.sequence, encode_name(name) if name else b"", status))

    def request(self, command: int, body: bytes = b"", sequence: int | None = None) -> int:
        """Send a request; its sequence number."""
        self._sequence += 1
        number = self._sequence if sequence is None else sequence
        self.write(frame(command, number, body))
        return number

    def cut(self) -> None:
        """End the connection at once."""
        self._writer.transport.abort()

    async def next(self, command: int) -> Pdu:
        """The next PDU of a kind; others before it are passed over."""
        async with asyncio.timeout(SECONDS):
            while (pdu := await self.received.get()).command != command:
                pass
        return pdu


class ScriptedSmsc:
    """Listens on a free port. `on_submit` decides what a submit_sm meets; the rest is as it should be."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.binds: list[Bind] = []
        self.submits: list[ShortMessage] = []
        self.sequences: list[int] = []
        self.bind_statuses: list[int] = []
        self.on_submit: OnPdu = self.accept
        self.on_enquire: OnPdu = lambda peer, pdu: peer.answer(pdu)
        self.peers: asyncio.Queue[Peer] = asyncio.Queue()
        self.accepted = 0
        self.port = 0
        self.host = "127.0.0.1"
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def accept(self, peer: Peer, pdu: Pdu) -> None:
        """Answer a submit_sm with an id of its own."""
        self.accepted += 1
        peer.answer(pdu, f"id{self.accepted}")

    async def start(self) -> None:
        """Listen, on the port that it had before if it did."""
        self._server = await asyncio.start_server(self._serve, self.host, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._writers):
                writer.transport.abort()
            async with asyncio.timeout(SECONDS):
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await self._server.wait_closed()
        self._server = None

    async def peer(self) -> Peer:
        """The next connection that was bound."""
        async with asyncio.timeout(SECONDS):
            return await self.peers.get()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        peer, frames = Peer(writer), FrameReader()
        try:
            while data := await reader.read(65_536):
                for pdu in frames.feed(data):
                    peer.received.put_nowait(pdu)
                    self._handle(peer, pdu)
        except ConnectionError:
            pass
        finally:
            peer.ended.set()
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.close()

    def _handle(self, peer: Peer, pdu: Pdu) -> None:
        if pdu.command == Command.BIND_TRANSCEIVER:
            self.binds.append(decode_bind(pdu.body))
            status = self.bind_statuses.pop(0) if self.bind_statuses else 0
            peer.answer(pdu, "smsc", status)
            if status == 0:
                self.peers.put_nowait(peer)
        elif pdu.command == Command.SUBMIT_SM:
            self.submits.append(decode_short_message(pdu.body))
            self.sequences.append(pdu.sequence)
            self.on_submit(peer, pdu)
        elif pdu.command == Command.ENQUIRE_LINK:
            self.on_enquire(peer, pdu)
        elif pdu.command == Command.UNBIND:
            peer.answer(pdu)


@asynccontextmanager
async def scripted_smsc(tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedSmsc]:
    """One that listens until the test ends."""
    smsc = ScriptedSmsc(tls)
    await smsc.start()
    try:
        yield smsc
    finally:
        await smsc.stop()


def receipt_body(message_id: str, stat: str = "DELIVRD", mobile: str = "8613800138000", **fields: str) -> bytes:
    """The body of a deliver_sm that brings a receipt in text form."""
    done = fields.get("done", "2601021530")
    text = f"id:{message_id} sub:001 dlvrd:001 submit date:{done} done date:{done} stat:{stat} err:000 text:hello"
    return encode_short_message(
        ShortMessage(Address(1, 1, mobile), Address(0, 0, "1069"), short_message=text.encode(), esm_class=0x04)
    )
