-- config.sql: every setting, its value and where the value comes from.
--
--   sqlite3 -readonly app.db < sql/config.sql
.load dist/walrust
.mode column
SELECT name, value, source FROM walrust_config;
