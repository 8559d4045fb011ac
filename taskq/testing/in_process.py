"""Puts a fleet in this process in the place of an application's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from taskq.client.app import TaskQ
from taskq.client.context import use_channel
from taskq.client.reports import Reporter
from taskq.model.job import Progress
from taskq.model.settings import Settings
from taskq.testing.client import InProcessAsyncClient, InProcessClient
from taskq.testing.clock import Clock
from taskq.testing.fleet import InProcessFleet

_fleets: list[InProcessFleet] = []  # those of this process, one inside another; all have the same clock


class _Channel:
    """How the jobs of the in-process fleets speak to their fleets, as `taskq.client.context.Channel` says."""

    def __init__(self) -> None:
        self.reporter = cast(Reporter, self)

    def send_checkpoint(self, job_id: bytes, checkpoint: bytes) -> None:
        """Hands a checkpoint to the fleet that has the job."""
        for fleet in _fleets:
            fleet.keep_checkpoint(job_id, checkpoint)

    def tell(self, job_id: bytes, progress: Progress) -> None:
        """As `taskq.client.reports.Reporter`, but at once."""
        for fleet in _fleets:
            fleet.note_progress(job_id, (progress.done, progress.total, progress.note))

    def forget(self, _job_id: bytes) -> None:
        """The fleet forgets it when the job has ended."""


@contextmanager
def in_process(app: TaskQ, settings: Settings) -> Iterator[InProcessClient]:
    """Puts a fleet in this process in the place of an application's own while the block runs. One inside another
    shares its clock. Gives the fleet's client."""
    clock = _fleets[-1].clock if _fleets else Clock()
    fleet = InProcessFleet(app, settings, clock)
    client = InProcessClient(fleet)
    clock.fleets.append(fleet)
    _fleets.append(fleet)
    channel = use_channel(_Channel())
    try:
        with app.use_client(client, InProcessAsyncClient(client), clock):
            yield client
    finally:
        use_channel(channel)
        _fleets.remove(fleet)
        clock.fleets.remove(fleet)
        fleet.close()
