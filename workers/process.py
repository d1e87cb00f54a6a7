"""A worker as a process: the lanes, the consumers and the sweepers in one event loop, and a small HTTP port."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from contextlib import AsyncExitStack, suppress
from functools import partial

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.applications import Starlette

from infra.database import FRESH_PLAN_OPTIONS, Database
from infra.errors import StartError
from infra.heartbeat import Watchdog
from infra.http_server import HttpServer, observability_routes
from infra.identifiers import IdentifierSource
from smsgateway import migrations
from smsgateway.abandoned import AbandonedCalls
from smsgateway.carriers.base import Carrier, ReceivingCarrier
from smsgateway.carriers.registry import carrier_kind
from smsgateway.dispatch_queue import DispatchQueue
from smsgateway.ledger_client import LedgerClient
from smsgateway.queues import Queues, open_redis
from smsgateway.receipts_intake import ReceiptIntake
from smsgateway.replies_intake import ReplyIntake
from smsgateway.schema import Mode
from smsgateway.settling import MessageSettler
from workers.account import AccountGate
from workers.lane import Lane
from workers.loops import OUTAGES, Loops
from workers.metrics import TYPE_NAMES
from workers.notices import Notices
from workers.outbox_relay import OutboxRelay
from workers.receipt_consumer import ReceiptConsumer
from workers.receipt_puller import ReceiptPuller, ReplyPuller
from workers.receipt_receiver import RECEIVER_LOOK_SECONDS, ReceiptReceiver
from workers.release_consumer import ReleaseConsumer
from workers.sender import Sender
from workers.settings import Settings
from workers.settlement import Settlement
from workers.stopping import StopSignal
from workers.sweepers import Sweepers
from workers.webhook_relay import WebhookRelay

log = structlog.get_logger(__name__)

HTTP_REQUESTS_MAX = 100
# Parts of the drain time: what is in hand has most of it, then the loops, then what they owe.
_DRAIN_IN_HAND = 0.8
_DRAIN_LOOPS = 0.1
_NOTICE_WAIT_SECONDS = 1.0
_LANE_INTERVAL_SECONDS = 0.25


class WorkerProcess:
    """A worker. After `start`, `http_port` tells where it serves metrics and health.

    Parameters: `carrier` instead of the settings' account; closed with the worker.
    """

    def __init__(self, settings: Settings, *, carrier: Carrier | None = None) -> None:
        self._settings = settings
        self._carrier = carrier
        self._stack = AsyncExitStack()
        self._stop = StopSignal()
        self._lanes: dict[tuple[int, int], Lane] = {}
        self._watchdog = Watchdog(settings.watchdog_seconds)
        self._loops = Loops(retry_seconds_max=settings.loop_retry_seconds_max, watchdog=self._watchdog)
        # No colon: it stands before one in a lease. Random, because a restarted worker is another one.
        self.worker_id = f"w{os.getpid()}-{secrets.token_hex(6)}"
        self._relay: OutboxRelay | None = None
        self._pullers: list[ReceiptPuller | ReplyPuller] = []
        self._account: AccountGate | None = None
        self.http_port = 0

    @property
    def loops(self) -> Loops:
        """The tasks, for those who watch them."""
        return self._loops

    async def start(self) -> None:
        """Connect and begin to work. Raises `StartError` with one line that says what to do; then nothing is left
        running. The cost centre and the carrier need not be there yet: until they are, everything waits.
        """
        try:
            await self._start()
        except BaseException:
            self._stop.set()
            await self._loops.stop(0)
            for puller in self._pullers:
                # It may have taken what nobody can ask for again.
                with suppress(*OUTAGES):
                    async with asyncio.timeout(self._settings.drain_seconds):
                        await puller.close()
            await self._stack.aclose()
            raise

    async def stop(self) -> None:
        """Take nothing new, finish or give back what is in hand within `drain_seconds`, disconnect."""
        log.info("worker stops", worker=self.worker_id)
        deadline = time.monotonic() + self._settings.drain_seconds
        self._stop.set()
        budget = self._settings.drain_seconds * _DRAIN_IN_HAND
        await asyncio.gather(*(lane.drain(budget) for lane in self._lanes.values()))
        await self._loops.stop(min(self._settings.drain_seconds * _DRAIN_LOOPS, deadline - time.monotonic()))
        try:
            async with asyncio.timeout(max(0.1, deadline - time.monotonic())):
                closing = [puller.close() for puller in self._pullers]
                await asyncio.gather(*closing, *(lane.give_back() for lane in self._lanes.values()))
                while self._relay is not None and self._relay.waiting:
                    await self._relay.send_offered()
        except OUTAGES as error:
            # Leases end by themselves, and what is owed stands in the outbox.
            log.warning("stopped before all was given back", error=type(error).__name__)
        await self._stack.aclose()
        log.info("worker stopped", worker=self.worker_id)

    async def _start(self) -> None:
        settings, stack = self._settings, self._stack
        _check_settings(settings)
        database = Database(
            settings.database_url,
            size=settings.worker_database_connections,
            statements=settings.worker_statement_connections,
            wait_seconds=settings.database_wait_seconds,
            options=FRESH_PLAN_OPTIONS,
            name="worker",
        )
        await database.open()
        stack.push_async_callback(database.close)
        await asyncio.to_thread(migrations.require_current, settings.database_url)
        redis = self._open_redis(settings.redis_call_seconds)
        if not await _is_reachable(redis):
            raise StartError("Redis cannot be reached; check SMSBILL_REDIS_URL and that the server runs")
        # Waits for notices and receipts must not look like a server that does not answer.
        waiting = self._open_redis(
            settings.redis_call_seconds + max(_NOTICE_WAIT_SECONDS, settings.receipt_wait_seconds)
        )
        ledger = LedgerClient(settings)
        stack.push_async_callback(ledger.close)
        carrier = self._carrier or self._configured_carrier()
        if carrier is not None:
            stack.push_async_callback(carrier.aclose)
        self._begin(database, redis, waiting, ledger, carrier)
        gate = self._account
        http = HttpServer(
            Starlette(
                routes=observability_routes(
                    "SMS worker",
                    {
                        "database": database.reachable,
                        "redis": lambda: _is_reachable(redis),
                        "costcenter": ledger.reachable,
                    },
                    self._watchdog,
                    notes={} if gate is None else {"carrier": lambda: gate.state},
                )
            ),
            settings.worker_http_address,
            requests_max=HTTP_REQUESTS_MAX,
            drain_seconds=settings.drain_seconds,
        )
        await http.start()
        stack.push_async_callback(http.stop)
        self.http_port = http.port
        log.info("worker works", worker=self.worker_id, http_port=self.http_port)

    def _begin(
        self, database: Database, redis: Redis, waiting: Redis, ledger: LedgerClient, carrier: Carrier | None
    ) -> None:
        settings = self._settings
        queues = Queues(redis, receipt_streams=settings.receipt_streams)
        identifiers = IdentifierSource()
        self._relay = relay = OutboxRelay(database, ledger, settings)
        settlement = Settlement(database, relay, identifiers, hold_seconds=settings.outbox_hold_seconds)
        if carrier is None:
            log.warning(
                f"no carrier account: set SMSBILL_{settings.carrier.upper()}_*; until then messages stay queued"
            )
        else:
            self._add_lanes(database, queues, ledger, carrier, settlement, identifiers)
            self._add_notices(waiting, queues)
        self._add_outbox(relay)
        self._add_webhooks(database)
        receipts = ReceiptConsumer(
            database,
            Queues(waiting, receipt_streams=settings.receipt_streams),
            ledger,
            settlement,
            self.worker_id,
            settings,
        )
        for number in range(settings.receipt_streams):
            self._loops.add(f"receipts-{number}", partial(receipts.step, number), interval_seconds=0.1)
        self._add_jobs(ledger)
        dispatch_queue = DispatchQueue(
            database,
            queues,
            settings,
            self._watchdog.heartbeat("stream-entries", interval_seconds=settings.stream_entry_seconds),
        )
        self._stack.push_async_callback(dispatch_queue.close)
        pulls = settings.receipt_pull and carrier is not None and carrier.limits.max_pull > 0
        if carrier is not None and (pulls or isinstance(carrier, ReceivingCarrier)):
            intake = ReceiptIntake(database, dispatch_queue, identifiers, settings, self._watchdog)
            self._stack.push_async_callback(intake.close)
            if pulls:
                self._add_puller(carrier, database, intake)
        if carrier is not None:
            replies = ReplyIntake(database, identifiers, settings, self._watchdog)
            self._stack.push_async_callback(replies.close)
            if settings.reply_pull and carrier.limits.max_pull_replies > 0:
                self._add_reply_puller(carrier, database, replies)
            if isinstance(carrier, ReceivingCarrier):
                self._add_receiver(carrier, intake, replies)
        self._add_sweepers(
            Sweepers(
                database=database,
                queues=queues,
                settlement=settlement,
                relay=relay,
                receipts=receipts,
                abandoned=AbandonedCalls(
                    database,
                    ledger,
                    MessageSettler(database, ledger, dispatch_queue, identifiers),
                    identifiers,
                    settings,
                ),
                worker=self.worker_id,
                call_seconds=carrier.limits.call_timeout_s if carrier is not None else 60,
                pulled=carrier.account_id if pulls and carrier is not None else None,
                settings=settings,
            )
        )

    def _add_lanes(
        self,
        database: Database,
        queues: Queues,
        ledger: LedgerClient,
        carrier: Carrier,
        settlement: Settlement,
        identifiers: IdentifierSource,
    ) -> None:
        settings = self._settings
        self._account = account = AccountGate(carrier.account_id, settings)
        for sms_type, type_name in TYPE_NAMES.items():
            for mode in Mode:
                sender = Sender(
                    sms_type=sms_type,
                    mode=mode,
                    database=database,
                    ledger=ledger,
                    carrier=carrier,
                    settlement=settlement,
                    identifiers=identifiers,
                    account=account,
                    stop=self._stop,
                    settings=settings,
                )
                lane = Lane(
                    sms_type=sms_type,
                    mode=mode,
                    worker=self.worker_id,
                    queues=queues,
                    sender=sender,
                    stop=self._stop,
                    settings=settings,
                )
                self._lanes[sms_type, mode] = lane
                self._loops.add(
                    f"lane-{type_name}-{mode.name.lower()}",
                    lane.step,
                    interval_seconds=_LANE_INTERVAL_SECONDS,
                    wake=lane.wake,
                )
        self._loops.add("leases", self._renew, interval_seconds=settings.lease_seconds / 3)

    def _add_puller(self, carrier: Carrier, database: Database, intake: ReceiptIntake) -> None:
        puller = ReceiptPuller(carrier, database, intake, self.worker_id, self._stop, self._settings)
        self._pullers.append(puller)
        self._loops.add("receipt-pull", puller.step, interval_seconds=self._settings.receipt_pull_seconds)

    def _add_reply_puller(self, carrier: Carrier, database: Database, intake: ReplyIntake) -> None:
        puller = ReplyPuller(carrier, database, intake, self.worker_id, self._stop, self._settings)
        self._pullers.append(puller)
        self._loops.add("reply-pull", puller.step, interval_seconds=self._settings.reply_pull_seconds)

    def _add_receiver(self, carrier: ReceivingCarrier, intake: ReceiptIntake, replies: ReplyIntake) -> None:
        receiver = ReceiptReceiver(carrier, intake, replies, self._settings.carrier)
        self._stack.push_async_callback(receiver.close)
        self._loops.add("receipt-receive", receiver.step, interval_seconds=RECEIVER_LOOK_SECONDS)

    def _add_notices(self, waiting: Redis, queues: Queues) -> None:
        notices = Notices(
            waiting,
            queues,
            self._lanes,
            wait_seconds=_NOTICE_WAIT_SECONDS,
            walk_limit=self._settings.walk_limit,
        )
        self._stack.push_async_callback(notices.close)
        self._loops.add("notices", notices.listen, interval_seconds=0)
        self._loops.add("walk", notices.walk, interval_seconds=self._settings.walk_seconds, wake=notices.walk_wake)

    def _add_outbox(self, relay: OutboxRelay) -> None:
        self._loops.add("outbox-offered", relay.send_offered, interval_seconds=1, wake=relay.wake)
        self._loops.add("outbox-due", relay.send_due, interval_seconds=self._settings.outbox_poll_seconds)

    def _add_webhooks(self, database: Database) -> None:
        settings = self._settings
        webhooks = WebhookRelay(database, self.worker_id, settings)
        self._stack.push_async_callback(webhooks.close, settings.drain_seconds * _DRAIN_LOOPS)
        self._loops.add("webhooks", webhooks.step, interval_seconds=settings.webhook_poll_seconds)

    def _add_jobs(self, ledger: LedgerClient) -> None:
        settings = self._settings
        jobs = ReleaseConsumer(ledger, wait_seconds=settings.release_wait_seconds, limit=settings.cleanup_limit)
        self._loops.add("releases", jobs.apply_releases, interval_seconds=1)
        self._loops.add("book-due", jobs.book_due, interval_seconds=settings.book_due_seconds)
        self._loops.add("ledger-clean-up", jobs.clean_up, interval_seconds=settings.cleanup_seconds)

    def _add_sweepers(self, sweepers: Sweepers) -> None:
        settings = self._settings
        for name, step in (
            ("overdue", sweepers.overdue),
            ("undecided", sweepers.undecided),
            ("expire", sweepers.expire),
            ("requeue", sweepers.requeue),
            ("receipts-due", sweepers.receipts),
            ("accepting", sweepers.accepting),
        ):
            self._loops.add(name, step, interval_seconds=settings.sweep_seconds)
        self._loops.add("delayed", sweepers.delayed, interval_seconds=min(1.0, settings.sweep_seconds))
        self._loops.add("clean-up", sweepers.clean_up, interval_seconds=settings.cleanup_seconds)
        self._loops.add("measure", sweepers.measure, interval_seconds=settings.depth_seconds)

    async def _renew(self) -> None:
        await asyncio.gather(*(lane.renew() for lane in self._lanes.values()))

    def _open_redis(self, timeout_seconds: float) -> Redis:
        redis = open_redis(
            self._settings.redis_url,
            connections_max=self._settings.worker_redis_connections,
            timeout_seconds=timeout_seconds,
            name="smsbill-worker",
        )
        self._stack.push_async_callback(redis.aclose)
        return redis

    def _configured_carrier(self) -> Carrier | None:
        # A connection for every slot: a call that waits for one would be a slot of another type lost.
        slots = 2 * sum(self._settings.slots(sms_type) for sms_type in TYPE_NAMES)
        # And two to pull receipts and replies.
        return carrier_kind(self._settings.carrier).open(self._settings, connections_max=slots + 2)


async def _is_reachable(redis: Redis) -> bool:
    try:
        return bool(await redis.ping())
    except (RedisError, OSError, TimeoutError):
        return False


def _check_settings(settings: Settings) -> None:
    for name in ("database_url", "redis_url"):
        if not getattr(settings, name):
            raise StartError(f"set SMSBILL_{name.upper()}, or start the whole stack with `smsbill up`")
    if not settings.service_token.get_secret_value():
        raise StartError("set SMSBILL_SERVICE_TOKEN to a token of role biller for all brands (`smsbill token create`)")
