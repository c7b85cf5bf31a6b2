-- compact_force.sql: delete what retention no longer keeps. Run compact.sql first to see what that is.
--
--   sqlite3 app.db < sql/compact_force.sql                                                    (the configured replica)
--   sqlite3 app.db -cmd ".parameter set :replica 's3://bucket/app'" < sql/compact_force.sql   (a named one)
.load dist/walrust
SELECT walrust_compact(:replica, json_object('force', json('true')));
