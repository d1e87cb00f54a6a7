"""What the sender's rules make of a call: its final text, and when and how often it may go. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from infra.errors import Refusal, invalid_fields
from protos.smsgateway.v1 import sms_gateway_pb2
from smsgateway.rules import (
    MARKETING,
    NO_LIMITS,
    NO_RULES,
    BrandRules,
    Checked,
    Limits,
    QuietHours,
    Template,
    Wording,
    check_filled,
    check_words,
    checked,
    filled,
    is_signature,
    named_template,
    next_night,
    not_before,
    signature_of,
    signed,
)
from smsgateway.sensitive_words import NO_WORDS, SensitiveWords
from smsgateway.settings import Settings
from smsgateway.templates import VARIABLES_MAX
from smsgateway.variables import InvalidVariables, VariableText, names_in, parse
from smsgateway.zones import country_code, zones_of

Asked = sms_gateway_pb2.SendSmsRequest | sms_gateway_pb2.BatchHeader
Violations = dict[str, str]
Night = tuple[datetime, datetime]

_TEMPLATE_ID_CHARACTERS_MAX = 64
_VALID_SECONDS_MAX = 7 * 86_400
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_NANOS = 1_000_000_000
# The years 1 to 9999, as Timestamp has them.
_SECONDS_MIN, _SECONDS_MAX = -62_135_596_800, 253_402_300_799


@dataclass(frozen=True, slots=True)
class Filling:
    """A text with variables, and by what the texts that are made of it are judged.

    `text` as it is stored, signature and suffix included; `template` that it matches, None: it need not match any.
    """

    text: VariableText
    rules: BrandRules = NO_RULES
    template: Template | None = None
    words: SensitiveWords = NO_WORDS

    def check(self, final: str) -> None:
        """Judge what a recipient gets. Raises the refusal of a rule, as `smsgateway.rules.check_filled`."""
        check_filled(self.rules, final, self.template, self.words)


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for a message, or for each message of a batch.

    `text` the final one, or with variables in place; then `filling` makes the final ones; `subject` and `limits` by
    which its number is counted, none set: it is not; `suppressed`: suppressions are to be looked up; `due_at`: it is
    scheduled; `quiet` hours in which it must not go at `moment`, that is when it would; `valid_ms`: not to be sent so
    long after `valid_from`, or after its acceptance without it; `refusal` by a rule: only a call that was answered
    before gets another reply.
    """

    text: str = ""
    filling: Filling | None = None
    moment: datetime = _BEGINNING
    subject: str = ""
    limits: Limits = NO_LIMITS
    suppressed: bool = False
    due_at: datetime | None = None
    quiet: QuietHours | None = None
    valid_from: datetime | None = None
    valid_ms: int | None = None
    refusal: Refusal | None = None

    @property
    def are_judged_by_records(self) -> bool:
        """Whether a message needs more than its text to be judged."""
        return self.suppressed or bool(self.limits)

    def due_of(self, mobile: str) -> datetime | None:
        """Before which moment a number must not be sent to; None: it may at once."""
        return not_before(self.quiet, mobile, self.moment) or self.due_at

    def night_of(self, mobile: str) -> Night | None:
        """When a number must not be sent to next, counted from when it is due."""
        if self.quiet is None:
            return None
        return next_night(self.quiet, zones_of(country_code(mobile)), self.due_of(mobile) or self.moment)


NO_TERMS = Terms()


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges texts by a brand's rules.

    Parameters: `words` that no text may hold; `now` the moment of the call.
    """

    rules: BrandRules
    words: SensitiveWords
    now: datetime
    settings: Settings

    def terms(self, asked: Asked, prefix: str = "") -> Terms:
        """What holds for a call whose fields were checked (`check`); the first rule that it breaks is its `refusal`."""
        sms_type = asked.sms_type
        due_at = self._due_at(asked)
        marketing = sms_type == MARKETING
        text, subject, filling, refusal = "", "", None, None
        try:
            names = _variables(asked)
            # A name is no part of any text that is sent.
            found = checked(self.rules, sms_type, self._wording(asked), NO_WORDS if names else self.words)
            text, subject = found.text, found.subject
            filling = self._filling(found, names, prefix) if names else None
            count = len(filling.text.written("")) if filling else len(text)
            longest = self.settings.text_characters_max
            if count > longest:
                made = "with what is put to it must have"
                raise invalid_fields({f"{prefix}text": f"{made} at most {longest} characters; it has {count}"})
        except Refusal as error:
            text, subject, filling, refusal = "", "", None, error
        return Terms(
            text=text,
            filling=filling,
            moment=due_at or self.now,
            subject=subject,
            limits=self.rules.limits_of(sms_type),
            suppressed=self.rules.suppressed,
            due_at=due_at,
            quiet=self.rules.quiet if marketing else None,
            valid_from=due_at,
            valid_ms=_milliseconds(asked) if asked.HasField("valid_for") else None,
            refusal=refusal,
        )

    def check(self, asked: Asked, violations: Violations, prefix: str = "") -> None:
        """Check the fields that rules bring with them; what breaks its rule is told into `violations`."""
        if asked.template_id:
            _check_template(asked, violations, prefix)
        elif asked.template_values:
            violations[f"{prefix}template_values"] = "must be empty without a template_id"
        if asked.signature:
            if _variables(asked) and names_in(asked.signature):
                violations[f"{prefix}signature"] = "must have no variable"
            elif not is_signature(asked.signature):
                violations[f"{prefix}signature"] = "must have 1 to 20 printable characters without 【 and 】"
            elif signature_of(asked.text) is not None:
                violations[f"{prefix}signature"] = "must be empty for a text that has one"
        if asked.HasField("send_at"):
            self._check_send_at(asked, violations, prefix)
        if asked.HasField("valid_for"):
            nanos, seconds = asked.valid_for.nanos, asked.valid_for.seconds
            if not (0 <= nanos < _NANOS and seconds >= 1 and seconds + (nanos > 0) <= _VALID_SECONDS_MAX):
                violations[f"{prefix}valid_for"] = f"must be 1 to {_VALID_SECONDS_MAX} seconds"

    def _filling(self, found: Checked, names: tuple[str, ...], prefix: str) -> Filling:
        try:
            text = parse(found.text, names)
        except InvalidVariables as error:
            raise invalid_fields({f"{prefix}variables": error.rule}) from None
        # No word goes over a line's end: what stands between variables is judged piece by piece.
        check_words(self.words, text.written("\n"))
        return Filling(text, self.rules, found.template, self.words)

    def _check_send_at(self, asked: Asked, violations: Violations, prefix: str) -> None:
        moment = asked.send_at
        if not (0 <= moment.nanos < _NANOS and _SECONDS_MIN <= moment.seconds <= _SECONDS_MAX):
            violations[f"{prefix}send_at"] = "must be a moment of the years 1 to 9999"
        elif moment.seconds > self.now.timestamp() + self.settings.schedule_days_max * 86_400:
            violations[f"{prefix}send_at"] = (
                f"must be at most {self.settings.schedule_days_max:g} days ahead: segments are frozen no longer"
            )

    def _due_at(self, asked: Asked) -> datetime | None:
        if not asked.HasField("send_at"):
            return None
        moment = _BEGINNING + timedelta(seconds=asked.send_at.seconds, microseconds=asked.send_at.nanos // 1_000)
        return moment if moment > self.now else None

    def _wording(self, asked: Asked) -> Wording:
        if not asked.template_id:
            return signed(Wording(asked.text), asked.signature)
        template = named_template(self.rules, asked.template_id, asked.sms_type)
        if asked.signature and template.has_signature:
            raise invalid_fields({"signature": "must be empty for a template that has one"})
        return signed(filled(template, asked.template_values), asked.signature)


def lenient_judge(settings: Settings) -> Judge:
    """A judge without rules."""
    return Judge(NO_RULES, NO_WORDS, datetime.now(UTC), settings)


def content_of(asked: Asked) -> str:
    """What a call asks to be sent and when, as far as it is no plain text that is sent at once: for fingerprints."""
    if not (asked.template_id or asked.signature or asked.HasField("send_at") or asked.HasField("valid_for")):
        return asked.text
    values: Mapping[str, str] = asked.template_values
    parts = [
        asked.text,
        asked.template_id,
        *(each for name in sorted(values) for each in (name, values[name])),
        asked.signature,
        f"{asked.send_at.seconds}.{asked.send_at.nanos}" if asked.HasField("send_at") else "",
        f"{asked.valid_for.seconds}.{asked.valid_for.nanos}" if asked.HasField("valid_for") else "",
    ]
    # No plain text holds NUL.
    return "\0" + "".join(f"{len(part)}:{part}" for part in parts)


def _check_template(asked: Asked, violations: Violations, prefix: str) -> None:
    if asked.text:
        violations[f"{prefix}text"] = "must be empty with a template_id"
    if _variables(asked):
        violations[f"{prefix}template_id"] = "must be empty for a text with variables; give the text itself"
        return
    if len(asked.template_id) > _TEMPLATE_ID_CHARACTERS_MAX or not asked.template_id.isprintable():
        violations[f"{prefix}template_id"] = (
            f"must be a template's id, at most {_TEMPLATE_ID_CHARACTERS_MAX} characters"
        )
    if len(asked.template_values) > VARIABLES_MAX:
        violations[f"{prefix}template_values"] = f"must be at most {VARIABLES_MAX}"


def _variables(asked: Asked) -> tuple[str, ...]:
    """The names of the text's variables; none: it has none."""
    return tuple(asked.variables) if isinstance(asked, sms_gateway_pb2.BatchHeader) else ()


def _milliseconds(asked: Asked) -> int:
    return asked.valid_for.seconds * 1_000 + asked.valid_for.nanos // 1_000_000
