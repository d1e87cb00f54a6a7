"""What somebody typed into the search, and what it can be. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from infra.errors import invalid_fields
from infra.identifiers import brand_of
from smsgateway.mobile import InvalidMobile, normalize_mobile
from smsgateway.references import dispatch_of

CHARACTERS_MAX: Final = 128
"""Longest text that is searched for; carriers' ids have up to 65 characters (SMPP 3.4, 5.2.23)."""
BRAND_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Asked:
    """What a text can be; what it cannot be is empty or None.

    Attributes:
        text: as it was typed, without spaces around it.
        identifier: (brand, id) where it is an id of ours: of a message, batch, freeze, payment.
        dispatch: (brand, dispatch) where it is the id of a call at a carrier.
        mobile: the number in E.164 where it is one.
        brand_id: where it is short enough to be a brand's.
        reference: where it can be a carrier's id.
    """

    text: str
    identifier: tuple[int, str] | None = None
    dispatch: tuple[int, str] | None = None
    mobile: str = ""
    brand_id: int | None = None
    reference: str = ""


def asked(text: str) -> Asked:
    """What a text can be. Raises INVALID_ARGUMENT for what is too long or cannot be printed."""
    text = text.strip()
    if len(text) > CHARACTERS_MAX or not text.isprintable():
        raise invalid_fields({"q": f"must be at most {CHARACTERS_MAX} printable characters"})
    if not text:
        return Asked("")
    upper = text.upper()
    brand_id = brand_of(upper)
    if brand_id:
        return Asked(text, identifier=(brand_id, upper), reference=text)
    dispatch = dispatch_of(upper)
    if dispatch is not None and dispatch[0]:
        return Asked(text, dispatch=dispatch, reference=text)
    return Asked(text, mobile=_mobile(text), brand_id=brand_number(text), reference=text)


def brand_number(text: str) -> int | None:
    """The brand that a text names by its number; None for what cannot be one."""
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > len(str(BRAND_MAX)):
        return None
    number = int(text)
    return number if 1 <= number <= BRAND_MAX else None


def _mobile(text: str) -> str:
    try:
        return normalize_mobile(text)
    except InvalidMobile:
        return ""
