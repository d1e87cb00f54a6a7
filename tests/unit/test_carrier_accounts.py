"""Aim: an account's settings are those of its kind, from the table and not the environment, and a reference leads only
where it may. Method: settings given, files in a folder, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.errors import SettingError, StartError
from smsgateway.carriers.accounts import TableAccount
from smsgateway.carriers.smpp.settings import SmppSettings
from smsgateway.settings import Settings

GIVEN = {"url": "http://127.0.0.1:9", "account": "N1", "password": "hush"}


def settings(folder: Path, **changes: Any) -> Settings:
    return Settings(_env_file=None, carrier_secrets_dir=folder, **changes)


def test_what_is_given_counts_and_the_environment_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment's account nor its other settings of the kind shine through; shared settings do."""
    monkeypatch.setenv("SMSBILL_CHUANGLAN_RECEIVER", "of the environment")
    monkeypatch.setenv("SMSBILL_SMPP_HOST", "of.the.environment")
    ours = settings(tmp_path, chuanglan_account="other", text_characters_max=70)
    config = ours.of_account("chuanglan", "second", GIVEN).chuanglan()
    assert config is not None
    assert (config.account_id, config.account, config.receiver) == ("second", "N1", "")
    assert config.text_characters_max == 70
    assert SmppSettings.load({"port": "2776", "tls": "true"}).model_dump(include={"host", "port", "tls"}) == {
        "host": "",
        "port": 2776,
        "tls": True,
    }


def test_a_setting_that_breaks_its_rule_is_named_without_its_value(tmp_path: Path) -> None:
    """As one that is not known is, with those that are."""
    with pytest.raises(SettingError, match="setting path: ") as caught:
        TableAccount(settings(tmp_path), "chuanglan", "a", {**GIVEN, "path": "no-slash"})
    assert "no-slash" not in str(caught.value)
    with pytest.raises(SettingError, match=r"setting colour: is not known; known are: account, batch_max"):
        TableAccount(settings(tmp_path), "chuanglan", "a", {"colour": "red"})
    with pytest.raises(SettingError, match="setting window: "):
        TableAccount(settings(tmp_path), "smpp", "a", {"host": "h", "window": "0"})
    with pytest.raises(StartError, match="set up no account"):
        TableAccount(settings(tmp_path), "smpp", "a", {})


def test_a_reference_to_a_file_is_its_first_line(tmp_path: Path) -> None:
    """Below the folder for secrets; a link or dots that lead out of it are refused, as are other files."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "password").write_text("hush\nmore\n")
    (tmp_path / "outside").write_text("not for you\n")
    (tmp_path / "secrets" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "secrets" / "empty").write_text("\n")
    ours = settings(tmp_path / "secrets")
    account = TableAccount(ours, "chuanglan", "a", {**GIVEN, "password": f"file:{tmp_path}/secrets/password"})
    assert account.resolved["password"] == "hush"
    for path in ("outside", "secrets/link", "secrets/../outside", "secrets/empty", "secrets/none"):
        with pytest.raises(SettingError, match="setting password: ") as caught:
            TableAccount(ours, "chuanglan", "a", {**GIVEN, "password": f"file:{tmp_path}/{path}"})
        assert "not for you" not in str(caught.value)


def test_a_reference_to_a_variable_never_leads_to_our_own_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the services' token, databases or Redis; also inside a JSON object."""
    monkeypatch.setenv("SECOND_PASSWORD", "hush")
    monkeypatch.setenv("SMSBILL_SERVICE_TOKEN", "ours")
    ours = settings(tmp_path)
    account = TableAccount(ours, "chuanglan", "a", {**GIVEN, "password": "env:SECOND_PASSWORD"})
    assert account.resolved["password"] == "hush"
    for name in ("SMSBILL_SERVICE_TOKEN", "SMSBILL_DATABASE_URL", "SMSBILL_REDIS_URL", "NOT_SET", "not a name"):
        with pytest.raises(SettingError, match="setting password: "):
            TableAccount(ours, "chuanglan", "a", {**GIVEN, "password": f"env:{name}"})
    given = {
        "carrier_file": "examples/http-carrier.toml",
        "account": "N1",
        "secrets": '{"password": "env:SECOND_PASSWORD", "receiver": "r", "push": "p"}',
    }
    assert TableAccount(ours, "http", "a", given).resolved["secrets"]["password"] == "hush"
