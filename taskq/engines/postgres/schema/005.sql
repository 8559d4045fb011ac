-- Version 5: where jobs ran.

-- Where each fleet ran, of the last ten thousand: `jobs.settled_by` names the one that ended a job. A fleet adds its row
-- when it registers, and removes the oldest ones.
CREATE TABLE taskq.hosts (
    fleet bigint PRIMARY KEY,
    host  text NOT NULL
);
INSERT INTO taskq.hosts SELECT fleet, host FROM taskq.fleets;

-- Roles that run workers go on.
DO $$
DECLARE
    own record;
BEGIN
    FOR own IN
        SELECT quote_ident(pg_get_userbyid(a.grantee)) AS role FROM pg_class AS c, aclexplode(c.relacl) AS a
        WHERE c.oid = 'taskq.jobs'::regclass AND a.privilege_type = 'DELETE' AND a.grantee NOT IN (0, c.relowner)
    LOOP
        EXECUTE 'GRANT SELECT, INSERT, UPDATE, DELETE ON taskq.hosts TO ' || own.role;
    END LOOP;
END $$;

UPDATE taskq.meta SET version = 5;
