"""Outcomes that a consumer has not sent yet, in memory that outlives it: the process that writes them is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

import pytest

from taskq.protocol.link.unsent import Unsent

pytestmark = pytest.mark.not_on_postgres("no queue is asked")

SPAWN = multiprocessing.get_context("spawn")


def add_until_killed(unsent: Unsent, ready: Connection) -> None:
    number = 0
    while True:
        if unsent.is_empty():
            ready.send_bytes(b"")
        number += 1
        if unsent.add(number, 0, number, number.to_bytes(8, "big")) == 0:
            unsent.clear()


@pytest.mark.parametrize("delay", range(3))
def test_whatever_a_kill_interrupts_only_whole_outcomes_are_read(delay: int) -> None:
    unsent = Unsent(SPAWN)
    reader, writer = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=add_until_killed, args=(unsent, writer))
    process.start()
    for _ in range(3 + 100 * delay):
        reader.recv_bytes()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    read = list(zip(*unsent.read(), strict=True))
    assert all(number == duration_us == int.from_bytes(outcome, "big") for number, _, duration_us, outcome in read)
    numbers = [number for number, *_ in read]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
