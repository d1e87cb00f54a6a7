"""Aim: a backup brings back the records of one moment, into an empty database only, and holds what was not sent."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from scripts import databases
from smsbill.backup import MANIFEST, back_up, require_stopped, restore
from smsbill.failure import CommandError
from smsbill.settings import StackSettings
from smsbill.stack_file import Process, StackFile
from smsgateway.schema import DispatchState

_TABLES = """
select quote_ident(schemaname) || '.' || quote_ident(tablename) from pg_tables
where schemaname in ('costcenter', 'smsgateway') order by 1
"""
_DISPATCH = """
insert into smsgateway.dispatch
  (brand_id, dispatch_id, mode, sms_type, messages, segments, request_id, state, epoch, order_no, payment_no, call_id,
   account, submitting_at, created_at, changed_at, not_before, last_error, paused)
values (7, %s, 1, 1, 1, 1, 'r', %s, 5, 'o', 'p', 'c', 'a', now(), now(), now(), %s, %s, %s)
"""


def settings(url: str, folder: Path) -> StackSettings:
    """Settings of a stack on this database, without a Redis and without a data folder of its own."""
    return StackSettings(_env_file=None, database_url=url, data_dir=folder / "data")


def nothing(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def rows(url: str, query: str, *parameters: object) -> list[tuple[object, ...]]:
    """Rows of a statement, committed."""
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        cursor = connection.execute(query.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def contents(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table of ours."""
    return {str(name): rows(url, f"select r::text from {name} as r order by 1") for (name,) in rows(url, _TABLES)}


def fill(url: str) -> None:
    """A lane more, and a dispatch in each state, one of them parked by an error."""
    rows(url, "insert into costcenter.lane (lane_id) values (77)")
    for state in DispatchState:
        rows(url, _DISPATCH, f"d{state:d}", int(state), None, None, state is DispatchState.PAUSED)
    rows(url, _DISPATCH, "parked", int(DispatchState.QUEUED), "infinity", "an error of ours", False)


async def test_every_record_comes_back_and_what_may_be_sent_twice_is_held(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    """Aim: all tables are as they were; what was not submitted is parked and unclaimed, and nothing else is touched."""
    fill(database_url)
    before = contents(database_url)
    seen: list[tuple[str, int, int]] = []
    made = await back_up(settings(database_url, tmp_path), tmp_path / "b", progress=lambda *told: seen.append(told))
    assert any(what == "smsgateway.dispatch" for what, _, _ in seen)
    # What comes later is not in it.
    rows(database_url, "insert into costcenter.lane (lane_id) values (78)")
    found = await restore(tmp_path / "b", settings(empty_database_url, tmp_path), aside=False, progress=nothing)
    assert (found.moment, found.held, found.secrets) == (made.moment, 4, "none")
    after = contents(empty_database_url)
    name = "smsgateway.dispatch"
    assert {**after, name: None} == {**before, name: None}
    held = f"held after the restore to {made.moment}"
    query = "select dispatch_id, state, epoch, not_before = 'infinity', last_error from smsgateway.dispatch order by 1"
    assert rows(empty_database_url, query) == [
        ("d1", DispatchState.ACCEPTING, 5, True, held),
        ("d2", DispatchState.QUEUED, 5, True, held),
        ("d3", DispatchState.QUEUED, 5, True, held),
        ("d4", DispatchState.SUBMITTING, 5, None, None),
        ("d5", DispatchState.UNKNOWN, 5, None, None),
        ("d6", DispatchState.PARTIAL, 5, None, None),
        # Its batch stays paused, so it is no more than that once it is released.
        ("d7", DispatchState.QUEUED, 5, True, held),
        ("parked", DispatchState.QUEUED, 5, True, "an error of ours"),
    ]


async def test_records_are_never_overwritten(database_url: str, tmp_path: Path) -> None:
    """Aim: a database with records is refused in one line and stays as it is; --aside keeps it under another name."""
    fill(database_url)
    here = settings(database_url, tmp_path)
    await back_up(here, tmp_path / "b", progress=nothing)
    rows(database_url, "insert into costcenter.lane (lane_id) values (78)")
    before = contents(database_url)
    with pytest.raises(CommandError, match="not overwritten"):
        await restore(tmp_path / "b", here, aside=False, progress=nothing)
    assert contents(database_url) == before
    with psycopg.connect(database_url, connect_timeout=10), pytest.raises(CommandError, match="stop every service"):
        await restore(tmp_path / "b", here, aside=True, progress=nothing)
    found = await restore(tmp_path / "b", here, aside=True, progress=nothing)
    (kept,) = found.aside
    assert kept.startswith(f"{conninfo_to_dict(database_url)['dbname']}_before_")
    lanes = "select count(*) from costcenter.lane where lane_id = 78"
    assert rows(database_url, lanes) == [(0,)]
    assert rows(databases.url_of(database_url, kept), lanes) == [(1,)]
    databases.drop(database_url, kept)


def _cut(folder: Path) -> None:
    path = folder / "costcenter.dump"
    path.write_bytes(path.read_bytes()[:-1])


def _flip(folder: Path) -> None:
    path = folder / "smsgateway.dump"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _unfinished(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def _newer(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


async def test_a_damaged_backup_changes_nothing(database_url: str, empty_database_url: str, tmp_path: Path) -> None:
    """Aim: what is not whole is found before the database is touched."""
    await back_up(settings(database_url, tmp_path), tmp_path / "b", progress=nothing)
    damages: dict[Callable[[Path], None], str] = {
        _cut: "checksum differs",
        _flip: "checksum differs",
        _unfinished: "no whole backup",
        _newer: "newer release",
    }
    for damage, said in damages.items():
        folder = tmp_path / damage.__name__
        shutil.copytree(tmp_path / "b", folder)
        damage(folder)
        with pytest.raises(CommandError, match=said):
            await restore(folder, settings(empty_database_url, tmp_path), aside=False, progress=nothing)
        assert contents(empty_database_url) == {}, damage


async def test_a_restore_that_fails_leaves_nothing_of_itself(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    """Aim: when the second dump cannot be restored, the first is taken back."""
    made = await back_up(settings(database_url, tmp_path), tmp_path / "b", progress=nothing)
    # The ledger's place is taken by the other dump: whole by its checksum, and in the way of the one before it.
    first = made.parts[0]
    manifest = json.loads((tmp_path / "b" / MANIFEST).read_text())
    manifest["parts"][1] |= {"file": first.file, "bytes": first.bytes, "sha256": first.sha256}
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CommandError, match="pg_restore failed"):
        await restore(tmp_path / "b", settings(empty_database_url, tmp_path), aside=False, progress=nothing)
    assert contents(empty_database_url) == {}


async def test_a_backup_that_fails_leaves_no_folder(empty_database_url: str, tmp_path: Path) -> None:
    """Aim: without our schemas there is nothing to back up, and a folder with something in it is left alone."""
    with pytest.raises(CommandError, match="nothing to back up"):
        await back_up(settings(empty_database_url, tmp_path), tmp_path / "b", progress=nothing)
    assert not (tmp_path / "b").exists()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine").touch()
    with pytest.raises(CommandError, match="not empty"):
        await back_up(settings(empty_database_url, tmp_path), tmp_path / "c", progress=nothing)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["mine"]


def test_a_running_stack_is_not_restored_under_its_feet(tmp_path: Path) -> None:
    """Aim: while the data folder's supervisor lives, a restore is refused; one that was killed is no hindrance."""
    me = Process.of("up", os.getpid())
    assert me is not None
    StackFile(supervisor=me).write(tmp_path)
    with pytest.raises(CommandError, match="stop it before a restore"):
        require_stopped(tmp_path)
    StackFile(supervisor=Process("up", me.pid, me.created - 1)).write(tmp_path)
    require_stopped(tmp_path)
