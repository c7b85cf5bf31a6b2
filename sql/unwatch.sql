-- unwatch.sql: ship what is pending and stop streaming this database.
--
--   sqlite3 app.db < sql/unwatch.sql                                                    (the configured replica)
--   sqlite3 app.db -cmd ".parameter set :replica 's3://bucket/app'" < sql/unwatch.sql   (a named one)
--
-- Prints the last TXID that the replica has.
.load dist/walrust
.output /dev/null
SELECT walrust_watch(:replica);
.output
SELECT printf('stopped at TXID %016x', walrust_unwatch());
