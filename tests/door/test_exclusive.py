"""locking_mode=EXCLUSIVE: SQLite takes no locks in the WAL, and resets it when it likes. No commit is missed all the same.

That is so with the wal-index in shared memory, as it is where walrust watches from the open on. A connection that sets the mode
before its first read keeps it to itself (here: ATTACH on a connection that has the mode): its commits are not followed, walrust
says so, and what is in the file is read when it closes.
"""

import contextlib
import os
import resource
import sqlite3
import time
import unittest

import door

MODULES = ("sqlite3", "apsw")


class Exclusive(door.DoorTest):
    def begin(self, module="sqlite3", name="app", **env):
        """A process that streams a database and has it for itself. Gives (peer, db, replica)."""
        db, replica = self.path(f"{name}.db"), self.path(f"{name}-replica")
        p = self.peer(module=module, env={"WALRUST_REPLICA": replica, "WALRUST_INTERVAL": "0s", **env}).open(db)
        p.sql("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
        p.sync()
        return self.enter(p, db), db, replica

    def enter(self, p, db):
        self.assertEqual(p.sql("PRAGMA locking_mode=EXCLUSIVE"), "exclusive")
        p.sql("INSERT INTO t(v) VALUES('mine')")
        self.assertLocked(db)
        return p

    def enter_privately(self, p, db):
        p.close()
        p.open(":memory:")
        p.sql("PRAGMA locking_mode=EXCLUSIVE")
        p.sql("ATTACH ? AS x", db)
        p.sql("INSERT INTO t(v) VALUES('mine')")
        self.assertFalse(os.path.exists(db + "-shm"))
        self.assertLocked(db)
        return p

    def assertLocked(self, db):
        with contextlib.closing(sqlite3.connect(db, timeout=0)) as other:
            self.assertRaisesRegex(sqlite3.OperationalError, "locked", other.execute, "SELECT count(*) FROM t")

    def check(self, p, db, replica):
        txid = p.sync()
        restored, at = self.restore(replica)
        self.assertEqual(at, txid)
        self.assertSameBytes(db, restored)
        self.assertSound(restored)
        return txid

    def snapshots(self, replica):
        return len(door.ltx_files(replica, level=9))

    def assertUnbroken(self, replica, before):
        """No gap: no further snapshot, and a file for each TXID."""
        self.assertEqual(self.snapshots(replica), before)
        txids = [lo for _, lo, hi, _ in door.ltx_files(replica, level=0)]
        self.assertEqual(txids, list(range(txids[0], txids[0] + len(txids))))

    def test_each_commit_is_followed(self):
        for module in MODULES:
            with self.subTest(module=module):
                p, db, replica = self.begin(module, name=module)
                before, last = self.snapshots(replica), p.sync()
                for i in range(20):
                    p.sql("INSERT INTO t(v) VALUES(?)", "x" * (100 + 400 * i))
                    p.sql("BEGIN IMMEDIATE")
                    p.sql("ROLLBACK")
                    p.sql("BEGIN")
                    p.sql("COMMIT")
                    self.assertEqual(p.sync(), last + 1)
                    last += 1
                self.assertEqual(p.status()["state"], "streaming")
                self.check(p, db, replica)
                self.assertUnbroken(replica, before)

    def test_spills_rollbacks_and_vacuum(self):
        p, db, replica = self.begin()
        before = self.snapshots(replica)
        p.sql("PRAGMA cache_size=10")
        p.many("INSERT INTO t(v) VALUES(?)", [("k" * 300,)] * 200)
        self.check(p, db, replica)
        p.sql("BEGIN")
        p.many("INSERT INTO t(v) VALUES(?)", [("gone" * 200,)] * 2000)
        p.sql("ROLLBACK")
        last = p.sync()
        p.sql("INSERT INTO t(v) VALUES('short')")
        self.assertEqual(self.check(p, db, replica), last + 1)
        p.sql("BEGIN")
        p.many("INSERT INTO t(v) VALUES(?)", [("s" * 900,)] * 3000)
        p.sql("DELETE FROM t WHERE id % 2")
        p.sql("COMMIT")
        self.check(p, db, replica)
        p.sql("DELETE FROM t WHERE id > 100")
        p.sql("VACUUM")
        self.check(p, db, replica)
        self.assertUnbroken(replica, before)

    def test_resets_that_nobody_can_refuse(self):
        """A WAL that is reset every few pages, with the sealer far behind."""
        for module in MODULES:
            with self.subTest(module=module):
                p, db, replica = self.begin(module, name=module, WALRUST_INTERVAL="300ms")
                before = self.snapshots(replica)
                p.sql("PRAGMA wal_autocheckpoint=7")
                for i in range(40):
                    for _ in range(25):
                        p.sql("INSERT INTO t(v) VALUES(?)", "r" * self.random.randrange(9000))
                    mode = self.random.choice(("PASSIVE", "FULL", "RESTART", "TRUNCATE"))
                    p.sql(f"PRAGMA wal_checkpoint({mode})")
                self.check(p, db, replica)
                self.assertUnbroken(replica, before)

    def test_back_to_normal_and_again(self):
        p, db, replica = self.begin()
        before = self.snapshots(replica)
        other = self.peer(env={"WALRUST_REPLICA": replica})
        for _ in range(4):
            p.sql("INSERT INTO t(v) VALUES('alone')")
            self.assertEqual(p.sql("PRAGMA locking_mode=NORMAL"), "normal")
            p.sql("INSERT INTO t(v) VALUES('shared again')")
            other.open(db)
            other.sql("INSERT INTO t(v) VALUES('of the other')")
            other.close()
            self.check(p, db, replica)
            self.assertEqual(p.sql("PRAGMA locking_mode=EXCLUSIVE"), "exclusive")
        self.check(p, db, replica)
        self.assertUnbroken(replica, before)

    def test_closed_and_opened_again(self):
        p, db, replica = self.begin()
        before = self.snapshots(replica)
        for _ in range(3):
            p.sql("INSERT INTO t(v) VALUES('before the close')")
            p.close()
            self.assertFalse(os.path.exists(db + "-wal"))
            restored, _ = self.restore(replica)
            self.assertSameBytes(db, restored)
            p.open(db)
            self.enter(p, db)
        self.check(p, db, replica)
        self.assertUnbroken(replica, before)

    def test_killed(self):
        """What was committed is in the WAL; the next process goes on from there, whoever has the database then."""
        p, db, replica = self.begin()
        before = self.snapshots(replica)
        for _ in range(50):
            p.sql("INSERT INTO t(v) VALUES('kept')")
        p.kill()
        q = self.peer(env={"WALRUST_REPLICA": replica, "WALRUST_INTERVAL": "0s"}).open(db)
        self.enter(q, db)
        self.assertEqual(q.sql("SELECT count(*) FROM t WHERE v='kept'"), 50)
        self.check(q, db, replica)
        self.assertUnbroken(replica, before)

    def test_refused_by_a_reader_and_then_given_up(self):
        """Our own reads go on when SQLite could not get the lock."""
        p, db, replica = self.begin()
        p.sql("PRAGMA locking_mode=NORMAL")
        p.sql("INSERT INTO t(v) VALUES('shared')")
        with contextlib.closing(sqlite3.connect(db, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM t").fetchone()
            p.sql("PRAGMA busy_timeout=50")
            p.sql("PRAGMA locking_mode=EXCLUSIVE")
            with self.assertRaises(door.SqlError):
                p.sql("INSERT INTO t(v) VALUES('locked')")
            p.sql("PRAGMA locking_mode=NORMAL")
        p.close()
        p.open(db)
        p.sql("INSERT INTO t(v) VALUES('goes on')")
        self.check(p, db, replica)
        self.assertEqual(p.sql("SELECT walrust_snapshot()"), p.sync())

    def test_a_new_file_under_the_old_name(self):
        """Nobody else can read it any more when it is seen to be new: it is read then and there."""
        p, db, replica = self.begin()
        p.sync()
        p.close()
        os.unlink(db)
        p.open(db)
        p.sql("PRAGMA journal_mode=WAL")
        p.sql("SELECT count(*) FROM sqlite_schema")
        self.assertEqual(p.sql("PRAGMA locking_mode=EXCLUSIVE"), "exclusive")
        p.sql("CREATE TABLE other(x)")
        p.sql("INSERT INTO other VALUES(zeroblob(50000))")
        self.check(p, db, replica)
        self.assertEqual(p.status()["state"], "streaming")

    def test_rollback_mode_under_the_lock(self):
        """Commits without a WAL are not followed, and nobody says that they are. The last close makes up for it."""
        p, db, replica = self.begin()
        for mode in ("delete", "truncate", "persist", "memory", "off"):
            p.sql("INSERT INTO t(v) VALUES('wal')")
            self.assertEqual(p.sql(f"PRAGMA journal_mode={mode}"), mode)
            p.sql("INSERT INTO t(v) VALUES(?)", mode)
            with self.assertRaises(door.SqlError):
                p.sync(0.2)
            row = p.status()
            self.assertNotEqual(row["state"], "streaming")
            self.assertErrorLine(row["last_error"], "outside of WAL mode")
            self.assertEqual(p.sql("PRAGMA journal_mode=wal"), "wal")
            p.sql("INSERT INTO t(v) VALUES('back')")
            with self.assertRaises(door.SqlError):
                p.sync(0.2)
            p.close()
            # (The first closes of a program wait until it is there; after them it leaves while the database is closed.)
            there = lambda: door.image(self.restore(replica)[0]) == door.image(db)
            self.eventually(there, what="what the close read is in the replica", every=0.2)
            p.open(db)
            self.enter(p, db)
            self.check(p, db, replica)

    def test_a_wal_index_that_is_kept_from_us(self):
        p, db, replica = self.begin()
        p.sync()
        self.enter_privately(p, db)
        for i in range(40):
            p.sql("INSERT INTO t(v) VALUES(?)", "x" * 3000)
        row = p.status()
        self.assertNotEqual(row["state"], "streaming")
        self.assertErrorLine(row["last_error"], "EXCLUSIVE")
        with self.assertRaises(door.SqlError):
            p.sync(0.2)
        p.sql("PRAGMA wal_checkpoint(TRUNCATE)")
        p.sql("INSERT INTO t(v) VALUES('after a reset')")
        with self.assertRaises(door.SqlError):
            p.sync(0.2)
        p.close()
        restored, _ = self.restore(replica)
        self.assertSameBytes(db, restored)
        p.open(db)
        self.enter(p, db)
        self.check(p, db, replica)
        self.assertEqual(p.status()["state"], "streaming")

    def test_a_wal_index_that_is_kept_from_us_and_a_kill(self):
        p, db, replica = self.begin()
        last = p.sync()
        self.enter_privately(p, db)
        for _ in range(50):
            p.sql("INSERT INTO t(v) VALUES('kept')")
        p.kill()
        self.assertEqual(self.restore(replica)[1], last)
        q = self.peer(env={"WALRUST_REPLICA": replica, "WALRUST_INTERVAL": "0s"}).open(db)
        self.assertEqual(q.sql("SELECT count(*) FROM t WHERE v='kept'"), 50)
        self.check(q, db, replica)

    def test_a_commit_over_two_files_that_fails_in_the_second(self):
        """SQLite keeps what it committed to the first, and tells nobody."""
        for enter in (self.enter, self.enter_privately):
            with self.subTest(enter=enter.__name__):
                p, db, replica = self.begin(name=enter.__name__)
                enter(p, db)
                other = db + ".other"
                p.sql("ATTACH ? AS y", other)
                p.sql("PRAGMA y.journal_mode=WAL")
                p.sql("CREATE TABLE y.b(v)")
                p.sql("PRAGMA y.wal_autocheckpoint=0")
                for _ in range(30):
                    p.sql("INSERT INTO y.b VALUES(randomblob(4000))")
                p.sql("BEGIN")
                p.many("INSERT INTO t(v) VALUES(?)", [("both" * 20,)] * 100)
                p.sql("INSERT INTO y.b VALUES(randomblob(40000))")
                limit = os.path.getsize(other + "-wal") + 9000
                p.code("import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)")
                resource.prlimit(p.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                with self.assertRaises(door.SqlError):
                    p.sql("COMMIT")
                resource.prlimit(p.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                with contextlib.suppress(door.SqlError):
                    p.sql("ROLLBACK")
                rows = p.sql("SELECT count(*) FROM t")
                try:
                    p.sync(2)
                    restored, _ = self.restore(replica)
                    self.assertEqual(door.plain_rows(restored, "SELECT count(*) FROM t"), [(rows,)])
                except door.SqlError:
                    self.assertNotEqual(p.status()["state"], "streaming")
                p.close()
                p.open(db)
                p.sql("INSERT INTO t(v) VALUES('later')")
                self.check(p, db, replica)

    def test_of_an_attached_database(self):
        """A bare PRAGMA means attached databases, too, and is told for the main one only."""
        a, b = self.path("a.db"), self.path("b.db")
        p = self.peer().open(b, "b").open(a)
        p.watch(self.path("ra"))
        p.watch(self.path("rb"), conn="b")
        p.sql("CREATE TABLE t(x)")
        p.sql("CREATE TABLE t(x)", conn="b")
        p.sync(conn="b")
        p.sql("ATTACH ? AS b", b)
        p.sql("SELECT count(*) FROM b.t")
        p.close("b")
        p.sql("PRAGMA locking_mode=EXCLUSIVE")
        p.sql("PRAGMA b.wal_autocheckpoint=5")
        for i in range(100):
            p.sql("INSERT INTO main.t VALUES(zeroblob(1000))")
            p.sql("INSERT INTO b.t VALUES(zeroblob(3000))")
        self.check(p, a, self.path("ra"))
        self.eventually(lambda: p.status(database=b)["pending_bytes"] == 0, what="all of b.db to leave")
        restored, _ = self.restore(self.path("rb"))
        self.assertSameBytes(b, restored)

    def test_unwatched_and_watched_again_under_the_lock(self):
        p, db, replica = self.begin()
        p.sql("PRAGMA locking_mode=NORMAL")
        p.sql("INSERT INTO t(v) VALUES('normal')")
        p.sync()
        p.sql("SELECT walrust_unwatch()")
        p.sql("PRAGMA locking_mode=EXCLUSIVE")
        p.sql("INSERT INTO t(v) VALUES('alone, unwatched')")
        with self.assertRaises(door.SqlError) as caught:
            p.watch(replica)
        self.assertErrorLine(str(caught.exception), "walrust_watch", "EXCLUSIVE", "NORMAL")
        p.sql("PRAGMA locking_mode=NORMAL")
        p.sql("SELECT count(*) FROM t")
        p.watch(replica)
        self.check(p, db, replica)

    def test_spool_that_cannot_be_written(self):
        """Nothing can hold the WAL back: the gap is seen, said, and healed by itself; the program notices nothing."""
        p, db, replica = self.begin()
        p.sync()
        spool = db + "-walrust"
        os.rename(os.path.join(spool, "open"), os.path.join(spool, "open-real"))
        with open(os.path.join(spool, "open"), "w"):
            pass
        p.sql("PRAGMA wal_autocheckpoint=5")
        for i in range(60):
            p.sql("INSERT INTO t(v) VALUES(zeroblob(2000))")
        os.unlink(os.path.join(spool, "open"))
        os.rename(os.path.join(spool, "open-real"), os.path.join(spool, "open"))
        for i in range(3):
            time.sleep(1.1)
            p.sql("INSERT INTO t(v) VALUES('again')")
        self.check(p, db, replica)

    def test_refused_where_commits_wait_for_the_replica(self):
        p, db, url = self.watched(durability="sync")
        with self.assertRaises(door.SqlError) as caught:
            p.sql("PRAGMA locking_mode=EXCLUSIVE")
        self.assertErrorLine(str(caught.exception), "EXCLUSIVE", "durability", "NORMAL")
        p.sql("INSERT INTO t(v) VALUES('goes on')")
        restored, _ = self.restore(url)
        self.assertSameBytes(db, restored)
        self.assertEqual(p.sql("PRAGMA locking_mode=NORMAL"), "normal")

    def test_commits_that_wait_are_refused_where_the_pragma_was_not_told(self):
        a, b = self.path("a.db"), self.path("b.db")
        p = self.peer().open(b, "b").open(a)
        p.watch(self.path("rb"), conn="b", durability="sync")
        p.sql("CREATE TABLE t(x)", conn="b")
        p.sql("ATTACH ? AS b", b)
        p.close("b")
        p.sql("PRAGMA locking_mode=EXCLUSIVE")
        for _ in range(3):
            with self.assertRaises(door.SqlError):
                p.sql("INSERT INTO b.t VALUES(1)")
        self.assertErrorLine(p.status(database=b)["last_error"], "EXCLUSIVE", "NORMAL")
        self.assertEqual(p.sql("SELECT count(*) FROM b.t"), 0)

    def test_what_must_read_the_database_says_why_it_cannot(self):
        p, db, replica = self.begin()
        for call in ("SELECT walrust_snapshot()", "SELECT walrust_watch('%s')" % self.path("elsewhere")):
            with self.assertRaises(door.SqlError) as caught:
                p.sql(call)
            self.assertErrorLine(str(caught.exception), "EXCLUSIVE", "NORMAL")
        self.assertRegex(p.sql("SELECT walrust_watch(?)", replica), "already streaming")
        self.check(p, db, replica)

    def test_watch_in_exclusive_locking_mode_is_refused(self):
        p = self.peer().open(self.path("x.db"))
        p.sql("PRAGMA locking_mode=EXCLUSIVE")
        p.sql("PRAGMA journal_mode=wal")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        with self.assertRaises(door.SqlError) as caught:
            p.watch(self.path("r"))
        self.assertErrorLine(str(caught.exception), "walrust_watch", "EXCLUSIVE")
        p.sql("INSERT INTO t(v) VALUES('goes on')")

    def test_of_an_unwatched_database(self):
        p = self.peer().open(self.path("x.db"))
        self.assertEqual(p.sql("PRAGMA locking_mode=EXCLUSIVE"), "exclusive")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")


if __name__ == "__main__":
    unittest.main()
