"""Texts with variables: one text, and for each recipient the values that fill it.

A variable stands in the text as ``{$name}``; what looks otherwise, ``{name}`` or ``${name}``, is text. Its name has 1
to 32 letters (of any script), digits and underscores, so that a column of a file can be one. The names are listed in
the order of the values; a text without listed names is no text with variables, whatever stands in it.

A name that is listed once may stand in several places. A name that is listed several times stands in just as many, and
they take its values in turn; so Chuanglan's ``{$var} {$var}`` is a text with the names ``var, var``.

Values are stored in one column, and those of a whole chunk travel as one text, so they hold no control characters but
tabs and line breaks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

PLACES_MAX: Final = 20
"""Variables of a text, and places that they fill: what Chuanglan takes."""
NAME_CHARACTERS_MAX: Final = 32

_NAME: Final = re.compile(rf"\w{{1,{NAME_CHARACTERS_MAX}}}")
_PLACE: Final = re.compile(rf"\{{\$(\w{{1,{NAME_CHARACTERS_MAX}}})\}}")
_UNSTORABLE: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_BETWEEN_VALUES: Final = "\x1f"
BETWEEN_RECIPIENTS: Final = "\x1e"
"""What stands between the stored values of two recipients where those of many travel together."""

_KEPT_TEXTS: Final = 256


class InvalidVariables(ValueError):  # noqa: N818 - named for what it says
    """The variables of a text break a rule. Names the rule; never the text.

    Attributes:
        rule: the rule that is broken, in words fit for the caller of the service.
    """

    def __init__(self, rule: str) -> None:
        super().__init__(f"invalid variables: {rule}")
        self.rule: Final = rule


class BadValues(ValueError):  # noqa: N818 - named for what it says
    """The values of a recipient cannot fill the text.

    Attributes:
        reason: MISSING_VALUES, TOO_MANY_VALUES or BAD_VALUE.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason: Final = reason


@dataclass(frozen=True, slots=True)
class VariableText:
    """A text with variables, taken apart.

    Attributes:
        literals: what stands before, between and after the places: one more than there are places.
        places: for each place the index of the value that fills it.
        count: values that each recipient has.
    """

    literals: tuple[str, ...]
    places: tuple[int, ...]
    count: int

    def render(self, values: Sequence[str]) -> str:
        """The final text for a recipient's values, as many as `count`."""
        assert len(values) == self.count, "a value for each variable"
        pieces = [self.literals[0]]
        for place, literal in zip(self.places, self.literals[1:], strict=True):
            pieces.append(values[place])
            pieces.append(literal)
        return "".join(pieces)

    def in_places(self, values: Sequence[str]) -> list[str]:
        """A recipient's values in the order of the places, for carriers that know no names."""
        return [values[place] for place in self.places]

    def written(self, place: str) -> str:
        """The text with `place` in each place, for instance Chuanglan's ``{$var}``."""
        return place.join(self.literals)


def names_in(text: str) -> list[str]:
    """The names of what looks like a variable in a text, each once, in the order of their first places."""
    return list(dict.fromkeys(_PLACE.findall(text)))


@lru_cache(maxsize=_KEPT_TEXTS)
def parse(text: str, names: tuple[str, ...]) -> VariableText:
    """Take a text apart by the names of its variables.

    Raises:
        InvalidVariables: no name or more than `PLACES_MAX`, a name that is none, one that does not stand in the text or
            not as often as it is listed, a variable in the text that is not listed, or more than `PLACES_MAX` places.
    """
    if not 1 <= len(names) <= PLACES_MAX:
        raise InvalidVariables(f"must be 1 to {PLACES_MAX} names")
    for name in names:
        if not _NAME.fullmatch(name):
            raise InvalidVariables(
                f"each must have 1 to {NAME_CHARACTERS_MAX} letters, digits and underscores, "
                "as it stands in the text between {$ and }"
            )
    # Text, name, text, name, … text.
    pieces = _PLACE.split(text)
    found = pieces[1::2]
    if len(found) > PLACES_MAX:
        raise InvalidVariables(f"must fill at most {PLACES_MAX} places of the text")
    indexes: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        indexes.setdefault(name, []).append(index)
    for name, listed in indexes.items():
        if name not in found:
            raise InvalidVariables(f"the text has no {{${name}}}")
        if 1 < len(listed) != found.count(name):
            raise InvalidVariables(
                f"{name} is listed {len(listed)} times and stands {found.count(name)} times in the text"
            )
    places: list[int] = []
    for name in found:
        if name not in indexes:
            raise InvalidVariables(f"the text has a variable {name} that is not listed")
        listed = indexes[name]
        places.append(listed.pop(0) if len(listed) > 1 else listed[0])
    return VariableText(tuple(pieces[0::2]), tuple(places), len(names))


def check_values(text: VariableText, values: Sequence[str]) -> None:
    """Whether a recipient's values can fill a text. Raises `BadValues`."""
    if len(values) != text.count:
        raise BadValues("MISSING_VALUES" if len(values) < text.count else "TOO_MANY_VALUES")
    for value in values:
        # Most values are printable, which is known at once.
        if not value.isprintable() and _UNSTORABLE.search(value):
            raise BadValues("BAD_VALUE")
        if not value or value.isspace():
            raise BadValues("MISSING_VALUES")


def pack_values(values: Sequence[str]) -> str:
    """The values of a recipient as they are stored; `check_values` has passed them."""
    return _BETWEEN_VALUES.join(values)


def unpack_values(stored: str) -> tuple[str, ...]:
    """The values of a recipient from what is stored."""
    return tuple(stored.split(_BETWEEN_VALUES))


def pack_names(names: Sequence[str]) -> str | None:
    """The names of a batch's variables as they are stored; None when it has none."""
    return ",".join(names) if names else None


def unpack_names(stored: str | None) -> tuple[str, ...]:
    """The names of a batch's variables from what is stored."""
    return tuple(stored.split(",")) if stored else ()


def final_text(text: str, names: str | None, values: str | None) -> str:
    """A message's text as its receiver gets it, from the batch's stored text and names and the message's values."""
    return text if values is None else parse(text, unpack_names(names)).render(unpack_values(values))
