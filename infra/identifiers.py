"""Numbers that sort by time and carry the brand that they belong to.

32 characters of Crockford's base32 (https://www.crockford.com/base32.html): 10 of milliseconds since 1970, 13 of the
brand, 9 that are random. Their order as bytes is their order in time; whoever holds one can find its brand's shard.
"""

from __future__ import annotations

import re
import secrets
from functools import lru_cache

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {character: value for value, character in enumerate(ALPHABET)}
_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]
LENGTH = 32
_PATTERN = re.compile(rf"[{ALPHABET}]{{{LENGTH}}}")
_RANDOM_BITS = 45
_RANDOM_MASK = (1 << _RANDOM_BITS) - 1


def encode(number: int, width: int) -> str:
    """Write a whole number in base32 with exactly `width` characters."""
    characters = []
    for _ in range(width):
        characters.append(ALPHABET[number & 31])
        number >>= 5
    assert number == 0, "number does not fit its width"
    return "".join(reversed(characters))


@lru_cache(maxsize=65_536)
def _brand_part(brand_id: int) -> str:
    return encode(brand_id, 13)


@lru_cache(maxsize=64)
def _time_part(milliseconds: int) -> str:
    return encode(milliseconds, 10)


class IdentifierSource:
    """Makes identifiers. Each process has its own; they do not repeat, within a process by counting and across
    processes by 45 random bits that the counting starts from anew for each.
    """

    def __init__(self) -> None:
        self._next = secrets.randbits(_RANDOM_BITS)

    def new(self, brand_id: int, at_ms: int) -> str:
        """Return a new identifier for a brand at a moment (milliseconds since 1970)."""
        # An odd step visits every value once before it repeats, and makes neighbours look nothing alike.
        self._next = number = (self._next + 0x9E3779B97F5) & _RANDOM_MASK
        high, middle = number >> 25, number >> 5
        tail = (
            _PAIRS[high >> 10]
            + _PAIRS[high & 1023]
            + _PAIRS[(middle >> 10) & 1023]
            + _PAIRS[middle & 1023]
            + ALPHABET[number & 31]
        )
        return _time_part(at_ms) + _brand_part(brand_id) + tail


def time_prefix(at_ms: int) -> str:
    """What every identifier of a millisecond (since 1970, not before) begins with: a border for ranges of them."""
    return _time_part(at_ms)


def brand_of(identifier: str) -> int | None:
    """Return the brand that an identifier carries, or None when it is none of ours."""
    if not _PATTERN.fullmatch(identifier):
        return None
    brand_id = 0
    for character in identifier[10:23]:
        brand_id = brand_id << 5 | _VALUES[character]
    return brand_id if brand_id < 1 << 63 else None
