-- snapshot.sql: upload a full, consistent snapshot now, while writers go on.
--
--   sqlite3 app.db < sql/snapshot.sql                                                    (the configured replica)
--   sqlite3 app.db -cmd ".parameter set :replica 's3://bucket/app'" < sql/snapshot.sql   (a named one)
--
-- Prints the TXID the snapshot holds.
.load dist/walrust
.output /dev/null
SELECT walrust_watch(:replica);
.output
SELECT printf('snapshot at TXID %016x', walrust_snapshot());
