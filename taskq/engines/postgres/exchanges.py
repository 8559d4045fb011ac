"""What a broker asks of the database besides its rounds: who it is, and how it is. No I/O.

Register, Reclaim, Audit    which jobs are the fleet's
Beat, Reap                  which fleets live
ReadCounts, KeepCounts      what has happened to the machine's jobs
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from taskq.engines.contract import Fleet
from taskq.engines.counting import JobCounting
from taskq.engines.postgres import statements
from taskq.engines.postgres.link.link import Exchange
from taskq.model.info.counts import CountsRow
from taskq.model.job import JobRow
from taskq.model.settings import Settings
from taskq.model.spec import Spec
from taskq.protocol.postgres.arrays import bigints, byteas, ints, texts, uuids
from taskq.protocol.postgres.beats import RunningJob, Told, pack_told
from taskq.protocol.postgres.kinds import read_spec
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step
from taskq.protocol.postgres.submitting import TALLIED
from taskq.system.clock import Clock

#: Tallies that one statement takes.
_TALLIES_AT_ONCE: Final = 5_000

#: It is remembered where this many fleets ran: each start of a broker is one.
_KEPT_HOSTS = 10_000


class Registered(NamedTuple):
    """A fleet that is known from now on.

    Attributes:
        fleet: its number.
        orphans: the columns of jobs that were running when its predecessor died.
        released: whether other jobs of that one went back.
        grants: what it has of limits: what its predecessor had.
    """

    fleet: int
    orphans: Rows
    released: bool
    grants: Rows


class Register(Exchange[Registered]):
    """Makes a fleet known, and takes over what earlier ones in its directory had."""

    def __init__(self, machine: UUID, host: str, pid: int, running: Iterable[bytes]) -> None:
        super().__init__(self._plan)
        self._machine, self._host, self._pid = machine, host, pid
        self._running = list(running)

    def _plan(self) -> Plan[Registered]:
        [[(fleet,)]] = yield Step(Query(statements.REGISTER, (self._machine, self._host, self._pid)))
        predecessors, _ = yield Step(
            Query(statements.PREDECESSORS, (self._machine, fleet)), Query(statements.FORGET_HOSTS, (fleet, _KEPT_HOSTS))
        )
        if not predecessors:
            return Registered(fleet, [], False, [])
        dead = bigints([number for (number,) in predecessors])
        *_, orphans, grants = yield Step(
            Query(statements.TAKE_OVER, (fleet, dead, uuids(self._running))),
            Query(statements.FORGET_FLEETS, (dead,)),
            Query(statements.FORGET_BEATS, (dead,)),
            Query(statements.INHERIT, (fleet, dead)),
            Query(statements.LEASED, (fleet,)),
            Query(statements.GRANTS, (fleet,)),
            commits=True,
        )
        return Registered(fleet, orphans, True, grants)


class Audited(NamedTuple):
    """All jobs that the fleet has, and what it has of limits."""

    rows: Rows
    grants: Rows


class Audit(Exchange[Audited]):
    """Reads all that the fleet has: with a new session, as the last one may have leased some unheard."""

    def __init__(self, fleet: int) -> None:
        super().__init__(self._plan)
        self._fleet = fleet

    def _plan(self) -> Plan[Audited]:
        rows, grants = yield Step(
            Query(statements.LEASED, (self._fleet,)), Query(statements.GRANTS, (self._fleet,)), commits=True
        )
        return Audited(rows, grants)


class Reclaimed(NamedTuple):
    """A fleet that was taken for dead, and goes on with another number: the jobs that it has got back."""

    fleet: int
    seqs: frozenset[int]


class Reclaim(Exchange[Reclaimed]):
    """Makes a fleet known that was taken for dead, and gets back the jobs that nobody has touched since."""

    def __init__(self, machine: UUID, host: str, pid: int, rows: Sequence[JobRow]) -> None:
        super().__init__(self._plan)
        self._machine, self._host, self._pid = machine, host, pid
        self._rows = rows

    def _plan(self) -> Plan[Reclaimed]:
        [[(fleet,)]] = yield Step(Query(statements.REGISTER, (self._machine, self._host, self._pid)))
        rows = self._rows
        columns = bigints([r.seq for r in rows]), ints([r.attempts for r in rows]), ints([r.crashes for r in rows])
        [found] = yield Step(Query(statements.RECLAIM, (fleet, *columns)), commits=True)
        return Reclaimed(fleet, frozenset(seq for (seq,) in found))


class Beaten(NamedTuple):
    """The answer to a beat.

    Attributes:
        is_fenced: whether the fleet is none any more.
        cancels: jobs of it that somebody wants cancelled, each with 1 (unless it runs) or 2.
        paused: the paused queues.
    """

    is_fenced: bool
    cancels: Rows
    paused: frozenset[str]


def told_by(fleet: Fleet, settings: Settings, clock: Clock) -> Told:
    """What a fleet tells clients with a beat."""
    facts = fleet.control.consumers()
    numbers = {each.key: each.number for each in facts}
    booted_at = clock.time() - clock.monotonic()
    running = {
        row.id: RunningJob(
            row.attempts + 1, booted_at + claim.started_at, fleet.consumers.progress_of(row.id), numbers.get(key)
        )
        for key, claims in fleet.consumers.claims().items()
        for claim in claims
        if (row := fleet.jobs.running(key, claim.number)) is not None
    }
    of_consumers = {number: own for number in numbers.values() if (own := settings.queues_of(number))}
    tasks = facts[0].tasks if facts else b""
    if any(each.tasks != tasks for each in facts):  # in the middle of a reload
        tasks = b"" if any(not each.tasks for each in facts) else b"\n".join(each.tasks for each in facts)
    return Told(fleet.control.status(), running, settings.queues, of_consumers, dict(settings.resources), tasks)


class Beat(Exchange[Beaten]):
    """Says that the fleet lives, and what it is doing."""

    def __init__(self, fleet: int, low: int, told: Told) -> None:
        """
        Args:
            low: the lowest `seq` of the jobs that the fleet has.
        """
        super().__init__(self._plan)
        self._low = low
        self.fleet, self._running, self._told = fleet, told.running, pack_told(told)

    def _plan(self) -> Plan[Beaten]:
        ids, numbers = uuids(list(self._running)), ints([each.attempt for each in self._running.values()])
        beaten, cancels, paused = yield Step(
            Query(statements.BEAT, (self.fleet, ids, numbers, self._told)),
            Query(statements.CANCELS, (self.fleet, self._low)),
            Query(statements.PAUSED),
            commits=True,
        )
        return Beaten(not beaten, cancels, frozenset(queue for (queue,) in paused))


class Lost(NamedTuple):
    """A fleet that is lost with its machine: its number and host, and what it was running, by id."""

    fleet: int
    host: str
    running: dict[bytes, int]


class Reaped(NamedTuple):
    """The fleets that were lost, the columns of the jobs that they were running, which this one has now, and what it
    has of limits: also what they had."""

    lost: list[Lost]
    orphans: Rows
    grants: Rows


class Reap(Exchange[Reaped]):
    """Takes over the jobs of fleets of which nobody has heard for a while."""

    def __init__(self, fleet: int, schema: str, lease_s: float) -> None:
        super().__init__(self._plan)
        self._fleet, self._schema, self._lease_s = fleet, schema, lease_s

    def _plan(self) -> Plan[Reaped]:
        _, silent = yield Step(
            Query(statements.FIRST_BEATS), Query(statements.SILENT, (self._fleet, float(self._lease_s)))
        )
        if not silent:
            return Reaped([], [], [])
        lost = [
            Lost(fleet, host, {bytes(job_id): number for job_id, number in zip(ids, attempts, strict=True)})
            for fleet, ids, attempts, host in silent
        ]
        running = [job_id for fleet in lost for job_id in fleet.running]
        dead = bigints([fleet.fleet for fleet in lost])
        taken, *_, leased, grants = yield Step(
            Query(statements.TAKE_OVER_LOST, (self._fleet, dead, uuids(running))),
            Query(statements.FORGET_FLEETS, (dead,)),
            Query(statements.FORGET_BEATS, (dead,)),
            Query(statements.INHERIT, (self._fleet, dead)),
            Query(statements.LEASED, (self._fleet,)),
            Query(statements.GRANTS, (self._fleet,)),
            commits=True,
            after=(Query(statements.NOTIFY, (self._schema, "r")),),
        )
        orphans = {seq for seq, lease in taken if lease is not None}  # not what it had itself: that may have run there
        return Reaped(lost, [columns for columns in leased if columns[0] in orphans], grants)


class ReadSpecs(Exchange[Rows]):
    """Reads specs by their numbers."""

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__(self._plan)
        self._numbers = numbers

    def _plan(self) -> Plan[Rows]:
        [rows] = yield Step(Query(statements.SPECS, (ints(self._numbers),)), commits=True)
        return rows


class ReadPartitions(Exchange[Rows]):
    """Reads partitions that are not known."""

    def __init__(self, after: int, known: Sequence[int], wanted: Sequence[int]) -> None:
        """
        Args:
            after: reads all above this number,
            known: but not these,
            wanted: and these.
        """
        super().__init__(self._plan)
        self._after, self._known, self.wanted = after, known, wanted

    def _plan(self) -> Plan[Rows]:
        numbers = self._after, ints(self._known), ints(self.wanted)
        [rows] = yield Step(Query(statements.PARTITIONS, numbers), commits=True)
        return rows


class ReadPaused(Exchange[frozenset[str]]):
    """Reads which queues are paused."""

    def __init__(self) -> None:
        super().__init__(self._plan)

    def _plan(self) -> Plan[frozenset[str]]:
        [rows] = yield Step(Query(statements.PAUSED), commits=True)
        return frozenset(queue for (queue,) in rows)


class ReadCancels(Exchange[Rows]):
    """Reads which jobs of the fleet somebody wants cancelled."""

    def __init__(self, fleet: int, low: int) -> None:
        """
        Args:
            low: as for `Beat`.
        """
        super().__init__(self._plan)
        self._fleet, self._low = fleet, low

    def _plan(self) -> Plan[Rows]:
        [rows] = yield Step(Query(statements.CANCELS, (self._fleet, self._low)), commits=True)
        return rows


def _key_of(machine: UUID) -> int:
    """Whose counts these are: those of a machine, whatever the number of its fleet is."""
    return machine.int >> 66


class ReadCounts(Exchange[Iterable[CountsRow]]):
    """Reads what has happened to the jobs of a machine before."""

    def __init__(self, machine: UUID) -> None:
        super().__init__(self._plan)
        self._key = _key_of(machine)

    def _plan(self) -> Plan[Iterable[CountsRow]]:
        [rows] = yield Step(Query(statements.COUNTS_OF, (self._key,)), commits=True)
        return [CountsRow(*row) for row in rows]


class KeepCounts(Exchange[bool]):
    """Stores what has happened to the jobs of a machine, and moves tallies there in the same transaction: whatever
    dies, what a tally says is in one of the two places. Returns whether the fleet is still one; otherwise nothing is
    stored.

    Attributes:
        since: where to begin with the tallies, in seconds since 1970 by the database's clock; None: it takes none.
        taken: what was added to the counts: the spec, what happened (see `TALLIED`), and to how many jobs.
        is_through: whether all tallies were taken.
        kept: the rows that are stored.
    """

    def __init__(self, fleet: int, machine: UUID, counting: JobCounting, clock: Clock, since: float | None) -> None:
        super().__init__(self._plan)
        self._fleet, self._key, self._counting, self._clock = fleet, _key_of(machine), counting, clock
        self.since = since
        self.taken: list[tuple[Spec, int, int]] = []
        self.is_through = True
        self.kept: list[CountsRow] = []

    def _plan(self) -> Plan[bool]:
        self.undo()  # it may have begun before
        [is_fleet] = yield Step(Query(statements.HOLD, (self._fleet,)))
        if not is_fleet:
            return False
        if self.since is not None:
            [rows] = yield Step(Query(statements.TAKE_TALLIES, (self.since, _TALLIES_AT_ONCE)))
            self.taken = [(read_spec(bytes(fields)), what, jobs) for what, fields, jobs, _ in rows]
            self.is_through = sum(tallies for *_, tallies in rows) < _TALLIES_AT_ONCE
            self._count(1)
        self.kept = self._counting.take_changed(1 << 30)
        gone = [row for row in self.kept if row.packed is None]
        yield Step(
            Query(statements.KEEP_COUNTS, (self._key, *_columns(self.kept))),
            Query(statements.FORGET_COUNTS, (self._key, *_places(gone))),
            commits=True,
        )
        return True

    def _count(self, sign: int) -> None:
        for spec, what, jobs in self.taken:
            self._counting.add(spec, TALLIED[what], sign * jobs, self._clock.time())

    def undo(self) -> None:
        """It was not stored: the tallies are there, and what was counted here is to be stored yet."""
        self._count(-1)
        self._counting.put_back(self.kept)
        self.taken, self.kept = [], []

    def was_kept(self) -> Exchange[bool]:
        """What asks whether it was stored, if its commit was sent and not answered."""
        return WasKept(self._key, self.kept)


class WasKept(Exchange[bool]):
    """Asks whether counts were stored. Only the machine itself stores its counts."""

    def __init__(self, key: int, rows: Sequence[CountsRow]) -> None:
        super().__init__(self._plan)
        self._key, self._rows = key, rows

    def _plan(self) -> Plan[bool]:
        columns = _columns(self._rows)
        [[(found,)]] = yield Step(Query(statements.COUNTS_KEPT, (self._key, *columns)), commits=True)
        return bool(found == sum(row.packed is not None for row in self._rows))


def _places(rows: Sequence[CountsRow]) -> tuple[Any, Any, Any]:
    return ints([row.minute for row in rows]), texts([row.task for row in rows]), texts([row.queue for row in rows])


def _columns(rows: Sequence[CountsRow]) -> tuple[Any, ...]:
    """Those of rows that are there."""
    kept = [row for row in rows if row.packed is not None]
    return *_places(kept), byteas([row.packed for row in kept])


class RefuseCancels(Exchange[None]):
    """Says that jobs run, which were to be cancelled only if they do not."""

    def __init__(self, fleet: int, seqs: Sequence[int]) -> None:
        super().__init__(self._plan)
        self._fleet, self._seqs = fleet, seqs

    def _plan(self) -> Plan[None]:
        yield Step(Query(statements.NOT_CANCELLED, (self._fleet, bigints(self._seqs))), commits=True)


class Unregister(Exchange[None]):
    """A fleet stops in good order: what it has left goes back, and nobody waits for its beats."""

    def __init__(self, fleet: int, schema: str) -> None:
        super().__init__(self._plan)
        self._fleet, self._schema = fleet, schema

    def _plan(self) -> Plan[None]:
        own = bigints([self._fleet])
        yield Step(
            Query(statements.TAKE_OVER, (self._fleet, own, uuids([]))),
            Query(statements.FORGET_GRANTS, (self._fleet,)),
            Query(statements.FORGET_FLEETS, (own,)),
            Query(statements.FORGET_BEATS, (own,)),
            commits=True,
            after=(Query(statements.NOTIFY, (self._schema, "r")),),
        )
