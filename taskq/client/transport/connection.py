"""One connection of a client to the broker of its directory."""

from __future__ import annotations

import os
import select
import socket
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from struct import Struct
from typing import Any

from taskq.client.transport.absence import Absence
from taskq.model.errors import DirectoryError, TaskQError
from taskq.model.spec import Spec
from taskq.protocol import frames
from taskq.protocol.answers import BrokerSilent, ConnectionLost, value_of
from taskq.protocol.endings import watch_frames
from taskq.protocol.frames import Message
from taskq.protocol.ops import Op
from taskq.protocol.submissions import Call, Flow, flow_frame, ids_of, submit_frame
from taskq.system.directory import Directory, reply_timeout_s, user_of
from taskq.system.platform import peer_uid

#: Even `timeout=0` waits so long, for the answer that the job ended already.
SHORTEST_WAIT_S = 0.05


#: Longer than a running job that is cancelled may take to clean up.
CANCEL_AGAIN_S = 5.0


_READ_BYTES = 256 * 1024


_TIMEVAL = Struct("@ll")  # seconds, microseconds


def _timeval(seconds: float) -> bytes:
    return _TIMEVAL.pack(*divmod(max(1, int(seconds * 1e6)), 1_000_000))  # 0 would be no limit


def check_broker(connection: socket.socket, path: os.PathLike[str], owner: int | None = None) -> None:
    """Refuses a broker of another user, who may have made the directory, or the socket's folder, before us.

    Raises:
        DirectoryError: the process that listens is not ours.
    """
    uid = peer_uid(connection)
    if uid is not None and uid not in (os.geteuid(), 0, owner):
        raise DirectoryError(
            f"a process of {user_of(uid)} listens on {os.fspath(path)}: run as that user, or choose another directory"
        )


class Connection:
    """One connection to the broker. For one thread at a time."""

    def __init__(
        self,
        path: os.PathLike[str],
        absence: Absence | None = None,
        connected: socket.socket | None = None,
        *,
        owner: int | None = None,
        within_s: float | None = None,
    ) -> None:
        """Connects.

        Args:
            path: of the broker's socket.
            absence: is told if the broker does not answer; one of its own if left out.
            connected: a socket in place of that, which leads to a process that this one has started.
            owner: the id of the user whose broker it may be, besides ours.
            within_s: how long to wait for its first word, if not as long as for any answer.

        Raises:
            ConnectionLost: no broker listens there.
        """
        absence = absence or Absence(Directory(Path(path).parent), reply_timeout_s())
        self._absence = absence
        self.owner = owner  #: The other user whose fleet it leads to, which is only looked at.
        self._decoder = frames.Decoder()
        self._pending: deque[Message] = deque()  # decoded, not looked at
        self._arrived: deque[Message] = deque()  # RESULT frames that came before an answer
        self._requests = count(1)
        self._socket = connected or socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.close = weakref.finalize(self, self._socket.close)  #: Closes it; what was watched is forgotten.
        try:
            # connected while it blocks: a Unix socket with a timeout is refused at once when too many others knock
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(absence.reply_timeout_s))
            if connected is None:
                self._connect(path)
                check_broker(self._socket, path, owner)
            self._send(frames.hello(os.getpid()))
            envelope, _ = self._receive_in_time(within_s)
            if envelope[0] == Op.ERROR:
                raise frames.error_of(envelope)
            frames.check_hello(envelope)
        except OSError as error:
            self.close()
            raise ConnectionLost(str(error)) from error
        except TaskQError:
            self.close()
            raise

    def _connect(self, path: os.PathLike[str]) -> None:
        try:
            self._socket.connect(os.fspath(path))
        except BlockingIOError:  # SO_SNDTIMEO is over: so many wait that the kernel takes no more of them
            raise self._silent() from None

    def _silent(self) -> BrokerSilent:
        """The error for a broker that did not answer in time, which is noted."""
        self._absence.begin_silence()
        return BrokerSilent(self._absence.describe())

    def request(self, op: Op, *fields: Any) -> Any:
        """Sends a request and returns the value of its answer."""
        number = next(self._requests)
        self._send(frames.frame([op, number, *fields]))
        return self.answer(number)

    def ask(self, timeout_s: float | None, op: Op, *fields: Any) -> Any:
        """A request that the broker may answer late.

        Raises:
            TimeoutError: there was no answer in time; this connection is of no use any more.
        """
        number = next(self._requests)
        self._send(frames.frame([op, number, *fields]))
        return value_of(self.receive(timeout_s), number)

    def submit(self, spec: Spec, calls: Sequence[Call], *, resend: bool, watch: bool = False) -> list[bytes]:
        """Submits jobs; with `watch`, their RESULT frames come by themselves. Returns the ids, as `Client.submit`."""
        return ids_of(calls, self.answer(self.send_submit(spec, calls, resend=resend, watch=watch)))

    def send_submit(self, spec: Spec, calls: Sequence[Call], *, resend: bool = False, watch: bool = False) -> int:
        """Sends jobs without waiting. Returns the number to pass to `answer`, in the order of sending."""
        number = next(self._requests)
        self._send(submit_frame(number, spec, calls, resend=resend, watch=watch))
        return number

    def submit_flow(self, flow: Flow, *, resend: bool) -> None:
        """Submits jobs of several kinds, all or none."""
        number = next(self._requests)
        self._send(flow_frame([Op.SUBMIT_FLOW, number, resend, False], flow))
        self.answer(number)

    def watch(self, ids: Sequence[bytes]) -> None:
        """Asks for the RESULT frames of jobs. There is no other answer."""
        for frame in watch_frames(ids):
            self._send(frame)

    def next_result(self, timeout_s: float | None) -> Message | None:
        """The next RESULT frame, or None if none came in time."""
        if self._arrived:
            return self._arrived.popleft()
        try:
            return self.receive(timeout_s)
        except TimeoutError:
            return None

    def answer(self, number: int) -> Any:
        """Waits for the answer to a request.

        Raises:
            TaskQError: the broker's own, or ConnectionLost.
        """
        while True:
            message = self._receive_in_time()
            if message[0][0] == Op.RESULT:
                self._arrived.append(message)
            else:
                return value_of(message, number)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(0.0)
            rest = memoryview(data)
            while rest:
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    self._wait_for_room()
        except OSError as error:
            raise ConnectionLost(str(error)) from error

    def _wait_for_room(self) -> None:
        """Takes in what arrives meanwhile: the broker reads nothing from a client that leaves too much unread."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        events = poll.poll(self._absence.reply_timeout_s * 1000)
        if not events:
            raise self._silent()
        if events[0][1] & select.POLLIN:
            self._take_in(self._socket.recv(_READ_BYTES))

    def _receive_in_time(self, within_s: float | None = None) -> Message:
        longest_s = self._absence.reply_timeout_s
        try:
            return self.receive(longest_s if within_s is None else min(within_s, longest_s))
        except TimeoutError:
            if within_s is not None and within_s < longest_s:
                raise ConnectionLost(f"the broker did not answer within {within_s:g} s") from None
            raise self._silent() from None

    def receive(self, timeout_s: float | None) -> Message:
        """The next frame.

        Raises:
            TimeoutError: none came in time.
            ConnectionLost: none will come.
        """
        while not self._pending:
            try:
                data = self._read(timeout_s)
            except TimeoutError:
                raise
            except OSError as error:
                raise ConnectionLost(str(error)) from error
            self._take_in(data)
        return self._pending.popleft()

    def _read(self, timeout_s: float | None) -> bytes:
        """What the broker sends next. Whoever waits for longer than for an answer is told if it answers nobody."""
        longest_s = self._absence.reply_timeout_s
        while timeout_s is None or timeout_s > longest_s:
            self._socket.settimeout(longest_s)
            try:
                return self._socket.recv(_READ_BYTES)
            except TimeoutError:
                self._absence.look_while_waiting()
            if timeout_s is not None:
                timeout_s -= longest_s
        self._socket.settimeout(timeout_s)
        return self._socket.recv(_READ_BYTES)

    def _take_in(self, data: bytes) -> None:
        if not data:
            raise ConnectionLost("the broker closed the connection")
        self._pending.extend(self._decoder.feed(data))
