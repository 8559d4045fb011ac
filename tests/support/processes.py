"""Processes that end while a test looks at them."""

from __future__ import annotations

import psutil


def lives(process: psutil.Process) -> bool:
    """Whether a process still runs; whoever has to collect a dead one may take a second for it."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
