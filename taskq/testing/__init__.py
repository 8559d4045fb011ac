"""Jobs without a fleet, for your tests, by the code that fleets run. What tests use is handed on here; the rest stays
inside."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from taskq.testing.jobs import Clock, Enqueued, Jobs, inline, queue

__all__ = ["Clock", "Enqueued", "Jobs", "inline", "queue"]


def __getattr__(name: str) -> "Any":
    """Imports these when one is first used: every run of pytest loads the plugin beside them, used or not."""
    if name not in __all__:
        raise AttributeError(f"module 'taskq.testing' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("taskq.testing.jobs"), name)
