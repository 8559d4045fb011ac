"""A guardian for most of a fleet's life: the same process, which has become a program of a few modules.

It waits. When its broker says something or ends, it imports the rest (`guardian.py`), deals with it, and becomes small
again when the fleet is ready again.
"""

from __future__ import annotations

import json
import sys

from taskq.broker.watch import Watch
from taskq.system.platform import name_process


def main(told: str) -> None:
    """Waits, then goes on as a `taskq.broker.guardian.Guardian`; the target of the process.

    Args:
        told: by that guardian, in JSON: a `taskq.broker.watch.PassedOn`, and what `Guardian.grown` needs.
    """
    passed_on, kept = json.loads(told)
    name_process(f"guardian [{kept['title']}]")
    watch = Watch.taken_over(passed_on)
    packet = watch.wait()
    from taskq.broker.guardian import Guardian

    sys.exit(Guardian.grown(watch, kept).go_on(packet))
