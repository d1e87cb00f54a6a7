"""`smsbill send` and `messages`."""

# ruff: noqa: PLC0415

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smsbill.commands.admin import collect
from smsbill.commands.options import AsJson, Brand, Limit, RequestId, SmsType, new_request_id

if TYPE_CHECKING:
    from smsbill.client import Client
    from smsbill.sending import FileOrder, FileSent

_PANEL = "Messages"
_BAD_ROWS_SHOWN = 20
_COLUMNS = ("message", "type", "to", "#segments", "state", "code", "accepted", "finished")


class Encoding(enum.StrEnum):
    """How the characters of a file are written."""

    AUTO = "auto"
    UTF8 = "utf-8"
    GBK = "gbk"


class State(enum.StrEnum):
    """Where a message is."""

    ACCEPTING = "accepting"
    QUEUED = "queued"
    CLAIMED = "claimed"
    SUBMITTING = "submitting"
    SENT = "sent"
    UNKNOWN = "unknown"
    DELIVERED = "delivered"
    UNDELIVERED = "undelivered"
    EXPIRED = "expired"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def number(self) -> int:
        """Its number in the protos."""
        return list(State).index(self) + 1


Wait = Annotated[float, typer.Option(min=0, max=86_400, help="Wait so many seconds until it is final.")]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    for function in (send, messages):
        app.command(rich_help_panel=_PANEL)(function)


def send(
    brand: Brand,
    sms_type: Annotated[SmsType, typer.Option("--type", help="What it is for.", show_default=False)],
    text: Annotated[str, typer.Option(help="The text, signature included.", show_default=False)],
    to: Annotated[str, typer.Option(metavar="NUMBER", help="One recipient.", show_default=False)] = "",
    file: Annotated[Path | None, typer.Option(help="CSV file of recipients.", show_default=False)] = None,
    column: Annotated[str, typer.Option(help="Column of the file with the numbers.", show_default=False)] = "",
    encoding: Annotated[Encoding, typer.Option(help="Encoding of the file.")] = Encoding.AUTO,
    campaign: Annotated[
        str,
        typer.Option(
            help="Name of the file's campaign: the same again goes on where it stopped. Else one of file and text.",
            show_default=False,
        ),
    ] = "",
    batch_rows: Annotated[
        int, typer.Option(min=0, max=100_000, help="Rows of the file in one batch; 0: 20,000.", show_default=False)
    ] = 0,
    request_id: RequestId = "",
    wait: Wait = 0,
    as_json: AsJson = False,
) -> None:
    """Send one text to one number, or to all numbers of a CSV file as a campaign.

    With a file {$name} in the text stands for the cell of the column of that name. A file that was interrupted, by a
    crash or for lack of balance, goes on when the same command is given again, and nobody gets it twice.
    """
    if bool(to) == (file is not None):
        raise typer.BadParameter("give --to or --file", param_hint="--to")
    if file is None:
        _send_single(brand, sms_type, text, to, request_id or new_request_id("send"), wait, as_json)
        return
    from smsbill.campaign_file import CAMPAIGN_CHARACTERS_MAX
    from smsbill.sending import FileOrder

    # A file's key is its campaign's name.
    name = campaign or request_id
    if len(name) > CAMPAIGN_CHARACTERS_MAX or (name and not name.isprintable()):
        raise typer.BadParameter(f"has at most {CAMPAIGN_CHARACTERS_MAX} printable characters", param_hint="--campaign")
    order = FileOrder(brand, sms_type.number, text, column, encoding.value, name, batch_rows)
    _send_file(order, file, wait, as_json)


def messages(
    brand: Brand,
    batch: Annotated[str, typer.Option(help="Only those of this batch.", show_default=False)] = "",
    state: Annotated[State | None, typer.Option(help="Only those in this state.", show_default=False)] = None,
    to: Annotated[str, typer.Option(metavar="NUMBER", help="Only those to this number.", show_default=False)] = "",
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List a brand's messages, newest first."""
    from protos.smsgateway.v1 import sms_gateway_pb2 as pb
    from smsbill import client
    from smsbill.tables import plain, show

    async def work(caller: Client) -> list[Any]:
        request = pb.ListMessagesRequest(
            brand_id=brand,
            batch_id=batch,
            state=state.number if state else 0,  # type: ignore[arg-type] # numbers of the proto's enum
            mobile=to,
            page_size=min(limit, 1_000),
        )
        return await collect(caller, caller.gateway.ListMessages, request, "messages", limit)

    found = client.run(work)
    title = f"Messages of brand {brand}"
    show(as_json, [plain(each) for each in found], title, _COLUMNS, [_message_row(each) for each in found])


def _send_single(brand: int, sms_type: SmsType, text: str, to: str, key: str, wait: float, as_json: bool) -> None:
    from protos.smsgateway.v1 import sms_gateway_pb2 as pb
    from smsbill import client
    from smsbill.sending import wait_for_message
    from smsbill.tables import pairs, plain

    async def work(caller: Client) -> dict[str, object]:
        request = pb.SendSmsRequest(
            brand_id=brand,
            request_id=key,
            sms_type=sms_type.number,  # type: ignore[arg-type] # numbers of the proto's enum
            mobile=to,
            text=text,
        )
        reply = await caller.call(caller.gateway.SendSms, request)
        told: dict[str, object] = {**plain(reply), "request_id": key}
        if wait:
            message = plain(await wait_for_message(caller, reply.message_id, wait))
            told |= {name: message[name] for name in ("state", "result_code", "result_detail")}
        return told

    pairs(as_json, client.run(work), "Sent")


def _send_file(order: FileOrder, path: Path, wait: float, as_json: bool) -> None:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from smsbill import client
    from smsbill.sending import send_file, wait_for_batches
    from smsbill.tables import console

    async def work(caller: Client, progress: Callable[[int, int], None]) -> tuple[FileSent, dict[str, int]]:
        sent = await send_file(caller, order, path, progress=progress)
        return sent, await wait_for_batches(caller, sent.batch_ids, wait) if wait else {}

    screen = console(stderr=True)
    columns = (
        TextColumn(path.name),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows, {task.fields[rate]:,}/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    size = path.stat().st_size if path.is_file() else None
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as shown:
        task = shown.add_task("", total=size, rows=0, rate=0)

        def progress(at: int, rows: int) -> None:
            shown.update(task, completed=at, rows=rows, rate=round(rows / max(time.monotonic() - started, 0.001)))

        sent, states = client.run(lambda caller: work(caller, progress))
    _show_file_sent(sent, states, as_json)


def _show_file_sent(sent: FileSent, states: dict[str, int], as_json: bool) -> None:
    from smsbill.tables import console, pairs, print_json, table

    batch_ids = sent.batch_ids
    told: dict[str, object] = {
        "campaign_id": sent.campaign_id,
        "batches": len(batch_ids),
        "accepted": sent.accepted,
        "segments": sent.segments,
        "bad_row_count": sent.bad_count,
        "journal": str(sent.journal),
    }
    if sent.repeated:
        told["accepted_before"] = f"{sent.repeated} of {len(sent.parts)} parts"
    if states:
        told["states"] = states
    if as_json:
        bad = [{"line": row.line, "mobile": row.mobile, "reason": row.reason} for row in sent.bad_rows]
        print_json(told | {"batch_ids": batch_ids, "bad_rows": bad})
        return
    if states:
        told["states"] = ", ".join(f"{count:,} {state}" for state, count in states.items())
    pairs(False, told, "Sent")
    if sent.bad_count:
        screen = console(stderr=True)
        rows = [(row.line, row.mobile, row.reason) for row in sent.bad_rows[:_BAD_ROWS_SHOWN]]
        screen.print(table("Rows left out", ("#line", "number", "reason"), rows))
        if sent.bad_count > len(rows):
            screen.print(f"and {sent.bad_count - len(rows):,} more; `smsbill campaign results` writes all of them")


def _message_row(message: Any) -> tuple[object, ...]:
    from smsbill.tables import moment, plain
    from smsgateway.mobile import mask_mobile

    told = plain(message)
    return (
        message.message_id,
        told["sms_type"],
        mask_mobile(message.mobile),
        message.segments,
        told["state"],
        message.result_code,
        moment(message.created_at),
        moment(message.finished_at),
    )
