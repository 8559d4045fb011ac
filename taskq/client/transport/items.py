"""Reading what a generator among the tasks yields, while it runs and after.

Items are numbered 0, 1, 2 ... and what has once been stored under a number never changes. A retry begins the generator
anew: items that it yields again, under stored numbers, are dropped, so every reader sees every number once. The reader
asks for the items from a number on; the broker answers when there are some, or when the job has ended. So nothing is
polled, a slow reader holds up nobody, and a reader that lost its connection goes on where it was.
"""

from __future__ import annotations

from collections.abc import Generator

from taskq.client.transport.blocking import Client, reconnect_pauses
from taskq.client.transport.connection import SHORTEST_WAIT_S, Connection
from taskq.model.errors import ResultTimeout
from taskq.protocol.answers import ConnectionLost
from taskq.protocol.endings import Ending
from taskq.protocol.items import read_items_answer
from taskq.protocol.ops import Op


def read_items(
    client: Client, job_id: bytes, start: int, timeout_s: float | None
) -> Generator[bytes, None, Ending | None]:
    """Yields the items of a job from a position on; returns how the job ended.

    Raises:
        ResultTimeout: the next one did not come in time.
        JobNotFound: nothing is known of the job.
    """
    clock = client.clock
    connection: Connection | None = None
    try:
        while True:
            deadline = None if timeout_s is None else clock.monotonic() + max(SHORTEST_WAIT_S, timeout_s)
            pauses = reconnect_pauses(client)
            while True:
                try:
                    connection = connection or client.connect()
                    left_s = None if deadline is None else max(SHORTEST_WAIT_S, deadline - clock.monotonic())
                    items, ending = read_items_answer(connection.ask(left_s, Op.READ_ITEMS, job_id, start))
                    break
                except (ConnectionLost, TimeoutError) as error:
                    if connection is not None:
                        connection.close()
                        connection = None
                    now = clock.monotonic()
                    if deadline is not None and now >= deadline:
                        raise late(job_id, start, timeout_s) from None
                    if isinstance(error, ConnectionLost):
                        clock.sleep(next(pauses) if deadline is None else min(next(pauses), deadline - now))
            yield from items
            start += len(items)
            if ending is not None:
                client.give_back(connection)
                connection = None
                return ending
    finally:
        if connection is not None:
            connection.close()


def late(job_id: bytes, start: int, timeout_s: float | None) -> ResultTimeout:
    """The error that tells which item did not come."""
    return ResultTimeout(f"job {job_id.hex()} has not yielded item {start} within {timeout_s:g} s; it goes on")
