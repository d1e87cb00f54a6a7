"""How many billed segments a text makes.

Two rules, told apart by the receiver's number alone:

*domestic* (mobile numbers of mainland China). Every character counts one, the signature 【…】 included: 70 alone, else
67 in each part. So carriers in China publish their price (汉字、字母、数字、标点、空格都按 1 个字计算), and hence
Chuanglan's limit of 536 = 8 x 67 characters. A *character* is a Unicode code point here. So a character beyond the
Basic Multilingual Plane (emoji, rare Han) counts one as well, though it takes two of UCS-2's code units on the air: the
promise made to brands is in characters, and a promise is not read against the one who pays. A carrier that bills
such texts by code unit shows it in the ``length`` of its receipt, which can be compared with our own figure.

*international* (all others), by 3GPP TS 23.038 and TS 23.040. A text made only of the GSM 7-bit default alphabet and
its extension table takes 160 septets alone or 153 in each part, extension characters two; any other text is UCS-2 with
70 code units alone or 67 in each part, a character beyond the Basic Multilingual Plane two. Neither an escape pair nor
a surrogate pair may be torn apart by the end of a part, so parts are *packed*, never divided: a part can end one unit
short.

One text to many numbers needs one count per rule, never one per number: ask `segment_rule` for each number (a test of
its prefix), and `count_segments_by_rule` for each of the two rules. `count_segments` does both for a single message;
counts of the international rule are kept for texts seen lately.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final, Literal

from smsgateway.mobile import is_domestic

Encoding = Literal["domestic", "gsm7", "ucs2"]

# 3GPP TS 23.038, 6.2.1 (position 0x1B, the escape, is no character) and 6.2.1.1.
GSM7_BASIC: Final = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
GSM7_EXTENSION: Final = frozenset("\f^{}\\[~]|€")
_GSM7: Final = GSM7_BASIC | GSM7_EXTENSION

_KEPT_COUNTS: Final = 1_024
_KEPT_TEXT_LENGTH_MAX: Final = 4_096
"""Characters; longer texts are counted anew each time, so that what is kept stays within a few MiB."""


class SegmentRule(Enum):
    """Which of the two rules counts a text; see the module."""

    DOMESTIC = "domestic"
    INTERNATIONAL = "international"


@dataclass(frozen=True, slots=True)
class SegmentCount:
    """The segments of one text.

    Attributes:
        encoding: ``domestic``, or the encoding that the international rule chose: ``gsm7`` or ``ucs2``.
        units: length of the text in what the encoding counts: characters, septets or UTF-16 code units.
        segments: billed segments; 0 for an empty text only, which callers refuse.
        per_segment: units that one segment takes in this text: 70 or 67, with gsm7 160 or 153.
    """

    encoding: Encoding
    units: int
    segments: int
    per_segment: int


@dataclass(frozen=True, slots=True)
class _Capacity:
    """Units that fit in a message of one part, and in each part of a longer one."""

    alone: int
    part: int


_CAPACITY: Final[dict[Encoding, _Capacity]] = {
    "domestic": _Capacity(70, 67),
    "gsm7": _Capacity(160, 153),
    "ucs2": _Capacity(70, 67),
}


def segment_rule(mobile: str) -> SegmentRule:
    """The rule that counts texts to a number.

    Args:
        mobile: E.164 with its plus sign, or a national Chinese number of 11 digits.

    Returns:
        `SegmentRule.DOMESTIC` for mainland China, else `SegmentRule.INTERNATIONAL`.

    Raises:
        InvalidMobile: no plus sign, and no mobile number either. The two rules bill differently, so nothing is guessed.
    """
    return SegmentRule.DOMESTIC if is_domestic(mobile) else SegmentRule.INTERNATIONAL


def count_segments(text: str, mobile: str) -> SegmentCount:
    """Count the billed segments of a text to a number.

    Args:
        text: the whole text as the receiver gets it, signature included.
        mobile: E.164 with its plus sign, or a national Chinese number of 11 digits.

    Returns:
        The count; 0 segments for an empty text.

    Raises:
        InvalidMobile: as `segment_rule`.
    """
    return count_segments_by_rule(text, segment_rule(mobile))


def count_segments_by_rule(text: str, rule: SegmentRule) -> SegmentCount:
    """Count the billed segments of a text by a rule: once per rule, however many numbers there are.

    Args:
        text: the whole text as the receiver gets it, signature included.
        rule: from `segment_rule`.

    Returns:
        The count; 0 segments for an empty text.
    """
    if rule is SegmentRule.DOMESTIC:
        # len() is cheaper than a look-up in the cache would be.
        return _divide("domestic", len(text))
    if len(text) > _KEPT_TEXT_LENGTH_MAX:
        return _count_international(text)
    return _count_international_kept(text)


@lru_cache(maxsize=_KEPT_COUNTS)
def domestic_segments(characters: int) -> int:
    """Segments of a text of so many characters to a number of mainland China: texts of one length cost the same."""
    return _divide("domestic", characters).segments


def split_segments(text: str, mobile: str) -> tuple[str, ...]:
    """The parts of a text, in order; as many as `count_segments` says, together the text.

    Args:
        text: the whole text.
        mobile: E.164 with its plus sign, or a national Chinese number of 11 digits.

    Returns:
        The text of each part; nothing for an empty text.

    Raises:
        InvalidMobile: as `segment_rule`.
    """
    count = count_segments(text, mobile)
    if count.segments <= 1:
        return (text,) if text else ()
    ends = list(_part_ends(_unit_lengths(text, count.encoding), count.per_segment))
    assert len(ends) == count.segments
    return tuple(text[start:end] for start, end in zip([0, *ends], ends, strict=False))


def _count_international(text: str) -> SegmentCount:
    characters = set(text)
    if characters <= _GSM7:
        encoding: Encoding = "gsm7"
        units = len(text) + sum(map(text.count, characters & GSM7_EXTENSION))
    else:
        encoding = "ucs2"
        # A lone surrogate cannot arrive over gRPC; were it here, it would take one unit.
        units = len(text.encode("utf-16-le", "surrogatepass")) // 2
    capacity = _CAPACITY[encoding]
    if units == len(text) or units <= capacity.alone:
        return _divide(encoding, units)
    segments = sum(1 for _ in _part_ends(_unit_lengths(text, encoding), capacity.part))
    return SegmentCount(encoding, units, segments, capacity.part)


_count_international_kept = lru_cache(maxsize=_KEPT_COUNTS)(_count_international)


def _divide(encoding: Encoding, units: int) -> SegmentCount:
    """Count a text in which no character takes two units, or which needs no second part."""
    capacity = _CAPACITY[encoding]
    if units <= capacity.alone:
        return SegmentCount(encoding, units, 1 if units else 0, capacity.alone)
    return SegmentCount(encoding, units, -(-units // capacity.part), capacity.part)


def _unit_lengths(text: str, encoding: Encoding) -> Iterator[int]:
    """Units of each character of a text."""
    if encoding == "gsm7":
        return (2 if character in GSM7_EXTENSION else 1 for character in text)
    if encoding == "ucs2":
        return (2 if character > "\uffff" else 1 for character in text)
    return (1 for _ in text)


def _part_ends(unit_lengths: Iterable[int], per_part: int) -> Iterator[int]:
    """Fill parts one after another; yield for each the index after its last character."""
    used = 0
    index = 0
    for index, length in enumerate(unit_lengths):
        if used + length > per_part:
            yield index
            used = 0
        used += length
    if used:
        yield index + 1
