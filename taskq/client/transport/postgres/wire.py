"""The statements of a step on a connection of ours, sent and answered in one go, as a generator for either shell.

Cursors and pipelines of psycopg do the same, and take three times as much CPU time for it, which was a third of the
time of a round trip. What waits, and for how long, is still psycopg's.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.abc import PQGen
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

from taskq.client.transport.postgres.sessions import in_schema
from taskq.protocol.postgres.arrays import FLOAT, Array
from taskq.protocol.postgres.plans import Query, Rows, Step

_BEGIN: Final = Query("BEGIN")
_COMMIT: Final = Query("COMMIT")
_TEXT, _BINARY = 0, 1


class Wire:
    """Used by one call at a time. After an error, the connection is of no use any more."""

    def __init__(self, connection: PGconn, schema: str, *, prepares: bool) -> None:
        """
        Args:
            connection: that of nobody else, in autocommit mode, and in UTF-8.
            schema: of the tables.
            prepares: whether statements stay prepared: not behind a pooler.
        """
        self._pg = connection
        self._schema = schema
        self._transformer = Transformer()
        self._prepares = prepares
        self._prepared: dict[tuple[str, tuple[int, ...]], bytes] = {}  # by text and types: their names

    def run(self, step: Step, *, is_open: bool) -> PQGen[list[Rows]]:
        """Sends a step, and waits for its answer. Returns the rows of each statement, also of those that come after.

        Args:
            is_open: whether its transaction has begun before. If it neither has nor goes on, the statements are one by
                themselves.
        """
        pg = self._pg
        pg.enter_pipeline_mode()
        expected: list[bool] = []  # of each result, whether it is the rows of a statement of the step
        if not (is_open or step.commits):
            self._send(_BEGIN, expected, is_wanted=False)
        for query in step:
            self._send(query, expected)
        if is_open and step.commits:
            self._send(_COMMIT, expected, is_wanted=False)
        pg.pipeline_sync()
        for query in step.after:
            self._send(query, expected)
        if step.after:
            pg.pipeline_sync()
        while pg.flush():
            if (yield Wait.RW) & Ready.R:
                pg.consume_input()
        answers = yield from self._answers(2 if step.after else 1)
        pg.exit_pipeline_mode()
        return [self._rows(answer) for answer, is_wanted in zip(answers, expected, strict=True) if is_wanted]

    def _send(self, query: Query, expected: list[bool], *, is_wanted: bool = True) -> None:
        encoded = [self._encoded(param) for param in query.params]
        oids = [oid for oid, _, _ in encoded]
        formats = [form for _, form, _ in encoded]
        values = [value for _, _, value in encoded]
        sql = in_schema(query.sql, self._schema)
        if not self._prepares:
            self._pg.send_query_params(sql.encode(), values, oids, formats, _BINARY)
            expected.append(is_wanted)
            return
        key = query.sql, tuple(oids)
        name = self._prepared.get(key)
        if name is None:
            name = self._prepared[key] = b"taskq%d" % len(self._prepared)
            self._pg.send_prepare(name, sql.encode(), oids)
            expected.append(False)
        self._pg.send_query_prepared(name, values, formats, _BINARY)
        expected.append(is_wanted)

    def _answers(self, syncs: int) -> PQGen[list[PGresult]]:
        """The results of statements, up to so many syncs. Raises psycopg.Error for the first one that failed."""
        pg, answers = self._pg, list[PGresult]()
        error: psycopg.Error | None = None
        while syncs:
            if pg.is_busy():
                yield Wait.R
                pg.consume_input()
                continue
            result = pg.get_result()
            if result is None:
                continue  # it separates the results of statements
            status = result.status
            if status == ExecStatus.PIPELINE_SYNC:
                syncs -= 1
                continue
            if status == ExecStatus.FATAL_ERROR and error is None:
                error = error_from_result(result)
            answers.append(result)
        if error is not None:
            raise error
        return answers

    def _rows(self, result: PGresult) -> Rows:
        if not result.ntuples:
            return []
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, result.ntuples, tuple)

    def _encoded(self, value: Any) -> tuple[int, int, bytes | None]:
        """A parameter: its type, its form, and its bytes. The type of a text, and of what is missing, is left to the
        server."""
        match value:
            case Array(oid, data):
                return oid, _BINARY, data
            case None:
                return 0, _TEXT, None
            case str():
                if "\0" in value:
                    raise psycopg.DataError("a text must not contain NUL (0x00) bytes")
                return 0, _TEXT, value.encode()
            case bytes():
                return 17, _BINARY, value
            case bool():
                return 16, _BINARY, b"\1" if value else b"\0"
            case int():
                return _integer(value)
            case float():
                return 701, _BINARY, FLOAT.pack(value)
            case UUID():
                return 2950, _BINARY, value.bytes
        raise TypeError(f"{type(value).__name__} is not a type of a parameter")


def _integer(value: int) -> tuple[int, int, bytes]:
    """Of the smallest type that has it, so that it fits where less than a bigint is expected."""
    for oid, size in ((21, 2), (23, 4), (20, 8)):
        if -(1 << (8 * size - 1)) <= value < 1 << (8 * size - 1):
            return oid, _BINARY, value.to_bytes(size, "big", signed=True)
    raise psycopg.DataError(f"{value} is not a bigint")
