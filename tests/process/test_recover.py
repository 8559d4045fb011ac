"""`taskq recover`: real damage to real journals, and kills in the middle of the recovery."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from taskq.broker.rescue import recover
from taskq.cli.rescue.recover import told_of
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.embedded.rescue.salvage import Salvaged, _frames_of
from taskq.model.attempt import pack_failure, pack_success
from taskq.model.errors import JournalError
from taskq.model.job import JobError, JobRow, new_job_ids
from taskq.model.schedule import Schedule, ScheduleRow
from taskq.model.spec import Spec
from taskq.model.stored import StoredState
from taskq.protocol.codec.encode import encode_call
from taskq.system.directory import Directory

pytestmark = pytest.mark.not_on_postgres("a journal that is damaged")

SPEC, OTHER = Spec("shop.send", "mail", retries=2), Spec("shop.resize", "images")
JOBS = 4_000
Known = dict[bytes, tuple[int, bytes]]


def filled(home: Path) -> Known:
    """Makes a journal whose broker is killed: with jobs in several states, in its file and in its write-ahead log.
    Returns the state and the arguments of each job."""
    Directory(home).create()
    made = home.with_name("made")
    Directory(made).create()
    store = SQLiteStore(made / "journal.db")
    rows: list[JobRow] = []
    for start in range(0, JOBS, 1_000):
        for spec in (SPEC, OTHER):
            ids = list(new_job_ids(500))
            rows += store.submit(spec, ids, [encode_call(each, (start, "x" * 200), {}) for each in ids])
        store.commit()
        store._wal.fold(store._db)
    known: Known = {row.id: (int(StoredState.QUEUED), row.payload) for row in rows}
    failure = pack_failure(1.0, 2.0, JobError("E", "no", "Traceback"))
    ends = [(StoredState.SUCCEEDED, pack_success(1.0, 2.0, b"r")), (StoredState.FAILED, failure)]
    ended = [(row, *ends[number % 2]) for number, row in enumerate(rows[: JOBS // 2])]
    store.settle(ended, [], 3.0)
    for row, kept, _ in ended:
        known[row.id] = int(kept), row.payload if kept is StoredState.FAILED else b""
    store.put_schedule(ScheduleRow(Schedule("nightly", SPEC, b"", every_s=60.0), 1e9, None))
    store.commit()
    for path in made.iterdir():  # as a kill leaves them
        if path.is_file():
            shutil.copyfile(path, home / path.name)
    store.close()
    return known


def check(home: Path, known: Known, found: Salvaged) -> int:
    """Each job is saved as it was, or told; none is there that was not. Returns how many were saved."""
    told = {*found.missing, *found.damaged}
    saved = untold = 0
    with closing(SQLiteStore(home / "journal.db")) as store:
        for job_id, (kept, payload) in known.items():
            job = store.read(job_id)
            if job is not None:
                assert (int(job.kept), job.row.payload) == (kept, payload)
                saved += 1
            elif job_id.hex() not in told:
                assert not found.is_index_read, "a job is lost, and nobody says so"
                untold += 1
        changed = sum(1 for told_id in found.damaged if bytes.fromhex(told_id) not in known)
        assert found.holes or untold <= changed, "its id may be among the bytes that were overwritten"
        assert saved == sum(found.states.values())
        assert sum(len(store.counts(state)) and sum(store.counts(state).values()) for state in StoredState) == saved
    return saved


def overwrite(path: Path, seed: int, pieces: int) -> None:
    """Writes random bytes over some places, behind the header."""
    chance = random.Random(seed)
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        for _ in range(pieces):
            file.seek(chance.randrange(100, size - 600))
            file.write(chance.randbytes(chance.randrange(1, 600)))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "queue"


def test_a_whole_journal_stays_as_it_is(home: Path) -> None:
    known = filled(home)
    before = (home / "journal.db").read_bytes()
    found, kept = recover(Directory(home))
    assert found is not None
    assert (found.is_whole, kept) == (True, None)
    assert (home / "journal.db").read_bytes() == before
    assert check(home, known, found) == JOBS


@pytest.mark.parametrize("seed", range(6))
def test_random_bytes(home: Path, seed: int) -> None:
    """Most jobs are saved, and the rest is told by id."""
    known = filled(home)
    overwrite(home / "journal.db", seed, 1 + seed)
    damaged = (home / "journal.db").read_bytes()
    found, kept = recover(Directory(home))
    assert found is not None
    saved = check(home, known, found)
    assert kept is None or (kept / "journal.db").read_bytes() == damaged
    assert saved >= JOBS * 0.5
    assert f"saved: {saved:,} jobs" in next(told_of(found))


def test_a_header_is_made_again(home: Path) -> None:
    known = filled(home)
    with (home / "journal.db").open("r+b") as file:
        file.write(bytes(100))
    (home / "journal.db-wal").unlink()  # it has the first page, too
    found, _ = recover(Directory(home))
    assert found is not None
    assert found.notes
    with closing(SQLiteStore(home / "journal.db")) as store:
        assert sum(1 for job_id in known if store.read(job_id) is not None) == sum(found.states.values()) > JOBS // 2


def test_a_truncated_file(home: Path) -> None:
    known = filled(home)
    path = home / "journal.db"
    (home / "journal.db-wal").unlink()
    os.truncate(path, path.stat().st_size * 3 // 4 // 4_096 * 4_096 + 1_000)
    found, _ = recover(Directory(home))
    assert found is not None
    with closing(SQLiteStore(path)) as store:
        saved = [job_id for job_id in known if store.read(job_id) is not None]
    assert len(saved) == sum(found.states.values()) > 0
    assert found.holes or found.missing


@pytest.mark.parametrize("how", ["cut", "overwritten"])
def test_a_damaged_write_ahead_log(home: Path, how: str) -> None:
    """What was committed before the damage is saved, and it is told that commits are lost."""
    known = filled(home)
    log = home / "journal.db-wal"
    size = log.stat().st_size
    if how == "cut":
        os.truncate(log, 32 + _frames_of(home / "journal.db") // 2 * (24 + 4_096))
    else:
        with log.open("r+b") as file:
            file.seek(size // 8)
            file.write(b"damaged")
    found, kept = recover(Directory(home))
    assert found is not None
    assert found.lost_frames > 0 or found.lost_changes > 0
    assert kept is not None
    with closing(SQLiteStore(home / "journal.db")) as store:
        assert all(store.read(job_id) is not None for job_id in known)


def test_what_cannot_be_recovered(home: Path) -> None:
    Directory(home).create()
    with pytest.raises(JournalError, match="no journal"):
        recover(Directory(home))
    (home / "journal.db").write_bytes(random.Random(1).randbytes(50_000))
    with pytest.raises(JournalError, match="restore it from a backup"):
        recover(Directory(home))
    assert (home / "journal.db").stat().st_size == 50_000, "it stays as it is"


KILL = """
import os, signal, sys
from pathlib import Path
from taskq.broker import rescue
from taskq.system.directory import Directory
calls = 0
def killed(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
rescue.sync_directory = killed(rescue.sync_directory)
rescue.salvage = killed(rescue.salvage)
os.link, os.unlink, os.rename = killed(os.link), killed(os.unlink), killed(os.rename)
rescue.recover(Directory(Path(sys.argv[1])))
"""


def test_a_kill_at_any_moment_of_the_recovery(home: Path, tmp_path: Path) -> None:
    """Whoever begins again ends with the same; no fleet can start on a half of it, and the old files stay."""
    known = filled(home)
    overwrite(home / "journal.db", 3, 4)
    damaged = (home / "journal.db").read_bytes()
    template = tmp_path / "template"
    shutil.copytree(home, template)
    for moment in range(1, 40):
        shutil.rmtree(home)
        shutil.copytree(template, home)
        command = [sys.executable, "-c", KILL, str(home), str(moment)]
        done = subprocess.run(command, check=False, timeout=120, capture_output=True)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        if not (home / "journal.db").exists():
            with pytest.raises(JournalError, match="missing"):
                SQLiteStore(home / "journal.db")
        found, _ = recover(Directory(home))
        copies = [path.read_bytes() for path in home.glob("damaged-*/journal.db")]
        assert damaged in copies
        if found is not None and not found.is_whole:
            check(home, known, found)
        with closing(SQLiteStore(home / "journal.db")) as store:
            assert sum(1 for job_id in known if store.read(job_id) is not None) >= JOBS // 2
    assert moment > 5
    assert not list(home.glob("journal.recovered*"))
