"""structlog, imported without what the broker does not use: a quarter of the time.

`import structlog` also imports rich for its development console, if rich is installed (70 ms), twisted likewise, and
asyncio for its async methods (20 ms). The broker uses none of them and must start fast: 34 ms of CPU time instead of
120. While structlog is imported here,

- `rich`, `twisted`, `better_exceptions` and `colorama` look as if they were not installed, which structlog allows for;
- `asyncio` is a stand-in that loads the real module when structlog first uses it.

Afterwards `sys.modules` is as it was, and these modules can be imported as usual. Modules that were imported before,
structlog included, stay as they are. The only lasting effect: in this process, structlog.dev prints tracebacks without
rich. Import this in the broker only, never in a process that runs user code.
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
    """Stands in for a module until one of its attributes is used."""

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
