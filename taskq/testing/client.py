"""The clients of a fleet in this process: they run operations without sockets, and who waits for a job has it run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from taskq.client.transport.absence import Absence
from taskq.client.transport.api import AsyncQueueClient, QueueClient
from taskq.client.transport.conversation import Conversation
from taskq.client.transport.operations import DirectoryQueue
from taskq.client.transport.verbs import Answer, Ask, AskLate, Next, Open, Operation, Reach, Send, Sleep, UseDisk, Verb
from taskq.protocol import frames
from taskq.protocol.frames import Message
from taskq.system.directory import reply_timeout_s
from taskq.testing.fleet import InProcessFleet

T = TypeVar("T")


class InProcessLine:
    """A connection without a socket: a `taskq.client.transport.verbs.Line`, and the `InProcessPeer` of the fleet."""

    is_fresh = True

    def __init__(self, fleet: InProcessFleet) -> None:
        self._fleet = fleet
        self.talk = Conversation()
        self.talk.hear(frames.hello(0))
        self.closed = False
        self.watched: set[bytes] = set()  # by the fleet

    def deliver(self, frame: bytes) -> None:
        """A frame for the client."""
        self.talk.hear(frame)

    def leave(self) -> None:
        """The client is gone."""
        self._fleet.forget(self)


class InProcessClient(QueueClient):
    """Runs operations with a fleet in this process."""

    def __init__(self, fleet: InProcessFleet) -> None:
        absence = Absence(fleet.directory, reply_timeout_s())
        super().__init__(DirectoryQueue(fleet.directory, absence, fleet.clock), fleet.clock)
        self.fleet = fleet
        #: Called after each request of a client, except by one who waits.
        self.after_request: Callable[[], None] | None = None

    def run(self, operation: Operation[T]) -> T:
        """Runs an operation to its end."""
        is_request = False
        try:
            verb = operation.send(None)
            while True:
                is_request |= type(verb) is Open
                try:
                    value = self._do(verb)
                except BaseException as error:
                    verb = operation.throw(error)
                else:
                    verb = operation.send(value)
        except StopIteration as end:
            result = cast(T, end.value)
        if is_request and self.after_request is not None:
            self.after_request()
        return result

    def close(self) -> None:
        """There is nothing to close."""

    def _do(self, verb: Verb) -> Any:
        fleet = self.fleet
        match verb:
            case Open():
                return InProcessLine(fleet)
            case Reach(_, watched):
                line = InProcessLine(fleet)
                for frame in line.talk.watch(watched):
                    fleet.hear(line, frame)
                return line
            case Ask(line, number, frame):
                fleet.hear(line, frame)
                return self._answer(line.talk, number, None)
            case AskLate(line, number, frame, within_s):
                fleet.hear(line, frame)
                return self._answer(line.talk, number, within_s)
            case Send(line, _, frame):
                fleet.hear(line, frame)
            case Answer(line, number):
                return self._answer(line.talk, number, None)
            case Next(line, within_s):
                return self._endings(line.talk, within_s)
            case Sleep(seconds):
                fleet.clock.sleep(seconds)
            case UseDisk(function, arguments):
                return function(*arguments)
            case _:
                raise AssertionError(f"a fleet in this process is never away: {verb}")
        return None

    def _answer(self, talk: Conversation, number: int, within_s: float | None) -> Message:
        if number not in talk.answers:
            self.fleet.wait(lambda: number in talk.answers, within_s)
        return talk.answers.pop(number)

    def _endings(self, talk: Conversation, within_s: float | None) -> list[Message]:
        if not talk.endings:
            self.fleet.wait(lambda: talk.endings, within_s)
        with self.fleet.lock:  # another thread may run a job
            found, talk.endings = talk.endings, []
        return found


class InProcessAsyncClient(AsyncQueueClient):
    """The same for asyncio: nobody needs the loop."""

    def __init__(self, client: InProcessClient) -> None:
        super().__init__(client.queue, client.clock)
        self._client = client

    async def run(self, operation: Operation[T]) -> T:
        """Runs an operation to its end."""
        return self._client.run(operation)
