"""Batches and campaigns: paused, resumed, cancelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.authorization import Role
from infra.errors import Refusal
from infra.identifiers import brand_of
from protos.smsgateway.v1 import campaigns_pb2, sms_gateway_pb2
from smsgateway.console.audit import Action
from smsgateway.console.console import Console, brand_number

_BATCH = {"pause": Action.BATCH_PAUSE, "resume": Action.BATCH_RESUME, "cancel": Action.BATCH_CANCEL}
_CAMPAIGN = {"pause": Action.CAMPAIGN_PAUSE, "resume": Action.CAMPAIGN_RESUME, "cancel": Action.CAMPAIGN_CANCEL}
_CAMPAIGN_ID_CHARACTERS_MAX = 64


@dataclass(frozen=True, slots=True)
class _Subject:
    """A batch, or, without one, a campaign."""

    brand_id: int
    batch_id: str
    campaign_id: str

    @property
    def path(self) -> str:
        """The page about it."""
        if self.batch_id:
            return f"/batches/{self.batch_id}"
        return f"/brands/{self.brand_id}/campaigns/{self.campaign_id}"


def routes(console: Console) -> list[Route]:
    """The routes."""
    control = _Control(console)
    return [Route("/control", control.show), Route("/control", control.change, methods=["POST"])]


class _Control:
    def __init__(self, console: Console) -> None:
        self._console = console

    async def show(self, request: Request) -> Response:
        subject = _subject(request.query_params)
        self._require(request, subject)
        return self._page(request, subject, {})

    async def change(self, request: Request) -> Response:
        console, form = self._console, self._console.form(request)
        subject = _subject(form.values)
        self._require(request, subject)
        what = form.choice("what", _BATCH if subject.batch_id else _CAMPAIGN)
        asked = {"batch": subject.batch_id, "campaign": subject.campaign_id}

        async def call() -> Mapping[str, str]:
            reply = await self._call(request, subject, form.get("what"))
            return {"messages": str(_messages(reply))}

        try:
            made = await console.audit.change(form, console.principal(request), what, subject.brand_id, asked, call)
        except Refusal as refusal:
            return self._page(request, subject, form.values, refusal)
        return console.redirect(made.path)

    def _require(self, request: Request, subject: _Subject) -> None:
        role = Role.SENDER if self._console.principal(request).may(Role.SENDER) else Role.OPERATOR
        self._console.require(request, role, brand_id=subject.brand_id)

    async def _call(self, request: Request, subject: _Subject, what: str) -> Any:
        console = self._console
        messages: Any = sms_gateway_pb2 if subject.batch_id else campaigns_pb2
        if subject.batch_id:
            name, calls = f"{what.capitalize()}Batch", console.gateway(request)
            fields: dict[str, Any] = {"batch_id": subject.batch_id}
        else:
            name, calls = f"{what.capitalize()}Campaign", console.campaigns(request)
            fields = {"brand_id": subject.brand_id, "campaign_id": subject.campaign_id}
        return await getattr(calls, name)(getattr(messages, f"{name}Request")(**fields))

    def _page(
        self, request: Request, subject: _Subject, values: Mapping[str, str], refusal: Refusal | None = None
    ) -> Response:
        return self._console.form_page(request, "control.html", values, refusal, subject=subject)


def _subject(given: Mapping[str, str]) -> _Subject:
    """What is named. Raises NOT_FOUND for what is none."""
    batch_id, campaign_id = given.get("batch", ""), given.get("campaign", "")
    if batch_id:
        brand_id = brand_of(batch_id)
        if not brand_id:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "BATCH_NOT_FOUND", "there is no such batch")
        return _Subject(brand_id, batch_id, "")
    if not 1 <= len(campaign_id) <= _CAMPAIGN_ID_CHARACTERS_MAX:
        raise Refusal(grpc.StatusCode.NOT_FOUND, "CAMPAIGN_NOT_FOUND", "there is no such campaign")
    return _Subject(brand_number(given.get("brand", "")), "", campaign_id)


def _messages(reply: Any) -> int:
    """How many messages a reply tells of."""
    fields = {field.name for field in reply.DESCRIPTOR.fields}
    (name,) = fields & {"paused", "resumed", "cancelled"}
    return int(getattr(reply, name))
