"""A fleet in this process, for tests: the real core, committer, store, requests and runner, a clock that stands still
until it is moved, and neither processes nor sockets.

    Client -> frames -> hear -> Committer, Requests -> frames -> Client         as with a broker
    run_next: Core.dispatch -> Runner.run, here -> Core.settled -> Committer    as with a consumer

Nothing is decided here but whose turn it is. Jobs run when somebody waits for one, or asks for it (`taskq.testing`).
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, cast

from taskq.broker.consumers.succession import Succession
from taskq.broker.parts import Parts, core_of
from taskq.client.app import TaskQ
from taskq.client.context import RunningJob, job_of_context
from taskq.consumer import runner
from taskq.engines.embedded.engine import EmbeddedEngine
from taskq.engines.embedded.journal.memory import MemoryStore
from taskq.model.attempt import Attempts, Verdict
from taskq.model.effects import Key, ProcessExit
from taskq.model.errors import TaskQError
from taskq.model.job import JobRow
from taskq.model.settings import Settings
from taskq.model.spec import Spec
from taskq.model.stored import StoredState
from taskq.protocol import frames
from taskq.protocol.payloads.files import PayloadFiles
from taskq.system.directory import Directory
from taskq.testing.clock import Clock
from taskq.testing.consumers import (
    FOR_THE_FLEET,
    InProcessConsumer,
    InProcessPool,
    Progress,
    refusal_of,
    start_options_of,
    submissions_of,
)
from taskq.testing.server import InProcessPeer, InProcessServer

#: A moment is over when the clock is so near to it: sums of seconds are not exact.
_NEARLY_S = 1e-6

#: How often to look again for what another thread is running.
_LOOK_AGAIN_S = 0.05


#: Jobs that run inside one another: more are a job that enqueues itself without an end.
_DEEPEST = 50


#: A file system in memory, on Linux.
_MEMORY = "/dev/shm"


class _Endless(BaseException):
    """Jobs wait for one another without an end. No error of a job: all of them end, up to the test."""


class _Silent:
    """A log that keeps nothing."""

    def __getattr__(self, _level: str) -> Callable[..., None]:
        return lambda *_, **__: None


class Arrival(NamedTuple):
    """A job that came in, as it was then."""

    id: bytes
    spec: Spec
    payload: bytes | memoryview
    due_at: float | None


class EventKeeper:
    """In place of a `taskq.broker.events.EventLog`: keeps what came in."""

    def __init__(self, store: MemoryStore, directory: Directory) -> None:
        self.log = _Silent()
        self.arrivals: list[Arrival] = []
        self._store = store
        self._payloads = PayloadFiles(directory)

    def enqueued(self, rows: Sequence[JobRow], _now: float) -> None:
        """Jobs that came in."""
        for row in rows:
            stored = self._store.read(row.id)
            payload = self._payloads.read(row.id, row.payload)  # large ones go with the end of the job
            self.arrivals.append(Arrival(row.id, row.spec, payload, None if stored is None else stored.due_at))

    def notes(self, _notes: object) -> None:
        """Nobody reads a log."""

    def successes(self, _done: object, _now: float) -> None:
        """Nobody reads a log."""

    def rejected(self, _reason: str, _now: float) -> None:
        """Nobody reads a log."""


def _make_folder() -> Path:
    """In memory where that can be written, since nothing of it is to last."""
    try:
        return Path(tempfile.mkdtemp(prefix="taskq-test-", dir=_MEMORY))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="taskq-test-"))


class InProcessFleet:
    """A fleet without processes. Any thread may use it; jobs run in the thread that asks for them."""

    def __init__(self, app: TaskQ, settings: Settings, clock: Clock) -> None:
        self._app = app
        self.clock = clock
        self._folder = _make_folder()
        self.directory = Directory(self._folder / "queue").create()
        self._store = MemoryStore()
        self._core = core_of(settings)
        self._pool = InProcessPool(self._core, clock)
        self._events = EventKeeper(self._store, self.directory)
        self._server = InProcessServer()
        self._engine = EmbeddedEngine(self.directory, settings, self._store, clock, self._server)
        parts = Parts(self.directory, settings, self._engine, self._core, self._events, clock)
        parts.start(self._pool, Succession(0), lambda _reason: None, lambda: 0)
        self._committer, self._scheduler = self._engine.committer, self._engine.scheduler
        self._engine.declare(app.name, app.schedules.declared)
        self._keys = count(1)
        self._has_started = False  # as a consumer: its hooks have run
        self._is_stale = False  # something came in that may be more urgent than what the consumers have
        self.lock = threading.RLock()
        self._settled = threading.Condition(self.lock)
        #: What the last attempt of each job that failed for good has raised.
        self.raised: dict[bytes, BaseException] = {}
        self.look_at_the_clock()  # takes over the schedules in the code

    @property
    def arrivals(self) -> list[Arrival]:
        """The jobs that came in, in order."""
        return self._events.arrivals

    def close(self) -> None:
        """Removes everything."""
        if self._has_started:
            self._app.hooks.run_stops()
        for consumer in self._pool.by_key.values():
            consumer.runner.close()
        self.raised.clear()
        self._store.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- what clients say

    def hear(self, peer: InProcessPeer, data: bytes) -> None:
        """Frames from a client, each answered before the next."""
        with self.lock:
            for message in frames.Decoder().feed(data):
                self._is_stale = True
                self._server.hear(peer, message)
                self._commit()

    def forget(self, peer: InProcessPeer) -> None:
        """A client is gone."""
        peer.closed = True
        self._engine.forget(cast(Any, peer))

    def _commit(self) -> None:
        self._engine.serve(self.clock.monotonic())

    # -- time

    def look_at_the_clock(self) -> None:
        """What is due is queued; what is late expires; limits open."""
        with self.lock:
            now, wall = self.clock.monotonic(), self.clock.time()
            self._engine.look_at_clock(now, wall)
            self._commit()
            self._committer.come_due(wall + _NEARLY_S)
            self._committer.commit(now, wall + _NEARLY_S)
            self._core.ready.open_due(self.clock.monotonic())
            self._is_stale = True
            self._commit()

    def next_moment(self, *, with_schedules: bool) -> float | None:
        """When something happens here by itself, in seconds since 1970."""
        moments = (self._committer.next_due, self._committer.next_expiry, self._core.ready.next_opening())
        fire = self._scheduler.next_fire_at if with_schedules else None
        return min((at for at in (*moments, fire) if at is not None), default=None)

    # -- running

    def run_next(self) -> bytes | None:
        """Runs one job, if there is one that may start. Returns its id."""
        with self.lock:
            consumer = self._choose()
            if consumer is None:
                return None
            self._start()
            number, row = consumer.waiting.popleft()
            consumer.begun, consumer.running = number, (threading.get_ident(), self.clock.monotonic())
            task, extra = row.spec.task, start_options_of(row)
            running = RunningJob(number, consumer.running[1], row.id, task, row.attempts + 1, row.payload, extra)
            running.clock = self.clock
        verdict, duration_s, outcome = consumer.runner.run(running)
        raised = consumer.runner.raised
        with self.lock:
            attempts = Attempts([number], [verdict], [int(duration_s * 1e6)], [outcome])
            self._core.settled(consumer.key, attempts, self.clock.monotonic(), self.clock.time())
            self._pool.progress.pop(row.id, None)
            if verdict == Verdict.SUCCEEDED:
                self._core.take_children(submissions_of(running.children))
            self._leave(consumer)
            self._commit()
            if raised is not None:
                self.raised[row.id] = refusal_of(row, outcome) if isinstance(raised, runner.Refused) else raised
            self._settled.notify_all()
        if isinstance(raised, _Endless) and not self.is_in_job:
            raise TaskQError(str(raised)) from None
        if raised is not None and not isinstance(raised, FOR_THE_FLEET):
            raise raised  # Ctrl-C, or pytest.fail() inside a job: meant for the test
        return row.id

    def _start(self) -> None:
        """Before the first job: what a consumer does when it starts. Raises StartFailed if that fails."""
        if not self._has_started:
            self._has_started = True
            self._app.hooks.run_starts()

    def _choose(self) -> InProcessConsumer | None:
        """A free consumer with a job to start."""
        busy = sum(consumer.running is not None for consumer in self._pool.by_key.values())
        if busy >= _DEEPEST:
            raise _Endless(f"{busy} jobs wait for one another, each for one that it has enqueued: is there an end?")
        if self._is_stale or busy:
            self._pool.take_back_all(0.0)
            self._is_stale = False
        free = self._free_consumer()
        if not free.waiting:
            self._dispatch()
            free = self._free_consumer()
        return free if free.waiting else None

    def _free_consumer(self) -> InProcessConsumer:
        for consumer in self._pool.by_key.values():
            if consumer.running is None:
                return consumer
        consumer = InProcessConsumer(next(self._keys), self._app, self._on_item)
        self._pool.by_key[consumer.key] = consumer
        self._core.joined(consumer.key, self.clock.monotonic())
        return consumer

    def _leave(self, consumer: InProcessConsumer) -> None:
        """A consumer ended its job. One free consumer is enough: so jobs start one by one in the order of the core."""
        consumer.running = None
        if sum(other.running is None for other in self._pool.by_key.values()) > 1:
            del self._pool.by_key[consumer.key]
            self._core.died(consumer.key, [], ProcessExit(stopped=True), self.clock.time())
            consumer.runner.close()

    def _dispatch(self) -> None:
        for load in self._core.loads():
            rows, is_all = self._store.lease(*load)
            self._core.loaded(load.partition, rows, is_all)
        wall = self.clock.time()
        self._core.ready.open_due(self.clock.monotonic())
        for key, first, rows in self._core.dispatch(self.clock.monotonic(), wall):
            self._pool.by_key[key].waiting.extend(enumerate(rows, first))

    def _on_item(self, key: Key, job_id: bytes, position: int, item: bytes) -> None:
        with self.lock:
            self._core.yielded(key, job_id, position, [item])
            self._commit()

    def note_progress(self, job_id: bytes, progress: Progress) -> None:
        """A job that runs here tells how far it is."""
        with self.lock:
            if self._core.consumer_of(job_id) is not None:
                self._pool.progress[job_id] = progress

    def keep_checkpoint(self, job_id: bytes, checkpoint: bytes) -> None:
        """A job that runs here keeps something for its next attempt."""
        with self.lock:
            key = self._core.consumer_of(job_id)
            if key is not None:
                self._core.checkpointed(key, job_id, checkpoint)
                self._commit()

    def run_until(self, moment: float) -> None:
        """Runs what may start until a moment, and moves the clock on to whatever comes by then."""
        while True:
            if self.run_next() is None:
                stop = self.clock.next_moment()
                if stop is None or stop > moment:
                    return
                self.clock.move_to(stop)

    def wait(self, is_over: Callable[[], Any], timeout_s: float | None) -> None:
        """Runs jobs, and lets time pass, until something is so.

        Raises:
            TimeoutError: so much time has passed.
            TaskQError: nothing will happen any more.
        """
        deadline = None if timeout_s is None else self.clock.time() + timeout_s
        while not is_over():
            if any(fleet.run_next() for fleet in self.clock.fleets) or self._runs_elsewhere():
                continue
            with self.lock:
                if is_over() or self._choose() is not None:
                    continue  # another thread has ended something since
            stop = self.clock.next_moment(with_schedules=deadline is not None)
            if deadline is not None and (stop is None or stop > deadline):
                self.clock.move_to(deadline)
                if is_over():
                    return
                raise TimeoutError
            if stop is None:
                raise TaskQError(
                    "this wait has no end: nothing is left that may run. Is a queue paused, does the job need "
                    "resources that the fleet does not have (settings=), or does it wait for one that waits for it?"
                )
            self.clock.move_to(stop)

    def _runs_elsewhere(self) -> bool:
        """Waits a moment for jobs that other threads run. Returns whether there are any."""
        mine = threading.get_ident()
        with self.lock:
            is_so = any(consumer.running and consumer.running[0] != mine for consumer in self._pool.by_key.values())
            if is_so:
                self._settled.wait(_LOOK_AGAIN_S)
            return is_so

    @property
    def is_in_job(self) -> bool:
        """Whether this is asked from inside a job."""
        return job_of_context() is not None

    def kept(self, job_id: bytes) -> StoredState | None:
        """A job's state as it is stored."""
        with self.lock:
            stored = self._store.read(job_id)
            return None if stored is None else stored.kept
