"""What a reply says: whose it is by the number that it was sent to, and whether it asks for no more. No I/O."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

# What stands around a word that is meant alone: full stops, quotes, brackets, in both widths.
_AROUND = " \t\r\n.,;:!?'\"`~()[]{}<>-_*#。、，；：！？“”‘’「」『』【】（）《》…"


def folded(text: str) -> str:
    """A text as opt-outs are compared: full-width letters as narrow ones (NFKC), without case, trimmed, also of the
    punctuation around it.
    """
    return unicodedata.normalize("NFKC", text).strip(_AROUND).casefold()


class OptOutWords:
    """The words by which people ask for no more. Parameters: `words` compared as `folded`."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = frozenset(filter(None, map(folded, words)))

    def asks(self, text: str) -> bool:
        """Whether a reply is one of the words and nothing else: "R" is, "Received, thanks" is not."""
        # Longer than any word, it need not be looked at.
        return len(text) <= 100 and folded(text) in self._words


def brand_by_extension(destination: str, extensions: Mapping[str, int]) -> int:
    """The brand whose extension code ends the number that a reply was sent to, the longest first; 0: none.

    Parameters: `extensions` brands by the ends of numbers.
    """
    digits = destination.strip().removeprefix("+")
    matching = [code for code in extensions if code and digits.endswith(code)]
    return extensions[max(matching, key=len)] if matching else 0
