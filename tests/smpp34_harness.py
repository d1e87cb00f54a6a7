"""An SMSC that others wrote (smpp34), which answers as it should and sends receipts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import smpp34

SECONDS = 10.0


class Smsc34:
    """Accepts every submit_sm under an id of its own, unless `decide` gives a status, or None for no answer; then a
    receipt is sent.
    """

    def __init__(self) -> None:
        self.host = "127.0.0.1"
        self.port = free_port()
        self.submits: list[smpp34.SubmitSmEvent] = []
        self.receipt_statuses: list[int] = []
        self.decide: Callable[[smpp34.SubmitSmEvent], int | None] = lambda event: 0
        self.state_of: Callable[[smpp34.SubmitSmEvent], str | None] = lambda event: None
        self.receipt_first = False
        self.esmes: asyncio.Queue[smpp34.Esme] = asyncio.Queue()
        self._esme: smpp34.Esme | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, server: smpp34.Server) -> None:
        """Take events until cancelled."""
        while True:
            event = await server.next()
            if isinstance(event, smpp34.Esme):
                self._esme = event
                self.esmes.put_nowait(event)
            elif isinstance(event, smpp34.SubmitSmEvent):
                self.submits.append(event)
                task = asyncio.create_task(self._answer(event, f"{len(self.submits):08X}"))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _answer(self, event: smpp34.SubmitSmEvent, message_id: str) -> None:
        status = self.decide(event)
        if status is None:
            return
        if status:
            event.reject(status)
            return
        if not self.receipt_first:
            event.accept(message_id)
        state = self.state_of(event)
        if state is not None and event.registered_delivery:
            await self.receipt(event, message_id, state)
        if self.receipt_first:
            event.accept(message_id)

    async def receipt(self, event: smpp34.SubmitSmEvent, message_id: str, state: str) -> None:
        """Send a receipt in text form, in another case than the response's id."""
        assert self._esme is not None
        text = (
            f"id:{message_id.lower()} sub:001 dlvrd:001 submit date:2601021529 done date:2601021530 stat:{state} err:0"
        )
        answer = await self._esme.deliver_sm(
            event.source_addr,
            f"{text} text:".encode(),
            source_addr=event.destination_addr,
            source_addr_ton=event.dest_addr_ton,
            source_addr_npi=event.dest_addr_npi,
            esm_class=4,
        )
        self.receipt_statuses.append(answer.command_status)

    async def close(self) -> None:
        """End what it has under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def smpp34_smsc() -> AsyncIterator[Smsc34]:
    """One that listens until the test ends."""
    smsc = Smsc34()
    server = smpp34.Server(smsc.host, smsc.port, system_id="smpp34")
    await server.start()
    task = asyncio.create_task(smsc.serve(server))
    try:
        yield smsc
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await smsc.close()
        async with asyncio.timeout(SECONDS):
            await server.stop()


def free_port() -> int:
    """A port that was free a moment ago: the server tells none of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
