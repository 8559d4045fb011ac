"""The write-ahead log of the journal: space that is written in advance, and its bounds. That no power cut and no failing
call makes it lose a job is for tests/faults."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from taskq.engines.embedded.journal import schema as schema_module
from taskq.engines.embedded.journal import wal as wal_module
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.model.job import new_job_ids
from taskq.model.spec import Spec

SPEC = Spec("work")
FRAME_BYTES = 24 + 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal is."""
    return tmp_path / "journal.db"


def wal_of(path: Path) -> Path:
    """The log of a journal."""
    return Path(f"{path}-wal")


def sizes_after_commits(store: SQLiteStore, path: Path, commits: int) -> Iterator[int]:
    """Submits jobs one by one; the size of the log after each."""
    for _ in range(commits):
        store.submit(SPEC, list(new_job_ids(1)), [b"payload"])
        store.commit()
        yield wal_of(path).stat().st_size


def used_bytes(wal: Path) -> int:
    """Up to its last frame. A page may end with zeros, but its frame begins with a checksum."""
    return len(wal.read_bytes().rstrip(b"\0"))


def test_commits_of_one_job_rarely_make_the_log_longer(path: Path) -> None:
    """A sync that records a new length takes twice as long."""
    with closing(SQLiteStore(path)) as store:
        sizes = [size for size in sizes_after_commits(store, path, 600) if store.fold_log() or size]
        assert used_bytes(wal_of(path)) > 1_000 * FRAME_BYTES, "each commit writes two pages"
    assert len(set(sizes)) < 20
    assert len(set(sizes[20:270])) <= 4


def test_the_log_has_a_bound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is folded into the journal between two commits and used again, and zeros do not make it longer than that
    takes."""
    monkeypatch.setattr(schema_module, "WAL_PAGES", 300)
    with closing(SQLiteStore(path)) as store:
        sizes = [size for size in sizes_after_commits(store, path, 1_000) if store.fold_log() or size]
        assert max(sizes) <= 32 + (300 + wal_module.LEFT_FRAMES) * FRAME_BYTES
        assert len(set(sizes[200:])) == 1, "from the first time that it is used again its size stays"
        assert store.totals.enqueued == 1_000
    with closing(SQLiteStore(path)) as store:
        assert store.totals.enqueued == 1_000


def test_commits_fold_a_log_that_nobody_else_folds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it has a bound whoever commits."""
    monkeypatch.setattr(schema_module, "WAL_PAGES", 100)
    with closing(SQLiteStore(path)) as store:
        sizes = list(sizes_after_commits(store, path, 1_000))
        assert max(sizes) <= 32 + (wal_module.FOLD_AT_ONCE * 100 + wal_module.LEFT_FRAMES) * FRAME_BYTES


def test_a_log_that_cannot_be_folded_is_kept_and_tried_again_after_each_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails in that moment: everything that was committed is in the log."""
    monkeypatch.setattr(schema_module, "WAL_PAGES", 20)
    monkeypatch.setattr(wal_module, "FOLD_AT_ONCE", 1_000)
    with closing(SQLiteStore(path)) as store:
        with monkeypatch.context() as patch:
            patch.setattr(wal_module, "_PASSIVE", -1)  # SQLite refuses to do that
            tries = [store.fold_log() for _ in sizes_after_commits(store, path, 50)]
            assert tries[-20:] == [True] * 20
            assert not store.fold_log(), "once after a commit"
        used = used_bytes(wal_of(path))
        assert used > 50 * FRAME_BYTES
        list(sizes_after_commits(store, path, 1))
        assert store.fold_log()
        list(sizes_after_commits(store, path, 1))
        assert not store.fold_log(), "it begins again"
        assert store.totals.enqueued == 52


def test_zeros_behind_the_last_frame_are_no_damage(path: Path, tmp_path: Path) -> None:
    """After a kill everything is there, and the log is written on from its last frame."""
    home = tmp_path / "after"
    with closing(SQLiteStore(path)) as store:
        list(sizes_after_commits(store, path, 30))
        shutil.copytree(tmp_path, home)
    copy = home / path.name
    size, used = wal_of(copy).stat().st_size, used_bytes(wal_of(copy))
    assert size - used > 100 * FRAME_BYTES
    with closing(SQLiteStore(copy)) as store:
        assert store.totals.enqueued == 30
        list(sizes_after_commits(store, copy, 30))
        assert used < used_bytes(wal_of(copy)) < size
        shutil.copytree(home, tmp_path / "again")
    with closing(SQLiteStore(tmp_path / "again" / path.name)) as store:
        assert store.totals.enqueued == 60


@pytest.mark.parametrize("durability", ["os", "memory"])
def test_nothing_is_written_in_advance_where_commits_are_not_synced(path: Path, durability: str) -> None:
    """It would be of no use."""
    with closing(SQLiteStore(path, durability)) as store:
        *_, size = sizes_after_commits(store, path, 50)
        assert size - used_bytes(wal_of(path)) < FRAME_BYTES


def test_who_only_looks_writes_nothing_in_advance(path: Path) -> None:
    """A store that is opened and closed."""
    with closing(SQLiteStore(path)) as store:
        list(sizes_after_commits(store, path, 50))
    with closing(SQLiteStore(path)) as store:
        store.note_machine("another", 1.0)
        store.commit()
        assert wal_of(path).stat().st_size < 20 * FRAME_BYTES


def test_little_free_space_is_left_to_the_jobs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small or nearly full disk the log grows as it is used."""
    monkeypatch.setattr(wal_module, "free_bytes", lambda _: 32 * 1024 * 1024)
    with closing(SQLiteStore(path)) as store:
        *_, size = sizes_after_commits(store, path, 50)
        assert size - used_bytes(wal_of(path)) < FRAME_BYTES


@pytest.mark.parametrize("call", ["pwrite", "fstat"])
def test_an_error_while_space_is_written_costs_nothing(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The disk became full in the meantime: the commit is done, and the next ones need no such space."""
    failed = []
    original = getattr(os, call)

    def fail(descriptor: int, *args: Any) -> Any:
        if os.path.samestat(os.stat(f"/proc/self/fd/{descriptor}"), os.stat(wal_of(path))):
            failed.append(call)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(descriptor, *args)

    with closing(SQLiteStore(path)) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            list(sizes_after_commits(store, path, 50))
        assert failed == [call], "it is not tried with each commit"
        assert store.totals.enqueued == 50
