-- What a role needs that runs workers, and all commands. It need not own the tables, and cannot change their form.
GRANT USAGE ON SCHEMA taskq TO :role;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA taskq TO :role;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA taskq TO :role;
