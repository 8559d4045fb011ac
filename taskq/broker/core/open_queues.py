"""Whose turn it is: the queues that have something to send, the one that has used least of its share first. Pure.

Consumers that serve the same queues take them from one line. To open, close or move a queue takes a step in each line
that it stands in, however many queues there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from taskq.broker.core.waiting import Line, WaitingQueue


class OpenQueues:
    """All open queues, in the line of each set of queues that a consumer serves."""

    def __init__(self, served: Collection[str] | None) -> None:
        """
        Args:
            served: the queues that the fleet serves; None for all.
        """
        self.all = Line(None)
        self._lines: dict[Collection[str] | None, Line] = {None: self.all}
        if served is not None:
            self._lines[frozenset(served)] = self.all  # a queue that the fleet does not serve is never open
        self._spent_s = 0.0  # of the queue whose turn was last
        self._turns = 0

    @property
    def has_one_line(self) -> bool:
        """Whether all consumers serve the same queues, as far as is known."""
        return all(line is self.all for line in self._lines.values())

    def enter(self, queue: WaitingQueue) -> None:
        """Notes a new queue."""
        lines = {id(line): line for line in self._lines.values()}
        queue.lines = tuple(line for line in lines.values() if line.served is None or queue.name in line.served)

    def line(self, queues: Collection[str] | None) -> Line | None:
        """Returns the line of the consumers that serve these queues; None before there is one."""
        return self._lines.get(queues)

    def new_line(self, queues: Collection[str] | None, known: Iterable[WaitingQueue]) -> Line:
        """Makes the line of the consumers that serve these queues.

        Args:
            known: all queues, open or not.
        """
        line = self._lines[queues] = Line(queues)
        for queue in known:
            if queues is not None and queue.name in queues:
                queue.lines = (*queue.lines, line)
                if queue.turn is not None:
                    line.open += 1
                    line.push(queue.turn)
        return line

    def note(self, queue: WaitingQueue) -> None:
        """Notes whether a queue has something to send, and how much of its share it has used: one has changed."""
        turn = queue.turn
        if not (queue.listed and queue.may_send):
            if turn is not None:
                queue.turn = None
                for line in queue.lines:
                    line.closed()
        elif turn is None:
            queue.spent_s = max(queue.spent_s, self._spent_s)  # who had nothing to send for a while saved nothing
            for line in queue.lines:
                line.open += 1
            self._place(queue)
        elif turn[0] != queue.spent_s:
            self._place(queue)

    def begin_turn(self, queue: WaitingQueue) -> None:
        """Jobs are taken of a queue that was taken out of a line; `end_turn` follows."""
        queue.spent_s = self._spent_s = max(queue.spent_s, self._spent_s)

    def end_turn(self, queue: WaitingQueue) -> None:
        """The queue stands in line again, if it has more to send."""
        if queue.turn is not None and queue.listed and queue.may_send:
            self._place(queue)
        else:
            self.note(queue)

    def _place(self, queue: WaitingQueue) -> None:
        self._turns += 1
        queue.turn = turn = (queue.spent_s, self._turns, queue)
        for line in queue.lines:
            line.push(turn)
