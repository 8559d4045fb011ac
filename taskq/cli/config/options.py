"""The options of a fleet: one table.

It gives the options of `taskq worker`, their variables (`--stop-timeout` is TASKQ_STOP_TIMEOUT) and their keys in
`[tool.taskq]` of pyproject.toml (`stop-timeout`). The texts of all three are read in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from taskq.cli.config.project import SEPARATOR
from taskq.model.settings import LOG_LEVELS, Durability, LogFormat
from taskq.model.units import seconds_in

#: Reads a text and returns fields of `Settings`. Raises a ValueError that says what to write instead.
Reader = Callable[[str], Mapping[str, Any]]

#: Undoes what a place with lower precedence says.
NONE = "none"
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


class FleetOption(NamedTuple):
    """An option of a fleet.

    Attributes:
        name: its name on the command line without the dashes; also its key in pyproject.toml.
        read: the function that reads its text.
        help: what it does.
        metavar: what its value looks like, for the help.
        default: its value if nobody sets it.
        in_words: what the default means, if the value does not say it.
        panel: its heading in `taskq worker --help`.
        choices: the possible values, if there are few.
        is_flag: whether it is on or off.
        is_whole: whether its value is a whole number.
        is_repeated: whether it may be given several times on the command line.
    """

    name: str
    read: Reader
    help: str
    metavar: str = ""
    default: str = ""
    in_words: str = ""
    panel: str | None = None
    choices: tuple[str, ...] = ()
    is_flag: bool = False
    is_whole: bool = False
    is_repeated: bool = False

    @property
    def variable(self) -> str:
        """The name of its variable in the environment."""
        return f"TASKQ_{self.parameter.upper()}"

    @property
    def parameter(self) -> str:
        """Its name as a parameter of a function."""
        return self.name.replace("-", "_")

    def plain(self, text: str) -> Any:
        """Its value as JSON."""
        if self.is_flag:
            return text.lower() in _YES
        if self.is_whole:
            return None if text == NONE else int(text)
        return [part.strip() for part in text.split(SEPARATOR) if part.strip()] if self.is_repeated else text


# -- how the texts are read


def _text(field: str) -> Reader:
    return lambda text: {field: text}


def _flag(field: str) -> Reader:
    def read(text: str) -> Mapping[str, Any]:
        if text.lower() not in (*_YES, *_NO):
            raise ValueError("use true or false")
        return {field: text.lower() in _YES}

    return read


def _whole(field: str) -> Reader:
    def read(text: str) -> Mapping[str, Any]:
        try:
            return {field: int(text)}
        except ValueError:
            raise ValueError("use a whole number") from None

    return read


def _whole_or_none(field: str) -> Reader:
    def read(text: str) -> Mapping[str, Any]:
        try:
            return {field: None if text == NONE else int(text)}
        except ValueError:
            raise ValueError(f"use a whole number, or {NONE}") from None

    return read


def _span(field: str) -> Reader:
    def read(text: str) -> Mapping[str, Any]:
        seconds = seconds_in(text)
        if seconds is None:
            raise ValueError("use seconds, or a duration such as 90s, 10m, 2h or 7d")
        return {field: seconds}

    return read


def _queues(text: str) -> Mapping[str, Any]:
    shares = [_amount(part, "1") for part in _parts(text)]
    weights = tuple((name, share) for name, share in shares if share != 1)
    return {"queues": tuple(name for name, _ in shares), "weights": weights}


def _lanes(text: str) -> Mapping[str, Any]:
    return {"lanes": tuple(_lane(part) for part in text.split(SEPARATOR) if part.strip())}


def _lane(text: str) -> tuple[tuple[str, ...], int]:
    """Reads A,B:N."""
    queues, _, number = text.rpartition(":")
    if not queues or not number.strip().isdecimal():
        raise ValueError("use queues and a number of consumers, such as mail,images:2 or '*:1'")
    return (() if queues.strip() == "*" else tuple(_parts(queues))), int(number)


def _resources(text: str) -> Mapping[str, Any]:
    amounts = [_amount(part) for part in _parts(text)]
    return {"resources": tuple((name, int(amount)) for name, amount in amounts)}


def _amount(text: str, default: str = "") -> tuple[str, float]:
    """Reads NAME=NUMBER."""
    name, _, number = text.partition("=")
    try:
        return name.strip(), float(number or default)
    except ValueError:
        raise ValueError(f"use a name and a number, such as {name.strip() or 'gpu'}=2") from None


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


# -- the table

_CONSUMERS, _JOURNAL, _LOG = "Consumers", "Journal", "Log"


def _choice(name: str, choices: tuple[str, ...], help: str, default: str, panel: str) -> FleetOption:
    field = name.replace("-", "_")
    return FleetOption(name, _text(field), help, "|".join(choices), default, panel=panel, choices=choices)


FLEET_OPTIONS: tuple[FleetOption, ...] = (
    FleetOption(
        "consumers", _whole("consumers"), "Number of consumer processes.", "N", "0", "one per CPU", is_whole=True
    ),
    FleetOption(
        "threads",
        _whole("threads"),
        "Slots of each consumer: jobs that it runs at once, in threads or coroutines.",
        "N",
        "1",
        is_whole=True,
    ),
    FleetOption("queues", _queues, "Serve only these queues; B=3 gives B three shares.", "A,B=3", in_words="all"),
    FleetOption(
        "lane",
        _lanes,
        "A lane: N consumers for these queues only (* for all). Can be repeated.",
        "A,B:N",
        is_repeated=True,
    ),
    FleetOption("resources", _resources, "Capacities that jobs share, by their option resources=.", "gpu=1,ram=8"),
    FleetOption("drain", _flag("drain"), "Stop when no job is pending or running.", default="false", is_flag=True),
    FleetOption(
        "stop-timeout",
        _span("stop_timeout_s"),
        "How long running jobs may take to finish when the fleet stops.",
        "TIME",
        "30s",
    ),
    FleetOption(
        "preload",
        _flag("preload"),
        "Fork consumers from a process that has imported APP.",
        default="false",
        panel=_CONSUMERS,
        is_flag=True,
    ),
    FleetOption(
        "max-jobs",
        _whole_or_none("max_jobs"),
        "Replace a consumer after N jobs.",
        "N",
        NONE,
        panel=_CONSUMERS,
        is_whole=True,
    ),
    FleetOption(
        "max-memory",
        _whole_or_none("max_memory_mb"),
        "Replace a consumer that uses more memory than this.",
        "MB",
        NONE,
        panel=_CONSUMERS,
        is_whole=True,
    ),
    _choice(
        "durability",
        get_args(Durability),
        "What accepted jobs survive beside the death of any process: see docs/durability.md.",
        "power",
        _JOURNAL,
    ),
    FleetOption(
        "memory",
        _whole("memory_mb"),
        "Memory for pending jobs; the others stay on disk.",
        "MB",
        "160",
        panel=_JOURNAL,
        is_whole=True,
    ),
    FleetOption(
        "keep-results",
        _span("keep_results_s"),
        "How long ended jobs and their results are kept.",
        "TIME",
        "1d",
        panel=_JOURNAL,
    ),
    _choice("log-format", get_args(LogFormat), "Format on stderr.", "auto", _LOG),
    _choice("log-level", LOG_LEVELS, "Lowest level that is logged.", "info", _LOG),
    FleetOption(
        "log-size",
        _whole("log_mb"),
        "Disk space for events; the oldest are dropped.",
        "MB",
        "60",
        panel=_LOG,
        is_whole=True,
    ),
    FleetOption(
        "output-size", _whole("output_mb"), "Disk space for what jobs print.", "MB", "60", panel=_LOG, is_whole=True
    ),
    FleetOption(
        "log-redact",
        _text("log_redact"),
        "The function that takes secrets out of each line of the log: see docs/events.md.",
        "MODULE:FUNCTION",
        in_words="none",
        panel=_LOG,
    ),
)


def defaults() -> list[str]:
    """Arguments of `taskq worker` that undo what the environment and pyproject.toml say."""
    return [f"--no-{each.name}" if each.is_flag else f"--{each.name}={each.default}" for each in FLEET_OPTIONS]
