"""The jobs that this fleet has: those that have arrived, those that wait or run here, and what becomes of them.

    arrived    leased, their specs still to be read     -> take_arrived -> the fleet half
    held       handed to the fleet half, not ended      -> take_effects -> outcomes, for the next round
    orphans    running when another fleet died          -> charged, then as held

No I/O: the engine speaks to the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import inf
from typing import Any, Final

from taskq.engines.contract import Consumers, Jobs
from taskq.engines.postgres.chores import EXPIRED
from taskq.engines.postgres.demand import Demand
from taskq.engines.postgres.exchanges import Lost
from taskq.engines.postgres.held import HeldJobs, LimitKey, keys_of_orders
from taskq.engines.postgres.round import Outcomes
from taskq.engines.postgres.rows import Specs
from taskq.engines.unsettled import KeptOutcome
from taskq.model.attempt import pack_failure
from taskq.model.effects import Effects, Event
from taskq.model.job import JobError, JobRow
from taskq.model.stored import StoredState
from taskq.protocol.postgres.plans import Rows
from taskq.system.clock import Clock

#: Jobs that no consumer has got in this time go back: another machine may have room for them.
KEPT_S: Final = 1.0
_CANCELLED: Final = pack_failure(None, None, JobError("Cancelled", "cancelled before it started"))

_NONE: Final[Mapping[bytes, KeptOutcome]] = {}
#: By id of jobs that were running: the numbers of the attempts, and of the consumers that ran them.
Running = Mapping[bytes, tuple[int, int | None]]


class FleetLeases:
    """Used by the engine alone."""

    consumers: Consumers

    def __init__(self, jobs: Jobs, held: HeldJobs, demand: Demand, clock: Clock) -> None:
        """
        Args:
            held: none yet.
            demand: learns how fast jobs end.
        """
        self._jobs = jobs
        self._demand = demand
        self.held = held
        self.specs = Specs(clock)
        #: What is to be sent with the next round.
        self.outcomes = Outcomes()
        self._own = Effects()  # what was decided here: it comes with those of the fleet half
        self._arrived: Rows = []  # the columns of leased jobs
        self._orphans: Rows = []
        self._were_running: dict[bytes, tuple[int, int | None]] = {}

    @property
    def has_effects(self) -> bool:
        """Whether something has become of jobs since the last round."""
        return self._jobs.has_effects or bool(self._own)

    @property
    def lowest(self) -> int:
        """The lowest `seq` of the jobs that the fleet has."""
        return min([held.row.seq for held in self.held] + [each[0] for each in self._arrived], default=0)

    @property
    def has_orphans(self) -> bool:
        """Whether jobs of dead fleets are still to be charged: until then nobody may go before them."""
        return bool(self._orphans)

    @property
    def has_arrived(self) -> bool:
        """Whether there is something for `take_arrived`."""
        return bool(self._arrived or self._orphans)

    # -- jobs come

    def arrive(self, rows: Rows) -> None:
        """Takes the columns of jobs that were leased."""
        self._arrived += rows

    def arrive_orphaned(self, rows: Rows, lost: Iterable[Lost]) -> None:
        """Takes the columns of jobs that lost fleets were running: this one has them now."""
        self._orphans += rows
        for fleet in lost:
            self._were_running |= {job_id: (number, None) for job_id, number in fleet.running.items()}

    def unknown_specs(self) -> list[int]:
        """The numbers of specs that have to be read before `take_arrived`."""
        return self.specs.unknown([*self._arrived, *self._orphans]) if self.has_arrived else []

    def take_arrived(self, now: float) -> list[int]:
        """Hands over what has arrived. Returns the `seq` of jobs that run and were to be cancelled unless they do."""
        if self._orphans:
            self.charge(self._orphans, self._were_running, now)
            self._orphans, self._were_running = [], {}
        arrived, self._arrived = self._arrived, []
        held, job = self.held, self.specs.job
        leased = [job(columns) for columns in arrived if columns[0] not in held]
        rows = [each.row for each in leased]
        held.add(rows, now)
        self._jobs.came_due(rows)
        return self.cancel([(each.row.seq, each.cancel) for each in leased if each.cancel])

    def charge(self, orphans: Rows, running: Running, now: float, kept: Mapping[bytes, KeptOutcome] = _NONE) -> None:
        """Charges jobs that were running when their fleet died. Their specs are known.

        Args:
            kept: what has become of some of them, which the database does not know.
        """
        for columns in orphans:
            row = self.specs.job(columns).row
            attempt, consumer = running.get(row.id, (0, None))
            known = kept.get(row.id)
            if known is not None and known.is_news_of(row):
                known.tell(row)
                if known.state is not None or attempt != row.attempts + 1:  # else it was running again
                    known.add_to(self.outcomes.effects, row)
                    self.outcomes.returned.add(row.seq)
                    continue
            self.held.add([row], now)
            self.held.orphans.add(row.seq)
            if attempt == row.attempts + 1:
                self._jobs.lost(row, consumer)
            else:
                self._give_back(row.seq)

    # -- jobs go

    def take_effects(self) -> None:
        """Takes what has become of jobs since the last round into `outcomes`. Those that have ended are not held any
        more: so it comes before each look at what the fleet still has to begin, which must not find them."""
        taken = Effects()
        if self._jobs.has_effects:
            taken.add(self._jobs.take_effects())
        if self._own:
            taken.add(self._own)
            self._own = Effects()
        held = self.held
        keys: set[LimitKey] = set()
        for queue, ended in groupby([held.remove(row.seq) for row, _, _ in taken.ended]):
            if queue is not None:
                self._demand.ended(queue, sum([1 for _ in ended]))
        for change in taken.rescheduled:
            seq = change.row.seq
            if seq in held.orphans:
                self.outcomes.returned.add(seq)
                held.remove(seq)
            elif change.due_at is not None:
                held.remove(seq)
            elif change.row.spec.rate is not None:  # its next start counts, too
                self._jobs.forget(change.row, StoredState.QUEUED)
                self.outcomes.returned.add(seq)
                keys.update(held.orders(seq))
                held.remove(seq)
        self.outcomes.effects.add(taken)
        self._give_back_behind(keys)

    def _give_back(self, seq: int) -> None:
        """Gives a job back that no consumer has, uncharged."""
        self.held.remove(seq)
        self.outcomes.releases.append(seq)

    def release(self, now: float, paused: frozenset[str]) -> None:
        """Gives back what no consumer has got in time, and what waits in paused queues; if the fleet stops, all that
        waits."""
        self.take_effects()
        gives_all, before = self.consumers.is_stopping, now - KEPT_S
        old = self.held.older_than(inf if gives_all or paused else before)
        if not old:
            return
        sent = {row.seq for jobs in self._jobs.leased().values() for _, row in jobs}
        keys: set[LimitKey] = set()
        for row, _, at, limits in old:
            if (
                (gives_all or at <= before or row.spec.queue in paused)
                and row.seq not in sent
                and row.seq not in self.held.orphans
            ):
                self._jobs.forget(row, StoredState.QUEUED)
                self._give_back(row.seq)
                keys.update(keys_of_orders(limits))
        self._give_back_behind(keys)

    def _give_back_behind(self, keys: set[LimitKey]) -> None:
        """Gives back what waits for its turn in some orders: what was ahead of it has gone, and would come after."""
        for held in [held for held in self.held if keys and not keys.isdisjoint(held.limits)]:
            row = held.row
            if row.seq not in self.held.orphans and self.consumers.withdraw(row.id):
                self._jobs.forget(row, StoredState.QUEUED)
                self._give_back(row.seq)

    # -- what the database says

    def compare(self, rows: Rows) -> None:
        """Compares the jobs that the fleet has with those that the database says."""
        seqs = {columns[0] for columns in rows}
        effects = self.outcomes.effects
        known = {columns[0] for columns in self._arrived} | {row.seq for row, _, _ in effects.ended}
        known.update([change.row.seq for change in effects.rescheduled])
        known.update(self.outcomes.releases)
        self._arrived += [each for each in rows if each[0] not in self.held and each[0] not in known]
        self.keep_only(seqs)

    def keep_only(self, seqs: Iterable[int]) -> None:
        """Forgets the jobs that the fleet has no more. Those that run go on, and their outcomes will be refused."""
        self.take_effects()
        kept = set(seqs)
        self._arrived = [columns for columns in self._arrived if columns[0] in kept]
        self._orphans = [columns for columns in self._orphans if columns[0] in kept]
        for row in [held.row for held in self.held if held.row.seq not in kept]:
            if row.seq not in self.held.orphans and self.consumers.withdraw(row.id):
                self._jobs.forget(row, StoredState.QUEUED)
                self.held.remove(row.seq)

    def shared_rows(self) -> list[JobRow]:
        """The jobs that the fleet half has, and that need not be alone."""
        return [held.row for held in self.held if held.row.seq not in self.held.orphans and not held.is_exclusive]

    def exclusive_ids(self) -> set[bytes]:
        """The ids of jobs that must not run while another fleet may have what they have of limits."""
        return {held.row.id for held in self.held if held.is_exclusive}

    # -- cancels, and what does not begin in time

    def cancel(self, wanted: Sequence[tuple[Any, ...]]) -> list[int]:
        """Cancels jobs of the fleet: each with 1 (unless it runs) or 2. Returns the `seq` of those with 1 that run."""
        self.take_effects()
        refused = []
        for seq, how in wanted:
            row = self.held.get(seq)
            if row is None or seq in self.held.orphans:
                continue
            if self.consumers.withdraw(row.id):
                self._end(row, StoredState.CANCELLED, _CANCELLED, "job.cancelled")
            elif how == 1:
                refused.append(seq)
            else:
                self.consumers.cancel_running(row.id)
        return refused

    def expire(self, wall: float) -> None:
        """Ends jobs that were leased in time and did not begin in time.

        Args:
            wall: seconds since 1970.
        """
        self.take_effects()
        for held in list(self.held):
            row = held.row
            if row.constraints is None or not row.constraints.is_over(wall) or row.attempts:
                continue
            if row.seq not in self.held.orphans and self.consumers.withdraw(row.id):
                self._end(row, StoredState.EXPIRED, EXPIRED, "job.expired")

    def _end(self, row: JobRow, state: StoredState, outcome: bytes, event: str) -> None:
        """Ends a job that the fleet has and no consumer."""
        if any(other is row for other, _, _ in self._own.ended):
            return
        self._jobs.forget(row, StoredState.QUEUED)
        self._own.ended.append((row, state, outcome))
        self._own.notes.append(Event(event, {"row": row}))
