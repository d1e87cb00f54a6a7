"""The gRPC service `smsgateway.v1.SenderRules`: what brands may send, set by admins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from infra import paging
from infra.authorization import Role, current_principal
from infra.database import Database
from infra.errors import Refusal, failed_precondition, invalid_fields
from infra.grpc_server import Permissions
from protos.smsgateway.v1 import sender_rules_pb2 as pb
from protos.smsgateway.v1 import sender_rules_pb2_grpc
from smsgateway.metrics import TYPE_NAMES
from smsgateway.mobile import InvalidMobile, normalize_mobile
from smsgateway.rule_book import effective, limits_from, quiet_from
from smsgateway.rules import Approval, Limits, is_signature, minutes_of, signature_of
from smsgateway.schema import SuppressionKind
from smsgateway.settings import Settings
from smsgateway.store import sender_rules as store
from smsgateway.store import suppressions
from smsgateway.store.sender_rules import OwnRules, StoredSignature, StoredTemplate
from smsgateway.store.suppressions import ALL_BRANDS, ListedSuppression, Suppression
from smsgateway.templates import BadTemplate, parse

log = structlog.get_logger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["SenderRules"].full_name

_VIEWER, _ADMIN = frozenset({Role.VIEWER}), frozenset({Role.ADMIN})
PERMISSIONS: Permissions = {
    f"/{SERVICE}/PutBrandRules": _ADMIN,
    f"/{SERVICE}/GetBrandRules": _VIEWER,
    f"/{SERVICE}/PutSignature": _ADMIN,
    f"/{SERVICE}/ListSignatures": _VIEWER,
    f"/{SERVICE}/RemoveSignature": _ADMIN,
    f"/{SERVICE}/PutTemplate": _ADMIN,
    f"/{SERVICE}/GetTemplate": _VIEWER,
    f"/{SERVICE}/ListTemplates": _VIEWER,
    f"/{SERVICE}/RemoveTemplate": _ADMIN,
    f"/{SERVICE}/AddSuppressions": _ADMIN,
    f"/{SERVICE}/RemoveSuppressions": _ADMIN,
    f"/{SERVICE}/ListSuppressions": _VIEWER,
}

Context = grpc.aio.ServicerContext[Any, Any]
Violations = dict[str, str]

_LIMIT_MAX = 1_000
_MOBILES_MAX = 1_000
_TEMPLATE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SOURCE = re.compile(r"[A-Za-z0-9._-]{1,32}")
_REASON_CHARACTERS_MAX = 500


class SenderRulesService(sender_rules_pb2_grpc.SenderRulesServicer):
    """The RPCs; their errors are documented in the proto."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    # Brands.

    async def PutBrandRules(self, request: pb.PutBrandRulesRequest, context: Context) -> pb.PutBrandRulesResponse:
        """Replace a brand's own settings."""
        brand_id = _brand(request.rules.brand_id, "rules.brand_id")
        asked = _own_rules(request.rules)
        async with self._database.connection() as connection:
            await store.put(connection, brand_id, asked)
            own = await store.find(connection, brand_id)
        log.info("rules changed", brand_id=brand_id, token_id=current_principal().token_id)
        return pb.PutBrandRulesResponse(rules=_told(brand_id, own), effective=self._effective(brand_id, own))

    async def GetBrandRules(self, request: pb.GetBrandRulesRequest, context: Context) -> pb.GetBrandRulesResponse:
        """A brand's own settings, and what holds for it."""
        brand_id = _brand(request.brand_id)
        async with self._database.connection() as connection:
            own = await store.find(connection, brand_id)
        return pb.GetBrandRulesResponse(rules=_told(brand_id, own), effective=self._effective(brand_id, own))

    # Signatures.

    async def PutSignature(self, request: pb.PutSignatureRequest, context: Context) -> pb.PutSignatureResponse:
        """Register a signature."""
        brand_id = _brand(request.brand_id)
        violations: Violations = {}
        if not is_signature(request.signature):
            violations["signature"] = "must have 1 to 20 printable characters, without 【 and 】 and spaces at its ends"
        approval = _approval(request.approval, violations)
        if violations:
            raise invalid_fields(violations)
        async with self._database.connection() as connection:
            await store.touch(connection, brand_id)
            if await store.other_signatures(connection, brand_id, request.signature) >= self._per_brand_max:
                raise Refusal(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    "TOO_MANY_SIGNATURES",
                    f"a brand has at most {self._per_brand_max} signatures; remove some",
                    metadata={"limit": str(self._per_brand_max)},
                )
            row = await store.put_signature(connection, brand_id, request.signature, approval)
        log.info("signature put", brand_id=brand_id, approval=approval, token_id=current_principal().token_id)
        return pb.PutSignatureResponse(signature=_signature(row))

    async def ListSignatures(self, request: pb.ListSignaturesRequest, context: Context) -> pb.ListSignaturesResponse:
        """A page of a brand's signatures."""
        brand_id = _brand(request.brand_id)
        size = paging.page_size(request.page_size)
        after = paging.decode_token(request.page_token)
        async with self._database.connection() as connection:
            rows = await store.signatures(connection, brand_id, after=after, limit=size + 1)
        return pb.ListSignaturesResponse(
            signatures=[_signature(row) for row in rows[:size]],
            next_page_token=paging.next_token(rows[size - 1].signature if len(rows) > size else ""),
        )

    async def RemoveSignature(self, request: pb.RemoveSignatureRequest, context: Context) -> pb.RemoveSignatureResponse:
        """Forget a signature."""
        brand_id = _brand(request.brand_id)
        if not is_signature(request.signature):
            raise invalid_fields({"signature": "must be a signature"})
        async with self._database.connection() as connection:
            await store.touch(connection, brand_id)
            removed = await store.delete_signature(connection, brand_id, request.signature)
        log.info("signature removed", brand_id=brand_id, removed=removed, token_id=current_principal().token_id)
        return pb.RemoveSignatureResponse(removed=removed)

    # Templates.

    async def PutTemplate(self, request: pb.PutTemplateRequest, context: Context) -> pb.PutTemplateResponse:
        """Register a template."""
        brand_id = _brand(request.brand_id)
        violations: Violations = {}
        _check_template_id(request.template_id, violations)
        if request.sms_type not in TYPE_NAMES:
            violations["sms_type"] = "must be verification (1), notification (2) or marketing (3)"
        approval = _approval(request.approval, violations)
        self._check_template(request.text, violations)
        if violations:
            raise invalid_fields(violations)
        async with self._database.connection() as connection:
            await store.touch(connection, brand_id)
            if await store.other_templates(connection, brand_id, request.template_id) >= self._per_brand_max:
                raise Refusal(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    "TOO_MANY_TEMPLATES",
                    f"a brand has at most {self._per_brand_max} templates; remove some",
                    metadata={"limit": str(self._per_brand_max)},
                )
            row = await store.put_template(
                connection, brand_id, request.template_id, request.sms_type, request.text, approval
            )
        log.info(
            "template put",
            brand_id=brand_id,
            template_id=request.template_id,
            approval=approval,
            token_id=current_principal().token_id,
        )
        return pb.PutTemplateResponse(template=_template(row))

    async def GetTemplate(self, request: pb.GetTemplateRequest, context: Context) -> pb.GetTemplateResponse:
        """One template."""
        brand_id = _brand(request.brand_id)
        async with self._database.connection() as connection:
            row = await store.find_template(connection, brand_id, _stored_id(request.template_id))
        if row is None:
            raise failed_precondition("TEMPLATE_NOT_FOUND", "the brand has no such template")
        return pb.GetTemplateResponse(template=_template(row))

    async def ListTemplates(self, request: pb.ListTemplatesRequest, context: Context) -> pb.ListTemplatesResponse:
        """A page of a brand's templates."""
        brand_id = _brand(request.brand_id)
        size = paging.page_size(request.page_size)
        after = paging.decode_token(request.page_token)
        async with self._database.connection() as connection:
            rows = await store.templates(connection, brand_id, after=after, limit=size + 1)
        return pb.ListTemplatesResponse(
            templates=[_template(row) for row in rows[:size]],
            next_page_token=paging.next_token(rows[size - 1].template_id if len(rows) > size else ""),
        )

    async def RemoveTemplate(self, request: pb.RemoveTemplateRequest, context: Context) -> pb.RemoveTemplateResponse:
        """Forget a template."""
        brand_id = _brand(request.brand_id)
        async with self._database.connection() as connection:
            await store.touch(connection, brand_id)
            removed = await store.delete_template(connection, brand_id, _stored_id(request.template_id))
        log.info("template removed", brand_id=brand_id, removed=removed, token_id=current_principal().token_id)
        return pb.RemoveTemplateResponse(removed=removed)

    # Suppressions.

    async def AddSuppressions(self, request: pb.AddSuppressionsRequest, context: Context) -> pb.AddSuppressionsResponse:
        """Add numbers that must not be sent to."""
        brand_id = _suppressed_brand(request.brand_id)
        violations: Violations = {}
        kind = _kind(request.kind, violations)
        mobiles = _mobiles(request.mobiles, violations)
        source = request.source or "admin"
        if not _SOURCE.fullmatch(source):
            violations["source"] = "must be a word of at most 32 letters, digits, dots, dashes and underscores"
        if len(request.reason) > _REASON_CHARACTERS_MAX or not (request.reason.isprintable()):
            violations["reason"] = f"must have at most {_REASON_CHARACTERS_MAX} printable characters"
        if violations or kind is None:
            raise invalid_fields(violations)
        rows = [Suppression(brand_id, mobile, kind, source, request.reason) for mobile in mobiles]
        async with self._database.connection() as connection:
            added = await suppressions.add(connection, rows)
        log.info(
            "suppressions added",
            brand_id=brand_id,
            kind=kind.name.lower(),
            added=len(added),
            token_id=current_principal().token_id,
        )
        return pb.AddSuppressionsResponse(added=len(added))

    async def RemoveSuppressions(
        self, request: pb.RemoveSuppressionsRequest, context: Context
    ) -> pb.RemoveSuppressionsResponse:
        """Take numbers off again."""
        brand_id = _suppressed_brand(request.brand_id)
        violations: Violations = {}
        kind = _kind(request.kind, violations)
        mobiles = _mobiles(request.mobiles, violations)
        if violations or kind is None:
            raise invalid_fields(violations)
        async with self._database.connection() as connection:
            removed = await suppressions.remove(connection, [(brand_id, mobile, int(kind)) for mobile in mobiles])
        log.info(
            "suppressions removed",
            brand_id=brand_id,
            kind=kind.name.lower(),
            removed=len(removed),
            token_id=current_principal().token_id,
        )
        return pb.RemoveSuppressionsResponse(removed=len(removed))

    async def ListSuppressions(
        self, request: pb.ListSuppressionsRequest, context: Context
    ) -> pb.ListSuppressionsResponse:
        """A page of the numbers that must not be sent to."""
        brand_id = _suppressed_brand(request.brand_id)
        size = paging.page_size(request.page_size)
        mobile = ""
        if request.mobile:
            try:
                mobile = normalize_mobile(request.mobile)
            except InvalidMobile as error:
                raise invalid_fields({"mobile": error.rule}) from None
        after = _place(request.page_token)
        async with self._database.connection() as connection:
            rows = await suppressions.page(connection, brand_id, mobile=mobile, after=after, limit=size + 1)
        last = rows[size - 1] if len(rows) > size else None
        return pb.ListSuppressionsResponse(
            suppressions=[_suppression(row) for row in rows[:size]],
            next_page_token=paging.next_token("" if last is None else f"{last.mobile}.{last.kind:d}"),
        )

    @property
    def _per_brand_max(self) -> int:
        return self._settings.rules_per_brand_max

    def _check_template(self, text: str, violations: Violations) -> None:
        if not 0 < len(text) <= self._settings.text_characters_max or "\0" in text:
            violations["text"] = f"must have 1 to {self._settings.text_characters_max} characters and no NUL"
        elif text.startswith("【") and signature_of(text) is None:
            violations["text"] = "must begin with a whole signature 【…】 of 1 to 20 characters, or with none"
        else:
            try:
                parse(text)
            except BadTemplate as error:
                violations["text"] = str(error)

    def _effective(self, brand_id: int, own: OwnRules) -> pb.BrandRules:
        rules, settings = effective(own, self._settings), self._settings
        quiet = quiet_from(own, settings)
        return pb.BrandRules(
            brand_id=brand_id,
            signatures=_switch(rules.signatures is not None),
            templates=_switch(rules.must_match),
            suffix=int(rules.suffix),  # type: ignore[arg-type] # the numbers are the enum's
            frequency=_switch(bool(rules.limits)),
            verification=_limits(limits_from(own.verification_limits, settings.verification_limits)),
            notification=_limits(limits_from(own.notification_limits, settings.notification_limits)),
            marketing=_limits(limits_from(own.marketing_limits, settings.marketing_limits)),
            quiet_hours=_switch(rules.quiet is not None),
            quiet_from=_time(quiet.start),
            quiet_until=_time(quiet.end),
            changed_at=_timestamp(own.changed_at),
        )


# What callers ask for.


def _brand(brand_id: int, field: str = "brand_id") -> int:
    """The brand of a call. Raises INVALID_ARGUMENT for a number below 1, PERMISSION_DENIED for another's brand."""
    if brand_id < 1:
        raise invalid_fields({field: "must be at least 1"})
    current_principal().require_brand(brand_id)
    return brand_id


def _suppressed_brand(brand_id: int) -> int:
    """The brand of a call, or 0 for all of them, which wants a token for all."""
    if brand_id != ALL_BRANDS:
        return _brand(brand_id)
    current_principal().require_all_brands()
    return brand_id


def _own_rules(rules: pb.BrandRules) -> OwnRules:
    violations: Violations = {}
    for field in ("signatures", "templates", "frequency", "quiet_hours"):
        if getattr(rules, field) not in _SWITCHES:
            violations[f"rules.{field}"] = "must be OFF, ON or not given"
    if rules.suffix not in (0, 1, 2, 3):
        violations["rules.suffix"] = "must be OFF, REQUIRED, APPENDED or not given"
    limits = {field: _own_limits(rules, field, violations) for field in ("verification", "notification", "marketing")}
    times = {field: minutes_of(getattr(rules, field)) for field in ("quiet_from", "quiet_until")}
    for field, minutes in times.items():
        if getattr(rules, field) and minutes is None:
            violations[f"rules.{field}"] = "must be a time such as 22:00, or empty"
    if violations:
        raise invalid_fields(violations)
    return OwnRules(
        signatures=_SWITCHES[rules.signatures],
        templates=_SWITCHES[rules.templates],
        suffix=rules.suffix or None,
        frequency=_SWITCHES[rules.frequency],
        verification_limits=limits["verification"],
        notification_limits=limits["notification"],
        marketing_limits=limits["marketing"],
        quiet=_SWITCHES[rules.quiet_hours],
        quiet_from=times["quiet_from"],
        quiet_until=times["quiet_until"],
    )


_SWITCHES: dict[int, bool | None] = {0: None, 1: False, 2: True}


def _own_limits(rules: pb.BrandRules, field: str, violations: Violations) -> list[int] | None:
    if not rules.HasField(field):  # type: ignore[arg-type] # one of its messages
        return None
    limits = getattr(rules, field)
    found = [limits.per_minute, limits.per_hour, limits.per_day]
    if not all(0 <= each <= _LIMIT_MAX for each in found):
        violations[f"rules.{field}"] = f"must have figures of 0 to {_LIMIT_MAX}"
    return found


def _approval(number: int, violations: Violations) -> int:
    if number not in (0, *map(int, Approval)):
        violations["approval"] = "must be PENDING, APPROVED, REJECTED or not given"
    return number or int(Approval.PENDING)


def _check_template_id(template_id: str, violations: Violations) -> None:
    if not _TEMPLATE_ID.fullmatch(template_id):
        violations["template_id"] = "must have 1 to 64 letters, digits, dots, dashes and underscores"


def _stored_id(template_id: str) -> str:
    violations: Violations = {}
    _check_template_id(template_id, violations)
    if violations:
        raise invalid_fields(violations)
    return template_id


def _kind(number: int, violations: Violations) -> SuppressionKind | None:
    try:
        return SuppressionKind(number)
    except ValueError:
        violations["kind"] = "must be OPT_OUT or BLACK_LIST"
        return None


def _mobiles(raw: Sequence[str], violations: Violations) -> list[str]:
    if not 1 <= len(raw) <= _MOBILES_MAX:
        violations["mobiles"] = f"must be 1 to {_MOBILES_MAX} numbers"
        return []
    mobiles = []
    for index, each in enumerate(raw):
        try:
            mobiles.append(normalize_mobile(each))
        except InvalidMobile as error:
            violations[f"mobiles[{index}]"] = error.rule
    return mobiles


def _place(token: str) -> tuple[str, int]:
    """The number and kind that a page begins after."""
    if not token:
        return "", 0
    mobile, _, kind = paging.decode_token(token).rpartition(".")
    if not mobile or kind not in ("1", "2"):
        raise paging.not_ours()
    return mobile, int(kind)


# What callers are told.


def _told(brand_id: int, own: OwnRules) -> pb.BrandRules:
    rules = pb.BrandRules(
        brand_id=brand_id,
        signatures=_own_switch(own.signatures),
        templates=_own_switch(own.templates),
        suffix=own.suffix or 0,  # type: ignore[arg-type] # the numbers are the enum's
        frequency=_own_switch(own.frequency),
        quiet_hours=_own_switch(own.quiet),
        quiet_from="" if own.quiet_from is None else _time(own.quiet_from),
        quiet_until="" if own.quiet_until is None else _time(own.quiet_until),
        changed_at=_timestamp(own.changed_at),
    )
    for field in ("verification", "notification", "marketing"):
        found = getattr(own, f"{field}_limits")
        if found is not None:
            getattr(rules, field).CopyFrom(_limits(Limits(*found)))
    return rules


def _own_switch(value: bool | None) -> Any:
    return pb.SWITCH_UNSPECIFIED if value is None else _switch(value)


def _switch(value: bool) -> Any:
    return pb.SWITCH_ON if value else pb.SWITCH_OFF


def _limits(limits: Limits) -> pb.FrequencyLimits:
    return pb.FrequencyLimits(per_minute=limits.per_minute, per_hour=limits.per_hour, per_day=limits.per_day)


def _time(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _signature(row: StoredSignature) -> pb.Signature:
    return pb.Signature(
        brand_id=row.brand_id,
        signature=row.signature,
        approval=row.approval,  # type: ignore[arg-type] # the numbers are the enum's
        created_at=_timestamp(row.created_at),
        changed_at=_timestamp(row.changed_at),
    )


def _template(row: StoredTemplate) -> pb.Template:
    return pb.Template(
        brand_id=row.brand_id,
        template_id=row.template_id,
        sms_type=row.sms_type,  # type: ignore[arg-type] # the numbers are the enum's
        text=row.text,
        approval=row.approval,  # type: ignore[arg-type]
        created_at=_timestamp(row.created_at),
        changed_at=_timestamp(row.changed_at),
    )


def _suppression(row: ListedSuppression) -> pb.Suppression:
    return pb.Suppression(
        brand_id=row.brand_id,
        mobile=row.mobile,
        kind=int(row.kind),  # type: ignore[arg-type] # the numbers are the enum's
        source=row.source,
        reason=row.reason,
        created_at=_timestamp(row.created_at),
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
