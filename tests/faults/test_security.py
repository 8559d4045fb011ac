"""What another user of the machine can do to a queue, what a job can do to the log and to a terminal, and what data can
make a process import. The other users are real: processes that gave up root for another user id.

Without root this file runs itself once more in a user namespace that has several users, where the system allows that.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import pickle
import pty
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from apps import jobs
from fleet import DEADLINE_S, JOBS, Fleet, environment_of, running, use, wait_until

import taskq
from taskq import ConfigError, JobFailed
from taskq.broker.consumers.handle import ConsumerProcess
from taskq.broker.events import EventLog
from taskq.cli.common import find_directory
from taskq.client.job import Job
from taskq.client.task import Enqueuer
from taskq.model.errors import DirectoryError, TaskQError
from taskq.model.exits import Exit
from taskq.model.job import JobRow, new_job_ids
from taskq.model.spec import Spec
from taskq.protocol import frames
from taskq.protocol.link.flight_recorder import clear_flight_records
from taskq.protocol.ops import Op
from taskq.protocol.submissions import Call
from taskq.system.directory import Directory
from taskq.telemetry.files import log_path, output_path
from taskq.telemetry.reader import read
from taskq.telemetry.setup import configure

#: Marks what is about the directory of a queue.
about_files = pytest.mark.not_on_postgres("who may read and write the files of a queue")

ATTACKER = 65534
OWNER = 61_234  # of fleets that do not belong to root
TASKQ = [sys.executable, "-m", "taskq"]
SECRET = "hunter2-secret"
SOURCES = Path(taskq.__file__).parent

IS_ROOT = os.geteuid() == 0 and all(
    "4294967295" in line or int(line.split()[0]) + int(line.split()[2]) > ATTACKER
    for line in Path("/proc/self/uid_map").read_text().splitlines()[-1:]
)
#: For tests that need a second user.
two_users = pytest.mark.skipif(
    not IS_ROOT, reason="only root can become another user; test_again_in_a_user_namespace tries without"
)
_NAMESPACE = ["unshare", "--map-root-user", "--map-auto"]


@about_files
@pytest.mark.skipif(IS_ROOT, reason="this process can become other users itself")
def test_again_in_a_user_namespace() -> None:
    """All of this file, where this user is root and the users of /etc/subuid are the others."""
    able = shutil.which("unshare") and subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False)
    if not able or able.returncode:
        pytest.skip("no second user: not root, and `unshare --map-auto` needs newuidmap and a line in /etc/subuid")
    done = subprocess.run([*_NAMESPACE, sys.executable, "-m", "pytest", "-q", __file__], check=False, timeout=120)
    assert done.returncode == 0


# -- other users


def as_user(uid: int, action: Callable[[], Any]) -> Any:
    """What a process of another user gets from an action, as JSON; its error as text. It is forked and not started
    anew,
    so that it needs no right to read this Python."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(uid)
        try:
            told = action()
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(told)


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    signal.alarm(20)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may enter, as pytest's own are not: what keeps others out must be the queue's."""
    path = Path(os.path.realpath(tempfile.mkdtemp(prefix="taskq-security-")))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """The mask of this process, and of what it starts meanwhile."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path: Path) -> int:
    """The permissions of a path itself."""
    return stat.S_IMODE(path.lstat().st_mode)


def worker(home: Path, *arguments: str, executable: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Runs a fleet that ends as soon as it has no work, or does not start."""
    command = [executable, "-m", "taskq", "worker", JOBS, "--consumers", "1", "--drain", *arguments]
    return subprocess.run(
        [*command, "--log-level", "warning", "--log-format", "json"],
        env={**os.environ, "TASKQ_URL": str(home)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Checks that a fleet did not start, and told why in one line."""
    assert done.returncode in (Exit.DIRECTORY, Exit.JOURNAL), done
    told = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(told) == 1, done.stderr
    assert told[0].startswith("taskq: "), done.stderr
    assert "broker.failed" not in done.stderr, "it is no bug, and no other try would help"
    for word in words:
        assert word in told[0]


@pytest.fixture
def as_owner(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Python that runs as a user who is not root. It may read all files, since our Python may lie in root's home, but
    has no other right of root's."""
    path = place / "python"
    rights = "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
    command = f"exec setpriv --reuid {OWNER} --regid {OWNER} --clear-groups {rights} {sys.executable}"
    path.write_text(f'#!/bin/sh\n{command} "$@"\n')
    path.chmod(0o755)
    return str(path)


# -- what another user can do to a running fleet


def _try_all(actions: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """What came of each action that was not denied."""
    undenied = {}
    for name, action in actions.items():
        try:
            undenied[name] = repr(action())
        except PermissionError:
            pass
        except OSError as error:
            undenied[name] = repr(error)
    return undenied


def _connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(path))


def attacks(home: Path, paths: list[Path]) -> dict[str, str]:
    """Tries everything on a queue; to be called as another user. Returns what was not denied."""
    plant = home / "planted"
    actions: dict[str, Callable[[], Any]] = {
        "list": lambda: os.listdir(home),
        "connect": lambda: _connect(home / "taskq.sock"),
        "make a file": lambda: plant.write_text("x"),
        "make a folder": plant.mkdir,
        "make a link": lambda: plant.symlink_to("/etc/passwd"),
        "plant a job": lambda: (home / "spool" / f"{'0' * 32}.jobs").write_bytes(b"x"),
        "open it": lambda: home.chmod(0o777),
        "move it": lambda: home.rename(home.with_name("moved")),
    }
    for path in paths:
        actions |= {
            f"read {path}": lambda path=path: path.read_bytes(),
            f"write {path}": lambda path=path: os.open(path, os.O_WRONLY),
            f"look at {path}": path.lstat,
            f"remove {path}": path.unlink,
            f"replace {path}": lambda path=path: os.rename(path, path.with_name("other")),
            f"link {path}": lambda path=path: os.link(path, home.with_name("link")),
            f"open {path}": lambda path=path: path.chmod(0o777),
        }
    return _try_all(actions)


FILES = {
    "taskq.sock",
    "lock",
    "consumers.lock",
    "queue.id",
    "journal.db",
    "journal.db-wal",
    "journal.high",
    "running.map",
    "spool",
    "log",
    "log/taskq.jsonl",
}


def check_modes(home: Path) -> None:
    """Everything of a queue is for its owner alone."""
    paths = [home, *home.rglob("*")]
    for path in paths:
        status = path.lstat()
        own = (0o700,) if stat.S_ISDIR(status.st_mode) else (0o600, 0o400)  # a broker closes a spool file to writers
        assert stat.S_IMODE(status.st_mode) in own, path
        assert not stat.S_ISLNK(status.st_mode)
        assert status.st_uid == home.lstat().st_uid


@about_files
@two_users
@pytest.mark.parametrize("mask", [0o022, 0o000], ids=oct)
def test_another_user_gets_nowhere(place: Path, mask: int) -> None:
    """Whatever the umask of the user who starts a fleet, no other user can read, list, connect, add or remove
    anything."""
    home = place / "queue"
    use(jobs.q, home)
    with umask(mask):
        jobs.add.enqueue(1)  # waits in the spool
        check_modes(home)
        assert list(home.glob("spool/*.jobs"))
        with running(Fleet(home, consumers=1)) as fleet:
            assert jobs.add.enqueue(1).result(timeout=10) == 2
            job_id = next(new_job_ids(1))
            assert fleet.client.spool(Spec("add"), [Call(job_id, b"x")]) == [job_id]
            wait_until((home / "journal.ballast").exists, "the ballast")
            check_modes(home)
            found = {str(path.relative_to(home)) for path in home.rglob("*")}
            assert found >= FILES
            assert as_user(ATTACKER, lambda: sorted(os.listdir(place))) == ["queue", "queue.stderr"]
            assert as_user(ATTACKER, lambda: attacks(home, sorted(home.rglob("*")))) == {}
            assert found == {str(path.relative_to(home)) for path in home.rglob("*") if path.parent.name != "spool"} | {
                name for name in found if name.startswith("spool/")
            }
            assert jobs.add.enqueue(1).result(timeout=10) == 2
        check_modes(home)


@about_files
def test_files_made_later_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no umask at all: rotated logs, and the map of running jobs before it has its name."""
    home = Directory(tmp_path / "queue").create()
    with umask(0):
        log, fanout = configure(home.path, "json", stderr_fd=os.open(os.devnull, os.O_WRONLY), max_bytes=1_000, keep=3)
        for number in range(50):
            log.info("job.log", message="x" * 100, number=number)
        fanout.close()
        shutil.rmtree(home.log)
        log.info("job.log", message="the folder is made again")
        fanout.close()
        for number in range(50):
            log.info("job.log", message="x" * 100, number=number)
        fanout.close()
        monkeypatch.setattr(Path, "replace", lambda *_: None)
        clear_flight_records(home.running, 2)
        for number in range(50):
            log.info("job.failed", error="x" * 100, number=number)
        fanout.close()
    assert (home.log / "taskq.jsonl.3").exists()
    assert (home.log / "output.jsonl.3").exists()
    assert home.running.with_suffix(".new").exists()
    check_modes(home.path)


@about_files
@pytest.mark.parametrize("mask", [0o022, 0o000], ids=oct)
def test_folders_above_are_not_open(tmp_path: Path, mask: int) -> None:
    """Whoever may write to a folder above the queue could put another queue in its place."""
    with umask(mask):
        Directory(tmp_path / "state" / "taskq" / "queue").create()
    assert mode_of(tmp_path / "state") & 0o022 == 0
    assert mode_of(tmp_path / "state" / "taskq") & 0o022 == 0


@about_files
@two_users
def test_a_fleet_that_is_not_root(place: Path, as_owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet of one user, an attacker who is another: denied. The fleet's own user is served, and so is root."""
    home = place / "owner" / "queue"
    home.parent.mkdir(mode=0o755)
    os.chown(home.parent, OWNER, OWNER)
    monkeypatch.setattr(sys, "executable", as_owner)
    use(jobs.q, home)
    with running(Fleet(home, consumers=1)) as fleet:
        assert as_user(OWNER, lambda: jobs.add.enqueue(1).result(timeout=10)) == 2
        assert {process.uids().effective for process in fleet.processes()} == {OWNER}
        check_modes(home)
        assert home.lstat().st_uid == OWNER
        assert as_user(ATTACKER, lambda: attacks(home, sorted(home.rglob("*")))) == {}
        home.chmod(0o755)
        (home / "taskq.sock").chmod(0o666)
        assert as_user(ATTACKER, lambda: knock(home / "taskq.sock")) == ""
        assert str(ATTACKER) in fleet.wait_for("client.rejected")["reason"]
        assert knock(home / "taskq.sock"), "root is let in"
        home.chmod(0o700)


@about_files
@two_users
def test_whose_fleet_it_is(place: Path, as_owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user is told who owns the fleet, and is not advised to start one. Root may look, even while it is
    stopped."""
    home = place / "owner" / "queue"
    home.parent.mkdir(mode=0o755)
    os.chown(home.parent, OWNER, OWNER)
    use(jobs.q, home)

    def look() -> None:
        told = as_user(ATTACKER, lambda: find_directory(str(home)).path)
        assert f"{home} belongs to user id {OWNER}" in told
        for ask in (jobs.q.client.look, jobs.q.jobs, jobs.q.schedules.list, lambda: jobs.q.job("0" * 32).result(1)):
            assert f"{home} belongs to user id {OWNER}" in as_user(ATTACKER, ask)
        assert jobs.q.client.look().totals.succeeded == 1
        [info] = jobs.q.jobs()
        assert jobs.q.job(info.id).state() == "succeeded"
        for change in (lambda: jobs.q.pause("mail"), lambda: jobs.add.enqueue(1), lambda: jobs.q.job(info.id).retry()):
            with pytest.raises(DirectoryError, match="root may look"):
                change()

    with monkeypatch.context() as patch, ExitStack() as stack:
        patch.setattr(sys, "executable", as_owner)
        fleet = stack.enter_context(running(Fleet(home, consumers=1)))
        patch.undo()
        assert as_user(OWNER, lambda: jobs.add.enqueue(1).result(timeout=10)) == 2
        look()
        assert fleet.events("client.rejected") == []
    look()
    assert {path.lstat().st_uid for path in home.rglob("*")} == {OWNER}, "a fleet can start there"
    home.parent.chmod(0o700)  # then not even the directory itself can be seen
    assert f"{home} belongs to user id {OWNER}" in as_user(ATTACKER, jobs.q.client.look)


def knock(path: Path) -> str:
    """Connects, says hello and returns what the other side answers, as hexadecimal digits."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(str(path))
        try:
            raw.sendall(frames.hello(os.getpid()))
            return raw.recv(65536).hex()
        except (BrokenPipeError, ConnectionResetError):
            return ""


@about_files
def test_no_other_way_in(place: Path) -> None:
    """No process of a fleet listens on a network, nor in the abstract namespace, which knows no permissions; what
    multiprocessing makes for --preload lies in a private folder."""
    home = place / "queue"
    use(jobs.q, home)
    with running(Fleet(home, consumers=1, preload=True)) as fleet:
        assert jobs.add.enqueue(1).result(timeout=10) == 2
        for process in fleet.processes():
            assert process.net_connections("inet") == []
            names = {str(found.laddr) for found in process.net_connections("unix") if found.laddr}
            for name in names:
                assert name.startswith("/"), name
                assert mode_of(Path(name).parent) == 0o700


# -- a directory that is not private


@about_files
@pytest.mark.parametrize("mode", [0o755, 0o777, 0o710], ids=oct)
def test_an_open_directory_is_refused(place: Path, mode: int) -> None:
    """By the fleet and by clients that would write to it."""
    home = Directory(place / "queue").create().path
    home.chmod(mode)
    refused(worker(home), f"chmod 700 {home}")
    use(jobs.q, home)
    with pytest.raises(TaskQError, match="chmod 700"):
        jobs.add.enqueue(1)
    assert not list(home.glob("spool/*"))


@about_files
@two_users
def test_a_directory_opened_while_the_fleet_runs(place: Path) -> None:
    """Even then no other user can read a file, and a user who connects is disconnected and logged."""
    home = place / "queue"
    use(jobs.q, home)
    with running(Fleet(home, consumers=1)) as fleet:
        assert jobs.add.enqueue(1).result(timeout=10) == 2
        home.chmod(0o777)
        paths = [path for path in home.rglob("*") if path.is_file()]
        read = {str(path): path.read_bytes for path in paths}
        assert as_user(ATTACKER, lambda: _try_all(read | {"connect": lambda: _connect(home / "taskq.sock")})) == {}
        (home / "taskq.sock").chmod(0o666)
        assert as_user(ATTACKER, lambda: knock(home / "taskq.sock")) == ""
        assert f"user id {ATTACKER}" in fleet.wait_for("client.rejected")["reason"]
        assert jobs.add.enqueue(1).result(timeout=10) == 2
        home.chmod(0o700)


@about_files
@two_users
def test_the_directory_of_another_user_is_refused(place: Path) -> None:
    home = Directory(place / "queue").create().path
    os.chown(home, ATTACKER, ATTACKER)
    refused(worker(home), f"belongs to user id {ATTACKER}")
    use(jobs.q, home)
    with pytest.raises(TaskQError, match=f"belongs to user id {ATTACKER}"):
        jobs.add.enqueue(1)


@about_files
def test_a_link_of_my_own_may_lead_to_the_directory(place: Path) -> None:
    """The directory that it leads to is checked."""
    home = Directory(place / "queue").create().path
    (place / "link").symlink_to(home)
    assert worker(place / "link").returncode == Exit.OK
    home.chmod(0o755)
    refused(worker(place / "link"), "chmod 700")


@about_files
@two_users
def test_a_link_of_another_user_is_refused(place: Path) -> None:
    """Else another user has us put a queue into any private folder of ours."""
    private = place / "private"
    private.mkdir(mode=0o700)
    (place / "queue").symlink_to(private)
    os.chown(place / "queue", ATTACKER, ATTACKER, follow_symlinks=False)
    refused(worker(place / "queue"), "link")
    assert not list(private.iterdir())


# -- what was planted while the directory was open


PLANTED_LINKS = [
    "lock",
    "consumers.lock",
    "queue.id",
    "journal.db",
    "journal.db-wal",
    "journal.high",
    "journal.ballast",
    "running.map",
    "running.new",
    "spool",
    "log",
    "log/taskq.jsonl",
    "log/output.jsonl",
    "taskq.sock",
]


@about_files
@two_users
@pytest.mark.parametrize("name", PLANTED_LINKS)
def test_a_planted_link_is_not_followed(place: Path, name: str) -> None:
    """A directory was open to others, one of them left a link in it, and the owner closed it, as taskq asks. The link
    is refused, or a file of our own takes its place; where it leads nothing is written."""
    home, target = place / "queue", place / "target"
    _make_target(target, is_folder=name in ("spool", "log"))
    (home / name).parent.mkdir(mode=0o700, parents=True)
    home.chmod(0o700)
    (home / name).symlink_to(target)
    os.chown(home / name, ATTACKER, ATTACKER, follow_symlinks=False)
    done = worker(home)
    assert not any(target.iterdir()) if target.is_dir() else not target.stat().st_size
    if (home / name).is_symlink():
        refused(done, str(home / name))
    else:
        assert done.returncode == Exit.OK, done


def _make_target(path: Path, *, is_folder: bool) -> None:
    if is_folder:
        path.mkdir()
    else:
        path.touch()
    path.chmod(0o777 if is_folder else 0o666)
    os.chown(path, ATTACKER, ATTACKER)


@about_files
@two_users
@pytest.mark.parametrize("name", ["journal.db", "journal.db-wal", "lock", "log/taskq.jsonl", "spool", "log"])
def test_a_planted_file_is_refused(place: Path, name: str) -> None:
    """The same with a file or folder that belongs to the other user, who can open it again at any time."""
    home = Directory(place / "queue").create().path
    if (home / name).is_dir():
        (home / name).rmdir()
    _make_target(home / name, is_folder=name in ("spool", "log"))
    refused(worker(home), str(home / name))


@about_files
@two_users
def test_a_planted_job_is_not_run(place: Path, tmp_path: Path) -> None:
    """A file in the spool that belongs to another user."""
    home = Directory(place / "queue").create().path
    use(jobs.q, home)
    jobs.note.enqueue(str(tmp_path / "ran"), "planted")
    [planted] = home.glob("spool/*.jobs")
    os.chown(planted, ATTACKER, ATTACKER)
    worker(home)
    assert not (tmp_path / "ran").exists()


# -- a broker that is not ours


class Impostor:
    """A process of another user that listens where a client looks for its broker, and takes the jobs."""

    def __init__(self, path: Path, uid: int = ATTACKER) -> None:
        reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _become(uid)
            _serve_as_broker(path, writer)
        os.close(writer)
        self._reader = open(reader, "rb")  # noqa: SIM115
        assert self._reader.readline() == b"listening\n"

    def end(self) -> bytes:
        """Ends it; returns all that it was sent."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        with self._reader:
            return self._reader.read()


def _serve_as_broker(path: Path, told: int) -> None:
    with suppress(BaseException):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen()
        os.write(told, b"listening\n")
        while True:
            raw, _ = listener.accept()
            decoder = frames.Decoder()
            raw.sendall(frames.hello(os.getpid()))
            while data := raw.recv(65536):
                os.write(told, data)
                for envelope, _ in decoder.feed(data):
                    if envelope[0] == Op.SUBMIT:
                        raw.sendall(frames.frame([Op.OK, envelope[1], None]))
    os._exit(0)


async def _enqueue_async() -> None:
    await asyncio.wait_for(jobs.echo.aenqueue(SECRET), 60)


ENQUEUE: dict[str, Callable[[], Any]] = {
    "client": lambda: jobs.echo.enqueue(SECRET).id,
    "asyncio": lambda: asyncio.run(_enqueue_async()),
}


@about_files
@two_users
@pytest.mark.parametrize("how", ENQUEUE)
def test_jobs_are_not_given_to_another_users_broker(place: Path, how: str) -> None:
    """Another user made the directory first, such as TASKQ_URL=/tmp/x, and listens there."""
    home = place / "queue"
    home.mkdir()
    os.chown(home, ATTACKER, ATTACKER)
    use(jobs.q, home)
    impostor = Impostor(home / "taskq.sock")
    try:
        with pytest.raises(TaskQError, match=f"user id {ATTACKER}"):
            ENQUEUE[how]()
    finally:
        got = impostor.end()
    assert SECRET.encode() not in got


@pytest.fixture
def long_home(place: Path) -> Iterator[Path]:
    """A queue's directory whose path is too long for a socket, and the folder of its user's sockets, which an attacker
    has made before."""
    home = place / ("long" * 30) / "queue"
    home.parent.mkdir()
    os.chown(home.parent, OWNER, OWNER)
    folder = Path(f"/tmp/taskq-{OWNER}")
    as_user(ATTACKER, lambda: folder.mkdir(mode=0o755))
    assert folder.stat().st_uid == ATTACKER
    yield home
    shutil.rmtree(folder)


@about_files
@two_users
def test_a_prepared_folder_for_short_sockets_is_refused(long_home: Path, as_owner: str) -> None:
    """By the fleet, which says which folder it is; another try would not help."""
    refused(worker(long_home, executable=as_owner), f"/tmp/taskq-{OWNER}")


@about_files
@two_users
def test_jobs_are_not_given_to_who_prepared_the_short_socket(long_home: Path) -> None:
    """A client whose own directory is private looks for the socket in a folder that an attacker made."""
    use(jobs.q, long_home)
    path = Path(as_user(OWNER, lambda: str(Directory(long_home).create().socket_path())))
    impostor = Impostor(path)
    try:
        told = as_user(OWNER, ENQUEUE["client"])
    finally:
        got = impostor.end()
    assert SECRET.encode() not in got, told


# -- the log and the terminal

APP = """
import os, sys
from taskq import TaskQ, current_job

q = TaskQ("security")


@q.task
def say(lines: list[str]) -> None:
    for line in lines:
        os.write(1, line.encode("utf-8", "surrogateescape") + b"\\n")


@q.task
def tell(text: str) -> None:
    current_job().log.info(text, **{text: text, "event_": text})


@q.task(retries=0)
def fail(text: str) -> None:
    raise type(text.replace("\\0", ""), (Exception,), {})(text)


@q.task
def echo(value):
    return value


@q.task
def modules() -> list[str]:
    return sorted(sys.modules)
"""

_FORGED = json.dumps({"timestamp": "2000-01-01T00:00:00.000000Z", "level": "critical", "event": "forged.event"})
EVIL = {
    "newline": "one\nforged two\n" + _FORGED,
    "return": "one\r" + _FORGED,
    "json": _FORGED,
    "half json": '","event":"forged.event","x":"',
    "colour": "\x1b[31mred\x1b[0m\x1b[2J\x1b[H",
    "title": "\x1b]0;forged title\x07\x1b]8;;http://x\x1b\\link",
    "device": "\x1bP+q\x1b\\\x1b[6n\x1bc",
    "unfinished": "\x1b[\n\x1b]0;\n\x1b",
    "nested": "\x1b\x1b[0m[31mred",
    "c1": "\x9b31mred \x9d0;title\x9c \x90x\x9c \x85",
    "bidi": "\u202eevil\u202c \u2066x\u2069 \u200f\u061c",
    "separators": "one\u2028two\u2029three\x0b\x0c\x1c\x1d",
    "nul": "a\0b\x08\x08\x7f",
    "rich": "[red]x[/red] [/] [link=http://x]y",
}


@pytest.fixture(scope="module")
def evil_app(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An application whose jobs write whatever text they get."""
    path = tmp_path_factory.mktemp("evil") / "evil_app.py"
    path.write_text(APP)
    return f"{path}:q"


@pytest.fixture(scope="module")
def evil_fleet(evil_app: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet that logs all it can."""
    home = tmp_path_factory.mktemp("security") / "queue"
    with running(Fleet(home, evil_app, consumers=1, log_level="debug")) as fleet:
        yield fleet


def enqueue(fleet: Fleet, task: str, *arguments: Any) -> Job[Any]:
    """Enqueues by name, without the code."""
    use(jobs.q, fleet.home)
    spec = Spec(task, retries=0, max_crashes=1, timeout_s=0.3 if task == "sleep" else None)
    return Enqueuer[..., Any](jobs.q, spec).enqueue(*arguments)


def ended(fleet: Fleet, job: Job[Any]) -> dict[str, Any]:
    """The line that tells the end of a job."""
    assert job.wait(timeout=10)
    return fleet.wait_for(f"job.{job.state().value}", job_id=job.id)


def log_lines(fleet: Fleet) -> list[dict[str, Any]]:
    """The whole log. Each line must be JSON in printable ASCII."""
    data = b"".join(path.read_bytes() for path in (log_path(fleet.home), output_path(fleet.home)) if path.exists())
    assert set(data) <= set(range(0x20, 0x7F)) | {0x0A}
    return [json.loads(line) for line in data.splitlines()]


def own_lines(fleet: Fleet, job: Job[Any]) -> list[dict[str, Any]]:
    """What the log has of a job; checks that all of it is the broker's own word."""
    found = [event for event in log_lines(fleet) if event.get("job_id") == job.id]
    for event in found:
        assert event["event"] in ("job.enqueued", "job.started", "job.succeeded", "job.log", "job.failed")
        assert event["level"] != "critical"
        assert event["timestamp"] > "2026"
        assert event["task"] in ("say", "tell", "fail")
        assert event["attempt"] == (0 if event["event"] == "job.enqueued" else 1)
    assert not [event for event in log_lines(fleet) if event["event"].startswith("forged")]
    return found


def safe(shown: str) -> None:
    """Checks that a text can do nothing to a terminal."""
    harmful = re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]", shown)
    assert not harmful, (harmful, shown)


def unforged(shown: str) -> None:
    """Checks that no line of the log begins with the words of a job."""
    assert not [line for line in shown.splitlines() if line.startswith(("forged", "{", "two"))], shown


def in_terminal(home: Path, *arguments: str) -> str:
    """What a command writes to a terminal, a dumb one, for which it has no colours of its own."""
    main, side = pty.openpty()
    environment = {**os.environ, **environment_of(home), "TERM": "dumb", "COLUMNS": "200"}
    with subprocess.Popen([*TASKQ, *arguments], env=environment, stdin=side, stdout=side, stderr=side):
        os.close(side)
        told = b""
        with suppress(OSError):  # the end
            while data := os.read(main, 65536):
                told += data
    os.close(main)
    return told.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("name", EVIL)
def test_output_stays_in_its_line(evil_fleet: Fleet, name: str) -> None:
    """What a job prints is in `message` of its own lines, whatever it is; no field of the broker's is forged."""
    job = enqueue(evil_fleet, "say", [EVIL[name], "\x1e" + EVIL[name], "last"])
    job.result(timeout=10)
    evil_fleet.wait_for("job.log", job_id=job.id, message="last")
    assert {event["event"] for event in own_lines(evil_fleet, job)} >= {"job.log"}
    job = enqueue(evil_fleet, "tell", EVIL[name])
    ended(evil_fleet, job)
    assert own_lines(evil_fleet, job)


OWN_FIELDS = ["timestamp", "level", "event", "queue", "task", "job_id", "attempt", "consumer", "pid", "stream"]


def test_own_fields_are_not_forged(evil_fleet: Fleet) -> None:
    """A structured line may have any fields but the broker's own, which stay what they are."""
    fields = {name: "forged" for name in OWN_FIELDS if name != "event"}
    job = enqueue(evil_fleet, "say", ["\x1e" + json.dumps({"event": "said", **fields})])
    job.result(timeout=10)
    told = evil_fleet.wait_for("job.log", job_id=job.id)
    assert (told["message"], told["level"], told["task"], told["queue"]) == ("said", "info", "say", "default")
    assert told["consumer"] == 1
    assert told["pid"] in evil_fleet.consumer_pids()
    own_lines(evil_fleet, job)


@pytest.mark.parametrize("name", ["self", "method_name", "exc_info", "stack_info", "", "args", "_logger", "event_"])
def test_no_field_disturbs_the_broker(tmp_path: Path, name: str) -> None:
    """A field may have the name of a parameter of the logger's own functions: writing the log must not fail then.
    (Without processes, since a broker that fails by each try gives up, and all tests with it.)"""
    log, fanout = configure(tmp_path, "json", stderr_fd=os.open(os.devnull, os.O_WRONLY))
    counters = SimpleNamespace(jobs_done=0)
    slot = cast(ConsumerProcess, SimpleNamespace(number=1, pid=2, key=(1, 1), counters=counters))
    row = JobRow(1, bytes(16), Spec("say"), b"")
    events = EventLog(log, lambda _key: slot, tells_enqueued=True)
    events.output(slot, row, ["\x1e" + json.dumps({"event": "said", name: 1})], 1.0)
    events.output(slot, None, ["\x1e" + json.dumps({"event": "said", name: 1})], 1.0)
    fanout.close()
    assert [event["message"] for event in read(tmp_path)] == ["said", "said"]


@pytest.mark.parametrize("name", ["self", "method_name"])
def test_no_line_of_output_ends_the_fleet(evil_app: str, tmp_path: Path, name: str) -> None:
    """The same with a real fleet."""
    fleet = Fleet(tmp_path / "queue", evil_app, consumers=1)
    fleet.expected.add("broker.failed")  # told here
    with running(fleet):
        job = enqueue(fleet, "say", ["\x1e" + json.dumps({"event": "said", name: 1})])
        assert job.wait(timeout=30)
        assert fleet.count("broker.*") == 0


@pytest.mark.parametrize("name", EVIL)
def test_errors_stay_in_their_line(evil_fleet: Fleet, name: str) -> None:
    """The same for the type and text of an exception, in the log and where a terminal shows it."""
    job = enqueue(evil_fleet, "fail", EVIL[name])
    ended(evil_fleet, job)
    assert own_lines(evil_fleet, job)[-1]["event"] == "job.failed"


def test_terminals_are_safe(evil_fleet: Fleet) -> None:
    """`taskq logs`, `taskq job` and `taskq status` in a terminal show nothing that a job could steer it with."""
    text = "\n".join(EVIL.values())
    said, failed = enqueue(evil_fleet, "say", list(EVIL.values())), enqueue(evil_fleet, "fail", text)
    for job in (said, failed):
        ended(evil_fleet, job)
    for command in (["logs"], ["job", failed.id], ["status"]):
        shown = in_terminal(evil_fleet.home, *command)
        assert shown.count("\n") > 3
        safe(shown)
        unforged(shown)
    assert failed.id in in_terminal(evil_fleet.home, "logs", "--job", failed.id)


@pytest.mark.parametrize("task", ["fail", "echo"])
def test_waiting_in_a_terminal_is_safe(evil_app: str, evil_fleet: Fleet, task: str) -> None:
    """`taskq enqueue --wait` shows the remote error, or the result."""
    text = "\n".join(value for name, value in EVIL.items() if name != "nul")
    shown = in_terminal(evil_fleet.home, "enqueue", evil_app, task, text, "--wait")
    assert "title" in shown
    safe(shown)


# -- names and data import nothing


NAMES = [
    "os.system",
    "os:system",
    "subprocess:run",
    "builtins.eval",
    "eval",
    "__import__",
    "taskq.client.app.TaskQ",
    "antigravity.fly",
    "this:s",
    "evil_app:q.tasks",
    "say.__call__",
    "__class__",
    "__main__",
    "..",
]


def test_a_name_is_looked_up_and_never_imported(evil_fleet: Fleet, tmp_path: Path) -> None:
    """Jobs of any name are parked at once, and change nothing in the consumer."""
    before = enqueue(evil_fleet, "modules").result(timeout=10)
    for name in NAMES:
        job = enqueue(evil_fleet, name, f"touch {tmp_path / 'canary'}")
        with pytest.raises(JobFailed) as caught:
            job.result(timeout=10)
        assert caught.value.error_type == "UnknownTask"
        assert job.info().attempts == 1
    assert enqueue(evil_fleet, "modules").result(timeout=10) == before
    assert "antigravity" not in before
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["os/system", "a b", "x\n", "x\x1b[31m", "\u202e", "", "é", "a" * 201])
def test_names_of_other_characters_are_refused(evil_fleet: Fleet, name: str) -> None:
    use(jobs.q, evil_fleet.home)
    with pytest.raises(ConfigError, match="task name"):
        jobs.q.enqueue(name)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickles_are_opaque(evil_fleet: Fleet, tmp_path: Path) -> None:
    """A pickle is not accepted as a payload; as an argument or a result it is just bytes."""
    bomb = pickle.dumps(_Bomb(tmp_path / "canary"))
    [job_id] = new_job_ids(1)
    use(jobs.q, evil_fleet.home)
    jobs.q.client.submit(Spec("echo", retries=0), [Call(job_id, bomb)])
    with pytest.raises(JobFailed) as caught:
        jobs.q.job(job_id.hex()).result(timeout=10)
    assert caught.value.error_type == "CorruptPayload"
    assert enqueue(evil_fleet, "echo", bomb).result(timeout=10) == bomb
    assert not (tmp_path / "canary").exists()


#: What could make code of data.
_DANGEROUS = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "runpy", "code"}
_CALLS = {"eval", "exec", "compile", "__import__"}
#: Who imports by name, and why that name does not come from outside.
_IMPORTERS = {
    "contrib/django/worker.py": "the backend's application, which the settings of the site name",
    "__init__.py": "a table of its own names",
    "cli/program.py": "a table of commands",
    "protocol/link/boot.py": "the consumer's program, as its broker names it",
    "client/transport/clients.py": "the modules of the clients of a database, which it names itself",
    "client/loader.py": "the application, as its owner named it on the command line",
    "protocol/codec/decode.py": "numpy, which it names itself",
    "telemetry/redaction.py": "the function that the fleet's owner named on the command line",
    "telemetry/slim_structlog.py": "asyncio, which it names itself",
    "testing/__init__.py": "a table of its own names",
    "web/__init__.py": "a table of its own names",
}
#: multiprocessing pickles what it sends: between a broker and the consumers that it started, over their own pipes.
_PICKLERS = {
    "contrib/django/dashboard.py": "the class of futures (concurrent.futures)",
    "client/executors/executor.py": "the base class of executors (concurrent.futures)",
    "client/executors/futures.py": "the class of futures, and their errors",
    "client/executors/private.py": "the error of an executor that cannot start (concurrent.futures)",
    "broker/consumers/handle.py": "the types of a process and of its output pipe",
    "broker/consumers/supervisor.py": "starts consumers",
    "cli/bench/limits/pool.py": "a pool to compare with (concurrent.futures)",
    "consumer/process.py": "the types of its pipes",
    "protocol/link/boot.py": "Boot goes from the broker to its child",
    "protocol/link/counters.py": "the type of the context; Lock and Value",
    "protocol/link/inbox.py": "bytes, pickled as SimpleQueue reads them; from the broker to its child",
    "protocol/link/unsent.py": "the type of the context; raw memory",
    "system/spawn/helper.py": "the helper of multiprocessing, which removes names",
    "system/spawn/forkservers.py": "starts the processes that consumers are forked from",
    "system/semaphores.py": "the types of a lock and of its finalizer",
}


#: What else may be imported, and where: with the reason in `_PICKLERS`.
_ALLOWED = {
    "protocol/link/inbox.py": {"pickle"},
    "client/executors/pickled_calls.py": {"cloudpickle"},  # an executor's calls: only for an application that has one
}


def _modules_of(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    return {node.module or ""} if isinstance(node, ast.ImportFrom) else set()


def test_no_code_is_made_of_data() -> None:
    """No pickle, marshal, eval, exec or `__import__` in the source; imports by name, and multiprocessing, only in the
    files that are listed with a reason."""
    importers, picklers = set(), set()
    for path in sorted(SOURCES.rglob("*.py")):
        name = str(path.relative_to(SOURCES))
        for node in ast.walk(ast.parse(path.read_text())):
            modules = {module.split(".")[0] for module in _modules_of(node)}
            assert not modules & _DANGEROUS - _ALLOWED.get(name, set()), name
            if modules & {"multiprocessing", "concurrent"}:
                picklers.add(name)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in _CALLS, name
            called = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if called == "import_module":
                importers.add(name)
    assert importers == set(_IMPORTERS)
    assert picklers == set(_PICKLERS)


# -- secrets

SECRETS_APP = """
import enum, os, time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from taskq import TaskQ

q = TaskQ("secrets")


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int


@q.task(retries=0)
def take(text: str, colour: Colour = Colour.RED, point: Point | None = None, day: date | None = None,
         paths: list[Path] = [], number: int = 0) -> str:
    return text


@q.task(retries=1)
def fail(text: str) -> None:
    raise LookupError("nothing of the arguments")


@q.task(retries=0, max_crashes=1)
def die(text: str) -> None:
    os.kill(os.getpid(), 9)


@q.task(retries=0, timeout=0.2)
def sleep(text: str) -> None:
    time.sleep(30)


@q.task(retries=0)
def refuse(text: str):
    return [text, object()]


@q.task(retries=0)
def publish(text: str) -> None:
    raise LookupError("the job's own words: " + text)
"""

#: Calls whose arguments are secret, and which the fleet must say something about.
SECRET_CALLS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "succeeds": ("take", (SECRET,)),
    "not an enum": ("take", ("x", SECRET)),
    "not a dataclass": ("take", ("x", "red", SECRET)),
    "in a dataclass": ("take", ("x", "red", {"x": SECRET, "y": SECRET})),
    "not a date": ("take", ("x", "red", None, SECRET)),
    "not paths": ("take", ("x", "red", None, None, {SECRET: 1})),
    "not a number": ("take", ("x", "red", None, None, [], SECRET)),
    "too many": ("take", ("x", "red", None, None, [], 1, SECRET)),
    "unknown task": ("no_such_task", (SECRET,)),
    "raises": ("fail", (SECRET,)),
    "dies": ("die", (SECRET,)),
    "runs out of time": ("sleep", (SECRET,)),
    "returns an object": ("refuse", (SECRET,)),
}


@pytest.fixture(scope="module")
def secret_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet that logs all it can."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "secrets_app.py").write_text(SECRETS_APP)
    fleet = Fleet(folder / "queue", f"{folder / 'secrets_app.py'}:q", consumers=2, log_level="debug")
    with running(fleet):
        yield fleet


@pytest.mark.parametrize("name", SECRET_CALLS)
def test_arguments_are_not_logged(secret_fleet: Fleet, name: str) -> None:
    """At the level debug: neither arguments nor results are in the log, in the status or in an error that the job did
    not
    write itself."""
    task, arguments = SECRET_CALLS[name]
    job = enqueue(secret_fleet, task, *arguments)
    ended(secret_fleet, job)
    assert SECRET not in json.dumps(secret_fleet.status())
    events = [event for event in log_lines(secret_fleet) if event.get("job_id") == job.id]
    assert not [event for event in events if SECRET in json.dumps(event)]
    info = job.info()
    assert info.error is None or SECRET not in repr(info.error)


def test_what_a_job_writes_itself_is_its_own(secret_fleet: Fleet) -> None:
    """The text of an exception is in the log: who puts an argument into it, publishes it."""
    job = enqueue(secret_fleet, "publish", SECRET)
    assert SECRET in ended(secret_fleet, job)["error"]


def test_processes_do_not_show_arguments(secret_fleet: Fleet) -> None:
    """Everybody may read the command line of a process."""
    job = enqueue(secret_fleet, "sleep", SECRET)
    secret_fleet.wait_for("job.started", job_id=job.id)
    shown = [psutil.Process(process.pid).cmdline() for process in secret_fleet.processes()]
    assert SECRET not in repr(shown)
    assert job.wait(timeout=10)
