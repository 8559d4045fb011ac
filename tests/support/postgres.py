"""A PostgreSQL server for tests: made by `initdb` once in a session, with a database for each test.

Server   one server: it is started, stopped, killed and frozen as a test says
server   the server of this session; tests are skipped where none is installed, or fail if `TASKQ_TEST_POSTGRES=required`
"""

from __future__ import annotations

import errno
import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from processes import lives

#: Debian keeps the programs of a server out of the search path.
_DEBIAN = "/usr/lib/postgresql/*/bin"
_START_S = 30.0
#: A server that nobody means to kill need not write to the disk.
_UNSAFE = {"fsync": "off", "full_page_writes": "off"}
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "80",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_worker_processes": "2",
    "deadlock_timeout": "50ms",
}


def find_programs() -> Path | None:
    """The folder with `initdb` and `postgres`, of the newest version; None: there is no server on this machine."""
    found = [Path(folder) for folder in glob.glob(_DEBIAN)]
    if found:
        return max(found, key=lambda folder: float(folder.parent.name))
    program = shutil.which("postgres")
    return Path(program).parent if program else None


def missing() -> str | None:
    """Why tests with PostgreSQL cannot run here; None: they can."""
    if find_programs() is None:
        return "no PostgreSQL server is installed: apt-get install postgresql"
    if os.geteuid() == 0 and _servant() is None:
        return "PostgreSQL refuses to run as root, and there is no user postgres or nobody"
    return None


def _servant() -> pwd.struct_passwd | None:
    """The user that runs the server in place of root."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            pass
    return None


class Server:
    """A PostgreSQL server with a folder of its own, reached by a Unix socket in it."""

    def __init__(
        self,
        *,
        is_safe: bool = False,
        settings: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        small_disk: str | None = None,
        disk_mb: int = 96,
    ) -> None:
        """
        Args:
            is_safe: whether what is committed outlives a kill of the machine; a kill of the server it outlives anyway.
            settings: of the server, besides those that all have.
            prefix: what stands before its command, as a `hosts.Host` has it.
            small_disk: what is on a disk of its own, which can be filled: "data" (without the log), or "wal".
            disk_mb: the size of that.
        """
        programs = find_programs()
        assert programs is not None, missing()
        self._programs = programs
        self._settings = {**_SETTINGS, **({} if is_safe else _UNSAFE), **(settings or {})}
        self.port = int(self._settings.get("port", 5432))
        self.folder = Path(tempfile.mkdtemp(prefix="taskq-pg-", dir="/tmp"))  # short: the path of a socket has a limit
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._prefix = [*prefix, "setpriv", "--pdeathsig", "QUIT"]  # it stops at once when the test process is killed
        if os.geteuid() == 0:
            servant = _servant()
            assert servant is not None
            os.chown(self.folder, servant.pw_uid, servant.pw_gid)
            self._prefix += [f"--reuid={servant.pw_uid}", f"--regid={servant.pw_gid}", "--clear-groups"]
        self._disk = None if small_disk is None else self._small_disk(small_disk, disk_mb)
        arguments = ["-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        arguments += ["--wal-segsize=1", "-X", str(self.folder / "wal")] if small_disk else []
        command = [*self._prefix, self._programs / "initdb", *arguments]
        made = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr

    def _small_disk(self, name: str, megabytes: int) -> Path:
        """Makes the folder of that name a disk of its own."""
        disk = self.folder / name
        for folder in (self.folder / "data", self.folder / "wal"):
            folder.mkdir(mode=0o700)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(disk)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(self.folder)
            pytest.skip(f"this user may not mount a filesystem: {done.stderr.strip()}")
        servant = _servant()
        for folder in (self.folder / "data", self.folder / "wal"):
            if servant is not None:
                os.chown(folder, servant.pw_uid, servant.pw_gid)
        return disk

    def fill_disk(self, leave_bytes: int) -> None:
        """Fills its small disk but for so many bytes."""
        assert self._disk is not None
        with (self._disk / "filler").open("wb") as filler:
            while True:
                left, own = os.statvfs(self._disk), os.fstat(filler.fileno()).st_size
                try:
                    os.posix_fallocate(filler.fileno(), 0, own + max(1, left.f_bavail * left.f_frsize - leave_bytes))
                except OSError as error:  # the server was faster
                    assert error.errno == errno.ENOSPC
                else:
                    return

    def make_room(self) -> None:
        """Empties it again."""
        assert self._disk is not None
        (self._disk / "filler").unlink()

    # -- its life

    def start(self, *, wait: bool = True) -> Server:
        """Starts it, and waits until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._prefix,
                    self._programs / "postgres",
                    *("-D", "data", "-k", str(self.folder)),
                    *(part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")),
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        give_up_at = time.monotonic() + _START_S
        while wait and not self._answers():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < give_up_at, self.log
            time.sleep(0.01)
        return self

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stops it.

        Args:
            how: SIGTERM waits for its clients, SIGINT cuts them off, SIGQUIT does not even tidy up.
        """
        if self._process is not None:
            self._process.send_signal(how)
            assert self._process.wait(_START_S) is not None
            self._process = None

    def kill(self) -> None:
        """Kills the server and all its backends at once, as a power cut of its machine does."""
        assert self._process is not None
        self.freeze()
        server, *backends = self.processes()
        for process in (server, *backends):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(_START_S)
        while any(lives(backend) for backend in backends):  # the next server refuses to start beside one
            time.sleep(0.001)
        self._process = None

    @property
    def has_died(self) -> bool:
        """Whether it has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stops it, and starts it again."""
        self.stop(how)
        self.start()

    def freeze(self) -> None:
        """Stops all its processes in their tracks: it neither answers nor closes a connection."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # a backend whose client has left
                process.suspend()

    def thaw(self) -> None:
        """They go on."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def processes(self) -> list[psutil.Process]:
        """The server, and the backends."""
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children()]

    def remove(self) -> None:
        """Ends it for good."""
        try:
            if self._process is not None and not self.has_died:
                self.thaw()
                self.stop(signal.SIGQUIT)
        finally:
            if self._disk is not None:
                subprocess.run(["umount", "--lazy", str(self._disk)], check=True)
            shutil.rmtree(self.folder)

    @property
    def log(self) -> str:
        """The end of what the server has written."""
        return (self.folder / "log").read_text(errors="replace")[-4_000:]

    def set(self, name: str, value: str) -> None:
        """Changes a setting for the next start."""
        self._settings[name] = value

    def allow_network(self) -> None:
        """Lets anyone in who reaches it: with the setting `listen_addresses`."""
        with (self.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all trust\n")
        with self.connect() as connection:
            connection.execute("SELECT pg_reload_conf()")

    # -- its databases

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """How psycopg reaches a database."""
        return f"host={self.folder} port={self.port} user={user} dbname={database}"

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """How taskq reaches a database, for `TASKQ_URL`."""
        port = "" if self.port == 5432 else f"&port={self.port}"
        return f"postgresql://{user}@/{database}?host={self.folder}{port}"

    def create_database(self, template: str = "template1") -> str:
        """Makes a database, and returns its name."""
        self._databases += 1
        name = f"test{self._databases}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        """Removes a database, with whatever is connected to it."""
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def connect(self, database: str = "postgres", user: str = "postgres") -> psycopg.Connection[Any]:
        """A connection of the test, each of whose statements commits by itself."""
        return psycopg.connect(self.dsn(database, user), autocommit=True)

    def end_sessions(self, like: str = "%") -> int:
        """Ends the sessions of clients whose application name is like this. Returns their number."""
        with self.connect() as connection:
            return connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND application_name LIKE %s",
                (like,),
            ).rowcount


@contextmanager
def running_server(**options: Any) -> Iterator[Server]:
    """A server while the block runs."""
    need_server()
    server = Server(**options)
    try:
        yield server.start()
    finally:
        server.remove()


def need_server() -> None:
    """Skips a test where no server is installed. With TASKQ_TEST_POSTGRES=required, as in CI, it fails instead."""
    reason = missing()
    if reason is not None:
        if os.environ.get("TASKQ_TEST_POSTGRES") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
