"""The command line, run in a terminal of the test's own."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fleet import DEADLINE_S, environment_of

from taskq.cli import main
from taskq.model.exits import Exit

TASKQ = [sys.executable, "-m", "taskq"]


NO_JOB = "01a1fc6d758d747297f07fba5a1164ff"


Here = Callable[..., subprocess.CompletedProcess[str]]


def environment(home: Path | None, **more: str) -> dict[str, str]:
    """Our environment, with a queue's directory in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TASKQ_")}
    return {**kept, **(environment_of(home) if home else {}), "COLUMNS": "100", **more}


def taskq(home: Path | None, *arguments: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [*TASKQ, *arguments],
        env=environment(home, **more),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], code: Exit, *words: str) -> None:
    """Checks that a command told an error in one line, with these words and this exit code."""
    assert done.returncode == code, done
    assert not done.stdout
    assert done.stderr.startswith("taskq: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    """Runs a command in this process, which is ten times as fast: for the long tables."""
    monkeypatch.delenv("TASKQ_APP", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)

    def run(home: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
        for name, value in (environment_of(home) if isinstance(home, Path) else {"TASKQ_URL": home}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["taskq", *arguments])
        capsys.readouterr()  # what the test itself has printed until now
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return subprocess.CompletedProcess(sys.argv, code if isinstance(code, int) else 0, *capsys.readouterr())

    yield run
    for name in set(sys.modules) - modules:
        if not name.startswith(("taskq", "typer", "rich", "pydantic")):
            del sys.modules[name]


class Terminal:
    """A command in a pseudo-terminal of its own."""

    def __init__(self, home: Path, *arguments: str, program: Sequence[str] = TASKQ, **more: str) -> None:
        self.text = ""
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.execve(program[0], [*program, *arguments], environment(home, TERM="xterm-256color", **more))

    def type(self, keys: bytes) -> None:
        """Types at the terminal."""
        os.write(self._master, keys)

    def read_until(self, word: str) -> None:
        """Reads until the output has a word."""
        deadline = time.monotonic() + DEADLINE_S
        while word not in self.text:
            assert self._read(deadline), f"ended without {word!r}: {self.text}"

    def read_to_end(self) -> int:
        """Reads to the end of the command; returns its exit code."""
        deadline = time.monotonic() + DEADLINE_S
        while self._read(deadline):
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        """Hangs up."""
        os.close(self._master)

    def _read(self, deadline: float) -> bool:
        ready = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0]
        assert ready, f"nothing more came in time: {self.text}"
        try:
            data = os.read(self._master, 65536)
        except OSError:  # how Linux tells the end
            return False
        self.text += data.decode(errors="replace")
        return bool(data)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Opens terminals that are closed at the end of the test."""
    opened: list[Terminal] = []

    def open_terminal(*arguments: Any, **options: Any) -> Terminal:
        opened.append(Terminal(*arguments, **options))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()
