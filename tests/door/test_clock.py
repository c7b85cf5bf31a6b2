"""Wall clocks that are wrong, or are put right: what is time for people may jump, what is kept may not suffer."""

import os
import shutil
import subprocess
import time
import unittest

import door


class Clock(door.DoorTest):
    def setUp(self):
        super().setUp()
        self.shim = self.path("clock.so")
        source = os.path.join(door.ROOT, "tests", "support", "clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", self.shim, source, "-ldl"], check=True)

    def clock(self, name, offset=0):
        """The environment of a machine with a clock of its own."""
        self.put(name, offset)
        return {"LD_PRELOAD": self.shim, "CLOCK_OFFSET": self.path(name)}

    def put(self, name, offset):
        with open(self.path(name + ".new"), "w") as f:
            f.write(f"{offset}\n")
        os.rename(self.path(name + ".new"), self.path(name))

    def test_a_clock_that_jumps(self):
        """Hours back and forth, under commits: one history, each TXID restores, and all checks pass."""
        p, db, url = self.watched(env=self.clock("c"), interval="0s", levels=["100ms"])
        seen = abs(p.code("import time\nresult = time.time()") - time.time())
        self.assertLess(seen, 60)
        states = {}
        for offset in (0, -3600, 7200, -86400, 0, 30):
            self.put("c", offset)
            for _ in range(15):
                p.sql("INSERT INTO t(v) VALUES(?)", f"at {offset}")
                states[p.sync()] = p.sql("SELECT count(*) FROM t")
            self.assertAlmostEqual(p.code("import time\nresult = time.time()"), time.time() + offset, delta=60)
            row = p.status()
            self.assertEqual((row["state"], row["last_error"]), ("streaming", None))
            self.assertLess(row["lag_seconds"], 60)
        restored, at = self.restore(url)
        self.assertSameBytes(db, restored)
        self.assertEqual(at, max(states))
        for txid in self.random.sample(sorted(states), 12):
            restored, at = self.restore(url, point=str(txid))
            self.assertEqual(at, txid)
            self.assertEqual(door.plain_rows(restored, "SELECT count(*) FROM t"), [(states[txid],)])
        self.assertIn("Exit code: 0", p.sql("SELECT walrust_verify(?, 'deep')", url))
        self.assertEqual(len(door.ltx_files(url, level=9)), 1)

    def test_a_clock_that_was_once_ahead_makes_no_restore_silently_older(self):
        p, db, url = self.watched(env=self.clock("c"), interval="0s")
        for offset in (0, 30 * 86400, 0):
            self.put("c", offset)
            for _ in range(3):
                p.sql("INSERT INTO t(v) VALUES(?)", offset)
                newest = p.sync()
        for point in ("0 seconds ago", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())):
            done = self.run_cli("restore", url, self.path("now.db"), "--point", point)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            # (What was a second ago may be before the first commit.)
            self.assertErrorLine(done.stderr, "not certain" if point[0] == "0" else "not certain|outside the history")
        self.assertErrorLine(self.run_cli("restore", url, self.path("now.db"), "--point", "0 seconds ago").stderr,
                             "later than now", "a clock was ahead", f"name a TXID from [0-9a-f]{{16}} to {newest:016x}")
        self.assertFalse(os.path.exists(self.path("now.db")))
        restored, at = self.restore(url)
        self.assertSameBytes(db, restored)
        self.assertEqual((at, self.restore(url, point=str(at - 1))[1]), (newest, newest - 1))

    def test_a_process_that_starts_in_the_past_of_the_one_before(self):
        p, db, url = self.watched(env=self.clock("c", 7200), interval="0s")
        p.sql("INSERT INTO t(v) VALUES('in two hours')")
        first = p.sync()
        p.kill()
        q = self.peer(env=self.clock("d", -7200)).open(db)
        q.watch(url, interval="0s")
        q.sql("INSERT INTO t(v) VALUES('two hours ago')")
        self.assertEqual(q.sync(), first + 1)
        restored, _ = self.restore(url)
        self.assertSameBytes(db, restored)

    def test_two_machines_whose_clocks_are_hours_apart(self):
        """Each machine is refused while the holder lives, whatever its clock says: nobody compares two clocks. Who takes over by
        an explicit word fences the holder, and nothing is mixed."""
        s3 = door.S3(self)
        url, (a_db, b_db, c_db) = s3.url(), (self.path(n, "app.db") for n in "abc")
        for n in "abc":
            os.mkdir(self.path(n))
        a = self.peer(env=s3.env(**self.clock("ca"))).open(a_db)
        a.watch(url, interval="0s")
        a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        a.sql("INSERT INTO t(v) VALUES('of a')")
        shared = a.sync()
        for copy in (b_db, c_db):
            restored, _ = self.restore(url, env=s3.env())
            shutil.copyfile(restored, copy)

        c = self.peer(env=s3.env(**self.clock("cc", -7200))).open(c_db)
        b = self.peer(env=s3.env(**self.clock("cb", 7200))).open(b_db)
        for other in (c, b):
            with self.assertRaises(door.SqlError) as caught:
                other.watch(url)
            self.assertErrorLine(str(caught.exception), "held by", "takeover")
        a.sql("INSERT INTO t(v) VALUES('of a, alone')")
        shared = a.sync()

        b.watch(url, interval="0s", takeover=True)
        b.sql("INSERT INTO t(v) VALUES('of b')")
        after = b.sync()
        self.assertGreater(after, shared)
        a.sql("INSERT INTO t(v) VALUES('of a, and nobody has it')")
        with self.assertRaises(door.SqlError) as caught:
            for _ in range(40):
                a.sync(2)
                a.sql("INSERT INTO t(v) VALUES('of a, in its own history')")
                time.sleep(1)
        self.assertEqual(a.status()["state"], "fenced")
        b.sql("INSERT INTO t(v) VALUES('of b, again')")
        b.sync()
        restored, _ = self.restore(url, env=s3.env())
        self.assertSameBytes(b_db, restored)
        self.assertEqual(door.plain_rows(restored, "SELECT v FROM t ORDER BY id"), [("of a",), ("of b",), ("of b, again",)])
        self.assertIn("Exit code: 0", b.sql("SELECT walrust_verify(?, 'deep')", url))


if __name__ == "__main__":
    unittest.main()
