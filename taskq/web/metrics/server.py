"""Serves the metrics of a fleet alone, without the dashboard: at an address, at a Unix socket, or in a file."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from taskq.client.transport.api import QueueClient
from taskq.model.errors import ConfigError
from taskq.web.metrics.text import ask, text_of


class _Handler(BaseHTTPRequestHandler):
    """Answers `GET /metrics`."""

    client: ClassVar[QueueClient]

    def do_GET(self) -> None:
        """Answers with the metrics."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "the metrics are at /metrics")
            return
        text = text_of(ask(self.client), self.headers.get("Accept", ""))
        self.send_response(200)
        self.send_header("Content-Type", text.content_type)
        self.send_header("Content-Length", str(len(text.body)))
        self.end_headers()
        self.wfile.write(text.body)

    def address_string(self) -> str:
        """Who asks; somebody at a Unix socket has no address."""
        return self.client_address[0] if self.client_address else "a local user"

    def log_message(self, format: str, *args: object) -> None:
        """Does not log each scrape."""


class _UnixServer(ThreadingHTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        """Binds the socket, which only this user may open."""
        before = os.umask(0o177)
        try:
            self.socket.bind(self.server_address)
        finally:
            os.umask(before)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """A connection, with what the handler takes for its address."""
        connection, _ = self.socket.accept()
        return connection, ("a local user", 0)


def serve_at(client: QueueClient, address: str) -> None:
    """Serves the metrics at an address until a signal ends it.

    Args:
        address: ``HOST:PORT``, or ``:PORT`` for 127.0.0.1.

    Raises:
        ConfigError: it is not an address, or cannot be used.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise ConfigError(f"--listen {address}: write HOST:PORT, such as 127.0.0.1:9737")
    handler = type("_Own", (_Handler,), {"client": client})
    try:
        server = ThreadingHTTPServer((host.strip("[]") or "127.0.0.1", int(port)), handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--listen {address}: {getattr(error, 'strerror', None) or error}") from None
    print(f"http://{host or '127.0.0.1'}:{server.server_address[1]}/metrics", flush=True)
    with server:
        server.serve_forever()


def serve_unix(client: QueueClient, path: Path) -> None:
    """Serves the metrics at a Unix socket of this user until a signal ends it.

    Raises:
        ConfigError: the socket cannot be made.
    """
    handler = type("_Own", (_Handler,), {"client": client})
    try:
        server = _UnixServer(str(path), handler)  # type: ignore[arg-type]  # it takes what its family takes
    except OSError as error:
        raise ConfigError(f"--uds {path}: {error.strerror}") from None
    print(path, flush=True)
    try:
        with server:
            server.serve_forever()
    finally:
        path.unlink(missing_ok=True)


def write_file(client: QueueClient, path: Path) -> None:
    """Writes the metrics to a file, for the textfile collector of node_exporter: it sees the old file or the new one.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(descriptor, "wb") as file:
                file.write(text_of(ask(client)).body)
                os.fchmod(descriptor, 0o644)  # node_exporter runs as another user
            os.replace(made, path)
        except BaseException:
            os.unlink(made)
            raise
    except OSError as error:
        raise ConfigError(f"--textfile {path}: {error.strerror}") from None


def keep_file(client: QueueClient, path: Path, every_s: float) -> None:
    """Writes the metrics to a file again and again, until a signal ends it."""
    while True:
        write_file(client, path)
        time.sleep(every_s)
