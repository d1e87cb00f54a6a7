"""Who may call what: tokens, roles, brands.

A caller sends `authorization: Bearer <secret>`. Only the SHA-256 of a secret is stored or travels between services.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import grpc

from infra.errors import Refusal


class Role(enum.IntEnum):
    """What a token may do; the numbers are those of `costcenter.v1.Role`."""

    VIEWER = 1
    SENDER = 2
    BILLER = 3
    FINANCE = 4
    ADMIN = 5
    OPERATOR = 6


# What each role includes beyond itself.
INCLUDES: dict[Role, frozenset[Role]] = {
    Role.VIEWER: frozenset({Role.VIEWER}),
    Role.SENDER: frozenset({Role.SENDER, Role.VIEWER}),
    Role.BILLER: frozenset({Role.BILLER}),
    Role.FINANCE: frozenset({Role.FINANCE, Role.VIEWER}),
    Role.ADMIN: frozenset(Role),
    Role.OPERATOR: frozenset({Role.OPERATOR, Role.VIEWER}),
}

ANY_TOKEN: frozenset[Role] = frozenset()


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of a token. `brand_ids` is None for a token of all brands; `name` says what the token is for."""

    token_id: str
    roles: frozenset[Role]
    brand_ids: frozenset[int] | None
    name: str = ""

    def may(self, role: Role) -> bool:
        """Whether a role of the token includes `role`."""
        return role in self.roles

    def require_brand(self, brand_id: int) -> None:
        """Raise PERMISSION_DENIED (reason BRAND_NOT_ALLOWED) unless the token holds for the brand."""
        if self.brand_ids is not None and brand_id not in self.brand_ids:
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                "BRAND_NOT_ALLOWED",
                f"the token does not hold for brand {brand_id}",
                metadata={"brand_id": str(brand_id)},
            )

    def require_all_brands(self) -> None:
        """Raise PERMISSION_DENIED (reason BRAND_NOT_ALLOWED) unless the token holds for all brands."""
        if self.brand_ids is not None:
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                "BRAND_NOT_ALLOWED",
                "this call needs a token that holds for all brands",
            )


def expand(roles: Iterable[int]) -> frozenset[Role]:
    """The roles of a token with all that they include."""
    return frozenset().union(*(INCLUDES[Role(role)] for role in roles))


def secret_hash(secret: str) -> bytes:
    """SHA-256 of a secret: secrets are 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(secret.encode()).digest()


def new_secret() -> str:
    """A new secret of 256 random bits."""
    return "sb_" + secrets.token_urlsafe(32)


_principal: ContextVar[Principal] = ContextVar("principal")


def current_principal() -> Principal:
    """The caller of the RPC that is being served."""
    return _principal.get()


def set_principal(principal: Principal) -> None:
    """Bind the caller to the RPC that is being served; the server's interceptor does."""
    _principal.set(principal)


def unauthenticated(message: str) -> Refusal:
    """UNAUTHENTICATED."""
    return Refusal(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", message)


Lookup = Callable[[bytes], Awaitable[Principal | None]]


class Authenticator:
    """Turns an authorization header into a principal.

    Parameters: `lookup` finds the principal of a secret's hash, or None; `keep_seconds` how long an answer is kept, so
    how long a revoked token goes on to work; `keep_max` answers kept at most.
    """

    def __init__(self, lookup: Lookup, *, keep_seconds: float, keep_max: int = 10_000) -> None:
        self._lookup = lookup
        self._keep_seconds = keep_seconds
        self._keep_max = keep_max
        self._kept: OrderedDict[str, tuple[float, Principal | None]] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[Principal | None]] = {}

    async def authenticate(self, header: str | None) -> Principal:
        """Return the principal. Raises UNAUTHENTICATED without a header or for an unknown, revoked or ended token."""
        if header is None:
            raise unauthenticated("send the metadata `authorization: Bearer <token>`")
        kept = self._kept.get(header)
        if kept is not None and kept[0] > time.monotonic():
            principal = kept[1]
        else:
            principal = await self._find(header)
        if principal is None:
            raise unauthenticated("the token is unknown, revoked or ended; ask an admin for a new one")
        return principal

    async def _find(self, header: str) -> Principal | None:
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise unauthenticated("send the metadata `authorization: Bearer <token>`")
        task = self._under_way.get(header)
        if task is None:
            # One look-up for all callers that come with the same token meanwhile.
            task = asyncio.ensure_future(self._lookup(secret_hash(secret)))
            self._under_way[header] = task
            task.add_done_callback(partial(self._looked_up, header))
        principal = await asyncio.shield(task)
        self._kept[header] = (time.monotonic() + self._keep_seconds, principal)
        self._kept.move_to_end(header)
        while len(self._kept) > self._keep_max:
            self._kept.popitem(last=False)
        return principal

    def _looked_up(self, header: str, task: asyncio.Task[Principal | None]) -> None:
        del self._under_way[header]
        if not task.cancelled():
            # Whoever waited may be gone: an error that nobody takes is not one to complain of.
            task.exception()
