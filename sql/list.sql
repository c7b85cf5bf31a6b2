-- list.sql: the databases that have a replica under a URL.
--
--   sqlite3 -cmd ".parameter set :url 's3://bucket/tenants'" :memory: < sql/list.sql
.load dist/walrust
.headers on
SELECT name, snapshots, files, bytes, min_txid, max_txid, last_time FROM walrust_list(:url);
