"""`smsbill route`: which carrier account messages take, and how fast brands may send."""

# ruff: noqa: PLC0415

from __future__ import annotations

from typing import Annotated, Any

import typer

from smsbill.commands.options import AsJson, Brand, SmsType

route_app = typer.Typer(help="Which carrier account messages take.", no_args_is_help=True)
limit_app = typer.Typer(help="How fast brands may send.", no_args_is_help=True)

_RULE_COLUMNS = ("brand", "type", "prefix", "account", "#priority", "#weight", "enabled", "changed")
_LIMIT_COLUMNS = ("#brand", "type", "#rate", "#burst", "changed")
_STEP_COLUMNS = ("#tier", "account", "#weight", "share", "usable", "problem")
_ALL = "all"

Account = Annotated[str, typer.Argument(help="The account.", show_default=False)]
OfBrand = Annotated[int, typer.Option("--brand", min=0, max=2**63 - 1, help="Messages of this brand; 0: of all.")]
OfType = Annotated[SmsType | None, typer.Option("--type", help="Messages of this type; else any.", show_default=False)]
Prefix = Annotated[str, typer.Option(help="Numbers that begin so, such as +86138; else any.", show_default=False)]
LimitedType = Annotated[
    SmsType | None, typer.Option("--type", help="Of this type; else all together.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    route_app.add_typer(limit_app, name="limit")
    app.add_typer(route_app, name="route", rich_help_panel="Set-up")


@route_app.command("put")
def route_put(
    account: Account,
    brand: OfBrand = 0,
    sms_type: OfType = None,
    prefix: Prefix = "",
    priority: Annotated[int, typer.Option(min=0, help="Smaller goes first.")] = 0,
    weight: Annotated[int, typer.Option(min=0, help="Share among the same priority; 0: after all others.")] = 1,
    enabled: Annotated[bool, typer.Option("--enable/--disable", help="Whether the rule counts.")] = True,
    as_json: AsJson = False,
) -> None:
    """Lead messages to an account; the same brand, type, prefix and account again changes the rule."""
    from protos.smsgateway.v1 import routing_pb2 as pb
    from smsbill import client

    rule = pb.RoutingRule(
        brand_id=brand,
        sms_type=_number(sms_type),  # type: ignore[arg-type] # numbers of the proto's enum
        prefix=prefix,
        account_id=account,
        priority=priority,
        weight=weight,
        enabled=enabled,
    )
    request = pb.PutRoutingRuleRequest(rule=rule)
    reply = client.run(lambda caller: caller.call(caller.routing.PutRoutingRule, request))
    _show_rules(as_json, [reply.rule], single=True)


@route_app.command("list")
def route_list(as_json: AsJson = False) -> None:
    """List the rules."""
    from protos.smsgateway.v1 import routing_pb2 as pb
    from smsbill import client

    request = pb.ListRoutingRulesRequest()
    _show_rules(as_json, list(client.run(lambda caller: caller.call(caller.routing.ListRoutingRules, request)).rules))


@route_app.command("remove")
def route_remove(
    account: Account, brand: OfBrand = 0, sms_type: OfType = None, prefix: Prefix = "", as_json: AsJson = False
) -> None:
    """Remove a rule."""
    from protos.smsgateway.v1 import routing_pb2 as pb
    from smsbill import client
    from smsbill.tables import pairs

    request = pb.RemoveRoutingRuleRequest(
        brand_id=brand,
        sms_type=_number(sms_type),  # type: ignore[arg-type] # numbers of the proto's enum
        prefix=prefix,
        account_id=account,
    )
    client.run(lambda caller: caller.call(caller.routing.RemoveRoutingRule, request))
    pairs(as_json, {"removed": account})


@route_app.command("explain")
def route_explain(
    brand: Brand,
    sms_type: Annotated[SmsType, typer.Option("--type", help="Type of the message.", show_default=False)],
    mobile: Annotated[str, typer.Option("--to", help="The number.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Tell which accounts a message may take, in which order."""
    from protos.smsgateway.v1 import routing_pb2 as pb
    from smsbill import client
    from smsbill.tables import plain, show

    request = pb.ExplainRouteRequest(
        brand_id=brand,
        sms_type=sms_type.number,  # type: ignore[arg-type] # numbers of the proto's enum
        mobile=mobile,
    )
    reply = client.run(lambda caller: caller.call(caller.routing.ExplainRoute, request))
    title = "No rule fits: the environment's account" if reply.default_account else "Tried in this order"
    rows = [
        (step.tier, step.account_id, step.weight, f"{step.share:.0%}", step.usable, step.problem)
        for step in reply.steps
    ]
    show(as_json, plain(reply), title, _STEP_COLUMNS, rows)


@limit_app.command("put")
def limit_put(
    brand: Brand,
    rate: Annotated[float, typer.Option(min=0, help="Messages a second, all workers.", show_default=False)],
    sms_type: LimitedType = None,
    burst: Annotated[int, typer.Option(min=0, help="Messages at once at most; 0: half a second's.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Limit how fast a brand sends; what is over waits in its queue."""
    from protos.smsgateway.v1 import routing_pb2 as pb
    from smsbill import client

    limit = pb.SendingLimit(
        brand_id=brand,
        sms_type=_number(sms_type),  # type: ignore[arg-type] # numbers of the proto's enum
        rate=rate,
        burst=burst,
    )
    request = pb.PutSendingLimitRequest(limit=limit)
    reply = client.run(lambda caller: caller.call(caller.routing.PutSendingLimit, request))
    _show_limits(as_json, [reply.limit], single=True)


@limit_app.command("list")
def limit_list(as_json: AsJson = False) -> None:
    """List the limits."""
    from protos.smsgateway.v1 import routing_pb2 as pb
    from smsbill import client

    request = pb.ListSendingLimitsRequest()
    reply = client.run(lambda caller: caller.call(caller.routing.ListSendingLimits, request))
    _show_limits(as_json, list(reply.limits))


@limit_app.command("remove")
def limit_remove(brand: Brand, sms_type: LimitedType = None, as_json: AsJson = False) -> None:
    """Remove a limit."""
    from protos.smsgateway.v1 import routing_pb2 as pb
    from smsbill import client
    from smsbill.tables import pairs

    request = pb.RemoveSendingLimitRequest(
        brand_id=brand,
        sms_type=_number(sms_type),  # type: ignore[arg-type] # numbers of the proto's enum
    )
    client.run(lambda caller: caller.call(caller.routing.RemoveSendingLimit, request))
    pairs(as_json, {"removed": brand})


def _number(sms_type: SmsType | None) -> int:
    return 0 if sms_type is None else sms_type.number


def _type(told: dict[str, Any]) -> str:
    return _ALL if told["sms_type"] == "unspecified" else str(told["sms_type"])


def _show_rules(as_json: bool, rules: list[Any], *, single: bool = False) -> None:
    from smsbill.tables import moment, plain, show

    told = [plain(rule) for rule in rules]
    rows = [
        (
            str(rule.brand_id) if rule.brand_id else _ALL,
            _type(each),
            rule.prefix or _ALL,
            rule.account_id,
            rule.priority,
            rule.weight,
            rule.enabled,
            moment(rule.updated_at),
        )
        for rule, each in zip(rules, told, strict=True)
    ]
    show(as_json, told[0] if single else told, "Routing rules", _RULE_COLUMNS, rows)


def _show_limits(as_json: bool, limits: list[Any], *, single: bool = False) -> None:
    from smsbill.tables import moment, plain, show

    told = [plain(limit) for limit in limits]
    rows = [
        (limit.brand_id, _type(each), f"{limit.rate:g}", limit.burst or "", moment(limit.updated_at))
        for limit, each in zip(limits, told, strict=True)
    ]
    show(as_json, told[0] if single else told, "Sending limits", _LIMIT_COLUMNS, rows)
