-- Version 2: jobs with priorities, limits, unique keys and expiry. A plain job has nothing in the new columns and is in
-- none of the new indexes.

-- What jobs that wait together have in common (taskq.model.partition.Partition).
CREATE TABLE bands (
    band     INTEGER PRIMARY KEY,
    queue    TEXT NOT NULL,
    priority INTEGER NOT NULL,
    gates    BLOB NOT NULL,                     -- msgpack
    UNIQUE (queue, priority, gates)
);
INSERT INTO bands SELECT queue, name, 0, x'90' FROM queues;
DROP TABLE queues;
ALTER TABLE jobs RENAME COLUMN queue TO band;

ALTER TABLE jobs ADD COLUMN terms      BLOB;    -- taskq.model.constraints.Constraints, without due_at
ALTER TABLE jobs ADD COLUMN is_keyed   INTEGER; -- 1 if it waits in a band of its key
ALTER TABLE jobs ADD COLUMN expires_at REAL;    -- seconds since 1970, while it has not ended
ALTER TABLE jobs ADD COLUMN unique_key TEXT;    -- while others with this key are to be left out
ALTER TABLE jobs ADD COLUMN snoozes    INTEGER NOT NULL DEFAULT 0; -- taskq.model.job.Carried
ALTER TABLE jobs ADD COLUMN checkpoint BLOB;    -- opaque, with its checksum (taskq.protocol.codec)
CREATE INDEX jobs_keyed ON jobs (band, seq) WHERE state = 0 AND is_keyed = 1;
CREATE INDEX jobs_expires ON jobs (expires_at) WHERE expires_at IS NOT NULL;
CREATE UNIQUE INDEX jobs_unique ON jobs (unique_key) WHERE unique_key IS NOT NULL;

ALTER TABLE totals ADD COLUMN expired INTEGER NOT NULL DEFAULT 0;

-- The attempts of jobs that were run again; the last one's outcome stands in the job itself.
CREATE TABLE attempts (
    job     INTEGER NOT NULL,                   -- jobs.seq
    number  INTEGER NOT NULL,                   -- 1 for the first start
    outcome BLOB NOT NULL,                      -- long texts cut (taskq.model.attempt.shortened)
    PRIMARY KEY (job, number)
) WITHOUT ROWID;

-- The dead-letter list: jobs.seq of the failed ones. A partial index on the jobs would take 3 % of the time to insert
-- and end one that succeeds; this takes none.
CREATE TABLE failed (
    job INTEGER PRIMARY KEY
);
INSERT INTO failed SELECT seq FROM jobs WHERE state = 11;

CREATE TABLE paused (
    queue TEXT PRIMARY KEY
) WITHOUT ROWID;

-- Schedules: what makes jobs by itself (taskq.model.schedule.ScheduleRow).
CREATE TABLE schedules (
    name      TEXT PRIMARY KEY,
    fields    BLOB NOT NULL,                    -- taskq.model.schedule.Schedule as msgpack
    next_at   REAL NOT NULL,                    -- seconds since 1970: goes forward only
    app       TEXT,                             -- in whose code it stands, if it stands in code
    is_paused INTEGER NOT NULL,
    last_at   REAL,                             -- the fire before, and its job
    last_id   BLOB
) WITHOUT ROWID;

-- The recent starts that count for the rates of tasks (taskq.model.rules.limiters.Rate).
CREATE TABLE rates (
    name   TEXT PRIMARY KEY,
    starts BLOB NOT NULL,                       -- msgpack
    until  REAL NOT NULL                        -- when they count no more, in seconds since 1970
) WITHOUT ROWID;

-- Which jobs come after others. An edge is open until the one before has ended, and kept until the one after has
-- succeeded or was cancelled, so that what it needs of the one before is not removed.
CREATE TABLE edges (
    parent  BLOB NOT NULL,                      -- jobs.id
    child   INTEGER NOT NULL,                   -- jobs.seq
    goes_on INTEGER NOT NULL,                   -- 1 if it runs even if the one before did not succeed
    is_open INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (parent, child)
) WITHOUT ROWID;
CREATE INDEX edges_of_child ON edges (child);
CREATE INDEX edges_open ON edges (child) WHERE is_open = 1;
