"""The SMPP carrier against an SMSC that others wrote (smpp34), so that no misunderstanding is shared by both ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import smpp34
from smpp34_harness import SECONDS, Smsc34, smpp34_smsc

from smsgateway.carriers.base import CarrierReceipt, SingleCall, Verdict
from smsgateway.carriers.smpp.carrier import SmppCarrier, SmppConfig
from smsgateway.carriers.smpp.pdus import Address, ShortMessage, Tag, decode_short_message, encode_short_message
from smsgateway.carriers.smpp.texts import Concatenation, text_of


@pytest.fixture
async def smsc() -> AsyncIterator[Smsc34]:
    async with smpp34_smsc() as running:
        yield running


@asynccontextmanager
async def carrier_of(smsc: Smsc34, **changes: Any) -> AsyncIterator[SmppCarrier]:
    config = SmppConfig("smpp", smsc.host, smsc.port, "us", "secret", source=Address(5, 0, "ACME"), **changes)
    carrier = SmppCarrier(config)
    try:
        yield carrier
    finally:
        async with asyncio.timeout(SECONDS):
            await carrier.aclose()


@pytest.mark.parametrize("way", Concatenation)
async def test_texts_arrive_whole(smsc: Smsc34, way: Concatenation) -> None:
    """Aim: texts of one part and several, of both alphabets, are read over there as they were written here."""
    texts = ["plain €[]", "【示例】验证码 123456", "a{" * 200, "长😀" * 60]
    async with carrier_of(smsc, concatenation=way) as carrier, asyncio.timeout(SECONDS):
        for text in texts:
            smsc.submits.clear()
            outcome = await carrier.send_single(SingleCall("call", "+8613800138000", text))
            assert outcome.verdict is Verdict.ACCEPTED
            assert (
                "".join(text_of(item.short_message, item.data_coding, item.esm_class) for item in smsc.submits) == text
            )
            assert {item.destination_addr for item in smsc.submits} == {"8613800138000"}
            assert {item.source_addr for item in smsc.submits} == {"ACME"}
            assert {item.dest_addr_ton for item in smsc.submits} == {1}
            if way is Concatenation.SAR and len(smsc.submits) > 1:
                numbers = [
                    tlv.as_int() for item in smsc.submits for tlv in item.tlvs if tlv.tag == Tag.SAR_SEGMENT_SEQNUM
                ]
                assert numbers == list(range(1, len(smsc.submits) + 1))


async def test_many_at_once_and_their_receipts(smsc: Smsc34) -> None:
    """Aim: 300 messages through the window: each accepted under an id of its own, each receipt under that id."""
    received: list[CarrierReceipt] = []

    async def take(receipt: CarrierReceipt) -> str:
        received.append(receipt)
        return ""

    smsc.state_of = lambda event: "DELIVRD"
    async with carrier_of(smsc) as carrier, asyncio.timeout(SECONDS):
        task = asyncio.create_task(carrier.receive(take))
        calls = [SingleCall("call", f"+86138{number:08}", "text") for number in range(300)]
        outcomes = await asyncio.gather(*map(carrier.send_single, calls))
        while len(smsc.receipt_statuses) < len(calls):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)
        task.cancel()
    sent = {(outcome.carrier_message_id, call.mobile) for outcome, call in zip(outcomes, calls, strict=True)}
    assert len(sent) == 300
    assert {(receipt.carrier_message_id, receipt.mobile) for receipt in received} == sent
    assert set(smsc.receipt_statuses) == {0}


async def test_throttling(smsc: Smsc34) -> None:
    """Aim: its rejection is read as what it is."""
    smsc.decide = lambda event: 0x58
    async with carrier_of(smsc) as carrier, asyncio.timeout(SECONDS):
        outcome = await carrier.send_single(SingleCall("call", "+8613800138000", "text"))
    assert (outcome.verdict, outcome.code) == (Verdict.RETRY, "88")


def test_its_codec_and_ours_agree() -> None:
    """Aim: bodies with every field set, both ways, octet for octet."""
    theirs = smpp34.SubmitSm(
        "ACME", "8613800138000", b"\x05\x00\x03\x01\x02\x01hi", service_type="vms", source_addr_ton=5, dest_addr_ton=1,
        dest_addr_npi=1, esm_class=0x40, protocol_id=3, priority_flag=1, schedule_delivery_time="260102030405000+",
        validity_period="260103030405000+", registered_delivery=1, data_coding=8, sequence_number=9,
        tlvs=[smpp34.Tlv(0x020C, b"\x00\x07")],
    )  # fmt: skip
    ours = ShortMessage(
        source=Address(5, 0, "ACME"), destination=Address(1, 1, "8613800138000"),
        short_message=b"\x05\x00\x03\x01\x02\x01hi", service_type="vms", esm_class=0x40, protocol_id=3, priority=1,
        schedule_time="260102030405000+", validity_period="260103030405000+", registered_delivery=1, data_coding=8,
        tlvs={int(Tag.SAR_MSG_REF_NUM): b"\x00\x07"},
    )  # fmt: skip
    assert theirs.encode()[16:] == encode_short_message(ours)
    assert decode_short_message(theirs.encode()[16:]) == ours
