"""Doors: sign in, sign out, choose a language."""

from __future__ import annotations

import math
import secrets

import grpc
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.errors import Refusal
from smsgateway.console.console import LANGUAGE_COOKIE, Console, equal, http_status, local_path
from smsgateway.console.sessions import csrf_token
from smsgateway.console.words import LANGUAGES
from smsgateway.metrics import CONSOLE_SIGN_INS

log = structlog.get_logger(__name__)

_NONCE_SECONDS = 3_600
_NONCE_CHARACTERS = 43
_LANGUAGE_SECONDS = 365 * 86_400
_TOKEN_CHARACTERS_MAX = 200


def routes(console: Console) -> list[Route]:
    """The routes."""
    doors = _Doors(console)
    return [
        Route("/sign-in", doors.show),
        Route("/sign-in", doors.sign_in, methods=["POST"]),
        Route("/sign-out", doors.sign_out, methods=["POST"]),
        Route("/language/{language}", doors.language),
    ]


class _Doors:
    def __init__(self, console: Console) -> None:
        self._console = console

    async def show(self, request: Request) -> Response:
        console = self._console
        following = local_path(request.query_params.get("next", "/"))
        if await console.sessions.find(console.secret(request), by_user=True) is not None:
            return console.redirect(following)
        return self._page(request, following)

    async def sign_in(self, request: Request) -> Response:
        console, form = self._console, self._console.form(request)
        following = local_path(form.get("next"))
        nonce = request.cookies.get(self._nonce_name(request), "")
        if not nonce or not equal(form.get("csrf"), csrf_token(nonce)):
            return self._page(
                request, following, _refusal("PERMISSION_DENIED", "FORM_NOT_TRUSTED", "send it once more")
            )
        try:
            secret = await self._open(request, form.get("token"))
        except Refusal as refusal:
            return self._page(request, following, refusal)
        response = console.redirect(following)
        # A new secret with each sign-in: one that somebody else has put into the browser opens nothing.
        seconds = console.settings.console_session_seconds
        console.set_cookie(request, response, console.cookie_name(request), secret, seconds=seconds)
        self._forget(request, response, self._nonce_name(request))
        return response

    async def sign_out(self, request: Request) -> Response:
        console, secret = self._console, self._console.secret(request)
        if not secret or not equal(console.form(request).get("csrf"), csrf_token(secret)):
            return console.redirect("/")
        session = await console.sessions.find(secret, by_user=True)
        if session is not None:
            await console.sessions.end(session.session_hash)
            log.info("signed out of the console", token_id=session.principal.token_id)
        response = console.redirect("/sign-in")
        self._forget(request, response, console.cookie_name(request))
        return response

    async def language(self, request: Request) -> Response:
        chosen = request.path_params["language"]
        if chosen not in LANGUAGES:
            raise HTTPException(404)
        response = self._console.redirect(local_path(request.query_params.get("next", "/")))
        self._console.set_cookie(request, response, LANGUAGE_COOKIE, chosen, seconds=_LANGUAGE_SECONDS)
        return response

    def _page(self, request: Request, following: str, refusal: Refusal | None = None) -> Response:
        # Nobody is signed in yet, so the form is tied to a cookie of its own: else another site could sign a person in
        # to a session that it can look into.
        nonce = request.cookies.get(self._nonce_name(request), "")
        if len(nonce) != _NONCE_CHARACTERS:
            nonce = secrets.token_urlsafe(32)
        status = 200 if refusal is None else http_status(refusal)
        values = {"refusal": refusal, "following": following, "csrf": csrf_token(nonce)}
        response = self._console.page(request, "sign_in.html", status=status, **values)
        self._console.set_cookie(request, response, self._nonce_name(request), nonce, seconds=_NONCE_SECONDS)
        if refusal is not None and refusal.retry_seconds is not None:
            response.headers["retry-after"] = str(math.ceil(refusal.retry_seconds))
        return response

    async def _open(self, request: Request, token: str) -> str:
        """The secret of a new session. Raises `Refusal`."""
        console, group = self._console, self._console.visitor(request).group
        wait = await console.attempts.begin(group)
        if wait:
            CONSOLE_SIGN_INS.labels("refused").inc()
            log.warning("sign-in refused: too many", address=group)
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            raise Refusal(code, "TOO_MANY_SIGN_INS", "too many wrong sign-ins; try later", retry_seconds=wait)
        result = "unavailable"
        try:
            if not 1 <= len(token) <= _TOKEN_CHARACTERS_MAX or not token.isascii() or not token.isprintable():
                raise _refusal("UNAUTHENTICATED", "UNAUTHENTICATED", "that is no token")
            secret, session = await console.sessions.open(token)
            result = "right"
        except Refusal as refusal:
            if refusal.code is grpc.StatusCode.UNAUTHENTICATED:
                result = "wrong"
                log.warning("sign-in with a wrong token", address=group)
            raise
        finally:
            CONSOLE_SIGN_INS.labels(result).inc()
            if result != "wrong":
                await console.attempts.take_back(group)
        log.info("signed in to the console", token_id=session.principal.token_id, address=group)
        return secret

    def _nonce_name(self, request: Request) -> str:
        return "__Host-smsbill_door" if self._console.visitor(request).secure else "smsbill_door"

    def _forget(self, request: Request, response: Response, cookie: str) -> None:
        secure = self._console.visitor(request).secure
        response.delete_cookie(cookie, path="/", secure=secure, httponly=True, samesite="strict")


def _refusal(code: str, reason: str, message: str) -> Refusal:
    return Refusal(grpc.StatusCode[code], reason, message)
