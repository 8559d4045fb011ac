"""The asyncio client: the behaviour of `taskq.client.transport.blocking`, without a thread and without blocking the
loop.

One connection per event loop and directory carries the calls of all tasks: an answer finds its request by the
number, an ending finds its waiters by the id of the job. Only callbacks of the loop drive it, so a loop that
ends leaves no task and no transport to close: the client goes with the loop, the socket with the client.
"""

from __future__ import annotations

import asyncio
import os
import socket
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from taskq.client.transport.blocking import Client, reconnect_pauses
from taskq.client.transport.connection import CANCEL_AGAIN_S, SHORTEST_WAIT_S, check_broker
from taskq.client.transport.items import late
from taskq.model.errors import BehindSpool, DirectoryError, JobNotFound, ResultTimeout, TaskQError
from taskq.model.info.job import JobInfo
from taskq.model.info.status import FleetStatus
from taskq.model.job import JobState
from taskq.model.spec import Spec
from taskq.protocol import frames
from taskq.protocol.answers import BrokerSilent, ConnectionLost, value_of
from taskq.protocol.endings import Ending, ending_of, watch_frames
from taskq.protocol.frames import Message
from taskq.protocol.items import read_items_answer
from taskq.protocol.jobs import info_of
from taskq.protocol.ops import Op
from taskq.protocol.status import status_of
from taskq.protocol.submissions import Call, Flow, chunks, flow_frame, ids_of, submit_frame
from taskq.system.directory import Directory

_READ_BYTES = 256 * 1024
#: While more than this is not sent yet, new requests wait.
_HIGH_WATER_BYTES = 1024 * 1024

_Clients = dict[tuple[int, Path, float | None], "AsyncClient"]
_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Clients] = weakref.WeakKeyDictionary()


def async_client(directory: Directory, reply_timeout: float | None = None) -> AsyncClient:
    """The client of the running event loop for a queue's directory.

    Args:
        reply_timeout: seconds; see `taskq.system.directory.reply_timeout_s`.

    Raises:
        RuntimeError: no event loop runs.
    """
    loop = asyncio.get_running_loop()
    key = os.getpid(), directory.path, reply_timeout  # what was connected before a fork belongs to the parent
    client = _clients.get(loop, {}).get(key)
    if client is None:
        _drop_closed_loops()
        client = _clients.setdefault(loop, {})[key] = AsyncClient(directory, reply_timeout)
    return client


def _drop_closed_loops() -> None:
    """Frees the clients of loops that were closed under waiting tasks, whose futures keep the loop alive."""
    for reference in _clients.keyrefs():  # a copy: other threads add theirs
        loop = reference()
        if loop is not None and loop.is_closed():
            _clients.pop(loop, None)


class AsyncClient:
    """The calls of all tasks of one event loop to one queue's directory. Get it from `async_client`."""

    # Between calls nothing here refers to the loop, which could not go before its client otherwise.

    def __init__(self, directory: Directory, reply_timeout: float | None = None) -> None:
        self._blocking = Client(directory, reply_timeout)  # for what is done in a thread while no broker answers
        self.absence = self._blocking.absence
        self._path = directory.socket_path()
        self._connection: _Connection | None = None
        self._waiting: dict[bytes, set[asyncio.Future[Message]]] = {}
        self._pauses: Iterator[float] | None = None  # of the present outage
        self._is_retrying = False  # a timer of the loop will connect
        self._is_looking = False  # a timer of the loop will look whether the broker answers

    # -- jobs

    async def pause(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)

    async def submit(self, spec: Spec, calls: Iterable[Call]) -> list[bytes]:
        """Submits jobs; each is durable when this returns. With no broker there, they go to the spool.

        Returns:
            The ids, as `Client.submit`.

        Raises:
            EnqueueError: they were not accepted.
            BrokerUnavailable: neither a broker nor the spool takes them.
        """
        ids: list[bytes] = []
        for chunk in chunks(calls):
            ids += await self._submit_chunk(spec, chunk)
        return ids

    async def _submit_chunk(self, spec: Spec, chunk: Sequence[Call]) -> list[bytes]:
        def frame(number: int, resend: bool) -> bytes:
            return submit_frame(number, spec, chunk, resend=resend, watch=False)

        try:
            return ids_of(chunk, await self._request(frame))
        except (ConnectionLost, BehindSpool) as error:
            await asyncio.to_thread(self._blocking.spool, spec, chunk)
            self._warn_unless_behind(error)
            return [call.id for call in chunk]

    async def submit_flow(self, flow: Flow) -> None:
        """Submits jobs of several kinds together; raises as `Client.submit_flow`."""

        def frame(number: int, resend: bool) -> bytes:
            return flow_frame([Op.SUBMIT_FLOW, number, resend, False], flow)

        try:
            await self._request(frame)
        except (ConnectionLost, BehindSpool) as error:
            await asyncio.to_thread(self._blocking.spool_flow, flow)
            self._warn_unless_behind(error)

    def _warn_unless_behind(self, error: TaskQError) -> None:
        if isinstance(error, ConnectionLost):
            self.absence.warn_of_spool()

    async def wait(self, job_id: bytes, timeout_s: float | None) -> Ending:
        """Waits for the end of a job, also across restarts of the broker.

        Raises:
            ResultTimeout: it did not end in time.
            JobNotFound: the broker does not know the job.
        """
        future = self.watch(job_id)
        try:
            async with asyncio.timeout(None if timeout_s is None else max(SHORTEST_WAIT_S, timeout_s)):
                await future
        except TimeoutError:
            if future.cancelled():  # else the ending came in the same turn of the loop
                text = f"job {job_id.hex()} has not ended within {timeout_s:g} s; it goes on"
                raise ResultTimeout(text) from None
        finally:
            self.forget(job_id, future)
        _, ending = ending_of(future.result())
        if ending is None:
            raise JobNotFound.of(job_id)
        return ending

    @contextmanager
    def watching(self, ids: Iterable[bytes]) -> Iterator[AsyncEndings]:
        """Opens a stream of the endings of jobs."""
        endings = AsyncEndings(self, ids)
        try:
            yield endings
        finally:
            endings.close()

    async def items(
        self, job_id: bytes, start: int, timeout_s: float | None, on_end: Callable[[Ending], object]
    ) -> AsyncGenerator[bytes, None]:
        """As `taskq.client.transport.items.read_items`; how the job ended is told to a function, for this cannot
        return it."""
        while True:
            try:
                async with asyncio.timeout(None if timeout_s is None else max(SHORTEST_WAIT_S, timeout_s)):
                    items, ending = read_items_answer(await self._ask_for_items(job_id, start))
            except TimeoutError:
                raise late(job_id, start, timeout_s) from None
            for item in items:
                yield item
            start += len(items)
            if ending is not None:
                on_end(ending)
                return

    async def _ask_for_items(self, job_id: bytes, start: int) -> Any:
        pauses = reconnect_pauses(self._blocking)
        while True:
            try:
                return await self._connected().request(
                    lambda number: frames.frame([Op.READ_ITEMS, number, job_id, start]), may_take_long=True
                )
            except ConnectionLost:
                await asyncio.sleep(next(pauses))

    async def info(self, job_id: bytes) -> JobInfo:
        """All that is known of a job; raises as `Client.info`."""
        try:
            fields = await self._request(lambda number, _: frames.frame([Op.INFO, number, job_id]))
        except ConnectionLost:
            return await asyncio.to_thread(self._blocking.info, job_id)  # tries again, or says what to do
        return info_of(fields)

    async def is_spooled(self, job_id: bytes) -> bool:
        """Whether a job waits in the spool."""
        return await asyncio.to_thread(self._blocking.is_spooled, job_id)

    async def cancel(self, job_id: bytes, also_running: bool) -> bool:
        """Cancels a job; if it runs, waits for its end. Returns whether it is cancelled now."""
        while True:
            try:
                is_cancelled = await self._request(
                    lambda number, _: frames.frame([Op.CANCEL, number, job_id, also_running])
                )
            except ConnectionLost:
                return await asyncio.to_thread(self._blocking.cancel, job_id, also_running)
            if is_cancelled is not None:
                return bool(is_cancelled)
            try:
                return (await self.wait(job_id, CANCEL_AGAIN_S)).state == JobState.CANCELLED
            except ResultTimeout:
                pass  # a new broker has run it again, and does not know that it is not wanted

    async def retry(self, job_id: bytes) -> None:
        """Queues a failed job again. Raises as `Job.retry`."""
        try:
            await self._request(lambda number, _: frames.frame([Op.RETRY, number, job_id]))
        except ConnectionLost:
            await asyncio.to_thread(self._blocking.retry, job_id)

    async def purge(self, job_id: bytes) -> None:
        """Removes a job. Raises as `Job.purge`."""
        try:
            await self._request(lambda number, _: frames.frame([Op.PURGE, number, job_id]))
        except ConnectionLost:
            await asyncio.to_thread(self._blocking.purge, job_id)

    async def jobs(
        self, state: JobState | None, task: str | None, queue: str | None, before: bytes | None, limit: int | None
    ) -> list[JobInfo]:
        """As `Client.jobs`. Like its neighbours it may take many requests, so it has a thread."""
        return await asyncio.to_thread(self._blocking.jobs, state, task, queue, before, limit)

    async def retry_all(self, task: str | None, queue: str | None) -> int:
        """As `Client.retry_all`."""
        return await asyncio.to_thread(self._blocking.retry_all, task, queue)

    async def purge_all(self, state: JobState, task: str | None, queue: str | None, before: float | None) -> int:
        """As `Client.purge_all`."""
        return await asyncio.to_thread(self._blocking.purge_all, state, task, queue, before)

    async def pause_queues(self, queues: Sequence[str], is_paused: bool, by: str) -> list[str]:
        """As `Client.pause`; `pause` waits here."""
        return await asyncio.to_thread(self._blocking.pause, queues, is_paused, by)

    async def status(self) -> FleetStatus:
        """As `Client.look`."""
        try:
            return status_of(await self._request(lambda number, _: frames.frame([Op.STATUS, number])))
        except ConnectionLost:
            return await asyncio.to_thread(self._blocking.look)

    async def ask(self, op: Op, *fields: Any) -> Any:
        """A request that may be repeated; raises as `Client.ask`."""
        try:
            return await self._request(lambda number, _: frames.frame([op, number, *fields]))
        except ConnectionLost:
            return await asyncio.to_thread(self._blocking.ask, op, *fields)

    async def _request(self, frame: Callable[[int, bool], bytes]) -> Any:
        """Sends `frame(number, resend)`, and again on a new connection if the first was lost meanwhile.

        Raises:
            ConnectionLost: no broker answers.
        """
        try:
            return await self._connected().request(lambda number: frame(number, False))
        except ConnectionLost:
            return await self._connected().request(lambda number: frame(number, True))

    # -- who waits for what

    def watch(self, job_id: bytes) -> asyncio.Future[Message]:
        """Has the RESULT frame of a job put into a future, to be given to `forget` in the end."""
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        is_watched = job_id in self._waiting
        self._waiting.setdefault(job_id, set()).add(future)
        if self._connection is None and not self._is_retrying:
            self._connect_again()  # and watch it there
        elif self._connection is not None and not is_watched:
            self._connection.watch([job_id])
        if not self._is_looking:
            self._look_later()
        return future

    def _look_later(self) -> None:
        self._is_looking = True
        asyncio.get_running_loop().call_later(self.absence.reply_timeout_s, _look, weakref.ref(self))

    def look(self) -> None:
        """Somebody has been waiting for a while: does the broker still answer?"""
        self._is_looking = False
        if self._waiting:
            if self._connection is not None:
                self.absence.look_while_waiting()
            self._look_later()

    def forget(self, job_id: bytes, future: asyncio.Future[Message]) -> None:
        """Nobody waits any more for what `watch` returned."""
        futures = self._waiting.get(job_id, set())
        futures.discard(future)
        if not futures:
            self._waiting.pop(job_id, None)

    def on_ending(self, message: Message) -> None:
        """Wakes those who wait for a job; each looks into the message itself, so an error in it is theirs."""
        for future in self._waiting.pop(message[0][1], ()):
            if not future.done():
                future.set_result(message)

    # -- the connection

    def _connected(self) -> _Connection:
        """The connection, on which all waiting jobs are watched.

        Raises:
            BrokerSilent: one is there that has not answered for a while.
            ConnectionLost: no broker listens.
        """
        if self._connection is None:
            if self.absence.is_silent:
                raise BrokerSilent(self.absence.describe())
            self._connection = _Connection(self._path, weakref.proxy(self))  # no cycle: it closes at once
            self._connection.watch(self._waiting)
        return self._connection

    def on_lost(self, connection: _Connection, error: TaskQError) -> None:
        """Looks for the next broker if somebody waits; but what a broker told us would only come again."""
        self._connection = None
        if connection.is_greeted:
            self._pauses = None
        if not isinstance(error, ConnectionLost):
            for futures in self._waiting.values():
                _fail(futures, error)
        elif self._waiting and not self._is_retrying:
            self._connect_later()

    def _connect_again(self) -> None:
        self._is_retrying = False
        if not self._waiting:
            self._pauses = None  # who waits next begins afresh
            return
        try:
            self._connected()
        except ConnectionLost:
            self._connect_later()

    def _connect_later(self) -> None:
        self._pauses = self._pauses or reconnect_pauses(self._blocking)
        self._is_retrying = True
        asyncio.get_running_loop().call_later(next(self._pauses), self._connect_again)


class AsyncEndings:
    """A stream of the endings of jobs, over the connection of all."""

    def __init__(self, client: AsyncClient, ids: Iterable[bytes]) -> None:
        self._client = client
        self._arrived: deque[asyncio.Future[Message]] = deque()
        self._has_some = asyncio.Event()
        self.waiting = {job_id: client.watch(job_id) for job_id in ids}
        for future in self.waiting.values():
            future.add_done_callback(self._on_arrival)

    def _on_arrival(self, future: asyncio.Future[Message]) -> None:
        self._arrived.append(future)
        self._has_some.set()

    async def next(self, timeout_s: float | None) -> tuple[bytes, Ending | None]:
        """The next job that ended, and how; None for one that the broker does not know.

        Raises:
            ResultTimeout: none ended in time.
        """
        if not self._arrived:
            self._has_some.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._has_some.wait()
            except TimeoutError:
                raise ResultTimeout(f"nothing ended within {timeout_s} s") from None
        job_id, ending = ending_of(self._arrived.popleft().result())
        del self.waiting[job_id]
        return job_id, ending

    def close(self) -> None:
        """Ends the stream."""
        for job_id, future in self.waiting.items():
            future.remove_done_callback(self._on_arrival)
            if future.done():
                future.exception()  # seen, or asyncio complains: the first that was met was raised
            self._client.forget(job_id, future)


class _Connection:
    """One connection to the broker. What tasks send in one turn of the loop goes out together."""

    def __init__(self, path: Path, client: AsyncClient) -> None:
        """Connects, which on a Unix socket succeeds or fails at once. Nobody needs to wait for the greeting.

        Raises:
            ConnectionLost: no broker listens there.
        """
        self.is_greeted = False
        self._client = client
        self._decoder = frames.Decoder()
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._to_watch: list[bytes] = []  # ids to ask for with the next flush
        self._unsent = bytearray()
        self._is_flushing = False  # a callback will send what is unsent
        self._has_room = asyncio.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._close = weakref.finalize(self, self._socket.close)  # when the loop drops us, without a warning
        try:
            self._socket.setblocking(False)
            self._socket.connect(os.fspath(path))
            check_broker(self._socket, path)
        except DirectoryError:
            self._close()
            raise
        except OSError as error:
            self._close()
            raise ConnectionLost(str(error)) from error
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._on_readable)
        # the timer is not kept: what we keep must not lead to the loop
        loop.call_later(client.absence.reply_timeout_s, _check_greeting, weakref.ref(self))
        self._send(frames.hello(os.getpid()))

    # -- out

    async def request(self, frame: Callable[[int], bytes], *, may_take_long: bool = False) -> Any:
        """Sends `frame(number)` and returns the value of its answer.

        Raises:
            ConnectionLost: no answer will come.
        """
        while len(self._unsent) > _HIGH_WATER_BYTES:
            await self._has_room.wait()
        if not self._close.alive:
            raise ConnectionLost("lost while the request waited for its turn")
        number = next(self._numbers)
        self._send(frame(number))
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(None if may_take_long else self._client.absence.reply_timeout_s):
                await answer
        except TimeoutError:
            if answer.cancelled():  # else it came in the same turn of the loop, which was busy with something else
                raise self._silent() from None
        finally:
            del self._answers[number]
        return value_of(answer.result(), number)

    def check_greeting(self) -> None:
        """The broker has had time enough for its first word."""
        if self._close.alive and not self.is_greeted:
            self._silent()

    def _silent(self) -> BrokerSilent:
        """The error for a broker that did not answer in time, which is noted."""
        self._client.absence.begin_silence()
        error = BrokerSilent(self._client.absence.describe())
        self._lose(error)
        return error

    def watch(self, ids: Iterable[bytes]) -> None:
        """Asks for the RESULT frames of jobs. There is no other answer."""
        self._to_watch.extend(ids)
        self._send(b"")

    def _send(self, frame: bytes) -> None:
        self._unsent += frame
        if len(self._unsent) > _HIGH_WATER_BYTES:
            self._has_room.clear()
        if not self._is_flushing:
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if not self._close.alive:
            return
        for frame in watch_frames(self._to_watch):
            self._unsent += frame
        self._to_watch.clear()
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError as error:
            self._lose(ConnectionLost(str(error)))
            return
        self._is_flushing = bool(self._unsent)
        if self._is_flushing:
            asyncio.get_running_loop().add_writer(self._socket, self._flush)
        else:
            asyncio.get_running_loop().remove_writer(self._socket)
        if len(self._unsent) <= _HIGH_WATER_BYTES:
            self._has_room.set()

    # -- in

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise ConnectionLost("the broker closed the connection")
            for message in self._decoder.feed(data):
                self._hear(message)
        except BlockingIOError:
            pass
        except TaskQError as error:  # first: some of ours are OSErrors as well
            self._lose(error)
        except OSError as error:
            self._lose(ConnectionLost(str(error)))
        except BaseException:  # of the handler of a signal: what was read is lost
            self._lose(ConnectionLost("interrupted by a signal"))
            raise

    def _hear(self, message: Message) -> None:
        envelope, _ = message
        match envelope[0]:
            case Op.RESULT:
                self._client.on_ending(message)
            case Op.HELLO:
                frames.check_hello(envelope)
                self.is_greeted = True
            case Op.ERROR if not envelope[1]:  # about the connection, not about a request
                raise frames.error_of(envelope)
            case _:
                answer = self._answers.get(envelope[1])
                if answer is not None and not answer.done():
                    answer.set_result(message)

    def _lose(self, error: TaskQError) -> None:
        if not self._close.alive:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._close()
        self._unsent.clear()
        self._has_room.set()
        _fail(self._answers.values(), error)
        self._client.on_lost(self, error)


def _check_greeting(reference: weakref.ref[_Connection]) -> None:
    connection = reference()
    if connection is not None:
        connection.check_greeting()


def _look(reference: weakref.ref[AsyncClient]) -> None:
    client = reference()
    if client is not None:
        client.look()


def _fail(futures: Iterable[asyncio.Future[Message]], error: TaskQError) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
