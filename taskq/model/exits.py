"""The exit codes of the command line. A table in the README repeats them."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Why a command ended."""

    OK = 0
    FAILED = 1  #: something that is none of the others
    USAGE = 2  #: the command line makes no sense (typer)
    APP = 3  #: the application cannot be imported, or is not a TaskQ
    NO_FLEET = 4  #: no fleet answers
    ALREADY_RUNNING = 5  #: another fleet has the directory
    DIRECTORY = 6  #: the directory cannot be used
    JOURNAL = 7  #: the journal cannot be trusted or written
    JOB_FAILED = 8  #: `enqueue --wait`: the job failed or was cancelled
    TIMEOUT = 9  #: `--timeout` was over
    UNSTABLE = 10  #: the broker died again and again, and was given up
    NOT_FOUND = 11  #: no job with this id, no task with this name


#: A consumer ends with this when a job has closed descriptors of it: no other code of ours, and seldom one of a job.
LOST_DESCRIPTORS = 117

#: With these a broker is not started again: it would end the same way.
FINAL_EXITS = frozenset({Exit.OK, Exit.USAGE, Exit.APP, Exit.ALREADY_RUNNING, Exit.DIRECTORY, Exit.JOURNAL})
