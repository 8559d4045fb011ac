"""What is said over one connection to a broker, without the connection: bytes come in, answers and endings go out.

It numbers requests, makes their frames, checks the greeting, and knows what is still to come: which requests have no
answer yet, and which jobs are watched. Whoever has the connection sends the frames and passes on what it reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from taskq.model.errors import ProtocolError
from taskq.model.spec import Spec
from taskq.protocol import frames
from taskq.protocol.endings import watch_frames
from taskq.protocol.frames import Message
from taskq.protocol.ops import Op
from taskq.protocol.requests import Request, request_frame
from taskq.protocol.submissions import Call, Flow, flow_frame, submit_frame


class Conversation:
    """One conversation with a broker. For one thread at a time."""

    __slots__ = (
        "_decoder",
        "_directory",
        "_last",
        "answers",
        "endings",
        "is_greeted",
        "syncs_files",
        "unanswered",
        "watched",
    )

    def __init__(self, directory: str = "") -> None:
        """
        Args:
            directory: the fleet's, for messages.
        """
        self._directory = directory
        self._decoder = frames.Decoder()
        self._last = 0  # the number of the last request
        self.is_greeted = False  #: Whether the broker has said hello.
        self.syncs_files = True  #: Whether files of large payloads are to survive a loss of power.
        self.unanswered: set[int] = set()  #: The numbers of requests whose answers are still to come.
        self.answers: dict[int, Message] = {}  #: Those that came, by number; whoever takes one removes it.
        self.watched: set[bytes] = set()  #: The jobs whose endings are still to come.
        self.endings: list[Message] = []  #: Those that came, as RESULT frames.

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come by itself, so that another call can go on with the connection."""
        return not (self.unanswered or self.watched or self.answers or self.endings)

    # -- out

    @staticmethod
    def hello() -> bytes:
        """The frame to begin with."""
        return frames.hello(os.getpid())

    def request(self, request: Request) -> tuple[int, bytes]:
        """Makes a request: its number and its frame."""
        number = self._next()
        return number, request_frame(number, request)

    def submit(
        self, spec: Spec, calls: Sequence[Call], *, resend: bool = False, watch: bool = False
    ) -> tuple[int, bytes]:
        """Makes the request that submits jobs; with `watch`, their endings come by themselves."""
        number = self._next()
        frame = submit_frame(number, spec, calls, resend=resend, watch=watch)
        if watch:
            self.watched.update(call.id for call in calls)
        return number, frame

    def submit_flow(self, flow: Flow, *, resend: bool) -> tuple[int, bytes]:
        """Makes the request that submits jobs of several kinds, all or none."""
        number = self._next()
        return number, flow_frame([Op.SUBMIT_FLOW, number, resend, False], flow)

    def watch(self, ids: Sequence[bytes]) -> Iterator[bytes]:
        """Makes the frames that ask for the endings of jobs."""
        self.watched.update(ids)
        return watch_frames(ids)

    def _next(self) -> int:
        self._last = number = self._last + 1
        self.unanswered.add(number)
        return number

    # -- in

    def hear(self, data: bytes) -> None:
        """Takes the next bytes in.

        Raises:
            ProtocolError: they are not from a broker.
            TaskQError: what the broker has against this connection.
        """
        for message in self._decoder.feed(data):
            envelope = message[0]
            if len(envelope) < 2:
                raise ProtocolError("the peer does not speak the taskq protocol")
            op = envelope[0]
            if op == Op.OK or op == Op.ERROR:
                self._hear_answer(message)
            elif op == Op.RESULT and self.is_greeted:
                self.watched.discard(envelope[1])
                self.endings.append(message)
            else:
                frames.check_hello(envelope)
                self.syncs_files = envelope[5:6] != [False]
                self.is_greeted = True

    def _hear_answer(self, message: Message) -> None:
        op, number = message[0][:2]
        if op == Op.ERROR and number == 0:  # about the connection, not about a request
            error = frames.error_of(message[0])
            raise error if self.is_greeted else frames.refusal_of(error, self._directory)
        if not self.is_greeted or type(number) is not int or not 0 < number <= self._last:
            raise ProtocolError(f"an answer out of turn: {message[0][:2]}")
        if number in self.unanswered:  # else nobody waits for it any more
            self.unanswered.discard(number)
            self.answers[number] = message

    def forget(self, number: int) -> None:
        """Nobody waits for an answer any more."""
        self.unanswered.discard(number)
        self.answers.pop(number, None)
