"""Two machines and a queue that both lease from: the broker's real loop and core, with an engine that a test scripts.

Queue            the truth: who has leased what, and how it ended (as a shared database would have it)
ScriptedEngine   behind the contract: answers come a turn later, its link may be cut, its owner may be fenced off
Machine          a broker's loop with consumers that run what they are told to run
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from types import SimpleNamespace
from typing import Any, cast

from taskq.broker.core.core import Core
from taskq.broker.loop import Broker
from taskq.broker.parts import Parts
from taskq.engines.contract import Events, Fleet, Jobs
from taskq.model.attempt import Attempts, Claim, Verdict, pack_success
from taskq.model.effects import Event, Key, Success
from taskq.model.job import JobRow, new_job_ids
from taskq.model.partition import Load
from taskq.model.settings import Settings
from taskq.model.spec import Spec
from taskq.model.stored import Ended, StoredState

SPEC = Spec("t")
#: A report, as it travels: its number, who sends it, and the jobs that have ended.
Report = tuple[int, int, list[Ended]]


@dataclass
class Entry:
    """A job of the queue."""

    seq: int
    id: bytes
    owner: int | None = None
    attempts: int = 0
    kept: StoredState = StoredState.QUEUED
    outcome: bytes = b""


@dataclass
class Queue:
    """What the machines share."""

    is_fenced: bool = True  # whether it believes those alone who have the lease
    applies_once: bool = True  # whether it knows a report that comes again
    entries: dict[bytes, Entry] = field(default_factory=dict)
    ended: list[bytes] = field(default_factory=list)  # each end that was counted
    fenced: set[int] = field(default_factory=set)  # owners that are known no more
    reports: set[tuple[int, int]] = field(default_factory=set)

    def add(self, count: int) -> list[bytes]:
        """Jobs come in."""
        ids = list(new_job_ids(count))
        self.entries.update((job_id, Entry(len(self.entries) + n, job_id)) for n, job_id in enumerate(ids, 1))
        return ids

    def lease(self, owner: int) -> list[JobRow]:
        """Hands out all that nobody has."""
        free = [entry for entry in self.entries.values() if entry.kept < StoredState.SUCCEEDED and entry.owner is None]
        for entry in free:
            entry.owner = owner
        return [JobRow(entry.seq, entry.id, SPEC, b"payload", entry.attempts) for entry in free]

    def settle(self, report: Report) -> list[bytes]:
        """Takes a report. Returns the jobs of which it was believed."""
        number, owner, ended = report
        is_known = (owner, number) in self.reports
        self.reports.add((owner, number))
        believed = []
        for row, kept, outcome in ended:
            entry = self.entries[row.id]
            if self.is_fenced and (entry.owner != owner or entry.attempts != row.attempts - 1):
                if is_known and entry.owner == owner and entry.attempts == row.attempts:
                    believed.append(row.id)  # it was taken, and its answer was lost
                continue
            if is_known and self.applies_once:
                continue
            entry.kept, entry.outcome, entry.attempts = kept, outcome, row.attempts
            self.ended.append(row.id)
            believed.append(row.id)
        return believed

    def fence_off(self, owner: int) -> None:
        """Nothing was heard of an owner for too long: what it has is free, and it is known no more."""
        self.fenced.add(owner)
        for entry in self.entries.values():
            if entry.owner == owner and entry.kept < StoredState.SUCCEEDED:
                entry.owner = None


class ScriptedEngine:
    """See `taskq.engines.contract.Engine`. It sends in `step`, and hears the answers in a later `gather`."""

    gives_back = True  # whether it takes from the fleet what it has lost
    tells_at_once = False  # whether the log is told before the answer

    def __init__(self, queue: Queue, owner: int) -> None:
        self.queue = queue
        self.owner = owner
        self.is_cut_off = False
        self.loses_answers = False
        self.held: dict[bytes, JobRow] = {}
        self.figures = cast(Any, SimpleNamespace(counts=lambda _kept: {}))
        self._unsent: list[Report] = []
        self._done: dict[bytes, Success] = {}
        self._numbers = 0
        self._answers: list[tuple[int, list[bytes], list[bytes]]] = []

    def recover(self, jobs: Jobs, events: Events, running: Iterable[Any]) -> None:
        pass

    def start(self, fleet: Fleet, _selector: Any, _max_clients: int) -> None:
        self._fleet = fleet

    def declare(self, app: str, schedules: Sequence[bytes]) -> None:
        pass

    def enqueued(self, children: list[Any]) -> None:
        pass

    def gather(self, now: float) -> None:
        """Hears what the queue has to say: leases, answers, and that it was fenced off."""
        if self.is_cut_off:
            return
        answers, self._answers = self._answers, []
        for number, believed, refused in answers:
            self._unsent = [report for report in self._unsent if report[0] != number]
            self._tell(believed)
            for job_id in (*believed, *refused):
                self.held.pop(job_id, None)
        if self.owner in self.queue.fenced:
            self._revoked(now)
            self.owner += 100  # a new life, with a number of its own
        rows = self.queue.lease(self.owner)
        self.held.update((row.id, row) for row in rows)
        self._fleet.jobs.came_due(rows)

    def step(self, now: float, *, at_once: bool = False) -> None:  # noqa: ARG002
        """Sends what was decided, and what was not answered, again and again."""
        effects = self._fleet.jobs.take_effects()
        self._done.update((row.id, (row, key, us)) for row, key, us in effects.done)
        if effects.ended:
            self._numbers += 1
            self._unsent.append((self._numbers, self.owner, list(effects.ended)))
            if self.tells_at_once:
                self._tell([row.id for row, _, _ in effects.ended])
        if self.is_cut_off:
            return
        for report in self._unsent:
            believed = self.queue.settle(report)
            if not self.loses_answers:
                refused = [row.id for row, _, _ in report[2] if row.id not in believed]
                self._answers.append((report[0], believed, refused))

    def _tell(self, ids: Iterable[bytes]) -> None:
        self._fleet.events.successes([self._done.pop(job_id) for job_id in ids if job_id in self._done], 0.0)

    def _revoked(self, now: float) -> None:
        """All that has not begun is gone; what runs goes on, and nobody will believe its end."""
        if not self.gives_back:
            return
        self._fleet.consumers.take_back_all(now)
        for row in list(self.held.values()):
            if not self._fleet.consumers.is_running(row.id):
                self._fleet.jobs.forget(row, StoredState.QUEUED)
                del self.held[row.id]

    def want(self, loads: Sequence[Load]) -> None:
        assert not loads, "it has handed over all that it has"

    def report(self, now: float) -> None:
        pass

    def next_at(self, now: float) -> float:
        return now if self._unsent else inf

    @property
    def is_settled(self) -> bool:
        return not self._unsent

    has_work = False

    def close(self, now: float) -> None:
        pass


class Log:
    """What the log of a machine tells."""

    def __init__(self) -> None:
        self.log = cast(Any, self)
        self.succeeded: list[bytes] = []

    def enqueued(self, rows: Sequence[JobRow], now: float) -> None:
        pass

    def notes(self, notes: Sequence[Event]) -> None:
        pass

    def successes(self, done: Sequence[Success], _now: float) -> None:
        self.succeeded += [row.id for row, _, _ in done]

    def rejected(self, reason: str, now: float) -> None:
        pass


class Pool:
    """A consumer with one slot, in place of processes: it begins a job when a test says, and ends it so."""

    is_stopping = is_ready = has_buried = False

    def __init__(self, core: Core, name: str) -> None:
        self._core = core
        self._name = name
        self._sent: list[tuple[int, JobRow]] = []
        self.running: tuple[int, JobRow] | None = None
        self.starts: list[bytes] = []
        core.joined(1, 0.0)

    def begin(self) -> JobRow:
        """Starts the next job."""
        assert self.running is None
        self.running = self._sent.pop(0)
        self.starts.append(self.running[1].id)
        return self.running[1]

    def end(self, now: float) -> None:
        """The job that runs succeeds."""
        assert self.running is not None
        number, _ = self.running
        self.running = None
        outcome = pack_success(0.0, 0.0, self._name.encode())
        self._core.settled(1, Attempts([number], [Verdict.SUCCEEDED], [5], [outcome]), now, now)

    @property
    def waiting(self) -> int:
        """How many jobs it has and has not begun."""
        return len(self._sent)

    # what the loop and the engine ask

    def dispatch(self, now: float, wall: float) -> None:
        for _, first, rows in self._core.dispatch(now, wall):
            self._sent += enumerate(rows, first)

    def take_back_all(self, now: float) -> None:
        self._sent.clear()
        begun = self.running[0] if self.running else self._core.sent(1) - len(self._core.leased()[1])
        if self._core.recalled(1, begun, now):
            self._core.settled(1, Attempts([], [], [], []), now, now)

    def interrupt(self, _job_ids: Collection[bytes], _why: str) -> None:
        raise AssertionError("the engine of this test shares no limits")

    def withdraw(self, job_id: bytes) -> bool:
        return not self.is_running(job_id)

    def is_running(self, job_id: bytes) -> bool:
        return self.running is not None and self.running[1].id == job_id

    def cancel_running(self, _job_id: bytes) -> None:
        pass

    def claims(self) -> dict[Key, list[Claim]]:
        return {1: [Claim(self.running[0], 0.0)] if self.running else []}

    def progress_of(self, _job_id: bytes) -> None:
        return None

    def bury_dead(self, *_times: float) -> None:
        pass

    check_times = supervise = bury_dead


class Machine(Broker):
    """The real loop, without processes and sockets."""

    def __init__(self, queue: Queue, owner: int, kind: type[ScriptedEngine] = ScriptedEngine) -> None:
        self.now = 1_000.0
        self.engine = kind(queue, owner)
        self.told = Log()
        core = Core()
        clock = cast(Any, SimpleNamespace(monotonic=lambda: self.now, time=lambda: 1e9 + self.now))
        parts = Parts(cast(Any, None), Settings(), self.engine, core, self.told, clock)
        parts.recover(())
        self._supervisor = cast(Any, SimpleNamespace(consumers={}, next_due=lambda _now: None))
        self.pool = Pool(core, f"machine {owner}")
        self._pool = cast(Any, self.pool)
        self._selector = cast(Any, SimpleNamespace(select=lambda _timeout_s: ()))
        parts.start(self.pool, self._supervisor, lambda _by: None, lambda: 0)
        self._begin(parts)

    def turn(self, times: int = 1) -> None:
        """Turns the loop."""
        for _ in range(times):
            self.now += 0.01
            self._tick()

    def run(self) -> None:
        """Runs one job."""
        self.pool.begin()
        self.pool.end(self.now)
        self.turn(2)
