"""The client of a PostgreSQL database, without a fleet: a test does by hand what a broker would do."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import pytest
from postgres import Server

from taskq import (
    BrokerUnavailable,
    EnqueueError,
    Job,
    JobCancelled,
    JobFailed,
    JobNotFound,
    JobState,
    JobStateError,
    QueueFull,
    ResultTimeout,
    ScheduleNotFound,
    TaskQ,
    Unique,
    agather,
    as_completed,
    chain,
    gather,
    group,
)
from taskq.client.transport.postgres.sessions import ADAPTERS
from taskq.engines.postgres.migrate import migrate
from taskq.model.attempt import Ran, pack_failure, pack_success
from taskq.model.job import JobError
from taskq.model.stored import StoredState
from taskq.protocol.codec import encode_result
from taskq.protocol.postgres.watching import Word, new_client, tell, words_in

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")

SCHEMA = "taskq_shop"


class Hand(NamedTuple):
    """Does what a broker would do."""

    connection: psycopg.Connection[Any]

    def lease(self, job: Job[Any], fleet: int = 1) -> None:
        """A fleet takes a job."""
        self.execute("UPDATE taskq.queue SET lease = %s WHERE id = %s", fleet, UUID(job.id))

    def run(self, job: Job[Any], fleet: int = 1) -> None:
        """A fleet takes a job, and says that it runs."""
        self.lease(job, fleet)
        sql = "INSERT INTO taskq.beats (fleet, seen_at, running, attempts) VALUES (%s, now(), %s, '{1}')"
        self.execute(sql, fleet, [UUID(job.id)])

    def end(self, job: Job[Any], state: StoredState, outcome: bytes, *, is_told: bool = True) -> None:
        """A job has ended."""
        self.execute("DELETE FROM taskq.queue WHERE id = %s", UUID(job.id))
        sql = (
            "UPDATE taskq.jobs SET state = %s, outcome = %s, attempts = 1, finished_at = now(), "
            "payload = CASE WHEN %s = 11 THEN payload END WHERE id = %s"
        )
        self.execute(sql, int(state), outcome, int(state), UUID(job.id))
        if state is StoredState.FAILED:
            self.execute("INSERT INTO taskq.failed VALUES (%s)", UUID(job.id))
        if is_told:
            self.tell(job)

    def tell(self, *jobs: Job[Any]) -> None:
        """Tells those who wait."""
        ids = [UUID(job.id) for job in jobs]
        found = self.execute("DELETE FROM taskq.watches WHERE id = ANY(%s) RETURNING id, client", ids)
        for job_id, client in found:
            self.execute("SELECT pg_notify(%s, %s)", f"{SCHEMA}_c{client}", job_id.hex)

    def succeed(self, job: Job[Any], value: Any = None) -> None:
        """A job has returned something."""
        self.end(job, StoredState.SUCCEEDED, outcome_of(job, value))

    def fail(self, job: Job[Any]) -> None:
        """A job has failed for good."""
        outcome = pack_failure(time.time(), 0.5, JobError("ValueError", "no such cat"), ran=Ran(consumer=1))
        self.end(job, StoredState.FAILED, outcome)

    def execute(self, sql: str, *parameters: Any) -> list[Any]:
        """Sends a statement."""
        cursor = self.connection.execute(sql.replace("taskq.", f"{SCHEMA}.").encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def outcome_of(job: Job[Any], value: Any) -> bytes:
    """Of a job that has returned something."""
    return pack_success(1_000.0, 0.5, encode_result(bytes.fromhex(job.id), value), 1)


@contextmanager
def told_by_brokers(url: str) -> Iterator[Callable[..., Any]]:
    """What tells those who wait as brokers do, when the block ends."""
    with psycopg.connect(url, context=ADAPTERS, cursor_factory=psycopg.RawCursor) as broker:

        def tell_now(*jobs: Job[Any]) -> None:
            query = tell([bytes.fromhex(job.id) for job in jobs], SCHEMA)
            broker.execute(query.sql.replace("taskq.", f"{SCHEMA}.").encode(), query.params)

        yield tell_now


@pytest.fixture
def url(postgres: Server, database: str) -> str:
    """Of an empty database."""
    return postgres.url(database)


@pytest.fixture
def hand(url: str) -> Iterator[Hand]:
    """The tables of the application, and somebody who works on them."""
    with psycopg.connect(url, autocommit=True) as connection:
        migrate(connection, SCHEMA)
        yield Hand(connection)


@pytest.fixture
def q(url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskQ]:
    """The application."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    app = TaskQ("shop", url, reply_timeout=20)
    app.task(name="add")(lambda a, b: a + b)
    yield app
    app.client.close()


def eventually(is_so: Callable[[], Any]) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def watched(hand: Hand) -> int:
    """How many jobs are watched."""
    return int(hand.execute("SELECT count(*) FROM taskq.watches")[0][0])


# -- submitting and waiting


def test_a_job_comes_in_and_its_result_goes_back(q: TaskQ, hand: Hand) -> None:
    """It stands in both tables, and who waits is woken."""
    job = q.enqueue("add", 1, b=2)
    assert hand.execute("SELECT id, state, lease FROM taskq.queue") == [(UUID(job.id), 0, None)]
    assert job.state() == JobState.QUEUED
    assert not job.wait(0.05)
    waiter = threading.Thread(target=lambda: results.append(job.result(30)))
    results: list[Any] = []
    waiter.start()
    eventually(lambda: watched(hand))
    hand.succeed(job, 3)
    waiter.join()
    assert results == [3] == [job.result(0)]


def test_many_jobs_come_in_order(q: TaskQ, hand: Hand) -> None:
    jobs = q.named("add").enqueue_many([(number, 1) for number in range(2_500)])
    ids = [row[0] for row in hand.execute("SELECT id FROM taskq.queue ORDER BY seq")]
    assert ids == [UUID(job.id) for job in jobs]
    for job in jobs[:20]:
        hand.succeed(job, int(job.id[-4:], 16))
    assert gather(jobs[:20], timeout=30) == [int(job.id[-4:], 16) for job in jobs[:20]]


def test_large_arguments_come_in(q: TaskQ, hand: Hand) -> None:
    """More than the buffers of a connection take."""
    large = os.urandom(3_000_000)
    jobs = [q.enqueue("add", large, 1), asyncio.run(q.aenqueue("add", large, 2))]
    [(least,)] = hand.execute("SELECT min(length(payload)) FROM taskq.jobs")
    assert least > len(large)
    assert [job.state() for job in jobs] == [JobState.QUEUED] * 2


def test_what_is_sent_again_comes_in_once(q: TaskQ, hand: Hand) -> None:
    """As after a commit whose answer was lost."""
    from taskq.protocol.submissions import Call

    q.enqueue("add", 1, 2)
    [(payload,)] = hand.execute("SELECT payload FROM taskq.jobs")
    call = Call(os.urandom(16), payload)
    spec = q.tasks["add"].spec
    for _ in range(2):
        assert q.client.submit(spec, [call]) == [call.id]
    with pytest.raises(EnqueueError, match="already used by a job with other arguments"):
        q.client.submit(spec, [call._replace(payload=payload + b"x")])
    assert hand.execute("SELECT count(*) FROM taskq.jobs UNION ALL SELECT count(*) FROM taskq.queue") == [(2,), (2,)]


def test_brokers_are_told_behind_the_commit(q: TaskQ, hand: Hand) -> None:
    hand.execute(f'LISTEN "{SCHEMA}"')
    q.enqueue("add", 1, 2)
    [(partition,)] = hand.execute("SELECT partition FROM taskq.queue")
    told = next(hand.connection.notifies(timeout=30))
    assert told.payload == f"q {partition}"
    q.named("add").options(delay=0.5).enqueue(1, 2)
    assert [told.payload for told in hand.connection.notifies(timeout=30, stop_after=1)] == ["d"]


def test_delays_and_expiry_are_those_of_the_databases_clock(q: TaskQ, hand: Hand) -> None:
    job = q.named("add").options(delay=60, expires=600).enqueue(1, 2)
    sql = "SELECT state, extract(epoch FROM due_at - now()), extract(epoch FROM expires_at - now()) FROM taskq.queue"
    [(state, due_s, expires_s)] = hand.execute(sql)
    assert state == StoredState.SCHEDULED
    assert 30 < due_s <= 60
    assert 500 < expires_s <= 600
    info = job.info()
    assert info.state == JobState.SCHEDULED
    assert info.due_at is not None


def test_jobs_with_different_constraints_come_in_together(q: TaskQ, hand: Hand) -> None:
    task = q.tasks["add"]
    jobs = [task.options(priority=number, meta={"n": str(number)}).enqueue(1, 2) for number in range(3)]
    assert [job.info().meta for job in jobs] == [{"n": str(number)} for number in range(3)]
    assert hand.execute("SELECT count(DISTINCT partition) FROM taskq.queue") == [(3,)]


def test_several_threads_wait_on_one_connection(q: TaskQ, hand: Hand) -> None:
    jobs = [q.enqueue("add", number, 1) for number in range(8)]
    results: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda n=number: results.update({n: jobs[n].result(30)})) for number in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: watched(hand) == 8)
    assert hand.execute("SELECT count(DISTINCT client) FROM taskq.watches") == [(1,)]
    for number in (3, 1, 0, 2, 7, 6, 5, 4):
        hand.succeed(jobs[number], number + 1)
    for thread in threads:
        thread.join()
    assert results == {number: number + 1 for number in range(8)}


def test_a_small_result_comes_with_the_notification(q: TaskQ, hand: Hand, url: str) -> None:
    """Who waits need not look then: here the job is gone by that time."""
    job = q.enqueue("add", 1, 2)
    results: list[Any] = []
    waiter = threading.Thread(target=lambda: results.append(job.result(30)))
    waiter.start()
    eventually(lambda: watched(hand))
    hand.end(job, StoredState.SUCCEEDED, outcome_of(job, 3), is_told=False)
    with told_by_brokers(url) as tell_now:
        tell_now(job)
        hand.execute("DELETE FROM taskq.jobs")
    waiter.join()
    assert results == [3]


def test_large_results_are_looked_up_and_so_are_all_by_clients_of_older_versions(
    q: TaskQ, hand: Hand, url: str
) -> None:
    small, large = q.enqueue("add", 1, 2), q.enqueue("add", 1, 2)
    old, new = 7, new_client()
    with psycopg.connect(url, autocommit=True) as ear:
        for client in (old, new):
            ear.execute(f'LISTEN "{SCHEMA}_c{client}"'.encode())
            for job in (small, large):
                hand.execute("INSERT INTO taskq.watches VALUES (%s, %s)", UUID(job.id), client)
        for job, value in ((small, 3), (large, "3" * 1_000)):
            hand.end(job, StoredState.SUCCEEDED, outcome_of(job, value), is_told=False)
        with told_by_brokers(url) as tell_now:
            tell_now(small, large)
        words = {n.channel: words_in(n.payload) for n in ear.notifies(timeout=30, stop_after=2)}
    plain = {Word(bytes.fromhex(small.id)), Word(bytes.fromhex(large.id))}
    assert set(words[f"{SCHEMA}_c{old}"]) == plain
    assert set(words[f"{SCHEMA}_c{new}"]) == {
        Word(bytes.fromhex(small.id), StoredState.SUCCEEDED, outcome_of(small, 3)),
        Word(bytes.fromhex(large.id)),
    }


def test_a_lost_notification_delays_and_no_more(q: TaskQ, hand: Hand) -> None:
    """Who waits looks by itself after 2 s."""
    job = q.enqueue("add", 1, 2)
    results: list[Any] = []
    waiter = threading.Thread(target=lambda: results.append(job.result(30)))
    waiter.start()
    eventually(lambda: watched(hand))
    hand.execute("TRUNCATE taskq.watches")
    hand.succeed(job, 3)
    waiter.join()
    assert results == [3]


def test_an_ended_job_is_not_waited_for(q: TaskQ, hand: Hand) -> None:
    jobs = [q.enqueue("add", number, 1) for number in range(3)]
    hand.succeed(jobs[0])
    hand.fail(jobs[1])
    hand.end(jobs[2], StoredState.CANCELLED, pack_failure(None, None, JobError("Cancelled", "cancelled")))
    assert jobs[0].result(0) is None
    with pytest.raises(JobFailed, match="no such cat"):
        jobs[1].result(0)
    with pytest.raises(JobCancelled):
        jobs[2].result(0)
    assert len(list(as_completed(jobs, timeout=30))) == 3
    with pytest.raises(JobNotFound):
        q.job("00" * 16).result(5)
    with pytest.raises(ResultTimeout):
        q.enqueue("add", 1, 2).result(0)


def test_items_come_while_the_job_runs(q: TaskQ, hand: Hand) -> None:
    """A reader has each item once, from a number on, and then the end."""
    job = q.enqueue("add", 1, 2)
    items: list[Any] = []
    reader = threading.Thread(target=lambda: items.extend(job.items(start=1, timeout=30)))
    reader.start()
    for position in range(4):
        eventually(lambda: watched(hand))
        item = encode_result(bytes.fromhex(job.id), position)
        hand.execute("INSERT INTO taskq.items VALUES (%s, %s, %s)", UUID(job.id), position, item)
        hand.tell(job)
    eventually(lambda: len(items) == 3)
    assert reader.is_alive()
    hand.succeed(job)
    reader.join()
    assert items == [1, 2, 3] == list(job.items(start=1))
    with pytest.raises(ResultTimeout, match="has not yielded item 0"):
        next(q.enqueue("add", 1, 2).items(timeout=0.1))
    with pytest.raises(JobNotFound):
        next(q.job("00" * 16).items(timeout=1))


# -- asyncio


def test_asyncio(q: TaskQ, hand: Hand) -> None:
    """The same for tasks of a loop, with many at once and with one that is cancelled."""

    async def main() -> None:
        jobs = await asyncio.gather(*(q.aenqueue("add", number, 1) for number in range(20)))
        waiting = [asyncio.create_task(job.aresult(30)) for job in jobs]
        while watched(hand) < 20:
            await asyncio.sleep(0.01)
        waiting[0].cancel()
        for job in jobs:
            hand.succeed(job, job.id)
        assert await asyncio.gather(*waiting[1:]) == [job.id for job in jobs[1:]]
        assert await agather(jobs, timeout=30) == [job.id for job in jobs]
        assert await jobs[0].astate() == JobState.SUCCEEDED
        late = await q.aenqueue("add", 1, 2)
        assert not await late.await_(0.05)
        assert await late.acancel()
        assert [info.id for info in await q.ajobs("cancelled")] == [late.id]

    for _ in range(2):  # a loop that has ended leaves nothing that disturbs the next one
        asyncio.run(main(), debug=True)
        hand.execute("TRUNCATE taskq.jobs, taskq.queue, taskq.watches")


# -- what is asked, and what is changed


def test_cancel(q: TaskQ, hand: Hand) -> None:
    """One that waits ends at once, and whoever waits for it is told."""
    job = q.enqueue("add", 1, 2)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            job.result(30)
        except JobCancelled as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    eventually(lambda: watched(hand))
    assert job.cancel()
    waiter.join()
    assert len(errors) == 1
    assert job.cancel()
    assert job.state() == JobState.CANCELLED
    assert hand.execute("SELECT count(*) FROM taskq.queue") == [(0,)]
    done = q.enqueue("add", 1, 2)
    hand.succeed(done)
    assert not done.cancel()
    with pytest.raises(JobNotFound):
        q.job("00" * 16).cancel()


def test_a_fleet_is_asked_to_cancel_what_it_has(q: TaskQ, hand: Hand) -> None:
    hand.execute(f'LISTEN "{SCHEMA}"')
    job = q.enqueue("add", 1, 2)
    hand.run(job, fleet=7)
    results: list[bool] = []
    canceller = threading.Thread(target=lambda: results.append(job.cancel()))
    canceller.start()
    eventually(lambda: hand.execute("SELECT cancel FROM taskq.queue") == [(2,)])
    assert "c 7" in [told.payload for told in hand.connection.notifies(timeout=30, stop_after=2)]
    hand.end(job, StoredState.CANCELLED, pack_failure(None, None, JobError("Cancelled", "cancelled")))
    canceller.join()
    assert results == [True]


def test_a_running_job_that_may_go_on(q: TaskQ, hand: Hand) -> None:
    job = q.enqueue("add", 1, 2)
    hand.run(job)
    results: list[bool] = []
    canceller = threading.Thread(target=lambda: results.append(job.cancel(running=False)))
    canceller.start()
    eventually(lambda: hand.execute("SELECT cancel FROM taskq.queue") == [(1,)])
    hand.execute("UPDATE taskq.queue SET cancel = 0")
    canceller.join()
    assert results == [False]
    assert job.state() == JobState.RUNNING


def test_retry_gives_all_retries_again(q: TaskQ, hand: Hand) -> None:
    jobs = [q.enqueue("add", number, 2) for number in range(3)]
    for job in jobs:
        hand.fail(job)
    assert [info.id for info in q.jobs("failed")] == [job.id for job in reversed(jobs)]
    jobs[0].retry()
    assert jobs[0].state() == JobState.QUEUED
    info = jobs[0].info(arguments=True)
    assert (info.attempts, len(info.history)) == (1, 1)
    assert info.arguments is not None
    assert info.arguments.args == [0, 2]
    with pytest.raises(JobStateError, match="queued"):
        jobs[0].retry()
    assert q.retry_failed(task="other") == 0
    assert q.retry_failed() == 2
    assert q.jobs("failed") == []
    assert len(q.jobs("queued")) == 3


def test_purge(q: TaskQ, hand: Hand) -> None:
    jobs = [q.enqueue("add", number, 2) for number in range(4)]
    hand.fail(jobs[0])
    hand.succeed(jobs[1])
    hand.run(jobs[2])
    jobs[0].purge()
    with pytest.raises(JobNotFound):
        jobs[0].info()
    assert q.purge("succeeded", older_than=3_600) == 0
    assert q.purge("succeeded") == 1
    assert q.purge("queued", task="other") == 0
    assert q.purge("queued") == 1
    assert hand.execute("SELECT id FROM taskq.jobs") == [(UUID(jobs[2].id),)]
    errors: list[Exception] = []

    def purge() -> None:
        try:
            jobs[2].purge()
        except JobStateError as error:
            errors.append(error)

    purger = threading.Thread(target=purge)
    purger.start()
    eventually(lambda: hand.execute("SELECT cancel FROM taskq.queue") == [(1,)])
    hand.execute("UPDATE taskq.queue SET cancel = 0")
    purger.join()
    assert len(errors) == 1


def test_lists_and_searches(q: TaskQ, hand: Hand) -> None:
    add, mul = q.tasks["add"], q.task(name="mul", queue="slow")(lambda a: a)
    jobs = [add.enqueue(number, 1) for number in range(5)] + [mul.options(meta={"cat": "tom"}).enqueue(1)]
    hand.fail(jobs[1])
    hand.succeed(jobs[2])
    hand.run(jobs[3])

    def ids(*arguments: Any, **conditions: Any) -> list[int]:
        return [[job.id for job in jobs].index(info.id) for info in q.jobs(*arguments, **conditions)]

    assert ids() == [5, 4, 3, 2, 1, 0]
    assert ids(limit=2, before=jobs[4]) == [3, 2]
    assert ids("queued") == [5, 4, 0]
    assert ids("queued", before=jobs[5]) == [4, 0]
    assert ids("running") == [3]
    assert ids("failed") == [1]
    assert ids("succeeded") == [2]
    assert ids(task="mul") == ids(queue="slow") == ids(text="tom") == [5]
    assert ids(text="no such cat") == [1]
    assert ids(attempts=1) == [2, 1]


def test_pause_and_status(q: TaskQ, hand: Hand) -> None:
    job = q.enqueue("add", 1, 2)
    assert q.pause("default", "mail") == ["default", "mail"]
    assert q.pause("default") == []
    assert [reason.kind for reason in job.why().reasons] == ["no_fleet", "paused"]
    status = q.status()
    assert status.broker.state == "stopped"
    assert status.paused == ["default", "mail"]
    assert status.queues["default"].queued == 1
    assert q.resume("mail", "default") == ["default", "mail"]


def test_schedules(q: TaskQ, hand: Hand) -> None:
    """Added, paused, run and removed while no fleet runs; and in a transaction of the application."""
    added = q.schedules.add("often", "add", every=60, args=(1, 2))
    assert added.next_at is not None
    assert q.schedules.pause("often").next_at is None
    job = q.schedules.run("often")
    arguments = job.info(arguments=True).arguments
    assert arguments is not None
    assert tuple(arguments.args) == (1, 2)
    [info] = q.schedules.list()
    assert (info.name, info.is_paused, info.last_job_id) == ("often", True, job.id)
    assert not q.schedules.resume("often").is_paused
    q.schedules.remove("often")
    with pytest.raises(ScheduleNotFound, match="there are: none at all"):
        q.schedules.run("often")

    async def program() -> list[str]:
        await q.schedules.aadd("later", "add", "0 3 * * *", args=(1, 2))
        return [info.name for info in await q.schedules.alist()]

    assert asyncio.run(program()) == ["later"]


def test_unique_jobs(q: TaskQ, hand: Hand) -> None:
    """One of each key, as long as the one before counts."""
    add = q.tasks["add"].options(unique=True)
    first, same, other = add.enqueue(1, 2), add.enqueue(1, 2), add.enqueue(1, 3)
    assert (same.id, same.is_duplicate, other.is_duplicate) == (first.id, True, False)
    assert hand.execute("SELECT count(*) FROM taskq.queue") == [(2,)]
    hand.lease(first)
    assert add.enqueue(1, 2).id == first.id
    hand.succeed(first)
    again = add.enqueue(1, 2)
    assert not again.is_duplicate
    jobs = add.enqueue_many([(1, 2), (7, 7), (7, 7)])
    assert [job.is_duplicate for job in jobs] == [True, False, True]
    assert jobs[1].id == jobs[2].id


def test_unique_jobs_that_replace_count_until_the_start_or_for_a_time(q: TaskQ, hand: Hand) -> None:
    add = q.tasks["add"]
    replacing = add.options(unique=Unique(by="k", replace=True))
    first = replacing.enqueue(1, 2)
    second = replacing.enqueue(3, 4)
    assert not second.is_duplicate
    with pytest.raises(JobCancelled, match="took its place"):
        first.result(5)
    hand.lease(second)
    assert replacing.enqueue(5, 6).id == second.id, "what a fleet has is not replaced"
    until_start = add.options(unique=Unique(by="s", until="start"))
    started = until_start.enqueue(1, 2)
    hand.lease(started)
    assert not until_start.enqueue(1, 2).is_duplicate
    throttled = add.options(unique=Unique(by="t", period=60))
    done = throttled.enqueue(1, 2)
    hand.succeed(done)
    assert throttled.enqueue(1, 2).id == done.id


def test_many_threads_enqueue_one_unique_job(q: TaskQ, hand: Hand) -> None:
    add = q.tasks["add"].options(unique=True)
    ids: list[str] = []

    def enqueue() -> None:
        for number in range(10):
            ids.append(add.enqueue(number, 0).id)
            ids.extend(job.id for job in add.enqueue_many([(number + 1, 0), (number, 0)]))

    threads = [threading.Thread(target=enqueue) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 11
    assert hand.execute("SELECT count(*) FROM taskq.queue") == [(11,)]


def test_a_queue_that_takes_no_more(q: TaskQ, hand: Hand) -> None:
    add = q.tasks["add"].options(max_queued=3)
    jobs = [add.enqueue(number, 0) for number in range(3)]
    with pytest.raises(QueueFull, match="3 jobs wait in the queue 'default'"):
        add.enqueue(3, 0)
    waiter = threading.Thread(target=lambda: jobs.append(add.options(when_full="wait").enqueue(3, 0)))
    waiter.start()
    hand.lease(jobs[0])
    waiter.join()
    assert hand.execute("SELECT count(*) FROM taskq.queue") == [(4,)]
    with pytest.raises(QueueFull, match="3 jobs wait"):
        chain(add.step(1, 1), q.tasks["add"].step(1)).enqueue()
    assert hand.execute("SELECT count(*) FROM taskq.jobs") == [(4,)]
    assert q.status().queues["default"].queued == 4


def test_a_workflow_comes_in_as_a_whole(q: TaskQ, hand: Hand) -> None:
    """With an open edge for each job before another: brokers close them, also those of jobs that have ended already."""
    hand.execute(f'LISTEN "{SCHEMA}"')
    add = q.tasks["add"]
    first = add.enqueue(0, 0)
    flow = chain(group(add.step(1, 2), add.step(3, 4)), add.step(5)).enqueue()
    jobs = flow.all_jobs
    sql = "SELECT state, pending FROM taskq.queue JOIN taskq.jobs USING (id) ORDER BY id"
    rows = [(row[0], row[1]) for row in hand.execute(sql.replace("state,", "taskq.queue.state,"))]
    assert rows == [(0, 0), (0, 0), (0, 0), (2, 2)]
    last = jobs[-1].info()
    assert last.state == JobState.WAITING
    assert last.after == [jobs[0].id, jobs[1].id]
    assert jobs[0].info().before == [last.id]
    late = add.options(after=[first]).enqueue(1, 1)
    assert hand.execute("SELECT parent, goes_on, is_open FROM taskq.edges WHERE child = %s", UUID(late.id)) == [
        (UUID(first.id), False, True)
    ]
    assert "f" in (told.payload.split()[0] for told in hand.connection.notifies(timeout=30))
    with pytest.raises(EnqueueError, match="there is no job 0000.* to come after"):
        add.options(after=[q.job("00" * 16)]).enqueue(1, 1)
    assert late.cancel()
    assert "h" in (told.payload.split()[0] for told in hand.connection.notifies(timeout=30))


# -- a database that is not there


def test_a_server_that_comes_back(q: TaskQ, hand: Hand) -> None:
    """Connections that were lost are replaced; who waits goes on to wait."""
    job = q.enqueue("add", 1, 2)
    results: list[Any] = []
    waiter = threading.Thread(target=lambda: results.append(job.result(60)))
    waiter.start()
    eventually(lambda: watched(hand))
    hand.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    q.enqueue("add", 3, 4)
    hand.succeed(job, 3)
    waiter.join()
    assert results == [3]


def test_errors_that_say_what_to_do(url: str) -> None:
    """None of them shows the password."""
    with pytest.raises(BrokerUnavailable, match=r"no tables of taskq in the schema 'taskq_shop'.*taskq migrate"):
        TaskQ("shop", url).enqueue("add", 1, 2)
    head, _, rest = url.partition("postgres@")
    with pytest.raises(BrokerUnavailable, match="role .*nobody.* does not exist"):
        TaskQ("shop", f"{head}nobody:secret@{rest}").enqueue("add", 1, 2)
    with pytest.raises(BrokerUnavailable, match="refused") as refused:
        TaskQ("shop", "postgresql://ann:secret@127.0.0.1:1/db", reply_timeout=0.2).enqueue("add", 1, 2)
    assert "secret" not in str(refused.value)


def test_a_forked_child_has_connections_of_its_own(q: TaskQ, hand: Hand) -> None:
    q.enqueue("add", 1, 2)
    pid = os.fork()
    if not pid:
        try:
            q.enqueue("add", 3, 4)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    q.enqueue("add", 5, 6)
    assert hand.execute("SELECT count(*) FROM taskq.queue") == [(3,)]
