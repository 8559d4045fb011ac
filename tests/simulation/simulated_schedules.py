"""Who adds schedules to the simulated fleet, lets them rest, runs and removes them, and believes what he is told."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import msgpack
from history_schedules import Plan, Rest, fire_of

from taskq.model.job import first_id_at
from taskq.model.schedule import NO_JOB, Schedule, payload_for
from taskq.model.spec import Spec
from taskq.protocol import frames
from taskq.protocol.codec import encode_call
from taskq.protocol.ops import Op

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from history import History
    from simulation import Client, Peer


class Planner:
    """The part of a client that has to do with schedules. One request for each schedule is under way at a time; one that
    was lost with its broker is sent again."""

    def __init__(
        self, client: Client, schedules: int, requests: Callable[[], int], digest: Callable[[bytes], str]
    ) -> None:
        """
        Args:
            schedules: how many it adds.
            requests: makes the number of a request.
            digest: tells payloads apart.
        """
        self._client = client
        self._world = client.world
        self._left = schedules
        self._new_request = requests
        self._digest = digest
        self._plans: dict[str, Plan] = {}
        self._asked: dict[int, tuple[Peer, Op, str, bytes]] = {}

    @property
    def is_done(self) -> bool:
        """Whether nothing of it fires any more."""
        return not self._left and all(plan.removed_at < inf for plan in self._plans.values())

    # -- asks

    def act(self, peer: Peer, is_over: bool) -> None:
        """Asks for the next thing."""
        random = self._world.random
        self._asked = {number: asked for number, asked in self._asked.items() if asked[0] is peer}
        if self._left and random.random() < 0.2:
            self._left -= 1
            schedule = self._new_schedule()
            self._plans[schedule.name] = plan = Plan(schedule, self._world.now)
            self._world.history.plans[schedule.name] = plan
        busy = {name for _, _, name, _ in self._asked.values()}
        for name, plan in self._plans.items():
            if name not in busy and plan.removed_at == inf:
                self._go_on(peer, plan, is_over)

    def _new_schedule(self) -> Schedule:
        random = self._world.random
        spec = Spec(random.choice(("ok", "ok", "slow", "fails_once", "poison_once")), "a", backoff_s=(0.05,))
        return Schedule(
            f"{self._client.name}.{self._left}",
            spec,
            encode_call(NO_JOB, (), {}),
            every_s=random.choice((0.15, 0.15, 0.3, 0.7)),
            misfire=random.choice(("skip", "once", "all")),
            overlap=random.choice(("allow", "allow", "skip", "buffer_one")),
            jitter_s=random.choice((0.0, 0.0, 0.1)),
        )

    def _go_on(self, peer: Peer, plan: Plan, is_over: bool) -> None:
        """Asks again for what was not acknowledged, or for something new."""
        random, now = self._world.random, self._world.now
        name = plan.schedule.name
        rest = plan.rests[-1] if plan.rests else None
        if plan.added_at == inf:
            self._ask(peer, Op.PUT_SCHEDULE, name, plan.schedule.to_wire())
        elif rest is not None and rest.since == inf:
            self._ask(peer, Op.PAUSE_SCHEDULE, name, name, True)
        elif rest is not None and rest.end_asked_at < rest.until == inf:
            self._ask(peer, Op.PAUSE_SCHEDULE, name, name, False)
        elif plan.removal_asked_at < inf:
            self._ask(peer, Op.REMOVE_SCHEDULE, name, name)
        elif is_over or (roll := random.random()) < 0.005:
            plan.removal_asked_at = now
            self._ask(peer, Op.REMOVE_SCHEDULE, name, name)
        elif rest is not None and rest.until == inf:
            if roll < 0.1:
                rest.end_asked_at = now
                self._ask(peer, Op.PAUSE_SCHEDULE, name, name, False)
        elif roll < 0.03:
            plan.rests.append(Rest(now))
            self._ask(peer, Op.PAUSE_SCHEDULE, name, name, True)
        elif roll < 0.05:
            self._run(peer, plan)
        elif roll < 0.15:
            self._ask(peer, Op.SCHEDULES, name)

    def _run(self, peer: Peer, plan: Plan) -> None:
        job_id = first_id_at(self._world.wall)[:6] + self._world.random.randbytes(10)
        self._world.history.intents[job_id.hex()] = self._digest(payload_for(plan.schedule, job_id))
        self._ask(peer, Op.RUN_SCHEDULE, plan.schedule.name, plan.schedule.name, job_id, job_id=job_id)

    def _ask(self, peer: Peer, op: Op, name: str, *fields: Any, job_id: bytes = b"") -> None:
        request = self._new_request()
        self._asked[request] = peer, op, name, job_id
        peer.send(frames.frame([op, request, *fields]))

    # -- is answered

    def hears(self, envelope: list[Any], body: bytes) -> bool:
        """Takes an answer, if it is one of its own."""
        if envelope[0] not in (Op.OK, Op.ERROR) or envelope[1] not in self._asked:
            return False
        _, op, name, job_id = self._asked.pop(envelope[1])
        plan, now = self._plans[name], self._world.now
        match op, envelope:
            case _, [Op.ERROR, _, "StoreFull", _]:
                return True  # it is asked again
            case op, [Op.ERROR, _, error, _] if (op, error) != (Op.REMOVE_SCHEDULE, "ScheduleNotFound"):
                raise AssertionError(f"{op.name} of {name} was refused: {envelope[2:]}")
        match op:
            case Op.PUT_SCHEDULE:
                plan.added_at = min(plan.added_at, now)
            case Op.REMOVE_SCHEDULE:
                plan.removed_at = min(plan.removed_at, now)
            case Op.PAUSE_SCHEDULE if plan.rests[-1].end_asked_at == inf:
                plan.rests[-1].since = min(plan.rests[-1].since, now)
            case Op.PAUSE_SCHEDULE:
                plan.rests[-1].until = min(plan.rests[-1].until, now)
            case Op.RUN_SCHEDULE:
                self._client.knows([job_id])
            case Op.SCHEDULES:
                self._look(msgpack.unpackb(body))
        return True

    def _look(self, infos: Sequence[dict[str, Any]]) -> None:
        """Watches the jobs that were made last, and purges one now and then."""
        random = self._world.random
        for info in infos:
            if info["name"] in self._plans and info["last_job_id"] is not None:
                job_id = bytes.fromhex(info["last_job_id"])
                self._client.knows([job_id])
                if random.random() < 0.5:
                    self._client.purge(job_id)


def note_fires(history: History, digest: Callable[[bytes], str]) -> None:
    """Tells the judge which jobs were made by schedules: those whose id says so."""
    jobs: Iterable[str] = dict.fromkeys([*history.known, *(start.job for start in history.starts)])
    for job in jobs if history.plans else ():
        for plan in history.plans.values() if job not in history.intents else ():
            found = fire_of(plan, job, history.wall_offset_s)
            if found is not None:
                history.fires[job] = found[0]
                history.intents[job] = digest(found[1])
