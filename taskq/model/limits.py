"""Every size and limit of taskq, in one place. docs/limits.md repeats the ones that users meet."""

from __future__ import annotations

import re

MIB = 1024 * 1024

#: One job's serialized arguments, and one job's serialized result.
MAX_PAYLOAD_BYTES = 1024 * MIB
#: Those that take more than this have a file of their own: see `taskq.protocol.payloads.files`.
MAX_INLINE_PAYLOAD_BYTES = 64 * 1024
#: One serialized item of a generator, which the journal keeps.
MAX_ITEM_BYTES = 4 * MIB
#: What one job's generator may yield, in number and, serialized, in size.
MAX_ITEMS = 100_000
MAX_ITEMS_BYTES = 64 * MIB
#: Items in one answer to a reader (or a single larger one).
ITEMS_ANSWER_BYTES = 1 * MIB
ITEMS_ANSWER = 1_000
#: Readers that wait for the next item of one job.
MAX_READERS = 1_000
#: One frame on a socket: an item of full size and its envelope.
MAX_FRAME_BYTES = MAX_ITEM_BYTES + 128 * 1024
#: The part of a frame that is decoded (operation, ids, lengths). Payloads travel behind it as opaque bytes, so the
#: worst that hostile msgpack can make of a frame is this much times about 70 (measured: a megabyte of empty maps
#: decodes to 65-73 MB).
MAX_ENVELOPE_BYTES = 64 * 1024
#: Jobs in one submit frame: their ids and lengths must fit into the envelope.
MAX_JOBS_PER_FRAME = 1_000
#: Jobs that are enqueued together, as a workflow.
MAX_FLOW_JOBS = 100_000
#: What one job may enqueue for the case that it succeeds (`options(on_success=True)`), in number and in size.
MAX_CHILDREN = 100_000
MAX_CHILDREN_BYTES = 64 * MIB
#: What the constraints of the jobs of one frame may take of its envelope, beside ids and lengths.
MAX_CONSTRAINTS_BYTES = 40 * 1024
#: Jobs in one answer to a client that lists them, and looked at for one request that lists, retries or purges: it takes
#: the broker a few milliseconds.
MAX_JOBS_LISTED = 200
MAX_JOBS_SEEN = 1_000
#: Jobs retried or purged for one request; a client that wants more asks again.
MAX_JOBS_RETRIED = 100
MAX_JOBS_PURGED = 300
#: `enqueue_many` starts a new frame when payloads of this size are together.
SUBMIT_CHUNK_BYTES = 1 * MIB

#: Text of an error that is kept with a job; longer text is cut in the middle.
MAX_ERROR_MESSAGE_CHARS = 8_000
MAX_TRACEBACK_CHARS = 32_000
MAX_CAUSES = 10
MAX_CAUSE_CHARS = 200
#: The outcome of an attempt that failed, which the broker decodes: those texts, at six bytes a character (escaped).
MAX_FAILURE_BYTES = 256 * 1024
#: Ended attempts that are kept with a job, beside the last one: this many of the first and of the last; and the
#: size from which on their errors are cut.
KEPT_ATTEMPTS_EACH_END = 20
MAX_KEPT_ATTEMPT_BYTES = 4 * 1024
#: What a process wrote last, told with its crash.
MAX_LAST_LINES = 20
#: The lines of the stacks that Python writes at a segfault, or when it is asked for them: 20 to 40 without threads of a
#: job; and how many lines of these and of the last ones are kept with the job.
MAX_STACK_LINES = 1_000
MAX_TOLD_LINES = 100
#: One line of a job's output; the rest of a longer line is dropped.
MAX_OUTPUT_LINE_BYTES = 8 * 1024
#: `taskq.broker.consumers.excerpt` limits how much of one job's output is logged. This is the least disk space that the
#: log of events, and that of output, may have: six files each, which must take the longest line.
MIN_LOG_MB = 2
#: Lines of output that one consumer may have logged in a second; more are counted and dropped.
MAX_OUTPUT_LINES_PER_S = 2_000
#: Refused and dropped clients that are logged one by one in a second; more are counted.
MAX_REJECTION_LINES_PER_S = 20

#: Connected clients; one more is refused.
MAX_CLIENTS = 1_000
#: Bytes waiting for a client that does not read; above it nothing more is read from that client.
MAX_CLIENT_OUTPUT_BYTES = 8 * MIB
#: A new connection must say hello, and a started frame must be complete, within these.
HELLO_DEADLINE_S = 5.0
FRAME_DEADLINE_S = 30.0
#: A client that takes no byte of its waiting output for so long is disconnected.
STALLED_CLIENT_S = 60.0

#: What a job may keep for its next attempt; it travels with every start.
MAX_CHECKPOINT_BYTES = 256 * 1024
#: A text that tells of progress.
MAX_PROGRESS_NOTE_CHARS = 200
#: Seconds that a job can be told to wait: thirty years.
LONGEST_DELAY_S = 1e9

MAX_CONSUMERS = 512
#: Jobs at once in one consumer.
MAX_THREADS = 1_000
MAX_TASK_NAME_CHARS = 200
MAX_QUEUE_NAME_CHARS = 64
QUEUE_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_QUEUE_NAME_CHARS}}}\Z")
#: A key of `unique=`, `limit_by=` or `ordered_by=`; longer ones are used as their digest.
MAX_KEY_CHARS = 200
#: The arguments of a job that are shown to whoever asks, in bytes as they are stored; larger ones are left out.
MAX_SHOWN_ARGUMENTS_BYTES = 64 * 1024
#: What `meta=` of a job may take, its names included, as UTF-8.
MAX_META_BYTES = 4 * 1024
MAX_META_NAME_CHARS = 100
#: Keys without a queued job that the journal still knows: a key that comes again soon costs nothing then.
KEPT_KEYS = 1_000
#: Schedules of a queue's directory: the answer about all of them must fit one frame.
MAX_SCHEDULES = 4_000
#: Schedules in the code of one application, which a consumer tells in one frame, and their size together.
MAX_DECLARED_SCHEDULES = 1_000
MAX_DECLARED_BYTES = 2 * MIB
#: The names of an application's tasks, which a consumer tells when it starts; the broker keeps them for each.
MAX_TOLD_TASKS_BYTES = 256 * 1024
#: The serialized arguments of a schedule: they travel in an envelope.
MAX_SCHEDULE_PAYLOAD_BYTES = 32 * 1024
MAX_CRON_CHARS = 200
#: A Unix socket's path, from `struct sockaddr_un` (108 with its closing zero on Linux, 104 on macOS).
MAX_SOCKET_PATH_BYTES = 103

# -- The work of one turn of the broker's loop, so that nobody waits long for it. What does not fit is left for the
# turns after it, in order. Work is estimated, not measured, so that the same things happen in the same turns on any
# machine: in microseconds of CPU time on a core of 2 GHz, with the commit, the answer and the line in the log.

#: What a turn takes on. What cannot be cut, such as one submission, may take more.
TURN_US = 3_000.0
#: An attempt that ended, with the job that is sent in its place; what comes on top of that if it did not succeed (an
#: error, and a line in the log), if the job runs again, and for each item that it has yielded; and a checkpoint.
ENDED_US = 2.5
NOTE_US = 35.0
RESCHEDULED_US = 10.0
ITEM_US = 3.0
CHECKPOINT_US = 10.0
#: A job that is handed in; one with constraints; and each job that it comes after.
SUBMITTED_US = 2.0
CONSTRAINED_US = 8.0
EDGE_US = 8.0
#: A submission from the spool, besides its jobs.
SPOOLED_US = 25.0
#: A request about one job, one that asks why a job does not run, and one with a long answer.
REQUEST_US = 60.0
EXPLAIN_US = 150.0
LONG_REQUEST_US = 3_000.0
#: A job that is run again, or removed, together with others.
RETRIED_US = 40.0
PURGED_US = 15.0
#: A job whose end a client asks to be told.
WATCHED_US = 20.0
#: A job that comes due, one that expires, and one that goes since it is no longer kept.
DUE_US = 8.0
EXPIRED_US = 60.0
PRUNED_US = 7.0
#: A link to a job that is looked at when the job before it has ended or is run again, with what follows from it.
LINK_US = 25.0
#: A schedule that fires.
FIRED_US = 60.0
