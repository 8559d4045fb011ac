"""The core against a reference model, and its decisions one by one.

The model below is the world around the core: a store in a dictionary, consumers that claim, run and report as the real
ones do, a clock. The core must never hand a job to two consumers, lose one, run one that ended, or charge a job for
what another one did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskq.broker.core import window as window_module
from taskq.broker.core.core import Core
from taskq.broker.core.leases import BATCH_S, HELD_UP_S, MAX_SENT, STALLED_S, UNKNOWN_RUN_S
from taskq.broker.core.window import ROW_BYTES
from taskq.model.attempt import Attempts, Claim, Verdict, pack_failure, pack_success, unpack
from taskq.model.constraints import Constraints
from taskq.model.effects import Event, ProcessExit
from taskq.model.job import JobError, JobRow, backoff_s
from taskq.model.partition import Partition
from taskq.model.spec import Spec, spec_after_crash
from taskq.model.stored import FIRST_FINAL, StoredState

GRACE_S = 2.0
GOOD = pack_success(1.0, 0.001, None)
BAD = pack_failure(1.0, 0.001, JobError("ValueError", "no"))
LATER = pack_failure(1.0, 0.001, JobError("Snoozed", "for 7 s"), 7.0)
OUTCOMES = {Verdict.SUCCEEDED: GOOD, Verdict.SNOOZED: LATER}


# -- the world around the core


@dataclass
class Job:
    """A job as the model knows it, and as its store keeps it."""

    seq: int
    spec: Spec
    size: int
    kept: StoredState = StoredState.QUEUED
    due_at: float | None = None
    attempts: int = 0
    crashes: int = 0
    snoozes: int = 0
    starts: int = 0
    uncharged: int = 0  # starts that were cut short, or whose outcome was lost, by no fault of the job
    was_sent: bool = False
    forgiven: tuple[int, int] = (0, 0)  # failures and crashes before it was retried by hand

    def row(self) -> JobRow:
        """A fresh row, as a store reads it."""
        constraints = None if self.forgiven == (0, 0) else Constraints(forgiven=self.forgiven)
        counts = self.attempts, self.crashes
        row = JobRow(self.seq, self.seq.to_bytes(16, "big"), self.spec, b"x" * self.size, *counts, constraints)
        row.snoozes = self.snoozes
        return row

    def failures(self, attempts: int, snoozes: int) -> int:
        """How many of these attempts, some of them snoozed, count against the retries."""
        return attempts - self.crashes - snoozes - self.forgiven[0]


@dataclass
class FakeConsumer:
    """A consumer: what it was sent, what it runs, what it has not reported."""

    inbox: deque[tuple[int, int]] = field(default_factory=deque)  # number, seq
    unreported: list[tuple[int, int, Verdict]] = field(default_factory=list)
    running: dict[int, tuple[int, float]] = field(default_factory=dict)  # by number: seq, when it started
    claimed: int = 0
    valid_from: int = 0
    last_sent: int = 0
    is_retired: bool = False
    gave_back: bool = False  # and has reported nothing since
    signalled: dict[int, float] = field(default_factory=dict)  # by number: when

    def claims(self) -> list[Claim]:
        """What its counters block says."""
        return [Claim(number, started_at) for number, (_, started_at) in self.running.items()]

    def holds(self) -> dict[int, int]:
        """The jobs that the core must know as its own, by number."""
        held = {number: seq for number, seq in self.inbox if number >= self.valid_from}
        held.update((number, seq) for number, seq, _ in self.unreported)
        held.update((number, seq) for number, (seq, _) in self.running.items())
        return held


#: What a job must have become: kept, attempts, crashes, snoozes.
Expected = tuple[StoredState, int, int, int]


def _snoozes(row: JobRow) -> int:
    return row.snoozes


class World(RuleBasedStateMachine):
    """Anything may happen, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(window_module, "LOAD_JOBS", 4)
        self.jobs: dict[int, Job] = {}
        self.consumers: dict[int, FakeConsumer] = {}
        self.next_key = 1
        self.now, self.wall = 100.0, 1e9
        self.newest_sent: dict[str, int] = {}
        self.last_seq = 0
        self.paused: set[str] = set()

    @initialize(memory_rows=st.integers(0, 6), consumers=st.integers(0, 2), slots=st.sampled_from([1, 1, 2, 3]))
    def begin(self, memory_rows: int, consumers: int, slots: int) -> None:
        """Starts with an empty core that holds a few rows in memory."""
        self.slots = slots
        self.memory_bytes = memory_rows * (ROW_BYTES + 10)
        self.core = Core(memory_bytes=self.memory_bytes, kill_grace_s=GRACE_S, slots=self.slots)
        for _ in range(consumers):
            self.join()

    def teardown(self) -> None:
        """Everything ends once nothing more goes wrong, and an idle consumer is there."""
        self.patches.undo()
        if not hasattr(self, "core"):
            return
        for key in list(self.consumers):
            self._end_all(key)
            self._report(key, inf)
        self.core.pause(())
        self.paused = set()
        self.join()
        for _ in range(20 + 4 * len(self.jobs)):
            self.dispatch()
            for key in self.consumers:
                while self._claim_next(key):
                    self._end_all(key)
                self._report(key, inf)
            waits = [job.due_at for job in self.jobs.values() if job.due_at is not None]
            if waits:
                self.wall = max(self.wall, min(waits))
                self.come_due()
        assert [job for job in self.jobs.values() if job.kept < FIRST_FINAL] == []
        assert not self.core.has_work
        assert not any(self.core.counts().values())

    # -- what may happen

    @rule(
        queue=st.sampled_from("abc"),
        sizes=st.lists(st.integers(0, 900), min_size=1, max_size=9),
        retries=st.integers(0, 2),
        timeout_s=st.sampled_from([None, 0.5, 3.0]),
        max_crashes=st.integers(1, 2),
        crash_queue=st.sampled_from([None, "a", "c"]),
        sends=st.integers(0, 3),
    )
    def submit(
        self,
        queue: str,
        sizes: list[int],
        retries: int,
        timeout_s: float | None,
        max_crashes: int,
        crash_queue: str | None,
        sends: int,
    ) -> None:
        """A batch of jobs is stored, and most often sent at once."""
        spec = Spec(f"t{retries}", queue, retries, timeout_s, max_crashes, crash_queue=crash_queue)
        new = [Job(seq, spec, size) for seq, size in enumerate(sizes, self.last_seq + 1)]
        self.last_seq += len(new)
        self.jobs.update((job.seq, job) for job in new)
        self.core.submitted([job.row() for job in new])
        if sends:
            self.dispatch()

    @precondition(lambda self: len(self.consumers) < 3)
    @rule()
    def join(self) -> None:
        """A consumer is ready."""
        self.consumers[self.next_key] = FakeConsumer()
        self.core.joined(self.next_key, self.now)
        self.next_key += 1

    @precondition(lambda self: self.consumers)
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        """A consumer is to get nothing more."""
        key = self._a_consumer(data)
        self.consumers[key].is_retired = True
        self.core.retire(key)

    @rule()
    def dispatch(self) -> None:
        """The broker's turn: load, recall, send."""
        for load in self.core.loads():
            assert load.partition.queue not in self.paused
            rows = [
                job.row()
                for job in self.jobs.values()
                if job.kept == StoredState.QUEUED
                and Partition(job.spec.queue) == load.partition
                and job.seq > load.after
            ]
            self.core.loaded(load.partition, rows[: load.limit], len(rows) < load.limit)
        for key in self.core.recalls(self.now):
            assert any(len(other.holds()) < self.slots and not other.is_retired for other in self.consumers.values())
            self._recall(key)
        for key in self.core.looks(self.now):
            if self.core.waits_too_long(key, self.consumers[key].claims(), self.now):
                self._recall(key)
        for key, first, rows in self.core.dispatch(self.now, 0.0):
            consumer = self.consumers[key]
            assert rows
            assert not consumer.is_retired
            held_here = len(consumer.holds())
            assert not consumer.gave_back or held_here + len(rows) <= self.slots, "nothing goes behind a held-up job"
            assert first == consumer.last_sent + 1
            consumer.last_sent += len(rows)
            held = self._held_by_anyone()
            for number, row in enumerate(rows, first):
                job = self.jobs[row.seq]
                assert job.kept == StoredState.QUEUED
                assert job.spec.queue not in self.paused
                assert row.seq not in held
                assert (row.attempts, row.crashes) == (job.attempts, job.crashes)
                consumer.inbox.append((number, row.seq))
                if not job.was_sent:
                    assert row.seq > self.newest_sent.get(job.spec.queue, 0), "first starts go in order of submission"
                    self.newest_sent[job.spec.queue] = row.seq
                    job.was_sent = True
        for key, consumer in self.consumers.items():  # only now: one may be sent several batches
            assert self.core.sent(key) == consumer.last_sent

    @precondition(lambda self: self.consumers)
    @rule(data=st.data(), verdicts=st.lists(st.sampled_from(Verdict), max_size=4), starts_next=st.integers(0, 3))
    def work(self, data: st.DataObject, verdicts: list[Verdict], starts_next: int) -> None:
        """A consumer ends some jobs, and most often begins another."""
        able = [key for key, consumer in self.consumers.items() if consumer.inbox or consumer.running]
        key = data.draw(st.sampled_from(able or sorted(self.consumers)))
        for verdict in verdicts:
            self._claim_next(key)
            self._end_running(key, verdict)
        if starts_next:
            self._claim_next(key)

    @precondition(lambda self: self.consumers)
    @rule(data=st.data(), most=st.integers(1, 9))
    def report(self, data: st.DataObject, most: int) -> None:
        """The outcomes of a prefix of what a consumer ran arrive."""
        self._report(self._a_consumer(data), most)

    @precondition(lambda self: self.consumers)
    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        """What a consumer has not started is taken back."""
        self._recall(self._a_consumer(data))

    @precondition(lambda self: self.consumers)
    @rule(
        data=st.data(),
        death=st.sampled_from(
            [
                ProcessExit(signal="SIGKILL"),
                ProcessExit(exit_code=0),
                ProcessExit(stopped=True),
                ProcessExit(signal="SIGSEGV"),
            ]
        ),
        words=st.integers(0, 9),
    )
    def die(self, data: st.DataObject, death: ProcessExit, words: int) -> None:
        """A consumer dies; some of what it had to say was in the pipe."""
        key = self._a_consumer(data)
        self._report(key, words)
        self._die(key, death)

    @precondition(lambda self: self._with_time_limit())
    @rule(data=st.data(), is_next=st.booleans())
    def killed_for_time(self, data: st.DataObject, is_next: bool) -> None:
        """A consumer is killed for a job with a time limit, which may have ended in the last moment."""
        key = data.draw(st.sampled_from(self._with_time_limit()))
        number = next(number for number in self._timed(key))
        if is_next:
            self._end_running(key, Verdict.SUCCEEDED, number)
            self._report(key, inf)
            self._claim_next(key)
        self._die(key, ProcessExit(signal="SIGKILL", timed_out=number))

    @precondition(lambda self: any(job.kept < FIRST_FINAL for job in self.jobs.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A client cancels a job that has not ended."""
        job = data.draw(st.sampled_from([job for job in self.jobs.values() if job.kept < FIRST_FINAL]))
        row = job.row()
        key = self.core.consumer_of(row.id)
        if key is not None:
            self._recall(key)
            if self.core.consumer_of(row.id) is not None:
                assert job.seq in self.consumers[key].holds().values()
                return
        self.core.cancelled(row, job.kept)
        self._carry_out({job.seq: (StoredState.CANCELLED, job.attempts, job.crashes, job.snoozes)})

    @precondition(lambda self: any(job.kept == StoredState.FAILED for job in self.jobs.values()))
    @rule(most=st.integers(1, 4))
    def retry(self, most: int) -> None:
        """A client retries failed jobs: each is as new, but for its attempts."""
        failed = [job.seq for job in self.jobs.values() if job.kept == StoredState.FAILED]
        for seq in failed[:most]:
            job = self.jobs.pop(seq)
            self.last_seq += 1
            job.seq, job.kept, job.starts, job.uncharged, job.was_sent = self.last_seq, StoredState.QUEUED, 0, 0, False
            job.forgiven = job.attempts - job.crashes - job.snoozes, job.crashes
            self.jobs[job.seq] = job
        self.core.requeued([job.row() for job in list(self.jobs.values())[-len(failed[:most]) :]])

    @precondition(lambda self: any(job.kept < FIRST_FINAL for job in self.jobs.values()))
    @rule(data=st.data(), queue=st.sampled_from([*"abc", None]))
    def purge(self, data: st.DataObject, queue: str | None) -> None:
        """A client empties a queue, or purges any jobs that have not ended: all but what runs."""
        for key in self.consumers:
            self._recall(key)
        held = set(self._held_by_anyone())
        waiting = [job for job in self.jobs.values() if job.kept < FIRST_FINAL and job.seq not in held]
        if queue is None:
            waiting = [job for job in waiting if data.draw(st.booleans())]
        else:
            waiting = [job for job in waiting if job.spec.queue == queue]
        for job in waiting:
            self.core.forget(job.row(), job.kept)
            del self.jobs[job.seq]
        assert not self.core.take_effects()

    @rule(queues=st.sets(st.sampled_from("abc")))
    def pause(self, queues: set[str]) -> None:
        """Some queues are paused, others go on. Jobs of paused queues that were sent but have not started are taken
        back."""
        self.paused = queues
        self.core.pause(queues)
        for key in self.consumers:
            self._recall(key)

    @rule(seconds=st.sampled_from([0.001, HELD_UP_S, 0.4, 1.7, 40.0, 700.0]))
    def wait(self, seconds: float) -> None:
        """Time passes; time limits are checked when the core asks for it."""
        self.now += seconds
        self.wall += seconds
        for key in self.core.time_checks(self.now):
            consumer = self.consumers[key]
            stops = self.core.check_time(key, consumer.claims(), self.now)
            self._carry_out({})
            for number, action in stops:
                seq, started_at = consumer.running[number]
                limit_s = self.jobs[seq].spec.timeout_s
                assert limit_s is not None
                assert self.now >= started_at + limit_s
                if action == "signal":
                    assert number not in consumer.signalled
                    consumer.signalled[number] = self.now
                else:
                    assert self.now >= consumer.signalled[number] + GRACE_S, (
                        "first the signal, then the time to clean up"
                    )
                    self._die(key, ProcessExit(signal="SIGKILL", timed_out=number))

    @rule()
    def come_due(self) -> None:
        """Scheduled jobs whose time has come are queued."""
        due = [job for job in self.jobs.values() if job.due_at is not None and job.due_at <= self.wall]
        for job in due:
            job.kept, job.due_at = StoredState.QUEUED, None
        self.core.came_due([job.row() for job in sorted(due, key=lambda job: job.seq)])

    @rule()
    def lose_the_broker(self) -> None:
        """The broker dies and its consumers with it; a new one begins with what the store has."""
        ran = [seq for consumer in self.consumers.values() for seq, _ in consumer.running.values()]
        for consumer in self.consumers.values():
            for _, seq, _ in consumer.unreported:
                self.jobs[seq].uncharged += 1
        self.consumers.clear()
        self.core = Core(memory_bytes=self.memory_bytes, kill_grace_s=GRACE_S, slots=self.slots)
        for seq in ran:
            self.core.lost(self.jobs[seq].row())
        self._carry_out({seq: self._after_crash(self.jobs[seq], StoredState.QUEUED) for seq in ran})
        for queue in "abc":
            seqs = [job.seq for job in self.jobs.values() if job.kept == StoredState.QUEUED and job.spec.queue == queue]
            if seqs:
                self.core.found(Partition(queue), len(seqs), min(seqs))
        self.core.pause(self.paused)
        self.join()

    # -- how it happens

    def _a_consumer(self, data: st.DataObject) -> int:
        """Most often one that is in the middle of something: more can go wrong there."""
        busy = [key for key, consumer in self.consumers.items() if consumer.running or consumer.unreported]
        return data.draw(st.sampled_from(busy * 3 + sorted(self.consumers)))

    def _with_time_limit(self) -> list[int]:
        return [key for key in self.consumers if self._timed(key)]

    def _timed(self, key: int) -> list[int]:
        running = self.consumers[key].running.items()
        return [number for number, (seq, _) in running if self.jobs[seq].spec.timeout_s is not None]

    def _held_by_anyone(self) -> list[int]:
        return [seq for consumer in self.consumers.values() for seq in consumer.holds().values()]

    def _claim_next(self, key: int) -> bool:
        consumer = self.consumers[key]
        while consumer.inbox and len(consumer.running) < self.slots:
            number, seq = consumer.inbox.popleft()
            if number >= consumer.valid_from:
                consumer.running[number], consumer.claimed = (seq, self.now), number
                job = self.jobs[seq]
                assert job.kept == StoredState.QUEUED, "nothing that ended runs again"
                job.starts += 1
                assert job.starts <= 1 + job.spec.retries + job.spec.max_crashes + job.snoozes + job.uncharged
                running = self.core.running(key, number)
                assert running is not None
                assert running.seq == seq
                break
        return bool(consumer.running)

    def _end_running(self, key: int, verdict: Verdict, number: int | None = None) -> None:
        """Ends one job, by default the last that began: so they end in another order."""
        consumer = self.consumers[key]
        if consumer.running:
            number = number or max(consumer.running)
            seq, _ = consumer.running.pop(number)
            consumer.unreported.append((number, seq, verdict))

    def _end_all(self, key: int) -> None:
        while self.consumers[key].running:
            self._end_running(key, Verdict.SUCCEEDED)

    def _report(self, key: int, most: float) -> None:
        consumer = self.consumers[key]
        told = [consumer.unreported.pop(0) for _ in range(int(min(most, len(consumer.unreported))))]
        expected = {}
        for _, seq, verdict in told:
            job = self.jobs[seq]
            attempts, snoozes = job.attempts + 1, job.snoozes + (verdict == Verdict.SNOOZED)
            failures = job.failures(attempts, snoozes)
            if verdict == Verdict.SUCCEEDED:
                kept = StoredState.SUCCEEDED
            elif verdict == Verdict.CANCELLED:
                kept = StoredState.CANCELLED
            elif verdict == Verdict.SNOOZED or (verdict == Verdict.FAILED and failures <= job.spec.retries):
                kept = StoredState.SCHEDULED
            else:
                kept = StoredState.FAILED
            expected[seq] = kept, attempts, job.crashes, snoozes
        numbers, verdicts = [number for number, _, _ in told], [verdict for _, _, verdict in told]
        outcomes = [OUTCOMES.get(verdict, BAD) for verdict in verdicts]
        self.core.settled(key, Attempts(numbers, verdicts, [100] * len(told), outcomes), self.now, self.wall)
        consumer.gave_back = False
        self._carry_out(expected)

    def _recall(self, key: int) -> None:
        consumer = self.consumers[key]
        consumer.valid_from = consumer.last_sent + 1
        self.core.recalled(key, consumer.claimed, self.now)
        consumer.inbox.clear()  # it drops them one by one; nothing else can be seen of it
        consumer.gave_back = bool(consumer.holds())

    @staticmethod
    def _after_crash(job: Job, again: StoredState) -> Expected:
        crashes = job.crashes + 1
        kept = StoredState.FAILED if crashes - job.forgiven[1] >= job.spec.max_crashes else again
        if kept != StoredState.FAILED:
            job.spec = spec_after_crash(job.spec)
        return kept, job.attempts + 1, crashes, job.snoozes

    def _die(self, key: int, death: ProcessExit) -> None:
        consumer = self.consumers[key]
        claims = consumer.claims()
        expected: dict[int, Expected] = {}
        for _, seq, _ in consumer.unreported:
            self.jobs[seq].uncharged += 1
        for number, (seq, _) in consumer.running.items():
            job = self.jobs[seq]
            if death.stopped or death.timed_out not in (None, number):
                job.uncharged += 1
            elif death.timed_out == number:
                attempts = job.attempts + 1
                may_retry = job.failures(attempts, job.snoozes) <= job.spec.retries
                expected[seq] = (
                    StoredState.SCHEDULED if may_retry else StoredState.FAILED,
                    attempts,
                    job.crashes,
                    job.snoozes,
                )
            else:
                # a job that changes its queue goes through the store
                expected[seq] = self._after_crash(
                    job, StoredState.SCHEDULED if job.spec.crash_queue else StoredState.QUEUED
                )
        del self.consumers[key]
        self.core.died(key, claims, death, self.wall)
        self._carry_out(expected)

    def _carry_out(self, expected: dict[int, Expected]) -> None:
        """Settles what the core decided: exactly what was expected, and nothing else."""
        effects = self.core.take_effects()
        changes: list[tuple[JobRow, StoredState, float | None]] = [(row, kept, None) for row, kept, _ in effects.ended]
        for row, due_at, *_ in effects.rescheduled:
            changes.append((row, StoredState.QUEUED if due_at is None else StoredState.SCHEDULED, due_at))
        assert {row.seq: (kept, row.attempts, row.crashes, _snoozes(row)) for row, kept, _ in changes} == expected
        assert len(changes) == len(expected)
        for row, kept, due_at in changes:
            job = self.jobs[row.seq]
            assert job.kept < FIRST_FINAL, "a final state is final"
            job.kept, job.due_at, job.attempts, job.crashes = kept, due_at, row.attempts, row.crashes
            job.snoozes = _snoozes(row)
            assert row.spec == job.spec
            assert due_at is None or due_at >= self.wall
        assert not self.core.take_effects()

    # -- what always holds

    @invariant()
    def leases_agree(self) -> None:
        """The core knows what each consumer holds, and no job is held twice."""
        if not hasattr(self, "core"):
            return
        known = {key: {number: row.seq for number, row in jobs} for key, jobs in self.core.leased().items()}
        assert known == {key: consumer.holds() for key, consumer in self.consumers.items()}
        held = self._held_by_anyone()
        assert len(held) == len(set(held))
        for key, consumer in self.consumers.items():
            assert self.core.holds_nothing(key) == (not consumer.holds())

    @invariant()
    def counts_agree(self) -> None:
        """Each queue counts the jobs that wait, wherever they are."""
        if not hasattr(self, "core"):
            return
        held = set(self._held_by_anyone())
        waiting = dict.fromkeys(self.core.counts(), 0)
        for job in self.jobs.values():
            if job.kept == StoredState.QUEUED and job.seq not in held:
                waiting[job.spec.queue] += 1
        assert self.core.counts() == waiting

    @invariant()
    def time_limits_are_watched(self) -> None:
        """The core asks to be called before the time of a running job is over, or has signalled it."""
        for key in self._with_time_limit() if hasattr(self, "core") else ():
            consumer = self.consumers[key]
            for number in set(self._timed(key)) - set(consumer.signalled):
                seq, started_at = consumer.running[number]
                due = self.core.next_time_check(self.now)
                assert due is not None
                assert due <= started_at + (self.jobs[seq].spec.timeout_s or inf)

    @invariant()
    def each_waiting_job_is_in_one_place(self) -> None:
        """A queued job is in memory, on disk, or sent, and in one of them only."""
        if not hasattr(self, "core"):
            return
        places = self._held_by_anyone()
        for partition in self.core.ready._partitions.values():
            places += [row.seq for row in partition.held if row.seq not in self.core.ready._window.dropped]
            if partition.on_disk_after is not None:
                places += self._on_disk(partition.partition.queue, partition.on_disk_after, set(places))
        queued = [job.seq for job in self.jobs.values() if job.kept == StoredState.QUEUED]
        assert sorted(places) == queued

    def _on_disk(self, queue: str, after: int, elsewhere: Iterable[int]) -> list[int]:
        """What a load would bring: nothing that is in another place already."""
        found = [
            job.seq
            for job in self.jobs.values()
            if job.kept == StoredState.QUEUED and job.spec.queue == queue and job.seq > after
        ]
        assert not set(found) & set(elsewhere)
        return found


World.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestWorld = World.TestCase


# -- decisions, one by one


def rows(count: int, first: int = 1, size: int = 10, **options: object) -> list[JobRow]:
    """Rows of one batch."""
    spec = Spec(str(options.pop("task", "t")), **options)  # type: ignore[arg-type]
    return [JobRow(seq, seq.to_bytes(16, "big"), spec, b"x" * size, 0, 0) for seq in range(first, first + count)]


def seqs(batch_rows: Iterable[JobRow]) -> list[int]:
    """The sequence numbers of rows."""
    return [row.seq for row in batch_rows]


def settle(core: Core, key: int, numbers: Iterable[int], duration_us: int, now: float = 0.0) -> None:
    """Jobs of a consumer end well."""
    numbers = list(numbers)
    count = len(numbers)
    core.settled(key, Attempts(numbers, [Verdict.SUCCEEDED] * count, [duration_us] * count, [GOOD] * count), now, 1e9)


def events(notes: Iterable[Event]) -> list[str]:
    """The names of log lines."""
    return [note.event for note in notes]


@pytest.fixture
def core() -> Core:
    """A core with consumers 1 and 2."""
    core = Core(kill_grace_s=GRACE_S)
    core.joined(1, 0.0)
    core.joined(2, 0.0)
    return core


def test_an_unknown_task_gets_a_cautious_batch() -> None:
    """Before a run time is known, a batch is as long as the guess says."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(rows(500))
    [batch] = core.dispatch(0.0, 0.0)
    assert len(batch.rows) == pytest.approx(BATCH_S / UNKNOWN_RUN_S, abs=1)


@pytest.mark.parametrize(
    ("duration_us", "expected"), [(100, BATCH_S / 100e-6), (10_000, BATCH_S / 0.01), (1_000_000, 1), (1, MAX_SENT)]
)
def test_batches_follow_the_measured_run_time(duration_us: int, expected: float) -> None:
    """A batch is worth BATCH_S of run time: many short jobs, or one long one."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(rows(20))
    [batch] = core.dispatch(0.0, 0.0)
    settle(core, 1, range(1, len(batch.rows) + 1), duration_us)
    core.submitted(rows(5_000, first=1_000))
    core.cancelled(rows(1)[0], StoredState.SCHEDULED)  # another job's end changes nothing of it
    [batch] = core.dispatch(0.0, 0.0)
    assert len(batch.rows) == pytest.approx(expected, abs=1)


def test_a_job_with_a_rate_does_not_wait_for_the_end_of_a_backlog() -> None:
    """It needs a free consumer, and consumers are sent more before they have nothing to do."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(rows(50_000))
    [batch] = core.dispatch(0.0, 0.0)
    core.submitted(rows(1, first=60_000, rate=(1, 60.0), priority=1))
    for _ in range(10):
        half = len(batch.rows) // 2 + 1
        settle(core, 1, range(batch.first, batch.first + half), 100)
        batches = core.dispatch(0.0, 0.0)
        settle(core, 1, range(batch.first + half, batch.first + len(batch.rows)), 100)
        [batch] = batches or core.dispatch(0.0, 0.0)
        if batch.rows[0].seq == 60_000:
            return
    raise AssertionError("ten batches went past it")


def test_newer_run_times_count_more() -> None:
    """A task that became slow gets small batches after a few jobs."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(rows(3_000))
    [batch] = core.dispatch(0.0, 0.0)
    settle(core, 1, range(1, len(batch.rows) + 1), 50)
    for _ in range(6):
        [batch] = core.dispatch(0.0, 0.0)
        settle(core, 1, range(batch.first, batch.first + len(batch.rows)), 100_000)
    [batch] = core.dispatch(0.0, 0.0)
    assert len(batch.rows) <= 2


def test_a_batch_is_bounded_in_bytes() -> None:
    """Large payloads go in small batches, and a single one of any size goes."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(rows(20, size=100_000))
    [batch] = core.dispatch(0.0, 0.0)
    assert len(batch.rows) == 3


def test_jobs_are_shared_among_idle_consumers(core: Core) -> None:
    """Few jobs go evenly to all consumers, in order."""
    core.joined(3, 0.0)
    core.submitted(rows(7))
    batches = core.dispatch(0.0, 0.0)
    assert [len(batch.rows) for batch in batches] == [3, 2, 2]
    assert [seq for batch in batches for seq in seqs(batch.rows)] == list(range(1, 8))


def test_queues_take_turns() -> None:
    """A long queue does not starve a short one."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(rows(5_000, queue="long"))
    core.submitted(rows(30, first=9_000, queue="short"))
    told: list[str] = []
    for _ in range(4):
        for batch in core.dispatch(0.0, 0.0):
            told += [row.spec.queue for row in batch.rows]
            settle(core, 1, range(batch.first, batch.first + len(batch.rows)), 2_000)
    assert told.count("short") == 30


def test_only_served_queues_are_touched() -> None:
    """A fleet for one queue leaves the others alone, and does not call them work."""
    core = Core(queues=["mine"])
    core.joined(1, 0.0)
    core.found(Partition("other"), 5, 1)
    core.submitted(rows(2, queue="other"))
    assert core.loads() == []
    assert core.dispatch(0.0, 0.0) == []
    assert not core.has_work
    assert core.counts() == {"other": 7}
    core.submitted(rows(1, first=10, queue="mine"))
    assert core.has_work
    assert [seqs(batch.rows) for batch in core.dispatch(0.0, 0.0)] == [[10]]


def test_a_retired_consumer_gets_nothing(core: Core) -> None:
    """All new jobs go to the others."""
    core.retire(1)
    core.submitted(rows(4))
    assert [batch.key for batch in core.dispatch(0.0, 0.0)] == [2]


def test_memory_is_bounded() -> None:
    """What does not fit into memory stays on disk, and so does all that comes after it, until it is loaded."""
    core = Core(memory_bytes=3 * (ROW_BYTES + 10))
    core.submitted(rows(5))
    core.submitted(rows(5, first=6))
    [load] = core.loads()
    assert (load.partition, load.after) == (Partition("default"), 3)
    assert core.counts() == {"default": 10}
    core.loaded(Partition("default"), rows(7, first=4), is_all=True)
    assert core.loads() == []
    core.joined(1, 0.0)
    assert [seqs(batch.rows) for batch in core.dispatch(0.0, 0.0)] == [list(range(1, 11))]


def test_a_consumer_is_topped_up_at_half() -> None:
    """A consumer gets more jobs before it has run out of them, and not after each one."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(rows(1_000))
    [batch] = core.dispatch(0.0, 0.0)
    full = len(batch.rows)
    settle(core, 1, range(1, 3), 2_000)
    assert core.dispatch(0.0, 0.0) == []
    settle(core, 1, range(3, full // 2 + 3), 2_000)
    assert len(core.dispatch(0.0, 0.0)) == 1


def test_a_held_up_consumer_gets_nothing(core: Core) -> None:
    """No other job waits behind a long one, until that has ended."""
    core.retire(2)
    core.submitted(rows(1))
    core.dispatch(0.0, 0.0)
    core.submitted(rows(50, first=2))
    assert core.dispatch(HELD_UP_S, 0.0) == []
    assert core.dispatch(1.0, 0.0) == []
    settle(core, 1, [1], 1_000_000, now=1.0)
    [batch] = core.dispatch(1.0, 0.0)
    assert seqs(batch.rows) == [2]


def test_recalls_for_one_that_idles(core: Core) -> None:
    """Jobs behind a long one are taken back for an idle consumer, and then go to it."""
    core.retire(2)
    core.submitted(rows(6))
    [batch] = core.dispatch(0.0, 0.0)
    assert len(batch.rows) == 6
    assert core.recalls(1.0) == []  # no consumer is idle
    assert core.next_recall(0.0) is None
    core.joined(3, 0.0)
    assert core.recalls(HELD_UP_S / 2) == []  # not held up yet
    assert core.next_recall(0.0) == pytest.approx(HELD_UP_S)
    assert core.recalls(HELD_UP_S) == [1]
    core.recalled(1, claimed=1, now=HELD_UP_S)
    assert core.counts() == {"default": 5}
    [idle] = core.dispatch(HELD_UP_S, 0.0)
    assert (idle.key, seqs(idle.rows)) == (3, [2, 3, 4, 5, 6])
    assert core.recalls(1.0) == []


def test_no_recall_while_jobs_wait_for_the_idle_one(core: Core) -> None:
    """Before jobs are taken back, those that wait anyway go to the idle consumer."""
    core.retire(2)
    core.submitted(rows(3))
    core.dispatch(0.0, 0.0)
    core.joined(3, 0.0)
    core.submitted(rows(1, first=4))
    assert [(batch.key, seqs(batch.rows)) for batch in core.dispatch(1.0, 0.0)] == [(3, [4])]
    assert core.recalls(1.0) == []


def test_taken_back_jobs_come_first(core: Core) -> None:
    """A job that was taken back does not go to the end of its queue."""
    core.retire(2)
    core.submitted(rows(3))
    core.dispatch(0.0, 0.0)
    core.submitted(rows(2, first=4))
    core.recalled(1, claimed=1, now=0.0)
    core.retire(1)
    core.joined(3, 0.0)
    assert [seqs(batch.rows) for batch in core.dispatch(0.0, 0.0)] == [[2, 3, 4, 5]]


def test_time_limit_signals_then_kills(core: Core) -> None:
    """First the soft signal, once; after the grace time the kill."""
    core.submitted(rows(1, timeout_s=5.0))
    core.dispatch(0.0, 0.0)
    claims = [Claim(1, 0.1)]
    assert core.next_time_check(0.0) == pytest.approx(5.0)
    assert core.time_checks(5.0) == [1]
    assert core.check_time(1, claims, 5.0) == []  # it started a moment after it was sent
    assert core.next_time_check(5.0) == pytest.approx(5.1)
    assert core.check_time(1, claims, 5.1) == [(1, "signal")]
    assert core.next_time_check(5.1) == pytest.approx(5.1 + GRACE_S)
    assert core.check_time(1, claims, 5.1 + GRACE_S) == [(1, "kill")]
    assert events(core.take_effects().notes) == ["job.timed_out"]
    core.died(1, claims, ProcessExit(signal="SIGKILL", timed_out=1), 1e9)
    effects = core.take_effects()
    [(row, due_at, outcome, _)] = effects.rescheduled
    assert (row.attempts, row.crashes) == (1, 0)
    assert due_at == 1e9 + backoff_s(row.id, 1)
    error = unpack(outcome or b"").error
    assert error is not None
    assert error.type == "TimedOut"
    assert "5 s" in error.message


def test_grace_time_is_kept_when_another_job_is_sent() -> None:
    """A job that got the soft signal has its time to clean up, whatever is sent to its consumer meanwhile."""
    core = concurrent(2)
    core.submitted(rows(1, timeout_s=5.0))
    core.dispatch(0.0, 0.0)
    claims = [Claim(1, 0.0)]
    assert core.check_time(1, claims, 5.0) == [(1, "signal")]
    core.submitted(rows(1, first=2, timeout_s=0.5))
    assert len(core.dispatch(5.1, 0.0)) == 1
    for now in (5.6, 6.1, 6.9):
        if 1 in core.time_checks(now):
            assert core.check_time(1, claims, now) == []
    assert core.next_time_check(6.9) <= 5.0 + GRACE_S  # type: ignore[operator]
    assert core.check_time(1, claims, 5.0 + GRACE_S) == [(1, "kill")]


def test_a_short_limit_behind_a_long_one_is_kept(core: Core) -> None:
    """A job with a short limit that starts after one with a long limit is signalled in time."""
    core.retire(2)
    core.submitted(rows(1, timeout_s=10.0))
    core.submitted(rows(1, first=2, timeout_s=0.5))
    core.dispatch(0.0, 0.0)
    assert core.check_time(1, [Claim(1, 0.0)], 0.5) == []
    settle(core, 1, [1], 800_000, now=0.8)
    assert core.next_time_check(0.8) <= 0.8 + 0.5  # type: ignore[operator]
    assert core.check_time(1, [Claim(2, 0.8)], 1.0) == []
    assert core.next_time_check(1.0) == pytest.approx(1.3)
    assert core.check_time(1, [Claim(2, 0.8)], 1.3) == [(2, "signal")]


def test_a_job_is_not_charged_for_the_time_of_another(core: Core) -> None:
    """A job that began between the decision to kill for another and the kill goes back untouched."""
    core.submitted(rows(4, timeout_s=1.0))
    core.dispatch(0.0, 0.0)
    settle(core, 1, [1], 100)
    core.take_effects()
    core.died(1, [Claim(2, 1.0)], ProcessExit(signal="SIGKILL", timed_out=1), 1e9)
    effects = core.take_effects()
    assert (effects.ended, effects.rescheduled) == ([], [])
    [note] = effects.notes
    assert (note.event, note.fields["row"].seq, note.fields["attempt"]) == ("job.interrupted", 2, 1)
    assert core.counts() == {"default": 1}


def test_only_the_running_job_is_charged(core: Core) -> None:
    """The other jobs of its batch go back uncharged. The charged one gets its old place, and no job waits behind it."""
    core.retire(2)
    core.submitted(rows(4))
    core.dispatch(0.0, 0.0)
    core.died(1, [Claim(2, 0.0)], ProcessExit(signal="SIGSEGV", output=("last words",)), 1e9)
    effects = core.take_effects()
    [(row, due_at, outcome, _)] = effects.rescheduled
    assert (row.seq, row.attempts, row.crashes, due_at) == (2, 1, 1, None)
    error = unpack(outcome or b"").error
    assert error is not None
    assert (error.type, error.signal, error.output) == ("Crashed", "SIGSEGV", ["last words"])
    core.joined(3, 0.0)
    [batch] = core.dispatch(0.0, 0.0)
    assert seqs(batch.rows) == [1, 2]
    assert core.dispatch(0.0, 0.0) == []
    settle(core, 3, [1, 2], 2_000)
    [others] = core.dispatch(0.0, 0.0)
    assert seqs(others.rows) == [3, 4]
    assert [row.attempts for row in others.rows] == [0, 0]


def test_max_crashes_parks() -> None:
    """After `max_crashes` deaths a job is parked as failed, however many retries it has left."""
    core = Core()
    core.submitted(rows(1, retries=9, max_crashes=3))
    notes: list[str] = []
    for key in (1, 2, 3):
        core.joined(key, 0.0)
        [batch] = core.dispatch(0.0, 0.0)
        core.died(key, [Claim(batch.first, 0.0)], ProcessExit(exit_code=1), 1e9)
        effects = core.take_effects()
        assert effects.crashed == 1
        notes += events(effects.notes)
    [(row, kept, _)] = effects.ended
    assert (kept, row.attempts, row.crashes) == (StoredState.FAILED, 3, 3)
    assert notes == ["job.crashed", "job.crashed", "job.crashed", "job.failed"]
    core.joined(4, 0.0)
    assert core.dispatch(0.0, 0.0) == []


def test_what_is_told_of_an_attempt_stays_though_the_next_one_has_begun() -> None:
    """An engine that waits for its database writes the log later than the job runs again."""
    core = Core()
    core.submitted(rows(1, retries=9, max_crashes=9))
    notes: list[Event] = []
    for key in (1, 2):
        core.joined(key, 0.0)
        [batch] = core.dispatch(0.0, 0.0)
        core.died(key, [Claim(batch.first, 0.0)], ProcessExit(exit_code=1), 1e9)
        notes += core.take_effects().notes
    core.joined(3, 0.0)
    [batch] = core.dispatch(0.0, 0.0)
    core.settled(3, Attempts([batch.first], [Verdict.FAILED], [1_000], [BAD]), 0.0, 1e9)
    notes += core.take_effects().notes
    assert [(note.event, note.fields["attempt"]) for note in notes] == [
        ("job.crashed", 1),
        ("job.crashed", 2),
        ("job.retrying", 3),
    ]


def test_lost_jobs_are_charged_at_the_start() -> None:
    """A job that took a whole fleet down is charged, and stays in the store until `found` and a load."""
    core = Core()
    [row] = rows(1)
    core.lost(row, 3)
    effects = core.take_effects()
    assert [(change.row.crashes, change.due_at) for change in effects.rescheduled] == [(1, None)]
    assert [unpack(change.outcome or b"").consumer for change in effects.rescheduled] == [3]
    core.joined(1, 0.0)
    assert core.dispatch(0.0, 0.0) == []
    core.found(Partition("default"), 1, 1)
    assert [load.after for load in core.loads()] == [0]


@pytest.mark.parametrize(
    "death",
    [ProcessExit(signal="SIGSEGV", at=1.0), ProcessExit(signal="SIGKILL", timed_out=1, at=1.0), None],
    ids=["a crash", "its time limit", "cancelled"],
)
def test_an_attempt_that_died_tells_its_consumer(death: ProcessExit | None) -> None:
    """By number, as the log does: the process could not say so itself."""
    core = Core()
    core.submitted(rows(1, retries=0, max_crashes=1))
    core.joined(1, 0.0, (), 7)
    [batch] = core.dispatch(0.0, 0.0)
    if death is None:
        core.cancel_running(1, batch.rows[0].id, 0.0)
        death = ProcessExit(signal="SIGKILL")
    core.died(1, [Claim(1, 0.0)], death, 1e9)
    [(_, _, outcome)] = core.take_effects().ended
    assert unpack(outcome).consumer == 7


def test_an_outcome_that_cannot_be_read_tells_the_consumer_that_reported_it() -> None:
    """As the outcome itself does not."""
    core = Core()
    core.submitted(rows(1, retries=0))
    core.joined(1, 0.0, (), 7)
    core.dispatch(0.0, 0.0)
    core.settled(1, Attempts([1], [Verdict.FAILED], [5], [b"junk"]), 0.0, 1e9)
    [(_, _, outcome)] = core.take_effects().ended
    assert unpack(outcome).consumer == 7


def test_crashes_do_not_use_up_retries(core: Core) -> None:
    """A job whose process died may still fail as often as its retries allow."""
    core.submitted(rows(1, retries=1))
    core.dispatch(0.0, 0.0)
    core.died(1, [Claim(1, 0.0)], ProcessExit(signal="SIGKILL"), 1e9)
    core.take_effects()
    core.dispatch(0.0, 0.0)
    core.settled(2, Attempts([1], [Verdict.FAILED], [5], [BAD]), 0.0, 1e9)
    effects = core.take_effects()
    assert effects.ended == []
    assert [change.row.attempts for change in effects.rescheduled] == [2]
    assert effects.retried == 1


def test_refused_jobs_are_not_retried(core: Core) -> None:
    """What cannot succeed by running again fails at once."""
    core.submitted(rows(1, retries=5))
    core.dispatch(0.0, 0.0)
    core.settled(1, Attempts([1], [Verdict.REFUSED], [5], [BAD]), 0.0, 1e9)
    [(_, kept, outcome)] = core.take_effects().ended
    assert (kept, outcome) == (StoredState.FAILED, BAD)


def test_backoff_is_deterministic(core: Core) -> None:
    """The same history gives the same delays; other jobs get others."""
    delays = []
    for seq in (1, 1, 2):
        core = Core()
        core.joined(1, 0.0)
        core.submitted(rows(1, first=seq, retries=2))
        core.dispatch(0.0, 0.0)
        core.settled(1, Attempts([1], [Verdict.FAILED], [5], [BAD]), 0.0, 1e9)
        [change] = core.take_effects().rescheduled
        delays.append((change.due_at or 0) - 1e9)
    assert delays[0] == delays[1] != delays[2]
    assert all(0.5 <= delay <= 1.0 for delay in delays)


def test_reports_that_make_no_sense_are_noted(core: Core) -> None:
    """A number that was never sent, or was reported before, settles nothing."""
    core.submitted(rows(1))
    core.dispatch(0.0, 0.0)
    settle(core, 1, [1], 5)
    assert len(core.take_effects().ended) == 1
    settle(core, 1, [1, 77], 5)
    effects = core.take_effects()
    assert effects.ended == []
    assert events(effects.notes) == ["consumer.confused", "consumer.confused"]


@pytest.mark.parametrize("garbage", [b"\xc1 garbage", GOOD])
def test_an_outcome_that_is_none_loses_no_job(core: Core, garbage: bytes) -> None:
    """A consumer that reports garbage, or a failure without an error: that is a failure of its own job, what is behind
    it is settled as the consumer says, and what was not reported is still there when the consumer is killed."""
    core.retire(2)
    core.submitted(rows(3))
    core.dispatch(0.0, 0.0)
    core.settled(1, Attempts([1, 2], [Verdict.FAILED, Verdict.FAILED], [5, 5], [garbage, BAD]), 0.0, 1e9)
    effects = core.take_effects()
    assert [(row.seq, row.attempts) for row, *_ in (*effects.ended, *effects.rescheduled)] == [(1, 1), (2, 1)]
    core.died(1, [], ProcessExit(signal="SIGKILL"), 1e9)
    assert core.counts() == {"default": 1}
    core.joined(3, 0.0)
    [batch] = core.dispatch(0.0, 0.0)
    assert [(row.seq, row.attempts) for row in batch.rows] == [(3, 0)]


def test_what_comes_back_takes_its_old_place(core: Core) -> None:
    """Also behind what came back before it: found by a simulated life, in which a job waited behind its successors."""
    core.submitted(rows(40))
    first, second = core.dispatch(0.0, 0.0)
    assert first.rows[-1].seq < second.rows[0].seq
    core.recalled(first.key, 0, 1.0)
    core.recalled(second.key, 0, 1.0)
    for key in (first.key, second.key):
        settle(core, key, [], 0, now=2.0)  # neither is stopped
    assert [row.seq for batch in core.dispatch(2.0, 0.0) for row in batch.rows] == list(range(1, 41))


def test_a_cancelled_job_never_starts() -> None:
    """It is skipped when its turn comes, and counted out at once."""
    core = Core()
    waiting = rows(3)
    core.submitted(waiting)
    core.cancelled(waiting[1], StoredState.QUEUED)
    assert core.counts() == {"default": 2}
    assert [(row.seq, kept) for row, kept, _ in core.take_effects().ended] == [(2, StoredState.CANCELLED)]
    core.joined(1, 0.0)
    assert [seqs(batch.rows) for batch in core.dispatch(0.0, 0.0)] == [[1, 3]]
    assert core.counts() == {"default": 0}


@pytest.mark.parametrize("comes_back", ["by a death", "by a recall"])
def test_a_job_that_was_stopped_too_late_to_be_taken_back_and_had_not_started_is_cancelled(comes_back: str) -> None:
    """A consumer that was stopped while it held its lock gives nothing back, so the broker takes its jobs as running,
    and stops those that are cancelled. One that had not started all the same comes back, and must not start then."""
    core = Core()
    core.joined(1, 0.0)
    first, unwanted, last = rows(3)
    core.submitted([first, unwanted, last])
    core.dispatch(0.0, 0.0)
    core.not_recalled(1, 0.0)
    core.cancel_running(1, unwanted.id, 0.0)
    if comes_back == "by a death":
        core.died(1, [Claim(1, 0.0)], ProcessExit(stopped=True), 0.0)
    else:
        core.recalled(1, 1, 0.0)
        core.died(1, [], ProcessExit(stopped=True), 0.0)
    [(row, kept, outcome)] = core.take_effects().ended
    error = unpack(outcome).error
    assert (row, kept) == (unwanted, StoredState.CANCELLED)
    assert error is not None
    assert error.message == "cancelled before it started"
    core.joined(2, 1.0)
    started = seqs(row for batch in core.dispatch(1.0, 0.0) for row in batch.rows)
    assert unwanted.seq not in started
    assert last.seq in started


@pytest.mark.parametrize(
    ("death", "told"),
    [
        (ProcessExit(signal="SIGKILL", out_of_memory=True), "was killed by SIGKILL, since memory ran out"),
        (ProcessExit(signal="SIGKILL"), "was killed by SIGKILL"),
        (ProcessExit(signal="SIGSEGV"), "was killed by SIGSEGV"),
        (ProcessExit(exit_code=3), "exited with code 3"),
        (ProcessExit(), "ended in an unknown way"),
    ],
)
def test_deaths_are_reported_in_words(death: ProcessExit, told: str) -> None:
    """The reason of a crash is readable."""
    assert death.describe() == told


def test_a_job_that_came_due_is_not_there_twice() -> None:
    """A job that comes due behind what memory holds stays on disk until it is loaded."""
    core = Core()
    core.joined(1, 0.0)
    core.found(Partition("default"), 3, 1)
    core.loaded(Partition("default"), rows(2), is_all=False)
    [late] = rows(1, first=7)
    core.came_due([late])
    core.loaded(Partition("default"), [*rows(1, first=3), late], is_all=True)
    [batch] = core.dispatch(0.0, 0.0)
    assert seqs(batch.rows) == [1, 2, 3, 7]
    assert core.counts() == {"default": 0}


# -- consumers with several consumers


def concurrent(slots: int, consumers: int = 1) -> Core:
    """A core whose consumers run several jobs at once."""
    core = Core(kill_grace_s=GRACE_S, slots=slots)
    for key in range(1, consumers + 1):
        core.joined(key, 0.0)
    return core


def slow(core: Core, seconds: float) -> None:
    """Has the core know that the jobs of task `t` are long."""
    core.submitted(rows(1, first=900_000))
    [batch] = core.dispatch(0.0, 0.0)
    settle(core, batch.key, [batch.first], int(seconds * 1e6))
    core.take_effects()


def test_long_jobs_fill_all_slots_and_no_more() -> None:
    """However long they run; behind them waits none, unless a consumer is likely to be free within the time of a
    batch."""
    core = concurrent(10)
    slow(core, 5.0)
    core.submitted(rows(50))
    batches = core.dispatch(0.0, 0.0)
    assert sum(len(batch.rows) for batch in batches) == 10
    assert core.dispatch(0.0, 0.0) == []
    assert core.dispatch(1.0, 1.0) == []
    core = concurrent(10)
    slow(core, BATCH_S * 6)
    core.submitted(rows(50))
    core.dispatch(0.0, 0.0)
    assert sum(len(batch.rows) for batch in core.dispatch(0.0, 0.0)) == 2


def test_large_payloads_fill_all_slots() -> None:
    """A batch is bounded in bytes: then there are several."""
    core = concurrent(10)
    core.submitted(rows(10, size=100_000))
    assert [len(batch.rows) for batch in core.dispatch(0.0, 0.0)] == [3, 3, 3, 1]


def test_nothing_waits_behind_others_while_there_are_free_slots() -> None:
    """A few jobs go only to free consumers, and more of them to consumers with more free slots."""
    core = concurrent(4, consumers=2)
    core.retire(2)
    core.submitted(rows(3))
    core.dispatch(0.0, 0.0)
    core.joined(3, 0.0)
    core.submitted(rows(5, first=10))
    assert {batch.key: len(batch.rows) for batch in core.dispatch(0.0, 0.0)} == {3: 4, 1: 1}


def test_recalls_for_free_slots() -> None:
    """What waits behind taken consumers goes to a consumer that has free ones, though it is not idle."""
    core = concurrent(2, consumers=1)
    core.submitted(rows(5))
    core.dispatch(0.0, 0.0)
    assert core.recalls(1.0) == []  # there is no other consumer
    core.joined(2, 0.0)
    assert core.recalls(HELD_UP_S / 2) == []
    assert core.recalls(HELD_UP_S) == [1]
    core.recalled(1, claimed=2, now=HELD_UP_S)
    assert {batch.key: seqs(batch.rows) for batch in core.dispatch(HELD_UP_S, 0.0)} == {2: [3, 4, 5]}


def test_a_free_slot_is_no_reason_to_ask_its_own_consumer() -> None:
    """There is no other consumer to give the jobs to."""
    core = concurrent(4)
    core.submitted(rows(2))
    core.dispatch(0.0, 0.0)
    assert core.recalls(100.0) == []
    assert core.next_recall(100.0) is None


def test_a_consumer_that_does_not_use_its_free_slots_is_stalled() -> None:
    """It has a long job, and was stopped later: what it is sent and does not begin is for the others, and it gets no
    more until it answers."""
    core = concurrent(3, consumers=2)
    core.retire(2)
    core.submitted(rows(1))
    core.dispatch(0.0, 0.0)
    core.recalled(1, claimed=1, now=STALLED_S)
    core.submitted(rows(1, first=2))
    core.dispatch(10.0, 0.0)
    core.joined(3, 10.0)
    assert core.recalls(10.0 + HELD_UP_S) == []  # it has just been sent
    assert core.recalls(10.0 + STALLED_S) == [1]
    assert core.recalled(1, claimed=1, now=10.0 + STALLED_S), "it is to be sent an empty batch"
    core.submitted(rows(2, first=3))
    assert {batch.key: len(batch.rows) for batch in core.dispatch(10.6, 0.0)} == {3: 3}
    core.submitted(rows(1, first=5))
    core.retire(3)
    assert core.dispatch(11.0, 0.0) == []
    settle(core, 1, [], 0, now=11.0)
    assert {batch.key: seqs(batch.rows) for batch in core.dispatch(11.0, 0.0)} == {1: [5]}


def test_all_that_ran_beside_a_crash_are_charged() -> None:
    """Nobody knows which of them it was; what only waited is not charged, and what ended neither."""
    core = concurrent(3)
    core.submitted(rows(5))
    core.dispatch(0.0, 0.0)
    settle(core, 1, [2], 100)
    core.take_effects()
    core.died(1, [Claim(1, 0.0), Claim(3, 0.0), Claim(4, 0.0)], ProcessExit(signal="SIGSEGV"), 1e9)
    effects = core.take_effects()
    assert sorted(change.row.seq for change in effects.rescheduled) == [1, 3, 4]
    assert effects.crashed == 3
    assert core.counts() == {"default": 4}


def test_only_one_is_charged_for_its_time() -> None:
    """The jobs beside one that was killed for its time go back untouched."""
    core = concurrent(3)
    core.submitted(rows(3, timeout_s=1.0))
    core.dispatch(0.0, 0.0)
    claims = [Claim(1, 0.0), Claim(2, 0.5), Claim(3, 0.9)]
    assert core.check_time(1, claims, 1.0) == [(1, "signal")]
    assert core.check_time(1, claims, 1.5) == [(2, "signal")]
    assert core.next_time_check(1.5) == pytest.approx(1.9)
    assert core.check_time(1, claims, 1.0 + GRACE_S) == [(1, "kill")]
    core.take_effects()
    core.died(1, claims, ProcessExit(signal="SIGKILL", timed_out=1), 1e9)
    [change] = core.take_effects().rescheduled
    assert (change.row.seq, change.row.attempts, change.row.crashes) == (1, 1, 0)
    assert core.counts() == {"default": 2}


# -- operators


def test_a_retried_job_has_its_limits_again() -> None:
    """Failures and crashes before do not count; those after do, and attempts are counted on."""
    core = Core()
    row = JobRow(1, bytes(16), Spec("t", retries=1, max_crashes=1), b"", attempts=3, crashes=1)
    row.forgive()
    core.joined(1, 0.0)
    for _ in range(2):
        core.submitted([row])
        [batch] = core.dispatch(0.0, 1e9)
        core.settled(1, Attempts([batch.first], [Verdict.FAILED], [10], [BAD]), 0.0, 1e9)
    effects = core.take_effects()
    assert [(change.due_at or 0.0) - 1e9 for change in effects.rescheduled] == [pytest.approx(backoff_s(row.id, 1))]
    assert [(row.attempts, kept) for row, kept, _ in effects.ended] == [(5, StoredState.FAILED)]


def test_an_emptied_queue_leaves_nothing_to_skip() -> None:
    """What was purged is gone from memory at once, not when the next job is sent."""
    core = Core()
    rows = [JobRow(seq, seq.to_bytes(16, "big"), Spec("t"), b"x") for seq in range(1, 101)]
    core.submitted(rows)
    for start in range(0, 100, 10):
        for row in rows[start : start + 10]:
            core.forget(row, StoredState.QUEUED)
    assert core.ready._window.dropped == {}
    assert core.ready._window.held_bytes == 0
    assert not core.has_work


def test_retried_jobs_are_read_in_their_turn() -> None:
    """They are not in memory, and come behind those that waited before."""
    core = Core()
    core.submitted([JobRow(1, b"a" * 16, Spec("t"), b"x")])
    core.requeued([JobRow(2, b"b" * 16, Spec("t"), b"")])
    [load] = core.loads()
    assert (load.partition, load.after) == (Partition("default"), 1)
    assert core.counts() == {"default": 2}


def test_a_paused_queue_is_no_work() -> None:
    """Its jobs wait and are not read; jobs of it that a consumer holds still count as work."""
    core = Core()
    core.submitted([JobRow(1, b"a" * 16, Spec("t", "mail"), b"x")])
    core.found(Partition("mail"), 1, 2)
    core.joined(1, 0.0)
    core.pause({"mail", "other"})
    assert not core.has_work
    assert core.dispatch(0.0, 1e9) == core.loads() == []
    core.pause({"other"})
    assert core.has_work
    [batch] = core.dispatch(0.0, 1e9)
    core.pause({"mail"})
    assert core.has_work
    core.recalled(1, 0, 0.0)
    assert batch.rows[0].seq == 1
    assert not core.has_work


def test_what_only_the_held_up_one_may_run_is_not_sent_and_taken_back_for_ever(core: Core) -> None:
    """A limit lets no other consumer run it: it waits where it is until the long job has ended."""
    core.submitted(rows(40, concurrency=1))
    [batch] = core.dispatch(0.0, 1e9)
    for now in (HELD_UP_S, 2 * HELD_UP_S, 1.0):
        for key in core.recalls(now):
            core.recalled(key, 1, now)
        core.dispatch(now, 1e9)
    core.recalls(2.0) and core.recalled(batch.key, 1, 2.0)
    core.dispatch(2.0, 1e9)
    assert core.recalls(2.0) == []
    assert core.next_recall(2.0) is None


def test_a_limit_that_opens_for_two_feeds_two_idle_consumers() -> None:
    """What waits behind one that had taken much is listed one by one, and goes out in one turn."""
    core = Core(capacities={"gpu": 2})
    core.joined(1, 0.0)
    core.submitted(rows(1, task="big", resources=(("gpu", 2),)))
    [batch] = core.dispatch(0.0, 1e9)
    core.joined(2, 0.0)
    for seq in (2, 3):
        row = rows(1, first=seq, task="small", resources=(("gpu", 1),))[0]
        row.constraints = Constraints(order_key=f"k{seq}")
        core.submitted([row])
    assert core.dispatch(0.0, 1e9) == []
    settle(core, batch.key, [1], 100)
    assert [seqs(batch.rows) for batch in core.dispatch(0.0, 1e9)] == [[2], [3]]


def test_a_queue_of_jobs_too_short_to_measure_starves_no_other() -> None:
    """They use up its share, too."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(rows(1, first=50_000, task="tiny", queue="first"))
    core.dispatch(0.0, 1e9)
    settle(core, 1, [1], 0)
    core.submitted(rows(20_000, task="tiny", queue="first"))
    core.submitted(rows(20_000, first=20_001, task="tiny", queue="second"))
    rounds = []
    for _ in range(7):
        [batch] = core.dispatch(0.0, 1e9)
        settle(core, 1, range(batch.first, batch.first + len(batch.rows)), 0)
        rounds.append(batch.rows[0].spec.queue)
    assert set(rounds[3:]) == {"first", "second"}


#: What a consumer's death may be when it is due to the job that ran there since 0.0, and the job had run for 1 s.
DEADLY = {
    "a crash": ProcessExit(signal="SIGSEGV", at=1.0),
    "its time limit": ProcessExit(signal="SIGKILL", timed_out=1, at=1.0),
    "its memory limit": ProcessExit(signal="SIGKILL", timed_out=1, over_limit=JobError("E", "too much"), at=1.0),
}


@pytest.mark.parametrize("death", DEADLY.values(), ids=DEADLY.keys())
def test_nothing_is_sent_behind_a_job_whose_task_is_known_to_run_long_before_its_process_dies(
    death: ProcessExit,
) -> None:
    """Such a job never reports, but its run time is known: others would wait behind it in vain, again and again."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(rows(10, task="deadly", max_crashes=1))
    core.dispatch(0.0, 1e9)
    core.died(1, [Claim(1, 0.0)], death, 1e9)
    core.joined(2, 1.0)
    [batch] = core.dispatch(1.0, 1e9)
    assert len(batch.rows) == 1


def test_a_queue_whose_jobs_kill_their_process_has_no_more_than_its_share() -> None:
    """The time that they ran counts, as if they had reported their end."""
    core = Core()
    core.submitted(rows(500, task="deadly", queue="deadly"))
    core.submitted(rows(500, first=1_000, task="well", queue="well"))
    ran_s = {"deadly": 0.0, "well": 0.0}
    for key in range(1, 21):
        core.joined(key, 0.0)
        [batch] = core.dispatch(0.0, 1e9)
        queue = batch.rows[0].spec.queue
        ran_s[queue] += 1.0
        if queue == "well":
            settle(core, key, [1], 1_000_000)
            core.retire(key)
        else:
            core.died(key, [Claim(1, 0.0)], ProcessExit(signal="SIGSEGV", at=1.0), 1e9)
    assert min(ran_s.values()) >= 8.0


def test_jobs_that_kill_their_process_at_once_are_not_taken_for_short_ones() -> None:
    """Each costs the start of another process: a batch of them is as cautious as one of an unknown task."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(rows(500))
    core.dispatch(0.0, 1e9)
    core.died(1, [Claim(1, 0.0)], ProcessExit(signal="SIGSEGV", at=0.0), 1e9)
    core.joined(2, 0.0)
    core.dispatch(0.0, 1e9)
    core.died(2, [Claim(1, 0.0)], ProcessExit(signal="SIGSEGV", at=0.0), 1e9)
    core.submitted(rows(500, first=1_000, queue="other"))
    core.pause(["default"])
    core.joined(3, 0.0)
    [batch] = core.dispatch(0.0, 1e9)
    assert len(batch.rows) == pytest.approx(BATCH_S / UNKNOWN_RUN_S, abs=1)


def test_a_job_that_was_interrupted_tells_nothing_of_how_long_its_task_runs() -> None:
    """A fleet that stops ends it after any time."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(rows(500))
    core.dispatch(0.0, 1e9)
    core.died(1, [Claim(1, 0.0)], ProcessExit(signal="SIGKILL", stopped=True, at=1.0), 1e9)
    core.joined(2, 1.0)
    [batch] = core.dispatch(1.0, 1e9)
    assert len(batch.rows) == pytest.approx(BATCH_S / UNKNOWN_RUN_S, abs=1)


def test_a_job_that_is_alone_goes_to_no_consumer_of_other_queues() -> None:
    core = Core()
    core.joined(1, 0.0, ["mail"])
    core.joined(2, 0.0)
    core.submitted([JobRow(1, bytes(16), Spec("t", "web"), b"x")])
    [batch] = core.dispatch(0.0, 0.0)
    assert batch.key == 2
    core.settled(2, Attempts([1], [Verdict.SUCCEEDED], [10], [pack_success(1.0, 0.001, None)]), 0.1, 0.1)
    core.submitted([JobRow(2, b"2" * 16, Spec("t", "mail"), b"x")])
    [batch] = core.dispatch(0.2, 0.2)
    assert seqs(batch.rows) == [2]


def test_what_a_job_that_is_not_believed_has_enqueued_is_left_out(core: Core) -> None:
    core.settled(1, Attempts([77], [Verdict.SUCCEEDED], [10], [GOOD]), 0.0, 1e9)
    core.take_children(["a job"])
    effects = core.take_effects()
    assert events(effects.notes) == ["consumer.confused"]
    assert effects.children == []
