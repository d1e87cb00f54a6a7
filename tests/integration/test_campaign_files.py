"""Aim: a file is sent part by part, goes on where it stopped, reaches nobody twice, and its results name everybody.
Method: the command's own code against the real cost centre, gateway and worker.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from campaign_harness import TEXT, client_of, order, read_results, write_file
from gateway_harness import eventually
from worker_harness import BRAND, GRANTED, ScriptedCarrier, Stack, numbers, running_stack

from protos.costcenter.v1 import cost_center_admin_pb2
from smsbill import results
from smsbill.campaign_file import Journal, Terms, journal_path
from smsbill.client import Client
from smsbill.failure import CommandError
from smsbill.results import write_results
from smsbill.sending import send_file


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(database_url, redis_url) as running:
        yield running


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    async with client_of(stack) as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Thirty-five rows: good ones, one with a bad number, one with an empty name, one that was there before."""
    rows = [(mobile, f"客{place}") for place, mobile in enumerate(numbers(35))]
    rows[3] = ("12345", "x")
    rows[14] = (rows[14][0], "")
    rows[25] = (f"+86 {rows[2][0]}", "again")
    return write_file(tmp_path / "people.csv", rows)


async def test_a_file_and_its_results(stack: Stack, client: Client, path: Path) -> None:
    """Four batches; every row of the file has its line in the results: what became of it, or why it was left out."""
    sent = await send_file(client, order(), path)
    assert (sent.accepted, sent.bad_count, len(sent.batch_ids)) == (32, 3, 4)
    assert [(row.line, row.reason) for row in sent.bad_rows][1:] == [(16, "MISSING_VALUES"), (27, "DUPLICATE_NUMBER")]
    carrier = ScriptedCarrier()
    await stack.worker(carrier=carrier)
    await eventually(stack.quiet_dispatches)
    assert Counter(carrier.sent).most_common(1)[0][1] == 1
    written = await write_results(client, BRAND, "c", path.with_name("out.csv"), file=path)
    assert (written.rows, written.messages) == (35, 32)
    rows = read_results(path.with_name("out.csv"))
    assert [int(row["line"]) for row in rows] == list(range(2, 37))
    assert Counter(row["state"] for row in rows) == {"sent": 32, "left_out": 3}
    assert [row["reason"] for row in rows if row["reason"]][1:] == ["MISSING_VALUES", "DUPLICATE_NUMBER"]
    assert rows[25]["mobile"] == f"+86 {numbers(35)[2]}"
    first = rows[0]
    assert (first["mobile"], first["segments"], first["code"]) == (numbers(1)[0], "1", "0")
    assert first["message_id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first["sent_at"])
    plain = await write_results(client, BRAND, "c", path.with_name("plain.csv"))
    assert (plain.rows, plain.messages) == (32, 32)


async def test_what_was_accepted_is_not_accepted_again(stack: Stack, client: Client, path: Path) -> None:
    """With its journal, without it, and with one that a kill has cut off in mid-line: the same batches, no more."""
    first = await send_file(client, order(), path)
    journal = journal_path(path, "c")
    whole = journal.read_bytes()
    for content in (whole, b"", whole[:-5]):
        journal.write_bytes(content)
        again = await send_file(client, order(), path)
        assert (again.batch_ids, again.accepted, again.bad_count) == (first.batch_ids, 32, 3)
        assert Journal.read(journal).parts.keys() == {0, 1, 2, 3}
    assert await stack.rows("select count(*) from message") == [(32,)]
    assert (await stack.balance())[1] == 32


def change(path: Path) -> None:
    """Append a row."""
    path.write_text(path.read_text() + "13800138000,z\n")


async def test_another_file_or_text_is_another_campaign(client: Client, path: Path) -> None:
    """A changed file and another text are refused by name of the rule; without a name each is a campaign of its own."""
    await send_file(client, order(), path)
    with pytest.raises(CommandError, match="another text"):
        await send_file(client, order(text="{$name}!"), path)
    with pytest.raises(CommandError, match=r"no such column, only: mobile, name"):
        await send_file(client, order(text="{$nmae}"), path)
    named = await send_file(client, order(campaign_id=""), path)
    assert re.fullmatch(r"people-[0-9a-f]{12}", named.campaign_id)
    assert (await send_file(client, order(campaign_id=""), path)).batch_ids == named.batch_ids
    change(path)
    with pytest.raises(CommandError, match="the file has changed since campaign c"):
        await send_file(client, order(), path)
    with pytest.raises(CommandError, match="has changed since it was sent"):
        await write_results(client, BRAND, "c", path.with_name("out.csv"), file=path)


async def test_a_file_for_later_keeps_its_terms(stack: Stack, client: Client, path: Path) -> None:
    """Its messages wait for their moment under the signature given; other terms are another
    campaign.
    """
    later = Terms(signature="示例", send_at=int(time.time()) + 3_600, valid_seconds=600)
    bare = TEXT.removeprefix("【示例】")
    sent = await send_file(client, order(text=bare, terms=later), path)
    rows = await stack.rows(
        "select distinct extract(epoch from not_before)::bigint, extract(epoch from valid_until - not_before)::int"
        " from dispatch"
    )
    assert (sent.accepted, rows) == (32, [(later.send_at, 600)])
    assert {text[:5] for (text,) in await stack.rows("select text from batch")} == {"【示例】{"}
    assert (await send_file(client, order(text=bare, terms=later), path)).repeated == 4
    with pytest.raises(CommandError, match="begun with other terms"):
        await send_file(client, order(text=bare, terms=replace(later, valid_seconds=60)), path)


async def test_a_balance_that_ends_midway(stack: Stack, client: Client, path: Path) -> None:
    """It stops after whole batches, says how to go on, and goes on once there is balance again."""
    ((package_id,),) = await stack.rows("select package_id from costcenter.package_queue where brand_id = %s", BRAND)
    taken = cost_center_admin_pb2.ClawBackAdjustment(package_id=package_id, segments=GRANTED - 20)
    await stack.adjust(BRAND, claw_back=taken)
    with pytest.raises(CommandError, match=r"stopped after 18 messages .* INSUFFICIENT_BALANCE.*buy .* same command"):
        await send_file(client, order(), path)
    grant = cost_center_admin_pb2.GrantAdjustment(segments=100)
    await stack.adjust(BRAND, request_id="bought", grant=grant)
    sent = await send_file(client, order(), path)
    assert (sent.accepted, sent.repeated) == (32, 2)
    assert await stack.rows("select count(*) from message") == [(32,)]


async def test_results_go_on_where_they_stopped(client: Client, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after a part, with half a row more on the disk, the same command writes the rest only."""
    await send_file(client, order(), path)
    output = path.with_name("out.csv")
    await write_results(client, BRAND, "c", output, file=path)
    whole = output.read_bytes()
    asked: list[str] = []
    pages = results._pages

    def counted(caller: Client, brand_id: int, batch_id: str) -> AsyncIterator[object]:
        asked.append(batch_id)
        if len(asked) == 3:
            raise ConnectionError("cut")
        return pages(caller, brand_id, batch_id)

    monkeypatch.setattr(results, "_pages", counted)
    with pytest.raises(ConnectionError):
        await write_results(client, BRAND, "c", output, file=path)
    with output.with_name("out.csv.part").open("ab") as growing:
        growing.write(b"half a r")
    await write_results(client, BRAND, "c", output, file=path)
    assert len(asked) == 5
    assert output.read_bytes() == whole
    assert not output.with_name("out.csv.progress").exists()


async def test_a_file_without_anybody_and_two_commands_at_once(client: Client, path: Path) -> None:
    """Nobody to send to is an error that names the first bad row; a second command is told to wait."""
    nobody = write_file(path.with_name("nobody.csv"), [("123", "a")])
    with pytest.raises(CommandError, match=r"no row of the file has a number.*line 2"):
        await send_file(client, order(), nobody)
    with Journal(journal_path(path, "c")), pytest.raises(CommandError, match="another command sends this campaign"):
        await send_file(client, order(), path)
