"""What clients, the clock and the spool have asked for, in order, until a turn of the loop has room for it.

stage -> take, as much as a turn takes on -> applied, committed -> answered
  |                                              |
  '- waits, if the same client's -               '- unfinished: goes on in the next turns, a part in each
     command is unfinished
"""

from __future__ import annotations

from collections import deque
from typing import Final

from taskq.engines.embedded.transaction import UNFINISHED, Command
from taskq.model import limits
from taskq.model.errors import StoreFull
from taskq.protocol.submissions import Submission

#: In place of an outcome: it was not applied, as the same client has asked for something that is unfinished.
HELD: Final = object()
#: When the disk is full, the next try is after this time.
FULL_AGAIN_S = 0.5


class Staged:
    """Used by the committer alone."""

    def __init__(self) -> None:
        self._waiting: deque[Submission | Command] = deque()  # in the order in which they came
        self._waiting_us = 0.0  # about how long it takes to commit and answer them
        self._unfinished: list[Command] = []  # of which a part is done, in the order of their beginnings
        self._behind: list[Submission | Command] = []  # what the same clients have asked for since
        self._go_on_at = 0.0  # when to go on (monotonic): the disk was full

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, asked: Submission | Command) -> None:
        """Notes what is asked for, behind all that was."""
        self._waiting.append(asked)
        self._waiting_us += asked.work_us

    @property
    def has_room(self) -> bool:
        """Whether the next turn has room for more than waits."""
        return self._waiting_us < limits.TURN_US

    @property
    def has_unfinished(self) -> bool:
        """Whether a part of something is done, and the rest is not."""
        return bool(self._unfinished)

    @property
    def due_at(self) -> float | None:
        """When there is something to do (monotonic): 0 for at once, None for never."""
        if self._waiting:
            return 0.0
        return self._go_on_at if self._unfinished else None

    def take(self, room_us: float, now: float) -> tuple[list[Submission | Command], float]:
        """Takes the next part of what is unfinished, and what was asked for first, as much as there is room for, but at
        least one thing.

        Args:
            room_us: what the turn has room for, in microseconds.

        Returns:
            What was taken, and the room that is left.
        """
        if self._waiting_us <= room_us and not self._unfinished and not self._behind:  # all of it, as most often
            everything, self._waiting = list(self._waiting), deque()
            room_us, self._waiting_us = room_us - self._waiting_us, 0.0
            return everything, room_us
        if self._behind:
            self._waiting.extendleft(reversed(self._behind))
            self._behind = []
        going_on = self._unfinished if now >= self._go_on_at else []
        busy = [command.peer for command in going_on] if going_on else ()
        taken: list[Submission | Command] = []
        while self._waiting:
            work_us = self._waiting[0].work_us
            if taken and work_us > room_us:
                break
            asked = self._waiting.popleft()
            if asked.peer in busy:
                self._behind.append(asked)
                continue
            taken.append(asked)
            room_us -= work_us
        self._waiting_us = sum([asked.work_us for asked in self._waiting]) if self._waiting else 0.0
        return [*going_on[:1], *taken], room_us

    def keeps(self, command: Submission | Command, outcome: object, now: float) -> bool:
        """Notes what came of something that was taken. Returns whether it is not to be answered yet."""
        if outcome is HELD:
            self._behind.append(command)
            return True
        if isinstance(command, Submission):
            return False
        was_begun = command in self._unfinished
        goes_on = outcome is UNFINISHED or (was_begun and isinstance(outcome, StoreFull))
        if was_begun and not goes_on:
            self._unfinished.remove(command)
        if goes_on and not was_begun:
            self._unfinished.append(command)
        if goes_on:
            self._go_on_at = now if outcome is UNFINISHED else now + FULL_AGAIN_S
        return goes_on
