"""What COMMIT promises: nothing of the store in async mode, the replica itself in sync mode."""

import collections
import os
import time
import unittest

import pytest

import door


class Sync(door.DoorTest):
    """durability = "sync": COMMIT returns only after the replica has it; on failure it is rolled back."""

    def setUp(self):
        super().setUp()
        self.s3 = door.S3(self)
        self.proxy = door.FaultProxy(self, self.s3.port)
        self.db = self.path("app.db")

    def watched_sync(self, **options):
        p = self.peer(env=self.s3.env()).open(self.db)
        p.watch(self.s3.url("app", self.proxy.endpoint), durability="sync",
                retry={"base": "10ms", "max": "100ms", "breaker_threshold": 100}, **options)
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        return p

    def restored(self):
        out, at = self.restore(self.s3.url(), env=self.s3.env())
        return out, at

    def test_every_commit_is_in_the_replica_when_it_returns(self):
        p = self.watched_sync()
        for i in range(8):
            p.sql("INSERT INTO t VALUES(?, 'x')", i)
            out, _ = self.restored()
            self.assertEqual(door.plain_rows(out, "SELECT count(*) FROM t"), [(i + 1,)])
            self.assertSameBytes(self.db, out)

    def test_a_kill_right_after_commit_loses_nothing(self):
        p = self.watched_sync()
        for i in range(5):
            p.sql("INSERT INTO t VALUES(?, 'x')", i)
        p.kill()
        out, _ = self.restored()
        self.assertEqual(door.plain_rows(out, "SELECT count(*) FROM t"), [(5,)])

    def test_failure_rolls_back_and_the_connection_stays_usable(self):
        p = self.watched_sync(sync_timeout="500ms")
        p.sql("INSERT INTO t VALUES(1, 'in')")
        self.proxy.down = True
        begin = time.monotonic()
        with self.assertRaises(door.SqlError):
            p.sql("INSERT INTO t VALUES(2, 'out')")
        self.assertLess(time.monotonic() - begin, 5)
        self.assertEqual(p.rows("SELECT id FROM t"), [(1,)])
        with self.assertRaises(door.SqlError):
            p.sql("INSERT INTO t VALUES(3, 'out')")
        self.proxy.down = False

        def works():
            try:
                p.sql("INSERT INTO t VALUES(4, 'in')")
                return True
            except door.SqlError:
                return False

        self.eventually(works, what="a commit after the outage", every=0.2)
        self.assertEqual(p.rows("SELECT id FROM t"), [(1,), (4,)])
        out, _ = self.restored()
        self.assertEqual(door.plain_rows(out, "SELECT id FROM t"), [(1,), (4,)])
        self.assertSameBytes(self.db, out)

    def test_an_ambiguous_put_is_reconciled(self):
        """The PUT timed out but arrived: the application was told it failed, so no restore may show it after the next commit."""
        p = self.watched_sync(sync_timeout="400ms")
        p.sql("INSERT INTO t VALUES(1, 'in')")
        armed = [True]

        def fault(method, path):
            return ("lose",) if armed[0] and method in ("PUT", "GET", "HEAD") else None

        self.proxy.fault = fault
        failed = False
        try:
            p.sql("INSERT INTO t VALUES(2, 'ambiguous')")
        except door.SqlError:
            failed = True
        armed[0] = False

        def works():
            try:
                p.sql("INSERT INTO t VALUES(3, 'in')")
                return True
            except door.SqlError:
                return False

        self.eventually(works, what="a commit after it", every=0.2)
        rows = p.rows("SELECT id FROM t")
        self.assertEqual(rows, [(1,), (3,)] if failed else [(1,), (2,), (3,)])
        out, at = self.restored()
        self.assertEqual(door.plain_rows(out, "SELECT id FROM t"), rows)
        self.assertSameBytes(self.db, out)
        # What was refused is taken back: no TXID shows it, and nothing is left over in the replica.
        url = self.s3.url("app")
        self.eventually(lambda: p.sql("SELECT walrust_verify(?)", url).endswith("(all good)"), what="a clean replica", every=0.2)
        shown = set()
        for txid in range(2, at + 1):
            try:
                out, _ = self.restore(url, point=txid, env=self.s3.env())
            except door.SqlError as error:
                self.assertRegex(str(error), "not separately restorable")
                continue
            has_table = door.plain_rows(out, "SELECT count(*) FROM sqlite_schema") == [(1,)]
            shown.add(tuple(door.plain_rows(out, "SELECT id FROM t")) if has_table else ())
        self.assertLessEqual(shown, {(), ((1,),), tuple(rows)} | (set() if failed else {((1,), (2,))}))

    def test_an_ambiguous_put_and_a_restart(self):
        p = self.watched_sync(sync_timeout="400ms")
        p.sql("INSERT INTO t VALUES(1, 'in')")
        self.proxy.fault = lambda method, path: ("lose",) if method in ("PUT", "GET", "HEAD") else None
        try:
            p.sql("INSERT INTO t VALUES(2, 'ambiguous')")
        except door.SqlError:
            pass
        p.kill()
        self.proxy.fault = None
        q = self.peer(env=self.s3.env()).open(self.db)
        q.watch(self.s3.url("app", self.proxy.endpoint), durability="sync")
        q.sql("INSERT INTO t VALUES(3, 'in')")
        out, _ = self.restored()
        self.assertEqual(door.plain_rows(out, "SELECT id FROM t"), q.rows("SELECT id FROM t"))
        self.assertSameBytes(self.db, out)

    def test_concurrent_committers(self):
        p = self.watched_sync()
        result = p.code("""
errors = []
def work(n):
    c = connect(args['db'])
    try:
        for i in range(8):
            while True:
                try:
                    c.execute('INSERT INTO t(v) VALUES(?)', (f'{n}:{i}',))
                    break
                except Exception as e:
                    if 'locked' not in str(e):
                        raise
    except Exception as e:
        errors.append(str(e))
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
result = errors
""", db=self.db)
        self.assertEqual(result, [])
        out, _ = self.restored()
        self.assertEqual(door.plain_rows(out, "SELECT count(*) FROM t"), [(32,)])

    def test_savepoints_spills_and_rollbacks_in_sync_mode(self):
        p = self.watched_sync()
        p.rows("PRAGMA cache_size=5")
        for turn in range(4):
            p.rows("BEGIN")
            p.many("INSERT INTO t(v) VALUES(?)", [("s" * 800,) for _ in range(100)])
            p.rows("SAVEPOINT a")
            p.rows("DELETE FROM t WHERE id % 2")
            p.rows("ROLLBACK TO a")
            p.rows("ROLLBACK" if turn == 2 else "COMMIT")
            out, _ = self.restored()
            self.assertSameBytes(self.db, out)
            self.assertSound(out)


class WalrustSync(door.DoorTest):
    """walrust_sync: durable when it returns, an error when it cannot be."""

    def test_it_waits_for_earlier_commits_only(self):
        p, db, url = self.watched(interval="2s")
        for i in range(5):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
            txid = p.sync()
            out, at = self.restore(url)
            self.assertEqual(at, txid)
            self.assertSameBytes(db, out)

    def test_nothing_to_do_returns_at_once(self):
        p, db, url = self.watched(interval="5s")
        txid = p.sync()
        begin = time.monotonic()
        for _ in range(20):
            self.assertEqual(p.sync(), txid)
        self.assertLess(time.monotonic() - begin, 1)

    def test_timeout(self):
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        p = self.peer(env=s3.env()).open(self.path("a.db"))
        p.watch(s3.url("app", proxy.endpoint))
        p.sql("CREATE TABLE t(v)")
        p.sync()
        proxy.down = True
        p.sql("INSERT INTO t VALUES(1)")
        begin = time.monotonic()
        with self.assertRaises(door.SqlError) as caught:
            p.sql("SELECT walrust_sync(0.5)")
        self.assertErrorLine(str(caught.exception), "walrust_sync", "not in the replica")
        self.assertLess(abs(time.monotonic() - begin - 0.5), 1)
        proxy.down = False
        p.sync(60)

    def test_inside_an_open_transaction(self):
        """What is not committed cannot be durable: an answer at once, not a wait for oneself."""
        p, db, url = self.watched()
        before = p.sync()
        p.rows("BEGIN")
        p.sql("INSERT INTO t(v) VALUES('open')")
        begin = time.monotonic()
        try:
            self.assertEqual(p.sync(5), before)
        except door.SqlError as error:
            self.assertErrorLine(str(error), "walrust_sync", "transaction")
        self.assertLess(time.monotonic() - begin, 4)
        p.rows("COMMIT")
        self.assertEqual(p.sync(), before + 1)


class Interval(door.DoorTest):
    def test_first_commit_after_quiet_leaves_at_once_and_load_is_paced(self):
        p, db, url = self.watched(interval="1s")
        p.sync()
        time.sleep(1.2)
        begin = time.monotonic()
        before = len(door.ltx_files(url, 0))
        p.sql("INSERT INTO t(v) VALUES('quiet')")
        self.eventually(lambda: len(door.ltx_files(url, 0)) > before, timeout=5, what="the first file", every=0.002)
        self.assertLess(time.monotonic() - begin, 0.5)

    def test_uploads_are_as_far_apart_as_the_interval_says(self):
        """The same steady load: about one upload a second with 1s, as many as there is time for with 0s."""
        uploads = {}
        for interval in ("1s", "0s"):
            p, db, url = self.watched(self.path(f"{interval}.db"), self.path(f"r{interval}"), interval=interval)
            p.sync()
            before = p.status()["txid"]
            p.code("""
end = time.time() + 2.2
while time.time() < end:
    conns['main'].execute('INSERT INTO t(v) VALUES(1)')
    time.sleep(0.01)
""")
            uploads[interval] = p.status()["replicated_txid"] - before
            p.end()
        self.assertIn(uploads["1s"], (1, 2, 3))
        self.assertGreater(uploads["0s"], 10)

    def test_a_quiet_replica_is_left_alone(self):
        p, db, url = self.watched(interval="0s", levels=["100ms"], snapshot_interval="300ms")
        p.sync()
        time.sleep(2)
        before = {k for k in door.tree(url) if k.endswith(".ltx")}
        time.sleep(1.5)
        self.assertEqual({k for k in door.tree(url) if k.endswith(".ltx")}, before)


class Outage(door.DoorTest):
    """Commits go on at the same speed, memory and disk stay bounded, and all arrives when the store is back.

    A host's hour can't be simulated, since its commits are real; what an hour does to the shipper can: its waits are
    shortened so that the outage holds as many tries as an hour with the default waits (cooldown 60 s: 60 trials).
    (WALRUST_ROUNDS=900 is the hour itself.)
    """

    MEASURE = """
c = conns['main']
# How many took so many microseconds: a list of all of them would be the memory that is measured.
took, commits, end = [0] * 50001, 0, time.time() + args['seconds']
while time.time() < end:
    t = time.perf_counter()
    c.execute("INSERT INTO t(v) VALUES(hex(randomblob(200)))")
    took[min(50000, int((time.perf_counter() - t) * 1e6))] += 1
    commits += 1
    if commits % 50 == 0:
        c.execute("DELETE FROM t WHERE id < (SELECT max(id) FROM t) - 5000")
    time.sleep(0.001)
result = took
"""

    def measure(self, p, seconds):
        return collections.Counter({us: n for us, n in enumerate(p.code(self.MEASURE, seconds=seconds)) if n})

    @pytest.mark.campaign
    def test_latency_and_memory_without_a_replica(self):
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        p = self.peer(env=s3.env()).open(self.path("a.db"))
        p.rows("PRAGMA synchronous=NORMAL")
        seconds = door.rounds(4)
        cooldown = max(50, min(1000, seconds * 1000 // 70))
        p.watch(s3.url("app", proxy.endpoint), retry={"base": "5ms", "max": "50ms", "breaker_cooldown": f"{cooldown}ms"})
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.sync()
        half = min(seconds / 2, 100)
        with_store = self.measure(p, half)
        p.sync(120)
        proxy.down = True
        before = len(proxy.seen)
        without = self.measure(p, seconds / 4)
        memory = p.rss_kb()
        without += self.measure(p, seconds * 3 / 4)
        grown = p.rss_kb() - memory
        row, trials = p.status(), len(proxy.seen) - before
        proxy.down = False
        with_store += self.measure(p, half)
        txid = p.sync(240)

        def at(times, q):
            left = int(times.total() * q)
            for us in sorted(times):
                left -= times[us]
                if left < 0:
                    return us

        print(f"\noutage of {seconds} s, {trials} requests refused (an hour's 60 trials and more), {without.total()} commits: "
              f"with the store median {at(with_store, .5):.0f} us, p99 {at(with_store, .99):.0f} us; without it "
              f"{at(without, .5):.0f} us, {at(without, .99):.0f} us: p99 x {at(without, .99) / at(with_store, .99):.2f}; memory "
              f"{memory} KB {grown:+} KB; WAL {row['wal_bytes']} bytes, spool {row['spool_bytes']} bytes", flush=True)
        self.assertEqual(row["state"], "paused")
        self.assertLess(at(without, .5), at(with_store, .5) * 1.5 + 50)
        self.assertLess(at(without, .99), at(with_store, .99) * 3 + 2000)
        self.assertLess(grown, 6000)
        if door.ROUNDS > 1:
            self.assertGreater(trials, 60)
        out, at_txid = self.restore(s3.url(), env=s3.env())
        self.assertEqual(at_txid, txid)
        self.assertSameBytes(self.path("a.db"), out)

    def test_spool_limit(self):
        """At the limit commits still succeed, the state says so, no disk is taken beyond it, and a fresh snapshot follows."""
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        p = self.peer(env=s3.env()).open(self.path("a.db"))
        p.watch(s3.url("app", proxy.endpoint), spool_limit="2MiB",
                retry={"base": "20ms", "max": "200ms", "breaker_cooldown": "500ms"})
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.sync()
        proxy.down = True
        p.sql("INSERT INTO t(v) VALUES('the last that is kept')")
        for n in range(150):
            p.many("INSERT INTO t(v) VALUES(?)", [(os.urandom(8000),) for _ in range(20)])
        row = self.eventually(lambda: (lambda r: r if r["state"] == "failed" else None)(p.status()), what="the state tells")
        self.assertErrorLine(row["last_error"], "spool_limit", "2097152", "snapshot")
        with self.assertRaises(door.SqlError) as caught:
            p.sync(20)
        self.assertErrorLine(str(caught.exception), "walrust_sync", "spool_limit")
        waiting = door.file_bytes(self.path("a.db-walrust"), lambda f: f.split(os.sep)[-2] in ("open", "pending"))
        self.assertLess(waiting, 4 << 20)
        self.assertLess(os.path.getsize(self.path("a.db-wal")), 12 << 20)
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 3001)
        proxy.down = False
        self.eventually(lambda: p.status()["state"] == "streaming", timeout=60, what="recovery by itself")
        txid = p.sync(60)
        out, at = self.restore(s3.url(), env=s3.env())
        self.assertEqual(at, txid)
        self.assertSameBytes(self.path("a.db"), out)
        report = p.sql("SELECT walrust_verify(?)", s3.url())
        self.assertIn("Exit code: 0", report)


class Disk(door.DoorTest):
    """The spool's disk in trouble: the application's commits behave as without us."""

    def test_spool_deleted_while_running(self):
        p, db, url = self.watched(interval="0s", spool_dir=self.path("spool"))
        p.sync()
        door.remove_tree(self.path("spool"))
        for i in range(20):
            p.sql("INSERT INTO t(v) VALUES(?)", "x" * 500)

        def healed():
            try:
                txid = p.sync(5)
                out, at = self.restore(url)
                return at == txid and door.image(out) == door.image(db)
            except door.SqlError:
                p.sql("INSERT INTO t(v) VALUES('poke')")
                return False

        self.eventually(healed, timeout=40, what="recovery by itself", every=0.3)

    def test_spool_on_a_full_disk(self):
        """A tiny tmpfs holds the spool and, here, is full: commits succeed, the state tells, and it heals."""
        mount = self.path("small")
        os.mkdir(mount)
        if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=256k tmpfs {mount} 2>/dev/null") != 0:
            self.skipTest("needs to mount a tmpfs")
        self.addCleanup(os.system, f"umount -l {mount}")
        hook = door.Hook(self)
        p, db, url = self.watched(interval="0s", spool_dir=os.path.join(mount, "spool"), webhooks=[{"url": hook.url}])
        p.sync()
        filler = os.path.join(mount, "filler")
        with open(filler, "wb", buffering=0) as f:
            try:
                while f.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        for i in range(10):
            p.sql("INSERT INTO t(v) VALUES(?)", "y" * 20000)
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 10)
        row = self.eventually(lambda: (lambda r: r if r["last_error"] else None)(p.status()), what="the state tells")
        self.assertErrorLine(row["last_error"], "space|full")
        self.eventually(lambda: p.status()["state"] == "failed", what="the state")
        # And goes on telling, in state and webhook, as long as nothing has changed.
        for i in range(20):
            p.sql("INSERT INTO t(v) VALUES('more')")
            self.assertEqual(p.status()["state"], "failed")
            time.sleep(0.1)
        self.assertRegex(self.eventually(lambda: hook.events("upload_error"), what="a webhook")[0]["message"], "space|full")
        os.unlink(filler)
        self.heals(p, db, url)
        self.assertEqual(p.status()["state"], "streaming")

    def test_a_file_in_the_spools_place(self):
        p, db, url = self.watched(interval="0s")
        p.sync()
        spool = db + "-walrust"
        os.rename(spool, self.path("moved"))
        with open(spool, "w") as f:
            f.write("a file")
        for i in range(10):
            p.sql("INSERT INTO t(v) VALUES(?)", "y" * 20000)
        row = self.eventually(lambda: (lambda r: r if r and r["state"] == "failed" else None)(p.status()), what="the state tells")
        self.assertErrorLine(row["last_error"], "app.db-walrust")
        os.unlink(spool)
        self.heals(p, db, url)

    def test_the_spools_position_lost(self):
        hook = door.Hook(self)
        for how in (os.unlink, lambda path: os.truncate(path, 0)):
            p, db, url = self.watched(self.path(f"{how.__name__}.db"), self.path(f"replica of {how.__name__}"),
                                      interval="0s", webhooks=[{"url": hook.url}])
            p.sync()
            gaps = len(hook.events("history_gap"))
            how(os.path.join(db + "-walrust", "position.json"))
            p.sql("INSERT INTO t(v) VALUES('after it')")

            def arrived():
                out, _ = self.restore(url)
                return door.image(out) == door.image(db)

            self.eventually(arrived, timeout=20, what="recovery without a call", every=0.3)
            self.eventually(lambda: len(hook.events("history_gap")) > gaps, what="history_gap")
            self.assertEqual(p.status()["state"], "streaming")

    def small_disk(self, size):
        mount = self.path("small")
        os.mkdir(mount)
        if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size={size} tmpfs {mount} 2>/dev/null") != 0:
            self.skipTest("needs to mount a tmpfs")
        self.addCleanup(os.system, f"umount -l {mount}")
        return mount

    def heals(self, p, db, url):
        def healed():
            try:
                p.sql("INSERT INTO t(v) VALUES('poke')")
                txid = p.sync(5)
                out, at = self.restore(url)
                return at == txid and door.image(out) == door.image(db)
            except door.SqlError:
                return False

        self.eventually(healed, timeout=60, what="recovery by itself", every=0.3)
        self.eventually(lambda: p.status()["last_error"] is None, what="the state tells that it is over")

    def test_spool_on_a_disk_that_becomes_read_only(self):
        mount = self.small_disk("8m")
        spool = os.path.join(mount, "spool")
        p, db, url = self.watched(interval="0s", spool_dir=spool)
        p.sync()
        # A bind mount: what is open for writing keeps the disk itself from becoming read-only.
        self.assertEqual(os.system(f"mount --bind {spool} {spool} && mount -o remount,bind,ro {spool}"), 0)
        self.addCleanup(os.system, f"umount -l {spool} 2>/dev/null")
        for i in range(10):
            p.sql("INSERT INTO t(v) VALUES(?)", "y" * 20000)
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 10)
        row = self.eventually(lambda: (lambda r: r if r["last_error"] else None)(p.status()), what="the state tells")
        self.assertErrorLine(row["last_error"], "read-only")
        self.assertEqual(os.system(f"mount -o remount,bind,rw {spool}"), 0)
        self.heals(p, db, url)

    def test_the_databases_own_disk_is_full(self):
        """The application gets what it gets without us, SQLITE_FULL; what it committed before and after is replicated."""
        mount = self.small_disk("4m")
        db, url = os.path.join(mount, "app.db"), self.path("r")
        p, _, _ = self.watched(db, url, interval="0s")
        p.sync()
        filler = os.path.join(mount, "filler")
        with open(filler, "wb", buffering=0) as f:
            try:
                while f.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        with self.assertRaises(door.SqlError) as caught:
            for i in range(200):
                p.sql("INSERT INTO t(v) VALUES(?)", "z" * 20000)
        self.assertRegex(str(caught.exception), "full|I/O")
        count = p.sql("SELECT count(*) FROM t")
        os.unlink(filler)
        self.heals(p, db, url)
        self.assertGreater(p.sql("SELECT count(*) FROM t"), count)
        self.assertSound(self.restore(url)[0])

    def test_replica_directory_on_a_full_disk(self):
        mount = self.path("small")
        os.mkdir(mount)
        if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=1m tmpfs {mount} 2>/dev/null") != 0:
            self.skipTest("needs to mount a tmpfs")
        self.addCleanup(os.system, f"umount -l {mount}")
        db, url = self.path("app.db"), os.path.join(mount, "r")
        p = self.peer().open(db)
        p.watch(url, interval="0s", retry={"base": "10ms", "max": "100ms", "breaker_cooldown": "200ms"})
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        filler = os.path.join(mount, "filler")
        with open(filler, "wb") as f:
            f.write(b"x" * 900_000)
        for i in range(10):
            p.sql("INSERT INTO t(v) VALUES(randomblob(50000))")
        self.eventually(lambda: p.status()["last_error"], what="the state tells")
        os.system(f"mount -o remount,size=20m {mount}")
        txid = p.sync(60)
        out, at = self.restore(url)
        self.assertEqual(at, txid)
        self.assertSameBytes(db, out)


if __name__ == "__main__":
    unittest.main()
