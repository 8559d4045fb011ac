"""taskq: a task queue with no server to install."""

TYPE_CHECKING = False  # type checkers take it for typing's, which takes 10 ms to import
if TYPE_CHECKING:
    from typing import Any

    from taskq.app import TaskQ
    from taskq.config import Settings
    from taskq.context import CurrentJob, current_job
    from taskq.errors import (
        AlreadyRunning,
        AppError,
        BadArguments,
        BrokerUnavailable,
        Cancel,
        ConfigError,
        CpuTimeout,
        DirectoryError,
        EnqueueError,
        JobCancelled,
        JobFailed,
        JobNotFound,
        JobStateError,
        JobTimeout,
        JournalError,
        PayloadError,
        PayloadTooLarge,
        ProtocolError,
        QueueFull,
        ResultTimeout,
        Retry,
        ScheduleNotFound,
        Snooze,
        StoreFull,
        TaskQError,
        TooFewDescriptors,
    )
    from taskq.info import Attempt, JobInfo
    from taskq.job import Job
    from taskq.model import JobError, JobState, Progress
    from taskq.options import JobOptions
    from taskq.rules import Unique
    from taskq.schedules import ScheduleInfo
    from taskq.task import Task
    from taskq.waiting import aas_completed, agather, as_completed, await_any, gather, wait_any
    from taskq.workflows import GroupHandle, LastJob, Step, chain, chord, group

__all__ = [
    # the application, its tasks and jobs
    "Attempt",
    "CurrentJob",
    "Job",
    "JobError",
    "JobInfo",
    "JobOptions",
    "JobState",
    "Progress",
    "ScheduleInfo",
    "Settings",
    "Task",
    "TaskQ",
    "Unique",
    "current_job",
    # waiting for many jobs
    "aas_completed",
    "agather",
    "as_completed",
    "await_any",
    "gather",
    "wait_any",
    # what a job raises to say what is to become of it
    "Cancel",
    "Retry",
    "Snooze",
    # workflows
    "GroupHandle",
    "LastJob",
    "Step",
    "chain",
    "chord",
    "group",
    # errors, as drawn in taskq.errors
    "AlreadyRunning",
    "AppError",
    "BadArguments",
    "BrokerUnavailable",
    "ConfigError",
    "CpuTimeout",
    "DirectoryError",
    "EnqueueError",
    "JobCancelled",
    "JobFailed",
    "JobNotFound",
    "JobStateError",
    "JobTimeout",
    "JournalError",
    "PayloadError",
    "PayloadTooLarge",
    "ProtocolError",
    "QueueFull",
    "ResultTimeout",
    "ScheduleNotFound",
    "StoreFull",
    "TaskQError",
    "TooFewDescriptors",
]

__version__ = "0.1.0"

#: Where the public names are, from the top down: a module below knows fewer others.
_HOMES = (
    "taskq.app",
    "taskq.schedules",
    "taskq.task",
    "taskq.workflows",
    "taskq.waiting",
    "taskq.job",
    "taskq.info",
    "taskq.options",
    "taskq.rules",
    "taskq.config",
    "taskq.context",
    "taskq.errors",
    "taskq.model",
)


def __getattr__(name: str) -> "Any":
    """Imports a public name when it is first used: the guardian and the broker need few of them, and start 70 ms
    earlier without the others."""
    from importlib import import_module

    if name in __all__:
        for home in reversed(_HOMES):
            module = import_module(home)
            if name in vars(module):
                globals()[name] = value = vars(module)[name]
                return value
    raise AttributeError(f"module 'taskq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
