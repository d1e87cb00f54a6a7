"""A carrier on this machine: a process that speaks Chuanglan's protocol, for demos, tests and benchmarks.

Services never import it; they meet it over HTTP alone, as they meet the vendor. The protocol is in docs/carriers.md.

It takes ``POST /msg/send/json`` (and ``/msg/v1/send/json``, ``/msg/variable/json``, ``/msg/balance/json``,
``/msg/pull/report``, ``/msg/pull/mo``), remembers every message that it took on, bills by the domestic rule, and pushes
receipts as GET.
Receipts that become due while no ``receipt_url`` is set wait to be pulled instead, and so do those whose pushes were
lost or never acknowledged. It misbehaves on request: see `SimulatorSettings`, changed while it runs by
``POST /simulator/settings`` with any of its fields as JSON.

``GET /simulator/record?after=<n>&limit=<n>`` pages through what it took on: ``entries`` numbered from 1 (``after`` is
the last number seen; ``next_after`` goes on), each with the moment at which its receipt was first acknowledged or
pulled, ``numbers`` with how often each number of the page occurs in the whole record, and ``totals``. Refused calls are
in the totals only. ``GET /metrics`` tells them to Prometheus, ``GET /`` to a person. There is no access control here:
keep it on the loopback address.

Nothing is forgotten and nothing grows without bound: when the record is full, calls are refused with code 104. Of each
receipt it is counted whether it was acknowledged, pulled, abandoned after its tries, or lost on request; what is still
waiting at the end, to be pushed or pulled, is logged.
"""

import asyncio
import hashlib
import html
import itertools
import logging
import math
import random
import re
import secrets
import signal
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from heapq import heappop, heappush
from types import MappingProxyType
from typing import Any, Final, Self, cast
from urllib.parse import quote, urlsplit

import httptools
import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from smsbill.simulator_metrics import SimulatorMetrics
from smsgateway.segmentation import SegmentRule, count_segments_by_rule

_LOG: Final = logging.getLogger(__name__)

_DOMESTIC: Final = re.compile(r"1[3-9][0-9]{9}")
_CODE: Final = re.compile(r"[1-9][0-9]{0,8}")
_STATE: Final = re.compile(r"[!-~]{1,32}")
_EXTEND: Final = re.compile(r"[0-9]{1,3}")
_SEND_TIME: Final = re.compile(r"[0-9]{12}")

_ALL_INTERFACES: Final = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, to announce an address that can be called
_CHINA_TIME: Final = timezone(timedelta(hours=8))
_TEXT_CHARACTERS_MAX: Final = 536
_UID_CHARACTERS_MAX: Final = 64
_VARIABLE: Final = "{$var}"
_VARIABLES_MAX: Final = 20
_PULL_COUNT_MAX: Final = 100
_PULL_COUNT_DEFAULT: Final = 20
REPLIES_MAX: Final = 100_000
"""Replies that wait to be pulled, at most."""
_PAGE_LIMIT_MAX: Final = 10_000
_PAGE_LIMIT_DEFAULT: Final = 1_000
_RECEIPT_TICK_S: Final = 0.01
_PUSH_ANSWER_BYTES_MAX: Final = 65_536
_DELIVERED: Final = "DELIVRD"

# How a call was answered, as the record keeps it: an index into this.
_ANSWERS: Final = ("answered", "withheld", "garbled")
_ANSWERED, _WITHHELD, _GARBLED = range(3)

# What fate has in store for a call, beside a code that refuses it.
_TIMEOUT: Final = "timeout"
_LOST: Final = "lost"
_GARBAGE: Final = "garbage"


class SettingsError(ValueError):
    """A setting breaks its rule. The message names both."""


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError("must be a share from 0 to 1")
    return float(value)


def _milliseconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 7 * 86_400_000:
        raise ValueError("must be milliseconds, at most seven days")
    return float(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
        raise ValueError("must be a whole number from 1 to 1000000")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _seed(value: object) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError("must be a whole number or null")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


def _receipt_url(value: object) -> str:
    if value == "":
        return ""
    parts = urlsplit(_text(value))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or not _printable(value):
        raise ValueError("must be http(s)://host[:port]/path or empty")
    return str(value)


def _printable(value: object) -> bool:
    """Whether a value is a text of printable ASCII without spaces, fit for a line of an HTTP request."""
    return isinstance(value, str) and re.fullmatch(r"[!-~]*", value) is not None


def _suffixes(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError("must be a list of numbers or endings of numbers")
    for ending in value:
        if not isinstance(ending, str) or not re.fullmatch(r"[0-9]{1,11}", ending):
            raise ValueError("must hold strings of 1 to 11 digits")
    return tuple(value)


def _shares(pattern: re.Pattern[str]) -> Callable[[object], Mapping[str, float]]:
    def rule(value: object) -> Mapping[str, float]:
        if not isinstance(value, Mapping):
            raise ValueError("must be an object of shares")
        for key in value:
            if not isinstance(key, str) or not pattern.fullmatch(key):
                raise ValueError(f"has a key that does not match {pattern.pattern}")
        return MappingProxyType({key: _share(share) for key, share in value.items()})

    return rule


def _ruled(default: Any, rule: Callable[[object], Any]) -> Any:
    """A field of the settings with the rule that its values keep."""
    if isinstance(default, dict):
        return field(default_factory=lambda: MappingProxyType(default), metadata={"rule": rule})
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """How the carrier behaves.

    Shares are from 0 to 1. The fates of a call exclude each other, so their shares add up to at most 1.

    Attributes:
        latency_ms: milliseconds before a call is answered.
        latency_jitter_ms: up to so many milliseconds more, evenly spread.
        throttle_rate: share of calls refused with 103.
        error_rates: share of calls refused, by code.
        timeout_rate: share of calls that are taken on and never answered.
        lost_rate: share of calls that are neither taken on nor answered.
        garbage_rate: share of calls that are taken on and answered with half a JSON document.
        timeout_hold_ms: milliseconds after which the connection of an unanswered call is cut.
        receipt_url: where receipts are pushed to; empty: they wait to be pulled.
        receiver: user name in pushed receipts.
        pswd: password in pushed receipts.
        receipt_delay_ms_min: milliseconds from acceptance to the receipt, at least.
        receipt_delay_ms_max: at most; evenly spread between the two.
        receipt_loss: share of messages that never get a receipt.
        receipt_double: share of receipts that come twice.
        receipt_states: share of receipts by state; the rest are DELIVRD.
        receipt_tries: pushes of a receipt before it is given up.
        receipt_retry_interval_ms: milliseconds between them.
        receipt_timeout_ms: milliseconds for the answer to a push.
        receipt_keep: whether a receipt that is given up after its pushes waits to be pulled; else nobody ever gets it.
        push_loss: share of receipts that are never pushed, however often tried, and wait to be pulled.
        pull_error_rate: share of pulls answered with an error; nothing is taken.
        pull_loss: share of pulls that take their rows and are never answered.
        undeliverable_numbers: numbers, or endings of numbers, whose receipt is always UNDELIV.
        refused_numbers: numbers, or endings of numbers, for which the whole call is refused with 107.
        batch_numbers_max: numbers in one call before it is refused with 108.
        seed: makes the draws repeatable; null draws anew at each start.
    """

    latency_ms: float = _ruled(0.0, _milliseconds)
    latency_jitter_ms: float = _ruled(0.0, _milliseconds)
    throttle_rate: float = _ruled(0.0, _share)
    error_rates: Mapping[str, float] = _ruled({}, _shares(_CODE))
    timeout_rate: float = _ruled(0.0, _share)
    lost_rate: float = _ruled(0.0, _share)
    garbage_rate: float = _ruled(0.0, _share)
    timeout_hold_ms: float = _ruled(60_000.0, _milliseconds)
    receipt_url: str = _ruled("", _receipt_url)
    receiver: str = _ruled("", _text)
    pswd: str = _ruled("", _text)
    receipt_delay_ms_min: float = _ruled(200.0, _milliseconds)
    receipt_delay_ms_max: float = _ruled(1_000.0, _milliseconds)
    receipt_loss: float = _ruled(0.0, _share)
    receipt_double: float = _ruled(0.0, _share)
    receipt_states: Mapping[str, float] = _ruled({}, _shares(_STATE))
    receipt_tries: int = _ruled(3, _count)
    receipt_retry_interval_ms: float = _ruled(60_000.0, _milliseconds)
    receipt_timeout_ms: float = _ruled(5_000.0, _milliseconds)
    receipt_keep: bool = _ruled(True, _flag)
    push_loss: float = _ruled(0.0, _share)
    pull_error_rate: float = _ruled(0.0, _share)
    pull_loss: float = _ruled(0.0, _share)
    undeliverable_numbers: Sequence[str] = _ruled(("0000",), _suffixes)
    refused_numbers: Sequence[str] = _ruled(("1111",), _suffixes)
    batch_numbers_max: int = _ruled(1_000, _count)
    seed: int | None = _ruled(None, _seed)

    def __post_init__(self) -> None:
        for each in fields(self):
            try:
                kept = each.metadata["rule"](getattr(self, each.name))
            except ValueError as error:
                raise SettingsError(f"{each.name} {error}") from None
            object.__setattr__(self, each.name, kept)
        if sum(share for share, _ in self.fates()) > 1 + 1e-9:
            raise SettingsError(
                "throttle_rate, error_rates, timeout_rate, lost_rate, garbage_rate add up to more than 1"
            )
        if sum(self.receipt_states.values()) > 1 + 1e-9:
            raise SettingsError("receipt_states add up to more than 1")
        if self.pull_error_rate + self.pull_loss > 1 + 1e-9:
            raise SettingsError("pull_error_rate and pull_loss add up to more than 1")
        if self.receipt_delay_ms_min > self.receipt_delay_ms_max:
            raise SettingsError("receipt_delay_ms_min is more than receipt_delay_ms_max")

    def fates(self) -> Iterator[tuple[float, str]]:
        """What can befall a well-formed call, with its share: a refusing code, or one of the other fates."""
        yield self.throttle_rate, "103"
        for code, share in self.error_rates.items():
            yield share, code
        yield self.timeout_rate, _TIMEOUT
        yield self.lost_rate, _LOST
        yield self.garbage_rate, _GARBAGE

    def changed(self, changes: object) -> "SimulatorSettings":
        """These settings with some of them changed.

        Args:
            changes: fields by name, as JSON gives them.

        Raises:
            SettingsError: no object, an unknown field, or a value that breaks its rule.
        """
        if not isinstance(changes, Mapping):
            raise SettingsError("settings must be a JSON object")
        known = {each.name for each in fields(self)}
        for name in changes:
            if name not in known:
                raise SettingsError(f"{name!s:.40} is no setting; known are {', '.join(sorted(known))}")
        return replace(self, **changes)

    def shown(self) -> dict[str, object]:
        """The settings as JSON values, the password hidden."""
        values: dict[str, object] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            values[each.name] = dict(value) if isinstance(value, Mapping) else value
        values["pswd"] = "***" if self.pswd else ""
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorConfig:
    """What is fixed at the start.

    Attributes:
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        account: the one account that may send.
        password: its password.
        balance: segments that the account has at the start.
        record_entries_max: messages that the record holds; about 250 bytes each.
        receipt_connections: connections that push receipts at a time.
        settings: how it behaves until told otherwise.
    """

    host: str = "127.0.0.1"
    port: int = 0
    account: str = "N0000001"
    password: str = field(default="simulator", repr=False)
    balance: int = 1_000_000_000
    record_entries_max: int = 2_000_000
    receipt_connections: int = 16
    settings: SimulatorSettings = field(default_factory=SimulatorSettings)

    def __post_init__(self) -> None:
        if not self.account or not self.password:
            raise SettingsError("account and password must not be empty")
        if self.record_entries_max < 1 or self.receipt_connections < 1 or self.balance < 0:
            raise SettingsError("record_entries_max and receipt_connections must be positive, balance not negative")


def text_hash(text: str) -> str:
    """The hash by which the record knows a text: the first 16 hexadecimal digits of the SHA-256 of its UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class CarrierSimulator:
    """The simulated carrier inside a running event loop; `serve` makes a process of it.

    Use ``start`` and ``stop``, or ``async with``.
    """

    def __init__(self, config: SimulatorConfig) -> None:
        self._config = config
        self._settings = config.settings
        self._record = _Record(config.record_entries_max)
        self._receipts = _Receipts(self._record, config.receipt_connections)
        self._balance = config.balance
        self._replies: deque[dict[str, str]] = deque()
        self._refused: Counter[str] = Counter()
        self._metrics = SimulatorMetrics(self.totals)
        self._lost_calls = 0
        self._runner: web.ServerRunner | None = None
        self._stopping = asyncio.Event()
        self._url = ""
        self._apply(config.settings)
        self._routes: Final[Mapping[tuple[str, str], Callable[[web.BaseRequest], Any]]] = {
            ("POST", "/msg/send/json"): self._send,
            ("POST", "/msg/v1/send/json"): self._send,
            ("POST", "/msg/variable/json"): self._send_personalised,
            ("POST", "/msg/balance/json"): self._tell_balance,
            ("POST", "/msg/pull/report"): self._pull_report,
            ("POST", "/msg/pull/mo"): self._pull_replies,
            ("POST", "/simulator/replies"): self._add_replies,
            ("GET", "/simulator/record"): self._show_record,
            ("GET", "/simulator/settings"): self._show_settings,
            ("POST", "/simulator/settings"): self._change_settings,
            ("GET", "/metrics"): self._show_metrics,
            ("GET", "/"): self._show_page,
        }

    @property
    def url(self) -> str:
        """The base address, for example ``http://127.0.0.1:40123``; empty before the start."""
        return self._url

    @property
    def settings(self) -> SimulatorSettings:
        """The settings now in force."""
        return self._settings

    async def start(self) -> None:
        """Listen and begin to push receipts.

        Raises:
            OSError: the address cannot be had.
        """
        assert self._runner is None, "started twice"
        # The low-level server: no router, no middlewares, a tenth of a millisecond for each call.
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0.5)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._config.host, self._config.port, backlog=1_024).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        host = "127.0.0.1" if self._config.host in _ALL_INTERFACES else self._config.host
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{runner.addresses[0][1]}"
        self._receipts.start()

    async def stop(self) -> None:
        """Stop listening; log how many receipts are left waiting. The totals stay readable."""
        self._stopping.set()
        await self._receipts.stop()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if waiting := self._receipts.waiting:
            _LOG.warning("carrier simulator stopped with %d receipts waiting", waiting)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.stop()

    def change_settings(self, changes: Mapping[str, object]) -> None:
        """Change settings while running, as ``POST /simulator/settings`` does.

        Args:
            changes: fields of `SimulatorSettings` by name.

        Raises:
            SettingsError: an unknown field, or a value that breaks its rule; then nothing changes.
        """
        changed = self._settings.changed(changes)
        self._apply(changed, reseed="seed" in changes)

    def reply(self, mobile: str, text: str, destination: str = "1069012345") -> None:
        """Have a phone send something back, which waits to be pulled, as ``POST /simulator/replies`` does.

        Args:
            mobile: the phone's number, 11 digits.
            text: what it sends.
            destination: the number that it sends it to.

        Raises:
            SettingsError: `REPLIES_MAX` wait.
        """
        if len(self._replies) >= REPLIES_MAX:
            raise SettingsError(f"{REPLIES_MAX} replies wait to be pulled")
        clock = _clock()
        self._replies.append(
            {
                "spCode": destination,
                "moTime": clock.second12,
                "messageContent": text,
                "destCode": destination,
                "mobile": mobile,
            }
        )

    def totals(self) -> dict[str, Any]:
        """What was asked, taken on and reported so far, as ``GET /simulator/record`` shows it."""
        record = self._record
        return {
            "calls": {
                "accepted": len(record.call_uid),
                **dict(zip(_ANSWERS, record.answer_counts, strict=True)),
                "lost": self._lost_calls,
                "refused": self._refused.total(),
                "refused_by_code": dict(sorted(self._refused.items())),
            },
            "messages": len(record),
            "segments": record.segments_total,
            "distinct_numbers": len(record.number_counts),
            "numbers_more_than_once": record.numbers_more_than_once,
            "record_entries_max": record.entries_max,
            "receipts": self._receipts.totals(),
            "balance": self._balance,
        }

    def entries(self, after: int = 0, limit: int = _PAGE_LIMIT_DEFAULT) -> list[dict[str, Any]]:
        """Messages taken on, in order.

        Args:
            after: number of the last entry seen; 0 begins.
            limit: entries at most.

        Returns:
            For each message n, uid, mobile (11 digits), text_hash (`text_hash`), text_length (characters), segments,
            msgid, time (UTC), and how the call was answered.
        """
        return [self._record.entry(index) for index in range(after, min(after + limit, len(self._record)))]

    def _apply(self, settings: SimulatorSettings, *, reseed: bool = True) -> None:
        self._settings = settings
        if reseed:
            # S311: draws of a simulation. Two generators, so that the fates of calls do not hang on their sizes.
            self._random = random.Random(settings.seed)  # noqa: S311
            self._receipts.random = random.Random(None if settings.seed is None else settings.seed + 1)  # noqa: S311
        self._fates = list(_cumulated(settings.fates()))
        self._refused_numbers = tuple(settings.refused_numbers)
        self._receipts.apply(settings)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        route = self._routes.get((request.method, request.path))
        if route is None:
            return web.Response(status=404, text="not found\n")
        response: web.StreamResponse = await route(request)
        return response

    # The protocol of the carrier.

    async def _send(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            asked = self._authorized(await request.read())
            uid, text = self._uid(asked), self._message(asked)
            numbers = self._numbers(asked)
            fate = self._fate()
            if fate != _LOST:
                segments = count_segments_by_rule(text, SegmentRule.DOMESTIC).segments
                call = self._take_on(uid, len(numbers), segments * len(numbers), fate)
                digest = _digest(text)
                self._record.add(call, [int(number) for number in numbers], digest, len(text), segments)
                self._report(asked, numbers)
        except _Refusal as refusal:
            return await self._refuse(refusal.code)
        if fate == _LOST:
            self._lost_calls += 1
            return await self._withhold(request)
        answer = {"code": "0", "msgId": self._record.message_id(call), "time": _clock().second14, "errorMsg": ""}
        return await self._answer(request, answer, fate)

    async def _send_personalised(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            asked = self._authorized(await request.read())
            uid, template = self._uid(asked), self._message(asked)
            numbers, texts, failed = self._personalised(asked, template)
            fate = self._fate()
            if fate != _LOST:
                counts = [count_segments_by_rule(text, SegmentRule.DOMESTIC).segments for text in texts]
                call = self._take_on(uid, len(numbers), sum(counts), fate)
                for number, text, segments in zip(numbers, texts, counts, strict=True):
                    self._record.add(call, [int(number)], _digest(text), len(text), segments)
                self._report(asked, numbers)
        except _Refusal as refusal:
            return await self._refuse(refusal.code)
        if fate == _LOST:
            self._lost_calls += 1
            return await self._withhold(request)
        answer = {
            "code": "0",
            "msgId": self._record.message_id(call),
            "time": _clock().second14,
            "errorMsg": "",
            "successNum": str(len(numbers)),
            "failNum": str(failed),
        }
        return await self._answer(request, answer, fate)

    async def _tell_balance(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            self._authorized(await request.read())
        except _Refusal as refusal:
            return await self._refuse(refusal.code)
        # As the vendor has it: the code a number here, the balance a string.
        answer = {"code": 0, "balance": str(self._balance), "time": _clock().second14, "errorMsg": ""}
        return await self._answer(request, answer, "")

    async def _pull_report(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            count = self._pull_count(self._authorized(await request.read()))
        except _Refusal as refusal:
            return _json({"ret": 1, "error": f"refused with {refusal.code}"})
        settings = self._settings
        # Drawn only on request, so that pulls leave the fates of calls repeatable.
        drawn = self._random.random() if settings.pull_error_rate or settings.pull_loss else 1.0
        if drawn < settings.pull_error_rate:
            return _json({"ret": 1, "error": "system busy"})
        rows = self._receipts.pull(count)
        if drawn < settings.pull_error_rate + settings.pull_loss:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=504)
        return _json({"ret": 0, "result": rows})

    async def _pull_replies(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            count = self._pull_count(self._authorized(await request.read()))
        except _Refusal as refusal:
            return _json({"ret": 1, "error": f"refused with {refusal.code}"})
        rows = [self._replies.popleft() for _ in range(min(count, len(self._replies)))]
        return _json({"ret": 0, "result": rows})

    async def _add_replies(self, request: web.BaseRequest) -> web.StreamResponse:
        """``POST /simulator/replies``: a JSON list of objects with mobile, text and, if wanted, destination."""
        try:
            wanted = orjson.loads(await request.read())
            for each in wanted:
                self.reply(*(str(each[name]) for name in ("mobile", "text", "destination") if name in each))
        except (orjson.JSONDecodeError, TypeError, KeyError, SettingsError) as error:
            return _json({"error": f"want a list of objects with mobile and text: {error}"}, status=400)
        return _json({"waiting": len(self._replies)})

    @staticmethod
    def _pull_count(asked: Mapping[str, Any]) -> int:
        count = str(asked.get("count", _PULL_COUNT_DEFAULT))
        if not re.fullmatch(r"[1-9][0-9]{0,2}", count) or int(count) > _PULL_COUNT_MAX:
            raise _Refusal("130")
        return int(count)

    def _authorized(self, body: bytes) -> dict[str, Any]:
        try:
            asked = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise _Refusal("129") from None
        if not isinstance(asked, dict):
            raise _Refusal("129")
        if asked.get("account") != self._config.account:
            raise _Refusal("101")
        if asked.get("password") != self._config.password:
            raise _Refusal("102")
        return asked

    @staticmethod
    def _uid(asked: Mapping[str, Any]) -> str:
        uid = asked.get("uid") or ""
        if not isinstance(uid, str) or len(uid) > _UID_CHARACTERS_MAX:
            raise _Refusal("130")
        return uid

    @staticmethod
    def _message(asked: Mapping[str, Any]) -> str:
        text = asked.get("msg")
        if not isinstance(text, str):
            raise _Refusal("130")
        if not 0 < len(text) <= _TEXT_CHARACTERS_MAX:
            raise _Refusal("106")
        # Checked for its form only: sending later is not simulated.
        send_time = asked.get("sendtime")
        if send_time and not (isinstance(send_time, str) and _SEND_TIME.fullmatch(send_time)):
            raise _Refusal("127")
        extend = asked.get("extend")
        if extend and not _EXTEND.fullmatch(str(extend)):
            raise _Refusal("113")
        return text

    def _numbers(self, asked: Mapping[str, Any]) -> list[str]:
        phone = asked.get("phone")
        if not isinstance(phone, str):
            raise _Refusal("130")
        numbers = phone.split(",") if phone else []
        if not 0 < len(numbers) <= self._settings.batch_numbers_max:
            raise _Refusal("108")
        refused = self._refused_numbers
        for number in numbers:
            if not _DOMESTIC.fullmatch(number) or number.endswith(refused):
                raise _Refusal("107")
        return numbers

    def _personalised(self, asked: Mapping[str, Any], template: str) -> tuple[list[str], list[str], int]:
        """Numbers and texts of the good groups, and how many groups were dropped for being malformed."""
        params = asked.get("params")
        pieces = template.split(_VARIABLE)
        if not isinstance(params, str) or not 0 < len(pieces) - 1 <= _VARIABLES_MAX:
            raise _Refusal("114")
        groups = [group for group in params.split(";") if group]
        if not 0 < len(groups) <= self._settings.batch_numbers_max:
            raise _Refusal("114")
        numbers, texts = [], []
        for group in groups:
            number, *values = group.split(",")
            if (
                not _DOMESTIC.fullmatch(number)
                or number.endswith(self._refused_numbers)
                or len(values) != len(pieces) - 1
            ):
                continue
            text = "".join(itertools.chain.from_iterable(itertools.zip_longest(pieces, values, fillvalue="")))
            if len(text) <= _TEXT_CHARACTERS_MAX:
                numbers.append(number)
                texts.append(text)
        if not numbers:
            raise _Refusal("114")
        return numbers, texts, len(groups) - len(numbers)

    def _fate(self) -> str:
        """Draw what befalls a well-formed call; an empty string lets it be.

        Raises:
            _Refusal: a code was drawn.
        """
        if not self._fates:
            return ""
        drawn = self._random.random()
        for bound, fate in self._fates:
            if drawn < bound:
                if fate in (_TIMEOUT, _LOST, _GARBAGE):
                    return fate
                raise _Refusal(fate)
        return ""

    def _take_on(self, uid: str, messages: int, segments: int, fate: str) -> int:
        """Bill a call and open its entry in the record; its index."""
        if not self._record.has_room(messages):
            raise _Refusal("104")
        if segments > self._balance:
            raise _Refusal("109")
        self._balance -= segments
        answer = {_TIMEOUT: _WITHHELD, _GARBAGE: _GARBLED}.get(fate, _ANSWERED)
        return self._record.add_call(uid, answer)

    def _report(self, asked: Mapping[str, Any], numbers: Sequence[str]) -> None:
        """Schedule receipts for the messages just added, if the call wants any."""
        if str(asked.get("report", "")).lower() == "true":
            self._receipts.schedule(len(self._record) - len(numbers), numbers)

    async def _refuse(self, code: str) -> web.StreamResponse:
        self._refused[code] += 1
        await self._delay()
        return _json({"code": code, "msgId": "", "time": _clock().second14, "errorMsg": f"refused with {code}"})

    async def _answer(self, request: web.BaseRequest, answer: Mapping[str, object], fate: str) -> web.StreamResponse:
        if fate == _TIMEOUT:
            return await self._withhold(request)
        await self._delay()
        body = orjson.dumps(answer)
        return web.Response(body=body[: len(body) // 2] if fate == _GARBAGE else body, content_type="application/json")

    async def _delay(self) -> None:
        settings = self._settings
        if settings.latency_ms or settings.latency_jitter_ms:
            jitter_ms = settings.latency_jitter_ms * self._random.random()
            await asyncio.sleep((settings.latency_ms + jitter_ms) / 1_000)

    async def _withhold(self, request: web.BaseRequest) -> web.StreamResponse:
        """Leave a call unanswered until its client goes, then cut the connection."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), self._settings.timeout_hold_ms / 1_000)
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=504)

    # What tests and people see.

    async def _show_record(self, request: web.BaseRequest) -> web.StreamResponse:
        after = request.query.get("after", "0")
        limit = request.query.get("limit", str(_PAGE_LIMIT_DEFAULT))
        if not re.fullmatch(r"[0-9]{1,12}", after) or not re.fullmatch(r"[0-9]{1,5}", limit):
            return _json({"error": "after and limit must be whole numbers"}, status=400)
        if not 1 <= int(limit) <= _PAGE_LIMIT_MAX:
            return _json({"error": f"limit must be from 1 to {_PAGE_LIMIT_MAX}"}, status=400)
        entries = self.entries(int(after), int(limit))
        next_after = entries[-1]["n"] if entries else int(after)
        return _json(
            {
                "entries": entries,
                "next_after": next_after,
                "more": next_after < len(self._record),
                "numbers": {entry["mobile"]: self._record.number_counts[int(entry["mobile"])] for entry in entries},
                "totals": self.totals(),
            }
        )

    async def _show_metrics(self, _request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=self._metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _show_settings(self, _request: web.BaseRequest) -> web.StreamResponse:
        return _json(self._settings.shown())

    async def _change_settings(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            self.change_settings(orjson.loads(await request.read()))
        except orjson.JSONDecodeError:
            return _json({"error": "settings must be a JSON object"}, status=400)
        except SettingsError as error:
            return _json({"error": str(error)}, status=400)
        return _json(self._settings.shown())

    async def _show_page(self, _request: web.BaseRequest) -> web.StreamResponse:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in [*_flattened(self.totals()), *_flattened(self._settings.shown(), "settings.")]
        )
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2">'
            "<title>Carrier simulator</title><style>body{font:14px sans-serif;margin:2em}"
            "th{text-align:left;font-weight:normal;padding-right:2em}td{text-align:right}</style></head>"
            f"<body><h1>Carrier simulator</h1><table>{rows}</table></body></html>"
        )
        return web.Response(text=page, content_type="text/html")


async def serve(config: SimulatorConfig, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Run the simulator until the task is cancelled or the process gets SIGTERM.

    Args:
        config: what is fixed at the start.
        on_ready: called once with the base address, when calls are answered.

    Raises:
        OSError: the address cannot be had.
    """
    loop = asyncio.get_running_loop()
    terminated = asyncio.Event()
    handles_signal = True
    try:
        loop.add_signal_handler(signal.SIGTERM, terminated.set)
    except (NotImplementedError, RuntimeError, ValueError):
        handles_signal = False  # outside the main thread; cancelling is left
    try:
        async with CarrierSimulator(config) as simulator:
            if on_ready is not None:
                on_ready(simulator.url)
            await terminated.wait()
    finally:
        if handles_signal:
            loop.remove_signal_handler(signal.SIGTERM)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


class _Refusal(Exception):  # noqa: N818 - an answer of the protocol
    """A call is refused with a code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code: Final = code


class _Record:
    """Everything taken on, in columns: an entry costs bytes, not objects."""

    def __init__(self, entries_max: int) -> None:
        self.entries_max: Final = entries_max
        self.call_uid: Final[list[str]] = []
        self.call_time: Final = array("d")
        self.call_answer: Final = array("B")
        self.answer_counts: Final = [0] * len(_ANSWERS)
        self.number_counts: Final[dict[int, int]] = {}
        self.numbers_more_than_once = 0
        self.segments_total = 0
        self._call: Final = array("I")
        self._mobile: Final = array("Q")
        self._digest: Final = array("Q")
        self._length: Final = array("H")
        self._segments: Final = array("B")
        # When somebody first had the message's receipt; 0: nobody yet.
        self._told: Final = array("d")
        # 32 digits as the vendor's newer ids have: when we began, a few of chance, the number of the call.
        self._message_id_prefix: Final = f"{_clock().second12}{secrets.randbelow(10_000):04d}"

    def __len__(self) -> int:
        return len(self._mobile)

    def has_room(self, messages: int) -> bool:
        return len(self) + messages <= self.entries_max

    def add_call(self, uid: str, answer: int) -> int:
        self.call_uid.append(uid)
        self.call_time.append(time.time())
        self.call_answer.append(answer)
        self.answer_counts[answer] += 1
        return len(self.call_uid) - 1

    def add(self, call: int, numbers: Sequence[int], digest: int, length: int, segments: int) -> None:
        """Add messages of one text to a call."""
        many = len(numbers)
        self._mobile.extend(numbers)
        self._call.extend(itertools.repeat(call, many))
        self._digest.extend(itertools.repeat(digest, many))
        self._length.extend(itertools.repeat(length, many))
        self._segments.extend(itertools.repeat(segments, many))
        self._told.extend(itertools.repeat(0.0, many))
        self.segments_total += segments * many
        counts = self.number_counts
        for number in numbers:
            count = counts.get(number, 0) + 1
            counts[number] = count
            if count == 2:
                self.numbers_more_than_once += 1

    def tell(self, index: int) -> None:
        """The message's receipt was acknowledged or pulled."""
        self._told[index] = self._told[index] or time.time()

    def message_id(self, call: int) -> str:
        return f"{self._message_id_prefix}{call + 1:016d}"

    def entry(self, index: int) -> dict[str, Any]:
        call = self._call[index]
        return {
            "n": index + 1,
            "uid": self.call_uid[call],
            "mobile": str(self._mobile[index]),
            "text_hash": f"{self._digest[index]:016x}",
            "text_length": self._length[index],
            "segments": self._segments[index],
            "msgid": self.message_id(call),
            "time": _moment(self.call_time[call]),
            "answer": _ANSWERS[self.call_answer[call]],
            "receipt_taken": _moment(self._told[index]) if self._told[index] else None,
        }

    def receipt_fields(self, index: int) -> tuple[str, str, int, int]:
        """Message id, uid, number and billed segments of a message."""
        call = self._call[index]
        return self.message_id(call), self.call_uid[call], self._mobile[index], self._segments[index]


@dataclass(frozen=True, slots=True)
class _PushTarget:
    """Where receipts are pushed to, with the parts of the request that never change."""

    host: str
    port: int
    tls: bool
    head: bytes
    tail: bytes

    @classmethod
    def of(cls, settings: SimulatorSettings) -> "_PushTarget":
        parts = urlsplit(settings.receipt_url)
        assert parts.hostname is not None
        tls = parts.scheme == "https"
        agreed = f"receiver={quote(settings.receiver, safe='')}&pswd={quote(settings.pswd, safe='')}"
        query = f"{parts.query}&{agreed}" if parts.query else agreed
        return cls(
            host=parts.hostname,
            port=parts.port or (443 if tls else 80),
            tls=tls,
            head=f"GET {parts.path or '/'}?{query}&".encode("ascii"),
            tail=f" HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: carrier-simulator\r\n\r\n".encode("ascii"),
        )


# A receipt under way: when it is due (time of the loop), its number, the message, the state, tries already made.
_Due = tuple[float, int, int, str, int]


class _Receipts:
    """Receipts from acceptance to acknowledgement.

    Each receipt is at one place: waiting for its time (heap), ready to be pushed (queue), being pushed (a worker), or
    waiting to be pulled; then it is counted as acknowledged, pulled or abandoned. So these always add up.
    """

    def __init__(self, record: _Record, connections: int) -> None:
        self.random = random.Random()  # noqa: S311 - draws of a simulation
        self._record: Final = record
        self._connections: Final = connections
        self._heap: Final[list[_Due]] = []
        self._ready: Final[asyncio.Queue[_Due]] = asyncio.Queue()
        self._pullable: Final[deque[tuple[int, str]]] = deque()
        self._numbering: Final = itertools.count()
        # Its time is kept beside it: what uvloop returns for a timer due at once cannot be asked.
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0.0
        self._workers: list[asyncio.Task[None]] = []
        self._scheduled = self._pushed = self._acknowledged = self._abandoned = self._pulled = 0
        self._lost = self._doubled = 0

    def apply(self, settings: SimulatorSettings) -> None:
        self._settings = settings
        self._target = _PushTarget.of(settings) if settings.receipt_url else None
        self._undeliverable = tuple(settings.undeliverable_numbers)
        states = ((share, state) for state, share in settings.receipt_states.items())
        self._states = list(_cumulated(states))
        self._delay_s_min = settings.receipt_delay_ms_min / 1_000
        self._delay_s_spread = settings.receipt_delay_ms_max / 1_000 - self._delay_s_min

    @property
    def waiting(self) -> int:
        return self._scheduled - self._acknowledged - self._abandoned - self._pulled

    def totals(self) -> dict[str, int]:
        return {
            "scheduled": self._scheduled,
            "pushed": self._pushed,
            "acknowledged": self._acknowledged,
            "abandoned": self._abandoned,
            "pulled": self._pulled,
            "waiting": self.waiting,
            "lost": self._lost,
            "doubled": self._doubled,
        }

    def start(self) -> None:
        self._workers = [asyncio.create_task(self._work(_PushConnection())) for _ in range(self._connections)]

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def schedule(self, first: int, numbers: Sequence[str]) -> None:
        """Schedule a receipt for each of the messages that begin at an index of the record."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        settings, draw = self._settings, self.random.random
        for index, number in enumerate(numbers, first):
            if settings.receipt_loss and draw() < settings.receipt_loss:
                self._lost += 1
                continue
            state = "UNDELIV" if number.endswith(self._undeliverable) else self._draw_state()
            copies = 1
            if settings.receipt_double and draw() < settings.receipt_double:
                self._doubled += 1
                copies = 2
            for _ in range(copies):
                due = now + self._delay_s_min + self._delay_s_spread * draw()
                heappush(self._heap, (due, next(self._numbering), index, state, 0))
            self._scheduled += copies
        self._set_timer(loop)

    def pull(self, count: int) -> list[dict[str, str]]:
        """Take receipts that wait to be pulled; they are gone from here, as with the vendor."""
        taken = [self._pullable.popleft() for _ in range(min(count, len(self._pullable)))]
        self._pulled += len(taken)
        clock = _clock()
        rows = []
        for index, state in taken:
            self._record.tell(index)
            message_id, uid, number, _ = self._record.receipt_fields(index)
            rows.append(
                {
                    "uid": uid,
                    "reportTime": clock.minute10,
                    "notifyTime": clock.second12,
                    "status": state,
                    "msgId": message_id,
                    "statusDesc": _describe(state),
                    "mobile": str(number),
                }
            )
        return rows

    def _is_push_lost(self) -> bool:
        return bool(self._settings.push_loss) and self.random.random() < self._settings.push_loss

    def _draw_state(self) -> str:
        if self._states:
            drawn = self.random.random()
            for bound, state in self._states:
                if drawn < bound:
                    return state
        return _DELIVERED

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._heap:
            return
        # Up to a tick late, so that what is due about the same time wakes us once.
        due = math.ceil(self._heap[0][0] / _RECEIPT_TICK_S) * _RECEIPT_TICK_S
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = loop.call_at(due, self._release, loop)

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand on what has become due."""
        self._timer = None
        # Timers of uvloop count whole milliseconds and may fire a little early.
        horizon = loop.time() + 0.001
        while self._heap and self._heap[0][0] <= horizon:
            receipt = heappop(self._heap)
            if self._target is None or self._is_push_lost():
                self._pullable.append((receipt[2], receipt[3]))
            else:
                self._ready.put_nowait(receipt)
        self._set_timer(loop)

    async def _work(self, connection: "_PushConnection") -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                receipt = await self._ready.get()
                target = self._target
                if target is None:
                    self._pullable.append((receipt[2], receipt[3]))
                    continue
                self._pushed += 1
                answer = await connection.get(target, self._request(target, receipt), self._settings.receipt_timeout_ms)
                _, number, index, state, tries = receipt
                if _acknowledges(answer):
                    self._acknowledged += 1
                    self._record.tell(index)
                elif tries + 1 >= self._settings.receipt_tries:
                    if self._settings.receipt_keep:
                        self._pullable.append((index, state))
                    else:
                        self._abandoned += 1
                else:
                    due = loop.time() + self._settings.receipt_retry_interval_ms / 1_000
                    heappush(self._heap, (due, number, index, state, tries + 1))
                    self._set_timer(loop)
        finally:
            connection.close()

    def _request(self, target: _PushTarget, receipt: _Due) -> bytes:
        state = receipt[3]
        message_id, uid, number, segments = self._record.receipt_fields(receipt[2])
        clock = _clock()
        query = (
            f"msgid={message_id}&reportTime={clock.minute10}&mobile={number}&{_state_query(state)}"
            f"&notifyTime={clock.second12}&uid={quote(uid, safe='')}&length={segments}"
        )
        return b"".join((target.head, query.encode("ascii"), target.tail))


class _PushConnection:
    """One HTTP/1.1 connection for GET requests, one at a time, opened again when it is lost.

    aiohttp's client takes six times as long for a request, and a batch of a thousand numbers makes a thousand of them.
    """

    def __init__(self) -> None:
        self._target: _PushTarget | None = None
        self._exchange: _PushExchange | None = None

    async def get(self, target: _PushTarget, request: bytes, timeout_ms: float) -> tuple[int, bytes] | None:
        """Send a request; status and body of its answer, or None when none came."""
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                if self._exchange is not None and self._exchange.open and self._target == target:
                    with suppress(_Untouched):
                        return await self._exchange.ask(request)
                    # The other side closed the connection while it was idle: the request was not seen.
                return await (await self._connect(target)).ask(request)
        except (OSError, TimeoutError):
            self.close()
            return None

    async def _connect(self, target: _PushTarget) -> "_PushExchange":
        self.close()
        loop = asyncio.get_running_loop()
        _, self._exchange = await loop.create_connection(
            lambda: _PushExchange(loop), target.host, target.port, ssl=target.tls or None
        )
        self._target = target
        return self._exchange

    def close(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None


class _Untouched(ConnectionError):  # noqa: N818 - of no interest to anyone else
    """The connection was lost before any byte of an answer."""


class _PushExchange(asyncio.Protocol):
    """Requests and answers on one connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.open = False
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._body = bytearray()
        self._begun = self._headed = False

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and await its answer.

        Raises:
            ConnectionError: the connection was lost, or what came is no HTTP.
        """
        assert self._transport is not None
        self._answer = self._loop.create_future()
        self._body.clear()
        self._begun = self._headed = False
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            self._answer = None

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._headed:
            # An answer without a length ends with its connection.
            self._complete()
        self._fail(ConnectionError("connection lost") if self._begun else _Untouched("connection lost"))

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.close()
            return
        self._begun = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(ConnectionError("the answer is no HTTP"))
            self.close()

    def on_headers_complete(self) -> None:
        self._headed = self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > _PUSH_ANSWER_BYTES_MAX:
            self._fail(ConnectionError("the answer is too long"))
            self.close()

    def on_message_complete(self) -> None:
        if self._headed:
            if not self._parser.should_keep_alive():
                self.close()
            self._complete()

    def _complete(self) -> None:
        self._headed = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), bytes(self._body)))

    def _fail(self, error: ConnectionError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Clock:
    """This second in China in the vendor's spellings, named by their digits."""

    minute10: str
    second12: str
    second14: str


_clock_kept: tuple[int, _Clock] = (-1, _Clock("", "", ""))


def _clock() -> _Clock:
    global _clock_kept  # noqa: PLW0603 - formatted once a second, not once a call
    second = int(time.time())
    if _clock_kept[0] != second:
        digits = datetime.fromtimestamp(second, _CHINA_TIME).strftime("%Y%m%d%H%M%S")
        _clock_kept = (second, _Clock(digits[2:12], digits[2:], digits))
    return _clock_kept[1]


def _cumulated(shares: Iterator[tuple[float, str]]) -> Iterator[tuple[float, str]]:
    """Upper bounds of draws for each of some shares."""
    total = 0.0
    for share, what in shares:
        if share > 0:
            total += share
            yield total, what


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _describe(state: str) -> str:
    return "短信发送成功" if state == _DELIVERED else f"短信发送失败 {state}"


@lru_cache(maxsize=1_024)
def _state_query(state: str) -> str:
    return f"status={quote(state, safe='')}&statusDesc={quote(_describe(state), safe='')}"


def _acknowledges(answer: tuple[int, bytes] | None) -> bool:
    if answer is None or answer[0] != 200:
        return False
    if answer[1] == b'{"clcode":"000000"}':
        return True
    try:
        document = orjson.loads(answer[1])
    except orjson.JSONDecodeError:
        return False
    return isinstance(document, dict) and document.get("clcode") == "000000"


def _json(document: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(document), status=status, content_type="application/json")


def _flattened(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
