"""Mobile numbers: one spelling inside (E.164), a mask for logs.

Everything behind the gRPC border holds numbers as E.164 with its plus sign (ITU-T E.164: at most 15 digits, the country
code first and never beginning with 0). Carriers that want another spelling translate at their own border.
"""

import re
from typing import Final

_SEPARATORS: Final = re.compile(r"[\s\-\u2010-\u2015\u2212]+")
_DOMESTIC: Final = re.compile(r"1[3-9][0-9]{9}")
_E164_DIGITS: Final = re.compile(r"[1-9][0-9]{7,14}")
_DIGITS: Final = re.compile(r"[0-9]+")
_LONGEST_RAW: Final = 64
"""Characters of input looked at; what is longer is no telephone number however it is spelled."""

DOMESTIC_PREFIX: Final = "+86"


class InvalidMobile(ValueError):  # noqa: N818 - named for what it says, as every refusal of this package
    """The mobile number breaks a rule. The message names the rule and never repeats the number.

    Attributes:
        rule: the rule that is broken, in words fit for the caller of the service.
    """

    def __init__(self, rule: str) -> None:
        super().__init__(f"invalid mobile number: {rule}")
        self.rule: Final = rule


def normalize_mobile(raw: str, default_region: str = "CN") -> str:
    """Bring a mobile number to E.164, for example ``138 0013 8000`` to ``+8613800138000``.

    White space and dashes are dropped. A national Chinese mobile number (11 digits, ``1[3-9]…``) gets ``+86`` when the
    default region is CN. Any other number must be E.164: an optional plus and 8 to 15 digits, country code first.
    A number with the country code 86 must be a mobile number, since no other can receive a message.

    With the default region CN, digits that begin with 1 and have no plus are a national Chinese number or nothing: a
    Chinese number with a digit too few must not become one of North America (country code 1), which needs its plus.

    Args:
        raw: the number as a person or a program wrote it.
        default_region: the region of numbers without a country code: ``CN``, or an empty string for none.

    Returns:
        The number in E.164 with its plus sign.

    Raises:
        InvalidMobile: the number breaks one of these rules; the exception names it.
        ValueError: the default region is not one that is known here.
    """
    if default_region not in ("CN", ""):
        raise ValueError(f"unknown default region {default_region!r}: only CN, or an empty string for none")
    if len(raw) > _LONGEST_RAW:
        raise InvalidMobile(f"more than {_LONGEST_RAW} characters")
    # Most come as a person in China writes them, or as we do.
    if default_region == "CN" and _DOMESTIC.fullmatch(raw):
        return DOMESTIC_PREFIX + raw
    if raw.startswith(DOMESTIC_PREFIX) and _DOMESTIC.fullmatch(raw, len(DOMESTIC_PREFIX)):
        return raw
    number = _SEPARATORS.sub("", raw)
    if not number:
        raise InvalidMobile("empty")
    if default_region == "CN" and _DOMESTIC.fullmatch(number):
        return DOMESTIC_PREFIX + number
    digits = number.removeprefix("+")
    if not _DIGITS.fullmatch(digits):
        raise InvalidMobile("only digits, spaces, dashes and one leading plus are allowed")
    if digits.startswith("0"):
        raise InvalidMobile("begins with 0; write the country code without an international prefix")
    if not _E164_DIGITS.fullmatch(digits):
        raise InvalidMobile("E.164 numbers have 8 to 15 digits, country code included")
    if default_region == "CN" and number.startswith("1"):
        raise InvalidMobile("a mobile number of China has 11 digits and begins with 13 to 19; others need a plus")
    if digits.startswith("86") and not _DOMESTIC.fullmatch(digits, 2):
        raise InvalidMobile("a mobile number of China has 11 digits after 86 and begins with 13 to 19")
    return "+" + digits


def is_domestic(mobile: str) -> bool:
    """Whether a number is a mobile number of mainland China.

    Args:
        mobile: a number as `normalize_mobile` returns it (with its plus), or any spelling that it takes.

    Returns:
        True for ``+86`` numbers and for national ones of 11 digits.

    Raises:
        InvalidMobile: a number without a plus that `normalize_mobile` refuses. A number with a plus was normalised
            before and is not judged again, for this is asked once per message.
    """
    if mobile.startswith("+"):
        return mobile.startswith(DOMESTIC_PREFIX)
    return normalize_mobile(mobile).startswith(DOMESTIC_PREFIX)


def national_mobile(mobile: str) -> str | None:
    """The eleven national digits of a Chinese mobile number, for carriers that want this form.

    Args:
        mobile: a number in E.164.

    Returns:
        For example ``13800138000``; None when the number is not a mobile number of mainland China.
    """
    if mobile.startswith(DOMESTIC_PREFIX) and _DOMESTIC.fullmatch(mobile, len(DOMESTIC_PREFIX)):
        return mobile[len(DOMESTIC_PREFIX) :]
    return None


def mask_mobile(mobile: str) -> str:
    """Make a number fit for logs and consoles: ``+8613800138000`` becomes ``+86138****8000``.

    Chinese numbers keep three digits and four, as is the custom there; of anything else at most half of the
    characters stay, so rubbish that was given for a number is hidden too.

    Args:
        mobile: any text given for a number.

    Returns:
        The masked text, as long as the number. Texts of less than six characters are hidden whole.
    """
    if _DOMESTIC.fullmatch(mobile):
        return f"{mobile[:3]}****{mobile[-4:]}"
    if (national := national_mobile(mobile)) is not None:
        return f"{DOMESTIC_PREFIX}{national[:3]}****{national[-4:]}"
    sign, rest = ("+", mobile[1:]) if mobile.startswith("+") else ("", mobile)
    rest = rest[:_LONGEST_RAW]
    kept = len(rest) // 4 if len(rest) >= 6 else 0
    return sign + rest[:kept] + "*" * (len(rest) - 2 * kept) + rest[len(rest) - kept :]
