"""What a client writes to the spool: one sync for each job, in order, and nothing that was acknowledged is ever lost,
whoever dies in the middle of it."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from apps import jobs
from asked import take_spooled
from deaf import Deaf
from fleet import APPS, Fleet, running

from taskq.broker.core.core import Core
from taskq.client.transport import absence
from taskq.engines.embedded.committer import Committer
from taskq.engines.embedded.journal.memory import MemoryStore
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.embedded.spooled import SpooledJobs
from taskq.engines.payloads import Payloads
from taskq.model.errors import StoreFull
from taskq.protocol import spool, spooler
from taskq.system.directory import Directory

pytestmark = pytest.mark.not_on_postgres("a database has no spool")

#: Enqueues until it is killed, or as often as it is told, and prints each id once the job is durable.
WRITER = """
import sys
from pathlib import Path
from apps import jobs
from taskq.system.directory import Directory
jobs.q.use_directory(Directory(Path(sys.argv[2])))
for number in range(int(sys.argv[1])):
    print(jobs.echo.enqueue(number).id, flush=True)
"""


def write(home: Path, jobs_to_write: int = 1_000_000) -> subprocess.Popen[str]:
    """Starts a client of a directory without a fleet."""
    arguments = [sys.executable, "-c", WRITER, str(jobs_to_write), str(home)]
    return subprocess.Popen(arguments, cwd=APPS.parent, stdout=subprocess.PIPE, text=True)


def spooled_ids(home: Path) -> list[str]:
    """The jobs in the spool, in the order in which they will be taken in."""
    folder = home / "spool"
    frames = [frame for file in spool.spooled(folder) for frame in file.frames]
    return [job_id.hex() for frame in frames for submission in [_read(frame)] for job_id in submission]


def _read(frame: bytes) -> list[bytes]:
    from taskq.engines.embedded.spooled import _submission

    return list(_submission(frame).ids)


@pytest.fixture
def directory(home: Path) -> Directory:
    return Directory(home).create()


@pytest.fixture
def store(directory: Directory) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(directory.journal)) as store:
        yield store


def committer_of(store: SQLiteStore, directory: Directory) -> Committer:
    deaf = cast(Any, Deaf())
    return Committer(store, Core(), deaf, deaf, directory, deaf)


# -- what it costs


def test_a_job_takes_one_sync_and_a_refused_client_does_not_knock_again_at_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, refused = os.fsync, absence.Absence.refused
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("sync") or fsync(descriptor))  # type: ignore[func-returns-value]
    sync_data = spooler.sync_data
    monkeypatch.setattr(spooler, "sync_data", lambda descriptor: calls.append("sync") or sync_data(descriptor))  # type: ignore[func-returns-value]
    monkeypatch.setattr(absence.Absence, "refused", lambda self: calls.append("refused") or refused(self))  # type: ignore[func-returns-value]
    jobs.add.enqueue(0)
    jobs.add.enqueue(1)
    calls.clear()
    began = time.monotonic()
    for number in range(100):
        jobs.add.enqueue(number)
    most = (time.monotonic() - began) / absence._REFUSED_S + 1
    assert calls.count("sync") == 100
    assert calls.count("refused") <= most
    assert len(os.listdir(home / "spool")) == 2


def test_a_file_is_no_larger_than_one_commit_takes_in(home: Path) -> None:
    made = [jobs.echo.enqueue("x" * 100).id for _ in range(300)]
    assert spooled_ids(home) == made
    files = spool.files(home / "spool")
    assert 2 < len(files) < 10
    assert {path.stat().st_size for path in files if path.suffix == ".frames"} == {spooler._SERIES_BYTES}


# -- in order


def test_small_and_large_jobs_and_batches_stay_in_order(home: Path) -> None:
    made: list[str] = []
    for number in range(60):
        made.append(jobs.echo.enqueue(number).id)
        if number % 7 == 0:
            made.append(jobs.echo.enqueue("x" * 20_000).id)
        if number % 11 == 0:
            made += [job.id for job in jobs.echo.enqueue_many((n,) for n in range(3))]
            made += [job.id for job in jobs.echo.enqueue_many((n,) for n in range(1_500))]
    assert spooled_ids(home) == made


def test_a_signal_handler_and_a_forked_child_write_too(home: Path) -> None:
    made: list[str] = []

    def enqueue_again(*_: object) -> None:
        made.append(jobs.add.enqueue(-1).id)
        if len(made) < 20:
            signal.setitimer(signal.ITIMER_REAL, 0.001)

    handler = signal.signal(signal.SIGALRM, enqueue_again)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    own: list[str] = []
    while len(made) < 20:
        own.append(jobs.add.enqueue(len(own)).id)
    signal.signal(signal.SIGALRM, handler)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, "".join(jobs.add.enqueue(number).id for number in range(20)).encode())
        finally:
            os._exit(0)
    own += [jobs.add.enqueue(number).id for number in range(20)]
    assert os.waitpid(child, 0)[1] == 0
    told = os.read(reading, 20 * 32).decode()
    os.close(reading)
    os.close(writing)
    forked = [told[place : place + 32] for place in range(0, len(told), 32)]
    found = spooled_ids(home)
    assert sorted(found) == sorted([*made, *own, *forked])
    for ids in (own, forked):
        assert [job_id for job_id in found if job_id in set(ids)] == ids


# -- whoever dies


def test_a_record_that_ends_at_any_byte_is_left_out_and_those_before_it_are_not() -> None:
    records = [spool.record_of((length - 4).to_bytes(4, "big") + b"x" * (length - 4)) for length in (100, 60, 40)]
    whole = b"".join(records)
    before = len(records[0]) + len(records[1])
    for end in range(before, len(whole)):
        found = spool.split_records(whole[:end].ljust(1_000, b"\0"))
        assert found == ([record[4:] for record in records[:2]], False)
    for end in range(len(records[0])):
        assert spool.split_records(records[0][:end]) == ([], False), "the file was just begun"
    assert len(spool.split_records(whole.ljust(1_000, b"\0"))[0]) == 3
    for place in range(len(records[0]), before):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        frames, is_damaged = spool.split_records(bytes(flipped))
        assert (len(frames), is_damaged) == (1, True), "what follows a damaged record is not forgotten"


@pytest.mark.parametrize("left", range(12))
def test_a_file_that_is_full_to_its_last_bytes_is_not_damaged(left: int) -> None:
    records = [spool.record_of((length - 4).to_bytes(4, "big") + b"x" * (length - 4)) for length in (100, 60)]
    found, is_damaged = spool.split_records(b"".join(records) + bytes(left))
    assert (found, is_damaged) == ([record[4:] for record in records], False)


def test_clients_that_are_killed_lose_nothing_that_they_were_told_is_safe(home: Path, store: SQLiteStore) -> None:
    told: list[list[str]] = []
    for life in range(6):
        writer = write(home)
        assert writer.stdout is not None
        ids = [writer.stdout.readline().strip() for _ in range(1 + 40 * life)]
        writer.kill()
        ids += writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        told.append([job_id for job_id in ids if len(job_id) == 32])
    assert [len(ids) > 40 * life for life, ids in enumerate(told)] == [True] * 6
    found = spooled_ids(home)
    assert len(set(found)) == len(found) <= sum(map(len, told)) + len(told), "one more each, at the most"
    assert [job_id for job_id in found if any(job_id in ids for ids in told)] == list(itertools.chain(*told))
    committer = committer_of(store, Directory(home))
    while committer.has_more_spooled:
        take_spooled(committer)
    assert [job_id.hex() for job_id in store.states([bytes.fromhex(job_id) for job_id in found])] == found
    assert os.listdir(home / "spool") == []


def test_what_is_taken_in_while_clients_append_is_taken_in_once(home: Path, store: SQLiteStore) -> None:
    """The broker dies again and again: after it made files read-only, after its commit, and after it removed some."""
    writers = [write(home, 400) for _ in range(2)]
    committer, looks = committer_of(store, Directory(home)), 0
    while any(writer.poll() is None for writer in writers) or spool.has_files(home / "spool"):
        looks += 1
        if looks % 3 == 0:
            dying = SpooledJobs(home / "spool", cast(Any, Deaf()), Payloads(Directory(home), MemoryStore()))
            dying.read()
        if looks % 3 == 1:
            committer = committer_of(store, Directory(home))
            committer._spooled.committed = lambda _files, _reasons: None  # type: ignore[method-assign]
        take_spooled(committer)
        if looks % 3 == 1:
            committer = committer_of(store, Directory(home))
    for writer in writers:
        assert writer.wait() == 0
        assert writer.stdout is not None
        ids = [bytes.fromhex(line.strip()) for line in writer.stdout]
        writer.stdout.close()
        assert len(ids) == 400
        assert list(store.states(ids)) == ids
    assert store.totals.as_dict()["enqueued"] == 800
    assert looks > 10


def test_what_a_client_is_appending_to_is_left_for_the_next_look(home: Path, store: SQLiteStore) -> None:
    jobs.add.enqueue(1)
    jobs.add.enqueue(2)
    [appended] = (home / "spool").glob("*.frames")
    locking = "import os, sys, time; from taskq.protocol.spool import lock_series\n"
    locking += "print(lock_series(os.open(sys.argv[1], os.O_WRONLY)), flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", locking, appended], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    committer = committer_of(store, Directory(home))
    take_spooled(committer)
    take_spooled(committer)
    assert os.listdir(home / "spool") == [appended.name]
    assert not committer.has_more_spooled, "the loop does not run in circles for it"
    other.kill()
    other.wait()
    other.stdout.close()
    take_spooled(committer)
    assert os.listdir(home / "spool") == []
    assert store.totals.as_dict()["enqueued"] == 2


def test_a_broker_that_looks_in_the_middle_of_a_write_does_not_take_the_file_away(
    home: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks before the first byte of each frame is written. Locks do not hold within one process: it is as if
    another thread of the client had just read the file, which ends its lock."""
    ids = [jobs.add.enqueue(0).id]
    committer = committer_of(store, Directory(home))
    write = spooler._write

    def write_late(descriptor: int, data: bytes, position: int) -> None:
        take_spooled(committer)
        write(descriptor, data, position)

    monkeypatch.setattr(spooler, "_write", write_late)
    ids += [jobs.add.enqueue(number).id for number in range(5)]
    take_spooled(committer)
    told = [bytes.fromhex(job_id) for job_id in ids]
    assert list(store.states(told)) == told
    assert os.listdir(home / "spool") == []


def test_a_directory_that_is_removed_is_made_anew(home: Path) -> None:
    before = [jobs.add.enqueue(number) for number in range(3)]
    shutil.rmtree(home)
    after = [jobs.add.enqueue(number) for number in range(3)]
    assert before
    assert spooled_ids(home) == [job.id for job in after]


def test_a_failing_disk_is_told_and_what_was_written_before_is_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [jobs.add.enqueue(number).id for number in range(3)]

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spooler, "sync_data", fail)
        patch.setattr(os, "fsync", fail)
        for _ in range(2):
            with pytest.raises(StoreFull, match="no fleet answers, and the disk of"):
                jobs.add.enqueue(7)
    made.append(jobs.add.enqueue(3).id)
    assert spooled_ids(home) == made


def test_a_damaged_file_is_set_aside_and_what_can_be_read_of_it_is_taken_in(home: Path, store: SQLiteStore) -> None:
    made = [jobs.add.enqueue(number).id for number in range(5)]
    [appended] = (home / "spool").glob("*.frames")
    content = bytearray(appended.read_bytes())
    place = content.index(bytes.fromhex(made[3]))
    content[place] ^= 1
    appended.write_bytes(content)
    committer = committer_of(store, Directory(home))
    take_spooled(committer)
    ids = [bytes.fromhex(job_id) for job_id in made]
    assert list(store.states(ids)) == ids[:3]
    assert os.listdir(home / "spool") == [f"{appended.stem}.bad"]


def test_a_fleet_that_starts_runs_them_in_order_and_once(home: Path) -> None:
    made = [jobs.add.enqueue(number) for number in range(1_000)]
    with running(Fleet(home)) as fleet:
        assert [job.result(timeout=20) for job in made] == list(range(1, 1_001))
        assert fleet.totals()["enqueued"] == 1_000
        assert os.listdir(home / "spool") == []
