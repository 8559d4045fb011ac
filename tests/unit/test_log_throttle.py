"""Which of the frequent events get a line, and that the others are counted."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.broker.events import EventLog
from taskq.model.job import JobRow
from taskq.model.spec import Spec
from taskq.telemetry.throttle import HIGH_RATE, MAX_LINES_PER_S, OTHER_TASKS, TASKS_MAX, JobLogThrottle, LineLimit


def test_slow_jobs_all_get_lines() -> None:
    """Below the rate nothing is counted."""
    throttle = JobLogThrottle()
    for i in range(1000):
        assert throttle.allow("job.succeeded", "a", now=i / MAX_LINES_PER_S * 1.01)
    assert throttle.next_due() is None
    assert throttle.due(1e9) == []


def test_above_the_rate_events_are_counted() -> None:
    """A batch gets lines up to the rate; a second later one summary has the rest, once."""
    throttle = JobLogThrottle(10)
    assert throttle.succeeded_many("a", 500, 5.0, 0.3, now=100.0) == 10
    assert throttle.succeeded_many("a", 10, 0.1, 0.01, now=100.5) == 0
    assert throttle.next_due() == 101.0
    assert throttle.due(100.9) == []
    assert throttle.due(101.0) == [
        {
            "task": "a",
            "succeeded": 500,
            "duration_mean_ms": 10.0,
            "duration_max_ms": 300.0,
            "duration_total_ms": 5000.0,
            "window_s": 1.0,
        }
    ]
    assert throttle.due(103.0) == []
    assert throttle.succeeded_many("a", 500, 5.0, 0.3, now=103.0) == 10


@pytest.mark.parametrize("event", ["job.failed", "job.retrying", "job.crashed", "job.timed_out", "x"])
def test_other_events_are_never_counted(event: str) -> None:
    """Failures, retries, crashes and all else get their line at any rate."""
    throttle = JobLogThrottle(1)
    assert throttle.succeeded_many("a", 500, 1.0, 1.0, now=0.0) == 1
    assert all(throttle.allow(event, "a", now=0.0) for _ in range(1000))
    assert throttle.allow_many(event, "a", 1000, now=0.0) == 1000


def test_rare_task_is_not_hidden_by_a_busy_one() -> None:
    """Each task has a few lines of its own."""
    throttle = JobLogThrottle(10)
    throttle.succeeded_many("busy", 500, 1.0, 1.0, now=0.0)
    assert throttle.allow("job.started", "rare", now=0.1)
    assert throttle.allow("job.succeeded", "rare", now=0.2, duration_s=0.1)


def test_many_tasks_do_not_make_many_lines() -> None:
    """Ten thousand task names, as of a client gone mad, cost a bounded number of lines and summaries."""
    throttle = JobLogThrottle(10)
    lines = sum(throttle.allow_many("job.enqueued", f"t{i}", 5, now=0.0) for i in range(10_000))
    summaries = throttle.due(1.0)
    assert lines <= 10 + 2 * 3 * TASKS_MAX + 2
    assert len(summaries) == TASKS_MAX + 1
    assert OTHER_TASKS in {summary["task"] for summary in summaries}
    assert sum(summary["enqueued"] for summary in summaries) + lines == 50_000


def test_rate_zero_writes_summaries_only() -> None:
    """With a rate of 0 every frequent event is counted."""
    throttle = JobLogThrottle(0)
    assert not throttle.allow("job.started", "a", now=0.0)
    assert throttle.due(1.0) == [{"task": "a", "started": 1, "window_s": 1.0}]


def test_flush_at_the_end() -> None:
    """A broker that stops tells what it has counted so far."""
    throttle = JobLogThrottle(0)
    throttle.allow("job.succeeded", "a", now=0.0, duration_s=0.5)
    (summary,) = throttle.due(0.25, flush=True)
    assert (summary["succeeded"], summary["duration_total_ms"], summary["window_s"]) == (1, 500.0, 0.25)


calls = st.tuples(
    st.sampled_from(sorted(HIGH_RATE)),
    st.sampled_from("abc"),
    st.integers(0, 300),
    st.floats(0, 0.7),
)


@given(st.integers(0, 50), st.lists(calls))
def test_lines_and_summaries_add_up(rate: int, steps: list[tuple[str, str, int, float]]) -> None:
    """No event is lost or told twice, and lines per second stay below the rate and the reserve."""
    throttle = JobLogThrottle(rate)
    now = 0.0
    given_, told = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    lines_at: list[tuple[float, int]] = []

    def take(flush: bool = False) -> None:
        for summary in throttle.due(now, flush):
            told.update({(field, summary["task"]): summary.get(field, 0) for field in HIGH_RATE.values()})

    for event, task, count, passed in steps:
        now += passed
        take()
        lines = throttle.allow_many(event, task, count, now)
        assert 0 <= lines <= count
        lines_at.append((now, lines))
        given_[HIGH_RATE[event], task] += count
        told[HIGH_RATE[event], task] += lines
    take(flush=True)
    assert +given_ == +told
    for start, _ in lines_at:
        within = sum(lines for at, lines in lines_at if start <= at < start + 1.0)
        assert within <= 2 * (rate + 2 * len(HIGH_RATE) * 3)


def test_lines_of_a_flood() -> None:
    """So many lines of each source a second, and then the number of the others, when the second is over."""
    limit = LineLimit[str](2)
    assert [limit.allow(source, 100.0) for source in "aaabaa"] == [True, True, False, True, False, False]
    assert limit.next_due() == 101.0
    assert limit.take_dropped(100.9) == {}
    assert not limit.allow("a", 100.95)
    assert limit.take_dropped(101.0) == {"a": 4}
    assert limit.next_due() is None
    assert limit.take_dropped(102.0) == {}
    assert limit.allow("a", 102.0)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1.5), st.booleans()), max_size=60),
    st.integers(0, 5),
)
def test_every_line_of_a_flood_is_reported_or_counted(lines: list[tuple[str, float, bool]], most: int) -> None:
    """However late the counts are taken, lines and counts add up, and no second has too many lines."""
    limit, now = LineLimit[str](most), 0.0
    told, counted, sent = Counter[str](), Counter[str](), Counter[str]()
    times: list[tuple[str, float]] = []
    for source, pause_s, takes in lines:
        now += pause_s
        sent[source] += 1
        if limit.allow(source, now):
            told[source] += 1
            times.append((source, now))
        if takes:
            counted.update(limit.take_dropped(now))
    counted.update(limit.take_dropped(now, flush=True))
    assert told + counted == sent
    for source, at in times:
        assert sum(1 for other, then in times if other == source and at <= then < at + 1.0) <= 2 * most


def test_successes_that_nobody_wants_told_are_not_even_counted() -> None:
    told: list[str] = []
    log = SimpleNamespace(info=lambda event, **_fields: told.append(event))
    done = [(JobRow(1, bytes(16), Spec("t"), b""), 1, 10)]
    for wanted in (False, True):
        events = EventLog(log, lambda _key: None, tells_enqueued=False, tells_successes=wanted)
        events.successes(done * 3, 0.0)
        events.successes(done, 0.0)
        assert told == ["job.succeeded"] * 4 * wanted
