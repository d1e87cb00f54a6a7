"""Tokens: listed, made, revoked."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.authorization import Role
from infra.errors import Refusal
from protos.costcenter.v1 import cost_center_admin_pb2 as pb
from smsgateway.console.audit import Action
from smsgateway.console.console import Console, NavigationItem, moment_text
from smsgateway.console.forms import Form

NAVIGATION = (NavigationItem("/tokens", "Tokens", 80, Role.ADMIN, all_brands=True),)

ROLES = {role.name.lower(): role.value for role in Role}
_ROLE_NAMES = {number: name for name, number in ROLES.items()}
_NAME_CHARACTERS_MAX = 100
_BRANDS_MAX = 1_000
_DAYS_MAX = 36_500


def routes(console: Console) -> list[Route]:
    """The routes."""
    tokens = _Tokens(console)
    return [
        Route("/tokens", tokens.show),
        Route("/tokens", tokens.create, methods=["POST"]),
        Route("/tokens/revoke", tokens.revoke, methods=["POST"]),
    ]


class _Tokens:
    def __init__(self, console: Console) -> None:
        self._console = console

    async def show(self, request: Request) -> Response:
        self._console.require(request, Role.ADMIN, all_brands=True)
        return await self._page(request, {"days": "365"})

    async def create(self, request: Request) -> Response:
        console, form = self._console, self._console.form(request)
        console.require(request, Role.ADMIN, all_brands=True)
        made: list[Any] = []

        async def call() -> Mapping[str, str]:
            reply = await console.admin(request).CreateToken(wanted)
            made.append(reply)
            return {"token": reply.token.token_id}

        try:
            wanted, asked = _read(form)
            change = await console.audit.change(
                form, console.principal(request), Action.TOKEN_CREATE, 0, asked, call, repeatable=False
            )
        except Refusal as refusal:
            return await self._page(request, form.values, refusal)
        if not made:
            # An earlier send of the form has made it, and its page has shown the secret.
            return console.redirect(change.path)
        return console.page(request, "token_made.html", reply=made[0], change=change)

    async def revoke(self, request: Request) -> Response:
        console, form = self._console, self._console.form(request)
        console.require(request, Role.ADMIN, all_brands=True)
        token_id = form.identifier("token_id")

        async def call() -> Mapping[str, str]:
            token = (await console.admin(request).RevokeToken(pb.RevokeTokenRequest(token_id=token_id))).token
            return {"name": token.name, "revoked": moment_text(token.revoked_at)}

        try:
            made = await console.audit.change(
                form, console.principal(request), Action.TOKEN_REVOKE, 0, {"token": token_id}, call
            )
        except Refusal as refusal:
            return await self._page(request, form.values, refusal)
        return console.redirect(made.path)

    async def _page(self, request: Request, values: Mapping[str, str], refusal: Refusal | None = None) -> Response:
        console = self._console
        reply = await console.admin(request).ListTokens(
            pb.ListTokensRequest(
                page_size=console.settings.console_rows, page_token=request.query_params.get("after", "")
            )
        )
        return console.form_page(
            request,
            "tokens.html",
            values,
            refusal,
            tokens=[(token, _standing(token)) for token in reply.tokens],
            following=reply.next_page_token,
            first="after" not in request.query_params,
            roles=list(ROLES),
            role_names=_ROLE_NAMES,
            chosen=console.form(request).all("role"),
        )


def _read(form: Form) -> tuple[pb.CreateTokenRequest, dict[str, str]]:
    """What the form wants. Raises INVALID_ARGUMENT."""
    name, roles = form.text("name", _NAME_CHARACTERS_MAX), form.choices("role", ROLES)
    if not roles:
        form.violate("role", "must be at least one")
    brands = form.get("brands")
    numbers: list[int] = []
    if brands != "all":
        texts = [text.strip() for text in brands.split(",")]
        if not all(text.isascii() and text.isdecimal() and len(text) <= 18 and int(text) for text in texts):
            form.violate("brands", "must be all, or numbers of brands such as 1,2")
        elif len(texts) > _BRANDS_MAX:
            form.violate("brands", f"must be at most {_BRANDS_MAX}")
        else:
            numbers = [int(text) for text in texts]
    days = form.number("days", 1, _DAYS_MAX) if form.get("days") else None
    form.reason()
    form.check()
    expires_at = None
    if days is not None:
        expires_at = Timestamp()
        expires_at.FromDatetime(datetime.now(UTC) + timedelta(days=days))
    wanted = pb.CreateTokenRequest(
        name=name,
        roles=roles,  # type: ignore[arg-type] # numbers of the proto's enum
        all_brands=brands == "all",
        brand_ids=numbers,
        expires_at=expires_at,
    )
    told = ", ".join(_ROLE_NAMES[role] for role in roles)
    return wanted, {"name": name, "roles": told, "brands": brands, "days": form.get("days")}


def _standing(token: pb.Token) -> str:
    if token.HasField("revoked_at"):
        return "revoked"
    if token.HasField("expires_at") and token.expires_at.ToDatetime(UTC) <= datetime.now(UTC):
        return "ended"
    return "valid"
