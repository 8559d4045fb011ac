"""What is shown of one job, one kind of failure, one consumer or one line of the log. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from taskq.cli.life import rows_of
from taskq.cli.stack.command import text_of
from taskq.cli.top.fitting import text
from taskq.cli.top.snapshot import JobLife, Target
from taskq.model.info.failures import FailureGroup
from taskq.model.info.sentences import sentence
from taskq.model.info.stack import ConsumerStack
from taskq.model.info.words import distance_text
from taskq.telemetry.record import Event
from taskq.telemetry.render import render_console

_NAME_WIDTH = 10


@dataclass(frozen=True, slots=True)
class Told:
    """What a screen of text shows.

    Attributes:
        lines: each of them.
        target: what keys act on.
        is_final: whether it will never change.
    """

    lines: Sequence[Text]
    target: Target | None = None
    is_final: bool = False


def job(life: JobLife, *, hides_arguments: bool) -> Told:
    """The whole life of a job: what it is, why it does not run, its attempts, its arguments, its lines of the log."""
    lines: list[Text] = []
    info = life.info
    if info is None:
        lines.append(text(f"job {life.id}: the fleet does not know it any more", "yellow"))
    else:
        for name, told in rows_of(info):
            lines.append(text(f"{name:<{_NAME_WIDTH}}", "dim") + _plain(told, "red" if name == "error" else ""))
        if hides_arguments:
            lines.append(text(f"{'arguments':<{_NAME_WIDTH}}", "dim") + text("hidden"))
    if life.why is not None:
        lines += [Text(), _title("why it does not run" if life.why.state.value != "running" else "what it does")]
        lines += [text(f"- {sentence(reason, life.why, life.at)}") for reason in life.why.reasons]
    lines += [Text(), _title("its lines in the log")]
    lines += [*_log(life.events)] or [text("none", "dim")]
    task, queue = ("", "") if info is None else (info.task, info.queue)
    is_final = info is None or info.state.is_final
    return Told(lines, Target("job", life.id, task, queue), is_final)


def failure(group: FailureGroup, at: float) -> Told:
    """One kind of failure: how often, since when, its newest traceback, and its newest jobs."""
    first, last = distance_text(group.first_at - at), distance_text(group.last_at - at)
    lines = [
        _title(f"{group.task}: {group.type}"),
        text(f"{group.failed:,} failed, {group.again:,} attempts ran again; first {first}, last {last}"),
        *([text(f"at {group.place}")] if group.place else []),
        Text(),
        *(text(line, "red") for line in group.message.splitlines()),
        Text(),
        *(text(line) for line in group.traceback.splitlines()),
        Text(),
        text("the newest jobs:", "dim"),
        *(text(f"  {job_id}") for job_id in group.jobs),
    ]
    newest = group.jobs[0] if group.jobs else ""
    return Told(lines, Target("failures", newest, group.task, failures=group), is_final=True)


def stacks(found: Sequence[ConsumerStack], target: Target) -> Told:
    """Where consumers are in their code."""
    lines: list[Text] = []
    for each in found:
        lines += [*([Text()] if lines else []), *map(text, text_of(each).split("\n"))]
    return Told(lines, target, is_final=True)


def event(shown: Event, target: Target) -> Told:
    """One line of the log with all that it holds."""
    return Told([*_log([shown])], target, is_final=True)


def _log(events: Iterable[Event]) -> Iterator[Text]:
    styles = {"warning": "yellow", "error": "red", "critical": "bold red"}
    for each in events:
        for number, line in enumerate(render_console(each).split("\n")):
            yield text(line, styles.get(str(each.get("level")), "") if not number else "dim")


def _title(told: str) -> Text:
    return text(told, "bold")


def _plain(told: str, style: str) -> Text:
    """A text that is escaped already."""
    return Text(told, style, no_wrap=True)
