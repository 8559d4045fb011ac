"""Machines in a world made of chance: real engines and cores, brokers that die, and consumers that are played."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from hashlib import sha256
from math import inf
from typing import TYPE_CHECKING, Any, cast

from deaf import Deaf
from history import End, Start
from scripted_fleet import Consumer, ScriptedClock, ScriptedFleet
from simulated_database import SimLink, Words

from taskq.broker.consumers.succession import Succession
from taskq.broker.parts import Parts, core_of
from taskq.engines.postgres.engine import PostgresEngine
from taskq.engines.postgres.exchanges import Beaten, Reclaimed
from taskq.model.attempt import Verdict
from taskq.model.effects import Key, ProcessExit, Success
from taskq.model.job import JobRow
from taskq.model.settings import Settings
from taskq.protocol.link.flight_recorder import FlightRecord
from taskq.system.directory import Directory

if TYPE_CHECKING:
    from postgres_simulation import World

WALL_S = 1_700_000_000.0
LEASE_S = 5.0


def digest(payload: bytes) -> str:
    return sha256(payload).hexdigest()[:16]


class MachineClock(ScriptedClock):
    """The clock of a machine, which may be wrong."""

    def __init__(self, world: World, offset_s: float) -> None:
        self._world, self._offset_s = world, offset_s

    @property
    def now(self) -> float:  # type: ignore[override]
        return self._world.now

    def time(self) -> float:
        return WALL_S + self._world.now + self._offset_s


class SimEngine(PostgresEngine):
    """The real engine, with the links of the world."""

    def __init__(self, machine: Machine, world: World, settings: Settings) -> None:
        super().__init__(machine.directory, world.url, settings, machine.clock)
        self.machine, self._history = machine, world.history
        self._work = SimLink(world, machine, "work")
        self._control = SimLink(world, machine, "control")
        self.links = (self._work, self._control)

    def gather(self, now: float) -> None:
        self._control._words += self.machine.words.take(now) if self._control.is_ready else []
        super().gather(now)

    def _finish_beat(self, beaten: Beaten | None, now: float) -> None:
        if beaten is not None and not beaten.is_fenced:
            self._history.beats[self.machine.name].append(self._beaten_at)
        super()._finish_beat(beaten, now)

    def _finish_reclaim(self, reclaimed: Reclaimed) -> None:
        self._history.beats[self.machine.name].append(self.machine.clock.now)
        super()._finish_reclaim(reclaimed)


class Log(Deaf):
    """Notes what a machine logs as succeeded."""

    def __init__(self, machine: Machine, world: World) -> None:
        self._machine, self._world = machine, world

    def successes(self, done: Iterable[Success], _now: float) -> None:
        for row, _, _ in done:
            told = (self._machine.name, row.id.hex(), row.attempts, self._world.now)
            self._world.history.told.append(told)


class SimConsumer(Consumer):
    """Runs jobs as they are meant: what is to happen stands in the payload."""

    def __init__(self, fleet: SimFleet, key: Key) -> None:
        super().__init__(fleet, key)
        self._world, self._sim = fleet.world, fleet
        self.name = f"{fleet.machine.name}.{next(fleet.world.numbers)}"
        self.is_alive = True
        self.stops: set[int] = set()  # attempts that are to be cancelled

    def go_on(self) -> None:
        """Begins the next job, if it is free and has one."""
        if not self.is_alive or self.running is not None or not self.sent:
            return
        self.begun, self.running = self.sent.popleft()
        row, world = self.running, self._world
        note = Start(row.id.hex(), row.attempts + 1, self.name, world.now, digest(bytes(row.payload)))
        world.history.starts.append(note)
        number = self.begun
        world.later(world.run_time(), lambda: self._act(number, row))

    def stop(self) -> None:
        """The running job is to be cancelled."""
        number, row = self.begun, self.running
        self._world.later(0.05, lambda: self._stopped(number, row))

    def _stopped(self, number: int, row: JobRow | None) -> None:
        if self.is_alive and self.running is row and row is not None and self.begun == number:
            self._note(row, False)
            self.fail(Verdict.CANCELLED)

    def _act(self, number: int, row: JobRow) -> None:
        if not self.is_alive or self.running is not row or self.begun != number:
            return
        attempt = row.attempts + 1
        said = f"{self.name} {attempt}"
        task = bytes(row.payload).partition(b" ")[0].decode()
        if task == "poison" or (task == "poison_once" and attempt == 1):
            self._sim.machine.kill_consumer(self)
        elif task == "fails" or (task == "fails_once" and attempt == 1):
            self._note(row, False)
            self.fail(message=said)
        elif task == "snoozes" and attempt == 1:
            self._note(row, False, snoozed=True)
            self.fail(Verdict.SNOOZED, delay_s=0.5)
        else:
            self._note(row, True)
            self.succeed(said.encode())

    def _note(self, row: JobRow, succeeded: bool, snoozed: bool = False) -> None:
        end = End(row.id.hex(), row.attempts + 1, self.name, self._world.now, succeeded, snoozed)
        self._world.history.ends.append(end)


class SimFleet(ScriptedFleet):
    """The life of one broker."""

    def __init__(self, machine: Machine, world: World, running: Iterable[FlightRecord]) -> None:
        self.world, self.machine = world, machine
        self.clock = machine.clock
        self.next = None
        self.by_key = {}
        self.stopped = []
        self.directory = machine.directory
        settings = Settings(keep_results_s=86_400.0)
        self.core = core_of(settings)
        self.engine = SimEngine(machine, world, settings)
        parts = Parts(machine.directory, settings, self.engine, self.core, cast(Any, Log(machine, world)), self.clock)
        for link in self.engine.links:
            link.is_instant = True
        parts.recover(running)
        parts.start(self, Succession(0), lambda _by: None, lambda: 0)
        for link in self.engine.links:
            link.is_instant = False
        self._keys = 0
        world.history.beats[machine.name].append(world.now)

    def consumer(self) -> SimConsumer:
        self._keys += 1
        self.by_key[self._keys] = consumer = SimConsumer(self, self._keys)
        return consumer

    def turn(self, times: int = 1) -> None:  # noqa: ARG002
        """Something has happened: the broker looks soon."""
        self.world.wake(self.machine)

    def one_turn(self) -> None:
        self._turn(self.clock.now)
        for consumer in list(self.by_key.values()):
            cast(SimConsumer, consumer).go_on()

    def interrupt(self, job_ids: Collection[bytes], _why: str) -> None:
        """Kills the consumers that run some of these jobs; others follow them."""
        for consumer in list(self.by_key.values()):
            if consumer.running is not None and consumer.running.id in job_ids:
                self.world.history.blameless.add(cast(SimConsumer, consumer).name)
                self.machine.end_consumer(cast(SimConsumer, consumer), ProcessExit(stopped=True))

    def cancel_running(self, job_id: bytes) -> None:
        super().cancel_running(job_id)
        for consumer in self.by_key.values():
            if consumer.running is not None and consumer.running.id == job_id:
                cast(SimConsumer, consumer).stop()


class Machine:
    """One machine: at most one broker at a time runs on it."""

    def __init__(self, world: World, name: str, slots: int) -> None:
        self.world, self.name, self._slots = world, name, slots
        self.directory = Directory(world.folder / name).create()
        self.clock = MachineClock(world, world.random.choice((0.0, 0.0, 0.4, 3_600.0, -3_600.0)))
        self.fleet: SimFleet | None = None
        self.words = Words()
        self.cut_until = self.frozen_until = -1.0
        self.turns_at = inf
        self._records: list[FlightRecord] = []

    def start(self) -> None:
        """A broker starts."""
        if self.fleet is not None:
            return
        if self.world.now < self.cut_until:
            self.world.later(self.cut_until - self.world.now, self.start)
            return
        for link in list(self.world.links):
            link.give_way(self.world.now)
        self.world.tell_time()
        self.words = Words()
        self.fleet = SimFleet(self, self.world, self._records)
        for _ in range(self._slots):
            self.fleet.consumer()
        self.world.wake(self)

    def turn(self) -> None:
        if self.fleet is None:
            return
        now = self.world.now
        if now < self.frozen_until:
            self.world.wake(self, self.frozen_until)
            return
        self.fleet.one_turn()
        self.world.wake(self, max(self.fleet.engine.next_at(now), now + 0.001))

    def cut_off(self, seconds: float) -> None:
        """Nothing goes between it and the server, which ends sessions that leave a transaction open."""
        self.cut_until = self.world.now + seconds
        for link in [] if self.fleet is None else self.fleet.engine.links:
            if link._exchange is not None and self.world.random.random() < 0.5:
                link.give_way(self.world.now)

    def freeze(self, seconds: float) -> None:
        """The broker is stopped; its consumers go on."""
        self.frozen_until = self.world.now + seconds
        self.world.history.freezes.append((self.name, self.world.now, self.frozen_until))
        for link in [] if self.fleet is None else self.fleet.engine.links:
            if link._commit_at is not None:
                link.give_way(self.world.now)

    def kill_broker(self, back_after_s: float) -> None:
        """The broker is killed, with its consumers; its guardian starts another one."""
        fleet, world = self.fleet, self.world
        if fleet is None:
            return
        running = [each.running for each in fleet.by_key.values() if each.running is not None]
        self._records = [FlightRecord(row.id, row.attempts + 1) for row in running]
        for consumer in fleet.by_key.values():
            self._note_death(cast(SimConsumer, consumer))
        for link in fleet.engine.links:
            link.remove()
        world.history.broker_deaths.append(world.now)
        world.history.ended_brokers.append((self.name, world.now))
        self.fleet = None
        world.later(back_after_s, self.start)

    def _note_death(self, consumer: SimConsumer) -> None:
        consumer.is_alive = False
        self.world.history.deaths[consumer.name] = self.world.now

    def kill_consumer(self, consumer: SimConsumer) -> None:
        """A consumer is killed, and followed by another one."""
        self.end_consumer(consumer, ProcessExit(signal="SIGKILL"))

    def end_consumer(self, consumer: SimConsumer, how: ProcessExit) -> None:
        """A consumer ends, and is followed by another one."""
        fleet = self.fleet
        if fleet is None or not consumer.is_alive:
            return
        self._note_death(consumer)
        del fleet.by_key[consumer.key]
        fleet.core.died(consumer.key, consumer.claims, how, self.clock.time())
        self.world.later(0.1, lambda: fleet is self.fleet and fleet.consumer() and fleet.turn())
        fleet.turn()

    def kill_any_consumer(self) -> None:
        if self.fleet is not None and self.fleet.by_key:
            self.kill_consumer(cast(SimConsumer, self.world.random.choice(list(self.fleet.by_key.values()))))
