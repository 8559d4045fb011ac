"""The event log: turns what the broker knows into lines with the documented fields (docs/events.md).

Failures, retries and crashes get a line each. Events that come thousands of times a second get a line each up to a
rate; above it they are counted (`taskq.telemetry.throttle`), and `job.summary` reports the counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from taskq.broker.consumers.handle import ConsumerProcess
from taskq.model.effects import Event, Key, ProcessExit, Success
from taskq.model.job import JobError, JobRow, Progress
from taskq.model.limits import MAX_CONSUMERS, MAX_OUTPUT_LINES_PER_S, MAX_REJECTION_LINES_PER_S
from taskq.protocol.link.output import fields_of_line
from taskq.telemetry.record import MAX_LAST_WORDS_CHARS
from taskq.telemetry.throttle import JobLogThrottle, LineLimit

#: The level of each note.
NOTE_LEVELS = {
    "job.retrying": "warning",
    "job.failed": "error",
    "job.crashed": "error",
    "job.timed_out": "warning",
    "job.cancelled": "info",
    "job.cancelling": "info",
    "job.expired": "warning",
    "job.snoozed": "info",
    "job.interrupted": "warning",
    "consumer.confused": "error",
    "store.damaged": "error",
    "store.recovered": "info",
}


#: How many dead consumers are remembered, for the lines about their jobs.
_MAX_GONE = 2 * MAX_CONSUMERS


class EventLog:
    """Writes the broker's log."""

    def __init__(
        self,
        log: Any,
        consumer_of: Callable[[Key], ConsumerProcess | None],
        *,
        tells_enqueued: bool,
        tells_successes: bool = True,
    ) -> None:
        """
        Args:
            log: a structlog logger.
            consumer_of: returns the process of a consumer, or None if it is gone.
            tells_enqueued: whether debug lines are wanted.
            tells_successes: whether info lines are wanted.
        """
        self.log = log
        self._consumer_of = consumer_of
        self._gone: dict[Key, tuple[int, int]] = {}  # number and pid of the consumers that died last
        self._tells_enqueued, self._tells_successes = tells_enqueued, tells_successes
        self._throttle = JobLogThrottle()
        self._output = LineLimit[Key](2 * MAX_OUTPUT_LINES_PER_S)  # with the last lines of jobs
        self._cut_jobs: dict[Key, dict[bytes, JobRow]] = {}  # those that lost lines to that limit
        self._rejections = LineLimit[None](MAX_REJECTION_LINES_PER_S)

    def notes(self, notes: Sequence[Event]) -> None:
        """Writes what the core decided, and what the journal found."""
        for note in notes:
            fields = dict(note.fields)
            row, key, error = fields.pop("row", None), fields.pop("consumer_key", None), fields.pop("error", None)
            told = {} if row is None else self._job_fields(row, key, is_ended=True)
            if error is not None:
                told.update(_error_fields(error, with_traceback=note.event in ("job.failed", "job.retrying")))
            getattr(self.log, NOTE_LEVELS[note.event])(note.event, **{**told, **fields})

    def successes(self, done: Sequence[Success], now: float) -> None:
        """Writes a line for each job that succeeded, up to the rate."""
        if not done or not self._tells_successes:
            return
        for task, successes in _by_task(done).items():
            durations_us = [duration_us for _, _, duration_us in successes]
            total_s, longest_s = sum(durations_us) / 1e6, max(durations_us) / 1e6
            lines = self._throttle.succeeded_many(task, len(successes), total_s, longest_s, now)
            for row, key, duration_us in successes[:lines]:
                fields = self._job_fields(row, key, is_ended=True)
                self.log.info("job.succeeded", **fields, duration_ms=duration_us / 1000)

    def enqueued(self, rows: Sequence[JobRow], now: float) -> None:
        """Writes a debug line for each job that came in, up to the rate."""
        if not rows or not self._tells_enqueued:
            return
        lines = self._throttle.allow_many("job.enqueued", rows[0].spec.task, len(rows), now)
        for row in rows[:lines]:
            self.log.debug("job.enqueued", **self._job_fields(row, None, is_ended=True))

    def started(self, row: JobRow, key: Key, now: float) -> None:
        """Reports a job that has been running for a moment."""
        if self._throttle.allow("job.started", row.spec.task, now):
            self.log.info("job.started", **self._job_fields(row, key, is_ended=False))

    def progress(self, row: JobRow, key: Key, progress: Progress) -> None:
        """Reports how far a job is."""
        done, total, note = progress.done, progress.total, progress.note or None
        self.log.info("job.progress", **self._job_fields(row, key, is_ended=False), done=done, total=total, note=note)

    def has_summaries(self, _now: float) -> bool:
        """Whether anything was counted instead of written."""
        counts = self._output.next_due(), self._rejections.next_due(), self._throttle.next_due()
        return any(at is not None for at in counts)

    def summaries(self, now: float, *, is_last: bool = False) -> None:
        """Reports, once a second, what was counted instead of written."""
        for key, lines in self._output.take_dropped(now, flush=is_last).items():
            consumer = self._consumer_of(key)
            jobs = list(self._cut_jobs.pop(key, {}).values())
            fields = {} if consumer is None else {"consumer": consumer.number, "pid": consumer.pid}
            self.log.warning("output.dropped", **fields, **_running_fields(jobs), lines=lines)
        for clients in self._rejections.take_dropped(now, flush=is_last).values():
            self.log.warning(
                "client.rejected", reason="many clients in one second: these were counted", clients=clients
            )
        for summary in self._throttle.due(now, flush=is_last):
            self.log.info("job.summary", **summary)

    def rejected(self, reason: str, now: float) -> None:
        """Writes a line for a client that was refused or dropped, up to a rate."""
        if self._rejections.allow(None, now):
            self.log.warning("client.rejected", reason=reason)

    def room_for_output(self, consumer: ConsumerProcess, now: float) -> int:
        """Returns how many more lines a consumer may write in this second, besides the last lines of jobs."""
        return max(0, MAX_OUTPUT_LINES_PER_S - self._output.seen(consumer.key, now))

    def output(
        self, consumer: ConsumerProcess, row: JobRow | None, lines: Sequence[str], now: float, left_out: int = 0
    ) -> None:
        """Reports lines that a consumer, or the job it is running, has written.

        Args:
            left_out: how many lines before these were left out.
        """
        about = (
            {"consumer": consumer.number, "pid": consumer.pid}
            if row is None
            else self._job_fields(row, consumer.key, is_ended=False)
        )
        event = "consumer.log" if row is None else "job.log"
        if left_out:
            self.log.warning("output.dropped", **about, lines=left_out)
        for line in lines:
            if self._output.allow(consumer.key, now):
                level, fields = fields_of_line(line)
                getattr(self.log, level)(event, **about, **fields)
            elif row is not None:
                self._cut_jobs.setdefault(consumer.key, {})[row.id] = row

    def stacks(self, consumer: ConsumerProcess, rows: Sequence[JobRow], lines: Sequence[str]) -> None:
        """Reports where the threads of a consumer are."""
        fields = {"consumer": consumer.number, "pid": consumer.pid, **_running_fields(rows)}
        self.log.warning("consumer.stacks", **fields, output=last_words(lines))

    def buried(
        self, consumer: ConsumerProcess, death: ProcessExit, rows: Mapping[int, JobRow], *, was_expected: bool
    ) -> None:
        """Reports that a consumer ended.

        Args:
            rows: what it was running, by number.
        """
        self._gone[consumer.key] = (
            consumer.number,
            consumer.pid,
        )  # what follows for its jobs is reported when that is durable
        while len(self._gone) > _MAX_GONE:
            del self._gone[next(iter(self._gone))]
        fields: dict[str, Any] = {
            "consumer": consumer.number,
            "pid": consumer.pid,
            "jobs_done": consumer.counters.jobs_done,
        }
        fields.update(_running_fields(list(rows.values())))
        if death.exit_code is not None:
            fields["exit_code"] = death.exit_code
        if death.signal is not None:
            fields["signal"] = death.signal
        if death.out_of_memory:
            fields["out_of_memory"] = True
        if was_expected:
            self.log.info("consumer.exited", reason=death.why or None, **fields)
            return
        output = last_words(_words_by_job(death, rows)) if death.output else None
        if death.why:
            self.log.warning("consumer.killed", reason=death.why, **fields, output=output)
        else:
            self.log.error("consumer.crashed", **fields, output=output)

    def _job_fields(self, row: JobRow, key: Key | None, *, is_ended: bool) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "queue": row.spec.queue,
            "task": row.spec.task,
            "job_id": row.id.hex(),
            "attempt": row.attempts if is_ended else row.attempts + 1,
        }
        if row.constraints is not None and row.constraints.meta:
            fields["meta"] = dict(row.constraints.meta)
        consumer = None if key is None else self._consumer_of(key)
        if consumer is not None:
            fields["consumer"] = consumer.number
            fields["pid"] = consumer.pid
        elif key in self._gone:
            fields["consumer"], fields["pid"] = self._gone[key]
        return fields


def last_words(lines: Sequence[str]) -> str:
    """Lines of output as one text, the last of them if they are many."""
    words: list[str] = []
    left = MAX_LAST_WORDS_CHARS
    for line in reversed(lines):
        left -= len(line) + 1
        if left < 0:
            words.append(f"... [{len(lines) - len(words)} lines left out]")
            break
        words.append(line)
    return "\n".join(reversed(words))


def _words_by_job(death: ProcessExit, rows: Mapping[int, JobRow]) -> Sequence[str]:
    """The last words of a process, those of each of several jobs under its id."""
    if len(rows) < 2 or not death.writers:
        return death.output
    words: list[str] = []
    for number, lines in groupby(zip(death.writers, death.output, strict=True), key=itemgetter(0)):
        words += [f"job {rows[number].id.hex()}:"] if number in rows else []
        words += [line for _, line in lines]
    return words


def _running_fields(rows: Sequence[JobRow]) -> dict[str, Any]:
    """Names what a consumer is running, so that its lines are found together with those of its jobs."""
    if len(rows) == 1:
        return {"queue": rows[0].spec.queue, "task": rows[0].spec.task, "job_id": rows[0].id.hex()}
    return {"job_ids": [row.id.hex() for row in rows]} if rows else {}


def _error_fields(error: JobError, *, with_traceback: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"error": f"{error.type}: {error.message}"}
    if error.exit_code is not None:
        fields["exit_code"] = error.exit_code
    if error.signal is not None:
        fields["signal"] = error.signal
    if with_traceback and error.traceback:
        fields["traceback"] = error.traceback
    return fields  # its output is reported once, with the consumer


def _by_task(done: Sequence[Success]) -> Mapping[str, Sequence[Success]]:
    if len(done) == 1:
        return {done[0][0].spec.task: done}
    by_task: dict[str, list[Success]] = {}
    spec, group = None, list[Success]()
    for success in done:
        if success[0].spec is not spec:
            spec = success[0].spec
            group = by_task.setdefault(spec.task, [])
        group.append(success)
    return by_task
