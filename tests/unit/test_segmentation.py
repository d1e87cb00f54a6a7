"""Aim: the billed segments of a text are right at every boundary of both rules.

Method: texts one unit below, at and above each limit; pairs (escape, surrogate) laid across the end of a part.
"""

import pytest

from smsgateway.mobile import InvalidMobile
from smsgateway.segmentation import (
    GSM7_BASIC,
    GSM7_EXTENSION,
    SegmentCount,
    SegmentRule,
    count_segments,
    count_segments_by_rule,
    segment_rule,
    split_segments,
)

DOMESTIC = "+8613800138000"
ABROAD = "+85291234567"


@pytest.mark.parametrize(
    ("characters", "segments", "per_segment"),
    [
        (0, 0, 70),
        (1, 1, 70),
        (69, 1, 70),
        (70, 1, 70),
        (71, 2, 67),
        (134, 2, 67),
        (135, 3, 67),
        (201, 3, 67),
        (202, 4, 67),
        (535, 8, 67),
        (536, 8, 67),
        (537, 9, 67),
    ],
)
@pytest.mark.parametrize("character", ["中", "a", "€", "😀", "\n", "𠮷"])
def test_domestic_counts_characters(character: str, characters: int, segments: int, per_segment: int) -> None:
    expected = SegmentCount("domestic", characters, segments, per_segment)
    assert count_segments(character * characters, DOMESTIC) == expected
    assert count_segments(character * characters, "13800138000") == expected


def test_domestic_counts_the_signature() -> None:
    signature = "【测试】"
    assert count_segments(signature + "a" * 66, DOMESTIC).segments == 1
    assert count_segments(signature + "a" * 67, DOMESTIC).segments == 2


@pytest.mark.parametrize(
    ("text", "units", "segments", "per_segment"),
    [
        ("", 0, 0, 160),
        ("a", 1, 1, 160),
        ("a" * 159, 159, 1, 160),
        ("a" * 160, 160, 1, 160),
        ("a" * 161, 161, 2, 153),
        ("a" * 306, 306, 2, 153),
        ("a" * 307, 307, 3, 153),
        ("a" * 459, 459, 3, 153),
        ("a" * 460, 460, 4, 153),
        ("€" * 80, 160, 1, 160),
        ("a" * 158 + "€", 160, 1, 160),
        ("a" * 159 + "€", 161, 2, 153),
        # 76 pairs fill 152 of a part's 153 septets: the last septet stays empty.
        ("€" * 81, 162, 2, 153),
        ("€" * 152, 304, 2, 153),
        ("€" * 153, 306, 3, 153),
        # Division says two parts for 306 septets; the pair over the border makes it three.
        ("a" * 152 + "€" + "a" * 152, 306, 3, 153),
        ("a" * 151 + "€" + "a" * 153, 306, 2, 153),
        ("a" * 153 + "€" + "a" * 151, 306, 2, 153),
    ],
)
def test_gsm7(text: str, units: int, segments: int, per_segment: int) -> None:
    assert count_segments(text, ABROAD) == SegmentCount("gsm7", units, segments, per_segment)


@pytest.mark.parametrize(
    ("text", "units", "segments", "per_segment"),
    [
        ("中", 1, 1, 70),
        ("中" * 69, 69, 1, 70),
        ("中" * 70, 70, 1, 70),
        ("中" * 71, 71, 2, 67),
        ("中" * 134, 134, 2, 67),
        ("中" * 135, 135, 3, 67),
        ("a" * 69 + "中", 70, 1, 70),
        ("a" * 70 + "中", 71, 2, 67),
        ("€" * 69 + "中", 70, 1, 70),
        ("😀", 2, 1, 70),
        ("😀" * 35, 70, 1, 70),
        ("😀" * 36, 72, 2, 67),
        ("😀" * 66, 132, 2, 67),
        ("😀" * 67, 134, 3, 67),
        ("中" * 66 + "😀" + "中" * 66, 134, 3, 67),
        ("中" * 65 + "😀" + "中" * 67, 134, 2, 67),
        ("\ud83d" + "a" * 69, 70, 1, 70),
    ],
)
def test_ucs2(text: str, units: int, segments: int, per_segment: int) -> None:
    assert count_segments(text, ABROAD) == SegmentCount("ucs2", units, segments, per_segment)


def test_alphabet_of_3gpp_ts_23_038() -> None:
    assert len(GSM7_BASIC) == 127  # 128 positions, one of them the escape
    assert len(GSM7_EXTENSION) == 10
    assert not GSM7_BASIC & GSM7_EXTENSION
    for character in GSM7_BASIC:
        assert count_segments(character, ABROAD) == SegmentCount("gsm7", 1, 1, 160)
    for character in GSM7_EXTENSION:
        assert count_segments(character, ABROAD) == SegmentCount("gsm7", 2, 1, 160)
    for character in "ç`\t\x1b\u00a0’中":
        assert count_segments(character, ABROAD).encoding == "ucs2"


def test_parts_keep_pairs_whole() -> None:
    assert split_segments("a" * 152 + "€" + "a" * 152, ABROAD) == ("a" * 152, "€" + "a" * 151, "a")
    assert split_segments("中" * 66 + "😀" + "中" * 66, ABROAD) == ("中" * 66, "😀" + "中" * 65, "中")
    assert split_segments("中" * 71, DOMESTIC) == ("中" * 67, "中" * 4)
    assert split_segments("中", DOMESTIC) == ("中",)
    assert split_segments("", ABROAD) == ()


def test_long_texts_are_counted_without_being_kept() -> None:
    assert count_segments("€" * 10_000, ABROAD) == SegmentCount("gsm7", 20_000, 132, 153)


@pytest.mark.parametrize(
    ("mobile", "rule"),
    [
        ("+8613800138000", SegmentRule.DOMESTIC),
        ("13800138000", SegmentRule.DOMESTIC),
        ("+13805551234", SegmentRule.INTERNATIONAL),
        ("+85291234567", SegmentRule.INTERNATIONAL),
    ],
)
def test_rule_of_a_number(mobile: str, rule: SegmentRule) -> None:
    assert segment_rule(mobile) is rule
    assert count_segments("a" * 71, mobile) == count_segments_by_rule("a" * 71, rule)


def test_no_rule_is_guessed_for_rubbish() -> None:
    with pytest.raises(InvalidMobile):
        segment_rule("not a number")
