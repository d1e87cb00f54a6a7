"""The cost centre as a process."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc
import structlog
from starlette.applications import Starlette

from costcenter import admin_service, figures_service, jobs_service, migrations, service, store
from costcenter.admin_service import CostCenterAdminService, principal_of
from costcenter.engine import Engine
from costcenter.figures_service import LedgerFiguresService
from costcenter.jobs_service import CostCenterJobsService
from costcenter.queries import Queries
from costcenter.service import CostCenterService
from costcenter.settings import Settings
from infra.authorization import Authenticator, Principal, Role, secret_hash
from infra.database import TRANSIENT, Connection, Database, start_error
from infra.errors import StartError
from infra.grpc_server import GrpcServer
from infra.heartbeat import Watchdog
from infra.http_server import HttpServer, observability_routes
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import (
    cost_center_admin_pb2_grpc,
    cost_center_jobs_pb2_grpc,
    cost_center_pb2_grpc,
    ledger_figures_pb2_grpc,
)

log = structlog.get_logger(__name__)

DOMAIN = "costcenter"
HTTP_REQUESTS_MAX = 100


class CostCenterProcess:
    """The cost centre. After `start`, `port` and `http_port` tell where it listens."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self.port = 0
        self.http_port = 0

    async def start(self) -> None:
        """Connect and listen. Raises `StartError` with one line that says what to do; then nothing is left running."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def stop(self) -> None:
        """Take nothing new, finish what is in hand within `drain_seconds`, disconnect."""
        log.info("cost centre stops")
        await self._stack.aclose()

    async def _start(self) -> None:
        settings, stack = self._settings, self._stack
        url = settings.ledger_database_url
        if not url:
            raise StartError("set SMSBILL_DATABASE_URL, or start the whole stack with `smsbill up`")
        reads = Database(
            url, size=settings.ledger_read_connections, wait_seconds=settings.database_wait_seconds, name="queries"
        )
        await reads.open()
        stack.push_async_callback(reads.close)
        await asyncio.to_thread(migrations.require_current, url)
        try:
            async with reads.connection() as connection:
                await self._ensure_tokens(connection)
        except TRANSIENT as error:
            raise start_error(error) from None
        watchdog = Watchdog(settings.watchdog_seconds)
        engine = Engine(reads, terms=settings.terms(), limits=settings.engine_limits(), watchdog=watchdog)
        await engine.start()
        stack.push_async_callback(engine.stop)
        queries = Queries(reads, terms=settings.terms(), clock_offset_seconds=settings.clock_offset_seconds)

        async def find(digest: bytes) -> Principal | None:
            async with reads.snapshot() as connection:
                token = await store.find_token(connection, digest)
            return None if token is None else principal_of(token)

        def register(server: grpc.aio.Server) -> None:
            cost_center_pb2_grpc.add_CostCenterServicer_to_server(
                CostCenterService(engine, queries, batch_max=settings.ledger_batch_max), server
            )
            cost_center_admin_pb2_grpc.add_CostCenterAdminServicer_to_server(
                CostCenterAdminService(engine, queries, reads), server
            )
            cost_center_jobs_pb2_grpc.add_CostCenterJobsServicer_to_server(
                CostCenterJobsService(engine, reads, settings), server
            )
            ledger_figures_pb2_grpc.add_LedgerFiguresServicer_to_server(LedgerFiguresService(reads, settings), server)

        server = GrpcServer(
            settings,
            settings.costcenter_address,
            authenticator=Authenticator(find, keep_seconds=settings.token_cache_seconds),
            permissions={
                **service.PERMISSIONS,
                **admin_service.PERMISSIONS,
                **jobs_service.PERMISSIONS,
                **figures_service.PERMISSIONS,
            },
            domain=DOMAIN,
            services=[service.SERVICE, admin_service.SERVICE, jobs_service.SERVICE, figures_service.SERVICE],
            register=register,
        )
        http = HttpServer(
            Starlette(routes=observability_routes("Cost centre", {"database": reads.reachable}, watchdog)),
            settings.costcenter_http_address,
            requests_max=HTTP_REQUESTS_MAX,
            drain_seconds=settings.drain_seconds,
        )
        await http.start()
        stack.push_async_callback(http.stop)
        await server.start()
        stack.push_async_callback(server.stop)
        # First of all that is undone: calls that wait for releases end, so that the server's drain does.
        stack.callback(engine.prepare_stop)
        self.port, self.http_port = server.port, http.port
        log.info("cost centre serves", grpc_port=self.port, http_port=self.http_port)

    async def _ensure_tokens(self, connection: Connection) -> None:
        identifiers = IdentifierSource()
        now_ms = int((await store.clock(connection, 0)).timestamp() * 1000)
        for name, secret, roles in (
            ("bootstrap", self._settings.bootstrap_token, [Role.ADMIN]),
            ("service", self._settings.service_token, [Role.BILLER]),
        ):
            if secret.get_secret_value():
                # A new secret makes a new token; the one before goes on until it is revoked.
                await store.ensure_token(
                    connection,
                    token_id=identifiers.new(0, now_ms),
                    secret_sha256=secret_hash(secret.get_secret_value()),
                    name=f"{name} token of the settings",
                    roles=roles,
                )
