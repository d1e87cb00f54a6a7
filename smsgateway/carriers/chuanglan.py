"""Chuanglan 创蓝 253 over HTTP.

Source: the vendor's API document v1.2.0 and its pages on balance, push and access, see docs/carriers.md. JSON both
ways; every answer that the API itself gives has HTTP status 200 and a ``code``, 0 for accepted. The API has no
idempotent send, so the adapter never repeats a request by itself and calls everything unknown that is not surely known:

* a documented code → as `SUBMIT_CODES` says;
* other codes and no JSON with a status of success, and what contradicts itself → UNKNOWN;
* everything else as in `smsgateway.carriers.http_calls`: RETRY when no byte of the request left.

Numbers go out in the national form of 11 digits, so only mobile numbers of mainland China can be sent this way: the
digits of a foreign number may be those of a domestic one (+1 380 555 1234 and 138 0555 1234).
"""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import orjson

from smsgateway.carriers.base import (
    CALL_ID,
    BatchCall,
    CallOutcome,
    CarrierError,
    CarrierLimits,
    CarrierReceipt,
    CarrierReply,
    MalformedReceipt,
    PersonalisedCall,
    PulledReceipts,
    PulledReplies,
    ReceiptNotAuthentic,
    ReceiptState,
    SingleCall,
    Verdict,
    loggable,
    printable,
    reply_digest,
    reply_text,
)
from smsgateway.carriers.http_calls import (
    ANSWER_BYTES_MAX,
    JSON_HEADERS,
    HttpAnswer,
    HttpCalls,
    HttpLimits,
    describe,
    failed,
    json_object,
    judge_status,
)
from smsgateway.carriers.receipt_dates import reported
from smsgateway.carriers.registry import Answer, Callback, CarrierKind
from smsgateway.mobile import InvalidMobile, national_mobile, normalize_mobile

if TYPE_CHECKING:
    from smsgateway.settings import Settings

SUBMIT_CODES: Final[Mapping[str, tuple[Verdict, str]]] = {
    "0": (Verdict.ACCEPTED, "accepted"),
    "101": (Verdict.STOP_ACCOUNT, "no such account"),
    "102": (Verdict.STOP_ACCOUNT, "wrong password"),
    "103": (Verdict.RETRY, "submitted too fast"),
    "104": (Verdict.RETRY, "system busy"),
    "105": (Verdict.REFUSED, "sensitive word in the text"),
    "106": (Verdict.REFUSED, "wrong length of the text"),
    "107": (Verdict.BAD_NUMBER, "bad number"),
    # With more than one number the carrier's limit is lower than our setting, which halving the call cures.
    "108": (Verdict.BAD_NUMBER, "too many numbers or none"),
    "109": (Verdict.STOP_ACCOUNT, "no credit at the carrier"),
    "110": (Verdict.RETRY, "outside the hours of sending"),
    "113": (Verdict.REFUSED, "extension code breaks its format"),
    "114": (Verdict.REFUSED, "parameter groups break their format"),
    "116": (Verdict.REFUSED, "signature not allowed or missing"),
    "117": (Verdict.STOP_ACCOUNT, "our address is not on the carrier's list"),
    "118": (Verdict.STOP_ACCOUNT, "the account lacks the permission"),
    "119": (Verdict.STOP_ACCOUNT, "the account has expired"),
    "120": (Verdict.STOP_ACCOUNT, "daily limit against theft reached"),
    "123": (Verdict.REFUSED, "wrong type of message"),
    "124": (Verdict.REFUSED, "no white template matches"),
    "125": (Verdict.REFUSED, "matches a rejected template"),
    "127": (Verdict.REFUSED, "sendtime breaks its format"),
    "128": (Verdict.REFUSED, "wrong character encoding"),
    "129": (Verdict.REFUSED, "not JSON"),
    "130": (Verdict.REFUSED, "wrong parameters"),
}
"""Verdict and meaning of every documented submit code. A code that is not here says nothing sure: UNKNOWN."""

PENDING_STATES: Final = frozenset({"UNKNOWN", "ACCEPTD", "ENROUTE"})
DELIVERED_STATE: Final = "DELIVRD"

RECEIPT_ACKNOWLEDGED: Final = b'{"clcode":"000000"}'
"""The body that tells Chuanglan that a pushed receipt is ours now."""
RECEIPT_AGAIN: Final = b'{"clcode":"111111"}'
"""The body that asks Chuanglan to push the receipt again (three tries in all, a minute apart)."""

# China has kept one time, without summer time, since 1992; a fixed offset needs no time zone files.
CHINA_TIME: Final = timezone(timedelta(hours=8), "Asia/Shanghai")

_SUBMIT_PATHS: Final = ("/msg/send/json", "/msg/v1/send/json")
_PERSONALISED_PATH: Final = "/msg/variable/json"
_VARIABLE: Final = "{$var}"
# No escaping of the commas and semicolons between values is documented. And who knows whether braces in a value are
# looked at for variables once more, or line breaks end a group.
_PERSONALISED_WITHOUT: Final = ",;{}\n\r\t"
# Refusals that the values of one recipient may cause: sensitive word, length, parameter groups.
_OF_ONE_RECIPIENT: Final = frozenset({"105", "106", "114"})
_BALANCE_PATH: Final = "/msg/balance/json"
_PULL_PATH: Final = "/msg/pull/report"
_PULL_REPLIES_PATH: Final = "/msg/pull/mo"
PULL_COUNT_MAX: Final = 100
"""Receipts that one pull may ask for."""
# What the vendor gives to who names no count. Fewer than this, and fewer than asked for, means that no more waited.
_PULL_COUNT_DEFAULT: Final = 20
# A hundred receipts have some 30 kB; an answer cut off would be a hundred receipts lost.
_PULLED_BYTES_MAX: Final = 1_048_576
_RETRY_AFTER_S: Final[Mapping[str, float]] = {"103": 1.0, "104": 5.0}

_MESSAGE_ID: Final = re.compile(r"[!-~]{1,64}")
_STATUS: Final = re.compile(r"[!-~]{1,32}")
_TIME: Final = re.compile(r"[0-9]{10}|[0-9]{12}")
_LENGTH: Final = re.compile(r"[0-9]{1,3}")
_REPLY_TEXTS: Final = ("msg", "messageContent", "content")
_PART: Final = re.compile(r"([0-9]{1,9}),([0-9]{1,3}),([0-9]{1,3})", re.ASCII)
_DESTINATION_CHARACTERS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class ChuanglanConfig:
    """One account at Chuanglan.

    Attributes:
        account_id: our own name of the account, as it stands in records.
        base_url: address given with the account, commonly ``https://smssh1.253.com``; may hold a path before the API's.
        account: the API account (not the one of the console).
        password: the API password.
        receiver: user name that pushed receipts carry; empty (the vendor's default) when none was agreed.
        push_password: the same for their password, ``pswd``.
        path: ``/msg/send/json``, or ``/msg/v1/send/json`` for accounts on the newer version.
        connect_timeout_s: seconds to get a connection, waiting for a free one included.
        total_timeout_s: seconds for a whole call; after that its outcome is unknown.
        connections_max: connections at a time, kept open between calls.
        idle_connection_s: seconds after which an unused connection is closed. Must be shorter than the server's own
            (nginx: 75), since a call that meets a connection just closed ends as unknown.
        batch_numbers_max: numbers in one call; 1,000 by the vendor's pages, lower by some contracts.
        personalised_numbers_max: numbers in one call with variables; 1,000 by the vendor's pages, 0 for accounts that
            may not make such calls.
        text_characters_max: characters of a text; 536 = 8 x 67.
        closed_hours_delay_s: seconds to wait after code 110, outside the hours of sending.
    """

    account_id: str
    base_url: str
    account: str
    password: str = field(repr=False)
    receiver: str = ""
    push_password: str = field(default="", repr=False)
    path: str = "/msg/send/json"
    connect_timeout_s: float = 3.0
    total_timeout_s: float = 10.0
    connections_max: int = 32
    idle_connection_s: float = 15.0
    batch_numbers_max: int = 1_000
    personalised_numbers_max: int = 1_000
    text_characters_max: int = 536
    closed_hours_delay_s: float = 900.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("base_url must be http(s)://host[:port][/path]")
        if parts.username is not None:
            raise ValueError("base_url must not hold credentials")
        if not self.path.startswith("/"):
            raise ValueError(f"path must begin with a slash; known are {', '.join(_SUBMIT_PATHS)}")
        if not self.account_id or not self.account:
            raise ValueError("account_id and account must not be empty")
        if not 0 < self.connect_timeout_s <= self.total_timeout_s:
            raise ValueError("timeouts must be positive, connect_timeout_s at most total_timeout_s")
        for name in ("connections_max", "idle_connection_s", "batch_numbers_max", "text_characters_max"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        for name in ("closed_hours_delay_s", "personalised_numbers_max"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer; `fields` is None when its body is no JSON object."""

    http: HttpAnswer
    fields: Mapping[str, Any] | None

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.http.status

    @property
    def code(self) -> str | None:
        """The API's code as decimal digits, whether it came as a number or a string; None when there is none."""
        return _normalize_code(self.fields.get("code")) if self.fields is not None else None

    @property
    def explanation(self) -> str:
        """The API's own words, fit for logs."""
        words = self.fields.get("errorMsg") if self.fields is not None else None
        return loggable(words) if isinstance(words, str) else ""


class ChuanglanCarrier:
    """`Carrier` for one Chuanglan account. Connections are opened at the first call and reused."""

    def __init__(self, config: ChuanglanConfig) -> None:
        self._config = config
        self._calls = HttpCalls(
            HttpLimits(
                connect_timeout_s=config.connect_timeout_s,
                total_timeout_s=config.total_timeout_s,
                connections_max=config.connections_max,
                idle_connection_s=config.idle_connection_s,
            ),
            config.account_id,
        )
        self._limits = CarrierLimits(
            max_text_characters=config.text_characters_max,
            max_batch=config.batch_numbers_max,
            call_timeout_s=config.total_timeout_s,
            max_pull=PULL_COUNT_MAX,
            max_pull_replies=PULL_COUNT_MAX,
            max_personalised=config.personalised_numbers_max,
            personalised_without=_PERSONALISED_WITHOUT,
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
        return await self._send(call.call_id, (call.mobile,), call.text)

    async def send_batch(self, call: BatchCall) -> CallOutcome:
        """Send one text to many numbers with one call; see `Carrier.send_batch`."""
        assert len(call.mobiles) <= self._limits.max_batch, "a batch beyond the carrier's limit"
        return await self._send(call.call_id, call.mobiles, call.text)

    async def send_personalised(self, call: PersonalisedCall) -> CallOutcome:
        """Send one text with variables to many numbers with one call; see `Carrier.send_personalised`.

        Groups that break the vendor's format are dropped over there without a word, so what ``successNum`` does not
        count has failed.
        """
        assert len(call.mobiles) <= self._limits.max_personalised, "a call beyond the carrier's limit"
        groups = []
        for mobile, values in zip(call.mobiles, call.values, strict=True):
            national = national_mobile(mobile)
            if national is None:
                return _foreign_number()
            if len(call.text.render(values)) > self._limits.max_text_characters:
                # Of this one; alone it is refused, and the others are not.
                return replace(self._too_long(), verdict=Verdict.BAD_NUMBER)
            groups.append(",".join([national, *call.text.in_places(values)]))
        request = {
            "account": self._config.account,
            "password": self._config.password,
            "msg": call.text.written(_VARIABLE),
            "params": ";".join(groups),
            "report": "true",
            "uid": call.call_id,
        }
        outcome = await self._submit(_PERSONALISED_PATH, request, len(groups))
        if outcome.code in _OF_ONE_RECIPIENT and outcome.verdict is Verdict.REFUSED:
            # One recipient's values may be why; the others are not to fail with it.
            return replace(outcome, verdict=Verdict.BAD_NUMBER)
        return outcome

    async def balance(self) -> int:
        """Segments left at Chuanglan.

        Raises:
            CarrierError: no answer, a refusal, or an answer that is no number.
        """
        body = orjson.dumps({"account": self._config.account, "password": self._config.password})
        try:
            answer = await self._post(_BALANCE_PATH, body)
        except Exception as error:
            raise CarrierError(f"balance: {describe(error)}") from error
        code = answer.code
        if answer.status != 200 or answer.fields is None or code is None:
            raise CarrierError(f"balance: HTTP status {answer.status} without a code")
        if code != "0":
            meaning = SUBMIT_CODES.get(code, (None, "undocumented code"))[1]
            raise CarrierError(f"balance: {meaning} {answer.explanation}".strip(), code)
        try:
            return int(str(answer.fields.get("balance")).strip())
        except ValueError:
            raise CarrierError("balance: not a whole number", code) from None

    def parse_pushed_receipt(self, params: Mapping[str, str]) -> CarrierReceipt:
        """Read a pushed receipt (GET or form).

        Args:
            params: ``receiver, pswd, msgid, reportTime, mobile, status, notifyTime, statusDesc, uid, length``. Times
                are local to China: ``yyMMddHHmm`` or ``yyMMddHHmmss``. Empty or absent may be notifyTime, statusDesc,
                uid and length, and receiver and pswd when none were agreed.

        Raises:
            ReceiptNotAuthentic: receiver or pswd are not those of the account.
            MalformedReceipt: a field is missing or garbled.
        """
        self._authenticate(params)
        return self._receipt(params)

    async def pull_receipts(self, count: int) -> PulledReceipts:
        """Take at most `count` receipts that wait at Chuanglan; see `Carrier.pull_receipts`.

        A row has ``uid, reportTime, notifyTime, status, msgId, statusDesc, mobile``, each as in a pushed receipt; no
        ``length``. One row that is garbled costs no other.

        Raises:
            CarrierError: no answer, a refusal (``ret`` is not 0), or an answer that is none.
        """
        rows, more = await self._pull(_PULL_PATH, "receipts", count)
        receipts: list[CarrierReceipt] = []
        malformed: list[MalformedReceipt] = []
        for row in rows:
            try:
                receipts.append(self._receipt(_pushed_fields(row)))
            except MalformedReceipt as error:
                malformed.append(error)
        return PulledReceipts(tuple(receipts), tuple(malformed), more)

    async def pull_replies(self, count: int) -> PulledReplies:
        """Take at most `count` replies that wait at Chuanglan; see `Carrier.pull_replies`.

        The fields of a row differ by the version of the account: see `reply_of`. One row that is garbled costs no
        other. Raises as `pull_receipts`.
        """
        rows, more = await self._pull(_PULL_REPLIES_PATH, "replies", count)
        replies: list[CarrierReply] = []
        malformed: list[MalformedReceipt] = []
        for row in rows:
            try:
                replies.append(reply_of(_plain_fields(row), self.account_id))
            except MalformedReceipt as error:
                malformed.append(error)
        return PulledReplies(tuple(replies), tuple(malformed), more)

    def parse_pushed_reply(self, params: Mapping[str, str]) -> CarrierReply:
        """Read a pushed reply (GET or form): ``receiver, pswd`` as with receipts, the rest as in `reply_of`.

        Raises:
            ReceiptNotAuthentic: receiver or pswd are not those of the account.
            MalformedReceipt: the number or the text is missing or garbled.
        """
        self._authenticate(params)
        return reply_of(params, self.account_id)

    async def _pull(self, path: str, what: str, count: int) -> tuple[list[Any], bool]:
        """The rows of a pull, and whether more may wait. Raises `CarrierError`."""
        assert 1 <= count <= PULL_COUNT_MAX, "count breaks its rule"
        config = self._config
        body = orjson.dumps({"account": config.account, "password": config.password, "count": str(count)})
        try:
            answer = await self._post(path, body, _PULLED_BYTES_MAX)
        except Exception as error:
            raise CarrierError(f"{what}: {describe(error)}") from error
        if answer.fields is None:
            raise CarrierError(f"{what}: HTTP status {answer.status}, no JSON object")
        # The newer version calls it code, as its other answers do.
        ret = _normalize_code(answer.fields.get("ret", answer.fields.get("code")))
        if ret != "0":
            told = answer.fields.get("error")
            words = loggable(told) if isinstance(told, str) else ""
            raise CarrierError(f"{what}: HTTP status {answer.status} {words}".strip(), ret or "")
        # Rows count even beside a failing status: they are deleted over there.
        rows = answer.fields.get("result") or []
        if not isinstance(rows, list):
            raise CarrierError(f"{what}: the result is no list", ret)
        return rows, len(rows) >= min(count, _PULL_COUNT_DEFAULT)

    def _receipt(self, params: Mapping[str, str]) -> CarrierReceipt:
        message_id = _matching(params, "msgid", _MESSAGE_ID, "must be 1 to 64 printable ASCII characters")
        status = _matching(params, "status", _STATUS, "must be 1 to 32 printable ASCII characters")
        call_id = _matching(params, "uid", CALL_ID, "must be at most 64 printable ASCII characters", optional=True)
        length = _matching(params, "length", _LENGTH, "must be a number of segments", optional=True)
        try:
            mobile = normalize_mobile(params.get("mobile", ""))
        except InvalidMobile as error:
            raise MalformedReceipt("mobile", f"must be a mobile number: {error.rule}") from None
        if national_mobile(mobile) is None:
            raise MalformedReceipt("mobile", "must be a mobile number of mainland China")
        return CarrierReceipt(
            account_id=self._config.account_id,
            carrier_message_id=message_id,
            call_id=call_id,
            mobile=mobile,
            state=receipt_state(status),
            code=status,
            description=printable(params.get("statusDesc", "")),
            reported_at=reported(self._config.account_id, _china_time(params, "reportTime")),
            notified_at=_china_time(params, "notifyTime"),
            segments=int(length) if length else None,
        )

    async def aclose(self) -> None:
        """Close the connections; later calls end as RETRY without being sent."""
        await self._calls.aclose()

    def _authenticate(self, params: Mapping[str, str]) -> None:
        # Bytes, because compare_digest takes no str beyond ASCII; both are compared whatever the first one gives.
        agreed = [
            hmac.compare_digest(params.get(name, "").encode("utf-8", "replace"), expected.encode())
            for name, expected in (("receiver", self._config.receiver), ("pswd", self._config.push_password))
        ]
        if not all(agreed):
            raise ReceiptNotAuthentic("receiver or pswd do not match the account")

    async def _send(self, call_id: str, mobiles: tuple[str, ...], text: str) -> CallOutcome:
        if not 0 < len(text) <= self._limits.max_text_characters:
            return self._too_long()
        national = [national_mobile(mobile) for mobile in mobiles]
        if None in national:
            return _foreign_number()
        request = {
            "account": self._config.account,
            "password": self._config.password,
            "msg": text,
            "phone": ",".join(filter(None, national)),
            "report": "true",
            "uid": call_id,
        }
        return await self._submit(self._config.path, request, len(mobiles))

    def _too_long(self) -> CallOutcome:
        limit = self._limits.max_text_characters
        return CallOutcome(Verdict.REFUSED, detail=f"not sent: a text has 1 to {limit} characters")

    async def _submit(self, path: str, request: Mapping[str, str], numbers: int) -> CallOutcome:
        try:
            body = orjson.dumps(request)
        except TypeError:
            return CallOutcome(Verdict.REFUSED, detail="not sent: the text is not valid Unicode")
        try:
            answer = await self._post(path, body)
        except Exception as error:
            return failed(error)
        outcome = self._judge(answer, numbers)
        self._calls.note(answer.http, outcome, readable=answer.fields is not None)
        return outcome

    def _judge(self, answer: _Answer, numbers: int) -> CallOutcome:
        code = answer.code
        if code == "0" and answer.http.success:
            return _accepted(answer, numbers)
        if code is not None and code != "0" and code in SUBMIT_CODES and answer.status < 500:
            verdict, meaning = SUBMIT_CODES[code]
            detail = f"{meaning}: {answer.explanation}" if answer.explanation else meaning
            retry_after_s = self._config.closed_hours_delay_s if code == "110" else _RETRY_AFTER_S.get(code)
            return CallOutcome(verdict, code=code, detail=detail, retry_after_s=retry_after_s)
        detail = f"HTTP status {answer.status}" + (", no JSON object" if answer.fields is None else "")
        if code == "0" or answer.http.success:
            # A failing status with an accepting code contradicts itself; an undocumented code says nothing.
            return CallOutcome(Verdict.UNKNOWN, code=code or "", detail=f"{detail} {answer.explanation}".strip())
        return judge_status(answer.http, code or "", detail)

    async def _post(self, path: str, body: bytes, bytes_max: int = ANSWER_BYTES_MAX) -> _Answer:
        url = self._config.base_url.rstrip("/") + path
        answer = await self._calls.request("POST", url, headers=JSON_HEADERS, body=body, bytes_max=bytes_max)
        return _Answer(answer, json_object(answer.content))


class ChuanglanKind(CarrierKind):
    """Chuanglan among the kinds of carriers; its settings are the gateway's `SMSBILL_CHUANGLAN_*`."""

    def describe(self, settings: "Settings") -> str | None:
        """See `CarrierKind.describe`."""
        config = settings.chuanglan()
        return None if config is None else f"Chuanglan account at {config.base_url}"

    def open(self, settings: "Settings", *, connections_max: int) -> ChuanglanCarrier | None:
        """See `CarrierKind.open`."""
        config = settings.chuanglan()
        return None if config is None else ChuanglanCarrier(replace(config, connections_max=connections_max))

    def personalised_messages(self, settings: "Settings") -> int:
        """See `CarrierKind.personalised_messages`."""
        return max(1, min(settings.chuanglan_personalised_max, settings.batch_chunk_messages))

    def callback(self, settings: "Settings") -> Callback | None:
        """GET with a query or POST with a form, one receipt each; asked for again with status 503."""
        config = settings.chuanglan()
        if config is None:
            return None
        carrier, fields_max = ChuanglanCarrier(config), settings.callback_fields_max
        return Callback(
            read=lambda request: (carrier.parse_pushed_receipt(request.fields(fields_max)),),
            stored=Answer(200, RECEIPT_ACKNOWLEDGED),
            again=Answer(503, RECEIPT_AGAIN),
        )

    def reply_callback(self, settings: "Settings") -> Callback | None:
        """As receipts are pushed, and answered alike."""
        config = settings.chuanglan()
        if config is None:
            return None
        carrier, fields_max = ChuanglanCarrier(config), settings.callback_fields_max
        return Callback(
            read=lambda request: (carrier.parse_pushed_reply(request.fields(fields_max)),),
            stored=Answer(200, RECEIPT_ACKNOWLEDGED),
            again=Answer(503, RECEIPT_AGAIN),
        )


def receipt_state(status: str) -> ReceiptState:
    """What a state in a receipt means: ``DELIVRD`` alone is success, three are not final, all others are failures."""
    word = status.upper()
    if word == DELIVERED_STATE:
        return ReceiptState.DELIVERED
    return ReceiptState.PENDING if word in PENDING_STATES else ReceiptState.FAILED


def _accepted(answer: _Answer, numbers: int) -> CallOutcome:
    assert answer.fields is not None
    given = answer.fields.get("msgId")
    # Not from a float, which is what a number of 32 digits becomes.
    message_id = str(given).strip() if isinstance(given, (str, int)) else ""
    # Only the personalised interface is documented to count; were more failed than sent, the answer would be nonsense.
    # What it drops it counts as neither.
    failed = int(_normalize_code(answer.fields.get("failNum")) or 0)
    succeeded = _normalize_code(answer.fields.get("successNum"))
    if succeeded is not None:
        failed = max(failed, numbers - int(succeeded))
    return CallOutcome(
        Verdict.ACCEPTED,
        carrier_message_id=message_id if _MESSAGE_ID.fullmatch(message_id) else None,
        code="0",
        detail=answer.explanation,
        failed_count=min(failed, numbers),
    )


def _foreign_number() -> CallOutcome:
    return CallOutcome(
        Verdict.BAD_NUMBER, detail="not sent: only mobile numbers of mainland China can be sent this way"
    )


def _normalize_code(value: object) -> str | None:
    """A number or a string of digits as decimal digits without leading zeros; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value) if 0 <= value < 10**9 else None
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", value, re.ASCII):
        return str(int(value))
    return None


def reply_of(fields: Mapping[str, str], account_id: str) -> CarrierReply:
    """A reply from a pulled row or a push.

    Args:
        fields: ``mobile``; ``msg`` or ``messageContent``; ``moTime``; ``destcode`` (also written destCode), or
            ``spCode`` with ``extend``. A part of a longer text has ``isems=1`` and ``emshead`` with reference, parts
            and number. Names differ by the version of the account; a time that is none is replaced by ours.
        account_id: our name of the account.

    Raises:
        MalformedReceipt: without a number, or without any field of a text.
    """
    try:
        mobile = normalize_mobile(fields.get("mobile", ""))
    except InvalidMobile as error:
        raise MalformedReceipt("mobile", f"must be a mobile number: {error.rule}") from None
    text = next((fields[name] for name in _REPLY_TEXTS if name in fields), None)
    if text is None:
        raise MalformedReceipt("msg", "is missing")
    destination = next(filter(None, (fields.get(name, "").strip() for name in ("destcode", "destCode"))), "")
    if not destination:
        destination = next(filter(None, (fields.get(name, "").strip() for name in ("spCode", "spcode"))), "")
        extension = fields.get("extend", "").strip()
        destination += "" if destination.endswith(extension) else extension
    now, told = datetime.now(UTC), fields.get("moTime", "").strip()
    head = _PART.fullmatch(fields.get("emshead", "").strip()) if fields.get("isems", "").strip() == "1" else None
    return CarrierReply(
        account_id=account_id,
        reply_id=reply_digest(mobile, destination, told, head[0] if head else "", text, timeless=not told),
        mobile=mobile,
        destination=printable(destination, _DESTINATION_CHARACTERS_MAX),
        text=reply_text(text),
        # A clock that is ahead of ours, or a field of other digits, must not put it into the future.
        received_at=min(_reply_time(told) or now, now),
        part=f"{int(head[3])}/{int(head[2])}" if head else "",
    )


def _reply_time(told: str) -> datetime | None:
    """``yyMMddHHmm``, with seconds, with four digits of the year, with separators, or milliseconds since 1970."""
    digits = re.sub(r"[-/: T]", "", told)
    if not digits.isascii() or not digits.isdecimal():
        return None
    try:
        if len(digits) == 13:
            return datetime.fromtimestamp(int(digits) / 1_000, UTC)
        return _from_china(digits[2:] if len(digits) == 14 else digits) if len(digits) in (10, 12, 14) else None
    except (ValueError, OverflowError):
        return None


def _pushed_fields(row: object) -> dict[str, str]:
    """A pulled row under the names of a pushed receipt; see `_plain_fields`."""
    fields = _plain_fields(row)
    fields["msgid"] = fields.pop("msgId", "")
    return fields


def _plain_fields(row: object) -> dict[str, str]:
    """A pulled row with numbers as texts, what is neither as absent."""
    if not isinstance(row, dict):
        raise MalformedReceipt("result", "must hold objects")
    return {
        name: str(value) for name, value in row.items() if isinstance(value, (str, int)) and not isinstance(value, bool)
    }


def _matching(
    params: Mapping[str, str], name: str, pattern: re.Pattern[str], rule: str, *, optional: bool = False
) -> str:
    value = params.get(name, "").strip()
    if not value and optional:
        return ""
    if not pattern.fullmatch(value):
        raise MalformedReceipt(name, rule if value else "is missing")
    return value


def _china_time(params: Mapping[str, str], name: str) -> datetime | None:
    """``yyMMddHHmm`` or ``yyMMddHHmmss``; None for what is no time."""
    digits = params.get(name, "").strip()
    if not _TIME.fullmatch(digits):
        return None
    try:
        return _from_china(digits)
    except ValueError:
        return None


@lru_cache(maxsize=256)
def _from_china(digits: str) -> datetime:
    """Receipts that come together tell the same few times. Raises `ValueError` for what is no time."""
    year, *rest = (int(digits[at : at + 2]) for at in range(0, len(digits), 2))
    month, day, hour, minute, second = [*rest, 0][:5]
    return datetime(2000 + year, month, day, hour, minute, second, tzinfo=CHINA_TIME).astimezone(UTC)
