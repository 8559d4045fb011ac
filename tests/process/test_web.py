"""The dashboard, asked as a browser asks it: each page, each right, and those who must not get in. See
tests/process/test_web_browser.py for what a real browser makes of it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import million
import pytest
from apps import shown
from fleet import APPS, Fleet, in_directory, running, use, wait_until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount
from starlette.testclient import TestClient
from worlds import World, shown_world

from taskq import Job, TaskQ, chain
from taskq.client import failures
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.model.errors import ConfigError
from taskq.web import Access, Dashboard, Right, Visitor
from taskq.web.access import Resolver
from taskq.web.dashboard import VIEWS
from taskq.web.links import Links
from taskq.web.pages import STATIC
from taskq.web.passwords import Passwords
from taskq.web.views import jobs as jobs_view

SAME = {"Sec-Fetch-Site": "same-origin"}
PART = {"taskq-part": "1"}
SCRIPT = {**SAME, "taskq-script": "1"}
NO_JOB = "01a1fc6d758d747297f07fba5a1164ff"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    def enqueue() -> dict[str, Job[Any]]:
        failed = shown.send_mail.options(meta={"page": shown.SCRIPT})
        return {
            "done": shown.thumbnail.enqueue("cat.jpg", size=64),
            "failed": failed.enqueue(shown.SCRIPT, password="secret-word"),
            "crashed": shown.crash.enqueue("a job"),
        }

    with shown_world(tmp_path_factory.mktemp("web"), enqueue) as world:
        step = shown.step
        world.jobs["last"] = chain(step.options(delay=3600).step(), step.step(), step.step()).enqueue()
        yield world


@pytest.fixture
def browse(world: World) -> Iterator[Callable[..., TestClient]]:
    """Opens a dashboard of the fleet as a browser does, as the same machine does."""
    opened: list[TestClient] = []

    def make(**options: Any) -> TestClient:
        options.setdefault("access", lambda _request: "all")
        client = TestClient(Dashboard(shown.q, **options), "http://127.0.0.1:8737")
        opened.append(client.__enter__())
        return client

    yield make
    for client in opened:
        client.__exit__()


def page(client: TestClient, path: str, status: int = 200, **headers: str) -> str:
    """A page, which is HTML with all that keeps a browser from harm."""
    answer = client.get(path, headers=headers)
    assert answer.status_code == status, answer.text
    text = answer.text
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    assert "<script>alert" not in text, "what a job says is text"
    assert "<img src=x" not in text
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=(?=[\"'])", text), "the policy forbids it"
    assert "secret-word" not in text
    return text


#: What each view must say; {} are the ids of jobs.
SAYS = {
    "/": [
        "Look at this",
        "/failures?task=send_mail&amp;since=1h",
        "waits longest",
        "died 1 time",
        "Queue quiet is paused: 1 job waiting",
        "hold",
    ],
    "/jobs": ["{failed}", "{crashed}", "ConnectionError", "retry"],
    "/jobs?state=scheduled": ["{later}"],
    "/jobs?text=refused": ["{failed}"],
    "/jobs/{done}": ["It succeeded", "&#39;cat.jpg&#39;", "Result", "&lt;script&gt;", "Enqueue again"],
    "/jobs/{failed}": ["ConnectionError", "It failed", "Traceback", "password=", "***", "&lt;img src=x"],
    "/jobs/{crashed}": ["Its process died", "SIGKILL", "last words of a job"],
    "/jobs/{running}": ["It runs", 'on <a href="/consumers/', "Where is it now?"],
    "/jobs/{limited}": ["At most 1 job of task hold may run at once", "{running}"],
    "/jobs/{quiet}": ["Queue quiet is paused"],
    "/jobs/{last}": ["It waits for", "See it as a graph"],
    "/jobs/{crashed}/log": ["consumer.crashed", "job.crashed", "last words of a job"],
    "/failures": ["ConnectionError", "Crashed", "shown.py", "{failed}", "{crashed}"],
    "/queues": ["images", "mail", "paused", "Resume"],
    "/tasks": ["thumbnail", "send_mail", "100 %"],
    "/tasks?of=total": ["thumbnail"],
    "/tasks/send_mail": ["in queue mail", "{failed}"],
    "/consumers": ["{running}", "hold", "consumer.crashed", "SIGKILL"],
    "/consumers/1": ["Consumer 1", "Pid"],
    "/schedules": ["nightly", "daily at 03:00", "{later}", "a delay"],
    "/workflows/{last}": ["<svg", "3 jobs and what they come after", "step"],
    "/limits": ["jobs at once", "1 of 1", "{running}", "{limited}"],
    "/log": ["job.failed", "job.crashed", "&lt;script&gt;"],
    "/log?level=error&task=crash": ["job.crashed"],
    "/broker": ["keeps up: ", "Longest turn"],
}


@pytest.mark.parametrize("path", SAYS)
def test_each_view_tells_what_happened(world: World, browse: Callable[..., TestClient], path: str) -> None:
    ids = {name: job.id for name, job in world.jobs.items()}
    client, said = browse(), [said.format(**ids) for said in SAYS[path]]

    def are_told() -> bool:  # a database has what was counted a moment later
        text = page(client, path.format(**ids))
        return all(each in text for each in said)

    wait_until(are_told, f"{path}: {said}")
    part = page(browse(), path.format(**ids), **PART)
    assert "<html" not in part
    assert "<h1>" in part or path.endswith("/log")


def test_each_view_is_tried() -> None:
    views = {re.sub(r"{.*?}", "{}", path) for path in VIEWS}
    assert views == {
        re.sub(r"{.*?}", "{}", path.partition("?")[0])
        .replace("consumers/1", "consumers/{}")
        .replace("tasks/send_mail", "tasks/{}")
        for path in SAYS
    }


def test_a_view_that_has_not_changed_is_not_sent_again(world: World, browse: Callable[..., TestClient]) -> None:
    client, path = browse(), f"/jobs/{world.jobs['later'].id}"
    for unchanged in ("/schedules", "/tasks", "/jobs"):  # /queues tells the age of jobs that wait, which grows
        for _ in range(5):  # "a minute ago" may become another text between two looks
            first = client.get(unchanged, headers=PART)
            again = client.get(unchanged, headers={**PART, "If-None-Match": first.headers["etag"]})
            if again.status_code == 304:
                break
        assert (again.status_code, again.content) == (304, b""), unchanged
    assert f"data-tag='{client.get('/schedules', headers=PART).headers['etag']}'" in page(client, "/schedules").replace(
        "&#34;", '"'
    )
    before = client.get(path, headers=PART)
    world.jobs["later"].cancel()
    after = client.get(path, headers={**PART, "If-None-Match": before.headers["etag"]})
    assert after.status_code == 200
    assert "It was cancelled" in after.text


def test_what_was_read_of_the_log_goes_on(world: World, browse: Callable[..., TestClient]) -> None:
    client = browse()
    first = f'href="/jobs/{world.jobs["crashed"].id}"'
    assert page(client, "/consumers").count(first) == 1
    for label in ("another", "one more"):
        job = shown.crash.enqueue(label)
        assert job.wait(20)
        world.fleet.wait_for("consumer.crashed", job_id=job.id)
        text = page(client, "/consumers")
        assert text.count(f'href="/jobs/{job.id}"') == 1
        assert text.count(first) == 1, "what was there before is there once"


def test_a_list_goes_on(browse: Callable[..., TestClient]) -> None:
    jobs = shown.thumbnail.options(queue="quiet").enqueue_many([(f"{number}.jpg",) for number in range(60)])
    client = browse()
    first = page(client, "/jobs?queue=quiet&state=queued")
    assert "queued <small>61</small>" in first, "the jobs of this queue"
    assert "<small>" not in page(client, "/jobs?queue=quiet&text=x").split("<nav")[2].split("</nav>")[0], "not counted"
    older = re.search(r'href="(/jobs\?[^"]*before=[0-9a-f]{32})" rel="next"', first)
    assert older
    second = page(client, older[1].replace("&amp;", "&"))
    shown_ids = re.findall(r'data-key="([0-9a-f]{32})"', first + second)
    assert len(shown_ids) == len(set(shown_ids)) == 61
    assert {job.id for job in jobs} <= set(shown_ids)


def test_a_list_of_many_jobs_leads_on_where_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page looks at a part of the jobs, and leads to the next; failures are counted a part at a time."""
    home = tmp_path / "queue"
    home.mkdir(0o700)
    with closing(SQLiteStore(home / "journal.db", "memory")) as store:
        million.fill(store, 22_000)
    monkeypatch.setattr(jobs_view, "_LOOKS_S", 0.0)
    monkeypatch.setattr(failures, "_READS_S", 0.0)
    dashboard = Dashboard(TaskQ("many", str(home)), access=lambda _request: "all")
    fleet = Fleet(home, f"{APPS / 'shown.py'}:q", consumers=1)
    with running(fleet), TestClient(dashboard, "http://127.0.0.1:8737") as client:
        text = page(client, f"/jobs?task={million.RARE.task}")
        assert "No such job was found yet" in text
        found = job_ids(text)
        while older := re.search(r'href="(/jobs\?[^"]*before=[0-9a-f]+)" rel="next"', text):
            text = page(client, older[1].replace("&amp;", "&"))
            found += job_ids(text)
        assert len(found) == len(set(found)) == million.RARE_JOBS
        text, rounds = page(client, "/failures"), 1
        assert "not counted yet" in text
        while "not counted yet" in text and rounds < 100:
            text, rounds = page(client, "/failures"), rounds + 1
        assert "660 jobs failed" in text
        assert "300 kinds" in text
        assert text.count('class="card failure"') == 50
        assert page(client, "/failures?from=290").count('class="card failure"') == 10


def job_ids(text: str) -> list[str]:
    """The jobs that stand in the list of a page."""
    return re.findall(r'data-key="([0-9a-f]{32})"', text)


def test_jobs_are_found_by_a_part_of_their_id(world: World, browse: Callable[..., TestClient]) -> None:
    client, job = browse(), world.jobs["failed"]
    for part in (job.id, job.id[-8:], job.id.upper()):
        answer = client.get("/find", params={"id": part}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job.id}")
    assert "is not known here" in page(client, f"/jobs/{NO_JOB}", 404)
    assert "none of the newest" in page(client, f"/find?id={NO_JOB[:12]}", 404)
    for path in (
        "/find?id=xyz",
        "/jobs?state=lost",
        "/jobs?since=soon",
        "/jobs?attempts=x",
        "/log?level=loud",
        "/failures?since=x",
        "/jobs/12",
    ):
        assert "Not understood" in page(client, path, 400)
    for path in ("/consumers/99", "/tasks/nothing", "/nowhere"):
        page(client, path, 404)


# -- rights


def act(client: TestClient, action: str, headers: dict[str, str] = SCRIPT, **fields: Any) -> Any:
    """Sends a form as the script does; returns the status and what was told."""
    answer = client.post("/actions", data={"action": action, **fields}, headers=headers)
    return answer.status_code, answer.json()


def test_only_the_own_pages_may_write(world: World, browse: Callable[..., TestClient]) -> None:
    client = browse()
    for sent in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "none"}):
        answer = client.post("/actions", data={"action": "pause", "name": "mail"}, headers=sent)
        assert answer.status_code == 403
        assert "Sec-Fetch-Site" in answer.text
    assert client.get("/actions?action=pause&name=mail", headers=SAME).status_code == 405
    assert "mail" not in shown.q.status().paused


@pytest.mark.parametrize(
    ("access", "allowed"),
    [
        ("all", set(Right)),
        ("read", set()),
        (["pause", "stack"], {Right.PAUSE, Right.STACK}),
        (Visitor("ann", frozenset({Right.RETRY})), {Right.RETRY}),
    ],
)
def test_rights(world: World, browse: Callable[..., TestClient], access: Access, allowed: set[Right]) -> None:
    client = browse(access=lambda _request: access)
    buttons = {
        Right.PAUSE: ("/queues", 'value="resume"'),
        Right.STACK: ("/consumers", 'value="stack"'),
        Right.RELOAD: ("/broker", 'value="reload"'),
        Right.RETRY: (f"/jobs/{world.jobs['failed'].id}", 'value="retry"'),
        Right.PURGE: (f"/jobs/{world.jobs['failed'].id}", 'value="purge"'),
        Right.CANCEL: (f"/jobs/{world.jobs['running'].id}", 'value="cancel"'),
        Right.ENQUEUE: (f"/jobs/{world.jobs['done'].id}", 'value="enqueue"'),
        Right.SCHEDULE: ("/schedules", 'value="run_schedule"'),
    }
    assert set(buttons) == set(Right)
    for right, (path, button) in buttons.items():
        assert (button in page(client, path)) == (right in allowed), right
    for action, right in (("reload", Right.RELOAD), ("purge", Right.PURGE)):
        status, told = act(client, action, id=world.jobs["failed"].id)
        if right in allowed:
            assert (status, "question" in told) == (200, True)
        else:
            assert (status, right in told["told"]) == (403, True)


def test_read_only_takes_all_rights_away(world: World, browse: Callable[..., TestClient]) -> None:
    client = browse(read_only=True)
    assert 'action="/actions"' not in page(client, f"/jobs/{world.jobs['failed'].id}")
    assert "who may only look" in page(client, "/")
    assert act(client, "retry", id=world.jobs["failed"].id)[0] == 403


def test_nobody_and_nonsense(browse: Callable[..., TestClient]) -> None:
    async def nobody(_request: Request) -> Access:
        return None

    client = browse(access=nobody)
    for path in ("/", "/jobs", "/log/stream", "/find?id=123456", "/metrics-of-others"):
        assert client.get(path).status_code in (403, 404)
    assert client.post("/actions", data={"action": "pause"}, headers=SAME).status_code == 403
    assert client.get("/livez").text == "live\n"
    assert client.get("/readyz").text == "ready\n"
    assert "does not say what somebody may do" in browse(access=lambda _request: "everything").get("/").text


def test_hidden_arguments(world: World, browse: Callable[..., TestClient]) -> None:
    text = page(browse(hide_args=True), f"/jobs/{world.jobs['done'].id}")
    assert "cat.jpg" not in text
    assert "are hidden here" in text


def test_another_host_is_refused(browse: Callable[..., TestClient]) -> None:
    client = browse(hosts=["localhost", "127.0.0.1", "::1"])
    for host in ("evil.example", "127.0.0.1.evil.example:8737", "", "localhost.evil"):
        assert client.get("/", headers={"Host": host}).status_code == 421
    for host in ("127.0.0.1:8737", "localhost", "LOCALHOST:1", "[::1]:8737"):
        assert client.get("/", headers={"Host": host}).status_code == 200
    assert client.get("/livez", headers={"Host": "10.0.0.7:8737"}).status_code == 200, "a probe comes by an address"


# -- the link


def test_a_link_works_once(browse: Callable[..., TestClient]) -> None:
    tokens: list[str] = []
    links = Links("ann", tokens.append)
    first = links.new_link()
    dashboard: dict[str, Resolver] = {"access": links}
    client, thief = browse(**dashboard), browse(**dashboard)
    assert "Open the link" in page(client, "/", 403)
    assert "not valid" in page(thief, "/?token=guessed", 403)
    answer = client.get("/", params={"token": first})
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert cookie.startswith("taskq_8737=")
    assert "Overview" in page(client, "/"), "the cookie lets it in"
    assert "used already" in page(thief, f"/?token={first}", 403), "an old link is worth nothing"
    assert tokens == [first, tokens[1]], "the next visitor needs a new one, which was told"
    assert thief.get("/", params={"token": tokens[1]}).status_code == 200
    assert "ann" in page(thief, "/")


def test_without_access_the_link_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(Dashboard(shown.q), "http://127.0.0.1") as client:
        assert client.get("/").status_code == 403
        [record] = [record for record in caplog.records if record.name == "taskq.web"]
        token = re.search(r"\?token=([\w-]+)", record.getMessage())
        assert token
        assert client.get("/", params={"token": token[1]}).status_code == 200
        assert client.get("/").status_code == 200


def test_passwords(browse: Callable[..., TestClient], tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("# name:rights:password\nann:all:pass:word\nbob:pause,retry:secret\n\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Passwords(path)
    path.chmod(0o600)
    client = browse(access=Passwords(path))
    refused = client.get("/")
    assert (refused.status_code, refused.headers["www-authenticate"][:5]) == (401, "Basic")
    for wrong in (("ann", "pass"), ("ann", ""), ("eve", "secret"), ("", "")):
        assert client.get("/", auth=wrong).status_code == 401
    assert client.get("/", headers={"Authorization": "Basic !!"}).status_code == 401
    assert "ann" in client.get("/", auth=("ann", "pass:word")).text
    assert 'value="resume"' in client.get("/queues", auth=("bob", "secret")).text
    assert 'value="reload"' not in client.get("/broker", auth=("bob", "secret")).text
    for wrong_line in ("ann:all", "ann:fly:word", "just text", ""):
        path.write_text(wrong_line)
        with pytest.raises(ConfigError):
            Passwords(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Passwords(tmp_path / "nothing")


# -- actions


def test_one_job(browse: Callable[..., TestClient], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "taskq.web")
    client = browse(access=lambda _request: Visitor("ann"))
    job = shown.send_mail.enqueue("me")
    assert job.wait(20)
    assert act(client, "retry", id=job.id) == (200, {"told": "1 job queued again.", "go": "", "failed": False})
    wait_until(lambda: job.info().attempts == 2 and job.state() == "failed", "it ran again")
    status, told = act(client, "purge", id=job.id)
    assert (status, job.id in told["question"]) == (200, True)
    assert job.state() == "failed", "nobody has answered the question"
    assert act(client, "purge", id=job.id, sure="1")[1]["go"] == "/jobs"
    status, told = act(client, "retry", id=job.id)
    assert (told["failed"], "0 jobs queued again" in told["told"]) == (True, True)
    waits = shown.thumbnail.options(delay=3600).enqueue("x")
    assert "question" in act(client, "cancel", id=waits.id)[1]
    assert act(client, "cancel", id=waits.id, sure="1")[1]["told"] == "1 job cancelled."
    assert waits.state() == "cancelled"
    logged = [record.getMessage() for record in caplog.records if record.name == "taskq.web"]
    assert logged[0] == f"retry: 1 job queued again. (by='ann' ids='{job.id}')"
    assert len(logged) == 4


def test_chosen_jobs_and_all_that_match(browse: Callable[..., TestClient]) -> None:
    client = browse()
    jobs = shown.thumbnail.options(queue="many", delay=3600).enqueue_many([(f"{number}",) for number in range(120)])
    match = "state=scheduled&queue=many&since=1h"
    status, told = act(client, "cancel", match=match)
    assert (status, "120 jobs" in told["told"]) == (200, True), told
    assert act(client, "cancel", id=[job.id for job in jobs[:3]], sure="1")[1]["told"] == "3 jobs cancelled."
    assert act(client, "cancel", match=match, sure="1")[1]["told"] == "117 jobs cancelled."
    assert {job.state() for job in jobs} == {"cancelled"}
    simple = "state=cancelled&queue=many"
    assert "120 jobs" in act(client, "purge", match=simple)[1]["told"]
    assert act(client, "purge", match=simple, sure="1")[1]["told"] == "120 jobs removed."
    assert shown.q.jobs(queue="many") == []
    assert act(client, "retry", match="state=succeeded")[0] == 400
    assert act(client, "retry")[0] == 400
    assert act(client, "explode")[0] == 400
    answer = client.post("/actions", data={"action": "purge", "match": simple}, headers=SAME)
    assert "Are you sure?" in answer.text, "it works without the script, too"


def test_queues_schedules_and_the_fleet(world: World, browse: Callable[..., TestClient]) -> None:
    client = browse(access=lambda _request: Visitor("ann"))
    assert act(client, "pause", name="night")[1]["told"] == "Queue night is paused."
    assert "night" in shown.q.status().paused
    assert world.fleet.wait_for("queue.paused", queue="night")["by"] == "ann, on the web"
    assert act(client, "resume", name="night")[1]["told"] == "Queue night is resumed."
    assert act(client, "pause_schedule", name="nightly")[0] == 200
    assert "paused" in page(client, "/schedules")
    assert act(client, "resume_schedule", name="nightly")[0] == 200
    told = act(client, "run_schedule", name="nightly")[1]
    assert shown.q.job(told["go"].rpartition("/")[2]).wait(20)
    assert act(client, "run_schedule", name="never")[0] == 404
    running_on = next(each for each in shown.q.status().consumers if each.task == "hold")
    go = act(client, "stack", name=str(running_on.number))[1]["go"]
    wait_until(lambda: "in pass_gate" in page(client, go), "its stack is shown")
    assert act(client, "stack", name="99")[0] == 404
    assert act(client, "stack", name="x")[0] == 400


def test_again_with_other_arguments(world: World, browse: Callable[..., TestClient]) -> None:
    client, done = browse(), world.jobs["done"]
    failed = page(client, f"/jobs/{world.jobs['failed'].id}").replace("&#34;", '"')
    assert '{"password": "***"}</textarea>' in failed, "what is hidden cannot be got by editing"
    assert "are not shown" in page(client, f"/jobs/{done.id}"), "a job that has succeeded has none any more"
    told = act(client, "enqueue", id=done.id, args='["dog.jpg"]', kwargs='{"size": 8}')[1]
    job = shown.q.job(told["go"].rpartition("/")[2])
    assert job.result(timeout=20)["path"] == "dog.jpg"
    for args, kwargs in (("[", "{}"), ("{}", "{}"), ("[]", "[]"), ("[]", "{}")):
        status, told = act(client, "enqueue", id=done.id, args=args, kwargs=kwargs)
        assert (status, told["failed"]) == (400, True), told


# -- mounted, and stopped


def test_mounted_below_a_path(world: World) -> None:
    app = Starlette(
        routes=[Mount("/ops/queue", Dashboard(shown.q, access=lambda _request: "all", hosts=["testserver"]))]
    )
    with TestClient(app) as client:
        text = page(client, "/ops/queue/jobs?state=failed")
        links = re.findall(r'(?:href|src|action)="(/[^"]*)"', text)
        assert len(links) > 20
        assert [link for link in links if not link.startswith("/ops/queue/")] == []
        assert 'aria-current="page"' in text
        assert client.get(next(link for link in links if ".css" in link)).status_code == 200
        assert client.get("/ops/queue/readyz").text == "ready\n"


def test_static_files(browse: Callable[..., TestClient]) -> None:
    client = browse(access=lambda _request: None)
    assert sorted(path.name for path in STATIC.iterdir()) == ["dashboard.css", "dashboard.js", "icon.svg"]
    for path in STATIC.iterdir():
        answer = client.get(f"/static/{path.name}")
        assert (answer.status_code, answer.text) == (200, path.read_text())
        assert "http:" not in path.read_text().replace("http://www.w3.org/2000/svg", ""), "nothing comes from outside"
        assert "https:" not in path.read_text()
    assert len((STATIC / "dashboard.js").read_text().splitlines()) <= 200
    assert client.get("/static/../dashboard.py").status_code == 404


def test_a_fleet_that_does_not_run(tmp_path: Path) -> None:
    with running(Fleet(tmp_path / "queue", f"{APPS / 'shown.py'}:q", consumers=1)) as fleet:
        use(shown.q, fleet.home)
        job = shown.thumbnail.enqueue("cat.jpg")
        assert job.wait(20)
    with TestClient(Dashboard(shown.q, access=lambda _request: "all"), "http://127.0.0.1") as client:
        assert "No fleet runs" in page(client, "/")
        assert "succeeded" in page(client, f"/jobs/{job.id}")
        assert "stopped" in page(client, "/broker")
        assert (client.get("/livez").status_code, client.get("/readyz").status_code) == (503, 503)
        use(shown.q, tmp_path / "nothing")
        if in_directory():
            assert "No answer" in page(client, "/", 503)
        else:
            assert "No fleet runs" in page(client, "/"), "a database is there without a fleet"


def test_public_names() -> None:
    import taskq.web

    assert json.dumps(sorted(taskq.web.__all__)) == '["Access", "Dashboard", "Right", "Visitor"]'
    with pytest.raises(AttributeError):
        _ = taskq.web.Nothing  # type: ignore[attr-defined]
