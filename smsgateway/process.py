"""The gateway as a process: the gRPC service and the HTTP app in one event loop."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio
import structlog
from redis.exceptions import RedisError
from starlette.types import ASGIApp

from infra.authorization import Authenticator
from infra.database import FRESH_PLAN_OPTIONS, Database
from infra.errors import StartError
from infra.grpc_server import GrpcServer
from infra.heartbeat import Watchdog
from infra.http_server import HttpServer
from infra.identifiers import IdentifierSource
from infra.local_calls import LocalChannel
from protos.smsgateway.v1 import (
    alerts_pb2_grpc,
    campaigns_pb2_grpc,
    routing_pb2_grpc,
    sender_rules_pb2_grpc,
    sms_gateway_pb2_grpc,
    statistics_pb2_grpc,
    webhooks_pb2_grpc,
)
from smsgateway import (
    alert_service,
    campaign_service,
    migrations,
    routing_service,
    rule_service,
    statistics_service,
    webhook_service,
)
from smsgateway.accepting import SingleAcceptor
from smsgateway.account_callbacks import AccountCallbacks
from smsgateway.batch_accepting import BatchAcceptor, Canceller
from smsgateway.campaign_service import CampaignService
from smsgateway.campaigns import BatchPauser, CampaignKeeper
from smsgateway.carriers.accounts import ChunkSizes
from smsgateway.carriers.registry import CarrierKind, carrier_kind
from smsgateway.console.app import console_app
from smsgateway.console.console import Console
from smsgateway.dispatch_queue import DispatchQueue
from smsgateway.following import BatchFollower
from smsgateway.grafana.app import GrafanaApp
from smsgateway.grafana.reading import GrafanaReader
from smsgateway.http_app import gateway_app
from smsgateway.ledger_client import LedgerClient
from smsgateway.parked import ParkedWork
from smsgateway.queues import Queues, open_redis
from smsgateway.receipts_intake import ReceiptIntake
from smsgateway.replies_intake import ReplyIntake
from smsgateway.route_keeping import RouteKeeper
from smsgateway.rule_book import RuleBook
from smsgateway.rule_service import SenderRulesService
from smsgateway.service import PERMISSIONS, SERVICE, SmsGatewayService
from smsgateway.settings import Settings
from smsgateway.settling import MessageSettler
from smsgateway.usage_reading import UsageReader

log = structlog.get_logger(__name__)

_DOMAIN = "costcenter"


class GatewayProcess:
    """The gateway. After `start`, `grpc_port` and `http_port` tell where it listens."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self.grpc_port = 0
        self.http_port = 0

    async def start(self) -> None:
        """Connect and listen. Raises `StartError` with one line that says what to do; then nothing is left running.

        The cost centre need not be there yet: until it is, calls that need it get UNAVAILABLE.
        """
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def stop(self) -> None:
        """Take nothing new, finish what is in hand within `drain_seconds`, disconnect."""
        log.info("gateway stops")
        await self._stack.aclose()

    async def _start(self) -> None:
        settings, stack = self._settings, self._stack
        _check_settings(settings)
        database = Database(
            settings.database_url,
            size=settings.gateway_database_connections,
            statements=settings.gateway_statement_connections,
            wait_seconds=settings.database_wait_seconds,
            options=FRESH_PLAN_OPTIONS,
            name="gateway",
        )
        await database.open()
        stack.push_async_callback(database.close)
        await asyncio.to_thread(migrations.require_current, settings.database_url)
        redis = open_redis(
            settings.redis_url,
            connections_max=settings.redis_connections,
            timeout_seconds=settings.redis_call_seconds,
            name="smsbill-gateway",
        )
        stack.push_async_callback(redis.aclose)

        async def redis_reachable() -> bool:
            try:
                return bool(await redis.ping())
            except (RedisError, OSError, TimeoutError):
                return False

        if not await redis_reachable():
            raise StartError("Redis cannot be reached; check SMSBILL_REDIS_URL and that the server runs")
        kind = carrier_kind(settings.carrier)
        ledger = LedgerClient(settings)
        stack.push_async_callback(ledger.close)
        identifiers = IdentifierSource()
        watchdog = Watchdog(settings.watchdog_seconds)
        queue = DispatchQueue(
            database,
            Queues(redis, receipt_streams=settings.receipt_streams),
            settings,
            watchdog.heartbeat("stream-entries", interval_seconds=settings.stream_entry_seconds),
        )
        stack.push_async_callback(queue.close)
        settler = MessageSettler(database, ledger, queue, identifiers)
        singles = SingleAcceptor(database, settler, identifiers, settings, watchdog)
        stack.push_async_callback(singles.close)
        intake = ReceiptIntake(database, queue, identifiers, settings, watchdog)
        stack.push_async_callback(intake.close)
        replies = ReplyIntake(database, identifiers, settings, watchdog)
        stack.push_async_callback(replies.close)
        accounts = AccountCallbacks(
            database,
            intake,
            replies,
            settings,
            ChunkSizes(kind.chunk_messages(settings), kind.personalised_messages(settings)),
            watchdog.heartbeat("carrier-accounts", interval_seconds=settings.routing_poll_seconds),
        )
        await accounts.start()
        stack.push_async_callback(accounts.close)
        book = RuleBook(database, settings)
        await book.open()
        follower = BatchFollower(database, settings)
        canceller, pauser = Canceller(database, ledger, identifiers), BatchPauser(database, queue, settings)
        service = SmsGatewayService(
            database,
            singles,
            BatchAcceptor(database, ledger, queue, identifiers, accounts.chunk_sizes),
            canceller,
            pauser,
            ParkedWork(database, ledger, identifiers),
            follower,
            book,
            settings,
        )
        campaigns = CampaignService(database, CampaignKeeper(database, pauser, canceller))
        services = _Services(settings, database, ledger, service, campaigns)
        server = services.server()
        pages = self._console(services, database, redis, identifiers)
        grafana = self._grafana(database, ledger)
        _warn_of_no_account(settings, kind)
        reply_callback = kind.reply_callback(settings)
        http = HttpServer(
            gateway_app(
                settings,
                settings.carrier,
                kind.callback(settings),
                intake,
                {"database": database.reachable, "redis": redis_reachable, "costcenter": ledger.reachable},
                watchdog,
                None if reply_callback is None else (reply_callback, replies),
                accounts.find,
                pages,
                grafana,
            ),
            settings.http_address,
            requests_max=settings.http_requests_max,
            drain_seconds=settings.drain_seconds,
        )
        await http.start()
        stack.push_async_callback(http.stop)
        await server.start()
        stack.push_async_callback(server.stop)
        # Before the server waits for the calls under way.
        stack.callback(follower.stop)
        self.http_port, self.grpc_port = http.port, server.port
        log.info("gateway serves", grpc_port=self.grpc_port, http_port=self.http_port)

    def _grafana(self, database: Database, ledger: LedgerClient) -> ASGIApp:
        reader = GrafanaReader(UsageReader(database, self._settings), self._settings)
        self._stack.push_async_callback(reader.close)
        authenticator = Authenticator(ledger.check_token, keep_seconds=self._settings.token_keep_seconds)
        return GrafanaApp(reader, authenticator, self._settings).app()

    def _console(
        self, services: _Services, database: Database, redis: Any, identifiers: IdentifierSource
    ) -> ASGIApp | None:
        if not self._settings.console:
            return None
        console = services.console(database, redis, identifiers)
        self._stack.push_async_callback(console.close)
        return console_app(console)


class _Services:
    """The gateway's gRPC services: at its port, and for its own console."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        ledger: LedgerClient,
        service: SmsGatewayService,
        campaigns: CampaignService,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._service = service
        self._campaigns = campaigns
        self._routes = routing_service.RoutingService(RouteKeeper(database, settings))
        self._sender_rules = SenderRulesService(database, settings)
        self._webhooks = webhook_service.WebhooksService(database, settings)
        self._alerts = alert_service.AlertsService(database, settings)
        self._statistics = statistics_service.StatisticsService(UsageReader(database, settings))
        self._others = (
            alert_service,
            campaign_service,
            routing_service,
            rule_service,
            statistics_service,
            webhook_service,
        )
        self._permissions = {
            **PERMISSIONS,
            **{method: roles for each in self._others for method, roles in each.PERMISSIONS.items()},
        }

    def _register(self, server: grpc.aio.Server) -> None:
        sms_gateway_pb2_grpc.add_SmsGatewayServicer_to_server(self._service, server)
        routing_pb2_grpc.add_RoutingServicer_to_server(self._routes, server)
        sender_rules_pb2_grpc.add_SenderRulesServicer_to_server(self._sender_rules, server)
        webhooks_pb2_grpc.add_WebhooksServicer_to_server(self._webhooks, server)
        campaigns_pb2_grpc.add_CampaignsServicer_to_server(self._campaigns, server)
        alerts_pb2_grpc.add_AlertsServicer_to_server(self._alerts, server)
        statistics_pb2_grpc.add_StatisticsServicer_to_server(self._statistics, server)

    def server(self) -> GrpcServer:
        """The server of the gRPC port."""
        return GrpcServer(
            self._settings,
            self._settings.gateway_address,
            authenticator=Authenticator(self._ledger.check_token, keep_seconds=self._settings.token_keep_seconds),
            permissions=self._permissions,
            domain=_DOMAIN,
            services=[SERVICE, *(each.SERVICE for each in self._others)],
            register=self._register,
        )

    def console(self, database: Database, redis: Any, identifiers: IdentifierSource) -> Console:
        """The console, which calls them without the network."""
        authenticator = Authenticator(self._ledger.check_token, keep_seconds=self._settings.console_token_seconds)
        local = LocalChannel(authenticator, self._permissions, self._register)
        return Console(self._settings, database, redis, authenticator, local, identifiers)


def _warn_of_no_account(settings: Settings, kind: CarrierKind) -> None:
    if kind.describe(settings) is None:
        log.warning(f"no carrier account: set SMSBILL_{settings.carrier.upper()}_* to take its receipts")


def _check_settings(settings: Settings) -> None:
    for name in ("database_url", "redis_url"):
        if not getattr(settings, name):
            raise StartError(f"set SMSBILL_{name.upper()}, or start the whole stack with `smsbill up`")
    if not settings.service_token.get_secret_value():
        raise StartError("set SMSBILL_SERVICE_TOKEN to a token of role biller for all brands (`smsbill token create`)")
