-- Version 3: a job with a key stands in the band of that key only while it is queued (taskq.store.band_numbers), so that
-- the bands of keys without a queued job can go. Others stand in a band of their queue.
INSERT OR IGNORE INTO bands (queue, priority, gates) SELECT DISTINCT queue, 0, x'90' FROM bands;
UPDATE jobs SET band =
    (SELECT plain.band FROM bands AS own JOIN bands AS plain USING (queue)
     WHERE own.band = jobs.band AND plain.priority = 0 AND plain.gates = x'90')
    WHERE is_keyed = 1 AND state <> 0;
CREATE INDEX rates_until ON rates (until);
