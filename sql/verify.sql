-- verify.sql: does the backup work? Checks the replica without downloading page data.
--
--   sqlite3 -readonly app.db < sql/verify.sql                                                    (the configured replica)
--   sqlite3 -readonly app.db -cmd ".parameter set :replica 's3://bucket/app'" < sql/verify.sql   (a named one)
--
-- The last line of the report is the exit code: 0 all good, 1 issues found, 2 critical.
.load dist/walrust
SELECT walrust_verify(:replica);
