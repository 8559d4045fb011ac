"""Learns an application's name and directory for the guardian, in a separate process: the import runs user code."""

from __future__ import annotations

import os
import socket
import traceback

from taskq.client.loader import load_app
from taskq.model.errors import AppError, ConfigError
from taskq.model.exits import Exit
from taskq.protocol.guardian import Resolved


def main(app: str, descriptor: int) -> None:
    """Imports an application, makes its directory, and writes what it is to a socket."""
    answer = socket.socket(fileno=descriptor)
    os.set_inheritable(descriptor, False)
    try:
        answer.sendall(_resolve(app).pack())
    except OSError:
        pass  # nobody reads it: this process was started early, for a command line that turned out to be wrong
    os._exit(0)  # whatever threads the application started


def _resolve(reference: str) -> Resolved:
    try:
        app = load_app(reference)
    except AppError as error:
        return Resolved(Exit.APP, str(error), "", "", None, {})
    except BaseException as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen ")]
        is_told = isinstance(error, SyntaxError) or not frames  # a SyntaxError names its own place
        place = "" if is_told else f" ({frames[-1].filename}, line {frames[-1].lineno})"
        told = f"importing {reference} failed: {type(error).__name__}: {error}{place}"
        return Resolved(Exit.APP, told, "", "", None, {})
    try:
        app.directory.create()
    except ConfigError as error:
        return Resolved(Exit.DIRECTORY, str(error), app.name, "", None, {})
    return Resolved(Exit.OK, "", app.name, *app.place.to_wire(), app.needs)
