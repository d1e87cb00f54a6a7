"""The SMPP carrier against an SMSC that does what no SMSC should: what is said of each message decides about money."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop
from smpp_harness import SECONDS, Peer, ScriptedSmsc, receipt_body, scripted_smsc

from smsgateway.carriers.base import (
    BatchCall,
    CallOutcome,
    CarrierError,
    CarrierReceipt,
    ReceiptState,
    ReceivingCarrier,
    SingleCall,
    Verdict,
)
from smsgateway.carriers.smpp.carrier import SUBMIT_STATUSES, SmppCarrier, SmppConfig
from smsgateway.carriers.smpp.pdus import (
    Address,
    Command,
    Pdu,
    ShortMessage,
    Tag,
    encode_name,
    encode_short_message,
    frame,
)
from smsgateway.carriers.smpp.texts import Concatenation, text_of
from smsgateway.metrics import SMPP_PARTS_IN_VAIN

MOBILE = "+8613800138000"
LONG = "【示例】" + "长" * 100


@pytest.fixture
async def smsc() -> AsyncIterator[ScriptedSmsc]:
    async with scripted_smsc() as scripted:
        yield scripted


def config_of(smsc: ScriptedSmsc, **changes: Any) -> SmppConfig:
    """Quick where the product is patient."""
    base = SmppConfig(
        account_id="smpp",
        host=smsc.host,
        port=smsc.port,
        system_id="us",
        password="secret",
        source=Address(5, 0, "ACME"),
        connect_s=0.5,
        response_s=0.5,
        call_s=2.0,
        rest_s=0.02,
        rest_s_max=0.05,
        unbind_s=0.3,
    )
    return replace(base, **changes)


@asynccontextmanager
async def carrier_of(smsc: ScriptedSmsc, **changes: Any) -> AsyncIterator[SmppCarrier]:
    carrier = SmppCarrier(config_of(smsc, **changes))
    try:
        yield carrier
    finally:
        async with asyncio.timeout(SECONDS):
            await carrier.aclose()


@asynccontextmanager
async def receiving(carrier: SmppCarrier, take: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(carrier.receive(take))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def send(carrier: SmppCarrier, text: str = "【示例】验证码 1", mobile: str = MOBILE) -> CallOutcome:
    async with asyncio.timeout(SECONDS):
        return await carrier.send_single(SingleCall("call-1", mobile, text))


def in_vain() -> float:
    """Parts that were taken for nothing so far."""
    return float(SMPP_PARTS_IN_VAIN.labels("smpp")._value.get())


def refusing(status: int) -> Any:
    return lambda peer, pdu: peer.answer(pdu, status=status)


def answering(command: Command, body: bytes = b"", status: int = 0) -> Any:
    return lambda peer, pdu: peer.write(frame(command, pdu.sequence, body, status))


# Sending.


async def test_a_message_is_sent(smsc: ScriptedSmsc) -> None:
    """Aim: the whole way of one message: who binds, what goes out, what comes back."""
    async with carrier_of(smsc, system_type="vms") as carrier:
        assert isinstance(carrier, ReceivingCarrier)
        assert await send(carrier) == CallOutcome(Verdict.ACCEPTED, carrier_message_id="id1", code="0", detail="id1")
    (bind,) = smsc.binds
    assert (bind.system_id, bind.password, bind.system_type, bind.interface_version) == ("us", "secret", "vms", 0x34)
    (message,) = smsc.submits
    assert message.source == Address(5, 0, "ACME")
    assert message.destination == Address(1, 1, "8613800138000")
    assert (message.data_coding, message.esm_class, message.registered_delivery) == (8, 0, 1)
    assert text_of(message.short_message, 8) == "【示例】验证码 1"


async def test_leaving_is_told(smsc: ScriptedSmsc) -> None:
    """Aim: a close unbinds; later calls are surely not sent."""
    async with carrier_of(smsc) as carrier:
        await send(carrier)
        peer = await smsc.peer()
        await carrier.aclose()
        await peer.next(Command.UNBIND)
        assert (await send(carrier)).verdict is Verdict.RETRY
        assert len(smsc.submits) == 1


@pytest.mark.parametrize("way", Concatenation)
async def test_parts_go_one_after_another_and_each_asks_for_a_receipt(smsc: ScriptedSmsc, way: Concatenation) -> None:
    """Aim: each part once, in order, told to belong together; the ids of all are handed on."""
    async with carrier_of(smsc, concatenation=way) as carrier:
        outcome = await send(carrier, LONG)
        assert (await send(carrier)).part_ids == ()
    assert (outcome.verdict, outcome.carrier_message_id, outcome.part_ids) == (Verdict.ACCEPTED, "id2", ("id1", "id2"))
    assert smsc.submits.pop().registered_delivery == 1
    assert [message.registered_delivery for message in smsc.submits] == [1, 1]
    assert "".join(text_of(message.short_message, 8, message.esm_class) for message in smsc.submits) == LONG
    if way is Concatenation.UDH:
        assert [message.short_message[4:6] for message in smsc.submits] == [b"\x02\x01", b"\x02\x02"]
    else:
        assert [message.tlvs[Tag.SAR_SEGMENT_SEQNUM] for message in smsc.submits] == [b"\x01", b"\x02"]


@pytest.mark.parametrize("status", sorted(SUBMIT_STATUSES.keys() - {0}))
async def test_statuses(smsc: ScriptedSmsc, status: int) -> None:
    """Aim: every status of the table is what the table says."""
    smsc.on_submit = refusing(status)
    async with carrier_of(smsc) as carrier:
        outcome = await send(carrier)
    assert (outcome.verdict, outcome.code) == (SUBMIT_STATUSES[status][0], str(status))
    assert outcome.carrier_message_id is None


@pytest.mark.parametrize("status", [0x08, 0xFF, 0x400, 0xFFFFFFFF])
async def test_a_status_that_says_nothing_sure_is_unknown(smsc: ScriptedSmsc, status: int) -> None:
    """Aim: nobody is refunded or sent to again on a guess."""
    smsc.on_submit = refusing(status)
    async with carrier_of(smsc) as carrier:
        assert (await send(carrier)).verdict is Verdict.UNKNOWN


def test_throttling_is_retry() -> None:
    """Aim: the two statuses that carriers answer under load, and bad numbers, by name."""
    assert SUBMIT_STATUSES[0x58][0] is SUBMIT_STATUSES[0x14][0] is Verdict.RETRY
    assert SUBMIT_STATUSES[0x0B][0] is Verdict.BAD_NUMBER


async def test_silence_is_unknown_and_its_late_answer_nobodys(smsc: ScriptedSmsc) -> None:
    """Aim: no response in time is UNKNOWN; when it comes after all it answers no other message."""
    held: list[tuple[Peer, Pdu]] = []
    smsc.on_submit = lambda peer, pdu: held.append((peer, pdu))
    async with carrier_of(smsc, response_s=0.1) as carrier:
        assert (await send(carrier)).verdict is Verdict.UNKNOWN
        ((_, pdu),) = held

        def late_first(peer: Peer, second: Pdu) -> None:
            peer.answer(pdu, "late")
            peer.answer(second, "second")

        smsc.on_submit = late_first
        assert (await send(carrier)).carrier_message_id == "second"
    assert len(smsc.submits) == 2


async def test_responses_that_nobody_asked_for(smsc: ScriptedSmsc) -> None:
    """Aim: a doubled response, one of the wrong kind and one with a foreign number change nothing."""

    def odd(peer: Peer, pdu: Pdu) -> None:
        peer.write(frame(Command.ENQUIRE_LINK_RESP, pdu.sequence))
        peer.write(frame(Command.SUBMIT_SM_RESP, 77_777, encode_name("foreign")))
        peer.answer(pdu, f"right{pdu.sequence}")
        peer.answer(pdu, "wrong")

    smsc.on_submit = odd
    async with carrier_of(smsc) as carrier:
        outcomes = [await send(carrier) for _ in range(3)]
    assert [outcome.carrier_message_id for outcome in outcomes] == [f"right{number}" for number in smsc.sequences]


async def test_a_nack_of_a_submit_is_no_acceptance(smsc: ScriptedSmsc) -> None:
    """Aim: generic_nack with a status of the table, and with the senseless status 0."""
    async with carrier_of(smsc) as carrier:
        for status, verdict in ((0x58, Verdict.RETRY), (0, Verdict.UNKNOWN), (3, Verdict.UNKNOWN)):
            smsc.on_submit = answering(Command.GENERIC_NACK, status=status)
            assert (await send(carrier)).verdict is verdict


async def test_an_id_that_cannot_be_stored_is_no_id(smsc: ScriptedSmsc) -> None:
    """Aim: accepted is accepted, with or without a usable id."""
    async with carrier_of(smsc) as carrier:
        for body in (b"", b"\0", b"\xff\xfe\0", b"x" * 70):
            smsc.on_submit = answering(Command.SUBMIT_SM_RESP, body)
            outcome = await send(carrier)
            assert (outcome.verdict, outcome.carrier_message_id) == (Verdict.ACCEPTED, None)


async def test_the_window_holds(smsc: ScriptedSmsc) -> None:
    """Aim: never more unanswered submits than the window, and all of more are sent, in order."""
    held: list[Pdu] = []
    most = 0

    def hold(peer: Peer, pdu: Pdu) -> None:
        nonlocal most
        held.append(pdu)
        most = max(most, len(held))
        asyncio.get_running_loop().call_later(0.005, release, peer, pdu)

    def release(peer: Peer, pdu: Pdu) -> None:
        held.remove(pdu)
        smsc.accept(peer, pdu)

    smsc.on_submit = hold
    async with carrier_of(smsc, window=4) as carrier:
        outcomes = await asyncio.gather(*(send(carrier, f"text {number:02}") for number in range(30)))
    assert {outcome.verdict for outcome in outcomes} == {Verdict.ACCEPTED}
    assert most == 4
    texts = [text_of(message.short_message, 0) for message in smsc.submits]
    assert texts == [f"text {number:02}" for number in range(30)]


async def test_no_room_in_the_window_is_surely_not_sent(smsc: ScriptedSmsc) -> None:
    """Aim: who waited in vain may send again; the carrier is not thought away."""
    smsc.on_submit = lambda peer, pdu: None
    async with carrier_of(smsc, window=1, response_s=1.0, connect_s=0.1, call_s=1.3) as carrier:
        first, second = await asyncio.gather(send(carrier, "first"), send(carrier, "second"))
    assert (first.verdict, second.verdict, second.unreachable) == (Verdict.UNKNOWN, Verdict.RETRY, False)
    assert len(smsc.submits) == 1


# A message of several parts of which some were accepted.


async def test_who_gives_up_leaves_its_place(smsc: ScriptedSmsc) -> None:
    """Aim: cancelled while it waits for room it is not sent; cancelled while it waits for its response it is sent, its
    room is free at once, and its late response is nobody's.
    """
    held: asyncio.Queue[tuple[Peer, Pdu]] = asyncio.Queue()
    smsc.on_submit = lambda peer, pdu: held.put_nowait((peer, pdu))
    async with carrier_of(smsc, window=1) as carrier, asyncio.timeout(SECONDS):
        first, second = (asyncio.create_task(send(carrier, text)) for text in ("first", "second"))
        peer, pdu = await held.get()
        second.cancel()
        third = asyncio.create_task(send(carrier, "third"))
        await asyncio.sleep(0)
        first.cancel()
        peer_of_third, third_pdu = await held.get()
        peer.answer(pdu, "late")
        peer_of_third.answer(third_pdu, "third")
        assert (await third).carrier_message_id == "third"
        await asyncio.gather(first, second, return_exceptions=True)
        assert (first.cancelled(), second.cancelled()) == (True, True)
    assert [text_of(message.short_message, 0) for message in smsc.submits] == ["first", "third"]


async def test_an_answer_before_the_question(smsc: ScriptedSmsc) -> None:
    """Aim: responses under numbers that come next, as of an SMSC that guesses, answer nothing."""
    async with carrier_of(smsc) as carrier:
        await send(carrier, "before")
        peer = await smsc.peer()
        connection = carrier._session._connection
        assert connection is not None
        task = asyncio.create_task(send(carrier, "after"))
        await asyncio.sleep(0)
        assert connection._requests
        connection.pause_writing()
        for number in range(1, 9):
            peer.write(frame(Command.SUBMIT_SM_RESP, number, encode_name("guessed")))
        peer.request(Command.ENQUIRE_LINK)
        await asyncio.sleep(0.1)
        connection.resume_writing()
        assert (await task).carrier_message_id == "id2"


async def test_a_throttled_part_goes_again_alone(smsc: ScriptedSmsc) -> None:
    """Aim: an accepted part is never sent twice, and the message arrives whole."""
    answers = [0, 0x58, 0]

    def throttling(peer: Peer, pdu: Pdu) -> None:
        status = answers.pop(0)
        peer.answer(pdu, "" if status else "whole", status)

    smsc.on_submit = throttling
    async with carrier_of(smsc) as carrier:
        outcome = await send(carrier, LONG)
    assert (outcome.verdict, outcome.carrier_message_id) == (Verdict.ACCEPTED, "whole")
    assert [message.short_message[5] for message in smsc.submits] == [1, 2, 2]


@pytest.mark.parametrize(
    ("answers", "part_ids"),
    [(["A"], ()), (["A", "A"], ()), (["A", ""], ("a", "")), (["", ""], ()), (["A", "B", "A"], ("a", "b"))],
)
async def test_ids_of_parts(smsc: ScriptedSmsc, answers: list[str], part_ids: tuple[str, ...]) -> None:
    """Aim: what cannot be told apart is told as one, and a part without an id is never thought delivered."""
    text = "长" * (60 * len(answers))
    names = iter(answers)
    smsc.on_submit = lambda peer, pdu: peer.answer(pdu, next(names))
    async with carrier_of(smsc) as carrier:
        outcome = await send(carrier, text)
    assert (outcome.verdict, outcome.part_ids) == (Verdict.ACCEPTED, part_ids)
    assert len(smsc.submits) == len(answers)


async def test_one_receipt_for_all_parts(smsc: ScriptedSmsc) -> None:
    """Aim: for carriers that give no more it can be set up so; the last part's id is the message's."""
    async with carrier_of(smsc, part_receipts="last") as carrier:
        outcome = await send(carrier, LONG)
    assert (outcome.carrier_message_id, outcome.part_ids) == ("id2", ())
    assert [message.registered_delivery for message in smsc.submits] == [0, 1]


LONGER = "长" * 150
"""Three parts."""


@pytest.mark.parametrize("status", [0x0B, 0x01, 0x400, 0x58, 0x0E])
@pytest.mark.parametrize("taken", [1, 2])
async def test_accepted_in_part(smsc: ScriptedSmsc, status: int, taken: int) -> None:
    """Aim: a message whose rest is surely not sent has failed at once; nothing of it is sent again, and what the
    carrier took is counted. Only a last part of which nothing sure is known leaves it unknown.
    """
    smsc.on_submit = lambda peer, pdu: (
        peer.answer(pdu, status=status) if len(smsc.submits) > taken else smsc.accept(peer, pdu)
    )
    before = in_vain()
    async with carrier_of(smsc, call_s=1.25) as carrier:
        outcome = await send(carrier, LONGER)
    unknown = taken == 2 and status == 0x400
    assert outcome.verdict is (Verdict.UNKNOWN if unknown else Verdict.REFUSED)
    assert outcome.code == str(status)
    assert outcome.part_ids == (*(f"id{number + 1}" for number in range(taken)), "")
    assert f"{taken} of 3 parts taken" in outcome.detail
    assert in_vain() - before == (0 if unknown else taken)
    numbers = [message.short_message[5] for message in smsc.submits]
    assert [numbers.count(number) for number in range(1, taken + 1)] == [1] * taken
    assert max(numbers) == taken + 1


@pytest.mark.parametrize("taken", [1, 2])
async def test_a_part_without_an_answer(smsc: ScriptedSmsc, taken: int) -> None:
    """Aim: after the last one nobody knows; after another one the rest is not sent, so the message has failed."""
    smsc.on_submit = lambda peer, pdu: peer.cut() if len(smsc.submits) > taken else smsc.accept(peer, pdu)
    async with carrier_of(smsc) as carrier:
        outcome = await send(carrier, LONGER)
    assert (outcome.verdict, outcome.code) == ((Verdict.REFUSED, "INCOMPLETE") if taken == 1 else (Verdict.UNKNOWN, ""))
    assert outcome.part_ids == (*(f"id{number + 1}" for number in range(taken)), "")
    assert len(smsc.submits) == taken + 1


async def test_a_first_part_that_is_refused_ends_it(smsc: ScriptedSmsc) -> None:
    """Aim: no second part goes after a first that was not accepted; the verdict is the first one's."""
    smsc.on_submit = refusing(0x0B)
    async with carrier_of(smsc) as carrier:
        assert (await send(carrier, LONG)).verdict is Verdict.BAD_NUMBER
    assert len(smsc.submits) == 1


# Connections.


async def test_nobody_there_is_unreachable(smsc: ScriptedSmsc) -> None:
    """Aim: no session in time is surely not sent, and told apart from a refusal."""
    await smsc.stop()
    async with carrier_of(smsc, connect_s=0.1) as carrier:
        outcome = await send(carrier)
    assert (outcome.verdict, outcome.unreachable) == (Verdict.RETRY, True)


async def test_a_carrier_that_comes_back_is_bound_again(smsc: ScriptedSmsc) -> None:
    """Aim: reconnects by itself, after it was cut and after it was away; waiting messages go then."""
    async with carrier_of(smsc, connect_s=1.0) as carrier:
        assert (await send(carrier)).verdict is Verdict.ACCEPTED
        await smsc.stop()
        waiting = asyncio.create_task(send(carrier))
        await asyncio.sleep(0)
        await smsc.start()
        assert (await waiting).verdict is Verdict.ACCEPTED
    assert (len(smsc.binds), len(smsc.submits)) == (2, 2)


async def test_cut_after_the_bytes_is_unknown_and_never_sent_again(smsc: ScriptedSmsc) -> None:
    """Aim: a connection lost with the submit on its way; the other messages go over the next one."""
    smsc.on_submit = lambda peer, pdu: peer.cut()
    async with carrier_of(smsc) as carrier:
        assert (await send(carrier, "lost")).verdict is Verdict.UNKNOWN
        smsc.on_submit = smsc.accept
        assert (await send(carrier, "kept")).verdict is Verdict.ACCEPTED
    assert [text_of(message.short_message, 0) for message in smsc.submits] == ["lost", "kept"]


async def test_what_waits_when_the_connection_is_cut_goes_over_the_next(smsc: ScriptedSmsc) -> None:
    """Aim: behind a full window nothing was written: it is sent once, not called unknown."""
    smsc.on_submit = lambda peer, pdu: peer.cut() if len(smsc.submits) == 1 else smsc.accept(peer, pdu)
    async with carrier_of(smsc, window=1) as carrier:
        outcomes = await asyncio.gather(*(send(carrier, f"text {number}") for number in range(3)))
    assert [outcome.verdict for outcome in outcomes] == [Verdict.UNKNOWN, Verdict.ACCEPTED, Verdict.ACCEPTED]
    assert len(smsc.submits) == 3


@pytest.mark.parametrize("status", [0x0D, 0x0E, 0x0F])
async def test_a_refused_bind_stops_the_account_until_it_is_let_in(smsc: ScriptedSmsc, status: int) -> None:
    """Aim: wrong password and the like stop the account; it is tried again all the same."""
    smsc.bind_statuses = [status]
    async with carrier_of(smsc) as carrier:
        outcome = await send(carrier)
        assert (outcome.verdict, outcome.code) == (Verdict.STOP_ACCOUNT, str(status))
        await smsc.peer()
        async with asyncio.timeout(SECONDS):
            # Their answer may still be on its way, and the session tells nobody.
            while (outcome := await send(carrier)).verdict is Verdict.STOP_ACCOUNT:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert outcome.verdict is Verdict.ACCEPTED


async def test_a_bind_refused_for_now_is_tried_again(smsc: ScriptedSmsc) -> None:
    """Aim: an old session that is still known over there delays, and stops nothing."""
    smsc.bind_statuses = [0x05, 0x08]
    async with carrier_of(smsc) as carrier:
        assert (await send(carrier)).verdict is Verdict.ACCEPTED
    assert len(smsc.binds) == 3


async def test_an_unbind_in_the_middle_waits_for_what_is_owed(smsc: ScriptedSmsc) -> None:
    """Aim: the response after an unbind counts; the next message goes over a new session."""

    def unbinding(peer: Peer, pdu: Pdu) -> None:
        peer.request(Command.UNBIND)
        smsc.on_submit = smsc.accept
        asyncio.get_running_loop().call_later(0.05, smsc.accept, peer, pdu)

    smsc.on_submit = unbinding
    async with carrier_of(smsc) as carrier:
        assert (await send(carrier)).verdict is Verdict.ACCEPTED
        peer = await smsc.peer()
        await peer.next(Command.UNBIND_RESP)
        assert (await send(carrier)).verdict is Verdict.ACCEPTED
    assert len(smsc.binds) == 2


async def test_a_dead_connection_is_found_and_replaced(smsc: ScriptedSmsc) -> None:
    """Aim: enquire_link without an answer ends the connection."""

    def silent_once(_peer: Peer, _pdu: Pdu) -> None:
        smsc.on_enquire = lambda peer, pdu: peer.answer(pdu)

    smsc.on_enquire = silent_once
    async with carrier_of(smsc, enquire_link_s=0.05, response_s=0.1) as carrier:
        await send(carrier)
        await smsc.peer()
        await smsc.peer()
        assert (await send(carrier)).verdict is Verdict.ACCEPTED


async def test_questions_and_unknown_commands_are_answered(smsc: ScriptedSmsc) -> None:
    """Aim: enquire_link is answered, an unknown command by generic_nack, and the session goes on."""
    async with carrier_of(smsc) as carrier:
        await send(carrier)
        peer = await smsc.peer()
        asked = peer.request(Command.ENQUIRE_LINK)
        assert (await peer.next(Command.ENQUIRE_LINK_RESP)).sequence == asked
        asked = peer.request(0x0000_0BAD, b"whatever")
        nack = await peer.next(Command.GENERIC_NACK)
        assert (nack.sequence, nack.status) == (asked, 0x03)
        assert (await send(carrier)).verdict is Verdict.ACCEPTED
    assert len(smsc.binds) == 1


async def test_lost_synchrony_costs_the_connection_only(smsc: ScriptedSmsc) -> None:
    """Aim: a PDU of an impossible length; a response before it still counts."""

    def broken(peer: Peer, pdu: Pdu) -> None:
        peer.write(frame(Command.SUBMIT_SM_RESP, pdu.sequence, encode_name("kept")) + b"\xff" * 64)
        smsc.on_submit = smsc.accept

    smsc.on_submit = broken
    async with carrier_of(smsc) as carrier:
        assert (await send(carrier)).carrier_message_id == "kept"
        peer = await smsc.peer()
        assert (await peer.next(Command.GENERIC_NACK)).status == 0x02
        assert (await send(carrier)).verdict is Verdict.ACCEPTED
    assert len(smsc.binds) == 2


# What no call can hold.


async def test_what_cannot_be_sent_is_not(smsc: ScriptedSmsc) -> None:
    """Aim: too long, no Unicode, foreign with national numbers: refused without a byte."""
    async with carrier_of(smsc, destination_ton=2) as carrier:
        assert (await send(carrier, "x" * 537)).verdict is Verdict.REFUSED
        assert (await send(carrier, "\ud83d")).verdict is Verdict.REFUSED
        assert (await send(carrier, mobile="+491701234567")).verdict is Verdict.BAD_NUMBER
        assert smsc.binds == []
        await send(carrier)
    assert smsc.submits[0].destination == Address(2, 1, "13800138000")


async def test_a_batch_is_of_one(smsc: ScriptedSmsc) -> None:
    """Aim: the sender cuts batches, so that each number has an outcome of its own."""
    async with carrier_of(smsc) as carrier:
        assert carrier.limits.max_batch == 1
        assert carrier.limits.max_pull == 0
        outcome = await carrier.send_batch(BatchCall("call-1", (MOBILE,), "text"))
        assert outcome.verdict is Verdict.ACCEPTED
        with pytest.raises(CarrierError):
            await carrier.balance()


@pytest.mark.parametrize(
    "changes",
    [{"password": "123456789"}, {"system_id": ""}, {"source": Address(5, 0, "é")}, {"call_s": 0.9}, {"host": ""}],
)
async def test_settings_that_break_a_rule(smsc: ScriptedSmsc, changes: dict[str, Any]) -> None:
    """Aim: they are refused at the start, not at the first message."""
    with pytest.raises(ValueError, match=r"must"):
        config_of(smsc, **changes)


# Receipts.


class Inbox:
    """What `take` of a worker is to a carrier."""

    def __init__(self) -> None:
        self.receipts: list[CarrierReceipt] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.errors: list[Exception] = []

    async def take(self, receipt: CarrierReceipt) -> str:
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop()
        self.receipts.append(receipt)
        return "inbox"


async def test_a_receipt_is_answered_when_it_is_stored_and_not_before(smsc: ScriptedSmsc) -> None:
    """Aim: the one promise about receipts. Meanwhile the session goes on."""
    inbox = Inbox()
    async with carrier_of(smsc, receipt_offset=timedelta(hours=8)) as carrier, receiving(carrier, inbox.take):
        peer = await smsc.peer()
        inbox.gate.clear()
        sequence = peer.request(Command.DELIVER_SM, receipt_body("00AB"))
        peer.request(Command.ENQUIRE_LINK)
        assert (await send(carrier)).verdict is Verdict.ACCEPTED
        await peer.next(Command.ENQUIRE_LINK_RESP)
        assert all(pdu.command != Command.DELIVER_SM_RESP for pdu in list(peer.received._queue))  # type: ignore[attr-defined]
        inbox.gate.set()
        answer = await peer.next(Command.DELIVER_SM_RESP)
    assert (answer.sequence, answer.status) == (sequence, 0)
    (receipt,) = inbox.receipts
    assert (receipt.account_id, receipt.carrier_message_id, receipt.call_id) == ("smpp", "ab", "")
    assert (receipt.mobile, receipt.state, receipt.code) == (MOBILE, ReceiptState.DELIVERED, "DELIVRD")
    assert receipt.reported_at == datetime(2026, 1, 2, 7, 30, tzinfo=UTC)
    assert receipt.segments is None


async def test_a_receipt_that_could_not_be_stored_is_asked_for_again(smsc: ScriptedSmsc) -> None:
    """Aim: an error and a database that hangs give a temporary error; the repetition is taken."""
    inbox = Inbox()
    async with carrier_of(smsc, response_s=0.2) as carrier, receiving(carrier, inbox.take):
        peer = await smsc.peer()
        inbox.errors = [ConnectionError("database")]
        peer.request(Command.DELIVER_SM, receipt_body("1"))
        assert (await peer.next(Command.DELIVER_SM_RESP)).status == 0x64
        inbox.gate.clear()
        peer.request(Command.DELIVER_SM, receipt_body("1"))
        assert (await peer.next(Command.DELIVER_SM_RESP)).status == 0x64
        inbox.gate.set()
        peer.request(Command.DELIVER_SM, receipt_body("1"))
        assert (await peer.next(Command.DELIVER_SM_RESP)).status == 0
    assert len(inbox.receipts) == 1


async def test_a_receipt_that_nobody_takes_waits_at_the_carrier(smsc: ScriptedSmsc) -> None:
    """Aim: before `receive` and after its end nothing is acknowledged."""
    async with carrier_of(smsc) as carrier:
        await send(carrier)
        peer = await smsc.peer()
        peer.request(Command.DELIVER_SM, receipt_body("1"))
        assert (await peer.next(Command.DELIVER_SM_RESP)).status == 0x64


async def test_reused_sequence_numbers_of_theirs(smsc: ScriptedSmsc) -> None:
    """Aim: three receipts under one number, which is also one of ours: all are taken, all answered."""
    inbox = Inbox()
    async with carrier_of(smsc) as carrier, receiving(carrier, inbox.take):
        peer = await smsc.peer()
        for number in range(3):
            peer.request(Command.DELIVER_SM, receipt_body(f"{number + 1}"), sequence=1)
        assert (await send(carrier)).verdict is Verdict.ACCEPTED
        for _ in range(3):
            answer = await peer.next(Command.DELIVER_SM_RESP)
            assert (answer.sequence, answer.status) == (1, 0)
    assert sorted(receipt.carrier_message_id for receipt in inbox.receipts) == ["1", "2", "3"]


async def test_a_receipt_that_overtakes_the_response(smsc: ScriptedSmsc) -> None:
    """Aim: it is handed on under the id that the response brings afterwards, in another base."""
    inbox = Inbox()

    def receipt_first(peer: Peer, pdu: Pdu) -> None:
        peer.request(Command.DELIVER_SM, receipt_body(str(0xBEEF)))
        peer.answer(pdu, "BEEF")

    smsc.on_submit = receipt_first
    async with carrier_of(smsc, receipt_id="hex-to-dec") as carrier, receiving(carrier, inbox.take):
        outcome = await send(carrier)
        await (await smsc.peer()).next(Command.DELIVER_SM_RESP)
    assert outcome.carrier_message_id == inbox.receipts[0].carrier_message_id == str(0xBEEF)
    assert outcome.detail == "BEEF"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff" * 40,
        receipt_body("1", mobile="rubbish"),
        encode_short_message(ShortMessage(Address(1, 1, "8613800138000"), Address(), b"R", esm_class=0x08)),
        encode_short_message(ShortMessage(Address(5, 0, "SHOP"), Address(), b"R", esm_class=0)),
        encode_short_message(ShortMessage(Address(1, 1, "8613800138000"), Address(), b"id:", esm_class=4)),
    ],
    ids=["empty", "rubbish", "no-number", "acknowledgement", "reply-of-no-number", "no-id"],
)
async def test_a_delivery_that_can_never_be_taken_is_refused_for_good(smsc: ScriptedSmsc, body: bytes) -> None:
    """Aim: rubbish does not come again and again, and ends nothing."""
    inbox = Inbox()
    async with carrier_of(smsc) as carrier, receiving(carrier, inbox.take):
        peer = await smsc.peer()
        peer.request(Command.DELIVER_SM, body)
        assert (await peer.next(Command.DELIVER_SM_RESP)).status == 0x65
        peer.request(Command.DELIVER_SM, receipt_body("1"))
        assert (await peer.next(Command.DELIVER_SM_RESP)).status == 0
    assert len(inbox.receipts) == 1


@pytest.mark.parametrize(
    ("address", "national", "expected"),
    [
        (Address(1, 1, "8613800138000"), False, MOBILE),
        (Address(1, 1, "+8613800138000"), False, MOBILE),
        (Address(0, 0, "008613800138000"), False, MOBILE),
        (Address(2, 1, "13800138000"), False, MOBILE),
        (Address(1, 1, "13800138000"), True, MOBILE),
        (Address(1, 1, "13805551234"), False, "+13805551234"),
        (Address(0, 0, "12025550123"), False, "+12025550123"),
        (Address(0, 0, "491701234567"), False, "+491701234567"),
    ],
)
async def test_spellings_of_numbers_in_receipts(
    smsc: ScriptedSmsc, address: Address, national: bool, expected: str
) -> None:
    """Aim: however a carrier writes the number, it is the one that the message had."""
    inbox = Inbox()
    body = encode_short_message(ShortMessage(address, Address(), b"id:1 stat:DELIVRD", esm_class=4))
    changes = {"destination_ton": 2} if national else {}
    async with carrier_of(smsc, **changes) as carrier, receiving(carrier, inbox.take):
        peer = await smsc.peer()
        peer.request(Command.DELIVER_SM, body)
        await peer.next(Command.DELIVER_SM_RESP)
    assert [receipt.mobile for receipt in inbox.receipts] == [expected]


async def test_a_date_of_the_future_is_now(smsc: ScriptedSmsc) -> None:
    """Aim: no message ends in the future because a zone is set wrongly."""
    inbox = Inbox()
    async with carrier_of(smsc) as carrier, receiving(carrier, inbox.take):
        peer = await smsc.peer()
        peer.request(Command.DELIVER_SM, receipt_body("1", done="9912312359"))
        await peer.next(Command.DELIVER_SM_RESP)
    assert inbox.receipts[0].reported_at <= datetime.now(UTC)


async def test_who_asks_and_never_reads_is_cut_off(smsc: ScriptedSmsc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aim: what waits to be written is bounded, whatever the other side does."""
    monkeypatch.setattr("smsgateway.carriers.smpp.session._OUT_MAX", 100)
    async with carrier_of(smsc) as carrier:
        await send(carrier)
        peer = await smsc.peer()
        # In one read of ours, so that nothing can be written between two of them.
        peer.write(frame(Command.ENQUIRE_LINK, 1) * 500)
        async with asyncio.timeout(SECONDS):
            await peer.ended.wait()
        assert (await send(carrier)).verdict is Verdict.ACCEPTED


async def test_sequence_numbers_begin_again(smsc: ScriptedSmsc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aim: after the last number comes the first, and none that still waits for its response is used twice."""
    monkeypatch.setattr("smsgateway.carriers.smpp.session.SEQUENCE_MAX", 4)
    held: asyncio.Queue[tuple[Peer, Pdu]] = asyncio.Queue()

    def hold_first(peer: Peer, pdu: Pdu) -> None:
        held.put_nowait((peer, pdu))
        smsc.on_submit = smsc.accept

    smsc.on_submit = hold_first
    async with carrier_of(smsc, response_s=2.0, call_s=4.0) as carrier:
        first = asyncio.create_task(send(carrier))
        peer, pdu = await held.get()
        for _ in range(6):
            assert (await send(carrier)).verdict is Verdict.ACCEPTED
        peer.answer(pdu, "first")
        assert (await first).carrier_message_id == "first"
    # The bind had 1, the first submit 2.
    assert smsc.sequences == [2, 3, 4, 1, 3, 4, 1]


async def test_the_session_can_be_encrypted(tmp_path: Path) -> None:
    """Aim: with the right certificate everything goes on as before; with one that nobody trusts not a byte is sent."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(  # noqa: ASYNC221 - before anything runs beside it
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with scripted_smsc(context) as smsc:
        async with carrier_of(smsc, tls=True, tls_ca_file=str(certificate), connect_s=2.0, call_s=4.0) as carrier:
            assert (await send(carrier, LONG)).verdict is Verdict.ACCEPTED
            smsc.on_submit = lambda peer, pdu: peer.cut()
            assert (await send(carrier)).verdict is Verdict.UNKNOWN
        binds = len(smsc.binds)
        async with carrier_of(smsc, tls=True) as carrier:
            outcome = await send(carrier)
        assert (outcome.verdict, outcome.unreachable) == (Verdict.RETRY, True)
        assert len(smsc.binds) == binds


def test_the_same_in_the_loop_of_the_workers() -> None:
    """Aim: what decides about money holds with uvloop's transports, too."""

    async def scenario() -> None:
        async with scripted_smsc() as smsc, carrier_of(smsc, window=1) as carrier:
            inbox = Inbox()
            async with receiving(carrier, inbox.take):
                peer = await smsc.peer()
                peer.request(Command.DELIVER_SM, receipt_body("1"))
                assert (await peer.next(Command.DELIVER_SM_RESP)).status == 0
                smsc.on_submit = lambda peer, pdu: peer.cut() if len(smsc.submits) == 1 else smsc.accept(peer, pdu)
                outcomes = await asyncio.gather(*(send(carrier, f"text {number}") for number in range(3)))
            assert [outcome.verdict for outcome in outcomes] == [Verdict.UNKNOWN, Verdict.ACCEPTED, Verdict.ACCEPTED]
            assert (len(smsc.submits), len(inbox.receipts)) == (3, 1)

    uvloop.run(asyncio.wait_for(scenario(), SECONDS))


async def test_what_a_full_connection_did_not_take_goes_over_the_next(smsc: ScriptedSmsc) -> None:
    """Aim: while the kernel takes no more nothing is handed over, so what waits is surely not sent when it breaks."""
    async with carrier_of(smsc) as carrier:
        await send(carrier, "before")
        peer = await smsc.peer()
        connection = carrier._session._connection
        assert connection is not None
        connection.pause_writing()
        waiting = [asyncio.create_task(send(carrier, f"text {number}")) for number in range(3)]
        peer.request(Command.ENQUIRE_LINK)
        await asyncio.sleep(0.1)
        assert len(smsc.submits) == 1
        assert peer.received.qsize() == 2
        peer.cut()
        assert {outcome.verdict for outcome in await asyncio.gather(*waiting)} == {Verdict.ACCEPTED}
    assert len(smsc.submits) == 4


async def test_what_was_not_handed_over_when_the_connection_broke_goes_over_the_next(smsc: ScriptedSmsc) -> None:
    """Aim: the moment between a submit and its write, in which the connection ends: not sent, so sent once."""
    async with carrier_of(smsc) as carrier:
        await send(carrier, "before")
        connection = carrier._session._connection
        assert connection is not None
        waiting = asyncio.create_task(send(carrier, "between"))
        await asyncio.sleep(0)
        assert connection._requests
        connection.abort()
        assert (await waiting).verdict is Verdict.ACCEPTED
    assert [text_of(message.short_message, 0) for message in smsc.submits] == ["before", "between"]
