"""`taskq recover`: what can be saved of a damaged journal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from taskq.broker.rescue import Salvaged
from taskq.broker.rescue import recover as recover_journal
from taskq.cli.arguments import FleetArgument
from taskq.cli.common import find_place, tell
from taskq.model.errors import ConfigError
from taskq.model.info.words import count_of

#: No more ids of lost jobs are printed.
_MOST_IDS = 100


def recover(app: FleetArgument = None) -> None:
    """Save what can be saved of a damaged journal, and say what is lost.

    For a fleet that does not start since its journal is damaged. What can be read
    goes into a new journal, which takes the place of the old one; the old files
    are kept beside it. A journal that is whole stays as it is.

    $ taskq recover app.py:q
    """
    place = find_place(app)
    if place.database is not None:
        raise ConfigError(f"the queue is in {place.shown}: recover it with the means of the database")
    found, kept = recover_journal(place.directory)
    if kept is None:
        print(f"{place.directory.journal} is whole: nothing was changed")
        return
    if found is None:
        tell("an earlier `taskq recover` was killed when it had saved everything: its work is finished now")
    else:
        for line in told_of(found):
            print(line)
    print(f"the old files are kept in {kept}; start a fleet as usual")


def told_of(found: Salvaged) -> Iterator[str]:
    """What was saved and what was not, in lines."""
    states = ", ".join(f"{count:,} {state}" for state, count in sorted(found.states.items()))
    yield f"saved: {count_of(sum(found.states.values()), 'job')}{f' ({states})' if states else ''}"
    rest = ", ".join(f"{count:,} {table}" for table, count in found.tables.items() if count)
    if rest:
        yield f"saved: {rest}"
    for note in found.notes:
        yield f"mended: {note}"
    yield from _lost("that cannot be read", found.missing)
    yield from _lost("with bytes that were not written like that", found.damaged)
    if not found.is_index_read:
        for first, last in found.holes:
            end = "the end" if last >= 1 << 61 else f"number {last}"
            yield f"lost: perhaps more jobs, between number {first} and {end}: the index of ids cannot be read there"
    if found.lost_changes:
        yield f"lost: the last {found.lost_changes:,} changes (jobs that came in or ended): the log was cut off"
    if found.lost_frames:
        yield f"lost: the last commits, {count_of(found.lost_frames, 'page')} of the write-ahead log that are damaged"
    for table in found.damaged_tables:
        yield f"lost: some rows of {table}"


def _lost(how: str, ids: Sequence[str]) -> Iterator[str]:
    if ids:
        yield f"lost: {count_of(len(ids), 'job')} {how}:"
        yield from (f"    {job_id}" for job_id in ids[:_MOST_IDS])
    if len(ids) > _MOST_IDS:
        yield f"    ... and {len(ids) - _MOST_IDS:,} more"
