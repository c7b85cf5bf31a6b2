-- watch.sql: stream this database to its replica while you work on it.
--
--   sqlite3 app.db < sql/watch.sql                                                    (the configured replica)
--   sqlite3 app.db -cmd ".parameter set :replica 's3://bucket/app'" < sql/watch.sql   (a named one)
--
-- Without :replica the configured one is used (walrust.toml, WALRUST_REPLICA), else the directory app.db-replica/.
-- Prints what goes where, then the TXID up to which the replica is durable. Replication lasts as long as the process
-- lives: in an application, load the extension once and call walrust_watch on one connection.
.load dist/walrust
SELECT walrust_watch(:replica);
SELECT printf('durable up to TXID %016x', walrust_sync(30));
