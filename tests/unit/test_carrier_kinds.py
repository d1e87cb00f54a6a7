"""Aim: the carrier is the one that the settings name, from whatever package, and a wrong name is told in one line.

Method: real entry points of packages that exist in a folder of the test alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from infra.errors import StartError
from smsbill.client import ClientSettings
from smsbill.doctor import Examination
from smsbill.findings import GOOD, NOTE, PROBLEM
from smsbill.settings import StackSettings
from smsgateway.carriers.base import MalformedReceipt
from smsgateway.carriers.chuanglan import ChuanglanCarrier, ChuanglanKind
from smsgateway.carriers.registry import PushedRequest, carrier_kind
from smsgateway.settings import Settings

PIGEON = """
from smsgateway.carriers.registry import CarrierKind

class PigeonKind(CarrierKind):
    def describe(self, settings):
        return "pigeons"

    def open(self, settings, *, connections_max):
        return None

class NotDerived:
    pass
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, with the module `pigeon_carrier` in it."""
    (tmp_path / "pigeon_carrier.py").write_text(PIGEON)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pigeon_carrier", raising=False)
    return tmp_path


def install(folder: Path, package: str, **entries: str) -> None:
    """Put a package with these carriers there."""
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[smsbill.carriers]", *lines, ""]))


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


def test_ours_is_chuanglan_by_default() -> None:
    """Without a word about it the carrier is Chuanglan, under the account name that it always had."""
    chosen = settings(chuanglan_account="N1", chuanglan_password="p")
    kind = carrier_kind(chosen.carrier)
    assert isinstance(kind, ChuanglanKind)
    assert isinstance(kind.open(chosen, connections_max=3), ChuanglanCarrier)
    assert kind.callback(chosen) is not None
    assert (chosen.carrier, chosen.carrier_account) == ("chuanglan", "chuanglan")


def test_without_an_account_there_is_no_carrier() -> None:
    """No account is no error: nothing is opened, no callback taken."""
    chosen, kind = settings(), carrier_kind("chuanglan")
    assert kind.describe(chosen) is None
    assert kind.open(chosen, connections_max=3) is None
    assert kind.callback(chosen) is None


def test_a_package_brings_its_own(installed: Path) -> None:
    """What another package declares is found by its name alone, and names the account unless told otherwise."""
    install(installed, "pigeons", pigeon="pigeon_carrier:PigeonKind")
    chosen = settings(carrier="pigeon")
    kind = carrier_kind(chosen.carrier)
    assert (type(kind).__name__, kind.describe(chosen), kind.callback(chosen)) == ("PigeonKind", "pigeons", None)
    assert chosen.carrier_account == "pigeon"
    assert settings(carrier="pigeon", carrier_account="loft-2").carrier_account == "loft-2"


def test_the_same_package_twice_on_the_path_is_one(installed: Path) -> None:
    """Two claims of the same class are no conflict, as with an installation beside a checkout."""
    install(installed, "pigeons", pigeon="pigeon_carrier:PigeonKind")
    install(installed, "more-pigeons", pigeon="pigeon_carrier:PigeonKind")
    assert carrier_kind("pigeon").describe(settings()) == "pigeons"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dove", "no carrier 'dove' is installed; known are: "),
        ("chuanglan", "both claim the name 'chuanglan'"),
        ("absent", "absent_carrier:Kind does not load: ModuleNotFoundError"),
        ("nameless", "pigeon_carrier:Nothing does not load: AttributeError"),
        ("other", "pigeon_carrier:NotDerived is no class derived from CarrierKind"),
    ],
)
def test_a_wrong_name_is_told(installed: Path, name: str, told: str) -> None:
    """One line that names the setting and what is wrong; another package cannot take over a name silently."""
    install(
        installed,
        "pigeons",
        pigeon="pigeon_carrier:PigeonKind",
        chuanglan="pigeon_carrier:PigeonKind",
        absent="absent_carrier:Kind",
        nameless="pigeon_carrier:Nothing",
        other="pigeon_carrier:NotDerived",
    )
    with pytest.raises(StartError) as refused:
        carrier_kind(name)
    assert str(refused.value).startswith("setting SMSBILL_CARRIER: ")
    assert told in str(refused.value)
    if name == "dove":
        known = str(refused.value).partition("known are: ")[2].split(", ")
        assert {"absent", "chuanglan", "http", "pigeon"} <= set(known)
        assert known == sorted(known)


@pytest.mark.parametrize(
    ("name", "account", "told"),
    [
        ("chuanglan", "", (NOTE, "no account")),
        ("chuanglan", "N1", (GOOD, "Chuanglan account at https://smssh1.253.com")),
        ("dove", "", (PROBLEM, "setting SMSBILL_CARRIER: no carrier 'dove' is installed")),
    ],
)
def test_the_doctor_tells_which(tmp_path: Path, name: str, account: str, told: tuple[str, str]) -> None:
    """`smsbill doctor` names the carrier that is chosen, or why it is none."""
    found = StackSettings(_env_file=None, data_dir=tmp_path / "none", carrier=name, chuanglan_account=account)
    finding = Examination(found, ClientSettings(_env_file=None))._carrier_finding()
    assert (finding.status, finding.detail[: len(told[1])]) == told


def test_a_request_is_read_as_it_came() -> None:
    """Fields of query and form, the form's win; headers by their names; too many fields are malformed."""
    request = PushedRequest("POST", b"a=1&b=%E7%9F%AD", [(b"x-key", b"k"), (b"x-key", b"l")], b"a=2&c=&c=%ff")
    assert request.fields(10) == {"a": "2", "b": "短", "c": "\ufffd"}
    assert (request.header("x-key"), request.header("x-none")) == ("k", "")
    with pytest.raises(MalformedReceipt):
        request.fields(2)
