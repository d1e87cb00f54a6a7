"""Every address that a process is given leads through a proxy of its own, and nothing else changes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from chaos.network import CLIENT, COSTCENTER, Network

VARIABLES = {
    "SMSBILL_DATABASE_URL": "postgresql:///smsbill?host=%2Ftmp%2Fa%20b&port=5432&user=someone",
    "SMSBILL_COSTCENTER_DATABASE_URL": "postgresql://u:p@db.example:5433/ledger?sslmode=require",
    "SMSBILL_REDIS_URL": "unix:///tmp/redis.sock?db=3",
    "SMSBILL_COSTCENTER_TARGET": "ipv4:127.0.0.1:1001,127.0.0.1:1002",
    "SMSBILL_CHUANGLAN_URL": "http://127.0.0.1:1003",
    "SMSBILL_SIMULATOR_RECEIPT_URL": "http://127.0.0.1:1004/callbacks/chuanglan/report",
    "SMSBILL_LOG_FORMAT": "json",
    "SMSBILL_BOOTSTRAP_TOKEN": "",
}


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    """A network that is closed at the end."""
    network = Network()
    yield network
    await network.close()


async def test_addresses_are_replaced_and_the_rest_kept(network: Network) -> None:
    """Servers on sockets and on ports, gRPC targets and URLs with paths: each leads to the proxy of its way."""
    changed = dict(await network.adjust("worker-1", VARIABLES))
    ports = {
        called: f"127.0.0.1:{proxy.port}" for (_, called), proxy in zip(network.ways, network.proxies(), strict=True)
    }
    assert changed.pop("SMSBILL_DATABASE_URL").startswith(f"postgresql://someone@{ports['PostgreSQL']}/smsbill?")
    ledger = ports["PostgreSQL of the ledger"]
    assert changed.pop("SMSBILL_COSTCENTER_DATABASE_URL") == f"postgresql://u:p@{ledger}/ledger?sslmode=require"
    assert changed.pop("SMSBILL_REDIS_URL") == f"redis://{ports['Redis']}/3"
    assert changed.pop("SMSBILL_COSTCENTER_TARGET") == f"ipv4:{ports['costcenter-1']},{ports['costcenter-2']}"
    assert changed.pop("SMSBILL_CHUANGLAN_URL") == f"http://{ports['carrier']}"
    assert changed.pop("SMSBILL_SIMULATOR_RECEIPT_URL") == f"http://{ports['callbacks']}/callbacks/chuanglan/report"
    assert changed == {"SMSBILL_LOG_FORMAT": "json", "SMSBILL_BOOTSTRAP_TOKEN": ""}


async def test_a_process_that_starts_again_keeps_its_ways(network: Network) -> None:
    """The same process gets the same proxies, another one others; they are found by either end."""
    first = await network.adjust("worker-1", VARIABLES)
    assert await network.adjust("worker-1", VARIABLES) == first
    assert await network.adjust("worker-2", VARIABLES) != first
    target = await network.targets(CLIENT, COSTCENTER, "127.0.0.1:1001")
    assert [f"127.0.0.1:{proxy.port}" for proxy in network.proxies(caller=CLIENT)] == [target]
    assert len(network.proxies(called="Redis")) == 2
    assert len(network.proxies(caller="worker-1", called="Redis")) == 1
