"""Clients and fleets of other versions of the protocol, by the bytes that they sent: which are refused, in which words,
and what is understood."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Thread

import pytest
from apps import jobs
from fleet import JOBS, Fleet, use
from terminal import Here, here, refused

from taskq import JobState, ProtocolError
from taskq.model.exits import Exit
from taskq.protocol.frames import Decoder, error_frame, error_of
from taskq.system.directory import Directory

pytestmark = pytest.mark.not_on_postgres("clients of a database do not come to the broker's socket")

__all__ = ["here"]  # a fixture

#: The greeting of a client of version 1, process 4711.
HELLO = bytes.fromhex("000000110000000d9501a57461736b710101cd1267")
#: What such a client wrote to the spool: a call of add(1, 2), which expires in 2255, with a key of its own.
JOB_ID = "019c8a1f2e0b7a30a5f1d2c3b4a59687"
SPOOLED = bytes.fromhex(
    "0000004e00000041980a0095a3616464a764656661756c7403c003c3c2c410019c8a1f2e0b7a30a5f1d2c3b4a5968791099195c0cb"
    "4200c388d0000000c0c094a56164642031c2c0c2493dfbfb9292010280"
)


def test_a_client_of_version_1_is_told_to_upgrade(shared: Fleet) -> None:
    """It could not read the info of a job; the fleet serves other clients as before."""
    with closing(socket.socket(socket.AF_UNIX)) as raw:
        raw.settimeout(10)
        raw.connect(str(shared.client.directory.socket_path()))
        raw.sendall(HELLO)
        [(envelope, _)] = Decoder().feed(raw.recv(65536))
        assert raw.recv(65536) == b"", "the connection is closed"
    told = "the client speaks protocol 1, the fleet 2: upgrade taskq in the client, and restart it"
    assert str(error_of(envelope)) == told
    shared.wait_for("client.rejected", reason=told)
    assert jobs.add.enqueue(1).result(10) == 2


#: How fleets refuse our greeting: one of version 1, and one of a later version.
OLD = "the peer speaks protocol 2 and newer, this taskq up to 1: upgrade this side"
NEW = "the client speaks protocol 2, the fleet 3 to 4: upgrade taskq in the client, and restart it"


@contextmanager
def refusing(home: Path, told: str) -> Iterator[None]:
    """A fleet's socket, where each client is refused in these words."""
    directory = Directory(home).create()
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(directory.socket_path()))
        listener.listen()

        def refuse() -> None:
            while True:
                peer, _ = listener.accept()
                with peer:
                    if not peer.recv(65536).endswith(b"stop"):
                        peer.sendall(error_frame(0, ProtocolError(told)))
                        continue
                    return

        thread = Thread(target=refuse)
        thread.start()
        try:
            yield
        finally:
            with closing(socket.socket(socket.AF_UNIX)) as last:
                last.connect(str(directory.socket_path()))
                last.sendall(b"stop")
            thread.join()


@pytest.mark.parametrize(
    ("told", "versions", "remedy"),
    [(OLD, "1", "restart the fleet with this version of taskq"), (NEW, "3 to 4", "upgrade this taskq")],
)
def test_a_fleet_of_another_version_is_named(home: Path, here: Here, told: str, versions: str, remedy: str) -> None:
    """Seen from the client: which fleet, and what to do. No job goes to the spool, which that fleet might not read."""
    use(jobs.q, home)
    words = (f"the fleet of {home} speaks protocol {versions}, this taskq 2: {remedy}", "takes no jobs")
    with refusing(home, told):
        refused(here(home, "status"), Exit.FAILED, *words)
        refused(here(home, "enqueue", JOBS, "add", "1"), Exit.FAILED, *words)
        with pytest.raises(ProtocolError, match=re.escape(words[0])):
            asyncio.run(jobs.add.aenqueue(1))
    assert list(jobs.q.directory.spool.iterdir()) == []


def test_jobs_of_version_1_in_the_spool_are_run(home: Path, start: Callable[..., Fleet]) -> None:
    """An upgrade loses nothing that was accepted before."""
    use(jobs.q, home)
    jobs.q.directory.create()
    (jobs.q.directory.spool / f"{JOB_ID}.jobs").write_bytes(SPOOLED)
    start()
    job = jobs.q.job(JOB_ID)
    assert job.result(20) == 3
    info = job.info()
    assert (info.task, info.state, info.meta) == ("add", JobState.SUCCEEDED, {})
