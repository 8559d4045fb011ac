"""taskq: a task queue with no server to install."""

from taskq.app import Job, Task, TaskQ
from taskq.config import Settings
from taskq.context import CurrentJob, current_job
from taskq.errors import (
    AlreadyRunning,
    AppError,
    BrokerUnavailable,
    ConfigError,
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
    StoreFull,
    TaskQError,
)
from taskq.model import JobError, JobInfo, JobState

__all__ = [
    # the application, its tasks and jobs
    "CurrentJob",
    "Job",
    "JobError",
    "JobInfo",
    "JobState",
    "Settings",
    "Task",
    "TaskQ",
    "current_job",
    # errors, as drawn in taskq.errors
    "AlreadyRunning",
    "AppError",
    "BrokerUnavailable",
    "ConfigError",
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
