"""What the pages of the console share: who asks, the services with their rights, templates, one way to be refused."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import grpc
import grpc.aio
import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from infra.authorization import Authenticator, Principal, Role
from infra.database import TRANSIENT, Database
from infra.errors import Refusal, unavailable
from infra.grpc_server import bearer, open_channel
from infra.grpc_status import from_error
from infra.identifiers import IdentifierSource
from infra.local_calls import LocalChannel
from protos.costcenter.v1.cost_center_admin_pb2_grpc import CostCenterAdminStub
from protos.costcenter.v1.cost_center_pb2_grpc import CostCenterStub
from protos.smsgateway.v1.campaigns_pb2_grpc import CampaignsStub
from protos.smsgateway.v1.routing_pb2_grpc import RoutingStub
from protos.smsgateway.v1.sms_gateway_pb2_grpc import SmsGatewayStub
from smsgateway.console.assets import Assets
from smsgateway.console.attempts import SignInAttempts
from smsgateway.console.audit import UNSETTLED, Audit
from smsgateway.console.forms import Form, read_form
from smsgateway.console.sessions import Session, Sessions, csrf_token
from smsgateway.console.visitors import Visitor, from_own_page, visitor
from smsgateway.console.words import LANGUAGES, WORDS, Words, preferred
from smsgateway.settings import Settings

if TYPE_CHECKING:
    from jinja2 import Environment

log = structlog.get_logger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]

LANGUAGE_COOKIE = "smsbill_language"
# A page asks for its parts with this parameter when nobody has touched anything; see `Console.page`.
LIVE = "live"
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_MAX_INT64 = 2**63 - 1

# Nothing but our own files and forms. No inline script or style anywhere, so a text that slips through runs nothing.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    # Not no-referrer: browsers then name no origin with forms either.
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=()",
    "cache-control": "no-store",
    "vary": "cookie, accept-language",
}

_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_TITLES = {
    400: "That cannot be read",
    401: "You are not signed in",
    403: "You may not do this",
    404: "There is no such thing",
    405: "That cannot be done here",
    409: "That is not possible now",
    413: "That is too much",
    415: "That cannot be read",
    429: "Too much at once",
    503: "A part of the service cannot be reached",
    504: "That took too long",
}
_FAULT = "Something went wrong on our side"
_LOG_HAS_IT = "Nothing was shown or changed that should not be. The service's log has the details."


@dataclass(frozen=True, slots=True)
class NavigationItem:
    """An entry of the navigation: `text` English, `role` without which it is not shown; ordered by `place`."""

    path: str
    text: str
    place: int
    role: Role = Role.VIEWER
    all_brands: bool = False


class Calls:
    """A stub whose calls carry a user's token and a deadline.

    `await calls.GetBalance(request)`. Raises `Refusal`, whichever way the call went; UNAUTHENTICATED ends in the page
    that asks to sign in.
    """

    def __init__(self, stub: Any, token: str, seconds: float) -> None:
        self._stub = stub
        self._metadata = bearer(token)
        self._seconds = seconds

    def __getattr__(self, name: str) -> Callable[[Any], Awaitable[Any]]:
        method = getattr(self._stub, name)

        async def call(request: Any) -> Any:
            try:
                return await method(request, metadata=self._metadata, timeout=self._seconds)
            except grpc.aio.AioRpcError as error:
                raise from_error(error) from None
            except grpc.aio.UsageError:
                raise unavailable("this process stops") from None

        return call


@dataclass(slots=True)
class _Asked:
    """What is known of a request; at `request.state.asked`."""

    visitor: Visitor
    words: Words
    session: Session | None = None
    form: Form = field(default_factory=Form)


class Console:
    """What page modules build on.

    A page module has `def routes(console) -> list[Route]`, and `NAVIGATION` for its entries there. Its endpoints are
    called for signed-in users only, and, when the method changes anything, with a form that was checked against
    forgery. They raise `Refusal`; the console makes the error page.

    Parameters: `local` the gateway's own services; `database` and `redis` the gateway's, for modules that read them;
    `authenticator` says within seconds that a token was revoked.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        redis: Any,
        authenticator: Authenticator,
        local: LocalChannel,
        identifiers: IdentifierSource,
    ) -> None:
        self.settings = settings
        self.database = database
        self.redis = redis
        self.identifiers = identifiers
        self.assets = Assets()
        self.sessions = Sessions(database, authenticator, settings)
        self.attempts = SignInAttempts(redis, settings)
        self.audit = Audit(database, identifiers)
        self._places = asyncio.Semaphore(settings.console_pages_max)
        self.navigation: list[NavigationItem] = []
        self._closing: list[Callable[[], Awaitable[None]]] = []
        self._channel = open_channel(settings, settings.costcenter_target)
        self._costcenter, self._admin = CostCenterStub(self._channel), CostCenterAdminStub(self._channel)
        # It has what a stub asks of a channel.
        channel: Any = local
        self._gateway, self._campaigns, self._routing = (
            SmsGatewayStub(channel),
            CampaignsStub(channel),
            RoutingStub(channel),
        )

    def on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Have something of a page module's closed with the console."""
        self._closing.append(close)

    async def close(self) -> None:
        """Close what the pages have open, and the way to the cost centre."""
        for close in self._closing:
            await close()
        await self._channel.close()

    @cached_property
    def _templates(self) -> Environment:
        # Slow to import, and not needed before somebody looks.
        from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415

        templates = Environment(
            loader=PackageLoader("smsgateway.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        templates.filters |= {"moment": moment, "grouped": grouped, "path": _quoted}
        templates.globals |= {
            "asset": self.assets.paths.__getitem__,
            "refresh_seconds": self.settings.console_refresh_seconds,
            "languages": LANGUAGES,
            "Role": Role,
        }
        return templates

    # Who asks, and with what.

    def principal(self, request: Request) -> Principal:
        """Who is signed in."""
        return self.session(request).principal

    def session(self, request: Request) -> Session:
        """The session. Raises UNAUTHENTICATED without one, which only pages before the sign-in can meet."""
        session = _asked(request).session
        if session is None:
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "sign in")
        return session

    def words(self, request: Request) -> Words:
        """The texts in the user's language."""
        return _asked(request).words

    def visitor(self, request: Request) -> Visitor:
        """Where the request comes from."""
        return _asked(request).visitor

    def form(self, request: Request) -> Form:
        """The form of a request that changes something; checked against forgery already."""
        return _asked(request).form

    def require(self, request: Request, role: Role, *, brand_id: int | None = None, all_brands: bool = False) -> None:
        """Raise PERMISSION_DENIED unless the user has the role, and it holds for the brand or all brands.

        The services judge each call themselves; this is for what a page reads by itself, and to refuse before a form
        is filled in.
        """
        principal = self.principal(request)
        if not principal.may(role):
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                "ROLE_NOT_ALLOWED",
                f"this page needs the role {role.name.lower()}",
                metadata={"role": role.name.lower()},
            )
        if all_brands:
            principal.require_all_brands()
        if brand_id:
            principal.require_brand(brand_id)

    def costcenter(self, request: Request) -> Calls:
        """`costcenter.v1.CostCenter` with the user's token."""
        return self._calls(request, self._costcenter)

    def admin(self, request: Request) -> Calls:
        """`costcenter.v1.CostCenterAdmin` with the user's token."""
        return self._calls(request, self._admin)

    def gateway(self, request: Request) -> Calls:
        """`smsgateway.v1.SmsGateway` of this process with the user's token."""
        return self._calls(request, self._gateway)

    def campaigns(self, request: Request) -> Calls:
        """`smsgateway.v1.Campaigns` of this process with the user's token."""
        return self._calls(request, self._campaigns)

    def routing(self, request: Request) -> Calls:
        """`smsgateway.v1.Routing` of this process with the user's token."""
        return self._calls(request, self._routing)

    def _calls(self, request: Request, stub: Any) -> Calls:
        return Calls(stub, self.session(request).token, self.settings.console_call_seconds)

    def new_request_id(self) -> str:
        """What a form carries so that it counts once, however often it is sent."""
        return self.identifiers.new(0, round(datetime.now(UTC).timestamp() * 1_000))

    # What is answered.

    def page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        """A page, or a part of one, from a template.

        Beside `values` templates have: `t` (the words), `user` (a `Principal` or None), `csrf` (for a field of that
        name in each form), `may(role_name)`, `here` (path and query of the page), `navigation`, `asset(name)`,
        `refresh_seconds`. A part that refreshes itself asks for a path with the parameter `live`, so that it does not
        count as a sign of its user.
        """
        asked = _asked(request)
        user = asked.session.principal if asked.session else None
        given = {
            "t": asked.words,
            "language": asked.words.language,
            "user": user,
            "csrf": asked.session.csrf if asked.session else "",
            "may": lambda role: user is not None and user.may(Role[role.upper()]),
            "path": request.url.path,
            "here": _here(request),
            "navigation": [item for item in self.navigation if user is not None and _shown(item, user)],
        }
        return HTMLResponse(self._templates.get_template(template).render({**given, **values}), status_code=status)

    def form_page(
        self,
        request: Request,
        template: str,
        values: Mapping[str, str],
        refusal: Refusal | None = None,
        **more: Any,
    ) -> Response:
        """A page with a form, empty or filled with `values` again after it was refused.

        A form whose fate is not known keeps its `request_id`: sent again, it is the same change.
        """
        unsettled = refusal is not None and refusal.code in UNSETTLED
        request_id = values.get("request_id", "") if unsettled else self.new_request_id()
        status = 200 if refusal is None else http_status(refusal)
        return self.page(
            request, template, status=status, values=values, refusal=refusal, request_id=request_id, **more
        )

    # A part of a page; the same, but the name tells readers that its template extends no layout.
    fragment = page

    def redirect(self, path: str) -> Response:
        """Go on to another page, after a change."""
        return RedirectResponse(path, status_code=303)

    def refused(self, request: Request, refusal: Refusal) -> Response:
        """The error page of a refusal."""
        log.info("page refused", path=request.url.path, code=refusal.code.name, reason=refusal.reason)
        return self._error(request, http_status(refusal), refusal=refusal)

    # Around every page.

    def guarded(self, route: Route, *, open_to_all: bool = False) -> Route:
        """The route with all that stands before and behind its endpoint.

        Parameters: `open_to_all` for what is there before the sign-in; it checks its forms itself.
        """
        inner: Endpoint = route.endpoint

        async def endpoint(request: Request) -> Response:
            request.state.asked = self._about(request)
            try:
                response = await self._placed(request, inner, open_to_all=open_to_all)
            except Refusal as refusal:
                response = await self._refusal(request, refusal)
            except HTTPException as error:
                response = self._error(request, error.status_code)
            except ClientDisconnect:
                response = Response(status_code=400)
            except (*TRANSIENT, TimeoutError) as error:
                log.warning("page without its database", path=request.url.path, error=type(error).__name__)
                response = self._error(request, 503)
            except Exception as error:
                log.error("page failed", path=request.url.path, exc_info=error)
                response = self._error(request, 500)
            return _with_headers(response)

        return Route(route.path, endpoint, methods=list(route.methods or ["GET"]))

    async def no_page(self, request: Request, error: Exception) -> Response:
        """For a path that no page has, and a page asked for in a way that it does not know.

        Never the way to the sign-in: a carrier whose callback has another address must hear that.
        """
        request.state.asked = self._about(request)
        response = _with_headers(self._error(request, error.status_code if isinstance(error, HTTPException) else 404))
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)
        return response

    async def _placed(self, request: Request, inner: Endpoint, *, open_to_all: bool) -> Response:
        """The answer, once few enough others are being made. Raises `TimeoutError` when that takes too long."""
        async with asyncio.timeout(self.settings.console_call_seconds):
            await self._places.acquire()
        try:
            return await self._admitted(request, inner, open_to_all=open_to_all)
        finally:
            self._places.release()

    async def _refusal(self, request: Request, refusal: Refusal) -> Response:
        if refusal.code is not grpc.StatusCode.UNAUTHENTICATED:
            return self.refused(request, refusal)
        session = _asked(request).session
        if session is not None:
            # A service knows already that the token was revoked; the sign-in page must not send its user back here.
            with suppress(*TRANSIENT):
                await self.sessions.end(session.session_hash)
        return self.to_sign_in(request)

    async def _admitted(self, request: Request, inner: Endpoint, *, open_to_all: bool) -> Response:
        asked = _asked(request)
        texts = (request.url.path, *request.path_params.values(), *request.query_params.values())
        if not all(text.isprintable() for text in map(str, texts)):
            raise HTTPException(400)
        changes = request.method not in _SAFE_METHODS
        secret = self.secret(request)
        if not open_to_all:
            # What changes nothing and is asked for by a page alone is no sign of its user.
            by_user = changes or LIVE not in request.query_params
            asked.session = await self.sessions.find(secret, by_user=by_user)
            if asked.session is None:
                return self.to_sign_in(request)
        if changes:
            if not from_own_page(request, self.settings.console_url):
                raise _forged("the form comes from another site")
            asked.form = await read_form(request, self.settings.console_form_bytes_max)
            if not open_to_all and not equal(asked.form.get("csrf"), csrf_token(secret)):
                raise _forged("the form is not of this session; open the page again")
        return await inner(request)

    def to_sign_in(self, request: Request) -> Response:
        """Ask to sign in, and come back then."""
        place = f"/sign-in?next={quote(_here(request), safe='')}" if request.method in _SAFE_METHODS else "/sign-in"
        if "hx-request" in request.headers:
            # A part of a page must not show the whole of another.
            page = urlsplit(request.headers.get("hx-current-url", ""))
            back = f"{page.path}?{page.query}" if page.query else page.path or "/"
            return Response(status_code=401, headers={"hx-redirect": f"/sign-in?next={quote(back, safe='')}"})
        return self.redirect(place)

    # The cookie.

    def cookie_name(self, request: Request) -> str:
        """Over TLS a name that browsers keep for this host and TLS alone."""
        return "__Host-smsbill" if _asked(request).visitor.secure else "smsbill_session"

    def secret(self, request: Request) -> str:
        """The secret of the request's cookie; empty without one."""
        return request.cookies.get(self.cookie_name(request), "")

    def set_cookie(self, request: Request, response: Response, name: str, value: str, *, seconds: float) -> None:
        """A cookie that no script reads and no other site's page sends; gone after `seconds`."""
        response.set_cookie(
            name,
            value,
            max_age=int(seconds),
            path="/",
            secure=_asked(request).visitor.secure,
            httponly=True,
            samesite="strict",
        )

    def _about(self, request: Request) -> _Asked:
        language = request.cookies.get(LANGUAGE_COOKIE, "")
        if language not in WORDS:
            language = preferred(request.headers.get("accept-language", ""))
        who = visitor(request, self.settings.console_proxies, self.settings.console_url)
        return _Asked(who, WORDS[language])

    def _error(self, request: Request, status: int, *, refusal: Refusal | None = None) -> Response:
        title = _TITLES.get(status, _FAULT)
        template = "error_part.html" if "hx-request" in request.headers else "error.html"
        return self.page(
            request,
            template,
            status=status,
            title=title,
            refusal=refusal,
            told=_LOG_HAS_IT if status == 500 else "",
        )


def http_status(refusal: Refusal) -> int:
    """The HTTP status of a refusal."""
    return _STATUSES.get(refusal.code, 500)


def brand_of_path(request: Request) -> int:
    """The brand that a path names. Raises 404 for what is no brand's number."""
    return brand_number(request.path_params["brand_id"])


def brand_number(text: str, *, least: int = 1) -> int:
    """The number of a brand. Raises 404 for what is none."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 19 and least <= int(text) <= _MAX_INT64):
        raise HTTPException(404)
    return int(text)


def local_path(text: str) -> str:
    """A path of ours to go to; `/` for anything that might lead elsewhere."""
    safe = text.startswith("/") and not text.startswith("//") and "\\" not in text and text.isprintable()
    return text if safe and len(text) <= 2_000 else "/"


def moment(value: Timestamp | datetime | None) -> Markup:
    """A moment for a page; the browser shows it in its own time zone."""
    if value is None or (isinstance(value, Timestamp) and not value.seconds):
        return Markup("–")
    at = value.ToDatetime(UTC) if isinstance(value, Timestamp) else value.astimezone(UTC)
    return Markup('<time datetime="{}">{} UTC</time>').format(
        at.strftime("%Y-%m-%dT%H:%M:%SZ"), at.strftime("%Y-%m-%d %H:%M:%S")
    )


def moment_text(value: Timestamp) -> str:
    """A moment for the log of changes."""
    return value.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def grouped(value: int) -> str:
    """A number with its thousands apart."""
    return f"{value:,}"


def app_routes(console: Console, pages: Sequence[Any], open_pages: Sequence[Any]) -> list[Route]:
    """All routes of page modules, each guarded, and the static files.

    Parameters: `open_pages` modules whose pages are there before the sign-in.
    """
    found = [Route("/static/{name}", console.assets.serve)]
    for modules, open_to_all in ((open_pages, True), (pages, False)):
        for module in modules:
            console.navigation += getattr(module, "NAVIGATION", ())
            found += [console.guarded(route, open_to_all=open_to_all) for route in module.routes(console)]
    console.navigation.sort(key=lambda item: item.place)
    return found


def _asked(request: Request) -> _Asked:
    asked = request.state.asked
    assert isinstance(asked, _Asked)
    return asked


def _shown(item: NavigationItem, user: Principal) -> bool:
    return user.may(item.role) and not (item.all_brands and user.brand_ids is not None)


def equal(given: str, expected: str) -> bool:
    """Whether two secrets are the same, in a time that does not tell how much of them is."""
    return hmac.compare_digest(given.encode(), expected.encode())


def _forged(why: str) -> Refusal:
    return Refusal(grpc.StatusCode.PERMISSION_DENIED, "FORM_NOT_TRUSTED", why)


def _here(request: Request) -> str:
    query = request.url.query
    return f"{request.url.path}?{query}" if query else request.url.path


def _quoted(text: object) -> str:
    return quote(str(text), safe="")


def _with_headers(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response
