"""The application of `taskq demo`: counts the words of files.

$ taskq worker taskq.cli.demo.app:q
$ taskq enqueue taskq.cli.demo.app:q index README.md --wait
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from taskq.client.app import TaskQ

q = TaskQ("demo")
_WORD = re.compile(r"[A-Za-z_]\w+")


@q.task
def index(path: str) -> tuple[str, dict[str, int]]:
    """Counts the words of one file."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    return path, dict(Counter(_WORD.findall(text)))
