"""Aim: after a restore to an earlier moment the doctor finds what the records do not know; nothing is sent twice."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from gateway_harness import SECONDS, eventually
from worker_harness import ADMIN, BRAND, OTHER_BRAND, SERVICE, Stack, numbers, running_stack, tools

from infra.grpc_server import bearer
from protos.smsgateway.v1 import sms_gateway_pb2
from smsbill import reconcile
from smsbill.after_restore import AfterRestore, Wish
from smsbill.backup import back_up, restore
from smsbill.findings import PROBLEM
from smsbill.settings import StackSettings
from smsgateway.queues import ReceiptItem
from smsgateway.schema import DispatchState, MessageState


def settings(stack: Stack, folder: Path) -> StackSettings:
    """Settings of the command on this stack's servers."""
    return StackSettings(
        _env_file=None,
        database_url=stack.database_url,
        redis_url=stack.redis_url,
        chuanglan_account="N0000001",
        data_dir=folder / "data",
    )


def nothing(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


async def copied(stack: Stack, target_url: str, folder: Path) -> None:
    """Back up a stack's records and restore them to another database, which stands for the same one."""
    here = settings(stack, folder)
    await back_up(here, folder / "backup", progress=nothing)
    there = here.model_copy(update={"database_url": target_url})
    await restore(folder / "backup", there, aside=False, progress=nothing)


async def look(stack: Stack, folder: Path, **wish: Any) -> dict[str, str]:
    """What the doctor finds to be a problem, or says that it has done: what, and its first figure."""
    doctor = AfterRestore(settings(stack, folder), Wish(service_token=SERVICE, **wish), pushed_seconds=0)
    found = await doctor.findings()
    told = {each.what: f"{each.status}: {each.detail}" for each in found}
    return {what: text for what, text in told.items() if any(part.isdigit() for part in text) and what != "restore"}


async def problems(stack: Stack, folder: Path, **wish: Any) -> list[str]:
    """What is left to be done."""
    return [what for what, text in (await look(stack, folder, **wish)).items() if text.startswith(PROBLEM)]


def taken(*stacks: Stack) -> Counter[str]:
    """How often the carrier took each number."""
    return Counter(entry["mobile"] for stack in stacks for entry in stack.simulator.entries(0, 100_000))


@pytest.mark.timeout(300)
async def test_with_the_carriers_record_each_message_is_sent_once(
    database_url: str, empty_database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Aim: exactly what was planted is found; what the carrier took is recorded, what it did not take is sent, what is
    lost is told and filed; a second look finds nothing, and the books fit.
    """
    record = tmp_path / "record.json"
    async with running_stack(database_url, redis_url) as before:
        worker = await before.worker()
        for mobile in numbers(2, 0):
            await before.send(mobile)
        await before.wait_until_final(2)
        await before.stop(worker)
        since = [await before.send(mobile) for mobile in numbers(3, 100)]
        batch = await before.send_batch(numbers(20, 200))
        cancelled = await before.send_batch(numbers(5, 300), brand_id=OTHER_BRAND, request_id="cancelled")
        await copied(before, empty_database_url, tmp_path)
        # From here on the restored records know nothing.
        request = sms_gateway_pb2.CancelBatchRequest(batch_id=cancelled)
        await before.sms.CancelBatch(request, metadata=bearer(ADMIN), timeout=SECONDS)
        worker = await before.worker()
        lost = [await before.send(mobile, brand_id=OTHER_BRAND) for mobile in numbers(4, 400)]
        await before.wait_until_final(2 + 3 + 20 + 5 + 4)
        await before.stop(worker)
        for mobile in numbers(2, 500):
            await before.send(mobile)
        record.write_bytes(orjson.dumps({"entries": before.simulator.entries(0, 1_000)}))
        async with running_stack(empty_database_url, redis_url) as after:
            await after.push_receipt(call_id=lost[0], mobile=numbers(1, 400)[0])
            async with tools(after) as parts:
                await parts.queues.push_receipts([ReceiptItem("chuanglan", "m", "gone", lost[1])])
            planted = {
                "taken since": "problem: 4 messages or chunks: the carrier took what the records have as not sent",
                "not taken": "problem: 1 messages or chunks: not submitted at the moment, and the carrier has it not",
                "receipts of lost messages": "problem: 1 receipts: their messages are in no record",
                f"lost messages of brand {OTHER_BRAND}": (
                    "problem: the carrier took 4 segments in 4 messages that no record knows"
                ),
                "receipts in Redis": "problem: 1 entries: name receipts that no record has",
                "queue entries": (
                    f"problem: 2 entries of brands {BRAND}: "
                    "their messages are lost; what was not sent has to be sent again by its caller"
                ),
            }
            assert await look(after, tmp_path, record=record) == planted
            # Looking changes nothing.
            assert await look(after, tmp_path, record=record) == planted
            done = await look(after, tmp_path, record=record, repair=True)
            assert {what for what, text in done.items() if text.startswith(PROBLEM)} == {
                f"lost messages of brand {OTHER_BRAND}"
            }
            assert set(done) >= set(planted)
            # What is released is pushed at once, not found in no queue afterwards.
            assert "records in no queue" not in done
            assert await problems(after, tmp_path, record=record) == []
            assert await problems(after, tmp_path, record=record, repair=True) == []
            worker = await after.worker()
            states = {MessageState.DELIVERED: 2 + 5, MessageState.SENT: 3 + 20}

            async def settled() -> bool:
                return await after.states() == states and (await after.rows("select 1 from outbox")) == []

            await eventually(settled)
            await after.stop(worker)
            assert taken(before, after) == Counter(
                [*numbers(2, 0), *numbers(3, 100), *numbers(20, 200), *numbers(5, 300), *numbers(4, 400)]
            )
            assert taken(after) == Counter(numbers(5, 300))
            assert {await after.state(message_id) for message_id in since} == {MessageState.SENT}
            assert (await after.rows("select accepted from batch where batch_id = %s", batch)) == [(20,)]
            assert await reconcile.run(settings(after, tmp_path), progress=nothing) == []


@pytest.mark.timeout(300)
async def test_without_a_record_nothing_is_sent_that_may_have_been(
    database_url: str, empty_database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Aim: after a restore by other means the moment is told; what a receipt speaks of is recorded as sent, the rest is
    never sent and settled by its receipt; messages accepted since the restore go on as ever.
    """
    reported, unsure, accepting, claimed, fresh = numbers(5, 0)
    async with running_stack(database_url, redis_url) as before:
        ids = {mobile: await before.send(mobile) for mobile in (reported, unsure, accepting, claimed)}
        await copied(before, empty_database_url, tmp_path)
        worker = await before.worker()
        await before.wait_until_final(4)
        await before.stop(worker)
    async with running_stack(empty_database_url, redis_url) as after:
        # As other tools restore: nothing is held.
        await after.rows("update dispatch set not_before = null, last_error = null")
        await after.rows(
            "update dispatch set state = %s, order_no = null where dispatch_id = %s",
            int(DispatchState.ACCEPTING),
            ids[accepting],
        )
        await after.rows(
            "update dispatch set state = %s, epoch = 1 where dispatch_id = %s",
            int(DispatchState.CLAIMED),
            ids[claimed],
        )
        moment = datetime.now(UTC)
        await after.push_receipt(call_id=ids[reported], mobile=reported)
        wish = {"restored_to": moment}
        assert set(await problems(after, tmp_path, **wish)) >= {"taken since", "perhaps taken"}
        done = await look(after, tmp_path, repair=True, **wish)
        assert done["taken since"] == "ok: 1 messages or chunks: paid and recorded as sent"
        assert done["perhaps taken"] == "ok: 3 messages or chunks: not to be sent; receipts or time decide"
        assert await problems(after, tmp_path, **wish) == []
        ids[fresh] = await after.send(fresh)
        assert await problems(after, tmp_path, repair=True, **wish) == []
        worker = await after.worker()
        await after.wait_for_state(ids[fresh], MessageState.DELIVERED)
        await after.wait_for_state(ids[reported], MessageState.DELIVERED)
        for mobile in (unsure, accepting, claimed):
            assert await after.state(ids[mobile]) == MessageState.UNKNOWN
            await after.push_receipt(call_id=ids[mobile], mobile=mobile)
        states = await after.wait_until_final(5)
        await after.stop(worker)
        assert states == {MessageState.DELIVERED: 5}
        assert taken(after) == Counter([fresh])
        assert await reconcile.run(settings(after, tmp_path), progress=nothing) == []


async def test_nothing_is_judged_while_workers_run(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """Aim: a worker would send what is being judged: it is the one thing that is told, and nothing is repaired."""
    async with running_stack(database_url, redis_url) as stack:
        worker = await stack.worker()
        assert await problems(stack, tmp_path, repair=True, restored_to=datetime.now(UTC)) == ["workers"]
        await stack.stop(worker)
        assert await problems(stack, tmp_path, restored_to=datetime.now(UTC)) == []
