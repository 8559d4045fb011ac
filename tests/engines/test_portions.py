"""However much is to be done at once, the embedded engine does it in portions, so that others are served in between: a
turn changes a bounded number of rows. No time is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from scripted_fleet import ScriptedClock, ScriptedFleet, SQLitePlace

from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.model.attempt import Verdict, pack_success
from taskq.model.constraints import Constraints
from taskq.model.job import JobState, new_job_ids
from taskq.model.limits import TURN_US
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL
from taskq.protocol.answers import value_of
from taskq.protocol.frames import Decoder
from taskq.protocol.jobs import info_of
from taskq.protocol.requests import GetJob, Request, RetryJob
from taskq.protocol.submissions import Call, chunks, submission_of, submit_frame
from taskq.testing.client import InProcessLine
from taskq.testing.consumers import submissions_of

JOBS = 3_000
MOST_ROWS = 1_500
ONE_TRY = Spec("t", retries=0)
IDLE = Spec("idle", "idle")


class Counted(ScriptedFleet):
    """Counts the rows that each turn changes."""

    most_rows = 0

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            database = cast(SQLiteStore, self.engine.store)._db
            before = database.total_changes()
            super().turn()
            self.most_rows = max(self.most_rows, database.total_changes() - before)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Counted]:
    with closing(Counted(SQLitePlace(tmp_path / "home"), ScriptedClock())) as fleet:
        fleet.client.pause(["idle"], True, "me")
        yield fleet


def end_one(fleet: Counted, has_failed: bool) -> None:
    """Runs the one job that may run."""
    consumer = fleet.consumer()
    assert consumer.begin() is not None
    if has_failed:
        consumer.fail()
    else:
        consumer.succeed()
    consumer.leave()


def expire(fleet: Counted) -> Callable[[], object]:
    fleet.add(JOBS, IDLE, expires_at=fleet.clock.time() + 50.0)
    return lambda: fleet.let_pass(51.0)


def come_due(fleet: Counted) -> Callable[[], object]:
    fleet.add(JOBS, IDLE, due_at=fleet.clock.time() + 50.0)
    return lambda: fleet.let_pass(51.0)


def are_released(fleet: Counted) -> Callable[[], object]:
    [parent] = fleet.add(1)
    fleet.add(JOBS, IDLE, after=((parent, False),))
    return lambda: end_one(fleet, has_failed=False)


def are_cancelled_with_another(fleet: Counted) -> Callable[[], object]:
    [parent] = fleet.add(1, ONE_TRY)
    fleet.add(JOBS, IDLE, after=((parent, False),))
    return lambda: end_one(fleet, has_failed=True)


def are_purged(fleet: Counted) -> Callable[[], object]:
    fleet.add(JOBS, IDLE)
    return lambda: fleet.client.purge_all(JobState.QUEUED, None, None, None)


def are_retried(fleet: Counted) -> Callable[[], object]:
    fleet.add(JOBS // 3, ONE_TRY)
    consumer = fleet.consumer()
    while consumer.begin() is not None:
        consumer.fail()
    return lambda: fleet.client.retry_all(None, None)


@pytest.mark.parametrize(
    "prepare", [expire, come_due, are_released, are_cancelled_with_another, are_purged, are_retried]
)
def test_a_turn_changes_a_bounded_number_of_rows(
    fleet: Counted, prepare: Callable[[Counted], Callable[[], object]]
) -> None:
    go = prepare(fleet)
    fleet.most_rows = 0
    go()
    fleet.turn(30)
    left = {name: counts for name, counts in fleet.client.status().queues.items() if counts.scheduled or counts.waiting}
    assert left == {}, "all of it is done in the end"
    assert JOBS / 100 < fleet.most_rows <= MOST_ROWS


def test_ends_with_many_children_are_committed_in_portions(fleet: Counted) -> None:
    """However many jobs end at once: each comes with all of its children."""
    consumer = fleet.consumer()
    fleet.add(25)
    fleet.turn(2)
    fleet.most_rows = 0
    last_child: dict[bytes, bytes] = {}
    for number, row in consumer.sent:
        calls = fleet.calls(100, due_at=fleet.clock.time() + 1_000.0)
        last_child[row.id] = calls[-1].id
        consumer.report(number, Verdict.SUCCEEDED, pack_success(fleet.clock.time(), 0.0, None))
        fleet.engine.enqueued(submissions_of([(IDLE, call) for call in calls]))
    assert len(last_child) == 25
    consumer.sent.clear()
    turns = 0
    while not fleet.engine.is_settled:
        fleet.turn()
        turns += 1
        for parent, child in last_child.items():
            stored = fleet.engine.store.read(parent)
            assert stored is not None
            assert (stored.kept >= FIRST_FINAL) == (fleet.engine.store.read(child) is not None)
    assert turns >= 4
    assert fleet.most_rows < MOST_ROWS


def test_a_retry_revives_many_in_portions_and_others_are_served_meanwhile(fleet: Counted) -> None:
    """Its answer comes when all of them wait again; what its own client says waits for that."""
    [parent] = fleet.add(1, ONE_TRY)
    waiting = fleet.add(JOBS, IDLE, after=((parent, False),))
    end_one(fleet, has_failed=True)
    fleet.turn(60)
    assert fleet.client.info(waiting[-1]).state is JobState.CANCELLED
    fleet.most_rows = 0
    mine, other = RawClient(fleet), RawClient(fleet)
    mine.ask(RetryJob(parent))
    mine.ask(GetJob(waiting[-1]))
    other.ask(GetJob(parent))
    fleet.turn()
    assert other.take_states() == [JobState.QUEUED]
    assert mine.take_states() == []
    fleet.turn(60)
    assert mine.take_states() == [True, JobState.WAITING]
    assert fleet.client.status().queues["idle"].waiting == JOBS
    assert fleet.most_rows <= MOST_ROWS


def test_a_retry_goes_on_after_the_death_of_its_broker(fleet: Counted) -> None:
    [parent] = fleet.add(1, ONE_TRY)
    waiting = fleet.add(JOBS, IDLE, after=((parent, False),))
    end_one(fleet, has_failed=True)
    fleet.turn(60)
    client = RawClient(fleet)
    client.ask(RetryJob(parent))
    fleet.turn(2)
    assert client.take_states() == []
    assert fleet.client.info(waiting[-1]).state is JobState.CANCELLED
    successor = fleet.die()
    assert successor.client.status().queues["idle"].waiting == JOBS
    assert successor.client.info(parent).state is JobState.QUEUED


def test_a_client_sends_no_more_in_a_frame_than_a_turn_takes_on() -> None:
    parent, *ids = new_job_ids(3_001)
    plain = [Call(job_id, b"payload") for job_id in ids]
    linked = [call._replace(constraints=Constraints(after=((parent, False),))) for call in plain]
    assert [len(chunk) for chunk in chunks(plain)] == [1_000] * 3
    for chunk in chunks(linked):
        [message] = Decoder().feed(submit_frame(1, IDLE, chunk, resend=False, watch=False))
        assert submission_of(None, *message).work_us <= TURN_US
    assert sum(map(len, chunks(linked))) == 3_000


class RawClient:
    """Asks without waiting for the answers."""

    def __init__(self, fleet: Counted) -> None:
        self._fleet = fleet
        self._line = InProcessLine(cast(Any, fleet))
        self._numbers: list[int] = []

    def ask(self, request: Request) -> None:
        number, frame = self._line.talk.request(request)
        self._numbers.append(number)
        self._fleet.client.fleet.hear(self._line, frame)

    def take_states(self) -> list[Any]:
        """The values of the answers that have come, in the order of the requests; of an info, the state."""
        came = [number for number in self._numbers if number in self._line.talk.answers]
        self._numbers = [number for number in self._numbers if number not in came]
        values = [value_of(self._line.talk.answers.pop(number), number) for number in came]
        return [info_of(value).state if isinstance(value, list) else value for value in values]
