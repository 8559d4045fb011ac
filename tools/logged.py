"""What the code logs: each event with its levels and fields, read from the syntax trees of `taskq/`.

A line of the log is written in one of these forms:

    log.info("event", field=...)                    also (log.error if x else log.info)(...), getattr(log, level)(...)
    tx.then(log.info, "event", field=...)           after the commit
    announce(..., level, "event", field=...)        by the guardian
    Event("event", {"field": ...})                  a note, which broker/events.py writes with the level in its table
    {"level": ..., "event": "event", "field": ...}  a line that is made as a dict; or compose(level, {"event": ...})

The name of an event may be one of two, a variable or a parameter. Fields that come by `**` are followed to where they
are made if that is in the same file: to a dict, a variable, an attribute, a function. `DECLARED` has the rest.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import taskq
from taskq.broker.events import NOTE_LEVELS
from taskq.engines.embedded.journal.store import TOTAL_NAMES
from taskq.telemetry.catalogue import JOB_FIELDS
from taskq.telemetry.record import LEVELS
from taskq.telemetry.throttle import HIGH_RATE

ROOT: Final = Path(taskq.__file__).parent
#: The rooms that write to the fleet's log. What the others log goes to `logging`, and is the application's.
_ROOMS: Final = ("broker", "engines", "telemetry", "model")
#: What stands for any name: the fields that jobs log are their own.
ANY: Final = "*"

#: What the syntax does not say, by "file: function: expression": fields, or the names of events.
DECLARED: Final[dict[str, tuple[str, ...]]] = {
    "broker/core/core.py: _did_not_succeed: follows.event": (
        "job.snoozed",
        "job.cancelled",
        "job.retrying",
        "job.failed",
    ),
    "broker/core/core.py: _crashed: follows.event": ("job.failed",),
    "broker/events.py: notes: note.event": (),  # found where the notes are made
    "broker/events.py: output: fields_of_line(line)": ("message", "logger", "traceback", ANY),
    "broker/events.py: summaries: summary": (
        "task",
        *HIGH_RATE.values(),
        "duration_mean_ms",
        "duration_max_ms",
        "duration_total_ms",
        "window_s",
    ),
    "broker/loop.py: _backlog: later": ("scheduled", "waiting"),
    "broker/loop.py: _close: self._engine.figures.totals.as_dict()": TOTAL_NAMES,
}

#: What broker/events.py makes of the fields of a note; others stay as they are.
_OF_NOTES: Final = {
    "row": JOB_FIELDS,
    "consumer_key": ("consumer", "pid"),
    "error": ("error", "exit_code", "signal", "traceback"),
}


class Logged(NamedTuple):
    """An event as the code logs it.

    Attributes:
        levels: those that it may have.
        fields: those that it may have, besides timestamp, level and event.
    """

    levels: frozenset[str]
    fields: frozenset[str]


class Unknown(Exception):
    """`DECLARED` lacks an expression that cannot be followed, or has one that is not there."""


def events_of_the_code() -> dict[str, Logged]:
    """Returns all events, by name. Raises Unknown if `DECLARED` is not right."""
    found: dict[str, Logged] = {}
    used: set[str] = set()
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name.split("/")[0] in _ROOMS:
            for event, levels, fields in Source(name, path.read_text(), used).lines():
                before = found.get(event, Logged(frozenset(), frozenset()))
                found[event] = Logged(before.levels | levels, before.fields | fields)
    if unused := set(DECLARED) - used:
        raise Unknown(f"no line of the log needs these any more: {sorted(unused)}")
    return found


_Function = ast.FunctionDef | ast.AsyncFunctionDef
#: An event, its levels and its fields.
_Line = tuple[str, set[str], set[str]]


class Source:
    """One file of the code."""

    def __init__(self, name: str, text: str, used: set[str]) -> None:
        """
        Args:
            name: its path in `taskq/`.
            text: what is in it.
            used: gets the keys of `DECLARED` that were needed.
        """
        self._name = name
        self._used = used
        tree = ast.parse(text)
        functions = [node for node in ast.walk(tree) if isinstance(node, _Function)]
        self._functions = {node.name: node for node in functions}
        self._nodes = [(node, function) for function in functions for node in ast.walk(function)]

    def lines(self) -> Iterator[_Line]:
        """All that it logs."""
        for node, function in self._nodes:
            if isinstance(node, ast.Call):
                yield from self._of_call(node, function)
            elif isinstance(node, ast.Dict):
                given = dict(zip(map(_text, node.keys), node.values, strict=True))
                if (event := _text(given.get("event"))) and (level := _text(given.get("level"))):
                    yield event, {level}, self._fields(node, function) - {"level", "event"}

    def _of_call(self, call: ast.Call, function: _Function) -> Iterator[_Line]:
        name, arguments = _last_name(call.func), call.args
        if name == "then" and len(arguments) > 1 and (levels := self._levels(arguments[0], function)):
            yield from self._line(arguments[1], levels, call.keywords, function)
        elif name == "announce" and len(arguments) == 4:
            yield from self._line(arguments[3], arguments[2], call.keywords, function)
        elif name == "compose" and len(arguments) == 3 and isinstance(arguments[1], ast.Dict) and _text(arguments[0]):
            fields = self._fields(arguments[1], function) - {"event"}
            yield _text(arguments[1].values[0]), {_text(arguments[0])}, fields
        elif name == "pop" and [_text(each) for each in arguments[:1]] == ["event"] and len(arguments) == 2:
            yield _text(arguments[1]), {ANY}, set()  # the name of an event that has none
        elif name == "Event" and len(arguments) == 2:
            yield from self._line(arguments[0], None, [ast.keyword(None, arguments[1])], function)
        elif arguments and (levels := self._levels(call.func, function)):
            yield from self._line(arguments[0], levels, call.keywords, function)

    def _line(
        self, event: ast.expr, levels: set[str] | ast.expr | None, keywords: list[ast.keyword], function: _Function
    ) -> Iterator[_Line]:
        """One call that logs. If the event is a parameter of its function, the calls of that say what is logged."""
        if not (isinstance(event, ast.Name) and event.id in _parameters(function)):
            names = list(self._names(event, function))
            fields = self._of_keywords(keywords, function) if names else set()
            for name in names:
                given = {_text(levels)} if isinstance(levels, ast.expr) else levels
                yield (name, given, fields) if given else (name, {NOTE_LEVELS[name]}, _of_note(fields))
            return
        passed_on = function.args.kwarg.arg if function.args.kwarg else ""
        own = [each for each in keywords if not (each.arg is None and _last_name(each.value) == passed_on)]
        own_fields = self._of_keywords(own, function)
        for call, caller in self._calls_of(function):
            bound = _bound(call, function)
            level = bound.get(levels.id) if isinstance(levels, ast.Name) else levels
            extra = [each for each in call.keywords if each.arg not in _parameters(function)]
            for name, of_name, fields in self._line(bound[event.id], level, extra, caller):
                yield name, of_name, fields | (own_fields if level else _of_note(own_fields))

    def _levels(self, called: ast.expr, function: _Function) -> set[str]:
        """The levels of a method of a log; empty: it is something else."""
        match called:
            case ast.Attribute(value=log, attr=method) if method in LEVELS:
                return {method} if _last_name(log) in ("log", "_log") else set()
            case ast.IfExp(body=one, orelse=other):
                return self._levels(one, function) | self._levels(other, function)
            case ast.Call(func=ast.Name(id="getattr"), args=[log, _]) if _last_name(log) in ("log", "_log"):
                return {ANY}
            case ast.Name(id=name) if name not in _parameters(function):
                return {level for value in self._values(name, function) for level in self._levels(value, function)}
        return set()

    def _names(self, event: ast.expr, function: _Function) -> Iterator[str]:
        """The names that an event may have."""
        if name := _text(event):
            yield name
        elif isinstance(event, ast.IfExp):
            yield from self._names(event.body, function)
            yield from self._names(event.orelse, function)
        elif isinstance(event, ast.Name) and (values := self._values(event.id, function)):
            for value in values:
                yield from self._names(value, function)
        else:
            yield from self._declared(event, function)

    def _of_keywords(self, keywords: list[ast.keyword], function: _Function) -> set[str]:
        fields: set[str] = set()
        for each in keywords:
            fields |= {each.arg} if each.arg else self._fields(each.value, function)
        if "exc_info" in fields:
            fields = fields - {"exc_info"} | {"error", "traceback"}
        return fields

    def _fields(self, value: ast.expr, function: _Function) -> set[str]:
        """The keys of a dict that is given to the log by `**`, or handed on."""
        if self._key(value, function) in DECLARED:
            return set(self._declared(value, function))
        match value:
            case ast.Dict(keys=keys, values=values) if all(key is None or _text(key) for key in keys):
                pairs = zip(keys, values, strict=True)
                return set().union(*({_text(key)} if key else self._fields(each, function) for key, each in pairs))
            case ast.IfExp(body=one, orelse=other):
                return self._fields(one, function) | self._fields(other, function)
            case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name):
                if function.args.kwarg is not None and name == function.args.kwarg.arg:
                    known = _parameters(function)
                    calls = self._calls_of(function)
                    given = [([each for each in call.keywords if each.arg not in known], at) for call, at in calls]
                    return set().union(*(self._of_keywords(keywords, at) for keywords, at in given))
                if found := self._built(name, function):
                    return found
            case ast.Call(func=called) if (name := _last_name(called)) in self._functions:
                made = self._functions[name]
                returned = [node.value for node in ast.walk(made) if isinstance(node, ast.Return) and node.value]
                return set().union(*(self._fields(each, made) for each in returned))
        return set(self._declared(value, function))

    def _built(self, name: str, function: _Function) -> set[str]:
        """The keys that a variable or an attribute is given in this file; empty: it is not made here."""
        fields: set[str] = set()
        for value in self._values(name, function):
            fields |= self._fields(value, function)
        for node in ast.walk(function):
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and _last_name(node.value) == name:
                fields.add(_text(node.slice))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "update":
                fields |= self._fields(node.args[0], function) if _last_name(node.func.value) == name else set()
        return fields

    def _values(self, name: str, function: _Function) -> list[ast.expr]:
        """What is assigned to a variable in a function, or to an attribute anywhere in the file."""
        found: list[ast.expr] = []
        for node, at in self._nodes:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple):
                    each = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value] * len(target.elts)
                    pairs = list(zip(target.elts, each, strict=True))
                for one, value in pairs:
                    is_variable = isinstance(one, ast.Name) and at is function
                    if (is_variable or isinstance(one, ast.Attribute)) and _last_name(one) == name:
                        found.append(value)
        return found

    def _calls_of(self, function: _Function) -> list[tuple[ast.Call, _Function]]:
        calls = [(node, at) for node, at in self._nodes if isinstance(node, ast.Call)]
        return [(call, at) for call, at in calls if _last_name(call.func) == function.name]

    def _key(self, expression: ast.expr, function: _Function) -> str:
        return f"{self._name}: {function.name}: {ast.unparse(expression)}"

    def _declared(self, expression: ast.expr, function: _Function) -> tuple[str, ...]:
        key = self._key(expression, function)
        self._used.add(key)
        if key not in DECLARED:
            raise Unknown(f"what this logs is not to be seen: declare it in DECLARED of tools/logged.py: {key}")
        return DECLARED[key]


def _of_note(fields: set[str]) -> set[str]:
    """The fields of the line that broker/events.py writes for a note."""
    return set().union(*(_OF_NOTES.get(each, (each,)) for each in fields))


def _text(node: ast.expr | None) -> str:
    """The text of a constant; empty for all else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _last_name(node: ast.expr) -> str:
    """The name of a variable, or of the last attribute."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _parameters(function: _Function) -> list[str]:
    return [each.arg for each in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]


def _bound(call: ast.Call, function: _Function) -> dict[str, ast.expr]:
    """The arguments of a call, by the names of the parameters."""
    names = _parameters(function)
    names = names[1:] if names[:1] == ["self"] else names
    by_keyword = {each.arg: each.value for each in call.keywords if each.arg}
    return {**dict(zip(names, call.args, strict=False)), **by_keyword}
