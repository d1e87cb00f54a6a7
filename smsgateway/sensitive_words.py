"""Words that no text may hold, found fast however many they are. No I/O.

The words are in a dictionary, and for each first character the lengths that words with it have. The places where a
word may begin are found by a regular expression that is one class of characters, so that the rest of a text is passed
over without a step in Python. That is a fraction of what an automaton of Aho and Corasick costs in Python, which steps
a dictionary for every character and follows its failure links besides; its better worst case (texts made of first
characters) is worth little with texts of 536 characters and words of at most 64.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

WORD_CHARACTERS_MAX = 64


def folded(text: str) -> str:
    """A text as it is compared: full-width and other compatible forms as the plain ones, without case."""
    return unicodedata.normalize("NFKC", text).casefold()


class SensitiveWords:
    """Words with the lines on which they stand, the first line 1.

    Parameters: `words` (line, word); what folds to nothing is left out. Raises ValueError for a word of more than
    `WORD_CHARACTERS_MAX` characters; the error names the line and not the word.
    """

    def __init__(self, words: Iterable[tuple[int, str]] = ()) -> None:
        lengths: dict[str, set[int]] = {}
        self._lines: dict[str, int] = {}
        for line, word in words:
            plain = folded(word.strip())
            if not plain:
                continue
            if len(plain) > WORD_CHARACTERS_MAX:
                raise ValueError(f"line {line} has more than {WORD_CHARACTERS_MAX} characters")
            self._lines.setdefault(plain, line)
            lengths.setdefault(plain[0], set()).add(len(plain))
        self._lengths = {first: tuple(sorted(of_first)) for first, of_first in lengths.items()}
        self._begins = re.compile(f"[{''.join(map(re.escape, self._lengths))}]") if lengths else None

    def __len__(self) -> int:
        return len(self._lines)

    def find(self, text: str) -> int | None:
        """The line of the first word that a text holds, or None."""
        lengths, lines = self._lengths, self._lines
        if self._begins is None:
            return None
        plain = folded(text)
        for found in self._begins.finditer(plain):
            start = found.start()
            for length in lengths[plain[start]]:
                line = lines.get(plain[start : start + length])
                if line is not None:
                    return line
        return None


NO_WORDS = SensitiveWords()
