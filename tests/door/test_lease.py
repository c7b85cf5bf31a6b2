"""Another's lease ends by standing still, on the clock of who looks; what it says of times is not believed."""

import json
import os
import shutil
import signal
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


class Hearts(door.DoorTest):
    """Idle databases of one program share one heartbeat; a second machine is kept out as before."""

    DATABASES = 12
    LIFE = 3  # seconds

    def setUp(self):
        super().setUp()
        self.s3 = door.S3(self)
        self.proxy = door.FaultProxy(self, self.s3.port)
        self.env = self.s3.env(WALRUST_LEASE_MS=str(int(self.LIFE * 1000)))

    def url(self, n):
        return self.s3.url(f"tenants/{n}", self.proxy.endpoint)

    def holder(self, databases=DATABASES, **env):
        """A process that streams that many databases, and has nothing to do."""
        p = self.peer(so=door.CRASH_SO, env={**self.env, **env}).open(":memory:")
        for n in range(databases):
            p.open(self.path(f"{n}.db"), f"c{n}")
            p.watch(self.url(n), conn=f"c{n}", interval="0s")
            p.sql("CREATE TABLE IF NOT EXISTS t(v)", conn=f"c{n}")
            p.sql("SELECT walrust_sync()", conn=f"c{n}")
        return p

    def rests(self, n):
        return "heart" in json.loads(self.s3.get(f"tenants/{n}/walrust/lease.json"))

    def all_rest(self, databases=DATABASES):
        self.eventually(lambda: all(self.rests(n) for n in range(databases)), timeout=40, what="leases at rest")

    def another(self, n):
        """Another machine, with a copy of that database."""
        copy = self.path("other", f"{n}.db")
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        self.restore(self.url(n), copy, env=self.env)
        return self.peer(so=door.CRASH_SO, env=self.env).open(copy)

    def test_idle_databases_cost_one_request_for_all(self):
        p = self.holder()
        self.all_rest()
        time.sleep(self.LIFE)
        self.proxy.seen.clear()
        beats = 8
        time.sleep(self.LIFE * 5 / 12 * beats)
        asked = [(method, path.split("?")[0]) for method, path, _ in self.proxy.seen]
        # (Each database's own renewals were twelve times as many. A beat that is late makes them once.)
        self.assertLessEqual(len(asked), beats + 2 + self.DATABASES, asked)
        hearts = [path for method, path in asked if method == "PUT" and "/hearts/" in path]
        self.assertGreaterEqual(len(hearts), 2)
        self.assertEqual(len(set(hearts)), 1)
        self.assertRegex(hearts[0], r"/tenants/walrust/hearts/[0-9a-f]{16}\.json$")
        # It is no database, and nothing else that a listing shows.
        self.assertEqual(sorted(r[0] for r in p.rows("SELECT name FROM walrust_list(?)", self.s3.url("tenants", self.proxy.endpoint))),
                         sorted(str(n) for n in range(self.DATABASES)))
        # A commit wakes its lease, which is renewed by itself until the database is idle again.
        p.sql("INSERT INTO t VALUES('awake')", conn="c3")
        p.sql("SELECT walrust_sync()", conn="c3")
        self.assertFalse(self.rests(3))
        self.all_rest()
        out, _ = self.restore(self.url(3), env=self.env)
        self.assertEqual(door.plain_rows(out, "SELECT v FROM t"), [("awake",)])
        # Whoever ends last leaves no heart behind.
        p.end()
        self.assertEqual(self.s3.keys("tenants/walrust/"), [])

    def test_a_second_machine_is_refused_until_the_heart_stands_still(self):
        p = self.holder()
        self.all_rest()
        q = self.another(5)
        end = time.monotonic() + 3 * self.LIFE
        while time.monotonic() < end:
            with self.assertRaises(door.SqlError) as caught:
                q.watch(self.url(5), interval="0s")
            self.assertNamesTheHolder(str(caught.exception), p)
            time.sleep(0.1)
        # The first machine stands still: after one life its lease has ended.
        os.kill(p.pid, signal.SIGSTOP)
        self.eventually(lambda: self.tries(q, 5), timeout=20, what="the lease ends")
        q.sql("INSERT INTO t VALUES('of the second')")
        q.sql("SELECT walrust_sync()")
        # It goes on, and learns before it writes anything there; its other databases are its own as before.
        os.kill(p.pid, signal.SIGCONT)
        p.sql("INSERT INTO t VALUES('of the first')", conn="c5")
        with self.assertRaises(door.SqlError) as caught:
            p.sql("SELECT walrust_sync()", conn="c5")
        self.assertErrorLine(str(caught.exception), "took its lease|held by")
        p.sql("INSERT INTO t VALUES('own')", conn="c6")
        p.sql("SELECT walrust_sync()", conn="c6")
        out, _ = self.restore(self.url(5), env=self.env)
        self.assertEqual(door.plain_rows(out, "SELECT v FROM t"), [("of the second",)])

    def test_an_idle_program_is_told_that_its_lease_was_taken(self):
        p = self.holder()
        self.all_rest()
        q = self.another(2)
        q.watch(self.url(2), interval="0s", takeover=True)
        row = self.eventually(lambda: (r := p.status(database=self.path("2.db"))) and r["state"] == "fenced" and r, timeout=20,
                              what="the state of an idle database whose lease was taken")
        self.assertErrorLine(row["last_error"], "took its lease|held by")
        self.assertEqual({p.status(database=self.path(f"{n}.db"))["state"] for n in range(self.DATABASES) if n != 2}, {"streaming"})

    def test_killed_at_each_step(self):
        """Whatever a death leaves of hearts and leases: the next process of this machine goes on, and all that was committed is there."""
        for n, point in enumerate(("heart.made", "heart.rests", "heart.wakes")):
            with self.subTest(point=point):
                p = self.holder(2, WALRUST_CRASH=point)
                if point == "heart.wakes":
                    self.all_rest(2)
                    with self.assertRaises(AssertionError):  # it dies over the call
                        p.sql("INSERT INTO t VALUES(?)", point, conn="c0")
                        p.sql("SELECT walrust_sync()", conn="c0")
                self.eventually(lambda: p.proc.poll() is not None, timeout=40, what="killed")
                q = self.holder(2)
                for m in (0, 1):
                    q.sql("INSERT INTO t VALUES(?)", f"after {point}", conn=f"c{m}")
                    q.sql("SELECT walrust_sync()", conn=f"c{m}")
                    out, _ = self.restore(self.url(m), env=self.env)
                    rows = [v for v, in door.plain_rows(out, "SELECT v FROM t")]
                    self.assertEqual(rows, [v for v, in door.plain_rows(self.path(f"{m}.db"), "SELECT v FROM t")])
                    self.assertEqual(sum(r.startswith("after") for r in rows), n + 1)
                q.end()
        # Who takes a lease dies before the heart is told: the holder learns when its lease wakes.
        p = self.holder(2)
        self.all_rest(2)
        os.makedirs(self.path("other"))
        copy = self.path("other", "0.db")
        self.restore(self.url(0), copy, env=self.env)
        dies = self.peer(so=door.CRASH_SO, env={**self.env, "WALRUST_CRASH": "heart.taken"}).open(copy)
        with self.assertRaises(AssertionError):
            dies.watch(self.url(0), interval="0s", takeover=True)

        def refusal():
            try:
                p.sql("INSERT INTO t VALUES('too late')", conn="c0")
                p.sql("SELECT walrust_sync()", conn="c0")
            except door.SqlError as e:
                return str(e)

        # (A beat that was late may just have woken it: then it is its own for what is left of its life.)
        said = self.eventually(refusal, timeout=20, what="the holder learns it", every=0.2)
        self.assertErrorLine(said, "took its lease|held by")

    def tries(self, q, n):
        try:
            return q.watch(self.url(n), interval="0s") or True
        except door.SqlError:
            return False

    def test_where_none_may_be_written_above_leases_are_renewed_as_before(self):
        self.proxy.fault = lambda method, path: ("status", 403) if "/walrust/hearts/" in path else None
        p = self.holder()
        time.sleep(5 * self.LIFE)
        self.assertFalse(any(self.rests(n) for n in range(self.DATABASES)))
        self.assertEqual({p.status(database=self.path(f"{n}.db"))["state"] for n in range(self.DATABASES)}, {"streaming"})
        q = self.another(7)
        with self.assertRaises(door.SqlError):
            q.watch(self.url(7), interval="0s")


if __name__ == "__main__":
    unittest.main()
