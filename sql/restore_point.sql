-- restore_point.sql: write a past state of a replica to a file.
--
--   sqlite3 -cmd ".parameter set :replica 's3://bucket/app'" -cmd ".parameter set :path 'restored.db'" \
--     -cmd ".parameter set :point '5 minutes ago'" :memory: < sql/restore_point.sql
--
-- :point is a TXID (a number), a time ('2026-11-22T18:04:00Z'), or an age ('5 minutes ago').
.load dist/walrust
SELECT printf('restored TXID %016x', walrust_restore(:replica, :path, :point, json_object('check', 'full')));
