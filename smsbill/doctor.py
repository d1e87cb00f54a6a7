"""`smsbill doctor`: what is reachable, which versions run, what is misconfigured, and what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import platform
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import psycopg
import redis.asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.exceptions import RedisError

from costcenter import migrations as ledger_migrations
from costcenter.schema import SCHEMA as LEDGER_SCHEMA
from infra import data_folder, schema_version
from infra.data_folder import FORMAT, EmbeddedError
from infra.embedded_postgres import EmbeddedPostgres
from infra.embedded_redis import EmbeddedRedis
from infra.errors import StartError
from infra.grpc_server import open_channel, server_credentials
from infra.telemetry import configure_logging
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from smsbill import stack_file
from smsbill.client import Access, Client, ClientSettings, find_access
from smsbill.failure import CommandError, described
from smsbill.findings import GOOD, NOTE, PROBLEM, Finding, tell
from smsbill.settings import StackSettings
from smsbill.stack_file import StackFile
from smsgateway import migrations as gateway_migrations
from smsgateway.carriers.registry import carrier_kind
from smsgateway.schema import SCHEMA as GATEWAY_SCHEMA
from workers.account import CARRIER_WORKS

POSTGRES_MAJORS = range(15, 19)
REDIS_OLDEST = (6, 2)
PROBE_SECONDS = 5.0
_NOTHING_RUNS = "start the stack with `smsbill up`"


def run(as_json: bool) -> int:
    """Examine everything and print it; 0 when there is no problem."""
    return tell(asyncio.run(_collect()), as_json)


def run_after_restore(as_json: bool, *, repair: bool, restored_to: datetime | None, carrier_record: Path | None) -> int:
    """Compare restored records with Redis and the carrier (`smsbill.after_restore`) and print what differs.

    Returns 0 when nothing is left to do. Raises `CommandError`, `StartError`, `EmbeddedError`.
    """
    # Heavy, and needed once in a lifetime.
    from smsbill import after_restore, care, secret_file  # noqa: PLC0415

    findings: list[Finding] = []
    settings = StackSettings.load()
    configure_logging("doctor", level="WARNING", log_format=settings.log_format)

    async def body() -> int:
        async with care.servers(settings) as found:
            token = found.service_token.get_secret_value()
            if not token and (found.data_dir.expanduser() / "VERSION").exists():
                token = secret_file.load(found.data_dir.expanduser()).service_token
            if repair and not token:
                raise CommandError(
                    "a repair pays at the cost centre: set SMSBILL_SERVICE_TOKEN as the services have it"
                )
            wish = after_restore.Wish(carrier_record, restored_to, repair, token)
            try:
                findings.extend(await after_restore.AfterRestore(found, wish).findings())
            except RedisError as error:
                raise CommandError(
                    f"Redis cannot be reached: {error}; start it, or correct SMSBILL_REDIS_URL"
                ) from None
        return 0

    care.interruptible(body)
    return tell(findings, as_json)


async def _collect() -> list[Finding]:
    findings = [Finding("release", GOOD, f"smsbill {version('sms-costcenter')}, Python {platform.python_version()}")]
    try:
        settings = StackSettings.load()
        client_settings = ClientSettings.load()
    except StartError as error:
        return [*findings, Finding("settings", PROBLEM, str(error), "correct the setting")]
    examination = Examination(settings, client_settings)
    return findings + [finding async for finding in examination.findings()]


class Examination:
    """Looks at everything that the settings name, or that the running stack uses."""

    def __init__(self, settings: StackSettings, client_settings: ClientSettings) -> None:
        self._settings = settings
        self._client_settings = client_settings
        self._stack = stack_file.running(settings.data_dir)

    async def findings(self) -> AsyncIterator[Finding]:
        """Everything, in the order in which one thing needs another."""
        yield self._settings_finding()
        yield self._folder_finding()
        yield self._stack_finding()
        for part in (self._postgres, self._schemas, self._redis, self._services, self._token, self._readiness):
            async for finding in part():
                yield finding
        yield self._carrier_finding()

    def _settings_finding(self) -> Finding:
        try:
            server_credentials(self._settings)
            self._settings.chuanglan()
        except StartError as error:
            return Finding("settings", PROBLEM, str(error), "correct the setting")
        given = sorted(self._settings.model_fields_set)
        told = ", ".join(f"SMSBILL_{name.upper()}" for name in given)
        return Finding("settings", GOOD, f"set: {told}" if given else "all at their defaults")

    def _folder_finding(self) -> Finding:
        folder = self._settings.data_dir.expanduser()
        path = folder / "VERSION"
        try:
            found = path.read_text("utf-8").strip()
        except FileNotFoundError:
            detail = f"{folder} is not made yet" if not folder.exists() else f"{folder} is no data folder"
            return Finding("data folder", NOTE, detail, "`smsbill up` makes it")
        except (OSError, UnicodeDecodeError) as error:
            return Finding("data folder", PROBLEM, f"{path}: {error}", data_folder.CHOOSE)
        if not found.isdigit() or int(found) > FORMAT:
            detail = f"{folder} has format {found}, this program knows formats up to {FORMAT}"
            return Finding("data folder", PROBLEM, detail, f"install the newer program again, or {data_folder.CHOOSE}")
        return Finding("data folder", GOOD, str(folder))

    def _stack_finding(self) -> Finding:
        if self._stack is not None:
            return Finding(
                "stack", GOOD, f"runs as process {self._stack.supervisor.pid}, logs in {self._stack.log_folder}"
            )
        left = stack_file.read(self._settings.data_dir)
        if left is not None and left.supervisor.find() is not None:
            return Finding("stack", NOTE, f"is starting or stopping as process {left.supervisor.pid}", "wait a moment")
        if left is not None:
            return Finding("stack", PROBLEM, "was killed; its data are safe", "`smsbill up` goes on where it stopped")
        if self._client_settings.costcenter_target:
            return Finding("stack", NOTE, "none runs on this data folder; services elsewhere are configured")
        return Finding("stack", PROBLEM, "none runs on this data folder", _NOTHING_RUNS)

    # The servers.

    async def _postgres(self) -> AsyncIterator[Finding]:
        for what, url in self._databases().items():
            if not url:
                yield self._embedded_finding(what, EmbeddedPostgres, max_connections=100, shared_buffers="128MB")
                continue
            try:
                found, connections = await asyncio.to_thread(_ask_postgres, url)
            except psycopg.Error as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                yield Finding(
                    what, PROBLEM, f"cannot be reached: {reason}", "start it, or correct SMSBILL_DATABASE_URL"
                )
                continue
            major = found // 10_000
            status = GOOD if major in POSTGRES_MAJORS else PROBLEM
            advice = "" if status == GOOD else f"use version {POSTGRES_MAJORS[0]} to {POSTGRES_MAJORS[-1]}"
            yield Finding(what, status, f"version {major}.{found % 10_000}, {connections} connections", advice)

    async def _schemas(self) -> AsyncIterator[Finding]:
        homes = {
            LEDGER_SCHEMA: (self._ledger_url(), ledger_migrations.SCRIPTS),
            GATEWAY_SCHEMA: (self._database_url(), gateway_migrations.SCRIPTS),
        }
        for schema, (url, scripts) in homes.items():
            if url:
                yield await asyncio.to_thread(_schema_finding, url, schema, scripts)

    async def _redis(self) -> AsyncIterator[Finding]:
        url = self._settings.redis_url or (self._stack.redis_url if self._stack else "")
        if not url:
            yield self._embedded_finding("Redis", EmbeddedRedis)
            return
        try:
            async with asyncio.timeout(PROBE_SECONDS), _redis_client(url) as client:
                info: Mapping[str, Any] = await client.info()
                appends = bool(info.get("aof_enabled"))
                policy = str(info.get("maxmemory_policy", ""))
        except (RedisError, OSError, TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
            yield Finding("Redis", PROBLEM, f"cannot be reached: {reason}", "start it, or correct SMSBILL_REDIS_URL")
            return
        name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
        found = str(info.get("valkey_version") or info.get("redis_version"))
        yield self._redis_finding(name, found, appends=appends, policy=policy)

    @staticmethod
    def _redis_finding(name: str, found: str, *, appends: bool, policy: str) -> Finding:
        detail = f"{name} {found}, append-only file {'on' if appends else 'off'}, {policy}"
        numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
        if numbers < REDIS_OLDEST:
            return Finding("Redis", PROBLEM, detail, "use version 6.2 or newer")
        if policy and policy != "noeviction":
            return Finding("Redis", PROBLEM, detail, "set maxmemory-policy noeviction: queues are no cache")
        if not appends:
            return Finding("Redis", NOTE, detail, "set appendonly yes; without it a restart rebuilds all queues")
        return Finding("Redis", GOOD, detail)

    def _embedded_finding(self, what: str, server: Callable[..., Any], **options: object) -> Finding:
        try:
            server(data_folder.DataFolder(self._settings.data_dir), **options)
        except EmbeddedError as error:
            return Finding(what, PROBLEM, str(error), "install it, or set the URL of a server of yours")
        return Finding(what, NOTE, "the embedded one does not run", "`smsbill up` starts it")

    # The services.

    async def _services(self) -> AsyncIterator[Finding]:
        access = self._access()
        if access is None:
            return
        targets = {"cost centre": access.costcenter_target, "gateway": access.gateway_target}
        for what, target in targets.items():
            channel = open_channel(self._settings, target)
            try:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS)
            except grpc.aio.AioRpcError as error:
                yield Finding(what, PROBLEM, f"{target}: {error.code().name}: {error.details()}", _NOTHING_RUNS)
            else:
                serving = reply.status == health_pb2.HealthCheckResponse.SERVING
                status = GOOD if serving else PROBLEM
                yield Finding(what, status, f"{target} {'serves' if serving else 'does not serve'}")
            finally:
                await channel.close()

    async def _token(self) -> AsyncIterator[Finding]:
        access = self._access()
        if access is None:
            return
        if not access.token:
            yield Finding("token", PROBLEM, "none", "set SMSBILL_TOKEN (`smsbill token create` makes one)")
            return
        client = Client(self._settings, access, call_seconds=PROBE_SECONDS)
        try:
            reply = await client.call(client.admin.ListBrands, admin_pb.ListBrandsRequest(page_size=1_000))
            brands = len(reply.brands)
            more = " or more" if reply.next_page_token else ""
            yield Finding("token", GOOD, f"holds; sees {brands}{more} brand{'s' if brands != 1 else ''}")
        except grpc.aio.AioRpcError as error:
            line, _, advice = (described(error) or "").partition(" – ")
            yield Finding("token", PROBLEM, line, advice)
        finally:
            await client.close()

    async def _readiness(self) -> AsyncIterator[Finding]:
        if self._stack is None:
            return
        urls = {"gateway": f"{self._stack.gateway_url}/readyz"}
        urls |= {
            name: metrics.replace("/metrics", "/readyz")
            for name, metrics in self._stack.metrics_urls.items()
            if "simulator" not in name
        }
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_SECONDS)) as session:
            for name, url in urls.items():
                yield await self._ready_finding(session, name, url, self._stack)

    @staticmethod
    async def _ready_finding(session: aiohttp.ClientSession, name: str, url: str, stack: StackFile) -> Finding:
        log = Path(stack.log_folder) / f"{name}.log"
        try:
            async with session.get(url) as answer:
                checks: dict[str, Any] = await answer.json()
                stalled: dict[str, float] = checks.pop("stalled", {})
                carrier = str(checks.pop("carrier", CARRIER_WORKS))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return Finding(f"{name} ready", PROBLEM, f"{url}: {str(error) or type(error).__name__}", f"see {log}")
        failing = [check for check, passed in checks.items() if not passed]
        if stalled:
            silent = ", ".join(f"{loop} for {seconds:.0f} s" for loop, seconds in stalled.items())
            return Finding(f"{name} ready", PROBLEM, f"stalled: {silent}", f"see {log}; restart it")
        if failing:
            return Finding(f"{name} ready", PROBLEM, f"does not reach: {', '.join(failing)}", f"see {log}")
        if carrier != CARRIER_WORKS:
            advice = f"see {log}; what is sent meanwhile waits"
            return Finding(f"{name} ready", PROBLEM, f"the carrier's account {carrier}", advice)
        return Finding(f"{name} ready", GOOD, f"reaches {', '.join(checks)}")

    def _carrier_finding(self) -> Finding:
        if self._stack is not None and self._stack.simulator_url:
            detail = f"simulated, {self._stack.simulator_url}; no text leaves this machine"
            return Finding("carrier", NOTE, detail, "set SMSBILL_CHUANGLAN_* to send for real")
        name = self._settings.carrier
        try:
            described = carrier_kind(name).describe(self._settings)
        except StartError as error:
            return Finding("carrier", PROBLEM, str(error), "correct the setting")
        if described is None:
            advice = f"`smsbill up` simulates one; SMSBILL_{name.upper()}_* sets a real one"
            return Finding("carrier", NOTE, "no account", advice)
        return Finding("carrier", GOOD, described)

    # Where things are.

    def _access(self) -> Access | None:
        try:
            return find_access(self._client_settings)
        except CommandError:
            settings = self._client_settings
            if not settings.costcenter_target and not settings.gateway_target:
                return None
            defaults = ("127.0.0.1:50051", "127.0.0.1:50052")
            return Access(settings.costcenter_target or defaults[0], settings.gateway_target or defaults[1], "")

    def _database_url(self) -> str:
        return self._settings.database_url or (self._stack.database_url if self._stack else "")

    def _ledger_url(self) -> str:
        return self._settings.ledger_database_url or (self._stack.ledger_database_url if self._stack else "")

    def _databases(self) -> dict[str, str]:
        databases = {"PostgreSQL": self._database_url()}
        if self._ledger_url() != self._database_url():
            databases["PostgreSQL (cost centre)"] = self._ledger_url()
        return databases


def _ask_postgres(url: str) -> tuple[int, int]:
    """Version number and connections at most."""
    with psycopg.connect(url, connect_timeout=int(PROBE_SECONDS)) as connection:
        row = connection.execute("select current_setting('max_connections')::int").fetchone()
        assert row is not None
        return connection.info.server_version, row[0]


def _schema_finding(url: str, schema: str, scripts: Path) -> Finding:
    what = f"schema {schema}"
    try:
        mismatch = schema_version.mismatch(url, schema, scripts)
    except StartError as error:
        return Finding(what, PROBLEM, str(error), "start the server")
    if mismatch is not None:
        return Finding(what, PROBLEM, mismatch.reason, mismatch.advice)
    return Finding(what, GOOD, "is of this release")


@contextlib.asynccontextmanager
async def _redis_client(url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(url, socket_connect_timeout=PROBE_SECONDS, socket_timeout=PROBE_SECONDS)
    try:
        yield client
    finally:
        await client.aclose()
