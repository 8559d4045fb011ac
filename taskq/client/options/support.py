"""Which options of jobs an engine does not support, and the one place that refuses them.

The check is made when a task is declared, and when `options()` makes another of it: never for each job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from taskq.client.options.call_options import PLAIN, CallOptions
from taskq.model.errors import ConfigError
from taskq.model.limits import MAX_ITEM_BYTES, MAX_PAYLOAD_BYTES
from taskq.model.spec import SPEC_FIELDS, Spec

_PLAIN_SPEC: Final = Spec("any")


@dataclass(frozen=True, slots=True)
class EngineSupport:
    """What an engine cannot do.

    Attributes:
        name: of the engine, for errors.
        scheme: of its URLs.
        unsupported: the options of `JobOptions` that it does not support; for each, the reason and what to do instead,
            in words that follow a colon.
        has_payload_files: whether large arguments and results have files of their own. If not, they go inline, and may
            take as much as an item of a generator.
    """

    name: str
    scheme: str
    unsupported: Mapping[str, str] = field(default_factory=dict)
    has_payload_files: bool = True

    @property
    def max_payload_bytes(self) -> int:
        """What the arguments, or the result, of one job may take."""
        return MAX_PAYLOAD_BYTES if self.has_payload_files else MAX_ITEM_BYTES

    def check(self, spec: Spec, call_options: CallOptions) -> None:
        """Checks the options of a task, or of some of its jobs.

        Raises:
            ConfigError: one of them is not supported.
        """
        for option in self.unsupported:
            if is_used(option, spec, call_options):
                self.check_option(spec.task, option)

    def check_option(self, task: str, option: str) -> None:
        """Checks one option that follows from a call: jobs among its arguments, or its place in a workflow.

        Raises:
            ConfigError: it is not supported.
        """
        reason = self.unsupported.get(option)
        if reason is not None:
            raise ConfigError(
                f"{task}: the {self.name} engine ({self.scheme}://...) does not support {option}=: {reason}"
            )


#: A directory of this machine. It supports all options.
EMBEDDED: Final = EngineSupport("embedded", "file")

#: A PostgreSQL database, which the fleets of several machines share.
POSTGRES: Final = EngineSupport("PostgreSQL", "postgresql", has_payload_files=False)


def is_used(option: str, spec: Spec, call_options: CallOptions) -> bool:
    """Whether an option has another value than its default."""
    if option in ("delay", "at"):
        due = call_options.due
        return due is not None and isinstance(due, datetime) == (option == "at")
    if option == "when_full":
        return call_options.waits_for_room
    of_spec = SPEC_FIELDS.get(option)
    if of_spec is not None and getattr(spec, of_spec) != getattr(_PLAIN_SPEC, of_spec):
        return True
    return bool(getattr(call_options, option, None) != getattr(PLAIN, option, None))
