-- The journal, version 1 (PRAGMA user_version); the upgrades that follow bring it to the present one. One row a job, for
-- its whole life.
-- Only the broker opens this database: see taskq/store/sqlite.py.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value
) WITHOUT ROWID;

CREATE TABLE totals (
    enqueued INTEGER NOT NULL, succeeded INTEGER NOT NULL, failed INTEGER NOT NULL,
    retried INTEGER NOT NULL, crashed INTEGER NOT NULL, cancelled INTEGER NOT NULL,
    commits INTEGER NOT NULL   -- counts the transactions: compared with the high-water file
);
INSERT INTO totals VALUES (0, 0, 0, 0, 0, 0, 0);

CREATE TABLE queues (
    queue INTEGER PRIMARY KEY,
    name  TEXT NOT NULL UNIQUE
);

-- What jobs have in common (Spec.to_wire as msgpack), so that a job's own row stays small.
CREATE TABLE specs (
    spec   INTEGER PRIMARY KEY,
    fields BLOB NOT NULL UNIQUE
);

CREATE TABLE jobs (
    seq         INTEGER PRIMARY KEY,            -- the order of submission
    id          BLOB NOT NULL,                  -- 16 bytes, made by the client
    spec        INTEGER NOT NULL,
    queue       INTEGER NOT NULL,
    state       INTEGER NOT NULL DEFAULT 0,     -- taskq.store.Kept
    attempts    INTEGER NOT NULL DEFAULT 0,
    crashes     INTEGER NOT NULL DEFAULT 0,
    due_at      REAL,                           -- seconds since 1970, of a scheduled job
    finished_at REAL,                           -- seconds since 1970
    payload     BLOB,                           -- opaque, with its checksum (taskq.codec)
    outcome     BLOB                            -- of the last ended attempt (taskq.outcome)
);
CREATE UNIQUE INDEX jobs_id ON jobs (id);
-- No index of the queued jobs: it would take a third of the time to insert and end a job. They are read in the order of
-- seq, from where the last read ended, and behind that nearly all are queued.
CREATE INDEX jobs_due ON jobs (due_at, queue) WHERE state = 1;
