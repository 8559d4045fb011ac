"""What follows from an attempt that did not succeed, case by case."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.model.attempt import Failure, Verdict
from taskq.model.constraints import NO_CONSTRAINTS
from taskq.model.effects import ProcessExit
from taskq.model.job import JobError, JobRow, backoff_s
from taskq.model.spec import Spec
from taskq.model.stored import StoredState
from taskq.model.verdicts import Consequence, after_crash, after_failure, crash_error, limit_error

ID = bytes(range(16))
ERROR = JobError("ValueError", "no")
MEMORY = JobError("MemoryLimit", "too much")


def job(attempts: int, crashes: int = 0, snoozes: int = 0, forgiven: tuple[int, int] = (0, 0), **spec: Any) -> JobRow:
    row = JobRow(7, ID, Spec("task", **spec), b"", attempts, crashes)
    row.snoozes = snoozes
    if forgiven != (0, 0):
        row.constraints = replace(NO_CONSTRAINTS, forgiven=forgiven)
    return row


def short(follows: Consequence) -> tuple[str, StoredState | None, float | None, str]:
    return follows.event, follows.state, follows.delay_s, follows.spec.queue


FAILED = ("job.failed", StoredState.FAILED, None, "default")
CANCELLED = ("job.cancelled", StoredState.CANCELLED, None, "default")


def retrying(delay_s: float, queue: str = "default") -> tuple[str, None, float, str]:
    return "job.retrying", None, delay_s, queue


@pytest.mark.parametrize(
    ("row", "verdict", "error", "wish_s", "expected"),
    [
        (job(1), Verdict.FAILED, ERROR, None, retrying(backoff_s(ID, 1))),
        (job(3), Verdict.FAILED, ERROR, None, retrying(backoff_s(ID, 3))),
        (job(4), Verdict.FAILED, ERROR, None, FAILED),
        (job(1, retries=0), Verdict.FAILED, ERROR, None, FAILED),
        (job(1, retries=0), Verdict.FAILED, ERROR, 5.0, FAILED),
        (job(1), Verdict.FAILED, ERROR, 0.0, retrying(0.0)),
        (job(1), Verdict.FAILED, ERROR, 5.0, retrying(5.0)),
        (job(1, backoff_s=(2.0, 9.0)), Verdict.FAILED, ERROR, None, retrying(2.0)),
        (job(3, backoff_s=(2.0, 9.0)), Verdict.FAILED, ERROR, None, retrying(9.0)),
        # neither crashes nor snoozes use up retries, nor what was forgiven
        (job(4, crashes=2, retries=2), Verdict.FAILED, ERROR, None, retrying(backoff_s(ID, 2))),
        (job(9, snoozes=8, retries=1), Verdict.FAILED, ERROR, None, retrying(backoff_s(ID, 1))),
        (job(5, forgiven=(4, 0)), Verdict.FAILED, ERROR, None, retrying(backoff_s(ID, 1))),
        # over its memory: from the other queue, as after a crash, while there are retries
        (job(1, crash_queue="big"), Verdict.FAILED, MEMORY, 1.0, retrying(1.0, "big")),
        (job(1, crash_queue="big"), Verdict.FAILED, ERROR, 1.0, retrying(1.0)),
        (job(4, crash_queue="big"), Verdict.FAILED, MEMORY, None, FAILED),
        (job(1), Verdict.REFUSED, ERROR, None, FAILED),
        (job(1), Verdict.REFUSED, ERROR, 5.0, FAILED),
        (job(1), Verdict.CANCELLED, ERROR, None, CANCELLED),
        (job(1), Verdict.SNOOZED, ERROR, 5.0, ("job.snoozed", None, 5.0, "default")),
        (job(9, retries=0), Verdict.SNOOZED, ERROR, 5.0, ("job.snoozed", None, 5.0, "default")),
    ],
)
def test_what_follows_a_failure(
    row: JobRow, verdict: Verdict, error: JobError, wish_s: float | None, expected: tuple[object, ...]
) -> None:
    assert short(after_failure(row, Failure(verdict, error, wish_s, b""))) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (job(1, 1), ("job.crashed", None, None, "default")),
        (job(2, 2), ("job.crashed", None, None, "default")),
        (job(3, 3), FAILED),
        (job(1, 1, max_crashes=1), FAILED),
        (job(9, 2), ("job.crashed", None, None, "default")),
        (job(5, 5, forgiven=(0, 4)), ("job.crashed", None, None, "default")),
        (job(1, 1, retries=0), ("job.crashed", None, None, "default")),
        (job(1, 1, crash_queue="big"), ("job.crashed", None, 0.0, "big")),
        (job(3, 3, crash_queue="big"), FAILED),
    ],
)
def test_what_follows_a_crash(row: JobRow, expected: tuple[object, ...]) -> None:
    assert short(after_crash(row)) == expected


def test_the_other_queue_is_used_once() -> None:
    assert after_crash(job(1, 1, crash_queue="big")).spec == Spec("task", queue="big")


@given(
    failures=st.integers(0, 5),
    crashes=st.integers(0, 5),
    snoozes=st.integers(0, 5),
    retries=st.integers(0, 5),
    max_crashes=st.integers(1, 5),
    verdict=st.sampled_from([verdict for verdict in Verdict if verdict is not Verdict.SUCCEEDED]),
)
def test_a_job_either_ends_or_runs_again_and_its_row_is_left_alone(
    failures: int, crashes: int, snoozes: int, retries: int, max_crashes: int, verdict: Verdict
) -> None:
    attempts = failures + crashes + snoozes
    row = job(attempts, crashes, snoozes, retries=retries, max_crashes=max_crashes, crash_queue="big")
    before = [getattr(row, name) for name in JobRow.__slots__]

    for follows in (after_failure(row, Failure(verdict, ERROR, 1.0, b"")), after_crash(row)):
        assert follows.state in (None, StoredState.FAILED, StoredState.CANCELLED)
        assert (follows.state is None) == (follows.delay_s is not None)
    assert [getattr(row, name) for name in JobRow.__slots__] == before


def test_the_error_of_a_crash_tells_how_the_process_died() -> None:
    death = ProcessExit(signal="SIGKILL")
    expected = JobError("Crashed", "the process that ran the job was killed by SIGKILL", "", None, "SIGKILL", ["bye"])
    assert crash_error(death, ["bye"]) == expected
    assert crash_error(None, []) == JobError("Crashed", "the whole fleet died while the job ran")


@pytest.mark.parametrize(
    ("spec", "death", "ran_s", "expected"),
    [
        (Spec("task", timeout_s=1.5), ProcessExit(), 1.75, "ran longer than its timeout of 1.5 s and was killed after 1.75 s"),
        (Spec("task", timeout_s=1.5), ProcessExit(), None, "ran longer than its timeout of 1.5 s and was killed"),
        (Spec("task"), ProcessExit(), None, "ran longer than it may and was killed"),
        (Spec("task"), ProcessExit(over_limit=MEMORY), 2.0, "too much"),
    ],
)  # fmt: skip
def test_the_error_of_a_kill_for_a_limit(spec: Spec, death: ProcessExit, ran_s: float | None, expected: str) -> None:
    error = limit_error(spec, death, ["bye"], ran_s)
    assert error.message.removeprefix("the job ") == expected
    assert error.output == ["bye"]
    assert error.type == ("TimedOut" if death.over_limit is None else "MemoryLimit")
