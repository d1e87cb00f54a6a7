"""The sender's rules on texts, times and frequencies, without servers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from infra.errors import Refusal
from protos.smsgateway.v1 import sms_gateway_pb2
from smsgateway import rules
from smsgateway.rules import (
    MARKETING,
    NOTIFICATION,
    VERIFICATION,
    Approval,
    BrandRules,
    Limits,
    QuietHours,
    SuffixRule,
    Template,
    Wording,
)
from smsgateway.sensitive_words import NO_WORDS, SensitiveWords
from smsgateway.settings import Settings
from smsgateway.templates import BadTemplate, parse
from smsgateway.terms import Judge, content_of
from smsgateway.zones import ZONES_BY_CODE, country_code, zones_of

SETTINGS = Settings(_env_file=None)
SUFFIX = SETTINGS.marketing_suffix
NIGHT = QuietHours(22 * 60, 8 * 60)
SHANGHAI = ZoneInfo("Asia/Shanghai")


def template(text: str, sms_type: int = VERIFICATION, approval: Approval = Approval.APPROVED) -> Template:
    """A template called t."""
    return Template("t", sms_type, parse(text), approval)


def judged(brand: BrandRules, text: str, sms_type: int = VERIFICATION, words: SensitiveWords = NO_WORDS) -> str:
    """The final text, or the reason of its refusal."""
    return outcome(lambda: rules.checked(brand, sms_type, Wording(text), words).text)


def outcome(work: Callable[[], str]) -> str:
    """What it returns, or the reason of its refusal with the variable that it names."""
    try:
        return work()
    except Refusal as refusal:
        return f"{refusal.reason} {refusal.metadata.get('variable', '')}".strip()


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("【示例】码", "【示例】码"),
        ("码", "SIGNATURE_REQUIRED"),
        ("码【示例】", "SIGNATURE_REQUIRED"),
        (" 【示例】码", "SIGNATURE_REQUIRED"),
        ("【】码", "SIGNATURE_REQUIRED"),
        (f"【{'长' * 21}】码", "SIGNATURE_REQUIRED"),
        ("【别家】码", "SIGNATURE_NOT_ALLOWED"),
    ],
)
def test_a_signature_is_required_and_must_be_the_brands(text: str, result: str) -> None:
    """At the very start, of a sensible length, and one of those that are approved."""
    assert judged(BrandRules(signatures=frozenset({"示例"})), text) == result


def test_without_rules_every_text_goes() -> None:
    """As it is, whatever its type."""
    for sms_type in (VERIFICATION, NOTIFICATION, MARKETING):
        assert judged(BrandRules(), "hello", sms_type) == "hello"


@pytest.mark.parametrize(
    ("suffix", "text", "result"),
    [
        (SuffixRule.OFF, "大促", "大促"),
        (SuffixRule.REQUIRED, "大促", "SUFFIX_REQUIRED"),
        (SuffixRule.REQUIRED, f"大促 {SUFFIX}", f"大促 {SUFFIX}"),
        (SuffixRule.APPENDED, "大促", f"大促{SUFFIX}"),
        (SuffixRule.APPENDED, f"大促{SUFFIX} ", f"大促{SUFFIX} "),
    ],
)
def test_marketing_ends_with_the_suffix(suffix: SuffixRule, text: str, result: str) -> None:
    """Required, appended or off; other types are left alone."""
    brand = BrandRules(suffix=suffix, suffix_text=SUFFIX)
    assert judged(brand, text, MARKETING) == result
    assert judged(brand, "大促", NOTIFICATION) == "大促"


def test_a_text_must_match_an_approved_template_of_its_type() -> None:
    """With any of the brand's signatures where the template has none, and with or without the suffix."""
    brand = BrandRules(
        must_match=True,
        templates={"t": template("验证码 {code}，{m} 分钟有效")},
        suffix=SuffixRule.APPENDED,
        suffix_text=SUFFIX,
    )
    assert judged(brand, "【示例】验证码 123456，5 分钟有效").startswith("【示例】")
    assert judged(brand, "验证码 123456，5 分钟有效") == "验证码 123456，5 分钟有效"
    for text in ("【示例】验证码 ，5 分钟有效", "验证码 123456，5 分钟有效！", f"验证码 {'1' * 101}，5 分钟有效"):
        assert judged(brand, text) == "TEMPLATE_MISMATCH"
    assert judged(brand, "验证码 1，5 分钟有效", NOTIFICATION) == "TEMPLATE_MISMATCH"
    pending = BrandRules(must_match=True, templates={"t": template("a{b}", approval=Approval.PENDING)})
    assert judged(pending, "ab") == "TEMPLATE_MISMATCH"
    sale = BrandRules(
        must_match=True, templates={"t": template(f"【示例】{{what}}大促{SUFFIX}", MARKETING)}, suffix_text=SUFFIX
    )
    assert judged(sale, "【示例】春季大促", MARKETING) == "【示例】春季大促"
    assert judged(sale, "【别家】春季大促", MARKETING) == "TEMPLATE_MISMATCH"


@pytest.mark.parametrize(
    ("template_id", "sms_type", "approval", "reason"),
    [
        ("t", VERIFICATION, Approval.APPROVED, ""),
        ("u", VERIFICATION, Approval.APPROVED, "TEMPLATE_NOT_FOUND"),
        ("t", VERIFICATION, Approval.PENDING, "TEMPLATE_NOT_APPROVED"),
        ("t", VERIFICATION, Approval.REJECTED, "TEMPLATE_NOT_APPROVED"),
        ("t", MARKETING, Approval.APPROVED, "TEMPLATE_MISMATCH"),
    ],
)
def test_a_named_template_must_be_there_approved_and_of_the_type(
    template_id: str, sms_type: int, approval: Approval, reason: str
) -> None:
    """Each has a reason of its own."""
    brand = BrandRules(templates={"t": template("a{b}", approval=approval)})
    found = outcome(lambda: rules.named_template(brand, template_id, sms_type).template_id)
    assert found == (reason or "t")


@pytest.mark.parametrize(
    ("values", "result"),
    [
        ({"code": "1", "m": "5"}, "1, 5, 1"),
        ({"code": "1"}, "VARIABLE_MISSING m"),
        ({"code": "1", "m": "5", "x": "1"}, "VARIABLE_UNKNOWN x"),
        ({"code": "", "m": "5"}, "VARIABLE_INVALID code"),
        ({"code": "1", "m": "5\n6"}, "VARIABLE_INVALID m"),
        ({"code": "1" * 101, "m": "5"}, "VARIABLE_INVALID code"),
        ({"code": "{m}", "m": "5"}, "{m}, 5, {m}"),
    ],
)
def test_variables_are_filled_and_errors_name_them(values: dict[str, str], result: str) -> None:
    """A value is put in as it is; one that is missing, unknown or unfit is named, and not repeated."""
    assert outcome(lambda: rules.filled(template("{code}, {m}, {code}"), values).text) == result


@pytest.mark.parametrize("text", ["{", "}", "{1a}", "{a b}", "{a}{b}", "{}", "".join(f"x{{v{n}}}" for n in range(21))])
def test_what_is_no_template_is_refused(text: str) -> None:
    """Stray braces, bad names, variables without a text between, too many."""
    with pytest.raises(BadTemplate):
        parse(text)


def test_matching_takes_no_longer_for_hostile_texts() -> None:
    """Twenty variables and a text of one letter, for which a regular expression would try for years."""
    hostile = parse("".join(f"a{{v{n}}}" for n in range(20)) + "b")
    assert not hostile.matches("a" * 536)
    assert hostile.matches("ax" * 20 + "b")


def test_sensitive_words_are_found_in_any_form_and_named_by_line() -> None:
    """Full-width letters and capitals are the same letters; the refusal tells the line and neither word nor text."""
    words = SensitiveWords([(1, "赌博"), (2, ""), (3, "Casino"), (4, " 毒 品 ")])
    assert len(words) == 3
    assert [words.find(text) for text in ("正常", "来赌博吧", "ＣＡＳＩＮＯ!", "casin", "毒 品", "毒品")] == [
        None,
        1,
        3,
        None,
        4,
        None,
    ]
    with pytest.raises(Refusal) as caught:
        rules.checked(BrandRules(), NOTIFICATION, Wording("来赌博吧"), words)
    assert (caught.value.reason, caught.value.metadata) == ("SENSITIVE_WORD", {"line": "1"})
    assert "赌博" not in caught.value.message
    with pytest.raises(ValueError, match="line 9"):
        SensitiveWords([(9, "x" * 65)])


def test_numbers_are_counted_by_what_they_get() -> None:
    """Verification codes together, others by template, else by text; the suffix makes no difference."""
    t = template("a{b}", MARKETING)
    assert rules.subject_of(VERIFICATION, "x", t) == rules.subject_of(VERIFICATION, "y", None) == ""
    assert rules.subject_of(MARKETING, "ax", t) == rules.subject_of(MARKETING, "ay", t) == "template:t"
    assert rules.subject_of(MARKETING, "x", None) != rules.subject_of(MARKETING, "y", None)
    brand = BrandRules(must_match=True, templates={"t": t}, suffix=SuffixRule.APPENDED, suffix_text=SUFFIX)
    assert rules.checked(brand, MARKETING, Wording("ax"), NO_WORDS).subject == "template:t"


def test_a_limited_number_is_told_when_to_try_again() -> None:
    """When the oldest message of each full window has left it, and with the same figures in the reply."""
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    limits = Limits(1, 2, 3)
    ago = [now - timedelta(seconds=seconds) for seconds in (90, 30)]
    assert rules.retry_after(limits, ago, now) == 3_600 - 90
    assert rules.retry_after(limits, ago[:1], now) == 0
    assert rules.retry_after(limits, [now - timedelta(seconds=60)], now) == 0, "a window is half-open"
    refusal = rules.frequency_limited(limits, ago, now)
    assert (refusal.reason, refusal.retry_seconds) == ("FREQUENCY_LIMITED", 3_510)
    assert refusal.metadata == {"per_minute": "1", "per_hour": "2", "per_day": "3"}


@pytest.mark.parametrize(
    ("local", "until"),
    [
        ("2026-05-01T21:59", None),
        ("2026-05-01T22:00", "2026-05-02T08:00"),
        ("2026-05-02T03:00", "2026-05-02T08:00"),
        ("2026-05-02T07:59", "2026-05-02T08:00"),
        ("2026-05-02T08:00", None),
    ],
)
def test_marketing_waits_for_the_morning_of_its_number(local: str, until: str | None) -> None:
    """From 22:00 to 8:00 in Shanghai, to the minute."""
    moment = datetime.fromisoformat(local).replace(tzinfo=SHANGHAI)
    expected = until and datetime.fromisoformat(until).replace(tzinfo=SHANGHAI)
    assert rules.not_before(NIGHT, "+8613800138000", moment) == expected
    assert rules.not_before(None, "+8613800138000", moment) is None


def test_in_a_country_of_several_zones_it_must_be_day_in_all() -> None:
    """North America: 8:00 in Honolulu comes when New York has had lunch; at that time it is day everywhere."""
    moment = datetime(2026, 1, 15, 8, 30, tzinfo=ZoneInfo("America/New_York"))
    until = rules.not_before(NIGHT, "+14155550100", moment)
    assert until == datetime(2026, 1, 15, 8, tzinfo=ZoneInfo("Pacific/Honolulu"))
    assert rules.not_before(NIGHT, "+14155550100", until) is None


def test_the_next_night_begins_in_the_first_zone_and_ends_in_the_last() -> None:
    """For who comes to a message later than it was due."""
    noon = datetime(2026, 1, 15, 12, tzinfo=SHANGHAI)
    night = (noon.replace(hour=22), datetime(2026, 1, 16, 8, tzinfo=SHANGHAI))
    assert rules.next_night(NIGHT, zones_of("86"), noon) == night
    tomorrow = (night[0] + timedelta(days=1), night[1] + timedelta(days=1))
    assert rules.next_night(NIGHT, zones_of("86"), night[0]) == tomorrow
    # Day everywhere.
    morning = datetime(2026, 1, 15, 10, tzinfo=ZoneInfo("Pacific/Honolulu"))
    assert rules.next_night(NIGHT, zones_of("1"), morning) == (
        datetime(2026, 1, 15, 22, tzinfo=ZoneInfo("America/St_Johns")),
        datetime(2026, 1, 16, 8, tzinfo=ZoneInfo("Pacific/Honolulu")),
    )
    assert rules.next_night(QuietHours(0, 0), zones_of("86"), noon) is None


def test_hours_within_a_day_and_none_at_all() -> None:
    """A midday rest ends on the same day; a night without length is none."""
    noon = datetime(2026, 5, 1, 12, 30, tzinfo=SHANGHAI)
    assert rules.not_before(QuietHours(720, 840), "+8613800138000", noon) == noon.replace(hour=14, minute=0)
    assert rules.not_before(QuietHours(720, 720), "+8613800138000", noon) is None


def test_a_night_over_a_change_of_clocks_ends_by_the_clock_on_the_wall() -> None:
    """Berlin sleeps an hour less in spring and an hour more in autumn."""
    for day, hours in (("2026-03-28", 9), ("2026-10-24", 11)):
        evening = datetime.fromisoformat(f"{day}T22:00").replace(tzinfo=ZoneInfo("Europe/Berlin"))
        until = rules.not_before(NIGHT, "+491511234567", evening)
        assert until is not None
        assert until - evening.astimezone(UTC) == timedelta(hours=hours)


def test_every_country_code_has_zones_and_none_begins_with_another() -> None:
    """So that a number has one code at most; an unknown one counts as being in UTC."""
    assert all(zones_of(code) for code in ZONES_BY_CODE)
    assert not [(a, b) for a in ZONES_BY_CODE for b in ZONES_BY_CODE if a != b and b.startswith(a)]
    assert (country_code("+8613800138000"), country_code("+85261234567"), country_code("+9991234567")) == (
        "86",
        "852",
        "",
    )
    assert [zone.key for zone in zones_of("")] == ["UTC"]


def asked(**fields: object) -> sms_gateway_pb2.SendSmsRequest:
    """A call."""
    return sms_gateway_pb2.SendSmsRequest(**{"sms_type": VERIFICATION, **fields})  # type: ignore[arg-type]


def checked_fields(request: sms_gateway_pb2.SendSmsRequest, now: datetime) -> set[str]:
    """Names of the fields that break their rules."""
    violations: dict[str, str] = {}
    Judge(BrandRules(), NO_WORDS, now, SETTINGS).check(request, violations)
    return set(violations)


def test_new_fields_are_held_to_their_rules() -> None:
    """Template or text, values with a template, one signature, moments and durations within bounds."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    at = int(now.timestamp())
    day = 86_400
    good = [
        asked(text="x", send_at={"seconds": at + 6 * day}, valid_for={"seconds": 7 * day}),
        asked(text="x", send_at={"seconds": at - 10**9}, valid_for={"seconds": 1}),
        asked(template_id="t", template_values={"a": "1"}, signature="示例"),
    ]
    for request in good:
        assert checked_fields(request, now) == set()
    bad = [
        (asked(text="x", template_id="t"), {"text"}),
        (asked(text="x", template_values={"a": "1"}), {"template_values"}),
        (asked(template_id="t" * 65), {"template_id"}),
        (asked(template_id="t", template_values={f"v{n}": "1" for n in range(21)}), {"template_values"}),
        (asked(text="【示例】x", signature="示例"), {"signature"}),
        (asked(text="x", signature="a】b"), {"signature"}),
        (asked(text="x", send_at={"seconds": at + 6 * day + 1}), {"send_at"}),
        (asked(text="x", send_at={"seconds": at, "nanos": 10**9}), {"send_at"}),
        (asked(text="x", send_at={"seconds": 10**12}), {"send_at"}),
        (asked(text="x", valid_for={"seconds": 0}), {"valid_for"}),
        (asked(text="x", valid_for={"seconds": -1}), {"valid_for"}),
        (asked(text="x", valid_for={"seconds": 7 * day, "nanos": 1}), {"valid_for"}),
    ]
    for request, fields in bad:
        assert checked_fields(request, now) == fields


def test_terms_of_a_scheduled_marketing_text() -> None:
    """Scheduled into the night it waits for the morning, its validity counts from the schedule; the suffix is there."""
    now = datetime(2026, 5, 1, 12, tzinfo=SHANGHAI)
    night = datetime(2026, 5, 1, 23, tzinfo=SHANGHAI)
    brand = BrandRules(
        quiet=NIGHT, suffix=SuffixRule.APPENDED, suffix_text=SUFFIX, limits={MARKETING: Limits(0, 0, 50)}
    )
    request = asked(
        text="大促",
        sms_type=MARKETING,
        send_at={"seconds": int(night.timestamp())},
        valid_for={"nanos": 5 * 10**8, "seconds": 2},
    )
    terms = Judge(brand, NO_WORDS, now, SETTINGS).terms(request)
    assert terms.text == f"大促{SUFFIX}"
    assert terms.due_of("+8613800138000") == datetime(2026, 5, 2, 8, tzinfo=SHANGHAI)
    assert (terms.valid_from, terms.valid_ms) == (night, 2_500)
    assert terms.limits == Limits(0, 0, 50)
    assert terms.are_judged_by_records
    past = asked(text="码", send_at={"seconds": 1})
    assert Judge(brand, NO_WORDS, now, SETTINGS).terms(past).due_of("+8613800138000") is None
    long = asked(text="字" * 536, sms_type=MARKETING)
    refusal = Judge(brand, NO_WORDS, now, SETTINGS).terms(long).refusal
    assert refusal is not None
    assert refusal.fields == {"text": "with what is put to it must have at most 536 characters; it has 542"}


def test_what_was_asked_tells_calls_apart() -> None:
    """Each field counts, and no text can pretend to be a template."""
    requests = [
        asked(text="x"),
        asked(text="x", signature="s"),
        asked(template_id="x"),
        asked(template_id="x", template_values={"a": "1"}),
        asked(template_id="x", template_values={"a": "1", "b": "2"}),
        asked(template_id="x", template_values={"a1": "", "b": "2"}),
        asked(text="x", send_at={"seconds": 5}),
        asked(text="x", valid_for={"seconds": 5}),
        asked(text="x", send_at={"seconds": 5}, valid_for={"seconds": 5}),
    ]
    assert len({content_of(request) for request in requests}) == len(requests)
    assert content_of(requests[0]) == "x"
