"""Imported by the fork server of `taskq worker --preload`: it imports the application once, and each consumer that is
forked from it has it at hand."""

from __future__ import annotations

import os
import socket

from taskq.client.loader import load_app
from taskq.consumer import process  # noqa: F401  what every consumer needs
from taskq.system.platform import die_with_parent, name_process
from taskq.system.spawn.forkservers import PRELOADED_APP, READY_ADDRESS

die_with_parent()
name_process("preloaded application")
_address = os.environ[READY_ADDRESS]
try:
    load_app(os.environ[PRELOADED_APP])
except BaseException:
    pass  # each consumer meets the same error, and reports it as every error at start-up is reported
try:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as _up:
        _up.sendto(b"up", _address)
except OSError:
    pass  # nobody waits any more, because there is newer code
