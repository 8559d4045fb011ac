"""Clients that do not read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Deaf:
    """Takes the place of what a test does not look at: every call does nothing."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_args: Any, **_fields: Any) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())
