"""The servers that some peers need, each in a directory of its own, as long as a measurement lasts."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

START_TIMEOUT_S = 20.0


def missing(server: str) -> str:
    """What is not installed, if a server is wanted that is not there; otherwise empty."""
    if server == "redis" and shutil.which("redis-server") is None:
        return "because redis-server is not installed"
    if server == "postgres" and _postgres() is None:
        return "because postgres and initdb are not installed"
    return ""


def start(server: str, directory: Path, stack: ExitStack) -> dict[str, str]:
    """Starts a server until the stack is closed; returns the variables that lead to it."""
    if server == "redis":
        port = _free_port()
        # all defaults: snapshots every few minutes, nothing is synced when a command is answered
        process = _run(["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)], stack)
        _await(port, process)
        return {"PEERS_REDIS": f"redis://127.0.0.1:{port}/0", "PEERS_SERVER_PID": str(process.pid)}
    if server == "postgres":
        return _start_postgres(directory, stack)
    return {}


def _start_postgres(directory: Path, stack: ExitStack) -> dict[str, str]:
    folder = _postgres()
    assert folder is not None
    data, port = directory / "postgres", _free_port()
    data.mkdir()
    as_user: list[str] = []
    if os.getuid() == 0:  # it refuses to run as root
        directory.chmod(0o755)
        shutil.chown(data, "postgres")
        as_user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    initdb = [*as_user, str(folder / "initdb"), "-D", str(data), "-A", "trust", "-U", "peers"]
    subprocess.run(initdb, check=True, cwd=data, **quiet)  # type: ignore[call-overload]
    command = [*as_user, str(folder / "postgres"), "-D", str(data), "-p", str(port), "-k", "", "-h", "127.0.0.1"]
    process = _run(command, stack)
    _await(port, process)
    return {
        "PEERS_POSTGRES": f"host=127.0.0.1 port={port} user=peers dbname=postgres",
        "PEERS_SERVER_PID": str(process.pid),
    }


def _postgres() -> Path | None:
    """The folder with its programs."""
    found = shutil.which("postgres")
    folders = [Path(found).parent] if found else []
    folders += [Path(path) for path in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def _run(command: list[str], stack: ExitStack) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)

    def stop() -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)
    return process


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"a server did not start: {process.args}")
