-- restore.sql: write the newest state of a replica to a file.
--
--   sqlite3 -cmd ".parameter set :replica 's3://bucket/app'" -cmd ".parameter set :path 'restored.db'" \
--     :memory: < sql/restore.sql
--
-- The file appears only when all of it has been verified. An existing file is refused.
.load dist/walrust
SELECT printf('restored TXID %016x', walrust_restore(:replica, :path));
