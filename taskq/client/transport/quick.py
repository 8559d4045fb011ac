"""One question to a broker, for a process that does nothing else: see `taskq.cli.health`. It imports a third of what a
client does, and starts in half the time."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from taskq.model.errors import BrokerUnavailable, DirectoryError, ProtocolError, TaskQError
from taskq.protocol import frames
from taskq.protocol.answers import value_of
from taskq.protocol.frames import Message
from taskq.protocol.ops import Op
from taskq.system.directory import Directory, user_of
from taskq.system.platform import peer_uid, timeval

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
    until = time.monotonic() + timeout_s
    decoder, messages = frames.Decoder(), list[Message]()
    request = frames.frame([Op.STATUS, 1]) if wants_status else b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        try:
            # connected while it blocks: a socket with a timeout is refused at once when many others knock
            line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(timeout_s))
            line.connect(os.fspath(directory.socket_path()))
            _check_owner_of(line)
            with suppress(BrokenPipeError, ConnectionResetError):  # refused at once: the refusal can be read
                line.sendall(frames.hello(os.getpid()) + request)
            while not messages or (wants_status and len(messages) == 1 and messages[0][0][0] == Op.HELLO):
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
        status: Mapping[str, Any] = value_of(messages[-1], 1) if wants_status else {}
    except TaskQError as error:
        return error
    return status


def _refused(directory: Directory) -> TaskQError:
    told = "it has as many clients as it may have, or has just died"
    return BrokerUnavailable(f"the broker of {directory.path} closed the connection: {told}")


def _check_owner_of(line: socket.socket) -> None:
    uid = peer_uid(line)
    if uid not in (None, 0, os.geteuid()) and os.geteuid() != 0:
        raise DirectoryError(f"a process of {user_of(uid or 0)} listens there: run as that user")
