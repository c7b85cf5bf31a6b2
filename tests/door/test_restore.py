"""walrust_restore: the point, the target, the checks, and what it refuses."""

import os
import shutil
import threading
import time
import unittest

import door


class Restore(door.DoorTest):
    def history(self, n=12, gap=0.0, **options):
        """A replica with n commits of one row each; gives (peer, db, url, [(txid, time after it)])."""
        p, db, url = self.watched(interval="0s", **options)
        marks = []
        for i in range(1, n + 1):
            p.sql("INSERT INTO t VALUES(?, ?)", i, f"row {i}")
            marks.append((p.sync(), time.time()))
            time.sleep(gap)
        return p, db, url, marks

    def count(self, path):
        return door.plain_rows(path, "SELECT count(*) FROM t")[0][0]

    def test_latest_and_each_txid(self):
        p, db, url, marks = self.history()
        self.assertEqual(self.restore(url)[1], marks[-1][0])
        for i, (txid, _) in enumerate(marks, 1):
            out, at = self.restore(url, point=txid)
            self.assertEqual((at, self.count(out)), (txid, i))

    def test_time(self):
        p, db, url, marks = self.history(n=4, gap=0.6)
        for i, (txid, when) in enumerate(marks, 1):
            point = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when + 0.3)) + f".{int((when + 0.3) % 1 * 1000):03d}Z"
            out, at = self.restore(url, point=point)
            self.assertEqual((at, self.count(out)), (txid, i), point)

    def test_time_forms(self):
        p, db, url, marks = self.history(n=2)
        later = time.time() + 1.1
        time.sleep(1.2)
        for form in ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S+00:00"):
            out, at = self.restore(url, point=time.strftime(form, time.gmtime(later)))
            self.assertEqual(at, marks[-1][0], form)
        # The same moment as clocks in other places show it; the other sign is hours before the history, or after it.
        for hours, other in ((2, "-02:00"), (-5, "+05:00")):
            clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(later + hours * 3600))
            sign = f"{hours:+03d}:00"
            self.assertEqual(self.restore(url, point=clock + sign)[1], marks[-1][0], clock + sign)
            with self.assertRaises(door.SqlError) as caught:
                self.restore(url, point=clock + other)
            self.assertErrorLine(str(caught.exception), "outside the history|future")

    def test_relative_time(self):
        p, db, url, marks = self.history(n=2)
        time.sleep(3.2)
        p.sql("INSERT INTO t VALUES(100, 'late')")
        p.sync()
        for point in ("2 seconds ago", "2s ago"):
            out, at = self.restore(url, point=point)
            self.assertEqual((at, self.count(out)), (marks[-1][0], 2), point)

    def test_points_outside_the_history_say_which_range_exists(self):
        p, db, url, marks = self.history(n=3)
        last = marks[-1][0]
        for point in (last + 1, 10**15, "2001-01-01T00:00:00Z", "10 years ago"):
            with self.subTest(point=point), self.assertRaises(door.SqlError) as caught:
                self.restore(url, self.path("never.db"), point)
            self.assertErrorLine(str(caught.exception), "walrust_restore", rf"outside the history {1:016x}\.\.{last:016x} \(20\S+Z to 20\S+Z\)")
        for point in (0, -1):
            with self.subTest(point=point), self.assertRaises(door.SqlError):
                self.restore(url, self.path("never.db"), point)
        self.assertFalse(os.path.exists(self.path("never.db")))

    def test_a_point_in_the_future_is_an_error(self):
        p, db, url, marks = self.history(n=2)
        with self.assertRaises(door.SqlError) as caught:
            self.restore(url, self.path("never.db"), "2099-01-01T00:00:00Z")
        self.assertErrorLine(str(caught.exception), "walrust_restore", "2099")

    def test_an_existing_file_is_refused_unless_overwrite(self):
        p, db, url, marks = self.history(n=3)
        target = self.path("there.db")
        with open(target, "wb") as f:
            f.write(b"mine")
        with self.assertRaises(door.SqlError) as caught:
            self.restore(url, target)
        self.assertErrorLine(str(caught.exception), "walrust_restore", "there.db", "overwrite")
        with open(target, "rb") as f:
            self.assertEqual(f.read(), b"mine")
        self.restore(url, target, overwrite=True)
        self.assertSameBytes(db, target)
        self.restore(url, target, point=marks[0][0], overwrite=1)
        self.assertEqual(self.count(target), 1)

    def test_overwrite_removes_the_old_wal(self):
        """A -wal of the file before must not be replayed onto the restored one."""
        p, db, url, marks = self.history(n=3)
        target = self.path("old.db")
        q = self.peer(so=None).open(target)
        q.sql("PRAGMA journal_mode=wal")
        q.sql("CREATE TABLE other(x)")
        q.many("INSERT INTO other VALUES(?)", [("x" * 900,) for _ in range(50)])
        q.kill()
        self.assertGreater(os.path.getsize(target + "-wal"), 0)
        self.restore(url, target, overwrite=True)
        self.assertSameBytes(db, target)
        self.assertSound(target)

    def test_check_modes(self):
        p, db, url, marks = self.history(n=3)
        for check in ("none", "quick", "full"):
            self.assertSameBytes(db, self.restore(url, check=check)[0])
        with self.assertRaises(door.SqlError) as caught:
            self.restore(url, check="thorough")
        self.assertErrorLine(str(caught.exception), "walrust_restore", "thorough", "none", "quick", "full")

    def test_what_each_check_looks_at(self):
        """none: checksums alone; quick: quick_check, which does not compare an index with its table; full: integrity_check, which does."""
        def index_without_a_row(q):
            q.execute("CREATE INDEX iv ON t(v)")
            schema = q.execute("SELECT * FROM sqlite_schema WHERE name = 'iv'").fetchone()
            q.execute("PRAGMA writable_schema=1")
            q.execute("DELETE FROM sqlite_schema WHERE name = 'iv'")
            q.execute("PRAGMA writable_schema=RESET")
            q.execute("INSERT INTO t(v) VALUES(2)")
            q.execute("PRAGMA writable_schema=1")
            q.execute("INSERT INTO sqlite_schema VALUES(?, ?, ?, ?, ?)", schema)

        def forbidden_value(q):
            q.execute("PRAGMA ignore_check_constraints=1")
            q.execute("INSERT INTO t(v) VALUES(-1)")

        for harm, refusing in ((index_without_a_row, ("full",)), (forbidden_value, ("quick", "full"))):
            db, url = self.path(f"{harm.__name__}.db"), self.path(harm.__name__)
            q = door.plain_connect(db)
            q.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v CHECK(v > 0))")
            harm(q)
            q.close()
            p, _, _ = self.watched(db, url, schema=None)
            p.sync()
            for check in ("none", "quick", "full"):
                with self.subTest(harm=harm.__name__, check=check):
                    out = self.path(f"{harm.__name__}-{check}.db")
                    if check in refusing:
                        with self.assertRaises(door.SqlError) as caught:
                            self.restore(url, out, check=check)
                        self.assertErrorLine(str(caught.exception), "walrust_restore", "index iv|CHECK constraint")
                        self.assertFalse(os.path.exists(out))
                    else:
                        self.restore(url, out, check=check)
                        self.assertSameBytes(db, out)

    def test_parallel(self):
        p, db, url, marks = self.history(n=40)
        for parallel in (1, 4, 32):
            self.assertSameBytes(db, self.restore(url, parallel=parallel)[0])

    def test_nothing_is_left_beside_the_target(self):
        p, db, url, marks = self.history(n=3)
        os.mkdir(self.path("out"))
        self.restore(url, self.path("out", "a.db"))
        self.assertEqual(os.listdir(self.path("out")), ["a.db"])

    def test_a_damaged_file_leaves_the_target_alone(self):
        """Flip, truncate, remove: an error that names the file; the old target stays; no new file appears."""
        p, db, url, marks = self.history(n=6)
        p.end()
        target = self.path("keep.db")
        self.restore(url, target, point=marks[1][0])
        before = door.tree(self.dir)["keep.db"]
        files = door.ltx_files(url)
        for turn, damage in enumerate(("flip", "truncate", "remove")):
            copy = self.path(f"copy{turn}")
            shutil.copytree(url, copy)
            level, low, high, path = [f for f in door.ltx_files(copy) if f[0] == 0][-2]
            if damage == "remove":
                for other in [f for f in door.ltx_files(copy) if f[1] <= low <= f[2] or f[1] >= low]:
                    if other[3] == path or (other[0] > 0 and other[1] != 1):
                        os.unlink(other[3])
            else:
                with open(path, "r+b") as f:
                    if damage == "flip":
                        f.seek(os.path.getsize(path) // 2)
                        byte = f.read(1)
                        f.seek(-1, 1)
                        f.write(bytes([byte[0] ^ 0x10]))
                    else:
                        f.truncate(os.path.getsize(path) - 7)
            with self.subTest(damage=damage), self.assertRaises(door.SqlError) as caught:
                self.restore(copy, target, overwrite=True)
            self.assertErrorLine(str(caught.exception), "walrust_restore")
            self.assertEqual(door.tree(self.dir)["keep.db"], before)
        self.assertTrue(files)

    def test_a_missing_tail_is_not_silently_older_data(self):
        """Litestream restores without its last file and says nothing; we know what the manifest promised."""
        p, db, url, marks = self.history(n=5)
        p.end()
        os.unlink([f for f in door.ltx_files(url) if f[0] == 0][-1][3])
        with self.assertRaises(door.SqlError) as caught:
            self.restore(url, self.path("never.db"))
        self.assertErrorLine(str(caught.exception), "walrust_restore", f"{marks[-1][0]:016x}")
        self.assertEqual(self.restore(url, point=marks[-2][0])[1], marks[-2][0])

    def test_restore_while_it_is_written(self):
        p, db, url, marks = self.history(n=3)
        p.send(op="code", code="""
end = time.time() + 3
n = 1000
while time.time() < end:
    conns['main'].execute('INSERT INTO t VALUES(?, ?)', (n, 'busy'))
    n += 1
result = n - 1000
""", args={})
        restored = []
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            out, at = self.restore(url, check="full")
            restored.append((at, self.count(out)))
        self.assertGreater(p.wait(), 10)
        self.assertEqual(restored, sorted(restored))
        self.assertEqual([count for _, count in restored], sorted(count for _, count in restored))
        self.assertGreater(restored[-1][1], restored[0][1])

    def test_restore_over_an_open_watched_database(self):
        """A restore over a database that is open and watched is refused or noticed, never mixed."""
        p, db, url, marks = self.history(n=5)
        try:
            self.restore(url, db, point=marks[1][0], overwrite=True)
        except door.SqlError as error:
            self.assertErrorLine(str(error), "walrust_restore")
            return
        p.end()
        q = self.peer().open(db)
        q.watch(url)
        q.sql("INSERT INTO t VALUES(77, 'after')")
        q.sync()
        self.assertSameBytes(db, self.restore(url)[0])

    def test_two_restores_to_one_target(self):
        p, db, url, marks = self.history(n=5)
        target, outcomes = self.path("race.db"), []

        def go():
            try:
                outcomes.append(self.restore(url, target, overwrite=True)[1])
            except door.SqlError as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=go) for _ in range(3)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        self.assertIn(marks[-1][0], outcomes)
        self.assertSameBytes(db, target)


class Continue(door.DoorTest):
    """What happens to the replica after a restore: continued where it is known to be the same history, else refused."""

    def test_on_a_new_machine_the_restored_database_continues_its_replica(self):
        p, db, url = self.watched()
        p.many("INSERT INTO t(v) VALUES(?)", [("x",) for _ in range(10)])
        txid = p.sync()
        p.end()
        other, _ = self.restore(url, self.path("machine2", "app.db") if os.mkdir(self.path("machine2")) is None else None)
        q = self.peer().open(other)
        q.watch(url)
        q.sql("INSERT INTO t(v) VALUES('machine 2')")
        self.assertEqual(q.sync(), txid + 1)
        self.assertSameBytes(other, self.restore(url)[0])

    def test_another_databases_replica_is_refused_and_taken_over_by_an_explicit_word(self):
        p, db, url = self.watched()
        p.sql("INSERT INTO t(v) VALUES('first')")
        txid = p.sync()
        p.end()
        before = door.tree(url)
        q = self.peer().open(self.path("stranger.db"))
        q.sql("CREATE TABLE mine(x)")
        with self.assertRaises(door.SqlError) as caught:
            q.watch(url)
            q.sql("INSERT INTO mine VALUES(1)")
            q.sync()
        self.assertErrorLine(str(caught.exception), "walrust_watch", "another database's history", f"{txid:016x}", "takeover")
        self.assertEqual({k: v for k, v in door.tree(url).items() if k.endswith(".ltx")},
                         {k: v for k, v in before.items() if k.endswith(".ltx")})
        q.watch(url, takeover=True)
        q.sql("INSERT INTO mine VALUES(2)")
        self.assertGreater(q.sync(), txid)
        self.assertSameBytes(self.path("stranger.db"), self.restore(url)[0])
        out, _ = self.restore(url, point=txid)
        self.assertEqual(door.plain_rows(out, "SELECT v FROM t"), [("first",)])


if __name__ == "__main__":
    unittest.main()
