"""What the events and fields of the log mean: the one place where they are described.

docs/events.md and `taskq schema logs` are made from these tables. Which events have which levels and fields is read
from the code itself (tools/logged.py), and tests compare both with each other and with what fleets log. Nothing imports
this while a fleet runs.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple


class FieldText(NamedTuple):
    """What a field is.

    Attributes:
        kind: its type, in the words of JSON.
        means: what it says, with its unit.
    """

    kind: Literal["string", "integer", "number", "boolean", "array", "object"]
    means: str


class EventText(NamedTuple):
    """What an event is.

    Attributes:
        means: what has happened.
        to_do: what to do about it; empty: nothing.
    """

    means: str
    to_do: str = ""


#: The fields, those first that stand first in a line; the others by name.
FIELDS: Final[dict[str, FieldText]] = {
    "timestamp": FieldText("string", "When it happened, in UTC, with microseconds: 2026-05-09T07:35:25.123456Z."),
    "level": FieldText("string", "How much it matters: debug, info, warning, error or critical."),
    "event": FieldText("string", "The name of the event, such as job.failed."),
    "queue": FieldText("string", "The queue of the job, or the queue that it is about."),
    "task": FieldText("string", "The name of the task."),
    "job_id": FieldText("string", "The id of the job, in full."),
    "attempt": FieldText("integer", "Which attempt of the job: 1 for the first."),
    "consumer": FieldText("integer", "The number of the consumer, from 1 on; its successor has the same number."),
    "pid": FieldText("integer", "The process: that of the consumer or, if there is none, of the broker."),
    "duration_ms": FieldText("number", "How long the attempt ran, in milliseconds."),
    "exit_code": FieldText("integer", "The exit code of the process, if no signal killed it."),
    "signal": FieldText("string", "The signal that killed the process, such as SIGSEGV."),
    "error": FieldText("string", "What went wrong: of a job, the type and the text of its exception."),
    "after": FieldText("string", "The id of the job after which the new one runs."),
    "again_in_s": FieldText("number", "In how many seconds it is tried again."),
    "before": FieldText("integer", "The version of the tables before; 0: there were none."),
    "boot_ms": FieldText("integer", "How long the consumer took to start and import the application, in milliseconds."),
    "by": FieldText("string", "Who did it, as user@host."),
    "bytes": FieldText("integer", "How long the line is, in bytes."),
    "came_up": FieldText("boolean", "Whether the fleet had been ready before."),
    "cancelled": FieldText("integer", "How many jobs were cancelled, since the queue exists."),
    "changed": FieldText("array", "The names of the schedules that were added, changed or removed; at most 50."),
    "changes": FieldText("integer", "How many commits the journal has."),
    "clients": FieldText("integer", "How many clients were refused in this second, besides those that have own lines."),
    "consumers": FieldText("integer", "How many consumers the fleet has."),
    "count": FieldText("integer", "How many lines were lost since the last report."),
    "cpu_s": FieldText("number", "How much CPU time the job has used, in seconds."),
    "cpu_timeout_s": FieldText("number", "How much CPU time the job may use, in seconds."),
    "crashed": FieldText("integer", "How many attempts ended with the death of their process, since the queue exists."),
    "crashes": FieldText("integer", "How many attempts of this job have ended with the death of their process."),
    "delay_s": FieldText("number", "In how many seconds the job runs again."),
    "directory": FieldText("string", "The directory of the fleet."),
    "done": FieldText("number", "How much of the job is done, as the job says."),
    "duration_max_ms": FieldText("number", "The longest of these jobs, in milliseconds."),
    "duration_mean_ms": FieldText("number", "How long these jobs ran on average, in milliseconds."),
    "duration_total_ms": FieldText("number", "How long these jobs ran together, in milliseconds."),
    "enqueued": FieldText("integer", "How many jobs were enqueued: in this window, or since the queue exists."),
    "expired": FieldText("integer", "How many jobs expired, since the queue exists."),
    "failed": FieldText("integer", "How many jobs failed, since the queue exists."),
    "file": FieldText("string", "The name of the file."),
    "fired": FieldText("integer", "How many jobs were made for the fires that were missed."),
    "fleet": FieldText("integer", "The number of the fleet in the database."),
    "host": FieldText("string", "The name of the machine."),
    "job_ids": FieldText("array", "The ids of the jobs that the consumer was running, if there were several."),
    "jobs": FieldText("integer", "How many jobs."),
    "jobs_done": FieldText("integer", "How many jobs the consumer has run."),
    "kept": FieldText("string", "What keeps running."),
    "lines": FieldText("integer", "How many lines were left out."),
    "logger": FieldText("string", "The logger of the application that wrote the line; only with Python's logging."),
    "message": FieldText("string", "The line that was printed, or the text of the application's own event."),
    "meta": FieldText("object", "The job's `meta`, texts by name, as it was given when the job was enqueued."),
    "misfire": FieldText("string", "What the schedule does about missed fires: once, skip or all."),
    "missed": FieldText("integer", "How many fires were missed."),
    "missing_changes": FieldText("integer", "How many commits the journal lacks that were there before."),
    "note": FieldText("string", "What the job says about its progress."),
    "now": FieldText("integer", "The new version of the tables, or the new number of this fleet."),
    "number": FieldText("integer", "The number of a job that this consumer never had."),
    "out_of_memory": FieldText("boolean", "True: the kernel killed processes for want of memory at that time."),
    "output": FieldText("string", "The last lines that the process wrote, and the stacks of its threads."),
    "path": FieldText("string", "The file, which is kept."),
    "queued": FieldText("integer", "How many jobs wait to be run."),
    "reason": FieldText("string", "Why."),
    "redaction_failed": FieldText(
        "string", "Why the function of --log-redact did not do its work; the line then has only names and numbers."
    ),
    "refused": FieldText("integer", "How many submissions were refused at that moment."),
    "retried": FieldText("integer", "How many attempts were followed by another one, since the queue exists."),
    "running": FieldText("integer", "How many jobs are running."),
    "runs_again": FieldText("boolean", "Whether the job runs again; if not, job.failed follows."),
    "schedule": FieldText("string", "The name of the schedule."),
    "scheduled": FieldText("integer", "How many jobs wait for their time."),
    "schedules": FieldText("integer", "How many schedules the application declares."),
    "schema": FieldText("string", "The schema of the database."),
    "spooled_files": FieldText("integer", "How many files of jobs wait in the spool."),
    "started": FieldText("integer", "How many attempts have started in this window."),
    "state": FieldText("string", "The state that the jobs were in."),
    "succeeded": FieldText("integer", "How many jobs succeeded: in this window, or since the queue exists."),
    "text": FieldText("string", "The beginning of the line."),
    "threads": FieldText("integer", "How many jobs a consumer runs at a time, if it is more than one."),
    "timeout_s": FieldText("number", "The time limit of the job, or of running jobs when the fleet stops, in seconds."),
    "total": FieldText("number", "How much there is to do, as the job says."),
    "traceback": FieldText("string", "The traceback of the exception."),
    "truncated": FieldText("boolean", "True: the line was too long, and lacks fields or parts of texts."),
    "unsettled": FieldText("integer", "How many outcomes of jobs wait until they can be written to the database."),
    "waiting": FieldText("integer", "How many jobs wait for the end of another job."),
    "what": FieldText("string", "What was asked of the database, in taskq's own words."),
    "window_s": FieldText("number", "How long the window was in which these were counted, in seconds."),
}

#: Those of a line about a job: `meta` if it has any, the last two if it was given to a consumer.
JOB_FIELDS: Final = ("queue", "task", "job_id", "attempt", "meta", "consumer", "pid")

#: The events, by what they are about.
EVENTS: Final[dict[str, dict[str, EventText]]] = {
    "The fleet": {
        "fleet.started": EventText("The broker runs; consumers start. The numbers say what was left to do."),
        "fleet.misfit": EventText(
            "The tasks need something that the fleet does not have, such as a consumer for their queue.",
            "Do what the reason says. Until then, jobs of these tasks may wait for ever.",
        ),
        "fleet.reloading": EventText("The consumers are replaced one by one, by ones that import the code anew."),
        "fleet.reloaded": EventText("All consumers run the new code."),
        "fleet.reload_failed": EventText(
            "The new code does not start; the consumers with the old code go on.", "Mend the code and reload again."
        ),
        "preload.failed": EventText(
            "What `preload` names could not be imported.", "Mend it; until then no consumer starts."
        ),
        "fleet.stopping": EventText("The fleet stops; running jobs may finish within the stop timeout."),
        "fleet.stopped": EventText("The fleet has stopped. The numbers say what is left and what was done."),
        "fleet.given_up": EventText(
            "The broker died again and again, so the fleet has ended.",
            "See the lines before it. All jobs are in the journal: a new fleet goes on with them.",
        ),
        "broker.died": EventText(
            "The broker ended although nobody stopped it; another one starts and goes on from the journal.",
            "If nobody killed it, look for want of memory; broker.failed before it is a bug: please report it.",
        ),
        "broker.failed": EventText("A bug of taskq ended the broker; another one starts.", "Please report it."),
        "broker.killed": EventText(
            "The guardian killed the broker, since it did not end in time when the fleet was stopped.",
            "Nothing is lost. If it happens again, look at the disk.",
        ),
    },
    "Consumers": {
        "consumer.started": EventText("A consumer has imported the application and takes jobs."),
        "consumer.boot_failed": EventText(
            "A consumer could not import the application, or ended before it had; it is tried again, ever more slowly.",
            "Mend what the traceback shows.",
        ),
        "consumer.exited": EventText(
            "A consumer ended as it was told: for a reload, a limit of jobs or memory, or the end of the fleet."
        ),
        "consumer.crashed": EventText(
            "A consumer died by itself; `output` has its last words. Another one starts, and job.crashed follows for "
            "the job that was running.",
            "See `signal` or `exit_code`, and the stack in `output`.",
        ),
        "consumer.killed": EventText(
            "The broker killed a consumer, for the reason given: a job was over its time or a limit, was cancelled, or "
            "the consumer did not answer. `output` has the stacks of its threads.",
            "The stacks show where it hung.",
        ),
        "consumer.stacks": EventText("The stacks of a consumer, after `taskq stack` or `kill -QUIT`."),
        "consumer.confused": EventText(
            "A consumer sent what consumers do not send, and is killed.",
            "Perhaps a job wrote to descriptors that are not its own; otherwise please report it.",
        ),
        "consumer.log": EventText("A consumer printed or logged something outside jobs; with the level of the line."),
    },
    "Jobs that run": {
        "job.enqueued": EventText("A job was accepted."),
        "job.started": EventText("A job has been running for 0.1 s. Shorter ones have no such line."),
        "job.progress": EventText("The job said how far it is."),
        "job.log": EventText(
            "The job printed or logged something. The level is that of the line, and fields that the job logs are "
            "added under their own names."
        ),
        "output.dropped": EventText(
            "Lines were left out, since a job or a consumer printed too much.",
            "Print less: the first and the last lines are there.",
        ),
    },
    "Ends of attempts": {
        "job.succeeded": EventText("The job succeeded."),
        "job.summary": EventText("What went beyond 100 lines a second (successes, starts, new jobs), counted by task."),
        "job.retrying": EventText("The attempt failed; the job runs again.", "See `taskq errors`."),
        "job.failed": EventText("The job failed for good.", "See `taskq errors`; `taskq retry` runs it again."),
        "job.crashed": EventText(
            "The process died while the job was running, and the job is charged for it.",
            "See `taskq job ID`: signal, last words, stack.",
        ),
        "job.timed_out": EventText(
            "The job ran for too long and is told to end; after a grace period its process is killed.",
            "Make it faster, or raise its `timeout` or `cpu_timeout`.",
        ),
        "job.interrupted": EventText("The process was killed through no fault of this job: it runs again, uncharged."),
        "job.cancelling": EventText("The job was cancelled while it runs, and is told to end."),
        "job.cancelled": EventText("The job was cancelled, by somebody, by itself, or since a job before it failed."),
        "job.expired": EventText("The job did not start in time, and will not run.", "`taskq tasks` shows the waits."),
        "job.snoozed": EventText("The job asked to run again later."),
        "job.children_refused": EventText(
            "Jobs that a job enqueued with `on_success=True` were not accepted.",
            "See the error: they do not exist.",
        ),
        "jobs.retried": EventText("Somebody queued failed jobs again."),
        "jobs.purged": EventText("Somebody removed jobs."),
    },
    "Queues": {
        "queue.paused": EventText("Somebody paused the queue: its jobs wait.", "`taskq resume` lets them run."),
        "queue.resumed": EventText("The jobs of the queue run again."),
    },
    "Schedules": {
        "schedule.declared": EventText("The schedules that the application declares have changed."),
        "schedule.added": EventText("A schedule was added at run time."),
        "schedule.changed": EventText("A schedule was changed at run time."),
        "schedule.removed": EventText("A schedule was removed."),
        "schedule.paused": EventText("A schedule was paused: it makes no jobs."),
        "schedule.resumed": EventText("A schedule makes jobs again."),
        "schedule.fired": EventText("A schedule made its jobs."),
        "schedule.run": EventText("Somebody ran a schedule by hand."),
        "schedule.missed": EventText(
            "Times of a schedule went by while no fleet ran, or the machine slept.",
            "If they matter, see its `misfire` option.",
        ),
        "schedule.skipped": EventText("A schedule made no job, since that of the last time has not ended."),
        "schedule.buffered": EventText("A schedule made a job that waits for the end of that of the last time."),
        "schedule.refused": EventText("The job of a schedule was not accepted.", "See the error."),
        "schedule.broken": EventText(
            "The next time of a schedule cannot be found, so it is left out.", "Change the schedule."
        ),
    },
    "Storage": {
        "store.recovered": EventText("The fleet before this one ended without closing the journal; nothing is lost."),
        "store.full": EventText(
            "The disk is full: new jobs are refused, running ones may end.", "Make room; it then goes on by itself."
        ),
        "store.damaged": EventText(
            "The journal lacks commits that were there before, perhaps since a file of it was restored or lost.",
            "See `taskq doctor`, and restore a backup if jobs are missing.",
        ),
        "store.failed": EventText(
            "The journal cannot be used, and the fleet ends.", "See the error and `taskq doctor`."
        ),
        "spool.taken": EventText("Jobs that were enqueued while no fleet answered are in the queue now."),
        "spool.refused": EventText("Jobs of the spool were not accepted; their file is kept.", "See the error."),
        "spool.unreadable": EventText("A file of the spool could not be read; it is kept.", "See the error."),
        "log.dropped": EventText("Lines of the log could not be written.", "Make room on the disk."),
        "log.unreadable": EventText("A line of a log file is damaged, perhaps by a power cut; only readers see this."),
        "log.unnamed": EventText("An event has no name: a bug of taskq.", "Please report it."),
    },
    "Clients": {
        "client.rejected": EventText(
            "A client was refused or dropped. 20 such lines are written in a second; the rest are counted.",
            "See the reason: perhaps another version, another user, or a client that does not read.",
        ),
    },
    "A database": {
        "database.migrated": EventText("The tables were made, or changed for a new version."),
        "database.away": EventText(
            "The database does not answer; the fleet tries again, and loses nothing.", "See the error."
        ),
        "database.refused": EventText("The database answered with an error; it is asked again.", "See the error."),
        "fleet.lost": EventText(
            "Another machine gave no sign of life: its jobs go back and run elsewhere.", "Look at that machine."
        ),
        "fleet.was_taken_for_dead": EventText(
            "This machine was taken for dead by the others, and begins anew.",
            "Look at its network, its load and its clock.",
        ),
        "job.lost": EventText("An outcome came too late: another machine has the job, and runs it again."),
    },
}
