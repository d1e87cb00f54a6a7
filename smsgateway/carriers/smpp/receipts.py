"""Delivery receipts in a deliver_sm, and the ids that they bring. No I/O.

Source: SMPP v3.4, 5.2.12 (esm_class), 5.2.28 (message_state), 5.3.2.12 and 35 (TLVs), appendix B (the text form, a
custom rather than a rule: carriers differ in case, spacing, order and in the length of dates).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Final, Literal

from smsgateway.carriers.base import ReceiptState
from smsgateway.carriers.smpp.pdus import ShortMessage, Tag
from smsgateway.carriers.smpp.texts import text_of

IdForm = Literal["same", "hex-to-dec", "dec-to-hex"]
"""How the id of a submit_sm_resp becomes the one that receipts bring."""

_MESSAGE_TYPE_BITS: Final = 0x3C
_RECEIPT: Final = 0x04

_STATE_WORDS: Final[Mapping[int, str]] = {
    1: "ENROUTE", 2: "DELIVRD", 3: "EXPIRED", 4: "DELETED", 5: "UNDELIV", 6: "ACCEPTD", 7: "UNKNOWN", 8: "REJECTD",
}  # fmt: skip
_STATES: Final[Mapping[str, ReceiptState]] = {
    "DELIVRD": ReceiptState.DELIVERED,
    "EXPIRED": ReceiptState.FAILED,
    "DELETED": ReceiptState.FAILED,
    "UNDELIV": ReceiptState.FAILED,
    "REJECTD": ReceiptState.FAILED,
    "ENROUTE": ReceiptState.PENDING,
    "ACCEPTD": ReceiptState.PENDING,
    "UNKNOWN": ReceiptState.PENDING,
}

# Each field ends where the next known one begins; `text` has the rest.
_FIELD: Final = re.compile(r"\b(id|sub|dlvrd|submit date|done date|stat|err|text)\s*:", re.IGNORECASE)
_DATE: Final = re.compile(r"[0-9]{10}(?:[0-9]{2})?", re.ASCII)
_ID: Final = re.compile(r"[!-~]{1,64}")
_WORD: Final = re.compile(r"[!-~]{1,32}")
_HEX: Final = re.compile(r"[0-9A-Fa-f]+")


class UnreadableReceipt(ValueError):  # noqa: N818 - named for what it says
    """A receipt without what it is for. Names the field and the rule, never the value."""


@dataclass(frozen=True, slots=True)
class DeliveryReceipt:
    """What a receipt says.

    Attributes:
        message_id: the carrier's id as it came.
        state: what became of the message.
        word: the carrier's word for it, such as ``DELIVRD``.
        error: its ``err`` field; empty without.
        done_at: its ``done date`` in UTC; None without one, or when it is none.
        dated: whether it has a ``done date``, be it possible or not.
    """

    message_id: str
    state: ReceiptState
    word: str
    error: str
    done_at: datetime | None
    dated: bool


def is_receipt(message: ShortMessage) -> bool:
    """Whether a deliver_sm is a delivery receipt: the four bits of esm_class say so, and no other kind."""
    return message.esm_class & _MESSAGE_TYPE_BITS == _RECEIPT


def read_receipt(message: ShortMessage, zone: tzinfo = UTC) -> DeliveryReceipt:
    """Read a receipt: id and state from its TLVs, else from its text.

    Args:
        message: a deliver_sm for which `is_receipt` holds.
        zone: the zone of the carrier's dates, which tell none.

    Raises:
        UnreadableReceipt: no id or no state anywhere. A date or another field that is impossible is left out.
    """
    fields = receipt_fields(text_of(message.content, message.data_coding, message.esm_class))
    # Some end the TLV with a NUL, as the specification has it, and some do not.
    told = message.tlvs.get(Tag.RECEIPTED_MESSAGE_ID, b"").split(b"\0")[0].decode("latin-1").strip()
    message_id = told if _ID.fullmatch(told) else fields.get("id", "")
    if not _ID.fullmatch(message_id):
        raise UnreadableReceipt("the id is missing or has characters that no id has")
    value = message.tlvs.get(Tag.MESSAGE_STATE, b"")
    # A number that the table does not have says nothing; the text may.
    word = _STATE_WORDS.get(value[0], "") if len(value) == 1 else ""
    word = word or fields.get("stat", "").upper()
    if not _WORD.fullmatch(word):
        raise UnreadableReceipt("the state is missing or no word")
    error = fields.get("err", "")
    return DeliveryReceipt(
        message_id=message_id,
        state=receipt_state(word),
        word=word,
        error=error if _WORD.fullmatch(error) else "",
        done_at=_moment(fields.get("done date", ""), zone),
        dated=bool(fields.get("done date")),
    )


def receipt_state(word: str) -> ReceiptState:
    """What a state means. A word that SMPP does not know is not final: nothing is refunded on a guess."""
    return _STATES.get(word, ReceiptState.PENDING)


def receipt_fields(text: str) -> dict[str, str]:
    """The fields of a receipt's text by their lower-case names; of one that comes twice the first."""
    fields: dict[str, str] = {}
    found = list(_FIELD.finditer(text))
    for at, match in enumerate(found):
        name = match.group(1).lower()
        last = name == "text" or at + 1 == len(found)
        fields.setdefault(name, text[match.end() : len(text) if last else found[at + 1].start()].strip())
        if name == "text":
            # What follows is a customer's, and may look like fields.
            break
    return fields


def canonical_id(message_id: str) -> str:
    """One spelling of an id: what is all hexadecimal digits without leading zeros and in lower case, anything else as
    it is, since letters of other ids may differ by case alone.
    """
    if not _HEX.fullmatch(message_id):
        return message_id
    return message_id.lstrip("0").lower() or "0"


def expected_id(message_id: str, form: IdForm) -> str:
    """The id that receipts will bring for a message, in its canonical spelling.

    Args:
        message_id: the id of a submit_sm_resp.
        form: how the carrier's receipts write it. An id that cannot be converted stays.
    """
    if form == "hex-to-dec" and _HEX.fullmatch(message_id):
        return canonical_id(str(int(message_id, 16)))
    if form == "dec-to-hex" and message_id.isascii() and message_id.isdecimal():
        return canonical_id(f"{int(message_id):x}")
    return canonical_id(message_id)


def _moment(digits: str, zone: tzinfo) -> datetime | None:
    """``YYMMDDhhmm`` or ``YYMMDDhhmmss`` in UTC."""
    if not _DATE.fullmatch(digits):
        return None
    year, *rest = (int(digits[at : at + 2]) for at in range(0, len(digits), 2))
    month, day, hour, minute, second = [*rest, 0][:5]
    try:
        return datetime(2000 + year, month, day, hour, minute, second, tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
