"""Requests to receivers of webhooks, whose addresses others choose: they must not lead into our own networks.

The guard stands where the connection is made: a name is resolved once, every address that it has is judged, and the
connection goes to just those, so a name that leads elsewhere the next moment gains nothing. Redirects are not followed,
and of an answer only the status counts; its body is read to a bound.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from smsgateway.carriers.http_calls import HttpAnswer, HttpCalls, HttpLimits, describe
from smsgateway.webhooks import is_public_address, is_public_host

_ANSWER_BYTES_MAX: Final = 4_096
_IDLE_CONNECTION_S: Final = 15.0
GONE: Final = 410
"""The receiver wants no more of it, by the specification."""
_REFUSED_FOR_CONTENT: Final = frozenset({400, 413, 415, 422})
_RETRY_AFTER_STATUSES: Final = frozenset({429, 503})


class ForbiddenAddress(OSError):  # noqa: N818 - named for what it says
    """A receiver's name leads to an address that is not to be called."""


class GuardedResolver(AbstractResolver):
    """Resolves names and refuses those of which any address is not public."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `AbstractResolver`. Raises `OSError`, `ForbiddenAddress` among them."""
        found = await self._inner.resolve(host, port, family)
        if not all(is_public_address(each["host"]) for each in found):
            raise ForbiddenAddress("the name leads to an address that is not public")
        return found

    async def close(self) -> None:
        """See `AbstractResolver`."""
        await self._inner.close()


class WebhookCalls:
    """Requests to receivers.

    Parameters: `timeout_s` for a whole request; `connections_max` at a time; `private_allowed` whether addresses that
    are not public may be called.
    """

    def __init__(self, *, timeout_s: float, connections_max: int, private_allowed: bool) -> None:
        self._private_allowed = private_allowed
        limits = HttpLimits(
            connect_timeout_s=timeout_s,
            total_timeout_s=timeout_s,
            connections_max=connections_max,
            idle_connection_s=_IDLE_CONNECTION_S,
        )
        self._calls = HttpCalls(limits, resolver=None if private_allowed else GuardedResolver)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> HttpAnswer:
        """Make a request, once. Raises what `told` describes."""
        if not self._private_allowed and not is_public_host(urlsplit(url).hostname or ""):
            # A literal address is not resolved, so the resolver does not see it.
            raise ForbiddenAddress("the address is not public")
        return await self._calls.request("POST", url, headers=headers, body=body, bytes_max=_ANSWER_BYTES_MAX)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._calls.aclose()


def told(error: Exception) -> str:
    """Why a request failed, for operators."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ForbiddenAddress):
            return f"address refused: {cause.args[-1]}"
        cause = getattr(cause, "os_error", None) or cause.__cause__
    return describe(error)


def is_refused_for_content(answer: HttpAnswer) -> bool:
    """Whether an answer is about what the request held, so that fewer events may be taken where many were not."""
    return answer.status in _REFUSED_FOR_CONTENT


def wanted_wait_s(answer: HttpAnswer) -> float:
    """Seconds that the receiver wants to be left alone; 0: it did not say."""
    return answer.retry_after_s or 0.0 if answer.status in _RETRY_AFTER_STATUSES else 0.0
