"""Sessions: what a cookie's secret opens.

The cookie holds 256 random bits. All else is derived from them: the key of the row, the key that the token is sealed
with, and the token that forms carry against forgery. The table holds none of the three but the first, so whoever reads
it can neither sign in nor read a token.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass

from infra.authorization import Authenticator, Principal
from infra.database import Database
from infra.errors import Refusal
from smsgateway.settings import Settings
from smsgateway.store import console as store

_NONCE_BYTES = 12
# A secret of ours has 43 characters; what is longer is not looked at.
_SECRET_CHARACTERS_MAX = 64
# The last moment of a session is written this many times within its idle limit, not with every page.
_TOUCHES = 30


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who is signed in: `token` is what the services are called with, `csrf` what forms must carry."""

    principal: Principal
    token: str
    csrf: str
    session_hash: bytes


class Sessions:
    """Opens, finds and ends sessions.

    Parameters: `authenticator` says what a token may do; how long it keeps that is how long a revoked token's sessions
    go on.
    """

    def __init__(self, database: Database, authenticator: Authenticator, settings: Settings) -> None:
        self._database = database
        self._authenticator = authenticator
        self._settings = settings

    async def open(self, token: str) -> tuple[str, Session]:
        """A new session of a token, and the secret for its cookie. Raises UNAUTHENTICATED for a token that does not
        hold, UNAVAILABLE when nobody can tell, and the database's errors.
        """
        principal = await self._authenticator.authenticate(f"Bearer {token}")
        secret = secrets.token_urlsafe(32)
        session = _session(secret, principal, token)
        async with self._database.connection() as connection:
            await store.open_session(
                connection,
                session.session_hash,
                principal.token_id,
                _seal(secret, token),
                seconds=self._settings.console_session_seconds,
                others=self._settings.console_sessions_max - 1,
            )
        return secret, session

    async def find(self, secret: str, *, by_user: bool) -> Session | None:
        """The session of a cookie; None when it has ended, its token with it, or was never there.

        Parameters: `by_user` whether a person asks, not a page that refreshes itself. Raises UNAVAILABLE and the
        database's errors.
        """
        if not secret or len(secret) > _SECRET_CHARACTERS_MAX or not secret.isascii():
            return None
        session_hash = _derived(secret, b"row")
        idle_seconds = self._settings.console_idle_seconds
        async with self._database.statement() as connection:
            row = await store.find_session(
                connection, session_hash, idle_seconds=idle_seconds, touch_seconds=idle_seconds / _TOUCHES
            )
        token = None if row is None else _unseal(secret, row.sealed_token)
        if row is None or token is None:
            return None
        try:
            principal = await self._authenticator.authenticate(f"Bearer {token}")
        except Refusal as refusal:
            if refusal.reason != "UNAUTHENTICATED":
                raise
            await self.end(session_hash)
            return None
        if by_user and row.stale:
            async with self._database.statement() as connection:
                await store.touch_session(connection, session_hash)
        return _session(secret, principal, token)

    async def end(self, session_hash: bytes) -> None:
        """End a session. Raises the database's errors."""
        async with self._database.statement() as connection:
            await store.end_session(connection, session_hash)


def csrf_token(secret: str) -> str:
    """What forms of a session must carry; of no use for anything else."""
    return _derived(secret, b"csrf").hex()


def _session(secret: str, principal: Principal, token: str) -> Session:
    return Session(principal, token, csrf_token(secret), _derived(secret, b"row"))


def _derived(secret: str, purpose: bytes) -> bytes:
    return hmac.digest(secret.encode(), b"smsbill console " + purpose, hashlib.sha256)


def _seal(secret: str, token: str) -> bytes:
    # Slow to import, and not needed before somebody signs in.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(_derived(secret, b"seal")).encrypt(nonce, token.encode(), _derived(secret, b"row"))


def _unseal(secret: str, sealed: bytes) -> str | None:
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    key = AESGCM(_derived(secret, b"seal"))
    try:
        return key.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _derived(secret, b"row")).decode()
    except (InvalidTag, ValueError):
        # Somebody has written to the table.
        return None
