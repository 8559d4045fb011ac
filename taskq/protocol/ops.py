"""The operations of the protocol: the number of each message, and what travels with the start of a job."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, TypedDict


class Op(IntEnum):
    """What a frame says. Numbers are never used again; what follows them in an envelope is where each is written and
    read: greetings in `frames`, submissions in `submissions`, endings in `endings`, other requests in `requests`, and
    what consumers tell their broker in `link.reports`."""

    HELLO = 1
    ERROR = 2
    OK = 3

    SUBMIT = 10
    SUBMIT_FLOW = 9
    WATCH = 11
    RESULT = 12
    INFO = 13
    CANCEL = 14
    STATUS = 15
    STOP = 16
    RELOAD = 17
    STACKS = 18
    JOBS = 20
    RETRY = 21
    RETRY_ALL = 22
    PURGE = 23
    PURGE_ALL = 24
    PAUSE = 25
    READ_ITEMS = 26
    COUNTS = 27
    SEARCH = 28
    WHY = 29

    SCHEDULES = 50
    PUT_SCHEDULE = 51
    REMOVE_SCHEDULE = 52
    PAUSE_SCHEDULE = 53
    RUN_SCHEDULE = 54

    BACKUP = 55

    # from a consumer to its broker
    READY = 30
    BOOT_FAILED = 31
    OUTCOMES = 32
    STARTED = 33  # not sent any more
    PROGRESS = 34
    CHECKPOINT = 35
    ITEMS = 36
    DECLARED = 39
    CHILDREN = 41


class StartOptions(TypedDict, total=False):
    """What a consumer gets with a job that it starts, besides its id, task, attempt and arguments: mostly nothing.

    Attributes:
        timeout_s, cpu_timeout_s, memory_limit_bytes: as in `taskq.model.spec.Spec`.
        drop_result: it is True if the value that the function returns is not kept.
        checkpoint: what the attempt before kept for this one (taskq.protocol.codec).
        follows: it is True if the job came after others, whose results may be among its arguments.
        meta: as in `taskq.model.constraints.Constraints`.
    """

    timeout_s: float
    cpu_timeout_s: float
    memory_limit_bytes: int
    drop_result: bool
    checkpoint: bytes
    follows: bool
    meta: dict[str, str]


NO_START_OPTIONS: Final[StartOptions] = {}

#: What changes nothing.
LOOKS = frozenset({Op.INFO, Op.JOBS, Op.SEARCH, Op.STATUS, Op.COUNTS, Op.SCHEDULES, Op.WHY})
#: What can be asked of a stopped fleet.
OPS = LOOKS | {
    Op.RETRY,
    Op.RETRY_ALL,
    Op.CANCEL,
    Op.PURGE,
    Op.PURGE_ALL,
    Op.PAUSE,
    Op.PUT_SCHEDULE,
    Op.REMOVE_SCHEDULE,
    Op.PAUSE_SCHEDULE,
    Op.RUN_SCHEDULE,
}
