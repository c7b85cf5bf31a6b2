-- files.sql: every LTX file of a replica, oldest first, with the TXIDs it holds.
--
--   sqlite3 -readonly app.db < sql/files.sql                                                    (the configured replica)
--   sqlite3 -readonly app.db -cmd ".parameter set :replica 's3://bucket/app'" < sql/files.sql   (a named one)
.load dist/walrust
.headers on
SELECT level, printf('%016x', min_txid) AS min_txid, printf('%016x', max_txid) AS max_txid, bytes, pages, time
FROM walrust_files(:replica) ORDER BY level DESC, min_txid;
