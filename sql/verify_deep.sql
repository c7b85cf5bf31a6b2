-- verify_deep.sql: downloads everything, rebuilds the database in a temporary file and checks it; problems as rows.
--
--   sqlite3 -readonly app.db < sql/verify_deep.sql                                                    (the configured replica)
--   sqlite3 -readonly app.db -cmd ".parameter set :replica 's3://bucket/app'" < sql/verify_deep.sql   (a named one)
--
-- Prints each finding that is not ok, then how many checks were made.
.load dist/walrust
SELECT severity, "check", file, message FROM walrust_verify(:replica, 'deep') WHERE severity <> 'ok';
SELECT count(*) FILTER (WHERE severity <> 'ok') || ' problems' FROM walrust_verify(:replica, 'deep');
