"""Each pair of options, against the real core, committer and store in memory: it does what both say, or is refused.

Every pair gets the same jobs: of two keys, one twice, one that raises once. What is to become of them follows from the
options (`Expected`), and what cannot go together is in a table (`REFUSED`).
"""

from __future__ import annotations

import re
from datetime import timedelta
from itertools import pairwise
from math import inf
from typing import Any, NamedTuple

import pytest

from taskq import ConfigError, Job, QueueFull, Settings, TaskQ, current_job, testing
from taskq.client.options.call_options import Unique
from taskq.client.options.options import JobOptions
from taskq.model.job import JobState

CALLS = [("a", 0), ("a", 1), ("b", 2), ("a", 0)]
RAISES_ONCE = 1
OPTIONS_OF_TASKS = {"retry_on", "give_up_on"}
OPTIONS_OF_JOBS = {"at", "after", "on_success"}
SPAN_S, STARTS = 60, 2
DELAY_S, AT_S, EXPIRES_S, SOON_S = 5, 100, 10_000, 3

#: What `after` has in place of a job until there is one.
GOOD_PARENT, BAD_PARENT = "good", "bad"


def _by_key(key: str, number: int) -> str:
    return key if number >= 0 else ""


FORMS: dict[str, dict[str, Any]] = {
    "delay": {"delay": DELAY_S},
    "at": {"at": timedelta(seconds=AT_S)},
    "expires": {"expires": EXPIRES_S},
    "expires soon": {"expires": SOON_S},
    "priority": {"priority": 3},
    "retries": {"retries": 2},
    "no retries": {"retries": 0},
    "backoff": {"backoff": [2, 4]},
    "backoff by function": {"backoff": lambda attempt, _error: attempt * 2.0},
    "retry_on": {"retry_on": ValueError},
    "give_up_on": {"give_up_on": (ValueError, KeyError)},
    "unique": {"unique": True},
    "unique by": {"unique": ["key"]},
    "unique by function": {"unique": _by_key},
    "unique text": {"unique": "the only one"},
    "unique period": {"unique": Unique(by=["key"], period=30)},
    "unique replace": {"unique": Unique(by=["key"], replace=True)},
    "unique until start": {"unique": Unique(by=["key"], until="start")},
    "concurrency": {"concurrency": 1},
    "rate": {"rate": f"{STARTS}/{SPAN_S}s"},
    "limit_by": {"limit_by": ["key"]},
    "concurrency by": {"concurrency": 1, "limit_by": ["key"]},
    "rate by": {"rate": f"{STARTS}/{SPAN_S}s", "limit_by": ["key"]},
    "ordered_by": {"ordered_by": ["key"]},
    "resources": {"resources": {"gpu": 1}},
    "max_queued": {"max_queued": 1},
    "when_full": {"when_full": "wait"},
    "max_queued, waits": {"max_queued": 1, "when_full": "wait"},
    "timeout": {"timeout": 30},
    "cpu_timeout": {"cpu_timeout": 10},
    "memory_limit": {"memory_limit": "4GB"},
    "max_crashes": {"max_crashes": 1},
    "crash_queue": {"crash_queue": "ill"},
    "no result": {"result": False},
    "meta": {"meta": {"tenant": "acme"}},
    "after": {"after": {GOOD_PARENT: "fail"}},
    "after a failed one": {"after": {BAD_PARENT: "fail"}},
    "after whatever": {"after": {BAD_PARENT: "continue"}},
    "on_success": {"on_success": True},
    "queue": {"queue": "other"},
    "crash_queue of its own": {"queue": "ill"},
}

TOGETHER, ON_TASK = "together", "on task"
#: What makes no sense, and what the error says; some only if both are given together, or to the task: an option of a job
#: goes before that of its task otherwise.
REFUSED: list[tuple[set[str], str, str]] = [
    ({"delay", "at"}, TOGETHER, "both say when the job runs: give one of them"),
    ({"delay", "expires soon"}, "", "would expire before it may start: give it a later expires="),
    ({"at", "expires soon"}, "", "would expire before it may start: give it a later expires="),
    ({"no retries", "backoff"}, "", "backoff= has no effect with retries=0: leave it out, or allow retries"),
    ({"no retries", "backoff by function"}, ON_TASK, "backoff= has no effect with retries=0: leave it out, or allow"),
    ({"no retries", "retry_on"}, ON_TASK, "retry_on= has no effect with retries=0: leave it out, or allow retries"),
    ({"no retries", "give_up_on"}, ON_TASK, "give_up_on= has no effect with retries=0: leave it out, or allow"),
    (
        {"retry_on", "give_up_on"},
        "",
        "retry_on=ValueError has no effect: give_up_on= names it too, and takes precedence",
    ),
    ({"max_crashes", "crash_queue"}, "", "crash_queue= has no effect with max_crashes=1"),
    ({"crash_queue", "crash_queue of its own"}, "", "is the task's own queue: name another one, or leave it out"),
    ({"limit_by"}, "", "limit_by= needs a limit to apply to: give concurrency= or rate= as well"),
    ({"when_full"}, "", "when_full= needs a queue with a limit: give max_queued= as well"),
]
#: What each that makes no sense by itself needs: one of these.
NEEDS = {"limit_by": {"concurrency", "rate"}, "when_full": {"max_queued"}}


class Run(NamedTuple):
    """A start of a job."""

    job_id: str
    at: float


class Application:
    """One task with a pair of options, and what it needs."""

    def __init__(self, options: dict[str, Any], *, on_task: bool) -> None:
        self.q = TaskQ("pairs", url="/proc/nonexistent")
        self.runs: list[Run] = []
        self.others: list[str] = []  # the parents and the like that ran, by name
        self.clock: testing.Clock | None = None
        self.started_at = 0.0
        self.handles: list[Job[int]] = []
        given = {name: value for name, value in options.items() if self._is_for_task(name, value, on_task)}
        self.of_job = {name: value for name, value in options.items() if name not in given}
        self.other = self.q.task(name="other", retries=0)(self._other)
        self.outer = self.q.task(name="outer", retries=0)(self._outer)
        self.work = self.q.task(name="work", **given)(self._work)

    @staticmethod
    def _is_for_task(name: str, value: Any, on_task: bool) -> bool:
        is_only_there = name in OPTIONS_OF_TASKS or (name == "backoff" and callable(value))
        return is_only_there or (on_task and name not in OPTIONS_OF_JOBS)

    def _work(self, key: str, number: int) -> int:
        assert self.clock is not None
        self.runs.append(Run(current_job().id, self.clock.time()))
        if number == RAISES_ONCE and current_job().attempt == 1:
            raise ValueError(key)
        return number

    def _other(self, name: str) -> None:
        self.others.append(name)
        if name == BAD_PARENT:
            raise ValueError(name)

    def _outer(self) -> None:
        """Enqueues for its success."""
        self._enqueue_all()

    def _enqueue_all(self) -> None:
        self.handles.extend(self.limited.enqueue(*call) for call in CALLS)

    def run(self, jobs: testing.Jobs, expected: Expected) -> None:
        """Enqueues and runs all."""
        self.clock = jobs.clock
        self.started_at = jobs.clock.time()
        options = dict(self.of_job)
        if "at" in options:
            options["at"] = jobs.now + options["at"]
        if "after" in options:
            options["after"] = {self.other.enqueue(name): policy for name, policy in options["after"].items()}
        self.limited = self.work.options(**options) if options else self.work
        if options.get("on_success"):
            self.outer.enqueue()
            jobs.drain(inf)
            expected.were_enqueued_together()
        else:
            for call in CALLS:
                self._enqueue(jobs, call, expected)
        jobs.drain(inf)

    def _enqueue(self, jobs: testing.Jobs, call: tuple[str, int], expected: Expected) -> None:
        try:
            job = self.limited.enqueue(*call)
        except QueueFull:
            assert expected.may_be_full
            jobs.drain(inf)
            job = self.limited.enqueue(*call)
        expected.was_enqueued(call, job, self.handles)
        self.handles.append(job)


def _key_of(unique: Any, call: tuple[str, int]) -> object:
    by = unique.by if isinstance(unique, Unique) else unique
    return call if by is True else by if isinstance(by, str) else call[0]


class Expected:
    """What follows from the options."""

    def __init__(self, options: dict[str, Any], app: Application) -> None:
        self.options = options
        self.app = app
        self.unique = options.get("unique")
        self.replaces = isinstance(self.unique, Unique) and self.unique.replace
        self.period_s = self.unique.period if isinstance(self.unique, Unique) else None
        self.may_be_full = "max_queued" in options and "when_full" not in options
        self.left_out: set[int] = set()  # by position: not the first, or not the last, of its kind

    # -- as they are enqueued

    def was_enqueued(self, call: tuple[str, int], job: Job[int], before: list[Job[int]]) -> None:
        """Whoever is one of a kind is the one that was there, if that one had not ended."""
        holders = [
            (position, other)
            for position, other in enumerate(before)
            if self.unique is not None and _key_of(self.unique, CALLS[position]) == _key_of(self.unique, call)
        ]
        if not holders:
            assert not job.is_duplicate
            return
        position, holder = holders[-1]
        if self.replaces:
            assert not job.is_duplicate
            if holder.state() == JobState.CANCELLED:
                self.left_out.add(position)
            else:
                assert holder.state() in (JobState.SUCCEEDED, JobState.FAILED), "it ran before, for there was no room"
            return
        counts = holder.state() in (JobState.QUEUED, JobState.SCHEDULED, JobState.WAITING) or self._is_young(holder)
        assert job.is_duplicate == counts, (job, holder, holder.state())
        assert (job == holder) == counts

    def _is_young(self, holder: Job[int]) -> bool:
        assert self.app.clock is not None
        enqueued_at = holder.info().enqueued_at
        return self.period_s is not None and enqueued_at + self.period_s > self.app.clock.time()

    def were_enqueued_together(self) -> None:
        """By a job that succeeded: one of each kind is left, and the others have ended as cancelled."""
        if self.unique is None:
            return
        last: dict[object, int] = {}
        for position, call in enumerate(CALLS):
            key = _key_of(self.unique, call)
            if key in last:
                self.left_out.add(last[key] if self.replaces else position)
            if self.replaces or key not in last:
                last[key] = position

    # -- in the end

    def check(self) -> None:
        """All have ended as they should."""
        handles = self.app.handles
        assert len(handles) == len(CALLS)
        for position, job in enumerate(handles):
            state = job.state()
            assert state in self._states(position, job), (CALLS[position], job.info())
            if state == JobState.SUCCEEDED and not job.is_duplicate:
                assert job.result() == (CALLS[position][1] if "result" not in self.options else None)
                attempts = 2 if CALLS[position][1] == RAISES_ONCE else 1
                assert job.info().attempts == attempts
        self._check_order()
        self._check_times()

    def _states(self, position: int, job: Job[int]) -> set[JobState]:
        if self.options.get("after") == {BAD_PARENT: "fail"} or position in self.left_out:
            return {JobState.CANCELLED}
        number = next(call[1] for call, first in zip(CALLS, self.app.handles, strict=True) if first == job)
        gives_up = self.options.get("retries") == 0 or "give_up_on" in self.options
        end = JobState.FAILED if number == RAISES_ONCE and gives_up else JobState.SUCCEEDED
        waits = {"rate", "ordered_by", "concurrency"} & self.options.keys()
        if self.options.get("expires") == SOON_S and waits:
            return {end, JobState.EXPIRED} if position else {end}
        return {end}

    def _check_order(self) -> None:
        """One after the other, retries included."""
        if "ordered_by" not in self.options:
            return
        for key in ("a", "b"):
            of_key = dict.fromkeys(job.id for call, job in zip(CALLS, self.app.handles, strict=True) if call[0] == key)
            ran = [run.job_id for run in self.app.runs if run.job_id in of_key]
            assert ran == sorted(ran, key=list(of_key).index), key

    def _check_times(self) -> None:
        runs = self.app.runs
        for run in runs:
            enqueued_at = self.app.q.job(run.job_id).info().enqueued_at
            assert run.at >= enqueued_at + self.options.get("delay", 0) - 0.001
        if "at" in self.options and runs:
            assert runs[0].at - self.app.started_at >= AT_S
        backoff = self.options.get("backoff")
        for job in self.app.handles:
            times = [run.at for run in runs if run.job_id == job.id]
            if backoff is not None:
                assert all(later - earlier >= 2 for earlier, later in pairwise(times))
        if "rate" in self.options:
            for key in ("a", "b"):
                of_key = {job.id for call, job in zip(CALLS, self.app.handles, strict=True) if call[0] == key}
                starts = [run.at for run in runs if run.job_id in of_key]
                assert all(late - early >= SPAN_S - 0.001 for early, late in zip(starts, starts[STARTS:], strict=False))


def _refusal(names: set[str], options: dict[str, Any], on_task: bool) -> str | None:
    for refused, where, message in REFUSED:
        counts = where == "" or on_task == (where == ON_TASK)
        needs = next((NEEDS[name] for name in refused if name in NEEDS), set())
        if refused <= names and counts and not options.keys() & needs:
            return message
    return None


@pytest.mark.parametrize("first", FORMS)
def test_pairs(first: str) -> None:
    """Of one option with all that come after it in the list."""
    names = list(FORMS)
    place = names.index(first)
    for number, second in enumerate(names[place + 1 :], place):
        options = FORMS[first] | FORMS[second]
        if len(options) < len(FORMS[first]) + len(FORMS[second]):
            continue  # two values of one option
        is_in_table = any(refused <= {first, second} for refused, _, _ in REFUSED)
        for on_task in (True, False) if is_in_table else (number % 2 == 0,):  # in turn: that is half the time
            try:
                _try({first, second}, options, on_task)
            except BaseException as error:
                error.add_note(f"{first} with {second}, as options of {'the task' if on_task else 'the jobs'}")
                raise


def _try(names: set[str], options: dict[str, Any], on_task: bool) -> None:
    message = _refusal(names, options, on_task)
    if message is not None:
        with pytest.raises(ConfigError, match=re.escape(message)):
            _run(options, on_task)
        return
    _run(options, on_task)


def _run(options: dict[str, Any], on_task: bool) -> None:
    app = Application(options, on_task=on_task)
    expected = Expected(options, app)
    with testing.queue(app.q, settings=Settings(consumers=1, resources=(("gpu", 1),))) as jobs:
        app.run(jobs, expected)
        expected.check()


def test_all_options_are_here() -> None:
    known = {name for options in FORMS.values() for name in options}
    assert known == {*JobOptions.__annotations__, *OPTIONS_OF_TASKS}
