"""The file that sets up the generic HTTP carrier: what it may say, with every rule checked at the start.

docs/carriers.md explains it by example; examples/http-carrier.toml is a whole one.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import orjson
import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from infra.errors import StartError
from smsgateway.carriers.base import Verdict
from smsgateway.carriers.templates import MOBILE, Fields, JsonBody, Template, TemplateError

Charset = Literal["utf-8", "gbk", "gb18030", "latin-1"]
Format = Literal["json", "text"]
Numbers = Literal["national", "e164", "digits"]
VerdictName = Literal["accepted", "refused", "retry", "stop_account", "bad_number", "unknown"]
StateName = Literal["delivered", "failed", "pending"]

FILE_BYTES_MAX: Final = 262_144
MOBILES: Final = "mobiles"
_CALL_NAMES: Final = frozenset({MOBILE, MOBILES, "text", "call_id"})
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# Those that are made here: a second one would let a server read another request than was sent.
_OWN_HEADERS: Final = frozenset({"content-length", "transfer-encoding", "connection", "host"})
_OFFSET: Final = re.compile(r"([+-])([0-9]{2}):([0-9]{2})")
_RETRY_SECONDS_MAX: Final = 86_400


def _path(value: object) -> tuple[str, ...]:
    """``data.0.code`` or ``["data", "0", "co.de"]``; empty: the document itself."""
    names = value.split(".") if isinstance(value, str) and value else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("must be names divided by dots, or a list of names")
    return tuple(names)


def _pattern(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        pattern = re.compile(value)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    if pattern.groups != 1:
        raise ValueError("must have one group: what is looked for")
    return value


def _zone(value: str) -> str:
    zone_of(value)
    return value


def zone_of(name: str) -> tzinfo:
    """A zone from ``+08:00`` or ``Asia/Shanghai``. Raises `ValueError`."""
    match = _OFFSET.fullmatch(name)
    try:
        if match is not None:
            offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
            return timezone(-offset if match[1] == "-" else offset)
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise ValueError("must be an offset such as +08:00 or a name such as Asia/Shanghai") from None


def _time_format(value: str) -> str:
    if value in ("unix", "unix_ms", "iso"):
        return value
    moment = datetime(2026, 12, 31, 23, 58, 59)
    try:
        told = moment.strftime(value)
        read = datetime.strptime(told, value)
    except ValueError as error:
        raise ValueError(f"is no format of a time: {error}") from None
    if read.replace(minute=0, second=0) != moment.replace(minute=0, second=0):
        raise ValueError("must tell year, month, day and hour at least; unix, unix_ms and iso are known as well")
    return value


Path_ = Annotated[tuple[str, ...], BeforeValidator(_path)]
Pattern = Annotated[str, BeforeValidator(_pattern)]
Seconds = Annotated[float, Field(gt=0, le=300)]


class _Part(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Timeouts(_Part):
    """Seconds; see `HttpLimits`."""

    connect_seconds: Seconds = 3
    call_seconds: Seconds = 10
    idle_connection_seconds: Seconds = 15

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.connect_seconds > self.call_seconds:
            raise ValueError("connect_seconds must be at most call_seconds")
        return self


class Request(_Part):
    """A request with placeholders: at most one of form and json."""

    method: Literal["GET", "POST", "PUT"] = "POST"
    path: str = Field("", pattern="^(/|$)")
    headers: dict[str, str] = {}
    basic_auth: tuple[str, str] | None = None
    query: dict[str, str] = {}
    form: dict[str, str] | None = None
    json_body: dict[str, Any] | None = Field(None, alias="json")
    charset: Charset = "utf-8"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.form is not None and self.json_body is not None:
            raise ValueError("has form and json; only one of them can be sent")
        if self.method == "GET" and (self.form is not None or self.json_body is not None):
            raise ValueError("is a GET, which has no form and no json")
        for name in self.headers:
            if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
                raise ValueError(f"headers: {name!r} is no header that can be set")
        return self


class Extraction(_Part):
    """Where a value stands in an answer: paths of a JSON document, or patterns with one group in a text."""

    format: Format = "json"
    charset: Charset = "utf-8"


def _place(value: object, info: pydantic.ValidationInfo) -> object:
    if value is None:
        return None
    return _pattern(value) if info.data.get("format") == "text" else _path(value)


Place = Annotated[str | tuple[str, ...] | None, BeforeValidator(_place)]


class CodeMeaning(_Part):
    """What a code means: a verdict, and with retry how long to wait at least."""

    verdict: VerdictName
    after_seconds: float | None = Field(None, ge=0, le=_RETRY_SECONDS_MAX)
    meaning: str = Field("", max_length=200)

    @property
    def value(self) -> Verdict:
        """The verdict."""
        return Verdict(self.verdict)


def _meaning(value: object) -> object:
    return {"verdict": value} if isinstance(value, str) else value


Meaning = Annotated[CodeMeaning, BeforeValidator(_meaning)]


class SendAnswer(Extraction):
    """How an answer to a sending call is read. Without a `code` the status decides, and an id must be there."""

    code: Place = None
    message_id: Place = None
    failed_count: Place = None
    explanation: Place = None
    codes: dict[str, Meaning] = {}
    statuses: dict[int, Meaning] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.code is not None and not any(each.value is Verdict.ACCEPTED for each in self.codes.values()):
            raise ValueError("codes must hold one that is accepted")
        if self.code is None and self.codes:
            raise ValueError("codes are of no use without code, the place where it stands")
        for status, meaning in self.statuses.items():
            if not 200 <= status <= 599:
                raise ValueError(f"statuses: {status} is no HTTP status of an answer")
            if meaning.value is Verdict.ACCEPTED and (self.code is not None or status > 299):
                raise ValueError(f"statuses: {status} cannot be accepted; with a code that decides, else 200 to 299 do")
        if self.code is None:
            if not any(each.value is Verdict.ACCEPTED for each in self.statuses.values()):
                raise ValueError("must have code with codes, or a status that is accepted")
            if self.message_id is None:
                raise ValueError("must have message_id where no code tells what an answer says")
        return self


class Send(Request):
    """The call that sends. With `{mobile}` alone each call has one number."""

    answer: SendAnswer


class BalanceAnswer(Extraction):
    """Where the balance stands, and which code says that the answer is one."""

    value: Place
    code: Place = None
    good_codes: tuple[str, ...] = ()
    price: Decimal | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.value is None:
            raise ValueError("value must be there")
        if (self.code is None) != (not self.good_codes):
            raise ValueError("code and good_codes belong together")
        return self


class Balance(Request):
    """The call that asks for the balance: segments, or money where an answer has a price of a segment."""

    answer: BalanceAnswer


class Limits(_Part):
    """What one call may hold, and how numbers are spelled: 13800138000, +8613800138000 or 8613800138000."""

    text_characters: int = Field(536, ge=1, le=10_000)
    batch: int = Field(1, ge=1, le=10_000)
    separator: str = Field(",", min_length=1, max_length=8)
    numbers: Numbers = "national"


class Hmac(_Part):
    """A signature of the body (with GET: of the query as it came)."""

    header: str = Field(min_length=1, max_length=64)
    secret: str = Field(pattern="^[a-z0-9_]+$")
    algorithm: Literal["sha256", "sha512", "sha1", "md5"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = Field("", max_length=32)


class Auth(_Part):
    """What proves that a push comes from the carrier: all that stands here must be right."""

    fields: dict[str, str] = {}
    headers: dict[str, str] = {}
    hmac: Hmac | None = None
    none: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.none == bool(self.fields or self.headers or self.hmac):
            raise ValueError("must have fields, headers or hmac; or none = true, then anybody can push receipts")
        return self


class ReceiptFields(_Part):
    """Where the parts of a receipt stand: names of fields, or paths within each receipt."""

    mobile: Path_
    state: Path_
    message_id: Path_ | None = None
    call_id: Path_ | None = None
    code: Path_ | None = None
    description: Path_ | None = None
    reported_at: Path_ | None = None
    notified_at: Path_ | None = None
    segments: Path_ | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.message_id is None and self.call_id is None:
            raise ValueError("must have message_id or call_id; without both no receipt finds its message")
        return self


class Times(_Part):
    """How times are told, and in which zone when they do not say it themselves."""

    formats: tuple[Annotated[str, AfterValidator(_time_format)], ...] = Field(("iso",), min_length=1, max_length=8)
    zone: Annotated[str, AfterValidator(_zone)] = "+00:00"


class AnswerBody(_Part):
    """What the carrier hears."""

    status: int = Field(200, ge=200, le=599)
    body: str = Field("", max_length=4_096)
    content_type: str = Field("text/plain; charset=utf-8", pattern=r"^[\x20-\x7e]{1,100}$")


class Answers(_Part):
    """What the carrier hears; without `refused`: 400, 403 or 413 with the field and its rule."""

    stored: AnswerBody = AnswerBody(body="ok")
    again: AnswerBody = AnswerBody(status=503, body="again")
    refused: AnswerBody | None = None


class Pushed(_Part):
    """How something is pushed."""

    methods: frozenset[Literal["GET", "POST"]] = Field(frozenset({"GET", "POST"}), min_length=1)
    format: Literal["fields", "json"] = "fields"
    list_at: Path_ | None = Field(None, alias="list")
    auth: Auth
    times: Times = Times()
    numbers: Numbers | None = None
    answers: Answers = Answers()

    def check_fields(self, fields: _Part) -> None:
        """Raises `ValueError` for places that what is pushed cannot have."""
        if self.format == "fields":
            if self.list_at is not None:
                raise ValueError("list: only a JSON document holds a list")
            for name, path in fields:
                if path is not None and len(path) != 1:
                    raise ValueError(f"fields.{name}: must be one name; give one with dots as a list")
        elif "GET" in self.methods:
            raise ValueError('methods: JSON comes with POST, so set methods = ["POST"]')


class Receipts(Pushed):
    """How receipts are pushed."""

    fields: ReceiptFields
    states: dict[str, StateName] = Field(min_length=1)
    other_states: StateName = "pending"

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.check_fields(self.fields)
        if "delivered" not in self.states.values():
            raise ValueError("states must hold one that is delivered")
        return self


class ReplyFields(_Part):
    """Where the parts of a reply stand: names of fields, or paths within each reply."""

    mobile: Path_
    text: Path_
    reply_id: Path_ | None = None
    destination: Path_ | None = None
    received_at: Path_ | None = None


class Replies(Pushed):
    """How replies are pushed."""

    fields: ReplyFields

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.check_fields(self.fields)
        return self


class HttpCarrierFile(_Part):
    """The whole file."""

    name: str = Field(min_length=1, max_length=64)
    base_url: str
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    send: Send
    balance: Balance | None = None
    receipts: Receipts | None = None
    replies: Replies | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_base_url(self.base_url)
        return self


def check_base_url(url: str) -> None:
    """Raises `ValueError` for an address to which no path could be added."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("base_url must be http(s)://host[:port][/path]")
    if parts.username is not None:
        raise ValueError("base_url must not hold credentials")


class CompiledRequest:
    """A `Request` with its templates read. Raises `ValueError` that names the field for a template with an error."""

    def __init__(self, request: Request, where: str, secrets: Mapping[str, str], *, sends: bool) -> None:
        settled = frozenset({"account", *(f"secret.{name}" for name in secrets)})
        known = settled | _CALL_NAMES if sends else settled
        self.method = request.method
        self.charset = request.charset
        with _named(f"{where}.path"):
            self.path = Template(request.path, known - {"text"})
        self.headers: dict[str, Template] = {}
        for name, text in request.headers.items():
            with _named(f"{where}.headers.{name}"):
                # A text has line ends and letters that no header holds.
                self.headers[name] = Template(text, known - {"text"})
        self.basic_auth: tuple[Template, Template] | None = None
        if request.basic_auth is not None:
            with _named(f"{where}.basic_auth"):
                user, password = request.basic_auth
                self.basic_auth = (Template(user, settled), Template(password, settled))
        with _named(f"{where}.query"):
            self.query = Fields(request.query, known, request.charset)
        with _named(f"{where}.form"):
            self.form = None if request.form is None else Fields(request.form, known, request.charset)
        with _named(f"{where}.json"):
            self.json = None if request.json_body is None else JsonBody(request.json_body, known)

    @property
    def names(self) -> frozenset[str]:
        """The placeholders in it."""
        parts = [self.path.names, self.query.names, *(template.names for template in self.headers.values())]
        parts += [body.names for body in (self.form, self.json) if body is not None]
        return frozenset().union(*parts)

    @property
    def repeats(self) -> bool:
        """Whether a list in it is as long as the call has numbers."""
        return self.json is not None and self.json.repeats


class _named:  # noqa: N801 - a context manager
    """Says which field a `TemplateError` is about."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, TemplateError):
            raise ValueError(f"{self._where}: {error}") from None


def check_send(request: CompiledRequest, limits: Limits) -> None:
    """Raises `ValueError` when numbers or the text are missing, or a batch could not be named."""
    names = request.names
    if "text" not in names:
        raise ValueError("send: has no {text}")
    if not (names & {MOBILE, MOBILES}) and not request.repeats:
        raise ValueError("send: has no {mobile} and no {mobiles}")
    if limits.batch > 1 and MOBILE in names:
        raise ValueError("send: has {mobile} outside a list, so limits.batch must be 1; {mobiles} are all of a call")


def load_file(path: Path, *, variable: str) -> HttpCarrierFile:
    """Read and check a file, TOML or (ending in .json) JSON.

    Raises `StartError` that names `variable` or the field, and the rule that it breaks.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StartError(f"setting {variable}: {path}: {error.strerror}") from None
    if len(content) > FILE_BYTES_MAX:
        raise StartError(f"setting {variable}: {path} has more than {FILE_BYTES_MAX} bytes")
    try:
        document = orjson.loads(content) if path.suffix == ".json" else tomllib.loads(content.decode())
        return HttpCarrierFile.model_validate(document)
    except pydantic.ValidationError as error:
        raise StartError(f"{path}: {'; '.join(_told(error))}") from None
    except ValueError as error:
        raise StartError(f"{path}: {error}") from None


def _told(error: pydantic.ValidationError) -> Iterator[str]:
    for each in error.errors(include_url=False)[:5]:
        where = ".".join(str(part) for part in each["loc"]) or "the file"
        yield f"{where}: {each['msg'].removeprefix('Value error, ')}"
