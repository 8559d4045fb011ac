"""A directory that an older taskq has left: a look leaves it as it is, the next fleet upgrades it and runs its jobs."""

from __future__ import annotations

import gzip
import json
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from apps import jobs, upgraded
from fleet import APPS, Fleet, running, use
from terminal import Here, here

from taskq import JobState
from taskq.model.exits import Exit
from taskq.system.directory import Directory

pytestmark = pytest.mark.not_on_postgres("a journal of an older version")

__all__ = ["here"]  # a fixture

DATA = Path(__file__).parents[1] / "engines" / "data"
UPGRADED = f"{APPS / 'upgraded.py'}:q"


@pytest.fixture(params=[1, 2, 3])
def version(request: pytest.FixtureRequest) -> int:
    """Of the journal."""
    return int(request.param)


@pytest.fixture
def old(home: Path, version: int) -> Directory:
    """A directory with a journal of a version, and jobs of this one in the spool."""
    use(jobs.q, home)
    use(upgraded.q, home)
    directory = Directory(home).create()
    directory.journal.write_bytes(gzip.decompress((DATA / f"journal_{version}.db.gz").read_bytes()))
    return directory


def content(directory: Directory) -> dict[str, bytes]:
    """What an older fleet would find."""
    kept = [directory.journal, *directory.path.glob("journal.*"), *directory.spool.iterdir()]
    return {path.name: path.read_bytes() for path in kept}


def version_of(directory: Directory) -> int:
    """The version of a journal that nobody has open."""
    with closing(apsw.Connection(str(directory.journal))) as db:
        [(version,)] = db.execute("PRAGMA user_version").fetchall()
    return int(version)


def test_a_look_does_not_upgrade(old: Directory, version: int, here: Here) -> None:
    """It shows all jobs, those in the spool too, and an older taskq finds everything as it was. A change upgrades."""
    home = old.path
    spooled = jobs.add.enqueue(1)
    before = content(old)
    listed = json.loads(here(home, "jobs", "--json").stdout)
    assert len(listed) == (9 if version == 1 else 17) + 1
    assert listed[0]["id"] == spooled.id
    failed = [job["id"] for job in listed if job["state"] == "failed"]
    told = here(home, "job", failed[0])
    assert told.returncode == Exit.OK, told
    assert "Error" in told.stdout or "Crashed" in told.stdout
    status = json.loads(here(home, "status", "--json").stdout)
    assert (status["broker"]["directory"], status["totals"]["failed"]) == (str(home), 2)
    assert here(home, "schedule").returncode == Exit.OK
    assert content(old) == before
    assert here(home, "retry", failed[0]).returncode == Exit.OK
    assert version_of(old) > version
    assert jobs.q.job(failed[0]).state() is JobState.QUEUED


def test_a_look_at_what_a_killed_fleet_left(old: Directory, here: Here) -> None:
    """Its last commits are only in the write-ahead log, which is looked at, and left."""
    with closing(apsw.Connection(str(old.journal))) as db:
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        db.execute("UPDATE totals SET failed = failed + 40")
    assert Path(f"{old.journal}-wal").stat().st_size > 0
    before = content(old)
    assert json.loads(here(old.path, "status", "--json").stdout)["totals"]["failed"] == 42
    assert content(old) == before


@pytest.mark.parametrize("version", [3])
def test_pending_jobs_are_run_after_an_upgrade(old: Directory, version: int) -> None:
    """Those that were queued, scheduled, or waiting for a parent; those that failed can be retried."""
    with closing(apsw.Connection(str(old.journal))) as db:  # the time of the scheduled has come
        db.execute("UPDATE jobs SET due_at = 1 WHERE state = 1")
        db.execute("UPDATE jobs SET expires_at = NULL")
    q = upgraded.q
    pending = {info.id: info.state for info in q.jobs(limit=100) if not info.finished_at}
    assert sorted(pending.values()) == ["queued"] * 7 + ["scheduled"] * 2 + ["waiting"]
    with running(Fleet(old.path, UPGRADED, consumers=1)):
        assert q.resume("later") == ["later"]
        for job_id in pending:
            assert q.job(job_id).result(20), job_id
        assert q.retry_failed() == 2
        for info in q.jobs(limit=100):
            assert q.job(info.id).wait(20)
        assert {info.state for info in q.jobs(limit=100)} == {JobState.SUCCEEDED, JobState.CANCELLED}
    assert version_of(old) > version
