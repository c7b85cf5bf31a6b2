-- compact.sql: what retention would delete, and why. A dry run: nothing is deleted.
--
--   sqlite3 -readonly app.db < sql/compact.sql                                                    (the configured replica)
--   sqlite3 -readonly app.db -cmd ".parameter set :replica 's3://bucket/app'" < sql/compact.sql   (a named one)
--
-- compact_force.sql does it.
.load dist/walrust
SELECT walrust_compact(:replica);
