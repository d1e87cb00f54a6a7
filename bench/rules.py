"""`python -m bench.rules`: what the sender's rules cost end to end, from the first call to the last receipt booked.

One stack, in turn without and with rules, in pairs of one run, for the machine is noisy; a pair's ratio is what counts.
Without: brands that have none, and an empty list of sensitive words. With: brands for which every rule holds (a
registered signature, 20 templates of which the text must match one, the suffix appended, frequencies, quiet hours that
are not now, a thousand suppressed numbers), and a list of 10,000 words. All messages pass. Beside the rate, which other
work on the machine disturbs, the processor time of a message is told, of all processes but the carrier's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import uvloop

from bench.harness import console, differences, fill, stack, write
from bench.load import Target
from bench.watch import SIMULATOR, Watch, watching
from infra.grpc_server import bearer
from protos.costcenter.v1 import types_pb2
from protos.smsgateway.v1 import sender_rules_pb2 as rules_pb
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from protos.smsgateway.v1.sms_gateway_pb2_grpc import SmsGatewayStub
from smsbill.client import Client
from smsbill.stack import Stack

AIM = 0.9
BRANDS = 20
CALLERS = 256
WORDS = 10_000
_TEMPLATES = 20
_SUPPRESSED = 1_000
_BATCH_MESSAGES = 10_000
_RECIPIENTS_PER_PART = 5_000
_SECONDS_MAX = 120.0
# A changed list is read within two seconds.
_SETTLE_SECONDS = 3.0
_POLL_SECONDS = 0.05
_PLAIN, _RULED = range(1, BRANDS + 1), range(BRANDS + 1, 2 * BRANDS + 1)


async def set_rules(client: Client, brand_id: int) -> None:
    """Every rule for a brand."""
    now = datetime.now(ZoneInfo("Asia/Shanghai"))
    night = [f"{now + timedelta(hours=hours):%H:%M}" for hours in (11, 12)]
    on = rules_pb.SWITCH_ON
    rules = rules_pb.BrandRules(
        brand_id=brand_id, signatures=on, templates=on, suffix=rules_pb.SUFFIX_RULE_APPENDED, frequency=on,
        quiet_hours=on, quiet_from=night[0], quiet_until=night[1],
    )  # fmt: skip
    await client.call(client.rules.PutBrandRules, rules_pb.PutBrandRulesRequest(rules=rules))
    await client.call(
        client.rules.PutSignature,
        rules_pb.PutSignatureRequest(brand_id=brand_id, signature="示例", approval=rules_pb.APPROVAL_APPROVED),
    )
    texts = [
        (types_pb2.SMS_TYPE_VERIFICATION, "验证码 {code}，5 分钟内有效。"),
        (types_pb2.SMS_TYPE_MARKETING, "周末全场{off}。"),
    ]
    texts += [(types_pb2.SMS_TYPE_VERIFICATION, f"第{number}种 {{code}}") for number in range(_TEMPLATES - len(texts))]
    for number, (sms_type, text) in enumerate(texts):
        await client.call(
            client.rules.PutTemplate,
            rules_pb.PutTemplateRequest(
                brand_id=brand_id, template_id=f"t-{99 - number}", sms_type=sms_type, text=text,
                approval=rules_pb.APPROVAL_APPROVED,
            ),
        )  # fmt: skip
    mobiles = [f"+86137{number:08d}" for number in range(_SUPPRESSED)]
    await client.call(
        client.rules.AddSuppressions,
        rules_pb.AddSuppressionsRequest(
            brand_id=brand_id, kind=rules_pb.SUPPRESSION_KIND_OPT_OUT, mobiles=mobiles, reason="bench"
        ),
    )


async def singles(target: Target, brands: Sequence[int], messages: int, first: int) -> None:
    """Verification codes, each to a number of its own."""
    run = secrets.token_hex(4)
    async with target.channel() as channel:
        stub = SmsGatewayStub(channel)

        async def caller(number: int) -> None:
            for message in range(number, messages, CALLERS):
                await stub.SendSms(
                    pb.SendSmsRequest(
                        brand_id=brands[message % len(brands)], request_id=f"{run}-{message}",
                        sms_type=types_pb2.SMS_TYPE_VERIFICATION, mobile=f"+86139{first + message:07d}5",
                        text="【示例】验证码 482913，5 分钟内有效。",
                    ),
                    metadata=bearer(target.token),
                )  # fmt: skip

        await asyncio.gather(*(caller(number) for number in range(CALLERS)))


async def batches(target: Target, brands: Sequence[int], messages: int, first: int) -> None:
    """Marketing, a batch after the other, each of another brand."""
    run = secrets.token_hex(4)

    async def parts(brand_id: int, start: int, size: int) -> AsyncIterator[pb.SendBatchSmsRequest]:
        yield pb.SendBatchSmsRequest(
            header=pb.BatchHeader(
                brand_id=brand_id, request_id=f"{run}-{start}", sms_type=types_pb2.SMS_TYPE_MARKETING,
                text="【示例】周末全场八折。",
            )
        )  # fmt: skip
        for at in range(start, start + size, _RECIPIENTS_PER_PART):
            mobiles = [f"+86138{number:07d}5" for number in range(at, min(at + _RECIPIENTS_PER_PART, start + size))]
            yield pb.SendBatchSmsRequest(recipients=pb.BatchRecipients(mobiles=mobiles))

    async with target.channel() as channel:
        stub = SmsGatewayStub(channel)
        for turn, start in enumerate(range(first, first + messages, _BATCH_MESSAGES)):
            size = min(_BATCH_MESSAGES, first + messages - start)
            brand_id = brands[turn % len(brands)]
            reply = await stub.SendBatchSms(parts(brand_id, start, size), metadata=bearer(target.token))
            assert reply.accepted == size, reply.bad_recipients[:1]


async def all_final(connection: psycopg.AsyncConnection[Any]) -> None:
    """Wait until nothing is on its way, receipts included."""
    async with asyncio.timeout(_SECONDS_MAX):
        while True:
            cursor = await connection.execute(
                "select exists (select 1 from smsgateway.dispatch)"
                " or exists (select 1 from smsgateway.message where state = 5)"
            )
            row = await cursor.fetchone()
            if row is not None and not row[0]:
                return
            await asyncio.sleep(_POLL_SECONDS)


async def processor_seconds(watch: Watch) -> float:
    """What all processes have used so far, but the carrier's."""
    return sum(each.seconds for name, each in (await watch.processes()).items() if name != SIMULATOR)


async def measure(rounds: int, messages: int) -> dict[str, Any]:
    """Messages a second, and processor milliseconds of one, for each kind in turn without and with rules."""
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        words = Path(folder) / "words"
        words.write_text("", encoding="utf-8")
        os.environ["SMSBILL_SENSITIVE_WORDS_FILE"] = str(words)
        async with stack(Path(folder)) as running:
            await fill(running, [*_PLAIN, *_RULED])
            await _set_all(running)
            target = Target(running.file.gateway_target, running.file.token)
            url = running.file.database_url
            first = 0
            async with (
                await psycopg.AsyncConnection.connect(url, autocommit=True) as connection,
                watching(running) as watch,
            ):
                # The first turn of each warms up and does not count.
                for number in range(rounds + 1):
                    turns = [("without", _PLAIN, ""), ("with", _RULED, _list_of_words())]
                    for name, brands, text in turns if number % 2 else reversed(turns):
                        words.write_text(text, encoding="utf-8")
                        await asyncio.sleep(_SETTLE_SECONDS)
                        for kind, load in (("singles", singles), ("batches", batches)):
                            count = messages * (1 if kind == "singles" else 3)
                            started, used = time.perf_counter(), await processor_seconds(watch)
                            await load(target, brands, count, first)
                            await all_final(connection)
                            rate = count / (time.perf_counter() - started)
                            cost = (await processor_seconds(watch) - used) / count * 1_000
                            first += count
                            if number:
                                rates.setdefault(f"{kind} {name}", []).append(rate)
                                costs.setdefault(f"{kind} {name}", []).append(cost)
                            console.print(
                                f"round {number}: {kind} {name} rules {rate:,.0f}/s, {cost:.3f} ms", highlight=False
                            )
            found = await differences(running)
    return {"rates": rates, "costs": costs, "differences": found}


async def _set_all(running: Stack) -> None:
    client = running.client()
    try:
        for brand_id in _RULED:
            await set_rules(client, brand_id)
    finally:
        await client.close()


def _list_of_words() -> str:
    chosen = random.Random(1)
    letters = "赌博毒品枪支发票代开贷款中奖刷单色情诈骗办证"
    words = {"".join(chosen.choices(letters, k=chosen.randint(2, 6))) for _ in range(3 * WORDS)}
    return "\n".join(sorted(words)[:WORDS])


def ratios(figures: dict[str, list[float]], kind: str) -> list[float]:
    """With rules by without, pair by pair."""
    return [a / b for a, b in zip(figures[f"{kind} with"], figures[f"{kind} without"], strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.rules", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--messages", type=int, default=10_000, help="single ones of a turn; three times as many in batches"
    )
    arguments = parser.parse_args()
    result = uvloop.run(measure(arguments.rounds, arguments.messages))
    for kind in ("singles", "batches"):
        found = ratios(result["rates"], kind)
        with_rules = statistics.median(result["rates"][f"{kind} with"])
        console.print(
            f"{kind}: {with_rules:,.0f}/s with rules, ratio to without: median {statistics.median(found):.3f}, "
            f"spread {min(found):.3f} to {max(found):.3f}, aim {AIM}",
            highlight=False,
        )
        found = ratios(result["costs"], kind)
        console.print(
            f"{kind}: processor time with rules to without: median {statistics.median(found):.3f}, "
            f"spread {min(found):.3f} to {max(found):.3f}",
            highlight=False,
        )
    console.print("differences in reconcile:", len(result["differences"]))
    write("rules", result)
    return 1 if result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
