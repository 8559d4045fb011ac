"""`taskq worker` is read without typer, or by typer: in the same way."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from typer.testing import CliRunner

from taskq.cli.config.options import FLEET_OPTIONS
from taskq.cli.program import build
from taskq.cli.worker import command
from taskq.cli.worker.start import read_words

PLAIN = [
    [],
    ["shop.py:q"],
    ["shop.tasks:q", "--consumers", "8", "--queues", "mail,images"],
    ["--consumers=8", "shop.py:q"],
    ["--consumers", "2", "--consumers", "3", "a:q"],
    ["a:q", "--lane", "mail:1", "--lane=*:2", "--lane", "a,b:3"],
    ["a:q", "--drain"],
    ["a:q", "--no-drain", "--threads", " 4 "],
    ["a:q", "--drain", "--no-drain"],
    ["a:q", "--log-level", ""],
    ["", "--stop-timeout=10m"],
    ["a:q", "--queues", "a=b,c=d"],
]
FOR_TYPER = [
    ["--help"],
    ["a:q", "-h"],
    ["a:q", "b:q"],
    ["a:q", "--consumer", "3"],
    ["a:q", "--consumers"],
    ["a:q", "--consumers", "-1"],
    ["a:q", "--drain=yes"],
    ["a:q", "-drain"],
    ["--", "a:q"],
    ["-"],
    ["--no-consumers", "2"],
]


@pytest.mark.parametrize("words", PLAIN)
def test_it_is_read_as_typer_reads_it(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str | None, Mapping[str, str]]] = []
    monkeypatch.setattr(command, "run_fleet", lambda app, texts: read.append((app, texts)) or 0)  # type: ignore[func-returns-value]
    assert CliRunner().invoke(build(["worker"]), ["worker", *words]).exit_code == 0
    assert read == [read_words(words)]


@pytest.mark.parametrize("words", FOR_TYPER)
def test_what_is_out_of_the_ordinary_is_left_to_typer(words: list[str]) -> None:
    assert read_words(words) is None


def test_each_option_can_be_read() -> None:
    for option in FLEET_OPTIONS:
        words = [f"--{option.name}"] if option.is_flag else [f"--{option.name}", "x"]
        assert read_words(words) == (None, {option.name: "true" if option.is_flag else "x"})
