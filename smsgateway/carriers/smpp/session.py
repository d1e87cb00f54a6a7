"""A session with an SMSC: one connection at a time, bound as transceiver and made again whenever it breaks.

What the callers of `Session.submit` must be able to rely on, since a message is sent at most once: `NotSent` says that
not one byte of the submit_sm left this process; whoever gets `NoAnswer` must take it for sent. Between the two stands
the moment at which bytes are handed to the transport (`_Connection._flush`), which takes none while its last ones are
still on their way.

A submit is one `_Request` from its caller to its response, and its caller is woken once: responses come several in a
read, each makes room for a request that waits, and those leave together when the read is over.

What an SMSC does wrong costs as little as can be: a response that nobody asked for is counted, a command that nobody
knows is answered by generic_nack, a length that no PDU can have ends the connection, and an unbind in the middle waits
a moment for the responses that are still owed.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, cast

import structlog

from smsgateway.carriers.smpp.pdus import (
    PDU_BYTES_MAX,
    RESPONSE,
    SEQUENCE_MAX,
    Bind,
    Command,
    FrameReader,
    Pdu,
    decode_name,
    encode_bind,
    encode_name,
    frame,
)
from smsgateway.metrics import SMPP_BOUND, SMPP_ODD

log = structlog.get_logger(__name__)

# Command statuses, specification 5.1.3.
OK: Final = 0x00
INVALID_LENGTH: Final = 0x02
INVALID_COMMAND: Final = 0x03
WRONG_STATE: Final = 0x04
TRY_AGAIN: Final = 0x64
"""ESME_RX_T_APPN in a deliver_sm_resp: not taken now, to be given again."""
NEVER: Final = 0x65
"""ESME_RX_P_APPN in a deliver_sm_resp: not taken, and no repetition will help."""
UNKNOWN_ERROR: Final = 0xFF
_LOCKED_OUT: Final = frozenset({0x0D, 0x0E, 0x0F, 0x53})
"""Bind failed, invalid password, system id, system type: nothing but a change of settings, theirs or ours, helps. Other
refusals of a bind, such as 0x05 (already bound: our last session has not ended over there), pass by themselves."""

# Of an enumeration every look-up costs, and these are looked up for each message.
_SUBMIT: Final = Command.SUBMIT_SM
_SUBMIT_RESP: Final = int(Command.SUBMIT_SM_RESP)
_NACK: Final = int(Command.GENERIC_NACK)

# A number of the sequence that no request of ours has: of what we answer we may not even know the number.
_NO_SEQUENCE: Final = 0
_ODD_LOG_EVERY: Final = 1_000
_OUT_MAX: Final = 10_000
"""PDUs that wait to be written, most of them answers: ten times the receipts in hand. Who asks more than that and reads
none of the answers is cut off."""
LOOK_S: Final = 0.05
"""Seconds between two looks at what has waited too long. A timer for each message would cost more than the message."""


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Where to bind and how patient to be.

    Attributes:
        account_id: our name of the account, for logs and metrics.
        host, port: the SMSC's address.
        bind: who we are.
        tls: how to encrypt; None: not at all.
        window: submits without a response at a time.
        connect_s: seconds to connect and bind, and that a submit waits for a session before it gives up.
        response_s: seconds that a response may take, and the storing of a receipt.
        enquire_link_s: seconds between two questions whether the connection still lives.
        rest_s, rest_s_max: seconds before the first attempt to connect again, and at most; they double, with jitter.
        unbind_s: seconds that leaving may take: for responses still owed, and for the one to unbind.
        deliveries_max: deliver_sm in hand; beyond it they are refused for now.
        pdu_bytes_max: bytes of a PDU.
    """

    account_id: str
    host: str
    port: int
    bind: Bind
    tls: ssl.SSLContext | None = None
    window: int = 10
    connect_s: float = 5.0
    response_s: float = 10.0
    enquire_link_s: float = 30.0
    rest_s: float = 1.0
    rest_s_max: float = 30.0
    unbind_s: float = 2.0
    deliveries_max: int = 1_000
    pdu_bytes_max: int = PDU_BYTES_MAX


class Answer(NamedTuple):
    """The response to a request: its status and the name in its body. `nack`: a generic_nack."""

    status: int
    name: str
    nack: bool = False


class NotSent(Exception):  # noqa: N818 - says what happened
    """Not one byte of the request left. `unreachable`: no session could be had."""

    def __init__(self, why: str, *, unreachable: bool = False) -> None:
        super().__init__(why)
        self.unreachable = unreachable


class NoAnswer(Exception):  # noqa: N818 - says what happened
    """The request may have arrived, and no answer to it will."""


class BindRefused(Exception):  # noqa: N818 - says what happened
    """The SMSC does not let us in."""

    def __init__(self, status: int) -> None:
        super().__init__(f"bind refused, status 0x{status:02X}")
        self.status = status


class _NotWritten(Exception):  # noqa: N818 - says what happened
    """The connection was lost before the request was handed to it."""


Deliver = Callable[[bytes], Awaitable[int]]
"""Takes the body of a deliver_sm; returns the status of its response. What it raises is `TRY_AGAIN`."""


@dataclass(slots=True, eq=False)
class _Request:
    """A request, on its way to its response.

    Attributes:
        command, body: what is asked.
        future: its response.
        start_by: the loop's time until which it may be written.
        until: the loop's time until which it waits for its turn.
        sequence: its number on the connection that it was given to; 0: it waits for its turn.
        expires: the loop's time until which its response may come.
        written: whether it was handed to the transport.
    """

    command: Command
    body: bytes
    future: asyncio.Future[Answer]
    start_by: float = 0.0
    until: float = 0.0
    sequence: int = 0
    expires: float = 0.0
    written: bool = False


class _Connection(asyncio.Protocol):
    """One TCP connection, from its start to its end; never used again."""

    def __init__(
        self,
        config: SessionConfig,
        deliver: Deliver,
        changed: Callable[[], None],
        unwritten: Callable[[Sequence[_Request]], None],
    ) -> None:
        self._config = config
        self._deliver = deliver
        self._changed = changed
        self._unwritten = unwritten
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(config.pdu_bytes_max)
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._leaving = False
        self._out: list[tuple[bytes, _Request | None]] = []
        self._flush_due = False
        self._look_due = False
        self._reading = False
        # Responses are owed for these; emptied by a response, its time-out or the connection's end.
        self._requests: dict[int, _Request] = {}
        # How many of them are submits: the window that is taken.
        self.submits = 0
        self._sequence = 0
        self._odds: Counter[str] = Counter()
        self._deliveries: set[asyncio.Task[None]] = set()
        self._answered_all: asyncio.Future[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self.bound = False
        self.lost: asyncio.Future[None] = self._loop.create_future()

    @property
    def takes(self) -> bool:
        """Whether a submit would be written at once."""
        return self.bound and not self._leaving and not self._paused and not self.lost.done()

    async def bind(self) -> None:
        """Bind as transceiver. Raises `BindRefused`, `NoAnswer` and `NotSent`."""
        try:
            answer = await self.request(
                Command.BIND_TRANSCEIVER, encode_bind(self._config.bind), self._config.response_s
            )
        except _NotWritten:
            raise NotSent("connection lost before the bind", unreachable=True) from None
        if answer.status in _LOCKED_OUT:
            raise BindRefused(answer.status)
        if answer.status != OK:
            raise NotSent(f"bind refused for now, status 0x{answer.status:02X}", unreachable=True)

    async def request(self, command: Command, body: bytes, seconds: float) -> Answer:
        """Write a request and wait for its response. Raises `_NotWritten` and `NoAnswer`."""
        if self.lost.done():
            raise _NotWritten
        request = _Request(command, body, self._loop.create_future())
        self.put(request, seconds)
        try:
            return await request.future
        finally:
            self.forget(request)

    def put(self, request: _Request, seconds: float) -> None:
        """Write a request; `seconds` for its response. Its future hears of it, unless `unwritten` does."""
        sequence = self._sequence = self._next_sequence()
        request.sequence, request.expires, request.written = sequence, self._loop.time() + seconds, False
        self._requests[sequence] = request
        if request.command is _SUBMIT:
            self.submits += 1
        if not self._look_due:
            self._look_due = True
            self._loop.call_later(LOOK_S, self._look)
        self._write(frame(request.command, sequence, request.body), request)

    def forget(self, request: _Request) -> None:
        """Wait for its response no more: when it comes it is nobody's."""
        if self._requests.get(request.sequence) is request:
            self._ended(request)
            self._changed()

    def _ended(self, request: _Request) -> None:
        del self._requests[request.sequence]
        request.sequence = 0
        if request.command is _SUBMIT:
            self.submits -= 1
        if self._answered_all is not None:
            self._note_answered()

    async def leave(self) -> None:
        """Wait a moment for what is owed both ways, unbind, and close."""
        self._leaving = True
        if self.bound and not self.lost.done():
            await self._settled(self._config.unbind_s)
            with suppress(_NotWritten, NoAnswer):
                await self.request(Command.UNBIND, b"", self._config.unbind_s)
        self.close()

    def close(self) -> None:
        """Close the connection; what waits for responses hears of it from `connection_lost`."""
        self._leaving = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now, whatever waits to be written: the other side does not read."""
        self._leaving = True
        if self._transport is not None:
            self._transport.abort()

    # What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # uvloop's transports are none of asyncio's by name.
        made = cast("asyncio.Transport", transport)
        # Pause as soon as the kernel takes no more: what waits here was surely not sent, what waits there perhaps.
        # One byte, for transports with TLS take 0 for always full.
        made.set_write_buffer_limits(high=1, low=0)
        self._transport = made

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.bound = False
        self._out.clear()
        if not self.lost.done():
            self.lost.set_result(None)
        self._fail([*self._requests.values()], "connection lost")
        self._changed()

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`: half a connection is none."""
        return False

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._paused = True

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._paused = False
        self._flush()
        self._changed()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._reading = True
        for pdu in self._reader.feed(data):
            self._received(pdu)
        self._changed()
        self._reading = False
        self._flush()
        if self._reader.broken and not self._leaving:
            self._odd("length")
            self._write(frame(Command.GENERIC_NACK, _NO_SEQUENCE, status=INVALID_LENGTH))
            self._flush()
            self.close()

    # Reading.

    def _received(self, pdu: Pdu) -> None:
        command = pdu.command
        if command & RESPONSE:
            self._answered(pdu)
        elif command == Command.DELIVER_SM:
            self._take_delivery(pdu)
        elif command == Command.ENQUIRE_LINK:
            self._write(frame(Command.ENQUIRE_LINK_RESP, pdu.sequence))
        elif command == Command.UNBIND:
            self._unbound(pdu.sequence)
        else:
            self._odd("command")
            self._write(frame(Command.GENERIC_NACK, pdu.sequence, status=INVALID_COMMAND))

    def _answered(self, pdu: Pdu) -> None:
        request, command = self._requests.get(pdu.sequence), pdu.command
        nack = command == _NACK
        # Late, doubled, early, or of a number that was never ours: it must not answer another request.
        if request is None or not request.written or request.future.done():
            self._odd("unasked")
            return
        if command == _SUBMIT_RESP and request.command is _SUBMIT:
            request.future.set_result(Answer(pdu.status, decode_name(pdu.body)))
            self._ended(request)
            return
        if not nack and command != request.command | RESPONSE:
            self._odd("unasked")
            return
        status = pdu.status or UNKNOWN_ERROR if nack else pdu.status
        # At once, for receipts may stand right behind it.
        self.bound = self.bound or (pdu.command == Command.BIND_TRANSCEIVER_RESP and status == OK)
        request.future.set_result(Answer(status, "" if nack else decode_name(pdu.body), nack))
        self._ended(request)

    def _take_delivery(self, pdu: Pdu) -> None:
        if not self.bound:
            self._write(frame(Command.DELIVER_SM_RESP, pdu.sequence, encode_name(""), WRONG_STATE))
        elif len(self._deliveries) >= self._config.deliveries_max:
            self._odd("refused")
            self._write(frame(Command.DELIVER_SM_RESP, pdu.sequence, encode_name(""), TRY_AGAIN))
        else:
            task = self._loop.create_task(self._answer_delivery(pdu), name="smpp-delivery")
            self._deliveries.add(task)
            task.add_done_callback(self._delivered)

    async def _answer_delivery(self, pdu: Pdu) -> None:
        try:
            async with asyncio.timeout(self._config.response_s):
                status = await self._deliver(pdu.body)
        except Exception as error:
            log.warning("receipt not taken", account=self._config.account_id, error=type(error).__name__)
            status = TRY_AGAIN
        # Lost meanwhile, nothing is written, and the SMSC gives it again.
        self._write(frame(Command.DELIVER_SM_RESP, pdu.sequence, encode_name(""), status))

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._deliveries.discard(task)
        self._note_answered()

    def _unbound(self, sequence: int) -> None:
        if self._ending is None:
            log.info("unbound by the carrier", account=self._config.account_id)
            self._leaving = True
            self._ending = self._loop.create_task(self._end(sequence), name="smpp-unbound")

    async def _end(self, sequence: int) -> None:
        # After our response they owe nothing any more, so what they still owe is waited for.
        await self._settled(self._config.unbind_s)
        self._write(frame(Command.UNBIND_RESP, sequence))
        self._flush()
        self.close()

    # Writing.

    def _write(self, data: bytes, request: _Request | None = None) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if len(self._out) >= _OUT_MAX:
            log.warning("the carrier reads no answers, connection closed", account=self._config.account_id)
            self.abort()
            return
        self._out.append((data, request))
        if not self._flush_due and not self._reading:
            # Once per turn of the loop: the submits of one turn leave together.
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if not self._out or self._paused or self._transport is None or self._transport.is_closing():
            return
        for _, request in self._out:
            if request is not None:
                request.written = True
        data = b"".join([part for part, _ in self._out])
        self._out.clear()
        self._transport.write(data)

    # Time.

    def _look(self) -> None:
        """End the requests whose time is over."""
        now = self._loop.time()
        late = [request for request in self._requests.values() if request.expires <= now]
        if late:
            self._out = [(data, owner) for data, owner in self._out if owner is None or owner.expires > now]
            self._fail(late, "no response in time")
            self._changed()
        self._look_due = bool(self._requests)
        if self._look_due:
            self._loop.call_later(LOOK_S, self._look)

    def _fail(self, requests: Sequence[_Request], why: str) -> None:
        """End requests that get no response here. Submits that were not written are their session's again."""
        unwritten = []
        for request in requests:
            self._ended(request)
            if request.future.done():
                continue
            if request.written:
                request.future.set_exception(NoAnswer(why))
            elif request.command is Command.SUBMIT_SM:
                unwritten.append(request)
            else:
                request.future.set_exception(_NotWritten())
        self._unwritten(unwritten)

    async def _settled(self, seconds: float) -> None:
        """Wait until nothing is owed either way, at most so long."""
        if self._requests or self._deliveries:
            self._answered_all = self._loop.create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._answered_all
            self._answered_all = None

    def _note_answered(self) -> None:
        waited = self._answered_all
        if waited is not None and not waited.done() and not self._requests and not self._deliveries:
            waited.set_result(None)

    def _next_sequence(self) -> int:
        sequence = self._sequence % SEQUENCE_MAX + 1
        while sequence in self._requests:
            sequence = sequence % SEQUENCE_MAX + 1
        return sequence

    def _odd(self, what: str) -> None:
        SMPP_ODD.labels(self._config.account_id, what).inc()
        self._odds[what] += 1
        if self._odds[what] % _ODD_LOG_EVERY == 1:
            log.warning("the carrier breaks the protocol", account=self._config.account_id, what=what)


class Session:
    """Keeps a connection bound from the first `submit` or `start` until `close`."""

    def __init__(self, config: SessionConfig, deliver: Deliver) -> None:
        self._config = config
        self._deliver = deliver
        # Kept, for to ask for it costs more than all else that a message does here.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: _Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._refused: BindRefused | None = None
        self._closed = False
        # Who waits for room in the window, first come first served.
        self._waiting: deque[_Request] = deque()
        self._look_due = False

    @property
    def bound(self) -> bool:
        """Whether there is a session at this moment."""
        return self._connection is not None and self._connection.bound

    def start(self) -> None:
        """Begin to connect, if nobody has."""
        if self._keeper is None and not self._closed:
            self._keeper = self._running_loop().create_task(self._keep(), name="smpp-session")

    def now(self) -> float:
        """The loop's time."""
        return self._running_loop().time()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    async def submit(self, body: bytes, start_by: float) -> Answer:
        """Submit a message. Returns `SessionConfig.response_s` and twice `LOOK_S` after `start_by` at the latest.

        Args:
            body: of the submit_sm.
            start_by: the loop's time until which it may wait to be sent.

        Raises:
            NotSent: no session or no room in the window in time, or the session was closed.
            BindRefused: there is no session because the SMSC lets nobody in.
            NoAnswer: it was sent, and what became of it is not known.
        """
        if self._keeper is None:
            self.start()
        if self._closed:
            raise NotSent("the session is closed")
        loop = self._loop or self._running_loop()
        if loop.time() >= start_by:
            raise NotSent("no time left")
        request = _Request(_SUBMIT, body, loop.create_future(), start_by)
        connection = self._connection
        if not self._waiting and connection is not None and self._has_room(connection):
            connection.put(request, self._config.response_s)
        elif self._refused is not None:
            raise BindRefused(self._refused.status)
        else:
            self._wait(request)
        try:
            return await request.future
        except asyncio.CancelledError:
            self._give_up(request)
            raise

    async def close(self) -> None:
        """Unbind and disconnect; who waits hears `NotSent`."""
        self._closed = True
        self._fail_waiting(partial(NotSent, "the session is closed"))
        keeper, self._keeper = self._keeper, None
        if self._connection is not None:
            await self._connection.leave()
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    # The window.

    def _wait(self, request: _Request, *, first: bool = False) -> None:
        """Have a request wait for its turn; without a session as long as making one may take."""
        start_by = request.start_by
        request.until = start_by if self.bound else min(start_by, self.now() + self._config.connect_s)
        if first:
            self._waiting.appendleft(request)
        else:
            self._waiting.append(request)
        if not self._look_due:
            self._look_due = True
            self._running_loop().call_later(LOOK_S, self._look)

    def _wait_again(self, requests: Sequence[_Request]) -> None:
        """Those that a connection did not write: surely not sent, so they go over the next one, while there is time."""
        now = self.now()
        for request in reversed(requests):
            if self._closed:
                request.future.set_exception(NotSent("the session is closed"))
            elif now >= request.start_by:
                request.future.set_exception(NotSent("no time left"))
            else:
                self._wait(request, first=True)

    def _give_up(self, request: _Request) -> None:
        """Forget a request that nobody waits for any more."""
        if request.sequence and self._connection is not None:
            self._connection.forget(request)
        else:
            with suppress(ValueError):
                self._waiting.remove(request)

    def _look(self) -> None:
        """End the waits whose time is over."""
        now = self.now()
        late = [request for request in self._waiting if request.until <= now]
        for request in late:
            self._waiting.remove(request)
            if not request.future.done():
                bound = self.bound
                why = "no room in the window in time" if bound else "no session in time"
                request.future.set_exception(NotSent(why, unreachable=not bound))
        self._look_due = bool(self._waiting)
        if self._look_due:
            self._running_loop().call_later(LOOK_S, self._look)

    def _has_room(self, connection: _Connection) -> bool:
        return connection.submits < self._config.window and connection.takes

    def _grant(self) -> None:
        """Give those whose turn it is to the connection."""
        connection = self._connection
        while self._waiting and connection is not None and self._has_room(connection):
            request = self._waiting.popleft()
            if not request.future.done():
                connection.put(request, self._config.response_s)

    def _fail_waiting(self, error: Callable[[], Exception]) -> None:
        while self._waiting:
            request = self._waiting.popleft()
            if not request.future.done():
                request.future.set_exception(error())

    # The connection.

    async def _keep(self) -> None:
        """Connect, bind, ask now and then whether the other side lives, and begin again."""
        config, loop = self._config, asyncio.get_running_loop()
        gauge = SMPP_BOUND.labels(config.account_id)
        failures = 0
        while not self._closed:
            began = loop.time()
            try:
                connection = await self._connect()
            except BindRefused as refused:
                if self._refused is None or self._refused.status != refused.status:
                    log.error("the carrier refuses the bind", account=config.account_id, status=refused.status)
                self._refused = refused
                self._fail_waiting(partial(BindRefused, refused.status))
            except Exception as error:
                self._refused = None
                # Of our own errors the message, of others the kind: they may hold anything.
                why = str(error) if isinstance(error, NotSent) else type(error).__name__
                log.warning("no session with the carrier", account=config.account_id, error=why)
            else:
                self._refused = None
                gauge.set(1)
                log.info("bound to the carrier", account=config.account_id)
                try:
                    self._grant()
                    await self._watch(connection)
                finally:
                    gauge.set(0)
                    connection.abort()
                log.warning("session with the carrier ended", account=config.account_id)
            # One that lasted was no failure; one that breaks at once is, or the two would spin.
            failures = 1 if loop.time() - began > config.rest_s_max else failures + 1
            await asyncio.sleep(self._rest_seconds(failures))

    async def _connect(self) -> _Connection:
        config, loop = self._config, asyncio.get_running_loop()
        connection = _Connection(config, self._deliver, self._grant, self._wait_again)
        try:
            async with asyncio.timeout(config.connect_s):
                await loop.create_connection(
                    lambda: connection,
                    config.host,
                    config.port,
                    ssl=config.tls,
                    server_hostname=config.host if config.tls is not None else None,
                )
                await connection.bind()
        except BaseException:
            connection.abort()
            raise
        self._connection = connection
        return connection

    async def _watch(self, connection: _Connection) -> None:
        config = self._config
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(config.enquire_link_s):
                    await asyncio.shield(connection.lost)
                return
            try:
                await connection.request(Command.ENQUIRE_LINK, b"", config.response_s)
            except (NoAnswer, _NotWritten):
                log.warning("the carrier does not answer, connection closed", account=config.account_id)
                return

    def _rest_seconds(self, failures: int) -> float:
        full = min(self._config.rest_s_max, self._config.rest_s * 2.0 ** min(failures - 1, 32))
        return full * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
