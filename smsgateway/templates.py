"""Templates of texts with variables, such as `【示例】验证码 {code}，{minutes} 分钟内有效。`. No I/O.

A variable is a name of letters, digits and underscores in braces; a brace that belongs to none is refused when the
template is registered. Matching a text takes time in proportion to its length times the template's pieces, whatever the
text: a regular expression with twenty variables would let a caller choose a text that takes for ever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

VARIABLES_MAX = 20
VALUE_CHARACTERS_MAX = 100

_VARIABLE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]{0,31})\}")


class BadTemplate(ValueError):  # noqa: N818 - says what it is about
    """The text is no template; the message names the rule."""


class BadVariable(ValueError):  # noqa: N818 - says what it is about
    """The values do not fit the template. `variable` the name; `reason` VARIABLE_MISSING, VARIABLE_UNKNOWN or
    VARIABLE_INVALID; the message names the rule and never the value.
    """

    def __init__(self, reason: str, variable: str, rule: str) -> None:
        super().__init__(rule)
        self.reason = reason
        self.variable = variable
        self.rule = rule


@dataclass(frozen=True)
class TemplateText:
    """A text with variables: `literals` with a variable between each two of them."""

    literals: tuple[str, ...]
    variables: tuple[str, ...]

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of its variables."""
        return frozenset(self.variables)

    def filled(self, values: Mapping[str, str]) -> str:
        """The text with its variables' values. Raises `BadVariable` for the first that is missing, unknown, empty, of
        more than 100 characters, or holds what is no printable character.
        """
        for name in self.variables:
            value = values.get(name)
            if value is None:
                raise BadVariable("VARIABLE_MISSING", name, "has no value")
            if not 0 < len(value) <= VALUE_CHARACTERS_MAX or not value.isprintable():
                raise BadVariable(
                    "VARIABLE_INVALID", name, f"must have 1 to {VALUE_CHARACTERS_MAX} printable characters"
                )
        if len(values) > len(self.names):
            unknown = min(values.keys() - self.names)
            raise BadVariable("VARIABLE_UNKNOWN", unknown[:64], "is no variable of the template")
        parts = [self.literals[0]]
        for name, literal in zip(self.variables, self.literals[1:], strict=True):
            parts += (values[name], literal)
        return "".join(parts)

    def matches(self, text: str) -> bool:
        """Whether some values make this text. A variable that stands twice may have two values."""
        first, last = self.literals[0], self.literals[-1]
        if not self.variables:
            return text == first
        if len(text) < len(first) + len(last) + len(self.variables):
            return False
        if not text.startswith(first) or not text.endswith(last):
            return False
        # Where the text between may have been consumed up to, piece by piece.
        reached = [len(first)]
        end = len(text) - len(last)
        for literal in self.literals[1:-1]:
            reached = _after(text, literal, reached, end)
            if not reached:
                return False
        return any(_is_value(text, start, end) for start in reached)


def parse(text: str) -> TemplateText:
    """The template that a text describes. Raises `BadTemplate`."""
    pieces = _VARIABLE.split(text)
    literals, variables = tuple(pieces[::2]), tuple(pieces[1::2])
    if any("{" in literal or "}" in literal for literal in literals):
        raise BadTemplate("a brace must belong to a variable such as {code}: a letter, then letters, digits and _")
    if len(variables) > VARIABLES_MAX:
        raise BadTemplate(f"must have at most {VARIABLES_MAX} variables")
    if "" in literals[1:-1]:
        raise BadTemplate("two variables must have a text between them")
    return TemplateText(literals, variables)


def _after(text: str, literal: str, reached: list[int], end: int) -> list[int]:
    """The places behind a value and a literal, for values that begin at one of these places (ascending)."""
    places = []
    index = 0
    at = text.find(literal, reached[0] + 1, end)
    while at >= 0:
        # The last start before this place is the shortest value; were it no value, a longer one would be none either.
        while index + 1 < len(reached) and reached[index + 1] < at:
            index += 1
        if _is_value(text, reached[index], at):
            places.append(at + len(literal))
        at = text.find(literal, at + 1, end)
    return places


def _is_value(text: str, start: int, end: int) -> bool:
    return 0 < end - start <= VALUE_CHARACTERS_MAX and text[start:end].isprintable()
