"""Aim: one spelling for each mobile number, a named rule for each refusal, no whole number in a log.

Method: tables of spellings at each border of the rules.
"""

import pytest

from smsgateway.mobile import InvalidMobile, is_domestic, mask_mobile, national_mobile, normalize_mobile


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("13800138000", "+8613800138000"),
        ("19912345678", "+8619912345678"),
        (" 138 0013-8000 ", "+8613800138000"),
        ("138\u00a00013\u30008000", "+8613800138000"),
        ("138\u20130013\u20108000", "+8613800138000"),
        ("+86 138-0013-8000", "+8613800138000"),
        ("8613800138000", "+8613800138000"),
        ("+85291234567", "+85291234567"),
        ("85291234567", "+85291234567"),
        ("+13805551234", "+13805551234"),
        ("+12345678", "+12345678"),
        ("+123456789012345", "+123456789012345"),
    ],
)
def test_normalizes(raw: str, expected: str) -> None:
    assert normalize_mobile(raw) == expected
    assert normalize_mobile(expected) == expected


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        ("", "empty"),
        (" - ", "empty"),
        ("+", "only digits"),
        ("++8613800138000", "only digits"),
        ("86+13800138000", "only digits"),
        ("1380013800a", "only digits"),
        ("１３８００１３８０００", "only digits"),
        ("13800138000\x00", "only digits"),
        ("01012345678", "begins with 0"),
        ("008613800138000", "begins with 0"),
        ("1234567", "8 to 15 digits"),
        ("+1234567890123456", "8 to 15 digits"),
        ("1380013800", "others need a plus"),
        ("138001380000", "others need a plus"),
        ("12025550123", "others need a plus"),
        ("+8612800138000", "11 digits after 86"),
        ("+86138001380001", "11 digits after 86"),
        ("+861380013800", "11 digits after 86"),
        ("1" * 65, "more than 64"),
    ],
)
def test_refuses_naming_the_rule(raw: str, rule: str) -> None:
    with pytest.raises(InvalidMobile, match=rule) as refusal:
        normalize_mobile(raw)
    assert isinstance(refusal.value, ValueError)
    assert rule in refusal.value.rule
    assert len(raw) < 4 or raw not in str(refusal.value)


def test_default_region() -> None:
    assert normalize_mobile("13805551234", default_region="") == "+13805551234"
    with pytest.raises(ValueError, match="default region"):
        normalize_mobile("13800138000", default_region="DE")


def test_domestic_numbers() -> None:
    assert is_domestic("+8613800138000")
    assert is_domestic("13800138000")
    assert is_domestic("8613800138000")
    assert not is_domestic("+13805551234")
    assert not is_domestic("85291234567")
    with pytest.raises(InvalidMobile):
        is_domestic("rubbish")


def test_national_form() -> None:
    assert national_mobile("+8613800138000") == "13800138000"
    assert national_mobile("+86138001380001") is None
    assert national_mobile("+13805551234") is None


@pytest.mark.parametrize(
    ("mobile", "expected"),
    [
        ("+8613800138000", "+86138****8000"),
        ("13800138000", "138****8000"),
        ("+85291234567", "+85*******67"),
        ("+12345678", "+12****78"),
        ("+123456789012345", "+123*********345"),
        ("12345", "*****"),
        ("+", "+"),
        ("", ""),
    ],
)
def test_masks(mobile: str, expected: str) -> None:
    assert mask_mobile(mobile) == expected


def test_mask_hides_rubbish_and_stays_short() -> None:
    masked = mask_mobile("x" * 10_000)
    assert len(masked) == 64
    assert masked.count("x") == 32
