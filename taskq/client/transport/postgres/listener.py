"""One connection on which a process hears when jobs end, for all threads that wait.

Of those who wait one reads what comes, and passes on what is for others; when it has heard enough, another takes its
turn. So there is no thread of ours.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Mapping
from threading import Condition
from typing import Any

import psycopg

from taskq.client.transport.postgres.sessions import looks_s
from taskq.protocol.postgres.watching import Word, channel_of, new_client, words_in


class Listener:
    """Hears when jobs end."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], schema: str) -> None:
        """
        Args:
            connect: makes a connection, in autocommit mode.
        """
        self._connect = connect
        self._schema = schema
        self._client = new_client()
        self._connection: psycopg.Connection[Any] | None = None
        self._changed = Condition()
        self._has_reader = False  # one of those who wait reads
        self._ears: set[BlockingEar] = set()

    def ear(self, waiting: Mapping[bytes, Any]) -> BlockingEar:
        """An ear of its own, for one who waits. Raises psycopg.Error: the database is away."""
        with self._changed:
            if self._connection is None:
                connection = self._connect()
                connection.execute(f'LISTEN "{channel_of(self._schema, self._client)}"'.encode())
                self._connection = connection
            ear = BlockingEar(self, self._client, waiting)
            self._ears.add(ear)
            return ear

    def hear(self, ear: BlockingEar, within_s: float) -> list[Word] | None:
        """See `verbs.Hear`."""
        until = time.monotonic() + within_s
        while True:
            with self._changed:
                if ear.has_missed or ear.heard:
                    return ear.take()
                left_s = until - time.monotonic()
                if left_s <= 0:
                    return []
                connection = self._connection
                if connection is None:
                    return None
                if self._has_reader:
                    self._changed.wait(left_s)
                    continue
                self._has_reader = True
            try:
                payloads = _read(connection, left_s)
            except (psycopg.Error, OSError, ValueError):
                payloads = None
            finally:
                with self._changed:
                    self._has_reader = False
                    self._changed.notify_all()
            self._pass_on(payloads)

    def _pass_on(self, payloads: list[str] | None) -> None:
        """Passes on what was heard. None: the connection is lost, and what was said since then."""
        with self._changed:
            if payloads is None:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                for ear in self._ears:
                    ear.has_missed = True
            for payload in payloads or ():
                words = words_in(payload)
                for ear in self._ears:
                    ear.heard += [word for word in words if word.id in ear.waiting]
                    ear.has_missed |= not words
            self._changed.notify_all()

    def forget(self, ear: BlockingEar) -> None:
        """Nobody listens with it any more."""
        with self._changed:
            self._ears.discard(ear)

    def close(self) -> None:
        """Closes the connection, if nobody waits."""
        with self._changed:
            if not self._ears and self._connection is not None:
                self._connection.close()
                self._connection = None


class BlockingEar:
    """Hears for one who waits: an `Ear`."""

    def __init__(self, listener: Listener, client: int, waiting: Mapping[bytes, Any]) -> None:
        self._listener = listener
        self.client = client
        self.waiting = waiting
        self.heard: list[Word] = []
        self.has_missed = False

    def take(self) -> list[Word] | None:
        """Returns what was heard; None if something may have been missed."""
        heard, self.heard = self.heard, []
        has_missed, self.has_missed = self.has_missed, False
        return None if has_missed else heard

    def hear(self, within_s: float) -> list[Word] | None:
        """See `verbs.Hear`."""
        return self._listener.hear(self, within_s)

    def close(self) -> None:
        """Hears no more."""
        self._listener.forget(self)


class DeafEar:
    """For one who waits behind a pooler, where nobody is told: an `Ear` that makes its owner look soon."""

    client = 0

    def __init__(self) -> None:
        self._looks = looks_s()

    def hear(self, within_s: float) -> list[Word] | None:
        """See `verbs.Hear`."""
        time.sleep(min(within_s, next(self._looks)))
        return []

    def close(self) -> None:
        """Nothing is open."""


def _read(connection: psycopg.Connection[Any], within_s: float) -> list[str] | None:
    """Reads what comes first, and what comes with it."""
    pgconn = connection.pgconn
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    if not poll.poll(within_s * 1000):
        return []
    pgconn.consume_input()
    payloads: list[str] = []
    while (notify := pgconn.notifies()) is not None:
        payloads.append(notify.extra.decode())
    return payloads
