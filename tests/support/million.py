"""A journal in which a great deal has happened, made in seconds: lists, pages and backups must not get slow by it."""

from __future__ import annotations

import time

from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.model.attempt import Ran, pack_failure, pack_success
from taskq.model.constraints import Constraints
from taskq.model.info.counts import Counts, CountsRow
from taskq.model.job import JobError, JobRow, new_job_ids
from taskq.model.spec import Spec
from taskq.model.stored import StoredState
from taskq.protocol.codec.encode import encode_call

#: The tasks of apps/shown.py.
COMMON = Spec("thumbnail", "images")
FAILING = Spec("send_mail", "mail", retries=0)
RARE = Spec("clean")
QUIET = Spec("step", "quiet")

#: Jobs of `RARE`, at the old end of the journal, and of `QUIET`, which follow, and wait.
RARE_JOBS = 20
QUIET_JOBS = 1_000
#: Of a hundred jobs, so many fail, are cancelled, and wait.
_FAIL, _CANCELLED, _WAIT = 3, 1, 10
#: Kinds of failures: each in a place of its own.
PLACES = 300
#: One job in so many has meta.
_WITH_META = 500
_AT_ONCE = 10_000
_TRACEBACK = (
    'Traceback (most recent call last):\n  File "/srv/shop/mail.py", line {line}, in send\n' + "    deliver()\n" * 60
)


def fill(store: SQLiteStore, jobs: int) -> None:
    """Puts so many jobs into an empty journal: a tenth waits, in the order in which they came."""
    _submit(store, RARE, RARE_JOBS, ends=True)
    _submit(store, QUIET, QUIET_JOBS, ends=False)
    waiting = jobs * _WAIT // 100 - QUIET_JOBS
    left = jobs - RARE_JOBS - QUIET_JOBS - waiting
    failing = jobs * _FAIL // 100
    portions = max(1, left // _AT_ONCE)
    for number in range(portions):
        failed = failing * (number + 1) // portions - failing * number // portions
        share = left * (number + 1) // portions - left * number // portions
        _submit(store, COMMON, share - failed, ends=True)
        _submit(store, FAILING, failed, ends=True)
    for start in range(0, waiting, _AT_ONCE):
        _submit(store, COMMON, min(_AT_ONCE, waiting - start), ends=False)
    store.keep_counts(_counts(jobs, failing))
    store.pause([COMMON.queue, QUIET.queue], True)
    store.commit()


def _submit(store: SQLiteStore, spec: Spec, number: int, *, ends: bool) -> None:
    if number <= 0:
        return
    ids = list(new_job_ids(number))
    payloads = [
        encode_call(job_id, (f"/srv/shop/pictures/{place:08}.jpg",), {"size": 256}) for place, job_id in enumerate(ids)
    ]
    with_meta = Constraints(meta=(("tenant", "acme-corp"),)) if ends and spec is COMMON else None
    constraints = None
    if with_meta is not None:
        constraints = [with_meta if place % _WITH_META == 0 else Constraints() for place in range(number)]
    rows = store.submit(spec, ids, payloads, constraints)
    store.commit()
    if ends:
        store.settle([_end(row, place, spec) for place, row in enumerate(rows)], [], time.time())
        store.commit()


def _end(row: JobRow, place: int, spec: Spec) -> tuple[JobRow, StoredState, bytes]:
    row.attempts = 1
    at = time.time()
    if spec is FAILING:
        line = row.seq % PLACES
        error = JobError("ConnectionError", f"mail server {line} refused", _TRACEBACK.format(line=line))
        return row, StoredState.FAILED, pack_failure(at, 0.01, error, ran=Ran(1, 4711, 40 << 20))
    if place % 100 < _CANCELLED:
        return row, StoredState.CANCELLED, pack_failure(None, None, JobError("Cancelled", "cancelled by hand"))
    return row, StoredState.SUCCEEDED, pack_success(at, 0.01, b"\x01" * 40, 1)


def _counts(jobs: int, failing: int) -> list[CountsRow]:
    minute = int(time.time() // 60)
    rows = []
    for spec, own in ((COMMON, jobs - failing), (FAILING, failing), (RARE, RARE_JOBS), (QUIET, QUIET_JOBS)):
        for back in range(60):
            counts = Counts(enqueued=own // 60, started=own // 60)
            if spec is FAILING:
                counts.failed = own // 60
            elif spec is not QUIET:
                counts.succeeded = own // 60
            for _ in range(50):
                counts.wait.add(5_000)
                counts.run.add(10_000)
            rows.append(CountsRow(spec.task, spec.queue, minute - back if back else 0, counts.pack()))
    return rows
