"""The sender's rules compared with plain oracles that try everything."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from smsgateway.rules import Limits, QuietHours, day_begins, retry_after
from smsgateway.sensitive_words import SensitiveWords, folded
from smsgateway.templates import TemplateText, parse
from smsgateway.zones import ZONES_BY_CODE, zones_of

_TEXTS = st.text("ab\n", max_size=12)
_NOW = datetime(2026, 1, 1, tzinfo=UTC)


@st.composite
def templates(draw: st.DrawFn) -> TemplateText:
    """Templates of few letters, so that texts match in many ways."""
    literals = [draw(st.text("ab", max_size=2)), *draw(st.lists(st.text("ab", min_size=1, max_size=2), max_size=3))]
    text = "".join(f"{literal}{{v{n}}}" for n, literal in enumerate(literals))
    return parse(text + draw(st.text("ab", max_size=2)))


@given(templates(), _TEXTS)
def test_a_text_matches_as_a_regular_expression_says(template: TemplateText, text: str) -> None:
    """Variables are one to a hundred characters, line ends are none of them."""
    pattern = r"[^\n]{1,100}".join(re.escape(literal) for literal in template.literals)
    assert template.matches(text) == (re.fullmatch(pattern, text) is not None)


@given(templates(), st.data())
def test_a_filled_template_matches(template: TemplateText, data: st.DataObject) -> None:
    """Whatever its values."""
    values = {name: data.draw(st.text("ab", min_size=1, max_size=5)) for name in template.names}
    assert template.matches(template.filled(values))


@given(st.lists(st.text("abAＢ赌 ", max_size=4), max_size=8), st.text("abAＢ赌博 ", max_size=20))
def test_a_word_is_found_wherever_it_stands(words: list[str], text: str) -> None:
    """And nothing else is."""
    plain = [folded(word.strip()) for word in words]
    assert (SensitiveWords(enumerate(words, 1)).find(text) is not None) == any(
        word and word in folded(text) for word in plain
    )


@given(
    st.builds(Limits, st.integers(0, 3), st.integers(0, 4), st.integers(0, 5)),
    st.lists(st.integers(0, 100_000), max_size=8),
)
def test_a_number_may_be_sent_to_again_when_it_is_told_to(limits: Limits, ages: list[int]) -> None:
    """Not a second earlier, and then no window is full."""

    def free(at: datetime) -> bool:
        return all(
            sum(at - timedelta(seconds=seconds) < sent for sent in moments) < count
            for count, seconds in limits.windows()
        )

    moments = [_NOW - timedelta(seconds=age) for age in ages]
    wait = retry_after(limits, moments, _NOW)
    assert free(_NOW + timedelta(seconds=wait))
    if wait > 0:
        assert not free(_NOW + timedelta(seconds=wait - 1))
    else:
        assert free(_NOW)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["86", "1", "7", "44", "91", "977", "61", "55"]),
    st.integers(0, 1_439),
    st.integers(0, 1_439),
    st.integers(0, 500 * 1_440),
)
def test_the_day_begins_when_no_zone_is_quiet(code: str, start: int, end: int, minute: int) -> None:
    """The first minute, tried one after another, that is outside the hours in every zone of a country."""
    assert code in ZONES_BY_CODE
    quiet, moment = QuietHours(start, end), _NOW + timedelta(minutes=minute)
    zones = zones_of(code)

    def is_quiet(at: datetime) -> bool:
        minutes = [(local := at.astimezone(zone)).hour * 60 + local.minute for zone in zones]
        if start < end:
            return any(start <= each < end for each in minutes)
        return start != end and any(each >= start or each < end for each in minutes)

    found = day_begins(quiet, zones, moment)
    expected = next((n for n in range(2 * 1_440) if not is_quiet(moment + timedelta(minutes=n))), None)
    if expected is not None:
        assert (found or moment) == moment + timedelta(minutes=expected)
