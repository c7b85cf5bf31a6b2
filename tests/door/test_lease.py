"""Another's lease ends by standing still, on the clock of who looks; what it says of times is not believed."""

import json
import os
import shutil
import threading
import time
import unittest

import door


class Lease(door.DoorTest):
    """A replica of this database that another machine holds, as its lease object says."""

    def setUp(self):
        super().setUp()
        p, self.db, self.url = self.watched(interval="0s")
        p.sql("INSERT INTO t(v) VALUES('first')")
        p.sync()
        p.end()
        self.lease = os.path.join(self.url, "walrust", "lease.json")
        with open(self.lease) as f:
            self.state = json.load(f)

    def write(self, **changes):
        """Puts the lease of a process that this machine cannot know of."""
        state = {**self.state, "writer": "f" * 16, "session": "e" * 16, "holder": "elsewhere (process 7)", "life_ms": 3000,
                 "ends": int(time.time() * 1000) + 3000, **changes}
        state["process"] = {"boot": "another", "namespace": "another", "pid": 7, "started": 7}
        with open(self.lease + ".new", "w") as f:
            json.dump(state, f)
        os.rename(self.lease + ".new", self.lease)

    def assertRefused(self, p):
        with self.assertRaises(door.SqlError) as caught:
            p.watch(self.url, interval="0s")
        self.assertErrorLine(str(caught.exception), r"held by elsewhere \(process 7\); its lease ends in \d+s unless", "takeover")

    def test_a_dead_holder_whose_clock_was_ahead(self):
        self.write(ends=int(time.time() * 1000) + 3_600_000)
        p = self.peer().open(self.db)
        self.assertRefused(p)
        time.sleep(3.2)
        p.watch(self.url, interval="0s")
        p.sql("INSERT INTO t(v) VALUES('after')")
        p.sync()

    def test_a_live_holder_whose_clock_is_behind(self):
        stop = threading.Event()

        def renew():
            beat = 0
            while not stop.wait(0.3):
                beat += 1
                self.write(ends=1000 + beat, beat=beat)

        self.write(ends=1000)
        t = threading.Thread(target=renew)
        t.start()
        try:
            p = self.peer().open(self.db)
            for _ in range(6):
                self.assertRefused(p)
                time.sleep(1)
        finally:
            stop.set()
            t.join()

    def test_a_configured_database_waits_by_itself(self):
        self.write()
        began = time.monotonic()
        p = self.peer(env={"WALRUST_REPLICA": self.url}).open(self.db)
        p.sql("INSERT INTO t(v) VALUES('at once')")
        self.assertLess(time.monotonic() - began, 2.5, "the app waits for nothing")
        status = self.eventually(lambda: (s := p.status()) and s["last_error"] and s, what="why it waits")
        self.assertRegex(status["last_error"], "held by elsewhere")
        self.assertNotEqual(status["state"], "streaming")
        self.eventually(lambda: p.status()["state"] == "streaming", timeout=20, what="streaming")
        p.sync()
        out, _ = self.restore(self.url)
        self.assertEqual(door.plain_rows(out, "SELECT v FROM t"), [("first",), ("at once",)])

    def test_a_process_of_this_machine_that_is_no_more(self):
        p = self.peer().open(self.db)
        p.watch(self.url, interval="0s")
        p.sync()
        os.mkdir(self.path("copy"))
        copy = self.path("copy", "app.db")
        restored, _ = self.restore(self.url)
        shutil.copy(restored, copy)
        q = self.peer().open(copy)
        with self.assertRaises(door.SqlError) as caught:
            q.watch(self.url, interval="0s")
        self.assertNamesTheHolder(str(caught.exception), p)
        p.kill()
        q.watch(self.url, interval="0s")
        q.sql("INSERT INTO t(v) VALUES('of the copy')")
        q.sync()


class Long(door.DoorTest):
    def test_a_lease_is_kept_during_a_long_upload(self):
        """The first snapshot takes ten times the life of a lease; a second machine is refused throughout."""
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        env = s3.env(WALRUST_LEASE_MS="1000")
        os.mkdir(self.path("b"))
        a_db, b_db = self.path("a.db"), self.path("b", "b.db")
        for db in (a_db, b_db):
            c = door.plain_connect(db)
            c.execute("CREATE TABLE t(v)")
            c.execute("INSERT INTO t VALUES(randomblob(100000))")
            c.commit()
            c.close()
        url = s3.url("app", proxy.endpoint)
        proxy.fault = lambda method, path: ("delay", 10) if method == "PUT" and "/0009/" in path else None
        a = self.peer(so=door.CRASH_SO, env=env).open(a_db)
        a.watch(url, interval="0s")
        b = self.peer(so=door.CRASH_SO, env=env).open(b_db)
        end, refused = time.monotonic() + 6, 0
        while time.monotonic() < end:
            with self.assertRaises(door.SqlError) as caught:
                b.watch(url, interval="0s")
            self.assertNamesTheHolder(str(caught.exception), a)
            refused += 1
            time.sleep(0.2)
        self.assertGreater(refused, 5)
        proxy.fault = None
        a.sql("INSERT INTO t VALUES('after')")
        a.sync(30)
        self.assertEqual(a.status()["state"], "streaming")


if __name__ == "__main__":
    unittest.main()
