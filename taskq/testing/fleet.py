"""A fleet in this process, for tests: the real core, committer, store, requests and runner, a clock that stands still
until it is moved, and neither processes nor sockets.

    Client -> frames -> hear -> Committer, Requests -> frames -> Client         as with a broker
    run_next: Core.dispatch -> Runner.run, here -> Core.settled -> Committer    as with a consumer

Nothing is decided here but whose turn it is. Jobs run when somebody waits for one, or asks for it (`taskq.testing`).
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, cast

from taskq.broker.consumers.succession import Succession
from taskq.broker.core.core import Core
from taskq.broker.parts import Parts, core_of
from taskq.client.app import TaskQ
from taskq.client.context import RunningJob, job_of_context, set_job_of_context, use_channel
from taskq.client.reports import Reporter
from taskq.client.transport.absence import Absence
from taskq.client.transport.blocking import Client, Endings
from taskq.client.transport.connection import Connection
from taskq.client.transport.items import read_items
from taskq.consumer import runner
from taskq.consumer.runner import Ended, Runner
from taskq.engines.embedded.engine import EmbeddedEngine
from taskq.engines.embedded.journal.memory import MemoryStore
from taskq.engines.embedded.ports import Clients
from taskq.model import job
from taskq.model.attempt import Attempts, Claim, Verdict, unpack
from taskq.model.effects import Key, ProcessExit
from taskq.model.errors import Cancel, JobFailed, JobTimeout, Retry, Snooze, TaskQError
from taskq.model.info.job import JobInfo
from taskq.model.job import JobRow, JobState
from taskq.model.settings import Settings
from taskq.model.spec import Spec
from taskq.model.stored import StoredState
from taskq.protocol import frames as frames_module
from taskq.protocol.endings import Ending
from taskq.protocol.frames import Message
from taskq.protocol.link.batch import jobs_to_send
from taskq.protocol.ops import Op, StartOptions
from taskq.protocol.submissions import Call, Flow, Submission, flow_frame, flow_of, parts_of
from taskq.system.directory import Directory
from taskq.testing.clock import _NEARLY_S, Clock

#: How often to look again for what another thread is running.
_LOOK_AGAIN_S = 0.05


#: Jobs that run inside one another: more are a job that enqueues itself without an end.
_DEEPEST = 50


#: What a job raises for the fleet, and not for the test.
_FOR_THE_FLEET = (Exception, SystemExit, Cancel, JobTimeout, Retry, Snooze)


#: How far a job is: done, total, note.
Progress = tuple[float, float | None, str]

#: A file system in memory, on Linux.
_MEMORY = "/dev/shm"


class _Endless(BaseException):
    """Jobs wait for one another without an end. No error of a job: all of them end, up to the test."""


class _Peer:
    """A client's connection, as the fleet sees it."""

    def __init__(self) -> None:
        self.closed = False
        self.watched: set[bytes] = set()
        self.arrived: deque[Message] = deque()
        self._decoder = frames_module.Decoder()

    def deliver(self, frame: bytes) -> None:
        """A frame for the client."""
        self.arrived.extend(self._decoder.feed(frame))


class _Server(Clients):
    """In place of a `taskq.engines.embedded.server.Server`: clients take everything."""

    def __init__(self) -> None:
        self._messages: list[tuple[Any, Message]] = []

    def hear(self, peer: Any, message: Message) -> None:
        """A client says this."""
        self._messages.append((peer, message))

    def take_messages(self) -> list[tuple[Any, Message]]:
        """What they have said since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def send(self, peer: Any, frame: bytes) -> None:
        """Sends a frame to a client."""
        peer.deliver(frame)

    def reject(self, peer: Any, error: TaskQError) -> None:
        """A client that says what no client says."""
        self.send(peer, frames_module.error_frame(0, error))


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


class _EventLog:
    """In place of a `taskq.broker.events.EventLog`: keeps what came in."""

    def __init__(self, store: MemoryStore) -> None:
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

    def rejected(self, _reason: str, _now: float) -> None:
        """Nobody reads a log."""


class _Runner(Runner):
    """Runs jobs inside other jobs, and in threads with an event loop of their own."""

    def run(self, job: RunningJob) -> Ended:
        """Runs a job to its end; the one that asked for it goes on then."""
        before = job_of_context()
        set_job_of_context(job)
        try:
            return super().run(job)
        finally:
            job.end()
            set_job_of_context(before)

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


class _Consumer:
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


class _Pool:
    """In place of a `taskq.broker.consumers.pool.ConsumerPool`."""

    is_stopping = False

    def __init__(self, core: Core, clock: Clock) -> None:
        self._core = core
        self._clock = clock
        self.by_key: dict[Key, _Consumer] = {}
        self.progress: dict[bytes, Progress] = {}  # of jobs that run

    def is_running(self, job_id: bytes) -> bool:
        """Whether a job runs now."""
        key = self._core.consumer_of(job_id)
        return key is not None and any(
            claim.number == self._core.number_of(key, job_id) for claim in self.by_key[key].claims
        )

    def withdraw(self, job_id: bytes) -> bool:
        """Takes a job back from the consumer it was sent to; returns False if it runs."""
        key = self._core.consumer_of(job_id)
        if key is not None:
            self._take_back(self.by_key[key])
        return self._core.consumer_of(job_id) is None

    def cancel_running(self, _job_id: bytes) -> None:
        """A job that runs here cannot be stopped: whoever asks is on the same stack, or in another thread."""

    def progress_of(self, job_id: bytes) -> Progress | None:
        """How far a running job is, if it said so."""
        return self.progress.get(job_id)

    def take_back_all(self, _now: float) -> None:
        """Takes back what no consumer has started."""
        for slot in self.by_key.values():
            self._take_back(slot)

    def _take_back(self, slot: _Consumer) -> None:
        if slot.waiting:
            slot.waiting.clear()
            if self._core.recalled(slot.key, slot.begun, self._clock.monotonic()):
                self._core.settled(slot.key, Attempts([], [], [], []), self._clock.monotonic(), self._clock.time())

    def claims(self) -> dict[Key, list[Claim]]:
        """What each consumer is running."""
        return {slot.key: slot.claims for slot in self.by_key.values()}


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
        directory = Directory(self._folder / "queue").create()
        self._store = MemoryStore()
        self._core = core_of(settings)
        self._slots = _Pool(self._core, clock)
        self._events = _EventLog(self._store)
        self._server = _Server()
        self._engine = EmbeddedEngine(directory, settings, self._store, clock, self._server)
        parts = Parts(directory, settings, self._engine, self._core, self._events, clock)
        parts.start(self._slots, Succession(0), lambda _reason: None, lambda: 0)
        self._committer, self._scheduler = self._engine.committer, self._engine.scheduler
        self._engine.declare(app.name, app.schedules.declared)
        self._keys = count(1)
        self._has_started = False  # as a consumer: its hooks have run
        self._is_stale = False  # something came in that may be more urgent than what the consumers have
        self.lock = threading.RLock()
        self._settled = threading.Condition(self.lock)
        self.client = InProcessClient(directory, self)
        self.async_client = InProcessAsyncClient(self.client)
        self.after_request: Callable[[], None] | None = None
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
        for slot in self._slots.by_key.values():
            slot.runner.close()
        self.raised.clear()
        self.client.close()
        self._store.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- what clients say

    def hear(self, peer: _Peer, data: bytes) -> None:
        """Frames from a client, each answered before the next."""
        with self.lock:
            for message in frames_module.Decoder().feed(data):
                self._is_stale = True
                self._server.hear(peer, message)
                self._commit()

    def forget(self, peer: _Peer) -> None:
        """A client is gone."""
        peer.closed = True
        self._engine.forget(cast(Any, peer))

    def _commit(self) -> None:
        self._engine.serve(self.clock.monotonic())

    # -- time

    def look_at_the_clock(self) -> None:
        """What is due is queued; what is late expires; limits open."""
        with self.lock:
            wall = self.clock.time()
            self._scheduler.fire_due(wall, wall)
            self._committer.come_due(wall + _NEARLY_S)
            self._committer.expire(wall + _NEARLY_S)
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
            slot = self._choose()
            if slot is None:
                return None
            self._start()
            number, row = slot.waiting.popleft()
            slot.begun, slot.running = number, (threading.get_ident(), self.clock.monotonic())
            task, extra = row.spec.task, _extra_of(row)
            running = RunningJob(number, slot.running[1], row.id, task, row.attempts + 1, row.payload, extra)
            running.clock = self.clock
        verdict, duration_s, outcome = slot.runner.run(running)
        raised = running.raised
        with self.lock:
            attempts = Attempts([number], [verdict], [int(duration_s * 1e6)], [outcome])
            self._core.settled(slot.key, attempts, self.clock.monotonic(), self.clock.time())
            self._slots.progress.pop(row.id, None)
            if verdict == Verdict.SUCCEEDED:
                self._committer.take_children(_submissions(running.children))
            self._leave(slot)
            self._commit()
            if raised is not None:
                self.raised[row.id] = _refusal(row, outcome) if isinstance(raised, runner.Refused) else raised
            self._settled.notify_all()
        if isinstance(raised, _Endless) and not self.is_in_job:
            raise TaskQError(str(raised)) from None
        if raised is not None and not isinstance(raised, _FOR_THE_FLEET):
            raise raised  # Ctrl-C, or pytest.fail() inside a job: meant for the test
        return row.id

    def _start(self) -> None:
        """Before the first job: what a consumer does when it starts. Raises StartFailed if that fails."""
        if not self._has_started:
            self._has_started = True
            self._app.hooks.run_starts()

    def _choose(self) -> _Consumer | None:
        """A free consumer with a job to start."""
        busy = sum(slot.running is not None for slot in self._slots.by_key.values())
        if busy >= _DEEPEST:
            raise _Endless(f"{busy} jobs wait for one another, each for one that it has enqueued: is there an end?")
        if self._is_stale or busy:
            self._slots.take_back_all(0.0)
            self._is_stale = False
        free = self._free_slot()
        if not free.waiting:
            self._dispatch()
            free = self._free_slot()
        return free if free.waiting else None

    def _free_slot(self) -> _Consumer:
        for slot in self._slots.by_key.values():
            if slot.running is None:
                return slot
        slot = _Consumer(next(self._keys), self._app, self._on_item)
        self._slots.by_key[slot.key] = slot
        self._core.joined(slot.key, self.clock.monotonic())
        return slot

    def _leave(self, slot: _Consumer) -> None:
        """A consumer ended its job. One free consumer is enough: so jobs start one by one in the order of the core."""
        slot.running = None
        if sum(other.running is None for other in self._slots.by_key.values()) > 1:
            del self._slots.by_key[slot.key]
            self._core.died(slot.key, [], ProcessExit(stopped=True), self.clock.time())
            slot.runner.close()

    def _dispatch(self) -> None:
        for load in self._core.loads():
            rows, is_all = self._store.lease(*load)
            self._core.loaded(load.partition, rows, is_all)
        wall = self.clock.time()
        self._core.ready.open_due(self.clock.monotonic())
        for key, first, rows in self._core.dispatch(self.clock.monotonic(), wall):
            self._slots.by_key[key].waiting.extend(enumerate(rows, first))

    def _on_item(self, key: Key, job_id: bytes, position: int, item: bytes) -> None:
        with self.lock:
            self._core.yielded(key, job_id, position, [item])
            self._commit()

    def note_progress(self, job_id: bytes, progress: Progress) -> None:
        """A job that runs here tells how far it is."""
        with self.lock:
            if self._core.consumer_of(job_id) is not None:
                self._slots.progress[job_id] = progress

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
            is_so = any(slot.running and slot.running[0] != mine for slot in self._slots.by_key.values())
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


def _submissions(children: Flow) -> list[Submission]:
    """What a job has enqueued for its success, as a broker gets it from a consumer."""
    frames = [flow_frame([Op.CHILDREN, 0], part) for part in parts_of(children)]
    told = [message for frame in frames for message in frames_module.Decoder().feed(frame)]
    return [flow_of(None, 0, False, groups, edges, body) for (_, _, groups, edges), body in told]


def _extra_of(row: JobRow) -> StartOptions:
    """What a consumer is told of a job besides its arguments, but for limits that would hold for the whole test."""
    [(_, _, _, _, *options)] = jobs_to_send([row])
    found: StartOptions = options[0].copy() if options else {}
    found.pop("memory_limit_bytes", None)
    found.pop("cpu_timeout_s", None)
    return found


def _refusal(row: JobRow, outcome: bytes) -> JobFailed:
    """What stands for the error of an attempt that was refused before any code of the job ran, or after."""
    error = unpack(outcome).error
    assert error is not None
    return JobFailed(row.id.hex(), error.type, error.message, error.traceback)


# -- clients


class _Connection(Connection):
    """A connection without a socket."""

    def __init__(self, fleet: InProcessFleet, absence: Absence) -> None:
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


class InProcessClient(Client):
    """The client of a fleet in this process: the real one, on connections without sockets."""

    def __init__(self, directory: Directory, fleet: InProcessFleet) -> None:
        super().__init__(directory, clock=fleet.clock)
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


class InProcessAsyncClient:
    """What `taskq.client.transport.aio.AsyncClient` is to an application: waiting for a job runs it, so nobody needs
    the loop."""

    def __init__(self, blocking: InProcessClient) -> None:
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
        """As `taskq.client.transport.items.read_items`."""
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
    """As `taskq.client.transport.aio.AsyncEndings`."""

    def __init__(self, endings: Endings) -> None:
        self._endings = endings
        self.waiting = endings.waiting

    async def next(self, timeout_s: float | None) -> tuple[bytes, Ending | None]:
        """The next job that ended, and how."""
        return self._endings.next(timeout_s)


# -- switching


class _Channel:
    """How the jobs of the in-process fleets speak to their fleets, as `taskq.client.context.Channel` says."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.reporter = cast(Reporter, self)

    def send_checkpoint(self, job_id: bytes, checkpoint: bytes) -> None:
        """Hands a checkpoint to the fleet that has the job."""
        for fleet in self._clock.fleets:
            fleet.keep_checkpoint(job_id, checkpoint)

    def tell(self, job_id: bytes, progress: job.Progress) -> None:
        """As `taskq.client.reports.Reporter`, but at once."""
        for fleet in self._clock.fleets:
            fleet.note_progress(job_id, (progress.done, progress.total, progress.note))

    def forget(self, _job_id: bytes) -> None:
        """The fleet forgets it when the job has ended."""


_clocks: list[Clock] = []  # of the fleets in this process the last one counts


@contextmanager
def in_process(app: TaskQ, settings: Settings) -> Iterator[InProcessFleet]:
    """Puts a fleet in this process in the place of an application's own while the block runs. One inside another
    shares its clock."""
    clock = _clocks[-1] if _clocks else Clock()
    fleet = InProcessFleet(app, settings, clock)
    clock.fleets.append(fleet)
    _clocks.append(clock)
    channel = use_channel(_Channel(clock))
    try:
        with app.use_client(fleet.client, cast(Any, fleet.async_client), clock):
            yield fleet
    finally:
        use_channel(channel)
        _clocks.pop()
        clock.fleets.remove(fleet)
        fleet.close()
