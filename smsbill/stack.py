"""The whole stack on one machine: servers, schemas, secrets, and every service as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import psutil

from infra.data_folder import DataFolder, EmbeddedError
from infra.embedded import EmbeddedServers
from infra.errors import StartError
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from smsbill import secret_file, stack_file
from smsbill.client import Access, Client
from smsbill.log_file import LogFile
from smsbill.parent import STOP_MARGIN_SECONDS
from smsbill.secret_file import Secrets
from smsbill.settings import StackSettings
from smsbill.stack_file import Process, StackFile
from smsbill.supervisor import Child, Limits, Notify, Report

SIMULATOR_ACCOUNT = "N0000001"
SIMULATOR_RECEIVER = "smsbill"
# Of a cost centre, beside those that it reads with.
_LANE_CONNECTIONS = 4
_CONNECTIONS_SPARE = 30
_CALL_SECONDS = 30.0
_SERVER_CHECK_SECONDS = 1.0
_SETTLE_POLL_SECONDS = 0.1
_ERRORS_KEPT = 100
# The gateway has an address of its own in the file, the simulator no metrics.
_WITHOUT_METRICS_URL = ("gateway", "carrier-simulator")

Variables = Mapping[str, str]
Adjust = Callable[[str, Variables], Awaitable[Variables]]


class Stack:
    """Everything that `smsbill up` runs.

    Parameters: `simulator` whether the carrier is the simulated one; `notify` is told in one line what a person
    should know (a process died, an error was logged). `hurry`, once set, makes a stop kill instead of drain. `adjust`
    is given a process's name and variables before each of its starts, and returns those that it gets: for whoever puts
    something between the parts.
    """

    def __init__(
        self, settings: StackSettings, *, simulator: bool, notify: Notify, adjust: Adjust | None = None
    ) -> None:
        self.settings = settings
        self._adjust = adjust
        self.data_dir = Path(os.path.realpath(settings.data_dir.expanduser()))
        self.hurry = asyncio.Event()
        self.started_at = time.time()
        self._simulator = simulator
        self._notify = notify
        self._folder: DataFolder | None = None
        self._servers: EmbeddedServers | None = None
        self._secrets: Secrets | None = None
        self._children: dict[str, Child] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._errors_seen: dict[tuple[str, str], int] = {}
        me = Process.of("up", os.getpid())
        assert me is not None
        self.file = StackFile(supervisor=me)
        self._addresses = {
            "costcenter": _Address("SMSBILL_COSTCENTER_ADDRESS", settings.costcenter_address),
            "gateway": _Address("SMSBILL_GATEWAY_ADDRESS", settings.gateway_address),
            "http": _Address("SMSBILL_HTTP_ADDRESS", settings.http_address),
        }
        for service, count in (("costcenter", settings.costcenters), ("gateway", settings.gateways)):
            first = self._addresses[service]
            for number in range(2, count + 1):
                self._addresses[f"{service}-{number}"] = first.another()
        if simulator:
            self._addresses["simulator"] = _Address("SMSBILL_SIMULATOR_ADDRESS", settings.simulator_address)

    async def start(self, step: Callable[[str], None] = lambda _: None) -> None:
        """Start everything; `step` is called with the name of each part that is done.

        Raises `StartError` or `EmbeddedError`; whatever happens, `stop` must follow.
        """
        await self._check_folder_and_ports()
        await self._start_servers()
        step("PostgreSQL and Redis")
        self._secrets = secret_file.load(self.data_dir)
        await asyncio.to_thread(migrate, self.file.ledger_database_url, self.file.database_url)
        step("schemas")
        self._start_children()
        self._watchers.append(asyncio.create_task(self._watch_logs(), name="logs"))
        await asyncio.gather(*(child.wait_ready() for child in self._children.values()))
        step(f"{len(self._children)} processes")
        self.file.token = await self._user_token()
        self.file.ready = True
        self._write_file()
        if self._servers is not None:
            self._watchers.append(asyncio.create_task(self._watch_servers(self._servers), name="servers"))

    async def stop(self) -> None:
        """Stop everything in the order that loses least: who takes work first, then who is asked for it, then data."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._watchers.clear()
        self.file.ready = False
        await self._stop_children("worker")
        if "gateway" in self._children:
            await self._settle_receipts()
        await self._stop_children("gateway")
        await self._stop_children("")
        if self._servers is not None or self._folder is not None:
            # Only while the folder is ours: another stack's file is not to be touched.
            stack_file.remove(self.data_dir)
        if self._servers is not None:
            await self._servers.stop()
            self._servers = None
        if self._folder is not None:
            self._folder.release()
            self._folder = None

    @property
    def service_token(self) -> str:
        """The token that the services show each other."""
        own = self.settings.service_token.get_secret_value()
        return own or (self._secrets.service_token if self._secrets is not None else "")

    @property
    def _bootstrap_token(self) -> str:
        own = self.settings.bootstrap_token.get_secret_value()
        return own or (self._secrets.bootstrap_token if self._secrets is not None else "")

    def client(self, token: str = "") -> Client:
        """A client of this stack, with the user's token unless another is given."""
        access = Access(self.file.costcenter_target, self.file.gateway_target, token or self.file.token)
        return Client(self.settings, access, call_seconds=_CALL_SECONDS)

    def reconcile_settings(self) -> StackSettings:
        """The settings with the servers that this stack uses."""
        return self.settings.model_copy(
            update={
                "database_url": self.file.database_url,
                "costcenter_database_url": self.file.ledger_database_url,
                "redis_url": self.file.redis_url,
            }
        )

    async def _check_folder_and_ports(self) -> None:
        """Find what would make a start fail before anything is started: it takes seconds less, and tells more."""
        folder = DataFolder(self.data_dir)
        folder.acquire()
        try:
            await self._end_leftovers()
            for address in self._addresses.values():
                address.require_free()
        except BaseException:
            folder.release()
            raise
        if self.settings.database_url and self.settings.redis_url:
            folder.logs.mkdir(mode=0o700, exist_ok=True)
            self._folder = folder
        else:
            # The embedded servers take it, for as long as they run.
            folder.release()

    async def _end_leftovers(self) -> None:
        """Processes of a stack whose supervisor was killed drain and end by themselves; see to it that they do."""
        left = stack_file.read(self.data_dir)
        if left is None:
            return
        processes = [found for child in left.children if (found := child.find()) is not None]
        if processes:
            self._notify(f"waiting for {len(processes)} processes of a stack that was killed")
            seconds = self.settings.drain_seconds + STOP_MARGIN_SECONDS
            _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=seconds)
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await asyncio.to_thread(psutil.wait_procs, alive, timeout=STOP_MARGIN_SECONDS)

    async def _start_servers(self) -> None:
        settings = self.settings
        if self._folder is None:
            starting = EmbeddedServers(
                self.data_dir,
                postgres=not settings.database_url,
                redis=not settings.redis_url,
                max_connections=max(100, _connections(settings)),
            )
            await starting.start()
            self._servers = starting
        servers = self._servers
        self.file.database_url = settings.database_url or (servers.database_url if servers else "")
        self.file.ledger_database_url = settings.costcenter_database_url or self.file.database_url
        self.file.redis_url = settings.redis_url or (servers.redis_url if servers else "")
        self.file.log_folder = str(DataFolder(self.data_dir).logs)

    # The processes.

    def _start_children(self) -> None:
        for name in self._named("costcenter"):
            self._add(name, ["costcenter"], partial(self._costcenter_environment, name), self._costcenter_ready(name))
        for name in self._named("gateway"):
            self._add(name, ["gateway"], partial(self._gateway_environment, name), self._gateway_ready(name))
        if self._simulator:
            self._add("carrier-simulator", ["carrier-simulator"], self._simulator_environment, self._simulator_ready)
        for number in range(1, self.settings.workers + 1):
            self._add(f"worker-{number}", ["worker"], self._worker_environment, self._nothing_to_note)
        for child in self._children.values():
            child.start()

    def _add(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Callable[[], Awaitable[Variables]],
        on_ready: Callable[[Report], None],
    ) -> None:
        settings, adjust = self.settings, self._adjust

        async def adjusted() -> Variables:
            variables = await environment()
            return variables if adjust is None else await adjust(name, variables)

        def ready(report: Report) -> None:
            on_ready(report)
            if "http_port" in report and name not in _WITHOUT_METRICS_URL:
                self.file.metrics_urls[name] = f"http://127.0.0.1:{report['http_port']}/metrics"
            self._write_file()

        self._children[name] = Child(
            name,
            arguments,
            environment=adjusted,
            on_ready=ready,
            log=LogFile(Path(self.file.log_folder) / f"{name}.log", settings.log_file_bytes),
            limits=Limits(
                start_seconds=settings.stack_start_seconds,
                stop_seconds=settings.drain_seconds + STOP_MARGIN_SECONDS,
                restart_seconds=settings.restart_seconds,
                restart_seconds_max=settings.restart_seconds_max,
                stable_seconds=settings.restart_stable_seconds,
            ),
            notify=self._notify,
        )

    def _shared_environment(self) -> dict[str, str]:
        variables = {
            "SMSBILL_DATA_DIR": str(self.data_dir),
            "SMSBILL_DATABASE_URL": self.file.database_url,
            "SMSBILL_COSTCENTER_DATABASE_URL": self.file.ledger_database_url,
            "SMSBILL_REDIS_URL": self.file.redis_url,
            "SMSBILL_SERVICE_TOKEN": self.service_token,
            # Their logs go to files: one line is one JSON object, for programs and for us.
            "SMSBILL_LOG_FORMAT": "json",
            "SMSBILL_BOOTSTRAP_TOKEN": "",
        }
        if self._simulator:
            assert self._secrets is not None
            variables |= {
                "SMSBILL_CARRIER": "chuanglan",
                "SMSBILL_CARRIER_ACCOUNT": "simulator",
                "SMSBILL_CHUANGLAN_ACCOUNT": SIMULATOR_ACCOUNT,
                "SMSBILL_CHUANGLAN_PASSWORD": self._secrets.carrier_password,
                "SMSBILL_CHUANGLAN_RECEIVER": SIMULATOR_RECEIVER,
                "SMSBILL_CHUANGLAN_PUSH_PASSWORD": self._secrets.push_password,
            }
        return variables

    def _named(self, service: str) -> list[str]:
        """The processes of a service; the first has its plain name."""
        return [name for name in self._addresses if name == service or name.startswith(f"{service}-")]

    async def _target(self, service: str) -> str:
        """Where clients find a service's processes, once all have been ready."""
        return _joined([await self._addresses[name].target() for name in self._named(service)])

    async def _costcenter_environment(self, name: str) -> Variables:
        variables = self._shared_environment() | {
            "SMSBILL_BOOTSTRAP_TOKEN": self._bootstrap_token,
            "SMSBILL_COSTCENTER_ADDRESS": self._addresses[name].listen,
        }
        return variables if name == "costcenter" else variables | {"SMSBILL_COSTCENTER_HTTP_ADDRESS": "127.0.0.1:0"}

    async def _gateway_environment(self, name: str) -> Variables:
        return self._shared_environment() | {
            "SMSBILL_GATEWAY_ADDRESS": self._addresses[name].listen,
            "SMSBILL_HTTP_ADDRESS": self._addresses["http"].listen if name == "gateway" else "127.0.0.1:0",
            "SMSBILL_COSTCENTER_TARGET": await self._target("costcenter"),
        }

    async def _simulator_environment(self) -> Variables:
        assert self._secrets is not None
        callbacks = await self._addresses["http"].target()
        return self._shared_environment() | {
            "SMSBILL_SIMULATOR_ADDRESS": self._addresses["simulator"].listen,
            "SMSBILL_SIMULATOR_RECEIPT_URL": f"http://{callbacks}/callbacks/chuanglan/report",
        }

    async def _worker_environment(self) -> Variables:
        variables = self._shared_environment() | {
            "SMSBILL_COSTCENTER_TARGET": await self._target("costcenter"),
            # Several share the setting: each takes a free port.
            "SMSBILL_WORKER_HTTP_ADDRESS": self._worker_address(),
        }
        if self._simulator:
            variables["SMSBILL_CHUANGLAN_URL"] = f"http://{await self._addresses['simulator'].target()}"
        return variables

    def _worker_address(self) -> str:
        address = self.settings.worker_http_address
        return address if self.settings.workers == 1 else f"{address.rpartition(':')[0]}:0"

    def _costcenter_ready(self, name: str) -> Callable[[Report], None]:
        def ready(report: Report) -> None:
            self._addresses[name].known(report["grpc_port"])
            self.file.costcenter_target = self._known_target("costcenter")

        return ready

    def _gateway_ready(self, name: str) -> Callable[[Report], None]:
        def ready(report: Report) -> None:
            self._addresses[name].known(report["grpc_port"])
            self.file.gateway_target = self._known_target("gateway")
            if name == "gateway":
                self.file.gateway_url = f"http://{self._addresses['http'].known(report['http_port'])}"

        return ready

    def _known_target(self, service: str) -> str:
        addresses = [self._addresses[name] for name in self._named(service)]
        return _joined([address.target_now() for address in addresses if address.is_known])

    def _simulator_ready(self, report: Report) -> None:
        self.file.simulator_url = f"http://{self._addresses['simulator'].known(report['http_port'])}"

    def _nothing_to_note(self, report: Report) -> None:
        pass

    def _write_file(self) -> None:
        running = [Process.of(name, child.pid) for name, child in self._children.items() if child.pid is not None]
        self.file.children = [process for process in running if process is not None]
        self.file.write(self.data_dir)

    async def _stop_children(self, prefix: str) -> None:
        stopping = [name for name in self._children if name.startswith(prefix)]
        await asyncio.gather(*(self._children[name].stop(self.hurry) for name in stopping))
        for name in stopping:
            del self._children[name]

    async def _settle_receipts(self) -> None:
        """Let the simulator hand over what it owes: it forgets it when it stops, as no real carrier would."""
        url, seconds = self.file.simulator_url, self.settings.receipt_settle_seconds
        if not url or not seconds or self.hurry.is_set():
            return
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, KeyError):
            async with asyncio.timeout(seconds), aiohttp.ClientSession() as session:
                while not self.hurry.is_set():
                    async with session.get(f"{url}/simulator/record?limit=1") as answer:
                        if (await answer.json())["totals"]["receipts"]["waiting"] == 0:
                            return
                    await asyncio.sleep(_SETTLE_POLL_SECONDS)

    # The user's token.

    async def _user_token(self) -> str:
        """The token that is printed: the kept one while it holds, else a new one."""
        assert self._secrets is not None
        if self._secrets.user_token and await self._holds(self._secrets.user_token):
            return self._secrets.user_token
        client = self.client(self._bootstrap_token)
        try:
            reply = await client.call(
                client.admin.CreateToken,
                admin_pb.CreateTokenRequest(name="made by smsbill up", roles=[admin_pb.ROLE_ADMIN], all_brands=True),
            )
        finally:
            await client.close()
        self._secrets.user_token = reply.secret
        self._secrets.write(self.data_dir)
        return reply.secret

    async def _holds(self, token: str) -> bool:
        client = self.client(token)
        try:
            await client.call(client.admin.ListBrands, admin_pb.ListBrandsRequest(page_size=1))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise
            return False
        finally:
            await client.close()
        return True

    # What is watched.

    async def _watch_logs(self) -> None:
        while True:
            await asyncio.sleep(self.settings.log_check_seconds)
            for name, child in self._children.items():
                child.rotate_log()
                for event in child.log.new_errors():
                    self._note_error(name, event)

    def _note_error(self, name: str, event: str) -> None:
        """Tell of the first error of a kind, the tenth, the hundredth: a flood must not hide the rest."""
        key = (name, event)
        if key not in self._errors_seen and len(self._errors_seen) >= _ERRORS_KEPT:
            return
        count = self._errors_seen[key] = self._errors_seen.get(key, 0) + 1
        if count in (1, 10, 100, 1_000, 10_000):
            times = "" if count == 1 else f" ({count} times)"
            self._notify(f"{name} logged an error: {event}{times}; see {self.file.log_folder}/{name}.log")

    async def _watch_servers(self, servers: EmbeddedServers) -> None:
        """Start an embedded server again that has died; its files know what was committed."""
        watched: list[tuple[str, bool, Callable[[], int | None], Callable[[], Awaitable[None]]]] = [
            ("PostgreSQL", not self.settings.database_url, lambda: servers.postgres_pid, servers.start_postgres),
            ("Redis", not self.settings.redis_url, lambda: servers.redis_pid, servers.start_redis),
        ]
        wait = self.settings.restart_seconds
        while True:
            await asyncio.sleep(_SERVER_CHECK_SECONDS)
            for title, embedded, pid, start in watched:
                if not embedded or pid() is not None:
                    continue
                self._notify(f"{title} has died; starts again")
                try:
                    await start()
                    wait = self.settings.restart_seconds
                except EmbeddedError as error:
                    self._notify(f"{error}; next try in {wait:g} s")
                    await asyncio.sleep(wait)
                    wait = min(wait * 2, self.settings.restart_seconds_max)


class _Address:
    """Where a child listens. With port 0 it is known when the child has said it, and kept for its later starts."""

    def __init__(self, setting: str, listen: str) -> None:
        self._setting = setting
        self.listen = listen
        self._host, _, port = listen.rpartition(":")
        if not port.isdigit() or int(port) > 65_535:
            raise StartError(f"setting {setting}: {listen!r} is no address such as 127.0.0.1:50051; correct it")
        self._known = asyncio.Event()
        if int(port):
            self._known.set()

    @property
    def is_known(self) -> bool:
        """Whether it is known where the child listens."""
        return self._known.is_set()

    def another(self) -> _Address:
        """A free port beside this one."""
        return _Address(self._setting, f"{self._host}:0")

    async def target(self) -> str:
        """The address that clients on this machine call."""
        await self._known.wait()
        return self.target_now()

    def known(self, port: object) -> str:
        """Note the port that the child has taken; return what clients call."""
        self.listen = f"{self._host}:{port}"
        self._known.set()
        return self.target_now()

    def require_free(self) -> None:
        """Raise `StartError` naming the setting when nobody can listen there."""
        port = int(self.listen.rpartition(":")[2])
        if not port:
            return
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self._host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            reason = error.strerror or str(error)
            raise StartError(
                f"cannot listen on {self.listen} ({reason}); free it, or set {self._setting} to another address, "
                f"such as {self._host or '127.0.0.1'}:0 for a free port"
            ) from None

    def target_now(self) -> str:
        """The same, of a known address."""
        host, _, port = self.listen.rpartition(":")
        local = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - compared with
        return f"{local.get(host, host)}:{port}"


def _joined(targets: Sequence[str]) -> str:
    """One target, or several as gRPC writes them."""
    return targets[0] if len(targets) == 1 else f"ipv4:{','.join(targets)}"


def migrate(ledger_url: str, gateway_url: str) -> None:
    """Bring both schemas to this release. Raises `StartError`."""
    # Slow to import, and needed once.
    from costcenter import migrations as ledger_migrations  # noqa: PLC0415
    from smsgateway import migrations as gateway_migrations  # noqa: PLC0415

    ledger_migrations.migrate(ledger_url)
    gateway_migrations.migrate(gateway_url)


def _connections(settings: StackSettings) -> int:
    """PostgreSQL connections of the whole stack at most."""
    return (
        settings.costcenters * (settings.ledger_read_connections + _LANE_CONNECTIONS)
        + settings.gateways * (settings.gateway_database_connections + settings.gateway_statement_connections)
        + settings.workers * (settings.worker_database_connections + settings.worker_statement_connections)
        + _CONNECTIONS_SPARE
    )
