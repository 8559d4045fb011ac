"""The embedded engine, turned by hand: clients whose answers are kept, a core, and consumers that run nothing."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgpack
from deaf import Deaf
from full_disk import Tight

from taskq.broker.core.core import Core
from taskq.engines.contract import Fleet, FleetControl
from taskq.engines.embedded.engine import EmbeddedEngine
from taskq.engines.embedded.ports import Clients
from taskq.model.constraints import Constraints
from taskq.model.errors import TaskQError
from taskq.model.settings import Settings
from taskq.model.spec import Spec
from taskq.protocol.answers import error_of
from taskq.protocol.endings import watch_frames
from taskq.protocol.frames import Decoder, Message
from taskq.protocol.ops import Op
from taskq.protocol.requests import Request, request_frame
from taskq.protocol.submissions import Call, submit_frame
from taskq.system.directory import Directory

WALL = 1e9
SPEC = Spec("t")


class Counting(Tight):
    """Counts its transactions, and how often it was asked to end one."""

    commits = 0
    asked = 0

    def commit(self) -> None:
        self.asked += 1
        self.commits += self._db.in_transaction
        super().commit()


class Idle:
    """Consumers that run nothing, or what a test says."""

    is_stopping = False

    def __init__(self) -> None:
        self.running: set[bytes] = set()
        self.stopped: list[bytes] = []

    def is_running(self, job_id: bytes) -> bool:
        return job_id in self.running

    def withdraw(self, job_id: bytes) -> bool:
        return job_id not in self.running

    def cancel_running(self, job_id: bytes) -> None:
        self.stopped.append(job_id)

    def take_back_all(self, _now: float) -> None:
        pass

    def interrupt(self, job_ids: Collection[bytes], _why: str) -> None:
        self.stopped += job_ids

    def claims(self) -> dict[int, Any]:
        return {}

    def progress_of(self, _job_id: bytes) -> None:
        return None


class Peer:
    """A client, and what it was sent."""

    closed = False

    def __init__(self) -> None:
        self.watched: set[bytes] = set()
        self.answers: list[Message] = []

    def values(self) -> list[Any]:
        """The values, or the errors, that it was answered with, in the order in which they came."""
        found: list[Any] = []
        for envelope, body in self.answers:
            if envelope[0] == Op.ERROR:
                found.append(error_of(envelope))
            elif envelope[0] == Op.OK:
                found.append(msgpack.unpackb(body) if len(body) else envelope[2])
        self.answers.clear()
        return found


class Listening(Clients):
    """Clients whose messages come when a test says."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, Message]] = []

    def take_messages(self) -> list[tuple[Any, Message]]:
        messages, self.messages = self.messages, []
        return messages

    def send(self, peer: Any, frame: bytes) -> None:
        peer.answers += Decoder().feed(frame)

    def reject(self, _peer: Any, error: TaskQError) -> None:
        raise error


class Turns:
    """An engine, and who is around it."""

    def __init__(self, home: Path) -> None:
        self.directory = Directory(home).create()
        self.store = Counting(self.directory.journal)
        self.clients = Listening()
        self.now = 1_000.0
        clock = cast(Any, SimpleNamespace(monotonic=lambda: self.now, time=lambda: WALL + self.now))
        self.engine = EmbeddedEngine(self.directory, Settings(), self.store, clock, self.clients)
        self.core, self.consumers, self.events = Core(), Idle(), cast(Any, Deaf())
        self.engine.recover(self.core, self.events, ())
        control = FleetControl(cast(Any, dict), lambda _by: None, lambda: 0, lambda _number: [], lambda *_job: [], list)
        self.engine.start(Fleet(self.core, self.consumers, self.events, control))
        self.turn()  # it looks into the spool, and prunes
        self.now += 0.01
        self.store.commits = 0
        self._numbers = iter(range(1, 1 << 30))

    def submit(
        self,
        peer: Peer,
        ids: list[bytes],
        spec: Spec = SPEC,
        constraints: Constraints | None = None,
        payload: bytes = b"payload",
    ) -> None:
        """A client hands in jobs."""
        calls = [Call(job_id, payload, constraints) for job_id in ids]
        self._hear(peer, submit_frame(next(self._numbers), spec, calls, resend=False, watch=False))

    def ask(self, peer: Peer, request: Request) -> None:
        """A client asks for something."""
        self._hear(peer, request_frame(next(self._numbers), request))

    def watch(self, peer: Peer, ids: list[bytes]) -> None:
        """A client asks for the ends of jobs."""
        for frame in watch_frames(ids):
            self._hear(peer, frame)

    def _hear(self, peer: Peer, frame: bytes) -> None:
        self.clients.messages += [(peer, message) for message in Decoder().feed(frame)]

    def turn(self) -> None:
        """A turn of the loop."""
        self.engine.gather(self.now)
        self.engine.step(self.now)
        self.engine.want(self.core.loads())
        self.engine.report(self.now)
