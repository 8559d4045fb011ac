-- Version 4: jobs are counted when they come in; keys that nobody uses any more are forgotten; fair parts of limits.

-- How many jobs came in and ended: one row for each statement. Fleets add the rows to their counts and remove them.
CREATE TABLE taskq.tallies (
    at   timestamptz NOT NULL,
    what smallint NOT NULL,             -- 0: enqueued, 1: cancelled, 2: expired; see `TALLIED`
    spec int NOT NULL,
    jobs int NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX tallies_at ON taskq.tallies (at);
-- Until now, jobs counted as enqueued when they ended.
INSERT INTO taskq.tallies SELECT taskq.now_(), 0, spec, count(*) FROM taskq.queue GROUP BY spec;

-- When the number of a partition was looked up last; see `taskq.protocol.postgres.kinds`.
ALTER TABLE taskq.partitions ADD COLUMN used_at timestamptz NOT NULL DEFAULT statement_timestamp();
CREATE INDEX partitions_used ON taskq.partitions (used_at) WHERE limits <> '\x90';
INSERT INTO taskq.chores (name) VALUES ('unused');
CREATE INDEX limits_until ON taskq.limits (until);

-- A fleet that waits for more of a limit, since `wanted_at`, says so again before this moment.
ALTER TABLE taskq.grants ADD COLUMN waits_until timestamptz;

-- Jobs that wait for others expire, too.
DROP INDEX taskq.queue_expires;
CREATE INDEX queue_expires ON taskq.queue (expires_at) WHERE expires_at IS NOT NULL AND lease IS NULL AND attempts = 0;

-- Roles that enqueue, and those that run workers, go on.
DO $$
DECLARE
    own record;
BEGIN
    FOR own IN
        SELECT quote_ident(pg_get_userbyid(a.grantee)) AS role, bool_or(a.privilege_type = 'DELETE') AS works
        FROM pg_class AS c, aclexplode(c.relacl) AS a
        WHERE c.oid = 'taskq.jobs'::regclass AND a.grantee NOT IN (0, c.relowner) GROUP BY 1
    LOOP
        EXECUTE 'GRANT INSERT ON taskq.tallies TO ' || own.role;
        EXECUTE 'GRANT UPDATE (used_at) ON taskq.partitions TO ' || own.role;
        IF own.works THEN
            EXECUTE 'GRANT SELECT, UPDATE, DELETE ON taskq.tallies TO ' || own.role;
        END IF;
    END LOOP;
END $$;

UPDATE taskq.meta SET version = 4;
