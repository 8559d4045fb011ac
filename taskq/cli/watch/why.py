"""`taskq why`: why a job does not run, and what lets it run."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict

from rich.text import Text

from taskq.cli.arguments import FleetArgument, JsonOption
from taskq.cli.common import queue_of
from taskq.cli.ids import whole_id
from taskq.cli.jobs import IdArgument
from taskq.cli.pictures import console_of
from taskq.cli.positions import id_first
from taskq.cli.tables import width_of_terminal
from taskq.model.info.sentences import sentence
from taskq.model.info.why import WhyInfo
from taskq.telemetry.words import escape


def why(id: IdArgument, app: FleetArgument = None, as_json: JsonOption = False) -> None:
    """Say why a job does not run, and what lets it run.

    A paused queue, a limit and the jobs that hold it, its time, other jobs that it
    waits for, or what is wrong with the fleet. It also says if the job runs, or has
    ended, and it answers without a fleet.

    $ taskq why 019c8a1f2e0b7a30a5f1d2c3b4a59687
    $ taskq why app.py:q 019c8a1f --json
    """
    given, app = id_first(id, app)
    application = queue_of(app)
    info = application.job(whole_id(application, given)).why()
    if as_json:
        print(json.dumps(asdict(info)))
        return
    console = console_of()
    for line in picture(info, width_of_terminal(), time.time()):
        console.print(line, soft_wrap=True)


def picture(info: WhyInfo, width: int | None, now: float) -> Iterator[Text]:
    """The lines of the answer.

    Args:
        width: in columns; None for no limit.
        now: seconds since 1970.
    """
    what = f"{escape(info.task)} in queue {escape(info.queue)}, " if info.task else ""
    yield Text.assemble(("job ", "dim"), (info.id, "bold"))
    yield from _wrapped(f"{what}{info.state.value}", width, "", "")
    for reason in info.reasons:
        yield from _wrapped(escape(sentence(reason, info, now)), width, "- ", "  ")


def _wrapped(text: str, width: int | None, first: str, further: str) -> Iterator[Text]:
    if width is None:
        yield Text(first + text)
        return
    lines = textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=further, break_on_hyphens=False, break_long_words=True
    )
    yield from map(Text, lines)
