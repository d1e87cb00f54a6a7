"""`smsbill alert`: what people are alerted of, and what is open."""

# ruff: noqa: PLC0415

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smsbill.commands.admin import collect
from smsbill.commands.options import AsJson, Limit, SmsType

if TYPE_CHECKING:
    from smsbill.client import Client

alert_app = typer.Typer(help="Alerts to people: balances, failures, carriers, queues.", no_args_is_help=True)

_RULE_COLUMNS = ("#brand", "kind", "type", "enabled", "figures", "#hold s", "mail", "webhooks")
_COLUMNS = ("#brand", "kind", "subject", "told", "over", "figures")
_FIGURES = ("segments", "days", "percent", "count", "minutes")


class Kind(enum.StrEnum):
    """What a rule watches for."""

    LOW_BALANCE = "low-balance"
    EXPIRING = "expiring"
    FAILURES = "failures"
    CARRIER_DOWN = "carrier-down"
    CARRIER_LOW = "carrier-low"
    QUEUE_AGE = "queue-age"
    PARKED = "parked"

    @property
    def number(self) -> int:
        """Its number in the protos."""
        return list(Kind).index(self) + 1


OneKind = Annotated[Kind, typer.Argument(help="What it watches for.", show_default=False)]
OfBrand = Annotated[
    int, typer.Option("--brand", min=0, max=2**63 - 1, help="The brand; 0: every brand without a rule of its own.")
]
OfType = Annotated[
    SmsType | None, typer.Option("--type", help="Of failures and queue-age: one type.", show_default=False)
]
AnyBrand = Annotated[
    int | None, typer.Option("--brand", min=0, max=2**63 - 1, help="Only this brand's; 0: the house's.")
]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    app.add_typer(alert_app, name="alert", rich_help_panel="Care")


@alert_app.command("put")
def alert_put(
    kind: OneKind,
    brand: OfBrand = 0,
    sms_type: OfType = None,
    segments: Annotated[int | None, typer.Option(min=0, help="low-balance, expiring: so many segments.")] = None,
    days: Annotated[int | None, typer.Option(min=0, help="low-balance, expiring: so many days.")] = None,
    percent: Annotated[int | None, typer.Option(min=1, max=100, help="failures: share of failed messages.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="failures, parked: the fewest that matter.")] = None,
    minutes: Annotated[int | None, typer.Option(min=1, help="failures: the window; queue-age: the age.")] = None,
    hold: Annotated[int | None, typer.Option(min=0, help="Seconds that a change must last to be told.")] = None,
    mail: Annotated[list[str] | None, typer.Option("--mail", help="Address to tell; several may be given.")] = None,
    webhooks: Annotated[bool, typer.Option("--webhooks/--no-webhooks", help="Tell webhooks that want alerts.")] = True,
    enabled: Annotated[bool, typer.Option("--enable/--disable", help="Whether it alerts.")] = True,
    as_json: AsJson = False,
) -> None:
    """Put a rule; what is not given is as docs/alerts.md says."""
    from protos.smsgateway.v1 import alerts_pb2 as pb
    from smsbill import client

    rule = pb.AlertRule(
        brand_id=brand,
        kind=kind.number,  # type: ignore[arg-type] # numbers of the proto's enum
        sms_type=sms_type.number if sms_type else 0,  # type: ignore[arg-type]
        enabled=enabled,
        segments=segments,
        days=days,
        percent=percent,
        count=count,
        minutes=minutes,
        hold_seconds=hold,
        recipients=mail or (),
        webhooks=webhooks,
    )
    request = pb.PutAlertRuleRequest(rule=rule)
    reply = client.run(lambda caller: caller.call(caller.alerts.PutAlertRule, request))
    _show(as_json, [reply.rule], "Rule", _RULE_COLUMNS, _rule_row, single=True)


@alert_app.command("list")
def alert_list(brand: AnyBrand = None, limit: Limit = 1_000, as_json: AsJson = False) -> None:
    """List the rules."""
    from protos.smsgateway.v1 import alerts_pb2 as pb
    from smsbill import client

    async def work(caller: Client) -> list[Any]:
        request = pb.ListAlertRulesRequest(brand_id=brand, page_size=min(limit, 1_000))
        return await collect(caller, caller.alerts.ListAlertRules, request, "rules", limit)

    _show(as_json, client.run(work), "Rules", _RULE_COLUMNS, _rule_row)


@alert_app.command("remove")
def alert_remove(kind: OneKind, brand: OfBrand = 0, sms_type: OfType = None, as_json: AsJson = False) -> None:
    """Remove a rule; what it has open is told as not watched any more."""
    from protos.smsgateway.v1 import alerts_pb2 as pb
    from smsbill import client
    from smsbill.tables import pairs

    request = pb.RemoveAlertRuleRequest(
        brand_id=brand,
        kind=kind.number,  # type: ignore[arg-type] # numbers of the proto's enum
        sms_type=sms_type.number if sms_type else 0,  # type: ignore[arg-type]
    )
    client.run(lambda caller: caller.call(caller.alerts.RemoveAlertRule, request))
    pairs(as_json, {"brand": brand, "kind": kind.value, "removed": True})


@alert_app.command("active")
def alert_active(
    brand: AnyBrand = None,
    kind: Annotated[Kind | None, typer.Option(help="Only of this kind.", show_default=False)] = None,
    include_recovered: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    limit: Limit = 1_000,
    as_json: AsJson = False,
) -> None:
    """List what is open."""
    from protos.smsgateway.v1 import alerts_pb2 as pb
    from smsbill import client

    async def work(caller: Client) -> list[Any]:
        request = pb.ListAlertsRequest(
            brand_id=brand,
            kind=kind.number if kind else 0,  # type: ignore[arg-type] # numbers of the proto's enum
            include_recovered=include_recovered,
            page_size=min(limit, 1_000),
        )
        return await collect(caller, caller.alerts.ListAlerts, request, "alerts", limit)

    _show(as_json, client.run(work), "Alerts", _COLUMNS, _row)


def _show(
    as_json: bool, items: list[Any], title: str, columns: tuple[str, ...], row: Any, *, single: bool = False
) -> None:
    from smsbill.tables import plain, show

    values = [plain(item) for item in items]
    show(as_json, values[0] if single else values, title, columns, [row(item) for item in items])


def _rule_row(rule: Any) -> tuple[object, ...]:
    from smsbill.tables import plain

    told = plain(rule)
    return (
        rule.brand_id,
        told["kind"],
        told["sms_type"] if rule.sms_type else "any",
        rule.enabled,
        ", ".join(f"{name} {told[name]:,}" for name in _FIGURES if name in told),
        rule.hold_seconds,
        list(rule.recipients),
        rule.webhooks,
    )


def _row(alert: Any) -> tuple[object, ...]:
    from smsbill.tables import moment, plain

    over = moment(alert.recovered_at)
    return (
        alert.brand_id,
        plain(alert)["kind"],
        alert.subject,
        moment(alert.opened_at),
        f"{over} (not watched any more)" if alert.withdrawn else over,
        ", ".join(f"{figure.name} {figure.value}" for figure in alert.figures if figure.value),
    )
