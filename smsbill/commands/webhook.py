"""`smsbill webhook` and `replies`: where brands hear what became of messages, and what people sent back."""

# ruff: noqa: PLC0415

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smsbill.commands.admin import collect
from smsbill.commands.options import AsJson, Limit

if TYPE_CHECKING:
    from smsbill.client import Client

webhook_app = typer.Typer(help="Webhooks: brands are told what became of their messages.", no_args_is_help=True)

_COLUMNS = (
    *("webhook", "address", "states", "replies", "alerts", "enabled"),
    *("#waiting", "#failures", "tried again", "last error"),
)
_REPLY_COLUMNS = ("reply", "#brand", "from", "to", "opt-out", "received", "text")


class TellState(enum.StrEnum):
    """States of messages that a webhook can be told."""

    SENT = "sent"
    DELIVERED = "delivered"
    UNDELIVERED = "undelivered"
    EXPIRED = "expired"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def number(self) -> int:
        """Its number in the protos."""
        from protos.smsgateway.v1 import sms_gateway_pb2 as pb

        return pb.MessageState.Value(f"MESSAGE_STATE_{self.name}")


Brand = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Brand; 0: the house, for alerts.", show_default=False)]
Name = Annotated[str, typer.Option("--name", help="Name of the webhook.")]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    app.add_typer(webhook_app, name="webhook", rich_help_panel="Set-up")
    app.command(rich_help_panel="Messages")(replies)


@webhook_app.command("put")
def webhook_put(
    brand: Brand,
    url: Annotated[str, typer.Option(help="Where requests go.", show_default=False)],
    name: Name = "main",
    states: Annotated[
        list[TellState] | None, typer.Option("--state", help="A state to tell; none: all final ones.")
    ] = None,
    tell_replies: Annotated[bool, typer.Option("--replies", help="Tell of replies, too.")] = False,
    tell_alerts: Annotated[
        bool, typer.Option("--alerts", help="Tell of alerts, and of messages only by --state.")
    ] = False,
    full_number: Annotated[bool, typer.Option("--full-number", help="Tell whole numbers.")] = False,
    reply_text: Annotated[bool, typer.Option("--reply-text", help="Tell the texts of replies.")] = False,
    rotate_secret: Annotated[
        bool, typer.Option("--rotate-secret", help="Make a new secret; the old one signs as well for a day.")
    ] = False,
    secret_file: Annotated[
        Path | None, typer.Option(help="File with a secret of your own, whsec_…; else one is made.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a webhook, or replace it. A secret that is made is shown once."""
    from protos.smsgateway.v1 import webhooks_pb2 as pb
    from smsbill import client
    from smsbill.tables import console, pairs, plain, print_json

    request = pb.PutWebhookRequest(
        brand_id=brand,
        webhook_id=name,
        url=url,
        states=[state.number for state in states or ()],  # type: ignore[misc] # numbers of the proto's enum
        replies=tell_replies,
        alerts=tell_alerts,
        full_number=full_number,
        reply_text=reply_text,
        rotate_secret=rotate_secret,
        secret=_secret(secret_file),
    )
    reply = client.run(lambda caller: caller.call(caller.webhooks.PutWebhook, request))
    if as_json:
        print_json({"webhook": plain(reply.webhook), "secret": reply.secret})
        return
    row = dict(zip(_COLUMNS, _row(reply.webhook), strict=True))
    shown: dict[str, object] = {"secret": reply.secret} if reply.secret else {}
    pairs(False, {**shown, **{title.removeprefix("#"): cell for title, cell in row.items()}})
    if reply.secret:
        console(stderr=True).print("The secret is not shown again. docs/webhooks.md tells how requests are verified.")


@webhook_app.command("list")
def webhook_list(brand: Brand, as_json: AsJson = False) -> None:
    """List a brand's webhooks, without their secrets."""
    from protos.smsgateway.v1 import webhooks_pb2 as pb
    from smsbill import client
    from smsbill.tables import plain, show

    request = pb.ListWebhooksRequest(brand_id=brand)
    found = client.run(lambda caller: caller.call(caller.webhooks.ListWebhooks, request)).webhooks
    title = f"Webhooks of brand {brand}"
    show(as_json, [plain(each) for each in found], title, _COLUMNS, [_row(each) for each in found])


@webhook_app.command("remove")
def webhook_remove(brand: Brand, name: Name = "main", as_json: AsJson = False) -> None:
    """Remove a webhook and the events that wait for it."""
    from protos.smsgateway.v1 import webhooks_pb2 as pb
    from smsbill import client
    from smsbill.tables import pairs, plain

    request = pb.RemoveWebhookRequest(brand_id=brand, webhook_id=name)
    reply = client.run(lambda caller: caller.call(caller.webhooks.RemoveWebhook, request))
    pairs(as_json, plain(reply), "Removed")


def replies(
    brand: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Brand; 0: replies of no known brand.")],
    sender: Annotated[
        str, typer.Option("--from", metavar="NUMBER", help="Only those of this number.", show_default=False)
    ] = "",
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List what people sent back, newest first."""
    from protos.smsgateway.v1 import webhooks_pb2 as pb
    from smsbill import client
    from smsbill.tables import plain, show

    async def work(caller: Client) -> list[Any]:
        request = pb.ListRepliesRequest(brand_id=brand, mobile=sender, page_size=min(limit, 1_000))
        return await collect(caller, caller.webhooks.ListReplies, request, "replies", limit)

    found = client.run(work)
    title = f"Replies to brand {brand}" if brand else "Replies of no known brand"
    show(as_json, [plain(each) for each in found], title, _REPLY_COLUMNS, [_reply_row(each) for each in found])


def _secret(path: Path | None) -> str:
    from smsbill.failure import CommandError

    if path is None:
        return ""
    try:
        secret = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {path}: {error}") from None
    if not secret:
        raise CommandError(f"{path} is empty; put whsec_ and the base64 of 24 to 64 random bytes in it")
    return secret


def _row(webhook: Any) -> tuple[object, ...]:
    from smsbill.tables import moment, plain

    return (
        webhook.webhook_id,
        webhook.url,
        ", ".join(plain(webhook)["states"]),
        webhook.replies,
        webhook.alerts,
        webhook.enabled,
        webhook.waiting,
        webhook.failures,
        moment(webhook.next_at),
        webhook.last_error,
    )


def _reply_row(reply: Any) -> tuple[object, ...]:
    from smsbill.tables import moment
    from smsgateway.mobile import mask_mobile

    text = f"{reply.text} ({reply.part})" if reply.part else reply.text
    return (
        reply.reply_id,
        reply.brand_id,
        mask_mobile(reply.mobile),
        reply.destination,
        reply.opt_out,
        moment(reply.received_at),
        text,
    )
