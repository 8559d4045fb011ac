"""The engine that several machines share: jobs wait in a PostgreSQL database, which clients ask without us.

    work link      rounds: outcomes go, leased jobs come                 (round.py)
    control link   beats, what the clock brings, what others notify      (exchanges.py)
    local socket   stop, reload, status of this machine's fleet          (local.py)

Nothing here waits for the database but the start. While it is away, consumers go on with what they have, and what
becomes of jobs is kept until it is back.
"""

from __future__ import annotations

import os
import selectors
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any, Final

from taskq.engines.contract import Events, Fleet, Jobs
from taskq.engines.local import LocalServer
from taskq.engines.postgres.chores import Chores, Look, Retention, Seen
from taskq.engines.postgres.demand import Demand
from taskq.engines.postgres.exchanges import (
    Audit,
    Audited,
    Beat,
    Beaten,
    ReadCancels,
    ReadCounts,
    ReadPartitions,
    ReadPaused,
    ReadSpecs,
    Reap,
    Reaped,
    Reclaim,
    Reclaimed,
    RefuseCancels,
    Register,
    Registered,
    Unregister,
    told_by,
)
from taskq.engines.postgres.figures import PostgresFigures
from taskq.engines.postgres.handover import Edges, HandOver
from taskq.engines.postgres.held import HeldJobs
from taskq.engines.postgres.leases import FleetLeases
from taskq.engines.postgres.limits.share import FleetLimits
from taskq.engines.postgres.limits.unused import MakeAgain
from taskq.engines.postgres.link.link import Exchange, Link
from taskq.engines.postgres.opening import drive, host_name, machine_of, open_database
from taskq.engines.postgres.round import Numbers, Outcomes, Round, missing_numbers, rows_of, without
from taskq.engines.postgres.schedules import FleetSchedules
from taskq.engines.unsettled import UnsettledFile
from taskq.model.effects import Effects, Event
from taskq.model.partition import Load
from taskq.model.settings import Settings
from taskq.protocol.link.flight_recorder import FlightRecord
from taskq.protocol.postgres.kinds import Kinds
from taskq.protocol.postgres.plans import Query
from taskq.protocol.submissions import Submission
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.directory import Directory
from taskq.system.place import DatabaseUrl

#: How often a fleet says that it lives, in the time after which it is taken for dead.
_BEATS: Final = 6
#: While it has jobs, or consumers come and go, it says so more often: clients learn by it what runs, and how far it is.
_TELL_EVERY_S: Final = 1.0
_RELEASE_EVERY_S: Final = 0.25
#: A round that the database has refused is tried again after this time.
_AGAIN_S: Final = 0.5
#: How long a fleet that stops tries to hand over what it has.
_CLOSES_WITHIN_S: Final = 10.0
#: How long it waits for the answer to something else, before it says that it is gone.
_ANSWERED_WITHIN_S: Final = 3.0
#: Jobs that promise to be alone are stopped this long before others may take them, in the time after which a fleet is
#: taken for dead: their processes have to be dead by then.
_BEFORE_LEASE_ENDS: Final = 6


class PostgresEngine:
    """See `taskq.engines.contract.Engine`. Used by the broker's loop alone."""

    def __init__(
        self,
        directory: Directory,
        database: DatabaseUrl,
        settings: Settings,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """
        Args:
            directory: what belongs to the fleet of this machine.
        """
        self._directory, self._database, self._settings = directory, database, settings
        self._clock = clock
        self._lease_s = database.lease_s
        self._host = host_name()
        schema = self._schema = database.schema
        self._work = Link(database.conninfo, schema, f"taskq {schema} work")
        listen = Query(f'LISTEN "{schema}"')
        self._control = Link(database.conninfo, schema, f"taskq {schema} control", (listen,))
        self._kinds = Kinds()
        self.figures = PostgresFigures(clock)
        self._is_reading_specs = self._is_reading_partitions = False
        self._round: Round | None = None  # under way
        self._round_began_at = self._round_at = -inf  # the one under way, and when the next one may be tried
        self._is_fenced = False
        self._audited = 0  # the session of the work link in which the fleet's jobs were last compared
        self._edges = Edges(schema)
        self._unknown: set[int] = set()  # partitions that jobs have
        self._gone: set[int] = set()  # partitions that were removed
        self._durable: list[Effects] = []  # and not reported yet
        self._unbroken_at = inf  # since when each beat was answered in time (monotonic)
        self._beat_asked_at = self._alive_at = -inf  # when the last beat was asked for, and the last that was answered
        self._is_cut_off = False  # jobs that promise to be alone were stopped
        self._told_consumers: set[int] = set()  # with the last beat: the pids
        self._tells_again = False  # that is soon something else
        self._beaten_at = self._reap_at = self._release_at = -inf
        self._unsettled = UnsettledFile(directory.path / "unsettled")
        self._is_empty = False  # there is no job, as far as is known
        self._local: LocalServer | None = None
        self._stepped_at = -inf
        self._is_starting = True
        self._paused_by = ""  # who has paused or resumed queues last

    # -- the beginning

    def recover(self, jobs: Jobs, events: Events, running: Iterable[FlightRecord]) -> None:
        self._jobs, self._events = jobs, events
        self._schedules = FleetSchedules(self._schema, events.log)
        records = list(running)
        machine = self._machine = machine_of(self._directory)
        retention = Retention(self._settings.keep_results_s, self._settings.keep_results)
        self._chores = Chores(self._schema, self._schedules, self._edges, retention)
        open_database(self._database, events.log)
        kept = self._unsettled.read()
        register = Register(machine, self._host, os.getpid(), {*kept, *[record.job_id for record in records]})
        registered: Registered = drive(self._work, register, self._clock)
        self.figures.resume(machine, drive(self._work, ReadCounts(machine), self._clock))
        self.fleet = registered.fleet
        self._audited = self._work.sessions
        held = HeldJobs()
        jobs.shared_limits.share_limits()
        settings = self._settings
        self._limits = FleetLimits(jobs.shared_limits, held, dict(settings.resources), settings.queues)
        self._demand = Demand(self._limits, settings.queues)
        leases = self._leases = FleetLeases(jobs, held, self._demand, self._clock)
        if unknown := leases.specs.unknown(registered.orphans):
            leases.specs.learn(drive(self._work, ReadSpecs(unknown), self._clock))
        were_running = {each.job_id: (each.attempt, each.consumer) for each in records}
        leases.charge(registered.orphans, were_running, self._clock.monotonic(), kept)
        self._limits.inherit(registered.grants, {})
        self._alive_at = self._clock.monotonic()
        self._demand.learn(drive(self._work, ReadPartitions(0, [], []), self._clock))
        self._set_paused(drive(self._work, ReadPaused(), self._clock))

    def start(self, fleet: Fleet, selector: selectors.BaseSelector | None = None, max_clients: int = 0) -> None:
        self._consumers, self._local_fleet = fleet.consumers, fleet
        self._leases.consumers = fleet.consumers
        self._is_starting = False
        self._work.select_with(selector)
        self._control.select_with(selector)
        if selector is not None:
            self._local = LocalServer(self._directory, selector, fleet, self._clock, max_clients)

    # -- what comes in

    def gather(self, now: float) -> None:
        if self._local is not None:
            self._local.gather(now)
        self._work.turn(now)
        self._control.turn(now)
        for exchange in self._work.take():
            self._finish(exchange, now)
        for exchange in self._control.take():
            self._finish(exchange, now)
        for word in self._control.take_words():
            self._hear(word)
        if self._leases.has_arrived:
            self._take_arrived(now)

    def _finish(self, exchange: Exchange[Any], now: float) -> None:
        """Takes what an exchange has brought."""
        error = exchange.error
        if error is not None and error.sqlstate:
            self._events.log.error("database.refused", error=str(error), what=type(exchange).__name__)
        match exchange:
            case Round():
                self._finish_round(exchange, now)
            case Audit() if exchange.value is not None:
                self._finish_audit(exchange.value, now)
            case Reclaim() if exchange.value is not None:
                self._finish_reclaim(exchange.value)
            case Beat() if exchange.value is None or exchange.fleet == self.fleet:  # else it has another number since
                self._finish_beat(exchange.value, now)
            case Look():
                self._finish_look(exchange.value, now)
            case Reap() if exchange.value is not None:
                self._finish_reap(exchange.value, now)
            case Numbers() if exchange.value is not None:
                exchange.learn(self._kinds)
            case ReadSpecs():
                self._is_reading_specs = False
                self._leases.specs.learn(exchange.value or [])
            case ReadPartitions():
                self._is_reading_partitions = False
                self._demand.learn(exchange.value or [])
                if exchange.value is not None and (gone := self._demand.unknown(exchange.wanted)):
                    self._control.ask(MakeAgain(gone, self._schema))
                if self._unknown:
                    self._read_partitions()
            case MakeAgain():
                self._demand.learn(exchange.value or [])
            case ReadPaused() if exchange.value is not None:
                self._set_paused(exchange.value, self._paused_by)
            case ReadCancels():
                self._refuse_cancels(self._leases.cancel(exchange.value or []))
            case _:
                self._chores.finish(exchange, self.figures, now)
                if isinstance(exchange, HandOver) and exchange.value is not None:
                    self._events.notes(exchange.value.notes)
                    if exchange.value.freed:
                        self._demand.tell_of_returned()

    def _hear(self, word: str) -> None:
        """Hears what others have notified."""
        kind, _, number = word.partition(" ")
        match kind:
            case "q" | "r" if number.isdecimal() and not self._demand.knows(int(number)):
                self._read_partitions([int(number)])
            case "q":
                self._demand.tell_of(int(number))
            case "r" if number.isdecimal():
                self._demand.tell_of(int(number), is_returned=True)
            case "r":
                self._demand.tell_of_returned()
            case "g":
                self._limits.partitions.tell_of_opened(number.split())
            case "d":
                self._chores.look_soon()
            case "f":
                self._edges.tell([])
            case "h":
                self._edges.tell([bytes.fromhex(job_id) for job_id in number.split()] or None)
            case "x":
                self._gone.update(map(int, number.split()))
            case "p":
                self._paused_by = number
                self._control.ask(ReadPaused())
            case "c" if number == str(self.fleet):
                self._control.ask(ReadCancels(self.fleet, self._leases.lowest))

    def _read_partitions(self, unknown: Iterable[int] = ()) -> None:
        """Reads partitions that are new, and those that jobs have and that are not known."""
        self._unknown.update(unknown)
        if not self._is_reading_partitions:
            self._is_reading_partitions = True
            wanted, self._unknown = list(self._unknown), set()
            self._control.ask(ReadPartitions(*self._demand.to_read(), wanted))

    # -- rounds

    def _finish_round(self, round_: Round, now: float) -> None:
        self._round = None
        outcomes, asked, answer = round_.outcomes, round_.asked, round_.value
        if round_.error is not None or answer is None:
            self._limits.failed(round_.allotment, is_unknown=round_.error is None or round_.error.is_unknown)
            self._leases.outcomes.put_before(outcomes, is_unknown=round_.error is None or round_.error.is_unknown)
            if asked is not None:
                self._demand.failed(now)
            if round_.error is not None and round_.error.sqlstate:
                self._round_at = now + _AGAIN_S
            return
        self._unsettled.clear(now)
        self.figures.rounds.note(now - self._round_began_at, now)
        effects = outcomes.effects
        for task, reason in answer.refused:
            self._events.log.error("job.children_refused", task=task, error=reason)
        if answer.lost:
            if not outcomes.is_repeated:
                for row in rows_of(effects, answer.lost):
                    self._events.log.warning("job.lost", job_id=row.id.hex(), task=row.spec.task, attempt=row.attempts)
            effects = without(effects, answer.lost)
        if effects:
            self._durable.append(effects)
        if self._edges.has_some and effects.ended:
            self._edges.ended([row.id for row, _, _ in effects.ended])
        self._is_fenced |= answer.is_fenced
        delays = [change.due_at for change in effects.rescheduled if change.due_at is not None]
        if delays:
            self._chores.look_soon(now + max(0.0, min(delays) - self._clock.time()))
        if asked is None:
            return
        last: dict[int, tuple[int, int]] = {}
        size = 0
        for columns in answer.leased:
            partition = columns[13]
            last[partition] = last.get(partition, (0, 0))[0] + 1, columns[0]
            size += len(columns[11] or b"")
        self._demand.answered(asked, last, size / len(answer.leased) if last else 0.0, now)
        self._leases.arrive(answer.leased)
        if asked.probe is not None and answer.seen is not None:
            counts = {number: count for number, (count, _) in last.items()}
            self._limits.leased(asked.probe, answer.seen, round_.allotment, counts, now)
            if self._is_cut_off:
                self._limits.lose_all()  # until a beat is answered: it may be taken for dead meanwhile
            if unknown := self._demand.unknown(answer.seen.rows()):
                self._read_partitions(unknown)

    def _take_arrived(self, now: float) -> None:
        """Hands leased jobs to the fleet, as soon as their specs are known."""
        if unknown := self._leases.unknown_specs():
            if not self._is_reading_specs:
                self._is_reading_specs = True
                self._control.ask(ReadSpecs(unknown))
        else:
            self._refuse_cancels(self._leases.take_arrived(now))

    def _next_exchange(self, now: float) -> None:
        """Asks the work link for what is to be done next."""
        if self._is_fenced:
            self._work.ask(Reclaim(self._machine, self._host, os.getpid(), self._leases.shared_rows()))
            return
        if self._audited != self._work.sessions:
            self._work.ask(Audit(self.fleet))
            return
        if now < self._round_at:
            return
        if now >= self._reap_at and self._hears(now):
            self._reap_at = now + self._lease_s / _BEATS
            self._work.ask(Reap(self.fleet, self._schema, self._lease_s))
            return
        if self._edges.has_ended:
            self._work.ask(self._edges.next_handover())
            return
        self._demand.forget(self._gone)
        self._gone.clear()
        self._kinds.forget_old(now)
        self._leases.take_effects()
        outcomes = self._leases.outcomes
        if missing := missing_numbers(outcomes, self._kinds):
            self._work.ask(missing)
            return
        asked = None
        if not self._consumers.is_stopping and not self._leases.has_orphans:
            self._demand.measure(now)
            asked = self._demand.ask(now, self._jobs.slots, self._leases.held.of_queue, self.figures.paused())
        if not self._leases.has_arrived:  # what has arrived and is not held yet needs its limits, too
            outcomes.kept.update(self._limits.take_surplus(None if asked is None else asked.probe))
        if outcomes or asked is not None:
            self._leases.outcomes = Outcomes()
            place = self.fleet, self._schema, self._host
            self._round = Round(place, outcomes, asked, self._clock.time(), self._kinds, self._limits)
            self._round_began_at = now
            self._work.ask(self._round)

    def _hears(self, now: float) -> bool:
        """Whether a fleet of which nobody has heard must be dead: the database has heard this one all the time."""
        return now - self._unbroken_at > self._lease_s and now - self._alive_at < self._lease_s / 2

    # -- which jobs are the fleet's

    def _finish_audit(self, audited: Audited, now: float) -> None:
        self._audited = self._work.sessions
        self._limits.inherit(audited.grants, self._leases.outcomes.kept)
        self._leases.compare(audited.rows)
        self._take_arrived(now)

    def _finish_reclaim(self, reclaimed: Reclaimed) -> None:
        self._events.log.warning("fleet.was_taken_for_dead", fleet=self.fleet, now=reclaimed.fleet)
        self._is_fenced = False
        self.fleet = reclaimed.fleet
        self._schedules.forget_fleet()
        self._lose_limits("this fleet was taken for dead: others may run what its job must not run beside")
        self._leases.outcomes.kept.clear()
        self._leases.keep_only(reclaimed.seqs)
        self._beaten_at = -inf

    def _refuse_cancels(self, seqs: Sequence[int]) -> None:
        if seqs:
            self._control.ask(RefuseCancels(self.fleet, seqs))

    def _set_paused(self, paused: frozenset[str], by: str = "") -> None:
        """Takes which queues are paused now; `by` says who has changed that, if it is known."""
        before = self.figures.paused()
        is_more = bool(paused - before)
        if paused == before:
            return
        told = {"by": by} if by else {}
        for queue in () if self._is_starting else sorted(paused ^ before):
            self._events.log.info("queue.paused" if queue in paused else "queue.resumed", queue=queue, **told)
        self.figures.set_paused(paused)
        self._jobs.pause(paused)
        if is_more and not self._is_starting:
            self._consumers.take_back_all(self._clock.monotonic())
        self._demand.tell_of_returned()

    # -- beats and chores

    def _finish_beat(self, beaten: Beaten | None, now: float) -> None:
        if beaten is None:
            self._unbroken_at = inf
            return
        is_late = now - self._beat_asked_at > self._lease_s / 2  # a database that stood still has heard nobody
        self._unbroken_at = now if is_late else min(self._unbroken_at, now)
        self._alive_at = self._beat_asked_at
        if self._is_cut_off:
            self._is_cut_off, self._audited = False, -1  # what it still has of limits, the next audit says
        self._is_fenced |= beaten.is_fenced
        self._set_paused(beaten.paused)
        if beaten.cancels:
            self._refuse_cancels(self._leases.cancel(beaten.cancels))

    def _finish_look(self, seen: Seen | None, now: float) -> None:
        if seen is None:
            return
        self._chores.looked(seen, self.figures, now)
        self._events.notes([Event("job.expired", {"row": row}) for row in seen.expired])
        if seen.is_empty is not None:
            self._is_empty = seen.is_empty
        if seen.last_partition > self._demand.last_partition:
            self._read_partitions()
        if seen.queued:
            self._demand.tell_of_returned()

    def _finish_reap(self, reaped: Reaped, now: float) -> None:
        for lost in reaped.lost:
            self._events.log.warning("fleet.lost", fleet=lost.fleet, host=lost.host, running=len(lost.running))
        if reaped.lost:
            self._limits.inherit(reaped.grants, self._leases.outcomes.kept)
        self._leases.arrive_orphaned(reaped.orphans, reaped.lost)
        self._take_arrived(now)
        if reaped.lost:
            self._demand.tell_of_returned()
            self._edges.search_soon()

    def _ask_control(self, now: float) -> None:
        """Asks the control link for what time brings."""
        control = self._control
        if not control.is_free:
            return
        if now >= self._beat_at:
            self._beaten_at = self._beat_asked_at = now
            told = told_by(self._local_fleet, self._settings, self._clock)
            self._told_consumers = {each.pid for each in told.status.consumers}
            self._tells_again = not told.is_calm
            control.ask(Beat(self.fleet, self._leases.lowest, told))
            return
        exchange = self._chores.next_exchange(self.fleet, self.figures, now, self._clock.time())
        if exchange is not None:
            control.ask(exchange)
        if isinstance(exchange, Look):
            self._leases.expire(self._clock.time())
            pids = {each.pid for each in self._local_fleet.control.consumers()}
            self._tells_again |= pids != self._told_consumers

    @property
    def _beat_at(self) -> float:
        """When the next beat is due."""
        every_s = self._lease_s / _BEATS
        is_soon = len(self._leases.held) > 0 or self._tells_again
        return self._beaten_at + (min(every_s, _TELL_EVERY_S) if is_soon else every_s)

    def declare(self, app: str, schedules: Sequence[bytes]) -> None:
        self._schedules.declare(app, schedules)
        self._chores.look_soon()

    def enqueued(self, children: list[Submission]) -> None:
        self._jobs.take_children(children)

    # -- what is done

    def step(self, now: float, *, at_once: bool = False) -> None:
        self._stepped_at = now
        if at_once:
            self._round_at = now
        self._limits.expire_starts(now)
        if now >= self._lease_ends_at and not self._is_cut_off:
            self._is_cut_off = True
            self._lose_limits("the database did not answer: others may soon run what its job must not run beside")
        if now >= self._release_at and len(self._leases.held):
            self._release_at = now + _RELEASE_EVERY_S
            self._leases.release(now, self.figures.paused())
        if self._work.is_free:
            self._next_exchange(now)
        self._ask_control(now)
        self._work.turn(now)
        self._control.turn(now)
        if self._round is None and self._work.is_ready:
            self._unsettled.well_at = now
        elif now >= self._unsettled.keep_at:
            self._keep_unsettled()

    def _keep_unsettled(self) -> None:
        """While the database does not answer: keeps what has become of jobs for the case that this broker dies."""
        self._leases.take_effects()
        under_way = Outcomes() if self._round is None else self._round.outcomes
        self._unsettled.keep(self._events.log, under_way.effects, self._leases.outcomes.effects)

    @property
    def _lease_ends_at(self) -> float:
        """When jobs have to be stopped that promise to be alone (monotonic), unless a beat is answered before."""
        return self._alive_at + self._lease_s - self._lease_s / _BEFORE_LEASE_ENDS

    def _lose_limits(self, why: str) -> None:
        """Others may soon have what this fleet has of limits."""
        self._limits.lose_all()
        self._consumers.take_back_all(self._clock.monotonic())  # what waits behind other jobs must not start, either
        self._consumers.interrupt(self._leases.exclusive_ids(), why)

    def want(self, loads: Sequence[Load]) -> None:
        raise AssertionError(f"all jobs that are leased are in memory: {loads}")

    def report(self, now: float) -> None:
        durable, self._durable = self._durable, []
        for effects in durable:
            wall = self._clock.time()
            self.figures.count(effects, wall)
            for change in effects.rescheduled:
                change.row.ready_at = wall if change.due_at is None else change.due_at
            self._events.notes(effects.notes)
            self._events.successes(effects.done, now)

    # -- when, and whether

    def next_at(self, now: float) -> float:
        at = min(self._work.next_at(now), self._control.next_at(now))
        if self._control.is_free:
            at = min(at, self._beat_at, self._chores.next_at(self.figures, now))
        if len(self._leases.held):
            at = min(at, self._release_at)
        if now < self._unsettled.keep_at and not self.is_settled:
            at = min(at, self._unsettled.keep_at)
        if self._work.is_free:
            has_surplus = self._limits.has_surplus and not self._leases.has_arrived
            has_some = self._leases.has_effects or self._leases.outcomes or has_surplus
            if has_some or self._is_fenced or self._edges.has_ended:
                return max(now, self._round_at)
            for look_at in (self._demand.next_at, self._limits.next_at()):
                if look_at > self._stepped_at:  # else it has looked, and the fleet wants nothing
                    at = min(at, look_at)
        if not self._is_cut_off:
            at = min(at, self._lease_ends_at)
        if self._local is not None:
            at = min(at, self._local.next_at(now))
        return at

    @property
    def is_settled(self) -> bool:
        under_way = self._round is not None and bool(self._round.outcomes.effects)
        return not (under_way or self._leases.has_effects or self._leases.outcomes.effects)

    @property
    def has_work(self) -> bool:
        return not self._is_empty or not self.is_settled or len(self._leases.held) > 0

    @property
    def owes(self) -> bool:
        """Whether an answer of the database is due."""
        return self._work.owes or self._control.owes

    def link_descriptors(self) -> list[int]:
        """The descriptors of its connections."""
        return [each for link in (self._work, self._control) if (each := link.descriptor) is not None]

    def close(self, now: float) -> None:
        """Hands over what is left, waiting for the database for some seconds."""
        self._work.select_with(None)
        self._control.select_with(None)
        began_at = now
        while (
            (has_some := not self.is_settled or bool(self._leases.outcomes.releases))
            or self.figures.is_keeping
            or (self._work.is_ready and not self._work.is_free)
        ):
            now = self._clock.monotonic()
            if now >= began_at + (_CLOSES_WITHIN_S if has_some else _ANSWERED_WITHIN_S):
                if not has_some:
                    break
                self._events.log.error(
                    "database.away", error=self._work.error, unsettled=len(self._leases.outcomes.effects.ended)
                )
                self._keep_unsettled()
                break
            self._work.wait(0.05)
            self.gather(now)
            self.step(now)
        self.report(now)
        if self._work.is_free:
            for _ in range(2):  # the last ones may have to be asked for first
                if (exchange := self.figures.next_exchange(self.fleet, inf)) is not None:
                    drive(self._work, exchange, self._clock)
                    self._chores.finish(exchange, self.figures, now)
            drive(self._work, Unregister(self.fleet, self._schema), self._clock)
        self._work.close()
        self._control.close()
        if self._local is not None:
            self._local.shut()
