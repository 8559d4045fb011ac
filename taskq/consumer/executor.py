"""What runs the jobs of a consumer: the main thread, threads, or an event loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from taskq.client.context import RunningJob

if TYPE_CHECKING:
    from taskq.consumer.loop import Consumer

JobT = TypeVar("JobT", bound=RunningJob)


class Executor(ABC, Generic[JobT]):
    """Runs jobs, each in a slot of its own."""

    @abstractmethod
    def start(self, job: JobT) -> None:
        """Runs a job, now or in a moment, and tells the consumer what became of it (`note`, `finish`)."""


class MainExecutor(Executor[JobT]):
    """The executor that has the main thread, where batches arrive and signals are handled."""

    @abstractmethod
    def new_job(self, number: int, started_at: float, *sent: Any) -> JobT:
        """Makes the object of a job that is claimed, of the kind that this executor can interrupt."""

    @abstractmethod
    def run(self, consumer: Consumer) -> None:
        """Takes batches and runs their jobs until no more will come and the last job has ended."""

    @abstractmethod
    def stop(self) -> None:
        """Called by a signal handler: the consumer is to end."""

    @abstractmethod
    def interrupt_overdue(self) -> None:
        """Called by a signal handler: a job is to end, for its time or because it was cancelled."""
