"""Aim: the whole stack as a user runs it: real servers, real processes, the real command."""

from __future__ import annotations

import json
import signal
import socket
import stat
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from stack_harness import STOP_SECONDS, Answer, Stack, command, eventually

from smsbill import stack_file

TEXT = "【测试】您的验证码是123456"


def send(stack: Stack, to: str, *options: str) -> Any:
    return stack.ok("send", "--brand", "1", "--type", "verification", "--text", TEXT, "--to", to, *options)


def available(stack: Stack) -> int:
    return int(stack.ok("balance", "--brand", "1")["available"])


def test_a_single_message_reaches_delivered_and_is_billed(stack: Stack) -> None:
    """Aim: gRPC → freeze → queue → worker → carrier → receipt, and one segment less in the end."""
    before = available(stack)
    sent = send(stack, "19900090001", "--wait", "30")
    assert (sent["state"], sent["result_code"], sent["segments"]) == ("delivered", "DELIVRD", 1)
    balance = stack.ok("balance", "--brand", "1")
    assert (balance["total"], balance["frozen"], balance["available"]) == (before - 1, 0, before - 1)


def test_a_repeated_request_id_sends_and_bills_once(stack: Stack) -> None:
    """Aim: a caller that repeats a call with its request_id gets the same reply and pays once."""
    before = available(stack)
    first, again = (send(stack, "19900090002", "--request-id", "once", "--wait", "30") for _ in range(2))
    assert first["message_id"] == again["message_id"]
    assert available(stack) == before - 1


def test_a_refused_and_an_undelivered_message(stack: Stack) -> None:
    """Aim: what the carrier refuses is given back; what is not delivered stays paid when the brand says so."""
    before = available(stack)
    assert send(stack, "19900091111", "--wait", "30")["state"] == "failed"
    eventually(lambda: available(stack) == before)
    assert send(stack, "19900090000", "--wait", "30")["state"] == "undelivered"
    assert available(stack) == before - 1


def test_usage_is_told_compared_and_made_anew(stack: Stack) -> None:
    """Aim: a message is found by what is known of it and counted; the figures fit the records, and a rebuild says the
    same.
    """
    send(stack, "19900090030", "--wait", "30")
    known = ("messages", "--brand", "1", "--number", "19900090030", "--type", "verification", "--state", "delivered")
    (listed,) = stack.ok(*known, "--from", "2026-01-01")
    assert listed["segments"] == 1
    assert stack.ok("usage", "--rebuild")["brands"] >= 1
    told = stack.ok("usage", "--brand", "1", "--by", "hour", "--type", "verification")["usage"]
    assert told[-1]["delivered"] >= 1
    assert stack.ok("usage", "--check") == {"differences": []}


def test_a_file_with_bad_rows(stack: Stack, folder: Path) -> None:
    """Aim: the good rows of a real file are sent, each bad one is named by its line with its number masked."""
    path = folder / "people.csv"
    path.write_bytes(
        '\ufeff手机号,姓名\r\n19900090010,王伟\r\n1990009001,李娜\r\n19900090011,"Li,\r\nNa"\r\n'
        "19900090012,张敏,x\r\n19900090010,again\r\n19900090013,刘静\r\n".encode()
    )
    arguments = ("send", "--brand", "1", "--type", "marketing", "--text", "【测试】你好", "--file", str(path))
    told = stack.ok(*arguments, "--wait", "30")
    assert (told["accepted"], told["bad_row_count"], told["states"]) == (3, 3, {"delivered": 3})
    rows = [(3, "19******01"), (6, "199****0012"), (7, "+86199****0010")]
    assert [(row["line"], row["mobile"]) for row in told["bad_rows"]] == rows
    assert "1990009001" not in json.dumps(told)


def test_a_batch_is_followed_and_a_webhook_is_set_up(stack: Stack, folder: Path) -> None:
    """Aim: each end is told as it comes and the last document says done; a secret is shown once."""
    path = folder / "two.csv"
    path.write_text("mobile\n19900090020\n19900090021\n")
    arguments = ("send", "--brand", "1", "--type", "marketing", "--text", "【测试】你好", "--file", str(path))
    (batch,) = stack.ok(*arguments)["batch_ids"]
    followed = stack.run("follow", batch, "--messages", "--wait", "30", "--json")
    documents = [json.loads(line) for line in followed.out.splitlines()]
    assert documents[-1]["done"]
    assert sorted(end["mobile"] for each in documents for end in each["ends"]) == [
        "+86199****0020",
        "+86199****0021",
    ]
    put = ("webhook", "put", "--brand", "1", "--url", "https://example.com/sms")
    made = stack.ok(*put, "--state", "failed", "--replies")
    assert (made["secret"][:6], made["webhook"]["states"], made["webhook"]["replies"]) == ("whsec_", ["failed"], True)
    (listed,) = stack.ok("webhook", "list", "--brand", "1")
    assert made["secret"] not in json.dumps(listed)
    assert stack.ok("webhook", "remove", "--brand", "1") == {"events_dropped": 0}
    assert stack.ok("replies", "--brand", "0") == []


def test_a_rule_of_alerts_is_put_and_balances_are_listed(stack: Stack) -> None:
    """Aim: what is not given is the kind's default; what is wrong is named with a next step; nothing is left."""
    of_type = ("failures", "--brand", "1", "--type", "marketing")
    rule = stack.ok("alert", "put", *of_type, "--percent", "40")
    assert (rule["kind"], rule["sms_type"], rule["percent"], rule["minutes"]) == ("failures", "marketing", 40, 15)
    refused = stack.run("alert", "put", "low-balance", "--mail", "ops@example.com", "--json")
    assert (refused.code, "set SMSBILL_SMTP_*" in refused.line) == (1, True)
    assert stack.ok("alert", "remove", *of_type)["removed"]
    (balance, *_) = stack.ok("brand", "balances")
    assert (balance["brand_id"], balance["status"], balance["available"] > 0) == (1, "active", True)


def test_a_file_that_is_no_csv_sends_nothing(stack: Stack, folder: Path) -> None:
    """Aim: a malformed file is refused whole with its line, and neither a message nor a freeze is left."""
    path = folder / "bad.csv"
    before = stack.ok("balance", "--brand", "1")
    for content, said in {
        b"name,city\nA,B\n": "line 1: has no column `mobile`, only: name, city",
        b'mobile,name\n19900090020,A\n19900090021,"B\n': "line 3: is not CSV",
        b"mobile\n19900090020\n\xff\xff\n": "line 3: is neither UTF-8 nor GBK",
        b"": "is empty",
        b"mobile\nx\n": "no row of the file has a number that can be sent to; line 2",
    }.items():
        path.write_bytes(content)
        answer = stack.run("send", "--brand", "1", "--type", "marketing", "--text", "x", "--file", str(path))
        assert answer.code == 1
        assert said in answer.line
    after = stack.ok("balance", "--brand", "1")
    assert {**after, "as_of": ""} == {**before, "as_of": ""}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("balance", "--brand", "77"), "BRAND_NOT_FOUND: "),
        (("send", "--brand", "77", "--type", "marketing", "--text", "x", "--to", "19900090001"), "BRAND_NOT_FOUND: "),
        (
            ("send", "--brand", "1", "--type", "marketing", "--text", "x" * 537, "--to", "19900090001"),
            "BAD_REQUEST: text",
        ),
        (("send", "--brand", "1", "--type", "marketing", "--text", "x", "--to", "12"), "BAD_REQUEST: mobile"),
        (("buy", "--brand", "1", "--offer", "none"), "OFFER_NOT_FOUND: "),
        (("token", "revoke", "none"), "TOKEN_NOT_FOUND: "),
        (("messages", "--brand", "1", "--batch", "none"), "BAD_REQUEST: batch_id"),
    ],
)
def test_what_is_refused_is_one_line_with_its_reason_and_what_to_do(
    stack: Stack, arguments: tuple[str, ...], said: str
) -> None:
    """Aim: a refusal of a service reaches the user as `REASON: sentence – advice` and status 1, never a traceback."""
    answer = stack.run(*arguments)
    assert answer.code == 1
    assert answer.line.startswith(f"smsbill: {said}")
    assert " – " in answer.line


def test_insufficient_balance_says_what_to_buy(stack: Stack) -> None:
    """Aim: a brand without segments is told how to get some, and nothing is frozen."""
    stack.ok("brand", "put", "--brand", "2", "--name", "Poor")
    answer = stack.run("send", "--brand", "2", "--type", "marketing", "--text", "x", "--to", "19900090001")
    assert answer.code == 1
    assert answer.line.startswith("smsbill: INSUFFICIENT_BALANCE: ")
    assert "smsbill buy" in answer.line
    assert stack.ok("balance", "--brand", "2")["frozen"] == 0


def test_wrong_and_limited_tokens(stack: Stack) -> None:
    """Aim: no token opens more than it says, and the command says what to do."""
    answer = stack.run("balance", SMSBILL_TOKEN="sb_wrong")
    assert (answer.code, answer.line.split(":")[1]) == (1, " UNAUTHENTICATED")
    made = stack.ok("token", "create", "--brands", "1", "--role", "sender", "--name", "till")
    assert made["token"]["brand_ids"] == [1]
    secret = made["secret"]
    assert stack.ok("balance", "--brand", "1", SMSBILL_TOKEN=secret)["brand_id"] == 1
    assert "BRAND_NOT_ALLOWED: " in stack.run("balance", "--brand", "2", SMSBILL_TOKEN=secret).line
    denied = stack.run("buy", "--brand", "1", "--offer", "any", SMSBILL_TOKEN=secret)
    assert "ROLE_NOT_ALLOWED: " in denied.line
    assert secret not in json.dumps(stack.ok("token", "list"))
    assert stack.ok("token", "revoke", made["token"]["token_id"])["revoked_at"]
    refused = eventually(lambda: stack.run("balance", "--brand", "1", SMSBILL_TOKEN=secret).failed)
    assert "UNAUTHENTICATED" in refused.line


def test_offers_packages_and_the_daily_cron(stack: Stack) -> None:
    """Aim: what an operator does by hand: offer, purchase (once for a request_id), listing, expiry."""
    stack.ok("brand", "put", "--brand", "3", "--name", "Buyer", "--refund-undelivered")
    stack.ok(
        "offer", "put", "--offer", "m", "--name", "M", "--segments", "10", "--price", "1.50", "--days", "3",
        "--type", "marketing",
    )  # fmt: skip
    bought = [stack.ok("buy", "--brand", "3", "--offer", "m", "--request-id", "same") for _ in range(2)]
    assert bought[0] == bought[1]
    packages = stack.ok("packages", "--brand", "3")
    assert [(each["remaining"], each["sms_types"]) for each in packages] == [(10, ["marketing"])]
    assert [each["offer_id"] for each in stack.ok("offer", "list") if each["offer_id"] == "m"] == ["m"]
    assert stack.ok("brand", "get", "--brand", "3")["refund_undelivered"] is True
    assert set(stack.ok("expire")) == {"brands", "packages_expired", "freezes_ended"}


def test_reconcile_and_doctor_find_nothing(stack: Stack) -> None:
    """Aim: after all of the above the books fit, and the doctor finds everything reachable."""
    assert stack.ok("reconcile") == {"differences": []}
    findings = stack.ok("doctor")
    assert findings["ok"], findings
    told = {finding["what"]: finding["detail"] for finding in findings["findings"]}
    assert "version 18." in told["PostgreSQL"]
    assert {"schema costcenter", "schema smsgateway", "Redis", "cost centre", "gateway", "worker-1 ready"} <= set(told)


def test_a_backup_of_the_running_stack_is_restored_elsewhere(stack: Stack, folder: Path) -> None:
    """Aim: backup while all runs, restore with the embedded server of another folder: the same moment and secrets."""
    backup = folder / "backup"
    made = stack.ok("backup", "--to", str(backup))
    assert stat.S_IMODE(backup.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in backup.iterdir())
    elsewhere = {"SMSBILL_DATA_DIR": str(folder / "data")}
    told = command("restore", "--from", str(backup), "--json", **elsewhere)
    assert told.code == 0, told
    assert (told.json["restored_to"], told.json["secrets"]) == (made["moment"], "restored")
    assert (folder / "data" / "secrets.json").read_bytes() == (stack.data_dir / "secrets.json").read_bytes()


def test_secrets_are_private_and_on_no_command_line(stack: Stack) -> None:
    """Aim: nobody else on the machine can read a token: not from files, not from the list of processes."""
    for name in ("secrets.json", "stack.json"):
        assert stat.S_IMODE((stack.data_dir / name).stat().st_mode) == 0o600
    secrets = json.loads((stack.data_dir / "secrets.json").read_text())
    assert secrets["user_token"] == stack.started["token"]
    assert stack.process is not None
    processes = [psutil.Process(stack.process.pid), *stack.children().values()]
    lines = " ".join(" ".join(process.cmdline()) for process in processes)
    assert not any(secret in lines for secret in secrets.values())
    logs = "".join(path.read_text() for path in Path(stack.started["log_folder"]).glob("*.log"))
    assert not any(secret in logs for secret in secrets.values())
    assert "19900090001" not in logs
    assert "您的验证码" not in logs


def test_a_process_that_dies_is_started_again(stack: Stack) -> None:
    """Aim: each kind of process may be killed; its successor takes over on the same ports and messages get through."""
    for name in ("worker-1", "costcenter", "gateway"):
        killed = stack.children()[name]
        killed.kill()
        eventually(partial(_successor, stack, name, killed))
    # A lease of the killed worker ends after 15 s; a call that found no cost centre is repeated.
    sent = eventually(lambda: stack.run(*_retry("restarted")).succeeded)
    assert sent.json["state"] == "delivered"
    said = (stack.data_dir.parent / "up.err").read_text()
    assert "worker-1: killed by SIGKILL" in said


@pytest.mark.long
def test_of_two_that_serve_one_may_be_gone(folder: Path) -> None:
    """Aim: with two cost centres and two gateways everything goes on at once, and stays gone what was killed."""
    pair = {"SMSBILL_COSTCENTERS": "2", "SMSBILL_GATEWAYS": "2", "SMSBILL_RESTART_SECONDS": "60"}
    stack = Stack(folder / "data", SMSBILL_WORKERS="1", **pair)
    try:
        stack.start()
        children = stack.children()
        assert {"costcenter", "costcenter-2", "gateway", "gateway-2"} <= children.keys()
        stack.ok("brand", "put", "--brand", "1", "--name", "First")
        stack.ok("buy", "--brand", "1", "--segments", "100")
        for name in ("costcenter", "gateway-2"):
            children[name].kill()
        for number in range(4):
            sent = eventually(partial(_sent, stack, f"1990009006{number}"))
            assert sent.json["state"] == "delivered"
        assert available(stack) == 96
        assert not {"costcenter", "gateway-2"} & stack.children().keys()
    finally:
        stack.end()


def _sent(stack: Stack, to: str) -> Answer | None:
    """A command's call that was under way when its service died ends with an error that says to call again."""
    arguments = ("--brand", "1", "--type", "verification", "--text", TEXT, "--to", to, "--request-id", to)
    return stack.run("send", *arguments, "--wait", "30", "--json").succeeded


def _successor(stack: Stack, name: str, before: psutil.Process) -> psutil.Process | None:
    found = stack.children().get(name)
    return None if found == before else found


def _retry(request_id: str) -> tuple[str, ...]:
    return (
        "send", "--brand", "1", "--type", "verification", "--text", TEXT, "--to", "19900090030", "--request-id",
        request_id, "--wait", "40", "--json",
    )  # fmt: skip


def test_a_second_start_on_the_same_folder_is_refused(stack: Stack) -> None:
    """Aim: the folder belongs to one stack; the second says so in one line, and the first does not notice."""
    answer = stack.run("up")
    assert answer.code == 1
    assert "is in use by process" in answer.err.strip().splitlines()[-1]
    assert send(stack, "19900090040", "--wait", "30")["state"] == "delivered"


def test_a_taken_port_names_its_setting(stack: Stack, folder: Path) -> None:
    """Aim: a port in use is told in one line that names the setting, before anything is started."""
    for name in ("COSTCENTER", "GATEWAY", "HTTP", "SIMULATOR"):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            variables = {
                **stack.variables,
                "SMSBILL_DATA_DIR": str(folder / "data"),
                f"SMSBILL_{name}_ADDRESS": address,
            }
            answer = command("up", **variables)
        assert answer.code == 1
        assert f"cannot listen on {address}" in answer.line
        assert f"SMSBILL_{name}_ADDRESS" in answer.line
        assert not (folder / "data" / "postgres").exists()


def test_a_newer_data_folder_is_refused(folder: Path) -> None:
    """Aim: a folder that a newer release has written is left alone, with one line that says what to do."""
    (folder / "data").mkdir()
    (folder / "data" / "VERSION").write_text("99\n")
    answer = command("up", SMSBILL_DATA_DIR=str(folder / "data"))
    assert answer.code == 1
    assert "has format 99" in answer.err.strip().splitlines()[-1]
    assert {entry.name for entry in (folder / "data").iterdir()} <= {"VERSION", "lock"}


def test_unreachable_servers_are_told_in_one_line(folder: Path) -> None:
    """Aim: servers of the user's that do not answer end the start with one line each."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    variables = {
        "SMSBILL_DATA_DIR": str(folder / "data"),
        "SMSBILL_DATABASE_URL": f"postgresql://127.0.0.1:{port}/none",
        "SMSBILL_REDIS_URL": f"redis://127.0.0.1:{port}",
    }
    for name in ("up", "migrate"):
        answer = command(name, **variables)
        assert answer.code == 1
        assert "PostgreSQL cannot be reached" in answer.err.strip().splitlines()[-1]


def test_no_stack_and_a_wrong_setting(folder: Path) -> None:
    """Aim: a client command without a stack, and a setting that breaks its rule, say what to do."""
    here = {"SMSBILL_DATA_DIR": str(folder / "data")}
    assert "start one with `smsbill up`" in command("balance", **here).line
    assert "SMSBILL_WORKERS" in command("up", **here, SMSBILL_WORKERS="0").line
    assert "SMSBILL_GATEWAY_ADDRESS" in command("up", **here, SMSBILL_GATEWAY_ADDRESS="here").err
    unreachable = command("balance", **here, SMSBILL_COSTCENTER_TARGET="127.0.0.1:1", SMSBILL_TOKEN="x")
    assert unreachable.line.startswith("smsbill: UNAVAILABLE: ")
    assert command("doctor", **here).code == 1


@pytest.fixture
def own_stack(folder: Path) -> Iterator[Stack]:
    """A stack that the test starts and stops itself."""
    made = Stack(folder / "data", SMSBILL_WORKERS="1")
    yield made
    made.end()


@pytest.mark.timeout(400)
def test_stop_start_and_kill_lose_nothing(own_stack: Stack) -> None:
    """Aim: SIGTERM ends all with status 0; a start on the folder goes on where it stopped, with the same token; killed
    without warning, the services end by themselves, and the next start takes over what is left.
    """
    own_stack.start()
    token = own_stack.started["token"]
    own_stack.ok("brand", "put", "--brand", "1", "--name", "First")
    own_stack.ok("buy", "--brand", "1", "--segments", "100")
    first = send(own_stack, "19900090050")
    children = list(own_stack.children().values())
    assert own_stack.stop() == 0
    assert not [child for child in children if child.is_running()]
    assert not (own_stack.data_dir / "stack.json").exists()

    own_stack.start()
    assert own_stack.started["token"] == token
    assert _state(own_stack, first["message_id"]) in ("sent", "delivered")
    assert own_stack.ok("balance", "--brand", "1")["total"] == 99
    second = send(own_stack, "19900090051", "--wait", "30")
    assert second["state"] == "delivered"
    children = list(own_stack.children().values())
    assert len(children) == 4
    own_stack.stop(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=STOP_SECONDS)
    assert not alive

    own_stack.start()
    assert own_stack.ok("balance", "--brand", "1")["total"] == 98
    assert send(own_stack, "19900090052", "--wait", "40")["state"] == "delivered"
    assert own_stack.ok("reconcile") == {"differences": []}
    assert own_stack.stop(signal.SIGINT) == 0


def _state(stack: Stack, message_id: str) -> str | None:
    def settled() -> str | None:
        found = [each["state"] for each in stack.ok("messages", "--brand", "1") if each["message_id"] == message_id]
        return str(found[0]) if found[0] in ("sent", "delivered") else None

    return eventually(settled)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_signal_at_any_moment_of_the_start(own_stack: Stack) -> None:
    """Aim: SIGTERM while servers, schemas or processes are being started ends cleanly, leaves nothing running, and the
    folder stays usable.
    """
    for seconds in (0.7, 1.5, 2.5, 4.0):
        process = own_stack.launch()
        time.sleep(seconds)
        code = own_stack.stop()
        own_stack.end()
        # Before its signal handlers are there it dies of the signal, with nothing started yet.
        assert code == 0 or (code == -signal.SIGTERM and stack_file.read(own_stack.data_dir) is None), (seconds, code)
        assert not psutil.pid_exists(process.pid)
        left = [
            each.info["cmdline"]
            for each in psutil.process_iter(["cmdline"])
            if str(own_stack.data_dir) in " ".join(each.info["cmdline"] or [])
        ]
        assert not left
    own_stack.start()
    with urllib.request.urlopen(f"{own_stack.started['gateway_url']}/readyz", timeout=10) as answer:
        assert answer.status == 200
    assert own_stack.stop() == 0
