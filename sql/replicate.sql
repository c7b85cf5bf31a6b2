-- replicate.sql: keep a file up to date from a replica, as a read replica for other programs.
--
--   sqlite3 -cmd ".parameter set :replica 's3://bucket/app'" -cmd ".parameter set :path 'copy.db'" \
--     :memory: < sql/replicate.sql
--
-- Follows as long as the process lives; this script stops once the first copy is there.
.load dist/walrust
SELECT walrust_replicate(:replica, :path, json_object('interval', '1s'));
SELECT walrust_unreplicate(:path) IS NOT NULL;
