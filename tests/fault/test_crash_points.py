"""Aim: a process killed at any line loses, doubles and charges wrongly nothing, shown at each named point of the code.

Method: messages go their way through real processes that die by SIGKILL exactly there, one after another, and are
started again; then the records, the carrier's own record, the balances, the queues and `reconcile` are judged. Points
of one way share its message, and ways run side by side in worlds of their own, for the sake of time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
from crash_harness import REFUSED_CODE, Outcome, Way, World, impatient, walk

from infra.embedded import EmbeddedServers
from smsgateway.schema import MessageState
from workers.sweepers import NO_OUTCOME

pytestmark = pytest.mark.timeout(400)

DELIVERED = Outcome(MessageState.DELIVERED, sent=True)
UNKNOWN = Outcome(MessageState.FAILED, NO_OUTCOME)
REFUSED_BY_CARRIER = Outcome(MessageState.FAILED, REFUSED_CODE)
EXPIRED = Outcome(MessageState.EXPIRED, sent=True)
SOON: dict[str, Any] = {"outcome_hours": 1 / 3_600}

WAYS: dict[str, tuple[tuple[str, ...], Way]] = {}


def worker_way(
    name: str,
    *points: str,
    batch: bool = False,
    outcome: Outcome = DELIVERED,
    ending: str = "72",
    carrier: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Messages that are queued, workers that die at each of the points in turn, and one that lives."""

    async def way(world: World) -> None:
        world.behave(**(carrier or {}))
        mobiles = world.numbers(3 if batch else 1, outcome, ending)
        if batch:
            await world.stack.send_batch(mobiles, brand_id=world.brand_id, request_id=f"b-{world.brand_id}")
        else:
            await world.stack.send(mobiles[0], brand_id=world.brand_id)
        for point in points:
            await world.dies("worker", point, **settings)
        world.behave()
        await world.settled(**settings)

    WAYS[name] = (points, way)


for kind in ("single", "batch"):
    worker_way(
        f"{kind} before its mark and after its call",
        "worker.dispatch.read",
        "worker.dispatch.claimed",
        "worker.dispatch.paid",
        "worker.dispatch.answered",
        batch=kind == "batch",
    )
    worker_way(
        f"{kind} after its outcome", "worker.dispatch.settled", "worker.dispatch.acknowledged", batch=kind == "batch"
    )
    worker_way(
        f"{kind} between mark and call",
        "worker.dispatch.marked",
        "worker.sweep.overdue",
        "worker.sweep.undecided",
        batch=kind == "batch",
        outcome=UNKNOWN,
        **SOON,
    )


CASES = [pytest.param(name, point, id=f"{point}-{name}") for name, (points, _) in WAYS.items() for point in points]


@pytest.fixture(scope="module")
def failures(
    servers: EmbeddedServers, database_template: str, tmp_path_factory: pytest.TempPathFactory, request: Any
) -> Iterator[dict[str, BaseException | None]]:
    """What the ways that are asked for failed with."""
    asked = {item.callspec.params["name"] for item in request.session.items if item.module is request.module}
    ways = {name: way for name, (_, way) in WAYS.items() if name in asked}
    redis_urls = [servers.redis_url.replace("db=0", f"db={number}") for number in (2, 3, 4, 5)]
    folder: Path = tmp_path_factory.mktemp("crash")
    with pytest.MonkeyPatch.context() as patch:
        impatient(patch)
        forked.warm_up()
        yield asyncio.run(walk(ways, servers.database_url, database_template, redis_urls, folder))


@pytest.mark.parametrize(("name", "point"), CASES)
def test_a_process_killed_at_a_point_loses_and_doubles_nothing(
    name: str, point: str, failures: dict[str, BaseException | None]
) -> None:
    """It died there, and in the end all is as if it had not."""
    failure = failures[name]
    if failure is not None:
        raise failure
