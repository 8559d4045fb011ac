"""Failures in groups: by task, type of error and place, counted over time."""

from __future__ import annotations

import pytest

from taskq.model.info.failures import MOST_JOBS_TOLD, FailureGroups, place_of
from taskq.model.info.job import JobInfo
from taskq.model.job import JobError, JobState

NOW = 1_000_000.0
TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/mail.py", line 12, in send
    deliver(letter)
  File "/srv/shop/smtp.py", line 40, in deliver
    requests.post(url)
  File "/srv/.venv/lib/python3.12/site-packages/requests/api.py", line 115, in post
    raise Timeout
requests.exceptions.Timeout: no answer
"""
STACKS = [
    "Fatal Python error: Segmentation fault",
    "Current thread 0x00007fc77be17b80 (most recent call first):",
    '  File "/usr/lib/python3.12/ctypes/__init__.py", line 519 in string_at',
    '  File "/srv/shop/native.py", line 7 in call_c',
    '  File "/srv/shop/mail.py", line 9 in send',
]


def job(number: int, error: JobError, seconds_ago: float, task: str = "send") -> JobInfo:
    """A job that has failed."""
    return JobInfo(f"{number:032x}", task, "mail", JobState.FAILED, 1, 0, 0.0, None, NOW - seconds_ago, error=error)


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (JobError("Timeout", "no answer", TRACEBACK), "/srv/shop/smtp.py:40 in deliver"),
        (JobError("Crashed", "killed", output=STACKS), "/srv/shop/native.py:7 in call_c"),
        (JobError("UnknownTask", "there is none"), ""),
        (JobError("E", "", '  File "/x/site-packages/a.py", line 3, in f\n'), "/x/site-packages/a.py:3 in f"),
    ],
)
def test_the_last_place_in_the_code_of_the_application(error: JobError, place: str) -> None:
    assert place_of(error) == place


def test_jobs_are_counted_by_task_type_and_place_and_over_time() -> None:
    groups = FailureGroups(NOW)
    same = JobError("Timeout", "no answer", TRACEBACK)
    ages = [30.0, 1_000.0, 10_000.0, 100_000.0]
    groups.add_jobs(job(number, same, age) for number, age in enumerate(ages))
    groups.add_jobs([job(9, JobError("KeyError", "'x'", TRACEBACK), 5.0)])
    groups.add_jobs([job(10, same, 50.0, task="other")])
    first, second, third = groups.all()
    assert [(each.task, each.type) for each in (first, second, third)] == [
        ("send", "KeyError"),
        ("send", "Timeout"),
        ("other", "Timeout"),
    ]
    assert (second.failed, second.last_10_minutes, second.last_hour, second.last_day) == (4, 1, 2, 3)
    assert (second.first_at, second.last_at) == (NOW - 100_000, NOW - 30)
    assert second.jobs[0] == f"{0:032x}"
    assert groups.failed == 6


def test_the_newest_tells_its_message_and_traceback() -> None:
    """Whatever the order in which they are read."""
    groups = FailureGroups(NOW)
    groups.add_jobs(job(age, JobError("E", f"{age} s ago", TRACEBACK), age) for age in (50, 7, 90))
    [group] = groups.all()
    assert (group.message, group.jobs[0]) == ("7 s ago", f"{7:032x}")


def test_few_jobs_are_told_of_many() -> None:
    groups = FailureGroups(NOW)
    groups.add_jobs(job(number, JobError("E", ""), 100 - number) for number in range(50))
    [group] = groups.all()
    assert group.jobs == [f"{number:032x}" for number in range(49, 49 - MOST_JOBS_TOLD, -1)]


def test_an_attempt_without_a_traceback_counts_where_its_task_has_that_error() -> None:
    groups = FailureGroups(NOW)
    groups.add_jobs([job(1, JobError("Crashed", "killed", output=STACKS), 10)])
    groups.add_attempt("send", JobError("Crashed", "killed by SIGSEGV"), NOW - 20, f"{1:032x}")
    groups.add_attempt("send", JobError("MemoryLimit", ""), NOW - 20, f"{2:032x}")
    first, second = groups.all()
    assert (first.failed, first.again, first.jobs) == (1, 1, [f"{1:032x}"])
    assert (second.type, second.failed, second.again) == ("MemoryLimit", 0, 1)


def test_only_what_ended_since_a_time() -> None:
    groups = FailureGroups(NOW, NOW - 60)
    groups.add_jobs(job(age, JobError("E", ""), age) for age in (30, 90))
    groups.add_attempt("send", JobError("E", ""), NOW - 90, "")
    assert [(group.failed, group.again) for group in groups.all()] == [(1, 0)]
