"""A world made of chance, to run the real broker in: its loop, core, committer, consumer pool and requests, and no process at all.

    python tests/simulation/simulation.py --seeds 1000000          # as many as you like; a failing one prints how to replay it
    python tests/simulation/simulation.py --from 4711 --seeds 1

Time, sockets, processes and the disk are simulated, and a seed decides everything: when messages arrive, what runs how
long, who is killed when (also in the middle of a commit, or between two answers), which commits a power cut takes. The
same seed gives the same life. Whatever clients and jobs have seen goes to the judge (history.py).
"""

from __future__ import annotations

import argparse
import heapq
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from math import inf
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "support"))  # also as a program of its own

import msgpack
from history import Children, End, Final, Found, History, Kept, Read, Start, check
from history_cancels import Unwanted
from history_consumers import Consumer
from history_limits import LeftOut
from history_turns import Turn
from recorded_disk import RecordedDisk
from simulated_flows import SentFlow, children_frames, flow_of_chance, note_intents, was_called_off
from simulated_limits import CAPACITIES, SentLimited, act_of, note_limits
from simulated_schedules import Planner, note_fires
from simulated_turns import small_turns

from taskq.broker import parts as broker_parts
from taskq.broker.consumers.pool import ConsumerPool
from taskq.broker.consumers.silence import LOOK_EVERY_S
from taskq.broker.consumers.succession import ProcessState, Succession
from taskq.broker.consumers.succession import Start as SlotStart
from taskq.broker.consumers.supervisor import Supervisor
from taskq.broker.core.core import Core
from taskq.broker.core.earliest import Earliest
from taskq.broker.events import EventLog
from taskq.broker.loop import Broker
from taskq.client.transport.operations import CANCEL_AGAIN_S
from taskq.engines.embedded.committer import FULL_AGAIN_S, Committer
from taskq.engines.embedded.engine import EmbeddedEngine, Kinds
from taskq.engines.embedded.journal.memory import MemoryStore
from taskq.engines.embedded.journal.memory_records import Record
from taskq.engines.embedded.ports import Clients
from taskq.engines.embedded.scheduler import Scheduler
from taskq.model.attempt import Attempts, Claim, Reason, Usage, Verdict, pack_failure, pack_success
from taskq.model.errors import StoreFull
from taskq.model.job import JobError
from taskq.model.limits import TURN_US
from taskq.model.settings import Settings
from taskq.model.spec import Spec
from taskq.model.stored import StoredJob
from taskq.protocol import frames as frames_module
from taskq.protocol.link.batch import pack_batch, read_batch
from taskq.protocol.link.flight_recorder import FlightRecord
from taskq.protocol.link.output import Stacks
from taskq.protocol.link.reports import boot_failed_frame, checkpoint_frame, outcomes_frame, ready_frame
from taskq.protocol.ops import Op
from taskq.protocol.submissions import Call
from taskq.system.directory import Directory
from taskq.system.turns import TurnTimes

_NOWHERE = Directory(Path(tempfile.gettempdir()) / "taskq-simulation-has-no-directory")
_WALL_S = 1_700_000_000.0
#: After the faults everything must end within this time.
_QUIET_S = 300.0
#: Shorter than in a real fleet: a consumer that hangs at its start is killed within the patience of a life.
_BOOT_TIMEOUT_S = 2.0
#: How often a client hands in jobs that are refused, of which it cannot know whether an earlier broker took them in.
_MOST_TRIES = 100

TASKS = (
    *("ok", "ok", "ok", "ok", "slow", "fails", "fails_once", "poison", "poison_once", "times_out", "stubborn"),
    *("snoozes", "snoozes_and_fails", "gives_up", "goes_on", "has_children", "unreadable", "unreadable_once"),
    *("fat", "fat_once"),
)
#: What a job may use that has a limit of memory, and how fast one grows that does not heed it.
_MEMORY_LIMIT_BYTES = 64 << 20
_GROWS_BYTES_PER_S = 1 << 30


class BrokerKilled(BaseException):
    """Chance has killed the broker, here."""


class Silent:
    """A log that keeps nothing."""

    def __getattr__(self, _level: str) -> Callable[..., None]:
        return lambda *_, **__: None


def digest(payload: bytes) -> str:
    """Tells payloads apart."""
    return sha256(payload).hexdigest()[:16]


def spec_of_chance(random: Random, tasks: Sequence[str] = TASKS) -> Spec:
    """A task, and how it is to be run."""
    task = random.choice(tasks)
    return Spec(
        task,
        random.choice(("a", "b")),
        retries=random.choice((0, 1, 2)),
        timeout_s=0.05 if task in ("times_out", "stubborn") else None,
        memory_limit_bytes=_MEMORY_LIMIT_BYTES if task in ("fat", "fat_once") else None,
        max_crashes=random.choice((1, 2, 3)),
        backoff_s=random.choice((None, None, (0.01, 2.0))),
        crash_queue=random.choice((None, None, "b", "c")),
    )


def success_of(start: Start) -> bytes:
    """The outcome of an attempt that succeeds."""
    return pack_success(1.0, 0.1, f"{start.process} {start.attempt}".encode())


#: Verdicts with outcomes that nobody can read, or that make no sense.
UNREADABLE: tuple[tuple[int, bytes], ...] = (
    (Verdict.FAILED, b"\xc1 garbage"),
    (Verdict.FAILED, pack_success(1.0, 0.1, b"no error")),
    (Verdict.SNOOZED, pack_failure(1.0, 0.1, JobError("E", "snoozes without end"))),
    (Verdict.CANCELLED, b""),
    (77, pack_failure(1.0, 0.1, JobError("E", "of no kind"))),
)


# -- what a planted bug may replace


@dataclass
class Parts:
    """Where the world gets its pieces from; the tests that plant bugs put in broken ones."""

    store: type[MemoryStore] = MemoryStore
    core: type[Core] = Core
    committer: type[Committer] = Committer
    pool: type[SimPool] | None = None
    supervisor: type[SimSupervisor] | None = None
    scheduler: type[Scheduler] = Scheduler
    death_told_after_s: float = 0.0  # besides the usual moment
    reads_words_of_predecessor: bool = False
    take_back_is_heeded: bool = True
    forgets_what_it_sends: bool = False
    power_cuts: bool = True
    plans_schedules: bool = True
    deafness: float = 0.05  # how likely it is that a consumer goes deaf, of all misfortunes
    commit_kills: float = 0.002  # how likely it is that the broker dies before a commit, and behind it
    full_disks: float | None = None  # how likely it is that a commit finds the disk full; None: of some lives it is
    turn_us: float | None = None  # what a turn of the broker takes on; None: by chance
    asks: tuple[float, ...] = (2, 2, 3, 0.5, 0.5, 0.7)  # how often clients do each of what `Client._act` names
    tasks: Sequence[str] = TASKS  # of the jobs of workflows


# -- consumers


class SimCounters:
    """The counters block, without a lock: steps of the world do not overlap."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.claimed = self.finished = self.valid_from = self.overdue = self.jobs_done = 0
        self.started_at = self.busy_s = 0.0
        self.slots = 1
        self.is_locked = False  # its process was stopped while it held the lock

    def take_back(self, sent: int) -> int | None:
        if self.is_locked:
            return None
        if self._parts.take_back_is_heeded:
            self.valid_from = sent + 1
        return self.claimed

    def opened(self) -> None:
        pass

    def read(self) -> list[Claim]:
        return [Claim(self.claimed, self.started_at)] if self.claimed > self.finished else []


class SimSlot:
    """An incarnation of a consumer, with its process."""

    def __init__(self, world: World, key: int, start: SlotStart, code: int) -> None:
        self.world = world
        self.key, self.pid = key, key
        self.number, self.replaces = start
        self.code = code  # what the supervisor believes
        self.loaded, self.is_broken = world.code, world.code_is_broken  # what was there
        self.server = world.fork_server
        self.state = ProcessState.STARTING
        self.started_at = world.now
        self.counters = SimCounters(world.parts)
        self.inbox = self
        self.socket, self.output, self.death_fd = (key, "socket"), (key, "output"), (key, "death")
        self.unsent = self
        self.lines = SimpleNamespace(flush=list, is_within_line=False)
        self.writer = 0
        self.last_lines: dict[int, list[str]] = {}
        self.stacks = Stacks()
        self.excerpts: dict[int, Any] = {}
        self.killed_for = ""
        self.peak_bytes: int | None = None
        self.cpu = SimpleNamespace(sample=lambda _now: None, percent=lambda _now: None)
        self.boot_error: tuple[str, str] | None = None
        self.messages = 0
        self.kill_at: float | None = None
        self.timed_out: int | None = None
        self.over_limit = None
        self.is_stopped = False
        self.exit_code: int | None = None
        self.announced: set[int] = set()
        self.progress: dict[bytes, Any] = {}
        self.children: dict[int, list[Any]] = {}
        self.is_alive = True
        self.is_paused = False
        self.is_deaf = False  # a job has closed the descriptor on which it waits for more
        self.name = f"c{key}"
        self._queue: deque[tuple[int, bytes, str, int, bytes, dict[str, Any]] | None] = deque()
        self._free_at = 0.0
        self._is_busy = False
        self._grows = False  # its job takes more and more memory
        self._retires = False
        self._ended: list[tuple[int, int, int, bytes]] = []  # the outbox
        self._oldest_at = 0.0
        self._sent: deque[tuple[list[Any], memoryview]] = deque()  # in the socket, not read by the broker
        self._finish_at_signal: Callable[[], None] | None = None

    # the broker's side

    def put(self, message: bytes) -> bool:
        world = self.world
        self._free_at = max(self._free_at, world.now + world.delay())  # a pipe keeps the order
        world.later(self._free_at - world.now, lambda: self._receive(message))
        return True

    def send(self, batch: Any) -> bool:
        if self.world.parts.forgets_what_it_sends:
            self.world.broker.store.forget(batch.rows)  # type: ignore[union-attr]
        return self.put(pack_batch(batch))

    def read_messages(self, _most_bytes: int = 0) -> list[tuple[list[Any], memoryview]]:
        if not self._sent and not self.is_alive:
            raise EOFError
        messages = list(self._sent)
        self._sent.clear()
        return messages

    def read_output(self) -> list[str]:
        return []

    def read(self) -> Attempts:
        """What it had not sent when it died."""
        return Attempts(*map(list, zip(*self._ended, strict=True))) if self._ended else Attempts([], [], [], [])

    def usage(self) -> Usage | None:
        if not self.is_alive:
            return None
        grown_s = self.world.now - self.counters.started_at if self._grows else 0.0
        return Usage(0.0, (16 << 20) + int(grown_s * _GROWS_BYTES_PER_S))

    def ask_for_stacks(self, _number: int) -> None:
        pass

    def signal_timeout(self, number: int, _reason: Reason) -> None:
        self.counters.overdue = number
        self.world.later(self.world.delay(), self._on_signal)

    def kill(self, why: str = "") -> None:
        self.killed_for = self.killed_for or why
        is_ours = self.world.broker is not None and self.world.broker._stop_at is None and self.timed_out is None
        if self.is_alive and self._is_busy and self.state is ProcessState.RETIRING and is_ours:
            self.world.history.interrupted.append(self.name)
        if self.is_alive and self.is_stopped:
            self.world.history.blameless.add(self.name)
        self.die()

    def opened(self) -> None:
        pass

    # the process's side

    def tell(self, frame: bytes) -> None:
        self._sent.extend(frames_module.Decoder().feed(frame))
        self.world.later(self.world.delay(), lambda: self.world.ready(self.socket))

    def boot(self) -> None:
        world = self.world
        if not self.is_alive:
            return
        if self.is_paused:
            world.later(0.05, self.boot)
        elif self.is_broken:
            self.tell(boot_failed_frame(JobError("E", "this version does not work")))
            self.die(exit_code=1)
        elif not world.has_faults or world.random.random() > 0.03:  # else it hangs
            self.tell(ready_frame(self.pid))
            self._step()

    def _receive(self, message: bytes) -> None:
        if not self.is_alive or self.is_deaf:
            return
        if message == b"":
            self._retires = True
        else:
            first, jobs = read_batch(message)
            if not jobs:
                self._queue.append(None)
            self._queue.extend(
                (number, *job, {}) if len(job) == 4 else (number, *job) for number, job in enumerate(jobs, first)
            )
        self._step()

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        if self.is_alive and not self.is_paused:
            self.is_paused = True
            self.world.history.stops.append((self.name, self.world.now, self.world.now + seconds))
            self.counters.is_locked = self.world.random.random() < 0.2
            self.world.later(seconds, self._resume)

    def _resume(self) -> None:
        self.is_paused = self.counters.is_locked = False
        self._report_if_late()
        self._step()

    def _step(self) -> None:
        while self.is_alive and not self.is_paused and not self._is_busy:
            if not self._queue:
                self._report()
                if self._retires and (not self.world.has_faults or self.world.random.random() > 0.05):  # else it hangs
                    self.die(exit_code=0)
                return
            job = self._queue.popleft()
            if job is None:
                self.tell(outcomes_frame([], [], [], [], []))
                continue
            number, job_id, task, attempt, payload, extra = job
            if number < self.counters.valid_from:
                continue
            self.counters.claimed, self.counters.started_at = number, self.world.now
            self._begin(number, job_id, task, attempt, payload, extra)

    def _begin(
        self, number: int, job_id: bytes, task: str, attempt: int, payload: bytes, extra: dict[str, Any]
    ) -> None:
        world = self.world
        self._is_busy, self._grows = True, False
        self.running = FlightRecord(job_id, attempt)
        start = Start(job_id.hex(), attempt, self.name, world.now, digest(payload))
        world.history.starts.append(start)
        seconds = world.random.expovariate(1 / 0.003)
        is_well, verdict = True, Verdict.FAILED
        match act_of(task, job_id):
            case "slow":
                seconds = world.random.uniform(0.1, 0.6)
            case "hangs":
                seconds = world.random.uniform(2.0, 6.0)
            case "fails":
                is_well = False
            case "fails_once":
                is_well = attempt > 1
            case "poison":
                world.later(seconds, lambda: self.die_in(number))
                return
            case "poison_once" if attempt == 1:
                world.later(seconds, lambda: self.die_in(number))
                return
            case "times_out" | "stubborn":
                seconds, is_well = 1e9, False
            case "fat":
                seconds, self._grows = 1e9, True
            case "fat_once" if attempt == 1:
                seconds, self._grows = 1e9, True
            case "snoozes" if attempt <= 3:
                is_well, verdict = False, Verdict.SNOOZED
            case "snoozes_and_fails":
                is_well, verdict = False, Verdict.SNOOZED if attempt % 2 and attempt < 9 else Verdict.FAILED
            case "gives_up":
                is_well, verdict = False, Verdict.CANCELLED
            case "goes_on":
                self._go_on(start, extra.get("checkpoint", b"").decode())
                if attempt < 3:
                    world.later(seconds, lambda: self.die_in(number))
                    return
            case "unreadable":
                world.later(seconds, lambda: self._finish(number, start, False, is_readable=False))
                return
            case "unreadable_once" if attempt == 1:
                world.later(seconds, lambda: self._finish(number, start, False, is_readable=False))
                return
            case "has_children":
                world.later(seconds, lambda: self._enqueue_children(number, start))
                return
        finish = lambda: self._finish(number, start, is_well, verdict)  # noqa: E731
        self._finish_at_signal = finish if task == "times_out" else None
        world.later(seconds, finish)

    def _go_on(self, start: Start, found: str) -> None:
        """A job looks for what was kept, and keeps something: the kernel has it when the call returns."""
        history = self.world.history
        history.found.append(Found(start.job, self.name, start.at, found))
        kept = f"{start.attempt} in {self.name}"
        history.kept.append(Kept(start.job, start.attempt, self.name, self.world.now, kept))
        self.tell(checkpoint_frame(bytes.fromhex(start.job), kept.encode()))

    def _enqueue_children(self, number: int, start: Start) -> None:
        """What a job enqueues for its success is sent before its end, whatever that will be."""
        world = self.world
        random, history = world.random, world.history
        flow = flow_of_chance(random, lambda: spec_of_chance(random), [bytes.fromhex(start.job)], world.wall)
        note_intents(history, flow, digest)
        outcome = digest(success_of(start))
        history.children.append(Children(*start[:3], outcome, tuple(call.id.hex() for _, call in flow)))
        frames = children_frames(random, number, flow)
        end = random.choice(("dies", "fails", "succeeds", "succeeds", "succeeds"))
        self._send_children(number, start, frames[: random.randint(1, len(frames))] if end == "dies" else frames, end)

    def _send_children(self, number: int, start: Start, frames: list[bytes], end: str) -> None:
        if not self._is_at(number):
            return
        if self.is_paused or frames:
            if not self.is_paused:
                self.tell(frames[0])
                frames = frames[1:]
            self.world.later(self.world.delay(), lambda: self._send_children(number, start, frames, end))
        elif end == "dies":
            self.die()
        else:
            self._finish(number, start, is_well=end == "succeeds")

    def _is_at(self, number: int) -> bool:
        return self.is_alive and self._is_busy and self.counters.claimed == number

    def die_in(self, number: int) -> None:
        if self._is_at(number):
            self.die()

    def _on_signal(self) -> None:
        if (
            self.is_alive
            and self._is_busy
            and self.counters.overdue == self.counters.claimed
            and self._finish_at_signal
        ):
            self._finish_at_signal()

    def _finish(
        self,
        number: int,
        start: Start,
        is_well: bool,
        verdict: Verdict = Verdict.FAILED,
        *,
        is_readable: bool = True,
    ) -> None:
        world = self.world
        if not self._is_at(number):
            return
        if self.is_paused:
            world.later(0.05, lambda: self._finish(number, start, is_well, verdict, is_readable=is_readable))
            return
        is_snooze = verdict == Verdict.SNOOZED and not is_well
        world.history.ends.append(End(*start[:3], world.now, is_well, is_snooze))
        told = f"{start.process} {start.attempt}".encode()
        wish_s = world.random.choice((0.01, 0.5)) if is_snooze else None
        failure = pack_failure(1.0, 0.1, JobError("E", told.decode()), wish_s)
        told_as = (int(Verdict.SUCCEEDED), success_of(start)) if is_well else (int(verdict), failure)
        if not is_readable:
            told_as = world.random.choice(UNREADABLE)
        if not self._ended:
            self._oldest_at = world.now
            world.later(0.02, self._report_if_late)
        self._ended.append((number, told_as[0], 3_000, told_as[1]))
        self.counters.finished = number
        self.counters.jobs_done += 1
        self._is_busy = False
        self._finish_at_signal = None
        self._step()

    def _report_if_late(self) -> None:
        if self.is_alive and not self.is_paused and self._ended and self.world.now - self._oldest_at >= 0.0199:
            self._report()

    def _report(self) -> None:
        if self._ended:
            numbers, verdicts, durations_us, outcomes = zip(*self._ended, strict=True)
            lengths = [len(outcome) for outcome in outcomes]
            self.tell(outcomes_frame(numbers, verdicts, durations_us, lengths, outcomes))
            self._ended.clear()

    def die(self, *, exit_code: int = -9, told: bool = True) -> None:
        """The end of the process, of whatever kind."""
        if not self.is_alive:
            return
        self.is_alive = False
        self.exit_code = exit_code
        is_kill = exit_code < 0
        if is_kill:
            self.world.history.deaths[self.name] = self.world.now
            if self._is_busy:
                self.world.records[self.key] = self.running
        if told:
            after_s = self.world.parts.death_told_after_s if is_kill else 0.0
            self.world.later(self.world.delay() + after_s, lambda: self.world.ready(self.death_fd))


class SimForkServer:
    """A process that consumers are forked from: they die with it."""

    ending = ""

    def has_died(self) -> bool:
        return bool(self.ending)


class SimSupervisor(Supervisor):
    """The real supervisor, with processes of chance."""

    def __init__(self, world: World, settings: Settings) -> None:
        Succession.__init__(self, settings.consumers)
        self._world = world
        self._settings = settings
        self._servers = None
        self._has_started = False
        self.not_startable = []
        self._next_kill = Earliest(self._kill_moments)
        self._last_words: dict[int, SimSlot] = {}

    def _spawn(self, start: SlotStart, now: float) -> SimSlot:  # type: ignore[override]
        world = self._world
        consumer = SimSlot(world, next(world.keys), start, self.code)
        self.consumers[consumer.key] = consumer  # type: ignore[assignment]
        consumer.kill_at = now + _BOOT_TIMEOUT_S
        predecessor = self._last_words.pop(start.number, None)
        if predecessor is not None:
            consumer._sent.extend(predecessor._sent)
        world.later(world.random.uniform(0.05, 0.2), consumer.boot)
        return consumer

    def _clear_away(self, consumer: Any) -> int | None:
        exit_code: int | None = consumer.exit_code
        return exit_code

    def _has_memory_run_out(self) -> bool:
        return False

    def keep_last_words(self, consumer: SimSlot) -> None:
        self._last_words[consumer.number] = consumer

    def clear_record(self, consumer: Any) -> None:
        self._world.records.pop(consumer.key, None)

    @property
    def is_whole(self) -> bool:
        """Whether each number has its consumer, and none waits to be replaced."""
        ready = sorted(consumer.number for consumer in self.consumers.values() if consumer.state is ProcessState.READY)
        return not self.is_reloading and ready == list(range(1, self._settings.consumers + 1))


# -- the broker's surroundings


class SimSelector:
    """What is registered, and what of it is ready."""

    def __init__(self) -> None:
        self._callbacks: dict[Any, Callable[[int], None]] = {}
        self._ready: list[Any] = []

    def register(self, token: Any, _events: int, callback: Callable[[int], None]) -> None:
        self._callbacks[token] = callback

    def unregister(self, token: Any) -> None:
        del self._callbacks[token]

    def get_map(self) -> dict[Any, Callable[[int], None]]:
        return self._callbacks

    def make_ready(self, token: Any) -> None:
        self._ready.append(token)

    def select(self, _timeout_s: float) -> list[tuple[Any, int]]:
        tokens, self._ready = self._ready, []
        ready = [(token, self._callbacks[token]) for token in dict.fromkeys(tokens) if token in self._callbacks]
        return [(SimpleNamespace(data=self._guarded(token, callback)), 1) for token, callback in ready]

    def _guarded(self, token: Any, callback: Callable[[int], None]) -> Callable[[int], None]:
        return lambda mask: callback(mask) if token in self._callbacks else None


class SimServer(Clients):
    """Frames to and from the clients of one broker."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._messages: list[tuple[Peer, tuple[list[Any], memoryview]]] = []
        self._decoder = frames_module.Decoder()

    def arrive(self, peer: Peer, frame: bytes) -> None:
        self._messages += [(peer, message) for message in frames_module.Decoder().feed(frame)]

    def take_messages(self) -> list[tuple[Peer, tuple[list[Any], memoryview]]]:
        messages, self._messages = self._messages, []
        return messages

    def send(self, peer: Any, frame: bytes) -> None:
        self._world.maybe_kill_broker(0.0005)
        peer.deliver(frame)

    def reject(self, _peer: Any, error: Exception) -> None:
        raise AssertionError(f"a client of ours was rejected: {error}")

    def shut(self) -> None:
        pass


class Peer:
    """A client's connection to one broker. Frames arrive in order."""

    def __init__(self, client: Client, broker: SimBroker) -> None:
        self.client, self.broker = client, broker
        self.closed = False
        self.watched: set[bytes] = set()
        self._free_at = {"out": 0.0, "in": 0.0}

    def _when(self, way: str) -> float:
        world = self.client.world
        self._free_at[way] = at = max(self._free_at[way], world.now + world.delay())
        return at - world.now

    def send(self, frame: bytes) -> None:
        """From the client to the broker."""
        self.client.world.later(self._when("out"), lambda: self._arrive(frame))

    def _arrive(self, frame: bytes) -> None:
        if self.broker.is_alive:
            self.broker.server.arrive(self, frame)
            self.client.world.wake_broker()

    def deliver(self, frame: bytes) -> None:
        """From the broker to the client; what the kernel has taken arrives, even when the broker is dead."""
        for envelope, body in frames_module.Decoder().feed(frame):
            self.client.world.later(self._when("in"), lambda e=envelope, b=bytes(body): self.client.hear(self, e, b))


class SimBroker(Broker):
    """The real loop in a simulated process."""

    def __init__(self, world: World) -> None:
        given, settings = world.parts, world.settings
        self.is_alive = True
        self.store = SimStore.on(world)
        core = given.core((), world.memory_bytes, 0.1, capacities=CAPACITIES)
        self._supervisor = self.supervisor = (given.supervisor or SimSupervisor)(world, settings)
        self._events = EventLog(Silent(), self.supervisor.consumers.get, tells_enqueued=False)
        self.server = SimServer(world)
        kinds = Kinds(given.committer, given.scheduler)
        self.engine = EmbeddedEngine(_NOWHERE, settings, self.store, world, self.server, kinds)
        parts = broker_parts.Parts(_NOWHERE, settings, self.engine, core, self._events, world)
        parts.turns = TurnTimes(lambda: 0.0)  # the kernel's clock of CPU time would take a fifth of a life
        records, world.records = list(world.records.values()), {}
        parts.recover(records)
        self._selector = self.selector = SimSelector()  # type: ignore[assignment]
        self._pool = (given.pool or SimPool)(
            parts,
            self._events,
            self._supervisor,
            self._selector,  # type: ignore[arg-type]
            lambda: None,
            lambda _message: None,
        )
        self._pool.parts = given
        parts.start(self._pool, self._supervisor, self._stop, self._reload_when_asked)
        self._begin(parts)
        self._timers.every(0.1, self._pool.announce, world.now)
        self._timers.every(LOOK_EVERY_S, self._pool.end_the_silent, world.now)
        self._world = world
        self.asked_code = 0  # what there was when it was asked to load it

    def _reload(self) -> int:
        self.asked_code = self._world.code
        return super()._reload()

    def _stop(self, reason: str) -> None:
        self._world.rests_from = min(self._world.rests_from, self._world.now)
        super()._stop(reason)

    def _tell_guardian(self, message: list[Any]) -> None:
        pass


class SimPool(ConsumerPool):
    """The real consumer pool; a planted bug lets it confuse incarnations."""

    parts: Parts

    def _on_consumer(self, consumer: Any, mask: int) -> None:
        super()._on_consumer(consumer, mask)
        if consumer._sent:  # it was not read: then a real selector has it again in the next turn
            consumer.world.ready(consumer.socket)

    def _hear_last_words(self, consumer: Any) -> None:
        if self.parts.reads_words_of_predecessor:
            self._supervisor.keep_last_words(consumer)  # type: ignore[attr-defined]
            self._selector.unregister(consumer.output)
            if consumer.socket in self._selector.get_map():
                self._selector.unregister(consumer.socket)
            return
        super()._hear_last_words(consumer)


class SimStore:
    """Puts the broker's possible death before and after each commit, and notes what was removed, as it was then: the
    same commit may have ended it."""

    @staticmethod
    def on(world: World) -> Any:
        store = world.parts.store(world.disk)
        commit, put, drop = store.commit, store._put, store._drop

        def counted_put(record: Record) -> None:
            world.rows_of_turn += 1
            put(record)

        def counted_drop(record: Record) -> None:
            world.rows_of_turn += 1
            drop(record)

        def dangerous_commit() -> None:
            world.maybe_kill_broker(world.parts.commit_kills)
            if world._is_dangerous and store._changes and world.has_faults and world.random.random() < world.full_disks:
                world.history.full_at.append(world.now)
                raise StoreFull("the disk is full")
            commit()
            world.maybe_kill_broker(world.parts.commit_kills)

        remove = store.remove

        def noted_remove(jobs: Sequence[StoredJob]) -> None:
            world.at_removal.update((job.row.id, store._jobs[job.row.id]) for job in jobs)
            remove(jobs)

        store._put, store._drop = counted_put, counted_drop  # type: ignore[method-assign]
        store.commit = dangerous_commit  # type: ignore[method-assign]
        store.remove = noted_remove  # type: ignore[method-assign]
        return store


# -- clients


@dataclass
class Waiting:
    """A submit frame without an answer."""

    spec: Spec
    ids: list[bytes]
    payloads: list[bytes]

    def frame(self, request: int, resend: bool) -> bytes:
        """The frame, as it is sent for the first time, or again."""
        lengths = [len(payload) for payload in self.payloads]
        envelope = [Op.SUBMIT, request, self.spec.to_wire(), resend, True, b"".join(self.ids), lengths]
        return frames_module.frame(envelope, self.payloads)


class Client:
    """An application: enqueues, watches, cancels, and believes only what it is told."""

    def __init__(self, world: World, number: int, frames: int) -> None:
        self.world = world
        self.name = f"p{number}"
        self._left = frames
        self._retries = world.random.randint(0, 8)
        self._pace_s = world.random.choice((0.02, 0.02, 0.2))
        self._requests = count(1)
        self._unanswered: dict[int, Waiting | SentFlow | SentLimited] = {}
        self._cancels: dict[int, bytes] = {}
        self._unwanted: set[bytes] = set()  # running jobs that are being stopped
        self._asked: dict[int, tuple[Op, Any]] = {}
        self._sent_again: Counter[int] = Counter()  # submit frames: how many times
        self._right_behind: set[int] = set()  # cancels that were sent right behind the submit frame of their job
        self._mine: list[bytes] = []  # acknowledged
        self._watched: set[bytes] = set()
        self._peer: Peer | None = None
        # a full disk makes fires late, which may be missed then: tests/simulation/test_scheduler.py
        schedules = world.random.choice((0, 1, 2)) if world.parts.plans_schedules and not world.full_disks else 0
        self._planner = Planner(self, schedules, lambda: next(self._requests), digest)
        world.later(world.random.uniform(0.1, 0.3), self._act)

    @property
    def is_done(self) -> bool:
        return self._left == 0 and not self._unanswered and not self._watched and self._planner.is_done

    def knows(self, ids: Iterable[bytes]) -> None:
        """It was told that there are these jobs: what becomes of them?"""
        history = self.world.history
        read = {read.job for read in history.reads[-50:]}
        for job_id in ids:
            history.acked.setdefault(job_id.hex(), self.world.now)
            self._mine.append(job_id)
            if job_id.hex() not in read:
                self._watched.add(job_id)
        if self._peer is not None:
            self._peer.send(frames_module.frame([Op.WATCH, b"".join(sorted(self._watched))]))

    def purge(self, job_id: bytes) -> None:
        """Asks for the removal of a job."""
        if self._connected() is not None:
            self.world.history.purges.add(job_id.hex())
            self._ask(Op.PURGE, job_id)

    def _act(self) -> None:
        """Does the next thing, again and again."""
        random = self.world.random
        if (peer := self._connected()) is not None:
            self._planner.act(peer, is_over=self._left == 0 and not self.world.has_faults)
            if self._left:
                self._left -= 1
                kinds = (
                    self._enqueue,
                    self._enqueue_flow,
                    self._enqueue_limited,
                    self._enqueue_urgent,
                    self._change_mind,
                    self._say_many_things,
                )
                random.choices(kinds, self.world.parts.asks)[0]()
            if self._left and random.random() < 0.1 and self._watched:
                self._cancel(random.choice(sorted(self._watched)), also_running=random.random() < 0.5)
            if random.random() < 0.05 and self._unanswered:
                self._submit_again(random.choice(sorted(self._unanswered)))
            self._operate()
        if not self.is_done or self._left or self.world.is_paused:
            self.world.later(random.expovariate(1 / self._pace_s), self._act)

    def _operate(self) -> None:
        """Does what an operator does; queues are not left paused for long."""
        random, history = self.world.random, self.world.history
        roll = random.random()
        if roll < 0.04 and self._left:
            self._ask(Op.PAUSE, random.choice(("a", "b")))
        elif roll < 0.14 and self.world.is_paused:
            history.resumes.append(self.world.now)
            self._ask(Op.PAUSE, None)
        elif roll < 0.18 and self._left and self._mine:
            self.purge(random.choice(self._mine))
        elif roll < 0.28 and self._left:
            history.retried_all = True
            self._ask(Op.RETRY_ALL, None)

    def _ask(self, op: Op, about: Any) -> None:
        assert self._peer is not None
        request = next(self._requests)
        self._asked[request] = op, about
        match op:
            case Op.PAUSE:
                fields = [[] if about is None else [about], about is not None, self.name]
            case Op.RETRY_ALL:
                fields = [None, None, None]
            case _:
                fields = [about]
        self._peer.send(frames_module.frame([op, request, *fields]))

    def _answered(self, op: Op, about: Any) -> None:
        history = self.world.history
        if op == Op.PAUSE and about is not None:
            history.pauses.append((about, self.world.now))
        elif op == Op.PURGE:
            history.purged.setdefault(about.hex(), self.world.now)
        elif op == Op.RETRY:
            history.requeued[about.hex()] += 1

    def _connected(self) -> Peer | None:
        broker = self.world.broker
        if self._peer is not None and (self._peer.broker is not broker or not self._peer.broker.is_alive):
            self._peer = None
        if self._peer is None and broker is not None and broker.is_alive:
            self._peer = Peer(self, broker)
            for request in sorted(self._unanswered):
                self._submit(request, resend=True)
            if self._watched:
                self._peer.send(frames_module.frame([Op.WATCH, b"".join(sorted(self._watched))]))
        return self._peer

    def _enqueue(self) -> None:
        random = self.world.random
        self._enqueue_plain(spec_of_chance(random), random.choice((1, 1, 2, 5, 20)))

    def _enqueue_urgent(self) -> None:
        """Jobs of the highest priority, of which one may take very long, and work for the others in the meantime."""
        random = self.world.random
        queue = random.choice(("a", "b"))
        if random.random() < 0.5:
            self._enqueue_plain(Spec("slow", queue), 20)
        for task, many in (("hangs", random.choice((0, 1))), ("ok", random.randint(1, 3))):
            self._enqueue_plain(Spec(task, queue, priority=9), many)

    def _change_mind(self) -> None:
        """Enqueues a job that takes long, and cancels it soon, whether it runs or not."""
        random = self.world.random
        (job_id,) = self._enqueue_plain(Spec("hangs", random.choice(("a", "b")), retries=random.choice((0, 2))), 1)
        self.world.later(random.uniform(0.05, 0.6), lambda: self._cancel_again(job_id))

    def _say_many_things(self) -> None:
        """Sends a lot at once, without waiting for an answer: each must find what was said before it."""
        random = self.world.random
        for job_id in self._enqueue_plain(Spec("ok", random.choice(("a", "b"))), random.choice((1, 5, 10))):
            if random.random() < 0.7 and self._is_first(job_id):
                self._right_behind.add(self._cancel(job_id, also_running=random.random() < 0.5))
        mine = random.sample(self._mine, min(len(self._mine), 10))
        for job_id in mine if self._left else ():
            roll = random.random()
            if roll < 0.4:
                self._cancel(job_id, also_running=random.random() < 0.5)
            elif roll < 0.5:
                self.purge(job_id)
            elif roll < 0.7:
                self.world.history.retried.add(job_id.hex())
                self._ask(Op.RETRY, job_id)

    def _is_first(self, job_id: bytes) -> bool:
        """Whether a job stands in a frame that was sent once, over the connection that there is."""
        return all(
            job_id not in sent.ids or request not in self._sent_again for request, sent in self._unanswered.items()
        )

    def _enqueue_plain(self, spec: Spec, count: int) -> list[bytes]:
        random = self.world.random
        ids = [random.randbytes(16) for _ in range(count)]
        if not ids:
            return ids
        if spec.priority:
            self.world.history.urgent.update(job_id.hex() for job_id in ids)
        payloads = [job_id[:4] * random.choice((1, 3, 50)) for job_id in ids]
        calls = [(spec, Call(job_id, payload)) for job_id, payload in zip(ids, payloads, strict=True)]
        note_intents(self.world.history, calls, digest)
        self._hand_in(Waiting(spec, ids, payloads))
        return ids

    def _enqueue_flow(self) -> None:
        world = self.world
        spec = lambda: spec_of_chance(world.random, world.parts.tasks)  # noqa: E731
        flow = flow_of_chance(world.random, spec, self._mine, world.wall)
        note_intents(world.history, flow, digest)
        world.history.flows.append(tuple(call.id.hex() for _, call in flow))
        self._hand_in(SentFlow(flow))

    def _enqueue_limited(self) -> None:
        world = self.world
        sent = SentLimited(world.random, world.now, world.wall)
        note_intents(world.history, [(sent.spec, call) for call in sent.calls], digest)
        note_limits(world.history, sent)
        self._hand_in(sent)

    def _hand_in(self, waiting: Waiting | SentFlow | SentLimited) -> None:
        request = next(self._requests)
        self._unanswered[request] = waiting
        self._submit(request, resend=False)

    def _submit_later(self, request: int) -> None:
        if request in self._unanswered and self._connected() is not None:
            self._submit(request, resend=True)

    def _submit(self, request: int, *, resend: bool) -> None:
        assert self._peer is not None
        if resend:
            self._sent_again[request] += 1
        self._peer.send(self._unanswered[request].frame(request, resend))

    def _submit_again(self, request: int) -> None:
        """Over the same connection, which only an impatient client does. Not so with what may be left out: there would
        be two answers, and the second may be another."""
        if not self._may_be_left_out(request):
            self._submit(request, resend=True)

    def _may_be_left_out(self, request: int) -> bool:
        sent = self._unanswered[request]
        return isinstance(sent, SentLimited) and sent.may_be_left_out

    def _taken_in(self, request: int, earlier: dict[bytes, bytes]) -> None:
        """A submit frame was answered: its jobs are there, or for some others that were there before."""
        world, history = self.world, self.world.history
        sent = self._unanswered.pop(request)
        for job_id in sent.ids:
            if job_id in earlier and isinstance(sent, SentLimited):
                history.left_out.append(LeftOut(job_id.hex(), earlier[job_id].hex(), sent.asked_at, world.now))
        self.knows([earlier.get(job_id, job_id) for job_id in sent.ids])

    def _cancel(self, job_id: bytes, *, also_running: bool) -> int:
        assert self._peer is not None
        request = next(self._requests)
        self._cancels[request] = job_id
        self.world.history.cancels.add(job_id.hex())
        self._peer.send(frames_module.frame([Op.CANCEL, request, job_id, also_running]))
        return request

    def _cancel_again(self, job_id: bytes) -> None:
        """A job that is to be stopped, wherever it is; a new broker does not know that it is not wanted."""
        if job_id in self._watched and self._connected() is not None:
            self._cancel(job_id, also_running=True)

    def _answered_cancel(self, job_id: bytes, is_cancelled: bool | None) -> None:
        history = self.world.history
        if is_cancelled is None:
            self._unwanted.add(job_id)
            history.unwanted.append(Unwanted(job_id.hex(), self.world.now))
            self.world.later(CANCEL_AGAIN_S, lambda: self._cancel_again(job_id))
        elif is_cancelled:
            history.cancelled.setdefault(job_id.hex(), self.world.now)

    def hear(self, peer: Peer, envelope: list[Any], body: bytes) -> None:
        history = self.world.history
        if self._planner.hears(envelope, body):
            return
        match envelope:
            case [Op.OK, request, _] if request in self._unanswered:
                if peer is self._peer or not self._may_be_left_out(request):
                    self._taken_in(request, dict(msgpack.unpackb(body)) if body else {})
            case [Op.ERROR, request, str(), str()] if request in self._unanswered:
                if self._sent_again[request] >= _MOST_TRIES:
                    del self._unanswered[request]  # it will never know what became of these
                elif request in self._sent_again:  # one of these may have been taken in
                    self.world.later(0.2, lambda: self._submit_later(request))
                else:
                    history.refused.update(job_id.hex() for job_id in self._unanswered.pop(request).ids)
            case [Op.OK, request, _] if request in self._cancels:
                self._answered_cancel(self._cancels.pop(request), msgpack.unpackb(body))
            case [Op.ERROR, request, "JobNotFound", str()] if (
                request in self._right_behind and not self.world.full_disks
            ):
                history.out_of_turn.append(self._cancels.pop(request).hex())
            case [Op.OK, request, _] if request in self._asked:
                self._answered(*self._asked.pop(request))
            case [Op.RESULT, bytes(job_id), str(state)]:
                if state:
                    is_off = was_called_off(state, body)
                    history.reads.append(Read(job_id.hex(), state, digest(body), self.world.now, is_off))
                else:
                    history.unknown.add(job_id.hex())
                self._watched.discard(job_id)
                if state == "cancelled" and job_id in self._unwanted:
                    self._answered_cancel(job_id, True)
                if state == "failed":
                    self._retry_perhaps(job_id)

    def _retry_perhaps(self, job_id: bytes) -> None:
        """Retries a job that failed, sooner if others come after it, and waits for these, too."""
        followers = self._followers(job_id)
        if not self._retries or self.world.random.random() > (0.6 if followers else 0.2):
            return
        self._retries -= 1
        self.world.history.retried.add(job_id.hex())
        if self._connected() is not None:
            if followers and self.world.random.random() < 0.5:
                self._cancel(self.world.random.choice(followers), also_running=False)
            self._ask(Op.RETRY, job_id)
            self._watch([job_id, *followers])

    def _followers(self, job_id: bytes) -> list[bytes]:
        """Those of the own jobs that come after one."""
        after = self.world.history.after
        return [other for other in self._mine if job_id.hex() in after.get(other.hex(), {})]

    def _watch(self, ids: list[bytes]) -> None:
        assert self._peer is not None
        self._watched.update(ids)
        self._peer.send(frames_module.frame([Op.WATCH, b"".join(ids)]))


# -- the world


class World:
    """One life, from a seed."""

    def __init__(self, seed: int, parts: Parts | None = None) -> None:
        self.random = Random(seed)
        self.parts = parts or Parts()
        self.history = History(
            restart_within_s=60.0, full_again_s=FULL_AGAIN_S
        )  # retried by hand, it may wait behind a hundred that time out
        self.history.sees_every_start = True
        self.history.capacities, self.history.wall_offset_s = CAPACITIES, _WALL_S
        self.disk = RecordedDisk()
        self.now = 1_000.0
        self.rows_of_turn = 0  # that the broker has written
        self.keys = count(1)
        self.records: dict[int, FlightRecord] = {}  # the flight recorder
        self.at_removal: dict[bytes, Record] = {}  # jobs that were purged, or were to be
        self.broker: SimBroker | None = None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._is_dangerous = False
        self._tick_at = 0.0
        self.settings = Settings(
            consumers=self.random.choice((1, 2, 3)),
            keep_results=1_000_000,
            keep_results_s=1e9,
            log_level="error",
            max_jobs=self.random.choice((None, None, 3, 10)),
            stop_timeout_s=self.random.choice((0.1, 30.0)),
        )
        self.code, self.code_is_broken = 0, False  # what a consumer finds that starts now
        self.fork_server = SimForkServer()
        self.rests_from = inf  # since when no broker runs, or one that is stopping
        self._replacements = self.random.choice((0.0, 1.0, 5.0))  # how often an operator does something, a second
        self.memory_bytes = self.random.choice((2_000, 10_000_000))
        self._danger = self.random.choice((0.0, 0.3, 1.0))
        self.full_disks = self.random.choice((0.0, 0.0, 0.0, 0.1))
        if self.parts.full_disks is not None:
            self.full_disks = self.parts.full_disks
        self.turn_us = self.random.choice((30.0, 300.0, TURN_US))  # what a turn of the broker takes on
        if self.parts.turn_us is not None:
            self.turn_us = self.parts.turn_us
        self.clients = [Client(self, number, self.random.randint(1, 12)) for number in range(self.random.randint(1, 3))]
        self._faults_until = self.now + self.random.uniform(0.5, 4.0)

    @property
    def wall(self) -> float:
        return _WALL_S + self.now

    @property
    def is_paused(self) -> bool:
        return self.broker is not None and bool(self.broker.store.paused())

    @property
    def has_faults(self) -> bool:
        return self.now < self._faults_until

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall

    # events

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), action))

    def delay(self) -> float:
        """How long a message takes: mostly no time, now and then very long."""
        return self.random.expovariate(1 / 0.0005) if self.random.random() < 0.95 else self.random.uniform(0.0, 0.1)

    def ready(self, token: Any) -> None:
        if self.broker is not None and self.broker.is_alive:
            self.broker.selector.make_ready(token)
            self.wake_broker()

    def wake_broker(self) -> None:
        self._plan_tick(self.now + self.random.expovariate(1 / 0.0003))

    def _plan_tick(self, at: float) -> None:
        broker = self.broker
        if at < self._tick_at:
            self._tick_at = at
            self.later(at - self.now, lambda: self._tick(broker, at))

    def _tick(self, broker: SimBroker | None, at: float) -> None:
        if broker is None or broker is not self.broker or not broker.is_alive or at != self._tick_at:
            return
        self._tick_at = float("inf")
        try:
            self._is_dangerous = True
            self.rows_of_turn = 0
            broker._tick()
            self._note_turn()
            if broker._stop_at is not None and not broker.supervisor.consumers:
                self._broker_stops()
            self._is_dangerous = False
        except BrokerKilled:
            self._is_dangerous = False
            self._broker_dies()
            return
        if broker.is_alive:
            self._plan_tick(self.now + max(0.0002, min(broker._timers.timeout_s(self.now), 5.0)))

    def _note_turn(self) -> None:
        if self.now not in self.history.full_at:
            self.history.longest_turn = max(self.history.longest_turn, Turn(self.turn_us, self.rows_of_turn))

    # faults

    def maybe_kill_broker(self, probability: float) -> None:
        """A point at which chance may kill the broker."""
        if self._is_dangerous and self.now < self._faults_until and self.random.random() < probability * self._danger:
            raise BrokerKilled

    def _broker_dies(self) -> None:
        assert self.broker is not None
        self.broker.is_alive = False
        self.history.broker_deaths.append(self.now)
        self.rests_from = min(self.rests_from, self.now)
        for consumer in self.broker.supervisor.consumers.values():
            consumer.die(told=False)
        if self.parts.power_cuts and self.random.random() < 0.3:
            self.disk.lose_power(self.random.randint)
        is_long = bool(self.history.plans) and self.random.random() < 0.03
        self.later(11.5 if is_long else self.random.uniform(0.05, 0.3), self._broker_starts)

    def _broker_starts(self) -> None:
        self.broker = SimBroker(self)
        if self.rests_from < inf:
            self.history.broker_rests.append((self.rests_from, self.now))
            self.rests_from = inf
        self._tick_at = float("inf")
        self._plan_tick(self.now)

    def _misfortune(self) -> None:
        """Something bad happens to somebody, again and again, as long as the faults last."""
        if self.now >= self._faults_until:
            return
        if self.broker is not None and self.broker.is_alive:
            consumers = list(self.broker.supervisor.consumers.values())
            roll = self.random.random()
            if roll < 0.12:
                self._broker_dies()
            elif consumers:
                consumer = self.random.choice(self._in_replacement() or consumers)
                if roll < 0.75 - self.parts.deafness:
                    consumer.die()
                elif roll < 0.75:
                    consumer.is_deaf = True
                else:
                    consumer.pause(self.random.choice((0.01, 0.3, 1.0)))
        self.later(self.random.expovariate(self._danger * 5), self._misfortune)

    def _in_replacement(self) -> list[SimSlot]:
        """Those that start or retire, and those that are to retire soon."""
        assert self.broker is not None
        consumers = self.broker.supervisor.consumers
        replaced = {consumer.replaces for consumer in consumers.values()}
        return [
            consumer
            for consumer in consumers.values()
            if consumer.state is not ProcessState.READY or consumer.key in replaced
        ]

    def _operation(self) -> None:
        """Somebody reloads or stops the fleet, or a consumer has grown too fat, again and again."""
        if not self.has_faults:
            return
        broker = self.broker
        if broker is not None and broker.is_alive and broker._stop_at is None:
            self._look_at_code(broker)
            roll = self.random.random()
            if roll < 0.5:
                self._deploy()
                broker._reload()
            elif roll < 0.7 and broker.supervisor.consumers:
                broker.supervisor.replace(self.random.choice(list(broker.supervisor.consumers.values())))
            elif roll < 0.8:
                broker._stop("chance")
            else:
                self._fork_server_dies(broker)
            self.wake_broker()
        self.later(self.random.expovariate(self._replacements), self._operation)

    def _look_at_code(self, broker: SimBroker) -> None:
        """Who runs old code is told as such at any time."""
        supervisor = broker.supervisor
        for consumer in supervisor.consumers.values():
            is_old = consumer.loaded < broker.asked_code  # type: ignore[attr-defined]
            if consumer.state is ProcessState.READY and is_old and not supervisor.is_old(consumer):
                self.history.unreported.append(consumer.number)

    def _fork_server_dies(self, broker: SimBroker) -> None:
        died, self.fork_server = self.fork_server, SimForkServer()
        died.ending = "was killed by SIGKILL"
        for consumer in broker.supervisor.consumers.values():
            if consumer.is_alive and consumer.server is died:
                self.history.blameless.add(consumer.name)  # type: ignore[attr-defined]
                consumer.die()  # type: ignore[attr-defined]

    def _deploy(self) -> None:
        """There is new code; some of it does not work, but not for long."""
        self.code += 1
        self.code_is_broken = self.random.random() < 0.4
        if self.code_is_broken:
            self.later(self.random.uniform(0.1, 1.0), self._mend)

    def _mend(self) -> None:
        self.code += 1
        self.code_is_broken = False

    def _broker_stops(self) -> None:
        """The last that a broker does that was told to stop, when its consumers have ended."""
        assert self.broker is not None
        self.broker._close()
        self.broker.is_alive = False
        self.later(self.random.uniform(0.05, 0.3), self._broker_starts)

    # life

    def run(self) -> History:
        """Lives to the end of all jobs, or of patience."""
        with small_turns(self.turn_us):
            self._broker_starts()
            if self._danger:
                self.later(0.2, self._misfortune)
            if self._replacements:
                self.later(0.2, self._operation)
            while self._events and self.now < self._faults_until + _QUIET_S:
                at, _, action = heapq.heappop(self._events)
                self.now = max(self.now, at)
                action()
                if (
                    self.now >= self._faults_until
                    and all(client.is_done for client in self.clients)
                    and self._is_quiet()
                ):
                    break
            self._take_stock()
        return self.history

    def _is_quiet(self) -> bool:
        broker = self.broker
        if broker is None or not broker.is_alive or broker._has_work() or self.is_paused:
            return False
        return broker._stop_at is None and broker.supervisor.is_whole

    def _take_stock(self) -> None:
        assert self.broker is not None
        self._take_stock_of_consumers()
        self.history.final = self._finals(self.broker.store._jobs.values())
        self.history.removed = self._finals(self._removed())
        self.history.totals = self.broker.store.totals.as_dict()
        reopened = MemoryStore(self.disk)
        self.history.made = self._made()
        self.history.ended_at = self.now
        if self._is_quiet():
            self.history.kept_keys = self._kept_keys()
        note_fires(self.history, digest)
        self.history.final_after_restart = self._finals(reopened._jobs.values())

    def _kept_keys(self) -> list[str]:
        """The keys that the broker still knows when the spans of all rates are over."""
        assert self.broker is not None
        partitions = self.broker._core.ready
        partitions.open_due(self.now + 60.0)
        named = [limit.name for partition in partitions._partitions for limit in partition.limits] + [
            name for _, name in partitions._limits.in_use
        ]
        return sorted({name for name in named if " " in name})

    def _take_stock_of_consumers(self) -> None:
        assert self.broker is not None
        supervisor, history = self.broker.supervisor, self.history
        history.wanted_consumers = self.settings.consumers
        history.reload_state = supervisor.reload_state
        for consumer in supervisor.consumers.values():
            if consumer.state is ProcessState.READY:
                is_old = consumer.loaded < self.broker.asked_code  # type: ignore[attr-defined]
                history.consumers.append(Consumer(consumer.number, is_old, supervisor.is_old(consumer)))

    def _removed(self) -> list[Record]:
        """The last that was known of jobs that are not there any more."""
        gone: dict[bytes, Record] = {}
        for changes in (commit.jobs for commit in self.disk.commits):
            for job_id, record in changes.items():
                if record is None:
                    gone.update({job_id: self.at_removal[job_id]} if job_id in self.at_removal else {})
                else:
                    gone.pop(job_id, None)
        return list(gone.values())

    def _made(self) -> Counter[str]:
        """How often each job was stored that was not there before."""
        made: Counter[str] = Counter()
        there: set[bytes] = set()
        for changes in (commit.jobs for commit in self.disk.commits):
            made.update(job_id.hex() for job_id, record in changes.items() if record and job_id not in there)
            there.update(job_id for job_id, record in changes.items() if record)
            there.difference_update(job_id for job_id, record in changes.items() if record is None)
        return made

    @staticmethod
    def _finals(records: Iterable[Record]) -> dict[str, Final]:
        return {
            record.id.hex(): Final(
                record.kept.state.value,
                record.attempts,
                record.crashes,
                digest(record.outcome or b""),
                record.requeued,
                record.snoozes,
                was_called_off(record.kept.state.value, record.outcome or b""),
                record.revived,
            )
            for record in records
        }


def judge(seed: int, parts: Parts | None = None) -> list[str]:
    """Lives the life of a seed. Returns what was wrong with it."""
    return check(World(seed, parts).run())


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Simulates lives of a broker.")
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--from", type=int, default=0, dest="first")
    arguments = parser.parse_args()
    began, jobs = time.monotonic(), 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        world = World(seed)
        wrong = check(world.run())
        jobs += len(world.history.intents)
        if wrong:
            print(
                f"seed {seed}:",
                *wrong[:10],
                f"replay it: python tests/simulation/simulation.py --from {seed} --seeds 1",
                sep="\n  ",
            )
            return 1
        if seed % 1_000 == 999:
            print(f"{seed + 1 - arguments.first:,} seeds, {jobs:,} jobs, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{arguments.seeds:,} seeds, {jobs:,} jobs: nothing wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
