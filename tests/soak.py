"""A fleet under load and fire, for as long as you like; then the judge's verdict, with counts.

    python tests/soak.py --minutes 30

Producers enqueue, flood, watch and are killed; consumers, brokers and guardians are killed and stopped at random. Jobs
kill their own processes, hang, end in ways that make no sense, print without end, take the descriptors of their
consumers, and have a new key each. Consumers are recycled and reloaded, also with code that does not work; queues are
paused; the fleet rests now and then while producers go on, and is looked at meanwhile. Garbage comes to the socket, and
the disk is full now and then (a small filesystem in memory, for which the soak must be root; without, it says that it
left that out). Everyone notes what he sees; history.py judges, also the totals of the fleet's status.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "support"))
sys.path.insert(0, str(Path(__file__).parent / "support" / "apps"))
sys.path.insert(0, str(Path(__file__).parent / "simulation"))

import psutil
import soak_app
from fleet import APPS, Fleet, wait_until
from history import End, Final, History, Limits, Read, Start, check

APP = f"{APPS / 'soak_app.py'}:q"
PRODUCERS = 3
DISK_MB = 400
SAMPLE_EVERY_S = 5.0
#: After the faults the fleet gets so long to end what waits.
PATIENCE_S = 180.0


class Soak:
    """One run."""

    def __init__(self, home: Path, seconds: float, jobs_per_s: float, seed: str) -> None:
        self.notes = home / "notes"
        self.notes.mkdir()
        self.seconds = seconds
        self.jobs_per_s = jobs_per_s
        self.random = random.Random(seed)
        self.disk = home / "disk"
        self.disk.mkdir()
        self.has_small_disk = _mount(self.disk)
        os.environ["TASKQ_SOAK_NOTES"] = str(self.notes)
        self.fleet = Fleet(
            self.disk / "queue",
            APP,
            consumers=2,
            keep_results_s=600.0,  # longer than any producer is away: what it did not read would count as lost
            max_jobs=2_000,
            log_level="info",
            stderr_level="critical",
            environment={"TASKQ_SOAK_NOTES": str(self.notes)},
        )
        self.fleet.home.mkdir(mode=0o700)
        self.history = History(restart_within_s=30.0, told_within_s=3.0, noted_within_s=0.1)
        self.faults: Counter[str] = Counter()
        self.urgent: set[str] = set()
        self.samples: list[dict[str, float]] = []
        self.producers: list[subprocess.Popen[bytes]] = []

    # -- its parts

    def run(self) -> None:
        """Load and faults, then quiet, then the end."""
        self.fleet.start()
        self.producers = [self._start_producer(number) for number in range(PRODUCERS)]
        end_at = time.monotonic() + self.seconds
        sample_at = 0.0
        while (now := time.monotonic()) < end_at:
            self._keep_alive()
            if now >= sample_at:
                sample_at = now + SAMPLE_EVERY_S
                self._sample()
            time.sleep(self.random.uniform(0.1, 2.5))
            with suppress(psutil.Error, ProcessLookupError):
                self._fault()
        self._end()

    def _end(self) -> None:
        self._keep_alive()
        (self.notes / "stop").touch()
        for number, producer in enumerate(self.producers):
            if producer.wait(PATIENCE_S) != 0:
                self.history.bad_exits.append(f"producer {number} ended with {producer.returncode}")
        wait_until(
            lambda: not any(any(q.values()) for q in self.fleet.status()["queues"].values()), "quiet", PATIENCE_S
        )
        self._sample()
        self.history.totals = self.fleet.totals()
        code = self.fleet.stop()
        if code != 0:
            self.history.bad_exits.append(f"the guardian ended with {code}")
        self.history.leaks += [f"{name} is left" for name in _left_over(self.fleet.home)]
        bugs = Counter(event["event"] for event in self.fleet.events() if event["event"] in _BUGS)
        self.history.leaks += [f"{count} times {event} in the log" for event, count in bugs.items()]

    def _start_producer(self, number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(APPS / "soak_producer.py"), self.notes, number, self.jobs_per_s / PRODUCERS]
        return subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, "TASKQ_URL": str(self.fleet.home)},
            stderr=(self.notes / f"producer-{number}.stderr").open("ab"),
        )

    def _keep_alive(self) -> None:
        for number, producer in enumerate(self.producers):
            if producer.poll() is not None:
                if producer.returncode != -signal.SIGKILL:
                    self.history.bad_exits.append(f"producer {number} ended with {producer.returncode}")
                self.producers[number] = self._start_producer(number)
        if not psutil.pid_exists(self.fleet.guardian_pid) or self.fleet._guardian.poll() is not None:  # type: ignore[union-attr]
            self.fleet.wait_until_nothing_is_left()
            self.fleet.start(wait=False)

    # -- faults

    def _fault(self) -> None:
        kinds: dict[Callable[[], None], int] = {
            self._kill_consumer: 40,
            self._kill_broker: 12,
            self._kill_guardian: 3,
            self._kill_producer: 8,
            self._stop_consumer: 12,
            self._stop_broker: 4,
            self._garbage: 10,
            self._reload: 8,
            self._reload_broken_code: 3,
            self._pause: 5,
            self._look: 8,
            self._rest: 3,
            self._fill_disk: 3 if self.has_small_disk else 0,
        }
        [fault] = self.random.choices(list(kinds), weights=list(kinds.values()))
        fault()
        self.faults[fault.__name__.strip("_")] += 1

    def _roles(self) -> tuple[psutil.Process | None, list[psutil.Process]]:
        """The broker and its consumers, as the system knows them."""
        for process in psutil.Process(self.fleet.guardian_pid).children():
            if "taskq: broker" in " ".join(process.cmdline()):
                consumers = [c for c in process.children() if "taskq: consumer" in " ".join(c.cmdline())]
                return process, consumers
        return None, []

    def _kill(self, process: psutil.Process, *also: psutil.Process) -> None:
        now = time.monotonic()  # not when we see that it is dead: its job may be running elsewhere by then
        process.kill()
        psutil.wait_procs([process, *also], timeout=10)
        for dead in (process, *also):
            self.history.deaths[str(dead.pid)] = now

    def _kill_consumer(self) -> None:
        _, consumers = self._roles()
        if consumers:
            self._kill(self.random.choice(consumers))

    def _kill_broker(self) -> None:
        broker, consumers = self._roles()
        if broker is not None:
            self._kill(broker, *consumers)
            self.history.broker_deaths.append(time.monotonic())

    def _kill_guardian(self) -> None:
        broker, consumers = self._roles()
        guardian = psutil.Process(self.fleet.guardian_pid)
        now = time.monotonic()
        guardian.kill()
        self.fleet._guardian.wait()  # type: ignore[union-attr]
        if broker is not None:
            psutil.wait_procs([broker, *consumers], timeout=20)
            self.history.broker_deaths.append(time.monotonic())
            for consumer in consumers:
                self.history.deaths.setdefault(str(consumer.pid), now)
        self._keep_alive()

    def _kill_producer(self) -> None:
        producer = self.random.choice(self.producers)
        producer.kill()
        producer.wait()  # else the last one killed is not started again, and its jobs are read by nobody

    def _stop(self, process: psutil.Process, name: str, seconds: float) -> None:
        process.suspend()
        since = time.monotonic()
        time.sleep(seconds)
        process.resume()
        self.history.stops.append((name, since, time.monotonic()))

    def _stop_consumer(self) -> None:
        _, consumers = self._roles()
        if consumers:
            consumer = self.random.choice(consumers)
            self._stop(consumer, str(consumer.pid), self.random.choice((0.05, 0.5, 2.0)))

    def _stop_broker(self) -> None:
        broker, _ = self._roles()
        if broker is not None:
            self._stop(broker, "*", self.random.choice((0.05, 0.5, 2.0)))

    def _garbage(self) -> None:
        with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
            client.settimeout(1.0)
            client.connect(str(self.fleet.home / "taskq.sock"))
            client.sendall(self.random.choice((b"GET / HTTP/1.1\r\n\r\n", os.urandom(4_000), bytes(12), b"\0\0")))
            client.recv(100)

    def _command(self, *arguments: str, expected: set[int]) -> str:
        """Runs a command of taskq about the fleet; other exit codes than those expected are wrong."""
        command = [sys.executable, "-m", "taskq", arguments[0], APP, *arguments[1:]]
        environment = {**os.environ, "TASKQ_URL": str(self.fleet.home)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode not in expected:
            self.history.bad_exits.append(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-300:]}")
        return done.stdout

    def _reload(self) -> None:
        os.kill(self.fleet.guardian_pid, signal.SIGHUP)

    def _reload_broken_code(self) -> None:
        """The old consumers go on, and the command says that the new code does not work."""
        flag = self.notes / "broken"
        flag.touch()
        try:
            self._command("reload", expected={1, 3, 4})
        finally:
            flag.unlink()
        self._reload()

    def _pause(self) -> None:
        self._command("pause", "default", expected={0, 4})
        time.sleep(self.random.uniform(0.1, 1.0))
        self._command("resume", "default", expected={0, 4})

    def _look(self) -> None:
        self._command("status", "--json", expected={0, 4})
        self._command("jobs", "--state", "failed", "--json", expected={0, 4})

    def _rest(self) -> None:
        """Stops the fleet in good order, and looks at it while producers go on."""
        code = self.fleet.stop()
        if code != 0:
            self.history.bad_exits.append(f"the guardian ended with {code}")
        self._command("status", "--json", expected={0})
        time.sleep(self.random.uniform(0.0, 3.0))
        self._keep_alive()

    def _fill_disk(self) -> None:
        filler = self.disk / "filler"
        descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
        since = time.monotonic()
        try:
            with suppress(OSError):
                while True:
                    os.write(descriptor, bytes(1 << 20))
            with suppress(OSError):
                while True:
                    os.write(descriptor, bytes(4096))
            time.sleep(self.random.uniform(0.5, 2.0))
        finally:
            os.close(descriptor)
            filler.unlink()
        self.history.stops.append(("*", since, time.monotonic()))

    # -- figures

    def _sample(self) -> None:
        with suppress(psutil.Error):
            broker, consumers = self._roles()
            if broker is None:
                return
            everyone = [psutil.Process(self.fleet.guardian_pid), broker, *consumers]
            self.samples.append(
                {
                    "broker rss MB": broker.memory_info().rss / 1e6,
                    "consumer rss MB": max((c.memory_info().rss for c in consumers), default=0) / 1e6,
                    "broker descriptors": broker.num_fds(),
                    "broker threads": broker.num_threads(),
                    "guardian descriptors": everyone[0].num_fds(),
                    "zombies": sum(p.status() == psutil.STATUS_ZOMBIE for p in self._descendants()),
                    "journal MB": _size(self.fleet.home / "journal.db") / 1e6,
                    "wal MB": _size(self.fleet.home / "journal.db-wal") / 1e6,
                    "log MB": sum(_size(path) for path in (self.fleet.home / "log").iterdir()) / 1e6,
                    "semaphores": sum(name.startswith(("sem.mp-", "sem.taskq-")) for name in os.listdir("/dev/shm")),
                }
            )

    def _descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.fleet.guardian_pid).children(recursive=True)

    def waits_of_urgent(self) -> str:
        """How long urgent jobs waited for their first start, in words; times without a fleet, and faults, included."""
        first: dict[str, float] = {}
        for start in self.history.starts:
            first[start.job] = min(start.at, first.get(start.job, start.at))
        waits = sorted(
            first[job] - self.history.acked[job] for job in self.urgent & first.keys() & self.history.acked.keys()
        )
        if not waits:
            return "never: there were none"
        return f"{waits[len(waits) // 2]:.3f} s (median of {len(waits)}), {waits[-1]:.1f} s at most"

    # -- the verdict

    def judge(self) -> list[str]:
        """Reads all notes, and asks the judge."""
        history = self.history
        last_seen: dict[str, float] = defaultdict(float)
        for path in self.notes.glob("jobs-*"):
            for line in path.read_bytes().split(b"\n")[:-1]:
                kind, job, attempt, *rest, pid, at = json.loads(line)
                process = str(pid)
                last_seen[process] = max(last_seen[process], at)
                if kind == "start":
                    history.starts.append(Start(job, attempt, process, at, rest[0]))
                elif kind == "end":
                    history.ends.append(End(job, attempt, process, at, rest[0]))
                else:
                    history.deaths[process] = at
        for process, at in history.deaths.items():
            history.deaths[process] = max(at, last_seen[process])
        for path in self.notes.glob("producer-?"):
            for line in path.read_bytes().split(b"\n")[:-1]:
                self._note_of_producer(*json.loads(line))
        return check(history)

    def _note_of_producer(self, kind: str, job: str, *rest: Any) -> None:
        history = self.history
        match kind:
            case "intent":
                history.intents[job] = rest[0]
                history.limits[job] = Limits(*soak_app.LIMITS[rest[1]])
                if rest[1] == "urgent":
                    self.urgent.add(job)
            case "acked":
                history.acked[job] = rest[0]
            case "read":
                state, attempts, crashes, outcome, at = rest
                history.reads.append(Read(job, state, outcome, at))
                history.final.setdefault(job, Final(state, attempts, crashes, outcome))


#: Events that tell of a bug of ours.
_BUGS = ("broker.failed", "store.failed", "store.damaged", "consumer.confused")  # a kill may tear a line of the log


def _mount(path: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=700", "tmpfs", str(path)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _left_over(home: Path) -> list[str]:
    return [name for name in ("taskq.sock", "journal.db-wal") if (home / name).exists()]


def report(soak: Soak, wrong: list[str], seconds: float) -> None:
    """Prints the verdict."""
    history = soak.history
    print(f"\n{seconds / 60:.1f} minutes; faults: {dict(soak.faults)}", end="")
    print("" if soak.has_small_disk else " (the disk was never full: that needs root)")
    states = Counter(final.state for final in history.final.values())
    print(f"jobs meant {len(history.intents):,}, acknowledged {len(history.acked):,}, ended {dict(states)}")
    print(
        f"attempts {len(history.starts):,}, processes killed {len(history.deaths):,}, brokers {len(history.broker_deaths)}"
    )
    print("totals", history.totals)
    print("urgent jobs waited", soak.waits_of_urgent())
    for name in soak.samples[0] if soak.samples else ():
        values = [sample[name] for sample in soak.samples]
        fifth = max(1, len(values) // 5)
        early, late = (
            sorted(values[fifth : 2 * fifth] or values)[len(values[fifth : 2 * fifth]) // 2],
            sorted(values[-fifth:])[fifth // 2],
        )
        print(f"  {name:<22} early {early:8.1f}   late {late:8.1f}   most {max(values):8.1f}")
    lost = sum(line.startswith("no_acked_job_is_lost") for line in wrong)
    print(
        "VERDICT:", "nothing wrong" if not wrong else f"{len(wrong)} things wrong", f"- {lost} acknowledged jobs lost"
    )
    for line in wrong[:20]:
        print("  ", line)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--jobs-per-s", type=float, default=300.0)
    parser.add_argument("--seed", default=str(time.time_ns()))
    parser.add_argument("--keep", action="store_true", help="keep the notes and the directory")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="taskq-soak-"))
    print(f"seed {arguments.seed}, notes in {home}", flush=True)
    began = time.monotonic()
    soak = Soak(home, arguments.minutes * 60, arguments.jobs_per_s, arguments.seed)
    try:
        soak.run()
        wrong = soak.judge()
        report(soak, wrong, time.monotonic() - began)
    finally:
        for producer in soak.producers:
            producer.kill()
        for process in soak.fleet.processes():
            process.kill()
        if not arguments.keep:
            if soak.has_small_disk:
                subprocess.run(["umount", str(soak.disk)], check=False)
            shutil.rmtree(home, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
