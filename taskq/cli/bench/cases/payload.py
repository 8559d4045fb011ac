"""Arguments and results of some size."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from taskq.cli.bench.app import BenchApp, echo, take
from taskq.cli.bench.case import TASKQ, Case, Limit, Row, Values, at_least, at_most
from taskq.cli.bench.producers import repeat, timed
from taskq.cli.bench.stage import Stage
from taskq.model.errors import JobFailed, PayloadTooLarge

_POOL, _FILE = "process pool", "files"
_SIZES = {"10 KB": 10_000, "1 MB": 1_000_000, "4 MB": 4_000_000, "20 MB": 20_000_000, "100 MB": 100_000_000}
_ONE_WAY = "1 MB"


def _sizes(stage: Stage) -> dict[str, int]:
    most = stage.amount(max(_SIZES.values()), _SIZES["20 MB"])
    return {name: size for name, size in _SIZES.items() if size <= most}


def _times(size: int) -> int:
    """How often it is done: small things more often."""
    return max(1, min(50, 10_000_000 // size))


def _ms(seconds: list[float]) -> float:
    return sum(seconds) / len(seconds) * 1e3


def _data(size: int) -> bytes:
    return os.urandom(1_000) * (size // 1_000)


def _taskq(stage: Stage) -> Values:
    app = stage.fleet.app
    values = {}
    for name, size in _sizes(stage).items():
        data = _data(size)
        try:
            values[name] = _ms(repeat(partial(_there_and_back, app, data), _times(size)))
        except (PayloadTooLarge, JobFailed) as error:
            stage.leave_out(name, str(error))
    data, count = _data(_SIZES[_ONE_WAY]), stage.amount(60, 20)
    seconds = timed(lambda: stage.fleet.finish([app.take.enqueue(data) for _ in range(count)][-1]))
    return values | {"one_way": count / seconds}


def _there_and_back(app: BenchApp, data: bytes) -> bytes:
    return app.echo.enqueue(data).result(timeout=60)


def _pool(stage: Stage) -> Values:
    values = {}
    for name, size in _sizes(stage).items():
        data = _data(size)
        values[name] = _ms(repeat(partial(stage.pool.call, echo, data), _times(size)))
    data, count = _data(_SIZES[_ONE_WAY]), stage.amount(60, 20)
    return values | {"one_way": count / timed(lambda: stage.pool.run(take, [data] * count))}


def _files(stage: Stage) -> Values:
    path = stage.directory() / "payload"
    values = {}
    for name, size in _sizes(stage).items():
        data = _data(size)
        values[name] = 2 * _ms(repeat(partial(_write_and_read, path, data), _times(size)))
    path.unlink()
    return values


def _write_and_read(path: Path, data: bytes) -> bytes:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fdatasync(file.fileno())
    return path.read_bytes()


def _row(name: str) -> Row:
    files = Limit(_FILE, at_most(1.5)) if name == "100 MB" else Limit(_FILE)
    return Row(name, f"{name} there and back", "ms", (files, Limit(_POOL)))


CASE = Case(
    part="payload",
    title="Large arguments and results (files: two are written, synced and read)",
    rows=(
        *map(_row, _SIZES),
        Row("one_way", f"{_ONE_WAY} there, nothing back", "/s", (Limit(_POOL, at_least(0.8)),)),
    ),
    sides={_FILE: _files, TASKQ: _taskq, _POOL: _pool},
    turns=3,
    quick_turns=1,
)
