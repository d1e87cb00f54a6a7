"""The sender's rules: what a text must be before it is sent, and when it may be. No I/O.

Rules are judged on the final text of each message: `filled` makes it of a template, or it is what the caller wrote;
`checked` judges it and appends the marketing suffix. A text with variables (`smsgateway.variables`) is judged once by
`checked`, and what recipients get of it by `check_filled`. Numbers that must not be sent to and how often a number may
be sent to are judged where the records are (`smsgateway.store.rule_checks`); `retry_after` tells a refused caller when
to come again.

Sources: signature, suffix, frequencies and hours are the customs of mainland China, as its carriers and platforms
publish them (Chuanglan's document v1.2.0; Aliyun's and Huawei Cloud's pages on limits).
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from functools import cached_property
from zoneinfo import ZoneInfo

import grpc

from infra.errors import Refusal, failed_precondition
from smsgateway.sensitive_words import SensitiveWords
from smsgateway.templates import BadVariable, TemplateText
from smsgateway.zones import country_code, zones_of

VERIFICATION, NOTIFICATION, MARKETING = 1, 2, 3
SIGNATURE_CHARACTERS_MAX = 20
MINUTE_SECONDS, HOUR_SECONDS, DAY_SECONDS = 60, 3_600, 86_400

# What a text or its number is refused for.
RULE_REASONS = frozenset(
    {
        "SIGNATURE_REQUIRED",
        "SIGNATURE_NOT_ALLOWED",
        "TEMPLATE_NOT_FOUND",
        "TEMPLATE_NOT_APPROVED",
        "TEMPLATE_MISMATCH",
        "VARIABLE_MISSING",
        "VARIABLE_UNKNOWN",
        "VARIABLE_INVALID",
        "SUFFIX_REQUIRED",
        "SENSITIVE_WORD",
        "OPTED_OUT",
        "BLACK_LISTED",
        "FREQUENCY_LIMITED",
    }
)

_SIGNATURE = re.compile(rf"【([^【】]{{1,{SIGNATURE_CHARACTERS_MAX}}})】")


class Approval(enum.IntEnum):
    """Whether a signature or template may be used; the numbers of `smsgateway.v1.Approval`."""

    PENDING = 1
    APPROVED = 2
    REJECTED = 3


class SuffixRule(enum.IntEnum):
    """What becomes of a marketing text without the suffix; the numbers of `smsgateway.v1.SuffixRule`."""

    OFF = 1
    REQUIRED = 2
    APPENDED = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """How many messages a number may get within any minute, hour and day; 0: any number."""

    per_minute: int = 0
    per_hour: int = 0
    per_day: int = 0

    def windows(self) -> list[tuple[int, int]]:
        """(messages, seconds) of each limit that is set."""
        given = (
            (self.per_minute, MINUTE_SECONDS),
            (self.per_hour, HOUR_SECONDS),
            (self.per_day, DAY_SECONDS),
        )
        return [(count, seconds) for count, seconds in given if count]

    def __bool__(self) -> bool:
        return bool(self.per_minute or self.per_hour or self.per_day)


@dataclass(frozen=True, slots=True)
class QuietHours:
    """When marketing is held, in minutes of the recipient's day: from `start` until before `end`, over midnight when
    `end` is not after `start`.
    """

    start: int
    end: int


@dataclass(frozen=True)
class Template:
    """A registered template."""

    template_id: str
    sms_type: int
    text: TemplateText
    approval: Approval

    @property
    def has_signature(self) -> bool:
        """Whether it says with which signature it is sent; else any of the brand's goes with it."""
        return self.text.literals[0].startswith("【")


@dataclass(frozen=True, slots=True)
class Matcher:
    """A template in its place among those of its brand, without the suffix."""

    order: int
    template: Template
    text: TemplateText
    is_signed: bool


@dataclass(frozen=True)
class BrandRules:
    """What holds for a brand, its own settings and the defaults in one.

    `signatures` that are approved, None: any text goes without; `must_match`: a text must match an approved template
    (of `templates`, by id in their order); `limits` by type; `suppressed`: the brand has suppressions, or all brands
    have.
    """

    signatures: frozenset[str] | None = None
    must_match: bool = False
    templates: Mapping[str, Template] = field(default_factory=dict)
    suffix: SuffixRule = SuffixRule.OFF
    suffix_text: str = ""
    limits: Mapping[int, Limits] = field(default_factory=dict)
    quiet: QuietHours | None = None
    suppressed: bool = False

    @cached_property
    def matchers(self) -> Mapping[tuple[int, str], Sequence[Matcher]]:
        """What texts are matched with: the approved templates by type and first character; an empty one: a variable."""
        found: dict[tuple[int, str], list[Matcher]] = {}
        for order, template in enumerate(self.templates.values()):
            if template.approval is Approval.APPROVED:
                text = _without(template.text, self.suffix_text)
                matcher = Matcher(order, template, text, template.has_signature)
                found.setdefault((template.sms_type, text.literals[0][:1]), []).append(matcher)
        return found

    def limits_of(self, sms_type: int) -> Limits:
        """The limits of a type; none set: false."""
        return self.limits.get(sms_type, NO_LIMITS)


NO_LIMITS = Limits()
NO_RULES = BrandRules()


@dataclass(frozen=True, slots=True)
class Wording:
    """A text as the caller wants it sent, with the template that it was made of, if any."""

    text: str
    template: Template | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """A text that may be sent, under which subject its number's messages are counted, and the template that it was made
    of or matches, if any.
    """

    text: str
    subject: str
    template: Template | None = None


# Texts.


def signature_of(text: str) -> str | None:
    """The signature at the start of a text, without its brackets; None: it has none."""
    found = _SIGNATURE.match(text)
    return None if found is None else found[1]


def is_signature(name: str) -> bool:
    """Whether a signature may be called so: 1 to 20 printable characters without 【 and 】 and spaces at its ends."""
    return _SIGNATURE.fullmatch(f"【{name}】") is not None and name.isprintable() and name.strip() == name


def named_template(rules: BrandRules, template_id: str, sms_type: int) -> Template:
    """The template that a call names. Raises FAILED_PRECONDITION (TEMPLATE_NOT_FOUND, TEMPLATE_NOT_APPROVED) and
    INVALID_ARGUMENT (TEMPLATE_MISMATCH) when it is for another type.
    """
    template = rules.templates.get(template_id)
    if template is None:
        raise failed_precondition(
            "TEMPLATE_NOT_FOUND", "the brand has no such template; register it first", template_id=template_id
        )
    if template.approval is not Approval.APPROVED:
        raise failed_precondition(
            "TEMPLATE_NOT_APPROVED",
            f"the template is {template.approval.name.lower()}, not approved",
            template_id=template_id,
        )
    if template.sms_type != sms_type:
        raise _mismatch("the template is for another type of messages")
    return template


def filled(template: Template, values: Mapping[str, str]) -> Wording:
    """A template with its variables' values. Raises INVALID_ARGUMENT (VARIABLE_MISSING, VARIABLE_UNKNOWN,
    VARIABLE_INVALID), which names the variable.
    """
    try:
        return Wording(template.text.filled(values), template)
    except BadVariable as error:
        raise _variable_refusal(error) from None


def signed(wording: Wording, signature: str) -> Wording:
    """A text with a signature of the caller's choice in front; without a choice the text itself."""
    return Wording(f"【{signature}】{wording.text}", wording.template) if signature else wording


def checked(rules: BrandRules, sms_type: int, wording: Wording, words: SensitiveWords) -> Checked:
    """Judge one final text, with the suffix appended where the brand wants that.

    Raises INVALID_ARGUMENT (SIGNATURE_REQUIRED, TEMPLATE_MISMATCH, SUFFIX_REQUIRED, SENSITIVE_WORD) and
    FAILED_PRECONDITION (SIGNATURE_NOT_ALLOWED). No refusal repeats the text.
    """
    text = wording.text
    if rules.signatures is not None:
        _check_signature(rules.signatures, text)
    template = wording.template
    if template is None and rules.must_match:
        template = _matching(rules, sms_type, text)
    check_words(words, text)
    if sms_type == MARKETING and rules.suffix is not SuffixRule.OFF and not text.rstrip().endswith(rules.suffix_text):
        if rules.suffix is SuffixRule.REQUIRED:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "SUFFIX_REQUIRED",
                f"a marketing text must end with {rules.suffix_text}",
                metadata={"suffix": rules.suffix_text},
            )
        text += rules.suffix_text
    return Checked(text, subject_of(sms_type, wording.text, template), template)


def check_words(words: SensitiveWords, text: str) -> None:
    """Raises INVALID_ARGUMENT (SENSITIVE_WORD) for a text that holds one of the words."""
    line = words.find(text)
    if line is not None:
        raise Refusal(
            grpc.StatusCode.INVALID_ARGUMENT,
            "SENSITIVE_WORD",
            "the text holds a word of the list of sensitive words",
            metadata={"line": str(line)},
        )


def check_filled(rules: BrandRules, text: str, template: Template | None, words: SensitiveWords) -> None:
    """Judge what one recipient gets of a text with variables that `checked` has passed, by what values can change.

    Parameters: `template` that the text with its variables in place matches; None: it need not match any. The values
    must leave it a text of that template, so that all recipients are counted under one subject.
    Raises as `checked`.
    """
    if rules.signatures is not None:
        _check_signature(rules.signatures, text)
    if template is not None and not _fits(rules, template, text):
        raise _mismatch("the values make a text that its template does not")
    check_words(words, text)


def subject_of(sms_type: int, text: str, template: Template | None) -> str:
    """Under which subject the messages to a number are counted: verification codes together, others by their template,
    or by their text where they have none.
    """
    if sms_type == VERIFICATION:
        return ""
    if template is not None:
        return f"template:{template.template_id}"
    return f"text:{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _check_signature(signatures: frozenset[str], text: str) -> None:
    signature = signature_of(text)
    if signature is None:
        raise Refusal(
            grpc.StatusCode.INVALID_ARGUMENT,
            "SIGNATURE_REQUIRED",
            f"the text must begin with a signature: 【…】 with 1 to {SIGNATURE_CHARACTERS_MAX} characters",
        )
    if signature not in signatures:
        raise failed_precondition(
            "SIGNATURE_NOT_ALLOWED",
            "the signature is not registered and approved for the brand",
            signature=signature,
        )


def _matching(rules: BrandRules, sms_type: int, text: str) -> Template:
    """The first template, by id, that a text matches, the suffix put aside on both sides."""
    whole = text.rstrip().removesuffix(rules.suffix_text)
    found = _SIGNATURE.match(whole)
    unsigned = whole[found.end() :] if found else whole
    first: Matcher | None = None
    for begins in {whole[:1], unsigned[:1], ""}:
        for matcher in rules.matchers.get((sms_type, begins), ()):
            if first is not None and first.order < matcher.order:
                break
            if matcher.text.matches(whole if matcher.is_signed else unsigned):
                first = matcher
                break
    if first is None:
        raise _mismatch("the text matches no approved template of the brand for this type")
    return first.template


def _fits(rules: BrandRules, template: Template, text: str) -> bool:
    """Whether a text matches a template, the suffix put aside on both sides."""
    whole = text.rstrip().removesuffix(rules.suffix_text)
    if not template.has_signature and (found := _SIGNATURE.match(whole)):
        whole = whole[found.end() :]
    return _without(template.text, rules.suffix_text).matches(whole)


def _without(text: TemplateText, suffix: str) -> TemplateText:
    last = text.literals[-1]
    if not suffix or not last.endswith(suffix):
        return text
    return TemplateText((*text.literals[:-1], last.removesuffix(suffix)), text.variables)


def _mismatch(sentence: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "TEMPLATE_MISMATCH", sentence)


def _variable_refusal(error: BadVariable) -> Refusal:
    sentence = f"variable {error.variable}: {error.rule}"
    metadata = {"variable": error.variable}
    if error.reason == "VARIABLE_MISSING":
        return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "VARIABLE_MISSING", sentence, metadata=metadata)
    if error.reason == "VARIABLE_UNKNOWN":
        return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "VARIABLE_UNKNOWN", sentence, metadata=metadata)
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "VARIABLE_INVALID", sentence, metadata=metadata)


# Numbers.


def opted_out() -> Refusal:
    """FAILED_PRECONDITION (OPTED_OUT)."""
    return failed_precondition("OPTED_OUT", "the number has opted out of marketing")


def black_listed() -> Refusal:
    """FAILED_PRECONDITION (BLACK_LISTED)."""
    return failed_precondition("BLACK_LISTED", "the number is on a black list")


def frequency_limited(limits: Limits, sent_at: Sequence[datetime], now: datetime) -> Refusal:
    """FAILED_PRECONDITION (FREQUENCY_LIMITED), with RetryInfo, for a number that has got its messages."""
    seconds = retry_after(limits, sent_at, now)
    return Refusal(
        grpc.StatusCode.FAILED_PRECONDITION,
        "FREQUENCY_LIMITED",
        f"the number has got as many messages as it may; try again in {seconds:.0f} s",
        metadata={
            "per_minute": str(limits.per_minute),
            "per_hour": str(limits.per_hour),
            "per_day": str(limits.per_day),
        },
        retry_seconds=seconds,
    )


def retry_after(limits: Limits, sent_at: Iterable[datetime], now: datetime) -> float:
    """Seconds until one more message is allowed: until the oldest of those that fill a window has left it.

    Parameters: `sent_at` the moments of messages that count, in any order; 0 when one is allowed now. Windows are
    half-open: a message that was sent a minute ago has left the minute.
    """
    moments = sorted(sent_at)
    longest = 0.0
    for count, seconds in limits.windows():
        if len(moments) >= count:
            longest = max(longest, (moments[-count] - now).total_seconds() + seconds)
    return longest


# Hours.


def not_before(quiet: QuietHours | None, mobile: str, moment: datetime) -> datetime | None:
    """When a marketing message that would go at a moment may go to a number: the end of the quiet hours that the moment
    falls into; None when it does not. In a country of several zones it must be day in all of them.
    """
    return None if quiet is None else day_begins(quiet, zones_of(country_code(mobile)), moment)


def day_begins(quiet: QuietHours, zones: Sequence[ZoneInfo], moment: datetime) -> datetime | None:
    """`not_before` for zones. A pair of zones so far apart that the day of one is the night of the other has no such
    moment; then the last zone looked at decides.
    """
    at = moment
    # Each round passes at least one zone's night; two days of them are all that there can be.
    for _ in range(2 * len(zones)):
        ends = [end for zone in zones if (end := _quiet_end(quiet, zone, at)) is not None]
        if not ends:
            break
        at = max(ends)
    return None if at == moment else at


def next_night(quiet: QuietHours, zones: Sequence[ZoneInfo], moment: datetime) -> tuple[datetime, datetime] | None:
    """The first quiet hours after a moment in any of the zones, until it is day in all of them; None: there are none.

    Who comes to a message later takes them to come again every 24 hours, which is an hour off where clocks change.
    """
    if quiet.start == quiet.end:
        return None
    start = min(_next(quiet.start, zone, moment) for zone in zones)
    return start, day_begins(quiet, zones, start) or start


def _next(minutes: int, zone: ZoneInfo, moment: datetime) -> datetime:
    """When it is so late in a zone for the first time after a moment."""
    at, day = time(minutes // 60, minutes % 60), moment.astimezone(zone).date()
    for days in (0, 1):
        found = datetime.combine(day + timedelta(days=days), at, zone).astimezone(UTC)
        if found > moment:
            return found
    return datetime.combine(day + timedelta(days=2), at, zone).astimezone(UTC)


def _quiet_end(quiet: QuietHours, zone: ZoneInfo, moment: datetime) -> datetime | None:
    """The end of the quiet hours that a moment falls into, or None."""
    if quiet.start == quiet.end:
        return None
    local = moment.astimezone(zone)
    minute = local.hour * 60 + local.minute
    if quiet.start < quiet.end:
        if not quiet.start <= minute < quiet.end:
            return None
        day = local.date()
    elif minute >= quiet.start:
        day = local.date() + timedelta(days=1)
    elif minute < quiet.end:
        day = local.date()
    else:
        return None
    end = datetime.combine(day, time(quiet.end // 60, quiet.end % 60), zone).astimezone(UTC)
    # Where clocks are put back, an end may come twice: the later one. Where they go forward it may be over already.
    later = datetime.combine(day, time(quiet.end // 60, quiet.end % 60, fold=1), zone).astimezone(UTC)
    return max(end, later) if max(end, later) > moment else None


def minutes_of(text: str) -> int | None:
    """Minutes of the day of a time such as 22:00; None for a text that is none."""
    found = re.fullmatch(r"([01][0-9]|2[0-3]):([0-5][0-9])", text)
    return None if found is None else int(found[1]) * 60 + int(found[2])
