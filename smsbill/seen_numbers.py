"""Which numbers of a file have been seen, for millions of them in little memory.

A set of Python's takes some 90 bytes for each number; this takes 16 to 32. Numbers have at most 15 digits, so each fits
into 64 bits as it is: nothing is mistaken for another.
"""

from __future__ import annotations

from array import array

from smsbill.failure import CommandError

_SLOTS_FIRST = 1 << 16
SLOTS_MAX = 1 << 24
"""Slots at most: 128 MiB, and half as much more for a moment while they grow to it."""
NUMBERS_MAX = SLOTS_MAX * 3 // 4
_WORD = (1 << 64) - 1
# Fibonacci hashing: the upper bits of the product are spread well, whatever the numbers have in common.
_FACTOR = 0x9E3779B97F4A7C15


class SeenNumbers:
    """A set of numbers in E.164 that can only grow."""

    def __init__(self) -> None:
        self._make(_SLOTS_FIRST)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, mobile: str) -> bool:
        """Add a number; whether it is new. Raises `CommandError` beyond `NUMBERS_MAX`."""
        key = int(mobile)
        slots, mask = self._slots, self._mask
        place = (key * _FACTOR & _WORD) >> self._shift
        while found := slots[place]:
            if found == key:
                return False
            place = (place + 1) & mask
        slots[place] = key
        self._count += 1
        if self._count * 4 > len(slots) * 3:
            self._grow()
        return True

    def _grow(self) -> None:
        if len(self._slots) >= SLOTS_MAX:
            raise CommandError(f"the file has more than {NUMBERS_MAX:,} numbers; split it and send each as a campaign")
        keys = self._slots
        self._make(2 * len(keys))
        slots, mask, shift = self._slots, self._mask, self._shift
        for key in keys:
            if key:
                place = (key * _FACTOR & _WORD) >> shift
                while slots[place]:
                    place = (place + 1) & mask
                slots[place] = key

    def _make(self, size: int) -> None:
        self._slots = array("Q", bytes(8 * size))
        self._mask = size - 1
        self._shift = 64 - (size.bit_length() - 1)
