"""The operations of the protocol: the number of each message, and what travels with the start of a job."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, TypedDict


class Op(IntEnum):
    """What a frame says; the fields that follow in its envelope stand beside it."""

    HELLO = 1  # magic, lowest version, highest version, pid
    ERROR = 2  # request, name of the error, message
    OK = 3  # request, value

    # request, spec, resend, watch, ids (16 bytes each), lengths, and, if they have any, constraints: one for all
    # jobs, or of one for each; body: payloads. Answered by the number of new jobs, or by a body with [id, earlier id]
    # for each that was left out
    SUBMIT = 10
    # request, resend, watch, groups, number of edges; body: see taskq.protocol.submissions. Taken in as a whole or
    # not at all; answered as SUBMIT
    SUBMIT_FLOW = 9
    WATCH = 11  # ids                                                            answered by RESULT frames
    RESULT = 12  # id, state, exit code of the look-up                           body: outcome
    INFO = 13  # request, id
    CANCEL = 14  # request, id, whether also if it runs                    answered nil while it is being stopped
    STATUS = 15  # request
    STOP = 16  # request
    RELOAD = 17  # request
    JOBS = 20  # request, state, task, queue (or nil), id or position to go on before (or nil), limit
    RETRY = 21  # request, id                                                    one failed job
    RETRY_ALL = 22  # request, task, queue (or nil), span to go on with (or nil)
    PURGE = 23  # request, id                                                    one job
    PURGE_ALL = 24  # request, state, task, queue, ended before (or nil), span to go on with (or nil)
    PAUSE = 25  # request, queues (none: all that are paused), is paused, who asks
    READ_ITEMS = 26  # request, id, start                             answered when there are some, or the job ends

    SCHEDULES = 50  # request
    PUT_SCHEDULE = 51  # request, schedule
    REMOVE_SCHEDULE = 52  # request, name
    PAUSE_SCHEDULE = 53  # request, name, whether
    RUN_SCHEDULE = 54  # request, name, id of the job

    READY = 30  # pid                                                            consumer -> broker
    BOOT_FAILED = 31  #                                                              body: the error, as an outcome
    OUTCOMES = 32  # numbers, states, durations in microseconds, lengths            body: outcomes
    STARTED = 33  # number
    PROGRESS = 34  # [[id, done, total, note], ...]
    CHECKPOINT = 35  # id                                                        body: what the job keeps
    CHILDREN = (
        41  # number, groups, number of edges; body: see taskq.protocol.submissions       before the outcome of its job
    )
    ITEMS = 36  # id, position of the first, lengths                             body: what a generator has yielded
    DECLARED = 39  # application, lengths                                         body: the schedules in its code


class StartOptions(TypedDict, total=False):
    """What a consumer is told of a job that it starts, besides its id, task, attempt and arguments: of most, nothing.

    Attributes:
        timeout_s, cpu_timeout_s, memory_limit_bytes: as in `taskq.model.spec.Spec`.
        drop_result: it is True if the value that the function returns is not kept.
        checkpoint: what the attempt before kept for this one (taskq.protocol.codec).
        follows: it is True if the job came after others, whose results may be among its arguments.
    """

    timeout_s: float
    cpu_timeout_s: float
    memory_limit_bytes: int
    drop_result: bool
    checkpoint: bytes
    follows: bool


NO_START_OPTIONS: Final[StartOptions] = {}

TIMEOUT: Final = "timeout_s"
CHECKPOINT: Final = "checkpoint"
CPU_TIMEOUT: Final = "cpu_timeout_s"
MEMORY_LIMIT: Final = "memory_limit_bytes"
DROP_RESULT: Final = "drop_result"
FOLLOWS: Final = "follows"

#: What can be asked of a stopped fleet.
OPS = frozenset(
    {
        Op.INFO,
        Op.JOBS,
        Op.STATUS,
        Op.RETRY,
        Op.RETRY_ALL,
        Op.CANCEL,
        Op.PURGE,
        Op.PURGE_ALL,
        Op.PAUSE,
        Op.SCHEDULES,
        Op.PUT_SCHEDULE,
        Op.REMOVE_SCHEDULE,
        Op.PAUSE_SCHEDULE,
        Op.RUN_SCHEDULE,
    }
)
