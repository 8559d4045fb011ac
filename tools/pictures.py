"""Makes the pictures in docs/pictures/ from what the program itself shows, each for light and dark pages.

    python tools/pictures.py [demo] [top] [web]     # all, or some; web needs playwright, Pillow and a chromium

`demo` is what `taskq demo` prints in a terminal, as SVG; `top` is the first tab of `taskq top`, and `web` is pages of
`taskq web`, both with the fleet of shown_app.py below them. The two logos are drawn by hand.
"""

from __future__ import annotations

import asyncio
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO, StringIO
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, SVG_EXPORT_THEME
from rich.text import Text

from taskq import TaskQ

PICTURES = Path(__file__).parents[1] / "docs/pictures"
_APP = Path(__file__).with_name("shown_app.py")
#: Where the application runs: the pages show this path.
_FOLDER = Path("/var/tmp/shop")
_THEMES = {"light": DEFAULT_TERMINAL_THEME, "dark": SVG_EXPORT_THEME}
_COLUMNS = 104
#: How long the fleet works before the pages are taken, so that its curves have a shape.
_BEFORE_PAGES_S = 480.0
#: How long the monitor has, to read the fleet.
_TO_READ_S = 3.0


# -- a terminal


def printed(*command: str) -> str:
    """What a command prints at a terminal, as it stands there in the end."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(_COLUMNS), "TERM": "xterm-256color", "TMPDIR": "/var/tmp"}
    with subprocess.Popen(command, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        parts = []
        while True:
            try:
                parts.append(os.read(leader, 65536))
            except OSError:  # it has ended
                break
        assert process.wait() == 0
    os.close(leader)
    text = b"".join(parts).decode().replace("\r\n", "\n")
    return re.sub(r"\x1b\[\?25l.*\x1b\[1A\x1b\[2K", "", text, flags=re.S)  # the bar, which is wiped out at the end


def write_svg(name: str, title: str, text: str) -> None:
    """Writes what a terminal shows, for both kinds of pages."""
    for theme, colours in _THEMES.items():
        console = Console(record=True, width=_COLUMNS, file=StringIO(), force_terminal=True)
        console.print(Text.from_ansi(text), end="")
        write(f"{name}-{theme}", console.export_svg(title=title, theme=colours, unique_id=f"{name}-{theme}"))


def write(name: str, drawn: str) -> None:
    """Writes a picture of a terminal."""
    drawn = re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.S)  # nothing is loaded from elsewhere
    drawn = drawn.replace("Fira Code", "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono")
    (PICTURES / f"{name}.svg").write_text("\n".join(line.rstrip() for line in drawn.splitlines()) + "\n")


def demo() -> None:
    """What `taskq demo` prints."""
    text = printed(sys.executable, "-m", "taskq", "demo").partition("\x1b[1;36mWhat next")[0]
    write_svg("demo", "taskq demo", text.strip("\n"))


# -- a browser


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A program while the block runs; SIGTERM ends it."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=-3, text=True)
    with process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)


def write_png(name: str, taken: bytes) -> None:
    """Writes a screenshot with the 128 colours that it needs, a third of the size."""
    picture = Image.open(BytesIO(taken)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(PICTURES / f"{name}.png", optimize=True)


@contextmanager
def shop() -> Iterator[str]:
    """The fleet of shown_app.py while the block runs; yields the reference of its application."""
    with ExitStack() as stack:
        _FOLDER.mkdir()
        stack.callback(shutil.rmtree, _FOLDER)
        shutil.copy(_APP, _FOLDER / "tasks.py")
        os.environ["TASKQ_URL"] = f"{_FOLDER}/queue"
        app = f"{_FOLDER / 'tasks.py'}:q"
        stack.enter_context(started("-m", "taskq", "worker", app, "--consumers", "4"))
        stack.enter_context(started(str(_FOLDER / "tasks.py")))
        yield app


def top() -> None:
    """The first tab of `taskq top`."""
    from taskq.cli.top.app import Top
    from taskq.cli.top.live import LiveSource

    async def take(theme: str) -> None:
        q = TaskQ("shop")
        monitor = Top(q, LiveSource(q, shows_arguments=False))
        async with monitor.run_test(size=(_COLUMNS, 24)) as pilot:
            monitor.theme = f"textual-{theme}"
            await pilot.pause(_TO_READ_S)
            write(f"top-{theme}", monitor.export_screenshot())

    with shop():
        time.sleep(_BEFORE_PAGES_S)
        for theme in _THEMES:
            asyncio.run(take(theme))


def web() -> None:
    """Pages of `taskq web`."""
    from playwright.sync_api import sync_playwright

    with ExitStack() as stack:
        app = stack.enter_context(shop())
        server = stack.enter_context(started("-m", "taskq", "web", app, "--port", "0", "--hide-args"))
        assert server.stdout is not None
        link = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        time.sleep(_BEFORE_PAGES_S)
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1200, "height": 760})
        page.goto(link)  # which goes on to the overview, without the token
        page.wait_for_url(lambda url: "token" not in url)
        failed = TaskQ("shop").jobs("failed", limit=1)[0].id
        root = page.url.rstrip("/")
        for name, path in {"web": "", "web-job": f"/jobs/{failed}", "web-failures": "/failures"}.items():
            page.goto(f"{root}{path}")
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme)
                write_png(f"{name}-{theme}", page.screenshot())
        browser.close()


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ("demo", "top", "web"):
        {"demo": demo, "top": top, "web": web}[wanted]()
