"""Several machines and one real PostgreSQL server, in a world made of chance.

    python tests/simulation/postgres_simulation.py --seeds 1000
    python tests/simulation/postgres_simulation.py --from 4711 --seeds 1

Machines have real engines (`PostgresEngine`) and cores, consumers that are played, and a clock that may be an hour off.
Clients run the real operations. Time is simulated, also that of the database, and a seed decides what happens between
any two statements: links break before a statement or behind a commit, commits are held up, notifications come late or
never, machines are cut off, frozen and lost, beats are emptied. What was seen goes to the judge (history_machines.py).
"""

from __future__ import annotations

import argparse
import heapq
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from itertools import count
from math import inf
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

sys.path.append(str(Path(__file__).parents[1] / "support"))  # also as a program of its own

from history import Final, Limits, Read
from history_machines import MachinesHistory, Wait, check
from history_shared import counted_in
from machines import SCHEMA
from postgres import Server, running_server
from scripted_database import make_template
from simulated_clients import SimClient
from simulated_database import SimLink, Wire
from simulated_limits import LimitedJobs
from simulated_machines import LEASE_S, WALL_S, Machine, digest

from taskq.engines.postgres.round import Round
from taskq.model.attempt import read_outcome
from taskq.model.constraints import Constraints, UniqueKey
from taskq.model.errors import BrokerUnavailable, TaskQError
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, StoredState
from taskq.protocol.postgres.watching import READS_ENDINGS, channel_of, words_in
from taskq.protocol.submissions import Call, EarlierId
from taskq.system.place import DatabaseUrl

#: Chance is at work for so long; then everything must end within the time after it.
_LIFE_S = 14.0
_QUIET_S = 150.0
#: Nothing is lost; links break; one of two machines is cut off or frozen for longer than the lease, once; everything at
#: random; one machine with one consumer. And jobs with limits: nothing is lost; one of two
#: machines is cut off or frozen; everything at random. A busy machine leases many small jobs.
KINDS = (
    "calm",
    "lossy",
    "parted",
    "busy parted",
    "stormy",
    "stormy",
    "orderly",
    "limits",
    "limits parted",
    "limits stormy",
)
_ACTS = (
    "submit",
    "submit",
    "call",
    "call",
    "delayed",
    "expires",
    "unique",
    "flow",
    "within",
    "wait",
    "cancel",
    "retry",
)
_WITHOUT_LOSSES = ("calm", "orderly", "parted", "busy parted", "limits", "limits parted")
_ACTS_WITH_LIMITS = ("limited",) * 12 + _ACTS
TASKS = ("ok", "ok", "ok", "fails", "fails_once", "poison", "poison_once", "snoozes")


class World:
    """One life."""

    def __init__(self, seed: int, server: Server, folder: Path, kind: str = "") -> None:
        """
        Args:
            folder: for the directories of the machines.
            kind: of `KINDS`; "" for one by chance.
        """
        self.random = Random(seed)
        self.folder = folder
        self.now = 1.0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._tie = count()
        self.numbers = count(1)
        self.links: list[SimLink] = []
        self.history = MachinesHistory(lease_s=LEASE_S)
        self._server = server
        self._database = server.create_database("scripted")
        self.url = DatabaseUrl(f"{server.url(self._database)}&lease={LEASE_S:g}", SCHEMA)
        self.conninfo = server.dsn(self._database)
        self.wire = Wire(server, self._database, self._hear)
        self.wire.rows("CREATE TABLE public.orders (id uuid PRIMARY KEY)")
        self.kind = kind or self.random.choice(KINDS)
        self._has_faults = True
        self._losses = 0.0 if self.kind in _WITHOUT_LOSSES else self.random.choice((0.002, 0.01, 0.03))
        self._holds = self.random.choice((0.02, 0.2, 0.6)) if self.kind != "orderly" else 0.0
        self._lost_words = 0.0 if self.kind in _WITHOUT_LOSSES else self.random.choice((0.0, 0.1, 0.5))
        self.history.is_calm = self.kind in ("calm", "limits")
        self._acts = _ACTS_WITH_LIMITS if self.kind.startswith("limits") else _ACTS
        self.history.is_orderly = self.kind == "orderly"
        machines = (
            1 if self.history.is_orderly else 2 if self.kind.endswith("parted") else self.random.choice((2, 2, 3))
        )
        slots = 1 if self.history.is_orderly else 2
        self.machines = [Machine(self, f"m{number}", slots) for number in range(1, machines + 1)]
        self.clients = [SimClient(self, number) for number in (101, READS_ENDINGS + 102)]
        self._ids = count(1)
        self._jobs: list[str] = []
        self._last_id = b""

    # -- what chance decides

    def delay(self) -> float:
        """What an answer, or a notification, takes."""
        return self.random.choice((0.0005, 0.001, 0.001, 0.003, 0.02))

    def holds_for(self) -> float:
        """What a commit is held up."""
        return self.random.choice((0.002, 0.02, 0.2))

    def commit_is_held(self, exchange: object) -> None:
        """Somebody begins to wait for a job just while its end is to be committed."""
        ended = exchange.outcomes.effects.ended if isinstance(exchange, Round) else ()
        idle = [client for client in self.clients if not client.doing]
        if ended and idle:
            row, _, _ = self.random.choice(ended)
            self._wait(self.random.choice(idle), row.id.hex())

    def run_time(self) -> float:
        """What a job takes."""
        short = (0.001, 0.01, 0.05, 0.3)
        choices = (
            (*short, 3.0)
            if self.history.is_calm
            else short
            if self.kind == "orderly"
            else (0.001, 0.01, 0.05, 0.3, 2.0, 7.0)
        )
        if self.kind.endswith("parted"):
            choices = (0.05, 0.3, 2.0, 9.0 if self.kind == "limits parted" else 5.0)
        if self.kind == "busy parted":
            choices = (0.001, 0.001, 0.01)
        return self.random.choice(choices)

    def fate_of_step(self) -> str:
        if not self._has_faults:
            return ""
        dice = self.random.random()
        if dice < self._losses:
            return "no answer"
        if dice < 1.5 * self._losses:
            return "not sent"
        return "held" if self.random.random() < self._holds else ""

    # -- events

    def later(self, after_s: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now + after_s, next(self._tie), act))

    def wake(self, who: Machine | SimClient, at: float | None = None) -> None:
        """A machine or a client has its turn, at once or at a time, unless it has one before."""
        at = self.now if at is None else at
        if at >= who.turns_at or at == inf:
            return
        who.turns_at = at

        def turn() -> None:
            if who.turns_at == at:
                who.turns_at = inf
                who.turn()

        self.later(at - self.now, turn)

    def tell_time(self) -> None:
        self.wire.set_clock(WALL_S + self.now)

    def _hear(self, channel: str, word: str) -> None:
        """What was notified is on its way."""
        if self._has_faults and self.random.random() < self._lost_words:
            return
        at = self.now + self.delay()
        if channel == SCHEMA:
            for machine in self.machines:
                machine.words.add(at, word)
                self.wake(machine, at)
            return
        [client] = [each for each in self.clients if channel == channel_of(SCHEMA, each.number)]
        self.later(at - self.now, lambda: self._told(client, word))

    def _told(self, client: SimClient, word: str) -> None:
        if client.ear is not None:
            client.ear.heard += words_in(word)
            self.wake(client)

    def _run_until(self, end: float, is_over: Callable[[], bool] = lambda: False) -> None:
        while self._events and self._events[0][0] <= end and not is_over():
            at, _, act = heapq.heappop(self._events)
            self.now = max(self.now, at)
            act()
            self.wire.collect_words()

    def run(self) -> MachinesHistory:
        """Lives it. Returns what was seen."""
        try:
            if self.history.is_orderly:
                self._run_orderly()
            else:
                self._run_by_chance()
            self._note_the_end()
        finally:
            for link in list(self.links):
                link.remove()
            self.wire.close()
            self._server.drop_database(self._database)
        return self.history

    def _run_orderly(self) -> None:
        for _ in range(self.random.randint(3, 12)):
            self._submit(self.clients[0], "ok", self.random.randint(1, 4))
        self._run_until(self.now + 20.0, lambda: not self.clients[0].doing)
        self.machines[0].start()
        self._run_until(self.now + 60.0, self._is_all_over)

    def _run_by_chance(self) -> None:
        for machine in self.machines:
            self.later(self.random.random(), machine.start)
        for client in self.clients:
            self.later(self.random.random(), lambda client=client: self._act(client))
        if self.kind.endswith("stormy"):
            self.later(1.0, self._blow)
        elif self.kind == "lossy":
            self.later(2.0, self._kill_a_consumer)
        elif self.kind.endswith("parted"):
            self.later(self.random.uniform(3.0, 6.0), self._part)
        self._run_until(_LIFE_S)
        self._has_faults = False
        for machine in self.machines:
            machine.cut_until = machine.frozen_until = -1.0
            machine.start()
            self.wake(machine)
        self._run_until(_LIFE_S + _QUIET_S, self._is_all_over)

    def _is_all_over(self) -> bool:
        """Whether nothing is left to do; looked at now and then."""
        if self._has_faults and not self.history.is_orderly:
            return False
        if any(client.doing for client in self.clients) or next(self._tie) % 20:
            return False
        return not self.wire.rows("SELECT 1 FROM taskq.queue UNION ALL SELECT 1 FROM taskq.edges WHERE is_open LIMIT 1")

    # -- misfortunes

    def _blow(self) -> None:
        if not self._has_faults:
            return
        random, machine = self.random, self.random.choice(self.machines)
        match random.choice(("cut", "cut", "freeze", "broker", "consumer", "consumer", "crash")):
            case "cut":
                machine.cut_off(random.choice((0.5, 3.0, 9.0, 12.0)))
            case "freeze":
                machine.freeze(random.choice((0.5, 7.0)))
            case "broker":
                machine.kill_broker(random.choice((0.2, 1.0, 7.0)))
            case "consumer":
                machine.kill_any_consumer()
            case "crash":
                for link in self.links:
                    link.break_off(self.now, "chance: the server crashed")
                for table in ("beats", "watches"):
                    self.wire.rows(f"DELETE FROM taskq.{table}")
        self.later(random.uniform(0.3, 2.5), self._blow)

    def _part(self) -> None:
        """One machine is silent for longer than the lease; a busy one from when it has jobs of which it does not know
        yet what they are."""
        fleet = self.machines[0].fleet
        if self.kind == "busy parted" and (fleet is None or not fleet.engine._leases.has_arrived):
            if self._has_faults:
                self.later(0.001, self._part)
            return
        silent_s = self.random.uniform(1.2, 1.8) * LEASE_S
        (self.machines[0].cut_off if self.random.random() < 0.7 else self.machines[0].freeze)(silent_s)

    def _kill_a_consumer(self) -> None:
        if self._has_faults:
            self.random.choice(self.machines).kill_any_consumer()
            self.later(self.random.uniform(0.3, 4.0), self._kill_a_consumer)

    # -- what clients do

    def _act(self, client: SimClient) -> None:
        """A client does something, unless it is still at something else."""
        if not self._has_faults:
            return
        self.later(self.random.uniform(0.05, 0.8), lambda: self._act(client))
        if client.doing:
            return
        random = self.random
        some = random.choice(self._jobs[-random.choice((2, 30)) :]) if self._jobs else None
        act = random.choice(self._acts)
        if act == "call":
            self._submit(client, "ok", 1)
            self._wait(client, f"{self._last_id.hex()}")
        elif act == "within":
            self._submit_within(client)
        elif act == "flow":
            self._submit_flow(client)
        elif act == "limited":
            self._submit_limited(client)
        elif act in ("wait", "cancel", "retry"):
            if some is not None:
                getattr(self, f"_{act}")(client, some)
        else:
            jobs = random.choice((20, 60) if self.kind == "busy parted" else (1, 1, 2, 6))
            self._submit(client, random.choice(TASKS), jobs, act)

    def _call(self, client: SimClient, task: str, spec: Spec, **own: Any) -> Call:
        number = next(self._ids)
        at_ms = round(client.clock.time() * 1e3)
        job_id = self._last_id = (at_ms << 80 | 7 << 76 | 2 << 62 | number).to_bytes(16, "big")
        payload = f"{task} {number}".encode()
        h, job = self.history, job_id.hex()
        h.intents[job], h.limits[job] = digest(payload), Limits(spec.retries, spec.max_crashes)
        h.priorities[job] = spec.priority
        return Call(job_id, payload, Constraints(**own) if own else None)

    def _spec(self, task: str) -> Spec:
        random, queue = self.random, "a" if self.history.is_orderly else self.random.choice("ab")
        return Spec(
            task,
            queue,
            retries=random.choice((0, 1, 2)),
            max_crashes=random.choice((1, 2, 3)),
            priority=random.choice((0, 0, 5, 9)),
            backoff_s=(0.2,),
        )

    def _submit(self, client: SimClient, task: str, jobs: int, how: str = "") -> None:
        spec, own, wall = self._spec(task), dict[str, Any](), client.clock.time()
        in_s = self.random.choice((0.3, 1.0, 4.0))
        if how == "delayed":
            own["due_at"] = wall + in_s
        elif how == "expires":
            own["expires_at"] = wall + in_s
        elif how == "unique":
            jobs, own["unique"] = 1, UniqueKey(self.random.choice("xy"))
        calls = [self._call(client, task, spec, **own) for _ in range(jobs)]
        asked_at = self.now

        def acked(ids: Any) -> None:
            if isinstance(ids, BrokerUnavailable):
                return
            for job_id, call in zip(ids, calls, strict=True):
                if not isinstance(job_id, EarlierId):
                    job = call.id.hex()
                    self.history.acked[job] = self.now
                    self._jobs.append(job)
                    if how == "unique":
                        self.history.keys[job] = own["unique"].key

        for call in calls:
            if how == "delayed":
                self.history.not_before[call.id.hex()] = asked_at + in_s
            elif how == "expires":
                self.history.not_after[call.id.hex()] = asked_at + in_s
        client.do(f"submit of {len(calls)}", client.queue.submit(spec, calls), acked)

    def _submit_flow(self, client: SimClient) -> None:
        """Two jobs, and one after both, and one after that."""
        spec = self._spec("ok")
        one, two = (self._call(client, self.random.choice(TASKS), spec) for _ in "12")
        after = self._call(client, "ok", spec, after=((one.id, False), (two.id, False)))
        last = self._call(client, "ok", spec, after=((after.id, False),))
        calls = [one, two, after, last]
        self.history.after[after.id.hex()] = {one.id.hex(): False, two.id.hex(): False}
        self.history.after[last.id.hex()] = {after.id.hex(): False}

        def acked(value: Any) -> None:
            if not isinstance(value, BrokerUnavailable):
                for call in calls:
                    self.history.acked[call.id.hex()] = self.now
                    self._jobs.append(call.id.hex())

        client.do("submit of a flow", client.queue.submit_flow([(spec, call) for call in calls]), acked)

    def _submit_within(self, client: SimClient) -> None:
        spec, is_kept = self._spec("ok"), self.random.random() < 0.6
        call = self._call(client, "ok", spec)
        job, order = call.id.hex(), UUID(bytes=call.id)
        self.history.orders[job] = str(order)

        def acked(value: Any) -> None:
            if not isinstance(value, BrokerUnavailable) and is_kept:
                self.history.acked[job] = self.now
                self._jobs.append(job)

        client.do("submit within", client.queue.submit(spec, [call]), acked, (job, order, is_kept))

    def _submit_limited(self, client: SimClient) -> None:
        limited = LimitedJobs(self.random)
        calls = [self._call(client, task, limited.spec, **limited.constraints) for task in limited.tasks(self.random)]
        asked_at = self.now
        for number, call in enumerate(calls):
            limited.note(self.history, call.id.hex(), asked_at, number)

        def acked(value: Any) -> None:
            if not isinstance(value, BrokerUnavailable):
                self.history.acked.update((call.id.hex(), self.now) for call in calls)
                self._jobs += [call.id.hex() for call in calls]

        client.do(f"submit of {len(calls)} with limits", client.queue.submit(limited.spec, calls), acked)

    def _wait(self, client: SimClient, job: str) -> None:
        since = self.now

        def ended(ending: Any) -> None:
            if not isinstance(ending, TaskQError):
                outcome = repr(ending.outcome)
                self.history.reads.append(Read(job, ending.state.value, outcome, self.now, "ParentFailed" in outcome))
                self.history.waits.append(Wait(job, since, self.now))

        client.do(f"wait for {job}", client.queue.wait(bytes.fromhex(job), None), ended)

    def _cancel(self, client: SimClient, job: str) -> None:
        self.history.cancels.add(job)

        def answered(is_cancelled: Any) -> None:
            if is_cancelled is True:
                self.history.cancelled.setdefault(job, self.now)

        also_running = self.random.random() < 0.5
        if also_running:
            self.history.stopped.append((job, self.now))
        operation = client.queue.cancel(bytes.fromhex(job), also_running)
        client.do(f"cancel of {job}", operation, answered)

    def _retry(self, client: SimClient, job: str) -> None:
        self.history.retried.add(job)
        self.history.asked_retries[job] += 1

        def answered(value: Any) -> None:
            if not isinstance(value, TaskQError):
                self.history.requeued[job] += 1

        client.do(f"retry of {job}", client.queue.retry(bytes.fromhex(job)), answered)

    # -- the end

    def _note_the_end(self) -> None:
        h = self.history
        h.ended_at = self.now
        rows = self.wire.rows(
            "SELECT uuid_send(id), state, attempts, crashes, snoozes, outcome,"
            " extract(epoch FROM finished_at)::float8, settled_by FROM taskq.jobs"
        )
        for job_id, state, attempts, crashes, snoozes, outcome, finished_at, _ in rows:
            job = bytes(job_id).hex()
            read = read_outcome(bytes(outcome or b""))
            name = StoredState(state).state.value if state >= FIRST_FINAL else "alive"
            requeued = 5 if job in h.retried else 0
            h.final[job] = Final(name, attempts, crashes, repr(read), requeued, snoozes, "ParentFailed" in repr(read))
            if finished_at is not None:
                h.finished_at[job] = finished_at - WALL_S
            if name == "succeeded":
                assert read.result is not None
                process, number = bytes(read.result).decode().split()
                h.winners[job] = process, int(number)
        h.counted = counted_in(self.wire.rows)
        h.kept_orders = {str(order) for (order,) in self.wire.rows("SELECT id FROM public.orders")}
        h.unfinished = [client.doing for client in self.clients if client.doing]
        [(left, edges)] = self.wire.rows(
            "SELECT (SELECT count(*) FROM taskq.queue), (SELECT count(*) FROM taskq.edges WHERE is_open)"
        )
        h.leaks = [f"{left} jobs and {edges} open edges are left in the tables"] if left or edges else []


class Lives:
    """Lives in databases of one server."""

    def __init__(self, server: Server, folder: Path) -> None:
        make_template(server)
        self._server, self._folder = server, folder
        self._number = count()

    def live(self, seed: int, kind: str = "") -> MachinesHistory:
        """One life; see `World`."""
        folder = self._folder / str(next(self._number))
        folder.mkdir()
        return World(seed, self._server, folder, kind).run()

    def judge(self, seed: int, kind: str = "") -> list[str]:
        """What is wrong with a life."""
        return check(self.live(seed, kind))


@contextmanager
def lives() -> Any:
    """Lives on a server of their own."""
    with running_server() as server, tempfile.TemporaryDirectory() as folder:
        yield Lives(server, Path(folder))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--from", type=int, default=0, dest="first")
    options = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    with lives() as own:
        for seed in range(options.first, options.first + options.seeds):
            history = own.live(seed)
            counts.update(lives=1, jobs=len(history.final), starts=len(history.starts), deaths=len(history.deaths))
            for line in check(history):
                counts["wrong"] += 1
                print(f"seed {seed}: {line}", flush=True)
    print(dict(counts))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
