"""systemd's journal behind stderr: a line that begins with ``<3>`` is an error there, and one with ``<6>`` is not.

The journal takes each line of stderr for one message, and has no other way to learn how much it matters. This imports
little, as the guardian uses it for most of a fleet's life.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

#: The priorities of syslog(3), as sd-daemon(3) writes them.
_PREFIXES = {"debug": b"<7>", "info": b"<6>", "warning": b"<4>", "error": b"<3>", "critical": b"<2>"}


def is_journal(fd: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a descriptor leads to the journal: if it is the file that ``JOURNAL_STREAM`` names by device and inode.

    The variable alone does not say so, since processes whose stderr leads elsewhere inherit it: systemd.exec(5).
    """
    named = environ.get("JOURNAL_STREAM")
    if named is None:
        return False
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return named == f"{found.st_dev}:{found.st_ino}"


def with_priority(lines: bytes, level: str) -> bytes:
    """Puts the priority of a level before each line.

    Args:
        lines: one or more lines, the last of which may lack its newline.
        level: debug, info, warning, error or critical.
    """
    prefix = _PREFIXES[level]
    return b"".join(prefix + line for line in lines.splitlines(keepends=True))


def print_error(text: str, level: str = "error") -> None:
    """Prints ``taskq: TEXT`` to stderr, for a person who watches or for the journal.

    Args:
        text: one line, or several.
        level: how much it matters to the journal.
    """
    text = f"taskq: {text}"
    if is_journal(2):
        text = with_priority(text.encode("utf-8", "backslashreplace"), level).decode()
    print(text, file=sys.stderr)
