"""What is checked before anything else of a request, and what each answer tells the browser to refuse."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Scripts, styles and pictures of our own only; no frames, and forms that go nowhere else.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
#: They tell nobody more than whether the fleet is well.
PROBES = ("/livez", "/readyz")
WRITE_REFUSED = (
    "refused: only a page of this dashboard may change something. Your browser must send Sec-Fetch-Site: same-origin, "
    "which all browsers do over HTTPS and on localhost."
)


class Guard:
    """Refuses requests with a foreign Host, which a page of another site may send by a name that leads here, and sets
    the headers of all answers."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        """
        Args:
            hosts: the names that may stand in the Host header, without a port; any if there are none.
        """
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        host = host_of(Headers(scope=scope).get("host", ""))
        is_probe = scope["path"].removeprefix(scope.get("root_path", "")) in PROBES  # by any name, such as an address
        if self._hosts and host not in self._hosts and not is_probe:
            told = f"refused: this dashboard is not {host!r:.100}; start it with --allow-host to give it that name\n"
            await PlainTextResponse(told, 421)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


def host_of(header: str) -> str:
    """The name in a Host header, without the port."""
    name = header.rsplit(":", 1)[0] if header.rpartition(":")[2].isdecimal() else header
    return name.strip("[]").lower()


def is_from_own_page(request: Request) -> bool:
    """Whether a browser says that a page of this very origin has sent a request."""
    return request.headers.get("sec-fetch-site") == "same-origin"
