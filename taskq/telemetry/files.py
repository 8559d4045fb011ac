"""Where the log is: two series of files in ``<directory>/log``, one for events and one for what jobs print.

taskq.jsonl     and after rotation taskq.jsonl.1 (newest) to N: what happened
output.jsonl    and output.jsonl.1 to N: what jobs and consumers printed, apart so that it cannot push events out
"""

from __future__ import annotations

import re
from pathlib import Path

LOG_DIRECTORY = "log"
LOG_NAME = "taskq.jsonl"
OUTPUT_NAME = "output.jsonl"
#: The events that go to the output files.
OUTPUT_EVENTS = frozenset({"job.log", "consumer.log"})

_NUMBER = re.compile("[1-9][0-9]{0,3}")


def log_path(directory: Path) -> Path:
    """The current log file of a fleet's `directory`. It need not exist."""
    return Path(directory) / LOG_DIRECTORY / LOG_NAME


def output_path(directory: Path) -> Path:
    """The current file for output. It need not exist."""
    return Path(directory) / LOG_DIRECTORY / OUTPUT_NAME


def rotated_path(path: Path, number: int) -> Path:
    """The path of the rotated file `number`, 1 being the newest."""
    return path.with_name(f"{path.name}.{number}")


def rotated_numbers(path: Path) -> list[int]:
    """The numbers of the rotated files that exist beside `path`, newest first.

    At most four digits: a file such as ``taskq.jsonl.20260509`` belongs to somebody else, who may still want it.
    """
    prefix = path.name + "."
    suffixes = (entry.name.removeprefix(prefix) for entry in path.parent.glob(prefix + "*"))
    return sorted(int(suffix) for suffix in suffixes if _NUMBER.fullmatch(suffix))
