"""The settings of SMPP: what they name is what is opened, and what breaks a rule is told before anything is sent."""

from __future__ import annotations

from datetime import timedelta

import pytest

from infra.errors import StartError
from smsgateway.carriers.base import ReceivingCarrier
from smsgateway.carriers.registry import carrier_kind
from smsgateway.carriers.smpp.pdus import Address
from smsgateway.carriers.smpp.settings import SmppKind, SmppSettings
from smsgateway.carriers.smpp.texts import Concatenation
from smsgateway.settings import Settings


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in {"HOST": "smsc.example", "SYSTEM_ID": "us", "PASSWORD": "secret"}.items():
        monkeypatch.setenv(f"SMSBILL_SMPP_{name}", value)
    return Settings(_env_file=None, carrier="smpp")


async def test_smpp_is_a_kind_of_carrier(chosen: Settings) -> None:
    """Aim: it is found by its name, opened without a connection, told without its password, and cuts batches."""
    kind = carrier_kind("smpp")
    assert isinstance(kind, SmppKind)
    assert kind.describe(chosen) == "SMPP account us at smsc.example:2775"
    assert kind.callback(chosen) is None
    assert kind.chunk_messages(chosen) == 1
    carrier = kind.open(chosen, connections_max=100)
    assert isinstance(carrier, ReceivingCarrier)
    assert (carrier.account_id, carrier.limits.max_batch, carrier.limits.max_pull) == ("smpp", 1, 0)
    await carrier.aclose()


def test_without_a_host_there_is_no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Aim: no account is no error."""
    monkeypatch.delenv("SMSBILL_SMPP_HOST", raising=False)
    settings = Settings(_env_file=None, carrier="smpp")
    assert SmppKind().describe(settings) is None
    assert SmppKind().open(settings, connections_max=1) is None


def test_settings_become_the_account(chosen: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aim: the settings that change a message or a receipt reach the carrier."""
    for name, value in {
        "SOURCE_ADDRESS": "ACME", "SOURCE_TON": "5", "CONCATENATION": "sar", "RECEIPT_ID": "hex-to-dec",
        "RECEIPT_UTC_MINUTES": "-60", "ALPHABET": "ucs2", "WINDOW": "3",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"SMSBILL_SMPP_{name}", value)
    config = SmppSettings.load().config("smpp", 536)
    assert config is not None
    assert config.source == Address(5, 0, "ACME")
    assert (config.concatenation, config.alphabet, config.receipt_id) == (Concatenation.SAR, "ucs2", "hex-to-dec")
    assert (config.receipt_offset, config.window) == (timedelta(hours=-1), 3)
    assert config.password not in repr(config)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PASSWORD", "longer than eight", "SMSBILL_SMPP_PASSWORD"),
        ("SYSTEM_ID", "ü", "SMSBILL_SMPP_*: system_id must be ASCII"),
        ("RECEIPT_ID", "octal", "SMSBILL_SMPP_RECEIPT_ID"),
        ("CALL_SECONDS", "14", "SMSBILL_SMPP_*: call_s must be at least"),
        ("TLS_CA_FILE", "/nowhere/ca.pem", "SMSBILL_SMPP_TLS_CA_FILE"),
    ],
)
def test_what_breaks_a_rule_is_told(
    chosen: Settings, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    """Aim: one line with the setting's name and never a secret."""
    monkeypatch.setenv(f"SMSBILL_SMPP_{name}", value)
    monkeypatch.setenv("SMSBILL_SMPP_TLS", "yes")
    with pytest.raises(StartError) as refused:
        SmppKind().open(chosen, connections_max=1)
    assert told in str(refused.value)
    assert value == "14" or name != "PASSWORD" or value not in str(refused.value)
