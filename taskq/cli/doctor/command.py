"""`taskq doctor`: looks at everything that may be wrong around a fleet."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from rich.text import Text

from taskq.cli.arguments import FleetArgument, JsonOption
from taskq.cli.common import locate_place
from taskq.cli.doctor.checks import Finding, examine
from taskq.cli.pictures import console_of, styled
from taskq.cli.tables import Cell, Column, table, width_of_terminal
from taskq.model.exits import Exit

_STYLES = {"ok": "green", "look": "yellow", "wrong": "bold red"}
_COLUMNS = (Column("subject"), Column("state"), Column("what was found, and what to do", is_story=True))


def doctor(app: FleetArgument = None, as_json: JsonOption = False) -> None:
    """Look for what is wrong with the place of a queue, and say what to do.

    It looks at versions, the directory, the disk, limits, the clock, the fleet and
    the spool, and changes nothing. The exit code is 1 if something is wrong.

    $ taskq doctor app.py:q
    $ taskq doctor --json | jq '.[] | select(.state != "ok")'
    """
    found = examine(locate_place(app).directory)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found]))
    else:
        console = console_of()
        for line in _lines(found, width_of_terminal()):
            console.print(line, soft_wrap=True)
    if any(finding.state == "wrong" for finding in found):
        sys.exit(Exit.FAILED)


def _lines(found: list[Finding], width: int | None) -> list[Text]:
    rows = [(finding.subject, Cell(finding.state, style=_STYLES[finding.state]), _story(finding)) for finding in found]
    return styled(table(_COLUMNS, rows, width))


def _story(finding: Finding) -> str:
    remedy = finding.remedy[:1].upper() + finding.remedy[1:]
    return f"{finding.told}. {remedy}." if remedy else finding.told
