"""Whether a fleet is ready for jobs. Small, as probes import it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def why_not_ready(status: Mapping[str, Any]) -> str:
    """Says why a fleet runs no jobs now; "" if it does.

    Args:
        status: a `FleetStatus` as it travels.
    """
    if status["broker"]["state"] != "running":
        return "the fleet is stopping"
    if any(consumer["state"] in ("idle", "running") for consumer in status["consumers"]):
        return ""
    for missing in status["not_started"]:
        first = str(missing["error"]).partition("\n")[0]
        return f"no consumer is there: consumer {missing['number']} does not start ({first})"
    return "no consumer has started yet"
