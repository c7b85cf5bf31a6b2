-- status.sql: how far replication is, one block per watched database.
--
--   sqlite3 app.db < sql/status.sql                                                    (the configured replica)
--   sqlite3 app.db -cmd ".parameter set :replica 's3://bucket/app'" < sql/status.sql   (a named one)
--
-- state is one of streaming, catching up, snapshotting, paused, standby, fenced, failed; see docs/failure.md.
.load dist/walrust
.output /dev/null
SELECT walrust_watch(:replica);
SELECT walrust_sync(30);
.output
.mode line
SELECT state, txid, replicated_txid, pending_bytes, breaker, last_error FROM walrust_status;
