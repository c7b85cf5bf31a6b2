"""Stop and start: nothing acknowledged is lost, nothing restored is stale or mixed. (Kills: test_kill.py.)"""

import os
import shutil
import time
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

    def test_killed_between_its_first_commit_and_the_note_of_it(self):
        """The file is as the last close left it, and all that came after is in the WAL: nothing is missing."""
        hook = door.Hook(self)
        db, url = self.path("app.db"), self.path("replica")
        p = self.peer().open(db)
        p.watch(url)
        p.sql("CREATE TABLE t(v)")
        p.sync()
        p.end()
        p = self.peer(so=door.CRASH_SO, env={"WALRUST_CRASH": "follow.before-position"}).open(db)
        p.watch(url)
        with self.assertRaises(AssertionError):  # (the process is gone)
            p.sql("INSERT INTO t VALUES('acknowledged by nobody, and in the WAL')")
        p = self.again(db, url, webhooks=[{"url": hook.url}])
        p.sql("INSERT INTO t VALUES('next')")
        self.check(p, db, url)
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 2)
        self.assertEqual([e["message"] for e in hook.events("history_gap")], [])

    def test_changes_that_are_alike_on_two_pages_are_no_proof_of_none(self):
        """A row put into two like tables, unseen: the XOR of the pages' CRCs, as LTX has it, stays the same."""
        p, db, url = self.watched(schema="CREATE TABLE a(x); CREATE TABLE b(x); INSERT INTO a VALUES(1); INSERT INTO b VALUES(1)")
        self.check(p, db, url)

        def unseen(text):
            p.end()
            stranger = door.plain_connect(db)
            for table in "ab":
                stranger.execute(f"INSERT INTO {table} VALUES(?)", (text,))
            stranger.close()

        unseen("once")
        p = self.again(db, url)
        self.check(p, db, url)
        # The same for a machine that knows of the replica only what is in it.
        unseen("and again")
        shutil.rmtree(db + "-walrust")
        q = self.peer().open(db)
        with self.assertRaises(door.SqlError) as caught:
            q.watch(url)
        self.assertErrorLine(str(caught.exception), "another database's history", "takeover")
        q.watch(url, takeover=True)
        self.check(q, db, url)

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

    def test_a_commit_that_nobody_here_can_see_is_not_acknowledged(self):
        """Another process leaves a commit in the WAL while this one has the database closed: a sync does not say that it has it."""
        p, db, url = self.watched()
        p.sync()
        p.open(":memory:", conn="aside")
        p.close()
        stranger = self.peer(so=None).open(db)
        stranger.sql("INSERT INTO t(v) VALUES('unseen')")
        stranger.kill()
        with self.assertRaisesRegex(door.SqlError, "walrust_sync: .*not open"):
            p.sync(1, conn="aside")
        self.assertGreater(p.rows("SELECT pending_bytes FROM walrust_status", conn="aside")[0][0], 0)
        p.open(db)
        self.check(p, db, url)

    def test_commits_of_a_killed_process_are_found_before_anything_is_read(self):
        """Opened, and nothing read yet: what is in the WAL reaches the replica by itself."""
        p, db, url = self.watched(interval="0s")
        p.sync()
        stranger = self.peer(so=None).open(db)
        stranger.rows("SELECT count(*) FROM t")
        p.end()
        stranger.sql("INSERT INTO t(v) VALUES('left behind')")
        stranger.kill()
        p = self.peer().open(":memory:", conn="aside")
        p.open(db)
        p.watch(url, interval="0s")
        p.open(db, conn="unread")
        p.close()

        def there():
            out, _ = self.restore(url)
            return ("left behind",) in door.plain_rows(out, "SELECT v FROM t")

        self.eventually(there, timeout=15, what="the commit in the replica", every=0.3)

    def test_a_spool_deleted_while_the_database_was_closed(self):
        """What is in the replica is this process's own: it begins anew over it when the app opens the database again."""
        p, db, url = self.watched()
        p.sync()
        p.open(":memory:", conn="aside")
        p.close()
        door.remove_tree(db + "-walrust")
        time.sleep(1.5)
        p.open(db)
        p.sql("INSERT INTO t(v) VALUES('after')")
        self.eventually(lambda: p.status()["state"] == "streaming", what="streaming again")
        self.check(p, db, url)

    def test_whose_replica_it_was_is_not_forgotten_over_a_failure(self):
        """The lease was taken from another writer, and then the listing failed or the process was killed: the next try finds its
        own name in the lease, and what the other wrote is still not its own."""
        import json

        p, db, url = self.watched()
        p.sync()
        p.end()
        os.mkdir(self.path("other"))
        copy = self.path("other/app.db")
        shutil.copy(db, copy)
        q = self.again(copy, url)
        q.sql("INSERT INTO t(v) VALUES('of the other')")
        q.sync()
        q.end()
        lease = os.path.join(url, "walrust", "lease.json")
        with open(lease) as f:
            state = json.load(f)
        with open(db + "-walrust/writer") as f:
            state.update(writer=f.read().split()[0], session="f" * 16, after=state["holder"], ends=int(time.time() * 1000) + 60000)
        with open(lease, "w") as f:
            json.dump(state, f)
        p = self.peer().open(db)
        p.sql("INSERT INTO t(v) VALUES('of the first')")
        with self.assertRaisesRegex(door.SqlError, "holds another database's history"):
            p.watch(url)
        out, _ = self.restore(url)
        self.assertIn(("of the other",), door.plain_rows(out, "SELECT v FROM t"))

    def test_local_state_lost(self):
        """The spool directory is deleted between two runs: the database's checksum is attested by the replica."""
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
