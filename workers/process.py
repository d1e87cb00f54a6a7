"""A worker as a process: the lanes, the consumers and the sweepers in one event loop, and a small HTTP port."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from functools import cache, partial

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
from smsgateway.alert_board import AlertBoard
from smsgateway.carrier_states import WRITE_SECONDS, CarrierStates
from smsgateway.carriers.base import Carrier, ReceivingCarrier
from smsgateway.carriers.registry import carrier_kind
from smsgateway.dispatch_queue import DispatchQueue
from smsgateway.ledger_client import LedgerClient
from smsgateway.queues import Queues, open_redis
from smsgateway.receipts_intake import ReceiptIntake
from smsgateway.replies_intake import ReplyIntake
from smsgateway.schema import Mode
from smsgateway.settling import MessageSettler
from workers.accounts import Account, Accounts, connections_of
from workers.alert_watch import AlertWatch
from workers.balance import BalanceWatch
from workers.figures import Figures
from workers.lane import Lane
from workers.loops import OUTAGES, Loop, Loops
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
from workers.usage_keeper import UsageKeeper
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
        # Of each account: what pulls its receipts and replies.
        self._pullers: dict[Account, list[tuple[ReceiptPuller | ReplyPuller, Loop]]] = {}
        self._receivers: dict[Account, tuple[ReceiptReceiver, Loop]] = {}
        self._accounts: Accounts | None = None
        # What is begun with the first account, and what is needed once an account gives receipts or replies to workers.
        self._begin_lanes: Callable[[], None] | None = None
        self._intakes: Callable[[], tuple[Database, ReceiptIntake, ReplyIntake]] | None = None
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
            for puller in self._all_pullers():
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
                closing = [puller.close() for puller in self._all_pullers()]
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
        accounts = await self._begin(database, redis, waiting, ledger, carrier)
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
                    notes={"carrier": lambda: accounts.state},
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

    async def _begin(
        self, database: Database, redis: Redis, waiting: Redis, ledger: LedgerClient, carrier: Carrier | None
    ) -> Accounts:
        settings = self._settings
        queues = Queues(redis, receipt_streams=settings.receipt_streams)
        identifiers = IdentifierSource()
        self._relay = relay = OutboxRelay(database, ledger, settings)
        settlement = Settlement(database, relay, identifiers, hold_seconds=settings.outbox_hold_seconds)
        dispatch_queue = DispatchQueue(
            database,
            queues,
            settings,
            self._watchdog.heartbeat("stream-entries", interval_seconds=settings.stream_entry_seconds),
        )
        self._stack.push_async_callback(dispatch_queue.close)
        self._accounts = accounts = Accounts(
            database,
            redis,
            settings,
            worker=self.worker_id,
            default=carrier,
            connections_max=connections_of(settings),
            opened=self._account_opened,
            closing=self._account_closing,
        )
        self._stack.push_async_callback(accounts.close)

        def begin_lanes() -> None:
            self._add_lanes(database, queues, ledger, accounts, settlement, identifiers)
            self._add_notices(waiting, queues)

        def make_intakes() -> tuple[Database, ReceiptIntake, ReplyIntake]:
            intake = ReceiptIntake(database, dispatch_queue, identifiers, settings, self._watchdog)
            self._stack.push_async_callback(intake.close)
            replies = ReplyIntake(database, identifiers, settings, self._watchdog)
            self._stack.push_async_callback(replies.close)
            return database, intake, replies

        self._begin_lanes = begin_lanes
        self._intakes = cache(make_intakes)
        self._stack.push_async_callback(self._close_receivers)
        if await accounts.begin() and not accounts.all:
            log.warning(
                f"no carrier account: set SMSBILL_{settings.carrier.upper()}_*, or `smsbill carrier put`; until then "
                "messages stay queued"
            )
        self._loops.add("carrier-accounts", accounts.step, interval_seconds=settings.routing_poll_seconds)
        balance = BalanceWatch(accounts, database, queues, self.worker_id, settings)
        states = CarrierStates(redis)

        async def tell_states() -> None:
            await states.write(self.worker_id, accounts.states, now_ms=time.time_ns() // 1_000_000)

        self._loops.add("carrier-states", tell_states, interval_seconds=WRITE_SECONDS)
        self._loops.add("carrier-balance", balance.step, interval_seconds=settings.balance_seconds)
        self._add_outbox(relay)
        self._add_webhooks(database)
        self._add_alerts(
            database,
            AlertWatch(
                database=database,
                queues=queues,
                board=AlertBoard(redis),
                ledger=ledger,
                accounts=accounts,
                identifiers=identifiers,
                worker=self.worker_id,
                settings=settings,
            ),
        )
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
        figures = Figures(database, queues, ledger, self.worker_id, settings)
        self._loops.add("figures", figures.step, interval_seconds=settings.figures_seconds)
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
                call_seconds=lambda: accounts.call_seconds,
                pulled=lambda: [
                    account.account_id
                    for account, pullers in self._pullers.items()
                    if any(isinstance(puller, ReceiptPuller) for puller, _ in pullers)
                ],
                settings=settings,
            )
        )
        self._add_usage(UsageKeeper(database, queues, self.worker_id, settings))
        return accounts

    def _add_lanes(
        self,
        database: Database,
        queues: Queues,
        ledger: LedgerClient,
        accounts: Accounts,
        settlement: Settlement,
        identifiers: IdentifierSource,
    ) -> None:
        settings = self._settings
        for sms_type, type_name in TYPE_NAMES.items():
            for mode in Mode:
                sender = Sender(
                    sms_type=sms_type,
                    mode=mode,
                    database=database,
                    ledger=ledger,
                    accounts=accounts,
                    settlement=settlement,
                    identifiers=identifiers,
                    stop=self._stop,
                    settings=settings,
                    watchdog=self._watchdog,
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

    def _all_pullers(self) -> list[ReceiptPuller | ReplyPuller]:
        return [puller for pullers in self._pullers.values() for puller, _ in pullers]

    def _account_opened(self, account: Account) -> None:
        """An account is there: what it gives to workers is taken, and with the first of all the lanes begin."""
        settings, carrier = self._settings, account.carrier
        if self._stop.is_set:
            return
        if self._begin_lanes is not None:
            self._begin_lanes()
            self._begin_lanes = None
        assert self._intakes is not None
        # The environment's has the plain name, as ever.
        suffix = f"-{account.account_id}" if account.version else ""
        pullers: list[tuple[ReceiptPuller | ReplyPuller, Loop]] = []
        if settings.receipt_pull and carrier.limits.max_pull > 0:
            database, intake, _ = self._intakes()
            receipts = ReceiptPuller(carrier, database, intake, self.worker_id, self._stop, settings)
            seconds = settings.receipt_pull_seconds
            pullers.append(
                (receipts, self._loops.add(f"receipt-pull{suffix}", receipts.step, interval_seconds=seconds))
            )
        if settings.reply_pull and carrier.limits.max_pull_replies > 0:
            database, _, intake_of_replies = self._intakes()
            replies = ReplyPuller(carrier, database, intake_of_replies, self.worker_id, self._stop, settings)
            seconds = settings.reply_pull_seconds
            pullers.append((replies, self._loops.add(f"reply-pull{suffix}", replies.step, interval_seconds=seconds)))
        if pullers:
            self._pullers[account] = pullers
        if isinstance(carrier, ReceivingCarrier):
            _, intake, intake_of_replies = self._intakes()
            receiver = ReceiptReceiver(carrier, intake, intake_of_replies, account.kind)
            loop = self._loops.add(f"receipt-receive{suffix}", receiver.step, interval_seconds=RECEIVER_LOOK_SECONDS)
            self._receivers[account] = (receiver, loop)

    async def _account_closing(self, account: Account) -> None:
        """An account is going: its receipts and replies are not taken any more."""
        received = self._receivers.pop(account, None)
        if received is not None:
            receiver, loop = received
            await self._loops.remove(loop)
            await receiver.close()
        for puller, loop in self._pullers.pop(account, []):
            await self._loops.remove(loop)
            with suppress(*OUTAGES):
                async with asyncio.timeout(self._settings.drain_seconds):
                    await puller.close()

    async def _close_receivers(self) -> None:
        for receiver, _ in self._receivers.values():
            await receiver.close()

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

    def _add_alerts(self, database: Database, watch: AlertWatch) -> None:
        settings = self._settings
        self._loops.add("alerts", watch.step, interval_seconds=settings.alert_seconds)
        self._loops.add("alert-counts", watch.count, interval_seconds=settings.alert_count_seconds)
        if settings.smtp_host:
            # The mail libraries are for those who send mail: every worker's start would pay for them.
            from workers.alert_mailer import AlertMailer  # noqa: PLC0415

            mailer = AlertMailer(database, settings)
            self._loops.add("alert-mail", mailer.step, interval_seconds=settings.mail_poll_seconds)

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

    def _add_usage(self, usage: UsageKeeper) -> None:
        settings = self._settings
        self._loops.add("usage", usage.fold, interval_seconds=settings.usage_fold_seconds)
        self._loops.add("usage-recipients", usage.count, interval_seconds=settings.usage_fold_seconds)

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
        settings = self._settings
        return carrier_kind(settings.carrier).open(settings, connections_max=connections_of(settings))


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
