-- Version 3: schedules, and jobs that come back with the retry of a failed one.

-- Nominal times are numbers of seconds since 1970, as ids are made from them bit by bit; and when each fires next, by
-- the database's clock.
ALTER TABLE taskq.schedules
    ALTER COLUMN next_at TYPE float8 USING extract(epoch FROM next_at),
    ALTER COLUMN last_at TYPE float8 USING extract(epoch FROM last_at),
    ADD COLUMN fires_at float8 NOT NULL DEFAULT 'infinity',
    ADD COLUMN every_s float8;              -- the interval of one that has an interval
CREATE INDEX schedules_due ON taskq.schedules (fires_at) WHERE NOT is_paused;

-- The application that a fleet runs: its declared schedules fire, and nobody may remove them.
ALTER TABLE taskq.fleets ADD COLUMN app text;

-- Jobs that were cancelled because of others, as they stood in `queue`: they come back if those are run again.
CREATE TABLE taskq.called_off (
    id         uuid PRIMARY KEY,
    seq        bigint NOT NULL,
    partition  int NOT NULL,
    spec       int NOT NULL,
    due_at     timestamptz,
    expires_at timestamptz
);

-- Vacuum looks at these after so many changes, not after a part of what they have: jobs that are kept do not delay it.
ALTER TABLE taskq.jobs SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE taskq.watches SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
ALTER TABLE taskq.edges SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
ALTER TABLE taskq.keys SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);

UPDATE taskq.meta SET version = 3;
