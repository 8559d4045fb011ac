"""The broker's side of the client connections: bytes in, bytes out, and what no client may do to the others.

A bad frame harms only its sender; the broker stops reading from a client that does not read; a client that sends half a
frame and falls silent is disconnected. What the frames mean is the engine's business
(`taskq.engines.embedded.engine`).
"""

from __future__ import annotations

import os
import resource
import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from taskq.model.errors import ConfigError, ProtocolError, TaskQError
from taskq.model.limits import (
    FRAME_DEADLINE_S,
    HELLO_DEADLINE_S,
    MAX_CLIENT_OUTPUT_BYTES,
    MAX_CLIENTS,
    STALLED_CLIENT_S,
)
from taskq.protocol import frames
from taskq.protocol.frames import Message
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.descriptors import RESERVED
from taskq.system.directory import Directory, private_directory
from taskq.system.platform import peer_uid

_READ_BYTES = 256 * 1024
#: Frames of one client that are handled in one tick, so that a flood from one does not delay the others.
_READS_PER_TICK = 4
#: A listener that was out of descriptors tries again after this time: they may be free again without a client leaving.
_ACCEPT_AGAIN_S = 0.25


class Peer:
    """One connected client."""

    __slots__ = (
        "closed",
        "decoder",
        "deferred",
        "is_greeted",
        "is_reading",
        "output",
        "output_bytes",
        "read_by",
        "sock",
        "watched",
        "write_by",
    )

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.decoder = frames.Decoder()
        self.output: deque[memoryview] = deque()
        self.output_bytes = 0
        self.is_greeted = False
        self.is_reading = True  # registered for reading
        self.read_by: float | None = now + HELLO_DEADLINE_S  # when what it began to send must be whole
        self.write_by: float | None = None  # when it must have taken some of what waits for it
        self.watched: set[bytes] = set()  # ids whose end it waits for
        self.deferred: deque[bytes] = deque()  # ids of ended jobs, to send when it has read what it was sent
        self.closed = False


class Server:
    """The listening socket and its clients. Registered with the broker's selector; used by its loop alone."""

    def __init__(
        self,
        directory: Directory,
        selector: selectors.BaseSelector,
        on_rejected: Callable[[str], None],
        on_closed: Callable[[Peer], None],
        clock: Clock = SYSTEM_CLOCK,
        max_clients: int = MAX_CLIENTS,
        syncs_files: bool = True,
    ) -> None:
        """
        Args:
            selector: with callables as data, called with the mask of events.
            on_rejected: called with the reason when a client was refused or dropped.
            on_closed: called with each client that is gone.
            max_clients: how many clients are served at once; more are refused.
            syncs_files: what clients are told: see `frames.hello`.
        """
        self._selector = selector
        self._tell_rejected = on_rejected
        self._rejected = 0
        self._on_closed = on_closed
        self._clock = clock
        self._max_clients = max_clients
        self._syncs_files = syncs_files
        self._path = directory.socket_path()
        self._peers: set[Peer] = set()
        self._pressed: dict[Peer, None] = {}  # those that must read or send something by some time
        self._deferring: set[Peer] = set()
        self._messages: list[tuple[Peer, Message]] = []
        self._directory = directory
        self._listener = _listen(self._path, directory)
        self._inode = os.stat(self._path).st_ino
        self._is_accepting = False
        self._accept_at: float | None = None  # when to try again
        self.may_read = True  # set by the engine; see `taskq.engines.embedded.ports.Clients`
        self._resume_accepting()

    def counted(self) -> tuple[int, int]:
        """How many clients are connected, and how many were refused or dropped."""
        return len(self._peers), self._rejected

    def _on_rejected(self, reason: str) -> None:
        self._rejected += 1
        self._tell_rejected(reason)

    # -- input

    def take_messages(self) -> list[tuple[Peer, Message]]:
        """Returns the messages of clients since the last call, in order of arrival."""
        messages, self._messages = self._messages, []
        return messages

    def _on_listener(self, _mask: int) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # out of descriptors: a listener that stays readable would spin the loop, so wait for a client to go
                self._on_rejected(f"a client could not be accepted: {error.strerror}")
                self._pause_accepting()
                self._accept_at = self._clock.monotonic() + _ACCEPT_AGAIN_S
                return
            if sock.fileno() >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED:
                self._on_rejected("more clients than files may be open: raise the limit (ulimit -n, LimitNOFILE=)")
                sock.close()
                continue
            uid = peer_uid(sock)
            if uid is not None and uid not in (os.geteuid(), 0):
                self._on_rejected(f"a process of user id {uid} tried to connect")
                sock.close()
                continue
            if len(self._peers) >= self._max_clients:
                self._on_rejected(f"more than {self._max_clients} clients")
                sock.close()
                continue
            sock.setblocking(False)
            peer = Peer(sock, self._clock.monotonic())
            self._peers.add(peer)
            self._pressed[peer] = None
            self._selector.register(sock, selectors.EVENT_READ, partial(self._on_event, peer))

    def _on_event(self, peer: Peer, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._write(peer)
        if mask & selectors.EVENT_READ and not peer.closed:
            self._read(peer)

    def _read(self, peer: Peer) -> None:
        if not self.may_read:
            return None  # it is ready again in the next turn
        completed = False
        for _ in range(_READS_PER_TICK):
            try:
                data = peer.sock.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                return self.close(peer)
            if not data:
                return self.close(peer)
            try:
                messages = peer.decoder.feed(data)
                completed = completed or bool(messages)
                if messages and not peer.is_greeted:
                    messages = self._greet(peer, messages)
            except TaskQError as error:
                return self.reject(peer, error)
            for message in messages:
                self._messages.append((peer, message))
            if len(data) < _READ_BYTES:
                break
        if peer.is_greeted and not peer.decoder.has_unfinished_frame:
            peer.read_by = None
        elif peer.is_greeted and (completed or peer.read_by is None):
            # counted from the first byte of the frame; further bytes do not extend it
            peer.read_by = self._clock.monotonic() + FRAME_DEADLINE_S
            self._pressed[peer] = None
        return None

    def _greet(self, peer: Peer, messages: list[Message]) -> list[Message]:
        frames.check_hello(messages[0][0], peer="client")
        peer.is_greeted = True
        self.send(peer, frames.hello(os.getpid(), self._syncs_files))
        return messages[1:]

    # -- output

    def send(self, peer: Peer, frame: bytes) -> None:
        """Sends a frame to a client: what fits into its socket at once, the rest when there is room."""
        if peer.closed:
            return
        if not peer.output:
            try:
                sent = peer.sock.send(frame)
            except BlockingIOError:
                sent = 0
            except OSError:
                return self.close(peer)
            if sent == len(frame):
                return None
            frame = frame[sent:]
            peer.write_by = self._clock.monotonic() + STALLED_CLIENT_S
            self._pressed[peer] = None
        peer.output.append(memoryview(frame))
        peer.output_bytes += len(frame)
        self._select(peer)
        return None

    def is_clogged(self, peer: Peer) -> bool:
        """Whether a client has too much unread: then it is sent nothing that can wait."""
        return peer.output_bytes >= MAX_CLIENT_OUTPUT_BYTES

    def defer(self, peer: Peer, job_id: bytes) -> None:
        """Notes the end of a job, to send it when the client has read what it was sent."""
        peer.deferred.append(job_id)
        self._deferring.add(peer)

    def take_deferred(self) -> Iterator[tuple[Peer, bytes]]:
        """Yields what was deferred for clients that have room again."""
        for peer in list(self._deferring):
            while peer.deferred and not peer.closed and not self.is_clogged(peer):
                yield peer, peer.deferred.popleft()
            if not peer.deferred or peer.closed:
                self._deferring.discard(peer)

    def _write(self, peer: Peer) -> None:
        while peer.output:
            part = peer.output[0]
            try:
                sent = peer.sock.send(part)
            except BlockingIOError:
                break
            except OSError:
                return self.close(peer)
            peer.output_bytes -= sent
            peer.write_by = self._clock.monotonic() + STALLED_CLIENT_S
            if sent < len(part):
                peer.output[0] = part[sent:]
                break
            peer.output.popleft()
        self._select(peer)
        return None

    def _select(self, peer: Peer) -> None:
        """Sets what to wait for: to write if output waits, to read unless too much output waits."""
        was_reading, peer.is_reading = peer.is_reading, not self.is_clogged(peer)
        if peer.is_reading and not was_reading and peer.decoder.has_unfinished_frame:
            peer.read_by = self._clock.monotonic() + FRAME_DEADLINE_S  # we did not read in the meantime
            self._pressed[peer] = None
        events = (selectors.EVENT_READ if peer.is_reading else 0) | (selectors.EVENT_WRITE if peer.output else 0)
        key = self._selector.get_key(peer.sock)
        if key.events != events:
            self._selector.modify(peer.sock, events, key.data)
        if not peer.output:
            peer.write_by = None

    # -- ends

    def reject(self, peer: Peer, error: TaskQError) -> None:
        """Sends a client one clear error and disconnects it."""
        self._on_rejected(str(error))
        self.send(peer, frames.error_frame(0, error))
        self.close(peer)

    def close(self, peer: Peer) -> None:
        """Disconnects a client."""
        if peer.closed:
            return
        peer.closed = True
        self._selector.unregister(peer.sock)
        peer.sock.close()
        self._peers.discard(peer)
        self._pressed.pop(peer, None)
        self._on_closed(peer)
        self._resume_accepting()

    def may_be_late(self, _now: float) -> bool:
        """Whether a client has a deadline, or others wait to be accepted."""
        return bool(self._pressed) or self._accept_at is not None

    def drop_late(self, now: float) -> None:
        """Disconnects clients that broke a deadline."""
        if self._accept_at is not None and self._accept_at <= now:
            self._resume_accepting()
        deadlines = {peer: _deadlines(peer) for peer in self._pressed}
        self._pressed = {peer: None for peer, own in deadlines.items() if own}
        for peer in [peer for peer, own in deadlines.items() if any(by <= now for by in own)]:
            if peer.write_by is not None and peer.write_by <= now:
                reason = "the client did not read what was sent to it in time"
            else:
                reason = "the client sent nothing, or only a part of a frame, in time"
            self.reject(peer, ProtocolError(reason))

    def shut(self) -> None:
        """Closes the listening socket and all clients."""
        self._pause_accepting()
        self._accept_at = None
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for peer in list(self._peers):
            self.close(peer)

    def stay_reachable(self, _now: float) -> None:
        """Listens again if the socket was removed, by a cleaner of old files or by hand: no client would find us."""
        try:
            if os.stat(self._path).st_ino == self._inode:
                return
        except OSError:
            pass
        try:
            fresh = _listen(self._path, self._directory)
        except (OSError, ConfigError):
            return  # out of descriptors, or without the directory: it is tried again soon
        was_accepting = self._is_accepting
        self._pause_accepting()
        self._listener.close()
        self._listener, self._inode = fresh, os.stat(self._path).st_ino
        if was_accepting:
            self._resume_accepting()

    def _pause_accepting(self) -> None:
        if self._is_accepting:
            self._selector.unregister(self._listener)
            self._is_accepting = False

    def _resume_accepting(self) -> None:
        self._accept_at = None
        if not self._is_accepting and self._listener.fileno() >= 0:
            self._selector.register(self._listener, selectors.EVENT_READ, self._on_listener)
            self._is_accepting = True


def _deadlines(peer: Peer) -> list[float]:
    """When a client is disconnected unless it reads or sends before. While we do not read from it, it is not late."""
    read_by = peer.read_by if peer.is_reading else None
    return [by for by in (read_by, peer.write_by) if by is not None]


def _listen(path: Path, directory: Directory) -> socket.socket:
    """Returns the listening socket. It is made under a umask, so that it is never open to others, not even for a
    moment."""
    if path.parent != directory.path:
        private_directory(path.parent)
    path.unlink(missing_ok=True)  # stale: we hold the directory's lock
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    finally:
        os.umask(mask)
    listener.listen(256)
    listener.setblocking(False)
    return listener
