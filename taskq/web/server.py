"""The dashboard as a process: its socket, its links, and the end."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path

import uvicorn

from taskq.client.app import TaskQ
from taskq.model.errors import ConfigError
from taskq.web.access import Resolver
from taskq.web.dashboard import Dashboard
from taskq.web.links import TOKEN, Links
from taskq.web.passwords import Passwords

#: The names of this machine for itself.
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
#: How long open requests, such as a log that is followed, may take when it ends.
_GRACE_S = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a dashboard is reached, and by whom.

    Attributes:
        host: an address of this machine.
        port: 0 for any that is free.
        uds: the path of a Unix socket in place of both, or None.
        auth: a file with names and passwords, or None for a link.
        hosts: further names by which browsers may reach it.
    """

    host: str
    port: int
    uds: Path | None = None
    auth: Path | None = None
    hosts: Sequence[str] = ()


def serve(q: TaskQ, place: Place, *, read_only: bool, hide_args: bool) -> None:
    """Serves the dashboard of an application until a signal ends it.

    Raises:
        ConfigError: the place cannot be used, or is open to others without a password.
    """
    is_local = place.uds is not None or place.host in LOCAL_HOSTS
    if place.auth is None and not is_local:
        raise ConfigError(
            f"--host {place.host}: others can reach that address: give names and passwords with --auth FILE, and put "
            "a proxy with HTTPS in front; or stay on 127.0.0.1 and forward the port with ssh -L"
        )
    passwords = None if place.auth is None else Passwords(place.auth)
    bound = _unix(place.uds) if place.uds is not None else _tcp(place.host, place.port)
    bound.listen()  # before the link is told: whoever opens it at once waits until the pages are served
    signal.signal(signal.SIGTERM, _end)
    port = None if place.uds is not None else bound.getsockname()[1]
    base = f"http://{_in_url(place.host)}:{port}/" if port is not None else "http://localhost/"
    access: Resolver
    if passwords is not None:
        access = passwords
        print(base, flush=True)
    else:
        access = Links(getuser(), lambda token: print(f"{base}?{TOKEN}={token}", flush=True))
        access.new_link()
    _log_actions()
    # whoever binds another address than loopback has a password, and the proxy in front of it knows the names
    hosts = [*LOCAL_HOSTS, *place.hosts] if is_local or place.hosts else []
    app = Dashboard(q, access=access, read_only=read_only, hide_args=hide_args, hosts=hosts)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    try:
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        bound.close()
        if place.uds is not None:
            place.uds.unlink(missing_ok=True)


def _end(_number: int, _frame: object) -> None:
    """Also when uvicorn has ended in order at a signal: it raises it again."""
    sys.exit(0)


def _tcp(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is taken: is a dashboard open already? Give another --port"
            ) from None
        raise ConfigError(f"--host {host} --port {port}: {error.strerror}") from None
    return bound


def _unix(path: Path) -> socket.socket:
    """A socket that only this user may open."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _is_served(path):
            path.unlink()  # what a process has left that was killed
        bound.bind(str(path))
    except OSError as error:
        taken = "something is there already" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(f"--uds {path}: {taken}") from None
    finally:
        os.umask(before)
    return bound


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _log_actions() -> None:
    """Writes what visitors do to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("taskq.web")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
