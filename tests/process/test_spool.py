"""A large spool: it is taken in while clients are served, in order, and whoever asks for a job in it is answered."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from apps import constraints, jobs
from asked import take_spooled
from deaf import Deaf
from fleet import APPS, Fleet, running, starts, use, wait_until
from full_disk import Tight

from taskq import JobState
from taskq.broker.core.core import Core
from taskq.client.job import Job
from taskq.engines.embedded.committer import Committer, StillSpooled
from taskq.model.constraints import Constraints
from taskq.model.errors import BehindSpool, JobNotFound
from taskq.model.job import new_job_ids
from taskq.model.spec import Spec
from taskq.model.stored import StoredState
from taskq.protocol import spool
from taskq.protocol.codec import encode_call
from taskq.protocol.submissions import Call, Submission, submit_frame
from taskq.system.directory import Directory

pytestmark = pytest.mark.not_on_postgres("a database has no spool")

#: Enough for many portions; each takes the broker a few milliseconds.
MANY = 3_000


def fill(home: Path, count: int, *args: Any, task: str = "add") -> list[bytes]:
    """Spools jobs, one in each file, as a client does; but nothing is synced, so that it takes no minutes."""
    folder = Directory(home).create().spool
    ids = list(new_job_ids(count))
    for job_id in ids:
        call = Call(job_id, encode_call(job_id, args, {}))
        frame = submit_frame(0, Spec(task), [call], resend=True, watch=False)
        (folder / f"{job_id.hex()}.jobs").write_bytes(frame)
    return ids


def waiting(home: Path) -> int:
    """Files in the spool."""
    return len(os.listdir(home / "spool"))


def test_clients_are_served_while_a_large_spool_is_taken_in(home: Path) -> None:
    made = [jobs.q.job(job_id.hex()) for job_id in fill(home, MANY, 1)]
    fleet = Fleet(home)
    with running(fleet, wait=False):
        answered = []
        while left := waiting(home):
            fleet.status()
            assert made[-1].state() in (JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED)
            answered.append((left, waiting(home)))
        between = {after for _, after in answered if after}
        assert len(between) > 5, "answered several times, and each time there was more to take in"
        assert [job.result(timeout=20) for job in made[:: MANY // 50]] == [2] * 50
        wait_until(lambda: fleet.totals()["succeeded"] == MANY, "all of them done")
        assert fleet.totals()["enqueued"] == MANY
        assert fleet.count("spool.taken") < MANY // 10, "one line for many files"


def test_a_job_deep_in_the_spool_can_be_waited_for_and_cancelled(home: Path) -> None:
    fill(home, MANY, 1)
    item, cancelled, last = jobs.count.enqueue(3), jobs.add.enqueue(7), jobs.add.enqueue(8)
    fleet = Fleet(home)
    with running(fleet, wait=False):
        told = fleet.status()["spooled_files"]
        assert told >= waiting(home) > 0
        assert last.info().task == "add"
        with pytest.raises(JobNotFound):
            jobs.q.job(bytes(16).hex()).info()
        wait_for_last = last.result(timeout=20)
        assert wait_for_last == 9
        assert list(item.items(timeout=20)) == [0, 1, 2]
        assert cancelled.cancel() == (cancelled.state() is JobState.CANCELLED)
        wait_until(lambda: waiting(home) == 0, "all of it taken in")
        assert fleet.status()["spooled_files"] == 0


@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_ordered_stays_behind_what_is_spooled(home: Path, tmp_path: Path, is_async: bool) -> None:
    path = tmp_path / "starts"
    use(constraints.q, home)
    fill(home, MANY, task="rated")
    first = constraints.ordered.enqueue("ann", 0, str(path))

    async def later() -> list[Job[Any]]:
        return [await constraints.ordered.aenqueue("ann", number, str(path)) for number in range(1, 20)]

    fleet = Fleet(home, f"{APPS / 'constraints.py'}:q")
    with running(fleet, wait=False):
        fleet.status()
        assert waiting(home) > 0
        made = (
            asyncio.run(later())
            if is_async
            else [constraints.ordered.enqueue("ann", number, str(path)) for number in range(1, 20)]
        )
        for job in (first, *made):
            job.result(timeout=30)
        assert [start.label for start in starts(path)] == [f"ann-{number}" for number in range(20)]


def test_a_job_that_comes_after_one_deep_in_the_spool(home: Path) -> None:
    fill(home, MANY, 1)
    parent = jobs.add.enqueue(2)
    fleet = Fleet(home)
    with running(fleet, wait=False):
        fleet.status()
        assert waiting(home) > 0
        child = jobs.add.enqueue(10, parent)
        assert child.result(timeout=20) == 13


# -- the committer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Tight]:
    with closing(Tight(tmp_path / "journal.db")) as store:
        yield store


def committer_of(store: Tight, directory: Directory) -> Committer:
    deaf = cast(Any, Deaf())
    return Committer(store, Core(), deaf, deaf, directory, deaf)


def test_many_files_are_one_commit_and_not_all_of_them(tmp_path: Path, store: Tight) -> None:
    directory = Directory(tmp_path / "home").create()
    ids = fill(directory.path, 1_000, 1)
    committer = committer_of(store, directory)
    commits = 0
    counted = store.commit

    def commit() -> None:
        nonlocal commits
        commits += 1
        counted()

    store.commit = commit  # type: ignore[method-assign]
    seen = []
    while committer.has_more_spooled:
        take_spooled(committer, 0.0)
        states = store.states(ids)
        assert list(states) == ids[: len(states)], "oldest first"
        assert len(states) + waiting(directory.path) == len(ids), "either here or there"
        seen.append(len(states))
    assert len(states) == 1_000
    assert all(0 <= after - before <= 200 for before, after in zip([0, *seen], seen, strict=False))
    assert commits <= 20


def test_bad_files_do_not_keep_the_others_out(tmp_path: Path, store: Tight) -> None:
    directory = Directory(tmp_path / "home").create()
    store.submit(Spec("add"), taken := list(new_job_ids(1)), [b"another payload"])
    ids = fill(directory.path, 5, 1)
    frame = submit_frame(0, Spec("add"), [Call(taken[0], b"payload")], resend=True, watch=False)
    (directory.spool / f"{taken[0].hex()}.jobs").write_bytes(frame)
    (directory.spool / "garbage.jobs").write_bytes(b"garbage")
    committer = committer_of(store, directory)
    take_spooled(committer, 0.0)
    assert list(store.states(ids).values()) == [StoredState.QUEUED] * 5
    assert sorted(os.listdir(directory.spool)) == sorted(["garbage.bad", f"{taken[0].hex()}.bad"])


@pytest.mark.parametrize("refusals", [1, 2])
def test_a_portion_for_which_there_is_no_room_stays(tmp_path: Path, store: Tight, refusals: int) -> None:
    directory = Directory(tmp_path / "home").create()
    ids = fill(directory.path, 250, 1)
    committer = committer_of(store, directory)
    take_spooled(committer, 0.0)
    store.refusals = refusals
    take_spooled(committer, 0.0)
    assert len(store.states(ids)) + waiting(directory.path) == 250
    assert not committer.has_more_spooled, "it is tried again after a while"
    store.is_full = False
    take_spooled(committer, 1.0)
    while committer.has_more_spooled:
        take_spooled(committer, 1.0)
    assert len(store.states(ids)) == 250
    assert waiting(directory.path) == 0


def test_what_must_come_after_the_spool_is_sent_there(tmp_path: Path, store: Tight) -> None:
    directory = Directory(tmp_path / "home").create()
    ids = fill(directory.path, 500, 1)
    committer = committer_of(store, directory)

    def submission(own: Constraints) -> Submission:
        return Submission(cast(Any, Deaf()), 0, False, Spec("add"), list(new_job_ids(1)), [b"payload"], [own])

    take_spooled(committer, 0.0)
    committer.take_in(submission(Constraints()))
    committer.take_in(submission(Constraints(after=((ids[0], False),))))
    for own in (Constraints(order_key="key"), Constraints(after=((ids[-1], False),))):
        with pytest.raises(BehindSpool):
            committer.take_in(submission(own))
    with pytest.raises(StillSpooled):
        committer.find(ids[-1])
    assert committer.spec_in_spool(ids[-1]) == Spec("add")
    assert committer.find(bytes(16)) is None
    while committer.has_more_spooled:
        take_spooled(committer, 0.0)
    for own in (Constraints(order_key="key"), Constraints(after=((ids[-1], False),))):
        committer.take_in(submission(own))
    assert committer.find(ids[-1]) is not None


def test_a_job_among_several_in_a_file_is_found(tmp_path: Path) -> None:
    """By the name of a file with one frame; in a file of several; of a client that died in the middle of one."""
    ids = list(new_job_ids(30))
    first, second, third, fourth = chunks = ids[:10], ids[10:20], ids[20:21], ids[21:24]
    calls = [[Call(job_id, b"payload") for job_id in chunk] for chunk in chunks]
    frames = [submit_frame(0, Spec("add"), of_chunk, resend=True, watch=False) for of_chunk in calls]
    (tmp_path / f"{first[0].hex()}-{first[-1].hex()}.jobs").write_bytes(frames[0])
    (tmp_path / f"{third[0].hex()}.jobs").write_bytes(frames[2])
    records = spool.record_of(frames[1]) + spool.record_of(frames[3])[:-1]
    (tmp_path / f"{second[0].hex()}.frames").write_bytes(records.ljust(1_000, b"\0"))
    assert set(spool.find(tmp_path, ids)) == {*first, *second, *third}
    assert set(spool.find(tmp_path, [ids[25], ids[5], bytes(16), b"\xff" * 16])) == {ids[5]}
    assert not spool.find(tmp_path, fourth)
    assert spool.has_files(tmp_path)
    assert not spool.has_files(tmp_path / "nowhere")
