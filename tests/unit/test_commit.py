"""One commit in a turn of the loop: whatever comes in takes effect in its order, in one transaction, and is answered after
it; what is refused has changed nothing, and a full disk is met in one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from turns import SPEC, Peer, Turns

from taskq.client.transport.blocking import Client
from taskq.model.attempt import Attempts, Verdict, pack_failure, pack_success
from taskq.model.constraints import Constraints, UniqueKey
from taskq.model.errors import EnqueueError, JobNotFound, JobStateError, ScheduleNotFound, StoreFull
from taskq.model.job import JobError, new_job_ids
from taskq.model.schedule import NO_JOB, Schedule
from taskq.model.spec import Spec
from taskq.model.stored import StoredState
from taskq.protocol.codec import encode_call
from taskq.protocol.requests import (
    CancelJob,
    GetJob,
    ListSchedules,
    PauseQueues,
    PauseSchedule,
    PurgeJob,
    PutSchedule,
    RemoveSchedule,
    RetryJob,
    RunSchedule,
)
from taskq.protocol.submissions import Call

FAILURE = pack_failure(0.0, 0.0, JobError("ValueError", "no"))
EVERY_HOUR = Schedule("hourly", Spec("t"), encode_call(NO_JOB, (), {}), every_s=3_600.0)


@pytest.fixture
def turns(tmp_path: Path) -> Iterator[Turns]:
    turns = Turns(tmp_path / "home")
    with closing(turns.store):
        yield turns


def submitted(turns: Turns, count: int, spec: Spec = SPEC) -> list[bytes]:
    """Jobs that were handed in a turn ago."""
    ids = list(new_job_ids(count))
    turns.submit(Peer(), ids, spec)
    turns.turn()
    turns.store.commits = 0
    return ids


def failed(turns: Turns, count: int) -> list[bytes]:
    """Jobs that have failed."""
    ids = submitted(turns, count, Spec("t", retries=0))
    settle(turns, Verdict.FAILED, FAILURE)
    turns.engine.step(turns.now, at_once=True)
    assert states(turns, ids) == [StoredState.FAILED] * count
    turns.store.commits = 0
    return ids


def settle(turns: Turns, verdict: Verdict, outcome: bytes) -> int:
    """A consumer runs all jobs that wait, and reports. Returns how many they were."""
    turns.core.joined(1, 0.0)
    total = 0
    while batches := turns.core.dispatch(turns.now, turns.now):
        for key, first, rows in batches:
            numbers = list(range(first, first + len(rows)))
            attempts = Attempts(numbers, [verdict] * len(rows), [5] * len(rows), [outcome] * len(rows))
            turns.core.settled(key, attempts, turns.now, 1e9)
            total += len(rows)
    return total


def states(turns: Turns, ids: list[bytes]) -> list[StoredState | None]:
    """The states of jobs."""
    found = turns.store.states(ids)
    return [found.get(job_id) for job_id in ids]


def test_a_thousand_cancels_are_few_commits(turns: Turns) -> None:
    ids, peer = submitted(turns, 1_000), Peer()
    for job_id in ids:
        turns.ask(peer, CancelJob(job_id, False))
    for _ in range(20):
        turns.turn()
    assert peer.values() == [True] * 1_000
    assert states(turns, ids) == [StoredState.CANCELLED] * 1_000
    assert turns.store.commits <= 20, "each is as much as a turn takes on"
    assert turns.core.counts()["default"] == 0


def test_whatever_comes_in_a_turn_is_one_commit(turns: Turns) -> None:
    """Submissions, outcomes, cancels, retries, purges, pauses, schedules, spooled and due jobs, and jobs that are late."""
    to_retry, to_purge = failed(turns, 10), failed(turns, 10)
    scheduled, late = list(new_job_ids(5)), list(new_job_ids(5))
    wall = 1e9 + turns.now
    turns.submit(Peer(), scheduled, constraints=Constraints(due_at=wall + 2.0))
    turns.submit(Peer(), late, Spec("t", "other"), constraints=Constraints(expires_at=wall + 2.0))
    turns.ask(Peer(), PutSchedule(Schedule("soon", Spec("t"), encode_call(NO_JOB, (), {}), every_s=2.0).to_wire()))
    turns.turn()
    to_cancel = submitted(turns, 10, Spec("t", "idle"))
    [spooled] = new_job_ids(1)
    Client(turns.directory).spool(Spec("t"), [Call(spooled, b"payload")])
    turns.now += 3.0
    turns.store.commits = 0
    peers = [Peer() for _ in range(5)]
    for peer, *own in zip(peers, to_retry, to_purge, to_cancel, strict=False):
        for request in (RetryJob(own[0]), PurgeJob(own[1]), CancelJob(own[2], False), PauseQueues(["x"], True, "me")):
            turns.ask(peer, request)
        turns.submit(peer, list(new_job_ids(3)))
        turns.ask(peer, PauseSchedule("soon", False))
        turns.ask(peer, GetJob(own[2]))
    turns.turn()
    for peer in peers:
        *values, info = peer.values()
        assert values[:3] == [True] * 3
        assert values[4] == 3
        assert info[3] == "cancelled"
    assert states(turns, [*scheduled, *late]) == [StoredState.QUEUED] * 5 + [StoredState.EXPIRED] * 5
    assert states(turns, [spooled]) == [StoredState.QUEUED]
    assert turns.store.schedules()[0].last_at is not None, "it has fired"
    assert turns.store.commits == 1


def test_who_looks_begins_no_transaction(turns: Turns) -> None:
    ids, peer = submitted(turns, 3), Peer()
    turns.store.asked = 0
    for job_id in ids:
        turns.ask(peer, GetJob(job_id))
    turns.ask(peer, ListSchedules())
    turns.turn()
    turns.turn()  # a long answer takes one of its own
    assert len(peer.values()) == 4
    assert turns.store.commits == turns.store.asked == 0


def test_a_turn_folds_the_log_or_commits(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    """To fold it takes as long as a turn may: no commit waits for that in its own turn, and none waits for long."""
    monkeypatch.setattr(turns.store._wal, "_pages", 20)
    peer, ids = Peer(), list(new_job_ids(60))
    folds, frames = 0, []
    for job_id in ids:
        turns.submit(peer, [job_id])
        turns.store.commits = 0
        turns.turn()
        if not turns.store.commits:
            folds += 1
            assert not turns.store._wal.is_long
            turns.turn()
        assert turns.store.commits == 1
        assert len(peer.values()) == 1
        frames.append(turns.store._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[0])
    assert 3 <= folds <= 20
    assert max(frames[1:]) < 20 + 10, "it begins again"


def test_what_a_client_says_takes_effect_in_its_order(turns: Turns) -> None:
    """In one turn: a cancel finds the job that was handed in before it, and who looks sees what went before."""
    peer, [first, second] = Peer(), list(new_job_ids(2))
    turns.submit(peer, [first])
    turns.ask(peer, CancelJob(first, False))
    turns.ask(peer, GetJob(first))
    turns.ask(peer, PurgeJob(first))
    turns.ask(peer, CancelJob(first, False))
    turns.submit(peer, [second])
    turns.ask(peer, RetryJob(second))
    turns.turn()
    taken, cancelled, gone, purged, unknown, taken_too, not_failed = peer.values()
    assert (taken, cancelled, purged, taken_too) == (1, True, True, 1)
    assert isinstance(gone, JobNotFound), "it looks at the end of the turn"
    assert isinstance(unknown, JobNotFound)
    assert isinstance(not_failed, JobStateError)
    assert turns.store.commits == 1
    turns.core.joined(1, 0.0)
    assert [row.id for batch in turns.core.dispatch(turns.now, turns.now) for row in batch.rows] == [second]


def test_nothing_is_half_done_when_a_command_is_refused(turns: Turns) -> None:
    """Each raises before it writes: a run of a schedule whose job cannot be taken in does not count as its last one, and
    a job with a known id and other arguments takes no key from anybody."""
    peer, [taken, holder, other] = Peer(), list(new_job_ids(3))
    turns.submit(peer, [taken])
    turns.ask(peer, PutSchedule(EVERY_HOUR.to_wire()))
    unique = Constraints(unique=UniqueKey("key", replaces=True))
    turns.submit(peer, [holder], SPEC, unique)
    turns.turn()
    peer.values()
    turns.ask(peer, RunSchedule("hourly", taken))
    turns.ask(peer, RunSchedule("unknown", taken))
    turns.ask(peer, RemoveSchedule("unknown"))
    turns.submit(peer, [taken, other], SPEC, unique, payload=b"another")
    turns.turn()
    refused = peer.values()
    assert [type(error) for error in refused] == [EnqueueError, ScheduleNotFound, ScheduleNotFound, EnqueueError]
    assert turns.store.schedules()[0].last_id is None
    assert turns.engine.scheduler.infos()[0].last_job_id is None
    assert turns.store.with_keys(["key"])["key"].row.id == holder


def test_a_full_disk_refuses_what_adds_and_keeps_what_ends(turns: Turns) -> None:
    ids, [to_retry], peer = submitted(turns, 3), failed(turns, 1), Peer()
    ids = submitted(turns, 3)
    turns.store.refusals = 1
    turns.submit(peer, list(new_job_ids(1)))
    turns.ask(peer, CancelJob(ids[0], False))
    turns.ask(peer, RetryJob(to_retry))
    turns.ask(peer, PurgeJob(ids[1]))
    turns.ask(peer, PutSchedule(EVERY_HOUR.to_wire()))
    turns.ask(peer, GetJob(ids[0]))
    turns.turn()
    submit, cancelled, retry, purged, put, info = peer.values()
    assert [type(error) for error in (submit, retry, put)] == [StoreFull] * 3
    assert (cancelled, purged, info[3]) == (True, True, "cancelled")
    assert states(turns, [*ids, to_retry]) == [StoredState.CANCELLED, None, StoredState.QUEUED, StoredState.FAILED]
    assert turns.engine.scheduler.infos() == []


def test_a_disk_without_any_room_refuses_all_and_forgets_nothing(turns: Turns) -> None:
    ids, peer = submitted(turns, 2), Peer()
    turns.store.refusals = 2
    turns.ask(peer, CancelJob(ids[0], False))
    turns.ask(peer, PauseQueues(["default"], True, "me"))
    turns.ask(peer, GetJob(ids[0]))
    turns.turn()
    cancel, pause, info = peer.values()
    assert [type(error) for error in (cancel, pause)] == [StoreFull] * 2
    assert info[3] == "queued"
    assert states(turns, ids) == [StoredState.QUEUED] * 2
    assert not turns.core.ready.is_paused("default")
    turns.ask(peer, CancelJob(ids[0], False))
    turns.turn()
    assert peer.values() == [True]
    assert settle(turns, Verdict.SUCCEEDED, pack_success(0.0, 0.0, None)) == 1, "the other one runs, once"


@pytest.mark.parametrize("refusals", [1, 2])
def test_starts_of_a_rate_outlive_a_full_disk(turns: Turns, refusals: int) -> None:
    """They are stored with the first commit that has room: a successor that does not know them would start too many."""
    rated, peer, [plain] = Spec("rated", rate=(1, 3600.0)), Peer(), new_job_ids(1)
    turns.submit(peer, list(new_job_ids(1)), rated)
    turns.submit(peer, [plain], Spec("plain", "elsewhere"))
    turns.turn()
    turns.core.joined(1, 0.0, ["default"])
    assert len(turns.core.dispatch(turns.now, turns.now)) == 1
    turns.store.refusals = refusals
    turns.ask(peer, CancelJob(plain, False))
    turns.turn()
    turns.ask(peer, PauseQueues(["elsewhere"], True, "me"))
    turns.turn()
    assert len(turns.store.rates(turns.now)) == 1
