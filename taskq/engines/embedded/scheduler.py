"""The scheduler of a queue's directory: it fires schedules when they are due, and changes them on request.

The broker's clock is the only one. A fire is a submission like a client's, and the schedule's next time is recorded in
the same transaction: after a crash either both are there or neither, and then the same job is made again. If a
transaction is rolled back, the changes in memory are undone with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any

import msgpack

from taskq.engines.embedded.journal.store import Store
from taskq.engines.embedded.transaction import Command, Transaction
from taskq.engines.fires import FireLog
from taskq.model.errors import ConfigError, StoreFull
from taskq.model.info.schedule import ScheduleInfo, schedule_info
from taskq.model.limits import CONSTRAINED_US, FIRED_US, MAX_SCHEDULES
from taskq.model.rules.schedules import Unfinished, check_put, check_remove, declared, fire, planned, unknown
from taskq.model.schedule import Schedule, ScheduleRow, ahead_s, constraints_for, due, next_fire, payload_for
from taskq.model.stored import FIRST_FINAL
from taskq.protocol.submissions import Submission

#: When the disk is full, the next try is after this time.
_FULL_AGAIN_S = 0.5
#: If the difference of the clocks has changed by more than this since the last look, somebody has set one.
_CLOCK_IS_SET_S = 0.5
#: The heap of fires is tidied when more of its entries are stale than are not, and more than this number.
_MOST_STALE = 16


class Scheduler:
    """All schedules. Used by the broker's loop alone."""

    def __init__(self, store: Store, log: Any, wall: float) -> None:
        """
        Args:
            log: a structlog logger.
            wall: the time, in seconds since 1970.
        """
        self._store = store
        self._log = log
        self._app: str | None = None  # the application that the consumers run: its declared schedules fire
        self._declared: tuple[str, list[Schedule]] | None = None  # from a consumer, not applied yet
        self._rows: dict[str, ScheduleRow] = {}
        self._fires_at: dict[str, float] = {}  # of those that fire: not paused, and not of another application
        self._fires: list[tuple[float, str]] = []  # a heap of these; some are stale
        self._fire_log = FireLog(log)
        self._ahead_s: dict[str, float] = {}  # of those whose times are ahead of the clock, since it was set back
        self._declares_again_at = -inf  # declared schedules are not applied before this: the disk was full
        self._is_staged = False  # whether what `due` returned last still waits for its commit
        self._clock_s = inf  # how far the clock was ahead of the monotonic one
        self.next_fire_at: float | None = None  # seconds since 1970
        self._read(wall)

    # -- its memory

    def _read(self, wall: float) -> None:
        """Takes over what is durable."""
        for name in list(self._rows):
            self._hold(name, None, wall)
        for row in self._store.schedules():
            self._hold(row.schedule.name, row, wall)
        self._look_ahead()

    def _hold(self, name: str, row: ScheduleRow | None, wall: float) -> None:
        self._fires_at.pop(name, None)
        self._ahead_s.pop(name, None)
        if row is None:
            self._rows.pop(name, None)
            return
        self._rows[name] = row
        if not row.is_paused and row.app in (None, self._app):
            try:
                ahead = ahead_s(row.schedule, row.next_at, wall)
                self._fires_at[name] = fires_at = row.fires_at - ahead
                heappush(self._fires, (fires_at, name))
                if ahead:
                    self._ahead_s[name] = ahead
            except ConfigError as error:  # its time zone is not on this system any more
                self._log.error("schedule.broken", schedule=name, error=str(error))

    def _look_again(self, wall: float) -> None:
        for name, row in list(self._rows.items()):
            self._hold(name, row, wall)
        self._look_ahead()

    def _look_ahead(self) -> None:
        fires = self._fires
        while fires and self._fires_at.get(fires[0][1]) != fires[0][0]:
            heappop(fires)
        if len(fires) > 2 * len(self._fires_at) + _MOST_STALE:
            fires[:] = [(fires_at, name) for name, fires_at in self._fires_at.items()]
            heapify(fires)
        self.next_fire_at = fires[0][0] if fires else None

    def _due_names(self, wall: float, most: int) -> list[str]:
        """Returns the schedules that are due, at most this many, those that are due first in front."""
        due: dict[str, float] = {}
        while self._fires and self._fires[0][0] <= wall and len(due) < most:
            fires_at, name = heappop(self._fires)
            if self._fires_at.get(name) == fires_at:
                due[name] = fires_at
        for name, fires_at in due.items():  # until they have fired: that may fail
            heappush(self._fires, (fires_at, name))
        return list(due)

    def _change(self, tx: Transaction, changes: dict[str, ScheduleRow | None]) -> None:
        """Records schedules; None for one that is removed."""
        tx.or_else(partial(self._read, tx.wall))
        for name, row in changes.items():
            if row is None:
                tx.store.remove_schedule(name)
            else:
                tx.store.put_schedule(row)
            self._hold(name, row, tx.wall)
        self._look_ahead()

    # -- fires

    def due(self, now: float, wall: float) -> Command | None:
        """Returns the command for what is due now: fires, and what the application declares; None if nothing is."""
        if abs(wall - now - self._clock_s) > _CLOCK_IS_SET_S:
            self._look_again(wall)
        self._clock_s = wall - now
        is_due = self.next_fire_at is not None and self.next_fire_at <= wall
        if self._is_staged or (not is_due and (self._declared is None or wall < self._declares_again_at)):
            return None
        self._is_staged = True
        return _FireDue(self, wall)

    def was_staged(self) -> None:
        """What `due` returned last is done."""
        self._is_staged = False

    def fire_due(self, tx: Transaction) -> None:
        """Makes the jobs whose time has come; takes over what the application declares."""
        if self._declared is not None:
            self._take_declared(tx, *self._declared)
        if self.next_fire_at is not None and self.next_fire_at <= tx.wall:
            self._fire(tx)

    def put_off(self, wall: float) -> None:
        """Tries again after a while, since the disk is full."""
        self.next_fire_at = self._declares_again_at = wall + _FULL_AGAIN_S

    def _fire(self, tx: Transaction) -> None:
        wall = tx.wall
        names = self._due_names(wall, tx.portion(FIRED_US))
        for name in names:
            if name != names[0] and tx.room_us < FIRED_US:
                break  # the others in the next turn of the loop
            row = self._rows[name]
            is_ahead = name in self._ahead_s  # then its turn has come, but not its time
            most = tx.portion(CONSTRAINED_US)
            found = due(row.schedule, row.next_at, max(wall, row.fires_at) if is_ahead else wall, most)
            before = self._unfinished(row) if found.fires and row.schedule.overlap != "allow" else None
            fired = fire(row, found, before)
            tx.room_us -= FIRED_US + CONSTRAINED_US * len(fired.ids)
            refusal = None
            if fired.ids:
                refusal = tx.try_submit(_submission(row.schedule, fired.ids, wall, fired.after))
            self._change(tx, {name: fired.row})
            tx.then(self._fire_log.tell, fired, None if refusal is None else str(refusal))

    def _unfinished(self, row: ScheduleRow) -> Unfinished | None:
        """Returns the last job of a schedule if it has not ended."""
        stored = (self._store.read(job_id) for job_id in row.last_jobs)
        return next(
            (Unfinished(job.row.id, job.kept) for job in stored if job is not None and job.kept < FIRST_FINAL), None
        )

    # -- changes

    def declared(self, app: str, packed: Iterable[bytes]) -> None:
        """Takes the schedules in the code of a consumer's application.

        Raises:
            ConfigError: one makes no sense.
        """
        schedules = [Schedule.from_wire(msgpack.unpackb(fields)) for fields in packed]
        for schedule in schedules:
            next_fire(schedule, 0.0)  # raises
        self._declared = app, schedules

    def _take_declared(self, tx: Transaction, app: str, schedules: list[Schedule]) -> None:
        if app != self._app:
            self._app = app
            self._look_again(tx.wall)
        changes = declared(self._rows, app, schedules, tx.wall)
        if changes:
            self._change(tx, changes)
            told = {"schedules": len(schedules), "changed": sorted(changes)[:50]}
            tx.then(self._log.info, "schedule.declared", **told)
        tx.then(self._declared_is_taken)

    def _declared_is_taken(self) -> None:
        self._declared = None

    def put(self, tx: Transaction, schedule: Schedule) -> ScheduleInfo:
        """Adds a schedule, or changes the one of its name.

        Raises:
            ConfigError: it makes no sense or is declared in an application's code, or there are too many.
        """
        known = self._rows.get(schedule.name)
        check_put(known, schedule, len(self._rows))
        row = planned(known, schedule, None, tx.wall)
        if row != known:
            self._change(tx, {schedule.name: row})
            event = "schedule.added" if known is None else "schedule.changed"
            tx.then(self._log.info, event, schedule=schedule.name)
        return self._told(row)

    def remove(self, tx: Transaction, name: str) -> None:
        """Removes a schedule that was added at run time, or that belongs to an application that the consumers do not
        run.

        Raises:
            ScheduleNotFound: there is none.
            ConfigError: it is declared in the code of the application.
        """
        row = self._row(name)
        check_remove(row, row.app == self._app)
        self._change(tx, {name: None})
        tx.then(self._log.info, "schedule.removed", schedule=name)

    def pause(self, tx: Transaction, name: str, is_paused: bool) -> ScheduleInfo:
        """Pauses or resumes a schedule. Raises ScheduleNotFound if there is none."""
        row = self._row(name)
        if row.is_paused != is_paused:
            row = row._replace(is_paused=True) if is_paused else row.resumed(tx.wall)
            self._change(tx, {name: row})
            tx.then(self._log.info, "schedule.paused" if is_paused else "schedule.resumed", schedule=name)
        return self._told(row)

    def run(self, tx: Transaction, name: str, job_id: bytes) -> None:
        """Makes a job of a schedule at once, even while it is paused. The next fire checks whether that job has ended.

        Raises:
            ScheduleNotFound: there is none.
            EnqueueError: the job is refused.
        """
        row = self._row(name)
        is_counted = self._unfinished(row) is None
        tx.submit(_submission(row.schedule, [job_id], tx.wall))
        if is_counted:
            self._change(tx, {name: row._replace(last_id=job_id)})
        tx.then(self._log.info, "schedule.run", schedule=name, job_id=job_id.hex())

    def infos(self) -> list[ScheduleInfo]:
        """Returns all schedules, by name."""
        return [self._told(row) for _, row in sorted(self._rows.items())[:MAX_SCHEDULES]]

    def _told(self, row: ScheduleRow) -> ScheduleInfo:
        return schedule_info(row, self._ahead_s.get(row.schedule.name, 0.0))

    def _row(self, name: str) -> ScheduleRow:
        row = self._rows.get(name)
        if row is None:
            raise unknown(name, sorted(self._rows))
        return row


class _FireDue(Command):
    """Fires the schedules that are due."""

    adds = True

    def __init__(self, scheduler: Scheduler, wall: float) -> None:
        self._scheduler = scheduler
        self._wall = wall

    def apply(self, tx: Transaction) -> None:
        self._scheduler.fire_due(tx)

    def answer(self, outcome: object) -> None:
        self._scheduler.was_staged()
        if isinstance(outcome, StoreFull):
            self._scheduler.put_off(self._wall)


def _submission(schedule: Schedule, ids: list[bytes], wall: float, after: bytes | None = None) -> Submission:
    payloads = [payload_for(schedule, job_id) for job_id in ids]
    constraints = constraints_for(schedule, wall, after)
    return Submission(
        None, 0, False, schedule.spec, ids, payloads, None if constraints is None else [constraints] * len(ids)
    )
