"""taskq beside other queues and the pools of the standard library, on this machine.

python tests/product/bench/peers [PEER...] [--rounds N] [--results FILE] [--environment PATH]

It makes an environment of its own with the newest versions from PyPI, starts the servers that are installed, and leaves
out what needs another. Each round measures each peer once, with servers, files and workers of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import report
import servers
from catalogue import PEERS, PeerEntry

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[3]
TIMEOUT_S = 120


def environment_for(entries: list[PeerEntry], folder: Path) -> dict[str, Path]:
    """Makes the virtual environments; returns the Python of each peer."""
    pythons: dict[str, Path] = {}
    requirements: dict[str, set[str]] = {}
    for entry in entries:
        requirements.setdefault(entry.environment, {"msgpack", "psutil"}).update(entry.requirements)
        pythons[entry.name] = folder / entry.environment / "bin" / "python"
    for name, wanted in requirements.items():
        place, stamp = folder / name, folder / name / "requirements.txt"
        installed = set(stamp.read_text().split()) if stamp.exists() else set()
        if wanted - installed:
            print(f"installing {', '.join(sorted(wanted))}", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", place], check=True)
            subprocess.run([place / "bin" / "pip", "install", "-q", "--upgrade", *wanted], check=True)
            stamp.write_text("\n".join(sorted(installed | wanted)))
        if any(entry.environment == name and entry.is_ours for entry in entries):
            subprocess.run([place / "bin" / "pip", "install", "-q", CHECKOUT], check=True)
    return pythons


def measure(entry: PeerEntry, python: Path) -> dict[str, Any]:
    """Measures a peer once, in a directory of its own."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True)))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TASKQ_")},
            "PYTHONPATH": str(HERE),
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            "PEERS_DIRECTORY": str(directory),
            "PEERS_BOARD": str(directory / "board"),
            "PEERS_NAME": entry.name,
        }
        environment |= servers.start(entry.server, directory, stack)
        process = subprocess.Popen(
            [python, HERE / "measure.py", entry.module],
            env=environment,
            cwd=directory,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        try:
            text, _ = process.communicate(timeout=TIMEOUT_S)
            found: dict[str, Any] = json.loads(text) if text else {"failed": f"exit code {process.returncode}"}
        except subprocess.TimeoutExpired:
            found = {"failed": f"not done within {TIMEOUT_S} s"}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    return {"peer": entry.name, **found}


def machine() -> str:
    """What the figures depend on."""
    cpu = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def _end(_signal: int, _frame: object) -> None:
    """SIGTERM ends it as Ctrl-C does: servers and workers are stopped."""
    raise SystemExit(128 + signal.SIGTERM)


def main() -> None:
    """Measures, and prints the table of all rounds."""
    signal.signal(signal.SIGTERM, _end)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peers", nargs="*", help=f"some of: {', '.join(PEERS)}; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="how often each peer is measured; 0 only prints")
    parser.add_argument("--results", type=Path, help="a file to which results are added; the table is of all in it")
    parser.add_argument(
        "--environment", type=Path, default=Path.home() / ".cache" / "taskq-peers", help="where packages are installed"
    )
    options = parser.parse_args()
    unknown = [name for name in options.peers if name not in PEERS]
    if unknown:
        parser.error(f"there is no peer {unknown[0]}: use some of {', '.join(PEERS)}")
    wanted = [entry for name, entry in PEERS.items() if not options.peers or name in options.peers]
    missing = {server: servers.missing(server) for server in {entry.server for entry in wanted}}
    for entry in wanted:
        if missing[entry.server]:
            print(f"left out: {entry.name}, {missing[entry.server]}", file=sys.stderr)
    wanted = [entry for entry in wanted if not missing[entry.server]]
    results: list[dict[str, Any]] = []
    if options.results and options.results.exists():
        results = [json.loads(line) for line in options.results.read_text().splitlines()]
    pythons = environment_for(wanted, options.environment) if options.rounds else {}
    for number in range(options.rounds):
        for entry in wanted:
            print(f"round {number + 1} of {options.rounds}: {entry.name}", file=sys.stderr)
            results.append(measure(entry, pythons[entry.name]))
            if options.results:
                with options.results.open("a") as file:
                    print(json.dumps(results[-1]), file=file)
    print(report.text_of(results, machine()))


if __name__ == "__main__":
    main()
