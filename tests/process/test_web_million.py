"""Each page of the dashboard on a fleet with a million jobs: how much CPU time it takes, which does not depend on what
else the machine does. The smaller twins that count and use no clock are in tests/engines/test_journal.py."""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from pathlib import Path

import million
import psutil
import pytest
from apps import shown
from fleet import APPS, Fleet, running, use
from starlette.testclient import TestClient

from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.web import Dashboard

pytestmark = [pytest.mark.soak, pytest.mark.not_on_postgres("a journal is made"), pytest.mark.timeout(300)]

PATHS = (
    *("/", "/jobs", "/jobs?state=queued", "/jobs?state=failed", "/jobs?state=succeeded", "/jobs?task=clean"),
    *("/jobs?queue=quiet", "/jobs?text=server+77+refused", "/jobs?text=nowhere", "/jobs?text=acme-corp"),
    *("/jobs?attempts=2", "/jobs?since=1s", "/jobs?until=7d", "/jobs/{failed}", "/jobs/{queued}", "/failures"),
    *("/queues", "/tasks", "/tasks/send_mail", "/tasks/clean", "/consumers", "/schedules", "/workflows/{queued}"),
    *("/limits", "/log", "/broker", "/metrics"),
)
_MOST_S = 0.1
_ROUNDS = 5


def test_each_page_is_quick(tmp_path: Path) -> None:
    home = tmp_path / "queue"
    home.mkdir(0o700)
    with closing(SQLiteStore(home / "journal.db", "memory")) as store:
        million.fill(store, 1_000_000)
    slow: dict[str, float] = {}
    with running(Fleet(home, f"{APPS / 'shown.py'}:q", consumers=1)) as fleet:
        use(shown.q, fleet.home)
        ids = {state: shown.q.jobs(state, limit=1)[0].id for state in ("failed", "queued")}
        broker = psutil.Process(fleet.client.status().broker.pid)
        with TestClient(Dashboard(shown.q, access=lambda _request: "all"), "http://127.0.0.1:8737") as client:
            for path in ("/", *PATHS):  # the first one makes the templates
                took = statistics.median(_cpu_s(client, broker, path.format(**ids)) for _ in range(_ROUNDS))
                if took >= _MOST_S:
                    slow[path] = took
    assert slow == {}


def _cpu_s(client: TestClient, broker: psutil.Process, path: str) -> float:
    """The CPU time of the dashboard and of the broker for one look at a page."""
    before = time.process_time() + sum(broker.cpu_times()[:2])
    assert client.get(path).status_code == 200
    return time.process_time() + sum(broker.cpu_times()[:2]) - before
