"""When a configured database comes to be watched: after the program's own first words, and never at its cost.

A new file keeps the page size, the key and the journal mode that the program says before its first write; an encrypted one is
streamed under configuration; a start that fails leaves no lease; a file that was replaced is not taken for the one at the path.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import unittest

import door

POOL = """
import os, sqlite3, sys, time
m = sqlite3.connect(":memory:"); m.enable_load_extension(True); m.load_extension(sys.argv[1])
sys.stdin.readline()
c = sqlite3.connect(sys.argv[2], timeout=20, isolation_level=None)
c.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
for i in range(10):
    c.execute("INSERT INTO t(v) VALUES(?)", (os.getpid(),))
end = time.time() + 30
while True:
    rows = c.execute("SELECT state, last_error FROM walrust_status").fetchall()
    if rows and rows[0][0] in ("streaming", "standby") or time.time() > end:
        break
    time.sleep(0.05)
try:
    c.execute("SELECT walrust_sync(20)").fetchone()
    print("synced", rows, flush=True)
except Exception as e:
    print("failed", rows, e, flush=True)
sys.stdin.readline()
"""


class Configured(door.DoorTest):
    def configured(self, **kwargs):
        return self.peer(env={"WALRUST_REPLICA": self.path("replicas", "{name}"), "WALRUST_INTERVAL": "0s", **kwargs.pop("env", {})}, **kwargs)

    def replica(self, name="app"):
        return self.path("replicas", name)

    def worker(self, env, *args):
        w = subprocess.Popen([sys.executable, "-c", POOL, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.addCleanup(w.kill)
        return w


class FirstWords(Configured):
    def test_what_is_said_of_a_new_file_holds(self):
        for module in ("sqlite3", "apsw"):
            p = self.configured(module=module).open(":memory:")
            for i, (said, wanted) in enumerate((
                ("page_size=8192", 8192), ("page_size=65536", 65536), ("page_size=512", 512), ("auto_vacuum=1", 1), ("auto_vacuum=2", 2),
                ("encoding='UTF-16le'", "UTF-16le"), ("application_id=7", 7), ("user_version=3", 3),
            )):
                with self.subTest(module=module, said=said):
                    db = self.path(f"{module}{i}.db")
                    p.open(db, "c")
                    p.rows(f"PRAGMA {said}", conn="c")
                    p.sql("CREATE TABLE t(x)", conn="c")
                    p.sql("INSERT INTO t VALUES(1)", conn="c")
                    self.assertEqual(p.sql(f"PRAGMA {said.split('=')[0]}", conn="c"), wanted)
                    p.sync(conn="c")
                    self.assertEqual(p.sql("PRAGMA journal_mode", conn="c"), "wal")
                    self.assertSameBytes(db, self.restore(self.replica(f"{module}{i}"))[0])
                    p.close("c")

    def test_a_file_that_is_opened_and_not_used_stays_as_it_is(self):
        db = self.path("app.db")
        p = self.configured().open(":memory:")
        p.open(db, "c")
        row = p.status(database=db)
        self.assertEqual(row["state"], "catching up")
        self.assertIn("empty", row["last_error"])
        p.sql("SELECT 1", conn="c")
        p.close("c")
        self.assertEqual([(n, os.path.getsize(self.path(n))) for n in os.listdir(self.dir) if n.startswith("app")], [("app.db", 0)])
        self.assertFalse(os.path.exists(self.path("replicas")))

    def test_one_transaction_then_the_end(self):
        """A script that makes its database in one transaction and ends: it is in the replica, with nothing left beside the file."""
        script = "BEGIN; CREATE TABLE t(x); INSERT INTO t VALUES(42); COMMIT;"
        db = self.path("app.db")
        self.shell(f".open {db}\n{script}\n", env={"WALRUST_REPLICA": self.replica()})
        self.assertEqual(door.plain_rows(self.restore(self.replica())[0], "SELECT x FROM t"), [(42,)])
        self.shell(f".open {db}\nINSERT INTO t VALUES(43);\n", env={"WALRUST_REPLICA": self.replica()})
        self.assertEqual(door.plain_rows(self.restore(self.replica())[0], "SELECT x FROM t"), [(42,), (43,)])
        self.assertEqual(door.plain_rows(db, "SELECT count(*) FROM t"), [(2,)])

    def test_an_idle_program_is_replicated_too(self):
        """Its schema made in one transaction, a program waits for its first request with the connection open."""
        db = self.path("app.db")
        p = self.configured().open(":memory:")
        p.open(db, "c")
        for sql in ("BEGIN", "CREATE TABLE t(x)", "INSERT INTO t VALUES(1)", "COMMIT"):
            p.sql(sql, conn="c")
        self.eventually(lambda: p.status(database=db)["state"] == "streaming", what="streaming without another statement")
        self.assertEqual(door.plain_rows(self.restore(self.replica())[0], "SELECT x FROM t"), [(1,)])

    def test_another_journal_mode_stays_and_is_told(self):
        db = self.path("app.db")
        p = self.configured().open(":memory:")
        p.open(db, "c")
        self.assertEqual(p.sql("PRAGMA journal_mode=TRUNCATE", conn="c"), "truncate")
        p.sql("CREATE TABLE t(x)", conn="c")
        p.sql("INSERT INTO t VALUES(1)", conn="c")
        self.assertEqual(p.sql("PRAGMA journal_mode", conn="c"), "truncate")
        row = p.status(database=db)
        self.assertEqual(row["state"], "failed")
        self.assertRegex(row["last_error"], "journal_mode=WAL")
        self.assertEqual(p.sql("PRAGMA journal_mode=WAL", conn="c"), "wal")
        p.sql("INSERT INTO t VALUES(2)", conn="c")
        p.sync(conn="c")
        self.assertSameBytes(db, self.restore(self.replica())[0])

    def test_a_database_that_is_locked_at_the_open(self):
        """Another program writes in rollback mode at that moment: the open succeeds, and the watch begins with a later use."""
        db = self.path("app.db")
        other = door.plain_connect(db)
        self.addCleanup(other.close)
        other.execute("CREATE TABLE t(x)")
        other.execute("BEGIN IMMEDIATE")
        p = self.configured().open(":memory:")
        p.open(db, "c")
        row = p.status(database=db)
        self.assertEqual(row["state"], "catching up")
        self.assertIn("locked", row["last_error"])
        other.execute("INSERT INTO t VALUES(0)")
        other.execute("COMMIT")
        p.sql("INSERT INTO t VALUES(1)", conn="c")
        p.sync(conn="c")
        self.assertSameBytes(db, self.restore(self.replica())[0])

    def test_workers_at_their_first_start(self):
        """Sixteen processes open one new database at the same moment: none ends failed or fenced, and the replica has all rows."""
        for n in range(door.rounds(2)):
            db, replica = self.path(f"app{n}.db"), self.path(f"replica{n}")
            env = door.clean_env(self.dir, {"WALRUST_REPLICA": replica, "WALRUST_INTERVAL": "0s"})
            workers = [self.worker(env, door.SO, db) for _ in range(16)]
            for w in workers:
                w.stdin.write("go\n")
                w.stdin.flush()
            said = [w.stdout.readline() for w in workers]
            self.assertEqual([s for s in said if not s.startswith("synced")], [])
            rows = door.plain_rows(self.restore(replica)[0], "SELECT count(*) FROM t")
            self.assertEqual(rows, [(160,)])
            for w in workers:
                w.communicate("end\n", timeout=30)
                self.assertEqual(w.returncode, 0)

    def test_durability_sync_from_the_first_transaction_on(self):
        """It is made in rollback mode, so it cannot be refused: but its COMMIT returns when the replica has it."""
        db = self.path("app.db")
        p = self.configured(env={"WALRUST_DURABILITY": "sync"}).open(":memory:")
        p.open(db, "c")
        p.sql("CREATE TABLE t(x)", conn="c")
        self.assertEqual(door.plain_rows(self.restore(self.replica())[0], "SELECT count(*) FROM t"), [(0,)])
        p.sql("INSERT INTO t VALUES(1)", conn="c")
        self.assertEqual(door.plain_rows(self.restore(self.replica())[0], "SELECT count(*) FROM t"), [(1,)])


class Encrypted(Configured):
    """SQLCipher under configuration: the key comes after the open, and no page is ever seen in the clear."""

    MODULE = "sqlcipher3"

    def keyed(self, p, db, conn="c"):
        p.open(db, conn)
        p.rows("PRAGMA key='secret'", conn=conn)

    def rows_of(self, path):
        q = self.peer(module=self.MODULE, so=None)
        self.keyed(q, path)
        self.assertEqual(q.sql("PRAGMA integrity_check", conn="c"), "ok")
        rows = q.rows("SELECT * FROM t ORDER BY 1", conn="c")
        q.end()
        return rows

    def check(self, db, make):
        p = self.configured(module=self.MODULE).open(":memory:")
        self.keyed(p, db)
        make(p)
        for i in range(20):
            p.sql("INSERT INTO t VALUES(?)", f"clear text {i}", conn="c")
        p.sync(conn="c")
        restored, _ = self.restore(self.replica(), check="none")
        self.assertEqual(self.rows_of(restored), p.rows("SELECT * FROM t ORDER BY 1", conn="c"))
        for top, _, names in os.walk(self.dir):
            for name in names:
                with open(os.path.join(top, name), "rb") as f:
                    self.assertNotIn(b"clear text", f.read(), os.path.join(top, name))
        p.end()
        self.assertEqual(len(self.rows_of(db)), 20)

    def test_a_new_database(self):
        self.check(self.path("app.db"), lambda p: p.sql("CREATE TABLE t(x)", conn="c"))

    def test_an_existing_database(self):
        for mode in ("delete", "wal"):
            with self.subTest(mode=mode):
                db = self.path("app.db")
                q = self.peer(module=self.MODULE, so=None)
                self.keyed(q, db)
                q.sql(f"PRAGMA journal_mode={mode}", conn="c")
                q.sql("CREATE TABLE t(x)", conn="c")
                q.end()
                self.check(db, lambda p: None)
                os.remove(db)
                shutil.rmtree(self.path("replicas"))
                shutil.rmtree(db + "-walrust")


class MadeAnew(Configured):
    """The file at a watched path is another one, which is in rollback mode as each new one is."""

    def begun(self, how):
        db = self.path(f"{how}.db")
        p = self.configured().open(db) if how == "configured" else self.peer().open(db)
        if how == "called":
            p.watch(self.replica("called"), interval="0s")
        p.sql("CREATE TABLE t(v)")
        p.sql("INSERT INTO t VALUES('of the first')")
        p.sync()
        return p, db

    def assertFollowed(self, p, db, conn="main"):
        p.sync(conn=conn)
        status = p.status(conn=conn, database=db)
        self.assertEqual((status["state"], status["last_error"]), ("streaming", None))
        self.assertEqual(p.rows("SELECT count(*) FROM walrust_status", conn=conn), [(1,)])
        self.assertSameBytes(db, self.restore(self.replica(os.path.basename(db)[:-3]))[0])

    def test_it_is_deleted_and_made_anew(self):
        for how in ("configured", "called"):
            with self.subTest(how):
                p, db = self.begun(how)
                p.close()
                for suffix in ("", "-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(db + suffix)
                p.open(db)
                p.sql("PRAGMA page_size=8192")
                p.sql("CREATE TABLE t(v)")
                p.sql("INSERT INTO t VALUES('of the second')")
                self.assertFollowed(p, db)
                self.assertEqual(p.sql("PRAGMA page_size"), 8192)

    def test_another_is_copied_there(self):
        p, db = self.begun("configured")
        p.close()
        other = self.path("other.db")
        self.shell("CREATE TABLE t(v); INSERT INTO t VALUES('of another')", db=other, load=False)
        shutil.copyfile(other, db)
        p.open(db)
        p.sql("INSERT INTO t VALUES('and more')")
        self.assertFollowed(p, db)

    def test_it_is_moved_away_under_a_connection(self):
        p, db = self.begun("configured")
        for suffix in ("", "-wal", "-shm"):
            os.rename(db + suffix, self.path("moved.db") + suffix)
        p.sql("INSERT INTO t VALUES('into the moved one')")
        self.eventually(lambda: p.status()["state"] == "failed", what="that the file is gone is told")
        self.assertIn("replaced or deleted", p.status()["last_error"])
        p.open(db, conn="new")
        p.sql("CREATE TABLE t(v)", conn="new")
        p.sql("INSERT INTO t VALUES('of the new one')", conn="new")
        p.sql("INSERT INTO t VALUES('into the moved one')")
        self.assertFollowed(p, db, conn="new")

    def test_a_mode_that_the_program_wants_stays(self):
        p, db = self.begun("configured")
        self.assertEqual(p.sql("PRAGMA journal_mode=DELETE"), "delete")
        p.open(db, conn="second")
        p.sql("INSERT INTO t VALUES('in rollback mode')", conn="second")
        self.assertEqual(p.sql("PRAGMA journal_mode", conn="second"), "delete")
        self.eventually(lambda: p.status()["state"] == "failed", what="that it is not replicated is told")
        self.assertIn("journal_mode=WAL", p.status()["last_error"])


class Attached(Configured):
    """Databases that a program sees by ATTACH only."""

    def test_one_that_is_there_is_watched(self):
        for mode in ("delete", "wal"):
            with self.subTest(mode):
                audit = self.path(f"audit-{mode}.db")
                self.shell(f"PRAGMA journal_mode={mode}; CREATE TABLE a(x); INSERT INTO a VALUES(1);", db=audit, load=False)
                p = self.configured().open(self.path(f"main-{mode}.db"))
                p.sql("CREATE TABLE t(x)")
                p.sql("ATTACH ? AS audit", audit)
                p.sql("BEGIN")
                p.sql("INSERT INTO t VALUES(1)")
                p.sql("INSERT INTO audit.a VALUES(2)")
                p.sql("COMMIT")
                there = lambda: (p.status(database=audit) or {}).get("state") == "streaming"
                self.eventually(there, what="it is streamed")
                self.assertSameBytes(audit, self.restore(self.replica(f"audit-{mode}"))[0])
                p.end()

    def test_one_that_is_made_waits_and_has_a_row(self):
        audit = self.path("audit.db")
        p = self.configured().open(self.path("main.db"))
        p.sql("CREATE TABLE t(x)")
        p.sql("ATTACH ? AS audit", audit)
        p.sql("CREATE TABLE audit.a(x)")
        p.sql("INSERT INTO audit.a VALUES(1)")
        row = p.status(database=audit)
        self.assertEqual(row["state"], "catching up")
        self.assertErrorLine(row["last_error"], "ATTACH", "opened by itself")
        p.sql("DETACH audit")
        p.sql("ATTACH ? AS audit", audit)
        p.sql("INSERT INTO audit.a VALUES(2)")
        there = lambda: (p.status(database=audit) or {}).get("state") == "streaming"
        self.eventually(there, what="it is streamed")
        self.assertSameBytes(audit, self.restore(self.replica("audit"))[0])

    def test_what_vacuum_into_writes_is_left_alone(self):
        p = self.configured().open(self.path("main.db"))
        p.sql("CREATE TABLE t(x)")
        p.sql("INSERT INTO t VALUES(1)")
        p.sync()
        copy = self.path("copy.db")
        p.sql("VACUUM INTO ?", copy)
        self.assertEqual([n for n in os.listdir(self.dir) if n.startswith("copy.db")], ["copy.db"])
        with open(copy, "rb") as f:
            self.assertEqual(f.read(20)[18:], b"\x01\x01", "in rollback mode")
        self.assertEqual(p.rows("SELECT count(*) FROM walrust_status"), [(1,)])


class ShortConnections(Configured):
    """A program with a connection for each request, on a machine that has just restored its database."""

    VISIT = (
        "import sqlite3, sys\n"
        "m = sqlite3.connect(':memory:'); m.enable_load_extension(True); m.load_extension(sys.argv[1])\n"
        "for i in range(5):\n"
        "    c = sqlite3.connect(sys.argv[2], isolation_level=None)\n"
        "    c.execute('INSERT INTO t VALUES(2)'); c.close()\n"
    )

    def replicated(self, url, env=None):
        db = self.path("first.db")
        p = self.peer(env=env).open(db)
        p.watch(url, interval="0s")
        p.sql("CREATE TABLE t(x)")
        p.sql("INSERT INTO t VALUES(1)")
        p.sync()
        p.kill()
        out, _ = self.restore(url, out=self.path("second", "app.db"), env=env)
        return out

    def test_short_connections_to_a_restored_database(self):
        os.mkdir(self.path("second"))
        url = self.path("r")
        db = self.replicated(url)
        for end in ("os._exit(0)", ""):
            env = door.clean_env(self.dir, {"WALRUST_REPLICA": url})
            code = self.VISIT + f"import os\n{end}\n"
            done = subprocess.run(["/usr/bin/python3", "-c", code, door.SO, db], env=env, capture_output=True, text=True, timeout=60)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertSameBytes(db, self.restore(url)[0])

    def unheard(self, s3, visits, make=None):
        """A replica's database restored on a second machine, or another that `make` makes there, which a program visits so often while the
        store is away; then that is back, and the program has it open. Gives (peer, db, url)."""
        os.mkdir(self.path("second"))
        proxy = door.FaultProxy(self, s3.port)
        url = s3.url("app", proxy.endpoint)
        db = self.replicated(url, s3.env())
        db = make() if make else db
        proxy.down = True
        p = self.peer(env={**s3.env(), "WALRUST_REPLICA": url, "WALRUST_INTERVAL": "0s"})
        for i in range(visits):
            p.open(db)
            p.sql("INSERT INTO t VALUES(2)")
            p.close()
        proxy.down = False
        p.open(db)
        return p, db, url

    def test_short_connections_before_the_store_is_heard(self):
        """Its closes have checkpointed what the restored file was away, and what it was is known all the same."""
        s3 = door.S3(self)
        p, db, url = self.unheard(s3, 6)
        self.eventually(lambda: p.status()["state"] == "streaming", timeout=90, what="it is known again", every=0.2)
        p.sql("INSERT INTO t VALUES(3)")
        p.sync()
        self.assertSameBytes(db, self.restore(url, env=s3.env())[0])
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 8)

    def test_another_database_in_its_place_is_none_of_it(self):
        """One that never was what the replica holds is refused, however short its connections are."""
        s3 = door.S3(self)

        def another():
            other = self.path("second", "other.db")
            self.shell("CREATE TABLE t(x); INSERT INTO t VALUES('of another')", db=other, load=False)
            return other

        p, _, url = self.unheard(s3, 3, make=another)
        self.eventually(lambda: p.status()["state"] == "failed", timeout=90, what="it is refused", every=0.2)
        self.assertIn("another database's history", p.status()["last_error"])
        self.assertEqual(door.plain_rows(self.restore(url, env=s3.env())[0], "SELECT count(*) FROM t"), [(1,)])


class FailedStarts(door.DoorTest):
    def test_a_watch_inside_a_transaction_leaves_no_lease(self):
        for begin in ("BEGIN IMMEDIATE", "BEGIN"):
            with self.subTest(begin=begin):
                name = begin.replace(" ", "")
                p = self.peer().open(self.path(name + ".db"))
                p.sql("CREATE TABLE x(y)")
                p.sql(begin)
                with self.assertRaises(door.SqlError) as caught:
                    p.watch(self.path(name))
                self.assertErrorLine(str(caught.exception), "WAL mode", "COMMIT first")
                p.sql("COMMIT")
                self.assertIn("streaming", p.watch(self.path(name)))
                p.end()

    def test_a_locked_database_leaves_no_lease(self):
        db = self.path("app.db")
        other = door.plain_connect(db)
        self.addCleanup(other.close)
        other.execute("CREATE TABLE t(x)")
        other.execute("BEGIN IMMEDIATE")
        p = self.peer().open(db)
        with self.assertRaises(door.SqlError) as caught:
            p.watch(self.path("replica"))
        self.assertErrorLine(str(caught.exception), "locked")
        other.execute("COMMIT")
        self.assertIn("streaming", p.watch(self.path("replica")))

    def test_a_connection_whose_file_was_replaced(self):
        """Loaded before or after: the watch is refused, and the program goes on as without walrust."""
        for loaded in ("before", "after"):
            with self.subTest(loaded=loaded):
                db = self.path(loaded + ".db")
                for path, word in ((db, "old"), (db + ".new", "new")):
                    with contextlib.closing(door.plain_connect(path)) as c:
                        c.execute("PRAGMA journal_mode=WAL")
                        c.execute("CREATE TABLE t(x)")
                        c.execute("INSERT INTO t VALUES(?)", (word,))
                        if word == "new":
                            c.execute("CREATE TABLE more AS SELECT zeroblob(30000)")
                p = self.peer(so=door.SO if loaded == "before" else None).open(db)
                p.sql("SELECT * FROM t")
                p.sql("PRAGMA wal_checkpoint(TRUNCATE)")
                os.rename(db + ".new", db)
                if loaded == "after":
                    p.load()
                with self.assertRaises(door.SqlError) as caught:
                    p.watch(self.path(loaded))
                self.assertErrorLine(str(caught.exception), "replaced", "open")
                p.sql("INSERT INTO t VALUES('by the app')")
                self.assertEqual(p.rows("SELECT x FROM t"), [("old",), ("by the app",)])
                self.assertFalse(os.path.exists(self.path(loaded)))
                p.end()


if __name__ == "__main__":
    unittest.main()
