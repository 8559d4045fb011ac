"""`manage.py taskq worker`, `status`, `logs` and all other commands of taskq, for the queue of a backend."""

from __future__ import annotations

from django.core.management.base import BaseCommand, CommandError

from taskq.contrib.commands import become_taskq
from taskq.contrib.django.backend import TaskqBackend, backend_of


class Command(BaseCommand):
    """Passes its words on to taskq."""

    help = "Runs a command of taskq: worker, status, logs, jobs ... `manage.py taskq --help` lists them."

    def run_from_argv(self, argv: list[str]) -> None:
        """Django's own options would hide those of taskq: the words are passed on as they are.

        `--backend=ALIAS`, before the name of the command, chooses one of several backends of TASKS.
        """
        words, alias = argv[2:], "default"
        if words and words[0].startswith("--backend="):
            alias = words[0].partition("=")[2]
            words = words[1:]
        backend = backend_of(alias)
        if not isinstance(backend, TaskqBackend):
            raise CommandError(f"the backend {alias!r} in TASKS is a {type(backend).__name__}, not a TaskqBackend")
        become_taskq(backend.q, words, f"taskq.contrib.django.worker:{alias}")
