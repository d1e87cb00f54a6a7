"""`smsbill carrier`: accounts at carriers beside the environment's."""

# ruff: noqa: PLC0415

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from smsbill.commands.options import AsJson

carrier_app = typer.Typer(help="Accounts at carriers.", no_args_is_help=True)

_COLUMNS = ("account", "kind", "what", "paused", "#rate", "#calls", "#balance", "alert", "settings", "problem")
_STDIN = "-"

Account = Annotated[str, typer.Argument(help="Our name of the account.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    app.add_typer(carrier_app, name="carrier", rich_help_panel="Set-up")


@carrier_app.command("put")
def carrier_put(
    account: Account,
    kind: Annotated[str, typer.Option(help="Kind of carrier; a new account needs one.", show_default=False)] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting, as in the environment behind SMSBILL_<KIND>_. A value env:NAME or file:/path is looked up"
            " where it is used; - reads it from standard input.",
        ),
    ] = None,
    unset: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A setting to take back.")] = None,
    paused: Annotated[bool | None, typer.Option("--pause/--resume", help="Make no calls, or make them again.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="Messages a second, all workers; 0: no limit.")] = None,
    burst: Annotated[int | None, typer.Option(min=0, help="Messages at once at most; 0: half a second's.")] = None,
    calls: Annotated[int | None, typer.Option(min=0, help="Calls at once, all workers; 0: no limit.")] = None,
    balance_alert: Annotated[int | None, typer.Option(min=0, help="Segments below which to alert; 0: never.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create an account, or change what is given of it; workers and gateways follow within seconds."""
    from protos.smsgateway.v1 import routing_pb2 as pb
    from smsbill import client

    request = pb.PutCarrierAccountRequest(
        account_id=account,
        kind=kind,
        settings=_assigned(settings or []),
        unset_settings=unset or [],
        paused=paused,
        rate=rate,
        burst=burst,
        calls_max=calls,
        balance_alert=balance_alert,
    )
    reply = client.run(lambda caller: caller.call(caller.routing.PutCarrierAccount, request))
    _show(as_json, [reply.account], single=True)


@carrier_app.command("list")
def carrier_list(as_json: AsJson = False) -> None:
    """List the accounts; values of settings are never shown."""
    from protos.smsgateway.v1 import routing_pb2 as pb
    from smsbill import client

    request = pb.ListCarrierAccountsRequest()
    reply = client.run(lambda caller: caller.call(caller.routing.ListCarrierAccounts, request))
    _show(as_json, list(reply.accounts))


@carrier_app.command("remove")
def carrier_remove(account: Account, as_json: AsJson = False) -> None:
    """Remove an account that no rule leads to; its receipts are not taken any more."""
    from protos.smsgateway.v1 import routing_pb2 as pb
    from smsbill import client
    from smsbill.tables import pairs

    request = pb.RemoveCarrierAccountRequest(account_id=account)
    client.run(lambda caller: caller.call(caller.routing.RemoveCarrierAccount, request))
    pairs(as_json, {"removed": account})


def _assigned(assignments: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            # Not told back: it may be a secret.
            raise typer.BadParameter("is not NAME=VALUE", param_hint="--set")
        found[name] = sys.stdin.readline().rstrip("\r\n") if value == _STDIN else value
    return found


def _show(as_json: bool, accounts: list[Any], *, single: bool = False) -> None:
    from smsbill.tables import plain, show

    told = [plain(account) for account in accounts]
    show(as_json, told[0] if single else told, "Carrier accounts", _COLUMNS, [_row(account) for account in accounts])


def _row(account: Any) -> tuple[object, ...]:
    return (
        account.account_id,
        account.kind,
        account.description,
        account.paused,
        f"{account.rate:g}" if account.rate else "",
        account.calls_max or "",
        account.balance if account.HasField("balance") else "",
        f"below {account.balance_alert:,}" + (" LOW" if account.balance_low else "") if account.balance_alert else "",
        ", ".join(account.setting_names),
        account.problem,
    )
