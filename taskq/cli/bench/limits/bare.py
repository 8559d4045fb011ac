"""The limit of an enqueue: a socket, one SQLite commit with a sync, and the answer. It does nothing else.

python -m taskq.cli.bench.limits.bare DIRECTORY SOCKET
"""

from __future__ import annotations

import selectors
import socket
import sys
from pathlib import Path
from typing import Any

import apsw
import msgpack

from taskq.system.platform import die_with_parent

_RECEIVE_BYTES = 1 << 18


def _open(path: Path) -> apsw.Connection:
    store = apsw.Connection(str(path))
    store.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 1000")
    store.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, payload BLOB)")
    return store


def serve(directory: Path, path: str) -> None:
    """Answers until its standard input ends. What came from several clients at once is one commit."""
    store = _open(directory / "bare.db")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(128)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    unpackers: dict[socket.socket, Any] = {}
    print("up", flush=True)
    while True:
        payloads: list[tuple[bytes]] = []
        answers: list[socket.socket] = []
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return
            if key.fileobj is listener:
                accepted, _ = listener.accept()
                unpackers[accepted] = msgpack.Unpacker()
                selector.register(accepted, selectors.EVENT_READ)
                continue
            assert isinstance(key.fileobj, socket.socket)
            client = key.fileobj
            data = client.recv(_RECEIVE_BYTES)
            if not data:
                selector.unregister(client)
                del unpackers[client]
                client.close()
                continue
            unpackers[client].feed(data)
            for _, frame in unpackers[client]:
                payloads += [(payload,) for payload in frame]
                answers.append(client)
        if payloads:
            store.execute("BEGIN")
            store.executemany("INSERT INTO jobs (payload) VALUES (?)", payloads)
            store.execute("COMMIT")
        for client in answers:
            client.sendall(b"\1")


if __name__ == "__main__":
    die_with_parent()
    serve(Path(sys.argv[1]), sys.argv[2])
