"""What one consumer holds, and whether it is to get more. Pure, like the core that asks."""

from __future__ import annotations

from typing import Final

from taskq.model import JobRow

#: A consumer is sent jobs worth about this much run time, and more when half of it is left.
BATCH_S: Final = 0.050
#: The guess for a task that was not measured yet.
UNKNOWN_RUN_S: Final = 0.002
MAX_LEASED: Final = 3_000
#: A consumer that ended nothing for so long is held up by a long job. It then gets one waiting job at the most (so that
#: it need not pause after the long one), and what waits behind it goes to an idle consumer.
HELD_UP_S: Final = 0.005
#: A consumer that got a single job, and has not begun it in this time, is stopped or starved: another may have the job.
#: Longer than the way of the largest payload.
STALLED_S: Final = 0.5


class Holder:
    """A consumer as the core sees it: what it holds."""

    __slots__ = (
        "accepts",
        "asked_up_to",
        "is_stalled",
        "leased",
        "mean_run_s",
        "next_number",
        "progress_at",
        "queues",
        "seats",
        "sent_at",
    )

    def __init__(self, now: float, queues: frozenset[str] | None, seats: int) -> None:
        """A consumer that is ready, and holds nothing.

        Args:
            now: when it joined (monotonic).
            queues: that it serves; None for all.
            seats: how many jobs it runs at once.
        """
        self.seats = seats
        self.queues = queues
        self.leased: dict[int, JobRow] = {}  # by number, ascending; one dictionary for life, since others look into it
        self.next_number = 1
        self.accepts = True
        self.progress_at = self.sent_at = now
        self.mean_run_s = UNKNOWN_RUN_S  # of the jobs it holds, as estimated when they were sent
        self.asked_up_to = 0  # all numbers up to this one were asked back: what is left of them runs
        self.is_stalled = False  # it began none of its jobs in time (stopped?), and has ended none since

    @property
    def has_room(self) -> bool:
        """Whether it is to be sent more."""
        count, seats = len(self.leased), self.seats
        if not self.accepts or count <= seats:
            return self.accepts
        ahead = count if seats == 1 else count - seats  # of several seats, each keeps one for its whole run time
        return count < MAX_LEASED / 2 and ahead * self.mean_run_s < BATCH_S / 2 * seats

    @property
    def free_seats(self) -> int:
        """How many more jobs it could begin at once."""
        return max(0, self.seats - len(self.leased))

    def is_held_up(self, now: float) -> bool:
        """Whether nothing has ended there for a while, though it holds jobs."""
        return bool(self.leased) and now - self.progress_at >= HELD_UP_S

    def ask_back_at(self) -> float | None:
        """When another that idles may have what waits here."""
        if not self.leased or self.asked_up_to == self.next_number - 1:
            return None
        return self.progress_at + (HELD_UP_S if len(self.leased) > self.seats else STALLED_S)
