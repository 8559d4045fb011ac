"""The broker's side of its consumers: reads what they send and print, sees them die, sends jobs, takes jobs back.

It is for consumers what `taskq.engines.server` is for clients. The supervisor starts and ends the processes;
the core decides.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from taskq.broker.consumers.handle import ConsumerProcess
from taskq.broker.consumers.job_output import JobOutput
from taskq.broker.consumers.silence import LOOK_EVERY_S, SILENT_LOOKS, Silences
from taskq.broker.consumers.succession import ProcessState
from taskq.broker.consumers.supervisor import Supervisor
from taskq.broker.events import EventLog, last_words
from taskq.model.attempt import Attempts, Claim, Reason, Verdict
from taskq.model.effects import Batch, Key, ProcessExit
from taskq.model.errors import ProtocolError, TaskQError
from taskq.model.job import Progress
from taskq.protocol.frames import Message
from taskq.protocol.link.reports import (
    BootFailed,
    Checkpoint,
    Children,
    Declared,
    Items,
    JobsProgress,
    Ready,
    Report,
    read_report,
)

if TYPE_CHECKING:  # the pool uses the parts, and is handed to them
    from taskq.broker.parts import Parts

#: The start of a job is logged if the job is still running after this time.
_ANNOUNCE_AFTER_S = 0.1
#: What is read of a consumer at once: some 1,000 successes, or 100 failures, which take longer.
_READ_BYTES = 32 * 1024
#: The progress of a consumer's jobs is logged at most once in this time.
_PROGRESS_EVERY_S = 1.0


#: This long before a process is killed for a job, it is asked for the stacks of its threads.
_STACKS_BEFORE_KILL_S = 0.5


class ConsumerPool:
    """All consumers of a fleet. Used by the broker's loop alone."""

    def __init__(
        self,
        parts: Parts,
        events: EventLog,
        supervisor: Supervisor,
        selector: selectors.BaseSelector,
        on_first_ready: Callable[[], None],
        on_boot_failed: Callable[[str], None],
    ) -> None:
        """
        Args:
            parts: of the broker; the pool is handed to them in turn.
            selector: with callables as data, called with the mask of events.
            on_first_ready: called once, when the first consumer is ready.
            on_boot_failed: called with the reason when a consumer could not start.
        """
        self._parts = parts
        self._core = parts.core
        self._settings = parts.settings
        self._clock = parts.clock
        self._supervisor = supervisor
        self._selector = selector
        self._events = events
        self._on_first_ready = on_first_ready
        self._on_boot_failed = on_boot_failed
        self._output = JobOutput(parts.core, events, parts.clock)
        self._silences = Silences()
        self._dead: list[ConsumerProcess] = []
        self._buried: list[ConsumerProcess] = []
        self.is_ready = False  # whether a consumer was ever ready
        self.is_stopping = False

    # -- messages

    def _register(self, consumer: ConsumerProcess) -> None:
        self._selector.register(consumer.socket, selectors.EVENT_READ, partial(self._on_consumer, consumer))
        self._selector.register(consumer.output, selectors.EVENT_READ, partial(self._on_output, consumer))
        self._selector.register(consumer.death_fd, selectors.EVENT_READ, partial(self._on_death, consumer))

    def _on_consumer(self, consumer: ConsumerProcess, _mask: int) -> None:
        if self._core.has_enough:
            return  # it is ready again in the next turn
        consumer.messages += 1
        try:
            self._hear_each(consumer, consumer.read_messages(_READ_BYTES))
        except (EOFError, OSError):
            self._selector.unregister(consumer.socket)  # its death is seen at its own descriptor
        except TaskQError as error:
            self._on_confused(consumer, error)

    def _hear_each(
        self, consumer: ConsumerProcess, messages: list[Message], *, failed_boots_only: bool = False
    ) -> None:
        """Reads messages one by one: one that makes no sense does not affect those behind it."""
        for envelope, body in messages:
            try:
                report = read_report(envelope, body)
                if not failed_boots_only or isinstance(report, BootFailed):
                    self._hear(consumer, report)
            except (TaskQError, TypeError, ValueError) as error:
                self._on_confused(consumer, error)

    def _on_confused(self, consumer: ConsumerProcess, error: Exception) -> None:
        """Kills a consumer that does not speak as consumers do: a job may have written to its socket."""
        self._events.log.error("consumer.confused", consumer=consumer.number, pid=consumer.pid, error=str(error))
        consumer.kill("it sent something that consumers do not send")

    def _hear(self, consumer: ConsumerProcess, report: Report) -> None:
        match report:
            case Attempts():
                self._on_outcomes(consumer, report)
            case Items(job_id, first, items):
                if not self._core.yielded(consumer.key, job_id, first, items):
                    raise ProtocolError("items of a job that the consumer does not have")
            case JobsProgress(by_job):
                self._on_progress(consumer, by_job)
            case Checkpoint(job_id, data):
                self._core.checkpointed(consumer.key, job_id, data)
            case Children(number, jobs):
                if not self._core.holds(consumer.key, number):
                    raise ProtocolError("jobs that were enqueued by a job that the consumer does not have")
                consumer.children.setdefault(number, []).append(jobs)
            case Ready():
                consumer.tasks = report.tasks
                self._on_ready(consumer)
            case Declared(app, schedules):
                self._parts.declared(app, schedules)
            case BootFailed(error):
                consumer.boot_error = error.message, error.traceback

    def _on_outcomes(self, consumer: ConsumerProcess, attempts: Attempts) -> None:
        if consumer.counters.slots > 1 and consumer.output in self._selector.get_map():
            self._output.hear(consumer)  # what these jobs wrote has arrived: log it while they are known
        elif consumer.lines.is_within_line and consumer.writer in attempts.numbers:
            self._output.tell(consumer, consumer.lines.end_line())
        self._settle(consumer, attempts)
        self._after_outcomes(consumer)

    def _settle(self, consumer: ConsumerProcess, attempts: Attempts) -> None:
        """Settles attempts that have ended. Jobs that the successful ones have enqueued commit together with that."""
        if consumer.excerpts:
            self._output.end(consumer, [number for number in attempts.numbers if number in consumer.excerpts])
        now, wall = self._clock.monotonic(), self._clock.time()
        begin = 0
        for end, number in enumerate(attempts.numbers if consumer.children else (), 1):
            children = consumer.children.pop(number, None)
            if children is not None:  # its end is the last one that the core has heard of when it takes these
                self._core.settled(consumer.key, attempts.between(begin, end), now, wall)
                if attempts.verdicts[end - 1] == Verdict.SUCCEEDED:
                    self._parts.take_children(children)
                begin = end
        if begin == 0 or begin < len(attempts.numbers):
            self._core.settled(consumer.key, attempts.between(begin, None) if begin else attempts, now, wall)

    def _on_ready(self, consumer: ConsumerProcess) -> None:
        now = self._clock.monotonic()
        replaced = self._supervisor.ready(consumer)
        self._core.joined(consumer.key, now, self._settings.queues_of(consumer.number), consumer.number)
        self._events.log.info(
            "consumer.started",
            consumer=consumer.number,
            pid=consumer.pid,
            boot_ms=round((now - consumer.started_at) * 1e3),
        )
        if replaced is not None:
            self.retire(replaced)
        if self.is_stopping:
            self.retire(consumer)
        if not self.is_ready:
            self.is_ready = True
            self._on_first_ready()
        if self._supervisor.finish_reload():
            self._events.log.info("fleet.reloaded", consumers=self._settings.consumers)

    def _on_progress(self, consumer: ConsumerProcess, by_job: dict[bytes, Progress]) -> None:
        """Notes how far jobs are."""
        now = self._clock.monotonic()
        consumer.progress.update(by_job)
        self._forget_progress(consumer)
        if now - consumer.progress_told_at >= _PROGRESS_EVERY_S:
            consumer.progress_told_at = now
            for job_id, progress in consumer.progress.items():
                row = self._core.sent_row(consumer.key, job_id)
                if row is not None:
                    self._events.progress(row, consumer.key, progress)

    def _forget_progress(self, consumer: ConsumerProcess) -> None:
        """Forgets the progress of jobs that have ended."""
        held = self._core.sent_ids(consumer.key)
        consumer.progress = {job_id: progress for job_id, progress in consumer.progress.items() if job_id in held}

    def progress_of(self, job_id: bytes) -> tuple[float, float | None, str] | None:
        """How far a running job is, if it reported that: done, total, note."""
        consumers = self._supervisor.consumers.values()
        told = next((consumer.progress[job_id] for consumer in consumers if job_id in consumer.progress), None)
        return None if told is None else (told.done, told.total, told.note)

    def _after_outcomes(self, consumer: ConsumerProcess) -> None:
        if consumer.progress:
            self._forget_progress(consumer)
        if consumer.state is ProcessState.RETIRING and self._core.holds_nothing(consumer.key):
            self._supervisor.expect_exit(consumer, self._clock.monotonic())
        elif (most := self._settings.max_jobs) is not None and consumer.counters.jobs_done >= most:
            self._supervisor.replace(consumer)

    def _on_output(self, consumer: ConsumerProcess, _mask: int) -> None:
        self._output.hear(consumer)

    # -- deaths

    def _on_death(self, consumer: ConsumerProcess, _mask: int) -> None:
        self._selector.unregister(consumer.death_fd)
        self._dead.append(consumer)

    def bury_dead(self, now: float, wall: float) -> None:
        """Settles what the consumers that died have left; the supervisor plans their successors."""
        dead, self._dead = self._dead, []
        for consumer in dead:
            self._hear_last_words(consumer)
            claims = consumer.counters.read()
            death = self._supervisor.bury(consumer, now)
            if consumer.state is ProcessState.STARTING:
                if not death.stopped or consumer.boot_error:
                    self._on_failed_boot(consumer, death)
                continue
            was_expected = death.stopped or (death.exit_code == 0 and not claims)
            rows = {claim.number: row for claim in claims if (row := self._core.running(consumer.key, claim.number))}
            self._events.buried(consumer, death, rows, was_expected=was_expected)
            self._core.died(consumer.key, claims, death, wall)
            self._buried.append(consumer)

    def _hear_last_words(self, consumer: ConsumerProcess) -> None:
        """Reads everything that a dead consumer sent: results outlive their writer."""
        claims = consumer.counters.read()
        if consumer.inbox in self._selector.get_map():
            self._selector.unregister(consumer.inbox)
        if consumer.socket in self._selector.get_map():
            self._selector.unregister(consumer.socket)
            try:
                is_starting = consumer.state is ProcessState.STARTING  # and not to take anybody's place any more
                while messages := consumer.read_messages():
                    self._hear_each(consumer, messages, failed_boots_only=is_starting)
            except (EOFError, OSError, TaskQError):
                pass  # its end, or a frame that it did not finish
        if consumer.counters.slots > 1:
            self._output.hear(consumer)
        self._settle_unsent(consumer)
        self._selector.unregister(consumer.output)
        self._output.begin(consumer, claims)
        with suppress(OSError):
            self._output.tell(consumer, consumer.read_output())
        self._output.tell(consumer, consumer.lines.flush())
        written = consumer.excerpts if consumer.counters.slots > 1 else consumer.excerpts.keys() & {consumer.writer}
        consumer.last_lines = {number: list(consumer.excerpts[number].last) for number in written}
        self._output.end(consumer, list(consumer.excerpts))

    def _settle_unsent(self, consumer: ConsumerProcess) -> None:
        """Takes over the outcomes that a dead consumer had not sent, or not completely."""
        try:
            unsent = [
                row for row in zip(*consumer.unsent.read(), strict=True) if self._core.holds(consumer.key, row[0])
            ]
            if unsent:
                self._settle(consumer, Attempts(*zip(*unsent, strict=True)))
        except TaskQError as error:
            self._events.log.error("consumer.confused", consumer=consumer.number, pid=consumer.pid, error=str(error))

    def _on_failed_boot(self, consumer: ConsumerProcess, death: ProcessExit) -> None:
        message, traceback = consumer.boot_error or (f"the process {death.describe()}", "")
        fields = {"traceback": traceback} if traceback else {}
        if death.output:
            fields["output"] = last_words(death.output)
        self._tell_failed_boot(consumer.number, consumer.code, message, **fields)

    def _tell_failed_boot(self, number: int, code: int, error: str, **fields: Any) -> None:
        self._supervisor.boot_errors[number] = error
        self._on_boot_failed(error)
        self._events.log.error("consumer.boot_failed", consumer=number, error=error, **fields)
        self._tell_if_reload_failed(code, error)

    def _tell_if_reload_failed(self, code: int, error: str) -> None:
        if self._supervisor.boot_failed(code, error):
            self._events.log.error("fleet.reload_failed", error=error, kept="the consumers that run the old code")

    # -- jobs

    def dispatch(self, now: float, wall: float) -> None:
        """Moves jobs to where they can run: to consumers with room, and back from those that are held up."""
        core = self._core
        if core.ready.may_send():
            self._send(core.dispatch(now, wall))
        if not core.has_to_look(now):
            return
        held_up = core.recalls(now)
        held_up += [key for key in core.looks(now) if key not in held_up and self._waits_too_long(key, now)]
        for key in held_up:
            self.take_back(key, now)
        if held_up:
            self._send(self._core.dispatch(now, wall))

    def _waits_too_long(self, key: Key, now: float) -> bool:
        return self._core.waits_too_long(key, self._supervisor.consumers[key].counters.read(), now)

    def _send(self, batches: list[Batch]) -> None:
        for batch in batches:
            consumer = self._supervisor.consumers[batch.key]
            if not consumer.send(batch):
                self._flush_later(consumer)

    def _flush_later(self, consumer: ConsumerProcess) -> None:
        if consumer.inbox not in self._selector.get_map():
            self._selector.register(consumer.inbox, selectors.EVENT_WRITE, partial(self._on_room, consumer))

    def _on_room(self, consumer: ConsumerProcess, _mask: int) -> None:
        if consumer.inbox.flush():
            self._selector.unregister(consumer.inbox)

    def take_back(self, key: Key, now: float) -> None:
        """Takes back what a consumer has not started."""
        sent = self._core.sent(key)
        claimed = self._supervisor.consumers[key].counters.take_back(sent)
        if claimed is None:
            self._core.not_recalled(key, now)
        elif self._core.recalled(key, claimed, now):
            self._send([Batch(key, sent + 1, [])])

    def withdraw(self, job_id: bytes) -> bool:
        """Takes a job back from the consumer that it was sent to, if any. Returns False if it runs."""
        key = self._core.consumer_of(job_id)
        if key is None:
            return True
        self.take_back(key, self._clock.monotonic())
        return self._core.consumer_of(job_id) is None

    def cancel_running(self, job_id: bytes) -> None:
        """Stops a running job, softly at first."""
        key = self._core.consumer_of(job_id)
        if key is not None:
            self._core.cancel_running(key, job_id, self._clock.monotonic())

    def is_running(self, job_id: bytes) -> bool:
        """Whether a job runs now."""
        key = self._core.consumer_of(job_id)
        if key is None:
            return False
        number = self._core.number_of(key, job_id)
        return any(claim.number == number for claim in self._supervisor.consumers[key].counters.read())

    def take_back_all(self, now: float) -> None:
        """Takes back what no consumer has started."""
        for key in list(self._core.leased()):
            self.take_back(key, now)

    def interrupt(self, job_ids: Collection[bytes], why: str) -> None:
        """Kills the consumers that run some of these jobs: what they run will run again, uncharged."""
        for key, claims in self.claims().items():
            rows = [self._core.running(key, claim.number) for claim in claims]
            if any(row is not None and row.id in job_ids for row in rows):
                consumer = self._supervisor.consumers[key]
                consumer.is_stopped = True
                consumer.kill(why)

    def check_times(self, now: float) -> None:
        """Stops the jobs whose time is over, or that use too much memory or CPU time."""
        if not self._core.is_check_due(now):
            return
        for key in self._core.time_checks(now):
            consumer = self._supervisor.consumers[key]
            for number, action in self._core.check_time(key, consumer.counters.read(), now):
                is_unwanted = self._core.is_unwanted(key, number)
                if action == "signal":
                    consumer.signal_timeout(number, Reason.CANCELLED if is_unwanted else Reason.TIMEOUT)
                else:
                    consumer.timed_out = number
                    what = "was cancelled" if is_unwanted else "ran longer than its timeout"
                    consumer.kill(f"{self._name(consumer, number)} {what} and did not end")
        self.measure(now)

    def measure(self, now: float) -> None:
        """Stops the jobs that use too much memory or CPU time."""
        for key in self._core.measurements(now):
            consumer = self._supervisor.consumers[key]
            claims = consumer.counters.read()
            action = self._core.measured(key, claims, consumer.usage(), now)
            if action == "signal":
                consumer.signal_timeout(claims[0].number, Reason.CPU_TIMEOUT)
            elif action is not None:
                consumer.timed_out, consumer.over_limit = claims[0].number, action
                consumer.kill(action.message)

    def _name(self, consumer: ConsumerProcess, number: int) -> str:
        row = self._core.running(consumer.key, number)
        return "a job" if row is None else f"job {row.id.hex()}"

    def has_to_announce(self, now: float) -> bool:
        """Whether a consumer has jobs, or has printed what is not logged yet."""
        return self.waits_for_some(now) or any(
            consumer.stacks.lines or any(excerpt.holds_some for excerpt in consumer.excerpts.values())
            for consumer in self._supervisor.consumers.values()
        )

    def waits_for_some(self, _now: float) -> bool:
        """Whether an answer of a consumer is due."""
        return self._core.waits_for_some

    def announce(self, now: float) -> None:
        """Logs the jobs that have been running for a moment, and asks for the stacks of those that do not end."""
        for key, number in self._core.to_be_killed(now + _STACKS_BEFORE_KILL_S):
            self._supervisor.consumers[key].ask_for_stacks(number)
        for consumer in self._supervisor.consumers.values():
            if consumer.state is ProcessState.STARTING:
                continue
            claims = consumer.counters.read()
            self._output.tell_stacks(consumer, claims, now)
            self._output.tell_held_back(consumer, now)
            consumer.announced &= {claim.number for claim in claims}
            for number, started_at in claims:
                if number not in consumer.announced and now - started_at >= _ANNOUNCE_AFTER_S:
                    row = self._core.running(consumer.key, number)
                    if row is not None:
                        consumer.announced.add(number)
                        self._events.started(row, consumer.key, now)

    # -- beginnings and ends

    def supervise(self, now: float) -> None:
        """Starts the next consumer that is due, and kills those that do not come up or end in time."""
        if self._supervisor.is_idle(now):
            return
        error = self._supervisor.look_after_servers(now)
        if error is not None:
            self._on_boot_failed(error)
            self._events.log.error("preload.failed", error=error)
            self._tell_if_reload_failed(self._supervisor.code, error)
        if (consumer := self._supervisor.start_due(now)) is not None:
            self._register(consumer)
        not_startable, self._supervisor.not_startable = self._supervisor.not_startable, []
        for number, error in not_startable:
            self._tell_failed_boot(number, self._supervisor.code, error)
        for late in self._supervisor.kill_overdue(now):
            self._events.log.warning("consumer.killed", consumer=late.number, pid=late.pid, reason=late.killed_for)

    def end_the_silent(self, _now: float) -> None:
        """Kills the consumers that should run jobs, run none, and send nothing."""
        consumers = self._supervisor.consumers
        self._silences.forget_others(set(consumers))
        for key, consumer in consumers.items():
            if consumer.state is ProcessState.STARTING:
                continue
            is_dead = self._silences.look(
                key,
                is_awaited=self._core.waits_for(key),
                claims=consumer.counters.read(),
                jobs_done=consumer.counters.jobs_done,
                messages=consumer.messages,
            )
            if is_dead:
                consumer.is_stopped = True  # no job is to blame: it runs none
                why = f"it had jobs to run, started none and sent nothing for {SILENT_LOOKS * LOOK_EVERY_S:g} s"
                consumer.kill(why)
                self._events.log.error("consumer.killed", consumer=consumer.number, pid=consumer.pid, reason=why)

    def stop(self) -> int:
        """Lets all consumers end. Returns how many jobs are running."""
        self.is_stopping = True
        self._supervisor.stop()
        running = 0
        for consumer in list(self._supervisor.consumers.values()):
            if consumer.state is ProcessState.STARTING:
                self._kill(consumer)
            else:
                running += len(consumer.counters.read())
                if consumer.state is ProcessState.READY:
                    self.retire(consumer)
        return running

    def kill_all(self) -> None:
        """Kills all consumers now; the jobs that they are running go back uncharged."""
        for consumer in self._supervisor.consumers.values():
            self._kill(consumer)

    def _kill(self, consumer: ConsumerProcess) -> None:
        consumer.is_stopped = True
        consumer.kill("the fleet stopped before its jobs ended")

    @property
    def has_buried(self) -> bool:
        """Whether a death waits for its commit."""
        return bool(self._buried)

    def forget_buried(self) -> None:
        """Clears the records of what dead consumers were running: their deaths are committed."""
        for consumer in self._buried:
            self._supervisor.clear_record(consumer)
        self._buried.clear()

    def claims(self) -> dict[Key, list[Claim]]:
        """What each consumer is running."""
        consumers = self._supervisor.consumers.values()
        return {
            consumer.key: consumer.counters.read()
            for consumer in consumers
            if consumer.state is not ProcessState.STARTING
        }

    def retire(self, consumer: ConsumerProcess) -> None:
        """Lets a consumer end after what it is running."""
        self._core.retire(consumer.key)
        self.take_back(consumer.key, self._clock.monotonic())
        if not self._supervisor.retire(consumer):
            self._flush_later(consumer)
        if self._core.holds_nothing(consumer.key):
            self._supervisor.expect_exit(consumer, self._clock.monotonic())
