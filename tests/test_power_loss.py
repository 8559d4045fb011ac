"""Power loss: whatever of the unsynced writes a disk kept, no acknowledged job and no acknowledged outcome is missing.

An SQLite VFS records every write, sync, truncation and removal of our own store's life. Then, for every point of it, what
the disk may have held is rebuilt (none, a random part, torn, or all of the writes since each file's last sync) and opened
again with the same store.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from taskq.errors import JournalError
from taskq.model import JobRow, Spec, new_job_ids
from taskq.outcome import pack_success
from taskq.store import FIRST_FINAL, Kept, Rescheduled
from taskq.store.sqlite import SQLiteStore

SPEC = Spec("task")
COMMITS = 60
VARIANTS = ("none", "part", "torn", "all")
SECTOR = 512


class _RecordingFile(apsw.VFSFile):
    def __init__(self, log: list[tuple[Any, ...]], name: Any, flags: list[int]) -> None:
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


class _RecordingVFS(apsw.VFS):
    def __init__(self, log: list[tuple[Any, ...]]) -> None:
        self.name = f"recording-{id(log)}"
        self._log = log
        super().__init__(self.name, "")

    def xOpen(self, name: Any, flags: list[int]) -> _RecordingFile:
        return _RecordingFile(self._log, name, flags)

    def xDelete(self, path: str, sync_directory: bool) -> None:
        self._log.append(("delete", Path(path).name))
        super().xDelete(path, sync_directory)


Acknowledged = dict[bytes, tuple[Kept, int, bytes | None]]  # by id: state, attempts, outcome


def _life(directory: Path, durability: str) -> tuple[list[tuple[Any, ...]], Path]:
    """A scripted life of a store; what is acknowledged stands between the writes that made it durable."""
    log: list[tuple[Any, ...]] = []
    vfs = _RecordingVFS(log)
    path = directory / "journal.db"
    store = SQLiteStore(path, durability, vfs=vfs.name)
    chance = random.Random(7)
    known: Acknowledged = {}
    live: list[JobRow] = []
    log.append(("acknowledged", {}))
    for turn in range(COMMITS):
        ids = list(new_job_ids(chance.randint(1, 5)))
        payloads = [chance.randbytes(chance.choice((10, 200, 9_000))) for _ in ids]
        live += store.submit(SPEC, ids, payloads)
        known.update({id: (Kept.QUEUED, 0, None) for id in ids})
        ended = [live.pop(chance.randrange(len(live))) for _ in range(min(len(live), chance.randint(0, 4)))]
        outcome = pack_success(1.0, float(turn), None)
        for row in ended:
            row.attempts += 1
        kinds = [chance.choice((Kept.SUCCEEDED, Kept.FAILED)) for _ in ended]
        retried = [live.pop()] if live and turn % 3 == 0 else []
        for row in retried:
            row.attempts += 1
        store.settle(
            [(row, kind, outcome) for row, kind in zip(ended, kinds, strict=True)],
            [Rescheduled(row, 4e9, outcome) for row in retried],
            100.0 + turn,
        )
        store.commit()
        known.update({row.id: (kind, row.attempts, outcome) for row, kind in zip(ended, kinds, strict=True)})
        known.update({row.id: (Kept.SCHEDULED, row.attempts, outcome) for row in retried})
        log.append(("acknowledged", dict(known)))
        if turn % 20 == 19:
            store._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    del store
    vfs.unregister()
    return log, path


def _after_power_loss(
    log: list[tuple[Any, ...]], until: int, variant: str, chance: random.Random
) -> tuple[dict[str, bytearray], Acknowledged | None]:
    """What the disk holds if the power goes before entry `until`, and what had been acknowledged."""
    files: dict[str, bytearray] = {}
    pending: dict[str, list[tuple[Any, ...]]] = {}
    acknowledged: Acknowledged | None = None
    for entry in log[:until]:
        match entry:
            case ("acknowledged", known):
                acknowledged = known
            case ("sync", name):
                files.setdefault(name, bytearray())
                for change in pending.pop(name, []):
                    _apply(files, change)
            case ("delete", name):
                files.pop(name, None)
                pending.pop(name, None)
            case (_, name, *_):
                pending.setdefault(name, []).append(entry)
    for changes in pending.values():
        for change in changes:
            if variant == "all" or (variant in ("part", "torn") and chance.random() < 0.5):
                _apply(files, _torn(change, chance) if variant == "torn" else change)
    return files, acknowledged


def _apply(files: dict[str, bytearray], change: tuple[Any, ...]) -> None:
    kind, name, position, *data = change
    content = files.setdefault(name, bytearray())
    if kind == "truncate":
        del content[position:]
        return
    if len(content) < position:
        content.extend(bytes(position - len(content)))
    content[position : position + len(data[0])] = data[0]


def _torn(change: tuple[Any, ...], chance: random.Random) -> tuple[Any, ...]:
    if change[0] != "write" or len(change[3]) <= SECTOR:
        return change
    kind, name, position, data = change
    return kind, name, position, data[: SECTOR * chance.randint(1, len(data) // SECTOR)]


def _states(log: list[tuple[Any, ...]]) -> Iterator[tuple[int, str]]:
    for until in range(1, len(log) + 1):
        for variant in VARIANTS:
            yield until, variant


def _missing(directory: Path, files: dict[str, bytearray], acknowledged: Acknowledged) -> int:
    """Opens what the disk held; returns how many acknowledged jobs are not as acknowledged."""
    for leftover in directory.iterdir():
        leftover.unlink()
    for name, content in files.items():
        if not name.endswith("-shm"):  # memory shared by processes: it is never read after a crash
            (directory / name).write_bytes(content)
    store = SQLiteStore(directory / "journal.db", durability="memory")  # to open it again needs no syncs
    wrong = 0
    for job_id, wanted in acknowledged.items():
        stored = store.read(job_id)
        if stored is None or (stored.kept, stored.row.attempts, stored.outcome) != wanted:
            # a job that was settled after its last acknowledgement may be further, never behind
            wrong += stored is None or stored.kept < wanted[0] or wanted[0] >= FIRST_FINAL
    totals = store.totals
    states = [store.counts(kept) for kept in Kept]
    assert totals.enqueued == sum(sum(counts.values()) for counts in states)
    assert totals.succeeded == sum(store.counts(Kept.SUCCEEDED).values())
    store.close()
    return wrong


def _sweep(tmp_path: Path, durability: str, every: int) -> tuple[int, int]:
    life, disk = tmp_path / "life", tmp_path / "disk"
    life.mkdir()
    disk.mkdir()
    log, _ = _life(life, durability)
    states = losses = 0
    for number, (until, variant) in enumerate(_states(log)):
        if number % every:
            continue
        files, acknowledged = _after_power_loss(log, until, variant, random.Random(number))
        if acknowledged is None:
            continue  # the journal was being made: nothing was promised yet
        states += 1
        losses += _missing(disk, files, acknowledged) > 0
    shutil.rmtree(life)
    return states, losses


def test_power_loss_takes_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """With the default durability no state of the disk lacks an acknowledged job or outcome."""
    states, losses = _sweep(tmp_path, "power", every=3)
    print(f"{states} states of the disk, {losses} with a loss")
    assert states >= 1_500
    assert losses == 0


def test_a_weaker_durability_does_lose(tmp_path: Path) -> None:
    """Without the sync of each commit the same sweep finds losses, so it is able to find them."""
    _, losses = _sweep(tmp_path, "os", every=5)
    assert losses > 0


def test_a_journal_that_vanished_is_an_error(tmp_path: Path) -> None:
    """A journal that was made and is gone is told, and not silently begun anew."""
    SQLiteStore(tmp_path / "journal.db").close()
    (tmp_path / "journal.db").unlink()
    with pytest.raises(JournalError, match=r"queue\.id says that it held jobs"):
        SQLiteStore(tmp_path / "journal.db")
