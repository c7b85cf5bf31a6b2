"""locking_mode=EXCLUSIVE: SQLite takes no locks in the WAL, and resets it when it likes. No commit is missed all the same."""

import contextlib
import os
import sqlite3
import subprocess
import time
import unittest

import door

MODULES = ("sqlite3", "apsw")


class Exclusive(door.DoorTest):
    """In both forms: with the wal-index in shared memory, and with one that the connection keeps to itself. The latter comes of
    setting the mode before the first read: walrust reads at an open, so by ATTACH on a connection that has the mode."""

    FORMS = ("shared", "private")
    SCHEMA = {"shared": "main", "private": "x"}

    def begin(self, form, module="sqlite3", name="app", **env):
        """A process that streams a database and has it for itself. Gives (peer, db, replica)."""
        db, replica = self.path(f"{name}.db"), self.path(f"{name}-replica")
        p = self.peer(module=module, env={"WALRUST_REPLICA": replica, "WALRUST_INTERVAL": "0s", **env}).open(db)
        p.sql("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
        p.sync()
        return self.enter(p, db, form), db, replica

    def enter(self, p, db, form):
        if form == "private":
            p.close()
            p.open(":memory:")
            p.sql("PRAGMA locking_mode=EXCLUSIVE")
            p.sql("ATTACH ? AS x", db)
        else:
            self.assertEqual(p.sql("PRAGMA locking_mode=EXCLUSIVE"), "exclusive")
        p.sql("INSERT INTO t(v) VALUES('mine')")
        self.assertEqual(os.path.exists(db + "-shm"), form == "shared")
        self.assertGreater(os.path.getsize(db + "-wal"), 0)
        with contextlib.closing(sqlite3.connect(db, timeout=0)) as other:
            self.assertRaisesRegex(sqlite3.OperationalError, "locked", other.execute, "SELECT count(*) FROM t")
        return p

    def check(self, p, db, replica):
        txid = p.sync()
        restored, at = self.restore(replica)
        self.assertEqual(at, txid)
        self.assertSameBytes(db, restored)
        self.assertSound(restored)
        return txid

    def snapshots(self, replica):
        return len(door.ltx_files(replica, level=9))

    def assertUnbroken(self, p, replica, before):
        """No gap: no further snapshot, and a TXID for each number."""
        self.assertEqual(self.snapshots(replica), before)
        txids = [lo for _, lo, hi, _ in door.ltx_files(replica, level=0)]
        self.assertEqual(txids, list(range(txids[0], txids[0] + len(txids))))

    def test_each_commit_is_followed(self):
        for module in MODULES:
            for form in self.FORMS:
                with self.subTest(form=form, module=module):
                    p, db, replica = self.begin(form, module, name=f"{module}-{form}")
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
                    self.assertUnbroken(p, replica, before)

    def test_spills_rollbacks_and_vacuum(self):
        for form in self.FORMS:
            with self.subTest(form=form):
                p, db, replica = self.begin(form, name=form)
                before = self.snapshots(replica)
                p.sql(f"PRAGMA {self.SCHEMA[form]}.cache_size=10")
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
                p.sql("SAVEPOINT a")
                p.sql("DELETE FROM t WHERE id % 2")
                p.sql("ROLLBACK TO a")
                p.sql("COMMIT")
                self.check(p, db, replica)
                p.sql("DELETE FROM t WHERE id > 100")
                p.sql(f"VACUUM {self.SCHEMA[form]}")
                self.check(p, db, replica)
                self.assertUnbroken(p, replica, before)

    def test_resets_that_nobody_can_refuse(self):
        """Thousands of commits over a WAL that is reset every few pages, with the sealer far behind or not."""
        for module in MODULES:
            for form in self.FORMS:
                with self.subTest(form=form, module=module):
                    p, db, replica = self.begin(form, module, name=f"{module}-{form}", WALRUST_INTERVAL="300ms")
                    before = self.snapshots(replica)
                    p.sql("PRAGMA wal_autocheckpoint=7")
                    for i in range(40):
                        for _ in range(25):
                            p.sql("INSERT INTO t(v) VALUES(?)", "r" * self.random.randrange(9000))
                        mode = self.random.choice(("PASSIVE", "FULL", "RESTART", "TRUNCATE"))
                        p.sql(f"PRAGMA wal_checkpoint({mode})")
                    self.check(p, db, replica)
                    self.assertUnbroken(p, replica, before)

    def test_back_to_normal_and_again(self):
        p, db, replica = self.begin("shared")
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
        self.assertUnbroken(p, replica, before)

    def test_closed_and_opened_again(self):
        for form in self.FORMS:
            with self.subTest(form=form):
                p, db, replica = self.begin(form, name=form)
                before = self.snapshots(replica)
                for _ in range(3):
                    p.sql("INSERT INTO t(v) VALUES('before the close')")
                    p.close()
                    self.assertFalse(os.path.exists(db + "-wal"))
                    restored, _ = self.restore(replica)
                    self.assertSameBytes(db, restored)
                    p.open(db)
                    self.enter(p, db, form)
                self.check(p, db, replica)
                self.assertUnbroken(p, replica, before)

    def test_killed(self):
        """What was committed is in the WAL; the next process goes on from there, whoever has the database then."""
        for form in self.FORMS:
            with self.subTest(form=form):
                p, db, replica = self.begin(form, name=form)
                before = self.snapshots(replica)
                for _ in range(50):
                    p.sql("INSERT INTO t(v) VALUES('kept')")
                p.kill()
                q = self.peer(env={"WALRUST_REPLICA": replica, "WALRUST_INTERVAL": "0s"}).open(db)
                self.assertEqual(q.sql("SELECT count(*) FROM t WHERE v='kept'"), 50)
                self.check(q, db, replica)
                self.enter(q, db, form)
                self.check(q, db, replica)
                self.assertUnbroken(q, replica, before)

    def test_killed_and_entered_before_anything_was_read(self):
        p, db, replica = self.begin("private")
        before = self.snapshots(replica)
        for _ in range(50):
            p.sql("INSERT INTO t(v) VALUES('kept')")
        q = self.peer(env={"WALRUST_REPLICA": replica, "WALRUST_INTERVAL": "0s"})
        p.kill()
        q.open(":memory:")
        q.sql("PRAGMA locking_mode=EXCLUSIVE")
        q.sql("ATTACH ? AS x", db)
        q.sql("INSERT INTO t(v) VALUES('nobody watches: only main databases are configured')")
        q.close()
        q.open(db)
        self.assertEqual(q.sql("SELECT count(*) FROM t WHERE v='kept'"), 50)
        self.check(q, db, replica)
        self.assertGreater(self.snapshots(replica), before)

    def test_a_new_file_under_the_old_name(self):
        """Nobody else can read it any more when it is seen to be new: it is read then and there. (Its first connection has not
        read when the mode is set, so keeps the wal-index to itself.)"""
        for form in self.FORMS:
            with self.subTest(form=form):
                p, db, replica = self.begin("shared", name=form)
                p.sync()
                p.close()
                for end in ("", "-wal", "-shm"):
                    if os.path.exists(db + end):
                        os.unlink(db + end)
                p.open(db)
                p.sql("PRAGMA journal_mode=WAL")
                if form == "shared":
                    p.sql("SELECT count(*) FROM sqlite_schema")
                self.assertEqual(p.sql("PRAGMA locking_mode=EXCLUSIVE"), "exclusive")
                p.sql("CREATE TABLE other(x)")
                self.assertEqual(os.path.exists(db + "-shm"), form == "shared")
                p.sql("INSERT INTO other VALUES(zeroblob(50000))")
                self.check(p, db, replica)
                self.assertEqual(p.status()["state"], "streaming")

    def test_wal_mode_entered_in_exclusive_mode(self):
        """From a rollback journal, where nothing is followed, straight into a WAL that only one connection can read."""
        p, db, replica = self.begin("shared")
        self.assertEqual(p.sql("PRAGMA journal_mode=DELETE"), "delete")
        p.sql("INSERT INTO t(v) VALUES('with a journal')")
        self.assertEqual(p.sql("PRAGMA journal_mode=WAL"), "wal")
        p.sql("INSERT INTO t(v) VALUES('with a WAL')")
        self.check(p, db, replica)
        p.sql("INSERT INTO t(v) VALUES('and another')")
        self.check(p, db, replica)
        for mode in ("delete", "truncate", "persist", "memory", "off"):
            self.assertEqual(p.sql(f"PRAGMA journal_mode={mode}"), mode)
            p.sql("INSERT INTO t(v) VALUES(?)", mode)
            # Nothing that is only in the file is acknowledged.
            with self.assertRaises(door.SqlError):
                p.sync(0.2)
            self.assertNotEqual(p.status()["state"], "streaming")
            self.assertEqual(p.sql("PRAGMA journal_mode=wal"), "wal")
            p.sql("INSERT INTO t(v) VALUES('back')")
            self.check(p, db, replica)
        p.close()
        p.open(db)
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

    def test_commit_whose_sync_failed(self):
        """It was rolled back, and stands in the WAL as if it had not been: a wal-index tells that it does not count. Where the
        connection keeps its wal-index to itself, an empty commit after it must not make us ship it."""
        shim, flag = self.path("failsync.so"), self.path("fail")
        source = os.path.join(door.ROOT, "tests", "support", "failsync.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
        for form in self.FORMS:
            with self.subTest(form=form):
                p, db, replica = self.begin(form, name=form, LD_PRELOAD=shim, FAILSYNC=flag)
                p.sql("PRAGMA synchronous=FULL")
                p.sql(f"PRAGMA {self.SCHEMA[form]}.synchronous=FULL")
                p.sql("INSERT INTO t(v) VALUES('good')")
                last = self.check(p, db, replica)
                with open(flag, "w"):
                    pass
                with self.assertRaises(door.SqlError) as caught:
                    p.sql("INSERT INTO t(v) VALUES('rolled back')")
                self.assertErrorLine(str(caught.exception), "I/O")
                os.unlink(flag)
                p.sql("BEGIN IMMEDIATE")
                p.sql("COMMIT")
                if form == "shared":
                    self.assertEqual(p.sync(), last)
                else:
                    with self.assertRaises(door.SqlError):
                        p.sync(2)
                    self.assertErrorLine(p.status()["last_error"], "failed")
                restored, at = self.restore(replica)
                self.assertEqual(at, last)
                self.assertEqual(door.plain_rows(restored, "SELECT count(*) FROM t WHERE v='rolled back'"), [(0,)])
                p.sql("INSERT INTO t(v) VALUES('good again')")
                self.check(p, db, replica)
                restored, _ = self.restore(replica)
                self.assertEqual(door.plain_rows(restored, "SELECT v FROM t ORDER BY id DESC LIMIT 2"), [("good again",), ("good",)])

    def test_spool_that_cannot_be_written(self):
        """Nothing can hold the WAL back: the gap is seen, said, and healed by itself; the program notices nothing."""
        p, db, replica = self.begin("shared")
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
        with self.assertRaises(door.SqlError):
            p.sql("INSERT INTO b.t VALUES(1)")
        row = p.status(database=b)
        self.assertErrorLine(row["last_error"], "EXCLUSIVE", "NORMAL")
        self.assertEqual(p.sql("SELECT count(*) FROM b.t"), 0)

    def test_what_must_read_the_database_says_why_it_cannot(self):
        p, db, replica = self.begin("shared")
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
