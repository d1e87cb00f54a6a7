"""`smsbill parked`: what has failed too often and waits for an operator."""

# ruff: noqa: PLC0415

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smsbill.commands.admin import collect
from smsbill.commands.options import AsJson, Limit

if TYPE_CHECKING:
    from smsbill.client import Client

parked_app = typer.Typer(help="Work that failed too often: look, try again, drop.", no_args_is_help=True)

_COLUMNS = ("message", "kind", "#brand", "subject", "request", "#messages", "#segments", "#tries", "since", "error")
# Ids in one call.
_IDS_AT_ONCE = 1_000


class Kind(enum.StrEnum):
    """What is parked."""

    DISPATCH = "dispatch"
    OUTBOX = "outbox"
    RECEIPT = "receipt"
    WEBHOOK = "webhook"

    @property
    def number(self) -> int:
        """Its number in the protos."""
        return list(Kind).index(self) + 1


OneKind = Annotated[Kind, typer.Argument(help="What they are.", show_default=False)]
Ids = Annotated[list[str] | None, typer.Argument(help="Ids, as `parked list` shows them.", show_default=False)]
Everything = Annotated[bool, typer.Option("--all", help="All of the kind, or those that --brand and --age leave.")]
OfBrand = Annotated[int, typer.Option("--brand", min=0, max=2**63 - 1, help="Only of this brand; 0: of all.")]
Age = Annotated[float, typer.Option(min=0, max=200_000, help="Only what is at least so many hours old.")]
Author = Annotated[str, typer.Option(help="Who decides it; else the user of this machine.", show_default=False)]
Reason = Annotated[str, typer.Option(help="Why; the log keeps it with every id.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    app.add_typer(parked_app, name="parked", rich_help_panel="Care")


@parked_app.command("list")
def parked_list(
    kind: Annotated[Kind | None, typer.Option(help="Only of this kind.", show_default=False)] = None,
    brand: OfBrand = 0,
    age: Age = 0,
    limit: Limit = 1_000,
    as_json: AsJson = False,
) -> None:
    """List what is parked, oldest first of each kind."""
    from smsbill import client
    from smsbill.tables import plain, show

    # Receipts have no brand.
    kinds = [kind] if kind else [each for each in Kind if not (brand and each is Kind.RECEIPT)]

    async def work(caller: Client) -> list[Any]:
        found: list[Any] = []
        for each in kinds:
            if len(found) < limit:
                found += await _listed(caller, each, brand, age, limit - len(found))
        return found

    items = client.run(work)
    show(as_json, [plain(item) for item in items], "Parked", _COLUMNS, [_row(item) for item in items])


@parked_app.command("retry")
def parked_retry(
    kind: OneKind,
    ids: Ids = None,
    everything: Everything = False,
    brand: OfBrand = 0,
    age: Age = 0,
    reason: Reason = "",
    author: Author = "",
    limit: Limit = 10_000,
    as_json: AsJson = False,
) -> None:
    """Have it tried again soon, its tries counted anew; what is not parked any more is left alone."""
    from protos.smsgateway.v1 import sms_gateway_pb2 as pb
    from smsbill.tables import pairs

    wish = _wish(kind, reason, author)

    async def retry(caller: Client, some: list[str]) -> Any:
        return await caller.call(caller.gateway.RetryParked, pb.RetryParkedRequest(parked_ids=some, **wish))

    replies = _each(kind, ids, everything, brand, age, limit, retry)
    pairs(
        as_json,
        {
            "retried": [each for reply in replies for each in reply.retried],
            "not_parked": [each for reply in replies for each in reply.not_parked],
        },
    )


@parked_app.command("drop")
def parked_drop(
    kind: OneKind,
    ids: Ids = None,
    everything: Everything = False,
    brand: OfBrand = 0,
    age: Age = 0,
    reason: Reason = "",
    author: Author = "",
    limit: Limit = 10_000,
    as_json: AsJson = False,
) -> None:
    """End it without harm to the bill: messages fail and get their segments back; exit 1 if something had to stay."""
    from protos.smsgateway.v1 import sms_gateway_pb2 as pb
    from smsbill.tables import pairs, plain

    wish = _wish(kind, reason, author)

    async def drop(caller: Client, some: list[str]) -> Any:
        return await caller.call(caller.gateway.DropParked, pb.DropParkedRequest(parked_ids=some, **wish))

    replies = _each(kind, ids, everything, brand, age, limit, drop)
    kept = [plain(each) for reply in replies for each in reply.kept]
    pairs(
        as_json,
        {
            "dropped": [each for reply in replies for each in reply.dropped],
            "not_parked": [each for reply in replies for each in reply.not_parked],
            "kept": kept if as_json else [f"{each['parked_id']} ({each['why']})" for each in kept],
        },
    )
    if kept:
        raise typer.Exit(1)


def _wish(kind: Kind, reason: str, author: str) -> dict[str, Any]:
    import getpass

    if not reason:
        raise typer.BadParameter("say why", param_hint="--reason")
    return {"kind": kind.number, "reason": reason, "author": author or getpass.getuser()}


def _each(
    kind: Kind, ids: list[str] | None, everything: bool, brand: int, age: float, limit: int, act: Any
) -> list[Any]:
    """Act on the ids given, or on all that are listed; the replies."""
    from smsbill import client

    if bool(ids) == everything:
        raise typer.BadParameter("give ids or --all", param_hint="--all")

    async def work(caller: Client) -> list[Any]:
        chosen = list(ids or ())
        if everything:
            chosen = [item.parked_id for item in await _listed(caller, kind, brand, age, limit)]
        return [
            await act(caller, chosen[start : start + _IDS_AT_ONCE]) for start in range(0, len(chosen), _IDS_AT_ONCE)
        ]

    return client.run(work)


async def _listed(caller: Client, kind: Kind, brand: int, age: float, limit: int) -> list[Any]:
    from google.protobuf.duration_pb2 import Duration

    from protos.smsgateway.v1 import sms_gateway_pb2 as pb

    request = pb.ListParkedRequest(
        kind=kind.number,  # type: ignore[arg-type] # numbers of the proto's enum
        brand_id=brand,
        older_than=Duration(seconds=int(age * 3_600)),
        page_size=min(limit, 1_000),
    )
    return await collect(caller, caller.gateway.ListParked, request, "items", limit)


def _row(item: Any) -> tuple[object, ...]:
    from smsbill.tables import moment, plain

    told = plain(item)
    subject = " ".join(each for each in (item.subject, item.carrier_account, item.reference) if each)
    return (
        item.parked_id,
        told["kind"],
        item.brand_id,
        subject,
        item.request_id,
        item.messages,
        item.segments,
        item.tries,
        moment(item.created_at),
        item.error,
    )
