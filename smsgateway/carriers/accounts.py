"""Carrier accounts of the table: their settings, references to secrets looked up, and what their kind makes of them.

A setting's value may say where it is instead of what it is: ``env:NAME`` (an environment variable) or ``file:/path``
(the first line of a file below `SMSBILL_CARRIER_SECRETS_DIR`). It is looked up in the process that uses it, each time
that the account is opened, so that what is stored holds no secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from infra.errors import SettingError, StartError
from smsgateway.carriers.base import Carrier
from smsgateway.carriers.registry import Callback, CarrierKind, carrier_kind

if TYPE_CHECKING:
    from smsgateway.settings import Settings

ACCOUNT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Our name of an account: it stands in records, metrics and the path of its callback."""
_ENVIRONMENT, _FILE = "env:", "file:"
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# What must not leave this machine, whoever may set up accounts: our own secrets.
_OURS: Final = re.compile(r"SMSBILL_(DATABASE_URL|COSTCENTER_DATABASE_URL|REDIS_URL|.*TOKEN)", re.IGNORECASE)
_SECRET_BYTES_MAX: Final = 4_096


class ChunkSizes(NamedTuple):
    """Messages of a chunk, which is one call: of a batch with one text for all, and of one with variables."""

    plain: int
    personalised: int


class TableAccount:
    """An account of the table as its kind understands it.

    Parameters: `settings` of this process; `kind`, `account_id` and `given` as the table has them. Raises
    `SettingError` or another `StartError` for what cannot be; nothing is connected. `resolved` are the settings with
    references looked up; they hold secrets.
    """

    def __init__(self, settings: Settings, kind: str, account_id: str, given: Mapping[str, str]) -> None:
        self._kind: CarrierKind = carrier_kind(kind)
        self.resolved: Final = {
            name: _resolved(name, value, settings.carrier_secrets_dir) for name, value in given.items()
        }
        self._settings = settings.of_account(kind, account_id, self.resolved)
        described = self._kind.describe(self._settings)
        if described is None:
            raise StartError(f"they set up no account of the kind {kind}: give what it needs (docs/carriers.md)")
        self.description: Final = described

    def open(self, *, connections_max: int) -> Carrier:
        """See `CarrierKind.open`."""
        carrier = self._kind.open(self._settings, connections_max=connections_max)
        assert carrier is not None, "what is described is there"
        return carrier

    def chunk_messages(self) -> int:
        """See `CarrierKind.chunk_messages`."""
        return self._kind.chunk_messages(self._settings)

    def personalised_messages(self) -> int:
        """See `CarrierKind.personalised_messages`."""
        return self._kind.personalised_messages(self._settings)

    def callback(self) -> Callback | None:
        """See `CarrierKind.callback`."""
        return self._kind.callback(self._settings)

    def reply_callback(self) -> Callback | None:
        """See `CarrierKind.reply_callback`."""
        return self._kind.reply_callback(self._settings)


def is_reference(value: str) -> bool:
    """Whether a value says where it is; then it is no secret itself."""
    return value.startswith((_ENVIRONMENT, _FILE))


def _resolved(name: str, value: str, folder: Path) -> Any:
    """A value with references looked up, also those inside a JSON object."""
    if value[:1] == "{":
        try:
            fields = orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
        return {key: _looked_up(f"{name}.{key}", each, folder) for key, each in fields.items()}
    return _looked_up(name, value, folder)


def _looked_up(name: str, value: Any, folder: Path) -> Any:
    if not isinstance(value, str):
        return value
    if value.startswith(_ENVIRONMENT):
        return _of_environment(name, value.removeprefix(_ENVIRONMENT))
    if value.startswith(_FILE):
        return _of_file(name, Path(value.removeprefix(_FILE)), folder)
    return value


def _of_environment(name: str, variable: str) -> str:
    if not _VARIABLE.fullmatch(variable) or _OURS.fullmatch(variable):
        raise SettingError(name, "env: must be followed by the name of a variable that holds none of our own secrets")
    found = os.environ.get(variable, "")
    if not found:
        raise SettingError(name, f"the environment variable {variable} is not set where this process runs")
    return found


def _of_file(name: str, path: Path, folder: Path) -> str:
    rule = f"file: must be followed by the path of a file below {folder} (SMSBILL_CARRIER_SECRETS_DIR)"
    # Resolved first: neither dots nor links lead out of the folder.
    whole = Path(os.path.realpath(path))
    if not path.is_absolute() or not whole.is_relative_to(os.path.realpath(folder)):
        raise SettingError(name, rule)
    try:
        with whole.open("rb") as file:
            content = file.read(_SECRET_BYTES_MAX)
        found = content.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(name, f"{rule}; this one cannot be read: {type(error).__name__}") from None
    if not found or not found[0].strip():
        raise SettingError(name, "the file that it names is empty")
    return found[0].strip()
