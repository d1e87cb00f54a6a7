"""An account at an SMPP 3.4 carrier, as workers use it.

Money hangs on what is said about a message of several parts, of which each is a submit_sm of its own: the parts go one
after another, each once the one before was accepted. So a refusal of the first is a refusal of the whole. What is
surely not accepted for now after an accepted part (throttled, connection lost before it was sent) is tried again, that
part alone, while the call has time. When a later part is refused for good, unanswered or out of time, the carrier has
taken, and bills, some parts of the message, and nothing may be sent again. Unless it was the last part, or that one was
refused, the rest surely is not sent, so the message has failed: REFUSED, and refunded; the house bears the parts taken.
A last part without an answer leaves it UNKNOWN.

SMPP has no place for our call id: receipts are known by the carrier's ids, one for each part, so each part asks for a
receipt of its own (`CallOutcome.part_ids`).
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import count
from typing import Final, Literal

import structlog

from infra import tracing
from smsgateway.carriers.base import (
    BatchCall,
    CallOutcome,
    CarrierError,
    CarrierLimits,
    CarrierReceipt,
    CarrierReply,
    PersonalisedCall,
    PulledReceipts,
    PulledReplies,
    SingleCall,
    Verdict,
    printable,
)
from smsgateway.carriers.receipt_dates import reported
from smsgateway.carriers.smpp.pdus import (
    Address,
    Bind,
    MalformedPdu,
    ShortMessage,
    decode_short_message,
    encode_bind,
    encode_short_message,
)
from smsgateway.carriers.smpp.receipts import (
    IdForm,
    UnreadableReceipt,
    canonical_id,
    expected_id,
    is_receipt,
    read_receipt,
)
from smsgateway.carriers.smpp.replies import is_reply, read_reply
from smsgateway.carriers.smpp.session import (
    LOOK_S,
    NEVER,
    OK,
    TRY_AGAIN,
    Answer,
    BindRefused,
    NoAnswer,
    NotSent,
    Session,
    SessionConfig,
)
from smsgateway.carriers.smpp.texts import Alphabet, Concatenation, Part, UnsendableText, parts_of
from smsgateway.metrics import SMPP_ODD, SMPP_PARTS_IN_VAIN
from smsgateway.mobile import InvalidMobile, national_mobile, normalize_mobile

log = structlog.get_logger(__name__)

SUBMIT_STATUSES: Final[Mapping[int, tuple[Verdict, str]]] = {
    0x00: (Verdict.ACCEPTED, "accepted"),
    0x01: (Verdict.REFUSED, "wrong length of the text"),
    # The session was lost over there and not here yet.
    0x04: (Verdict.RETRY, "not bound"),
    0x06: (Verdict.REFUSED, "wrong priority"),
    0x07: (Verdict.REFUSED, "wrong wish for a receipt"),
    0x0A: (Verdict.STOP_ACCOUNT, "source address not allowed"),
    0x0B: (Verdict.BAD_NUMBER, "bad number"),
    0x0D: (Verdict.STOP_ACCOUNT, "bind failed"),
    0x0E: (Verdict.STOP_ACCOUNT, "wrong password"),
    0x0F: (Verdict.STOP_ACCOUNT, "no such system id"),
    0x14: (Verdict.RETRY, "the carrier's queue is full"),
    0x15: (Verdict.STOP_ACCOUNT, "wrong service type"),
    0x43: (Verdict.REFUSED, "esm_class not allowed"),
    # Submit failed: not accepted, and no word about why.
    0x45: (Verdict.RETRY, "submit failed"),
    # Type and plan of the source are settings: every message has the same.
    0x48: (Verdict.STOP_ACCOUNT, "wrong type of source address"),
    0x49: (Verdict.STOP_ACCOUNT, "wrong plan of source address"),
    0x50: (Verdict.BAD_NUMBER, "wrong type of number"),
    0x51: (Verdict.BAD_NUMBER, "wrong plan of number"),
    0x53: (Verdict.STOP_ACCOUNT, "wrong system type"),
    0x58: (Verdict.RETRY, "throttled"),
    0x61: (Verdict.REFUSED, "wrong time of delivery"),
    0x62: (Verdict.REFUSED, "wrong validity"),
    0xC0: (Verdict.REFUSED, "error in the optional parameters"),
    0xC1: (Verdict.REFUSED, "optional parameter not allowed"),
    0xC2: (Verdict.REFUSED, "wrong length of a parameter"),
    0xC3: (Verdict.REFUSED, "optional parameter missing"),
    0xC4: (Verdict.REFUSED, "wrong value of an optional parameter"),
}
"""Verdict and meaning of the statuses of a submit_sm_resp. One that is not here, ESME_RSYSERR (0x08) and those of
vendors (0x400 and up) among them, says nothing sure: UNKNOWN."""

_RETRY_AFTER_S: Final[Mapping[int, float]] = {0x14: 5.0, 0x45: 5.0, 0x58: 1.0}
# Between two tries of one part; the message is begun, so it does not wait in the queue.
_PART_RETRY_S: Final = 0.5
# What the looks at the time take at most, see `LOOK_S`.
_SPARE_S: Final = 4 * LOOK_S
_TON_NATIONAL: Final = 2
_TON_INTERNATIONAL: Final = 1
_RECEIPT_WANTED: Final = 1
_MESSAGE_ID: Final = re.compile(r"[!-~]{1,64}")

Take = Callable[[CarrierReceipt], Awaitable[str]]
TakeReply = Callable[[CarrierReply], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class SmppConfig:
    """One account at an SMPP carrier.

    Attributes:
        account_id: our own name of the account, as it stands in records.
        host, port: the SMSC's address.
        system_id, password, system_type: who we are, at most 15, 8 and 12 ASCII characters.
        address_ton, address_npi, address_range: the addresses that we serve, for the bind; zeros and empty: as the
            carrier knows them.
        source: the sender as type, plan and number or name; empty: as the carrier knows it.
        destination_ton, destination_npi: type and plan of receivers' numbers. With type 2 (national) numbers of
            mainland China go out with 11 digits and no others can be sent; else all digits with the country code.
        service_type: as the carrier wants it, mostly empty.
        alphabet: ``gsm``: the default alphabet where it has all characters, else UCS-2; ``ucs2``: always UCS-2, for
            carriers whose default alphabet is another.
        concatenation: how the parts of a text are told to belong together.
        receipt_id: how receipts write the id of a response.
        receipt_offset: offset of the carrier's dates from UTC.
        part_receipts: which parts of a text ask for a receipt: ``all``, or ``last``, for carriers that give one for
            all parts; the message then is what that one says.
        text_characters_max: characters of a text.
        call_s: seconds for a whole call, all parts included; more than connect_s and response_s together.
        tls, tls_ca_file: whether to encrypt, and what certificates to trust; None: the system's.
        window, connect_s, response_s, enquire_link_s, rest_s, rest_s_max, unbind_s: see `SessionConfig`.
    """

    account_id: str
    host: str
    port: int
    system_id: str
    password: str = field(repr=False)
    system_type: str = ""
    address_ton: int = 0
    address_npi: int = 0
    address_range: str = ""
    source: Address = field(default_factory=Address)
    destination_ton: int = _TON_INTERNATIONAL
    destination_npi: int = 1
    service_type: str = ""
    alphabet: Alphabet = "gsm"
    concatenation: Concatenation = Concatenation.UDH
    receipt_id: IdForm = "same"
    receipt_offset: timedelta = timedelta(hours=8)
    part_receipts: Literal["all", "last"] = "all"
    text_characters_max: int = 536
    call_s: float = 30.0
    tls: bool = False
    tls_ca_file: str | None = None
    window: int = 10
    connect_s: float = 5.0
    response_s: float = 10.0
    enquire_link_s: float = 30.0
    rest_s: float = 1.0
    rest_s_max: float = 30.0
    unbind_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.account_id or not self.host or not self.system_id:
            raise ValueError("account_id, host and system_id must not be empty")
        if self.call_s < self.connect_s + self.response_s + _SPARE_S:
            raise ValueError(f"call_s must be at least connect_s and response_s together and {_SPARE_S} more")
        # Both raise for what no PDU can hold.
        encode_bind(self.bind)
        encode_short_message(ShortMessage(self.source, Address(), service_type=self.service_type))

    @property
    def bind(self) -> Bind:
        """The body of the bind."""
        return Bind(
            self.system_id,
            self.password,
            self.system_type,
            ton=self.address_ton,
            npi=self.address_npi,
            address_range=self.address_range,
        )

    def session(self) -> SessionConfig:
        """What the session needs of it. Raises `OSError` for a file of certificates that cannot be read."""
        return SessionConfig(
            account_id=self.account_id,
            host=self.host,
            port=self.port,
            bind=self.bind,
            tls=ssl.create_default_context(cafile=self.tls_ca_file) if self.tls else None,
            window=self.window,
            connect_s=self.connect_s,
            response_s=self.response_s,
            enquire_link_s=self.enquire_link_s,
            rest_s=self.rest_s,
            rest_s_max=self.rest_s_max,
            unbind_s=self.unbind_s,
        )


class SmppCarrier:
    """`ReceivingCarrier` for one account. The session begins with the first call or with `receive`."""

    def __init__(self, config: SmppConfig) -> None:
        self._config = config
        self._session = Session(config.session(), self._delivered)
        self._spans = tracing.active()
        self._take: Take | None = None
        self._take_reply: TakeReply | None = None
        self._zone = timezone(config.receipt_offset)
        # Several workers have sessions of their own, which the receiver's phone must not mix up.
        self._references = count(random.randrange(1 << 16))  # noqa: S311 - no secret
        self._limits = CarrierLimits(
            max_text_characters=config.text_characters_max,
            # SMPP has no call for many numbers that carriers would take; see docs/carriers.md.
            max_batch=1,
            call_timeout_s=config.call_s,
        )

    @property
    def account_id(self) -> str:
        """Our name of the account."""
        return self._config.account_id

    @property
    def limits(self) -> CarrierLimits:
        """What one call may hold and how long it may take."""
        return self._limits

    async def send_single(self, call: SingleCall) -> CallOutcome:
        """Send one text to one number; see `Carrier.send_single`."""
        config = self._config
        if not 0 < len(call.text) <= self._limits.max_text_characters:
            limit = self._limits.max_text_characters
            return CallOutcome(Verdict.REFUSED, detail=f"not sent: a text has 1 to {limit} characters")
        digits = self._digits(call.mobile)
        if digits is None:
            return CallOutcome(
                Verdict.BAD_NUMBER, detail="not sent: national numbers are wanted, so only those of mainland China go"
            )
        try:
            parts = parts_of(
                call.text,
                reference=next(self._references),
                alphabet=config.alphabet,
                concatenation=config.concatenation,
            )
        except UnsendableText as error:
            return CallOutcome(Verdict.REFUSED, detail=f"not sent: {error}")
        return await self._send(Address(config.destination_ton, config.destination_npi, digits), parts)

    async def send_batch(self, call: BatchCall) -> CallOutcome:
        """Send one text to the one number that a batch may have; see `Carrier.send_batch`."""
        assert len(call.mobiles) <= self._limits.max_batch, "a batch beyond the carrier's limit"
        return await self.send_single(SingleCall(call.call_id, call.mobiles[0], call.text))

    async def send_personalised(self, call: PersonalisedCall) -> CallOutcome:
        """Never called: `CarrierLimits.max_personalised` is 0."""
        return CallOutcome(Verdict.REFUSED, detail="not sent: this carrier has no call with variables")

    async def balance(self) -> int:
        """Raises `CarrierError`: SMPP 3.4 has no question for it."""
        raise CarrierError("balance: SMPP does not tell it")

    async def pull_receipts(self, count: int) -> PulledReceipts:
        """Raises `CarrierError`: receipts come by themselves, see `receive`."""
        raise CarrierError("receipts: SMPP has none to pull")

    async def pull_replies(self, count: int) -> PulledReplies:
        """Raises `CarrierError`: replies come by themselves, see `receive`."""
        raise CarrierError("replies: SMPP has none to pull")

    async def receive(self, take: Take, take_reply: TakeReply | None = None) -> None:
        """Hand on receipts and replies until cancelled; see `ReceivingCarrier.receive`. A deliver_sm is answered when
        what it brings is stored; while nobody receives, and when it could not be stored, it is to be given again.
        """
        self._take, self._take_reply = take, take_reply
        try:
            self._session.start()
            await asyncio.get_running_loop().create_future()
        finally:
            self._take = self._take_reply = None

    async def aclose(self) -> None:
        """Wait a moment for responses, unbind, disconnect; later calls end as RETRY without being sent."""
        await self._session.close()

    # Sending.

    def _digits(self, mobile: str) -> str | None:
        if self._config.destination_ton == _TON_NATIONAL:
            return national_mobile(mobile)
        return mobile.removeprefix("+")

    async def _send(self, destination: Address, parts: list[Part]) -> CallOutcome:
        config = self._config
        start_by = self._session.now() + config.call_s - config.response_s - _SPARE_S
        if len(parts) == 1:
            return await self._submit(self._body(destination, parts[0], wanted=True), start_by)
        outcome = CallOutcome(Verdict.UNKNOWN)
        ids: list[str] = []
        for number, part in enumerate(parts, 1):
            wanted = number == len(parts) or config.part_receipts == "all"
            body = self._body(destination, part, wanted=wanted)
            outcome = await (self._submit(body, start_by) if number == 1 else self._submit_more(body, start_by))
            if outcome.verdict is not Verdict.ACCEPTED:
                return outcome if number == 1 else self._in_part(outcome, number, len(parts), ids)
            if wanted:
                ids.append(outcome.carrier_message_id or "")
        return replace(outcome, part_ids=_distinct(ids))

    def _body(self, destination: Address, part: Part, *, wanted: bool) -> bytes:
        """The body of a submit_sm; `wanted`: whether it asks for a receipt."""
        config = self._config
        return encode_short_message(
            ShortMessage(
                source=config.source,
                destination=destination,
                short_message=part.short_message,
                esm_class=part.esm_class,
                data_coding=part.data_coding,
                registered_delivery=_RECEIPT_WANTED if wanted else 0,
                tlvs=part.tlvs,
                service_type=config.service_type,
            )
        )

    def _in_part(self, outcome: CallOutcome, number: int, total: int, ids: list[str]) -> CallOutcome:
        """What is said of a message of which parts were accepted before one was not. The rest is not sent."""
        unknown = outcome.verdict is Verdict.UNKNOWN and number == total
        if not unknown:
            SMPP_PARTS_IN_VAIN.labels(self.account_id).inc(number - 1)
        return CallOutcome(
            Verdict.UNKNOWN if unknown else Verdict.REFUSED,
            code=outcome.code or ("" if unknown else "INCOMPLETE"),
            detail=f"{number - 1} of {total} parts taken, the next {outcome.verdict.value}: {outcome.detail}"[:200],
            part_ids=_distinct([*ids, ""]) if ids else (),
        )

    async def _submit_more(self, body: bytes, start_by: float) -> CallOutcome:
        """Submit a further part of a message: tried again while it is surely not accepted for now."""
        while True:
            outcome = await self._submit(body, start_by)
            retriable = outcome.verdict in (Verdict.RETRY, Verdict.STOP_ACCOUNT)
            if not retriable or self._session.now() + _PART_RETRY_S >= start_by:
                return outcome
            await asyncio.sleep(_PART_RETRY_S)

    async def _submit(self, body: bytes, start_by: float) -> CallOutcome:
        try:
            if self._spans is None:
                answer = await self._session.submit(body, start_by)
            else:
                attributes = {"server.address": self._config.host, "network.protocol.name": "smpp"}
                with self._spans.within("submit_sm", kind=self._spans.CLIENT, attributes=attributes) as span:
                    answer = await self._session.submit(body, start_by)
                    span.set_attribute("smsbill.status", answer.status)
        except NotSent as error:
            return CallOutcome(Verdict.RETRY, detail=f"not sent: {error}", unreachable=error.unreachable)
        except BindRefused as error:
            meaning = SUBMIT_STATUSES.get(error.status, (None, "refused"))[1]
            return CallOutcome(Verdict.STOP_ACCOUNT, code=str(error.status), detail=f"not sent: bind: {meaning}")
        except NoAnswer as error:
            return CallOutcome(Verdict.UNKNOWN, detail=str(error))
        return self._judged(answer)

    def _judged(self, answer: Answer) -> CallOutcome:
        status = answer.status
        if status != OK:
            verdict, meaning = SUBMIT_STATUSES.get(status, (Verdict.UNKNOWN, f"status 0x{status:02X}"))
            return CallOutcome(verdict, code=str(status), detail=meaning, retry_after_s=_RETRY_AFTER_S.get(status))
        message_id = answer.name.strip()
        storable = _MESSAGE_ID.fullmatch(message_id) is not None
        return CallOutcome(
            Verdict.ACCEPTED,
            carrier_message_id=expected_id(message_id, self._config.receipt_id) if storable else None,
            code="0",
            # As it came, for whoever asks the carrier about it.
            detail=message_id if storable else printable(message_id),
        )

    # Receiving.

    async def _delivered(self, body: bytes) -> int:
        """Take a deliver_sm; the status of its response. Raises what `take` raises."""
        try:
            message = decode_short_message(body)
            if is_reply(message):
                return await self._replied(message)
            if not is_receipt(message):
                SMPP_ODD.labels(self.account_id, "other").inc()
                return NEVER
            receipt = self._receipt(message)
        except (MalformedPdu, UnreadableReceipt, InvalidMobile) as error:
            SMPP_ODD.labels(self.account_id, "malformed").inc()
            log.warning("malformed receipt", account=self.account_id, rule=str(error))
            return NEVER
        take = self._take
        if take is None:
            return TRY_AGAIN
        await take(receipt)
        return OK

    async def _replied(self, message: ShortMessage) -> int:
        """Take a reply; the status of its response. Raises `InvalidMobile` and what `take_reply` raises."""
        mobile = _normalized(message.source, national=self._config.destination_ton == _TON_NATIONAL)
        take = self._take_reply
        if take is None:
            return TRY_AGAIN
        await take(read_reply(message, self.account_id, mobile, datetime.now(UTC)))
        return OK

    def _mobile(self, message: ShortMessage) -> str:
        """The number that a receipt speaks of: its source; with some carriers its destination, as the message's was."""
        national = self._config.destination_ton == _TON_NATIONAL
        try:
            return _normalized(message.source, national=national)
        except InvalidMobile:
            return _normalized(message.destination, national=national)

    def _receipt(self, message: ShortMessage) -> CarrierReceipt:
        read = read_receipt(message, self._zone)
        now = datetime.now(UTC)
        return CarrierReceipt(
            account_id=self.account_id,
            carrier_message_id=canonical_id(read.message_id),
            call_id="",
            mobile=self._mobile(message),
            state=read.state,
            code=read.word,
            description=printable(
                " ".join(filter(None, (f"id {read.message_id}", read.error and f"err {read.error}")))
            ),
            reported_at=reported(self.account_id, read.done_at) if read.dated else now,
            notified_at=now,
            segments=None,
        )


def _normalized(address: Address, *, national: bool) -> str:
    """An address in E.164. Its digits are read as its type says; without a type as a person's would be, and then with
    the country code first, as they were sent.
    """
    digits = address.digits.strip().removeprefix("+").removeprefix("00")
    if address.ton == _TON_INTERNATIONAL and not national:
        return normalize_mobile(f"+{digits}")
    try:
        return normalize_mobile(digits)
    except InvalidMobile:
        if national:
            raise
        return normalize_mobile(f"+{digits}")


def _distinct(ids: Iterable[str]) -> tuple[str, ...]:
    """The ids of parts, none twice; nothing where all parts have one, for then its receipts are the message's."""
    distinct = tuple(dict.fromkeys(ids))
    return distinct if len(distinct) > 1 else ()
