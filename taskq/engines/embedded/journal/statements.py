"""The statements of the journal in SQLite, and the columns that they give."""

from __future__ import annotations

from taskq.engines.embedded.journal.store import MAX_FOUND_RESULT_BYTES, TOTAL_NAMES
from taskq.model.stored import FIRST_FINAL, StoredState

#: Rows in one INSERT: 50 rows in a statement cost 2.0 microseconds of CPU each, single ones 3.1.
ROWS_PER_INSERT = 50
#: What a row of a job is made from.
ROW = "seq, id, spec, payload, attempts, crashes, terms, snoozes, checkpoint, due_at"
#: The place of a job's packed constraints in it.
CONSTRAINTS = 6
INSERT_HEAD = "INSERT INTO jobs (seq, id, spec, band, payload) VALUES "
INSERT_ONE = INSERT_HEAD + "(?, ?, ?, ?, ?)"
INSERT_MANY = INSERT_HEAD + ", ".join(["(?, ?, ?, ?, ?)"] * ROWS_PER_INSERT)
# one by one: fifty of these in a statement took 1.5 microseconds more each
INSERT_WITH_CONSTRAINTS = (
    "INSERT INTO jobs (seq, id, spec, band, payload, state, due_at, terms, is_keyed, expires_at, unique_key) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
QUEUED = f"SELECT {ROW} FROM jobs WHERE state = 0 AND band = ? AND seq > ? ORDER BY seq LIMIT ?"
QUEUED_KEYED = QUEUED.replace("state = 0", "state = 0 AND is_keyed = 1")
WAITING_IN = "SELECT ?1, count(*), min(seq) FROM jobs WHERE state = 0 AND band = ?1"
WAITING = "SELECT band, count(*), min(seq) FROM jobs WHERE state = 0 GROUP BY band"
_RETRIED_KEYED = f"SELECT {ROW} FROM jobs WHERE state = 1 AND is_keyed = 1 AND attempts > 0"
RETRIED = f"{_RETRIED_KEYED} UNION ALL {_RETRIED_KEYED.replace('state = 1', 'state = 0')}"  # each has an index
# due_at stays, as the time from which a job could have started; release_waiting and RESCHEDULE set it for that too
BECOME_DUE = "UPDATE jobs SET state = 0, band = ? WHERE seq = ?"
RELEASE_WAITING = "UPDATE jobs SET state = 0, due_at = ?, band = ? WHERE seq = ?"
DUE = f"SELECT {ROW} FROM jobs WHERE state = 1 AND due_at <= ? ORDER BY due_at LIMIT ?"
STORED = f"SELECT {ROW}, state, outcome, finished_at FROM jobs"
READ = f"{STORED} WHERE id = ?"
READ_WAITING = f"{STORED} WHERE seq = ? AND state = {StoredState.WAITING}"
EXPIRED = f"{STORED} WHERE expires_at <= ? ORDER BY expires_at LIMIT ?"
FORGET_EXPIRY = "UPDATE jobs SET expires_at = NULL WHERE seq = ?"
END_CONSTRAINTS = "UPDATE jobs SET expires_at = NULL, unique_key = CASE ? WHEN 1 THEN unique_key END WHERE seq = ?"
SUCCEED = (
    f"UPDATE jobs SET state = {StoredState.SUCCEEDED}, attempts = ?, crashes = ?, finished_at = ?, outcome = ?, "
    "payload = NULL, checkpoint = NULL WHERE seq = ?"
)
SUCCEED_WITH_CONSTRAINTS = SUCCEED.replace(
    " WHERE", ", expires_at = NULL, unique_key = CASE ? WHEN 1 THEN unique_key END WHERE"
)
# a failed job keeps its payload and its checkpoint: it can be run again
END = (
    "UPDATE jobs SET state = ?1, attempts = ?2, crashes = ?3, finished_at = ?4, outcome = ?5, due_at = NULL, "
    f"payload = CASE ?1 WHEN {StoredState.FAILED} THEN payload END, "
    f"checkpoint = CASE ?1 WHEN {StoredState.FAILED} THEN checkpoint END WHERE seq = ?6"
)
RESCHEDULE = (
    "UPDATE jobs SET state = ?, due_at = ?, spec = ?, band = ?, attempts = ?, crashes = ?, snoozes = ?, "
    "outcome = coalesce(?, outcome) WHERE seq = ?"
)
ITEMS_GO_WITH_THEIR_JOB = """CREATE TRIGGER IF NOT EXISTS items_go_with_their_job AFTER DELETE ON jobs BEGIN
    DELETE FROM items WHERE job = old.seq; END"""
EDGES_GO_WITH_THEIR_JOB = """CREATE TRIGGER IF NOT EXISTS edges_go_with_their_job AFTER DELETE ON jobs BEGIN
    DELETE FROM edges WHERE child = old.seq; END"""
ADD_EDGE = "INSERT OR IGNORE INTO edges (parent, child, goes_on) VALUES (?, ?, ?)"
OPEN_EDGES = "SELECT child, goes_on FROM edges WHERE parent = ? AND is_open = 1 ORDER BY child LIMIT ?"
CLOSE_EDGE = "UPDATE edges SET is_open = 0 WHERE parent = ? AND child = ?"
IS_WAITING = "SELECT 1 FROM edges WHERE child = ? AND is_open = 1 LIMIT 1"
WOULD_RELEASE = """SELECT 1 FROM edges AS own WHERE parent = ? AND is_open = 1 AND NOT EXISTS
    (SELECT 1 FROM edges WHERE child = own.child AND is_open = 1 AND parent <> own.parent) LIMIT 1"""
# by the partitions, which stand in the index of these jobs
COUNT_SCHEDULED = """SELECT bands.queue, sum(jobs) FROM bands,
    (SELECT band, count(*) AS jobs FROM jobs WHERE state = 1 GROUP BY band) USING (band) GROUP BY 1"""
# by the edges: an index of these jobs would cost all others a little
COUNT_WAITING = """SELECT bands.queue, count(*)
    FROM (SELECT DISTINCT child FROM edges WHERE is_open = 1) CROSS JOIN jobs ON seq = child JOIN bands USING (band)
    GROUP BY 1"""
#: Those of some jobs that are scheduled or wait for others; and the queues of some jobs.
LATER_AMONG = f"""SELECT state, spec FROM jobs WHERE seq IN (SELECT value FROM json_each(?))
    AND state IN ({StoredState.SCHEDULED}, {StoredState.WAITING})"""
CANCEL_DEPENDENT = (
    f"UPDATE jobs SET state = {StoredState.CANCELLED}, finished_at = ?, outcome = ?, "
    "due_at = NULL, expires_at = NULL, unique_key = NULL WHERE seq = ?"
)
# not if another that it needs did not succeed, or is no longer there: then nobody knows whether that had succeeded
_REVIVABLE = f"""FROM edges CROSS JOIN jobs ON seq = child
    WHERE goes_on = 0 AND state = {StoredState.CANCELLED} AND payload IS NOT NULL AND NOT EXISTS
    (SELECT 1 FROM edges AS own LEFT JOIN jobs AS before ON before.id = own.parent
    WHERE own.child = jobs.seq AND own.goes_on = 0
    AND coalesce(before.state, {StoredState.CANCELLED}) > {StoredState.SUCCEEDED})"""
_HAS_MORE = "EXISTS (SELECT 1 FROM edges AS more WHERE more.parent = jobs.id)"  # jobs that come after it in turn
REVIVABLE = f"SELECT seq, jobs.id, {_HAS_MORE} {_REVIVABLE} AND parent = ? AND child > ? ORDER BY child LIMIT ?"
UNREVIVED = f"SELECT DISTINCT parent {_REVIVABLE}"
DETACH = f"UPDATE jobs SET payload = NULL WHERE seq = ? AND state = {StoredState.CANCELLED}"
REVIVE = f"UPDATE jobs SET state = {StoredState.WAITING}, finished_at = NULL, outcome = NULL WHERE seq = ?"
# also those that have ended: one that is run again may have succeeded before all after it were revived
REOPEN = "UPDATE edges SET is_open = 1 WHERE child = ? AND EXISTS (SELECT 1 FROM jobs WHERE id = parent)"
ENDED_PARENTS = f"""SELECT parent, state FROM edges CROSS JOIN jobs ON id = parent
    WHERE child = ? AND is_open = 1 AND state >= {FIRST_FINAL}"""
# one that is not there was purged before all heard of it
UNFINISHED_RELEASES = f"""SELECT DISTINCT parent, coalesce(state, {StoredState.CANCELLED})
    FROM edges LEFT JOIN jobs ON id = parent WHERE is_open = 1 AND coalesce(state, {FIRST_FINAL}) >= {FIRST_FINAL}"""
FOLLOWERS = f"""SELECT id FROM edges CROSS JOIN jobs ON seq = child
    WHERE parent = ? AND state < {FIRST_FINAL} ORDER BY child LIMIT ?"""
ADD_ITEM = "INSERT OR IGNORE INTO items VALUES (?, ?, ?)"
ITEMS = "SELECT item FROM items WHERE job = ? AND position >= ? ORDER BY position LIMIT ?"
REQUEUE = (
    f"UPDATE jobs SET seq = ?, band = ?, state = {StoredState.QUEUED}, due_at = ?, finished_at = NULL, terms = ? "
    "WHERE seq = ?"
)
#: As READ, but without the payload and large results, and with the payload's size.
FOUND = (
    f"{ROW.replace('payload', 'NULL')}, state, "
    f"CASE WHEN state <> {StoredState.SUCCEEDED} OR length(outcome) < {MAX_FOUND_RESULT_BYTES} THEN outcome END, "
    "finished_at, length(payload)"
)
#: The states of jobs that are in an index of their own, and the condition with which it is used.
RARE = frozenset({StoredState.WAITING, StoredState.CANCELLED, StoredState.EXPIRED})
IS_RARE = f"(state > {StoredState.FAILED:d} OR state = {StoredState.WAITING:d})"
#: The scheduled jobs, in the order in which they come due, behind one of them.
FOUND_DUE = (
    f"SELECT {FOUND} FROM jobs INDEXED BY jobs_due WHERE state = {StoredState.SCHEDULED:d} "
    "AND (due_at, band, seq) > (?, ?, ?) ORDER BY due_at, band, seq LIMIT ?"
)
PLACE_DUE = f"SELECT due_at, iif(state = {StoredState.SCHEDULED:d}, band, -1), seq FROM jobs WHERE seq = ?"
SPECS_BETWEEN = "SELECT DISTINCT spec FROM jobs WHERE seq BETWEEN ? AND ?"
SCHEDULES = "SELECT fields, next_at, app, is_paused, last_at, last_id FROM schedules ORDER BY name"
PUT_SCHEDULE = (
    "INSERT OR REPLACE INTO schedules (name, fields, next_at, app, is_paused, last_at, last_id) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
#: What the rows do not show of the totals, and the number of commits that changed none of these.
TOTALS = "UPDATE totals SET " + ", ".join(f"{name} = ?" for name in (*TOTAL_NAMES, "commits"))
#: The states of ended jobs that go in time; failed ones stay.
PRUNABLE = frozenset(kept for kept in StoredState if kept >= FIRST_FINAL and kept != StoredState.FAILED)
JOBS_AFTER = "SELECT seq, state, finished_at FROM jobs WHERE seq > ? ORDER BY seq LIMIT ?"
PRUNE = f"DELETE FROM jobs WHERE seq BETWEEN ? AND ? AND state IN ({', '.join(str(int(kept)) for kept in PRUNABLE)})"
PRUNE_ATTEMPTS = "DELETE FROM attempts WHERE job BETWEEN ? AND ? AND job NOT IN (SELECT seq FROM jobs)"
# jobs that others come after are passed over, since their results are needed: also by those that failed and may be run
# again, and by those that were cancelled with a job before them and may be revived; these have their payload still
IS_PARENT = (
    "EXISTS (SELECT 1 FROM edges CROSS JOIN jobs AS after ON after.seq = child "
    "WHERE parent = jobs.id AND after.payload IS NOT NULL)"
)
JOBS_AFTER_SPARED = JOBS_AFTER.replace("state,", f"iif({IS_PARENT}, 0, state),")
PRUNE_SPARING = f"{PRUNE} AND NOT {IS_PARENT}"

#: An outcome whose result is in a file is not larger than this.
_MAX_FILED_OUTCOME_BYTES = 100


def with_files(prune: str) -> str:
    """What finds the jobs that PRUNE or PRUNE_SPARING removes and whose results may be in files."""
    return (
        f"{prune.replace('DELETE', 'SELECT id, outcome')} AND state = {StoredState.SUCCEEDED} "
        f"AND length(outcome) <= {_MAX_FILED_OUTCOME_BYTES}"
    )


KEYS_AT_ONCE = 50


def with_keys(number: int) -> str:
    """What asks for the jobs that have one of so many unique keys: the key, then as STORED."""
    head = STORED.replace("SELECT ", "SELECT unique_key, ", 1)
    return f"{head} WHERE unique_key IN ({', '.join('?' * number)})"


WITH_KEYS = with_keys(KEYS_AT_ONCE)
