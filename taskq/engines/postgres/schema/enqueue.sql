-- What a role needs that only enqueues jobs and waits for their results. It can neither read the arguments of jobs, nor
-- cancel, retry or purge any, nor see queues and fleets.
GRANT USAGE ON SCHEMA taskq TO :role;
GRANT SELECT ON taskq.meta TO :role;
GRANT SELECT, INSERT ON taskq.specs, taskq.partitions TO :role;
GRANT USAGE ON SEQUENCE taskq.queue_seq_seq TO :role;
GRANT INSERT, SELECT (id, seq, spec, state, outcome) ON taskq.jobs TO :role;
GRANT INSERT, SELECT (seq, id, partition, state, lease), UPDATE (ready_at) ON taskq.queue TO :role;
GRANT INSERT, SELECT, UPDATE ON taskq.keys TO :role;
GRANT INSERT ON taskq.edges, taskq.tallies TO :role;
GRANT UPDATE (used_at) ON taskq.partitions TO :role;
GRANT INSERT, SELECT ON taskq.watches TO :role;
GRANT SELECT ON taskq.items TO :role;
