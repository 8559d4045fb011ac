"""Imported by the fork server of `taskq worker --preload`: it imports the application once, and each consumer that is
forked from it has it at hand."""

from __future__ import annotations

import os

from taskq import consumer  # noqa: F401  what every consumer needs
from taskq.loader import load_app
from taskq.platform import die_with_parent, name_process

die_with_parent()
name_process("preloaded application")
try:
    load_app(os.environ["TASKQ_PRELOAD_APP"])
except BaseException:
    pass  # each consumer meets the same error, and tells it in the way that every start-up error is told
