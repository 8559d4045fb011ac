"""The dashboard within a Django site, for its staff.

    urlpatterns = [path("admin/taskq/", dashboard()), path("admin/", admin.site.urls)]

Requests go on to `taskq.web.Dashboard`, which is an ASGI application: it runs on an event loop in a thread of its own,
so that it works below WSGI and ASGI alike. It needs the extra [web].
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from concurrent.futures import Future
from functools import cache
from threading import Thread
from typing import Any

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import resolve_url
from django.urls import NoReverseMatch, URLPattern, re_path
from django.views.decorators.csrf import csrf_exempt

from taskq.contrib.django.backend import backend_of
from taskq.web import Access, Dashboard
from taskq.web.access import Visitor, rights_of
from taskq.web.guard import PROBES

_VISITOR = "taskq.visitor"
Message = MutableMapping[str, Any]


def of_staff(request: HttpRequest) -> Access:
    """Who may see the dashboard, unless the site says otherwise: superusers may do everything, other staff may look."""
    user = request.user
    if not (user.is_active and user.is_staff):
        return None
    return "all" if user.is_superuser else "read"


def dashboard(
    access: Callable[[HttpRequest], Access] = of_staff,
    *,
    backend: str = "default",
    read_only: bool = False,
    hide_args: bool = False,
) -> tuple[list[URLPattern], str, str]:
    """Returns what `path` takes: the pages of the dashboard below a URL of your choice.

    Args:
        access: is called with each request, and says what its user may do: "all", "read", some rights by name, a
            `Visitor`, or None for somebody who may not even look. Who is not logged in is sent to the login.
        backend: the alias of the backend in TASKS.
        read_only: whether nobody may do anything beside looking.
        hide_args: whether to hide arguments and results of jobs.
    """

    @cache
    def pages() -> Dashboard:
        return Dashboard(
            backend_of(backend).q,
            access=lambda request: request.scope[_VISITOR],
            read_only=read_only,
            hide_args=hide_args,
        )

    def show(request: HttpRequest, place: str) -> HttpResponseBase:
        is_probe = f"/{place}" in PROBES
        visitor = None if is_probe else _visitor(request, access(request))
        if visitor is None and not is_probe:
            return _refuse(request)
        return _Exchange(pages(), request, place, visitor).response()

    # Django's token is not asked for: the dashboard lets only its own pages write, by what the browser says of them
    return [re_path(r"^(?P<place>.*)$", csrf_exempt(show), name="dashboard")], "taskq", f"taskq-{backend}"


def _visitor(request: HttpRequest, access: Access) -> Visitor | None:
    """Who has sent a request, with their name; None if they may not look."""
    if access is None or isinstance(access, Visitor):
        return access
    return Visitor(request.user.get_username(), rights_of(access))


def _refuse(request: HttpRequest) -> HttpResponseBase:
    """Sends somebody who is not logged in to the login of the admin, or of the site. Raises PermissionDenied."""
    if request.user.is_authenticated:
        raise PermissionDenied
    try:
        login = resolve_url("admin:login")
    except NoReverseMatch:
        login = resolve_url(settings.LOGIN_URL)
    return redirect_to_login(request.get_full_path(), login)


# -- from Django to ASGI


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all dashboards of this process; it is made with the first request, so after any fork."""
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, name="taskq-dashboard", daemon=True).start()
    return loop


class _Exchange:
    """One request, and the answer of an ASGI application."""

    def __init__(self, app: Dashboard, request: HttpRequest, place: str, visitor: Visitor | None) -> None:
        self._request = request
        self._body: bytes | None = request.body
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        root = request.path.removesuffix(place).rstrip("/")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.scheme,
            "path": f"{root}/{place}",
            "root_path": root,
            "query_string": request.META.get("QUERY_STRING", "").encode(),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in request.headers.items()],
            "client": (request.META.get("REMOTE_ADDR", ""), 0),
            _VISITOR: visitor,
        }
        self._running: Future[None] = asyncio.run_coroutine_threadsafe(app(scope, self._receive, self._send), _loop())
        self._running.add_done_callback(lambda _: self._messages.put(None))

    async def _receive(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            await asyncio.Event().wait()  # nobody tells that the browser has gone: the call is cancelled then
        return {"type": "http.request", "body": body}

    async def _send(self, message: Message) -> None:
        self._messages.put(message)

    def response(self) -> HttpResponseBase:
        """The answer as one of Django. A stream goes on for as long as somebody reads it."""
        start = self._messages.get()
        if start is None:
            self._running.result()  # raises what went wrong
            raise RuntimeError("the dashboard has not answered")
        headers = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        if not headers.get("content-type", "").startswith("text/event-stream"):
            return HttpResponse(b"".join(self._parts()), status=start["status"], headers=headers)
        parts = self._parts_for_asgi() if isinstance(self._request, ASGIRequest) else self._parts()
        return StreamingHttpResponse(parts, status=start["status"], headers=headers)

    def _parts(self) -> Iterator[bytes]:
        try:
            while (message := self._messages.get()) is not None:
                yield message.get("body", b"")
            self._running.result()
        finally:
            self._running.cancel()

    async def _parts_for_asgi(self) -> AsyncIterator[bytes]:
        try:
            while (message := await asyncio.to_thread(self._messages.get)) is not None:
                yield message.get("body", b"")
        finally:
            self._running.cancel()
            self._messages.put(None)  # lets the thread go that may still wait
