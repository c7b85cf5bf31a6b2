"""Stop and start: nothing acknowledged is lost, nothing restored is stale or mixed. (Kills: test_kill.py.)"""

import os
import unittest

import door

class Restart(door.DoorTest):
    def check(self, p, db, url):
        txid = p.sync()
        out, at = self.restore(url)
        self.assertEqual(at, txid)
        self.assertSameBytes(db, out)
        return txid

    def again(self, db, url, **options):
        p = self.peer().open(db)
        p.watch(url, **options)
        return p

    def test_clean_stop_and_start(self):
        p, db, url = self.watched()
        last = 0
        for turn in range(5):
            p.many("INSERT INTO t(v) VALUES(?)", [("x" * 300,) for _ in range(20)])
            if turn % 2:
                self.check(p, db, url)
            p.end()
            p = self.again(db, url)
            p.sql("INSERT INTO t(v) VALUES('next')")
            now = self.check(p, db, url)
            self.assertGreater(now, last)
            last = now

    def test_a_restart_does_not_upload_the_database_again(self):
        p, db, url = self.watched()
        p.sql("INSERT INTO t(v) VALUES(randomblob(3000000))")
        p.sync()
        p.end()
        before = {f[3] for f in door.ltx_files(url)}
        p = self.again(db, url)
        p.sql("INSERT INTO t(v) VALUES('small')")
        self.check(p, db, url)
        added = [f[3] for f in door.ltx_files(url) if f[3] not in before]
        self.assertLess(sum(os.path.getsize(f) for f in added), 200_000)

    def test_closing_the_last_connection_loses_nothing(self):
        """SQLite deletes the WAL at the last close; what was not yet shipped is in the spool."""
        p, db, url = self.watched(interval="30s")
        p.sync()
        p.many("INSERT INTO t(v) VALUES(?)", [("late" * 100,) for _ in range(50)])
        p.end()
        p = self.again(db, url)
        self.check(p, db, url)

    def test_closed_then_opened_in_one_process(self):
        p, db, url = self.watched()
        for turn in range(4):
            p.sql("INSERT INTO t(v) VALUES(?)", turn)
            p.close()
            p.open(db)
            p.sql("SELECT walrust_watch(?)", url)
        self.check(p, db, url)

    def test_written_without_the_extension_in_between(self):
        """Litestream's silent loss: the watcher stops, the application writes on, SQLite's own checkpoint restarts the WAL."""
        for rows in (3, 400, 5000):
            with self.subTest(rows=rows):
                db, url = self.path(f"app{rows}.db"), self.path(f"r{rows}")
                p, _, _ = self.watched(db, url)
                p.many("INSERT INTO t(v) VALUES(?)", [("a" * 500,) for _ in range(300)])
                p.sync()
                p.end()
                q = self.peer(so=None).open(db)
                for i in range(rows):
                    q.sql("INSERT INTO t(v) VALUES(?)", "without" * 50)
                q.end()
                p = self.again(db, url)
                p.sql("INSERT INTO t(v) VALUES('back')")
                self.check(p, db, url)
                p.end()

    def test_written_without_the_extension_and_the_wal_left(self):
        p, db, url = self.watched()
        p.many("INSERT INTO t(v) VALUES(?)", [("a" * 500,) for _ in range(100)])
        p.sync()
        holder = self.peer(so=None).open(db)
        holder.rows("SELECT count(*) FROM t")
        p.end()
        for i in range(1500):
            holder.sql("INSERT INTO t(v) VALUES(?)", "b" * 400)
        holder.kill()
        p = self.again(db, url)
        self.check(p, db, url)
        p.sql("INSERT INTO t(v) VALUES('back')")
        self.check(p, db, url)

    def test_writes_of_a_loaded_process_that_does_not_watch(self):
        """Another process has the extension but says no watch: its commits are found by the next watcher."""
        p, db, url = self.watched()
        p.sync()
        p.end()
        q = self.peer().open(db)
        q.many("INSERT INTO t(v) VALUES(?)", [("c" * 700,) for _ in range(2000)])
        q.end()
        p = self.again(db, url)
        self.check(p, db, url)

    def test_local_state_lost(self):
        """The spool directory is deleted between two runs: the database's checksum is attested by the replica."""
        import shutil

        p, db, url = self.watched()
        p.many("INSERT INTO t(v) VALUES(?)", [("a" * 500,) for _ in range(100)])
        txid = p.sync()
        p.end()
        shutil.rmtree(db + "-walrust", ignore_errors=True)
        p = self.again(db, url)
        p.sql("INSERT INTO t(v) VALUES('back')")
        self.assertEqual(self.check(p, db, url), txid + 1)

    def test_replica_ahead_of_the_database(self):
        """Power loss at synchronous=NORMAL: the local file is older than the replica. TXIDs are never used twice."""
        import shutil

        p, db, url = self.watched()
        p.sql("INSERT INTO t(v) VALUES('old')")
        p.sync()
        p.end()
        shutil.copy(db, self.path("older.db"))
        state = self.path("older-state")
        if os.path.isdir(db + "-walrust"):
            shutil.copytree(db + "-walrust", state)
        p = self.again(db, url)
        for i in range(5):
            p.sql("INSERT INTO t(v) VALUES('lost by the power cut')")
        ahead = p.sync()
        kept = door.image(db)
        p.kill()
        for suffix in ("-wal", "-shm"):
            if os.path.exists(db + suffix):
                os.unlink(db + suffix)
        shutil.copy(self.path("older.db"), db)
        p = self.peer().open(db)
        try:
            p.watch(url)
        except door.SqlError as error:
            self.assertErrorLine(str(error), "walrust_watch")
            p.watch(url, takeover=True)
        p.sql("INSERT INTO t(v) VALUES('other history')")
        now = self.check(p, db, url)
        self.assertGreater(now, ahead)
        out, _ = self.restore(url, point=ahead)
        self.assertEqual(door.image(out), kept)


if __name__ == "__main__":
    unittest.main()
