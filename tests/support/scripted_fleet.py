"""A fleet half that a test scripts, in front of a real engine: consumers that run what they are told to run, a clock that
goes on when a test says, and a client that speaks `QueueApi` in this process.

Place           where an engine keeps its jobs, and how to open it: one subclass for each engine
ScriptedFleet   the real core, without processes; it turns the engine as the broker's loop does
Consumer        begins jobs and reports what became of them, dies, or says nothing
Asking          runs the operations of a client, all at once or bit by bit
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from deaf import Deaf

from taskq.broker.consumers.succession import Succession
from taskq.broker.core.core import Core
from taskq.broker.parts import Parts, core_of
from taskq.client.transport.verbs import Answer, Ask, AskLate, Next, Operation, Verb
from taskq.engines.embedded.engine import EmbeddedEngine
from taskq.engines.embedded.journal.memory import Disk, MemoryStore
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.embedded.journal.store import Store
from taskq.model.attempt import Attempts, Claim, Verdict, pack_failure, pack_success
from taskq.model.constraints import Constraints
from taskq.model.effects import Event, Key, ProcessExit, Success
from taskq.model.job import JobError, JobRow, new_job_ids
from taskq.model.settings import Settings
from taskq.model.spec import Spec
from taskq.protocol.frames import Decoder
from taskq.protocol.link.flight_recorder import FlightRecord
from taskq.protocol.submissions import Call, Submission
from taskq.system.directory import Directory
from taskq.testing.client import InProcessClient, InProcessLine
from taskq.testing.server import InProcessServer

T = TypeVar("T")
SPEC = Spec("t")
#: Longer than an engine waits for more to commit together: two turns make all durable.
TURN_S = 0.025
#: The most time that a test waits for something without a timeout of its own.
LONGEST_S = 60.0


class ScriptedClock:
    """Time that goes on when a test says. A `taskq.system.clock.ClientClock`."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.5e9 + self.now

    def time_ns(self) -> int:
        return round(self.time() * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Place(ABC):
    """Where an engine keeps its jobs."""

    needs_server = False  #: Whether it is made with a `postgres.Server`.
    unsupported: frozenset[str] = frozenset()  #: What the engine refuses: options of jobs, and names that tests give.

    def __init__(self, home: Path) -> None:
        self.directory = Directory(home).create()

    def clock(self) -> ScriptedClock:
        """The clock of all that happens there."""
        return ScriptedClock()

    @abstractmethod
    def open(self, settings: Settings, clock: ScriptedClock) -> Any:
        """Opens the engine, on what an earlier one has left there."""

    @abstractmethod
    def client(self, fleet: ScriptedFleet) -> Any:
        """A client of a fleet, which may have several operations under way."""

    @abstractmethod
    def kill(self, engine: Any) -> None:
        """The process of an engine is killed."""

    def waits(self, _engine: Any) -> bool:
        """Waits for what the engine has asked others. Returns whether the loop is to turn again."""
        return False

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Removes what is not in the directory."""


class EmbeddedPlace(Place):
    """The embedded engine."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.server = InProcessServer()

    def open(self, settings: Settings, clock: ScriptedClock) -> EmbeddedEngine:
        self.server = InProcessServer()
        return EmbeddedEngine(self.directory, settings, self.store(), clock, self.server)

    def client(self, fleet: ScriptedFleet) -> Asking:
        return Asking(fleet, self)

    def kill(self, engine: EmbeddedEngine) -> None:
        engine.store.close()

    @abstractmethod
    def store(self) -> Store:
        """Opens the journal."""


class SQLitePlace(EmbeddedPlace):
    """The embedded engine, with its journal on a disk."""

    def store(self) -> Store:
        return SQLiteStore(self.directory.journal, "memory")  # the machine lives on


class MemoryPlace(EmbeddedPlace):
    """The embedded engine, with a journal in memory."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._disk = Disk()

    def store(self) -> Store:
        return MemoryStore(self._disk)


class Errors(Deaf):
    """What was told as an error: the event and its fields."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def error(self, event: str, **fields: Any) -> None:
        self.told.append((event, fields))


class Told(Deaf):
    """The log: the names of what it was told, and the jobs that it was told of as succeeded."""

    def __init__(self) -> None:
        self.log = Errors()
        self.events: list[str] = []
        self.succeeded: list[bytes] = []

    def notes(self, notes: Iterable[Event]) -> None:
        self.events += [note.event for note in notes]

    def successes(self, done: Iterable[Success], _now: float) -> None:
        self.succeeded += [row.id for row, _, _ in done]


class Consumer:
    """Runs one job at a time: `begin`, and then one of its ends."""

    def __init__(self, fleet: ScriptedFleet, key: Key) -> None:
        self._fleet = fleet
        self.key = key
        self.sent: deque[tuple[int, JobRow]] = deque()
        self.begun = 0  # the number of the last job that it began
        self.running: JobRow | None = None
        fleet.core.joined(key, fleet.clock.now)

    def begin(self) -> bytes | None:
        """Begins the next job. Returns its id; None if there is none for it."""
        assert self.running is None
        if not self.sent:
            self._fleet.turn(2)
        if not self.sent:
            return None
        self.begun, self.running = self.sent.popleft()
        return self.running.id

    def succeed(self, result: bytes | None = None, children: Iterable[Submission] = ()) -> None:
        """The job returns, and has enqueued others for its success."""
        self._report(Verdict.SUCCEEDED, pack_success(self._fleet.clock.time(), 0.0, result), list(children))

    def fail(self, verdict: Verdict = Verdict.FAILED, delay_s: float | None = None, message: str = "no") -> None:
        """The job raises."""
        error = JobError("ValueError", message)
        self._report(verdict, pack_failure(self._fleet.clock.time(), 0.0, error, delay_s))

    def _report(self, verdict: Verdict, outcome: bytes, children: Sequence[Submission] = ()) -> None:
        assert self.running is not None
        self.running = None
        self.report(self.begun, verdict, outcome)
        if children:
            self._fleet.engine.enqueued(list(children))
        self._fleet.turn(2)

    def report(self, number: int, verdict: Verdict, outcome: bytes) -> None:
        """Reports the end of a job, whether it has it or not."""
        clock = self._fleet.clock
        self._fleet.core.settled(self.key, Attempts([number], [verdict], [5], [outcome]), clock.now, clock.time())

    def die(self) -> None:
        """The process is killed."""
        self.die_unsettled()
        self._fleet.turn(2)

    def die_unsettled(self) -> None:
        """The process is killed, and the engine has not taken up yet what follows."""
        del self._fleet.by_key[self.key]
        self._fleet.core.died(self.key, self.claims, ProcessExit(signal="SIGKILL"), self._fleet.clock.time())

    def leave(self) -> None:
        """Ends in good order: nobody is charged."""
        del self._fleet.by_key[self.key]
        self._fleet.core.died(self.key, self.claims, ProcessExit(stopped=True), self._fleet.clock.time())

    def take_back(self) -> None:
        """Loses what it has not begun."""
        if self.sent:
            self.sent.clear()
            clock = self._fleet.clock
            if self._fleet.core.recalled(self.key, self.begun, clock.now):
                self._fleet.core.settled(self.key, Attempts([], [], [], []), clock.now, clock.time())

    @property
    def claims(self) -> list[Claim]:
        """What it is running."""
        return [Claim(self.begun, self._fleet.clock.now)] if self.running else []


class ScriptedFleet:
    """The fleet half. It is the `taskq.engines.contract.Consumers` of its engine as well."""

    is_stopping = False

    def __init__(self, place: Place, clock: ScriptedClock, running: Iterable[FlightRecord] = ()) -> None:
        """
        Args:
            running: the attempts that were running when an earlier fleet died.
        """
        self.clock = clock
        self.next: ScriptedFleet | None = None  # the fleet after this one
        self.told = Told()
        self.by_key: dict[Key, Consumer] = {}
        self.stopped: list[bytes] = []  # jobs that were running when somebody cancelled them
        settings = Settings(keep_results_s=3_600.0)
        self.core: Core = core_of(settings)
        self._place = place
        self.directory = place.directory
        self.engine = place.open(settings, clock)
        parts = Parts(place.directory, settings, self.engine, self.core, cast(Any, self.told), clock)
        parts.recover(running)
        parts.start(self, Succession(0), lambda _by: None, lambda: 0)
        self._keys = 0
        self.client = place.client(self)
        self.turn(2)

    def turn(self, times: int = 1) -> None:
        """Turns the loop."""
        for _ in range(times):
            self.engine.next_at(self.clock.now)
            self.clock.now += TURN_S
            self._turn(self.clock.now)
            while self._place.waits(self.engine):
                self._turn(self.clock.now)

    def _turn(self, now: float) -> None:
        self.engine.gather(now)
        self.engine.step(now)
        if self.core.must_load:
            self.engine.want(self.core.loads())
        self.core.ready.open_due(now)
        self.dispatch()
        self.engine.report(now)

    def dispatch(self) -> None:
        """Sends consumers the jobs that the core has for them."""
        for key, first, rows in self.core.dispatch(self.clock.now, self.clock.time()):
            self.by_key[key].sent.extend(enumerate(rows, first))

    def let_pass(self, seconds: float) -> None:
        """Lets time pass."""
        self.clock.now += seconds
        self.turn(2)

    def consumer(self) -> Consumer:
        """One more consumer."""
        self._keys += 1
        self.by_key[self._keys] = consumer = Consumer(self, self._keys)
        return consumer

    def run_all(self) -> list[bytes]:
        """A new consumer runs all jobs that may start, with success. Returns their ids, in the order of their starts."""
        consumer, ran = self.consumer(), []
        while (job_id := consumer.begin()) is not None:
            ran.append(job_id)
            consumer.succeed()
        consumer.leave()
        return ran

    def calls(self, count: int, **constraints: Any) -> list[Call]:
        """Calls for jobs."""
        own = Constraints(**constraints) if constraints else None
        return [Call(job_id, b"payload", own) for job_id in new_job_ids(count, self.clock.time_ns())]

    def add(self, count: int, spec: Spec = SPEC, **constraints: Any) -> list[bytes]:
        """A client submits jobs. Returns the ids that stand for them."""
        return self.client.submit(spec, self.calls(count, **constraints))

    def close(self) -> None:
        """Stops in good order; if it has died, the last one after it does."""
        if self.next is None:
            self.engine.close(self.clock.now)
        else:
            self.next.close()

    def die(self) -> ScriptedFleet:
        """The broker is killed with all its consumers, and another one starts. Returns the new fleet."""
        rows = [consumer.running for consumer in self.by_key.values() if consumer.running is not None]
        records = [FlightRecord(row.id, row.attempts + 1) for row in rows]
        self._place.kill(self.engine)
        self.next = ScriptedFleet(self._place, self.clock, records)
        return self.next

    # -- what the engine asks

    def is_running(self, job_id: bytes) -> bool:
        return any(each.running is not None and each.running.id == job_id for each in self.by_key.values())

    def withdraw(self, job_id: bytes) -> bool:
        key = self.core.consumer_of(job_id)
        if key is not None:
            self.by_key[key].take_back()
        return self.core.consumer_of(job_id) is None

    def cancel_running(self, job_id: bytes) -> None:
        key = self.core.consumer_of(job_id)
        assert key is not None
        self.stopped.append(job_id)
        self.core.cancel_running(key, job_id, self.clock.now)

    def take_back_all(self, _now: float) -> None:
        for consumer in self.by_key.values():
            consumer.take_back()

    def claims(self) -> dict[Key, list[Claim]]:
        return {key: consumer.claims for key, consumer in self.by_key.items()}

    def interrupt(self, job_ids: Collection[bytes], _why: str) -> None:
        for consumer in list(self.by_key.values()):
            if consumer.running is not None and consumer.running.id in job_ids:
                consumer.leave()

    def progress_of(self, _job_id: bytes) -> None:
        return None


class Asking(InProcessClient):
    """A client in this process, some of whose operations may be under way at once."""

    def __init__(self, fleet: ScriptedFleet, place: EmbeddedPlace) -> None:
        super().__init__(cast(Any, Heard(fleet, place)))

    def begin(self, operation: Operation[T]) -> UnderWay[T]:
        """Runs an operation until it waits for an answer: that comes in a later turn."""
        verb = operation.send(None)
        while not isinstance(verb, (Ask, AskLate, Next, Answer)):
            verb = operation.send(self._do(verb))
        if isinstance(verb, Ask):
            self.fleet.hear(cast(InProcessLine, verb.line), verb.frame)
            verb = Answer(verb.line, verb.number)
        return UnderWay(self, operation, verb)


class Heard:
    """A `taskq.testing.fleet.InProcessFleet`, as far as clients need one: it hears them, and turns while they wait."""

    def __init__(self, fleet: ScriptedFleet, place: EmbeddedPlace) -> None:
        self.clock = fleet.clock
        self.directory = fleet.directory
        self.lock = nullcontext()
        self._fleet = fleet
        self._place = place

    def hear(self, line: InProcessLine, data: bytes) -> None:
        for message in Decoder().feed(data):
            self._place.server.hear(line, message)

    def forget(self, line: InProcessLine) -> None:
        line.closed = True
        self._fleet.engine.forget(cast(Any, line))

    def wait(self, is_over: Callable[[], Any], within_s: float | None) -> None:
        until = self.clock.now + (LONGEST_S if within_s is None else within_s)
        while not is_over():
            if self.clock.now > until:
                assert within_s is not None, "no answer comes"
                raise TimeoutError
            self._fleet.turn()


class UnderWay(Generic[T]):
    """An operation that waits for an answer."""

    def __init__(self, client: Asking, operation: Operation[T], verb: Verb) -> None:
        self._client = client
        self._operation = operation
        self._verb = verb

    def result(self) -> T:
        """Runs it to its end."""
        return self._client.run(self._rest())

    def _rest(self) -> Operation[T]:
        verb = self._verb
        try:
            while True:
                try:
                    value = yield verb
                except Exception as error:
                    verb = self._operation.throw(error)
                else:
                    verb = self._operation.send(value)
        except StopIteration as end:
            return cast(T, end.value)
