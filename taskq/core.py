"""The heart of the broker: which job runs where, and what becomes of it. Pure: no I/O, no clock, no chance.

The broker tells the core what happened (jobs came in, a consumer reported, a consumer died, time passed) and the core
answers with what to do: rows to settle and lines to log (`take_effects`), batches to send (`dispatch`), leases to take
back (`recalls`), jobs to stop (`check_time`). Times are two: `now` is monotonic seconds, for everything that lasts;
`wall` is seconds since 1970, for what is stored and compared across restarts.

Leases that can be taken back: a consumer gets batches of jobs, numbered 1, 2, 3 ... for its incarnation, so that small
jobs cost little; what it has not started can be taken back, so that no job waits behind a long one while another
consumer idles.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final, Literal, NamedTuple

from taskq.counters import Claim
from taskq.model import JobError, JobRow, JobState, Spec, backoff_s
from taskq.outcome import Attempts, Verdict, error_in, pack_failure
from taskq.store import Ended, Kept, Rescheduled

#: A consumer is sent jobs worth about this much run time, and more when half of it is left.
BATCH_S: Final = 0.050
#: The guess for a task that was not measured yet.
UNKNOWN_RUN_S: Final = 0.002
MAX_LEASED: Final = 3_000
MAX_BATCH_BYTES: Final = 256 * 1024
#: A consumer that ended nothing for so long is held up by a long job. It then gets one waiting job at the most (so that
#: it need not pause after the long one), and what waits behind it goes to an idle consumer.
HELD_UP_S: Final = 0.005
#: A consumer that got a single job, and has not begun it in this time, is stopped or starved: another may have the job.
#: Longer than the way of the largest payload.
STALLED_S: Final = 0.5
#: Memory that a waiting job takes besides its payload, measured with tracemalloc.
ROW_BYTES: Final = 400
#: Jobs read from the store at once.
LOAD_JOBS: Final = 2_000
LOAD_BYTES: Final = 4 * 1024 * 1024

#: A consumer's key: unique for each incarnation.
Key = int


class Batch(NamedTuple):
    """Jobs to send to a consumer; the first has number `first`, the others follow."""

    key: Key
    first: int
    rows: list[JobRow]


class Load(NamedTuple):
    """Waiting jobs to read from the store; see `Store.lease`."""

    queue: str
    after: int
    limit: int
    max_bytes: int


class Note(NamedTuple):
    """A line for the log."""

    event: str
    fields: dict[str, Any]


#: A success, for the log, as a line or in a summary: its row, consumer, microseconds. A plain tuple: one for each job.
Done = tuple[JobRow, Key, int]


@dataclass(frozen=True, slots=True)
class Death:
    """How a consumer process ended.

    Attributes:
        exit_code: its exit code, or None if a signal killed it or nobody knows.
        signal: the name of the signal, or None.
        output: the last lines it wrote.
        timed_out: the number of the job that the broker killed it for, or None.
        out_of_memory: the kernel killed for want of memory meanwhile.
        stopped: the broker killed it for its own reasons: nobody is charged.
    """

    exit_code: int | None = None
    signal: str | None = None
    output: tuple[str, ...] = ()
    timed_out: int | None = None
    out_of_memory: bool = False
    stopped: bool = False

    def describe(self) -> str:
        """The death in words."""
        if self.signal is not None:
            return f"was killed by {self.signal}" + (", since memory ran out" if self.out_of_memory else "")
        return "ended in an unknown way" if self.exit_code is None else f"exited with code {self.exit_code}"


@dataclass(slots=True)
class Effects:
    """What the broker is to carry out: settle in the store, then tell clients and the log."""

    ended: list[Ended] = field(default_factory=list)
    rescheduled: list[Rescheduled] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    retried: int = 0
    crashed: int = 0

    def __bool__(self) -> bool:
        return bool(self.ended or self.rescheduled or self.notes)


def _seq(row: JobRow) -> int:
    return row.seq


def _bytes_of(rows: Sequence[JobRow]) -> int:
    """Memory that waiting jobs take."""
    return sum([len(row.payload) for row in rows]) + ROW_BYTES * len(rows)


class _Queue:
    """The waiting jobs of one queue: the oldest in memory, the rest in the store.

    `on_disk_after` is None while memory holds all of them; else memory holds those up to that sequence number (and
    what came back after it was sent), the store the others.
    """

    __slots__ = ("held", "held_bytes", "name", "on_disk_after", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: deque[JobRow] = deque()
        self.held_bytes = 0
        self.waiting = 0
        self.on_disk_after: int | None = None

    def take(self) -> JobRow:
        row = self.held.popleft()
        self.held_bytes -= len(row.payload) + ROW_BYTES
        self.waiting -= 1
        return row

    def hold(self, rows: Sequence[JobRow]) -> None:
        self.held.extend(rows)
        self.held_bytes += _bytes_of(rows)

    def put_back(self, rows: Sequence[JobRow]) -> None:
        """Rows that were sent come back to where they were: before all that is younger, also what came back before."""
        youngest = max(row.seq for row in rows)
        front = list(rows)
        while self.held and self.held[0].seq < youngest:
            front.append(self.held.popleft())
        front.sort(key=_seq, reverse=True)
        self.held.extendleft(front)
        self.held_bytes += _bytes_of(rows)
        self.waiting += len(rows)

    def holds(self, seq: int) -> bool:
        return self.on_disk_after is None or seq <= self.on_disk_after


class _Holder:
    """A consumer as the core sees it: what it holds."""

    __slots__ = (
        "accepts",
        "asked_up_to",
        "check_at",
        "is_stalled",
        "kill_at",
        "leased",
        "mean_run_s",
        "next_number",
        "progress_at",
        "signalled",
    )

    def __init__(self, now: float) -> None:
        self.leased: dict[int, JobRow] = {}  # by number, ascending
        self.next_number = 1
        self.accepts = True
        self.progress_at = now
        self.mean_run_s = UNKNOWN_RUN_S  # of the jobs it holds, as estimated when they were sent
        self.check_at: float | None = None  # when a time limit may be over
        self.signalled = 0  # the number that got the soft signal
        self.kill_at = 0.0  # when its time to clean up is over
        self.asked_up_to = 0  # all numbers up to this one were asked back: what is left of them runs
        self.is_stalled = False  # it began none of its jobs in time (stopped?), and has ended none since

    @property
    def has_room(self) -> bool:
        count = len(self.leased)
        return self.accepts and (count < 2 or (count < MAX_LEASED / 2 and count * self.mean_run_s < BATCH_S / 2))

    def is_held_up(self, now: float) -> bool:
        return bool(self.leased) and now - self.progress_at >= HELD_UP_S

    def ask_back_at(self) -> float | None:
        """When another that idles may have what waits here."""
        if not self.leased or self.asked_up_to == self.next_number - 1:
            return None
        return self.progress_at + (HELD_UP_S if len(self.leased) > 1 else STALLED_S)


class Core:
    """The state of a fleet. Written and read by the broker's loop alone."""

    def __init__(
        self, queues: Iterable[str] = (), memory_bytes: int = 256 * 1024 * 1024, kill_grace_s: float = 2.0
    ) -> None:
        """
        Args:
            queues: the queues that this fleet serves; empty for all.
            memory_bytes: bound of the waiting jobs held in memory.
            kill_grace_s: seconds between the soft signal of a timeout and the kill.
        """
        self._served = frozenset(queues)
        self._memory_bytes = memory_bytes
        self._kill_grace_s = kill_grace_s
        self._queues: dict[str, _Queue] = {}
        self._holders: dict[Key, _Holder] = {}
        self._run_s: dict[str, float] = {}  # by task: mean run time, newer jobs counting more
        self._dropped: set[int] = set()  # seqs in memory that were cancelled: skipped when their turn comes
        self._effects = Effects()
        self._turn = 0

    def take_effects(self) -> Effects:
        """Hands over what is to be carried out, once."""
        effects, self._effects = self._effects, Effects()
        return effects

    # -- jobs come in

    def found(self, queue: str, waiting: int) -> None:
        """At the start: the store holds so many queued jobs."""
        self._queue(queue).waiting = waiting
        self._queue(queue).on_disk_after = 0

    def submitted(self, rows: Sequence[JobRow]) -> None:
        """New jobs of one queue are stored, in ascending order of `seq`."""
        if not rows:
            return
        queue = self._queue(rows[0].spec.queue)
        queue.waiting += len(rows)
        if queue.on_disk_after is not None:
            return
        room = self._memory_bytes - sum(other.held_bytes for other in self._queues.values())
        if _bytes_of(rows) <= room:
            queue.hold(rows)
            return
        for row in rows:
            if room <= 0:
                queue.on_disk_after = row.seq - 1
                return
            room -= len(row.payload) + ROW_BYTES
            queue.hold([row])

    def came_due(self, rows: Iterable[JobRow]) -> None:
        """Scheduled jobs have become queued."""
        for row in rows:
            queue = self._queue(row.spec.queue)
            queue.waiting += 1
            if queue.holds(row.seq):
                queue.hold([row])

    def loads(self) -> list[Load]:
        """What to read from the store now, since memory runs short of it."""
        loads = []
        for queue in self._queues.values():
            if queue.on_disk_after is not None and len(queue.held) < LOAD_JOBS / 2 and self._serves(queue.name):
                loads.append(Load(queue.name, queue.on_disk_after, LOAD_JOBS, LOAD_BYTES))
        return loads

    def loaded(self, name: str, rows: Sequence[JobRow], is_all: bool) -> None:
        """The answer to a load."""
        queue = self._queue(name)
        queue.hold(rows)
        if is_all:
            queue.on_disk_after = None
        elif rows:
            queue.on_disk_after = rows[-1].seq

    # -- consumers come and go

    def joined(self, key: Key, now: float) -> None:
        """A consumer is ready for jobs."""
        self._holders[key] = _Holder(now)

    def retire(self, key: Key) -> None:
        """A consumer is to get no more jobs."""
        self._holders[key].accepts = False

    def sent(self, key: Key) -> int:
        """The last number sent to a consumer."""
        return self._holders[key].next_number - 1

    def holds(self, key: Key, number: int) -> bool:
        """Whether a consumer was sent the job with that number, and has it still."""
        return key in self._holders and number in self._holders[key].leased

    def holds_nothing(self, key: Key) -> bool:
        """Whether a consumer has no job left."""
        return not self._holders[key].leased

    def recalled(self, key: Key, claimed: int, now: float) -> None:
        """All jobs of a consumer above number `claimed` were taken back."""
        holder = self._holders[key]
        numbers = [number for number in holder.leased if number > claimed]
        if holder.is_held_up(now) and len(numbers) == len(holder.leased):
            holder.is_stalled = True
        holder.asked_up_to = holder.next_number - 1
        self._put_back([holder.leased.pop(number) for number in numbers])
        holder.progress_at = min(holder.progress_at, now)

    def died(self, key: Key, claim: Claim, death: Death, wall: float) -> None:
        """A consumer is gone; all that it sent was heard before. The job that was running is charged, no other."""
        holder = self._holders.pop(key)
        row = holder.leased.pop(claim.number, None) if claim.running else None
        self._put_back(list(holder.leased.values()))
        if row is None:
            return
        if death.stopped or death.timed_out not in (None, claim.number):
            self._put_back([row])  # killed for no fault of its own: it began after the decision to kill for another
        elif death.timed_out == claim.number:
            self._timed_out(key, row, wall)
        else:
            self._crashed(key, row, death)

    def lost(self, row: JobRow) -> None:
        """At the start, before `found`: this job was running when a whole fleet died. It stays in the store."""
        self._crashed(None, row, Death())

    # -- jobs end

    def settled(
        self,
        key: Key,
        attempts: Attempts,
        now: float,
        wall: float,
    ) -> None:
        """A consumer reports attempts that ended."""
        holder = self._holders[key]
        holder.progress_at = now
        holder.is_stalled = False
        leased, effects = holder.leased, self._effects
        succeeded, kept = Verdict.SUCCEEDED, Kept.SUCCEEDED  # looked up once: 0.1 microseconds each time
        spec: Spec | None = None
        durations_us: list[int] = []
        durations_of: dict[str, list[int]] = {}
        for number, verdict, duration_us, outcome in zip(*attempts, strict=True):
            row = leased.get(number)
            if row is None:  # never sent, or reported twice: nothing of it is believed
                effects.notes.append(Note("consumer.confused", {"consumer_key": key, "number": number}))
                continue
            # may raise: then the job is still the consumer's, and goes back when that is killed for it
            error = None if verdict == succeeded else error_in(outcome)
            del leased[number]
            row.attempts += 1
            if row.spec is not spec:
                spec = row.spec
                durations_us = durations_of.setdefault(spec.task, [])
            durations_us.append(duration_us)
            if verdict == succeeded:
                effects.ended.append((row, kept, outcome))
                effects.done.append((row, key, duration_us))
            else:
                self._failed(key, row, error, outcome, may_retry=verdict == Verdict.FAILED, wall=wall)
        self._measure(durations_of)

    def _measure(self, durations_of: dict[str, list[int]]) -> None:
        for task, durations_us in durations_of.items():
            mean_s = sum(durations_us) / len(durations_us) / 1e6
            known_s = self._run_s.get(task)
            weight = 1.0 if known_s is None else len(durations_us) / (len(durations_us) + 8)
            self._run_s[task] = mean_s if known_s is None else known_s + (mean_s - known_s) * weight

    def _failed(
        self, key: Key, row: JobRow, error: JobError | None, outcome: bytes, may_retry: bool, wall: float
    ) -> None:
        """An attempt ended without success, its count included in `row.attempts`; what follows?"""
        failures = row.attempts - row.crashes
        fields = {"row": row, "consumer_key": key, "error": error}
        if may_retry and failures <= row.spec.retries:
            delay_s = backoff_s(row.id, failures)
            self._effects.rescheduled.append(Rescheduled(row, wall + delay_s, outcome))
            self._effects.retried += 1
            self._effects.notes.append(Note("job.retrying", {**fields, "delay_s": round(delay_s, 3)}))
        else:
            self._effects.ended.append((row, Kept.FAILED, outcome))
            self._effects.notes.append(Note("job.failed", fields))

    def _timed_out(self, key: Key, row: JobRow, wall: float) -> None:
        row.attempts += 1
        limit_s = row.spec.timeout_s
        error = JobError("TimedOut", f"the job ran longer than its timeout of {limit_s:g} s and was killed")
        self._failed(key, row, error, pack_failure(None, limit_s, error), may_retry=True, wall=wall)

    def _crashed(self, key: Key | None, row: JobRow, death: Death) -> None:
        row.attempts += 1
        row.crashes += 1
        self._effects.crashed += 1
        if key is None:
            reason = "the whole fleet died while the job ran"
        else:
            reason = f"the process that ran the job {death.describe()}"
        error = JobError("Crashed", reason, "", death.exit_code, death.signal, list(death.output))
        outcome = pack_failure(None, None, error)
        is_last = row.crashes >= row.spec.max_crashes
        fields = {"row": row, "consumer_key": key, "error": error, "crashes": row.crashes}
        self._effects.notes.append(Note("job.crashed", {**fields, "runs_again": not is_last}))
        if is_last:
            self._effects.ended.append((row, Kept.FAILED, outcome))
            self._effects.notes.append(Note("job.failed", fields))
        else:
            self._effects.rescheduled.append(Rescheduled(row, None, outcome))
            if key is not None:
                self._put_back([row])

    # -- jobs are cancelled

    def state_of(self, row: JobRow, claims: dict[Key, Claim]) -> JobState:
        """The state of a job that the store has as queued."""
        for key, holder in self._holders.items():
            for number, leased in holder.leased.items():
                if leased.id == row.id:
                    claim = claims[key]
                    is_running = claim.running and claim.number == number
                    return JobState.RUNNING if is_running else JobState.QUEUED
        return JobState.QUEUED

    def holder_of(self, job_id: bytes) -> Key | None:
        """The consumer that a job was sent to, if it was."""
        for key, holder in self._holders.items():
            if any(row.id == job_id for row in holder.leased.values()):
                return key
        return None

    def cancelled(self, row: JobRow, kept: Kept) -> None:
        """A job that the store has as queued or scheduled, and that no consumer holds, is cancelled."""
        if kept == Kept.QUEUED:
            queue = self._queue(row.spec.queue)
            queue.waiting -= 1
            if queue.holds(row.seq):
                self._dropped.add(row.seq)
        outcome = pack_failure(None, None, JobError("Cancelled", "cancelled before it started"))
        self._effects.ended.append((row, Kept.CANCELLED, outcome))
        self._effects.notes.append(Note("job.cancelled", {"row": row}))

    # -- what to do next

    def dispatch(self, now: float) -> list[Batch]:
        """Decides which waiting jobs go to which consumers, idle ones first."""
        ready = sum(len(queue.held) for queue in self._queues.values() if self._serves(queue.name))
        if not ready:
            return []
        takers = [(key, holder) for key, holder in self._holders.items() if holder.has_room]
        takers.sort(key=lambda taker: (taker[1].is_stalled, len(taker[1].leased)))
        batches = []
        for position, (key, holder) in enumerate(takers):
            share = ceil(ready / (len(takers) - position))
            most = min(share, MAX_LEASED - len(holder.leased))
            if holder.is_held_up(now):
                most = min(most, 2 - len(holder.leased))
            elif holder.is_stalled:
                most = min(most, 1)
            rows, work_s = self._take(most)
            if rows:
                ready -= len(rows)
                batches.append(self._lease(key, holder, rows, work_s, now))
        return batches

    def _take(self, most: int) -> tuple[list[JobRow], float]:
        """Takes jobs for one batch, the queues in turn. Returns them, and the run time that they are worth."""
        queues = [queue for queue in self._queues.values() if queue.held and self._serves(queue.name)]
        rows: list[JobRow] = []
        size, work_s = 0, 0.0
        spec, run_s = None, 0.0
        self._turn += 1
        for turn in range(len(queues)):
            queue = queues[(self._turn + turn) % len(queues)]
            while queue.held and len(rows) < most and work_s < BATCH_S and size < MAX_BATCH_BYTES:
                if self._dropped and self._skip(queue):
                    continue
                row = queue.take()
                if row.spec is not spec:
                    spec = row.spec
                    run_s = self._run_s.get(spec.task, UNKNOWN_RUN_S)
                rows.append(row)
                size += len(row.payload)
                work_s += run_s
        return rows, work_s

    def _skip(self, queue: _Queue) -> bool:
        """Drops the next job if it was cancelled (it is not counted as waiting any more)."""
        seq = queue.held[0].seq
        if seq not in self._dropped:
            return False
        self._dropped.discard(seq)
        queue.take()
        queue.waiting += 1
        return True

    def _lease(self, key: Key, holder: _Holder, rows: list[JobRow], work_s: float, now: float) -> Batch:
        first = holder.next_number
        if not holder.leased:
            holder.progress_at = now
        holder.leased.update(enumerate(rows, first))
        holder.next_number = first + len(rows)
        holder.mean_run_s = work_s / len(rows)
        limits_s = [row.spec.timeout_s for row in rows if row.spec.timeout_s is not None]
        if limits_s:
            earliest = now + min(limits_s)
            holder.check_at = earliest if holder.check_at is None else min(holder.check_at, earliest)
        return Batch(key, first, rows)

    def recalls(self, now: float) -> list[Key]:
        """The consumers whose waiting jobs are to be taken back, for others idle while they are held up."""
        if any(queue.held for queue in self._queues.values() if self._serves(queue.name)):
            return []
        if not self._has_idle():
            return []
        waits = {key: holder.ask_back_at() for key, holder in self._holders.items()}
        return [key for key, at in waits.items() if at is not None and at <= now]

    def next_recall(self, now: float) -> float | None:
        """When `recalls` may have an answer that it does not have now, if nothing else happens (monotonic)."""
        if not self._has_idle():
            return None
        waits = [at for holder in self._holders.values() if (at := holder.ask_back_at()) is not None]
        return max(now, min(waits)) if waits else None

    def _has_idle(self) -> bool:
        return any(holder.accepts and not holder.leased for holder in self._holders.values())

    def next_time_check(self) -> float | None:
        """When a job's time may be over (monotonic)."""
        return min((h.check_at for h in self._holders.values() if h.check_at is not None), default=None)

    def time_checks(self, now: float) -> list[Key]:
        """The consumers to check for a job whose time is over."""
        return [key for key, h in self._holders.items() if h.check_at is not None and h.check_at <= now]

    def check_time(self, key: Key, claim: Claim, now: float) -> Literal["signal", "kill"] | None:
        """What to do with a consumer, seeing what it is running: signal or kill it for its job, or nothing."""
        holder = self._holders[key]
        limits_s = [row.spec.timeout_s for row in holder.leased.values() if row.spec.timeout_s is not None]
        # what starts next may have the shortest limit of all, and cannot be over it before this
        holder.check_at = check_at = now + min(limits_s) if limits_s else None
        row = holder.leased.get(claim.number)
        if row is None or not claim.running or row.spec.timeout_s is None or check_at is None:
            return None
        deadline = claim.started_at + row.spec.timeout_s
        if now < deadline:
            holder.check_at = min(check_at, deadline)
            return None
        is_signalled = holder.signalled == claim.number
        if is_signalled and now >= holder.kill_at:
            return "kill"
        if not is_signalled:
            holder.signalled = claim.number
            holder.kill_at = now + self._kill_grace_s
            fields = {"row": row, "consumer_key": key, "timeout_s": row.spec.timeout_s}
            self._effects.notes.append(Note("job.timed_out", fields))
        holder.check_at = min(check_at, holder.kill_at)
        return None if is_signalled else "signal"

    def running(self, key: Key, claim: Claim) -> JobRow | None:
        """The job that a consumer is running."""
        return self._holders[key].leased.get(claim.number) if claim.running and key in self._holders else None

    def counts(self) -> dict[str, int]:
        """Jobs of each queue that wait and were sent to no consumer."""
        return {name: queue.waiting for name, queue in self._queues.items()}

    def leased(self) -> dict[Key, list[tuple[int, JobRow]]]:
        """The jobs sent to each consumer, with their numbers."""
        return {key: list(holder.leased.items()) for key, holder in self._holders.items()}

    @property
    def has_work(self) -> bool:
        """Whether a job of the served queues waits or was sent to a consumer."""
        waits = any(queue.waiting for queue in self._queues.values() if self._serves(queue.name))
        return waits or any(holder.leased for holder in self._holders.values())

    # -- helpers

    def _queue(self, name: str) -> _Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Queue(name)
        return queue

    def _serves(self, queue: str) -> bool:
        return not self._served or queue in self._served

    def _put_back(self, rows: list[JobRow]) -> None:
        by_queue: dict[str, list[JobRow]] = {}
        for row in rows:
            by_queue.setdefault(row.spec.queue, []).append(row)
        for name, back in by_queue.items():
            self._queue(name).put_back(back)
