"""Webhooks: what a request to a brand's receiver holds, and how it is signed. No I/O.

Signed by the Standard Webhooks specification 1.0.0
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md): HMAC-SHA256 of
``{webhook-id}.{webhook-timestamp}.{body}`` under a secret of 24 to 64 bytes, written ``whsec_<base64>``; the signatures
stand in ``webhook-signature`` as ``v1,<base64>``, divided by spaces where two secrets hold at once.

A request tells several events, each with an id of its own that stays the same when it is told again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from smsgateway.metrics import TYPE_NAMES
from smsgateway.mobile import mask_mobile
from smsgateway.schema import ALERT_OPENED, ALERT_RECOVERED, REPLY_EVENT, MessageState

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what secrets begin with
_SECRET_BYTES_MIN, _SECRET_BYTES_MAX, _SECRET_BYTES = 24, 64, 32
WEBHOOK_ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9_]{0,31})")
"""The name of a webhook: 1 to 32 lower-case letters, digits and underscores; it is a part of events' ids."""
URL_CHARACTERS_MAX: Final = 2_048
REQUEST_TYPE: Final = "sms.events"
REPLY_TYPE: Final = "reply.received"
_HOST: Final = re.compile(r"[A-Za-z0-9._:\[\]-]+")

FINAL_STATES: Final = (
    MessageState.DELIVERED,
    MessageState.UNDELIVERED,
    MessageState.EXPIRED,
    MessageState.FAILED,
    MessageState.CANCELLED,
)
TOLD_STATES: Final = (MessageState.SENT, *FINAL_STATES)
"""States of messages that can be told."""
ALERT_KINDS: Final = (ALERT_OPENED, ALERT_RECOVERED)
EVENT_NAMES: Final[Mapping[int, str]] = {
    **{int(state): f"message.{state.name.lower()}" for state in TOLD_STATES},
    REPLY_EVENT: REPLY_TYPE,
    ALERT_OPENED: "alert.opened",
    ALERT_RECOVERED: "alert.recovered",
}
"""What can be told, by the kind of the event."""


class BadWebhook(ValueError):  # noqa: N818 - named for what it says
    """A field of a webhook breaks its rule. Names the rule, never the value."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event with what is told of its subject; what does not apply is None.

    `moments` by the names that the body gives them.
    """

    event_id: str
    kind: int
    subject_id: str
    result_code: str | None
    happened_at: datetime
    mobile: str | None
    details: Mapping[str, Any]
    moments: Mapping[str, datetime | None]


def new_secret() -> str:
    """A secret that nobody has."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode("ascii")


def check_secret(secret: str) -> None:
    """Raise `BadWebhook` for what is no secret of the specification."""
    rule = f"must be {SECRET_PREFIX} and the base64 of {_SECRET_BYTES_MIN} to {_SECRET_BYTES_MAX} bytes"
    if not secret.startswith(SECRET_PREFIX):
        raise BadWebhook(rule)
    try:
        key = _key(secret)
    except (binascii.Error, ValueError):
        raise BadWebhook(rule) from None
    if not _SECRET_BYTES_MIN <= len(key) <= _SECRET_BYTES_MAX:
        raise BadWebhook(rule)


def check_url(url: str, *, http_allowed: bool, private_allowed: bool) -> None:
    """Raise `BadWebhook` for an address that is not to be called, as far as it tells by itself.

    Where a name leads is only known when it is called (`smsgateway.webhook_calls`).
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise BadWebhook("must be an address such as https://example.com/sms") from None
    if len(url) > URL_CHARACTERS_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise BadWebhook(f"must have at most {URL_CHARACTERS_MAX} printable ASCII characters and no spaces")
    if parts.scheme != "https" and not (http_allowed and parts.scheme == "http"):
        raise BadWebhook("must begin with https://" + (" or http://" if http_allowed else ""))
    if not host or not _HOST.fullmatch(host) or port == 0:
        raise BadWebhook("must have a host, and no port 0")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise BadWebhook("must hold no credentials and no fragment")
    if not private_allowed and not is_public_host(host):
        raise BadWebhook("must not lead to a private, loopback or otherwise special address")


def is_public_host(host: str) -> bool:
    """False for a literal address that is not public, and for names of this machine; names are resolved elsewhere."""
    if host.rstrip(".").lower() == "localhost" or host.rstrip(".").lower().endswith((".localhost", ".internal")):
        return False
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        # Resolvers read 127.1, 0x7f000001 and 2130706433 as addresses.
        return not re.fullmatch(r"(?:0x[0-9a-fA-F]*|[0-9]+)(?:\.(?:0x[0-9a-fA-F]*|[0-9]+)){0,3}\.?", host)
    return is_public_address(str(address))


def is_public_address(text: str) -> bool:
    """Whether an IP address is one of the Internet: not private, loopback, link-local, multicast or reserved, also when
    it is an IPv4 address inside an IPv6 one.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        for inner in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())):
            if inner is not None and not _is_public(inner):
                return False
        # 64:ff9b::/96 (RFC 6052) and ::/96 hold an IPv4 address in their last 32 bits.
        if address in ipaddress.ip_network("64:ff9b::/96") or address in ipaddress.ip_network("::/96"):
            return _is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        if address.ipv4_mapped is not None:
            return True
    return _is_public(address)


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_global and not address.is_multicast and not address.is_reserved


def body_of(brand_id: int, events: Sequence[Event], at: datetime, *, full_number: bool) -> bytes:
    """The body of a request. Numbers are masked unless the webhook asks for whole ones."""
    told = [_told(event, full_number) for event in events]
    return orjson.dumps(
        {"type": REQUEST_TYPE, "timestamp": _moment(at), "data": {"brand_id": brand_id, "events": told}}
    )


def _told(event: Event, full_number: bool) -> dict[str, Any]:
    mobile = event.mobile
    if mobile is not None and not full_number:
        mobile = mask_mobile(mobile)
    told: dict[str, Any] = {
        "id": event.event_id,
        "type": EVENT_NAMES.get(event.kind, "unknown"),
        "timestamp": _moment(event.happened_at),
    }
    if event.kind == REPLY_EVENT:
        told |= {"reply_id": event.subject_id, "mobile": mobile}
    elif event.kind in ALERT_KINDS:
        told |= {"alert_id": event.subject_id}
    else:
        told |= {
            "message_id": event.subject_id,
            "state": MessageState(event.kind).name.lower(),
            "result_code": event.result_code or "",
            "mobile": mobile,
        }
    told |= event.details
    told |= {name: None if moment is None else _moment(moment) for name, moment in event.moments.items()}
    return told


def message_details(batch_id: str | None, request_id: str | None, sms_type: int | None, segments: int | None) -> (
    dict[str, Any]
):  # fmt: skip
    """What is told of a message beside its state."""
    return {
        "batch_id": batch_id,
        "request_id": request_id,
        "sms_type": TYPE_NAMES.get(sms_type or 0),
        "segments": segments,
    }


def request_id_of(events: Iterable[Event]) -> str:
    """The ``webhook-id`` of a request: the same for the same events, however often they are sent."""
    digest = hashlib.sha256("\n".join(event.event_id for event in events).encode())
    return f"evt_{digest.hexdigest()[:40]}"


def headers_of(request_id: str, at: datetime, body: bytes, secrets_now: Sequence[str]) -> dict[str, str]:
    """The headers that prove where a request comes from, signed with each secret that holds.

    Args:
        request_id: the ``webhook-id``.
        at: the moment of this attempt.
        body: the bytes that are sent.
        secrets_now: the newest first.
    """
    assert secrets_now, "a webhook has a secret"
    timestamp = str(int(at.timestamp()))
    signed = b".".join((request_id.encode(), timestamp.encode(), body))
    return {
        "Content-Type": "application/json",
        "webhook-id": request_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{_signature(secret, signed)}" for secret in secrets_now),
    }


def _signature(secret: str, signed: bytes) -> str:
    return base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode("ascii")


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
