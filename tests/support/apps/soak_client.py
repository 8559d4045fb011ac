"""A client of tests/postgres_soak.py in a process of its own, on one of the machines: it may be killed at any time.

    python soak_client.py NAME PATH NOTES DSN

It notes what it means to do before it does it, and what was acknowledged after that. It rests while the file
PATH.enough is there.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from uuid import uuid4

import psycopg

sys.path.insert(0, str(Path(__file__).parent))

import soak_machines

from taskq import TaskQError


def main(name: str, path: str, notes: str, dsn: str) -> None:
    descriptor = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(*words: str) -> None:
        os.write(descriptor, (" ".join((*words, str(time.monotonic()))) + "\n").encode())

    number = 0
    while True:
        number += 1
        label = f"{name}-{os.getpid()}-{number}"
        time.sleep(random.uniform(0.01, 0.2))
        while Path(f"{path}.enough").exists():
            time.sleep(0.1)
        note("intent", label)
        try:
            if random.random() < 0.5:
                note("acked", label, soak_machines.work.enqueue(path, label, 0.001).id)
                continue
            order = str(uuid4())
            note("order", label, order)
            with psycopg.connect(dsn, connect_timeout=5) as connection:
                connection.execute("INSERT INTO public.orders VALUES (%s)", [order])
                with soak_machines.q.within(connection):
                    job = soak_machines.work.enqueue(path, label, 0.0)
            note("acked", label, job.id)
        except (TaskQError, psycopg.Error) as error:
            note("refused", label, type(error).__name__)


if __name__ == "__main__":
    main(*sys.argv[1:])
