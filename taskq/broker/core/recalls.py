"""Which consumers are free, and from which others waiting jobs may be taken back for them. Pure, like the core that
asks.

What consumers hold is read from the core's own records: the dictionary that is handed in once stays the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from taskq.broker.core.earliest import Earliest
from taskq.broker.core.leases import LOOK_EVERY_S, ConsumerLeases
from taskq.model.effects import Key


class Recalls:
    """When to look at which consumer. Written and read by the core alone."""

    def __init__(self, consumers: Mapping[Key, ConsumerLeases]) -> None:
        """
        Args:
            consumers: all consumers, by key.
        """
        self._consumers = consumers
        self.free: dict[Key, ConsumerLeases] = {}  # those that could begin a job at once
        self._others: dict[Key, ConsumerLeases] = {}  # of those that are not, the ones that may have room for more
        # nothing but sending jobs makes one of these moments earlier
        self._next_recall = Earliest(lambda: [consumer.ask_back_at() for consumer in consumers.values()])
        self._next_look = Earliest(lambda: [consumer.look_at() for consumer in consumers.values()])

    def changed(self, key: Key) -> None:
        """Notes that a consumer has come or gone, that what it holds has changed, or whether it gets jobs."""
        consumer = self._consumers.get(key)
        if consumer is None:
            self.free.pop(key, None)
            self._others.pop(key, None)
        elif consumer.is_free:
            self.free[key] = consumer
            self._others.pop(key, None)
        else:
            self.free.pop(key, None)
            self._others[key] = consumer

    def sent(self, key: Key) -> None:
        """Notes that a consumer was sent jobs."""
        consumer = self._consumers[key]
        self._next_recall.bring_forward(consumer.ask_back_at())
        self._next_look.bring_forward(consumer.look_at())
        self.changed(key)

    def others_with_room(self, now: float) -> list[tuple[Key, ConsumerLeases]]:
        """The consumers that are not free, and should be sent more all the same."""
        with_room = [(key, one) for key, one in self._others.items() if one.has_room(now)]
        if len(with_room) < len(self._others):
            self._others = dict(with_room)  # time alone makes room nowhere: the others need no look until they change
        return with_room

    def has_to_look(self, now: float) -> bool:
        """Whether `recalls` or `looks` may have an answer. Most turns ask for no more."""
        return now >= self._next_look.at or (now >= self._next_recall.at and bool(self.free))

    def recalls(self, now: float) -> list[Key]:
        """The consumers whose waiting jobs should be taken back, for others that are idle."""
        if not self.free or not self._next_recall.is_due(now):
            return []
        return [key for key, at in self._ask_back().items() if at <= now]

    def looks(self, now: float) -> list[Key]:
        """The consumers in which jobs may be waiting for too long."""
        if not self._next_look.is_due(now):
            return []
        return [key for key, one in self._consumers.items() if (at := one.look_at()) is not None and at <= now]

    def next_recall(self, now: float) -> float | None:
        """When `recalls` may have an answer that it does not have now, if nothing else happens (monotonic)."""
        at = self._next_recall.next(now) if self.free else None
        if at is None or at > now:
            return at
        return max(now, min(waits)) if (waits := self._ask_back().values()) else None

    def moment(self, now: float) -> float:
        """When the loop must turn for `recalls` or `looks` if nothing else wakes it; infinity: never. A look can wait
        for a while, as any turn that comes meanwhile makes it."""
        look_at = self._next_look.moment(now) + LOOK_EVERY_S
        if not self.free:
            return look_at
        recall_at = self._next_recall.moment(now)
        if recall_at <= now:
            exactly = self.next_recall(now)
            recall_at = inf if exactly is None else exactly
        return min(look_at, recall_at)

    def next_look(self, now: float) -> float | None:
        """When `looks` may have an answer that it does not have now, if nothing else happens (monotonic)."""
        return self._next_look.next(now)

    def _ask_back(self) -> dict[Key, float]:
        """The consumers with jobs that another with a free slot might run, and when to ask them."""
        return {
            key: at
            for key, consumer in self._consumers.items()
            if (at := consumer.ask_back_at()) is not None
            and any(other is not consumer and consumer.shares_queues(other) for other in self.free.values())
        }

    def another_serves(self, consumer: ConsumerLeases) -> bool:
        """Whether another consumer, busy or not, might run what this one holds."""
        others = (other for other in self._consumers.values() if other is not consumer and other.takes_jobs)
        return any(consumer.shares_queues(other) for other in others)
