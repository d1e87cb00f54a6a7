"""`smsbill brand`, `offer`, `token`: what an admin sets up."""

# ruff: noqa: PLC0415

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from smsbill.commands.options import AsJson, Brand, Limit, Role, SmsType, Status

if TYPE_CHECKING:
    from smsbill.client import Client

brand_app = typer.Typer(help="Brands: the tenants that buy and send.", no_args_is_help=True)
offer_app = typer.Typer(help="Packages for sale.", no_args_is_help=True)
token_app = typer.Typer(help="Tokens that callers show.", no_args_is_help=True)

_BRAND_COLUMNS = ("#brand", "name", "status", "time zone", "refunds undelivered", "created")
_BALANCE_COLUMNS = (
    *("#brand", "name", "status", "#available", "#frozen", "#paid in 7 days", "#days left"),
    *("#ends next", "expires"),
)
_OFFER_COLUMNS = ("offer", "name", "#segments", "price", "valid for", "types", "active")
_TOKEN_COLUMNS = ("token", "name", "roles", "brands", "created", "expires", "revoked")


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    app.add_typer(brand_app, name="brand", rich_help_panel="Set-up")
    app.add_typer(offer_app, name="offer", rich_help_panel="Set-up")
    app.add_typer(token_app, name="token", rich_help_panel="Set-up")


@brand_app.command("put")
def brand_put(
    brand: Brand,
    name: Annotated[str | None, typer.Option(help="Its name; a new brand needs one.")] = None,
    status: Annotated[Status | None, typer.Option(help="Whether it may send; closed is for ever.")] = None,
    time_zone: Annotated[str | None, typer.Option(help="IANA time zone of its days and months.")] = None,
    refund_undelivered: Annotated[
        bool | None, typer.Option("--refund-undelivered/--no-refund-undelivered", help="Refund what was not delivered.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a brand, or change what is given."""
    from protos.costcenter.v1 import cost_center_admin_pb2 as pb
    from smsbill import client

    request = pb.PutBrandRequest(
        brand_id=brand,
        name=name,
        status=status.number if status else 0,  # type: ignore[arg-type] # numbers of the proto's enum
        time_zone=time_zone,
        refund_undelivered=refund_undelivered,
    )
    reply = client.run(lambda caller: caller.call(caller.admin.PutBrand, request))
    _show(as_json, [reply.brand], "Brand", _BRAND_COLUMNS, _brand_row, single=True)


@brand_app.command("get")
def brand_get(brand: Brand, as_json: AsJson = False) -> None:
    """Show one brand."""
    from protos.costcenter.v1 import cost_center_admin_pb2 as pb
    from smsbill import client

    reply = client.run(lambda caller: caller.call(caller.admin.GetBrand, pb.GetBrandRequest(brand_id=brand)))
    _show(as_json, [reply.brand], "Brand", _BRAND_COLUMNS, _brand_row, single=True)


@brand_app.command("list")
def brand_list(limit: Limit = 1_000, as_json: AsJson = False) -> None:
    """List the brands that the token may see."""
    from protos.costcenter.v1 import cost_center_admin_pb2 as pb
    from smsbill import client

    async def work(caller: Client) -> list[Any]:
        request = pb.ListBrandsRequest(page_size=min(limit, 1_000))
        return await collect(caller, caller.admin.ListBrands, request, "brands", limit)

    _show(as_json, client.run(work), "Brands", _BRAND_COLUMNS, _brand_row)


@brand_app.command("balances")
def brand_balances(
    below: Annotated[
        int | None, typer.Option(min=1, max=2**63 - 1, help="Only brands with fewer segments available.")
    ] = None,
    status: Annotated[Status | None, typer.Option(help="Only brands of this status.")] = None,
    limit: Limit = 1_000,
    as_json: AsJson = False,
) -> None:
    """List what brands have, paid lately and lose next: those of the token."""
    from protos.costcenter.v1 import cost_center_admin_pb2 as pb
    from smsbill import client

    async def work(caller: Client) -> list[Any]:
        request = pb.ListBalancesRequest(
            page_size=min(limit, 1_000),
            available_below=below,
            status=status.number if status else 0,  # type: ignore[arg-type] # numbers of the proto's enum
        )
        return await collect(caller, caller.admin.ListBalances, request, "balances", limit)

    _show(as_json, client.run(work), "Balances (segments)", _BALANCE_COLUMNS, _balance_row)


@offer_app.command("put")
def offer_put(
    offer: Annotated[str, typer.Option(help="Its id.", show_default=False)],
    name: Annotated[str, typer.Option(help="Its name.", show_default=False)],
    segments: Annotated[int, typer.Option(min=1, max=10**9, help="Segments that it grants.", show_default=False)],
    price: Annotated[str, typer.Option(help="Price, such as 4500.00.", show_default=False)],
    currency: Annotated[str, typer.Option(help="ISO 4217 code.")] = "CNY",
    days: Annotated[int | None, typer.Option(min=1, max=36_500, help="Valid for so many days.")] = None,
    months: Annotated[int | None, typer.Option(min=1, max=1_200, help="Valid for so many months.")] = None,
    types: Annotated[list[SmsType] | None, typer.Option("--type", help="Types that it pays; none: all.")] = None,
    active: Annotated[bool, typer.Option("--active/--inactive", help="Whether it can be ordered.")] = True,
    as_json: AsJson = False,
) -> None:
    """Create an offer, or replace it."""
    from protos.costcenter.v1 import cost_center_admin_pb2 as pb
    from smsbill import client

    if days is not None and months is not None:
        raise typer.BadParameter("give --days or --months, not both", param_hint="--days")
    made = pb.PackageOffer(
        offer_id=offer,
        name=name,
        segments=segments,
        price=price,
        currency=currency,
        sms_types=[each.number for each in types or ()],  # type: ignore[misc] # numbers of the proto's enum
        active=active,
    )
    if days is not None:
        made.validity_days = days
    if months is not None:
        made.validity_months = months
    reply = client.run(lambda caller: caller.call(caller.admin.PutPackageOffer, pb.PutPackageOfferRequest(offer=made)))
    _show(as_json, [reply.offer], "Offer", _OFFER_COLUMNS, _offer_row, single=True)


@offer_app.command("list")
def offer_list(
    include_inactive: Annotated[bool, typer.Option("--all", help="Also those that cannot be ordered.")] = False,
    limit: Limit = 1_000,
    as_json: AsJson = False,
) -> None:
    """List the offers."""
    from protos.costcenter.v1 import cost_center_admin_pb2 as pb
    from smsbill import client

    async def work(caller: Client) -> list[Any]:
        request = pb.ListPackageOffersRequest(include_inactive=include_inactive, page_size=min(limit, 1_000))
        return await collect(caller, caller.admin.ListPackageOffers, request, "offers", limit)

    _show(as_json, client.run(work), "Offers", _OFFER_COLUMNS, _offer_row)


@token_app.command("create")
def token_create(
    roles: Annotated[list[Role], typer.Option("--role", help="A role; several may be given.", show_default=False)],
    brands: Annotated[str, typer.Option(help="Brands that it holds for, such as 1,2; or all.", show_default=False)],
    name: Annotated[str, typer.Option(help="What it is for.")] = "made on the command line",
    days: Annotated[int | None, typer.Option(min=1, max=36_500, help="Ends by itself after so many days.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token. Its secret is shown once."""
    import time

    from google.protobuf.timestamp_pb2 import Timestamp

    from protos.costcenter.v1 import cost_center_admin_pb2 as pb
    from smsbill import client
    from smsbill.tables import console, pairs, plain, print_json

    request = pb.CreateTokenRequest(
        name=name,
        roles=[role.number for role in roles],  # type: ignore[misc] # numbers of the proto's enum
        all_brands=brands == "all",
        brand_ids=[] if brands == "all" else _brand_numbers(brands),
        expires_at=None if days is None else Timestamp(seconds=int(time.time()) + days * 86_400),
    )
    reply = client.run(lambda caller: caller.call(caller.admin.CreateToken, request))
    if as_json:
        print_json({"token": plain(reply.token), "secret": reply.secret})
        return
    row = dict(zip(_TOKEN_COLUMNS, _token_row(reply.token), strict=True))
    pairs(False, {"secret": reply.secret, **{title: cell for title, cell in row.items() if cell}})
    console(stderr=True).print("The secret is not shown again. Callers send it as `authorization: Bearer <secret>`.")


@token_app.command("list")
def token_list(limit: Limit = 1_000, as_json: AsJson = False) -> None:
    """List the tokens, newest first, without their secrets."""
    from protos.costcenter.v1 import cost_center_admin_pb2 as pb
    from smsbill import client

    async def work(caller: Client) -> list[Any]:
        request = pb.ListTokensRequest(page_size=min(limit, 1_000))
        return await collect(caller, caller.admin.ListTokens, request, "tokens", limit)

    _show(as_json, client.run(work), "Tokens", _TOKEN_COLUMNS, _token_row)


@token_app.command("revoke")
def token_revoke(
    token: Annotated[str, typer.Argument(help="Id of the token, as `token list` shows it.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """End a token at once."""
    from protos.costcenter.v1 import cost_center_admin_pb2 as pb
    from smsbill import client

    request = pb.RevokeTokenRequest(token_id=token)
    reply = client.run(lambda caller: caller.call(caller.admin.RevokeToken, request))
    _show(as_json, [reply.token], "Token", _TOKEN_COLUMNS, _token_row, single=True)


async def collect(caller: Client, method: Any, request: Any, field: str, limit: int) -> list[Any]:
    """The first `limit` items of a listing."""
    found: list[Any] = []
    async for page in caller.pages(method, request):
        found += getattr(page, field)
        if len(found) >= limit:
            break
    return found[:limit]


def _brand_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of numbers such as 1,2, nor all", param_hint="--brands"
        ) from None


def _show(
    as_json: bool, items: list[Any], title: str, columns: tuple[str, ...], row: Any, *, single: bool = False
) -> None:
    from smsbill.tables import plain, show

    values = [plain(item) for item in items]
    show(as_json, values[0] if single else values, title, columns, [row(item) for item in items])


def _brand_row(brand: Any) -> tuple[object, ...]:
    from smsbill.tables import moment, plain

    return (
        brand.brand_id,
        brand.name,
        plain(brand)["status"],
        brand.time_zone,
        brand.refund_undelivered,
        moment(brand.created_at),
    )


def _balance_row(balance: Any) -> tuple[object, ...]:
    from smsbill.tables import moment, plain

    paid = balance.paid_last_7_days
    return (
        balance.brand_id,
        balance.name,
        plain(balance)["status"],
        balance.available,
        balance.frozen,
        paid,
        # At the rate of the week; nobody knows when a brand that pays nothing has nothing left.
        balance.available * 7 // paid if paid > 0 else "",
        balance.next_expiry_segments or "",
        moment(balance.next_expiry_at),
    )


def _offer_row(offer: Any) -> tuple[object, ...]:
    from smsbill.tables import plain

    told = plain(offer)
    valid = "ever"
    if "validity_days" in told:
        valid = f"{offer.validity_days} days"
    elif "validity_months" in told:
        valid = f"{offer.validity_months} months"
    types = ", ".join(told["sms_types"]) or "all"
    return offer.offer_id, offer.name, offer.segments, f"{offer.price} {offer.currency}", valid, types, offer.active


def _token_row(token: Any) -> tuple[object, ...]:
    from smsbill.tables import moment, plain

    brands = "all" if token.all_brands else ", ".join(str(brand_id) for brand_id in token.brand_ids)
    return (
        token.token_id,
        token.name,
        ", ".join(plain(token)["roles"]),
        brands,
        moment(token.created_at),
        moment(token.expires_at),
        moment(token.revoked_at),
    )
