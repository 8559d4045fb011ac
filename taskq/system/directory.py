"""Where a queue lives, and how a fleet is set up.

A queue's directory holds everything it has:

    taskq.sock       the broker's socket (elsewhere if the path is too long: see `socket_path`)
    lock             held by the broker while it lives (flock), or by whoever reads what a stopped fleet has left
    consumers.lock   held by each consumer while it lives (POSIX lock): a new broker waits until it is free
    queue.id         which queue this is, and that its journal must exist
    journal.db       the journal (SQLite, with -wal and -shm); only the holder of the lock ever opens it
    running.map      what each consumer is running (see `taskq.protocol.link.flight_recorder.FlightRecorder`)
    spool/           jobs enqueued while no broker ran
    payloads/        large arguments and results, each in a file (see `taskq.protocol.payloads.files`)
    log/             the structured log
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import unquote, urlsplit

from taskq.model.errors import ConfigError, DirectoryError
from taskq.model.limits import MAX_SOCKET_PATH_BYTES, QUEUE_NAME

#: Filesystems on which SQLite's locks or syncs were seen to fail without an error (NFS, SMB, virtual machines' shares).
UNSAFE_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "afs", "ceph", "glusterfs"})


_SHORT_PATHS = Path("/tmp")


def queue_directory(name: str, url: str | None = None) -> Path:
    """Finds the directory of a queue that is kept in one.

    Args:
        name: the name of the TaskQ.
        url: an absolute path or `file:` URL; if None, TASKQ_URL counts, then the user's state directory.

    Raises:
        ConfigError: the name or the URL is not valid.
    """
    check_name(name)
    if url:
        return _path_of_url(url, "url=")
    url = os.environ.get("TASKQ_URL")
    if url:
        return _path_of_url(url, "TASKQ_URL=")
    return state_directory() / name


def check_name(name: str) -> None:
    """Checks the name of a TaskQ. Raises ConfigError."""
    if not isinstance(name, str) or not QUEUE_NAME.match(name) or name in (".", ".."):
        raise ConfigError(f"TaskQ name {name!r}: use 1 to 64 of the characters A-Z a-z 0-9 _ . -")


def state_directory() -> Path:
    """Where queues are kept that have no URL, each in a directory of its name."""
    state_home = Path(os.environ.get("XDG_STATE_HOME") or "")
    if not state_home.is_absolute():  # to be ignored, as its specification says
        state_home = Path.home() / ".local" / "state"
    return state_home.absolute() / "taskq"


def _path_of_url(url: str, source: str) -> Path:
    if not isinstance(url, str):
        raise ConfigError(f"{source}{url!r}: use a text, or a pathlib.Path")
    if "://" not in url and not url.startswith("file:"):
        path = Path(url).expanduser()
    else:
        parts = urlsplit(url)
        if parts.scheme != "file":  # not the whole of it, which may have a password
            raise ConfigError(
                f"{source}{parts.scheme}://...: there is no such engine; the only one is that of a directory of this "
                "machine: use its absolute path, or a file:///path URL"
            )
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(
                f"{source}{url!r}: a queue cannot be reached on another machine: use a file:///path URL without a host"
            )
        path = Path(unquote(parts.path))
    if not path.is_absolute():
        raise ConfigError(
            f"{source}{url!r} is relative, so each process would look for the queue where it stands: "
            f"use an absolute path, such as {str(path.absolute())!r}"
        )
    return path


#: A broker answers in milliseconds. One that says nothing for this long is stopped or stuck.
REPLY_TIMEOUT_S = 5.0


def reply_timeout_s(given: float | None = None) -> float:
    """How long a client waits for an answer before it takes the broker for stopped or stuck.

    Args:
        given: seconds; if None, TASKQ_REPLY_TIMEOUT counts, then REPLY_TIMEOUT_S.

    Raises:
        ConfigError: that is not a number of seconds above 0.
    """
    told: object = os.environ.get("TASKQ_REPLY_TIMEOUT") or REPLY_TIMEOUT_S if given is None else given
    try:
        seconds = float(cast(Any, told))
    except (TypeError, ValueError):
        seconds = 0.0
    name = "TASKQ_REPLY_TIMEOUT" if given is None else "reply_timeout"
    if not 0.0 < seconds <= 1e6:
        raise ConfigError(f"{name}={told!r}: use seconds, more than 0")
    return seconds


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False  # bytes that are not UTF-8 became halves of surrogate pairs
    return "\0" not in path


class Directory:
    """The paths in a queue's directory, and the checks that it is ours alone."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ConfigError: the path is not valid UTF-8, so neither the log nor a message could show it.
        """
        if not _is_text(str(path)):
            raise ConfigError(
                f"the path {str(path)!r} is not valid UTF-8: choose another directory with TASKQ_URL or url="
            )
        self.path = path
        self.lock = path / "lock"
        self.consumers_lock = path / "consumers.lock"
        self.marker = path / "queue.id"
        self.journal = path / "journal.db"
        self.running = path / "running.map"
        self.spool = path / "spool"
        self.payloads = path / "payloads"
        self.log = path / "log"

    def create(self) -> Self:
        """Makes the directory, for this user alone, and checks it if it exists.

        Raises:
            DirectoryError: it cannot be made or written, or others may write to it.
        """
        try:
            for path in (*reversed(self.path.parents), self.path):
                if not path.exists():
                    path.mkdir(mode=0o700, exist_ok=True)  # `parents=True` would leave those above to the umask
            self.check()
            for path in (self.spool, self.payloads, self.log):
                path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise DirectoryError(
                f"cannot make the directory {error.filename}: {error.strerror}; "
                f"choose another with TASKQ_URL or url=, or make it writable for {_user()}"
            ) from error
        self.check_content()
        return self

    def check_content(self) -> None:
        """Refuses what other users may have put here while the directory was open to them. Raises DirectoryError."""
        for folder in filter(Path.is_dir, (self.path, self.log)):
            for entry in os.scandir(folder):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # a fleet is at work here
                if status.st_uid != os.geteuid() or stat.S_ISLNK(status.st_mode):
                    raise DirectoryError(f"{entry.path} is a link, or belongs to another user: remove it")

    def check(self) -> None:
        """Raises DirectoryError unless the directory belongs to us, is private, and can be written."""
        try:
            link, status = os.lstat(self.path), os.stat(self.path)
        except OSError as error:
            raise DirectoryError(f"cannot use the directory {self.path}: {error.strerror}") from error
        if stat.S_ISLNK(link.st_mode) and link.st_uid not in (os.geteuid(), 0):
            raise DirectoryError(f"{self.path} is a link of user id {link.st_uid}: choose another directory")
        if not stat.S_ISDIR(status.st_mode):
            raise DirectoryError(f"{self.path} is not a directory")
        if status.st_uid != os.geteuid():
            told = f"{self.path} belongs to {user_of(status.st_uid)}; run as that user, or choose another"
            raise DirectoryError(told)
        if status.st_mode & 0o077:
            raise DirectoryError(f"{self.path} is open to other users; close it with: chmod 700 {self.path}")
        for path in (self.path, self.spool, self.payloads, self.journal):
            needed = os.W_OK if path == self.journal else os.W_OK | os.X_OK
            if path.exists() and not os.access(path, needed):
                raise DirectoryError(f"{path} cannot be written by {_user()}; make it writable: chmod u+rwX {path}")

    def socket_path(self) -> Path:
        """The path of the broker's socket: in the directory, or, where that path is longer than the kernel takes
        (see MAX_SOCKET_PATH_BYTES), at a short path that every client finds again from the directory's real path.
        The short path does not follow TMPDIR, which may differ between a client and the fleet."""
        real = Path(os.path.realpath(self.path))  # whatever links a client came through
        direct = real / "taskq.sock"
        if len(os.fsencode(direct)) <= MAX_SOCKET_PATH_BYTES:
            return direct
        from hashlib import sha256  # takes 4 ms to import

        digest = sha256(os.fsencode(real)).hexdigest()[:32]
        user = self.other_owner() if os.geteuid() == 0 else None  # root may look at the fleets of others
        return _SHORT_PATHS / f"taskq-{os.geteuid() if user is None else user}" / f"{digest}.sock"

    def other_owner(self) -> int | None:
        """The id of another user who owns the directory, or keeps us from seeing it; None if there is none."""
        for path in (self.path, *self.path.parents):
            try:
                owner = os.stat(path).st_uid
            except PermissionError:
                continue  # we may not enter one of the folders above
            except OSError:
                return None
            return None if owner == os.geteuid() else owner
        return None

    def check_owner(self) -> None:
        """Raises DirectoryError if the directory belongs to another user, unless we are root: root may look at it."""
        owner = self.other_owner()
        if owner is not None and os.geteuid() != 0:
            raise DirectoryError(f"{self.path} belongs to {user_of(owner)}: run as that user, or look at it as root")

    def filesystem(self) -> str:
        """The type of the filesystem that holds the directory, or "" where the system does not say."""
        try:
            table = Path("/proc/self/mountinfo").read_text()
        except OSError:
            return ""
        device = os.stat(self.path).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        for line in table.splitlines():
            fields, _, rest = line.partition(" - ")
            if fields.split()[2] == wanted:
                return rest.split()[0]
        return ""


def private_directory(path: Path) -> None:
    """Makes a directory outside the queue's own (for a socket with a short path) and refuses one that others could
    have prepared.

    Raises:
        DirectoryError: it is a link, belongs to somebody else or is open to others.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass  # what is there, of whatever kind, is checked now
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise DirectoryError(f"{path} must be a directory of {_user()} alone (mode 700); remove it")


def user_of(uid: int) -> str:
    """A user as messages name it: ``user id 1000 (ann)``."""
    try:
        return f"user id {uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return f"user id {uid}"


def _user() -> str:
    return f"user id {os.geteuid()}"
