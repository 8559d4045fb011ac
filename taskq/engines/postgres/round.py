"""One round of the fleet with the database: what became of jobs goes there, and new ones come back, in one transaction
and one round trip.

    settle, reschedule, checkpoints -> children -> release, fence, lease -> COMMIT -> tell those who wait

A round may be run again when nobody knows whether its commit has happened: what was settled then is not the fleet's any
more, and the second time changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from taskq.engines.postgres import statements
from taskq.engines.postgres.children import partitions_of, take_in
from taskq.engines.postgres.demand import Asked
from taskq.engines.postgres.link.link import Exchange
from taskq.model.effects import Effects
from taskq.model.partition import Partition, partition_of
from taskq.model.spec import Spec
from taskq.model.stored import Rescheduled
from taskq.protocol.postgres.arrays import bigints, byteas, floats, ints, smallints, uuids
from taskq.protocol.postgres.kinds import Kinds, number_partitions, number_specs
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step


@dataclass(slots=True)
class Outcomes:
    """What became of jobs, as it goes to the database.

    Attributes:
        effects: what the fleet has decided.
        releases: jobs that go back, uncharged.
        returned: rescheduled jobs that go back, though they are to run at once: no consumer had them.
        is_repeated: whether it was sent before, and may be there already.
    """

    effects: Effects = field(default_factory=Effects)
    releases: list[int] = field(default_factory=list)
    returned: set[int] = field(default_factory=set)
    is_repeated: bool = False

    def __bool__(self) -> bool:
        return bool(self.effects or self.releases)

    def put_before(self, earlier: Outcomes, *, is_unknown: bool) -> None:
        """Adds what was to be sent earlier, and perhaps was."""
        self.effects, later = earlier.effects, self.effects
        self.effects.add(later)
        self.releases[:0] = earlier.releases
        self.returned |= earlier.returned
        self.is_repeated |= is_unknown or earlier.is_repeated


class Answer:
    """What a round brings.

    Attributes:
        lost: the `seq` of settled jobs that were not the fleet's.
        refused: the tasks of jobs that others have enqueued for their success and that are refused, with the reasons.
        is_fenced: whether the fleet is none any more.
        leased: the columns of jobs that it has got.
    """

    __slots__ = ("is_fenced", "leased", "lost", "refused")

    def __init__(self, lost: set[int], refused: Sequence[tuple[str, str]], is_fenced: bool, leased: Rows) -> None:
        self.lost = lost
        self.refused = refused
        self.is_fenced = is_fenced
        self.leased = leased


class Round(Exchange[Answer]):
    """An exchange of the engine's work link."""

    def __init__(
        self,
        place: tuple[int, str, str],
        outcomes: Outcomes,
        asked: Asked | None,
        wall: float,
        kinds: Kinds,
    ) -> None:
        """
        Args:
            place: the number of the fleet, the schema, and the name of this machine.
            outcomes: what has happened.
            asked: what to lease, or None.
            wall: seconds since 1970, by the broker's clock.
            kinds: the numbers of the specs and partitions of jobs that are rescheduled, or that others have enqueued.
        """
        super().__init__(self._plan)
        self._fleet, self._schema, self._host = place
        self.outcomes = outcomes
        self.asked = asked
        self._wall = wall
        self._kinds = kinds

    def _plan(self) -> Plan[Answer]:
        effects = self.outcomes.effects
        queries = []
        if effects.checkpoints:  # while the job is the fleet's: that may end with the next statements
            queries.append(self._keep_checkpoints())
        if effects.items:
            queries.append(self._add_items())
        told = len(queries)
        if effects.rescheduled:
            queries.append(self._reschedule(effects.rescheduled))
        if effects.ended:
            queries.append(self._settle())
        told_until = len(queries)
        if self.outcomes.releases:
            queries.append(Query(statements.RELEASE, (self._fleet, bigints(self.outcomes.releases))))
        if self.asked is not None:
            partitions, lows, queues, mosts = self.asked
            queries.append(Query(statements.FENCE, (self._fleet,)))
            columns = ints(partitions), bigints(lows), ints(queues), ints(mosts)
            queries.append(Query(statements.LEASE, (self._fleet, *columns)))
        after = [self._tell()] if effects.ended or effects.items else []
        refused: list[tuple[str, str]] = []
        if effects.children:  # of those that were the fleet's: that is known when they are settled
            answer = yield Step(*queries[:told_until])
            lost = _lost(answer[told:])
            taken = yield from take_in(effects.children, lost, self._wall, self._kinds, self._schema)
            refused = taken.refused
            after += taken.after
            answer = yield Step(*taken.queries, *queries[told_until:], commits=True, after=after)
        else:
            answer = yield Step(*queries, commits=True, after=after)
            lost = _lost(answer[told:told_until])
        if self.asked is None:
            return Answer(lost, refused, False, [])
        return Answer(lost, refused, not answer[-2], answer[-1])

    def _settle(self) -> Query:
        ended = self.outcomes.effects.ended
        rows = [row for row, _, _ in ended]
        return Query(
            statements.SETTLE,
            (
                self._fleet,
                bigints([row.seq for row in rows]),
                smallints([state for _, state, _ in ended]),
                ints([row.attempts for row in rows]),
                ints([row.crashes for row in rows]),
                ints([row.snoozes for row in rows]),
                byteas([outcome for _, _, outcome in ended]),
            ),
        )

    def _reschedule(self, changes: Sequence[Rescheduled]) -> Query:
        rows = [change.row for change in changes]
        kinds = self._kinds
        partitions = [partition_of(row.spec, row.constraints) for row in rows]
        returned = self.outcomes.returned
        return Query(
            statements.RESCHEDULE,
            (
                self._fleet,
                bigints([row.seq for row in rows]),
                ints([row.attempts for row in rows]),
                ints([row.crashes for row in rows]),
                ints([row.snoozes for row in rows]),
                ints([kinds.specs[row.spec] for row in rows]),
                ints([kinds.partitions[partition] for partition in partitions]),
                floats([None if each.due_at is None else each.due_at - self._wall for each in changes]),
                smallints([each.due_at is None and each.row.seq not in returned for each in changes]),
                byteas([each.outcome for each in changes]),
                self._host,
            ),
        )

    def _keep_checkpoints(self) -> Query:
        kept: dict[int, Any] = {row.seq: row.checkpoint for row in self.outcomes.effects.checkpoints}
        return Query(statements.CHECKPOINT, (self._fleet, bigints(list(kept)), byteas(list(kept.values()))))

    def _add_items(self) -> Query:
        items = self.outcomes.effects.items
        columns = (
            bigints([row.seq for row, _, own in items for _ in own]),
            ints([first + place for _, first, own in items for place in range(len(own))]),
            byteas([item for _, _, own in items for item in own]),
        )
        return Query(statements.ADD_ITEMS, (self._fleet, *columns))

    def _tell(self) -> Query:
        effects = self.outcomes.effects
        ids = [row.id for row, _, _ in effects.ended]
        if effects.items:
            ids += {row.id for row, _, _ in effects.items}
        return Query(statements.TELL, (uuids(ids), self._schema))


class Numbers(Exchange[Any]):
    """Finds the numbers of specs, or of partitions, that are new to this broker."""

    def __init__(self, specs: Sequence[Spec] = (), partitions: Sequence[Partition] = ()) -> None:
        super().__init__((lambda: number_specs(specs)) if specs else (lambda: number_partitions(partitions)))
        self._of_specs = bool(specs)

    def learn(self, kinds: Kinds) -> None:
        """Adds what was found."""
        known: dict[Any, int] = kinds.specs if self._of_specs else kinds.partitions
        known.update(self.value or {})


def _lost(answers: Sequence[Rows]) -> set[int]:
    return {seq for rows in answers for (seq,) in rows}


def missing_numbers(outcomes: Outcomes, kinds: Kinds) -> Numbers | None:
    """What has to be asked before outcomes can be sent: a job that goes on may have another spec than before."""
    rows = [change.row for change in outcomes.effects.rescheduled]
    children = outcomes.effects.children
    specs = {row.spec for row in rows} | {part.spec for _, submission in children for part in submission.each}
    specs -= kinds.specs.keys()
    if specs:
        return Numbers(specs=list(specs))
    partitions = {partition_of(row.spec, row.constraints) for row in rows} | partitions_of(children)
    partitions -= kinds.partitions.keys()
    return Numbers(partitions=list(partitions)) if partitions else None


def without(effects: Effects, lost: set[int]) -> Effects:
    """What is durable of effects, of which some were about jobs that were not the fleet's any more.

    Args:
        lost: the `seq` of these jobs.
    """
    return Effects(
        ended=[each for each in effects.ended if each[0].seq not in lost],
        rescheduled=[each for each in effects.rescheduled if each.row.seq not in lost],
        done=[each for each in effects.done if each[0].seq not in lost],
        notes=[note for note in effects.notes if "row" not in note.fields or note.fields["row"].seq not in lost],
    )
