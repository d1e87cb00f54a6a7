"""Texts with variables are taken apart, filled and stored without losing or mixing anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsgateway.variables import (
    BadValues,
    InvalidVariables,
    check_values,
    final_text,
    names_in,
    pack_names,
    pack_values,
    parse,
    unpack_names,
    unpack_values,
)


@pytest.mark.parametrize(
    ("text", "names", "values", "final"),
    [
        ("你好{$name}", ("name",), ("张三",), "你好张三"),
        ("{$a}{$b}{$a}", ("b", "a"), ("1", "2"), "212"),
        ("{$var}-{$var}", ("var", "var"), ("x", "y"), "x-y"),
        ("{name} ${a} {$b} {$ b}", ("b",), ("{$b}",), "{name} ${a} {$b} {$ b}"),
        ("【店】{$姓名}", ("姓名",), ("a\nb",), "【店】a\nb"),
    ],
)
def test_text_is_filled(text: str, names: tuple[str, ...], values: tuple[str, ...], final: str) -> None:
    """Each place gets its value, and a value is never looked at for variables again."""
    parsed = parse(text, names)
    check_values(parsed, values)
    assert parsed.render(values) == final
    assert final_text(text, pack_names(names), pack_values(values)) == final
    # A carrier that fills place by place gets the same.
    filled = parsed.written("\0")
    for value in parsed.in_places(values):
        filled = filled.replace("\0", value, 1)
    assert filled == final


@pytest.mark.parametrize(
    ("text", "names", "rule"),
    [
        ("{$a}", (), "1 to 20 names"),
        ("{$a}", ("a",) * 21, "1 to 20 names"),
        ("{$a}" * 21, ("a",), "at most 20 places"),
        ("{$a}", ("a", "b"), "no {$b}"),
        ("{$a}{$b}", ("a",), "b that is not listed"),
        ("{$a}{$a}{$a}", ("a", "a"), "listed 2 times and stands 3 times"),
        ("{$a}", ("a b",), "letters, digits"),
        ("{$a}", ("a" * 33,), "letters, digits"),
        ("{$a}", ("",), "letters, digits"),
    ],
)
def test_bad_variables_are_refused(text: str, names: tuple[str, ...], rule: str) -> None:
    """Every rule is named."""
    with pytest.raises(InvalidVariables, match=rule.replace("{", r"\{").replace("$", r"\$")):
        parse(text, names)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (("x",), "MISSING_VALUES"),
        (("x", ""), "MISSING_VALUES"),
        (("x", " "), "MISSING_VALUES"),
        (("x", "y", "z"), "TOO_MANY_VALUES"),
        (("x", "a\x1fb"), "BAD_VALUE"),
        (("x", "a\0"), "BAD_VALUE"),
        (("x\x1e", "y"), "BAD_VALUE"),
    ],
)
def test_bad_values_are_refused(values: tuple[str, ...], reason: str) -> None:
    """Too few, too many, empty ones, and those that would be mixed up in storage."""
    with pytest.raises(BadValues) as refused:
        check_values(parse("{$a}{$b}", ("a", "b")), values)
    assert refused.value.reason == reason


@given(st.lists(st.text(min_size=1), min_size=2, max_size=2))
def test_values_survive_storage(values: list[str]) -> None:
    """What passes the check is read back as it was."""
    try:
        check_values(parse("{$a}{$b}", ("a", "b")), values)
    except BadValues:
        return
    assert list(unpack_values(pack_values(values))) == values


def test_names_are_found_and_stored() -> None:
    """Names stand in the order of their first places, and survive storage."""
    assert names_in("{$b} {$a} {$b} {x}") == ["b", "a"]
    assert unpack_names(pack_names(["b", "a", "b"])) == ("b", "a", "b")
    assert (pack_names([]), unpack_names(None)) == (None, ())
