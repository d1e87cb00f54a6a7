"""Aim: what `smsbill top` makes of metrics: rates over restarts, sums over processes, and an error with a next step."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import aiohttp
import pytest

from smsbill import top
from smsbill.commands.watching import _given
from smsbill.failure import CommandError
from smsbill.tables import console

EARLIER = """
smsbill_messages_total{type="marketing",mode="batch",result="accepted"} 100
smsbill_messages_settled_total{type="marketing",result="sent"} 90
smsbill_messages_settled_total{type="marketing",result="failed"} 10
smsbill_ledger_group_operations_count 10
smsbill_ledger_group_operations_sum 100
"""
LATER = """
smsbill_messages_total{type="marketing",mode="batch",result="accepted"} 300
smsbill_messages_settled_total{type="marketing",result="sent"} 240
smsbill_messages_settled_total{type="marketing",result="failed"} 60
smsbill_ledger_group_operations_count 20
smsbill_ledger_group_operations_sum 600
smsbill_queue_depth{type="marketing",mode="batch"} 7
smsbill_queue_oldest_seconds{type="marketing",mode="batch"} 1.25
smsbill_carrier_circuit{account="a"} 2
smsbill_carrier_messages_total{account="a",verdict="accepted"} 30
smsbill_carrier_messages_total{account="a",verdict="retry"} 10
smsbill_brand_balance_segments{brand_id="7",state="available"} 5
smsbill_brand_balance_segments{brand_id="12",state="available"} 0
smsbill_brand_balance_segments{brand_id="12",state="frozen"} 3
process_cpu_seconds_total 1.5
process_resident_memory_bytes 5e+07
"""
URLS = {"gateway": "http://gateway/metrics", "worker-1": "http://worker/metrics"}


def reading(at: float, **texts: str) -> top.Reading:
    made = top.Reading(at)
    for process, text in texts.items():
        made.add(process, text)
    return made


def told(**changes: str) -> dict[str, Any]:
    before = reading(100.0, gateway=EARLIER)
    return top.figures(before, reading(102.0, **{"gateway": LATER, **changes}), URLS)


def test_rates_and_states() -> None:
    """Aim: per second between two looks; a worker that was not there before counts from nothing."""
    found = told(worker='smsbill_messages_settled_total{type="marketing",result="sent"} 50\n')
    assert found["messages"] == {
        "accepted": 100.0, "refused": 0.0, "sent": 100.0, "delivered": 0.0, "undelivered": 0.0, "failed": 25.0,
        "success": 0.8,
    }  # fmt: skip
    assert found["queues"] == [{"type": "marketing", "mode": "batch", "entries": 7, "oldest_seconds": 1.2}]
    assert found["groups"][0] == {"group": "ledger", "groups": 5.0, "size": 50.0, "seconds": 0.0}
    (carrier,) = found["carriers"]
    assert (carrier["state"], carrier["messages"], carrier["accepted"]) == ("rests", 20.0, 0.75)
    assert [brand["brand_id"] for brand in found["brands"]] == [12, 7]
    assert found["processes"][0] == {"process": "gateway", "up": True, "cpu": 0.75, "memory_bytes": 50_000_000}


def test_a_process_that_began_anew() -> None:
    """Aim: a counter that went back grew by what it is now, never by less than nothing."""
    before = reading(1.0, gateway=LATER)
    found = top.figures(before, reading(2.0, gateway=EARLIER), URLS)
    assert (found["messages"]["sent"], found["messages"]["failed"]) == (90.0, 10.0)


def test_nothing_yet_is_shown() -> None:
    """Aim: processes that have done nothing yet make a screen, without divisions by nothing."""
    found = top.figures(reading(1.0), reading(1.0), URLS)
    assert found["messages"]["success"] is None
    screen = console()
    with screen.capture() as captured:
        screen.print(top.screen(found))
        screen.print(top.screen(told()))
    assert "success –" in captured.get()
    assert "rests" in captured.get()


async def test_nobody_answers() -> None:
    """Aim: one line that says what to do."""
    async with aiohttp.ClientSession() as session:
        with pytest.raises(CommandError, match="smsbill doctor"):
            await top.read(session, {"gateway": "http://127.0.0.1:1/metrics"})


def test_addresses_as_people_write_them() -> None:
    """Aim: a host and port is enough; what is no address is refused with an example."""
    assert _given(["127.0.0.1:8080", "http://a:1/metrics", "https://b/x"]) == {
        "127.0.0.1:8080": "http://127.0.0.1:8080/metrics",
        "a:1": "http://a:1/metrics",
        "b": "https://b/x",
    }
    with pytest.raises(Exception, match="such as http"):
        _given(["ftp://a"])


def test_bash_completes_commands_and_values() -> None:
    """Aim: the script that --show-completion prints has a real bash complete a subcommand and an option's value."""
    script = (
        'set -e; source <(_SMSBILL_COMPLETE=source_bash "$0" -m smsbill);'
        ' smsbill() { "$PYTHON" -m smsbill "$@"; }; export -f smsbill;'
        ' COMP_WORDS=(smsbill send --type mark); COMP_CWORD=3; _smsbill_completion "$COMPLETER"; echo "${COMPREPLY[@]}"'
    )
    completer = os.path.join(os.path.dirname(sys.executable), "smsbill")
    done = subprocess.run(
        ["bash", "-c", script, sys.executable],
        env={**os.environ, "PYTHON": sys.executable, "COMPLETER": completer},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["marketing"]
