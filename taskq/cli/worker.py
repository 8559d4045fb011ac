"""`taskq worker`: runs a fleet."""

from __future__ import annotations

from typing import Annotated, cast

import typer
from typer import Argument, Option

from taskq.broker.guardian import Guardian
from taskq.cli.common import reference_of, seconds_of
from taskq.model.errors import ConfigError
from taskq.model.settings import Durability, LogFormat, Settings

_CONSUMERS, _JOURNAL, _LOG = "Consumers", "Journal", "Log"
_Maybe = int | None


def worker(
    app: Annotated[
        str | None,
        Argument(metavar="APP", help="module:attribute or path/file.py:attribute.", show_default="TASKQ_APP"),
    ] = None,
    consumers: Annotated[int, Option(metavar="N", help="Consumer processes.", show_default="one per CPU")] = 0,
    threads: Annotated[
        int, Option(metavar="N", help="Jobs at once in each, in threads and coroutines: for jobs that wait.")
    ] = 1,
    queues: Annotated[
        str, Option(metavar="A,B=3", help="Serve only these queues; B has a share of 3.", show_default="all")
    ] = "",
    lane: Annotated[
        list[str] | None,
        Option(metavar="A,B:N", help="N consumers for these queues only (* for all). Repeat it.", show_default=False),
    ] = None,
    resources: Annotated[
        str, Option(metavar="gpu=1,ram=8", help="What jobs share: see their option resources=.", show_default="")
    ] = "",
    drain: Annotated[bool, Option("--drain", metavar="", help="End when no job waits or runs.")] = False,
    stop_timeout: Annotated[
        str, Option(metavar="TIME", help="How long running jobs may take when the fleet stops.")
    ] = "30s",
    preload: Annotated[
        bool,
        Option(
            "--preload", metavar="", help="Fork consumers from one that has imported APP.", rich_help_panel=_CONSUMERS
        ),
    ] = False,
    max_jobs: Annotated[
        _Maybe, Option(metavar="N", help="Replace a consumer after so many jobs.", rich_help_panel=_CONSUMERS)
    ] = None,
    max_memory: Annotated[
        _Maybe, Option(metavar="MB", help="Replace a consumer that grows larger.", rich_help_panel=_CONSUMERS)
    ] = None,
    durability: Annotated[
        str, Option(metavar="power|os|memory", help="What accepted jobs survive.", rich_help_panel=_JOURNAL)
    ] = "power",
    memory: Annotated[
        int, Option(metavar="MB", help="For waiting jobs; more wait on disk.", rich_help_panel=_JOURNAL)
    ] = 256,
    keep_results: Annotated[
        str, Option(metavar="TIME", help="How long ended jobs are kept.", rich_help_panel=_JOURNAL)
    ] = "1d",
    log_format: Annotated[
        str, Option(metavar="auto|console|json", help="Form on stderr.", rich_help_panel=_LOG)
    ] = "auto",
    log_level: Annotated[
        str, Option(metavar="debug|info|warning|error", help="Lowest level.", rich_help_panel=_LOG)
    ] = "info",
    log_size: Annotated[
        int, Option(metavar="MB", help="For the log of events; the oldest go.", rich_help_panel=_LOG)
    ] = 60,
    output_size: Annotated[int, Option(metavar="MB", help="For what jobs print.", rich_help_panel=_LOG)] = 60,
) -> None:
    """Run a fleet: a broker, and consumers that run the jobs of APP.

    Ctrl-C, SIGTERM or the closing of its terminal stops it: running jobs may
    end, the others wait for the next fleet; a second time it does not wait
    (two SIGTERMs within a second are one). kill -HUP loads new code.

    $ taskq worker app.py:q
    $ taskq worker shop.tasks:q --consumers 8 --queues mail,images
    """
    shares = [_amount(part, "--queues", "1") for part in _parts(queues)]
    settings = Settings(
        consumers=consumers,
        threads=threads,
        queues=tuple(name for name, _ in shares),
        weights=tuple((name, share) for name, share in shares if share != 1),
        lanes=tuple(map(_lane, lane or ())),
        resources=tuple((name, int(amount)) for name, amount in (_amount(p, "--resources") for p in _parts(resources))),
        drain=drain,
        preload=preload,
        max_jobs=max_jobs,
        max_memory_mb=max_memory,
        stop_timeout_s=seconds_of(stop_timeout, "--stop-timeout"),
        durability=cast(Durability, durability),
        memory_mb=memory,
        keep_results_s=seconds_of(keep_results, "--keep-results"),
        log_level=log_level,
        log_format=cast(LogFormat, log_format),
        log_mb=log_size,
        output_mb=output_size,
    )
    raise typer.Exit(Guardian(reference_of(app), settings).run())


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _amount(text: str, option: str, default: str = "") -> tuple[str, float]:
    """Reads NAME=NUMBER."""
    name, _, number = text.partition("=")
    try:
        return name.strip(), float(number or default)
    except ValueError:
        raise ConfigError(f"{option} {text!r}: use a name and a number, such as {name or 'gpu'}=2") from None


def _lane(text: str) -> tuple[tuple[str, ...], int]:
    """Reads A,B:N."""
    queues, _, number = text.rpartition(":")
    if not queues or not number.strip().isdecimal():
        raise ConfigError(f"--lane {text!r}: use queues and a number of consumers, such as mail,images:2 or '*:1'")
    return (() if queues.strip() == "*" else tuple(_parts(queues))), int(number)
