-- verify_fix.sql: check, then forget manifest entries whose object is gone. Deletes no object.
--
--   sqlite3 app.db < sql/verify_fix.sql                                                    (the configured replica)
--   sqlite3 app.db -cmd ".parameter set :replica 's3://bucket/app'" < sql/verify_fix.sql   (a named one)
.load dist/walrust
SELECT walrust_verify(:replica, 'fix');
