"""The PDUs of SMPP 3.4 as bytes and back. No I/O.

Source: SMPP protocol specification v3.4, issue 1.2, chapters 3 to 5. All integers are big-endian; a C-octet string ends
with a NUL, which its greatest length counts.

What we send is held to the specification by assertions. What we are sent is read with patience wherever nothing is
lost by it: a response without its body, a string without its NUL at the end of a body, rubbish after the last TLV.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

HEADER_BYTES: Final = 16
PDU_BYTES_MAX: Final = 65_536
"""Bytes of a PDU that are accepted. The largest lawful one is a short message with a payload TLV of 64 KiB less one;
carriers send some 300. A length beyond it is taken for lost synchrony."""
SEQUENCE_MAX: Final = 0x7FFF_FFFF
SHORT_MESSAGE_BYTES_MAX: Final = 254
INTERFACE_VERSION: Final = 0x34
RESPONSE: Final = 0x8000_0000
"""The bit that tells a response from its request."""

_HEADER: Final = struct.Struct(">IIII")
_TLV: Final = struct.Struct(">HH")


class Command(IntEnum):
    """The commands that are spoken here; a response is its request with the bit `RESPONSE`."""

    GENERIC_NACK = 0x8000_0000
    BIND_TRANSCEIVER = 0x0000_0009
    BIND_TRANSCEIVER_RESP = 0x8000_0009
    SUBMIT_SM = 0x0000_0004
    SUBMIT_SM_RESP = 0x8000_0004
    DELIVER_SM = 0x0000_0005
    DELIVER_SM_RESP = 0x8000_0005
    UNBIND = 0x0000_0006
    UNBIND_RESP = 0x8000_0006
    ENQUIRE_LINK = 0x0000_0015
    ENQUIRE_LINK_RESP = 0x8000_0015


class Tag(IntEnum):
    """The TLVs that are spoken here; others are skipped."""

    RECEIPTED_MESSAGE_ID = 0x001E
    SAR_MSG_REF_NUM = 0x020C
    SAR_TOTAL_SEGMENTS = 0x020E
    SAR_SEGMENT_SEQNUM = 0x020F
    SC_INTERFACE_VERSION = 0x0210
    MESSAGE_PAYLOAD = 0x0424
    MESSAGE_STATE = 0x0427


class MalformedPdu(ValueError):  # noqa: N818 - named for what it says
    """A PDU breaks the protocol. Names the field and the rule, never the value."""


@dataclass(frozen=True, slots=True)
class Pdu:
    """A PDU as it was framed: its header and a body that is still bytes."""

    command: int
    status: int
    sequence: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Address:
    """A number or name with its type (TON) and plan (NPI), specification 5.2.5 and 5.2.6."""

    ton: int = 0
    npi: int = 0
    digits: str = ""


@dataclass(frozen=True, slots=True)
class Bind:
    """The body of bind_transceiver, specification 4.1.5."""

    system_id: str
    password: str = field(repr=False)
    system_type: str = ""
    interface_version: int = INTERFACE_VERSION
    ton: int = 0
    npi: int = 0
    address_range: str = ""


@dataclass(frozen=True, slots=True)
class ShortMessage:
    """The body of submit_sm and of deliver_sm, specification 4.4.1 and 4.6.1: the two are laid out alike."""

    source: Address
    destination: Address
    short_message: bytes = b""
    esm_class: int = 0
    data_coding: int = 0
    registered_delivery: int = 0
    tlvs: Mapping[int, bytes] = field(default_factory=dict)
    service_type: str = ""
    protocol_id: int = 0
    priority: int = 0
    schedule_time: str = ""
    validity_period: str = ""
    replace_if_present: int = 0
    default_message_id: int = 0

    @property
    def content(self) -> bytes:
        """The text's bytes, wherever they were put."""
        return self.short_message or self.tlvs.get(Tag.MESSAGE_PAYLOAD, b"")


def frame(command: int, sequence: int, body: bytes = b"", status: int = 0) -> bytes:
    """A whole PDU.

    Args:
        command: what it is, see `Command`.
        sequence: 1 to `SEQUENCE_MAX`, or in a response the request's.
        body: the body's bytes.
        status: 0, or in a response the error.
    """
    return _HEADER.pack(HEADER_BYTES + len(body), command, status, sequence) + body


class FrameReader:
    """Cuts a stream of bytes into PDUs. Holds at most one unfinished PDU, so at most `bytes_max` and one read.

    Attributes:
        broken: whether a length came that no PDU can have. Nothing after it can be told apart: the connection is over.
    """

    def __init__(self, bytes_max: int = PDU_BYTES_MAX) -> None:
        assert bytes_max >= HEADER_BYTES
        self._bytes_max = bytes_max
        self._held = b""
        self.broken = False

    def feed(self, data: bytes) -> list[Pdu]:
        """The PDUs that these bytes complete, in order; those before a broken length too."""
        data = self._held + data if self._held else data
        end = len(data)
        pdus: list[Pdu] = []
        at = 0
        while end - at >= HEADER_BYTES and not self.broken:
            length, command, status, sequence = _HEADER.unpack_from(data, at)
            if not HEADER_BYTES <= length <= self._bytes_max:
                self.broken = True
                break
            if end - at < length:
                break
            pdus.append(Pdu(command, status, sequence, data[at + HEADER_BYTES : at + length]))
            at += length
        self._held = b"" if self.broken else data[at:]
        return pdus


def encode_bind(bind: Bind) -> bytes:
    """The body of bind_transceiver. Raises `ValueError` for a string that is too long or not ASCII."""
    return b"".join(
        (
            _c_octets("system_id", bind.system_id, 16),
            _c_octets("password", bind.password, 9),
            _c_octets("system_type", bind.system_type, 13),
            bytes((bind.interface_version, bind.ton, bind.npi)),
            _c_octets("address_range", bind.address_range, 41),
        )
    )


def decode_bind(body: bytes) -> Bind:
    """The body of bind_transceiver. Raises `MalformedPdu`."""
    reader = _Reader(body)
    return Bind(
        system_id=reader.string("system_id"),
        password=reader.string("password"),
        system_type=reader.string("system_type"),
        interface_version=reader.octet("interface_version"),
        ton=reader.octet("addr_ton"),
        npi=reader.octet("addr_npi"),
        address_range=reader.string("address_range"),
    )


def encode_short_message(message: ShortMessage) -> bytes:
    """The body of submit_sm or deliver_sm. Raises `ValueError` for a field that is too long or not ASCII."""
    text = message.short_message
    if len(text) > SHORT_MESSAGE_BYTES_MAX:
        raise ValueError(f"short_message must have at most {SHORT_MESSAGE_BYTES_MAX} bytes")
    source, destination = message.source, message.destination
    return b"".join(
        (
            _c_octets("service_type", message.service_type, 6),
            bytes((source.ton, source.npi)),
            _c_octets("source_addr", source.digits, 21),
            bytes((destination.ton, destination.npi)),
            _c_octets("destination_addr", destination.digits, 21),
            bytes((message.esm_class, message.protocol_id, message.priority)),
            _c_octets("schedule_delivery_time", message.schedule_time, 17),
            _c_octets("validity_period", message.validity_period, 17),
            bytes(
                (
                    message.registered_delivery,
                    message.replace_if_present,
                    message.data_coding,
                    message.default_message_id,
                    len(text),
                )
            ),
            text,
            encode_tlvs(message.tlvs),
        )
    )


def decode_short_message(body: bytes) -> ShortMessage:
    """The body of submit_sm or deliver_sm. Raises `MalformedPdu`."""
    reader = _Reader(body)
    service_type = reader.string("service_type")
    source = Address(reader.octet("ton"), reader.octet("npi"), reader.string("source_addr"))
    destination = Address(reader.octet("ton"), reader.octet("npi"), reader.string("destination_addr"))
    esm_class, protocol_id, priority = (
        reader.octet("esm_class"),
        reader.octet("protocol_id"),
        reader.octet("priority"),
    )
    schedule_time, validity_period = reader.string("schedule_delivery_time"), reader.string("validity_period")
    registered_delivery, replace_if_present = reader.octet("registered_delivery"), reader.octet("replace_if_present")
    data_coding, default_message_id = reader.octet("data_coding"), reader.octet("sm_default_msg_id")
    text = reader.octets("short_message", reader.octet("sm_length"))
    return ShortMessage(
        source=source,
        destination=destination,
        short_message=text,
        esm_class=esm_class,
        data_coding=data_coding,
        registered_delivery=registered_delivery,
        tlvs=decode_tlvs(reader.rest()),
        service_type=service_type,
        protocol_id=protocol_id,
        priority=priority,
        schedule_time=schedule_time,
        validity_period=validity_period,
        replace_if_present=replace_if_present,
        default_message_id=default_message_id,
    )


def encode_name(name: str) -> bytes:
    """The body of a response: the system id of a bind_transceiver_resp, the message id of the others."""
    return _c_octets("message_id", name, 65)


def decode_name(body: bytes) -> str:
    """The name in the body of a response, as it came; empty where there is no body, as beside an error."""
    end = body.find(b"\0")
    return (body if end < 0 else body[:end]).decode("latin-1")


def encode_tlvs(tlvs: Mapping[int, bytes]) -> bytes:
    """Optional parameters, specification 3.2.4. A value has at most 65,535 bytes."""
    return b"".join(_TLV.pack(tag, len(value)) + value for tag, value in tlvs.items()) if tlvs else b""


def decode_tlvs(data: bytes) -> dict[int, bytes]:
    """Optional parameters by tag, unknown ones too; of one that comes twice the first. What is cut off is left out:
    a mandatory part that could be read is not thrown away for the rubbish behind it.
    """
    tlvs: dict[int, bytes] = {}
    at = 0
    while at + _TLV.size <= len(data):
        tag, length = _TLV.unpack_from(data, at)
        at += _TLV.size
        if at + length > len(data):
            break
        tlvs.setdefault(tag, data[at : at + length])
        at += length
    return tlvs


def _c_octets(name: str, text: str, bytes_max: int) -> bytes:
    if not text:
        return b"\0"
    if not text.isascii() or "\0" in text or len(text) >= bytes_max:
        raise ValueError(f"{name} must be ASCII of at most {bytes_max - 1} characters")
    return text.encode("ascii") + b"\0"


class _Reader:
    """Reads the mandatory fields of a body one after another."""

    __slots__ = ("_at", "_body")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def octet(self, name: str) -> int:
        if self._at >= len(self._body):
            raise MalformedPdu(f"{name} is missing")
        self._at += 1
        return self._body[self._at - 1]

    def string(self, name: str) -> str:
        end = self._body.find(b"\0", self._at)
        if end < 0:
            raise MalformedPdu(f"{name} has no end")
        text = self._body[self._at : end]
        self._at = end + 1
        # Every byte is some character of Latin-1: what is not ASCII is judged by who knows what the field is for.
        return text.decode("latin-1")

    def octets(self, name: str, length: int) -> bytes:
        if self._at + length > len(self._body):
            raise MalformedPdu(f"{name} is cut off")
        self._at += length
        return self._body[self._at - length : self._at]

    def rest(self) -> bytes:
        return self._body[self._at :]
