"""`smsbill buy`, `balance`, `packages`, `statement`, `expire`: what a brand has."""

# ruff: noqa: PLC0415

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smsbill.commands.admin import collect
from smsbill.commands.options import AsJson, Brand, Form, Limit, RequestId, new_request_id

if TYPE_CHECKING:
    from smsbill.client import Client

_PANEL = "Accounts"
# Calls that one run of `expire` makes at most; each books a thousand brands.
_EXPIRE_CALLS_MAX = 10_000


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    for function in (buy, balance, packages, statement, expire):
        app.command(rich_help_panel=_PANEL)(function)


def buy(
    brand: Brand,
    offer: Annotated[str, typer.Option(help="Id of the offer to buy.", show_default=False)] = "",
    segments: Annotated[
        int, typer.Option(min=0, max=10**9, help="Or: so many segments, valid for --days.", show_default=False)
    ] = 0,
    days: Annotated[int, typer.Option(min=1, max=36_500, help="Validity of --segments.")] = 365,
    price: Annotated[str, typer.Option(help="Price of --segments in CNY.")] = "0.00",
    request_id: RequestId = "",
    as_json: AsJson = False,
) -> None:
    """Order a package for a brand and pay it."""
    from smsbill import client, purchase
    from smsbill.tables import pairs

    if bool(offer) == bool(segments):
        raise typer.BadParameter("give --offer or --segments", param_hint="--offer")
    key = request_id or new_request_id("buy")

    async def work(caller: Client) -> dict[str, object]:
        offer_id = offer or await purchase.put_plain_offer(caller, segments, days, price)
        return await purchase.buy(caller, brand, offer_id, key)

    pairs(as_json, client.run(work), "Bought")


def balance(
    brand: Annotated[
        int | None, typer.Option(min=1, max=2**63 - 1, help="One brand; else all of the token's.", show_default=False)
    ] = None,
    as_of: Annotated[datetime | None, typer.Option(help="A past moment, in this machine's time.")] = None,
    limit: Limit = 1_000,
    as_json: AsJson = False,
) -> None:
    """Show what brands have: in all, frozen, available by type."""
    from smsbill import balances, client
    from smsbill.tables import plain, show

    found = client.run(lambda caller: balances.read(caller, [brand] if brand else [], as_of=as_of, limit=limit))
    show(
        as_json,
        plain(found[0]) if brand else [plain(each) for each in found],
        balances.TITLE,
        balances.COLUMNS,
        [balances.row(each) for each in found],
    )


def packages(
    brand: Brand,
    include_spent: Annotated[bool, typer.Option("--all", help="Also those that have nothing left.")] = False,
    limit: Limit = 1_000,
    as_json: AsJson = False,
) -> None:
    """List a brand's packages in the order in which they are spent."""
    from protos.costcenter.v1 import cost_center_pb2 as pb
    from smsbill import balances, client
    from smsbill.tables import plain, show

    async def work(caller: Client) -> list[Any]:
        request = pb.ListPackagesRequest(brand_id=brand, include_spent=include_spent, page_size=min(limit, 1_000))
        return await collect(caller, caller.ledger.ListPackages, request, "packages", limit)

    found = client.run(work)
    show(
        as_json,
        [plain(package) for package in found],
        f"Packages of brand {brand} (segments)",
        balances.PACKAGE_COLUMNS,
        [balances.package_row(package) for package in found],
    )


def statement(
    brand: Brand,
    month: Annotated[
        str, typer.Option(metavar="YYYY-MM", help="A month in the brand's time zone.", show_default=False)
    ] = "",
    start: Annotated[
        str,
        typer.Option("--from", metavar="MOMENT", help="Or: first moment, such as 2026-10-01T12:00, in that zone."),
    ] = "",
    end: Annotated[str, typer.Option("--to", metavar="MOMENT", help="End, exclusive; else now.")] = "",
    form: Annotated[
        Form | None, typer.Option("--format", help="table: the summary; csv, json: every record as well.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File to write; else standard output.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what changed a brand's balance in a month or another period, checked to the segment."""
    if bool(month) == bool(start):
        raise typer.BadParameter("give --month or --from", param_hint="--month")
    if month and end:
        raise typer.BadParameter("goes with --from", param_hint="--to")
    if as_json and form not in {None, Form.JSON}:
        raise typer.BadParameter("is another format", param_hint="--json")
    from protos.costcenter.v1 import cost_center_pb2 as pb
    from smsbill import client
    from smsbill import statement as statements

    async def work(caller: Client) -> None:
        request = pb.GetStatementRequest(brand_id=brand, month=month)
        if start:
            first, last = await statements.period(caller, brand, start, end)
            # `from` is a word of Python's.
            getattr(request, "from").CopyFrom(first)
            if last is not None:
                request.to.CopyFrom(last)
        await statements.write(caller, request, Form.JSON if as_json else form or Form.TABLE, output)

    client.run(work)


def expire(as_json: AsJson = False) -> None:
    """Book expired packages and ended freezes until nothing is due: the daily cron."""
    from protos.costcenter.v1 import cost_center_jobs_pb2 as pb
    from smsbill import client
    from smsbill.failure import CommandError
    from smsbill.tables import pairs

    async def work(caller: Client) -> dict[str, object]:
        brands = packages_expired = freezes_ended = 0
        for _ in range(_EXPIRE_CALLS_MAX):
            reply = await caller.call(caller.jobs.BookDue, pb.BookDueRequest())
            brands += reply.brands
            packages_expired += reply.packages_expired
            freezes_ended += reply.freezes_ended
            if not reply.more:
                return {"brands": brands, "packages_expired": packages_expired, "freezes_ended": freezes_ended}
        raise CommandError(f"more is due after {_EXPIRE_CALLS_MAX} calls; run `smsbill expire` again")

    pairs(as_json, client.run(work), "Booked")
