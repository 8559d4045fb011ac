-- What the generators among the tasks have yielded, by job and position. Removed with the job, by a trigger that is made
-- with the first item: who has no generators prunes without it.

CREATE TABLE IF NOT EXISTS items (
    job      INTEGER NOT NULL,                  -- jobs.seq
    position INTEGER NOT NULL,                  -- 0, 1, 2 ...; what stands there never changes
    item     BLOB NOT NULL,                     -- opaque, with its checksum (taskq.codec)
    PRIMARY KEY (job, position)
) WITHOUT ROWID;

-- The jobs in states that are rare: a list of them looks at no others (in statements.py as RARE). Plain jobs are never in
-- it, and it needs no version of its own: an older taskq keeps it up to date. (Written with IN, the condition takes 2
-- microseconds for each job that ends; so it takes 0.05.)
CREATE INDEX IF NOT EXISTS jobs_rare ON jobs (state, seq) WHERE state > 11 OR state = 2;
