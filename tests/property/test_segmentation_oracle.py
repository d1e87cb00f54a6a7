"""Aim: segments are what filling one part after another gives, for any text.

Method: Hypothesis draws texts rich in pairs and around the limits; the oracle encodes each character to the bytes or
septets that go on the air and fills parts with them, one by one.
"""

from hypothesis import example, given
from hypothesis import strategies as st

from smsgateway.segmentation import GSM7_BASIC, GSM7_EXTENSION, count_segments, split_segments

DOMESTIC = "+8613800138000"
ABROAD = "+85291234567"

GSM7_TEXTS = st.text(st.sampled_from(sorted(GSM7_BASIC | GSM7_EXTENSION)), max_size=700)
PAIRS = st.text(st.sampled_from("a€"), min_size=60, max_size=700)
WIDE = st.text(st.sampled_from("中a😀𠮷"), min_size=30, max_size=300)
ANY = st.text(max_size=300)
TEXTS = st.one_of(GSM7_TEXTS, PAIRS, WIDE, ANY)


def fill(lengths: list[int], alone: int, part: int) -> int:
    """How many parts characters of these lengths take."""
    if not lengths:
        return 0
    if sum(lengths) <= alone:
        return 1
    parts = [0]
    for length in lengths:
        if parts[-1] + length <= part:
            parts[-1] += length
        else:
            parts.append(length)
    return len(parts)


def oracle(text: str) -> tuple[str, int, int]:
    septets: list[int] = []
    for character in text:
        if character in GSM7_BASIC:
            septets.append(1)
        elif character in GSM7_EXTENSION:
            septets.append(2)
        else:
            units = [len(c.encode("utf-16-be")) // 2 for c in text]
            return "ucs2", sum(units), fill(units, 70, 67)
    return "gsm7", sum(septets), fill(septets, 160, 153)


@given(TEXTS)
@example("a" * 152 + "€" + "a" * 152)
@example("中" * 66 + "😀" + "中" * 66)
def test_abroad_as_the_oracle(text: str) -> None:
    count = count_segments(text, ABROAD)
    assert (count.encoding, count.units, count.segments) == oracle(text)


@given(TEXTS)
def test_domestic_as_the_oracle(text: str) -> None:
    count = count_segments(text, DOMESTIC)
    assert (count.encoding, count.units) == ("domestic", len(text))
    assert count.segments == fill([1] * len(text), 70, 67)


@given(TEXTS, st.sampled_from([DOMESTIC, ABROAD]))
def test_parts_are_the_text_and_fit(text: str, mobile: str) -> None:
    count = count_segments(text, mobile)
    parts = split_segments(text, mobile)
    assert "".join(parts) == text
    assert len(parts) == count.segments
    for part in parts:
        alone = count_segments(part, mobile)
        if count.encoding == alone.encoding:
            assert 0 < alone.units <= count.per_segment
