"""Of which jobs a client of a database tells brokers: they look by themselves while one comes right after the other."""

from __future__ import annotations

from typing import Any

import pytest

from taskq.client.transport.postgres.queue import PostgresQueue
from taskq.client.transport.postgres.verbs import Run
from taskq.model.partition import partition_of
from taskq.model.spec import Spec
from taskq.protocol.postgres.submitting import ready_word
from taskq.protocol.submissions import Call
from taskq.system.place import place_of

SPEC = Spec("add", "default")


class StandingClock:
    """Time passes when the test says so."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> StandingClock:
    """The clock of the client."""
    return StandingClock()


@pytest.fixture
def queue(clock: StandingClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> PostgresQueue:
    """A client that knows the numbers of what it enqueues."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = PostgresQueue(place_of("shop", "postgresql://me@nowhere/db"), clock)
    made.kinds.specs[SPEC] = 1
    made.kinds.partitions[partition_of(SPEC, None)] = 7
    return made


def words(queue: PostgresQueue, clock: StandingClock, takes_s: float = 0.0005) -> list[str]:
    """Enqueues a job. Returns what brokers are told."""
    operation = queue.submit(SPEC, [Call(bytes(16), b"")])
    verb = operation.send(None)
    assert isinstance(verb, Run)
    step = next(verb.make())
    clock.now += takes_s
    with pytest.raises(StopIteration):
        operation.send(1)
    return [ready_word(7) for _ in step.after]


def test_who_waits_for_each_job_has_brokers_told_of_each(queue: PostgresQueue, clock: StandingClock) -> None:
    for _ in range(5):
        assert words(queue, clock) == [ready_word(7)]
        clock.now += 0.001


def test_of_jobs_that_come_one_right_after_the_other_brokers_are_told_now_and_then(
    queue: PostgresQueue, clock: StandingClock
) -> None:
    told = 0
    for _ in range(100):
        told += len(words(queue, clock))
        clock.now += 0.00005
    assert 4 <= told <= 7  # in 55 ms
