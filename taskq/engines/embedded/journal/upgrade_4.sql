-- Version 4: most commits write the rows of jobs only. The totals follow from these: the table has what they do not
-- tell, such as the jobs that were removed. jobs.due_at stays when a job is queued: it is the time from which it could
-- have started. The counts of each task and queue are here as well, and on which machine attempts ran.

UPDATE totals SET
    enqueued = enqueued - all_jobs, succeeded = succeeded - in_10, failed = failed - in_11,
    cancelled = cancelled - in_12, expired = expired - in_13
    FROM (SELECT count(*) AS all_jobs, coalesce(sum(state = 10), 0) AS in_10, coalesce(sum(state = 11), 0) AS in_11,
        coalesce(sum(state = 12), 0) AS in_12, coalesce(sum(state = 13), 0) AS in_13 FROM jobs);

-- What happened to the jobs of a task in a queue (taskq.model.info.counts).
CREATE TABLE counts (
    minute INTEGER NOT NULL,                    -- since 1970; 0 for all before the last hour
    task   TEXT NOT NULL,
    queue  TEXT NOT NULL,
    packed BLOB NOT NULL,
    PRIMARY KEY (minute, task, queue)
) WITHOUT ROWID;

-- The machines on which the queue's jobs ran, one after the other: attempts from `since` on ran on that one.
CREATE TABLE machines (
    since REAL PRIMARY KEY,                     -- seconds since 1970
    name  TEXT NOT NULL
) WITHOUT ROWID;
