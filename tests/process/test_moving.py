"""`taskq migrate --from DIRECTORY --to URL`: a whole queue moves from a directory to a database, or nothing does."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from apps import jobs
from fleet import JOBS, Fleet, running, use, wait_until
from machines import SCHEMA, MachineFleet, use_database
from postgres import Server
from terminal import TASKQ, Here, environment, here, refused, taskq

from taskq import Job, JobState, Unique, chain
from taskq.client.options.support import POSTGRES
from taskq.model.exits import Exit

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")

__all__ = ["here"]  # a fixture
q = jobs.q


@pytest.fixture
def url(postgres: Server, database: str) -> str:
    """Where the jobs go, with the schema in it."""
    return f"{postgres.url(database)}&schema={SCHEMA}"


@pytest.fixture(autouse=True)
def at_home(home: Path) -> Iterator[None]:
    """Whatever queue a test has used last, the next one begins in its directory."""
    yield
    use(q, home)


def move(home: Path, url: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs the command."""
    return taskq(None, "migrate", "--from", str(home), "--to", url, XDG_STATE_HOME=str(home.parent / "state"), **more)


class Near(float):
    """A time: a database has no more than microseconds."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and abs(self - other) < 5e-6

    __hash__ = float.__hash__


def near(fields: Any) -> Any:
    """The same with times that are compared so."""
    if isinstance(fields, dict):
        return {name: near(value) for name, value in fields.items()}
    if isinstance(fields, list):
        return [near(value) for value in fields]
    return Near(fields) if isinstance(fields, float) else fields


def infos(*closely: Job[Any]) -> list[dict[str, Any]]:
    """What clients see of all jobs, and all that they see of some."""
    found = [asdict(info) for info in q.jobs(limit=1_000)]
    for job in closely:
        found.append(asdict(q.job(job.id).info()))
        for attempt in found[-1]["history"]:
            attempt["machine"] = None  # which a directory tells of the last attempt, and a database does not
    return list(map(near, found))


class Left:
    """What a fleet in a directory leaves behind: jobs in all states."""

    def __init__(self, home: Path, folder: Path) -> None:
        needed = folder / "needed"
        with running(Fleet(home)):
            self.done = [jobs.add.enqueue(number) for number in range(20)]
            self.large = jobs.echo.enqueue("x" * 300_000)  # its arguments and its result have files
            self.failed = jobs.need.enqueue(str(needed))
            self.items = jobs.count.enqueue(5)
            self.retried = jobs.fail_once.options(backoff=[3600]).enqueue(str(folder / "once"))
            self.after = chain(jobs.need.step(str(needed)), jobs.echo.step()).enqueue()
            self.late = jobs.add.options(delay=3600).enqueue(7)
            self.next = chain(jobs.add.options(delay=3600).step(1), jobs.add.step(1)).enqueue()
            assert self.large.result(20) == "x" * 300_000
            assert [job.result(20) for job in self.done] == [number + 1 for number in range(20)]
            assert list(self.items.items()) == list(range(5))
            assert self.failed.wait(20)
            assert self.after.wait(20)
            wait_until(lambda: self.retried.state() is JobState.SCHEDULED, "the job waits for its retry")
            q.pause("held")
            if "periodic" not in POSTGRES.unsupported:
                q.schedules.add("nightly", "add", "0 3 * * *", args=(1,))
        self.spooled = [jobs.add.options(meta={"of": "test"}).enqueue(number) for number in range(100, 110)]
        self.held = jobs.add.options(queue="held").enqueue(1)
        self.only = jobs.add.options(unique=Unique("the one")).enqueue(5)


def test_all_of_a_queue_moves(home: Path, url: str, tmp_path: Path) -> None:
    """Jobs in all states are the same there, nothing runs here again, and what waited runs there."""
    left = Left(home, tmp_path)
    closely = left.failed, left.retried, left.items
    before = infos(*closely)
    number = len(before) - 3
    assert number == 20 + 1 + 1 + 1 + 1 + 2 + 1 + 2 + 10 + 1 + 1
    done = move(home, url)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert f"{number} jobs of {home} were moved to schema '{SCHEMA}'" in done.stdout
    assert "22 succeeded, 2 failed, " in done.stdout
    assert "1 retries" in done.stdout
    assert "5 items" in done.stdout
    use_database(q, tmp_path / "a", url)
    assert infos(*closely) == before

    late = taskq(home, "worker", JOBS)
    assert late.returncode == Exit.JOURNAL, late
    assert "were moved to postgresql://" in late.stderr
    assert "moved.to" in late.stderr
    assert "were moved before" in move(home, url).stdout
    (home / "moved.to").unlink()  # killed behind the commit
    assert "were moved before" in move(home, url).stdout

    (tmp_path / "needed").write_text("")
    assert jobs.add.options(unique=Unique("the one")).enqueue(6).id == left.only.id
    with running(MachineFleet(tmp_path / "a", url)):
        there = q.job
        assert [there(job.id).result(20) for job in left.spooled] == list(range(101, 111))
        assert there(left.large.id).result(20) == "x" * 300_000
        assert list(there(left.items.id).items()) == list(range(5))
        wait_until(lambda: q.status().totals.enqueued == number, "all are counted")
        there(left.failed.id).retry()
        assert there(left.failed.id).wait(20)
        assert there(left.failed.id).state() is JobState.SUCCEEDED
        assert there(left.only.id).result(20) == 6
        assert q.status().paused == ["held"]
        q.resume("held")
        assert there(left.held.id).result(20) == 2
        assert there(left.next.id).state() is JobState.WAITING


def test_killed_at_any_moment(home: Path, url: str, postgres: Server, database: str, tmp_path: Path) -> None:
    """`kill -9` in the middle leaves nothing there and everything here; the next run moves all, once."""
    ids = [job.id for job in jobs.add.enqueue_many((number,) for number in range(30_000))]
    command = [*TASKQ, "migrate", "--from", str(home), "--to", url]
    with postgres.connect(database) as connection:

        def has(condition: str) -> bool:
            rows = connection.execute(
                "SELECT 1 FROM pg_stat_activity WHERE application_name = 'taskq migrate' AND datname = %s"
                f" AND {condition}".encode(),
                (database,),
            )
            return rows.fetchone() is not None

        for moment in ("true", "query ~ 'COPY.*jobs'", "query ~ 'COPY.*queue'"):
            process = subprocess.Popen(command, env=environment(None), start_new_session=True)
            wait_until(lambda: has(moment) or process.poll() is not None, moment)  # noqa: B023  called at once
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "it was killed, and had not ended"
            wait_until(lambda: not has("true"), "the server ends its sessions")
            [[made]] = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (f"{SCHEMA}.jobs",)).fetchall()
            if made:
                assert connection.execute(f"SELECT count(*) FROM {SCHEMA}.jobs".encode()).fetchone() == (0,)
            assert not (home / "moved.to").exists()
        done = move(home, url)
        assert done.returncode == 0, done
        assert "30,000 jobs" in done.stdout
        rows = connection.execute(
            f"SELECT replace(q.id::text, '-', '') FROM {SCHEMA}.queue q JOIN {SCHEMA}.jobs USING (id) ORDER BY q.seq".encode()
        )
        assert [job_id for (job_id,) in rows] == ids


def test_what_is_refused(
    home: Path, url: str, start: Callable[..., Fleet], tmp_path: Path, postgres: Server, database: str, here: Here
) -> None:
    """Each says what to do, and moves nothing."""

    def moved(source: Path, to: str) -> subprocess.CompletedProcess[str]:
        return here(home, "migrate", "--from", str(source), "--to", to)

    fleet = start()
    refused(moved(home, url), Exit.ALREADY_RUNNING, f"a fleet runs on {home}: stop it first, with `taskq stop`")
    fleet.stop()
    too_large: Job[Any] = jobs.echo.enqueue("x" * (5 << 20))
    refused(moved(home, url), Exit.JOURNAL, "up to 4 MiB", too_large.id, "5.0 MiB", "nothing was moved", "taskq purge")
    with postgres.connect(database) as connection:
        assert connection.execute(f"SELECT count(*) FROM {SCHEMA}.jobs".encode()).fetchone() == (0,)
    too_large.purge()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    refused(moved(elsewhere, url), Exit.JOURNAL, "there are no jobs")
    told = "PGPASSWORD"
    refused(moved(home, "postgresql://me:secret@host/database"), Exit.USAGE, told)
    refused(moved(home, "postgresql://host/database?password=secret&schema=x"), Exit.USAGE, told)
    refused(moved(home, str(elsewhere)), Exit.USAGE, "there is no database")
    refused(moved(home, url.replace(database, "nowhere")), Exit.NO_FLEET, 'database "nowhere" does not exist')
    assert not (home / "moved.to").exists()
