"""What a run of the benchmark needs: directories, fleets and limits. Each is started when a case first asks for it.

Most cases share one fleet, one bare process, one skeleton and one pool. What a case asks for under another name ends
with its part.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Protocol, TypeVar

import taskq
from taskq.cli.bench.figures import LeftOut
from taskq.cli.bench.fleet import BenchFleet
from taskq.cli.bench.limits.pool import Pool
from taskq.cli.bench.limits.service import Service, ServiceClient
from taskq.cli.bench.producers import Producers
from taskq.cli.bench.watchers import Watchers
from taskq.system.place import DatabaseUrl

if TYPE_CHECKING:
    from taskq.cli.bench.limits.database import BareDatabase

#: In a checkout of the repository.
_SKELETON = Path(taskq.__file__).parents[1] / "tests" / "product" / "bench" / "skeleton.py"


class _Closes(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closes)


class NotHere(Exception):
    """A side cannot be measured here; the message says why."""


class Stage:
    """What runs while the benchmark runs. It is a context, at whose end nothing is left.

    Args:
        parent: the folder in which it makes its own.
        consumers: how many consumers a fleet has, and processes a limit.
        is_quick: whether it is a short run.
        database: the URL of a PostgreSQL database to measure; None: there is none.
    """

    def __init__(self, parent: Path, consumers: int, is_quick: bool, database: DatabaseUrl | None = None) -> None:
        self.parent = parent
        self._database = database
        self.consumers = consumers
        self.is_quick = is_quick
        self.left_out: list[LeftOut] = []
        self._root = Path(mkdtemp(prefix="taskq-bench-", dir=parent))
        self._run, self._of_part = ExitStack(), ExitStack()
        self._run.callback(shutil.rmtree, self._root, ignore_errors=True)
        self._made_of_part: dict[str, object] = {}
        self._part = ""
        self._directories = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        with self._run, self._of_part:
            pass

    def begin(self, part: str) -> None:
        """Ends what only the part before needed."""
        self._part = part
        self._made_of_part.clear()
        self._of_part.close()

    def amount(self, full: int, quick: int) -> int:
        """How much of something is to be done in this run."""
        return quick if self.is_quick else full

    def leave_out(self, what: str, reason: str) -> None:
        """Notes that something of this part is not measured."""
        found = LeftOut(self._part, what, reason)
        if found not in self.left_out:
            self.left_out.append(found)

    def directory(self) -> Path:
        """A new directory."""
        self._directories += 1
        path = self._root / str(self._directories)
        path.mkdir(mode=0o700)
        return path

    # -- what all parts share

    @cached_property
    def fleet(self) -> BenchFleet:
        """The fleet that most cases measure; its jobs run."""
        return self._started(self._run, ())

    @cached_property
    def bare(self) -> Service:
        """The bare socket with a commit."""
        return self._kept(self._run, Service(["-m", "taskq.cli.bench.limits.bare"], self.directory()))

    @cached_property
    def bare_client(self) -> ServiceClient:
        """A connection to it."""
        return self._kept(self._run, ServiceClient(self.bare.path))

    @cached_property
    def skeleton(self) -> Service:
        """The skeleton of a queue.

        Raises:
            NotHere: this taskq was installed without its tests.
        """
        if not _SKELETON.exists():
            raise NotHere("only in a checkout of the repository")
        command = [str(_SKELETON), str(self.consumers)]
        return self._kept(self._run, Service(command, self.directory()))

    @cached_property
    def skeleton_client(self) -> ServiceClient:
        """The connection to it."""
        return self._kept(self._run, ServiceClient(self.skeleton.path))

    @cached_property
    def bare_database(self) -> BareDatabase:
        """The bare script in the database.

        Raises:
            NotHere: no database was named.
        """
        from taskq.cli.bench.limits.database import BareDatabase  # with psycopg, which most do not need

        return self._kept(self._run, BareDatabase(self._named_database.conninfo))

    @cached_property
    def database_fleet(self) -> BenchFleet:
        """A fleet whose queue is in the database, in a schema of its own.

        Raises:
            NotHere: no database was named.
        """
        from taskq.cli.bench.limits.database import OwnSchema  # with psycopg, which most do not need

        database = self._named_database
        own = self._kept(self._run, OwnSchema(database.conninfo))
        more = "&" if "?" in database.conninfo else "?"
        url = f"{database.conninfo}{more}schema={own.name}"
        fleet = self._kept(self._run, BenchFleet(self.directory(), self.consumers, (), url))
        fleet.start()
        return fleet

    @property
    def _named_database(self) -> DatabaseUrl:
        if self._database is None:
            raise NotHere("no database was named by --url")
        return self._database

    @cached_property
    def pool(self) -> Pool:
        """A process pool."""
        return self._kept(self._run, Pool(self.consumers))

    # -- what a part has for itself

    def own_fleet(self, name: str, *options: str, prepare: Callable[[BenchFleet], object] | None = None) -> BenchFleet:
        """A fleet of this part alone, running.

        Args:
            name: under which the part may ask for it again.
            options: of `taskq worker`.
            prepare: is called with it once.
        """

        def make() -> BenchFleet:
            fleet = self._started(self._of_part, options)
            if prepare is not None:
                prepare(fleet)
            return fleet

        return self._of(name, make)

    def stopped_fleet(self, *options: str) -> BenchFleet:
        """A new fleet that does not run yet. It is stopped with the part."""
        return self._kept(self._of_part, BenchFleet(self.directory(), self.consumers, options))

    def producers(self, count: int, kind: str, path: Path) -> Producers:
        """Processes that enqueue, of this part alone."""
        made = f"{count} producers, {kind}"
        return self._of(made, lambda: self._kept(self._of_part, Producers(count, kind, path)))

    def watchers(self, path: Path) -> Watchers:
        """Those who watch the fleet in a directory, of this part alone."""
        return self._of("watchers", lambda: self._kept(self._of_part, Watchers(path)))

    def service_clients(self, count: int) -> Sequence[ServiceClient]:
        """Connections to the bare process, of this part alone."""
        return [
            self._of(f"client {number}", lambda: self._kept(self._of_part, ServiceClient(self.bare.path)))
            for number in range(count)
        ]

    def _started(self, stack: ExitStack, options: Sequence[str]) -> BenchFleet:
        fleet = self._kept(stack, BenchFleet(self.directory(), self.consumers, options))
        fleet.start()
        return fleet

    def _of(self, name: str, make: Callable[[], T]) -> T:
        if name not in self._made_of_part:
            self._made_of_part[name] = make()
        made: T = self._made_of_part[name]  # type: ignore[assignment]
        return made

    @staticmethod
    def _kept(stack: ExitStack, made: T) -> T:
        stack.callback(made.close)
        return made
