"""The embedded PostgreSQL and Redis: start, keep data, refuse, take over, survive what goes wrong."""

# ruff: noqa: ASYNC220, ASYNC240 (tests look at folders and start programs with plain calls)

import asyncio
import contextlib
import errno
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis.asyncio
import sqlalchemy
import uvloop

from infra import embedded_account, embedded_process
from infra.data_folder import FORMAT
from infra.embedded import (
    DataFolderInUse,
    DataFolderTooNew,
    EmbeddedError,
    EmbeddedServers,
    default_data_dir,
)

ROOT = os.geteuid() == 0
SERVERS = ("postgres", "valkey-server")
SECONDS = 60

pytestmark = pytest.mark.timeout(SECONDS)

# A program that starts the servers and reports; told so, it first becomes an ordinary user, with all it needs
# already imported: that user may not be able to read the interpreter's files.
PROGRAM = """
import encodings.idna, json, os, secrets, sys
import psycopg, redis
from infra.embedded import EmbeddedServers, default_data_dir
uid = int(sys.argv[1])
if uid:
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
servers = EmbeddedServers(default_data_dir())
servers.start_blocking()
with psycopg.connect(servers.database_url, autocommit=True) as connection:
    version = connection.execute("select current_setting('server_version_num')::int / 10000").fetchone()[0]
with redis.Redis.from_url(servers.redis_url) as client:
    client.set("whose", os.getuid())
    whose = int(client.get("whose"))
print(json.dumps({"uid": os.getuid(), "version": version, "whose": whose, "pids": [servers.postgres_pid,
    servers.redis_pid]}), flush=True)
sys.stdin.read()
servers.stop_blocking()
print("stopped", flush=True)
"""


def remove(folder: Path) -> None:
    """Remove a data folder with the servers that a failed test has left running in it."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() in SERVERS and Path(process.cwd()).is_relative_to(folder):
                process.kill()
    for run in folder.rglob("run"):
        if run.is_symlink():
            shutil.rmtree(os.path.realpath(run), ignore_errors=True)
    shutil.rmtree(folder)


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder for data folders. Not `tmp_path`: every pytest that starts closes that for other users."""
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="smsbill-test-")))
    yield folder
    remove(folder)


@pytest.fixture
def data_dir(base: Path) -> Path:
    return base / "data"


async def query(url: str, statement: str) -> object:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=10) as connection:
        cursor = await connection.execute(statement.encode())
        if cursor.description is None:
            return None
        row = await cursor.fetchone()
        return row[0] if row else None


def client(url: str) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(url, socket_timeout=10, decode_responses=True)


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def start_program(home: Path, uid: int = 0) -> subprocess.Popen[str]:
    environment = os.environ | {"XDG_DATA_HOME": str(home), "HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(uid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def read_report(program: subprocess.Popen[str]) -> dict[str, object]:
    assert program.stdout
    assert program.stderr
    line = program.stdout.readline()
    assert line, program.stderr.read()
    report: dict[str, object] = json.loads(line)
    return report


def pids(report: dict[str, object]) -> list[int]:
    found = report["pids"]
    assert isinstance(found, list)
    return found


async def test_starts_from_nothing_and_keeps_data(data_dir: Path) -> None:
    """A fresh folder gives a PostgreSQL 18 and a Redis; what they took is there after stop and start."""
    async with EmbeddedServers(data_dir) as servers:
        assert str(await query(servers.database_url, "select version()")).startswith("PostgreSQL 18")
        await query(servers.database_url, "create table kept as select 42 as answer")
        async with client(servers.redis_url) as connection:
            await connection.set("kept", "forty-two")
            assert await connection.get("kept") == "forty-two"
        first = (servers.postgres_pid, servers.redis_pid)
    assert (servers.postgres_pid, servers.redis_pid) == (None, None)
    assert not any(pid and alive(pid) for pid in first)

    async with EmbeddedServers(data_dir) as servers:
        assert await query(servers.database_url, "select answer from kept") == 42
        async with client(servers.redis_url) as connection:
            assert await connection.get("kept") == "forty-two"


async def test_is_durable_and_private(data_dir: Path) -> None:
    """Commits reach the disk; nobody else sees the folder; no TCP; our role is an ordinary one."""
    async with EmbeddedServers(data_dir) as servers:
        for name, value in (("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on")):
            assert await query(servers.database_url, f"select current_setting('{name}')") == value
        superuser = "select rolsuper from pg_roles where oid = user::regrole"
        assert await query(servers.database_url, superuser) is False
        await query(servers.database_url, "create database another")
        async with client(servers.redis_url) as connection:
            for name, value in (
                ("appendonly", "yes"),
                ("appendfsync", "everysec"),
                ("maxmemory-policy", "noeviction"),
            ):
                assert (await connection.config_get(name))[name] == value
        for pid in (servers.postgres_pid, servers.redis_pid):
            assert pid is not None
            assert psutil.Process(pid).net_connections(kind="inet") == []
        assert data_dir.stat().st_mode & 0o067 == 0
        for path in (
            data_dir / "postgres",
            data_dir / "redis",
            data_dir / "run/postgres",
            data_dir / "run/redis",
        ):
            assert path.stat().st_mode & 0o077 == 0
        assert (data_dir / "run/redis/redis.sock").stat().st_mode & 0o777 == 0o700


async def test_runs_in_sessions_of_its_own(data_dir: Path) -> None:
    """A Ctrl-C in the terminal goes to the group of the foreground: the servers must not be in it."""
    async with EmbeddedServers(data_dir) as servers:
        for pid in (servers.postgres_pid, servers.redis_pid):
            assert pid is not None
            assert os.getsid(pid) == pid
            assert os.getpgid(pid) == pid


async def test_urls_are_for_sqlalchemy_too(data_dir: Path) -> None:
    """The URL with +psycopg is one that SQLAlchemy understands."""
    async with EmbeddedServers(data_dir, redis=False) as servers:
        url = servers.database_url.replace("postgresql:", "postgresql+psycopg:", 1)
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            assert connection.scalar(sqlalchemy.text("select current_database()")) == "smsbill"
        engine.dispose()
        with pytest.raises(EmbeddedError, match="not started"):
            _ = servers.redis_url
    with pytest.raises(EmbeddedError, match="not started"):
        _ = servers.database_url


def test_needs_no_event_loop_and_outlives_one(data_dir: Path) -> None:
    """One pair of servers serves several loops, uvloop's included, as in a fixture of a whole session."""

    async def ask() -> object:
        return await query(servers.database_url, "select 1")

    with EmbeddedServers(data_dir, redis=False) as servers:
        assert asyncio.run(ask()) == 1
        assert uvloop.run(ask()) == 1
        uvloop.run(servers.restart_postgres())
        assert asyncio.run(ask()) == 1


async def test_second_start_on_a_folder_is_refused(data_dir: Path) -> None:
    """The second gets one line with the first one's pid, the first is not disturbed."""
    async with EmbeddedServers(data_dir, postgres=False) as servers:
        with pytest.raises(DataFolderInUse) as refused:
            await EmbeddedServers(data_dir).start()
        assert f"process {os.getpid()};" in str(refused.value)
        assert str(data_dir) in str(refused.value)
        assert "\n" not in str(refused.value)
        with pytest.raises(EmbeddedError, match="started already"):
            await servers.start()
        async with client(servers.redis_url) as connection:
            assert await connection.ping()
    async with EmbeddedServers(data_dir, postgres=False) as servers:
        assert servers.redis_pid
    await servers.stop()  # harmless when stopped


async def test_takes_over_after_a_crash(base: Path) -> None:
    """Servers whose program was killed go on; the next start works with the same processes and stops them."""
    program = await asyncio.to_thread(start_program, base)
    with program:
        left = pids(await asyncio.to_thread(read_report, program))
        program.kill()
    assert all(alive(pid) for pid in left)
    servers = EmbeddedServers(base / "smsbill")
    await servers.start()
    assert [servers.postgres_pid, servers.redis_pid] == left
    assert await query(servers.database_url, "select 1") == 1
    async with client(servers.redis_url) as connection:
        assert await connection.get("whose") == str(os.getuid())
    await servers.stop()
    assert not any(alive(pid) for pid in left)


async def test_takes_over_with_the_settings_of_now(base: Path) -> None:
    """A setting that was changed since the crash holds: the server is restarted for it."""
    program = await asyncio.to_thread(start_program, base)
    with program:
        left = pids(await asyncio.to_thread(read_report, program))
        program.kill()
    async with EmbeddedServers(base / "smsbill", max_connections=50) as servers:
        assert servers.postgres_pid != left[0]
        assert await query(servers.database_url, "show max_connections") == "50"


async def test_replaces_a_server_that_does_not_answer(base: Path) -> None:
    """What was left running but hangs, or lost its socket, is stopped and started anew, with its data."""
    program = await asyncio.to_thread(start_program, base)
    with program:
        left = pids(await asyncio.to_thread(read_report, program))
        program.kill()
    (base / "smsbill/run/postgres/.s.PGSQL.5432").unlink()
    os.kill(left[1], signal.SIGSTOP)
    async with EmbeddedServers(base / "smsbill", start_timeout_seconds=12) as servers:
        assert await query(servers.database_url, "select 1") == 1
        async with client(servers.redis_url) as connection:
            assert await connection.get("whose") == str(os.getuid())
    assert not any(alive(pid) for pid in left)


async def test_is_not_fooled_by_remains(data_dir: Path) -> None:
    """Pid files with the number of another living program, dead sockets, half a cluster: no matter."""
    async with EmbeddedServers(data_dir) as servers:
        await query(servers.database_url, "create table kept as select 42 as answer")
        lines = (data_dir / "postgres/postmaster.pid").read_text().splitlines()
        sockets = [data_dir / "run/postgres/.s.PGSQL.5432", data_dir / "run/redis/redis.sock"]
        old = (servers.postgres_pid, servers.redis_pid)
        await servers.kill_postgres()
        await servers.kill_redis()
        assert all(path.is_socket() for path in sockets)
    # Of the user that PostgreSQL runs as: of another it would see by itself that it cannot be a PostgreSQL.
    owner = (data_dir / "postgres").stat().st_uid
    with subprocess.Popen(["sleep", str(SECONDS)], user=owner if ROOT else None) as other:
        pid_file = "\n".join([str(other.pid), *lines[1:], ""])
        (data_dir / "postgres/postmaster.pid").write_text(pid_file)
        (data_dir / "run/postgres/.s.PGSQL.5432.lock").write_text(pid_file)
        (data_dir / "redis/redis.pid").write_text(f"{other.pid}\n")
        (data_dir / "postgres.new-half").mkdir()
        async with EmbeddedServers(data_dir) as servers:
            assert servers.postgres_pid not in (*old, other.pid, None)
            assert servers.redis_pid not in (*old, other.pid, None)
            assert await query(servers.database_url, "select answer from kept") == 42
        assert other.poll() is None
        other.kill()


async def test_ends_what_a_killed_server_has_left(data_dir: Path) -> None:
    """A session of a PostgreSQL that was killed would keep a new one from starting: it is ended."""
    async with EmbeddedServers(data_dir, redis=False) as servers:
        async with await psycopg.AsyncConnection.connect(servers.database_url) as connection:
            session = connection.info.backend_pid
            os.kill(session, signal.SIGSTOP)
            await servers.kill_postgres()
            assert alive(session)
            await servers.start_postgres()
            assert not alive(session)
        assert await query(servers.database_url, "select 1") == 1


async def test_survives_failures_of_its_servers(data_dir: Path) -> None:
    """What was committed outlasts an immediate restart and SIGKILL, under the same URLs."""
    async with EmbeddedServers(data_dir) as servers:
        urls = (servers.database_url, servers.redis_url)
        await query(urls[0], "create table kept (answer int)")
        async with client(urls[1]) as connection:
            for number in range(3):
                await query(urls[0], f"insert into kept values ({number})")
                await connection.rpush("kept", number)
                if number == 0:
                    await servers.restart_postgres(mode="immediate")
                    await servers.stop_redis()
                else:
                    await servers.kill_postgres()
                    await servers.kill_redis()
                    assert (servers.postgres_pid, servers.redis_pid) == (None, None)
                    await servers.start_postgres()
                await servers.start_redis()
                assert (servers.database_url, servers.redis_url) == urls
                assert await query(urls[0], "select count(*) from kept") == number + 1
                assert await connection.llen("kept") == number + 1
        with pytest.raises(EmbeddedError, match="runs already"):
            await servers.start_redis()


async def test_stops_what_does_not_want_to(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs is killed when its time is over, and the folder is free again."""
    monkeypatch.setattr(embedded_process, "_DEATH_SECONDS", 1.0)
    servers = EmbeddedServers(data_dir, stop_timeout_seconds=0.3)
    await servers.start()
    left = (servers.postgres_pid, servers.redis_pid)
    for pid in left:
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
    await servers.stop()
    assert not any(pid and alive(pid) for pid in left)
    async with EmbeddedServers(data_dir) as servers:
        assert await query(servers.database_url, "select 1") == 1


async def test_cancelled_start_leaves_nothing(data_dir: Path) -> None:
    """Who gives up waiting for a start finds no server and no lock afterwards."""
    servers = EmbeddedServers(data_dir)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await servers.start()
    assert (servers.postgres_pid, servers.redis_pid) == (None, None)
    assert not list(data_dir.glob("postgres*"))
    async with servers:
        assert await query(servers.database_url, "select 1") == 1


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (f"{FORMAT + 1}\n", DataFolderTooNew, f"has format {FORMAT + 1}"),
        ("rubbish", EmbeddedError, "holds no format number"),
        ("", EmbeddedError, "holds no format number"),
    ],
)
async def test_unknown_format_is_refused(
    data_dir: Path,
    content: str,
    error: type[EmbeddedError],
    words: str,
) -> None:
    """A folder of a newer version, or one that says nothing understandable, is left as it is."""
    data_dir.mkdir(mode=0o700)
    (data_dir / "VERSION").write_text(content)
    with pytest.raises(error, match=words):
        await EmbeddedServers(data_dir).start()
    assert {path.name for path in data_dir.iterdir()} == {"VERSION", "lock"}


async def test_foreign_folder_is_refused(data_dir: Path) -> None:
    """A folder with other files in it, such as a home given by mistake, is left as it is."""
    data_dir.mkdir()
    data_dir.chmod(0o755)
    (data_dir / "letter.txt").write_text("Dear")
    with pytest.raises(EmbeddedError, match="not a data folder"):
        await EmbeddedServers(data_dir).start()
    assert data_dir.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in data_dir.iterdir()] == ["letter.txt"]


async def test_other_postgres_version_is_refused(data_dir: Path) -> None:
    """Files of another PostgreSQL give a line that says so; Redis is not left running."""
    async with EmbeddedServers(data_dir, postgres=False):
        pass
    (data_dir / "postgres").mkdir(mode=0o700)
    (data_dir / "postgres/PG_VERSION").write_text("17\n")
    servers = EmbeddedServers(data_dir)
    with pytest.raises(EmbeddedError, match="written by PostgreSQL 17"):
        await servers.start()
    assert servers.redis_pid is None


@pytest.mark.parametrize(
    "name", ["a" * 120 + "/" + "b" * 120, "with, 'comma' \"quotes\" 100% & ünï?#", "with \"'% ü?#&"]
)
async def test_any_path_works(base: Path, name: str) -> None:
    """Paths too long for a socket, or with characters special to URLs and settings, work; no rest stays."""
    data_dir = base / name
    async with EmbeddedServers(data_dir) as servers:
        assert await query(servers.database_url, "select 1") == 1
        async with client(servers.redis_url) as connection:
            assert await connection.incr("one") == 1
        sockets = (data_dir / "run").resolve()
        assert sockets.stat().st_uid == os.getuid()
        assert sockets.stat().st_mode & 0o066 == 0
        await servers.restart_postgres()
        assert await query(servers.database_url, "select 1") == 1
    assert sockets == data_dir / "run" or not sockets.exists()


async def test_unusable_folder_gives_one_line(base: Path) -> None:
    """Where the folder cannot be made, the error names it and what to do."""
    (base / "file").write_text("")
    with pytest.raises(EmbeddedError) as refused:
        await EmbeddedServers(base / "file/data").start()
    assert str(base / "file/data") in str(refused.value)
    assert "Not a directory" in str(refused.value)
    assert "choose another" in str(refused.value)


async def test_failed_start_tells_what_the_server_said(data_dir: Path) -> None:
    """When a server refuses to start, the error is one line with its reason, and nothing stays behind."""
    servers = EmbeddedServers(data_dir, shared_buffers="much")
    with pytest.raises(EmbeddedError) as refused:
        await servers.start()
    assert "\n" not in str(refused.value)
    assert 'invalid value for parameter "shared_buffers": "much"' in str(refused.value)
    assert str(data_dir / "log/postgres.log") in str(refused.value)
    assert "shared_buffers" in refused.value.log_tail
    assert servers.redis_pid is None
    async with EmbeddedServers(data_dir) as servers:
        assert await query(servers.database_url, "select 1") == 1


async def test_damaged_redis_data_tell_what_the_server_said(data_dir: Path) -> None:
    """An append-only file that Redis cannot read gives its words, not a silent loss of data."""
    async with EmbeddedServers(data_dir, postgres=False) as servers, client(servers.redis_url) as connection:
        await connection.set("a", "b")
    next((data_dir / "redis/appendonlydir").glob("*.incr.aof")).write_bytes(b"rubbish\r\n" * 9)
    with pytest.raises(EmbeddedError, match="Bad file format"):
        await EmbeddedServers(data_dir, postgres=False).start()


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The XDG data home counts when it is an absolute path, else ~/.local/share."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "")
    assert default_data_dir() == tmp_path / ".local/share/smsbill"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_data_dir() == tmp_path / ".local/share/smsbill"
    monkeypatch.setenv("XDG_DATA_HOME", "/elsewhere")
    assert default_data_dir() == Path("/elsewhere/smsbill")


@pytest.mark.skipif(not ROOT, reason="needs root to become two users; the other tests run as an ordinary one")
async def test_two_ordinary_users_at_once(base: Path) -> None:
    """Two users of one machine, with one temporary folder, have servers of their own."""
    base.chmod(0o711)
    uids = [entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid != 0][:2]
    programs = []
    for uid in uids:
        home = base / str(uid)
        home.mkdir(mode=0o700)
        os.chown(home, uid, uid)
        programs.append(await asyncio.to_thread(start_program, home, uid))
    for uid, program in zip(uids, programs, strict=True):
        report = await asyncio.to_thread(read_report, program)
        assert (report["uid"], report["version"], report["whose"]) == (uid, 18, uid)
        assert [psutil.Process(pid).uids().effective for pid in pids(report)] == [uid, uid]
    for program in programs:
        out, errors = await asyncio.to_thread(program.communicate, timeout=SECONDS / 2)
        assert (program.returncode, out.strip(), errors) == (0, "stopped", "")


@pytest.mark.skipif(not ROOT, reason="needs root: only root has PostgreSQL run under another account")
@pytest.mark.parametrize("acls", [True, False])
async def test_root_opens_nothing_but_the_way(
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    acls: bool,
) -> None:
    """As root PostgreSQL runs under an account of its own, which may pass closed folders, not look in."""
    if not acls:

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOTSUP, "no access control lists here")

        monkeypatch.setattr(os, "setxattr", refuse)
    closed = base / "closed"
    closed.mkdir(mode=0o700)
    async with EmbeddedServers(closed / "data") as servers:
        assert await query(servers.database_url, "select 1") == 1
        assert servers.postgres_pid is not None
        assert psutil.Process(servers.postgres_pid).uids().real != 0
        assert psutil.Process(servers.postgres_pid).gids().real != 0
        assert closed.stat().st_mode & 0o777 == (0o710 if acls else 0o701)
    account = embedded_account.server_account(closed / "data/postgres")
    assert account is not None
    # Files that root has restored from a copy belong to root: they are given back.
    for path in [closed / "data/postgres", *(closed / "data/postgres").rglob("*")]:
        os.chown(path, 0, 0)
    async with EmbeddedServers(closed / "data") as servers:
        assert await query(servers.database_url, "select 1") == 1


@pytest.mark.skipif(not ROOT, reason="needs root to make a folder of another user")
async def test_root_keeps_out_of_another_users_folder(data_dir: Path) -> None:
    """With sudo on a user's folder: root would leave files there that the user cannot read, so it refuses."""
    data_dir.mkdir(mode=0o700)
    (data_dir / "VERSION").write_text(f"{FORMAT}\n")
    os.chown(data_dir / "VERSION", 65534, 65534)
    with pytest.raises(EmbeddedError, match="user with the id 65534"):
        await EmbeddedServers(data_dir).start()
