"""A carrier over HTTP that is set up by a file alone: request templates, and how answers and receipts are read.

What became of a call is judged as everywhere (`smsgateway.carriers.http_calls`), and what the file does not name says
nothing sure: a code that is not in its table, a status of success without what makes it one, a body that cannot be read
as the file says (HTML, half a document, another character set), an accepting code beside a failing status → UNKNOWN.
"""

import base64
import hmac
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, TypeVar

import orjson
import pydantic_settings
from pydantic import Field, SecretStr

from infra.errors import StartError
from infra.settings import EnvironmentSettings
from smsgateway.carriers.base import (
    CALL_ID,
    REPLY_ID,
    TIMELESS,
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
    HttpAnswer,
    HttpCalls,
    HttpLimits,
    describe,
    failed,
    judge_status,
)
from smsgateway.carriers.http_file import (
    MOBILES,
    Answers,
    CodeMeaning,
    CompiledRequest,
    HttpCarrierFile,
    Numbers,
    Pushed,
    Receipts,
    Replies,
    SendAnswer,
    check_base_url,
    check_send,
    load_file,
    zone_of,
)
from smsgateway.carriers.receipt_dates import reported
from smsgateway.carriers.registry import Answer, Callback, CarrierKind, PushedRequest
from smsgateway.carriers.templates import MOBILE, NotEncodable, Template, TemplateError
from smsgateway.mobile import InvalidMobile, national_mobile, normalize_mobile

if TYPE_CHECKING:
    from smsgateway.settings import Settings

T = TypeVar("T", CarrierReceipt, CarrierReply)

_FILE_VARIABLE: Final = "SMSBILL_HTTP_CARRIER_FILE"
_CODE_CHARACTERS_MAX: Final = 32
_DESCRIPTION_CHARACTERS_MAX: Final = 200
_MESSAGE_ID: Final = re.compile(r"[!-~]{1,64}")
_STATE: Final = re.compile(r"[!-~]{1,32}")
_SEGMENTS: Final = re.compile(r"[0-9]{1,3}")
_UNIX: Final = re.compile(r"[0-9]{1,14}")
_FAILED_COUNT: Final = re.compile(r"[0-9]{1,9}")
_DESTINATION_CHARACTERS_MAX: Final = 64
# Beyond these a clock is wrong or a field is another one; PostgreSQL and Python disagree about what is far beyond.
_YEARS: Final = range(2000, 2101)
_TIME_CHARACTERS_MAX: Final = 64
_RECEIPTS_MAX: Final = 1_000
_CONNECTIONS: Final = 8
# A number of so many digits is none of segments; some have more digits than memory.
_BALANCE_DIGITS_MAX: Final = 15


class HttpCarrierSettings(EnvironmentSettings):
    """What the file leaves to the place where it is used."""

    model_config = pydantic_settings.SettingsConfigDict(env_prefix="SMSBILL_HTTP_")

    carrier_file: Path | None = Field(
        None, description="File that sets up the carrier when SMSBILL_CARRIER is http: TOML, or JSON; see carriers.md"
    )
    url: str = Field("", description="Base address of that carrier; empty: the file's base_url")
    account: str = Field("", description="What {account} is in that file")
    secrets: dict[Annotated[str, Field(pattern="^[a-z0-9_]+$")], SecretStr] = Field(
        {}, description='What {secret.name} is in that file: a JSON object such as {"password": "…"}'
    )


@dataclass(frozen=True)
class HttpCarrierSetup:
    """The file with what its placeholders stand for. Raises `ValueError` that names the field for what cannot be."""

    file: HttpCarrierFile
    base_url: str
    account_id: str
    values: Mapping[str, str] = field(repr=False)

    def __post_init__(self) -> None:
        check_base_url(self.base_url)
        send = self.request_of(sends=True)
        check_send(send, self.file.limits)
        empty = sorted(name for name, value in self.values.items() if name.startswith("secret.") and not value)
        if empty:
            raise ValueError(f"{', '.join(empty)}: a secret must not be empty")
        if self.file.balance is not None:
            self.request_of(sends=False)
        if self.file.receipts is not None:
            _Credentials("receipts", self.file.receipts, self.values)
        if self.file.replies is not None:
            _Credentials("replies", self.file.replies, self.values)

    def request_of(self, *, sends: bool) -> CompiledRequest:
        """The templates of the sending call or of the question for the balance."""
        secrets = {name.removeprefix("secret."): value for name, value in self.values.items() if "." in name}
        if sends:
            return CompiledRequest(self.file.send, "send", secrets, sends=True)
        assert self.file.balance is not None
        return CompiledRequest(self.file.balance, "balance", secrets, sends=False)

    @classmethod
    def load(cls, account_id: str, given: Mapping[str, Any] | None = None) -> "HttpCarrierSetup":
        """From the environment, or the settings given, and the file. Raises `StartError` that names the setting or
        the field.
        """
        settings = HttpCarrierSettings.load(given)
        if settings.carrier_file is None:
            raise StartError(f"setting SMSBILL_CARRIER is http: set {_FILE_VARIABLE} to the file that describes it")
        file = load_file(settings.carrier_file, variable=_FILE_VARIABLE)
        values = {f"secret.{name}": value.get_secret_value() for name, value in settings.secrets.items()}
        try:
            return cls(file, settings.url or file.base_url, account_id, {"account": settings.account, **values})
        except ValueError as error:
            raise StartError(
                f"{settings.carrier_file}: {error}; correct it, or SMSBILL_HTTP_URL, _ACCOUNT, _SECRETS"
            ) from None


class HttpCarrier:
    """`Carrier` for one account that a file describes. Connections are opened at the first call and reused."""

    def __init__(self, setup: HttpCarrierSetup, *, connections_max: int = _CONNECTIONS) -> None:
        file = setup.file
        self._setup = setup
        self._file = file
        self._send_request = setup.request_of(sends=True)
        self._balance_request = None if file.balance is None else setup.request_of(sends=False)
        self._calls = HttpCalls(
            HttpLimits(
                connect_timeout_s=file.timeouts.connect_seconds,
                total_timeout_s=file.timeouts.call_seconds,
                connections_max=connections_max,
                idle_connection_s=file.timeouts.idle_connection_seconds,
            ),
            setup.account_id,
        )
        self._limits = CarrierLimits(
            max_text_characters=file.limits.text_characters,
            max_batch=file.limits.batch,
            call_timeout_s=file.timeouts.call_seconds,
        )

    @property
    def account_id(self) -> str:
        """Our name of the account."""
        return self._setup.account_id

    @property
    def limits(self) -> CarrierLimits:
        """What one call may hold and how long it may take; receipts cannot be pulled."""
        return self._limits

    async def send_single(self, call: SingleCall) -> CallOutcome:
        """Send one text to one number; see `Carrier.send_single`."""
        return await self._send(call.call_id, (call.mobile,), call.text)

    async def send_batch(self, call: BatchCall) -> CallOutcome:
        """Send one text to many numbers with one call; see `Carrier.send_batch`."""
        assert len(call.mobiles) <= self._limits.max_batch, "a batch beyond the carrier's limit"
        return await self._send(call.call_id, call.mobiles, call.text)

    async def send_personalised(self, call: PersonalisedCall) -> CallOutcome:
        """Never called: `CarrierLimits.max_personalised` is 0."""
        return CallOutcome(Verdict.REFUSED, detail="not sent: this carrier has no call with variables")

    async def balance(self) -> int:
        """Segments left at the carrier; with a price of a segment, as many as the money pays.

        Raises:
            CarrierError: the file names no such call, no answer, a refusal, or an answer that is no number.
        """
        balance = self._file.balance
        if balance is None or self._balance_request is None:
            raise CarrierError("balance: the file names no call for it")
        try:
            answer = await self._request(self._balance_request, self._setup.values, ())
        except Exception as error:
            raise CarrierError(f"balance: {describe(error)}") from error
        read = _Body(answer, balance.answer.format, balance.answer.charset)
        code = read.text(balance.answer.code)
        if not answer.success or (balance.answer.good_codes and code not in balance.answer.good_codes):
            raise CarrierError(f"balance: HTTP status {answer.status}", _told_code(code))
        try:
            value = Decimal(read.decimal(balance.answer.value) or "")
            if value.is_finite() and value.adjusted() > _BALANCE_DIGITS_MAX:
                raise ValueError("no balance")
            if balance.answer.price is not None:
                value /= balance.answer.price
            # A debt is no segments; what is no finite number has no whole part.
            return max(0, int(value))
        except (InvalidOperation, ValueError, OverflowError):
            raise CarrierError("balance: not a number", _told_code(code)) from None

    async def pull_receipts(self, count: int) -> PulledReceipts:
        """Never called: `CarrierLimits.max_pull` is 0."""
        raise CarrierError(f"receipts: {count} wanted, none can be pulled")

    async def pull_replies(self, count: int) -> PulledReplies:
        """Never called: `CarrierLimits.max_pull_replies` is 0."""
        raise CarrierError(f"replies: {count} wanted, none can be pulled")

    async def aclose(self) -> None:
        """Close the connections; later calls end as RETRY without being sent."""
        await self._calls.aclose()

    async def _send(self, call_id: str, mobiles: tuple[str, ...], text: str) -> CallOutcome:
        limits = self._file.limits
        if not 0 < len(text) <= limits.text_characters:
            return CallOutcome(Verdict.REFUSED, detail=f"not sent: a text has 1 to {limits.text_characters} characters")
        spelled = tuple(filter(None, (_spelled(mobile, limits.numbers) for mobile in mobiles)))
        if len(spelled) < len(mobiles):
            return CallOutcome(
                Verdict.BAD_NUMBER, detail="not sent: only mobile numbers of mainland China can be sent this way"
            )
        values = {
            **self._setup.values,
            "call_id": call_id,
            "text": text,
            MOBILE: spelled[0],
            MOBILES: limits.separator.join(spelled),
        }
        try:
            answer = await self._request(self._send_request, values, spelled)
        except NotEncodable as error:
            return CallOutcome(Verdict.REFUSED, detail=f"not sent: {error}")
        except Exception as error:
            return failed(error)
        told = self._file.send.answer
        body = _Body(answer, told.format, told.charset)
        outcome = _judge(answer, body, told, len(mobiles))
        self._calls.note(answer, outcome, readable=body.readable)
        return outcome

    async def _request(
        self, request: CompiledRequest, values: Mapping[str, str], mobiles: tuple[str, ...]
    ) -> HttpAnswer:
        url = self._setup.base_url.rstrip("/") + request.path.fill_path(values)
        query = request.query.fill(values)
        headers = {name: template.fill_header(values) for name, template in request.headers.items()}
        body: bytes | None = None
        types: dict[str, str] = {}
        if request.json is not None:
            body = request.json.fill(values, mobiles)
            types["Content-Type"] = "application/json; charset=utf-8"
        elif request.form is not None:
            body = request.form.fill(values).encode("ascii")
            types["Content-Type"] = f"application/x-www-form-urlencoded; charset={request.charset}"
        if request.basic_auth is not None:
            user, password = (template.fill(values) for template in request.basic_auth)
            types["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        given = {name.lower() for name in headers}
        headers |= {name: value for name, value in types.items() if name.lower() not in given}
        if query:
            url += f"?{query}"
        return await self._calls.request(request.method, url, headers=headers, body=body)


class HttpCarrierKind(CarrierKind):
    """The generic carrier among the kinds; its settings are `HttpCarrierSettings` and their file."""

    def describe(self, settings: "Settings") -> str | None:
        """See `CarrierKind.describe`; whoever chooses this kind has to set it up."""
        setup = HttpCarrierSetup.load(settings.carrier_account, settings.carrier_given)
        return f"{loggable(setup.file.name)} over HTTP at {setup.base_url}, as {settings.carrier_account}"

    def open(self, settings: "Settings", *, connections_max: int) -> HttpCarrier:
        """See `CarrierKind.open`."""
        return HttpCarrier(
            HttpCarrierSetup.load(settings.carrier_account, settings.carrier_given), connections_max=connections_max
        )

    def callback(self, settings: "Settings") -> Callback | None:
        """As the file says; None when it says nothing of receipts."""
        setup = HttpCarrierSetup.load(settings.carrier_account, settings.carrier_given)
        receipts = setup.file.receipts
        return None if receipts is None else http_callback(setup, receipts, settings.callback_fields_max)

    def reply_callback(self, settings: "Settings") -> Callback | None:
        """As the file says; None when it says nothing of replies."""
        setup = HttpCarrierSetup.load(settings.carrier_account)
        replies = setup.file.replies
        return None if replies is None else http_callback(setup, replies, settings.callback_fields_max)


def http_callback(setup: HttpCarrierSetup, pushed: Receipts | Replies, fields_max: int) -> Callback:
    """How receipts or replies are pushed by what the file says."""
    answers: Answers = pushed.answers
    reader: ReceiptReader | ReplyReader
    if isinstance(pushed, Receipts):
        reader = ReceiptReader(setup, pushed, fields_max)
    else:
        reader = ReplyReader(setup, pushed, fields_max)
    stored, again, refused = (
        None if each is None else Answer(each.status, each.body.encode(), each.content_type)
        for each in (answers.stored, answers.again, answers.refused)
    )
    assert stored is not None
    assert again is not None
    return Callback(reader.read, stored, again, frozenset(pushed.methods), refused)


class PushReader(ABC, Generic[T]):
    """Reads what the carrier pushes.

    Parameters: `name` of the part of the file; `pushed` that part; `places` where its values stand.
    """

    def __init__(self, setup: HttpCarrierSetup, name: str, pushed: Pushed, places: object, fields_max: int) -> None:
        self._account_id = setup.account_id
        self._pushed = pushed
        self._places = places
        self._fields_max = fields_max
        self._credentials = _Credentials(name, pushed, setup.values)
        # Only national numbers may come without a country code.
        numbers = pushed.numbers or setup.file.limits.numbers
        self._region = "CN" if numbers == "national" else ""

    @abstractmethod
    def _one(self, found: object) -> T:
        """One receipt or reply. Raises `MalformedReceipt`."""

    def read(self, request: PushedRequest) -> Sequence[T | MalformedReceipt]:
        """The receipts or replies of a request; see `Callback.read`."""
        document: Any = None
        malformed: MalformedReceipt | None = None
        try:
            fields = request.fields(self._fields_max) if self._pushed.format == "fields" else {}
            if self._pushed.format == "json":
                # Of a JSON push the query is looked at for credentials alone.
                fields = PushedRequest("GET", request.query, (), b"").fields(self._fields_max)
                document = orjson.loads(request.body)
        except orjson.JSONDecodeError:
            malformed = MalformedReceipt("body", "must be JSON")
        except MalformedReceipt as error:
            fields, malformed = {}, error
        if isinstance(document, dict):
            fields = {name: value for name, value in document.items() if isinstance(value, str)} | fields
        # Judged before anything else, also of what cannot be read: strangers learn nothing.
        self._credentials.check(request, fields)
        if malformed is not None:
            raise malformed
        return [self._read_one(each) for each in self._found(document if self._pushed.format == "json" else fields)]

    def _found(self, document: object) -> list[object]:
        if self._pushed.list_at is None:
            found = document if isinstance(document, list) else [document]
        else:
            at = at_path(document, self._pushed.list_at)
            if not isinstance(at, list):
                raise MalformedReceipt("list", "must be a list")
            found = at
        if len(found) > _RECEIPTS_MAX:
            raise MalformedReceipt("list", f"must hold at most {_RECEIPTS_MAX}")
        return found

    def _read_one(self, found: object) -> T | MalformedReceipt:
        try:
            return self._one(found)
        except MalformedReceipt as error:
            return error

    def _text(self, found: object, name: str) -> str:
        path: tuple[str, ...] | None = getattr(self._places, name)
        value = None if path is None else at_path(found, path)
        if isinstance(value, (dict, list, bool, float)):
            raise MalformedReceipt(name, "must be a text or a whole number")
        return "" if value is None else str(value).strip()

    def _mobile(self, found: object) -> str:
        try:
            return normalize_mobile(self._text(found, "mobile"), self._region)
        except InvalidMobile as error:
            raise MalformedReceipt("mobile", f"must be a mobile number: {error.rule}") from None

    def _matching(self, found: object, name: str, pattern: re.Pattern[str], rule: str) -> str:
        value = self._text(found, name)
        if value and not pattern.fullmatch(value):
            raise MalformedReceipt(name, rule)
        return value

    def _time(self, found: object, name: str) -> datetime | None:
        """None for what is no time."""
        try:
            value = self._text(found, name)
        except MalformedReceipt:
            return None
        times = self._pushed.times
        return _moment(value, times.formats, times.zone) if 0 < len(value) <= _TIME_CHARACTERS_MAX else None


class ReceiptReader(PushReader[CarrierReceipt]):
    """Reads receipts."""

    def __init__(self, setup: HttpCarrierSetup, receipts: Receipts, fields_max: int) -> None:
        super().__init__(setup, "receipts", receipts, receipts.fields, fields_max)
        self._receipts = receipts

    def _one(self, found: object) -> CarrierReceipt:
        told, names = self._receipts, self._receipts.fields
        message_id = self._matching(found, "message_id", _MESSAGE_ID, "must be 1 to 64 printable ASCII characters")
        call_id = self._matching(found, "call_id", CALL_ID, "must be at most 64 printable ASCII characters")
        if not message_id and not call_id:
            raise MalformedReceipt("message_id" if names.message_id is not None else "call_id", "is missing")
        state = self._matching(found, "state", _STATE, "must be 1 to 32 printable ASCII characters")
        if not state:
            raise MalformedReceipt("state", "is missing")
        code = self._matching(found, "code", _STATE, "must be at most 32 printable ASCII characters")
        segments = self._matching(found, "segments", _SEGMENTS, "must be a number of segments")
        return CarrierReceipt(
            account_id=self._account_id,
            carrier_message_id=message_id,
            call_id=call_id,
            mobile=self._mobile(found),
            state=ReceiptState(told.states.get(state, told.other_states)),
            code=code or state,
            description=printable(self._text(found, "description"), _DESCRIPTION_CHARACTERS_MAX),
            reported_at=self._reported(found),
            notified_at=self._time(found, "notified_at"),
            segments=int(segments) if segments else None,
        )

    def _reported(self, found: object) -> datetime:
        if self._receipts.fields.reported_at is None:
            return datetime.now(UTC)
        return reported(self._account_id, self._time(found, "reported_at"))


class ReplyReader(PushReader[CarrierReply]):
    """Reads replies."""

    def __init__(self, setup: HttpCarrierSetup, replies: Replies, fields_max: int) -> None:
        super().__init__(setup, "replies", replies, replies.fields, fields_max)
        self._replies = replies

    def _one(self, found: object) -> CarrierReply:
        mobile, now = self._mobile(found), datetime.now(UTC)
        if at_path(found, self._replies.fields.text) is None:
            raise MalformedReceipt("text", "is missing")
        text, told_at = self._text(found, "text"), self._text(found, "received_at")
        destination = printable(self._text(found, "destination"), _DESTINATION_CHARACTERS_MAX)
        reply_id = self._matching(found, "reply_id", REPLY_ID, "must be at most 64 printable ASCII characters")
        digest = reply_digest(mobile, destination, told_at, text, timeless=not told_at)
        return CarrierReply(
            account_id=self._account_id,
            # One that begins as those of ours would be forgotten as they are.
            reply_id=reply_id if reply_id and not reply_id.startswith(TIMELESS) else digest,
            mobile=mobile,
            destination=destination,
            text=reply_text(text),
            received_at=min(self._time(found, "received_at") or now, now),
        )


class _Credentials:
    """What a push must carry. Raises `ValueError` for what would prove nothing.

    Parameters: `part` of the file that it stands in.
    """

    def __init__(self, part: str, pushed: Pushed, values: Mapping[str, str]) -> None:
        auth = pushed.auth
        known = frozenset(values)
        self._fields = {
            name: _expected(f"{part}.auth.fields.{name}", text, known, values) for name, text in auth.fields.items()
        }
        self._headers = {
            name.lower(): _expected(f"{part}.auth.headers.{name}", text, known, values)
            for name, text in auth.headers.items()
        }
        self._hmac = auth.hmac
        self._key = b""
        if auth.hmac is not None:
            if f"secret.{auth.hmac.secret}" not in values:
                raise ValueError(f"{part}.auth.hmac.secret: there is no secret {auth.hmac.secret!r}")
            self._key = values[f"secret.{auth.hmac.secret}"].encode()

    def check(self, request: PushedRequest, fields: Mapping[str, str]) -> None:
        """Raises `ReceiptNotAuthentic`. All is compared, in constant time, whatever the first one gives."""
        agreed = [_same(fields.get(name, ""), expected) for name, expected in self._fields.items()]
        agreed += [_same(request.header(name), expected) for name, expected in self._headers.items()]
        if self._hmac is not None:
            message = request.query if request.method == "GET" else request.body
            digest = hmac.new(self._key, message, self._hmac.algorithm)
            hexadecimal = self._hmac.encoding == "hex"
            told = digest.hexdigest() if hexadecimal else base64.b64encode(digest.digest()).decode("ascii")
            given = request.header(self._hmac.header.lower()).strip()
            expected = self._hmac.prefix + told
            agreed.append(_same(given.lower(), expected.lower()) if hexadecimal else _same(given, expected))
        if not all(agreed):
            raise ReceiptNotAuthentic("the credentials of the push do not match the account")


def _expected(where: str, text: str, known: frozenset[str], values: Mapping[str, str]) -> str:
    try:
        value = Template(text, known).fill(values)
    except TemplateError as error:
        raise ValueError(f"{where}: {error}") from None
    if not value:
        raise ValueError(f"{where}: is empty, so anybody could push receipts")
    return value


def _same(given: str, expected: str) -> bool:
    # Bytes, because compare_digest takes no str beyond ASCII.
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode("utf-8", "replace"))


class _Body:
    """An answer's body as the file says it is to be read; what cannot be read that way holds nothing."""

    def __init__(self, answer: HttpAnswer, form: str, charset: str) -> None:
        self.readable = False
        self._document: object = None
        if answer.content is None:
            return
        try:
            content = answer.content.decode(charset)
            self._document = orjson.loads(content) if form == "json" else content
        except (UnicodeDecodeError, orjson.JSONDecodeError):
            return
        self.readable = form == "text" or isinstance(self._document, (dict, list))

    def text(self, place: str | tuple[str, ...] | None) -> str | None:
        """What stands at a path, or in the group of a pattern; None when there is nothing that is a text or number."""
        if place is None or not self.readable:
            return None
        if isinstance(place, str):
            assert isinstance(self._document, str)
            match = re.search(place, self._document)
            return None if match is None or match[1] is None else match[1].strip()
        value = at_path(self._document, place)
        if isinstance(value, bool):
            return "true" if value else "false"
        # Not a float, which is what a number of 32 digits becomes.
        return str(value).strip() if isinstance(value, (str, int)) else None

    def decimal(self, place: str | tuple[str, ...] | None) -> str | None:
        """The same, where a float is as good."""
        value = None if not isinstance(place, tuple) else at_path(self._document, place)
        return repr(value) if isinstance(value, float) else self.text(place)


def _judge(answer: HttpAnswer, body: _Body, told: SendAnswer, numbers: int) -> CallOutcome:
    code = body.text(told.code)
    meaning = told.codes.get(code) if code is not None else None
    explanation = loggable(body.text(told.explanation) or "")
    detail = f"HTTP status {answer.status}" + ("" if body.readable else f", no {told.format} as agreed")
    unclear = CallOutcome(Verdict.UNKNOWN, code=_told_code(code), detail=f"{detail} {explanation}".strip())
    if meaning is not None and meaning.value is Verdict.ACCEPTED:
        # A failing status with an accepting code contradicts itself.
        return _accepted(body, told, numbers, code or "", explanation) if answer.success else unclear
    if meaning is not None and answer.status < 500:
        return _refused(meaning, _told_code(code), explanation, answer)
    by_status = told.statuses.get(answer.status)
    if by_status is not None and by_status.value is Verdict.ACCEPTED:
        # No code decides: what has no id says nothing, whatever its status.
        accepted = _accepted(body, told, numbers, "", explanation)
        return accepted if accepted.carrier_message_id is not None else unclear
    if by_status is not None and code is None:
        return _refused(by_status, "", explanation or detail, answer)
    return unclear if answer.success else judge_status(answer, _told_code(code), detail)


def _refused(meaning: CodeMeaning, code: str, explanation: str, answer: HttpAnswer) -> CallOutcome:
    detail = ": ".join(filter(None, (meaning.meaning, explanation)))
    wait = meaning.after_seconds if meaning.after_seconds is not None else answer.retry_after_s
    retry = meaning.value is Verdict.RETRY
    return CallOutcome(meaning.value, code=code, detail=detail, retry_after_s=wait if retry else None)


def _accepted(body: _Body, told: SendAnswer, numbers: int, code: str, explanation: str) -> CallOutcome:
    message_id = body.text(told.message_id) or ""
    failed_count = body.text(told.failed_count) or ""
    return CallOutcome(
        Verdict.ACCEPTED,
        carrier_message_id=message_id if _MESSAGE_ID.fullmatch(message_id) else None,
        code=_told_code(code),
        detail=explanation,
        # Were more failed than sent, the answer would be nonsense.
        failed_count=min(int(failed_count), numbers) if _FAILED_COUNT.fullmatch(failed_count) else 0,
    )


def _told_code(code: str | None) -> str:
    return printable(code or "", _CODE_CHARACTERS_MAX)


def at_path(document: object, path: tuple[str, ...]) -> object:
    """What stands in a document at a path, whose names are indexes in a list; None when there is nothing."""
    for name in path:
        if isinstance(document, dict):
            document = document.get(name)
        elif isinstance(document, list) and re.fullmatch("[0-9]{1,4}", name) and int(name) < len(document):
            document = document[int(name)]
        else:
            return None
    return document


def _spelled(mobile: str, numbers: Numbers) -> str | None:
    if numbers == "national":
        return national_mobile(mobile)
    return mobile if numbers == "e164" else mobile.removeprefix("+")


@lru_cache(maxsize=256)
def _moment(value: str, formats: tuple[str, ...], zone: str) -> datetime | None:
    """Receipts that come together tell the same few times."""
    return next((moment for form in formats if (moment := _read_time(value, form, zone)) is not None), None)


def _read_time(value: str, form: str, zone: str) -> datetime | None:
    try:
        if form in ("unix", "unix_ms"):
            if not _UNIX.fullmatch(value):
                return None
            moment = datetime.fromtimestamp(int(value) / (1_000 if form == "unix_ms" else 1), UTC)
        else:
            moment = datetime.fromisoformat(value) if form == "iso" else datetime.strptime(value, form)
            # strptime takes one digit for two, so twelve digits for ten others.
            if form != "iso" and moment.strftime(form) != value:
                return None
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=zone_of(zone))
            moment = moment.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment if moment.year in _YEARS else None
