"""Stands for the parts of a broker that a test does not look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Deaf:
    """Every attribute and every call is this object again, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_args: Any, **_fields: Any) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())
