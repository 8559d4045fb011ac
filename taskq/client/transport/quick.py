"""Questions to a broker, for a process that does nothing else: see `taskq.cli.health` and `taskq.cli.status`. It
imports a third of what a client does, and starts in half the time."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from taskq.model.errors import BrokerUnavailable, DirectoryError, ProtocolError, TaskQError
from taskq.protocol import frames
from taskq.protocol.answers import value_of
from taskq.protocol.frames import Message
from taskq.protocol.ops import Op
from taskq.system.directory import Directory, user_of
from taskq.system.platform import peer_uid, timeval

if TYPE_CHECKING:
    from taskq.model.info.counts import TaskCounts

_READ_BYTES = 64 * 1024


def ask_quickly(directory: Directory, wants_status: bool, timeout_s: float) -> Mapping[str, Any] | TaskQError:
    """Asks a broker how it is.

    Args:
        wants_status: whether to ask for its status; otherwise its greeting is enough.
        timeout_s: seconds until it must have answered.

    Returns:
        The status as it travels (see `taskq.protocol.status`), empty if only greeted; or why the broker refused.

    Raises:
        BrokerUnavailable: no broker answers in time.
        DirectoryError: another user's process listens there.
    """
    told: Mapping[str, Any] | TaskQError = _ask(directory, [Op.STATUS] if wants_status else [], timeout_s)
    return told


def counts_quickly(directory: Directory, timeout_s: float) -> list[TaskCounts] | TaskQError:
    """Asks a broker what happened to the jobs of each task and queue. As `ask_quickly`."""
    from taskq.protocol.counts import counts_of  # a probe asks for less

    found: list[TaskCounts] = []
    after: list[str] | None = None
    while True:
        told = _ask(directory, [Op.COUNTS, after], timeout_s)
        if isinstance(told, TaskQError):
            return told
        portion, after = counts_of(told)
        found += portion
        if after is None:
            return found


def back_up_quickly(directory: Directory, path: str, is_end: bool, timeout_s: float) -> tuple[int, int, bool]:
    """Has a broker copy its journal: see `taskq.protocol.requests.BackUp`. As `ask_quickly`, but raises what it says.

    Returns:
        The pages that are copied, all pages, and whether it is done.
    """
    told = _ask(directory, [Op.BACKUP, path, is_end], timeout_s)
    if isinstance(told, TaskQError):
        raise told
    pages, all_pages, is_done = told
    return pages, all_pages, is_done


def _ask(directory: Directory, question: Sequence[Any], timeout_s: float) -> Any:
    """Asks a broker something.

    Args:
        question: an operation (`taskq.protocol.ops.Op`) and its fields; nothing if its greeting is enough.
        timeout_s: seconds until it must have answered.

    Returns:
        The value of its answer as it travels; an empty dict if it only had to greet; or a TaskQError: why it refused.
    """
    until = time.monotonic() + timeout_s
    decoder, messages = frames.Decoder(), list[Message]()
    request = frames.frame([question[0], 1, *question[1:]]) if question else b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        try:
            # connected while it blocks: a socket with a timeout is refused at once when many others knock
            line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(timeout_s))
            line.connect(os.fspath(directory.socket_path()))
            _check_owner_of(line)
            with suppress(BrokenPipeError, ConnectionResetError):  # refused at once: the refusal can be read
                line.sendall(frames.hello(os.getpid()) + request)
            while not messages or (question and len(messages) == 1 and messages[0][0][0] == Op.HELLO):
                line.settimeout(max(0.001, until - time.monotonic()))
                data = line.recv(_READ_BYTES)
                if not data:
                    return _refused(directory)
                messages += decoder.feed(data)
        except (TimeoutError, BlockingIOError):
            raise BrokerUnavailable(f"the broker of {directory.path} did not answer within {timeout_s:g} s") from None
        except ConnectionResetError:
            return _refused(directory)
        except ProtocolError as error:
            raise BrokerUnavailable(f"what listens on {directory.path} is not a broker: {error}") from error
        except OSError as error:
            if isinstance(error, TaskQError):
                raise
            raise BrokerUnavailable(f"no fleet answers on {directory.path}: {error.strerror}") from error
    try:
        return value_of(messages[-1], 1) if question else {}
    except TaskQError as error:
        return error


def _refused(directory: Directory) -> TaskQError:
    told = "it has as many clients as it may have, or has just died"
    return BrokerUnavailable(f"the broker of {directory.path} closed the connection: {told}")


def _check_owner_of(line: socket.socket) -> None:
    uid = peer_uid(line)
    if uid not in (None, 0, os.geteuid()) and os.geteuid() != 0:
        raise DirectoryError(f"a process of {user_of(uid or 0)} listens there: run as that user")
