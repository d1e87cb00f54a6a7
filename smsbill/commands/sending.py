"""`smsbill send`, `cancel` and `messages`."""

# ruff: noqa: PLC0415

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smsbill.commands.admin import collect
from smsbill.commands.options import AsJson, Brand, Limit, RequestId, SmsType, new_request_id

if TYPE_CHECKING:
    from smsbill.campaign_file import Terms
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
    for function in (send, cancel, messages):
        app.command(rich_help_panel=_PANEL)(function)


def send(
    brand: Brand,
    sms_type: Annotated[SmsType, typer.Option("--type", help="What it is for.", show_default=False)],
    text: Annotated[
        str, typer.Option(help="The text, signature included unless --signature is given.", show_default=False)
    ] = "",
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
    signature: Annotated[str, typer.Option(help="Signature to put before the text as 【…】.", show_default=False)] = "",
    template: Annotated[str, typer.Option(help="Id of a template, instead of a text.", show_default=False)] = "",
    value: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable of the template.", show_default=False)
    ] = None,
    at: Annotated[
        str,
        typer.Option(
            metavar="MOMENT", help="Not before 2026-11-22T09:00, or …+08:00; else now. Local time.", show_default=False
        ),
    ] = "",
    valid_seconds: Annotated[
        int, typer.Option(min=0, max=604_800, help="Fails, and is refunded, if not sent so long after. 0: never.")
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
    if bool(text) == bool(template):
        raise typer.BadParameter("give --text or --template", param_hint="--text")
    from smsbill.campaign_file import CAMPAIGN_CHARACTERS_MAX, Terms
    from smsbill.sending import FileOrder

    terms = Terms(signature, template, _values(value or []), _moment(at), valid_seconds)
    if file is None:
        _send_single(brand, sms_type, text, to, request_id or new_request_id("send"), terms, wait, as_json)
        return

    # A file's key is its campaign's name.
    name = campaign or request_id
    if len(name) > CAMPAIGN_CHARACTERS_MAX or (name and not name.isprintable()):
        raise typer.BadParameter(f"has at most {CAMPAIGN_CHARACTERS_MAX} printable characters", param_hint="--campaign")
    order = FileOrder(brand, sms_type.number, text, column, encoding.value, name, batch_rows, terms)
    _send_file(order, file, wait, as_json)


def cancel(
    message: Annotated[str, typer.Option(help="Id of a message that was sent by itself.", show_default=False)] = "",
    batch: Annotated[str, typer.Option(help="Id of a batch.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Cancel a message, or what is still queued or paused of a batch, and give it back."""
    from protos.smsgateway.v1 import sms_gateway_pb2 as pb
    from smsbill import client
    from smsbill.tables import pairs, plain

    if bool(message) == bool(batch):
        raise typer.BadParameter("give --message or --batch", param_hint="--message")

    async def work(caller: Client) -> dict[str, object]:
        if message:
            return plain(await caller.call(caller.gateway.CancelMessage, pb.CancelMessageRequest(message_id=message)))
        return plain(await caller.call(caller.gateway.CancelBatch, pb.CancelBatchRequest(batch_id=batch)))

    pairs(as_json, client.run(work), "Cancelled")


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


def _values(given: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = tuple((name, value) for name, _, value in (each.partition("=") for each in given))
    if not all(name and value for name, value in pairs) or len(dict(pairs)) < len(pairs):
        raise typer.BadParameter("give NAME=VALUE, each name once", param_hint="--value")
    return tuple(sorted(pairs))


def _moment(given: str) -> int:
    """Seconds since 1970 of a moment that a person wrote; 0 for none."""
    try:
        return int(datetime.fromisoformat(given).timestamp()) if given else 0
    except (ValueError, OverflowError):
        hint = "give a date and a time, such as 2026-11-22T09:00 or 2026-11-22T09:00+08:00"
        raise typer.BadParameter(hint, param_hint="--at") from None


def _send_single(
    brand: int, sms_type: SmsType, text: str, to: str, key: str, terms: Terms, wait: float, as_json: bool
) -> None:
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
            **terms.fields(),
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
