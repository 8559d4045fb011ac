"""The partitions whose jobs have limits: which of them have jobs, and which have to wait for a limit. Pure.

There may be one for each key that was ever used, so a fleet does not ask about each of them: it is told of those that
get jobs, and scans for the others now and then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Final
from zlib import crc32

from taskq.engines.postgres.held import LimitKey
from taskq.model.partition import Limit, Partition
from taskq.protocol.postgres.kinds import pack_limits

#: Partitions that one round looks at by number, and those that one scan finds.
AT_ONCE: Final = 200
#: How long a partition is left alone whose limit is closed, unless somebody tells that it has opened; and how often all
#: are looked at. Both are longer if there are many.
_CLOSED_S: Final = 1.0
_SCAN_EVERY_S: Final = 1.0
_MANY: Final = 1_000
#: The most limits in one word of a notification.
_KEYS_IN_A_WORD: Final = 800


class LimitedPartitions:
    """Used by the engine alone."""

    def __init__(self, capacities: Mapping[str, int], served: Collection[str]) -> None:
        """
        Args:
            capacities: the machine's resources.
            served: the queues that the fleet serves; empty for all.
        """
        self._capacities = capacities
        self._served = frozenset(served) or None
        self._partitions: dict[int, Partition] = {}
        #: The queues that have some.
        self.queues: set[str] = set()
        #: The packed limits of the partitions of each order key, by their numbers.
        self.of_order: dict[LimitKey, dict[int, bytes]] = {}
        #: The partitions of each rate.
        self.of_rate: dict[LimitKey, list[int]] = {}
        #: By queue: those that have jobs, or may, and whose limits are not closed.
        self.ready: dict[str, dict[int, None]] = {}
        self._closed: dict[int, tuple[LimitKey, float]] = {}  # until when (monotonic), unless the limit opens before
        self._closed_at: dict[LimitKey, set[int]] = {}
        self._openings: list[tuple[float, int]] = []
        self._by_word: dict[int, set[LimitKey]] = {}  # closed limits, by what a notification says of them
        self._scan_after = -1
        self._scan_at = -inf

    def __getitem__(self, number: int) -> Partition:
        return self._partitions[number]

    def find(self, number: int) -> Partition | None:
        """A partition, if it has limits and may run here."""
        return self._partitions.get(number)

    def open(self, number: int) -> Partition | None:
        """A partition, if it does not have to wait for a limit."""
        return None if number in self._closed else self._partitions.get(number)

    def learn(self, number: int, partition: Partition) -> None:
        """Takes a partition that has limits."""
        if self._served is not None and partition.queue not in self._served:
            return
        if any(limit.amount > self._capacities.get(limit.name, 0) for limit in of_kind(partition, "resource")):
            return  # this machine can never run its jobs
        self._partitions[number] = partition
        self.queues.add(partition.queue)
        for limit in of_kind(partition, "order"):
            self.of_order.setdefault(limit[:2], {})[number] = pack_limits(partition)
        for limit in of_kind(partition, "rate"):
            self.of_rate.setdefault(limit[:2], []).append(number)
        self.tell(number)

    def forget(self, number: int) -> None:
        """Forgets a partition that nobody uses any more."""
        if number not in self._partitions:
            return
        self._reopen(number)
        self.is_empty(number)
        partition = self._partitions.pop(number)
        for limit in partition.limits:
            key = limit[:2]
            if key in self.of_order:
                self.of_order[key].pop(number, None)
                if not self.of_order[key]:
                    del self.of_order[key]
            elif key in self.of_rate:
                self.of_rate[key].remove(number)
                if not self.of_rate[key]:
                    del self.of_rate[key]

    # -- which have jobs

    def tell(self, number: int, *, is_returned: bool = False) -> None:
        """A partition has jobs, or may.

        Args:
            is_returned: they have come back: that may be what others of their key have waited for.
        """
        if is_returned:
            self._reopen(number)
        if (partition := self.open(number)) is not None:
            self.ready.setdefault(partition.queue, {})[number] = None

    def is_empty(self, number: int) -> None:
        """A partition has no more jobs, as far as is known."""
        queue = self._partitions[number].queue
        ready = self.ready.get(queue)
        if ready is not None:
            ready.pop(number, None)
            if not ready:
                del self.ready[queue]

    def scan(self, now: float) -> int | None:
        """Returns behind which number to scan now; None: not now."""
        return self._scan_after if self._partitions and now >= self._scan_at else None

    def look_at_all(self) -> None:
        """Any of them may have jobs: a scan is due."""
        self._scan_after, self._scan_at = -1, -inf

    def seen(self, asked: Sequence[int], found: Iterable[int]) -> None:
        """Takes which of the partitions that were asked about have jobs, and others that have some."""
        found = set(found)
        for number in asked:
            if number not in found:
                self.is_empty(number)
        for number in found:
            self.tell(number)

    def scanned(self, numbers: Sequence[int], now: float) -> None:
        """Takes the numbers that a scan has found, in order."""
        if len(numbers) >= AT_ONCE:
            self._scan_after = numbers[-1]
        else:
            self._scan_after, self._scan_at = -1, now + _SCAN_EVERY_S + len(self._partitions) / _MANY

    # -- which have to wait

    def close(self, number: int, key: LimitKey, until: float) -> None:
        """A partition has to wait for a limit.

        Args:
            until: when to try again (monotonic), if nobody tells before that it has opened.
        """
        self._reopen(number)
        self.is_empty(number)
        self._closed[number] = key, until
        self._closed_at.setdefault(key, set()).add(number)
        self._by_word.setdefault(_word(key), set()).add(key)
        heappush(self._openings, (until, number))

    def tell_of_opened(self, words: Iterable[str]) -> None:
        """Limits have opened; see `opened_words`."""
        for word in words:
            for key in list(self._by_word.get(int(word, 16), ())):
                self.open_at(key)

    def open_at(self, key: LimitKey) -> None:
        """There may be some of a limit again."""
        for number in list(self._closed_at.get(key, ())):
            self._reopen(number)

    def open_due(self, now: float) -> None:
        """Some of them have waited long enough."""
        while self._openings and self._openings[0][0] <= now:
            until, number = heappop(self._openings)
            if number in self._closed and self._closed[number][1] <= until:
                self._reopen(number)

    def _reopen(self, number: int) -> None:
        closed = self._closed.pop(number, None)
        if closed is None:
            return
        key, _ = closed
        at_key = self._closed_at[key]
        at_key.discard(number)
        if not at_key:
            del self._closed_at[key]
            words = self._by_word[_word(key)]
            words.discard(key)
            if not words:
                del self._by_word[_word(key)]
        self.tell(number)

    @property
    def closed_s(self) -> float:
        """In how many seconds to try again for a limit that is closed."""
        return _CLOSED_S + len(self._closed) / _MANY

    def next_at(self) -> float:
        """When to scan, or to try again (monotonic)."""
        at = self._scan_at if self._partitions else inf
        return min(at, self._openings[0][0]) if self._openings else at


def of_kind(partition: Partition, kind: str) -> list[Limit]:
    """The limits of a kind that a partition has."""
    return [limit for limit in partition.limits if limit.kind == kind]


def _word(key: LimitKey) -> int:
    """What a notification says of a limit."""
    return crc32("\0".join(key).encode())


def opened_words(keys: Iterable[LimitKey]) -> list[str]:
    """The words that tell brokers that limits have opened."""
    hashes = [f"{_word(key):x}" for key in keys]
    return [f"g {' '.join(hashes[at : at + _KEYS_IN_A_WORD])}" for at in range(0, len(hashes), _KEYS_IN_A_WORD)]
