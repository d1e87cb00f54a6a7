"""Aim: what replies say, whoever writes them: opt-outs, brands by extension, Chuanglan's rows, deliver_sm, files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from smsgateway.carriers.base import MalformedReceipt, reply_digest, reply_text
from smsgateway.carriers.chuanglan import reply_of
from smsgateway.carriers.http_carrier import HttpCarrierSetup, http_callback
from smsgateway.carriers.http_file import HttpCarrierFile
from smsgateway.carriers.registry import PushedRequest
from smsgateway.carriers.smpp.pdus import Address, ShortMessage, Tag
from smsgateway.carriers.smpp.replies import is_reply, place_of, read_reply
from smsgateway.replies import OptOutWords, brand_by_extension

WORDS = OptOutWords(("R", "TD", "退订", "STOP", " "))
NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["R", "r", " Ｒ ", "　ｒ。", "“TD”", "ｔｄ!", "退订", "【退订】", "Stop.", "STOP\n", "(r)"]
)
def test_an_opt_out_is_a_word_alone(text: str) -> None:
    """Whatever its case, width, spaces and punctuation around it."""
    assert WORDS.asks(text)


@pytest.mark.parametrize("text", ["", " ", "R2", "RR", "Received", "我要退订吗", "don't stop", "T D", "…", "R" * 200])
def test_other_texts_are_none(text: str) -> None:
    """Also an empty one, although a word of the list is empty."""
    assert not WORDS.asks(text)


def test_the_longest_extension_decides() -> None:
    """An end of the number; none is brand 0."""
    extensions = {"01": 1, "4501": 2}
    assert brand_by_extension("1069012301", extensions) == 1
    assert brand_by_extension(" +106904501 ", extensions) == 2
    assert brand_by_extension("1069", extensions) == brand_by_extension("", extensions) == 0


def row(**changes: str) -> dict[str, str]:
    return {"mobile": "13800138000", "moTime": "2601021530", "messageContent": "R", "destCode": "1069", **changes}


@pytest.mark.parametrize(
    ("told", "moment"),
    [
        ("2601021530", datetime(2026, 1, 2, 7, 30, tzinfo=UTC)),
        ("260102153059", datetime(2026, 1, 2, 7, 30, 59, tzinfo=UTC)),
        ("20260102153059", datetime(2026, 1, 2, 7, 30, 59, tzinfo=UTC)),
        ("2026-01-02 15:30:59", datetime(2026, 1, 2, 7, 30, 59, tzinfo=UTC)),
        ("1534732783355", datetime(2018, 8, 20, 2, 39, 43, 355_000, UTC)),
    ],
)
def test_times_of_chuanglan_in_any_of_its_forms(told: str, moment: datetime) -> None:
    """Local to China, or milliseconds since 1970."""
    assert reply_of(row(moTime=told), "a").received_at == moment


@pytest.mark.parametrize("told", ["", "9999999999", "rubbish", "2601", "１２３４５６７８９０", "9" * 13])
def test_a_time_that_is_none_costs_no_reply(told: str) -> None:
    """It is deleted over there: ours stands in for it."""
    assert abs(reply_of(row(moTime=told), "a").received_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_rows_of_both_versions_are_read() -> None:
    """Names of fields differ; the same reply has the same id, another time or text another."""
    old = reply_of(row(), "a")
    new = reply_of({"mobile": "13800138000", "moTime": "2601021530", "msg": "R", "destcode": "1069"}, "a")
    assert (old.reply_id, old.text, old.destination) == (new.reply_id, "R", "1069")
    assert (
        len(
            {
                old.reply_id,
                reply_of(row(moTime="2601021531"), "a").reply_id,
                reply_of(row(messageContent="r"), "a").reply_id,
            }
        )
        == 3
    )
    extended = reply_of({"mobile": "13800138000", "msg": "x", "spCode": "1069", "extend": "77"}, "a")
    assert (extended.destination, extended.reply_id[0]) == ("106977", "~")
    part = reply_of(row(isems="1", emshead="234,4,2"), "a")
    assert (part.part, part.reply_id == old.reply_id) == ("2/4", False)
    for fields in ({"mobile": "13800138000"}, {"msg": "R"}, {"msg": "R", "mobile": "1"}):
        with pytest.raises(MalformedReceipt):
            reply_of(fields, "a")


def message(text: bytes, **changes: Any) -> ShortMessage:
    return ShortMessage(
        **{
            "source": Address(1, 1, "8613800138000"),
            "destination": Address(0, 0, "1069"),
            "short_message": text,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({}, (0, 1, 1)),
        ({"short_message": b"\x05\x00\x03\x07\x03\x02abc", "esm_class": 0x40}, (7, 3, 2)),
        ({"short_message": b"\x06\x08\x04\x01\x07\x03\x02abc", "esm_class": 0x40}, (263, 3, 2)),
        ({"short_message": b"\x09\x70\x02xx\x00\x03\x07\x03\x03", "esm_class": 0x40}, (7, 3, 3)),
        ({"short_message": b"\x05\x00\x03\x07\x03\x09abc", "esm_class": 0x40}, (0, 1, 1)),
        ({"short_message": b"\x05\x00\x03", "esm_class": 0x40}, (0, 1, 1)),
        ({"short_message": b"\xff", "esm_class": 0x40}, (0, 1, 1)),
        ({"short_message": b"", "esm_class": 0x40}, (0, 1, 1)),
        (
            {
                "tlvs": {
                    Tag.SAR_MSG_REF_NUM: b"\x01\x07",
                    Tag.SAR_TOTAL_SEGMENTS: b"\x02",
                    Tag.SAR_SEGMENT_SEQNUM: b"\x01",
                }
            },
            (263, 2, 1),
        ),
        ({"tlvs": {Tag.SAR_TOTAL_SEGMENTS: b"", Tag.SAR_SEGMENT_SEQNUM: b"\xff" * 9}}, (0, 1, 1)),
    ],
)
def test_the_place_of_a_part(changes: dict[str, Any], place: tuple[int, int, int]) -> None:
    """By header or TLVs; what makes no sense is a whole text, and nothing raises."""
    told = message(b"abc", **changes) if "short_message" not in changes else message(**{"text": b"", **changes})
    assert place_of(told) == place
    read_reply(told, "a", "+8613800138000", NOW)


def test_a_delivery_is_a_reply_by_its_type_alone() -> None:
    """Receipts, acknowledgements and notifications are none; a header beside it changes nothing."""
    kinds = {kind: is_reply(message(b"x", esm_class=kind)) for kind in (0x00, 0x40, 0x80, 0x04, 0x08, 0x10, 0x20)}
    assert [kind for kind, found in kinds.items() if found] == [0x00, 0x40, 0x80]


def test_texts_are_made_storable() -> None:
    """No NUL, no lone surrogate, lines stay, and what is too long is cut."""
    assert reply_text("a\0b\nc\ud800") == "a b\nc?"
    assert len(reply_text("长" * 5_000)) == 2_000
    assert reply_digest("ab", "c") != reply_digest("a", "bc")


REPLIES: dict[str, Any] = {
    "auth": {"headers": {"X-Key": "{secret.key}"}},
    "methods": ["POST"],
    "format": "json",
    "fields": {"mobile": "from", "text": "body", "reply_id": "id", "destination": "to", "received_at": "at"},
}


def setup(**changes: Any) -> HttpCarrierSetup:
    send = {
        "path": "/s", "form": {"to": "{mobile}", "text": "{text}"},
        "answer": {"code": "code", "codes": {"0": "accepted"}},
    }  # fmt: skip
    document = {"name": "x", "base_url": "http://127.0.0.1:1", "send": send, "replies": {**REPLIES, **changes}}
    file = HttpCarrierFile.model_validate(document)
    return HttpCarrierSetup(file, file.base_url, "x", {"account": "a", "secret.key": "k"})


def test_a_file_says_how_replies_are_pushed() -> None:
    """Fields by path; one that is garbled costs no other; without an id what it brought tells it apart."""
    made = setup()
    assert made.file.replies is not None
    callback = http_callback(made, made.file.replies, 10)
    body = (
        b'[{"from": "13800138000", "body": "R", "id": "m1", "to": "1069", "at": "2026-01-02T00:00:00Z"},'
        b'{"from": "13800138000", "body": "R"}, {"from": "13800138000"}, {"from": "x", "body": "R"}, 7]'
    )
    first, second, *others = callback.read(PushedRequest("POST", b"", ((b"x-key", b"k"),), body))
    assert not isinstance(first, MalformedReceipt) and not isinstance(second, MalformedReceipt)  # noqa: PT018
    assert (first.reply_id, first.received_at, first.destination) == ("m1", NOW, "1069")  # type: ignore[union-attr]
    assert second.reply_id.startswith("~")  # type: ignore[union-attr]
    assert [each.field for each in others if isinstance(each, MalformedReceipt)] == ["text", "mobile", "mobile"]
    with pytest.raises(ValueError, match="only a JSON document holds a list"):
        setup(format="fields", list="data")
