"""A TCP proxy between two parts, whose connections can be made slow, silent or lost while they are in use.

What it cannot do is lose bytes and go on: TCP does not. So whatever it has swallowed ends in a lost connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

HOST = "127.0.0.1"
# Bytes of one connection on their way at most; beyond it the sender is not read from, as with a full socket.
UNDER_WAY_BYTES_MAX = 1024 * 1024
CONNECT_SECONDS = 5.0
_BACKLOG = 256
# What uvloop's timers, which count whole milliseconds, may fire early.
_TIMER_SECONDS = 0.001
# SO_LINGER on, with no time: close() sends RST instead of FIN.
_LINGER_NOT = struct.pack("ii", 1, 0)

# Where the proxied part listens: host and port, or the path of a Unix socket.
Target = tuple[str, int] | str


class Proxy:
    """Listens on a free port of this machine and hands connections on to `target`.

    Parameters: `called` names the part behind it; `target` is where that part listens.
    """

    def __init__(self, called: str, target: Target) -> None:
        self.called = called
        self.port = 0
        self.delay_seconds = 0.0
        self._target = target
        self._held = False
        self._mute = False
        self._links: set[_Link] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._reserved: socket.socket | None = None
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        """Connections that go through it now."""
        return len(self._links)

    async def start(self) -> None:
        """Take a free port and listen."""
        self._reserved = self._bound(0)
        self.port = self._reserved.getsockname()[1]
        await self.accept()

    async def close(self) -> None:
        """Lose every connection and give the port up."""
        self.refuse()
        self.reset()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        # Connections are given up in the loop's next turn.
        await asyncio.sleep(0)
        if self._reserved is not None:
            self._reserved.close()

    async def accept(self) -> None:
        """Take new connections (again)."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            listening = self._bound(self.port)
            self._server = await loop.create_server(lambda: _End(self), sock=listening, backlog=_BACKLOG)

    def refuse(self) -> None:
        """Refuse new connections; those that are there go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def cut(self) -> int:
        """Close every connection in both directions (FIN), after what is under way; how many."""
        return self._each(lambda link: link.finish())

    def reset(self) -> int:
        """Tear every connection off (RST), with what is under way; how many."""
        return self._each(lambda link: link.reset())

    def hold(self) -> int:
        """Black hole: nothing goes through any more, of connections there and of new ones, until `release`."""
        self._held = True
        return self._each(lambda link: link.hold())

    def release(self) -> int:
        """End `hold`: what came meanwhile goes on."""
        self._held = False
        return self._each(lambda link: link.release())

    def forget(self) -> int:
        """Connections that are there stay, and nothing goes through them any more; new ones work. How many."""
        return self._each(lambda link: link.hold())

    def mute(self) -> int:
        """Requests go through, answers are swallowed; new connections likewise. `unmute` resets them."""
        self._mute = True
        return len(self._links)

    def unmute(self) -> int:
        """End `mute`; connections that lost an answer are reset."""
        self._mute = False
        return self._each(lambda link: link.reset() if link.swallowed else None)

    def _each(self, act: Callable[[_Link], None]) -> int:
        links = list(self._links)
        for link in links:
            act(link)
        return len(links)

    def _bound(self, port: int) -> socket.socket:
        """A socket on the port. One that does not listen keeps the port ours while new connections are refused."""
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind((HOST, port))
        return found

    # What its connections call.

    def opened(self, caller: _End) -> None:
        """A caller has connected: connect on."""
        if self._server is None:
            # It was on its way when we began to refuse.
            caller.reset()
            return
        task = asyncio.create_task(self._connect(caller))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, caller: _End) -> None:
        loop = asyncio.get_running_loop()
        target = self._target
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if isinstance(target, str):
                    _, called = await loop.create_unix_connection(lambda: _End(self, caller), target)
                else:
                    _, called = await loop.create_connection(lambda: _End(self, caller), *target)
        except (OSError, TimeoutError):
            # As the caller would see it without us, if a moment later: nobody is there.
            caller.reset()
            return
        except asyncio.CancelledError:
            caller.reset()
            raise
        if caller.lost or called.lost:
            caller.finish()
            called.reset()
            return
        link = _Link(self, caller, called)
        self._links.add(link)
        link.start(held=self._held)

    def closed(self, link: _Link) -> None:
        """A connection is over."""
        self._links.discard(link)

    @property
    def muted(self) -> bool:
        """Whether answers are swallowed."""
        return self._mute


class _End(asyncio.Protocol):
    """One end of a connection. The caller's is made first, the called part's when it has been reached."""

    def __init__(self, proxy: Proxy, caller: _End | None = None) -> None:
        self.link: _Link | None = None
        self.lost = False
        self._proxy = proxy
        self._transport: asyncio.Transport | None = None
        self._is_caller = caller is None
        # Why it is not read from.
        self._reasons = set[str]()
        # What came before the other end was there (nothing: the end); uvloop reads at once, whatever one says.
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._is_caller:
            self._proxy.opened(self)

    def data_received(self, data: bytes) -> None:
        self._came(data)

    def eof_received(self) -> bool:
        # The end comes after the bytes before it; until then this one stays open.
        self._came(b"")
        return True

    def _came(self, data: bytes) -> None:
        if self.link is not None:
            self.link.forward(self, data)
        else:
            self._early.append(data)
            self.pause("early")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self.link is not None:
            self.link.lost(self, torn=exc is not None)

    def pause_writing(self) -> None:
        if self.link is not None:
            self.link.other(self).pause("full")

    def resume_writing(self) -> None:
        if self.link is not None:
            self.link.other(self).resume("full")

    # What its connection calls.

    def start(self) -> None:
        """Hand on what came before."""
        assert self.link is not None
        for data in self._early:
            self.link.forward(self, data)
        self._early.clear()
        self.resume("early")

    def pause(self, reason: str) -> None:
        """Read no more, until every reason is gone."""
        if not self._reasons and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._reasons.add(reason)

    def resume(self, reason: str) -> None:
        """A reason is gone."""
        had = bool(self._reasons)
        self._reasons.discard(reason)
        if had and not self._reasons and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Hand bytes on."""
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(data)

    def finish(self) -> None:
        """Close after what is under way."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Close at once; over TCP with RST."""
        if self._transport is None or self.lost:
            return
        taken = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self._transport.abort()


class _Flow:
    """What one end has sent and the other has not been given yet, in order."""

    def __init__(self, sender: _End, receiver: _End) -> None:
        self._sender, self._receiver = sender, receiver
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._bytes = 0

    def add(self, data: bytes, delay: float) -> None:
        """Hand bytes (none: the end) on after a delay, at once without one."""
        if not delay and not self._waiting:
            self._arrive(data)
            return
        loop = asyncio.get_running_loop()
        self._waiting.append((loop.time() + delay, data))
        self._bytes += len(data)
        if self._bytes > UNDER_WAY_BYTES_MAX:
            self._sender.pause("delayed")
        if len(self._waiting) == 1:
            loop.call_later(delay, self._next)

    def _next(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and self._waiting[0][0] <= loop.time() + _TIMER_SECONDS:
            _, data = self._waiting.popleft()
            self._bytes -= len(data)
            self._arrive(data)
        if self._bytes <= UNDER_WAY_BYTES_MAX:
            self._sender.resume("delayed")
        if self._waiting:
            loop.call_later(max(0.0, self._waiting[0][0] - loop.time()), self._next)

    def _arrive(self, data: bytes) -> None:
        if data:
            self._receiver.write(data)
        else:
            # None of the protocols that pass here goes on in one direction.
            self._receiver.finish()
            self._sender.finish()


class _Link:
    """A connection from a caller to the called part."""

    def __init__(self, proxy: Proxy, caller: _End, called: _End) -> None:
        self.swallowed = False
        self._proxy = proxy
        self._caller, self._called = caller, called
        self._flows = {caller: _Flow(caller, called), called: _Flow(called, caller)}
        caller.link = called.link = self

    def other(self, end: _End) -> _End:
        """The opposite end."""
        return self._called if end is self._caller else self._caller

    def start(self, *, held: bool) -> None:
        """Begin."""
        if held:
            self.hold()
        else:
            self._begin()

    def _begin(self) -> None:
        for end in (self._caller, self._called):
            end.start()

    def forward(self, sender: _End, data: bytes) -> None:
        """Hand on what an end has sent; without bytes, that it sends no more."""
        if self._proxy.muted and sender is self._called:
            self.swallowed = True
            return
        self._flows[sender].add(data, self._proxy.delay_seconds)

    def hold(self) -> None:
        """Read from neither end; what they send stays in the kernel's buffers."""
        for end in (self._caller, self._called):
            end.pause("held")

    def release(self) -> None:
        """Read again."""
        self._begin()
        for end in (self._caller, self._called):
            end.resume("held")

    def finish(self) -> None:
        """FIN to both ends."""
        for end in (self._caller, self._called):
            end.finish()

    def reset(self) -> None:
        """RST to both ends."""
        for end in (self._caller, self._called):
            end.reset()

    def lost(self, end: _End, *, torn: bool) -> None:
        """One end is gone: so is the other."""
        self._proxy.closed(self)
        if torn:
            self.other(end).reset()
        else:
            self.other(end).finish()
