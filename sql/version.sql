-- version.sql: the version of walrust, its git commit, and the SQLite it runs in.
--
--   sqlite3 :memory: < sql/version.sql
.load dist/walrust
SELECT walrust_version();
