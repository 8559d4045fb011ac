"""The object of a job that runs: it goes with the job, and takes along what the job held."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Iterator

import pytest

from taskq import TaskQ, TaskQError, current_job
from taskq.client.context import RunningJob, this_process
from taskq.consumer.coroutines import CoroutineJob, CoroutineRunner
from taskq.consumer.main_thread import SignalledJob
from taskq.consumer.runner import Runner
from taskq.consumer.threads import ThreadJob
from taskq.model.attempt import Verdict, failure_in
from taskq.protocol.codec import encode_call

ID = bytes(range(16))
q = TaskQ("running", url="/proc/nonexistent")


class Held:
    """Something large."""


@q.task(name="ask")
def ask() -> None:
    """Asks who it is."""
    assert current_job().id == ID.hex()
    current_job().progress(1)
    held.append(weakref.ref(current_job()))


@q.task(name="fail")
def fail() -> None:
    """Holds something, and raises."""
    mine = Held()
    held.append(weakref.ref(mine))
    raise ValueError("failed")


@q.task(name="fail_async")
async def fail_async() -> None:
    """Raises on an event loop."""
    raise ValueError("failed")


held: list[weakref.ref[object]] = []


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is in a cycle stays."""
    held.clear()
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("kind", [SignalledJob, ThreadJob])
@pytest.mark.parametrize(("task", "verdict"), [("ask", Verdict.SUCCEEDED), ("fail", Verdict.FAILED)])
def test_what_a_job_held_goes_with_it(kind: type[RunningJob], task: str, verdict: Verdict) -> None:
    """Nothing waits for the garbage collector: a job may hold much, and the next one needs the memory."""
    job = kind(1, time.monotonic(), ID, task, 1, encode_call(ID, (), {}))
    this_process.job = job
    try:
        assert Runner(q).run(job)[0] == verdict
    finally:
        this_process.job = None
    if job.current is not None:
        job.end()
    gone = weakref.ref(job)
    del job
    assert [ref() for ref in (*held, gone)] == [None, None]


def test_a_job_that_has_ended_says_so() -> None:
    """Whoever has kept it is told, and does not speak for another job."""
    job = RunningJob(1, time.monotonic(), ID, "ask", 1, b"")
    this_process.job = job
    try:
        kept = current_job()
    finally:
        this_process.job = None
    job.end()
    with pytest.raises(TaskQError, match="after the job had ended"):
        kept.progress(1)
    with pytest.raises(TaskQError, match="outside a job"):
        current_job()


@pytest.mark.parametrize("kind", [RunningJob, SignalledJob, ThreadJob, CoroutineJob])
def test_the_traceback_of_a_job_begins_with_its_own_code(kind: type[RunningJob]) -> None:
    """Frames of ours tell its author nothing, wherever the job has run."""
    job = kind(1, time.monotonic(), ID, "fail_async" if kind is CoroutineJob else "fail", 1, encode_call(ID, (), {}))
    if isinstance(job, CoroutineJob):
        _, _, outcome = asyncio.run(CoroutineRunner(q).run_async(job))
    else:
        _, _, outcome = Runner(q).run(job)
    traceback = failure_in(outcome)[0].traceback
    assert traceback.count("  File ") == 1, traceback
    assert "test_running_job.py" in traceback
