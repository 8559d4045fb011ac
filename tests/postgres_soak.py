"""Three machines in network namespaces, a database on a fourth, and everything at random, for as long as you like; then
the judge's verdict, with counts.

    python tests/postgres_soak.py --minutes 30

Brokers, consumers, guardians, clients, whole machines, backends of the server and the server itself are killed, the
server also right behind a commit; brokers, fleets and the server are stopped for a while; links are cut both ways and
one way, for less and for more than the lease; the disk under the server is full; fleets are restarted and reloaded.
Clients use all options (support/soak_load.py). Jobs note what they do; history_machines.py judges. Only root may make
network namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any
from uuid import UUID

sys.path.insert(0, str(Path(__file__).parent / "support"))
sys.path.insert(0, str(Path(__file__).parent / "simulation"))

import psutil
import psycopg
from apps import soak_machines
from fleet import APPS, Late, wait_until
from history import End, Final, Found, Kept, Start
from history_flows import Children
from history_machines import MachinesHistory, check
from history_shared import counted_in
from hosts import Host, Network
from machines import SCHEMA, MachineFleet, use_database
from postgres import Server, running_server
from soak_load import AHEAD, REFUSALS, Load, put_schedule, remove_schedule, until_done

from taskq.model.attempt import read_outcome
from taskq.model.schedule import fired_id
from taskq.model.stored import FIRST_FINAL, StoredState
from taskq.protocol.codec import decode_result

APP = f"{APPS / 'soak_machines.py'}:q"
LEASE_S = 5.0
_PRODUCERS = 3
_SCHEDULE, _EVERY_S = "tick", 1.0
#: After the faults everything must end within this time.
_PATIENCE_S = 400.0
#: A start may be noted so much later than the job was sent, on a busy machine.
_LATE_S = 2.0
_ON_ITS_WAY_S = 2 * LEASE_S
#: A consumer may be kept from the processor between taking a job and the job's first act.
_BEGINS_WITHIN_S = 10.0
_DISK_MB = 1_500
#: What is left when the disk is "full".
_LEFT_BYTES = 200_000
_BUGS = ("broker.failed", "store.damaged", "consumer.confused", "log.unreadable", "broker.killed")
_ENDS_OF_CONSUMERS = ("consumer.exited", "consumer.crashed", "consumer.killed")
#: Nobody is charged with these ends: the jobs need not run alone any more, or the fleet stops.
_BLAMELESS = "others"


class Machine:
    """A host with its fleet, which is started again when it has ended, and with a client."""

    def __init__(self, name: str, host: Host, folder: Path, url: str, history: MachinesHistory) -> None:
        self.name, self.host = name, host
        self.is_busy = Lock()  # something is done to it that takes a while
        self._folder, self._url, self._history = folder, url, history
        settings = {"consumers": 2, "stderr_level": "critical", "resources": (("gpu", 1),), "stop_timeout_s": 4.0}
        self.fleet = MachineFleet(folder / name, url, APP, prefix=host.prefix, **settings)
        self.fleet.start(wait=False)
        self._client: subprocess.Popen[bytes] | None = None

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

    def restart(self) -> None:
        """In its orderly way."""
        self.fleet.stop()
        self.fleet.start(wait=False)

    def stop_for(self, processes: list[psutil.Process], pause: Callable[[], object]) -> None:
        """Some of its processes stand still."""
        since = time.monotonic()
        for process in processes:
            with suppress(psutil.Error):
                process.suspend()
        try:
            pause()
        finally:
            for process in processes:
                with suppress(psutil.Error):
                    process.resume()
            now = time.monotonic()
            self._history.freezes.append((self.name, since, now))
            self._history.stops += [(f"{self.name}.{process.pid}", since, now) for process in processes]

    # -- its client

    @property
    def client_notes(self) -> Path:
        return self._folder / f"client-{self.name}"

    def start_client(self, path: str) -> None:
        """A process on this machine that enqueues."""
        dsn = self._url.partition("?")[0]
        script, notes = str(APPS / "soak_client.py"), str(self.client_notes)
        environment = {**os.environ, "TASKQ_URL": self._url, "XDG_STATE_HOME": str(self._folder / "clients")}
        command = [*self.host.prefix, sys.executable, script, f"client-{self.name}", path, notes, dsn]
        with (self._folder / "clients.stderr").open("ab") as errors:
            self._client = subprocess.Popen(command, env=environment, stderr=errors, start_new_session=True)

    def kill_client(self) -> None:
        if self._client is not None:
            self._client.kill()
            self._client.wait()


class Soak:
    """One run."""

    def __init__(self, folder: Path, network: Network, server: Server, database: Host, seed: str) -> None:
        self.seed, self._folder = seed, folder
        self.server, self._network, self._database = server, network, database
        self.path = str(folder / "notes")
        self.history = MachinesHistory(lease_s=LEASE_S, late_s=_LATE_S, on_its_way_s=_ON_ITS_WAY_S)
        self.history.begins_within_s = _BEGINS_WITHIN_S
        self.history.capacities = {"gpu": 1}
        self.load = Load(self.history, self.path, server.dsn(), seed)
        self._is_quiet_now = Event()
        self.faults: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._long_faults: list[Thread] = []
        self._began_at = time.monotonic()
        with server.connect() as connection:
            connection.execute("CREATE TABLE public.orders (id uuid PRIMARY KEY)")
        use_database(soak_machines.q, folder / "client", f"{server.url()}&lease={LEASE_S:g}")
        url = f"postgresql://postgres@{database.address}/postgres?lease={LEASE_S:g}"
        self.machines = [Machine(name, network.host(), folder, url, self.history) for name in ("one", "two", "three")]
        self.sizes: list[dict[str, Any]] = []

    def run(self, seconds: float) -> list[str]:
        """Load and faults, then quiet. Returns what is wrong."""
        for machine in self.machines:
            machine.fleet.wait_for("consumer.started", deadline_s=60.0)
        put_schedule(self.load, _SCHEDULE, _EVERY_S)
        watching = Thread(target=self._watch)
        watching.start()
        clients = self.load.threads(_PRODUCERS)
        for client in clients:
            client.start()
        for machine in self.machines:
            machine.start_client(self.path)
        end_at = time.monotonic() + seconds
        self.sizes.append(self._size())
        while time.monotonic() < end_at:
            self._keep_alive()
            time.sleep(self._random.uniform(0.3, 4.0))
            with suppress(psutil.Error, ProcessLookupError):
                self._fault()
        for fault in self._long_faults:
            fault.join()
        self.load.is_over.set()
        for machine in self.machines:
            machine.kill_client()
        for client in clients:
            client.join()
        until_done(lambda: soak_machines.q.resume("second"))
        remove_schedule(_SCHEDULE)
        try:
            wait_until(self._is_quiet, "the end of all jobs", _PATIENCE_S)
        except Late as error:
            self.history.leaks.append(str(error))
        self._is_quiet_now.set()
        watching.join()
        self.sizes.append(self._size())
        for machine in self.machines:
            if machine.fleet.stop() != 0:
                self.history.bad_exits.append(f"the guardian of {machine.name} ended with an error")
        self._note_the_end()
        (self._folder / "history").write_bytes(pickle.dumps(self.history))  # to be judged again
        return check(self.history)

    def _keep_alive(self) -> None:
        for machine in self.machines:
            if machine.is_busy.acquire(blocking=False):
                try:
                    machine.keep_alive()
                finally:
                    machine.is_busy.release()

    # -- what is seen

    def _watch(self) -> None:
        """Notes the beats of the machines, and how many jobs wait."""
        enough = Path(f"{self.path}.enough")
        while not self._is_quiet_now.wait(0.2):
            with suppress(psycopg.Error), self._looking() as connection:
                while not self._is_quiet_now.wait(0.2):
                    now = time.monotonic()
                    found = connection.execute(
                        f'SELECT f.pid, extract(epoch FROM now() - b.seen_at)::float8 FROM "{SCHEMA}".beats b'
                        f' JOIN "{SCHEMA}".fleets f USING (fleet)'.encode()
                    ).fetchall()
                    self._note_beats(found, now)
                    [(self.load.waiting,)] = connection.execute(
                        f'SELECT count(*) FROM "{SCHEMA}".queue'.encode()
                    ).fetchall()
                    if self.load.waiting < AHEAD:
                        enough.unlink(missing_ok=True)
                    else:
                        enough.touch()

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
        self._keep_alive()
        with suppress(psycopg.Error), self._looking() as connection:
            time.sleep(0.2)
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
            "kill of a client": (2, lambda: self._kill_client(machine)),
            "stop of a broker": (2, lambda: self._stop(machine, "broker")),
            "stop of a fleet": (2, lambda: self._stop(machine, "")),
            "reload": (2, lambda: os.kill(machine.fleet.guardian_pid, signal.SIGHUP)),
            "restart of a fleet": (1, lambda: self._long(machine, machine.restart)),
            "end of sessions": (3, lambda: self.server.end_sessions("taskq%")),
            "kill of a backend": (2, self._kill_backend),
            "kill of the server": (1, self._kill_server),
            "kill of the server right behind a commit": (1, self._kill_behind_commit),
            "restart of the server": (1, self.server.restart),
            "stop of the server": (2, self._freeze_server),
            "full disk": (1, self._fill_disk),
            "cut of a machine": (4, lambda: self._cut(machine)),
            "deafness of a machine": (2, lambda: self._lose(machine, self._database, machine.host)),
            "muteness of a machine": (2, lambda: self._lose(machine, machine.host, self._database)),
        }
        [name] = self._random.choices(list(kinds), weights=[weight for weight, _ in kinds.values()])
        is_busy = not machine.is_busy.acquire(blocking=False)  # with something that takes a while
        if is_busy and ("machine" in name or "fleet" in name or name == "reload"):
            return
        if not is_busy:
            machine.is_busy.release()
        print(f"{time.monotonic() - self._began_at:7.1f} {name}", flush=True)
        kinds[name][1]()
        self.faults[name] += 1

    def _long(self, machine: Machine, act: Callable[[], object]) -> None:
        """Others happen meanwhile, but none of this kind to this machine."""
        if not machine.is_busy.acquire(blocking=False):
            return

        def run() -> None:
            try:
                act()
            except Exception as error:
                self.history.leaks.append(f"a fault of {machine.name}: {error!r}")
            finally:
                machine.is_busy.release()

        thread = Thread(target=run)
        self._long_faults.append(thread)
        thread.start()

    def _for_a_while(self) -> None:
        time.sleep(self._random.choice((0.3, 1.0, 3.0, 1.6 * LEASE_S, 2.6 * LEASE_S)))

    def _stop(self, machine: Machine, role: str) -> None:
        processes = machine.processes(role) if role else machine.fleet.processes()
        self._long(machine, lambda: machine.stop_for(processes, self._for_a_while))

    def _kill_client(self, machine: Machine) -> None:
        machine.kill_client()
        machine.start_client(self.path)

    def _kill_backend(self) -> None:
        """The server then ends all others, too, and recovers."""
        with self.server.connect() as connection:
            found = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'taskq%%'"
            ).fetchall()
        if found:
            [pid] = self._random.choice(found)
            os.kill(pid, signal.SIGKILL)
            wait_until(self.server._answers, "the recovery of the server", 60.0)

    def _kill_server(self) -> None:
        self.server.kill()
        self.server.start()

    def _kill_behind_commit(self) -> None:
        """What was acknowledged just before is there."""
        label = f"behind-{self.faults['kill of the server right behind a commit']}"
        self.history.intents[label] = label
        with suppress(*REFUSALS), psycopg.connect(self.server.dsn(), connect_timeout=5) as connection:
            if self._random.random() < 0.5:
                self.load.acked([(label, soak_machines.work.enqueue(self.path, label, 0.0))])
            else:
                with soak_machines.q.within(connection):
                    job = soak_machines.work.enqueue(self.path, label, 0.0)
                connection.commit()
                self.load.acked([(label, job)])
            self.server.kill()
            self.server.start()

    def _freeze_server(self) -> None:
        self.server.freeze()
        self._for_a_while()
        self.server.thaw()

    def _fill_disk(self) -> None:
        try:
            self.server.fill_disk(_LEFT_BYTES)
            self._for_a_while()
        finally:
            self.server.make_room()
        if self.server.has_died:
            self.server.start()

    def _cut(self, machine: Machine) -> None:
        def cut() -> None:
            self._network.cut(machine.host)
            self._for_a_while()
            self._network.mend(machine.host)

        self._long(machine, cut)

    def _lose(self, machine: Machine, sender: Host, receiver: Host) -> None:
        def lose() -> None:
            self._network.lose(sender, receiver)
            self._for_a_while()
            self._network.lose_no_more(sender, receiver)

        self._long(machine, lose)

    # -- the end

    def _note_the_end(self) -> None:
        h = self.history
        h.ended_at = time.monotonic()
        self._labels = {job.id: label for label, job in self.load.jobs.items()}
        self._note_clients()
        self._note_logs()
        with self.server.connect() as connection:
            rows = connection.execute(
                f"SELECT id, state, attempts, crashes, snoozes, outcome, extract(epoch FROM finished_at)::float8"
                f' FROM "{SCHEMA}".jobs'.encode()
            ).fetchall()
            h.kept_orders = {str(order) for (order,) in connection.execute("SELECT id FROM public.orders")}
            [(edges,)] = connection.execute(f'SELECT count(*) FROM "{SCHEMA}".edges WHERE is_open'.encode()).fetchall()
            [(grants,)] = connection.execute(f'SELECT count(*) FROM "{SCHEMA}".grants'.encode()).fetchall()
            h.counted = counted_in(
                lambda sql: connection.execute(sql.replace("taskq.", f'"{SCHEMA}".').encode()).fetchall()
            )
        self._note_fires(rows)
        self._note_jobs()
        self._note_finals(rows)
        self._note_items()
        self._end_what_was_interrupted()
        if edges or grants:
            h.leaks.append(f"{edges} edges are open, {grants} grants are left")

    def _note_clients(self) -> None:
        for machine in self.machines:
            for line in machine.client_notes.read_text().splitlines() if machine.client_notes.exists() else ():
                match line.split():
                    case ["intent", label, _]:
                        self.history.intents[label] = label
                    case ["order", label, order, _]:
                        self.history.orders[label] = order
                    case ["acked", label, job_id, at]:
                        self.history.acked[label] = float(at)
                        self._labels[job_id] = label
                    case ["refused", _, error, _]:
                        self.load.refusals[error] += 1

    def _note_logs(self) -> None:
        """When consumers died that nobody here has killed, and what must not be in a log."""
        offset_s = time.time() - time.monotonic()
        bugs: Counter[str] = Counter()
        for machine in self.machines:
            for event in machine.fleet.events():
                if event["event"] in _BUGS:
                    bugs[event["event"]] += 1
                if event["event"] in _ENDS_OF_CONSUMERS and "pid" in event:
                    name = f"{machine.name}.{event['pid']}"
                    at = datetime.fromisoformat(event["timestamp"]).timestamp() - offset_s
                    self.history.deaths.setdefault(name, at)
                    if _BLAMELESS in event.get("reason", ""):
                        self.history.blameless.add(name)
        self.history.leaks += [f"{count} times {event} in the logs" for event, count in bugs.items()]

    def _note_fires(self, rows: list[tuple[Any, ...]]) -> None:
        """Which jobs are those of the schedule, and for which times."""
        ids, h = {UUID(str(row[0])).bytes for row in rows}, self.history
        last = int(time.time() / _EVERY_S) + 1
        first = last - int((time.monotonic() - self._began_at) / _EVERY_S) - 10
        times = {number * _EVERY_S for number in range(first, last)}
        h.fired[_SCHEDULE] = {at for at in times if fired_id(_SCHEDULE, at) in ids}
        for at in h.fired[_SCHEDULE]:
            job_id = fired_id(_SCHEDULE, at).hex()
            label = self._labels[job_id] = f"tick-{job_id}"
            h.intents[label], h.may_end[label] = label, frozenset({"succeeded"})

    def _note_jobs(self) -> None:
        h = self.history
        for line in Path(self.path).read_text().splitlines():
            what, label, job_id, number, process, moment, *more = line.split()
            attempt, at = int(number), float(moment)
            if self._labels.setdefault(job_id, label) != label:
                h.leaks.append(f"job {job_id} ran as {self._labels[job_id]} and as {label}")
            match what:
                case "start":
                    h.starts.append(Start(label, attempt, process, at, label))
                case "end" | "fail":
                    h.ends.append(End(label, attempt, process, at, what == "end"))
                case "death":
                    h.deaths[process] = at
                case "child":
                    h.intents[more[0]], h.may_end[more[0]] = more[0], frozenset({"succeeded"})
                    self._labels[more[1]] = more[0]
                    h.children.append(Children(label, attempt, process, "", (more[0],)))
                case "found":
                    h.found.append(Found(label, process, at, more[0] if more[0] != "0" else ""))
                case "kept":
                    h.kept.append(Kept(label, attempt, process, at, more[0]))

    def _note_finals(self, rows: list[tuple[Any, ...]]) -> None:
        h, offset_s = self.history, time.time() - time.monotonic()
        for job_id, state, attempts, crashes, snoozes, outcome, finished_at in rows:
            own = UUID(str(job_id))
            label = self._labels.get(own.hex, f"unknown {job_id}")
            read = read_outcome(bytes(outcome or b""))
            name = StoredState(state).state.value if state >= FIRST_FINAL else "alive"
            if label in h.final:
                h.leaks.append(f"job {label} is there twice")
            h.final[label] = Final(
                name, attempts, crashes, "", h.asked_retries[label], snoozes, "ParentFailed" in repr(read)
            )
            if finished_at is not None:
                h.finished_at[label] = finished_at - offset_s
            if name == "succeeded":
                process, number = decode_result(own.bytes, read.result or b"").split()
                h.winners[label] = process, int(number)
            elif name == "alive":
                h.leaks.append(f"job {label} never ended")

    def _note_items(self) -> None:
        for label in self.history.wanted_items:
            if label in self.history.winners and label in self.load.jobs:
                self.history.items[label] = list(self.load.jobs[label].items(timeout=10.0))

    def _end_what_was_interrupted(self) -> None:
        """A job that is stopped in the middle of a note has none of its end: it was over when its process began another
        one, or when its end was stored."""
        h = self.history
        noted = {(end.job, end.attempt, end.process) for end in h.ends}
        of_process: dict[str, list[Start]] = defaultdict(list)
        for start in sorted(h.starts, key=lambda start: start.at):
            of_process[start.process].append(start)
        for process, starts in of_process.items():
            for start, after in zip(starts, [*starts[1:], None], strict=True):
                if (start.job, start.attempt, process) in noted:
                    continue
                at = (
                    after.at if after is not None else h.finished_at.get(start.job) if process not in h.deaths else None
                )
                if at is not None:
                    h.ends.append(End(start.job, start.attempt, process, at, False))

    def close(self) -> None:
        """Ends the fleets."""
        self.load.is_over.set()
        self._is_quiet_now.set()
        for machine in self.machines:
            machine.kill_client()
            with suppress(AssertionError):
                machine.fleet.kill_all()

    @property
    def counts(self) -> dict[str, Any]:
        """How much was proved."""
        h = self.history
        return {
            "faults": dict(self.faults),
            "acts of clients": dict(self.load.acts),
            "acknowledged": len(h.acked),
            "jobs": len(h.final),
            "ends": dict(Counter(final.state for final in h.final.values())),
            "starts": len(h.starts),
            "ends of brokers": len(h.ended_brokers),
            "deaths of consumers": len(h.deaths),
            "of these to keep a limit": len(h.blameless),
            "crashes charged": sum(final.crashes for final in h.final.values()),
            "machines taken for dead": sum(m.fleet.count("fleet.lost") for m in self.machines),
            "machines that came back": sum(m.fleet.count("fleet.was_taken_for_dead") for m in self.machines),
            "outcomes refused": sum(m.fleet.count("job.lost") for m in self.machines),
            "jobs with limits": len(h.limited),
            "jobs in an order": len(h.places),
            "due times of a schedule": sum(len(times) for times in h.fired.values()),
            "children": len(h.children),
            "checkpoints": len(h.kept),
            "items read": sum(len(items) for items in h.items.values()),
            "transactions of the application": len(h.orders),
            "of these committed": len(h.kept_orders),
            "steps after others": len(h.after),
            "counted": h.counted,
            "refused while the database was away": dict(self.load.refusals),
            "sizes at the start and at the end": self.sizes,
        }


def soak(seconds: float, seed: str, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """One run. Returns what is wrong, and the counts."""
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        database = network.host()
        settings = {"listen_addresses": database.address, "max_connections": "200"}
        options = {"settings": settings, "prefix": database.prefix, "small_disk": "data", "disk_mb": _DISK_MB}
        server = stack.enter_context(running_server(**options))
        server.allow_network()
        run = Soak(folder, network, server, database, seed)
        stack.callback(run.close)
        return run.run(seconds), run.counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", default=str(random.randrange(1_000_000)))
    parser.add_argument("--keep", help="a folder for the notes and the logs, which are kept there")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with ExitStack() as stack:
        folder = Path(options.keep or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        wrong, counts = soak(options.minutes * 60, options.seed, folder)
    print(json.dumps(counts, indent=1))
    print("\n".join(wrong) or "nothing is wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
