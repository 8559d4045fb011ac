"""The heart of the broker: which job runs where, and what becomes of it. Pure: no I/O, no clock, no randomness.

The broker tells the core what happened (jobs came in, a consumer reported, a consumer died, time passed) and the core
answers with what to do: rows to settle and lines to log (`take_effects`), batches to send (`dispatch`), leases to take
back (`recalls`), jobs to stop (`check_time`). There are two times: `now` is monotonic seconds, for every span;
`wall` is seconds since 1970, for what is stored and compared across restarts.

Leases can be taken back. A consumer gets jobs in batches, so that small jobs cost little; they are numbered 1, 2, 3 ...
for its process. What it has not started can be taken back, so that no job waits behind a long one. A consumer runs as
many jobs at once as it has slots; they start in the order of their numbers, and end in any order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from math import ceil, inf
from typing import Any, Final, Literal

from taskq.broker.core.leases import ASK_AGAIN_S, BATCH_S, MAX_LEASED, MAX_SENT, ConsumerLeases
from taskq.broker.core.pending_effects import PendingEffects
from taskq.broker.core.ready import ReadyJobs
from taskq.broker.core.reasons import Fleet, FleetFacts, obstacles
from taskq.broker.core.recalls import Recalls
from taskq.broker.core.run_times import RunTimes
from taskq.broker.core.watchdog import Watchdog
from taskq.broker.core.window import Portion
from taskq.model.attempt import Attempts, Claim, Failure, Ran, Usage, Verdict, pack_failure, read_failure, unpack
from taskq.model.effects import Batch, Effects, Event, Key, ProcessExit, Stop
from taskq.model.info.why import Obstacle
from taskq.model.job import JobError, JobRow
from taskq.model.partition import Load, Partition, Starts
from taskq.model.rules.limiters import Release
from taskq.model.spec import Spec
from taskq.model.stored import Rescheduled, StoredState
from taskq.model.verdicts import Consequence, after_crash, after_failure, crash_error, limit_error

MAX_BATCH_BYTES: Final = 256 * 1024


class Core:
    """The state of a fleet. Written and read by the broker's loop alone."""

    def __init__(
        self,
        queues: Iterable[str] = (),
        memory_bytes: int = 256 * 1024 * 1024,
        kill_grace_s: float = 2.0,
        weights: Mapping[str, float] | None = None,
        capacities: Mapping[str, int] | None = None,
        slots: int = 1,
    ) -> None:
        """
        Args:
            queues: the queues that this fleet serves; empty for all.
            memory_bytes: bound of the waiting jobs held in memory.
            kill_grace_s: seconds between the soft signal of a timeout and the kill.
            weights: the share of each queue whose share is not 1.
            capacities: the fleet's resources.
            slots: how many jobs each consumer runs at once.
        """
        self._served = frozenset(queues) or None
        self._slots = slots
        self.ready = ReadyJobs(weights, memory_bytes, slots, capacities, self._served)
        self.shared_limits = self.ready
        self._consumers: dict[Key, ConsumerLeases] = {}
        self._recalls = Recalls(self._consumers)
        self._watchdog = Watchdog(kill_grace_s, slots)
        self._run_times = RunTimes()
        self._pending = PendingEffects()

    @property
    def _effects(self) -> Effects:
        return self._pending.current

    @property
    def has_effects(self) -> bool:
        """Whether there is something to be carried out."""
        return self._pending.has_some

    @property
    def has_enough(self) -> bool:
        """Whether a turn has enough to do with what has to be carried out."""
        return self._pending.has_enough

    @property
    def next_effects_us(self) -> float:
        """About how long it takes to carry out what `take_some_effects` returns, in microseconds."""
        return self._pending.next_us

    def take_effects(self) -> Effects:
        """Returns all that has to be carried out, once. The caller must not change it."""
        return self._pending.take_all()

    def take_some_effects(self) -> Effects:
        """Returns the first of that, as much as a turn does, with all that belongs to a job."""
        return self._pending.take_some()

    # -- jobs come in

    def found(self, partition: Partition, waiting: int, first_seq: int) -> None:
        """Notes at the start that the store holds `waiting` queued jobs of a partition, from `first_seq` on."""
        self.ready.found(partition, waiting, first_seq)

    def submitted(self, rows: Sequence[JobRow]) -> None:
        """New jobs of one partition are stored, in ascending order of `seq`."""
        if rows:
            self.ready.add(rows)

    def came_due(self, rows: Iterable[JobRow]) -> None:
        """Scheduled jobs have become queued."""
        for row in rows:
            self.ready.add_late(row)

    def loads(self) -> list[Load]:
        """What to read from the store now, since memory runs short of it."""
        return self.ready.loads()

    @property
    def must_load(self) -> bool:
        """Whether `loads` has more to return: there may be very many partitions."""
        return self.ready.is_short

    def loaded(self, partition: Partition, rows: Sequence[JobRow], is_all: bool) -> None:
        """The answer to a load."""
        self.ready.loaded(partition, rows, is_all)

    def changed_rates(self, now: float, wall: float) -> list[tuple[str, Starts, float]]:
        """The starts that count for rates and are not stored yet; see `SharedLimits.changed_rates`."""
        return self.ready.changed_rates(now, wall)

    def rates_stored(self) -> None:
        """What `changed_rates` has just returned is durable."""
        self.ready.rates_stored()

    def restore_limits(self, rates: Mapping[str, Starts], under_way: Iterable[JobRow], now: float, wall: float) -> None:
        """Takes over, at the start, what `changed_rates` has returned, and the ordered jobs that were started."""
        self.ready.restore_rates(rates, now, wall)
        for row in under_way:
            self.ready.under_way(row)

    # -- consumers come and go

    def joined(self, key: Key, now: float, queues: Iterable[str] = (), number: int | None = None) -> None:
        """A consumer is ready for jobs, of these queues or, if there are none, of all. Attempts tell its number."""
        self._consumers[key] = ConsumerLeases(now, frozenset(queues) or self._served, self._slots, number)
        self._recalls.changed(key)

    def retire(self, key: Key) -> None:
        """Stops sending jobs to a consumer."""
        self._consumers[key].accepts = False
        self._recalls.changed(key)

    def sent(self, key: Key) -> int:
        """The last number sent to a consumer."""
        return self._consumers[key].next_number - 1

    def holds(self, key: Key, number: int) -> bool:
        """Whether a consumer was sent the job with that number and still has it."""
        return key in self._consumers and number in self._consumers[key].leased

    def holds_nothing(self, key: Key) -> bool:
        """Whether a consumer has no job left."""
        return not self._consumers[key].leased

    def waits_for(self, key: Key) -> bool:
        """Whether an answer of a consumer is due: it holds jobs, or has not answered since it failed to begin some."""
        consumer = self._consumers[key]
        return bool(consumer.leased) or consumer.is_stalled

    @property
    def waits_for_some(self) -> bool:
        """Whether an answer of any consumer is due."""
        return any(consumer.leased or consumer.is_stalled for consumer in self._consumers.values())

    def recalled(self, key: Key, claimed: int, now: float) -> bool:
        """All jobs of a consumer above number `claimed` were taken back.

        Returns:
            Whether it had a free slot for them, and time. Then the caller sends it an empty batch, which it answers
            with an empty report as soon as it can; until then it gets no jobs.
        """
        consumer = self._consumers[key]
        was_stalled = consumer.is_stalled
        unwanted = [row for number, row in self._unwanted(key) if number > claimed]
        self.ready.put_back(key, consumer.took_back(claimed, now), each_s=consumer.mean_run_s)
        self._cancel_unstarted(unwanted)
        self._recalls.changed(key)
        return consumer.is_stalled and not was_stalled

    def not_recalled(self, key: Key, now: float) -> None:
        """Notes that nothing could be taken back, as the consumer was suspended while it held the lock."""
        self._consumers[key].ask_again_at = now + ASK_AGAIN_S

    def died(self, key: Key, claims: Sequence[Claim], death: ProcessExit, wall: float) -> None:
        """Settles the jobs of a consumer that is gone, all of whose messages were read. All that ran are charged, since
        nobody knows which one killed the process; a kill for the time of one job is charged to that job alone."""
        consumer = self._consumers[key]
        running = [(claim, consumer.leased.pop(claim.number)) for claim in claims if claim.number in consumer.leased]
        unstarted = [row for _, row in self._unwanted(key)]
        del self._consumers[key]
        self._recalls.changed(key)
        self.ready.put_back(key, consumer.leased.values(), each_s=consumer.mean_run_s)
        self._cancel_unstarted(unstarted)
        unwanted = self._watchdog.unwanted(key)
        self._watchdog.forget(key)
        ran = Ran(consumer.number, death.pid, death.peak_bytes)
        for (number, started_at), row in running:
            ran_s = None if death.at is None else max(0.0, death.at - started_at)
            self._run_times.died(row.spec.task, number, ran_s, death)
            if number in unwanted:
                row.attempts += 1
                self._stopped(key, row, _begin(wall, ran_s), ran_s, ran)
            elif death.stopped or death.timed_out not in (None, number):
                self._interrupted(key, row, death)
            elif death.timed_out == number:
                row.attempts += 1
                error = limit_error(row.spec, death, death.output_of(number), ran_s)
                outcome = pack_failure(_begin(wall, ran_s), ran_s, error, ran=ran)
                self._did_not_succeed(key, row, Failure(Verdict.FAILED, error, None, outcome), wall)
            else:
                error = crash_error(death, death.output_of(number))
                outcome = pack_failure(_begin(wall, ran_s), ran_s, error, ran=ran)
                self._crashed(key, row, error, outcome, wall)
            self._pending.cut()

    def lost(self, row: JobRow, consumer: int | None = None) -> None:
        """Charges, at the start and before `found`, a job that ran when a whole fleet died. It stays in the store.

        Args:
            consumer: the number of the consumer that ran it.
        """
        error = crash_error(None, [])
        self._crashed(None, row, error, pack_failure(None, None, error, ran=Ran(consumer)))

    # -- jobs end

    def settled(self, key: Key, attempts: Attempts, now: float, wall: float) -> None:
        """Settles attempts that a consumer reports as ended, each by itself: one that is unreadable harms no other."""
        consumer = self._consumers[key]
        consumer.progress_at = now
        consumer.is_stalled = consumer.gave_back = False
        self._pending.cut()
        leased, effects = consumer.leased, self._effects
        succeeded, kept = Verdict.SUCCEEDED, StoredState.SUCCEEDED  # looked up once: 0.1 microseconds each time
        spec: Spec | None = None
        is_limited, row, verdict = False, None, 0
        leaving: list[JobRow] = []  # of one spec, those that have left its limits
        leaving_of: dict[Spec, list[JobRow]] = {}
        durations_us: list[int] = []
        durations_of: dict[str, list[int]] = {}
        for number, verdict, duration_us, outcome in zip(*attempts, strict=True):
            row = leased.get(number)
            if row is None:  # never sent, or reported twice: nothing of it is believed
                effects.notes.append(Event("consumer.confused", {"consumer_key": key, "number": number}))
                continue
            del leased[number]
            row.attempts += 1
            if row.spec is not spec:
                spec = row.spec
                is_limited = spec.is_limited
                durations_us = durations_of.setdefault(spec.task, [])
                if is_limited:
                    leaving = leaving_of.setdefault(spec, [])
            durations_us.append(duration_us)
            if verdict == succeeded:
                effects.ended.append((row, kept, outcome))
                effects.done.append((row, key, duration_us))
                if row.constraints is not None and row.constraints.is_keyed:
                    self.ready.left(key, [row], Release.ENDED)
                elif is_limited:  # else nobody waits for it
                    leaving.append(row)
                continue
            failure = read_failure(verdict, outcome, duration_us, consumer.number)
            if number in self._watchdog.unwanted(key):
                ended = unpack(failure.outcome)
                self._stopped(key, row, *ended[:2], Ran(consumer.number, ended.pid, ended.peak_bytes))
            else:
                self._did_not_succeed(key, row, failure, wall)
            self._pending.cut()
            effects = self._effects
        self._succeeded_last = row if verdict == succeeded else None
        for rows in leaving_of.values():
            if rows:
                self.ready.left(key, rows, Release.ENDED)
        self._run_times.ended(durations_of)
        self._recalls.changed(key)

    def take_children(self, children: Sequence[Any]) -> None:
        """Takes what the job that was settled last has enqueued (submissions), unless its success is not believed."""
        row = self._succeeded_last
        self._effects.children += [(row, submission) for submission in children if row is not None]

    def yielded(self, key: Key, job_id: bytes, first: int, items: list[bytes]) -> bool:
        """Takes the items that a running job has yielded, from position `first` on. Returns whether it is running."""
        row = self.sent_row(key, job_id)
        if row is not None:
            self._effects.items.append((row, first, items))
        return row is not None

    def checkpointed(self, key: Key, job_id: bytes, checkpoint: bytes) -> None:
        """Stores what a running job keeps for its next attempt."""
        row = self.sent_row(key, job_id)
        if row is not None:  # else a thread of it has outlived the job
            row.checkpoint = checkpoint
            self._effects.checkpoints.append(row)

    def sent_row(self, key: Key, job_id: bytes) -> JobRow | None:
        """The job with that id, if it was sent to that consumer and has not ended. Running jobs are among the first."""
        return next((row for row in self._consumers[key].leased.values() if row.id == job_id), None)

    def sent_ids(self, key: Key) -> set[bytes]:
        """The ids of the jobs that were sent to a consumer and have not ended."""
        return {row.id for row in self._consumers[key].leased.values()}

    def _interrupted(self, key: Key, row: JobRow, death: ProcessExit) -> None:
        """Puts back a job whose process was killed through no fault of the job: it runs again, uncharged."""
        fields = {"row": row, "consumer_key": key, "attempt": row.attempts + 1, "reason": death.why or None}
        self._effects.notes.append(Event("job.interrupted", fields))
        self.ready.put_back(key, [row], Release.AGAIN)  # it began: a rate has counted that

    def _did_not_succeed(self, key: Key, row: JobRow, failure: Failure, wall: float) -> None:
        """Settles an attempt that did not succeed; `row.attempts` includes it."""
        follows = after_failure(row, failure)
        fields = {"row": row, "consumer_key": key, "attempt": row.attempts, "error": failure.error}
        if follows.delay_s is not None:
            fields["delay_s"] = round(follows.delay_s, 3)
        if failure.verdict == Verdict.SNOOZED:
            row.snoozes += 1
        elif follows.state is None:
            self._effects.retried += 1
        self._effects.notes.append(Event(follows.event, fields))
        self._carry_out(key, row, follows, failure.outcome, wall)

    def _crashed(
        self, key: Key | None, row: JobRow, error: JobError, outcome: bytes, wall: float | None = None
    ) -> None:
        """Charges a job whose process died. Without a consumer and a time, its whole fleet died with it."""
        row.attempts += 1
        row.crashes += 1
        self._effects.crashed += 1
        follows = after_crash(row)
        fields = {"row": row, "consumer_key": key, "attempt": row.attempts, "error": error, "crashes": row.crashes}
        self._effects.notes.append(Event("job.crashed", {**fields, "runs_again": follows.state is None}))
        if follows.state is not None:
            self._effects.notes.append(Event(follows.event, fields))
        self._carry_out(key, row, follows, outcome, wall)

    def _carry_out(
        self, key: Key | None, row: JobRow, follows: Consequence, outcome: bytes, wall: float | None
    ) -> None:
        """Ends a job, or lets it run again. At the start there is no consumer: the job is only in the store."""
        if follows.state is not None:
            self._effects.ended.append((row, follows.state, outcome))
            if key is not None:
                self.ready.left(key, [row], Release.ENDED)
        elif key is None or wall is None or follows.delay_s is None:
            row.spec = follows.spec
            self._effects.rescheduled.append(Rescheduled(row, None, outcome, row.attempts))
            if key is not None:
                self.ready.put_back(key, [row], Release.AGAIN)
        else:
            self.ready.left(key, [row], Release.AGAIN)  # while it is still in the queue that it was sent from
            row.spec = follows.spec
            self._effects.rescheduled.append(Rescheduled(row, wall + follows.delay_s, outcome, row.attempts))

    # -- jobs are cancelled

    def consumer_of(self, job_id: bytes) -> Key | None:
        """The consumer that a job was sent to, or None if it was sent to none."""
        for key, consumer in self._consumers.items():
            if any(row.id == job_id for row in consumer.leased.values()):
                return key
        return None

    def number_of(self, key: Key, job_id: bytes) -> int:
        """The number that a job has in the consumer that it was sent to."""
        return next(number for number, row in self._consumers[key].leased.items() if row.id == job_id)

    def cancelled(self, row: JobRow, kept: StoredState) -> None:
        """Cancels a job that the store has as queued or scheduled, and that no consumer holds."""
        self.forget(row, kept)
        outcome = pack_failure(None, None, JobError("Cancelled", "cancelled before it started"))
        self._effects.ended.append((row, StoredState.CANCELLED, outcome))
        self._effects.notes.append(Event("job.cancelled", {"row": row}))

    def cancel_running(self, key: Key, job_id: bytes, now: float) -> None:
        """Cancels a running job: it gets the soft signal, and its process is killed after the grace period."""
        self._watchdog.cancelled(key, self._consumers[key].leased, self.number_of(key, job_id), now)

    def _unwanted(self, key: Key) -> list[tuple[int, JobRow]]:
        """The jobs of a consumer that have to be stopped, with their numbers."""
        leased = self._consumers[key].leased
        return [(number, leased[number]) for number in sorted(self._watchdog.unwanted(key)) if number in leased]

    def _cancel_unstarted(self, unwanted: Iterable[JobRow]) -> None:
        """Cancels jobs that came back unstarted: their consumer was to stop them, and held its lock, suspended."""
        for row in unwanted:
            self.cancelled(row, StoredState.QUEUED)

    def _stopped(self, key: Key, row: JobRow, started_at: float | None, duration_s: float | None, ran: Ran) -> None:
        """Ends a job that was cancelled while it ran and has not succeeded. The attempt is counted."""
        error = JobError("Cancelled", "cancelled while it ran")
        outcome = pack_failure(started_at, duration_s, error, ran=ran)
        self._effects.ended.append((row, StoredState.CANCELLED, outcome))
        self._effects.notes.append(Event("job.cancelled", {"row": row, "consumer_key": key}))
        self.ready.left(key, [row], Release.ENDED)

    def forget(self, row: JobRow, kept: StoredState) -> None:
        """Drops a job that the store had as queued or scheduled, and that no consumer holds: it will not run."""
        if kept == StoredState.QUEUED:
            self.ready.drop(row)
        elif kept == StoredState.SCHEDULED:
            self.ready.abandoned(row)

    def requeued(self, rows: Iterable[JobRow]) -> None:
        """Queues failed jobs again, at the end of their partitions: they are read from the store in their turn."""
        for row in rows:
            self.ready.add_unread(row)

    def pause(self, queues: Collection[str]) -> None:
        """Holds back the jobs of exactly these queues from now on. The caller takes back those that were sent."""
        for name in sorted(self.ready.paused ^ set(queues)):
            self.ready.pause(name, name in queues)

    # -- what to do next

    def dispatch(self, now: float, wall: float) -> list[Batch]:
        """Decides which waiting jobs go to which consumers, idle ones first."""
        if self._slots == 1 and self._recalls.free:
            key, consumer = next(iter(self._recalls.free.items()))
            if consumer.queues is self._served and (lone := self.ready.take_lone(self._run_times.of)) is not None:
                return [self._lease(key, consumer, [lone[0]], lone[1], now)]
        batches = sent = self._dispatch_once(now, wall)
        while sent and self._slots > 1:  # a batch is bounded, and may be too small for all free slots
            sent = self._dispatch_once(now, wall) if self._recalls.free else []
            batches += sent
        return batches

    def _dispatch_once(self, now: float, wall: float) -> list[Batch]:
        if not self.ready.may_send():
            return []
        free = list(self._recalls.free.items())
        takers = free or self._recalls.others_with_room(now)
        ready = self.ready.ready(len(self._consumers) * MAX_LEASED) if takers else 0
        if not ready:
            return []
        slots = len(free) if self._slots == 1 else sum([consumer.free_slots for _, consumer in free])
        if ready > slots:
            takers = free + self._recalls.others_with_room(now) if free else takers
            return self._share_out(takers, ready, 0, now, wall)
        batches = self._share_out(free, ready, slots, now, wall)  # no job has to wait behind others
        if self.ready.may_send():  # but these do not serve its queue, or its limits are closed for them
            ready -= sum([len(batch.rows) for batch in batches])
            asked = {key for key, _ in free}
            others = [taker for taker in self._recalls.others_with_room(now) if taker[0] not in asked]
            batches += self._share_out(others, ready, 0, now, wall)
        return batches

    def _share_out(
        self, takers: list[tuple[Key, ConsumerLeases]], ready: int, slots: int, now: float, wall: float
    ) -> list[Batch]:
        """Shares out what is ready: by free slots (`slots` in all), so that no job waits behind others; evenly if 0."""
        if len(takers) > 1 and not (slots and self._slots == 1):  # else all of them hold nothing
            takers.sort(key=lambda taker: len(taker[1].leased))
        batches: list[Batch] = []
        for position, (key, consumer) in enumerate(takers):
            if not self.ready.may_send():
                break
            if consumer.queues is not None and not self.ready.may_send_of(consumer.queues):
                continue
            free_slots = consumer.free_slots
            if slots:
                share = ceil(ready * free_slots / slots)
                slots -= free_slots
            else:
                share = ceil(ready / (len(takers) - position))
            # at least one: limits may have opened while jobs were taken
            most = min(max(1, share), MAX_LEASED - len(consumer.leased), MAX_SENT)
            if consumer.is_held_up(now):
                most = min(most, free_slots)
            portion = Portion(most, BATCH_S * consumer.slots, MAX_BATCH_BYTES, free_slots)
            self.ready.take(key, consumer.queues, portion, self._run_times.of, now, wall)
            if portion.rows:
                ready -= len(portion.rows)
                batches.append(self._lease(key, consumer, portion.rows, portion.work_s, now))
                if portion.is_closed_behind_crash:
                    consumer.alone = consumer.next_number - 1
        return batches

    def _lease(self, key: Key, consumer: ConsumerLeases, rows: list[JobRow], work_s: float, now: float) -> Batch:
        first = consumer.next_number
        consumer.send(rows, now)
        consumer.mean_run_s = work_s / len(rows)
        watched = [row.spec for row in rows if row.spec.is_watched]
        if watched:
            self._watchdog.sent(key, consumer.leased, watched, now)
        self._recalls.sent(key)
        return Batch(key, first, rows)

    def has_to_look(self, now: float) -> bool:
        """Whether `recalls` or `looks` may have an answer."""
        return self._recalls.has_to_look(now)

    def recalls(self, now: float) -> list[Key]:
        """The consumers that are held up, and whose waiting jobs idle ones should have; ask after `dispatch`."""
        return self._recalls.recalls(now)

    def looks(self, now: float) -> list[Key]:
        """The consumers in which jobs may be waiting for too long; `waits_too_long` decides, given what they run."""
        return self._recalls.looks(now)

    def waits_too_long(self, key: Key, claims: Sequence[Claim], now: float) -> bool:
        """Whether to take back what a consumer has not begun, though no other is idle: it is held up or suspended."""
        consumer = self._consumers[key]
        if not consumer.waits_too_long(claims, now):
            self._recalls.changed(key)  # what it runs began later than was known
            return False
        return len(claims) >= consumer.slots or self._recalls.another_serves(consumer)

    def next_recall(self, now: float) -> float | None:
        """When `recalls` may have an answer that it does not have now, if nothing else happens (monotonic)."""
        return self._recalls.next_recall(now)

    def next_look(self, now: float) -> float | None:
        """When `looks` may have an answer that it does not have now, if nothing else happens (monotonic)."""
        return self._recalls.next_look(now)

    def next_time_check(self, now: float) -> float | None:
        """When a job's time may be over (monotonic)."""
        return self._watchdog.next_check(now)

    def next_moment(self, now: float) -> float:
        """When any of these three, or a limit that opens by time, is due (monotonic); infinity: never."""
        return min(self._watchdog.moment(now), self._recalls.moment(now), self.ready.next_opening() or inf)

    def is_check_due(self, now: float) -> bool:
        """Whether `time_checks` or `measurements` have an answer."""
        return self._watchdog.is_due(now)

    def time_checks(self, now: float) -> list[Key]:
        """The consumers to check for a job whose time is over."""
        return self._watchdog.to_check(now)

    def check_time(self, key: Key, claims: Sequence[Claim], now: float) -> list[Stop]:
        """Decides what to do with a consumer, given what it is running: signal it or kill it for a job, or nothing."""
        return self._watchdog.check(key, claims, now, self._effects.notes)

    def measurements(self, now: float) -> list[Key]:
        """The consumers whose use of memory and CPU time should be measured, for a job that has limits."""
        return self._watchdog.to_measure(now)

    def measured(
        self, key: Key, claims: Sequence[Claim], usage: Usage | None, now: float
    ) -> Literal["signal"] | JobError | None:
        """Signals a consumer of one slot for what its job uses, or returns the error to kill it for, or neither."""
        return self._watchdog.measured(key, claims, usage, now, self._effects.notes)

    def is_unwanted(self, key: Key, number: int) -> bool:
        """Whether a running job was cancelled."""
        return number in self._watchdog.unwanted(key)

    def to_be_killed(self, by: float) -> list[tuple[Key, int]]:
        """The jobs whose process is killed before a time (monotonic) unless they end before."""
        return self._watchdog.to_be_killed(by)

    def running(self, key: Key, number: int) -> JobRow | None:
        """The job that a consumer was sent with that number, if it has not ended."""
        return self._consumers[key].leased.get(number) if key in self._consumers else None

    def counts(self) -> dict[str, int]:
        """The number of jobs in each queue that wait and were not sent to a consumer."""
        return self.ready.counts()

    def queued(self, queue: str) -> int:
        """About how many jobs of one queue wait, including those that were sent and have not begun."""
        sent = [row for one in self._consumers.values() for row in islice(one.leased.values(), one.slots, None)]
        return self.ready.waiting(queue) + sum(row.spec.queue == queue for row in sent)

    def slots(self, queue: str) -> int:
        """How many jobs of a queue the consumers can run at once; one that gets no more of them, as many as it has."""
        return sum([each.slots if each.serves(queue) else each.left_of(queue) for each in self._consumers.values()])

    def why(self, row: JobRow, is_queued: bool, facts: FleetFacts, now: float, wall: float) -> list[Obstacle]:
        """Why a job does not run; see `taskq.broker.core.reasons.obstacles`."""
        return obstacles(Fleet(self.ready, self._consumers, facts, now, wall), row, is_queued)

    def leased(self) -> dict[Key, list[tuple[int, JobRow]]]:
        """The jobs sent to each consumer, with their numbers."""
        return {key: list(consumer.leased.items()) for key, consumer in self._consumers.items()}

    @property
    def has_work(self) -> bool:
        """Whether a job of a served queue that is not paused waits or was sent to a consumer."""
        return any(consumer.leased for consumer in self._consumers.values()) or self.ready.has_some


def _begin(wall: float | None, ran_s: float | None) -> float | None:
    """When an attempt that ended just now began, if that is known."""
    return None if wall is None or ran_s is None else wall - ran_s
