"""The life of a job as rows of a name and a text, for `taskq job` and `taskq top`."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime

from taskq.cli.words import headline_of
from taskq.model.info.job import Attempt, JobArguments, JobInfo
from taskq.model.info.words import distance_text
from taskq.model.job import JobError
from taskq.telemetry.render import duration_text, escape

#: Characters of a job's arguments that are shown; --json has all.
_MAX_SHOWN_CHARS = 2_000


def rows_of(info: JobInfo) -> list[tuple[str, str]]:
    """All that is known of a job. What it wrote itself is escaped."""
    return [
        ("job", info.id),
        ("state", info.state.value),
        (
            "task",
            f"{info.task} (queue {info.queue})"
            if info.task
            else "not known until a fleet takes the job from the spool",
        ),
        ("attempts", str(info.attempts) + (f", {info.crashes} of them crashed" if info.crashes else "")),
        *([] if info.arguments is None else [("arguments", _arguments(info.arguments))]),
        *_meta(info.meta),
        *([] if info.progress is None else [("progress", escape(info.progress.describe()))]),
        *_times(info),
        *_ran_on(info.history),
        *_neighbours("after", info.after),
        *_neighbours("before", info.before),
        *(_error(info.error) if info.error is not None else ()),
        *(_history(info.history) if len(info.history) > 1 else ()),
    ]


def _ran_on(history: list[Attempt]) -> list[tuple[str, str]]:
    """Where the last ended attempt ran."""
    last = history[-1] if history else None
    if last is None or last.consumer is None:
        return []
    return [("consumer", str(last.consumer) if last.machine is None else f"{last.consumer} on {escape(last.machine)}")]


def _history(history: list[Attempt]) -> list[tuple[str, str]]:
    """A line for each attempt. The error of the last attempt is already shown in full above."""
    rows: list[tuple[str, str]] = []
    known = 0
    for attempt in history:
        if attempt.number > known + 1:
            rows.append(("", f"({attempt.number - known - 1} attempts are not kept)"))
        known = attempt.number
        error = attempt.error
        took = "" if attempt.duration_s is None else f"after {duration_text(attempt.duration_s * 1000)}"
        began = (
            "" if attempt.started_at is None else datetime.fromtimestamp(attempt.started_at).isoformat(" ", "seconds")
        )
        told = "succeeded" if error is None else headline_of(error)
        ran_on = "" if attempt.consumer is None else f"consumer {attempt.consumer}"
        name = "history" if not rows else ""
        rows.append((name, "  ".join(part for part in (f"{attempt.number:>2}", began, ran_on, told, took) if part)))
    return rows


def _arguments(arguments: JobArguments) -> str:
    if arguments.left_out is not None:
        return f"({escape(arguments.left_out)})"
    named = [f"{name}={value!r}" for name, value in arguments.kwargs.items()]
    text = ", ".join([*map(repr, arguments.args), *named])
    left_out = len(text) - _MAX_SHOWN_CHARS
    return escape(text[:_MAX_SHOWN_CHARS]) + (f" ... {left_out:,} characters left out" if left_out > 0 else "")


def _meta(meta: dict[str, str]) -> list[tuple[str, str]]:
    texts = [escape(f"{name}={text}") for name, text in meta.items()]
    return [("meta" if number == 0 else "", text) for number, text in enumerate(texts)]


def _neighbours(name: str, ids: list[str]) -> list[tuple[str, str]]:
    """The jobs before it or after it in a workflow."""
    return [(name if number == 0 else "", job_id) for number, job_id in enumerate(ids)]


def _times(info: JobInfo) -> list[tuple[str, str]]:
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


def _error(error: JobError) -> list[tuple[str, str]]:
    rows = [("error", headline_of(replace(error, type=error.dotted_type)))]
    for block in (error.traceback.splitlines(), error.output):
        rows += [("", f"| {escape(line)}") for line in block]
    return rows
