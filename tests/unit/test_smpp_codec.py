"""The codec of SMPP: what it writes is what the specification says and what it reads back; rubbish never breaks it."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsgateway.carriers.base import ReceiptState
from smsgateway.carriers.smpp.pdus import (
    Address,
    Bind,
    Command,
    FrameReader,
    MalformedPdu,
    Pdu,
    ShortMessage,
    Tag,
    decode_bind,
    decode_name,
    decode_short_message,
    decode_tlvs,
    encode_bind,
    encode_name,
    encode_short_message,
    encode_tlvs,
    frame,
)
from smsgateway.carriers.smpp.receipts import (
    UnreadableReceipt,
    canonical_id,
    expected_id,
    is_receipt,
    read_receipt,
    receipt_fields,
)
from smsgateway.carriers.smpp.texts import (
    GSM_CHARACTERS,
    Concatenation,
    UnsendableText,
    decode_gsm,
    decode_ucs2,
    encode_gsm,
    encode_ucs2,
    parts_of,
    text_of,
)
from smsgateway.segmentation import GSM7_BASIC, GSM7_EXTENSION, SegmentRule, count_segments_by_rule

OCTET = st.integers(0, 255)
TLVS = st.dictionaries(st.integers(0, 0xFFFF), st.binary(max_size=40), max_size=5)


def names(longest: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=longest)


ADDRESSES = st.builds(Address, OCTET, OCTET, names(20))
MESSAGES = st.builds(
    ShortMessage,
    source=ADDRESSES,
    destination=ADDRESSES,
    short_message=st.binary(max_size=254),
    esm_class=OCTET,
    data_coding=OCTET,
    registered_delivery=OCTET,
    tlvs=TLVS,
    service_type=names(5),
    protocol_id=OCTET,
    priority=OCTET,
    schedule_time=names(16),
    validity_period=names(16),
    replace_if_present=OCTET,
    default_message_id=OCTET,
)
GSM_TEXTS = st.text(st.sampled_from(sorted(GSM_CHARACTERS)), min_size=1, max_size=700)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=400)


def receipt(text: str = "", **tlvs: bytes) -> ShortMessage:
    """A deliver_sm that is a receipt."""
    return ShortMessage(
        source=Address(1, 1, "8613800138000"),
        destination=Address(0, 0, "1069"),
        short_message=text.encode(),
        esm_class=0x04,
        tlvs={int(Tag[name]): value for name, value in tlvs.items()},
    )


# PDUs.


def test_a_submit_is_what_the_specification_says() -> None:
    """Aim: octet for octet the layout of 4.4.1, worked out by hand, so that reading back is no circle."""
    message = ShortMessage(
        source=Address(5, 0, "ACME"),
        destination=Address(1, 1, "8613800138000"),
        short_message=b"hi",
        esm_class=0x40,
        data_coding=8,
        registered_delivery=1,
        tlvs={0x020E: b"\x02"},
    )
    expected = (
        b"\0" b"\x05\x00ACME\0" b"\x01\x018613800138000\0" b"\x40\x00\x00" b"\0\0" b"\x01\x00\x08\x00" b"\x02hi"
        b"\x02\x0e\x00\x01\x02"
    )  # fmt: skip
    assert encode_short_message(message) == expected
    assert frame(Command.SUBMIT_SM, 7, expected)[:16] == bytes.fromhex("00000039000000040000000000000007")


@given(MESSAGES)
def test_a_message_is_read_back(message: ShortMessage) -> None:
    """Aim: every submit_sm and deliver_sm that can be written is read as it was."""
    assert decode_short_message(encode_short_message(message)) == message


@given(st.builds(Bind, names(15), names(8), names(12), OCTET, OCTET, OCTET, names(40)))
def test_a_bind_is_read_back(bind: Bind) -> None:
    """Aim: as for messages; and the password is in no repr."""
    assert decode_bind(encode_bind(bind)) == bind
    assert "password" not in repr(bind)


@given(names(64))
def test_a_name_is_read_back(name: str) -> None:
    """Aim: ids of responses, with and without the NUL that some leave out, and without a body."""
    assert decode_name(encode_name(name)) == name
    assert decode_name(encode_name(name)[:-1]) == name


@pytest.mark.parametrize(
    "message",
    [
        ShortMessage(Address(), Address(), short_message=b"x" * 255),
        ShortMessage(Address(digits="1" * 21), Address()),
        ShortMessage(Address(digits="é"), Address()),
        ShortMessage(Address(), Address(digits="1\x002")),
    ],
)
def test_what_no_pdu_can_hold_is_refused(message: ShortMessage) -> None:
    """Aim: nothing is cut or garbled silently."""
    with pytest.raises(ValueError, match="must"):
        encode_short_message(message)


@given(TLVS, st.integers(0, 200))
def test_tlvs_are_read_as_far_as_they_are_whole(tlvs: dict[int, bytes], cut: int) -> None:
    """Aim: unknown tags are kept for whoever knows them, and a cut off tail costs only itself."""
    assert decode_tlvs(encode_tlvs(tlvs)) == tlvs
    assert decode_tlvs(encode_tlvs(tlvs)[:cut]).items() <= tlvs.items()


@given(st.lists(st.builds(Pdu, OCTET, OCTET, OCTET, st.binary(max_size=60)), max_size=6), st.integers(1, 50))
def test_frames_are_cut_however_they_arrive(pdus: list[Pdu], step: int) -> None:
    """Aim: a stream cut into reads of any length gives the same PDUs."""
    data = b"".join(frame(pdu.command, pdu.sequence, pdu.body, pdu.status) for pdu in pdus)
    reader = FrameReader()
    found = [pdu for start in range(0, len(data), step) for pdu in reader.feed(data[start : start + step])]
    assert found == pdus
    assert not reader.broken


@pytest.mark.parametrize("length", [0, 15, 65_537, 0xFFFFFFFF])
def test_an_impossible_length_ends_the_stream(length: int) -> None:
    """Aim: the length of a PDU is bounded, what came before it is not lost, and nothing after it is believed."""
    reader = FrameReader()
    good = frame(Command.ENQUIRE_LINK, 1)
    bad = length.to_bytes(4, "big") + good[4:]
    assert reader.feed(good + bad + good) == [Pdu(Command.ENQUIRE_LINK, 0, 1)]
    assert reader.broken
    assert reader.feed(good) == []


@given(st.binary(max_size=300))
def test_rubbish_never_breaks_the_codec(data: bytes) -> None:
    """Aim: whatever bytes come, there is an answer or the one documented error."""
    reader = FrameReader()
    reader.feed(data)
    decode_name(data)
    decode_tlvs(data)
    decode_gsm(data)
    decode_ucs2(data)
    for coding in (0, 1, 3, 8, 0xF5):
        text_of(data, coding, 0x40)
        text_of(data, coding)
    for decode in (decode_bind, decode_short_message):
        with suppress(MalformedPdu):
            decode(data)


# Texts.


def test_the_alphabet_is_the_one_that_segments_are_counted_by() -> None:
    """Aim: what is billed as GSM 7-bit can be sent as GSM 7-bit, and the other way round."""
    assert GSM_CHARACTERS == GSM7_BASIC | GSM7_EXTENSION


def test_positions_of_the_alphabet() -> None:
    """Aim: some positions of 23.038, 6.2.1, looked up there."""
    assert encode_gsm("@£Δ ¤aà¿") == bytes([0x00, 0x01, 0x10, 0x20, 0x24, 0x61, 0x7F, 0x60])
    assert encode_gsm("€[|") == bytes([0x1B, 0x65, 0x1B, 0x3C, 0x1B, 0x40])
    assert decode_gsm(b"\x1b\x41\x1b\x1b\x1b") == "A  "


@given(GSM_TEXTS)
def test_a_gsm_text_is_read_back(text: str) -> None:
    """Aim: round trip of the default alphabet with its extension."""
    assert decode_gsm(encode_gsm(text)) == text


@given(TEXTS)
def test_a_ucs2_text_is_read_back(text: str) -> None:
    """Aim: round trip of UCS-2, pairs included."""
    assert decode_ucs2(encode_ucs2(text)) == text


@pytest.mark.parametrize("text", ["`", "短", "ç"])
def test_characters_outside_the_alphabet_are_refused(text: str) -> None:
    """Aim: no silent replacement."""
    with pytest.raises(UnsendableText):
        encode_gsm(text)


@given(st.one_of(GSM_TEXTS, TEXTS), st.integers(0, 1 << 20), st.sampled_from(Concatenation))
def test_parts_make_the_text_and_are_as_many_as_are_billed(text: str, reference: int, way: Concatenation) -> None:
    """Aim: the parts' texts joined are the text; each fits in a message on the air; each is decodable alone (nothing
    is torn apart); they are numbered; and they are as many as the international rule bills.
    """
    parts = parts_of(text, reference=reference, concatenation=way)
    assert len(parts) == count_segments_by_rule(text, SegmentRule.INTERNATIONAL).segments
    assert "".join(text_of(part.short_message, part.data_coding, part.esm_class) for part in parts) == text
    for number, part in enumerate(parts, 1):
        body = part.short_message
        if len(parts) == 1:
            assert part.esm_class == 0
            assert not part.tlvs
        elif way is Concatenation.UDH:
            assert body[:6] == bytes((5, 0, 3, reference & 0xFF, len(parts), number))
            assert part.esm_class == 0x40
            body = body[6:]
        else:
            assert part.tlvs == {
                0x020C: (reference & 0xFFFF).to_bytes(2, "big"), 0x020E: bytes([len(parts)]), 0x020F: bytes([number])
            }  # fmt: skip
        alone, part_of_many = (160, 153) if part.data_coding == 0 else (140, 134)
        assert len(body) <= (alone if len(parts) == 1 else part_of_many)


def test_ucs2_can_be_asked_for_always() -> None:
    """Aim: for carriers whose default alphabet is not GSM's."""
    assert [part.data_coding for part in parts_of("plain", reference=1, alphabet="ucs2")] == [8]


def test_texts_that_cannot_be_sent_are_refused() -> None:
    """Aim: more parts than can be numbered, and half a pair."""
    with pytest.raises(UnsendableText, match="parts"):
        parts_of("短" * (67 * 255 + 1), reference=1)
    with pytest.raises(UnsendableText, match="Unicode"):
        parts_of("\ud83d", reference=1)


# Receipts.

TEXT_FORM = (
    "id:{id} sub:001 dlvrd:001 submit date:2601021529 done date:{done} stat:{stat} err:{err} text:stat:DELETED id:9"
)


def test_a_receipt_in_text_form() -> None:
    """Aim: appendix B, with a text behind it that looks like fields; a date of ten digits in the carrier's zone."""
    china = timezone(timedelta(hours=8))
    read = read_receipt(receipt(TEXT_FORM.format(id="00aF", done="2601021530", stat="DELIVRD", err="000")), china)
    assert (read.message_id, read.state, read.word, read.error) == ("00aF", ReceiptState.DELIVERED, "DELIVRD", "000")
    assert read.done_at == datetime(2026, 1, 2, 7, 30, tzinfo=UTC)


def test_a_receipt_of_twelve_digits_other_order_and_case() -> None:
    """Aim: what carriers make of the text form."""
    read = read_receipt(receipt("ID: 12-ab  Stat:undeliv Done Date: 260102153059 Err:1B"))
    assert (read.message_id, read.word, read.error) == ("12-ab", "UNDELIV", "1B")
    assert read.done_at == datetime(2026, 1, 2, 15, 30, 59, tzinfo=UTC)


def test_tlvs_come_first() -> None:
    """Aim: id and state of the TLVs win over the text's."""
    text = TEXT_FORM.format(id="1", done="2601021530", stat="DELIVRD", err="000")
    read = read_receipt(receipt(text, RECEIPTED_MESSAGE_ID=b"77\0", MESSAGE_STATE=b"\x05"))
    assert (read.message_id, read.word, read.state) == ("77", "UNDELIV", ReceiptState.FAILED)


def test_tlvs_that_say_nothing_leave_it_to_the_text() -> None:
    """Aim: an empty id and a state that the table does not have are no reason to lose a receipt."""
    text = TEXT_FORM.format(id="1", done="2601021530", stat="EXPIRED", err="000")
    read = read_receipt(receipt(text, RECEIPTED_MESSAGE_ID=b"\0", MESSAGE_STATE=b"\x63"))
    assert (read.message_id, read.word) == ("1", "EXPIRED")


@pytest.mark.parametrize(
    ("number", "word", "state"),
    [
        (1, "ENROUTE", ReceiptState.PENDING),
        (2, "DELIVRD", ReceiptState.DELIVERED),
        (3, "EXPIRED", ReceiptState.FAILED),
        (4, "DELETED", ReceiptState.FAILED),
        (5, "UNDELIV", ReceiptState.FAILED),
        (6, "ACCEPTD", ReceiptState.PENDING),
        (7, "UNKNOWN", ReceiptState.PENDING),
        (8, "REJECTD", ReceiptState.FAILED),
    ],
)
def test_states(number: int, word: str, state: ReceiptState) -> None:
    """Aim: the same state by number and by word; UNKNOWN refunds nothing."""
    told = receipt(RECEIPTED_MESSAGE_ID=b"1", MESSAGE_STATE=bytes([number]))
    assert (read_receipt(told).word, read_receipt(told).state) == (word, state)
    assert read_receipt(receipt(f"id:1 stat:{word}")).state is state


def test_a_word_that_nobody_knows_is_not_final() -> None:
    """Aim: no refund on a guess."""
    assert read_receipt(receipt("id:1 stat:WHATEVER")).state is ReceiptState.PENDING


@pytest.mark.parametrize("done", ["2613021530", "0000000000", "260102", "26010215301", "٢٦٠١٠٢١٥٣٠", ""])
def test_an_impossible_date_costs_only_the_date(done: str) -> None:
    """Aim: nothing is lost for a date."""
    read = read_receipt(receipt(f"id:1 stat:DELIVRD done date:{done} err:000"))
    assert (read.word, read.done_at) == ("DELIVRD", None)


@pytest.mark.parametrize(
    "text", ["", "stat:DELIVRD", "id:1", "id: stat:DELIVRD", "id:a b stat:DELIVRD", "id:" + "1" * 65]
)
def test_a_receipt_without_id_or_state_is_unreadable(text: str) -> None:
    """Aim: one documented error."""
    with pytest.raises(UnreadableReceipt):
        read_receipt(receipt(text))


@given(st.builds(ShortMessage, ADDRESSES, ADDRESSES, st.binary(max_size=254), OCTET, OCTET, OCTET, TLVS))
def test_rubbish_never_breaks_the_reading_of_receipts(message: ShortMessage) -> None:
    """Aim: a receipt, or the one documented error."""
    with suppress(UnreadableReceipt):
        read_receipt(message)
    receipt_fields(text_of(message.content, message.data_coding))


def test_which_deliver_sm_are_receipts() -> None:
    """Aim: four bits decide; a reply of a phone is none, a header beside them changes nothing."""
    for esm_class, expected in ((0x04, True), (0x44, True), (0x00, False), (0x40, False), (0x08, False), (0x20, False)):
        assert is_receipt(ShortMessage(Address(), Address(), esm_class=esm_class)) is expected


@pytest.mark.parametrize(
    ("answered", "received", "form"),
    [
        ("1A2B", "6699", "hex-to-dec"),
        ("0x", "0x", "hex-to-dec"),
        ("6699", "1a2b", "dec-to-hex"),
        ("0000006699", "00001A2B", "dec-to-hex"),
        ("00FF", "ff", "same"),
        ("0", "000", "same"),
        ("a-Bc", "a-Bc", "same"),
    ],
)
def test_ids_meet(answered: str, received: str, form: str) -> None:
    """Aim: what a response said and what a receipt brings become the same, whatever base, case or padding."""
    assert expected_id(answered, form) == canonical_id(received)  # type: ignore[arg-type] # the parameter is checked


def test_ids_that_differ_stay_different() -> None:
    """Aim: letters that are no hexadecimal digits may differ by case alone."""
    assert canonical_id("aX1") != canonical_id("AX1")


@given(st.integers(0, 1 << 64))
def test_ids_of_any_size_convert(number: int) -> None:
    """Aim: hexadecimal and decimal of the same number are one id, both ways."""
    assert expected_id(f"{number:X}", "hex-to-dec") == canonical_id(str(number))
    assert expected_id(str(number), "dec-to-hex") == canonical_id(f"{number:020x}")
