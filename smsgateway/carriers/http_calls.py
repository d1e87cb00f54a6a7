"""Calls to carriers over HTTP, and what is sure about one whose answer says nothing of its own.

No carrier is known to have an idempotent send, so a request is made once: no redirect is followed, no lost connection
tried again. What the carrier itself says is for its adapter to judge; beside that

* no connection (refused, no such host, TLS failed, none free in time): no byte of the request left → RETRY;
* HTTP 429 → RETRY; a moved or forbidden address (301, 307, 308, 401, 403, 404, 405, 407) → STOP_ACCOUNT, because the
  server says that it did not take the request and nothing but a change of settings can help;
* everything else (no answer in time, connection lost, other statuses) → UNKNOWN.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import orjson
from aiohttp.abc import AbstractResolver

from infra import tracing
from smsgateway.carriers.base import CallOutcome, Verdict
from smsgateway.metrics import HTTP_ODD

NOT_TAKEN_STATUSES: Final = frozenset({301, 307, 308, 401, 403, 404, 405, 407})
TOO_MANY_REQUESTS: Final = 429
ANSWER_BYTES_MAX: Final = 65_536
RETRY_AFTER_S_MAX: Final = 3_600.0

JSON_HEADERS: Final[Mapping[str, str]] = {
    "Content-Type": "application/json; charset=utf-8",
    "Accept": "application/json",
}


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """How long a call may take, and how many there may be.

    Attributes:
        connect_timeout_s: seconds to get a connection, waiting for a free one included.
        total_timeout_s: seconds for a whole call; after that its outcome is unknown.
        connections_max: connections at a time, kept open between calls.
        idle_connection_s: seconds after which an unused connection is closed. Must be shorter than the server's own
            (nginx: 75), since a call that meets a connection just closed ends as unknown.
    """

    connect_timeout_s: float
    total_timeout_s: float
    connections_max: int
    idle_connection_s: float


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An HTTP answer that was read to its end; `content` is None when it had more bytes than were wanted."""

    status: int
    content: bytes | None
    retry_after_s: float | None

    @property
    def success(self) -> bool:
        """Whether the status says success."""
        return 200 <= self.status < 300


class HttpCalls:
    """Requests on connections that are opened at the first one and reused.

    Parameters: `account_id` our name of the account, for the metric of what the carrier does against what was agreed;
    `resolver` makes what finds the addresses of names, instead of the usual.
    """

    def __init__(
        self, limits: HttpLimits, account_id: str = "", *, resolver: Callable[[], AbstractResolver] | None = None
    ) -> None:
        self._limits = limits
        self._account_id = account_id
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None
        self._spans = tracing.active()
        self._closed = False

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        bytes_max: int = ANSWER_BYTES_MAX,
    ) -> HttpAnswer:
        """Make a request, once. Raises what `failed` judges."""
        try:
            if self._spans is None:
                return await self._request(method, url, headers=headers, body=body, bytes_max=bytes_max)
            # Only the host: a path or query may hold a number. And nothing of the trace leaves the house.
            attributes = {"http.request.method": method, "server.address": urlsplit(url).hostname or ""}
            with self._spans.within(method, kind=self._spans.CLIENT, attributes=attributes) as span:
                answer = await self._request(method, url, headers=headers, body=body, bytes_max=bytes_max)
                span.set_attribute("http.response.status_code", answer.status)
                return answer
        except Exception as error:
            self._odd(_kind(error))
            raise

    def note(self, answer: HttpAnswer, outcome: CallOutcome, *, readable: bool) -> None:
        """Count an answer to a sending call that is not what was agreed.

        Args:
            answer: what came.
            outcome: what was made of it.
            readable: whether its body was of the form that was agreed.
        """
        if 300 <= answer.status < 400:
            self._odd("redirect")
        elif outcome.verdict is Verdict.UNKNOWN:
            self._odd("unclear" if readable else "unreadable")

    def _odd(self, what: str) -> None:
        if what:
            HTTP_ODD.labels(self._account_id, what).inc()

    async def _request(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None, bytes_max: int
    ) -> HttpAnswer:
        session = self._opened()
        async with session.request(
            method,
            url,
            data=body,
            headers=headers,
            # A request sent twice is a message sent twice.
            allow_redirects=False,
            # aiohttp repeats what is no POST on a connection that was lost.
            middlewares=() if method == "POST" else (_once,),
        ) as response:
            content = bytearray()
            while chunk := await response.content.read(bytes_max + 1 - len(content)):
                content += chunk
            retry_after = response.headers.get("Retry-After", "")
            return HttpAnswer(
                status=response.status,
                content=bytes(content) if len(content) <= bytes_max else None,
                retry_after_s=min(float(retry_after), RETRY_AFTER_S_MAX) if retry_after.isdecimal() else None,
            )

    async def aclose(self) -> None:
        """Close the connections; later calls end as RETRY without being sent."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _opened(self) -> aiohttp.ClientSession:
        """The session, opened at first use because aiohttp binds it to the running loop."""
        if self._closed:
            raise _Closed("the carrier's connections are closed")
        if self._session is None:
            limits = self._limits
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=limits.connections_max,
                    keepalive_timeout=limits.idle_connection_s,
                    resolver=None if self._resolver is None else self._resolver(),
                    # What was judged is asked again for each connection.
                    use_dns_cache=self._resolver is None,
                ),
                timeout=aiohttp.ClientTimeout(
                    total=limits.total_timeout_s,
                    connect=limits.connect_timeout_s,
                    # aiohttp would round longer timeouts up to whole seconds; call_timeout_s is a promise.
                    ceil_threshold=float("inf"),
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


class _Closed(Exception):  # noqa: N818 - not an error of anyone
    """A call after `HttpCalls.aclose`."""


class _Lost(Exception):  # noqa: N818 - not an error of ours
    """The connection was lost with the request on it, in words that aiohttp does not take for a reason to repeat it."""


# Nothing of the request has left.
_NOT_LEFT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


async def _once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except _NOT_LEFT:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Lost(type(error).__name__) from error


def failed(error: Exception) -> CallOutcome:
    """What became of a sending call for which `HttpCalls.request` raised."""
    if isinstance(error, (*_NOT_LEFT, _Closed)):
        unreachable = not isinstance(error, _Closed)
        return CallOutcome(Verdict.RETRY, detail=f"not sent: {describe(error)}", unreachable=unreachable)
    # Whatever it was, the request may have left: no exception may make a caller send again.
    return CallOutcome(Verdict.UNKNOWN, detail=describe(error))


def judge_status(answer: HttpAnswer, code: str, detail: str) -> CallOutcome:
    """What became of a sending call by its HTTP status alone: the body says nothing that could be relied on."""
    if answer.status in NOT_TAKEN_STATUSES:
        return CallOutcome(Verdict.STOP_ACCOUNT, detail=f"{detail}: base_url, path or access are wrong")
    if answer.status == TOO_MANY_REQUESTS:
        return CallOutcome(Verdict.RETRY, detail=detail, retry_after_s=answer.retry_after_s)
    return CallOutcome(Verdict.UNKNOWN, code=code, detail=detail)


def _kind(error: Exception) -> str:
    """What went wrong, of the values of `HTTP_ODD`; empty for what was no fault of the carrier."""
    if isinstance(error, _Closed):
        return ""
    if isinstance(error, aiohttp.ClientSSLError):
        return "certificate"
    if isinstance(error, _NOT_LEFT):
        return "unconnected"
    return "late" if isinstance(error, TimeoutError) else "lost"


def describe(error: Exception) -> str:
    """Name an error without the request that it may carry."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection: {type(error.os_error).__name__}"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no connection in time"
    if isinstance(error, _Closed):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"connection failed: {error if isinstance(error, _Lost) else type(error).__name__}"


def json_object(content: bytes | None) -> Mapping[str, Any] | None:
    """The JSON object that an answer is; None for anything else."""
    try:
        document = orjson.loads(content or b"")
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None
