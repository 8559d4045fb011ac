"""Faults of the disk, and crashes at every write: what the journal promised holds, and no half of anything is there.

Four sweeps of our own store, beside the power cuts of test_power_loss.py:
- error points, as SQLite's own tests do it: the n-th call for a file fails, once or from then on, for n = 1, 2, ...
  until a scripted life runs untouched. The real `Committer` drives the store;
- power cuts during the recovery from a power cut, and again during the recovery from that;
- kills of the process, where all writes that were made are there, synced or not;
- torn writes: each unsynced write cut at each sector, and the subsets of the unsynced ones.

By default each sweep takes a sample that is the same in each run; TASKQ_SWEEP=full takes all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import proof
import pytest
from power import SECTOR, VARIANTS, Disk, Entry, Files, Life, Snapshot, Sweep, apply_change
from recorded_life import SPECS, Recorder, abandon, check_consistency, check_state, live_once, own_files_in, reboot

from taskq.engines.embedded.committer import Committer
from taskq.engines.embedded.journal import database as database_module
from taskq.engines.embedded.journal import files as files_module
from taskq.engines.embedded.journal import schema as schema_module
from taskq.engines.embedded.journal import wal as wal_module
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.embedded.journal.store import TOTAL_NAMES
from taskq.model.effects import Effects
from taskq.model.errors import JournalError, StoreFull
from taskq.model.job import JobRow
from taskq.model.partition import Partition
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, Rescheduled, StoredState
from taskq.protocol.frames import Decoder
from taskq.protocol.ops import Op
from taskq.protocol.submissions import Submission

IS_FULL = os.environ.get("TASKQ_SWEEP") == "full"
SPEC, OTHER = SPECS
KEEP = 6

pytestmark = [pytest.mark.timeout(1_800 if IS_FULL else 600), pytest.mark.not_on_postgres("the disk under a journal")]


#: Where files are kept: in memory if that can be, for the sake of time.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty directory."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as path:
        yield Path(path)


def fresh(path: Path) -> Path:
    """An empty directory."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


# -- files that fail
#
# An exception out of a VFS in Python is raised again by APSW even where SQLite ignores the error (a checkpoint after a
# commit), so the calls are replaced in C's own tables: SQLite sees its codes, and nothing else.

FULL, IOERR, CORRUPT = apsw.SQLITE_FULL, apsw.SQLITE_IOERR, apsw.SQLITE_CORRUPT
_CALL = ctypes.CFUNCTYPE
_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_METHODS = {
    "xClose": None,
    "xRead": _CALL(_I, _P, _P, _I, _L),
    "xWrite": _CALL(_I, _P, _P, _I, _L),
    "xTruncate": _CALL(_I, _P, _L),
    "xSync": _CALL(_I, _P, _I),
    "xFileSize": _CALL(_I, _P, _P),
}
KINDS = ("xOpen", "xRead", "xWrite", "xTruncate", "xSync", "xFileSize")
KINDS_OF_FULL = tuple(kind for kind in KINDS if kind != "xSync")
_OPEN = _CALL(_I, _P, _P, _P, _I, _P)


class _IOMethods(ctypes.Structure):
    """sqlite3_io_methods, of version 3."""

    _fields_ = (("version", _I), *((name, _P) for name in _METHODS), ("others", _P * 13))


class _VFS(ctypes.Structure):
    """The head of sqlite3_vfs."""

    _fields_ = (("ints", _I * 3), ("next", _P), ("name", _P), ("data", _P), ("xOpen", _P))


@dataclass
class Fault:
    """Which call fails, and how."""

    code: int = 0
    at: int | None = None  # None: none does
    is_lasting: bool = False
    kinds: tuple[str, ...] = KINDS
    calls: int = 0
    hits: list[str] = field(default_factory=list)

    def strikes(self, kind: str) -> bool:
        """Counts a call; says whether it is to fail."""
        if kind not in self.kinds:
            return False
        self.calls += 1
        is_hit = self.at is not None and (self.calls == self.at or (self.is_lasting and self.calls > self.at))
        if is_hit:
            self.hits.append(kind)
        return is_hit


class InForce:
    """The fault that all files obey."""

    fault = Fault()


@cache
def _failing_methods(address: int) -> _IOMethods:
    """A file's methods, which ask the fault first."""
    methods = _IOMethods.from_buffer_copy(_IOMethods.from_address(address))
    methods.callbacks = []  # to be kept alive with it
    for name, prototype in _METHODS.items():
        if prototype is not None:
            callback = prototype(_failing(name, prototype(getattr(methods, name))))
            methods.callbacks.append(callback)
            setattr(methods, name, ctypes.cast(callback, _P))
    return methods


def _failing(name: str, original: Callable[..., int]) -> Callable[..., int]:
    def call(*args: int) -> int:
        if not InForce.fault.strikes(name):
            return original(*args)
        if name == "xWrite":  # as a disk that is full: half of it is there
            file, data, size, offset = args
            original(file, data, size // 2, offset)
        return InForce.fault.code

    return call


@contextmanager
def failing_files() -> Iterator[None]:
    """SQLite's files of this process obey the fault."""
    with tempfile.TemporaryDirectory() as path:
        db = apsw.Connection(f"{path}/any.db")
        pointer = _P()
        assert db.file_control("main", apsw.SQLITE_FCNTL_VFS_POINTER, ctypes.addressof(pointer))
        db.close()
    vfs = _VFS.from_address(pointer.value or 0)
    before = vfs.xOpen
    original = _OPEN(before)

    def open_(vfs: int, name: int, file: int, flags: int, out: int) -> int:
        if InForce.fault.strikes("xOpen"):
            _P.from_address(file).value = None  # there is nothing to close
            return InForce.fault.code
        code = original(vfs, name, file, flags, out)
        methods = _P.from_address(file)
        if code == 0 and methods.value:
            methods.value = ctypes.addressof(_failing_methods(methods.value))
        return code

    callback = _OPEN(open_)
    vfs.xOpen = ctypes.cast(callback, _P).value
    try:
        yield
    finally:
        vfs.xOpen = before


@contextmanager
def failing(fault: Fault) -> Iterator[Fault]:
    """This fault is in force."""
    before, InForce.fault = InForce.fault, fault
    try:
        yield fault
    finally:
        InForce.fault = before


# -- a broker with nothing but a committer


class Watched(SQLiteStore):
    """A store that writes down what each commit promises."""

    history: History

    def commit(self) -> None:
        """As the store does it."""
        if self._db.in_transaction:
            self.history.under_way = Snapshot.of(self, self.history.ids)
        super().commit()
        self.history.promise()

    def rollback(self) -> None:
        """As the store does it; what was promised must be there again, and nothing else."""
        super().rollback()
        self.history.under_way = None
        assert Snapshot.of(self, self.history.ids) == self.history.promised


@dataclass
class History:
    """What was sent, what was promised, and what a commit that is under way would add to it."""

    ids: list[bytes] = field(default_factory=list)
    sent: list[tuple[Spec, list[bytes], int]] = field(default_factory=list)
    promised: Snapshot = field(default_factory=lambda: Snapshot({}, dict.fromkeys(TOTAL_NAMES, 0)))
    under_way: Snapshot | None = None
    ever: set[bytes] = field(default_factory=set)  # the ids that were promised
    broker: Broker | None = None
    copies: list[tuple[Path, Snapshot]] = field(default_factory=list)

    def promise(self) -> None:
        """A commit has returned."""
        if self.under_way is not None:
            check_step(self.promised, self.under_way)
            self.promised, self.under_way = self.under_way, None
            self.ever.update(self.promised.jobs)

    def reopened(self, store: SQLiteStore) -> None:
        """Another process finds what was promised, or that and the whole of what was under way."""
        found = Snapshot.of(store, self.ids)
        assert found in (self.promised, self.under_way)
        self.promised, self.under_way = found, None
        self.ever.update(found.jobs)
        check_consistency(store, found)


def check_step(before: Snapshot, after: Snapshot) -> None:
    """What has ended stays as it is until it is pruned, failed jobs stay, and a job that waits goes only if it ends."""
    ended = sum(after.totals[name] - before.totals[name] for name in ("succeeded", "cancelled"))
    for job_id, job in before.jobs.items():
        later = after.jobs.get(job_id)
        if job[5] >= FIRST_FINAL:
            assert later == job or (later is None and job[5] != StoredState.FAILED)
        elif later is None:
            ended -= 1  # it ended, and was pruned at once
    assert ended >= 0
    assert all(after.totals[name] >= number for name, number in before.totals.items())


class Broker:
    """Core, server and event log of a real committer, with no more in them than a test needs."""

    def __init__(self, path: Path, history: History) -> None:
        self.path, self.history = path, history
        history.broker = self
        self.store = Watched.__new__(Watched)
        self.store.history = history
        self.store.__init__(path)  # type: ignore[misc]
        history.reopened(self.store)
        self.waiting: dict[bytes, JobRow] = {}
        self.effects = Effects()
        self.log = SimpleNamespace(error=lambda *_, **__: None)
        me: Any = self
        self.committer = Committer(self.store, me, me, me, me, me)
        for spec in SPECS:
            self.submitted(self.store.lease(Partition(spec.queue), 0, 1_000, 1 << 20)[0])

    # what the committer uses

    spool = None
    payloads = Path("/nowhere")

    def changed_rates(self, _now: float, _wall: float) -> list[Any]:
        """As the core: no job has a rate."""
        return []

    @property
    def has_effects(self) -> bool:
        """As the core."""
        return bool(self.effects)

    next_effects_us = 0.0

    def take_some_effects(self) -> Effects:
        """As the core."""
        return self.take_effects()

    def take_effects(self) -> Effects:
        """As the core."""
        effects, self.effects = self.effects, Effects()
        return effects

    def submitted(self, rows: Iterable[JobRow]) -> None:
        """As the core: these jobs wait."""
        for row in rows:
            assert row.id in self.history.promised.jobs
            self.waiting[row.id] = row

    came_due = submitted

    def enqueued(self, rows: list[JobRow], now: float) -> None:
        """As the event log."""

    def notes(self, notes: list[Any]) -> None:
        """As the event log."""

    def successes(self, done: list[Any], now: float) -> None:
        """As the event log."""

    def send(self, peer: Any, data: bytes) -> None:
        """As the server. A client hears that its jobs are refused: that must hold if the broker is killed now."""
        peer.append(bytes(data))
        if b"StoreFull" in data:
            history, home = self.history, self.path.parent
            copy = home.with_name(f"refused{len(history.copies)}")
            shutil.copytree(home, copy)
            history.copies.append((copy, history.promised))

    # what a tick brings

    def submit(self, spec: Spec, ids: list[bytes], size: int = 30) -> None:
        """Jobs come in."""
        self.history.sent.append((spec, ids, size))
        self.history.ids += [job_id for job_id in ids if job_id not in self.history.ids]
        payloads = [job_id.ljust(size, b".") for job_id in ids]
        self._hand_in(spec, ids, payloads)

    def submit_another(self, job_id: bytes) -> None:
        """A job comes in with the id of another one, if that is known and waits."""
        if job_id in self.waiting:
            self._hand_in(SPEC, [job_id], [b"another"])

    def _hand_in(self, spec: Spec, ids: list[bytes], payloads: list[bytes]) -> None:
        answers: Any = []  # what the client hears
        self.committer.take_in(Submission(answers, 1, False, spec, ids, payloads, None))

    def end(self, number: int, kept: StoredState) -> None:
        """The oldest jobs end."""
        for row in self._take(number):
            row.attempts += 1
            self.effects.ended.append((row, kept, b"outcome of " + row.id))

    def reschedule(self, number: int, due_at: float | None) -> None:
        """The oldest jobs are to run again."""
        for row in self._take(number):
            row.attempts += 1
            self.effects.rescheduled.append(Rescheduled(row, due_at, b"why", row.attempts))
            self.effects.retried += 1

    def _take(self, number: int) -> list[JobRow]:
        return [self.waiting.pop(job_id) for job_id in list(self.waiting)[:number]]

    def tick(self, now: float, refuses: bool = True) -> None:
        """Commits what came: what was accepted and decided is there, and what was refused is not."""
        effects = self.effects
        submissions = [staged for staged in self.committer._staged._waiting if isinstance(staged, Submission)]
        self.store.fold_log()
        self.committer.collect(now)
        self.committer.commit(now, now)
        self.committer.tell(now)
        for submission in submissions:
            answers: Any = submission.peer
            assert len(answers) == 1, "a client takes a second answer for that of its next request"
            [(envelope, _)] = Decoder().feed(answers[0])
            if envelope[0] == Op.OK:
                assert set(submission.ids) <= self.history.ever
            else:
                is_another = submission.payloads == [b"another"]
                assert envelope[2] in (("EnqueueError", "StoreFull") if is_another else ("StoreFull",))
                assert refuses
        self._check(effects)

    def come_due(self, now: float) -> None:
        """Time passes."""
        self.committer.come_due(now)
        self.tick(now)

    def _check(self, effects: Effects) -> None:
        jobs = self.history.promised.jobs
        for row, kept, outcome in effects.ended:
            assert row.id not in jobs or jobs[row.id][5:8:2] == (kept, outcome)
        for change in effects.rescheduled:
            assert jobs[change.row.id][3] == change.row.attempts
            if change.due_at is None:
                self.waiting[change.row.id] = change.row
        assert Snapshot.of(self.store, self.history.ids) == self.history.promised
        check_consistency(self.store, self.history.promised)

    def kill(self) -> None:
        """Lets go of the files. Those that count were copied before."""
        if hasattr(self.store, "_db"):
            self.store._db.close()
        self.store._wal.close()
        self.store._files.close()


def some_ids(group: int, number: int) -> list[bytes]:
    """Ids that sort by time, the same in each run."""
    return [bytes([1, group, index]) + bytes(13) for index in range(number)]


def live(path: Path, history: History) -> None:
    """The scripted life: opened, used in all ways, closed, opened again, used, closed."""
    broker = Broker(path, history)
    first, many, late = some_ids(1, 8), some_ids(2, 60), some_ids(3, 12)
    broker.submit(SPEC, first)
    broker.tick(1.0)
    broker.submit(OTHER, late[:2], 5_000)
    broker.submit(SPEC, many, 200)
    broker.end(2, StoredState.SUCCEEDED)
    broker.tick(2.0)
    broker.end(1, StoredState.FAILED)
    broker.end(5, StoredState.SUCCEEDED)
    broker.reschedule(3, 5.0)
    broker.reschedule(1, None)
    broker.tick(3.0)
    broker.submit(SPEC, [*first, late[2], late[2]])  # some ended, some wait, one is new
    broker.submit_another(many[-1])
    broker.tick(4.0)
    broker.come_due(6.0)
    broker.end(12, StoredState.CANCELLED)
    broker.committer.prune(6.0, 1e9, KEEP)
    broker.tick(6.0)
    broker.end(60, StoredState.SUCCEEDED)
    broker.submit(SPEC, late[3:], 1_500)
    broker.committer.prune(7.0, 1e9, KEEP)
    broker.tick(7.0)
    broker.store.close()
    broker = Broker(path, history)
    broker.end(5, StoredState.SUCCEEDED)
    broker.reschedule(4, 8.5)
    broker.tick(8.0)
    broker.come_due(9.0)
    broker.committer.prune(9.0, 1e9, KEEP)
    broker.tick(9.0)
    broker.store.close()


def finish(path: Path, history: History) -> None:
    """The next process, on a disk that works: all that was sent is sent again, and each job is there once."""
    broker = Broker(path, history)
    broker.committer.prune(10.0, 1e9, KEEP)  # looks for room, too
    broker.tick(10.0)
    for spec, ids, size in list(history.sent):
        broker.submit(spec, ids, size)
        broker.tick(11.0, refuses=False)
    broker.come_due(12.0)
    broker.end(1_000, StoredState.SUCCEEDED)
    broker.tick(13.0)
    assert {job[5] for job in history.promised.jobs.values()} <= {
        StoredState.SUCCEEDED,
        StoredState.FAILED,
        StoredState.CANCELLED,
    }
    broker.store.close()
    last = Broker(path, history)
    last.store.close()


def run(home: Path, fault: Fault) -> str:
    """A life with a fault, and what comes after. Returns how it ended; all but our own errors come out."""
    history, life = History(), fresh(home / "life")
    how = "went on"
    try:
        with failing(fault):
            live(life / "journal.db", history)
    except (JournalError, StoreFull) as error:
        how = type(error).__name__
    come_after(life, history)
    return how


def come_after(life: Path, history: History) -> None:
    """The broker is killed, and what it leaves is opened by the next one."""
    after = life.with_name("after")
    shutil.copytree(life, after)
    assert history.broker is not None
    history.broker.kill()
    for copy, promised in history.copies:
        check_refused(copy, promised, history.ids)
    finish(after / "journal.db", history)
    shutil.rmtree(after)
    proof.count("crash states", 1 + len(history.copies))


def check_refused(copy: Path, promised: Snapshot, ids: list[bytes]) -> None:
    """Killed after it told a client that its jobs are refused, the broker has none of them."""
    store = SQLiteStore(copy / "journal.db", "memory")
    try:
        assert Snapshot.of(store, ids) == promised
    finally:
        abandon(store)
        shutil.rmtree(copy)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose parts are all small, so that a short life reaches every part, and each opening reads everything."""
    monkeypatch.setattr(schema_module, "WAL_PAGES", 10)
    monkeypatch.setattr(schema_module, "_WAL_KEPT_BYTES", 32 * 1024)
    monkeypatch.setattr(schema_module, "_CACHE_KIB", 40)
    monkeypatch.setattr(wal_module, "AHEAD_FRAMES", 6)
    monkeypatch.setattr(wal_module, "LEFT_FRAMES", 2)
    monkeypatch.setattr(files_module, "BALLAST_BYTES", 4096)
    boots = count()
    monkeypatch.setattr(database_module, "boot_id", lambda: f"boot {next(boots)}")


@pytest.fixture
def faulty(small: None) -> Iterator[None]:
    """SQLite's files can fail."""
    with failing_files():
        yield


@pytest.mark.parametrize("is_lasting", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("code", [FULL, IOERR, CORRUPT], ids=["full", "ioerr", "corrupt"])
def test_each_call_for_a_file_may_fail(home: Path, faulty: None, code: int, is_lasting: bool) -> None:
    """Whichever call fails: nothing promised is lost, nothing refused is there, nothing is half there, and only the
    store's own errors come out. Each job that is sent again is there once."""
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    kinds: set[str] = set()
    step = 1 if IS_FULL else 13
    for n in count(1 + 5 * is_lasting % step, step):
        # where a sync fails SQLite says IOERR, whatever the system said
        fault = Fault(code, n, is_lasting, KINDS_OF_FULL if code == FULL else KINDS)
        try:
            ends[run(fresh(home / "run"), fault)] += 1
        except Exception as error:
            wrong.append(f"call {n}, {fault.hits[:1]}: {error!r:.200}")
        kinds.update(fault.hits)
        if not fault.hits:
            break
    print(f"{n} calls: {dict(ends)}, {len(wrong)} wrong")
    assert wrong == []
    assert ends["StoreFull" if code == FULL else "JournalError"] > 0
    assert ends["went on"] > 0
    assert not IS_FULL or kinds == set(fault.kinds)


def test_an_error_in_the_rollback_is_ours(home: Path, faulty: None) -> None:
    """The disk is full, and then it cannot be read either: the broker ends as with any other error of the journal."""
    store = SQLiteStore(home / "journal.db")
    store.submit(SPEC, some_ids(1, 200), [bytes(400)] * 200)
    with failing(Fault(FULL, 1, True, ("xWrite",))), pytest.raises(StoreFull):
        store.commit()
    store._db.execute("PRAGMA shrink_memory")
    with failing(Fault(IOERR, 1, True)), pytest.raises(JournalError):
        store.rollback()
    abandon(store)


def test_a_journal_that_does_not_become_a_wal_is_an_error(home: Path, faulty: None) -> None:
    """SQLite keeps the old mode without a word if one call fails while it changes it."""
    wrong = []
    for n in range(1, 30):
        path = fresh(home / "life") / "journal.db"
        with failing(Fault(IOERR, n)):
            try:
                abandon(SQLiteStore(path))
            except JournalError:
                pass
            except Exception as error:
                wrong.append((n, repr(error)))
    assert wrong == []


def test_a_request_is_refused_once(home: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is refused for its id is not refused again because the disk is full: a client takes a second answer
    for that of its next request."""
    broker = Broker(fresh(home / "life") / "journal.db", History())
    broker.submit(SPEC, some_ids(1, 2))
    broker.tick(1.0)
    broker.submit_another(some_ids(1, 1)[0])
    broker.end(1, StoredState.SUCCEEDED)
    commits, commit = iter([StoreFull("full")]), broker.store.commit

    def full_once() -> None:
        for error in commits:
            raise error
        commit()

    monkeypatch.setattr(broker.store, "commit", full_once)
    broker.tick(2.0)
    broker.store.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "ioerr"])
@pytest.mark.parametrize("call", ["open", "pwrite", "write", "fsync", "statvfs"])
def test_an_error_of_our_own_files_is_ours(
    home: Path, small: None, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """The marker, the high-water file and what is set aside: no error of theirs comes out as it is, and nothing that
    was promised is lost."""

    original = getattr(os, call)
    wrong = []
    for n in count(1):
        calls, history, life = count(1), History(), fresh(home / "life")

        def fail(*args: Any, n: int = n, calls: Iterator[int] = calls, life: Path = life, **options: Any) -> Any:
            is_ours = not isinstance(args[0], str | Path) or str(args[0]).startswith(str(life))
            if is_ours and next(calls) == n:
                raise OSError(code, os.strerror(code))
            return original(*args, **options)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, call, fail)
                live(life / "journal.db", history)
        except (JournalError, StoreFull):
            pass
        except OSError as error:
            wrong.append((n, repr(error)))
        come_after(life, history)
        if next(calls) <= n:
            break
    assert wrong == []


# -- power cuts during the recovery


@pytest.fixture(scope="module")
def lives() -> Iterator[Callable[[str], Life]]:
    """Recorded lives, by durability."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as path:

        @cache
        def of(durability: str) -> Life:
            return live_once(fresh(Path(path) / durability) / "journal.db", durability, 75 if IS_FULL else 40)

        yield of


@dataclass
class Point:
    """A moment of a recorded life."""

    disk: Disk
    promised: int
    last: Entry


def points(life: Life) -> Iterator[Point]:
    """All moments of a life at which the disk was asked for something. The disk is the same object each time."""
    disk, promised = Disk(), -1
    for entry in life.log:
        if entry[0] == "acknowledged":
            promised = entry[1]
        else:
            disk.take(entry)
            yield Point(disk, promised, entry)


def opened(home: Path, files: Files, ids: list[bytes]) -> tuple[Snapshot, list[Entry]]:
    """What a store finds in these files, and what it does to them when it opens them."""
    fresh(home)
    for name, content in files.items():
        (home / name).write_bytes(content)
    log: list[Entry] = []
    recorder = Recorder(log)
    try:
        with pytest.MonkeyPatch.context() as patch, own_files_in(log, patch):
            store = SQLiteStore(home / "journal.db", vfs="recorder")
            try:
                snapshot = Snapshot.of(store, ids)
                check_consistency(store, snapshot)
                recorded = list(log)
            finally:
                abandon(store)
    finally:
        recorder.unregister()
    proof.count("crash states")
    return snapshot, recorded


def cut(files: Files, log: list[Entry], chance: random.Random) -> Iterator[Files]:
    """What the disk may hold when the power is cut at each point of such an opening."""
    disk = Disk()
    disk.files = {name: bytearray(content) for name, content in files.items()}
    for entry in log:
        disk.take(entry)
        for variant in VARIANTS if IS_FULL else [chance.choice(VARIANTS)]:
            yield disk.after_power_loss(variant, chance)


def test_power_cuts_during_the_recovery(
    home: Path, lives: Callable[[str], Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovered after it was cut short, once and twice, the journal is the same as recovered at once."""
    reboot(monkeypatch)
    life = lives("power")
    chance = random.Random(11)
    cuts = 0
    for number, point in enumerate(points(life)):
        if number % (4 if IS_FULL else 11):
            continue
        files = point.disk.after_power_loss(chance.choice(VARIANTS), chance)
        expected, log = opened(home / "disk", files, life.ids)
        for once in cut(files, log, chance):
            found, again = opened(home / "disk", once, life.ids)
            assert found == expected
            for twice in chance.sample(list(cut(once, again, chance)), 1):
                assert opened(home / "disk", twice, life.ids)[0] == expected
            cuts += 2
    print(f"{cuts} cuts")
    assert cuts > 500


# -- kills of the process


@pytest.mark.parametrize("durability", ["power", "os", "memory"])
def test_kills_lose_nothing_however_commits_are_synced(
    home: Path, lives: Callable[[str], Life], durability: str
) -> None:
    """At each write: what was written is there, and the last write may be cut short anywhere."""
    life, found, chance = lives(durability), Sweep(), random.Random(5)
    for number, point in enumerate(points(life)):
        if not IS_FULL and point.promised > 2 and number % 2:
            continue
        everything = point.disk.after_power_loss("all", chance)
        check_state(home, everything, life, point.promised, found)
        if point.last[0] == "write" and (IS_FULL or number % 6 == 0):
            *before, (kind, name, offset, data) = point.disk.pending
            short = [*before, (kind, name, offset, data[: chance.randrange(len(data))])]
            check_state(home, kept_of(point.disk, short), life, point.promised, found)
    print(found)
    assert found.lost == found.told_for_nothing == 0
    assert found.under_way_kept > 0


# -- torn writes


def kept_of(disk: Disk, changes: Iterable[Entry]) -> Files:
    """What the disk holds if these of the unsynced changes reached it."""
    files = {name: bytearray(content) for name, content in disk.files.items()}
    for change in changes:
        apply_change(files, change)
    return files


def torn(change: Entry) -> Iterator[Entry]:
    """A write cut at each border of a sector: its head, and its tail."""
    if change[0] == "write":
        kind, name, offset, data = change
        for border in range(SECTOR, len(data), SECTOR):
            yield kind, name, offset, data[:border]
            yield kind, name, offset + border, data[border:]


def torn_states(disk: Disk, chance: random.Random, subsets: int) -> Iterator[Files]:
    """The last unsynced write torn in all ways; then subsets of the unsynced: all of them, or as many as are asked for,
    with another one torn."""
    pending = disk.pending
    for part in torn(pending[-1]):
        yield kept_of(disk, [*pending[:-1], part])
    masks: Iterable[int] = range(1 << len(pending)) if 1 << len(pending) <= subsets else range(subsets)
    for mask in masks:
        mask = mask if 1 << len(pending) <= subsets else chance.getrandbits(len(pending))
        kept = [change for bit, change in enumerate(pending) if mask >> bit & 1]
        if kept:
            index = chance.randrange(len(kept))
            parts = list(torn(kept[index]))
            kept[index] = chance.choice(parts) if parts else kept[index]
        yield kept_of(disk, kept)


def test_torn_writes(home: Path, lives: Callable[[str], Life], monkeypatch: pytest.MonkeyPatch) -> None:
    """The unsynced writes reach the disk in any part, cut at any sector: no promise is broken."""
    reboot(monkeypatch)
    life, found, chance = lives("power"), Sweep(), random.Random(13)
    for number, point in enumerate(points(life)):
        if point.disk.pending and number % (2 if IS_FULL else 19) == 0:
            for files in torn_states(point.disk, chance, 64 if IS_FULL else 16):
                check_state(home, files, life, point.promised, found)
    print(found)
    assert found.lost == found.told_for_nothing == 0
    assert found.under_way_kept > 0
    assert found.states > 500
