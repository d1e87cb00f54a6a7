"""Aim: what commands print: JSON for programs, one line for what went wrong, files that only their owner reads."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from infra.data_folder import EmbeddedError
from infra.errors import Refusal, StartError, not_found
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import cost_center_pb2 as pb
from protos.costcenter.v1.types_pb2 import SMS_TYPE_MARKETING
from protos.smsgateway.v1 import sms_gateway_pb2 as gateway_pb
from smsbill import secret_file, stack_file
from smsbill.client import ClientSettings, find_access
from smsbill.failure import ADVICE, CommandError, described
from smsbill.stack_file import Process, StackFile
from smsbill.tables import plain, word


def test_a_message_as_json_values() -> None:
    """Aim: numbers are numbers, enums are words, moments are ISO 8601, alternatives appear only when set."""
    package = pb.Package(
        package_id=7,
        source=pb.PACKAGE_SOURCE_ORDER,
        sms_types=[SMS_TYPE_MARKETING],
        created_at=Timestamp(seconds=1_700_000_000),
    )
    told = plain(package)
    assert (told["package_id"], told["source"], told["sms_types"]) == (7, "order", ["marketing"])
    assert (told["created_at"], told["expires_at"]) == ("2023-11-14T22:13:20Z", None)
    offer = plain(admin_pb.PackageOffer(offer_id="a", validity_days=3))
    assert offer["validity_days"] == 3
    assert "validity_months" not in offer


def test_every_refusal_has_a_next_step() -> None:
    """Aim: whoever meets a reason of the closed list is told what to do about it."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "rpcs.md").read_text("utf-8")
    chapter = page.partition("## Refusals")[2].partition("\n## ")[0]
    reasons = set(re.findall(r"^\| `[A-Z_]+` \| `([A-Z_]+)` \|", chapter, re.MULTILINE))
    assert len(reasons) > 40
    assert sorted(reasons - set(ADVICE)) == []


def test_words_of_enums() -> None:
    """Aim: the words are those that options take."""
    state = gateway_pb.MessageState.DESCRIPTOR
    assert word(state, gateway_pb.MESSAGE_STATE_UNDELIVERED) == "undelivered"
    assert word(admin_pb.Role.DESCRIPTOR, admin_pb.ROLE_ADMIN) == "admin"
    assert word(admin_pb.BrandStatus.DESCRIPTOR, 2) == "suspended"
    assert word(state, 99) == "99"


def test_lines_of_errors() -> None:
    """Aim: each expected error is one line that says what to do; an unexpected one is left to be reported."""
    refusal = not_found("BRAND_NOT_FOUND", "there is no brand 7")
    assert described(refusal) == (
        "BRAND_NOT_FOUND: there is no brand 7 – list the brands with `smsbill brand list`, "
        "or create one with `smsbill brand put`"
    )
    # A reason without advice of its own has that of its status.
    assert "smsbill doctor" in str(described(Refusal(grpc.StatusCode.UNAVAILABLE, "ODD", "gone")))
    for error in (StartError("a; b"), EmbeddedError("a; b"), CommandError("a; b")):
        assert described(error) == "a; b"
        assert described(ExceptionGroup("several", [ExceptionGroup("inner", [error])])) == "a; b"
    assert described(ValueError("x")) is None


def test_secrets_are_made_once_and_kept_private(tmp_path: Path) -> None:
    """Aim: a second start finds the same secrets, and nobody else can read them, also after a careless copy."""
    made = secret_file.load(tmp_path)
    path = tmp_path / secret_file.NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    made.user_token = "sb_user"
    made.write(tmp_path)
    path.chmod(0o644)
    assert secret_file.load(tmp_path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len({made.bootstrap_token, made.service_token, made.carrier_password, made.push_password}) == 4
    path.write_text("{")
    with pytest.raises(StartError, match="restore it, or remove it"):
        secret_file.load(tmp_path)


def test_a_stack_is_found_only_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aim: the file of a stack that was killed, or is starting, leads no command astray."""
    monkeypatch.setenv("SMSBILL_DATA_DIR", str(tmp_path))
    with pytest.raises(CommandError, match="no stack runs"):
        find_access(ClientSettings.load())
    me = Process.of("up", os.getpid())
    assert me is not None
    file = StackFile(me, costcenter_target="c:1", gateway_target="g:1", token="t")
    file.write(tmp_path)
    assert stack_file.running(tmp_path) is None
    file.ready = True
    file.write(tmp_path)
    assert stack_file.running(tmp_path) == file
    assert find_access(ClientSettings.load()).token == "t"
    # Another process with the same number is not the one that wrote the file.
    file.supervisor = Process("up", me.pid, me.created - 100)
    file.write(tmp_path)
    assert stack_file.running(tmp_path) is None
    assert stack_file.read(tmp_path) == file
    (tmp_path / stack_file.NAME).write_text('{"supervisor": 1}')
    assert stack_file.read(tmp_path) is None


def test_a_stacks_token_is_not_shown_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aim: with another cost centre configured, the token of the local stack stays here."""
    monkeypatch.setenv("SMSBILL_DATA_DIR", str(tmp_path))
    me = Process.of("up", os.getpid())
    assert me is not None
    StackFile(me, ready=True, costcenter_target="c:1", gateway_target="g:1", token="t").write(tmp_path)
    monkeypatch.setenv("SMSBILL_COSTCENTER_TARGET", "elsewhere:1")
    with pytest.raises(CommandError, match="SMSBILL_TOKEN"):
        find_access(ClientSettings.load())
    monkeypatch.setenv("SMSBILL_TOKEN", "mine")
    access = find_access(ClientSettings.load())
    assert (access.costcenter_target, access.token) == ("elsewhere:1", "mine")


def test_the_command_starts_without_heavy_modules() -> None:
    """Aim: `smsbill --help` and completion stay fast: nothing of the services is imported for them."""
    heavy = ("grpc", "pydantic_settings", "sqlalchemy", "aiohttp", "rich", "psycopg", "google.protobuf", "asyncio")
    program = f"import sys, smsbill.command; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("send", "--brand", "1", "--type", "marketing", "--text", "x"), "give --to or --file"),
        (("buy", "--brand", "1"), "give --offer or --segments"),
        (("buy", "--brand", "0", "--offer", "a"), "--brand"),
        (("token", "create", "--role", "sender", "--brands", "1,x"), "is not a list of numbers"),
        (("token", "create", "--role", "king", "--brands", "1"), "--role"),
        (("gateway", "--set", "service_token=abc"), "SMSBILL_SERVICE_TOKEN"),
        (("gateway", "--set", "nothing"), "is not NAME=VALUE"),
    ],
)
def test_wrong_options_are_usage_errors(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """Aim: what is wrong with a command line is said with status 2, before anything is called; no secret is taken."""
    done = subprocess.run(
        [sys.executable, "-m", "smsbill", *arguments],
        cwd=tmp_path,
        env={**os.environ, "SMSBILL_DATA_DIR": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
