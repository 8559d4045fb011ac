"""Partitions and limits of keys that nobody uses any more, which are removed; and partitions that were removed though a
job of theirs came in later, which are made again. No I/O.

Clients keep the number of a partition for some minutes, and one is removed an hour after its number was looked up last,
if no job has it. So only a transaction that stays open for long submits jobs with a number that is gone. Brokers find
such a job as they find those of new partitions; what its partition is, its spec and its constraints say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Final

from taskq.engines.postgres.link.link import Exchange
from taskq.model.partition import Partition, partition_of
from taskq.protocol.postgres.arrays import byteas, ints, texts
from taskq.protocol.postgres.kinds import pack_limits, read_spec
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step
from taskq.protocol.postgres.submitting import notify, read_constraints, ready_word

#: How many partitions and states of limits are removed at once, how often, and the part of the time that this may take.
_AT_ONCE: Final = 5_000
_EVERY_S: Final = 10.0
_PART: Final = 0.02
#: How many numbers fit one notification.
_IN_A_WORD: Final = 600

#: $1: how many to look at. Those that have jobs are looked at again when as much time has passed.
_REMOVE: Final = """
WITH old AS MATERIALIZED (
    SELECT partition FROM taskq.partitions WHERE limits <> '\\x90' AND used_at < taskq.now_() - interval '1 hour'
    ORDER BY used_at LIMIT $1 FOR UPDATE SKIP LOCKED),
busy AS MATERIALIZED (SELECT DISTINCT q.partition FROM taskq.queue AS q JOIN old USING (partition)),
kept AS (UPDATE taskq.partitions AS p SET used_at = taskq.now_() FROM busy WHERE p.partition = busy.partition)
DELETE FROM taskq.partitions AS p USING old WHERE p.partition = old.partition AND NOT EXISTS (
    SELECT FROM busy WHERE busy.partition = p.partition) RETURNING p.partition"""
#: States of rates that do not matter any more, $1 at most.
_FORGET_RATES: Final = """
DELETE FROM taskq.limits AS l USING (
    SELECT kind, name FROM taskq.limits WHERE until < taskq.now_() ORDER BY until LIMIT $1
    FOR UPDATE SKIP LOCKED) AS old
WHERE l.kind = old.kind AND l.name = old.name"""
#: What fleets have waited for, and do not any more.
_FORGET_WAITS: Final = "DELETE FROM taskq.grants WHERE amount = 0 AND waits_until < taskq.now_() - interval '1 minute'"

#: $1: partitions. Of each that has a job which is ready, the spec and the constraints of one.
_READY_OF: Final = """
SELECT p.partition, s.fields, ready.constraints FROM unnest($1::int[]) AS p (partition), LATERAL (
    SELECT q.spec, j.constraints FROM taskq.queue AS q JOIN taskq.jobs AS j ON j.id = q.id
    WHERE q.partition = p.partition AND q.state = 0 AND q.lease IS NULL ORDER BY q.seq LIMIT 1) AS ready
JOIN taskq.specs AS s ON s.spec = ready.spec"""
_ROWS: Final = "unnest($1::int[], $2::text[], $3::int[], $4::bytea[]) AS n (number, queue, priority, limits)"
_MAKE: Final = f"""
INSERT INTO taskq.partitions (partition, queue, priority, limits, used_at) OVERRIDING SYSTEM VALUE
SELECT n.*, taskq.now_() FROM {_ROWS} ON CONFLICT DO NOTHING"""
#: Those that have another number by now.
_RENUMBER: Final = f"""
UPDATE taskq.queue AS q SET partition = p.partition
FROM {_ROWS} JOIN taskq.partitions AS p USING (queue, priority, limits)
WHERE q.partition = n.number AND n.number <> p.partition AND q.state = 0 AND q.lease IS NULL"""
_MADE: Final = f"""
SELECT p.partition, p.queue, p.priority, p.limits
FROM {_ROWS} JOIN taskq.partitions AS p USING (queue, priority, limits)"""


class RemoveUnused(Exchange[list[int]]):
    """Removes what belongs to keys that nobody uses any more. Brings the numbers of the partitions that are gone."""

    def __init__(self, schema: str) -> None:
        super().__init__(self._plan)
        self._schema = schema

    def _plan(self) -> Plan[list[int]]:
        rows, *_ = yield Step(Query(_REMOVE, (_AT_ONCE,)), Query(_FORGET_RATES, (_AT_ONCE,)), Query(_FORGET_WAITS))
        gone = [number for (number,) in rows]
        yield Step(Query("SELECT"), commits=True, after=(notify(self._schema, gone_words(gone)),) if gone else ())
        return gone


class MakeAgain(Exchange[Rows]):
    """Makes partitions again that jobs have, though they were removed. Brings these."""

    def __init__(self, numbers: Iterable[int], schema: str) -> None:
        super().__init__(self._plan)
        self._numbers, self._schema = list(numbers), schema

    def _plan(self) -> Plan[Rows]:
        [jobs] = yield Step(Query(_READY_OF, (ints(self._numbers),)))
        found: list[tuple[int, Partition]] = []
        for number, fields, constraints in jobs:
            found.append((number, partition_of(read_spec(bytes(fields)), read_constraints(constraints))))
        columns = (
            ints([number for number, _ in found]),
            texts([partition.queue for _, partition in found]),
            ints([partition.priority for _, partition in found]),
            byteas([pack_limits(partition) for _, partition in found]),
        )
        *_, made = yield Step(Query(_MAKE, columns), Query(_RENUMBER, columns), Query(_MADE, columns))
        words = [ready_word(number) for number, *_ in made]
        yield Step(Query("SELECT"), commits=True, after=(notify(self._schema, words),) if words else ())
        return made


def gone_words(numbers: Sequence[int]) -> list[str]:
    """The words that tell brokers of partitions that are gone."""
    starts = range(0, len(numbers), _IN_A_WORD)
    return [f"x {' '.join(map(str, numbers[at : at + _IN_A_WORD]))}" for at in starts]


class UnusedChore:
    """When to remove what is not used. Pure."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._claim_at = self._asked_at = -inf
        self.is_due = False

    def chores(self, now: float) -> dict[str, float]:
        """What to claim: see `taskq.engines.postgres.chores.Look`."""
        return {"unused": _EVERY_S} if now >= self._claim_at else {}

    def next_exchange(self, now: float) -> RemoveUnused | None:
        """What is to be asked of the database now."""
        if not self.is_due:
            return None
        self.is_due, self._asked_at = False, now
        return RemoveUnused(self._schema)

    def finish(self, now: float) -> None:
        """It is done, or has failed."""
        self._claim_at = now + (now - self._asked_at) / _PART
