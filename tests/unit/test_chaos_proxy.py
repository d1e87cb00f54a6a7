"""The chaos harness's proxy does to a connection exactly what it is told, and nothing else."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chaos.proxy import HOST, UNDER_WAY_BYTES_MAX, Proxy

WAIT_SECONDS = 20.0
# Long beside what a byte takes on this machine, short for a test that waits for nothing to come.
SILENCE_SECONDS = 0.1

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(autouse=True)
async def _bounded() -> AsyncIterator[None]:
    """No test waits longer."""
    async with asyncio.timeout(WAIT_SECONDS):
        yield


class Echo:
    """A part that sends back what it gets, and remembers it."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.came = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while data := await reader.read(65_536):
                self.got += data
                self.came.set()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def echo() -> Echo:
    """What the part behind the proxy got."""
    return Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    """A proxy before a part that sends back what it gets."""
    server = await asyncio.start_server(echo.serve, HOST, 0)
    proxy = Proxy("echo", server.sockets[0].getsockname())
    await proxy.start()
    yield proxy
    await proxy.close()
    server.close()
    for writer in echo.writers:
        writer.close()


async def opened(proxy: Proxy) -> Streams:
    """A connection on which something has already gone to and fro."""
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    return reader, writer


async def is_silent(reader: asyncio.StreamReader, count: int) -> bool:
    """Whether so many bytes do not come."""
    try:
        await asyncio.wait_for(reader.readexactly(count), SILENCE_SECONDS)
    except TimeoutError:
        return True
    return False


async def eventually_none(proxy: Proxy) -> bool:
    """Whether every connection is given up in the end."""
    while proxy.connections:  # noqa: ASYNC110 - the proxy tells nobody
        await asyncio.sleep(0.01)
    return True


async def ended(writer: asyncio.StreamWriter) -> None:
    """Put a connection away, whatever became of it."""
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@pytest.mark.parametrize("delay", [0.0, 0.003])
async def test_bytes_pass_whole_and_in_order(proxy: Proxy, delay: float) -> None:
    """More than the proxy keeps under way comes back byte for byte, with and without a delay that begins and ends."""
    reader, writer = await opened(proxy)
    proxy.delay_seconds = delay
    sent = secrets.token_bytes(3 * UNDER_WAY_BYTES_MAX)

    async def send() -> None:
        for place in range(0, len(sent), 100_000):
            writer.write(sent[place : place + 100_000])
            await writer.drain()
        proxy.delay_seconds = 0.0

    _, back = await asyncio.gather(send(), reader.readexactly(len(sent)))
    assert back == sent
    await ended(writer)


async def test_delay_is_kept(proxy: Proxy) -> None:
    """An answer comes no earlier than both ways take."""
    reader, writer = await opened(proxy)
    proxy.delay_seconds = 0.05
    loop = asyncio.get_running_loop()
    started = loop.time()
    writer.write(b"x")
    await reader.readexactly(1)
    assert loop.time() - started >= 0.09
    await ended(writer)


async def test_cut_is_an_end_and_reset_an_error(proxy: Proxy) -> None:
    """A cut connection ends in order, one that is reset with ECONNRESET; new connections work."""
    cut, cut_writer = await opened(proxy)
    assert proxy.cut() == 1
    assert await cut.read() == b""
    await ended(cut_writer)
    torn, torn_writer = await opened(proxy)
    assert proxy.reset() == 1
    with pytest.raises(ConnectionResetError):
        await torn.read()
    await ended(torn_writer)
    _, writer = await opened(proxy)
    assert proxy.connections == 1
    await ended(writer)


async def test_what_is_held_goes_on_later(proxy: Proxy, echo: Echo) -> None:
    """A black hole lets nothing through, for connections there and new ones; what was sent comes out at its end."""
    reader, writer = await opened(proxy)
    proxy.hold()
    writer.write(b"held")
    new_reader, new_writer = await asyncio.open_connection(HOST, proxy.port)
    new_writer.write(b"new")
    assert await is_silent(reader, 1)
    assert bytes(echo.got) == b"hello"
    proxy.release()
    assert await reader.readexactly(4) == b"held"
    assert await new_reader.readexactly(3) == b"new"
    await ended(writer)
    await ended(new_writer)


async def test_lost_answers_end_in_a_reset(proxy: Proxy, echo: Echo) -> None:
    """The part gets the request, the caller never an answer, and at the end an error; who lost nothing goes on."""
    reader, writer = await opened(proxy)
    idle_reader, idle_writer = await opened(proxy)
    echo.came.clear()
    proxy.mute()
    writer.write(b"pay")
    await echo.came.wait()
    assert bytes(echo.got).endswith(b"pay")
    assert await is_silent(reader, 1)
    proxy.unmute()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    idle_writer.write(b"on")
    assert await idle_reader.readexactly(2) == b"on"
    await ended(writer)
    await ended(idle_writer)


async def test_refused_while_others_go_on(proxy: Proxy) -> None:
    """New connections are refused, those there go on, and afterwards the same port takes new ones again."""
    reader, writer = await opened(proxy)
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, proxy.port)
    writer.write(b"on")
    assert await reader.readexactly(2) == b"on"
    await proxy.accept()
    _, again = await opened(proxy)
    await ended(writer)
    await ended(again)


async def test_forgotten_connections_stay_silent_and_new_ones_work(proxy: Proxy, echo: Echo) -> None:
    """What a firewall does: nothing goes through the connections that are there, for good, and nobody is told."""
    reader, writer = await opened(proxy)
    assert proxy.forget() == 1
    writer.write(b"lost")
    again, again_writer = await opened(proxy)
    assert await is_silent(reader, 1)
    again_writer.write(b"on")
    assert await again.readexactly(2) == b"on"
    assert b"lost" not in echo.got
    await ended(writer)
    await ended(again_writer)


async def test_a_part_that_is_away(tmp_path: Path) -> None:
    """With nobody behind it the caller gets an error, not silence; over a Unix socket too."""
    proxy = Proxy("nobody", str(tmp_path / "nobody"))
    await proxy.start()
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    await ended(writer)
    await proxy.close()


async def test_ends_travel_through(proxy: Proxy, echo: Echo) -> None:
    """Either side's end or reset reaches the other, and nothing is left behind."""
    _, writer = await opened(proxy)
    await ended(writer)
    reader, writer = await opened(proxy)
    echo.writers[-1].close()
    assert await reader.read() == b""
    await ended(writer)
    reader, writer = await opened(proxy)
    taken = echo.writers[-1].get_extra_info("socket")
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    echo.writers[-1].transport.abort()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    await ended(writer)
    assert await eventually_none(proxy)
