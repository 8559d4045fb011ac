"""Completion, in a real bash: the Tab key, after `taskq --install-completion`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fleet import DEADLINE_S
from terminal import Terminal, environment, taskq, terminal

from taskq.cli.program import COMMANDS

pytestmark = pytest.mark.not_on_postgres("no queue is asked")

__all__ = ["terminal"]  # a fixture

BASH = shutil.which("bash") or "/bin/bash"


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user with a home of his own, and a `taskq` on his PATH."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "bin").mkdir()
    program = folder / "bin" / "taskq"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m taskq "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    (folder / ".bashrc").write_text("PS1='READY> '\nbind 'set bell-style none'\n")
    told = {"HOME": str(folder), "PATH": path}
    installed = subprocess.run(
        [BASH, "-c", "taskq --install-completion; true"],
        env={**environment(None), **told},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert "bash completion installed" in installed.stdout, installed
    return told


@pytest.fixture
def shell(user: dict[str, str], home: Path, terminal: Callable[..., Terminal], tmp_path: Path) -> Terminal:
    """A bash at its prompt, in a folder with an application."""
    (tmp_path / "shop.py").touch()
    shell = terminal(home, program=[BASH, "-i"], **user)
    shell.read_until("READY> ")
    shell.type(f"cd {tmp_path}; clear\n".encode())
    shell.read_until("\x1b[H")
    return shell


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("taskq stat", "taskq status "),
        ("taskq resu", "taskq resume "),
        ("taskq worker --max-m", "taskq worker --max-memory "),
        ("taskq worker shop.py:q --dura", "taskq worker shop.py:q --durability "),
        ("taskq worker --durability pow", "taskq worker --durability power "),
        ("taskq jobs --state fai", "taskq jobs --state failed "),
        ("taskq logs --level warn", "taskq logs --level warning "),
        ("taskq schedule resu", "taskq schedule resume "),
        ("taskq worker sho", "taskq worker shop.py "),
    ],
)
def test_tab_completes(shell: Terminal, typed: str, completed: str) -> None:
    before = len(shell.text)
    shell.type(typed.encode() + b"\t")
    shell.read_until(completed)
    assert "Traceback" not in shell.text[before:]


def test_tab_twice_shows_all_commands(shell: Terminal) -> None:
    shell.type(b"taskq \t\t")
    for name in COMMANDS:  # they come in columns, so that the last one by name may come before others
        shell.read_until(name)
    assert set(COMMANDS) <= set(shell.text.split())


def test_a_command_completes_without_the_others(user: dict[str, str]) -> None:
    """Tab runs the program: after the name of a command it imports that one alone."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "taskq"],
        env={
            **environment(None),
            "_TASKQ_COMPLETE": "complete_bash",
            "COMP_WORDS": "taskq\nstop\n--",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert "--timeout" in done.stdout.split()
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "taskq.client.transport.blocking" in imported
    assert not imported & {"rich", "taskq.broker.guardian", "taskq.client.app"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [("taskq stat", "status"), ("taskq worker --dur", "--durability"), ("taskq worker ", ""), ("taskq job", "jobs")],
)
@pytest.mark.parametrize("instruction", ["complete_zsh", "complete_fish"])
def test_other_shells_are_answered(words: str, expected: str, instruction: str) -> None:
    """As their scripts ask."""
    more = {"_TASKQ_COMPLETE": instruction, "_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = taskq(None, **more)
    assert (done.returncode, done.stderr) == (0, "")
    assert expected in done.stdout


def test_the_script_can_be_shown(user: dict[str, str]) -> None:
    shown = subprocess.run(
        [BASH, "-c", "taskq --show-completion; true"],
        env={**environment(None), **user},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    ).stdout
    assert "complete -o default -F _taskq_completion taskq" in shown
