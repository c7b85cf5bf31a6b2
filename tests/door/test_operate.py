"""What an operator asks: explain, list, files, compact, metrics and health, a follower."""

import contextlib
import datetime
import hashlib
import json
import os
import re
import time
import unittest
import urllib.request

import pytest

import door


class Explain(door.DoorTest):
    HEADINGS = ["Databases:", "S3 Destination:", "Snapshot Schedule:", "Retention Policy (GFS):", "Estimated Storage:", "Validation:"]

    def explain(self, p, options=None):
        return p.sql("SELECT walrust_explain(?)", json.dumps(options)) if options else p.sql("SELECT walrust_explain()")

    def test_report_shape(self):
        door.toml(self, f'''
validation_interval = "1h"
[[webhooks]]
url = "https://hooks.example.com/walrust/very/private"
[[databases]]
path = "{self.path('app.db')}"
replica = "s3://my-bucket/backups/production/app?endpoint=http://127.0.0.1:1&region=auto"
''')
        q = self.peer().open(self.path("app.db"))
        q.rows("CREATE TABLE IF NOT EXISTS t(v)")
        text = self.explain(q)
        lines = text.splitlines()
        self.assertEqual(lines[0], "Walrust Configuration Preview")
        self.assertRegex(lines[1], r"^=+$")
        positions = [lines.index(h) for h in self.HEADINGS]
        self.assertEqual(positions, sorted(positions))
        for wanted in (r"^- .*app\.db \(.+\)$", r"^Bucket: my-bucket$", r"^Endpoint: http://127\.0\.0\.1:1$",
                       r"^Prefix: backups/production/app$", r"^Interval: 3600s \(1 hour\)$", r"^Estimated: 24 snapshots/day$",
                       r"^Hourly: 24 snapshots \(last 24 hours\)$", r"^Daily: 7 snapshots \(last week\)$",
                       r"^Weekly: 12 snapshots \(last 12 weeks\)$", r"^Monthly: 12 snapshots \(beyond 12 weeks\)$",
                       r"^Active: .+ \(current snapshots\)", r"^Archive: .+ \(retained history\)", r"^Monthly cost: ~\$.+ @ \$.+/GB \(.+\)",
                       r"^On failure: Send webhook to .*hooks\.example\.com"):
            self.assertRegex(text, re.compile(wanted, re.M))
        self.assertNotIn("very/private", text)
        self.assertRegex(text, re.compile("unreachable|not reached|could not be reached", re.I))

    def test_the_report_is_the_promised_one(self):
        """The lines of the contract, in its order; others may stand between them."""
        door.toml(self, f'''
validation_interval = "1h"
[[webhooks]]
url = "https://hooks.example.com/walrust"
[[databases]]
path = "{self.path('app.db')}"
replica = "s3://my-bucket/backups/production/app?endpoint=https://fly.storage.tigris.dev&region=auto"
''')
        q = self.peer(env={"https_proxy": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})
        q.open(self.path("app.db"))
        q.rows("CREATE TABLE IF NOT EXISTS t(v)")
        lines = self.explain(q).splitlines()
        at = 0
        for wanted in (
            r"Walrust Configuration Preview", r"={29}", r"Databases:", rf"- {re.escape(self.path('app.db'))} \([\d.]+ (bytes|[KMG]B)\)",
            r"S3 Destination:", r"Bucket: my-bucket", r"Endpoint: https://fly\.storage\.tigris\.dev", r"Prefix: backups/production/app",
            r"Snapshot Schedule:", r"Interval: 3600s \(1 hour\)", r"Estimated: 24 snapshots/day",
            r"Retention Policy \(GFS\):", r"Hourly: 24 snapshots \(last 24 hours\)", r"Daily: 7 snapshots \(last week\)",
            r"Weekly: 12 snapshots \(last 12 weeks\)", r"Monthly: 12 snapshots \(beyond 12 weeks\)",
            r"Estimated Storage:", r"Active: [\d.]+ (bytes|[KMG]B) \(current snapshots\)", r"Archive: [\d.]+ (bytes|[KMG]B) \(retained history\)",
            r"Monthly cost: ~\$[\d.]+ @ \$[\d.]+/GB \(Tigris pricing.*\)", r"Validation:", r"Interval: 3600s \(1 hour\)",
            r"On failure: Send webhook to https://hooks\.example\.com.*",
        ):
            found = next((i for i in range(at, len(lines)) if re.fullmatch(wanted, lines[i])), None)
            self.assertIsNotNone(found, f"{wanted} after line {at} of\n" + "\n".join(lines))
            at = found + 1

    def test_what_validation_reads_and_the_endpoint_of_the_environment(self):
        """Whose prices hold depends on where a store is opened, also where only the environment says so; a check reads each file."""
        with contextlib.closing(door.plain_connect(self.path("app.db"))) as db:
            db.execute("CREATE TABLE t(v)")
        door.toml(self, '[[databases]]\npath = "app.db"\nreplica = "s3://my-bucket/app"\n')
        env = {"https_proxy": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
               "AWS_ENDPOINT_URL_S3": "https://fly.storage.tigris.dev"}
        explain = lambda *options: self.run_cli("explain", self.path("app.db"), *options, env=env).stdout
        text = explain("-o", "validation_interval=6h")
        self.assertIn("\nEndpoint: https://fly.storage.tigris.dev\n", text)
        self.assertRegex(text, r"(?m)^Monthly cost: .*\(Tigris pricing")
        # A day of one upload a second, four checks a day, three requests a file.
        self.assertRegex(text, rf"(?m)^Reads of validation: at most {86400 * 4 * 3 * 30} GET and HEAD per month$")
        self.assertRegex(text, r"(?m)^Monthly reads: ~\$15\.55 @ \$0\.0005/1000$")
        self.assertNotIn("Reads of validation", explain())

    def test_the_size_is_the_real_one(self):
        p, db, url = self.watched()
        p.sql("INSERT INTO t(v) VALUES(randomblob(30000000))")
        p.sync(60)
        text = self.explain(p)
        size = re.search(r"- \S+ \((.+)\)", text).group(1)
        number, unit = re.match(r"([\d.]+) ?(\w+)", size).groups()
        scale = {"MB": 1e6, "MiB": 1 << 20, "kB": 1e3, "KB": 1e3}[unit]
        self.assertLess(abs(float(number) * scale - 30_000_000), 3_000_000, size)

    def test_prices_can_be_said(self):
        p, db, url = self.watched()
        text = self.explain(p, {"price_per_gb": 0.5, "price_per_1000_put": 0.25})
        self.assertRegex(text, re.compile(r"^Monthly cost: ~\$[\d.]+ @ \$0\.5/GB \(configured price\)$", re.M))
        puts, lists = map(int, re.search(r"(?m)^Requests: (?:at most )?(\d+) PUT and (\d+) LIST per month$", text).groups())
        cost = float(re.search(r"(?m)^Monthly requests: ~\$([\d.]+) @ \$0\.25/1000$", text)[1])
        self.assertGreater(puts, lists)
        self.assertLess(abs(cost - (puts + lists) / 1000 * 0.25), 0.01)

    def test_requests_follow_the_intervals(self):
        """A month of an upload a second is an object each, and their entries in the manifest each ten seconds; of one a minute two each."""
        p, db, url = self.watched()
        counted = {}
        for interval in ("1s", "60s"):
            text = self.explain(p, {"interval": interval, "levels": ["1h"], "snapshot_interval": "1d"})
            counted[interval] = int(re.search(r"Requests: (?:at most )?(\d+) PUT", text)[1])
            self.assertRegex(text, re.compile(r"^Interval: 86400s \(1 day\)\nEstimated: 1 snapshots/day$", re.M))
        self.assertLess(abs(counted["1s"] - 1.1 * 30 * 86400), 130000)
        self.assertLess(abs(counted["60s"] - 2 * 30 * 1440), 130000)

    def test_compression_is_the_replicas_own(self):
        """Where a snapshot of what there is now lies in the replica, storage is reckoned from that, and the report says so."""
        p, db, url = self.watched()
        p.sql("INSERT INTO t(v) VALUES(zeroblob(3000000) || randomblob(1000000))")
        p.sql("INSERT INTO t(v) VALUES(randomblob(1000000))")
        p.sql("INSERT INTO t(v) VALUES(zeroblob(3000000))")
        p.sql("SELECT walrust_snapshot()")
        taken = max(door.ltx_files(url, 9))[3]
        percent = os.path.getsize(taken) * 100 / (p.sql("PRAGMA page_count") * p.sql("PRAGMA page_size"))
        text = self.explain(p)
        shown = int(re.search(r"(?m)^Measured: a snapshot takes (\d+)% of the database's size", text)[1])
        self.assertLess(shown, 60)
        self.assertLessEqual(abs(shown - percent), 1)
        active, unit = re.search(r"(?m)^Active: ([\d.]+) (\w+) \(current snapshots\)$", text).groups()
        self.assertLess(abs(float(active) * {"MB": 1e6, "KB": 1e3}[unit] - os.path.getsize(taken)), 100_000)

    def test_it_reads_the_replicas_listing_and_nothing_else(self):
        """Each request on its way: listings, and walrust's own list of what it wrote; nothing is written."""
        s3 = door.S3(self)
        p = self.peer(env=s3.env()).open(self.path("app.db"))
        p.watch(s3.url(), interval="0s")
        p.sql("CREATE TABLE t(v)")
        p.sync()
        p.end()
        proxy = door.FaultProxy(self, s3.port)
        hook = door.Hook(self)
        door.toml(self, f'''
[[webhooks]]
url = "{hook.url}"
[[databases]]
path = "{self.path('app.db')}"
replica = "{s3.url('app', proxy.endpoint)}"
''')
        done = self.run_cli("explain", self.path("app.db"), env=s3.env())
        self.assertRegex(done.stdout, re.compile(r"^Holds: \d+ files, ", re.M), done.stderr)
        self.assertTrue(proxy.seen)
        for method, path, _ in proxy.seen:
            self.assertEqual(method, "GET", path)
            self.assertRegex(path, r"^/bucket\?list-type=2|^/bucket/app/walrust/manifest-\w+\.json$")
        self.assertEqual(hook.requests, [])

    def test_prices_by_endpoint(self):
        p = self.peer()
        for endpoint, name in (("https://fly.storage.tigris.dev", "Tigris"), ("https://x.r2.cloudflarestorage.com", "R2"), (None, "S3")):
            url = "s3://bucket/x?region=auto" + (f"&endpoint={endpoint}" if endpoint else "")
            door.toml(self, f'[[databases]]\npath = "{self.path("e.db")}"\nreplica = "{url}"\n', f"{name}.toml")
            q = self.peer(env={"WALRUST_CONFIG": self.path(f"{name}.toml"), "http_proxy": "http://127.0.0.1:1",
                               "https_proxy": "http://127.0.0.1:1"}).open(self.path("e.db"))
            self.assertRegex(self.explain(q), f"Monthly cost: .*{name}")
            q.end()
        p.end()

    def test_many_databases(self):
        p = self.peer()
        for name in ("one", "two", "three"):
            p.open(self.path(name + ".db"), name)
            p.watch(self.path("r-" + name), conn=name)
            p.sql("CREATE TABLE t(v)", conn=name)
        text = p.sql("SELECT walrust_explain()", conn="one")
        for name in ("one", "two", "three"):
            self.assertIn(self.path(name + ".db"), text)
        self.assertRegex(text, re.compile("total", re.I))

    def test_before_anything_exists(self):
        self.assertIn("Walrust Configuration Preview", self.shell("SELECT walrust_explain();"))


class Inventory(door.DoorTest):
    def test_files(self):
        p, db, url = self.watched(interval="0s")
        for i in range(6):
            p.sql("INSERT INTO t(v) VALUES(randomblob(5000))")
            txid = p.sync()
        rows = [dict(zip(door.FILES_COLUMNS, r)) for r in p.rows("SELECT * FROM walrust_files ORDER BY level, min_txid")]
        self.assertEqual(rows, [dict(zip(door.FILES_COLUMNS, r)) for r in p.rows("SELECT * FROM walrust_files(?) ORDER BY level, min_txid", url)])
        on_disk = door.ltx_files(url)
        self.assertEqual([(r["level"], r["min_txid"], r["max_txid"]) for r in rows], [f[:3] for f in on_disk])
        for row, (_, _, _, path) in zip(rows, on_disk):
            with open(path, "rb") as f:
                data = f.read()
            self.assertEqual(row["bytes"], len(data))
            self.assertEqual(row["sha256"], hashlib.sha256(data).hexdigest())
            self.assertTrue(path.endswith(row["key"]), row["key"])
            self.assertEqual(row["commit_pages"], int.from_bytes(data[12:16], "big"))
            # A full copy has all pages; an insert its few.
            self.assertTrue(row["pages"] == row["commit_pages"] if row["level"] == 9 else 1 <= row["pages"] <= 6, row)
            stamp = datetime.datetime.fromisoformat(row["time"].replace("Z", "+00:00")).timestamp()
            self.assertLess(abs(stamp - int.from_bytes(data[32:40], "big", signed=True) / 1000), 1.1)
        self.assertEqual(max(r["max_txid"] for r in rows), txid)
        last = max((r for r in rows if r["level"] == 0), key=lambda r: r["max_txid"])
        self.assertLess(last["pages"], last["commit_pages"])

    def test_list(self):
        p = self.peer()
        for name in ("one", "two"):
            p.open(self.path(name + ".db"), name)
            p.watch(self.path("all", name), conn=name, interval="0s")
            p.sql("CREATE TABLE t(v)", conn=name)
            p.sql("INSERT INTO t VALUES(1)", conn=name)
            txid = p.sync(conn=name)
        rows = [dict(zip(door.LIST_COLUMNS, r)) for r in p.rows("SELECT * FROM walrust_list(?) ORDER BY name", self.path("all"), conn="one")]
        self.assertEqual([r["name"] for r in rows], ["one", "two"])
        for row in rows:
            disk = door.ltx_files(self.path("all", row["name"]))
            self.assertEqual(row["files"], len(disk))
            self.assertEqual(row["bytes"], sum(os.path.getsize(f[3]) for f in disk))
            self.assertEqual((row["min_txid"], row["max_txid"]), (min(f[1] for f in disk), max(f[2] for f in disk)))
            self.assertGreaterEqual(row["snapshots"], 1)
            self.assertLessEqual(row["first_time"], row["last_time"])
            self.assertIn(row["name"], row["replica"])
        self.assertEqual(rows[-1]["max_txid"], txid)
        alone = p.rows("SELECT name, max_txid FROM walrust_list(?)", self.path("all", "one"), conn="one")
        self.assertEqual(alone, [("one", rows[0]["max_txid"])])
        os.mkdir(self.path("nothing"))
        self.assertEqual(p.rows("SELECT * FROM walrust_list(?)", self.path("nothing"), conn="one"), [])

    def test_snapshot(self):
        p, db, url = self.watched(interval="0s")
        for i in range(5):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
        txid = p.sql("SELECT walrust_snapshot()")
        self.assertIn((9, 1, txid), [f[:3] for f in door.ltx_files(url)])
        self.assertSameBytes(db, self.restore(url, point=txid)[0])

    def test_the_state_while_a_snapshot_is_made(self):
        p, db, url = self.watched()
        p.many("INSERT INTO t(v) VALUES(?)", [(os.urandom(1 << 20),) for _ in range(40)])
        p.sync(60)
        states = p.code("""
other = connect(args['db'])
states = set()
maker = threading.Thread(target=lambda: other.execute('SELECT walrust_snapshot()').fetchall())
maker.start()
while maker.is_alive():
    states.add(conns['main'].execute('SELECT state FROM walrust_status').fetchone()[0])
result = sorted(states)
""", db=db)
        self.assertIn("snapshotting", states)
        self.assertEqual(set(states) - {"streaming", "catching up", "snapshotting"}, set())

    def test_snapshot_while_writers_go_on(self):
        p, db, url = self.watched(interval="0s")
        p.sql("INSERT INTO t(v) VALUES(randomblob(8000000))")
        p.sync()
        q = self.peer().open(db)
        q.watch(url)
        q.send(op="code", code="""
n = 0
worst = 0
end = time.time() + 2
while time.time() < end:
    t = time.perf_counter()
    conns['main'].execute('INSERT INTO t(v) VALUES(1)')
    worst = max(worst, time.perf_counter() - t)
    n += 1
result = [n, worst]
""")
        txids = []
        for _ in range(3):
            txids.append(p.sql("SELECT walrust_snapshot()"))
        n, worst = q.wait()
        self.assertGreater(n, 20)
        self.assertLess(worst, 1)
        for txid in txids:
            out, _ = self.restore(url, point=txid)
            self.assertSound(out)
            os.unlink(out)

    def test_snapshot_to_another_url(self):
        p, db, url = self.watched()
        p.sql("INSERT INTO t(v) VALUES(1)")
        txid = p.sql("SELECT walrust_snapshot(?)", self.path("copy"))
        out, at = self.restore(self.path("copy"))
        self.assertEqual(at, txid)
        self.assertSameBytes(db, out)
        self.assertIn("Exit code: 0", p.sql("SELECT walrust_verify(?, 'deep')", self.path("copy")))
        p.sql("INSERT INTO t(v) VALUES(2)")
        self.assertGreater(p.sql("SELECT walrust_snapshot(?)", self.path("copy")), txid)
        self.assertSameBytes(db, self.restore(self.path("copy"))[0])
        q, _, _ = self.watched(self.path("other.db"), self.path("other"))
        with self.assertRaises(door.SqlError) as caught:
            q.sql("SELECT walrust_snapshot(?)", self.path("copy"))
        self.assertErrorLine(str(caught.exception), "walrust_snapshot", "another history")


class Worth(door.DoorTest):
    def test_a_snapshot_is_taken_when_it_is_worth_it(self):
        """Of a database that is not small: when as much came as it is itself. What retention promises does not depend on that."""
        with contextlib.closing(door.plain_connect(self.path("app.db"))) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE b(id INTEGER PRIMARY KEY, x)")
            db.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) INSERT INTO b(x) SELECT randomblob(100000) FROM n")
        p, db, url = self.watched(self.path("app.db"), interval="0s", levels=["200ms", "1s"], snapshot_interval="200ms", pitr_window="1h")
        snapshots = lambda: [k for k in door.tree(url) if re.search(r"ltx/9/.*\.ltx$", k)]
        self.eventually(snapshots, what="the first snapshot")
        txids = []
        for n in range(15):
            p.sql("INSERT INTO t(v) VALUES(?)", n)
            txids.append(p.sync())
            time.sleep(0.1)
        self.assertEqual(len(snapshots()), 1, "little changed")
        for _ in range(3):
            p.sql("UPDATE b SET x = randomblob(100000) WHERE id <= 30")
            p.sync()
        self.eventually(lambda: len(snapshots()) == 2, what="another one")
        p.sql("INSERT INTO t(v) VALUES('after')")
        txids.append(p.sync())
        time.sleep(1)
        self.assertEqual(len(snapshots()), 2)
        for txid in txids:
            self.assertEqual(self.restore(url, point=txid)[1], txid)


class Compact(door.DoorTest):
    def busy(self, **options):
        p, db, url = self.watched(interval="0s", levels=["100ms", "300ms", "1s"], snapshot_interval="400ms", **options)
        end = time.monotonic() + 3
        n = 0
        while time.monotonic() < end:
            p.sql("INSERT INTO t(v) VALUES(?)", n)
            n += 1
            p.sync()
            time.sleep(0.02)
        return p, db, url

    def settled(self, url):
        """The replica's tree once merging, snapshots and retention have nothing left to do."""
        seen = []

        def unchanged():
            seen.append(door.tree(url))
            time.sleep(1.5)
            return seen[-1] == door.tree(url)

        self.eventually(unchanged, what="the replica is at rest")
        return seen[-1]

    def test_dry_run_changes_nothing_and_force_keeps_what_it_promises(self):
        p, db, url = self.busy(pitr_window="1s")
        before = self.settled(url)
        dry = p.sql("SELECT walrust_compact()")
        self.assertRegex(dry, re.compile("dry", re.I))
        self.assertEqual({k: v for k, v in door.tree(url).items() if k.endswith(".ltx")},
                         {k: v for k, v in before.items() if k.endswith(".ltx")})
        text = p.sql("SELECT walrust_compact(NULL, ?)", json.dumps({"force": True}))
        self.assertTrue(text)
        p.sql("INSERT INTO t(v) VALUES('after')")
        txid = p.sync()
        out, at = self.restore(url)
        self.assertEqual(at, txid)
        self.assertSameBytes(db, out)
        self.litestream("restore", "-o", self.path("ls.db"), f"file://{url}")
        self.assertSameBytes(db, self.path("ls.db"))
        self.assertIn("Exit code: 0", p.sql("SELECT walrust_verify(?, 'deep')", url))
        snapshots = [f for f in door.ltx_files(url) if f[0] == 9]
        self.assertGreaterEqual(len(snapshots), 2)

    def test_the_dry_run_says_by_which_rule(self):
        """The policy in force, each tier from the options, else from the settings; and how much of it would go, which force then removes."""
        p, db, url = self.watched(interval="0s")
        for i in range(4):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
            p.sql("SELECT walrust_snapshot()")
        p.end()
        before = door.ltx_files(url)
        q = self.peer(env={"WALRUST_PITR_WINDOW": "0s", "WALRUST_RETENTION_HOURLY": "11", "WALRUST_RETENTION_DAILY": "12",
                           "WALRUST_RETENTION_WEEKLY": "13", "WALRUST_RETENTION_MONTHLY": "14"}).open(":memory:")
        for options, policy in ((None, "hourly 11, daily 12, weekly 13, monthly 14"), ({"hourly": 1}, "hourly 1, daily 12, weekly 13, monthly 14"),
                                ({"daily": 2, "weekly": 3, "monthly": 4}, "hourly 11, daily 2, weekly 3, monthly 4")):
            text = q.sql("SELECT walrust_compact(?, ?)", url, json.dumps(options) if options else None)
            self.assertRegex(text, re.compile(rf"^Policy: {policy}; every upload for 0s$", re.M))
            self.assertEqual(text.splitlines()[0], f"Compacting backup: file://{url}")
        snapshots, going = map(int, re.search(r"(?m)^Snapshots: (\d+), (\d+) to remove$", text).groups())
        files, leaving = map(int, re.search(r"(?m)^Files: (\d+) \(.+\), (\d+) to remove \(.+\)$", text).groups())
        self.assertEqual((snapshots, files), (len([f for f in before if f[0] == 9]), len(before)))
        self.assertEqual(door.ltx_files(url), before)
        self.assertRegex(q.sql("SELECT walrust_compact(?, '{\"force\":true}')", url), rf"Removed {leaving} files")
        self.assertGreaterEqual(going, 1)
        self.assertEqual(len([f for f in door.ltx_files(url) if f[0] == 9]), snapshots - going)
        self.assertEqual(len(door.ltx_files(url)), files - leaving)

    def test_every_point_of_the_window_survives(self):
        p, db, url = self.busy(pitr_window="1h")
        points = sorted({f[2] for f in door.ltx_files(url, 0)})
        p.sql("SELECT walrust_compact(NULL, ?)", json.dumps({"force": True, "hourly": 1, "daily": 1, "weekly": 1, "monthly": 1}))
        for txid in points[::max(1, len(points) // 10)]:
            self.assertEqual(self.restore(url, point=txid)[1], txid)

    def test_at_least_two_snapshots_stay(self):
        p, db, url = self.busy(pitr_window="100ms")
        p.sql("SELECT walrust_compact(NULL, ?)", json.dumps({"force": True, "hourly": 0, "daily": 0, "weekly": 0, "monthly": 0}))
        snapshots = [f for f in door.ltx_files(url) if f[1] == 1]
        self.assertGreaterEqual(len(snapshots), 2)
        self.assertTrue(door.ltx_files(url, 0), "one L0 is always kept, or Litestream could not take over")
        self.assertSameBytes(db, self.restore(url)[0])

    def test_a_replica_stays_bounded_by_itself(self):
        """Retention follows each scheduled snapshot; nobody calls walrust_compact."""
        p, db, url = self.busy(pitr_window="100ms", retention={"hourly": 1, "daily": 1, "weekly": 1, "monthly": 1})

        def snapshots():
            return len([f for f in door.ltx_files(url) if f[1] == 1])

        taken = self.eventually(lambda: p.sql("SELECT max(0, max_txid) FROM walrust_list(?)", url), what="a listing")
        self.assertGreater(taken, 20)
        self.eventually(lambda: snapshots() <= 3, what="old snapshots go")
        self.assertGreaterEqual(snapshots(), 2)
        self.assertLess(len(door.ltx_files(url)), taken, "old increments go")
        p.sync()
        self.assertIn("Exit code: 0", p.sql("SELECT walrust_verify(?, 'deep')", url))
        self.assertSameBytes(db, self.restore(url)[0])

    def test_compaction_while_the_stream_goes_on(self):
        """One writer of the manifest: neither entries nor objects are lost or left over."""
        p, db, url = self.watched(interval="0s", levels=["50ms", "200ms"], snapshot_interval="150ms", pitr_window="0s")
        q = self.peer().open(db)
        q.send(op="code", code="""
end = time.time() + 4
n = 0
while time.time() < end:
    conns['main'].execute('INSERT INTO t(v) VALUES(randomblob(500))')
    n += 1
    time.sleep(0.003)
result = n
""")
        end = time.monotonic() + 3.5
        while time.monotonic() < end:
            p.sql("SELECT walrust_compact(NULL, '{\"force\":true,\"hourly\":0,\"daily\":0,\"weekly\":0,\"monthly\":0}')")
            self.assertIn("Exit code: 0", p.sql("SELECT walrust_verify(?, 'quick')", url))
        self.assertGreater(q.wait(), 50)
        p.sync()
        self.assertIn("Exit code: 0", p.sql("SELECT walrust_verify(?, 'deep')", url))
        self.eventually(lambda: all(r[1] for r in p.rows("SELECT key, sha256 FROM walrust_files(?)", url)),
                        what="each object is in the manifest", every=0.3)
        rows = p.rows("SELECT key, sha256 FROM walrust_files(?)", url)
        self.assertSameBytes(db, self.restore(url)[0])

    def test_nothing_is_merged_of_what_retention_has_removed(self):
        """The copies that wait in the spool for their level outlive the files: merged, they would lie behind a gap."""
        none = {"hourly": 0, "daily": 0, "weekly": 0, "monthly": 0}
        p, db, url = self.watched(interval="0s", levels=["3s"], snapshot_interval="0s", pitr_window="0s", retention=none)
        for i in range(5):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
            last = p.sync()
        self.shell("INSERT INTO t(v) VALUES('a stranger'); PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t(v) VALUES('again');",
                   db=db, load=False)
        p.sql("INSERT INTO t(v) VALUES('another lineage')")
        self.assertGreater(p.sync(), last)
        p.sql("SELECT walrust_compact(NULL, ?)", json.dumps({"force": True}))
        of_before = lambda level: [f for f in door.ltx_files(url, level=level) if f[2] <= last]
        self.assertEqual(of_before(0), [])
        kept = os.path.join(f"{db}-walrust", "merge", "0")
        self.eventually(lambda: len(os.listdir(kept)) < 2, what="the level was due")
        self.assertEqual(of_before(1), [])
        self.assertIn("Exit code: 0", p.sql("SELECT walrust_verify(?, 'deep')", url))

    def test_what_a_process_did_not_live_to_remove_the_next_one_removes(self):
        """A program may live for a second: what its snapshot makes superfluous goes without another snapshot."""
        none = {"hourly": 0, "daily": 0, "weekly": 0, "monthly": 0}
        often = dict(interval="0s", snapshot_interval="0s", pitr_window="0s")
        p, db, url = self.watched(**often, retention={**none, "by": "janitor"})
        for i in range(5):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
            p.sync()
            p.sql("SELECT walrust_snapshot()")
        p.kill()
        snapshots = lambda: len(door.ltx_files(url, level=9))
        self.assertGreater(snapshots(), 2)
        p = self.peer().open(db)
        p.watch(url, **often, retention=none)
        self.eventually(lambda: snapshots() == 2, what="all but the newest two, which are kept, are gone")
        p.sync()
        self.assertIn("Exit code: 0", p.sql("SELECT walrust_verify(?, 'deep')", url))

    def test_a_stranger_does_not_compact_what_another_process_writes(self):
        p, db, url = self.busy(pitr_window="1h")
        q = self.peer(env={"WALRUST_PITR_WINDOW": "100ms"}).open(":memory:")
        dry = q.sql("SELECT walrust_compact(?, '{\"hourly\":0,\"daily\":0,\"weekly\":0,\"monthly\":0}')", url)
        self.assertRegex(dry, re.compile("dry", re.I))
        force = '{"force":true,"hourly":0,"daily":0,"weekly":0,"monthly":0}'
        with self.assertRaises(door.SqlError) as caught:
            q.sql("SELECT walrust_compact(?, ?)", url, force)
        self.assertErrorLine(str(caught.exception), f"process {p.pid}", "walrust_compact")
        p.end()
        self.assertRegex(q.sql("SELECT walrust_compact(?, ?)", url, force), r"Removed \d+ files")
        self.assertIn("Exit code: 0", q.sql("SELECT walrust_verify(?, 'deep')", url))

    @pytest.mark.campaign
    @pytest.mark.timeout(1200)
    def test_restore_after_merging_reads_few_objects(self):
        """Thousands of small commits, each an upload of its own; what a restore asks the store for is counted on its way."""
        commits = min(5000, door.rounds(1000))
        s3 = door.S3(self)
        p = self.peer(env=s3.env()).open(self.path("app.db"))
        p.watch(s3.url(), interval="0s", levels=["1s", "5s", "25s"], snapshot_interval="0")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.code("""
for i in range(args['n']):
    conns['main'].execute('INSERT INTO t(v) VALUES(?)', (f'commit {i}',))
    conns['main'].execute('SELECT walrust_sync(60)').fetchall()
""", n=commits)
        last = p.sync(60)
        self.assertGreaterEqual(last, commits)

        def merged():
            names = [k.split("/")[-2:] for k in s3.keys("app/000")]
            return any(level != "0000" and int(name[17:33], 16) >= last - 1 for level, name in names)

        self.eventually(merged, timeout=60, every=0.5, what="the last commits are merged")
        proxy = door.FaultProxy(self, s3.port)
        out, at = self.restore(s3.url(endpoint=proxy.endpoint), env=s3.env())
        self.assertEqual(at, last)
        self.assertSameBytes(self.path("app.db"), out)
        got = [path.split("?")[0] for method, path, _ in proxy.seen if method == "GET" and "list-type" not in path]
        files, segments = [k for k in got if k.endswith(".ltx")], [k for k in got if "/manifest-" in k]
        self.assertEqual(len(files) + len(segments), len(got))
        print(f"\n{commits} commits, {len(s3.keys('app/000'))} files in the replica: a restore reads {len(got)} objects ({len(files)} LTX files, "
              f"{len(segments)} segments of the manifest) after {sum('list-type' in path for _, path, _ in proxy.seen)} listings", flush=True)
        self.assertLessEqual(len(got), 50)


class Metrics(door.DoorTest):
    LINE = re.compile(r'^(# (HELP|TYPE|UNIT|EOF).*|[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-zA-Z_][a-zA-Z0-9_]*="(\\.|[^"\\])*",?)*\})? -?[0-9.eE+naNIif-]+)$')

    def test_exposition(self):
        p, db, url = self.watched()
        txid = p.sync()
        text = p.sql("SELECT walrust_metrics()")
        for line in text.splitlines():
            self.assertRegex(line, self.LINE)
        values = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values.setdefault(name.split("{")[0], []).append(float(value))
        self.assertIn(float(txid), values["walrust_txid"])
        self.assertIn(float(txid), values["walrust_replicated_txid"])
        for name in ("walrust_lag_seconds", "walrust_pending_bytes", "walrust_spool_bytes"):
            self.assertIn(name, values)
        self.assertTrue(any(n.startswith("walrust_upload") and n.endswith("_bucket") for n in values), sorted(values))
        types = re.findall(r"(?m)^# TYPE (\S+) (\S+)$", text)
        self.assertEqual(len(types), len({n for n, _ in types}), "a name declared twice")

    def test_the_dashboard_and_the_document_name_series_that_exist(self):
        p, db, url = self.watched(mirrors=[self.path("mirror")])
        p.sync()
        copy = self.path("copy.db")
        p.sql("SELECT walrust_replicate(?, ?, ?)", url, copy, '{"interval":"50ms"}')
        text = self.eventually(lambda: (lambda t: t if "walrust_copy_lag_seconds{" in t else None)(p.sql("SELECT walrust_metrics()")),
                               what="the series of the followed file")
        series = set(re.findall(r"(?m)^(walrust_\w+)[{ ]", text))
        known = series | {re.sub("_(bucket|sum|count)$", "", n) for n in series}
        with open(os.path.join(door.ROOT, "docs", "grafana-dashboard.json")) as f:
            board = json.load(f)
        shown = set()
        for panel in board["panels"]:
            for target in panel["targets"]:
                names = re.findall(r"walrust_\w+", target["expr"])
                self.assertTrue(names, panel["title"])
                self.assertLessEqual(set(names), series, panel["title"])
                shown.update(re.sub("_(bucket|sum|count)$", "", n) for n in names)
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                self.assertLessEqual(set(re.findall(r"walrust_\w+", variable["query"]["query"])), series)
        with open(os.path.join(door.ROOT, "docs", "metrics.md")) as f:
            documented = set(re.findall(r"walrust_\w+", f.read())) - {"walrust_explain", "walrust_metrics", "walrust_status"}
        # (What `walrust serve` shows is held against the document in test_serve.py.)
        documented = {n for n in documented if not n.startswith("walrust_replica_")}
        self.assertLessEqual(documented, known)
        bare = {n for n in known if not re.search("_(bucket|sum|count)$", n)}
        self.assertEqual(bare - documented, set(), "in no document")
        self.assertEqual(bare - shown - {"walrust_uptime_seconds", "walrust_start_timestamp_seconds", "walrust_build_info"}, set(),
                         "in no panel")

    def test_endpoint(self):
        port = door.free_port()
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        p = self.peer(env=s3.env(WALRUST_METRICS_LISTEN=f"127.0.0.1:{port}")).open(self.path("a.db"))
        p.watch(s3.url("app", proxy.endpoint), interval="0s", retry={"base": "5ms", "max": "20ms", "breaker_threshold": 2, "breaker_cooldown": "60s"})
        p.sql("CREATE TABLE t(v)")
        p.sync()

        def get(path):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                    return answer.status, answer.read().decode(), answer.headers
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode(), error.headers
            except OSError as error:
                return None, str(error), {}

        self.eventually(lambda: get("/health")[0] == 200, what="healthy")
        status, body, headers = get("/metrics")
        self.assertEqual(status, 200)
        self.assertIn("walrust_txid", body)
        self.assertRegex(headers["Content-Type"], "^(text/plain|application/openmetrics-text)")
        self.assertEqual(get("/elsewhere")[0], 404)
        row = 'walrust_health{database="%s",kind="source"}' % self.path("a.db")
        self.assertIn(f"{row} 0", body)
        proxy.fault = lambda method, path: ("status", 503)
        p.sql("INSERT INTO t VALUES(1)")
        self.eventually(lambda: get("/health")[0] == 503, what="unhealthy")
        self.assertIn(f"{row} 2", get("/metrics")[1])


    def test_series_end_with_the_watch(self):
        p, db, url = self.watched()
        p.sql("INSERT INTO t(v) VALUES(1)")
        p.sync()
        text = p.sql("SELECT walrust_metrics()")
        self.assertRegex(text, re.compile(r'^walrust_commits_total\{database="%s"\} [1-9]' % re.escape(db), re.M))
        self.assertRegex(text, re.compile(r'^walrust_state\{database="%s",state="streaming"\} 1' % re.escape(db), re.M))
        p.sql("SELECT walrust_unwatch()")
        self.assertNotIn(db, p.sql("SELECT walrust_metrics()"))

    def test_validations_are_counted(self):
        p, db, url = self.watched(validation_interval="200ms")
        p.sync()
        good = re.compile(r'^walrust_validations_total\{database="[^"]+",result="success"\} [1-9]', re.M)
        self.eventually(lambda: good.search(p.sql("SELECT walrust_metrics()")), what="a validation")
        self.assertIsNone(p.status()["last_error"])
        path = door.ltx_files(url, 0)[-1][3]
        with open(path, "r+b") as f:
            f.truncate(os.path.getsize(path) - 9)
        bad = re.compile(r'^walrust_validations_total\{database="[^"]+",result="failure"\} [1-9]', re.M)
        self.eventually(lambda: bad.search(p.sql("SELECT walrust_metrics()")), what="a failed validation")
        self.assertRegex(p.status()["last_error"], os.path.basename(path) + "|TXID 3")

    def test_a_program_that_lives_for_seconds_validates_when_it_is_due(self):
        """An hour after the last validation, whatever process made it; not an hour after its own start."""
        p, db, url = self.watched(validation_interval="1h")
        p.sync()
        note = db + "-walrust/care.json"
        self.eventually(lambda: os.path.exists(note), what="the note of the first look")
        p.end()
        with open(note) as f:
            noted = json.load(f)
        noted["validated"] -= 3_601_000
        with open(note, "w") as f:
            json.dump(noted, f)
        q, _, _ = self.watched(db, url, schema="SELECT 1", validation_interval="1h")
        good = re.compile(r'^walrust_validations_total\{database="[^"]+",result="success"\} 1', re.M)
        self.eventually(lambda: good.search(q.sql("SELECT walrust_metrics()")), 20, "a validation")
        with open(note) as f:
            self.assertGreater(json.load(f)["validated"], noted["validated"] + 3_601_000)
        q.end()
        r, _, _ = self.watched(db, url, schema="SELECT 1", validation_interval="1h")
        time.sleep(1.5)
        self.assertIsNone(good.search(r.sql("SELECT walrust_metrics()")))


class Follower(door.DoorTest):
    def rows(self, path):
        try:
            return door.plain_rows(path, "SELECT count(*) FROM t")[0][0]
        except Exception:
            return -1

    def test_follows(self):
        p, db, url = self.watched(interval="0s")
        p.many("INSERT INTO t(v) VALUES(?)", [("x" * 300,) for _ in range(200)])
        p.sync()
        copy = self.path("copy.db")
        f = self.peer().open(":memory:")
        self.assertIn(copy, f.sql("SELECT walrust_replicate(?, ?, ?)", url, copy, '{"interval":"100ms"}'))
        self.eventually(lambda: self.rows(copy) == 200, what="the first copy")
        for turn in range(5):
            p.sql("INSERT INTO t(v) VALUES(?)", turn)
            p.sync()
            self.eventually(lambda: self.rows(copy) == 201 + turn, what="a change")
        f.sql("SELECT walrust_unreplicate(?)", copy)
        f.end()
        self.assertSound(copy)
        self.assertEqual(door.plain_rows(copy, "SELECT * FROM t"), door.plain_rows(db, "SELECT * FROM t"))

    def test_readers_are_consistent_at_every_moment(self):
        p, db, url = self.watched(interval="0s", schema="CREATE TABLE t(id INTEGER PRIMARY KEY, v);CREATE TABLE total(n);"
                                                        "INSERT INTO total VALUES(0)")
        p.sync()
        copy = self.path("copy.db")
        f = self.peer().open(":memory:")
        f.sql("SELECT walrust_replicate(?, ?, ?)", url, copy, '{"interval":"20ms"}')
        self.eventually(lambda: self.rows(copy) >= 0, what="the first copy")
        p.send(op="code", code="""
end = time.time() + 3
n = 0
c = conns['main']
while time.time() < end:
    c.execute('BEGIN')
    c.executemany('INSERT INTO t(v) VALUES(?)', [('y' * 900,)] * 20)
    c.execute('UPDATE total SET n = n + 20')
    c.execute('COMMIT')
    n += 20
    time.sleep(0.02)
result = n
""")
        reader = door.plain_connect(copy)
        reader.execute("PRAGMA busy_timeout=5000")
        seen = set()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            reader.execute("BEGIN")
            a = reader.execute("SELECT n FROM total").fetchone()[0]
            b = reader.execute("SELECT count(*), coalesce(sum(length(v)), 0) FROM t").fetchone()
            reader.execute("COMMIT")
            self.assertEqual((a, a * 900), b)
            seen.add(a)
        written = p.wait()
        p.sync()
        self.eventually(lambda: self.rows(copy) == written, what="the last change")
        self.assertGreater(len(seen), 3)
        self.assertEqual(reader.execute("PRAGMA integrity_check").fetchone(), ("ok",))
        reader.close()

    def test_resumes_after_a_kill_and_survives_compaction(self):
        p, db, url = self.watched(interval="0s", levels=["100ms", "300ms"], snapshot_interval="300ms", pitr_window="100ms")
        copy = self.path("copy.db")
        for turn in range(3):
            f = self.peer().open(":memory:")
            f.sql("SELECT walrust_replicate(?, ?, ?)", url, copy, '{"interval":"50ms"}')
            p.many("INSERT INTO t(v) VALUES(?)", [("x" * 300,) for _ in range(50)])
            p.sync()
            self.eventually(lambda: self.rows(copy) == 50 * (2 * turn + 1), what=f"turn {turn}")
            f.kill()
            p.many("INSERT INTO t(v) VALUES(?)", [("x" * 300,) for _ in range(50)])
            p.sync()
            time.sleep(0.5)
            p.sql("SELECT walrust_compact(NULL, '{\"force\":1,\"hourly\":1,\"daily\":0,\"weekly\":0,\"monthly\":0}')")
        f = self.peer().open(":memory:")
        f.sql("SELECT walrust_replicate(?, ?, ?)", url, copy, '{"interval":"50ms"}')
        self.eventually(lambda: self.rows(copy) == 300, what="the end")
        f.sql("SELECT walrust_unreplicate(?)", copy)
        self.assertSound(copy)

    def test_litestream_written_replica(self):
        from test_litestream import Daemon

        db, url = self.path("ls.db"), self.path("ls")
        q = self.peer(so=None).open(db)
        q.rows("PRAGMA journal_mode=wal")
        q.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        Daemon(self, db, f"file://{url}")
        q.sql("INSERT INTO t(v) VALUES(1)")
        self.eventually(lambda: door.ltx_files(url), what="litestream's first file")
        f = self.peer().open(":memory:")
        f.sql("SELECT walrust_replicate(?, ?, ?)", url, self.path("copy.db"), '{"interval":"100ms"}')
        self.eventually(lambda: self.rows(self.path("copy.db")) == 1, what="the first copy")
        q.sql("INSERT INTO t(v) VALUES(2)")
        self.eventually(lambda: self.rows(self.path("copy.db")) == 2, what="a change")

    def test_a_foreign_file_is_not_overwritten(self):
        p, db, url = self.watched()
        p.sync()
        mine = self.path("mine.db")
        q = door.plain_connect(mine)
        q.execute("CREATE TABLE precious(x)")
        q.close()
        before = door.tree(self.dir)["mine.db"]
        f = self.peer().open(":memory:")
        with self.assertRaises(door.SqlError) as caught:
            f.sql("SELECT walrust_replicate(?, ?)", url, mine)
        self.assertErrorLine(str(caught.exception), "walrust_replicate", "mine.db")
        self.assertEqual(door.tree(self.dir)["mine.db"], before)


class ManyDatabases(door.DoorTest):
    def test_a_hundred_in_one_process(self):
        p = self.peer()
        p.code("""
for i in range(args['n']):
    c = connect(f"{args['dir']}/db{i}.db")
    c.execute('SELECT walrust_watch(?)', (f"{args['dir']}/r/{i}",)).fetchone()
    c.execute('CREATE TABLE t(id INTEGER PRIMARY KEY, v)')
    c.execute('INSERT INTO t(v) VALUES(?)', (i,))
    conns[f'c{i}'] = c
""", dir=self.dir, n=100)
        p.code("[conns[f'c{i}'].execute('SELECT walrust_sync(60)').fetchone() for i in range(100)]")
        self.assertEqual(p.sql("SELECT count(*) FROM walrust_status", conn="c0"), 100)
        for i in range(0, 100, 13):
            self.assertSameBytes(self.path(f"db{i}.db"), self.restore(self.path("r", str(i)))[0])
        threads = len(os.listdir(f"/proc/{p.pid}/task"))
        self.assertLess(threads, 12)
        descriptors = len(os.listdir(f"/proc/{p.pid}/fd"))
        self.assertLess(descriptors, 100 * 8)


if __name__ == "__main__":
    unittest.main()
