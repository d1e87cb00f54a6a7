"""The gRPC service `smsgateway.v1.SmsGateway`: it translates, others decide."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from typing import Any

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from structlog.contextvars import bind_contextvars

from infra import paging
from infra.authorization import ANY_TOKEN, Role, current_principal
from infra.database import TRANSIENT, Database
from infra.errors import Refusal, invalid_fields, not_found
from infra.grpc_server import Permissions
from protos.smsgateway.v1 import sms_gateway_pb2, sms_gateway_pb2_grpc
from smsgateway import asking, parking
from smsgateway.accepting import SingleAcceptor
from smsgateway.batch_accepting import Batch, BatchAcceptor, BatchPlace, BatchPlaces, Canceller
from smsgateway.campaigns import BatchPauser
from smsgateway.following import BatchFollower
from smsgateway.metrics import MESSAGES, MODE_NAMES, RULE_REFUSALS, TYPE_NAMES
from smsgateway.parked import ParkedKind, ParkedWork
from smsgateway.rule_book import RuleBook
from smsgateway.rules import RULE_REASONS
from smsgateway.schema import MessageState, Mode
from smsgateway.settings import Settings
from smsgateway.store import listing
from smsgateway.store.parked import Key, ParkedRow
from smsgateway.terms import Judge
from smsgateway.variables import unpack_names

log = structlog.get_logger(__name__)

SERVICE = sms_gateway_pb2.DESCRIPTOR.services_by_name["SmsGateway"].full_name

_VIEWER, _SENDER, _OPERATOR = frozenset({Role.VIEWER}), frozenset({Role.SENDER}), frozenset({Role.OPERATOR})
_CONTROL = _SENDER | _OPERATOR
PERMISSIONS: Permissions = {
    f"/{SERVICE}/SendSms": _SENDER,
    f"/{SERVICE}/SendBatchSms": _SENDER,
    f"/{SERVICE}/GetMessage": _VIEWER,
    f"/{SERVICE}/ListMessages": _VIEWER,
    f"/{SERVICE}/GetBatch": _VIEWER,
    f"/{SERVICE}/FollowBatch": _VIEWER,
    f"/{SERVICE}/CancelMessage": _CONTROL,
    f"/{SERVICE}/CancelBatch": _CONTROL,
    f"/{SERVICE}/PauseBatch": _CONTROL,
    f"/{SERVICE}/ResumeBatch": _CONTROL,
    f"/{SERVICE}/ListBatches": _VIEWER,
    f"/{SERVICE}/CountSegments": ANY_TOKEN,
    f"/{SERVICE}/ListParked": _OPERATOR,
    f"/{SERVICE}/RetryParked": _OPERATOR,
    f"/{SERVICE}/DropParked": _OPERATOR,
}

Context = grpc.aio.ServicerContext[Any, Any]


class SmsGatewayService(sms_gateway_pb2_grpc.SmsGatewayServicer):
    """The RPCs; their errors are documented in the proto."""

    def __init__(
        self,
        database: Database,
        singles: SingleAcceptor,
        batches: BatchAcceptor,
        canceller: Canceller,
        pauser: BatchPauser,
        parked: ParkedWork,
        follower: BatchFollower,
        book: RuleBook,
        settings: Settings,
    ) -> None:
        self._database = database
        self._singles = singles
        self._batches = batches
        self._places = BatchPlaces(settings)
        self._canceller = canceller
        self._pauser = pauser
        self._parked = parked
        self._follower = follower
        self._book = book
        self._settings = settings

    async def SendSms(
        self, request: sms_gateway_pb2.SendSmsRequest, context: Context
    ) -> sms_gateway_pb2.SendSmsResponse:
        """Accept one message."""
        current_principal().require_brand(asking.required_brand(request.brand_id))
        single = asking.single(request, self._settings, await self._judge(request.brand_id))
        bind_contextvars(request_id=request.request_id)
        try:
            reply, repeated = await self._singles.send(single)
        except (Refusal, *TRANSIENT) as error:
            _count(request.sms_type, Mode.SINGLE, _result(error))
            _count_rule(request.sms_type, error)
            raise
        _count(request.sms_type, Mode.SINGLE, "repeated" if repeated else "accepted")
        log.info("message accepted", message_id=reply.message_id, brand_id=request.brand_id, repeated=repeated)
        return reply

    async def SendBatchSms(
        self, request_iterator: AsyncIterator[sms_gateway_pb2.SendBatchSmsRequest], context: Context
    ) -> sms_gateway_pb2.SendBatchSmsResponse:
        """Accept a batch."""
        with self._places.place() as place:
            try:
                async with asyncio.timeout(self._settings.batch_stream_seconds):
                    batch = await self._read(request_iterator, place)
            except TimeoutError:
                raise Refusal(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    "STREAM_TOO_SLOW",
                    f"the stream must end within {self._settings.batch_stream_seconds:g} seconds",
                ) from None
            bind_contextvars(request_id=batch.request_id)
            try:
                reply, repeated = await self._batches.send(batch)
            except (Refusal, *TRANSIENT) as error:
                _count(batch.sms_type, Mode.BATCH, _result(error), len(batch.mobiles))
                _count_rule(batch.sms_type, error, len(batch.mobiles))
                raise
        _count(batch.sms_type, Mode.BATCH, "repeated" if repeated else "accepted", reply.accepted)
        log.info(
            "batch accepted",
            batch_id=reply.batch_id,
            brand_id=batch.brand_id,
            messages=reply.accepted,
            bad_recipients=reply.bad_recipient_count,
            repeated=repeated,
        )
        return reply

    async def GetMessage(
        self, request: sms_gateway_pb2.GetMessageRequest, context: Context
    ) -> sms_gateway_pb2.GetMessageResponse:
        """One message."""
        missing = not_found("MESSAGE_NOT_FOUND", "there is no such message")
        brand_id = asking.identified_brand(request.message_id, missing)
        current_principal().require_brand(brand_id)
        async with self._database.connection() as connection:
            message = await listing.find_message(connection, brand_id, request.message_id)
        if message is None:
            raise missing
        return sms_gateway_pb2.GetMessageResponse(message=_message(message))

    async def ListMessages(
        self, request: sms_gateway_pb2.ListMessagesRequest, context: Context
    ) -> sms_gateway_pb2.ListMessagesResponse:
        """A page of a brand's messages."""
        brand_id = asking.required_brand(request.brand_id)
        current_principal().require_brand(brand_id)
        size = paging.page_size(request.page_size)
        if request.state not in _STATES:
            raise invalid_fields({"state": "must be a known state, or none"})
        batch_id = asking.listed_identifier(request.batch_id, brand_id, "batch_id", "must be a batch of this brand")
        before = asking.listed_identifier(
            paging.decode_token(request.page_token), brand_id, "page_token", "must be a next_page_token of this call"
        )
        mobile = asking.listed_mobile(request.mobile)
        if request.sms_type and request.sms_type not in TYPE_NAMES:
            raise invalid_fields({"sms_type": "must be verification (1), notification (2), marketing (3), or none"})
        first, last = asking.listed_time(request)
        try:
            async with asyncio.timeout(self._settings.listing_seconds), self._database.connection() as connection:
                messages = await listing.list_messages(
                    connection,
                    brand_id,
                    batch_id=batch_id,
                    state=request.state,
                    mobile=mobile,
                    sms_type=request.sms_type,
                    first=first,
                    last=last,
                    before=before,
                    limit=size + 1,
                )
        except TimeoutError:
            raise Refusal(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "LISTING_TOO_LONG",
                "too many messages to search; name a batch or a number",
            ) from None
        next_token = paging.encode_token(messages[size - 1].message_id) if len(messages) > size else ""
        return sms_gateway_pb2.ListMessagesResponse(
            messages=[_message(message) for message in messages[:size]], next_page_token=next_token
        )

    async def GetBatch(
        self, request: sms_gateway_pb2.GetBatchRequest, context: Context
    ) -> sms_gateway_pb2.GetBatchResponse:
        """One batch with its counts."""
        missing = not_found("BATCH_NOT_FOUND", "there is no such batch")
        brand_id = asking.identified_brand(request.batch_id, missing)
        current_principal().require_brand(brand_id)
        batch, states = await self._find_batch(brand_id, request.batch_id, counted=not request.without_states)
        if batch is None:
            raise missing
        return sms_gateway_pb2.GetBatchResponse(batch=_batch(batch, brand_id, states))

    async def FollowBatch(
        self, request: sms_gateway_pb2.FollowBatchRequest, context: Context
    ) -> AsyncIterator[sms_gateway_pb2.FollowBatchResponse]:
        """Follow one batch until it is done."""
        brand_id = asking.identified_brand(request.batch_id, not_found("BATCH_NOT_FOUND", "there is no such batch"))
        current_principal().require_brand(brand_id)
        after = asking.listed_identifier(
            paging.decode_token(request.resume_token), brand_id, "resume_token", "must be a resume_token of this call"
        )
        progress = self._follower.follow(brand_id, request.batch_id, with_messages=request.with_messages, after=after)
        async for each in progress:
            yield sms_gateway_pb2.FollowBatchResponse(
                accepted=each.accepted,
                states=[
                    sms_gateway_pb2.StateCount(state=state, messages=messages)  # type: ignore[arg-type]
                    for state, messages in each.states
                ],
                ends=[
                    sms_gateway_pb2.MessageEnd(
                        message_id=end.message_id,
                        mobile=end.mobile,
                        state=end.state,  # type: ignore[arg-type] # the record holds the enum's number
                        result_code=end.result_code,
                        segments=end.segments,
                        finished_at=_timestamp(end.finished_at),
                    )
                    for end in each.ends
                ],
                resume_token=each.resume_token,
                done=each.done,
            )

    async def CancelMessage(
        self, request: sms_gateway_pb2.CancelMessageRequest, context: Context
    ) -> sms_gateway_pb2.CancelMessageResponse:
        """Cancel a single message."""
        missing = not_found("MESSAGE_NOT_FOUND", "there is no such message")
        brand_id = asking.identified_brand(request.message_id, missing)
        current_principal().require_brand(brand_id)
        cancelled = await self._canceller.cancel_message(brand_id, request.message_id)
        log.info("message cancelled", message_id=request.message_id, brand_id=brand_id, cancelled=cancelled)
        return sms_gateway_pb2.CancelMessageResponse(cancelled=cancelled)

    async def CancelBatch(
        self, request: sms_gateway_pb2.CancelBatchRequest, context: Context
    ) -> sms_gateway_pb2.CancelBatchResponse:
        """Cancel what is queued of a batch."""
        missing = not_found("BATCH_NOT_FOUND", "there is no such batch")
        brand_id = asking.identified_brand(request.batch_id, missing)
        current_principal().require_brand(brand_id)
        reply = await self._canceller.cancel(brand_id, request.batch_id)
        log.info("batch cancelled", batch_id=request.batch_id, brand_id=brand_id, messages=reply.cancelled)
        return reply

    async def PauseBatch(
        self, request: sms_gateway_pb2.PauseBatchRequest, context: Context
    ) -> sms_gateway_pb2.PauseBatchResponse:
        """Pause a batch."""
        brand_id = self._brand_of_batch(request.batch_id)
        paused = await self._pauser.pause(brand_id, request.batch_id)
        log.info("batch paused", batch_id=request.batch_id, brand_id=brand_id, messages=paused.waiting)
        return sms_gateway_pb2.PauseBatchResponse(paused=paused.waiting, in_flight=paused.in_flight)

    async def ResumeBatch(
        self, request: sms_gateway_pb2.ResumeBatchRequest, context: Context
    ) -> sms_gateway_pb2.ResumeBatchResponse:
        """Go on with a batch."""
        brand_id = self._brand_of_batch(request.batch_id)
        resumed = await self._pauser.resume(brand_id, request.batch_id)
        log.info("batch resumed", batch_id=request.batch_id, brand_id=brand_id, messages=resumed)
        return sms_gateway_pb2.ResumeBatchResponse(resumed=resumed)

    async def ListBatches(
        self, request: sms_gateway_pb2.ListBatchesRequest, context: Context
    ) -> sms_gateway_pb2.ListBatchesResponse:
        """A page of a brand's batches."""
        brand_id = asking.required_brand(request.brand_id)
        current_principal().require_brand(brand_id)
        size = paging.page_size(request.page_size)
        campaign_id = asking.listed_campaign(request.campaign_id)
        before = asking.listed_identifier(
            paging.decode_token(request.page_token), brand_id, "page_token", "must be a next_page_token of this call"
        )
        async with self._database.connection() as connection:
            batches = await listing.list_batches(
                connection, brand_id, campaign_id=campaign_id, before=before, limit=size + 1
            )
        return sms_gateway_pb2.ListBatchesResponse(
            batches=[_batch(batch, brand_id) for batch in batches[:size]],
            next_page_token=paging.encode_token(batches[size - 1].batch_id) if len(batches) > size else "",
        )

    async def CountSegments(
        self, request: sms_gateway_pb2.CountSegmentsRequest, context: Context
    ) -> sms_gateway_pb2.CountSegmentsResponse:
        """Count the segments of a text."""
        count = asking.counted(request, self._settings)
        return sms_gateway_pb2.CountSegmentsResponse(
            segments=count.segments, encoding=count.encoding, units=count.units
        )

    async def ListParked(
        self, request: sms_gateway_pb2.ListParkedRequest, context: Context
    ) -> sms_gateway_pb2.ListParkedResponse:
        """A page of what is parked."""
        kind, page = parking.page(request)
        if page.brand_id:
            current_principal().require_brand(page.brand_id)
        else:
            current_principal().require_all_brands()
        rows = await self._parked.page(kind, page)
        size = page.limit - 1
        return sms_gateway_pb2.ListParkedResponse(
            items=[_parked_item(kind, row) for row in rows[:size]],
            next_page_token=parking.token_after(rows[size - 1]) if len(rows) > size else "",
        )

    async def RetryParked(
        self, request: sms_gateway_pb2.RetryParkedRequest, context: Context
    ) -> sms_gateway_pb2.RetryParkedResponse:
        """Have parked work tried again."""
        kind, keys = parking.chosen(request)
        _require_keys(kind, keys)
        retried = await self._parked.retry(kind, keys)
        _log_parked("parked work is tried again", kind, retried, request)
        return sms_gateway_pb2.RetryParkedResponse(
            retried=sorted(retried), not_parked=sorted(set(request.parked_ids) - retried)
        )

    async def DropParked(
        self, request: sms_gateway_pb2.DropParkedRequest, context: Context
    ) -> sms_gateway_pb2.DropParkedResponse:
        """Drop parked work."""
        kind, keys = parking.chosen(request)
        _require_keys(kind, keys)
        dropped = await self._parked.drop(kind, keys, detail=f"dropped by {request.author}: {request.reason}")
        _log_parked("parked work dropped", kind, dropped.ids, request)
        return sms_gateway_pb2.DropParkedResponse(
            dropped=sorted(dropped.ids),
            not_parked=sorted(set(request.parked_ids) - dropped.ids - dropped.kept.keys()),
            kept=[
                sms_gateway_pb2.KeptItem(parked_id=parked_id, why=why)
                for parked_id, why in sorted(dropped.kept.items())
            ],
        )

    async def _read(self, parts: AsyncIterator[sms_gateway_pb2.SendBatchSmsRequest], place: BatchPlace) -> Batch:
        first = await anext(aiter(parts), None)
        if first is None or first.WhichOneof("part") != "header":
            raise invalid_fields({"part": "must be the header first"})
        header = first.header
        current_principal().require_brand(asking.required_brand(header.brand_id, field="header.brand_id"))
        terms = asking.batch_header(header, self._settings, await self._judge(header.brand_id))
        if terms.refusal is not None and not await self._batches.is_known(header.brand_id, header.request_id):
            _count_rule(header.sms_type, terms.refusal)
            raise terms.refusal
        return await asking.BatchReader(header, self._settings, place.hold, terms).read(parts)

    async def _judge(self, brand_id: int) -> Judge:
        rules = await self._book.rules_of(brand_id)
        return Judge(rules, self._book.words, self._book.clock(), self._settings)

    @staticmethod
    def _brand_of_batch(batch_id: str) -> int:
        brand_id = asking.identified_brand(batch_id, not_found("BATCH_NOT_FOUND", "there is no such batch"))
        current_principal().require_brand(brand_id)
        return brand_id

    async def _find_batch(
        self, brand_id: int, batch_id: str, *, counted: bool
    ) -> tuple[listing.SeenBatch | None, list[tuple[int, int]]]:
        async with self._database.snapshot() as connection:
            batch = await listing.find_batch(connection, brand_id, batch_id)
            states = await listing.count_batch(connection, brand_id, batch_id) if batch and counted else []
        return batch, states


_STATES = frozenset({0, *(int(state) for state in MessageState)})


def _require_keys(kind: ParkedKind, keys: Sequence[Key]) -> None:
    if kind is ParkedKind.RECEIPT:
        current_principal().require_all_brands()
    for brand_id in {key[0] for key in keys} - {0}:
        current_principal().require_brand(brand_id)


def _log_parked(
    event: str,
    kind: ParkedKind,
    ids: Iterable[str],
    request: sms_gateway_pb2.RetryParkedRequest | sms_gateway_pb2.DropParkedRequest,
) -> None:
    """One line for each: who did it, with which token, and why."""
    token_id = current_principal().token_id
    for parked_id in sorted(ids):
        log.warning(
            event,
            kind=kind.name.lower(),
            parked_id=parked_id,
            author=request.author,
            reason=request.reason,
            token_id=token_id,
        )


def _parked_item(kind: ParkedKind, row: ParkedRow) -> sms_gateway_pb2.ParkedItem:
    return sms_gateway_pb2.ParkedItem(
        parked_id=row.parked_id,
        kind=int(kind),  # type: ignore[arg-type] # the numbers are the enum's
        brand_id=row.brand_id,
        subject=row.subject,
        request_id=row.request_id,
        carrier_account=row.account,
        reference=row.reference,
        messages=row.messages,
        segments=row.segments,
        tries=row.tries,
        error=row.error,
        created_at=_timestamp(row.created_at),
    )


def _count(sms_type: int, mode: Mode, result: str, messages: int = 1) -> None:
    MESSAGES.labels(TYPE_NAMES[sms_type], MODE_NAMES[mode], result).inc(messages)


def _count_rule(sms_type: int, error: BaseException, messages: int = 1) -> None:
    if isinstance(error, Refusal) and error.reason in RULE_REASONS:
        RULE_REFUSALS.labels(TYPE_NAMES[sms_type], error.reason).inc(messages)


def _result(error: BaseException) -> str:
    unsettled = not isinstance(error, Refusal) or error.code is grpc.StatusCode.UNAVAILABLE
    return "unavailable" if unsettled else "refused"


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def _batch(batch: listing.SeenBatch, brand_id: int, states: Sequence[tuple[int, int]] = ()) -> sms_gateway_pb2.Batch:
    return sms_gateway_pb2.Batch(
        batch_id=batch.batch_id,
        brand_id=brand_id,
        sms_type=batch.sms_type,  # type: ignore[arg-type] # the record holds the enum's number
        text=batch.text,
        accepted=batch.accepted,
        segments=batch.segments,
        order_no=batch.order_no,
        states=[
            sms_gateway_pb2.StateCount(state=state, messages=messages)  # type: ignore[arg-type]
            for state, messages in states
        ],
        created_at=_timestamp(batch.accepted_at),
        cancelled=batch.cancelled,
        variables=unpack_names(batch.variables),
        campaign_id=batch.campaign_id,
        paused=batch.paused,
        request_id=batch.request_id,
    )


def _message(message: listing.SeenMessage) -> sms_gateway_pb2.Message:
    return sms_gateway_pb2.Message(
        message_id=message.message_id,
        brand_id=message.brand_id,
        batch_id=message.batch_id,
        sms_type=message.sms_type,  # type: ignore[arg-type] # the record holds the enum's number
        mobile=message.mobile,
        text=message.text,
        segments=message.segments,
        state=message.state,  # type: ignore[arg-type]
        order_no=message.order_no,
        payment_no=message.payment_no,
        carrier_account=message.account,
        carrier_message_id=message.carrier_message_id,
        result_code=message.result_code,
        result_detail=message.result_detail,
        created_at=_timestamp(message.created_at),
        submitted_at=_timestamp(message.submitted_at),
        sent_at=_timestamp(message.sent_at),
        finished_at=_timestamp(message.finished_at),
        request_id=message.request_id,
    )
