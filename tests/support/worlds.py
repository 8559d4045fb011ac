"""A fleet of apps/shown.py in which something of each kind has happened, for whatever shows it to people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from apps import shown
from fleet import APPS, Fleet, Gate, running, use

from taskq import Job


class World(NamedTuple):
    """A fleet in which something of each kind has happened."""

    fleet: Fleet
    jobs: dict[str, Job[Any]]


@contextmanager
def shown_world(folder: Path, enqueue: Callable[[], dict[str, Job[Any]]]) -> Iterator[World]:
    """Runs the fleet; one job of it is held, and one waits for that.

    Args:
        enqueue: enqueues jobs that end soon; one of them kills its consumer.
    """
    gate = Gate(folder / "gate")
    with running(Fleet(folder / "queue", f"{APPS / 'shown.py'}:q", consumers=2)) as fleet:
        fleet.expected |= {"consumer.crashed"}
        use(shown.q, fleet.home)
        fleet.wait_ready()
        jobs = enqueue()
        for job in jobs.values():
            assert job.wait(20)
        jobs["running"] = shown.hold.enqueue(gate.path)
        fleet.wait_for("job.started", task="hold")
        jobs["limited"] = shown.hold.enqueue(gate.path)
        jobs["later"] = shown.thumbnail.options(delay=3600).enqueue("later.jpg")
        shown.q.pause("quiet")
        jobs["quiet"] = shown.thumbnail.options(queue="quiet").enqueue("quiet.jpg")
        yield World(fleet, jobs)
        gate.open()
