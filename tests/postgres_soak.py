"""Three machines in network namespaces, a database on a fourth, and everything at random, for as long as you like; then
the judge's verdict, with counts.

    python tests/postgres_soak.py --minutes 30

Brokers, consumers, guardians, whole machines, backends of the server and the server itself are killed; brokers and the
server are stopped for a while; links are cut both ways and one way, for less and for more than the lease. Producers
enqueue one by one, many at once, workflows, scheduled jobs, and inside transactions of their own that they commit or
roll back. Jobs note what they do; history_machines.py judges. Only root may make network namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any
from uuid import UUID, uuid4

sys.path.insert(0, str(Path(__file__).parent / "support"))
sys.path.insert(0, str(Path(__file__).parent / "simulation"))

import psutil
import psycopg
from apps import soak_machines
from fleet import APPS, wait_until
from history import End, Final, Read, Start
from history_machines import MachinesHistory, check
from hosts import Host, Network
from machines import SCHEMA, MachineFleet, use_database
from postgres import Server, running_server

from taskq import JobState, TaskQError, chain
from taskq.client.job import Job
from taskq.model.stored import FIRST_FINAL, StoredState

APP = f"{APPS / 'soak_machines.py'}:q"
LEASE_S = 5.0
_PRODUCERS = 3
#: Jobs that wait at most: more would only wait longer.
_AHEAD = 300
#: After the faults everything must end within this time.
_PATIENCE_S = 180.0
_BUGS = ("broker.failed", "store.damaged", "consumer.confused", "log.unreadable")


class Machine:
    """A host with its fleet, which is started again when it has ended."""

    def __init__(self, name: str, host: Host, folder: Path, url: str, history: MachinesHistory) -> None:
        self.name, self.host = name, host
        self._history = history
        settings = {"consumers": 2, "stderr_level": "critical"}
        self.fleet = MachineFleet(folder / name, url, APP, prefix=host.prefix, **settings)
        self.fleet.start(wait=False)

    def has(self, pid: int) -> bool:
        """Whether a process is one of its fleet."""
        with suppress(ProcessLookupError):
            return os.getsid(pid) in self.fleet._sessions
        return False

    def processes(self, role: str) -> list[psutil.Process]:
        """Those of a role that live."""
        found = []
        for process in self.fleet.processes():
            with suppress(psutil.Error):
                if f"taskq: {role}" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self, role: str, chance: random.Random) -> None:
        """Kills a process; with a broker or a guardian all consumers die."""
        processes = self.processes(role) if role != "guardian" else [psutil.Process(self.fleet.guardian_pid)]
        if processes:
            victim = chance.choice(processes)
            dying = [victim] if role == "consumer" else self.fleet.processes()
            now = time.monotonic()
            victim.kill()
            self.note_deaths(dying, now, is_broker=role != "consumer")

    def kill_all(self) -> None:
        """The machine loses its power."""
        dying, now = self.fleet.processes(), time.monotonic()
        self.fleet.kill_all()
        self.note_deaths(dying, now, is_broker=True)

    def note_deaths(self, dying: list[psutil.Process], at: float, *, is_broker: bool) -> None:
        for process in dying:
            self._history.deaths.setdefault(f"{self.name}.{process.pid}", at)
        if is_broker:
            self._history.broker_deaths.append(at)
            self._history.ended_brokers.append((self.name, at))

    def keep_alive(self) -> None:
        """Starts the fleet again if its guardian has ended."""
        guardian = self.fleet._guardian
        if guardian is not None and guardian.poll() is not None:
            self.fleet.wait_until_nothing_is_left(30.0)
            self.fleet.start(wait=False)


class Producer(Thread):
    """Enqueues what chance says, and notes what was acknowledged."""

    def __init__(self, number: int, soak: Soak) -> None:
        super().__init__(name=f"producer {number}")
        self._soak, self._number = soak, number
        self._random = random.Random(f"{soak.seed} {number}")
        self._labels = 0

    def run(self) -> None:
        soak = self._soak
        while not soak.is_over.wait(self._random.uniform(0.005, 0.1)):
            if len(soak.jobs) - soak.ended < _AHEAD:
                acts = (self._one, self._one, self._many, self._chain, self._later, self._within, self._wait)
                try:
                    self._random.choice(acts)()
                except (TaskQError, psycopg.Error) as error:
                    with soak.lock:
                        soak.refusals[type(error).__name__] += 1

    def _label(self) -> str:
        self._labels += 1
        label = f"{self._number}-{self._labels}"
        self._soak.history.intents[label] = label
        return label

    def _acked(self, made: list[tuple[str, Job[Any]]]) -> None:
        with self._soak.lock:
            for label, job in made:
                self._soak.history.acked[label] = time.monotonic()
                self._soak.jobs[label] = job

    def _seconds(self) -> float:
        return self._random.choice((0.0, 0.0, 0.01, 0.05, 0.3, 2.0, 7.0))

    def _one(self) -> None:
        label, path = self._label(), self._soak.path
        if self._random.random() < 0.3:
            self._acked([(label, soak_machines.fails_once.enqueue(path, label))])
        else:
            self._acked([(label, soak_machines.work.enqueue(path, label, self._seconds()))])

    def _many(self) -> None:
        labels = [self._label() for _ in range(20)]
        made = soak_machines.work.enqueue_many([(self._soak.path, label, 0.001) for label in labels])
        self._acked(list(zip(labels, made, strict=True)))

    def _chain(self) -> None:
        labels, path = [self._label() for _ in range(3)], self._soak.path
        first, *others = labels
        self._soak.history.after.update((label, {before: False}) for before, label in zip(labels, others, strict=False))
        steps = [soak_machines.follow.step(path, label) for label in others]
        last = chain(soak_machines.work.step(path, first, 0.05), *steps).enqueue()
        self._acked([(others[-1], last)])

    def _later(self) -> None:
        label, in_s = self._label(), self._random.choice((0.5, 3.0))
        self._soak.history.not_before[label] = time.monotonic() + in_s
        self._acked([(label, soak_machines.work.options(delay=in_s).enqueue(self._soak.path, label, 0.0))])

    def _within(self) -> None:
        label, order = self._label(), uuid4()
        is_kept = self._random.random() < 0.6
        self._soak.history.orders[label] = str(order)
        with psycopg.connect(self._soak.server.dsn(), connect_timeout=5) as connection:
            connection.execute("INSERT INTO public.orders VALUES (%s)", [order])
            with soak_machines.q.within(connection):
                job = soak_machines.work.enqueue(self._soak.path, label, 0.0)
            if is_kept:
                connection.commit()
            else:
                connection.rollback()
        if is_kept:
            self._acked([(label, job)])

    def _wait(self) -> None:
        with self._soak.lock:
            label = self._random.choice(list(self._soak.jobs)[-50:]) if self._soak.jobs else None
        if label is not None:
            job = self._soak.jobs[label]
            if job.wait(timeout=5):
                self._soak.history.reads.append(Read(label, job.info().state.value, "", time.monotonic()))


class Soak:
    """One run."""

    def __init__(self, folder: Path, network: Network, server: Server, database: Host, seed: str) -> None:
        self.seed = seed
        self.server, self._network, self._database = server, network, database
        self.path = str(folder / "notes")
        self.history = MachinesHistory(lease_s=LEASE_S)
        self.is_over, self._is_quiet_now, self.lock = Event(), Event(), Lock()
        self.jobs: dict[str, Job[Any]] = {}
        self.ended = 0
        self.refusals: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._random = random.Random(seed)
        with server.connect() as connection:
            connection.execute("CREATE TABLE public.orders (id uuid PRIMARY KEY)")
        use_database(soak_machines.q, folder / "client", f"{server.url()}&lease={LEASE_S:g}")
        url = f"postgresql://postgres@{database.address}/postgres?lease={LEASE_S:g}"
        names = ("one", "two", "three")
        self.machines = [Machine(name, network.host(), folder, url, self.history) for name in names]
        self.sizes: list[dict[str, Any]] = []

    def run(self, seconds: float) -> list[str]:
        """Load and faults, then quiet. Returns what is wrong."""
        for machine in self.machines:
            machine.fleet.wait_for("consumer.started")
        producers = [Producer(number, self) for number in range(_PRODUCERS)]
        watching = Thread(target=self._watch)
        watching.start()
        for producer in producers:
            producer.start()
        end_at = time.monotonic() + seconds
        self.sizes.append(self._size())
        while time.monotonic() < end_at:
            for machine in self.machines:
                machine.keep_alive()
            time.sleep(self._random.uniform(0.3, 4.0))
            with suppress(psutil.Error, ProcessLookupError):
                self._fault()
        for machine in self.machines:
            machine.keep_alive()
        self.is_over.set()
        for producer in producers:
            producer.join()
        wait_until(self._is_quiet, "the end of all jobs", _PATIENCE_S)
        self._is_quiet_now.set()
        watching.join()
        self.sizes.append(self._size())
        self._note_the_end()
        return check(self.history)

    # -- what is seen

    def _watch(self) -> None:
        """Notes the beats of the machines, and how many jobs have ended."""
        while not self._is_quiet_now.wait(0.2):
            with suppress(psycopg.Error), self._looking() as connection:
                while not self._is_quiet_now.wait(0.2):
                    now = time.monotonic()
                    found = connection.execute(
                        f'SELECT f.pid, extract(epoch FROM now() - b.seen_at)::float8 FROM "{SCHEMA}".beats b'
                        f' JOIN "{SCHEMA}".fleets f USING (fleet)'.encode()
                    ).fetchall()
                    self._note_beats(found, now)
                    [(self.ended,)] = connection.execute(
                        f'SELECT count(*) FROM "{SCHEMA}".jobs WHERE state > 3'.encode()
                    ).fetchall()

    @contextmanager
    def _looking(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.server.dsn(), autocommit=True, connect_timeout=5) as connection:
            yield connection

    def _note_beats(self, found: list[tuple[Any, ...]], now: float) -> None:
        for pid, age_s in found:
            for machine in self.machines:
                if machine.has(pid):
                    beats = self.history.beats[machine.name]
                    if not beats or now - age_s > beats[-1] + 0.05:
                        beats.append(now - age_s)

    def _size(self) -> dict[str, Any]:
        """What the tables take, and what is dead in the hot one."""
        with self.server.connect() as connection:
            [row] = connection.execute(
                f"SELECT pg_total_relation_size('\"{SCHEMA}\".jobs'), pg_total_relation_size('\"{SCHEMA}\".queue'),"
                f" (SELECT n_dead_tup FROM pg_stat_user_tables WHERE schemaname = '{SCHEMA}' AND relname = 'queue')".encode()
            ).fetchall()
        return dict(zip(("jobs bytes", "queue bytes", "queue dead rows"), row, strict=True))

    def _is_quiet(self) -> bool:
        for machine in self.machines:
            machine.keep_alive()
        with suppress(psycopg.Error), self._looking() as connection:
            return not connection.execute(f'SELECT 1 FROM "{SCHEMA}".queue LIMIT 1'.encode()).fetchall()
        return False

    # -- faults

    def _fault(self) -> None:
        machine = self._random.choice(self.machines)
        kinds: dict[str, tuple[int, Callable[[], object]]] = {
            "kill of a consumer": (6, lambda: machine.kill("consumer", self._random)),
            "kill of a broker": (4, lambda: machine.kill("broker", self._random)),
            "kill of a guardian": (1, lambda: machine.kill("guardian", self._random)),
            "kill of a machine": (1, machine.kill_all),
            "stop of a broker": (2, lambda: self._stop(machine)),
            "kill of backends": (4, lambda: self.server.end_sessions("taskq%")),
            "kill of the server": (1, self._kill_server),
            "restart of the server": (1, self.server.restart),
            "stop of the server": (2, self._freeze_server),
            "cut of a machine": (3, lambda: self._cut(machine)),
            "deafness of a machine": (2, lambda: self._lose(self._database, machine.host)),
            "muteness of a machine": (2, lambda: self._lose(machine.host, self._database)),
        }
        [name] = self._random.choices(list(kinds), weights=[weight for weight, _ in kinds.values()])
        kinds[name][1]()
        self.faults[name] += 1

    def _for_a_while(self) -> None:
        time.sleep(self._random.choice((0.3, 1.0, 3.0, 1.6 * LEASE_S, 2.6 * LEASE_S)))

    def _stop(self, machine: Machine) -> None:
        for broker in machine.processes("broker"):
            broker.suspend()
            self._for_a_while()
            broker.resume()

    def _kill_server(self) -> None:
        self.server.kill()
        self.server.start()

    def _freeze_server(self) -> None:
        self.server.freeze()
        self._for_a_while()
        self.server.thaw()

    def _cut(self, machine: Machine) -> None:
        self._network.cut(machine.host)
        self._for_a_while()
        self._network.mend(machine.host)

    def _lose(self, sender: Host, receiver: Host) -> None:
        self._network.lose(sender, receiver)
        self._for_a_while()
        self._network.lose_no_more(sender, receiver)

    # -- the end

    def _note_the_end(self) -> None:
        h = self.history
        h.ended_at = time.monotonic()
        labels = {job.id: label for label, job in self.jobs.items()}
        for line in Path(self.path).read_text().splitlines():
            what, label, job_id, attempt, process, at = line.split()
            if labels.setdefault(job_id, label) != label:
                h.leaks.append(f"job {job_id} ran as {labels[job_id]} and as {label}")
            if what == "start":
                h.starts.append(Start(label, int(attempt), process, float(at), label))
            else:
                h.ends.append(End(label, int(attempt), process, float(at), what == "end"))
        with self.server.connect() as connection:
            rows = connection.execute(
                f'SELECT id, state, attempts, crashes, snoozes FROM "{SCHEMA}".jobs'.encode()
            ).fetchall()
            h.kept_orders = {str(order) for (order,) in connection.execute("SELECT id FROM public.orders")}
            [(edges,)] = connection.execute(f'SELECT count(*) FROM "{SCHEMA}".edges WHERE is_open'.encode()).fetchall()
        for job_id, state, attempts, crashes, snoozes in rows:
            label = labels.get(UUID(str(job_id)).hex, f"unknown {job_id}")
            name = StoredState(state).state.value if state >= FIRST_FINAL else "alive"
            h.final[label] = Final(name, attempts, crashes, "", snoozes=snoozes)
            if name == JobState.SUCCEEDED.value:
                process, number = soak_machines.q.job(UUID(str(job_id)).hex).result(timeout=10).split()
                h.winners[label] = process, int(number)
            else:
                h.leaks.append(f"job {label} is {name}")
        if edges:
            h.leaks.append(f"{edges} edges are open")
        bugs = Counter(
            event["event"] for machine in self.machines for event in machine.fleet.events() if event["event"] in _BUGS
        )
        h.leaks += [f"{count} times {event} in the logs" for event, count in bugs.items()]

    def close(self) -> None:
        """Ends the fleets."""
        self.is_over.set()
        self._is_quiet_now.set()
        for machine in self.machines:
            with suppress(AssertionError):
                machine.fleet.kill_all()

    @property
    def counts(self) -> dict[str, Any]:
        """How much was proved."""
        h = self.history
        return {
            "faults": dict(self.faults),
            "acknowledged": len(h.acked),
            "jobs": len(h.final),
            "starts": len(h.starts),
            "crashes charged": sum(final.crashes for final in h.final.values()),
            "transactions of the application": len(h.orders),
            "of these committed": len(h.kept_orders),
            "steps after others": len(h.after),
            "refused while the database was away": dict(self.refusals),
            "sizes at the start and at the end": self.sizes,
        }


def soak(seconds: float, seed: str) -> tuple[list[str], dict[str, Any]]:
    """One run. Returns what is wrong, and the counts."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        network = stack.enter_context(Network())
        database = network.host()
        options = {"settings": {"listen_addresses": database.address}, "prefix": database.prefix}
        server = stack.enter_context(running_server(**options))
        server.allow_network()
        run = Soak(folder, network, server, database, seed)
        stack.callback(run.close)
        return run.run(seconds), run.counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", default=str(random.randrange(1_000_000)))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    wrong, counts = soak(options.minutes * 60, options.seed)
    print(json.dumps(counts, indent=1))
    print("\n".join(wrong) or "nothing is wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
