"""`secrets.json` in the data folder: what the stack's processes show each other.

Made once, readable for the owner only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.authorization import new_secret
from infra.data_folder import write_durably
from infra.errors import StartError

NAME = "secrets.json"


@dataclass(slots=True)
class Secrets:
    """The secrets of one data folder. `user_token` is empty until the cost centre has made it."""

    bootstrap_token: str
    service_token: str
    carrier_password: str
    push_password: str
    user_token: str = ""

    def write(self, data_dir: Path) -> None:
        """Replace the file whole."""
        write_durably(data_dir / NAME, json.dumps(asdict(self), indent=2) + "\n")


def load(data_dir: Path) -> Secrets:
    """The secrets of a data folder, made at the first time. Raises `StartError` when the file is broken."""
    path = data_dir / NAME
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return Secrets(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        secrets = Secrets(new_secret(), new_secret(), new_secret(), new_secret())
        secrets.write(data_dir)
        return secrets
    except (OSError, ValueError, TypeError) as error:
        raise StartError(f"cannot read {path} ({error}); restore it, or remove it to have new secrets made") from None


def copy(source: Path, target: Path, *, keep: bool = False) -> bool:
    """Copy the file from one folder to another, readable for the owner only; False when there is none.

    Parameters: `keep` to leave a file alone that is there already; then False, too. Raises `OSError`.
    """
    source, target = source.expanduser(), target.expanduser()
    if not (source / NAME).exists() or (keep and (target / NAME).exists()):
        return False
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(target / NAME, (source / NAME).read_text("utf-8"))
    return True
