"""Requests of the generic HTTP carrier: texts with placeholders, filled and escaped for the place where they stand.

A placeholder is a name in braces, such as ``{text}`` or ``{secret.password}``; ``{{`` and ``}}`` are braces. What is
filled in is never read as a template again.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

import orjson

_PLACEHOLDER: Final = re.compile(r"\{\{|\}\}|\{([a-z_]+(?:\.[a-z0-9_]+)?)\}|[{}]")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e\x80-\xff]*")
MOBILE: Final = "mobile"

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class TemplateError(ValueError):
    """A template breaks a rule; the message says which."""


class NotEncodable(ValueError):  # noqa: N818 - named for what it says
    """What is to be filled in cannot be written in the character set, or has no place where it stands."""


class Template:
    """A text with placeholders. Raises `TemplateError` for a single brace or a name that is not `known`."""

    def __init__(self, text: str, known: frozenset[str]) -> None:
        self._parts: list[tuple[str, str]] = []
        end = 0
        for match in _PLACEHOLDER.finditer(text):
            name = match[1]
            if name is None and match[0] not in ("{{", "}}"):
                raise TemplateError(f"has a single {match[0]} or a name that is none; {{{{ and }}}} are braces")
            if name is not None and name not in known:
                told = ", ".join(f"{{{each}}}" for each in sorted(known)) or "none"
                raise TemplateError(f"has {{{name}}}; known here are: {told}")
            literal = text[end : match.start()] + (match[0][0] if name is None else "")
            self._parts.append((literal, name or ""))
            end = match.end()
        self._parts.append((text[end:], ""))

    @property
    def names(self) -> frozenset[str]:
        """The placeholders in it."""
        return frozenset(name for _, name in self._parts if name)

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with its placeholders filled, not yet escaped."""
        return "".join(literal + (values[name] if name else "") for literal, name in self._parts)

    def fill_path(self, values: Mapping[str, str]) -> str:
        """The same as a part of a URL's path: what is filled in is one segment at most."""
        return "".join(literal + (quote(values[name], safe="") if name else "") for literal, name in self._parts)

    def fill_header(self, values: Mapping[str, str]) -> str:
        """The same as the value of a header. Raises `NotEncodable` for control characters and beyond Latin-1."""
        value = self.fill(values)
        if not _HEADER_VALUE.fullmatch(value):
            raise NotEncodable("a header holds printable characters of Latin-1 alone")
        return value


class Fields:
    """Names with templates: a query or a form."""

    def __init__(self, fields: Mapping[str, str], known: frozenset[str], charset: str) -> None:
        self._fields: dict[str, Template] = {}
        for name, text in fields.items():
            try:
                self._fields[name] = Template(text, known)
            except TemplateError as error:
                raise TemplateError(f"{name} {error}") from None
        self._charset = charset

    @property
    def names(self) -> frozenset[str]:
        """The placeholders in them."""
        return frozenset(name for template in self._fields.values() for name in template.names)

    def fill(self, values: Mapping[str, str]) -> str:
        """The fields percent-encoded. Raises `NotEncodable`."""
        filled = {name: template.fill(values) for name, template in self._fields.items()}
        try:
            return urlencode(filled, encoding=self._charset, errors="strict")
        except UnicodeEncodeError:
            raise NotEncodable(f"the text cannot be written in {self._charset}") from None


class JsonBody:
    """A JSON document whose texts are templates. A list whose one item has ``{mobile}`` in it is as long as the call
    has numbers, one item for each.
    """

    def __init__(self, document: Mapping[str, Json], known: frozenset[str]) -> None:
        self._document = {name: _compiled(value, known) for name, value in document.items()}

    @property
    def names(self) -> frozenset[str]:
        """The placeholders in it, but for those of lists that are repeated."""
        return frozenset(_names(self._document))

    @property
    def repeats(self) -> bool:
        """Whether it has a list with an item for each number."""
        return any(_repeated(self._document))

    def fill(self, values: Mapping[str, str], mobiles: tuple[str, ...]) -> bytes:
        """The document. Raises `NotEncodable` for what is no valid Unicode."""
        try:
            return orjson.dumps(_filled(self._document, values, mobiles))
        except TypeError:
            raise NotEncodable("the text is not valid Unicode") from None


def _compiled(value: Json, known: frozenset[str]) -> Any:
    if isinstance(value, str):
        return Template(value, known)
    if isinstance(value, list):
        items = [_compiled(item, known) for item in value]
        return _EachMobile(items[0]) if len(items) == 1 and MOBILE in _names(items[0]) else items
    if isinstance(value, dict):
        return {name: _compiled(item, known) for name, item in value.items()}
    return value


class _EachMobile:
    def __init__(self, item: Any) -> None:
        self.item = item


def _names(compiled: Any) -> Iterator[str]:
    if isinstance(compiled, Template):
        yield from compiled.names
    elif isinstance(compiled, list):
        for item in compiled:
            yield from _names(item)
    elif isinstance(compiled, dict):
        for item in compiled.values():
            yield from _names(item)
    elif isinstance(compiled, _EachMobile):
        yield from (name for name in _names(compiled.item) if name != MOBILE)


def _repeated(compiled: Any) -> Iterator[bool]:
    if isinstance(compiled, _EachMobile):
        yield True
    elif isinstance(compiled, list):
        for item in compiled:
            yield from _repeated(item)
    elif isinstance(compiled, dict):
        for item in compiled.values():
            yield from _repeated(item)


def _filled(compiled: Any, values: Mapping[str, str], mobiles: tuple[str, ...]) -> Any:
    if isinstance(compiled, Template):
        return compiled.fill(values)
    if isinstance(compiled, _EachMobile):
        return [_filled(compiled.item, {**values, MOBILE: mobile}, ()) for mobile in mobiles]
    if isinstance(compiled, list):
        return [_filled(item, values, mobiles) for item in compiled]
    if isinstance(compiled, dict):
        return {name: _filled(item, values, mobiles) for name, item in compiled.items()}
    return compiled
