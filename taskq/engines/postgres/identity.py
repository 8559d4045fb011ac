"""Which machine a fleet is: its directory, which at most one fleet has at a time.

The next broker there takes over at once what an earlier one had. A copy of the directory on another machine, or in
another container, must not do that.
"""

from __future__ import annotations

import os
from contextlib import suppress
from uuid import UUID, uuid4, uuid5

from taskq.system.directory import Directory


def machine_of(directory: Directory) -> UUID:
    """Returns the identity of a directory. The caller holds its lock.

    Raises:
        OSError: it cannot be read or written.
    """
    path = directory.path / "machine.id"
    random = None
    with suppress(FileNotFoundError, ValueError):
        random = UUID(path.read_text(encoding="ascii").strip())
    if random is None:
        random = uuid4()
        path.write_text(f"{random}\n", encoding="ascii")
    return uuid5(random, f"{host_name()} {path.stat().st_ino}")


def host_name() -> str:
    """The name of this machine."""
    return os.uname().nodename
