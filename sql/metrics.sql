-- metrics.sql: counters and gauges of this process in the Prometheus text format. Looks, and begins nothing.
--
--   sqlite3 -readonly app.db < sql/metrics.sql
--
-- In an application run the SELECT on one of its connections; for a scrape over HTTP set metrics_listen instead.
.load dist/walrust
SELECT walrust_metrics();
