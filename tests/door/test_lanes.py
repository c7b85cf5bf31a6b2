"""Small and urgent passes large and unimportant: what is slow or refused beside the stream does not hold it up."""

import threading
import time
import unittest

import door


# A thread asks for a snapshot; until it is there the app commits, each COMMIT a failure or in the replica.
BESIDE = """
import sqlite3
asked = threading.Thread(target=lambda: sqlite3.connect(args["db"]).execute("SELECT walrust_snapshot()").fetchone())
began = time.monotonic()
asked.start()
app = sqlite3.connect(args["db"], isolation_level=None)
slowest = commits = 0
while asked.is_alive():
    at = time.monotonic()
    app.execute("INSERT INTO t(v) VALUES('beside')")
    slowest, commits = max(slowest, time.monotonic() - at), commits + 1
    time.sleep(0.2)
app.close()
result = [time.monotonic() - began, slowest, commits]
"""


class Line:
    """A line of so many bytes a second, which all requests share."""

    def __init__(self, proxy, bytes_per_second):
        self.rate, self.free_at, self.lock = bytes_per_second, time.monotonic(), threading.Lock()
        self.carry, proxy.forward = proxy.forward, self.forward

    def forward(self, method, path, headers, body):
        for at in range(0, len(body), 65536):
            with self.lock:
                self.free_at = max(self.free_at, time.monotonic()) + len(body[at:at + 65536]) / self.rate
                wait = self.free_at - time.monotonic()
            time.sleep(max(wait, 0))
        return self.carry(method, path, headers, body)


class Lanes(door.DoorTest):
    FAST = {"base": "10ms", "max": "200ms", "breaker_threshold": 3, "breaker_cooldown": "300ms"}

    def setUp(self):
        super().setUp()
        self.s3 = door.S3(self)
        self.proxy = door.FaultProxy(self, self.s3.port)
        self.db = self.path("app.db")

    def streaming(self, env=None, so=door.SO, **options):
        p = self.peer(so=so, env=self.s3.env(**(env or {}))).open(self.db)
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.watch(self.s3.url("app", self.proxy.endpoint), **options)
        p.sync(60)
        return p

    def refuse(self, level, status=403):
        self.proxy.fault = lambda method, path: (
            ("status", status) if method in ("PUT", "POST") and f"/{level}/" in path and ".ltx" in path else None)

    def assertStreams(self, p, commits):
        for i in range(commits):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
            p.sync(5)
            status = p.status()
            self.assertIn(status["state"], ("streaming", "catching up"))
            self.assertEqual(status["breaker"], "closed")
            time.sleep(0.1)

    def test_a_refused_merge_stops_nothing(self):
        for durability in ("async", "sync"):
            with self.subTest(durability=durability):
                self.db = self.path(f"{durability}.db")
                self.proxy.fault = None
                p = self.peer(env=self.s3.env()).open(self.db)
                p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
                p.watch(self.s3.url(durability, self.proxy.endpoint), durability=durability, interval="0s",
                        levels=["1s", "2s", "5s"], snapshot_interval="0s", retry=self.FAST)
                p.sync(60)
                self.refuse("0001")
                self.assertStreams(p, 20)
                self.eventually(lambda: "merge:" in (p.status()["last_error"] or ""), what="the merge's own error")
                self.assertStreams(p, 5)
                self.proxy.fault = None
                self.eventually(lambda: self.s3.keys(f"{durability}/0001/"), timeout=40, what="merged after all")
                self.eventually(lambda: p.status()["last_error"] is None, what="no error")
                p.end()

    def test_a_refused_snapshot_stops_nothing_and_is_told(self):
        hook = door.Hook(self)
        p = self.streaming(durability="sync", interval="0s", snapshot_interval="1s", retry=self.FAST, webhooks=[hook.url])
        self.refuse("0009")
        self.assertStreams(p, 25)
        self.assertIn("snapshot: ", p.status()["last_error"] or "")
        told = self.eventually(lambda: [e for e in hook.events() if e.get("context", e).get("duty") == "snapshot"], what="a webhook")
        self.assertIn("the stream goes on", told[0]["message"])
        with self.assertRaises(door.SqlError) as caught:
            p.sql("SELECT walrust_snapshot()")
        self.assertErrorLine(str(caught.exception), "0009")

    def test_a_renewal_that_is_refused_stops_nothing(self):
        p = self.streaming(env={"WALRUST_LEASE_MS": "1500"}, so=door.CRASH_SO, durability="sync", interval="0s", retry=self.FAST)
        self.proxy.fault = lambda method, path: ("status", 403) if method == "PUT" and "lease.json" in path else None
        end = time.monotonic() + 4
        while time.monotonic() < end:
            self.assertStreams(p, 3)
        self.proxy.fault = None
        self.assertStreams(p, 3)

    def test_commits_pass_a_snapshot_on_a_slow_line(self):
        """110 MB at 5 MB/s: 22 seconds and more, in which each COMMIT returns when the replica has it."""
        p = self.peer(env=self.s3.env()).open(self.db)
        p.sql("PRAGMA journal_mode=WAL")
        p.sql("CREATE TABLE b(x)")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        for _ in range(11):
            p.sql("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10) INSERT INTO b SELECT randomblob(1000000) FROM n")
        p.watch(self.s3.url("app", self.proxy.endpoint), durability="sync", sync_timeout="10s", snapshot_interval="0s")
        p.sync(120)
        p.sql("INSERT INTO t(v) VALUES('first')")
        Line(self.proxy, 5_000_000)
        snapshots = len(self.s3.keys("app/0009/"))
        took, slowest, commits = p.code(BESIDE, db=self.db)
        self.assertGreater(took, 15, "the line was not slow")
        self.assertLess(slowest, 3)
        self.assertGreater(commits, 15)
        self.assertEqual(len(self.s3.keys("app/0009/")), snapshots + 1)
        out, _ = self.restore(self.s3.url(), env=self.s3.env())
        self.assertEqual(door.plain_rows(out, "SELECT count(*) FROM t"), [(commits + 1,)])


class Bandwidth(door.DoorTest):
    """`bandwidth`: all uploads of a process together send so much a second, and commits wait for nothing of it."""

    def setUp(self):
        super().setUp()
        self.s3 = door.S3(self)
        self.proxy = door.FaultProxy(self, self.s3.port)
        self.db = self.path("app.db")

    def filled(self, megabytes, **env):
        p = self.peer(env=self.s3.env(**env)).open(self.db)
        p.sql("PRAGMA journal_mode=WAL")
        p.sql("CREATE TABLE b(x)")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.sql(f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {megabytes}) INSERT INTO b SELECT randomblob(1000000) FROM n")
        p.watch(self.s3.url("app", self.proxy.endpoint), durability="sync", interval="0s", snapshot_interval="0s")
        p.sync(60)
        return p

    def beside(self, p):
        """A snapshot, and the commits that passed it: how long it took, the slowest COMMIT, how many arrived before it."""
        start = len(self.proxy.seen)
        took, slowest, _ = p.code(BESIDE, db=self.db)
        seen = [path for method, path, _ in self.proxy.seen[start:] if method in ("PUT", "POST") and ".ltx" in path]
        end = next(i for i in reversed(range(len(seen))) if "/0009/" in seen[i])
        return took, slowest, sum("/0000/" in path for path in seen[:end])

    def test_a_snapshot_takes_its_time_and_commits_do_not(self):
        """6 MB in one request, and 24 MB in parts of 8, at 2 and 6 MB a second."""
        for megabytes, rate in ((6, 2), (24, 6)):
            with self.subTest(megabytes=megabytes):
                self.db = self.path(f"{megabytes}.db")
                p = self.filled(megabytes, WALRUST_BANDWIDTH=f"{rate}MB")
                took, slowest, passed = self.beside(p)
                print(f"\n  {megabytes} MB at {rate} MB/s: {took:.1f} s, {passed} commits passed, the slowest {slowest * 1000:.0f} ms", flush=True)
                self.assertGreater(took, 0.9 * megabytes / rate)
                self.assertGreaterEqual(passed, 5)
                self.assertLess(slowest, 1)
                p.sync(10)
                out, _ = self.restore(self.s3.url(), self.path(f"{megabytes}-out.db"), env=self.s3.env())
                self.assertSameBytes(self.db, out)
                p.end()
                for key in self.s3.keys("app/"):
                    self.s3.s3.delete_object(Bucket=self.s3.bucket, Key=key)

    def test_two_databases_share_it(self):
        """It is the process's: two snapshots at once take as long as both together."""
        p = self.filled(4, WALRUST_BANDWIDTH="2MB")
        p.code("""
import sqlite3
other = sqlite3.connect(args["other"], isolation_level=None)
other.execute("PRAGMA journal_mode=WAL")
other.execute("CREATE TABLE b(x)")
other.execute("INSERT INTO b SELECT randomblob(4000000)")
other.execute("SELECT walrust_watch(?, json_object('snapshot_interval', '0s'))", (args["url"],))
other.execute("SELECT walrust_sync(60)").fetchone()
""", other=self.path("other.db"), url=self.s3.url("other", self.proxy.endpoint))
        took = p.code("""
import sqlite3
def snapshot(path):
    sqlite3.connect(path).execute("SELECT walrust_snapshot()").fetchone()
for path in args["paths"]:
    sqlite3.connect(path, isolation_level=None).execute("CREATE TABLE more(x)")
all = [threading.Thread(target=snapshot, args=(path,)) for path in args["paths"]]
began = time.monotonic()
[t.start() for t in all]
[t.join() for t in all]
result = time.monotonic() - began
""", paths=[self.db, self.path("other.db")])
        self.assertGreater(took, 0.9 * 8 / 2)

    def test_a_directory_does_not_count(self):
        p = self.peer(env={"WALRUST_BANDWIDTH": "64KB"}).open(self.db)
        p.sql("PRAGMA journal_mode=WAL")
        p.sql("CREATE TABLE b(x)")
        p.sql("INSERT INTO b SELECT randomblob(4000000)")
        began = time.monotonic()
        p.watch(self.path("r"))
        p.sync(60)
        self.assertLess(time.monotonic() - began, 30)


class Short(door.DoorTest):
    """What is due is due by the clock of the wall: programs that live for a moment have it done, too."""

    def test_programs_shorter_than_the_schedules(self):
        db, url = self.path("app.db"), self.path("replica")
        options = dict(interval="0s", levels=["1s", "4s", "60s"], snapshot_interval="3s", pitr_window="2s")
        begun, runs = time.monotonic(), 0
        # (On a busy machine a program's 0.4 s may be over before anything that is due has begun.)
        due = lambda: len(door.ltx_files(url, 9)) >= 2 and len(door.ltx_files(url, 1)) >= 1 and runs > 6
        while time.monotonic() < begun + 14 or not due() and time.monotonic() < begun + 60:
            p = self.peer().open(db)
            p.sql("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
            p.watch(url, **options)
            p.sql("INSERT INTO t(v) VALUES('x')")
            p.sync()
            time.sleep(0.4)
            p.end()
            runs += 1
        self.assertGreater(runs, 6)
        self.assertGreaterEqual(len(door.ltx_files(url, 9)), 2, "snapshots")
        self.assertGreaterEqual(len(door.ltx_files(url, 1)), 1, "merged files")
        out, _ = self.restore(url)
        self.assertSameBytes(db, out)


if __name__ == "__main__":
    unittest.main()
