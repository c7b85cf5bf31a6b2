"""Litestream 0.5.17, the released program and its VFS, judging what we write; and we what it writes."""

import os
import subprocess
import sys
import time
import unittest

import door

READ_THROUGH_VFS = """
import json, os, sqlite3, sys
import litestream_vfs
first = sqlite3.connect(':memory:')
first.enable_load_extension(True)
litestream_vfs.load(first)
db = sqlite3.connect('file:any.db?vfs=litestream', uri=True)
print(json.dumps({
  'integrity': db.execute('PRAGMA integrity_check').fetchone()[0],
  'count': db.execute('SELECT count(*), total(length(v)) FROM t').fetchone(),
  'rows': db.execute('SELECT id, v FROM t ORDER BY id LIMIT 5').fetchall(),
}), flush=True)
os._exit(0)
"""


class Daemon:
    """`litestream replicate DB URL`, until stopped."""

    def __init__(self, test, db, url, env=None):
        self.test, self.log = test, open(test.path(f"litestream-{time.monotonic_ns()}.log"), "w+")
        config = door.toml(test, "dbs:\n" f"  - path: {db}\n" "    replica:\n" f"      url: {url}\n", f"ls-{time.monotonic_ns()}.yml")
        self.proc = subprocess.Popen(
            [door.LITESTREAM, "replicate", "-config", config], stdout=self.log, stderr=self.log,
            env=door.clean_env(test.dir, env), cwd=test.dir,
        )
        test.addCleanup(self.stop)

    def stop(self):
        if self.proc.poll() is None:
            self.proc.terminate()
            self.proc.wait(60)
        self.log.close()

    def text(self):
        with open(self.log.name) as f:
            return f.read()


class Interop(door.DoorTest):
    def filled(self, n=60, **options):
        p, db, url = self.watched(interval="0s", **options)
        for i in range(n):
            p.sql("INSERT INTO t VALUES(?, ?)", i, f"row {i} " + "x" * (i * 37 % 3000))
        return p, db, url, p.sync()

    def count(self, path):
        return door.plain_rows(path, "SELECT count(*) FROM t")[0][0]

    def test_litestream_restores_latest(self):
        p, db, url, txid = self.filled()
        out = self.path("ls.db")
        self.litestream("restore", "-integrity-check", "full", "-o", out, f"file://{url}")
        self.assertSameBytes(db, out)

    def test_litestream_restores_a_txid(self):
        p, db, url, txid = self.filled(20)
        kept = door.image(db)
        for i in range(100, 110):
            p.sql("INSERT INTO t VALUES(?, 'later')", i)
        p.sync()
        self.litestream("restore", "-o", self.path("ls.db"), "-txid", f"{txid:016x}", f"file://{url}")
        self.assertEqual(door.image(self.path("ls.db")), kept)

    def test_litestream_restores_a_time(self):
        p, db, url, txid = self.filled(5)
        time.sleep(1.1)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        time.sleep(1.1)
        p.sql("INSERT INTO t VALUES(900, 'later')")
        p.sync()
        self.litestream("restore", "-o", self.path("ls.db"), "-timestamp", stamp, f"file://{url}")
        self.assertEqual(self.count(self.path("ls.db")), 5)

    def test_litestream_lists_our_files(self):
        p, db, url, txid = self.filled(10)
        out = self.litestream("ltx", "-level", "all", f"file://{url}").stdout
        for level, low, high, path in door.ltx_files(url):
            self.assertIn(f"{low:016x}", out)

    def test_litestream_restores_after_merging_and_snapshots(self):
        p, db, url, txid = self.filled(30, levels=["200ms", "600ms", "2s"], snapshot_interval="1s")
        for turn in range(6):
            p.sql("INSERT INTO t VALUES(?, 'tick')", 1000 + turn)
            p.sync()
            time.sleep(0.5)
        self.assertTrue({f[0] for f in door.ltx_files(url)} - {0})
        self.litestream("restore", "-integrity-check", "full", "-o", self.path("ls.db"), f"file://{url}")
        self.assertSameBytes(db, self.path("ls.db"))

    def read_through_vfs(self, url, env=None):
        done = subprocess.run(
            [sys.executable, "-c", READ_THROUGH_VFS], capture_output=True, text=True, timeout=60, cwd=self.dir,
            env=door.clean_env(self.dir, {"LITESTREAM_REPLICA_URL": url, **(env or {})}),
        )
        self.assertTrue(done.stdout, done.stderr)
        import json

        return json.loads(done.stdout.strip().splitlines()[-1])

    def test_litestream_vfs_opens_our_replica(self):
        p, db, url, txid = self.filled()
        expected = p.rows("SELECT count(*), total(length(v)) FROM t")[0]
        answer = self.read_through_vfs(f"file://{url}")
        self.assertEqual(answer["integrity"], "ok")
        self.assertEqual(tuple(answer["count"]), expected)

    def test_we_restore_what_litestream_wrote(self):
        db, url = self.path("app.db"), self.path("r")
        p = self.peer(so=None).open(db)
        p.sql("PRAGMA journal_mode=wal")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        daemon = Daemon(self, db, f"file://{url}")
        for i in range(8):
            p.sql("INSERT INTO t VALUES(?, 'litestream')", i)
            time.sleep(0.3)
        time.sleep(2.5)
        daemon.stop()
        out, at = self.restore(url, check="full")
        self.assertEqual(at, max(f[2] for f in door.ltx_files(url)))
        self.assertSameBytes(db, out)
        earlier, _ = self.restore(url, point=at - 1)
        self.litestream("restore", "-o", self.path("ls.db"), "-txid", f"{at - 1:016x}", f"file://{url}")
        self.assertSameBytes(self.path("ls.db"), earlier)

    def test_litestream_takes_over_our_replica_and_we_take_it_back(self):
        p, db, url, txid = self.filled(10)
        p.end()
        q = self.peer(so=None).open(db)
        daemon = Daemon(self, db, f"file://{url}")
        self.eventually(lambda: os.path.isdir(self.path(".app.db-litestream")), what="litestream's start")
        for i in range(100, 106):
            q.sql("INSERT INTO t VALUES(?, 'by litestream')", i)
            time.sleep(0.3)
        time.sleep(2.5)
        daemon.stop()
        self.assertNotIn("level=ERROR", daemon.text())
        latest = max(f[2] for f in door.ltx_files(url))
        self.assertGreater(latest, txid)
        out, at = self.restore(url)
        self.assertEqual(at, latest)
        self.assertSameBytes(db, out)
        self.litestream("restore", "-o", self.path("ls1.db"), f"file://{url}")
        self.assertEqual(self.count(self.path("ls1.db")), 16)
        q.end()
        back = self.peer().open(db)
        back.watch(url)
        back.sql("INSERT INTO t VALUES(500, 'ours again')")
        now = back.sync()
        self.assertGreater(now, latest)
        self.assertSameBytes(db, self.restore(url)[0])
        self.litestream("restore", "-integrity-check", "full", "-o", self.path("ls2.db"), f"file://{url}")
        self.assertSameBytes(db, self.path("ls2.db"))

    def test_no_alarm_after_litestreams_own_retention(self):
        """It goes by time, so it stops in the middle of what was merged; what is left there no restore needs."""
        db, url = self.path("ls.db"), self.path("ls")
        c = door.plain_connect(db)
        c.execute("PRAGMA journal_mode=WAL")
        c.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        config = door.toml(self, (
            "l0-retention: 4s\nl0-retention-check-interval: 1s\nlevels:\n  - interval: 3s\n  - interval: 9s\n"
            "snapshot: {interval: 1h, retention: 24h}\n"
            f"dbs:\n  - path: {db}\n    monitor-interval: 100ms\n    replica: {{type: file, path: {url}, sync-interval: 100ms}}\n"
        ), "ls.yml")
        log = open(self.path("ls.log"), "w")
        self.addCleanup(log.close)
        daemon = subprocess.Popen([door.LITESTREAM, "replicate", "-config", config], stdout=log, stderr=log, env=door.clean_env(self.dir), cwd=self.dir)
        self.addCleanup(daemon.kill)
        hook, judged, removed = door.Hook(self), 0, 0
        p = self.peer(env={"WALRUST_WEBHOOKS": hook.url}).open(":memory:")
        for i in range(120):
            c.execute("INSERT INTO t(v) VALUES(?)", ("x" * 300,))
            time.sleep(0.2)
            if i % 6 == 5 and os.path.isdir(os.path.join(url, "ltx", "9")):
                said = p.sql("SELECT walrust_verify(?)", url)
                self.assertIn("Exit code: 0", said)
                judged += 1
                levels = [door.ltx_files(url, n) for n in (0, 1)]
                # What is left of a merged range, with its beginning gone.
                firsts = [f[1] for f in levels[0]]
                removed += bool(levels[1] and firsts and any(m[1] < firsts[0] <= m[2] for m in levels[1]))
        daemon.terminate()
        daemon.wait(60)
        self.assertGreater(judged, 10)
        self.assertGreater(removed, 0, "the case did not come up")
        for mode in ("quick", "deep"):
            self.assertIn("Exit code: 0", p.sql("SELECT walrust_verify(?, ?)", url, mode))
        self.assertSameBytes(self.restore(url)[0], self.litestreams(url))
        self.assertEqual(hook.events("corruption_detected"), [])
        c.close()

    def litestreams(self, url):
        self.litestream("restore", "-o", self.path("by-litestream.db"), f"file://{url}")
        return self.path("by-litestream.db")

    def test_we_take_over_a_database_that_litestream_restored(self):
        """A new machine, restored by Litestream from our replica: its checksum is attested, so it continues."""
        p, db, url, txid = self.filled(10)
        p.end()
        os.mkdir(self.path("new"))
        other = self.path("new", "app.db")
        self.litestream("restore", "-o", other, f"file://{url}")
        q = self.peer().open(other)
        q.watch(url)
        q.sql("INSERT INTO t VALUES(500, 'new machine')")
        self.assertEqual(q.sync(), txid + 1)
        self.assertSameBytes(other, self.restore(url)[0])


class InteropS3(door.DoorTest):
    def test_both_directions_over_s3(self):
        s3 = door.S3(self)
        p = self.peer(env=s3.env()).open(self.path("app.db"))
        p.watch(s3.url("db/app"))
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        for i in range(10):
            p.sql("INSERT INTO t VALUES(?, 'x')", i)
        txid = p.sync()
        keys = s3.keys("db/app/0000/")
        self.assertIn(f"db/app/0000/{txid:016x}-{txid:016x}.ltx", keys)
        url = f"s3://bucket/db/app?endpoint={s3.endpoint}&region=us-east-1&forcePathStyle=true"
        self.litestream("restore", "-integrity-check", "full", "-o", self.path("ls.db"), url, env=s3.env())
        self.assertSameBytes(self.path("app.db"), self.path("ls.db"))
        p.end()
        daemon = Daemon(self, self.path("app.db"), url, env=s3.env())
        q = self.peer(so=None).open(self.path("app.db"))
        time.sleep(1)
        for i in range(100, 104):
            q.sql("INSERT INTO t VALUES(?, 'by litestream')", i)
            time.sleep(0.3)
        time.sleep(2.5)
        daemon.stop()
        out, at = self.restore(s3.url("db/app"), env=s3.env())
        self.assertGreater(at, txid)
        self.assertSameBytes(self.path("app.db"), out)


if __name__ == "__main__":
    unittest.main()
