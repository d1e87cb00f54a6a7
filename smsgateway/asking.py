"""What callers ask for, translated and validated. Every violated field of a call is named at once."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC
from typing import TypeVar

import grpc
import orjson

from infra.errors import Refusal, invalid_fields
from infra.identifiers import brand_of, time_prefix
from protos.smsgateway.v1 import sms_gateway_pb2
from smsgateway.accepting import Single
from smsgateway.batch_accepting import Batch, no_valid_recipient
from smsgateway.metrics import TYPE_NAMES
from smsgateway.mobile import DOMESTIC_PREFIX, InvalidMobile, mask_mobile, normalize_mobile
from smsgateway.rules import RULE_REASONS
from smsgateway.segmentation import (
    SegmentCount,
    SegmentRule,
    count_segments,
    count_segments_by_rule,
    domestic_segments,
)
from smsgateway.settings import Settings
from smsgateway.terms import Filling, Judge, Terms, content_of, lenient_judge
from smsgateway.variables import BadValues, InvalidVariables, check_values, pack_values, parse

_REQUEST_ID_CHARACTERS_MAX = 64
_CAMPAIGN_ID_CHARACTERS_MAX = 48
_RAW_MOBILE_SHOWN = 32
# Recipients handled before other calls get their turn; one part of a stream may hold all of them.
_RECIPIENTS_PER_TURN = 1_000

Violations = dict[str, str]
T = TypeVar("T")


def required_brand(brand_id: int, *, field: str = "brand_id") -> int:
    """The brand of a call. Raises INVALID_ARGUMENT for a number below 1."""
    if brand_id < 1:
        raise invalid_fields({field: "must be at least 1"})
    return brand_id


def identified_brand(identifier: str, missing: Refusal) -> int:
    """The brand that an identifier carries. Raises `missing` for a text that is no identifier."""
    brand_id = brand_of(identifier)
    if not brand_id:
        raise missing
    return brand_id


def single(request: sms_gateway_pb2.SendSmsRequest, settings: Settings, judge: Judge | None = None) -> Single:
    """The message of a call, judged by the rules of its brand. Raises INVALID_ARGUMENT with every field that breaks its
    rule.
    """
    judge = judge or lenient_judge(settings)
    violations: Violations = {}
    _check_request_id(request.request_id, "request_id", violations)
    _check_type(request.sms_type, "sms_type", violations)
    if not request.template_id:
        _check_text(request.text, "text", violations, settings)
    judge.check(request, violations)
    mobile = ""
    try:
        mobile = normalize_mobile(request.mobile)
    except InvalidMobile as error:
        violations["mobile"] = error.rule
    if violations:
        raise invalid_fields(violations)
    terms = judge.terms(request)
    return Single(
        request.brand_id,
        request.request_id,
        request.sms_type,
        mobile,
        terms.text,
        count_segments(terms.text, mobile).segments,
        content_of(request),
        terms.due_of(mobile),
        terms.valid_from,
        terms.valid_ms,
        terms.subject,
        terms.limits,
        terms.suppressed,
        terms.refusal,
        terms.night_of(mobile),
    )


def counted(request: sms_gateway_pb2.CountSegmentsRequest, settings: Settings) -> SegmentCount:
    """The segments of a text. Raises INVALID_ARGUMENT with every field that breaks its rule."""
    violations: Violations = {}
    _check_text(request.text, "text", violations, settings)
    mobile = DOMESTIC_PREFIX
    if request.mobile:
        try:
            mobile = normalize_mobile(request.mobile)
        except InvalidMobile as error:
            violations["mobile"] = error.rule
    if violations:
        raise invalid_fields(violations)
    return count_segments(request.text, mobile)


def required_campaign(campaign_id: str) -> str:
    """The campaign of a call. Raises INVALID_ARGUMENT."""
    violations: Violations = {}
    _check_campaign_id(campaign_id, "campaign_id", violations)
    if violations:
        raise invalid_fields(violations)
    return campaign_id


def listed_campaign(campaign_id: str) -> str:
    """A campaign to filter by; empty stays empty. Raises INVALID_ARGUMENT."""
    return required_campaign(campaign_id) if campaign_id else ""


def listed_mobile(mobile: str) -> str:
    """A number to filter by, in E.164; empty stays empty. Raises INVALID_ARGUMENT."""
    if not mobile:
        return ""
    try:
        return normalize_mobile(mobile)
    except InvalidMobile as error:
        raise invalid_fields({"mobile": error.rule}) from None


def listed_identifier(identifier: str, brand_id: int, field: str, rule: str) -> str:
    """An identifier of a brand to filter by; empty stays empty. Raises INVALID_ARGUMENT with the rule."""
    if identifier and brand_of(identifier) != brand_id:
        raise invalid_fields({field: rule})
    return identifier


def listed_time(request: sms_gateway_pb2.ListMessagesRequest) -> tuple[str, str]:
    """Ids between which messages were accepted in the time asked for; empty: no border. Raises INVALID_ARGUMENT."""
    borders = {}
    for field in ("from", "to"):
        borders[field] = ""
        if request.HasField(field):
            try:
                moment = getattr(request, field).ToDatetime(tzinfo=UTC)
            except (ValueError, OverflowError):
                raise invalid_fields({field: "must be a moment from 1970 to 9999"}) from None
            borders[field] = time_prefix(max(0, int(moment.timestamp() * 1_000)))
    return borders["from"], borders["to"]


def batch_header(header: sms_gateway_pb2.BatchHeader, settings: Settings, judge: Judge | None = None) -> Terms:
    """Check a header and judge it by the rules of its brand. Raises INVALID_ARGUMENT with every field that breaks its
    rule.
    """
    judge = judge or lenient_judge(settings)
    violations: Violations = {}
    _check_request_id(header.request_id, "header.request_id", violations)
    _check_type(header.sms_type, "header.sms_type", violations)
    if not header.template_id:
        _check_text(header.text, "header.text", violations, settings)
        if header.variables:
            try:
                parse(header.text, tuple(header.variables))
            except InvalidVariables as error:
                violations["header.variables"] = error.rule
    judge.check(header, violations, "header.")
    if header.campaign_id:
        _check_campaign_id(header.campaign_id, "header.campaign_id", violations)
    if not 0 <= header.recipient_count <= settings.batch_recipients_max:
        violations["header.recipient_count"] = f"must be 0 to {settings.batch_recipients_max}"
    if violations:
        raise invalid_fields(violations)
    return judge.terms(header, "header.")


class BatchReader:
    """Reads the recipients of a batch and sorts the good from the bad.

    `hold` is told of recipients before they are taken, and may refuse them; `terms` what the rules make of the header.
    """

    def __init__(
        self,
        header: sms_gateway_pb2.BatchHeader,
        settings: Settings,
        hold: Callable[[int], None],
        terms: Terms | None = None,
    ) -> None:
        self._terms = terms or Terms(text=header.text)
        self._hold = hold
        self._header = header
        self._settings = settings
        self._limit = header.recipient_count or settings.batch_recipients_max
        names = tuple(header.variables)
        self._filling = self._terms.filling
        if names and self._filling is None:
            # Without rules, or refused by one: then it is read for its fingerprint only.
            self._filling = Filling(parse(header.text, names))
        # By number, in their order, the place of each in the stream.
        self._mobiles: dict[str, int] = {}
        self._segments: list[int] = []
        self._values: list[str] = []
        self._bad: list[sms_gateway_pb2.BadRecipient] = []
        self._bad_by_reason: dict[str, list[int]] = {}
        self._bad_counts: Counter[str] = Counter()
        self._bad_count = 0
        self._read = 0
        self._digest = hashlib.sha256(f"{header.sms_type:d}\0{content_of(header)}\0".encode())
        if names or header.campaign_id:
            # Plain batches are known by what they always were.
            self._digest.update("\0".join(["", *names, header.campaign_id, ""]).encode())

    async def read(self, parts: AsyncIterator[sms_gateway_pb2.SendBatchSmsRequest]) -> Batch:
        """Read to the end of the stream.

        Raises INVALID_ARGUMENT: TOO_MANY_RECIPIENTS, NO_VALID_RECIPIENT, or BAD_REQUEST for a second header, an empty
        part, recipients of the other kind, or another number of them than announced.
        """
        async for part in parts:
            if part.WhichOneof("part") != "recipients":
                raise invalid_fields({"part": "must be recipients after the header"})
            recipients = part.recipients
            if self._filling is None:
                if recipients.personalised:
                    raise invalid_fields({"recipients.personalised": "needs header.variables; give mobiles instead"})
                await self._take_in_turns(recipients.mobiles, self._take)
            else:
                if recipients.mobiles:
                    raise invalid_fields({"recipients.mobiles": "a text with variables needs personalised recipients"})
                await self._take_in_turns(recipients.personalised, self._take_personalised)
        return self._batch()

    async def _take_in_turns(self, recipients: Sequence[T], take: Callable[[Sequence[T]], None]) -> None:
        self._check_count(self._read + len(recipients))
        self._hold(len(recipients))
        for start in range(0, len(recipients), _RECIPIENTS_PER_TURN):
            take(recipients[start : start + _RECIPIENTS_PER_TURN])
            await asyncio.sleep(0)

    def _check_count(self, count: int) -> None:
        if count <= self._limit:
            return
        if self._header.recipient_count:
            raise self._other_count(f"more than {self._limit}")
        raise Refusal(
            grpc.StatusCode.INVALID_ARGUMENT,
            "TOO_MANY_RECIPIENTS",
            f"a batch has at most {self._limit} recipients; send several",
            metadata={"limit": str(self._limit)},
        )

    def _other_count(self, came: str) -> Refusal:
        rule = f"announces {self._header.recipient_count} recipients, but {came} came"
        return invalid_fields({"header.recipient_count": rule})

    def _take(self, mobiles: Sequence[str]) -> None:
        # Numbers have no NUL, and what has one is told apart by its length before it.
        self._digest.update("".join([f"{len(mobile)}:{mobile}\0" for mobile in mobiles]).encode())
        known = self._mobiles
        for index, raw in enumerate(mobiles, self._read):
            mobile = self._new_mobile(index, raw)
            if mobile:
                known[mobile] = index
        self._read += len(mobiles)

    def _take_personalised(self, recipients: Sequence[sms_gateway_pb2.PersonalisedRecipient]) -> None:
        filling = self._filling
        assert filling is not None
        known, digested = self._mobiles, self._digest
        for index, recipient in enumerate(recipients, self._read):
            raw, values = recipient.mobile, list(recipient.values)
            # Lists one after another, whose ends are known whatever stands in them.
            digested.update(orjson.dumps([raw, *values]))
            mobile = self._new_mobile(index, raw)
            if not mobile:
                continue
            try:
                check_values(filling.text, values)
                segments = self._judge(filling, mobile, filling.text.render(values))
            except (BadValues, Refusal) as error:
                self._refuse(index, raw, error.reason)
                continue
            known[mobile] = index
            self._segments.append(segments)
            self._values.append(pack_values(values))
        self._read += len(recipients)

    def _judge(self, filling: Filling, mobile: str, text: str) -> int:
        """Judge the final text of one recipient; return its segments. Raises `BadValues` for one that is too long, and
        the refusal of a rule. (A text without variables is judged once, with its header.)
        """
        if len(text) > self._settings.text_characters_max:
            raise BadValues("TEXT_TOO_LONG")
        filling.check(text)
        if mobile.startswith(DOMESTIC_PREFIX):
            return domestic_segments(len(text))
        return count_segments(text, mobile).segments

    def _new_mobile(self, index: int, raw: str) -> str:
        """The number in E.164; empty when it is refused."""
        try:
            mobile = normalize_mobile(raw)
        except InvalidMobile:
            self._refuse(index, raw, "INVALID_NUMBER")
            return ""
        if mobile in self._mobiles:
            self._refuse(index, raw, "DUPLICATE_NUMBER")
            return ""
        return mobile

    def _refuse(self, index: int, raw: str, reason: str) -> None:
        self._bad_count += 1
        self._bad_counts[reason] += 1
        if len(self._bad) < self._settings.batch_bad_listed_max:
            shown = mask_mobile(raw[:_RAW_MOBILE_SHOWN])
            self._bad.append(sms_gateway_pb2.BadRecipient(index=index, mobile=shown, reason=reason))
        if self._header.tell_all_bad:
            self._bad_by_reason.setdefault(reason, []).append(index)

    def _batch(self) -> Batch:
        header = self._header
        if header.recipient_count and header.recipient_count != self._read:
            raise self._other_count(str(self._read))
        if not self._mobiles:
            if not any(reason in RULE_REASONS for reason in self._bad_counts):
                raise no_valid_recipient(self._bad_count)
            # A call that was answered under other rules gets its reply again.
            self._terms = replace(self._terms, refusal=no_valid_recipient(self._bad_count))
        mobiles = list(self._mobiles)
        text = self._terms.text
        if self._filling is None:
            domestic = count_segments_by_rule(text, SegmentRule.DOMESTIC).segments
            international = count_segments_by_rule(text, SegmentRule.INTERNATIONAL).segments
            self._segments = [domestic if mobile.startswith(DOMESTIC_PREFIX) else international for mobile in mobiles]
        return Batch(
            brand_id=header.brand_id,
            request_id=header.request_id,
            sms_type=header.sms_type,
            text=text,
            variables=tuple(header.variables),
            campaign_id=header.campaign_id,
            mobiles=mobiles,
            segments=self._segments,
            values=self._values,
            bad=self._bad,
            bad_by_reason=self._bad_by_reason,
            tells_all_bad=header.tell_all_bad,
            broken_rules={reason: count for reason, count in self._bad_counts.items() if reason in RULE_REASONS},
            bad_count=self._bad_count,
            fingerprint=self._digest.digest(),
            places=list(self._mobiles.values()),
            bad_max=self._settings.batch_bad_listed_max,
            terms=self._terms,
        )


def _check_request_id(request_id: str, field: str, violations: Violations) -> None:
    if not 0 < len(request_id) <= _REQUEST_ID_CHARACTERS_MAX or not request_id.isprintable():
        violations[field] = f"must be 1 to {_REQUEST_ID_CHARACTERS_MAX} printable characters"


def _check_campaign_id(campaign_id: str, field: str, violations: Violations) -> None:
    if not 0 < len(campaign_id) <= _CAMPAIGN_ID_CHARACTERS_MAX or not campaign_id.isprintable():
        violations[field] = f"must be 1 to {_CAMPAIGN_ID_CHARACTERS_MAX} printable characters"


def _check_type(sms_type: int, field: str, violations: Violations, names: Mapping[int, str] = TYPE_NAMES) -> None:
    if sms_type not in names:
        violations[field] = "must be verification (1), notification (2) or marketing (3)"


def _check_text(text: str, field: str, violations: Violations, settings: Settings) -> None:
    if not 0 < len(text) <= settings.text_characters_max:
        violations[field] = f"must have 1 to {settings.text_characters_max} characters"
    elif "\0" in text:
        violations[field] = "must not hold the character NUL"
