"""What a view answers, and how that becomes a page, or the part of a page that a browser asks for every 2 s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from taskq import __version__
from taskq.client.app import TaskQ
from taskq.client.failures import KeptFailures
from taskq.telemetry.kept import KeptLog
from taskq.web import charts, texts
from taskq.web.access import Visitor
from taskq.web.backlog import KeptReasons

_HERE = Path(__file__).parent
STATIC = _HERE / "static"
#: What the script sends when it wants the part of a page that changes.
PART_HEADER = "taskq-part"
#: The views in the menu: path, name, and the key that leads there after `g`.
MENU = (
    ("/", "Overview", "o"),
    ("/jobs", "Jobs", "j"),
    ("/failures", "Failures", "f"),
    ("/queues", "Queues", "q"),
    ("/tasks", "Tasks", "t"),
    ("/consumers", "Consumers", "c"),
    ("/schedules", "Schedules", "s"),
    ("/limits", "Limits", "l"),
    ("/log", "Log", "e"),
    ("/broker", "Broker", "b"),
)


#: The functions of `taskq.web.texts` that templates use as filters.
_FILTERS = (
    "number",
    "moment",
    "since",
    "clock",
    "at",
    "exact",
    "logged",
    "span",
    "megabytes",
    "percent",
    "short_id",
    "tone",
    "headline",
    "shown",
    "code",
)


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of somebody who may look.

    Attributes:
        q: the application.
        request: what the browser sent.
        visitor: who that is.
        now: seconds since 1970.
        hides_arguments: whether arguments and results of jobs are hidden.
        kept: what was read of the log before, for all visitors.
        failures: what was read of failed jobs before, for all visitors.
        reasons: why backlogs stand, as it was asked a moment ago, for all visitors.
    """

    q: TaskQ
    request: Request
    visitor: Visitor
    now: float
    hides_arguments: bool
    kept: KeptLog
    failures: KeptFailures
    reasons: KeptReasons

    def query(self, name: str) -> str:
        """A field of the URL; empty if it is not there."""
        return self.request.query_params.get(name, "").strip()


@dataclass(frozen=True, slots=True)
class Page:
    """What a view shows.

    Attributes:
        template: the name of the file that draws it, without ".html".
        title: of the page.
        values: what the template uses.
        is_live: whether the browser asks for it again and again.
        status: of the answer.
    """

    template: str
    title: str
    values: Mapping[str, Any] = field(default_factory=dict)
    is_live: bool = True
    status: int = 200


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in _FILTERS:
        environment.filters[name] = getattr(texts, name)
    environment.globals.update(
        bars=charts.bars, highest=charts.highest, sparkline=charts.sparkline, share_bar=charts.share_bar
    )
    return environment


@cache
def version_of(name: str) -> str:
    """A part of a static file's URL that changes with its content."""
    return sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def link_maker(request: Request) -> Callable[..., str]:
    """Returns a function that makes the URL of a path, below which the dashboard may be mounted, and of its query."""
    prefix: str = request.scope.get("root_path", "")

    def link(*path: str, **query: object) -> str:
        wanted = {name.rstrip("_"): value for name, value in query.items() if value not in (None, "")}
        place = prefix + path[0] + "".join("/" + quote(part, safe="") for part in path[1:])
        return f"{place}?{urlencode(wanted)}" if wanted else place

    return link


def answer(visit: Visit, page: Page) -> Response:
    """The answer to a request: the page, or only the part that changes, or that nothing has changed."""
    link = link_maker(visit.request)
    shared = {
        "link": link,
        "linked": lambda text: texts.linked(text, link),
        "briefly": lambda text: texts.linked(text, link, is_brief=True),
        "visitor": visit.visitor,
        "now": visit.now,
        **page.values,
    }
    part = _environment().get_template(f"{page.template}.html").render(shared)
    tag = f'"{sha256(part.encode()).hexdigest()[:20]}"'
    headers = {"ETag": tag, "Vary": PART_HEADER}
    if visit.request.headers.get(PART_HEADER):
        if visit.request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return HTMLResponse(part, page.status, headers)
    path = visit.request.url.path.removeprefix(visit.request.scope.get("root_path", ""))
    whole = (
        _environment()
        .get_template("layout.html")
        .render(
            shared,
            part=Markup(part),
            page=page,
            tag=tag,
            menu=[(each, name, key, _is_in(path, each)) for each, name, key in MENU],
            name=visit.q.name,
            directory=str(visit.q.directory.path),
            version=__version__,
            script=link("/static/dashboard.js", v=version_of("dashboard.js")),
            style=link("/static/dashboard.css", v=version_of("dashboard.css")),
        )
    )
    return HTMLResponse(whole, page.status, {"Vary": PART_HEADER})


def refusal(request: Request, name: str, told: str, status: int, headers: Mapping[str, str]) -> Response:
    """A page that says what is wrong, also to those who may see no other."""
    link = link_maker(request)
    is_part = bool(request.headers.get(PART_HEADER))
    text = _environment().get_template("refusal.html").render(
        link=link, told=told, status=status, name=name, is_part=is_part,
        style=link("/static/dashboard.css", v=version_of("dashboard.css")),
    )  # fmt: skip
    return HTMLResponse(text, status, {**headers, "Vary": PART_HEADER})


def draw(template: str, visit: Visit, **values: Any) -> str:
    """A template alone, such as the question before an action."""
    shared = {"link": link_maker(visit.request), "visitor": visit.visitor, "now": visit.now}
    return _environment().get_template(template).render(shared, **values)


def _is_in(path: str, entry: str) -> bool:
    return path == entry if entry == "/" else path == entry or path.startswith(entry + "/")
