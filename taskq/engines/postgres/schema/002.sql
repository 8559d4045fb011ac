-- Version 2: room for the limits of several machines.

UPDATE taskq.meta SET version = 2;
