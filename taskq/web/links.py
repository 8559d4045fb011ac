"""A link that works once and becomes a cookie: how whoever reads the terminal gets into a dashboard, and nobody else
who can reach its port."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from taskq.web.access import Access, Visitor

#: The name of the parameter in the link.
TOKEN = "token"
#: Browsers that are known at a time; the one that came first is forgotten.
_MOST_BROWSERS = 100

logger = logging.getLogger("taskq.web")

#: Goes on to the page without the token. A redirect would not do: a browser that followed the link from another site
#: does not send a strict cookie along with it.
_GO_ON = """<!doctype html><html lang="en"><meta charset="utf-8"><title>taskq</title>
<meta http-equiv="refresh" content="0;url={place}"><p><a href="{place}">Go on to the dashboard</a></p></html>"""


class Links:
    """Gives out links, and knows the browsers that have used one."""

    def __init__(self, name: str, tell: Callable[[str], object] | None = None) -> None:
        """
        Args:
            name: who the visitors are, for the log.
            tell: called with the token of each new link; by default it is logged as a warning.
        """
        self._name = name
        self._tell = tell or _log
        self._token = ""
        self._browsers: OrderedDict[bytes, None] = OrderedDict()  # hashes of what their cookies hold

    def new_link(self) -> str:
        """Makes a new token, in place of the one before, and tells it. Returns it."""
        self._token = secrets.token_urlsafe(24)
        self._tell(self._token)
        return self._token

    def __call__(self, request: Request) -> Access:
        """Says whether a request comes from a browser that has used a link: a resolver for `access=`."""
        known = _hash(request.cookies.get(cookie_name(request), ""))
        if known in self._browsers:
            return Visitor(self._name)
        if not self._token:
            self.new_link()  # somebody came, and there is no link yet
        return None

    def use(self, request: Request) -> Response | None:
        """Lets a browser in that comes with the token of the newest link; a new link takes its place. None if the
        token is another."""
        given = request.query_params.get(TOKEN, "")
        if not self._token or not hmac.compare_digest(given.encode(), self._token.encode()):
            return None
        value = secrets.token_urlsafe(32)
        self._browsers[_hash(value)] = None
        while len(self._browsers) > _MOST_BROWSERS:
            self._browsers.popitem(last=False)
        prefix = request.scope.get("root_path", "")
        response = HTMLResponse(_GO_ON.format(place=escape(f"{prefix}/")))
        response.set_cookie(
            cookie_name(request),
            value,
            path=f"{prefix}/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        self.new_link()
        return response


def cookie_name(request: Request) -> str:
    """Programs at several ports of one host share their cookies, so the port is in the name."""
    return f"taskq_{request.url.port or request.url.scheme}"


def _hash(value: str) -> bytes:
    return sha256(value.encode()).digest()


def _log(token: str) -> None:
    logger.warning(
        "open the dashboard once with ?%s=%s; or say who may see it with Dashboard(access=...)", TOKEN, token
    )
