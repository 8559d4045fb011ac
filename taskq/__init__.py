"""taskq: a task queue with no server to install."""

TYPE_CHECKING = False  # type checkers take it for typing's, which takes 10 ms to import
if TYPE_CHECKING:
    from typing import Any

    from taskq.app import Job, Task, TaskQ
    from taskq.config import Settings
    from taskq.context import CurrentJob, current_job
    from taskq.errors import (
        AlreadyRunning,
        AppError,
        BrokerUnavailable,
        Cancel,
        ConfigError,
        CpuTimeout,
        DirectoryError,
        EnqueueError,
        JobCancelled,
        JobFailed,
        JobNotFound,
        JobTimeout,
        JournalError,
        PayloadError,
        PayloadTooLarge,
        ProtocolError,
        QueueFull,
        ResultTimeout,
        Retry,
        Snooze,
        StoreFull,
        TaskQError,
    )
    from taskq.model import JobError, JobInfo, JobState, Progress

__all__ = [
    # the application, its tasks and jobs
    "CurrentJob",
    "Job",
    "JobError",
    "JobInfo",
    "JobState",
    "Progress",
    "Settings",
    "Task",
    "TaskQ",
    "current_job",
    # what a job raises to say what is to become of it
    "Cancel",
    "Retry",
    "Snooze",
    # errors, as drawn in taskq.errors
    "AlreadyRunning",
    "AppError",
    "BrokerUnavailable",
    "ConfigError",
    "CpuTimeout",
    "DirectoryError",
    "EnqueueError",
    "JobCancelled",
    "JobFailed",
    "JobNotFound",
    "JobTimeout",
    "JournalError",
    "PayloadError",
    "PayloadTooLarge",
    "ProtocolError",
    "QueueFull",
    "ResultTimeout",
    "StoreFull",
    "TaskQError",
]

__version__ = "0.1.0"

_HOMES = ("taskq.app", "taskq.config", "taskq.context", "taskq.errors", "taskq.model")


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
