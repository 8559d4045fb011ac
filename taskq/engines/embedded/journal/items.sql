-- What the generators among the tasks have yielded, by job and position. Removed with the job, by a trigger that is made
-- with the first item: who has no generators prunes without it.

CREATE TABLE IF NOT EXISTS items (
    job      INTEGER NOT NULL,                  -- jobs.seq
    position INTEGER NOT NULL,                  -- 0, 1, 2 ...; what stands there never changes
    item     BLOB NOT NULL,                     -- opaque, with its checksum (taskq.codec)
    PRIMARY KEY (job, position)
) WITHOUT ROWID;
