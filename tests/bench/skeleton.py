"""The same shape as taskq with no features at all: what the benchmark compares with, so that the machine's own speed,
and its noise, cancel out. It is a `taskq.cli.bench.command.Rival`.

socket -> one SQLite transaction a round (WAL, FULL) -> a multiprocessing queue for each worker -> done lists back.
No ids of its own, no errors, no retries, no results, no leases, no logs, no recovery: a bound, not an alternative.
"""

from __future__ import annotations

import multiprocessing
import os
import selectors
import signal
import socket
import sqlite3
import tempfile
from collections import deque
from multiprocessing.queues import Queue, SimpleQueue
from pathlib import Path
from typing import Any, Self

import msgpack

from taskq.system.platform import die_with_parent
from taskq.system.semaphores import remove_name

_BATCH = 100
_LEASED = 400
_FRAMES_AHEAD = 8
_FRAME = 500


def _work(inbox: Queue[bytes], outbox: SimpleQueue[bytes]) -> None:
    die_with_parent()
    outbox.put(msgpack.packb([]))  # both are open
    while True:
        done = [row for row, payload in msgpack.unpackb(inbox.get()) if msgpack.unpackb(payload)[0] == "noop"]
        outbox.put(msgpack.packb(done))


def _serve(directory: str, workers: int) -> None:
    context = multiprocessing.get_context("spawn")
    store = sqlite3.connect(f"{directory}/skeleton.db", isolation_level=None)
    store.execute("PRAGMA journal_mode = WAL")
    store.execute("PRAGMA synchronous = FULL")
    store.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, queue TEXT, payload BLOB)")
    selector = selectors.DefaultSelector()
    listener = socket.socket(socket.AF_UNIX)
    inboxes: list[Queue[bytes]] = []
    leased = [0] * workers
    for number in range(workers):
        inbox: Queue[bytes] = context.Queue()
        outbox: SimpleQueue[bytes] = context.SimpleQueue()
        context.Process(target=_work, args=(inbox, outbox), daemon=True).start()
        outbox.get()
        # the skeleton ends by SIGKILL: what still had a name then, multiprocessing would complain of as leaked
        queues: Any = inbox, outbox
        for lock in (queues[0]._rlock, queues[0]._wlock, queues[0]._sem, queues[1]._rlock, queues[1]._wlock):
            remove_name(lock)
        inboxes.append(inbox)
        selector.register(outbox._reader, selectors.EVENT_READ, (number, outbox))  # type: ignore[attr-defined]
    listener.bind(f"{directory}/skeleton.sock")
    listener.listen()
    selector.register(listener, selectors.EVENT_READ, None)
    ready: deque[tuple[int, bytes]] = deque()
    waiting: list[tuple[socket.socket, int]] = []
    unpackers: dict[socket.socket, Any] = {}
    next_id = total_done = 0
    while True:
        rows: list[tuple[int, str, bytes]] = []
        done: list[int] = []
        answers: list[socket.socket] = []
        for key, _ in selector.select():
            if key.data is None:
                client, _ = listener.accept()
                unpackers[client] = msgpack.Unpacker(max_buffer_size=1 << 28)
                selector.register(client, selectors.EVENT_READ, client)
            elif isinstance(key.data, socket.socket):
                data = key.data.recv(1 << 18)
                if not data:
                    selector.unregister(key.data)
                    continue
                unpackers[key.data].feed(data)
                for operation, value in unpackers[key.data]:
                    if operation == "wait":
                        waiting.append((key.data, value))
                        continue
                    for payload in value:
                        next_id += 1
                        rows.append((next_id, "default", payload))
                    answers.append(key.data)
            else:
                number, outbox = key.data
                finished = msgpack.unpackb(outbox.get())
                leased[number] -= len(finished)
                done += finished
        if rows or done:
            store.execute("BEGIN")
            store.executemany("INSERT INTO jobs VALUES (?, ?, ?)", rows)
            store.executemany("DELETE FROM jobs WHERE id = ?", [(row,) for row in done])
            store.execute("COMMIT")
            total_done += len(done)
            ready.extend((row, payload) for row, _, payload in rows)
            for client in answers:
                client.sendall(msgpack.packb(True))
        for client, wanted in [entry for entry in waiting if entry[1] <= total_done]:
            client.sendall(msgpack.packb(True))
            waiting.remove((client, wanted))
        for number, inbox in enumerate(inboxes):
            while ready and leased[number] < _LEASED:
                batch = [ready.popleft() for _ in range(min(_BATCH, len(ready)))]
                leased[number] += len(batch)
                inbox.put(msgpack.packb(batch))


class Skeleton:
    """A running skeleton: `with Skeleton(workers=2) as skeleton`."""

    def __init__(self, workers: int) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="taskq-bench-")
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_lead, args=(self._directory.name, workers))
        self.enqueued = 0

    def __enter__(self) -> Self:
        self._process.start()
        self._socket = socket.socket(socket.AF_UNIX)
        path = Path(self._directory.name, "skeleton.sock")
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                multiprocessing.connection.wait([self._process.sentinel], timeout=0.01)
        self.round_trip()
        return self

    def enqueue(self) -> None:
        """Enqueues one job, durable on return."""
        self._send(1)
        self._socket.recv(1)

    def run(self, count: int) -> None:
        """Enqueues jobs in frames, with some frames under way, and waits until all are done."""
        frames = count // _FRAME
        for number in range(frames):
            self._send(_FRAME)
            if number >= _FRAMES_AHEAD:
                self._socket.recv(1)
        for _ in range(min(frames, _FRAMES_AHEAD)):
            self._socket.recv(1)
        self._wait()

    def _send(self, count: int) -> None:
        payloads = [msgpack.packb(("noop", [number], {})) for number in range(count)]
        self._socket.sendall(msgpack.packb(("enqueue", payloads)))
        self.enqueued += count

    def _wait(self) -> None:
        self._socket.sendall(msgpack.packb(("wait", self.enqueued)))
        self._socket.recv(1)

    def round_trip(self) -> None:
        """Enqueues one job and waits for its end."""
        self.enqueue()
        self._wait()

    def __exit__(self, *_: object) -> None:
        pid = self._process.pid
        assert pid is not None
        os.killpg(pid, signal.SIGKILL)
        self._process.join()
        self._directory.cleanup()


def _lead(directory: str, workers: int) -> None:
    os.setpgid(0, 0)
    die_with_parent()
    _serve(directory, workers)
