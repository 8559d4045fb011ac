"""What follows from an attempt that did not succeed: whether its job ends, or when and from which queue it runs again.

Pure rules, the same for every engine. They change nothing: whoever asks has counted the attempt in the row before, and
carries out what follows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

from taskq.model.attempt import Failure, Verdict
from taskq.model.effects import ProcessExit
from taskq.model.job import JobError, JobRow, retry_delay_s
from taskq.model.spec import Spec, spec_after_crash
from taskq.model.stored import StoredState

#: The type of the error of an attempt that took more memory than its `memory_limit`.
MEMORY_LIMIT_ERROR: Final = "MemoryLimit"


class Consequence(NamedTuple):
    """What follows for a job.

    Attributes:
        event: the log's word for it.
        spec: the job's Spec from now on, perhaps with another queue.
        state: the final state in which it ends; None: it runs again.
        delay_s: the seconds until it runs again; None: at once, in its old place.
    """

    event: str
    spec: Spec
    state: StoredState | None = None
    delay_s: float | None = None


def after_failure(row: JobRow, failure: Failure) -> Consequence:
    """What follows from an attempt that ended, by itself or for its time, without success.

    Args:
        row: the job, with this attempt in its count.
    """
    verdict, error, wish_s, _ = failure
    if verdict == Verdict.SNOOZED:
        return Consequence("job.snoozed", row.spec, delay_s=wish_s or 0.0)
    if verdict == Verdict.CANCELLED:
        return Consequence("job.cancelled", row.spec, StoredState.CANCELLED)
    if verdict == Verdict.FAILED and row.failures <= row.spec.retries:
        spec = spec_after_crash(row.spec) if error.type == MEMORY_LIMIT_ERROR else row.spec
        return Consequence("job.retrying", spec, delay_s=retry_delay_s(row, wish_s))
    return Consequence("job.failed", row.spec, StoredState.FAILED)


def after_crash(row: JobRow) -> Consequence:
    """What follows from an attempt whose process died.

    A job that goes on in another queue is due at once, not put back: so it stands in that queue in the store too.

    Args:
        row: the job, with this attempt and this crash in its counts.
    """
    if row.charged_crashes >= row.spec.max_crashes:
        return Consequence("job.failed", row.spec, StoredState.FAILED)
    return Consequence("job.crashed", spec_after_crash(row.spec), delay_s=None if row.spec.crash_queue is None else 0.0)


def crash_error(death: ProcessExit | None, output: list[str]) -> JobError:
    """The error of an attempt whose process died; None for the death of the whole fleet."""
    if death is None:
        return JobError("Crashed", "the whole fleet died while the job ran", output=output)
    reason = f"the process that ran the job {death.describe()}"
    return JobError("Crashed", reason, "", death.exit_code, death.signal, output)


def limit_error(spec: Spec, death: ProcessExit, output: list[str], ran_s: float | None) -> JobError:
    """The error of an attempt whose process was killed since it took too much time or memory.

    Args:
        ran_s: how long it ran in seconds, if that is known.
    """
    error = death.over_limit
    if error is None:
        after = "" if ran_s is None else f" after {ran_s:.2f} s"
        limit = f"its timeout of {spec.timeout_s:g} s" if spec.timeout_s is not None else "it may"
        error = JobError("TimedOut", f"the job ran longer than {limit} and was killed{after}")
    return replace(error, output=output)
