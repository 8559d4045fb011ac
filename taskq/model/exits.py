"""The exit codes of the command line. docs/settings.md has them as a table, which is made from this file."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Why a command ended."""

    OK = 0  #: done
    FAILED = 1  #: any other error
    USAGE = 2  #: wrong command line
    APP = 3  #: the application cannot be imported, or is not a TaskQ
    NO_FLEET = 4  #: no fleet answers
    ALREADY_RUNNING = 5  #: another fleet owns the directory
    DIRECTORY = 6  #: the directory cannot be used
    JOURNAL = 7  #: the journal cannot be trusted or written
    JOB_FAILED = 8  #: `enqueue --wait`: the job failed or was cancelled
    TIMEOUT = 9  #: `--timeout` is over
    UNSTABLE = 10  #: the broker died again and again, and was given up
    NOT_FOUND = 11  #: no such job, task or schedule


#: A consumer ends with this when a job has closed descriptors of it: no other code of ours, and seldom one of a job.
LOST_DESCRIPTORS = 117

#: With these a broker is not started again: it would end the same way.
FINAL_EXITS = frozenset({Exit.OK, Exit.USAGE, Exit.APP, Exit.ALREADY_RUNNING, Exit.DIRECTORY, Exit.JOURNAL})
