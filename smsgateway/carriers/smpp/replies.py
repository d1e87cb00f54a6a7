"""Replies (MO) in a deliver_sm. No I/O.

Source: SMPP v3.4, 5.2.12 (esm_class: the message type of what a phone sent is 0) and 5.3.2.22 to 24 (SAR); 3GPP TS
23.040, 9.2.3.24.1 and 8 (concatenation with 8 and 16 bits of reference).

A text of several parts comes as several deliver_sm, to any of the workers' sessions, and some may never come. So each
part is a reply of its own, stored before it is acknowledged, with its place in the whole beside it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from smsgateway.carriers.base import CarrierReply, printable, reply_digest, reply_text
from smsgateway.carriers.smpp.pdus import ShortMessage, Tag
from smsgateway.carriers.smpp.texts import UDH_INDICATOR, text_of

_MESSAGE_TYPE_BITS: Final = 0x3C
_CONCATENATED_8, _CONCATENATED_16 = 0x00, 0x08
_DESTINATION_CHARACTERS_MAX: Final = 64


def is_reply(message: ShortMessage) -> bool:
    """Whether a deliver_sm is what a phone sent: neither a receipt nor an acknowledgement or notification."""
    return message.esm_class & _MESSAGE_TYPE_BITS == 0


def read_reply(message: ShortMessage, account_id: str, mobile: str, received_at: datetime) -> CarrierReply:
    """Read a reply. Octets that are no text of their coding are shown as U+FFFD; nothing of it raises.

    A deliver_sm has neither an id nor a time. So it is known by all that it brings, and the same words of the same
    number are the same reply for as long as a carrier may take to give it again (`smsgateway.store.replies`).

    Args:
        message: a deliver_sm for which `is_reply` holds.
        account_id: our name of the account.
        mobile: its source in E.164.
        received_at: when it came.
    """
    reference, total, number = place_of(message)
    part = f"{number}/{total}" if total > 1 else ""
    destination = printable(message.destination.digits, _DESTINATION_CHARACTERS_MAX)
    content = f"{message.data_coding} {message.content.hex()}"
    return CarrierReply(
        account_id=account_id,
        reply_id=reply_digest(mobile, destination, part, str(reference), content, timeless=True),
        mobile=mobile,
        destination=destination,
        text=reply_text(text_of(message.content, message.data_coding, message.esm_class)),
        received_at=received_at,
        part=part,
    )


def place_of(message: ShortMessage) -> tuple[int, int, int]:
    """Reference, parts and number of a part, by its user data header or by TLVs; (0, 1, 1) when it is whole, or when
    they make no sense.
    """
    content = message.content
    if message.esm_class & UDH_INDICATOR and content:
        header = content[1 : 1 + content[0]]
        at = 0
        while at + 2 <= len(header):
            element, length = header[at], header[at + 1]
            value = header[at + 2 : at + 2 + length]
            if (element, length, len(value)) in ((_CONCATENATED_8, 3, 3), (_CONCATENATED_16, 4, 4)):
                return _sensible(int.from_bytes(value[:-2], "big"), value[-2], value[-1])
            at += 2 + length
    reference, total, number = (
        int.from_bytes(message.tlvs.get(tag, b"")[:2], "big")
        for tag in (Tag.SAR_MSG_REF_NUM, Tag.SAR_TOTAL_SEGMENTS, Tag.SAR_SEGMENT_SEQNUM)
    )
    return _sensible(reference, total, number)


def _sensible(reference: int, total: int, number: int) -> tuple[int, int, int]:
    return (reference, total, number) if 1 <= number <= total <= 255 else (0, 1, 1)
