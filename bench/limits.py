"""Whether a rate that all workers share is held: messages a second that the carrier takes while more wait.

`python -m bench.limits`. The whole stack with several workers and one account at the simulator that is limited; single
codes are accepted far faster than the limit, and what arrives at the carrier is counted over windows of 30 s. Aim:
within 5 % of the limit in each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.harness import console, fill, stack, write
from bench.load import Target, single_messages
from bench.watch import until, watching
from protos.smsgateway.v1 import routing_pb2 as pb

AIM = 0.05
_ACCOUNT = "simulator"
# Until leases, first groups and the bucket's first burst are behind.
_SETTLE_SECONDS = 3.0


async def run(rate: float, workers: int, seconds: float, windows: int) -> dict[str, Any]:
    """Messages a second that the carrier took in each window."""
    messages = int(rate * (seconds * windows + _SETTLE_SECONDS) * 1.3)
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder), workers=workers) as running, watching(running) as watch:
            client = running.client()
            settings = {name: f"env:SMSBILL_CHUANGLAN_{name.upper()}" for name in ("account", "password")}
            settings["url"] = running.file.simulator_url
            await client.call(
                client.routing.PutCarrierAccount,
                pb.PutCarrierAccountRequest(account_id=_ACCOUNT, kind="chuanglan", settings=settings, rate=rate),
            )
            await client.close()
            # A worker looks once a second.
            await asyncio.sleep(_SETTLE_SECONDS)
            await fill(running, range(1, 21))
            target = Target(running.file.gateway_target, running.file.token)
            sending = asyncio.create_task(
                single_messages(
                    target, running.file.database_url, messages=messages, callers=256, brands=range(1, 21),
                    seconds_max=seconds * windows + 120,
                )
            )  # fmt: skip
            try:
                await until(partial(watch.has_taken_on, 0), seconds_max=30, poll_seconds=0.1)
                await asyncio.sleep(_SETTLE_SECONDS)
                found = []
                for _ in range(windows):
                    _, before = await watch.taken_on(limit=1)
                    started = time.perf_counter()
                    await asyncio.sleep(seconds)
                    _, after = await watch.taken_on(limit=1)
                    elapsed = time.perf_counter() - started
                    found.append((int(after["messages"]) - int(before["messages"])) / elapsed)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
    worst = max(abs(each - rate) / rate for each in found)
    return {
        "rate": rate,
        "workers": workers,
        "window_seconds": seconds,
        "per_second": [round(each, 2) for each in found],
        "worst_deviation": round(worst, 4),
        "held": worst <= AIM,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=100.0, help="messages a second")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a window")
    parser.add_argument("--windows", type=int, default=2)
    arguments = parser.parse_args()
    result = asyncio.run(run(arguments.rate, arguments.workers, arguments.seconds, arguments.windows))
    console.print(json.dumps(result))
    write("limits", result)


if __name__ == "__main__":
    main()
