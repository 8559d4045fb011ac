"""What the PostgreSQL engine does not do yet: refused by name, before anything is sent."""

from __future__ import annotations

from typing import NoReturn

from taskq.model.errors import ConfigError


def _refuse(what: str) -> NoReturn:
    raise ConfigError(
        f"the PostgreSQL engine (postgresql://...) does not support {what} yet: use a queue in a directory for them"
    )


class Refused:
    """The operations of `taskq.client.transport.api.QueueApi` that are refused."""

    def schedules(self) -> NoReturn:
        """All schedules."""
        _refuse("schedules")

    def put_schedule(self, *_: object, **__: object) -> NoReturn:
        """Adds a schedule."""
        _refuse("schedules")

    def remove_schedule(self, *_: object, **__: object) -> NoReturn:
        """Removes a schedule."""
        _refuse("schedules")

    def pause_schedule(self, *_: object, **__: object) -> NoReturn:
        """Pauses a schedule."""
        _refuse("schedules")

    def run_schedule(self, *_: object, **__: object) -> NoReturn:
        """Makes a job of a schedule."""
        _refuse("schedules")
