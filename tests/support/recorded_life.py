"""A journal's life with every write to the disk recorded, and the check of what a power cut may have left of it."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import proof
import pytest
from power import DIRECTORY, Entry, Files, Life, Snapshot, Sweep

from taskq.engines.embedded.journal import database as database_module
from taskq.engines.embedded.journal import files as files_module
from taskq.engines.embedded.journal import schema as schema_module
from taskq.engines.embedded.journal import wal as wal_module
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.model.info.counts import CountsRow
from taskq.model.job import JobRow, new_job_ids
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, Rescheduled, StoredState

SPECS = (Spec("app.work", "mail", 3, None, 3), Spec("app.work", "images", 0, 1.5, 2))


class _File(apsw.VFSFile):
    """A file whose changes are written down."""

    def __init__(self, log: list[Entry], name: Any, flags: list[int]) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = Path(path).name if path else None
        self._log = log
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._name:
            self._log.append(("write", self._name, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        if self._name:
            self._log.append(("truncate", self._name, size))
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        if self._name:
            self._log.append(("sync", self._name))
        super().xSync(flags)


class Recorder(apsw.VFS):
    """The system's files, with what is done to them written down."""

    def __init__(self, log: list[Entry]) -> None:
        self._log = log
        super().__init__("recorder", "")

    def xOpen(self, name: Any, flags: list[int]) -> _File:
        return _File(self._log, name, flags)

    def xDelete(self, path: str, sync_directory: bool) -> None:
        self._log.append(("delete", Path(path).name, bool(sync_directory)))
        super().xDelete(path, sync_directory)


def live_once(path: Path, durability: str, commits: int) -> Life:
    """A scripted life: created, used, closed, opened again, used, and then the power goes."""
    life = Life()
    recorder = Recorder(life.log)
    chance = random.Random(7)
    live: list[JobRow] = []
    with pytest.MonkeyPatch.context() as patch, own_files_in(life.log, patch):
        patch.setattr(schema_module, "WAL_PAGES", 40)  # so that the WAL is folded in and used again, many times
        patch.setattr(schema_module, "_WAL_KEPT_BYTES", 32 * 1024)
        patch.setattr(wal_module, "AHEAD_FRAMES", 8)
        patch.setattr(wal_module, "LEFT_FRAMES", 2)
        store = SQLiteStore(path, durability, vfs="recorder")
        life.acknowledge(store)
        for turn in range(commits):
            if turn == commits * 2 // 3:
                store.close()
                store = SQLiteStore(path, durability, vfs="recorder")
            if turn % 5:
                store.fold_log()  # else a commit does it in the end
            _work(store, life, live, turn, chance)
            store.commit()
            life.acknowledge(store)
        abandon(store)
    recorder.unregister()
    return life


def abandon(store: SQLiteStore) -> None:
    """Lets go of the files without a clean end."""
    store._db.close()
    store._wal.close()
    store._files.close()


@contextmanager
def own_files_in(log: list[Entry], patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Writes down what the store does to files by itself: the marker, the high-water file, and space in the log."""
    write_durably, pwrite, fsync = files_module.write_durably, os.pwrite, os.fsync

    def write(path: Path, data: bytes) -> None:
        log.append(("write", path.name, 0, data))
        write_durably(path, data)

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        log.append(("sync", DIRECTORY if is_directory else name_of(descriptor)))

    def write_at(descriptor: int, data: bytes, offset: int) -> int:
        log.append(("write", name_of(descriptor), offset, data))  # of these SQLite syncs the write-ahead log
        return pwrite(descriptor, data, offset)

    patch.setattr(files_module, "write_durably", write)
    patch.setattr(os, "pwrite", write_at)
    patch.setattr(os, "fsync", sync)
    yield


def name_of(descriptor: int) -> str:
    """The name of an open file, without its directory."""
    return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name


def _work(store: SQLiteStore, life: Life, live: list[JobRow], turn: int, chance: random.Random) -> None:
    """What one tick of a broker brings: jobs, ends, retries, and now and then jobs that come due or are pruned."""
    if turn % 7 != 6:
        ids = list(new_job_ids(chance.randint(1, 5)))
        life.ids += ids
        live += store.submit(chance.choice(SPECS), ids, [chance.randbytes(chance.choice((0, 40, 2_500))) for _ in ids])
    chance.shuffle(live)
    ended = [live.pop() for _ in range(min(len(live), chance.randint(0, 4)))]
    retried = [live.pop() for _ in range(min(len(live), chance.randint(0, 2)))]
    for row in ended + retried:
        row.attempts += 1
        row.crashes += chance.random() < 0.2
    kinds = (StoredState.SUCCEEDED, StoredState.SUCCEEDED, StoredState.FAILED, StoredState.CANCELLED)
    outcomes = [chance.randbytes(chance.choice((5, 300))) for _ in ended + retried]
    store.settle(
        [(row, chance.choice(kinds), outcome) for row, outcome in zip(ended, outcomes, strict=False)],
        [
            Rescheduled(row, chance.choice((None, turn + 2.5)), outcome, row.attempts)
            for row, outcome in zip(retried, outcomes[len(ended) :], strict=True)
        ],
        1e9 + turn,
    )
    store.totals.retried += len(retried)
    store.keep_counts([CountsRow("t", "q", turn % 5, None if turn % 9 == 8 else b"%d" % turn)])
    if turn % 6 == 5:
        store.pause(["mail"], turn % 12 == 5)
    if turn % 4 == 3:
        live += store.lease_due(float(turn), 10)
    if turn % 5 == 4:
        life.pruned += store.prune(0.0, 10, 8)


def check_state(home: Path, files: Files, life: Life, promised: int, found: Sweep) -> None:
    for leftover in home.iterdir():
        leftover.unlink()
    for name, content in files.items():
        (home / name).write_bytes(content)
    found.states += 1
    proof.count("crash states")
    store = SQLiteStore(home / "journal.db", "memory")  # how this one syncs does not matter
    try:
        snapshot = Snapshot.of(store, life.ids)
        told = any(event == "store.damaged" for event, _ in store.findings)
        check_consistency(store, snapshot)
    finally:
        abandon(store)
    if promised < 0:
        found.before_the_first_promise += 1
        assert snapshot.jobs == {}
    elif snapshot == life.snapshots[promised]:
        found.told_for_nothing += told
    elif promised + 1 < len(life.snapshots) and snapshot == life.snapshots[promised + 1]:
        found.under_way_kept += 1
        found.told_for_nothing += told
    else:
        assert snapshot in life.snapshots[:promised], "not even an earlier state"
        found.lost += 1
        found.lost_and_told += told


def check_consistency(store: SQLiteStore, snapshot: Snapshot) -> None:
    """Every job that was ever enqueued waits, has ended, or was pruned; totals agree with the rows."""
    totals = snapshot.totals
    kept = [job[5] for job in snapshot.jobs.values()]
    assert store.kept == sum(state >= FIRST_FINAL and state != StoredState.FAILED for state in kept)
    ended = totals["succeeded"] + totals["failed"] + totals["cancelled"]
    assert totals["enqueued"] - ended == sum(state < FIRST_FINAL for state in kept)
    assert totals["failed"] == kept.count(StoredState.FAILED)
    assert sum(sum(store.counts(state).values()) for state in StoredState) == len(kept)


def reboot(patch: pytest.MonkeyPatch) -> None:
    """After a reboot the store reads all of its journal when it opens it."""
    patch.setattr(database_module, "boot_id", lambda: "the boot after the power came back")
