"""What jobs print: logged with the job that wrote it, and no more of it than the log has room for."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter

from taskq.broker.consumers.excerpt import Excerpt, Portion
from taskq.broker.consumers.handle import ConsumerProcess
from taskq.broker.core.core import Core
from taskq.broker.events import EventLog
from taskq.model.attempt import Claim
from taskq.model.job import JobRow
from taskq.protocol.link.output import split_job_mark, whole_lines
from taskq.system.clock import SYSTEM_CLOCK, Clock

#: Stacks without a death are logged when no line of them has come for this long.
_STACKS_WAIT_S = 1.0


class JobOutput:
    """The lines that consumers write. Used by their pool alone; what is not logged yet is kept with each consumer."""

    def __init__(self, core: Core, events: EventLog, clock: Clock = SYSTEM_CLOCK) -> None:
        self._core = core
        self._events = events
        self._clock = clock

    def hear(self, consumer: ConsumerProcess) -> None:
        """Reads what a consumer has written, and logs it."""
        claims = consumer.counters.read()  # before the lines: they cannot be from a later job
        self.begin(consumer, claims)
        try:
            lines = consumer.read_output()
        except OSError:
            lines = []
        self.tell(consumer, lines)

    def begin(self, consumer: ConsumerProcess, claims: list[Claim]) -> None:
        """Notes whose output is read next. If another job has left a line without an end, it becomes a line of that
        job."""
        writer = claims[0].number if claims and consumer.counters.slots == 1 else 0
        if writer != consumer.writer:
            if consumer.lines.is_within_line:
                self.tell(consumer, consumer.lines.end_line())
            consumer.writer = writer

    def tell(self, consumer: ConsumerProcess, lines: list[str]) -> None:
        """Logs lines that a consumer wrote, each with the job that wrote it."""
        lines = self._hold_stacks_back(consumer, whole_lines(lines))
        if consumer.counters.slots > 1:
            self._tell_marked(consumer, lines)
            return
        if lines:
            self._tell_lines(consumer, consumer.writer, lines, self._clock.monotonic())

    def _tell_marked(self, consumer: ConsumerProcess, lines: list[str]) -> None:
        """Logs lines of a consumer that runs several jobs: each with the job that it names, or with the consumer."""
        now = self._clock.monotonic()
        for number, group in groupby(map(split_job_mark, lines), key=itemgetter(0)):
            plain = [line for _, line in group]
            self._tell_lines(consumer, number, plain, now)

    def _tell_lines(self, consumer: ConsumerProcess, number: int, lines: list[str], now: float) -> None:
        """Logs lines of a job, or of none, up to its limit."""
        row = self._core.running(consumer.key, number)
        writer = 0 if row is None else number
        excerpt = consumer.excerpts.get(writer)
        if excerpt is None:
            excerpt = consumer.excerpts[writer] = Excerpt(now)
        self._tell_portion(consumer, row, excerpt.take(lines, now, self._events.room_for_output(consumer, now)), now)

    def _tell_portion(self, consumer: ConsumerProcess, row: JobRow | None, portion: Portion, now: float) -> None:
        if portion.lines:
            self._events.output(consumer, row, portion.lines, now, portion.left_out)

    def end(self, consumer: ConsumerProcess, numbers: Iterable[int]) -> None:
        """Logs the last lines of jobs that have ended."""
        for number in numbers:
            portion = consumer.excerpts.pop(number).end()
            self._tell_portion(consumer, self._core.running(consumer.key, number), portion, self._clock.monotonic())

    def tell_held_back(self, consumer: ConsumerProcess, now: float) -> None:
        """Logs lines of chatty jobs that still run, when enough time has passed."""
        for number, excerpt in consumer.excerpts.items():
            self._tell_portion(consumer, self._core.running(consumer.key, number), excerpt.due(now), now)

    def _hold_stacks_back(self, consumer: ConsumerProcess, lines: list[str]) -> list[str]:
        """Holds back stacks of threads, to log them as one event, with the death that usually follows."""
        others = consumer.stacks.hold_back(lines)
        if len(others) < len(lines):
            consumer.stacks_at = self._clock.monotonic()
        return others

    def tell_stacks(self, consumer: ConsumerProcess, claims: list[Claim], now: float) -> None:
        """Logs stacks that no death has followed: somebody sent the signal, or the job ended at the last moment."""
        if consumer.stacks.lines and now - consumer.stacks_at >= _STACKS_WAIT_S:
            self._events.stacks(consumer, self._rows(consumer, claims), consumer.stacks.take())

    def _rows(self, consumer: ConsumerProcess, claims: list[Claim]) -> list[JobRow]:
        """The jobs that a consumer is running."""
        rows = (self._core.running(consumer.key, claim.number) for claim in claims)
        return [row for row in rows if row is not None]
