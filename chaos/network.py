"""The ways between the parts of a stack, each through a proxy of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from chaos.proxy import HOST, Proxy, Target

POSTGRES: Final = "PostgreSQL"
REDIS: Final = "Redis"
COSTCENTER: Final = "costcenter"
GATEWAY: Final = "gateway"
CARRIER: Final = "carrier"
CALLBACKS: Final = "callbacks"
CLIENT: Final = "client"

_MANY = "ipv4:"


class Network:
    """Makes the proxies as processes are started, and finds them again when they are started anew."""

    def __init__(self) -> None:
        self._proxies: dict[tuple[str, str], Proxy] = {}

    @property
    def ways(self) -> Sequence[tuple[str, str]]:
        """Who talks to whom, in an order that does not hang on the moment: sorted."""
        return sorted(self._proxies)

    def proxies(self, *, caller: str = "", called: str = "") -> list[Proxy]:
        """The proxies of a caller (such as `worker-1`), towards a part (such as `PostgreSQL`), or both."""
        return [self._proxies[way] for way in self.ways if (not caller or way[0] == caller) and called in ("", way[1])]

    async def close(self) -> None:
        """Lose all connections."""
        for proxy in self._proxies.values():
            await proxy.close()

    async def adjust(self, name: str, variables: Mapping[str, str]) -> Mapping[str, str]:
        """The variables of a process, with each address replaced by that of a proxy (see `smsbill.stack.Stack`)."""
        changed = dict(variables)
        one_server = changed.get("SMSBILL_DATABASE_URL") == changed.get("SMSBILL_COSTCENTER_DATABASE_URL")
        for variable, called in (
            ("SMSBILL_DATABASE_URL", POSTGRES),
            ("SMSBILL_COSTCENTER_DATABASE_URL", POSTGRES if one_server else f"{POSTGRES} of the ledger"),
            ("SMSBILL_REDIS_URL", REDIS),
            ("SMSBILL_CHUANGLAN_URL", CARRIER),
            ("SMSBILL_SIMULATOR_RECEIPT_URL", CALLBACKS),
        ):
            if changed.get(variable):
                changed[variable] = await self._url(name, called, changed[variable])
        if "SMSBILL_COSTCENTER_TARGET" in changed:
            changed["SMSBILL_COSTCENTER_TARGET"] = await self.targets(
                name, COSTCENTER, changed["SMSBILL_COSTCENTER_TARGET"]
            )
        if name == "carrier-simulator":
            # It needs neither, and its memory is the proof.
            for variable in ("SMSBILL_DATABASE_URL", "SMSBILL_COSTCENTER_DATABASE_URL", "SMSBILL_REDIS_URL"):
                changed[variable] = variables[variable]
        return changed

    async def targets(self, caller: str, called: str, target: str) -> str:
        """A gRPC target of one address or several, each through a proxy of its own."""
        found = []
        for number, address in enumerate(target.removeprefix(_MANY).split(","), 1):
            host, _, port = address.rpartition(":")
            proxy = await self._proxy(caller, f"{called}-{number}", (host.strip("[]"), int(port)))
            found.append(f"{HOST}:{proxy.port}")
        return f"{_MANY if target.startswith(_MANY) else ''}{','.join(found)}"

    async def _url(self, caller: str, called: str, url: str) -> str:
        """A URL with the address of a proxy. Servers on Unix sockets are reached over TCP then."""
        parts = urlsplit(url)
        if parts.scheme == "unix":
            proxy = await self._proxy(caller, called, unquote(parts.path))
            database = parse_qs(parts.query).get("db", ["0"])[0]
            return f"redis://{HOST}:{proxy.port}/{database}"
        query = parse_qs(parts.query)
        if parts.scheme.startswith("postgres") and "host" in query:
            socket = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
            proxy = await self._proxy(caller, called, socket)
            user = query["user"][0]
            # The server speaks TLS over no Unix socket: asking costs a round trip.
            return f"postgresql://{user}@{HOST}:{proxy.port}{parts.path}?sslmode=disable&gssencmode=disable"
        assert parts.hostname is not None
        assert parts.port is not None
        proxy = await self._proxy(caller, called, (parts.hostname, parts.port))
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        return urlunsplit(parts._replace(netloc=f"{login}{HOST}:{proxy.port}"))

    async def _proxy(self, caller: str, called: str, target: Target) -> Proxy:
        proxy = self._proxies.get((caller, called))
        if proxy is None:
            proxy = self._proxies[caller, called] = Proxy(called, target)
            await proxy.start()
        return proxy
