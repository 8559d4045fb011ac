"""The guides in docs/ keep their word: their Python runs as it is pasted, and their commands do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fleet import Fleet, running, wait_until
from pages import imported, paste, run, run_line, shell_lines, text_of

from taskq import TaskQ, testing


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for what is pasted. The queues are beside it."""
    folder = tmp_path / "pasted"
    folder.mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("TASKQ_URL", "TASKQ_APP"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the queue, for this process and those it starts."""
    home = tmp_path / "queue"
    monkeypatch.setenv("TASKQ_URL", str(home))
    return home


def test_readme(folder: Path, home: Path) -> None:
    paste("README.md", folder)
    with running(Fleet(home, f"{folder / 'thumbs.py'}:q")):
        asks = [line for line in shell_lines("README.md") if re.match(r"python \w+\.py|taskq [es]", line)]
        assert [run_line(folder, line).splitlines()[0] for line in asks[:2]] == ["cat.jpg at 128", '"cat.jpg at 256"']
        assert "succeeded" in run_line(folder, asks[2])


def test_install_and_watch(folder: Path, home: Path) -> None:
    """The client of the first page makes jobs, and the commands of the other one show them."""
    paste("install.md", folder)
    paste("watch.md", folder)
    with running(Fleet(home, f"{folder / 'thumbs.py'}:q")) as fleet:
        [command] = [line for line in shell_lines("install.md") if line.startswith("taskq enqueue")]
        assert run_line(folder, command) == '"cat.jpg at 256"\n'
        first, second, *mapped = run(folder, "client.py").splitlines()
        assert first == "cat.jpg at 256"
        assert re.fullmatch(r"[0-9a-f]{32} \w+ cat\.jpg at 128", second)
        assert mapped == ["a.jpg at 256", "b.jpg at 256"]

        *looks, cancel, stop, reload = shell_lines("watch.md")
        told = {}
        for line in looks:
            if line.split()[1] not in ("logs", "top", "web"):  # these do not end by themselves
                told[line.split()[1]] = run_line(folder, line, ID=second[:32])
        assert "8 enqueued" in told["status"]
        assert second[:32] in told["jobs"]
        assert "succeeded" in told["job"]
        assert "job.succeeded" in run_line(folder, "taskq logs thumbs.py:q --level debug")
        run_line(folder, reload)
        run(folder, "-m", *cancel.replace("ID", second[:32]).split(), codes=[1])  # this one has ended
        run_line(folder, stop)
        fleet.wait_for_end()


def test_enqueue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paste("enqueue.md", folder) == ["bulk.py", "tracing.py"]
    assert run(folder, "bulk.py").splitlines() == ["328350", "[1, 4, 9]", "1", "2", "3"]
    with imported(folder, "tracing") as tracing, testing.queue(tracing.q) as jobs:
        tracing.request_id.set("42")
        tracing.order(7)
        jobs.drain()
        [job] = tracing.q.jobs()
        assert job.meta == {"team": "billing", "tenant": "acme", "request": "42"}
        assert tracing.q.job(job.id).result() == "42"


def test_a_fleet_for_shop_needs_nothing_else(folder: Path) -> None:
    """Its tasks load in real consumers, and with the resources that a comment names no misfit is reported."""
    paste("options.md", folder)
    needs = re.search(r"taskq (worker --resources gpu=2)", text_of("options.md"))
    assert needs is not None
    run(folder, "-m", "taskq", *needs[1].split(), "--drain", "shop.py:q")
    log = run(folder, "-m", "taskq", "logs", "shop.py:q")
    assert "fleet.stopped" in log
    assert "fleet.misfit" not in log


def test_failures(folder: Path) -> None:
    paste("failures.md", folder)
    with imported(folder, "printing") as printing, testing.queue(printing.q) as jobs:
        printed = printing.print_book.enqueue(5)
        refused = printing.print_book.enqueue(501)
        put_off = printing.print_book.enqueue(5, is_printer_on=False)
        jobs.drain(10)
        assert printed.result() == 5
        assert [attempt.number for attempt in printed.info().history] == [1, 2]
        assert refused.state() == "cancelled"
        assert put_off.state() == "scheduled"


def test_failed_jobs(folder: Path) -> None:
    paste("failed-jobs.md", folder)
    with imported(folder, "repair") as repair, testing.queue(repair.q):
        assert repair.mend_all() == ["part 1 is mended", "ValueError: no spare for part 3"]
        [failed] = repair.q.jobs("failed", text="spare", attempts=1)
        repair.broken.clear()
        assert repair.try_again() == 1
        assert repair.q.job(failed.id).result() == "part 3 is mended"
        assert repair.q.purge("failed", older_than=7 * 86400) == 0


def test_limits_and_order(folder: Path) -> None:
    paste("limits-and-order.md", folder)
    with imported(folder, "accounts") as accounts, testing.queue(accounts.q) as jobs:
        assert accounts.visit()
        for version in (1, 2, 3):
            accounts.save(version)
        jobs.drain(61)
        ended = accounts.q.jobs(task="index")
        assert [job.state for job in ended] == ["succeeded", "cancelled", "cancelled"]
        assert accounts.q.job(ended[0].id).result() == 3


def test_schedules(folder: Path) -> None:
    paste("schedules.md", folder)
    assert run(folder, "nightly.py") == "['clean_up', 'report.42']\n"


def test_workflows(folder: Path) -> None:
    paste("workflows.md", folder)
    lengths = [len(f"<p>https://example.org/{number}</p>") for number in (1, 2)]
    assert run(folder, "pages.py").splitlines() == [
        f"{lengths[0]} in pages",
        "['<p>https://example.org/1</p>', '<p>https://example.org/2</p>']",
        str(sum(lengths)),
        "0 in log",
    ]


def test_fleets(folder: Path) -> None:
    paste("fleets.md", folder)
    assert run(folder, "crawler.py") == f"{50 * len('https://example.org/00')}\n"
    code = "from models import *\nif __name__ == '__main__':\n    with q.fleet(consumers=1): print(predict.enqueue('x').result(30))\n"
    (folder / "asked.py").write_text(code)
    assert run(folder, "asked.py") == "x: loaded\n"
    log = run(folder, "-m", "taskq", "logs", "models.py:q", "--task", "predict")
    assert log.index("begins") < log.index("ends")


def test_testing(folder: Path) -> None:
    paste("testing.md", folder)
    assert "2 passed" in run(folder, "-m", "pytest", "-p", "no:cacheprovider", "-q", "test_shop.py")


def test_private(folder: Path) -> None:
    paste("watch.md", folder)
    with imported(folder, "private") as private, testing.queue(private.q):
        arguments = private.q.tasks["send_mail"].enqueue("ann@example.org").info(arguments=True).arguments
        assert (arguments.args, arguments.left_out) == (["***"], None)


def test_web(folder: Path) -> None:
    paste("web.md", folder)
    code = (
        "import ops, re; from starlette.testclient import TestClient\n"
        "def asked(user): return client.get('/taskq/queues', headers={'X-User': user})\n"
        "with ops.q.fleet(consumers=1), TestClient(ops.app) as client:\n"
        "    ops.q.pause('mail')\n"
        "    print(*(asked(user).status_code for user in ('ann', 'bob', 'eve')), 'value=\"resume\"' in asked('bob').text)\n"
    )
    (folder / "asked.py").write_text(code)
    assert run(folder, "-W", "ignore", "asked.py") == "200 200 403 True\n"


def test_tutorial(folder: Path, home: Path) -> None:
    """From the first picture to the last stop; a consumer is killed on the way."""
    paste("tutorial.md", folder)
    worker, make, *asks = shell_lines("tutorial.md")
    assert worker == "taskq worker pictures.py:q"
    with running(Fleet(home, f"{folder / 'pictures.py'}:q", prefix=("env", "-C", str(folder)))) as fleet:
        assert run_line(folder, make).splitlines()[0] == "picture19.128.png"
        wait_until(lambda: TaskQ("pictures").jobs("failed"), "the failed job")
        failed, errors, copy, retry, logs, schedule, stop = asks
        assert "thumbnail" in run_line(folder, failed)
        assert "missing.png" in run_line(folder, errors)
        fleet.kill_consumer()
        source, target = copy.split()[1:]
        (folder / target).write_bytes((folder / source).read_bytes())
        run_line(folder, retry)
        wait_until((folder / "missing.128.png").exists, "the mended picture")
        assert "shrinking" in run_line(folder, logs)
        assert "sweep" in run_line(folder, schedule)
        run_line(folder, stop)
        fleet.wait_for_end()
