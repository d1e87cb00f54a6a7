"""`smsbill usage` and `messages`: what brands sent, and what became of it."""

# ruff: noqa: PLC0415

from __future__ import annotations

import enum
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smsbill.commands.admin import collect
from smsbill.commands.options import AsJson, Brand, Limit, SmsType

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from smsbill.client import Client

_PANEL = "Statistics"
_STATES = "queued, claimed, submitting, sent, unknown, delivered, undelivered, expired, failed or cancelled"
_FIGURES = (
    *("messages", "segments", "waiting", "unknown", "sent", "delivered", "undelivered", "expired", "failed"),
    *("cancelled", "refunded_segments"),
)
_MESSAGE_COLUMNS = ("accepted", "message", "type", "number", "#segments", "state", "result", "carrier", "text")

Start = Annotated[
    str,
    typer.Option("--from", metavar="MOMENT", help="Such as 2026-10-01 or 2026-10-01T12:00, in --time-zone if given."),
]
End = Annotated[str, typer.Option("--to", metavar="MOMENT", help="End, exclusive; else now.")]
TimeZone = Annotated[str, typer.Option(help="IANA time zone; else the installation's for days, here for moments.")]
Types = Annotated[list[SmsType] | None, typer.Option("--type", help="Only these types; else all.")]


class Unit(enum.StrEnum):
    """By what time figures are told."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"

    @property
    def number(self) -> int:
        """Its number in the protos."""
        return list(Unit).index(self) + 1


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    for function in (usage, messages):
        app.command(rich_help_panel=_PANEL)(function)


def usage(
    brand: Annotated[
        int | None, typer.Option(min=1, max=2**63 - 1, help="One brand; else all of the token's.", show_default=False)
    ] = None,
    start: Start = "",
    end: End = "",
    by: Annotated[Unit, typer.Option(help="By hour, day or month of acceptance.")] = Unit.DAY,
    types: Types = None,
    carriers: Annotated[list[str] | None, typer.Option("--carrier", help="Only these carrier accounts.")] = None,
    by_type: Annotated[bool, typer.Option("--by-type", help="Each type by itself.")] = False,
    by_carrier: Annotated[bool, typer.Option("--by-carrier", help="Each carrier account by itself.")] = False,
    sum_brands: Annotated[bool, typer.Option("--sum", help="All brands together.")] = False,
    time_zone: TimeZone = "",
    limit: Limit = 1_000,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make all figures anew from the message records (needs the database).")
    ] = False,
    from_brand: Annotated[int, typer.Option(min=1, help="With --rebuild: go on at this brand.")] = 1,
    check: Annotated[
        bool, typer.Option("--check", help="Compare all figures with the message records; exit 1 on any difference.")
    ] = False,
) -> None:
    """Tell what brands sent by hour, day or month, and what became of it."""
    if rebuild and check:
        raise typer.BadParameter("goes without --rebuild", param_hint="--check")
    if as_csv and as_json:
        raise typer.BadParameter("goes without --json", param_hint="--csv")
    if rebuild or check:
        from smsbill import care

        raise typer.Exit(care.check_usage(as_json) if check else care.rebuild_usage(as_json, from_brand))
    from protos.smsgateway.v1 import statistics_pb2 as pb
    from smsbill import client
    from smsbill.tables import plain, show

    request = pb.GetUsageRequest(
        brand_id=brand or 0,
        unit=by.number,  # type: ignore[arg-type] # numbers of the proto's enum
        time_zone=time_zone,
        sms_types=[each.number for each in types or ()],  # type: ignore[misc] # numbers of the proto's enum
        carrier_accounts=carriers or (),
        by_type=by_type,
        by_carrier=by_carrier,
        sum_brands=sum_brands,
        page_size=min(limit, 1_000),
    )
    _set_time(request, start, end, time_zone)
    zone = ""

    async def work(caller: Client) -> list[Any]:
        nonlocal zone
        found: list[Any] = []
        async for page in caller.pages(caller.statistics.GetUsage, request):
            zone = page.time_zone
            found += page.usage
            if len(found) >= limit:
                break
        return found[:limit]

    found = client.run(work)
    recipients = any(each.HasField("recipients") for each in found)
    columns = (
        *(() if sum_brands else ("#brand",)),
        by.value,
        *(("type",) if by_type else ()),
        *(("carrier",) if by_carrier else ()),
        *(f"#{name.replace('_', ' ')}" for name in _FIGURES),
        *(("#recipients",) if recipients else ()),
    )
    rows = [_usage_row(each, by, zone, sum_brands, by_type, by_carrier, recipients) for each in found]
    if as_csv:
        import csv

        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([column.removeprefix("#").replace(" ", "_") for column in columns])
        writer.writerows(rows)
        return
    show(
        as_json,
        {"time_zone": zone, "usage": [plain(each) for each in found]},
        f"Messages by {by.value} of acceptance ({zone if by is not Unit.HOUR else 'UTC'})",
        columns,
        rows,
    )


def messages(
    brand: Brand,
    state: Annotated[str, typer.Option(help=f"Only those that are {_STATES}.", show_default=False)] = "",
    sms_type: Annotated[SmsType | None, typer.Option("--type", help="Only those of this type.")] = None,
    number: Annotated[str, typer.Option(help="Only those to this number.", show_default=False)] = "",
    batch: Annotated[str, typer.Option(help="Only those of this batch.", show_default=False)] = "",
    start: Start = "",
    end: End = "",
    time_zone: Annotated[str, typer.Option(help="IANA time zone of moments; else this machine's.")] = "",
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List a brand's messages, newest first."""
    from protos.smsgateway.v1 import sms_gateway_pb2 as pb
    from smsbill import client
    from smsbill.tables import moment, plain, show, word

    request = pb.ListMessagesRequest(
        brand_id=brand,
        batch_id=batch,
        state=_state(state),  # type: ignore[arg-type] # numbers of the proto's enum
        mobile=number,
        sms_type=sms_type.number if sms_type else 0,  # type: ignore[arg-type] # numbers of the proto's enum
        page_size=min(limit, 1_000),
    )
    _set_time(request, start, end, time_zone)

    async def work(caller: Client) -> list[Any]:
        return await collect(caller, caller.gateway.ListMessages, request, "messages", limit)

    found = client.run(work)
    types = pb.Message.DESCRIPTOR.fields_by_name["sms_type"].enum_type
    states = pb.Message.DESCRIPTOR.fields_by_name["state"].enum_type
    rows = [
        (
            moment(each.created_at),
            each.message_id,
            word(types, each.sms_type),
            each.mobile,
            each.segments,
            word(states, each.state),
            each.result_code,
            each.carrier_account,
            each.text,
        )
        for each in found
    ]
    show(as_json, [plain(each) for each in found], f"Messages of brand {brand}", _MESSAGE_COLUMNS, rows)


def _usage_row(
    each: Any, by: Unit, zone: str, sum_brands: bool, by_type: bool, by_carrier: bool, recipients: bool
) -> tuple[object, ...]:
    from datetime import UTC
    from zoneinfo import ZoneInfo

    from smsbill.tables import word

    shown = {Unit.HOUR: "%Y-%m-%d %H:00", Unit.DAY: "%Y-%m-%d", Unit.MONTH: "%Y-%m"}[by]
    at = each.start.ToDatetime(tzinfo=UTC)
    types = each.DESCRIPTOR.fields_by_name["sms_type"].enum_type
    return (
        # Not a number with separators: it is a name.
        *(() if sum_brands else (str(each.brand_id),)),
        (at if by is Unit.HOUR else at.astimezone(ZoneInfo(zone))).strftime(shown),
        *((word(types, each.sms_type),) if by_type else ()),
        *((each.carrier_account,) if by_carrier else ()),
        *(getattr(each, name) for name in _FIGURES),
        *((each.recipients if each.HasField("recipients") else "",) if recipients else ()),
    )


def _state(name: str) -> int:
    from protos.smsgateway.v1 import sms_gateway_pb2 as pb

    if not name:
        return 0
    number = pb.MessageState.DESCRIPTOR.values_by_name.get(f"MESSAGE_STATE_{name.upper()}")
    if number is None or not number.number:
        raise typer.BadParameter(f"must be {_STATES}", param_hint="--state")
    return int(number.number)


def _set_time(request: Any, start: str, end: str, time_zone: str) -> None:
    # `from` is a word of Python's.
    if start:
        getattr(request, "from").CopyFrom(_moment(start, time_zone, "--from"))
    if end:
        request.to.CopyFrom(_moment(end, time_zone, "--to"))


def _moment(text: str, time_zone: str, option: str) -> Timestamp:
    """A moment; without an offset it is in the time zone given, else in this machine's."""
    from zoneinfo import ZoneInfo

    from google.protobuf.timestamp_pb2 import Timestamp

    from infra import time_zones

    if time_zone and time_zone not in time_zones.known():
        raise typer.BadParameter(time_zones.RULE, param_hint="--time-zone")
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=ZoneInfo(time_zone)) if time_zone else moment.astimezone()
        timestamp = Timestamp()
        timestamp.FromDatetime(moment)
    except (ValueError, OverflowError):
        raise typer.BadParameter("must be a moment such as 2026-10-01 or 2026-10-01T12:00", param_hint=option) from None
    return timestamp
