"""The dashboard as an ASGI application: its URLs, which are a contract, and who may see what."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from taskq.client.app import TaskQ
from taskq.client.failures import KeptFailures
from taskq.model.errors import (
    BadJobId,
    BrokerUnavailable,
    ConfigError,
    EnqueueError,
    JobNotFound,
    JobStateError,
    ScheduleNotFound,
    TaskQError,
)
from taskq.model.info.readiness import why_not_ready
from taskq.telemetry.kept import KeptLog
from taskq.web.access import Resolver, visitor_of
from taskq.web.actions import Wish, act
from taskq.web.backlog import KeptReasons
from taskq.web.guard import WRITE_REFUSED, Guard, is_from_own_page
from taskq.web.links import TOKEN, Links
from taskq.web.pages import STATIC, Page, Visit, answer, draw, link_maker, refusal
from taskq.web.views import fleet, jobs, log, schedules, tasks

View = Callable[[Visit], Awaitable[Page]]

#: A form with ten thousand ids takes half of this.
_MOST_FORM_BYTES = 1 << 20
#: What the script sends with a form.
_SCRIPT_HEADER = "taskq-script"

#: The pages. Their URLs are a contract.
VIEWS: dict[str, View] = {
    "/": fleet.overview,
    "/jobs": jobs.jobs,
    "/jobs/{id}": jobs.job,
    "/jobs/{id}/log": jobs.job_log,
    "/failures": tasks.failures,
    "/queues": fleet.queues,
    "/tasks": tasks.tasks,
    "/tasks/{name}": tasks.task,
    "/consumers": fleet.consumers,
    "/consumers/{number:int}": fleet.consumer,
    "/schedules": schedules.schedules,
    "/workflows/{id}": jobs.workflow,
    "/limits": fleet.limits,
    "/log": log.log,
    "/broker": fleet.broker,
}


class Dashboard:
    """Pages that show what the fleet of an application does; an ASGI application to serve, or to mount::

    app.mount("/taskq", Dashboard(q, access=lambda request: "all" if request.user.is_admin else None))
    """

    def __init__(
        self,
        q: TaskQ,
        *,
        access: Resolver | None = None,
        read_only: bool = False,
        hide_args: bool = False,
        hosts: Collection[str] = (),
    ) -> None:
        """
        Args:
            q: the application whose fleet is shown; its `redact` hides arguments here, too.
            access: is called with each request, and says what its sender may do: "all", "read", some rights by name,
                a `Visitor` with a name and rights, or None for somebody who may not even look. Default: who opens a
                link once, which is logged as a warning when somebody comes.
            read_only: whether nobody may do anything beside looking.
            hide_args: whether to hide arguments and results of jobs.
            hosts: the names that requests may give as their host, without a port; any if there are none.
        """
        self.q = q
        self._resolver: Resolver = Links("whoever opened the link") if access is None else access
        #: The links that let visitors in, if that is how they come.
        self.links = self._resolver if isinstance(self._resolver, Links) else None
        self._is_read_only = read_only
        self._hides_arguments = hide_args
        self._kept = KeptLog()
        self._failures = KeptFailures()
        self._reasons = KeptReasons()
        self._app = Guard(self._routes(), hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def _routes(self) -> Starlette:
        handlers = {TaskQError: self._refuse, HTTPException: self._refuse}
        pages = [Route(path, self._page(view), methods=["GET"]) for path, view in VIEWS.items()]
        return Starlette(
            routes=[
                Route("/livez", self._live, methods=["GET"]),
                Route("/readyz", self._ready, methods=["GET"]),
                Route("/find", self._find, methods=["GET"]),
                Route("/log/stream", self._stream, methods=["GET"]),
                Route("/metrics", self._metrics, methods=["GET"]),
                Route("/actions", self._act, methods=["POST"]),
                *pages,
                Mount("/static", StaticFiles(directory=STATIC)),
            ],
            exception_handlers=handlers,
        )

    # -- who comes

    async def _visit(self, request: Request) -> Visit:
        """The visit of somebody who may look.

        Raises:
            HTTPException: they may not.
        """
        visitor = await visitor_of(request, self._resolver, self._is_read_only)
        if visitor is None:
            if self.links is not None:
                raise HTTPException(
                    403,
                    "Open the link that the program has printed when it started. It works once; when it has been "
                    "used, the program prints another.",
                )
            raise HTTPException(403, "You may not see this dashboard.")
        request.state.visitor = visitor
        kept = self._kept, self._failures, self._reasons
        return Visit(self.q, request, visitor, time.time(), self._hides_arguments, *kept)

    # -- pages

    def _page(self, view: View) -> Callable[[Request], Awaitable[Response]]:
        async def show(request: Request) -> Response:
            if self.links is not None and TOKEN in request.query_params:
                let_in = self.links.use(request)
                if let_in is None:
                    told = "This link is not valid, or was used already: open the newest that the program has printed."
                    raise HTTPException(403, told)
                return let_in
            visit = await self._visit(request)
            return answer(visit, await view(visit))

        return show

    async def _find(self, request: Request) -> Response:
        visit = await self._visit(request)
        return RedirectResponse(link_maker(request)("/jobs", await jobs.find(visit)), 303)

    async def _stream(self, request: Request) -> Response:
        """The log as server-sent events, one for each line."""
        visit = await self._visit(request)
        log.filter_of(visit)  # what makes no sense is told before the stream begins
        return StreamingResponse(log.stream(visit), media_type="text/event-stream")

    # -- actions

    async def _act(self, request: Request) -> Response:
        visit = await self._visit(request)
        if not is_from_own_page(request):
            raise HTTPException(403, WRITE_REFUSED)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MOST_FORM_BYTES:
                raise HTTPException(413, "The form is too large: choose fewer jobs.")
        wish = Wish.of(body)
        done = await act(visit, wish)
        link = link_maker(request)
        if request.headers.get(_SCRIPT_HEADER):
            told = {"told": done.told, "go": link(done.go) if done.go else "", "failed": done.failed}
            if done.is_question:
                told["question"] = draw("question.html", visit, wish=wish, done=done)
            return JSONResponse(told)
        return answer(visit, Page("done", "Done", {"wish": wish, "done": done}, is_live=False))

    async def _metrics(self, request: Request) -> Response:
        """What the fleet counts and measures, as Prometheus reads it."""
        await self._visit(request)
        try:
            from taskq.web.metrics import text  # the extra [prometheus] may be missing
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith("prometheus_client"):
                raise
            raise HTTPException(501, "Metrics need prometheus-client: pip install 'taskq-fleet[prometheus]'") from error
        told = text.text_of(await text.aask(self.q.async_client()), request.headers.get("accept", ""))
        return Response(told.body, media_type=told.content_type)

    # -- errors

    async def _refuse(self, request: Request, error: Exception) -> Response:
        """Says what is wrong, as a page, as a part of one, or as JSON for the script."""
        status = _status_of(error)
        told = str(error.detail) if isinstance(error, HTTPException) else str(error)
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        if request.headers.get(_SCRIPT_HEADER):
            return JSONResponse({"told": told, "go": "", "failed": True}, status, headers)
        return refusal(request, self.q.name, told, status, headers)

    # -- probes: open to all, so they say no more than that

    async def _live(self, _request: Request) -> Response:
        """200 if a broker answers."""
        try:
            await self.q.async_client().status()
        except BrokerUnavailable:
            return PlainTextResponse("no broker answers\n", 503)
        return PlainTextResponse("live\n")

    async def _ready(self, _request: Request) -> Response:
        """200 if a consumer is there for jobs, too."""
        try:
            reason = why_not_ready(asdict(await self.q.async_client().status()))
        except BrokerUnavailable:
            return PlainTextResponse("no broker answers\n", 503)
        return PlainTextResponse("no consumer is ready for jobs\n", 503) if reason else PlainTextResponse("ready\n")


def _status_of(error: Exception) -> int:
    match error:
        case HTTPException():
            return error.status_code
        case BadJobId():
            return 400
        case JobNotFound() | ScheduleNotFound():
            return 404
        case JobStateError():
            return 409
        case BrokerUnavailable():
            return 503
        case ConfigError() | EnqueueError():
            return 400
    return 500
