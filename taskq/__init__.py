"""taskq: a task queue with no server to install."""

TYPE_CHECKING = False  # type checkers take it for typing's, which takes 10 ms to import
if TYPE_CHECKING:
    from typing import Any

    from taskq.client.app import TaskQ
    from taskq.client.context import CurrentJob, current_job
    from taskq.client.executors.private import Executor
    from taskq.client.job import Job
    from taskq.client.options.call_options import Unique
    from taskq.client.options.options import JobOptions
    from taskq.client.task import Task
    from taskq.client.waiting import aas_completed, agather, as_completed, await_any, gather, wait_any
    from taskq.client.workflows import GroupHandle, LastJob, Step, chain, chord, group
    from taskq.model.errors import (
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
    from taskq.model.info.job import Attempt, JobInfo
    from taskq.model.info.schedule import ScheduleInfo
    from taskq.model.info.status import FleetStatus
    from taskq.model.info.why import WhyInfo
    from taskq.model.job import JobError, JobState, Progress
    from taskq.model.settings import Settings

__all__ = [
    # the application, its tasks and jobs
    "Attempt",
    "CurrentJob",
    "Executor",
    "FleetStatus",
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
    "WhyInfo",
    "current_job",
    # waiting for many jobs
    "aas_completed",
    "agather",
    "as_completed",
    "await_any",
    "gather",
    "wait_any",
    # what a job raises to say what should happen to it
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
    # errors, as drawn in taskq.model.errors
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

#: Where the public names are; they are searched from the bottom up. A module further down imports fewer others; what is
#: above the application is what most programs do without.
_HOMES = (
    "taskq.client.executors.private",
    "taskq.model.info.status",
    "taskq.model.info.schedule",
    "taskq.model.info.why",
    "taskq.model.info.job",
    "taskq.model.settings",
    "taskq.client.app",
    "taskq.client.task",
    "taskq.client.workflows",
    "taskq.client.waiting",
    "taskq.client.job",
    "taskq.client.options.options",
    "taskq.client.options.call_options",
    "taskq.system.directory",
    "taskq.client.context",
    "taskq.model.errors",
    "taskq.model.job",
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
