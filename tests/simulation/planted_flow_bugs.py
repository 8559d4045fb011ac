"""Bugs in what is done for workflows and children, to be found by the simulation; see test_simulation.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from simulation import Parts, SimPool

from taskq.engines.embedded.admission import Admission, Admitted
from taskq.engines.embedded.committer import Committer
from taskq.engines.embedded.journal.memory import MemoryStore
from taskq.engines.embedded.journal.memory_records import Record
from taskq.engines.embedded.journal.store import Place, Revival
from taskq.engines.embedded.transaction import Transaction
from taskq.model.attempt import Attempts
from taskq.model.job import JobRow
from taskq.model.stored import Edge, StoredState
from taskq.protocol.submissions import Submission


class CommitsEndsFirst(Committer):
    """The end of a job, and its children, are two commits."""

    def _take_in_children(self, tx: Transaction) -> None:
        for _ in range(100 if tx.decided.children else 0):  # the broker may die at each: it is a long moment
            self._store.commit()
        super()._take_in_children(tx)


class CommitsEndsAlone(Committer):
    """The end of a job, and the start of what comes after it, are two commits."""

    def _release(self, tx: Transaction) -> None:
        for _ in range(10 if self._store.has_waiting else 0):
            self._store.commit()
        super()._release(tx)


class ForgetsWhoWaits(MemoryStore):
    """The start knows nothing of ends that were not handed over to all."""

    def unfinished_releases(self) -> list[tuple[bytes, StoredState]]:
        return []


def _take(parts: Any, children: Any) -> None:
    """Takes children whatever became of their job; the core has them with a success alone."""
    parts.core._effects.children += [(None, submission) for submission in children]


class TakesChildrenOfFailures(SimPool):
    """Whoever has ended had a right to its children."""

    def _settle(self, consumer: Any, attempts: Attempts) -> None:
        taken = [each for number in attempts.numbers for each in consumer.children.pop(number, [])]
        super()._settle(consumer, attempts)
        _take(self._parts, taken)


class TakesChildrenOfTheDead(SimPool):
    """What a job has enqueued is taken when its process dies."""

    def _hear_last_words(self, consumer: Any) -> None:
        super()._hear_last_words(consumer)
        for children in consumer.children.values():
            _take(self._parts, children)


class NeverContinues(MemoryStore):
    """The policy `continue` is lost."""

    def close_edges(self, parents: Sequence[bytes], limit: int) -> list[Edge]:
        return [edge._replace(goes_on=False) for edge in super().close_edges(parents, limit)]


class AlwaysContinues(MemoryStore):
    """The policy `fail` is lost."""

    def close_edges(self, parents: Sequence[bytes], limit: int) -> list[Edge]:
        return [edge._replace(goes_on=True) for edge in super().close_edges(parents, limit)]


class WaitsForTheFirst(MemoryStore):
    """A job goes when the first of those before it has ended."""

    def close_edges(self, parents: Sequence[bytes], limit: int) -> list[Edge]:
        return [edge._replace(is_last=True) for edge in super().close_edges(parents, limit)]


class CallsNobodyBack(MemoryStore):
    """What was called off because of a job that is retried stays so."""

    def revive_dependents(self, places: Sequence[Place], limit: int) -> Revival:
        return super().revive_dependents(places[:0], limit)


class CallsEverybodyBack(MemoryStore):
    """A retry calls back what was called off because of others."""

    def _is_revived(self, record: Record, parent: bytes) -> bool:
        return record.kept == StoredState.CANCELLED and bool(record.payload) and bool(record.after or parent)

    def revive_dependents(self, places: Sequence[Place], limit: int) -> Revival:
        failed = [record.id for record in self._jobs.values() if record.kept == StoredState.FAILED]
        return super().revive_dependents([*places, *((job_id, 0) for job_id in failed)], limit)


class CallsBackWhatWasCancelled(MemoryStore):
    """To cancel what was called off changes nothing: it can be called back."""

    def detach(self, row: JobRow) -> None:
        pass


class BelievesOldEnds(Committer):
    """An end that not all heard of at once is told to the others also when the job was retried in the meantime."""

    def _still_left(self) -> dict[bytes, StoredState]:
        return self._left


class TakesFlowsAgain(Admission):
    """A workflow that is sent again is another."""

    def take(self, submission: Submission, wall: float) -> Admitted:
        store: Any = self._store
        for job_id in submission.ids if submission.parts else ():
            if job_id in store._jobs:
                store._drop(store._jobs[job_id])
        return super().take(submission, wall)


class TakesFlowsInParts(Admission):
    """The jobs of a workflow are taken in kind by kind."""

    def _take_parts(self, submission: Submission) -> Admitted:
        for part in submission.parts:
            self.take(part, 0.0)
        return Admitted([], {}, [], [], {})


def with_admission(kind: type[Admission]) -> type[Committer]:
    """A committer that takes jobs in like this."""

    class OtherCommitter(Committer):
        admission = kind

    return OtherCommitter


FLOW_BUGS: dict[str, tuple[Parts, Iterable[str]]] = {
    "a commit between an end and the children": (
        Parts(committer=CommitsEndsFirst),
        {"children_come_with_success"},
    ),
    "a commit between an end and the next step, and a start that forgets who waits": (
        Parts(store=ForgetsWhoWaits, committer=CommitsEndsAlone),
        {"a_step_has_its_turn"},
    ),
    "children of failures": (Parts(pool=TakesChildrenOfFailures), {"children_come_with_success"}),
    "children of the dead": (Parts(pool=TakesChildrenOfTheDead), {"children_come_with_success"}),
    "continue is fail": (Parts(store=NeverContinues), {"a_step_has_its_turn"}),
    "fail is continue": (Parts(store=AlwaysContinues), {"a_step_waits_its_turn"}),
    "any is all": (Parts(store=WaitsForTheFirst), {"a_step_waits_its_turn"}),
    "what was called off stays so": (Parts(store=CallsNobodyBack), {"a_step_has_its_turn"}),
    "all is called back": (Parts(store=CallsEverybodyBack), {"called_back_with_a_retry"}),
    "what was cancelled by hand is called back": (
        Parts(store=CallsBackWhatWasCancelled),
        {"cancelled_is_cancelled"},
    ),
    "an end that a retry has made void": (
        Parts(committer=BelievesOldEnds, turn_us=30.0, asks=(0, 1, 0, 0, 0, 0), tasks=("fails_once", "ok")),
        {"a_step_has_its_turn"},
    ),
    "a flow sent again is another": (
        Parts(committer=with_admission(TakesFlowsAgain)),
        {"an_id_is_one_job", "runs_again_only_for_a_reason"},
    ),
    "half a flow": (Parts(committer=with_admission(TakesFlowsInParts)), {"what_is_one_piece_stays_one"}),
}
