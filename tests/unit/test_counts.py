"""Histograms of times, and the counts of tasks and queues by minutes."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.model.info import counts as counts_module
from taskq.model.info.counts import MINUTES, NUMBERS, Counts, CountsRow, FleetCounts, PairCounts
from taskq.model.info.histogram import WORST_ERROR, Histogram

TIMES_US = st.lists(st.one_of(st.integers(0, 3_000), st.integers(0, 10**13)), max_size=60)
SHARES = st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.99, 1.0])
#: A minute in 2026.
NOW = 29_800_000


def histogram_of(times_us: list[int]) -> Histogram:
    """Counts times one by one."""
    histogram = Histogram()
    for time_us in times_us:
        histogram.add(time_us)
    return histogram


@given(TIMES_US, SHARES)
def test_percentiles_are_within_half_a_bucket(times_us: list[int], share: float) -> None:
    """Of the time at that rank; the mean and the longest are exact."""
    histogram = histogram_of(times_us)
    found = histogram.percentile_us(share)
    if not times_us:
        assert (found, histogram.mean_us, histogram.seen) == (None, None, 0)
        return
    assert found is not None
    true = sorted(times_us)[max(1, ceil(share * len(times_us))) - 1]
    assert true / (1 + WORST_ERROR) * 0.999999 <= found <= true * (1 + WORST_ERROR) * 1.000001
    assert histogram.mean_us == sum(times_us) / len(times_us)
    assert histogram.longest_us == max(times_us)


def test_the_worst_error_is_below_a_tenth() -> None:
    assert WORST_ERROR < 0.1


@given(TIMES_US)
def test_many_at_once_are_the_same_as_one_by_one(times_us: list[int]) -> None:
    histogram = Histogram()
    histogram.add_all(times_us)
    assert histogram == histogram_of(times_us)


@given(TIMES_US, TIMES_US, TIMES_US)
def test_merging_is_associative(first: list[int], second: list[int], third: list[int]) -> None:
    """In whatever order, and the same as if one histogram had seen all."""
    left, right = histogram_of(first), histogram_of(second)
    left.merge(histogram_of(second))
    left.merge(histogram_of(third))
    right.merge(histogram_of(third))
    right.merge(histogram_of(first))
    assert left == right == histogram_of(first + second + third)


@given(TIMES_US)
def test_histograms_travel(times_us: list[int]) -> None:
    histogram = histogram_of(times_us)
    assert Histogram.from_wire(histogram.to_wire()) == histogram


def test_odd_times_are_counted() -> None:
    """One below 0, by clocks that differ, counts as 0, and one without an end as very long; some stand for others."""
    histogram = Histogram()
    histogram.add_all([-5, 1 << 80])
    histogram.add(1_000_000, 3)
    assert histogram.seen == 5
    assert histogram.percentile_us(0.1) == 0.0
    assert histogram.percentile_us(0.5) == pytest.approx(1e6, rel=WORST_ERROR)
    assert histogram.percentile_us(1.0) == pytest.approx(2**60, rel=WORST_ERROR)


# -- counts


def count_something(counts: Counts, number: int) -> None:
    """Counts other things for each number."""
    for place, name in enumerate(NUMBERS):
        setattr(counts, name, getattr(counts, name) + number * (place + 1) % 7)
    counts.wait.add(number * 100)
    counts.run.add_all([number, number * 3])


def test_counts_travel() -> None:
    """Also those that a later taskq has made, with more fields; and those of an earlier one, with fewer."""
    counts = Counts()
    count_something(counts, 5)
    assert Counts.unpack(counts.pack()) == counts
    assert counts.as_dict()["run_s"]["longest"] == 15e-6
    assert Counts().as_dict()["wait_s"]["p99"] is None
    more = counts_module.msgpack.unpackb(counts.pack())
    assert Counts.unpack(counts_module.msgpack.packb([*more, 77])) == counts
    fewer = Counts.unpack(counts_module.msgpack.packb(more[:-1]))
    assert (fewer.timed_out, fewer.failed_by_crash) == (counts.timed_out, 0)


def total(pair: PairCounts) -> Counts:
    """All that a pair has counted."""
    counts = Counts()
    for _, packed in pair.packed():
        counts.merge(Counts.unpack(packed))
    return counts


steps = st.lists(
    st.tuples(
        st.sampled_from(
            [0, 0, 0, 1, 1, 2, 30, 59, 60, 61, 500, -1, -100]
        ),  # minutes that pass; a clock may be set back
        st.integers(0, 50),
        st.sampled_from(["go on", "go on", "store", "fail to store", "restart"]),
    ),
    max_size=30,
)


@given(steps)
def test_counts_are_kept_by_minutes_and_survive(steps: list[tuple[int, int, str]]) -> None:
    """Whatever time does, each event is counted once, the last hour by minutes; what was stored is found again."""
    stored: dict[tuple[str, str, int], bytes] = {}
    fleet, expected, minute = FleetCounts(), Counts(), NOW

    def store() -> None:
        for task, queue, at, packed in fleet.take_changed(10):
            if packed is None:
                stored.pop((task, queue, at), None)
            else:
                stored[task, queue, at] = packed

    for passed, number, then in steps:
        minute += passed
        count_something(fleet.of("t", "q", minute), number)
        count_something(expected, number)
        if then == "fail to store":
            rows = fleet.take_changed(10)
            fleet.put_back(rows)
            assert fleet.is_changed
        elif then != "go on":
            store()
            assert not fleet.is_changed
        if then == "restart":
            fleet = FleetCounts(CountsRow(*key, packed) for key, packed in stored.items())
        [(task, queue, pair)] = fleet
        assert (task, queue) == ("t", "q")
        assert total(pair) == expected
        minutes = [at for at, _ in pair.packed()][1:]
        assert all(minute - MINUTES < at <= minute for at in minutes)
        assert len(minutes) == len(set(minutes))


def test_the_last_hour_is_told_by_minutes() -> None:
    pair = PairCounts()
    for minute in range(NOW, NOW + 70):
        pair.at(minute).enqueued += 1
    packed = pair.packed()
    assert [minute for minute, _ in packed] == [0, *range(NOW + 10, NOW + 70)]
    assert [Counts.unpack(counts).enqueued for _, counts in packed] == [10] + [1] * 60


def test_few_pairs_are_stored_at_once() -> None:
    """Those that have waited longest go first; nothing is forgotten."""
    fleet = FleetCounts()
    for queue in "abcde":
        fleet.of("t", queue, NOW).enqueued += 1
    assert [row.queue for row in fleet.take_changed(2)] == ["a", "b"]
    fleet.of("t", "a", NOW).enqueued += 1
    assert [row.queue for row in fleet.take_changed(2)] == ["c", "d"]
    assert [row.queue for row in fleet.take_changed(9)] == ["e", "a"]
    assert fleet.take_changed(9) == []


def test_pairs_beyond_a_number_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be a queue for each customer: the rest has no names."""
    monkeypatch.setattr(counts_module, "MAX_PAIRS", 2)
    fleet = FleetCounts()
    for queue in ("a", "b", "c", "d", "a"):
        fleet.of("t", queue, NOW).enqueued += 1
    found = {(task, queue): total(pair).enqueued for task, queue, pair in fleet}
    assert found == {("", ""): 2, ("t", "a"): 2, ("t", "b"): 1}
