"""Power loss: whatever of the unsynced writes a disk kept, no acknowledged job and no acknowledged outcome is missing.

An SQLite VFS records every write, sync, truncation and removal of our own store's life, its creation, a clean end and a
second opening included. Then, for every point of it, what the disk may have held is rebuilt (none, a random part, torn
sectors, or all of the writes since each file's last sync) and opened again with the same store, as after a reboot. It
must hold exactly what was acknowledged, or that and the whole of the one commit that was under way.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from power import VARIANTS, Disk, Life, Sweep
from recorded_life import check_state, live_once, reboot

pytestmark = pytest.mark.not_on_postgres("the disk under a journal")


def sweep(home: Path, life: Life, per_point: int) -> Sweep:
    """Opens states of the disk at every point; each must be one of the snapshots, whole. All the variants of it while
    the journal is made, then so many, by the same chance in each run."""
    found = Sweep()
    disk, promised = Disk(), -1
    chance = random.Random(3)
    for entry in life.log:
        if entry[0] == "acknowledged":
            promised = entry[1]
        else:
            disk.take(entry)
        for variant in VARIANTS if promised < 0 else chance.sample(VARIANTS, per_point):
            check_state(home, disk.after_power_loss(variant, chance), life, promised, found)
    return found


@pytest.fixture
def home() -> Iterator[Path]:
    """Where what the disk held is opened again; in memory if that can be, for the sake of time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as path:
        for name in ("disk", "life"):
            (Path(path) / name).mkdir()
        yield Path(path) / "disk"


@pytest.mark.timeout(600)
def test_power_loss_takes_nothing_that_was_promised(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default durability no state of the disk lacks an acknowledged job or outcome."""
    life = live_once(home.parent / "life" / "journal.db", "power", commits=75)
    reboot(monkeypatch)
    found = sweep(home, life, per_point=1)
    print(f"{found.states} states of the disk over {len(life.log)} points: {found}")
    assert found.lost == 0
    assert found.told_for_nothing == 0
    assert found.states >= 1_500
    assert found.before_the_first_promise >= 50, "the creation of the journal is part of it"
    assert found.under_way_kept > 0
    assert life.pruned > 0
    names = {(entry[0], entry[1]) for entry in life.log}
    assert {("sync", "journal.db"), ("sync", "journal.db-wal"), ("truncate", "journal.db-wal")} <= names
    ahead = [entry for entry in life.log if entry[:2] == ("write", "journal.db-wal") and not any(entry[3])]
    assert len(ahead) >= 8, "space in the log was written in advance, also where it was cut off before"


def test_a_weaker_durability_does_lose(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the sync of each commit the same sweep finds losses, so it is able to find them. None is half a commit,
    and most are told when the store is opened."""
    life = live_once(home.parent / "life" / "journal.db", "os", commits=30)
    reboot(monkeypatch)
    found = sweep(home, life, per_point=1)
    print(f"{found.states} states of the disk: {found}")
    assert found.lost > found.states / 10
    assert found.lost_and_told > 0
