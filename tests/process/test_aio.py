"""The asyncio client against real fleets, and against false brokers that misbehave in ways a real one does not."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from apps import jobs
from fleet import APPS, Fleet, Gate, starts

from taskq import BrokerUnavailable, JobCancelled, JobFailed, JobNotFound, JobState, ProtocolError, ResultTimeout
from taskq.client.transport import absence, aio
from taskq.protocol import frames, spool
from taskq.protocol.ops import Op
from taskq.system.directory import Directory

StreamHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
#: The deadline of every wait in these tests.
DEADLINE_S = 60.0


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine on a loop of its own, with a deadline."""
    return asyncio.run(asyncio.wait_for(main, DEADLINE_S))


def client_here() -> aio.AsyncClient:
    """The client that `apps.jobs` uses on this loop."""
    client = jobs.q.async_client()
    assert isinstance(client, aio.AsyncClient)
    return client


async def add(a: int, b: int) -> int:
    return await (await jobs.add.aenqueue(a, b))


async def turns(number: int) -> None:
    """Lets the loop turn this many times."""
    for _ in range(number):
        await asyncio.sleep(0)


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))


def sockets() -> set[str]:
    """The sockets that this process has open, by what the kernel calls them: a number of a descriptor is used again."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return {name for name in found if name.startswith("socket:")}


async def started(path: Path, number: int = 1) -> None:
    """Waits until this many jobs have reported that they run."""
    await asyncio.to_thread(starts, path, number)


@asynccontextmanager
async def false_broker(home: Path, handle: StreamHandler) -> AsyncIterator[None]:
    """Listens where the broker would; a connection is closed when `handle` returns."""
    directory = Directory(home).create()

    async def handle_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(handle_and_close, directory.socket_path())
    try:
        yield
    finally:
        server.close()
        directory.socket_path().unlink(missing_ok=True)


# -- jobs and their results


@pytest.mark.usefixtures("shared")
def test_a_job_there_and_back() -> None:
    async def main() -> None:
        job = await jobs.add.aenqueue(1, b=2)
        assert await job == 3
        assert await job == 3, "a result can be asked for again"
        assert await job.aresult(timeout=0) == 3
        assert (await job.ainfo()).state == JobState.SUCCEEDED
        assert await job.acancel() is False

    run(main())


@pytest.mark.not_on_postgres("clients of a database do not come to the broker's socket")
@pytest.mark.usefixtures("shared")
def test_many_tasks_share_one_connection() -> None:
    async def main() -> None:
        await add(0, 0)
        before = sockets()
        assert await asyncio.gather(*(add(number, 1) for number in range(500))) == list(range(1, 501))
        assert sockets() <= before, "what earlier tests have left may go meanwhile; nothing comes"

    run(main())


@pytest.mark.usefixtures("shared")
def test_many_wait_for_one_job(gate: Gate, tmp_path: Path) -> None:
    async def main() -> None:
        job = await jobs.hold.aenqueue(gate.path, str(tmp_path / "held"))
        waiting = [asyncio.create_task(job.aresult()) for _ in range(20)]
        await started(tmp_path / "held")
        gate.open()
        assert await asyncio.gather(*waiting) == ["held"] * 20

    run(main())


@pytest.mark.usefixtures("shared")
def test_aenqueue_many_takes_several_frames() -> None:
    async def main() -> None:
        many = await jobs.add.aenqueue_many((number, 1) for number in range(3000))
        assert [job.id for job in many] == sorted({job.id for job in many})
        assert await asyncio.gather(*many) == list(range(1, 3001))

    run(main())


@pytest.mark.usefixtures("shared")
def test_an_endless_iterable_leaves_the_loop_to_others() -> None:
    async def main() -> None:
        endless = asyncio.create_task(jobs.echo.aenqueue_many((number,) for number in count()))
        assert await add(1, 1) == 2
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        assert await add(2, 2) == 4, "the connection is as good as before"

    run(main())


@pytest.mark.usefixtures("shared")
def test_large_values() -> None:
    async def main() -> None:
        values = [bytes([number]) * 3_000_000 for number in range(8)]
        sent = await asyncio.gather(*(jobs.echo.aenqueue(value) for value in values))
        assert await asyncio.gather(*sent) == values

    run(main())


@pytest.mark.usefixtures("shared")
def test_a_job_that_failed() -> None:
    async def main() -> None:
        with pytest.raises(JobFailed) as caught:
            await (await jobs.fail.aenqueue("no such thing"))
        assert caught.value.error_type.endswith("LookupError")
        assert "no such thing" in str(caught.value)

    run(main())


@pytest.mark.usefixtures("shared")
def test_a_job_that_takes_too_long(gate: Gate, tmp_path: Path) -> None:
    async def main() -> None:
        job = await jobs.hold.aenqueue(gate.path, str(tmp_path / "held"))
        for timeout in (0, 0.1):
            with pytest.raises(ResultTimeout, match=f"{job.id} has not ended within {timeout} s"):
                await job.aresult(timeout=timeout)
        gate.open()
        assert await job.aresult(timeout=DEADLINE_S) == "held"

    run(main())


@pytest.mark.usefixtures("shared")
def test_a_job_that_nobody_knows() -> None:
    async def main() -> None:
        nobody = jobs.q.job("00" * 16)
        for ask in (nobody.aresult, nobody.ainfo, nobody.acancel):
            with pytest.raises(JobNotFound, match=nobody.id):
                await ask()

    run(main())


def test_a_job_that_is_cancelled_before_it_starts(start: Callable[..., Fleet], gate: Gate, tmp_path: Path) -> None:
    start(consumers=1)

    async def main() -> None:
        await jobs.hold.aenqueue(gate.path, str(tmp_path / "held"))
        await started(tmp_path / "held")
        job = await jobs.add.aenqueue(1, 1)
        waiting = asyncio.create_task(job.aresult())
        await turns(5)
        assert await job.acancel() is True
        with pytest.raises(JobCancelled):
            await waiting
        gate.open()

    run(main())


# -- the broker goes and comes


def test_waiting_survives_kill_9_of_the_broker(start: Callable[..., Fleet], gate: Gate, tmp_path: Path) -> None:
    fleet = start()

    async def main() -> None:
        held = await jobs.hold.aenqueue(gate.path, str(tmp_path / "held"))
        await started(tmp_path / "held")
        waiting = asyncio.create_task(held.aresult())
        others = await jobs.add.aenqueue_many((number, 1) for number in range(1500))
        results = asyncio.gather(*others)
        await turns(5)
        fleet.kill(await asyncio.to_thread(lambda: fleet.broker_pid))
        await started(tmp_path / "held", 2)  # the new fleet has begun it again
        gate.open()
        assert await waiting == "held"
        assert await results == list(range(1, 1501))

    run(main())


def test_submitting_survives_kill_9_of_the_broker(start: Callable[..., Fleet]) -> None:
    fleet = start()

    async def main() -> None:
        await add(0, 0)
        broker_pid = await asyncio.to_thread(lambda: fleet.broker_pid)
        sent = asyncio.gather(*(add(number, 1) for number in range(400)))
        await turns(3)
        fleet.kill(broker_pid)
        more = asyncio.gather(*(add(number, 2) for number in range(50)))
        assert await sent == list(range(1, 401))
        assert await more == list(range(2, 52))

    run(main())
    fleet.wait_for_totals(enqueued=451)  # none was taken in twice


@pytest.mark.not_on_postgres("a database has no spool")
def test_without_a_fleet_jobs_go_to_the_spool(home: Path, start: Callable[..., Fleet]) -> None:
    async def main() -> None:
        with pytest.raises(BrokerUnavailable, match="no fleet answers"):
            await jobs.q.job("00" * 16).ainfo()
        single = await jobs.add.aenqueue(1, 1)
        many = await jobs.add.aenqueue_many((number, 1) for number in range(1200))
        assert len(list((home / "spool").iterdir())) == 3
        assert (await single.ainfo()).state == JobState.QUEUED
        waiting = asyncio.gather(single, *many)
        with pytest.raises(ResultTimeout):
            await single.aresult(timeout=0.05)
        await asyncio.to_thread(start)
        assert await waiting == [2, *range(1, 1201)]

    run(main())


class Told(logging.Handler):
    """Hears, on the loop, what the client tells."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.is_told = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        self.is_told.set()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long outage is reported after a short one."""
    monkeypatch.setattr(absence, "_TELL_AWAY_AFTER_S", 0.2)


@pytest.mark.not_on_postgres("clients of a database do not come to the broker's socket")
@pytest.mark.usefixtures("soon")
def test_a_long_outage_is_reported_once(home: Path, start: Callable[..., Fleet]) -> None:
    async def main() -> None:
        logging.getLogger("taskq").addHandler(told := Told())
        sent = [await jobs.add.aenqueue(number, 1) for number in range(3)]
        [of_spool] = told.texts
        assert of_spool.endswith("jobs are kept in its spool")
        told.is_told.clear()
        waiting = asyncio.gather(*sent)
        await told.is_told.wait()
        await asyncio.to_thread(start)
        assert await waiting == [1, 2, 3]
        logging.getLogger("taskq").removeHandler(told)
        assert len(told.texts) == 2
        assert str(home) in told.texts[1]
        assert told.texts[1].endswith("still waiting")

    run(main())


# -- false brokers


@pytest.mark.not_on_postgres("clients of a database do not come to the broker's socket")
@pytest.mark.usefixtures("soon")
def test_a_broker_that_hangs_up_is_not_flooded(home: Path) -> None:
    callers: list[object] = []

    async def hang_up(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        callers.append(reader)

    async def main() -> None:
        logging.getLogger("taskq").addHandler(told := Told())
        async with false_broker(home, hang_up):
            waiting = asyncio.create_task(jobs.q.job("00" * 16).aresult())
            await told.is_told.wait()
            waiting.cancel()
        logging.getLogger("taskq").removeHandler(told)

    run(main())
    assert 3 <= len(callers) <= 25  # a pause is a tenth of what was waited, 10 ms at the least


@pytest.mark.not_on_postgres("clients of a database do not come to the broker's socket")
def test_a_broker_that_refuses_us_is_heard(home: Path) -> None:
    refusal = frames.frame([Op.ERROR, 0, "ProtocolError", "upgrade this side"])

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(refusal)

    async def main() -> None:
        async with false_broker(home, refuse):
            for ask in (jobs.q.job("00" * 16).aresult(), jobs.add.aenqueue(1, 1)):
                with pytest.raises(ProtocolError, match="upgrade this side"):
                    await ask

    run(main())


@pytest.mark.not_on_postgres("clients of a database do not come to the broker's socket")
def test_a_broker_that_is_none_is_heard(home: Path) -> None:
    async def chat(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await writer.drain()

    async def main() -> None:
        async with false_broker(home, chat):
            with pytest.raises(ProtocolError, match="not a taskq frame"):
                await jobs.q.job("00" * 16).aresult()

    run(main())


@pytest.mark.not_on_postgres("clients of a database do not come to the broker's socket")
def test_a_broker_that_is_silent_is_given_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.q, "reply_timeout", 0.1)

    async def say_nothing(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def main() -> None:
        async with false_broker(home, say_nothing):
            await asyncio.gather(*(jobs.add.aenqueue(number, 1) for number in range(20)))

    run(main())
    assert sum(len(file.frames) for file in spool.spooled(home / "spool")) == 20


@pytest.mark.not_on_postgres("clients of a database do not come to the broker's socket")
def test_a_broker_that_does_not_read_holds_up_who_sends(home: Path) -> None:
    released = asyncio.Event()

    async def read_late(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await released.wait()
        await reader.read()

    async def main() -> None:
        async with false_broker(home, read_late):
            value = bytes(60_000)  # a larger one would be in a file
            sending = [asyncio.create_task(jobs.echo.aenqueue(value)) for _ in range(400)]
            await turns(200)
            connection = client_here()._connection
            assert connection is not None
            assert len(connection._unsent) < 4_000_000
            assert len(connection._answers) < 80, "the others have not been sent"
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
            released.set()

    run(main())


# -- loops


@pytest.mark.usefixtures("shared")
def test_the_loop_turns_while_a_task_waits(gate: Gate, tmp_path: Path) -> None:
    async def main() -> None:
        waiting = asyncio.create_task(add_after_gate())
        await turns(2000)
        assert not waiting.done()
        gate.open()
        assert await waiting == "held"

    async def add_after_gate() -> str:
        return await (await jobs.hold.aenqueue(gate.path, str(tmp_path / "held")))

    run(main())


@pytest.mark.not_on_postgres("the client of a directory, from inside")
@pytest.mark.usefixtures("shared")
def test_a_cancelled_task_leaves_nothing_behind(gate: Gate, tmp_path: Path) -> None:
    async def main() -> None:
        job = await jobs.hold.aenqueue(gate.path, str(tmp_path / "held"))
        first, second = (asyncio.create_task(job.aresult()) for _ in range(2))
        await turns(5)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        sending = asyncio.create_task(jobs.add.aenqueue(1, 1))
        await turns(1)
        sending.cancel()
        await asyncio.wait([sending])
        gate.open()
        assert await second == "held"
        client = client_here()
        assert not client._waiting
        assert client._connection is not None
        assert not client._connection._answers
        assert await add(1, 1) == 2

    run(main())


@pytest.mark.not_on_postgres("the client of a directory, from inside")
@pytest.mark.usefixtures("shared")
def test_two_loops_in_two_threads() -> None:
    results: dict[int, list[int]] = {}
    clients: set[aio.AsyncClient] = set()

    async def main(thread: int) -> None:
        clients.add(client_here())
        results[thread] = await asyncio.gather(*(add(number, thread) for number in range(100)))

    threads = [threading.Thread(target=lambda thread=thread: run(main(thread))) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert results == {thread: list(range(thread, thread + 100)) for thread in range(2)}
    assert len(clients) == 2


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # that fork and threads do not mix
@pytest.mark.usefixtures("shared")
def test_a_forked_child_connects_anew() -> None:
    async def main() -> None:
        assert await add(1, 1) == 2
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(asyncio.wait_for(child(), DEADLINE_S))
            finally:
                os._exit(1)
        assert await asyncio.gather(*(add(number, 1) for number in range(50))) == list(range(1, 51))
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0

    async def child() -> None:
        if await asyncio.gather(*(add(number, 2) for number in range(50))) == list(range(2, 52)):
            os._exit(0)

    run(main())


@pytest.fixture
def descriptors_before() -> Iterator[int]:
    """How many descriptors were open, with the garbage collector off since then."""
    gc.collect()
    gc.disable()
    yield descriptors()
    gc.enable()


@pytest.mark.usefixtures("shared")
def test_the_connection_closes_with_the_loop(descriptors_before: int) -> None:
    asyncio.run(add(1, 1))
    assert descriptors() == descriptors_before


@pytest.mark.usefixtures("shared")
def test_connections_close_with_the_loop_of_many_tasks(descriptors_before: int) -> None:
    """Some of them had to wait for a connection."""

    async def main() -> list[int]:
        return await asyncio.gather(*(add(number, 1) for number in range(20)))

    assert asyncio.run(main()) == list(range(1, 21))
    assert descriptors() == descriptors_before


@pytest.mark.usefixtures("shared")
def test_the_connection_closes_with_a_loop_that_ended_under_a_waiting_task(
    gate: Gate, tmp_path: Path, descriptors_before: int
) -> None:
    async def main() -> None:
        job = await jobs.hold.aenqueue(gate.path, str(tmp_path / "held"))
        background.append(asyncio.create_task(job.aresult()))
        await started(tmp_path / "held")

    background: list[asyncio.Task[str]] = []
    asyncio.run(main())
    gate.open()
    assert background.pop().cancelled()
    gc.collect()  # Python 3.13 itself leaves a cycle of a cancelled task, its traceback and the loop
    assert descriptors() == descriptors_before


@pytest.mark.not_on_postgres("the client of a directory, from inside")
@pytest.mark.usefixtures("home")
def test_clients_of_loops_that_were_abandoned_are_freed() -> None:
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(jobs.q.job("00" * 16).aresult())
    loop.run_until_complete(turns(3))
    loop.close()
    assert loop in aio._clients

    async def main() -> None:
        client_here()

    run(main())
    assert loop not in aio._clients
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]  # this noise is ours


_NOISY = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import jobs
from taskq.system.directory import Directory
jobs.q.use_directory(Directory(Path(sys.argv[2])))

async def main():
    assert await (await jobs.add.aenqueue(1, 1)) == 2
    job = await jobs.hold.aenqueue(sys.argv[3], sys.argv[4])
    asyncio.create_task(job.aresult())
    asyncio.create_task(jobs.add.aenqueue(2, 2))
    await asyncio.sleep(0)

asyncio.run(main())
asyncio.run(main(), debug=False)
loop = asyncio.new_event_loop()
loop.run_until_complete(jobs.add.aenqueue(1, 1))
loop.close()
print("done")
"""


@pytest.mark.not_on_postgres("APP is a directory")
def test_loops_end_without_noise(shared: Fleet, gate: Gate, tmp_path: Path) -> None:
    gate.open()
    arguments = [str(APPS), str(shared.home), gate.path, str(tmp_path / "held")]
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", _NOISY, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert (ended.stdout, ended.stderr) == ("done\n", "")
