"""`smsbill rules`, `signature`, `template`, `suppress`: what brands may send."""

# ruff: noqa: PLC0415

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smsbill.commands.admin import collect
from smsbill.commands.options import AsJson, Brand, Limit, SmsType

if TYPE_CHECKING:
    from smsbill.client import Client

rules_app = typer.Typer(help="Rules of brands: what holds for their texts and numbers.", no_args_is_help=True)
signature_app = typer.Typer(help="Signatures that brands may put before their texts.", no_args_is_help=True)
template_app = typer.Typer(help="Texts with variables.", no_args_is_help=True)
suppress_app = typer.Typer(help="Numbers that are not sent to.", no_args_is_help=True)

_PANEL = "Set-up"
_SIGNATURE_COLUMNS = ("signature", "approval", "registered", "changed")
_TEMPLATE_COLUMNS = ("template", "type", "approval", "text", "changed")
_SUPPRESSION_COLUMNS = ("#brand", "number", "kind", "source", "reason", "since")
# Numbers in one call.
_MOBILES_AT_ONCE = 1_000
_FILE_BYTES_MAX = 64 * 1024 * 1024


class Switch(enum.StrEnum):
    """Whether a rule holds."""

    DEFAULT = "default"
    OFF = "off"
    ON = "on"

    @property
    def number(self) -> int:
        """Its number in the protos."""
        return list(Switch).index(self)


class Suffix(enum.StrEnum):
    """What becomes of marketing without the suffix."""

    DEFAULT = "default"
    OFF = "off"
    REQUIRED = "required"
    APPENDED = "appended"

    @property
    def number(self) -> int:
        """Its number in the protos."""
        return list(Suffix).index(self)


class Approval(enum.StrEnum):
    """Whether it may be used."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"

    @property
    def number(self) -> int:
        """Its number in the protos."""
        return list(Approval).index(self) + 1


class Kind(enum.StrEnum):
    """What is kept from a number."""

    OPT_OUT = "opt-out"
    BLACK_LIST = "black-list"

    @property
    def number(self) -> int:
        """Its number in the protos."""
        return list(Kind).index(self) + 1


Name = Annotated[str, typer.Argument(help="The signature, without its brackets.", show_default=False)]
TemplateId = Annotated[str, typer.Argument(help="Id of the template.", show_default=False)]
State = Annotated[Approval, typer.Option(help="Whether it may be used.")]
AnyBrand = Annotated[int, typer.Option("--brand", min=0, max=2**63 - 1, help="Number of the brand; 0: all brands.")]
OneKind = Annotated[Kind, typer.Option(help="Marketing alone, or everything.")]
Numbers = Annotated[list[str] | None, typer.Argument(help="Numbers.", show_default=False)]
NumberFile = Annotated[
    Path | None, typer.Option("--file", help="Text file with a number on each line.", show_default=False)
]
Limits = Annotated[
    str | None,
    typer.Option(
        metavar="M,H,D", help="Within any minute, hour, day; 0: any number; empty: the default.", show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    for name, made in (
        ("rules", rules_app),
        ("signature", signature_app),
        ("template", template_app),
        ("suppress", suppress_app),
    ):
        app.add_typer(made, name=name, rich_help_panel=_PANEL)


# Rules.


@rules_app.command("get")
def rules_get(brand: Brand, as_json: AsJson = False) -> None:
    """Show a brand's own settings, and what holds for it."""
    from protos.smsgateway.v1 import sender_rules_pb2 as pb
    from smsbill import client

    request = pb.GetBrandRulesRequest(brand_id=brand)
    _show_rules(as_json, client.run(lambda caller: caller.call(caller.rules.GetBrandRules, request)))


@rules_app.command("put")
def rules_put(
    brand: Brand,
    signatures: Annotated[Switch | None, typer.Option(help="Texts begin with an approved signature.")] = None,
    templates: Annotated[Switch | None, typer.Option(help="Texts match an approved template.")] = None,
    suffix: Annotated[Suffix | None, typer.Option(help="The end of marketing texts.")] = None,
    frequency: Annotated[Switch | None, typer.Option(help="Numbers get only so many messages.")] = None,
    verification: Limits = None,
    notification: Limits = None,
    marketing: Limits = None,
    quiet_hours: Annotated[Switch | None, typer.Option(help="Marketing is held at night.")] = None,
    quiet_from: Annotated[str | None, typer.Option(metavar="HH:MM", help="When the night begins.")] = None,
    quiet_until: Annotated[str | None, typer.Option(metavar="HH:MM", help="When it ends.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change what is given of a brand's own settings."""
    from protos.smsgateway.v1 import sender_rules_pb2 as pb
    from smsbill import client

    limits = {
        name: _limits(name, text)
        for name, text in (("verification", verification), ("notification", notification), ("marketing", marketing))
        if text is not None
    }
    numbers = {
        "signatures": signatures,
        "templates": templates,
        "suffix": suffix,
        "frequency": frequency,
        "quiet_hours": quiet_hours,
    }

    async def work(caller: Client) -> Any:
        rules = (await caller.call(caller.rules.GetBrandRules, pb.GetBrandRulesRequest(brand_id=brand))).rules
        for name, choice in numbers.items():
            if choice is not None:
                setattr(rules, name, choice.number)
        for name, figures in limits.items():
            rules.ClearField(name)  # type: ignore[arg-type] # one of its fields
            if figures is not None:
                getattr(rules, name).CopyFrom(pb.FrequencyLimits(**figures))
        for name, text in (("quiet_from", quiet_from), ("quiet_until", quiet_until)):
            if text is not None:
                setattr(rules, name, text)
        return await caller.call(caller.rules.PutBrandRules, pb.PutBrandRulesRequest(rules=rules))

    _show_rules(as_json, client.run(work))


# Signatures.


@signature_app.command("put")
def signature_put(name: Name, brand: Brand, approval: State = Approval.APPROVED, as_json: AsJson = False) -> None:
    """Register a signature, or change whether it may be used."""
    from protos.smsgateway.v1 import sender_rules_pb2 as pb
    from smsbill import client

    request = pb.PutSignatureRequest(
        brand_id=brand,
        signature=name,
        approval=approval.number,  # type: ignore[arg-type] # numbers of the proto's enum
    )
    reply = client.run(lambda caller: caller.call(caller.rules.PutSignature, request))
    _show(as_json, [reply.signature], "Signature", _SIGNATURE_COLUMNS, _signature_row, single=True)


@signature_app.command("list")
def signature_list(brand: Brand, limit: Limit = 1_000, as_json: AsJson = False) -> None:
    """List a brand's signatures."""
    from protos.smsgateway.v1 import sender_rules_pb2 as pb
    from smsbill import client

    async def work(caller: Client) -> list[Any]:
        request = pb.ListSignaturesRequest(brand_id=brand, page_size=min(limit, 1_000))
        return await collect(caller, caller.rules.ListSignatures, request, "signatures", limit)

    _show(as_json, client.run(work), "Signatures", _SIGNATURE_COLUMNS, _signature_row)


@signature_app.command("remove")
def signature_remove(name: Name, brand: Brand, as_json: AsJson = False) -> None:
    """Forget a signature."""
    from protos.smsgateway.v1 import sender_rules_pb2 as pb
    from smsbill import client
    from smsbill.tables import pairs

    request = pb.RemoveSignatureRequest(brand_id=brand, signature=name)
    reply = client.run(lambda caller: caller.call(caller.rules.RemoveSignature, request))
    pairs(as_json, {"removed": reply.removed})


# Templates.


@template_app.command("put")
def template_put(
    template: TemplateId,
    brand: Brand,
    sms_type: Annotated[SmsType, typer.Option("--type", help="What it is for.", show_default=False)],
    text: Annotated[str, typer.Option(help="The text, with variables such as {code}.", show_default=False)],
    approval: State = Approval.APPROVED,
    as_json: AsJson = False,
) -> None:
    """Register a template, or replace it."""
    from protos.smsgateway.v1 import sender_rules_pb2 as pb
    from smsbill import client

    request = pb.PutTemplateRequest(
        brand_id=brand,
        template_id=template,
        sms_type=sms_type.number,  # type: ignore[arg-type] # numbers of the proto's enum
        text=text,
        approval=approval.number,  # type: ignore[arg-type]
    )
    reply = client.run(lambda caller: caller.call(caller.rules.PutTemplate, request))
    _show(as_json, [reply.template], "Template", _TEMPLATE_COLUMNS, _template_row, single=True)


@template_app.command("get")
def template_get(template: TemplateId, brand: Brand, as_json: AsJson = False) -> None:
    """Show one template."""
    from protos.smsgateway.v1 import sender_rules_pb2 as pb
    from smsbill import client

    request = pb.GetTemplateRequest(brand_id=brand, template_id=template)
    reply = client.run(lambda caller: caller.call(caller.rules.GetTemplate, request))
    _show(as_json, [reply.template], "Template", _TEMPLATE_COLUMNS, _template_row, single=True)


@template_app.command("list")
def template_list(brand: Brand, limit: Limit = 1_000, as_json: AsJson = False) -> None:
    """List a brand's templates."""
    from protos.smsgateway.v1 import sender_rules_pb2 as pb
    from smsbill import client

    async def work(caller: Client) -> list[Any]:
        request = pb.ListTemplatesRequest(brand_id=brand, page_size=min(limit, 1_000))
        return await collect(caller, caller.rules.ListTemplates, request, "templates", limit)

    _show(as_json, client.run(work), "Templates", _TEMPLATE_COLUMNS, _template_row)


@template_app.command("remove")
def template_remove(template: TemplateId, brand: Brand, as_json: AsJson = False) -> None:
    """Forget a template; what was accepted with it is sent all the same."""
    from protos.smsgateway.v1 import sender_rules_pb2 as pb
    from smsbill import client
    from smsbill.tables import pairs

    request = pb.RemoveTemplateRequest(brand_id=brand, template_id=template)
    reply = client.run(lambda caller: caller.call(caller.rules.RemoveTemplate, request))
    pairs(as_json, {"removed": reply.removed})


# Suppressions.


@suppress_app.command("add")
def suppress_add(
    numbers: Numbers = None,
    brand: AnyBrand = 0,
    kind: OneKind = Kind.OPT_OUT,
    file: NumberFile = None,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    as_json: AsJson = False,
) -> None:
    """Keep messages from numbers: marketing (opt-out) or everything (black list)."""
    from protos.smsgateway.v1 import sender_rules_pb2 as pb
    from smsbill import client
    from smsbill.tables import pairs

    given = _given(numbers, file)

    async def work(caller: Client) -> int:
        added = 0
        for start in range(0, len(given), _MOBILES_AT_ONCE):
            request = pb.AddSuppressionsRequest(
                brand_id=brand,
                kind=kind.number,  # type: ignore[arg-type] # numbers of the proto's enum
                mobiles=given[start : start + _MOBILES_AT_ONCE],
                reason=reason,
            )
            added += (await caller.call(caller.rules.AddSuppressions, request)).added
        return added

    pairs(as_json, {"added": client.run(work), "numbers": len(given)})


@suppress_app.command("remove")
def suppress_remove(
    numbers: Numbers = None,
    brand: AnyBrand = 0,
    kind: OneKind = Kind.OPT_OUT,
    file: NumberFile = None,
    as_json: AsJson = False,
) -> None:
    """Send to numbers again."""
    from protos.smsgateway.v1 import sender_rules_pb2 as pb
    from smsbill import client
    from smsbill.tables import pairs

    given = _given(numbers, file)

    async def work(caller: Client) -> int:
        removed = 0
        for start in range(0, len(given), _MOBILES_AT_ONCE):
            request = pb.RemoveSuppressionsRequest(
                brand_id=brand,
                kind=kind.number,  # type: ignore[arg-type] # numbers of the proto's enum
                mobiles=given[start : start + _MOBILES_AT_ONCE],
            )
            removed += (await caller.call(caller.rules.RemoveSuppressions, request)).removed
        return removed

    pairs(as_json, {"removed": client.run(work), "numbers": len(given)})


@suppress_app.command("list")
def suppress_list(
    brand: AnyBrand = 0,
    number: Annotated[str, typer.Option(metavar="NUMBER", help="Only this one.", show_default=False)] = "",
    limit: Limit = 1_000,
    as_json: AsJson = False,
) -> None:
    """List the numbers that a brand does not send to, or with brand 0 those that no brand does."""
    from protos.smsgateway.v1 import sender_rules_pb2 as pb
    from smsbill import client

    async def work(caller: Client) -> list[Any]:
        request = pb.ListSuppressionsRequest(brand_id=brand, mobile=number, page_size=min(limit, 1_000))
        return await collect(caller, caller.rules.ListSuppressions, request, "suppressions", limit)

    _show(as_json, client.run(work), "Suppressed numbers", _SUPPRESSION_COLUMNS, _suppression_row)


def _limits(name: str, text: str) -> dict[str, int] | None:
    """Figures such as 1,5,10; None for an empty text."""
    if not text:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and len(part.strip()) <= 4 for part in parts):
        raise typer.BadParameter(f"{text!r} is not three figures such as 1,5,10", param_hint=f"--{name}")
    return dict(zip(("per_minute", "per_hour", "per_day"), (int(part) for part in parts), strict=True))


def _given(numbers: list[str] | None, file: Path | None) -> list[str]:
    """The numbers of the command line, or of a file."""
    if bool(numbers) == (file is not None):
        raise typer.BadParameter("give numbers or --file", param_hint="--file")
    if file is None:
        return list(numbers or ())
    try:
        if file.stat().st_size > _FILE_BYTES_MAX:
            raise typer.BadParameter(f"{file} has more than {_FILE_BYTES_MAX} bytes; split it", param_hint="--file")
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="--file") from None
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{file} is not UTF-8", param_hint="--file") from None
    found = [line for line in lines if line]
    if not found:
        raise typer.BadParameter(f"{file} has no number", param_hint="--file")
    return found


def _show_rules(as_json: bool, reply: Any) -> None:
    from smsbill.tables import plain, print_json, show

    own, effective = plain(reply.rules), plain(reply.effective)
    if as_json:
        print_json({"rules": own, "effective": effective})
        return
    rows = [
        (name.replace("_", " "), _setting(own[name]), _setting(effective[name]))
        for name in effective
        if name not in ("brand_id", "changed_at")
    ]
    show(False, None, f"Rules of brand {reply.effective.brand_id}", ("rule", "own", "holds"), rows)


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count or 'any'} {name.replace('_', ' ')}" for name, count in value.items())
    return "" if value in (None, "unspecified") else str(value)


def _show(
    as_json: bool, items: list[Any], title: str, columns: tuple[str, ...], row: Any, *, single: bool = False
) -> None:
    from smsbill.tables import plain, show

    values = [plain(item) for item in items]
    show(as_json, values[0] if single else values, title, columns, [row(item) for item in items])


def _signature_row(item: Any) -> tuple[object, ...]:
    from smsbill.tables import moment, plain

    return item.signature, plain(item)["approval"], moment(item.created_at), moment(item.changed_at)


def _template_row(item: Any) -> tuple[object, ...]:
    from smsbill.tables import moment, plain

    told = plain(item)
    return item.template_id, told["sms_type"], told["approval"], item.text, moment(item.changed_at)


def _suppression_row(item: Any) -> tuple[object, ...]:
    from smsbill.tables import moment, plain
    from smsgateway.mobile import mask_mobile

    kind = plain(item)["kind"].replace("_", "-")
    return item.brand_id, mask_mobile(item.mobile), kind, item.source, item.reason, moment(item.created_at)
