"""A batch of jobs on its way to a consumer: what the broker writes, the consumer reads."""

from __future__ import annotations

from taskq.client.context import RunningJob
from taskq.model.constraints import Constraints
from taskq.model.effects import Batch
from taskq.model.job import JobRow
from taskq.model.spec import Spec
from taskq.protocol.link.batch import pack_batch, read_batch

ID = bytes(range(16))


def test_most_jobs_travel_without_options() -> None:
    """Their id, task, attempt and arguments: as `RunningJob` takes them."""
    row = JobRow(1, ID, Spec("add"), b"payload")
    row.attempts = 2
    number, [sent] = read_batch(pack_batch(Batch(1, 7, [row])))
    job = RunningJob(number, 1.5, *sent)
    assert (job.number, job.id, job.task, job.attempt, job.payload) == (7, ID, "add", 3, b"payload")
    assert job.extra == {}


def test_options_travel_with_the_jobs_that_have_them() -> None:
    """Those of the task, and those of the job; the next job has none of them."""
    limited = Spec("resize", timeout_s=5.0, cpu_timeout_s=2.0, memory_limit_bytes=1 << 20, keep_result=False)
    rows = [
        JobRow(1, ID, limited, b"a", constraints=Constraints(follows=True, meta=(("tenant", "acme"),))),
        JobRow(2, ID, limited, b"b"),
        JobRow(3, ID, Spec("add"), b"c"),
    ]
    rows[1].checkpoint = b"kept"
    first, jobs = read_batch(pack_batch(Batch(1, 7, rows)))
    of_task = {"timeout_s": 5.0, "cpu_timeout_s": 2.0, "memory_limit_bytes": 1 << 20, "drop_result": True}
    assert [RunningJob(number, 1.5, *sent).extra for number, sent in enumerate(jobs, first)] == [
        {**of_task, "follows": True, "meta": {"tenant": "acme"}},
        {**of_task, "checkpoint": b"kept"},
        {},
    ]


def test_a_batch_without_jobs_is_a_question() -> None:
    """Whether the consumer is alive."""
    assert read_batch(pack_batch(Batch(1, 7, []))) == (7, [])
