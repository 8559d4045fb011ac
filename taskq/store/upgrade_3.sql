-- Version 3: what few jobs carry from one attempt to the next (taskq.model.Memo).

ALTER TABLE jobs ADD COLUMN snoozes    INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN checkpoint BLOB;    -- opaque, with its checksum (taskq.codec)
