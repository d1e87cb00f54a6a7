"""What the gateway and its workers ask of a carrier, whoever it is.

The one question that decides about money is *what became of this call*: a message is sent at most once, refunded when
it was refused, and held when nobody knows. So a call never raises for what a carrier or a network does: it returns a
`CallOutcome` whose `Verdict` answers just that question.

A carrier's own spellings (numbers, times, codes) end at its adapter: numbers are E.164 on this side, times are aware.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final, Protocol, runtime_checkable

from smsgateway.mobile import mask_mobile
from smsgateway.variables import VariableText

CALL_ID: Final = re.compile(r"[!-~]{1,64}")
"""A call id: printable ASCII without spaces, so that it survives JSON, queries and the carrier's database."""

REPLY_ID: Final = re.compile(r"[!-~]{1,64}")
"""What replies are known by: printable ASCII without spaces."""
TIMELESS: Final = "~"
"""What the id of a reply begins with that could be that of the same words at another time."""
REPLY_CHARACTERS_MAX: Final = 2_000
"""Characters of a reply that are kept: some thirty parts, more than any phone sends."""

_NUMBER_LIKE: Final = re.compile(r"\+?[0-9]{7,}")
_DETAIL_CHARACTERS_MAX: Final = 200


class Verdict(Enum):
    """What became of a call to a carrier, and so what its caller does next."""

    ACCEPTED = "accepted"
    """The carrier took it on and bills it; receipts follow."""

    REFUSED = "refused"
    """The carrier took on nothing, for a reason in the message itself, or only parts of a message whose rest is surely
    not sent: final for every message of the call."""

    RETRY = "retry"
    """Surely not accepted: send again, not sooner than `CallOutcome.retry_after_s`."""

    STOP_ACCOUNT = "stop_account"
    """Surely not accepted, and no call of this account will be until an operator acts: stop it and alert."""

    BAD_NUMBER = "bad_number"
    """Surely not accepted, because of a number in it. With one number: final. With more: halve the call."""

    UNKNOWN = "unknown"
    """The request may have arrived and no clear answer came. Never send again; a receipt or 72 hours decide."""


@dataclass(frozen=True, slots=True)
class SingleCall:
    """One text to one number.

    Attributes:
        call_id: our id of this call, as `CALL_ID`; receipts bring it back.
        mobile: the receiver in E.164.
        text: the whole text, signature included.
    """

    call_id: str
    mobile: str
    text: str

    def __post_init__(self) -> None:
        assert CALL_ID.fullmatch(self.call_id), "call_id breaks its rule"


@dataclass(frozen=True, slots=True)
class BatchCall:
    """One text to many numbers, with one call and one answer.

    Attributes:
        call_id: our id of this call, as `CALL_ID`; each receipt brings it back.
        mobiles: the receivers in E.164, at least one and none twice: a receipt is known by call and number. At most
            `CarrierLimits.max_batch`.
        text: the whole text, signature included.
    """

    call_id: str
    mobiles: tuple[str, ...]
    text: str

    def __post_init__(self) -> None:
        assert CALL_ID.fullmatch(self.call_id), "call_id breaks its rule"
        assert self.mobiles, "a batch without numbers"
        assert len(set(self.mobiles)) == len(self.mobiles), "a number twice in one batch"


@dataclass(frozen=True, slots=True)
class PersonalisedCall:
    """One text with variables to many numbers, each with values of its own, with one call and one answer.

    Attributes:
        call_id: our id of this call, as `CALL_ID`; each receipt brings it back.
        text: the text, taken apart: `text.written` and `text.in_places` give what carriers ask for.
        mobiles: the receivers in E.164, at least two and none twice. At most `CarrierLimits.max_personalised`.
        values: for each receiver a value for each variable, none of which holds any of
            `CarrierLimits.personalised_without`.
    """

    call_id: str
    text: VariableText
    mobiles: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        assert CALL_ID.fullmatch(self.call_id), "call_id breaks its rule"
        assert len(self.mobiles) == len(self.values), "values for each number"
        assert len(set(self.mobiles)) == len(self.mobiles), "a number twice in one call"


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """What became of one call.

    Attributes:
        verdict: what the caller acts on.
        carrier_message_id: the carrier's id of the message or the whole batch; None unless accepted, or when an
            accepting answer carried none (then receipts are matched by our call id).
        code: the carrier's own code, normalised to decimal digits; empty when the carrier gave none.
        detail: a sentence for operators, without numbers or texts of messages.
        failed_count: messages that an accepting answer counts as failed without naming them.
        retry_after_s: with RETRY, seconds to wait at least; None leaves it to the caller's back-off.
        unreachable: with RETRY, whether no connection could be had: the carrier has not even refused.
        part_ids: of a message that went in several parts, each with receipts of its own, the carrier's ids of all of
            them, none twice, printable and without spaces; an empty one stands for parts whose id is not known. Not
            accepted as a whole, those that the carrier took, and the empty one. Empty where one id is for all.
    """

    verdict: Verdict
    carrier_message_id: str | None = None
    code: str = ""
    detail: str = ""
    failed_count: int = 0
    retry_after_s: float | None = None
    unreachable: bool = False
    part_ids: tuple[str, ...] = ()


class ReceiptState(Enum):
    """What a receipt says about a message."""

    DELIVERED = "delivered"
    """Final: it reached the phone."""

    FAILED = "failed"
    """Final: it did not and will not."""

    PENDING = "pending"
    """Not final: another receipt may follow. Never a reason to refund."""


@dataclass(frozen=True, slots=True)
class CarrierReceipt:
    """One delivery receipt.

    Attributes:
        account_id: our name of the carrier account that it came for.
        carrier_message_id: the carrier's id; one id may cover a whole batch, so match it together with the number.
        call_id: our id of the call as the carrier gave it back; empty when it did not.
        mobile: the receiver in E.164.
        state: what it says.
        code: the carrier's own word for it, as it came, such as ``DELIVRD`` or ``MK:0001``.
        description: the carrier's explanation, shortened, free of control characters; may be empty.
        reported_at: when the network reported it, in UTC, as precise as the carrier tells (often a minute).
        notified_at: when the carrier passed it on, in UTC; None when it did not tell.
        segments: segments that the carrier bills for this message; None when it did not tell.
    """

    account_id: str
    carrier_message_id: str
    call_id: str
    mobile: str
    state: ReceiptState
    code: str
    description: str
    reported_at: datetime
    notified_at: datetime | None
    segments: int | None


@dataclass(frozen=True, slots=True)
class PulledReceipts:
    """What one pull brought. The carrier has forgotten it: whoever holds this holds the only copy.

    Attributes:
        receipts: those that could be read.
        malformed: why each of the others could not.
        more: whether the carrier may have more at this moment; False only when it said so, or brought too few.
    """

    receipts: tuple[CarrierReceipt, ...]
    malformed: tuple["MalformedReceipt", ...]
    more: bool


@dataclass(frozen=True, slots=True)
class CarrierReply:
    """A message that a person sent back (上行, MO).

    Attributes:
        account_id: our name of the carrier account that it came over.
        reply_id: what tells it from other replies of the account, as `REPLY_ID`: the carrier's id, or `reply_digest`
            of what it brought where it has none. The same reply that comes again has the same.
        mobile: who sent it, in E.164.
        destination: the number that it was sent to, extension code included, as the carrier tells it; may be empty.
        text: what was written, free of control characters but line ends, at most `REPLY_CHARACTERS_MAX`; may be empty.
        received_at: when the carrier took it, in UTC; our own time when the carrier tells none.
        part: of a text of several parts that come one by one, which this is, such as ``2/3``; empty when it is whole.
    """

    account_id: str
    reply_id: str
    mobile: str
    destination: str
    text: str
    received_at: datetime
    part: str = ""

    def __post_init__(self) -> None:
        assert REPLY_ID.fullmatch(self.reply_id), "reply_id breaks its rule"


@dataclass(frozen=True, slots=True)
class PulledReplies:
    """What one pull of replies brought. The carrier has forgotten it, as with `PulledReceipts`.

    Attributes:
        replies: those that could be read.
        malformed: why each of the others could not.
        more: whether the carrier may have more at this moment.
    """

    replies: tuple[CarrierReply, ...]
    malformed: tuple["MalformedReceipt", ...]
    more: bool


@dataclass(frozen=True, slots=True)
class CarrierLimits:
    """What one call may hold and how long it may take.

    Attributes:
        max_text_characters: characters of a text, signature included.
        max_batch: numbers in a batch.
        call_timeout_s: seconds after which every call has returned, whatever the carrier does.
        max_pull: receipts that one pull may ask for; 0: this carrier has none to pull.
        max_pull_replies: the same for replies.
        max_personalised: numbers in a call with variables; 0: this carrier has no such call, and such messages go by
            `send_single`, each filled in.
        personalised_without: characters that no value of such a call may hold; who has them goes by `send_single`.
    """

    max_text_characters: int
    max_batch: int
    call_timeout_s: float
    max_pull: int = 0
    max_pull_replies: int = 0
    max_personalised: int = 0
    personalised_without: str = ""


class CarrierError(Exception):
    """A question to the carrier that moves no message (its balance, its receipts) could not be answered.

    Attributes:
        code: the carrier's own code; empty when there was none.
    """

    def __init__(self, detail: str, code: str = "") -> None:
        super().__init__(detail)
        self.code: Final = code


class MalformedReceipt(ValueError):  # noqa: N818 - named for what it says
    """A pushed receipt breaks the carrier's protocol. Names the field and the rule, never the value.

    Attributes:
        field: the field as the carrier's protocol calls it.
        rule: what it should have been.
    """

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"malformed receipt: {field} {rule}")
        self.field: Final = field
        self.rule: Final = rule


class ReceiptNotAuthentic(Exception):  # noqa: N818 - named for what it says
    """A pushed receipt does not carry the credentials agreed with the carrier."""


class Carrier(Protocol):
    """One account at one carrier. Safe for concurrent use by the tasks of one event loop."""

    @property
    def account_id(self) -> str:
        """Our name of the account."""

    @property
    def limits(self) -> CarrierLimits:
        """What one call may hold."""

    async def send_single(self, call: SingleCall) -> CallOutcome:
        """Send one text to one number.

        Args:
            call: what to send.

        Returns:
            The outcome, within `CarrierLimits.call_timeout_s`. Nothing that the carrier or the network does raises.
        """

    async def send_batch(self, call: BatchCall) -> CallOutcome:
        """Send one text to at most `CarrierLimits.max_batch` numbers; otherwise as `send_single`."""

    async def send_personalised(self, call: PersonalisedCall) -> CallOutcome:
        """Send one text with variables to at most `CarrierLimits.max_personalised` numbers; otherwise as `send_single`.

        Receivers that the carrier left out are counted in `CallOutcome.failed_count`, said or not. Never called where
        that limit is 0.
        """

    async def balance(self) -> int:
        """Segments left at the carrier.

        Raises:
            CarrierError: the carrier did not tell.
        """

    async def pull_receipts(self, count: int) -> PulledReceipts:
        """Take receipts that wait at the carrier. It deletes what it gives: store them before asking again.

        Args:
            count: receipts wanted at most, from 1 to `CarrierLimits.max_pull`; never called where that is 0.

        Raises:
            CarrierError: with a `code` or a refusal nothing was taken; without an answer, what it held may be gone.
        """

    async def pull_replies(self, count: int) -> PulledReplies:
        """Take replies that wait at the carrier. It deletes what it gives: store them before asking again.

        Args:
            count: replies wanted at most, from 1 to `CarrierLimits.max_pull_replies`; never called where that is 0.

        Raises:
            CarrierError: as `pull_receipts`.
        """

    async def aclose(self) -> None:
        """Close the connections. Calls still under way end as UNKNOWN or RETRY."""


@runtime_checkable
class ReceivingCarrier(Carrier, Protocol):
    """A carrier whose receipts and replies come on its own connection, as with SMPP, and so to the worker that holds
    it.
    """

    async def receive(
        self,
        take: Callable[[CarrierReceipt], Awaitable[str]],
        take_reply: Callable[[CarrierReply], Awaitable[str]],
    ) -> None:
        """Hand on receipts and replies for as long as the worker runs; connections that break are made again in here.

        Called once and cancelled before `aclose`. What is sent goes over the same connections and does not wait for
        this call; receipts that come before it, or after its end, are not acknowledged.

        Args:
            take: stores one receipt and returns once it is durable; only then may it be acknowledged. Several may be
                under way at once, and should be: those are stored together. It raises when the receipt could not be
                stored (the database is away or too many wait): then the carrier is to give it again. It is quick but
                has no deadline of its own.
            take_reply: the same for one reply.
        """


def printable(text: str, characters_max: int = _DETAIL_CHARACTERS_MAX) -> str:
    """Make a carrier's words storable: no control characters (PostgreSQL takes no NUL) nor lone surrogates, not long.

    Args:
        text: as it came.
        characters_max: characters kept.

    Returns:
        The text, cleaned and cut.
    """
    cut = text[:characters_max].encode("utf-8", "replace").decode("utf-8")
    return "".join(character if character.isprintable() else " " for character in cut).strip()


def reply_text(text: str) -> str:
    """A reply's text made storable: no control characters but line ends, no lone surrogates, at most
    `REPLY_CHARACTERS_MAX` characters.
    """
    cut = text[:REPLY_CHARACTERS_MAX].encode("utf-8", "replace").decode("utf-8")
    return "".join(each if each == "\n" or each.isprintable() else " " for each in cut).strip()


def reply_digest(*parts: str, timeless: bool = False) -> str:
    """An id for a reply that the carrier gave none: of all that it brought.

    Two of the same words by the same number in the same minute are one then, where the carrier tells minutes alone.

    Args:
        parts: what it brought, in an order that stays.
        timeless: no time is among the parts; then the id begins with `TIMELESS` and tells replies apart for some
            minutes only (`smsgateway.store.replies`).
    """
    lengths = "".join(f"{len(part)}:{part}" for part in parts)
    digest = hashlib.sha256(lengths.encode("utf-8", "replace")).hexdigest()[:40]
    return TIMELESS + digest if timeless else digest


def loggable(text: str) -> str:
    """A carrier's words for logs and operators: `printable`, and what may be a telephone number masked.

    Args:
        text: as it came.

    Returns:
        The text, cleaned, cut and masked.
    """
    # Masked before it is cut: a number cut in two would no longer be known for one.
    return printable(_NUMBER_LIKE.sub(lambda match: mask_mobile(match.group()), text[: 4 * _DETAIL_CHARACTERS_MAX]))
