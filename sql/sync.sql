-- sync.sql: return when every commit made so far is durable in the replica; an error if that takes more than 30 seconds.
--
--   sqlite3 app.db < sql/sync.sql                                                    (the configured replica)
--   sqlite3 app.db -cmd ".parameter set :replica 's3://bucket/app'" < sql/sync.sql   (a named one)
--
-- Prints one line. Use it before a deploy, a shutdown, or an answer to a customer.
.load dist/walrust
.output /dev/null
SELECT walrust_watch(:replica);
.output
SELECT printf('durable up to TXID %016x', walrust_sync(30));
