"""`taskq web` as a process: where it is reached, by whom, and how it ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from apps import shown
from fleet import APPS, DEADLINE_S, Fleet, in_directory, running, use, wait_until
from served import Served
from terminal import environment, refused, taskq

from taskq.model.exits import Exit

APP = f"{APPS / 'shown.py'}:q"


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    served: list[Served] = []

    def start(home: Path, *options: str) -> Served:
        served.append(Served(home, *options))
        return served[-1]

    yield start
    for each in served:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()


def test_a_browser_gets_in_once(serve: Callable[..., Served], tmp_path: Path) -> None:
    with running(Fleet(tmp_path / "queue", APP, consumers=1)) as fleet:
        served = serve(fleet.home)
        base, _, token = served.link.partition("?token=")
        assert base.startswith("http://127.0.0.1:")
        assert token
        with httpx.Client(base_url=base) as browser, httpx.Client(base_url=base) as thief:
            assert browser.get("/").status_code == 403
            assert thief.get("/", headers={"Host": "rebound.example"}).status_code == 421
            assert browser.get(served.link).status_code == 200
            assert browser.get("/").status_code == 200
            assert thief.get(served.link).status_code == 403
            assert served.line().startswith(f"{base}?token=")
            headers = {"Sec-Fetch-Site": "same-origin", "taskq-script": "1"}
            told = browser.post("/actions", data={"action": "pause", "name": "mail"}, headers=headers)
            assert told.json()["told"] == "Queue mail is paused."
            assert browser.get("/readyz").text == "ready\n"
        code, errors = served.finish()
        assert code == 0, errors
        assert "pause: Queue mail is paused. (by=" in errors, "what was done, and by whom"
        assert "Traceback" not in errors


def test_the_log_follows(serve: Callable[..., Served], tmp_path: Path) -> None:
    with running(Fleet(tmp_path / "queue", APP, consumers=1)) as fleet:
        use(shown.q, fleet.home)
        served = serve(fleet.home)
        with httpx.Client(base_url=served.link.partition("?")[0], timeout=DEADLINE_S) as browser:
            browser.get(served.link)
            with browser.stream("GET", "/log/stream?event=queue.*&text=night") as stream:
                lines = stream.iter_lines()
                assert next(lines).startswith(": ")
                for queue in ("noon", "night"):
                    shown.q.pause(queue)
                data = next(line for line in lines if line.startswith("data: "))
        told: dict[str, Any] = json.loads(data.removeprefix("data: "))
        assert "queue.paused" in told["html"]
        assert "night" in told["html"], "lines without the text are left out"
        assert "Traceback" not in served.finish()[1]


def test_a_socket_for_this_user_only(serve: Callable[..., Served], tmp_path: Path) -> None:
    home, path = tmp_path / "queue", tmp_path / "web.sock"
    home.mkdir(mode=0o700)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    served = serve(home, "--uds", str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as browser:
        wait_until(lambda: browser.get("/livez").status_code == 503, "it answers that no broker does")
    refused(taskq(home, "web", str(home), "--uds", str(path)), Exit.USAGE, "something is there already")
    served.finish()
    wait_until(lambda: not path.exists(), "the socket is gone")


def test_what_is_refused(serve: Callable[..., Served], tmp_path: Path) -> None:
    home = tmp_path / "queue"
    home.mkdir(mode=0o700)
    refused(taskq(home, "web", str(home), "--host", "0.0.0.0"), Exit.USAGE, "--auth FILE", "ssh -L")
    refused(taskq(home, "web", str(home), "--host", "no.such.host.invalid"), Exit.USAGE, "--auth FILE")
    refused(taskq(home, "web", str(home), "--auth", str(tmp_path / "nothing")), Exit.USAGE, "cannot be read")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(taskq(home, "web", str(home), "--port", port), Exit.USAGE, f"port {port}", "another --port")
    users = tmp_path / "users"
    users.touch(mode=0o600)
    users.write_text("ann:all:word\n")
    served = serve(home, "--host", "0.0.0.0", "--auth", str(users))
    base = served.link.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(base, headers={"Host": "any.name"}).status_code == 401
    got_in = httpx.get(base, auth=("ann", "word")).status_code
    assert got_in == (503 if in_directory() else 200), "she gets in, and no fleet is there"


@pytest.mark.parametrize("module", ["starlette", "jinja2", "uvicorn"])
def test_without_the_extra(tmp_path: Path, module: str) -> None:
    (tmp_path / "queue").mkdir(mode=0o700)
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['taskq', 'web']; from taskq.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path / "queue"), capture_output=True, text=True, check=False
    )
    refused(done, Exit.USAGE, "pip install 'taskq-fleet[web]'")
    if module != "uvicorn":
        code = f"import sys; sys.modules[{module!r}] = None; import taskq.web; taskq.web.Dashboard"
        told = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=False)
        assert told.stderr.endswith(
            "ImportError: the dashboard needs Starlette, Jinja and uvicorn: pip install 'taskq-fleet[web]'\n"
        )
