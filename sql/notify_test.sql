-- notify_test.sql: send a test event to every webhook and show what each answered.
--
--   sqlite3 app.db < sql/notify_test.sql
--
-- Webhooks are configured in walrust.toml ([[webhooks]] url, secret, events).
.load dist/walrust
SELECT walrust_notify_test();
