"""The dashboard: pages in a browser that show what a fleet does, as an ASGI application.

`taskq web` runs it as a process of its own; `Dashboard` is mounted in an application that has its own users. It needs
the extra `[web]`: only the modules of this room import Starlette and Jinja. Those of `rules/`, which
are pure, do not, and `taskq top` uses them, too. All data comes through the client, and from the log.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskq.web.access import Access, Right, Visitor
    from taskq.web.dashboard import Dashboard

__all__ = ["Access", "Dashboard", "Right", "Visitor"]

#: What the extra [web] installs.
_NEEDED = ("starlette", "jinja2", "uvicorn")
#: What a program without that extra is told.
WEB_IS_MISSING = "the dashboard needs Starlette, Jinja and uvicorn: pip install 'taskq-fleet[web]'"


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that the lack of the extra is told in a sentence."""
    if name not in __all__:
        raise AttributeError(f"module 'taskq.web' has no attribute {name!r}")
    try:
        return getattr(import_module(f"taskq.web.{'dashboard' if name == 'Dashboard' else 'access'}"), name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] in _NEEDED:
            raise ImportError(WEB_IS_MISSING) from error
        raise
