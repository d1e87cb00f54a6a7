"""SQL of the console: sessions, and the log of what was changed through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from psycopg.types.json import Jsonb

from infra.database import Connection

# Rows of a kind that one sign-in clears away.
_CLEARED_MAX = 1_000

_OPEN_SESSION = """
insert into smsgateway.console_session
  (session_hash, token_id, sealed_token, created_at, seen_at, expires_at)
values (%s, %s, %s, now(), now(), now() + make_interval(secs => %s))
"""

_CLEAR_SESSIONS = f"""
delete from smsgateway.console_session
where session_hash in (
  select session_hash from smsgateway.console_session where expires_at < now() limit {_CLEARED_MAX}
)
"""

_END_OLDEST = """
delete from smsgateway.console_session
where session_hash in (
  select session_hash from smsgateway.console_session where token_id = %s order by created_at desc offset %s
)
"""

_FIND_SESSION = """
select token_id, sealed_token, seen_at < now() - make_interval(secs => %(touch)s)
from smsgateway.console_session
where session_hash = %(hash)s and expires_at > now() and seen_at > now() - make_interval(secs => %(idle)s)
"""

_TOUCH_SESSION = "update smsgateway.console_session set seen_at = now() where session_hash = %s and seen_at < now()"
_END_SESSION = "delete from smsgateway.console_session where session_hash = %s"

# The row that is there already is locked and returned, so that two sends of one form follow each other.
_BEGIN_CHANGE = """
insert into smsgateway.console_audit as a
  (brand_id, audit_id, request_id, token_id, name, action, asked, reason, outcome, told, attempts, created_at)
values (%(brand)s, %(audit)s, %(request)s, %(token)s, %(name)s, %(action)s, %(asked)s, %(reason)s, 1, '{}', 1, now())
on conflict (brand_id, request_id) do update set attempts = a.attempts + 1
returning a.audit_id, a.attempts, a.outcome,
  a.token_id = %(token)s and a.action = %(action)s and a.asked = %(asked)s and a.reason = %(reason)s
"""

_END_CHANGE = """
update smsgateway.console_audit
set outcome = %s, told = %s, finished_at = now()
where brand_id = %s and audit_id = %s and outcome <> 2
"""

_CHANGE = """
select brand_id, audit_id, request_id, token_id, name, action, asked, reason, outcome, told, attempts, created_at,
       finished_at
from smsgateway.console_audit
"""
_FIND_CHANGE = f"{_CHANGE} where brand_id = %s and audit_id = %s"
_LIST_ALL = f"{_CHANGE} where audit_id < %(before)s order by audit_id desc limit %(limit)s"
_LIST_OF_BRAND = f"""
{_CHANGE} where brand_id = %(brand)s and audit_id < %(before)s order by audit_id desc limit %(limit)s
"""
# Behind every identifier.
_NEWEST = "~"


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session that goes on; `stale` when its last moment should be noted anew."""

    token_id: str
    sealed_token: bytes
    stale: bool


@dataclass(frozen=True, slots=True)
class Wish:
    """A change that somebody asks for. `asked` and `reason` are what its form said."""

    brand_id: int
    request_id: str
    token_id: str
    name: str
    action: str
    asked: Mapping[str, str]
    reason: str


@dataclass(frozen=True, slots=True)
class Begun:
    """A change in the log; `same` when an earlier send of the form, if there was one, asked for the same."""

    audit_id: str
    attempts: int
    outcome: int
    same: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the log."""

    brand_id: int
    audit_id: str
    request_id: str
    token_id: str
    name: str
    action: str
    asked: Mapping[str, str]
    reason: str
    outcome: int
    told: Mapping[str, str]
    attempts: int
    created_at: datetime
    finished_at: datetime | None


async def open_session(
    connection: Connection, session_hash: bytes, token_id: str, sealed_token: bytes, *, seconds: float, others: int
) -> None:
    """Add a session, clear away what has ended, and all of the token's but its newest `others` and this one."""
    await connection.execute(_CLEAR_SESSIONS)
    await connection.execute(_END_OLDEST, (token_id, others))
    await connection.execute(_OPEN_SESSION, (session_hash, token_id, sealed_token, seconds))


async def find_session(
    connection: Connection, session_hash: bytes, *, idle_seconds: float, touch_seconds: float
) -> SessionRow | None:
    """A session that has not ended; `stale` when it was noted more than `touch_seconds` ago."""
    cursor = await connection.execute(
        _FIND_SESSION, {"hash": session_hash, "idle": idle_seconds, "touch": touch_seconds}
    )
    row = await cursor.fetchone()
    return None if row is None else SessionRow(*row)


async def touch_session(connection: Connection, session_hash: bytes) -> None:
    """Note that its user was there."""
    await connection.execute(_TOUCH_SESSION, (session_hash,))


async def end_session(connection: Connection, session_hash: bytes) -> None:
    """Remove a session."""
    await connection.execute(_END_SESSION, (session_hash,))


async def begin_change(connection: Connection, audit_id: str, wish: Wish) -> Begun:
    """Write that a change is tried, or once more."""
    cursor = await connection.execute(
        _BEGIN_CHANGE,
        {
            "brand": wish.brand_id,
            "audit": audit_id,
            "request": wish.request_id,
            "token": wish.token_id,
            "name": wish.name,
            "action": wish.action,
            "asked": Jsonb(dict(wish.asked)),
            "reason": wish.reason,
        },
    )
    row = await cursor.fetchone()
    assert row is not None
    return Begun(*row)


async def end_change(
    connection: Connection, brand_id: int, audit_id: str, outcome: int, told: Mapping[str, str]
) -> None:
    """Write what came of a change; one that is done stays done."""
    await connection.execute(_END_CHANGE, (outcome, Jsonb(dict(told)), brand_id, audit_id))


async def find_change(connection: Connection, brand_id: int, audit_id: str) -> Change | None:
    """A change by its key."""
    row = await (await connection.execute(_FIND_CHANGE, (brand_id, audit_id))).fetchone()
    return None if row is None else Change(*row)


async def list_changes(connection: Connection, brand_id: int | None, *, before: str, limit: int) -> list[Change]:
    """Changes before a key, newest first; of one brand (0: of none), or, with None, all."""
    found = {"brand": brand_id, "before": before or _NEWEST, "limit": limit}
    cursor = await connection.execute(_LIST_ALL if brand_id is None else _LIST_OF_BRAND, found)
    return [Change(*row) for row in await cursor.fetchall()]
