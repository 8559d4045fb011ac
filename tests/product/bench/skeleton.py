"""The same shape as taskq with no features at all: what `taskq bench` compares with in a checkout, so that the machine's
own speed, and its noise, cancel out. It is a `taskq.cli.bench.limits.service.Service`.

python tests/product/bench/skeleton.py WORKERS DIRECTORY SOCKET

socket -> one SQLite transaction a round (WAL, FULL) -> a multiprocessing queue for each worker -> done lists back.
No ids of its own, no errors, no retries, no results, no leases, no logs, no recovery: a bound, not an alternative.
"""

from __future__ import annotations

import multiprocessing
import selectors
import socket
import sqlite3
import sys
from collections import deque
from multiprocessing.queues import Queue, SimpleQueue
from typing import Any

import msgpack

from taskq.system.platform import die_with_parent
from taskq.system.semaphores import remove_name

_BATCH = 100
_LEASED = 400


def _work(inbox: Queue[bytes], outbox: SimpleQueue[bytes]) -> None:
    die_with_parent()
    outbox.put(msgpack.packb([]))  # both are open
    while True:
        done = [row for row, payload in msgpack.unpackb(inbox.get()) if msgpack.unpackb(payload)[0] == "noop"]
        outbox.put(msgpack.packb(done))


def _serve(workers: int, directory: str, path: str) -> None:
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
    listener.bind(path)
    listener.listen()
    print("up", flush=True)
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
                client.sendall(b"\1")
        for client, wanted in [entry for entry in waiting if entry[1] <= total_done]:
            client.sendall(b"\1")
            waiting.remove((client, wanted))
        for number, inbox in enumerate(inboxes):
            while ready and leased[number] < _LEASED:
                batch = [ready.popleft() for _ in range(min(_BATCH, len(ready)))]
                leased[number] += len(batch)
                inbox.put(msgpack.packb(batch))


if __name__ == "__main__":
    die_with_parent()
    _serve(int(sys.argv[1]), sys.argv[2], sys.argv[3])
