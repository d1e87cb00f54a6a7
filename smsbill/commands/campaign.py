"""`smsbill campaign`: what was sent to the recipients of a file, as a whole."""

# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smsbill.commands.admin import collect
from smsbill.commands.options import AsJson, Brand, Limit

if TYPE_CHECKING:
    from smsbill.client import Client
    from smsbill.results import Written

campaign_app = typer.Typer(help="Campaigns: look, pause, resume, cancel, results.", no_args_is_help=True)

_COLUMNS = ("campaign", "state", "#batches", "#messages", "#segments", "begun")

Name = Annotated[str, typer.Option("--campaign", help="Name of the campaign.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    app.add_typer(campaign_app, name="campaign", rich_help_panel="Messages")


@campaign_app.command("list")
def campaign_list(brand: Brand, limit: Limit = 100, as_json: AsJson = False) -> None:
    """List a brand's campaigns, newest first."""
    from protos.smsgateway.v1 import campaigns_pb2 as pb
    from smsbill import client
    from smsbill.tables import plain, show

    async def work(caller: Client) -> list[Any]:
        request = pb.ListCampaignsRequest(brand_id=brand, page_size=min(limit, 1_000))
        return await collect(caller, caller.campaigns.ListCampaigns, request, "campaigns", limit)

    found = client.run(work)
    title = f"Campaigns of brand {brand}"
    show(as_json, [plain(each) for each in found], title, _COLUMNS, [_row(each) for each in found])


@campaign_app.command("show")
def campaign_show(brand: Brand, campaign: Name, as_json: AsJson = False) -> None:
    """Show how far a campaign is."""
    from protos.smsgateway.v1 import campaigns_pb2 as pb
    from protos.smsgateway.v1 import sms_gateway_pb2
    from smsbill import client
    from smsbill.tables import moment, pairs, word

    async def work(caller: Client) -> Any:
        request = pb.GetCampaignRequest(brand_id=brand, campaign_id=campaign)
        return (await caller.call(caller.campaigns.GetCampaign, request)).campaign

    found = client.run(work)
    states = {word(sms_gateway_pb2.MessageState.DESCRIPTOR, each.state): each.messages for each in found.states}
    told: dict[str, object] = {
        "campaign_id": found.campaign_id,
        "state": _state(found),
        "batches": found.batches,
        "accepted": found.accepted,
        "segments": found.segments,
        "created_at": moment(found.created_at),
        "states": states if as_json else ", ".join(f"{count:,} {state}" for state, count in states.items()),
    }
    pairs(as_json, told, "Campaign")


@campaign_app.command("pause")
def campaign_pause(brand: Brand, campaign: Name, as_json: AsJson = False) -> None:
    """Hold what is not with the carrier yet; what comes later waits as well."""
    from protos.smsgateway.v1 import campaigns_pb2 as pb

    _change("PauseCampaign", pb.PauseCampaignRequest(brand_id=brand, campaign_id=campaign), "Paused", as_json)


@campaign_app.command("resume")
def campaign_resume(brand: Brand, campaign: Name, as_json: AsJson = False) -> None:
    """Go on with a paused campaign."""
    from protos.smsgateway.v1 import campaigns_pb2 as pb

    _change("ResumeCampaign", pb.ResumeCampaignRequest(brand_id=brand, campaign_id=campaign), "Resumed", as_json)


@campaign_app.command("cancel")
def campaign_cancel(brand: Brand, campaign: Name, as_json: AsJson = False) -> None:
    """Cancel what is still queued or paused, for good, and give it back."""
    from protos.smsgateway.v1 import campaigns_pb2 as pb

    _change("CancelCampaign", pb.CancelCampaignRequest(brand_id=brand, campaign_id=campaign), "Cancelled", as_json)


@campaign_app.command("results")
def campaign_results(
    brand: Brand,
    campaign: Name,
    output: Annotated[Path, typer.Option(help="CSV file to write.", show_default=False)],
    file: Annotated[
        Path | None,
        typer.Option(
            help="The file that was sent, its journal beside it: its rows in their order, with those left out.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write what became of each recipient. Interrupted, the same command goes on."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from smsbill import client
    from smsbill.results import write_results
    from smsbill.tables import console, pairs

    screen = console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.fields[rows]:,} rows"), TimeElapsedColumn())
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as shown:
        task = shown.add_task("", total=None, rows=0)

        async def work(caller: Client) -> Written:
            return await write_results(
                caller, brand, campaign, output, file=file, progress=lambda rows: shown.update(task, rows=rows)
            )

        written = client.run(work)
    pairs(as_json, {"output": str(output), "rows": written.rows, "messages": written.messages}, "Results")


def _change(method: str, request: Any, title: str, as_json: bool) -> None:
    from smsbill import client
    from smsbill.tables import pairs, plain

    async def work(caller: Client) -> Any:
        return await caller.call(getattr(caller.campaigns, method), request)

    pairs(as_json, {"campaign_id": request.campaign_id, **plain(client.run(work))}, title)


def _state(campaign: Any) -> str:
    if campaign.cancelled:
        return "cancelled"
    return "paused" if campaign.paused else "active"


def _row(campaign: Any) -> tuple[object, ...]:
    from smsbill.tables import moment

    return (
        campaign.campaign_id,
        _state(campaign),
        campaign.batches,
        campaign.accepted,
        campaign.segments,
        moment(campaign.created_at),
    )
