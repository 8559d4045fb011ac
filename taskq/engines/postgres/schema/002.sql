-- Version 2: limits over all fleets.
--
-- `grants` says what each fleet may use of a concurrency, or that an order key is its own; whoever changes what is left
-- of one holds an advisory lock for it. `limits` has the starts of rates alone.

ALTER TABLE taskq.limits ADD COLUMN until timestamptz;  -- when the state does not matter any more

-- What was started and will run again: no younger job of its order key goes before it.
CREATE INDEX queue_again ON taskq.queue (partition, seq) WHERE attempts > 0;
CREATE INDEX partitions_limits ON taskq.partitions (limits);
CREATE INDEX grants_fleet ON taskq.grants (fleet);

UPDATE taskq.meta SET version = 2;
