"""S3 over HTTP: a server that checks signatures and honours conditional writes, and a proxy that fails on command."""

import collections
import contextlib
import hashlib
import http.server
import json
import os
import re
import sqlite3
import threading
import time
import unittest
import urllib.parse

import door


class S3Test(door.DoorTest):
    def setUp(self):
        super().setUp()
        self.s3 = door.S3(self)
        self.proxy = door.FaultProxy(self, self.s3.port)
        self.db = self.path("app.db")

    FAST = {"base": "10ms", "max": "200ms", "breaker_threshold": 3, "breaker_cooldown": "300ms"}

    def streaming(self, retry=FAST, **options):
        p = self.peer(env=self.s3.env()).open(self.db)
        p.watch(self.s3.url("app", self.proxy.endpoint), interval="0s", retry=retry, **options)
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        return p

    def assertComplete(self, p, message=""):
        """Everything arrives, restores equal, and the L0 names in the bucket leave no TXID out."""
        txid = p.sync(60)
        out, at = self.restore(self.s3.url(), env=self.s3.env())
        self.assertEqual(at, txid, message)
        self.assertSameBytes(self.db, out, message)
        names = [k.rsplit("/", 1)[1] for k in self.s3.keys("app/0000/")]
        l0 = sorted((int(n[:16], 16), int(n[17:33], 16)) for n in names)
        self.assertTrue(all(low == high for low, high in l0), l0)
        numbers = [low for low, _ in l0]
        # A TXID without an L0 file is one that a snapshot holds.
        snapshots = {int(k[-20:-4], 16) for k in self.s3.keys("app/0009/")}
        missing = set(range(numbers[0], numbers[-1] + 1)) - set(numbers)
        self.assertTrue(missing <= snapshots, f"{message}: {numbers}, snapshots {snapshots}")
        self.assertEqual(numbers[-1], txid, message)

    def insert(self, p, n, v="x"):
        for _ in range(n):
            p.sql("INSERT INTO t(v) VALUES(?)", v)


class Plain(S3Test):
    def test_stream_and_restore(self):
        p = self.streaming()
        self.insert(p, 20, "y" * 500)
        self.assertComplete(p)

    def test_every_put_of_a_file_is_create_only(self):
        conditions = []
        forward = self.proxy.forward

        def watch(method, path, headers, body):
            if method == "PUT" and ".ltx" in path:
                conditions.append((path, headers.get("If-None-Match")))
            return forward(method, path, headers, body)

        self.proxy.forward = watch
        p = self.streaming()
        self.insert(p, 5)
        self.assertComplete(p)
        self.assertTrue(conditions)
        self.assertEqual({c for _, c in conditions}, {"*"})

    def test_sha256_of_every_object(self):
        p = self.streaming()
        self.insert(p, 5)
        p.sync()
        rows = p.rows("SELECT key, sha256 FROM walrust_files")
        self.assertTrue(rows)
        for key, sha in rows:
            data = self.s3.get(key if key.startswith("app/") else "app/" + key)
            self.assertEqual(hashlib.sha256(data).hexdigest(), sha)

    def test_litestream_metadata(self):
        p = self.streaming()
        p.sync()
        for key in self.s3.keys("app/0000/"):
            meta = self.s3.s3.head_object(Bucket="bucket", Key=key)["Metadata"]
            self.assertRegex(meta.get("litestream-timestamp", ""), r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")

    def test_two_databases_in_one_bucket(self):
        p = self.peer(env=self.s3.env())
        for name in ("one", "two"):
            p.open(self.path(name + ".db"), name)
            p.watch(self.s3.url(f"tenants/{name}"), conn=name)
            p.sql("CREATE TABLE t(v)", conn=name)
            p.sql("INSERT INTO t VALUES(?)", name, conn=name)
        for name in ("one", "two"):
            p.sync(conn=name)
            out, _ = self.restore(self.s3.url(f"tenants/{name}"), env=self.s3.env())
            self.assertSameBytes(self.path(name + ".db"), out)
        listed = p.rows("SELECT name FROM walrust_list(?) ORDER BY name", self.s3.url("tenants"), conn="one")
        self.assertEqual(listed, [("one",), ("two",)])


class Verify(S3Test):
    def test_a_restore_of_many_small_commits_reads_few_objects(self):
        """5,000 commits, as uploads of their own where they can be, merged by their levels: at most 50 object reads."""
        db, url = self.path("many.db"), self.s3.url("many", self.proxy.endpoint)
        p = self.peer(env=self.s3.env()).open(db)
        p.watch(url, interval="0s", levels=["200ms", "1s", "5s"])
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.code("""
for i in range(5000):
    conns['main'].execute("INSERT INTO t(v) VALUES('a small row')")
    time.sleep(0.001)
""")
        txid = p.sync(60)
        self.assertGreater(txid, 200)
        time.sleep(7)
        before = len(self.proxy.seen)
        out, at = self.restore(url, env=self.s3.env())
        reads = [seen for seen in self.proxy.seen[before:] if seen[0] == "GET" and ".ltx" in seen[1]]
        print(f"\n5,000 commits as {txid} uploads: restored by {len(reads)} object reads", flush=True)
        self.assertLessEqual(len(reads), 50)
        self.assertEqual(at, txid)
        self.assertSameBytes(db, out)

    def test_a_new_lineage_that_arrives_while_the_replica_is_listed(self):
        """Its snapshot is there before its first small file, and so it is in whatever a listing made meanwhile shows."""
        s3 = door.S3(self)
        direct, db = s3.url(), self.path("app.db")
        p = self.peer(env=s3.env()).open(db)
        p.watch(direct, interval="0s", levels=["1h"])
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.sync()
        before = {k: s3.get(k) for k in s3.keys("app/walrust/manifest")}
        seen = set(s3.keys("app/"))
        p.close()
        with contextlib.closing(sqlite3.connect(db)) as stranger:
            stranger.execute("INSERT INTO t(v) VALUES('of a stranger')")
            stranger.commit()
        p.open(db)
        p.sync()
        after = {k: s3.get(k) for k in s3.keys("app/walrust/manifest")}
        news = {k: s3.get(k) for k in sorted(set(s3.keys("app/")) - seen) if k.endswith(".ltx")}
        self.assertEqual(sorted(k.split("/")[1] for k in news), ["0000", "0009"])
        p.kill()
        for k in news:
            s3.s3.delete_object(Bucket=s3.bucket, Key=k)
        for k, body in before.items():
            s3.s3.put_object(Bucket=s3.bucket, Key=k, Body=body)

        # More than one listing shows: each level is listed by itself.
        for i in range(1000):
            s3.s3.put_object(Bucket=s3.bucket, Key=f"app/other/{i}", Body=b"")
        proxy = door.FaultProxy(self, s3.port)
        snapshots_listed = threading.Event()
        arrived = []

        def fault(method, path):
            prefix = urllib.parse.unquote(urllib.parse.parse_qs(urllib.parse.urlsplit(path).query).get("prefix", [""])[0])
            if prefix.rstrip("/").endswith("/0009"):
                threading.Timer(0.3, snapshots_listed.set).start()
            if prefix.rstrip("/").endswith("/0000") and not arrived:
                arrived.append(prefix)
                snapshots_listed.wait(2)
                for k in sorted(news, key=lambda k: "/0000/" in k):
                    s3.s3.put_object(Bucket=s3.bucket, Key=k, Body=news[k])
                for k, body in after.items():
                    s3.s3.put_object(Bucket=s3.bucket, Key=k, Body=body)

        proxy.fault = fault
        restored, _ = self.restore(s3.url("app", proxy.endpoint), env=s3.env())
        self.assertTrue(arrived)
        self.assertSameBytes(db, restored)

    def test_quick_downloads_no_page_data(self):
        """One listing, then of each file its header and what stands behind the pages; of a megabyte a few kilobytes."""
        p = self.streaming()
        for _ in range(4):
            p.sql("INSERT INTO t(v) VALUES(randomblob(300000))")
            p.sync()
        # A proxy of the judge's own: the writer looks after its replica meanwhile.
        proxy = door.FaultProxy(self, self.s3.port)
        url, got, forward = self.s3.url("app", proxy.endpoint), [], proxy.forward

        def count(method, path, headers, body):
            answer = forward(method, path, headers, body)
            got.append((method, path, headers.get("Range"), len(answer[2])))
            return answer

        judge = self.peer(env=self.s3.env()).open(":memory:")
        proxy.forward = count
        text = judge.sql("SELECT walrust_verify(?)", url)
        self.assertEqual(text.splitlines()[0], "Verifying backup: app in s3://bucket/app")
        self.assertIn("Exit code: 0", text)
        listings = [path for _, path, _, _ in got if "list-type=2" in path and "walrust" not in path]
        self.assertEqual(len(listings), len(set(listings)))
        self.assertEqual(len(listings), 1)
        self.assertTrue(all(part for method, path, part, _ in got if method == "GET" and path.endswith(".ltx")), got)
        files = {path for _, path, _, _ in got if path.endswith(".ltx")}
        self.assertEqual(len(files), len([k for k in self.s3.keys("app/00")]))
        self.assertLess(sum(n for _, path, _, n in got if path.endswith(".ltx")), 10_000)
        self.assertEqual({method for method, _, _, _ in got} - {"GET", "HEAD"}, set())
        got.clear()
        self.assertIn("Exit code: 0", judge.sql("SELECT walrust_verify(?, 'deep')", url))
        self.assertGreater(sum(n for _, path, _, n in got if path.endswith(".ltx")), 1_000_000)


class Faults(S3Test):
    def test_outage(self):
        p = self.streaming()
        self.insert(p, 5)
        p.sync()
        self.proxy.down = True
        worst = p.code("""
worst = 0
end = time.time() + 3
n = 0
while time.time() < end:
    t = time.perf_counter()
    conns['main'].execute("INSERT INTO t(v) VALUES('outage')")
    worst = max(worst, time.perf_counter() - t)
    n += 1
    time.sleep(0.01)
result = [worst, n]
""")
        self.assertLess(worst[0], 0.5)
        row = p.status()
        self.assertIn(row["state"], ("paused", "catching up"))
        self.assertLess(row["replicated_txid"], row["txid"])
        self.assertGreater(row["pending_bytes"], 0)
        self.assertTrue(row["last_error"])
        self.assertGreater(row["lag_seconds"], 0)
        with self.assertRaises(door.SqlError):
            p.sync(0.3)
        self.proxy.down = False
        self.assertComplete(p)
        self.eventually(lambda: p.status()["state"] == "streaming", what="streaming")

    def test_statuses_that_pass(self):
        """500, 503 and 429 with Retry-After, on half of the writes."""
        for code in (500, 503, 429):
            with self.subTest(code=code):
                counter = [0]

                def fault(method, path):
                    if method in ("PUT", "POST"):
                        counter[0] += 1
                        if self.random.random() < 0.5:
                            return "status", code, {"Retry-After": "0"}
                    return None

                self.proxy.fault = None
                if os.path.exists(self.db):
                    p.end()
                    self.db = self.path(f"app{code}.db")
                p = self.peer(env=self.s3.env()).open(self.db)
                p.watch(self.s3.url(f"app{code}", self.proxy.endpoint), interval="0s",
                        retry={"base": "5ms", "max": "50ms", "breaker_threshold": 50})
                self.proxy.fault = fault
                p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
                for _ in range(8):
                    self.insert(p, 2)
                    txid = p.sync(60)
                self.proxy.fault = None
                out, at = self.restore(self.s3.url(f"app{code}"), env=self.s3.env())
                self.assertEqual(at, txid)
                self.assertSameBytes(self.db, out)
                self.assertGreater(counter[0], 5)

    def test_pauses_between_tries_begin_at_base_and_end_at_max(self):
        """Tries of one upload in a second of failures: many with short pauses, a handful with pauses that double, hardly any with long ones."""
        tries = {}
        for base, most in (("5ms", "5ms"), ("5ms", "5s"), ("5s", "5s")):
            p = self.peer(env=self.s3.env()).open(self.path(f"{base}-{most}.db"))
            p.watch(self.s3.url(f"{base}-{most}", self.proxy.endpoint), interval="0s", retry={"base": base, "max": most, "breaker_threshold": 100_000})
            p.sql("CREATE TABLE t(v)")
            p.sync()
            asked = []
            self.proxy.fault = lambda method, path: asked.append(path) or ("status", 500) if method == "PUT" else None
            p.sql("INSERT INTO t VALUES(1)")
            self.eventually(lambda: asked, what="a try")
            time.sleep(1)
            tries[base, most] = len(asked)
            p.kill()
            self.proxy.fault = None
        self.assertGreater(tries["5ms", "5ms"], 30)
        self.assertIn(tries["5ms", "5s"], range(5, 25))
        self.assertLess(tries["5s", "5s"], 5)

    def test_lost_answers(self):
        """The server did it, the answer was cut: the create-only put meets its own object and goes on."""
        p = self.streaming()
        p.sync()
        counter = [0]

        def fault(method, path):
            if method == "PUT":
                counter[0] += 1
                if counter[0] % 3 == 0:
                    return ("lose",)
            return None

        self.proxy.fault = fault
        for _ in range(5):
            self.insert(p, 4)
            p.sync(60)
        self.proxy.fault = None
        self.assertComplete(p)
        self.assertIn("lost", {outcome for _, _, outcome in self.proxy.seen})
        self.assertNotEqual(p.status()["state"], "fenced")

    def test_cut_requests_and_slow_answers(self):
        p = self.streaming()

        def fault(method, path):
            chance = self.random.random()
            return ("drop",) if chance < 0.2 else ("delay", 0.05) if chance < 0.4 else None

        self.proxy.fault = fault
        self.insert(p, 25)
        p.sync(60)
        self.proxy.fault = None
        self.assertComplete(p)

    def test_restore_over_a_flaky_line(self):
        p = self.streaming()
        self.insert(p, 30, "z" * 2000)
        p.sync()

        def fault(method, path):
            return ("drop",) if self.random.random() < 0.15 else ("status", 503) if self.random.random() < 0.1 else None

        self.proxy.fault = fault
        out, _ = self.restore(self.s3.url("app", self.proxy.endpoint), env=self.s3.env())
        self.proxy.fault = None
        self.assertSameBytes(self.db, out)

    def test_a_restored_database_goes_on_before_the_store_is_heard(self):
        """The machine is another one: what it commits at once continues the history, in the WAL of other connections' commits as well."""
        p = self.streaming()
        self.insert(p, 20, "z" * 3000)
        p.sync()
        p.end()
        os.makedirs(self.path("new"))
        db = self.path("new", "app.db")
        out, at = self.restore(self.s3.url("app"), env=self.s3.env())
        os.rename(out, db)
        self.proxy.fault = lambda method, path: ("delay", 0.4)
        q = self.peer(env=self.s3.env(WALRUST_REPLICA=self.s3.url("app", self.proxy.endpoint))).open(db)
        for n in range(15):
            q.sql("INSERT INTO t(v) VALUES(?)", f"new {n}")
        q.sql("DELETE FROM t WHERE id % 3 = 0")
        q.sql("VACUUM")
        q.sql("INSERT INTO t(v) VALUES('after it shrank')")
        self.assertEqual(q.status()["replicated_txid"], 0, "the store has not been heard")
        self.proxy.fault = None
        self.assertGreater(q.sync(60), at)
        snapshots = [k for k in self.s3.keys("app/0009/") if k.endswith(".ltx")]
        self.assertEqual(len(snapshots), 1, "its history went on")
        out, _ = self.restore(self.s3.url("app"), env=self.s3.env())
        self.assertSameBytes(db, out)
        q.end()
        # Another database is refused as before.
        other = self.path("new", "other.db")
        r = self.peer(env=self.s3.env()).open(other)
        r.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        with self.assertRaisesRegex(door.SqlError, "another database's history|holds"):
            r.watch(self.s3.url("app"))

    def test_restore_where_each_request_fails_four_times(self):
        p = self.streaming()
        self.insert(p, 10, "z" * 2000)
        p.sync()
        asked = collections.Counter()

        def fault(method, path):
            asked[method, path] += 1
            return None if asked[method, path] > 4 else (("drop",), ("status", 503))[asked[method, path] % 2]

        self.proxy.fault = fault
        out, _ = self.restore(self.s3.url("app", self.proxy.endpoint), env=self.s3.env())
        self.proxy.fault = None
        self.assertSameBytes(self.db, out)

    def test_killed_during_an_outage(self):
        """What was committed while nothing could be shipped is shipped by the next process."""
        p = self.streaming()
        self.insert(p, 5)
        p.sync()
        self.proxy.down = True
        self.insert(p, 50, "during")
        time.sleep(0.3)
        p.kill()
        self.proxy.down = False
        q = self.peer(env=self.s3.env()).open(self.db)
        q.watch(self.s3.url("app", self.proxy.endpoint), interval="0s")
        q.sql("INSERT INTO t(v) VALUES('after')")
        self.assertEqual(q.sql("SELECT count(*) FROM t"), 56)
        self.assertComplete(q)

    def test_started_during_an_outage(self):
        self.proxy.down = True
        p = self.peer(env=self.s3.env()).open(self.db)
        try:
            p.watch(self.s3.url("app", self.proxy.endpoint), retry={"base": "10ms", "max": "100ms", "breaker_cooldown": "200ms"})
        except door.SqlError as error:
            self.assertErrorLine(str(error), "walrust_watch")
            self.proxy.down = False
            p.watch(self.s3.url("app", self.proxy.endpoint))
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        self.insert(p, 5)
        self.proxy.down = False
        self.assertComplete(p)

    def test_breaker_opens_and_closes(self):
        hook = door.Hook(self)
        door.toml(self, f'''
interval = "0s"
[retry]
base = "5ms"
max = "20ms"
breaker_threshold = 3
breaker_cooldown = "400ms"
[[webhooks]]
url = "{hook.url}"
[[databases]]
path = "{self.db}"
replica = "{self.s3.url('app', self.proxy.endpoint)}"
''')
        p = self.peer(env=self.s3.env()).open(self.db)
        p.sql("SELECT walrust_watch()")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.sync()
        self.proxy.fault = lambda method, path: ("status", 503)
        p.sql("INSERT INTO t(v) VALUES(1)")
        self.eventually(lambda: p.status()["breaker"] == "open", what="the breaker opens")
        self.assertEqual(p.status()["state"], "paused")
        self.eventually(lambda: hook.events("circuit_breaker_open"), what="the webhook")
        # What is asked for at each trial is the listing of every level; nothing is sent but one file.
        before = self.puts()
        time.sleep(0.2)
        self.assertLess(self.puts() - before, 4)
        self.proxy.fault = None
        self.eventually(lambda: p.status()["breaker"] == "closed", what="the breaker closes")
        self.eventually(lambda: hook.events("circuit_breaker_closed"), what="the webhook")
        self.assertComplete(p)

    def test_a_waiting_sync_ends_the_pause(self):
        """The breaker opens for a minute; the store is back sooner, and whoever asks need not wait for that minute."""
        p = self.streaming(retry={"base": "5ms", "max": "20ms", "breaker_threshold": 2, "breaker_cooldown": "60s"})
        p.sync()
        self.proxy.down = True
        p.sql("INSERT INTO t(v) VALUES(1)")
        self.eventually(lambda: p.status()["breaker"] == "open", what="the breaker opens")
        time.sleep(0.5)
        quiet = self.puts()
        time.sleep(0.5)
        self.assertEqual(self.puts(), quiet, "paused: nothing is tried while nobody waits")
        before = len(self.proxy.seen)
        with self.assertRaises(door.SqlError):
            p.sync(0.5)
        self.assertGreater(len(self.proxy.seen), before, "a sync has it tried")
        self.proxy.down = False
        p.sync(20)
        self.assertEqual(p.status()["breaker"], "closed")
        self.assertComplete(p)

    def test_a_waiting_sync_tries_mended_credentials(self):
        """What was refused a while ago says nothing of now: a sync has it tried, and fails at once only if that is refused, too."""
        p = self.streaming(retry={"base": "5ms", "max": "20ms", "breaker_threshold": 2, "breaker_cooldown": "60s"})
        p.sync()
        self.proxy.fault = lambda method, path: ("status", 403)
        p.sql("INSERT INTO t(v) VALUES(1)")
        self.eventually(lambda: p.status()["breaker"] == "open", what="the breaker opens")
        began = len(self.proxy.seen)
        with self.assertRaises(door.SqlError) as caught:
            p.sync(30)
        self.assertIn("403", str(caught.exception))
        self.assertGreater(len(self.proxy.seen), began)
        self.proxy.fault = None
        p.sync(20)
        self.assertComplete(p)

    def puts(self):
        return sum(seen[0] == "PUT" for seen in self.proxy.seen)

    def test_refused_credentials_are_not_retried_and_come_back(self):
        """403 is auth_failure at once; when the store accepts again, everything arrives."""
        hook = door.Hook(self)
        p = self.streaming(webhooks=[{"url": hook.url}])
        p.sync()
        self.proxy.fault = lambda method, path: ("status", 403)
        p.sql("INSERT INTO t(v) VALUES(1)")
        self.eventually(lambda: hook.events("auth_failure"), what="auth_failure")
        self.assertTrue(p.status()["last_error"])
        self.assertEqual(hook.events("auth_failure")[0]["severity"], "critical")
        self.eventually(lambda: p.status()["state"] == "failed", what="the state")
        self.proxy.fault = None
        self.insert(p, 3)
        self.eventually(lambda: p.status()["state"] == "streaming", timeout=90, what="replication comes back")
        self.assertComplete(p)

    def test_a_key_with_403_in_it_is_no_auth_failure(self):
        hook = door.Hook(self)
        p = self.peer(env=self.s3.env()).open(self.db)
        p.watch(self.s3.url("app-403", self.proxy.endpoint), interval="0s", webhooks=[{"url": hook.url}],
                retry={"base": "5ms", "max": "20ms", "breaker_threshold": 2, "breaker_cooldown": "100ms"})
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.sync()
        self.proxy.fault = lambda method, path: ("status", 503)
        p.sql("INSERT INTO t(v) VALUES(1)")
        self.eventually(lambda: hook.events(), what="an event")
        self.proxy.fault = None
        p.sync(60)
        self.assertEqual(hook.events("auth_failure"), [])

    def test_a_listing_that_leaves_everything_out(self):
        """Restarted while the store's listings are wrong: what lies there is not written over, and the history goes on."""
        p = self.streaming()
        self.insert(p, 5)
        txid = p.sync()
        kept = door.image(self.db)
        p.end()
        forward, lying = self.proxy.forward, [True]

        def lie(method, path, headers, body):
            status, answer, data = forward(method, path, headers, body)
            if lying[0] and method == "GET" and "list-type=2" in path:
                data = re.sub(rb"<(Contents|CommonPrefixes)>.*?</\1>", b"", data, flags=re.S)
                answer = {k: v for k, v in answer.items() if k.lower() not in ("content-length", "etag")}
            return status, answer, data

        self.proxy.forward = lie
        q = self.peer(env=self.s3.env()).open(self.db)
        q.watch(self.s3.url("app", self.proxy.endpoint), interval="0s", retry={"base": "10ms", "max": "100ms"})
        self.insert(q, 3)
        time.sleep(0.5)
        lying[0] = False

        def complete():
            try:
                q.sql("INSERT INTO t(v) VALUES('poke')")
                at = q.sync(5)
                out, found = self.restore(self.s3.url(), env=self.s3.env())
                return found == at and door.image(out) == door.image(self.db)
            except door.SqlError:
                return False

        self.eventually(complete, timeout=60, what="a whole history", every=0.3)
        out, _ = self.restore(self.s3.url(), point=txid, env=self.s3.env())
        self.assertEqual(door.image(out), kept)

    def test_bucket_deleted_and_made_again(self):
        p = self.streaming()
        self.insert(p, 5)
        p.sync()
        for key in self.s3.keys():
            self.s3.s3.delete_object(Bucket="bucket", Key=key)
        self.s3.s3.delete_bucket(Bucket="bucket")
        p.sql("INSERT INTO t(v) VALUES('no bucket')")
        self.eventually(lambda: p.status()["last_error"], what="the error shows")
        self.s3.s3.create_bucket(Bucket="bucket")
        self.insert(p, 3)

        def restored():
            try:
                p.sync(10)
                out, _ = self.restore(self.s3.url(), env=self.s3.env())
                return door.image(out) == door.image(self.db)
            except door.SqlError:
                return False

        self.eventually(restored, timeout=60, what="a whole history in the new bucket", every=0.5)


class Credentials(S3Test):
    """Where credentials and the endpoint come from, beside the two variables that the other tests use."""

    def works(self, url, env):
        p = self.peer(env=env).open(self.db)
        p.watch(url, interval="0s")
        p.sql("CREATE TABLE IF NOT EXISTS t(v)")
        txid = p.sync()
        shown = str(p.rows("SELECT * FROM walrust_status")) + str(p.rows("SELECT * FROM walrust_config")) + p.sql("SELECT walrust_explain()")
        for secret in door.SECRETS:
            self.assertNotIn(secret, shown)
        p.end()
        self.assertEqual(self.restore(url, env=env)[1], txid)
        self.assertTrue(self.s3.keys("app/0000/"))

    def test_a_profile_of_the_shared_file(self):
        os.mkdir(self.path(".aws"))
        with open(self.path(".aws", "credentials"), "w") as f:
            f.write(f"[default]\naws_access_key_id = AKIAWRONG\naws_secret_access_key = wrong\n\n[app]\n"
                    f"aws_access_key_id = {self.s3.access_key}\naws_secret_access_key = {self.s3.secret_key}\n")
        self.works(self.s3.url(), {"AWS_PROFILE": "app"})

    def test_the_endpoint_of_the_environment(self):
        self.works("s3://bucket/app", self.s3.env(AWS_ENDPOINT_URL_S3=self.s3.endpoint))
        self.works("s3://bucket/app/", self.s3.env(AWS_ENDPOINT_URL_S3=self.s3.endpoint))

    def giver(self):
        """A server that gives the keys out in each of the three ways; what it was asked is in `asked`."""
        keys = {"AccessKeyId": "AKIAGIVEN", "SecretAccessKey": "given-secret", "Token": "given-token", "Expiration": "2099-01-01T00:00:00Z",
                "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z"}
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def give(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                asked.append((self.command, self.path, self.headers.get("Authorization"), body))
                if "AssumeRoleWithWebIdentity" in self.path + body:
                    text = ("<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
                            f"<AccessKeyId>{keys['AccessKeyId']}</AccessKeyId><SecretAccessKey>{keys['SecretAccessKey']}</SecretAccessKey>"
                            f"<SessionToken>{keys['Token']}</SessionToken><Expiration>{keys['Expiration']}</Expiration>"
                            "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>")
                elif self.command == "PUT":
                    text = "metadata-token"
                else:
                    text = "the-role" if self.path.rstrip("/").endswith("security-credentials") else json.dumps(keys)
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_PUT = do_POST = give

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return f"http://127.0.0.1:{server.server_address[1]}", asked

    def assertUsed(self, env):
        """A request is signed with what was given: its key's name and its token, seen on the way to the store."""
        signed = set()

        def proxied(method, path, headers, body):
            signed.add((re.search(r"Credential=(\w+)/", headers["Authorization"])[1], headers["x-amz-security-token"]))
            return 200, {"Content-Type": "application/xml"}, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"

        self.proxy.forward = proxied
        done = self.run_shell(f"SELECT count(*) FROM walrust_files({door.quote(self.s3.url(endpoint=self.proxy.endpoint))});", env=env)
        self.assertEqual((done.stdout.strip(), done.stderr), ("0", ""))
        self.assertEqual(signed, {("AKIAGIVEN", "given-token")})

    def test_web_identity(self):
        url, asked = self.giver()
        with open(self.path("token"), "w") as f:
            f.write("identity-token")
        self.assertUsed({"AWS_WEB_IDENTITY_TOKEN_FILE": self.path("token"), "AWS_ROLE_ARN": "arn:aws:iam::1:role/app",
                         "AWS_ENDPOINT_URL_STS": url, "AWS_ALLOW_HTTP": "true"})
        (method, path, _, body), *_ = asked
        self.assertIn("identity-token", path + body)

    def test_container_credentials(self):
        url, asked = self.giver()
        with open(self.path("token"), "w") as f:
            f.write("container-token")
        self.assertUsed({"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/v1/credentials", "AWS_ALLOW_HTTP": "true",
                         "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": self.path("token")})
        self.assertEqual({a[:3] for a in asked}, {("GET", "/v1/credentials", "container-token")})

    def test_instance_metadata(self):
        url, asked = self.giver()
        self.assertUsed({"AWS_METADATA_ENDPOINT": url, "AWS_EC2_METADATA_DISABLED": None, "AWS_ALLOW_HTTP": "true"})
        self.assertIn(("GET", "/latest/meta-data/iam/security-credentials/the-role"), {a[:2] for a in asked})

    def test_region_and_bucket_of_the_url_and_the_environment(self):
        """Where the request goes and what it is signed for, seen by an HTTP proxy; nothing is behind it."""
        asked = []

        def proxied(method, path, headers, body):
            asked.append((path.split("?")[0], re.search(r"Credential=\w+/\d+/([^/]+)/s3", headers["Authorization"])[1]))
            return 404, {}, b"<Error><Code>NoSuchBucket</Code></Error>"

        self.proxy.forward = proxied
        for parameters, env, place, region in (
            ("&region=eu-west-3&path_style=true", {}, "http://s3.test/bucket", "eu-west-3"),
            ("&region=eu-west-3&path_style=false", {}, "http://bucket.s3.test/", "eu-west-3"),
            ("", {"AWS_REGION": "eu-north-1"}, "http://s3.test/bucket", "eu-north-1"),
            ("&region=eu-west-3", {"AWS_REGION": "eu-north-1"}, "http://s3.test/bucket", "eu-west-3"),
            ("", {"AWS_REGION": None}, "http://s3.test/bucket", "us-east-1"),
        ):
            with self.subTest(parameters=parameters, env=env):
                asked.clear()
                done = self.run_shell(f"SELECT * FROM walrust_files('s3://bucket/app?endpoint=http://s3.test{parameters}');",
                                      env=self.s3.env(**env, http_proxy=self.proxy.endpoint))
                self.assertErrorLine(done.stderr, "walrust_files", "bucket")
                self.assertEqual(set(asked), {(place, region)})

    def test_a_session_token_is_sent_and_never_shown(self):
        token = "session-token-of-the-test"
        door.SECRETS.add(token)
        sent, forward = set(), self.proxy.forward

        def watch(method, path, headers, body):
            sent.add(headers.get("x-amz-security-token"))
            return forward(method, path, headers, body)

        self.proxy.forward = watch
        done = self.run_shell(f"SELECT * FROM walrust_files({door.quote(self.s3.url(endpoint=self.proxy.endpoint))});",
                              env=self.s3.env(AWS_SESSION_TOKEN=token))
        self.assertEqual(sent, {token})
        self.assertNotIn(token, done.stdout + done.stderr)


class TwoMachines(S3Test):
    """Two processes with different local state stand for two machines."""

    def test_the_second_live_writer_is_fenced(self):
        p = self.streaming()
        self.insert(p, 5)
        txid = p.sync()
        os.mkdir(self.path("m2"))
        other = self.path("m2", "app.db")
        self.restore(self.s3.url(), other, env=self.s3.env())
        q = self.peer(env=self.s3.env()).open(other)
        try:
            q.watch(self.s3.url("app", self.proxy.endpoint), interval="0s")
            q.sql("INSERT INTO t(v) VALUES('machine 2')")
            with self.assertRaises(door.SqlError) as caught:
                q.sync(3)
            self.assertErrorLine(str(caught.exception), "fenced|lease|held by")
            self.assertEqual(q.status()["state"], "fenced")
        except door.SqlError as error:
            self.assertErrorLine(str(error), "fenced|lease|held by")
        self.insert(p, 5)
        self.assertComplete(p)
        self.assertGreater(p.sync(), txid)

    def test_who_holds_the_replica_and_until_when(self):
        p = self.streaming()
        p.sync()
        os.mkdir(self.path("m2"))
        other = self.path("m2", "app.db")
        self.restore(self.s3.url(), other, env=self.s3.env())
        q = self.peer(env=self.s3.env()).open(other)
        with self.assertRaises(door.SqlError) as caught:
            q.watch(self.s3.url("app", self.proxy.endpoint), interval="0s")
        self.assertNamesTheHolder(str(caught.exception), p)

    def test_handover_after_the_first_has_left(self):
        p = self.streaming()
        self.insert(p, 5)
        txid = p.sync()
        p.end()
        os.mkdir(self.path("m2"))
        self.db = self.path("m2", "app.db")
        self.restore(self.s3.url(), self.db, env=self.s3.env())
        q = self.peer(env=self.s3.env()).open(self.db)
        q.watch(self.s3.url("app", self.proxy.endpoint), interval="0s")
        q.sql("INSERT INTO t(v) VALUES('machine 2')")
        self.assertEqual(q.sync(), txid + 1)
        self.assertComplete(q)


if __name__ == "__main__":
    unittest.main()
