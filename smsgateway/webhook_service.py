"""The gRPC service `smsgateway.v1.Webhooks`: webhooks of brands, and what people sent back."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from infra import paging
from infra.authorization import Role, current_principal
from infra.database import Database
from infra.errors import failed_precondition, invalid_fields, not_found
from infra.grpc_server import Permissions
from protos.smsgateway.v1 import webhooks_pb2, webhooks_pb2_grpc
from smsgateway import asking
from smsgateway.schema import ALERT_OPENED, REPLY_EVENT, MessageState
from smsgateway.settings import Settings
from smsgateway.store import replies, webhooks
from smsgateway.store.replies import StoredReply
from smsgateway.store.webhooks import Key, ListedWebhook
from smsgateway.webhooks import (
    ALERT_KINDS,
    FINAL_STATES,
    TOLD_STATES,
    WEBHOOK_ID,
    BadWebhook,
    check_secret,
    check_url,
    new_secret,
)

log = structlog.get_logger(__name__)

SERVICE = webhooks_pb2.DESCRIPTOR.services_by_name["Webhooks"].full_name

_VIEWER, _ADMIN = frozenset({Role.VIEWER}), frozenset({Role.ADMIN})
PERMISSIONS: Permissions = {
    f"/{SERVICE}/PutWebhook": _ADMIN,
    f"/{SERVICE}/GetWebhook": _VIEWER,
    f"/{SERVICE}/ListWebhooks": _VIEWER,
    f"/{SERVICE}/RemoveWebhook": _ADMIN,
    f"/{SERVICE}/ListReplies": _VIEWER,
}

DEFAULT_ID = "main"
_REMOVED_AT_ONCE = 10_000
_STATES = frozenset(map(int, TOLD_STATES))

Context = grpc.aio.ServicerContext[Any, Any]


class WebhooksService(webhooks_pb2_grpc.WebhooksServicer):
    """The RPCs; their errors are documented in the proto."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    async def PutWebhook(
        self, request: webhooks_pb2.PutWebhookRequest, context: Context
    ) -> webhooks_pb2.PutWebhookResponse:
        """Create or replace a webhook."""
        key = _key(request.brand_id, request.webhook_id)
        self._check(request)
        made = ""
        async with self._database.connection() as connection:
            known = await webhooks.find_for_update(connection, *key)
            if known is None:
                count = await webhooks.count(connection, key[0])
                if count >= self._settings.webhooks_max:
                    raise failed_precondition(
                        "TOO_MANY_WEBHOOKS",
                        f"a brand has at most {self._settings.webhooks_max} webhooks; remove one",
                        limit=self._settings.webhooks_max,
                    )
            secret = request.secret
            if not secret and (known is None or request.rotate_secret):
                secret = made = new_secret()
            changed = known is not None and secret not in ("", known.secret)
            await webhooks.put(
                connection,
                key,
                url=request.url,
                kinds=_kinds(request),
                full_number=request.full_number,
                reply_text=request.reply_text,
                secret=secret or (known.secret if known is not None else ""),
                old_secret=known.secret if known is not None and changed else None,
                overlap_seconds=self._settings.webhook_secret_hours * 3_600,
            )
            (webhook,) = await webhooks.listed(connection, *key)
        log.warning(
            "webhook put",
            brand_id=key[0],
            webhook_id=key[1],
            new=known is None,
            secret_changed=changed,
            token_id=current_principal().token_id,
        )
        return webhooks_pb2.PutWebhookResponse(webhook=_webhook(webhook), secret=made)

    async def GetWebhook(
        self, request: webhooks_pb2.GetWebhookRequest, context: Context
    ) -> webhooks_pb2.GetWebhookResponse:
        """One webhook."""
        key = _key(request.brand_id, request.webhook_id)
        async with self._database.connection() as connection:
            found = await webhooks.listed(connection, *key)
        if not found:
            raise _missing()
        return webhooks_pb2.GetWebhookResponse(webhook=_webhook(found[0]))

    async def ListWebhooks(
        self, request: webhooks_pb2.ListWebhooksRequest, context: Context
    ) -> webhooks_pb2.ListWebhooksResponse:
        """A brand's webhooks."""
        key = _key(request.brand_id, "")
        async with self._database.connection() as connection:
            found = await webhooks.listed(connection, key[0])
        return webhooks_pb2.ListWebhooksResponse(webhooks=[_webhook(each) for each in found])

    async def RemoveWebhook(
        self, request: webhooks_pb2.RemoveWebhookRequest, context: Context
    ) -> webhooks_pb2.RemoveWebhookResponse:
        """Remove a webhook with its events: these first, so that a call that is cut off can be made again."""
        key = _key(request.brand_id, request.webhook_id)
        dropped, more = 0, True
        while more:
            async with self._database.connection() as connection:
                if not await webhooks.listed(connection, *key):
                    raise _missing()
                count = await webhooks.remove_events(connection, key, limit=_REMOVED_AT_ONCE)
                more = count == _REMOVED_AT_ONCE
                if not more:
                    await webhooks.remove(connection, key)
            dropped += count
        log.warning(
            "webhook removed",
            brand_id=key[0],
            webhook_id=key[1],
            events_dropped=dropped,
            token_id=current_principal().token_id,
        )
        return webhooks_pb2.RemoveWebhookResponse(events_dropped=dropped)

    async def ListReplies(
        self, request: webhooks_pb2.ListRepliesRequest, context: Context
    ) -> webhooks_pb2.ListRepliesResponse:
        """A page of replies."""
        brand_id = request.brand_id
        if brand_id < 0:
            raise invalid_fields({"brand_id": "must be a brand, or 0 for replies of no known brand"})
        if brand_id:
            current_principal().require_brand(brand_id)
        else:
            current_principal().require_all_brands()
        size = paging.page_size(request.page_size)
        before = asking.listed_identifier(
            paging.decode_token(request.page_token), brand_id, "page_token", "must be a next_page_token of this call"
        )
        mobile = asking.listed_mobile(request.mobile)
        async with self._database.connection() as connection:
            found = await replies.listed(connection, brand_id, mobile=mobile, before=before, limit=size + 1)
        return webhooks_pb2.ListRepliesResponse(
            replies=[_reply(each) for each in found[:size]],
            next_page_token=paging.encode_token(found[size - 1].reply_id) if len(found) > size else "",
        )

    def _check(self, request: webhooks_pb2.PutWebhookRequest) -> None:
        violations: dict[str, str] = {}
        try:
            check_url(
                request.url,
                http_allowed=self._settings.webhook_http,
                private_allowed=self._settings.webhook_private_addresses,
            )
        except BadWebhook as error:
            violations["url"] = str(error)
        if request.secret:
            try:
                check_secret(request.secret)
            except BadWebhook as error:
                violations["secret"] = str(error)
            if request.rotate_secret:
                violations |= {"rotate_secret": "must not be set beside a secret"}
        if not set(request.states) <= _STATES:
            violations["states"] = "must be SENT or final states"
        if violations:
            raise invalid_fields(violations)


def _key(brand_id: int, webhook_id: str) -> Key:
    """Brand and name of a call whose token holds for the brand, or for all where it is the house's webhook."""
    if brand_id:
        asking.required_brand(brand_id)
        current_principal().require_brand(brand_id)
    else:
        current_principal().require_all_brands()
    name = webhook_id or DEFAULT_ID
    if not WEBHOOK_ID.fullmatch(name):
        raise invalid_fields({"webhook_id": "must be 1 to 32 lower-case letters, digits and underscores"})
    return brand_id, name


def _missing() -> Exception:
    return not_found("WEBHOOK_NOT_FOUND", "there is no such webhook")


def _kinds(request: webhooks_pb2.PutWebhookRequest) -> int:
    states: Iterable[int] = request.states
    if not states and not request.alerts:
        states = FINAL_STATES
    wanted = {*states, *([REPLY_EVENT] if request.replies else []), *(ALERT_KINDS if request.alerts else [])}
    return sum(1 << kind for kind in wanted)


def _webhook(webhook: ListedWebhook) -> webhooks_pb2.Webhook:
    return webhooks_pb2.Webhook(
        brand_id=webhook.brand_id,
        webhook_id=webhook.webhook_id,
        url=webhook.url,
        states=[int(state) for state in MessageState if webhook.kinds >> state & 1],  # type: ignore[misc] # its numbers
        replies=bool(webhook.kinds >> REPLY_EVENT & 1),
        alerts=bool(webhook.kinds >> ALERT_OPENED & 1),
        full_number=webhook.full_number,
        reply_text=webhook.reply_text,
        enabled=webhook.enabled,
        rotating=webhook.rotating,
        created_at=_timestamp(webhook.created_at),
        updated_at=_timestamp(webhook.updated_at),
        waiting=webhook.waiting,
        failures=webhook.failures,
        last_error=webhook.last_error,
        next_at=_timestamp(webhook.next_at),
        succeeded_at=_timestamp(webhook.succeeded_at),
    )


def _reply(reply: StoredReply) -> webhooks_pb2.Reply:
    return webhooks_pb2.Reply(
        reply_id=reply.reply_id,
        brand_id=reply.brand_id,
        carrier_account=reply.account,
        mobile=reply.mobile,
        destination=reply.destination,
        text=reply.text,
        part=reply.part,
        opt_out=reply.opt_out,
        message_id=reply.message_id,
        received_at=_timestamp(reply.received_at),
        created_at=_timestamp(reply.created_at),
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
