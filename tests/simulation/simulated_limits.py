"""Jobs with limits and unique keys for the simulated clients, as chance has it."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from history_limits import Limited, Place

from taskq.model.constraints import NO_CONSTRAINTS, Constraints, UniqueKey
from taskq.model.job import first_id_at
from taskq.model.spec import Spec
from taskq.protocol.submissions import Call, submit_frame

if TYPE_CHECKING:
    from history import History

#: What the simulated fleet has.
CAPACITIES = {"gpu": 1, "memory": 3}
#: What a job does that has limits: its id says which of these.
_ACTS = ("ok", "ok", "slow", "slow", "fails", "fails_once", "poison", "poison_once", "snoozes", "gives_up")
#: By task, what all its jobs have of limits. In front of the dot stands which kind of keys they have besides.
_LIMITS: dict[str, dict[str, Any]] = {
    "limited.one": {"concurrency": 1},
    "limited.two": {"concurrency": 2},
    "limited.rated": {"rate": (3, 2.0)},
    "limited.gpu": {"resources": (("gpu", 1),)},
    "limited.large": {"resources": (("gpu", 1), ("memory", 2))},
    "keyed.one": {"concurrency": 1},
    "keyed.rated": {"rate": (2, 2.0)},
    "keyed.all": {"concurrency": 2, "rate": (6, 0.5), "resources": (("memory", 2),)},
    "ordered.free": {},
    "ordered.memory": {"concurrency": 3, "resources": (("memory", 2),)},
    "unique.ended": {},
    "unique.started": {},
    "unique.throttled": {},
    "unique.debounced": {},
}


def act_of(task: str, job_id: bytes) -> str:
    """What a job does."""
    return _ACTS[job_id[-1] % len(_ACTS)] if task in _LIMITS else task


def _spec(random: Random) -> Spec:
    family = random.choice(("limited", "keyed", "ordered", "ordered", "unique", "unique"))
    task = random.choice([task for task in _LIMITS if task.startswith(family)])
    return Spec(
        task,
        random.choice(("a", "b")) if family in ("limited", "keyed") else "a",
        retries=random.choice((0, 2, 2)),
        timeout_s=random.choice((None, None, 0.3)),
        max_crashes=random.choice((1, 2, 3)),
        backoff_s=random.choice(((0.01, 0.1), (0.5,), (1.0,))),
        crash_queue=random.choice((None, None, None, "c")),
        **_LIMITS[task],
    )


def _constraints(spec: Spec, random: Random, wall: float) -> Constraints | None:
    key = random.choice(("x", "x", "y", f"seldom {random.randrange(1_000_000)}"))
    match spec.task.partition("."):
        case ["keyed", *_]:
            return Constraints(limit_key=key)
        case ["ordered", *_]:
            return Constraints(order_key=key)
        case ["unique", _, kind]:
            unique = UniqueKey(
                f"{spec.task} {key}",
                until_start=kind == "started",
                period_s=2.0 if kind == "throttled" else None,
                replaces=kind == "debounced",
            )
            return Constraints(due_at=wall + 0.15 if kind == "debounced" else None, unique=unique)
    return None


class SentLimited:
    """A frame of jobs with limits, without an answer."""

    def __init__(self, random: Random, now: float, wall: float) -> None:
        """Made of chance, at a time of both clocks."""
        self.spec = _spec(random)
        self.asked_at = now
        ids = [first_id_at(wall)[:6] + random.randbytes(10) for _ in range(random.choice((1, 2, 5, 10)))]
        self.calls = [
            Call(job_id, job_id[-4:] * random.choice((1, 3, 50)), _constraints(self.spec, random, wall))
            for job_id in ids
        ]

    @property
    def ids(self) -> list[bytes]:
        return [call.id for call in self.calls]

    @property
    def may_be_left_out(self) -> bool:
        return any(call.constraints is not None and call.constraints.unique is not None for call in self.calls)

    def frame(self, request: int, resend: bool) -> bytes:
        """The frame, as it is sent for the first time, or again. Who is left out cannot be watched: nobody is there."""
        return submit_frame(request, self.spec, self.calls, resend=resend, watch=not self.may_be_left_out)


def note_limits(history: History, sent: SentLimited) -> None:
    """Tells the judge what was asked for jobs."""
    spec = sent.spec
    for number, call in enumerate(sent.calls):
        job, constraints = call.id.hex(), call.constraints or NO_CONSTRAINTS
        subject = spec.task if constraints.limit_key is None else f"{spec.task} {constraints.limit_key}"
        concurrency = None if spec.concurrency is None else (subject, spec.concurrency)
        rate = None if spec.rate is None else (subject, *spec.rate)
        history.limited[job] = Limited(concurrency, rate, spec.resources)
        if constraints.order_key is not None:
            history.places[job] = Place(f"{spec.task} {constraints.order_key}", sent.asked_at, number)
        if constraints.unique is not None:
            history.unique[job] = constraints.unique


#: What the jobs of several machines have of limits, by task; "key": one of theirs.
_SHARED: dict[str, dict[str, Any]] = {
    "shared.one": {"concurrency": 1},
    "shared.two": {"concurrency": 2},
    "shared.keyed": {"concurrency": 1, "limit_key": "key"},
    "shared.rated": {"rate": (3, 2.0)},
    "shared.rated_key": {"rate": (2, 1.0), "limit_key": "key"},
    "shared.order": {"order_key": "key"},
    "shared.order_of_two": {"concurrency": 2, "order_key": "key"},
}


class LimitedJobs:
    """Some jobs with the same limits, for clients of several machines; made of chance."""

    def __init__(self, random: Random) -> None:
        self.task = random.choice(list(_SHARED))
        limits = dict(_SHARED[self.task])
        key = random.choice("xxy")
        self.constraints = {name: key for name in ("limit_key", "order_key") if limits.pop(name, None)}
        self.spec = Spec(
            self.task,
            random.choice("ab") if "order_key" not in self.constraints else "a",
            retries=2,
            max_crashes=3,
            priority=random.choice((0, 0, 5)) if "order_key" not in self.constraints else 0,
            backoff_s=(random.choice((0.2, 1.5)),),
            **limits,
        )

    def tasks(self, random: Random) -> list[str]:
        """What each of them does."""
        acts = ("ok", "ok", "ok", "fails_once", "fails_once", "fails", "poison_once", "snoozes")
        return [random.choice(acts) for _ in range(random.choice((1, 2, 4)))]

    def note(self, history: History, job: str, asked_at: float, number: int) -> None:
        """Tells the judge what was asked for a job.

        Args:
            number: of the job among those that came with it.
        """
        own = self.constraints
        subject = f"{self.task} {own.get('limit_key', '')}"
        concurrency = None if self.spec.concurrency is None else (subject, self.spec.concurrency)
        rate = None if self.spec.rate is None else (subject, *self.spec.rate)
        history.limited[job] = Limited(concurrency, rate)
        if "order_key" in own:
            history.places[job] = Place(f"{self.task} {own['order_key']}", asked_at, number)
