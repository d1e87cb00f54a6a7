"""The embedded servers: a real PostgreSQL and a real Redis-compatible server in one data folder of this user.

They run in sessions of their own, so that a Ctrl-C in the terminal reaches us alone, and belong to no
event loop. If we are killed they go on; the next start on the same folder takes them over.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from infra.data_folder import (
    DataFolder,
    DataFolderInUse,
    DataFolderTooNew,
    EmbeddedError,
    default_data_dir,
)
from infra.embedded_postgres import SHUTDOWN_SIGNALS, EmbeddedPostgres, ShutdownMode
from infra.embedded_process import Deadline, EmbeddedServer
from infra.embedded_redis import EmbeddedRedis

__all__ = [
    "DataFolderInUse",
    "DataFolderTooNew",
    "EmbeddedError",
    "EmbeddedServers",
    "default_data_dir",
]


class EmbeddedServers:
    """PostgreSQL and Redis of one data folder.

    Every method that waits exists for asyncio; `start_blocking` and `stop_blocking` (or a plain `with`) are
    for code without an event loop, such as a pytest fixture for a whole session.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        postgres: bool = True,
        redis: bool = True,
        start_timeout_seconds: float = 60,
        stop_timeout_seconds: float = 30,
        max_connections: int = 100,
        shared_buffers: str = "128MB",
    ) -> None:
        self._folder = DataFolder(data_dir)
        self._postgres = (
            EmbeddedPostgres(self._folder, max_connections=max_connections, shared_buffers=shared_buffers)
            if postgres
            else None
        )
        self._redis = EmbeddedRedis(self._folder) if redis else None
        self._start_timeout_seconds = start_timeout_seconds
        self._stop_timeout_seconds = stop_timeout_seconds
        self._started = False
        self._abort = threading.Event()
        self._busy = threading.Lock()

    @property
    def data_dir(self) -> Path:
        return self._folder.path

    @property
    def database_url(self) -> str:
        """For psycopg; SQLAlchemy takes it with `postgresql+psycopg:` in front. A restart keeps it."""
        return self._the_postgres().url

    @property
    def redis_url(self) -> str:
        return self._the_redis().url

    @property
    def postgres_pid(self) -> int | None:
        return self._postgres.pid if self._postgres else None

    @property
    def redis_pid(self) -> int | None:
        return self._redis.pid if self._redis else None

    # Start and stop.

    async def start(self) -> None:
        """Start the servers, or take over those that an earlier start has left; all of them or none."""
        await self._in_thread(self.start_blocking, interrupt=True)

    async def stop(self) -> None:
        """Stop the servers and free the folder; harmless when nothing runs."""
        await self._in_thread(self.stop_blocking)

    def start_blocking(self) -> None:
        with self._busy:
            if self._started:
                raise EmbeddedError("these servers are started already; stop them first")
            self._folder.acquire()
            deadline = Deadline(self._start_timeout_seconds, self._abort)
            try:
                # Redis first: it gets ready while PostgreSQL creates its files.
                for server in self._servers():
                    server.launch(deadline)
                for server in self._servers():
                    server.wait_until_ready(deadline)
            except BaseException:
                with contextlib.suppress(EmbeddedError):
                    self._stop_all()
                raise
            self._started = True

    def stop_blocking(self) -> None:
        with self._busy:
            if self._started:
                self._started = False
                self._stop_all()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        self.start_blocking()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_blocking()

    # One server at a time, for tests of failures.

    async def stop_postgres(self, mode: ShutdownMode = "fast") -> None:
        await self._in_thread(lambda: self._stop_one(self._the_postgres(), SHUTDOWN_SIGNALS[mode]))

    async def start_postgres(self) -> None:
        await self._in_thread(lambda: self._start_one(self._the_postgres()))

    async def restart_postgres(self, mode: ShutdownMode = "fast") -> None:
        await self.stop_postgres(mode)
        await self.start_postgres()

    async def kill_postgres(self) -> None:
        await self._in_thread(self._the_postgres().kill)

    async def stop_redis(self) -> None:
        await self._in_thread(lambda: self._stop_one(self._the_redis()))

    async def start_redis(self) -> None:
        await self._in_thread(lambda: self._start_one(self._the_redis()))

    async def kill_redis(self) -> None:
        await self._in_thread(self._the_redis().kill)

    # Details.

    def _servers(self) -> list[EmbeddedServer]:
        return [server for server in (self._redis, self._postgres) if server is not None]

    def _the_postgres(self) -> EmbeddedPostgres:
        if self._postgres is None or not self._started:
            raise EmbeddedError("the embedded PostgreSQL is not started; call start() first")
        return self._postgres

    def _the_redis(self) -> EmbeddedRedis:
        if self._redis is None or not self._started:
            raise EmbeddedError("the embedded Redis is not started; call start() first")
        return self._redis

    def _start_one(self, server: EmbeddedServer) -> None:
        with self._busy:
            deadline = Deadline(self._start_timeout_seconds)
            server.launch(deadline)
            try:
                server.wait_until_ready(deadline)
            except BaseException:
                server.stop(Deadline(self._stop_timeout_seconds))
                raise

    def _stop_one(self, server: EmbeddedServer, first_signal: signal.Signals | None = None) -> None:
        with self._busy:
            server.stop(Deadline(self._stop_timeout_seconds), first_signal)

    def _stop_all(self) -> None:
        first_error: EmbeddedError | None = None
        for server in self._servers():
            try:
                server.stop(Deadline(self._stop_timeout_seconds))
            except EmbeddedError as error:
                first_error = first_error or error
        if first_error is None:
            self._folder.remove_short_sockets_folder()
        self._folder.release()
        if first_error is not None:
            raise first_error

    async def _in_thread(self, work: Callable[[], None], *, interrupt: bool = False) -> None:
        """Run blocking work in a thread; when we are cancelled, wait for it all the same: it has a bound.

        A start that is cancelled is interrupted, and what it has started is stopped.
        """
        task = asyncio.ensure_future(asyncio.to_thread(work))
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                cancelled = error
                if interrupt:
                    self._abort.set()
            except Exception:  # noqa: S110 (raised below)
                pass
        if interrupt:
            self._abort.clear()
        if cancelled is None:
            task.result()
            return
        if task.exception() is None and interrupt:
            await self._in_thread(self.stop_blocking)
        raise cancelled
