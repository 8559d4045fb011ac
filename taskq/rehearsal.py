"""A fleet inside this process, for tests: the real core, ledger, store, requests and runner, with time that stands
still until it is moved, and neither processes nor sockets.

    Client -> frames -> hear -> Ledger, Requests -> frames -> Client         as with a broker
    run_next: Core.dispatch -> Runner.run, here -> Core.settled -> Ledger    as with a consumer

Nothing is decided here but whose turn it is. Jobs run when somebody waits for one, or asks for it (`taskq.testing`).
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time as real_time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

from taskq import app as app_module
from taskq import bulk, calls, client, items, ledger, model, requests, runner, submitting, waiting, wire
from taskq.absence import Absence
from taskq.app import TaskQ
from taskq.client import Client, Connection, Ending, Endings
from taskq.config import Directory, Settings
from taskq.context import Seated, seated, sit, use_channel
from taskq.core import Core
from taskq.counters import Claim
from taskq.crew import Crew
from taskq.effects import Death, Key
from taskq.errors import JobFailed, TaskQError
from taskq.flows import Call, Flow, flow_frame, parts_of
from taskq.info import JobInfo
from taskq.intake import Submission, flow_of, submission_of
from taskq.items import read_items
from taskq.ledger import Ledger
from taskq.model import JobRow, JobState, Spec
from taskq.narrator import Narrator
from taskq.outcome import Attempts, Verdict, unpack
from taskq.reports import Reporter
from taskq.requests import Requests
from taskq.runner import Runner
from taskq.server import Server
from taskq.store import Kept
from taskq.store.sqlite import SQLiteStore
from taskq.succession import Succession
from taskq.supervisor import Slot, Supervisor, jobs_to_send
from taskq.timetable import Timetable
from taskq.wire import CPU_TIMEOUT, MEMORY_LIMIT, Extra, Message, Op

#: The modules that look at the clock: while a rehearsal goes on, they see its clock in place of the module `time`.
_CLOCKED: tuple[ModuleType, ...] = (
    app_module,
    bulk,
    calls,
    client,
    items,
    ledger,
    model,
    requests,
    runner,
    submitting,
    waiting,
)
#: A moment is over when the clock is so near to it: sums of seconds are not exact.
_NEARLY_S = 1e-6
#: How often to look again for what another thread is running.
_LOOK_AGAIN_S = 0.05
#: Jobs that run inside one another: more are a job that enqueues itself without an end.
_DEEPEST = 50


#: How far a job is: done, total, note.
Progress = tuple[float, float | None, str]


class _Endless(BaseException):
    """Jobs wait for one another without an end. No error of a job: all of them end, up to the test."""


class Clock:
    """Time that stands still until it is moved. It starts with the second in which it was made.

    It has the functions of the module `time` that taskq uses, so it can take the module's place.
    """

    def __init__(self) -> None:
        self._us = int(real_time.time()) * 1_000_000
        self.fleets: list[RehearsedFleet] = []

    def time(self) -> float:
        """Seconds since 1970."""
        return self._us / 1_000_000

    def time_ns(self) -> int:
        """Nanoseconds since 1970."""
        return self._us * 1_000

    def monotonic(self) -> float:
        """The same as `time`: this clock is never set back."""
        return self._us / 1_000_000

    def perf_counter(self) -> float:
        """Real time: it measures how long jobs take."""
        return real_time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Lets time pass for one who waits, while the fleets run what is there."""
        until = self.time() + seconds
        for fleet in self.fleets:
            fleet.run_until(until)
        self.move_to(until)

    def advance(self, seconds: float) -> None:
        """Lets so much time pass, in which no job is started: what becomes due is queued, what is late expires."""
        if not seconds >= 0:
            raise TaskQError(f"advance({seconds!r}): time goes forward only")
        self.move_to(self.time() + seconds)

    def next_moment(self, *, with_schedules: bool = True) -> float | None:
        """When something happens by itself next, in seconds since 1970.

        Args:
            with_schedules: whether the fires of periodic schedules count, of which there is no end.
        """
        found = (fleet.next_moment(with_schedules=with_schedules) for fleet in self.fleets)
        moments = [at for at in found if at is not None]
        return max(min(moments), self.time()) if moments else None

    def move_to(self, moment: float) -> None:
        """Moves on to a moment, and stops on the way wherever something happens."""
        while True:
            stop = self.next_moment()
            if stop is None or stop >= moment:
                break
            self._set(stop)
        self._set(moment)

    def _set(self, moment: float) -> None:
        before = self._us
        us = round(moment * 1_000_000)
        self._us = max(before, us if us / 1_000_000 >= moment else us + 1)
        for fleet in self.fleets:
            fleet.look_at_the_clock()
        if self._us == before and (self.next_moment() or moment + 1) <= self.time():
            self._us += 1  # something is due and does not happen yet: no moment is met twice


class _Peer:
    """A client's connection, as the fleet sees it."""

    def __init__(self) -> None:
        self.closed = False
        self.watched: set[bytes] = set()
        self.arrived: deque[Message] = deque()
        self._decoder = wire.Decoder()

    def deliver(self, frame: bytes) -> None:
        """A frame for the client."""
        self.arrived.extend(self._decoder.feed(frame))


class _Server:
    """What `taskq.server.Server` is to the ledger."""

    def send(self, peer: _Peer, frame: bytes) -> None:
        """Sends a frame to a client."""
        peer.deliver(frame)

    def reject(self, peer: _Peer, error: TaskQError) -> None:
        """A client that says what no client says."""
        self.send(peer, wire.error_frame(0, error))

    def is_clogged(self, _peer: _Peer) -> bool:
        """Clients take everything."""
        return False


class _Silent:
    """A log that keeps nothing."""

    def __getattr__(self, _level: str) -> Callable[..., None]:
        return lambda *_, **__: None


class Arrival(NamedTuple):
    """A job that came in, as it was then."""

    id: bytes
    spec: Spec
    payload: bytes
    due_at: float | None


class _Narrator:
    """What `taskq.narrator.Narrator` is to the ledger; keeps what came in."""

    def __init__(self, store: SQLiteStore) -> None:
        self.log = _Silent()
        self.arrivals: list[Arrival] = []
        self._store = store

    def enqueued(self, rows: Sequence[JobRow], _now: float) -> None:
        """Jobs that came in."""
        for row in rows:
            stored = self._store.read(row.id)
            self.arrivals.append(Arrival(row.id, row.spec, row.payload, None if stored is None else stored.due_at))

    def notes(self, _notes: object) -> None:
        """Nobody reads a log."""

    def successes(self, _done: object, _now: float) -> None:
        """Nobody reads a log."""


class _Runner(Runner):
    """Runs jobs inside other jobs, and in threads with an event loop of their own; keeps what they raise."""

    def __init__(self, app: TaskQ, on_item: Callable[[bytes, int, bytes], None]) -> None:
        super().__init__(app, on_item)
        self._begin = self._take_seat
        self._end = self._leave_seat
        self._before: Seated | None = None
        self.children: list[tuple[Spec, Call]] = []  # what the last job has enqueued for its success
        self.raised: BaseException | None = None

    def _take_seat(self, job_id: bytes, task: str, attempt: int, extra: Extra, _now: float) -> None:
        self._before = seated()
        seat = Seated(0, job_id, task, attempt, extra)
        self.children = seat.children
        sit(seat)

    def _leave_seat(self) -> None:
        seat = seated()
        if seat is not None:
            seat.end()
        sit(self._before)

    def _result(self, job_id: bytes, task_name: str, payload: bytes, extra: Extra) -> bytes | None:
        self.raised = None
        try:
            return super()._result(job_id, task_name, payload, extra)
        except BaseException as error:
            self.raised = error
            raise

    def _run_coroutine(self, coroutine: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return super()._run_coroutine(coroutine)
        return self._run_beside(coroutine)

    @staticmethod
    def _run_beside(coroutine: Any) -> Any:
        """Runs a coroutine to its end in another thread, since the loop of this one waits for us."""
        ended: list[Any] = []
        raised: list[BaseException] = []

        def run() -> None:
            try:
                ended.append(asyncio.run(coroutine))
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=copy_context().run, args=(run,), name="taskq-async-job")
        thread.start()
        thread.join()
        if raised:
            raise raised[0]
        return ended[0]

    def close(self) -> None:
        """Ends its event loop."""
        if self._event_loop is not None:
            self._event_loop.close()


class _Seat:
    """A consumer: runs one job at a time, in whatever thread asks for it."""

    def __init__(self, key: Key, app: TaskQ, on_item: Callable[[Key, bytes, int, bytes], None]) -> None:
        self.key = key
        self.waiting: deque[tuple[int, JobRow]] = deque()
        self.begun = 0  # the number of the last job that it started
        self.running: tuple[int, float] | None = None  # its thread, and since when
        self.runner = _Runner(app, lambda *item: on_item(key, *item))

    @property
    def claims(self) -> list[Claim]:
        """What it is running."""
        return [] if self.running is None else [Claim(self.begun, self.running[1])]


class _Seats:
    """What `taskq.crew.Crew` is to the ledger and to requests."""

    is_stopping = False

    def __init__(self, core: Core, clock: Clock) -> None:
        self._core = core
        self._clock = clock
        self.by_key: dict[Key, _Seat] = {}
        self.progress: dict[bytes, Progress] = {}  # of jobs that run

    def is_running(self, job_id: bytes) -> bool:
        """Whether a job runs now."""
        key = self._core.holder_of(job_id)
        return key is not None and any(
            claim.number == self._core.number_of(key, job_id) for claim in self.by_key[key].claims
        )

    def withdraw(self, job_id: bytes) -> bool:
        """Takes a job back from the seat it was sent to; returns False if it runs."""
        key = self._core.holder_of(job_id)
        if key is not None:
            self._take_back(self.by_key[key])
        return self._core.holder_of(job_id) is None

    def cancel_running(self, _job_id: bytes) -> None:
        """A job that runs here cannot be stopped: whoever asks is on the same stack, or in another thread."""

    def progress_of(self, job_id: bytes) -> Progress | None:
        """How far a running job is, if it said so."""
        return self.progress.get(job_id)

    def take_back_all(self, _now: float) -> None:
        """Takes back what no seat has started."""
        for seat in self.by_key.values():
            self._take_back(seat)

    def _take_back(self, seat: _Seat) -> None:
        if seat.waiting:
            seat.waiting.clear()
            if self._core.recalled(seat.key, seat.begun, self._clock.monotonic()):
                self._core.settled(seat.key, Attempts([], [], [], []), self._clock.monotonic(), self._clock.time())

    def claims(self) -> dict[Key, list[Claim]]:
        """What each seat is running."""
        return {seat.key: seat.claims for seat in self.by_key.values()}


class RehearsedFleet:
    """A fleet without processes. Any thread may use it; jobs run in the thread that asks for them."""

    def __init__(self, app: TaskQ, settings: Settings, clock: Clock) -> None:
        self._app = app
        self.clock = clock
        memory = Path("/dev/shm")
        self._folder = Path(tempfile.mkdtemp(prefix="taskq-test-", dir=memory if memory.is_dir() else None))
        directory = Directory(self._folder / "queue").create()
        self._store = SQLiteStore(directory.journal, "memory")
        self._core = Core(
            settings.queues,
            settings.memory_mb * 1024 * 1024,
            weights=dict(settings.weights),
            capacities=dict(settings.resources),
        )
        self._seats = _Seats(self._core, clock)
        self._narrator = _Narrator(self._store)
        parts = cast(Server, _Server()), cast(Narrator, self._narrator)
        crew = cast(Crew, self._seats)
        self._ledger = Ledger(self._store, self._core, *parts, directory, settings, crew)
        self._timetable = Timetable(self._store, self._ledger, _Silent(), clock.time())
        self._timetable.declared(app.name, app.schedules.declared)
        self._requests = Requests(
            directory,
            self._core,
            self._store,
            self._ledger,
            crew,
            cast(Supervisor, Succession[Slot](0)),
            parts[0],
            self._timetable,
            lambda _reason: None,
            lambda: 0,
            _Silent(),
        )
        self._keys = count(1)
        self._has_started = False  # as a consumer: its hooks have run
        self._is_stale = False  # something came in that may be more urgent than what the seats have
        self.lock = threading.RLock()
        self._settled = threading.Condition(self.lock)
        self.client = RehearsalClient(directory, self)
        self.async_client = RehearsalAsyncClient(self.client)
        self.after_request: Callable[[], None] | None = None
        #: What the last attempt of each job that failed for good has raised.
        self.raised: dict[bytes, BaseException] = {}
        self.look_at_the_clock()  # takes over the schedules in the code

    @property
    def arrivals(self) -> list[Arrival]:
        """The jobs that came in, in order."""
        return self._narrator.arrivals

    def close(self) -> None:
        """Removes everything."""
        if self._has_started:
            self._app.hooks.run_stops()
        for seat in self._seats.by_key.values():
            seat.runner.close()
        self.raised.clear()
        self.client.close()
        self._store.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- what clients say

    def hear(self, peer: _Peer, data: bytes) -> None:
        """Frames from a client, each answered before the next."""
        with self.lock:
            for envelope, body in wire.Decoder().feed(data):
                self._is_stale = True
                if envelope[0] not in (Op.SUBMIT, Op.SUBMIT_FLOW):
                    self._requests.answer(cast(Any, peer), envelope)
                else:
                    try:
                        self._ledger.take_in(submission_of(cast(Any, peer), envelope, body))
                    except TaskQError as error:
                        peer.deliver(wire.error_frame(envelope[1], error))
                self._commit()

    def forget(self, peer: _Peer) -> None:
        """A client is gone."""
        peer.closed = True
        self._ledger.forget(cast(Any, peer))

    def _commit(self) -> None:
        now, wall = self.clock.monotonic(), self.clock.time()
        self._ledger.commit(now, wall)
        while self._ledger.must_commit(now):  # more come after a job than one commit sets free
            self._ledger.commit(now, wall)
        self._ledger.tell(now)

    # -- time

    def look_at_the_clock(self) -> None:
        """What is due is queued; what is late expires; gates open."""
        with self.lock:
            wall = self.clock.time()
            self._timetable.fire_due(wall, wall)
            self._ledger.come_due(wall + _NEARLY_S)
            self._ledger.expire(wall + _NEARLY_S)
            self._core.bands.open_due(self.clock.monotonic())
            self._is_stale = True
            self._commit()

    def next_moment(self, *, with_schedules: bool) -> float | None:
        """When something happens here by itself, in seconds since 1970."""
        moments = (self._ledger.next_due, self._ledger.next_expiry, self._core.bands.next_opening())
        fire = self._timetable.next_fire_at if with_schedules else None
        return min((at for at in (*moments, fire) if at is not None), default=None)

    # -- running

    def run_next(self) -> bytes | None:
        """Runs one job, if there is one that may start. Returns its id."""
        with self.lock:
            seat = self._choose()
            if seat is None:
                return None
            self._start()
            number, row = seat.waiting.popleft()
            seat.begun, seat.running = number, (threading.get_ident(), self.clock.monotonic())
            extra = _extra_of(row)
        verdict, duration_s, outcome = seat.runner.run(row.id, row.spec.task, row.attempts + 1, row.payload, extra)
        raised = seat.runner.raised
        with self.lock:
            attempts = Attempts([number], [verdict], [int(duration_s * 1e6)], [outcome])
            self._core.settled(seat.key, attempts, self.clock.monotonic(), self.clock.time())
            self._seats.progress.pop(row.id, None)
            if verdict == Verdict.SUCCEEDED:
                self._ledger.take_children(_submissions(seat.runner.children))
            self._leave(seat)
            self._commit()
            if raised is not None:
                self.raised[row.id] = _refusal(row, outcome) if isinstance(raised, runner.Refused) else raised
            self._settled.notify_all()
        if isinstance(raised, _Endless) and not self.is_in_job:
            raise TaskQError(str(raised)) from None
        if raised is not None and not isinstance(raised, (Exception, SystemExit)):
            raise raised  # Ctrl-C, or pytest.fail() inside a job: meant for the test
        return row.id

    def _start(self) -> None:
        """Before the first job: what a consumer does when it starts. Raises StartFailed if that fails."""
        if not self._has_started:
            self._has_started = True
            self._app.hooks.run_starts()

    def _choose(self) -> _Seat | None:
        """A free seat with a job to start."""
        busy = sum(seat.running is not None for seat in self._seats.by_key.values())
        if busy >= _DEEPEST:
            raise _Endless(f"{busy} jobs wait for one another, each for one that it has enqueued: is there an end?")
        if self._is_stale or busy:
            self._seats.take_back_all(0.0)
            self._is_stale = False
        free = self._free_seat()
        if not free.waiting:
            self._dispatch()
            free = self._free_seat()
        return free if free.waiting else None

    def _free_seat(self) -> _Seat:
        for seat in self._seats.by_key.values():
            if seat.running is None:
                return seat
        seat = _Seat(next(self._keys), self._app, self._on_item)
        self._seats.by_key[seat.key] = seat
        self._core.joined(seat.key, self.clock.monotonic())
        return seat

    def _leave(self, seat: _Seat) -> None:
        """A seat ended its job. One free seat is enough: so jobs start one by one in the order of the core."""
        seat.running = None
        if sum(other.running is None for other in self._seats.by_key.values()) > 1:
            del self._seats.by_key[seat.key]
            self._core.died(seat.key, [], Death(stopped=True), self.clock.time())
            seat.runner.close()

    def _dispatch(self) -> None:
        for load in self._core.loads():
            rows, is_all = self._store.lease(*load)
            self._core.loaded(load.band, rows, is_all)
        wall = self.clock.time()
        self._core.bands.open_due(self.clock.monotonic())
        for key, first, rows in self._core.dispatch(self.clock.monotonic(), wall):
            self._seats.by_key[key].waiting.extend(enumerate(rows, first))

    def _on_item(self, key: Key, job_id: bytes, position: int, item: bytes) -> None:
        with self.lock:
            self._core.yielded(key, job_id, position, [item])
            self._commit()

    def note_progress(self, job_id: bytes, progress: Progress) -> None:
        """A job that runs here tells how far it is."""
        with self.lock:
            if self._core.holder_of(job_id) is not None:
                self._seats.progress[job_id] = progress

    def keep_checkpoint(self, job_id: bytes, checkpoint: bytes) -> None:
        """A job that runs here keeps something for its next attempt."""
        with self.lock:
            key = self._core.holder_of(job_id)
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
            is_so = any(seat.running and seat.running[0] != mine for seat in self._seats.by_key.values())
            if is_so:
                self._settled.wait(_LOOK_AGAIN_S)
            return is_so

    @property
    def is_in_job(self) -> bool:
        """Whether this is asked from inside a job."""
        return seated() is not None

    def kept(self, job_id: bytes) -> Kept | None:
        """A job's state as it is stored."""
        with self.lock:
            stored = self._store.read(job_id)
            return None if stored is None else stored.kept


def _submissions(children: list[tuple[Spec, Call]]) -> list[Submission]:
    """What a job has enqueued for its success, as a broker gets it from a consumer."""
    frames = [flow_frame([Op.CHILDREN, 0], part) for part in parts_of(children)]
    told = [message for frame in frames for message in wire.Decoder().feed(frame)]
    return [flow_of(None, 0, False, groups, edges, body) for (_, _, groups, edges), body in told]


def _extra_of(row: JobRow) -> Extra:
    """What a consumer is told of a job besides its arguments, but for limits that would hold for the whole test."""
    [(_, _, _, _, *more)] = jobs_to_send([row])
    return {name: value for extra in more for name, value in extra.items() if name not in (MEMORY_LIMIT, CPU_TIMEOUT)}


def _refusal(row: JobRow, outcome: bytes) -> JobFailed:
    """What stands for the error of an attempt that was refused before any code of the job ran, or after."""
    error = unpack(outcome).error
    assert error is not None
    return JobFailed(row.id.hex(), error.type, error.message, error.traceback)


# -- clients


class _Connection(Connection):
    """A connection without a socket."""

    def __init__(self, fleet: RehearsedFleet, absence: Absence) -> None:
        self.owner = None
        self._fleet = fleet
        self._absence = absence
        self._peer = _Peer()
        self._pending = self._peer.arrived
        self._arrived = deque()
        self._requests = count(1)
        self.close = weakref.finalize(self, partial(fleet.forget, self._peer))

    def _send(self, data: bytes) -> None:
        self._fleet.hear(self._peer, data)

    def receive(self, timeout_s: float | None) -> Message:
        if not self._pending:
            self._fleet.wait(lambda: self._pending, timeout_s)
        return self._pending.popleft()


class RehearsalClient(Client):
    """The client of a rehearsed fleet: the real one, on connections without sockets."""

    def __init__(self, directory: Directory, fleet: RehearsedFleet) -> None:
        super().__init__(directory)
        self._fleet = fleet

    def connect(self, **_how: object) -> Connection:
        return _Connection(self._fleet, self.absence)

    def submit(self, spec: Spec, calls: Iterable[Call]) -> list[bytes]:
        ids = super().submit(spec, calls)
        self._after()
        return ids

    def submit_flow(self, flow: Flow) -> None:
        super().submit_flow(flow)
        self._after()

    def ask(self, op: Op, *fields: Any) -> Any:
        answer = super().ask(op, *fields)
        self._after()
        return answer

    def _after(self) -> None:
        if self._fleet.after_request is not None:
            self._fleet.after_request()


class RehearsalAsyncClient:
    """What `taskq.aio.AsyncClient` is to an application: waiting for a job runs it, so nobody needs the loop."""

    def __init__(self, blocking: RehearsalClient) -> None:
        self._blocking = blocking

    async def pause(self, seconds: float) -> None:
        """Waits."""
        self._blocking._fleet.clock.sleep(seconds)

    async def submit(self, spec: Spec, calls: Iterable[Call]) -> list[bytes]:
        """As `Client.submit`."""
        return self._blocking.submit(spec, calls)

    async def submit_flow(self, flow: Flow) -> None:
        """As `Client.submit_flow`."""
        self._blocking.submit_flow(flow)

    async def wait(self, job_id: bytes, timeout_s: float | None) -> Ending:
        """As `Client.wait`."""
        return self._blocking.wait(job_id, timeout_s)

    @contextmanager
    def watching(self, ids: Iterable[bytes]) -> Iterator[_AsyncEndings]:
        """As `Client.watching`."""
        with self._blocking.watching(ids) as endings:
            yield _AsyncEndings(endings)

    async def items(
        self, job_id: bytes, start: int, timeout_s: float | None, on_end: Callable[[Ending], object]
    ) -> AsyncGenerator[bytes, None]:
        """As `taskq.items.read_items`."""
        found: Generator[bytes, None, Ending | None] = read_items(self._blocking, job_id, start, timeout_s)
        while True:
            try:
                item = next(found)
            except StopIteration as end:
                on_end(end.value)
                return
            yield item

    async def ask(self, op: Op, *fields: Any) -> Any:
        """As `Client.ask`."""
        return self._blocking.ask(op, *fields)

    async def info(self, job_id: bytes) -> JobInfo:
        """As `Client.info`."""
        return self._blocking.info(job_id)

    async def is_spooled(self, job_id: bytes) -> bool:
        """As `Client.is_spooled`."""
        return self._blocking.is_spooled(job_id)

    async def cancel(self, job_id: bytes, also_running: bool) -> bool:
        """As `Client.cancel`."""
        return self._blocking.cancel(job_id, also_running)

    async def retry(self, job_id: bytes) -> None:
        """As `Client.retry`."""
        self._blocking.retry(job_id)

    async def purge(self, job_id: bytes) -> None:
        """As `Client.purge`."""
        self._blocking.purge(job_id)

    async def jobs(
        self, state: JobState | None, task: str | None, queue: str | None, before: bytes | None, limit: int | None
    ) -> list[JobInfo]:
        """As `Client.jobs`."""
        return self._blocking.jobs(state, task, queue, before, limit)

    async def retry_all(self, task: str | None, queue: str | None) -> int:
        """As `Client.retry_all`."""
        return self._blocking.retry_all(task, queue)

    async def purge_all(self, state: JobState, task: str | None, queue: str | None, before: float | None) -> int:
        """As `Client.purge_all`."""
        return self._blocking.purge_all(state, task, queue, before)

    async def pause_queues(self, queues: Sequence[str], is_paused: bool, by: str) -> list[str]:
        """As `Client.pause`."""
        return self._blocking.pause(queues, is_paused, by)


class _AsyncEndings:
    """As `taskq.aio.AsyncEndings`."""

    def __init__(self, endings: Endings) -> None:
        self._endings = endings
        self.waiting = endings.waiting

    async def next(self, timeout_s: float | None) -> tuple[bytes, Ending | None]:
        """The next job that ended, and how."""
        return self._endings.next(timeout_s)


# -- switching


class _Channel:
    """How the jobs of the rehearsals that go on speak to their fleets, as `taskq.context.Channel` says."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.reporter = cast(Reporter, self)

    def send_checkpoint(self, job_id: bytes, checkpoint: bytes) -> None:
        """Hands a checkpoint to the fleet that has the job."""
        for fleet in self._clock.fleets:
            fleet.keep_checkpoint(job_id, checkpoint)

    def tell(self, job_id: bytes, progress: model.Progress) -> None:
        """As `taskq.reports.Reporter`, but at once."""
        for fleet in self._clock.fleets:
            fleet.note_progress(job_id, (progress.done, progress.total, progress.note))

    def forget(self, _job_id: bytes) -> None:
        """The fleet forgets it when the job has ended."""


_clocks: list[Clock] = []  # of the rehearsals that go on, the last one counts


@contextmanager
def rehearsal(app: TaskQ, settings: Settings) -> Iterator[RehearsedFleet]:
    """Puts a rehearsed fleet in place of the one of an application, while the block runs. One inside another shares
    its clock."""
    clock = _clocks[-1] if _clocks else Clock()
    fleet = RehearsedFleet(app, settings, clock)
    clock.fleets.append(fleet)
    before = [vars(module)["time"] for module in _CLOCKED]
    _clocks.append(clock)
    channel = use_channel(_Channel(clock))
    for module in _CLOCKED:
        vars(module)["time"] = clock
    try:
        with app.use_client(fleet.client, cast(Any, fleet.async_client)):
            yield fleet
    finally:
        for module, time in zip(_CLOCKED, before, strict=True):
            vars(module)["time"] = time
        use_channel(channel)
        _clocks.pop()
        clock.fleets.remove(fleet)
        fleet.close()
