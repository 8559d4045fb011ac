"""The broker's side of its consumers: hears what they say and print, sees them die, sends jobs and takes them back.

What `taskq.server` is for clients. Processes are the supervisor's business, decisions the core's.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

from taskq import wire
from taskq.config import Settings
from taskq.core import Core
from taskq.counters import Claim
from taskq.effects import Batch, Death, Key
from taskq.errors import ProtocolError, TaskQError
from taskq.intake import Submission, flow_of
from taskq.limits import MAX_CHECKPOINT_BYTES, MAX_ITEMS
from taskq.log.excerpt import Excerpt, Portion
from taskq.model import JobRow, Progress
from taskq.narrator import Narrator, last_words
from taskq.outcome import Attempts, Reason, Verdict, failure_in
from taskq.output import split_job_mark, whole_lines
from taskq.silence import LOOK_EVERY_S, SILENT_LOOKS, Silences
from taskq.succession import SlotState
from taskq.supervisor import Slot, Supervisor
from taskq.usage import usage_of
from taskq.wire import Message, Op

#: A job is told as started in the log if it is still running after this time.
_ANNOUNCE_AFTER_S = 0.1
#: The log is told of the progress of a consumer's jobs at most so often.
_PROGRESS_EVERY_S = 1.0


#: A process that is to be killed for a job is asked so long before where its threads stand.
_STACKS_BEFORE_KILL_S = 0.5
#: Stacks without a death are told when no line of them has come for so long.
_STACKS_WAIT_S = 1.0


class Crew:
    """All consumers of a fleet. Used by the broker's loop alone."""

    def __init__(
        self,
        core: Core,
        supervisor: Supervisor,
        selector: selectors.BaseSelector,
        narrator: Narrator,
        settings: Settings,
        on_first_ready: Callable[[], None],
        on_boot_failed: Callable[[str], None],
        on_declared: Callable[[str, list[bytes]], None],
        on_children: Callable[[list[Submission]], None],
    ) -> None:
        """
        Args:
            selector: with callables as data, called with the mask of events.
            settings: for the queues of each consumer, and how many jobs it may run.
            on_first_ready: told once, when the first consumer is ready.
            on_boot_failed: told why a consumer could not start.
            on_declared: told the application's name, and the schedules in its code; raises if they make no sense.
            on_children: takes what a job has enqueued that has just succeeded.
        """
        self._core = core
        self._supervisor = supervisor
        self._selector = selector
        self._narrator = narrator
        self._settings = settings
        self._on_first_ready = on_first_ready
        self._on_boot_failed = on_boot_failed
        self._on_declared = on_declared
        self._on_children = on_children
        self._silences = Silences()
        self._dead: list[Slot] = []
        self._buried: list[Slot] = []
        self.is_ready = False  # whether a consumer was ever ready
        self.is_stopping = False

    # -- hearing

    def _register(self, slot: Slot) -> None:
        self._selector.register(slot.socket, selectors.EVENT_READ, partial(self._on_consumer, slot))
        self._selector.register(slot.output, selectors.EVENT_READ, partial(self._on_output, slot))
        self._selector.register(slot.death_fd, selectors.EVENT_READ, partial(self._on_death, slot))

    def _on_consumer(self, slot: Slot, _mask: int) -> None:
        slot.messages += 1
        try:
            self._hear_each(slot, slot.read_messages())
        except (EOFError, OSError):
            self._selector.unregister(slot.socket)  # its death is told by its own descriptor
        except TaskQError as error:
            self._on_confused(slot, error)

    def _hear_each(self, slot: Slot, messages: list[Message]) -> None:
        """Hears messages one by one: one that makes no sense takes nothing from what those behind it say."""
        for envelope, body in messages:
            try:
                self._hear(slot, envelope, body)
            except (TaskQError, TypeError, ValueError) as error:
                self._on_confused(slot, error)

    def _on_confused(self, slot: Slot, error: Exception) -> None:
        """It does not speak as consumers do: a job may have written to its socket."""
        self._narrator.log.error("consumer.confused", consumer=slot.number, pid=slot.pid, error=str(error))
        slot.kill("it sent what no consumer sends")

    def _hear(self, slot: Slot, envelope: list[Any], body: memoryview) -> None:
        match envelope:
            case [Op.OUTCOMES, list(numbers), list(verdicts), list(durations_us), list(lengths)]:
                if slot.counters.seats > 1 and slot.output in self._selector.get_map():
                    self._on_output(slot, 0)  # what these jobs wrote is there, and told with them while they are known
                elif slot.lines.is_within_line and slot.writer in numbers:
                    self._tell_output(slot, slot.lines.end_line())
                attempts = Attempts(numbers, verdicts, durations_us, wire.split(body, lengths))
                self._settle(slot, attempts)
                self._after_outcomes(slot)
            case [Op.ITEMS, bytes(job_id), int(first), list(lengths)] if 0 <= first <= MAX_ITEMS:
                if not self._core.yielded(slot.key, job_id, first, wire.split(body, lengths)):
                    raise ProtocolError("items of a job that the consumer does not have")
            case [Op.PROGRESS, list(told)]:
                self._on_progress(slot, told)
            case [Op.CHECKPOINT, bytes(job_id)] if 0 < len(body) <= MAX_CHECKPOINT_BYTES:
                self._core.checkpointed(slot.key, job_id, bytes(body))
            case [Op.CHILDREN, int(number), list(groups), int(edges)] if self._core.holds(slot.key, number):
                children = flow_of(None, 0, False, groups, edges, body)
                slot.children.setdefault(number, []).append(children)
            case [Op.READY, int()]:
                self._on_ready(slot)
            case [Op.DECLARED, str(app), list(lengths)]:
                self._on_declared(app, wire.split(body, lengths))
            case [Op.BOOT_FAILED]:
                error, _ = failure_in(bytes(body))
                slot.boot_error = error.message, error.traceback
            case _:
                raise ProtocolError(f"a message that no consumer sends: {envelope[0]}")

    def _settle(self, slot: Slot, attempts: Attempts) -> None:
        """Attempts have ended; what those have enqueued that succeeded commits with that."""
        if slot.excerpts:
            self._end_output(slot, [number for number in attempts.numbers if number in slot.excerpts])
        self._core.settled(slot.key, attempts, time.monotonic(), time.time())
        if not slot.children:
            return
        for number, verdict in zip(attempts.numbers, attempts.verdicts, strict=True):
            children = slot.children.pop(number, None)
            if children is not None and verdict == Verdict.SUCCEEDED:
                self._on_children(children)

    def _on_ready(self, slot: Slot) -> None:
        now = time.monotonic()
        replaced = self._supervisor.ready(slot)
        self._core.joined(slot.key, now, self._settings.queues_of(slot.number))
        self._narrator.log.info(
            "consumer.started", consumer=slot.number, pid=slot.pid, boot_ms=round((now - slot.started_at) * 1e3)
        )
        if replaced is not None:
            self.retire(replaced)
        if self.is_stopping:
            self.retire(slot)
        if not self.is_ready:
            self.is_ready = True
            self._on_first_ready()
        if self._supervisor.finish_reload():
            self._narrator.log.info("fleet.reloaded", consumers=self._settings.consumers)

    def _on_progress(self, slot: Slot, told: list[Any]) -> None:
        """Notes how far jobs are."""
        now = time.monotonic()
        slot.progress.update((job_id, Progress(*fields)) for job_id, *fields in told if isinstance(job_id, bytes))
        self._forget_progress(slot)
        if now - slot.progress_told_at >= _PROGRESS_EVERY_S:
            slot.progress_told_at = now
            for job_id, progress in slot.progress.items():
                row = self._core.sent_row(slot.key, job_id)
                if row is not None:
                    self._narrator.progress(row, slot.key, progress)

    def _forget_progress(self, slot: Slot) -> None:
        """Of jobs that have ended."""
        held = self._core.sent_ids(slot.key)
        slot.progress = {job_id: progress for job_id, progress in slot.progress.items() if job_id in held}

    def progress_of(self, job_id: bytes) -> tuple[float, float | None, str] | None:
        """How far a running job is, if it said so: done, total, note."""
        slots = self._supervisor.slots.values()
        told = next((slot.progress[job_id] for slot in slots if job_id in slot.progress), None)
        return None if told is None else (told.done, told.total, told.note)

    def _after_outcomes(self, slot: Slot) -> None:
        if slot.progress:
            self._forget_progress(slot)
        if slot.state is SlotState.RETIRING and self._core.holds_nothing(slot.key):
            self._supervisor.expect_exit(slot, time.monotonic())
        elif (most := self._settings.max_jobs) is not None and slot.counters.jobs_done >= most:
            self._supervisor.replace(slot)

    def _on_output(self, slot: Slot, _mask: int) -> None:
        claims = slot.counters.read()  # before the lines: they cannot be from a later job
        self._begin_output(slot, claims)
        try:
            lines = slot.read_output()
        except OSError:
            lines = []
        self._tell_output(slot, lines)

    def _begin_output(self, slot: Slot, claims: list[Claim]) -> None:
        """Notes whose output is read next. What another job has left without a line end is a line of that job."""
        writer = claims[0].number if claims and slot.counters.seats == 1 else 0
        if writer != slot.writer:
            if slot.lines.is_within_line:
                self._tell_output(slot, slot.lines.end_line())
            slot.writer = writer

    def _tell_output(self, slot: Slot, lines: list[str]) -> None:
        lines = self._hold_stacks_back(slot, whole_lines(lines))
        if slot.counters.seats > 1:
            self._tell_marked_output(slot, lines)
            return
        if lines:
            self._tell_lines(slot, slot.writer, lines, time.monotonic())

    def _tell_marked_output(self, slot: Slot, lines: list[str]) -> None:
        """Tells lines of a consumer that runs several jobs: each says whose it is, or is told with the consumer."""
        now = time.monotonic()
        for number, group in groupby(map(split_job_mark, lines), key=itemgetter(0)):
            plain = [line for _, line in group]
            self._tell_lines(slot, number, plain, now)

    def _tell_lines(self, slot: Slot, number: int, lines: list[str], now: float) -> None:
        """Tells lines of a job, or of nobody, as far as they are not too many."""
        row = self._core.running(slot.key, number)
        writer = 0 if row is None else number
        excerpt = slot.excerpts.get(writer)
        if excerpt is None:
            excerpt = slot.excerpts[writer] = Excerpt(now)
        self._tell_portion(slot, row, excerpt.take(lines, now, self._narrator.room_for_output(slot, now)), now)

    def _tell_portion(self, slot: Slot, row: JobRow | None, portion: Portion, now: float) -> None:
        if portion.lines:
            self._narrator.output(slot, row, portion.lines, now, portion.left_out)

    def _end_output(self, slot: Slot, numbers: Iterable[int]) -> None:
        """Tells the last lines of jobs that have ended."""
        for number in numbers:
            portion = slot.excerpts.pop(number).end()
            self._tell_portion(slot, self._core.running(slot.key, number), portion, time.monotonic())

    def _tell_held_back(self, slot: Slot, now: float) -> None:
        """Tells lines of chatty jobs that still run, when enough time has passed."""
        for number, excerpt in slot.excerpts.items():
            self._tell_portion(slot, self._core.running(slot.key, number), excerpt.due(now), now)

    def _hold_stacks_back(self, slot: Slot, lines: list[str]) -> list[str]:
        """Stacks of threads are told as one, with the death that mostly follows."""
        others = slot.stacks.hold_back(lines)
        if len(others) < len(lines):
            slot.stacks_at = time.monotonic()
        return others

    def _tell_stacks(self, slot: Slot, claims: list[Claim], now: float) -> None:
        """Tells stacks that no death has followed: somebody sent the signal, or the job ended at the last moment."""
        if slot.stacks.lines and now - slot.stacks_at >= _STACKS_WAIT_S:
            self._narrator.stacks(slot, self._rows(slot, claims), slot.stacks.take())

    def _rows(self, slot: Slot, claims: list[Claim]) -> list[JobRow]:
        """The jobs that a consumer is running."""
        rows = (self._core.running(slot.key, claim.number) for claim in claims)
        return [row for row in rows if row is not None]

    # -- deaths

    def _on_death(self, slot: Slot, _mask: int) -> None:
        self._selector.unregister(slot.death_fd)
        self._dead.append(slot)

    def bury_dead(self, now: float, wall: float) -> None:
        """Settles what the consumers that died have left; the supervisor plans their successors."""
        dead, self._dead = self._dead, []
        for slot in dead:
            self._hear_last_words(slot)
            claims = slot.counters.read()
            death = self._supervisor.bury(slot, now)
            if slot.state is SlotState.STARTING:
                if not death.stopped or slot.boot_error:
                    self._on_failed_boot(slot, death)
                continue
            was_expected = death.stopped or (death.exit_code == 0 and not claims)
            rows = {claim.number: row for claim in claims if (row := self._core.running(slot.key, claim.number))}
            self._narrator.buried(slot, death, rows, was_expected=was_expected)
            self._core.died(slot.key, claims, death, wall)
            self._buried.append(slot)

    def _hear_last_words(self, slot: Slot) -> None:
        """Takes in all that a dead consumer sent: results outlive their writer."""
        claims = slot.counters.read()
        if slot.inbox in self._selector.get_map():
            self._selector.unregister(slot.inbox)
        if slot.socket in self._selector.get_map():
            self._selector.unregister(slot.socket)
            try:
                while messages := slot.read_messages():
                    if slot.state is SlotState.STARTING:  # it is not to take anybody's place any more
                        messages = [message for message in messages if message[0][0] == Op.BOOT_FAILED]
                    self._hear_each(slot, messages)
            except (EOFError, OSError, TaskQError):
                pass  # the end, or a frame that it did not finish
        if slot.counters.seats > 1:
            self._on_output(slot, 0)
        self._settle_unsent(slot)
        self._selector.unregister(slot.output)
        self._begin_output(slot, claims)
        while True:
            try:
                lines = slot.read_output()
            except OSError:
                break
            if not lines:
                break
            self._tell_output(slot, lines)
        self._tell_output(slot, slot.lines.flush())
        written = slot.excerpts if slot.counters.seats > 1 else slot.excerpts.keys() & {slot.writer}
        slot.last_lines = {number: list(slot.excerpts[number].last) for number in written}
        self._end_output(slot, list(slot.excerpts))

    def _settle_unsent(self, slot: Slot) -> None:
        """Takes over the outcomes that a dead consumer had not sent, or not to the end."""
        try:
            unsent = [row for row in zip(*slot.unsent.read(), strict=True) if self._core.holds(slot.key, row[0])]
            if unsent:
                self._settle(slot, Attempts(*zip(*unsent, strict=True)))
        except TaskQError as error:
            self._narrator.log.error("consumer.confused", consumer=slot.number, pid=slot.pid, error=str(error))

    def _on_failed_boot(self, slot: Slot, death: Death) -> None:
        message, traceback = slot.boot_error or (f"the process {death.describe()}", "")
        fields = {"traceback": traceback} if traceback else {}
        self._on_boot_failed(message)
        self._narrator.log.error(
            "consumer.boot_failed",
            consumer=slot.number,
            error=message,
            **fields,
            **({"output": last_words(death.output)} if death.output else {}),
        )
        self._tell_if_reload_failed(slot.code, message)

    def _tell_if_reload_failed(self, code: int, error: str) -> None:
        if self._supervisor.boot_failed(code, error):
            self._narrator.log.error("fleet.reload_failed", error=error, kept="the consumers that run the old code")

    # -- jobs

    def dispatch(self, now: float, wall: float) -> None:
        """Moves jobs to where they can run: out to those with room, and back from those that are held up."""
        self._send(self._core.dispatch(now, wall))
        held_up = self._core.recalls(now)
        held_up += [key for key in self._core.looks(now) if key not in held_up and self._waits_too_long(key, now)]
        for key in held_up:
            self.take_back(key, now)
        if held_up:
            self._send(self._core.dispatch(now, wall))

    def _waits_too_long(self, key: Key, now: float) -> bool:
        return self._core.waits_too_long(key, self._supervisor.slots[key].counters.read(), now)

    def _send(self, batches: list[Batch]) -> None:
        for batch in batches:
            slot = self._supervisor.slots[batch.key]
            if not slot.send(batch):
                self._flush_later(slot)

    def _flush_later(self, slot: Slot) -> None:
        if slot.inbox not in self._selector.get_map():
            self._selector.register(slot.inbox, selectors.EVENT_WRITE, partial(self._on_room, slot))

    def _on_room(self, slot: Slot, _mask: int) -> None:
        if slot.inbox.flush():
            self._selector.unregister(slot.inbox)

    def take_back(self, key: Key, now: float) -> None:
        """Takes back what a consumer has not started."""
        sent = self._core.sent(key)
        claimed = self._supervisor.slots[key].counters.take_back(sent)
        if claimed is None:
            self._core.not_recalled(key, now)
        elif self._core.recalled(key, claimed, now):
            self._send([Batch(key, sent + 1, [])])

    def withdraw(self, job_id: bytes) -> bool:
        """Takes a job back from the consumer it was sent to, if it was; returns False if it runs."""
        key = self._core.holder_of(job_id)
        if key is None:
            return True
        self.take_back(key, time.monotonic())
        return self._core.holder_of(job_id) is None

    def cancel_running(self, job_id: bytes) -> None:
        """Has a running job stopped: softly at first."""
        key = self._core.holder_of(job_id)
        if key is not None:
            self._core.cancel_running(key, job_id, time.monotonic())

    def is_running(self, job_id: bytes) -> bool:
        """Whether a job runs now."""
        key = self._core.holder_of(job_id)
        if key is None:
            return False
        number = self._core.number_of(key, job_id)
        return any(claim.number == number for claim in self._supervisor.slots[key].counters.read())

    def take_back_all(self, now: float) -> None:
        """Takes back what no consumer has started."""
        for key in list(self._core.leased()):
            self.take_back(key, now)

    def check_times(self, now: float) -> None:
        """Stops the jobs whose time is over."""
        for key in self._core.time_checks(now):
            slot = self._supervisor.slots[key]
            for number, action in self._core.check_time(key, slot.counters.read(), now):
                is_unwanted = self._core.is_unwanted(key, number)
                if action == "signal":
                    slot.signal_timeout(number, Reason.CANCELLED if is_unwanted else Reason.TIMEOUT)
                else:
                    slot.timed_out = number
                    what = "was cancelled" if is_unwanted else "ran longer than its timeout"
                    slot.kill(f"{self._name(slot, number)} {what} and did not end")
        self.measure(now)

    def measure(self, now: float) -> None:
        """Stops the jobs that use too much memory or CPU time."""
        for key in self._core.measurements(now):
            slot = self._supervisor.slots[key]
            claims = slot.counters.read()
            action = self._core.measured(key, claims, usage_of(slot.pid), now)
            if action == "signal":
                slot.signal_timeout(claims[0].number, Reason.CPU_TIMEOUT)
            elif action is not None:
                slot.timed_out, slot.over_limit = claims[0].number, action
                slot.kill(action.message)

    def _name(self, slot: Slot, number: int) -> str:
        row = self._core.running(slot.key, number)
        return "a job" if row is None else f"job {row.id.hex()}"

    def announce(self, now: float) -> None:
        """Tells the log of the jobs that have been running for a moment, and where those stand that do not end."""
        for key, number in self._core.to_be_killed(now + _STACKS_BEFORE_KILL_S):
            self._supervisor.slots[key].ask_for_stacks(number)
        for slot in self._supervisor.slots.values():
            if slot.state is SlotState.STARTING:
                continue
            claims = slot.counters.read()
            self._tell_stacks(slot, claims, now)
            self._tell_held_back(slot, now)
            slot.announced &= {claim.number for claim in claims}
            for number, started_at in claims:
                if number not in slot.announced and now - started_at >= _ANNOUNCE_AFTER_S:
                    row = self._core.running(slot.key, number)
                    if row is not None:
                        slot.announced.add(number)
                        self._narrator.started(row, slot.key, now)

    # -- beginnings and ends

    def supervise(self, now: float) -> None:
        """Starts the consumers that are due, and kills those that do not come up or end in time."""
        error = self._supervisor.look_after_servers(now)
        if error is not None:
            self._on_boot_failed(error)
            self._narrator.log.error("preload.failed", error=error)
            self._tell_if_reload_failed(self._supervisor.code, error)
        for slot in self._supervisor.start_due(now):
            self._register(slot)
        for slot in self._supervisor.kill_overdue(now):
            self._narrator.log.warning("consumer.killed", consumer=slot.number, pid=slot.pid, reason=slot.killed_for)

    def end_the_silent(self, _now: float) -> None:
        """Kills the consumers that are to run jobs, run none, and of which nothing is heard."""
        slots = self._supervisor.slots
        self._silences.forget_others(set(slots))
        for key, slot in slots.items():
            if slot.state is SlotState.STARTING:
                continue
            is_dead = self._silences.look(
                key,
                is_awaited=self._core.waits_for(key),
                claims=slot.counters.read(),
                jobs_done=slot.counters.jobs_done,
                messages=slot.messages,
            )
            if is_dead:
                slot.is_stopped = True  # no job is to blame: it runs none
                why = f"it was to run jobs, ran none and said nothing for {SILENT_LOOKS * LOOK_EVERY_S:g} s"
                slot.kill(why)
                self._narrator.log.error("consumer.killed", consumer=slot.number, pid=slot.pid, reason=why)

    def stop(self) -> int:
        """Lets all consumers end. Returns how many jobs are running."""
        self.is_stopping = True
        self._supervisor.stop()
        running = 0
        for slot in list(self._supervisor.slots.values()):
            if slot.state is SlotState.STARTING:
                self._kill(slot)
            else:
                running += len(slot.counters.read())
                if slot.state is SlotState.READY:
                    self.retire(slot)
        return running

    def kill_all(self) -> None:
        """Ends all consumers now; what they are running goes back uncharged."""
        for slot in self._supervisor.slots.values():
            self._kill(slot)

    def _kill(self, slot: Slot) -> None:
        slot.is_stopped = True
        slot.kill("the fleet stopped before its jobs ended")

    @property
    def has_buried(self) -> bool:
        """Whether a death waits for its commit."""
        return bool(self._buried)

    def forget_buried(self) -> None:
        """The deaths are committed: their records of what was running are of no use any more."""
        for slot in self._buried:
            self._supervisor.clear_record(slot)
        self._buried.clear()

    def claims(self) -> dict[Key, list[Claim]]:
        """What each consumer is running."""
        slots = self._supervisor.slots.values()
        return {slot.key: slot.counters.read() for slot in slots if slot.state is not SlotState.STARTING}

    def retire(self, slot: Slot) -> None:
        """Lets a consumer end after what it is running."""
        self._core.retire(slot.key)
        self.take_back(slot.key, time.monotonic())
        if not self._supervisor.retire(slot):
            self._flush_later(slot)
        if self._core.holds_nothing(slot.key):
            self._supervisor.expect_exit(slot, time.monotonic())
