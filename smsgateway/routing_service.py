"""The gRPC service `smsgateway.v1.Routing`: it translates, others decide."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from infra.authorization import Role, current_principal
from infra.errors import invalid_fields
from infra.grpc_server import Permissions
from protos.smsgateway.v1 import routing_pb2, routing_pb2_grpc
from smsgateway.metrics import TYPE_NAMES
from smsgateway.mobile import InvalidMobile, normalize_mobile
from smsgateway.route_keeping import AccountChange, RouteKeeper, SeenAccount
from smsgateway.store.routing import LimitRow, RuleRow

log = structlog.get_logger(__name__)

SERVICE = routing_pb2.DESCRIPTOR.services_by_name["Routing"].full_name

_ADMIN = frozenset({Role.ADMIN})
PERMISSIONS: Permissions = {
    f"/{SERVICE}/{method.name}": _ADMIN for method in routing_pb2.DESCRIPTOR.services_by_name["Routing"].methods
}

Context = grpc.aio.ServicerContext[Any, Any]


class RoutingService(routing_pb2_grpc.RoutingServicer):
    """The RPCs; their errors are documented in the proto. Values of settings are neither told nor logged."""

    def __init__(self, keeper: RouteKeeper) -> None:
        self._keeper = keeper

    async def PutCarrierAccount(
        self, request: routing_pb2.PutCarrierAccountRequest, context: Context
    ) -> routing_pb2.PutCarrierAccountResponse:
        """Create or change an account."""
        current_principal().require_all_brands()
        change = AccountChange(
            account_id=request.account_id,
            kind=request.kind,
            settings=dict(request.settings),
            unset_settings=list(request.unset_settings),
            paused=request.paused if request.HasField("paused") else None,
            rate=request.rate if request.HasField("rate") else None,
            burst=request.burst if request.HasField("burst") else None,
            calls_max=request.calls_max if request.HasField("calls_max") else None,
            balance_alert=request.balance_alert if request.HasField("balance_alert") else None,
        )
        seen = await self._keeper.put_account(change)
        _log("carrier account changed", account=request.account_id, settings=sorted(request.settings))
        return routing_pb2.PutCarrierAccountResponse(account=_account(seen))

    async def ListCarrierAccounts(
        self, request: routing_pb2.ListCarrierAccountsRequest, context: Context
    ) -> routing_pb2.ListCarrierAccountsResponse:
        """Every account."""
        current_principal().require_all_brands()
        accounts = await self._keeper.accounts()
        return routing_pb2.ListCarrierAccountsResponse(accounts=[_account(seen) for seen in accounts])

    async def RemoveCarrierAccount(
        self, request: routing_pb2.RemoveCarrierAccountRequest, context: Context
    ) -> routing_pb2.RemoveCarrierAccountResponse:
        """Remove an account."""
        current_principal().require_all_brands()
        await self._keeper.remove_account(request.account_id)
        _log("carrier account removed", account=request.account_id)
        return routing_pb2.RemoveCarrierAccountResponse()

    async def PutRoutingRule(
        self, request: routing_pb2.PutRoutingRuleRequest, context: Context
    ) -> routing_pb2.PutRoutingRuleResponse:
        """Create or change a rule."""
        current_principal().require_all_brands()
        rule = request.rule
        row = await self._keeper.put_rule(
            RuleRow(
                rule.brand_id,
                rule.sms_type,
                rule.prefix,
                rule.account_id,
                rule.priority,
                rule.weight,
                rule.enabled,
            )
        )
        _log("routing rule changed", **_told(row), enabled=row.enabled)
        return routing_pb2.PutRoutingRuleResponse(rule=_rule(row))

    async def ListRoutingRules(
        self, request: routing_pb2.ListRoutingRulesRequest, context: Context
    ) -> routing_pb2.ListRoutingRulesResponse:
        """Every rule."""
        current_principal().require_all_brands()
        return routing_pb2.ListRoutingRulesResponse(rules=[_rule(row) for row in await self._keeper.rules()])

    async def RemoveRoutingRule(
        self, request: routing_pb2.RemoveRoutingRuleRequest, context: Context
    ) -> routing_pb2.RemoveRoutingRuleResponse:
        """Remove a rule."""
        current_principal().require_all_brands()
        await self._keeper.remove_rule(request.brand_id, request.sms_type, request.prefix, request.account_id)
        _log("routing rule removed", brand_id=request.brand_id, account=request.account_id, prefix=request.prefix)
        return routing_pb2.RemoveRoutingRuleResponse()

    async def PutSendingLimit(
        self, request: routing_pb2.PutSendingLimitRequest, context: Context
    ) -> routing_pb2.PutSendingLimitResponse:
        """Create or change a limit."""
        current_principal().require_all_brands()
        limit = request.limit
        row = await self._keeper.put_limit(LimitRow(limit.brand_id, limit.sms_type, round(limit.rate, 3), limit.burst))
        _log("sending limit changed", brand_id=row.brand_id, sms_type=row.sms_type, rate=row.rate)
        return routing_pb2.PutSendingLimitResponse(limit=_limit(row))

    async def ListSendingLimits(
        self, request: routing_pb2.ListSendingLimitsRequest, context: Context
    ) -> routing_pb2.ListSendingLimitsResponse:
        """Every limit."""
        current_principal().require_all_brands()
        return routing_pb2.ListSendingLimitsResponse(limits=[_limit(row) for row in await self._keeper.limits()])

    async def RemoveSendingLimit(
        self, request: routing_pb2.RemoveSendingLimitRequest, context: Context
    ) -> routing_pb2.RemoveSendingLimitResponse:
        """Remove a limit."""
        current_principal().require_all_brands()
        await self._keeper.remove_limit(request.brand_id, request.sms_type)
        _log("sending limit removed", brand_id=request.brand_id, sms_type=request.sms_type)
        return routing_pb2.RemoveSendingLimitResponse()

    async def ExplainRoute(
        self, request: routing_pb2.ExplainRouteRequest, context: Context
    ) -> routing_pb2.ExplainRouteResponse:
        """Where a message may go."""
        current_principal().require_all_brands()
        violations = {}
        mobile = ""
        if request.brand_id < 1:
            violations["brand_id"] = "must be at least 1"
        if request.sms_type not in TYPE_NAMES:
            violations["sms_type"] = "must be a known type"
        try:
            mobile = normalize_mobile(request.mobile)
        except InvalidMobile as error:
            violations["mobile"] = error.rule
        if violations:
            raise invalid_fields(violations)
        explained = await self._keeper.explain(request.brand_id, request.sms_type, mobile)
        steps = []
        for number, tier in enumerate(explained.plan.tiers, 1):
            weights = sum(weight for _, weight in tier)
            for account_id, weight in sorted(tier, key=lambda entry: (-entry[1], entry[0])):
                problem = explained.problems[account_id]
                share = weight / weights if weights else 1 / len(tier)
                steps.append(
                    routing_pb2.RouteStep(
                        account_id=account_id,
                        tier=number,
                        weight=weight,
                        share=share,
                        usable=not problem,
                        problem=problem,
                    )
                )
        return routing_pb2.ExplainRouteResponse(steps=steps, default_account=explained.is_default)


def _log(event: str, **told: object) -> None:
    log.warning(event, token_id=current_principal().token_id, **told)


def _told(row: RuleRow) -> dict[str, object]:
    return {
        "brand_id": row.brand_id,
        "sms_type": row.sms_type,
        "prefix": row.prefix,
        "account": row.account_id,
        "priority": row.priority,
        "weight": row.weight,
    }


def _account(seen: SeenAccount) -> routing_pb2.CarrierAccount:
    row = seen.row
    return routing_pb2.CarrierAccount(
        account_id=row.account_id,
        kind=row.kind,
        description=seen.description,
        setting_names=sorted(row.settings),
        paused=row.paused,
        rate=row.rate,
        burst=row.burst,
        calls_max=row.calls_max,
        balance_alert=row.balance_alert,
        balance=row.balance,
        balance_at=_timestamp(row.balance_at),
        balance_low=row.balance_low,
        updated_at=_timestamp(row.updated_at),
        problem=seen.problem,
    )


def _rule(row: RuleRow) -> routing_pb2.RoutingRule:
    return routing_pb2.RoutingRule(
        brand_id=row.brand_id,
        sms_type=row.sms_type,  # type: ignore[arg-type] # the row holds the enum's number
        prefix=row.prefix,
        account_id=row.account_id,
        priority=row.priority,
        weight=row.weight,
        enabled=row.enabled,
        updated_at=_timestamp(row.updated_at),
    )


def _limit(row: LimitRow) -> routing_pb2.SendingLimit:
    return routing_pb2.SendingLimit(
        brand_id=row.brand_id,
        sms_type=row.sms_type,  # type: ignore[arg-type] # the row holds the enum's number
        rate=row.rate,
        burst=row.burst,
        updated_at=_timestamp(row.updated_at),
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
