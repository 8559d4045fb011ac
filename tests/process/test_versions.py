"""Clients of version 1 of the protocol, by the bytes that they sent: which are refused, and what is understood."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from apps import jobs
from fleet import Fleet, use

from taskq import JobState
from taskq.protocol.frames import Decoder, error_of

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
