"""Writes the parts of the pages in docs/ that are generated from the code; `--check` says which are out of date.

Such a part stands between `<!-- generated: NAME -->` and `<!-- end -->`, and NAME is a key of `PARTS`.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import logged
import typer.main

import taskq
from taskq.cli.config.options import FLEET_OPTIONS
from taskq.cli.program import COMMANDS, build
from taskq.client.options.options import JobOptions
from taskq.model import exits
from taskq.telemetry.catalogue import EVENTS, FIELDS, JOB_FIELDS
from taskq.telemetry.record import LEVELS

DOCS = Path(__file__).parents[1] / "docs"
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.S)
#: How the groups of `taskq.__all__` are headed; the name is the first of each group.
_GROUPS = {
    "Attempt": "The application, its tasks and jobs",
    "aas_completed": "Waiting for many jobs",
    "Cancel": "What a job raises to say what should happen to it",
    "GroupHandle": "Workflows",
    "AlreadyRunning": "Errors",
}
#: The classes that users call; objects of the others come from methods.
_MADE_BY_USERS = ("Executor", "TaskQ")
#: Sections of docstrings.
_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")


# -- tables


def _cell(text: str) -> str:
    """A text as it stands in a table: in one line, and with bars that do not end the cell."""
    return " ".join(_plain(text).replace("|", "\\|").split())


def _plain(text: str) -> str:
    """A text without the markup of rich and of reStructuredText."""
    return re.sub(r"\[/?(?:bold|dim|b|i)\]", "", text).replace("\\[", "[").replace("``", "`")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    head = list(head)
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |".replace("|  |", "| |").replace("|  |", "| |")


def options() -> Iterator[str]:
    """The options of a job, by the headings of the docstring of `JobOptions`."""
    rows: list[list[str]] = []
    for line in (inspect.getdoc(JobOptions) or "").splitlines()[1:]:
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if indent == 0:
            rows.append([f"*{line.strip()}*", "", ""])
        elif found := re.match(r"    (\w+) \((.+?)\): (.*)", line):
            rows.append([f"`{found[1]}`", found[2], found[3]])
        elif found := re.match(r"    (\w+) \((.*)", line):  # the type goes on in the next line
            rows.append([f"`{found[1]}`", found[2], ""])
        else:
            rows[-1][2] += f" {line.strip()}"
    yield from _table(("option", "value", "what it does"), rows)


def settings() -> Iterator[str]:
    """The options of a fleet, with their variables."""
    rows = []
    for each in FLEET_OPTIONS:
        value = "" if each.is_flag else each.metavar
        default = "no" if each.is_flag else each.in_words or each.default
        rows.append((f"`--{each.name}`", f"`{each.variable}`", value, default, each.help))
    yield from _table(("option; key without the dashes", "variable", "value", "default", "what it does"), rows)


def exit_codes() -> Iterator[str]:
    """The exit codes, with their comments."""
    found = re.findall(r"^    [A-Z_]+ = (\d+)  #: (.+)$", inspect.getsource(exits.Exit), re.M)
    yield from _table(("code", "meaning"), found)


# -- the log


def log_events() -> Iterator[str]:
    """The events of the log, by what they are about: what they are from the code, what they mean from the catalogue."""
    found = logged.events_of_the_code()
    for heading, texts in EVENTS.items():
        yield f"### {heading}\n"
        rows = []
        for event, text in texts.items():
            levels, fields = found[event]
            shown = "any" if logged.ANY in levels else ", ".join(sorted(levels, key=lambda level: LEVELS[level]))
            rows.append((f"`{event}`", shown, text.means, text.to_do, _fields_of(fields)))
        yield from _table(("event", "level", "what it means", "what to do", "its fields"), rows)
        yield ""


def _fields_of(fields: frozenset[str]) -> str:
    """Fields as they stand in the table: those that every line about a job has as one word."""
    own = fields - {logged.ANY}
    has_job = own >= set(JOB_FIELDS)
    names = [f"`{name}`" for name in FIELDS if name in own - (set(JOB_FIELDS) if has_job else set())]
    return " ".join([*(["*job*"] if has_job else []), *names, *(["*any*"] if logged.ANY in fields else [])])


def log_fields() -> Iterator[str]:
    """The fields of the log, from the catalogue."""
    rows = [(f"`{name}`", text.kind, text.means) for name, text in FIELDS.items()]
    yield from _table(("field", "type", "what it says"), rows)


# -- commands


def commands() -> Iterator[str]:
    """All commands, with their arguments and options."""
    for heading in dict.fromkeys(panel for _, panel, _ in COMMANDS.values()):
        yield f"## {heading}\n"
        for name, (_, panel, _) in COMMANDS.items():
            if panel == heading:
                group: Any = typer.main.get_command(build([name]))
                yield from _command(name, group.commands[name])


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    named = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    yield f"### taskq {name}\n"
    words = [_shown(each) for each in arguments]
    yield f"```text\n{' '.join(['taskq', name, *(['[OPTIONS]'] if named else []), *words])}\n```\n"
    yield _paragraphs(command.help or "")
    rows = [(f"`{_name(each)}`", each.help or "") for each in arguments if each.help]
    for each in named:
        switches = ", ".join(f"`{switch}`" for switch in (*each.opts, *each.secondary_opts))
        rows.append((switches, each.help or ""))
    if rows:
        yield from _table(("option", "what it does"), rows)
        yield ""


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper()).strip("[].")


def _shown(argument: Any) -> str:
    """An argument as it stands in a call."""
    text = f"{_name(argument)}{'...' if argument.nargs != 1 else ''}"
    return text if argument.required else f"[{text}]"


def _paragraphs(text: str) -> str:
    """The text of a help; commands and parts of files are blocks."""
    parts = re.split(r"\n\s*\n", inspect.cleandoc(_plain(text).replace("\b\n", "")))
    shown = (f"```text\n{part}\n```" if re.match(r"\s*(\$ |\[tool)", part) else part for part in parts)
    return "\n\n".join(shown) + "\n"


# -- Python


def api() -> Iterator[str]:
    """The public names, in groups, with their docstrings."""
    for name in taskq.__all__:
        if name in _GROUPS:
            yield f"## {_GROUPS[name]}\n"
        yield from _entry(name, getattr(taskq, name))


def _entry(name: str, item: Any) -> Iterator[str]:
    yield f"### {name}\n"
    if not inspect.isclass(item):
        yield _signature(name, item)
        yield _docstring(item)
        return
    if name in _MADE_BY_USERS:
        yield _signature(name, item.__init__)
    if name == "JobOptions":
        yield "The options of a job, as a `TypedDict`: see [Options of a job](options.md).\n"
        return
    yield _docstring(item)
    if name != "JobState":
        for method, function in _methods(item):
            yield from _method(name, method, function)


def _methods(item: Any) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class of taskq, in the order of the source, those of its bases first."""
    seen: dict[str, Any] = {}
    for base in reversed(item.__mro__):
        if base.__module__.startswith("taskq."):
            seen |= {key: value for key, value in vars(base).items() if not key.startswith("_")}
    for key, value in seen.items():
        function = value.fget if isinstance(value, property) else inspect.unwrap(getattr(value, "__func__", value))
        if (callable(function) and not inspect.isclass(function)) and inspect.getdoc(function):
            yield key, value


def _method(owner: str, name: str, member: Any) -> Iterator[str]:
    yield f"#### {owner}.{name}\n"
    if isinstance(member, property):
        yield _docstring(member.fget)
        return
    function = getattr(member, "__func__", member)
    yield _signature(name, function)
    yield _docstring(function)


def _signature(name: str, function: Any) -> str:
    """How it is called, in a block of text: one line if it fits, else a parameter a line."""
    source = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    node = next(each for each in ast.walk(source) if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)))
    arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("cls, ")
    arguments = "" if arguments in ("self", "cls") else re.sub(r"^self: .*?, ", "", arguments)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    is_async = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    line = f"{is_async}{name}({arguments}){returns}"
    if len(line) > 100:
        parts = re.split(r", (?![^\[(]*[\])])", arguments)
        line = f"{is_async}{name}(\n    " + ",\n    ".join(parts) + f",\n){returns}"
    return f"```text\n{line}\n```\n"


def _docstring(item: Any) -> str:
    """A docstring as Markdown: sections become lists."""
    blocks: list[str] = []
    section = ""
    for line in (inspect.getdoc(item) or "").replace("``", "`").splitlines():
        head = line.strip().removesuffix(":")
        if line and not line.startswith(" ") and head in _SECTIONS and line.endswith(":"):
            section = head
            blocks += [f"*{head}*\n"]
        elif not line.strip():
            section = "" if section and blocks[-1] == "" else section
            blocks.append("")
        elif section and (found := re.match(r"    ([*\w, ]+?)(?: \((.+?)\))?: (.*)", line)) and section != "Returns":
            blocks.append(f"- `{found[1]}`{f' ({found[2]})' if found[2] else ''}: {found[3]}")
        elif section and line.startswith("    "):
            blocks.append(f"  {line.strip()}" if blocks[-1].startswith(("- ", "  ")) else f"- {line.strip()}")
        else:
            section = ""
            blocks.append(line)
    return "\n".join(blocks) + "\n"


#: What is generated, by the name in the comment.
PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "api": api,
    "commands": commands,
    "events": log_events,
    "exits": exit_codes,
    "fields": log_fields,
    "options": options,
    "settings": settings,
}


def written(text: str) -> str:
    """The text of a page with its generated parts as they should be."""

    def part(found: re.Match[str]) -> str:
        lines = "\n".join(line.rstrip(" ") for line in PARTS[found[2]]()).strip()
        lines = re.sub(r"\n{3,}", "\n\n", lines)
        return f"{found[1]}\n{lines}\n\n{found[3]}"

    return _PART.sub(part, text)


def main() -> int:
    """Writes the pages, or with `--check` only names those that are out of date."""
    outdated = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        if text != (new := written(text)):
            outdated.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(new)
    print(*(f"docs/{name}" for name in outdated), sep="\n")
    return 1 if outdated and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
