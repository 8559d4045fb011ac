"""Jobs that come after others, in the simulated world: what its clients and jobs hand in, made of chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from history import History, Limits

from taskq.model.attempt import unpack
from taskq.model.constraints import Constraints
from taskq.model.spec import Spec
from taskq.protocol.ops import Op
from taskq.protocol.submissions import Call, flow_frame

Flow = list[tuple[Spec, Call]]


# -- shapes: which of the earlier ones a job comes after


def _chain(position: int, _size: int, _random: Random) -> list[int]:
    return [position - 1]


def _chord(position: int, size: int, _random: Random) -> list[int]:
    return list(range(position)) if position == size - 1 else []


def _fan(_position: int, _size: int, _random: Random) -> list[int]:
    return [0]


def _graph(position: int, _size: int, random: Random) -> list[int]:
    return random.sample(range(position), random.randint(0, min(position, 3)))


_SHAPES = (_chain, _chord, _fan, _graph, _graph)


def flow_of_chance(random: Random, new_spec: Callable[[], Spec], known: Sequence[bytes], wall: float) -> Flow:
    """Some jobs, of one kind or more, that come after each other.

    Args:
        known: jobs that some may come after besides.
    """
    size = random.randint(1, 6)
    shape = random.choice(_SHAPES)
    specs = [new_spec() for _ in range(random.choice((1, 2, 3)))]
    ids = sorted(random.randbytes(16) for _ in range(size))
    flow = []
    for position, job_id in enumerate(ids):
        before = [ids[other] for other in shape(position, size, random)] if position else []
        if known and random.random() < 0.2:
            before.append(random.choice(known))
        after = {parent: random.random() < 0.25 for parent in before}
        due_at = wall + random.uniform(-0.1, 0.5) if random.random() < 0.1 else None
        constraints = Constraints(due_at=due_at, after=tuple(after.items())) if after or due_at is not None else None
        payload = job_id[:4] * random.choice((1, 3, 50))
        flow.append((random.choice(specs), Call(job_id, payload, constraints)))
    return flow


def note_intents(history: History, flow: Flow, digest: Callable[[bytes], str]) -> None:
    """Notes what jobs are to do, and when."""
    for spec, call in flow:
        job = call.id.hex()
        history.intents[job] = digest(call.payload)
        if spec.crash_queue is None:  # else it may run from another queue, which is not paused
            history.queues[job] = spec.queue
        history.limits[job] = Limits(spec.retries, spec.max_crashes, spec.is_watched)
        if call.constraints is not None and call.constraints.after:
            history.after[job] = {parent.hex(): goes_on for parent, goes_on in call.constraints.after}


class SentFlow:
    """A frame of jobs that come after each other, without an answer."""

    def __init__(self, flow: Flow) -> None:
        self.ids = [call.id for _, call in flow]
        self._flow = flow

    def frame(self, request: int, resend: bool) -> bytes:
        """The frame, as it is sent for the first time, or again."""
        return flow_frame([Op.SUBMIT_FLOW, request, resend, True], self._flow)


def children_frames(random: Random, number: int, flow: Flow) -> list[bytes]:
    """The frames in which a consumer tells what a job has enqueued: those behind may come after those before."""
    cut = random.randint(0, len(flow) - 1)
    return [flow_frame([Op.CHILDREN, number], part) for part in (flow[:cut], flow[cut:]) if part]


def was_called_off(state: str, outcome: bytes) -> bool:
    """Whether a job was cancelled because of another, which it comes after."""
    if state != "cancelled":
        return False
    error = unpack(outcome).error
    return error is not None and error.type == "ParentFailed"
