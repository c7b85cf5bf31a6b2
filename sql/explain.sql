-- explain.sql: what will happen and what it will cost, before it does. Contacts nothing but the replica's listing.
--
--   sqlite3 -readonly app.db < sql/explain.sql
.load dist/walrust
SELECT walrust_explain();
