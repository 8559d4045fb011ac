"""What jobs have enqueued for their success (`on_success=True`), taken in with that success. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from taskq.model.constraints import Constraints
from taskq.model.errors import EnqueueError
from taskq.model.job import JobRow
from taskq.model.partition import Partition, partition_of
from taskq.protocol.postgres.admitting import Admission, parents_of
from taskq.protocol.postgres.kinds import Kinds
from taskq.protocol.postgres.plans import Plan, Query, Step
from taskq.protocol.postgres.submitting import NewJob, notify, submit_flow, words_of
from taskq.protocol.submissions import Submission

#: A job, and what it has enqueued.
Child = tuple[JobRow, Submission]


class Taken(NamedTuple):
    """How it went.

    Attributes:
        queries: what is still to be sent, with the commit.
        after: tell brokers of the jobs, behind the commit.
        refused: the tasks of those that were refused, each with the reason.
    """

    queries: list[Query]
    after: list[Query]
    refused: list[tuple[str, str]]


def take_in(children: Sequence[Child], lost: Collection[int], wall: float, kinds: Kinds, schema: str) -> Plan[Taken]:
    """Takes in what jobs have enqueued that have just been settled.

    Args:
        lost: the `seq` of those that were not the fleet's: what they have enqueued does not count.
        wall: seconds since 1970, by this machine's clock.
        kinds: has the numbers of all specs and partitions of the children.
    """
    taken = Taken([], [], [])
    plain: list[NewJob] = []  # for these nothing has to be looked up: they go together
    words: dict[str, None] = {}
    for row, submission in children:
        if row.seq in lost:
            continue
        groups = [(part.spec, _jobs_of(part, kinds)) for part in submission.each]
        jobs = [job for _, own in groups for job in own]
        if not parents_of(jobs) and not any(job.constraints and job.constraints.unique for job in jobs):
            plain += jobs
            words |= dict.fromkeys(words_of(jobs, wall))
            continue
        if plain:
            yield Step(submit_flow(plain, wall))
            plain = []
        try:
            admitted = yield from Admission(groups, wall, words_of(jobs, wall), schema, is_accepted=True).decide()
        except EnqueueError as error:
            taken.refused.append((submission.spec.task, str(error)))
            continue
        if admitted.queries:
            yield Step(*admitted.queries)
            taken.after.extend(admitted.after)
    if plain:
        taken.queries.append(submit_flow(plain, wall))
    if words:
        taken.after.append(notify(schema, words))
    return taken


def partitions_of(children: Iterable[Child]) -> set[Partition]:
    """The partitions of what jobs have enqueued."""
    return {
        partition_of(part.spec, own)
        for _, submission in children
        for part in submission.each
        for own in _constraints_of(part)
    }


def _jobs_of(part: Submission, kinds: Kinds) -> list[NewJob]:
    spec = part.spec
    return [
        NewJob(job_id, payload, own, kinds.specs[spec], kinds.partitions[partition_of(spec, own)])
        for job_id, payload, own in zip(part.ids, part.payloads, _constraints_of(part), strict=True)
    ]


def _constraints_of(part: Submission) -> Sequence[Constraints | None]:
    return [None] * len(part.ids) if part.constraints is None else part.constraints
