"""One round of the fleet with the database: what became of jobs goes there, and new ones come back, in one transaction
and one round trip.

    settle, reschedule, checkpoints -> children -> release, fence, lease -> COMMIT -> tell those who wait

If there are jobs with limits, it takes more steps: it looks which partitions have some, locks their limits, and leases
what those allow (limits/).

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
from taskq.engines.postgres.held import LimitKey
from taskq.engines.postgres.limits.fair import Claim
from taskq.engines.postgres.limits.partitions import AT_ONCE, opened_words
from taskq.engines.postgres.limits.share import (
    COUNTED,
    NO_BOUND,
    Allotment,
    FleetLimits,
    Found,
    Probe,
    Seen,
    Wish,
    lock_number,
)
from taskq.engines.postgres.link.link import Exchange
from taskq.model.effects import Effects
from taskq.model.job import JobRow
from taskq.model.partition import Partition, partition_of
from taskq.model.spec import Spec
from taskq.model.stored import Rescheduled
from taskq.protocol.postgres.arrays import bigints, byteas, floats, ints, smallints, texts, uuids
from taskq.protocol.postgres.kinds import Kinds, number_partitions, number_specs
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step
from taskq.protocol.postgres.watching import tell


@dataclass(slots=True)
class Outcomes:
    """What became of jobs, as it goes to the database.

    Attributes:
        effects: what the fleet has decided.
        releases: jobs that go back, uncharged.
        returned: rescheduled jobs that go back, though they are to run at once: no consumer had them.
        kept: how much of limits the fleet keeps, which is less than it had.
        is_repeated: whether it was sent before, and may be there already.
    """

    effects: Effects = field(default_factory=Effects)
    releases: list[int] = field(default_factory=list)
    returned: set[int] = field(default_factory=set)
    kept: dict[LimitKey, int] = field(default_factory=dict)
    is_repeated: bool = False

    def __bool__(self) -> bool:
        return bool(self.effects or self.releases or self.kept)

    def put_before(self, earlier: Outcomes, *, is_unknown: bool) -> None:
        """Adds what was to be sent earlier, and perhaps was."""
        self.effects, later = earlier.effects, self.effects
        self.effects.add(later)
        self.releases[:0] = earlier.releases
        self.returned |= earlier.returned
        self.kept = {**earlier.kept, **self.kept}
        self.is_repeated |= is_unknown or earlier.is_repeated


class Answer:
    """What a round brings.

    Attributes:
        lost: the `seq` of settled jobs that were not the fleet's.
        refused: the tasks of jobs that others have enqueued for their success and that are refused, with the reasons.
        is_fenced: whether the fleet is none any more.
        leased: the columns of jobs that it has got.
        seen: which partitions had jobs; None if it did not ask about limits.
    """

    __slots__ = ("is_fenced", "leased", "lost", "refused", "seen")

    def __init__(
        self,
        lost: set[int],
        refused: Sequence[tuple[str, str]],
        is_fenced: bool = False,
        leased: Rows | None = None,
        seen: Seen | None = None,
    ) -> None:
        self.lost = lost
        self.refused = refused
        self.is_fenced = is_fenced
        self.leased = leased or []
        self.seen = seen


class Round(Exchange[Answer]):
    """An exchange of the engine's work link."""

    def __init__(
        self,
        place: tuple[int, str, str],
        outcomes: Outcomes,
        asked: Asked | None,
        wall: float,
        kinds: Kinds,
        limits: FleetLimits,
    ) -> None:
        """
        Args:
            place: the number of the fleet, the schema, and the name of this machine.
            outcomes: what has happened.
            asked: what to lease, or None.
            wall: seconds since 1970, by the broker's clock.
            kinds: the numbers of the specs and partitions of jobs that are rescheduled, or that others have enqueued.
            limits: what the fleet may use of limits.
        """
        super().__init__(self._plan)
        self._limits = limits
        self.allotment = Allotment()
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
        after = [self._tell()] if effects.ended or effects.items else []
        if self.outcomes.kept:
            queries.append(self._give_back())
            words = texts(opened_words(self.outcomes.kept))
            after.append(Query(statements.TELL_OTHERS, (self._fleet, self._schema, words)))
        lost: set[int] | None = None
        refused: list[tuple[str, str]] = []
        if effects.children:  # of those that were the fleet's: that is known when they are settled
            answer = yield Step(*queries[:told_until])
            lost = _lost(answer[told:])
            taken = yield from take_in(effects.children, lost, self._wall, self._kinds, self._schema)
            refused = taken.refused
            after += taken.after
            queries = [*taken.queries, *queries[told_until:]]
            told = told_until = 0
        first = len(queries)
        if self.asked is not None:
            queries += self._lease(self.asked)
        if self.asked is None or self.asked.probe is None:
            answer = yield Step(*queries, commits=True, after=after)
        else:
            answer = yield Step(*queries)
        if lost is None:
            lost = _lost(answer[told:told_until])
        if self.asked is None:
            return Answer(lost, refused)
        if self.asked.probe is None:
            return Answer(lost, refused, not answer[first], answer[-1])
        seen = Seen(answer[first], None if self.asked.probe.after is None else answer[-1])
        is_fenced, leased = yield from self._lease_with_limits(self.asked, self.asked.probe, seen, after)
        return Answer(lost, refused, is_fenced, leased, seen)

    def _lease(self, asked: Asked) -> list[Query]:
        """The statements that lease jobs; if some have limits, those that look which ones there are."""
        if asked.probe is not None:
            return self._look(asked, asked.probe)
        columns = ints(asked.partitions), bigints(asked.lows), ints(asked.queues), ints(asked.mosts)
        return [Query(statements.FENCE, (self._fleet,)), Query(statements.LEASE, (self._fleet, *columns))]

    # -- jobs with limits

    def _look(self, asked: Asked, probe: Probe) -> list[Query]:
        numbers, lows = asked.partitions + probe.numbers, asked.lows + [0] * len(probe.numbers)
        queries = [Query(statements.READY, (ints(numbers), bigints(lows), COUNTED))]
        if probe.after is not None:
            queries.append(Query(statements.SCAN, (probe.after, AT_ONCE)))
        return queries

    def _lease_with_limits(
        self, asked: Asked, probe: Probe, seen: Seen, after: Sequence[Query]
    ) -> Plan[tuple[bool, Rows]]:
        limits = self._limits
        wishes = limits.choose(seen, probe)
        self.allotment = allotment = Allotment()
        at = 0.0
        if keys := limits.keys(wishes):
            found = yield from self._lock(keys)
            at = found.at
            self.allotment = allotment = limits.allot(wishes, probe, found)
        elif wishes:
            self.allotment = allotment = limits.allot(wishes, probe, Found((), {}, {}, {}, 0.0))
        queries = []
        if claims := limits.claims(allotment):
            rows = (
                texts([claim.kind for claim in claims]),
                texts([claim.name for claim in claims]),
                ints([claim.amount for claim in claims]),
                floats([claim.waits_s for claim in claims]),
                smallints([int(claim.has_got) for claim in claims]),
            )
            queries.append(Query(statements.GRANT, (self._fleet, *rows)))
        queries.append(Query(statements.FENCE, (self._fleet,)))
        queries.append(Query(statements.LEASE_LIMITED, self._lease_columns(asked, probe, seen, wishes)))
        if not allotment.rates:
            *_, fence, leased = yield Step(*queries, commits=True, after=after)
            return not fence, leased
        *_, fence, leased = yield Step(*queries)
        counts: dict[int, int] = {}
        for columns in leased:
            counts[columns[13]] = counts.get(columns[13], 0) + 1
        rates = limits.count(allotment, counts, at)
        kept = texts([r.name for r in rates]), byteas([r.state for r in rates]), floats([r.until for r in rates])
        yield Step(Query(statements.KEEP_RATES, kept), commits=True, after=after)
        return not fence, leased

    def _lock(self, keys: Sequence[LimitKey]) -> Plan[Found]:
        """Locks limits, and reads what is left of them."""
        kinds, names = texts([kind for kind, _ in keys]), texts([name for _, name in keys])
        rated = [name for kind, name in keys if kind == "rate"]
        orders = self._limits.orders(keys)
        places, claimed, rates, again, [(at,)] = yield Step(
            Query(statements.LOCK_LIMITS, (bigints([lock_number(self._schema, key) for key in keys]),)),
            Query(statements.CLAIMS, (self._fleet, kinds, names)),
            Query(statements.RATES, (texts(rated),)),
            Query(statements.AGAIN, (byteas(list(orders)),)),
            Query(statements.TIME),
        )
        first: dict[LimitKey, int] = {}
        for packed, seq in again:
            key = orders[bytes(packed)]
            first[key] = min(seq, first.get(key, seq))
        claims: dict[LimitKey, list[Claim]] = {}
        waits: dict[LimitKey, float | None] = {}
        for kind, name, amount, waits_s, is_own in claimed:
            if is_own:
                waits[kind, name] = waits_s
            else:
                claims.setdefault((kind, name), []).append(Claim(amount, waits_s))
        return Found(
            locked={keys[place - 1] for (place,) in places},
            others={key: sum(claim.amount for claim in own) for key, own in claims.items()},
            rates={name: bytes(state) for name, state in rates},
            again=first,
            at=at,
            claims=claims,
            waits=waits,
        )

    def _lease_columns(self, asked: Asked, probe: Probe, seen: Seen, wishes: Sequence[Wish]) -> tuple[Any, ...]:
        """The parameters of `statements.LEASE_LIMITED`: in each queue, the highest priority and then the oldest job
        first."""
        allotment, rows = self.allotment, seen.rows()
        entries = [
            (queue, -priority, rows[number][0], number, low, asked.mosts[queue - 1], NO_BOUND)
            for number, low, queue, priority in zip(
                asked.partitions, asked.lows, asked.queues, asked.priorities, strict=True
            )
            if number in rows
        ]
        for wish in wishes:
            if cap := allotment.caps.get(wish.number):
                place = probe.wanted[wish.partition.queue].place
                bound = allotment.bounds.get(wish.number, NO_BOUND)
                entries.append((place, -wish.partition.priority, wish.first_seq, wish.number, 0, cap, bound))
        entries.sort()
        queues, _, _, numbers, lows, caps, bounds = zip(*entries, strict=True) if entries else ((),) * 7
        columns = ints(numbers), bigints(lows), ints(queues), ints(asked.mosts), ints(caps), bigints(bounds)
        return self._fleet, *columns

    def _give_back(self) -> Query:
        kept = self.outcomes.kept
        kinds, names = texts([kind for kind, _ in kept]), texts([name for _, name in kept])
        return Query(statements.GIVE_BACK, (self._fleet, kinds, names, ints(list(kept.values()))))

    # -- what has become of jobs

    def _settle(self) -> Query:
        ended = self.outcomes.effects.ended
        rows = [row for row, _, _ in ended]
        columns = (
            bigints([row.seq for row in rows]),
            smallints([state for _, state, _ in ended]),
            ints([row.attempts for row in rows]),
            ints([row.crashes for row in rows]),
            ints([row.snoozes for row in rows]),
            byteas([outcome for _, _, outcome in ended]),
        )
        if self.outcomes.is_repeated:
            return Query(statements.SETTLE_AGAIN, (self._fleet, *columns, uuids([row.id for row in rows])))
        return Query(statements.SETTLE, (self._fleet, *columns))

    def _reschedule(self, changes: Sequence[Rescheduled]) -> Query:
        last = {change.row.seq: change for change in changes}  # some have ended several attempts since the last round
        earlier = [each for each in changes if each is not last[each.row.seq] and each.outcome]
        changes = list(last.values())
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
                ints([each.attempt for each in changes]),
                bigints([each.row.seq for each in earlier]),
                ints([each.attempt for each in earlier]),
                byteas([each.outcome for each in earlier]),
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
        return tell(ids, self._schema)


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
    if not (rows or children):  # most often
        return None
    specs = {row.spec for row in rows} | {part.spec for _, submission in children for part in submission.each}
    specs -= kinds.specs.keys()
    if specs:
        return Numbers(specs=list(specs))
    partitions = {partition_of(row.spec, row.constraints) for row in rows} | partitions_of(children)
    partitions -= kinds.partitions.keys()
    return Numbers(partitions=list(partitions)) if partitions else None


def rows_of(effects: Effects, seqs: set[int]) -> list[JobRow]:
    """The jobs of effects that have one of these `seq`."""
    rows = [row for row, _, _ in effects.ended] + [change.row for change in effects.rescheduled]
    return [row for row in rows if row.seq in seqs]


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
