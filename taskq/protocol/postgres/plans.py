"""Plans: what is asked of the database, step by step, without I/O. Whoever has a connection runs them.

    def plan() -> Plan[int]:
        [found] = yield Step(Query("SELECT ...", (...,)))          # one round trip
        ...
        yield Step(Query("UPDATE ..."), commits=True)              # the last one: the commit goes with it
        return 3

All steps of a plan are one transaction. A runner may begin a plan again after a deadlock, and when it does not know
whether a commit has happened: so each does the same if it runs twice.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar


class Query(NamedTuple):
    """A statement.

    Attributes:
        sql: with $1, $2 ... for the parameters, and `taskq.` before the names of tables and functions of ours, which
            whoever sends it replaces by the name of the schema.
        params: None, numbers, texts, bytes (bytea), UUIDs and `arrays.Array`.
    """

    sql: str
    params: Sequence[Any] = ()


#: The rows of a statement. A uuid comes as the driver gives it: select `uuid_send(id)` to get bytes.
Rows: TypeAlias = list[tuple[Any, ...]]


class Step(tuple[Query, ...]):
    """Statements that are sent together.

    Attributes:
        commits: whether they are the last ones of their plan: they are sent with the commit.
        after: what is sent behind the commit: it is not done if that fails.
    """

    commits: bool
    after: tuple[Query, ...]

    def __new__(cls, *queries: Query, commits: bool = False, after: Sequence[Query] = ()) -> Step:
        step = super().__new__(cls, queries)
        step.commits = commits or bool(after)
        step.after = tuple(after)
        return step


T = TypeVar("T")
#: It is sent the rows of each statement of the step.
Plan: TypeAlias = Generator[Step, list[Rows], T]
