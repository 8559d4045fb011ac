"""The statements of a broker. `taskq.` stands for the application's schema; $1 is the number of the fleet in each that
has one.

A job belongs to a fleet while `queue.lease` is the fleet's number, and every statement that changes a job of the fleet
says so: what a fleet writes about a job that it has lost changes nothing.
"""

from __future__ import annotations

from typing import Final

#: The columns of a job that a fleet gets; see `rows.job_row`. Of `queue` as q and `jobs` as j.
_COLUMNS: Final = (
    "q.seq, uuid_send(q.id), q.spec, q.attempts, q.crashes, q.snoozes, q.losses, q.cancel, "
    "extract(epoch FROM q.expires_at - taskq.now_())::float8, extract(epoch FROM q.ready_at - taskq.now_())::float8, "
    "j.constraints, j.payload, j.checkpoint"
)

# -- leases

#: Whether the fleet is still one.
FENCE: Final = "SELECT 1 FROM taskq.fleets WHERE fleet = $1"
#: The same; and it stays one until the end of the transaction.
HOLD: Final = FENCE + " FOR KEY SHARE"

#: $2, $3, $4: partitions, the lowest seq to look at in each, and the queue of each (1, 2 ...), in order of priority;
#: $5: how many jobs to take of each queue. If there are any, the fleet is kept from being taken for dead until they are
#: its own; if there are none, nothing is written.
LEASE: Final = f"""
WITH picked AS MATERIALIZED (
    SELECT of_queue.seq FROM unnest($5::int[]) WITH ORDINALITY AS wanted (most, queue), LATERAL (
        SELECT ready.seq FROM unnest($2::int[], $3::bigint[], $4::int[]) AS p (partition, low, queue), LATERAL (
            SELECT seq FROM taskq.queue
            WHERE partition = p.partition AND state = 0 AND lease IS NULL AND seq >= p.low
                AND (expires_at IS NULL OR expires_at > taskq.now_() OR attempts > 0)
            ORDER BY seq LIMIT wanted.most FOR UPDATE SKIP LOCKED) AS ready
        WHERE p.queue = wanted.queue LIMIT wanted.most) AS of_queue),
me AS MATERIALIZED (
    SELECT fleet FROM taskq.fleets WHERE fleet = $1 AND EXISTS (SELECT FROM picked) FOR KEY SHARE),
q AS (UPDATE taskq.queue AS queue SET lease = me.fleet FROM picked, me
    WHERE queue.seq = picked.seq AND queue.lease IS NULL RETURNING queue.*)
SELECT {_COLUMNS}, q.partition FROM q JOIN taskq.jobs AS j ON j.id = q.id ORDER BY q.seq"""

#: As `LEASE`; $6, $7: the most jobs of each partition, and the highest seq that may go.
LEASE_LIMITED: Final = (
    LEASE.replace(
        "$4::int[]) AS p (partition, low, queue)",
        "$4::int[], $6::int[], $7::bigint[]) AS p (partition, low, queue, most, high)",
    )
    .replace("seq >= p.low", "seq BETWEEN p.low AND p.high")
    .replace("ORDER BY seq LIMIT wanted.most FOR", "ORDER BY seq LIMIT least(wanted.most, p.most) FOR")
)

# -- limits

#: $1, $2: partitions, and the lowest seq to look at in each; $3: how many jobs to count. Those that have jobs.
READY: Final = """
SELECT p.partition, ready.first, ready.jobs FROM unnest($1::int[], $2::bigint[]) AS p (partition, low), LATERAL (
    SELECT min(seq) AS first, count(*)::int AS jobs FROM (
        SELECT seq FROM taskq.queue WHERE partition = p.partition AND state = 0 AND lease IS NULL AND seq >= p.low
        ORDER BY seq LIMIT $3::int) AS counted) AS ready
WHERE ready.jobs > 0"""
#: The next partitions that have jobs, behind number $1, $2 at most: of each, the first job.
SCAN: Final = """
WITH RECURSIVE ready AS (
    (SELECT partition, seq FROM taskq.queue WHERE state = 0 AND lease IS NULL AND partition > $1::int
    ORDER BY partition, seq LIMIT 1)
    UNION ALL
    SELECT next.partition, next.seq FROM ready, LATERAL (
        SELECT partition, seq FROM taskq.queue WHERE state = 0 AND lease IS NULL AND partition > ready.partition
        ORDER BY partition, seq LIMIT 1) AS next)
SELECT partition, seq, 1 FROM ready LIMIT $2::int"""
#: $1: the numbers of locks. The places of those that nobody else holds: until the end of the transaction, they are
#: held here. What they guard is to be read by later statements.
LOCK_LIMITS: Final = """
SELECT place::int FROM unnest($1::bigint[]) WITH ORDINALITY AS l (number, place)
WHERE pg_try_advisory_xact_lock(number)"""
#: $2, $3: limits. How much each fleet has of each, for how many seconds it has been waiting for more, and whether it is
#: this fleet.
CLAIMS: Final = """
SELECT g.kind, g.name, g.amount, CASE WHEN g.waits_until > taskq.now_()
    THEN greatest(0, extract(epoch FROM taskq.now_() - g.wanted_at))::float8 END, g.fleet = $1
FROM unnest($2::text[], $3::text[]) AS l (kind, name)
JOIN taskq.grants AS g ON g.kind = l.kind AND g.name = l.name"""
#: $1: the names of rates.
RATES: Final = "SELECT name, state FROM taskq.limits WHERE kind = 'rate' AND name = ANY ($1::text[])"
#: $1: packed limits. The first job of each that was started and will run again, or runs.
AGAIN: Final = """
SELECT p.limits, min(started.seq) FROM taskq.partitions AS p, LATERAL (
    SELECT seq FROM taskq.queue AS q WHERE q.partition = p.partition AND q.attempts > 0 ORDER BY seq LIMIT 1) AS started
WHERE p.limits = ANY ($1::bytea[]) GROUP BY 1"""
TIME: Final = "SELECT extract(epoch FROM taskq.now_())::float8"
#: $2, $3, $4: limits, and how much of each the fleet has now; nothing, if it is none any more. $5: for how many seconds
#: others are to believe that it waits for more, NULL if it does not; $6: 1 if it has got some, so that it waits anew.
GRANT: Final = """
WITH me AS MATERIALIZED (SELECT fleet FROM taskq.fleets WHERE fleet = $1 FOR KEY SHARE),
d AS MATERIALIZED (
    SELECT d.kind, d.name, me.fleet, d.amount, taskq.now_() + make_interval(secs => d.waits) AS waits_until, d.has_got
    FROM me, unnest($2::text[], $3::text[], $4::int[], $5::float8[], $6::smallint[])
        AS d (kind, name, amount, waits, has_got)),
known AS (
    UPDATE taskq.grants AS g SET amount = d.amount, waits_until = d.waits_until,
        wanted_at = CASE WHEN d.has_got = 0 AND g.waits_until > taskq.now_() THEN g.wanted_at ELSE taskq.now_() END
    FROM d WHERE g.kind = d.kind AND g.name = d.name AND g.fleet = d.fleet RETURNING g.kind, g.name)
INSERT INTO taskq.grants (kind, name, fleet, amount, wanted_at, waits_until)
SELECT kind, name, fleet, amount, taskq.now_(), waits_until FROM d
WHERE (kind, name) NOT IN (SELECT kind, name FROM known)
ON CONFLICT (kind, name, fleet) DO UPDATE SET amount = excluded.amount"""
#: $2, $3, $4: limits, and how much of each the fleet keeps, which is less than it has.
GIVE_BACK: Final = """
WITH d AS MATERIALIZED (SELECT * FROM unnest($2::text[], $3::text[], $4::int[]) AS d (kind, name, amount)),
gone AS (DELETE FROM taskq.grants AS g USING d
    WHERE g.kind = d.kind AND g.name = d.name AND g.fleet = $1 AND d.amount = 0)
UPDATE taskq.grants AS g SET amount = d.amount FROM d
WHERE g.kind = d.kind AND g.name = d.name AND g.fleet = $1 AND d.amount > 0 AND d.amount < g.amount"""
#: Tells the other fleets, if there are any. $2: a channel; $3: the words.
TELL_OTHERS: Final = """
SELECT pg_notify($2::text, word) FROM unnest($3::text[]) AS word WHERE EXISTS (
    SELECT FROM taskq.fleets WHERE fleet <> $1)"""
#: $1, $2, $3: rates, their states, and for how many seconds these matter.
KEEP_RATES: Final = """
INSERT INTO taskq.limits (kind, name, state, until)
SELECT 'rate', d.name, d.state, taskq.now_() + make_interval(secs => d.until)
FROM unnest($1::text[], $2::bytea[], $3::float8[]) AS d (name, state, until)
ON CONFLICT (kind, name) DO UPDATE SET state = excluded.state, until = excluded.until"""
GRANTS: Final = "SELECT kind, name, amount FROM taskq.grants WHERE fleet = $1"
#: $2: fleets that are no more: this one has what they had.
INHERIT: Final = """
WITH gone AS (DELETE FROM taskq.grants WHERE fleet = ANY ($2::bigint[]) RETURNING kind, name, amount)
INSERT INTO taskq.grants (kind, name, fleet, amount) SELECT kind, name, $1, sum(amount)::int FROM gone GROUP BY 1, 2
HAVING sum(amount) > 0
ON CONFLICT (kind, name, fleet) DO UPDATE SET amount = grants.amount + excluded.amount"""
FORGET_GRANTS: Final = "DELETE FROM taskq.grants WHERE fleet = $1"

# -- which jobs are the fleet's

#: All jobs that the fleet has.
LEASED: Final = f"SELECT {_COLUMNS} FROM taskq.queue AS q JOIN taskq.jobs AS j ON j.id = q.id WHERE q.lease = $1"

#: $2: the jobs that go back, uncharged.
RELEASE: Final = """
UPDATE taskq.queue SET lease = NULL WHERE seq = ANY ($2::bigint[]) AND lease IS NOT DISTINCT FROM $1"""

#: After the fleet was taken for dead: gets back what nobody has touched since. $2, $3, $4: jobs, attempts, crashes.
RECLAIM: Final = """
UPDATE taskq.queue AS q SET lease = $1 FROM unnest($2::bigint[], $3::int[], $4::int[]) AS d (seq, attempts, crashes)
WHERE q.seq = d.seq AND q.lease IS NULL AND q.state = 0 AND q.attempts = d.attempts AND q.crashes = d.crashes
RETURNING q.seq"""

# -- outcomes

# The planner expects one row of a CTE, and would join two of them by a loop in a loop: therefore `gone` and `moved`
# return what they were joined with. And jobs are found by their keys, since the index of leased ones is full of dead
# entries: `IS NOT DISTINCT FROM` uses no index.

#: $2 ...: the columns of what has ended. Returns those that were not the fleet's. What is deleted is what is counted,
#: so each end counts once, whatever dies. The number of a state in `tallies` is 7 less.
SETTLE: Final = """
WITH d AS MATERIALIZED (
    SELECT * FROM unnest($2::bigint[], $3::smallint[], $4::int[], $5::int[], $6::int[], $7::bytea[])
        AS d (seq, state, attempts, crashes, snoozes, outcome)),
gone AS (
    DELETE FROM taskq.queue AS q USING d WHERE q.seq = d.seq AND q.lease IS NOT DISTINCT FROM $1
    RETURNING q.id, q.spec, d.*),
done AS (
    UPDATE taskq.jobs AS j SET state = gone.state, attempts = gone.attempts, crashes = gone.crashes,
        snoozes = gone.snoozes, spec = gone.spec, outcome = gone.outcome, settled_by = $1,
        finished_at = taskq.now_(), payload = CASE gone.state WHEN 11 THEN j.payload END,
        checkpoint = CASE gone.state WHEN 11 THEN j.checkpoint END
    FROM gone WHERE j.id = gone.id),
dead AS (INSERT INTO taskq.failed SELECT id FROM gone WHERE state = 11 ON CONFLICT DO NOTHING),
tallied AS (INSERT INTO taskq.tallies SELECT taskq.now_(), state - 7, spec, count(*) FROM gone GROUP BY state, spec)
SELECT seq FROM d EXCEPT SELECT seq FROM gone"""

#: As `SETTLE`, after a commit of which nobody knows whether it has happened: what the fleet has settled itself is not
#: lost. $8: the ids.
SETTLE_AGAIN: Final = SETTLE.replace(
    "SELECT seq FROM d EXCEPT SELECT seq FROM gone",
    """SELECT seq FROM d EXCEPT SELECT seq FROM gone EXCEPT
SELECT j.seq FROM taskq.jobs AS j WHERE j.id = ANY ($8::uuid[]) AND j.settled_by = $1""",
)

#: $2 ...: the columns of jobs that go on; `delay`: in how many seconds, NULL for at once in the same fleet if `keeps`;
#: `number`: of the attempt that has ended. $12, $13, $14: jobs, and their attempts that ended before those, with the
#: outcomes. $15: the name of the machine. Returns those that were not the fleet's.
RESCHEDULE: Final = """
WITH d AS MATERIALIZED (
    SELECT * FROM unnest($2::bigint[], $3::int[], $4::int[], $5::int[], $6::int[], $7::int[], $8::float8[],
        $9::smallint[], $10::bytea[], $11::int[])
        AS d (seq, attempts, crashes, snoozes, spec, partition, delay, keeps, outcome, number)),
moved AS (
    UPDATE taskq.queue AS q SET attempts = d.attempts, crashes = d.crashes, snoozes = d.snoozes,
        spec = d.spec, partition = d.partition, state = CASE WHEN d.delay > 0 THEN 1 ELSE 0 END,
        due_at = CASE WHEN d.delay > 0 THEN taskq.now_() + make_interval(secs => d.delay) END,
        ready_at = taskq.now_(), lease = CASE WHEN d.keeps = 1 THEN q.lease END
    FROM d WHERE q.seq = d.seq AND q.lease IS NOT DISTINCT FROM $1 RETURNING q.id, d.*),
told AS (
    UPDATE taskq.jobs AS j SET outcome = moved.outcome FROM moved
    WHERE j.id = moved.id AND moved.outcome IS NOT NULL),
kept AS (
    INSERT INTO taskq.attempts SELECT id, number, outcome, $15::text FROM moved WHERE outcome IS NOT NULL
    UNION ALL SELECT moved.id, e.number, e.outcome, $15::text
    FROM unnest($12::bigint[], $13::int[], $14::bytea[]) AS e (seq, number, outcome) JOIN moved USING (seq)
    ON CONFLICT DO NOTHING)
SELECT seq FROM d EXCEPT SELECT seq FROM moved"""

#: $2, $3: jobs, and what they keep for their next attempt.
CHECKPOINT: Final = """
UPDATE taskq.jobs AS j SET checkpoint = d.checkpoint
FROM unnest($2::bigint[], $3::bytea[]) AS d (seq, checkpoint) JOIN taskq.queue AS q USING (seq)
WHERE q.lease IS NOT DISTINCT FROM $1 AND j.id = q.id"""

#: $2, $3, $4: jobs, positions, and what their generators have yielded there, which never changes.
ADD_ITEMS: Final = """
INSERT INTO taskq.items (id, position, item) SELECT q.id, d.position, d.item
FROM unnest($2::bigint[], $3::int[], $4::bytea[]) AS d (seq, position, item) JOIN taskq.queue AS q USING (seq)
WHERE q.lease IS NOT DISTINCT FROM $1 ON CONFLICT DO NOTHING"""

#: $1: a channel; $2: the words.
NOTIFY: Final = "SELECT pg_notify($1::text, $2::text)"

# -- jobs that come after others

#: Looks at $2 open edges whose parents are above $1: how many it has seen, the last parent, and those parents that have
#: ended, or are not there any more.
UNTOLD: Final = """
WITH seen AS MATERIALIZED (
    SELECT parent FROM taskq.edges WHERE is_open AND parent > $1::uuid ORDER BY parent LIMIT $2)
SELECT (SELECT count(*) FROM seen), (SELECT uuid_send(parent) FROM seen ORDER BY parent DESC LIMIT 1), ARRAY(
    SELECT DISTINCT uuid_send(seen.parent) FROM seen LEFT JOIN taskq.jobs AS j ON j.id = seen.parent
    WHERE coalesce(j.state, 12) >= 10)"""
#: $1: jobs that have ended. Those that failed are not run again before what follows from that is done: then what was
#: cancelled because of them is found.
HOLD_FAILED: Final = "SELECT 1 FROM taskq.jobs WHERE id = ANY ($1::uuid[]) AND state = 11 ORDER BY id FOR SHARE"
#: $1: jobs that have ended. Of one that did not succeed, the outcome and the spec come with each edge.
CLOSE_EDGES: Final = """
WITH ended AS MATERIALIZED (
    SELECT p.id, coalesce(j.state, 12::smallint) AS state, CASE WHEN j.state <> 10 THEN j.outcome END AS outcome,
        CASE WHEN j.state <> 10 THEN j.spec END AS spec
    FROM unnest($1::uuid[]) AS p (id) LEFT JOIN taskq.jobs AS j USING (id) WHERE coalesce(j.state, 12) >= 10),
closed AS (
    UPDATE taskq.edges AS e SET is_open = false FROM ended WHERE e.parent = ended.id AND e.is_open
    RETURNING e.child, ended.state, e.goes_on, e.parent, ended.outcome, ended.spec)
SELECT uuid_send(child), state, goes_on, uuid_send(parent), outcome, fields
FROM closed LEFT JOIN taskq.specs AS s USING (spec)"""
#: $1: the ids of children. Those that wait.
CHILDREN: Final = """
SELECT q.seq, uuid_send(q.id), q.partition, q.pending FROM taskq.jobs AS j JOIN taskq.queue AS q ON q.seq = j.seq
WHERE j.id = ANY ($1::uuid[]) AND j.state = 3 AND q.state = 2 ORDER BY q.seq FOR UPDATE OF q"""
#: $1, $2: jobs, and for how many others each still waits.
FREE: Final = """
UPDATE taskq.queue AS q SET pending = d.pending,
    state = CASE WHEN d.pending > 0 THEN 2 WHEN q.due_at > taskq.now_() THEN 1 ELSE 0 END,
    ready_at = CASE WHEN d.pending = 0 THEN taskq.now_() END
FROM unnest($1::bigint[], $2::int[]) AS d (seq, pending) WHERE q.seq = d.seq"""
#: $1, $2: jobs, and their outcomes. They keep what they need to come back. Returns what the log tells of them.
CALL_OFF: Final = """
WITH d AS MATERIALIZED (SELECT * FROM unnest($1::bigint[], $2::bytea[]) AS d (seq, outcome)),
gone AS (
    DELETE FROM taskq.queue AS q USING d WHERE q.seq = d.seq
    RETURNING q.id, q.seq, q.partition, q.spec, q.due_at, q.expires_at, d.outcome),
kept AS (
    INSERT INTO taskq.called_off (id, seq, partition, spec, due_at, expires_at)
    SELECT id, seq, partition, spec, due_at, expires_at FROM gone ON CONFLICT DO NOTHING),
done AS (
    UPDATE taskq.jobs AS j SET state = 12, outcome = gone.outcome, finished_at = taskq.now_()
    FROM gone WHERE j.id = gone.id RETURNING j.id, j.spec, j.constraints),
tallied AS (INSERT INTO taskq.tallies SELECT taskq.now_(), 1, spec, count(*) FROM done GROUP BY spec)
SELECT uuid_send(id), fields, constraints FROM done JOIN taskq.specs USING (spec)"""
NOTHING: Final = "SELECT"

# -- fleets

REGISTER: Final = """
WITH own AS (
    INSERT INTO taskq.fleets (machine, host, pid) VALUES ($1::uuid, $2::text, $3::int) RETURNING fleet, host),
noted AS (INSERT INTO taskq.hosts (fleet, host) SELECT fleet, host FROM own)
SELECT fleet FROM own"""
#: Where fleets ran that were there $2 fleets before $1, and longer ago.
FORGET_HOSTS: Final = """
DELETE FROM taskq.hosts AS h WHERE fleet < $1::bigint - $2::bigint
    AND NOT EXISTS (SELECT FROM taskq.fleets AS f WHERE f.fleet = h.fleet)"""
#: Those that ran in this directory before: all are dead, since we hold its lock.
PREDECESSORS: Final = "SELECT fleet FROM taskq.fleets WHERE machine = $1::uuid AND fleet <> $2 FOR UPDATE"
#: $2: dead fleets; $3: the jobs that they were running. The others go back. All are returned, with their new lease.
TAKE_OVER: Final = """
UPDATE taskq.queue SET lease = CASE WHEN id = ANY ($3::uuid[]) THEN $1 END
WHERE lease = ANY ($2::bigint[]) RETURNING seq, lease"""
#: As `TAKE_OVER`, of fleets that are lost with their machines.
TAKE_OVER_LOST: Final = TAKE_OVER.replace("SET ", "SET losses = losses + 1, ")
FORGET_FLEETS: Final = "DELETE FROM taskq.fleets WHERE fleet = ANY ($1::bigint[])"
FORGET_BEATS: Final = "DELETE FROM taskq.beats WHERE fleet = ANY ($1::bigint[])"

#: $2, $3: the jobs that run and the numbers of the attempts; $4: the status. Nothing is returned if the fleet is none.
BEAT: Final = """
INSERT INTO taskq.beats (fleet, seen_at, running, attempts, status)
SELECT fleet, taskq.now_(), $2::uuid[], $3::int[], $4::bytea FROM taskq.fleets WHERE fleet = $1
ON CONFLICT (fleet) DO UPDATE SET seen_at = excluded.seen_at, running = excluded.running,
    attempts = excluded.attempts, status = excluded.status
RETURNING 1"""
#: Those of whom nobody has heard since the server crashed get their time from now on.
FIRST_BEATS: Final = """
INSERT INTO taskq.beats (fleet, seen_at, running, attempts) SELECT fleet, taskq.now_(), '{}', '{}' FROM taskq.fleets
ON CONFLICT DO NOTHING"""
#: $2: seconds. Nothing, if the fleet that asks is none any more, since what it took over then would be nobody's; nor if
#: its own beat is old, since then the database has stood still and heard nobody. Until it commits, nobody takes it for
#: dead.
SILENT: Final = """
WITH me AS MATERIALIZED (
    SELECT own.fleet FROM taskq.fleets AS own JOIN taskq.beats USING (fleet)
    WHERE own.fleet = $1 AND seen_at > taskq.now_() - make_interval(secs => $2::float8 / 2) FOR KEY SHARE OF own)
SELECT f.fleet, ARRAY(SELECT uuid_send(id) FROM unnest(b.running) AS id), b.attempts, f.host
FROM me, taskq.fleets AS f JOIN taskq.beats AS b USING (fleet)
WHERE b.seen_at < taskq.now_() - make_interval(secs => $2::float8) AND f.fleet <> $1 FOR UPDATE OF f SKIP LOCKED"""

# -- what the clock brings, and others

#: Which of these chores are due; whoever gets one does it. $1: names; $2: seconds until the next time.
CLAIM_CHORES: Final = """
UPDATE taskq.chores AS c SET next_at = taskq.now_() + make_interval(secs => due.every)
FROM unnest($1::text[], $2::float8[]) AS due (name, every)
WHERE c.name = due.name AND c.next_at <= taskq.now_() RETURNING c.name"""

# Searches by time begin at a moment (seconds since 1970, -infinity: at the first): behind entries of the dead.

#: Queues scheduled jobs whose time has come, $1 at most, since $2. Returns their partitions.
PROMOTE: Final = """
WITH due AS MATERIALIZED (
    SELECT seq FROM taskq.queue WHERE state = 1 AND due_at <= taskq.now_() AND due_at >= to_timestamp($2::float8)
    ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED),
moved AS (UPDATE taskq.queue AS q SET state = 0, ready_at = due_at, due_at = NULL FROM due WHERE q.seq = due.seq
    RETURNING q.partition)
SELECT partition, count(*) FROM moved GROUP BY partition"""
#: In how many seconds the next scheduled job is due, the next one expires, and the next schedule fires, if $1 is the
#: application that the fleet runs: of those in the next seconds, and since $2. If that is the first: whether there is
#: any job but those that are queued in paused queues, and whether jobs come after others. The highest number of a
#: partition, whether there are tallies, and the time.
LOOK: Final = """
SELECT extract(epoch FROM (SELECT min(due_at) FROM taskq.queue
        WHERE state = 1 AND due_at >= to_timestamp($2::float8) AND due_at < taskq.now_() + interval '2 seconds')
        - taskq.now_())::float8,
    extract(epoch FROM (SELECT min(expires_at) FROM taskq.queue
        WHERE expires_at IS NOT NULL AND lease IS NULL AND attempts = 0
            AND expires_at >= to_timestamp($2::float8) AND expires_at < taskq.now_() + interval '2 seconds')
        - taskq.now_())::float8,
    (SELECT min(fires_at) FROM taskq.schedules
        WHERE NOT is_paused AND (app IS NULL OR app = $1::text) AND fires_at >= $2::float8)
        - extract(epoch FROM taskq.now_())::float8,
    CASE WHEN $2::float8 <> '-infinity' THEN NULL
        WHEN NOT EXISTS (SELECT FROM taskq.paused) THEN EXISTS (SELECT FROM taskq.queue)
        ELSE EXISTS (SELECT FROM taskq.queue WHERE state = 1 OR lease IS NOT NULL)
            OR EXISTS (SELECT FROM taskq.edges WHERE is_open)
            OR EXISTS (SELECT FROM taskq.partitions AS p WHERE queue NOT IN (SELECT queue FROM taskq.paused)
                AND EXISTS (SELECT FROM taskq.queue AS q
                    WHERE q.partition = p.partition AND q.state = 0 AND q.lease IS NULL)) END,
    (SELECT max(partition) FROM taskq.partitions),
    CASE WHEN $2::float8 = '-infinity' THEN EXISTS (SELECT FROM taskq.edges WHERE is_open) END,
    EXISTS (SELECT FROM taskq.tallies WHERE at >= to_timestamp($2::float8)),
    extract(epoch FROM taskq.now_())::float8"""

#: Ends jobs that were not started in time, $1 at most, with the outcome $2, since $3. Returns what the log tells of
#: them.
EXPIRE: Final = """
WITH late AS MATERIALIZED (
    SELECT seq FROM taskq.queue WHERE expires_at <= taskq.now_() AND expires_at IS NOT NULL AND lease IS NULL
        AND attempts = 0 AND expires_at >= to_timestamp($3::float8)
    ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED),
gone AS (DELETE FROM taskq.queue AS q USING late WHERE q.seq = late.seq RETURNING q.id),
edges AS (DELETE FROM taskq.edges AS e USING gone WHERE e.child = gone.id),
done AS (UPDATE taskq.jobs AS j SET state = 13, outcome = $2::bytea, finished_at = taskq.now_(), payload = NULL,
    checkpoint = NULL FROM gone WHERE j.id = gone.id RETURNING j.id, j.spec, j.constraints),
tallied AS (INSERT INTO taskq.tallies SELECT taskq.now_(), 2, spec, count(*) FROM done GROUP BY spec)
SELECT uuid_send(id), fields, constraints FROM done JOIN taskq.specs USING (spec)"""

#: Takes tallies away, $2 at most, since $1: what happened to how many jobs of which spec, and how many tallies that
#: were.
TAKE_TALLIES: Final = """
WITH found AS MATERIALIZED (
    SELECT ctid AS place FROM taskq.tallies WHERE at >= to_timestamp($1::float8) ORDER BY at LIMIT $2
    FOR UPDATE SKIP LOCKED),
gone AS (DELETE FROM taskq.tallies AS t USING found WHERE t.ctid = found.place RETURNING t.what, t.spec, t.jobs),
sums AS MATERIALIZED (SELECT what, spec, sum(jobs)::bigint AS jobs, count(*)::int AS rows FROM gone GROUP BY 1, 2)
SELECT what, fields, jobs, rows FROM sums JOIN taskq.specs USING (spec)"""

#: Removes ended jobs, oldest first: looks at $4 jobs whose id is above $1, made before $3; keeps those that ended in
#: the last $2 seconds and are not before $5, failed ones, and those that others need. Returns how many were looked at,
#: the last of them, and how many went.
PRUNE: Final = """
WITH seen AS MATERIALIZED (
    SELECT id, state, finished_at FROM taskq.jobs WHERE id > $1::uuid AND id <= $3::uuid ORDER BY id LIMIT $4),
gone AS (
    DELETE FROM taskq.jobs AS j USING seen WHERE j.id = seen.id AND seen.state IN (10, 12, 13)
        AND (seen.id <= $5::uuid OR seen.finished_at < taskq.now_() - make_interval(secs => $2::float8))
        AND NOT EXISTS (SELECT FROM taskq.edges AS e JOIN taskq.jobs AS c ON c.id = e.child
            WHERE e.parent = seen.id AND c.payload IS NOT NULL) RETURNING j.id),
edges AS (DELETE FROM taskq.edges AS e USING gone WHERE e.child = gone.id),
items AS (DELETE FROM taskq.items AS i USING gone WHERE i.id = gone.id),
keys AS (DELETE FROM taskq.keys USING gone WHERE keys.id = gone.id),
called_off AS (DELETE FROM taskq.called_off AS o USING gone WHERE o.id = gone.id),
attempts AS (DELETE FROM taskq.attempts AS a USING gone WHERE a.id = gone.id)
SELECT (SELECT count(*) FROM seen), (SELECT uuid_send(id) FROM seen ORDER BY id DESC LIMIT 1),
    (SELECT count(*) FROM gone)"""

#: The newest ended job of which there are more than $1.
MORE_THAN_KEPT: Final = """
SELECT uuid_send(id) FROM taskq.jobs WHERE state IN (10, 12, 13) ORDER BY id DESC OFFSET $1 LIMIT 1"""

#: Jobs of the fleet that somebody wants cancelled, from $2 on: that is the lowest that it has.
CANCELS: Final = "SELECT seq, cancel FROM taskq.queue WHERE lease = $1 AND seq >= $2 AND cancel <> 0"
#: $2: jobs that run, of which that was wanted only if they do not.
NOT_CANCELLED: Final = "UPDATE taskq.queue SET cancel = 0 WHERE seq = ANY ($2::bigint[]) AND lease = $1"

#: $1: whose counts these are; the other columns: minutes, tasks, queues, and the counts, packed.
KEEP_COUNTS: Final = """
INSERT INTO taskq.counts (fleet, minute, task, queue, packed)
SELECT $1, d.* FROM unnest($2::int[], $3::text[], $4::text[], $5::bytea[]) AS d (minute, task, queue, packed)
ON CONFLICT (fleet, minute, task, queue) DO UPDATE SET packed = excluded.packed"""
FORGET_COUNTS: Final = """
DELETE FROM taskq.counts AS c USING unnest($2::int[], $3::text[], $4::text[]) AS d (minute, task, queue)
WHERE c.fleet = $1 AND (c.minute, c.task, c.queue) = (d.minute, d.task, d.queue)"""
#: How many of these rows there are.
COUNTS_KEPT: Final = """
SELECT count(*) FROM taskq.counts AS c
JOIN unnest($2::int[], $3::text[], $4::text[], $5::bytea[]) AS d (minute, task, queue, packed)
    ON (c.minute, c.task, c.queue, c.packed) = (d.minute, d.task, d.queue, d.packed)
WHERE c.fleet = $1"""
COUNTS_OF: Final = "SELECT task, queue, minute, packed FROM taskq.counts WHERE fleet = $1"

PAUSED: Final = "SELECT queue FROM taskq.paused"
SPECS: Final = "SELECT spec, fields FROM taskq.specs WHERE spec = ANY ($1::int[])"
#: Those above $1 that are not among $2, and those of $3.
PARTITIONS: Final = """
SELECT partition, queue, priority, limits FROM taskq.partitions WHERE partition > $1 AND NOT partition = ANY ($2::int[])
UNION ALL
SELECT partition, queue, priority, limits FROM taskq.partitions WHERE partition <= $1 AND partition = ANY ($3::int[])"""
