"""Texts as the octets of SMPP: the GSM default alphabet and UCS-2, and texts of several parts. No I/O.

Sources: 3GPP TS 23.038, 6.2.1 (default alphabet, extension table); 3GPP TS 23.040, 9.2.3.24.1 (concatenation); SMPP
v3.4, 5.2.19 (data_coding) and 5.3.2.22 to 24 (SAR). Over SMPP a septet travels as an octet of its own (unpacked).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal

from smsgateway.carriers.smpp.pdus import Tag

Alphabet = Literal["gsm", "ucs2"]

DEFAULT_ALPHABET: Final = 0x00
UCS2: Final = 0x08
"""Values of data_coding."""
UDH_INDICATOR: Final = 0x40
"""The bit of esm_class that says that the text begins with a user data header."""

_ESCAPE: Final = 0x1B
_BASIC: Final = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
"""The default alphabet in the order of its positions; at 0x1B stands the escape to the extension table."""
_EXTENSION: Final = {
    0x0A: "\f", 0x14: "^", 0x28: "{", 0x29: "}", 0x2F: "\\", 0x3C: "[", 0x3D: "~", 0x3E: "]", 0x40: "|", 0x65: "€",
}  # fmt: skip
_ENCODE: Final = {
    **{ord(character): chr(at) for at, character in enumerate(_BASIC) if at != _ESCAPE},
    **{ord(character): chr(_ESCAPE) + chr(at) for at, character in _EXTENSION.items()},
}
GSM_CHARACTERS: Final = frozenset(map(chr, _ENCODE))

_ALONE_SEPTETS, _PART_SEPTETS = 160, 153
_ALONE_OCTETS, _PART_OCTETS = 140, 134
PARTS_MAX: Final = 255
"""Parts that a concatenation can number."""


class UnsendableText(ValueError):  # noqa: N818 - named for what it says
    """A text that no PDU can hold. Names the rule, never the text."""


class Concatenation(Enum):
    """How the parts of a text are told to belong together."""

    UDH = "udh"
    """By a header of six octets in each part's text."""
    SAR = "sar"
    """By TLVs; the carrier makes the header."""


@dataclass(frozen=True, slots=True)
class Part:
    """What of a submit_sm holds one part of a text."""

    short_message: bytes
    data_coding: int
    esm_class: int = 0
    tlvs: Mapping[int, bytes] = field(default_factory=dict)


def encode_gsm(text: str) -> bytes:
    """Unpacked septets of the default alphabet. Raises `UnsendableText` for a character that it does not have."""
    if not GSM_CHARACTERS.issuperset(text):
        raise UnsendableText("a character is not in the default alphabet")
    return text.translate(_ENCODE).encode("latin-1")


def decode_gsm(octets: bytes) -> str:
    """The text of unpacked septets. As 23.038 wants it, an unknown extension shows the basic character, and a lone
    escape a space; an octet beyond 0x7F, which is no septet, is shown as U+FFFD.
    """
    characters: list[str] = []
    escaped = False
    for octet in octets:
        if octet > 0x7F:
            characters.append("\ufffd")
            escaped = False
        elif escaped:
            # Two escapes in a row would open a further table, which there is none of.
            characters.append(" " if octet == _ESCAPE else _EXTENSION.get(octet, _BASIC[octet]))
            escaped = False
        elif octet == _ESCAPE:
            escaped = True
        else:
            characters.append(_BASIC[octet])
    return "".join(characters) + (" " if escaped else "")


def encode_ucs2(text: str) -> bytes:
    """UTF-16 big-endian: what phones make of UCS-2. Raises `UnsendableText` for a lone surrogate."""
    try:
        return text.encode("utf-16-be")
    except UnicodeEncodeError:
        raise UnsendableText("the text is not valid Unicode") from None


def decode_ucs2(octets: bytes) -> str:
    """The text of UCS-2 octets; what is none is shown as U+FFFD."""
    return octets.decode("utf-16-be", "replace")


def parts_of(
    text: str, *, reference: int, alphabet: Alphabet = "gsm", concatenation: Concatenation = Concatenation.UDH
) -> list[Part]:
    """The parts of a text, in order; one where it fits in one.

    Neither an escape pair nor a surrogate pair is torn apart, so a part can end one unit short, as
    `smsgateway.segmentation` counts it.

    Args:
        text: the whole text, not empty.
        reference: what tells the parts of this text from those of others to the same number; its low 8 bits with
            UDH, 16 with SAR.
        alphabet: ``gsm`` takes the default alphabet where it has all characters of the text, else UCS-2; ``ucs2``
            takes UCS-2 always.
        concatenation: how parts are told to belong together.

    Raises:
        UnsendableText: no valid Unicode, or more than `PARTS_MAX` parts.
    """
    assert text, "an empty text"
    if alphabet == "gsm" and GSM_CHARACTERS.issuperset(text):
        coding, octets, alone, ends = DEFAULT_ALPHABET, encode_gsm(text), _ALONE_SEPTETS, _gsm_ends
    else:
        coding, octets, alone, ends = UCS2, encode_ucs2(text), _ALONE_OCTETS, _ucs2_ends
    if len(octets) <= alone:
        return [Part(octets, coding)]
    cuts = list(ends(octets))
    if len(cuts) > PARTS_MAX:
        raise UnsendableText(f"more than {PARTS_MAX} parts")
    return [
        _part(octets[start:end], coding, concatenation, reference, len(cuts), number)
        for number, (start, end) in enumerate(zip([0, *cuts], cuts, strict=False), 1)
    ]


def text_of(message: bytes, data_coding: int, esm_class: int = 0) -> str:
    """The text of a short message that we were sent, without its header. Codings that are neither the default
    alphabet nor UCS-2 are read as Latin-1, of which ASCII is a part: receipts are written in it.
    """
    if esm_class & UDH_INDICATOR and message:
        message = message[1 + message[0] :]
    if data_coding == UCS2:
        return decode_ucs2(message)
    return decode_gsm(message) if data_coding == DEFAULT_ALPHABET else message.decode("latin-1")


def _part(octets: bytes, coding: int, concatenation: Concatenation, reference: int, total: int, number: int) -> Part:
    if concatenation is Concatenation.UDH:
        header = bytes((5, 0, 3, reference & 0xFF, total, number))
        return Part(header + octets, coding, UDH_INDICATOR)
    tlvs = {
        int(Tag.SAR_MSG_REF_NUM): (reference & 0xFFFF).to_bytes(2, "big"),
        int(Tag.SAR_TOTAL_SEGMENTS): bytes((total,)),
        int(Tag.SAR_SEGMENT_SEQNUM): bytes((number,)),
    }
    return Part(octets, coding, tlvs=tlvs)


def _gsm_ends(octets: bytes) -> Iterator[int]:
    end = 0
    while end < len(octets):
        end = min(end + _PART_SEPTETS, len(octets))
        if end < len(octets) and octets[end - 1] == _ESCAPE:
            end -= 1
        yield end


def _ucs2_ends(octets: bytes) -> Iterator[int]:
    end = 0
    while end < len(octets):
        end = min(end + _PART_OCTETS, len(octets))
        # The last unit is the first half of a pair.
        if end < len(octets) and 0xD8 <= octets[end - 2] <= 0xDB:
            end -= 2
        yield end
