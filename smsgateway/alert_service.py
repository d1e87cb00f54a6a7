"""The gRPC service `smsgateway.v1.Alerts`: rules of alerts, and what is open."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, get_args

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from infra import paging
from infra.authorization import Role, current_principal
from infra.database import Database
from infra.errors import failed_precondition, invalid_fields, not_found
from infra.grpc_server import Permissions
from infra.identifiers import brand_of
from protos.smsgateway.v1 import alerts_pb2, alerts_pb2_grpc
from smsgateway.alerts import FIGURES, HOUSE, AlertKind, BadRule, Rule, is_kind, make_rule
from smsgateway.settings import Settings
from smsgateway.store import alerts
from smsgateway.store.alerts import ListedAlert

log = structlog.get_logger(__name__)

SERVICE = alerts_pb2.DESCRIPTOR.services_by_name["Alerts"].full_name

_VIEWER, _ADMIN = frozenset({Role.VIEWER}), frozenset({Role.ADMIN})
PERMISSIONS: Permissions = {
    f"/{SERVICE}/PutAlertRule": _ADMIN,
    f"/{SERVICE}/ListAlertRules": _VIEWER,
    f"/{SERVICE}/RemoveAlertRule": _ADMIN,
    f"/{SERVICE}/ListAlerts": _VIEWER,
}

_FigureName = Literal["segments", "days", "percent", "count", "minutes", "hold_seconds"]
_FIGURE_NAMES: tuple[_FigureName, ...] = get_args(_FigureName)

Context = grpc.aio.ServicerContext[Any, Any]


class AlertsService(alerts_pb2_grpc.AlertsServicer):
    """The RPCs; their errors are documented in the proto."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    async def PutAlertRule(
        self, request: alerts_pb2.PutAlertRuleRequest, context: Context
    ) -> alerts_pb2.PutAlertRuleResponse:
        """Create or replace a rule."""
        rule = _rule(request.rule)
        _require(rule.brand_id)
        if rule.recipients and not self._settings.smtp_host:
            raise failed_precondition(
                "MAIL_NOT_SET_UP", "no mail server is set; set SMSBILL_SMTP_HOST, or leave recipients out"
            )
        async with self._database.connection() as connection:
            updated_at = await alerts.put_rule(connection, rule)
        log.warning(
            "alert rule put",
            brand_id=rule.brand_id,
            kind=rule.kind.name.lower(),
            sms_type=rule.sms_type,
            enabled=rule.enabled,
            token_id=current_principal().token_id,
        )
        return alerts_pb2.PutAlertRuleResponse(rule=_rule_message(rule, updated_at))

    async def ListAlertRules(
        self, request: alerts_pb2.ListAlertRulesRequest, context: Context
    ) -> alerts_pb2.ListAlertRulesResponse:
        """A page of rules."""
        brand_id = request.brand_id if request.HasField("brand_id") else None
        if brand_id is None:
            current_principal().require_all_brands()
        else:
            _require(brand_id)
        size = paging.page_size(request.page_size)
        numbers = paging.decode_numbers(request.page_token, 3)
        after = (numbers[0], numbers[1], numbers[2]) if numbers else (-1, 0, 0)
        async with self._database.connection() as connection:
            found = await alerts.list_rules(connection, brand_id=brand_id, after=after, limit=size + 1)
        last = found[size - 1][0] if len(found) > size else None
        return alerts_pb2.ListAlertRulesResponse(
            rules=[_rule_message(*each) for each in found[:size]],
            next_page_token=""
            if last is None
            else paging.encode_token(f"{last.brand_id}.{last.kind:d}.{last.sms_type}"),
        )

    async def RemoveAlertRule(
        self, request: alerts_pb2.RemoveAlertRuleRequest, context: Context
    ) -> alerts_pb2.RemoveAlertRuleResponse:
        """Remove a rule."""
        if not is_kind(request.kind):
            raise invalid_fields({"kind": "must be a known kind"})
        if request.sms_type not in {0, 1, 2, 3}:
            raise invalid_fields({"sms_type": "must be a known type"})
        _require(request.brand_id)
        async with self._database.connection() as connection:
            removed = await alerts.remove_rule(connection, request.brand_id, request.kind, request.sms_type)
        if not removed:
            raise not_found("ALERT_RULE_NOT_FOUND", "there is no such rule")
        log.warning(
            "alert rule removed",
            brand_id=request.brand_id,
            kind=AlertKind(request.kind).name.lower(),
            sms_type=int(request.sms_type),
            token_id=current_principal().token_id,
        )
        return alerts_pb2.RemoveAlertRuleResponse()

    async def ListAlerts(
        self, request: alerts_pb2.ListAlertsRequest, context: Context
    ) -> alerts_pb2.ListAlertsResponse:
        """A page of alerts."""
        brand_id = request.brand_id if request.HasField("brand_id") else None
        if brand_id is not None:
            _require(brand_id)
        if request.kind and not is_kind(request.kind):
            raise invalid_fields({"kind": "must be a known kind"})
        size = paging.page_size(request.page_size)
        after = paging.decode_token(request.page_token)
        brand_after = -1
        if after:
            found_brand = brand_of(after)
            if found_brand is None:
                raise paging.not_ours()
            brand_after = found_brand
        async with self._database.connection() as connection:
            found = await alerts.listed(
                connection,
                brand_id=brand_id,
                allowed=current_principal().brand_ids,
                kind=request.kind,
                recovered=request.include_recovered,
                after=(brand_after, after),
                limit=size + 1,
            )
        return alerts_pb2.ListAlertsResponse(
            alerts=[_alert_message(each) for each in found[:size]],
            next_page_token=paging.encode_token(found[size - 1].alert_id) if len(found) > size else "",
        )


def _require(brand_id: int) -> None:
    """The token holds for the brand, or for all where it is the house's."""
    if brand_id < 0:
        raise invalid_fields({"brand_id": "must be a brand, or 0 for the house"})
    if brand_id == HOUSE:
        current_principal().require_all_brands()
    else:
        current_principal().require_brand(brand_id)


def _rule(asked: alerts_pb2.AlertRule) -> Rule:
    try:
        return make_rule(
            brand_id=asked.brand_id,
            kind=asked.kind,
            sms_type=asked.sms_type,
            enabled=asked.enabled if asked.HasField("enabled") else True,
            figures={name: getattr(asked, name) for name in _FIGURE_NAMES if asked.HasField(name)},
            recipients=asked.recipients,
            webhooks=asked.webhooks if asked.HasField("webhooks") else True,
        )
    except BadRule as error:
        raise invalid_fields({f"rule.{name}": rule for name, rule in error.violations.items()}) from None


def _rule_message(rule: Rule, updated_at: datetime) -> alerts_pb2.AlertRule:
    message = alerts_pb2.AlertRule(
        brand_id=rule.brand_id,
        kind=alerts_pb2.AlertKind.ValueType(rule.kind),
        sms_type=rule.sms_type,  # type: ignore[arg-type] # numbers of the proto's enum
        enabled=rule.enabled,
        recipients=rule.recipients,
        webhooks=rule.webhooks,
        updated_at=_timestamp(updated_at),
    )
    for name in FIGURES[rule.kind]:
        setattr(message, name, getattr(rule, name))
    return message


def _alert_message(alert: ListedAlert) -> alerts_pb2.Alert:
    return alerts_pb2.Alert(
        alert_id=alert.alert_id,
        brand_id=alert.brand_id,
        kind=alerts_pb2.AlertKind.ValueType(alert.kind),
        subject=alert.subject,
        since=_timestamp(alert.since),
        opened_at=_timestamp(alert.opened_at),
        recovered_at=_timestamp(alert.recovered_at),
        withdrawn=alert.withdrawn,
        figures=[
            alerts_pb2.AlertFigure(name=name, value="" if value is None else str(value))
            for name, value in sorted(alert.figures.items())
        ],
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
