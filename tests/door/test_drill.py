"""Drills: a restore for a test, which finds what is wrong with a backup and nothing else; and what retention does before it lets go."""

import glob
import json
import os
import re
import shutil
import time
import unittest

import door
from door import SqlError, quote

#: Keeps nothing but the newest two.
BARE = {"pitr_window": "0s", "retention": {"hourly": 0, "daily": 0, "weekly": 0, "monthly": 0}}
ROWS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{}) "


class DrillTest(door.DoorTest):
    def drill(self, url, **options):
        """In a process that streams nothing. Gives the report."""
        return self.shell(f"SELECT walrust_drill({quote(url)}, {quote(json.dumps(options))});")

    def assertPasses(self, report, message=""):
        self.assertEqual(report.splitlines()[-1], "Result: passed", f"{message}\n{report}")

    def assertFails(self, report, *fragments):
        self.assertRegex(report.splitlines()[-1], r"^Result: failed \(\d+ of \d+\)$", report)
        for fragment in fragments:
            self.assertRegex(report, fragment)

    def assertNothingLeft(self, *directories):
        for directory in directories:
            self.assertEqual(self.places(directory), [])

    @staticmethod
    def places(directory):
        """Where drills and verifications put a copy of the database together."""
        return [p for what in ("drill", "verify", "vouch") for p in glob.glob(os.path.join(directory, "**", f".tmp-{what}-*"), recursive=True, include_hidden=True)]


class Unsound(DrillTest):
    """A replica made unsound in ten ways and more: each is found; and as it was it passes."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()

    def replica(self):
        """Merged files, snapshots and uploads, of a database whose rows are random."""
        p, db, replica = self.watched(interval="0s", levels=["100ms", "300ms", "1h"], snapshot_interval="0")
        p.sql("SELECT walrust_snapshot()")
        self.early = self.path("early")
        for n in range(24):
            p.sql(ROWS.format(20) + "INSERT INTO t(v) SELECT hex(randomblob(200)) FROM n")
            p.sync()
            if n == 8:
                p.sql("SELECT walrust_snapshot()")
            if n == 12:
                p.sql("SELECT walrust_verify()")
                shutil.copytree(os.path.join(replica, "walrust"), self.early)
            time.sleep(0.06)
        self.eventually(lambda: {f[0] for f in door.ltx_files(replica)} >= {0, 1, 2, 9}, what="merged files")
        p.end()
        return replica

    def flip(self, path, at=None):
        """One bit of a page's content (past the header, before the index)."""
        size = os.path.getsize(path)
        with open(path, "r+b") as f:
            f.seek(at or size // 2)
            byte = f.read(1)
            f.seek(-1, os.SEEK_CUR)
            f.write(bytes([byte[0] ^ 0x10]))

    def files(self, replica, level):
        return [f[3] for f in door.ltx_files(replica, level)]

    def foreign(self, replica):
        """A file of another database's history, under the name of one of this one."""
        p, db, other = self.watched(db=self.path("foreign.db"), replica=self.path("foreign"), interval="0s")
        for n in range(24):
            p.sql("INSERT INTO t(v) VALUES('foreign')")
            p.sync()
        p.end()
        path = self.files(replica, 0)[-3]
        shutil.copyfile(os.path.join(other, "ltx", "0", os.path.basename(path)), path)

    def swap(self, replica):
        a, b = self.files(replica, 0)[-4:-2]
        shutil.copyfile(a, self.path("swap"))
        shutil.copyfile(b, a)
        shutil.copyfile(self.path("swap"), b)

    def stale(self, replica):
        for path in glob.glob(os.path.join(replica, "walrust", "manifest-*")):
            os.unlink(path)
        for path in glob.glob(os.path.join(self.early, "manifest-*")):
            shutil.copy(path, os.path.join(replica, "walrust"))

    def cut(self, path):
        with open(path, "r+b") as f:
            f.truncate(os.path.getsize(path) - 10)

    def no_snapshot(self, replica):
        for path in self.files(replica, 9):
            os.unlink(path)

    def no_manifest(self, replica):
        for path in glob.glob(os.path.join(replica, "walrust", "manifest-*")):
            os.unlink(path)

    def label_of_nothing(self, replica):
        os.makedirs(os.path.join(replica, "walrust", "labels"))
        with open(os.path.join(replica, "walrust", "labels", "gone.json"), "w") as f:
            json.dump({"walrust_label": 1, "name": "gone", "txid": 4000, "time": 1, "made": 1, "by": "person"}, f)

    WAYS = {
        "the newest file is gone": lambda t, r: os.unlink(t.files(r, 0)[-1]),
        "a file in the middle is gone": lambda t, r: os.unlink(t.files(r, 0)[len(t.files(r, 0)) // 2]),
        "every snapshot is gone": lambda t, r: t.no_snapshot(r),
        "a file is cut short": lambda t, r: t.cut(t.files(r, 0)[5]),
        "a bit of level 0 is flipped": lambda t, r: t.flip(t.files(r, 0)[7]),
        "a bit of level 1 is flipped": lambda t, r: t.flip(t.files(r, 1)[0]),
        "a bit of level 2 is flipped": lambda t, r: t.flip(t.files(r, 2)[0]),
        "a bit of a snapshot is flipped": lambda t, r: t.flip(t.files(r, 9)[-1]),
        "a bit of a header is flipped": lambda t, r: t.flip(t.files(r, 0)[3], 88),
        "two files are swapped": lambda t, r: t.swap(r),
        "a file attests another history": lambda t, r: t.foreign(r),
        "the manifest is an older one": lambda t, r: t.stale(r),
        "the manifest is gone": lambda t, r: t.no_manifest(r),
        "a manifest segment is damaged": lambda t, r: t.flip(glob.glob(os.path.join(r, "walrust", "manifest-*"))[0]),
        "a label names nothing": lambda t, r: t.label_of_nothing(r),
    }

    def test_each_way_is_found_and_a_sound_one_passes(self):
        sound = self.replica()
        report = self.drill(sound, **{"assert": ["SELECT count(*) = 480 FROM t", "SELECT 1"]})
        self.assertPasses(report)
        self.assertRegex(report, r"Restored: TXID [0-9a-f]{16} of 20\S+, \S+ \S+, in \d+\.\d{3} s")
        for n in range(4):
            self.assertPasses(self.drill(sound, random=True), "drawn by chance")
        missed = []
        for n, (way, make) in enumerate(self.WAYS.items()):
            copy = self.path(f"way-{n}")
            shutil.copytree(sound, copy)
            make(self, copy)
            before = door.tree(copy)
            report = self.drill(copy)
            if "Result: failed" not in report:
                missed.append((way, report))
            self.assertEqual(door.tree(copy), before, way)
        self.assertEqual(missed, [])
        self.assertNothingLeft(self.dir, "/tmp")

    def test_assertions(self):
        p, db, replica = self.watched()
        p.sql("INSERT INTO t(v) VALUES('x')")
        p.sync()
        for sql, why in (
            ("SELECT count(*) > 5 FROM t", "not true"), ("SELECT NULL", "not true"), ("SELECT v FROM t WHERE 0", "no row"),
            ("SELECT 1 UNION SELECT 2", "more than one row"), ("SELECT count(*) FROM orders", "no such table"), ("DELETE FROM t", "syntax error"),
            ("SELEC 1", "syntax error"),
        ):
            report = p.sql("SELECT walrust_drill(NULL, ?)", json.dumps({"assert": [sql, "SELECT 1"]}))
            self.assertFails(report, f"❌ assertion: .*{why}", "✅ assertion: SELECT 1")
            self.assertEqual(self.rows(p)[-1][6], "failed")
        for sql in ("SELECT 1;", "SELECT count(*) = 1 FROM t -- one row", "VALUES(1)", "SELECT 0.5"):
            self.assertPasses(p.sql("SELECT walrust_drill(NULL, ?)", json.dumps({"assert": sql})), sql)
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 1)

    def rows(self, p):
        return p.rows("SELECT database, replica, time, txid, seconds, bytes, result, message FROM walrust_drills")

    def test_a_database_damaged_at_its_source_fails(self):
        p, db, replica = self.watched(schema="CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE INDEX i ON t(v)")
        p.sql(ROWS.format(3000) + "INSERT INTO t(v) SELECT hex(randomblob(100)) FROM n")
        p.sync()
        self.assertPasses(p.sql("SELECT walrust_drill()"))
        p.end()
        ruin(db)
        p = self.peer().open(db)
        p.watch(replica)
        p.sql("SELECT count(*) FROM sqlite_schema")
        p.sync()
        self.assertFails(p.sql("SELECT walrust_drill()"), "integrity")

    def test_bad_input(self):
        p, db, replica = self.watched()
        p.sync()
        p.sql("SELECT walrust_unwatch()")
        before = door.tree(replica)
        for options in ('{"assert": 7}', '{"assert": [1]}', '{"assert": [" "]}', '{"point": "5 parsecs ago"}', '{"point": 1.5}', '{"points": 1}', "[]", "{",
                        '{"point": 1, "random": 1}', '{"random": "yes"}', '{"point": 4000}', '{"point": "no-such-label"}'):
            with self.assertRaises(SqlError, msg=options) as e:
                p.sql("SELECT walrust_drill(?, ?)", replica, options)
            self.assertErrorLine(str(e.exception))
        for url in ("", "ftp://x/y", "/proc/self/fd"):
            with self.assertRaises(SqlError, msg=url) as e:
                p.sql("SELECT walrust_drill(?)", url)
            self.assertErrorLine(str(e.exception))
        self.assertEqual(door.tree(replica), before)


def ruin(db):
    """Zeroes pages below SQLite, as a disk does it."""
    fd = os.open(db, os.O_RDWR)
    try:
        for page in range(20, 60, 2):
            os.pwrite(fd, bytes(4096), page * 4096)
    finally:
        os.close(fd)


class Sound(DrillTest):
    def test_no_alarm_while_all_goes_on(self):
        p, db, replica = self.watched(interval="0s", levels=["100ms", "300ms", "1s"], snapshot_interval="400ms", **BARE)
        other = self.peer().open(":memory:")
        end, n = time.monotonic() + 12, 0
        while time.monotonic() < end:
            for i in range(20):
                p.sql("INSERT INTO t(v) VALUES(hex(randomblob(900)))")
            if n % 3 == 0:
                p.sql("DELETE FROM t WHERE id % 7 = 0")
            if n % 4 == 0:
                p.sql("SELECT walrust_snapshot()")
            other.send(op="sql", conn="main", sql="SELECT walrust_drill(?, ?)", params=[replica, json.dumps({"random": n % 2})])
            for i in range(20):
                p.sql("INSERT INTO t(v) VALUES(hex(randomblob(900)))")
            if n % 5 == 0:
                self.assertPasses(p.sql("SELECT walrust_drill()"), n)
            self.assertPasses(other.wait()[0][0], n)
            n += 1
        self.assertGreater(n, 3)
        self.assertIsNone(p.status()["last_error"])

    def test_it_is_compared_with_the_live_database_and_nothing_is_left(self):
        p, db, replica = self.watched(interval="0s")
        p.sql("INSERT INTO t(v) VALUES('x')")
        report = p.sql("SELECT walrust_drill()")
        self.assertPasses(report)
        self.assertRegex(report, r"✅ live database: the same at TXID [0-9a-f]{16}")
        txid = p.sync()
        rows = p.rows("SELECT database, replica, time, txid, seconds, bytes, result, message FROM walrust_drills")
        self.assertEqual(len(rows), 1)
        database, url, when, at, seconds, size, result, message = rows[0]
        self.assertEqual((os.path.realpath(database), url, at, result, message), (os.path.realpath(db), f"file://{replica}", txid, "passed", None))
        self.assertRegex(when, r"^20\d\d-\d\d-\d\dT")
        self.assertTrue(0 < seconds < 60 and size == os.path.getsize(db) or size % 4096 == 0, rows)
        self.assertNothingLeft(self.dir)
        # The history outlives the process, and the command line sees it.
        p.end()
        q = self.peer().open(db)
        q.watch(replica)
        self.assertEqual(q.rows("SELECT txid, result FROM walrust_drills"), [(txid, "passed")])

    def test_an_empty_place_is_no_backup(self):
        self.assertFails(self.drill(self.path("nothing-here")), "(?i)snapshot")
        self.assertFalse(os.path.exists(self.path("nothing-here")))


class Scheduled(DrillTest):
    def test_drills_are_counted_told_and_told_to_be_over(self):
        hook = door.Hook(self)
        p, db, replica = self.watched(interval="0s", drill_interval="300ms", webhooks=[{"url": hook.url}])
        p.sql("INSERT INTO t(v) VALUES('x')")
        p.sync()
        good = re.compile(r'^walrust_drills_total\{database="[^"]+",result="success"\} [2-9]', re.M)
        self.eventually(lambda: good.search(p.sql("SELECT walrust_metrics()")), what="two drills")
        self.assertRegex(p.sql("SELECT walrust_metrics()"), re.compile(r"^walrust_last_drill_success_timestamp_seconds\{[^}]*\} 1[0-9.e]+", re.M))
        self.assertEqual(hook.events("drill_failed"), [])
        path = door.ltx_files(replica, 0)[0][3]
        os.rename(path, self.path("aside"))
        event = self.eventually(lambda: hook.events("drill_failed"), what="drill_failed")[0]
        self.assertEqual(event["severity"], "critical")
        self.assertIn("drill of the replica failed", event["message"])
        self.eventually(lambda: "drill of the replica failed" in (p.status()["last_error"] or ""), what="the status")
        self.assertIn(("failed",), p.rows("SELECT DISTINCT result FROM walrust_drills"))
        os.rename(self.path("aside"), path)
        self.eventually(lambda: [e for e in hook.events("recovered") if "drill" in e["message"]], what="recovered")
        self.eventually(lambda: p.status()["last_error"] is None, what="a clear status")
        p.sql("SELECT walrust_unwatch()")
        # (A drill may be under way.)
        self.eventually(lambda: not self.places(self.dir), what="nothing left")

    def test_what_a_kill_left_of_one_goes_with_the_next_start(self):
        """A copy of the whole database would lie there for good."""
        p, db, replica = self.watched(interval="0s", drill_interval="10ms")
        p.sql(ROWS.format(2000) + "INSERT INTO t(v) SELECT hex(randomblob(2000)) FROM n")
        p.sync()
        for _ in range(50):
            self.eventually(lambda: self.places(self.dir), what="a drill")
            p.kill()
            if self.places(self.dir):
                break
            p = self.peer().open(db)
            p.watch(replica, interval="0s", drill_interval="10ms")
        left = self.places(self.dir)
        self.assertNotEqual(left, [])
        q = self.peer().open(db)
        q.watch(replica, interval="0s")
        q.sync()
        self.assertNothingLeft(self.dir)


class Sampled(DrillTest):
    def test_a_sample_reads_some_files_whole_and_finds_what_quick_cannot(self):
        p, db, replica = self.watched(interval="0s")
        for n in range(20):
            p.sql("INSERT INTO t(v) VALUES(hex(randomblob(1500)))")
            p.sync()
        report = p.sql("SELECT walrust_verify(NULL, 'sample')")
        self.assertRegex(report, r"Content: ✅ 1 of \d+ files read whole")
        self.assertRegex(p.sql("SELECT walrust_verify(NULL, 'sample 100%')"), r"(\d+) of \1 files read whole")
        p.end()
        path = door.ltx_files(replica, 0)[9][3]
        with open(path, "r+b") as f:
            f.seek(os.path.getsize(path) // 2)
            f.write(b"\xa5\x5a")
        self.assertIn("Exit code: 0", self.shell(f"SELECT walrust_verify({quote(replica)});"))
        self.assertIn("Exit code: 1", self.shell(f"SELECT walrust_verify({quote(replica)}, 'sample 100%');"))
        for mode in ("sample 0%", "sample 101%", "sample x", "sampled", "sample 5"):
            with self.assertRaises(SqlError) as e:
                self.shell(f"SELECT walrust_verify({quote(replica)}, {quote(mode)});")
            self.assertIn("sample 5%", str(e.exception))


class LastSound(DrillTest):
    def test_retention_keeps_the_last_sound_snapshot_of_a_database_damaged_at_its_source(self):
        hook = door.Hook(self)
        p, db, replica = self.watched(schema="CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE INDEX i ON t(v)", interval="0s",
                                      snapshot_interval="0", webhooks=[{"url": hook.url}], **BARE)
        p.sql(ROWS.format(3000) + "INSERT INTO t(v) SELECT hex(randomblob(100)) FROM n")
        p.sync()
        for n in range(3):
            p.sql("INSERT INTO t(v) VALUES('x')")
            p.sync()
            p.sql("SELECT walrust_snapshot()")
        good = p.sync()
        p.sql("PRAGMA wal_checkpoint(TRUNCATE)")
        p.end()
        ruin(db)
        p = self.peer().open(db)
        p.watch(replica, interval="0s", snapshot_interval="0", webhooks=[{"url": hook.url}], **BARE)
        for n in range(5):
            p.sql("INSERT INTO t(id, v) VALUES(?, 'after')", 100_000 + n)
            p.sync()
            p.sql("SELECT walrust_snapshot()")
            time.sleep(0.3)
        self.eventually(lambda: [e for e in hook.events("corruption_detected") if "damaged" in e["message"]], what="corruption_detected")
        self.assertRegex(p.status()["last_error"] or "", "database is damaged")
        sound = [row[0] for row in p.rows("SELECT txid FROM walrust_points WHERE txid <= ?", good)]
        self.assertTrue(sound)
        out, _ = self.restore(f"file://{replica}", point=sound[-1], check="full")
        self.assertSound(out)
        with self.assertRaises(SqlError) as e:
            p.sql("SELECT walrust_compact(NULL, '{\"force\":1}')")
        self.assertErrorLine(str(e.exception), "nothing is removed", "quick_check")
        # Repaired, it goes on.
        p.sql("SELECT walrust_rewind(?)", sound[-1])
        self.assertEqual(p.rows("PRAGMA integrity_check"), [("ok",)])
        p.sync()
        p.sql("SELECT walrust_snapshot()")
        p.sql("SELECT walrust_compact(NULL, '{\"force\":1}')")


class CommandLine(DrillTest):
    def test_exit_status(self):
        p, db, replica = self.watched(interval="0s")
        p.sql("INSERT INTO t(v) VALUES('x')")
        p.sync()
        p.end()
        done = self.run_cli("drill", replica, "--assert", "SELECT count(*) = 1 FROM t", "--full")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("Result: passed", done.stdout)
        done = self.run_cli("drill", replica, "--assert", "SELECT count(*) = 2 FROM t", "--random", "--json")
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertEqual(json.loads(done.stdout)["exit"], 1)
        done = self.run_cli("drill", "s3://bucket/app?endpoint=http://127.0.0.1:1",
                            env={"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"})
        self.assertEqual(done.returncode, 3, done.stdout + done.stderr)
        done = self.run_cli("drill", replica, "--point", "99")
        self.assertEqual(done.returncode, 3, done.stdout + done.stderr)
        self.assertErrorLine(done.stderr, "outside the history")


if __name__ == "__main__":
    unittest.main()
