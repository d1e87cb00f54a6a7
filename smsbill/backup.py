"""`smsbill backup` and `smsbill restore`: both schemas as one moment knows them, with PostgreSQL's own programs.

A backup is a folder: a dump of each schema (`pg_dump -Fc`), the data folder's secrets, and `backup.json`, which is
written last, so that what was interrupted is no backup. Schemas that lie in one database are dumped from one snapshot.
Redis needs no backup: queues are rebuilt from the records.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from costcenter import migrations as ledger_migrations
from costcenter.schema import SCHEMA as LEDGER_SCHEMA
from infra.data_folder import write_durably
from infra.database import CONNECT_SECONDS, ThreadConnection, start_error
from infra.embedded_postgres import VERSION, programs
from infra.errors import StartError
from smsbill import secret_file, stack_file
from smsbill.failure import CommandError
from smsbill.settings import StackSettings
from smsgateway import migrations as gateway_migrations
from smsgateway.schema import SCHEMA as GATEWAY_SCHEMA
from smsgateway.store import restoring

FORMAT = 1
MANIFEST = "backup.json"
# Migrations lock tables: nobody waits for one longer than this (seconds).
LOCK_SECONDS = 60
# How long a program's silence lasts until the growing file is looked at.
_POLL_SECONDS = 0.5
_TAIL_LINES = 20
# Of a file that is read for its checksum, at once.
_BLOCK_BYTES = 1 << 20
_DUMPING = re.compile(r'dumping contents of table "(.+)"')
_RESTORING = re.compile(r'processing data for table "(.+)"|creating (\w[\w ]* ".+")')
_MIGRATE = {LEDGER_SCHEMA: ledger_migrations.migrate, GATEWAY_SCHEMA: gateway_migrations.migrate}

# Called with what is being done, how much of it is (bytes of a dump, tables of a restore), and of how much (0: nobody
# knows).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Part:
    """A schema in a backup."""

    schema: str
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Backup:
    """What `backup.json` tells. `moment`: what was committed by then is in it, by the database's clock; `secrets`
    whether `secrets.json` of the data folder is in it.
    """

    moment: str
    release: str
    postgres: int
    secrets: bool
    parts: list[Part]
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        """Of all dumps."""
        return sum(part.bytes for part in self.parts)


@dataclass(slots=True)
class Restored:
    """What a restore did. `held`: dispatches that no worker may send until `smsbill doctor --after-restore` has looked
    at them; `aside`: names that databases were renamed to; `secrets`: restored, kept (there were some), or none
    without a data folder or without secrets in the backup.
    """

    moment: str
    held: int = 0
    aside: list[str] = field(default_factory=list)
    secrets: str = "none"


# Making one.


async def back_up(settings: StackSettings, folder: Path, *, progress: Progress) -> Backup:
    """Write a backup of both schemas to a new folder. The services may run meanwhile.

    Parameters: `settings` with the URLs of the databases; `folder` that does not exist yet, or is empty. Raises
    `CommandError`; then nothing is left of it.
    """
    made = _make_folder(folder)
    try:
        backup = await _dump_all(settings, folder, progress)
        with _file_errors(folder):
            secrets = secret_file.copy(settings.data_dir, folder)
            backup = Backup(backup.moment, backup.release, backup.postgres, secrets, backup.parts)
            write_durably(folder / MANIFEST, json.dumps(asdict(backup), indent=2) + "\n")
    except BaseException:
        _empty(folder, remove=made)
        raise
    return backup


def _empty(folder: Path, *, remove: bool) -> None:
    for path in folder.iterdir():
        path.unlink()
    if remove:
        folder.rmdir()


def _make_folder(folder: Path) -> bool:
    """Make the folder of a backup, for its owner only; False when an empty one was there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CommandError(f"{folder} is not empty; give the name of a new folder, so that no older backup is lost")
    made = not folder.exists()
    with _file_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    return made


async def _dump_all(settings: StackSettings, folder: Path, progress: Progress) -> Backup:
    # The gateway first: a cost centre that knows more than the gateway is asked again under the same ids, while
    # one that knows less has lost payments.
    urls = {GATEWAY_SCHEMA: settings.database_url, LEDGER_SCHEMA: settings.ledger_database_url}
    parts = []
    moment, postgres = "", 0
    snapshots: dict[str, tuple[ThreadConnection, str]] = {}
    with contextlib.ExitStack() as stack:
        for schema, url in urls.items():
            if url not in snapshots:
                connection = stack.enter_context(_connection(url, autocommit=False))
                connection.execute("set transaction isolation level repeatable read, read only")
                now, snapshot = _one(connection, "select clock_timestamp(), pg_export_snapshot()")
                snapshots[url] = connection, str(snapshot)
                moment = moment or now.astimezone(UTC).isoformat()
                postgres = connection.info.server_version
            connection, snapshot = snapshots[url]
            _require_schema(connection, schema)
            parts.append(await _dump(url, schema, snapshot, connection.info.server_version, folder, progress))
    return Backup(moment, version("sms-costcenter"), postgres, False, parts)


async def _dump(url: str, schema: str, snapshot: str, server: int, folder: Path, progress: Progress) -> Part:
    path = folder / f"{schema}.dump"
    path.touch(mode=0o600)
    table = schema

    def show(line: str = "") -> None:
        nonlocal table
        found = _DUMPING.search(line)
        table = found.group(1) if found else table
        progress(table, path.stat().st_size, 0)

    options = ["--format=custom", "--compress=1", "--no-owner", "--no-privileges", f"--schema={schema}"]
    options += [f"--snapshot={snapshot}", f"--lock-wait-timeout={LOCK_SECONDS}s", f"--file={path}"]
    await _run("pg_dump", server, url, options, show)
    progress(f"checksum of {path.name}", 0, 0)
    return Part(schema, path.name, path.stat().st_size, await asyncio.to_thread(_sha256, path))


# Bringing one back.


async def restore(folder: Path, settings: StackSettings, *, aside: bool, progress: Progress) -> Restored:
    """Bring both schemas back to the moment of a backup, and hold what had not been submitted by then.

    Parameters: `folder` of the backup, checked with `read`; `settings` with the URLs of the databases; `aside` whether
    a database that has our schemas is renamed and kept, instead of refusing. All or nothing: after an error there is
    none of it in the databases. Raises `CommandError`, `StartError`.
    """
    backup = read(folder)
    urls = {LEDGER_SCHEMA: settings.ledger_database_url, GATEWAY_SCHEMA: settings.database_url}
    restored = Restored(backup.moment)
    aside_of: dict[str, str] = {}
    for part in backup.parts:
        progress(f"checksum of {part.file}", 0, 0)
        await asyncio.to_thread(_check, folder, part)
    for url in dict.fromkeys(urls.values()):
        taken = [schema for schema in urls if urls[schema] == url and _has_schema(url, schema)]
        if taken and not aside:
            raise CommandError(
                f"the database {_name(url)} has records already ({', '.join(taken)}) and is not overwritten; "
                "restore into an empty database, or keep this one under another name with --aside"
            )
        if taken:
            aside_of[url] = _put_aside(url)
    done: list[str] = []
    try:
        for part in backup.parts:
            done.append(part.schema)
            await _restore_part(folder, part, urls[part.schema], progress)
        for schema, url in urls.items():
            progress(f"migrations of {schema}", 0, 0)
            await asyncio.to_thread(_MIGRATE[schema], url)
        async with await psycopg.AsyncConnection.connect(settings.database_url, autocommit=True) as gateway:
            restored.held = await restoring.hold(gateway, backup.moment)
    except BaseException:
        for schema in done:
            with contextlib.suppress(CommandError, psycopg.Error), _connection(urls[schema]) as connection:
                connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(schema)))
        for url, kept in aside_of.items():
            _take_back(url, kept)
        raise
    restored.aside = list(aside_of.values())
    for url in dict.fromkeys(urls.values()):
        progress("statistics for the planner", 0, 0)
        await asyncio.to_thread(_analyze, url)
    if backup.secrets and (settings.data_dir.expanduser() / "VERSION").exists():
        restored.secrets = "restored" if secret_file.copy(folder, settings.data_dir, keep=True) else "kept"
    return restored


def read(folder: Path) -> Backup:
    """The backup in a folder. Raises `CommandError` when it is none."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text("utf-8"))
        if values["format"] > FORMAT:
            raise CommandError(f"{folder} was written by a newer release ({values['release']}); restore with that one")
        return Backup(**{**values, "parts": [Part(**part) for part in values["parts"]]})
    except FileNotFoundError:
        raise CommandError(f"{folder} is no whole backup: it has no {MANIFEST}, which is written last") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CommandError(f"cannot read {path} ({error}); take another backup") from None


def require_stopped(data_dir: Path) -> None:
    """Raise `CommandError` while a stack runs on the data folder."""
    left = stack_file.read(data_dir)
    if left is not None and left.supervisor.find() is not None:
        raise CommandError(f"the stack runs on {data_dir} (process {left.supervisor.pid}); stop it before a restore")


async def _restore_part(folder: Path, part: Part, url: str, progress: Progress) -> None:
    path = folder / part.file
    with _connection(url) as connection:
        server = connection.info.server_version
    listed: list[str] = []
    await _run("pg_restore", server, None, ["--list", str(path)], listed.append, output=True)
    total = sum(" TABLE DATA " in line for line in listed)
    tables = 0

    def show(line: str = "") -> None:
        nonlocal tables
        found = _RESTORING.search(line)
        if found:
            tables += found.group(1) is not None
            progress(found.group(1) or found.group(2), tables, total)

    options = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges", str(path)]
    await _run("pg_restore", server, url, options, show)


def _put_aside(url: str) -> str:
    """Rename a database and make an empty one in its place; the new name of the old."""
    name = _name(url)
    kept = f"{name[:40]}_before_{datetime.now(UTC):%Y%m%d_%H%M%S}"
    try:
        # Nobody can rename the database that he is connected to.
        with _connection(make_conninfo(url, dbname="postgres")) as connection:
            old, new = sql.Identifier(name), sql.Identifier(kept)
            connection.execute(sql.SQL("alter database {} rename to {}").format(old, new))
            connection.execute(sql.SQL("create database {}").format(old))
    except psycopg.errors.ObjectInUse:
        raise CommandError(
            f"somebody is connected to the database {name}; stop every service before a restore"
        ) from None
    except psycopg.errors.InsufficientPrivilege:
        raise CommandError(
            f"this user may not rename the database {name} or create one; have it renamed and an empty one made"
        ) from None
    return kept


def _take_back(url: str, kept: str) -> None:
    """Undo `_put_aside`."""
    old, new = sql.Identifier(_name(url)), sql.Identifier(kept)
    with _connection(make_conninfo(url, dbname="postgres")) as connection:
        connection.execute(sql.SQL("drop database {}").format(old))
        connection.execute(sql.SQL("alter database {} rename to {}").format(new, old))


# The programs.


async def _run(
    program: str,
    server: int,
    url: str | None,
    options: Sequence[str],
    show: Callable[[str], None],
    *,
    output: bool = False,
) -> None:
    """Run one of PostgreSQL's programs to its end; `show` gets each line that it tells, or an empty one in its silence.

    Parameters: `server` the server's version number; `url` of the database, without one none is connected to; `output`
    to show standard output instead of what the program tells of its progress. Raises `CommandError` with its error.
    """
    # What is in the environment must not change what the program does, nor the language of what it tells.
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("PG", "LC_"))}
    environment["LC_ALL"] = "C"
    command = [str(_program(program, server)), *([] if output else ["--verbose"]), *options]
    if url is not None:
        parameters = conninfo_to_dict(url)
        # Others can read a command line.
        environment["PGPASSWORD"] = str(parameters.pop("password", None) or "")
        command.insert(1, f"--dbname={make_conninfo('', **parameters)}")
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE if output else asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    told = process.stdout if output else process.stderr
    assert told is not None
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    reading: asyncio.Task[bytes] | None = None
    try:
        while True:
            reading = reading or asyncio.ensure_future(told.readline())
            if not (await asyncio.wait({reading}, timeout=_POLL_SECONDS))[0]:
                show("")
                continue
            line, reading = reading.result().decode("utf-8", "replace").rstrip(), None
            if not line and told.at_eof():
                break
            tail.append(line)
            show(line)
        if await process.wait() != 0:
            raise CommandError(f"{program} failed: {_error_of(tail)}")
    finally:
        if reading is not None:
            reading.cancel()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _program(name: str, server: int) -> Path:
    """The program for a server of this version: the embedded package's, or one of this machine's.

    Raises `CommandError` when there is none.
    """
    major = server // 10_000
    with contextlib.suppress(StartError):
        # It speaks to older servers too; what it writes for a restore is understood from release 17 on.
        if 17 <= major <= VERSION and (path := programs() / name).is_file():
            return path
    found = shutil.which(name)
    if found is None:
        raise CommandError(
            f"the server is PostgreSQL {major}: install {name} of that release, so that it is on the PATH"
        )
    return Path(found)


def _error_of(lines: Iterable[str]) -> str:
    """The program's first error. What follows it may quote records."""
    errors = [line for line in lines if "error:" in line or "FATAL" in line]
    return errors[0] if errors else "no reason told"


# Details.


@contextlib.contextmanager
def _connection(url: str, *, autocommit: bool = True) -> Iterator[ThreadConnection]:
    try:
        connection = psycopg.connect(url, autocommit=autocommit, connect_timeout=CONNECT_SECONDS)
    except psycopg.OperationalError as error:
        raise CommandError(str(start_error(error))) from None
    with connection:
        yield connection


def _one(connection: ThreadConnection, query: str) -> tuple[datetime, str]:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0], row[1]


def _has_schema(url: str, schema: str) -> bool:
    with _connection(url) as connection:
        return _schema_exists(connection, schema)


def _schema_exists(connection: ThreadConnection, schema: str) -> bool:
    return connection.execute("select 1 from pg_namespace where nspname = %s", (schema,)).fetchone() is not None


def _require_schema(connection: ThreadConnection, schema: str) -> None:
    if not _schema_exists(connection, schema):
        raise CommandError(f"the database {connection.info.dbname} has no schema {schema}: there is nothing to back up")


def _analyze(url: str) -> None:
    with _connection(url) as connection:
        connection.execute("analyze")


def _name(url: str) -> str:
    with _connection(url) as connection:
        return connection.info.dbname


def _check(folder: Path, part: Part) -> None:
    path = folder / part.file
    with _file_errors(path):
        if path.stat().st_size != part.bytes or _sha256(path) != part.sha256:
            raise CommandError(f"{path} is not what was backed up: its size or checksum differs; take another backup")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CommandError(f"cannot use {path}: {error.strerror or error}; choose another, or make it usable") from None
