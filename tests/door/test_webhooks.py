"""Webhooks: payload, signature by independent code, endpoints that misbehave, floods."""

import hashlib
import hmac
import json
import os
import re
import time
import unittest

import door

SECRET = "s3kr1t-of-the-hook"
door.SECRETS.add(SECRET)


class Webhooks(door.DoorTest):
    def watched_with(self, *hooks, s3=None, proxy=None, **options):
        env = s3.env() if s3 else None
        p = self.peer(env=env).open(self.path("app.db"))
        url = s3.url("app", proxy.endpoint) if s3 else self.path("r")
        p.watch(url, interval="0s", webhooks=list(hooks), retry={"base": "5ms", "max": "20ms", "breaker_threshold": 3,
                                                              "breaker_cooldown": "300ms"}, **options)
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.sync()
        return p

    def test_payload_and_signature(self):
        hook = door.Hook(self)
        p = self.watched_with({"url": hook.url, "secret": SECRET})
        p.sql("SELECT walrust_snapshot()")
        self.eventually(lambda: hook.events("snapshot_complete"), what="snapshot_complete")
        for headers, body in hook.requests:
            event = json.loads(body)
            self.assertEqual(set(event), {"event", "database", "timestamp", "severity", "message", "context"})
            self.assertIsInstance(event["context"], dict)
            self.assertRegex(event["timestamp"], r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")
            self.assertIn("app", event["database"])
            self.assertTrue(event["message"])
            headers = {k.lower(): v for k, v in headers.items()}
            self.assertEqual(headers["content-type"].split(";")[0], "application/json")
            expected = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
            self.assertEqual(headers["x-walrust-signature"], expected)
        self.assertEqual(hook.events("snapshot_complete")[0]["severity"], "info")

    def test_what_failed_is_told_to_be_over_once(self):
        s3, hook = door.S3(self), door.Hook(self)
        proxy = door.FaultProxy(self, s3.port)
        p = self.watched_with({"url": hook.url}, s3=s3, proxy=proxy)
        failures = [("status", 500), ("status", 500)]
        proxy.fault = lambda method, path: failures.pop() if method == "PUT" and ".ltx" in path and failures else None
        p.sql("INSERT INTO t(v) VALUES(1)")
        p.sync()
        event = self.eventually(lambda: hook.events("recovered"), what="recovered")[0]
        self.assertEqual(event["severity"], "info")
        self.assertEqual([e["event"] for e in hook.events() if e["event"] in ("upload_error", "recovered")][-1], "recovered")
        for n in range(5):
            p.sql("INSERT INTO t(v) VALUES(?)", n)
            p.sync()
        time.sleep(0.5)
        self.assertEqual(len(hook.events("recovered")), 1, "what did not fail is not over")

    def test_no_secret_no_signature(self):
        hook = door.Hook(self)
        p = self.watched_with({"url": hook.url})
        p.sql("SELECT walrust_snapshot()")
        self.eventually(lambda: hook.requests, what="a request")
        self.assertNotIn("x-walrust-signature", {k.lower() for k in hook.requests[0][0]})

    def test_only_the_events_asked_for(self):
        some, all_ = door.Hook(self), door.Hook(self)
        p = self.watched_with({"url": some.url, "events": ["corruption_detected"]}, {"url": all_.url})
        p.sql("SELECT walrust_snapshot()")
        self.eventually(lambda: all_.events("snapshot_complete"), what="the other hook")
        time.sleep(0.3)
        self.assertEqual(some.requests, [])

    def test_an_unknown_event_is_refused(self):
        p = self.peer().open(self.path("app.db"))
        with self.assertRaises(door.SqlError) as caught:
            p.watch(self.path("r"), webhooks=[{"url": "http://127.0.0.1:1/", "events": ["sync_failed"]}])
        self.assertErrorLine(str(caught.exception), "sync_failed")

    def test_upload_error_and_breaker(self):
        hook, s3 = door.Hook(self), door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        p = self.watched_with({"url": hook.url}, s3=s3, proxy=proxy)
        proxy.fault = lambda method, path: ("status", 500)
        p.sql("INSERT INTO t(v) VALUES(1)")
        for name, severity in (("upload_error", "warning"), ("circuit_breaker_open", "critical")):
            event = self.eventually(lambda: hook.events(name), what=name)[0]
            self.assertEqual(event["severity"], severity)
        proxy.fault = None
        event = self.eventually(lambda: hook.events("circuit_breaker_closed"), what="closed")[0]
        self.assertEqual(event["severity"], "info")

    def test_corruption_by_verify_and_by_restore(self):
        for how in ("verify", "restore"):
            with self.subTest(how=how):
                hook = door.Hook(self)
                db, url = self.path(f"{how}.db"), self.path(f"r-{how}")
                p = self.peer().open(db)
                p.watch(url, interval="0s", webhooks=[{"url": hook.url}])
                p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
                for i in range(5):
                    p.sql("INSERT INTO t(v) VALUES(randomblob(2000))")
                p.sync()
                path = door.ltx_files(url, 0)[-1][3]
                with open(path, "r+b") as f:
                    f.seek(os.path.getsize(path) // 2)
                    f.write(b"\xff\x00\xff\x00\xff")
                if how == "verify":
                    self.assertIn("Exit code: ", p.sql("SELECT walrust_verify(?, 'deep')", url))
                else:
                    with self.assertRaises(door.SqlError):
                        p.sql("SELECT walrust_restore(?, ?)", url, self.path(f"never-{how}.db"))
                event = self.eventually(lambda: hook.events("corruption_detected"), what="corruption_detected")[0]
                self.assertEqual(event["severity"], "critical")

    def test_fenced(self):
        """A second machine takes the replica over: the first is told at its next upload, once."""
        hook, s3 = door.Hook(self), door.S3(self)
        p = self.peer(env=s3.env()).open(self.path("app.db"))
        p.watch(s3.url(), interval="0s", webhooks=[{"url": hook.url}], retry={"base": "5ms", "max": "20ms"})
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.sync()
        os.mkdir(self.path("m2"))
        other, _ = self.restore(s3.url(), self.path("m2", "app.db"), env=s3.env())
        q = self.peer(env=s3.env()).open(other)
        q.watch(s3.url(), interval="0s", takeover=True)
        q.sql("INSERT INTO t(v) VALUES('the second machine')")
        q.sync()
        p.sql("INSERT INTO t(v) VALUES('the first machine')")
        event = self.eventually(lambda: hook.events("fenced"), what="fenced")[0]
        self.assertEqual(event["severity"], "critical")
        self.assertTrue(event["message"])
        row = self.eventually(lambda: (lambda r: r["state"] == "fenced" and r)(p.status()), what="the state")
        self.assertNamesTheHolder(row["last_error"], q)
        with self.assertRaises(door.SqlError) as caught:
            p.sync()
        self.assertNamesTheHolder(str(caught.exception), q)
        for i in range(5):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
        q.sql("INSERT INTO t(v) VALUES('goes on')")
        q.sync()
        self.assertEqual(sum(e["context"]["count"] for e in hook.events("fenced")), 1)
        self.assertSameBytes(other, self.restore(s3.url(), env=s3.env())[0])

    def test_a_slow_endpoint_delays_no_upload(self):
        """Each snapshot is an event for an endpoint that takes seconds; uploads are not paced by it."""
        slow, fast = door.Hook(self, delay=3), door.Hook(self)
        p = self.watched_with({"url": slow.url}, {"url": fast.url})
        for i in range(12):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
            p.sql("SELECT walrust_snapshot()")
        done = len(slow.requests)
        self.assertEqual(p.status()["replicated_txid"], p.status()["txid"])
        # Twelve uploads went by before the slow endpoint had answered twelve times, or even a few.
        self.assertLess(done, 4)
        self.eventually(lambda: sum(e["context"]["count"] for e in fast.events("snapshot_complete")) >= 12, what="the fast endpoint")

    def test_periodic_validation_finds_corruption(self):
        hook = door.Hook(self)
        p = self.watched_with({"url": hook.url}, validation_interval="300ms")
        p.sql("INSERT INTO t(v) VALUES(randomblob(3000))")
        p.sync()
        path = door.ltx_files(self.path("r"), 0)[0][3]
        with open(path, "r+b") as f:
            f.truncate(os.path.getsize(path) - 20)
        self.eventually(lambda: hook.events("corruption_detected"), what="corruption_detected")

    def test_bad_endpoints_delay_nothing(self):
        """One hangs, one redirects, one is not there, one answers 500: commits, uploads and the good one go on."""
        slow, angry, good = door.Hook(self, delay=5), door.Hook(self, status=500), door.Hook(self)
        moved = door.Hook(self, status=302)
        nowhere = f"http://127.0.0.1:{door.free_port()}/"
        p = self.watched_with({"url": slow.url}, {"url": angry.url}, {"url": moved.url}, {"url": nowhere}, {"url": good.url})
        begin = time.monotonic()
        p.sql("SELECT walrust_snapshot()")
        for i in range(20):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
        p.sync()
        self.eventually(lambda: good.events("snapshot_complete"), timeout=4, what="the good endpoint")
        self.assertLess(time.monotonic() - begin, 5)

    def test_retry_with_backoff(self):
        hook = door.Hook(self, status=lambda n: 503 if n < 2 else 200)
        p = self.watched_with({"url": hook.url})
        p.sql("SELECT walrust_snapshot()")
        self.eventually(lambda: len(hook.requests) >= 3, what="two retries")
        self.assertEqual(hook.requests[0][1], hook.requests[2][1])

    def test_a_flood_is_folded(self):
        hook, s3 = door.Hook(self), door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        p = self.peer(env=s3.env()).open(self.path("app.db"))
        p.watch(s3.url("app", proxy.endpoint), interval="0s", webhooks=[{"url": hook.url}],
                retry={"base": "1ms", "max": "2ms", "breaker_threshold": 100000})
        p.sql("CREATE TABLE t(v)")
        p.sync()
        proxy.fault = lambda method, path: ("status", 500)
        p.sql("INSERT INTO t VALUES(1)")
        self.eventually(lambda: len(proxy.seen) > 200, what="200 failures")
        time.sleep(0.5)
        told = hook.events("upload_error")
        self.assertLess(len(told), 20)
        # Nothing is dropped uncounted: those that were folded are told of when the pace allows.
        self.eventually(lambda: sum(e["context"]["count"] for e in hook.events("upload_error")) > 150, what="the folded ones")
        self.assertLess(len(hook.events("upload_error")), 20)
        folded = max(hook.events("upload_error"), key=lambda e: e["context"]["count"])
        self.assertGreater(folded["context"]["count"], 50)
        self.assertLess(folded["context"]["first_timestamp"], folded["timestamp"])

    def test_notify_test(self):
        good, angry = door.Hook(self), door.Hook(self, status=418)
        nowhere = f"http://127.0.0.1:{door.free_port()}/"
        p = self.watched_with({"url": good.url, "secret": SECRET}, {"url": angry.url}, {"url": nowhere})
        text = p.sql("SELECT walrust_notify_test()")
        lines = text.strip().splitlines()
        self.assertGreaterEqual(len(lines), 3)
        for hook, answer in ((good.url, "200"), (angry.url, "418"), (nowhere, "refused")):
            line, = (line for line in lines if line.startswith(hook.rsplit("/", 1)[0] + ":"))
            self.assertIn(answer, line)
        for hook in (good, angry):
            event, = hook.events("test")
            self.assertEqual(set(event), {"event", "database", "timestamp", "severity", "message", "context"})
        for secret in door.SECRETS:
            self.assertNotIn(secret, text)

    def test_notify_test_without_webhooks(self):
        p = self.watched_with()
        self.assertRegex(p.sql("SELECT walrust_notify_test()"), re.compile("no webhook", re.I))

    def test_no_secret_in_config_or_explain(self):
        hook = door.Hook(self)
        p = self.watched_with({"url": hook.url + "/path-with-token-abcdef", "secret": SECRET})
        shown = json.dumps(p.rows("SELECT * FROM walrust_config")) + p.sql("SELECT walrust_explain()")
        self.assertNotIn(SECRET, shown)
        self.assertNotIn("token-abcdef", shown)
        self.assertIn("127.0.0.1", shown)


if __name__ == "__main__":
    unittest.main()
