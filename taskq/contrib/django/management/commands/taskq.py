"""`manage.py taskq worker`, `status`, `logs` and all other commands of taskq, for the queue of a backend."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand

from taskq.contrib.commands import become_taskq
from taskq.contrib.django.backend import backend_of
from taskq.model.exits import Exit

#: What may stand before the name of the command; Django itself obeys the last two.
_OPTIONS = ("--backend", "--settings", "--pythonpath")


class Command(BaseCommand):
    """Passes its words on to taskq."""

    help = "Runs a command of taskq: worker, status, logs, jobs ... `manage.py taskq --help` lists them."

    def run_from_argv(self, argv: list[str]) -> None:
        """Django's own options would hide those of taskq: the words are passed on as they are.

        `--backend=ALIAS`, before the name of the command, chooses one of several backends of TASKS.
        """
        options, words = _split(argv[2:])
        alias = options.get("--backend", "default")
        try:
            backend = backend_of(alias)
        except ImproperlyConfigured as error:
            self.stderr.write(f"taskq: {error}")
            sys.exit(Exit.APP)
        become_taskq(backend.q, words, f"taskq.contrib.django.worker:{alias}")


def _split(words: Sequence[str]) -> tuple[dict[str, str], Sequence[str]]:
    """The options before the name of the command, and the rest."""
    found: dict[str, str] = {}
    while words and words[0].partition("=")[0] in _OPTIONS:
        name, has_value, value = words[0].partition("=")
        found[name] = value if has_value else "".join(words[1:2])
        words = words[1 if has_value else 2 :]
    return found, words
