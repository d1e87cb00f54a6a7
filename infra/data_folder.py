"""The folder in which the embedded servers keep their data: one format, one owner, one process at a time."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from infra.errors import StartError

# Raise it when an older program could no longer use what a newer one has written.
FORMAT = 1
# A socket's path must fit in sockaddr_un: 108 bytes on Linux, 104 on macOS, the closing zero included.
LONGEST_SOCKET_PATH = 103
LONGEST_SOCKET_NAME = "postgres/.s.PGSQL.5432"
CHOOSE = "choose another data folder (SMSBILL_DATA_DIR)"


class EmbeddedError(StartError):
    """An embedded server or its folder cannot be used; the text is one line that says what to do."""

    def __init__(self, message: str, *, log_tail: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail
        if log_tail:
            self.add_note(log_tail)


class DataFolderInUse(EmbeddedError):  # noqa: N818 (a name of the interface)
    """Another process works with this data folder."""


class DataFolderTooNew(EmbeddedError):  # noqa: N818 (a name of the interface)
    """A newer version of the program has written this data folder."""


def default_data_dir() -> Path:
    """$XDG_DATA_HOME/smsbill, or ~/.local/share/smsbill."""
    base = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification: a path that is not absolute is to be ignored.
    if os.path.isabs(base):
        return Path(base) / "smsbill"
    try:
        return Path.home() / ".local" / "share" / "smsbill"
    except RuntimeError as error:
        raise EmbeddedError(f"this user has no home folder: {CHOOSE}") from error


@contextlib.contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one line that names the folder and what to do."""
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        if error.filename is not None and os.fsdecode(error.filename) != str(folder):
            what = f"{what}: {os.fsdecode(error.filename)}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "make it writable for this user"
        else:
            advice = "make it usable"
        raise EmbeddedError(f"cannot use the data folder {folder}: {what}; {advice}, or {CHOOSE}") from error


class DataFolder:
    """The data folder; between `acquire` and `release` it is ours alone."""

    def __init__(self, path: Path) -> None:
        # Absolute, without symbolic links: a running server is recognised by its working directory.
        self.path = Path(os.path.realpath(path.expanduser()))
        self._lock: int | None = None

    @property
    def logs(self) -> Path:
        return self.path / "log"

    @property
    def sockets(self) -> Path:
        """The folder of the servers' sockets: `run` here, or what it links to where our path is too long."""
        return Path(os.path.realpath(self.path / "run"))

    def acquire(self) -> None:
        """Create the folder if needed, check whose and how new it is, lock it."""
        with folder_errors(self.path):
            self._create()
            self._take_lock()
            try:
                self._check_version()
                self.logs.mkdir(mode=0o700, exist_ok=True)
                self._make_sockets_folder()
            except BaseException:
                self.release()
                raise

    def release(self) -> None:
        """Let others use the folder; the lock file stays, for its removal would let two in at once."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def remove_short_sockets_folder(self) -> None:
        """Remove the sockets folder if it lies outside of the data folder; for when no server runs."""
        link = self.path / "run"
        if link.is_symlink():
            shutil.rmtree(self.sockets, ignore_errors=True)
            link.unlink(missing_ok=True)

    def _create(self) -> None:
        root = os.geteuid() == 0
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.path.stat()
        if found.st_uid != os.geteuid() and not root:
            raise EmbeddedError(f"{self.path} belongs to another user; run as that user, or {CHOOSE}")
        version = self.path / "VERSION"
        entries = {entry.name for entry in os.scandir(self.path)}
        if "VERSION" not in entries and entries - {"lock"}:
            raise EmbeddedError(f"{self.path} has other files in it and is not a data folder; {CHOOSE}")
        if root and "VERSION" in entries and (owner := version.stat().st_uid) != 0:
            raise EmbeddedError(
                f"the data folder {self.path} was made by the user with the id {owner}, not by root; "
                f"run as that user, or {CHOOSE}"
            )
        # Nobody else may look in; where root is the owner, PostgreSQL's account may pass through.
        allowed = 0o711 if root else 0o700
        if found.st_mode & 0o777 & ~allowed:
            self.path.chmod(found.st_mode & allowed)

    def _take_lock(self) -> None:
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            who = f"process {holder}" if holder else "another process"
            raise DataFolderInUse(
                f"the data folder {self.path} is in use by {who}; stop that process, or {CHOOSE}"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    def _check_version(self) -> None:
        version = self.path / "VERSION"
        try:
            text = version.read_text("utf-8").strip()
        except FileNotFoundError:
            write_durably(version, f"{FORMAT}\n")
            return
        except UnicodeDecodeError:
            text = ""
        if not (text.isascii() and text.isdigit()):
            raise EmbeddedError(
                f"{version} holds no format number; if this program has made the folder, "
                f"write {FORMAT} to that file, or {CHOOSE}"
            )
        if int(text) > FORMAT:
            raise DataFolderTooNew(
                f"the data folder {self.path} has format {int(text)}, "
                f"this program knows formats up to {FORMAT}; install the newer program again, or {CHOOSE}"
            )

    def _make_sockets_folder(self) -> None:
        folder = self.path / "run"
        if folder.is_symlink():
            target = self.sockets
            with contextlib.suppress(FileNotFoundError):
                found = target.lstat()
                if target.is_dir() and found.st_uid == os.geteuid() and not found.st_mode & 0o066:
                    return
            folder.unlink()
        if _fits(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            return
        if folder.is_dir():
            shutil.rmtree(folder)  # the data folder was moved to a longer path
        for base in dict.fromkeys((tempfile.gettempdir(), "/tmp")):  # noqa: S108 (a private folder is made in it)
            if _fits(Path(base) / "smsbill-12345678"):
                folder.symlink_to(tempfile.mkdtemp(prefix="smsbill-", dir=base))
                return
        raise EmbeddedError(f"neither {self.path} nor a temporary folder is short enough; {CHOOSE}")


def write_durably(path: Path, text: str) -> None:
    """Write a small file so that after a crash it is there completely or not at all."""
    new = path.with_name(path.name + ".new")
    with open(new, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make creations and renames in a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fits(sockets: Path) -> bool:
    """Whether sockets in this folder have short enough paths that mean one host to libpq (no comma)."""
    path = os.fsencode(sockets / LONGEST_SOCKET_NAME)
    return len(path) <= LONGEST_SOCKET_PATH and b"," not in path
