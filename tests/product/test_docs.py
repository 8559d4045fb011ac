"""The pages about other programs, and about deploying, keep their word: their blocks run as they are pasted."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml
from celery_integration import NOT_RUN
from fastapi.testclient import TestClient
from fleet import Fleet, running, wait_until
from pages import (
    DOCS,
    PAGES,
    ROOT,
    blocks,
    imported,
    paste,
    run,
    run_line,
    shell_lines,
    table_of,
    text_of,
)

from taskq import BrokerUnavailable, TaskQ
from taskq.cli.config.project import find_project
from taskq.cli.config.sources import settings_of, values
from taskq.cli.worker.start import read_words
from taskq.client.options.support import POSTGRES
from taskq.model.exits import Exit

#: Each page with blocks of Python, and the files that they make; each is run below, or in test_guides.py.
FILES = {
    "README.md": ["thumbs.py", "client.py"],
    "celery.md": ["proj/celery.py", "proj/tasks.py", "client.py"],
    "coming-from.md": ["moved.py"],
    "django.md": ["shop/settings.py", "shop/tasks.py", "shop/urls.py", "manage.py", "shop/staff_urls.py"],
    "enqueue.md": ["bulk.py", "tracing.py"],
    "events.md": ["shop_log.py"],
    "executors.md": ["squares.py", "reports.py", "client.py", "others.py"],
    "failed-jobs.md": ["repair.py"],
    "failures.md": ["printing.py"],
    "fastapi.md": ["orders.py"],
    "fleets.md": ["crawler.py", "models.py"],
    "flask.md": ["newsletter.py"],
    "install.md": ["thumbs.py", "client.py"],
    "joblib.md": ["grid.py"],
    "limits-and-order.md": ["accounts.py"],
    "options.md": ["shop.py"],
    "schedules.md": ["nightly.py"],
    "testing.md": ["test_shop.py"],
    "tracing.md": ["shop.py", "mail.py"],
    "tutorial.md": ["pictures.py", "make.py"],
    "watch.md": ["private.py"],
    "web.md": ["ops.py"],
    "workflows.md": ["pages.py"],
}
#: Pages whose blocks of Python are parts of programs: where they are run.
PARTS = {"postgresql.md": "tests/process/test_postgres_within.py"}
#: Each page with blocks of sh: where they are run. What only installs something is not run there.
SHELL = {
    "README.md": "tests/product/test_guides.py",
    "celery.md": "tests/product/test_docs.py",
    "django.md": "tests/product/test_docs.py",
    "fastapi.md": "tests/product/test_docs.py",
    "flask.md": "tests/product/test_docs.py",
    "install.md": "tests/product/test_guides.py",
    "metrics.md": "tests/process/test_metrics.py",
    "postgresql.md": "tests/process/test_machines.py",
    "speed.md": "tests/product/test_bench.py",
    "top.md": "tests/process/test_top.py",
    "tutorial.md": "tests/product/test_guides.py",
    "watch.md": "tests/product/test_guides.py",
    "web.md": "tests/process/test_web_command.py",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the queue, for this process and those it starts."""
    home = tmp_path / "queue"
    monkeypatch.setenv("TASKQ_URL", str(home))
    return home


@pytest.mark.parametrize("page", FILES)
def test_each_block_is_run_by_a_test(page: str, tmp_path: Path) -> None:
    assert paste(page, tmp_path) == FILES[page]


def test_no_page_is_forgotten() -> None:
    assert [page for page in PAGES if blocks(page, "python")] == sorted([*FILES, *PARTS])
    assert [page for page in PAGES if blocks(page, "sh")] == sorted(SHELL)
    assert {path for path in (*PARTS.values(), *SHELL.values()) if not (ROOT / path).exists()} == set()


def test_the_page_about_postgresql_has_what_is_refused_there() -> None:
    table = (DOCS / "postgresql.md").read_text().partition("| refused | instead |")[2].partition("\n\n")[0]
    first = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    assert set(re.findall(r"`(?:@q\.)?(\w+)=?`", " ".join(first))) == set(POSTGRES.unsupported)


class Asked(NamedTuple):
    """A request that a page makes with curl."""

    method: str
    path: str
    body: Any


def asked(line: str, **words: str) -> Asked:
    """Reads a line with curl; words such as ID are replaced by what they stand for."""
    program, *arguments = shlex.split(line)
    assert program == "curl", line
    options = dict(pairwise(arguments))
    [path] = (word.partition("/")[2] for word in arguments if word.startswith("localhost:"))
    for word, meaning in words.items():
        path = path.replace(word, meaning)
    body = json.loads(options["-d"]) if "-d" in options else None
    return Asked(options.get("-X", "GET" if body is None else "POST"), f"/{path}", body)


def test_executors(tmp_path: Path, home: Path) -> None:
    paste("executors.md", tmp_path)
    printed = run(tmp_path, "squares.py").splitlines()
    assert printed[:3] == ["17", "[0, 1, 4, 9, 16]", "ran again"]
    assert "seven" in printed[3]
    with running(Fleet(home, f"{tmp_path / 'reports.py'}:q")):
        job_id, total = run(tmp_path, "client.py").splitlines()
        assert re.fullmatch("[0-9a-f]{32}", job_id)
        assert total == "6"
    assert run(tmp_path, "others.py").splitlines() == ["1024", "6"]


def test_celery(tmp_path: Path, home: Path) -> None:
    paste("celery.md", tmp_path)
    worker, client = (line.split() for line in shell_lines("celery.md"))
    assert (worker[0], client[1]) == ("taskq", "python")
    with subprocess.Popen(
        [sys.executable, "-m", *worker, "--consumers", "2"], cwd=tmp_path, stderr=subprocess.DEVNULL
    ) as fleet:
        try:
            name, _, loader = client[0].partition("=")
            printed = run(tmp_path, *client[2:], **{name: loader}).splitlines()
        finally:
            fleet.terminate()
    assert printed == ["3", "6", "20", "page after 2 retries"]


def test_redaction_of_the_log(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paste("events.md", tmp_path)
    with imported(tmp_path, "shop_log") as shop_log:
        event = {
            "event": "job.failed",
            "meta": {"customer": "Ada"},
            "error": "ValueError: 4111-1111-1111-1111 is wrong",
        }
        shop_log.hide(event)
        assert event == {"event": "job.failed", "meta": {}, "error": "ValueError: **** is wrong"}
        shop_log.hide({"event": "fleet.started"})


def test_the_page_about_celery_names_the_tests_that_are_not_run() -> None:
    rows = table_of("celery.md", "| Celery's test | why |\n|---|---|\n").splitlines()
    named = re.findall(r"`([a-z_0-9.]+)`", " ".join(row.split(" | ")[0] for row in rows))
    tests = [name.rpartition("::")[2].removeprefix("test_") for name in NOT_RUN]
    for test in tests:
        shown = [name for name in named if name == test or test.endswith(name.lstrip("._"))]
        of_class = [name for name in named if any(f"{name}::test_{test}" in full for full in NOT_RUN)]
        assert shown or of_class, test
    assert f"these {len(NOT_RUN)} are not run" in text_of("celery.md")


def test_coming_from(tmp_path: Path, home: Path) -> None:
    paste("coming-from.md", tmp_path)
    assert run(tmp_path, "moved.py").splitlines() == ["3", "1", "page", "[1, 2]"]


def test_fastapi(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paste("fastapi.md", tmp_path)
    monkeypatch.setenv("DEBUG", "1")
    with imported(tmp_path, "orders") as orders, TestClient(orders.app) as client:
        assert orders.app.state.taskq is orders.q
        _, order, receipt, status = shell_lines("fastapi.md")
        method, path, body = asked(order)
        answer = client.request(method, path, json=body)
        assert answer.status_code == 202
        method, path, _ = asked(receipt, ID=answer.json()["job"])
        assert client.request(method, path).json() == {"customer": "Ada", "total": 2.5}
        for unknown in ("0" * 32, "nothing"):
            assert client.get(f"/receipts/{unknown}").status_code == 404
        assert "1 succeeded" in run_line(tmp_path, status)
        job = orders.invoice.enqueue({"customer": "Bob", "items": [{"name": "tea", "price": -1}]})
        answer = client.get(f"/receipts/{job.id}")
        assert answer.status_code == 500
        assert "argument 'order': Order: items.0.price: Input should be greater than 0" in answer.json()["detail"]
        receipt = orders.invoice.enqueue(orders.Order(customer="Eve")).result(30)
        assert receipt == orders.Receipt(customer="Eve", total=0)


def test_tracing(tmp_path: Path) -> None:
    paste("tracing.md", tmp_path)
    calls = "with testing.inline(app.q): print(app.{}.result()){}"
    start = "from taskq import testing; import {} as app\n"
    printed = run(
        tmp_path, "-c", start.format("shop") + calls.format("pack.enqueue(7)", "; app.provider.force_flush()")
    )
    assert printed.startswith("packed 7")
    assert '"name": "enqueue pack"' in printed
    assert '"name": "process pack"' in printed
    assert run(tmp_path, "-c", start.format("mail") + calls.format("send.enqueue('a@b')", "")) == "sent to a@b\n"


def test_flask(tmp_path: Path, home: Path) -> None:
    paste("flask.md", tmp_path)
    worker, server, subscribe, result = shell_lines("flask.md")
    assert server == "flask --app newsletter run"
    flask = [sys.executable, "-m", *worker.split()]
    with subprocess.Popen([*flask, "--consumers", "1"], cwd=tmp_path, stderr=-3) as fleet:
        try:
            with imported(tmp_path, "newsletter") as newsletter:
                wait_until(lambda: _is_running(newsletter.q), "the fleet")
                client = newsletter.app.test_client()
                method, path, _ = asked(subscribe)
                job_id = client.open(path, method=method).json["job"]
                method, path, _ = asked(result, ID=job_id)
                told = client.open(path, method=method).json
                unknown = [client.get(f"/jobs/{each}").status_code for each in ("0" * 32, "nothing")]
            assert told == {"result": "from news@example.org to ada@example.org"}
            assert unknown == [404, 404]
            assert job_id in run(tmp_path, *flask[1:-1], "job", job_id)
        finally:
            fleet.terminate()
    assert not psutil.pid_exists(fleet.pid)


def test_joblib(tmp_path: Path) -> None:
    paste("joblib.md", tmp_path)
    assert run(tmp_path, "grid.py").splitlines() == ["[0, 1, 4, 9, 16]", "3 True"]
    assert (tmp_path / "was-killed").exists()


SITE = """
import time
from django.db import connection, transaction
from django.test import Client
from django_tasks import TaskResultStatus, default_task_backend
from shop.tasks import fail, send_receipt

client = Client(SERVER_NAME="localhost")
result_id = client.get(ORDER).json()["result"]
result = send_receipt.get_result(result_id)
while not result.is_finished:
    time.sleep(0.01)
    result.refresh()
print(client.get(RESULT.replace("ID", result_id)).json(), result.args)
print([client.get(RESULT.replace("ID", each)).status_code for each in ("0" * 32, "nothing")])
failed = fail.enqueue(why="as expected")
default_task_backend.q.job(failed.id).wait(30)
failed.refresh()
print(failed.status, failed.errors[0].exception_class, failed.attempts, fail.get_result(failed.id).kwargs)
try:
    with transaction.atomic():
        lost = send_receipt.enqueue(8)
        raise LookupError
except LookupError:
    print(len(default_task_backend.q.jobs(task="shop.tasks.send_receipt")))
"""


#: What `startproject` gives a site with an admin, and the pages for its staff.
STAFF_SETTINGS = """
from shop.settings import *
ROOT_URLCONF = "shop.staff_urls"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = [*INSTALLED_APPS, *(f"django.contrib.{name}" for name in ("auth", "contenttypes", "sessions", "messages", "admin"))]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
processors = [f"django.contrib.{name}" for name in ("auth.context_processors.auth", "messages.context_processors.messages")]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
    "OPTIONS": {"context_processors": ["django.template.context_processors.request", *processors]}}]
"""
STAFF = """
import asyncio
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import AsyncClient, Client
from shop.tasks import fail
from django_tasks import default_task_backend

call_command("migrate", verbosity=0)
User.objects.create_superuser("ann")
User.objects.create_user("bob", is_staff=True)
User.objects.create_user("eve")
clients = {name: Client() for name in ("ann", "bob", "eve", "nobody")}
for name in ("ann", "bob", "eve"):
    clients[name].force_login(User.objects.get(username=name))
for name, client in clients.items():
    answer = client.get("/admin/taskq/queues")
    print(name, answer.status_code, answer.headers.get("Location"))
job = fail.enqueue(why="as expected")
default_task_backend.q.job(job.id).wait(30)
page = clients["ann"].get(f"/admin/taskq/jobs/{job.id}").content.decode()
print("as expected" in page, "/admin/taskq/static/dashboard.css" in page, 'value="retry"' in page)
print('value="retry"' in clients["bob"].get(f"/admin/taskq/jobs/{job.id}").content.decode())
form, own = ("action=pause&name=mail", "application/x-www-form-urlencoded"), {"HTTP_SEC_FETCH_SITE": "same-origin"}
strict = Client(enforce_csrf_checks=True)
strict.force_login(User.objects.get(username="ann"))
print(clients["bob"].post("/admin/taskq/actions", *form, **own).status_code)
print(strict.post("/admin/taskq/actions", *form).status_code, strict.post("/admin/taskq/actions", *form, **own).status_code)
print(default_task_backend.q.status().paused)
print(clients["nobody"].get("/admin/taskq/readyz").content, clients["ann"].get("/admin/taskq/nowhere").status_code)
stream = clients["ann"].get("/admin/taskq/log/stream")
print(next(stream.streaming_content)[:2] in (b": ", b"da"))
stream.close()

async def follow():
    client = AsyncClient()
    await client.aforce_login(await User.objects.aget(username="ann"))
    stream = await client.get("/admin/taskq/log/stream")
    async for part in stream.streaming_content:
        return part[:2] in (b": ", b"da")

print(asyncio.run(follow()))
"""


def test_the_dashboard_below_the_admin_of_django(tmp_path: Path, home: Path) -> None:
    paste("django.md", tmp_path)
    (tmp_path / "shop/staff.py").write_text(STAFF_SETTINGS)
    (tmp_path / "visit.py").write_text(f"import django\ndjango.setup()\n{STAFF}")
    environment = {"DJANGO_SETTINGS_MODULE": "shop.staff", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "manage.py", "taskq", "worker", "--consumers", "1"]
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **environment}, stderr=-3) as fleet:
        try:
            wait_until(lambda: _is_running(TaskQ("shop")), "the fleet")
            told = run(tmp_path, "visit.py", **environment).splitlines()
        finally:
            fleet.terminate()
    login = "/admin/login/?next=/admin/taskq/queues"
    assert told == [
        *("ann 200 None", "bob 200 None", "eve 403 None", f"nobody 302 {login}"),
        "True True True",
        "False",
        "403",
        "403 200",
        "['mail']",
        "b'ready\\n' 404",
        "True",
        "True",
    ]


def test_django(tmp_path: Path, home: Path) -> None:
    paste("django.md", tmp_path)
    worker, server, order, result, status = shell_lines("django.md")
    assert server == "python manage.py runserver"
    site = f"ORDER, RESULT = {asked(order).path!r}, {asked(result).path!r}\n{SITE}"
    command = [sys.executable, *worker.split()[1:], "--consumers", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=-3) as fleet:
        try:
            wait_until(lambda: _is_running(TaskQ("shop")), "the fleet")
            environment = {"DJANGO_SETTINGS_MODULE": "shop.settings", "PYTHONPATH": str(tmp_path)}
            (tmp_path / "visit.py").write_text(f"import django\ndjango.setup()\n{site}")
            assert run(tmp_path, "visit.py", **environment).splitlines() == [
                "{'status': 'SUCCESSFUL', 'value': 'receipt of order 7'} [7]",
                "[404, 404]",
                "FAILED <class 'ValueError'> 1 {'why': 'as expected'}",
                "1",
            ]
            assert "1 succeeded   1 failed" in run_line(tmp_path, status)
            assert "shop.tasks.fail" in run(tmp_path, "manage.py", "taskq", "jobs", "--state", "failed")
        finally:
            fleet.terminate()


def stop_timeout_s(command: list[str]) -> float:
    """That of a fleet which a file starts; the command is read as taskq reads it."""
    assert command[:3] == ["taskq", "worker", "thumbs:q"]
    read = read_words(command[2:])
    assert read is not None
    return settings_of(values(read[1], find_project())).stop_timeout_s


def test_the_unit_is_one_of_systemd(tmp_path: Path) -> None:
    [unit] = blocks("deploy.md", "ini")
    words = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))
    command = words["ExecStart"].split()
    assert stop_timeout_s(["taskq", *command[1:]]) + 10 < int(words["TimeoutStopSec"])
    stopped = {str(int(code)) for code in (Exit.USAGE, Exit.APP, Exit.ALREADY_RUNNING, Exit.DIRECTORY, Exit.JOURNAL)}
    assert set(words["RestartPreventExitStatus"].split()) == stopped
    if shutil.which("systemd-analyze"):  # what a container has not is checked where there is a whole system
        path = tmp_path / "thumbs.service"
        path.write_text(unit.replace(command[0], sys.executable).replace("User=thumbs\n", ""))
        checked = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_containers_stop_before_they_are_killed(home: Path) -> None:
    home.mkdir(mode=0o700)
    [dockerfile] = blocks("deploy.md", "dockerfile")
    compose, kubernetes = map(yaml.safe_load, blocks("deploy.md", "yaml"))
    command = json.loads(dockerfile.splitlines()[-1].removeprefix("CMD "))
    grace_s = int(compose["services"]["fleet"]["stop_grace_period"].removesuffix("s"))
    assert stop_timeout_s(command) + 10 <= grace_s
    pod = kubernetes["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["args"] == command
    assert stop_timeout_s(command) + 10 <= pod["terminationGracePeriodSeconds"]
    probes = [container[f"{kind}Probe"]["exec"]["command"] for kind in ("startup", "readiness", "liveness")]
    for probe in [*probes, json.loads(re.search(r"HEALTHCHECK .* CMD (\[.*\])", dockerfile)[1])]:
        assert probe[:2] == ["taskq", "health"]
        done = subprocess.run([sys.executable, "-m", *probe], stderr=subprocess.DEVNULL, check=False)
        assert done.returncode == Exit.NO_FLEET


def test_containers_that_share_the_volume_share_the_queue(tmp_path: Path, home: Path) -> None:
    """As in compose.yaml: what enqueues has processes of its own, which those of the fleet cannot see."""
    paste("install.md", tmp_path)
    code = (
        "import os; from thumbs import thumbnail; print(os.getpid(), thumbnail.enqueue('cat.jpg').result(timeout=20))"
    )
    container = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a namespace of processes")
    with running(Fleet(home, f"{tmp_path / 'thumbs.py'}:q", prefix=container)) as fleet:
        client = [*container, sys.executable, "-c", code]
        told = subprocess.run(client, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert (told.returncode, told.stdout) == (0, "1 cat.jpg at 256\n"), told.stderr
        [guardian] = psutil.Process(fleet.guardian_pid).children()  # that is unshare, which passes no signals on
        guardian.terminate()
        fleet.wait_for_end()


def _is_running(q: TaskQ) -> bool:
    try:
        return bool(q.status().consumers)
    except BrokerUnavailable:
        return False
