-- metrics.sql: counters and gauges in the Prometheus text format.
--
--   sqlite3 app.db < sql/metrics.sql                                                    (the configured replica)
--   sqlite3 app.db -cmd ".parameter set :replica 's3://bucket/app'" < sql/metrics.sql   (a named one)
--
-- For a scrape over HTTP set metrics_listen instead.
.load dist/walrust
.output /dev/null
SELECT walrust_watch(:replica);
SELECT walrust_sync(30);
.output
SELECT walrust_metrics();
