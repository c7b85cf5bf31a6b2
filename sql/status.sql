-- status.sql: how far the replica is, and whether this process streams the database. Looks, and begins nothing.
--
--   sqlite3 -readonly app.db < sql/status.sql                                                    (the configured replica)
--   sqlite3 -readonly app.db -cmd ".parameter set :replica 's3://bucket/app'" < sql/status.sql   (a named one)
--
-- In an application run the second SELECT on one of its connections; what another process streams is told by
-- `walrust status app.db`. state is one of streaming, catching up, snapshotting, paused, standby, fenced, failed; see
-- docs/failure.md.
.load dist/walrust
.mode line
SELECT max(max_txid) AS newest_txid, max(time) AS newest_time, count(*) AS files, sum(bytes) AS bytes
FROM walrust_files(:replica);
SELECT state, txid, replicated_txid, pending_bytes, breaker, last_error FROM walrust_status;
