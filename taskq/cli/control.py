"""`taskq stop` and `taskq reload`, which control a running fleet."""

from __future__ import annotations

import time
from math import inf
from typing import Annotated

import typer

from taskq.cli.arguments import FleetArgument
from taskq.cli.common import find_place, queue_of, seconds_of, tell
from taskq.client.transport.blocking import Client
from taskq.model.errors import AppError, BrokerUnavailable, ResultTimeout
from taskq.model.info.status import ConsumerStatus, FleetStatus
from taskq.model.info.words import count_of
from taskq.system.directory import Directory
from taskq.system.locks import is_held, note_of_holder
from taskq.system.place import Place
from taskq.telemetry.reader import Filter, ago, read

_POLL_S = 0.05
_END_POLL_S = 0.01


def stop(
    app: FleetArgument = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="How long to wait; the fleet goes on stopping after that.", show_default="no limit"
        ),
    ] = None,
) -> None:
    """Stop the fleet, and wait until it has stopped.

    Running jobs may finish, within the --stop-timeout of the worker.
    Call it twice to end them now: they run again when a fleet starts.

    $ taskq stop app.py:q --timeout 1m
    """
    timeout_s = None if timeout is None else seconds_of(timeout, "--timeout")
    place = find_place(app)
    client = _fleet_of(place)
    directory = client.directory
    began = time.monotonic()
    status = client.status()
    note = note_of_holder(directory.lock)
    client.stop()
    client.close()
    running = _running(status)
    if running:
        tell(f"waiting for {count_of(running, 'running job')}; a second `taskq stop` ends {_them(running)} now")
    if not _wait_for_end(directory, note, timeout_s):
        raise ResultTimeout(
            f"the fleet on {directory.path} still has running jobs after {timeout_s:g} s; it goes on stopping"
        )
    elapsed_s = time.monotonic() - began
    left = _left(directory, elapsed_s) if place.database is None else _left_for_others(app)
    print(f"stopped in {elapsed_s:.2f} s{left}")


def reload(app: FleetArgument = None) -> None:
    """Load new code: replace the consumers one by one.

    No job is interrupted, and new jobs are accepted all the time.
    The command returns when the first consumer runs the new code. If that does
    not start, the old consumers stay.

    $ taskq reload app.py:q
    """
    client = _fleet_of(find_place(app))
    number = client.reload()
    status = _wait_for_new_code(client, number)
    numbers = {consumer.number for consumer in status.consumers}
    new = {consumer.number for consumer in status.consumers if _is_new(consumer)}
    others = "; the others follow, one by one: taskq status" if new != numbers else ""
    print(f"the new code runs in {len(new)} of {count_of(len(numbers), 'consumer')}{others}")


def _fleet_of(place: Place) -> Client:
    """A client of the fleet on this machine.

    Raises:
        BrokerUnavailable: the queue is in a database, and none of its fleets runs here.
    """
    client = Client(place.directory)
    if place.database is not None:
        try:
            client.status()
        except BrokerUnavailable as error:
            raise BrokerUnavailable(
                f"no fleet of {place.shown} runs here: ask on the machine where one does, with the XDG_STATE_HOME of "
                f"its worker; `taskq status` lists all machines (nobody listens in {place.directory.path})"
            ) from error
    return client


def _wait_for_new_code(client: Client, number: int) -> FleetStatus:
    """Waits until a reload has brought up a consumer. Returns the status then. Raises as `_is_new_code_up`."""
    try:
        while not _is_new_code_up(status := client.status(), number):
            time.sleep(_POLL_S)
    except BrokerUnavailable as error:
        raise BrokerUnavailable(f"the reload has begun, but its outcome is not known: {error}") from error
    return status


def _is_new_code_up(status: FleetStatus, number: int) -> bool:
    """Whether a consumer of a reload has come up.

    Raises:
        AppError: none will come up.
        BrokerUnavailable: the fleet has ended in the meantime.
    """
    if status.reload.number < number:
        raise BrokerUnavailable("the broker that was asked to reload has died; the next one starts with the new code")
    if status.broker.state == "stopping":
        raise BrokerUnavailable("the fleet is stopping; the next one starts with the new code")
    if any(map(_is_new, status.consumers)):
        return True
    if status.reload.state == "failed":
        why = status.reload.error
        raise AppError(f"the new code does not start, so the consumers that run the old code stay: {why}")
    return False


def _is_new(consumer: ConsumerStatus) -> bool:
    return consumer.state != "starting" and not consumer.has_old_code


def _running(status: FleetStatus) -> int:
    return sum(1 for consumer in status.consumers if consumer.job_id is not None)


def _them(count: int) -> str:
    return "it" if count == 1 else "them"


def _wait_for_end(directory: Directory, note: bytes, timeout_s: float | None) -> bool:
    """Waits for the broker to end: then its lock is free, and another fleet can start."""
    deadline = inf if timeout_s is None else time.monotonic() + timeout_s
    while is_held(directory.lock, note):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_END_POLL_S)
    return True


def _left(directory: Directory, elapsed_s: float) -> str:
    """What the broker logged when it ended."""
    said = list(read(directory.path, Filter(event="fleet.stopped", since=ago(elapsed_s + 1)), last=1))
    if not said:
        return ""  # it logs warnings only
    queued, scheduled, waiting = (said[0].get(state, 0) for state in ("queued", "scheduled", "waiting"))
    return _told(queued, scheduled, waiting, "for the next fleet")


def _left_for_others(app: str | None) -> str:
    """What is in the database now, which the fleets of other machines go on with."""
    queues = queue_of(app).client.look().queues.values()
    counts = ((queue.queued, queue.scheduled, queue.waiting) for queue in queues)
    queued, scheduled, waiting = map(sum, zip((0, 0, 0), *counts, strict=True))
    return _told(queued, scheduled, waiting, "in the database")


def _told(queued: int, scheduled: int, waiting: int, where: str) -> str:
    count = queued + scheduled + waiting
    if not count:
        return "; no pending jobs"
    reasons = [f"{number} {state}" for number, state in ((scheduled, "scheduled"), (waiting, "waiting")) if number]
    why = f" ({', '.join(reasons)})" if reasons else ""
    return f"; {count_of(count, 'job')} {'stays' if count == 1 else 'stay'} {where}{why}"
