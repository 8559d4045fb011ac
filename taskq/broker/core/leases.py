"""The leases of one consumer: what it holds, whether it gets more, and when jobs that wait there are taken back. Pure.

A consumer is *held up* while it runs a long job, in each of its slots if it has several. Nothing is sent behind that,
and what waits there goes back to its place in the queue, whether another consumer is idle or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from taskq.model.attempt import Claim
from taskq.model.job import JobRow

#: A consumer is sent jobs worth about this much run time, and more when half of it is left.
BATCH_S: Final = 0.050
#: The estimate for a task that was not measured yet.
UNKNOWN_RUN_S: Final = 0.002
MAX_LEASED: Final = 3_000
#: The most that it is sent in one turn of the loop: that takes half a millisecond.
MAX_SENT: Final = 1_000
#: A consumer is held up if no job has ended there for this long, or for twice the time that its jobs are expected to
#: take, whichever is longer; but at the latest after a whole batch's time.
HELD_UP_S: Final = 0.005
#: A consumer that was sent a job, has a free slot and has not begun it in this time is suspended or starved: another
#: may have the job. Longer than it takes to send the largest payload.
STALLED_S: Final = 0.5
#: A job that was sent this long ago and has not begun goes back, even if jobs end there: they take longer than was
#: expected, so the batch is too large.
LATE_S: Final = 4 * BATCH_S
#: A consumer whose jobs go on is looked at again after this time, and so much later if nothing else wakes the loop
#: before: while no other consumer is free, what waits behind a long job may wait a little for its place in the queue.
#: A loop that woke for each look, 5 ms after the last one, spent half of its time on them where jobs take 2 ms.
LOOK_EVERY_S: Final = 0.010
#: When to ask a consumer again that was suspended while it held the lock.
ASK_AGAIN_S: Final = 0.05


class Sent(NamedTuple):
    """A batch that a consumer may not have begun as a whole."""

    last_number: int
    at: float


class ConsumerLeases:
    """A consumer as the core sees it: what it holds."""

    __slots__ = (
        "accepts",
        "alone",
        "ask_again_at",
        "asked_up_to",
        "gave_back",
        "is_stalled",
        "leased",
        "look_again_at",
        "mean_run_s",
        "next_number",
        "number",
        "progress_at",
        "queues",
        "sent_at",
        "slots",
        "unbegun",
    )

    def __init__(self, now: float, queues: frozenset[str] | None, slots: int, number: int | None = None) -> None:
        """A consumer that is ready, and holds nothing.

        Args:
            now: when it joined (monotonic).
            queues: the queues that it serves; None for all.
            slots: how many jobs it runs at once.
            number: its number, for the outcomes of attempts that died with it.
        """
        self.slots = slots
        self.number = number
        self.queues = queues
        self.leased: dict[int, JobRow] = {}  # by number, ascending; one dictionary for life, since others look into it
        self.next_number = 1
        self.accepts = True
        self.progress_at = self.sent_at = now
        self.mean_run_s = UNKNOWN_RUN_S  # of the jobs it holds, as estimated when they were sent
        self.asked_up_to = 0  # all numbers up to this one were asked back or seen to run: none of them waits
        self.unbegun: deque[Sent] = deque()  # batches with jobs that may wait, the oldest first
        self.gave_back = False  # what waited there was taken back, and no job has ended there since
        self.alone = 0  # the number of a job that nothing may wait behind
        self.is_stalled = False  # it began none of its jobs in time (suspended?), and has not answered since
        self.ask_again_at = self.look_again_at = now

    @property
    def takes_jobs(self) -> bool:
        """Whether it may be sent jobs at all."""
        return self.accepts and not self.is_stalled

    @property
    def is_free(self) -> bool:
        """Whether it could begin a job at once."""
        return len(self.leased) < self.slots and self.takes_jobs

    def serves(self, queue: str) -> bool:
        """Whether it may be sent jobs of a queue."""
        return self.takes_jobs and (self.queues is None or queue in self.queues)

    def left_of(self, queue: str) -> int:
        """How many jobs of a queue it still has, if it is sent no more."""
        return 0 if self.takes_jobs else sum([row.spec.queue == queue for row in self.leased.values()])

    def shares_queues(self, other: ConsumerLeases) -> bool:
        """Whether there may be jobs that either of the two could run."""
        return self.queues is None or other.queues is None or bool(self.queues & other.queues)

    def has_room(self, now: float) -> bool:
        """Whether it should be sent more."""
        count, slots = len(self.leased), self.slots
        if not self.takes_jobs:
            return False
        if count < slots:
            return True
        if self.is_held_up(now):
            return False
        if count == slots:
            return self.mean_run_s < BATCH_S * slots  # else jobs would wait there for too long
        ahead = count if slots == 1 else count - slots  # each of several slots keeps one job for its whole run time
        return count < MAX_LEASED / 2 and ahead * self.mean_run_s < BATCH_S / 2 * slots

    @property
    def free_slots(self) -> int:
        """How many more jobs it could begin at once."""
        return max(0, self.slots - len(self.leased))

    @property
    def patience_s(self) -> float:
        """How many seconds may pass without the end of a job before it counts as held up."""
        return min(max(HELD_UP_S, 2 * self.mean_run_s), BATCH_S)

    def is_held_up(self, now: float) -> bool:
        """Whether no job may wait there, since it would wait for the end of a long one."""
        if not self.leased:
            return False
        return self.gave_back or self.alone in self.leased or now - self.progress_at >= self.patience_s

    def send(self, rows: Sequence[JobRow], now: float) -> None:
        """Notes jobs that are sent to it now."""
        first = self.next_number
        if len(self.leased) <= self.slots:
            self.unbegun.clear()
        if not self.leased:
            self.gave_back = False
        if not self.leased or (self.free_slots and self.asked_up_to == first - 1):
            self.progress_at = now  # all jobs that it had are running, so none has been waiting there
        self.sent_at = now
        self._forget_begun(next(iter(self.leased), first) - 1)
        self.leased.update(enumerate(rows, first))
        self.next_number = first + len(rows)
        self.unbegun.append(Sent(self.next_number - 1, now))

    def _forget_begun(self, begun: int) -> None:
        """Notes that all jobs up to a number have begun."""
        while self.unbegun and self.unbegun[0].last_number <= begun:
            self.unbegun.popleft()

    # -- when to take back what waits there

    def ask_back_at(self) -> float | None:
        """When a consumer with a free slot may get what waits here."""
        if not self.leased or self.asked_up_to == self.next_number - 1:
            return None
        due = self.progress_at + (HELD_UP_S if len(self.leased) > self.slots else STALLED_S)
        return max(due, self.ask_again_at)

    def look_at(self) -> float | None:
        """When to look at what it runs, since what waits here may have to go back, whoever gets it then."""
        if not self.leased or self.asked_up_to == self.next_number - 1:
            return None
        due = self._held_up_at() if len(self.leased) > self.slots else self._stalled_at()
        return max(due, self.look_again_at, self.ask_again_at)

    def waits_too_long(self, claims: Sequence[Claim], now: float) -> bool:
        """Whether what waits here should go back, given what runs. If not, sets when to look again."""
        begun = max((claim.number for claim in claims), default=0)
        self._forget_begun(begun)
        if begun == self.next_number - 1:
            self.asked_up_to = begun
            return False
        if len(claims) >= self.slots:
            self.progress_at = max(self.progress_at, *(claim.started_at for claim in claims))
            due = self._held_up_at()
            self.look_again_at = max(due, now + LOOK_EVERY_S)
        else:  # it is between two jobs, or what it was sent is on its way; or it is suspended
            due = self._stalled_at()
            self.look_again_at = now + (HELD_UP_S if due > now else STALLED_S)
        return due <= now

    def _held_up_at(self) -> float:
        at = self.progress_at + self.patience_s
        return min(at, self.unbegun[0].at + LATE_S) if self.unbegun else at

    def _stalled_at(self) -> float:
        return max(self.progress_at, self.sent_at) + STALLED_S

    def took_back(self, claimed: int, now: float) -> list[JobRow]:
        """Notes that all numbers above `claimed` were taken back. Returns those jobs."""
        numbers = [number for number in self.leased if number > claimed]
        begun = len(self.leased) - len(numbers)
        had_time = not begun or now - self.sent_at >= HELD_UP_S
        if numbers and begun < self.slots and had_time and now - self.progress_at >= HELD_UP_S:
            self.is_stalled = True  # it had a free slot for what it did not begin
        self.asked_up_to = self.next_number - 1
        self.unbegun.clear()
        self.gave_back = True
        self.progress_at = min(self.progress_at, now)
        return [self.leased.pop(number) for number in numbers]
