"""structlog, imported without the three quarters of its import time that this package has no use for.

`import structlog` imports rich, if installed, for its development console (70 ms), twisted likewise (more),
and asyncio for its async methods (20 ms). The broker has its own console and no asyncio, and it must start
fast: 120 -> 34 ms of CPU time. So while structlog is imported here

- `rich`, `twisted`, `better_exceptions` and `colorama` look as if not installed, which structlog allows for;
- `asyncio` is a stand-in that loads the real one when structlog first uses it.

Afterwards `sys.modules` is as it was: others import these modules as usual. A structlog that is imported
already stays as it is, and so does whichever of these modules was imported before. The only lasting effect:
in this process structlog.dev prints tracebacks without rich. Import this in the broker only, never in a
process that runs user code.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_UNWANTED = ("rich", "twisted", "better_exceptions", "colorama")
_DEFERRED = "asyncio"


class _Deferred(ModuleType):
    """Stands in for a module until an attribute of it is wanted."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def _lean_imports() -> Iterator[None]:
    stand_ins: dict[str, Any] = dict.fromkeys(_UNWANTED)  # None makes the import fail
    stand_ins[_DEFERRED] = _Deferred(_DEFERRED)
    stand_ins = {name: stand_in for name, stand_in in stand_ins.items() if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


with _lean_imports():
    from structlog import make_filtering_bound_logger, wrap_logger
    from structlog.typing import FilteringBoundLogger

__all__ = ["FilteringBoundLogger", "make_filtering_bound_logger", "wrap_logger"]
