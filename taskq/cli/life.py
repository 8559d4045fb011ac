"""The whole life of a job in rows, for `taskq job` and `taskq top`."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime

from taskq.cli.words import headline_of
from taskq.model.info.job import Attempt, JobArguments, JobInfo
from taskq.model.info.sentences import sentence
from taskq.model.info.why import WhyInfo
from taskq.model.info.words import distance_text
from taskq.model.job import JobError, JobState
from taskq.telemetry.words import duration_text, escape

#: Characters of a job's arguments that are shown; --json has all.
_MAX_SHOWN_CHARS = 2_000

Rows = list[tuple[str, str]]


def rows_of(info: JobInfo, why: WhyInfo | None = None) -> Rows:
    """The lines about a job: each with its name, or "".

    Args:
        why: why it does not run, if that is to be told.
    """
    task = f"{escape(info.task)} (queue {escape(info.queue)})" if info.task else ""
    crashed = f", {info.crashes} of them crashed" if info.crashes else ""
    reasons = [] if why is None else [escape(sentence(reason, why, time.time())) for reason in why.reasons]
    return [
        ("job", info.id),
        ("state", info.state.value),
        ("task", task or "not known until a fleet takes the job from the spool"),
        ("attempts", f"{info.attempts}{crashed}"),
        *([] if info.arguments is None else [("arguments", _arguments(info.arguments))]),
        *_named("meta", [escape(f"{name}={text}") for name, text in info.meta.items()]),
        *([] if info.progress is None else [("progress", escape(info.progress.describe()))]),
        *_times(info),
        *_named("now" if info.state is JobState.RUNNING else "why", reasons),
        *_ran_on(info.history),
        *_named("after", info.after),
        *_named("before", info.before),
        *(_error(info.error) if info.error is not None else ()),
        *(_history(info.history) if len(info.history) > 1 else ()),
    ]


def _named(name: str, texts: list[str]) -> Rows:
    """Several lines, the first with a name."""
    return [(name if number == 0 else "", text) for number, text in enumerate(texts)]


def _arguments(arguments: JobArguments) -> str:
    if arguments.left_out is not None:
        return f"({escape(arguments.left_out)})"
    named = [f"{name}={value!r}" for name, value in arguments.kwargs.items()]
    text = ", ".join([*map(repr, arguments.args), *named])
    left_out = len(text) - _MAX_SHOWN_CHARS
    return escape(text[:_MAX_SHOWN_CHARS]) + (f" ... {left_out:,} characters left out" if left_out > 0 else "")


def _times(info: JobInfo) -> Rows:
    times = [
        ("enqueued", info.enqueued_at),
        ("due", info.due_at),
        ("started", info.started_at),
        ("ended", info.finished_at),
    ]
    rows = [(name, _time(at)) for name, at in times if at is not None]
    if info.duration_s is not None:
        rows.append(("took", duration_text(info.duration_s * 1000)))
    return rows


def _time(at: float) -> str:
    local = datetime.fromtimestamp(at).isoformat(" ", "milliseconds")
    return f"{local}  ({distance_text(at - time.time())})"


# -- attempts


def _ran_on(history: list[Attempt]) -> Rows:
    """Where the last ended attempt ran, and what its process used."""
    last = history[-1] if history else None
    if last is None:
        return []
    rows: Rows = []
    if last.consumer is not None:
        machine = "" if last.machine is None else f" on {escape(last.machine)}"
        rows.append(("consumer", f"{last.consumer}{machine}"))
    if last.pid is not None:
        rows.append(("pid", str(last.pid)))
    if last.peak_bytes is not None:
        rows.append(("memory", f"{_megabytes(last.peak_bytes)} at the most, in its process"))
    return rows


def _error(error: JobError) -> Rows:
    rows = [("error", headline_of(replace(error, type=error.dotted_type)))]
    if error.signal is not None:
        rows.append(("signal", error.signal))
    if error.exit_code is not None:
        rows.append(("exit code", str(error.exit_code)))
    return rows + _blocks(error)


def _blocks(error: JobError) -> Rows:
    """The traceback of an error, and what its process wrote last."""
    return [("", f"| {escape(line)}") for line in (*error.traceback.splitlines(), *error.output)]


def _history(history: list[Attempt]) -> Rows:
    """A line for each attempt, and the traceback of each if it is not that of the one before. The error of the last
    attempt is shown in full elsewhere."""
    rows: Rows = []
    known = 0
    blocks: Rows = []
    for attempt in history:
        if attempt.number > known + 1:
            rows.append(("", f"({attempt.number - known - 1} attempts are not kept)"))
        known = attempt.number
        rows.append(("history" if not rows else "", _attempt(attempt)))
        own = [] if attempt.error is None or attempt is history[-1] else _blocks(attempt.error)
        rows += own if own != blocks else []
        blocks = own
    return rows


def _attempt(attempt: Attempt) -> str:
    """One attempt in one line: when, where, and how it ended."""
    error = attempt.error
    began = "" if attempt.started_at is None else datetime.fromtimestamp(attempt.started_at).isoformat(" ", "seconds")
    took = "" if attempt.duration_s is None else f"after {duration_text(attempt.duration_s * 1000)}"
    parts = [
        f"{attempt.number:>2}",
        began,
        "" if attempt.consumer is None else f"consumer {attempt.consumer}",
        "" if attempt.pid is None else f"pid {attempt.pid}",
        "" if attempt.peak_bytes is None else _megabytes(attempt.peak_bytes),
        "succeeded" if error is None else headline_of(error),
        took,
    ]
    return "  ".join(part for part in parts if part)


def _megabytes(count: int) -> str:
    return f"{count / 1_048_576:,.0f} MB"
