"""How far a wait is, shown as a bar or told to a function: `map(..., progress=True)`, `gather(..., progress=True)`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: True for a bar on standard error if that is a terminal; or a function, told how many are done, of how many (None if
#: that is not known), at the start and after each job that ended:
#: ``with tqdm(total=len(jobs)) as bar: gather(jobs, progress=lambda done, total: bar.update(done - bar.n))``
Progress = bool | Callable[[int, int | None], object]

#: A terminal shows no more than this, and an update takes ten microseconds.
_SHOW_EVERY_S = 0.05


@contextmanager
def reporting(progress: Progress, total: int | None, title: str) -> Iterator[Callable[[int], object]]:
    """Yields what is to be called with the number of jobs that have ended, after each."""
    if callable(progress):
        progress(0, total)
        yield lambda done: progress(done, total)
    elif progress and sys.stderr is not None and sys.stderr.isatty():
        with _bar(total, title) as tell:
            yield tell
    else:
        yield _tell_nobody


def _tell_nobody(_done: int) -> None:
    pass


@contextmanager
def _bar(total: int | None, title: str) -> Iterator[Callable[[int], object]]:
    from rich.console import Console  # takes 60 ms to import: only programs that show a bar pay for it
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    count = 0
    show_at = 0.0
    with Bar(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task(title, total=total)

        def tell(done: int) -> None:
            nonlocal count, show_at
            count = done
            now = time.monotonic()
            if now >= show_at:
                show_at = now + _SHOW_EVERY_S
                bar.update(shown, completed=done)

        try:
            yield tell
        finally:
            bar.update(shown, completed=count, total=total)
