"""Aim: what webhooks send and where: signatures by the specification's own example, masked numbers, addresses."""

from __future__ import annotations

import ast
import re
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest

from smsgateway.schema import REPLY_EVENT, MessageState
from smsgateway.webhooks import (
    BadWebhook,
    Event,
    body_of,
    check_secret,
    check_url,
    headers_of,
    is_public_address,
    new_secret,
    request_id_of,
)

ROOT = Path(__file__).resolve().parents[2]
AT = datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC)


def event(kind: int = MessageState.DELIVERED, **changes: object) -> Event:
    fields: dict[str, object] = {
        "event_id": "m1-7-main", "kind": int(kind), "subject_id": "m1", "result_code": "DELIVRD", "happened_at": AT,
        "mobile": "+8613800138000", "details": {"segments": 2}, "moments": {"sent_at": AT, "submitted_at": None},
    }  # fmt: skip
    return Event(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_signature_is_that_of_the_reference_libraries() -> None:
    """The vector that the specification's own libraries are tested with."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    at = datetime.fromtimestamp(1_614_265_330, UTC)
    headers = headers_of("msg_p5jXN8AQM9LWM0D4loKWxJek", at, b'{"test": 2432232314}', [secret])
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert headers["webhook-timestamp"] == "1614265330"
    both = headers_of("msg_1", at, b"{}", [secret, new_secret()])["webhook-signature"].split(" ")
    assert [each[:3] for each in both] == ["v1,", "v1,"]


def test_the_id_of_a_request_is_that_of_its_events() -> None:
    """The same when they are sent again, another with one more; without the dot that divides what is signed."""
    first, second = event(), event(event_id="m2-7-main")
    assert request_id_of([first, second]) == request_id_of([first, second])
    assert request_id_of([first]) != request_id_of([first, second])
    assert re.fullmatch("evt_[0-9a-f]{40}", request_id_of([first]))


def test_numbers_are_masked_unless_they_are_asked_for() -> None:
    """Also those of replies; moments are in UTC, to the millisecond."""
    reply = event(REPLY_EVENT, details={"text": "R"}, moments={"received_at": AT}, result_code=None)
    masked = orjson.loads(body_of(7, [event(), reply], AT, full_number=False))
    assert [each["mobile"] for each in masked["data"]["events"]] == ["+86138****8000"] * 2
    whole = orjson.loads(body_of(7, [event(), reply], AT, full_number=True))
    assert [each["mobile"] for each in whole["data"]["events"]] == ["+8613800138000"] * 2
    assert whole["timestamp"] == "2026-01-02T03:04:05.678Z"
    assert whole["data"]["events"][0]["submitted_at"] is None
    assert whole["data"]["events"][1]["type"] == "reply.received"


@pytest.mark.parametrize(
    "secret", ["", "x", "whsec_", "whsec_QQ==", "whsec_" + "A" * 88, "whsec_" + "é" * 40, "whsec_ !"]
)
def test_what_is_no_secret_is_refused(secret: str) -> None:
    """Wrong prefix, no base64, too short, too long."""
    with pytest.raises(BadWebhook, match="base64 of 24 to 64 bytes"):
        check_secret(secret)
    check_secret(new_secret())


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "https://", "https:///x", "https://u:p@example.com/", "https://example.com/#x", "ftp://a/",
        "https://localhost/", "https://a.localhost/", "https://metadata.google.internal/", "https://127.0.0.1/",
        "https://127.1/", "https://0x7f000001/", "https://2130706433/", "https://[::1]/", "https://[::ffff:127.0.0.1]/",
        "https://10.1.2.3/", "https://169.254.169.254/", "https://[fe80::1]/", "https://[64:ff9b::a00:1]/",
        "https://[2002:7f00:1::]/", "https://0.0.0.0/", "https://224.0.0.1/", "https://100.64.0.1/",
        "https://exa mple/",
        "https://example.com:99999/", "https://example.com:0/", "https://exämple.com/", "https://" + "a" * 2_100,
        "https://[::1", "https://example.com/\n",
    ],
)  # fmt: skip
def test_addresses_that_must_not_be_called_are_refused(url: str) -> None:
    """Whatever they are disguised as; the rule is told, the address is not."""
    with pytest.raises(BadWebhook) as caught:
        check_url(url, http_allowed=False, private_allowed=False)
    assert url not in str(caught.value)


def test_public_addresses_may_be_called_and_settings_open_the_rest() -> None:
    """As far as they say."""
    check_url("https://example.com:8443/a?b=c", http_allowed=False, private_allowed=False)
    check_url("https://8.8.8.8/", http_allowed=False, private_allowed=False)
    check_url("http://127.0.0.1:8080/", http_allowed=True, private_allowed=True)
    assert is_public_address("2606:4700:4700::1111")
    assert not is_public_address("rubbish")


def test_no_statement_ends_messages_without_telling() -> None:
    """Every SQL constant, and function that makes one, that sets the state of messages is handed to `telling`, or tells
    by itself.
    """
    found: set[str] = set()
    untold: set[str] = set()
    for path in (ROOT / "smsgateway" / "store").glob("*.py"):
        source = path.read_text()
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name, text = node.targets[0].id, ast.get_source_segment(source, node.value) or ""
            elif isinstance(node, ast.FunctionDef):
                name, text = node.name, ast.get_source_segment(source, node) or ""
            else:
                continue
            if not re.search(r"update smsgateway\.message\b[^;]*?\bset\s+state\b|\bset state = \{MessageState", text):
                continue
            found.add(name)
            told = "telling(" in text or re.search(rf"telling\([^)]*{name}\b", source) or name == "_MESSAGE_SENT"
            if not told:
                untold.add(f"{path.name}: {name}")
    assert found >= {"_SETTLE", "_SET_FAILED", "_FAIL_MESSAGES", "_FAIL_SOME", "_EXPIRE", "_cancelling_messages"}
    assert untold == set()
